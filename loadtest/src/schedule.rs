//! When each call is due. An open loop: the schedule is a function of the seed and of what the user asked for, never of
//! how the element is doing, and latencies count from it. A generator that waits for answers before it goes on sends
//! less to a slow element, measures only what it sent, and calls the result a latency.

use crate::clock::SECOND_NS;
use crate::rng::Rng;

/// How calls are spread in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arrivals {
    /// Equal gaps: the smoothest load there is.
    #[default]
    Constant,
    /// Independent callers: exponential gaps, so that some arrive nearly together. What real traffic does.
    Poisson,
}

/// The due times of calls, one after the other.
#[derive(Clone, Debug)]
pub struct Schedule {
    arrivals: Arrivals,
    rng: Rng,
    /// Calls a second. 0: none.
    rate: f64,
    /// When the rate last changed, and how many gaps have passed since: constant gaps are multiplied and not added up, so
    /// that a long run has no drift.
    since_ns: u64,
    gaps: u64,
    /// Where the next call is due. `u64::MAX`: never.
    next_ns: u64,
}

impl Schedule {
    /// `rate` calls a second from `start_ns` on; the first is due at once.
    pub fn new(arrivals: Arrivals, rate: f64, start_ns: u64, seed: u64) -> Schedule {
        let mut schedule =
            Schedule { arrivals, rng: Rng::new(seed), rate: 0.0, since_ns: start_ns, gaps: 0, next_ns: u64::MAX };
        schedule.set_rate(rate, start_ns);
        schedule
    }

    /// When the next call is due.
    #[inline]
    pub fn next_ns(&self) -> u64 {
        self.next_ns
    }

    /// Calls a second.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Takes the next due time and moves on to the one after it.
    #[inline]
    pub fn take(&mut self) -> u64 {
        let due_ns = self.next_ns;
        self.gaps += 1;
        self.next_ns = match self.arrivals {
            Arrivals::Constant => self.since_ns + (self.gaps as f64 * SECOND_NS as f64 / self.rate) as u64,
            Arrivals::Poisson => {
                due_ns.saturating_add((self.rng.next_exponential() * SECOND_NS as f64 / self.rate) as u64)
            }
        };
        due_ns
    }

    /// Changes the rate from `now_ns` on. 0 pauses.
    pub fn set_rate(&mut self, rate: f64, now_ns: u64) {
        // A call that was due already stays due: a change of rate forgives nothing.
        let overdue = self.next_ns <= now_ns;
        let before = self.rate;
        self.rate = if rate.is_finite() { rate.max(0.0) } else { 0.0 };
        self.since_ns = now_ns;
        self.gaps = 0;
        if self.rate == 0.0 {
            self.next_ns = u64::MAX;
        } else if !overdue {
            // What is left of the gap becomes longer or shorter; were it forgotten, each change would place a call. After a pause
            // nothing is left of it.
            let left_ns = (self.next_ns - now_ns) as f64 * (before / self.rate);
            self.next_ns = now_ns.saturating_add(left_ns as u64);
            self.since_ns = self.next_ns;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(arrivals: Arrivals, rate: f64, count: usize) -> Vec<u64> {
        let mut schedule = Schedule::new(arrivals, rate, 1000, 5);
        (0..count).map(|_| schedule.take()).collect()
    }

    #[test]
    fn constant_gaps_do_not_drift() {
        let times = due(Arrivals::Constant, 30_000.0, 30_000 * 60 + 1);
        assert_eq!(times[0], 1000);
        assert_eq!(times[30_000 * 60], 1000 + 60 * SECOND_NS);
        assert!(times.windows(2).all(|pair| matches!(pair[1] - pair[0], 33_333..=33_334)));
    }

    #[test]
    fn poisson_gaps_have_the_rate_asked_for() {
        let times = due(Arrivals::Poisson, 1000.0, 100_000);
        let seconds = (times[99_999] - times[0]) as f64 / SECOND_NS as f64;
        assert!((99.0..101.0).contains(&seconds), "{seconds}");
        let short = times.windows(2).filter(|pair| pair[1] - pair[0] < 1_000_000).count();
        assert!((62_000..64_500).contains(&short), "a share of 1 - 1/e of the gaps is below the mean: {short}");
        assert_eq!(times, due(Arrivals::Poisson, 1000.0, 100_000), "the seed decides");
    }

    #[test]
    fn a_rate_that_is_changed_again_and_again_is_still_a_rate() {
        for arrivals in [Arrivals::Constant, Arrivals::Poisson] {
            let mut schedule = Schedule::new(arrivals, 10.0, 0, 1);
            let (mut placed, mut rate) = (0, 10.0);
            // A key every 20 ms for 60 s: up by a hundredth, and down again.
            for now_ns in (0..60 * SECOND_NS).step_by(20_000_000) {
                while schedule.next_ns() <= now_ns {
                    schedule.take();
                    placed += 1;
                }
                rate = if rate > 10.0 { 10.0 } else { 10.1 };
                schedule.set_rate(rate, now_ns);
            }
            assert!((500..700).contains(&placed), "{arrivals:?}: {placed} in 60 s at 10 a second");
        }
    }

    #[test]
    fn a_pause_ends_and_forgives_nothing_that_was_due() {
        let mut schedule = Schedule::new(Arrivals::Constant, 10.0, 0, 1);
        schedule.take();
        schedule.set_rate(0.0, 50);
        assert_eq!(schedule.next_ns(), u64::MAX);
        schedule.set_rate(5.0, 1_000);
        assert_eq!(schedule.take(), 1_000);
        assert_eq!(schedule.next_ns(), 200_001_000);
        schedule.set_rate(10.0, 300_000_000);
        assert_eq!(schedule.take(), 200_001_000, "it was due before the rate changed");
        assert_eq!(schedule.next_ns(), 400_000_000);
    }
}
