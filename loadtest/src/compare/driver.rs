//! The driver: INVITEs out of one socket, or by turns out of some connections, at fixed times; a sink that answers each with
//! a 200 on another, or on the connections that come; both on this thread. It never waits: between two due times it looks at
//! both, so it needs a core of its own.
//!
//! ```text
//! loop: what is due ─► send      sink: receive ─► answer ─► send      client: receive ─► match ─► record
//! ```
//!
//! Round trips count from the scheduled time, so a stalled element cannot slow down the clock that judges it. The
//! driver's own lateness (from the schedule to the return of `sendmmsg`) is part of each round trip and is published.

use super::invite::Invite;
use crate::clock::{MS_NS, SECOND_NS, now_ns};
use crate::endpoint::{Endpoint, Transport};
use crate::latency::Latencies;
use crate::rng::seed;
use crate::schedule::{Arrivals, Schedule};
use crate::sip::answer::{destination, echo};
use crate::sip::message::{Message, Method, Name, Rows, Start};
use crate::sip::text::{Text, hex};
use crate::streams::{Inlet, STREAM_TOKENS, Streams};
use crate::sys::address::Address;
use crate::sys::batch::{BATCH_MAX, Receiver, Sender, drain_errors};
use crate::sys::process::stop_signals;
use crate::sys::socket::Socket;
use crate::sys::tcp;
use crate::sys::wait::Waiter;
use crate::tls;
use crate::usage::Usage;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

/// Requests that can be in flight: 2^20, so 5 s at 200,000 a second. What is older counts as lost.
const PENDING_MAX: usize = 1 << 20;

/// Requests in flight when the element is to be saturated. Enough to keep it busy at 30 ms a round trip, few enough not
/// to overrun a receive buffer of 8 MiB.
const WINDOW: u32 = 512;

/// How long the driver waits for stragglers before it calls what is missing lost.
const DRAIN_NS: u64 = 300 * MS_NS;

/// Requests that have to come back before an element counts as up.
const PROBES: u64 = 5;

/// Messages sent before the element's CPU time is first read are not measured; so many nanoseconds after, neither.
const SETTLE_NS: u64 = 5 * MS_NS;

/// Where the driver's ends are.
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The connections that come to the sink are its; those of the client have their numbers.
const OF_SINK: u32 = u32::MAX;

/// What one trial offers.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Requests a second. `None`: as many as come back, with `WINDOW` in flight, to find what the element can do.
    pub rate: Option<f64>,
    /// How the requests are spread in time.
    pub arrivals: Arrivals,
    /// Load before the measurement begins, in nanoseconds.
    pub warm_up_ns: u64,
    /// The measurement, in nanoseconds.
    pub measure_ns: u64,
}

/// What one trial saw between the end of its warm-up and its own end.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How long the measurement took.
    pub elapsed_ns: u64,
    /// Requests sent.
    pub sent: u64,
    /// Requests that reached the sink.
    pub at_sink: u64,
    /// Responses that came back.
    pub answered: u64,
    /// Requests, of the whole trial, whose response never came.
    pub lost: u64,
    /// Responses that were not what the sink sent: wrong status, a changed Via stack, a second copy.
    pub wrong: u64,
    /// Provisional responses, which only the element can have made.
    pub provisional: u64,
    /// Round trips from the scheduled time; when saturating there is no schedule, and they count from when each was sent.
    pub round_trip: Latencies,
    /// How late the driver itself was.
    pub lateness: Latencies,
    /// The share of the driver's turns in which it had something to do, 0 to 1. Near 1 the driver was the limit.
    pub driver_busy: f64,
    /// What the element cost, as the caller's probe said.
    pub element: Usage,
}

impl Seen {
    /// Messages the element forwarded: a request and its response are two.
    pub fn forwarded(&self) -> u64 {
        self.at_sink + self.answered
    }

    /// CPU microseconds of the element for one message.
    pub fn cpu_us_per_message(&self) -> f64 {
        self.element.on_cpu_ns as f64 / 1000.0 / self.forwarded().max(1) as f64
    }

