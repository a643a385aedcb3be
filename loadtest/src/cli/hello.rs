//! `viahop-load hello`: handshakes that are begun and never ended.

use super::Outcome;
use super::options::{enough_descriptors, own_address, positive};
use crate::clock::{SECOND_NS, ns};
use crate::endpoint::{Endpoint, parse_target};
use crate::failure::{Exit, Failure};
use crate::hello::{self, Plan, WAITING_MAX};
use crate::sys::process;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

/// Begin TLS handshakes and never end one: what an attacker can make an element work.
///
/// The same ClientHello goes over ever new connections, each of which is reset when the element has answered. That costs
/// us next to nothing, and the element a key exchange and a signature each. Beside it runs what is to be measured: what
/// does a flood do to everybody else?
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example, with a load over UDP beside it:
  viahop-load hello --target 'sip:127.0.0.1:5061;transport=tls' --rate 1000 &
  viahop-load uac --target sip:127.0.0.1:5060 --rate 5000 --seconds 8")]
pub struct Args {
    /// The element, as sip:HOST:PORT;transport=tls. On this machine, unless --anywhere is given.
    #[arg(long, value_parser = parse_target, env = "VIAHOP_LOAD_TARGET")]
    target: Endpoint,
    /// Connections a second.
    #[arg(long, default_value_t = 500.0, value_parser = positive)]
    rate: f64,
    /// How long.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Our own address. Default: the one from which the kernel would send to the target.
    #[arg(long, value_name = "IP")]
    from: Option<IpAddr>,
    /// Lets the target be another machine: one whose owner has agreed to it.
    #[arg(long)]
    anywhere: bool,
}

pub fn run(args: &Args) -> Outcome {
    let target = args.target.address;
    if !args.target.transport.has_tls() {
        let failure = Failure::new(Exit::Usage, "hello", "there are no handshakes but over TLS");
        return Err(failure.help(format!("--target 'sip:{target};transport=tls'")));
    }
    if !target.ip().is_loopback() && !args.anywhere {
        let failure = Failure::new(Exit::Usage, "hello", format!("{target} is not on this machine"));
        return Err(failure.help("--anywhere, if its owner has agreed: to everybody else this is an attack"));
    }
    enough_descriptors(WAITING_MAX)?;
    let from = own_address(args.from, target)?;
    process::catch_stop_signals();
    let hello = hello::hello(&target.ip().to_string())
        .map_err(|error| Failure::new(Exit::Failed, "hello", format!("no ClientHello can be made: {error}")))?;
    let plan = Plan { target, from, hello, rate: args.rate, for_ns: ns(Duration::from_secs(args.seconds)) };
    let came =
        hello::run(&plan).map_err(|error| Failure::new(Exit::Failed, "hello", format!("the connections: {error}")))?;
    let seconds = came.took_ns as f64 / SECOND_NS as f64;
    say!(
        "handshakes begun: {} in {seconds:.1} s ({:.0}/s), each with the same {} octets",
        came.said,
        came.said as f64 / seconds,
        plan.hello.len()
    );
    say!(
        "answered {} ({:.0}/s), closed or refused {}, unanswered {}, not opened {}, left out {}",
        came.answered,
        came.answered as f64 / seconds,
        came.refused,
        came.unanswered,
        came.failed,
        came.left_out
    );
    if came.said == 0 {
        say!("VOID: no connection could be opened");
        return Ok(ExitCode::from(Exit::Failed as u8));
    }
    Ok(ExitCode::SUCCESS)
}
