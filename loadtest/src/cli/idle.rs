//! `viahop-load idle`: connections that do nothing.

use super::Outcome;
use super::options::{enough_descriptors, own_address};
use crate::clock::{SECOND_NS, ns};
use crate::endpoint::{Endpoint, Transport, parse_target};
use crate::failure::{Exit, Failure};
use crate::idle::{self, Plan};
use crate::sys::process;
use crate::tls;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

/// Hold many connections open that do nothing, and say what they cost the element.
///
/// Each is asked with an OPTIONS when it is open and again at the end; only those whose 200 came both times count. The
/// element has to allow as many connections of one address.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The element, as sip:HOST:PORT;transport=tcp, or tls.
    #[arg(long, value_parser = parse_target, env = "VIAHOP_LOAD_TARGET")]
    target: Endpoint,
    /// How many.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    connections: u32,
    /// How long they do nothing.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    hold: Duration,
    /// The element's process: its memory, and that of all it has started, is what is asked for.
    #[arg(long)]
    pid: Option<u32>,
    /// What it may have with all connections open, in MiB; more, and the exit code is 99.
    #[arg(long, value_name = "MIB", requires = "pid")]
    memory_max: Option<f64>,
    /// Our own address. Default: the one from which the kernel would send to the target.
    #[arg(long, value_name = "IP")]
    from: Option<IpAddr>,
}

pub fn run(args: &Args) -> Outcome {
    if args.target.transport == Transport::Udp {
        let failure = Failure::new(Exit::Usage, "idle", "there are no connections over UDP");
        return Err(failure.help(format!("--target 'sip:{};transport=tcp'", args.target.address)));
    }
    let connections = args.connections as usize;
    enough_descriptors(connections)?;
    let target = args.target.address;
    let from = own_address(args.from, target)?;
    if let Some(pid) = args.pid.filter(|pid| crate::usage::resident_kib(*pid) == 0) {
        return Err(Failure::new(Exit::Environment, "idle", format!("there is no process {pid}")));
    }
    process::catch_stop_signals();
    let transport = args.target.transport;
    let tls = transport.has_tls().then(|| tls::Client::new(&target.ip().to_string(), None)).transpose()?;
    let plan = Plan { target, transport, tls, from, connections, hold_ns: ns(args.hold), pid: args.pid };
    let outcome =
        idle::run(&plan).map_err(|error| Failure::new(Exit::Failed, "idle", format!("the connections: {error}")))?;
    let mib = |kib: u64| kib as f64 / 1024.0;
    let seconds = outcome.opening_ns as f64 / SECOND_NS as f64;
    say!("connections: {} of {connections} open and answered in {seconds:.1} s", outcome.answered);
    let is_cut = process::stop_signals() > 0;
    if !is_cut {
        say!("after {:.0} s: {} answered again", args.hold.as_secs_f64(), outcome.answered_again);
    }
    let most = outcome.open_kib.max(outcome.after_kib);
    if args.pid.is_some() {
        say!(
            "memory: {:.1} MiB before, {:.1} MiB with them, {:.1} MiB after that; {:.2} KiB each",
            mib(outcome.before_kib),
            mib(outcome.open_kib),
            mib(outcome.after_kib),
            most.saturating_sub(outcome.before_kib) as f64 / outcome.answered.max(1) as f64
        );
    }
    if is_cut {
        say!("PARTIAL: ended by the user before all had been asked again");
        return Ok(ExitCode::from(Exit::Failed as u8));
    }
    if outcome.answered_again < connections {
        say!("VOID: not all connections were open; `max_per_source` and the like, or too few descriptors over there");
        return Ok(ExitCode::from(Exit::Failed as u8));
    }
    match args.memory_max {
        Some(max) if mib(most) > max => {
            say!("BROKEN: {:.1} MiB, at most {max} were allowed", mib(most));
            Ok(ExitCode::from(Exit::AssertionBroken as u8))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}
