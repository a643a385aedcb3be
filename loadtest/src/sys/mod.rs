//! Talks to the kernel: the only folder with `unsafe`.
//!
//! Each file wraps one thing the kernel offers so that it cannot be misused from outside: batches of datagrams
//! (`recvmmsg`, `sendmmsg`), waiting (`epoll`), sockets and connections with the options a load generator needs, child
//! processes on a core of their own. Nothing here knows SIP, and nothing here decides anything.

pub mod address;
pub mod batch;
pub mod process;
pub mod socket;
pub mod tcp;
pub mod wait;

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Takes a descriptor that the kernel has just made, or the error it left instead.
fn owned(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is not negative, so the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
