//! What holds for every backend set and for every message, tried on arbitrary ones.
//!
//! The expected octets are put together here, from the parts a message is made of, and share no code with the path. More
//! tries than a debug build has time for: `cargo test --release --test properties`.

mod support;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};
use std::net::SocketAddr;
use std::sync::LazyLock;
use support::{BACKENDS, CLIENT, Outcome, Path, address, corpus, pool, settings, shared_tables};
use viahop::dataplane::counters::Kind;
use viahop::dataplane::limits::{PAYLOAD_MAX, SLOTS};
use viahop::dataplane::route::Arrival;
use viahop::dataplane::route::table::{Contender, NONE, SlotTable};
use viahop::dataplane::tables::{Settings, Tables};
use viahop::dataplane::transport::StreamId;
use viahop::dataplane::verdict::{Answer, DropReason, Verdict};

/// `count` cases, and twenty times as many in a release build. Nothing is written beside the sources: a failure prints
/// the smallest input that shows it.
fn cases(count: u32) -> ProptestConfig {
    let cases = if cfg!(debug_assertions) { count } else { 20 * count };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

// The slot table.

fn contenders() -> impl Strategy<Value = Vec<Contender>> {
    let weight = prop_oneof![Just(100), 1..=10u32, 1..=10_000u32];
    proptest::collection::btree_map(any::<u64>(), weight, 2..9).prop_map(|weights| {
        let weights = weights.into_iter().enumerate();
        weights.map(|(index, (digest, weight))| Contender { index: index as u16, digest, weight }).collect()
    })
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn a_backend_that_leaves_moves_its_own_slots_and_no_other_and_gets_them_back_when_it_returns(
        all in contenders(),
        leaver in any::<Index>(),
    ) {
        let before = SlotTable::build(&all);
        let leaver = all[leaver.index(all.len())];
        let rest: Vec<Contender> = all.iter().copied().filter(|one| one != &leaver).collect();
        let without = SlotTable::build(&rest);
        for (old, new) in before.slots().iter().zip(without.slots()) {
            prop_assert_eq!(new.owner, if old.owner == leaver.index { old.runner_up } else { old.owner });
        }
        let back: Vec<Contender> = rest.into_iter().chain([leaver]).collect();
        let after = SlotTable::build(&back);
        prop_assert_eq!(before.slots(), after.slots());
    }

    #[test]
    fn the_order_of_the_configuration_means_nothing(
        (all, shuffled) in contenders().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
    ) {
        let (table, of_shuffled) = (SlotTable::build(&all), SlotTable::build(&shuffled));
        prop_assert_eq!(table.slots(), of_shuffled.slots());
    }

    #[test]
    fn shares_are_within_one_percent_of_all_slots_of_what_the_weights_ask_for(all in contenders()) {
        let table = SlotTable::build(&all);
        let sum: f64 = all.iter().map(|one| f64::from(one.weight)).sum();
        for one in &all {
            let owned = table.slots().iter().filter(|slot| slot.owner == one.index).count() as f64;
            let ideal = f64::from(one.weight) / sum * SLOTS as f64;
            prop_assert!((owned - ideal).abs() < 0.01 * SLOTS as f64, "{:?}: {} of {}", one, owned, ideal);
        }
    }

    #[test]
    fn owner_and_runner_up_are_two_backends(all in contenders()) {
        for slot in SlotTable::build(&all).slots() {
            prop_assert!(slot.owner != slot.runner_up && slot.owner != NONE && slot.runner_up != NONE);
        }
    }
}

/// A hundred thousand calls over `names`: where each goes.
fn map_of(names: &[String]) -> Vec<SocketAddr> {
    let mut parts = pool(&[]);
    parts.backends = names.iter().map(|name| support::backend(name)).collect();
    let tables = Tables::new(1, settings(), vec![parts], None);
    let pool = &tables.pools[0];
    let home = |call: u32| {
        let hash = tables.keys.route(format!("{call}-4f1d@198.51.100.7").as_bytes());
        tables.backends[pool.table.slot(hash).owner as usize].address
    };
    (0..100_000).map(home).collect()
}

#[test]
fn of_a_hundred_thousand_calls_a_change_moves_one_share_and_the_survivors_of_a_death_share_alike() {
    for count in [2, 3, 4, 10] {
        let names: Vec<String> = (0..count).map(|number| format!("10.9.0.{number}:5060")).collect();
        let before = map_of(&names);
        let (dead, survivors) = names.split_last().unwrap();
        let after = map_of(survivors);
        let moved = before.iter().zip(&after).filter(|(old, new)| old != new).count();
        assert!(before.iter().zip(&after).all(|(old, new)| old == new || *old == address(dead)));
        // Both ways: what a death takes away, an addition brings back.
        let share = moved as f64 / before.len() as f64;
        assert!(share <= 1.0 / f64::from(count) + 0.01, "{count} backends: {share}");
        let loads = survivors.iter().map(|name| after.iter().filter(|&&home| home == address(name)).count());
        let mean = before.len() as f64 / survivors.len() as f64;
        let most = loads.max().unwrap() as f64 / mean;
        println!(
            "{count} backends, one dies: {:.2} % of the calls move, max/mean of the others {most:.3}",
            100.0 * share
        );
        assert!(most <= 1.10, "{count} backends: {most}");
    }
}

// Any octets.

/// Pieces that messages are made of, and pieces that they are spoilt with.
const PIECES: [&str; 48] = [
    "INVITE sip:bob@example.net SIP/2.0\r\n",
    "ACK sip:10.0.0.12 SIP/2.0\r\n",
    "OPTIONS sip:192.0.2.100 SIP/2.0\r\n",
    "REGISTER sip:example.net;maddr=192.0.2.100 sip/2.0\r\n",
    "FOO urn:service:sos SIP/2.0\r\n",
    "CANCEL sip:[2001:db8::1]:99 SIP/7.0\r\n",
    "SIP/2.0 200 OK\r\n",
    "SIP/2.0 100 Trying\r\n",
    "Via: SIP/2.0/UDP 198.51.100.7:5060;branch=z9hG4bK-1;rport\r\n",
    "v: SIP/2.0/UDP [2001:db8::7];received=1.2.3.4;rport=9;branch=x\r\n",
    "VIA : SIP / 2.0 / TCP host ;branch=z9hG4bK, SIP/2.0/UDP b;x=\"a,b\"\r\n",
    "Via: SIP/2.0/UDP 192.0.2.100:40001;branch=z9hG4bK0123456789abcdef;vh=0300c633640713c46386a1e13d8b72c8\r\n",
    "Via: SIP/2.0/UDP 192.0.2.100;branch=z9hG4bK0123456789abcdef;vh=00~a~b\r\n",
    "From: <sip:a@example.net>;tag=1\r\n",
    "f:sip:a@b;tag=2\r\n",
    "To: \"B, b\" <sip:b@example.net>\r\n",
    "t: <sip:b@example.net>;tag=vh20139a59b135f35c\r\n",
    "Call-ID: call@h\r\n",
    "i \t:\r\n folded\r\n",
    "CSeq: 1 INVITE\r\n",
    "CSeq: 4294967295\t OPTIONS\r\n",
    "Max-Forwards: 70\r\n",
    "Max-Forwards: 0\r\n",
    "Max-Forwards: 0068\r\n",
    "Route: <sip:192.0.2.100;lr>\r\n",
    "Route: <sip:10.0.0.12;lr>, \"x,y\" <sip:10.0.0.13>\r\n",
    "Route: <sip:192.0.2.100;lr>,<sip:lb.example.net:5060;LR=on>,<sip:9.9.9.9>\r\n",
    "Record-Route: <sip:p;lr>\r\n",
    "Proxy-Require: foo, sec-agree\r\n",
    "Replaces: other@h;to-tag=1\r\n",
    "Join: other@h\r\n",
    "Target-Dialog: x;y\r\n",
    "Content-Length: 4\r\n",
    "l: 0\r\n",
    "Content_Length: 1\r\n",
    "X: y\r\n z\r\n",
    "\r\n",
    "\r\nbody",
    "\n",
    "\r",
    " ",
    ",",
    ";",
    "\"",
    "<",
    "@",
    ":",
    "\0",
];

fn sourced() -> impl Strategy<Value = Arrival> {
    let sources = [CLIENT, BACKENDS[0], "203.0.113.9:1024", "[2001:db8::9]:5060", "192.0.2.100:5060", "10.9.9.9:0"];
    (select(sources.to_vec()), select(vec![Some(0), None, Some(7)]), any::<bool>()).prop_map(
        |(from, listener, has_local)| {
            let local = has_local.then(|| address("192.0.2.100:1").ip());
            Arrival { from: address(from), listener, local, stream: None }
        },
    )
}

/// Octets; pieces in any order; and a message of the corpus with some octets replaced, inserted, or cut.
fn octets() -> impl Strategy<Value = Vec<u8>> {
    static CORPUS: LazyLock<Vec<Vec<u8>>> =
        LazyLock::new(|| corpus::messages().into_iter().map(|(_, octets)| octets).filter(|m| m.len() < 9000).collect());
    let pieces = vec(select(PIECES.to_vec()), 0..24).prop_map(|pieces| pieces.concat().into_bytes());
    // In the order of a message, some of them missing.
    let in_order = subsequence(PIECES[..38].to_vec(), 6..24).prop_map(|pieces| pieces.concat().into_bytes());
    let damage = vec((any::<Index>(), 0..3u8, any::<u8>(), select(PIECES.to_vec())), 0..4);
    let damaged = (any::<Index>(), damage).prop_map(|(which, damage)| {
        let mut octets = CORPUS[which.index(CORPUS.len())].clone();
        for (place, how, octet, piece) in damage {
            let place = place.index(octets.len().max(1)).min(octets.len());
            match how {
                0 if place < octets.len() => octets[place] = octet,
                1 => drop(octets.splice(place..place, piece.bytes())),
                _ => octets.truncate(place),
            }
        }
        octets
    });
    prop_oneof![1 => vec(any::<u8>(), 0..200), 3 => pieces, 3 => in_order, 5 => damaged]
}

/// What must be true of every outcome, whatever came in.
fn check(tables: &Tables, octets: &[u8], arrival: Arrival, outcome: &Outcome) -> Result<(), TestCaseError> {
    let is_backend = |to: &SocketAddr| tables.by_address.contains_key(to);
    match outcome.verdict {
        Verdict::Drop(reason) => {
            prop_assert_ne!(reason, DropReason::Panic);
            prop_assert!(outcome.sent.is_empty());
        }
        Verdict::Forward { to, backend, .. } => {
            prop_assert!(!outcome.sent.is_empty() && outcome.sent.len() <= PAYLOAD_MAX);
            prop_assert!(to.port() != 0 && !to.ip().is_unspecified() && !to.ip().is_multicast());
            if let Kind::Request(_) = outcome.kind {
                // Not an open relay: who is outside reaches backends and nobody else.
                let from_inside = is_backend(&arrival.from);
                prop_assert!(from_inside || (is_backend(&to) && backend.is_some()), "{}", to);
                let via = outcome.rows("via").remove(0);
                prop_assert!(via.starts_with("SIP/2.0/UDP 192.0.2.100:") && via.contains(";vh="), "{}", via);
            }
        }
        Verdict::Reply { to, answer } => {
            prop_assert_eq!(to.ip(), arrival.from.ip());
            prop_assert!(!octets.trim_ascii_start().starts_with(b"ACK ") && !octets.starts_with(b"SIP/2.0 "));
            // The answer to a STUN request is the address it came from, and the one that is longer than its question.
            let limit = octets.len() + if answer == Answer::Stun { 24 } else { 0 };
            prop_assert!(!outcome.sent.is_empty() && outcome.sent.len() <= limit);
            if let Answer::Status(code) = answer {
                prop_assert!(Answer::LABELS.contains(&code.to_string().as_str()), "{}", code);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn any_octets_from_anywhere_end_in_one_verdict_that_keeps_the_rules(
        datagrams in vec((octets(), sourced()), 100),
    ) {
        let (mut path, mut twin) = (Path::new(shared_tables()), Path::new(shared_tables()));
        for (octets, arrival) in &datagrams {
            let outcome = path.receive_on(octets, *arrival);
            let checked = check(&path.tables, octets, *arrival, &outcome);
            prop_assert!(checked.is_ok(), "{:?}\n{}\n{:?}\n{}", checked, text(octets), outcome.verdict, outcome.text());
            // What it is blamed for, if anything, is a place in it.
            let blame = path.dispatcher.blame(octets, outcome.verdict);
            prop_assert!(blame.is_none_or(|blame| blame.at <= octets.len()), "{blame:?}");
            let is_400 = outcome.verdict_code() == Some(400);
            prop_assert!(!is_400 || blame.is_some(), "a 400 without a place");
            // The path has no history: one that saw nothing before comes to the same.
            let again = twin.receive_on(octets, *arrival);
            prop_assert_eq!((again.verdict, again.sent), (outcome.verdict, outcome.sent));
        }
    }
}

/// What operators are told of a message is about that message.
#[test]
fn an_options_to_us_is_not_explained_by_what_was_refused_before_it() {
    let options = "OPTIONS sip:192.0.2.100 SIP/2.0\r\nv:SIP/2.0/UDP h;branch=z9hG4bKo\r\nf:<sip:a@x>;tag=1\r\nt:<sip:b@x>\r\ni:1\r\n\
                   CSeq:1 OPTIONS\r\nMax-Forwards:1\r\nl:0\r\nX: to make room for the answer\r\n\r\n";
    let short = options.replace("X: to make room for the answer\r\n", "").replace("Max-Forwards:1\r\n", "");
    let mut path = Path::new(Tables::new(1, settings(), vec![pool(&[])], None));
    let told = |path: &mut Path, message: &str| {
        let verdict = path.receive(message.as_bytes(), CLIENT).verdict;
        let told = path.dispatcher.refused(verdict).map(|refusal| refusal.reason);
        (verdict, told, path.dispatcher.blame(message.as_bytes(), verdict))
    };
    assert_eq!(told(&mut path, &options.replace("f:<sip:a@x>;tag=1", "f:>")).1, Some("Bad From"));
    assert_eq!(told(&mut path, &short), (Verdict::Drop(DropReason::ReplyTooLarge), None, None));
    assert_eq!(told(&mut path, &options.replace("192.0.2.100", "b@x")).1, Some("No Backend Available"));
    path.tables = Tables::new(2, Settings { draining: true, ..settings() }, vec![pool(&[])], None).into();
    assert_eq!(told(&mut path, options).1, Some("Draining"));
}

// A call through the path.

/// A request in parts, so that what becomes of it can be put together from them.
#[derive(Clone, Debug)]
struct Call {
    /// sent-by of the topmost Via.
    sent_by: String,
    /// Its parameters, with their semicolons, in order.
    params: Vec<String>,
    /// Via text behind it: values in the same row, and rows.
    below: String,
    call_id: String,
    cseq: u32,
    hops: Option<u8>,
    headers: String,
    body: Vec<u8>,
    source: SocketAddr,
}

const TOKEN: &str = "[a-zA-Z0-9.!%*_+`'~-]{1,40}";

fn calls() -> impl Strategy<Value = Call> {
    let hosts = ["198.51.100.7", "host.example.net", "[2001:db8::7]", "203.0.113.9"];
    let sent_by = (select(hosts.to_vec()), proptest::option::of(1u16..)).prop_map(|(host, port)| match port {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    });
    let others = ["", ";alias", ";keep", ";oc-algo=\"loss,rate\"", ";i=1", " ; comp = sigcomp", ";maddr=224.2.0.1"];
    let params = (TOKEN, select(others.to_vec()), any::<bool>(), proptest::option::of("6\\.6\\.6\\.[1-9]"))
        .prop_map(|(branch, other, rport, received)| {
            let mut params = vec![format!(";branch=z9hG4bK{branch}"), other.to_owned()];
            params.extend(rport.then(|| ";rport".to_owned()));
            params.extend(received.map(|address| format!(";received={address}")));
            params
        })
        .prop_shuffle();
    let below = select(vec![
        "\r\n",
        ", SIP/2.0/TCP b;branch=z9hG4bKb\r\n",
        " , SIP/2.0/UDP [::1];x=\"q,\\\"\"\r\nv:SIP/2.0/TLS c\r\n",
        "\r\nVia: SIP/2.0/UDP d;rport\r\nX-Between: 1\r\nVIA \t: SIP/2.0/UDP e\r\n",
    ]);
    let headers =
        select(vec!["", "Subject: a\r\n b\r\n", "Via-X: no\r\nX-Empty:\r\n", "Contact: <sip:u@h;x=\"1\">\r\n"]);
    let body = prop_oneof![Just(Vec::new()), vec(any::<u8>(), 0..300), Just(b"\r\n\r\nVia: no\r\n\r\n".to_vec())];
    let source = select(vec![CLIENT, "203.0.113.9:1024", "[2001:db8::9]:61000"]);
    (sent_by, params, below, TOKEN, any::<u32>(), proptest::option::of(1..=255u8), headers, body, source).prop_map(
        |(sent_by, params, below, call_id, cseq, hops, headers, body, source)| Call {
            sent_by,
            params,
            below: below.to_owned(),
            call_id,
            cseq,
            hops,
            headers: headers.to_owned(),
            body,
            source: address(source),
        },
    )
}

impl Call {
    /// The Vias as the client wrote them, behind `Via: `, with the line end of the last.
    fn vias(&self) -> String {
        format!("SIP/2.0/UDP {}{}{}", self.sent_by, self.params.concat(), self.below)
    }

    fn request(&self, method: &str, to_tag: &str) -> Vec<u8> {
        let hops = self.hops.map_or(String::new(), |hops| format!("Max-Forwards: {hops}\r\n"));
        let head = format!(
            "{method} sip:bob@example.net SIP/2.0\r\nVia: {}{hops}From: <sip:a@example.net>;tag=f\r\n\
             To: <sip:bob@example.net>{to_tag}\r\nCall-ID: {}\r\nCSeq: {} {method}\r\n{}Content-Length: {}\r\n\r\n",
            self.vias(),
            self.call_id,
            self.cseq,
            self.headers,
            self.body.len()
        );
        [head.as_bytes(), &self.body].concat()
    }

    fn send(&self, path: &mut Path, method: &str, to_tag: &str) -> Outcome {
        let arrival = Arrival { from: self.source, listener: Some(0), local: None, stream: None };
        path.receive_on(&self.request(method, to_tag), arrival)
    }
}

/// The rows of Via of what was forwarded, as octets: ours, and what is below it up to the first row of another name.
fn split_vias(sent: &[u8]) -> (String, String) {
    let text = text(sent);
    let (_, headers) = text.split_once("\r\n").unwrap();
    let (ours, rest) = headers.split_once("\r\n").unwrap();
    let end = rest.find("From: ").unwrap();
    (ours.to_owned(), rest[..end].to_owned())
}

/// A response of a backend to what it was sent, with a body that looks like anything.
fn response(status: &str, vias: &str, call: &Call) -> Vec<u8> {
    let head = format!(
        "SIP/2.0 {status}\r\n{vias}From: <sip:a@example.net>;tag=f\r\nTo: <sip:bob@example.net>;tag=t\r\n\
         Call-ID: {}\r\nCSeq: {} INVITE\r\n{}Content-Length: {}\r\n\r\n",
        call.call_id,
        call.cseq,
        call.headers,
        call.body.len()
    );
    [head.as_bytes(), &call.body].concat()
}

fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

fn from_backend(outcome: &Outcome) -> Arrival {
    let Verdict::Forward { to, .. } = outcome.verdict else { panic!("{:?}\n{}", outcome.verdict, outcome.text()) };
    Arrival { from: to, listener: None, local: None, stream: None }
}

/// What the topmost Via of the caller says when it comes back: as RFC 3261 18.2.1, RFC 3581 4 and RFC 6223 4.4 have it.
fn with_received(call: &Call) -> Vec<String> {
    let ip = call.source.ip();
    let asked = call.params.iter().any(|param| param == ";rport");
    let host = call.sent_by.split(':').next().unwrap_or_default();
    let needed = asked || host != ip.to_string();
    let mut found = false;
    let mut params: Vec<String> = Vec::new();
    for param in &call.params {
        match param.as_str() {
            ";rport" => params.push(format!(";received={ip};rport={}", call.source.port())),
            ";keep" => params.push(";keep=30".into()),
            // RFC 7339 5.6.
            param if param.starts_with(";oc") => {}
            param if param.starts_with(";received=") => {
                found = true;
                if !asked && needed {
                    params.push(format!(";received={ip}"));
                }
            }
            param => params.push(param.to_owned()),
        }
    }
    if needed && !asked && !found {
        params.push(format!(";received={ip}"));
    }
    params
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn a_response_brings_the_caller_its_own_vias_and_every_other_octet_unchanged(call in calls()) {
        let mut path = Path::new(shared_tables());
        let outcome = call.send(&mut path, "INVITE", "");
        let arrival = from_backend(&outcome);
        let (ours, below) = split_vias(&outcome.sent);
        let (recorded, below) = below.split_once("\r\n").unwrap();
        prop_assert!(recorded.starts_with("Record-Route: <sip:192.0.2.100:5060;lr;vh="), "{}", recorded);
        let returned = format!("Via: SIP/2.0/UDP {}{}{}", call.sent_by, with_received(&call).concat(), call.below);
        let returned_hops = match call.hops {
            Some(hops) => format!("{returned}Max-Forwards: {:>width$}\r\n", hops - 1, width = hops.to_string().len()),
            None => format!("Max-Forwards: 70\r\n{returned}"),
        };
        prop_assert_eq!(below, &returned_hops);
        for (status, vias) in [("200 OK", &returned), ("180 ", &returned), ("486 Busy Here", &returned)] {
            let answer = path.receive_on(&response(status, &format!("{ours}\r\n{vias}"), &call), arrival);
            prop_assert!(answer.is_forward(), "{:?}", answer.verdict);
            prop_assert_eq!(answer.text(), text(&response(status, vias, &call)));
        }
        // In one row, as some servers write them.
        let in_one_row = format!("{ours} ,{}", &returned["Via: ".len()..]);
        let answer = path.receive_on(&response("200 OK", &in_one_row, &call), arrival);
        prop_assert_eq!(answer.text(), text(&response("200 OK", &returned, &call)));
    }

    //= RFC 3261 section 18.3
    //# If there are additional bytes in
    //# the transport packet beyond the end of the body, they MUST be
    //# discarded.
    #[test]
    fn octets_behind_the_body_go_nowhere(call in calls(), more in vec(any::<u8>(), 1..100)) {
        let mut path = Path::new(shared_tables());
        let plain = call.send(&mut path, "INVITE", "");
        let arrival = Arrival { from: call.source, listener: Some(0), local: None, stream: None };
        let longer = path.receive_on(&[&call.request("INVITE", "")[..], &more].concat(), arrival);
        prop_assert_eq!(longer.text(), plain.text());
        let vias = plain.rows("via").iter().map(|value| format!("Via: {value}\r\n")).collect::<String>();
        let answer = response("200 OK", &vias, &call);
        let plain = path.receive_on(&answer, from_backend(&plain));
        let longer = path.receive_on(&[&answer[..], &more].concat(), from_backend(&longer));
        prop_assert!(plain.is_forward());
        prop_assert_eq!(longer.text(), plain.text());
    }

    //= RFC 3261 section 7.1
    //# The SIP-Version string is case-insensitive, but implementations MUST
    //# send upper-case.
    #[test]
    fn the_version_is_sent_in_upper_case(call in calls()) {
        let mut path = Path::new(shared_tables());
        let request = call.request("INVITE", "");
        let version = request.windows(9).position(|octets| octets == b"SIP/2.0\r\n").unwrap();
        let lower = [&request[..version], b"sip/2.0", &request[version + 7..]].concat();
        for stream in [None, StreamId::new(0, 7, 1)] {
            let arrival = Arrival { from: call.source, listener: Some(0), local: None, stream };
            let outcome = path.receive_on(&request, arrival);
            prop_assert_eq!(path.receive_on(&lower, arrival).text(), outcome.text());
            let vias = outcome.rows("via").iter().map(|value| format!("Via: {value}\r\n")).collect::<String>();
            let answer = response("200 OK", &vias, &call);
            let plain = path.receive_on(&answer, from_backend(&outcome));
            let odd = path.receive_on(&[b"Sip/2.0", &answer[7..]].concat(), from_backend(&outcome));
            prop_assert!(plain.is_forward());
            prop_assert_eq!(odd.text(), plain.text());
        }
    }

    //= RFC 3581 section 4
    //# the response MUST be
    //# sent to the IP address listed in the "received" parameter, and the
    //# port in the "rport" parameter.
    #[test]
    fn a_response_goes_where_rfc_3581_sends_it(call in calls()) {
        let mut path = Path::new(shared_tables());
        let outcome = call.send(&mut path, "OPTIONS", "");
        let (ours, below) = split_vias(&outcome.sent);
        let below = below.replace("Max-Forwards: 70\r\n", "");
        let answer = path.receive_on(&response("200 OK", &format!("{ours}\r\n{below}"), &call), from_backend(&outcome));
        let asked = call.params.iter().any(|param| param == ";rport");
        let behind_host = call.sent_by.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
        let port = match behind_host {
            _ if asked => call.source.port(),
            Some((_, port)) => port.parse().unwrap(),
            None => 5060,
        };
        let Verdict::Forward { to, .. } = answer.verdict else { panic!("{:?}", answer.verdict) };
        prop_assert_eq!(to, SocketAddr::new(call.source.ip(), port));
    }

    //= RFC 3261 section 16.11
    //# All other message transformations specified in Section 16.6
    //# MUST result in the same transformation of a retransmitted
    //# request.
    #[test]
    fn a_retransmission_leaves_as_the_same_octets_on_any_node_and_after_a_restart(call in calls()) {
        let (mut path, mut other_node) = (Path::new(shared_tables()), Path::new(shared_tables()));
        let first = call.send(&mut path, "INVITE", "");
        for again in [call.send(&mut path, "INVITE", ""), call.send(&mut other_node, "INVITE", "")] {
            prop_assert_eq!(&again.sent, &first.sent);
            prop_assert_eq!(again.verdict, first.verdict);
        }
    }

    //= RFC 3261 section 16.11
    //# CANCEL and non-Routed ACK requests MUST generate the same
    //# choice as their associated INVITE.
    #[test]
    fn cancel_and_the_ack_of_a_failure_follow_their_invite_with_its_branch(call in calls()) {
        let mut path = Path::new(shared_tables());
        let invite = call.send(&mut path, "INVITE", "");
        let branch = |outcome: &Outcome| {
            let (ours, _) = split_vias(&outcome.sent);
            ours.split(';').find(|param| param.starts_with("branch=")).unwrap().to_owned()
        };
        for (method, to_tag) in [("CANCEL", ""), ("ACK", ";tag=t")] {
            let follower = call.send(&mut path, method, to_tag);
            prop_assert_eq!(follower.verdict, invite.verdict);
            prop_assert_eq!(branch(&follower), branch(&invite));
        }
        // Another call of the same client that reuses the branch is another transaction.
        let other = Call { call_id: format!("{}x", call.call_id), ..call.clone() };
        prop_assert_ne!(branch(&other.send(&mut path, "INVITE", "")), branch(&invite));
    }

    #[test]
    fn a_response_whose_token_was_touched_dies(call in calls(), place in any::<Index>(), flip in 1..=255u8) {
        let mut path = Path::new(shared_tables());
        let outcome = call.send(&mut path, "INVITE", "");
        let arrival = from_backend(&outcome);
        let (ours, below) = split_vias(&outcome.sent);
        let below = below.replace("Max-Forwards: 70\r\n", "");
        // The digest in the branch, and the token up to the client's Via that rides along.
        let branch = ours.find(";branch=z9hG4bK").unwrap() + ";branch=z9hG4bK".len();
        let token = ours.find(";vh=").unwrap() + ";vh=".len();
        let token_end = ours.find('~').unwrap_or(ours.len());
        let places: Vec<usize> = (branch..token - ";vh=".len()).chain(token..token_end).collect();
        let mut touched = ours.clone().into_bytes();
        touched[places[place.index(places.len())]] ^= flip;
        prop_assume!(!touched.eq_ignore_ascii_case(ours.as_bytes()));
        let mut forged = b"SIP/2.0 200 OK\r\n".to_vec();
        forged.extend_from_slice(&touched);
        forged.extend_from_slice(b"\r\n");
        forged.extend_from_slice(&response("200 OK", &below, &call)["SIP/2.0 200 OK\r\n".len()..]);
        let answer = path.receive_on(&forged, arrival);
        prop_assert!(matches!(answer.verdict, Verdict::Drop(_)), "{:?}", answer.verdict);
        // And whoever rewrites the Via below ours does not send the response elsewhere.
        let elsewhere = response("200 OK", &format!("{ours}\r\nVia: SIP/2.0/UDP 192.0.2.66:53\r\n{below}"), &call);
        prop_assert_eq!(path.receive_on(&elsewhere, arrival).verdict, Verdict::Drop(DropReason::ResponseForged));
    }

    #[test]
    fn a_100_that_lost_the_callers_via_gets_one_that_means_the_same(call in calls()) {
        let mut path = Path::new(shared_tables());
        let outcome = call.send(&mut path, "INVITE", "");
        let arrival = from_backend(&outcome);
        let (ours, _) = split_vias(&outcome.sent);
        let answer = path.receive_on(&response("100 Trying", &format!("{ours}\r\n"), &call), arrival);
        prop_assert!(answer.is_forward(), "{:?}", answer.verdict);
        let vias = answer.rows("via");
        let branch = call.params.iter().find(|param| param.starts_with(";branch=")).unwrap();
        prop_assert_eq!(vias.len(), 1);
        prop_assert!(vias[0].starts_with(&format!("SIP/2.0/UDP {}{branch};", call.sent_by)), "{}", vias[0]);
        let answer = path.receive_on(&response("200 OK", &format!("{ours}\r\n"), &call), arrival);
        prop_assert_eq!(answer.verdict, Verdict::Drop(DropReason::ResponseForUs));
    }
}
