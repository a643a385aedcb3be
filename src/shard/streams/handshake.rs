//! How connections come to TLS: what each begins with, how many may be at it, what becomes of those that fail.
//!
//! A handshake is the most that a stranger can make us work: half a millisecond with a key of ECDSA P-256, one with RSA 2048
//! (docs/tls.md). So one step is made in a turn, whatever is ready, and messages of everybody else are dealt with in between.

use super::connection::{Origin, State};
use super::{Streams, Wire};
use crate::dataplane::counters::{Counter, Ended, Handshake, StreamCounters};
use crate::dataplane::transport::Transport;
use crate::link::HandshakeFailed;
use crate::shard::outbox::Fates;
use crate::tls::session::{Failure, Session};
use std::io;
use std::net::{SocketAddr, TcpStream};

/// Steps of accepted connections' handshakes in one turn.
pub(super) const STEPS: usize = 1;

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
    pub(super) fn session_to(&self, to: SocketAddr, listener: Option<u8>) -> io::Result<Option<Session>> {
        let credentials = self.credentials.load();
        let client = credentials.clients.get(&to).filter(|_| listener.is_none());
        client.map(Session::connect).transpose().map_err(|failure| io::Error::other(failure.text))
    }

    /// Whether no connection is ever opened in the name of listener `index`.
    pub(super) fn only_accepts(&self, index: u8) -> bool {
        self.listeners.iter().any(|one| one.index == index && one.transport != Transport::Tcp)
    }

    /// Whether the connection in `slot` may be read in this turn.
    pub(super) fn may_step(&mut self, slot: usize) -> bool {
        let is_stranger = |state, origin| state == State::Handshaking && origin == Origin::Accepted;
        let connection = self.connection(slot);
        if connection.is_none_or(|connection| !is_stranger(connection.state, connection.origin)) {
            return true;
        }
        let is_left = self.steps_left > 0;
        self.steps_left = self.steps_left.saturating_sub(1);
        is_left
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

    /// Notes that `peer` can be connected to.
    pub(super) fn reached(&mut self, peer: SocketAddr) {
        if let Some(target) = self.by_target.get_mut(&peer) {
            target.failures = 0;
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
        let is_handshake = connection.state == State::Handshaking;
        if is_handshake {
            handshakes(origin, counters)[failure.handshake as usize].add(1);
        }
        if self.failures.len() < TOLD {
            self.failures.push(told(peer, listener.filter(|_| origin == Origin::Accepted), failure));
        }
        self.end(slot, if is_handshake { Ended::Handshake } else { Ended::Tls }, now_ms, counters, fates);
    }
}

fn told(peer: SocketAddr, listener: Option<u8>, failure: Failure) -> HandshakeFailed {
    HandshakeFailed { peer, listener, as_what: failure.handshake, text: failure.text.into() }
}
