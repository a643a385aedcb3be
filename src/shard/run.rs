//! The loop of a shard.
//!
//! ```text
//! wait ─► for each socket that is ready, first of all those towards backends:
//!           receive a batch ─► each datagram: dispatch ─► send what came of it, one system call per socket
//! ```
//!
//! What comes from backends is worked through before the listeners are looked at: mostly responses, which end what was
//! begun. When more comes than can be carried, listeners' new requests are refused (`overload`).
//!
//! A batch is finished before the next is looked at, so nothing queues here but what the kernel does not take. A panic
//! costs the message it happened at.

use super::io::Io;
use super::outbox::{Fates, Leaving, Outbox, take_reports};
use super::overload::Overload;
use super::streams::Streams;
use super::witness::{Ends, Seen, Witness};
use crate::dataplane::counters::{Kind, ShardCounters, Tally};
use crate::dataplane::dispatch::{Dispatcher, EgressPorts};
use crate::dataplane::limits::{BATCH, DATAGRAM_MAX, EGRESS_BATCHES, HEAD_MAX};
use crate::dataplane::overload::Shedding;
use crate::dataplane::room::Room;
use crate::dataplane::route::Arrival;
use crate::dataplane::scan::Scanner;
use crate::dataplane::tables::Tables;
use crate::dataplane::verdict::{DropReason, Sender, Verdict};
use crate::link::{ShardEnd, Signal};
use crate::sys::errors::Unreachable;
use crate::sys::mmsg::ReceiveBatch;
use smallvec::SmallVec;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// Octets of the room for heads. One message may need [`HEAD_MAX`], nearly all need a few hundred; when less than
/// [`HEAD_MAX`] is left, what is there is sent first.
pub(super) const HEADS: usize = 4 * HEAD_MAX;

/// How often drops of the sockets are asked for, in milliseconds.
const DROPS_EVERY_MS: u64 = 1000;

/// One core's part of viahop, but for waiting.
pub struct Shard<I> {
    pub(super) number: usize,
    pub(super) io: I,
    /// Listeners for datagrams: the first of all.
    pub(super) listeners: usize,
    pub(super) egress: EgressPorts,
    pub(super) dispatcher: Dispatcher,
    pub(super) inbox: ReceiveBatch,
    pub(super) heads: Box<[u8]>,
    /// Octets of `heads` in use: `heads_used + HEAD_MAX <= HEADS` whenever a message is taken up.
    pub(super) heads_used: usize,
    pub(super) outbox: Outbox,
    /// Its connections.
    pub(super) streams: Option<Streams>,
    /// Messages that came on them in this turn.
    pub(super) stream_messages: usize,
    pub(super) tables: arc_swap::Cache<std::sync::Arc<arc_swap::ArcSwap<Tables>>, std::sync::Arc<Tables>>,
    pub(super) link: ShardEnd,
    overload: Overload,
    drops_asked_ms: u64,
    pub(super) witness: Witness,
    /// The number of the last question for connections that was answered.
    pub(super) listed: u64,
}

impl<I: Io> Shard<I> {
    /// Shard number `number`, with the first `listeners` sockets of `io` as listeners and those behind them as `egress`
    /// says.
    pub fn new(
        number: usize,
        io: I,
        listeners: usize,
        egress: EgressPorts,
        scanner: Scanner,
        link: ShardEnd,
    ) -> Shard<I> {
        let sockets = listeners + usize::from(egress.v4.is_some()) + usize::from(egress.v6.is_some());
        let mut dispatcher = Dispatcher::new(scanner, egress);
        dispatcher.router().shard = number;
        Shard {
            number,
            io,
            listeners,
            egress,
            dispatcher,
            inbox: ReceiveBatch::new(BATCH, DATAGRAM_MAX),
            heads: vec![0; HEADS].into_boxed_slice(),
            heads_used: 0,
            outbox: Outbox::new(sockets),
            streams: None,
            stream_messages: 0,
            tables: arc_swap::Cache::new(link.shared.tables.clone()),
            link,
            overload: Overload::new(listeners),
            drops_asked_ms: 0,
            witness: Witness::default(),
            listed: 0,
        }
    }

    /// Tells other shards of answers to INVITEs that this one did not forward.
    pub fn tell_answers(&mut self) {
        self.dispatcher.router().collects_strays = true;
    }

    /// The sockets.
    pub fn io(&self) -> &I {
        &self.io
    }

    /// The sockets, for whoever plays the network in a test.
    pub fn io_mut(&mut self) -> &mut I {
        &mut self.io
    }

    /// How many sockets there are.
    pub fn sockets(&self) -> usize {
        self.outbox.sockets()
    }

    /// Whether the shard is to end.
    pub fn is_stopping(&self) -> bool {
        self.link.shared.is_stopping()
    }

