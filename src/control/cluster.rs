//! The cluster as the control plane knows it: pools, backends, their state; and the tables that follow from it.
//!
//! ```text
//! configuration, resolved ──┐
//! probes ─► detectors ──────┼─► Cluster ─► Tables
//! the cluster before ───────┘   what is known of a backend outlives a reload
//! ```

use super::config::address::uri_host;
use super::config::{Health, Policy};
use super::health::detector::{Detector, Outcome};
use super::health::outlier::{Limits, Outlier, Sickness, Traffic, most_ejected};
use super::operator::{Setting, State};
use super::resolve::{self, Place, Resolved};
use crate::dataplane::counters::{BackendCounters, Counter};
use crate::dataplane::keys::Keys;
use crate::dataplane::tables::{
    self, BackendParts, Listener, Network, OwnName, PoolParts, Reach, Rule, Settings, Tables,
};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// All pools, and what is decided by.
#[derive(Debug)]
pub struct Cluster {
    /// The pools.
    pub pools: Vec<Pool>,
    listeners: Vec<Listener>,
    rules: Vec<Rule>,
    inside: Vec<Network>,
    own: Vec<OwnName>,
    policy: tables::Policy,
    capture: Option<tables::Capture>,
    /// 16 hex digits by which nodes of a fleet can tell whether they route alike.
    pub hash: String,
    /// What goes into the hash beside the pools.
    hashed: String,
}

/// A pool.
#[derive(Debug)]
pub struct Pool {
    /// Its name.
    pub name: Box<str>,
    /// How its backends are watched, if they are.
    pub health: Option<Health>,
    /// When real answers count against a backend, if at all.
    pub outlier: Option<Limits>,
    /// How long a backend that comes back takes to its full share.
    pub slow_start: Duration,
    /// Per cent of backends that take new keys below which all that the operator has nothing against do.
    pub panic: u32,
    /// The backends.
    pub backends: Vec<Backend>,
    /// What makes a call sticky.
    pub affinity: tables::Affinity,
    /// How a backend is found.
    pub strategy: tables::Strategy,
}

/// A backend.
#[derive(Debug)]
pub struct Backend {
    /// Its name.
    pub name: Box<str>,
    /// Where it is.
    pub place: Place,
    /// How messages get there.
    pub reach: Reach,
    /// What the operator wants of it.
    pub state: Setting<State>,
    /// Share of new keys.
    pub weight: Setting<u32>,
    /// INVITEs that may ring there at a time, for each shard; 0: any number.
    pub max_open: u32,
    /// Order, for [`tables::Strategy::Priority`].
    pub priority: u32,
    /// What probes say.
    pub detector: Detector,
    /// What its answers to real requests say.
    pub outlier: Outlier,
    /// Seconds since it came back, while it has less than its full share.
    pub back_s: Option<u64>,
    /// What came of the last probe, and how long that took.
    pub last_probe: Option<(Outcome, Duration)>,
    /// When its state last changed, in seconds since 1970.
    pub changed_at: u64,
    /// What was sent to it and came back.
    pub counters: Arc<BackendCounters>,
}

