//! Rounds: every element once per round, one after the other, each under every load; the order turns by one from round to
//! round, so that nobody always comes first.

use super::driver::{Driver, Offer, Seen, Sink};
use super::element::{Element, Running, installed};
use super::hop::{self, Cores};
use crate::clock::{MS_NS, SECOND_NS};
use crate::failure::{Exit, Failure};
use crate::schedule::Arrivals;
use crate::sys::process::{self, signal_group};
use crate::usage::{self, Usage};
use serde::{Deserialize, Serialize};
use std::process::{Command, Stdio};

/// How long an element may take from its start to its first answer, in nanoseconds.
const READY_NS: u64 = 10 * SECOND_NS;

/// Load before each measurement, in nanoseconds.
const WARM_UP_NS: u64 = 300 * MS_NS;

/// Requests a second while system calls are counted: strace makes each of them some ten times slower.
const TRACED_RATE: f64 = 1000.0;

/// From this share of stolen time on, a measurement is void: it tells of the machine and not of the element.
pub const STEAL_MAX: f64 = 0.005;

/// And from this share of waiting for a core that something else had. What runs by itself on a core waits for kernel
/// threads only.
pub const CONTENDED_MAX: f64 = 0.05;

/// How often a measurement that is void is made again.
const AGAIN: usize = 4;

/// How long a measurement waits for its cores to be near each other, in nanoseconds.
const NEAR_NS: u64 = 5 * SECOND_NS;

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The elements.
    pub elements: Vec<Element>,
    /// Loads in requests a second; `None` is saturation.
    pub loads: Vec<Option<f64>>,
    /// How many rounds.
    pub rounds: usize,
    /// How long each measurement takes, in nanoseconds.
    pub measure_ns: u64,
    /// The core of the elements.
    pub core: usize,
    /// The core of the thread that runs the plan.
    pub driver_core: usize,
    /// Different lengths of requests, and of responses.
    pub lengths: usize,
    /// Connections of the client, to elements that are spoken to over TCP.
    pub connections: usize,
    /// Whether system calls are counted, with strace, in a trial of their own.
    pub system_calls: bool,
}

/// One measurement.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// The element's name.
    pub element: String,
    /// Which round, from 0.
    pub round: usize,
    /// Requests a second that were offered; `None` is saturation.
    pub load: Option<f64>,
    /// Messages a second that came through.
    pub messages_per_second: f64,
    /// CPU microseconds of the element for one message, all its threads, user and kernel.
    pub cpu_us_per_message: f64,
    /// Round trip from the scheduled time, in nanoseconds: half of all are shorter. At saturation from when it was sent: how
    /// long 512 requests queue.
    pub round_trip_p50_ns: u64,
    /// 99 of 100 are shorter.
    pub round_trip_p99_ns: u64,
    /// The driver's own lateness; 99 of 100 are less.
    pub lateness_p99_ns: u64,
    /// Requests sent.
    pub sent: u64,
    /// Requests without a response.
    pub lost: u64,
    /// Responses that were not what the sink sent.
    pub wrong: u64,
    /// Share of the time that the hypervisor gave to others, 0 to 1.
    pub steal: f64,
    /// Share of the time that the element was ready to run and others had its core, 0 to 1.
    pub contended: f64,
    /// Round trip between the two cores, in nanoseconds, before or after it, whichever was longer; 0 if it is not known.
    #[serde(default)]
    pub distance_ns: u64,
}

impl Sample {
    /// Whether it tells of the machine and not of the element. `least_ns` is the least distance of the cores.
    pub fn is_void(&self, least_ns: u64) -> bool {
        self.is_stolen() || self.is_contended() || self.is_apart(least_ns)
    }

    /// Whether the cores were further apart than at other times, of which `least_ns` is the least distance.
    pub fn is_apart(&self, least_ns: u64) -> bool {
        hop::is_apart(self.distance_ns, least_ns)
    }

    /// Whether the hypervisor took too much of the time.
    pub fn is_stolen(&self) -> bool {
        self.steal > STEAL_MAX
    }

    /// Whether the element had to wait for its core too long.
    pub fn is_contended(&self) -> bool {
        self.contended > CONTENDED_MAX
    }
}

/// What came of a plan.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// The machine.
    pub machine: String,
    /// All measurements that count. Those that are void are so after all repetitions.
    pub samples: Vec<Sample>,
    /// Void measurements that were made again, and do not count.
    #[serde(default)]
    pub repeated: Vec<Sample>,
    /// System calls per message, by element; elements whose calls could not be counted are missing.
    pub system_calls: Vec<(String, f64)>,
    /// Elements that did not start or did not answer, and what they said.
    pub missing: Vec<(String, String)>,
    /// Whether the user ended it before all rounds were done.
    pub cut: bool,
}

