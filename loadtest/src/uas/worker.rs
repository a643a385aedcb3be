//! One shard of the called side: a thread, its backends' sockets, their calls and timers.
//!
//! ```text
//! loop: commands ─► timers that are due ─► wait ─► receive ─► answer each ─► send what has gathered
//! ```
//!
//! A request is answered in the turn in which it was received. Nothing is allocated per message once the places of calls
//! have been used (a NOTIFY, a challenge and a fault are put together as text, and do).

use super::call::{Call, State};
use super::{
    BackendState, Command, Counts, Manner, Move, NEW_CALLS_MAX, NewCall, Shared, Snapshot, VIOLATIONS_LISTED, Violation,
};
use crate::clock::{SECOND_NS, now_ns};
use crate::digest::Proof;
use crate::fault::{Fate, Fault, fate};
use crate::owners::{Owner, digest};
use crate::pace::{LINGER_NS, Pace};
use crate::remote::Inbox;
use crate::rng::mix;
use crate::seal::{self, Sealed, Verdict, code_digits, put_seal};
use crate::sip::answer::{Echoed, destination, echo, reason};
use crate::sip::message::{Malformed, Message, Method, Name, Rows, Start};
use crate::sip::text::{Text, from_hex, hex};
use crate::sip::value::{address, cseq, param, split, split_first, tag, uri, uri_host_port, uri_user};
use crate::sys::address::Address;
use crate::sys::batch::{BATCH_MAX, Receiver, Sender, drain_errors};
use crate::sys::socket::{PATIENT_BUFFER_OCTETS, Socket};
use crate::sys::wait::{Waiter, wake_on_time};
use crate::tally::{Kind, Tally};
use crate::timer::Wheel;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Receives of one socket in a row before the others get their turn.
const RECEIVES_MAX: usize = 8;

/// Responses one backend may hold back. What is beyond is lost, as it would be in a server that is so far behind.
const HELD_MAX: usize = 1 << 16;

/// Octets of rows that are copied from a request. A request with more is not answered.
const ECHO_MAX: usize = 16 << 10;

pub(super) struct Worker {
    io: Io,
    shard: Shard,
}

/// What a datagram is read with; apart from the rest, because a message borrows it.
struct Io {
    receiver: Receiver,
    rows: Rows,
    inbox: Inbox<Command>,
    ready: Vec<u32>,
    fired: Vec<u32>,
}

struct Shard {
    shared: Arc<Shared>,
    waiter: Waiter,
    backends: Vec<Backend>,
    calls: Vec<Call>,
    free: Vec<u32>,
    by_key: HashMap<u64, u32, BuildHasherDefault<KeyIsHash>>,
    wheel: Wheel,
    pace: Pace,
    /// Where rows are put together before they go into a response.
    scratch: Box<[u8]>,
}

struct Backend {
    index: usize,
    /// `None`: killed.
    socket: Option<Socket>,
    address: SocketAddr,
    sender: Sender,
    counts: Counts,
    sent: Tally,
    received: Tally,
    open: u64,
    violations: Vec<Violation>,
    moves: Vec<Move>,
    /// Responses that leave later, and when: what [`Fault::Slow`] holds back.
    held: VecDeque<(u64, Address, Box<[u8]>)>,
    slow_ns: u64,
    /// `<sip:callee@ADDRESS>`.
    contact: Vec<u8>,
    /// `X-Backend: INDEX` and `Server`, for every response.
    signature: Vec<u8>,
    sdp: Vec<u8>,
}

