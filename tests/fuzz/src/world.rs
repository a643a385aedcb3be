//! Two configured balancers and all who talk to them, and a data path to send datagrams through.
//!
//! The balancer of the tests, seen from everywhere: IPv4 and IPv6, on addresses it is bound to and on wildcards, clients
//! outside and inside, backends of both families. The first world is plain; in the second every rule, strategy and
//! affinity there is has its pool.

use crate::support::{self, BACKENDS, CLIENT, EGRESS_PORT, LB, address};
use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use viahop::dataplane::counters::Kind;
use viahop::dataplane::dispatch::{Dispatcher, EgressPorts};
use viahop::dataplane::limits::{DATAGRAM_MAX, HEAD_MAX, RINGING_MS};
use viahop::dataplane::room::Room;
use viahop::dataplane::route::Arrival;
use viahop::dataplane::scan::Scanner;
use viahop::dataplane::sip::start_line::Method;
use viahop::dataplane::tables::*;
use viahop::dataplane::transport::Transport;
use viahop::dataplane::verdict::Verdict;

pub const LB_V6: &str = "[2001:db8::100]:5060";
pub const BACKENDS_V6: [&str; 2] = ["[2001:db8:1::11]:5060", "[2001:db8:1::12]:5060"];
/// A listener that faces inside.
pub const INSIDE_LB: &str = "10.0.0.100:5060";
/// Hosts of this network count as inside.
pub const INSIDE_NET: [u8; 2] = [10, 9];

/// Who sends.
pub const SOURCES: [&str; 16] = [
    CLIENT,
    "203.0.113.9:1024",
    "[2001:db8::9]:5060",
    "[2001:db8::9]:61000",
    BACKENDS[0],
    BACKENDS[1],
    BACKENDS_V6[0],
    BACKENDS_V6[1],
    "10.9.1.2:5060",
    // A backend's host on another port is a stranger.
    "10.0.0.11:5061",
    LB,
    LB_V6,
    // Those who cannot be answered.
    "203.0.113.9:0",
    "255.255.255.255:5060",
    "[ff02::1]:5060",
    "0.0.0.0:5060",
];

/// A balancer.
pub struct World {
    pub tables: Tables,
    pub egress: EgressPorts,
}

/// The worlds there are.
pub fn worlds() -> &'static [World] {
    static WORLDS: LazyLock<[World; 2]> = LazyLock::new(|| [plain(), rules()]);
    &*WORLDS
}

fn plain() -> World {
    let mut settings = settings();
    settings.inside = vec![Network { address: IpAddr::from([INSIDE_NET[0], INSIDE_NET[1], 0, 0]), prefix: 16 }];
    let pool = pool("proxies", Strategy::Hash, Affinity::CallId, &[&BACKENDS[..], &BACKENDS_V6[..]].concat());
    let egress = EgressPorts { v4: Some(EGRESS_PORT), v6: Some(EGRESS_PORT + 1) };
    World { tables: Tables::new(1, settings, vec![pool], None), egress }
}

