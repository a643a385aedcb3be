//! One shard of the calling side: a thread, its sockets, its calls and their timers.
//!
//! ```text
//! loop: commands ─► calls that are due ─► timers that are due ─► send ─► receive ─► send ─► wait for the next of all these
//! ```
//!
//! A call that is due is placed however many are open and however late it is: what the element does has no say in it.
//!
//! Here is the loop, the schedule and the life of a call; [`sending`] has requests and their timers, [`receiving`] what
//! comes, [`checking`] what is demanded of it.

mod checking;
mod receiving;
mod sending;

use super::call::{Call, Cancel, State};
use super::request::{SLOTS_MAX, Stationery};
use super::{Command, Config, Counts, NO_ROOM, OVERTIME_NS, Report, Snapshot, lines};
use crate::clock::{SECOND_NS, now_ns};
use crate::impair::BadNetwork;
use crate::latency::Latencies;
use crate::pace::{LINGER_NS, Pace};
use crate::remote::Inbox;
use crate::rng::{Rng, mix};
use crate::scenario::{Body, Pause, Step};
use crate::schedule::Schedule;
use crate::sip::message::{Message, Method, Rows};
use crate::streams::{Inlet, STREAM_TOKENS, Streams};
use crate::sys::address::Address;
use crate::sys::batch::{BATCH_MAX, Receiver, Sender};
use crate::sys::socket::Socket;
use crate::sys::wait::{Waiter, wake_on_time};
use crate::timer::Wheel;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Connections of one shard: as many as a call's note of its own can tell apart.
const PORTS_MAX: usize = 1 << 16;

/// Calls placed in one turn before responses get theirs.
const PLACED_PER_TURN: u32 = 64;

pub(super) struct Worker {
    io: Io,
    shard: Shard,
}

/// What a message is read with; apart from the rest, because a message borrows it.
struct Io {
    receiver: Receiver,
    inlet: Inlet,
    rows: Rows,
    inbox: Inbox<Command>,
    waiter: Waiter,
    ready: Vec<u32>,
    fired: Vec<u32>,
}

struct Shard {
    config: Arc<Config>,
    ports: Vec<Port>,
    lanes: Vec<Lane>,
    streams: Streams,
    target: Address,
    /// What makes this shard's calls differ from all others'.
    key: u64,
    schedule: Schedule,
    rng: Rng,
    /// No call is due at or after this time.
    end_ns: u64,
    /// Calls this shard still may place.
    left: u64,
    /// When what is open is cut. `u64::MAX` while calls are still placed.
    cut_ns: u64,
    calls: Vec<Call>,
    free: Vec<u32>,
    open: u64,
    wheel: Wheel,
    pace: Pace,
    next_number: u64,
    /// Due times of the calls placed in this turn.
    due: Vec<u64>,
    first_due_ns: u64,
    last_placed_ns: u64,
    /// Where each scenario's steps are among `report.lines`.
    places: Vec<Vec<usize>>,
    report: Report,
    /// What snapshots show: since the last one.
    recent: Latencies,
    recent_lateness: Latencies,
}

/// Where calls come from: an address of ours, and the lane its messages take.
struct Port {
    stationery: Stationery,
    /// Over UDP each port has one of its own, over TCP all share one.
    lane: usize,
    /// The other end of its connection, to which everything goes; `None`: each message goes to its next hop.
    peer: Option<Address>,
}

/// Messages that are about to leave.
struct Lane {
    sender: Sender,
    /// `None`: by connections.
    socket: Option<Socket>,
    network: Option<BadNetwork>,
}

/// What is particular to one request of a call.
#[derive(Clone, Copy)]
struct Sketch<'a> {
    method: Method,
    body: Body,
    expires: Option<u32>,
    transaction: u8,
    cseq: u32,
    failure_tag: &'a [u8],
}

impl Sketch<'_> {
    fn bare(method: Method, transaction: u8, cseq: u32) -> Sketch<'static> {
        Sketch { method, body: Body::None, expires: None, transaction, cseq, failure_tag: b"" }
    }
}

