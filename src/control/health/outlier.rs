//! Passive health: what a backend's answers to real requests say of it, once a second. Pure: no clock, no network.
//!
//! ```text
//!              `share` of its final answers are 503, or nothing at all comes back
//!  in rotation ───────────────────────────────────────────────────────────────────► ejected
//!      ▲                                                                                │
//!      └────────── after `eject`, twice as long each time it is ejected again ──────────┘
//! ```
//!
//! An OPTIONS that is answered proves that somebody is at home, not that calls are served. Who is ejected takes no new
//! keys and keeps its dialogs, as in a drain: those may well work. 503 is the one code that says "not me, not now" (RFC
//! 3261 21.5.4); every other code is an answer about the call. A server that is slow answers, if late: what comes back
//! is compared with nothing, not with what was sent.

use std::collections::VecDeque;
use std::time::Duration;

/// When a backend is ejected, and for how long.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Per cent of final answers that may be 503: from this on it is ejected.
    pub share: u32,
    /// Final answers, or requests without any answer, in [`WINDOW_S`] seconds below which nothing is concluded.
    pub requests: u64,
    /// How long it is ejected the first time.
    pub eject: Duration,
    /// Per cent of a pool's backends that may be ejected at a time, rounded down.
    pub max_ejected: u32,
}

/// Seconds looked at together.
pub const WINDOW_S: usize = 2;
/// An ejection lasts at most so many times the first one.
const LONGEST: u32 = 32;
/// Seconds in rotation after which earlier ejections are forgotten, in units of the last ejection.
const FORGIVEN: u32 = 4;

/// What a backend was sent and what came back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests sent to it.
    pub requests: u64,
    /// Responses of any kind.
    pub answers: u64,
    /// Final ones.
    pub finals: u64,
    /// Of these, 503.
    pub unavailable: u64,
}

impl Traffic {
    /// What came to pass since `before`.
    #[must_use]
    pub fn since(self, before: Traffic) -> Traffic {
        Traffic {
            requests: self.requests.saturating_sub(before.requests),
            answers: self.answers.saturating_sub(before.answers),
            finals: self.finals.saturating_sub(before.finals),
            unavailable: self.unavailable.saturating_sub(before.unavailable),
        }
    }

    /// The two together.
    #[must_use]
    pub fn plus(self, other: &Traffic) -> Traffic {
        Traffic {
            requests: self.requests + other.requests,
            answers: self.answers + other.answers,
            finals: self.finals + other.finals,
            unavailable: self.unavailable + other.unavailable,
        }
    }
}

/// Why a backend is sick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sickness {
    /// So many per cent of its answers were 503.
    Unavailable(u64),
    /// So many requests, and nothing came back.
    Silent(u64),
}

impl std::fmt::Display for Sickness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Sickness::Unavailable(share) => write!(f, "{share} % of its answers were 503"),
            Sickness::Silent(requests) => write!(f, "{requests} requests and no answer"),
        }
    }
}

/// The passive health of one backend.
#[derive(Clone, Debug, Default)]
pub struct Outlier {
    total: Traffic,
    window: VecDeque<Traffic>,
    /// Seconds left of an ejection.
    left_s: u64,
    /// How long the last ejection was.
    last_s: u64,
    /// Seconds in rotation since.
    calm_s: u64,
}

impl Outlier {
    /// Whether it takes no new keys.
    pub fn is_ejected(&self) -> bool {
        self.left_s > 0
    }

    /// A second passed; `total` is all that it was sent and answered so far. Returns what is wrong with it, if it is in
    /// rotation and something is.
    pub fn on_second(&mut self, total: Traffic, limits: &Limits) -> Option<Sickness> {
        let second = total.since(self.total);
        self.total = total;
        if self.left_s > 0 {
            self.left_s -= 1;
            return None;
        }
        self.calm_s += 1;
        if self.calm_s > self.last_s * u64::from(FORGIVEN) {
            self.last_s = 0;
        }
        self.window.push_back(second);
        if self.window.len() < WINDOW_S {
            return None;
        }
        let seen = self.window.iter().fold(Traffic::default(), Traffic::plus);
        self.window.pop_front();
        if seen.answers == 0 && seen.requests >= limits.requests {
            return Some(Sickness::Silent(seen.requests));
        }
        let share = (seen.unavailable * 100).checked_div(seen.finals)?;
        (seen.finals >= limits.requests && share >= u64::from(limits.share)).then_some(Sickness::Unavailable(share))
    }