impl Cluster {
    /// The cluster that `resolved` describes, served by `shards` shards. What `before` knew of a backend of the same pool,
    /// name and address is taken over. `now` is in seconds since 1970, `fingerprint` that of the secret.
    pub fn new(resolved: Resolved, before: Option<&Cluster>, shards: usize, now: u64, fingerprint: &str) -> Cluster {
        let hashed = format!("{fingerprint}\n{:?}\n", resolved.config.routes);
        let Resolved { config, backends: places, own } = resolved;
        let named = |pool: &str, name: &str| before?.backend(pool, name);
        let pools = config.pools.into_iter().zip(places).map(|(pool, places)| {
            let thresholds = pool.health.as_ref().map_or((1, 1), |health| (health.fall, health.rise));
            let backends = pool.backends.into_iter().zip(places).map(|(backend, place)| {
                let named = named(&pool.name, &backend.name);
                let old = named.filter(|old| old.place.address == place.address);
                // Without probes nobody would ever bring a backend back up.
                let detector = match old.filter(|_| pool.health.is_some()) {
                    Some(old) => old.detector.with_thresholds(thresholds.0, thresholds.1),
                    None => Detector::new(thresholds.0, thresholds.1),
                };
                let state = named.map_or(Setting::new(backend.state), |old| old.state.reloaded(backend.state));
                let mut made = Backend {
                    name: backend.name.into(),
                    place,
                    reach: Reach {
                        transport: place.transport,
                        message_max: backend.message_max,
                        datagram_max: pool.datagram_max.unwrap_or(u32::MAX),
                        proxy_header: place.proxy_header,
                        pads: pool.pads,
                    },
                    state: Setting { now: old.map_or(state.now, |old| old.state.now), ..state },
                    weight: named.map_or(Setting::new(backend.weight), |old| old.weight.reloaded(backend.weight)),
                    max_open: backend.max_open.div_ceil(shards.max(1) as u32),
                    priority: backend.priority,
                    detector,
                    // Likewise, nobody would ever end an ejection.
                    outlier: old
                        .filter(|_| pool.outlier.is_some())
                        .map_or_else(Outlier::default, |old| old.outlier.clone()),
                    back_s: old.and_then(|old| old.back_s),
                    last_probe: old.and_then(|old| old.last_probe),
                    changed_at: old.map_or(now, |old| old.changed_at),
                    counters: old.map_or_else(|| Arc::new(BackendCounters::new(shards)), |old| old.counters.clone()),
                };
                made.put_into(state.now, pool.slow_start, now);
                made
            });
            Pool {
                backends: backends.collect(),
                name: pool.name.into(),
                health: pool.health,
                outlier: pool.outlier,
                slow_start: pool.slow_start,
                panic: pool.panic,
                affinity: pool.affinity,
                strategy: pool.strategy,
            }
        });
        let Policy { inside, foreign_route, record_route, path, schemes, proxy_require, .. } = config.policy;
        let listeners = config.listeners.into_iter().map(|listener| Listener {
            name: listener.name.into(),
            transport: listener.transport,
            address: listener.address,
            host: match listener.address.ip() {
                ip if ip.is_unspecified() => resolve::towards_the_world(ip.is_ipv4()),
                ip => ip,
            },
            side: listener.side,
            proxies: listener.proxies,
            advertised: match listener.advertise {
                Some(name) => Some(name.to_string().into()),
                None => (!listener.address.ip().is_unspecified()).then(|| listener.address.to_string().into()),
            },
        });
        let rules = config.routes.into_iter().map(|route| Rule {
            name: route.name.into(),
            methods: route.methods,
            domains: route.domains.map(|domains| domains.into_iter().map(Into::into).collect()),
            listeners: route.listeners,
            pool: route.pool,
        });
        let proxy_require = proxy_require.into_iter().map(Into::into).collect();
        let stream_keep_s = (config.streams.idle.as_secs() * 3 / 4).min(tables::STREAM_KEEP_S.into()) as u32;
        let pools: Vec<Pool> = pools.collect();
        Cluster {
            hash: hash(&hashed, &pools),
            hashed,
            pools,
            listeners: listeners.collect(),
            rules: rules.collect(),
            inside,
            own,
            policy: tables::Policy { foreign_route, record_route, path, schemes, proxy_require, stream_keep_s },
            capture: config.capture,
        }
    }

    /// Brings the hash up to date after an operator changed a backend's state or weight.
    pub fn rehash(&mut self) {
        self.hash = hash(&self.hashed, &self.pools);
    }

    /// The tables that follow. Takes a few milliseconds when a slot table has to be worked out.
    pub fn tables(&self, generation: u64, keys: &Keys, draining: bool, previous: Option<&Tables>) -> Tables {
        let settings = Settings {
            listeners: self.listeners.clone(),
            rules: self.rules.clone(),
            inside: self.inside.clone(),
            own: self.own.clone(),
            keys: keys.clone(),
            policy: self.policy.clone(),
            draining,
        };
        let parts = self.pools.iter().map(|pool| PoolParts {
            name: pool.name.clone(),
            affinity: pool.affinity,
            strategy: pool.strategy,
            backends: pool.backends.iter().map(|backend| backend.parts(pool)).collect(),
        });
        Tables { capture: self.capture, ..Tables::new(generation, settings, parts.collect(), previous) }
    }

