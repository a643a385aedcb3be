//! The seam between the planes: all that shards and control share.
//!
//! Down go the tables, immutable and swapped whole, and a stop flag beside them; up come counters, each written by one
//! shard, and a few signals about backends and single messages. There is nothing else, and nobody waits for anybody: a shard looks at the
//! tables once per batch, and a signal that finds the channel full is dropped, since another will follow.

use crate::dataplane::counters::ShardCounters;
use crate::dataplane::route::How;
use crate::dataplane::tables::Tables;
use crate::dataplane::verdict::Verdict;
use arc_swap::ArcSwap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::sync::mpsc;

/// Signals that wait for the control plane at most. A backend that refuses sends one per batch at worst.
const SIGNALS_MAX: usize = 256;

/// What a shard noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A message could not be read.
    Malformed(Box<Malformed>),
    /// A message of the call that somebody follows.
    Traced(Box<Traced>),
    /// A destination could not be reached: nothing listens there, or no way leads there.
    Unreachable {
        /// Where the datagram was sent.
        to: SocketAddr,
        /// The error number the kernel gave.
        code: i32,
    },
}

/// A message that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Who sent it.
    pub from: SocketAddr,
    /// Index of the listener it came to; `None`: the egress socket.
    pub listener: Option<u8>,
    /// What became of it.
    pub verdict: Verdict,
    /// What is wrong with it.
    pub reason: &'static str,
    /// Offset in the message of what is wrong.
    pub at: usize,
    /// Octets of the message.
    pub len: usize,
    /// Offset in the message of `octets`.
    pub start: usize,
    /// What stands round the place.
    pub octets: Box<[u8]>,
}

/// A message of the call that somebody follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    /// The number of the trace.
    pub trace: u64,
    /// The number of the shard.
    pub shard: usize,
    /// Who sent it.
    pub from: SocketAddr,
    /// Index of the listener it came to; `None`: the egress socket.
    pub listener: Option<u8>,
    /// Its start line, or the beginning of that.
    pub line: Box<[u8]>,
    /// What became of it.
    pub verdict: Verdict,
    /// Why it was refused, if it was.
    pub reason: Option<&'static str>,
    /// Why it goes where it goes, if it is a request that goes anywhere.
    pub how: Option<How>,
    /// The names of the pool and the backend it goes to or comes from.
    pub backend: Option<(Box<str>, Box<str>)>,
    /// The name of the rule that chose the pool.
    pub rule: Option<Box<str>>,
}

/// Wakes a shard that waits.
pub type Ring = Box<dyn Fn() + Send + Sync>;

/// What all shards read.
pub struct Shared {
    /// The tables in force.
    pub tables: Arc<ArcSwap<Tables>>,
    started: Instant,
    stop: AtomicBool,
    rings: Vec<Ring>,
}

impl Shared {
    /// Asks all shards to finish what they are at and end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        for ring in &self.rings {
            ring();
        }
    }

    /// Whether shards are to end.
    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Milliseconds since the link was made: the one clock of all shards.
    pub fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("is_stopping", &self.is_stopping()).finish_non_exhaustive()
    }
}

/// The control plane's end.
#[derive(Debug)]
pub struct ControlEnd {
    /// What all shards read.
    pub shared: Arc<Shared>,
    /// The counters of each shard.
    pub counters: Vec<Arc<ShardCounters>>,
    /// What shards noticed.
    pub signals: mpsc::Receiver<Signal>,
}

/// A shard's end.
#[derive(Debug)]
pub struct ShardEnd {
    /// What all shards read.
    pub shared: Arc<Shared>,
    /// The counters of this shard.
    pub counters: Arc<ShardCounters>,
    signals: mpsc::Sender<Signal>,
}

impl ShardEnd {
    /// Tells the control plane, unless it has too much to read already.
    pub fn signal(&self, signal: Signal) {
        self.signals.try_send(signal).ok();
    }
}

/// Links a control plane to as many shards as there are `rings`, which have `listeners` listeners each, with `tables` in
/// force.
pub fn link(rings: Vec<Ring>, listeners: usize, tables: Tables) -> (ControlEnd, Vec<ShardEnd>) {
    let counters: Vec<_> = rings.iter().map(|_| Arc::new(ShardCounters::new(listeners))).collect();
    let tables = Arc::new(ArcSwap::from_pointee(tables));
    let shared = Arc::new(Shared { tables, started: Instant::now(), stop: AtomicBool::new(false), rings });
    let (sender, signals) = mpsc::channel(SIGNALS_MAX);
    let ends = counters
        .iter()
        .map(|counters| ShardEnd { shared: shared.clone(), counters: counters.clone(), signals: sender.clone() })
        .collect();
    (ControlEnd { shared, counters, signals }, ends)
}
