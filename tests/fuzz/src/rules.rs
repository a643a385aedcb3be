//! What holds for every datagram, whoever sent it: the rules of a proxy that can be told from what went in and what came
//! out.

use crate::plain::{Message, Parameterized, Row, lower, number, split, trim};
use crate::world::{self, Outcome, World};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use viahop::dataplane::counters::Kind;
use viahop::dataplane::limits::PAYLOAD_MAX;
use viahop::dataplane::route::Arrival;
use viahop::dataplane::route::route_token::{Purpose, RouteToken};
use viahop::dataplane::sip::start_line::Method;
use viahop::dataplane::tables::{PathPolicy, Side};
use viahop::dataplane::token::Flow;
use viahop::dataplane::verdict::{Answer, DropReason, Sender, Verdict};

/// Header fields of our own answers (RFC 3261 8.2.6.2). Anything else there came from somebody else.
const ANSWER_ROWS: [&str; 7] = ["via", "from", "to", "call-id", "cseq", "unsupported", "content-length"];

/// Panics unless `outcome` is one that `octets`, arriving like this, may have.
pub fn check(world: &World, octets: &[u8], arrival: &Arrival, outcome: &Outcome) {
    match outcome.verdict {
        Verdict::Drop(reason) => {
            assert_ne!(reason, DropReason::Panic);
            assert!(outcome.sent.is_empty());
        }
        Verdict::Forward { to, from, backend } => {
            assert!(is_somebody(to), "{to} is nobody");
            assert!(outcome.sent.len() <= PAYLOAD_MAX, "{} octets", outcome.sent.len());
            let before = Message::read(octets).expect("what is forwarded has its line ends in order");
            let after = Message::read(&outcome.sent).expect("line ends stay in order");
            assert_eq!(Octets(after.body), Octets(before.announced_body()));
            match outcome.kind {
                Kind::Request(_) => {
                    check_target(world, arrival, to, from, backend);
                    check_request(world, arrival, &before, &after, to, from);
                }
                Kind::Response(code) => check_response(code, &before, &after),
                Kind::NoMessage => panic!("no message, and forwarded"),
            }
        }
        Verdict::Reply { to, answer: Answer::Status(code) } => {
            assert!(matches!(outcome.kind, Kind::Request(method) if method != Method::Ack), "{:?}", outcome.kind);
            assert!(Answer::LABELS.contains(&code.to_string().as_str()), "{code}");
            assert_eq!(to.ip(), arrival.from.ip());
            assert!(is_somebody(to), "{to} is nobody");
            // Whoever writes somebody else's address into a datagram gains nothing.
            assert!(outcome.sent.len() <= octets.len(), "{} octets for {}", outcome.sent.len(), octets.len());
            check_answer(octets, code, &outcome.sent);
        }
        Verdict::Reply { answer: Answer::Pong, .. } => panic!("there are only datagrams"),
        Verdict::Reply { to, answer: Answer::Stun } => {
            assert_eq!((to, outcome.kind), (arrival.from, Kind::NoMessage));
            // The answer to STUN is the address it came from: the one that is longer than its question.
            let longer = if to.is_ipv4() { 12 } else { 24 };
            assert!(outcome.sent.len() <= octets.len() + longer);
            assert_eq!((&outcome.sent[..2], &outcome.sent[4..20]), (&[1, 1][..], &octets[4..20]));
        }
    }
}

/// Octets that are shown as text when two of them differ.
#[derive(PartialEq)]
struct Octets<'a>(&'a [u8]);

impl std::fmt::Debug for Octets<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// Both lists have the same octets in the same order.
fn assert_same<'a>(ours: impl Iterator<Item = Octets<'a>>, theirs: impl Iterator<Item = Octets<'a>>) {
    assert_eq!(ours.collect::<Vec<_>>(), theirs.collect::<Vec<_>>());
}

/// Whether a datagram can be sent there and reach one host.
fn is_somebody(to: SocketAddr) -> bool {
    to.port() != 0
        && !to.ip().is_unspecified()
        && !to.ip().is_multicast()
        && to.ip() != IpAddr::from([255, 255, 255, 255])
}

