//! Lingering: a shard at work sleeps for a moment before it looks again, so that one wake-up finds several messages.
//!
//! What a turn costs beside its messages (being woken, looking, cold caches) is shared by all it finds; network cards that
//! moderate their interrupts gain in the same way. But a sleep sets the CPU's timer, which under some hypervisors costs more
//! than the wake-ups that it spares. So nobody has to know: now and then a shard works both ways for a while, looks what a
//! message cost in CPU time, and goes on in the cheaper one.

use crate::dataplane::limits::BATCH;
use crate::sys::clock;
use std::ops::RangeInclusive;
use std::thread;
use std::time::{Duration, Instant};

/// How long a shard stays with one way, by the rate it last saw, before it looks at the clocks: shorter, and what one window says is
/// chance.
const WINDOW: Duration = Duration::from_millis(3);

/// Messages of a window, at least and at most.
const WINDOW_MESSAGES: RangeInclusive<usize> = 128..=4096;

/// Messages that have to be expected within a sleep.
const EXPECTED_MIN: f64 = 2.0;

/// What a message has to cost at most beside one without lingering, which is answered sooner.
const WORTH: f64 = 0.95;

/// Comparisons before the first decision. The mean over as many, about, is what later ones go by.
const COMPARISONS: u32 = 16;

/// After how many windows the other way is tried again: so many that what it does to latency stays beyond p99.
const TRIAL_EVERY: u32 = 128;

/// What one comparison may say at most, up or down: a core that was taken away in between is no reason.
const RATIO_MAX: f64 = 1.5;

/// Loads that are told apart, each twice the one before: what pays under one may not under another.
const BANDS: usize = 5;

/// Where a shard stands with it.
#[derive(Debug)]
pub struct Linger {
    /// How long to sleep; zero: never.
    nap: Duration,
    /// When the window began, and what the thread had used of the CPU by then.
    began: (Instant, Duration),
    /// Messages of the window so far, and with how many it is over.
    messages: usize,
    window: usize,
    choice: Choice,
}

impl Linger {
    /// For naps of `nap`; with zero there are none. Belongs to the thread that calls it.
    pub fn new(nap: Duration) -> Linger {
        if !nap.is_zero() {
            clock::wake_in_time();
        }
        let began = (Instant::now(), clock::cpu_time());
        Linger { nap, began, messages: 0, window: *WINDOW_MESSAGES.start(), choice: Choice::default() }
    }

    /// Sleeps after a turn of so many `messages`, if that is worth it, and returns whether it was. After half a batch or more it
    /// never is: what one wake-up costs is little beside so many.
    #[inline]
    pub fn after(&mut self, messages: usize) -> bool {
        if self.nap.is_zero() {
            return false;
        }
        self.messages += messages;
        if self.messages >= self.window {
            self.close();
        }
        let naps = self.choice.lingers && (1..BATCH / 2).contains(&messages);
        if naps {
            thread::sleep(self.nap);
        }
        naps
    }

    /// Ends a window, and chooses how to spend the next.
    fn close(&mut self) {
        let now = (Instant::now(), clock::cpu_time());
        let (lasted, used) = (now.0 - self.began.0, now.1.saturating_sub(self.began.1));
        let messages = self.messages as f64;
        let rate = messages / lasted.as_secs_f64().max(1e-9);
        self.choice.next(rate * self.nap.as_secs_f64(), used.as_secs_f64() / messages);
        let window = (rate * WINDOW.as_secs_f64()) as usize;
        self.window = window.clamp(*WINDOW_MESSAGES.start(), *WINDOW_MESSAGES.end());
        (self.began, self.messages) = (now, 0);
    }
}

/// Which of the two ways is the cheaper, by what they cost.
#[derive(Debug, Default)]
struct Choice {
    /// Whether the window under way lingers.
    lingers: bool,
    /// Whether the one before did, and what a message cost in it; `None` if nothing could be compared with it.
    before: Option<(bool, f64)>,
    /// What was learnt under which load: of 2 to 4 messages expected within a sleep, of 4 to 8, and so on.
    bands: [Band; BANDS],
}

/// What was learnt under a load.
#[derive(Clone, Copy, Debug, Default)]
struct Band {
    /// What a message costs with lingering, by what it costs without: the logarithm, in which half and double weigh the same, as a
    /// mean of late comparisons.
    log_ratio: f64,
    /// Comparisons so far.
    comparisons: u32,
    /// Windows since the last trial of the other way.
    windows: u32,
}

