//! From what is written to what is meant. Every value is looked at even when an earlier one is wrong, so that one run of
//! `viahop check` tells everything there is to tell.

use super::address::{self, AddressError, HostPort};
use super::file::{self, Value};
use super::problem::Problem;
use super::{
    Backend, Config, Cores, EgressMode, Health, List, Listen, Log, LogFormat, Policy, Pool, Route, Secret, Socket,
    Steering, Streams, TokenKey,
};
use crate::control::health::outlier::Limits;
use crate::control::operator::State;
use crate::dataplane::keys::KEY_IDS;
use crate::dataplane::limits::{BACKENDS_MAX, FRAME_MAX, LISTENERS_MAX};
use crate::dataplane::sip::start_line::Method;
use crate::dataplane::sip::uri::Scheme;
use crate::dataplane::tables::{Affinity, ForeignRoute, Network, PathPolicy, Side, Strategy};
use crate::dataplane::transport::Transport;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::{Range, RangeInclusive};
use std::time::Duration;
use toml::Spanned;

/// Octets of a secret at least: as many as there are in the keys made of it.
const SECRET_MIN: usize = 16;

/// Largest weight: products of weights and logarithms stay within 128 bits by far, and more steps say nothing.
pub const WEIGHT_MAX: i64 = 10_000;

/// The words for [`EgressMode`].
const EGRESS_MODES: [(&str, EgressMode); 2] = [("own", EgressMode::Own), ("shared", EgressMode::Shared)];
/// Octets that a request in a datagram stays below the MTU: RFC 3261 18.1.1 asks for 200, so that the response fits too.
const MTU_MARGIN: u32 = 200;

/// Octets of a path in a socket's address, without the zero that ends it: unix(7).
pub const SOCKET_PATH_MAX: usize = 107;

/// What `file` means, and what is wrong with it. Without a configuration there is an error among the problems.
pub fn read(file: &file::File, text: &str) -> (Option<Config>, Vec<Problem>) {
    let mut reader = Reader { text, problems: Vec::new() };
    let config = reader.config(file);
    (config, reader.problems)
}

