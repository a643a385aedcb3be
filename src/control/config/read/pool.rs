//! `[[pool]]`: backends, how one is chosen, and how it is known which of them are alive.

use super::nowhere;
use super::value::Reader;
use crate::control::config::address::{self, HostPort};
use crate::control::config::file::{self, Value};
use crate::control::config::problem::Problem;
use crate::control::config::{Backend, Discover, Health, List, Pool};
use crate::control::health::outlier::Limits;
use crate::control::operator::State;
use crate::dataplane::limits::{BACKENDS_MAX, FRAME_MAX};
use crate::dataplane::tables::{Affinity, ProxyHeader, Strategy};
use crate::dataplane::transport::Transport;
use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;
use toml::Spanned;

/// Largest weight: products of weights and logarithms stay within 128 bits by far, and more steps say nothing.
pub const WEIGHT_MAX: i64 = 10_000;

/// Octets that a request in a datagram stays below the MTU: RFC 3261 18.1.1 asks for 200, so that the response fits too.
const MTU_MARGIN: u32 = 200;

/// The words for [`ProxyHeader`].
const PROXY_HEADERS: [(&str, Option<ProxyHeader>); 3] =
    [("off", None), ("v1", Some(ProxyHeader::V1)), ("v2", Some(ProxyHeader::V2))];

/// What `[[route]]` and everything we print call the pool that stands at `index`.
pub fn name(pool: &file::Pool, index: usize) -> String {
    match (&pool.name, index) {
        (Some(name), _) => name.get_ref().clone(),
        (None, 0) => "default".into(),
        (None, _) => format!("pool-{}", index + 1),
    }
}

