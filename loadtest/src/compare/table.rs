//! The table of a comparison: one block per load, one line per element, medians over the rounds with their spread, the ratio
//! to the null relay of the same round, or to whoever is the baseline, and the latency that was added to that of the same round without an element.

use super::rounds::{CONTENDED_MAX, Outcome, STEAL_MAX, Sample};
use crate::endpoint::Transport;
use crate::latency::Short;
use std::fmt::Write;

/// From this share of what the driver does without an element on, a saturation figure says more about the driver
/// (`direct` has to be 1.3 times as fast).
const GENERATOR_LIMITED: f64 = 1.0 / 1.3;

/// Median, least and most of some figures.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// Of these figures; zeros where there are none.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Spread {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let (Some(least), Some(most)) = (figures.first(), figures.last()) else { return Spread::default() };
        let middle = figures.len() / 2;
        let median =
            if figures.len() % 2 == 1 { figures[middle] } else { (figures[middle - 1] + figures[middle]) / 2.0 };
        Spread { median, least: *least, most: *most }
    }
}

/// The whole table. `baseline` is who the others are compared with.
pub fn render(outcome: &Outcome, baseline: &str) -> String {
    let mut text = String::new();
    for load in loads(outcome) {
        block(&mut text, outcome, load, baseline);
    }
    for (name, why) in &outcome.missing {
        let _ = writeln!(text, "not measured: {name}: {why}");
    }
    if !outcome.repeated.is_empty() {
        let (void, all) = (outcome.repeated.len(), outcome.repeated.len() + outcome.samples.len());
        let _ = writeln!(text, "{void} of {all} measurements were void, and made again");
    }
    let stolen = outcome.samples.iter().filter(|sample| sample.is_stolen()).count();
    if stolen > 0 {
        let (all, share) = (outcome.samples.len(), STEAL_MAX * 100.0);
        let _ = writeln!(
            text,
            "VOID: in {stolen} of {all} measurements the hypervisor took more than {share} % of the time"
        );
    }
    let contended = outcome.samples.iter().filter(|sample| sample.is_contended()).count();
    if contended > 0 {
        let (all, share) = (outcome.samples.len(), CONTENDED_MAX * 100.0);
        let _ = writeln!(
            text,
            "VOID: in {contended} of {all} measurements something else had the core for more than {share} % of the time"
        );
    }
    let least_ns = outcome.least_distance_ns();
    let apart: Vec<u64> =
        outcome.samples.iter().filter(|one| one.is_apart(least_ns)).map(|one| one.distance_ns).collect();
    if let Some(most_ns) = apart.iter().max() {
        let (count, all) = (apart.len(), outcome.samples.len());
        let _ = writeln!(
            text,
            "VOID: in {count} of {all} measurements the two cores were up to {most_ns} ns apart, and {least_ns} ns at other times: the \
             hypervisor moves them"
        );
    }
    if outcome.cut {
        text += "PARTIAL: ended by the user before all rounds were done\n";
    }
    text
}

/// The loads, in the order of the first round.
pub(super) fn loads(outcome: &Outcome) -> Vec<Option<f64>> {
    let mut loads: Vec<Option<f64>> = Vec::new();
    for sample in &outcome.samples {
        if !loads.contains(&sample.load) {
            loads.push(sample.load);
        }
    }
    loads
}

/// What was measured at a load, and whose it is, in the order of the first round.
pub(super) fn at(outcome: &Outcome, load: Option<f64>) -> (Vec<&Sample>, Vec<&str>) {
    let samples: Vec<&Sample> = outcome.samples.iter().filter(|sample| sample.load == load).collect();
    let mut names: Vec<&str> = Vec::new();
    for sample in &samples {
        if !names.contains(&sample.element.as_str()) {
            names.push(&sample.element);
        }
    }
    (samples, names)
}

