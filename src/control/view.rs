//! What the control plane shows of itself: a snapshot, replaced whole whenever something changes. Metrics, the status
//! page and the demonstration read it; counters of shards and backends are reached through it and read live.

use super::cluster::Cluster;
use super::health::detector::Outcome;
use super::operator::{Setting, State};
use super::steering::{self, Steering};
use crate::dataplane::counters::{BackendCounters, Counter, ShardCounters};
use crate::tls::Credentials;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The snapshot.
#[derive(Clone, Debug)]
pub struct View {
    /// What does not change while the process lives.
    pub fixed: Arc<Fixed>,
    /// Number of the tables in force.
    pub generation: u64,
    /// 16 hex digits that are the same on nodes that route alike.
    pub config_hash: String,
    /// Whether the process finishes and wants no new calls.
    pub is_draining: bool,
    /// Whether shards may make runs (`gso`); `None`: that was not looked at yet.
    pub allows_runs: Option<bool>,
    /// Whether it should get calls: not draining, and every pool has a backend.
    pub is_ready: bool,
    /// Pools in which no backend gets new calls.
    pub empty_pools: Vec<Box<str>>,
    /// The last reload, or the start.
    pub reload: Reload,
    /// What connections begin TLS with.
    pub credentials: Arc<Credentials>,
    /// The backends, pool by pool.
    pub backends: Vec<BackendView>,
    /// Of each shard, the share of the last second in which it worked: 0 to 1.
    pub busy: Vec<f64>,
    /// Slots that changed hands, by pool and reason.
    pub moves: BTreeMap<(Box<str>, Reason), u64>,
    /// How long backends took to answer OPTIONS, by pool.
    pub probe_times: BTreeMap<Box<str>, ProbeTimes>,
}

/// What does not change while the process lives.
#[derive(Debug)]
pub struct Fixed {
    /// When it started, in seconds since 1970.
    pub started_at: u64,
    /// Path of the configuration, or `command line`.
    pub config: String,
    /// Names and addresses of the listeners.
    pub listeners: Vec<(Box<str>, SocketAddr)>,
    /// The shards.
    pub shards: Vec<ShardView>,
    /// Their counters.
    pub counters: Vec<Arc<ShardCounters>>,
    /// How datagrams come to them.
    pub steering: Steering,
}

/// A shard.
#[derive(Clone, Debug, Serialize)]
pub struct ShardView {
    /// The core it is pinned to.
    pub core: usize,
    /// The port its IPv4 requests leave from and their responses come to.
    pub egress_port_v4: Option<u16>,
    /// Likewise for IPv6.
    pub egress_port_v6: Option<u16>,
}

/// The outcome of a reload.
#[derive(Clone, Debug, Serialize)]
pub struct Reload {
    /// Whether what was read is in force.
    pub ok: bool,
    /// When what is in force was read, in seconds since 1970.
    pub last_success_at: u64,
    /// The first line of what was wrong with the last attempt.
    pub error: Option<String>,
}

/// Why slots changed hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A backend stopped taking new keys.
    BackendDown,
    /// A backend takes new keys again.
    BackendUp,
    /// Real answers spoke against a backend, or its time out of rotation is over, or its share grew.
    Outlier,
    /// An operator changed a backend's state or weight.
    Operator,
    /// The configuration was read again.
    Reload,
}

impl Reason {
    /// The label of the metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Reason::BackendDown => "backend_down",
            Reason::BackendUp => "backend_up",
            Reason::Outlier => "outlier",
            Reason::Operator => "operator",
            Reason::Reload => "reload",
        }
    }
}

/// A backend.
#[derive(Clone, Debug)]
pub struct BackendView {
    /// The name of its pool.
    pub pool: Box<str>,
    /// Its own.
    pub name: Box<str>,
    /// Where it is.
    pub address: SocketAddr,
    /// Whether its answers to probes say that it takes new keys, or it is not probed.
    pub is_up: bool,
    /// Whether it is down and does not answer probes: its dialogs go elsewhere.
    pub is_silent: bool,
    /// Whether it is out of rotation for what it answers.
    pub is_ejected: bool,
    /// Whether it takes new keys: it is up and not ejected, the operator has nothing against it, and its weight is not zero.
    pub takes_new: bool,
    /// What the operator wants of it.
    pub state: Setting<State>,
    /// The same and more in Kamailio's letters.
    pub flags: &'static str,
    /// Share of new keys.
    pub weight: Setting<u32>,
    /// The same as tables have it: less while it starts slowly.
    pub weight_in_force: u32,
    /// Order.
    pub priority: u32,
    /// The last probe, and how long it took.
    pub last_probe: Option<(Outcome, Duration)>,
    /// When its state changed, in seconds since 1970.
    pub changed_at: u64,
    /// What was sent to it and came back.
    pub counters: Arc<BackendCounters>,
}

