//! Everything the data path decides by: immutable, built by the control plane, swapped whole.
//!
//! A shard reads it and never writes it. What changes per message lives in the shard: counters, and the call memory.

use crate::dataplane::counters::BackendCounters;
use crate::dataplane::keys::Keys;
use crate::dataplane::limits::FRAME_MAX;
use crate::dataplane::rewrite::via;
use crate::dataplane::route::table::{Contender, SlotTable};
use crate::dataplane::sip::start_line::Method;
use crate::dataplane::sip::uri::Scheme;
use crate::dataplane::transport::Transport;
use crate::dataplane::verdict::Sender;
use ahash::{AHashMap, AHashSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;

/// The inputs of the data path.
#[derive(Clone, Debug)]
pub struct Tables {
    /// Counts up with every swap.
    pub generation: u64,
    /// The listeners, in the order of configuration, which does not change while the process lives.
    pub listeners: Vec<Listener>,
    /// The backends of all pools. Slots and verdicts name them by index.
    pub backends: Vec<Backend>,
    /// Backends by the address they send from and are sent to.
    pub by_address: AHashMap<SocketAddr, u16>,
    /// Backends by host and transport, where one alone is there: what comes over a connection of its own comes from any port.
    pub by_host: AHashMap<(IpAddr, Transport), Option<u16>>,
    /// Backends by their id, which is what dialogs know them by.
    pub by_id: AHashMap<u32, u16>,
    /// Where backends are that are spoken to by TLS: see [`Tables::speaks_tls`].
    pub sealed: AHashSet<SocketAddr>,
    /// The pools.
    pub pools: Vec<Pool>,
    /// Which pool takes what; the first rule that matches wins. Without a match, the first pool.
    pub rules: Vec<Rule>,
    /// Networks whose hosts count as inside, beside the backends themselves.
    pub inside: Vec<Network>,
    /// Every name and address that means us.
    pub own: Vec<OwnName>,
    /// The fleet's keys.
    pub keys: Keys,
    /// Choices that are the operator's.
    pub policy: Policy,
    /// Octets of the longest request that goes to any backend in a datagram: the least of [`Reach::datagram_max`].
    pub datagram_max: u32,
    /// Whether a backend has a limit of INVITEs that ring: [`Backend::max_open`].
    pub can_be_full: bool,
    /// Set while the process finishes: OPTIONS to us are answered 503, so that peers move on.
    pub draining: bool,
    /// The call that somebody follows, if anybody does. Nothing is decided by it.
    pub trace: Option<Trace>,
    /// Who gets copies of messages, if anybody does. Nothing is decided by it.
    pub capture: Option<Capture>,
}

/// A collector that gets copies of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capture {
    /// Where it takes HEP by UDP.
    pub to: SocketAddr,
    /// What it knows this node by.
    pub node: u32,
    /// Of a hundred calls, how many are copied.
    pub share: u32,
}

/// A call that somebody follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Tells it from those before.
    pub number: u64,
    /// Its Call-ID.
    pub call_id: Box<[u8]>,
}

/// A direction. It is decided by where a message comes from, never by its hash: the same Call-ID comes back from the
/// backend's side, and hashing it would loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The backends and those who may send through us to anywhere.
    Inside,
    /// Everybody else. Requests from here never choose a next hop that is not a backend.
    Outside,
}

/// An address we receive on.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Its name in configuration, metrics and rules.
    pub name: Box<str>,
    /// How messages come to it.
    pub transport: Transport,
    /// What it is bound to; may be a wildcard address.
    pub address: SocketAddr,
    /// The address of ours that stands in what we write when it is bound to a wildcard and no message has told another.
    pub host: IpAddr,
    /// Who is on the other side.
    pub side: Side,
    /// `host:port` under which the world reaches it: what we write into a Via that leaves through it. A wildcard
    /// listener without a configured name has none, and the address a message came to stands in.
    pub advertised: Option<Box<str>>,
    /// Networks whose connections begin with a PROXY header, which says who the client is.
    pub proxies: Vec<Network>,
}

