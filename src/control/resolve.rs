//! What a configuration means on this machine: addresses of names, our address towards each backend, and every name
//! that means us. Everything here asks the network or the kernel; what is merely written was read in `config`.

use super::config::address::HostPort;
use super::config::problem::{Problem, Report, Severity};
use super::config::{Backend, Config, Listen, Loaded, Pool};
use super::discovery::{self, Found};
use crate::dataplane::keys::Keys;
use crate::dataplane::tables::{self, OwnName, ProxyHeader};
use crate::dataplane::transport::Transport;
use crate::tls::Credentials;
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;
use tokio::net::lookup_host;
use tokio::time::timeout;

/// How long one name may take. Resolvers give up after 5 to 30 s; a start that hangs longer looks broken.
const LOOKUP: Duration = Duration::from_secs(5);

/// A configuration with the answers.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// What is meant.
    pub config: Config,
    /// Of each backend of each pool: where it is, and from where we send to it.
    pub backends: Vec<Vec<Place>>,
    /// Every name and address that means us.
    pub own: Vec<OwnName>,
}

impl Resolved {
    /// What connections that speak TLS begin with.
    pub fn credentials(&self) -> Credentials {
        let pools = self.config.pools.iter().zip(&self.backends);
        let all = pools.flat_map(|(pool, places)| pool.backends.iter().zip(places).map(move |one| (pool, one)));
        let clients = all.filter(|(_, (_, place))| place.transport == Transport::Tls).filter_map(|(pool, one)| {
            let (backend, place) = one;
            Some((place.address, pool.tls.as_ref()?.towards(&backend.target)?))
        });
        let servers = self.config.listeners.iter().map(|listener| listener.tls.clone());
        Credentials { servers: servers.collect(), clients: clients.collect() }
    }
}

/// Where a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its address.
    pub address: SocketAddr,
    /// Our address towards it.
    pub local: IpAddr,
    /// How messages get there.
    pub transport: Transport,
    /// The PROXY header in front of every connection to it.
    pub proxy_header: Option<ProxyHeader>,
}

/// Where backends are, by their names.
pub type Addresses = HashMap<Box<str>, SocketAddr>;

/// What is in force while something new is looked up; nothing, at a start.
#[derive(Clone, Debug, Default)]
pub struct InForce {
    /// Where backends are.
    pub addresses: Addresses,
    /// The pools.
    pub pools: Vec<Pool>,
    /// Names of backends that answer probes, whatever they answer.
    pub answering: HashSet<Box<str>>,
    /// What a watch has found of domains, which are not asked for again.
    pub found: Vec<Found>,
}

/// Asks for everything `loaded` names, the servers of domains first. `keys` are those that its backends will be known by. A
/// backend whose name has several addresses stays where it is in force, if that is one of them still: resolvers give them by
/// turns, and its calls are there.
///
/// # Errors
/// A name has no address, no way leads to a backend, two backends of a pool are the same, or tokens could not tell two
/// apart.
pub async fn resolve(loaded: Loaded, keys: &Keys, in_force: &InForce) -> Result<(Resolved, Report), Report> {
    let Loaded { mut config, warnings: mut problems, source } = loaded;
    if let Some(problem) = foreign_egress(&config) {
        return Err(Report { source, problems: vec![problem] });
    }
    problems.extend(discovery::fill(&mut config, in_force).await);
    let mut backends = Vec::new();
    for pool in &config.pools {
        let mut places: Vec<Place> = Vec::new();
        let mut seen: HashMap<SocketAddr, &str> = HashMap::new();
        for backend in &pool.backends {
            let at = backend.at.clone();
            let within = |problem: Problem| problem.within(backend.source.clone());
            match place(backend, &config, in_force.addresses.get(&*backend.name)).await {
                Ok((place, others)) => {
                    if let Some(first) = seen.insert(place.address, &backend.name) {
                        let title = format!("backends `{first}` and `{}` are both {}", backend.name, place.address);
                        let problem = Problem::error(at, title, "leave one of them out, or add up their weights");
                        problems.push(within(problem));
                    } else if others > 0 && backend.addresses.is_empty() {
                        let title = format!("`{}` has {} addresses", backend.target.host, others + 1);
                        let label = format!("{} is used; a backend is one server", place.address.ip());
                        let problem = Problem::warning(at, title, label).help("write a backend for each address");
                        problems.push(within(problem));
                    }
                    places.push(Place { transport: backend.transport, proxy_header: pool.proxy_header, ..place });
                }
                Err(Missing { title, label, help }) => {
                    problems.push(within(Problem::environment(title).at(at, label).help(help)));
                }
            }
        }
        backends.push(places);
    }
    let own = own_names(&config).unwrap_or_else(|error| {
        let problem = Problem::environment(format!("cannot list this machine's addresses: {error}"));
        let help = "OPTIONS and Routes to a wildcard listener's addresses are recognised by `aliases` only";
        problems.push(Problem { severity: Severity::Warning, ..problem.help(help) });
        named(&config)
    });
    let mut report = Report { source, problems };
    if !report.is_error() {
        report.problems.extend(mistakable(&config, &backends, keys));
        report.problems.extend(ourselves(&config, &backends, &own));
    }
    if report.is_error() {
        return Err(report);
    }
    Ok((Resolved { config, backends, own }, report))
}