/// No open relay: who is outside reaches backends and nobody else; and nobody makes us send to ourselves.
fn check_target(world: &World, arrival: &Arrival, to: SocketAddr, from: Sender, backend: Option<u16>) {
    assert_eq!(backend, world.backend_at(to), "{to}");
    assert!(backend.is_some() || world.is_inside(arrival), "{to} for {}", arrival.from);
    match from {
        Sender::Egress => {
            assert!(backend.is_some());
            assert!(if to.is_ipv4() { world.egress.v4 } else { world.egress.v6 }.is_some(), "no socket towards {to}");
        }
        Sender::Connect { .. } | Sender::Stream { .. } => panic!("there are only datagrams"),
        Sender::Listener { index, .. } => {
            let listener = &world.tables.listeners[index as usize];
            assert!(backend.is_none() && !world.tables.is_own_address(to), "{to}");
            assert_eq!((listener.side, listener.address.is_ipv4()), (Side::Outside, to.is_ipv4()));
        }
    }
}

/// RFC 3261 16.6: what a proxy changes in a request, and that it leaves all else alone.
fn check_request(world: &World, arrival: &Arrival, before: &Message, after: &Message, to: SocketAddr, from: Sender) {
    let (ours, mut rest) = after.rows.split_first().expect("our Via");
    let start = format!("Via: SIP/2.0/UDP {};branch=z9hG4bK", sent_by(world, to, from));
    let (digest, token) = ours.text.strip_prefix(start.as_bytes()).and_then(|rest| rest.split_at_checked(16)).unwrap();
    assert!(digest.iter().all(u8::is_ascii_hexdigit) && token.starts_with(b";vh="), "{}", lower(ours.text));
    let recorded = check_record(world, arrival, before, rest, to, from);
    rest = &rest[recorded..];
    if before.row("max-forwards").is_none() {
        let (inserted, behind) = rest.split_first().expect("Max-Forwards");
        assert_eq!(inserted.text, b"Max-Forwards: 70\r\n");
        rest = behind;
    }

    // What may change, row by row; and everything else octet by octet, in its order.
    let first_via = |rows: &[Row]| rows.iter().position(|row| row.name == "via");
    let (via_before, via_after) = (first_via(&before.rows).unwrap(), first_via(rest).unwrap());
    fn others<'a>(rows: &'a [Row], via: usize) -> impl Iterator<Item = Octets<'a>> {
        let numbered = rows.iter().enumerate();
        let kept = numbered.filter(move |(at, row)| *at != via && row.name != "route" && row.name != "max-forwards");
        kept.map(|(_, row)| Octets(row.text))
    }
    assert_same(others(rest, via_after), others(&before.rows, via_before));
    check_told(&before.rows[via_before], &rest[via_after], arrival.from);
    let counter = |rows: &[Row]| {
        rows.iter().find(|row| row.name == "max-forwards").map(|row| (row.text.len(), number(row.value)))
    };
    if let Some((len, number)) = counter(&before.rows) {
        assert_eq!(counter(rest), Some((len, number.map(|hops| hops - 1))));
    }
    check_start_line_and_route(world, before, after);
}

/// Who we are in a Via towards `to`.
fn sent_by(world: &World, to: SocketAddr, from: Sender) -> String {
    match from {
        Sender::Egress if to.is_ipv4() => format!("192.0.2.100:{}", world.egress.v4.unwrap()),
        Sender::Egress => format!("[2001:db8::100]:{}", world.egress.v6.unwrap()),
        Sender::Connect { .. } | Sender::Stream { .. } => panic!("there are only datagrams"),
        Sender::Listener { index, local } => {
            let listener = &world.tables.listeners[index as usize];
            let bound = SocketAddr::new(local.unwrap_or(listener.host), listener.address.port());
            listener.advertised.as_ref().map_or(bound.to_string(), |name| name.to_string())
        }
    }
}