struct Reader<'a> {
    text: &'a str,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn config(&mut self, file: &file::File) -> Option<Config> {
        // Tokens name listeners by number: one for streams that comes to a configuration moves none for datagrams.
        let mut listen: Vec<&file::Listen> = file.listen.iter().collect();
        listen.sort_by_key(|one| one.address.get_ref().starts_with("tcp:"));
        let listeners = self.listeners(&listen);
        let pools = self.pools(&file.pool);
        let routes = self.routes(&file.route, &listen, &file.pool);
        let balancer = &file.balancer;
        let (egress_v4, egress_v6) = self.egress(&balancer.egress);
        Some(Config {
            cores: self.cores(balancer),
            policy: self.policy(&file.policy),
            streams: self.streams(&file.streams),
            admin: self.admin(&file.admin),
            socket: self.socket(&file.admin),
            secret: self.secret(balancer),
            token_keys: self.token_keys(&balancer.token_keys),
            egress_v4,
            egress_v6,
            egress_mode: self.word(&balancer.egress_mode, EgressMode::Own, &EGRESS_MODES),
            egress_ports: self.ports(&balancer.egress_ports),
            steering: self.word(&balancer.steering, Steering::Auto, &Steering::WORDS),
            receive_buffer: self.buffer(&balancer.receive_buffer, 2 << 20),
            send_buffer: self.buffer(&balancer.send_buffer, 1 << 20),
            drain: self.duration(
                &balancer.drain,
                Duration::from_secs(32),
                Duration::ZERO..=Duration::from_secs(86_400),
            ),
            log: self.log(&file.log),
            listeners: listeners?,
            pools: pools?,
            routes,
        })
    }

    fn error(&mut self, at: Range<usize>, title: impl Into<String>, label: impl Into<String>) -> &mut Problem {
        self.problems.push(Problem::error(at, title, label));
        let last = self.problems.len() - 1;
        &mut self.problems[last]
    }

    fn warn(&mut self, at: Range<usize>, title: impl Into<String>, label: impl Into<String>) {
        self.problems.push(Problem::warning(at, title, label));
    }

    /// The place of `part` of a string value: inside the quotes, if the text stands there as it is.
    fn within(&self, value: &Spanned<String>, part: Range<usize>) -> Range<usize> {
        let span = value.span();
        let written = self.text.get(span.clone()).unwrap_or_default();
        match written.find(value.get_ref().as_str()) {
            Some(offset) => span.start + offset + part.start..span.start + offset + part.end,
            None => span,
        }
    }

    fn address<T>(&mut self, value: &Spanned<String>, parse: fn(&str) -> Result<T, AddressError>) -> Option<T> {
        match parse(value.get_ref()) {
            Ok(address) => Some(address),
            Err(AddressError { at, title, label }) => {
                let at = self.within(value, at);
                self.error(at, title, label);
                None
            }
        }
    }

    /// One of a few words.
    fn word<T: Copy>(&mut self, value: &Value<String>, default: T, words: &[(&str, T)]) -> T {
        let Some(value) = value else { return default };
        if let Some((_, meaning)) = words.iter().find(|(word, _)| word == value.get_ref()) {
            return *meaning;
        }
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let title = format!("`{}` is none of the values there are", value.get_ref());
        self.error(value.span(), title, did_you_mean(value.get_ref(), &names));
        default
    }

    fn number(&mut self, value: &Value<i64>, default: u32, least: i64, most: i64, what: &str) -> u32 {
        let Some(value) = value else { return default };
        let number = *value.get_ref();
        if !(least..=most).contains(&number) {
            let title = format!("{what} {number} is out of range");
            self.error(value.span(), title, format!("a number from {least} to {most}"));
        }
        u32::try_from(number).unwrap_or(default)
    }

    fn duration(&mut self, value: &Value<String>, default: Duration, range: RangeInclusive<Duration>) -> Duration {
        let Some(value) = value else { return default };
        match humantime::parse_duration(value.get_ref()) {
            Ok(duration) if range.contains(&duration) => duration,
            Ok(_) => {
                let (least, most) =
                    (humantime::format_duration(*range.start()), humantime::format_duration(*range.end()));
                let title = format!("`{}` is out of range", value.get_ref());
                self.error(value.span(), title, format!("a time from {least} to {most}"));
                default
            }
            Err(_) => {
                let title = format!("`{}` is not a time", value.get_ref());
                self.error(value.span(), title, "a number with its unit, like `500ms`, `2s` or `1m`");
                default
            }
        }
    }

    fn cores(&mut self, balancer: &file::Balancer) -> Cores {
        if let (Some(_), Some(shards)) = (&balancer.cores, &balancer.shards) {
            let label = "`cores` says how many there are already";
            self.error(shards.span(), "`cores` and `shards` are both given", label);
        }
        if let Some(cores) = &balancer.cores {
            let mut list = Vec::new();
            for core in cores.get_ref() {
                match usize::try_from(*core.get_ref()) {
                    Ok(number) if list.contains(&number) => {
                        self.error(core.span(), format!("core {number} is named twice"), "one shard runs on a core");
                    }
                    Ok(number) => list.push(number),
                    Err(_) => drop(self.error(core.span(), "a core has a number from 0 on", "see `lscpu`")),
                }
            }
            if cores.get_ref().is_empty() {
                self.error(cores.span(), "no core is named", "leave `cores` out to use all of them");
            }
            return Cores::List(list);
        }
        match &balancer.shards {
            Some(_) => Cores::Count(self.number(&balancer.shards, 1, 1, 1024, "shard count") as usize),
            None => Cores::All,
        }
    }

    fn secret(&mut self, balancer: &file::Balancer) -> Secret {
        match (&balancer.secret, &balancer.secret_file) {
            (Some(secret), Some(_)) => {
                self.error(secret.span(), "`secret` and `secret_file` are both given", "keep one of them");
                Secret::Own
            }
            (Some(secret), None) => {
                if secret.get_ref().len() < SECRET_MIN {
                    let title = format!("the secret has {} octets", secret.get_ref().len());
                    let label = format!("at least {SECRET_MIN}");
                    self.error(secret.span(), title, label).help =
                        Some("`openssl rand -base64 32` makes a good one".into());
                }
                Secret::Given(secret.get_ref().clone())
            }
            (None, Some(path)) => Secret::File(path.get_ref().into()),
            (None, None) => Secret::Own,
        }
    }

    fn token_keys(&mut self, value: &Value<Vec<file::TokenKey>>) -> Vec<TokenKey> {
        let Some(list) = value else { return vec![TokenKey { id: 0, file: None }] };
        let mut keys: Vec<TokenKey> = Vec::new();
        let mut seen: HashMap<u8, Range<usize>> = HashMap::new();
        for one in list.get_ref() {
            let most = KEY_IDS as i64 - 1;
            let id = self.number(&Some(one.id.clone()), 0, 0, most, "key id") as u8;
            if let Some(first) = seen.insert(id, one.id.span()) {
                let problem = Problem::error(one.id.span(), format!("two token keys of the id {id}"), "the second");
                let help = "a token says only the id of its key: give each another, and no id to two keys within the life of a call";
                self.problems.push(problem.beside(first, None, "the first").help(help));
            }
            keys.push(TokenKey { id, file: one.file.as_ref().map(|file| file.get_ref().into()) });
        }
        if keys.is_empty() {
            self.error(list.span(), "no token key is named", "leave `token_keys` out for the one made of the secret");
        }
        keys
    }

    fn egress(
        &mut self,
        addresses: &Value<Vec<Spanned<String>>>,
    ) -> (Option<std::net::Ipv4Addr>, Option<std::net::Ipv6Addr>) {
        let (mut v4, mut v6) = (None, None);
        for value in addresses.iter().flat_map(|list| list.get_ref()) {
            let free = match value.get_ref().parse::<IpAddr>() {
                Ok(IpAddr::V4(address)) => v4.replace(address).is_none(),
                Ok(IpAddr::V6(address)) => v6.replace(address).is_none(),
                Err(_) => {
                    let title = format!("`{}` is not an address", value.get_ref());
                    self.error(value.span(), title, "an address of this machine, without a port");
                    continue;
                }
            };
            if !free {
                let label = "one address for IPv4 and one for IPv6";
                self.error(value.span(), "two addresses of one family to send from", label);
            }
        }
        (v4, v6)
    }

    /// `FIRST-LAST`, or one port.
    fn ports(&mut self, value: &Value<String>) -> Option<RangeInclusive<u16>> {
        let value = value.as_ref()?;
        let (first, last) = value.get_ref().split_once('-').unwrap_or((value.get_ref(), value.get_ref()));
        match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
            (Ok(first), Ok(last)) if first > 0 && first <= last => Some(first..=last),
            _ => {
                let title = format!("`{}` is not a range of ports", value.get_ref());
                self.error(value.span(), title, "like `40000-40015`: from 1 to 65535, the lower one first");
                None
            }
        }
    }

    fn buffer(&mut self, value: &Value<i64>, default: usize) -> usize {
        const LEAST: i64 = 64 << 10;
        const MOST: i64 = 1 << 30;
        self.number(value, default as u32, LEAST, MOST, "buffer size") as usize
    }

    fn listeners(&mut self, listen: &[&file::Listen]) -> Option<Vec<Listen>> {
        let Some(first) = listen.first() else {
            let help = "[[listen]]\naddress = \"udp:0.0.0.0:5060\"";
            self.problems.push(nowhere("nothing to listen on").help(format!("add a listener:\n{help}")));
            return None;
        };
        if listen.len() > LISTENERS_MAX {
            self.error(first.address.span(), format!("{} listeners", listen.len()), format!("at most {LISTENERS_MAX}"));
        }
        let mut names = HashMap::new();
        let mut addresses = HashSet::new();
        let mut listeners = Vec::new();
        for one in listen {
            let Some((transport, address)) = self.address(&one.address, address::listen) else { continue };
            let text = format!("{transport}:{address}");
            if !addresses.insert(text.clone()) {
                self.error(one.address.span(), format!("`{text}` is listened on twice"), "leave one of them out");
                continue;
            }
            let name = self.name(&one.name, &mut names, || text, one.address.span());
            let advertise = one.advertise.as_ref().and_then(|value| self.address(value, address::host_port));
            let side = self.word(&one.side, Side::Outside, &[("outside", Side::Outside), ("inside", Side::Inside)]);
            listeners.push(Listen { name, transport, address, advertise, side, at: one.address.span() });
        }
        if listeners.iter().all(|listener| listener.side == Side::Inside) && !listeners.is_empty() {
            let label = "clients need a listener with `side = \"outside\"`";
            self.error(first.address.span(), "all listeners face inside", label);
        }
        Some(listeners)
    }

    /// A name that nothing else of its kind has; by default what `otherwise` says.
    fn name(
        &mut self,
        value: &Value<String>,
        taken: &mut HashMap<String, Range<usize>>,
        otherwise: impl FnOnce() -> String,
        at: Range<usize>,
    ) -> String {
        let (name, at) = match value {
            Some(value) => (value.get_ref().clone(), value.span()),
            None => (otherwise(), at),
        };
        let is_plain = |octet: u8| octet.is_ascii_graphic() && octet != b'"' && octet != b'\\';
        if name.is_empty() || !name.bytes().all(is_plain) {
            let label = "letters, digits and `-._:/` make good names";
            self.error(at.clone(), format!("`{}` cannot be a name", name.escape_debug()), label);
        }
        if taken.insert(name.clone(), at.clone()).is_some() {
            self.error(at, format!("two of the name `{name}`"), "give one of them another `name`");
        }
        name
    }

    fn pools(&mut self, pools: &[file::Pool]) -> Option<Vec<Pool>> {
        let count: usize = pools.iter().map(|pool| pool.backend.len()).sum();
        if count == 0 && pools.iter().all(|pool| pool.list.is_none()) {
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
        let otherwise = || if index == 0 { "default".into() } else { format!("pool-{}", index + 1) };
        let name = self.name(&pool.name, names, otherwise, at.clone());
        if pool.backend.is_empty() && pool.list.is_none() {
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
            backends,
            list: self.list(pool),
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
        if let Some(backend) = pool.backend.first() {
            let label = "these backends are in the way of the list";
            let problem = Problem::error(list.span(), "`list` and `backend` are both given", "keep one of them");
            let help = "backends that are not in the list want a pool of their own";
            self.problems.push(problem.beside(backend.uri.span(), None, label).help(help));
        }
        Some(List { path: list.get_ref().into(), set, at: list.span() })
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
            let label = "heeded only for what goes to a backend over TCP";
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

    fn streams(&mut self, streams: &file::Streams) -> Streams {
        let second = Duration::from_secs(1);
        Streams {
            max_connections: self.number(&streams.max_connections, 20_000, 1, 1_000_000, "`max_connections`") as usize,
            max_per_source: self.number(&streams.max_per_source, 1000, 1, 1_000_000, "`max_per_source`"),
            // RFC 3261 18: connections stay for the longest a transaction takes, at least.
            idle: self.duration(&streams.idle, 3600 * second, 32 * second..=7 * 86_400 * second),
            frame_timeout: self.duration(&streams.frame_timeout, 5 * second, second..=60 * second),
            connect_timeout: self.duration(&streams.connect_timeout, 2 * second, second / 10..=30 * second),
        }
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

    fn routes(&mut self, routes: &[file::Route], listen: &[&file::Listen], pools: &[file::Pool]) -> Vec<Route> {
        let mut names = HashMap::new();
        let mut read = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            let at = route.name.as_ref().map_or(route.pool.span(), Spanned::span);
            let name = self.name(&route.name, &mut names, || format!("route-{}", index + 1), at);
            let pool_names: Vec<&str> =
                pools.iter().filter_map(|pool| pool.name.as_ref()).map(|name| name.get_ref().as_str()).collect();
            let pool = self.position(&route.pool, &pool_names, pools.iter().map(|pool| &pool.name), "pool");
            let listeners = route.listen.as_ref().map(|list| {
                let known: Vec<&str> =
                    listen.iter().filter_map(|one| one.name.as_ref()).map(|name| name.get_ref().as_str()).collect();
                let position = |one| self.position(one, &known, listen.iter().map(|one| &one.name), "listener");
                list.get_ref().iter().map(position).map(|index| index as u8).collect()
            });
            let methods = route.methods.as_ref().map(|list| self.methods(list.get_ref()));
            let domains = route.domains.as_ref().map(|list| self.domains(list.get_ref()));
            read.push(Route { name, methods, domains, listeners, pool: pool as u16 });
        }
        if let Some((route, _)) = routes
            .iter()
            .zip(&read)
            .rev()
            .skip(1)
            .find(|(_, one)| one.methods.is_none() && one.domains.is_none() && one.listeners.is_none())
        {
            let label = "it has no condition, so the rules behind it are never reached";
            self.warn(route.pool.span(), "this rule matches everything", label);
        }
        read
    }

    /// The index of what is called `name`.
    fn position<'a>(
        &mut self,
        name: &Spanned<String>,
        known: &[&str],
        mut all: impl Iterator<Item = &'a Value<String>>,
        what: &str,
    ) -> usize {
        let found = all.position(|one| one.as_ref().is_some_and(|one| one.get_ref() == name.get_ref()));
        found.unwrap_or_else(|| {
            let title = format!("there is no {what} of the name `{}`", name.get_ref());
            let label = match known.is_empty() {
                true => format!("no {what} has a `name` yet"),
                false => did_you_mean(name.get_ref(), known),
            };
            self.error(name.span(), title, label);
            0
        })
    }

    fn methods(&mut self, list: &[Spanned<String>]) -> Vec<Method> {
        let mut methods = Vec::new();
        for value in list {
            let known: Vec<&str> = Method::ALL.iter().map(|method| method.name()).collect();
            match Method::ALL.into_iter().find(|method| method.name() == value.get_ref()) {
                Some(method) => methods.push(method),
                None => {
                    let label = did_you_mean(&value.get_ref().to_ascii_uppercase(), &known);
                    self.error(value.span(), format!("`{}` is no method viahop tells apart", value.get_ref()), label);
                }
            }
        }
        methods
    }

    fn domains(&mut self, list: &[Spanned<String>]) -> Vec<String> {
        let mut domains = Vec::new();
        for value in list {
            let text = value.get_ref().to_ascii_lowercase();
            let name = text.strip_prefix("*.").unwrap_or(&text);
            if name.is_empty() || name.contains(['*', '/', ' ']) || name.contains(':') && !name.starts_with('[') {
                let label = "a host name, `*.` and a host name, or an address";
                self.error(value.span(), format!("`{text}` is not a domain"), label);
            }
            domains.push(text);
        }
        domains
    }

    fn policy(&mut self, policy: &file::Policy) -> Policy {
        let each = |list: &Value<Vec<Spanned<String>>>| -> Vec<Spanned<String>> {
            list.as_ref().map(|list| list.get_ref().clone()).unwrap_or_default()
        };
        let inside: Vec<Network> =
            each(&policy.inside).iter().filter_map(|one| self.address(one, address::network)).collect();
        let aliases = each(&policy.aliases).iter().filter_map(|one| self.address(one, address::host_port)).collect();
        let paths = [("always", PathPolicy::Always), ("off", PathPolicy::Off), ("supported", PathPolicy::Supported)];
        let foreign = [("ignore", ForeignRoute::Ignore), ("refuse", ForeignRoute::Refuse)];
        let known = [("sip", Scheme::Sip), ("sips", Scheme::Sips), ("tel", Scheme::Tel), ("urn", Scheme::Urn)];
        let schemes = match &policy.schemes {
            None => vec![Scheme::Sip, Scheme::Tel, Scheme::Urn],
            Some(list) => list.get_ref().iter().map(|one| self.word(&Some(one.clone()), Scheme::Sip, &known)).collect(),
        };
        let proxy_require = each(&policy.proxy_require).iter().map(|tag| tag.get_ref().to_ascii_lowercase()).collect();
        Policy {
            inside,
            aliases,
            record_route: policy.record_route.as_ref().is_none_or(|value| *value.get_ref()),
            path: self.word(&policy.path, PathPolicy::Supported, &paths),
            foreign_route: self.word(&policy.foreign_route, ForeignRoute::Ignore, &foreign),
            schemes,
            proxy_require,
        }
    }

    fn admin(&mut self, admin: &file::Admin) -> Option<SocketAddr> {
        let default = SocketAddr::from(([127, 0, 0, 1], 8460));
        let Some(value) = &admin.listen else { return Some(default) };
        if value.get_ref() == "off" {
            return None;
        }
        let Ok(address) = value.get_ref().parse::<SocketAddr>() else {
            let title = format!("`{}` is not an address and a port", value.get_ref());
            self.error(value.span(), title, "write `127.0.0.1:8460`, or `off`");
            return Some(default);
        };
        let remote = admin.allow_remote.as_ref().is_some_and(|allowed| *allowed.get_ref());
        if !address.ip().is_loopback() && !remote {
            let label = "everybody who reaches this address could read names and addresses of your cluster";
            self.error(value.span(), "the admin endpoint would be open to others", label).help = Some(
                "use `127.0.0.1`, or set `allow_remote = true` in `[admin]` if a firewall stands before it".into(),
            );
        }
        Some(address)
    }

    fn socket(&mut self, admin: &file::Admin) -> Socket {
        let Some(value) = &admin.socket else { return Socket::Default };
        let path = value.get_ref();
        if path == "off" {
            return Socket::Off;
        }
        if !path.starts_with('/') {
            self.error(
                value.span(),
                format!("`{path}` is no path from the root"),
                "like `/run/viahop/ctl.sock`, or `off`",
            );
        } else if path.len() > SOCKET_PATH_MAX {
            let title = format!("the path of the socket has {} octets", path.len());
            self.error(value.span(), title, format!("the kernel takes {SOCKET_PATH_MAX} at most"));
        }
        Socket::Path(path.into())
    }

    fn log(&mut self, log: &file::Log) -> Log {
        use tracing::Level;
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        let levels = [("error", Level::ERROR), ("warn", Level::WARN), ("info", Level::INFO), ("debug", Level::DEBUG)];
        Log {
            format: self.word(&log.format, LogFormat::Text, &formats),
            level: self.word(&log.level, Level::INFO, &levels),
        }
    }
}

fn nowhere(title: impl Into<String>) -> Problem {
    Problem { at: None, ..Problem::error(0..0, title, "") }
}

/// `did you mean `…`?`, or a list of what there is.
pub fn did_you_mean(word: &str, known: &[&str]) -> String {
    match closest(word, known) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("there are: {}", known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
    }
}

/// The known word that looks most like `word`, if it looks enough like it.
pub fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let likeness = |name: &str| strsim::jaro_winkler(word, name);
    let best = known.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) > 0.8).then_some(best)
}