/// That an address to send from is not ours: no way leads to any backend then.
fn foreign_egress(config: &Config) -> Option<Problem> {
    let wanted = [config.egress_v4.map(IpAddr::V4), config.egress_v6.map(IpAddr::V6)];
    let (address, error) =
        wanted.into_iter().flatten().find_map(|address| Some((address, UdpSocket::bind((address, 0)).err()?)))?;
    let problem = Problem::environment(format!("`egress`: cannot send from {address}: {error}"));
    Some(problem.help("`ip addr` lists the addresses of this machine"))
}

/// Backends that a token of one would lead to another: in a Record-Route stands nothing but 32 bits made of the name.
fn mistakable(config: &Config, places: &[Vec<Place>], keys: &Keys) -> Vec<Problem> {
    let mut known: HashMap<u32, (&Pool, &Backend, &Place)> = HashMap::new();
    let mut problems = Vec::new();
    for (pool, one, place) in placed(config, places) {
        let id = tables::Backend::id_of(keys.backend(&one.name));
        let (other_pool, other, other_place) = *known.entry(id).or_insert((pool, one, place));
        let (title, help) = if other.name != one.name {
            let title = format!("dialogs could not tell `{}` from `{}`", one.name, other.name);
            (title, "both names have one digest, by chance: give one of them another `name`, or `duid` in a list")
        } else if other_place.address != place.address {
            let title = format!("`{}` is {} and {}", one.name, other_place.address, place.address);
            (title, "the name says which dialogs are whose: one server, one name, in all pools")
        } else if other_pool.proxy_header != pool.proxy_header {
            let title = format!("connections to {} begin otherwise in another pool", place.address);
            (
                title,
                "a port expects a PROXY header or does not: give both pools the same `send_proxy`, or the server two ports",
            )
        } else {
            continue;
        };
        let problem = Problem::error(one.at.clone(), title, format!("in pool `{}`", pool.name));
        let label = format!("in pool `{}`", other_pool.name);
        let problem = problem.within(one.source.clone()).beside(other.at.clone(), other.source.clone(), label);
        problems.push(problem.help(help));
    }
    problems
}

/// Backends that are listeners of ours: whatever is sent there comes back, with our own Via on top.
fn ourselves(config: &Config, places: &[Vec<Place>], own: &[OwnName]) -> Vec<Problem> {
    let is_here = |address: SocketAddr| address.ip().is_loopback() || own.contains(&OwnName::Address(address));
    // A server may well have the port of a listener on the transport that we do not listen on.
    let is_it = |listener: &Listen, place: &Place| {
        let (bound, address) = (listener.address, place.address);
        let is_any = bound.ip().is_unspecified() && bound.is_ipv4() == address.is_ipv4() && is_here(address);
        listener.transport.is_stream() == place.transport.is_stream()
            && bound.port() == address.port()
            && (bound.ip() == address.ip() || is_any)
    };
    let found = placed(config, places).filter_map(|(_, one, place)| {
        let listener = config.listeners.iter().find(|listener| is_it(listener, place))?;
        let title = format!("backend `{}` is our own listener `{}`", one.name, listener.name);
        let label = "what is sent there comes back to us, and is answered 482";
        let problem = Problem::warning(one.at.clone(), title, label).within(one.source.clone());
        Some(problem.help("write where the server is; if that is this address, give the listener another port"))
    });
    found.collect()
}

