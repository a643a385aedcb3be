//! A configuration as it is meant. One that is wrong cannot be had: reading gives a [`Config`] or a [`Report`] that says
//! what is wrong, where, and what to write instead.
//!
//! ```text
//! TOML ─► file::File ─► Config          everything that can be said without looking at the machine or the network
//! flags ──────┘            ▲
//! certificates, keys ──────┤   of listeners and pools that speak TLS
//! dispatcher.list ─────────┘   of pools that name one
//! ```
//!
//! A pool whose backends DNS knows has none until `discovery` has asked for them.
//!
//! Names are looked up in `resolve`; sockets are tried in `check`.

pub mod address;
pub mod dispatcher_list;
pub mod file;
pub mod list_file;
pub mod problem;

mod read;

pub use read::{SOCKET_PATH_MAX, WEIGHT_MAX, closest, did_you_mean};

use super::health::outlier::Limits;
use super::operator::State;
use crate::dataplane::sip::start_line::Method;
use crate::dataplane::sip::uri::Scheme;
use crate::dataplane::tables::{Affinity, Capture, ForeignRoute, Network, PathPolicy, ProxyHeader, Side, Strategy};
use crate::dataplane::transport::Transport;
use crate::tls::{Client, Clienthood, Server};
use address::HostPort;
use problem::{Problem, Report, Source};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Everything viahop can be told.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where shards run.
    pub cores: Cores,
    /// Addresses to receive on; at least one. Those for datagrams come first: sockets and tokens know them by number.
    pub listeners: Vec<Listen>,
    /// Pools; at least one, each with at least one backend or a domain to have them from.
    pub pools: Vec<Pool>,
    /// Rules, in order.
    pub routes: Vec<Route>,
    /// The operator's choices.
    pub policy: Policy,
    /// What connections are allowed.
    pub streams: Streams,
    /// Where HTTP is served; `None`: nowhere.
    pub admin: Option<SocketAddr>,
    /// Where `viahop ctl` is served.
    pub socket: Socket,
    /// Where the secret is.
    pub secret: Secret,
    /// The keys that tokens are signed with: the first signs, all verify; at least one, each with an id of its own.
    pub token_keys: Vec<TokenKey>,
    /// The address to send to IPv4 backends from, if not the kernel's choice.
    pub egress_v4: Option<Ipv4Addr>,
    /// Likewise for IPv6.
    pub egress_v6: Option<Ipv6Addr>,
    /// Whether each shard has a port towards backends.
    pub egress_mode: EgressMode,
    /// The ports to send to backends from; `None`: the kernel's choice.
    pub egress_ports: Option<RangeInclusive<u16>>,
    /// Which shard a datagram comes to.
    pub steering: Steering,
    /// Whether datagrams that are alike go through the kernel as one.
    pub gso: Gso,
    /// How long a shard at work lets messages gather, at most; zero: never.
    pub linger: Duration,
    /// Octets of each socket's receive buffer.
    pub receive_buffer: usize,
    /// Octets of each socket's send buffer.
    pub send_buffer: usize,
    /// How long to go on serving after SIGTERM, at most.
    pub drain: Duration,
    /// Whom to ask for the servers of domains; empty: those that this machine asks.
    pub nameservers: Vec<SocketAddr>,
    /// Who gets copies of messages, if anybody does.
    pub capture: Option<Capture>,
    /// What is written to standard error.
    pub log: Log,
}

/// Where shards run.
#[derive(Clone, Debug, PartialEq)]
pub enum Cores {
    /// One on each core this process may use.
    All,
    /// So many, on the first of those cores.
    Count(usize),
    /// One on each of these.
    List(Vec<usize>),
}

/// From which ports shards send to backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EgressMode {
    /// Each from one of its own, to which its responses come.
    Own,
    /// All from one.
    Shared,
}

/// Whether datagrams that are alike go through the kernel as one (UDP segmentation, GSO).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gso {
    /// Whatever is seen of it.
    Always,
    /// While nobody captures on this machine, who would see them as one packet.
    Auto,
    /// Each by itself.
    Off,
}

impl Gso {
    /// All of them, with the words of the configuration.
    pub const WORDS: [(&str, Gso); 3] = [("always", Gso::Always), ("auto", Gso::Auto), ("off", Gso::Off)];
}