    /// Every backend, with the number of its pool and its number in it.
    pub fn backends(&self) -> impl Iterator<Item = ((usize, usize), &Backend)> {
        self.pools.iter().enumerate().flat_map(|(pool, one)| {
            one.backends.iter().enumerate().map(move |(place, backend)| ((pool, place), backend))
        })
    }

    /// What of the rest differs in `other`, in the words of the configuration.
    pub fn differs_beside_pools(&self, other: &Cluster) -> Vec<&'static str> {
        let parts = |of: &Cluster| {
            [
                ("routes", format!("{:?}", of.rules)),
                ("policy", format!("{:?}", (&of.policy, &of.inside))),
                ("names that mean us", format!("{:?}", of.own)),
                ("listeners", format!("{:?}", of.listeners)),
                ("capture", format!("{:?}", of.capture)),
            ]
        };
        parts(self).iter().zip(parts(other)).filter(|(a, b)| a.1 != b.1).map(|(a, _)| a.0).collect()
    }

    /// The backend of this name in the pool of that name.
    pub fn backend(&self, pool: &str, name: &str) -> Option<&Backend> {
        let pool = self.pools.iter().find(|one| *one.name == *pool)?;
        pool.backends.iter().find(|one| *one.name == *name)
    }

    /// Where its backends are.
    pub fn addresses(&self) -> resolve::Addresses {
        self.backends().map(|(_, backend)| (backend.name.clone(), backend.place.address)).collect()
    }

    /// Names of those who answer probes, whatever they answer. Nobody does who is not probed.
    pub fn answering(&self) -> HashSet<Box<str>> {
        let answers = |backend: &&Backend| {
            backend.state.now != State::Maint
                && backend.last_probe.is_some_and(|(outcome, _)| {
                    // One lost probe does not take anybody down.
                    backend.detector.is_up() || matches!(outcome, Outcome::Alive(_) | Outcome::Unwell(_))
                })
        };
        self.backends().map(|(_, backend)| backend).filter(answers).map(|backend| backend.name.clone()).collect()
    }

    /// A second passed. Returns what it brought, with the indexes of pool and backend.
    pub fn on_second(&mut self) -> Vec<((usize, usize), Turn)> {
        let traffic = self.traffic();
        let mut turns = Vec::new();
        for (pool, one) in self.pools.iter_mut().enumerate() {
            turns.extend(one.on_second(&traffic).into_iter().map(|(index, turn)| ((pool, index), turn)));
        }
        turns
    }

    /// What each server was sent and what came back so far. One that stands in two pools is sent requests by both, and what
    /// it answers is counted in one of them: [`Tables::by_address`].
    fn traffic(&self) -> HashMap<SocketAddr, Traffic> {
        let mut traffic: HashMap<SocketAddr, Traffic> = HashMap::new();
        for (_, backend) in self.backends() {
            let of_server = traffic.entry(backend.place.address).or_default();
            *of_server = of_server.plus(&backend.traffic());
        }
        traffic
    }
}

/// Tenths of its weight that a backend has, `since` seconds after it came back.
fn tenths(since: u64, slow_start: Duration) -> u32 {
    (since * 10).checked_div(slow_start.as_secs()).map_or(10, |tenths| tenths.clamp(1, 10) as u32)
}

/// What a second brought for a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It takes no new keys for so many seconds.
    Ejected(Sickness, u64),
    /// It would have been ejected, but too many are already, or it is the last.
    Spared(Sickness),
    /// Its ejection is over.
    Back,
    /// It has another tenth of its weight.
    Grown,
}

impl Pool {
    /// Whether no backend gets new keys.
    pub fn is_empty(&self) -> bool {
        !self.panics() && !self.backends.iter().any(Backend::takes_new)
    }

