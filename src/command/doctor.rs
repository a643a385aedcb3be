//! `viahop doctor`: what of this machine would keep viahop from running, or from running well.

use super::service::{self, cannot_open, cores, machine};
use super::{ENVIRONMENT, fail, port_owner, steering};
use crate::cli;
use std::fs;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;
use viahop::control::captures;
use viahop::control::clock::unix_now;
use viahop::control::config::problem::{Problem, Source};
use viahop::control::config::{Config, Gso, Listen, Steering, load, parse};
use viahop::control::steering::COST;
use viahop::shard::socket::are_free;
use viahop::sys::preflight;
use viahop::tls::{Certificate, SOON};

/// What came of one examination.
enum Finding {
    /// All is well: what was seen.
    Good(String),
    /// It runs, and may not run well: what was seen, and the remedy.
    Poor(String, String),
    /// It does not run: what was seen, and the remedy.
    Bad(String, String),
}

use Finding::{Bad, Good, Poor};

/// What is examined when nobody says what for.
const DEFAULT: &str = "[[listen]]\naddress = \"udp:0.0.0.0:5060\"\n[[pool]]\nbackend = [{ uri = \"sip:127.0.0.1\" }]\n";

/// Examines the machine.
pub fn run(args: &cli::Doctor) -> ExitCode {
    let loaded = match &args.config {
        Some(path) => load(path),
        None => parse(Source { name: "default".into(), text: DEFAULT.into() }),
    };
    let config = match loaded {
        Ok(loaded) => loaded.config,
        Err(report) => return fail(&report),
    };
    let mut findings = vec![
        ("kernel", kernel()),
        ("io_uring, memlock, threads", runtime(&config)),
        ("cores", shards(&config)),
        ("receive buffer", buffer("rmem_max", config.receive_buffer, "a full buffer loses messages")),
        ("send buffer", buffer("wmem_max", config.send_buffer, "messages wait sooner")),
        ("open files", open_files(&config)),
        ("steering", steering(&config)),
        ("captures", captures(&config)),
        ("privileges", privileges(&config)),
    ];
    findings.extend(config.listeners.iter().map(|one| ("port", port(&config, one))));
    let servers = config.listeners.iter().flat_map(|one| &one.tls);
    findings.extend(servers.flat_map(|server| &server.certificates).map(|one| ("certificate", certificate(one))));
    findings.extend(config.admin.map(|address| ("admin port", admin(address))));
    findings.push(("UDP so far", udp_errors()));
    findings.push(("connection tracking", conntrack()));
    let color = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    for (what, finding) in &findings {
        print(what, finding, color);
    }
    let bad = findings.iter().filter(|(_, finding)| matches!(finding, Bad(..))).count();
    let poor = findings.iter().filter(|(_, finding)| matches!(finding, Poor(..))).count();
    match (bad, poor) {
        (0, 0) => say!("\nviahop runs well here"),
        (0, _) => say!("\nviahop runs here; {poor} to improve"),
        _ => say!("\nviahop does not run here: {bad} to mend, {poor} to improve"),
    }
    if bad == 0 { ExitCode::SUCCESS } else { ExitCode::from(ENVIRONMENT) }
}

fn print(what: &str, finding: &Finding, color: bool) {
    let (word, code, seen, remedy) = match finding {
        Good(seen) => ("ok  ", 32, seen, None),
        Poor(seen, remedy) => ("poor", 33, seen, Some(remedy)),
        Bad(seen, remedy) => ("BAD ", 31, seen, Some(remedy)),
    };
    let word = if color { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() };
    say!("{word}  {what}: {seen}");
    if let Some(remedy) = remedy {
        say!("      remedy: {remedy}");
    }
}

/// A finding of a problem of the start, in the start's own words.
fn of(outcome: Result<(), Problem>, good: &str) -> Finding {
    match outcome {
        Ok(()) => Good(good.to_owned()),
        Err(problem) => Bad(problem.title, problem.help.unwrap_or_default()),
    }
}

fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < (5, 8) => {
            Bad(format!("Linux {release}"), "Linux 5.8 or newer is needed".into())
        }
        _ => Good(format!("Linux {release}")),
    }
}

fn runtime(config: &Config) -> Finding {
    // Which cores those are is a finding of its own.
    let cores = cores(&config.cores).unwrap_or_default();
    of(machine(&cores), "io_uring is allowed, enough memory may be locked and enough threads started")
}