/// All backends, each with its pool and its place.
fn placed<'a>(
    config: &'a Config,
    places: &'a [Vec<Place>],
) -> impl Iterator<Item = (&'a Pool, &'a Backend, &'a Place)> {
    let pools = config.pools.iter().zip(places);
    pools.flat_map(|(pool, places)| pool.backends.iter().zip(places).map(move |(one, place)| (pool, one, place)))
}

/// Why a backend has no place.
struct Missing {
    title: String,
    label: String,
    help: String,
}

/// Where `backend` is, and how many other addresses it has.
async fn place(backend: &Backend, config: &Config, running: Option<&SocketAddr>) -> Result<(Place, usize), Missing> {
    let target = &backend.target;
    let mut addresses: Vec<SocketAddr> = match target.address() {
        _ if !backend.addresses.is_empty() => backend.addresses.clone(),
        Some(address) => vec![address],
        None => look_up(target).await.map_err(|error| Missing {
            title: format!("`{}` has no address", target.host),
            label: error.to_string(),
            help: format!("check the name with `getent hosts {}`, or write an address", target.host),
        })?,
    };
    put_first(running, &mut addresses);
    let mut refused = None;
    for &address in &addresses {
        match local_towards(address, config) {
            Ok(local) => {
                let place = Place { address, local, transport: Transport::Udp, proxy_header: None };
                return Ok((place, addresses.len() - 1));
            }
            Err(error) => refused = refused.or(Some((address, error))),
        }
    }
    Err(match refused {
        Some((address, error)) => Missing {
            title: format!("no way leads to {address}"),
            label: error.to_string(),
            help: format!("`ip route get {}` says the same; is the network up?", address.ip()),
        },
        None => Missing {
            title: format!("`{}` has no address", target.host),
            label: "the name exists, without one".into(),
            help: "write an address".into(),
        },
    })
}

/// Puts the address that is `running` in front, if it is among them; the others keep their order.
fn put_first(running: Option<&SocketAddr>, addresses: &mut [SocketAddr]) {
    addresses.sort_by_key(|address| Some(address) != running);
}

async fn look_up(target: &HostPort) -> io::Result<Vec<SocketAddr>> {
    let addresses = timeout(LOOKUP, lookup_host((target.host.as_str(), target.port)))
        .await
        .map_err(|_| io::Error::other(format!("no answer within {} s", LOOKUP.as_secs())))??;
    let mut addresses: Vec<SocketAddr> = addresses.collect();
    addresses.dedup();
    Ok(addresses)
}

/// The address that datagrams to `address` leave from: the operator's choice, or the kernel's. Nothing is sent.
fn local_towards(address: SocketAddr, config: &Config) -> io::Result<IpAddr> {
    let from: IpAddr = match address.ip() {
        IpAddr::V4(_) => config.egress_v4.unwrap_or(Ipv4Addr::UNSPECIFIED).into(),
        IpAddr::V6(_) => config.egress_v6.unwrap_or(Ipv6Addr::UNSPECIFIED).into(),
    };
    let socket = UdpSocket::bind((from, 0))?;
    socket.connect(address)?;
    Ok(socket.local_addr()?.ip())
}

/// The address that datagrams to anywhere leave from, for lack of a better one. Nothing is sent.
pub fn towards_the_world(is_ipv4: bool) -> IpAddr {
    // Addresses of documentation (RFC 5737, RFC 3849): the default route leads there.
    let (any, world, loopback): (IpAddr, IpAddr, IpAddr) = match is_ipv4 {
        true => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into(), Ipv4Addr::LOCALHOST.into()),
        false => {
            let world = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
            (Ipv6Addr::UNSPECIFIED.into(), world.into(), Ipv6Addr::LOCALHOST.into())
        }
    };
    let socket = UdpSocket::bind((any, 0)).and_then(|socket| socket.connect((world, 9)).map(|()| socket));
    socket.and_then(|socket| socket.local_addr()).map_or(loopback, |address| address.ip())
}

