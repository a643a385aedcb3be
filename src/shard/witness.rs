//! What a shard tells of single messages: those that could not be read, and those of a call that somebody follows. A collector that gets
//! copies of them gets all ([`super::mirror`]).
//!
//! The first two are for people, so both are few: a budget for each second, and whoever floods us with nonsense does not make us
//! tell of it at that rate. Of a message at most [`OCTETS_MAX`] octets are told.

use super::mirror::Mirror;
use crate::dataplane::blame::Blame;
use crate::dataplane::dispatch::{Dispatcher, EgressPorts};
use crate::dataplane::room::Room;
use crate::dataplane::route::Arrival;
use crate::dataplane::tables::Tables;
use crate::dataplane::verdict::Verdict;
use crate::link::{Malformed, ShardEnd, Signal, Traced};
use std::net::{IpAddr, SocketAddr};

/// Octets of a malformed message that are told: the place it is blamed for, and what stands round it.
const OCTETS_MAX: usize = 2048;

/// Of these, at most so many before the place.
const BEFORE: usize = 1024;

/// Octets of a start line that are told.
const LINE_MAX: usize = 256;

/// Malformed messages told of in a second.
const MALFORMED_PER_S: u32 = 8;

/// Messages of a followed call told of in a second: more than a call has, fewer than the signals' channel holds.
const TRACED_PER_S: u32 = 100;

/// A shard's.
#[derive(Debug, Default)]
pub struct Witness {
    malformed: Budget,
    traced: Budget,
    mirror: Mirror,
}

#[derive(Debug, Default)]
struct Budget {
    second: u64,
    spent: u32,
}

impl Budget {
    /// Whether something is left in this second.
    fn allows(&mut self, now_ms: u64, per_second: u32) -> bool {
        let second = now_ms / 1000;
        if self.second != second {
            *self = Budget { second, spent: 0 };
        }
        self.spent < per_second
    }
}

/// The other side of a connection, and our address on it if it came to a listener.
pub type Ends = (SocketAddr, Option<IpAddr>);

/// Everything about a message of which something is told.
pub struct Seen<'a> {
    /// The shard's number.
    pub shard: usize,
    /// The shard's clock in milliseconds.
    pub now_ms: u64,
    /// The tables that were decided by.
    pub tables: &'a Tables,
    /// Where it came in.
    pub arrival: Arrival,
    /// The message, and what became of it.
    pub room: &'a Room<'a>,
    /// The ports towards backends.
    pub egress: EgressPorts,
    /// The other side of the connection that it leaves by, and our address on it, if that is one of this shard's.
    pub ends: Option<Ends>,
}

impl Witness {
    /// Keeps a message as it came, where somebody gets copies: deciding changes it.
    #[inline(always)]
    pub fn note(&mut self, tables: &Tables, message: &[u8]) {
        if tables.capture.is_some() {
            self.mirror.note(message);
        }
    }

    /// Tells of a message what is worth telling.
    #[cold]
    pub fn look(&mut self, seen: &Seen<'_>, dispatcher: &Dispatcher, link: &ShardEnd) {
        // Finding the place costs more than refusing did, so a flood is not to make us look for it.
        if self.malformed.allows(seen.now_ms, MALFORMED_PER_S)
            && let Some(blame) = dispatcher.blame(seen.room.input, seen.room.verdict)
        {
            self.malformed.spent += 1;
            malformed(seen, blame, link);
        }
        self.traced(seen, dispatcher, link);
        self.copy(seen, dispatcher, link);
    }

    /// Lets a collector have what was noted, and what became of it.
    #[cold]
    pub fn copy(&mut self, seen: &Seen<'_>, dispatcher: &Dispatcher, link: &ShardEnd) {
        if let Some(capture) = &seen.tables.capture {
            self.mirror.copy(seen, capture, dispatcher.call_id(seen.room.input), &link.counters);
        }
    }

    fn traced(&mut self, seen: &Seen<'_>, dispatcher: &Dispatcher, link: &ShardEnd) {
        let Seen { tables, room, .. } = seen;
        let Some(trace) = &tables.trace else { return };
        let message = &*room.input;
        if dispatcher.call_id(message) != Some(&trace.call_id[..]) || !self.traced.allows(seen.now_ms, TRACED_PER_S) {
            return;
        }
        self.traced.spent += 1;
        let decision = dispatcher.decision();
        let index = match seen.room.verdict {
            Verdict::Forward { backend, .. } => backend,
            _ => None,
        };
        let backend = index.and_then(|index| tables.backends.get(index as usize));
        let pool = backend.and_then(|backend| tables.pools.get(backend.pool as usize));
        let rule = decision.and_then(|one| one.rule).and_then(|index| tables.rules.get(index as usize));
        let line = dispatcher.start_line(message);
        link.signal(Signal::Traced(Box::new(Traced {
            trace: trace.number,
            shard: seen.shard,
            from: seen.arrival.from,
            listener: seen.arrival.listener,
            line: line[..line.len().min(LINE_MAX)].into(),
            verdict: seen.room.verdict,
            reason: dispatcher.refused(seen.room.verdict).map(|refusal| refusal.reason),
            how: decision.map(|decision| decision.how),
            backend: pool.zip(backend).map(|(pool, backend)| (pool.name.clone(), backend.name.clone())),
            rule: rule.map(|rule| rule.name.clone()),
        })));
    }
}

