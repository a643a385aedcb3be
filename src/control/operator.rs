//! What an operator decides about a backend, beside what probes find out: its state and its weight.
//!
//! ```text
//!            new keys   what belongs to it   probes
//!   ready    if it is up, by its weight      yes
//!   drain    no         if it is up          yes
//!   maint    no         no                   no
//! ```
//!
//! Both outlive a reload, by the names of pool and backend, until the file says something else than it said when they
//! were decided. They do not outlive the process: what a restart is to find stands in the file.

use crate::dataplane::tables::Serves;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a backend is to be used for. HAProxy's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Everything.
    #[default]
    Ready,
    /// What belongs to it already.
    Drain,
    /// Nothing.
    Maint,
}

impl State {
    /// All of them.
    pub const ALL: [State; 3] = [State::Ready, State::Drain, State::Maint];

    /// The word for it in the configuration, in commands and in labels.
    pub const fn word(self) -> &'static str {
        match self {
            State::Ready => "ready",
            State::Drain => "drain",
            State::Maint => "maint",
        }
    }

    /// What a backend in this state gets beside new keys; `is_silent`: whether it does not answer probes, whatever it says.
    pub const fn serves(self, is_silent: bool) -> Serves {
        match (self, is_silent) {
            (State::Maint, _) => Serves::Nothing,
            (State::Ready | State::Drain, false) => Serves::Calls,
            (State::Ready | State::Drain, true) => Serves::Named,
        }
    }

    /// The flags that Kamailio's dispatcher would show: active, trying, inactive or disabled; probed or not.
    pub const fn flags(self, is_up: bool, is_trying: bool, is_probed: bool) -> &'static str {
        match (self, is_up, is_trying, is_probed) {
            (State::Maint, ..) | (State::Drain, _, _, false) => "DX",
            (State::Drain, ..) => "DP",
            (State::Ready, false, _, true) => "IP",
            (State::Ready, false, _, false) => "IX",
            (State::Ready, true, true, true) => "TP",
            (State::Ready, true, _, true) => "AP",
            (State::Ready, true, _, false) => "AX",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A value that the file gives and the operator may change while the process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    /// What holds.
    pub now: T,
    /// What the file says.
    pub written: T,
}

impl<T: Copy + PartialEq> Setting<T> {
    /// What the file says holds.
    pub fn new(written: T) -> Setting<T> {
        Setting { now: written, written }
    }

    /// The same after a reload in which the file says `written`: whatever was decided since holds on, unless the file has
    /// changed its mind.
    #[must_use]
    pub fn reloaded(self, written: T) -> Setting<T> {
        if self.written == written { self } else { Setting::new(written) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operators_choice_outlives_reloads_until_the_file_says_something_else() {
        let chosen = Setting { now: State::Maint, ..Setting::new(State::Ready) };
        assert_eq!(chosen.reloaded(State::Ready).now, State::Maint);
        assert_eq!(chosen.reloaded(State::Drain).now, State::Drain);
    }

    #[test]
    fn kamailios_letters_say_the_same() {
        assert_eq!(State::Ready.flags(true, false, true), "AP");
        assert_eq!(State::Ready.flags(true, true, true), "TP");
        assert_eq!(State::Ready.flags(false, false, true), "IP");
        assert_eq!(State::Ready.flags(true, false, false), "AX");
        assert_eq!(State::Drain.flags(true, false, true), "DP");
        assert_eq!(State::Maint.flags(true, false, true), "DX");
    }
}