/// What a response carries besides what it copies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Carries {
    Challenge,
    Contact,
    Nothing,
    Sdp,
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        waiter: Waiter,
        inbox: Inbox<Command>,
        sockets: Vec<(usize, Socket)>,
        now: u64,
    ) -> io::Result<Worker> {
        let slow = |fault: &Fault| if let Fault::Slow(slow_ns) = fault { *slow_ns } else { 0 };
        let slow_ns = shared.config.faults.iter().map(slow).max().unwrap_or(0);
        let mut backends = Vec::new();
        for (place, (index, socket)) in sockets.into_iter().enumerate() {
            waiter.add(&socket, place as u32)?;
            let segments = shared.config.segments && slow_ns == 0;
            let sender = if segments { Sender::segmenting() } else { Sender::new() };
            backends.push(Backend { sender, ..Backend::new(index, socket, slow_ns) });
        }
        let receiver = Receiver::new(BATCH_MAX);
        let io = Io { receiver, rows: Rows::default(), inbox, ready: Vec::new(), fired: Vec::new() };
        let shard = Shard {
            shared,
            waiter,
            backends,
            calls: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::default(),
            wheel: Wheel::new(now),
            pace: Pace::default(),
            scratch: vec![0; ECHO_MAX].into(),
        };
        Ok(Worker { io, shard })
    }

    /// Runs until it is told to stop, and says what there was.
    pub(super) fn run(mut self) -> (Vec<Snapshot>, io::Result<()>) {
        wake_on_time();
        let Worker { io, shard } = &mut self;
        loop {
            while let Some(command) = io.inbox.next() {
                if matches!(command, Command::Stop) {
                    return (shard.snapshots(), Ok(()));
                }
                shard.obey(command);
            }
            shard.wheel.expire(now_ns(), &mut io.fired);
            for slot in io.fired.drain(..) {
                shard.on_timer(slot, now_ns());
            }
            shard.flush();
            let now = now_ns();
            let mut timeout = shard.next_ns().saturating_sub(now).min(SECOND_NS);
            if shard.pace.lingers(now) && timeout > 0 {
                std::thread::sleep(Duration::from_nanos(LINGER_NS.min(timeout)));
                timeout = 0;
            }
            if let Err(error) = shard.waiter.wait(timeout, &mut io.ready) {
                return (shard.snapshots(), Err(error));
            }
            while let Some(place) = io.ready.pop() {
                shard.receive(io, place as usize);
            }
        }
    }
}

impl Shard {
    fn obey(&mut self, command: Command) {
        match command {
            Command::Kill(place, reply) => {
                self.kill(place);
                let _ = reply.send(());
            }
            Command::Restore(place, reply) => {
                let _ = reply.send(self.restore(place));
            }
            Command::Snapshot(reply) => {
                let _ = reply.send(self.snapshots());
            }
            Command::Stop => {}
        }
    }

    fn kill(&mut self, place: usize) {
        let backend = &mut self.backends[place];
        let Some(socket) = backend.socket.take() else { return };
        backend.counts.overflowed += socket.dropped();
        backend.sender.clear();
        self.shared.owners.died(backend.index);
        for slot in 0..self.calls.len() as u32 {
            let call = &self.calls[slot as usize];
            if call.backend == place && call.state != State::Free {
                self.release(slot);
            }
        }
    }

    fn restore(&mut self, place: usize) -> io::Result<()> {
        let backend = &mut self.backends[place];
        if backend.socket.is_none() {
            let socket = Socket::bind_with(backend.address, PATIENT_BUFFER_OCTETS)?;
            self.waiter.add(&socket, place as u32)?;
            backend.socket = Some(socket);
        }
        Ok(())
    }

    fn snapshots(&self) -> Vec<Snapshot> {
        let snapshot = |backend: &Backend| {
            let dropped = backend.socket.as_ref().map_or(0, Socket::dropped);
            let counts = Counts { overflowed: backend.counts.overflowed + dropped, ..backend.counts };
            Snapshot {
                index: backend.index,
                state: BackendState {
                    counts,
                    sent: backend.sent.clone(),
                    received: backend.received.clone(),
                    open: backend.open,
                    alive: backend.socket.is_some(),
                },
                violations: backend.violations.clone(),
                moves: backend.moves.clone(),
            }
        };
        self.backends.iter().map(snapshot).collect()
    }

    fn receive(&mut self, io: &mut Io, place: usize) {
        for _ in 0..RECEIVES_MAX {
            let Some(socket) = &self.backends[place].socket else { return };
            let received = match io.receiver.receive(socket) {
                Ok(received) => received,
                // ICMP about a response of ours: whoever asked is gone.
                Err(_) => usize::from(drain_errors(socket, &mut |_| ())),
            };
            if received == 0 {
                return;
            }
            // Each has its answer.
            self.pace.note(2 * io.receiver.filled() as u64);
            let now = now_ns();
            for index in 0..io.receiver.filled() {
                let (octets, from) = io.receiver.datagram(index);
                match Message::read(octets, &mut io.rows) {
                    Ok(message) => self.on_message(place, &message, from, now),
                    Err(Malformed::KeepAlive) => {}
                    Err(_) => self.backends[place].counts.malformed += 1,
                }
            }
            let more = io.receiver.is_full();
            self.backends[place].flush();
            if !more {
                return;
            }
        }
    }

    /// When there is something to do without a datagram coming in.
    fn next_ns(&self) -> u64 {
        let held = self.backends.iter().filter_map(|backend| backend.held.front()).map(|(at, ..)| *at).min();
        self.wheel.next_ns().min(held.unwrap_or(u64::MAX))
    }

    fn flush(&mut self) {
        self.backends.iter_mut().for_each(Backend::flush);
    }

