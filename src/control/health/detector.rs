//! Up or down: what a row of probe outcomes means. Pure: no clock, no network.
//!
//! ```text
//!            first outcome a failure, or `fall` failures in a row, or refused once
//!   ┌────┐ ───────────────────────────────────────────────────────────────────────► ┌──────┐
//!   │ up │                                                                          │ down │
//!   └────┘ ◄─────────────────────────────────────────────────────────────────────── └──────┘
//!                                  `rise` successes in a row
//! ```
//!
//! Who falls again soon after it rose needs twice as many successes the next time, and twice as many again: each return
//! moves its keys, and a backend that flaps would have every transaction of theirs split between two servers.
//!
//! A backend starts up, so that a restart of ours never empties a healthy pool; but unproven, so that the first probe
//! that fails takes it down. A refusal (ICMP: nobody listens there) is an answer of the backend's own kernel and needs
//! no second opinion; silence may be a lost datagram and does.
//!
//! Down is who takes no new keys. Who says so itself, with a 503, still answers, and has calls to bring to their end: Asterisk
//! does so from `core stop gracefully` until the last of them is over. Silent is who does not answer at all: `fall` times in a
//! row, or refused, and from then on until it is up.

use std::fmt;

/// What came of one probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A final response whose code means that it is alive.
    Alive(u16),
    /// A final response whose code does not.
    Unwell(u16),
    /// ICMP, or the local kernel, said that nobody is there.
    Refused,
    /// No final response in time. Never mistaken for a response of some class.
    Timeout,
}

impl Outcome {
    /// The word for it in logs and on the status page.
    pub const fn word(self) -> &'static str {
        match self {
            Outcome::Alive(_) => "options_ok",
            Outcome::Unwell(_) => "options_error",
            Outcome::Refused => "refused",
            Outcome::Timeout => "options_timeout",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Alive(code) | Outcome::Unwell(code) => write!(f, "{} ({code})", self.word()),
            Outcome::Refused | Outcome::Timeout => f.write_str(self.word()),
        }
    }
}

/// The state of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detector {
    fall: u32,
    rise: u32,
    is_up: bool,
    /// `is_silent` implies `!is_up`.
    is_silent: bool,
    is_proven: bool,
    /// Outcomes in a row that speak against the state: not yet enough of them, but after a reload that asks for fewer.
    against: u32,
    /// Probes in a row that nobody answered.
    unanswered: u32,
    /// Successes in a row since it rose, up to [`CALM`].
    calm: u32,
    /// Whether it ever rose: the first fall is no flapping.
    has_risen: bool,
    /// How often it fell before it was calm.
    flaps: u32,
}

/// Successes in a row after which a backend no longer counts as one that flaps.
const CALM: u32 = 30;
/// Doublings of `rise` at most.
const FLAPS_MAX: u32 = 5;

impl Detector {
    /// A backend that nobody has asked yet.
    pub fn new(fall: u32, rise: u32) -> Detector {
        Detector {
            fall,
            rise,
            is_up: true,
            is_silent: false,
            is_proven: false,
            against: 0,
            unanswered: 0,
            calm: 0,
            has_risen: false,
            flaps: 0,
        }
    }

    /// The same under other thresholds: after a reload. What speaks against the state is kept, or reloads in quick succession
    /// would keep a dead backend up.
    #[must_use]
    pub fn with_thresholds(&self, fall: u32, rise: u32) -> Detector {
        Detector { fall, rise, ..self.clone() }
    }

    /// One that knows nothing yet, with the same thresholds.
    #[must_use]
    pub fn afresh(&self) -> Detector {
        Detector::new(self.fall, self.rise)
    }

    /// Whether it takes new keys.
    pub fn is_up(&self) -> bool {
        self.is_up
    }

    /// Whether nobody is there to whom its dialogs could go.
    pub fn is_silent(&self) -> bool {
        self.is_silent
    }

    /// Whether it is up and the last that was heard of it speaks against it.
    pub fn is_trying(&self) -> bool {
        self.is_up && self.against > 0
    }

    /// Whether it is down and lacks one success to be up.
    pub fn is_rising(&self) -> bool {
        !self.is_up && self.against > 0 && self.against + 1 >= self.rise << self.flaps
    }

    /// Takes note of an outcome. Returns whether it went up or down.
    pub fn on_outcome(&mut self, outcome: Outcome) -> bool {
        let enough = if outcome == Outcome::Refused || !self.is_proven { 1 } else { self.fall };
        self.unanswered = match outcome {
            Outcome::Alive(_) | Outcome::Unwell(_) => 0,
            Outcome::Refused | Outcome::Timeout => self.unanswered.saturating_add(1),
        };
        let has_changed = self.rises_or_falls(outcome, enough);
        self.is_silent = !self.is_up && (self.is_silent || self.unanswered >= enough);
        has_changed
    }

