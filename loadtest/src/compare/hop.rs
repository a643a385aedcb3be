//! How far apart two cores are: what it takes one of them to see what the other wrote.
//!
//! A hypervisor moves virtual cores between dies, and then every line of cache that two of them share takes four to five times
//! as long from one to the other: a datagram's, a socket's, a queue's. A measurement there and one before the move cannot be
//! held against each other, and neither stolen time nor waiting shows it.

use crate::clock::{MS_NS, now_ns};
use crate::sys::process::{pin_this_thread, stop_signals};
use std::sync::atomic::{AtomicU32, Ordering};

/// Round trips from which one figure is made, and figures of which the least counts: what interrupted a core is in the others.
const TRIPS: u32 = 1000;
const FIGURES: usize = 5;

/// Cores that are further apart than this many times the least distance were moved.
pub const APART: f64 = 1.5;

/// Nanoseconds of a round trip between the calling thread, which is bound to a core, and `core`: some 100 on one die, 500 on two.
/// `None` if a thread cannot be bound to `core`, or if that is the caller's own core, where no message travels.
pub fn round_trip_ns(own: usize, core: usize) -> Option<u64> {
    const OURS: u32 = 0;
    const THEIRS: u32 = 1;
    const ENOUGH: u32 = 2;
    const REFUSED: u32 = 3;
    if own == core {
        return None;
    }
    let turn = AtomicU32::new(THEIRS);
    let wait_while = |state| {
        while turn.load(Ordering::Acquire) == state {
            std::hint::spin_loop();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if pin_this_thread(core).is_err() {
                turn.store(REFUSED, Ordering::Release);
                return;
            }
            loop {
                turn.store(OURS, Ordering::Release);
                wait_while(OURS);
                if turn.load(Ordering::Acquire) == ENOUGH {
                    break;
                }
            }
        });
        wait_while(THEIRS);
        if turn.load(Ordering::Acquire) == REFUSED {
            return None;
        }
        let mut least = u64::MAX;
        for _ in 0..FIGURES {
            let start = now_ns();
            for _ in 0..TRIPS {
                turn.store(THEIRS, Ordering::Release);
                wait_while(THEIRS);
            }
            least = least.min((now_ns() - start) / u64::from(TRIPS));
        }
        turn.store(ENOUGH, Ordering::Release);
        Some(least)
    })
}

/// Two cores, and how near they have been to each other.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    own: usize,
    other: usize,
    least_ns: u64,
}

impl Cores {
    /// `own` is the calling thread's.
    pub fn new(own: usize, other: usize) -> Cores {
        Cores { own, other, least_ns: u64::MAX }
    }

    /// Their distance now, in nanoseconds; 0 where it cannot be known.
    pub fn distance_ns(&mut self) -> u64 {
        let Some(now) = round_trip_ns(self.own, self.other) else { return 0 };
        self.least_ns = self.least_ns.min(now);
        now
    }

    /// The least distance so far.
    pub fn least_ns(&self) -> u64 {
        self.least_ns
    }

    /// Waits until they are as near to each other as they have ever been seen, at most for `patience_ns` and not beyond a signal to
    /// stop, and returns their distance. `meanwhile` is called again and again, for some 50 ms each time: whoever is probed has to answer.
    pub fn wait_until_near<E>(
        &mut self,
        patience_ns: u64,
        mut meanwhile: impl FnMut(u64) -> Result<(), E>,
    ) -> Result<u64, E> {
        let end = now_ns() + patience_ns;
        loop {
            let now = self.distance_ns();
            if !is_apart(now, self.least_ns) || now_ns() > end || stop_signals() > 0 {
                return Ok(now);
            }
            meanwhile(50 * MS_NS)?;
        }
    }
}

/// Whether cores at this distance are further apart than they were at the least one.
pub fn is_apart(distance_ns: u64, least_ns: u64) -> bool {
    distance_ns as f64 > APART * least_ns as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::cores;

    #[test]
    fn a_round_trip_takes_some_time_and_none_to_oneself() {
        let cores = cores();
        assert_eq!(round_trip_ns(cores[0], cores[0]), None);
        assert_eq!(round_trip_ns(cores[0], 1_000_000), None, "there is no such core");
        let Some(&other) = cores.get(1) else { return };
        std::thread::scope(|scope| {
            // A thread of its own, so that it is no other test's that is bound.
            scope.spawn(|| {
                pin_this_thread(cores[0]).unwrap();
                let ns = round_trip_ns(cores[0], other).unwrap();
                assert!((5..1_000_000).contains(&ns), "{ns}");
            });
        });
    }

    #[test]
    fn half_as_far_again_is_apart() {
        assert!(!is_apart(140, 95));
        assert!(is_apart(480, 95));
        assert!(!is_apart(0, 95) && !is_apart(0, u64::MAX), "what cannot be known is not held against a measurement");
    }
}
