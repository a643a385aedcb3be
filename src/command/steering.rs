//! Which shard a datagram comes to: what was asked for, what this machine lets us, and how that is said.

use tracing::{info, warn};
use viahop::control::config::problem::Problem;
use viahop::control::config::{self, Config, EgressMode};
use viahop::control::steering::{COST, Steering};
use viahop::shard::Unstarted;
use viahop::shard::socket::Plan;
use viahop::shard::steering::program::Outcome;
use viahop::shard::steering::{self, Missing};
use viahop::sys::socket::UdpSocket;

/// What [`load`] made ready: nothing, where nothing is wanted or there is nothing to choose.
pub type Loaded = Result<Option<steering::Steering>, Missing>;

/// Has a program ready for each port that `shards` shards are to share by `plan`, before it is opened: the port towards
/// backends is among them if it is shared. `seed` decides which Call-ID is whose.
pub fn load(wanted: config::Steering, plan: &Plan, shards: usize, seed: u64) -> Loaded {
    let egress = [plan.egress_v4.is_some(), plan.egress_v6.is_some()].map(|has| usize::from(has && plan.egress_shared));
    let ports = plan.listeners.len() + egress.iter().sum::<usize>();
    let has_choice = wanted != config::Steering::Kernel && shards > 1 && ports > 0;
    has_choice.then(|| steering::Steering::load(ports, shards, seed)).transpose()
}

/// Puts what is loaded at its ports, and logs what decides from now on.
///
/// # Errors
/// It is wanted, and what is missing.
pub fn attach(
    wanted: config::Steering,
    loaded: Loaded,
    shards: &[Unstarted],
    shared: bool,
) -> Result<Steering, Problem> {
    let attached = loaded.and_then(|loaded| match loaded {
        Some(program) => program.attach(&shared_ports(shards, shared)).map(|()| Some(program)),
        None => Ok(None),
    });
    match attached {
        Ok(Some(program)) => {
            info!(event = "steering", by = "call-id", wanted = wanted.word());
            let labelled = move || {
                let counts = program.outcomes().ok()?;
                Some(Outcome::ALL.into_iter().map(Outcome::label).zip(counts).collect())
            };
            Ok(Steering { outcomes: Some(Box::new(labelled)), ..Steering::off(wanted) })
        }
        Ok(None) => {
            info!(event = "steering", by = "kernel", wanted = wanted.word(), shards = shards.len());
            Ok(Steering::off(wanted))
        }
        Err(missing) if wanted == config::Steering::CallId => Err(problem(&missing)),
        Err(Missing { what, remedy }) => {
            warn!(event = "steering", by = "kernel", wanted = wanted.word(), missing = what, cost = COST, remedy);
            Ok(Steering { missing: Some((what, remedy)), ..Steering::off(wanted) })
        }
    }
}

/// Of each port that the shards share, their sockets: listeners first, then those towards backends.
fn shared_ports(shards: &[Unstarted], shared: bool) -> Vec<Vec<&UdpSocket>> {
    let sockets = shards.iter().map(Unstarted::sockets);
    let Some(first) = sockets.clone().next() else { return Vec::new() };
    let listeners = (0..first.listeners()).map(|index| sockets.clone().filter_map(|one| one.listener(index)).collect());
    let egress = (0..if shared { first.egress().count() } else { 0 })
        .map(|index| sockets.clone().filter_map(|one| one.egress().nth(index)).collect());
    listeners.chain(egress).collect()
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
