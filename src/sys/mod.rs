//! The kernel, one feature per file, as functions that cannot be misused. Imports `libc` and `std`, and nothing of ours.
//!
//! | file | feature | needs | without it |
//! |---|---|---|---|
//! | `address` | `sockaddr` and back | | |
//! | `bpf` | programs and maps in the kernel, and an assembler for them | `CAP_BPF`, `CAP_PERFMON`, Linux 5.17 | the kernel spreads datagrams by address |
//! | `clock` | CPU time of a thread, and sleeping no longer than asked for | | |
//! | `mmsg` | `recvmmsg`, `sendmmsg` with control messages; `UDP_SEGMENT` | Linux 3.0; 4.18 | each datagram goes by itself |
//! | `poll` | one descriptor that is readable when any of many is | epoll | |
//! | `socket` | opening and tuning UDP sockets | `SO_REUSEPORT`, Linux 3.9 | |
//! | `tcp` | opening, accepting and connecting TCP sockets | `SO_REUSEPORT`, Linux 3.9 | |
//! | `ticker` | a descriptor that becomes readable every so often | timerfd | |
//! | `errors` | ICMP errors and whom they are about | `IP_RECVERR` | backends are found dead by probes alone |
//! | `preflight` | what the runtime needs before it starts | io_uring, Linux 5.8; memlock | a refusal that says what to do |
//!
//! What a shard calls with each turn is called by its number (`libc::syscall`): around `epoll_wait`, `recvmmsg` and `sendmmsg` glibc
//! lets a thread be cancelled, which takes two locked operations and a cache line of code each time.
//!
//! Rules of the folder: every `unsafe` block says which check pays for it; a C struct never leaves its file; an error is
//! an `io::Error` with its number in it.
#![allow(unsafe_code)]

mod address;
pub mod bpf;
pub mod clock;
pub mod errors;
pub mod mmsg;
pub mod poll;
pub mod preflight;
pub mod socket;
pub mod tcp;
pub mod ticker;

use std::io;

/// Makes `call` again as long as a signal interrupts it. A wait for which a timeout was set is interrupted, handler or not, when
/// the process is stopped and goes on (signal(7)); it then begins anew.
///
/// # Errors
/// Those of `call`.
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Lets the signals that end, drain and reload reach this process. What a parent has blocked stays blocked over `execve`, and some
/// supervisors leave it so; and where this is the first process of a container SIGTERM and SIGINT do nothing by default, so that a
/// start that waits for a name could not be ended. Who has something to do at the end installs a handler instead, as soon as there is.
pub fn obey_signals() {
    extern "C" fn end(signal: libc::c_int) {
        // SAFETY: `_exit` is one of the calls that a handler may make.
        unsafe { libc::_exit(128 + signal) }
    }
    // SAFETY: all-zero is a valid set, which `sigemptyset` makes the empty one; `sigprocmask` reads it, and writes nothing to null.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
    if std::process::id() == 1 {
        for signal in [libc::SIGTERM, libc::SIGINT] {
            // SAFETY: `end` has the type of a handler, and touches nothing of the program.
            unsafe { libc::signal(signal, end as extern "C" fn(libc::c_int) as libc::sighandler_t) };
        }
    }
}

/// The result of a call that says -1 and sets `errno`.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
