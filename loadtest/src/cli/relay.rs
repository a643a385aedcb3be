//! `viahop-load relay`: the null relay as a process of its own.

use super::Outcome;
use crate::endpoint::{Endpoint, Transport, parse_listen, parse_target};
use crate::failure::{Exit, Failure, cannot_bind};
use crate::relay::{Mode, Relay};
use crate::sys::process;
use std::net::SocketAddr;
use std::process::ExitCode;

/// Relay UDP datagrams without looking at them: the least that any element in the path can cost.
///
/// Whatever does not come from the backend goes to the backend; whatever comes from the backend goes to whoever sent
/// last. So it serves one client at a time, and only callees that answer to where a request came from.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to listen, as udp:ADDRESS:PORT. Port 0: any free one, which is printed.
    #[arg(long, value_parser = one_address, default_value = "udp:127.0.0.1:5060", env = "VIAHOP_LOAD_LISTEN")]
    listen: SocketAddr,
    /// Who gets what the client sends, as sip:ADDRESS:PORT.
    #[arg(long, value_parser = one_target, env = "VIAHOP_LOAD_BACKEND")]
    backend: SocketAddr,
    /// Stay on this core (0 is the first). Default: the kernel moves it about, and figures move with it.
    #[arg(long, env = "VIAHOP_LOAD_CORE")]
    core: Option<usize>,
    /// How to talk to the kernel: batched is 32 datagrams per system call, scalar is one.
    #[arg(long, value_enum, default_value_t = ModeName::Batched)]
    mode: ModeName,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ModeName {
    Batched,
    Scalar,
}

pub fn run(args: &Args) -> Outcome {
    if let Some(core) = args.core {
        process::pin_this_thread(core).map_err(|error| {
            Failure::new(Exit::Environment, "start", format!("core {core} is not to be had: {error}"))
                .help(format!("this process may use {:?}", process::cores()))
        })?;
    }
    let mut relay = Relay::bind(args.listen, args.backend).map_err(|error| cannot_bind(args.listen, &error))?;
    process::catch_stop_signals();
    say!("relay udp:{} -> udp:{}", relay.local(), args.backend);
    let mode = match args.mode {
        ModeName::Batched => Mode::Batched,
        ModeName::Scalar => Mode::Scalar,
    };
    let counts = relay
        .run(mode, || process::stop_signals() > 0)
        .map_err(|error| Failure::new(Exit::Failed, "relay", format!("the socket failed: {error}")))?;
    say!("received {} sent {} system calls {}", counts.received, counts.sent, counts.system_calls);
    Ok(ExitCode::SUCCESS)
}

fn one_address(text: &str) -> Result<SocketAddr, String> {
    match parse_listen(text)?.as_slice() {
        [endpoint] => only_udp(*endpoint),
        endpoints => Err(format!("one port is wanted, {} were given", endpoints.len())),
    }
}

fn one_target(text: &str) -> Result<SocketAddr, String> {
    only_udp(parse_target(text)?)
}

fn only_udp(endpoint: Endpoint) -> Result<SocketAddr, String> {
    match endpoint.transport {
        Transport::Udp => Ok(endpoint.address),
        other => Err(format!("the null relay passes datagrams on, and no connections: udp: where {other}: stands")),
    }
}