/// A server we send to.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Its name in configuration and metrics; what its identity is made of.
    pub name: Box<str>,
    /// A digest of the name: the same on every node and in all generations.
    pub id: u32,
    /// Index of its pool.
    pub pool: u16,
    /// Where it is.
    pub address: SocketAddr,
    /// Share of new keys relative to the others of its pool.
    pub weight: u32,
    /// Lower comes first, for [`Strategy::Priority`].
    pub priority: u32,
    /// Whether it takes new keys. With a weight of zero it takes none all the same.
    pub is_up: bool,
    /// What it gets beside new keys.
    pub serves: Serves,
    /// How many INVITEs may ring there at a time, for each shard; 0: any number.
    pub max_open: u32,
    /// The host, in Via form, that it can answer us at: the local address towards it, or what the operator says.
    pub via_host: Box<str>,
    /// How messages get to it.
    pub reach: Reach,
    /// Which socket or connection they leave by. It is kept, and not worked out for each message, since it is copied as a whole: such a copy
    /// waits where a part has just been written.
    pub way: Sender,
    /// How our Via towards it begins, up to the port: the same for every request, so it is put together once.
    pub via_start: Box<str>,
    /// The port that follows: of the listener where it can open a connection to us. `None`: the shard's own.
    pub via_port: Option<u16>,
    /// What was sent to it and received from it, over all shards and generations.
    pub counters: Arc<BackendCounters>,
}

/// How messages get to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The transport.
    pub transport: Transport,
    /// Octets of the longest message that it takes over a stream. What is longer would make it close a connection that
    /// carries everybody's calls.
    pub message_max: u32,
    /// Octets of the longest request that goes to it in a datagram (RFC 3261 18.1.1); longer ones go over TCP.
    pub datagram_max: u32,
    /// The PROXY header in front of each connection. With one, each client has a connection of its own, which it names.
    pub proxy_header: Option<ProxyHeader>,
    /// Whether octets that mean nothing may follow a request in a datagram, so that it goes with others (RFC 3261 18.3).
    pub pads: bool,
}

impl Default for Reach {
    /// Datagrams, however long.
    fn default() -> Reach {
        Reach {
            transport: Transport::Udp,
            message_max: FRAME_MAX as u32,
            datagram_max: u32::MAX,
            proxy_header: None,
            pads: false,
        }
    }
}

/// How a connection says whom it is for: in which version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyHeader {
    /// A line of text.
    V1,
    /// Octets.
    V2,
}

/// What a backend gets beside new keys, which [`Backend::is_up`] decides about: the less, the further down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Serves {
    /// All that belongs to it: its dialogs, calls that were remembered for it, and what names it.
    Calls,
    /// What names it by its address, since nobody else could take that. It does not answer.
    Named,
    /// Nothing: it is in maintenance.
    Nothing,
}

impl Backend {
    fn new(parts: BackendParts, digest: u64, pool: u16, listeners: &[Listener]) -> Backend {
        let is_stream = parts.reach.transport.is_stream();
        Backend {
            id: Backend::id_of(digest),
            pool,
            via_start: format!("{}{}:", via::start(parts.reach.transport), parts.via_host).into(),
            via_port: is_stream
                .then(|| port_towards(listeners, parts.reach.transport, parts.address.is_ipv4()))
                .flatten(),
            name: parts.name,
            address: parts.address,
            weight: parts.weight,
            priority: parts.priority,
            is_up: parts.is_up,
            serves: parts.serves,
            max_open: parts.max_open,
            via_host: parts.via_host,
            reach: parts.reach,
            way: if is_stream { Sender::Connect { listener: None } } else { Sender::Egress },
            counters: parts.counters,
        }
    }

    /// The id of the backend whose name has this digest ([`Keys::backend`]). Half of it: tokens are to be short, and the
    /// control plane refuses two backends of one id.
    pub const fn id_of(digest: u64) -> u32 {
        digest as u32
    }
}

/// Backends that are interchangeable for new calls.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Its name in configuration and metrics.
    pub name: Box<str>,
    /// A digest of it: what pools served in turn are told apart by, and their keys in the call memory.
    pub digest: u64,
    /// Which octets make a call sticky.
    pub affinity: Affinity,
    /// How a backend is found for them.
    pub strategy: Strategy,
    /// Indexes of its backends, in whatever state.
    pub members: Range<usize>,
    /// Slot to backend, over the backends that take new keys.
    pub table: Arc<SlotTable>,
    /// Indexes of the backends that take new keys, ordered by priority and then by name.
    pub up: Vec<u16>,
    /// What the table was made of.
    contenders: Vec<Contender>,
}

