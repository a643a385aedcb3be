//! `viahop run`: balance until told to stop.

use super::service::{Service, runtime};
use super::{FAILED, USAGE, environment, fail, flags, log, tell};
use crate::cli;
use std::io;
use std::panic;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{error, info};
use viahop::control::config::problem::{Problem, Report};
use viahop::control::events::Events;
use viahop::control::kept_ports::KeptPorts;
use viahop::control::run::listen_to_the_system;
use viahop::control::{secret, view::View};

/// Panics that are logged in full. They are bugs of ours that a hostile message may repeat at line rate; all are counted.
const PANICS_LOGGED: u32 = 10;

/// Runs `args` to its end.
pub fn run(args: &cli::Run) -> ExitCode {
    // By its value: in the environment of a node `VIAHOP_NO_PROBE=false` says what holds anyway.
    if args.config.is_some() && args.no_probe {
        remark!(
            "error: --config cannot be used with --no-probe\n help: a pool of the file says `health = {{ probe = false }}`"
        );
        return ExitCode::from(USAGE);
    }
    match start(args) {
        Ok((service, hangups, warnings)) => {
            tell(&warnings);
            serve(service, hangups)
        }
        Err(report) => fail(&report),
    }
}

fn start(args: &cli::Run) -> Result<(Service, Signal, Report), Report> {
    let runtime = runtime().map_err(environment)?;
    // A reload that is ordered while the start takes its time, for a name or a port, is done after it: without a handler
    // SIGHUP ends the process, which systemd takes for the end that was wanted.
    let hangups = runtime.block_on(async { signal(SignalKind::hangup()) }).map_err(deaf)?;
    let origin = flags::origin(args)?;
    let loaded = origin.load()?;
    let events = Arc::<Events>::default();
    log::start(&loaded.config.log, &events);
    log_panics();
    let secret = secret::obtain(&loaded.config.secret, &loaded.config.token_keys).map_err(environment)?;
    let ports = KeptPorts::of(&loaded.config);
    let (service, warnings) = Service::start(runtime, loaded, origin, secret, ports.as_ref(), events)?;
    Ok((service, hangups, warnings))
}

fn deaf(error: io::Error) -> Report {
    environment(Problem::environment(format!("cannot listen for signals of the system: {error}")))
}

fn serve(service: Service, hangups: Signal) -> ExitCode {
    let (order, orders) = mpsc::channel(8);
    let listening = service.runtime().block_on(async { listen_to_the_system(hangups, order) });
    if let Err(error) = listening {
        return fail(&deaf(error));
    }
    let view = service.view();
    announce(&view);
    let (views, _) = watch::channel(Arc::new(view));
    let seen = views.subscribe();
    let ended_well = service.serve(orders, views);
    let view = seen.borrow().clone();
    let received = view.sum(|counters| counters.received_total());
    let forwarded = view.sum(|counters| counters.forwarded.get());
    let replied = view.sum(|counters| counters.replied_total());
    let dropped = view.sum(|counters| counters.dropped_total());
    // Each shard by itself: what one hands over as another ends is taken over by nobody.
    let taken_over = view.sum(|counters| counters.taken_over.get());
    let handed_over = view.sum(|counters| counters.handed_over.get());
    info!(event = "ended", received, forwarded, replied, dropped, handed_over);
    let (came, went) = (received + taken_over, forwarded + replied + dropped + handed_over);
    if came != went {
        error!(event = "unaccounted", messages = came.abs_diff(went), remedy = "please report this bug");
        return ExitCode::from(FAILED);
    }
    if ended_well { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

fn announce(view: &View) {
    for (name, address) in &view.fixed.listeners {
        info!(event = "listening", listener = %name, %address);
    }
    for backend in &view.backends {
        info!(event = "backend", pool = %backend.pool, backend = %backend.name, address = %backend.address, weight = backend.weight.now, state = %backend.state.now);
    }
    let cores: Vec<String> = view.fixed.shards.iter().map(|shard| shard.core.to_string()).collect();
    info!(
        event = "started",
        version = env!("CARGO_PKG_VERSION"),
        config = view.fixed.config,
        hash = view.config_hash,
        shards = cores.len(),
        cores = cores.join(",")
    );
}

/// Logs panics in one line each, the first few.
fn log_panics() {
    static LOGGED: AtomicU32 = AtomicU32::new(0);
    panic::set_hook(Box::new(|info| {
        if LOGGED.fetch_add(1, Ordering::Relaxed) < PANICS_LOGGED {
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            let what = info.payload_as_str().unwrap_or("no message");
            error!(event = "panic", place, what, remedy = "please report this bug");
        }
    }));
}