    /// Counts that it has slept after a turn.
    pub fn count_nap(&mut self) {
        self.link.counters.naps.add(1);
    }

    /// Whether messages wait for `socket` to take more.
    pub fn is_waiting(&self, socket: usize) -> bool {
        self.outbox.is_waiting(socket)
    }

    /// Works through what is there on the sockets that are ready, and returns how many datagrams that was.
    pub fn turn(&mut self, ready: impl Iterator<Item = usize> + Clone) -> usize {
        let start = Instant::now();
        let now_ms = self.link.shared.ms_at(start);
        self.link.counters.last_turn_ms.set(now_ms);
        self.io.allow_runs(self.link.shared.allows_runs());
        let mut received = start;
        let mut all = 0;
        let listeners = self.listeners;
        let egress = ready.clone().filter(|&socket| socket >= listeners);
        for socket in egress.chain(ready.filter(|&socket| socket < listeners)) {
            if self.outbox.is_waiting(socket) {
                let Shard { io, outbox, .. } = self;
                let mut ledger = Ledger::new(self.number, self.tables.load(), &self.link.counters);
                outbox.resume(io, socket, &mut ledger);
                ledger.close(&mut self.dispatcher, &self.link);
            }
            let count = self.receive_all(socket, now_ms);
            let sent = Instant::now();
            all += count;
            if count > 0 {
                self.link.counters.batches.add(count as u64, 1);
                self.link.counters.handling_ns.add((sent - received).as_nanos() as u64, count as u64);
            }
            received = sent;
        }
        self.link.counters.busy_ns.add((received - start).as_nanos() as u64);
        if now_ms.saturating_sub(self.drops_asked_ms) >= DROPS_EVERY_MS {
            self.drops_asked_ms = now_ms;
            self.ask_for_drops();
        }
        all
    }

    /// Receives a batch, and sends what comes of it; towards backends another while a listener's queue stands, if the first was
    /// full. Returns how many datagrams it was.
    fn receive_all(&mut self, socket: usize, now_ms: u64) -> usize {
        // Where the shard keeps up a second look mostly finds nothing: half as many system calls again, under strace.
        let is_enough = socket < self.listeners || self.overload.is_calm();
        let batches = if is_enough { 1 } else { EGRESS_BATCHES };
        let mut all = 0;
        for _ in 0..batches {
            let count = self.receive(socket, now_ms);
            all += count;
            if count < BATCH {
                break;
            }
        }
        all
    }

    /// Receives a batch, and sends what comes of it. Returns how many datagrams it was.
    fn receive(&mut self, socket: usize, now_ms: u64) -> usize {
        // An error is what became of a datagram sent earlier; so may nothing be, on a socket that was ready.
        let count = self.io.receive(socket, &mut self.inbox).unwrap_or(0);
        self.dispatcher.shedding = self.overload.on_batch(&mut self.io, socket, count, now_ms);
        for slot in 0..count {
            self.take(socket, slot, now_ms);
        }
        self.dispatcher.shedding = Shedding::Nothing;
        // Before the answers leave: what a caller sends next may be quicker than the word of them.
        self.tell_others();
        self.flush(count == 0, socket);
        count
    }

    /// Passes on what came of a batch and is news to another shard.
    #[inline]
    pub(super) fn tell_others(&mut self) {
        let strays = &mut self.dispatcher.router().strays;
        if !strays.is_empty() {
            self.link.counters.handoffs.add(strays.len() as u64);
            self.link.counters.handoffs_lost.add(self.link.mesh.tell_answered(strays));
            strays.clear();
        }
    }

