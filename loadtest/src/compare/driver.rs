//! The driver: INVITEs out of one socket at fixed times, a sink that answers each with a 200 on another, both on this
//! thread. It never waits: between two due times it looks at both sockets, so it needs a core of its own.
//!
//! ```text
//! loop: what is due ─► send      sink: receive ─► answer ─► send      client: receive ─► match ─► record
//! ```
//!
//! Round trips count from the scheduled time, so a stalled element cannot slow down the clock that judges it. The
//! driver's own lateness (from the schedule to the return of `sendmmsg`) is part of each round trip and is published.

use super::invite::Invite;
use crate::clock::{MS_NS, SECOND_NS, now_ns};
use crate::latency::Latencies;
use crate::rng::seed;
use crate::schedule::{Arrivals, Schedule};
use crate::sip::answer::{destination, echo};
use crate::sip::message::{Message, Method, Name, Rows, Start};
use crate::sip::text::{Text, hex};
use crate::sys::address::Address;
use crate::sys::batch::{BATCH_MAX, Receiver, Sender, drain_errors};
use crate::sys::socket::Socket;
use crate::usage::Usage;
use std::io;
use std::net::SocketAddr;

/// Requests that can be in flight: 2^20, so 5 s at 200,000 a second. What is older counts as lost.
const PENDING_MAX: usize = 1 << 20;

/// Requests in flight when the element is to be saturated. Enough to keep it busy at 30 ms a round trip, few enough not
/// to overrun a receive buffer of 8 MiB.
const WINDOW: u32 = 512;

/// How long the driver waits for stragglers before it calls what is missing lost.
const DRAIN_NS: u64 = 300 * MS_NS;

/// Messages sent before the element's CPU time is first read are not measured; so many nanoseconds after, neither.
const SETTLE_NS: u64 = 5 * MS_NS;

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
    /// Round trips from the scheduled time. Empty when saturating: there is no schedule then.
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

/// The two ends of an element.
pub struct Driver {
    client: Socket,
    sink: Socket,
    target: Address,
    invite: Invite,
    /// For each request in flight the time it was due, at its number modulo the length; 0 where it is answered.
    pending: Box<[u64]>,
    /// Number of the next request. All numbers below have been sent.
    next: u32,
    unanswered: u32,
    from_client: Sender,
    from_sink: Sender,
    receiver: Receiver,
    rows: Rows,
    contact: Vec<u8>,
    seen: Seen,
    /// When each request of the batch that is about to leave was due.
    due: Vec<u64>,
    /// Round trips of requests due before this moment are not recorded.
    record_from_ns: u64,
}

impl Driver {
    /// Opens the sink and learns its address; the element that is to send there can be started then.
    pub fn open_sink() -> io::Result<Socket> {
        Socket::bind(([127, 0, 0, 1], 0).into())
    }

    /// A driver for the element at `target`, with `sink` behind it.
    pub fn new(sink: Socket, target: SocketAddr) -> io::Result<Driver> {
        let client = Socket::bind(([127, 0, 0, 1], 0).into())?;
        Ok(Driver {
            invite: Invite::new(client.local(), target, seed() & 0xffff_ffff_0000_0000),
            contact: format!("Contact: <sip:sink@{}>\r\nContent-Length: 0\r\n\r\n", sink.local()).into_bytes(),
            client,
            sink,
            target: Address::from(target),
            pending: vec![0; PENDING_MAX].into(),
            next: 0,
            unanswered: 0,
            from_client: Sender::new(),
            from_sink: Sender::new(),
            receiver: Receiver::new(BATCH_MAX),
            rows: Rows::default(),
            seen: Seen::default(),
            due: Vec::with_capacity(BATCH_MAX),
            record_from_ns: 0,
        })
    }

