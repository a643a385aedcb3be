//! The highest rate an element sustains, by the procedure of RFC 7502 4.10.
//!
//! ```text
//! trial at r ── went well ──► r above the best so far? it is the best : one more confirmation;  r += w r
//!            └─ did not ────► r -= d r;  w and d are halved, but not below 0.10
//! until there are enough confirmations: R is the best
//! ```
//!
//! Departures, all settable: the RFC wants no failure at all, which no shared machine passes, so a share of failures may be
//! allowed; it counts ten confirmations; and its trials attempt N sessions, ours last so many seconds.
//!
//! A trial in which the generator itself was late says nothing about the element; the rate falls as after a failure. So the
//! search may end below what the element can do, which is found out in the end: as the baseline of the testbed (RFC 7502
//! 6.1), straight to its own callees, the generator must do 1.3 times R.

use serde::{Deserialize, Serialize};

/// How much faster than R the generator has to be without the element.
pub const HEADROOM: f64 = 1.3;

/// How often the baseline is tried before the generator is said to be the limit: a shared machine may have a bad moment.
pub const BASELINE_TRIALS: usize = 3;

/// Trials after which a search ends without a result: an element that is fine at one moment and not at the next.
const TRIALS_MAX: usize = 200;

/// What came of one trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Too many calls failed.
    Failed,
    /// The generator could not keep the rate: nothing is known about the element.
    GeneratorLimited,
    /// The rate is sustained.
    Sustained,
}

/// The parameters of the procedure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parameters {
    /// r, the first rate, in sessions per second.
    pub first: u64,
    /// w, the share by which the rate rises at first: above 0, at most 1.
    pub rise: f64,
    /// Confirmations.
    pub confirmations: u32,
}

/// How a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// The user has ended it: the best that was seen.
    Ended(u64),
    /// The generator cannot even place one session per second in time.
    GeneratorLimited,
    /// Even one session per second was too much.
    Nothing,
    /// R, in sessions per second.
    Rate(u64),
    /// No convergence: the best that was seen.
    Unsteady(u64),
}

/// Runs the procedure. `trial` tries a rate, in sessions per second; `None` ends it.
pub fn search<E>(
    parameters: &Parameters,
    mut trial: impl FnMut(u64) -> Result<Option<Verdict>, E>,
) -> Result<Found, E> {
    let (mut rate, mut best, mut confirmations) = (parameters.first.max(1), 0, 0);
    let mut rise = parameters.rise;
    let mut fall = (rise / 2.0).max(0.10);
    for _ in 0..TRIALS_MAX {
        let Some(verdict) = trial(rate)? else { return Ok(Found::Ended(best)) };
        match verdict {
            Verdict::Sustained => {
                if rate > best {
                    best = rate;
                } else {
                    confirmations += 1;
                    if confirmations >= parameters.confirmations {
                        return Ok(Found::Rate(best));
                    }
                }
                // The RFC warns that small rates do not rise by a tenth of themselves, rounded down. One more is enough.
                rate += ((rate as f64 * rise) as u64).max(1);
            }
            Verdict::Failed if rate == 1 => return Ok(Found::Nothing),
            Verdict::GeneratorLimited if rate == 1 => return Ok(Found::GeneratorLimited),
            Verdict::Failed | Verdict::GeneratorLimited => {
                rate = (rate - ((rate as f64 * fall) as u64).max(1)).max(1);
                rise = (rise / 2.0).max(0.10);
                fall = (fall / 2.0).max(0.10);
            }
        }
    }
    Ok(Found::Unsteady(best))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, rise: f64, sustained: impl Fn(u64) -> Verdict) -> (Found, usize) {
        let mut trials = 0;
        let found = search(&Parameters { first, rise, confirmations: 10 }, |rate| {
            trials += 1;
            Ok::<_, ()>(Some(sustained(rate)))
        });
        (found.unwrap(), trials)
    }

    fn up_to(limit: u64) -> impl Fn(u64) -> Verdict {
        move |rate| if rate <= limit { Verdict::Sustained } else { Verdict::Failed }
    }

    #[test]
    fn it_converges_to_within_a_tenth_below_what_is_sustained() {
        for limit in [120, 999, 5_000, 47_123, 300_000] {
            for rise in [0.1, 0.5, 1.0] {
                let (found, trials) = run(100, rise, up_to(limit));
                let Found::Rate(rate) = found else { panic!("{found:?}") };
                assert!(rate <= limit && rate as f64 > limit as f64 * 0.9, "{limit} {rise}: {rate}");
                assert!(trials < 150, "{trials}");
            }
        }
    }

    #[test]
    fn it_goes_down_from_a_start_that_is_too_high_and_ends_at_nothing() {
        let (found, _) = run(10_000, 0.1, up_to(50));
        assert!(matches!(found, Found::Rate(rate) if (45..=50).contains(&rate)), "{found:?}");
        assert_eq!(run(100, 1.0, up_to(0)).0, Found::Nothing);
    }

    #[test]
    fn a_generator_that_is_late_now_and_then_takes_longer_and_finds_the_same() {
        let mut trials = 0;
        let found = search(&Parameters { first: 100, rise: 0.5, confirmations: 3 }, |rate| {
            trials += 1;
            Ok::<_, ()>(Some(if trials % 5 == 0 { Verdict::GeneratorLimited } else { up_to(1000)(rate) }))
        });
        assert!(matches!(found, Ok(Found::Rate(rate)) if (850..=1000).contains(&rate)), "{found:?}");
    }

    #[test]
    fn a_generator_at_its_limit_finds_that_limit_which_its_baseline_gives_away() {
        let limited = |rate| if rate > 1000 { Verdict::GeneratorLimited } else { Verdict::Sustained };
        assert!(matches!(run(100, 1.0, limited).0, Found::Rate(rate) if (900..=1000).contains(&rate)));
        assert_eq!(run(100, 1.0, |_| Verdict::GeneratorLimited).0, Found::GeneratorLimited);
    }
}
