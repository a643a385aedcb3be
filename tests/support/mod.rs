//! What tests of the data plane share: the cast of the corpus, and a data path set up for it.
//!
//! The balancer is 192.0.2.100:5060 (UDP), also known as `lb.example.net`; clients are 198.51.100.7:5060 and
//! 203.0.113.9:5060; backends are 10.0.0.11 to 10.0.0.13, port 5060.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod corpus;
pub mod framing;
pub mod judge;
pub mod plain;
pub mod readers;
pub mod stream;

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use viahop::dataplane::counters::{BackendCounters, Kind};
use viahop::dataplane::dispatch::{Dispatcher, EgressPorts};
use viahop::dataplane::keys::Keys;
use viahop::dataplane::limits::{DATAGRAM_MAX, HEAD_MAX};
use viahop::dataplane::room::Room;
use viahop::dataplane::route::Arrival;
use viahop::dataplane::scan::Scanner;
use viahop::dataplane::sip::uri::Scheme;
use viahop::dataplane::tables::*;
use viahop::dataplane::transport::Transport;
use viahop::dataplane::validate::Refusal;
use viahop::dataplane::verdict::{Answer, Verdict};

pub const CLIENT: &str = "198.51.100.7:5060";
pub const BACKENDS: [&str; 3] = ["10.0.0.11:5060", "10.0.0.12:5060", "10.0.0.13:5060"];
pub const LB: &str = "192.0.2.100:5060";
pub const EGRESS_PORT: u16 = 40001;

pub fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address in a test")
}

pub fn keys() -> Keys {
    Keys::new(&[1; 16], &[2; 16], &[3; 16], 0)
}

pub fn settings() -> Settings {
    let listener = Listener {
        name: "edge".into(),
        transport: Transport::Udp,
        address: address(LB),
        host: address(LB).ip(),
        side: Side::Outside,
        advertised: Some(LB.into()),
        proxies: Vec::new(),
    };
    Settings {
        listeners: vec![listener],
        rules: Vec::new(),
        inside: Vec::new(),
        own: vec![OwnName::Address(address(LB)), OwnName::Name("lb.example.net".into(), 5060)],
        keys: keys(),
        policy: Policy {
            foreign_route: ForeignRoute::Ignore,
            record_route: true,
            path: PathPolicy::Supported,
            schemes: vec![Scheme::Sip, Scheme::Tel, Scheme::Urn],
            proxy_require: vec!["sec-agree".into()],
            stream_keep_s: STREAM_KEEP_S,
        },
        draining: false,
    }
}

pub fn backend(address_text: &str) -> BackendParts {
    BackendParts {
        name: address_text.into(),
        address: address(address_text),
        weight: 100,
        priority: 0,
        is_up: true,
        serves: Serves::Calls,
        max_open: 0,
        via_host: "192.0.2.100".into(),
        reach: Reach::default(),
        counters: Arc::new(BackendCounters::new(1)),
    }
}

pub fn pool(backends: &[&str]) -> PoolParts {
    PoolParts {
        name: "proxies".into(),
        affinity: Affinity::CallId,
        strategy: Strategy::Hash,
        backends: backends.iter().map(|address| backend(address)).collect(),
    }
}

pub fn tables() -> Tables {
    Tables::new(1, settings(), vec![pool(&BACKENDS)], None)
}

/// The same, worked out once: slot tables take their time in a debug build.
pub fn shared_tables() -> Arc<Tables> {
    static TABLES: LazyLock<Arc<Tables>> = LazyLock::new(|| Arc::new(tables()));
    TABLES.clone()
}

/// A data path and the room it works in.
pub struct Path {
    pub tables: Arc<Tables>,
    pub dispatcher: Dispatcher,
    /// The shard's clock.
    pub now_ms: u64,
    input: Vec<u8>,
    head: Vec<u8>,
}

/// What became of a datagram.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub kind: Kind,
    pub verdict: Verdict,
    /// The octets to be sent.
    pub sent: Vec<u8>,
}

impl Path {
    pub fn new(tables: impl Into<Arc<Tables>>) -> Path {
        let egress = EgressPorts { v4: Some(EGRESS_PORT), v6: Some(EGRESS_PORT) };
        Path {
            tables: tables.into(),
            dispatcher: Dispatcher::new(Scanner::best(), egress),
            now_ms: 0,
            input: vec![0; DATAGRAM_MAX],
            head: vec![0; HEAD_MAX],
        }
    }

    /// Sends `message` from `source` to the listener, or from a backend to the egress socket.
    pub fn receive(&mut self, message: &[u8], source: &str) -> Outcome {
        let from = address(source);
        let on_egress = self.tables.by_address.contains_key(&from) && message.starts_with(b"SIP/");
        let arrival = Arrival { from, listener: (!on_egress).then_some(0), local: None, stream: None };
        self.receive_on(message, arrival)
    }

    /// Refuses what a stream holds that is no message.
    pub fn receive_broken(&mut self, octets: &[u8], arrival: Arrival, refusal: Option<Refusal>) -> Outcome {
        self.input[..octets.len()].copy_from_slice(octets);
        let mut room = Room::new(&mut self.input[..octets.len()], &mut self.head);
        let kind = self.dispatcher.on_broken(&self.tables, refusal, arrival, &mut room);
        let verdict = room.verdict;
        let sent = if matches!(verdict, Verdict::Drop(_)) { Vec::new() } else { room.output().concat() };
        Outcome { kind, verdict, sent }
    }

    pub fn receive_on(&mut self, message: &[u8], arrival: Arrival) -> Outcome {
        self.input[..message.len()].copy_from_slice(message);
        let mut room = Room::new(&mut self.input[..message.len()], &mut self.head);
        let kind = self.dispatcher.on_datagram(&self.tables, self.now_ms, arrival, &mut room);
        let verdict = room.verdict;
        let sent = if matches!(verdict, Verdict::Drop(_)) { Vec::new() } else { room.output().concat() };
        assert!(sent.len() <= 65_507, "{verdict:?}");
        Outcome { kind, verdict, sent }
    }
}

impl Outcome {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.sent).into_owned()
    }

    /// The values of the header rows called `name`, lower-case, as they stand in what was sent.
    pub fn rows(&self, name: &str) -> Vec<String> {
        let text = self.text();
        let head = text.split("\r\n\r\n").next().unwrap_or_default();
        let rows = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        rows.filter(|(key, _)| key.trim().eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
            .collect()
    }

    /// The status code of an answer of our own.
    pub fn verdict_code(&self) -> Option<u16> {
        match self.verdict {
            Verdict::Reply { answer: Answer::Status(code), .. } => Some(code),
            _ => None,
        }
    }

    pub fn is_forward(&self) -> bool {
        matches!(self.verdict, Verdict::Forward { .. })
    }
}

/// Says that something was not tested, past the capture of test output: a skipped test must be seen.
pub fn skip(why: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "skipped: {why}").ok();
}

/// Whether the program `name` is at hand. Says so if it is not; where peers are required (`VIAHOP_PEERS=required`, as in
/// CI) that is a failure.
pub fn has_peer(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).chain(["/usr/sbin".into()]).any(|folder| folder.join(name).is_file());
    if !found {
        let required = std::env::var_os("VIAHOP_PEERS").is_some_and(|value| value == "required");
        assert!(!required, "{name} is not installed, and VIAHOP_PEERS=required");
        skip(&format!("{name} not installed"));
    }
    found
}
