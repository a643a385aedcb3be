//! The last messages that could not be read, and those of a call that somebody follows: what shards told of them, kept for
//! `viahop ctl errors` and `viahop ctl trace`.
//!
//! ```text
//! shard: budget per second ─► link: signals, bounded ─► here: rings, bounded ─► admin
//! ```

use crate::dataplane::route::How;
use crate::dataplane::route::table::SlotTable;
use crate::dataplane::verdict::{Answer, Sender, Verdict};
use crate::link::{Malformed, Traced};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Malformed messages kept: 2 KiB each at most.
const MALFORMED_MAX: usize = 64;

/// Messages of a followed call kept.
const TRACED_MAX: usize = 1000;

/// Longest time a call is followed: nobody is to find that out by its cost a year later.
pub const TRACE_MAX: Duration = Duration::from_secs(3600);

/// What is kept.
#[derive(Debug, Default)]
pub struct Witness {
    errors: VecDeque<Value>,
    errors_seen: u64,
    trace: Option<Trace>,
    traces: u64,
}

/// A call that is followed, or was.
#[derive(Debug)]
struct Trace {
    number: u64,
    /// `None`: it is over.
    until: Option<Instant>,
    seen: u64,
    messages: VecDeque<Value>,
}

impl Witness {
    /// Keeps a malformed message. `listeners` are their names.
    pub fn on_malformed(&mut self, told: &Malformed, listeners: &[(Box<str>, SocketAddr)]) {
        self.errors_seen += 1;
        if self.errors.len() == MALFORMED_MAX {
            self.errors.pop_front();
        }
        let Line { text, caret, start } = line_at(&told.octets, told.at.saturating_sub(told.start));
        self.errors.push_back(json!({
            "number": self.errors_seen,
            "at_ms": unix_ms(),
            "from": told.from,
            "listener": name_of(told.listener, listeners),
            "verdict": verdict(told.verdict),
            "reason": told.reason,
            "offset": told.at,
            "length": told.len,
            "line": text,
            "line_offset": told.start + start,
            "caret": caret,
            "message": escaped(&told.octets),
            "message_offset": told.start,
        }));
    }

    /// The last malformed messages, oldest first.
    pub fn errors(&self) -> Value {
        Value::Array(self.errors.iter().cloned().collect())
    }

    /// Begins to follow a call, in the place of the one that was followed before. Returns the number by which shards and
    /// whoever asked mean it.
    pub fn follow(&mut self, time: Duration) -> u64 {
        self.traces += 1;
        let until = Some(Instant::now() + time);
        self.trace = Some(Trace { number: self.traces, until, seen: 0, messages: VecDeque::new() });
        self.traces
    }

    /// Whether the time of the call that is followed is over, since now.
    pub fn is_over(&mut self, now: Instant) -> bool {
        let running = self.trace.as_mut().filter(|trace| trace.until.is_some_and(|until| until <= now));
        running.is_some_and(|trace| trace.until.take().is_some())
    }

    /// Keeps a message of the call that is followed.
    pub fn on_traced(&mut self, told: &Traced, listeners: &[(Box<str>, SocketAddr)]) {
        let Some(trace) = self.trace.as_mut().filter(|trace| trace.number == told.trace) else { return };
        trace.seen += 1;
        if trace.messages.len() == TRACED_MAX {
            trace.messages.pop_front();
        }
        let backend = told.backend.as_ref().map(|(pool, name)| format!("{pool}/{name}"));
        trace.messages.push_back(json!({
            "number": trace.seen,
            "at_ms": unix_ms(),
            "shard": told.shard,
            "from": told.from,
            "listener": name_of(told.listener, listeners),
            "line": escaped(&told.line),
            "verdict": verdict(told.verdict),
            "backend": backend,
            "rule": told.rule,
            "why": told.reason.map(str::to_owned).or(told.how.map(how)),
        }));
    }

