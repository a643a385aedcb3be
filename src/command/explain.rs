//! `viahop explain`: what viahop does with a message, and why. The message goes through the very code that live traffic
//! goes through; here is only what prints it.

use super::health::get;
use super::service::runtime;
use super::{FAILED, USAGE, environment, fail, tell};
use crate::cli;
use serde::Deserialize;
use serde_json::Value;
use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use viahop::control::cluster::{Backend, Cluster, Pool};
use viahop::control::config::load;
use viahop::control::config::problem::{Problem, Report, Severity};
use viahop::control::health::detector::Outcome;
use viahop::control::health::outlier::Limits;
use viahop::control::operator::State;
use viahop::control::plan::in_words;
use viahop::control::resolve::{InForce, resolve};
use viahop::control::secret::{self, Obtained};
use viahop::control::witness::{Line, line_at};
use viahop::dataplane::blame::Blame;
use viahop::dataplane::dispatch::{Dispatcher, EgressPorts};
use viahop::dataplane::frame::{Broken, Frame, Framer};
use viahop::dataplane::limits::{DATAGRAM_MAX, HEAD_MAX};
use viahop::dataplane::room::Room;
use viahop::dataplane::route::route_token::{Purpose, RouteToken};
use viahop::dataplane::route::table::SlotTable;
use viahop::dataplane::route::{Arrival, Decision, How, Popped};
use viahop::dataplane::scan::{Scan, Scanner};
use viahop::dataplane::tables::Tables;
use viahop::dataplane::transport::StreamId;
use viahop::dataplane::validate::Refusal;
use viahop::dataplane::verdict::{Answer, Verdict};

/// Explains `args.message`.
pub fn run(args: &cli::Explain) -> ExitCode {
    let message = match read(&args.message) {
        Ok(message) => message,
        Err(error) => {
            remark!(
                "error: cannot read {}: {error}\n help: it has to hold one SIP message, from a trace or written by hand; `-` \
                 reads it from standard input",
                args.message.display()
            );
            return ExitCode::from(USAGE);
        }
    };
    match explain(args, message) {
        Ok(code) => code,
        Err(report) => fail(&report),
    }
}

