//! `viahop-load search`: the highest rate an element sustains.

use super::options::{Called, Calling, positive, read_cores, shards};
use super::result_file::ResultFile;
use super::{Cores, Outcome};
use crate::clock::{SECOND_NS, ns};
use crate::endpoint::{Endpoint, parse_target};
use crate::failure::{Exit, Failure};
use crate::latency::Short;
use crate::log::Log;
use crate::run::{self, Plan};
use crate::say::answer;
use crate::search::{BASELINE_TRIALS, Found, HEADROOM, Parameters, Verdict, search};
use crate::sys::process;
use crate::timer::Timers;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Find the Session Establishment Rate of an element: the highest rate it sustains, by the procedure of RFC 7502 4.10.
///
/// Callers and callees are both played here, around the element. --rate is where the search begins, --seconds how long
/// each trial is. Calls that are open three seconds after a trial count as failed. Then the same load goes straight to the
/// callees: a generator that does not do 1.3 times the rate without the element was the limit itself, and the result is
/// INVALID.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The element, as sip:HOST:PORT, or sip:HOST:PORT;transport=tcp. Without it: what this machine's generator can do by itself.
    #[arg(long, value_parser = parse_target, env = "VIAHOP_LOAD_TARGET")]
    target: Option<Endpoint>,
    /// The share of calls that may fail in a trial, in percent. RFC 7502: 0.
    #[arg(long, value_name = "PERCENT", default_value_t = 0.1, value_parser = percent)]
    failed_max: f64,
    /// By which share the rate rises at first (w of RFC 7502), 0 to 1.
    #[arg(long, default_value_t = 1.0, value_parser = weight)]
    rise: f64,
    /// Trials that have to confirm the result. RFC 7502: 10.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    confirmations: u32,
    /// Cores of the callers, one shard each: 0,2-3. Default: one shard, anywhere.
    #[arg(long, value_parser = read_cores, value_name = "LIST")]
    cores: Option<Cores>,
    /// Cores of the callees, one shard each. Default: one shard, anywhere.
    #[arg(long, value_parser = read_cores, value_name = "LIST")]
    callee_cores: Option<Cores>,
    /// Write result and trials to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    called: Called,
    #[command(flatten)]
    calling: Calling,
}

fn percent(text: &str) -> Result<f64, String> {
    let percent = text.parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
    percent.ok_or_else(|| "a share in percent is wanted, 0 to 100, without the sign".to_owned())
}

fn weight(text: &str) -> Result<f64, String> {
    positive(text)
        .ok()
        .filter(|weight| *weight <= 1.0)
        .ok_or_else(|| "a number above 0 and not above 1 is wanted".to_owned())
}

/// How long open calls are waited for after a trial, if --drain does not say less.
const DRAIN_MAX: Duration = Duration::from_secs(3);

#[derive(Serialize)]
struct Trial {
    rate: u64,
    verdict: Verdict,
    placed: u64,
    failed: u64,
    p99_ns: u64,
    lateness_p999_ns: u64,
}

#[derive(Serialize)]
struct Report<'a> {
    machine: String,
    found: Found,
    valid: bool,
    trials: &'a [Trial],
}

pub fn run(args: &Args) -> Outcome {
    args.calling.suits(target(args)?)?;
    let file = args.json.as_deref().map(ResultFile::open).transpose()?;
    process::catch_stop_signals();
    let mut trials = Vec::new();
    let parameters = Parameters { first: args.calling.rate as u64, rise: args.rise, confirmations: args.confirmations };
    let found = search(&parameters, |rate| {
        let Some(trial) = attempt(args, args.target, rate)? else { return Ok(None) };
        say!("{}", describe(trials.len() + 1, &trial));
        let verdict = trial.verdict;
        trials.push(trial);
        Ok::<_, Failure>(Some(verdict))
    })?;
    answer(format_args!("{}", setup(args)?));
    let valid = conclude(args, found)?;
    if let Some(file) = file {
        let report = Report { machine: crate::usage::machine(), found, valid, trials: &trials };
        let text = serde_json::to_string_pretty(&report).expect("names and numbers are JSON");
        file.write(&text)?;
    }
    Ok(if valid { ExitCode::SUCCESS } else { ExitCode::from(Exit::Failed as u8) })
}

/// The Test Setup Report of RFC 7502 5.1, as far as it is about us.
fn setup(args: &Args) -> Result<String, Failure> {
    let calling = &args.calling;
    let threshold = Timers::default().give_up_ns();
    let threshold = threshold as f64 / SECOND_NS as f64 * calling.t1.as_secs_f64() / 0.5;
    Ok(format!(
        "SIP Transport Protocol = {}\n\
         Session Attempt Rate = {} sessions/s (initial)\n\
         Session Duration = {} s\n\
         Total Sessions Attempted = rate times {} s, in each trial\n\
         Media Streams per Session = 0\n\
         Establishment Threshold time = {threshold:.1} s (64 times T1), at most {} s after the last attempt\n\
         Traffic increase weight = {}, sessions that may fail = {} %, confirmations = {}\n",
        target(args)?.transport.in_via(),
        calling.rate,
        calling.hold.as_secs_f64(),
        calling.seconds,
        DRAIN_MAX.min(calling.drain).as_secs_f64() + calling.hold.as_secs_f64(),
        args.rise,
        args.failed_max,
        args.confirmations
    ))
}