    /// Whether so few backends take new keys that all that are ready are used: when most seem dead at once, it is rather
    /// the probes or the network between that fail, and the living would not carry the load of all. Whom the operator has
    /// emptied by a weight of 0 does not seem dead.
    pub fn panics(&self) -> bool {
        let is_meant_to = |backend: &&Backend| backend.state.now == State::Ready && backend.weight.now > 0;
        let ready = self.backends.iter().filter(is_meant_to).count();
        let taking = self.backends.iter().filter(|backend| backend.takes_new()).count();
        taking * 100 < ready * self.panic as usize
    }

    /// Takes note of what came of a probe of backend `index`. Returns whose state that changed.
    ///
    /// If nobody was up, those rise with it that lack one answer: what was away was the way there, and whoever rose first would get
    /// the keys and the dialogs of all others until they follow.
    pub fn on_outcome(&mut self, index: usize, outcome: Outcome) -> Vec<usize> {
        let is_seen_up = |backend: &Backend| backend.state.now != State::Maint && backend.detector.is_up();
        let nobody_was = !self.backends.iter().any(is_seen_up);
        if !self.backends[index].detector.on_outcome(outcome) {
            return Vec::new();
        }
        let rises = |backend: &mut Backend| backend.detector.is_rising() && backend.detector.on_outcome(outcome);
        let others = self.backends.iter_mut().enumerate().filter(|_| nobody_was);
        let others = others.filter_map(|(other, backend)| (other != index && rises(backend)).then_some(other));
        [index].into_iter().chain(others).collect()
    }

    /// A second passed. Returns what it brought, with the index of the backend. `traffic` is that of all servers.
    fn on_second(&mut self, traffic: &HashMap<SocketAddr, Traffic>) -> Vec<(usize, Turn)> {
        let mut turns = Vec::new();
        let mut ejected = self.backends.iter().filter(|backend| backend.outlier.is_ejected()).count();
        let mut taking = self.backends.iter().filter(|backend| backend.takes_new()).count();
        let count = self.backends.len();
        for (index, backend) in self.backends.iter_mut().enumerate() {
            if let Some(since) = &mut backend.back_s {
                let before = tenths(*since, self.slow_start);
                *since += 1;
                if tenths(*since, self.slow_start) > before {
                    turns.push((index, Turn::Grown));
                }
                if *since >= self.slow_start.as_secs() {
                    backend.back_s = None;
                }
            }
            let Some(limits) = &self.outlier else { continue };
            let was_ejected = backend.outlier.is_ejected();
            let total = traffic.get(&backend.place.address).copied().unwrap_or_default();
            let sickness = backend.outlier.on_second(total, limits);
            if was_ejected && !backend.outlier.is_ejected() {
                ejected -= 1;
                taking += usize::from(backend.takes_new());
                backend.starts_slowly(self.slow_start);
                turns.push((index, Turn::Back));
            }
            match sickness.filter(|_| backend.takes_new()) {
                // Never the last that takes new keys: half of its answers are more than none.
                Some(sickness) if ejected < most_ejected(count, limits) && taking > 1 => {
                    (ejected, taking) = (ejected + 1, taking - 1);
                    turns.push((index, Turn::Ejected(sickness, backend.outlier.eject(limits))));
                }
                Some(sickness) => turns.push((index, Turn::Spared(sickness))),
                None => {}
            }
        }
        turns
    }
}

impl Backend {
    /// Puts it into the state an operator wants. One that comes out of maintenance is not known to be up or down: it begins
    /// as at the start, and slowly. `now` is in seconds since 1970.
    pub fn put_into(&mut self, state: State, slow_start: Duration, now: u64) {
        if self.state.now == state {
            return;
        }
        if self.state.now == State::Maint {
            self.detector = self.detector.afresh();
            self.starts_slowly(slow_start);
        }
        (self.state.now, self.changed_at) = (state, now);
    }

    /// It came back: its share grows, if the pool wants that.
    pub fn starts_slowly(&mut self, slow_start: Duration) {
        self.back_s = (!slow_start.is_zero()).then_some(0);
    }

