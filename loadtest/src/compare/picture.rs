//! A comparison as a picture: CPU per message of each element at each load, a bar to the median with the spread over the rounds on it, and
//! beside it the figures, the ratio within the rounds, and what was lost.

use super::rounds::{Outcome, Sample};
use super::table::{Spread, at, loads, of, ratio, share, without};
use crate::svg::{COLOURS, escape, round_up};
use std::fmt::Write;

/// Where the bars begin, how long the longest may be, and where the columns beside them end, in SVG units.
const LEFT: f64 = 128.0;
const LENGTH: f64 = 400.0;
const CPU_AT: f64 = 590.0;
const RATIO_AT: f64 = 660.0;
const LOST_AT: f64 = 750.0;
const WIDTH: f64 = 760.0;

/// Where the first load begins; heights of a load's title, of an element's row, and of the bar in it.
const HEAD: f64 = 46.0;
const TITLE: f64 = 34.0;
const ROW: f64 = 21.0;
const BAR: f64 = 13.0;

const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:var(--ink);font-variant-numeric:tabular-nums}.bold{font-weight:600}.dim{fill:var(--dim)}.bad{fill:var(--bad)}
.end{text-anchor:end}.middle{text-anchor:middle}.back{fill:var(--back)}.bar{fill:var(--d)}.own{fill:var(--a)}.spread{stroke:var(--ink);stroke-width:1.5}.axis{stroke:var(--line)}";

/// The picture, whole: a file that any browser opens. `baseline` is who the others are compared with.
pub fn render(outcome: &Outcome, baseline: &str) -> String {
    let medians = loads(outcome).into_iter().flat_map(|load| {
        let (samples, names) = at(outcome, load);
        names.into_iter().map(|name| cpu(&samples, name).median).collect::<Vec<f64>>()
    });
    // Room for the spread, but not for each single round that went astray.
    let most = (medians.fold(0.0, f64::max) * 1.2).max(0.1);
    let scale = LENGTH / most;
    let (mut rows, mut y) = (String::new(), HEAD);
    for load in loads(outcome) {
        let (samples, names) = at(outcome, load);
        let title = load.map_or("saturation".to_owned(), |rate| format!("{rate} requests/s"));
        let _ = write!(rows, "<text class='bold' x='8' y='{}'>{title}</text>", y + TITLE - 8.0);
        y += TITLE;
        for name in names.into_iter().filter(|name| *name != without(name)) {
            row(&mut rows, &samples, name, baseline, y, scale);
            y += ROW;
        }
    }
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' role='img' aria-label='CPU per message'>\
         <style>{COLOURS}\n{STYLE}</style><rect class='back' width='{WIDTH}' height='{height}'/>\
         <text class='bold' x='8' y='24'>CPU per message, µs: medians, and their spread over the rounds</text>\
         <text class='dim end' x='{CPU_AT}' y='{HEAD}'>µs</text><text class='dim end' x='{RATIO_AT}' y='{HEAD}'>: {}</text>\
         <text class='dim end' x='{LOST_AT}' y='{HEAD}'>lost</text>{}{rows}<text class='dim' x='8' y='{}'>{}</text></svg>\n",
        escape(baseline),
        grid(most, scale, y),
        y + 40.0,
        escape(&foot(outcome)),
        height = y + 54.0,
    )
}

fn cpu(samples: &[&Sample], name: &str) -> Spread {
    Spread::of(of(samples, name).map(|sample| sample.cpu_us_per_message))
}

