//! Waiting for whichever comes first: a datagram on one of a shard's sockets, a call from another thread, or a point in
//! time.

use super::owned;
use super::socket::Socket;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

/// Sockets that one wait can report. The kernel takes turns among more.
pub const READY_MAX: usize = 64;

/// The token of the eventfd: none that a socket can have.
const WAKEUP: u64 = u64::MAX;

/// Sockets waited for together.
#[derive(Debug)]
pub struct Waiter {
    epoll: Arc<OwnedFd>,
    wakeup: Arc<OwnedFd>,
}

/// Adds to what a [`Waiter`] waits for, on its own thread.
#[derive(Clone, Debug)]
pub struct Registry(Arc<OwnedFd>);

/// Ends a [`Waiter`]'s wait from another thread.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waiter {
    /// Waits for nothing yet.
    pub fn new() -> io::Result<Waiter> {
        // SAFETY: no pointers; the result is checked before it is owned.
        let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: as above.
        let wakeup = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        let waiter = Waiter { epoll: Arc::new(epoll), wakeup: Arc::new(wakeup) };
        control(&waiter.epoll, libc::EPOLL_CTL_ADD, waiter.wakeup.as_raw_fd(), libc::EPOLLIN, WAKEUP)?;
        Ok(waiter)
    }

    /// Waits for datagrams on `socket` too, which is called `token` from here on. A socket that is closed leaves by itself.
    pub fn add(&self, socket: &Socket, token: u32) -> io::Result<()> {
        control(&self.epoll, libc::EPOLL_CTL_ADD, socket.fd(), libc::EPOLLIN, u64::from(token))
    }

    /// What adds connections and listeners, which may come and go.
    pub fn registry(&self) -> Registry {
        Registry(Arc::clone(&self.epoll))
    }

    /// What ends a wait from another thread.
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.wakeup))
    }

    /// Waits until something is readable, a [`Waker`] calls, or `timeout_ns` have passed, whichever comes first, and leaves
    /// the tokens of the sockets that are readable in `ready`: of all of them, or of as many as [`READY_MAX`].
    pub fn wait(&self, timeout_ns: u64, ready: &mut Vec<u32>) -> io::Result<()> {
        ready.clear();
        let timeout = libc::timespec {
            tv_sec: (timeout_ns / 1_000_000_000) as libc::time_t,
            tv_nsec: (timeout_ns % 1_000_000_000) as libc::c_long,
        };
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; READY_MAX];
        let waited = match self.wait2(&mut events, &timeout) {
            // Linux before 5.11, valgrind, and filters of system calls, which refuse what they have not heard of.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                self.wait_by_poll(&mut events, &timeout)
            }
            waited => waited,
        };
        let count = match waited {
            Ok(count) => count,
            Err(error) => super::socket::none_if_nothing_there(error)?.unwrap_or(0),
        };
        let mut woken = false;
        for event in &events[..count] {
            let token = event.u64;
            match u32::try_from(token) {
                Ok(token) => ready.push(token),
                Err(_) => woken = true,
            }
        }
        if woken {
            let mut count = 0u64;
            // SAFETY: an eventfd is read by eight octets, and `count` has them. Non-blocking: a race reads nothing.
            let _ = unsafe { libc::read(self.wakeup.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
        }
        Ok(())
    }

    fn wait2(&self, events: &mut [libc::epoll_event], timeout: &libc::timespec) -> io::Result<usize> {
        // SAFETY: `events` is writable for the entries announced, `timeout` readable, the signal mask absent.
        let result = unsafe {
            libc::epoll_pwait2(
                self.epoll.as_raw_fd(),
                events.as_mut_ptr(),
                events.len() as libc::c_int,
                timeout,
                std::ptr::null(),
            )
        };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// The same with two system calls: `ppoll`, which has had nanoseconds for longer, on the epoll descriptor itself.
    fn wait_by_poll(&self, events: &mut [libc::epoll_event], timeout: &libc::timespec) -> io::Result<usize> {
        let mut poll = libc::pollfd { fd: self.epoll.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, writable, as announced; `timeout` readable, the signal mask absent.
        if unsafe { libc::ppoll(&raw mut poll, 1, timeout, std::ptr::null()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let room = events.len() as libc::c_int;
        // SAFETY: `events` is writable for the entries announced.
        let result = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), room, 0) };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}

impl Registry {
    /// Waits for `socket` to be readable too, and to be writable if `writable`. One that is closed leaves by itself.
    pub fn add(&self, socket: &impl AsFd, token: u32, writable: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, socket, token, writable)
    }

    /// Changes whether it waits for `socket` to be writable.
    pub fn set_writable(&self, socket: &impl AsFd, token: u32, writable: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, socket, token, writable)
    }

    fn control(&self, operation: i32, socket: &impl AsFd, token: u32, writable: bool) -> io::Result<()> {
        let events = libc::EPOLLIN | if writable { libc::EPOLLOUT } else { 0 };
        control(&self.0, operation, socket.as_fd().as_raw_fd(), events, u64::from(token))
    }
}

