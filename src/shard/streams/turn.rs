//! What a shard does with its connections in a turn.
//!
//! ```text
//! for each that is ready:  accept │ open │ send what waits │ read ─► frames ─► each message: dispatch ─► send, or queue
//! from other shards:       messages whose connection is here ─► queue
//! at last:                 queued messages, one system call per connection
//!                          what could not be delivered ─► answered as its next hop would have, by our own Via
//!                          what leaves in datagrams, one system call for 32
//! ```
//!
//! A message in a stream goes through the same dispatch as a datagram, and is counted alike. What is read lies in one room
//! for all connections; only what is no whole message yet is kept for its connection.

use super::connection::{Origin, State};
use super::handshake;
use super::proxied::Client;
use super::send::{Undelivered, Why};
use super::wire::Broken as BrokenWire;
use super::{Ended, READ, ROOM, Streams};
use crate::dataplane::counters::{Kind, Tally};
use crate::dataplane::frame::{Broken, Frame, LINE_END, PING, PONG};
use crate::dataplane::limits::{HEAD_MAX, PAYLOAD_MAX};
use crate::dataplane::room::Room;
use crate::dataplane::route::Arrival;
use crate::dataplane::scan::{Scan, Scanner};
use crate::dataplane::sip::start_line::Method;
use crate::dataplane::transport::Transport;
use crate::dataplane::validate::Refusal;
use crate::dataplane::verdict::{Answer, DropReason, Sender, Verdict};
use crate::link::{Handed, ShardEnd, Signal};
use crate::shard::io::Io;
use crate::shard::outbox::{Fates, Leaving};
use crate::shard::run::{HEADS, Ledger, Shard, contained, egress_number, ends_of, may_be_padded};
use crate::shard::witness::Seen;
use crate::sys::errors;
use crate::tls::session::Failure;
use std::net::SocketAddr;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// Octets read at a time where a message has begun: it is read into memory of its own.
const READ_ON: usize = 16 << 10;

/// Octets of a message that is not whole which a client's connection may hold where too much is held for all: more than most messages
/// are long, and a fraction of what one may be.
const PIECE_MAX: usize = 4096;

/// Messages of a connection that may wait to be sent where a ping is still answered. What is noted of a pong takes six times what a
/// ping does on its way here; somebody who asks whether the connection is alive has an answer in the first.
const PONG_QUEUE_MAX: usize = 1024;

/// Messages taken over from other shards in one turn.
const TAKEN_OVER: usize = 256;

impl<I: Io> Shard<I> {
    /// Gives the shard its connections.
    pub fn with_streams(mut self, streams: Streams) -> Shard<I> {
        self.streams = Some(streams);
        self
    }

    /// Whether the shard has to look round though nothing comes.
    pub fn has_deadlines(&self) -> bool {
        self.streams.as_ref().is_some_and(Streams::has_deadlines)
    }

    /// Works through what is there on the connections that are ready, by the numbers they are ready under, through what
    /// other shards have handed over, if the bell was rung, and sends what came of all that and of the datagrams before.
    /// Returns how many messages came on connections.
    pub fn turn_streams(&mut self, ready: impl Iterator<Item = u32>, is_rung: bool) -> usize {
        let Some(streams) = &self.streams else { return 0 };
        // Where there are only datagrams it costs nothing.
        let mut ready = ready.peekable();
        if !is_rung && ready.peek().is_none() && streams.is_at_rest() && !self.link.mesh.has_to_wake() {
            return 0;
        }
        let start = Instant::now();
        let now_ms = self.link.shared.ms_at(start);
        self.link.counters.last_turn_ms.set(now_ms);
        let mut any = is_rung;
        for number in ready {
            any = true;
            let Some(streams) = &mut self.streams else { return 0 };
            let place = number.saturating_sub(streams.first) as usize;
            match place.checked_sub(streams.listeners.len()) {
                None => streams.accept(place, now_ms, self.tables.load(), &self.link.counters.streams),
                Some(slot) => self.on_ready(slot, now_ms),
            }
        }
        self.with_ledger(|streams, link, ledger| streams.sweep(now_ms, ledger.tables, &link.counters.streams, ledger));
        self.settle(now_ms);
        for failed in self.streams.iter_mut().flat_map(|streams| streams.failures.drain(..)) {
            self.link.signal(Signal::Handshake(Box::new(failed)));
        }
        if any {
            self.link.counters.busy_ns.add(start.elapsed().as_nanos() as u64);
        }
        std::mem::take(&mut self.stream_messages)
    }

