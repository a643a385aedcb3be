//! One shard of the calling side: a thread, its sockets, its calls and their timers.
//!
//! ```text
//! loop: commands ─► calls that are due ─► timers that are due ─► send ─► receive ─► send ─► wait for the next of all these
//! ```
//!
//! A call that is due is placed however many are open and however late it is: what the element does has no say in it.

use super::call::{Call, Cancel, State};
use super::request::{Request, SLOTS_MAX, Stationery};
use super::{Command, Config, Counts, OVERTIME_NS, Report, Snapshot, WRONGS_LISTED, Wrong, lines};
use crate::clock::{SECOND_NS, now_ns};
use crate::digest::{self, Asked};
use crate::impair::BadNetwork;
use crate::latency::Latencies;
use crate::pace::{LINGER_NS, Pace};
use crate::remote::Inbox;
use crate::rng::{Rng, mix};
use crate::scenario::{Body, Pause, Send, Step};
use crate::schedule::Schedule;
use crate::seal::{self, Sealed, Verdict, code_digits, put_seal};
use crate::sip::answer::{Echoed, Span, destination, echo};
use crate::sip::message::{Malformed, Message, Method, Name, Rows, Start};
use crate::sip::text::Text;
use crate::sip::value::{address, cseq, param, split, split_first, tag, uri, uri_host_port};
use crate::sys::address::Address;
use crate::sys::batch::{BATCH_MAX, Receiver, Sender, drain_errors};
use crate::sys::socket::Socket;
use crate::sys::wait::{Waiter, wake_on_time};
use crate::tally::Kind;
use crate::timer::Wheel;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Calls placed in one turn before responses get theirs.
const PLACED_PER_TURN: u32 = 64;

/// Octets that are kept of a row that was wrong.
const ROW_MAX: usize = 200;

/// Receives of one socket in a row before the others get their turn.
const RECEIVES_MAX: usize = 4;

/// Name of the end of a dialog that no step asks for: something failed, and the callee is not left behind with it.
const CLOSING: &[u8] = b"BYE";

pub(super) struct Worker {
    io: Io,
    shard: Shard,
}

/// What a datagram is read with; apart from the rest, because a message borrows it.
struct Io {
    receiver: Receiver,
    rows: Rows,
    inbox: Inbox<Command>,
    waiter: Waiter,
    ready: Vec<u32>,
    fired: Vec<u32>,
}