impl Waker {
    /// Ends the current wait, or the next one.
    pub fn wake(&self) {
        let one = 1u64;
        // SAFETY: an eventfd is written by eight octets, and `one` has them. A full counter wakes just as well.
        let _ = unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
    }
}

/// Makes this thread's timed waits end when they are due. By default the kernel may add 50 microseconds to each, to save
/// wake-ups; a schedule of 10,000 calls a second has 100 between two calls.
pub fn wake_on_time() {
    // SAFETY: PR_SET_TIMERSLACK takes a number, here one nanosecond, and no pointers.
    let _ = unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
}

/// Waits until `socket` has room to send, for at most `timeout_ms`, and says whether it has.
pub(super) fn writable(socket: &Socket, timeout_ms: i32) -> bool {
    let mut poll = libc::pollfd { fd: socket.fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd, writable, as announced.
    unsafe { libc::poll(&raw mut poll, 1, timeout_ms) > 0 }
}

fn control(epoll: &OwnedFd, operation: i32, fd: i32, events: i32, token: u64) -> io::Result<()> {
    let mut event = libc::epoll_event { events: events as u32, u64: token };
    // SAFETY: `event` is readable and outlives the call; both descriptors are open.
    let result = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), operation, fd, &raw mut event) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{MS_NS, SECOND_NS, now_ns};
    use crate::sys::address::Address;

    #[test]
    fn a_datagram_ends_the_wait() {
        let socket = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let waiter = Waiter::new().unwrap();
        waiter.add(&socket, 7).unwrap();
        socket.send_to(b"now", &Address::from(socket.local())).unwrap();
        let before = now_ns();
        let mut ready = Vec::new();
        waiter.wait(60 * SECOND_NS, &mut ready).unwrap();
        assert!(now_ns() - before < 30 * SECOND_NS);
        assert_eq!(ready, [7]);
    }

    #[test]
    fn where_there_is_no_epoll_pwait2_there_is_poll() {
        let socket = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let waiter = Waiter::new().unwrap();
        waiter.add(&socket, 7).unwrap();
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; READY_MAX];
        let timeout = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        let before = now_ns();
        assert_eq!(waiter.wait_by_poll(&mut events, &timeout).unwrap(), 0);
        assert!(now_ns() - before >= MS_NS);
        socket.send_to(b"now", &Address::from(socket.local())).unwrap();
        let long = libc::timespec { tv_sec: 60, tv_nsec: 0 };
        assert_eq!(waiter.wait_by_poll(&mut events, &long).unwrap(), 1);
        assert_eq!({ events[0].u64 }, 7);
    }

    #[test]
    fn a_call_from_another_thread_ends_the_wait_once() {
        let waiter = Waiter::new().unwrap();
        waiter.waker().wake();
        let before = now_ns();
        let mut ready = Vec::new();
        waiter.wait(60 * SECOND_NS, &mut ready).unwrap();
        assert!(now_ns() - before < 30 * SECOND_NS);
        assert!(ready.is_empty());
        waiter.wait(MS_NS, &mut ready).unwrap();
        assert!(now_ns() - before >= MS_NS, "the second wait lasts until its time has come");
    }
}