    /// Whether it takes new keys.
    pub fn takes_new(&self) -> bool {
        self.state.now == State::Ready && self.weight.now > 0 && self.detector.is_up() && !self.outlier.is_ejected()
    }

    /// What it was sent by its pool, and what came back as far as that is counted here.
    fn traffic(&self) -> Traffic {
        let responses = |classes: std::ops::Range<usize>| {
            self.counters.sum(|shard| shard.responses[classes.clone()].iter().map(Counter::get).sum())
        };
        Traffic {
            requests: self.counters.sum(|shard| shard.requests.get()),
            answers: responses(0..6),
            finals: responses(1..6),
            unavailable: self.counters.sum(|shard| shard.unavailable.get()),
        }
    }

    /// Its weight, less while it starts slowly: a tenth of it at first, then as the time goes.
    pub fn weight_in(&self, pool: &Pool) -> u32 {
        match self.back_s {
            Some(since) => (self.weight.now * tenths(since, pool.slow_start) / 10).max(1).min(self.weight.now),
            None => self.weight.now,
        }
    }

    fn parts(&self, pool: &Pool) -> BackendParts {
        BackendParts {
            name: self.name.clone(),
            address: self.place.address,
            weight: self.weight_in(pool),
            priority: self.priority,
            is_up: if pool.panics() { self.state.now == State::Ready } else { self.takes_new() },
            serves: self.state.now.serves(self.detector.is_silent()),
            max_open: self.max_open,
            reach: self.reach,
            via_host: uri_host(self.place.local).into(),
            counters: self.counters.clone(),
        }
    }
}

/// How many slots of each pool change hands between two tables, for a number of the metrics and a line of the log.
/// Backends are compared by name: their indexes mean nothing across tables. Pools whose keys slots say nothing of are left out.
pub fn moved_slots(before: &Tables, after: &Tables) -> Vec<(Box<str>, usize)> {
    fn name(tables: &Tables, index: u16) -> Option<&str> {
        tables.backends.get(index as usize).map(|backend| &*backend.name)
    }
    let mut moved = Vec::new();
    for pool in &after.pools {
        let Some(old) = before.pools.iter().find(|old| old.name == pool.name) else { continue };
        // Where keys go by turns or by rank, or are other keys than before, slots tell nothing of them.
        let is_by_slots = matches!(pool.strategy, tables::Strategy::Hash | tables::Strategy::Random);
        if !is_by_slots || (old.strategy, old.affinity) != (pool.strategy, pool.affinity) {
            continue;
        }
        let same = |a: u16, b: u16| name(before, a) == name(after, b);
        let count = if Arc::ptr_eq(&old.table, &pool.table) && before.backends.len() == after.backends.len() {
            0
        } else {
            old.table.moved(&pool.table, same).0
        };
        moved.push((pool.name.clone(), count));
    }
    moved
}

/// A digest of all that decides where a message goes, but for what probes find out: what nodes of a fleet must have in
/// common. Addresses of listeners may differ between nodes and are left out. `hashed` is what goes in beside the pools.
fn hash(hashed: &str, pools: &[Pool]) -> String {
    let mut text = hashed.to_owned();
    for pool in pools {
        text.push_str(&format!("{} {:?} {:?}\n", pool.name, pool.affinity, pool.strategy));
        let row = |one: &Backend| {
            let state = if one.state.now == State::Ready { "" } else { one.state.now.word() };
            format!("{} {} {} {} {state}\n", one.name, one.place.address, one.weight.now, one.priority)
        };
        let mut rows: Vec<String> = pool.backends.iter().map(row).collect();
        // The order of backends means nothing.
        rows.sort();
        text.extend(rows);
    }
    let digest = Sha256::digest(text);
    digest.iter().take(8).map(|octet| format!("{octet:02x}")).collect()
}

#[cfg(test)]
#[allow(missing_docs, reason = "tests of other files use these helpers")]
pub mod tests {
    use super::super::config::{parse, problem::Source};
    use super::*;