    fn on_message(&mut self, place: usize, message: &Message<'_>, from: Address, now: u64) {
        let Backend { counts, received, .. } = &mut self.backends[place];
        match seal::check(message) {
            Verdict::Altered => counts.altered += 1,
            Verdict::Intact => {}
            Verdict::Unsealed => counts.unsealed += 1,
        }
        let (method, request_uri) = match message.start {
            Start::Request(method, request_uri) => (method, request_uri),
            Start::Response(code) => return self.on_response(place, message, code, now),
        };
        counts.requests += 1;
        received.note(Kind::request(method));
        let (Some(call_id), Some(from_row), Some(to_row), Some((number, _))) = (
            message.value(Name::CallId),
            message.value(Name::From),
            message.value(Name::To),
            message.value(Name::CSeq).and_then(cseq),
        ) else {
            counts.malformed += 1;
            return;
        };
        let digest = digest(call_id);
        let key = xxh3_64_with_seed(tag(from_row).unwrap_or_default(), digest.wrapping_add(place as u64));
        let request = Request {
            place,
            message,
            from,
            method,
            user: uri_user(uri(request_uri)),
            number,
            digest,
            in_dialog: tag(to_row).is_some(),
            call: self.by_key.get(&key).copied(),
            key,
            now,
        };
        self.check_source(&request);
        match method {
            Method::Ack => self.on_ack(&request),
            Method::Bye => self.on_bye(&request),
            Method::Cancel => self.on_cancel(&request),
            Method::Invite => self.on_invite(&request),
            Method::Subscribe => self.on_subscribe(&request),
            _ => self.on_other(&request),
        }
    }

    fn on_invite(&mut self, request: &Request<'_>) {
        self.check_owner(request);
        let Some(slot) = request.call else {
            return match request.in_dialog {
                true => self.answer_unknown(request),
                false => self.open(request),
            };
        };
        let call = &self.calls[slot as usize];
        if request.number == call.cseq {
            self.backends[request.place].counts.copies += 1;
            match call.state {
                State::Ringing => self.send_of_call(slot, 180, Carries::Contact),
                State::Answered | State::Over => self.send_final(slot),
                State::Free | State::Notifying | State::Up => {}
            }
        } else if request.number < call.cseq || call.state == State::Ringing {
            self.backends[request.place].counts.reordered += u64::from(request.number < call.cseq);
            // A lower CSeq is out of order (RFC 3261 12.2.2); a second INVITE before the first has its answer is refused
            // (14.2).
            self.answer(request, 500, Carries::Nothing);
        } else {
            self.begin(slot, request);
            self.finish(slot, 200, request.now);
        }
    }

    /// An INVITE that no call is known for.
    fn open(&mut self, request: &Request<'_>) {
        let index = self.backends[request.place].index;
        if self.shared.owners.of(request.digest) == (Owner::Alive { backend: index, over: true }) {
            // A late copy of one that has had its BYE.
            self.backends[request.place].counts.copies += 1;
            return;
        }
        if self.meets_its_fate(request) {
            return;
        }
        if self.calls.len() - self.free.len() >= self.shared.config.calls_max {
            self.backends[request.place].counts.refused += 1;
            return self.answer(request, 503, Carries::Nothing);
        }
        let slot = self.occupy(request);
        if !self.begin(slot, request) {
            self.backends[request.place].counts.malformed += 1;
            return self.release(slot);
        }
        self.backends[request.place].counts.calls += 1;
        if self.shared.config.list_new_calls {
            self.list(request, index);
        }
        self.ring(slot, Manner::of(request.user), request.now);
    }

    /// Does what the faults have in store for a request outside of dialogs, and says whether that was all.
    fn meets_its_fate(&mut self, request: &Request<'_>) -> bool {
        match fate(&self.shared.config.faults, request.digest) {
            Fate::Fine => return false,
            Fate::Nothing => {}
            Fate::Code(code) => self.answer(request, code, Carries::Nothing),
        }
        true
    }

