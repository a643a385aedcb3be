//! Talks to the kernel: the only folder with `unsafe`.
//!
//! Each file wraps one thing the kernel offers so that it cannot be misused from outside: batches of datagrams
//! (`recvmmsg`, `sendmmsg`), waiting (`epoll`), sockets with the options a load generator needs, child processes on a
//! core of their own. Nothing here knows SIP, and nothing here decides anything.

pub mod address;
pub mod batch;
pub mod process;
pub mod socket;
pub mod wait;
