//! How datagrams come to shards, as it is shown: status, metrics, log. Who puts the program into the kernel is
//! `shard::steering`; what it counts comes here by a function, since this plane knows no shards.

use super::config;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// What it costs to go without.
pub const COST: &str =
    "all calls from one source address and port are served by one core, and the two directions of a call by two";

/// How often each outcome happened, by its label; `None` if the kernel does not say.
pub type Outcomes = Box<dyn Fn() -> Option<Vec<(&'static str, u64)>> + Send + Sync>;

/// How datagrams come to shards.
pub struct Steering {
    /// What was asked for.
    pub wanted: config::Steering,
    /// What the program counts, if it is at work.
    pub outcomes: Option<Outcomes>,
    /// Why it is not, if that was not asked for; and what to do about it.
    pub missing: Option<(String, &'static str)>,
}

impl Steering {
    /// The kernel's own way, and nothing is missing.
    pub fn off(wanted: config::Steering) -> Steering {
        Steering { wanted, outcomes: None, missing: None }
    }

    /// What is in force: a word of the configuration, never `auto`.
    pub fn in_force(&self) -> &'static str {
        if self.outcomes.is_some() { config::Steering::CallId } else { config::Steering::Kernel }.word()
    }

    /// How many datagrams came to each outcome; nothing where no program is at work.
    pub fn datagrams(&self) -> Vec<(&'static str, u64)> {
        self.outcomes.as_ref().and_then(|outcomes| outcomes()).unwrap_or_default()
    }

    /// What `/status.json` says of it.
    pub fn status(&self) -> Status<'_> {
        Status {
            wanted: self.wanted.word(),
            in_force: self.in_force(),
            missing: self.missing.as_ref().map(|missing| &missing.0[..]),
            datagrams: self.datagrams().into_iter().collect(),
        }
    }
}

impl fmt::Debug for Steering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steering").field("in_force", &self.in_force()).finish_non_exhaustive()
    }
}

/// What `/status.json` says of it.
#[derive(Debug, Serialize)]
pub struct Status<'a> {
    wanted: &'static str,
    in_force: &'static str,
    missing: Option<&'a str>,
    datagrams: BTreeMap<&'static str, u64>,
}

/// How much more than its share the busiest of several got: the greatest by the mean. 1 is even; `None`: nothing came.
pub fn skew(loads: impl Iterator<Item = u64>) -> Option<f64> {
    let (mut most, mut sum, mut count) = (0, 0, 0u64);
    for load in loads {
        (most, sum, count) = (load.max(most), sum + load, count + 1);
    }
    (sum > 0).then(|| most as f64 * count as f64 / sum as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skew_is_the_busiest_by_the_mean() {
        assert_eq!(skew([10, 10].into_iter()), Some(1.0));
        assert_eq!(skew([30, 10].into_iter()), Some(1.5));
        assert_eq!(skew([0, 8, 0, 0].into_iter()), Some(4.0));
        assert_eq!(skew([0, 0].into_iter()), None);
    }
}