    /// Ends all connections and counts what they had not sent.
    pub(in crate::shard) fn finish_streams(&mut self) {
        let now_ms = self.link.shared.now_ms();
        self.take_over();
        self.settle(now_ms);
        self.with_ledger(|streams, link, ledger| {
            streams.end_all(now_ms, &link.counters.streams, ledger);
            while let Some(handed) = link.mesh.next_handed() {
                if let Handed::Message { .. } = handed {
                    link.counters.taken_over.add(1);
                    ledger.lost(DropReason::ConnectionFailed);
                }
            }
            for _ in streams.undelivered.drain(..) {
                ledger.lost(DropReason::ConnectionFailed);
            }
        });
    }

    /// Does something with the connections, their fates entered into the counters.
    pub(super) fn with_ledger(&mut self, work: impl FnOnce(&mut Streams, &mut ShardEnd, &mut Ledger<'_>)) {
        let Some(streams) = &mut self.streams else { return };
        let counters = self.link.counters.clone();
        let mut ledger = Ledger::new(self.number, self.tables.load(), &counters);
        work(streams, &mut self.link, &mut ledger);
        ledger.close(&mut self.dispatcher, &self.link);
    }

    /// Lets a message leave by a connection that came in a datagram, as `arrival` says.
    pub(in crate::shard) fn leave_by_stream(&mut self, from: Sender, leaving: &Leaving, arrival: Arrival, now_ms: u64) {
        let Some(streams) = &mut self.streams else {
            return self.link.counters.dropped[DropReason::NoEgress as usize].add(1);
        };
        let counters = self.link.counters.clone();
        let mut ledger = Ledger::new(self.number, self.tables.load(), &counters);
        let parts = [&self.heads[leaving.head.clone()], &self.inbox.octets(leaving.slot)[leaving.tail.clone()]];
        let (mesh, tables, &Leaving { to, tally, .. }) = (&mut self.link.mesh, ledger.tables, leaving);
        let client = Client::of(tables, &arrival, tally);
        streams.send(from, to, parts, tally, client, now_ms, mesh, tables, &counters.streams, &mut ledger);
        ledger.close(&mut self.dispatcher, &self.link);
    }

    /// The connection in `slot` can be read, can send, has been opened, or has failed.
    fn on_ready(&mut self, slot: usize, now_ms: u64) {
        let Some(connection) = self.streams.as_mut().and_then(|streams| streams.connection(slot)) else { return };
        match connection.state {
            State::Connecting => self.on_connected(slot, now_ms),
            State::Open | State::Handshaking => {
                if connection.wants_writable {
                    self.with_ledger(|streams, link, ledger| {
                        streams.flush_one(slot, now_ms, &link.counters.streams, ledger);
                    });
                } else if connection.is_in_line {
                    // Neither what comes nor room to send is asked for: the other side is gone, and what it said is for nobody.
                    return self.with_ledger(|streams, link, ledger| {
                        streams.fail(slot, handshake::closed(), now_ms, &link.counters.streams, ledger);
                    });
                }
                self.read(slot, now_ms);
            }
            State::HalfClosed => {
                // Nothing is read any more: it can send, or the other side has gone altogether.
                let has_failed =
                    !connection.wants_writable || !matches!(connection.wire.socket().take_error(), Ok(None));
                self.with_ledger(|streams, link, ledger| match has_failed {
                    true => streams.end(slot, Ended::Closed, now_ms, &link.counters.streams, ledger),
                    false => streams.flush_one(slot, now_ms, &link.counters.streams, ledger),
                });
            }
            State::Closing => {
                let (is_over, ended) = (!connection.wire.discard(), connection.closes_as);
                self.with_ledger(|streams, link, ledger| match is_over {
                    true => streams.end(slot, ended, now_ms, &link.counters.streams, ledger),
                    false => streams.flush_one(slot, now_ms, &link.counters.streams, ledger),
                });
            }
        }
    }

    /// The attempt to connect is over.
    fn on_connected(&mut self, slot: usize, now_ms: u64) {
        self.with_ledger(|streams, link, ledger| {
            let Some(connection) = streams.connection(slot) else { return };
            if let Ok(Some(error)) | Err(error) = connection.wire.socket().take_error() {
                connection.failed_with = error.raw_os_error().unwrap_or(connection.failed_with);
                return streams.end(slot, Ended::ConnectFailed, now_ms, &link.counters.streams, ledger);
            }
            if connection.wire.socket().peer_addr().is_err() {
                // It was another that became ready, which had this slot earlier in the turn.
                return;
            }
            let is_tls = connection.wire.is_tls();
            connection.put_into(if is_tls { State::Handshaking } else { State::Open }, now_ms);
            (connection.active_ms, connection.failed_with) = (now_ms, errors::NO_TLS);
            let peer = connection.peer;
            if !is_tls {
                streams.reached(peer);
            }
            streams.flush_one(slot, now_ms, &link.counters.streams, ledger);
        });
    }

    /// Whether the connection in `slot` is past the header of a proxy, if there is to be one.
    fn is_introduced(&mut self, slot: usize, now_ms: u64) -> bool {
        let connection = self.streams.as_mut().and_then(|streams| streams.connection(slot));
        if connection.is_none_or(|connection| connection.prelude.is_none()) {
            return true;
        }
        let mut is_introduced = false;
        self.with_ledger(|streams, link, ledger| {
            is_introduced = streams.is_introduced(slot, now_ms, &link.counters.streams, ledger);
        });
        is_introduced
    }

    /// Reads what has come on a connection, once, and deals with the messages in it.
    pub(super) fn read(&mut self, slot: usize, now_ms: u64) {
        if !self.is_introduced(slot, now_ms) {
            return;
        }
        let Some(streams) = &mut self.streams else { return };
        if !streams.may_read(slot) {
            return;
        }
        let Some(connection) = streams.slots.get_mut(slot).and_then(Option::as_deref_mut) else { return };
        let generation = connection.generation;
        let began = connection.partial.len();
        let unfinished = began + connection.unopened();
        let mut buffer = std::mem::take(if began > 0 { &mut connection.partial } else { &mut streams.room });
        if began > 0 {
            buffer.resize(began + READ_ON + connection.wire.margin(), 0);
        } else if buffer.len() < ROOM {
            buffer.resize(ROOM, 0);
        }
        let most = buffer.len().min(began + READ);
        let read = connection.wire.read(&mut buffer[began..most]);
        streams.advance(slot, now_ms, &self.link.counters.streams);
        let len = began + read.as_ref().ok().copied().flatten().unwrap_or(0);
        let mut at = 0;
        if len > began {
            streams.touch(slot, now_ms);
            at = match self.is_websocket(slot) {
                true => self.websocket_frames(slot, &mut buffer[..len], now_ms),
                false => self.frames(slot, &mut buffer[..len], now_ms),
            };
        }
        let (mut has_closed, mut failure, mut is_too_much) = (false, None, false);
        let Some(streams) = &mut self.streams else { return };
        let connection = streams.slots.get_mut(slot).and_then(Option::as_deref_mut);
        // Dealing with the messages may have ended the connection, and another may have its slot.
        if let Some(connection) = connection.filter(|connection| connection.generation == generation) {
            (has_closed, failure) = (connection.wire.has_closed(), connection.wire.take_failure());
            let rest = &buffer[at..len];
            // A line end is no message that has begun; behind a ping of ours it is the answer.
            let is_pong = rest == PONG && connection.origin == Origin::Opened;
            let rest = if is_pong || connection.state == State::Closing { &[] } else { rest };
            let has_begun = !rest.is_empty() && rest != PONG || connection.wire.has_begun();
            connection.partial_since_ms = match connection.partial_since_ms.filter(|_| at == 0) {
                Some(since) if has_begun => Some(since),
                _ => has_begun.then_some(now_ms),
            };
            // A message in fragments begins with its first.
            let assembling = connection.websocket.as_ref().and_then(|websocket| websocket.assembling_since_ms());
            connection.partial_since_ms = assembling.or(connection.partial_since_ms);
            let is_left = rest.len() + connection.unopened();
            streams.held = (streams.held + is_left).saturating_sub(unfinished);
            let may_wait = is_left <= PIECE_MAX || connection.origin == Origin::Opened;
            is_too_much = !may_wait && streams.held > streams.limits.held;
            if began > 0 {
                let rest = rest.len();
                buffer.copy_within(at..at + rest, 0);
                buffer.truncate(rest);
                connection.partial = std::mem::take(&mut buffer);
            } else if !rest.is_empty() {
                connection.partial = rest.to_vec();
            }
        }
        if began == 0 {
            streams.room = buffer;
        }
        if is_too_much {
            return self.with_ledger(|streams, link, ledger| {
                streams.end(slot, Ended::Limit, now_ms, &link.counters.streams, ledger);
            });
        }
        match read {
            Ok(Some(0)) => self.on_end(slot, generation, Ended::Closed, now_ms),
            Err(BrokenWire::Socket) => self.on_end(slot, generation, Ended::Reset, now_ms),
            Err(BrokenWire::Tls(failure)) => self.on_failure(slot, failure, now_ms),
            Ok(_) => match failure {
                Some(failure) => self.on_failure(slot, failure, now_ms),
                None if has_closed => self.on_end(slot, generation, Ended::Closed, now_ms),
                None => {}
            },
        }
    }

    /// What came on the connection in `slot` cannot be opened.
    fn on_failure(&mut self, slot: usize, failure: Failure, now_ms: u64) {
        self.with_ledger(|streams, link, ledger| {
            streams.fail(slot, failure, now_ms, &link.counters.streams, ledger);
        });
    }

    /// The other side has closed its half, or the connection has failed.
    fn on_end(&mut self, slot: usize, generation: u32, ended: Ended, now_ms: u64) {
        self.with_ledger(|streams, link, ledger| {
            let number = streams.number_of(slot);
            let Some(connection) = streams.slots.get_mut(slot).and_then(Option::as_deref_mut) else { return };
            if connection.generation != generation {
                return;
            }
            if connection.state == State::Handshaking {
                return streams.fail(slot, handshake::closed(), now_ms, &link.counters.streams, ledger);
            }
            if connection.state == State::Closing && ended == Ended::Closed {
                // TLS has said it in the same read: what it did is answered first.
                return;
            }
            // A browser that has closed its WebSocket waits for nothing.
            let waits = connection.origin == Origin::Accepted
                && connection.websocket.is_none()
                && (connection.unanswered > 0 || connection.unsent() > 0)
                && connection.state == State::Open;
            if ended != Ended::Closed || !waits {
                return streams.end(slot, ended, now_ms, &link.counters.streams, ledger);
            }
            connection.put_into(State::HalfClosed, now_ms);
            let fd = std::os::fd::AsRawFd::as_raw_fd(connection.wire.socket());
            streams.poller.set_interest(fd, number, false, connection.wants_writable).ok();
        });
    }

    /// Deals with the messages that `buffer` holds, which was read from the connection in `slot`. Returns how many of its
    /// octets are dealt with.
    fn frames(&mut self, slot: usize, buffer: &mut [u8], now_ms: u64) -> usize {
        let Some(streams) = &mut self.streams else { return 0 };
        let id = streams.id_of(slot);
        let Some(connection) = streams.connection(slot) else { return 0 };
        let generation = connection.generation;
        let Some(id) = id else { return 0 };
        let listener = connection.listener;
        let arrival = Arrival { from: connection.peer, listener, local: connection.local, stream: Some(id) };
        let mut framer = connection.framer;
        let (scanner, mut scan, mut at) = (Scanner::best(), Scan::default(), 0);
        loop {
            let frame = framer.next(&scanner, &mut scan, &buffer[at..]);
            let begin = at;
            match frame {
                Frame::Partial => break,
                Frame::LineEnd => at += LINE_END,
                Frame::Ping => {
                    at += PING;
                    self.pong(&arrival, now_ms);
                }
                Frame::Message(len) => {
                    at += len;
                    self.take_frame(buffer, begin..at, arrival, None, now_ms);
                }
                Frame::Broken(broken) => {
                    at = buffer.len();
                    self.on_broken(slot, buffer, begin, broken, arrival, now_ms);
                    break;
                }
            }
            let connection = self.streams.as_mut().and_then(|streams| streams.connection(slot));
            let Some(connection) = connection.filter(|connection| connection.generation == generation) else { break };
            connection.has_spoken |= frame != Frame::LineEnd;
        }
        let connection = self.streams.as_mut().and_then(|streams| streams.connection(slot));
        if let Some(connection) = connection.filter(|connection| connection.generation == generation) {
            connection.framer = framer;
        }
        self.tell_others();
        at
    }

    pub(super) fn pong(&mut self, arrival: &Arrival, now_ms: u64) {
        self.link.counters.received(arrival.listener, Kind::NoMessage).add(1);
        let Some(id) = arrival.stream else { return };
        let (from, to) = (Sender::Stream { id, listener: arrival.listener }, arrival.from);
        self.with_ledger(|streams, link, ledger| {
            if streams.queued(id, to) >= PONG_QUEUE_MAX {
                return ledger.lost(DropReason::SendBacklogFull);
            }
            let tally = Tally::Reply(Answer::Pong);
            let ShardEnd { counters, mesh, .. } = link;
            streams.send(from, to, [PONG, b""], tally, None, now_ms, mesh, ledger.tables, &counters.streams, ledger);
        });
    }

    /// Refuses what is no message, and closes the connection.
    fn on_broken(
        &mut self,
        slot: usize,
        buffer: &mut [u8],
        begin: usize,
        broken: Broken,
        arrival: Arrival,
        now_ms: u64,
    ) {
        let is_answered = self.take_frame(buffer, begin..begin + broken.head, arrival, Some(broken.refusal), now_ms);
        self.with_ledger(|streams, link, ledger| {
            let Some(connection) = streams.connection(slot) else { return };
            if Some(connection.generation) != arrival.stream.map(|id| id.generation()) {
                return;
            }
            if !is_answered || connection.origin == Origin::Opened {
                // What came before in the same read was whole, and its answers are still queued.
                streams.flush_one(slot, now_ms, &link.counters.streams, ledger);
                return streams.end(slot, Ended::BadFrame, now_ms, &link.counters.streams, ledger);
            }
            connection.close_as(Ended::BadFrame, now_ms);
        });
    }

    /// Decides about the message in `frame`, a part of `buffer`, and sends what comes of it, or notes it to be sent. With
    /// `broken`, it is no message, and refused for that. Returns whether it was answered.
    pub(super) fn take_frame(
        &mut self,
        buffer: &mut [u8],
        frame: Range<usize>,
        arrival: Arrival,
        broken: Option<Option<Refusal>>,
        now_ms: u64,
    ) -> bool {
        self.stream_messages += 1;
        let place = self.place_for_head();
        let tables = self.tables.load();
        let mut room = Room::new(&mut buffer[frame.clone()], &mut self.heads[place]);
        self.witness.note(tables, room.input);
        let dispatcher = &mut self.dispatcher;
        let kind = contained(&mut room, |room| match broken {
            None => dispatcher.on_datagram(tables, now_ms, arrival, room),
            Some(refusal) => dispatcher.on_broken(tables, refusal, arrival, room),
        });
        let verdict = room.verdict;
        let is_refused = !matches!(verdict, Verdict::Forward { .. });
        if kind != Kind::NoMessage && (is_refused || tables.are_watched()) {
            let ends = ends_of(&mut self.streams, verdict);
            let (shard, egress) = (self.number, self.egress);
            let seen = Seen { shard, now_ms, tables, arrival, room: &room, egress, ends };
            let (witness, link) = (&mut self.witness, &self.link);
            // What is told of a message is worth less than the shard: a bug there costs the telling.
            catch_unwind(AssertUnwindSafe(|| witness.look(&seen, dispatcher, link))).ok();
        }
        let head = self.heads_used..self.heads_used + room.head_len;
        let tail = frame.start + room.tail.start..frame.start + room.tail.end;
        self.link.counters.received(arrival.listener, kind).add(1);
        if let (Kind::Request(method), Verdict::Forward { .. }) = (kind, verdict)
            && method != Method::Ack
        {
            self.note_unanswered(&arrival);
        }
        if let (Some(streams), Some(id)) = (&mut self.streams, arrival.stream) {
            streams.note_came(id, matches!(kind, Kind::Response(200..)), now_ms);
        }
        let (to, from, tally) = match (verdict, arrival.stream) {
            (Verdict::Drop(reason), _) => {
                self.link.counters.dropped[reason as usize].add(1);
                return false;
            }
            (Verdict::Reply { answer, .. }, Some(id)) => {
                let from = Sender::Stream { id, listener: arrival.listener };
                (arrival.from, from, Tally::Reply(answer))
            }
            (Verdict::Reply { to, answer }, None) => (to, Sender::Egress, Tally::Reply(answer)),
            (Verdict::Forward { to, from, backend }, _) => match kind {
                Kind::Response(code) => (to, from, Tally::Response(backend, code)),
                _ => (to, from, Tally::Request(backend)),
            },
        };
        let tables = self.tables.load();
        let client = Client::of(tables, &arrival, tally);
        let pads = may_be_padded(&self.io, tables, &self.dispatcher, tally);
        self.depart(buffer, Leaving { to, local: None, head, slot: 0, tail, pads, tally }, from, client, now_ms);
        matches!(verdict, Verdict::Reply { .. })
    }

    fn note_unanswered(&mut self, arrival: &Arrival) {
        let streams = self.streams.as_mut();
        let connection = arrival.stream.zip(streams).and_then(|(id, streams)| streams.connection(id.slot()));
        if let Some(connection) = connection {
            connection.unanswered = connection.unanswered.saturating_add(1);
        }
    }

    /// Notes that a request is answered by us that was to be answered by somebody else.
    fn note_answered(&mut self, from: Sender) {
        let Sender::Stream { id, .. } = from else { return };
        let streams = self.streams.as_mut().filter(|_| id.shard() == self.number);
        let connection = streams.and_then(|streams| streams.connection(id.slot()));
        if let Some(connection) = connection.filter(|connection| connection.generation == id.generation()) {
            connection.unanswered = connection.unanswered.saturating_sub(1);
        }
    }

    /// Where the next head is written.
    fn place_for_head(&mut self) -> Range<usize> {
        if self.heads_used + HEAD_MAX > HEADS {
            self.flush(false, 0);
        }
        self.heads_used..self.heads_used + HEAD_MAX
    }

    /// Lets a message leave whose octets lie in the room for heads and in `buffer`: by a connection at once, or by a socket
    /// with those of other connections, when [`Shard::settle`] is done with all of them. Until then another connection is
    /// read into the buffer, so the tail is copied behind its head: some hundred octets, where a datagram that leaves by
    /// itself is a system call.
    fn depart(&mut self, buffer: &[u8], leaving: Leaving, from: Sender, client: Option<Client>, now_ms: u64) {
        let (way_out, local) = match from {
            Sender::Connect { .. } | Sender::Stream { .. } => {
                return self.with_parts(buffer, leaving, |streams, link, parts, leaving, ledger| {
                    let Leaving { to, tally, .. } = *leaving;
                    let ShardEnd { counters, mesh, .. } = link;
                    streams.send(
                        from,
                        to,
                        parts,
                        tally,
                        client,
                        now_ms,
                        mesh,
                        ledger.tables,
                        &counters.streams,
                        ledger,
                    );
                });
            }
            Sender::Egress => (egress_number(self.listeners, self.egress, leaving.to), None),
            Sender::Listener { index, local } => (Some(index as usize).filter(|&one| one < self.listeners), local),
        };
        let Some(way_out) = way_out.filter(|&number| number < self.outbox.sockets()) else {
            return self.link.counters.dropped[DropReason::NoEgress as usize].add(1);
        };
        let tail = &buffer[leaving.tail];
        let head = leaving.head.start..leaving.head.end + tail.len();
        let Some(room) = self.heads.get_mut(leaving.head.end..head.end) else {
            // No datagram is that long.
            return self.link.counters.dropped[DropReason::SendFailed as usize].add(1);
        };
        room.copy_from_slice(tail);
        self.heads_used = head.end.next_multiple_of(64);
        self.outbox.add(way_out, Leaving { local, head, tail: 0..0, ..leaving });
        if self.outbox.is_full(way_out) {
            self.flush(false, 0);
        }
    }

    fn with_parts(
        &mut self,
        buffer: &[u8],
        leaving: Leaving,
        work: impl FnOnce(&mut Streams, &mut ShardEnd, [&[u8]; 2], &Leaving, &mut Ledger<'_>),
    ) {
        let Some(streams) = &mut self.streams else { return };
        let counters = self.link.counters.clone();
        let mut ledger = Ledger::new(self.number, self.tables.load(), &counters);
        let parts = [&self.heads[leaving.head.clone()], &buffer[leaving.tail.clone()]];
        work(streams, &mut self.link, parts, &leaving, &mut ledger);
        ledger.close(&mut self.dispatcher, &self.link);
    }

    /// Takes what other shards have handed over. Messages leave with the end of [`Shard::turn_streams`].
    pub fn take_over(&mut self) {
        let now_ms = self.link.shared.now_ms();
        self.list_if_asked(now_ms);
        for _ in 0..TAKEN_OVER {
            match self.link.mesh.next_handed() {
                None => return,
                Some(Handed::Answered(transactions)) => {
                    let router = self.dispatcher.router();
                    transactions.iter().for_each(|&transaction| router.settle(transaction, now_ms));
                }
                Some(Handed::Message { from, to, octets, tally }) => self.with_ledger(|streams, link, ledger| {
                    let ShardEnd { counters, mesh, .. } = link;
                    counters.taken_over.add(1);
                    let parts = [&*octets, b""];
                    streams.send(from, to, parts, tally, None, now_ms, mesh, ledger.tables, &counters.streams, ledger);
                }),
            }
        }
        // There may be more, and nobody rings for it again.
        self.link.mesh.wake_later(self.number);
    }

    /// Sends what is queued, and answers what cannot be delivered.
    pub(super) fn settle(&mut self, now_ms: u64) {
        loop {
            self.with_ledger(|streams, link, ledger| streams.flush(now_ms, &link.counters.streams, ledger));
            let undelivered = self.streams.as_mut().map(|streams| std::mem::take(&mut streams.undelivered));
            let Some(undelivered) = undelivered.filter(|list| !list.is_empty()) else { break };
            for one in undelivered {
                // What is answered is lost if its answer is not delivered either: this ends.
                self.answer(one, now_ms);
            }
        }
        if self.heads_used > 0 {
            self.flush(false, 0);
        }
        self.link.mesh.wake();
    }

    /// Answers a request that could not be delivered as its next hop would have; or sends it by another connection, if the client
    /// whose own is gone can be reached by one; or in a datagram after all, if it was only too long for one.
    fn answer(&mut self, one: Undelivered, now_ms: u64) {
        let Undelivered { octets, to, backend, listener, why, was_connecting } = one;
        let place = self.place_for_head();
        let tables = self.tables.load();
        let reach = backend.and_then(|index| tables.backends.get(index as usize)).map(|backend| backend.reach);
        //= RFC 3261 section 18.1.1
        //# if the attempt to establish the
        //# connection generates either an ICMP Protocol Not Supported, or
        //# results in a TCP reset, the element SHOULD retry the request, using
        //# UDP.
        if was_connecting && reach.is_some_and(|reach| reach.transport == Transport::Udp) {
            return self.send_by_udp(octets, to, backend, now_ms);
        }
        let mut flow_is_gone = why == Why::FlowGone;
        if listener.is_some_and(|index| tables.transport(index) == Transport::Tcp) {
            let dispatcher = &mut self.dispatcher;
            let next = catch_unwind(AssertUnwindSafe(|| dispatcher.next_hop_at(tables, &octets, to.ip())));
            match next.ok().flatten() {
                Some(to) if flow_is_gone => {
                    let (head, tail, tally) = (place.start..place.start, 0..octets.len(), Tally::Request(backend));
                    let leaving = Leaving { to, local: None, head, slot: 0, tail, pads: false, tally };
                    return self.depart(&octets, leaving, Sender::Connect { listener }, None, now_ms);
                }
                // It is this one that could not be opened.
                next => flow_is_gone |= next.is_some(),
            }
        }
        let (refusal, code) = match flow_is_gone {
            true => (Refusal::new(430, "Flow Failed"), 430),
            false => (Refusal::new(503, "Next Hop Unreachable"), 503),
        };
        let lost = DropReason::ConnectionFailed as usize;
        let dispatcher = &mut self.dispatcher;
        let written = catch_unwind(AssertUnwindSafe(|| {
            dispatcher.answer_for_next_hop(tables, refusal, &octets, to, &mut self.heads[place.clone()])
        }));
        let Some(len) = written.ok().flatten() else { return self.link.counters.dropped[lost].add(1) };
        let mut answer = self.heads[place.clone()][..len].to_vec();
        let arrival = Arrival { from: to, listener: None, local: None, stream: None };
        let mut room = Room::new(&mut answer, &mut self.heads[place.clone()]);
        contained(&mut room, |room| dispatcher.on_datagram(tables, now_ms, arrival, room));
        if tables.capture.is_some() {
            // Nobody sent it to us: who gets copies gets it as it leaves.
            self.witness.note(tables, b"");
            let ends = ends_of(&mut self.streams, room.verdict);
            let (shard, egress) = (self.number, self.egress);
            let seen = Seen { shard, now_ms, tables, arrival, room: &room, egress, ends };
            let (witness, link) = (&mut self.witness, &self.link);
            catch_unwind(AssertUnwindSafe(|| witness.copy(&seen, dispatcher, link))).ok();
        }
        let (head, tail) = (place.start..place.start + room.head_len, room.tail.clone());
        let Verdict::Forward { to, from, .. } = room.verdict else { return self.link.counters.dropped[lost].add(1) };
        let tally = Tally::Reply(Answer::Status(code));
        self.note_answered(from);
        self.depart(&answer, Leaving { to, local: None, head, slot: 0, tail, pads: false, tally }, from, None, now_ms);
    }

    fn send_by_udp(&mut self, mut octets: Box<[u8]>, to: SocketAddr, backend: Option<u16>, now_ms: u64) {
        // Our Via is the first row, and its transport has as many letters.
        let row = b"\r\nVia: SIP/2.0/TCP ";
        let at = octets.windows(row.len()).position(|window| window == row).filter(|_| octets.len() <= PAYLOAD_MAX);
        let Some(at) = at else {
            return self.link.counters.dropped[DropReason::ConnectionFailed as usize].add(1);
        };
        octets[at + row.len() - 4..at + row.len() - 1].copy_from_slice(b"UDP");
        let tally = Tally::Request(backend);
        let start = self.place_for_head().start;
        let leaving =
            Leaving { to, local: None, head: start..start, slot: 0, tail: 0..octets.len(), pads: false, tally };
        self.depart(&octets, leaving, Sender::Egress, None, now_ms);
    }
}
