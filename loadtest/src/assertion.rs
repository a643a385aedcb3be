//! `--assert 'failed==0' --assert 'p99<2ms'`: what a run has to come to, for scripts.

use crate::latency::{Latencies, Short};
use crate::log::Log;
use std::fmt;

/// One condition.
#[derive(Clone, Debug)]
pub struct Assertion {
    text: String,
    metric: Metric,
    compare: Compare,
    /// In nanoseconds for times, in percent for shares, otherwise plain.
    value: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Compare {
    Above,
    AtLeast,
    AtMost,
    Below,
    Equal,
    Unequal,
}

#[derive(Clone, Copy, Debug)]
enum Metric {
    Count(fn(&Log) -> u64),
    Percent(fn(&Log) -> f64),
    Plain(fn(&Log) -> f64),
    /// In nanoseconds; `None` where nothing was measured.
    Time(fn(&Log) -> Option<u64>),
}

/// Every name an assertion may use, and what it stands for. Documented in `docs/load.md`.
const METRICS: &[(&str, Metric)] = &[
    ("placed", Metric::Count(|log| calls(log, |calls| calls.counts.placed))),
    ("completed", Metric::Count(|log| calls(log, |calls| calls.counts.completed))),
    ("failed", Metric::Count(|log| calls(log, |calls| calls.counts.failed))),
    ("cut", Metric::Count(|log| calls(log, |calls| calls.counts.cut))),
    ("unplaced", Metric::Count(|log| calls(log, |calls| calls.counts.unplaced))),
    ("retransmissions", Metric::Count(|log| calls(log, |calls| calls.counts.retransmissions))),
    ("copies", Metric::Count(|log| calls(log, |calls| calls.counts.copies))),
    ("late", Metric::Count(|log| calls(log, |calls| calls.counts.late))),
    ("strays", Metric::Count(|log| calls(log, |calls| calls.counts.strays))),
    ("wrong", Metric::Count(|log| calls(log, |calls| calls.counts.wrong))),
    ("unexpected", Metric::Count(|log| calls(log, |calls| calls.counts.unexpected))),
    ("refused", Metric::Count(|log| calls(log, |calls| calls.counts.refused))),
    ("connections_lost", Metric::Count(|log| calls(log, |calls| calls.counts.connections_lost))),
    ("reconnects", Metric::Count(|log| calls(log, |calls| calls.counts.reconnects))),
    (
        "overflowed",
        Metric::Count(|log| calls(log, |calls| calls.counts.overflowed) + callees(log, |total| total.overflowed)),
    ),
    ("open_max", Metric::Count(|log| calls(log, |calls| calls.open_max))),
    ("altered", Metric::Count(|log| calls(log, |calls| calls.counts.altered) + callees(log, |total| total.altered))),
    ("unsealed", Metric::Count(|log| calls(log, |calls| calls.counts.unsealed) + callees(log, |total| total.unsealed))),
    ("violations", Metric::Count(|log| callees(log, |total| total.violations))),
    ("moved", Metric::Count(|log| callees(log, |total| total.moved))),
    ("orphans", Metric::Count(|log| callees(log, |total| total.orphans))),
    ("unknown", Metric::Count(|log| callees(log, |total| total.unknown))),
    ("reordered", Metric::Count(|log| callees(log, |total| total.reordered))),
    ("unacknowledged", Metric::Count(|log| callees(log, |total| total.unacknowledged))),
    ("missing", Metric::Count(missing)),
    (
        "failed_share",
        Metric::Percent(|log| {
            let (failed, placed) = (calls(log, |calls| calls.counts.failed), calls(log, |calls| calls.counts.placed));
            failed as f64 * 100.0 / placed.max(1) as f64
        }),
    ),
    ("rate", Metric::Plain(Log::rate)),
    ("p50", Metric::Time(|log| latency(log, 0.5))),
    ("p90", Metric::Time(|log| latency(log, 0.9))),
    ("p99", Metric::Time(|log| latency(log, 0.99))),
    ("p99.9", Metric::Time(|log| latency(log, 0.999))),
    ("p99.99", Metric::Time(|log| latency(log, 0.9999))),
    ("max", Metric::Time(|log| latency(log, 1.0))),
    ("srd_p99", Metric::Time(|log| at(&log.calls.as_ref()?.ringing, 0.99))),
    ("lateness_p99", Metric::Time(|log| at(&log.calls.as_ref()?.lateness, 0.99))),
    ("lateness_p99.9", Metric::Time(|log| at(&log.calls.as_ref()?.lateness, 0.999))),
];

fn calls(log: &Log, figure: impl Fn(&crate::uac::Report) -> u64) -> u64 {
    log.calls.as_ref().map_or(0, figure)
}

fn callees(log: &Log, figure: impl Fn(&crate::uas::Counts) -> u64) -> u64 {
    log.callees.as_ref().map_or(0, |callees| figure(&callees.total()))
}

/// What one side sent and the other never saw.
fn missing(log: &Log) -> u64 {
    log.flows().iter().filter_map(|flow| u64::try_from(flow.missing()?).ok()).sum()
}

fn latency(log: &Log, quantile: f64) -> Option<u64> {
    at(&log.calls.as_ref()?.latency(), quantile)
}

fn at(latencies: &Latencies, quantile: f64) -> Option<u64> {
    (latencies.count() > 0).then(|| latencies.at(quantile))
}

impl Assertion {
    /// Reads `NAME OPERATOR VALUE`.
    pub fn read(text: &str) -> Result<Assertion, String> {
        let at =
            text.find(['<', '>', '=', '!']).ok_or("an assertion has one of < <= > >= == != in it, like `failed==0`")?;
        let (name, rest) = (text[..at].trim(), &text[at..]);
        let operators = [
            ("<=", Compare::AtMost),
            (">=", Compare::AtLeast),
            ("==", Compare::Equal),
            ("!=", Compare::Unequal),
            ("<", Compare::Below),
            (">", Compare::Above),
        ];
        let found = operators.into_iter().find_map(|(sign, compare)| Some((compare, rest.strip_prefix(sign)?)));
        let (compare, value) = found.ok_or("write == for equal and != for different")?;
        let Some((_, metric)) = METRICS.iter().find(|(known, _)| *known == name) else {
            let names: Vec<&str> = METRICS.iter().map(|(name, _)| *name).collect();
            return Err(format!("`{name}` is not measured; these are: {}", names.join(", ")));
        };
        let value = read_value(value.trim(), *metric)?;
        Ok(Assertion { text: text.to_owned(), metric: *metric, compare, value })
    }