/// What decides which shard a datagram comes to, at a port that all shards share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    /// The Call-ID if that can be had, else the kernel.
    Auto,
    /// The Call-ID: in a program in the kernel. Without it there is no start.
    CallId,
    /// The kernel, by the pair of addresses.
    Kernel,
}

impl Steering {
    /// All of them, with the words of the configuration.
    pub const WORDS: [(&str, Steering); 3] =
        [("auto", Steering::Auto), ("call-id", Steering::CallId), ("kernel", Steering::Kernel)];

    /// The word of the configuration.
    pub fn word(self) -> &'static str {
        Steering::WORDS.iter().find(|(_, one)| *one == self).map_or("", |(word, _)| word)
    }
}

/// An address to receive on.
#[derive(Clone, Debug, PartialEq)]
pub struct Listen {
    /// What rules and metrics call it.
    pub name: String,
    /// How messages come to it.
    pub transport: Transport,
    /// What it is bound to.
    pub address: SocketAddr,
    /// What the world calls it.
    pub advertise: Option<HostPort>,
    /// Who is on the other side.
    pub side: Side,
    /// How it speaks TLS, if it does.
    pub tls: Option<Server>,
    /// Networks whose connections begin with a PROXY header.
    pub proxies: Vec<Network>,
    /// The pages that may open WebSockets to it, `*` for all.
    pub origins: Vec<String>,
    /// Where it stands in the source.
    pub at: Range<usize>,
}

/// A set of backends.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// What rules and metrics call it.
    pub name: String,
    /// What makes a call sticky.
    pub affinity: Affinity,
    /// How a backend is found.
    pub strategy: Strategy,
    /// How backends are watched, if they are.
    pub health: Option<Health>,
    /// When their answers to real requests count against them, if at all.
    pub outlier: Option<Limits>,
    /// How long a backend that comes back takes to its full share of new keys; zero: no time.
    pub slow_start: Duration,
    /// Per cent of backends that take new keys below which all of them do.
    pub panic: u32,
    /// Octets of the longest request that goes to a backend in a datagram, if there is a limit (RFC 3261 18.1.1).
    pub datagram_max: Option<u32>,
    /// The PROXY header in front of each connection to a backend. With one, each client has a connection of its own, which it
    /// names.
    pub proxy_header: Option<ProxyHeader>,
    /// Whether octets that mean nothing may follow requests to them in datagrams, so that these go in runs.
    pub pads: bool,
    /// How backends are spoken to by TLS, where there is one that is.
    pub tls: Option<PoolTls>,
    /// The backends.
    pub backends: Vec<Backend>,
    /// The list they stand in, if it is not the configuration itself.
    pub list: Option<List>,
    /// The domain whose servers they are, likewise.
    pub discover: Option<Discover>,
}

impl Pool {
    /// What is wrong where a backend of a list is reached by TLS: of others it is told when the configuration is read.
    fn unsealed(&self) -> Option<Problem> {
        let mut listed = self.backends.iter().filter(|one| one.source.is_some() && one.transport == Transport::Tls);
        let (one, title, help) = match &self.tls {
            None => {
                let one = listed.next()?;
                let title = format!("nothing says whose certificates to trust of `{}`", one.name);
                (one, title, "add `tls = { ca = \"/etc/viahop/ca.pem\" }` to the pool that names the list")
            }
            Some(tls) => {
                let one = listed.find(|one| tls.towards(&one.target).is_none())?;
                let title = format!("no certificate could be for `{}`", one.target.host);
                (one, title, "say which name with `name = \"sip.example.net\"` in the `tls` of the pool")
            }
        };
        let problem = Problem::error(one.at.clone(), title, "is reached by TLS");
        Some(problem.within(one.source.clone()).help(help))
    }

    /// What is wrong where backends are to be told whom a connection is for that is none.
    fn unintroduced(&self) -> impl Iterator<Item = Problem> {
        let wrong = self.backends.iter().filter(|one| self.proxy_header.is_some() && one.transport == Transport::Udp);
        wrong.map(|one| {
            let title = format!("`{}` is reached over UDP, and its pool has `send_proxy`", one.target);
            let problem = Problem::error(one.at.clone(), title, "no server reads a PROXY header in datagrams");
            let help = "add `;transport=tcp` or `;transport=tls`, or give it a pool without `send_proxy`";
            problem.within(one.source.clone()).help(help)
        })
    }
}