    /// Decides about the datagram in `slot`, and puts what is to be sent into the outbox.
    #[inline]
    fn take(&mut self, socket: usize, slot: usize, now_ms: u64) {
        if self.heads_used + HEAD_MAX > HEADS {
            self.flush(false, socket);
        }
        let tables = self.tables.load();
        let counters = &self.link.counters;
        let listener = (socket < self.listeners).then_some(socket as u8);
        let datagram = self.inbox.datagram(slot);
        let mut room = Room::new(datagram.octets, &mut self.heads[self.heads_used..self.heads_used + HEAD_MAX]);
        let (kind, local) = match datagram.from {
            _ if datagram.truncated => {
                room.verdict = Verdict::Drop(DropReason::Truncated);
                (Kind::NoMessage, None)
            }
            None => {
                room.verdict = Verdict::Drop(DropReason::BadSource);
                (Kind::NoMessage, None)
            }
            Some(from) => {
                let local = datagram.local;
                let arrival = Arrival { from, listener, local, stream: None };
                self.witness.note(tables, room.input);
                let dispatcher = &mut self.dispatcher;
                let kind = contained(&mut room, |room| dispatcher.on_datagram(tables, now_ms, arrival, room));
                let is_refused = !matches!(room.verdict, Verdict::Forward { .. });
                if kind != Kind::NoMessage && (is_refused || tables.are_watched()) {
                    let ends = ends_of(&mut self.streams, room.verdict);
                    let (shard, egress) = (self.number, self.egress);
                    let seen = Seen { shard, now_ms, tables, arrival, room: &room, egress, ends };
                    let (witness, link) = (&mut self.witness, &self.link);
                    // What is told of a message is worth less than the shard: a bug there costs the telling.
                    catch_unwind(AssertUnwindSafe(|| witness.look(&seen, dispatcher, link))).ok();
                }
                (kind, local)
            }
        };
        counters.received(listener, kind).add(1);
        let (to, way_out, local, tally) = match room.verdict {
            Verdict::Drop(reason) => return counters.dropped[reason as usize].add(1),
            Verdict::Reply { to, answer } => (to, Some(socket), local, Tally::Reply(answer)),
            Verdict::Forward { to, from, backend } => {
                let tally = match kind {
                    Kind::Response(code) => Tally::Response(backend, code),
                    _ => Tally::Request(backend),
                };
                let (way_out, local) = match from {
                    Sender::Egress => (egress_number(self.listeners, self.egress, to), None),
                    // Tokens may name a listener that datagrams do not leave by.
                    Sender::Listener { index, local } => {
                        (Some(index as usize).filter(|&one| one < self.listeners), local)
                    }
                    Sender::Connect { .. } | Sender::Stream { .. } => {
                        let head = self.heads_used..self.heads_used + room.head_len;
                        let tail = room.tail.clone();
                        let leaving = Leaving { to, local: None, head, slot, tail, pads: false, tally };
                        let Some(source) = datagram.from else { return };
                        let arrival = Arrival { from: source, listener, local: datagram.local, stream: None };
                        return self.leave_by_stream(from, &leaving, arrival, now_ms);
                    }
                };
                (to, way_out, local, tally)
            }
        };
        let Some(way_out) = way_out.filter(|&number| number < self.outbox.sockets()) else {
            return counters.dropped[DropReason::NoEgress as usize].add(1);
        };
        let head = self.heads_used..self.heads_used + room.head_len;
        let tail = room.tail.clone();
        self.heads_used = head.end.next_multiple_of(64);
        let pads = may_be_padded(&self.io, tables, &self.dispatcher, tally);
        self.outbox.add(way_out, Leaving { to, local, head, slot, tail, pads, tally });
    }

    /// Sends what is in the outbox. With `reports`, asks `socket` for what the network said about earlier datagrams.
    pub(super) fn flush(&mut self, reports: bool, socket: usize) {
        let Shard { io, outbox, inbox, heads, .. } = self;
        let mut ledger = Ledger::new(self.number, self.tables.load(), &self.link.counters);
        outbox.flush(io, inbox, heads, &mut ledger);
        if reports {
            take_reports(io, socket, &mut ledger);
        }
        ledger.close(&mut self.dispatcher, &self.link);
        self.heads_used = 0;
    }

    /// Brings the counters of dropped datagrams up to date, and those that the router keeps.
    pub fn ask_for_drops(&mut self) {
        let is_draining = self.tables.load().draining;
        let counters = &self.link.counters;
        let egress_place = counters.socket_drops.len() - 1;
        let mut egress = 0;
        for socket in 0..self.outbox.sockets() {
            let drops = self.io.drops(socket);
            if socket < self.listeners {
                counters.socket_drops[socket].set(drops);
            } else {
                egress += drops;
            }
        }
        counters.socket_drops[egress_place].set(egress);
        let router = self.dispatcher.router();
        if is_draining {
            counters.ringing.set(router.open_invites(self.link.shared.now_ms()));
        }
        counters.backend_full.set(router.full);
        counters.memory_followed.set(router.followed);
        counters.memory_unknown.set(router.unknown);
        counters.memory_evicted.set(router.evicted);
        counters.strange_tokens.set(router.strange_tokens);
        counters.orphaned.set(router.orphaned);
        counters.vias_rebuilt.set(self.dispatcher.vias_rebuilt);
        counters.shed.set(self.dispatcher.shed);
    }

    /// Sends what waits, if it can be sent at once, and counts the rest as lost.
    pub fn finish(&mut self) {
        let Shard { io, outbox, .. } = self;
        let mut ledger = Ledger::new(self.number, self.tables.load(), &self.link.counters);
        for socket in 0..outbox.sockets() {
            outbox.resume(io, socket, &mut ledger);
        }
        outbox.abandon(&mut ledger);
        ledger.close(&mut self.dispatcher, &self.link);
        self.finish_streams();
        self.ask_for_drops();
    }
}