struct Shard {
    config: Arc<Config>,
    ports: Vec<Port>,
    target: Address,
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

struct Port {
    socket: Socket,
    sender: Sender,
    stationery: Stationery,
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
        let mut ports = Vec::new();
        let key = rng.next_u64();
        for (index, socket) in sockets.into_iter().enumerate() {
            waiter.add(&socket, index as u32)?;
            let stationery = Stationery::new(socket.local(), &config, key);
            let network = BadNetwork::new(config.impairment, rng.next_u64());
            let segments = config.segments && network.is_none();
            let sender = if segments { Sender::segmenting() } else { Sender::new() };
            ports.push(Port { socket, sender, stationery, network });
        }
        let shards = config.cores.len() as u64;
        // The calls that do not divide go to the first shards.
        let left = config.calls / shards + u64::from((number as u64) < config.calls % shards);
        let (lines, places) = lines(&config.mix);
        let shard = Shard {
            ports,
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
        let io = Io { receiver, rows: Rows::default(), inbox, waiter, ready: Vec::new(), fired: Vec::new() };
        Ok(Worker { io, shard })
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
            while let Some(port) = io.ready.pop() {
                shard.receive(io, port as usize);
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
        self.report.counts.overflowed = self.ports.iter().map(|port| port.socket.dropped()).sum();
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

    /// Whether calls are still to come. A rate of 0 is a pause, and not the end.
    fn is_placing(&self, now: u64) -> bool {
        self.left > 0 && self.schedule.next_ns().min(now) < self.end_ns
    }

    /// When there is something to do without a datagram coming in.
    fn next_ns(&self, now: u64) -> u64 {
        let due = if self.is_placing(now) { self.schedule.next_ns().min(self.end_ns) } else { u64::MAX };
        let kept = self.ports.iter().filter_map(|port| Some(port.network.as_ref()?.next_ns())).min();
        due.min(self.wheel.next_ns()).min(self.cut_ns).min(kept.unwrap_or(u64::MAX))
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
        self.open == 0 || now >= self.cut_ns
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
        self.report.counts.overflowed = self.ports.iter().map(|port| port.socket.dropped()).sum();
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
            self.count_failure(self.places[scenario][0], "no room for more calls");
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

    fn begin_request(&mut self, slot: u32, method: Method, due: u64, now: u64) {
        let timers = self.config.timers;
        let line = self.line_of(slot);
        let call = &mut self.calls[slot as usize];
        call.transaction = call.transaction.wrapping_add(2);
        call.cseq += 1;
        call.cancel = Cancel::No;
        if method == Method::Invite {
            (call.invite, call.invite_cseq) = (call.transaction, call.cseq);
        }
        (call.state, call.due_ns, call.interval_ns) = (State::Calling, due, timers.t1_ns);
        (call.timer_ns, call.give_up_ns) = (now + timers.t1_ns, now + timers.give_up_ns());
        self.report.counts.requests += 1;
        if let Some(line) = line {
            self.report.lines[line].sent += 1;
        }
        self.arm(slot);
        self.send_request(slot);
    }

    /// Sends what the call is waiting for an answer to, for the first time or again: the octets are the same.
    fn send_request(&mut self, slot: u32) {
        let config = Arc::clone(&self.config);
        let call = &self.calls[slot as usize];
        let (method, body, expires) = match self.step(&config, slot) {
            Some(send) => (send.method, send.body, send.expires),
            None => (Method::Bye, Body::None, None),
        };
        let (transaction, cseq) = (call.transaction, call.cseq);
        self.send(slot, &Sketch { method, body, expires, transaction, cseq, failure_tag: b"" });
    }

    fn send(&mut self, slot: u32, sketch: &Sketch<'_>) {
        let Sketch { method, body, expires, transaction, cseq, failure_tag } = *sketch;
        let call = &self.calls[slot as usize];
        let port = &mut self.ports[usize::from(call.port)];
        let id = port.stationery.id(slot, call.generation);
        let in_dialog = call.peer.is_known();
        let callee = self.config.mix.scenario(usize::from(call.scenario)).callee.as_bytes();
        let request = Request { method, body, expires, callee, transaction, cseq, in_dialog, failure_tag };
        port.make_room(&mut self.report.counts);
        let mut out = Text::new(port.sender.room());
        port.stationery.put(&mut out, call, id, &request);
        match out.finish() {
            Some(len) => {
                let call = &mut self.calls[slot as usize];
                let level = call.order.next(&port.sender);
                port.sender.push_at(len, call.next_hop, level);
                self.report.sent.note(Kind::request(method));
            }
            None => self.report.counts.unsent += 1,
        }
    }

    /// The step's request; `None` while the dialog is being ended outside of the scenario.
    fn step<'a>(&self, config: &'a Config, slot: u32) -> Option<&'a Send> {
        let call = &self.calls[slot as usize];
        let scenario = config.mix.scenario(usize::from(call.scenario));
        match scenario.steps.get(usize::from(call.step)) {
            Some(Step::Send(send)) if !call.closing => Some(send),
            _ => None,
        }
    }

    fn line_of(&self, slot: u32) -> Option<usize> {
        let call = &self.calls[slot as usize];
        (!call.closing).then(|| self.places[usize::from(call.scenario)][usize::from(call.step)])
    }

    fn arm(&mut self, slot: u32) {
        let at = self.calls[slot as usize].next_timer_ns();
        self.wheel.arm(slot, at);
    }

    fn on_timer(&mut self, slot: u32, now: u64) {
        let call = &mut self.calls[slot as usize];
        match call.state {
            State::Free => {}
            State::Lingering => self.release(slot),
            State::Receiving => self.fail(slot, "timeout: it never came", now),
            State::Pausing => {
                let due = call.timer_ns;
                call.step += 1;
                self.run_step(slot, due, now);
            }
            // A retransmission that was due before the end is not left out because this machine was late.
            State::Calling if now >= call.give_up_ns && call.timer_ns >= call.give_up_ns => {
                self.fail(slot, "timeout: no response", now);
            }
            State::Proceeding if now >= call.give_up_ns && call.timer_ns >= call.give_up_ns => {
                self.fail(slot, "timeout: no final response", now);
            }
            State::Calling | State::Proceeding => {
                if now >= call.timer_ns {
                    self.retransmit(slot, now);
                }
                self.cancel_if_due(slot, now);
                self.arm(slot);
            }
        }
    }

    fn retransmit(&mut self, slot: u32, now: u64) {
        let config = Arc::clone(&self.config);
        let t2_ns = config.timers.t2_ns;
        let method = self.step(&config, slot).map_or(Method::Bye, |send| send.method);
        let call = &mut self.calls[slot as usize];
        //= RFC 3261 section 17.1.1.2
        //# When timer A fires, the client transaction MUST retransmit the
        //# request by passing it to the transport layer, and MUST reset the
        //# timer with a value of 2*T1.
        // Timer E stops doubling at T2, and is T2 at once after a provisional response (17.1.2.2).
        call.interval_ns = match (method, call.state) {
            (Method::Invite, _) => call.interval_ns * 2,
            (_, State::Proceeding) => t2_ns,
            _ => (call.interval_ns * 2).min(t2_ns),
        };
        // From when it was due, so that a late wake-up does not shift all that follow.
        call.timer_ns = (call.timer_ns + call.interval_ns).max(now);
        self.report.counts.retransmissions += 1;
        if let Some(line) = self.line_of(slot) {
            self.report.lines[line].retransmissions += 1;
        }
        self.send_request(slot);
    }

    fn cancel_if_due(&mut self, slot: u32, now: u64) {
        let timers = self.config.timers;
        let call = &mut self.calls[slot as usize];
        let interval_ns = match call.cancel {
            Cancel::Wanted(at) if now >= at => {
                //= RFC 3261 section 9.1
                // Without a final response 64*T1 after the CANCEL the client considers the INVITE over.
                call.give_up_ns = now + timers.give_up_ns();
                self.report.counts.requests += 1;
                timers.t1_ns
            }
            Cancel::Sent { again_ns, interval_ns } if now >= again_ns => {
                self.report.counts.retransmissions += 1;
                (interval_ns * 2).min(timers.t2_ns)
            }
            _ => return,
        };
        call.cancel = Cancel::Sent { again_ns: now + interval_ns, interval_ns };
        let (invite, cseq) = (call.invite, call.invite_cseq);
        self.send(slot, &Sketch::bare(Method::Cancel, invite, cseq));
    }

    fn receive(&mut self, io: &mut Io, port: usize) {
        for _ in 0..RECEIVES_MAX {
            let socket = &self.ports[port].socket;
            if io.receiver.receive(socket).is_err() {
                let refused = &mut self.report.counts.refused;
                drain_errors(socket, &mut |_| *refused += 1);
                continue;
            }
            if io.receiver.filled() == 0 {
                return;
            }
            // Each is the answer to something.
            self.pace.note(2 * io.receiver.filled() as u64);
            let now = now_ns();
            for index in 0..io.receiver.filled() {
                let (octets, from) = io.receiver.datagram(index);
                let counts = &mut self.report.counts;
                if self.ports[port].network.as_mut().is_some_and(|network| network.loses(&mut counts.on_purpose)) {
                    continue;
                }
                match Message::read(octets, &mut io.rows) {
                    Ok(message) => match message.start {
                        Start::Request(method, _) => self.on_request(port, &message, method, from, now),
                        Start::Response(code) => self.on_response(port, &message, code, now),
                    },
                    Err(Malformed::KeepAlive) => {}
                    Err(_) => self.report.counts.malformed += 1,
                }
            }
            self.flush();
            if !io.receiver.is_full() {
                return;
            }
        }
    }

    /// Something wants to know something of us: a keep-alive by OPTIONS, the BYE of a callee that gave up.
    fn on_request(&mut self, port: usize, message: &Message<'_>, method: Method, from: Address, now: u64) {
        self.report.counts.requests_received += 1;
        self.report.received.note(Kind::request(method));
        if method == Method::Ack {
            return;
        }
        self.check_seal(message);
        let slot = self.call_of(port, message);
        let in_dialog = message.value(Name::To).and_then(tag).is_some();
        let port = &mut self.ports[port];
        port.make_room(&mut self.report.counts);
        let mut out = Text::new(port.sender.room());
        let (code, line) = match slot.is_some() || !in_dialog {
            true => (200, "SIP/2.0 200 OK\r\n"),
            false => (481, "SIP/2.0 481 Call/Transaction Does Not Exist\r\n"),
        };
        out.put(line.as_bytes());
        let echoed = echo(message, from, b"viahop-load", false, &mut out);
        let written = out.octets();
        let of = |span: fn(&Echoed) -> Span| echoed.as_ref().map_or(&[][..], |echoed| span(echoed).of(written));
        let sealed = Sealed {
            start: &code_digits(code),
            from: of(|echoed| echoed.from),
            to: of(|echoed| echoed.to),
            call_id: of(|echoed| echoed.call_id),
            cseq: of(|echoed| echoed.cseq),
            ..Sealed::default()
        };
        let seal = sealed.digest();
        put_seal(&mut out, seal);
        out.put(b"Content-Length: 0\r\n\r\n");
        match (echoed, destination(message, from), out.finish()) {
            (Some(_), Some(to), Some(len)) => {
                port.sender.push(len, to);
                self.report.sent.note(Kind::response(code, method));
            }
            _ => self.report.counts.malformed += 1,
        }
        if let Some(slot) = slot {
            self.receive_request(slot, message, method, now);
        }
    }

    /// The call that a request of the callee belongs to.
    fn call_of(&self, port: usize, message: &Message<'_>) -> Option<u32> {
        let stationery = &self.ports[port].stationery;
        let (slot, generation) = stationery.place_of(stationery.read_call_id(message.value(Name::CallId)?)?);
        let call = self.calls.get(slot as usize)?;
        let open = !matches!(call.state, State::Free | State::Lingering);
        (call.generation == generation && open).then_some(slot)
    }

    /// Takes a request of the callee into its call, if it is not a copy.
    fn receive_request(&mut self, slot: u32, message: &Message<'_>, method: Method, now: u64) {
        let Some((number, _)) = message.value(Name::CSeq).and_then(cseq) else { return };
        let config = Arc::clone(&self.config);
        let call = &mut self.calls[slot as usize];
        if number <= call.remote_cseq {
            self.report.counts.copies += 1;
            return;
        }
        call.remote_cseq = number;
        let scenario = config.mix.scenario(usize::from(call.scenario));
        match scenario.steps.get(usize::from(call.step)) {
            Some(Step::Receive(receive)) if call.state == State::Receiving && receive.method == method => {
                self.on_received(slot, now);
            }
            // RFC 6665 4.1.2.4: a NOTIFY may well overtake the response to its SUBSCRIBE.
            _ if scenario.awaits(method, usize::from(call.step)) => call.early = Some(method),
            _ => {
                self.report.counts.unexpected += 1;
                self.list("unexpected", message, method.name().as_bytes());
            }
        }
    }

    /// The request that a step waits for is there.
    fn on_received(&mut self, slot: u32, now: u64) {
        let Some(line) = self.line_of(slot) else { return };
        self.wheel.disarm(slot);
        let call = &mut self.calls[slot as usize];
        let took = now.saturating_sub(call.due_ns);
        call.step += 1;
        call.state = State::Pausing;
        let line = &mut self.report.lines[line];
        line.answered += 1;
        line.latency.record(took);
        self.run_step(slot, now, now);
    }

    fn on_response(&mut self, port: usize, message: &Message<'_>, code: u16, now: u64) {
        self.report.counts.responses += 1;
        let method = message.value(Name::CSeq).and_then(cseq).map_or(Method::Other, |(_, method)| Method::read(method));
        self.report.received.note(Kind::response(code, method));
        let via = message.value(Name::Via).unwrap_or_default();
        let branch = param(split_first(via).0, b"branch").unwrap_or_default();
        let place = |(id, transaction)| {
            let (slot, generation) = self.ports[port].stationery.place_of(id);
            let call = self.calls.get(slot as usize).filter(|call| call.generation >= generation)?;
            Some((id, transaction, slot, generation, call))
        };
        let Some((id, transaction, slot, generation, call)) = Stationery::read_branch(branch).and_then(place) else {
            self.report.counts.strays += 1;
            return self.list("stray", message, via);
        };
        if call.generation != generation || call.state == State::Free {
            self.report.counts.late += 1;
            return;
        }
        let response = Response { message, code, slot, id, transaction, now };
        if let Err((what, row)) = self.check(port, &response) {
            self.report.counts.wrong += 1;
            return self.list(what, message, row);
        }
        if code > 100 {
            self.check_seal(message);
        }
        self.take(&response);
    }

    fn check_seal(&mut self, message: &Message<'_>) {
        match seal::check(message) {
            Verdict::Altered => {
                self.report.counts.altered += 1;
                self.list(
                    "altered",
                    message,
                    message.octets().split(|octet| *octet == b'\r').next().unwrap_or_default(),
                );
            }
            Verdict::Intact => {}
            Verdict::Unsealed => self.report.counts.unsealed += 1,
        }
    }

    /// Keeps a message that should not have come, if there is room.
    fn list(&mut self, what: &str, message: &Message<'_>, row: &[u8]) {
        let text = |octets: &[u8]| String::from_utf8_lossy(&octets[..octets.len().min(ROW_MAX)]).into();
        if self.report.wrongs.len() < WRONGS_LISTED {
            let call_id = text(message.value(Name::CallId).unwrap_or_default());
            self.report.wrongs.push(Wrong { what: what.into(), call_id, row: text(row) });
        }
    }

    /// Whether a response is what RFC 3261 lets a response to this call be.
    fn check<'a>(&self, port: usize, response: &Response<'a>) -> Result<(), (&'static str, &'a [u8])> {
        let Response { message, code, slot, id, transaction, .. } = *response;
        let call = &self.calls[slot as usize];
        let stationery = &self.ports[port].stationery;
        //= RFC 3261 section 8.1.3.3
        //# If more than one Via header field value is present in a response, the
        //# UAC SHOULD discard the message.
        let mut vias = message.values(Name::Via);
        let via = vias.next().unwrap_or_default();
        if !stationery.is_own_via(via, id, transaction) || usize::from(call.port) != port {
            return Err(("Via", via));
        }
        if let Some(second) = vias.next() {
            return Err(("Via", second));
        }
        let call_id = message.value(Name::CallId).unwrap_or_default();
        if !stationery.is_own_call_id(call_id, id) {
            return Err(("Call-ID", call_id));
        }
        let from = message.value(Name::From).unwrap_or_default();
        if !stationery.is_own_from(from, id, call.number) {
            return Err(("From", from));
        }
        let cseq_row = message.value(Name::CSeq).unwrap_or_default();
        if cseq(cseq_row).is_none_or(|(number, method)| !self.is_own_cseq(slot, transaction, number, method)) {
            return Err(("CSeq", cseq_row));
        }
        let to = message.value(Name::To).unwrap_or_default();
        match tag(to) {
            //= RFC 3261 section 8.2.6.2
            // Everything but a 100 carries a tag, and within a dialog it is the dialog's.
            None if code > 100 => Err(("To tag", to)),
            Some(tag) if call.peer.is_known() && tag != call.peer.tag() => Err(("To tag", to)),
            _ => Ok(()),
        }
    }

