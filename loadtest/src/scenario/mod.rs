//! Scenarios: what a caller does, as data. A scenario is a TOML file of steps; transactions, ACK, tags, routes and
//! retransmissions are the caller's own business and not written down.
//!
//! ```toml
//! name = "call"
//! about = "A call that is answered, held and ended by the caller"
//! callee = "callee"          # user part of who is called; a number follows it
//!
//! [[step]]
//! send = "INVITE"            # a request, and the wait for its final response
//! body = "sdp"               # sdp, text or none
//! expect = 200               # anything else is a failure
//! cancel = "10ms"            # CANCEL so long after the first provisional response
//! expires = 600              # a row Expires
//! challenge = true           # it has to be challenged (401 or 407) once before it succeeds
//!
//! [[step]]
//! pause = "hold"             # a duration, or "hold": what the command line says
//!
//! [[step]]
//! receive = "NOTIFY"         # a request of the callee within the dialog, answered with 200
//! within = "5s"              # or it is a failure
//! ```
//!
//! A mix is a file of scenarios by weight:
//!
//! ```toml
//! name = "mix"
//!
//! [[part]]
//! scenario = "call"          # one that is built in, or a file beside this one
//! weight = 60
//! ```
//!
//! The scenarios and the mix in `loadtest/scenarios/` are built into the program and known by name.

mod file;

use crate::sip::message::Method;
use file::Content;
use std::fmt;

/// Steps of one scenario. Each request takes two branch numbers of the 256 a call has.
pub const STEPS_MAX: usize = 64;

/// Scenarios of one mix.
pub const PARTS_MAX: usize = 64;

/// A scenario that can be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Its name.
    pub name: Box<str>,
    /// What it is, in a sentence.
    pub about: Box<str>,
    /// User part of the callee, before the number.
    pub callee: Box<str>,
    /// At least one, the first of them a request.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing is sent for a while.
    Pause(Pause),
    /// A request of the callee is awaited and answered with 200.
    Receive(Receive),
    /// A request is sent and its final response awaited.
    Send(Send),
}

/// How long a pause is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// So many nanoseconds.
    Fixed(u64),
    /// The hold time of the run.
    Hold,
}

/// A request of the callee.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receive {
    /// What reports call it.
    pub name: Box<str>,
    /// Its method.
    pub method: Method,
    /// How long it is waited for, in nanoseconds.
    pub within_ns: u64,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// What reports call it.
    pub name: Box<str>,
    /// Its method; never ACK or CANCEL.
    pub method: Method,
    /// The final response that is a success.
    pub expect: u16,
    /// What it carries.
    pub body: Body,
    /// Whether it fails unless it is challenged once.
    pub challenge: bool,
    /// CANCEL so many nanoseconds after the first provisional response.
    pub cancel_ns: Option<u64>,
    /// The value of a row Expires, in seconds. REGISTER has one anyway.
    pub expires: Option<u32>,
}

/// What a request carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing.
    None,
    /// An offer (`application/sdp`).
    Sdp,
    /// A line of text (`text/plain`).
    Text,
}

/// Why a scenario is none: the place in the file, and what is wrong there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem(String);

impl fmt::Display for Problem {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.0.trim_end())
    }
}

/// The scenarios that are built in, by name.
pub const BUILT_IN: &[(&str, &str)] = &[
    ("call", include_str!("../../scenarios/call.toml")),
    ("reinvite", include_str!("../../scenarios/reinvite.toml")),
    ("cancel", include_str!("../../scenarios/cancel.toml")),
    ("busy", include_str!("../../scenarios/busy.toml")),
    ("register", include_str!("../../scenarios/register.toml")),
    ("register-digest", include_str!("../../scenarios/register-digest.toml")),
    ("options", include_str!("../../scenarios/options.toml")),
    ("subscribe", include_str!("../../scenarios/subscribe.toml")),
    ("message", include_str!("../../scenarios/message.toml")),
];

/// The mixes that are built in, by name.
pub const BUILT_IN_MIXES: &[(&str, &str)] = &[("mix", include_str!("../../scenarios/mix.toml"))];

