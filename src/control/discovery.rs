//! Backends that a pool finds by DNS, as RFC 3263 4.2 has clients find servers: SRV records of a domain (RFC 2782), or its addresses.
//!
//! ```text
//! discover = "sip:DOMAIN"         SRV of _sip._udp.DOMAIN, each target a backend; if there are none, as with port 5060
//!            "sip:DOMAIN:PORT"    A of DOMAIN, or AAAA if there are none, each address a backend
//! ```
//!
//! It is asked at the start, at each reload, and again whenever what was answered is valid no longer.
//!
//! Ways to get this wrong, and what catches each: a name server that is away, or that knows nothing for a moment, takes all
//! backends away (what was found last stays); a server that leaves has calls (it drains for as long as it answers probes); an
//! answer in another order looks like a change (answers are sorted); a record that changes with every answer makes reloads
//! without end (none comes sooner than a second after the other); a server that gets another address moves its calls (its
//! name is that of its SRV target, which it keeps).

use super::config::address::HostPort;
use super::config::problem::Problem;
use super::config::{Backend, Config, Discover, WEIGHT_MAX};
use super::list_watch::Event;
use super::operator::State;
use super::resolve::InForce;
use crate::dataplane::limits::{BACKENDS_MAX, FRAME_MAX};
use crate::dataplane::tables::Strategy;
use crate::dataplane::transport::Transport;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::warn;

/// Names of one service, each an alias of the one before.
const ALIASES_MAX: usize = 8;

/// How long one domain may take, with everything that its records name.
const PATIENCE: Duration = Duration::from_secs(5);

/// From one question to the next, whatever the records say: Consul's are valid for no time at all, and a day is too long for
/// a mistake.
const AT_LEAST: Duration = Duration::from_secs(1);
const AT_MOST: Duration = Duration::from_secs(3600);

/// Likewise, while nobody answers, or a target has no address.
const RETRY: Duration = Duration::from_secs(5);

/// A server of a domain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Server {
    /// Lower comes first.
    priority: u16,
    target: HostPort,
    weight: u16,
    addresses: Vec<SocketAddr>,
}

/// What DNS said of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    of: Discover,
    servers: Vec<Server>,
}

impl Found {
    /// Whether one server is at other addresses in `other`.
    fn contradicts(&self, other: &Found) -> bool {
        let addresses: HashMap<_, _> = other.servers.iter().map(|server| (&server.target, &server.addresses)).collect();
        self.servers.iter().any(|server| addresses.get(&server.target).is_some_and(|at| **at != server.addresses))
    }
}

/// Fills the pools of `config` that find their backends by DNS, and returns what is wrong with that. Where DNS does not
/// answer they have what is in force. Who is in force and answers, and is named no longer, drains.
pub async fn fill(config: &mut Config, in_force: &InForce) -> Vec<Problem> {
    let mut problems = Vec::new();
    let answers = answers(config, &in_force.found).await;
    for pool in &mut config.pools {
        let Some(discover) = &pool.discover else { continue };
        // Two pools may make different backends of what one domain says.
        let same =
            in_force.pools.iter().filter(|one| one.discover.as_ref().is_some_and(|other| other.asks_as(discover)));
        let before = same.max_by_key(|one| one.name == pool.name).map_or(&[][..], |one| &one.backends);
        let answer = answers.iter().find(|(of, _)| of.asks_as(discover)).map(|(_, answer)| answer.clone());
        let why = match answer.unwrap_or_else(|| Err("asking broke off".into())) {
            Ok(servers) => {
                let (mut backends, remark) = taken(servers, discover, pool.strategy);
                let is_named = |one: &&Backend| backends.iter().any(|other| other.is(&one.name, &one.addresses));
                let leaving = before.iter().filter(|one| in_force.answering.contains(&*one.name) && !is_named(one));
                let leaving: Vec<_> = leaving.map(|one| Backend { state: State::Drain, ..one.clone() }).collect();
                backends.extend(leaving);
                problems.extend(remark);
                pool.backends = backends;
                continue;
            }
            Err(why) => why,
        };
        pool.backends = before.to_vec();
        let title = format!("no servers of `{}` found: {why}", discover.domain);
        problems.push(match before.len() {
            0 => {
                let help = format!("`dig SRV {}` and `dig {}` ask the same", discover.service(), discover.domain);
                Problem::environment(title).at(discover.at.clone(), "asked for here").help(help)
            }
            count => Problem::warning(discover.at.clone(), title, format!("the {count} of before stay")),
        });
    }
    let count: usize = config.pools.iter().map(|pool| pool.backends.len()).sum();
    if count > BACKENDS_MAX {
        problems.push(Problem::environment(format!("{count} backends: at most {BACKENDS_MAX}")));
    }
    problems
}