    fn is_own_cseq(&self, slot: u32, transaction: u8, number: u32, method: &[u8]) -> bool {
        let call = &self.calls[slot as usize];
        if transaction == call.invite && call.invite_cseq > 0 {
            return number == call.invite_cseq && matches!(method, b"INVITE" | b"CANCEL");
        }
        let expected = self.step(&self.config, slot).map_or(CLOSING, |send| send.method.name().as_bytes());
        // An earlier transaction of this call: its number was lower, and its method is not remembered.
        (transaction == call.transaction && number == call.cseq && method == expected)
            || (transaction != call.transaction && number < call.cseq)
            || (call.state == State::Pausing && number == call.cseq)
    }

    fn take(&mut self, response: &Response<'_>) {
        let Response { message, code, slot, transaction, now, .. } = *response;
        let is_cancel = message.value(Name::CSeq).is_some_and(|cseq| cseq.ends_with(b"CANCEL"));
        let call = &mut self.calls[slot as usize];
        if is_cancel {
            if code >= 200 {
                call.cancel = Cancel::Answered;
            }
            return;
        }
        let waiting = matches!(call.state, State::Calling | State::Proceeding);
        if !waiting || transaction != call.transaction {
            if code >= 200 {
                self.report.counts.copies += 1;
                self.acknowledge_again(response);
            }
            return;
        }
        if code < 200 { self.on_provisional(slot, code, now) } else { self.on_final(response) }
    }