/// Whether octets that mean nothing may follow the message that was last decided about: a request, whose pool allows it, and
/// which says itself where it ends.
#[inline]
pub(super) fn may_be_padded(io: &impl Io, tables: &Tables, dispatcher: &Dispatcher, tally: Tally) -> bool {
    if !io.makes_runs() {
        return false;
    }
    let Tally::Request(Some(index)) = tally else { return false };
    tables.backends.get(index as usize).is_some_and(|backend| backend.reach.pads) && dispatcher.says_length()
}

/// The number of the egress socket that reaches `to`: they stand behind the listeners, IPv4 first.
pub(super) fn egress_number(listeners: usize, egress: EgressPorts, to: SocketAddr) -> Option<usize> {
    match to {
        SocketAddr::V4(_) => egress.v4.map(|_| listeners),
        SocketAddr::V6(_) => egress.v6.map(|_| listeners + usize::from(egress.v4.is_some())),
    }
}

/// The ends of the connection that a message leaves by, if it is one of this shard's.
pub(super) fn ends_of(streams: &mut Option<Streams>, verdict: Verdict) -> Option<Ends> {
    match verdict {
        Verdict::Forward { to, from: Sender::Stream { id, .. }, .. } => streams.as_mut()?.ends(id, to),
        _ => None,
    }
}

/// What `dispatch` says of the message in `room`, or that it panicked: a bug of ours, which costs this message and no other.
#[inline(always)]
pub(super) fn contained<'a>(room: &mut Room<'a>, dispatch: impl FnOnce(&mut Room<'a>) -> Kind) -> Kind {
    // What a panic may leave half done is cleared at the start of every message, or is right in itself: an entry of the
    // call memory, a counter.
    catch_unwind(AssertUnwindSafe(|| dispatch(room))).unwrap_or_else(|_| {
        room.verdict = Verdict::Drop(DropReason::Panic);
        Kind::NoMessage
    })
}

/// Enters the fates of messages into the counters.
pub(super) struct Ledger<'a> {
    number: usize,
    pub(super) tables: &'a Tables,
    counters: &'a ShardCounters,
    unreachable: SmallVec<[Unreachable; 4]>,
}

impl<'a> Ledger<'a> {
    pub(super) fn new(number: usize, tables: &'a Tables, counters: &'a ShardCounters) -> Ledger<'a> {
        Ledger { number, tables, counters, unreachable: SmallVec::new() }
    }

    /// Tells the control plane of backends that cannot be reached, and makes the router pass over those it was told of: nobody
    /// else ends a suspicion, and whoever is suspected gets nothing by which it could be noticed again.
    #[inline]
    pub(super) fn close(self, dispatcher: &mut Dispatcher, link: &ShardEnd) {
        for Unreachable { to, code } in self.unreachable {
            let Some(&index) = self.tables.by_address.get(&to) else { continue };
            let backend = &self.tables.backends[index as usize];
            if let Some(counters) = backend.counters.shard(self.number) {
                counters.errors.add(1);
            }
            let router = dispatcher.router();
            if !router.is_suspect(self.tables, index) && link.signal(Signal::Unreachable { to, code }) {
                router.suspect(self.tables, to);
            }
        }
    }
}

impl Fates for Ledger<'_> {
    #[inline(always)]
    fn sent(&mut self, tally: Tally) {
        let counters = self.counters;
        let (backend, code) = match tally {
            Tally::Reply(answer) => return counters.replied[answer.index()].add(1),
            Tally::Request(backend) => (backend, None),
            Tally::Response(backend, code) => (backend, Some(code)),
        };
        counters.forwarded.add(1);
        let backend = backend.and_then(|index| self.tables.backends.get(index as usize));
        let Some(of_backend) = backend.and_then(|backend| backend.counters.shard(self.number)) else {
            return counters.forwarded_elsewhere.add(1);
        };
        match code {
            None => of_backend.requests.add(1),
            Some(code) => {
                of_backend.responses[(code / 100).clamp(1, 6) as usize - 1].add(1);
                of_backend.unavailable.add(u64::from(code == 503));
            }
        }
    }

    fn lost(&mut self, reason: DropReason) {
        self.counters.dropped[reason as usize].add(1);
    }

    /// Of a backend that takes datagrams it says nothing: only its longest requests would have gone so.
    fn refused(&mut self, to: SocketAddr, code: i32) {
        let backend = self.tables.by_address.get(&to).and_then(|&index| self.tables.backends.get(index as usize));
        if backend.is_some_and(|backend| backend.reach.transport.is_stream()) {
            self.unreachable.push(Unreachable { to, code });
        }
    }

    fn handed_over(&mut self) {
        self.counters.handed_over.add(1);
    }

    fn unreachable(&mut self, report: Unreachable) {
        if report.is_of_destination() {
            self.unreachable.push(report);
        }
    }

    fn waiting(&mut self, change: i64) {
        let waiting = &self.counters.waiting;
        waiting.set(waiting.get().wrapping_add_signed(change));
    }
}
