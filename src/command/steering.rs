//! Which shard a datagram comes to: what was asked for, what this machine lets us, and how that is said.

use tracing::{info, warn};
use viahop::control::config::problem::Problem;
use viahop::control::config::{self, Config, EgressMode};
use viahop::control::steering::{COST, Steering};
use viahop::shard::Unstarted;
use viahop::shard::steering::program::Outcome;
use viahop::shard::steering::{self, Missing};

/// Puts a program at the ports that all shards share, if that is wanted and can be had, and logs which it is. The port
/// towards backends is among them if it is `shared`. `seed` decides which Call-ID is whose.
///
/// # Errors
/// It is wanted, and what is missing.
pub fn install(wanted: config::Steering, shards: &[Unstarted], shared: bool, seed: u64) -> Result<Steering, Problem> {
    let has_choice = |first: &&Unstarted| shards.len() > 1 && (shared || first.sockets().listeners() > 0);
    let Some(first) = shards.first().filter(has_choice).filter(|_| wanted != config::Steering::Kernel) else {
        info!(event = "steering", by = "kernel", wanted = wanted.word(), shards = shards.len());
        return Ok(Steering::off(wanted));
    };
    let sockets = shards.iter().map(Unstarted::sockets);
    let listeners = (0..first.sockets().listeners())
        .map(|index| sockets.clone().filter_map(|one| one.listener(index)).collect::<Vec<_>>());
    let egress = (0..if shared { first.sockets().egress().count() } else { 0 })
        .map(|index| sockets.clone().filter_map(|one| one.egress().nth(index)).collect());
    match steering::Steering::install(&listeners.chain(egress).collect::<Vec<_>>(), seed) {
        Ok(program) => {
            info!(event = "steering", by = "call-id", wanted = wanted.word());
            let labelled = move || {
                let counts = program.outcomes().ok()?;
                Some(Outcome::ALL.into_iter().map(Outcome::label).zip(counts).collect())
            };
            Ok(Steering { outcomes: Some(Box::new(labelled)), ..Steering::off(wanted) })
        }
        Err(missing) if wanted == config::Steering::CallId => Err(problem(&missing)),
        Err(Missing { what, remedy }) => {
            warn!(event = "steering", by = "kernel", wanted = wanted.word(), missing = what, cost = COST, remedy);
            Ok(Steering { missing: Some((what, remedy)), ..Steering::off(wanted) })
        }
    }
}

/// That it is wanted and cannot be had.
pub fn problem(missing: &Missing) -> Problem {
    Problem::environment(format!("no steering by Call-ID: missing is {}", missing.what))
        .help(format!("{}; or `steering = \"auto\"`, which goes without where it must", missing.remedy))
}

/// What would come of it here, in one line.
///
/// # Errors
/// What is missing, whether or not it is wanted at any price.
pub fn rehearse(config: &Config, shards: usize) -> Result<String, Missing> {
    let is_shared = config.egress_mode == EgressMode::Shared
        || config.listeners.iter().any(|listener| !listener.transport.is_stream());
    match (config.steering, shards) {
        (config::Steering::Kernel, _) => Ok(format!("by the kernel, as configured: {COST}")),
        (_, 0 | 1) => Ok("one shard: there is nothing to choose".into()),
        _ if !is_shared => Ok("connections stay where they came: there is nothing to choose".into()),
        _ => steering::self_test(shards).map(|()| match cost_ns() {
            Some(cost) => format!("by Call-ID, in {cost} ns for an INVITE of 900 octets"),
            None => "by Call-ID".into(),
        }),
    }
}

/// Nanoseconds that the program takes on this machine, as the kernel measures it.
fn cost_ns() -> Option<u32> {
    const RUNS: u32 = 20_000;
    let mut invite = INVITE.replace('\n', "\r\n").into_bytes();
    invite.resize(900, b'\n');
    steering::Bench::new(2, 0).ok()?.time(&invite, RUNS).ok()
}

const INVITE: &str = "\
INVITE sip:bob@example.net SIP/2.0
Via: SIP/2.0/UDP 198.51.100.7:5060;branch=z9hG4bKnashds8;rport
Max-Forwards: 70
From: \"Alice\" <sip:alice@example.net>;tag=1928301774
To: \"Bob\" <sip:bob@example.net>
Call-ID: a84b4c76e66710@198.51.100.7
CSeq: 314159 INVITE
Contact: <sip:alice@198.51.100.7>
Content-Type: application/sdp

";
