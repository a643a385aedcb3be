//! The messages that benches and instruction counts work on.

#![allow(dead_code, reason = "each bench uses its part")]

use std::net::SocketAddr;
use std::sync::Arc;
use viahop::dataplane::counters::BackendCounters;
use viahop::dataplane::dispatch::{Dispatcher, EgressPorts};
use viahop::dataplane::keys::Keys;
use viahop::dataplane::scan::Scanner;
use viahop::dataplane::sip::uri::Scheme;
use viahop::dataplane::tables::*;
use viahop::dataplane::transport::Transport;

pub const CLIENT: &str = "198.51.100.7:5060";
pub const BACKENDS: [&str; 4] = ["10.0.0.11:5060", "10.0.0.12:5060", "10.0.0.13:5060", "10.0.0.14:5060"];

const SDP: &str = "v=0\r\no=alice 2890844526 2890844526 IN IP4 198.51.100.7\r\ns=-\r\nc=IN IP4 198.51.100.7\r\nt=0 0\r\n\
m=audio 49172 RTP/AVP 0 8 9 101\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:9 G722/8000\r\n\
a=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-16\r\na=sendrecv\r\na=ptime:20\r\n";

/// An INVITE as softphones send it: 13 header rows, an SDP body, 900 octets. `call` makes it a different call.
pub fn invite(call: u32) -> Vec<u8> {
    let message = format!(
        "INVITE sip:+4930123456@example.net;user=phone SIP/2.0\r\n\
         Via: SIP/2.0/UDP 198.51.100.7:5060;branch=z9hG4bK-524287-1---2bd1e0a9{call:08x};rport\r\n\
         Max-Forwards: 70\r\nContact: <sip:alice@198.51.100.7:5060;transport=UDP>\r\n\
         To: <sip:+4930123456@example.net>\r\nFrom: \"Alice\" <sip:alice@example.net>;tag=2b7f{call:08x}\r\n\
         Call-ID: 84715ZDQ5YzQ2NWE0ODkyNjBhN{call:08x}\r\nCSeq: 1 INVITE\r\n\
         Allow: INVITE, ACK, CANCEL, BYE, NOTIFY, REFER, MESSAGE, OPTIONS, INFO, SUBSCRIBE\r\n\
         Content-Type: application/sdp\r\nSupported: replaces, norefersub, extended-refer, timer\r\n\
         User-Agent: Softphone 5.6.4 v2.10.20\r\nAllow-Events: presence, kpml, talk\r\nContent-Length: {}\r\n\r\n{SDP}",
        SDP.len()
    );
    message.into_bytes()
}

/// As [`invite`], its header rows in an order that only this call has: no predictor learns it.
pub fn shuffled_invite(call: u32) -> Vec<u8> {
    let text = String::from_utf8(invite(call)).expect("ASCII");
    let (head, body) = text.split_once("\r\n\r\n").expect("a body");
    let mut rows: Vec<&str> = head.split("\r\n").collect();
    let mut rng = fastrand::Rng::with_seed(call.into());
    rng.shuffle(&mut rows[1..]);
    format!("{}\r\n\r\n{body}", rows.join("\r\n")).into_bytes()
}

/// The answer of a backend to a request that we forwarded: `200 OK` with all its Vias.
pub fn ok_of(request: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(request);
    let head = text.split("\r\n\r\n").next().unwrap_or_default();
    let keep = ["Via:", "To:", "From:", "Call-ID:", "CSeq:"];
    let rows: String = head
        .split("\r\n")
        .filter(|line| keep.iter().any(|name| line.starts_with(name)))
        .map(|line| if line.starts_with("To:") { format!("{line};tag=uas\r\n") } else { format!("{line}\r\n") })
        .collect();
    format!(
        "SIP/2.0 200 OK\r\n{rows}Contact: <sip:10.0.0.11:5060>\r\nContent-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{SDP}",
        SDP.len()
    )
    .into_bytes()
}

pub fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address in a bench")
}

/// Tables with four backends, by Call-ID.
pub fn tables(record_route: bool) -> Tables {
    fleet(&BACKENDS.map(address), Strategy::Hash, record_route)
}

/// Tables with one pool of these backends.
pub fn fleet(backends: &[SocketAddr], strategy: Strategy, record_route: bool) -> Tables {
    let listener = address("192.0.2.100:5060");
    let backends = backends.iter().map(|&address| BackendParts {
        name: address.to_string().into(),
        address,
        weight: 100,
        priority: 0,
        is_up: true,
        serves: Serves::Calls,
        max_open: 0,
        via_host: "192.0.2.100".into(),
        reach: Reach::default(),
        counters: Arc::new(BackendCounters::new(1)),
    });
    let settings = Settings {
        listeners: vec![Listener {
            name: "edge".into(),
            transport: Transport::Udp,
            address: listener,
            host: listener.ip(),
            side: Side::Outside,
            advertised: Some("192.0.2.100:5060".into()),
            proxies: Vec::new(),
        }],
        rules: Vec::new(),
        inside: Vec::new(),
        own: vec![OwnName::Address(listener)],
        keys: Keys::new(&[1; 16], &[2; 16], &[3; 16], 0),
        policy: Policy {
            foreign_route: ForeignRoute::Ignore,
            record_route,
            path: PathPolicy::Off,
            schemes: vec![Scheme::Sip, Scheme::Tel, Scheme::Urn],
            proxy_require: Vec::new(),
            stream_keep_s: STREAM_KEEP_S,
        },
        draining: false,
    };
    let pool = PoolParts { name: "proxies".into(), affinity: Affinity::CallId, strategy, backends: backends.collect() };
    Tables::new(1, settings, vec![pool], None)
}

pub fn dispatcher() -> Dispatcher {
    Dispatcher::new(Scanner::best(), EgressPorts { v4: Some(40001), v6: Some(40001) })
}
