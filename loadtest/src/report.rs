//! A run as text, for people: what was asked, what came of it, what was wrong.

use crate::clock::SECOND_NS;
use crate::kpi::Kpis;
use crate::latency::{Latencies, Short};
use crate::log::{Flow, Log};
use crate::usage::Usage;
use crate::{uac, uas};
use std::fmt::Write;

/// Messages that are shown with what was wrong about them; the log has more.
const SHOWN_MAX: usize = 5;

/// The whole report.
pub fn render(log: &Log) -> String {
    let mut text = String::new();
    if let Some(calls) = &log.calls {
        put_calls(&mut text, calls, log.rate());
    }
    if let Some(callees) = &log.callees {
        put_callees(&mut text, callees);
    }
    put_flows(&mut text, &log.flows());
    put_generator(&mut text, log);
    for mark in &log.marks {
        let _ = writeln!(text, "{mark}");
    }
    text
}

fn put_calls(text: &mut String, report: &uac::Report, rate: f64) {
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
        "  {:<28} {:>10} {:>10} {:>8}  {:>8} {:>8} {:>8} {:>8} {:>8}",
        "request", "sent", "answered", "again", "p50", "p90", "p99", "p99.9", "max"
    );
    for line in &report.lines {
        let name = format!("{} {}", line.scenario, line.step);
        let _ = write!(text, "  {name:<28} {:>10} {:>10} {:>8} ", line.sent, line.answered, line.retransmissions);
        put_quantiles(text, &line.latency);
        for (reason, count) in &line.failures {
            let _ = writeln!(text, "    failed: {count} × {reason}");
        }
    }
    for (name, latencies) in [("session request delay (SRD)", &report.ringing), ("own lateness", &report.lateness)] {
        if latencies.count() > 0 {
            let _ = write!(text, "  {name:<28} {:>10} {:>10} {:>8} ", latencies.count(), "", "");
            put_quantiles(text, latencies);
        }
    }
    put_kpis(text, &Kpis::of(report));
    let _ = writeln!(
        text,
        "callers checked: {} wrong, {} altered, {} unexpected, {} strays, {} malformed; {} copies, {} late",
        counts.wrong, counts.altered, counts.unexpected, counts.strays, counts.malformed, counts.copies, counts.late
    );
    for wrong in report.wrongs.iter().take(SHOWN_MAX) {
        let _ = writeln!(text, "  {}: {} in {}", wrong.what, wrong.row, wrong.call_id);
    }
    let refused = if report.hindrance().is_some() { "not connected" } else { "refused: nobody listens there" };
    put_if_any(
        text,
        "network:",
        &[
            (counts.retransmissions, "retransmissions"),
            (counts.refused, refused),
            (counts.connections_lost, "connections lost"),
            (counts.reconnects, "attempts to connect again"),
            (counts.unsent, "not taken by the kernel"),
            (counts.overflowed, "dropped by our own full receive buffers"),
        ],
    );
    let done = counts.on_purpose;
    put_if_any(
        text,
        "on purpose:",
        &[(done.lost, "lost"), (done.duplicated, "sent twice"), (done.reordered, "kept back")],
    );
}

fn put_kpis(text: &mut String, kpis: &Kpis) {
    let shares = [("SER", kpis.ser), ("SEER", kpis.seer), ("ISA", kpis.isa), ("IRA", kpis.ira)];
    let shares: Vec<String> =
        shares.iter().filter_map(|(name, share)| Some(format!("{name} {:.3} %", (*share)?))).collect();
    if !shares.is_empty() {
        let _ = writeln!(text, "RFC 6076: {}", shares.join(", "));
    }
}

fn put_quantiles(text: &mut String, latencies: &Latencies) {
    for quantile in [0.5, 0.9, 0.99, 0.999] {
        let _ = write!(text, " {:>8}", latencies.short(quantile));
    }
    let _ = writeln!(text, " {:>8}", latencies.short(1.0));
}

