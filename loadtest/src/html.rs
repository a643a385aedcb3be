//! A report as one page: no script, no font, no picture from elsewhere. The plots are SVG, drawn here.

use crate::clock::{MS_NS, SECOND_NS};
use crate::kpi::Kpis;
use crate::latency::{Latencies, Short};
use crate::log::{Log, Second};
use crate::report::gap;
use crate::svg::{COLOURS, escape, round_up};
use crate::uas;
use std::fmt::Write;

/// Inner width and height of a plot, in SVG units, and the room around it for what is written on its axes.
const WIDTH: f64 = 930.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 70.0;
const BELOW: f64 = 46.0;
const ABOVE: f64 = 14.0;

/// Messages that were wrong and are shown.
const WRONGS_SHOWN: usize = 64;

/// Points of one line. A run of more seconds is thinned: each point is then the highest of its seconds.
const POINTS_MAX: usize = 800;

/// The page.
pub fn render(log: &Log) -> String {
    let mut page = format!("{HEAD}{COLOURS}{STYLE}");
    let _ = write!(page, "<h1>viahop-load</h1><p>{} · {}</p>", escape(&log.began), escape(&log.machine));
    for command in &log.commands {
        let _ = write!(page, "<pre class=command>{}</pre>", escape(command));
    }
    marks(&mut page, log);
    cards(&mut page, log);
    if !log.seconds.is_empty() {
        page.push_str("<h2>Calls per second</h2>");
        rates(&mut page, &log.seconds);
    }
    if let Some(calls) = &log.calls {
        page.push_str("<h2>Latency over time</h2><p>Requests answered in each second, from the time they were due; and the most that a call was placed late, which is part of it.</p>");
        latencies(&mut page, &log.seconds);
        page.push_str("<h2>Latency by percentile</h2><p>The further right, the rarer: at p99 one request in a hundred took longer.</p>");
        percentiles(&mut page, &calls.latency(), &calls.lateness);
        page.push_str("<h2>Requests</h2><p>From the time each was due to its final response.</p>");
        requests(&mut page, log);
    }
    messages(&mut page, log);
    if let Some(callees) = log.callees.as_ref().filter(|callees| callees.backends.len() > 1) {
        backends(&mut page, callees);
    }
    wrongs(&mut page, log);
    let _ = write!(
        page,
        "<h2>As text</h2><details><summary>The report as the program printed it</summary><pre>{}</pre></details></main>",
        escape(&crate::report::render(log))
    );
    page
}

const HEAD: &str = "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>viahop-load</title><style>";

const STYLE: &str = "
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,sans-serif}main{max-width:1040px;margin:0 auto;padding:1.6rem 1.2rem}
h1{margin:0;font-size:1.5rem}h2{margin:2rem 0 .3rem;font-size:1.1rem}p{margin:.2rem 0;color:var(--dim)}
pre{overflow-x:auto;font:12.5px/1.5 ui-monospace,monospace;border:1px solid var(--line);border-radius:6px;padding:.7rem}.command{border:0;padding:0;margin:.4rem 0;color:var(--dim);white-space:pre-wrap}
.mark{border-left:4px solid;padding:.25rem .7rem;margin:.4rem 0;background:var(--soft)}.void{color:var(--bad);font-weight:600}.partial,.noisy{color:var(--warn)}.valid{color:var(--good)}
.cards{display:grid;grid-template-columns:repeat(6,1fr);gap:.6rem;margin:1rem 0}@media(max-width:800px){.cards{grid-template-columns:repeat(3,1fr)}}@media(max-width:480px){.cards{grid-template-columns:repeat(2,1fr)}}
.cards div{border:1px solid var(--line);border-radius:6px;padding:.5rem .7rem}.cards b{display:block;font-size:1.3rem;font-variant-numeric:tabular-nums;white-space:nowrap}.cards span{color:var(--dim);font-size:.85rem}
.bad b,td.bad{color:var(--bad)}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.93rem}td,th{padding:.25rem .5rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}th{color:var(--dim);font-weight:500}td:first-child,th:first-child,.text{text-align:left!important}td.wrap{white-space:normal}
.none{color:var(--dim)}.bar{background:var(--a);height:.7rem;border-radius:2px;min-width:1px}.share{width:40%}.mono{font:12.5px ui-monospace,monospace}
svg{width:100%;min-width:48rem;height:auto;display:block}svg text{fill:var(--dim);font-size:11px}.grid{stroke:var(--line)}.a,.b,.c,.d{fill:none;stroke-width:1.8}.a{stroke:var(--a)}.b{stroke:var(--b)}.c{stroke:var(--c)}.d{stroke:var(--d);stroke-dasharray:4 3}
svg .ka{fill:var(--a)}svg .kb{fill:var(--b)}svg .kc{fill:var(--c)}svg .kd{fill:var(--d)}.scroll{overflow-x:auto}summary{cursor:pointer;color:var(--dim)}</style><main>";

