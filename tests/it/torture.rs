//! The corpora through the real program, over UDP. The cast of the corpus lives on loopback addresses that are as long as
//! its own, so that lengths in messages stay right.

use crate::live::{PATIENCE, Viahop};
use crate::support::judge::{self, Balancer, Did, Seen};
use crate::support::skip;
use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Who plays whom: the address in the corpus, and the address here.
const CAST: [(&str, &str); 6] = [
    ("198.51.100.7", "127.51.100.7"),
    ("203.0.113.9", "127.0.113.9"),
    ("10.0.0.11", "127.0.1.1"),
    ("10.0.0.12", "127.0.1.2"),
    ("10.0.0.13", "127.0.1.3"),
    ("192.0.2.100", "127.0.2.100"),
];

const LB: &str = "127.0.2.100:5060";

const CONFIG: &str = r#"
[balancer]
shards = 1
[[listen]]
address = "udp:127.0.2.100:5060"
[[pool]]
name = "proxies"
health = { probe = false }
outlier = { on = false }
backend = [{ uri = "sip:127.0.1.1" }, { uri = "sip:127.0.1.2" }, { uri = "sip:127.0.1.3" }]
[policy]
aliases = ["lb.example.net"]
proxy_require = ["sec-agree"]
"#;

/// The program, with a socket for everybody else.
struct Live<'a> {
    viahop: &'a Viahop,
    sockets: &'a HashMap<&'static str, UdpSocket>,
    egress: u16,
}

/// `octets` with the addresses of one column of the cast in the place of those of the other.
fn recast(octets: &[u8], to_here: bool) -> Vec<u8> {
    let mut octets = octets.to_vec();
    for (theirs, here) in CAST {
        let (from, to) = if to_here { (theirs, here) } else { (here, theirs) };
        assert_eq!(from.len(), to.len());
        let mut at = 0;
        while let Some(place) = octets[at..].windows(from.len()).position(|part| part == from.as_bytes()) {
            octets[at + place..at + place + to.len()].copy_from_slice(to.as_bytes());
            at += place + to.len();
        }
    }
    octets
}

impl Balancer for Live<'_> {
    fn receive(&mut self, message: &[u8], source: &str) -> Seen {
        let (host, _) = source.rsplit_once(':').unwrap();
        let from = &self.sockets[host];
        let is_response = message.starts_with(b"SIP/");
        let is_backend = source.starts_with("10.");
        let before = Numbers::of(self.viahop);
        let to: SocketAddr =
            if is_backend && is_response { ([127, 0, 2, 100], self.egress).into() } else { LB.parse().unwrap() };
        from.send_to(&recast(message, true), to).unwrap();
        let until = Instant::now() + PATIENCE;
        let after = loop {
            let numbers = Numbers::of(self.viahop);
            if numbers.received > before.received && numbers.is_balanced() {
                break numbers;
            }
            assert!(Instant::now() < until, "no verdict: {numbers:?}\n{}", self.viahop.log());
        };
        // Whatever was sent is there already: loopback delivers before `sendmmsg` returns.
        let mut arrived = None;
        let mut room = vec![0; 65_536];
        for (name, socket) in self.sockets {
            while let Ok((len, _)) = socket.recv_from(&mut room) {
                assert!(arrived.is_none(), "two datagrams came of one");
                arrived = Some((format!("{name}:5060"), recast(&room[..len], false)));
            }
        }
        let (place, sent) = arrived.unwrap_or(("elsewhere:0".into(), Vec::new()));
        let code = after.replied.iter().find(|(code, count)| before.replied.get(*code) != Some(count)).map(|one| one.0);
        let did = match code.map(|code| (code.as_str(), code.parse::<u16>())) {
            Some(("stun", _)) => Did::Stun,
            Some((_, Ok(code))) => {
                assert!(sent.is_empty() || sent.starts_with(format!("SIP/2.0 {code} ").as_bytes()));
                Did::Reply(code)
            }
            _ if after.forwarded > before.forwarded => Did::Forward(place),
            _ => Did::Drop,
        };
        assert!(did != Did::Drop || sent.is_empty());
        Seen { did, sent }
    }
}

/// What the program has counted.
#[derive(Debug)]
struct Numbers {
    received: u64,
    forwarded: u64,
    dropped: u64,
    replied: HashMap<String, u64>,
}

impl Numbers {
    fn of(viahop: &Viahop) -> Numbers {
        let mut numbers = Numbers { received: 0, forwarded: 0, dropped: 0, replied: HashMap::new() };
        for line in viahop.metrics().lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let value = value.parse::<f64>().unwrap() as u64;
            match series.split('{').next().unwrap() {
                "viahop_messages_received_total" => numbers.received += value,
                "viahop_messages_forwarded_total" => numbers.forwarded += value,
                "viahop_messages_dropped_total" => numbers.dropped += value,
                "viahop_messages_replied_total" => {
                    let code = series.split('"').nth(1).unwrap();
                    numbers.replied.insert(code.to_owned(), value);
                }
                _ => {}
            }
        }
        numbers
    }

    fn is_balanced(&self) -> bool {
        self.received == self.forwarded + self.dropped + self.replied.values().sum::<u64>()
    }
}

#[test]
fn every_corpus_gets_its_verdicts_over_udp() {
    let bind = |(theirs, here): &(&'static str, &str)| {
        let socket = UdpSocket::bind((*here, 5060)).ok()?;
        socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        Some((*theirs, socket))
    };
    let Some(mut sockets) = CAST.iter().map(bind).collect::<Option<HashMap<_, _>>>() else {
        return skip("port 5060 of a loopback address is in use");
    };
    sockets.remove("192.0.2.100");
    let viahop = Viahop::start("torture", CONFIG);
    let egress = viahop.status()["shards"][0]["egress_port_v4"].as_u64().unwrap() as u16;
    let fresh = || Live { viahop: &viahop, sockets: &sockets, egress };
    judge::own_corpus(fresh);
    judge::torture("rfc4475", fresh);
    judge::torture("rfc5118", fresh);
    // Datagrams of no octets are received as well, and say nothing.
    let nothing = fresh().receive(b"", "198.51.100.7:5060");
    assert_eq!(nothing.did, Did::Drop);
    viahop.end();
}