    /// Takes a place for the dialog that this request opens.
    fn occupy(&mut self, request: &Request<'_>) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.calls.push(Call::free());
            self.calls.len() as u32 - 1
        });
        let call = &mut self.calls[slot as usize];
        (call.key, call.digest, call.backend) = (request.key, request.digest, request.place);
        call.source = request.from.digest();
        (call.state, call.cseq) = (State::Up, 0);
        self.by_key.insert(request.key, slot);
        let backend = &mut self.backends[request.place];
        backend.open += 1;
        self.shared.owners.take(request.digest, backend.index);
        slot
    }

    fn list(&self, request: &Request<'_>, backend: usize) {
        let call_id = String::from_utf8_lossy(request.message.value(Name::CallId).unwrap_or_default());
        let mut new_calls = self.shared.new_calls.lock().unwrap_or_else(PoisonError::into_inner);
        if new_calls.list.len() < NEW_CALLS_MAX {
            new_calls.list.push_back(NewCall { call_id: call_id.into(), backend, at_ns: request.now });
        } else {
            new_calls.unlisted += 1;
        }
    }

    /// Takes an INVITE's rows into its call. `false`: it lacks what an answer needs.
    fn begin(&mut self, slot: u32, request: &Request<'_>) -> bool {
        let to_tag = to_tag(request.key);
        let mut out = Text::new(&mut self.scratch);
        let echoed = echo(request.message, request.from, &to_tag, true, &mut out);
        let (Some(echoed), Some(to), Some(len)) = (echoed, destination(request.message, request.from), out.finish())
        else {
            return false;
        };
        let call = &mut self.calls[slot as usize];
        call.rows.clear();
        call.rows.extend_from_slice(&self.scratch[..len]);
        (call.echoed, call.to, call.cseq) = (echoed, to, request.number);
        true
    }

    fn ring(&mut self, slot: u32, manner: Manner, now: u64) {
        let config = &self.shared.config;
        let (ring_ns, ringing_ns) = (config.ring_ns, config.timers.ringing_ns);
        let due = match manner {
            Manner::Busy => return self.finish(slot, 486, now),
            Manner::Answer => now + ring_ns,
            Manner::Ring => now + ringing_ns,
        };
        self.send_of_call(slot, 180, Carries::Contact);
        let call = &mut self.calls[slot as usize];
        (call.state, call.due_ns) = (State::Ringing, due);
        (call.code, call.give_up_ns) = (if manner == Manner::Ring { 480 } else { 200 }, due);
        if due == now {
            return self.finish(slot, 200, now);
        }
        self.wheel.arm(slot, due);
    }

    /// Sends a final response and keeps at it until its ACK comes.
    fn finish(&mut self, slot: u32, code: u16, now: u64) {
        let timers = self.shared.config.timers;
        let call = &mut self.calls[slot as usize];
        //= RFC 3261 section 13.3.1.4
        //# The 2xx response is passed to the transport with an
        //# interval that starts at T1 seconds and doubles for each
        //# retransmission until it reaches T2 seconds (T1 and T2 are defined in
        //# Section 17).
        // Timer G does the same for any other final response (17.2.1).
        (call.state, call.code, call.interval_ns) = (State::Answered, code, timers.t1_ns);
        (call.due_ns, call.give_up_ns) = (now + timers.t1_ns, now + timers.give_up_ns());
        let due = call.due_ns;
        self.wheel.arm(slot, due);
        self.send_final(slot);
    }

    fn send_final(&mut self, slot: u32) {
        let code = self.calls[slot as usize].code;
        self.send_of_call(slot, code, if code < 300 { Carries::Sdp } else { Carries::Nothing });
    }

    fn on_timer(&mut self, slot: u32, now: u64) {
        let timers = self.shared.config.timers;
        let call = &mut self.calls[slot as usize];
        let counts = &mut self.backends[call.backend].counts;
        match call.state {
            // A copy that was due before the end is not left out because this machine was late.
            State::Answered | State::Notifying if now >= call.give_up_ns && call.due_ns >= call.give_up_ns => {
                counts.unacknowledged += 1;
                self.release(slot);
            }
            State::Answered | State::Notifying if now < call.due_ns => {
                let due = call.due_ns.min(call.give_up_ns);
                self.wheel.arm(slot, due);
            }
            State::Answered | State::Notifying => {
                call.interval_ns = (call.interval_ns * 2).min(timers.t2_ns);
                // From when it was due, so that a late wake-up does not shift all that follow.
                call.due_ns = (call.due_ns + call.interval_ns).max(now);
                counts.resent += 1;
                let (due, notifying) = (call.due_ns.min(call.give_up_ns), call.state == State::Notifying);
                self.wheel.arm(slot, due);
                if notifying { self.send_notify(slot) } else { self.send_final(slot) }
            }
            State::Ringing => {
                let code = call.code;
                self.finish(slot, code, now);
            }
            State::Up => {
                counts.abandoned += 1;
                self.release(slot);
            }
            State::Over => self.release(slot),
            State::Free => {}
        }
    }

    fn on_ack(&mut self, request: &Request<'_>) {
        self.backends[request.place].counts.acks += 1;
        self.check_owner(request);
        let Some(slot) = request.call else { return };
        let call = &mut self.calls[slot as usize];
        if call.state != State::Answered || call.cseq != request.number {
            return;
        }
        let config = &self.shared.config;
        let (state, due) = match call.code {
            200..300 => (State::Up, request.now + config.silence_max_ns),
            _ => (State::Over, request.now + config.timers.t4_ns),
        };
        (call.state, call.due_ns) = (state, due);
        self.wheel.arm(slot, due);
    }

    fn on_bye(&mut self, request: &Request<'_>) {
        self.check_owner(request);
        let index = self.backends[request.place].index;
        let over = Owner::Alive { backend: index, over: true };
        match request.call {
            Some(slot) => {
                let counts = &mut self.backends[request.place].counts;
                counts.byes += 1;
                counts.reordered += u64::from(self.calls[slot as usize].state == State::Answered);
                self.answer(request, 200, Carries::Nothing);
                self.release(slot);
            }
            None if self.shared.owners.of(request.digest) == over => {
                self.backends[request.place].counts.copies += 1;
                self.answer(request, 200, Carries::Nothing);
            }
            None => self.answer_unknown(request),
        }
    }

    fn on_cancel(&mut self, request: &Request<'_>) {
        self.check_owner(request);
        let Some(slot) = request.call else { return self.answer_unknown(request) };
        self.answer(request, 200, Carries::Nothing);
        if self.calls[slot as usize].state == State::Ringing {
            self.backends[request.place].counts.cancels += 1;
            self.finish(slot, 487, request.now);
        }
    }

    fn on_subscribe(&mut self, request: &Request<'_>) {
        if request.in_dialog && request.call.is_none() {
            self.check_owner(request);
            let over = Owner::Alive { backend: self.backends[request.place].index, over: true };
            if self.shared.owners.of(request.digest) != over {
                return self.answer_unknown(request);
            }
            // A late copy of the one that ended the subscription.
            self.backends[request.place].counts.copies += 1;
            return self.answer(request, 200, Carries::Contact);
        }
        if !request.in_dialog && self.meets_its_fate(request) {
            return;
        }
        self.answer(request, 200, Carries::Contact);
        let slot = match request.call {
            Some(slot) if request.number <= self.calls[slot as usize].cseq => {
                self.backends[request.place].counts.copies += 1;
                return;
            }
            Some(slot) => slot,
            None if self.calls.len() - self.free.len() >= self.shared.config.calls_max => return,
            None => {
                let slot = self.occupy(request);
                self.backends[request.place].counts.subscriptions += 1;
                slot
            }
        };
        self.notify(slot, request);
    }

    /// Tells the subscriber the state, along the way its SUBSCRIBE came.
    fn notify(&mut self, slot: u32, request: &Request<'_>) {
        let timers = self.shared.config.timers;
        let message = request.message;
        let expires = message.value(Name::Expires).and_then(crate::sip::value::number);
        let routes = || message.values(Name::RecordRoute).flat_map(split);
        let contact = split_first(message.value(Name::Contact).unwrap_or_default()).0;
        let hop = uri(routes().next().unwrap_or(contact));
        let hop = uri_host_port(hop).and_then(|(host, port)| address(host, port)).map(Address::from);
        let call = &mut self.calls[slot as usize];
        (call.cseq, call.last, call.to) = (request.number, expires == Some(0), hop.unwrap_or(request.from));
        let mut out = Text::new(&mut self.scratch);
        self.backends[request.place].put_notify(&mut out, request, uri(contact), routes(), call.last);
        let len = out.finish();
        let Some(len) = len.filter(|_| !contact.is_empty()) else {
            self.backends[request.place].counts.malformed += 1;
            return self.release(slot);
        };
        call.rows.clear();
        call.rows.extend_from_slice(&self.scratch[..len]);
        (call.state, call.interval_ns) = (State::Notifying, timers.t1_ns);
        (call.due_ns, call.give_up_ns) = (request.now + timers.t1_ns, request.now + timers.give_up_ns());
        let due = call.due_ns;
        self.wheel.arm(slot, due);
        self.send_notify(slot);
    }

    fn send_notify(&mut self, slot: u32) {
        let call = &mut self.calls[slot as usize];
        let backend = &mut self.backends[call.backend];
        backend.make_room();
        let level = call.order.next(&backend.sender);
        backend.sender.room()[..call.rows.len()].copy_from_slice(&call.rows);
        backend.sender.push_at(call.rows.len(), call.to, level);
        backend.sent.note(Kind::request(Method::Notify));
    }

    /// A response: to a NOTIFY of ours, or to nothing.
    fn on_response(&mut self, place: usize, message: &Message<'_>, code: u16, now: u64) {
        let method = message.value(Name::CSeq).and_then(cseq).map_or(Method::Other, |(_, method)| Method::read(method));
        self.backends[place].received.note(Kind::response(code, method));
        let branch = message.value(Name::Via).and_then(|via| param(via, b"branch")?.strip_prefix(b"z9hG4bK"));
        let slot = branch.and_then(|branch| self.by_key.get(&from_hex(branch)?).copied());
        let of_last = |slot: &u32| {
            let call = &self.calls[*slot as usize];
            call.backend == place
                && branch.and_then(|branch| branch.get(16..)) == Some(format!("{:x}", call.cseq).as_bytes())
        };
        let Some(slot) = slot.filter(of_last) else {
            self.backends[place].counts.responses += 1;
            return;
        };
        let call = &mut self.calls[slot as usize];
        if code < 200 || call.state != State::Notifying {
            return;
        }
        self.backends[place].counts.notified += u64::from(code == 200);
        if call.last || code >= 300 {
            return self.release(slot);
        }
        (call.state, call.due_ns) = (State::Up, now + self.shared.config.silence_max_ns);
        let due = call.due_ns;
        self.wheel.arm(slot, due);
    }

    fn on_other(&mut self, request: &Request<'_>) {
        if request.in_dialog {
            self.check_owner(request);
            if request.call.is_none() {
                return self.answer_unknown(request);
            }
        } else if self.meets_its_fate(request) {
            return;
        }
        let counts = &mut self.backends[request.place].counts;
        match request.method {
            Method::Register => return self.on_register(request),
            Method::Options => counts.options += 1,
            _ => {}
        }
        self.answer(request, 200, Carries::Contact);
    }

    fn on_register(&mut self, request: &Request<'_>) {
        let shared = Arc::clone(&self.shared);
        let proof = shared.config.realm.as_ref().map_or(Proof::Given, |realm| {
            realm.check(request.message.value(Name::Authorization), request.method.name(), request.digest)
        });
        let counts = &mut self.backends[request.place].counts;
        let (count, code, carries) = match proof {
            Proof::Given => (&mut counts.registers, 200, Carries::Contact),
            //= RFC 3261 section 10.3
            //# A registrar SHOULD authenticate the UAC.
            Proof::Missing => (&mut counts.challenged, 401, Carries::Challenge),
            // Not a second 401, so that a caller with the wrong password is not asked for ever.
            Proof::Wrong => (&mut counts.forbidden, 403, Carries::Nothing),
        };
        *count += 1;
        self.answer(request, code, carries);
    }

    /// Notes whether a request within a call came from where the one before it came from.
    fn check_source(&mut self, request: &Request<'_>) {
        let Some(slot) = request.call else { return };
        let source = request.from.digest();
        if std::mem::replace(&mut self.calls[slot as usize].source, source) == source {
            return;
        }
        let Backend { counts, moves, .. } = &mut self.backends[request.place];
        counts.moved += 1;
        if moves.len() < VIOLATIONS_LISTED {
            let call_id = request.message.value(Name::CallId).unwrap_or_default();
            moves.push(Move {
                call_id: String::from_utf8_lossy(call_id).into(),
                method: request.method.name().into(),
                from: request.from.to_std(),
            });
        }
    }

    /// Notes whether the call of this request is where it belongs.
    fn check_owner(&mut self, request: &Request<'_>) {
        let backend = &mut self.backends[request.place];
        match self.shared.owners.of(request.digest) {
            Owner::Alive { backend: owner, .. } if owner != backend.index => {
                backend.counts.violations += 1;
                if backend.violations.len() < VIOLATIONS_LISTED {
                    let call_id = request.message.value(Name::CallId).unwrap_or_default();
                    backend.violations.push(Violation {
                        call_id: String::from_utf8_lossy(call_id).into(),
                        method: request.method.name().into(),
                        owner,
                        reached: backend.index,
                    });
                }
            }
            Owner::Dead(_) if request.in_dialog => backend.counts.orphans += 1,
            _ => {}
        }
    }

    //= RFC 3261 section 15.1.2
    //# If the BYE does not
    //# match an existing dialog, the UAS core SHOULD generate a 481
    //# (Call/Transaction Does Not Exist) response and pass that to the
    //# server transaction.
    // And so it is for any other request within a dialog (12.2.2), and for CANCEL (9.2).
    fn answer_unknown(&mut self, request: &Request<'_>) {
        self.backends[request.place].counts.unknown += 1;
        self.answer(request, 481, Carries::Nothing);
    }

    /// Answers a request of which nothing is kept.
    fn answer(&mut self, request: &Request<'_>, code: u16, carries: Carries) {
        let to_tag = to_tag(request.key);
        let mut out = Text::new(&mut self.scratch);
        let echoed = echo(request.message, request.from, &to_tag, false, &mut out);
        let to = destination(request.message, request.from);
        let (Some(echoed), Some(to), Some(len)) = (echoed, to, out.finish()) else {
            self.backends[request.place].counts.malformed += 1;
            return;
        };
        let register = (request.method == Method::Register && code == 200).then_some(request.message);
        let challenge = match (&self.shared.config.realm, carries) {
            (Some(realm), Carries::Challenge) => realm.challenge(request.digest),
            _ => String::new(),
        };
        let backend = &mut self.backends[request.place];
        backend.make_room();
        let level = request.call.map_or(0, |slot| self.calls[slot as usize].order.next(&backend.sender));
        let kind = Kind::response(code, request.method);
        let response = Response { to, level, kind, carries, register, challenge: &challenge };
        backend.send(&response, &self.scratch[..len], &echoed);
    }

    /// Sends a response to the INVITE of a call.
    fn send_of_call(&mut self, slot: u32, code: u16, carries: Carries) {
        let call = &mut self.calls[slot as usize];
        let backend = &mut self.backends[call.backend];
        backend.make_room();
        let level = call.order.next(&backend.sender);
        let kind = Kind::response(code, Method::Invite);
        let response = Response { to: call.to, level, kind, carries, register: None, challenge: "" };
        backend.send(&response, &call.rows, &call.echoed);
    }

    /// The call is over: its place is free, and the record of owners remembers that it was here.
    fn release(&mut self, slot: u32) {
        let call = &mut self.calls[slot as usize];
        debug_assert!(call.state != State::Free);
        call.state = State::Free;
        let backend = &mut self.backends[call.backend];
        backend.open -= 1;
        if backend.socket.is_some() {
            self.shared.owners.end(call.digest, backend.index);
        }
        self.by_key.remove(&call.key);
        self.wheel.disarm(slot);
        self.free.push(slot);
    }
}