    /// The cluster that a configuration describes.
    pub fn cluster(text: &str, before: Option<&Cluster>) -> Cluster {
        let loaded = parse(Source { name: "viahop.toml".into(), text: text.into() }).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (resolved, _) = runtime.block_on(resolve::resolve(loaded, &keys(), &resolve::InForce::default())).unwrap();
        Cluster::new(resolved, before, 1, 1000, "f")
    }

    /// A configuration with one pool of backends on these ports.
    pub fn text(ports: &[u16]) -> String {
        let backends: Vec<String> = ports.iter().map(|port| format!("{{ uri = \"sip:127.0.0.1:{port}\" }}")).collect();
        format!(
            "[[listen]]\naddress = \"udp:127.0.0.1:5070\"\n[[pool]]\nname = \"proxies\"\nbackend = [{}]\n",
            backends.join(", ")
        )
    }

    pub fn keys() -> Keys {
        Keys::new(&[1; 16], &[2; 16], &[3; 16], 0)
    }

    #[test]
    fn a_reload_keeps_what_is_known_of_a_backend() {
        let mut before = cluster(&text(&[1, 2]), None);
        before.pools[0].backends[1].detector.on_outcome(Outcome::Refused);
        let after = cluster(&text(&[3, 2]), Some(&before));
        let up: Vec<bool> = after.pools[0].backends.iter().map(|backend| backend.detector.is_up()).collect();
        assert_eq!(up, [true, false]);
        assert!(Arc::ptr_eq(&before.pools[0].backends[1].counters, &after.pools[0].backends[1].counters));
        assert!(!after.pools[0].is_empty());
    }

    #[test]
    fn who_comes_back_together_gets_its_keys_together() {
        let mut cluster = cluster(&text(&[1, 2, 3, 4]), None);
        let pool = &mut cluster.pools[0];
        for index in 0..4 {
            assert_eq!(pool.on_outcome(index, Outcome::Timeout), [index]);
        }
        // The first is asked again before the fourth is, and the third is gone.
        for (index, outcome) in [Outcome::Alive(200), Outcome::Alive(200), Outcome::Timeout].into_iter().enumerate() {
            assert!(pool.on_outcome(index, outcome).is_empty());
        }
        assert_eq!(pool.on_outcome(0, Outcome::Alive(200)), [0, 1]);
        let up: Vec<bool> = pool.backends.iter().map(|backend| backend.detector.is_up()).collect();
        assert_eq!(up, [true, true, false, false]);
        // Where somebody is up, it takes two answers.
        assert!(pool.on_outcome(3, Outcome::Alive(200)).is_empty());
        assert!(pool.on_outcome(2, Outcome::Alive(200)).is_empty());
        assert_eq!(pool.on_outcome(2, Outcome::Alive(200)), [2]);
    }

    #[test]
    fn who_is_up_answers_though_a_probe_was_lost() {
        let mut cluster = cluster(&text(&[1, 2, 3, 4, 5]), None);
        let backends = &mut cluster.pools[0].backends;
        backends[0].detector.on_outcome(Outcome::Alive(200));
        let outcomes = [Outcome::Timeout, Outcome::Timeout, Outcome::Unwell(503), Outcome::Alive(200)];
        for (backend, outcome) in backends.iter_mut().zip(outcomes) {
            backend.detector.on_outcome(outcome);
            backend.last_probe = Some((outcome, Duration::ZERO));
        }
        backends[3].state.now = State::Maint;
        let mut answering: Vec<_> = cluster.answering().into_iter().collect();
        answering.sort_unstable();
        assert_eq!(answering, ["127.0.0.1:1".into(), "127.0.0.1:3".into()] as [Box<str>; 2]);
    }