/// A response and whose it is.
struct Response<'a> {
    message: &'a Message<'a>,
    code: u16,
    slot: u32,
    id: u64,
    transaction: u8,
    now: u64,
}

impl Worker {
    pub(super) fn new(
        config: Arc<Config>,
        number: usize,
        waiter: Waiter,
        inbox: Inbox<Command>,
        sockets: Vec<Socket>,
    ) -> io::Result<Worker> {
        let mut rng = Rng::new(mix(config.seed) ^ mix(number as u64));
        let (mut ports, mut lanes) = (Vec::new(), Vec::new());
        let key = rng.next_u64();
        for (lane, socket) in sockets.into_iter().enumerate() {
            waiter.add(&socket, lane as u32)?;
            ports.push(Port { stationery: Stationery::new(socket.local(), &config, key), lane, peer: None });
            let network = BadNetwork::new(config.impairment, rng.next_u64());
            let segments = config.segments && network.is_none();
            let sender = if segments { Sender::segmenting() } else { Sender::new() };
            lanes.push(Lane { sender, socket: Some(socket), network });
        }
        let shards = config.cores.len() as u64;
        let client = config.tls.clone().filter(|_| config.transport.has_tls());
        let mut streams = Streams::new(&waiter).with_tls(client, None).with_websockets(config.transport.is_websocket());
        if config.transport.is_reliable() {
            lanes.push(Lane { sender: Sender::new(), socket: None, network: None });
            // Those that do not divide go to the first shards.
            let (all, shards) = (config.connections.min(PORTS_MAX), shards as usize);
            for place in 0..(all / shards + usize::from(number < all % shards)).max(1) as u32 {
                let peer = streams.open(config.target, config.from, place);
                // It gets its own address when the connection has one.
                let stationery = Stationery::new(SocketAddr::new(config.from, 0), &config, key);
                ports.push(Port { stationery, lane: 0, peer: Some(peer) });
            }
        }
        // The calls that do not divide go to the first shards.
        let left = config.calls / shards + u64::from((number as u64) < config.calls % shards);
        let (lines, places) = lines(&config.mix);
        let shard = Shard {
            ports,
            lanes,
            streams,
            key,
            target: Address::from(config.target),
            schedule: Schedule::new(config.arrivals, 0.0, 0, rng.next_u64()),
            rng,
            end_ns: 0,
            left,
            cut_ns: u64::MAX,
            calls: Vec::new(),
            free: Vec::new(),
            open: 0,
            wheel: Wheel::new(0),
            pace: Pace::default(),
            // Shards take turns with the numbers, so that no two call as the same user at the same time.
            next_number: number as u64,
            due: Vec::new(),
            first_due_ns: u64::MAX,
            last_placed_ns: 0,
            places,
            report: Report { lines, ..Report::default() },
            recent: Latencies::default(),
            recent_lateness: Latencies::default(),
            config,
        };
        let receiver = Receiver::new(BATCH_MAX);
        let (inlet, rows) = (Inlet::default(), Rows::default());
        let io = Io { receiver, inlet, rows, inbox, waiter, ready: Vec::new(), fired: Vec::new() };
        Ok(Worker { io, shard })
    }

    /// Opens all connections, waits until they are open, for at most `patience_ns`, and says from where they are.
    pub(super) fn connect(&mut self, patience_ns: u64) -> io::Result<Vec<SocketAddr>> {
        let mut addresses = Vec::new();
        self.shard.reopen(now_ns(), |address| addresses.push(address));
        self.shard.streams.settle(&self.io.waiter, patience_ns)?;
        Ok(addresses)
    }