    /// Takes it out of rotation. Returns for how many seconds.
    pub fn eject(&mut self, limits: &Limits) -> u64 {
        let first = limits.eject.as_secs().max(1);
        self.left_s = (self.last_s * 2).clamp(first, first * u64::from(LONGEST));
        (self.last_s, self.calm_s) = (self.left_s, 0);
        self.window.clear();
        self.left_s
    }

    /// Puts it back into rotation, and forgets that it ever was ejected: an operator knows better.
    pub fn pardon(&mut self) {
        (self.left_s, self.last_s, self.calm_s) = (0, 0, 0);
    }
}

/// How many of `count` backends may be ejected at a time.
pub fn most_ejected(count: usize, limits: &Limits) -> usize {
    count * limits.max_ejected as usize / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { share: 40, requests: 20, eject: Duration::from_secs(10), max_ejected: 50 };

    /// Seconds of traffic, each `(requests, answers, finals, unavailable)`; returns the first finding and its second.
    fn found(seconds: &[(u64, u64, u64, u64)]) -> Option<(usize, Sickness)> {
        let (mut outlier, mut total) = (Outlier::default(), Traffic::default());
        seconds.iter().enumerate().find_map(|(second, &(requests, answers, finals, unavailable))| {
            total = total.plus(&Traffic { requests, answers, finals, unavailable });
            Some((second, outlier.on_second(total, &LIMITS)?))
        })
    }

    #[test]
    fn who_answers_every_other_call_with_503_is_sick_within_two_seconds() {
        assert_eq!(found(&[(30, 30, 15, 8); 5]), Some((1, Sickness::Unavailable(53))));
        assert_eq!(found(&[(30, 30, 15, 5); 5]), None, "a third is not enough");
        assert_eq!(found(&[(9, 9, 9, 9); 5]), None, "nor are 18 calls");
        assert_eq!(
            found(&[(10, 10, 10, 4); 5]),
            Some((1, Sickness::Unavailable(40))),
            "as many and as much as is enough"
        );
    }

    #[test]
    fn who_says_nothing_is_sick_and_who_is_late_is_not() {
        assert_eq!(found(&[(50, 50, 50, 0), (50, 0, 0, 0), (50, 0, 0, 0)]), Some((2, Sickness::Silent(100))));
        assert_eq!(found(&[(10, 0, 0, 0); 5]), Some((1, Sickness::Silent(20))));
        assert_eq!(found(&[(9, 0, 0, 0), (9, 0, 0, 0), (50, 50, 0, 0), (50, 1, 0, 0)]), None);
    }

    #[test]
    fn ejections_double_and_are_forgiven() {
        let mut outlier = Outlier::default();
        let pass = |outlier: &mut Outlier, seconds: u64| {
            (0..seconds).for_each(|_| assert_eq!(outlier.on_second(outlier.total, &LIMITS), None));
        };
        for expected in [10, 20, 40, 80, 160, 320, 320] {
            assert_eq!(outlier.eject(&LIMITS), expected);
            pass(&mut outlier, expected - 1);
            assert!(outlier.is_ejected());
            pass(&mut outlier, 1);
            assert!(!outlier.is_ejected());
            pass(&mut outlier, 4 * expected);
        }
        pass(&mut outlier, 1);
        assert_eq!(outlier.eject(&LIMITS), 10);
    }

    #[test]
    fn what_was_before_an_ejection_says_nothing_after_it() {
        let mut outlier = Outlier::default();
        let silent = |requests: u64| Traffic { requests, ..Traffic::default() };
        assert_eq!(outlier.on_second(silent(50), &LIMITS), None);
        assert_eq!(outlier.on_second(silent(100), &LIMITS), Some(Sickness::Silent(100)));
        (0..outlier.eject(&LIMITS)).for_each(|_| assert_eq!(outlier.on_second(silent(100), &LIMITS), None));
        assert_eq!([119, 119].map(|requests| outlier.on_second(silent(requests), &LIMITS)), [None; 2]);
    }

    #[test]
    fn whoever_is_pardoned_is_back_and_begins_anew() {
        let mut outlier = Outlier::default();
        outlier.eject(&LIMITS);
        outlier.pardon();
        assert!(!outlier.is_ejected());
        assert_eq!(outlier.eject(&LIMITS), 10);
    }

    #[test]
    fn the_share_that_may_be_ejected_is_rounded_down() {
        assert_eq!([1, 2, 3, 4, 10].map(|count| most_ejected(count, &LIMITS)), [0, 1, 1, 2, 5]);
    }
}
