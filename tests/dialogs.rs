//! A dialog keeps its backend for life: by the token in its route set, and before there is one by the call memory.

mod support;

use proptest::prelude::*;
use std::collections::HashMap;
use support::{BACKENDS, CLIENT, LB, Outcome, Path, address, backend, pool, settings, tables};
use viahop::dataplane::keys::Keys;
use viahop::dataplane::limits::{BATCH, RINGING_MS};
use viahop::dataplane::route::Arrival;
use viahop::dataplane::sip::uri::Scheme;
use viahop::dataplane::tables::{Strategy as Choice, *};
use viahop::dataplane::transport::{StreamId, Transport};
use viahop::dataplane::verdict::{Answer, DropReason, Sender, Verdict};

/// A request of call `call` from the client, with more header rows if need be.
fn request(method: &str, call: &str, uri: &str, tag: &str, rows: &str) -> String {
    format!(
        "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {CLIENT};branch=z9hG4bK-{call}-{};rport\r\nMax-Forwards: 70\r\n\
         From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>{tag}\r\nCall-ID: {call}\r\nCSeq: 1 {method}\r\n\
         {rows}Content-Length: 0\r\n\r\n",
        // CANCEL and the ACK of a failure have the branch of their INVITE.
        if matches!(method, "ACK" | "CANCEL") { "INVITE" } else { method },
    )
}

fn to_bob(method: &str, call: &str, tag: &str, rows: &str) -> String {
    request(method, call, "sip:b@example.net", tag, rows)
}

fn in_dialog(method: &str, call: &str, route: &str) -> String {
    to_bob(method, call, ";tag=2", &format!("Route: {route}\r\n"))
}

fn target(outcome: &Outcome) -> String {
    let Verdict::Forward { to, .. } = outcome.verdict else { panic!("{:?}\n{}", outcome.verdict, outcome.text()) };
    to.to_string()
}

fn code(outcome: &Outcome) -> u16 {
    let Verdict::Reply { answer: Answer::Status(code), .. } = outcome.verdict else { panic!("{:?}", outcome.verdict) };
    code
}

/// Tables over `names`, of which those behind `!` are down.
fn tables_of(generation: u64, names: &[&str]) -> Tables {
    let mut pool = pool(&[]);
    pool.backends = names
        .iter()
        .map(|name| {
            let is_up = !name.starts_with('!');
            let serves = if is_up { Serves::Calls } else { Serves::Named };
            BackendParts { is_up, serves, ..backend(name.trim_start_matches('!')) }
        })
        .collect();
    Tables::new(generation, settings(), vec![pool], None)
}

fn change(path: &mut Path, names: &[&str]) {
    path.tables = tables_of(path.tables.generation + 1, names).into();
}

/// Begins call `call` and returns the backend it went to and our Record-Route.
fn begin(path: &mut Path, call: &str) -> (String, String) {
    let invite = path.receive(to_bob("INVITE", call, "", "").as_bytes(), CLIENT);
    let mut recorded = invite.rows("record-route");
    assert_eq!(recorded.len(), 1, "{}", invite.text());
    (target(&invite), recorded.remove(0))
}

