//! The connections of a shard: those that clients opened to its listeners, and its own to backends.
//!
//! ```text
//! accepted ──┬─► (Handshaking) ──┐                        ┌── idle · slow · bad frame · reset · unread · tls
//!            │          │        ├─► Open ◄──► HalfClosed ──► (ended, counted) ◄── Closing
//! opened ── Connecting ─┴────────┘
//!            └──────────┴─► failed: again after a while, and what waited for it comes back as unsent
//! ```
//!
//! Descriptors of the same epoll set that the sockets for datagrams are in: see `docs/decisions/0004-streams-in-the-same-epoll.md`.
//! What comes in and what is done with it is in `turn`; here is who may have a connection, and what becomes of one.
//!
//! # What is bounded
//!
//! Connections, in all and of one source; octets held for one and for all; how long a message may take from its first octet
//! to its last, how long the other side may take to read, how long nothing may happen. Whoever passes a bound loses this
//! connection, and nobody else loses anything: of a backend's connection only the message is refused that does not fit. What is
//! held for all is nobody's doing alone: beyond that bound no connection is accepted and none ends, and of messages those are
//! refused that the kernel does not take at once.

pub mod connection;
mod handshake;
mod list;
mod prelude;
pub mod proxied;
mod turn;
mod turn_websocket;
pub mod websocket;
mod wire;

use crate::dataplane::counters::{Ended, Handshake, StreamCounters, Tally};
use crate::dataplane::limits::FRAME_MAX;
use crate::dataplane::tables::Tables;
use crate::dataplane::transport::{StreamId, Transport};
use crate::dataplane::verdict::{DropReason, Sender};
use crate::link::{Handed, HandshakeFailed, Mesh};
use crate::shard::outbox::Fates;
use crate::sys::poll::Poller;
use crate::sys::tcp;
use crate::tls::Credentials;
use arc_swap::ArcSwap;
use connection::{Connection, Origin, State, Unsent};
use handshake::handshakes;
use proxied::{Client, Proxied};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;
use websocket::{Origins, WebSocket};
use wire::Wire;

/// Octets held for all connections of a shard: 64 MiB, as much as 64 whose other side reads nothing may have. Beyond it a connection
/// that has nothing to send still gets one message, which is held only if the kernel has no room for it.
const HELD_MAX: usize = 64 << 20;

/// Octets read at a time: a burst of some fifty messages. More waits in the kernel, so that nobody keeps the shard to
/// himself.
const READ: usize = 64 << 10;

/// Connections accepted in one turn of a listener, for the same reason.
const ACCEPTS: usize = 64;

/// How long accepting pauses when no descriptor is left, in milliseconds.
const PAUSE_MS: u64 = 1000;

/// How long an accepted connection may take to its first whole message, in milliseconds: 64*T1.
const FIRST_MS: u64 = 32_000;

/// How long what follows a refusal is read and thrown away, in milliseconds: a round trip, generously.
const CLOSING_MS: u64 = 1000;

/// How long answers are waited for on a connection whose other side has closed its half, in milliseconds: 64*T1, the
/// longest a transaction waits.
const HALF_CLOSED_MS: u64 = 32_000;

/// After how long of silence a connection of ours is asked whether it is alive, in milliseconds: half of the 120 s after
/// which Kamailio closes a silent one, and RFC 5626 4.4.1 asks a client.
const KEEP_ALIVE_MS: u64 = 60_000;

/// How often deadlines are looked at, in milliseconds: a bound may be passed by as much.
const SWEEP_MS: u64 = 500;

/// After the first failure to connect the next attempt is made at once; then it waits as long, and twice as long each time.
const BACK_OFF_MS: u64 = 100;
/// At most so long.
const BACK_OFF_MAX_MS: u64 = 5000;

/// What connections are allowed.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// Connections of this shard.
    pub connections: usize,
    /// Of these, from one IPv4 address, or from one /64 of IPv6.
    pub per_source: u32,
    /// How long nothing may be sent and received, in milliseconds.
    pub idle_ms: u64,
    /// How long a message may take from its first octet to its last, and how long the other side may take to read
    /// anything of what it is sent, in milliseconds.
    pub frame_ms: u64,
    /// How long a connection may take to be opened, in milliseconds.
    pub connect_ms: u64,
    /// TLS handshakes under way on accepted connections of this shard.
    pub handshakes: usize,
    /// How long a handshake may take, in milliseconds.
    pub handshake_ms: u64,
    /// Connections of this shard to backends that are for one client each.
    pub proxied: usize,
    /// How long no message may go or come on one of these, in milliseconds.
    pub proxied_idle_ms: u64,
    /// The address to connect from, if it is not for the kernel to choose.
    pub egress_v4: Option<Ipv4Addr>,
    /// Likewise for IPv6.
    pub egress_v6: Option<Ipv6Addr>,
}