fn rules() -> World {
    let mut settings = settings();
    settings.policy.foreign_route = ForeignRoute::Refuse;
    settings.policy.schemes.pop();
    settings.policy.path = PathPolicy::Always;
    settings.draining = true;
    let rule = |name: &str, pool| Rule { name: name.into(), methods: None, domains: None, listeners: None, pool };
    let methods = |list: &[Method]| Some(list.to_vec());
    settings.rules = vec![
        Rule { methods: methods(&[Method::Register, Method::Subscribe]), ..rule("registrars", 1) },
        Rule { domains: Some(vec!["*.example.net".into(), "example.org".into()]), ..rule("domains", 2) },
        Rule { methods: methods(&[Method::Options]), ..rule("options", 3) },
        Rule { methods: methods(&[Method::Message, Method::Other]), ..rule("from", 4) },
        Rule { methods: methods(&[Method::Publish]), ..rule("to", 5) },
        Rule { methods: methods(&[Method::Info]), ..rule("nobody", 6) },
        Rule { listeners: Some(vec![1, 3]), ..rule("ipv6", 7) },
    ];
    // Each pool its own backends: an address stands in the tables once.
    let own = |number: u8| [format!("10.0.{number}.11:5060"), format!("10.0.{number}.12:5070")];
    let pool_of = |name: &str, strategy, affinity, number: u8| {
        pool(name, strategy, affinity, &own(number).each_ref().map(String::as_str))
    };
    let mut down = pool_of("nobody", Strategy::Hash, Affinity::CallId, 6);
    down.backends.iter_mut().for_each(|backend| backend.is_up = false);
    down.backends[0].serves = Serves::Named;
    let mut draining = pool_of("to", Strategy::Hash, Affinity::To, 5);
    draining.backends[0].weight = 0;
    draining.backends[1].weight = 7;
    let mut maintained = pool_of("from", Strategy::Priority, Affinity::From, 4);
    maintained.backends[0].is_up = false;
    maintained.backends[0].serves = Serves::Nothing;
    let pools = vec![
        pool("first", Strategy::Hash, Affinity::Source, &BACKENDS),
        pool_of("registrars", Strategy::Hash, Affinity::Aor, 1),
        pool_of("domains", Strategy::RoundRobin, Affinity::CallId, 2),
        pool_of("options", Strategy::Random, Affinity::RuriUser, 3),
        maintained,
        draining,
        down,
        pool("ipv6", Strategy::Hash, Affinity::CallId, &BACKENDS_V6),
    ];
    // A machine without IPv6 towards its backends.
    let egress = EgressPorts { v4: Some(EGRESS_PORT), v6: None };
    World { tables: Tables::new(1, settings, pools, None), egress }
}

fn settings() -> Settings {
    let listener = |name: &str, bound: &str, side, advertised: Option<&str>| {
        let address = address(bound);
        let own = support::address(if address.is_ipv4() { LB } else { LB_V6 }).ip();
        let host = if address.ip().is_unspecified() { own } else { address.ip() };
        Listener {
            name: name.into(),
            transport: Transport::Udp,
            address,
            host,
            side,
            advertised: advertised.map(Into::into),
            proxies: Vec::new(),
        }
    };
    let mut settings = support::settings();
    settings.listeners = vec![
        listener("edge", LB, Side::Outside, Some(LB)),
        listener("edge6", LB_V6, Side::Outside, Some(LB_V6)),
        listener("any", "0.0.0.0:5070", Side::Outside, None),
        listener("any6", "[::]:5070", Side::Outside, None),
        listener("inside", INSIDE_LB, Side::Inside, None),
    ];
    let own = [LB_V6, INSIDE_LB, "192.0.2.100:5070", "[2001:db8::100]:5070"];
    settings.own.extend(own.map(|own| OwnName::Address(address(own))));
    settings
}

fn pool(name: &str, strategy: Strategy, affinity: Affinity, backends: &[&str]) -> PoolParts {
    let mut pool = support::pool(backends);
    for backend in pool.backends.iter_mut().filter(|backend| backend.address.is_ipv6()) {
        backend.via_host = "[2001:db8::100]".into();
    }
    PoolParts { name: name.into(), affinity, strategy, ..pool }
}

impl World {
    /// The backend at `address`.
    pub fn backend_at(&self, address: SocketAddr) -> Option<u16> {
        self.tables.backends.iter().position(|backend| backend.address == address).map(|index| index as u16)
    }

    /// The backend that what arrives so comes from: one that places calls from another port than its own is known by its host, if it
    /// is alone there.
    pub fn speaker(&self, arrival: &Arrival) -> Option<u16> {
        let host = |at: &SocketAddr| at.ip() == arrival.from.ip();
        let mut there = self.tables.backends.iter().map(|backend| backend.address).filter(host);
        let alone = there.next().filter(|_| there.next().is_none() && self.is_inside(arrival));
        self.backend_at(arrival.from).or_else(|| self.backend_at(alone?))
    }

    /// Whether what arrives so comes from inside.
    pub fn is_inside(&self, arrival: &Arrival) -> bool {
        let in_network = match arrival.from.ip() {
            IpAddr::V4(ip) => !self.tables.inside.is_empty() && ip.octets()[..2] == INSIDE_NET,
            IpAddr::V6(_) => false,
        };
        let faces_inside =
            arrival.listener.is_some_and(|index| &*self.tables.listeners[index as usize].name == "inside");
        self.backend_at(arrival.from).is_some() || in_network || faces_inside
    }

