//! A run from its start to its log: callers, callees or both, watched second by second, ended by the user or by itself.

use crate::clock::{MS_NS, SECOND_NS, now_ns};
use crate::failure::Failure;
use crate::fault::Fault;
use crate::latency::{Latencies, Short};
use crate::log::{Log, Second};
use crate::sys::process::stop_signals;
use crate::uac::{self, Uac};
use crate::uas::{self, Uas};
use std::time::Duration;

/// How often a run is looked after.
const LOOK: Duration = Duration::from_millis(20);

/// A second of the series beyond this many is not kept, only counted in the totals: a day.
const SECONDS_MAX: usize = 86_400;

/// The lateness that 999 of 1000 calls may have before a run says more about the generator than about the element.
pub const LATENESS_MAX_NS: u64 = 10 * MS_NS;

/// What is to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The calling side, if there is one.
    pub calls: Option<uac::Config>,
    /// The called side, if there is one. Without a calling side it runs until the user ends it or `until_ns` is over.
    pub callees: Option<uas::Config>,
    /// Whether the callers call the first callee straight, wherever its port came to be.
    pub straight: bool,
    /// How long callees without callers run, in nanoseconds.
    pub until_ns: u64,
    /// The run is void if 999 of 1000 calls were not placed within so many nanoseconds of their time.
    pub lateness_max_ns: u64,
}

/// What a user changes while it runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wish {
    /// No more calls; those that are open may end. The second time: cut them.
    End,
    /// No calls for the time being, or calls again.
    Pause,
    /// So many times the present rate.
    Rate(f64),
}

/// Runs it. `progress` hears of each second, with the time since the start in nanoseconds; `wish` is asked what the user
/// wants.
pub fn run(
    plan: &Plan,
    mut progress: impl FnMut(u64, &Second, &Log),
    mut wish: impl FnMut() -> Option<Wish>,
) -> Result<Log, Failure> {
    let mut log = Log::new();
    let uas = plan.callees.clone().map(Uas::start).transpose()?;
    let start = now_ns();
    let mut calls = plan.calls.clone();
    if let (true, Some(calls), Some(uas)) = (plan.straight, &mut calls, &uas) {
        calls.target = uas.addresses()[0];
    }
    let uac = calls.map(Uac::start).transpose()?;
    let mut fates = Vec::new();
    for fault in plan.callees.iter().flat_map(|callees| &callees.faults) {
        if let Fault::Down { backend, from_ns, to_ns } = *fault {
            fates.extend([(backend, false, from_ns), (backend, true, to_ns)]);
        }
    }
    let rate = plan.calls.as_ref().map_or(0.0, |calls| calls.rate);
    let mut watch = Watch { uac, uas, wishes: 0, paused: false, rate, fates };
    let mut before = (start, uac::Counts::default(), uas::Counts::default());
    let mut next = start + SECOND_NS;
    loop {
        std::thread::sleep(LOOK);
        while let Some(wish) = wish() {
            watch.grant(wish);
        }
        watch.heed_signals();
        let now = now_ns();
        watch.put_down(now - start);
        let over = watch.is_over() || (watch.uac.is_none() && now - start >= plan.until_ns);
        if now < next && !over {
            continue;
        }
        next += SECOND_NS;
        let second = watch.second(&mut before, now);
        progress(now - start, &second, &log);
        if log.seconds.len() < SECONDS_MAX {
            log.seconds.push(second);
        }
        if over {
            break;
        }
    }
    log.calls = watch.uac.take().map(Uac::join);
    // The last ACK is on its way when the last call is complete.
    std::thread::sleep(LOOK);
    log.callees = watch.uas.take().map(Uas::join);
    judge(plan, watch.wishes, &mut log);
    Ok(log)
}

struct Watch {
    uac: Option<Uac>,
    uas: Option<Uas>,
    /// How often the user has asked for the end.
    wishes: u32,
    paused: bool,
    rate: f64,
    /// What is still to be killed or brought back: backend, whether it is to live, when.
    fates: Vec<(usize, bool, u64)>,
}

