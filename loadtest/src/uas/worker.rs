//! One shard of the called side: a thread, its backends' sockets, their calls and timers.
//!
//! ```text
//! loop: commands ─► timers that are due ─► wait ─► receive ─► answer each ─► send what has gathered
//! ```
//!
//! Here is the loop and what all requests share; [`invite`] has calls, [`other`] whatever is no call, [`checking`] whether a
//! request is where it belongs, [`backend`] writes and sends.
//!
//! A request is answered in the turn in which it was received. Nothing is allocated per message once the places of calls
//! have been used (a NOTIFY, a challenge and a fault are put together as text, and do).

mod backend;
mod checking;
mod invite;
mod other;

use super::call::{Call, State};
use super::{BackendState, Command, Counts, Mouth, Shared, Snapshot};
use crate::clock::{SECOND_NS, now_ns};
use crate::endpoint::{Endpoint, Transport};
use crate::fault::{Fate, Fault, fate};
use crate::owners::digest;
use crate::pace::{LINGER_NS, Pace};
use crate::remote::Inbox;
use crate::seal;
use crate::seal::Verdict;
use crate::sip::answer::{destination, echo};
use crate::sip::message::{Malformed, Message, Method, Name, Rows, Start};
use crate::sip::text::Text;
use crate::sip::value::{cseq, tag, uri, uri_user};
use crate::streams::{Inlet, STREAM_TOKENS, Streams};
use crate::sys::address::Address;
use crate::sys::batch::{BATCH_MAX, Receiver, Sender, drain_errors};
use crate::sys::wait::{Waiter, wake_on_time};
use crate::tally::Kind;
use crate::timer::Wheel;
use backend::{Backend, Carries, Response, to_tag};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Receives of one socket in a row before the others get their turn.
const RECEIVES_MAX: usize = 8;

/// Looks at the sockets of a shard that has been told to stop, at most: callers may go on for ever.
const LAST_LOOKS: u32 = 64;

/// Octets of rows that are copied from a request. A request with more is not answered.
const ECHO_MAX: usize = 16 << 10;

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
    ready: Vec<u32>,
    fired: Vec<u32>,
}