    /// Sends one request every 20 ms until one has come back, for at most `patience_ns`.
    pub fn probe(&mut self, patience_ns: u64) -> io::Result<bool> {
        let start = now_ns();
        let mut next = start;
        self.seen = Seen::default();
        while now_ns() - start < patience_ns {
            if now_ns() >= next {
                self.stage(next);
                self.flush()?;
                next = now_ns() + 20 * MS_NS;
            }
            self.turn()?;
            if self.seen.answered > 0 {
                self.drain()?;
                return Ok(true);
            }
            std::thread::yield_now();
        }
        self.forget();
        Ok(false)
    }

    /// Offers load and says what came of it. `probe` is asked for the element's CPU time at the start and at the end
    /// of the measurement.
    pub fn offer(&mut self, offer: &Offer, mut probe: impl FnMut() -> Usage) -> io::Result<Seen> {
        self.seen = Seen::default();
        self.record_from_ns = u64::MAX;
        let start = now_ns();
        let mut schedule = Schedule::new(offer.arrivals, offer.rate.unwrap_or(0.0), start, seed());
        self.run_until(start + offer.warm_up_ns, offer, &mut schedule)?;

        let before = probe();
        let lost_before = u64::from(self.unanswered);
        self.seen = Seen::default();
        let from = now_ns();
        self.record_from_ns = from + SETTLE_NS;
        let busy = self.run_until(from + offer.measure_ns, offer, &mut schedule)?;
        let after = probe();
        let mut seen = std::mem::take(&mut self.seen);
        seen.elapsed_ns = now_ns() - from;
        seen.element = after.since(before);
        seen.driver_busy = busy;
        // Stragglers are no part of the measurement, but they are not lost either. Those of the warm-up that were in
        // flight at its end belong to nobody.
        let (sent, in_flight) = (seen.sent + lost_before, u64::from(self.unanswered));
        debug_assert!(in_flight <= sent);
        self.drain()?;
        seen.round_trip.add(&self.seen.round_trip);
        seen.wrong += self.seen.wrong;
        seen.lost = u64::from(self.unanswered).min(seen.sent);
        self.forget();
        Ok(seen)
    }

    /// Runs turns until `end_ns` and says which share of them had something to do.
    fn run_until(&mut self, end_ns: u64, offer: &Offer, schedule: &mut Schedule) -> io::Result<f64> {
        let (mut turns, mut busy) = (0u64, 0u64);
        loop {
            let now = now_ns();
            if now >= end_ns {
                return Ok(busy as f64 / turns.max(1) as f64);
            }
            match offer.rate {
                Some(_) => {
                    while schedule.next_ns() <= now && !self.from_client.is_full() {
                        let due = schedule.take();
                        self.stage(due);
                    }
                }
                None => {
                    while self.unanswered + (self.due.len() as u32) < WINDOW && !self.from_client.is_full() {
                        self.stage(now);
                    }
                }
            }
            let sent = self.flush()?;
            let worked = self.turn()?;
            turns += 1;
            busy += u64::from(sent || worked);
        }
    }

    /// Writes the next request, due at `due_ns`, into the batch.
    #[inline]
    fn stage(&mut self, due_ns: u64) {
        let len = self.invite.write(self.next.wrapping_add(self.due.len() as u32), self.from_client.room());
        self.from_client.push(len, self.target);
        self.due.push(due_ns);
    }

    /// Sends the batch and says whether there was one.
    fn flush(&mut self) -> io::Result<bool> {
        if self.due.is_empty() {
            return Ok(false);
        }
        self.from_client.flush(&self.client, &mut |_| ());
        let now = now_ns();
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
        Ok(true)
    }

    /// Takes what has arrived on both sockets and says whether there was anything.
    fn turn(&mut self) -> io::Result<bool> {
        let at_sink = self.receive(Side::Sink)?;
        self.answer_batch();
        let at_client = self.receive(Side::Client)?;
        self.match_batch(at_client);
        Ok(at_sink + at_client > 0)
    }