/// How long probes took: a histogram of seconds.
#[derive(Clone, Debug, Default)]
pub struct ProbeTimes {
    /// By bound of [`ProbeTimes::BOUNDS`]; the last is what is above all of them.
    pub counts: [u64; ProbeTimes::BOUNDS.len() + 1],
    /// The sum of all.
    pub sum: f64,
}

impl ProbeTimes {
    /// Upper bounds in seconds.
    pub const BOUNDS: [f64; 8] = [0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0];

    /// Adds one.
    pub fn add(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let place = ProbeTimes::BOUNDS.iter().position(|&bound| seconds <= bound);
        self.counts[place.unwrap_or(ProbeTimes::BOUNDS.len())] += 1;
        self.sum += seconds;
    }
}

impl View {
    /// The view of `cluster` before anything happened.
    pub fn new(fixed: Arc<Fixed>, cluster: &Cluster, generation: u64) -> View {
        let reload = Reload { ok: true, last_success_at: fixed.started_at, error: None };
        let busy = vec![0.0; fixed.shards.len()];
        let mut view = View {
            fixed,
            generation,
            config_hash: String::new(),
            is_draining: false,
            allows_runs: None,
            is_ready: false,
            empty_pools: Vec::new(),
            reload,
            credentials: Arc::default(),
            backends: Vec::new(),
            busy,
            moves: BTreeMap::new(),
            probe_times: BTreeMap::new(),
        };
        view.take(cluster, generation);
        view
    }

    /// Takes over what `cluster` is.
    pub fn take(&mut self, cluster: &Cluster, generation: u64) {
        self.generation = generation;
        self.config_hash.clone_from(&cluster.hash);
        let empty = cluster.pools.iter().filter(|pool| pool.is_empty());
        self.empty_pools = empty.map(|pool| pool.name.clone()).collect();
        self.is_ready = self.empty_pools.is_empty() && !self.is_draining;
        self.backends = cluster
            .backends()
            .map(|((pool, _), backend)| BackendView {
                pool: cluster.pools[pool].name.clone(),
                name: backend.name.clone(),
                address: backend.place.address,
                is_up: backend.detector.is_up(),
                is_silent: backend.detector.is_silent(),
                is_ejected: backend.outlier.is_ejected(),
                takes_new: backend.takes_new(),
                state: backend.state,
                flags: backend.state.now.flags(
                    backend.detector.is_up() && !backend.outlier.is_ejected(),
                    backend.detector.is_trying(),
                    cluster.pools[pool].health.is_some(),
                ),
                weight: backend.weight,
                weight_in_force: backend.weight_in(&cluster.pools[pool]),
                priority: backend.priority,
                last_probe: backend.last_probe,
                changed_at: backend.changed_at,
                counters: backend.counters.clone(),
            })
            .collect();
    }

    /// The sum of a counter over all shards.
    pub fn sum(&self, of: impl Fn(&ShardCounters) -> u64) -> u64 {
        self.fixed.counters.iter().map(|counters| of(counters)).sum()
    }

    /// How much more than its share the busiest shard has received since the start.
    pub fn skew(&self) -> Option<f64> {
        steering::skew(self.fixed.counters.iter().map(|counters| counters.received_total()))
    }