/// What is said of each domain that `config` names: what was `found` of it, or else whatever DNS says now.
async fn answers(config: &Config, found: &[Found]) -> Vec<(Discover, Result<Vec<Server>, String>)> {
    let mut answers: Vec<_> = found.iter().map(|one| (one.of.clone(), Ok(one.servers.clone()))).collect();
    let mut asked = JoinSet::new();
    for of in domains(config) {
        if found.iter().all(|one| !one.of.asks_as(&of)) {
            let nameservers = config.nameservers.clone();
            asked.spawn(async move {
                let answer = ask(&nameservers, &of).await;
                (of, answer.map(|(servers, _)| servers))
            });
        }
    }
    while let Some(answer) = asked.join_next().await {
        answers.extend(answer);
    }
    answers
}

/// The domains that `config` names, each once.
fn domains(config: &Config) -> Vec<Discover> {
    let mut domains: Vec<Discover> = Vec::new();
    for discover in config.pools.iter().filter_map(|pool| pool.discover.as_ref()) {
        if domains.iter().all(|one| !one.asks_as(discover)) {
            domains.push(discover.clone());
        }
    }
    domains
}

impl Backend {
    /// Whether it is the server of this name, or at one of these addresses.
    fn is(&self, name: &str, addresses: &[SocketAddr]) -> bool {
        self.name == name || self.addresses.iter().any(|address| addresses.contains(address))
    }
}

impl Discover {
    /// Whether `other` asks the same.
    fn asks_as(&self, other: &Discover) -> bool {
        (&self.domain, self.port, self.transport) == (&other.domain, other.port, other.transport)
    }

    /// The domain of the SRV records (RFC 3263 4.1).
    fn service(&self) -> String {
        let service = match self.transport {
            Transport::Tls => "_sips._tcp",
            Transport::Tcp => "_sip._tcp",
            _ => "_sip._udp",
        };
        format!("{service}.{}", self.domain)
    }
}

/// What a resolver's refusal is called. That there is nothing is said by what there was to be.
fn told(error: &NetError) -> String {
    if error.is_no_records_found() { "DNS knows none".into() } else { error.to_string() }
}

/// The servers of a domain, sorted, at least one; and until when that is valid. All name servers are asked at once, and the
/// first that knows is believed: one that is away or refuses is not in the way of the others.
async fn ask(nameservers: &[SocketAddr], what: &Discover) -> Result<(Vec<Server>, Instant), String> {
    let mut asked = JoinSet::new();
    for resolver in resolvers(nameservers)? {
        let what = what.clone();
        asked.spawn(async move { ask_one(&resolver, &what).await });
    }
    let first = async {
        let mut refused = Err("no name server is known".to_owned());
        while let Some(answer) = asked.join_next().await {
            match answer.map_err(|error| error.to_string())? {
                Err(why) => refused = Err(why),
                known => return known,
            }
        }
        refused
    };
    timeout(PATIENCE, first).await.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))
}

