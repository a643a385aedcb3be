//! What a shard asks of the kernel, as a trait: the seam at which tests inject faults and replay traffic.
//!
//! Sockets go by number here: the listeners in the order of configuration, behind them the egress sockets.

use crate::sys::errors::{self, Unreachable};
use crate::sys::mmsg::{Outgoing, ReceiveBatch, SendBatch};
use crate::sys::socket;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::socket::Sockets;

/// Sending and receiving on numbered sockets. Nothing here blocks.
pub trait Io {
    /// Receives what is there, up to a batch, and returns how many datagrams it is.
    ///
    /// # Errors
    /// What the network said about a datagram sent earlier, or that the socket is broken.
    fn receive(&mut self, socket: usize, into: &mut ReceiveBatch) -> io::Result<usize>;

    /// Sends `datagrams` and returns how many were taken: at least one.
    ///
    /// # Errors
    /// Why the first was not taken; or, as above, something about an earlier one.
    fn send(&mut self, socket: usize, datagrams: &[Outgoing<'_>]) -> io::Result<usize>;

    /// Whether datagrams that are alike may go as one from here on.
    fn allow_runs(&mut self, allowed: bool);

    /// Whether datagrams that are alike go as one if they follow one another.
    fn makes_runs(&self) -> bool;

    /// The oldest report of a datagram that could not be delivered.
    fn next_error(&mut self, socket: usize) -> Option<Unreachable>;

    /// Octets of the socket's receive buffer in use, by the kernel's account, and all there are.
    fn queued(&mut self, socket: usize) -> (u64, u64);

    /// Datagrams dropped since the socket was opened because its receive buffer was full.
    fn drops(&mut self, socket: usize) -> u64;
}

/// The real thing.
pub struct Kernel {
    sockets: Sockets,
    /// Of each socket: its descriptor, and whether it tells the local address of a datagram.
    numbered: Vec<(RawFd, bool)>,
    batch: SendBatch,
}

impl Kernel {
    /// The kernel's view of `sockets`, at most `batch` datagrams at a time.
    pub fn new(sockets: Sockets, batch: usize) -> Kernel {
        let numbered = sockets.all().map(|socket| (socket.as_raw_fd(), socket.tells_local())).collect();
        Kernel { sockets, numbered, batch: SendBatch::new(batch) }
    }

    /// The sockets.
    pub fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// The descriptor of socket number `socket`.
    pub fn descriptor(&self, socket: usize) -> RawFd {
        self.numbered[socket].0
    }
}

impl Io for Kernel {
    fn receive(&mut self, socket: usize, into: &mut ReceiveBatch) -> io::Result<usize> {
        let (fd, tells_local) = self.numbered[socket];
        into.receive(fd, tells_local)
    }

    fn send(&mut self, socket: usize, datagrams: &[Outgoing<'_>]) -> io::Result<usize> {
        self.batch.send(self.numbered[socket].0, datagrams)
    }

    fn allow_runs(&mut self, allowed: bool) {
        self.batch.allow_runs(allowed);
    }

    fn makes_runs(&self) -> bool {
        self.batch.makes_runs()
    }

    fn next_error(&mut self, socket: usize) -> Option<Unreachable> {
        errors::next(self.numbered[socket].0)
    }

    fn queued(&mut self, socket: usize) -> (u64, u64) {
        socket::memory(self.numbered[socket].0).map_or((0, 1), |memory| (memory.queued, memory.room))
    }

    fn drops(&mut self, socket: usize) -> u64 {
        self.sockets.all().nth(socket).and_then(|socket| socket.drops().ok()).unwrap_or(0)
    }
}