/// The key of a pool: what of a request chooses its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// The address of record: To for REGISTER, the Request-URI for all else. For registrars that share nothing.
    Aor,
    /// The Call-ID (RFC 3261 20.8).
    CallId,
    /// User and host of the From URI.
    From,
    /// The user part of the Request-URI.
    RuriUser,
    /// The source address.
    Source,
    /// User and host of the To URI.
    To,
}

/// How a pool finds a backend for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// By the table: the same key, the same backend, on every node.
    Hash,
    /// The first that is up, by priority.
    Priority,
    /// By a hash of the transaction: every new transaction anywhere, its retransmissions, CANCEL and ACK with it.
    Random,
    /// In turn for each new key; the call memory keeps a key where it went first.
    RoundRobin,
}

/// A condition on requests and the pool they go to.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its name in configuration and explanations.
    pub name: Box<str>,
    /// Methods, if it asks for them. Methods we do not know are all [`Method::Other`].
    pub methods: Option<Vec<Method>>,
    /// Hosts of the Request-URI, lower-case, if it asks for them; `*.example.net` stands for all names below.
    pub domains: Option<Vec<Box<str>>>,
    /// Indexes of listeners, if it asks for them.
    pub listeners: Option<Vec<u8>>,
    /// Index of the pool.
    pub pool: u16,
}

/// An IP network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Any address of it.
    pub address: IpAddr,
    /// Length of its prefix in bits.
    pub prefix: u8,
}

impl Network {
    /// Whether `address` is in the network.
    pub fn has(&self, address: IpAddr) -> bool {
        let (ours, theirs, bits) = match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => (u128::from(ours.to_bits()), u128::from(theirs.to_bits()), 32),
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => (ours.to_bits(), theirs.to_bits(), 128),
            _ => return false,
        };
        let shift = bits - u32::from(self.prefix).min(bits);
        // A prefix of no bits leaves nothing to compare: everything is shifted out.
        ours.checked_shr(shift).unwrap_or(0) == theirs.checked_shr(shift).unwrap_or(0)
    }
}

/// A host and port that mean us (RFC 3261 16.4, 19.1.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnName {
    /// An address, and the port.
    Address(SocketAddr),
    /// A name, lower-case, and the port.
    Name(Box<str>, u16),
}

/// What to do with a request from outside that asks for a next hop of its own choice: a Route that is neither ours nor a
/// backend's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignRoute {
    /// Route as if it were not there; the backend sees it.
    Ignore,
    /// Answer 403.
    Refuse,
}

/// Which registrations from outside get a Path of ours (RFC 3327), so that requests to the client come through us, down
/// the flow it registered on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathPolicy {
    /// All.
    Always,
    /// None.
    Off,
    /// Those whose client says `Supported: path` (5.2).
    Supported,
}

/// Choices that are the operator's.
#[derive(Clone, Debug)]
pub struct Policy {
    /// See [`ForeignRoute`].
    pub foreign_route: ForeignRoute,
    /// Whether requests that begin a dialog get a Record-Route of ours, so that all of the dialog comes through us and
    /// finds its backend whatever becomes of the table (RFC 3261 16.6 item 4).
    pub record_route: bool,
    /// See [`PathPolicy`].
    pub path: PathPolicy,
    /// Schemes a Request-URI may have (RFC 3261 16.3 item 2): what the cluster understands.
    pub schemes: Vec<Scheme>,
    /// Option tags of Proxy-Require that are passed on (16.3 item 5), lower-case.
    pub proxy_require: Vec<Box<str>>,
    /// Seconds between keep-alives on connections that are asked of who offers them (RFC 6223): less than a connection may be
    /// silent.
    pub stream_keep_s: u32,
}

/// What [`Policy::stream_keep_s`] is where connections may be silent for longer: the most that RFC 5626 4.4.1 has.
pub const STREAM_KEEP_S: u32 = 120;

/// The port at which a backend of this transport and address family opens a connection to us when ours is gone (RFC 3261
/// 18.2.2).
fn port_towards(listeners: &[Listener], transport: Transport, is_ipv4: bool) -> Option<u16> {
    let fits = |one: &&Listener| one.transport == transport && one.address.is_ipv4() == is_ipv4;
    let inside = listeners.iter().filter(fits).find(|one| one.side == Side::Inside);
    inside.or_else(|| listeners.iter().find(fits)).map(|one| one.address.port())
}