fn shards(config: &Config) -> Finding {
    match cores(&config.cores) {
        Ok(cores) => {
            let list: Vec<String> = cores.iter().map(usize::to_string).collect();
            Good(format!("{} shards, on {}", cores.len(), list.join(",")))
        }
        Err(problem) => Bad(problem.title, problem.help.unwrap_or_default()),
    }
}

/// Whether the kernel grants a socket buffer of `wanted` octets: `net.core.rmem_max` or `wmem_max`.
fn buffer(limit: &str, wanted: usize, consequence: &str) -> Finding {
    let most = fs::read_to_string(format!("/proc/sys/net/core/{limit}")).ok();
    let Some(most) = most.and_then(|text| text.trim().parse::<usize>().ok()) else {
        return Good("the kernel keeps its limit to itself (a container); the start tells what it got".into());
    };
    if most >= wanted {
        return Good(format!("net.core.{limit} is {most}, {wanted} are asked for"));
    }
    let seen = format!("net.core.{limit} is {most}, {wanted} are asked for: {consequence}");
    let persist = format!("sysctl -w net.core.{limit}={wanted}, and the same line in /etc/sysctl.d/viahop.conf");
    if preflight::is_root() { Good(format!("{seen}, but for root, who may exceed it")) } else { Poor(seen, persist) }
}

fn open_files(config: &Config) -> Finding {
    let shards = cores(&config.cores).map_or(1, |cores| cores.len()) as u64;
    let backends: usize = config.pools.iter().map(|pool| pool.backends.len()).sum();
    let has_streams = config.listeners.iter().any(|one| one.transport.is_stream());
    let connections = if has_streams { config.streams.max_connections as u64 } else { 0 };
    let is_proxied = config.pools.iter().any(|pool| pool.proxy_header.is_some());
    let proxied = if is_proxied { config.streams.max_proxied as u64 } else { 0 };
    let (connections, what) = match proxied {
        0 => (connections, "`max_connections`"),
        more => (connections + more, "`max_connections` and `max_proxied`"),
    };
    let needed = 64 + shards * (16 + config.listeners.len() as u64) + backends as u64;
    match preflight::open_files() {
        Ok(Some(most)) if most < needed => Bad(
            format!("{most} may be open, {needed} are needed"),
            format!("`ulimit -n {needed}`, LimitNOFILE={needed}"),
        ),
        Ok(Some(most)) if most < needed + connections => Poor(
            format!("{most} may be open, {} are needed for {what}", needed + connections),
            format!("`ulimit -n {0}`, LimitNOFILE={0}; or fewer connections", needed + connections),
        ),
        Ok(Some(most)) => Good(format!("{most} may be open, {} are needed", needed + connections)),
        Ok(None) => Good("no limit".into()),
        Err(error) => Poor(format!("the limit cannot be read: {error}"), "see `ulimit -n`".into()),
    }
}

/// Which shard a message comes to.
fn steering(config: &Config) -> Finding {
    let shards = cores(&config.cores).map_or(1, |cores| cores.len());
    match steering::rehearse(config, shards) {
        Ok(seen) => Good(seen),
        Err(missing) if config.steering == Steering::CallId => {
            Bad(format!("`steering = \"call-id\"`, and missing is {}", missing.what), missing.remedy.into())
        }
        Err(missing) => Poor(format!("by the kernel: {COST}; missing is {}", missing.what), missing.remedy.into()),
    }
}

fn privileges(config: &Config) -> Finding {
    if preflight::is_root() {
        let remedy = "run it as a user of its own; only ports below 1024 need CAP_NET_BIND_SERVICE";
        return Poor("this is root, which viahop does not need".into(), remedy.into());
    }
    let first_free = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok();
    let first_free: u16 = first_free.and_then(|text| text.trim().parse().ok()).unwrap_or(1024);
    match config.listeners.iter().map(|one| one.address.port()).filter(|&port| port < first_free).min() {
        Some(port) if preflight::may_bind_low_ports() => {
            Good(format!("port {port} is below {first_free}, and CAP_NET_BIND_SERVICE is there"))
        }
        Some(port) => Poor(
            format!("port {port} is below {first_free} and needs a privilege"),
            "AmbientCapabilities=CAP_NET_BIND_SERVICE, or `setcap cap_net_bind_service+ep viahop`".into(),
        ),
        None => Good("none needed".into()),
    }
}