fn block(text: &mut String, outcome: &Outcome, load: Option<f64>, baseline: &str) {
    let (samples, names) = at(outcome, load);
    let title =
        load.map_or("saturation, 512 requests in flight".to_owned(), |rate| format!("{rate} requests/s, Poisson"));
    let _ = writeln!(text, "{title}");
    let _ = writeln!(
        text,
        "  {:<14} {:>11} {:>19}  {:>9} {:>15} {:>19}  {:>9} {:>9} {:>9} {:>9}  {:>9}  {:>7}",
        "element",
        "messages/s",
        "ratio (spread)",
        "CPU µs/m",
        "(spread)",
        "ratio (spread)",
        "p50",
        "p99",
        "added p50",
        "added p99",
        "syscalls",
        "lost"
    );
    for name in names {
        line(text, outcome, &samples, name, baseline);
    }
    text.push('\n');
}

fn line(text: &mut String, outcome: &Outcome, samples: &[&Sample], name: &str, baseline: &str) {
    let own = || of(samples, name);
    let direct = Spread::of(of(samples, without(name)).map(|sample| sample.messages_per_second)).median;
    let rate = Spread::of(own().map(|sample| sample.messages_per_second));
    let cpu = Spread::of(own().map(|sample| sample.cpu_us_per_message));
    let p50 = Spread::of(own().map(|sample| sample.round_trip_p50_ns as f64)).median as u64;
    let p99 = Spread::of(own().map(|sample| sample.round_trip_p99_ns as f64)).median as u64;
    let (lost, sent) = own().fold((0, 0), |(lost, sent), sample| (lost + sample.lost, sent + sample.sent));
    let wrong: u64 = own().map(|sample| sample.wrong).sum();
    let calls =
        outcome.system_calls.iter().find(|(element, _)| element == name).map(|(_, calls)| format!("{calls:.3}"));
    let saturated = own().all(|sample| sample.load.is_none());
    let latency = |ns: u64| if saturated || ns == 0 { "-".to_owned() } else { Short(ns).to_string() };
    let measured = name != without(name);
    let _ = write!(
        text,
        "  {name:<14} {:>11.0} {:>19}  {:>9} {:>15} {:>19}  {:>9} {:>9} {:>9} {:>9}  {:>9}  {:>7}",
        rate.median,
        in_brackets(ratio(samples, name, baseline, |sample| sample.messages_per_second)),
        if measured { format!("{:.2}", cpu.median) } else { "-".to_owned() },
        if measured { format!("({:.2}-{:.2})", cpu.least, cpu.most) } else { String::new() },
        if measured {
            in_brackets(ratio(samples, name, baseline, |sample| sample.cpu_us_per_message))
        } else {
            "-".to_owned()
        },
        latency(p50),
        latency(p99),
        added(samples, name, |sample| sample.round_trip_p50_ns),
        added(samples, name, |sample| sample.round_trip_p99_ns),
        calls.unwrap_or("-".to_owned()),
        share(lost, sent),
    );
    if wrong > 0 {
        let _ = write!(text, "  {wrong} wrong responses");
    }
    if saturated && measured && rate.median > direct * GENERATOR_LIMITED && direct > 0.0 {
        text.push_str("  generator-limited");
    }
    text.push('\n');
}

/// The measurement without an element that has this one's transport towards callers.
pub(super) fn without(name: &str) -> &'static str {
    match super::element::transports(name).1 {
        Transport::Tcp | Transport::Ws => "direct-tcp",
        Transport::Tls | Transport::Wss => "direct-tls",
        Transport::Udp => "direct",
    }
}

pub(super) fn of<'a>(samples: &'a [&Sample], name: &str) -> impl Iterator<Item = &'a Sample> {
    samples.iter().copied().filter(move |sample| sample.element == name)
}

/// Median and spread of the ratios to the baseline, each within its round; nothing where there is no baseline.
pub(super) fn ratio(
    samples: &[&Sample],
    name: &str,
    baseline: &str,
    figure: impl Fn(&Sample) -> f64,
) -> Option<Spread> {
    let ratios: Vec<f64> = of(samples, name)
        .filter_map(|sample| {
            let base = of(samples, baseline).find(|base| base.round == sample.round)?;
            (figure(base) > 0.0).then(|| figure(sample) / figure(base))
        })
        .collect();
    (!ratios.is_empty()).then(|| Spread::of(ratios))
}

fn in_brackets(spread: Option<Spread>) -> String {
    spread.map_or("-".to_owned(), |Spread { median, least, most }| format!("{median:.2} ({least:.2}-{most:.2})"))
}

