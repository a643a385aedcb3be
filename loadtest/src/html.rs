//! A report as one page: no script, no font, no picture from elsewhere. The plots are SVG, drawn here.

use crate::clock::{MS_NS, SECOND_NS};
use crate::latency::{Latencies, Short};
use crate::log::{Log, Second};
use std::fmt::Write;

/// Inner width and height of a plot, in SVG units, and the room around it for what is written on its axes.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 70.0;
const BELOW: f64 = 46.0;
const ABOVE: f64 = 14.0;

/// Points of one line. A run of more seconds is thinned: each point is then the highest of its seconds.
const POINTS_MAX: usize = 800;

/// The page.
pub fn render(log: &Log) -> String {
    let mut page = String::from(HEAD);
    let _ = write!(page, "<h1>viahop-load</h1><p class=sub>{} · {}</p>", escape(&log.began), escape(&log.machine));
    for command in &log.commands {
        let _ = write!(page, "<pre class=command>{}</pre>", escape(command));
    }
    for mark in &log.marks {
        let _ = write!(page, "<p class=mark>{}</p>", escape(mark));
    }
    cards(&mut page, log);
    if !log.seconds.is_empty() {
        page.push_str("<h2>Calls per second</h2>");
        rates(&mut page, &log.seconds);
        page.push_str("<h2>Latency over time</h2><p>Requests answered in each second, from their scheduled time.</p>");
        latencies(&mut page, &log.seconds);
    }
    if let Some(calls) = &log.calls {
        page.push_str("<h2>Latency by percentile</h2><p>All requests, from their scheduled time; and the generator's own lateness, which is part of it.</p>");
        percentiles(&mut page, &calls.latency(), &calls.lateness);
        page.push_str("<h2>Requests</h2>");
        requests(&mut page, log);
    }
    page.push_str("<h2>Everything else</h2>");
    let _ = write!(page, "<pre>{}</pre></main>", escape(&crate::report::render(log)));
    page
}

const HEAD: &str = "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>viahop-load</title><style>
:root{--ink:#1d2329;--dim:#5d6872;--line:#d9dee3;--back:#fff;--a:#1f6f8b;--b:#c2571a;--c:#7a3e9d;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ec;--dim:#98a3ad;--line:#353d45;--back:#14181c;--a:#6cc0dc;--b:#f0955c;--c:#c79ae0;--bad:#ff8a80}}
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,sans-serif}main{max-width:960px;margin:0 auto;padding:2rem 1.2rem}
h1{margin:0;font-size:1.6rem}h2{margin:2.2rem 0 .4rem;font-size:1.1rem}p{margin:.2rem 0;color:var(--dim)}
pre{overflow-x:auto;font:12.5px/1.5 ui-monospace,monospace;border:1px solid var(--line);border-radius:6px;padding:.7rem}.command{border:0;padding:0;color:var(--dim);white-space:pre-wrap}
.mark{color:var(--bad);font-weight:600}.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:.7rem;margin:1.2rem 0}
.cards div{border:1px solid var(--line);border-radius:6px;padding:.6rem .8rem}.cards b{display:block;font-size:1.35rem;font-variant-numeric:tabular-nums}.cards span{color:var(--dim);font-size:.85rem}
.bad b{color:var(--bad)}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}td,th{padding:.3rem .5rem;text-align:right;border-bottom:1px solid var(--line)}th{color:var(--dim);font-weight:500}td:first-child,th:first-child{text-align:left}
svg{width:100%;height:auto;display:block}svg text{fill:var(--dim);font-size:11px}.grid{stroke:var(--line)}.a{stroke:var(--a);fill:none}.b{stroke:var(--b);fill:none}.c{stroke:var(--c);fill:none}.a,.b,.c{stroke-width:1.8}
svg .ka{fill:var(--a)}svg .kb{fill:var(--b)}svg .kc{fill:var(--c)}.scroll{overflow-x:auto}</style><main>";

fn cards(page: &mut String, log: &Log) {
    let mut cards: Vec<(&str, String, bool)> = Vec::new();
    if let Some(calls) = &log.calls {
        let (counts, latency) = (calls.counts, calls.latency());
        cards.push(("calls per second", format!("{:.1}", log.rate()), false));
        cards.push(("calls placed", counts.placed.to_string(), false));
        cards.push(("failed", counts.failed.to_string(), counts.failed > 0));
        cards.push(("p50", Short(latency.at(0.5)).to_string(), false));
        cards.push(("p99", Short(latency.at(0.99)).to_string(), false));
        cards.push(("retransmissions", counts.retransmissions.to_string(), counts.retransmissions > 0));
    }
    if let Some(callees) = &log.callees {
        let total = callees.total();
        cards.push(("calls taken", total.calls.to_string(), false));
        cards.push(("at the wrong backend", total.violations.to_string(), total.violations > 0));
        cards.push(("altered", total.altered.to_string(), total.altered > 0));
    }
    page.push_str("<div class=cards>");
    for (name, figure, bad) in cards {
        let class = if bad { " class=bad" } else { "" };
        let _ = write!(page, "<div{class}><b>{figure}</b><span>{name}</span></div>");
    }
    page.push_str("</div>");
}