    #[test]
    fn who_answers_with_503_takes_no_new_keys_but_half_of_the_pool_always_does() {
        let mut cluster = cluster(&text(&[1, 2, 3, 4]), None);
        let sick = |cluster: &Cluster, index: usize| {
            let shard = cluster.pools[0].backends[index].counters.shard(0).unwrap();
            shard.requests.add(50);
            shard.responses[4].add(50);
            shard.unavailable.add(50);
        };
        (0..4).for_each(|index| sick(&cluster, index));
        assert_eq!(cluster.on_second(), []);
        (0..4).for_each(|index| sick(&cluster, index));
        let turns = cluster.on_second();
        assert!(
            matches!(
                turns[..],
                [(_, Turn::Ejected(..)), (_, Turn::Ejected(..)), (_, Turn::Spared(_)), (_, Turn::Spared(_))]
            ),
            "{turns:?}"
        );
        let tables = cluster.tables(1, &keys(), false, None);
        let up: Vec<bool> = tables.backends.iter().map(|backend| backend.is_up).collect();
        assert_eq!(up, [false, false, true, true]);
        assert!(tables.backends.iter().all(|backend| backend.serves == tables::Serves::Calls), "their dialogs go on");
    }

    /// The data path knows a server by its address, and counts what it answers in the last of its pools.
    #[test]
    fn a_server_of_two_pools_is_judged_by_all_of_its_traffic_and_by_both_alike() {
        let second =
            "[[pool]]\nname = \"others\"\nbackend = [{ uri = \"sip:127.0.0.1:1\" }, { uri = \"sip:127.0.0.1:2\" }]\n";
        let mut cluster = cluster(&(text(&[1, 2]) + second), None);
        let mut second_of = |unavailable: u64| {
            let shard = |pool: usize| cluster.pools[pool].backends[0].counters.shard(0).unwrap();
            shard(0).requests.add(50);
            shard(1).responses[if unavailable > 0 { 4 } else { 1 }].add(50);
            shard(1).unavailable.add(unavailable);
            cluster.on_second()
        };
        for _ in 0..4 {
            assert_eq!(second_of(0), [], "it answers all it is asked");
        }
        let turns: Vec<_> = (0..2).flat_map(|_| second_of(50)).collect();
        assert!(matches!(turns[..], [((0, 0), Turn::Ejected(..)), ((1, 0), Turn::Ejected(..))]), "{turns:?}");
    }

    #[test]
    fn the_last_that_takes_new_keys_is_never_ejected_whatever_took_the_others() {
        for others in [State::Drain, State::Maint, State::Ready] {
            let most = "outlier = { max_ejected = 100 }\nbackend =";
            let mut cluster = cluster(&text(&[1, 2, 3]).replace("backend =", most), None);
            for other in &mut cluster.pools[0].backends[..2] {
                other.state.now = others;
                other.detector.on_outcome(Outcome::Refused);
            }
            let mut turns = Vec::new();
            for _ in 0..2 {
                let shard = cluster.pools[0].backends[2].counters.shard(0).unwrap();
                shard.responses[4].add(50);
                shard.unavailable.add(50);
                turns = cluster.on_second();
            }
            assert!(matches!(turns[..], [((0, 2), Turn::Spared(_))]), "{others}: {turns:?}");
        }
    }

    #[test]
    fn who_comes_out_of_maintenance_by_the_file_begins_afresh_and_slowly_too() {
        let ready = text(&[1, 2]).replace("backend =", "slow_start = \"20s\"\nbackend =");
        let maint = ready.replacen("\" }", "\", state = \"maint\" }", 1);
        assert_ne!(ready, maint);
        let mut before = cluster(&maint, None);
        before.pools[0].backends[0].detector.on_outcome(Outcome::Refused);
        before.pools[0].backends[0].changed_at = 7;
        let after = cluster(&ready, Some(&before));
        let one = &after.pools[0].backends[0];
        assert!(one.takes_new() && one.back_s == Some(0) && one.changed_at > 7, "{one:?}");
        assert_eq!(after.pools[0].backends[1].back_s, None);
    }