/// How the backends of a pool are spoken to by TLS.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolTls {
    /// Whom we trust, and what we show.
    pub clienthood: Clienthood,
    /// The name that their certificates have to be for, if not the hosts of their URIs.
    pub name: Option<String>,
}

impl PoolTls {
    /// How the backend at `target` is spoken to. `None`: no certificate could be for it.
    pub fn towards(&self, target: &HostPort) -> Option<Client> {
        self.clienthood.towards(self.name.as_deref().unwrap_or(&target.host))
    }
}

/// A set of a `dispatcher.list`.
#[derive(Clone, Debug, PartialEq)]
pub struct List {
    /// The file.
    pub path: PathBuf,
    /// The number of the set.
    pub set: u32,
    /// Where the configuration names it.
    pub at: Range<usize>,
}

/// A domain whose servers are backends (RFC 3263 4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discover {
    /// Its name, in lower case.
    pub domain: String,
    /// The port of all of them, if it is not for DNS to say.
    pub port: Option<u16>,
    /// How messages get there.
    pub transport: Transport,
    /// Where the configuration names it.
    pub at: Range<usize>,
}

/// A server.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// What metrics call it, and what its identity is made of.
    pub name: String,
    /// Where it is.
    pub target: HostPort,
    /// The addresses of that, if it was DNS that named it; else they are looked up.
    pub addresses: Vec<SocketAddr>,
    /// How messages get there.
    pub transport: Transport,
    /// Octets of the longest message that it takes over a stream.
    pub message_max: u32,
    /// Share of new keys.
    pub weight: u32,
    /// INVITEs that may ring there at a time; 0: any number.
    pub max_open: u32,
    /// Order, for [`Strategy::Priority`].
    pub priority: u32,
    /// What it is used for at first.
    pub state: State,
    /// Where it stands in the source.
    pub at: Range<usize>,
    /// The source, if it is another than the configuration's: a list.
    pub source: Option<Arc<Source>>,
}

/// How the backends of a pool are watched.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// From one OPTIONS to the next.
    pub interval: Duration,
    /// How long an answer may take; at most `interval`.
    pub timeout: Duration,
    /// Failures in a row until it is down.
    pub fall: u32,
    /// Successes in a row until it is up.
    pub rise: u32,
    /// Codes that mean success: ranges, ends included.
    pub ok: Vec<(u16, u16)>,
}

impl Health {
    /// Whether a final response of this code means that the backend is alive.
    pub fn is_ok(&self, code: u16) -> bool {
        self.ok.iter().any(|&(first, last)| (first..=last).contains(&code))
    }
}

/// Which pool takes what.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// What explanations call it.
    pub name: String,
    /// Methods it is for, if not all.
    pub methods: Option<Vec<Method>>,
    /// Hosts it is for, if not all.
    pub domains: Option<Vec<String>>,
    /// Indexes of listeners it is for, if not all.
    pub listeners: Option<Vec<u8>>,
    /// Index of the pool.
    pub pool: u16,
}

/// The operator's choices.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Networks whose hosts count as inside.
    pub inside: Vec<Network>,
    /// Further names that mean us, with a port if only that one does.
    pub aliases: Vec<HostPort>,
    /// Whether we stay in the path of dialogs.
    pub record_route: bool,
    /// Which registrations get a Path of ours.
    pub path: PathPolicy,
    /// What to do about next hops that clients ask for.
    pub foreign_route: ForeignRoute,
    /// Schemes of Request-URIs that are passed on.
    pub schemes: Vec<Scheme>,
    /// Option tags of Proxy-Require that are passed on, in lower case.
    pub proxy_require: Vec<String>,
}

/// What connections are allowed.
#[derive(Clone, Debug, PartialEq)]
pub struct Streams {
    /// Connections of all shards at a time.
    pub max_connections: usize,
    /// Of these, from one source, in each shard.
    pub max_per_source: u32,
    /// How long nothing may be sent and received.
    pub idle: Duration,
    /// How long a message may take from its first octet to its last, and a peer to read.
    pub frame_timeout: Duration,
    /// How long a connection of ours may take to be opened.
    pub connect_timeout: Duration,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// TLS handshakes of clients under way at a time, in all shards.
    pub max_handshakes: usize,
    /// Connections to backends that name their client in a PROXY header, of all shards at a time.
    pub max_proxied: usize,
    /// How long nothing may be sent and received on one.
    pub proxied_idle: Duration,
}