    /// Whether the run came to it. Of a time that was never measured nothing holds: where all calls failed none was fast.
    pub fn holds(&self, log: &Log) -> bool {
        let Some(seen) = self.seen(log) else { return false };
        match self.compare {
            Compare::Above => seen > self.value,
            Compare::AtLeast => seen >= self.value,
            Compare::AtMost => seen <= self.value,
            Compare::Below => seen < self.value,
            Compare::Equal => seen == self.value,
            Compare::Unequal => seen != self.value,
        }
    }

    /// What the run came to, for people.
    pub fn seen_text(&self, log: &Log) -> String {
        match self.metric {
            Metric::Count(count) => count(log).to_string(),
            Metric::Percent(share) => format!("{:.4}%", share(log)),
            Metric::Plain(figure) => format!("{:.1}", figure(log)),
            Metric::Time(time) => time(log).map_or("not measured".to_owned(), |ns| Short(ns).to_string()),
        }
    }

    fn seen(&self, log: &Log) -> Option<f64> {
        match self.metric {
            Metric::Count(count) => Some(count(log) as f64),
            Metric::Percent(figure) | Metric::Plain(figure) => Some(figure(log)),
            Metric::Time(time) => time(log).map(|ns| ns as f64),
        }
    }
}

impl fmt::Display for Assertion {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.text)
    }
}

fn read_value(text: &str, metric: Metric) -> Result<f64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is not a number"))?;
    match (metric, unit.trim()) {
        (Metric::Count(_) | Metric::Plain(_), "") | (Metric::Percent(_), "%") => Ok(number),
        (Metric::Count(_) | Metric::Plain(_), unit) => Err(format!("this is a number without a unit, not `{unit}`")),
        (Metric::Percent(_), _) => Err("this is a share; write it with a %".to_owned()),
        (Metric::Time(_), "ns") => Ok(number),
        (Metric::Time(_), "us" | "µs") => Ok(number * 1e3),
        (Metric::Time(_), "ms") => Ok(number * 1e6),
        (Metric::Time(_), "s") => Ok(number * 1e9),
        (Metric::Time(_), unit) => Err(format!("this is a time; write it in us, ms or s, not `{unit}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uac;

    fn log(failed: u64, latency_ns: u64) -> Log {
        let mut line = uac::Line { expect: 200, ..uac::Line::default() };
        line.latency.record(latency_ns);
        let counts = uac::Counts { placed: 1000, failed, ..uac::Counts::default() };
        Log { calls: Some(uac::Report { counts, lines: vec![line], ..uac::Report::default() }), ..Log::new() }
    }

    #[test]
    fn an_assertion_compares_what_was_measured() {
        let log = log(1, 1_500_000);
        for (text, holds) in [
            ("failed==0", false),
            ("failed <= 1", true),
            ("failed_share<=0.1%", true),
            ("failed_share < 0.1%", false),
            ("p99<2ms", true),
            ("p99.9 < 1.2ms", false),
            ("max>1400us", true),
            ("violations==0", true),
            ("placed!=1000", false),
        ] {
            assert_eq!(Assertion::read(text).unwrap().holds(&log), holds, "{text}");
        }
        assert_eq!(Assertion::read("p99<2ms").unwrap().seen_text(&log), "1.50ms");
    }

    #[test]
    fn a_time_that_was_never_measured_holds_nothing() {
        let mut log = log(1000, 1);
        log.calls.as_mut().unwrap().lines.clear();
        for text in ["p99<2ms", "max>=0ms", "srd_p99<2ms", "lateness_p99.9<1s"] {
            let assertion = Assertion::read(text).unwrap();
            assert!(!assertion.holds(&log) && !assertion.holds(&Log::new()), "{text}");
            assert_eq!(assertion.seen_text(&log), "not measured");
        }
    }

    #[test]
    fn every_name_is_in_the_docs() {
        let docs = include_str!("../../docs/load.md");
        for (name, _) in METRICS {
            assert!(docs.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_compared_is_said() {
        for (text, said) in [
            ("failed", "failed==0"),
            ("failed=0", "=="),
            ("speed>1", "rate"),
            ("p99<2", "ms"),
            ("failed<2ms", "without a unit"),
            ("failed_share<1", "%"),
            ("p99<fastms", "not a number"),
        ] {
            let error = Assertion::read(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