/// Names and addresses that are written.
fn named(config: &Config) -> Vec<OwnName> {
    let own = |name: &HostPort| match name.address() {
        Some(address) => OwnName::Address(address),
        None => OwnName::Name(name.host.as_str().into(), name.port),
    };
    let advertised = config.listeners.iter().filter_map(|listener| listener.advertise.as_ref());
    let bound = config.listeners.iter().filter(|listener| !listener.address.ip().is_unspecified());
    let mut names: Vec<OwnName> = advertised.chain(&config.policy.aliases).map(own).collect();
    names.extend(bound.map(|listener| OwnName::Address(listener.address)));
    names
}

/// The same, with the addresses of this machine at the port of each wildcard listener.
fn own_names(config: &Config) -> io::Result<Vec<OwnName>> {
    let mut names = named(config);
    let wildcards: Vec<SocketAddr> = config
        .listeners
        .iter()
        .map(|listener| listener.address)
        .filter(|address| address.ip().is_unspecified())
        .collect();
    if !wildcards.is_empty() {
        for interface in if_addrs::get_if_addrs()? {
            let ip = interface.ip();
            let same_family = wildcards.iter().filter(|wildcard| wildcard.is_ipv4() == ip.is_ipv4());
            names.extend(same_family.map(|wildcard| OwnName::Address(SocketAddr::new(ip, wildcard.port()))));
        }
    }
    let mut distinct: Vec<OwnName> = Vec::new();
    for name in names {
        if !distinct.contains(&name) {
            distinct.push(name);
        }
    }
    Ok(distinct)
}

#[cfg(test)]
mod tests {
    use super::super::config::{parse, problem::Source};
    use super::*;

    fn resolved(text: &str) -> Result<(Resolved, Report), Report> {
        let loaded = parse(Source { name: "viahop.toml".into(), text: text.into() }).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(resolve(loaded, &keys(), &InForce::default()))
    }

    fn keys() -> Keys {
        Keys::new(&[1; 16], &[2; 16], &[3; 16], 0)
    }

    /// Two pools of one backend each.
    fn two(first: &str, second: &str) -> String {
        format!(
            "[[listen]]\naddress = \"udp:127.0.0.1:5070\"\n[[pool]]\nbackend = [{{ {first} }}]\n\
             [[pool]]\nbackend = [{{ {second} }}]\n"
        )
    }

    #[test]
    fn one_name_for_two_servers_is_refused_where_both_stand_and_for_one_it_is_not() {
        let (here, there) = ("uri = \"sip:127.0.0.1:1\", name = \"a\"", "uri = \"sip:127.0.0.1:2\", name = \"a\"");
        let shown = resolved(&two(here, there)).unwrap_err().render(false);
        for said in ["`a` is 127.0.0.1:1 and 127.0.0.1:2", "viahop.toml:6:20", "in pool `pool-2`", "in pool `default`"]
        {
            assert!(shown.contains(said), "{said} is missing in\n{shown}");
        }
        assert!(resolved(&two(here, here)).is_ok());
    }

    /// Some 77,000 names have two of one 32-bit id among them, as likely as not; 300,000 nearly always.
    #[test]
    fn names_of_one_id_are_refused() {
        let keys = keys();
        let mut known = HashMap::new();
        let both = (0..300_000).find_map(|number| {
            let name = format!("b{number}");
            let other = known.insert(tables::Backend::id_of(keys.backend(&name)), name.clone())?;
            Some((other, name))
        });
        let (first, second) = both.expect("some two names have one id");
        let backend = |port: u16, name: &str| format!("uri = \"sip:127.0.0.1:{port}\", name = \"{name}\"");
        let shown = resolved(&two(&backend(1, &first), &backend(2, &second))).unwrap_err().render(false);
        let said = format!("dialogs could not tell `{second}` from `{first}`");
        assert!(shown.contains(&said) && shown.contains("another `name`"), "{shown}");
    }