async fn ask_one(resolver: &TokioResolver, what: &Discover) -> Result<(Vec<Server>, Instant), String> {
    let Some(port) = what.port else {
        return match servers_of(resolver, what.service()).await {
            Err(error) if error.is_no_records_found() => {
                addresses(resolver, &what.domain, what.transport.default_port()).await
            }
            Err(error) => Err(told(&error)),
            Ok(lookup) => {
                let records = lookup.answers().iter().filter_map(|record| match &record.data {
                    // Of what is nobody's, and what nothing can be sent to, there is no server.
                    RData::SRV(srv) if !srv.target.is_root() && srv.port != 0 => Some(srv),
                    _ => None,
                });
                let servers = records.map(|srv| Server {
                    priority: srv.priority,
                    target: HostPort {
                        host: srv.target.to_ascii().trim_end_matches('.').to_ascii_lowercase(),
                        port: srv.port,
                    },
                    weight: srv.weight,
                    addresses: Vec::new(),
                });
                targets(resolver, servers.collect(), lookup.valid_until()).await
            }
        };
    };
    addresses(resolver, &what.domain, port).await
}

/// The SRV records of a service, which may stand under another name: the resolver follows a CNAME to addresses, and not to these.
async fn servers_of(resolver: &TokioResolver, mut service: String) -> Result<Lookup, NetError> {
    for _ in 0..ALIASES_MAX {
        let none = match records(resolver, &service, RecordType::SRV).await {
            Err(error) if error.is_no_records_found() => error,
            known => return known,
        };
        let alias = records(resolver, &service, RecordType::CNAME).await?;
        let mut names = alias.answers().iter().filter_map(|record| match &record.data {
            RData::CNAME(name) => Some(name.to_ascii()),
            _ => None,
        });
        let Some(name) = names.next() else { return Err(none) };
        service = name;
    }
    Err(NetError::from("a name stands for another, and that for another, without end"))
}

/// `servers` with their addresses. A target that has none is left out, and is asked for again soon: it may be on its way in, or out.
async fn targets(
    resolver: &TokioResolver,
    servers: Vec<Server>,
    valid_until: Instant,
) -> Result<(Vec<Server>, Instant), String> {
    let mut lookups = JoinSet::new();
    for mut server in servers {
        let resolver = resolver.clone();
        lookups.spawn(async move {
            // A target is written in full: no domain of the search list goes behind it.
            let (found, valid_until) = look_up(&resolver, &format!("{}.", server.target.host)).await?;
            server.addresses = found.into_iter().map(|ip| SocketAddr::new(ip, server.target.port)).collect();
            Ok::<_, NetError>((server, valid_until))
        });
    }
    let (mut found, mut until, mut refused) = (Vec::new(), valid_until, None);
    while let Some(lookup) = lookups.join_next().await {
        match lookup.map_err(|error| error.to_string())? {
            Ok((server, valid_until)) => {
                found.push(server);
                until = until.min(valid_until);
            }
            Err(error) if error.is_no_records_found() => {
                refused = Some("no target of its SRV records has an address");
                until = until.min(Instant::now() + RETRY);
            }
            // Half of the servers would be no answer.
            Err(error) => return Err(told(&error)),
        }
    }
    found.sort_unstable();
    match found.is_empty() {
        true => Err(refused.unwrap_or("its SRV records say that there are none (RFC 2782)").into()),
        false => Ok((found, until)),
    }
}

async fn addresses(resolver: &TokioResolver, domain: &str, port: u16) -> Result<(Vec<Server>, Instant), String> {
    let (found, valid_until) = look_up(resolver, domain).await.map_err(|error| told(&error))?;
    let of = |ip: IpAddr| {
        let target = HostPort { host: ip.to_string(), port };
        Server { priority: 0, target, weight: 0, addresses: vec![SocketAddr::new(ip, port)] }
    };
    Ok((found.into_iter().map(of).collect(), valid_until))
}

/// The addresses of a name, sorted: those of IPv4, or those of IPv6 if DNS says that there are none. A server that has both
/// would be two. While it is not known whether there are any of IPv4 there is no answer.
async fn look_up(resolver: &TokioResolver, name: &str) -> Result<(Vec<IpAddr>, Instant), NetError> {
    let lookup = match records(resolver, name, RecordType::A).await {
        Err(error) if error.is_no_records_found() => records(resolver, name, RecordType::AAAA).await?,
        lookup => lookup?,
    };
    let mut found: Vec<IpAddr> = lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect();
    found.sort_unstable();
    Ok((found, lookup.valid_until()))
}