/// Whether the result counts.
fn marks(page: &mut String, log: &Log) {
    for mark in &log.marks {
        let class = mark.split(':').next().unwrap_or_default().to_ascii_lowercase();
        let _ = write!(page, "<p class='mark {}'>{}</p>", escape(&class), escape(mark));
    }
    if log.marks.is_empty() {
        page.push_str(
            "<p class='mark valid'>VALID: every call was placed in time, and the generator lost nothing of its own</p>",
        );
    }
}

fn cards(page: &mut String, log: &Log) {
    let mut cards: Vec<(&str, String, bool)> = Vec::new();
    let mut altered = None;
    if let Some(calls) = &log.calls {
        let (counts, latency) = (calls.counts, calls.latency());
        let share = counts.failed as f64 * 100.0 / counts.placed.max(1) as f64;
        cards.push(("calls per second", format!("{:.1}", log.rate()), false));
        cards.push(("calls placed", counts.placed.to_string(), false));
        cards.push((
            "calls failed",
            if counts.failed > 0 { format!("{share:.2} %") } else { "0".to_owned() },
            counts.failed > 0,
        ));
        cards.push(("latency p50", latency.short(0.5), false));
        cards.push(("latency p99", latency.short(0.99), false));
        cards.push(("own lateness p99.9", calls.lateness.short(0.999), false));
        if let Some(ser) = Kpis::of(calls).ser {
            cards.push(("established (SER)", format!("{ser:.2} %"), false));
        }
        cards.push(("retransmissions", counts.retransmissions.to_string(), counts.retransmissions > 0));
        let wrong = counts.wrong + counts.strays + counts.unexpected + counts.malformed;
        cards.push(("wrong or unexpected", wrong.to_string(), wrong > 0));
        altered = Some(counts.altered);
    }
    if let Some(callees) = &log.callees {
        let total = callees.total();
        altered = Some(altered.unwrap_or(0) + total.altered);
        if log.calls.is_none() {
            cards.push(("calls taken", total.calls.to_string(), false));
            cards.push(("requests", total.requests.to_string(), false));
        }
        cards.push(("at the wrong backend", total.violations.to_string(), total.violations > 0));
        cards.push(("moved to another core", total.moved.to_string(), total.moved > 0));
    }
    if let Some(altered) = altered {
        cards.push(("altered on the way", altered.to_string(), altered > 0));
    }
    page.push_str("<div class=cards>");
    for (name, figure, bad) in cards {
        let class = if bad { " class=bad" } else { "" };
        let _ = write!(page, "<div{class}><b>{figure}</b><span>{name}</span></div>");
    }
    page.push_str("</div>");
}

fn requests(page: &mut String, log: &Log) {
    page.push_str("<div class=scroll><table><tr><th>request<th>sent<th>answered<th>again<th>p50<th>p90<th>p99<th>p99.9<th>max<th class=text>failures");
    for line in log.calls.iter().flat_map(|calls| &calls.lines) {
        let _ = write!(
            page,
            "<tr><td>{} {}<td>{}<td>{}<td>{}",
            escape(&line.scenario),
            escape(&line.step),
            line.sent,
            line.answered,
            line.retransmissions
        );
        for quantile in [0.5, 0.9, 0.99, 0.999, 1.0] {
            let _ = write!(page, "<td>{}", line.latency.short(quantile));
        }
        let failures: Vec<String> = line.failures.iter().map(|(reason, count)| format!("{count} × {reason}")).collect();
        let class = if failures.is_empty() { "text" } else { "'text bad wrap'" };
        let _ = write!(page, "<td class={class}>{}", escape(&failures.join(", ")));
    }
    page.push_str("</table></div>");
}