impl Reader<'_> {
    pub(super) fn pools(&mut self, pools: &[file::Pool]) -> Option<Vec<Pool>> {
        let count: usize = pools.iter().map(|pool| pool.backend.len()).sum();
        if count == 0 && pools.iter().all(|pool| pool.list.is_none() && pool.discover.is_none()) {
            let help = "[[pool]]\nname = \"proxies\"\nbackend = [{ uri = \"sip:10.0.0.11:5060\" }]";
            self.problems.push(nowhere("no backends").help(format!("add a pool with at least one:\n{help}")));
            return None;
        }
        if count > BACKENDS_MAX {
            self.problems.push(nowhere(format!("{count} backends: at most {BACKENDS_MAX}")));
        }
        let mut names = HashMap::new();
        Some(pools.iter().enumerate().map(|(index, pool)| self.pool(pool, index, &mut names)).collect())
    }

    fn pool(&mut self, pool: &file::Pool, index: usize, names: &mut HashMap<String, Range<usize>>) -> Pool {
        let at = pool.name.as_ref().map_or(0..0, Spanned::span);
        let name = self.name(&pool.name, names, || name(pool, index), at.clone());
        if pool.backend.is_empty() && pool.list.is_none() && pool.discover.is_none() {
            let problem = nowhere(format!("pool `{name}` has no backends"));
            let problem = if pool.name.is_some() { problem.at(at, "of this pool") } else { problem };
            self.problems.push(problem.help("add `backend = [{ uri = \"sip:10.0.0.11:5060\" }]`"));
        }
        let affinities = [
            ("call-id", Affinity::CallId),
            ("aor", Affinity::Aor),
            ("from", Affinity::From),
            ("to", Affinity::To),
            ("ruri-user", Affinity::RuriUser),
            ("source", Affinity::Source),
        ];
        let strategies = [
            ("hash", Strategy::Hash),
            ("round-robin", Strategy::RoundRobin),
            ("random", Strategy::Random),
            ("priority", Strategy::Priority),
        ];
        let strategy = self.word(&pool.strategy, Strategy::Hash, &strategies);
        let mut backends = Vec::new();
        let (mut targets, mut backend_names) = (HashMap::new(), HashMap::new());
        for one in &pool.backend {
            if let Some(backend) = self.backend(one, &mut targets, &mut backend_names) {
                backends.push(backend);
            }
            if let (Some(priority), true) = (&one.priority, strategy != Strategy::Priority) {
                let label = "heeded only with `strategy = \"priority\"`";
                self.warn(priority.span(), "`priority` has no effect here", label);
            }
        }
        let discover = self.discover(pool);
        let tls = self.pool_tls(pool, &backends, discover.as_ref());
        Pool {
            name,
            affinity: self.word(&pool.affinity, Affinity::CallId, &affinities),
            strategy,
            health: self.health(&pool.health),
            outlier: self.outlier(&pool.outlier),
            slow_start: self.duration(&pool.slow_start, Duration::ZERO, Duration::ZERO..=Duration::from_secs(3600)),
            panic: self.number(&pool.panic, 0, 0, 100, "`panic`"),
            datagram_max: pool.mtu.as_ref().map(|_| {
                let mtu = self.number(&pool.mtu, 1500, 576, 65_535, "`mtu`");
                mtu.saturating_sub(MTU_MARGIN)
            }),
            proxy_header: self.word(&pool.send_proxy, None, &PROXY_HEADERS),
            pads: pool.pad.as_ref().is_some_and(|pad| *pad.get_ref()),
            backends,
            list: self.list(pool),
            discover,
            tls,
        }
    }

    /// The list a pool names. What stands in it is read when everything else has been.
    fn list(&mut self, pool: &file::Pool) -> Option<List> {
        let Some(list) = &pool.list else {
            if let Some(set) = &pool.set {
                let label = "of a `list`, which this pool does not name";
                self.error(set.span(), "`set` has no effect here", label).help =
                    Some("add `list = \"/etc/kamailio/dispatcher.list\"`, or leave it out".into());
            }
            return None;
        };
        let set = self.number(&pool.set, 1, 0, i64::from(i32::MAX), "set");
        self.alone("list", list, pool);
        Some(List { path: list.get_ref().into(), set, at: list.span() })
    }

    /// The domain a pool names. Who its servers are is asked when everything has been read.
    fn discover(&mut self, pool: &file::Pool) -> Option<Discover> {
        let uri = pool.discover.as_ref()?;
        self.alone("discover", uri, pool);
        if let Some(list) = &pool.list {
            let problem = Problem::error(uri.span(), "`list` and `discover` are both given", "keep one of them");
            self.problems.push(problem.beside(list.span(), None, "backends come from here already"));
        }
        let (domain, port, transport) = self.address(uri, address::domain_uri)?;
        if transport == Transport::Udp && pool.send_proxy.as_ref().is_some_and(|word| word.get_ref().0 != "off") {
            let title = format!("`{domain}` is reached over UDP, and its pool has `send_proxy`");
            let label = "no server reads a PROXY header in datagrams";
            self.error(uri.span(), title, label).help = Some("add `;transport=tcp` or `;transport=tls`".into());
        }
        Some(Discover { domain, port, transport, at: uri.span() })
    }

    /// Refuses backends beside what says where the pool has them from.
    fn alone(&mut self, key: &str, from: &Spanned<String>, pool: &file::Pool) {
        let Some(backend) = pool.backend.first() else { return };
        let title = format!("`{key}` and `backend` are both given");
        let problem = Problem::error(from.span(), title, "keep one of them");
        let label = format!("these backends are in the way of the {}", if key == "list" { key } else { "domain" });
        let help = "backends that are named here want a pool of their own";
        self.problems.push(problem.beside(backend.uri.span(), None, label).help(help));
    }

    fn backend(
        &mut self,
        one: &file::Backend,
        targets: &mut HashMap<HostPort, Range<usize>>,
        names: &mut HashMap<String, Range<usize>>,
    ) -> Option<Backend> {
        let weight = match &one.weight {
            Some(weight) if *weight.get_ref() == 0 => {
                self.error(weight.span(), "weight 0 would get no calls", "leave the backend out").help = Some(
                    "to empty a backend of calls, write `state = \"drain\"`, or `viahop ctl backend NAME drain`".into(),
                );
                1
            }
            weight => self.number(weight, 100, 1, WEIGHT_MAX, "weight"),
        };
        let priority = self.number(&one.priority, 0, 0, i64::from(u16::MAX), "priority");
        let max_open = self.number(&one.max_open, 0, 0, 1_000_000, "max_open");
        let state = self.word(&one.state, State::Ready, &State::ALL.map(|state| (state.word(), state)));
        let message_max =
            self.number(&one.max_message_size, FRAME_MAX as u32, 1000, FRAME_MAX as i64, "`max_message_size`");
        let (target, transport) = self.address(&one.uri, address::backend_uri)?;
        if let (Some(size), Transport::Udp) = (&one.max_message_size, transport) {
            let label = "heeded only for what goes to a backend over TCP or TLS";
            self.warn(size.span(), "`max_message_size` has no effect here", label);
        }
        if targets.insert(target.clone(), one.uri.span()).is_some() {
            let label = "leave one of them out, or add up their weights";
            self.error(one.uri.span(), format!("backend `{target}` stands twice in its pool"), label);
            return None;
        }
        let name = self.name(&one.name, names, || target.to_string(), one.uri.span());
        Some(Backend {
            name,
            target,
            addresses: Vec::new(),
            transport,
            message_max,
            weight,
            max_open,
            priority,
            state,
            at: one.uri.span(),
            source: None,
        })
    }

    fn health(&mut self, health: &file::Health) -> Option<Health> {
        let second = Duration::from_secs(1);
        let interval = self.duration(&health.interval, 2 * second / 5, second / 10..=3600 * second);
        let timeout = self.duration(&health.timeout, (second / 5).min(interval), second / 100..=60 * second);
        if timeout > interval
            && let Some(value) = health.timeout.as_ref().or(health.interval.as_ref())
        {
            let label = "an answer is waited for until the next probe at most";
            self.error(value.span(), "`timeout` is longer than `interval`", label);
        }
        let read = Health {
            interval,
            timeout,
            fall: self.number(&health.fall, 3, 1, 100, "`fall`"),
            rise: self.number(&health.rise, 2, 1, 100, "`rise`"),
            ok: self.codes(&health.ok),
        };
        health.probe.as_ref().is_none_or(|probe| *probe.get_ref()).then_some(read)
    }

    fn outlier(&mut self, outlier: &file::Outlier) -> Option<Limits> {
        let second = Duration::from_secs(1);
        let read = Limits {
            share: self.number(&outlier.share, 40, 1, 100, "`share`"),
            requests: u64::from(self.number(&outlier.requests, 20, 1, 1_000_000, "`requests`")),
            eject: self.duration(&outlier.eject, 10 * second, second..=3600 * second),
            max_ejected: self.number(&outlier.max_ejected, 50, 0, 100, "`max_ejected`"),
        };
        outlier.on.as_ref().is_none_or(|on| *on.get_ref()).then_some(read)
    }

    /// Codes and classes. By default everything but 5xx shows that somebody is at home; 501 does too, since that server
    /// knows that it does not know OPTIONS.
    fn codes(&mut self, value: &Value<Vec<Spanned<String>>>) -> Vec<(u16, u16)> {
        let Some(list) = value else { return vec![(200, 299), (300, 399), (400, 499), (501, 501), (600, 699)] };
        let mut codes = Vec::new();
        for value in list.get_ref() {
            let text = value.get_ref();
            let class = text.strip_suffix("xx").and_then(|digit| digit.parse::<u16>().ok());
            match (class, text.parse::<u16>()) {
                (Some(class @ 2..=6), _) => codes.push((class * 100, class * 100 + 99)),
                (None, Ok(code @ 200..=699)) => codes.push((code, code)),
                _ => {
                    let label = "a code like `404`, or a class like `2xx`; from 200 to 699";
                    self.error(value.span(), format!("`{text}` is no final response"), label);
                }
            }
        }
        if list.get_ref().is_empty() {
            self.error(list.span(), "no response would count as alive", "leave `ok` out for the default");
        }
        codes
    }
}
