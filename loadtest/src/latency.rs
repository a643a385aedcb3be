//! Latencies: a histogram with three significant digits from 64 ns to four minutes, and how it is written down.

use crate::clock::{MS_NS, SECOND_NS, US_NS};
use hdrhistogram::Histogram;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// Longest latency that is told apart, in nanoseconds: beyond Timer B (32 s) and the 181 s for which a caller lets it ring then.
/// Longer ones count as this one.
pub const LATENCY_MAX_NS: u64 = 240 * SECOND_NS;

/// Steps of the finest part, in nanoseconds. Makes the histogram 184 KiB instead of 232.
const STEP_NS: u64 = 64;

/// A latency distribution in nanoseconds. All have the same bounds, so any two can be added exactly.
#[derive(Clone)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies(
            Histogram::new_with_bounds(STEP_NS, LATENCY_MAX_NS, 3)
                .expect("the bounds are constants that hdrhistogram accepts"),
        )
    }
}

impl Latencies {
    /// Counts one. Never allocates.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    /// How many have been counted.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that a share of `quantile` (0 to 1) does not exceed; 0 when there is none.
    pub fn at(&self, quantile: f64) -> u64 {
        // A step stands for its upper end, which may lie beyond the longest.
        if self.0.is_empty() { 0 } else { self.0.value_at_quantile(quantile).min(self.0.max()) }
    }

    /// The same for people to read, `-` when there is none: nothing would be as fast as 0 ns.
    pub fn short(&self, quantile: f64) -> String {
        if self.0.is_empty() { "-".to_owned() } else { Short(self.at(quantile)).to_string() }
    }

    /// The longest.
    pub fn max(&self) -> u64 {
        if self.0.is_empty() { 0 } else { self.0.max() }
    }

    /// The mean, 0 when there is none.
    pub fn mean(&self) -> f64 {
        self.0.mean()
    }

    /// The standard deviation, 0 when there is none.
    pub fn deviation(&self) -> f64 {
        self.0.stdev()
    }

    /// Adds another distribution. Exact: both have the same steps.
    pub fn add(&mut self, other: &Latencies) {
        self.0.add(&other.0).expect("all latencies have the same bounds");
    }

    /// Takes away what was counted until `before`, an earlier state of this distribution.
    pub fn subtract(&mut self, before: &Latencies) {
        self.0.subtract(&before.0).expect("an earlier state of the same distribution counts nothing more");
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// Each step that was hit, and how often: what a file keeps.
    pub fn steps(&self) -> Vec<(u64, u64)> {
        self.0.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
    }

    /// Counts one step of a file `count` times. Exact if the file was written by [`steps`](Self::steps).
    pub fn record_step(&mut self, ns: u64, count: u64) {
        self.0.saturating_record_n(ns, count);
    }

    /// The inverse cumulative distribution, finer and finer towards the end: `(quantile, latency, count below)`.
    pub fn spectrum(&self) -> Vec<(f64, u64, u64)> {
        let mut seen = 0;
        let steps = self.0.iter_quantiles(5);
        let spectrum = steps.map(|step| {
            seen += step.count_since_last_iteration();
            (step.quantile_iterated_to(), step.value_iterated_to(), seen)
        });
        spectrum.collect()
    }
}

/// In a file: each step that was hit, and how often.
impl Serialize for Latencies {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.steps().serialize(to)
    }
}

impl<'de> Deserialize<'de> for Latencies {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Latencies, D::Error> {
        let mut latencies = Latencies::default();
        Vec::deserialize(from)?.into_iter().for_each(|(ns, count)| latencies.record_step(ns, count));
        Ok(latencies)
    }
}

impl fmt::Debug for Latencies {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{} latencies, p50 {}, max {}", self.count(), Short(self.at(0.5)), Short(self.max()))
    }
}

/// Nanoseconds as a person reads them: `830ns`, `41µs`, `1.20ms`, `3.4s`.
#[derive(Clone, Copy, Debug)]
pub struct Short(pub u64);

impl fmt::Display for Short {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ns = self.0 as f64;
        let text = match self.0 {
            0..US_NS => format!("{}ns", self.0),
            US_NS..10_000 => format!("{:.1}µs", ns / US_NS as f64),
            10_000..MS_NS => format!("{:.0}µs", ns / US_NS as f64),
            MS_NS..10_000_000 => format!("{:.2}ms", ns / MS_NS as f64),
            10_000_000..SECOND_NS => format!("{:.0}ms", ns / MS_NS as f64),
            _ => format!("{:.1}s", ns / SECOND_NS as f64),
        };
        to.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_hold_from_microseconds_to_the_longest_ringing() {
        let mut latencies = Latencies::default();
        for ns in [70_000, 1_234_567, 987_654_321, 64 * SECOND_NS, (32 + 181) * SECOND_NS] {
            latencies.clear();
            latencies.record(ns);
            let error = latencies.at(0.5).abs_diff(ns) as f64 / ns as f64;
            assert!(error <= 0.001, "{ns}: {error}");
        }
        latencies.record(u64::MAX);
        assert!(latencies.max() >= LATENCY_MAX_NS);
    }

    #[test]
    fn adding_and_taking_away_are_exact() {
        let (mut left, mut right, mut both) = (Latencies::default(), Latencies::default(), Latencies::default());
        let mut rng = crate::rng::Rng::new(3);
        for number in 0..10_000 {
            let ns = rng.next_below(1 << (10 + number % 26));
            both.record(ns);
            if number % 3 == 0 { left.record(ns) } else { right.record(ns) }
        }
        let before = left.clone();
        left.add(&right);
        assert_eq!(left.steps(), both.steps());
        left.subtract(&right);
        assert_eq!(left.steps(), before.steps());
    }

    #[test]
    fn what_a_file_keeps_gives_the_same_distribution_again() {
        let mut latencies = Latencies::default();
        let mut rng = crate::rng::Rng::new(4);
        (0..10_000).for_each(|_| latencies.record(rng.next_below(SECOND_NS)));
        let mut again = Latencies::default();
        latencies.steps().into_iter().for_each(|(ns, count)| again.record_step(ns, count));
        assert_eq!(again.steps(), latencies.steps());
        assert_eq!(again.spectrum(), latencies.spectrum());
    }

    #[test]
    fn latencies_are_written_for_people() {
        let written: Vec<String> =
            [0, 830, 4_100, 41_000, 1_200_000, 83_000_000, 3_400_000_000].map(|ns| Short(ns).to_string()).into();
        assert_eq!(written, ["0ns", "830ns", "4.1µs", "41µs", "1.20ms", "83ms", "3.4s"]);
        assert_eq!(format!("{:>8}", Short(41_000)), "    41µs");
    }
}
