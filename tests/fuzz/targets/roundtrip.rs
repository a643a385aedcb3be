//! A call made of parts, there and back: what the backend gets and what the caller gets are put together here from the
//! parts, octet by octet. Retransmissions, CANCEL and ACK follow their INVITE; what comes later in the dialog, or to the
//! registration, takes the way that our Record-Route or Path says. A token with another bit in it, or a Via below it that
//! leads elsewhere, is worth nothing.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use std::net::SocketAddr;
use viahop::dataplane::limits::{REBUILD_BRANCH_MAX, REBUILD_SENT_BY_MAX};
use viahop::dataplane::route::Arrival;
use viahop::dataplane::verdict::{Answer, DropReason, Sender, Verdict};
use viahop_fuzz::world::{self, Outcome, worlds};
use viahop_fuzz::{
    rules,
    support::{self, CLIENT},
};

fuzz_target!(|parts: Parts| {
    world::begin();
    let call = Call::new(&parts);
    let there = call.there(call.method);
    call.check_way_back(&there);
    call.check_forgeries(&there);
    call.check_lost_via(&there);
    call.check_followers(&there);
    call.check_dialog(&there);
    call.check_registration(&there);
});

/// What the fuzzer chooses. Numbers pick from the lists below, octets become token characters.
#[derive(Arbitrary, Debug)]
struct Parts<'a> {
    world: bool,
    source: u8,
    door: u8,
    method: u8,
    host: u8,
    port: Option<u16>,
    /// Parameters of the topmost Via, in order: see [`Call::param`].
    params: [u8; 5],
    rport_value: bool,
    received: u8,
    below: u8,
    hops: Option<u8>,
    headers: u8,
    has_length: bool,
    status: u8,
    cseq: u32,
    /// Where the token is touched, and how.
    forgeries: [(u16, u8); 3],
    branch: &'a [u8],
    call_id: &'a [u8],
    body: &'a [u8],
}

const SOURCES: [&str; 5] =
    [CLIENT, "203.0.113.9:1024", "[2001:db8::9]:5060", "[2001:db8::9]:61000", "198.51.100.7:65535"];
const METHODS: [&str; 8] = ["INVITE", "INVITE", "INVITE", "REGISTER", "OPTIONS", "BYE", "SUBSCRIBE", "X-Y"];
/// Hosts that may stand in sent-by, and the address each is, if it is one.
const HOSTS: [(&str, &str); 7] = [
    ("198.51.100.7", "198.51.100.7"),
    ("203.0.113.9", "203.0.113.9"),
    ("[2001:db8::9]", "2001:db8::9"),
    ("[2001:DB8:0:0::9]", "2001:db8::9"),
    ("[::ffff:203.0.113.9]", "203.0.113.9"),
    ("host.example.net", ""),
    ("anonymous.invalid", ""),
];
const OTHER_PARAMS: [&str; 7] =
    [";alias", ";keep", ";oc-algo=\"loss,;rate\"", ";i=1", " ; comp = sigcomp", ";maddr=224.2.0.1", ";vhx=1"];
const BELOW: [&str; 5] = [
    "\r\n",
    ", SIP/2.0/TCP b;branch=z9hG4bKb\r\n",
    " , SIP/2.0/UDP [::1];x=\"q,\\\"\"\r\nv:SIP/2.0/TLS c\r\n",
    "\r\nVia: SIP/2.0/UDP d;rport\r\nX-Between: 1\r\nVIA \t: SIP/2.0/UDP e\r\n",
    ",\r\n SIP/2.0/UDP f\r\n",
];
const HEADERS: [&str; 8] = [
    "",
    "Subject: a\r\n b\r\n",
    "Via-X: no\r\nX-Empty:\r\n",
    "Contact: <sip:u@h;x=\"1\">\r\n",
    "Record-Route: <sip:p;lr>, <sip:q>\r\n",
    "X-Long-Name-Of-Some-Thirty-Octets-Or-More: 1\r\n",
    "Supported: path, outbound\r\nContact: <sip:u@192.168.1.5>;reg-id=1;+sip.instance=\"<urn:x>\"\r\n",
    "k:x\r\n ,PATH\r\n",
];
const STATUS: [&str; 5] = ["200 OK", "180 ", "486 Busy Here", "100 Trying", "699 x"];

/// A request in parts, so that what becomes of it can be put together from them.
struct Call<'a> {
    number: usize,
    arrival: Arrival,
    method: &'static str,
    host: &'static str,
    host_address: &'static str,
    port: Option<u16>,
    /// Parameters of the topmost Via with their semicolons, and what each is when it comes back.
    params: Vec<(String, String)>,
    has_rport: bool,
    branch: String,
    below: String,
    call_id: String,
    hops: Option<u8>,
    parts: &'a Parts<'a>,
}

