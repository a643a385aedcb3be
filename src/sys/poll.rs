//! One descriptor that is readable when any of many is, and a bell that makes it so.

use super::check;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Descriptors told of at once. A shard has a few listeners, two egress sockets, a bell, and connections; when more are
/// ready, the kernel tells of the others the next time, in turn.
const READY_MAX: usize = 64;

/// A set of descriptors to wait for.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

/// Which descriptors are ready, by the numbers they were added under.
pub struct Ready {
    events: [libc::epoll_event; READY_MAX],
    count: usize,
}

impl Default for Ready {
    fn default() -> Ready {
        Ready { events: [libc::epoll_event { events: 0, u64: 0 }; READY_MAX], count: 0 }
    }
}

impl Ready {
    /// The numbers.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + Clone {
        self.events[..self.count].iter().map(|event| event.u64 as u32)
    }

    /// Whether nothing is ready.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl Poller {
    /// An empty set.
    pub fn new() -> io::Result<Poller> {
        // SAFETY: no pointers; the descriptor is checked and owned by nobody else.
        let epoll = unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        Ok(Poller { epoll })
    }

    /// The same set under another descriptor.
    pub fn try_clone(&self) -> io::Result<Poller> {
        Ok(Poller { epoll: self.epoll.try_clone()? })
    }

    /// Adds `fd` under `number`: ready when it is readable or has an error to tell.
    pub fn add(&self, fd: RawFd, number: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, number, libc::EPOLLIN)
    }

    /// Whether `fd`, added under `number`, is to be ready when it is writable too.
    pub fn set_writable(&self, fd: RawFd, number: u32, writable: bool) -> io::Result<()> {
        let events = if writable { libc::EPOLLIN | libc::EPOLLOUT } else { libc::EPOLLIN };
        self.control(libc::EPOLL_CTL_MOD, fd, number, events)
    }

    /// For what `fd`, added under `number`, is to be ready. An error it always is ready with.
    pub fn set_interest(&self, fd: RawFd, number: u32, readable: bool, writable: bool) -> io::Result<()> {
        let read = if readable { libc::EPOLLIN } else { 0 };
        let write = if writable { libc::EPOLLOUT } else { 0 };
        self.control(libc::EPOLL_CTL_MOD, fd, number, read | write)
    }

    fn control(&self, operation: libc::c_int, fd: RawFd, number: u32, events: libc::c_int) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: number.into() };
        // SAFETY: the kernel reads the event, which lives until the call returns.
        check(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd, &mut event) }).map(drop)
    }

    /// Waits until a descriptor is ready, and writes down which are; none if a signal came first.
    pub fn wait(&self, ready: &mut Ready) -> io::Result<()> {
        self.ask(-1, ready)
    }

    /// Writes down which descriptors are ready by now.
    pub fn look(&self, ready: &mut Ready) -> io::Result<()> {
        self.ask(0, ready)
    }

    fn ask(&self, timeout_ms: libc::c_int, ready: &mut Ready) -> io::Result<()> {
        let (events, no_signals) = (ready.events.as_mut_ptr(), std::ptr::null::<libc::sigset_t>());
        // SAFETY: the kernel writes at most `READY_MAX` events to an array of as many, and reads no signals where there are none.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait,
                self.epoll.as_raw_fd(),
                events,
                READY_MAX,
                timeout_ms,
                no_signals,
                0usize,
            )
        };
        ready.count = match check(count as libc::c_int) {
            Ok(count) => count as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        Ok(())
    }
}

impl AsRawFd for Poller {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

/// A bell that one thread rings and another waits for.
#[derive(Debug)]
pub struct Bell {
    eventfd: OwnedFd,
}

impl Bell {
    /// A bell that was not rung.
    pub fn new() -> io::Result<Bell> {
        // SAFETY: no pointers; the descriptor is checked and owned by nobody else.
        let eventfd = unsafe { OwnedFd::from_raw_fd(check(libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC))?) };
        Ok(Bell { eventfd })
    }

    /// Makes the bell's descriptor readable. A bell that is ringing already goes on ringing.
    pub fn ring(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the kernel reads eight octets of eight. It fails only if the counter is full, and then it is readable.
        unsafe { libc::write(self.eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Silences the bell.
    pub fn silence(&self) {
        let mut count = [0u8; 8];
        // SAFETY: the kernel writes eight octets of eight. It fails only if the bell is silent.
        unsafe { libc::read(self.eventfd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bell_wakes_the_poller_until_it_is_silenced() {
        let (poller, bell) = (Poller::new().unwrap(), Bell::new().unwrap());
        let mut ready = Ready::default();
        poller.add(bell.as_raw_fd(), 7).unwrap();
        poller.look(&mut ready).unwrap();
        assert!(ready.is_empty());
        bell.ring();
        bell.ring();
        for _ in 0..2 {
            poller.wait(&mut ready).unwrap();
            assert!(ready.numbers().eq([7]));
        }
        bell.silence();
        poller.look(&mut ready).unwrap();
        assert!(ready.is_empty());
    }

    #[test]
    fn a_socket_is_ready_for_writing_only_while_asked_for() {
        let poller = Poller::new().unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut ready = Ready::default();
        poller.add(socket.as_raw_fd(), 3).unwrap();
        for (writable, expected) in [(true, &[3][..]), (false, &[])] {
            poller.set_writable(socket.as_raw_fd(), 3, writable).unwrap();
            poller.look(&mut ready).unwrap();
            assert!(ready.numbers().eq(expected.iter().copied()));
        }
    }
}