    #[test]
    fn an_ejection_ends_with_a_reload_that_wants_none() {
        let mut before = cluster(&text(&[1, 2]), None);
        let limits = before.pools[0].outlier.clone().unwrap();
        before.pools[0].backends[1].outlier.eject(&limits);
        let takes_new = |text: &str| cluster(text, Some(&before)).pools[0].backends[1].takes_new();
        assert!(!takes_new(&text(&[1, 2])), "a reload as such pardons nobody");
        assert!(takes_new(&text(&[1, 2]).replace("backend =", "outlier = { on = false }\nbackend =")));
    }

    #[test]
    fn a_backend_that_comes_back_gets_its_share_in_tenths() {
        let mut cluster = cluster(&text(&[1, 2]).replace("backend =", "slow_start = \"20s\"\nbackend ="), None);
        let slow_start = cluster.pools[0].slow_start;
        cluster.pools[0].backends[0].starts_slowly(slow_start);
        let weight = |cluster: &Cluster| cluster.pools[0].backends[0].weight_in(&cluster.pools[0]);
        assert_eq!(weight(&cluster), 10);
        let grown = (0..30).filter(|_| !cluster.on_second().is_empty()).count();
        assert_eq!((grown, weight(&cluster)), (9, 100));
    }

    #[test]
    fn in_panic_all_that_are_ready_are_used() {
        let mut cluster = cluster(&text(&[1, 2, 3, 4]).replace("backend =", "panic = 50\nbackend ="), None);
        let ups = |cluster: &Cluster| {
            let tables = cluster.tables(1, &keys(), false, None);
            tables.backends.iter().filter(|backend| backend.is_up).count()
        };
        cluster.pools[0].backends[3].state.now = State::Maint;
        cluster.pools[0].backends[0].detector.on_outcome(Outcome::Timeout);
        assert_eq!(ups(&cluster), 2);
        cluster.pools[0].backends[1].detector.on_outcome(Outcome::Timeout);
        assert_eq!(ups(&cluster), 3, "one of three: panic");
        cluster.pools[0].backends[1].weight.now = 0;
        assert_eq!(ups(&cluster), 1, "one of the two that are meant to: none");
    }

    #[test]
    fn an_operators_choice_outlives_a_reload_even_at_another_address() {
        let at = |port: u16| text(&[port, 2]).replace(&format!(":{port}\" }}"), &format!(":{port}\", name = \"a\" }}"));
        let mut before = cluster(&at(1), None);
        before.pools[0].backends[0].state.now = State::Drain;
        before.pools[0].backends[0].weight.now = 7;
        let after = cluster(&at(3), Some(&before));
        let moved = after.backend("proxies", "a").unwrap();
        assert_eq!((moved.state.now, moved.weight.now, moved.place.address.port()), (State::Drain, 7, 3));
        assert!(!moved.takes_new() && !after.pools[0].is_empty());
    }

    #[test]
    fn moved_slots_are_those_of_the_backend_that_left() {
        let mut cluster = cluster(&text(&[1, 2, 3, 4]), None);
        let before = cluster.tables(1, &keys(), false, None);
        cluster.pools[0].backends[2].detector.on_outcome(Outcome::Refused);
        let after = cluster.tables(2, &keys(), false, Some(&before));
        let own = before.pools[0].table.slots().iter().filter(|slot| slot.owner == 2).count();
        assert_eq!(moved_slots(&before, &after), [("proxies".into(), own)]);
        assert_eq!(moved_slots(&after, &after), [("proxies".into(), 0)]);
        for other in [tables::Strategy::Priority, tables::Strategy::RoundRobin] {
            cluster.pools[0].strategy = other;
            let by_other = cluster.tables(2, &keys(), false, Some(&before));
            assert_eq!(moved_slots(&by_other, &by_other), [], "{other:?}");
            assert_eq!(moved_slots(&before, &by_other), []);
        }
    }

    #[test]
    fn nodes_agree_on_the_hash_whatever_the_order_and_the_listener() {
        let other_listener = text(&[2, 1]).replace("5070", "5071");
        assert_eq!(cluster(&text(&[1, 2]), None).hash, cluster(&other_listener, None).hash);
        assert_ne!(cluster(&text(&[1, 2]), None).hash, cluster(&text(&[1, 3]), None).hash);
    }
}