fn pick<T: Copy>(list: &[T], number: u8) -> T {
    list[number as usize % list.len()]
}

/// Token characters that say what `octets` say.
fn token(octets: &[u8]) -> String {
    const TOKEN: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.!%*_+`'~";
    octets.iter().map(|&octet| TOKEN[octet as usize % TOKEN.len()] as char).collect()
}

impl<'a> Call<'a> {
    fn new(parts: &'a Parts<'a>) -> Call<'a> {
        let from = support::address(pick(&SOURCES, parts.source));
        // The second world does not reach its IPv6 backends.
        let number = (parts.world && from.is_ipv4()) as usize;
        let world = &worlds()[number];
        let mut arrival = world.arrival(from, parts.door);
        if arrival.listener.is_none() || world.is_inside(&arrival) {
            // Clients come in elsewhere.
            arrival = world.arrival(from, 0);
        }
        let (host, host_address) = pick(&HOSTS, parts.host);
        let branch = format!("z9hG4bK{}", token(&parts.branch[..parts.branch.len().min(300)]));
        let mut call = Call {
            number,
            arrival,
            method: pick(&METHODS, parts.method),
            host,
            host_address,
            port: parts.port.map(|port| port.max(1)),
            params: Vec::new(),
            has_rport: parts.params.contains(&1),
            branch,
            below: pick(&BELOW, parts.below).into(),
            call_id: format!("c{}", token(&parts.call_id[..parts.call_id.len().min(200)])),
            hops: parts.hops.map(|hops| hops.max(1)),
            parts,
        };
        call.params = call.params();
        call
    }

    /// The parameters: branch once, `rport` and `received` at most once, any others.
    fn params(&self) -> Vec<(String, String)> {
        let ip = self.arrival.from.ip();
        let needs_received = self.has_rport || self.host_address != ip.to_string();
        let (mut params, mut received_stands) = (Vec::new(), false);
        let mut seen = [false; 3];
        for &number in self.parts.params.iter().chain(&[0]) {
            if (number as usize) < seen.len() && std::mem::replace(&mut seen[number as usize], true) {
                continue;
            }
            params.push(match number {
                0 => twice(format!(";branch={}", self.branch)),
                1 => {
                    let value = if self.parts.rport_value { "=9" } else { "" };
                    (format!(";rport{value}"), format!(";received={ip};rport={}", self.arrival.from.port()))
                }
                2 => {
                    received_stands = true;
                    let told =
                        if needs_received && !self.has_rport { format!(";received={ip}") } else { String::new() };
                    (format!(";received=6.6.6.{}", self.parts.received), told)
                }
                other => match pick(&OTHER_PARAMS, other) {
                    overload if overload.starts_with(";oc") => (overload.into(), String::new()),
                    param => twice(param.into()),
                },
            });
        }
        if needs_received && !self.has_rport && !received_stands {
            params.push((String::new(), format!(";received={ip}")));
        }
        params
    }

    fn sent_by(&self) -> String {
        self.port.map_or(self.host.into(), |port| format!("{}:{port}", self.host))
    }

    /// The topmost Via value as it is sent, and as it comes back; `keeps` says whether the first `keep` is answered.
    fn via(&self, keeps: bool) -> (String, String) {
        let (sent, mut told): (Vec<_>, Vec<_>) = self.params.iter().cloned().unzip();
        if let Some(keep) = told.iter_mut().find(|param| keeps && *param == ";keep") {
            keep.push_str("=30");
        }
        let value = |params: Vec<String>| format!("SIP/2.0/UDP {}{}", self.sent_by(), params.concat());
        (value(sent), value(told))
    }

    /// All rows behind the Vias.
    fn rest(&self, cseq_method: &str, to_tag: &str) -> Vec<u8> {
        let body = &self.parts.body[..self.parts.body.len().min(500)];
        let length = if self.parts.has_length { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
        let head = format!(
            "From: <sip:a@example.com>;tag=f\r\nTo: <sip:bob@example.com>{to_tag}\r\nCall-ID: {}\r\nCSeq: {} {cseq_method}\r\n\
             {}{length}\r\n",
            self.call_id,
            self.parts.cseq,
            pick(&HEADERS, self.parts.headers),
        );
        [head.as_bytes(), body].concat()
    }

    fn request(&self, method: &str, to_tag: &str) -> Vec<u8> {
        let hops = self.hops.map_or(String::new(), |hops| format!("Max-Forwards: {hops}\r\n"));
        let head = format!("{method} sip:bob@example.com SIP/2.0\r\nVia: {}{}{hops}", self.via(false).0, self.below);
        [head.as_bytes(), &self.rest(method, to_tag)].concat()
    }

    /// Sends the request, and checks what the backend gets.
    fn there(&self, method: &'static str) -> There {
        let to_tag = if method == "ACK" { ";tag=t" } else { "" };
        let request = self.request(method, to_tag);
        let outcome = world::receive(self.number, &request, self.arrival);
        let Verdict::Forward { to, from: Sender::Egress, backend: Some(_) } = outcome.verdict else {
            panic!("{outcome:?} for\n{}", text(&request));
        };
        assert!(worlds()[self.number].backend_at(to).is_some());
        let sent = text(&outcome.sent);
        let (_, headers) = sent.split_once("\r\n").expect("a start line");
        let (ours, _) = headers.split_once("\r\n").expect("our Via");
        let ours = ours.to_owned();
        // Between the two what brings later requests back to us, which the rules look at.
        rules::check(&worlds()[self.number], &request, &self.arrival, &outcome);
        let is_record = |line: &&str| {
            let names_us = line.starts_with("Record-Route: <sip:") || line.starts_with("Path: <sip:");
            names_us && line.contains(";lr;vh=") || *line == "Supported: path"
        };
        let recorded: Vec<String> = headers.split("\r\n").skip(1).take_while(is_record).map(str::to_owned).collect();
        let rows: String = recorded.iter().map(|row| format!("{row}\r\n")).collect();
        // RFC 6223 4.4: for a registration, and for a dialog whose requests come back to us.
        let keeps = method == "REGISTER" || recorded.iter().any(|row| row.starts_with("Record-Route"));
        let returned = format!("Via: {}{}", self.via(keeps).1, self.below);
        let vias = match self.hops {
            Some(hops) => format!("{returned}Max-Forwards: {:>width$}\r\n", hops - 1, width = hops.to_string().len()),
            None => format!("Max-Forwards: 70\r\n{returned}"),
        };
        let head = format!("{method} sip:bob@example.com SIP/2.0\r\n{ours}\r\n{rows}{vias}");
        assert_eq!(sent, text(&[head.as_bytes(), &self.rest(method, to_tag)].concat()));
        let again = world::receive(self.number, &request, self.arrival);
        assert_eq!(again, outcome, "a retransmission leaves as the same octets");
        There { ours, returned, recorded, outcome, to }
    }

    fn response(&self, status: &str, vias: &str) -> Vec<u8> {
        [format!("SIP/2.0 {status}\r\n{vias}").as_bytes(), &self.rest(self.method, ";tag=t")].concat()
    }

    fn send_back(&self, there: &There, response: &[u8]) -> Outcome {
        world::receive(self.number, response, Arrival { from: there.to, listener: None, local: None, stream: None })
    }

    /// Where the response is due, by RFC 3261 18.2.2 and RFC 3581 4.
    fn home(&self) -> SocketAddr {
        let source = self.arrival.from;
        let port = if self.has_rport { source.port() } else { self.port.unwrap_or(5060) };
        SocketAddr::new(source.ip(), port)
    }

    fn check_way_back(&self, there: &There) {
        let status = pick(&STATUS, self.parts.status);
        let expected = self.response(status, &there.returned);
        let listener =
            Sender::Listener { index: self.arrival.listener.expect("a listener"), local: self.arrival.local };
        let rows = format!("{}\r\n{}", there.ours, there.returned);
        // In one row, as some servers write them.
        let one_row = format!("{} ,{}", there.ours, &there.returned["Via: ".len()..]);
        for vias in [rows, one_row] {
            let back = self.send_back(there, &self.response(status, &vias));
            let Verdict::Forward { to, from, .. } = back.verdict else { panic!("{:?} for\n{vias}", back.verdict) };
            assert_eq!((to, from), (self.home(), listener));
            assert_eq!(text(&back.sent), text(&expected));
        }
    }

    fn check_forgeries(&self, there: &There) {
        // The digest in the branch, and the token up to what of the client's Via rides along.
        let branch = there.ours.find(";branch=z9hG4bK").expect("a branch") + ";branch=z9hG4bK".len();
        let token = there.ours.find(";vh=").expect("a token");
        let token_end = there.ours.find('~').unwrap_or(there.mark());
        let places: Vec<usize> = (branch..token).chain(token + ";vh=".len()..token_end).collect();
        for (place, flip) in self.parts.forgeries {
            let mut touched = there.ours.clone().into_bytes();
            touched[places[place as usize % places.len()]] ^= flip;
            if touched.eq_ignore_ascii_case(there.ours.as_bytes()) {
                continue;
            }
            let vias = [&touched[..], b"\r\n", there.returned.as_bytes()].concat();
            let forged = [b"SIP/2.0 200 OK\r\n", &vias[..], &self.rest(self.method, ";tag=t")].concat();
            let back = self.send_back(there, &forged);
            assert!(matches!(back.verdict, Verdict::Drop(_)), "{:?} for\n{}", back.verdict, text(&forged));
        }
        // Whoever rewrites the Via below ours does not send the response elsewhere.
        for elsewhere in ["192.0.2.66:53", "victim.example.net", "203.0.113.9:1"] {
            let vias = format!("{}\r\nVia: SIP/2.0/UDP {elsewhere}\r\n{}", there.ours, there.returned);
            let back = self.send_back(there, &self.response("200 OK", &vias));
            if elsewhere != self.home().to_string() {
                assert_eq!(back.verdict, Verdict::Drop(DropReason::ResponseForged), "{elsewhere}");
            }
        }
    }

    /// sofia-sip answers with a 100 that has lost the client's Via.
    fn check_lost_via(&self, there: &There) {
        let lost = self.send_back(there, &self.response("100 Trying", &format!("{}\r\n", there.ours)));
        let may_be_lost = self.method == "INVITE"
            && self.branch.len() > "z9hG4bK".len()
            && self.branch.len() <= REBUILD_BRANCH_MAX
            && self.sent_by().len() <= REBUILD_SENT_BY_MAX;
        if !may_be_lost {
            assert_eq!(lost.verdict, Verdict::Drop(DropReason::ResponseForUs));
            return;
        }
        let (home, sent_by, branch) = (self.home(), self.sent_by(), &self.branch);
        let via =
            format!("Via: SIP/2.0/UDP {sent_by};branch={branch};received={};rport={}\r\n", home.ip(), home.port());
        assert_eq!(text(&lost.sent), text(&self.response("100 Trying", &via)), "{:?}", lost.verdict);
        let Verdict::Forward { to, .. } = lost.verdict else { panic!("{:?}", lost.verdict) };
        assert_eq!(to, home);
        // Only a 100 is ours to repair; and not with what somebody made of the parts that ride along.
        let final_one = self.send_back(there, &self.response("200 OK", &format!("{}\r\n", there.ours)));
        assert_eq!(final_one.verdict, Verdict::Drop(DropReason::ResponseForUs));
        let riders = there.ours.find('~').expect("what rides along");
        for (place, flip) in self.parts.forgeries {
            let mut touched = there.ours.clone().into_bytes();
            let place = riders + place as usize % (there.mark() - riders);
            let whole = touched[place];
            touched[place] ^= flip;
            // Sent-by's brackets and colon may be written as they are.
            if [whole, touched[place]]
                .map(viahop::dataplane::token::from_token_octet)
                .windows(2)
                .all(|two| two[0] == two[1])
            {
                continue;
            }
            let vias = [&touched[..], b"\r\n"].concat();
            let forged = [b"SIP/2.0 100 Trying\r\n", &vias[..], &self.rest(self.method, ";tag=t")].concat();
            let back = self.send_back(there, &forged);
            assert!(matches!(back.verdict, Verdict::Drop(_)), "{:?} for\n{}", back.verdict, text(&forged));
        }
    }

    /// RFC 3261 16.11: CANCEL and the ACK of a failure go where their INVITE went, with its branch.
    fn check_followers(&self, invite: &There) {
        if self.method != "INVITE" {
            return;
        }
        let branch = |there: &There| there.ours.split(';').nth(1).map(str::to_owned);
        for method in ["CANCEL", "ACK"] {
            let follower = self.there(method);
            assert_eq!((follower.to, branch(&follower)), (invite.to, branch(invite)), "{method}");
            assert_eq!(follower.outcome.verdict, invite.outcome.verdict);
        }
    }

    /// Both ends of the dialog send with the route set that they have from the request or its response.
    fn check_dialog(&self, there: &There) {
        let ours: Vec<&str> = there.recorded.iter().filter_map(|row| row.strip_prefix("Record-Route: ")).collect();
        if ours.is_empty() {
            return;
        }
        let reversed: Vec<&str> = ours.iter().copied().rev().collect();
        let bye = |routes: &str| later("BYE", &self.call_id, routes);
        let outcome = world::receive(self.number, &bye(&reversed.join(", ")), self.arrival);
        let Verdict::Forward { to, from, .. } = outcome.verdict else { panic!("{:?}", outcome.verdict) };
        assert_eq!((to, from), (there.to, Sender::Egress));
        assert!(!text(&outcome.sent).contains("Route: "), "{}", text(&outcome.sent));

        let arrival = worlds()[self.number].arrival(there.to, self.parts.door);
        let routes = format!("{},<sip:p;lr>", ours.join("\r\nRoute: "));
        let outcome = world::receive(self.number, &bye(&routes), arrival);
        self.assert_arrives_at_client(&outcome);
        assert!(text(&outcome.sent).contains("Route: <sip:p;lr>\r\n"), "{}", text(&outcome.sent));
        self.check_route_forgeries(&bye, ours[0], arrival);
    }

    /// A request to the registration takes the flow on which it came.
    fn check_registration(&self, there: &There) {
        let Some(path) = there.recorded.iter().find_map(|row| row.strip_prefix("Path: ")) else { return };
        let notify = |routes: &str| later("NOTIFY", "another-call", routes);
        let arrival = worlds()[self.number].arrival(there.to, self.parts.door);
        self.assert_arrives_at_client(&world::receive(self.number, &notify(path), arrival));
        self.check_route_forgeries(&notify, path, arrival);
        // Nobody else outside may use it.
        let stranger =
            Arrival { from: support::address("192.0.2.77:5060"), listener: Some(0), local: None, stream: None };
        let outcome = world::receive(self.number, &notify(path), stranger);
        assert_eq!(code(&outcome), Some(403), "{:?}", outcome.verdict);
    }

    fn assert_arrives_at_client(&self, outcome: &Outcome) {
        let Verdict::Forward { to, from, .. } = outcome.verdict else { panic!("{:?}", outcome.verdict) };
        let listener =
            Sender::Listener { index: self.arrival.listener.expect("a listener"), local: self.arrival.local };
        assert_eq!((to, from), (self.home(), listener));
    }

    /// From inside, a token chooses where a datagram goes: touched, it is refused.
    fn check_route_forgeries(&self, request: &dyn Fn(&str) -> Vec<u8>, route: &str, arrival: Arrival) {
        let start = route.find(";vh=").expect("a token") + ";vh=".len();
        let len = route[start..].bytes().take_while(u8::is_ascii_hexdigit).count();
        for (place, flip) in self.parts.forgeries {
            let mut touched = route.as_bytes().to_vec();
            let place = start + place as usize % len;
            touched[place] ^= flip;
            if touched.eq_ignore_ascii_case(route.as_bytes()) || !touched[place].is_ascii_alphanumeric() {
                continue;
            }
            let touched = text(&touched);
            let outcome = world::receive(self.number, &request(&touched), arrival);
            assert_eq!(code(&outcome), Some(403), "{:?} for {touched}", outcome.verdict);
            // From outside it counts as none, or is refused; it leads to a backend in any case.
            let outcome = world::receive(self.number, &request(&touched), self.arrival);
            rules::check(&worlds()[self.number], &request(&touched), &self.arrival, &outcome);
        }
    }
}

/// A request of somebody who has a route set.
fn later(method: &str, call_id: &str, routes: &str) -> Vec<u8> {
    format!(
        "{method} sip:x@192.168.1.5:5062 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.5;branch=z9hG4bK1;rport\r\nMax-Forwards: 9\r\n\
         Route: {routes}\r\nFrom: <sip:a@example.com>;tag=f\r\nTo: <sip:b@example.com>;tag=t\r\nCall-ID: {call_id}\r\n\
         CSeq: 2 {method}\r\n\r\n"
    )
    .into_bytes()
}

fn code(outcome: &Outcome) -> Option<u16> {
    match outcome.verdict {
        Verdict::Reply { answer: Answer::Status(code), .. } => Some(code),
        _ => None,
    }
}

/// What became of a request.
struct There {
    /// Our Via, without its line end.
    ours: String,
    /// The Vias below it, as the caller is to get them back.
    returned: String,
    /// Our rows of Record-Route or Path.
    recorded: Vec<String>,
    outcome: Outcome,
    to: SocketAddr,
}

impl There {
    /// Where in our Via the mark begins that tells a loop. Responses have no use for it.
    fn mark(&self) -> usize {
        self.ours.find(";vl=").unwrap_or(self.ours.len())
    }
}

fn twice(text: String) -> (String, String) {
    (text.clone(), text)
}

fn text(octets: &[u8]) -> String {
    octets.iter().map(|&octet| octet as char).collect()
}