/// What we write to come back to a dialog or a registration, RFC 3261 16.6 item 4, RFC 5658, RFC 3327: which rows there
/// are, that each names us, that their token says where the two ends are, and that a Path is said to be supported. Returns how
/// many there are.
fn check_record(
    world: &World,
    arrival: &Arrival,
    before: &Message,
    rows: &[Row],
    to: SocketAddr,
    from: Sender,
) -> usize {
    let method = before.start_line.split(|&octet| octet == b' ').next().unwrap();
    let value = |name| before.row(name).map(|row| row.value).unwrap_or_default();
    let in_dialog =
        Parameterized::read(value("to")).params.iter().any(|(name, value)| name == "tag" && value.is_some());
    let known =
        ["ACK", "BYE", "CANCEL", "INFO", "MESSAGE", "NOTIFY", "OPTIONS", "PRACK", "PUBLISH", "REGISTER", "UPDATE"];
    let is_known = known.iter().any(|known| known.as_bytes() == method);
    // Of the NOTIFYs only those get one whose dialog came with a token.
    let may = !is_known && !in_dialog || method == b"NOTIFY" && value("route").windows(3).any(|part| part == b"vh=");
    let is_path = method == b"REGISTER";
    let sender = world.speaker(arrival);
    let ends = match from {
        Sender::Egress if sender.is_none() => arrival
            .listener
            .map(|listener| (listener, home_of(before, arrival.from), arrival.local, world.backend_at(to).unwrap())),
        Sender::Listener { index, local } => sender.map(|backend| (index, to, local, backend)).filter(|_| !is_path),
        Sender::Egress => None,
        Sender::Connect { .. } | Sender::Stream { .. } => panic!("there are only datagrams"),
    };
    let name = if is_path { "path" } else { "record-route" };
    let ours: Vec<&Row> = rows.iter().take_while(|row| row.name == name && is_ours(world, row)).collect();
    let Some((listener, to, local, backend)) = ends.filter(|_| may || is_path) else {
        // Values of ours from earlier passages may stand first in what was sent to us.
        let earlier = before.rows.iter().take_while(|row| row.name == name && is_ours(world, row)).count();
        assert!(ours.len() <= earlier, "{}", lower(ours[0].text));
        return 0;
    };
    // An inside listener of the backend's family, else the client's, else any.
    let is_v4 = world.tables.backends[backend as usize].address.is_ipv4();
    let inside = match (is_v4, listener) {
        (true, _) => 4,
        (false, 1 | 3) => listener,
        (false, _) => 1,
    };
    let optional = is_path && world.tables.policy.path == PathPolicy::Supported || method == b"NOTIFY";
    let expected = if is_path || inside == listener { 1 } else { 2 };
    if optional && ours.len() < expected {
        return 0;
    }
    assert!(ours.len() >= expected, "{} of {expected}", ours.len());
    for row in &ours[..expected] {
        let uri = uri_of(row.value);
        assert!(is_own(world, uri) && row.text.ends_with(b">\r\n"), "{}", lower(uri));
        let token = Parameterized::read(uri).param("vh").flatten().expect("a token");
        let purpose = match is_path {
            true => Purpose::Flow,
            false => Purpose::Dialog { backend: world.tables.backends[backend as usize].id },
        };
        let client = Flow { listener: Some(listener), to, local, stream: None };
        let read = RouteToken::read(token, &world.tables.keys, value("call-id"));
        assert_eq!(read, Some(RouteToken { purpose, client, is_double: expected == 2 }));
    }
    let is_path_said = before
        .rows
        .iter()
        .filter(|row| row.name == "supported")
        .any(|row| row.value.split(|&octet| octet == b',').any(|one| trim(one).eq_ignore_ascii_case(b"path")));
    if !is_path || is_path_said {
        return expected;
    }
    assert_eq!(Octets(rows[expected].text), Octets(b"Supported: path\r\n"));
    expected + 1
}

/// Whether a row has a value of ours, with a token.
fn is_ours(world: &World, row: &Row) -> bool {
    let uri = uri_of(row.value);
    uri.starts_with(b"sip:") && Parameterized::read(uri).param("vh").flatten().is_some() && is_own(world, uri)
}

