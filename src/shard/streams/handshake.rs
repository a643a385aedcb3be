//! How connections come to TLS: what each begins with, how many may be at it, what becomes of those that fail.
//!
//! A handshake is the most that a stranger can make us work: half a millisecond with a key of ECDSA P-256, one with RSA 2048
//! (docs/tls.md). So who has something to say in a handshake is taken out of the set that the shard waits with, and waits in a
//! line; one step is made at a time, and then everything else is looked at.
//!
//! ```text
//! something came ─► line ─► nothing else is ready, or others have had their time since the last step ─► one step ─► the set
//!                    └─ told of nevertheless ─► gone
//! ```
//!
//! Who stands in the line is told of only if the other side has reset the connection. What had come before the reset could still be
//! read, and answered with a signature for nobody: a flood of such would have its step at once, 64 in a turn.
//!
//! Left in the set, a few hundred that are ready would be nearly all that the kernel tells of, 64 at a time, with a step after
//! each 64: calls over UDP took half a second then (docs/performance-connections.md, Beside a flood of TLS handshakes).

use super::connection::{Origin, State};
use super::{Streams, Wire};
use crate::dataplane::counters::{Counter, Ended, Handshake, StreamCounters};
use crate::dataplane::tables::Tables;
use crate::dataplane::transport::Transport;
use crate::link::HandshakeFailed;
use crate::shard::io::Io;
use crate::shard::outbox::Fates;
use crate::shard::run::Shard;
use crate::tls::session::{Failure, Session};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Instant;

/// Of a shard's time in which there is something else to do, handshakes of clients get one part in so many.
const SHARE: u32 = 3;

/// Failures told of in one turn.
const TOLD: usize = 8;

/// The counters of handshakes on connections of this origin.
pub(super) fn handshakes(origin: Origin, counters: &StreamCounters) -> &[Counter; Handshake::ALL.len()] {
    match origin {
        Origin::Accepted => &counters.accepted_handshakes,
        Origin::Opened => &counters.opened_handshakes,
    }
}

/// Why a handshake is ended that takes too long.
pub(super) fn too_slow() -> Failure {
    Failure { handshake: Handshake::Slow, text: "the handshake took too long".into() }
}

/// Why a handshake is ended whose other side has closed.
pub(super) fn closed() -> Failure {
    Failure { handshake: Handshake::Closed, text: "the other side closed the connection in the handshake".into() }
}

impl<I: Io> Shard<I> {
    /// Whether clients wait for a step of their handshakes: the shard need not wait for anything else.
    pub fn has_steps(&self) -> bool {
        self.streams.as_ref().is_some_and(|streams| !streams.line.is_empty())
    }

    /// Makes a step of a handshake, if one waits, and if it is due: `is_idle` says that there is nothing else to do.
    pub fn step(&mut self, is_idle: bool) {
        if !self.has_steps() {
            return;
        }
        let start = Instant::now();
        let now_ms = self.link.shared.ms_at(start);
        let Some(streams) = &mut self.streams else { return };
        if !is_idle && streams.step_after.is_some_and(|after| start < after) {
            return;
        }
        let Some(slot) = streams.next_in_line() else { return };
        streams.is_at_step = true;
        self.read(slot, now_ms);
        self.settle(now_ms);
        let end = Instant::now();
        if let Some(streams) = &mut self.streams {
            streams.is_at_step = false;
            streams.step_after = Some(end + (end - start) * (SHARE - 1));
        }
        self.link.counters.busy_ns.add((end - start).as_nanos() as u64);
    }
}

impl Streams {
    /// What goes over a connection that listener `index` has accepted.
    pub(super) fn wire_of(
        &mut self,
        socket: TcpStream,
        index: u8,
        transport: Transport,
        peer: SocketAddr,
        counters: &StreamCounters,
    ) -> Result<Wire, Ended> {
        if !transport.is_tls() {
            return Ok(Wire::new(socket, None));
        }
        let counted = &counters.accepted_handshakes;
        if self.handshaking >= self.limits.handshakes {
            counted[Handshake::Limit as usize].add(1);
            return Err(Ended::Handshake);
        }
        let credentials = self.credentials.load();
        let server = credentials.servers.get(index as usize).and_then(Option::as_ref);
        let session = server.map(Session::accept).transpose().map_err(|failure| {
            counted[failure.handshake as usize].add(1);
            if self.failures.len() < TOLD {
                self.failures.push(told(peer, Some(index), failure));
            }
            Ended::Handshake
        })?;
        // Without credentials there is nothing to speak with, and never plain text.
        session.map(|session| Wire::new(socket, Some(session))).ok_or(Ended::Handshake)
    }

