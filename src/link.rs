//! The seam between the planes: all that shards and control share, and shards among themselves.
//!
//! Down go the tables, immutable and swapped whole, and two flags beside them, whether to stop and whether to make runs; up come counters, each written by one
//! shard, and a few signals about backends and single messages. From shard to shard goes what only the other can do:
//! [`Handed`]. There is nothing else, and nobody waits for anybody: a shard looks at the tables once per batch, a signal
//! that finds the channel full is dropped, of which the shard learns, and what a shard has no room for is counted.

use crate::dataplane::counters::{Handshake, ShardCounters, Tally};
use crate::dataplane::route::How;
use crate::dataplane::tables::Tables;
use crate::dataplane::verdict::{Sender, Verdict};
use crate::tls::Credentials;
use arc_swap::ArcSwap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as between_threads;
use std::time::Instant;
use tokio::sync::mpsc;

/// Signals that wait for the control plane at most. Half of the places are for what calls depend on: strangers fill the rest
/// at will, with handshakes that fail.
const SIGNALS_MAX: usize = 256;

/// What a shard noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A message could not be read.
    Malformed(Box<Malformed>),
    /// A message of the call that somebody follows.
    Traced(Box<Traced>),
    /// The connections of a shard, which were asked for.
    Connections(Box<Connections>),
    /// A TLS handshake failed.
    Handshake(Box<HandshakeFailed>),
    /// A destination could not be reached: nothing listens there, or no way leads there.
    Unreachable {
        /// Where the datagram was sent.
        to: SocketAddr,
        /// The error number the kernel gave.
        code: i32,
    },
}

impl Signal {
    /// Whether whoever sends to us decides how many of these there are, and nothing is lost with one but a line to read.
    const fn is_of_strangers(&self) -> bool {
        matches!(self, Signal::Handshake(_) | Signal::Malformed(_) | Signal::Traced(_))
    }
}

/// A TLS handshake that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeFailed {
    /// The other side.
    pub peer: SocketAddr,
    /// Index of the listener that accepted the connection; `None`: it is ours to a backend.
    pub listener: Option<u8>,
    /// What it is counted as.
    pub as_what: Handshake,
    /// Why.
    pub text: Box<str>,
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

/// A question for the connections of all shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The number of the question; 0: none was asked yet.
    pub number: u64,
    /// The other side of those that are meant; `None`: all.
    pub peer: Option<IpAddr>,
}

/// The answer of a shard to a [`Listing`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connections {
    /// The number of the question.
    pub listing: u64,
    /// The number of the shard.
    pub shard: usize,
    /// How many there are that were meant.
    pub count: usize,
    /// They, or some of them.
    pub listed: Vec<Listed>,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The other side.
    pub peer: SocketAddr,
    /// Index of the listener it came to, or was opened for; `None`: it is to a backend.
    pub listener: Option<u8>,
    /// The client it is for, if it is to a backend that wants to know.
    pub client: Option<SocketAddr>,
    /// Whether the other side opened it.
    pub is_accepted: bool,
    /// `connecting`, `handshaking`, `open`, `half-closed` or `closing`.
    pub state: &'static str,
    /// How long it has been at that, in milliseconds.
    pub state_ms: u64,
    /// How long nothing was sent or received, in milliseconds.
    pub silent_ms: u64,
    /// Octets of a message that has come in part.
    pub partial: usize,
    /// Octets that wait to be sent.
    pub unsent: usize,
    /// Requests that came and have no final response yet.
    pub unanswered: u32,
}

/// What waits for one shard to take it over at most: what it sends in some 10 ms.
const HANDED_MAX: usize = 1024;

/// What one shard has for another.
#[derive(Debug)]
pub enum Handed {
    /// A message whose connection the other shard has, as it is to be sent.
    Message {
        /// The connection.
        from: Sender,
        /// Who is on the other end.
        to: SocketAddr,
        /// The message.
        octets: Box<[u8]>,
        /// How it is counted once it is sent.
        tally: Tally,
    },
    /// INVITEs, by their transactions, whose final response came to a shard that did not forward them. Whoever did may
    /// count them as ringing no longer; a response says not who that was, so it is told to all. Needed in one arrangement
    /// alone: one port for all shards towards backends, spread by the kernel.
    Answered(Box<[u64]>),
}