/// What of a neighbour's Via is not for the next hop (RFC 7339 5.4, 5.6).
const OVERLOAD: [&str; 4] = ["oc", "oc-algo", "oc-validity", "oc-seq"];

/// RFC 3261 18.2.1, RFC 3581 4, RFC 6223 4.4: the client's Via is told where its request came from, and whether keep-alives
/// are welcome.
fn check_told(before: &Row, after: &Row, source: SocketAddr) {
    let (before, after) = (split(before.value, b','), split(after.value, b','));
    assert_eq!(after[1..], before[1..], "values behind the first");
    let (before, after) = (Parameterized::read(before[0]), Parameterized::read(after[0]));
    let told = [&["received", "rport", "keep"], &OVERLOAD[..]].concat();
    assert_eq!((after.head, after.without(&told)), (before.head, before.without(&told)));
    assert!(OVERLOAD.iter().all(|name| after.param(name).is_none()));
    let (ip, port) = (source.ip().to_string(), source.port().to_string());
    let expected = match before.param("rport") {
        Some(_) => (Some(ip), Some(port)),
        None => ((address_of(host_and_port(before.head).0) != Some(source.ip())).then_some(ip), None),
    };
    let value = |name| after.param(name).map(|value| lower(value.expect("a value")));
    assert_eq!((value("received"), value("rport")), expected);
    let keep = after.param("keep");
    assert!(
        keep == before.param("keep") || before.param("keep") == Some(None) && keep == Some(Some(b"30")),
        "{keep:?}"
    );
}

/// Host and port of a Via's `sent-protocol sent-by`.
fn host_and_port(head: &[u8]) -> (&[u8], Option<u16>) {
    let mut slashes = head.iter().enumerate().filter(|(_, octet)| **octet == b'/');
    let transport = slashes.nth(1).map(|(at, _)| trim(&head[at + 1..])).expect("protocol/version/transport");
    let blank = transport.iter().position(|octet| b" \t\r\n".contains(octet)).expect("a blank before sent-by");
    let sent_by = trim(&transport[blank..]);
    let host_end = match sent_by.first() {
        Some(b'[') => sent_by.iter().position(|&octet| octet == b']').expect("a bracket for a bracket") + 1,
        _ => sent_by.iter().position(|&octet| octet == b':').unwrap_or(sent_by.len()),
    };
    let port =
        sent_by[host_end..].iter().position(|&octet| octet == b':').map(|at| trim(&sent_by[host_end + at + 1..]));
    (
        trim(&sent_by[..host_end]),
        port.map(|digits| number(digits).and_then(|port| port.try_into().ok()).expect("a port")),
    )
}

/// `host` as an address: IPv6 in its brackets, an IPv4-mapped one as what it maps (RFC 5118 4.9).
fn address_of(host: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(host).ok()?;
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(text) => text.parse::<Ipv6Addr>().ok().map(|ip| IpAddr::V6(ip).to_canonical()),
        None => text.parse().ok(),
    }
}

/// RFC 3261 16.4 and 16.6 item 6: URIs trade places between Request-URI and Route; only such that mean us are lost.
fn check_start_line_and_route(world: &World, before: &Message, after: &Message) {
    let parts = |line: &[u8]| -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let first = line.iter().position(|&octet| octet == b' ').unwrap();
        let last = line.iter().rposition(|&octet| octet == b' ').unwrap();
        (line[..first].to_vec(), line[first + 1..last].to_vec(), line[last + 1..].to_vec())
    };
    let (method, uri, version) = parts(before.start_line);
    let (method_after, uri_after, version_after) = parts(after.start_line);
    assert_eq!((&method_after, &version_after[..]), (&method, &b"SIP/2.0"[..]));
    assert!(version.eq_ignore_ascii_case(&version_after));
    let has_route = before.row("route").is_some();
    if !has_route {
        assert!(after.row("route").is_none());
    }
    if lower(&uri).contains("maddr") {
        // A maddr of ours is taken out, wherever the URI goes; what is left of it stands in its order.
        let mut left = uri.iter();
        assert!(has_route || uri_after.iter().all(|octet| left.any(|other| other == octet)), "{}", lower(&uri_after));
        return;
    }
    let all = |uri: &[u8], message: &Message| -> Vec<Vec<u8>> {
        let routes = message.values("route").into_iter().map(|value| uri_of(value).to_vec());
        routes.chain([uri.to_vec()]).collect()
    };
    let mut lost = all(&uri, before);
    for uri in all(&uri_after, after) {
        let place = lost.iter().position(|known| *known == uri);
        lost.swap_remove(place.unwrap_or_else(|| panic!("{} comes from nowhere", lower(&uri))));
    }
    for uri in lost {
        assert!(has_route && is_own(world, &uri), "{} is lost", lower(&uri));
    }
}