impl Default for StreamLimits {
    fn default() -> StreamLimits {
        StreamLimits {
            connections: 10_000,
            per_source: 1000,
            idle_ms: 3_600_000,
            frame_ms: 5000,
            connect_ms: 2000,
            handshakes: 500,
            handshake_ms: 5000,
            proxied: 10_000,
            proxied_idle_ms: 300_000,
            egress_v4: None,
            egress_v6: None,
        }
    }
}

/// A listener for streams.
#[derive(Debug)]
pub struct Listening {
    /// Its index among all listeners.
    pub index: u8,
    /// How its connections are spoken on.
    pub transport: Transport,
    /// The pages that may open WebSockets to it.
    pub origins: Arc<Origins>,
    /// The socket.
    pub socket: TcpListener,
    /// Whether connections tell the local address: it is bound to a wildcard.
    pub tells_local: bool,
}

/// Somebody we connect to.
#[derive(Debug, Default)]
struct Target {
    slot: Option<usize>,
    /// Attempts that have failed since the last that has not.
    failures: u32,
    /// No attempt before this.
    not_before_ms: u64,
}

/// What a request could not be delivered for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The client's connection is gone: 430 (RFC 5626 5.3.1).
    FlowGone,
    /// There is no way to the server: 503 (RFC 3261 16.9).
    Unreachable,
}

/// A request that could not be delivered.
#[derive(Debug)]
pub struct Undelivered {
    /// The request as it was to be sent.
    pub octets: Box<[u8]>,
    /// Where to.
    pub to: SocketAddr,
    /// The backend, if it was to go to one.
    pub backend: Option<u16>,
    /// Why not.
    pub why: Why,
    /// Whether no connection could be opened at all.
    pub was_connecting: bool,
}

/// The connections.
#[derive(Debug)]
pub struct Streams {
    shard: usize,
    limits: StreamLimits,
    poller: Poller,
    /// The number under which the first listener becomes ready; behind the listeners come the slots.
    first: u32,
    listeners: Vec<Listening>,
    slots: Vec<Option<Box<Connection>>>,
    free: Vec<usize>,
    open: usize,
    /// What connections begin TLS with.
    credentials: Arc<ArcSwap<Credentials>>,
    /// Accepted connections whose handshake is under way.
    handshaking: usize,
    /// Those of them that have something to say, by slot and generation, in the order in which they came.
    line: VecDeque<(usize, u32)>,
    /// Whether one of these is being dealt with.
    is_at_step: bool,
    /// When the next may be, if there is something else to do.
    step_after: Option<Instant>,
    /// Handshakes that failed and were not told of yet.
    failures: Vec<HandshakeFailed>,
    by_source: HashMap<IpAddr, u32>,
    by_target: HashMap<SocketAddr, Target>,
    /// Connections to backends that are for one client each.
    proxied: Proxied,
    /// Given to the next connection.
    generation: u32,
    /// Slots of connections that have something to send.
    dirty: Vec<usize>,
    undelivered: Vec<Undelivered>,
    /// Octets held for all connections, as of the last sweep, and what came since.
    held: usize,
    swept_ms: u64,
    /// Until when accepting pauses.
    paused_until_ms: Option<u64>,
    /// Room to read into.
    room: Vec<u8>,
}

impl Streams {
    /// The connections of shard number `shard`, which become ready in the set of `poller`, from number `first` on. Those with
    /// TLS begin with what `credentials` holds at that moment.
    ///
    /// # Errors
    /// The kernel has no room for another descriptor.
    pub fn new(
        shard: usize,
        poller: Poller,
        first: u32,
        listeners: Vec<Listening>,
        limits: StreamLimits,
        credentials: Arc<ArcSwap<Credentials>>,
    ) -> io::Result<Streams> {
        for (place, listener) in listeners.iter().enumerate() {
            poller.add(listener.socket.as_raw_fd(), first + place as u32)?;
        }
        // A token that has outlived this process names no connection of the next, but by a chance of one in 2^32.
        let generation = RandomState::new().build_hasher().finish() as u32;
        Ok(Streams {
            shard,
            limits,
            poller,
            first,
            listeners,
            slots: Vec::new(),
            free: Vec::new(),
            open: 0,
            credentials,
            handshaking: 0,
            line: VecDeque::new(),
            is_at_step: false,
            step_after: None,
            failures: Vec::new(),
            by_source: HashMap::new(),
            by_target: HashMap::new(),
            proxied: Proxied::default(),
            generation,
            dirty: Vec::new(),
            undelivered: Vec::new(),
            held: 0,
            swept_ms: 0,
            paused_until_ms: None,
            room: Vec::new(),
        })
    }