    /// What is known of the call followed under `number` behind message `after`; `None` if another took its place.
    pub fn trace(&self, number: u64, after: u64) -> Option<Value> {
        let trace = self.trace.as_ref().filter(|trace| trace.number == number)?;
        let is_new = |message: &&Value| message["number"].as_u64() > Some(after);
        let messages: Vec<Value> = trace.messages.iter().filter(is_new).cloned().collect();
        Some(json!({ "trace": number, "is_over": trace.until.is_none(), "messages": messages }))
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

fn name_of(listener: Option<u8>, listeners: &[(Box<str>, SocketAddr)]) -> &str {
    listener.map_or("egress", |index| listeners.get(index as usize).map_or("", |(name, _)| name))
}

/// What became of a message, in words.
fn verdict(verdict: Verdict) -> String {
    match verdict {
        Verdict::Drop(reason) => format!("dropped: {}", reason.label()),
        Verdict::Forward { to, from: Sender::Egress | Sender::Connect { listener: None }, .. } => {
            format!("forwarded to {to}")
        }
        Verdict::Forward { to, from: Sender::Stream { .. }, .. } => format!("forwarded to {to}, down its connection"),
        Verdict::Forward { to, from: Sender::Connect { .. }, .. } => format!("forwarded to {to}, by a connection"),
        Verdict::Forward { to, from: Sender::Listener { .. }, .. } => format!("forwarded to {to}, from a listener"),
        Verdict::Reply { to, answer: Answer::Status(code) } => format!("answered {code} to {to}"),
        Verdict::Reply { to, answer: Answer::Pong } => format!("answered a ping to {to}"),
        Verdict::Reply { to, answer: Answer::Stun } => format!("answered STUN to {to}"),
    }
}

/// Why a request goes where it goes, in words.
fn how(how: How) -> String {
    match how {
        How::Key { hash, runner_up: false } => format!("its key, slot {}", SlotTable::number(hash)),
        How::Key { hash, runner_up: true } => format!("its key, slot {}, the runner-up", SlotTable::number(hash)),
        How::Memory => "where this call went before".into(),
        How::Open => "where its INVITE went, before the tables changed".into(),
        How::Priority => "the first that takes new calls".into(),
        How::Random { hash } => format!("its transaction, slot {}", SlotTable::number(hash)),
        How::RequestUri => "the Request-URI names it".into(),
        How::Route => "a Route names it".into(),
        How::RoundRobin => "it was the next one's turn".into(),
        How::Token => "the token in its Route names it".into(),
    }
}

/// The line of a message that an octet stands in.
#[derive(Debug)]
pub struct Line {
    /// With escapes.
    pub text: String,
    /// How many characters of `text` are before the octet.
    pub caret: usize,
    /// Its offset.
    pub start: usize,
}

/// Octets of a line that are shown on each side of the place.
const ASIDE: usize = 60;

/// The line that octet `at` of `octets` stands in, as much of it as a terminal has room for.
pub fn line_at(octets: &[u8], at: usize) -> Line {
    let at = at.min(octets.len());
    let begin = octets[..at].iter().rposition(|&octet| octet == b'\n').map_or(0, |before| before + 1);
    let end = octets[at..].iter().position(|&octet| octet == b'\n').map_or(octets.len(), |len| at + len + 1);
    let (start, end) = (begin.max(at.saturating_sub(ASIDE)), end.min(at + ASIDE));
    let before = escaped(&octets[start..at]);
    Line { caret: before.chars().count(), text: before + &escaped(&octets[at..end]), start }
}

/// Octets as text that a terminal shows and does not obey.
fn escaped(octets: &[u8]) -> String {
    octets.iter().flat_map(|&octet| std::ascii::escape_default(octet)).map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::verdict::DropReason;

    fn malformed(octets: &[u8], at: usize) -> Malformed {
        Malformed {
            from: "192.0.2.1:5060".parse().unwrap(),
            listener: Some(0),
            verdict: Verdict::Drop(DropReason::MalformedRequest),
            reason: "Bad Via",
            at,
            len: octets.len(),
            start: 0,
            octets: octets.into(),
        }
    }

    #[test]
    fn the_caret_stands_under_the_octet_whatever_is_escaped_before_it() {
        let mut witness = Witness::default();
        let listeners = [("edge".into(), "192.0.2.100:5060".parse().unwrap())];
        witness.on_malformed(&malformed(b"INVITE x\r\nVia: \x1b[2J\xffSIP/2\r\nTo: x\r\n", 20), &listeners);
        let error = &witness.errors()[0];
        assert_eq!(error["line"], "Via: \\x1b[2J\\xffSIP/2\\r\\n");
        let caret = error["caret"].as_u64().unwrap() as usize;
        assert_eq!(&error["line"].as_str().unwrap()[caret..caret + 3], "SIP");
        assert_eq!((&error["listener"], &error["line_offset"]), (&"edge".into(), &10.into()));
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let mut witness = Witness::default();
        for _ in 0..MALFORMED_MAX + 5 {
            witness.on_malformed(&malformed(b"", 0), &[]);
        }
        let errors = witness.errors();
        assert_eq!((errors.as_array().unwrap().len(), &errors[0]["number"]), (MALFORMED_MAX, &6.into()));
    }

    #[test]
    fn a_call_is_followed_until_its_time_is_over_or_another_takes_its_place() {
        let mut witness = Witness::default();
        let number = witness.follow(Duration::ZERO);
        let told = Traced {
            trace: number,
            shard: 0,
            from: "192.0.2.1:5060".parse().unwrap(),
            listener: None,
            line: (*b"BYE sip:a SIP/2.0").into(),
            verdict: Verdict::Drop(DropReason::AckRefused),
            reason: None,
            how: Some(How::Token),
            backend: Some(("proxies".into(), "a".into())),
            rule: None,
        };
        witness.on_traced(&told, &[]);
        witness.on_traced(&Traced { trace: number + 1, ..told.clone() }, &[]);
        let seen = witness.trace(number, 0).unwrap();
        assert_eq!((seen["messages"].as_array().unwrap().len(), &seen["is_over"]), (1, &false.into()));
        assert_eq!(seen["messages"][0]["backend"], "proxies/a");
        assert!(witness.trace(number, 1).unwrap()["messages"].as_array().unwrap().is_empty());
        assert!(witness.is_over(Instant::now()) && !witness.is_over(Instant::now()));
        witness.follow(Duration::from_secs(1));
        assert!(witness.trace(number, 0).is_none());
    }
}