impl Outcome {
    /// The least distance of the cores in any measurement, in nanoseconds.
    pub fn least_distance_ns(&self) -> u64 {
        let all = self.samples.iter().chain(&self.repeated).map(|sample| sample.distance_ns);
        all.filter(|&ns| ns > 0).min().unwrap_or(u64::MAX)
    }
}

/// Runs the plan. `progress` hears each sample.
pub fn run(plan: &Plan, mut progress: impl FnMut(&Sample)) -> Result<Outcome, Failure> {
    let mut outcome = Outcome { machine: usage::machine(), ..Outcome::default() };
    let mut cores = Cores::new(plan.driver_core, plan.core);
    for round in 0..plan.rounds {
        for turn in 0..plan.elements.len() {
            let element = &plan.elements[(turn + round) % plan.elements.len()];
            if outcome.missing.iter().any(|(name, _)| *name == element.name) {
                continue;
            }
            if process::stop_signals() > 0 {
                outcome.cut = true;
                return Ok(outcome);
            }
            visit(plan, element, round, &mut cores, &mut outcome, &mut progress)?;
        }
    }
    Ok(outcome)
}

/// Starts one element and puts every load on it.
fn visit(
    plan: &Plan,
    element: &Element,
    round: usize,
    cores: &mut Cores,
    outcome: &mut Outcome,
    progress: &mut impl FnMut(&Sample),
) -> Result<(), Failure> {
    let broken =
        |error: std::io::Error| Failure::new(Exit::Environment, "compare", format!("the driver's socket: {error}"));
    let sink = Sink::open(element.behind()).map_err(broken)?;
    let running = match element.start(plan.core, sink.endpoint().address) {
        Ok(running) => running,
        Err(failure) => {
            outcome.missing.push((element.name.clone(), failure.what().to_owned()));
            return Ok(());
        }
    };
    let tls = element.tls().map_or((None, None), |tls| (Some(tls.client.clone()), Some(tls.server.clone())));
    let mut driver = Driver::new(sink, running.target, plan.lengths, plan.connections, tls).map_err(broken)?;
    if !driver.probe(READY_NS).map_err(broken)? {
        if process::stop_signals() > 0 {
            outcome.cut = true;
            return Ok(());
        }
        let what = format!("no answer within {} s. {}", READY_NS / SECOND_NS, running.last_words());
        outcome.missing.push((element.name.clone(), what));
        return Ok(());
    }
    for &load in &plan.loads {
        let offer =
            Offer { rate: load, arrivals: Arrivals::Poisson, warm_up_ns: WARM_UP_NS, measure_ns: plan.measure_ns };
        let pids = running.pids();
        for left in (0..=AGAIN).rev() {
            let distance_before = cores.wait_until_near(NEAR_NS, |ns| driver.serve(ns)).map_err(broken)?;
            // It is asked at the start and at the end of what is measured, so this ends as the difference.
            let mut ticks = 0;
            let probe = || {
                ticks = usage::steal_ticks().saturating_sub(ticks);
                usage::of(&pids)
            };
            let seen = driver.offer(&offer, probe).map_err(broken)?;
            if process::stop_signals() > 0 {
                // Shorter than it should be: no measurement.
                outcome.cut = true;
                return Ok(());
            }
            let distance_ns = distance_before.max(cores.distance_ns());
            let sample = Sample { distance_ns, ..sample(element, round, load, &seen, ticks) };
            if !sample.is_void(cores.least_ns()) || left == 0 {
                progress(&sample);
                outcome.samples.push(sample);
                break;
            }
            outcome.repeated.push(sample);
        }
    }
    if plan.system_calls
        && round + 1 == plan.rounds
        && let Some(per_message) = count_system_calls(plan, &running, &mut driver).map_err(broken)?
    {
        outcome.system_calls.push((element.name.clone(), per_message));
    }
    Ok(())
}