    /// Whether something has to be looked at though nothing comes: connections have deadlines.
    pub fn has_deadlines(&self) -> bool {
        self.open > 0 || self.paused_until_ms.is_some()
    }

    /// Whether there is nothing to do unless something comes.
    fn is_at_rest(&self) -> bool {
        !self.has_deadlines() && self.dirty.is_empty() && self.undelivered.is_empty()
    }

    fn number_of(&self, slot: usize) -> u32 {
        self.first + self.listeners.len() as u32 + slot as u32
    }

    fn connection(&mut self, slot: usize) -> Option<&mut Connection> {
        self.slots.get_mut(slot)?.as_deref_mut()
    }

    /// Notes that something has come on the connection in `slot`.
    fn touch(&mut self, slot: usize, now_ms: u64) {
        if let Some(connection) = self.connection(slot) {
            connection.active_ms = now_ms;
        }
    }

    /// The id of the connection in `slot`.
    fn id_of(&self, slot: usize) -> Option<StreamId> {
        StreamId::new(self.shard, slot, self.slots.get(slot)?.as_ref()?.generation)
    }

    /// Takes connections that wait at listener number `place` of this list.
    fn accept(&mut self, place: usize, now_ms: u64, tables: &Tables, counters: &StreamCounters) {
        for _ in 0..ACCEPTS {
            let Some(listener) = self.listeners.get(place) else { return };
            let (index, tells_local, transport) = (listener.index, listener.tells_local, listener.transport);
            let origins = listener.origins.clone();
            let (socket, peer) = match tcp::accept(&listener.socket) {
                Ok(Some(taken)) => taken,
                Ok(None) => return,
                Err(_) => return self.pause(now_ms, counters),
            };
            counters.accepted.add(1);
            // Who comes by a proxy is known when the proxy has said it.
            let listens = tables.listeners.get(index as usize);
            let is_proxied = listens.is_some_and(|one| one.proxies.iter().any(|network| network.has(peer.ip())));
            let source = (!is_proxied).then(|| source_of(peer.ip()));
            let wire = self.admit(source).and_then(|()| self.wire_of(socket, index, transport, peer, counters));
            let taken = wire.and_then(|wire| {
                let generation = self.next_generation();
                let mut connection = Connection::new(wire, peer, Some(index), Origin::Accepted, generation, now_ms);
                connection.websocket = transport.is_websocket().then(|| Box::new(WebSocket::new(origins.clone())));
                if tells_local {
                    connection.local = connection.wire.socket().local_addr().ok().map(|address| address.ip());
                }
                connection.source = source;
                connection.prelude = is_proxied.then(Box::default);
                self.insert(connection).map_err(|_| Ended::Limit)
            });
            match taken {
                Ok(_) => self.count(source),
                Err(ended) => counters.ended[ended as usize].add(1),
            }
        }
    }

    /// Counts a connection with those of its source.
    fn count(&mut self, source: Option<IpAddr>) {
        source.into_iter().for_each(|source| *self.by_source.entry(source).or_default() += 1);
    }

    /// Whether there is room for a connection from `source`.
    fn admit(&self, source: Option<IpAddr>) -> Result<(), Ended> {
        let of_source = source.and_then(|source| self.by_source.get(&source).copied()).unwrap_or_default();
        match () {
            () if self.open_beside_proxied() >= self.limits.connections || self.held >= HELD_MAX => Err(Ended::Limit),
            () if of_source >= self.limits.per_source => Err(Ended::SourceLimit),
            () => Ok(()),
        }
    }

    /// Connections that count against what there may be: those that are for one client have a bound of their own.
    fn open_beside_proxied(&self) -> usize {
        self.open - self.proxied.count()
    }

