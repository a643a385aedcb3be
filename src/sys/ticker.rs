//! A descriptor that becomes readable every so often: `timerfd`.
//!
//! A wait that has a timeout sets a timer and takes it out again each time; this one is set once, whatever is waited for meanwhile.

use super::check;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// A ticker, by the clock that does not jump.
#[derive(Debug)]
pub struct Ticker {
    timerfd: OwnedFd,
}

impl Ticker {
    /// A ticker that does not tick yet.
    pub fn new() -> io::Result<Ticker> {
        // SAFETY: no pointers; the descriptor is checked and owned by nobody else.
        let timerfd = unsafe {
            let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
            OwnedFd::from_raw_fd(check(libc::timerfd_create(libc::CLOCK_MONOTONIC, flags))?)
        };
        Ok(Ticker { timerfd })
    }

    /// Ticks after `period`, and again after each. With zero it is silent from now on, and what has ticked is forgotten.
    pub fn set(&self, period: Duration) -> io::Result<()> {
        let time = libc::timespec { tv_sec: period.as_secs() as libc::time_t, tv_nsec: period.subsec_nanos().into() };
        let spec = libc::itimerspec { it_interval: time, it_value: time };
        // SAFETY: the kernel reads the times, which live until the call returns, and writes none where there is no room for old ones.
        check(unsafe { libc::timerfd_settime(self.timerfd.as_raw_fd(), 0, &spec, std::ptr::null_mut()) }).map(drop)
    }

    /// Makes the descriptor unreadable until the next tick.
    pub fn silence(&self) {
        let mut ticks = [0u8; 8];
        // SAFETY: the kernel writes eight octets of eight. It fails only if nothing has ticked.
        unsafe { libc::read(self.timerfd.as_raw_fd(), ticks.as_mut_ptr().cast(), ticks.len()) };
    }
}

impl AsRawFd for Ticker {
    fn as_raw_fd(&self) -> RawFd {
        self.timerfd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::poll::{Poller, Ready};
    use super::*;
    use std::thread::sleep;

    #[test]
    fn it_ticks_again_and_again_until_it_is_set_to_zero() {
        let (poller, ticker) = (Poller::new().unwrap(), Ticker::new().unwrap());
        poller.add(ticker.as_raw_fd(), 5).unwrap();
        let mut ready = Ready::default();
        ticker.set(Duration::from_millis(2)).unwrap();
        for _ in 0..3 {
            poller.wait(&mut ready).unwrap();
            assert!(ready.numbers().eq([5]));
            ticker.silence();
        }
        sleep(Duration::from_millis(10));
        ticker.set(Duration::ZERO).unwrap();
        poller.look(&mut ready).unwrap();
        assert!(ready.is_empty());
    }
}