    fn on_provisional(&mut self, slot: u32, code: u16, now: u64) {
        let config = Arc::clone(&self.config);
        let Some(send) = self.step(&config, slot) else { return };
        let call = &mut self.calls[slot as usize];
        let first = call.state == State::Calling;
        call.state = State::Proceeding;
        if send.method != Method::Invite {
            // RFC 3261 17.1.2.2: from here on Timer E is T2, and Timer F still runs.
            return;
        }
        if first {
            //= RFC 3261 section 17.1.1.2
            //# If the client transaction receives a provisional response while in
            //# the "Calling" state, it transitions to the "Proceeding" state.
            // No retransmissions and no Timer B from here on; but a caller does not wait for ever.
            (call.timer_ns, call.give_up_ns) = (u64::MAX, now + config.timers.ringing_ns);
            if let Some(after) = send.cancel_ns {
                call.cancel = Cancel::Wanted(now + after);
            }
            self.arm(slot);
        }
        let call = &self.calls[slot as usize];
        if code > 100 && call.interval_ns != 0 {
            self.report.ringing.record(now.saturating_sub(call.due_ns));
            // Marks that it has been recorded: an INVITE in Proceeding has no retransmissions left to time.
            self.calls[slot as usize].interval_ns = 0;
        }
    }

    fn on_final(&mut self, response: &Response<'_>) {
        let Response { message, code, slot, now, .. } = *response;
        let config = Arc::clone(&self.config);
        let Some(send) = self.step(&config, slot) else { return self.release(slot) };
        let call = &mut self.calls[slot as usize];
        let took = now.saturating_sub(call.due_ns);
        call.timer_ns = u64::MAX;
        let invite = send.method == Method::Invite;
        let opens = invite || send.method == Method::Subscribe;
        if opens && code < 300 && !self.learn(response) {
            return self.fail(slot, "2xx without Contact", now);
        }
        if invite {
            self.acknowledge(slot, code, message);
        }
        if matches!(code, 401 | 407) && send.expect != code && self.authorize(send, response) {
            return;
        }
        if code != send.expect {
            return self.fail(slot, &code.to_string(), now);
        }
        if send.challenge && self.calls[slot as usize].credentials.is_empty() {
            return self.fail(slot, "not challenged", now);
        }
        let line =
            self.places[usize::from(self.calls[slot as usize].scenario)][usize::from(self.calls[slot as usize].step)];
        let line = &mut self.report.lines[line];
        line.answered += 1;
        line.latency.record(took);
        self.recent.record(took);
        self.wheel.disarm(slot);
        let call = &mut self.calls[slot as usize];
        call.step += 1;
        call.state = State::Pausing;
        call.credentials.clear();
        if send.method == Method::Bye {
            call.peer.forget();
        }
        self.run_step(slot, now, now);
    }