/// Tells of a message that cannot be read.
fn malformed(seen: &Seen<'_>, blame: Blame, link: &ShardEnd) {
    let message = &*seen.room.input;
    let start = if message.len() <= OCTETS_MAX { 0 } else { blame.at.saturating_sub(BEFORE) };
    let end = message.len().min(start + OCTETS_MAX);
    link.signal(Signal::Malformed(Box::new(Malformed {
        from: seen.arrival.from,
        listener: seen.arrival.listener,
        verdict: seen.room.verdict,
        reason: blame.reason,
        at: blame.at,
        len: message.len(),
        start,
        octets: message.get(start..end).unwrap_or_default().into(),
    })));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::cluster::tests::{cluster, keys, text};
    use crate::dataplane::dispatch::EgressPorts;
    use crate::dataplane::limits::HEAD_MAX;
    use crate::dataplane::scan::Scanner;
    use crate::dataplane::tables::Trace;
    use crate::link::link;

    /// What is told of a message that comes at each of these moments.
    fn told(message: &str, trace: Option<&str>, moments: impl Iterator<Item = u64>) -> Vec<Signal> {
        let mut tables = cluster(&text(&[1]), None).tables(1, &keys(), false, None);
        tables.trace = trace.map(|call_id| Trace { number: 1, call_id: call_id.as_bytes().into() });
        let (mut control, ends) = link(vec![Box::new(|| ())], 1, tables.clone());
        let mut dispatcher = Dispatcher::new(Scanner::best(), EgressPorts { v4: Some(40_001), v6: None });
        let (from, mut witness) = ("192.0.2.7:5060".parse().unwrap(), Witness::default());
        let arrival = Arrival { from, listener: Some(0), local: None, stream: None };
        let mut told = Vec::new();
        for now_ms in moments {
            let (mut input, mut head) = (message.as_bytes().to_vec(), vec![0; HEAD_MAX]);
            let mut room = Room::new(&mut input, &mut head);
            dispatcher.on_datagram(&tables, now_ms, arrival, &mut room);
            let egress = EgressPorts::default();
            let seen = Seen { shard: 0, now_ms, tables: &tables, arrival, room: &room, egress, ends: None };
            witness.look(&seen, &dispatcher, &ends[0]);
            told.extend(std::iter::from_fn(|| control.signals.try_recv().ok()));
        }
        told
    }

    fn options(headers: &str) -> String {
        format!(
            "OPTIONS sip:a@b SIP/2.0\r\nVia: SIP/2.0/UDP a;branch=z9hG4bK1\r\nFrom: <sip:a>;tag=1\r\nTo: <sip:b>\r\n\
             Call-ID: followed\r\n{headers}\r\n"
        )
    }

    #[test]
    fn of_a_flood_so_many_are_told_in_a_second_and_again_in_the_next() {
        let flood = || (0..2000).map(|ms| 5_000 + ms);
        assert_eq!(told(&options("CSeq: x\r\n"), None, flood()).len(), 2 * MALFORMED_PER_S as usize);
        let good = options("CSeq: 1 OPTIONS\r\n");
        assert_eq!(told(&good, Some("followed"), flood()).len(), 2 * TRACED_PER_S as usize);
        assert_eq!(told(&good, Some("another"), flood()), []);
        assert_eq!(told(&good, None, flood()), []);
    }

    #[test]
    fn of_a_long_message_the_place_is_told_and_what_stands_round_it() {
        for (before, after) in [(0, 0), (1500, 0), (0, 5000), (5000, 0), (5000, 5000)] {
            let [before, after] = [before, after].map(|len| format!("X: {}\r\n", "x".repeat(len)));
            let message = options(&format!("{before}CSeq: x\r\n{after}"));
            let told = told(&message, None, [0].into_iter());
            let [Signal::Malformed(one)] = &told[..] else { panic!("{told:?}") };
            assert_eq!((one.reason, one.len, &message[one.at..][..1]), ("Bad CSeq", message.len(), "x"));
            assert_eq!(&*one.octets, &message.as_bytes()[one.start..][..one.octets.len()]);
            assert!(one.octets.len() <= OCTETS_MAX);
            assert!(message.len() > OCTETS_MAX || one.octets.len() == message.len());
            let (before, behind) = (one.at - one.start, one.start + one.octets.len() - one.at);
            assert!(before.min(BEFORE) == one.at.min(BEFORE), "{before}");
            assert!(behind > 500 || behind == message.len() - one.at, "{behind}");
        }
    }
}