/// A shard's end of the channels between shards. Nobody waits for anybody: what does not fit is lost and counted.
#[derive(Debug)]
pub struct Mesh {
    /// The number of this shard.
    own: usize,
    /// The way to each shard, this one too.
    ways: Vec<between_threads::SyncSender<Handed>>,
    arrived: between_threads::Receiver<Handed>,
    shared: Arc<Shared>,
    /// Shards that were handed something and not woken yet.
    to_wake: Vec<usize>,
}

impl Mesh {
    /// Hands something to shard number `shard`, which learns of it with [`Mesh::wake`]. Returns whether there was room.
    pub fn hand(&mut self, shard: usize, handed: Handed) -> bool {
        let taken = self.ways.get(shard).is_some_and(|way| way.try_send(handed).is_ok());
        if taken {
            self.wake_later(shard);
        }
        taken
    }

    /// Whether there is another shard of this number.
    pub fn leads_to(&self, shard: usize) -> bool {
        shard != self.own && shard < self.ways.len()
    }

    /// Tells all other shards that these INVITEs are answered, at once. Returns how many words of it found no room.
    pub fn tell_answered(&mut self, transactions: &[u64]) -> u64 {
        let own = self.own;
        let others = (0..self.ways.len()).filter(|&shard| shard != own);
        let lost = others.filter(|&shard| !self.hand(shard, Handed::Answered(transactions.into()))).count();
        self.wake();
        (lost * transactions.len()) as u64
    }

    /// Wakes shard number `shard` with the next [`Mesh::wake`].
    pub fn wake_later(&mut self, shard: usize) {
        if !self.to_wake.contains(&shard) {
            self.to_wake.push(shard);
        }
    }

    /// Whether a shard was handed something and does not know.
    pub fn has_to_wake(&self) -> bool {
        !self.to_wake.is_empty()
    }

    /// Wakes the shards that were handed something: once for all of a turn.
    pub fn wake(&mut self) {
        for shard in self.to_wake.drain(..) {
            if let Some(ring) = self.shared.rings.get(shard) {
                ring();
            }
        }
    }

    /// The oldest of what was handed to this shard.
    pub fn next_handed(&self) -> Option<Handed> {
        self.arrived.try_recv().ok()
    }
}

/// Wakes a shard that waits.
pub type Ring = Box<dyn Fn() + Send + Sync>;

/// What all shards read.
pub struct Shared {
    /// The tables in force.
    pub tables: Arc<ArcSwap<Tables>>,
    /// The credentials that new connections begin with.
    pub credentials: Arc<ArcSwap<Credentials>>,
    started: Instant,
    stop: AtomicBool,
    runs: AtomicBool,
    listing: ArcSwap<Listing>,
    rings: Vec<Ring>,
}

impl Shared {
    /// Asks all shards to finish what they are at and end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Wakes all shards: one that sleeps does not see what is in force, and counts nothing.
    pub fn wake(&self) {
        self.rings.iter().for_each(|ring| ring());
    }

    /// Asks all shards for their connections; each answers with [`Signal::Connections`].
    pub fn list(&self, listing: Listing) {
        self.listing.store(Arc::new(listing));
        self.wake();
    }

    /// What was asked last.
    pub fn listing(&self) -> Listing {
        **self.listing.load()
    }

    /// Whether shards are to end.
    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Says whether shards may hand the kernel datagrams that are alike as one, from their next turn on.
    pub fn allow_runs(&self, allowed: bool) {
        self.runs.store(allowed, Ordering::Relaxed);
    }

    /// Whether they may.
    pub fn allows_runs(&self) -> bool {
        self.runs.load(Ordering::Relaxed)
    }

    /// Milliseconds since the link was made: the one clock of all shards.
    pub fn now_ms(&self) -> u64 {
        self.ms_at(Instant::now())
    }

