//! What the runtime and a shard need from the kernel, asked before they are started.
//!
//! glommio panics, or ends the process, where io_uring is refused or too little memory may be locked. Both happen in the
//! most ordinary places, such as a container with default settings, and deserve a sentence with a remedy.

use super::check;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Octets of memory that a shard must be able to lock for its rings.
pub const MEMLOCK_PER_SHARD: u64 = 512 * 1024;

/// Whether the kernel lets this process use io_uring: each of its three calls, since filters know them one by one.
pub fn io_uring() -> io::Result<()> {
    /// Octets of `struct io_uring_params`, all zero for a ring without options.
    const PARAMS: usize = 120;
    /// Asks what the kernel has; with room for no answer, nothing.
    const REGISTER_PROBE: libc::c_uint = 8;
    /// Octets of `struct io_uring_probe` without any answers, all zero.
    const PROBE: usize = 16;
    let mut params = [0u64; PARAMS / 8];
    let mut probe = [0u64; PROBE / 8];
    // SAFETY: the kernel reads and writes `PARAMS` octets of an array of as many, and `PROBE` of another; a descriptor it returns
    // is owned by nobody else.
    unsafe {
        let result = libc::syscall(libc::SYS_io_uring_setup, 2, params.as_mut_ptr());
        let ring = OwnedFd::from_raw_fd(check(result as libc::c_int)?);
        let nothing = std::ptr::null::<libc::c_void>();
        check(libc::syscall(libc::SYS_io_uring_enter, ring.as_raw_fd(), 0, 0, 0, nothing, 0) as libc::c_int)?;
        let register = libc::SYS_io_uring_register;
        check(libc::syscall(register, ring.as_raw_fd(), REGISTER_PROBE, probe.as_mut_ptr(), 0) as libc::c_int)?;
    }
    Ok(())
}

/// Whether the kernel lets this process receive and send many datagrams in one call, without which a shard would stand there deaf.
pub fn batches() -> io::Result<()> {
    for call in [libc::SYS_recvmmsg, libc::SYS_sendmmsg] {
        // SAFETY: no descriptor is -1, and nothing is read or written where no messages are named: the kernel can but refuse.
        let result = unsafe { libc::syscall(call, -1, std::ptr::null::<libc::c_void>(), 0, 0, 0) };
        match check(result as libc::c_int) {
            Err(error) if error.raw_os_error() != Some(libc::EBADF) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// How much memory this process may lock, in octets. `None` if there is no limit.
pub fn memlock() -> io::Result<Option<u64>> {
    limit(libc::RLIMIT_MEMLOCK)
}

/// How many descriptors this process may have open. `None` if there is no limit.
pub fn open_files() -> io::Result<Option<u64>> {
    limit(libc::RLIMIT_NOFILE)
}

/// The soft limit, after it was raised to the hard one, which every process may do.
fn limit(resource: libc::__rlimit_resource_t) -> io::Result<Option<u64>> {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: the kernel fills the struct if the call succeeds, and only then is it read.
    let mut limit = unsafe {
        check(libc::getrlimit(resource, limit.as_mut_ptr()))?;
        limit.assume_init()
    };
    if limit.rlim_cur < limit.rlim_max {
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
        // SAFETY: the kernel reads the struct.
        if unsafe { libc::setrlimit(resource, &raised) } == 0 {
            limit = raised;
        }
    }
    Ok((limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur))
}

/// Whether the process runs as root.
pub fn is_root() -> bool {
    // SAFETY: the call has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// What this process lacks to load programs with loops into the kernel: `CAP_BPF`, and `CAP_PERFMON`, without which the
/// verifier follows what a CPU might do by mistake, too, and finds it too much. `CAP_SYS_ADMIN` has both.
pub fn missing_capability() -> Option<&'static str> {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    const CAP_PERFMON: u64 = 1 << 38;
    const CAP_BPF: u64 = 1 << 39;
    let effective = capabilities();
    let has = |capability| effective & (capability | CAP_SYS_ADMIN) != 0;
    match (has(CAP_BPF), has(CAP_PERFMON)) {
        (true, true) => None,
        (true, false) => Some("CAP_PERFMON"),
        (false, true) => Some("CAP_BPF"),
        (false, false) => Some("CAP_BPF and CAP_PERFMON"),
    }
}

/// Whether this process has `CAP_NET_BIND_SERVICE`, which ports below 1024 need.
pub fn may_bind_low_ports() -> bool {
    const CAP_NET_BIND_SERVICE: u64 = 1 << 10;
    capabilities() & CAP_NET_BIND_SERVICE != 0
}

/// The capabilities in effect, a bit each; none where /proc is not mounted.
fn capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_never_zero_here() {
        assert!(memlock().unwrap().is_none_or(|octets| octets > 0));
        assert!(open_files().unwrap().is_none_or(|count| count > 10));
    }

    #[test]
    fn io_uring_answers_one_way_or_the_other() {
        if let Err(error) = io_uring() {
            assert!(matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS | libc::ENOMEM)), "{error}");
        }
    }
}