    #[test]
    fn a_backend_that_is_a_listener_of_ours_is_warned_about_and_a_server_beside_one_is_not() {
        let warnings = |listener: &str, backend: &str| {
            let text =
                format!("[[listen]]\naddress = \"{listener}\"\n[[pool]]\nbackend = [{{ uri = \"{backend}\" }}]\n");
            resolved(&text).unwrap().1.problems
        };
        for (listener, backend) in [
            ("udp:127.0.77.1:25160", "sip:127.0.77.1:25160"),
            ("udp:0.0.0.0:25160", "sip:127.0.77.1:25160"),
            ("tcp:0.0.0.0:25160", "sip:127.0.0.1:25160;transport=tcp"),
        ] {
            let warned = warnings(listener, backend);
            assert_eq!((warned.len(), warned[0].severity), (1, Severity::Warning), "{listener}, {backend}");
            assert!(warned[0].title.ends_with(&format!("is our own listener `{listener}`")), "{}", warned[0].title);
        }
        for (listener, backend) in [
            ("udp:127.0.77.1:25160", "sip:127.0.77.2:25160"),
            ("udp:127.0.77.1:25160", "sip:127.0.77.1:25161"),
            ("udp:127.0.77.1:25160", "sip:127.0.77.1:25160;transport=tcp"),
            ("udp:[::]:25160", "sip:127.0.77.1:25160"),
        ] {
            assert_eq!(warnings(listener, backend).len(), 0, "{listener}, {backend}");
        }
    }

    #[test]
    fn backends_get_addresses_and_we_get_names() {
        let text = "[[listen]]\naddress = \"udp:0.0.0.0:5070\"\nadvertise = \"sip.example.net\"\n\
                    [[pool]]\nbackend = [{ uri = \"sip:127.0.0.1:5080\" }]\n[policy]\naliases = [\"pbx:5061\"]\n";
        let (resolved, report) = resolved(text).unwrap();
        assert!(report.problems.is_empty());
        let loopback: IpAddr = [127, 0, 0, 1].into();
        let place = Place {
            address: SocketAddr::new(loopback, 5080),
            local: loopback,
            transport: Transport::Udp,
            proxy_header: None,
        };
        assert_eq!(resolved.backends, [[place]]);
        for own in [
            OwnName::Address(SocketAddr::new(loopback, 5070)),
            OwnName::Name("sip.example.net".into(), 5060),
            OwnName::Name("pbx".into(), 5061),
        ] {
            assert!(resolved.own.contains(&own), "{own:?} is not among {:?}", resolved.own);
        }
    }

    /// A resolver that gives the addresses of a name by turns would move a backend, and its calls, with any reload.
    #[test]
    fn of_the_addresses_of_a_name_the_one_that_is_running_stays() {
        let [one, two, three]: [SocketAddr; 3] =
            ["192.0.2.1:5060", "192.0.2.2:5060", "192.0.2.3:5060"].map(|text| text.parse().unwrap());
        let first = |running: Option<&SocketAddr>| {
            let mut addresses = [two, three, one];
            put_first(running, &mut addresses);
            addresses
        };
        assert_eq!(first(Some(&one)), [one, two, three]);
        assert_eq!(first(Some(&two)), [two, three, one]);
        assert_eq!(first(Some(&"192.0.2.4:5060".parse().unwrap())), [two, three, one], "it is gone");
        assert_eq!(first(None), [two, three, one]);
    }

    #[test]
    fn a_name_without_address_is_shown_where_it_stands() {
        let text =
            "[[listen]]\naddress = \"udp:127.0.0.1:5070\"\n[[pool]]\nbackend = [{ uri = \"sip:backend.invalid\" }]\n";
        let report = resolved(text).unwrap_err();
        let shown = report.render(false);
        assert!(shown.contains("viahop.toml:4:20"), "{shown}");
        assert!(shown.contains("`backend.invalid` has no address") && shown.contains("getent hosts"), "{shown}");
        assert_eq!(report.exit_code(), 4);
    }

    #[test]
    fn one_server_by_two_names_is_refused() {
        let text = "[[listen]]\naddress = \"udp:127.0.0.1:5070\"\n\
                    [[pool]]\nbackend = [{ uri = \"sip:127.0.0.1\" }, { uri = \"sip:localhost\", name = \"other\" }]\n";
        let shown = resolved(text).unwrap_err().render(false);
        assert!(shown.contains("`127.0.0.1:5060` and `other` are both 127.0.0.1:5060"), "{shown}");
    }
}
