//! What a run leaves behind: one JSON file with all counts and whole histograms, so that reports can be made from it later
//! and the logs of several machines add up exactly.

use crate::clock::{self, SECOND_NS};
use crate::latency::{Latencies, Short};
use crate::{uac, uas, usage};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// Written into every log; a file with another mark is not read.
pub const FORMAT: &str = "viahop-load log 1";

/// A run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// [`FORMAT`].
    pub format: String,
    /// When it began, UTC.
    pub began: String,
    /// The machine, or the machines.
    pub machine: String,
    /// The command line, or one per machine.
    pub commands: Vec<String>,
    /// The calling side, if this run had one.
    pub calls: Option<uac::Report>,
    /// The called side, if this run had one.
    pub callees: Option<uas::Report>,
    /// How it went, second by second.
    pub seconds: Vec<Second>,
    /// What keeps this from being a whole and valid result: `VOID: …`, `PARTIAL: …`.
    pub marks: Vec<String>,
}

/// One second of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Second {
    /// How long it really was, in nanoseconds.
    pub length_ns: u64,
    /// Calls placed in it.
    pub placed: u64,
    /// Calls completed.
    pub completed: u64,
    /// Calls failed.
    pub failed: u64,
    /// Retransmissions.
    pub retransmissions: u64,
    /// Calls open at its end.
    pub open: u64,
    /// Latencies of what was answered in it, as [`Latencies::steps`].
    pub latency: Vec<(u64, u64)>,
}

impl Second {
    /// The latencies as a distribution.
    pub fn latencies(&self) -> Latencies {
        let mut latencies = Latencies::default();
        self.latency.iter().for_each(|(ns, count)| latencies.record_step(*ns, *count));
        latencies
    }

    fn add(&mut self, other: &Second) {
        let mut both = self.latencies();
        both.add(&other.latencies());
        *self = Second {
            length_ns: self.length_ns.max(other.length_ns),
            placed: self.placed + other.placed,
            completed: self.completed + other.completed,
            failed: self.failed + other.failed,
            retransmissions: self.retransmissions + other.retransmissions,
            open: self.open + other.open,
            latency: both.steps(),
        };
    }
}

impl Log {
    /// An empty log of a run that begins at this moment.
    pub fn new() -> Log {
        Log {
            format: FORMAT.to_owned(),
            began: clock::utc(clock::unix_seconds()),
            machine: usage::machine(),
            commands: vec![std::env::args().collect::<Vec<_>>().join(" ")],
            calls: None,
            callees: None,
            seconds: Vec::new(),
            marks: Vec::new(),
        }
    }

    /// Reads a file's text.
    pub fn read(text: &str) -> Result<Log, String> {
        let log: Log = serde_json::from_str(text).map_err(|error| format!("it is no log of this program: {error}"))?;
        if log.format == FORMAT {
            Ok(log)
        } else {
            Err(format!("its format is `{}`, this program reads `{FORMAT}`", log.format))
        }
    }

    /// As a file's text.
    pub fn write(&self) -> String {
        serde_json::to_string(self).expect("names and numbers are JSON")
    }

    /// Adds the log of another machine. Exact: the histograms have the same steps. Seconds are put beside each other from
    /// the start of each run.
    pub fn add(&mut self, other: &Log) {
        self.began = self.began.clone().min(other.began.clone());
        if !self.machine.contains(&other.machine) {
            self.machine = format!("{} + {}", self.machine, other.machine);
        }
        self.commands.extend(other.commands.iter().cloned());
        match (&mut self.calls, &other.calls) {
            (Some(own), Some(other)) => own.add(other),
            (own @ None, other) => *own = other.clone(),
            (Some(_), None) => {}
        }
        match (&mut self.callees, &other.callees) {
            (Some(own), Some(other)) => own.add(other),
            (own @ None, other) => *own = other.clone(),
            (Some(_), None) => {}
        }
        for (index, second) in other.seconds.iter().enumerate() {
            match self.seconds.get_mut(index) {
                Some(own) => own.add(second),
                None => self.seconds.push(second.clone()),
            }
        }
        self.marks.extend(other.marks.iter().cloned());
    }

    /// Calls placed per second.
    pub fn rate(&self) -> f64 {
        let Some(calls) = &self.calls else { return 0.0 };
        calls.counts.placed as f64 * SECOND_NS as f64 / calls.placing_ns.max(1) as f64
    }

    /// The report for people.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Some(calls) = &self.calls {
            render_calls(&mut text, calls, self.rate());
        }
        if let Some(callees) = &self.callees {
            render_callees(&mut text, callees);
        }
        for mark in &self.marks {
            let _ = writeln!(text, "{mark}");
        }
        text
    }
}

impl Default for Log {
    fn default() -> Log {
        Log::new()
    }
}