    /// Runs until all is over.
    pub(super) fn run(&mut self, start_ns: u64) -> io::Result<()> {
        wake_on_time();
        let Worker { io, shard } = self;
        shard.begin(start_ns);
        loop {
            while let Some(command) = io.inbox.next() {
                shard.obey(command);
            }
            let now = now_ns();
            shard.place_due(now);
            shard.wheel.expire(now, &mut io.fired);
            for slot in io.fired.drain(..) {
                shard.on_timer(slot, now);
            }
            shard.flush();
            shard.mend(now_ns());
            if shard.is_over(now_ns()) {
                return Ok(());
            }
            let now = now_ns();
            let mut timeout = shard.next_ns(now).saturating_sub(now).min(SECOND_NS);
            // A busy shard looks at its schedule as often as at its sockets: calls are late by up to that. One that has
            // fallen behind by more does not sleep.
            if shard.pace.lingers(now) && now.saturating_sub(shard.next_ns(now)) < LINGER_NS {
                std::thread::sleep(Duration::from_nanos(LINGER_NS));
                timeout = 0;
            }
            io.waiter.wait(timeout, &mut io.ready)?;
            while let Some(token) = io.ready.pop() {
                match token & STREAM_TOKENS {
                    0 => shard.receive(io, token as usize),
                    _ => shard.read(io, token),
                }
            }
        }
    }

    /// The state of this moment.
    pub(super) fn snapshot(&mut self) -> Snapshot {
        self.shard.snapshot()
    }

    /// What it all came to.
    pub(super) fn end(&mut self) -> Report {
        self.shard.end()
    }
}

impl Shard {
    fn begin(&mut self, start_ns: u64) {
        // The shards share one rate: each starts its own part of a gap after the one before.
        let shards = self.config.cores.len() as f64;
        let rate = self.config.rate / shards;
        let phase =
            if self.config.rate > 0.0 { self.next_number as f64 * SECOND_NS as f64 / self.config.rate } else { 0.0 };
        let first = start_ns + phase as u64;
        self.schedule.set_rate(rate, first);
        self.end_ns = start_ns.saturating_add(self.config.duration_ns);
        self.wheel = Wheel::new(now_ns());
    }

    fn obey(&mut self, command: Command) {
        let now = now_ns();
        match command {
            Command::Rate(rate) => self.schedule.set_rate(rate, now),
            Command::Snapshot(reply) => drop(reply.send(self.snapshot())),
            Command::Cut => (self.end_ns, self.cut_ns) = (0, 0),
            Command::Stop => self.end_ns = 0,
        }
    }

    fn snapshot(&mut self) -> Snapshot {
        self.report.counts.overflowed = self.dropped();
        Snapshot {
            counts: self.report.counts,
            open: self.open,
            sent: self.report.sent.clone(),
            received: self.report.received.clone(),
            latency: std::mem::take(&mut self.recent),
            lateness: std::mem::take(&mut self.recent_lateness),
            finished: false,
        }
    }

    /// Datagrams that our own receive buffers had no room for.
    fn dropped(&self) -> u64 {
        self.lanes.iter().filter_map(|lane| lane.socket.as_ref()).map(Socket::dropped).sum()
    }

    /// Whether calls are still to come. A rate of 0 is a pause, and not the end.
    fn is_placing(&self, now: u64) -> bool {
        self.left > 0 && self.schedule.next_ns().min(now) < self.end_ns
    }

    /// When there is something to do without a datagram coming in.
    fn next_ns(&self, now: u64) -> u64 {
        let due = if self.is_placing(now) { self.schedule.next_ns().min(self.end_ns) } else { u64::MAX };
        let kept = self.lanes.iter().filter_map(|lane| Some(lane.network.as_ref()?.next_ns())).min();
        let other = kept.unwrap_or(u64::MAX).min(self.streams.next_ns());
        due.min(self.wheel.next_ns()).min(self.cut_ns).min(other)
    }

    fn is_over(&mut self, now: u64) -> bool {
        if self.is_placing(now) && now > self.end_ns.saturating_add(OVERTIME_NS) {
            self.give_up_placing();
        }
        if self.is_placing(now) {
            return false;
        }
        if self.cut_ns == u64::MAX {
            self.cut_ns = now.saturating_add(self.config.drain_ns);
        }
        // What is kept back on purpose is late, and not lost.
        let is_kept = |lane: &Lane| lane.network.as_ref().is_some_and(|network| network.next_ns() < u64::MAX);
        (self.open == 0 && !self.lanes.iter().any(is_kept)) || now >= self.cut_ns
    }

