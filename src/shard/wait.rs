//! How a shard waits, which at everyday loads costs more than all it does with a message.
//!
//! ```text
//! epoll_wait, 100 ms at most ── something came ──► work ──► linger, where it pays (`linger`) ──► wait again
//!         │ nothing came
//!         ▼
//! park in glommio until something comes ──► work      (not while connections have deadlines: look at those, wait again)
//! ```
//!
//! A blocking `epoll_wait` is the cheapest wait there is: nothing is set up and nothing taken down, however often it is
//! called. Two things make it dear. A timeout in the order of a millisecond is programmed into the CPU's timer and taken
//! out again, which on a virtual machine is an exit to the hypervisor each time: 100 ms is not, since the timer is never
//! the next to expire. And parking in the executor costs some 15 µs (timers armed and cancelled, `io_uring_enter`, a
//! task switch), so it happens only where nothing came for so long that nobody counts.
//!
//! Measured against a relay that blocks in `recvmmsg` on two threads: `docs/performance.md`, "Everyday loads".

use crate::shard::io::Kernel;
use crate::sys::poll::{Bell, Poller, Ready};
use glommio::io::PollableFd;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// How long the thread itself waits before it hands over to the executor. Long enough that the timer is never the next
/// to expire on a busy CPU; short enough that an idle shard is soon parked.
const BLOCK: Duration = Duration::from_millis(100);

/// What a shard waits with.
pub struct Waiter {
    poller: PollableFd<Poller>,
    /// Number of the bell: behind those of the sockets.
    bell: u32,
}

impl Waiter {
    /// A waiter for the sockets of `kernel`, which become ready under their numbers, and for `bell`.
    ///
    /// # Errors
    /// The kernel has no room for another descriptor.
    pub fn new(kernel: &Kernel, bell: &Bell) -> io::Result<Waiter> {
        let poller = Poller::new()?;
        let mut count = 0;
        for socket in kernel.sockets().all() {
            poller.add(socket.as_raw_fd(), count)?;
            count += 1;
        }
        poller.add(bell.as_raw_fd(), count)?;
        let poller = PollableFd::new(poller).map_err(io::Error::from)?;
        Ok(Waiter { poller, bell: count })
    }

    /// The number under which the bell becomes ready.
    pub fn bell(&self) -> u32 {
        self.bell
    }

    /// Whether the socket under number `socket` is to be ready when it can take more, too.
    pub fn want_writable(&self, kernel: &Kernel, socket: usize, wanted: bool) -> io::Result<()> {
        self.poller.get_ref().set_writable(kernel.descriptor(socket), socket as u32, wanted)
    }

    /// The sockets among what is ready, by their numbers.
    pub fn sockets(&self, ready: &Ready) -> impl Iterator<Item = usize> + Clone {
        ready.numbers().filter(|&number| number < self.bell).map(|number| number as usize)
    }

    /// What is ready beside sockets and bell: listeners for connections and connections, by their numbers.
    pub fn streams(&self, ready: &Ready) -> impl Iterator<Item = u32> {
        ready.numbers().filter(|&number| number > self.bell)
    }

    /// The set itself, and the first number in it that is free.
    ///
    /// # Errors
    /// The kernel has no room for another descriptor.
    pub fn share(&self) -> io::Result<(Poller, u32)> {
        Ok((self.poller.get_ref().try_clone()?, self.bell + 1))
    }

    /// Looks what is ready without waiting.
    pub fn look(&self, ready: &mut Ready) -> io::Result<()> {
        self.poller.get_ref().wait(Duration::ZERO, ready)
    }

    /// Waits for a while until something is ready. Nothing may be, then it is time to [`Waiter::park`].
    pub fn block(&self, ready: &mut Ready) -> io::Result<()> {
        self.poller.get_ref().wait(BLOCK, ready)
    }

    /// Waits until something is ready, however long that takes. Other tasks of the executor run meanwhile.
    pub async fn park(&self) -> io::Result<()> {
        self.poller.readable().await.map_err(io::Error::from)
    }
}