fn messages(page: &mut String, log: &Log) {
    let flows = log.flows();
    if flows.is_empty() {
        return;
    }
    page.push_str("<h2>Messages</h2><p>Copies and retransmissions included. What one side sent and the other never saw was lost on the way, or the element kept it and answered by itself.</p>");
    page.push_str("<div class=scroll><table><tr><th>message<th class=text>way<th>sent<th>arrived<th class=text>gap");
    for flow in &flows {
        let number =
            |count: Option<u64>| count.map_or("<span class=none>–</span>".to_owned(), |count| count.to_string());
        let way = if flow.there { "caller → callee" } else { "caller ← callee" };
        let (sent, arrived) = (number(flow.sent), number(flow.arrived));
        let class = if flow.missing().is_some_and(|missing| missing > 0) { "'text bad'" } else { "text" };
        let _ = write!(
            page,
            "<tr><td>{}<td class=text>{way}<td>{sent}<td>{arrived}<td class={class}>{}",
            flow.kind,
            escape(gap(flow).trim_start())
        );
    }
    page.push_str("</table></div>");
}

fn backends(page: &mut String, callees: &uas::Report) {
    page.push_str("<h2>Backends</h2><div class=scroll><table><tr><th>backend<th>calls<th>share<th class='text share'><th>requests<th>wrong<th class=text>at the end");
    let most = callees.backends.iter().map(|backend| backend.counts.calls).max().unwrap_or(0).max(1);
    let all = callees.total().calls.max(1);
    for (index, backend) in callees.backends.iter().enumerate() {
        let counts = &backend.counts;
        let _ = write!(
            page,
            "<tr><td>{index}<td>{}<td>{:.2} %<td><div class=bar style='width:{:.1}%'></div><td>{}<td>{}<td class=text>{}",
            counts.calls,
            counts.calls as f64 * 100.0 / all as f64,
            counts.calls as f64 * 100.0 / most as f64,
            counts.requests,
            counts.violations,
            if backend.alive { "alive" } else { "dead" }
        );
    }
    page.push_str("</table></div>");
}

/// What was found out about single messages.
fn wrongs(page: &mut String, log: &Log) {
    let mut rows: Vec<[String; 3]> = Vec::new();
    for wrong in log.calls.iter().flat_map(|calls| &calls.wrongs) {
        rows.push([wrong.what.to_string(), wrong.row.to_string(), wrong.call_id.to_string()]);
    }
    for violation in log.callees.iter().flat_map(|callees| &callees.violations) {
        let what =
            format!("{} for backend {} reached backend {}", violation.method, violation.owner, violation.reached);
        rows.push(["wrong backend".to_owned(), what, violation.call_id.to_string()]);
    }
    for moved in log.callees.iter().flat_map(|callees| &callees.moves) {
        rows.push([
            "moved".to_owned(),
            format!("{} came from {}", moved.method, moved.from),
            moved.call_id.to_string(),
        ]);
    }
    if rows.is_empty() {
        return;
    }
    page.push_str("<h2>Messages that were wrong</h2><p>The first of each kind; all are counted above.</p><div class=scroll><table><tr><th>what<th class=text>where<th class=text>Call-ID");
    for [what, row, call_id] in rows.iter().take(WRONGS_SHOWN) {
        let _ = write!(
            page,
            "<tr><td>{}<td class='text mono'>{}<td class='text mono'>{}",
            escape(what),
            escape(row),
            escape(call_id)
        );
    }
    page.push_str("</table></div>");
}

