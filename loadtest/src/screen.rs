//! The live screen of a run on a terminal, and its keys, which are those of SIPp.
//!
//! ```text
//! viahop-load  8 s of 30 s  udp:127.0.0.1:5060  call
//!   rate      10000.0/s asked  10000.0/s placed  9999.0/s completed
//!   calls     80000 placed  79990 completed  0 failed (0.000 %)
//!   open      10  0 sent again
//!   latency   p50 41µs  p90 60µs  p99 140µs  p99.9 600µs  max 3.20ms
//!   …
//!   + - rate by 1 %   * / by 10 %   p pause   q end (again: at once)
//! ```
//!
//! Where standard output is no terminal there is one line per second in its place: [`line`](crate::run::line).

use crate::clock::SECOND_NS;
use crate::log::Log;
use crate::report::gap;
use crate::run::{Plan, Progress, Watcher, Wish};
use crate::sys::wait::Waiter;
use crate::uac;
use crossterm::terminal::{Clear, ClearType};
use crossterm::{cursor, queue, style, terminal};
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::AsFd;

/// Seconds that the small curves go back.
const HISTORY: usize = 60;

/// A terminal that shows a run. It gets its old settings back when this is dropped.
#[derive(Debug)]
pub struct Screen {
    view: View,
    /// `None`: nobody types there any more.
    keys: Option<Keys>,
    /// Lines that the last picture took.
    drawn: u16,
}

/// What is typed. Not crossterm's: that reads for ever from a terminal that is gone.
#[derive(Debug)]
struct Keys {
    terminal: File,
    waiter: Waiter,
    ready: Vec<u32>,
}

/// What is shown, apart from the terminal it is shown on.
#[derive(Debug)]
struct View {
    title: String,
    /// How long calls are placed, in nanoseconds; 0: until the user ends it.
    length_ns: u64,
    rates: VecDeque<f64>,
    p99s: VecDeque<f64>,
}

impl Screen {
    /// `None` where standard input or output is no terminal.
    pub fn open(plan: &Plan) -> Option<Screen> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return None;
        }
        terminal::enable_raw_mode().ok()?;
        let mut screen = Screen { view: View::new(plan), keys: Keys::open().ok(), drawn: 0 };
        queue!(io::stdout(), cursor::Hide).ok()?;
        screen.draw(&[screen.view.title.clone()]);
        Some(screen)
    }

    /// Puts these lines where the last ones were. A terminal that is gone is no reason to end a run.
    fn draw(&mut self, lines: &[String]) {
        // A terminal that does not know its size says 0.
        let (width, height) = terminal::size().ok().filter(|size| size.0 > 0 && size.1 > 0).unwrap_or((80, 24));
        let mut out = io::stdout().lock();
        let _ = queue!(out, cursor::MoveToColumn(0));
        if self.drawn > 0 {
            let _ = queue!(out, cursor::MoveUp(self.drawn));
        }
        let shown = lines.len().min(usize::from(height.saturating_sub(1)));
        for line in &lines[..shown] {
            let line: String = line.chars().take(usize::from(width)).collect();
            let _ = queue!(out, Clear(ClearType::CurrentLine), style::Print(line), style::Print("\r\n"));
        }
        let _ = queue!(out, Clear(ClearType::FromCursorDown));
        let _ = out.flush();
        self.drawn = shown as u16;
    }
}

impl Watcher for Screen {
    fn on_second(&mut self, progress: &Progress<'_>) {
        let lines = self.view.lines(progress);
        self.draw(&lines);
    }

    fn wish(&mut self) -> Option<Wish> {
        while let Some(keys) = &mut self.keys {
            let mut key = [0];
            match keys.read(&mut key) {
                Ok(0) => return None,
                // Arrows and the like: what follows comes with it.
                Ok(_) if key == *b"\x1b" => drop(keys.read(&mut [0; 64])),
                Ok(_) => {
                    if let Some(wish) = meaning(key[0]) {
                        return Some(wish);
                    }
                }
                Err(_) => self.keys = None,
            }
        }
        None
    }
}

impl Keys {
    fn open() -> io::Result<Keys> {
        let terminal = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let waiter = Waiter::new()?;
        waiter.registry().add(&terminal, 0, false)?;
        Ok(Keys { terminal, waiter, ready: Vec::new() })
    }