    /// The rate is beyond this machine: what is due and has not been placed by now never is.
    fn give_up_placing(&mut self) {
        let missing =
            self.end_ns.saturating_sub(self.schedule.next_ns()) as f64 * self.schedule.rate() / SECOND_NS as f64;
        self.report.counts.unplaced += (missing.ceil() as u64).min(self.left);
        self.left = 0;
    }

    fn end(&mut self) -> Report {
        self.report.counts.cut = self.open;
        self.report.counts.overflowed = self.dropped();
        let mut report = std::mem::take(&mut self.report);
        // The last call's gap belongs to the time calls were placed in.
        let gap = if self.schedule.rate() > 0.0 { (SECOND_NS as f64 / self.schedule.rate()) as u64 } else { 0 };
        report.placing_ns = (self.last_placed_ns + gap).saturating_sub(self.first_due_ns);
        report.elapsed_ns = now_ns().saturating_sub(self.first_due_ns);
        report
    }

    fn place_due(&mut self, now: u64) {
        for _ in 0..PLACED_PER_TURN {
            let due = self.schedule.next_ns();
            if due > now || due >= self.end_ns || self.left == 0 {
                return;
            }
            self.schedule.take();
            self.left -= 1;
            self.place(due, now);
        }
    }

    fn place(&mut self, due: u64, now: u64) {
        self.report.counts.placed += 1;
        self.first_due_ns = self.first_due_ns.min(due);
        self.last_placed_ns = now;
        let number = self.next_number;
        self.next_number += self.config.cores.len() as u64;
        let scenario = self.config.mix.choose(self.rng.next_unit());
        let Some(slot) = self.free_slot() else {
            self.count_failure(self.places[scenario][0], NO_ROOM);
            self.report.counts.failed += 1;
            return;
        };
        self.open += 1;
        self.report.open_max = self.report.open_max.max(self.open);
        self.due.push(due);
        let port = number % self.ports.len() as u64;
        let call = &mut self.calls[slot as usize];
        call.reset();
        (call.number, call.scenario, call.port) = (number, scenario as u8, port as u16);
        (call.next_hop, call.step) = (self.target, 0);
        self.run_step(slot, due, now);
    }

    /// Opens connections again that were lost. Calls that wait for something there have failed.
    fn mend(&mut self, now: u64) {
        // First, so that what ends a call that fails is sent from the address that its port has then.
        let mut reconnects = 0;
        self.reopen(now, |_| reconnects += 1);
        self.report.counts.reconnects += reconnects;
        while let Some(ended) = self.streams.next_ended() {
            match ended.was_open {
                true => self.report.counts.connections_lost += 1,
                false => self.report.counts.refused += 1,
            }
            let waits = |call: &Call| {
                u32::from(call.port) == ended.place
                    && matches!(call.state, State::Calling | State::Proceeding | State::Receiving)
            };
            for slot in 0..self.calls.len() as u32 {
                if waits(&self.calls[slot as usize]) {
                    self.wheel.disarm(slot);
                    self.fail(slot, ended.cause, now);
                }
            }
        }
    }

    /// Opens connections that are down, each of which speaks from another address then.
    fn reopen(&mut self, now: u64, mut opened: impl FnMut(SocketAddr)) {
        let Shard { streams, ports, config, key, .. } = self;
        streams.reopen(now, |place, local| {
            ports[place as usize].stationery = Stationery::new(local, config, *key);
            opened(local);
        });
    }