    /// That clock at `instant`, for whoever has just looked.
    pub fn ms_at(&self, instant: Instant) -> u64 {
        instant.saturating_duration_since(self.started).as_millis() as u64
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
    /// The other shards.
    pub mesh: Mesh,
    signals: mpsc::Sender<Signal>,
}

impl ShardEnd {
    /// Tells the control plane, unless it has too much to read already. Returns whether it will learn of it.
    pub fn signal(&self, signal: Signal) -> bool {
        let is_crowded = self.signals.capacity() <= SIGNALS_MAX / 2;
        !(is_crowded && signal.is_of_strangers()) && self.signals.try_send(signal).is_ok()
    }
}

/// Links a control plane to as many shards as there are `rings`, which have `listeners` listeners each, with `tables` in
/// force.
pub fn link(rings: Vec<Ring>, listeners: usize, tables: Tables) -> (ControlEnd, Vec<ShardEnd>) {
    let counters: Vec<_> = rings.iter().map(|_| Arc::new(ShardCounters::new(listeners))).collect();
    let tables = Arc::new(ArcSwap::from_pointee(tables));
    let shared = Arc::new(Shared {
        tables,
        credentials: Arc::default(),
        started: Instant::now(),
        stop: AtomicBool::new(false),
        runs: AtomicBool::new(false),
        listing: ArcSwap::default(),
        rings,
    });
    let (sender, signals) = mpsc::channel(SIGNALS_MAX);
    let (ways, arrived): (Vec<_>, Vec<_>) = counters.iter().map(|_| between_threads::sync_channel(HANDED_MAX)).unzip();
    let meshes = arrived.into_iter().enumerate().map(|(own, arrived)| Mesh {
        own,
        ways: ways.clone(),
        arrived,
        shared: shared.clone(),
        to_wake: Vec::new(),
    });
    let ends = counters.iter().zip(meshes).map(|(counters, mesh)| ShardEnd {
        shared: shared.clone(),
        counters: counters.clone(),
        mesh,
        signals: sender.clone(),
    });
    let ends = ends.collect();
    (ControlEnd { shared, counters, signals }, ends)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::cluster::tests::{cluster, keys, text};
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn word_of_an_answer_comes_to_all_others_and_what_does_not_fit_is_counted() {
        let rung = Arc::new(AtomicUsize::new(0));
        let ring = || -> Ring {
            let rung = rung.clone();
            Box::new(move || {
                rung.fetch_add(1, Ordering::Relaxed);
            })
        };
        let tables = cluster(&text(&[1]), None).tables(1, &keys(), false, None);
        let (_control, mut ends) = link((0..3).map(|_| ring()).collect(), 1, tables);
        assert_eq!(ends[0].mesh.tell_answered(&[1, 2]), 0);
        assert_eq!(rung.load(Ordering::Relaxed), 2);
        assert!(ends[0].mesh.next_handed().is_none());
        for other in [1, 2] {
            let Some(Handed::Answered(transactions)) = ends[other].mesh.next_handed() else { panic!("no word") };
            assert_eq!(*transactions, [1, 2]);
        }
        let lost: u64 = (0..HANDED_MAX + 5).map(|_| ends[1].mesh.tell_answered(&[7, 8])).sum();
        assert_eq!(lost, 2 * 2 * 5);
    }

    #[test]
    fn a_flood_of_failed_handshakes_leaves_room_for_word_of_backends() {
        let tables = cluster(&text(&[1]), None).tables(1, &keys(), false, None);
        let (mut control, ends) = link(vec![Box::new(|| ())], 1, tables);
        let to = SocketAddr::from(([10, 0, 0, 1], 5060));
        let failed = || {
            let (as_what, text) = (Handshake::NotTls, "it was no TLS".into());
            Signal::Handshake(Box::new(HandshakeFailed { peer: to, listener: Some(0), as_what, text }))
        };
        for _ in 0..2 * SIGNALS_MAX {
            ends[0].signal(failed());
        }
        ends[0].signal(Signal::Unreachable { to, code: 111 });
        let told: Vec<_> = std::iter::from_fn(|| control.signals.try_recv().ok()).collect();
        assert_eq!(told.last(), Some(&Signal::Unreachable { to, code: 111 }));
        assert_eq!(told.len(), SIGNALS_MAX / 2 + 1);
    }
}