    /// Answers a challenge: the request goes out again with credentials, for which the clock that measures it goes on.
    /// `false`: there is no password, or it has been refused.
    fn authorize(&mut self, send: &Send, response: &Response<'_>) -> bool {
        let config = Arc::clone(&self.config);
        let Some(password) = &config.password else { return false };
        let (asks, answers) = match response.code {
            401 => (Name::WwwAuthenticate, "Authorization"),
            _ => (Name::ProxyAuthenticate, "Proxy-Authorization"),
        };
        let Response { message, slot, now, .. } = *response;
        let stale = |challenge: &[u8]| {
            crate::sip::value::auth_param(challenge, b"stale").is_some_and(|stale| stale.eq_ignore_ascii_case(b"true"))
        };
        let call = &self.calls[slot as usize];
        // Refused once is refused, unless only the nonce was too old; and nobody is asked for ever.
        if !call.credentials.is_empty() && (!message.values(asks).any(stale) || call.cseq > 8) {
            return false;
        }
        let stationery = &self.ports[usize::from(call.port)].stationery;
        let scenario = config.mix.scenario(usize::from(call.scenario));
        let request = Request {
            method: send.method,
            body: Body::None,
            expires: None,
            callee: scenario.callee.as_bytes(),
            transaction: call.transaction,
            cseq: call.cseq,
            in_dialog: call.peer.is_known(),
            failure_tag: b"",
        };
        let (uri, own) = (stationery.uri(call, &request), stationery.caller(call));
        let user = config.user.as_deref().unwrap_or(&own);
        let asked = Asked { user, password, method: send.method.name(), uri: &uri, cnonce: self.rng.next_u64() };
        // RFC 7616 3.7: the first that we know, the server having put the best first.
        let Some(credentials) = message.values(asks).find_map(|challenge| digest::answer(challenge, &asked)) else {
            return false;
        };
        let line = self.line_of(slot);
        let call = &mut self.calls[slot as usize];
        call.credentials = format!("{answers}: {credentials}\r\n").into_bytes();
        let due = call.due_ns;
        if let Some(line) = line {
            self.report.lines[line].challenged += 1;
        }
        self.begin_request(slot, send.method, due, now);
        true
    }