    /// Accepts nothing for a while: each attempt would fail for want of a descriptor, and the listener stays ready.
    fn pause(&mut self, now_ms: u64, counters: &StreamCounters) {
        counters.pauses.add(1);
        self.paused_until_ms = Some(now_ms + PAUSE_MS);
        self.listen(false);
    }

    fn listen(&mut self, wanted: bool) {
        for (place, listener) in self.listeners.iter().enumerate() {
            // It can fail only for a descriptor that is not in the set.
            self.poller.set_interest(listener.socket.as_raw_fd(), self.first + place as u32, wanted, false).ok();
        }
    }

    fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1).max(1);
        self.generation
    }

    fn insert(&mut self, connection: Connection) -> io::Result<usize> {
        let slot = self.free.pop().unwrap_or(self.slots.len());
        if slot == self.slots.len() {
            self.slots.push(None);
        }
        let number = self.number_of(slot);
        let fd = connection.wire.socket().as_raw_fd();
        let is_connecting = connection.state == State::Connecting;
        let added = self.poller.add(fd, number);
        let added = added.and_then(|()| self.poller.set_interest(fd, number, true, is_connecting));
        if let Err(error) = added {
            self.free.push(slot);
            return Err(error);
        }
        let is_handshaking = connection.state == State::Handshaking;
        self.handshaking += usize::from(is_handshaking);
        self.slots[slot] = Some(Box::new(connection));
        if let Some(connection) = self.slots[slot].as_deref_mut() {
            connection.wants_writable = is_connecting;
        }
        self.open += 1;
        Ok(slot)
    }

    /// Ends a connection. What it had not sent is lost, or comes back as undelivered.
    fn end(&mut self, slot: usize, ended: Ended, now_ms: u64, counters: &StreamCounters, fates: &mut impl Fates) {
        let Some(mut connection) = self.slots.get_mut(slot).and_then(Option::take) else { return };
        counters.ended[ended as usize].add(1);
        self.free.push(slot);
        self.part(&connection, slot, now_ms, counters);
        self.open -= 1;
        self.held = self.held.saturating_sub(connection.held());
        let was_handshaking = connection.state == State::Handshaking;
        // In TLS 1.3 we are through before a server has looked at who we are: until it has said something, nothing is known.
        let was_refused = ended == Ended::Tls && connection.origin == Origin::Opened && !connection.has_spoken;
        let has_failed = connection.state == State::Connecting || was_handshaking || was_refused;
        // That another client needed the place says nothing against the backend.
        let was_connecting = has_failed && ended != Ended::Displaced;
        if was_handshaking {
            self.handshaking -= usize::from(connection.origin == Origin::Accepted);
            if ended != Ended::Handshake {
                handshakes(connection.origin, counters)[Handshake::Closed as usize].add(1);
            }
        } else if !matches!(ended, Ended::Reset | Ended::Tls) {
            connection.wire.say_goodbye();
        }
        match connection.origin {
            Origin::Accepted => {
                if let Some(source) = connection.source
                    && let Some(count) = self.by_source.get_mut(&source)
                {
                    *count -= 1;
                    if *count == 0 {
                        self.by_source.remove(&source);
                    }
                }
            }
            Origin::Opened => self.lost(slot, connection.peer, was_connecting, connection.listener.is_some(), now_ms),
        }
        if was_connecting && connection.origin == Origin::Opened && connection.listener.is_none() {
            fates.refused(connection.peer);
        }
        for Unsent { octets, tally } in connection.give_up() {
            fates.waiting(-1);
            let Tally::Request(backend) = tally else {
                fates.lost(DropReason::ConnectionFailed);
                continue;
            };
            let why = if connection.listener.is_some() && connection.origin == Origin::Accepted {
                Why::FlowGone
            } else {
                Why::Unreachable
            };
            self.undelivered.push(Undelivered { octets, to: connection.peer, backend, why, was_connecting });
        }
    }

    /// The connection to `to` that was in `slot` is gone. `is_client`: it is no backend, and nothing is remembered of it.
    fn lost(&mut self, slot: usize, to: SocketAddr, was_connecting: bool, is_client: bool, now_ms: u64) {
        if is_client && !was_connecting {
            self.by_target.remove(&to);
            return;
        }
        let target = self.by_target.entry(to).or_default();
        target.slot = target.slot.filter(|&shared| shared != slot);
        // Attempts that were made together fail together, and count as one.
        if was_connecting && now_ms >= target.not_before_ms {
            let wait = BACK_OFF_MS << target.failures.min(10);
            target.failures += 1;
            target.not_before_ms = now_ms + wait.min(BACK_OFF_MAX_MS);
        }
    }

    /// Takes a message that is to leave by `from`, to whoever is at `to`: queues it at its connection, which is opened if
    /// it has to be, hands it to the shard that has the connection, or gives it up. With `client`, the connection to a
    /// backend is the client's own.
    #[expect(
        clippy::too_many_arguments,
        reason = "one caller for each way a message comes, which has them all at hand"
    )]
    pub fn send(
        &mut self,
        from: Sender,
        to: SocketAddr,
        parts: [&[u8]; 2],
        tally: Tally,
        client: Option<Client>,
        now_ms: u64,
        mesh: &mut Mesh,
        tables: &Tables,
        counters: &StreamCounters,
        fates: &mut impl Fates,
    ) {
        let slot = match from {
            Sender::Stream { id, .. } if mesh.leads_to(id.shard()) => {
                let handed = Handed::Message { from, to, octets: parts.concat().into(), tally };
                return match mesh.hand(id.shard(), handed) {
                    true => fates.handed_over(),
                    false => fates.lost(DropReason::HandoffFull),
                };
            }
            Sender::Stream { id, listener } => match (self.find(id, to), tally) {
                (Some(slot), _) => Ok(slot),
                // RFC 3261 18.2.2: where it cannot go down the connection it is to go down, a response goes down another.
                (None, Tally::Response(..)) if listener.is_some() => {
                    self.connect(to, listener, now_ms, tables, counters, fates).map_err(|()| Why::FlowGone)
                }
                _ => Err(Why::FlowGone),
            },
            Sender::Connect { listener } => {
                let slot = match client.filter(|_| listener.is_none()) {
                    Some(client) => self.connect_for(client, to, now_ms, tables, counters, fates),
                    None => self.connect(to, listener, now_ms, tables, counters, fates),
                };
                if slot.is_err() && listener.is_none() {
                    // A backend may not be tried again for longer than it is suspected, and others could have its requests.
                    fates.refused(to);
                }
                slot.map_err(|()| Why::Unreachable)
            }
            Sender::Egress | Sender::Listener { .. } => Err(Why::Unreachable),
        };
        let len = parts[0].len() + parts[1].len();
        let is_full = self.held + len > HELD_MAX;
        if let Ok(slot) = slot
            && is_full
        {
            // What was queued earlier in this turn does not wait for the kernel, only for the end of the turn.
            self.flush_one(slot, now_ms, counters, fates);
        }
        let held = slot.ok().and_then(|slot| Some((self.connection(slot)?, slot)));
        let why = match (held, slot) {
            (None, Err(why)) => why,
            (None, Ok(_)) => Why::FlowGone,
            (Some((connection, slot)), _) if !connection.has_room(len) || is_full && !connection.is_clear() => {
                // A client that does not read is closed, but none for what others hold. A backend's connection carries
                // everybody's calls.
                if connection.origin == Origin::Accepted && !connection.has_room(len) {
                    self.end(slot, Ended::Unread, now_ms, counters, fates);
                }
                match tally {
                    Tally::Request(_) => Why::Unreachable,
                    _ => return fates.lost(DropReason::SendBacklogFull),
                }
            }
            (Some((connection, slot)), _) => {
                connection.note_goes(parts[0], tally, now_ms);
                let before = connection.held();
                connection.push(parts, Some(tally));
                let grown = connection.held() - before;
                self.held += grown;
                fates.waiting(1);
                return self.note_dirty(slot);
            }
        };
        match tally {
            Tally::Request(backend) => {
                let octets = parts.concat().into();
                self.undelivered.push(Undelivered { octets, to, backend, why, was_connecting: true });
            }
            _ if why == Why::FlowGone => fates.lost(DropReason::FlowGone),
            _ => fates.lost(DropReason::ConnectionFailed),
        }
    }

    fn note_dirty(&mut self, slot: usize) {
        if let Some(connection) = self.connection(slot)
            && !connection.is_dirty
        {
            connection.is_dirty = true;
            self.dirty.push(slot);
        }
    }

    /// Messages that are still to be sent on connection `id` to `to`.
    fn queued(&mut self, id: StreamId, to: SocketAddr) -> usize {
        let slot = self.find(id, to);
        slot.and_then(|slot| self.connection(slot)).map_or(0, |connection| connection.queued())
    }

    /// The slot of connection `id`, if it is there and leads to the host of `to`. A token may be of a process that had more
    /// shards.
    fn find(&mut self, id: StreamId, to: SocketAddr) -> Option<usize> {
        if id.shard() != self.shard {
            return None;
        }
        let connection = self.connection(id.slot())?;
        let is_it = connection.generation == id.generation() && connection.peer.ip() == to.ip();
        (is_it && connection.state != State::Closing).then(|| id.slot())
    }

    /// The slot of a connection to `to`, which may still be being opened. For `listener`, if it is to no backend.
    fn connect(
        &mut self,
        to: SocketAddr,
        listener: Option<u8>,
        now_ms: u64,
        tables: &Tables,
        counters: &StreamCounters,
        fates: &mut impl Fates,
    ) -> Result<usize, ()> {
        if let Some(slot) = self.by_target.get(&to).and_then(|target| target.slot) {
            if !self.speaks_otherwise(slot, tables) {
                return Ok(slot);
            }
            self.end(slot, Ended::Closed, now_ms, counters, fates);
        }
        let target = self.by_target.entry(to).or_default();
        if now_ms < target.not_before_ms || listener.is_some_and(|index| self.only_accepts(index)) {
            // Who is at an address that a client gave, no certificate could tell; and nobody listens in a browser.
            return Err(());
        }
        let slot = self.open(to, listener, None, now_ms, tables, counters)?;
        self.by_target.entry(to).or_default().slot = Some(slot);
        Ok(slot)
    }

    /// Whether `tables`, which may have come after the last sweep, forbid that anything is sent on the connection in `slot`.
    fn speaks_otherwise(&self, slot: usize, tables: &Tables) -> bool {
        let connection = self.slots.get(slot).and_then(Option::as_deref);
        connection.is_some_and(|connection| connection.speaks_otherwise(tables))
    }

    /// Begins to open a connection to `to`: for `listener`, if it is to no backend; for `client` alone, if it is for one.
    fn open(
        &mut self,
        to: SocketAddr,
        listener: Option<u8>,
        client: Option<Client>,
        now_ms: u64,
        tables: &Tables,
        counters: &StreamCounters,
    ) -> Result<usize, ()> {
        counters.opened.add(1);
        let local = match to {
            SocketAddr::V4(_) => self.limits.egress_v4.map(IpAddr::V4),
            SocketAddr::V6(_) => self.limits.egress_v6.map(IpAddr::V6),
        };
        // Backends have a place of their own: clients that fill all there is must not cut the cluster off.
        let is_full = listener.is_some() && self.open_beside_proxied() >= self.limits.connections;
        let socket = if is_full { Err(io::ErrorKind::QuotaExceeded.into()) } else { tcp::connect(to, local) };
        let generation = self.next_generation();
        let inserted = socket.and_then(|socket| {
            let preface = client.map_or(Ok(Vec::new()), |client| client.header())?;
            let wire = Wire::new(socket, self.session_to(to, listener, tables)?).behind(preface);
            let connection = Connection::new(wire, to, listener, Origin::Opened, generation, now_ms);
            self.insert(connection.on_behalf_of(client, now_ms))
        });
        inserted.map_err(|_| {
            counters.ended[if is_full { Ended::Limit } else { Ended::ConnectFailed } as usize].add(1);
            self.lost(usize::MAX, to, true, listener.is_some(), now_ms);
        })
    }

    /// Sends what connections have to send, as far as their kernel takes it.
    fn flush(&mut self, now_ms: u64, counters: &StreamCounters, fates: &mut impl Fates) {
        while let Some(slot) = self.dirty.pop() {
            self.flush_one(slot, now_ms, counters, fates);
        }
    }

    fn flush_one(&mut self, slot: usize, now_ms: u64, counters: &StreamCounters, fates: &mut impl Fates) {
        let number = self.number_of(slot);
        let Some(connection) = self.slots.get_mut(slot).and_then(Option::as_deref_mut) else { return };
        connection.is_dirty = false;
        if connection.state == State::Connecting {
            return;
        }
        let before = connection.held();
        let flushed = connection.flush(now_ms, |tally| {
            fates.waiting(-1);
            fates.sent(tally);
        });
        self.held = (self.held + connection.held()).saturating_sub(before);
        let is_done = !connection.wants_write();
        let may_end = connection.state == State::HalfClosed && connection.unanswered == 0;
        let idle_ms = self.limits.proxied_idle_ms;
        let is_left = is_done && connection.is_over_for_client(now_ms, idle_ms) == Some(Ended::ClientGone);
        match flushed {
            Err(_) => return self.end(slot, Ended::Reset, now_ms, counters, fates),
            Ok(()) if is_done && may_end => return self.end(slot, Ended::Closed, now_ms, counters, fates),
            Ok(()) if is_left => return self.end(slot, Ended::ClientGone, now_ms, counters, fates),
            Ok(()) => {}
        }
        if is_done && connection.state == State::Closing {
            // The other side learns that nothing more will come; what it still says is read and thrown away.
            connection.wire.shut();
        }
        if connection.wants_writable == is_done {
            connection.wants_writable = !is_done;
            let readable = connection.state != State::HalfClosed && !connection.is_in_line;
            let fd = connection.wire.socket().as_raw_fd();
            self.poller.set_interest(fd, number, readable, !is_done).ok();
        }
    }

    /// Ends what has passed a deadline, asks silent connections of ours whether they are alive, and accepts again.
    fn sweep(&mut self, now_ms: u64, tables: &Tables, counters: &StreamCounters, fates: &mut impl Fates) {
        if now_ms.saturating_sub(self.swept_ms) < SWEEP_MS {
            return;
        }
        self.swept_ms = now_ms;
        if self.paused_until_ms.is_some_and(|until| now_ms >= until) {
            self.paused_until_ms = None;
            self.listen(true);
        }
        let limits = self.limits;
        self.held = 0;
        for slot in 0..self.slots.len() {
            let Some(connection) = self.connection(slot) else { continue };
            let for_ms = |since: u64| now_ms.saturating_sub(since);
            let in_state_ms = for_ms(connection.state_since_ms);
            let is_stuck = |since: Option<u64>| since.is_some_and(|since| for_ms(since) >= limits.frame_ms);
            let ended = match connection.state {
                State::Connecting => (in_state_ms >= limits.connect_ms).then_some(Ended::ConnectFailed),
                State::Handshaking => (in_state_ms >= limits.handshake_ms).then_some(Ended::Handshake),
                State::Closing => (in_state_ms >= CLOSING_MS).then_some(connection.closes_as),
                State::HalfClosed if in_state_ms >= HALF_CLOSED_MS => Some(Ended::Closed),
                _ if is_stuck(connection.stuck_since_ms) => Some(Ended::Unread),
                _ if is_stuck(connection.partial_since_ms) => Some(Ended::Slow),
                _ if !connection.has_spoken && connection.origin == Origin::Accepted && in_state_ms >= FIRST_MS => {
                    Some(Ended::Slow)
                }
                _ if for_ms(connection.active_ms) >= limits.idle_ms => Some(Ended::Idle),
                _ if connection.is_left_for(tables) && for_ms(connection.active_ms) >= limits.proxied_idle_ms => {
                    Some(Ended::Idle)
                }
                // A configuration read again may want it the other way.
                _ if connection.speaks_otherwise(tables) => Some(Ended::Closed),
                _ => connection.is_over_for_client(now_ms, limits.proxied_idle_ms),
            };
            match ended {
                Some(Ended::Handshake) => {
                    self.fail(slot, handshake::too_slow(), now_ms, counters, fates);
                    continue;
                }
                Some(ended) => {
                    self.end(slot, ended, now_ms, counters, fates);
                    continue;
                }
                None => {}
            }
            connection.rest();
            let is_silent = connection.origin == Origin::Opened
                && connection.state == State::Open
                && for_ms(connection.active_ms) >= KEEP_ALIVE_MS
                && !connection.is_left_for(tables);
            if is_silent {
                connection.push([b"\r\n\r\n", b""], None);
                connection.active_ms = now_ms;
            }
            let held = connection.held();
            self.held += held;
            if is_silent {
                self.note_dirty(slot);
            }
        }
        let is_over = |target: &Target| target.slot.is_none() && now_ms >= target.not_before_ms + BACK_OFF_MAX_MS;
        self.by_target.retain(|_, target| !is_over(target));
        counters.held_octets.set(self.held as u64);
    }

    /// Ends all connections.
    fn end_all(&mut self, now_ms: u64, counters: &StreamCounters, fates: &mut impl Fates) {
        for slot in 0..self.slots.len() {
            self.end(slot, Ended::Stopped, now_ms, counters, fates);
        }
    }
}