fn put_callees(text: &mut String, report: &uas::Report) {
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
        "callees checked: {} at the wrong backend, {} moved, {} altered, {} out of order, {} malformed; \
         {} of calls whose backend died",
        total.violations, total.moved, total.altered, total.reordered, total.malformed, total.orphans
    );
    for violation in report.violations.iter().take(SHOWN_MAX) {
        let _ = writeln!(
            text,
            "  {} of {} belongs to backend {} and reached backend {}",
            violation.method, violation.call_id, violation.owner, violation.reached
        );
    }
    for moved in report.moves.iter().take(SHOWN_MAX) {
        let _ = writeln!(text, "  {} of {} came from another address: {}", moved.method, moved.call_id, moved.from);
    }
    put_if_any(
        text,
        "  also:",
        &[
            (total.challenged, "challenged"),
            (total.forbidden, "with the wrong password"),
            (total.refused, "calls refused for want of room"),
            (total.abandoned, "calls that fell silent"),
            (total.responses, "responses to nothing"),
            (total.overflowed, "dropped by our own full receive buffers"),
            (total.connections, "connections taken"),
            (total.unsent, "responses whose connection was gone"),
        ],
    );
    if report.backends.len() > 1 {
        for (index, backend) in report.backends.iter().enumerate() {
            let share = backend.counts.calls as f64 * 100.0 / total.calls.max(1) as f64;
            let _ = writeln!(
                text,
                "  backend {index}: {} calls ({share:.2} %), {} requests{}",
                backend.counts.calls,
                backend.counts.requests,
                if backend.alive { "" } else { ", dead at the end" }
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

/// Both sides, or the one there is.
fn put_flows(text: &mut String, flows: &[Flow]) {
    if flows.is_empty() {
        return;
    }
    let _ = writeln!(text, "  {:<16} {:<18} {:>10} {:>10}", "message", "", "sent", "arrived");
    for flow in flows {
        let number = |count: Option<u64>| count.map_or("-".to_owned(), |count| count.to_string());
        let way = if flow.there { "caller -> callee" } else { "caller <- callee" };
        let (sent, arrived) = (number(flow.sent), number(flow.arrived));
        let _ = writeln!(text, "  {:<16} {way:<18} {sent:>10} {arrived:>10}{}", flow.kind, gap(flow));
    }
}

/// What is missing between the two sides, or too much, in words.
pub fn gap(flow: &Flow) -> String {
    match flow.missing() {
        Some(0) if flow.to_the_element > 0 => format!("  {} to the element itself", flow.to_the_element),
        None | Some(0) => String::new(),
        Some(missing @ 1..) => format!("  {missing} missing"),
        Some(more) => format!("  {} made or copied on the way", -more),
    }
}

fn put_generator(text: &mut String, log: &Log) {
    let share = |usage: &Usage, lives_ns: u64, calls: u64| {
        let percent = |ns: u64| ns as f64 * 100.0 / lives_ns.max(1) as f64;
        let per_call =
            usage.on_cpu_ns.checked_div(calls).map_or("-".to_owned(), |per_call| Short(per_call).to_string());
        format!(
            "{:.0} % of a core busy, {:.1} % waiting for one, {per_call} per call",
            percent(usage.on_cpu_ns),
            percent(usage.waiting_ns),
        )
    };
    if let Some(calls) = log.calls.as_ref().filter(|calls| calls.lives_ns > 0) {
        let _ = writeln!(text, "callers' threads: {}", share(&calls.usage, calls.lives_ns, calls.counts.placed));
    }
    if let Some(callees) = log.callees.as_ref().filter(|callees| callees.lives_ns > 0) {
        let total = callees.total();
        let _ = writeln!(text, "callees' threads: {}", share(&callees.usage, callees.lives_ns, total.calls));
    }
    if log.conditions.memory_kib > 0 {
        let (mib, steal) = (log.conditions.memory_kib as f64 / 1024.0, log.conditions.steal * 100.0);
        let seconds = log.seconds.iter().map(|second| second.length_ns).sum::<u64>() as f64 / SECOND_NS as f64;
        let _ =
            writeln!(text, "generator: {mib:.0} MiB at most, {steal:.2} % stolen by the hypervisor, {seconds:.1} s");
    }
}

/// A line with those that are not zero, if there are any.
fn put_if_any(text: &mut String, name: &str, counts: &[(u64, &str)]) {
    let counts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    if !counts.is_empty() {
        let _ = writeln!(text, "{name} {}", counts.join(", "));
    }
}