/// What the TOML reader has to say, in our words where they are plainer.
pub fn toml_problem(error: &toml::de::Error, text: &str) -> Problem {
    let at = error.span().unwrap_or(0..0);
    let message = error.message();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if message.starts_with("unknown field") {
        let (key, known) = (quoted.first().copied().unwrap_or_default(), quoted.get(1..).unwrap_or_default());
        let mut problem = Problem::error(at, format!("unknown key `{key}`"), "");
        problem.label = match (closest(key, known), known.is_empty()) {
            (Some(name), _) => format!("help: a key with a similar name exists: `{name}`"),
            (None, true) => "there are no keys here".into(),
            (None, false) => format!("the keys here are {}", list(known)),
        };
        return problem;
    }
    if message.starts_with("missing field") {
        let key = quoted.first().copied().unwrap_or_default();
        return Problem::error(at, format!("`{key}` is missing"), format!("`{key} = …` belongs here"));
    }
    if let Some((found, expected)) =
        message.strip_prefix("invalid type: ").and_then(|rest| rest.split_once(", expected "))
    {
        let found = found.split(' ').next().unwrap_or_default();
        let expected = match expected {
            "i64" => "a whole number, without quotes",
            "a string" => "a string, in quotes",
            "a boolean" => "`true` or `false`",
            "a sequence" => "a list, in `[` and `]`",
            other if other.starts_with("struct") => "a table, in `{` and `}`",
            other => other,
        };
        let found = match found {
            "string" => "a string",
            "integer" => "a whole number",
            "floating" => "a number with a point",
            "boolean" => "true or false",
            "sequence" => "a list",
            "map" => "a table",
            other => other,
        };
        return Problem::error(at, format!("this is {found}"), format!("expected {expected}"));
    }
    let label = match text.get(at.clone()).is_some_and(|part| part.is_empty()) {
        true => "here",
        false => "",
    };
    Problem::error(at, format!("this is not TOML: {}", message.trim_end().replace('\n', ", ")), label)
}

fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use crate::control::config::problem::{Severity, Source};
    use crate::control::config::{Loaded, parse};

    const LISTEN: &str = "[[listen]]\naddress = \"udp:0.0.0.0:5060\"\n";
    const POOL: &str = "[[pool]]\nbackend = [{ uri = \"sip:10.0.0.11\" }]\n";

    fn load(text: &str) -> Loaded {
        parse(Source { name: "viahop.toml".into(), text: text.into() })
            .unwrap_or_else(|report| panic!("{}", report.render(false)))
    }

    /// `line:column title | label` of each problem in `text`.
    fn problems(text: &str) -> Vec<String> {
        let report = match parse(Source { name: "viahop.toml".into(), text: text.into() }) {
            Ok(loaded) => crate::control::config::problem::Report { source: loaded.source, problems: loaded.warnings },
            Err(report) => report,
        };
        let rows: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let rows = rows.as_array().unwrap().iter();
        rows.map(|row| format!("{}:{} {} | {}", row["line"], row["column"], text(&row["message"]), text(&row["label"])))
            .collect()
    }

    #[test]
    fn a_short_file_has_sensible_defaults() {
        let Loaded { config, warnings, .. } = load(&format!("{LISTEN}{POOL}"));
        assert!(warnings.is_empty());
        assert_eq!(config.listeners[0].name, "udp:0.0.0.0:5060");
        assert_eq!((&config.pools[0].name[..], &config.pools[0].backends[0].name[..]), ("default", "10.0.0.11:5060"));
        assert_eq!(config.pools[0].backends[0].weight, 100);
        let health = config.pools[0].health.as_ref().unwrap();
        assert!(health.is_ok(200) && health.is_ok(404) && !health.is_ok(503) && health.is_ok(501));
        assert_eq!(config.admin, Some("127.0.0.1:8460".parse().unwrap()));
    }

    /// Each row: what is written behind a listener and a pool that are right, and what is said about it. The listener
    /// takes lines 1 and 2, the pool 3 and 4.
    #[test]
    fn errors_say_where_what_and_what_instead() {
        let rows = [
            ("[balancer]\nshard = 2", "6:1 unknown key `shard` | help: a key with a similar name exists: `shards`"),
            ("[balancer]\nshards = \"two\"", "6:10 this is a string | expected a whole number, without quotes"),
            ("[balancer]\nshards = 0", "6:10 shard count 0 is out of range | a number from 1 to 1024"),
            ("[balancer]\ncores = [1, 1]", "6:13 core 1 is named twice | one shard runs on a core"),
            ("[balancer]\ncores = [-1]", "6:10 a core has a number from 0 on | see `lscpu`"),
            ("[balancer]\ntoken_keys = [{ id = 16 }]", "6:22 key id 16 is out of range | a number from 0 to 15"),
            ("[balancer]\ntoken_keys = [{ id = 1 }, { id = 1 }]", "6:34 two token keys of the id 1 | the second"),
            (
                "[balancer]\ntoken_keys = []",
                "6:14 no token key is named | leave `token_keys` out for the one made of the secret",
            ),
            ("[balancer]\nsecret = \"short\"", "6:10 the secret has 5 octets | at least 16"),
            (
                "[balancer]\negress = [\"10.0.0.1:5\"]",
                "6:11 `10.0.0.1:5` is not an address | an address of this machine, without a port",
            ),
            (
                "[balancer]\ndrain = \"soon\"",
                "6:9 `soon` is not a time | a number with its unit, like `500ms`, `2s` or `1m`",
            ),
            (
                "[[listen]]\nadress = \"udp:0.0.0.0\"",
                "6:1 unknown key `adress` | help: a key with a similar name exists: `address`",
            ),
            ("[[listen]]\nname = \"x\"", "5:1 `address` is missing | `address = …` belongs here"),
            (
                "[[listen]]\naddress = \"udp:0.0.0.0:5060\"",
                "6:11 `udp:0.0.0.0:5060` is listened on twice | leave one of them out",
            ),
            (
                "[[listen]]\naddress = \"tls:0.0.0.0:5060\"",
                "6:12 transport `tls` is not available | this version listens on `udp:` and `tcp:` only",
            ),
            (
                "[[pool]]\nbackend = [{ uri = \"sip:10.0.0.12:506O\" }]",
                "6:38 port `506O` is not a number | the letter O, not the digit 0",
            ),
            (
                "[[pool]]\nbackend = [{ uri = \"sip:a\", wieght = 5 }]",
                "6:29 unknown key `wieght` | help: a key with a similar name exists: `weight`",
            ),
            (
                "[[pool]]\nbackend = [{ uri = \"sip:a\", weight = 0 }]",
                "6:38 weight 0 would get no calls | leave the backend out",
            ),
            (
                "[[pool]]\nbackend = [{ uri = \"sip:a\", weight = -5 }]",
                "6:38 weight -5 is out of range | a number from 1 to 10000",
            ),
            (
                "[[pool]]\nbackend = [{ uri = \"sip:a\" }, { uri = \"sip:a:5060\" }]",
                "6:39 backend `a:5060` stands twice in its pool | leave one of them out, or add up their weights",
            ),
            ("[[pool]]\nname = \"empty\"", "6:8 pool `empty` has no backends | of this pool"),
            (
                "[[pool]]\naffinity = \"callid\"\nbackend = [{ uri = \"sip:a\" }]",
                "6:12 `callid` is none of the values there are | did you mean `call-id`?",
            ),
            (
                "[[pool]]\nhealth = { ok = [\"1xx\"] }\nbackend = [{ uri = \"sip:a\" }]",
                "6:18 `1xx` is no final response | a code like `404`, or a class like `2xx`; from 200 to 699",
            ),
            (
                "[[pool]]\nhealth = { timeout = \"3s\" }\nbackend = [{ uri = \"sip:a\" }]",
                "6:22 `timeout` is longer than `interval` | an answer is waited for until the next probe at most",
            ),
            ("[[route]]\npool = \"proxies\"", "6:8 there is no pool of the name `proxies` | no pool has a `name` yet"),
            (
                "[[pool]]\nname = \"regs\"\nbackend = [{ uri = \"sip:a\" }]\n[[route]]\nmethods = [\"register\"]\npool = \"regs\"",
                "9:12 `register` is no method viahop tells apart | did you mean `REGISTER`?",
            ),
            (
                "[policy]\ninside = [\"10.0.0.0/33\"]",
                "6:12 `10.0.0.0/33` is not a network | write it like `10.0.0.0/8` or `2001:db8::/32`",
            ),
            (
                "[admin]\nlisten = \"0.0.0.0:8460\"",
                "6:10 the admin endpoint would be open to others | everybody who reaches this address could read names and addresses of your cluster",
            ),
            ("[admin]\nlisten = 8460", "6:10 this is a whole number | expected a string, in quotes"),
            (
                "[log]\nlevel = \"verbose\"",
                "6:9 `verbose` is none of the values there are | there are: `error`, `warn`, `info`, `debug`",
            ),
        ];
        let wrong: Vec<_> = rows
            .into_iter()
            .map(|(text, expected)| (text, problems(&format!("{LISTEN}{POOL}{text}")), expected))
            .filter(|(_, said, expected)| said != &[*expected])
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn a_file_with_several_errors_tells_them_all_at_once() {
        let text = "[[listen]]\naddress = \"0.0.0.0\"\n[[pool]]\nbackend = [{ uri = \"10.0.0.1\", weight = 0 }]\n";
        assert_eq!(problems(text).len(), 3);
    }

    #[test]
    fn an_empty_file_says_what_it_takes() {
        let said = problems("");
        assert_eq!(said, ["null:null nothing to listen on | ", "null:null no backends | "]);
    }

    #[test]
    fn a_rule_that_hides_others_and_a_priority_without_use_are_warned_about() {
        let text = "[[listen]]\naddress = \"udp:0.0.0.0\"\n[[pool]]\nname = \"a\"\nbackend = [{ uri = \"sip:a\", priority = 1 }]\n\
                    [[route]]\npool = \"a\"\n[[route]]\nmethods = [\"INVITE\"]\npool = \"a\"\n";
        let loaded = load(text);
        assert_eq!(loaded.warnings.len(), 2);
        assert!(loaded.warnings.iter().all(|problem| problem.severity == Severity::Warning));
    }

    #[test]
    fn what_is_not_toml_is_shown_where_it_stops_being_toml() {
        let said = problems("[balancer\nx = 1");
        assert!(said[0].starts_with("1:10 this is not TOML"), "{said:?}");
    }
}
