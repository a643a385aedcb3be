//! The seam between the planes: all that shards and control share.
//!
//! Down go the tables, immutable and swapped whole; up come counters, each written by one shard, and a few signals about
//! backends. A stop flag goes down beside the tables. There is nothing else, and nobody waits for anybody: a shard looks at
//! the tables once per batch, and a signal that finds the channel full is dropped, since another will follow.

use crate::dataplane::counters::ShardCounters;
use crate::dataplane::tables::Tables;
use arc_swap::ArcSwap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;

/// Signals that wait for the control plane at most. A backend that refuses sends one per batch at worst.
const SIGNALS_MAX: usize = 256;

/// What a shard noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A destination could not be reached: nothing listens there, or no way leads there.
    Unreachable {
        /// Where the datagram was sent.
        to: SocketAddr,
        /// The error number the kernel gave.
        code: i32,
    },
}

/// What all shards read.
#[derive(Debug)]
pub struct Shared {
    /// The tables in force.
    pub tables: Arc<ArcSwap<Tables>>,
    stop: AtomicBool,
}

impl Shared {
    /// Asks all shards to finish what they are at and end. They notice at the end of their turn, or when woken.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether shards are to end.
    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
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
        drop(self.signals.try_send(signal));
    }
}

/// Links a control plane to `shards` shards with `listeners` listeners, `tables` in force.
pub fn link(shards: usize, listeners: usize, tables: Tables) -> (ControlEnd, Vec<ShardEnd>) {
    let tables = Arc::new(ArcSwap::from_pointee(tables));
    let shared = Arc::new(Shared { tables, stop: AtomicBool::new(false) });
    let (sender, signals) = mpsc::channel(SIGNALS_MAX);
    let counters: Vec<_> = (0..shards).map(|_| Arc::new(ShardCounters::new(listeners))).collect();
    let ends = counters
        .iter()
        .map(|counters| ShardEnd { shared: shared.clone(), counters: counters.clone(), signals: sender.clone() })
        .collect();
    (ControlEnd { shared, counters, signals }, ends)
}