/// Whose connections count together: an IPv4 address, or the /64 that one site of IPv6 has.
fn source_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

/// Octets of what a connection may hold of messages that are not whole, and of what is read at a time.
const ROOM: usize = FRAME_MAX + READ;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::cluster::tests::{cluster, keys, text};
    use crate::dataplane::limits::SEND_BACKLOG_MAX;
    use crate::link::{ShardEnd, link};
    use crate::sys::errors::Unreachable;
    use std::io::Read;
    use std::net::TcpStream;

    const RESPONSE: Tally = Tally::Response(None, 200);

    /// Others have sent 64 MiB of messages that are not whole.
    #[test]
    fn what_others_hold_costs_nobody_his_connection_nor_a_message_that_the_kernel_takes() {
        let mut bench = Bench::new();
        bench.streams.held = HELD_MAX;
        for _ in 0..3 {
            bench.send(b"answer", RESPONSE);
        }
        bench.flush();
        bench.client.read_exact(&mut [0; 18]).unwrap();
        assert_eq!((bench.fates.sent, bench.fates.waiting), (3, 0));

        let large = vec![b'x'; FRAME_MAX];
        while bench.fates.lost.is_empty() {
            bench.send(&large, RESPONSE);
        }
        assert_eq!(bench.fates.lost, [DropReason::SendBacklogFull]);
        assert!(bench.streams.held <= HELD_MAX + FRAME_MAX + 100, "{}", bench.streams.held);
        bench.send(b"request", Tally::Request(None));
        let undelivered = bench.streams.undelivered.pop().unwrap();
        assert_eq!((&undelivered.octets[..], undelivered.why), (&b"request"[..], Why::Unreachable));
        assert!(bench.streams.slots[0].is_some());
    }

    #[test]
    fn who_does_not_read_is_closed_for_what_waits_for_him() {
        let mut bench = Bench::new();
        let large = vec![b'x'; FRAME_MAX];
        while bench.streams.slots[0].is_some() {
            bench.send(&large, RESPONSE);
            bench.flush();
            assert!(bench.streams.held <= SEND_BACKLOG_MAX + FRAME_MAX, "{}", bench.streams.held);
        }
        assert_eq!(bench.end.counters.streams.ended[Ended::Unread as usize].get(), 1);
        assert_eq!((bench.streams.held, bench.fates.waiting), (0, 0));
    }

    /// The connections of a shard: one, of a client.
    struct Bench {
        streams: Streams,
        end: ShardEnd,
        client: TcpStream,
        fates: Fate,
    }

    impl Bench {
        fn new() -> Bench {
            let tables = cluster(&text(&[1]), None).tables(1, &keys(), false, None);
            let (_, mut ends) = link(vec![Box::new(|| ())], 1, tables);
            let (poller, limits) = (Poller::new().unwrap(), StreamLimits::default());
            let mut streams = Streams::new(0, poller, 0, Vec::new(), limits, Arc::default()).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (socket, peer) = listener.accept().unwrap();
            socket.set_nonblocking(true).unwrap();
            streams.insert(Connection::new(Wire::new(socket, None), peer, Some(0), Origin::Accepted, 1, 0)).unwrap();
            Bench { streams, end: ends.remove(0), client, fates: Fate::default() }
        }

        fn send(&mut self, octets: &[u8], tally: Tally) {
            let from = Sender::Stream { id: StreamId::new(0, 0, 1).unwrap(), listener: None };
            let (to, counters) = (self.client.local_addr().unwrap(), &self.end.counters.streams);
            let (tables, mesh) = (self.end.shared.tables.load(), &mut self.end.mesh);
            self.streams.send(from, to, [octets, b""], tally, None, 0, mesh, &tables, counters, &mut self.fates);
        }

        fn flush(&mut self) {
            self.streams.flush(0, &self.end.counters.streams, &mut self.fates);
        }
    }

    /// What has become of messages.
    #[derive(Default)]
    struct Fate {
        sent: usize,
        lost: Vec<DropReason>,
        waiting: i64,
    }

    impl Fates for Fate {
        fn sent(&mut self, _: Tally) {
            self.sent += 1;
        }

        fn lost(&mut self, reason: DropReason) {
            self.lost.push(reason);
        }

        fn unreachable(&mut self, _: Unreachable) {}

        fn refused(&mut self, _: SocketAddr) {}

        fn handed_over(&mut self) {}

        fn waiting(&mut self, change: i64) {
            self.waiting += change;
        }
    }
}
