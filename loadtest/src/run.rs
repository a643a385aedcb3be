//! A run from its start to its log: callers, callees or both, watched second by second, ended by the user or by itself.

use crate::clock::{MS_NS, SECOND_NS, now_ns};
use crate::failure::Failure;
use crate::fault::Fault;
use crate::latency::{Latencies, Short};
use crate::log::{Log, Second};
use crate::sys::process::{peak_memory_kib, stop_signals};
use crate::uac::{self, Uac};
use crate::uas::{self, Uas};
use crate::usage;
use std::time::Duration;

/// How often a run is looked after.
const LOOK: Duration = Duration::from_millis(20);

/// A second of the series beyond this many is not kept, only counted in the totals: a day.
const SECONDS_MAX: usize = 86_400;

/// From this share of stolen time on a machine is said to be noisy, and from this share of waiting for a core that
/// something else had.
const STEAL_MAX: f64 = 0.005;
const WAITING_MAX: f64 = 0.05;

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

/// The state of a run, second by second.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Since the start, in nanoseconds.
    pub at_ns: u64,
    /// The second that has just passed.
    pub second: &'a Second,
    /// The calling side since the start, empty where there is none.
    pub callers: &'a uac::Snapshot,
    /// The called side since the start, empty where there is none.
    pub callees: &'a uas::Report,
    /// Calls a second that are asked for.
    pub rate: f64,
    /// Whether no calls are placed for the time being.
    pub paused: bool,
}