/// Median of what an element added to the latency without an element, each within its round; `-` where that is not known.
fn added(samples: &[&Sample], name: &str, figure: impl Fn(&Sample) -> u64) -> String {
    let differences = of(samples, name).filter_map(|sample| {
        let direct = of(samples, without(name)).find(|direct| direct.round == sample.round && direct.load.is_some())?;
        // Where nothing came through there was no latency.
        (figure(sample) > 0 && figure(direct) > 0).then(|| figure(sample) as f64 - figure(direct) as f64)
    });
    let differences: Vec<f64> = differences.collect();
    if name == without(name) || differences.is_empty() {
        return "-".to_owned();
    }
    match Spread::of(differences).median {
        less if less < 0.0 => format!("-{}", Short(-less as u64)),
        more => Short(more as u64).to_string(),
    }
}

pub(super) fn share(lost: u64, sent: u64) -> String {
    let percent = lost as f64 * 100.0 / sent.max(1) as f64;
    if percent < 0.01 { lost.to_string() } else { format!("{percent:.2} %") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(element: &str, round: usize, cpu: f64) -> Sample {
        Sample {
            element: element.to_owned(),
            round,
            load: Some(5000.0),
            messages_per_second: 10_000.0,
            cpu_us_per_message: cpu,
            round_trip_p50_ns: 41_000,
            round_trip_p99_ns: 90_000,
            lateness_p99_ns: 1000,
            sent: 1000,
            lost: 0,
            wrong: 0,
            steal: 0.0,
            contended: 0.0,
            distance_ns: 100,
        }
    }

    #[test]
    fn a_median_is_the_middle_or_the_mean_of_two() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, least: 1.0, most: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0]).median, 2.5);
        assert_eq!(Spread::of([]), Spread::default());
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // The machine was half as fast in the second round; the ratio does not see it.
        let samples = vec![
            sample("relay", 0, 5.0),
            sample("viahop", 0, 10.0),
            sample("relay", 1, 10.0),
            sample("viahop", 1, 20.0),
        ];
        let outcome = Outcome { samples, ..Outcome::default() };
        let text = render(&outcome, "relay");
        let line = text.lines().find(|line| line.contains("viahop")).unwrap();
        assert!(
            line.contains("15.00") && line.contains("(10.00-20.00)") && line.contains("2.00 (2.00-2.00)"),
            "{text}"
        );
    }

    #[test]
    fn added_latency_is_that_of_the_same_round() {
        let with =
            |element, round, p50_us: u64| Sample { round_trip_p50_ns: p50_us * 1000, ..sample(element, round, 1.0) };
        let samples = [
            with("direct", 0, 20),
            with("viahop", 0, 50),
            with("direct", 1, 40),
            with("viahop", 1, 70),
            with("viahop", 2, 999),
            with("direct", 3, 0),
            with("viahop", 3, 999),
        ];
        let samples: Vec<&Sample> = samples.iter().collect();
        assert_eq!(added(&samples, "viahop", |sample| sample.round_trip_p50_ns), "30µs");
        assert_eq!(added(&samples, "direct", |sample| sample.round_trip_p50_ns), "-");
    }

    #[test]
    fn cores_that_were_moved_are_said() {
        let samples = vec![sample("relay", 0, 5.0), Sample { distance_ns: 510, ..sample("viahop", 0, 5.0) }];
        let text = render(&Outcome { samples, ..Outcome::default() }, "relay");
        assert!(text.contains("in 1 of 2 measurements the two cores were up to 510 ns apart, and 100 ns at"), "{text}");
    }

    #[test]
    fn stolen_time_and_missing_elements_are_said() {
        let stolen = Sample { steal: 0.1, ..sample("relay", 0, 5.0) };
        let missing = vec![("nginx".to_owned(), "not installed".to_owned())];
        let repeated = vec![stolen.clone()];
        let outcome = Outcome { samples: vec![stolen], repeated, missing, cut: true, ..Outcome::default() };
        let text = render(&outcome, "relay");
        assert!(text.contains("1 of 2 measurements were void, and made again"), "{text}");
        assert!(!text.contains("apart"), "{text}");
        assert!(text.contains("VOID") && text.contains("nginx: not installed") && text.contains("PARTIAL"), "{text}");
    }
}