impl Watch {
    fn grant(&mut self, wish: Wish) {
        let Some(uac) = &self.uac else {
            self.wishes += u32::from(wish == Wish::End);
            return;
        };
        match wish {
            Wish::End => {
                self.wishes += 1;
                if self.wishes == 1 { uac.stop() } else { uac.cut() }
            }
            Wish::Pause => {
                self.paused = !self.paused;
                uac.set_rate(if self.paused { 0.0 } else { self.rate });
            }
            Wish::Rate(factor) => {
                self.rate *= factor;
                if !self.paused {
                    uac.set_rate(self.rate);
                }
            }
        }
    }

    /// Kills the backends whose time it is, and brings them back.
    fn put_down(&mut self, at: u64) {
        let Some(uas) = &self.uas else { return };
        self.fates.retain(|&(backend, alive, when)| {
            if when > at || backend >= uas.addresses().len() {
                return true;
            }
            if alive {
                // Somebody else may have the port for a moment; then it is tried again.
                return uas.restore(backend).is_err();
            }
            uas.kill(backend);
            false
        });
    }

    /// A signal is a wish for the end.
    fn heed_signals(&mut self) {
        while self.wishes < stop_signals() {
            self.grant(Wish::End);
        }
    }

    fn is_over(&self) -> bool {
        match &self.uac {
            Some(uac) => uac.is_finished(),
            None => self.wishes > 0,
        }
    }

    /// What has happened since `before`, which becomes the present.
    fn second(&self, before: &mut (u64, uac::Counts, uas::Counts), now: u64) -> Second {
        let calls = self.uac.as_ref().map(Uac::snapshot).unwrap_or_default();
        let callees = self.uas.as_ref().map(Uas::snapshot).unwrap_or_default();
        let (then, calls_then, callees_then) = *before;
        *before = (now, calls.counts, callees.total());
        if self.uac.is_none() {
            let (placed, completed) = (before.2.calls - callees_then.calls, before.2.byes - callees_then.byes);
            let open = callees.backends.iter().map(|backend| backend.open).sum();
            let retransmissions = before.2.resent - callees_then.resent;
            return Second { length_ns: now - then, placed, completed, open, retransmissions, ..Second::default() };
        }
        Second {
            length_ns: now - then,
            placed: calls.counts.placed - calls_then.placed,
            completed: calls.counts.completed - calls_then.completed,
            failed: calls.counts.failed - calls_then.failed,
            retransmissions: calls.counts.retransmissions - calls_then.retransmissions,
            open: calls.open,
            latency: calls.latency.steps(),
        }
    }
}

/// Marks what is not a whole and valid result.
fn judge(plan: &Plan, wishes: u32, log: &mut Log) {
    let Some(calls) = &log.calls else { return };
    if wishes > 0 {
        log.marks.push("PARTIAL: ended by the user".to_owned());
    } else if calls.counts.cut > 0 {
        log.marks.push(format!("PARTIAL: {} calls were still open when the time to end had passed", calls.counts.cut));
    }
    let late = calls.lateness.at(0.999);
    if late > plan.lateness_max_ns {
        let (late, limit) = (Short(late), Short(plan.lateness_max_ns));
        log.marks.push(format!(
            "VOID: the generator was late: one call in a thousand by {late} and more, {limit} is allowed (--lateness-max)"
        ));
    }
    let answered = calls.lines.iter().map(|line| line.answered).sum::<u64>();
    if answered == 0 && calls.counts.placed > 0 {
        let why = match calls.counts.refused {
            0 => "nothing came back: the target swallows what it gets, or its answers go elsewhere",
            _ => "nobody listens there (ICMP port unreachable)",
        };
        log.marks.push(format!("VOID: not one request was answered; {why}"));
    }
}

/// One line about one second.
pub fn line(at_ns: u64, second: &Second) -> String {
    let per_second = |count: u64| count as f64 * SECOND_NS as f64 / second.length_ns.max(1) as f64;
    let latencies: Latencies = second.latencies();
    let quantile = |quantile| Short(latencies.at(quantile)).to_string();
    format!(
        "{:>6.1}s  {:>9.1} calls/s  {:>9.1} done/s  failed {:<6} again {:<6} open {:<8} p50 {:>7} p99 {:>7} max {:>7}",
        at_ns as f64 / SECOND_NS as f64,
        per_second(second.placed),
        per_second(second.completed),
        second.failed,
        second.retransmissions,
        second.open,
        quantile(0.5),
        quantile(0.99),
        quantile(1.0)
    )
}