fn row(rows: &mut String, samples: &[&Sample], name: &str, baseline: &str, y: f64, scale: f64) {
    let Spread { median, least, most } = cpu(samples, name);
    let (middle, below) = (y + ROW / 2.0, y + ROW / 2.0 + 4.5);
    let at = |us: f64| LEFT + (us * scale).min(LENGTH);
    let (own, bold) = if name.starts_with("viahop") { ("own", " bold") } else { ("bar", "") };
    let _ = write!(
        rows,
        "<text class='end{bold}' x='{:.1}' y='{below}'>{}</text>\
         <rect class='{own}' x='{LEFT}' y='{:.1}' width='{:.1}' height='{BAR}' rx='2'/>\
         <path class='spread' d='M{:.1} {middle}H{:.1}'/><text class='end{bold}' x='{CPU_AT}' y='{below}'>{median:.2}</text>",
        LEFT - 8.0,
        escape(name),
        middle - BAR / 2.0,
        median * scale,
        at(least),
        at(most),
    );
    if let Some(ratio) = ratio(samples, name, baseline, |sample| sample.cpu_us_per_message) {
        let _ = write!(rows, "<text class='end{bold}' x='{RATIO_AT}' y='{below}'>{:.2}</text>", ratio.median);
    }
    let (lost, sent) = of(samples, name).fold((0, 0), |(lost, sent), one| (lost + one.lost, sent + one.sent));
    let wrong: u64 = of(samples, name).map(|sample| sample.wrong).sum();
    // Single datagrams are counted in grey: only what is a share of all is in red, and what was altered.
    let (is_bad, text) = match share(lost, sent) {
        _ if wrong > 0 => (true, format!("{wrong} wrong")),
        lost => (lost.ends_with('%'), lost),
    };
    let class = if is_bad { "bad" } else { "dim" };
    let _ = write!(rows, "<text class='end {class}' x='{LOST_AT}' y='{below}'>{text}</text>");
}

/// Lines at round figures, behind the bars, and the figures below.
fn grid(most: f64, scale: f64, bottom: f64) -> String {
    let step = round_up(most / 6.0);
    let mut lines = String::new();
    for index in 0..=(most / step) as u32 {
        let value = step * f64::from(index);
        let x = LEFT + value * scale;
        let _ = write!(lines, "<path class='axis' d='M{x:.1} {HEAD}V{:.1}'/>", bottom + 4.0);
        let _ = write!(lines, "<text class='dim middle' x='{x:.1}' y='{:.1}'>{value}</text>", bottom + 19.0);
    }
    lines
}

/// Where it was measured, and how much of it counts.
fn foot(outcome: &Outcome) -> String {
    let rounds = outcome.samples.iter().map(|sample| sample.round + 1).max().unwrap_or(0);
    let (all, least_ns) = (outcome.samples.len(), outcome.least_distance_ns());
    let void = outcome.samples.iter().filter(|sample| sample.is_void(least_ns)).count();
    let cut = if outcome.cut { "; PARTIAL: ended by the user" } else { "" };
    format!("{}; {rounds} rounds; {void} of {all} measurements void{cut}", outcome.machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_a_bar_for_each_element_and_load_and_loads_nothing() {
        let sample = |element: &str, load, cpu_us_per_message, lost| Sample {
            element: element.to_owned(),
            load,
            cpu_us_per_message,
            sent: 1000,
            lost,
            ..Sample::default()
        };
        let mut samples = Vec::new();
        for load in [None, Some(5000.0)] {
            samples.push(sample("direct", load, 0.0, 0));
            samples.push(sample("relay", load, 4.0, 0));
            samples.push(sample("viahop", load, 3.0, 0));
            samples.push(sample("<script>", load, 12.0, 20));
            samples.push(Sample { wrong: 3, ..sample("liar", load, 5.0, 20) });
        }
        let outcome = Outcome { samples, machine: "2 × <CPU>".to_owned(), ..Outcome::default() };
        let picture = render(&outcome, "relay");
        assert_eq!(picture.matches("class='bar'").count() + picture.matches("class='own'").count(), 8, "{picture}");
        for text in [">0.75<", ">3.00<", ">2.00 %<", ">3 wrong<", ">5000 requests/s<", ">saturation<"] {
            assert!(picture.contains(text), "{text}: {picture}");
        }
        for never in ["<script", "<CPU", "href=", "url(", "@import", "NaN", "inf'", "direct"] {
            assert!(!picture.contains(never), "{never}: {picture}");
        }
        let empty = render(&Outcome::default(), "relay");
        assert!(!empty.contains("NaN"), "{empty}");
    }
}