    /// Takes the dialog from a 2xx. `false`: it does not describe one.
    fn learn(&mut self, response: &Response<'_>) -> bool {
        let call = &mut self.calls[response.slot as usize];
        let message = response.message;
        let (Some(contact), Some(to)) = (message.value(Name::Contact), message.value(Name::To)) else { return false };
        let target = uri(split_first(contact).0);
        // A second INVITE renews the remote target and leaves the route set as it is (RFC 3261 12.2.1.2).
        if call.peer.is_known() {
            call.peer.retarget(target);
            return true;
        }
        //= RFC 3261 section 12.1.2
        //# The route set MUST be set to the list of URIs in the Record-Route
        //# header field from the response, taken in reverse order and preserving
        //# all URI parameters.
        let mut room = [&[][..]; 32];
        let mut count = 0;
        for route in message.values(Name::RecordRoute).flat_map(split) {
            let Some(place) = room.get_mut(count) else { return false };
            *place = route;
            count += 1;
        }
        let routes = &room[..count];
        if let Some(first) = routes.last() {
            // A next hop that is a name stays the target: a load generator looks nothing up while it runs.
            let hop = uri_host_port(uri(first)).and_then(|(host, port)| address(host, port));
            call.next_hop = hop.map_or(self.target, Address::from);
        }
        call.peer.learn(tag(to).unwrap_or_default(), target, routes.iter().rev().copied());
        true
    }