/// A request and what is known about it.
struct Request<'a> {
    place: usize,
    message: &'a Message<'a>,
    from: Address,
    method: Method,
    /// The user part of the Request-URI.
    user: &'a [u8],
    /// The number in CSeq.
    number: u32,
    digest: u64,
    key: u64,
    in_dialog: bool,
    call: Option<u32>,
    now: u64,
}

/// A response, but for what it copies.
struct Response<'a> {
    to: Address,
    /// Its place among the messages of its call.
    level: u8,
    kind: Kind,
    carries: Carries,
    /// The REGISTER whose bindings it confirms.
    register: Option<&'a Message<'a>>,
    /// The value of WWW-Authenticate.
    challenge: &'a str,
}

impl Backend {
    fn new(index: usize, socket: Socket, slow_ns: u64) -> Backend {
        let address = socket.local();
        let sdp = format!(
            "v=0\r\no=bob 2890844527 2890844527 IN IP4 {ip}\r\ns=-\r\nc=IN IP4 {ip}\r\nt=0 0\r\n\
             m=audio 49172 RTP/AVP 8 101\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:101 telephone-event/8000\r\na=sendrecv\r\n",
            ip = address.ip()
        );
        Backend {
            index,
            socket: Some(socket),
            address,
            sender: Sender::new(),
            counts: Counts::default(),
            sent: Tally::default(),
            received: Tally::default(),
            open: 0,
            violations: Vec::new(),
            moves: Vec::new(),
            held: VecDeque::new(),
            slow_ns,
            contact: format!("<sip:callee@{address}>").into(),
            signature: format!("X-Backend: {index}\r\nServer: viahop-load\r\n").into(),
            sdp: sdp.into(),
        }
    }