fn render_calls(text: &mut String, report: &uac::Report, rate: f64) {
    let counts = report.counts;
    let _ = writeln!(
        text,
        "calls: placed {} ({rate:.1}/s), completed {}, failed {} ({:.3} %), cut {}; at most {} open",
        counts.placed,
        counts.completed,
        counts.failed,
        counts.failed as f64 * 100.0 / counts.placed.max(1) as f64,
        counts.cut,
        report.open_max
    );
    let _ = writeln!(
        text,
        "  {:<22} {:>10} {:>10} {:>8}  {:>8} {:>8} {:>8} {:>8} {:>8}",
        "request", "sent", "answered", "again", "p50", "p90", "p99", "p99.9", "max"
    );
    for line in &report.lines {
        let name = format!("{} {}", line.scenario, line.step);
        let _ = write!(text, "  {name:<22} {:>10} {:>10} {:>8} ", line.sent, line.answered, line.retransmissions);
        put_quantiles(text, &line.latency);
        for (reason, count) in &line.failures {
            let _ = writeln!(text, "    failed: {count} × {reason}");
        }
    }
    for (name, latencies) in [("session request delay", &report.ringing), ("own lateness", &report.lateness)] {
        if latencies.count() > 0 {
            let _ = write!(text, "  {name:<22} {:>10} {:>10} {:>8} ", latencies.count(), "", "");
            put_quantiles(text, latencies);
        }
    }
    let _ = writeln!(
        text,
        "messages: {} requests and {} retransmissions sent, {} responses and {} requests received",
        counts.requests, counts.retransmissions, counts.responses, counts.requests_received
    );
    let _ = writeln!(
        text,
        "checked: {} wrong, {} altered; {} copies, {} late, {} strays, {} malformed; {} refused (ICMP), {} unsent",
        counts.wrong,
        counts.altered,
        counts.copies,
        counts.late,
        counts.strays,
        counts.malformed,
        counts.refused,
        counts.unsent
    );
    for wrong in report.wrongs.iter().take(5) {
        let _ = writeln!(text, "  wrong {}: {} in {}", wrong.what, wrong.row, wrong.call_id);
    }
}

fn put_quantiles(text: &mut String, latencies: &Latencies) {
    for quantile in [0.5, 0.9, 0.99, 0.999] {
        let _ = write!(text, " {:>8}", Short(latencies.at(quantile)));
    }
    let _ = writeln!(text, " {:>8}", Short(latencies.max()));
}

fn render_callees(text: &mut String, report: &uas::Report) {
    let total = report.total();
    let _ = writeln!(
        text,
        "callees: {} calls on {} backends, {} requests; {} copies, {} resent, {} unacknowledged, {} unknown (481)",
        total.calls,
        report.backends.len(),
        total.requests,
        total.copies,
        total.resent,
        total.unacknowledged,
        total.unknown
    );
    let _ = writeln!(
        text,
        "checked: {} at the wrong backend, {} of calls whose backend died, {} altered, {} out of order, {} malformed",
        total.violations, total.orphans, total.altered, total.reordered, total.malformed
    );
    for violation in report.violations.iter().take(5) {
        let _ = writeln!(
            text,
            "  {} of {} belongs to backend {} and reached backend {}",
            violation.method, violation.call_id, violation.owner, violation.reached
        );
    }
    if report.backends.len() > 1 {
        for (index, backend) in report.backends.iter().enumerate() {
            let share = backend.counts.calls as f64 * 100.0 / total.calls.max(1) as f64;
            let _ = writeln!(
                text,
                "  backend {index}: {} calls ({share:.2} %), {} requests",
                backend.counts.calls, backend.counts.requests
            );
        }
    }
    if report.forgotten > 0 {
        let _ = writeln!(
            text,
            "  {} calls were forgotten early, so what happened to them later was not checked; --remember raises it",
            report.forgotten
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(placed: u64, latency_ns: u64) -> Log {
        let mut latency = Latencies::default();
        latency.record(latency_ns);
        let line =
            uac::Line { scenario: "call".into(), step: "BYE".into(), sent: placed, latency, ..uac::Line::default() };
        let counts = uac::Counts { placed, completed: placed, ..uac::Counts::default() };
        let calls = uac::Report { counts, lines: vec![line], placing_ns: SECOND_NS, ..uac::Report::default() };
        let second = Second { placed, latency: vec![(latency_ns, 1)], ..Second::default() };
        Log { calls: Some(calls), seconds: vec![second], ..Log::new() }
    }

    #[test]
    fn a_log_survives_its_file() {
        let before = log(100, 1_000_000);
        let after = Log::read(&before.write()).unwrap();
        assert_eq!(after.write(), before.write());
        assert_eq!(after.render(), before.render());
    }

    #[test]
    fn logs_of_two_machines_add_up_exactly() {
        let mut both = log(100, 1_000_000);
        both.add(&log(50, 64_000_000));
        let calls = both.calls.as_ref().unwrap();
        assert_eq!((calls.counts.placed, calls.lines.len(), calls.lines[0].sent), (150, 1, 150));
        let mut expected = Latencies::default();
        expected.record(1_000_000);
        expected.record(64_000_000);
        assert_eq!(calls.lines[0].latency.steps(), expected.steps());
        assert_eq!((both.seconds.len(), both.seconds[0].placed), (1, 150));
        assert_eq!(both.seconds[0].latencies().count(), 2);
        assert_eq!(both.rate(), 150.0);
    }

    #[test]
    fn what_is_no_log_is_refused() {
        assert!(Log::read("{}").is_err());
        let other = log(1, 1).write().replace(FORMAT, "viahop-load log 7");
        assert!(Log::read(&other).unwrap_err().contains("log 7"));
    }
}