    /// Sends the ACK of an INVITE's final response.
    fn acknowledge(&mut self, slot: u32, code: u16, message: &Message<'_>) {
        let call = &self.calls[slot as usize];
        let (invite, cseq) = (call.invite, call.invite_cseq);
        self.report.counts.requests += 1;
        if code < 300 {
            self.send(slot, &Sketch::bare(Method::Ack, invite.wrapping_add(1), cseq));
            return;
        }
        //= RFC 3261 section 17.1.1.3
        //# The To header field in the ACK MUST equal the To header field in the
        //# response being acknowledged, and therefore will usually differ from
        //# the To header field in the original request by the addition of the
        //# tag parameter.
        let failure_tag = message.value(Name::To).and_then(tag).unwrap_or_default();
        self.send(slot, &Sketch { failure_tag, ..Sketch::bare(Method::Ack, invite, cseq) });
    }

    //= RFC 3261 section 13.2.2.4
    //# The
    //# ACK MUST be passed to the client transport every time a
    //# retransmission of the 2xx final response that triggered the ACK
    //# arrives.
    // A failure that comes again gets its ACK again, too (17.1.1.2, Completed).
    fn acknowledge_again(&mut self, response: &Response<'_>) {
        let call = &self.calls[response.slot as usize];
        let of_invite = response.message.value(Name::CSeq).is_some_and(|cseq| cseq.ends_with(b"INVITE"));
        let dialog = call.peer.is_known() || response.code >= 300;
        if of_invite && dialog && response.transaction == call.invite {
            self.acknowledge(response.slot, response.code, response.message);
        }
    }