    /// Where a datagram from `from` can come in: `choice` picks one of the listeners of its address family, or the
    /// egress socket.
    pub fn arrival(&self, from: SocketAddr, choice: u8) -> Arrival {
        let listeners = self.tables.listeners.iter().enumerate();
        let mut doors: Vec<Option<u8>> = listeners
            .filter(|(_, listener)| listener.address.is_ipv4() == from.is_ipv4())
            .map(|(index, _)| Some(index as u8))
            .collect();
        doors.push(None);
        let listener = doors[choice as usize % doors.len()];
        // A wildcard listener tells the address that was sent to; the others have one.
        let is_wildcard =
            listener.is_some_and(|index| self.tables.listeners[index as usize].address.ip().is_unspecified());
        let own = if from.is_ipv4() { address(LB) } else { address(LB_V6) };
        Arrival { from, listener, local: is_wildcard.then(|| own.ip()), stream: None }
    }
}

/// What became of a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub kind: Kind,
    pub verdict: Verdict,
    /// The octets to be sent.
    pub sent: Vec<u8>,
}

/// A data path: the dispatcher of a shard in each world.
struct Path {
    dispatchers: Vec<Dispatcher>,
    head: Vec<u8>,
}

impl Path {
    fn new(scanner: Scanner) -> Path {
        let dispatchers = worlds().iter().map(|world| Dispatcher::new(scanner, world.egress)).collect();
        Path { dispatchers, head: vec![0; HEAD_MAX] }
    }

    /// What becomes of `octets`. The datagram lies in memory of just its size, so that reading past its end is seen.
    fn receive(&mut self, now_ms: u64, world: usize, octets: &[u8], arrival: Arrival) -> Outcome {
        assert!(octets.len() <= DATAGRAM_MAX);
        let mut input: Box<[u8]> = octets.into();
        let mut room = Room::new(&mut input, &mut self.head);
        let tables = &worlds()[world].tables;
        let kind = self.dispatchers[world].on_datagram(tables, now_ms, arrival, &mut room);
        let verdict = room.verdict;
        let mut sent = Vec::new();
        if !matches!(verdict, Verdict::Drop(_)) {
            sent = room.output().concat();
        }
        Outcome { kind, verdict, sent }
    }
}

/// Two paths that come to the same, and their clock.
struct Paths {
    best: Path,
    scalar: Path,
    now_ms: u64,
}

/// From one input to the next: longer than any path remembers anything, so that an input that fails does so alone.
const STEP_MS: u64 = 2 * RINGING_MS;
/// A million inputs take the clock far, and a shard's is good for 69 years.
const LAST_MS: u64 = 1_000_000 * STEP_MS;

impl Paths {
    fn new() -> Paths {
        let scalar = Scanner::named("scalar").expect("it runs everywhere");
        Paths { best: Path::new(Scanner::best()), scalar: Path::new(scalar), now_ms: 0 }
    }
}

thread_local!(static PATHS: RefCell<Paths> = RefCell::new(Paths::new()));

/// Begins with an input: time passes, and what was before is forgotten.
pub fn begin() {
    PATHS.with_borrow_mut(|paths| {
        paths.now_ms += STEP_MS;
        if paths.now_ms > LAST_MS {
            *paths = Paths::new();
        }
    });
}

/// What becomes of `octets` in the world of this number.
pub fn receive(world: usize, octets: &[u8], arrival: Arrival) -> Outcome {
    PATHS.with_borrow_mut(|paths| paths.best.receive(paths.now_ms, world, octets, arrival))
}

/// The same by another path, which scans octet by octet and whose room for what is written holds other rubbish. Pools
/// that are served in turn make the two differ unless both are asked about the same requests.
pub fn receive_slowly(world: usize, octets: &[u8], arrival: Arrival, rubbish: u8) -> Outcome {
    PATHS.with_borrow_mut(|paths| {
        let len = (octets.len() + 512).min(HEAD_MAX);
        paths.scalar.head[..len].fill(rubbish);
        paths.scalar.receive(paths.now_ms, world, octets, arrival)
    })
}