/// A line of a plot: its class, its name and its values.
struct Curve {
    class: char,
    name: &'static str,
    points: Vec<(f64, f64)>,
}

fn rates(page: &mut String, seconds: &[Second]) {
    let per_second = |count: u64, second: &Second| count as f64 * SECOND_NS as f64 / second.length_ns.max(1) as f64;
    // A last piece of a second says nothing about a rate.
    let whole: Vec<&Second> = seconds.iter().filter(|second| second.length_ns > SECOND_NS / 2).collect();
    let curve = |class, name, figure: &dyn Fn(&Second) -> u64| {
        let values = whole.iter().map(|second| per_second(figure(second), second));
        Curve { class, name, points: thinned(values.collect()) }
    };
    let curves = [
        curve('a', "placed", &|second| second.placed),
        curve('c', "completed", &|second| second.completed),
        curve('b', "failed", &|second| second.failed),
    ];
    plot(page, "Calls per second", &curves, Scale::Linear, trimmed, |at| format!("{at:.0} s"));
}

fn latencies(page: &mut String, seconds: &[Second]) {
    let curve = |class, name, quantile| {
        let values = seconds.iter().map(|second| second.latencies().at(quantile) as f64 / MS_NS as f64);
        Curve { class, name, points: thinned(values.collect()) }
    };
    let late = seconds.iter().map(|second| second.lateness_max_ns as f64 / MS_NS as f64);
    let late = Curve { class: 'd', name: "own lateness, max", points: thinned(late.collect()) };
    let curves = [curve('a', "p50", 0.5), curve('c', "p99", 0.99), curve('b', "max", 1.0), late];
    plot(page, "Latency over time", &curves, Scale::Logarithmic, milliseconds, |at| format!("{at:.0} s"));
}

fn percentiles(page: &mut String, latency: &Latencies, lateness: &Latencies) {
    // The further right, the rarer: at 1 one in ten is slower, at 3 one in a thousand.
    let curve = |class, name, latencies: &Latencies| {
        // Not the very least, which may be far from all others, and nothing that fewer than one latency stands for.
        let inside =
            |quantile: f64| quantile > 0.0 && quantile < 1.0 && (1.0 - quantile) * latencies.count() as f64 >= 1.0;
        let points = latencies.spectrum().into_iter().filter(|(quantile, ..)| inside(*quantile));
        let points = points.map(|(quantile, ns, _)| (-(1.0 - quantile).log10(), ns as f64 / MS_NS as f64));
        Curve { class, name, points: points.collect() }
    };
    let curves = [curve('a', "latency", latency), curve('d', "own lateness", lateness)];
    plot(page, "Latency by percentile", &curves, Scale::Logarithmic, milliseconds, |nines| match nines {
        nines if nines < 0.5 => "p0".to_owned(),
        nines => format!("p{}", trimmed(100.0 - 100.0 / 10f64.powf(nines.round()))),
    });
}