    fn shards(&self) -> Vec<ShardStatus<'_>> {
        let of = |((view, counters), &busy): ((_, &Arc<ShardCounters>), &f64)| ShardStatus {
            view,
            busy: (busy * 1e3).round() / 1e3,
            connections: counters.streams.open(),
            messages: Messages::of(|of| of(counters)),
        };
        self.fixed.shards.iter().zip(&self.fixed.counters).zip(&self.busy).map(of).collect()
    }

    /// The document of `/status.json`.
    pub fn status(&self) -> Status<'_> {
        Status {
            version: env!("CARGO_PKG_VERSION"),
            config: &self.fixed.config,
            config_hash: &self.config_hash,
            started_at: self.fixed.started_at,
            generation: self.generation,
            ready: self.is_ready,
            draining: self.is_draining,
            gso: self.allows_runs == Some(true),
            reload: &self.reload,
            listeners: self.fixed.listeners.iter().map(|(name, address)| Named { name, address: *address }).collect(),
            steering: self.fixed.steering.status(),
            shard_skew: self.skew().map(|skew| (skew * 1e4).round() / 1e4),
            shards: self.shards(),
            backends: self.backends.iter().map(BackendStatus::of).collect(),
            messages: Messages::of(|of| self.sum(of)),
        }
    }
}

/// What `/status.json` says.
#[derive(Debug, Serialize)]
pub struct Status<'a> {
    version: &'a str,
    config: &'a str,
    config_hash: &'a str,
    started_at: u64,
    generation: u64,
    ready: bool,
    draining: bool,
    gso: bool,
    reload: &'a Reload,
    listeners: Vec<Named<'a>>,
    steering: steering::Status<'a>,
    shard_skew: Option<f64>,
    shards: Vec<ShardStatus<'a>>,
    backends: Vec<BackendStatus<'a>>,
    messages: Messages,
}

#[derive(Debug, Serialize)]
struct Named<'a> {
    name: &'a str,
    address: SocketAddr,
}

#[derive(Debug, Serialize)]
struct ShardStatus<'a> {
    #[serde(flatten)]
    view: &'a ShardView,
    busy: f64,
    connections: u64,
    #[serde(flatten)]
    messages: Messages,
}

#[derive(Debug, Serialize)]
struct BackendStatus<'a> {
    pool: &'a str,
    name: &'a str,
    address: SocketAddr,
    state: &'static str,
    ejected: bool,
    operator: State,
    operator_written: State,
    flags: &'static str,
    takes_new: bool,
    changed_at: u64,
    weight: u32,
    weight_written: u32,
    priority: u32,
    last_probe: Option<String>,
    last_probe_ms: Option<f64>,
    requests: u64,
    responses: u64,
    errors: u64,
    weight_in_force: u32,
    silent: bool,
}

impl<'a> BackendStatus<'a> {
    fn of(view: &'a BackendView) -> BackendStatus<'a> {
        BackendStatus {
            pool: &view.pool,
            name: &view.name,
            address: view.address,
            state: if view.is_up { "up" } else { "down" },
            ejected: view.is_ejected,
            operator: view.state.now,
            operator_written: view.state.written,
            flags: view.flags,
            takes_new: view.takes_new,
            changed_at: view.changed_at,
            weight: view.weight.now,
            weight_written: view.weight.written,
            priority: view.priority,
            last_probe: view.last_probe.map(|(outcome, _)| outcome.to_string()),
            last_probe_ms: view.last_probe.map(|(_, took)| (took.as_secs_f64() * 1e6).round() / 1e3),
            requests: view.counters.sum(|shard| shard.requests.get()),
            responses: view.counters.sum(|shard| shard.responses.iter().map(Counter::get).sum()),
            errors: view.counters.sum(|shard| shard.errors.get()),
            weight_in_force: view.weight_in_force,
            silent: view.is_silent,
        }
    }
}

/// `received + taken_over = forwarded + replied + dropped + waiting + handed_over`, but for the messages of the moment.
#[derive(Debug, Serialize)]
struct Messages {
    received: u64,
    forwarded: u64,
    replied: u64,
    dropped: u64,
    waiting: u64,
    taken_over: u64,
    handed_over: u64,
}

impl Messages {
    fn of(sum: impl Fn(&dyn Fn(&ShardCounters) -> u64) -> u64) -> Messages {
        Messages {
            received: sum(&ShardCounters::received_total),
            forwarded: sum(&|counters| counters.forwarded.get()),
            replied: sum(&ShardCounters::replied_total),
            dropped: sum(&ShardCounters::dropped_total),
            waiting: sum(&|counters| counters.waiting.get()),
            taken_over: sum(&|counters| counters.taken_over.get()),
            handed_over: sum(&|counters| counters.handed_over.get()),
        }
    }
}