    /// Makes room for one more message.
    #[inline]
    fn make_room(&mut self) {
        if self.sender.is_full() {
            self.flush();
        }
    }

    /// Writes a response into the room that has been made and lets it wait for the next flush. `rows` are those it copies.
    fn send(&mut self, response: &Response<'_>, rows: &[u8], echoed: &Echoed) {
        let Response { to, level, kind, carries, register, challenge } = *response;
        let body = if carries == Carries::Sdp { &self.sdp[..] } else { &[] };
        let content_type = if body.is_empty() { &[][..] } else { b"application/sdp" };
        let own_contact = if matches!(carries, Carries::Contact | Carries::Sdp) { &self.contact[..] } else { &[] };
        let registered = register.and_then(|register| register.value(Name::Contact));
        let contact = registered.unwrap_or(own_contact);
        let expires = register.map_or(&[][..], |register| register.value(Name::Expires).unwrap_or(b"3600"));
        let digits = code_digits(kind.code);
        let mut out = Text::new(self.sender.room());
        out.put(b"SIP/2.0 ");
        out.put(&digits);
        out.put(b" ");
        out.put(reason(kind.code).as_bytes());
        out.put(b"\r\n");
        out.put(rows);
        if !contact.is_empty() {
            out.put(b"Contact: ");
            out.put(contact);
            out.put(b"\r\n");
        }
        if !expires.is_empty() {
            out.put(b"Expires: ");
            out.put(expires);
            out.put(b"\r\n");
        }
        if !challenge.is_empty() {
            out.put(b"WWW-Authenticate: ");
            out.put(challenge.as_bytes());
            out.put(b"\r\n");
        }
        out.put(&self.signature);
        let sealed = Sealed {
            start: &digits,
            from: echoed.from.of(rows),
            to: echoed.to.of(rows),
            call_id: echoed.call_id.of(rows),
            cseq: echoed.cseq.of(rows),
            contact,
            expires,
            content_type,
            body,
            ..Sealed::default()
        };
        put_seal(&mut out, sealed.digest());
        if !body.is_empty() {
            out.put(b"Content-Type: application/sdp\r\n");
        }
        out.put(b"Content-Length: ");
        out.put_number(body.len() as u64);
        out.put(b"\r\n\r\n");
        out.put(body);
        match out.finish() {
            Some(len) => {
                self.sender.push_at(len, to, level);
                self.sent.note(kind);
            }
            None => self.counts.malformed += 1,
        }
    }