    /// Messages a second.
    pub fn messages_per_second(&self) -> f64 {
        self.forwarded() as f64 * SECOND_NS as f64 / self.elapsed_ns.max(1) as f64
    }
}

/// What the element sends to.
#[derive(Debug)]
pub enum Sink {
    /// Datagrams.
    Datagrams(Socket),
    /// Messages on connections that it opens.
    Streams(TcpListener, Endpoint),
}

impl Sink {
    /// Opens one, and so learns its address; the element that is to send there can be started then.
    pub fn open(transport: Transport) -> io::Result<Sink> {
        match transport {
            Transport::Ws | Transport::Wss => Err(io::ErrorKind::Unsupported.into()),
            Transport::Tcp | Transport::Tls => {
                let listener = tcp::listen(SocketAddr::new(HERE, 0))?;
                let address = listener.local_addr()?;
                Ok(Sink::Streams(listener, Endpoint { transport, address }))
            }
            Transport::Udp => Socket::bind(SocketAddr::new(HERE, 0)).map(Sink::Datagrams),
        }
    }

    /// Where it is.
    pub fn endpoint(&self) -> Endpoint {
        match self {
            Sink::Datagrams(socket) => socket.local().into(),
            Sink::Streams(_, endpoint) => *endpoint,
        }
    }
}

/// The two ends of an element.
pub struct Driver {
    io: Io,
    load: Load,
}

/// What messages are read with; apart from the rest, because a message borrows it.
struct Io {
    /// `None`: the client has connections.
    client: Option<Socket>,
    sink: Sink,
    waiter: Waiter,
    ready: Vec<u32>,
    receiver: Receiver,
    inlet: Inlet,
    rows: Rows,
}

/// What has been sent, and what came of it.
struct Load {
    target: Endpoint,
    /// How the element sends to the sink.
    sink: Transport,
    /// One for each connection, or for each length out of a socket. They take turns.
    invites: Vec<(Invite, Address)>,
    /// How many there are of the INVITE.
    lengths: usize,
    /// What tells this driver's requests from all others.
    key: u64,
    /// For each request in flight the time it was due, at its number modulo the length; 0 where it is answered.
    pending: Box<[u64]>,
    /// Number of the next request. All numbers below have been sent.
    next: u32,
    unanswered: u32,
    from_client: Sender,
    from_sink: Sender,
    streams: Streams,
    contact: Vec<u8>,
    seen: Seen,
    /// When each request of the batch that is about to leave was due.
    due: Vec<u64>,
    /// Round trips of requests due before this moment are not recorded.
    record_from_ns: u64,
}

impl Driver {
    /// A driver for the element at `target`, with `sink` behind it. Its requests have so many `lengths`, one after the other, and the
    /// responses as many. Over TCP and TLS it has so many connections; `server` is what the sink shows to who comes over TLS.
    pub fn new(
        sink: Sink,
        target: Endpoint,
        lengths: usize,
        connections: usize,
        tls: (Option<tls::Client>, Option<tls::Server>),
    ) -> io::Result<Driver> {
        let Endpoint { transport, address: target } = target;
        let lengths = lengths.max(1);
        let waiter = Waiter::new()?;
        let (client, server) = tls;
        let client = client.filter(|_| transport.has_tls());
        let mut streams = Streams::new(&waiter).with_tls(client, server).with_websockets(transport.is_websocket());
        let key = seed() & 0xffff_ffff_0000_0000;
        let (mut client, mut invites) = (None, Vec::new());
        match transport {
            Transport::Tcp | Transport::Tls | Transport::Ws | Transport::Wss => {
                for place in 0..connections.max(1) as u32 {
                    let to = streams.open(target, HERE, place);
                    let longer = place as usize % lengths;
                    invites.push((Invite::new(transport, SocketAddr::new(HERE, 0), target, key, longer), to));
                }
            }
            Transport::Udp => {
                let socket = Socket::bind(SocketAddr::new(HERE, 0))?;
                for longer in 0..lengths {
                    let invite = Invite::new(transport, socket.local(), target, key, longer);
                    invites.push((invite, Address::from(target)));
                }
                client = Some(socket);
            }
        }
        let Endpoint { transport: behind, address } = sink.endpoint();
        if let Sink::Streams(listener, _) = &sink {
            waiter.registry().add(listener, 0, false)?;
        }
        let io = Io {
            client,
            sink,
            waiter,
            ready: Vec::new(),
            receiver: Receiver::new(BATCH_MAX),
            inlet: Inlet::default(),
            rows: Rows::default(),
        };
        let contact = format!("Contact: <sip:sink@{address}{}>\r\nContent-Length: 0\r\n\r\n", behind.uri_param());
        let load = Load {
            target: Endpoint { transport, address: target },
            sink: behind,
            invites,
            lengths,
            key,
            pending: vec![0; PENDING_MAX].into(),
            next: 0,
            unanswered: 0,
            from_client: Sender::new(),
            from_sink: Sender::new(),
            streams,
            contact: contact.into_bytes(),
            seen: Seen::default(),
            due: Vec::with_capacity(BATCH_MAX),
            record_from_ns: 0,
        };
        Ok(Driver { io, load })
    }