    /// Reads what has been typed, as much as there is room for. Never waits.
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.waiter.wait(0, &mut self.ready)?;
        if self.ready.is_empty() {
            return Ok(0);
        }
        match self.terminal.read(room)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            count => Ok(count),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = terminal::disable_raw_mode();
        let mut out = io::stdout().lock();
        let _ = queue!(out, cursor::Show);
        let _ = out.flush();
    }
}

/// What a key stands for.
fn meaning(key: u8) -> Option<Wish> {
    /// Ctrl-C, which is no signal where each key is read by itself.
    const INTERRUPT: u8 = 3;
    match key {
        b'+' => Some(Wish::Rate(1.01)),
        b'-' => Some(Wish::Rate(1.0 / 1.01)),
        b'*' => Some(Wish::Rate(1.1)),
        b'/' => Some(Wish::Rate(1.0 / 1.1)),
        b'p' => Some(Wish::Pause),
        b'q' | INTERRUPT => Some(Wish::End),
        _ => None,
    }
}

impl View {
    fn new(plan: &Plan) -> View {
        let title = match (&plan.calls, &plan.callees) {
            (Some(calls), _) => {
                let names: Vec<&str> = calls.mix.scenarios().map(|scenario| &*scenario.name).collect();
                let names = match names.len() {
                    0..=3 => names.join(", "),
                    many => format!("{many} scenarios"),
                };
                let target = match plan.straight {
                    true => "straight to the callees".to_owned(),
                    false => format!("{}:{}", calls.transport, calls.target),
                };
                format!("{target}  {names}")
            }
            (None, Some(callees)) => format!("{} backends", callees.backends.len()),
            (None, None) => String::new(),
        };
        let length_ns = match &plan.calls {
            Some(calls) => calls.duration_ns,
            None => {
                if plan.until_ns == u64::MAX {
                    0
                } else {
                    plan.until_ns
                }
            }
        };
        View { title, length_ns, rates: VecDeque::new(), p99s: VecDeque::new() }
    }

    fn lines(&mut self, progress: &Progress<'_>) -> Vec<String> {
        let Progress { at_ns, second, callers, callees, rate, paused } = *progress;
        let latencies = second.latencies();
        let per_second = |count: u64| count as f64 * SECOND_NS as f64 / second.length_ns.max(1) as f64;
        push(&mut self.rates, per_second(second.placed));
        push(&mut self.p99s, latencies.at(0.99) as f64);
        let seconds = |ns: u64| ns as f64 / SECOND_NS as f64;
        let of = if self.length_ns > 0 { format!(" of {:.0} s", seconds(self.length_ns)) } else { String::new() };
        let mut lines = vec![format!("viahop-load  {:.0} s{of}  {}", seconds(at_ns), self.title)];
        let mut row = |name: &str, text: String| lines.push(format!("  {name:<9} {text}"));
        let (placed, completed) = (per_second(second.placed), per_second(second.completed));
        if rate > 0.0 {
            let paused = if paused { "  PAUSED" } else { "" };
            row("rate", format!("{rate:.1}/s asked  {placed:.1}/s placed  {completed:.1}/s completed{paused}"));
            row("calls", totals(&callers.counts));
            row("open", format!("{}  {} sent again", callers.open, callers.counts.retransmissions));
            row(
                "latency",
                [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)].iter().fold(
                    String::new(),
                    |mut text, (name, quantile)| {
                        let _ = write!(text, "{name} {}  ", latencies.short(*quantile));
                        text
                    },
                ),
            );
            row("lateness", format!("max {}", second.lateness()));
            row("calls/s", curve(&self.rates));
            row("p99", curve(&self.p99s));
        } else {
            row("calls", format!("{placed:.1}/s taken  {completed:.1}/s ended  {} open", second.open));
            row("calls/s", curve(&self.rates));
        }
        let total = callees.total();
        let wrong = callers.counts.wrong + callers.counts.unexpected + callers.counts.strays;
        row(
            "checked",
            format!(
                "{wrong} wrong  {} altered  {} out of order",
                callers.counts.altered + total.altered,
                total.reordered
            ),
        );
        row(
            "backends",
            format!("{} messages at the wrong one  {} from another address", total.violations, total.moved),
        );
        lines.push(String::new());
        lines.push(format!("  {:<16}    {:>10} {:>10}", "message", "sent", "arrived"));
        lines.extend(flows(callers, callees));
        lines.push(String::new());
        lines.push("  + - rate by 1 %   * / by 10 %   p pause   q end (again: at once)".to_owned());
        lines
    }
}