/// Whom the trials call.
fn target(args: &Args) -> Result<Endpoint, Failure> {
    Ok(args.target.unwrap_or(args.called.backends()?[0]))
}

/// Prints the result and says whether it is one.
fn conclude(args: &Args, found: Found) -> Result<bool, Failure> {
    let rate = match found {
        Found::Rate(rate) => rate,
        Found::Ended(best) => {
            say!("PARTIAL: ended by the user; the best trial that went well was {best}/s");
            return Ok(false);
        }
        Found::GeneratorLimited => {
            say!("INVALID: generator-limited: not even one call per second could be placed in time");
            return Ok(false);
        }
        Found::Nothing => {
            say!("INVALID: not even one call per second succeeds");
            return Ok(false);
        }
        Found::Unsteady(best) => {
            say!("INVALID: no convergence; the best trial that went well was {best}/s");
            return Ok(false);
        }
    };
    if args.target.is_some() {
        let wanted = (rate as f64 * HEADROOM).ceil() as u64;
        let mut sustained = false;
        for _ in 0..BASELINE_TRIALS {
            let Some(trial) = attempt(args, None, wanted)? else {
                say!("PARTIAL: ended by the user; whether the generator was the limit at {rate}/s is not known");
                return Ok(false);
            };
            say!("baseline of the testbed (RFC 7502 6.1): {}", describe(0, &trial));
            sustained = trial.verdict == Verdict::Sustained;
            if sustained {
                break;
            }
        }
        if !sustained {
            say!("INVALID: generator-limited: without the element it does not do {HEADROOM} times {rate}/s either");
            return Ok(false);
        }
    }
    say!("Session Establishment Rate, R = {rate} sessions/s");
    Ok(true)
}

/// One trial; `None` if the user has ended it, and of what was shorter than it should be nothing follows.
fn attempt(args: &Args, target: Option<Endpoint>, rate: u64) -> Result<Option<Trial>, Failure> {
    let cores = shards(args.callee_cores.as_deref().unwrap_or_default());
    let mut callees = args.called.config(cores, args.calling.password.as_deref())?;
    callees.segments = args.calling.gso;
    let straight = target.is_none();
    let target = target.unwrap_or(callees.backends[0]);
    let mut calls = args.calling.config(target, shards(args.cores.as_deref().unwrap_or_default()))?;
    callees.timers = calls.timers;
    if straight && args.target.is_some() {
        // --tls-ca and the like are about the element, which is not there.
        calls.tls = None;
    }
    calls.rate = rate as f64;
    calls.duration_ns = (args.calling.seconds * SECOND_NS as f64) as u64;
    calls.drain_ns = calls.hold_ns + ns(DRAIN_MAX.min(args.calling.drain));
    let lateness_max_ns = ns(*args.calling.lateness_max);
    let plan = Plan { calls: Some(calls), callees: Some(callees), straight, until_ns: u64::MAX, lateness_max_ns };
    let log = run::run(&plan, &mut ())?;
    Ok((process::stop_signals() == 0).then(|| judge(args, rate, &log)))
}

fn judge(args: &Args, rate: u64, log: &Log) -> Trial {
    let report = log.calls.clone().unwrap_or_default();
    let counts = report.counts;
    let failed = counts.placed - counts.completed;
    let lateness_p999_ns = report.lateness.at(0.999);
    let own_losses = counts.overflowed + log.callees.as_ref().map_or(0, |callees| callees.total().overflowed);
    let late = lateness_p999_ns > ns(*args.calling.lateness_max) || counts.unplaced > 0 || own_losses > 0;
    // What failed while the generator was late, or lost datagrams of its own, may have failed because of that.
    let verdict = if late {
        Verdict::GeneratorLimited
    } else if failed as f64 * 100.0 > counts.placed as f64 * args.failed_max {
        Verdict::Failed
    } else {
        Verdict::Sustained
    };
    Trial { rate, verdict, placed: counts.placed, failed, p99_ns: report.latency().at(0.99), lateness_p999_ns }
}

fn describe(number: usize, trial: &Trial) -> String {
    let verdict = match trial.verdict {
        Verdict::Failed => "failed",
        Verdict::GeneratorLimited => "generator late",
        Verdict::Sustained => "sustained",
    };
    let number = if number > 0 { format!("trial {number:>3}: ") } else { String::new() };
    format!(
        "{number}{:>7}/s {verdict}: {} of {} calls failed, p99 {}, own lateness p99.9 {}",
        trial.rate,
        trial.failed,
        trial.placed,
        Short(trial.p99_ns),
        Short(trial.lateness_p999_ns)
    )
}
