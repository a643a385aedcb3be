//! What a thread has used of the CPU, and when it is woken.

use std::time::Duration;

/// CPU time that the calling thread has used, the kernel's part included.
pub fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one `timespec` to one. The clock is there since Linux 2.6.12; were it refused, the time would
    // stay zero.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Makes the calling thread wake when its time is up, and not up to 50 µs later, as is usual.
pub fn wake_in_time() {
    // SAFETY: no pointers. A refusal leaves things as usual.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong, 0, 0, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;

    #[test]
    fn work_takes_cpu_time_and_sleep_takes_next_to_none() {
        let start = cpu_time();
        while cpu_time() - start < Duration::from_millis(5) {
            black_box((0..1000).sum::<u64>());
        }
        let start = cpu_time();
        std::thread::sleep(Duration::from_millis(50));
        assert!(cpu_time() - start < Duration::from_millis(25));
    }

    #[test]
    fn who_wants_to_wakes_in_time() {
        wake_in_time();
        // SAFETY: no pointers.
        assert_eq!(unsafe { libc::prctl(libc::PR_GET_TIMERSLACK, 0, 0, 0, 0) }, 1);
    }
}