/// The URI of a `name-addr` or `addr-spec`.
fn uri_of(value: &[u8]) -> &[u8] {
    let head = Parameterized::read(value).head;
    let mut in_quotes = false;
    let mut escaped = false;
    for (at, &octet) in head.iter().enumerate() {
        match octet {
            _ if escaped => escaped = false,
            b'\\' if in_quotes => escaped = true,
            b'"' => in_quotes = !in_quotes,
            b'<' if !in_quotes => {
                let end = head[at..].iter().position(|&octet| octet == b'>').expect("a bracket for a bracket");
                return &head[at + 1..at + end];
            }
            _ => {}
        }
    }
    head
}

fn is_own(world: &World, uri: &[u8]) -> bool {
    let colon = uri.iter().position(|&octet| octet == b':').expect("a scheme");
    let default = if uri[..colon].eq_ignore_ascii_case(b"sips") { 5061 } else { 5060 };
    let behind = uri[colon + 1..].rsplit(|&octet| octet == b'@').next().unwrap();
    let host_port = behind.split(|&octet| octet == b';' || octet == b'?').next().unwrap();
    let host_end = host_port.iter().rposition(|&octet| octet == b']').map_or(0, |at| at + 1);
    let colon = host_port[host_end..].iter().position(|&octet| octet == b':').map(|at| at + host_end);
    let port = colon.map_or(default, |at| number(&host_port[at + 1..]).unwrap() as u16);
    world.tables.is_own(&host_port[..colon.unwrap_or(host_port.len())], port)
}

/// RFC 3261 16.7 item 3: one Via value less, or, of a 100 that had lost the caller's, another; nothing else, but that what a
/// server says of overload in the caller's is not the caller's to hear.
fn check_response(code: u16, before: &Message, after: &Message) {
    let (vias, vias_after) = (before.values("via"), after.values("via"));
    if vias.len() == 1 {
        assert_eq!((code, vias_after.len()), (100, 1));
    } else {
        let (read, read_after) = (Parameterized::read(vias[1]), Parameterized::read(vias_after[0]));
        assert_eq!((read_after.head, read_after.without(&[])), (read.head, read.without(&OVERLOAD)));
        assert!(vias_after[0] == vias[1] || OVERLOAD.iter().any(|name| read.param(name).is_some()));
        assert_eq!(vias_after[1..], vias[2..]);
    }
    assert_eq!(after.start_line, before.start_line);
    fn others<'a>(message: &'a Message) -> impl Iterator<Item = Octets<'a>> {
        message.rows.iter().filter(|row| row.name != "via").map(|row| Octets(row.text))
    }
    assert_same(others(after), others(before));
}