/// The records of a name, whatever letters it has: the rules for names of hosts (RFC 1123) are not those of DNS, and know no `_`.
async fn records(resolver: &TokioResolver, name: &str, kind: RecordType) -> Result<Lookup, NetError> {
    resolver.lookup(Name::from_ascii(name)?, kind).await
}

/// A resolver for each of `nameservers`, or for each of those of this machine. They remember nothing: whoever asks knows when
/// to ask again.
fn resolvers(nameservers: &[SocketAddr]) -> Result<Vec<TokioResolver>, String> {
    let (config, mut options) = match nameservers {
        [] => read_system_conf().map_err(|error| {
            format!("/etc/resolv.conf names nobody to ask, and `[balancer]` has no `nameservers`: {error}")
        })?,
        written => {
            let servers = written.iter().map(|address| {
                let mut server = NameServerConfig::udp_and_tcp(address.ip());
                server.connections.iter_mut().for_each(|one: &mut ConnectionConfig| one.port = address.port());
                server
            });
            (ResolverConfig::from_name_servers(servers.collect()), ResolverOpts::default())
        }
    };
    options.cache_size = 0;
    let (domain, search, servers) = config.into_parts();
    let resolver = |server| {
        let config = ResolverConfig::from_parts(domain.clone(), search.clone(), vec![server]);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        builder.options_mut().clone_from(&options);
        builder.build()
    };
    servers.into_iter().map(resolver).collect::<Result<_, _>>().map_err(|error| told(&error))
}

/// The backends that `servers` are, and what is to be said of those that are none.
fn taken(servers: Vec<Server>, discover: &Discover, strategy: Strategy) -> (Vec<Backend>, Option<Problem>) {
    let first = servers.iter().map(|server| server.priority).min().unwrap_or_default();
    let is_in_turn = |server: &Server| server.priority == first || strategy == Strategy::Priority;
    let (servers, later): (Vec<_>, Vec<_>) = servers.into_iter().partition(is_in_turn);
    let heaviest = servers.iter().map(|server| server.weight).max().unwrap_or_default();
    let are_alike = servers.iter().all(|server| server.weight == heaviest);
    let weight = |weight: u16| match i64::from(heaviest) {
        // Who is alike gets what backends get that nothing is said of.
        _ if are_alike => 100,
        most if most > WEIGHT_MAX => (i64::from(weight) * WEIGHT_MAX / most).max(1) as u32,
        _ => u32::from(weight).max(1),
    };
    let mut backends: Vec<Backend> = Vec::new();
    for Server { priority, target, weight: parts, addresses } in servers {
        let name = target.to_string();
        // Two names of one server are one server.
        if backends.iter().any(|one| one.is(&name, &addresses)) {
            continue;
        }
        backends.push(Backend {
            name,
            target,
            addresses,
            transport: discover.transport,
            message_max: FRAME_MAX as u32,
            weight: weight(parts),
            max_open: 0,
            priority: u32::from(priority),
            state: State::Ready,
            at: discover.at.clone(),
            source: None,
        });
    }
    let remark = (!later.is_empty()).then(|| {
        let names: Vec<String> = later.iter().map(|server| server.target.to_string()).collect();
        let title = format!("of `{}` get no calls, since others come first: {}", discover.domain, names.join(", "));
        let label = format!("those of priority {first} in its SRV records do");
        Problem::warning(discover.at.clone(), title, label)
            .help("with `strategy = \"priority\"` the first that is up gets them all, and the others when it is not")
    });
    (backends, remark)
}

/// A watch over what DNS says of the domains that pools name. It ends when it is dropped.
#[derive(Debug, Default)]
pub struct Watch {
    asked: (Vec<Discover>, Vec<SocketAddr>),
    tasks: Vec<AbortHandle>,
    /// What it told of last. Whoever is told takes that and does not ask again: the answer may be another, or none, and the watch
    /// would not tell of the same a second time.
    pub found: Vec<Found>,
}