impl Choice {
    /// Chooses how to spend the next window, when one is over in which so many messages were `expected` within a sleep and each
    /// cost so much. Only neighbours are compared: the load of a second ago was another.
    fn next(&mut self, expected: f64, cost: f64) {
        if expected < EXPECTED_MIN {
            (self.lingers, self.before) = (false, None);
            return;
        }
        let band = ((expected / EXPECTED_MIN).log2() as usize).min(BANDS - 1);
        let band = &mut self.bands[band];
        let spent = (self.lingers, cost);
        if let Some(before) = self.before.replace(spent)
            && before.0 != spent.0
        {
            let (with, without) = if spent.0 { (spent.1, before.1) } else { (before.1, spent.1) };
            band.compare(with / without);
        }
        self.lingers = band.lingers_next(self.lingers);
    }
}

impl Band {
    /// Takes note of what a message cost with lingering, by what it cost without.
    fn compare(&mut self, ratio: f64) {
        // A clock that stood still says nothing.
        if ratio.is_finite() {
            self.comparisons = (self.comparisons + 1).min(COMPARISONS);
            let log_ratio = ratio.clamp(1.0 / RATIO_MAX, RATIO_MAX).ln();
            self.log_ratio += (log_ratio - self.log_ratio) / f64::from(self.comparisons);
        }
    }

    /// Whether to linger in the next window, after one in which the shard did or did not. It takes turns until enough is known.
    fn lingers_next(&mut self, lingered: bool) -> bool {
        if self.comparisons < COMPARISONS {
            return !lingered;
        }
        self.windows += 1;
        let is_trial = self.windows >= TRIAL_EVERY;
        if is_trial {
            self.windows = 0;
        }
        (self.log_ratio < WORTH.ln()) != is_trial
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spends `windows` under a load of which so many messages are `expected`, where lingering costs so much of what it costs
    /// without, and returns in how many it lingered.
    fn spend(choice: &mut Choice, windows: usize, expected: f64, ratio: f64) -> usize {
        let mut rng = fastrand::Rng::with_seed(7);
        let lingers = |_: &usize| {
            let lingered = choice.lingers;
            // A fifth up or down is what one window says more or less; one in twenty loses its core for a while.
            let noise = 0.9 + 0.2 * rng.f64() + if rng.u8(..20) == 0 { 3.0 } else { 0.0 };
            choice.next(expected, noise * if lingered { 2.5 * ratio } else { 2.5 });
            lingered
        };
        (0..windows).filter(lingers).count()
    }

    #[test]
    fn a_shard_lingers_where_that_is_cheaper_and_learns_it_anew_where_it_is_not_any_more() {
        let mut choice = Choice::default();
        assert!(spend(&mut choice, 1000, 4.0, 0.75) > 900);
        // On another machine, after a migration.
        spend(&mut choice, 2000, 4.0, 1.3);
        assert!(spend(&mut choice, 1000, 4.0, 1.3) < 100);
        spend(&mut choice, 2000, 4.0, 0.75);
        assert!(spend(&mut choice, 1000, 4.0, 0.75) > 900);
    }

    #[test]
    fn it_learns_within_few_windows_and_tries_the_other_way_seldom() {
        let mut choice = Choice::default();
        for _ in 0..=COMPARISONS {
            choice.next(4.0, if choice.lingers { 3.0 } else { 2.0 });
        }
        assert!((choice.bands[1].log_ratio - 1.5f64.ln()).abs() < 1e-9);
        let windows = 10 * TRIAL_EVERY as usize;
        let lingered = (0..windows).filter(|_| {
            let lingered = choice.lingers;
            choice.next(4.0, if lingered { 3.0 } else { 2.0 });
            lingered
        });
        assert_eq!(lingered.count(), 10);
    }

    #[test]
    fn where_few_are_expected_nobody_lingers_nor_tries() {
        let mut choice = Choice::default();
        assert_eq!(spend(&mut choice, 1000, 1.9, 0.5), 0);
        spend(&mut choice, 100, 4.0, 0.5);
        assert!(choice.lingers);
        assert!(spend(&mut choice, 1000, 1.9, 0.5) <= 1, "the window under way when the load went");
        assert_eq!(choice.bands[1].comparisons, COMPARISONS, "what was learnt is kept");
        // What costs nothing by a clock that stands still is compared with nothing.
        choice.next(4.0, 0.0);
        choice.next(4.0, 0.0);
        assert!(choice.bands[1].log_ratio.is_finite());
    }

    #[test]
    fn what_pays_under_one_load_says_nothing_of_another() {
        let mut choice = Choice::default();
        assert!(spend(&mut choice, 1000, 70.0, 1.3) < 100);
        assert!(spend(&mut choice, 1000, 4.0, 0.75) > 900);
        assert!(spend(&mut choice, 1000, 70.0, 1.3) < 100);
        assert!(spend(&mut choice, 100, 4.0, 0.75) >= 98, "learnt before");
    }

    #[test]
    fn none_is_none() {
        let mut linger = Linger::new(Duration::ZERO);
        assert!((0..10 * WINDOW_MESSAGES.end()).all(|_| !linger.after(1)));
    }
}