/// RFC 3261 8.2.6.2: what an answer of our own is made of. Nobody gets a row of their own into it.
fn check_answer(octets: &[u8], code: u16, sent: &[u8]) {
    let answer = Message::read(sent).expect("an answer of ours is in order");
    assert!(answer.start_line.starts_with(format!("SIP/2.0 {code} ").as_bytes()), "{}", lower(answer.start_line));
    for row in &answer.rows {
        assert!(ANSWER_ROWS.contains(&row.name.as_str()), "{}", lower(row.text));
    }
    assert_eq!((answer.row("content-length").map(|row| row.value), answer.body), (Some(&b"0"[..]), &b""[..]));
    for single in &ANSWER_ROWS[1..] {
        assert!(answer.rows.iter().filter(|row| row.name == *single).count() <= 1, "{single} twice");
    }
    // What is in disorder is answered as far as it goes; what is in order, completely.
    let Some(request) = Message::read(octets) else { return };
    // The first is told where the request came from; the others are copied.
    fn vias<'a>(message: &'a Message) -> impl Iterator<Item = Octets<'a>> {
        message.rows.iter().filter(|row| row.name == "via").map(|row| Octets(row.value))
    }
    assert_same(vias(&answer).skip(1), vias(&request).skip(1));
    // A value with a zero in it is not copied: some servers would end their text there.
    let value = |message: &Message, name| {
        message.row(name).map(|row| row.value.to_vec()).filter(|value| !value.is_empty() && !value.contains(&0))
    };
    for name in ["call-id", "cseq", "from"] {
        assert_eq!(value(&answer, name), value(&request, name), "{name}");
    }
    if let Some(to) = value(&request, "to") {
        let added = answer.row("to").and_then(|row| row.value.strip_prefix(&to[..])).expect("To begins as it was");
        assert!(added.is_empty() || added.starts_with(b";tag=vh"), "{}", lower(added));
    }
}

/// A server that copies what RFC 3261 8.2.6.2 tells it to answers the request that was forwarded as `outcome`. The caller
/// gets the answer, with its own Vias and nothing else changed, at the address and from the socket that are its due.
pub fn check_way_back(number: usize, octets: &[u8], arrival: &Arrival, outcome: &Outcome) {
    let (Kind::Request(_), Verdict::Forward { to, from, .. }) = (outcome.kind, outcome.verdict) else { return };
    let forwarded = Message::read(&outcome.sent).unwrap();
    let ours = forwarded.rows[0].text;
    let behind_ours = &outcome.sent[forwarded.start_line.len() + 2 + ours.len()..];
    let response = [b"SIP/2.0 200 OK\r\n", ours, behind_ours].concat();
    let (listener, local) = match from {
        Sender::Egress => (None, None),
        Sender::Connect { .. } | Sender::Stream { .. } => panic!("there are only datagrams"),
        Sender::Listener { index, local } => (Some(index), local),
    };
    let back = world::receive(number, &response, Arrival { from: to, listener, local, stream: None });

    let home = match arrival.listener {
        Some(index) => Sender::Listener { index, local: arrival.local },
        None => Sender::Egress,
    };
    let backend = worlds_backend(number, to);
    let to_client = home_of(&Message::read(octets).unwrap(), arrival.from);
    let expected = Verdict::Forward { to: to_client, from: home, backend };
    assert_eq!(back.verdict, expected, "{}", response.escape_ascii());
    assert_eq!(Octets(&back.sent), Octets(&[b"SIP/2.0 200 OK\r\n", behind_ours].concat()));
    check(&world::worlds()[number], &response, &Arrival { from: to, listener, local, stream: None }, &back);
}

/// Where responses to a request from `source` go, and requests of its dialog (RFC 3261 18.2.2, RFC 3581 4).
fn home_of(request: &Message, source: SocketAddr) -> SocketAddr {
    let via = Parameterized::read(request.values("via")[0]);
    let port = match via.param("rport") {
        Some(_) => source.port(),
        None => host_and_port(via.head).1.unwrap_or(default_port(via.head)),
    };
    SocketAddr::new(source.ip(), port)
}

/// The port that stands for none in a sent-by (RFC 3261 18.1.1, RFC 7118 5.2.2), by what the Via says of the transport.
fn default_port(head: &[u8]) -> u16 {
    let is_blank = |octet: &u8| matches!(octet, b' ' | b'\t' | b'\r' | b'\n');
    let transport = head.splitn(3, |&octet| octet == b'/').nth(2).unwrap_or_default().trim_ascii_start();
    match transport.split(is_blank).next().unwrap_or_default().to_ascii_uppercase().as_slice() {
        b"TLS" => 5061,
        b"WS" => 80,
        b"WSS" => 443,
        _ => 5060,
    }
}

fn worlds_backend(number: usize, address: SocketAddr) -> Option<u16> {
    world::worlds()[number].backend_at(address)
}