fn sample(element: &Element, round: usize, load: Option<f64>, seen: &Seen, steal_ticks: u64) -> Sample {
    let (cores, Usage { on_cpu_ns, waiting_ns }) = (usage::cores() as f64, seen.element);
    // Workers on one core wait for each other, too. Others cannot have had it for longer than the element had it not.
    let others_ns = waiting_ns.min(seen.elapsed_ns.saturating_sub(on_cpu_ns));
    // A tick is a hundredth of a second, whatever the kernel's own is (USER_HZ).
    let steal = steal_ticks as f64 / 100.0 / (seen.elapsed_ns.max(1) as f64 / SECOND_NS as f64) / cores;
    Sample {
        element: element.name.clone(),
        round,
        load,
        messages_per_second: seen.messages_per_second(),
        cpu_us_per_message: seen.cpu_us_per_message(),
        round_trip_p50_ns: seen.round_trip.at(0.5),
        round_trip_p99_ns: seen.round_trip.at(0.99),
        lateness_p99_ns: seen.lateness.at(0.99),
        sent: seen.sent,
        lost: seen.lost,
        wrong: seen.wrong,
        steal,
        contended: others_ns as f64 / seen.elapsed_ns.max(1) as f64,
        distance_ns: 0,
    }
}

/// System calls per message, in a trial of its own: at saturation if the plan has that, where batches are full, else at
/// [`TRACED_RATE`], where they are small. `None` where strace is not installed or may not trace.
fn count_system_calls(plan: &Plan, running: &Running, driver: &mut Driver) -> std::io::Result<Option<f64>> {
    let (Some(strace), pids) = (installed("strace"), running.pids()) else { return Ok(None) };
    if pids.is_empty() {
        return Ok(None);
    }
    let mut command = Command::new(strace);
    command.args(["-f", "-c"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    for pid in &pids {
        command.args(["-p", &pid.to_string()]);
    }
    process::confine(&mut command, &[]);
    let Ok(strace) = command.spawn() else { return Ok(None) };
    std::thread::sleep(std::time::Duration::from_millis(500));
    let rate = if plan.loads.contains(&None) { None } else { Some(TRACED_RATE) };
    let offer = Offer { rate, arrivals: Arrivals::Poisson, warm_up_ns: 0, measure_ns: SECOND_NS };
    let seen = driver.offer(&offer, Usage::default)?;
    signal_group(strace.id(), libc::SIGINT);
    let output = strace.wait_with_output()?;
    let calls = total_calls(&String::from_utf8_lossy(&output.stderr));
    Ok(calls.filter(|_| seen.forwarded() > 0).map(|calls| calls as f64 / seen.forwarded() as f64))
}

/// The number of calls in the last line of `strace -c`: `100.00    0.123456   7   12345   10 total`.
fn total_calls(text: &str) -> Option<u64> {
    let line = text.lines().rev().find(|line| line.trim_end().ends_with(" total"))?;
    // Before the name there may be a column of errors, which is empty where there were none.
    line.split_ascii_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_summary_of_strace_is_read_with_and_without_errors() {
        assert_eq!(total_calls("x\n100.00    0.000134          11        12         1 total\n"), Some(12));
        assert_eq!(total_calls("x\n100.00    0.000134          11        12           total\n"), Some(12));
        assert_eq!(total_calls("strace: attach: Operation not permitted"), None);
    }

    #[test]
    fn workers_that_wait_for_each_other_are_not_held_up_by_others() {
        let element = Element::read("direct", Path::new("/nowhere")).unwrap();
        let contended = |on_cpu_ns, waiting_ns| {
            let seen = Seen { elapsed_ns: 1000, element: Usage { on_cpu_ns, waiting_ns }, ..Seen::default() };
            sample(&element, 0, None, &seen, 0).contended
        };
        assert_eq!(contended(990, 2000), 0.01, "three workers of which one runs");
        assert_eq!(contended(400, 300), 0.3);
    }

    #[test]
    fn an_element_that_does_not_start_is_missing_and_the_others_go_on() {
        let element = |text| Element::read(text, Path::new("/nowhere")).unwrap();
        let plan = Plan {
            elements: vec![element("ghost=/nowhere/at-all {port}"), element("direct")],
            loads: vec![Some(2000.0)],
            rounds: 2,
            measure_ns: 50 * MS_NS,
            core: process::cores()[0],
            driver_core: process::cores()[0],
            lengths: 1,
            connections: 1,
            system_calls: false,
        };
        let mut heard = 0;
        let outcome = run(&plan, |_| heard += 1).unwrap();
        assert_eq!((heard, outcome.samples.len(), outcome.missing.len()), (2, 2, 1));
        assert!(outcome.missing[0].1.contains("does not start"));
        assert!(outcome.samples.iter().all(|sample| sample.lost == 0 && sample.wrong == 0), "{:?}", outcome.samples);
    }
}