fn totals(counts: &uac::Counts) -> String {
    let share = counts.failed as f64 * 100.0 / counts.placed.max(1) as f64;
    format!("{} placed  {} completed  {} failed ({share:.3} %)", counts.placed, counts.completed, counts.failed)
}

/// The messages that went both ways, as far as this process has seen them. Those that are on their way are missing.
fn flows(callers: &uac::Snapshot, callees: &crate::uas::Report) -> Vec<String> {
    let calls =
        uac::Report { sent: callers.sent.clone(), received: callers.received.clone(), ..uac::Report::default() };
    let log = Log {
        calls: (calls.sent.total() > 0).then_some(calls),
        callees: (!callees.backends.is_empty()).then(|| callees.clone()),
        ..Log::new()
    };
    let number = |count: Option<u64>| count.map_or("-".to_owned(), |count| count.to_string());
    let line = |flow: &crate::log::Flow| {
        let way = if flow.there { "->" } else { "<-" };
        format!("  {:<16} {way} {:>10} {:>10}{}", flow.kind, number(flow.sent), number(flow.arrived), gap(flow))
    };
    log.flows().iter().map(line).collect()
}

fn push(history: &mut VecDeque<f64>, value: f64) {
    history.push_back(value);
    if history.len() > HISTORY {
        history.pop_front();
    }
}

/// Values as bars of eight heights, the highest full.
fn curve(values: &VecDeque<f64>) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = values.iter().copied().fold(0.0, f64::max);
    let bar = |value: &f64| if most > 0.0 { BARS[((value / most * 7.0).round() as usize).min(7)] } else { BARS[0] };
    values.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Second;
    use crate::sip::message::Method;
    use crate::tally::Kind;
    use crate::uas;

    #[test]
    fn keys_mean_what_they_mean_to_sipp_and_what_goes_up_comes_down_again() {
        let factor = |key| match meaning(key) {
            Some(Wish::Rate(factor)) => factor,
            other => panic!("{other:?}"),
        };
        assert!((factor(b'+') * factor(b'-') - 1.0).abs() < 1e-12);
        assert!((factor(b'*') * factor(b'/') - 1.0).abs() < 1e-12);
        assert_eq!((meaning(b'p'), meaning(b'q'), meaning(b'x')), (Some(Wish::Pause), Some(Wish::End), None));
        assert_eq!(meaning(b'c' & 0x1f), Some(Wish::End), "Ctrl-C");
    }

    #[test]
    fn a_second_is_shown_with_what_was_checked_and_what_went_which_way() {
        let calls = uac::Config::new(([127, 0, 0, 1], 5060));
        let plan = Plan { calls: Some(calls), callees: None, straight: false, until_ns: 0, lateness_max_ns: 0 };
        let mut view = View::new(&plan);
        let second = Second { length_ns: SECOND_NS, placed: 100, latency: vec![(1_000_000, 9)], ..Second::default() };
        let mut callers = uac::Snapshot::default();
        callers.sent.note_many(Kind::request(Method::Invite), 250);
        callers.counts.placed = 250;
        let callees = uas::Report::default();
        let at = |at_ns, paused| Progress {
            at_ns,
            second: &second,
            callers: &callers,
            callees: &callees,
            rate: 100.0,
            paused,
        };
        let text = view.lines(&at(2 * SECOND_NS, false)).join("\n");
        for part in [
            "viahop-load  2 s of 10 s  udp:127.0.0.1:5060  call",
            "100.0/s asked",
            "250 placed",
            "p99 1.00ms",
            "INVITE           ->",
            "q end",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let counts = uac::Counts {
            placed: 50_000_000,
            completed: 25_000_000,
            failed: 25_000_000,
            retransmissions: 1_000_000,
            ..uac::Counts::default()
        };
        let many = uac::Snapshot { counts, open: 300_000, ..uac::Snapshot::default() };
        let lines = view.lines(&Progress { callers: &many, ..at(3000 * SECOND_NS, true) });
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "a terminal has 80 columns: {lines:?}");
        for second in 0..100 {
            view.lines(&at(second * SECOND_NS, true));
        }
        let text = view.lines(&at(0, true)).join("\n");
        assert!(
            text.contains("PAUSED") && text.contains(&"█".repeat(HISTORY)) && !text.contains(&"█".repeat(HISTORY + 1))
        );
    }
}