struct Shard {
    shared: Arc<Shared>,
    waiter: Waiter,
    backends: Vec<Backend>,
    streams: Streams,
    calls: Vec<Call>,
    free: Vec<u32>,
    by_key: HashMap<u64, u32, BuildHasherDefault<KeyIsHash>>,
    wheel: Wheel,
    pace: Pace,
    /// Where rows are put together before they go into a response.
    scratch: Box<[u8]>,
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        waiter: Waiter,
        inbox: Inbox<Command>,
        mouths: Vec<(usize, Mouth)>,
        now: u64,
    ) -> io::Result<Worker> {
        let slow = |fault: &Fault| if let Fault::Slow(slow_ns) = fault { *slow_ns } else { 0 };
        let slow_ns = shared.config.faults.iter().map(slow).max().unwrap_or(0);
        let mut backends = Vec::new();
        for (place, (index, mouth)) in mouths.into_iter().enumerate() {
            listen(&waiter, &mouth, place)?;
            let segments = shared.config.segments && slow_ns == 0;
            let sender = if segments { Sender::segmenting() } else { Sender::new() };
            backends.push(Backend { sender, ..Backend::new(index, mouth, slow_ns) });
        }
        let receiver = Receiver::new(BATCH_MAX);
        let (inlet, rows) = (Inlet::default(), Rows::default());
        let io = Io { receiver, inlet, rows, inbox, ready: Vec::new(), fired: Vec::new() };
        let tls = shared.config.tls.clone();
        let shard = Shard {
            shared,
            streams: Streams::new(&waiter).with_tls(None, tls),
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

    /// Runs until it is told to stop, and says what there was. What was there by then is heard.
    pub(super) fn run(mut self) -> (Vec<Snapshot>, io::Result<()>) {
        wake_on_time();
        let Worker { io, shard } = &mut self;
        let mut looks_left = None;
        loop {
            while let Some(command) = io.inbox.next() {
                if matches!(command, Command::Stop) {
                    looks_left.get_or_insert(LAST_LOOKS);
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
            if looks_left.is_some() {
                timeout = 0;
            }
            if let Err(error) = shard.waiter.wait(timeout, &mut io.ready) {
                return (shard.snapshots(), Err(error));
            }
            if let Some(left) = &mut looks_left {
                if *left == 0 || io.ready.is_empty() {
                    return (shard.snapshots(), Ok(()));
                }
                *left -= 1;
            }
            while let Some(token) = io.ready.pop() {
                match token & STREAM_TOKENS {
                    0 => shard.receive(io, token as usize),
                    _ => shard.read(io, token),
                }
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
        let Some(mouth) = backend.mouth.take() else { return };
        backend.counts.overflowed += mouth.dropped();
        backend.sender.clear();
        self.streams.close_all_of(place as u32);
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
        if backend.mouth.is_none() {
            let mouth = Mouth::open(Endpoint { transport: backend.transport, address: backend.address })?;
            listen(&self.waiter, &mouth, place)?;
            backend.mouth = Some(mouth);
        }
        Ok(())
    }

    fn snapshots(&self) -> Vec<Snapshot> {
        let snapshot = |backend: &Backend| {
            let dropped = backend.mouth.as_ref().map_or(0, Mouth::dropped);
            let counts = Counts { overflowed: backend.counts.overflowed + dropped, ..backend.counts };
            Snapshot {
                index: backend.index,
                state: BackendState {
                    counts,
                    sent: backend.sent.clone(),
                    received: backend.received.clone(),
                    open: backend.open,
                    alive: backend.mouth.is_some(),
                },
                violations: backend.violations.clone(),
                moves: backend.moves.clone(),
            }
        };
        self.backends.iter().map(snapshot).collect()
    }

    fn receive(&mut self, io: &mut Io, place: usize) {
        for _ in 0..RECEIVES_MAX {
            let socket = match &self.backends[place].mouth {
                Some(Mouth::Datagrams(socket)) => socket,
                Some(Mouth::Streams(listener, local)) => {
                    // No descriptor left: who waits there waits on.
                    let with_tls = local.transport == Transport::Tls;
                    let taken = self.streams.accept(listener, place as u32, with_tls).unwrap_or(0);
                    self.backends[place].counts.connections += taken as u64;
                    return;
                }
                None => return,
            };
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
            self.backends[place].flush(&mut self.streams);
            if !more {
                return;
            }
        }
    }

    /// Takes what has come on a connection.
    fn read(&mut self, io: &mut Io, token: u32) {
        let Some((place, from)) = self.streams.read(token, &mut io.inlet) else { return };
        let (place, now) = (place as usize, now_ns());
        while let Some(octets) = io.inlet.next_message() {
            self.pace.note(2);
            match Message::read(octets, &mut io.rows) {
                Ok(message) => self.on_message(place, &message, from, now),
                Err(_) => self.backends[place].counts.malformed += 1,
            }
        }
        self.backends[place].counts.malformed += u64::from(io.inlet.broken().is_some());
        self.streams.keep(from, &mut io.inlet);
        self.backends[place].flush(&mut self.streams);
        self.streams.flush();
    }

    /// When there is something to do without a datagram coming in.
    fn next_ns(&self) -> u64 {
        let held = self.backends.iter().filter_map(|backend| backend.held.front()).map(|(at, ..)| *at).min();
        self.wheel.next_ns().min(held.unwrap_or(u64::MAX))
    }

    fn flush(&mut self) {
        self.backends.iter_mut().for_each(|backend| backend.flush(&mut self.streams));
        self.streams.flush();
        // Who has lost his connection asks again, on another; it is his to say so.
        while self.streams.next_ended().is_some() {}
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
                call.due_ns += call.interval_ns;
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
        let subscribed = code == 200 && request.method == Method::Subscribe;
        let echoed = echo(request.message, request.from, &to_tag, subscribed, &mut out);
        let to = destination(request.message, request.from);
        let (Some(echoed), Some(to), Some(len)) = (echoed, to, out.finish()) else {
            self.backends[request.place].counts.malformed += 1;
            return;
        };
        let registered = code == 200 && request.method == Method::Register;
        let grants = (registered || subscribed).then_some(request.message);
        let challenge = match (&self.shared.config.realm, carries) {
            (Some(realm), Carries::Challenge) => realm.challenge(request.digest),
            _ => String::new(),
        };
        let backend = &mut self.backends[request.place];
        backend.make_room(&mut self.streams);
        let level = request.call.map_or(0, |slot| self.calls[slot as usize].order.next(&backend.sender));
        let kind = Kind::response(code, request.method);
        let response = Response { to, level, kind, carries, grants, challenge: &challenge };
        backend.send(&response, &self.scratch[..len], &echoed);
    }

    /// Sends a response to the INVITE of a call.
    fn send_of_call(&mut self, slot: u32, code: u16, carries: Carries) {
        let call = &mut self.calls[slot as usize];
        let backend = &mut self.backends[call.backend];
        backend.make_room(&mut self.streams);
        let level = call.order.next(&backend.sender);
        let kind = Kind::response(code, Method::Invite);
        let response = Response { to: call.to, level, kind, carries, grants: None, challenge: "" };
        backend.send(&response, &call.rows, &call.echoed);
    }

    /// The call is over: its place is free, and the record of owners remembers that it was here.
    fn release(&mut self, slot: u32) {
        let call = &mut self.calls[slot as usize];
        debug_assert!(call.state != State::Free);
        call.state = State::Free;
        let backend = &mut self.backends[call.backend];
        backend.open -= 1;
        if backend.mouth.is_some() {
            self.shared.owners.end(call.digest, backend.index);
        }
        self.by_key.remove(&call.key);
        self.wheel.disarm(slot);
        self.free.push(slot);
    }
}

fn listen(waiter: &Waiter, mouth: &Mouth, place: usize) -> io::Result<()> {
    match mouth {
        Mouth::Datagrams(socket) => waiter.add(socket, place as u32),
        Mouth::Streams(listener, _) => waiter.registry().add(listener, place as u32, false),
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