/// Reads the text of a file that holds a scenario or a mix: the scenarios with their weights, one alone with 1. `origin` is
/// the file's name, for the error. `find` gives the scenarios that a mix names, or says why there is none.
pub fn read_parts(
    origin: &str,
    text: &str,
    find: impl Fn(&str) -> Result<Scenario, String>,
) -> Result<Vec<(Scenario, f64)>, Problem> {
    match file::read(origin, text, find)? {
        Content::Mix(parts) => Ok(parts),
        Content::Scenario(scenario) => Ok(vec![(scenario, 1.0)]),
    }
}

impl Scenario {
    /// Reads the text of a file that holds one scenario. `origin` is the file's name, for the error.
    pub fn read(origin: &str, text: &str) -> Result<Scenario, Problem> {
        match file::read(origin, text, |_| Err("a mix cannot be a part of a mix".to_owned()))? {
            Content::Scenario(scenario) => Ok(scenario),
            Content::Mix(_) => Err(Problem("error[scenario]: this is a mix, and one scenario is wanted".to_owned())),
        }
    }

    /// Whether one of its requests has to be challenged, so that it cannot succeed without a password.
    pub fn needs_password(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Send(send) if send.challenge))
    }

    /// Whether this step, or one that follows it, waits for such a request.
    pub fn awaits(&self, method: Method, step: usize) -> bool {
        let waits = |step: &Step| matches!(step, Step::Receive(receive) if receive.method == method);
        self.steps.iter().skip(step).any(waits)
    }

    /// The scenario of this name, if it is built in.
    pub fn built_in(name: &str) -> Option<Scenario> {
        let (name, text) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name)?;
        Some(Scenario::read(name, text).expect("a test reads every scenario that is built in"))
    }
}

/// Scenarios by weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix {
    parts: Vec<(Scenario, f64)>,
    total: f64,
}

impl Mix {
    /// Each scenario with its weight; only the proportions count. `None` if no weight is above zero, or one is no number.
    pub fn new(parts: Vec<(Scenario, f64)>) -> Option<Mix> {
        let sane = parts.iter().all(|(_, weight)| weight.is_finite() && *weight >= 0.0) && parts.len() < 256;
        let total: f64 = parts.iter().map(|(_, weight)| weight).sum();
        (sane && total > 0.0).then_some(Mix { parts, total })
    }

    /// The scenarios.
    pub fn scenarios(&self) -> impl ExactSizeIterator<Item = &Scenario> {
        self.parts.iter().map(|(scenario, _)| scenario)
    }

    /// One of them.
    #[inline]
    pub fn scenario(&self, index: usize) -> &Scenario {
        &self.parts[index].0
    }

    /// Index of the scenario that `unit` (0 to 1) falls on.
    #[inline]
    pub fn choose(&self, unit: f64) -> usize {
        let mut left = unit * self.total;
        let found = self.parts.iter().position(|(_, weight)| {
            left -= weight;
            left < 0.0
        });
        found.unwrap_or(self.parts.len() - 1)
    }
}

impl From<Scenario> for Mix {
    fn from(scenario: Scenario) -> Mix {
        Mix { parts: vec![(scenario, 1.0)], total: 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_that_is_built_in_can_be_read_and_has_its_name() {
        for (name, text) in BUILT_IN {
            let scenario = Scenario::read(name, text).unwrap();
            assert_eq!(&*scenario.name, *name);
            assert_eq!(Scenario::built_in(name).unwrap(), scenario);
        }
        assert!(Scenario::built_in("nothing").is_none());
        for (name, text) in BUILT_IN_MIXES {
            let find = |name: &str| Scenario::built_in(name).ok_or_else(|| name.to_owned());
            assert!(read_parts(name, text, find).unwrap().len() > 1);
            assert!(Scenario::read(name, text).is_err());
        }
    }

    #[test]
    fn a_mix_is_drawn_by_weight() {
        let scenario = |name| Scenario::built_in(name).unwrap();
        let mix = Mix::new(vec![(scenario("call"), 3.0), (scenario("busy"), 0.0), (scenario("options"), 1.0)]).unwrap();
        let drawn: Vec<usize> = [0.0, 0.5, 0.749, 0.75, 0.999_999].map(|unit| mix.choose(unit)).into();
        assert_eq!(drawn, [0, 0, 0, 2, 2]);
        assert!(Mix::new(vec![(scenario("call"), 0.0)]).is_none());
        assert!(Mix::new(vec![(scenario("call"), f64::NAN)]).is_none());
    }
}