    /// `fall` is how many failures in a row this one has to be the last of.
    fn rises_or_falls(&mut self, outcome: Outcome, fall: u32) -> bool {
        let speaks_for_up = matches!(outcome, Outcome::Alive(_));
        if speaks_for_up == self.is_up {
            self.against = 0;
            self.is_proven |= speaks_for_up;
            self.calm = (self.calm + u32::from(speaks_for_up)).min(CALM);
            return false;
        }
        self.against += 1;
        let enough = if self.is_up { fall } else { self.rise << self.flaps };
        if self.against < enough {
            return false;
        }
        if self.is_up && self.has_risen {
            self.flaps = if self.calm < CALM { (self.flaps + 1).min(FLAPS_MAX) } else { 0 };
        }
        self.has_risen |= !self.is_up;
        self.calm = 0;
        (self.is_up, self.against, self.is_proven) = (!self.is_up, 0, true);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::Outcome::*;
    use super::*;

    /// Runs `outcomes` and tells the state after each: `+` up, `-` down.
    fn states(outcomes: &[Outcome]) -> String {
        let mut detector = Detector::new(3, 2);
        outcomes
            .iter()
            .map(|&outcome| {
                let before = detector.is_up();
                assert_eq!(detector.on_outcome(outcome), detector.is_up() != before);
                if detector.is_up() { '+' } else { '-' }
            })
            .collect()
    }

    /// What is said of it after each of `outcomes`: `+` up, `-` down, `.` down and silent.
    fn heard(outcomes: &[Outcome]) -> String {
        let mut detector = Detector::new(3, 2);
        let said = outcomes.iter().map(|&outcome| {
            detector.on_outcome(outcome);
            match (detector.is_up(), detector.is_silent()) {
                (true, false) => '+',
                (true, true) => '!',
                (false, false) => '-',
                (false, true) => '.',
            }
        });
        said.collect()
    }

    #[test]
    fn who_says_503_is_down_and_not_silent_until_it_says_nothing() {
        let leaves = [Alive(200), Unwell(503), Unwell(503), Unwell(503), Unwell(503)];
        assert_eq!(heard(&leaves), "+++--");
        assert_eq!(heard(&[&leaves[..], &[Timeout, Unwell(503), Timeout, Timeout, Timeout]].concat()), "+++------.");
        assert_eq!(heard(&[&leaves[..], &[Refused, Unwell(503), Alive(200), Alive(200)]].concat()), "+++--...+");
        assert_eq!(heard(&[&leaves[..], &[Alive(200), Alive(200)]].concat()), "+++---+");
        assert_eq!(heard(&[Unwell(503), Timeout, Timeout, Timeout]), "---.", "whom we know by its 503 alone");
        assert_eq!(heard(&[Timeout, Unwell(503)]), "..", "who was silent has to rise first");
        assert_eq!(heard(&[Alive(200), Timeout, Timeout, Timeout]), "+++.");
        assert_eq!(heard(&[Alive(200), Timeout, Unwell(503), Timeout, Timeout, Timeout]), "+++--.");
    }

    #[test]
    fn who_flaps_needs_twice_as_many_successes_each_time_until_it_is_calm() {
        let mut detector = Detector::new(1, 2);
        let rises_after = |detector: &mut Detector| {
            detector.on_outcome(Refused);
            assert!(!detector.is_up());
            (1..).find(|_| detector.on_outcome(Alive(200))).unwrap_or(0)
        };
        detector.on_outcome(Alive(200));
        assert_eq!([(); 8].map(|()| rises_after(&mut detector)), [2, 4, 8, 16, 32, 64, 64, 64]);
        (0..CALM).for_each(|_| assert!(!detector.on_outcome(Alive(200))));
        assert_eq!([(); 2].map(|()| rises_after(&mut detector)), [2, 4]);
    }

    #[test]
    fn a_proven_backend_falls_after_three_failures_in_a_row_and_rises_after_two_successes() {
        assert_eq!(states(&[Alive(200), Timeout, Timeout, Timeout, Alive(200), Alive(200)]), "+++--+");
        assert_eq!(states(&[Alive(200), Timeout, Unwell(503), Alive(200), Timeout, Timeout]), "++++++");
        assert_eq!(states(&[Timeout, Alive(200), Timeout, Alive(200), Alive(404)]), "----+");
    }

    #[test]
    fn an_unproven_backend_falls_at_its_first_failure() {
        assert_eq!(states(&[Timeout]), "-");
        assert_eq!(states(&[Unwell(503)]), "-");
    }

    #[test]
    fn reloads_between_probes_neither_keep_the_dead_up_nor_the_living_down() {
        let mut detector = Detector::new(3, 2);
        let mut on = |outcome| {
            detector = detector.with_thresholds(3, 2);
            detector.on_outcome(outcome);
            detector.is_up()
        };
        let seen = [Alive(200), Timeout, Timeout, Timeout, Alive(200), Alive(200)].map(&mut on);
        assert_eq!(seen, [true, true, true, false, false, true]);
        detector.on_outcome(Timeout);
        assert!(detector.with_thresholds(1, 2).on_outcome(Timeout), "one more than enough is enough");
    }

    #[test]
    fn who_is_up_and_has_just_failed_is_trying() {
        let mut detector = Detector::new(3, 2);
        let trying =
            [Alive(200), Timeout, Alive(200), Timeout, Timeout, Timeout, Alive(200), Alive(200)].map(|outcome| {
                detector.on_outcome(outcome);
                detector.is_trying()
            });
        assert_eq!(trying, [false, true, false, true, true, false, false, false]);
    }

    #[test]
    fn a_refusal_needs_no_second_opinion() {
        assert_eq!(states(&[Alive(200), Refused, Alive(200), Alive(200), Refused]), "+--+-");
    }
}