    fn receive(&mut self, side: Side) -> io::Result<usize> {
        let socket = match side {
            Side::Client => &self.client,
            Side::Sink => &self.sink,
        };
        match self.receiver.receive(socket) {
            Ok(count) => Ok(count),
            // An element that is not there yet, or no longer: the kernel says so once per datagram.
            Err(_) if drain_errors(socket, &mut |_| ()) => Ok(0),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// The sink: a 200 for each request, everything copied that RFC 3261 8.2.6 says.
    fn answer_batch(&mut self) {
        for index in 0..self.receiver.filled() {
            let (octets, from) = self.receiver.datagram(index);
            let Ok(message) = Message::read(octets, &mut self.rows) else { continue };
            let Start::Request(method, _) = message.start else { continue };
            if method == Method::Ack {
                continue;
            }
            // An element that probes its backends gets its answer and counts for nothing.
            let number = self.invite.number_of(&message);
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
        self.from_sink.flush(&self.sink, &mut |_| ());
    }

    /// The client: which request each response belongs to, and how long it took.
    fn match_batch(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        let now = now_ns();
        for index in 0..count {
            let (octets, _) = self.receiver.datagram(index);
            let Ok(message) = Message::read(octets, &mut self.rows) else {
                self.seen.wrong += 1;
                continue;
            };
            let Some(number) = self.invite.number_of(&message) else { continue };
            match message.start {
                Start::Response(100..200) => self.seen.provisional += 1,
                Start::Response(200) if self.invite.is_via_stack_ours(&message, number) => {
                    let slot = &mut self.pending[number as usize % PENDING_MAX];
                    let due = std::mem::take(slot);
                    if due == 0 || message.value(Name::To).is_none_or(|to| !to.ends_with(&hex(u64::from(number)))) {
                        self.seen.wrong += 1;
                        continue;
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
    }

    /// Waits for what is in flight.
    fn drain(&mut self) -> io::Result<()> {
        let start = now_ns();
        while self.unanswered > 0 && now_ns() - start < DRAIN_NS {
            self.turn()?;
        }
        Ok(())
    }

    /// Gives up on what is in flight.
    fn forget(&mut self) {
        self.pending.fill(0);
        self.unanswered = 0;
        self.record_from_ns = 0;
    }
}

enum Side {
    Client,
    Sink,
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
        let sink = Driver::open_sink().unwrap();
        let target = sink.local();
        let mut driver = Driver::new(sink, target).unwrap();
        assert!(driver.probe(SECOND_NS).unwrap());
        let seen = driver.offer(&offer(Some(2000.0)), Usage::default).unwrap();
        // What a machine that does something else as well was late with before the measurement is sent within it.
        assert!(seen.sent >= 150, "{seen:?}");
        assert_eq!((seen.lost, seen.wrong, seen.provisional), (0, 0, 0));
        assert!(seen.round_trip.count() > 0 && seen.lateness.count() > 0);
    }

    #[test]
    fn a_relay_in_between_is_passed_twice_per_request() {
        let sink = Driver::open_sink().unwrap();
        let mut relay = Relay::bind(([127, 0, 0, 1], 0).into(), sink.local()).unwrap();
        let target = relay.local();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let relayed = scope.spawn(|| relay.run(Mode::Batched, || stop.load(Ordering::Relaxed)).unwrap());
            let mut driver = Driver::new(sink, target).unwrap();
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
        let sink = Driver::open_sink().unwrap();
        let gone = Driver::open_sink().unwrap().local();
        let mut driver = Driver::new(sink, gone).unwrap();
        assert!(!driver.probe(60 * MS_NS).unwrap());
    }

    #[test]
    fn what_an_element_swallows_is_lost() {
        let sink = Driver::open_sink().unwrap();
        let black_hole = Driver::open_sink().unwrap();
        let mut driver = Driver::new(sink, black_hole.local()).unwrap();
        let seen = driver.offer(&offer(Some(1000.0)), Usage::default).unwrap();
        assert!(seen.sent > 50);
        assert_eq!(seen.lost, seen.sent);
    }
}