fn port(config: &Config, listener: &Listen) -> Finding {
    let Listen { address, transport, .. } = *listener;
    let addresses = [address];
    let (datagrams, streams): (&[_], &[_]) = if transport.is_stream() { (&[], &addresses) } else { (&addresses, &[]) };
    match are_free(datagrams, streams) {
        Ok(()) => Good(format!("{address}/{transport} is free")),
        Err(taken) if port_owner::find(taken.protocol, address).is_some_and(|owner| owner.name == "viahop") => {
            Good(format!("{}/{transport} is held by a running viahop", taken.address))
        }
        Err(taken) => of(Err(cannot_open(config, taken)), ""),
    }
}

/// How long a certificate of a listener is still good.
fn certificate(one: &Certificate) -> Finding {
    let names = if one.names.is_empty() { "nobody".into() } else { one.names.join(", ") };
    let Some(expires) = one.expires_at else { return Good(format!("for {names}")) };
    let left = Duration::from_secs(expires.saturating_sub(unix_now()));
    let seen = match left.as_secs() / 86_400 {
        _ if left.is_zero() => format!("for {names}, expired"),
        days => format!("for {names}, {days} days left"),
    };
    if left >= SOON { Good(seen) } else { Poor(seen, "renew it, then `kill -HUP` or `viahop ctl reload`".into()) }
}

fn admin(address: SocketAddr) -> Finding {
    let runtime = match service::runtime() {
        Ok(runtime) => runtime,
        Err(problem) => return of(Err(problem), ""),
    };
    match runtime.block_on(async { viahop::control::admin::bind(address) }) {
        Ok(_) => Good(format!("{address}/tcp is free")),
        Err(_) if port_owner::find("tcp", address).is_some_and(|owner| owner.name == "viahop") => {
            Good(format!("{address}/tcp is held by a running viahop"))
        }
        Err(error) => of(Err(service::cannot_serve(address, &error)), ""),
    }
}

/// Datagrams that this machine has lost since it was started: `/proc/net/snmp`, a line of names and one of numbers.
fn udp_errors() -> Finding {
    let snmp = fs::read_to_string("/proc/net/snmp").unwrap_or_default();
    let mut rows = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (Some(names), Some(numbers)) = (rows.next(), rows.next()) else {
        return Good("the kernel keeps no count here".into());
    };
    let of = |wanted: &str| {
        let pairs = names.split(' ').zip(numbers.split(' '));
        pairs.into_iter().find(|(name, _)| *name == wanted).and_then(|(_, number)| number.parse::<u64>().ok())
    };
    match of("RcvbufErrors") {
        Some(0) | None => Good("no datagram was lost to a full receive buffer since boot".into()),
        Some(lost) => Poor(
            format!("{lost} datagrams were lost to full receive buffers since boot, of any program"),
            "`nstat -az UdpRcvbufErrors` tells whether it goes on; raise `receive_buffer` and net.core.rmem_max".into(),
        ),
    }
}

/// Whether somebody captures, so that datagrams go one by one.
fn captures(config: &Config) -> Finding {
    let seen = match captures::count() {
        Ok(0) => return Good("nobody captures on this machine".into()),
        Ok(1) => "one socket sees every packet".to_owned(),
        Ok(count) => format!("{count} sockets see every packet"),
        Err(error) => format!("whether somebody captures cannot be seen ({error})"),
    };
    match config.gso {
        Gso::Auto => Poor(
            format!("{seen}: datagrams that are alike go through the kernel one by one meanwhile"),
            "`ss -0 -p` says whose; if they look for no SIP, as `dhclient` does not: `gso = \"always\"`".into(),
        ),
        Gso::Always => Good(format!("{seen}, and may see several messages as one packet (`gso = \"always\"`)")),
        Gso::Off => Good(format!("{seen}; datagrams go through the kernel one by one (`gso = \"off\"`)")),
    }
}

fn conntrack() -> Finding {
    let read =
        |name: &str| fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).ok()?.trim().parse::<u64>().ok();
    match (read("nf_conntrack_count"), read("nf_conntrack_max")) {
        (Some(count), Some(most)) if count * 10 > most * 8 => Poor(
            format!("{count} of {most} entries are in use; when it is full, packets are lost"),
            "exempt SIP: `nft add rule raw prerouting udp dport 5060 notrack`, and the same for its answers".into(),
        ),
        (Some(count), Some(most)) => Good(format!("{count} of {most} entries are in use")),
        _ => Good("not in the way".into()),
    }
}
