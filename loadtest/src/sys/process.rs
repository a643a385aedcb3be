//! Child processes that stay on the cores they are given and do not outlive us; cores for our own threads; signals.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Makes the child of `command` stay on `cores`, lead a process group of its own (so that all it starts can be ended
/// with it) and be told by the kernel to end should this process die first: by SIGINT, because a server that is killed leaves its
/// workers behind.
pub fn confine(command: &mut Command, cores: &[usize]) {
    let set = cpu_set(cores);
    let parent = std::process::id();
    command.process_group(0);
    // SAFETY: the closure runs between fork and exec. It only makes system calls, on values copied into it; it neither
    // allocates nor locks.
    unsafe {
        command.pre_exec(move || {
            if let Some(set) = &set
                && libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set) < 0
            {
                return Err(io::Error::last_os_error());
            }
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGINT as libc::c_ulong) < 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the line above.
            if libc::getppid() as u32 != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

/// Binds the calling thread to one core.
pub fn pin_this_thread(core: usize) -> io::Result<()> {
    let Some(set) = cpu_set(&[core]) else { return Err(io::Error::from_raw_os_error(libc::EINVAL)) };
    // SAFETY: `set` is a whole cpu_set_t, as the length says.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The cores this process may run on.
pub fn cores() -> Vec<usize> {
    // SAFETY: all-zero is the empty set; the call fills it, within the length given.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) < 0 {
            return vec![0];
        }
        set
    };
    // SAFETY: CPU_ISSET is asked for bits inside the set only.
    (0..libc::CPU_SETSIZE as usize).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect()
}

/// Sends `signal` to the process group that [`confine`] made around the child with this id.
pub fn signal_group(leader: u32, signal: i32) {
    // SAFETY: no pointers. A negative number names a group; 0 and 1, which would mean others, are never a child's id.
    let _ = unsafe { if leader > 1 { libc::kill(-(leader as libc::pid_t), signal) } else { 0 } };
}

/// What the cheapest system call costs here, in nanoseconds: dear in some virtual machines, and worth knowing before figures
/// of two machines are held against each other. `now_ns` reads a clock.
pub fn system_call_ns(now_ns: impl Fn() -> u64) -> u64 {
    const CALLS: u64 = 10_000;
    let before = now_ns();
    for _ in 0..CALLS {
        // SAFETY: no arguments, no pointers.
        unsafe { libc::getppid() };
    }
    (now_ns() - before) / CALLS
}

/// How many file descriptors this process may have open.
pub fn descriptors_max() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable and of the type the call fills.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } < 0 { u64::MAX } else { limit.rlim_cur }
}

/// Makes sure that this process may have `wanted` file descriptors open, as far as the hard limit allows, and says how many
/// it may have.
pub fn raise_descriptors(wanted: u64) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable and of the type the call fills.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 && limit.rlim_cur < wanted {
        limit.rlim_cur = wanted.min(limit.rlim_max);
        // SAFETY: `limit` is readable and of the type the call reads.
        let _ = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
    descriptors_max()
}

/// The most memory that this process has had, in KiB.
pub fn peak_memory_kib() -> u64 {
    // SAFETY: all-zero is a valid rusage, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    usage.ru_maxrss.max(0) as u64
}

static STOPS: AtomicU32 = AtomicU32::new(0);
static CATCHING: AtomicBool = AtomicBool::new(false);

/// From here on SIGINT, SIGTERM and, unless it is ignored as nohup(1) has it, SIGHUP are counted and not obeyed, even where a parent
/// has left them blocked. The third ends the process at once.
pub fn catch_stop_signals() {
    if CATCHING.swap(true, Ordering::Relaxed) {
        return;
    }
    // SAFETY: all-zero is a valid set, which `sigemptyset` makes the empty one; `sigprocmask` reads it, and writes nothing to null.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only touches an atomic and may end the process by `_exit`, both allowed in a handler.
        let before = unsafe { libc::signal(signal, on_stop_signal as *const () as libc::sighandler_t) };
        if signal == libc::SIGHUP && before == libc::SIG_IGN {
            // SAFETY: no handler runs.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
    }
}

/// How many times the user has asked us to stop.
pub fn stop_signals() -> u32 {
    STOPS.load(Ordering::Relaxed)
}

extern "C" fn on_stop_signal(_: libc::c_int) {
    if STOPS.fetch_add(1, Ordering::Relaxed) >= 2 {
        // SAFETY: `_exit` may be called anywhere.
        unsafe { libc::_exit(130) };
    }
}

/// `None` where no core is named, which means any.
fn cpu_set(cores: &[usize]) -> Option<libc::cpu_set_t> {
    if cores.is_empty() {
        return None;
    }
    // SAFETY: all-zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &core in cores.iter().filter(|&&core| core < libc::CPU_SETSIZE as usize) {
        // SAFETY: the filter keeps the bit inside the set.
        unsafe { libc::CPU_SET(core, &mut set) };
    }
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_runs_on_the_core_it_was_given() {
        let core = *cores().last().unwrap();
        let mut command = Command::new("cat");
        command.arg("/proc/self/status");
        confine(&mut command, &[core]);
        let output = command.output().unwrap();
        let status = String::from_utf8_lossy(&output.stdout).into_owned();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
        assert_eq!(allowed.trim(), core.to_string());
    }
}