/// What a pool is made of.
#[derive(Clone, Debug)]
pub struct PoolParts {
    /// See [`Pool::name`].
    pub name: Box<str>,
    /// See [`Pool::affinity`].
    pub affinity: Affinity,
    /// See [`Pool::strategy`].
    pub strategy: Strategy,
    /// Its backends. Ids and indexes are given by [`Tables::new`].
    pub backends: Vec<BackendParts>,
}

/// What a backend is made of.
#[derive(Clone, Debug)]
pub struct BackendParts {
    /// See [`Backend::name`].
    pub name: Box<str>,
    /// See [`Backend::address`].
    pub address: SocketAddr,
    /// See [`Backend::weight`].
    pub weight: u32,
    /// See [`Backend::priority`].
    pub priority: u32,
    /// See [`Backend::is_up`].
    pub is_up: bool,
    /// See [`Backend::serves`].
    pub serves: Serves,
    /// See [`Backend::max_open`].
    pub max_open: u32,
    /// See [`Backend::via_host`].
    pub via_host: Box<str>,
    /// See [`Backend::reach`].
    pub reach: Reach,
    /// See [`Backend::counters`].
    pub counters: Arc<BackendCounters>,
}

/// Everything tables are made of but the pools.
#[derive(Clone, Debug)]
pub struct Settings {
    /// See [`Tables::listeners`].
    pub listeners: Vec<Listener>,
    /// See [`Tables::rules`].
    pub rules: Vec<Rule>,
    /// See [`Tables::inside`].
    pub inside: Vec<Network>,
    /// See [`Tables::own`].
    pub own: Vec<OwnName>,
    /// See [`Tables::keys`].
    pub keys: Keys,
    /// See [`Tables::policy`].
    pub policy: Policy,
    /// See [`Tables::draining`].
    pub draining: bool,
}

impl Tables {
    /// Works out tables of their parts. The slot table of a pool whose contenders are those of `previous` is taken over, one that
    /// differs in a few is worked out of it: [`SlotTable::changed`]; any other takes about 2 ns per slot and contender.
    ///
    /// At most [`BACKENDS_MAX`](crate::dataplane::limits::BACKENDS_MAX) backends: the control plane refuses more.
    pub fn new(generation: u64, settings: Settings, parts: Vec<PoolParts>, previous: Option<&Tables>) -> Tables {
        let Settings { listeners, rules, inside, own, keys, policy, draining } = settings;
        let (mut backends, mut pools) = (Vec::<Backend>::new(), Vec::new());
        let (mut datagram_max, mut can_be_full) = (u32::MAX, false);
        let (mut by_address, mut by_host, mut by_id) =
            (AHashMap::new(), AHashMap::<_, Option<u16>>::new(), AHashMap::new());
        let mut sealed = AHashSet::new();
        for (pool, part) in parts.into_iter().enumerate() {
            let (mut contenders, mut up) = (Vec::new(), Vec::new());
            let first = backends.len();
            let PoolParts { name, affinity, strategy, backends: its } = part;
            for backend in its {
                let (index, digest) = (backends.len() as u16, keys.backend(&backend.name));
                let backend = Backend::new(backend, digest, pool as u16, &listeners);
                if backend.is_up && backend.weight > 0 {
                    contenders.push(Contender { index, digest, weight: backend.weight });
                    up.push(index);
                }
                // A server that stands in two pools is one: what means it goes there while it serves in one of them.
                let serves_as_well = |other: &u16| backend.serves <= backends[*other as usize].serves;
                if by_address.get(&backend.address).is_none_or(serves_as_well) {
                    by_address.insert(backend.address, index);
                }
                if by_id.get(&backend.id).is_none_or(serves_as_well) {
                    by_id.insert(backend.id, index);
                }
                let host = (backend.address.ip(), backend.reach.transport);
                let is_here = |other: &u16| backends[*other as usize].address == backend.address;
                by_host.entry(host).and_modify(|one| *one = one.filter(is_here)).or_insert(Some(index));
                if backend.reach.transport.is_tls() {
                    sealed.insert(backend.address);
                }
                datagram_max = datagram_max.min(backend.reach.datagram_max);
                can_be_full |= backend.max_open != 0;
                backends.push(backend);
            }
            up.sort_by(|&a, &b| {
                let key = |index: u16| (backends[index as usize].priority, &backends[index as usize].name);
                key(a).cmp(&key(b))
            });
            let table = match previous.and_then(|tables| tables.pools.iter().find(|old| old.name == name)) {
                Some(old) if old.contenders == contenders => old.table.clone(),
                Some(old) => Arc::new(old.table.changed(&old.contenders, &contenders)),
                None => Arc::new(SlotTable::build(&contenders)),
            };
            let members = first..backends.len();
            let digest = keys.route(name.as_bytes());
            pools.push(Pool { name, digest, affinity, strategy, members, table, up, contenders });
        }
        Tables {
            generation,
            listeners,
            backends,
            by_address,
            by_host,
            by_id,
            sealed,
            pools,
            rules,
            inside,
            own,
            keys,
            policy,
            datagram_max,
            can_be_full,
            draining,
            trace: None,
            capture: None,
        }
    }