    /// Opens its connections, then sends one request every 20 ms until `PROBES` in a row have come back, for at most
    /// `patience_ns`, and not beyond a signal to stop.
    pub fn probe(&mut self, patience_ns: u64) -> io::Result<bool> {
        let start = now_ns();
        let mut next = start;
        self.load.seen = Seen::default();
        self.connect(patience_ns)?;
        while now_ns() - start < patience_ns && stop_signals() == 0 {
            if now_ns() >= next {
                self.load.stage(next);
                self.flush();
                next = now_ns() + 20 * MS_NS;
            }
            self.turn()?;
            if self.load.seen.wrong > 0 {
                // It has not seen that there is somebody behind it.
                self.load.seen = Seen::default();
            }
            if self.load.seen.answered >= PROBES {
                self.drain()?;
                return Ok(true);
            }
            std::thread::yield_now();
        }
        self.load.forget();
        Ok(false)
    }

    /// Opens connections that are down, and waits for them; the sink does its work meanwhile.
    fn connect(&mut self, patience_ns: u64) -> io::Result<()> {
        let start = now_ns();
        while self.io.client.is_none()
            && self.load.streams.opened() < self.load.invites.len()
            && now_ns() - start < patience_ns
            && stop_signals() == 0
        {
            self.turn()?;
        }
        Ok(())
    }