    fn complete(&mut self, slot: u32, now: u64) {
        self.report.counts.completed += 1;
        self.open -= 1;
        self.leave(slot, now);
    }

    fn fail(&mut self, slot: u32, reason: &str, now: u64) {
        let Some(line) = self.line_of(slot) else { return self.release(slot) };
        self.report.counts.failed += 1;
        self.open -= 1;
        self.count_failure(line, reason);
        let ended = reason == "481" || self.step(&self.config, slot).is_some_and(|send| send.method == Method::Bye);
        let call = &mut self.calls[slot as usize];
        if !call.peer.is_known() {
            return self.leave(slot, now);
        }
        // Only calls are ended with BYE.
        if ended || call.invite_cseq == 0 {
            return self.release(slot);
        }
        // Nobody is left behind in a call: it ends, but nobody counts how.
        call.closing = true;
        self.begin_request(slot, Method::Bye, now, now);
    }

    fn count_failure(&mut self, line: usize, reason: &str) {
        let failures = &mut self.report.lines[line].failures;
        match failures.get_mut(reason) {
            Some(count) => *count += 1,
            None => drop(failures.insert(reason.into(), 1)),
        }
    }

    /// The call is over. If its last word was the ACK of a failure, its place is kept for Timer D, so that the failure is
    /// acknowledged again should it come again.
    fn leave(&mut self, slot: u32, now: u64) {
        let linger = self.config.timers.give_up_ns();
        let call = &mut self.calls[slot as usize];
        if call.peer.is_known() || call.invite != call.transaction || call.invite_cseq == 0 {
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
        for port in &mut self.ports {
            if !port.sender.is_empty() || port.network.is_some() {
                port.flush(&mut self.report.counts);
            }
        }
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

impl Port {
    /// Makes room for one more message.
    #[inline]
    fn make_room(&mut self, counts: &mut Counts) {
        if self.sender.is_full() {
            self.flush(counts);
        }
    }

    fn flush(&mut self, counts: &mut Counts) {
        loop {
            let Counts { unsent, refused, on_purpose, .. } = counts;
            let more = match &mut self.network {
                Some(network) => network.send(&mut self.sender, now_ns(), on_purpose),
                None => false,
            };
            self.sender.flush(&self.socket, &mut |error| match error.unsent {
                true => *unsent += 1,
                false => *refused += 1,
            });
            if !more {
                return;
            }
        }
    }
}