#[test]
fn a_dialog_stays_with_its_backend_through_a_thousand_changes_of_the_set() {
    let names: Vec<String> = (0..12).map(|number| format!("10.1.0.{number}:5060")).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut path = Path::new(tables_of(1, &all[..6]));
    let seed = std::env::var("VIAHOP_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    println!("VIAHOP_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (changes, calls_each) = if cfg!(debug_assertions) { (60, 20) } else { (1_000, 100) };
    let mut calls: Vec<(String, String, String)> = Vec::new();
    let mut orphans = 0;
    for turn in 0..changes {
        for number in 0..calls_each {
            let call = format!("c{turn}-{number}");
            let (backend, route) = begin(&mut path, &call);
            calls.push((call, backend, route));
        }
        // Any number of backends, from two on; some of them gone from the configuration, some down.
        let mut set = all.clone();
        random.shuffle(&mut set);
        set.truncate(random.usize(2..=all.len()));
        let marked: Vec<String> = set
            .iter()
            .enumerate()
            .map(|(place, name)| if place > 1 && random.u8(..) < 40 { format!("!{name}") } else { (*name).to_owned() })
            .collect();
        change(&mut path, &marked.iter().map(String::as_str).collect::<Vec<_>>());
        for _ in 0..2 * calls_each {
            let (call, backend, route) = &calls[random.usize(..calls.len())];
            let bye = path.receive(in_dialog("BYE", call, route).as_bytes(), CLIENT);
            if marked.contains(backend) {
                assert_eq!(target(&bye), *backend, "call {call} in change {turn}");
            } else if marked.contains(&format!("!{backend}")) {
                orphans += 1;
                assert_ne!(target(&bye), *backend);
            } else {
                assert_eq!(code(&bye), 481);
            }
        }
    }
    assert_eq!(path.dispatcher.router().orphaned, orphans);
    assert_eq!(path.dispatcher.router().strange_tokens, 0);
}

/// A server that ends calls itself names itself in its Contact, and a proxy may have recorded itself below us. Neither brings
/// the request back to where nobody answers.
#[test]
fn an_orphan_goes_by_its_key_though_its_uri_or_next_route_names_the_dead_backend() {
    let mut path = Path::new(tables());
    let (backend, route) = begin(&mut path, "call");
    let set: Vec<String> =
        BACKENDS.iter().map(|&name| if name == backend { format!("!{name}") } else { name.to_owned() }).collect();
    change(&mut path, &set.iter().map(String::as_str).collect::<Vec<_>>());
    let uri = format!("sip:uas@{backend}");
    for (uri, route) in [
        (uri.as_str(), route.clone()),
        ("sip:b@192.0.2.77", format!("{route}, <sip:{backend};lr>")),
        (uri.as_str(), format!("{route}, <sip:{backend};lr>")),
    ] {
        let bye = request("BYE", "call", uri, ";tag=2", &format!("Route: {route}\r\n"));
        let outcome = path.receive(bye.as_bytes(), CLIENT);
        assert_ne!(target(&outcome), backend, "{}", outcome.text());
        assert!(outcome.text().starts_with(&format!("BYE {uri} SIP/2.0")), "{}", outcome.text());
    }
    assert_eq!(path.dispatcher.router().orphaned, 3);
    let other = BACKENDS.into_iter().find(|&name| name != backend).unwrap();
    let bye = request("BYE", "call", &format!("sip:uas@{other}"), ";tag=2", &format!("Route: {route}\r\n"));
    assert_eq!(target(&path.receive(bye.as_bytes(), CLIENT)), other, "a living one that is named is heard");
}

#[test]
fn another_node_and_a_restarted_one_serve_the_dialog_as_well() {
    let mut one = Path::new(tables());
    let (backend, route) = begin(&mut one, "call");
    let mut other = Path::new(tables_of(7, &BACKENDS.iter().rev().copied().collect::<Vec<_>>()));
    assert_eq!(target(&other.receive(in_dialog("BYE", "call", &route).as_bytes(), CLIENT)), backend);
    assert_eq!(begin(&mut other, "call").1, route, "a retransmission is recorded in the same octets");
}

#[test]
fn a_token_of_another_call_or_secret_or_a_mangled_one_counts_as_none() {
    let mut path = Path::new(tables());
    let (_, route) = begin(&mut path, "call");
    let by_key = target(&path.receive(to_bob("BYE", "other", ";tag=2", "").as_bytes(), CLIENT));
    assert_eq!(target(&path.receive(in_dialog("BYE", "other", &route).as_bytes(), CLIENT)), by_key);
    let token = route.split("vh=").nth(1).unwrap().trim_end_matches('>').to_owned();
    for mangled in [token[..20].to_owned(), token.replace('0', "1"), format!("{token}00"), String::new()] {
        let mangled = route.replace(&token, &mangled);
        assert!(path.receive(in_dialog("BYE", "call", &mangled).as_bytes(), CLIENT).is_forward(), "{mangled}");
    }
    let upper = route.replace(&token, &token.to_uppercase());
    let strange = path.dispatcher.router().strange_tokens;
    path.receive(in_dialog("BYE", "call", &upper).as_bytes(), CLIENT);
    assert_eq!(path.dispatcher.router().strange_tokens, strange, "letters in any case");
    let mut stranger = settings();
    stranger.keys = Keys::new(&[9; 16], &[9; 16], &[9; 16], 0);
    let mut stranger = Path::new(Tables::new(1, stranger, vec![pool(&BACKENDS)], None));
    assert!(stranger.receive(in_dialog("BYE", "call", &route).as_bytes(), CLIENT).is_forward());
    assert_eq!(stranger.dispatcher.router().strange_tokens, 1);
}

/// The three steps of a rotation, and before them: who signs, who verifies.
fn tables_with(generation: u64, keys: Keys) -> Tables {
    Tables::new(generation, Settings { keys, ..settings() }, vec![pool(&BACKENDS)], None)
}

#[test]
fn a_rotation_of_the_token_key_moves_no_dialog_no_flow_and_no_transaction() {
    let (old, next) = ([3; 16], [4; 16]);
    let signing = |id: u8, mac: &[u8; 16]| Keys::new(&[1; 16], &[2; 16], mac, id);
    let steps = [
        ("announced", signing(0, &old).accepting(1, &next)),
        ("current", signing(1, &next).accepting(0, &old)),
        ("alone", signing(1, &next)),
    ];
    let mut path = Path::new(tables_with(1, signing(0, &old)));
    let invite = path.receive(to_bob("INVITE", "call", "", "").as_bytes(), CLIENT);
    let (backend, route) = (target(&invite), invite.rows("record-route").remove(0));
    let register = path.receive(to_bob("REGISTER", "reg", "", "Supported: path\r\n").as_bytes(), CLIENT);
    let flow = register.rows("path").remove(0);
    let our_branch = |outcome: &Outcome| {
        let via = outcome.rows("via").remove(0);
        via.split("branch=").nth(1).unwrap().split(';').next().unwrap().to_owned()
    };
    let ok = invite.text().replacen("INVITE sip:b@example.net SIP/2.0", "SIP/2.0 200 OK", 1);
    for (generation, (step, keys)) in steps.into_iter().enumerate() {
        path.tables = tables_with(generation as u64 + 2, keys).into();
        let strange = path.dispatcher.router().strange_tokens;
        let is_over = step == "alone";
        let again = path.receive(to_bob("INVITE", "call", "", "").as_bytes(), CLIENT);
        assert_eq!(our_branch(&again), our_branch(&invite), "a retransmission is one ({step})");
        assert_eq!(target(&again), backend);
        assert_eq!(again.rows("record-route")[0] == route, step == "announced", "what signs is not what announces");
        assert_eq!(target(&path.receive(in_dialog("BYE", "call", &route).as_bytes(), CLIENT)), backend);
        assert_eq!(path.dispatcher.router().strange_tokens - strange, u64::from(is_over), "{step}");
        let response = path.receive(ok.as_bytes(), &backend);
        let to_phone = request("OPTIONS", "other", "sip:a@192.168.1.5", "", &format!("Route: {flow}\r\n"));
        let down = path.receive(to_phone.as_bytes(), &backend);
        if is_over {
            assert_eq!(response.verdict, Verdict::Drop(DropReason::ResponseForged));
            assert_eq!(code(&down), 403);
        } else {
            assert_eq!(target(&response), CLIENT);
            assert_eq!(target(&down), CLIENT);
        }
    }
}

#[test]
fn a_backend_that_is_gone_ends_its_dialogs_and_nothing_else() {
    let mut path = Path::new(tables());
    let (backend, route) = begin(&mut path, "call");
    let left: Vec<&str> = BACKENDS.into_iter().filter(|name| *name != backend).collect();
    change(&mut path, &left);
    assert_eq!(code(&path.receive(in_dialog("BYE", "call", &route).as_bytes(), CLIENT)), 481);
    let ack = path.receive(in_dialog("ACK", "call", &route).as_bytes(), CLIENT);
    assert_eq!(ack.verdict, Verdict::Drop(DropReason::AckRefused));
    assert!(begin(&mut path, "next").0 != backend);
}

#[test]
fn requests_of_the_backend_go_down_the_flow_of_the_client() {
    let mut path = Path::new(tables());
    let (backend, route) = begin(&mut path, "call");
    // The Contact may be an address behind a NAT, or a name: the token knows better.
    for uri in ["sip:a@192.168.1.5:5060", "sip:a@phone.invalid", "sip:a@10.0.0.13"] {
        let bye = request("BYE", "call", uri, ";tag=1", &format!("Route: {route}\r\n"));
        let outcome = path.receive(bye.as_bytes(), &backend);
        let Verdict::Forward { to, from, .. } = outcome.verdict else { panic!("{:?}", outcome.verdict) };
        assert_eq!((to, from), (address(CLIENT), Sender::Listener { index: 0, local: None }));
        assert!(outcome.rows("route").is_empty() && outcome.rows("record-route").is_empty());
    }
    let forged = route.replace("vh=0", "vh=1");
    let bye = in_dialog("BYE", "call", &forged);
    assert_eq!(code(&path.receive(bye.as_bytes(), &backend)), 403);
    // The listener that the token names is no more.
    let mut other = settings();
    other.listeners.clear();
    path.tables = Tables::new(2, other, vec![pool(&BACKENDS)], None).into();
    assert_eq!(code(&path.receive(in_dialog("BYE", "call", &route).as_bytes(), &backend)), 430);
}

#[test]
fn a_call_that_a_backend_places_is_recorded_too() {
    let mut path = Path::new(tables());
    let invite = request("INVITE", "call", "sip:b@203.0.113.9", "", "");
    let outcome = path.receive(invite.as_bytes(), BACKENDS[1]);
    assert_eq!(target(&outcome), "203.0.113.9:5060");
    let route = outcome.rows("record-route").remove(0);
    let bye = path.receive(in_dialog("BYE", "call", &route).as_bytes(), "203.0.113.9:5060");
    assert_eq!(target(&bye), BACKENDS[1]);
    let bye = path.receive(in_dialog("BYE", "call", &route).as_bytes(), BACKENDS[1]);
    assert_eq!(target(&bye), "203.0.113.9:5060");
}

#[test]
fn what_begins_no_dialog_is_not_recorded() {
    let mut path = Path::new(tables());
    let recorded = |path: &mut Path, message: &str, source: &str| {
        path.receive(message.as_bytes(), source).rows("record-route").len()
    };
    for method in ["INVITE", "SUBSCRIBE", "REFER", "FOO"] {
        assert_eq!(recorded(&mut path, &to_bob(method, "call", "", ""), CLIENT), 1, "{method}");
        assert_eq!(recorded(&mut path, &to_bob(method, "call", ";tag=2", ""), CLIENT), 0, "{method}");
    }
    for method in ["REGISTER", "MESSAGE", "OPTIONS", "BYE", "ACK", "CANCEL", "PUBLISH", "NOTIFY"] {
        assert_eq!(recorded(&mut path, &to_bob(method, "call", "", ""), CLIENT), 0, "{method}");
    }
    // From one backend to another: they reach each other.
    let between = request("INVITE", "call", &format!("sip:{}", BACKENDS[0]), "", "");
    assert_eq!(recorded(&mut path, &between, BACKENDS[1]), 0);
    // RFC 6665 4.3: the NOTIFY of a dialog that we are in.
    let (_, route) = begin(&mut path, "call");
    assert_eq!(recorded(&mut path, &in_dialog("NOTIFY", "call", &route), BACKENDS[0]), 1);
    let mut without = settings();
    without.policy.record_route = false;
    let mut without = Path::new(Tables::new(1, without, vec![pool(&BACKENDS)], None));
    assert_eq!(recorded(&mut without, &to_bob("INVITE", "call", "", ""), CLIENT), 0);
}

/// An IPv4 client and IPv6 backends, with a listener of each family.
fn two_families() -> Path {
    let mut settings = settings();
    let v6 = "[2001:db8::100]:5060";
    settings.listeners.push(Listener {
        name: "six".into(),
        transport: Transport::Udp,
        address: address(v6),
        host: address(v6).ip(),
        side: Side::Outside,
        advertised: Some(v6.into()),
        proxies: Vec::new(),
    });
    settings.own.push(OwnName::Address(address(v6)));
    Path::new(Tables::new(1, settings, vec![pool(&["[2001:db8::11]:5060", "[2001:db8::12]:5060"])], None))
}

#[test]
fn between_address_families_there_are_two_and_both_are_taken_out() {
    let mut path = two_families();
    let invite = path.receive(to_bob("INVITE", "call", "", "").as_bytes(), CLIENT);
    let backend = target(&invite);
    let recorded = invite.rows("record-route");
    assert_eq!(recorded.len(), 2, "{}", invite.text());
    assert!(recorded[0].contains("[2001:db8::100]:5060") && recorded[1].contains(LB), "{recorded:?}");
    // Of a call from there, the client's side is on top.
    let placed = request("INVITE", "placed", "sip:b@203.0.113.9", "", "");
    let placed = path.receive(placed.as_bytes(), &backend).rows("record-route");
    assert!(placed[0].contains(LB) && placed[1].contains("[2001:db8::100]:5060"), "{placed:?}");
    // The callee's route set is in that order, the caller's in the other.
    let bye = in_dialog("BYE", "call", &format!("{}, {}", recorded[0], recorded[1]));
    let outcome = path
        .receive_on(bye.as_bytes(), Arrival { from: address(&backend), listener: Some(1), local: None, stream: None });
    assert_eq!(target(&outcome), CLIENT);
    assert!(outcome.rows("route").is_empty());
    let bye =
        in_dialog("BYE", "call", &format!("{}\r\nRoute: {}, <sip:p@[2001:db8::77];lr>", recorded[1], recorded[0]));
    let outcome = path.receive(bye.as_bytes(), CLIENT);
    assert_eq!((target(&outcome), outcome.rows("route")), (backend, vec!["<sip:p@[2001:db8::77];lr>".to_owned()]));
}

#[test]
fn an_inside_listener_is_what_backends_come_back_to() {
    let mut settings = settings();
    let inner = "10.0.0.1:5080";
    let side = Side::Inside;
    settings.listeners.push(Listener {
        name: "in".into(),
        transport: Transport::Udp,
        address: address(inner),
        host: address(inner).ip(),
        side,
        advertised: Some(inner.into()),
        proxies: Vec::new(),
    });
    settings.own.push(OwnName::Address(address(inner)));
    let mut path = Path::new(Tables::new(1, settings, vec![pool(&BACKENDS)], None));
    let invite = path.receive(to_bob("INVITE", "call", "", "").as_bytes(), CLIENT);
    let recorded = invite.rows("record-route");
    assert!(recorded.len() == 2 && recorded[0].contains(inner) && recorded[1].contains(LB), "{recorded:?}");
    let bye = in_dialog("BYE", "call", &recorded.join(", "));
    let outcome = path.receive_on(
        bye.as_bytes(),
        Arrival { from: address(BACKENDS[0]), listener: Some(1), local: None, stream: None },
    );
    let Verdict::Forward { to, from, .. } = outcome.verdict else { panic!("{:?}", outcome.verdict) };
    assert_eq!((to, from), (address(CLIENT), Sender::Listener { index: 0, local: None }));
}

/// A data path with these listeners, all of one address, and backends that are reached by `transport`.
fn with_listeners(listeners: &[(Transport, u16, Side)], transport: Transport, is_advertised: bool) -> Path {
    let mut settings = settings();
    settings.policy.schemes.push(Scheme::Sips);
    settings.policy.path = PathPolicy::Always;
    let advertised = |port: u16| is_advertised.then(|| format!("lb.example.net:{port}").into());
    let listener = |&(transport, port, side): &(Transport, u16, Side)| Listener {
        name: "listener".into(),
        transport,
        address: (address(LB).ip(), port).into(),
        host: address(LB).ip(),
        side,
        advertised: advertised(port),
        proxies: Vec::new(),
    };
    settings.listeners = listeners.iter().map(listener).collect();
    let mut pool = pool(&BACKENDS);
    for backend in &mut pool.backends {
        backend.via_host = "10.0.0.1".into();
        backend.reach.transport = transport;
    }
    Path::new(Tables::new(1, settings, vec![pool], None))
}

#[test]
fn record_route_and_path_name_the_listener_of_each_side_and_its_transport() {
    use Side::{Inside, Outside};
    use Transport::{Tcp, Tls, Udp, Ws, Wss};
    let all = [
        (Udp, 5060, Outside),
        (Udp, 5070, Outside),
        (Tcp, 5060, Outside),
        (Tls, 5061, Outside),
        (Ws, 80, Outside),
        (Wss, 443, Outside),
    ];
    let with_inside = [&all[..], &[(Tcp, 5080, Inside), (Udp, 5081, Inside)]].concat();
    let few = [all[0], with_inside[6]];
    // Listener of the client, transport of the backends, scheme: the value for the backend's side, if it is another, and the client's.
    for (listeners, listener, transport, scheme, expected) in [
        (&all[..], 0, Udp, "sip", &["sip:lb.example.net:5060"][..]),
        (&all, 1, Udp, "sip", &["sip:lb.example.net:5070"]),
        (&all, 2, Udp, "sip", &["sip:lb.example.net:5060", "sip:lb.example.net:5060;transport=tcp"]),
        (&all, 0, Tcp, "sip", &["sip:lb.example.net:5060;transport=tcp", "sip:lb.example.net:5060"]),
        (&all, 3, Udp, "sip", &["sip:lb.example.net:5060", "sip:lb.example.net:5061;transport=tls"]),
        (&all, 3, Udp, "sips", &["sip:lb.example.net:5060", "sips:lb.example.net:5061"]),
        (&all, 2, Udp, "sips", &["sip:lb.example.net:5060", "sip:lb.example.net:5060;transport=tcp"]),
        (&all, 3, Tls, "sips", &["sips:lb.example.net:5061"]),
        (&all, 4, Udp, "sip", &["sip:lb.example.net:5060", "sip:lb.example.net:80;transport=ws"]),
        (&all, 5, Udp, "sip", &["sip:lb.example.net:5060", "sip:lb.example.net:443;transport=ws"]),
        (&with_inside, 0, Udp, "sip", &["sip:lb.example.net:5081", "sip:lb.example.net:5060"]),
        (
            &with_inside,
            2,
            Tcp,
            "sip",
            &["sip:lb.example.net:5080;transport=tcp", "sip:lb.example.net:5060;transport=tcp"],
        ),
        // One of their transport, wherever; then an inside one, then the client's.
        (&with_inside, 0, Tls, "sip", &["sip:lb.example.net:5061;transport=tls", "sip:lb.example.net:5060"]),
        (&few, 0, Tls, "sip", &["sip:lb.example.net:5080;transport=tcp", "sip:lb.example.net:5060"]),
        (&all[..2], 1, Tcp, "sip", &["sip:lb.example.net:5070"]),
    ] {
        let mut path = with_listeners(listeners, transport, true);
        let arrival = Arrival { from: address(CLIENT), listener: Some(listener), local: None, stream: None };
        let start = |value: &str| value.trim_start_matches('<').split(";lr;vh=").next().unwrap().to_owned();
        let invite = request("INVITE", "call", &format!("{scheme}:b@example.net"), "", "");
        let recorded: Vec<_> =
            path.receive_on(invite.as_bytes(), arrival).rows("record-route").iter().map(|one| start(one)).collect();
        assert_eq!(recorded, expected, "{listener} {transport} {scheme}");
        let register = path.receive_on(to_bob("REGISTER", "call", "", "").as_bytes(), arrival);
        assert_eq!(
            start(&register.rows("path")[0]),
            expected[0].replace("sips:lb.example.net:5061", "sip:lb.example.net:5061;transport=tls")
        );
    }
    // Where no name is configured: an address, towards the backend the one it knows.
    for (listener, expected) in
        [(0, &["192.0.2.100:5060"][..]), (2, &["10.0.0.1:5060", "192.0.2.100:5060;transport=tcp"])]
    {
        let mut path = with_listeners(&all, Udp, false);
        let arrival = Arrival { from: address(CLIENT), listener: Some(listener), local: None, stream: None };
        let recorded = path.receive_on(to_bob("INVITE", "call", "", "").as_bytes(), arrival).rows("record-route");
        assert!(
            recorded.iter().zip(expected).all(|(one, start)| one.starts_with(&format!("<sip:{start};lr;vh="))),
            "{recorded:?}"
        );
        assert_eq!(recorded.len(), expected.len());
    }
}

#[test]
fn a_strict_router_brings_the_token_in_the_request_uri() {
    let mut path = Path::new(tables());
    let (backend, route) = begin(&mut path, "call");
    // Its key leads elsewhere, and the token does not.
    let mut draining = pool(&BACKENDS);
    draining.backends.iter_mut().find(|one| *one.name == *backend).unwrap().is_up = false;
    path.tables = Tables::new(2, settings(), vec![draining], None).into();
    let ours = route.trim_matches(['<', '>']);
    let bye = request("BYE", "call", ours, ";tag=2", "Route: <sip:b@203.0.113.80:5070>\r\n");
    let outcome = path.receive(bye.as_bytes(), CLIENT);
    assert_eq!(target(&outcome), backend);
    assert!(outcome.text().starts_with("BYE sip:b@203.0.113.80:5070 SIP/2.0\r\n"), "{}", outcome.text());
    assert!(outcome.rows("route").is_empty());
}

#[test]
fn a_maddr_of_ours_before_a_strict_next_hop_is_no_reason_to_trip() {
    let mut path = Path::new(tables());
    let uri = "sip:bob@example.net:5070;maddr=192.0.2.100:5070;foo=bar";
    for (uri, route) in [
        ("sip:bob@example.net;maddr=192.0.2.100;foo=bar", "<sip:10.0.0.12>"),
        (uri, "<sip:10.0.0.12>"),
        ("sip:bob@example.net;maddr=192.0.2.100", "<sip:192.0.2.100;lr>, <sip:10.0.0.12>"),
    ] {
        let outcome =
            path.receive(request("INVITE", "call", uri, "", &format!("Route: {route}\r\n")).as_bytes(), CLIENT);
        assert_eq!(target(&outcome), "10.0.0.12:5060");
        assert!(outcome.text().starts_with("INVITE sip:10.0.0.12 SIP/2.0\r\n"), "{}", outcome.text());
        assert_eq!(outcome.rows("route").len(), 1);
    }
}

// The call memory.

/// A call of which the backend changes with the set: its INVITE, and the tables behind.
fn moved(path: &mut Path, more: &[&str]) -> (String, String) {
    let mut set = BACKENDS.to_vec();
    set.extend(more);
    let mut after = Path::new(tables_of(9, &set));
    for number in 0.. {
        let call = format!("moved-{number}");
        let (before, _) = begin(path, &call);
        if begin(&mut after, &call).0 != before {
            change(path, &set);
            return (call, before);
        }
    }
    unreachable!()
}

#[test]
fn what_belongs_to_an_open_invite_follows_it_when_the_table_changes() {
    let mut path = Path::new(tables());
    let (call, backend) = moved(&mut path, &["10.0.0.14:5060"]);
    for method in ["INVITE", "CANCEL", "ACK"] {
        let outcome = path.receive(to_bob(method, &call, "", "").as_bytes(), CLIENT);
        assert_eq!(target(&outcome), backend, "{method}");
    }
    assert_eq!(path.dispatcher.router().followed, 3);
    assert_eq!(path.dispatcher.router().evicted, 0);
    // Of another nothing is known, which is told as long as it may matter.
    let mut cancel = |now_ms| {
        path.now_ms = now_ms;
        path.receive(to_bob("CANCEL", "unknown", "", "").as_bytes(), CLIENT);
        path.dispatcher.router().unknown
    };
    assert_eq!([cancel(0), cancel(RINGING_MS - 1), cancel(RINGING_MS), cancel(RINGING_MS + 1)], [1, 2, 2, 2]);
}

#[test]
fn an_open_invite_of_a_dead_backend_goes_to_one_that_lives() {
    let mut path = Path::new(tables());
    let (backend, _) = begin(&mut path, "call");
    let set: Vec<String> =
        BACKENDS.iter().map(|name| if *name == backend { format!("!{name}") } else { (*name).to_owned() }).collect();
    let set: Vec<&str> = set.iter().map(String::as_str).collect();
    change(&mut path, &set);
    let next = begin(&mut path, "call").0;
    assert_ne!(next, backend);
    // It is back, but the call rings elsewhere.
    change(&mut path, &BACKENDS);
    assert_eq!(target(&path.receive(to_bob("CANCEL", "call", "", "").as_bytes(), CLIENT)), next);
    assert_eq!(begin(&mut path, "other").0, begin(&mut Path::new(tables()), "other").0);
}

#[test]
fn the_cancel_of_an_invite_with_replaces_follows_it_though_it_names_no_other_call() {
    let mut path = Path::new(tables());
    let (elsewhere, _) = begin(&mut path, "replaced");
    let own = (0..).map(|number| format!("own-{number}")).find(|call| begin(&mut path, call).0 != elsewhere).unwrap();
    for name in ["Replaces", "Join"] {
        let mut path = Path::new(tables());
        let rows = format!("{name}: replaced;to-tag=1;from-tag=2\r\n");
        let invite = path.receive(to_bob("INVITE", &own, "", &rows).as_bytes(), CLIENT);
        assert_eq!(target(&invite), elsewhere);
        let cancel = path.receive(to_bob("CANCEL", &own, "", "").as_bytes(), CLIENT);
        assert_eq!(target(&cancel), elsewhere, "{name}");
    }
}

/// Their responses may come to another shard than the one that forwarded them, and so may those of another node.
#[test]
fn what_is_answered_here_and_not_known_here_is_put_aside_for_who_knows_it() {
    let (mut one, mut other) = (Path::new(tables()), Path::new(tables()));
    other.dispatcher.router().collects_strays = true;
    let ok = |path: &mut Path, call: &str| {
        let invite = path.receive(to_bob("INVITE", call, "", "").as_bytes(), CLIENT).text();
        invite.replacen("INVITE sip:b@example.net SIP/2.0", "SIP/2.0 200 OK", 1)
    };
    let known = ok(&mut other, "known");
    assert!(other.receive(known.as_bytes(), BACKENDS[0]).is_forward());
    assert!(other.dispatcher.router().strays.is_empty());
    for number in 0..40 {
        let stray = ok(&mut one, &format!("{number}"));
        assert!(other.receive(stray.as_bytes(), BACKENDS[0]).is_forward());
        assert_eq!(other.dispatcher.router().strays.len(), BATCH.min(number + 1));
    }
}

#[test]
fn a_backend_with_a_limit_gets_no_more_invites_than_that_until_one_is_answered() {
    let mut limited = pool(&BACKENDS);
    limited.backends.iter_mut().for_each(|backend| backend.max_open = 5);
    let mut path = Path::new(Tables::new(1, settings(), vec![limited], None));
    let mut ringing: Vec<(String, String, Outcome)> = Vec::new();
    let mut refused = 0;
    for number in 0..40 {
        let call = format!("call-{number}");
        let invite = path.receive(to_bob("INVITE", &call, "", "").as_bytes(), CLIENT);
        match invite.verdict {
            Verdict::Forward { .. } => ringing.push((call, target(&invite), invite)),
            _ => refused += usize::from(code(&invite) == 503),
        }
    }
    assert_eq!((ringing.len(), refused), (15, 25));
    for backend in BACKENDS {
        assert_eq!(ringing.iter().filter(|(_, at, _)| at == backend).count(), 5);
    }
    // A retransmission is no further INVITE, and one that is answered makes room, be there blanks behind its CSeq.
    let (call, at, invite) = ringing.remove(0);
    assert_eq!(target(&path.receive(to_bob("INVITE", &call, "", "").as_bytes(), CLIENT)), at);
    let text = invite.text();
    let kept = text.split("\r\n").filter(|line| line.starts_with("Via") || line.starts_with("C"));
    let busy = format!(
        "SIP/2.0 486 Busy Here\r\n{}\r\nFrom: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>;tag=2\r\n\r\n",
        kept.collect::<Vec<_>>().join("\r\n").replace("1 INVITE", "1 INVITE ")
    );
    let arrival = Arrival { from: address(&at), listener: None, local: None, stream: None };
    assert!(path.receive_on(busy.as_bytes(), arrival).is_forward());
    let next = (0..200).filter(|number| {
        path.receive(to_bob("INVITE", &format!("next-{number}"), "", "").as_bytes(), CLIENT).is_forward()
    });
    assert_eq!(next.count(), 1);
}

/// Whoever hangs answers nothing, and no INVITE goes to who is full: the places have to become free by themselves.
#[test]
fn backends_that_are_all_full_take_calls_again_when_what_rings_there_has_rung_for_too_long() {
    for strategy in [Choice::Hash, Choice::Priority, Choice::Random, Choice::RoundRobin] {
        let mut limited = pool(&BACKENDS[..2]);
        limited.strategy = strategy;
        limited.backends.iter_mut().for_each(|backend| backend.max_open = 1);
        let mut path = Path::new(Tables::new(1, settings(), vec![limited], None));
        let mut invite = |now_ms, call: &str| {
            path.now_ms = now_ms;
            path.receive(to_bob("INVITE", call, "", "").as_bytes(), CLIENT)
        };
        assert!(invite(0, "first").is_forward() && invite(0, "second").is_forward());
        assert_eq!(code(&invite(RINGING_MS - 2_000, "third")), 503, "{strategy:?}");
        assert!(invite(RINGING_MS + 10_000, "fourth").is_forward(), "{strategy:?}");
    }
}

/// It may cross the final response on its way; its server is silent then (RFC 6026 7.1), or answers once more.
#[test]
fn an_invite_that_comes_again_behind_its_final_response_rings_no_more() {
    let mut limited = pool(&BACKENDS[..1]);
    limited.backends[0].max_open = 1;
    let mut path = Path::new(Tables::new(1, settings(), vec![limited], None));
    let invite = |path: &mut Path, call: &str| path.receive(to_bob("INVITE", call, "", "").as_bytes(), CLIENT);
    let busy =
        invite(&mut path, "first").text().replacen("INVITE sip:b@example.net SIP/2.0", "SIP/2.0 486 Busy Here", 1);
    let answer = |path: &mut Path| assert!(path.receive(busy.as_bytes(), BACKENDS[0]).is_forward());
    answer(&mut path);
    assert!(invite(&mut path, "second").is_forward());
    assert!(invite(&mut path, "first").is_forward());
    // The second rings, and this is not its answer.
    answer(&mut path);
    assert_eq!(code(&invite(&mut path, "third")), 503);
}

/// The responses to its CANCEL have its branch, and a 180 is not the last.
#[test]
fn only_a_final_response_to_the_invite_itself_ends_its_ringing() {
    let mut limited = pool(&BACKENDS[..1]);
    limited.backends[0].max_open = 1;
    let mut path = Path::new(Tables::new(1, settings(), vec![limited], None));
    let invite = path.receive(to_bob("INVITE", "first", "", "").as_bytes(), CLIENT).text();
    let cancel = path.receive(to_bob("CANCEL", "first", "", "").as_bytes(), CLIENT).text();
    for (sent, method, status) in [
        (&invite, "INVITE", "180 Ringing"),
        (&cancel, "CANCEL", "200 OK"),
        (&invite, "INVITE", "487 Request Terminated"),
    ] {
        assert_eq!(code(&path.receive(to_bob("INVITE", "next", "", "").as_bytes(), CLIENT)), 503, "before {status}");
        let response = sent.replacen(&format!("{method} sip:b@example.net SIP/2.0"), &format!("SIP/2.0 {status}"), 1);
        assert!(path.receive(response.as_bytes(), BACKENDS[0]).is_forward());
    }
    assert!(path.receive(to_bob("INVITE", "next", "", "").as_bytes(), CLIENT).is_forward());
}

/// One INVITE that is refused once its backend is known, here for a fold that shared connections are kept from, held a place for 180 s.
#[test]
fn an_invite_that_is_refused_after_all_takes_no_place_at_a_backend_with_a_limit() {
    let mut limited = pool(&BACKENDS[..1]);
    limited.backends[0].max_open = 1;
    limited.backends[0].reach.transport = Transport::Tcp;
    let mut path = Path::new(Tables::new(1, settings(), vec![limited], None));
    let folded = to_bob("INVITE", "folded", "", "").replace("To: ", "To:\r\n ");
    assert_eq!(code(&path.receive(folded.as_bytes(), CLIENT)), 400);
    assert!(path.receive(to_bob("INVITE", "next", "", "").as_bytes(), CLIENT).is_forward());
    assert_eq!(code(&path.receive(to_bob("INVITE", "third", "", "").as_bytes(), CLIENT)), 503);
}

/// What belongs to an INVITE that found its backend full goes where that went, whoever is full by then.
#[test]
fn retransmission_cancel_and_ack_of_a_diverted_invite_follow_it() {
    for strategy in [Choice::Hash, Choice::Priority, Choice::Random] {
        let mut limited = pool(&BACKENDS[..2]);
        limited.strategy = strategy;
        limited.backends.iter_mut().for_each(|backend| backend.max_open = 1);
        let mut path = Path::new(Tables::new(1, settings(), vec![limited], None));
        let to = |path: &mut Path, method: &str, call: &str| {
            target(&path.receive(to_bob(method, call, "", "").as_bytes(), CLIENT))
        };
        let first = to(&mut path, "INVITE", "first");
        // Whichever the table names, it goes to the one that is free.
        let second = to(&mut path, "INVITE", "second");
        assert_ne!(first, second);
        for (call, at) in [("second", &second), ("first", &first)] {
            for method in ["INVITE", "CANCEL", "ACK", "INVITE"] {
                assert_eq!(to(&mut path, method, call), *at, "{strategy:?}: {method} of the {call}");
            }
        }
        assert_eq!(code(&path.receive(to_bob("INVITE", "third", "", "").as_bytes(), CLIENT)), 503);
        assert_eq!(path.dispatcher.router().unknown, 0);
    }
}

/// A Route value may have to stand in the start line: nothing of it may be there that is not read.
#[test]
fn a_route_value_brings_nothing_into_the_start_line_but_a_uri() {
    let mut path = Path::new(tables());
    let own = "sip:192.0.2.100:5060;lr";
    let refused = |path: &mut Path, uri: &str, route: &str| {
        code(&path.receive(request("INVITE", "call", uri, "", &format!("Route: {route}\r\n")).as_bytes(), CLIENT))
    };
    let evil = "<sip:bob@example.net?x=1 SIP/2.0\r\n\tVia: SIP/2.0/UDP 203.0.113.66:9;branch=z9hG4bKevil\r\n\tX: >";
    assert_eq!(refused(&mut path, own, evil), 400);
    assert_eq!(refused(&mut path, own, "<sip:bob@example.net?subject=x>"), 400);
    assert_eq!(refused(&mut path, "sip:b@example.net", &format!("<sip:{}?a b>", BACKENDS[0])), 400);
    assert_eq!(refused(&mut path, own, "<http://x/y>"), 416);
    // What is in order still takes the place of our name.
    let outcome =
        path.receive(request("INVITE", "call", own, "", "Route: <sip:bob@example.net>\r\n").as_bytes(), CLIENT);
    assert!(outcome.text().starts_with("INVITE sip:bob@example.net SIP/2.0\r\n"), "{}", outcome.text());
}

#[test]
fn a_request_uri_with_a_user_is_the_callee_and_not_a_record_route_of_ours() {
    let mut path = Path::new(tables());
    let route = "Route: <sip:192.0.2.100:5060;lr>\r\n";
    let outcome = path.receive(request("INVITE", "call", "sip:bob@192.0.2.100:5060;lr", "", route).as_bytes(), CLIENT);
    assert!(outcome.text().starts_with("INVITE sip:bob@192.0.2.100:5060;lr SIP/2.0\r\n"), "{}", outcome.text());
    assert!(outcome.rows("route").is_empty());
}

/// Of a key that is not known any more, both values of a pair are taken out, as if they verified: the second would come back.
#[test]
fn both_values_of_a_pair_of_a_forgotten_key_are_taken_out() {
    let mut path = Path::new(tables());
    let token = "0".repeat(44);
    let pair = format!("<sip:192.0.2.100:5060;lr;vh={token}>, <sip:192.0.2.100:5060;lr;vh={token}>");
    let bye = path.receive(in_dialog("BYE", "call", &pair).as_bytes(), CLIENT);
    assert!(bye.is_forward() && bye.rows("route").is_empty(), "{}", bye.text());
}

/// A phone that asks for no `rport` gets its responses where its Via says, and so the requests of its dialogs and registrations.
#[test]
fn who_asks_for_no_rport_is_called_where_its_responses_go() {
    let mut path = Path::new(tables());
    let (source, listens) = ("192.168.0.9:40000", "192.168.0.9:5060");
    let plain = |text: String| text.replace(CLIENT, listens).replace(";rport", "");
    let invite = path.receive(plain(to_bob("INVITE", "call", "", "")).as_bytes(), source);
    let (backend, route) = (target(&invite), invite.rows("record-route").remove(0));
    assert_eq!(target(&path.receive(in_dialog("BYE", "call", &route).as_bytes(), &backend)), listens);
    let register = request("REGISTER", "register", "sip:example.net", "", SUPPORTED);
    let flow = path.receive(plain(register).as_bytes(), source).rows("path").remove(0);
    let called = request("INVITE", "in", "sip:a@192.168.0.9", "", &format!("Route: {flow}\r\n"));
    assert_eq!(target(&path.receive(called.as_bytes(), &backend)), listens);
    let out = request("INVITE", "out", "sip:b@example.net", "", &format!("Route: {flow}\r\n"));
    assert!(path.receive(plain(out).as_bytes(), source).is_forward());
}

/// A registration and the calls to it meet at one server, however their user is escaped (RFC 3261 10.3).
#[test]
fn an_escaped_user_has_the_server_of_the_same_user_in_plain() {
    for affinity in [Affinity::Aor, Affinity::RuriUser] {
        let mut path = Path::new(Tables::new(1, settings(), vec![PoolParts { affinity, ..pool(&BACKENDS) }], None));
        let mut target_of =
            |uri: &str| target(&path.receive(request("INVITE", "call", uri, "", "").as_bytes(), CLIENT));
        for number in 0..20 {
            let plain = target_of(&format!("sip:o'brien+{number}@example.net"));
            assert_eq!(target_of(&format!("sip:%6f%27brien%2B{number}@example.net")), plain, "{number}");
        }
    }
}

#[test]
fn a_call_that_a_backend_places_goes_to_the_maddr_that_stands_for_the_host() {
    let mut path = Path::new(tables());
    let mut call = |uri, from| path.receive(request("INVITE", "call", uri, "", "").as_bytes(), from);
    for uri in ["sip:b@example.com;maddr=203.0.113.9", "sip:b@203.0.113.77;x;maddr=203.0.113.9"] {
        assert_eq!(target(&call(uri, BACKENDS[0])), "203.0.113.9:5060", "{uri}");
        // Nobody outside chooses another next hop.
        assert!(BACKENDS.contains(&&target(&call(uri, CLIENT))[..]), "{uri}");
    }
    // Ours is as if it were not there.
    assert_eq!(target(&call("sip:b@203.0.113.9;maddr=192.0.2.100", BACKENDS[0])), "203.0.113.9:5060");
    for uri in ["sip:b@203.0.113.9;maddr=224.0.1.75", "sip:b@203.0.113.9;maddr=example.com", "sip:b@203.0.113.9;maddr"]
    {
        assert_eq!(code(&call(uri, BACKENDS[0])), 404, "{uri}");
    }
}

/// Over TLS nothing goes to an address that is no backend's, and `transport=tcp` is what carries the TLS that `sips:` asks for.
#[test]
fn a_backend_that_calls_by_sips_is_not_carried_in_clear() {
    let mut settings = settings();
    settings.policy.schemes.push(Scheme::Sips);
    settings.listeners.push(Listener {
        name: "tcp".into(),
        transport: Transport::Tcp,
        ..settings.listeners[0].clone()
    });
    let mut path = Path::new(Tables::new(1, settings, vec![pool(&BACKENDS)], None));
    let mut call = |uri| path.receive(request("INVITE", "call", uri, "", "").as_bytes(), BACKENDS[0]);
    assert!(call("sip:b@203.0.113.9;transport=tcp").is_forward());
    for uri in ["sips:b@203.0.113.9", "sips:b@203.0.113.9;transport=tcp", "sips:b@203.0.113.9:5060;transport=TCP"] {
        assert_eq!(code(&call(uri)), 404, "{uri}");
    }
}

/// A gateway of ours, say: its ACK and BYE came back to itself, for a token leads who is inside to the client, and here it is that.
#[test]
fn the_dialog_of_an_inside_host_that_called_a_backend_goes_both_ways() {
    let inside = vec![Network { address: "10.0.0.0".parse().unwrap(), prefix: 8 }];
    let mut path = Path::new(Tables::new(1, Settings { inside, ..settings() }, vec![pool(&BACKENDS)], None));
    let (gateway, uri) = ("10.0.0.99:5060", format!("sip:b@{}", BACKENDS[0]));
    let invite = path.receive(request("INVITE", "call", &uri, "", "").replace(CLIENT, gateway).as_bytes(), gateway);
    let route = format!("Route: {}\r\n", invite.rows("record-route").remove(0));
    for method in ["ACK", "BYE"] {
        for uri in [&uri[..], "sip:b@phone.invalid"] {
            let by_gateway = request(method, "call", uri, ";tag=2", &route);
            assert_eq!(target(&path.receive(by_gateway.as_bytes(), gateway)), BACKENDS[0], "{method} {uri}");
        }
        let by_backend = request(method, "call", "sip:a@phone.invalid", ";tag=1", &route);
        assert_eq!(target(&path.receive(by_backend.as_bytes(), BACKENDS[0])), gateway);
        // To anybody else inside, a server that is not in the pool, say, the client is the gateway.
        assert_eq!(target(&path.receive(by_backend.as_bytes(), "10.0.0.98:5060")), gateway);
    }
    // While its backend does not serve, what else the request says counts, and no key.
    path.dispatcher.router().suspect(&path.tables.clone(), address(BACKENDS[0]));
    let to = |path: &mut Path, uri| path.receive(request("BYE", "call", uri, ";tag=2", &route).as_bytes(), gateway);
    assert_eq!(target(&to(&mut path, "sip:b@203.0.113.9")), "203.0.113.9:5060");
    assert_eq!(code(&to(&mut path, "sip:b@phone.invalid")), 404);
}

#[test]
fn a_dialog_of_a_suspect_goes_by_its_key_while_that_is_one() {
    let mut path = Path::new(tables());
    let (backend, route) = begin(&mut path, "call");
    path.dispatcher.router().suspect(&path.tables.clone(), address(&backend));
    assert_ne!(target(&path.receive(in_dialog("BYE", "call", &route).as_bytes(), CLIENT)), backend);
    // As do retransmission and CANCEL of its INVITE.
    assert_ne!(target(&path.receive(to_bob("CANCEL", "call", "", "").as_bytes(), CLIENT)), backend);
    assert_eq!(path.dispatcher.router().orphaned, 1);
    change(&mut path, &BACKENDS);
    assert_eq!(target(&path.receive(in_dialog("BYE", "call", &route).as_bytes(), CLIENT)), backend);
}

/// Over TCP a backend places its calls from a port of the kernel's choice: it is known by its host, if no other is there.
#[test]
fn a_call_that_a_backend_places_from_another_port_is_recorded() {
    let inside = vec![Network { address: "10.0.0.0".parse().unwrap(), prefix: 8 }];
    let in_pools = |pools| Path::new(Tables::new(1, Settings { inside: inside.clone(), ..settings() }, pools, None));
    let with = |backends: &[&str]| in_pools(vec![pool(backends)]);
    let place = |path: &mut Path| {
        let invite = request("INVITE", "call", "sip:a@192.168.0.2:5066", "", "");
        path.receive(invite.as_bytes(), "10.0.0.11:40001").rows("record-route")
    };
    let mut path = with(&["10.0.0.11:5060", "10.0.0.12:5060"]);
    let route = place(&mut path).remove(0);
    assert_eq!(target(&path.receive(in_dialog("BYE", "call", &route).as_bytes(), CLIENT)), "10.0.0.11:5060");
    assert!(place(&mut with(&["10.0.0.11:5060", "10.0.0.11:5070"])).is_empty(), "one of two");
    // One that stands in two pools is one.
    let mut registrars = PoolParts { name: "registrars".into(), ..pool(&BACKENDS) };
    registrars.backends.iter_mut().for_each(|backend| backend.name = format!("registrar {}", backend.name).into());
    let mut path = in_pools(vec![pool(&BACKENDS), registrars]);
    let route = place(&mut path).remove(0);
    assert_eq!(target(&path.receive(in_dialog("BYE", "call", &route).as_bytes(), CLIENT)), "10.0.0.11:5060");
}

/// As where an address moves between two nodes, and the tables of the other were made before it came.
#[test]
fn an_address_that_came_when_the_tables_were_made_is_ours_where_a_message_came_to_it() {
    let mut settings = settings();
    let edge = &mut settings.listeners[0];
    (edge.address, edge.advertised) = (address("0.0.0.0:5060"), None);
    settings.own.clear();
    let mut path = Path::new(Tables::new(1, settings, vec![pool(&BACKENDS)], None));
    let moved = address("198.51.100.9:5060").ip();
    let mut receive = |message: &str, from| {
        let arrival = Arrival { from: address(from), listener: Some(0), local: Some(moved), stream: None };
        path.receive_on(message.as_bytes(), arrival)
    };
    let invite = receive(&to_bob("INVITE", "call", "", ""), CLIENT);
    let (backend, route) = (target(&invite), invite.rows("record-route").remove(0));
    assert!(route.starts_with("<sip:198.51.100.9:5060;lr;vh="), "{route}");
    for (from, to) in [(CLIENT, &backend[..]), (&backend, CLIENT)] {
        let bye = receive(&in_dialog("BYE", "call", &route), from);
        assert_eq!((target(&bye), bye.rows("route").len()), (to.to_owned(), 0), "{}", bye.text());
    }
    let options = |uri| request("OPTIONS", "options", uri, "", "");
    assert_eq!(code(&receive(&options("sip:198.51.100.9"), CLIENT)), 200);
    assert_eq!(code(&receive(&options("sip:b@198.51.100.9"), &backend)), 404, "never to ourselves");
    assert!(receive(&options("sip:198.51.100.9:5070"), CLIENT).is_forward(), "another port is another's");
}

// Path.

const SUPPORTED: &str = "Supported: gruu, Path\r\n";

fn registered(path: &mut Path, rows: &str) -> Vec<String> {
    let register = request("REGISTER", "register", "sip:example.net", "", rows);
    path.receive(register.as_bytes(), CLIENT).rows("path")
}

#[test]
fn a_path_brings_requests_down_the_flow_of_the_registration() {
    let mut path = Path::new(tables());
    let value = registered(&mut path, SUPPORTED).remove(0);
    assert!(value.starts_with("<sip:192.0.2.100:5060;lr;vh=") && !value.contains(";ob"), "{value}");
    let notify = request("NOTIFY", "any", "sip:a@192.168.0.2", "", &format!("Route: {value}\r\n"));
    let outcome = path.receive(notify.as_bytes(), BACKENDS[2]);
    let Verdict::Forward { to, from, .. } = outcome.verdict else { panic!("{:?}", outcome.verdict) };
    assert_eq!((to, from), (address(CLIENT), Sender::Listener { index: 0, local: None }));
    // A call to it is recorded, so that the rest of its dialog takes the same way.
    let invite = request("INVITE", "any", "sip:a@192.168.0.2", "", &format!("Route: {value}\r\n"));
    let recorded = path.receive(invite.as_bytes(), BACKENDS[2]).rows("record-route");
    assert_eq!(target(&path.receive(in_dialog("BYE", "any", &recorded[0]).as_bytes(), CLIENT)), BACKENDS[2]);
    assert_eq!(target(&path.receive(in_dialog("BYE", "any", &recorded[0]).as_bytes(), BACKENDS[2])), CLIENT);
    // Tampered with.
    let other = notify.replace(";vh=8", ";vh=9");
    assert_eq!(code(&path.receive(other.as_bytes(), BACKENDS[2])), 403);
    assert_eq!(code(&path.receive(other.as_bytes(), CLIENT)), 403);
}

#[test]
fn a_path_leads_down_the_connection_of_the_registration_as_long_as_its_listener_is_one() {
    let mut path = with_listeners(
        &[(Transport::Udp, 5060, Side::Outside), (Transport::Tcp, 5060, Side::Outside)],
        Transport::Udp,
        true,
    );
    let stream = StreamId::new(0, 7, 1);
    let arrival = Arrival { from: address(CLIENT), listener: Some(1), local: None, stream };
    let value = path.receive_on(to_bob("REGISTER", "register", "", "").as_bytes(), arrival).rows("path").remove(0);
    let called = request("INVITE", "any", "sip:a@192.168.0.2", "", &format!("Route: {value}\r\n"));
    let Verdict::Forward { from, .. } = path.receive(called.as_bytes(), BACKENDS[2]).verdict else { panic!("{value}") };
    assert_eq!(from, Sender::Stream { id: stream.unwrap(), listener: Some(1) });
    let udp = [(Transport::Udp, 5060, Side::Outside), (Transport::Udp, 5070, Side::Outside)];
    assert_eq!(code(&with_listeners(&udp, Transport::Udp, true).receive(called.as_bytes(), BACKENDS[2])), 430);
}

#[test]
fn a_flow_is_its_clients_alone() {
    let mut path = Path::new(tables());
    let value = registered(&mut path, SUPPORTED).remove(0);
    let invite = request("INVITE", "any", "sip:b@example.net", "", &format!("Route: {value}\r\n"));
    let by_key = target(&path.receive(to_bob("INVITE", "any", "", "").as_bytes(), CLIENT));
    assert_eq!(target(&path.receive(invite.as_bytes(), CLIENT)), by_key, "on its way out");
    assert_eq!(code(&path.receive(invite.as_bytes(), "203.0.113.9:5060")), 403);
}

#[test]
fn who_gets_a_path_is_said_by_client_and_policy() {
    let mut path = Path::new(tables());
    assert!(registered(&mut path, "").is_empty());
    assert!(registered(&mut path, "Supported: pathetic, gruu\r\n").is_empty());
    assert_eq!(registered(&mut path, "k:\r\n path\r\n").len(), 1);
    let with_reg_id = format!("{SUPPORTED}Contact: <sip:a@192.168.0.2>;reg-id=1;+sip.instance=\"<urn:uuid:1>\"\r\n");
    assert!(registered(&mut path, &with_reg_id)[0].ends_with(";ob>"));
    let compact = format!("{SUPPORTED}m: <sip:a@192.168.0.2> ; Reg-ID = 1\r\n");
    assert!(registered(&mut path, &compact)[0].ends_with(";ob>"));
    let without = format!("{SUPPORTED}Contact: <sip:a@192.168.0.2>;expires=60;x=reg-id\r\n");
    assert!(!registered(&mut path, &without)[0].contains(";ob"));
    // Behind another proxy the flow is that proxy's, not the phone's.
    let behind = format!("{with_reg_id}Via: SIP/2.0/UDP 192.168.0.2;branch=z9hG4bK-2\r\n");
    assert!(!registered(&mut path, &behind)[0].contains(";ob"));
    let register = request("REGISTER", "register", "sip:example.net", "", &with_reg_id);
    let in_one_row = register.replacen(";rport\r\n", ";rport, SIP/2.0/UDP 192.168.0.2;branch=z9hG4bK-2\r\n", 1);
    assert!(!path.receive(in_one_row.as_bytes(), CLIENT).rows("path")[0].contains(";ob"));
    // What a backend registers elsewhere is no flow of a client's.
    let outward = request("REGISTER", "register", "sip:203.0.113.9", "", SUPPORTED);
    assert!(path.receive(outward.as_bytes(), BACKENDS[0]).rows("path").is_empty());
    for (policy, count) in [(PathPolicy::Always, 1), (PathPolicy::Off, 0)] {
        let mut settings = settings();
        settings.policy.path = policy;
        let mut path = Path::new(Tables::new(1, settings, vec![pool(&BACKENDS)], None));
        assert_eq!(registered(&mut path, if count == 1 { "" } else { SUPPORTED }).len(), count);
    }
}

/// `path = "always"` gives a Path to phones that do not say that they support it. Asterisk answers 420 to such a registration,
/// as is recommended to registrars, so we say it for them.
//= RFC 3327 section 5.3
//# The recommended
//# policy is for the registrar to reject the request with a 420 "Bad
//# Extension" response indicating the Path extension.
#[test]
fn who_gets_a_path_unasked_says_to_the_registrar_that_it_is_supported() {
    for (policy, says, expected) in [
        (PathPolicy::Always, "", &["path"][..]),
        (PathPolicy::Always, "Supported: replaces\r\n", &["path", "replaces"]),
        (PathPolicy::Always, "Supported: outbound, path\r\n", &["outbound, path"]),
        (PathPolicy::Supported, "Supported: replaces\r\n", &["replaces"]),
        (PathPolicy::Off, "", &[]),
    ] {
        let mut settings = settings();
        settings.policy.path = policy;
        let mut path = Path::new(Tables::new(1, settings, vec![pool(&BACKENDS)], None));
        let register = request("REGISTER", "register", "sip:example.net", "", says);
        let outcome = path.receive(register.as_bytes(), CLIENT);
        assert_eq!(outcome.rows("supported"), expected, "{policy:?}, {says}");
        // What a backend registers elsewhere is said by nobody but the backend.
        let outward = request("REGISTER", "register", "sip:203.0.113.9", "", says);
        assert!(path.receive(outward.as_bytes(), BACKENDS[0]).rows("supported").len() <= 1);
    }
}

// Forgers.

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(debug_assertions) { 20 } else { 1_000 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// A thousand tries each: a million in a release build.
    #[test]
    fn no_forged_token_sends_a_request_to_anybody(seed in any::<u64>()) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut path = Path::new(support::shared_tables());
        let (backend, route) = begin(&mut path, "call");
        let value = registered(&mut path, SUPPORTED).remove(0);
        for _ in 0..1_000 {
            let genuine = if random.bool() { &route } else { &value };
            let start = genuine.find("vh=").unwrap() + 3;
            let mut octets = genuine.clone().into_bytes();
            let place = random.usize(start..genuine.trim_end_matches('>').len());
            octets[place] = *b"0123456789abcdef".iter().cycle().nth(random.usize(..16)).unwrap();
            if octets == genuine.as_bytes() {
                continue;
            }
            let forged = String::from_utf8(octets).unwrap();
            let bye = in_dialog("BYE", "call", &forged);
            let outcome = path.receive(bye.as_bytes(), &backend);
            prop_assert!(!outcome.is_forward(), "{forged}: {:?}", outcome.verdict);
        }
    }
}

/// A short count of what tokens cost in octets: beyond this, fragments come sooner than they need.
#[test]
fn a_record_route_has_at_most_120_octets() {
    let mut path = Path::new(tables());
    let mut lengths = HashMap::new();
    let (_, route) = begin(&mut path, "call");
    lengths.insert("v4", "Record-Route: \r\n".len() + route.len());
    assert!(lengths.values().all(|len| *len <= 120), "{lengths:?}");
}