fn requests(page: &mut String, log: &Log) {
    page.push_str("<div class=scroll><table><tr><th>request<th>sent<th>answered<th>again<th>p50<th>p90<th>p99<th>p99.9<th>max<th>failures");
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
            let _ = write!(page, "<td>{}", Short(line.latency.at(quantile)));
        }
        let failures: Vec<String> = line.failures.iter().map(|(reason, count)| format!("{count} × {reason}")).collect();
        let _ = write!(page, "<td>{}", escape(&failures.join(", ")));
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
    plot(page, &curves, Scale::Linear, |value| format!("{value:.0}"), |at| format!("{at:.0} s"));
}

fn latencies(page: &mut String, seconds: &[Second]) {
    let curve = |class, name, quantile| {
        let values = seconds.iter().map(|second| second.latencies().at(quantile) as f64 / MS_NS as f64);
        Curve { class, name, points: thinned(values.collect()) }
    };
    let curves = [curve('a', "p50", 0.5), curve('c', "p99", 0.99), curve('b', "max", 1.0)];
    plot(page, &curves, Scale::Logarithmic, milliseconds, |at| format!("{at:.0} s"));
}

fn percentiles(page: &mut String, latency: &Latencies, lateness: &Latencies) {
    // The further right, the rarer: at 1 one in ten is slower, at 3 one in a thousand.
    let curve = |class, name, latencies: &Latencies| {
        let inside = |quantile: f64| quantile < 1.0 && (1.0 - quantile) * latencies.count() as f64 >= 1.0;
        let points = latencies.spectrum().into_iter().filter(|(quantile, ..)| inside(*quantile));
        let points = points.map(|(quantile, ns, _)| (-(1.0 - quantile).log10(), ns as f64 / MS_NS as f64));
        Curve { class, name, points: points.collect() }
    };
    let curves = [curve('a', "latency", latency), curve('b', "own lateness", lateness)];
    plot(page, &curves, Scale::Logarithmic, milliseconds, |nines| match nines {
        nines if nines < 0.5 => "p0".to_owned(),
        nines => format!("p{}", trimmed(100.0 - 100.0 / 10f64.powf(nines.round()))),
    });
}

/// 99.9 and not 99.90000001.
fn trimmed(percent: f64) -> String {
    format!("{percent:.6}").trim_end_matches('0').trim_end_matches('.').to_owned()
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
    let _ = write!(page, "<svg viewBox='0 0 {} {}' role=img>", LEFT + WIDTH + 20.0, ABOVE + HEIGHT + BELOW);
    for step in 0..=steps as u32 {
        let value = low + (high - low) * f64::from(step) / steps;
        let (x, y) = place(0.0, value);
        let text = y_text(if scale == Scale::Linear { value } else { 10f64.powf(value) });
        let _ = write!(page, "<line class=grid x1={x} x2={} y1={y:.1} y2={y:.1} />", LEFT + WIDTH);
        let _ = write!(page, "<text x={} y={:.1} text-anchor=end>{}</text>", x - 8.0, y + 4.0, escape(&text));
    }
    let steps = x_max.floor().clamp(1.0, 6.0);
    for step in 0..=steps as u32 {
        let value = (x_max * f64::from(step) / steps).floor();
        let (x, _) = place(value, low);
        let _ = write!(
            page,
            "<text x={x:.1} y={:.1} text-anchor=middle>{}</text>",
            ABOVE + HEIGHT + 18.0,
            escape(&x_text(value))
        );
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
        let x = LEFT + 10.0 + index as f64 * 110.0;
        let _ = write!(page, "<text class=k{} x={x} y={}>● {}</text>", curve.class, ABOVE + HEIGHT + 38.0, curve.name);
    }
    page.push_str("</svg>");
}

/// The next of 1, 2, 2.5, 5, 10, 20 … that is not below `value`.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|step| step * power >= value * 0.999_999);
    step.unwrap_or(10.0) * power
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
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
        assert_eq!(page.matches("<svg").count(), 3);
        assert!(page.len() < 200_000, "{}", page.len());
        render(&Log::new());
    }

    #[test]
    fn axes_end_at_round_figures() {
        let rounded: Vec<f64> = [0.0, 0.7, 1.0, 1.1, 2.2, 3.0, 9.0, 10.0, 10_001.0].map(round_up).into();
        assert_eq!(rounded, [1.0, 1.0, 1.0, 2.0, 2.5, 5.0, 10.0, 10.0, 20_000.0]);
    }
}