    /// Offers nothing for so many nanoseconds, and answers what the element asks of its own accord: one whose probes nobody
    /// answers takes its backend for dead.
    pub fn serve(&mut self, serve_ns: u64) -> io::Result<()> {
        let end = now_ns() + serve_ns;
        while now_ns() < end {
            self.turn()?;
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Offers load and says what came of it. `probe` is asked for the element's CPU time at the start and at the end
    /// of the measurement.
    pub fn offer(&mut self, offer: &Offer, mut probe: impl FnMut() -> Usage) -> io::Result<Seen> {
        self.load.seen = Seen::default();
        self.load.record_from_ns = u64::MAX;
        let start = now_ns();
        let mut schedule = Schedule::new(offer.arrivals, offer.rate.unwrap_or(0.0), start, seed());
        self.run_until(start + offer.warm_up_ns, offer, &mut schedule)?;

        let before = probe();
        let lost_before = u64::from(self.load.unanswered);
        self.load.seen = Seen::default();
        let from = now_ns();
        self.load.record_from_ns = from + SETTLE_NS;
        let busy = self.run_until(from + offer.measure_ns, offer, &mut schedule)?;
        let after = probe();
        let mut seen = std::mem::take(&mut self.load.seen);
        seen.elapsed_ns = now_ns() - from;
        seen.element = after.since(before);
        seen.driver_busy = busy;
        // Stragglers are no part of the measurement, but they are not lost either. Those of the warm-up that were in
        // flight at its end belong to nobody.
        let (sent, in_flight) = (seen.sent + lost_before, u64::from(self.load.unanswered));
        debug_assert!(in_flight <= sent);
        self.drain()?;
        seen.round_trip.add(&self.load.seen.round_trip);
        seen.wrong += self.load.seen.wrong;
        seen.lost = u64::from(self.load.unanswered).min(seen.sent);
        if self.load.unanswered > 0 && self.io.client.is_none() {
            // What the element has not read yet is no part of the next measurement.
            self.load.streams.renew();
            self.connect(SECOND_NS)?;
        }
        self.load.forget();
        Ok(seen)
    }

    /// Runs turns until `end_ns`, or until told to stop, and says which share of them had something to do.
    fn run_until(&mut self, end_ns: u64, offer: &Offer, schedule: &mut Schedule) -> io::Result<f64> {
        let (mut turns, mut busy) = (0u64, 0u64);
        loop {
            let now = now_ns();
            if now >= end_ns || stop_signals() > 0 {
                return Ok(busy as f64 / turns.max(1) as f64);
            }
            match offer.rate {
                Some(_) => {
                    while schedule.next_ns() <= now && !self.load.from_client.is_full() {
                        let due = schedule.take();
                        self.load.stage(due);
                    }
                }
                None => {
                    let load = &mut self.load;
                    while load.unanswered + (load.due.len() as u32) < WINDOW && !load.from_client.is_full() {
                        load.stage(now);
                    }
                }
            }
            let sent = self.flush();
            let worked = self.turn()?;
            turns += 1;
            busy += u64::from(sent || worked);
        }
    }

    /// Sends the batch and says whether there was one.
    fn flush(&mut self) -> bool {
        let load = &mut self.load;
        if load.due.is_empty() {
            return false;
        }
        match &self.io.client {
            Some(socket) => drop(load.from_client.flush(socket, &mut |_| ())),
            None => {
                leave_by(&mut load.streams, &mut load.from_client);
                load.streams.flush();
            }
        }
        load.note_sent(now_ns());
        true
    }

    /// Takes what has arrived at both ends and says whether there was anything.
    fn turn(&mut self) -> io::Result<bool> {
        let Driver { io, load } = self;
        let mut any = false;
        if let Sink::Datagrams(sink) = &io.sink {
            any |= receive(&mut io.receiver, sink)? > 0;
            for index in 0..io.receiver.filled() {
                let (octets, from) = io.receiver.datagram(index);
                load.answer(octets, &mut io.rows, from);
            }
            load.from_sink.flush(sink, &mut |_| ());
        }
        if let Some(client) = &io.client {
            any |= receive(&mut io.receiver, client)? > 0;
            let now = now_ns();
            for index in 0..io.receiver.filled() {
                load.match_one(io.receiver.datagram(index).0, &mut io.rows, now);
            }
        }
        if io.client.is_none() || load.sink.is_reliable() {
            any |= io.turn_streams(load)?;
        }
        Ok(any)
    }

    /// Waits for what is in flight.
    fn drain(&mut self) -> io::Result<()> {
        let start = now_ns();
        while self.load.unanswered > 0 && now_ns() - start < DRAIN_NS {
            self.turn()?;
        }
        Ok(())
    }
}

impl Io {
    /// Takes what has arrived on connections and says whether there was anything.
    fn turn_streams(&mut self, load: &mut Load) -> io::Result<bool> {
        load.reopen();
        self.waiter.wait(0, &mut self.ready)?;
        let any = !self.ready.is_empty();
        for token in self.ready.drain(..) {
            if token & STREAM_TOKENS == 0 {
                if let Sink::Streams(listener, endpoint) = &self.sink {
                    load.streams.accept(listener, OF_SINK, endpoint.transport == Transport::Tls)?;
                }
                continue;
            }
            let Some((place, from)) = load.streams.read(token, &mut self.inlet) else { continue };
            let now = now_ns();
            while let Some(octets) = self.inlet.next_message() {
                match place {
                    OF_SINK => load.answer(octets, &mut self.rows, from),
                    _ => load.match_one(octets, &mut self.rows, now),
                }
            }
            load.seen.wrong += u64::from(self.inlet.broken().is_some());
            load.streams.keep(from, &mut self.inlet);
            if load.sink.is_reliable() {
                leave_by(&mut load.streams, &mut load.from_sink);
            }
        }
        load.streams.flush();
        // What was lost with a connection is lost; `reopen` opens another.
        while load.streams.next_ended().is_some() {}
        Ok(any)
    }
}

fn receive(receiver: &mut Receiver, socket: &Socket) -> io::Result<usize> {
    match receiver.receive(socket) {
        Ok(count) => Ok(count),
        // An element that is not there yet, or no longer: the kernel says so once per datagram.
        Err(_) if drain_errors(socket, &mut |_| ()) => Ok(0),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(0),
        Err(error) => Err(error),
    }
}

/// Lets what waits in `sender` wait for its connections instead.
fn leave_by(streams: &mut Streams, sender: &mut Sender) {
    for index in 0..sender.count() {
        let (octets, to) = sender.message(index);
        streams.push(to, octets);
    }
    sender.clear();
}

impl Load {
    /// Opens connections that are down. Each speaks from another address then.
    fn reopen(&mut self) {
        let Load { streams, invites, lengths, target, key, .. } = self;
        streams.reopen(now_ns(), |place, local| {
            let longer = place as usize % *lengths;
            invites[place as usize].0 = Invite::new(target.transport, local, target.address, *key, longer);
        });
    }

    /// Which INVITE a number's is, and where it goes.
    #[inline]
    fn invite(&self, number: u32) -> &(Invite, Address) {
        &self.invites[number as usize % self.invites.len()]
    }

    /// Writes the next request, due at `due_ns`, into the batch.
    #[inline]
    fn stage(&mut self, due_ns: u64) {
        let number = self.next.wrapping_add(self.due.len() as u32);
        let (invite, to) = &self.invites[number as usize % self.invites.len()];
        let len = invite.write(number, self.from_client.room());
        self.from_client.push(len, *to);
        self.due.push(due_ns);
    }

    /// The batch has left.
    fn note_sent(&mut self, now: u64) {
        for &due in &self.due {
            let slot = &mut self.pending[self.next as usize % PENDING_MAX];
            // A number comes round again after 2^20 requests; whoever still waits then never gets an answer.
            self.unanswered += u32::from(*slot == 0);
            *slot = due.max(1);
            self.next = self.next.wrapping_add(1);
            if due >= self.record_from_ns {
                self.seen.lateness.record(now.saturating_sub(due));
            }
        }
        self.seen.sent += self.due.len() as u64;
        self.due.clear();
    }

    /// The sink: a 200 for each request, everything copied that RFC 3261 8.2.6 says.
    fn answer(&mut self, octets: &[u8], rows: &mut Rows, from: Address) {
        let Ok(message) = Message::read(octets, rows) else { return };
        let Start::Request(method, _) = message.start else { return };
        if method == Method::Ack {
            return;
        }
        if self.from_sink.is_full() {
            leave_by(&mut self.streams, &mut self.from_sink);
        }
        // An element that probes its backends gets its answer and counts for nothing.
        let number = self.invites[0].0.number_of(&message);
        if number.is_some() {
            self.seen.at_sink += 1;
        }
        let tag = hex(u64::from(number.unwrap_or_default()));
        let mut out = Text::new(self.from_sink.room());
        out.put(b"SIP/2.0 200 OK\r\n");
        let whole = echo(&message, from, &tag, true, &mut out);
        out.put(&self.contact);
        if let (Some(_), Some(to), Some(len)) = (whole, destination(&message, from), out.finish()) {
            self.from_sink.push(len, to);
        }
    }

    /// The client: which request a response belongs to, and how long it took.
    fn match_one(&mut self, octets: &[u8], rows: &mut Rows, now: u64) {
        let Ok(message) = Message::read(octets, rows) else {
            self.seen.wrong += 1;
            return;
        };
        let Some(number) = self.invites[0].0.number_of(&message) else { return };
        match message.start {
            Start::Response(100..200) => self.seen.provisional += 1,
            Start::Response(200) if self.invite(number).0.is_via_stack_ours(&message, number) => {
                let slot = &mut self.pending[number as usize % PENDING_MAX];
                let due = std::mem::take(slot);
                if due == 0 || message.value(Name::To).is_none_or(|to| !to.ends_with(&hex(u64::from(number)))) {
                    self.seen.wrong += 1;
                    return;
                }
                self.unanswered -= 1;
                self.seen.answered += 1;
                if due >= self.record_from_ns {
                    self.seen.round_trip.record(now.saturating_sub(due));
                }
            }
            _ => self.seen.wrong += 1,
        }
    }

    /// Gives up on what is in flight.
    fn forget(&mut self) {
        self.pending.fill(0);
        self.unanswered = 0;
        self.record_from_ns = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::{Mode, Relay};
    use std::sync::atomic::{AtomicBool, Ordering};

    fn offer(rate: Option<f64>) -> Offer {
        Offer { rate, arrivals: Arrivals::Constant, warm_up_ns: 20 * MS_NS, measure_ns: 100 * MS_NS }
    }

    #[test]
    fn without_an_element_every_request_comes_back() {
        let sink = Sink::open(Transport::Udp).unwrap();
        let target = sink.endpoint();
        let mut driver = Driver::new(sink, target, 3, 1, (None, None)).unwrap();
        assert!(driver.probe(SECOND_NS).unwrap());
        let seen = driver.offer(&offer(Some(2000.0)), Usage::default).unwrap();
        // What a machine that does something else as well was late with before the measurement is sent within it.
        assert!(seen.sent >= 150, "{seen:?}");
        assert_eq!((seen.lost, seen.wrong, seen.provisional), (0, 0, 0));
        assert!(seen.round_trip.count() > 0 && seen.lateness.count() > 0);
    }

    #[test]
    fn over_connections_every_request_comes_back_too() {
        for transport in [Transport::Tcp, Transport::Tls] {
            let sink = Sink::open(transport).unwrap();
            let target = sink.endpoint();
            let host = target.address.ip().to_string();
            let tls =
                (Some(tls::Client::new(&host, None).unwrap()), Some(tls::Server::self_signed(vec![host]).unwrap()));
            let mut driver = Driver::new(sink, target, 5, 7, tls).unwrap();
            assert!(driver.probe(SECOND_NS).unwrap());
            for rate in [Some(2000.0), None] {
                let seen = driver.offer(&offer(rate), Usage::default).unwrap();
                assert!(seen.sent >= 150, "{seen:?}");
                assert_eq!((seen.lost, seen.wrong, seen.provisional), (0, 0, 0));
            }
            assert_eq!(driver.load.streams.opened(), 7);
        }
    }

    #[test]
    fn a_relay_in_between_is_passed_twice_per_request() {
        let sink = Sink::open(Transport::Udp).unwrap();
        let mut relay = Relay::bind(([127, 0, 0, 1], 0).into(), sink.endpoint().address).unwrap();
        let target = relay.local().into();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let relayed = scope.spawn(|| relay.run(Mode::Batched, || stop.load(Ordering::Relaxed)).unwrap());
            let mut driver = Driver::new(sink, target, 1, 1, (None, None)).unwrap();
            assert!(driver.probe(5 * SECOND_NS).unwrap());
            let seen = driver.offer(&offer(None), Usage::default).unwrap();
            assert!(seen.answered > 0);
            assert_eq!(seen.wrong, 0);
            stop.store(true, Ordering::Relaxed);
            assert!(relayed.join().unwrap().received >= seen.forwarded());
        });
    }

    #[test]
    fn a_target_that_is_not_there_is_not_waited_for() {
        let sink = Sink::open(Transport::Udp).unwrap();
        let gone = Sink::open(Transport::Udp).unwrap().endpoint();
        let mut driver = Driver::new(sink, gone, 1, 1, (None, None)).unwrap();
        assert!(!driver.probe(60 * MS_NS).unwrap());
    }

    #[test]
    fn what_an_element_swallows_is_lost() {
        let sink = Sink::open(Transport::Udp).unwrap();
        let black_hole = Sink::open(Transport::Udp).unwrap();
        let mut driver = Driver::new(sink, black_hole.endpoint(), 1, 1, (None, None)).unwrap();
        let seen = driver.offer(&offer(Some(1000.0)), Usage::default).unwrap();
        assert!(seen.sent > 50);
        assert_eq!(seen.lost, seen.sent);
    }
}