    /// Whether somebody wants to know of single messages that went well.
    #[inline(always)]
    pub fn are_watched(&self) -> bool {
        self.trace.is_some() || self.capture.is_some()
    }

    /// Whether `host:port` means us. `host` may be in any case; an address counts however it is written.
    pub fn is_own(&self, host: &[u8], port: u16) -> bool {
        let address = crate::dataplane::sip::uri::address(host);
        self.own.iter().any(|own| match own {
            OwnName::Address(own) => own.port() == port && address == Some(own.ip().to_canonical()),
            OwnName::Name(name, own_port) => *own_port == port && name.as_bytes().eq_ignore_ascii_case(host),
        })
    }

    /// The transport of listener `index`; UDP if there is no such listener.
    pub fn transport(&self, index: u8) -> Transport {
        self.listeners.get(index as usize).map_or(Transport::Udp, |listener| listener.transport)
    }

    /// Whether connections to the backend at `address` are sealed by TLS. Where one of several there is to be spoken to so, all
    /// are: they share a connection. `None`: no backend is there.
    pub fn speaks_tls(&self, address: SocketAddr) -> Option<bool> {
        self.by_address.contains_key(&address).then(|| self.sealed.contains(&address))
    }

    /// Whether `address` is one of ours.
    pub fn is_own_address(&self, address: SocketAddr) -> bool {
        self.own.contains(&OwnName::Address(address))
    }

    /// Whether a backend is at this host, whatever it speaks.
    pub fn has_backend_at(&self, host: IpAddr) -> bool {
        [Transport::Udp, Transport::Tcp, Transport::Tls].into_iter().any(|by| self.by_host.contains_key(&(host, by)))
    }

    /// The backend that speaks from `source` by `transport`: the one at that address, or the only one of that host and transport.
    pub fn speaker(&self, source: SocketAddr, transport: Transport) -> Option<u16> {
        let by_host = || self.by_host.get(&(source.ip(), transport)).copied().flatten();
        self.by_address.get(&source).copied().or_else(by_host)
    }

    /// Whether a message that came from `source` comes from inside.
    #[inline(always)]
    pub fn is_inside(&self, source: SocketAddr) -> bool {
        self.by_address.contains_key(&source) || self.inside.iter().any(|network| network.has(source.ip()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_their_addresses_and_no_others() {
        let network = |text: &str, prefix| Network { address: text.parse().unwrap(), prefix };
        let has = |network: Network, text: &str| network.has(text.parse().unwrap());
        assert!(has(network("10.1.0.0", 16), "10.1.255.1"));
        assert!(!has(network("10.1.0.0", 16), "10.2.0.1"));
        assert!(has(network("0.0.0.0", 0), "192.0.2.1"));
        assert!(!has(network("0.0.0.0", 0), "::1"));
        assert!(has(network("192.0.2.7", 32), "192.0.2.7"));
        assert!(!has(network("192.0.2.7", 32), "192.0.2.6"));
        assert!(has(network("2001:db8::", 32), "2001:db8:1::1"));
        assert!(has(network("::", 0), "2001:db8:1::1"));
        assert!(!has(network("::", 0), "10.0.0.1"));
    }
}