fn explain(args: &cli::Explain, mut message: Vec<u8>) -> Result<ExitCode, Report> {
    let loaded = load(&args.config)?;
    let obtained = secret::look_up(&loaded.config.secret, &loaded.config.token_keys).map_err(environment)?;
    let admin = loaded.config.admin;
    let (resolved, mut report) =
        runtime().map_err(environment)?.block_on(resolve(loaded, &obtained.keys, &InForce::default()))?;
    let Obtained { keys, fingerprint, remarks, .. } = obtained;
    report.problems.extend(remarks);
    tell(&report);
    let mut cluster = Cluster::new(resolved, None, 1, 0, &fingerprint);
    let living = if args.live {
        let address = admin.ok_or_else(|| {
            environment(Problem::environment("`--live` needs `[admin]`, which this configuration turns off"))
        })?;
        let living = ask_the_living(&format!("http://{address}/status.json"), &mut cluster).map_err(environment)?;
        if living.config_hash != cluster.hash {
            tell(&environment(decides_otherwise(&living.config_hash, &cluster.hash)));
        }
        living
    } else {
        Living {
            egress: EgressPorts { v4: Some(0), v6: Some(0) },
            config_hash: cluster.hash.clone(),
            is_draining: false,
        }
    };
    let egress = living.egress;
    let tables = cluster.tables(1, &keys, living.is_draining, None);
    let names: Vec<&str> = tables.listeners.iter().map(|listener| &*listener.name).collect();
    let wanted = args.listener.as_deref();
    let Some(listener) = wanted.map_or(Some(0), |wanted| names.iter().position(|name| *name == wanted)) else {
        remark!("error: no listener is called `{}`\n help: there are {}", wanted.unwrap_or_default(), names.join(", "));
        return Ok(ExitCode::from(USAGE));
    };
    mend_line_ends(&mut message);
    if message.len() > DATAGRAM_MAX {
        remark!("error: {} octets are no datagram; {DATAGRAM_MAX} are the most", message.len());
        return Ok(ExitCode::from(FAILED));
    }
    // What a backend sends comes to the ports towards backends, unless it is said to come elsewhere.
    let inside = tables.by_address.contains_key(&args.from) && wanted.is_none();
    let transport = tables.transport(listener as u8);
    let stream = if inside || !transport.is_stream() { None } else { StreamId::new(0, 0, 1) };
    let arrival = Arrival { from: args.from, listener: (!inside).then_some(listener as u8), local: None, stream };
    let place = if inside { "a port towards backends".to_owned() } else { format!("listener {}", names[listener]) };
    say!("{} octets from {}, on {place}", message.len(), args.from);
    // A WebSocket has frames of its own.
    if stream.is_some() && !transport.is_websocket() {
        match Framer::default().next(&Scanner::best(), &mut Scan::default(), &message) {
            Frame::Message(len) => message.truncate(len),
            Frame::Broken(Broken { refusal, head }) => {
                message.truncate(head);
                print(&tables, egress, arrival, message, Some(refusal), args.live);
                say!("and the connection is closed");
                return Ok(ExitCode::SUCCESS);
            }
            Frame::Partial | Frame::LineEnd | Frame::Ping => {
                say!("no whole message: on a connection, viahop waits for the rest of it");
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
    print(&tables, egress, arrival, message, None, args.live);
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    if path.as_os_str() != "-" {
        return fs::read(path);
    }
    let mut message = Vec::new();
    io::stdin().read_to_end(&mut message)?;
    Ok(message)
}

/// An editor writes LF; SIP wants CRLF. A message that has CRLF anywhere is taken as it is.
fn mend_line_ends(message: &mut Vec<u8>) {
    if !message.first().is_some_and(u8::is_ascii_alphabetic)
        || message.windows(2).any(|pair| pair == b"\r\n")
        || !message.contains(&b'\n')
    {
        return;
    }
    let lines = message.split(|&octet| octet == b'\n');
    *message = lines.collect::<Vec<_>>().join(&b"\r\n"[..]);
    say!("note: lines ended in a bare LF, which viahop refuses; they were mended to CRLF");
}

/// What a running viahop says of itself.
struct Living {
    /// The ports of its first shard.
    egress: EgressPorts,
    /// The digest of what decides there.
    config_hash: String,
    /// Whether it is on its way out.
    is_draining: bool,
}

/// Takes the states of backends from a running viahop.
fn ask_the_living(url: &str, cluster: &mut Cluster) -> Result<Living, Problem> {
    let wrong = |what: String| Problem::environment(what).help("is it running? `viahop health` asks the same");
    let (_, text) = get(url, Duration::from_secs(2)).map_err(|error| wrong(format!("{url}: {error}")))?;
    let status: Value =
        serde_json::from_str(&text).map_err(|error| wrong(format!("{url} is no status of viahop: {error}")))?;
    let rows = || status["backends"].as_array().into_iter().flatten();
    let weight = |one: &Value, name: &str| one[name].as_u64().and_then(|weight| u32::try_from(weight).ok());
    for one in rows() {
        let Some((backend, limits)) = named(cluster, one) else { continue };
        if one["state"] == "down" {
            let keeps_its_calls = one["silent"] == false;
            backend.detector.on_outcome(if keeps_its_calls { Outcome::Unwell(503) } else { Outcome::Refused });
        }
        if let Some(limits) = limits.as_ref().filter(|_| one["ejected"] == true) {
            backend.outlier.eject(limits);
        }
        backend.state.now = State::deserialize(&one["operator"]).unwrap_or(backend.state.now);
        backend.weight.now = weight(one, "weight").unwrap_or(backend.weight.now);
    }
    // What an operator has set there is in its hash.
    cluster.rehash();
    // How far one has come that starts slowly is not.
    for one in rows() {
        let Some((backend, _)) = named(cluster, one) else { continue };
        backend.weight.now = weight(one, "weight_in_force").unwrap_or(backend.weight.now);
    }
    let shard = &status["shards"][0];
    let port = |name: &str| shard[name].as_u64().and_then(|port| u16::try_from(port).ok());
    let egress = EgressPorts { v4: port("egress_port_v4"), v6: port("egress_port_v6") };
    let config_hash = status["config_hash"].as_str().unwrap_or_default().to_owned();
    Ok(Living { egress, config_hash, is_draining: status["draining"] == true })
}

/// The backend that a row of the status is of, and when real answers count against it.
fn named<'a>(cluster: &'a mut Cluster, one: &Value) -> Option<(&'a mut Backend, &'a Option<Limits>)> {
    let Pool { backends, outlier, .. } = cluster.pools.iter_mut().find(|pool| one["pool"] == *pool.name)?;
    Some((backends.iter_mut().find(|backend| one["name"] == *backend.name)?, outlier))
}

/// The warning that what is explained is not what the running viahop does.
fn decides_otherwise(there: &str, here: &str) -> Problem {
    let title =
        format!("the running viahop goes by another secret or file: its config_hash is {there}, here it is {here}");
    let problem = Problem { severity: Severity::Warning, ..Problem::environment(title) };
    problem.help(
        "it may choose another backend than what follows says: ask as the user it runs as, with its STATE_DIRECTORY and the file it has \
         read; `viahop ctl status` names that, `viahop ctl reload --dry-run` what has changed in it",
    )
}

/// With `broken`, what came on a connection is no message, and refused for that.
fn print(
    tables: &Tables,
    egress: EgressPorts,
    arrival: Arrival,
    mut message: Vec<u8>,
    broken: Option<Option<Refusal>>,
    live: bool,
) {
    let mut head = vec![0; HEAD_MAX];
    let mut dispatcher = Dispatcher::new(Scanner::best(), egress);
    let mut room = Room::new(&mut message, &mut head);
    match broken {
        None => dispatcher.on_datagram(tables, 0, arrival, &mut room),
        Some(refusal) => dispatcher.on_broken(tables, refusal, arrival, &mut room),
    };
    let verdict = room.verdict;
    let sent = match verdict {
        Verdict::Drop(reason) => {
            say!("dropped: {}\n  {}", reason.label(), reason.describe().trim());
            refused_for(&dispatcher, &room);
            return;
        }
        Verdict::Reply { to, answer } => {
            // An answer goes down the connection that asked.
            let to = if arrival.stream.is_some() { arrival.from } else { to };
            match answer {
                Answer::Status(code) => say!("answered by viahop itself: {code}, to {to}"),
                Answer::Pong | Answer::Stun => say!("answered by viahop itself: STUN, to {to}"),
            }
            refused_for(&dispatcher, &room);
            room.output()
        }
        Verdict::Forward { to, .. } => {
            if let Some(decision) = dispatcher.decision() {
                reasons(tables, &decision);
            } else {
                say!("a response under our Via: the Via is taken off");
            }
            say!("sent to {to}");
            if !live && dispatcher.decision().is_some() {
                say!("(the port in our Via is that of the shard that sends; without --live it stands as 0)");
            }
            if arrival.stream.is_some() {
                say!("(the tokens name the client's connection, which is an invented one)");
            }
            room.output()
        }
    };
    say!("\n{}", String::from_utf8_lossy(&sent.concat()));
}

/// What was wrong, and where: an answer that would be longer than the request does without the words, or is not given.
fn refused_for(dispatcher: &Dispatcher, room: &Room<'_>) {
    let refusal = dispatcher.refused(room.verdict).map(|Refusal { code, reason, .. }| format!("{code} {reason}"));
    match (refusal, dispatcher.blame(room.input, room.verdict)) {
        (None, None) => {}
        (Some(refusal), None) => say!("because  {refusal}"),
        (refusal, Some(Blame { reason, at })) => {
            say!("because  {}, octet {at} of {}", refusal.as_deref().unwrap_or(reason), room.input.len());
            let Line { text, caret, .. } = line_at(room.input, at);
            say!("  | {text}\n  | {:caret$}^", "");
        }
    }
}

fn reasons(tables: &Tables, decision: &Decision) {
    match decision.popped {
        Popped::Nothing => {}
        Popped::Plain => say!("route    the top Route is ours: taken out"),
        Popped::Stranger { .. } => {
            say!("route    the top Route is ours: taken out; its token does not verify and is not heeded")
        }
        Popped::Token(RouteToken { purpose, client, .. }) => {
            say!("route    the top Route is ours: taken out");
            match purpose {
                Purpose::Flow => say!("token    of the flow of client {}", client.to),
                Purpose::Dialog { backend } => {
                    let backend = tables.by_id.get(&backend).and_then(|&index| tables.backends.get(index as usize));
                    let backend = backend.map_or("none that there is", |backend| &backend.name);
                    say!("token    of this dialog: backend {backend}, client {}", client.to);
                }
            }
        }
    }
    let backend = decision.backend.and_then(|index| tables.backends.get(index as usize));
    let pool = backend.and_then(|backend| tables.pools.get(backend.pool as usize));
    let by_pool = !matches!(decision.how, How::Route | How::RequestUri | How::Token);
    if let (Some(pool), true) = (pool, by_pool) {
        match decision.rule.and_then(|index| tables.rules.get(index as usize)) {
            Some(rule) => say!("rule     {}", rule.name),
            None => say!("rule     none matches: the first pool"),
        }
        let (affinity, strategy) = (in_words(&pool.affinity), in_words(&pool.strategy));
        say!("pool     {} (affinity {affinity}, strategy {strategy})", pool.name);
    }
    match decision.how {
        How::Key { hash, runner_up } => {
            say!("key      hash {hash:016x}");
            let note = if runner_up { "; its owner is not up: the runner-up" } else { "" };
            say!("slot     {} of 65,536{note}", SlotTable::number(hash));
        }
        How::Random { hash } => say!("slot     {} of 65,536, by the transaction", SlotTable::number(hash)),
        How::Token => say!("target   the token in its Route names it"),
        How::Open => say!("memory   where its INVITE went"),
        How::Memory => say!("memory   where this call went before"),
        How::Priority => say!("priority the first backend that is up"),
        How::RoundRobin => say!("turn     the next backend's; each shard counts for itself"),
        How::RequestUri => say!("target   the Request-URI names it"),
        How::Route => say!("target   a Route names it"),
    }
    if let Some(backend) = backend {
        say!("backend  {} at {}", backend.name, backend.address);
    }
}