    /// The session of a connection that is being opened to `to`, if it speaks TLS. For `listener`, if it is to no backend.
    ///
    /// Whether it does is what the tables say, and never what credentials there are: those are swapped at another moment, and
    /// a backend without any would get in plain text what was to be sealed.
    ///
    /// # Errors
    /// There is nothing to speak TLS with, or the backend is gone from the tables, so that nobody can say how it speaks.
    pub(super) fn session_to(
        &self,
        to: SocketAddr,
        listener: Option<u8>,
        tables: &Tables,
    ) -> io::Result<Option<Session>> {
        match tables.speaks_tls(to) {
            Some(true) => {
                let credentials = self.credentials.load();
                let client = credentials.clients.get(&to).ok_or(io::ErrorKind::NotFound)?;
                Session::connect(client).map(Some).map_err(|failure| io::Error::other(failure.text))
            }
            None if listener.is_none() => Err(io::ErrorKind::NotFound.into()),
            Some(false) | None => Ok(None),
        }
    }

    /// Whether no connection is ever opened in the name of listener `index`.
    pub(super) fn only_accepts(&self, index: u8) -> bool {
        self.listeners.iter().any(|one| one.index == index && one.transport != Transport::Tcp)
    }

    /// Whether the connection in `slot` may be read at once. Otherwise it stands in the line from here on.
    pub(super) fn may_read(&mut self, slot: usize) -> bool {
        let (number, is_at_step) = (self.number_of(slot), self.is_at_step);
        let Some(connection) = self.connection(slot) else { return true };
        let is_stranger = connection.state == State::Handshaking && connection.origin == Origin::Accepted;
        if !is_stranger || is_at_step {
            return true;
        }
        if connection.is_in_line {
            return false;
        }
        connection.is_in_line = true;
        let (fd, wants_writable, generation) =
            (connection.wire.socket().as_raw_fd(), connection.wants_writable, connection.generation);
        self.line.push_back((slot, generation));
        self.poller.set_interest(fd, number, false, wants_writable).ok();
        false
    }

    /// Takes the first in the line that is still there.
    fn next_in_line(&mut self) -> Option<usize> {
        while let Some((slot, generation)) = self.line.pop_front() {
            let number = self.number_of(slot);
            let connection = self.slots.get_mut(slot).and_then(Option::as_deref_mut);
            let Some(connection) = connection.filter(|connection| connection.generation == generation) else {
                continue;
            };
            connection.is_in_line = false;
            let (fd, wants_writable) = (connection.wire.socket().as_raw_fd(), connection.wants_writable);
            self.poller.set_interest(fd, number, true, wants_writable).ok();
            return Some(slot);
        }
        None
    }

    /// What follows when something was read from the connection in `slot`: its handshake may be over, and TLS may have
    /// something to send.
    pub(super) fn advance(&mut self, slot: usize, now_ms: u64, counters: &StreamCounters) {
        let Some(connection) = self.connection(slot).filter(|connection| connection.wire.is_tls()) else { return };
        let is_over = connection.state == State::Handshaking && !connection.wire.is_handshaking();
        let (origin, peer, outcome) = (connection.origin, connection.peer, connection.wire.handshake());
        if is_over {
            connection.put_into(State::Open, now_ms);
            connection.active_ms = now_ms;
        }
        if connection.wants_write() {
            self.note_dirty(slot);
        }
        if !is_over {
            return;
        }
        handshakes(origin, counters)[outcome as usize].add(1);
        match origin {
            Origin::Accepted => self.handshaking -= 1,
            Origin::Opened => self.reached(peer),
        }
    }

    /// Ends the connection in `slot`, whose TLS has failed.
    pub(super) fn fail(
        &mut self,
        slot: usize,
        failure: Failure,
        now_ms: u64,
        counters: &StreamCounters,
        fates: &mut impl Fates,
    ) {
        let Some(connection) = self.connection(slot) else { return };
        // An alert says why, if the other side still listens.
        connection.wire.flush().ok();
        let (origin, peer, listener) = (connection.origin, connection.peer, connection.listener);
        let (is_handshake, has_heard) = (connection.state == State::Handshaking, connection.wire.has_heard());
        if is_handshake {
            handshakes(origin, counters)[failure.handshake as usize].add(1);
        }
        // Whoever connects and goes without a word has not failed: balancers look so whether we are there, every few seconds.
        let is_look = origin == Origin::Accepted && failure.handshake == Handshake::Closed && !has_heard;
        if self.failures.len() < TOLD && !is_look {
            self.failures.push(told(peer, listener.filter(|_| origin == Origin::Accepted), failure));
        }
        self.end(slot, if is_handshake { Ended::Handshake } else { Ended::Tls }, now_ms, counters, fates);
    }
}

fn told(peer: SocketAddr, listener: Option<u8>, failure: Failure) -> HandshakeFailed {
    HandshakeFailed { peer, listener, as_what: failure.handshake, text: failure.text.into() }
}