/// Who watches a run.
pub trait Watcher {
    /// A second has passed, or the last part of one.
    fn on_second(&mut self, progress: &Progress<'_>);

    /// What the user wants; asked some fifty times a second.
    fn wish(&mut self) -> Option<Wish>;
}

/// Nobody.
impl Watcher for () {
    fn on_second(&mut self, _: &Progress<'_>) {}

    fn wish(&mut self) -> Option<Wish> {
        None
    }
}

/// Runs it.
pub fn run(plan: &Plan, watcher: &mut impl Watcher) -> Result<Log, Failure> {
    let mut log = Log::new();
    let steal = usage::steal_ticks();
    let uas = plan.callees.clone().map(Uas::start).transpose()?;
    let start = now_ns();
    let mut calls = plan.calls.clone();
    if let (true, Some(calls), Some(uas)) = (plan.straight, &mut calls, &uas) {
        let first = uas.endpoints()[0];
        (calls.target, calls.transport) = (first.address, first.transport);
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
        while let Some(wish) = watcher.wish() {
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
        let (callers, callees) = watch.snapshots();
        let second = watch.second(&mut before, now, &callers, &callees);
        let (rate, paused) = (watch.rate, watch.paused);
        let (second, callers, callees) = (&second, &callers, &callees);
        watcher.on_second(&Progress { at_ns: now - start, second, callers, callees, rate, paused });
        if log.seconds.len() < SECONDS_MAX {
            log.seconds.push(second.clone());
        }
        if over {
            break;
        }
    }
    log.calls = watch.uac.take().map(Uac::join);
    // The last ACK may be on its way through an element when the last call is complete.
    std::thread::sleep(LOOK);
    log.callees = watch.uas.take().map(Uas::join);
    // A tick is a hundredth of a second, whatever the kernel's own is (USER_HZ).
    let stolen_ns = usage::steal_ticks().saturating_sub(steal) as f64 * SECOND_NS as f64 / 100.0;
    log.conditions.steal = stolen_ns / (now_ns() - start).max(1) as f64 / usage::cores() as f64;
    log.conditions.memory_kib = peak_memory_kib();
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

    fn snapshots(&self) -> (uac::Snapshot, uas::Report) {
        let callers = self.uac.as_ref().map(Uac::snapshot).unwrap_or_default();
        (callers, self.uas.as_ref().map(Uas::snapshot).unwrap_or_default())
    }

    /// What has happened since `before`, which becomes the present.
    fn second(
        &self,
        before: &mut (u64, uac::Counts, uas::Counts),
        now: u64,
        calls: &uac::Snapshot,
        callees: &uas::Report,
    ) -> Second {
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
            lateness_max_ns: calls.lateness.max(),
            latency: calls.latency.steps(),
        }
    }
}

/// Marks what is not a whole and valid result.
fn judge(plan: &Plan, wishes: u32, log: &mut Log) {
    let mut marks = Vec::new();
    if let Some(calls) = &log.calls {
        judge_callers(plan, wishes, calls, &mut marks);
    }
    if let Some(callees) = &log.callees {
        judge_callees(callees, &mut marks);
    }
    if log.conditions.steal > STEAL_MAX {
        marks.push(format!("NOISY: the hypervisor took {:.1} % of the time", log.conditions.steal * 100.0));
    }
    log.marks.extend(marks);
}

fn judge_callers(plan: &Plan, wishes: u32, calls: &uac::Report, marks: &mut Vec<String>) {
    let counts = calls.counts;
    if wishes > 0 {
        marks.push("PARTIAL: ended by the user".to_owned());
    } else if counts.cut > 0 {
        marks.push(format!("PARTIAL: {} calls were still open when the time to end had passed (--drain)", counts.cut));
    }
    if counts.unplaced > 0 {
        let due = counts.placed + counts.unplaced;
        marks.push(format!(
            "VOID: the rate is beyond this generator: {} of {due} calls that were due could not be placed; \
             lower --rate, or give it more --cores",
            counts.unplaced
        ));
    }
    let late = calls.lateness.at(0.999);
    if late > plan.lateness_max_ns {
        let (late, limit) = (Short(late), Short(plan.lateness_max_ns));
        marks.push(format!(
            "VOID: the generator was late: one call in a thousand by {late} and more, {limit} is allowed (--lateness-max)"
        ));
    }
    if counts.received() == 0 && counts.placed > 0 {
        let why = calls.hindrance().unwrap_or(match (counts.refused, counts.unsent) {
            (0, 0) => "nothing came back: the target swallows what it gets, or its answers go elsewhere",
            (0, _) => "this machine's kernel did not take them: a firewall, or no way there",
            _ => "nobody listens there (ICMP port unreachable, or connection refused)",
        });
        marks.push(format!("VOID: not one request was answered; {why}"));
    }
    judge_shards("callers", counts.overflowed, calls.broken, calls.usage.waiting_ns, calls.lives_ns, marks);
}

fn judge_callees(callees: &uas::Report, marks: &mut Vec<String>) {
    let overflowed = callees.total().overflowed;
    judge_shards("callees", overflowed, callees.broken, callees.usage.waiting_ns, callees.lives_ns, marks);
}

/// What makes the generator the one to blame, on either side.
fn judge_shards(side: &str, overflowed: u64, broken: u64, waiting_ns: u64, lives_ns: u64, marks: &mut Vec<String>) {
    if overflowed > 0 {
        marks.push(format!(
            "VOID: {overflowed} datagrams for the {side} were dropped by this machine's own full receive buffers; \
             net.core.rmem_max may be too small, or the {side} too slow"
        ));
    }
    if broken > 0 {
        marks.push(format!("VOID: {broken} of the {side}' threads ended before their time; what went wrong is above"));
    }
    let waiting = waiting_ns as f64 / lives_ns.max(1) as f64;
    if waiting > WAITING_MAX {
        marks.push(format!(
            "NOISY: for {:.1} % of the time the {side} waited for a core that something else had",
            waiting * 100.0
        ));
    }
}

/// One line about one second.
pub fn line(progress: &Progress<'_>) -> String {
    let Progress { at_ns, second, rate, .. } = *progress;
    let per_second = |count: u64| count as f64 * SECOND_NS as f64 / second.length_ns.max(1) as f64;
    let seconds = at_ns as f64 / SECOND_NS as f64;
    let (placed, completed) = (per_second(second.placed), per_second(second.completed));
    let Second { failed, retransmissions, open, .. } = second;
    if rate == 0.0 {
        // Callees by themselves.
        return format!(
            "{seconds:>6.1}s  {placed:>9.1} calls/s  {completed:>9.1} done/s  again {retransmissions:<6} open {open}"
        );
    }
    let latencies: Latencies = second.latencies();
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|quantile| latencies.short(quantile));
    let late = second.lateness();
    format!(
        "{seconds:>6.1}s  {placed:>9.1} calls/s  {completed:>9.1} done/s  failed {failed:<6} again {retransmissions:<6} open {open:<8} \
         p50 {p50:>7} p99 {p99:>7} max {max:>7} late {late:>7}"
    )
}