/// Where the socket of `viahop ctl` is.
#[derive(Clone, Debug, PartialEq)]
pub enum Socket {
    /// Where such sockets are on this machine, if we may make one there.
    Default,
    /// Nowhere.
    Off,
    /// There.
    Path(PathBuf),
}

/// Where the fleet's secret is.
#[derive(Clone, Debug, PartialEq)]
pub enum Secret {
    /// In a file of ours, which is written if there is none yet.
    Own,
    /// In the configuration.
    Given(String),
    /// In a file of the operator's.
    File(PathBuf),
}

/// A key that tokens are signed with.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenKey {
    /// Its number: four bits of each token say which key signed it.
    pub id: u8,
    /// The file that it is made of, if it is not the fleet's secret.
    pub file: Option<PathBuf>,
}

/// What is written to standard error.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// How.
    pub format: LogFormat,
    /// How much.
    pub level: tracing::Level,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text: coloured on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

/// A configuration, with what is not quite right about it, and its source for errors found later.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What is meant.
    pub config: Config,
    /// Warnings.
    pub warnings: Vec<Problem>,
    /// What it was read from.
    pub source: Source,
}

/// Reads the file at `path`.
///
/// # Errors
/// The file cannot be read, or what it says cannot be done.
pub fn load(path: &Path) -> Result<Loaded, Report> {
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => parse(Source { name, text }),
        Err(error) => {
            let problem = Problem::error(0..0, format!("cannot read {name}: {error}"), "");
            let help = to_be_readable(error.kind()).map(Into::into);
            let problems = vec![Problem { at: None, help, ..problem }];
            Err(Report { source: Source { name, text: String::new() }, problems })
        }
    }
}

/// What to do about a file that cannot be read. Only where there is none is another one of use: what can be put right must
/// not be written over.
fn to_be_readable(why: ErrorKind) -> Option<&'static str> {
    match why {
        ErrorKind::InvalidData => Some("a configuration is text in UTF-8: `file` says what this is"),
        ErrorKind::IsADirectory => Some("name the file in it"),
        ErrorKind::NotFound => Some("`viahop init > viahop.toml` writes one to start from"),
        ErrorKind::PermissionDenied => Some("let the user that viahop runs as read it: `ls -l` says who may"),
        _ => None,
    }
}

/// Reads a configuration in TOML.
///
/// # Errors
/// What it says cannot be done.
pub fn parse(source: Source) -> Result<Loaded, Report> {
    match toml::from_str::<file::File>(&source.text) {
        Ok(file) => read(&file, source),
        Err(error) => {
            let problem = read::toml_problem(&error, &source.text);
            Err(Report { source, problems: vec![problem] })
        }
    }
}

/// Finds out what `file` means, which was read from `source`.
///
/// # Errors
/// What it says cannot be done.
pub fn read(file: &file::File, source: Source) -> Result<Loaded, Report> {
    let (mut config, mut problems) = read::read(file, &source.text);
    if let Some(config) = &mut config {
        let is_sound = problems.iter().all(|problem| problem.severity != problem::Severity::Error);
        problems.extend(list_file::fill(&mut config.pools));
        problems.extend(config.pools.iter().flat_map(Pool::unintroduced));
        // A pool whose certificates cannot be read has none, and that was told.
        problems.extend(config.pools.iter().filter(|_| is_sound).filter_map(Pool::unsealed));
    }
    let report = Report::in_order(source, problems);
    match config {
        Some(config) if !report.is_error() => Ok(Loaded { config, warnings: report.problems, source: report.source }),
        _ => Err(report),
    }
}

impl Loaded {
    /// The same, with the lists that pools name read again.
    ///
    /// # Errors
    /// A list cannot be read, or what it says cannot be done.
    pub fn with_lists_of_this_moment(mut self) -> Result<Loaded, Report> {
        let mut problems = list_file::fill(&mut self.config.pools);
        problems.extend(self.config.pools.iter().flat_map(Pool::unintroduced));
        problems.extend(self.config.pools.iter().filter_map(Pool::unsealed));
        let report = Report::in_order(self.source, problems);
        if report.is_error() {
            return Err(report);
        }
        Ok(Loaded { config: self.config, warnings: report.problems, source: report.source })
    }
}