impl Watch {
    /// Watches the domains that `config` names from here on. A watch over the same goes on undisturbed.
    pub fn follow(&mut self, config: &Config, events: &mpsc::Sender<Event>) {
        let asked = (domains(config), config.nameservers.clone());
        if asked == self.asked {
            return;
        }
        self.stop();
        let start = |what: &Discover| tokio::spawn(watch(what.clone(), asked.1.clone(), events.clone())).abort_handle();
        self.tasks = asked.0.iter().map(start).collect();
        self.asked = asked;
    }

    /// Keeps what it has told of. What was found of another domain before one of its servers moved is forgotten, and is asked for
    /// with the rest: a name that is two addresses would be refused.
    pub fn take(&mut self, found: Found) {
        self.found.retain(|one| !one.of.asks_as(&found.of) && !one.contradicts(&found));
        self.found.push(found);
    }

    fn stop(&mut self) {
        self.found.clear();
        self.tasks.drain(..).for_each(|task| task.abort());
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Tells of the first answer, because it may have changed since it was asked for at the start, and of each that is another
/// than the one before; who is told compares.
async fn watch(what: Discover, nameservers: Vec<SocketAddr>, events: mpsc::Sender<Event>) {
    let (mut told, mut is_away) = (None, false);
    loop {
        let pause = match ask(&nameservers, &what).await {
            Ok((servers, valid_until)) => {
                let found = Some(Found { of: what.clone(), servers });
                if told != found {
                    told.clone_from(&found);
                    if let Some(found) = found
                        && events.send(Event::Discovered(found)).await.is_err()
                    {
                        return;
                    }
                }
                is_away = false;
                valid_until.saturating_duration_since(Instant::now()).clamp(AT_LEAST, AT_MOST)
            }
            Err(why) => {
                if !std::mem::replace(&mut is_away, true) {
                    let note = "the servers found last stay; a start would fail";
                    warn!(event = "discovery_failed", domain = what.domain, why, note);
                }
                RETRY
            }
        };
        sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::problem::Source;
    use super::super::config::{Pool, parse};
    use super::*;

    fn domain() -> Discover {
        Discover { domain: "example.net".into(), port: None, transport: Transport::Tcp, at: 0..0 }
    }

    fn server(priority: u16, weight: u16, number: u8) -> Server {
        let target = HostPort { host: format!("s{number}.example.net"), port: 5060 };
        Server { priority, weight, target, addresses: vec![SocketAddr::from(([10, 0, 0, number], 5060))] }
    }

    /// Names, weights and priorities of the backends that these servers are.
    fn backends(servers: &[Server], strategy: Strategy) -> Vec<(String, u32, u32)> {
        let (backends, _) = taken(servers.to_vec(), &domain(), strategy);
        backends.into_iter().map(|one| (one.name, one.weight, one.priority)).collect()
    }

    fn named(number: u8, weight: u32, priority: u32) -> (String, u32, u32) {
        (format!("s{number}.example.net:5060"), weight, priority)
    }

    #[test]
    fn weights_are_those_of_the_records_where_they_differ() {
        let alike = backends(&[server(1, 33, 1), server(1, 33, 2)], Strategy::Hash);
        assert_eq!(alike, [named(1, 100, 1), named(2, 100, 1)]);
        let zero = backends(&[server(1, 0, 1), server(1, 60, 2)], Strategy::Hash);
        assert_eq!(zero, [named(1, 1, 1), named(2, 60, 1)], "RFC 2782: a very small chance");
        let heavy = backends(&[server(1, 32_000, 1), server(1, 64_000, 2)], Strategy::Hash);
        assert_eq!(heavy, [named(1, 5_000, 1), named(2, 10_000, 1)]);
        let light = backends(&[server(1, 1, 1), server(1, 64_000, 2)], Strategy::Hash);
        assert_eq!(light, [named(1, 1, 1), named(2, 10_000, 1)], "nobody is left without any");
    }

    #[test]
    fn later_servers_wait_for_a_pool_that_goes_by_priority() {
        let servers = [server(10, 5, 1), server(20, 7, 2)];
        assert_eq!(backends(&servers, Strategy::Hash), [named(1, 100, 10)]);
        assert_eq!(backends(&servers, Strategy::Priority), [named(1, 5, 10), named(2, 7, 20)]);
        let remark = taken(servers.to_vec(), &domain(), Strategy::Hash).1.unwrap();
        assert!(remark.title.contains("s2.example.net:5060"), "{}", remark.title);
        assert!(taken(servers.to_vec(), &domain(), Strategy::Priority).1.is_none());
    }

    #[test]
    fn two_names_of_one_server_are_one_backend() {
        let mut twice = server(1, 1, 2);
        twice.addresses.clone_from(&server(1, 1, 1).addresses);
        assert_eq!(backends(&[server(1, 1, 1), twice], Strategy::Hash), [named(1, 100, 1)]);
    }

    /// Backends of each pool of a configuration of which DNS, which is away, said this before, or a watch this.
    fn filled(text: &str, pools: Vec<Pool>, found: Vec<Found>) -> Vec<(Vec<String>, Pool)> {
        let text = format!(
            "[balancer]\nnameservers = [\"127.0.0.1:1\"]\n[[listen]]\naddress = \"udp:127.0.0.1:5070\"\n{text}"
        );
        let mut config = parse(Source { name: "viahop.toml".into(), text }).unwrap().config;
        let in_force = InForce { pools, found, ..InForce::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(fill(&mut config, &in_force));
        let names = |pool: &Pool| pool.backends.iter().map(|one| one.name.clone()).collect();
        config.pools.into_iter().map(|pool| (names(&pool), pool)).collect()
    }

    /// DNS may say something else a moment later, or nothing, and the watch would not tell again.
    #[test]
    fn what_a_watch_tells_of_is_taken_as_it_is_and_stays_while_dns_is_away() {
        let text = "[[pool]]\nname = \"first\"\ndiscover = \"sip:example.net;transport=tcp\"\n\
                    [[pool]]\nname = \"all\"\ndiscover = \"sip:example.net;transport=tcp\"\nstrategy = \"priority\"\n";
        let found = Found { of: domain(), servers: vec![server(10, 5, 1), server(20, 5, 2)] };
        let (one, two) = ("s1.example.net:5060".to_owned(), "s2.example.net:5060".to_owned());
        let of_pools = [vec![one.clone()], vec![one, two]];
        let filled_by_watch = filled(text, Vec::new(), vec![found]);
        assert_eq!(filled_by_watch.iter().map(|one| one.0.clone()).collect::<Vec<_>>(), of_pools);
        let pools = filled_by_watch.into_iter().map(|one| one.1).collect();
        let kept: Vec<_> = filled(text, pools, Vec::new()).into_iter().map(|one| one.0).collect();
        assert_eq!(kept, of_pools, "each pool keeps its own");
    }

    #[test]
    fn what_was_found_before_a_server_moved_is_asked_for_again() {
        let of = |transport| Discover { transport, ..domain() };
        let found = |transport, number| Found { of: of(transport), servers: vec![server(1, 1, number)] };
        let mut watch = Watch::default();
        watch.take(found(Transport::Udp, 1));
        watch.take(found(Transport::Tcp, 1));
        assert_eq!(watch.found.len(), 2);
        let mut moved = found(Transport::Udp, 1);
        moved.servers[0].addresses = server(1, 1, 2).addresses;
        watch.take(moved.clone());
        assert_eq!(watch.found, [moved]);
    }

    #[test]
    fn the_service_says_the_transport() {
        let of = |transport| Discover { transport, ..domain() }.service();
        assert_eq!(of(Transport::Udp), "_sip._udp.example.net");
        assert_eq!(of(Transport::Tcp), "_sip._tcp.example.net");
        assert_eq!(of(Transport::Tls), "_sips._tcp.example.net");
    }
}
