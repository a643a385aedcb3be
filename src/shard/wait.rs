//! How a shard waits, which at everyday loads costs more than all it does with a message.
//!
//! ```text
//! epoll_wait ── something came ──► work ──► linger, where it pays (`linger`) ──► wait again
//!     │ the ticker, and nothing else since it last ticked
//!     ▼
//! park in glommio until something comes ──► work      (not while connections have deadlines: look at those, wait again)
//! ```
//!
//! A blocking `epoll_wait` is the cheapest wait there is: nothing is set up and nothing taken down, however often it is
//! called. Two things make it dear. A timeout sets a timer and takes it out again each time, which costs 0.2 to 0.4 µs on one
//! of the machines in `docs/performance.md`, and one in the order of a millisecond is an exit to the hypervisor besides; so there
//! is none, and a ticker that is set once ends the wait where nothing comes. And parking in the executor costs some 15 µs (timers
//! armed and cancelled, `io_uring_enter`, a task switch), so it happens only where nothing came for so long that nobody counts.
//!
//! Measured against a relay that blocks in `recvmmsg` on two threads: `docs/performance.md`, "Everyday loads".

use crate::shard::io::Kernel;
use crate::sys::poll::{Bell, Poller, Ready};
use crate::sys::ticker::Ticker;
use glommio::io::PollableFd;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// From tick to tick. The thread hands over to the executor when nothing came in between, and looks at the deadlines of connections.
const TICK: Duration = Duration::from_millis(100);

/// What a shard waits with.
pub struct Waiter {
    poller: PollableFd<Poller>,
    ticker: Ticker,
    /// Number of the bell: behind those of the sockets. That of the ticker is the next.
    bell: u32,
}

impl Waiter {
    /// A waiter for the sockets of `kernel`, which become ready under their numbers, and for `bell`.
    ///
    /// # Errors
    /// The kernel has no room for more descriptors.
    pub fn new(kernel: &Kernel, bell: &Bell) -> io::Result<Waiter> {
        let poller = Poller::new()?;
        let mut count = 0;
        for socket in kernel.sockets().all() {
            poller.add(socket.as_raw_fd(), count)?;
            count += 1;
        }
        poller.add(bell.as_raw_fd(), count)?;
        let ticker = Ticker::new()?;
        poller.add(ticker.as_raw_fd(), count + 1)?;
        ticker.set(TICK)?;
        let poller = PollableFd::new(poller).map_err(io::Error::from)?;
        Ok(Waiter { poller, ticker, bell: count })
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

    /// What is ready beside sockets, bell and ticker: listeners for connections and connections, by their numbers.
    pub fn streams(&self, ready: &Ready) -> impl Iterator<Item = u32> {
        let ticker = self.ticker_number();
        ready.numbers().filter(move |&number| number > ticker)
    }

    /// Whether the ticker has ticked, which is silenced then.
    pub fn has_ticked(&self, ready: &Ready) -> bool {
        let ticked = ready.numbers().any(|number| number == self.ticker_number());
        if ticked {
            self.ticker.silence();
        }
        ticked
    }

    fn ticker_number(&self) -> u32 {
        self.bell + 1
    }

    /// The set itself, and the first number in it that is free.
    ///
    /// # Errors
    /// The kernel has no room for another descriptor.
    pub fn share(&self) -> io::Result<(Poller, u32)> {
        Ok((self.poller.get_ref().try_clone()?, self.ticker_number() + 1))
    }

    /// Looks what is ready without waiting.
    pub fn look(&self, ready: &mut Ready) -> io::Result<()> {
        self.poller.get_ref().look(ready)
    }

    /// Waits until something is ready, which may be the ticker.
    pub fn block(&self, ready: &mut Ready) -> io::Result<()> {
        self.poller.get_ref().wait(ready)
    }

    /// Waits until something is ready, however long that takes, without a tick. Other tasks of the executor run meanwhile.
    pub async fn park(&self) -> io::Result<()> {
        self.ticker.set(Duration::ZERO)?;
        self.poller.readable().await?;
        self.ticker.set(TICK)
    }
}
