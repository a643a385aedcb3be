//! `viahop check`: would this configuration work here? Everything a start would do is done, but for starting.

use super::port_owner::Owner;
use super::service::{self, cannot_be_told, cannot_open, cannot_serve, cores, machine, plan};
use super::{environment, fail, port_owner, steering, tell};
use crate::cli::{self, Format};
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use viahop::control::admin;
use viahop::control::cluster::Cluster;
use viahop::control::config::problem::{Problem, Report, Severity};
use viahop::control::config::{Loaded, Secret, Socket, Steering, load};
use viahop::control::resolve::{InForce, resolve};
use viahop::control::secret;
use viahop::control::socket;
use viahop::dataplane::tables::{Capture, Pool, Strategy, Tables};
use viahop::dataplane::transport::Transport;
use viahop::shard::socket::{OpenError, Sockets, are_free};

/// Checks `args.file`.
pub fn run(args: &cli::Check) -> ExitCode {
    let outcome = load(&args.file).and_then(|loaded| if args.offline { Ok(offline(loaded)) } else { online(loaded) });
    let (mut report, found) = match outcome {
        Ok((report, found)) => (report, found),
        Err(report) => (report, None),
    };
    if args.strict {
        for problem in report.problems.iter_mut().filter(|problem| problem.severity == Severity::Warning) {
            problem.severity = Severity::Error;
        }
    }
    if args.format == Format::Json {
        say!("{}", report.json());
        return if report.is_error() { ExitCode::from(report.exit_code()) } else { ExitCode::SUCCESS };
    }
    if report.is_error() {
        return fail(&report);
    }
    tell(&report);
    if let Some(Found { tables, steering }) = found {
        print(&tables);
        say!("steering {steering}");
        if let Some(Capture { to, node, share }) = tables.capture {
            say!("capture  {share} % of calls to udp:{to}, as node {node}");
        }
        if io::stdout().is_terminal() {
            say!("");
        }
    }
    let what = if args.offline { "is well written; nothing was looked up or opened" } else { "works here" };
    say!("{} {what}", args.file.display());
    ExitCode::SUCCESS
}

/// What was found when everything was tried.
struct Found {
    tables: Tables,
    /// Which shard a datagram would come to.
    steering: String,
}

/// What can be said without looking round.
fn offline(loaded: Loaded) -> (Report, Option<Found>) {
    (Report { source: loaded.source, problems: loaded.warnings }, None)
}

fn online(loaded: Loaded) -> Result<(Report, Option<Found>), Report> {
    let config = loaded.config.clone();
    let source = loaded.source.clone();
    let about = |problem: Problem| Report { source: source.clone(), problems: vec![problem] };
    let cores = cores(&config.cores).map_err(about)?;
    machine(&cores).map_err(about)?;
    let secret = match &config.secret {
        // Our own is made by the first start, as the user that starts.
        Secret::Own => secret::ephemeral(&config.token_keys),
        given => secret::obtain(given, &config.token_keys),
    }
    .map_err(about)?;
    let runtime = service::runtime().map_err(environment)?;
    let (resolved, mut report) = runtime.block_on(resolve(loaded, &secret.keys, &InForce::default()))?;
    report.problems.extend(secret.remarks);
    let mut plan = plan(&resolved, cores.len());
    // Held until all that a start opens was opened: what they want may be one port.
    let mut opened = Vec::new();
    match are_free(&plan.listeners, &plan.stream_addresses()) {
        Ok(()) => {
            let shards = plan.settle().and_then(|()| cores.iter().map(|_| Sockets::open(&plan)).collect());
            opened = shards.map_err(|error| about(cannot_open(&config, error)))?;
        }
        Err(taken) => report.problems.push(held_by_viahop(&taken).ok_or_else(|| about(cannot_open(&config, taken)))?),
    }
    if let Some(address) = config.admin {
        let bound = runtime.block_on(async { admin::bind(address).map(drop) });
        let is_another = |owner: Owner| owner.name == "viahop" && !owner.is_this_process();
        let is_viahop = || port_owner::find("tcp", address).is_some_and(is_another);
        match bound {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse || !is_viahop() => {
                return Err(about(cannot_serve(address, &error)));
            }
            _ => {}
        }
    }
    drop(opened);
    // Where it is not said, the place is the start's to find.
    if let Socket::Path(path) = &config.socket {
        let tried = runtime.block_on(async { socket::try_out(path) });
        tried.or_else(|error| if error.is_taken { Ok(()) } else { Err(about(cannot_be_told(&error))) })?;
    }
    let steering = match steering::rehearse(&config, cores.len()) {
        Ok(steering) => steering,
        Err(missing) if config.steering == Steering::CallId => return Err(about(steering::problem(&missing))),
        Err(missing) => format!("by the kernel; for the Call-ID is missing: {}", missing.what),
    };
    let cluster = Cluster::new(resolved, None, cores.len(), 0, &secret.fingerprint);
    Ok((report, Some(Found { tables: cluster.tables(1, &secret.keys, false, None), steering })))
}

/// A port that a running viahop holds is what one expects before a reload.
fn held_by_viahop(taken: &OpenError) -> Option<Problem> {
    let owner = port_owner::find(taken.protocol, taken.address).filter(|owner| owner.name == "viahop")?;
    let title = format!("{}/{} is in use by {owner}", taken.address, taken.protocol);
    let problem = Problem { severity: Severity::Warning, ..Problem::environment(title) };
    Some(problem.help(format!("well if this file is for `kill -HUP {}`; a second viahop would not start", owner.pid)))
}

/// The cluster as the table sees it.
fn print(tables: &Tables) {
    for listener in &tables.listeners {
        let advertised = listener.advertised.as_deref().unwrap_or("the address a message came to");
        let bound = format!("{}:{}", listener.transport, listener.address);
        say!("listen {bound:<24} known as {advertised}");
    }
    for (index, pool) in tables.pools.iter().enumerate() {
        say!("pool {}", pool.name);
        for (number, backend) in tables.backends.iter().enumerate().filter(|(_, one)| one.pool as usize == index) {
            let share = share(pool, number as u16) * 100.0;
            let place = match backend.reach.transport {
                Transport::Udp => backend.address.to_string(),
                transport => format!("{transport}:{}", backend.address),
            };
            say!("  {:<24} {place:<24} {share:>5.1} % of new calls", backend.name);
        }
    }
}

/// The share of new calls that backend number `index` of `pool` gets, 0 to 1.
fn share(pool: &Pool, index: u16) -> f64 {
    let up = &pool.up;
    match pool.strategy {
        Strategy::Hash | Strategy::Random => {
            let slots = pool.table.slots();
            slots.iter().filter(|slot| slot.owner == index).count() as f64 / slots.len() as f64
        }
        Strategy::Priority => f64::from(u8::from(up.first() == Some(&index))),
        Strategy::RoundRobin => f64::from(u8::from(up.contains(&index))) / up.len().max(1) as f64,
    }
}