/// 99.9 and not 99.90000001.
fn trimmed(value: f64) -> String {
    format!("{value:.6}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn milliseconds(value: f64) -> String {
    Short((value * MS_NS as f64) as u64).to_string()
}

fn thinned(values: Vec<f64>) -> Vec<(f64, f64)> {
    let step = values.len().div_ceil(POINTS_MAX).max(1);
    let highest = |chunk: &[f64]| chunk.iter().copied().fold(0.0, f64::max);
    values.chunks(step).enumerate().map(|(index, chunk)| ((index * step + 1) as f64, highest(chunk))).collect()
}

/// How the vertical axis is divided.
#[derive(Clone, Copy, PartialEq)]
enum Scale {
    Linear,
    /// Decades, for latencies: microseconds and seconds in one picture. What is 0 is a gap.
    Logarithmic,
}

fn plot(
    page: &mut String,
    name: &str,
    curves: &[Curve],
    scale: Scale,
    y_text: impl Fn(f64) -> String,
    x_text: impl Fn(f64) -> String,
) {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let x_max = points().map(|(x, _)| *x).fold(1.0, f64::max);
    let most = points().map(|(_, y)| *y).fold(0.0, f64::max);
    let least = points().map(|(_, y)| *y).filter(|y| *y > 0.0).fold(f64::INFINITY, f64::min).min(most);
    let (low, high, steps) = match scale {
        Scale::Linear => (0.0, round_up(most), 4.0),
        Scale::Logarithmic if most > 0.0 => {
            let (low, high) = (least.log10().floor(), most.log10().ceil());
            (low, high.max(low + 1.0), (high - low).max(1.0))
        }
        Scale::Logarithmic => (0.0, 1.0, 1.0),
    };
    let height = |y: f64| if scale == Scale::Linear { y } else { y.log10() };
    let place = |x: f64, y: f64| (LEFT + x / x_max * WIDTH, ABOVE + HEIGHT - (y - low) / (high - low) * HEIGHT);
    let _ = write!(
        page,
        "<div class=scroll><svg viewBox='0 0 {} {}' role=img aria-label='{name}'>",
        LEFT + WIDTH + 20.0,
        ABOVE + HEIGHT + BELOW
    );
    for step in 0..=steps as u32 {
        let value = low + (high - low) * f64::from(step) / steps;
        let (x, y) = place(0.0, value);
        let text = y_text(if scale == Scale::Linear { value } else { 10f64.powf(value) });
        let _ = write!(page, "<line class=grid x1={x} x2={} y1={y:.1} y2={y:.1} />", LEFT + WIDTH);
        let _ = write!(page, "<text x={} y={:.1} text-anchor=end>{}</text>", x - 8.0, y + 4.0, escape(&text));
    }
    // Some ten figures at most, at round distances.
    let step = round_up(x_max / 10.0).max(1.0).ceil();
    let mut value = 0.0;
    while value <= x_max {
        let (x, _) = place(value, low);
        let _ = write!(
            page,
            "<text x={x:.1} y={:.1} text-anchor=middle>{}</text>",
            ABOVE + HEIGHT + 18.0,
            escape(&x_text(value))
        );
        value += step;
    }
    for (index, curve) in curves.iter().enumerate() {
        let (mut path, mut pen_down) = (String::new(), false);
        for (x, y) in &curve.points {
            if scale == Scale::Logarithmic && *y <= 0.0 {
                pen_down = false;
                continue;
            }
            let (x, y) = place(*x, height(*y));
            let _ = write!(path, "{}{x:.1} {y:.1}", if pen_down { 'L' } else { 'M' });
            pen_down = true;
        }
        let _ = write!(page, "<path class={} d='{path}'/>", curve.class);
        let x = LEFT + 10.0 + index as f64 * 120.0;
        let _ = write!(page, "<text class=k{} x={x} y={}>● {}</text>", curve.class, ABOVE + HEIGHT + 38.0, curve.name);
    }
    page.push_str("</svg></div>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uac;

    #[test]
    fn a_page_loads_nothing_and_runs_nothing() {
        let mut line = uac::Line { scenario: "<script>".into(), ..uac::Line::default() };
        (0..10_000).for_each(|ns| line.latency.record(ns * 100));
        let calls = uac::Report { lines: vec![line], ..uac::Report::default() };
        let second = Second { length_ns: SECOND_NS, placed: 100, latency: vec![(1000, 5)], ..Second::default() };
        let log = Log { calls: Some(calls), seconds: vec![second; 2000], ..Log::new() };
        let page = render(&log);
        for never in ["<script", "src=", "href=", "url(", "@import", "NaN", "inf "] {
            assert!(!page.contains(never), "{never}");
        }
        // What is wider than a telephone is scrolled by itself, and not with the page.
        assert_eq!((page.matches("<svg").count(), page.matches("<div class=scroll><svg").count()), (3, 3));
        assert!(page.len() < 200_000, "{}", page.len());
        render(&Log::new());
    }

    #[test]
    fn grid_lines_have_the_figures_they_stand_at() {
        let quarters = [0.25, 0.5, 62.5, 250.0].map(trimmed);
        assert_eq!(quarters, ["0.25", "0.5", "62.5", "250"], "four grid lines have four figures");
    }
}