    fn free_slot(&mut self) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        if self.calls.len() >= self.config.calls_max.min(SLOTS_MAX) {
            return None;
        }
        self.calls.push(Call::free());
        Some(self.calls.len() as u32 - 1)
    }

    /// Begins the call's current step, which was due at `due`.
    fn run_step(&mut self, slot: u32, due: u64, now: u64) {
        let config = Arc::clone(&self.config);
        let call = &mut self.calls[slot as usize];
        match config.mix.scenario(usize::from(call.scenario)).steps.get(usize::from(call.step)) {
            None => self.complete(slot, now),
            Some(Step::Pause(pause)) => {
                let pause = match pause {
                    Pause::Fixed(pause) => *pause,
                    Pause::Hold => config.hold_ns,
                };
                if pause == 0 {
                    call.step += 1;
                    return self.run_step(slot, due, now);
                }
                call.state = State::Pausing;
                // The wheel has ticks; the step after the pause is due in the tick in which it ends, and not before.
                let until = self.wheel.arm(slot, now + pause);
                let call = &mut self.calls[slot as usize];
                (call.timer_ns, call.give_up_ns) = (until, u64::MAX);
            }
            Some(Step::Send(send)) => self.begin_request(slot, send.method, due, now),
            Some(Step::Receive(receive)) => {
                (call.due_ns, call.timer_ns, call.give_up_ns) = (now, now + receive.within_ns, u64::MAX);
                call.state = State::Receiving;
                if call.early.take_if(|early| *early == receive.method).is_some() {
                    return self.on_received(slot, now);
                }
                self.arm(slot);
            }
        }
    }

    fn arm(&mut self, slot: u32) {
        let at = self.calls[slot as usize].next_timer_ns();
        self.wheel.arm(slot, at);
    }

    fn complete(&mut self, slot: u32, now: u64) {
        self.report.counts.completed += 1;
        self.open -= 1;
        self.leave(slot, now);
    }

    /// The call is over. If its last word was the ACK of a failure, its place is kept for Timer D, so that the failure is
    /// acknowledged again should it come again.
    fn leave(&mut self, slot: u32, now: u64) {
        let linger = self.config.timers.give_up_ns();
        let call = &mut self.calls[slot as usize];
        // Timer D is 0 where nothing is sent again (RFC 3261 17.1.1.2).
        let reliable = self.config.transport.is_reliable();
        if reliable || call.peer.is_known() || call.invite != call.transaction || call.invite_cseq == 0 {
            return self.release(slot);
        }
        call.state = State::Lingering;
        (call.timer_ns, call.give_up_ns, call.cancel) = (now + linger, u64::MAX, Cancel::No);
        self.arm(slot);
    }

    fn release(&mut self, slot: u32) {
        debug_assert!(self.calls[slot as usize].state != State::Free);
        self.calls[slot as usize].state = State::Free;
        self.wheel.disarm(slot);
        self.free.push(slot);
    }

    fn flush(&mut self) {
        for lane in &mut self.lanes {
            if !lane.sender.is_empty() || lane.network.is_some() {
                lane.flush(&mut self.streams, &mut self.report.counts);
            }
        }
        self.streams.flush();
        if self.due.is_empty() {
            return;
        }
        let now = now_ns();
        for due in self.due.drain(..) {
            let late = now.saturating_sub(due);
            self.report.lateness.record(late);
            self.recent_lateness.record(late);
        }
    }
}

impl Lane {
    /// Makes room for one more message.
    #[inline]
    fn make_room(&mut self, streams: &mut Streams, counts: &mut Counts) {
        if self.sender.is_full() {
            self.flush(streams, counts);
        }
    }

    fn flush(&mut self, streams: &mut Streams, counts: &mut Counts) {
        let Some(socket) = &self.socket else {
            for index in 0..self.sender.count() {
                let (octets, to) = self.sender.message(index);
                counts.unsent += u64::from(!streams.push(to, octets));
            }
            return self.sender.clear();
        };
        loop {
            let Counts { unsent, refused, on_purpose, .. } = counts;
            let more = match &mut self.network {
                Some(network) => network.send(&mut self.sender, now_ns(), on_purpose),
                None => false,
            };
            self.sender.flush(socket, &mut |error| match error.unsent {
                true => *unsent += 1,
                false => *refused += 1,
            });
            if !more {
                return;
            }
        }
    }
}