    /// Writes the NOTIFY that follows a SUBSCRIBE.
    fn put_notify<'a>(
        &self,
        out: &mut Text<'_>,
        request: &Request<'_>,
        target: &[u8],
        routes: impl Iterator<Item = &'a [u8]>,
        last: bool,
    ) {
        let message = request.message;
        let row = |name| message.value(name).unwrap_or_default();
        let mut room = [0; 2048];
        let mut from = Text::new(&mut room);
        from.put(row(Name::To));
        if !request.in_dialog {
            from.put(b";tag=");
            from.put(&to_tag(request.key));
        }
        let cseq = format!("{} NOTIFY", request.number);
        let event = message.value(Name::Event).unwrap_or(b"presence");
        let state = if last { &b"terminated;reason=timeout"[..] } else { b"active" };
        let address = self.address;
        out.put(b"NOTIFY ");
        out.put(target);
        out.put(format!(" SIP/2.0\r\nVia: SIP/2.0/UDP {address};branch=z9hG4bK{:016x}", request.key).as_bytes());
        out.put(format!("{:x};rport\r\nMax-Forwards: 70\r\n", request.number).as_bytes());
        //= RFC 3261 section 12.1.1
        // The callee's route set is the Record-Route of the request, in order.
        let rows = routes.map(|route| (&b"Route"[..], route)).chain([
            (&b"From"[..], from.octets()),
            (b"To", row(Name::From)),
            (b"Call-ID", row(Name::CallId)),
            (b"CSeq", cseq.as_bytes()),
            (b"Contact", &self.contact),
            (b"Event", event),
            (b"Subscription-State", state),
        ]);
        for (name, value) in rows {
            out.put(name);
            out.put(b": ");
            out.put(value);
            out.put(b"\r\n");
        }
        let sealed = Sealed {
            start: b"NOTIFY",
            from: from.octets(),
            to: row(Name::From),
            call_id: row(Name::CallId),
            cseq: cseq.as_bytes(),
            contact: &self.contact,
            event,
            subscription_state: state,
            ..Sealed::default()
        };
        put_seal(out, sealed.digest());
        out.put(b"Content-Length: 0\r\n\r\n");
    }

    fn flush(&mut self) {
        if self.slow_ns > 0 {
            self.hold_back();
        }
        if self.sender.is_empty() {
            return;
        }
        match &self.socket {
            // Who cannot be reached learns it from his own timers.
            Some(socket) => drop(self.sender.flush(socket, &mut |_| ())),
            None => self.sender.clear(),
        }
    }
}

impl Backend {
    /// Puts what is about to leave into the queue, and what has been there long enough in its place.
    fn hold_back(&mut self) {
        let now = now_ns();
        for index in 0..self.sender.count() {
            let (octets, to) = self.sender.message(index);
            if self.held.len() < HELD_MAX {
                self.held.push_back((now + self.slow_ns, to, octets.into()));
            }
        }
        self.sender.clear();
        while self.held.front().is_some_and(|(at, ..)| *at <= now) {
            let Some((_, to, octets)) = self.held.pop_front() else { break };
            self.sender.room()[..octets.len()].copy_from_slice(&octets);
            self.sender.push(octets.len(), to);
            if self.sender.is_full() {
                break;
            }
        }
    }
}

/// The tag of a backend's To: the same for every copy of a request, as RFC 3261 8.2.7 wants it from a stateless server.
fn to_tag(key: u64) -> [u8; 16] {
    hex(mix(key))
}

/// Keys are digests already.
#[derive(Default)]
struct KeyIsHash(u64);

impl Hasher for KeyIsHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, octets: &[u8]) {
        self.0 = xxh3_64_with_seed(octets, self.0);
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}
