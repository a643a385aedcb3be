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
//! Who may have a connection is in `admit`, whom we connect to in `reach`; what comes in, and what is done with it, in `turn`, what
//! leaves in `send`; deadlines in `sweep`. Here is what there is of them, how one begins, and how it ends.
//!
//! # What is bounded
//!
//! Connections, in all and of one source; octets held for one and for all; how long a message may take from its first octet
//! to its last, how long the other side may take to read, how long nothing may happen. Whoever passes a bound loses this
//! connection, and nobody else loses anything: of a backend's connection only the message is refused that does not fit. What is
//! held for all is nobody's doing alone: beyond that bound no connection is accepted, of messages those are refused that the kernel does
//! not take at once, and no connection ends but a client's that has sent more of a message that is not whole than most messages are long.

mod admit;
pub mod connection;
mod handshake;
mod list;
mod prelude;
pub mod proxied;
mod reach;
mod send;
mod sweep;
mod turn;
mod turn_websocket;
pub mod websocket;
mod wire;

use crate::dataplane::counters::{Ended, Handshake, StreamCounters, Tally};
use crate::dataplane::limits::{FRAME_MAX, SEND_BACKLOG_MAX};
use crate::dataplane::transport::{StreamId, Transport};
use crate::dataplane::verdict::DropReason;
use crate::link::HandshakeFailed;
use crate::shard::outbox::Fates;
use crate::sys::poll::Poller;
use crate::tls::Credentials;
use arc_swap::ArcSwap;
use connection::{Connection, Origin, State, Unsent};
use handshake::handshakes;
use proxied::Proxied;
use reach::Target;
use send::{Undelivered, Why};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;
use websocket::Origins;
use wire::Wire;

/// Octets read at a time: a burst of some fifty messages. More waits in the kernel, so that nobody keeps the shard to
/// himself.
const READ: usize = 64 << 10;

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
    /// Octets held for all connections of a shard. Beyond it a connection that has nothing to send still gets one message, which is
    /// held only if the kernel has no room for it; and no client's message is waited for that is not whole and longer than most.
    pub held: usize,
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
            // As much as 64 may have whose other side reads nothing.
            held: 64 * SEND_BACKLOG_MAX,
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

    /// Whether something has to be looked at though nothing comes: connections have deadlines, and what failed in the last is to be told.
    pub fn has_deadlines(&self) -> bool {
        self.open > 0 || self.paused_until_ms.is_some() || !self.failures.is_empty()
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
        if self.open == 0 {
            // Nobody sweeps where there is nobody.
            self.held = 0;
            counters.held_octets.set(0);
        }
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
            Origin::Opened => {
                let failed_with = was_connecting.then_some(connection.failed_with);
                self.lost(slot, connection.peer, failed_with, connection.listener.is_some(), now_ms);
            }
        }
        if was_connecting && connection.origin == Origin::Opened && connection.listener.is_none() {
            fates.refused(connection.peer, connection.failed_with);
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
            let (to, listener) = (connection.peer, connection.listener);
            self.undelivered.push(Undelivered { octets, to, backend, listener, why, was_connecting });
        }
    }

    /// Ends all connections.
    fn end_all(&mut self, now_ms: u64, counters: &StreamCounters, fates: &mut impl Fates) {
        for slot in 0..self.slots.len() {
            self.end(slot, Ended::Stopped, now_ms, counters, fates);
        }
    }
}

/// Octets of what a connection may hold of messages that are not whole, and of what is read at a time.
const ROOM: usize = FRAME_MAX + READ;
