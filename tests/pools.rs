//! Which pool a request goes to, by rules, and which backend of it, by each strategy: in turn, by order, by hash, and past
//! those that are suspected or full.

mod support;

use support::{BACKENDS, CLIENT, Outcome, Path, address, pool, settings};
use viahop::dataplane::limits::MEMORY_MS;
use viahop::dataplane::route::Arrival;
use viahop::dataplane::sip::start_line::Method;
use viahop::dataplane::tables::*;
use viahop::dataplane::verdict::{Answer, Verdict};

fn request(method: &str, uri: &str, call: &str) -> String {
    format!(
        "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {CLIENT};branch=z9hG4bK{call};rport\r\nMax-Forwards: 70\r\n\
         From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: {call}\r\nCSeq: 1 {method}\r\n\
         Content-Length: 0\r\n\r\n"
    )
}

fn target(outcome: &Outcome) -> String {
    match outcome.verdict {
        Verdict::Forward { to, .. } => to.to_string(),
        Verdict::Reply { answer: Answer::Status(code), .. } => code.to_string(),
        other => format!("{other:?}"),
    }
}

fn send(path: &mut Path, method: &str, call: &str) -> String {
    target(&path.receive(request(method, "sip:b@example.com", call).as_bytes(), CLIENT))
}

/// Tables of one pool.
fn one_pool(strategy: Strategy, names: &[&str], max_open: u32) -> Path {
    let mut parts = PoolParts { strategy, ..pool(names) };
    parts.backends.iter_mut().for_each(|backend| backend.max_open = max_open);
    Path::new(Tables::new(1, settings(), vec![parts], None))
}

#[test]
fn a_request_goes_to_the_pool_of_the_first_rule_of_which_all_conditions_hold() {
    let pools = ["10.0.1.1:5060", "10.0.2.1:5060", "10.0.3.1:5060", "10.0.4.1:5060"];
    let rule = |pool| Rule { name: "rule".into(), methods: None, domains: None, listeners: None, pool };
    let mut settings = settings();
    settings.listeners.push(Listener { name: "second".into(), ..settings.listeners[0].clone() });
    settings.rules = vec![
        Rule { methods: Some(vec![Method::Register, Method::Other]), ..rule(1) },
        Rule { domains: Some(vec!["*.example.net".into(), "example.org".into()]), ..rule(2) },
        Rule {
            methods: Some(vec![Method::Invite]),
            domains: Some(vec!["example.com".into()]),
            listeners: Some(vec![1]),
            ..rule(3)
        },
    ];
    let parts = pools.map(|name| PoolParts { name: name.into(), ..pool(&[name]) });
    let mut path = Path::new(Tables::new(1, settings, parts.into(), None));
    for (method, uri, listener, expected) in [
        ("REGISTER", "sip:example.org", 0, 1),
        ("register", "sip:example.org", 0, 1),
        ("INVITE", "sip:b@example.org", 0, 2),
        ("INVITE", "sip:b@EXAMPLE.Org:5070", 0, 2),
        ("INVITE", "sip:b@x.example.org", 0, 0),
        ("INVITE", "sip:b@x.y.Example.NET", 0, 2),
        ("INVITE", "sip:b@example.net", 0, 0),
        ("INVITE", "sip:b@.example.net", 0, 0),
        ("INVITE", "sip:b@badexample.net", 0, 0),
        ("INVITE", "sip:b@net", 0, 0),
        ("INVITE", "tel:+49", 0, 0),
        ("INVITE", "sip:b@example.com", 1, 3),
        ("INVITE", "sip:b@example.com", 0, 0),
        ("MESSAGE", "sip:b@example.com", 1, 0),
        ("INVITE", "sip:b@other.com", 1, 0),
    ] {
        let arrival = Arrival { from: address(CLIENT), listener: Some(listener), local: None, stream: None };
        let outcome = path.receive_on(request(method, uri, "call").as_bytes(), arrival);
        assert_eq!(target(&outcome), pools[expected], "{method} {uri} at listener {listener}");
    }
}

#[test]
fn round_robin_takes_turns_and_a_key_keeps_its_backend_until_it_is_silent_for_32_seconds() {
    let mut path = one_pool(Strategy::RoundRobin, &BACKENDS, 0);
    let turns: Vec<String> = (0..6).map(|call| send(&mut path, "INVITE", &format!("{call}"))).collect();
    assert_eq!(turns, [BACKENDS, BACKENDS].concat());
    // Each message of a call begins the time anew, and takes nobody's turn.
    for now_ms in [MEMORY_MS - 2_000, 2 * MEMORY_MS - 4_000, 3 * MEMORY_MS - 6_000] {
        path.now_ms = now_ms;
        assert_eq!(send(&mut path, "BYE", "1"), BACKENDS[1]);
    }
    assert_eq!(send(&mut path, "INVITE", "next"), BACKENDS[0]);
    path.now_ms += MEMORY_MS + 2_000;
    assert_eq!(send(&mut path, "INVITE", "1"), BACKENDS[1]);
    path.now_ms += MEMORY_MS + 2_000;
    assert_eq!(send(&mut path, "INVITE", "1"), BACKENDS[2]);
}

/// Two pools that take turns: requests that register go to one, all others to the other.
fn two_in_turn(affinity: Affinity) -> Path {
    let names = [&BACKENDS, &["10.0.1.1:5060", "10.0.1.2:5060", "10.0.1.3:5060"]];
    let parts =
        names.map(|names| PoolParts { name: names[0].into(), strategy: Strategy::RoundRobin, affinity, ..pool(names) });
    let mut settings = settings();
    let methods = Some(vec![Method::Register]);
    settings.rules = vec![Rule { name: "registrars".into(), methods, domains: None, listeners: None, pool: 1 }];
    Path::new(Tables::new(1, settings, parts.into(), None))
}

/// A user has a place in each: at a registrar, say, and at a proxy.
#[test]
fn pools_in_turn_do_not_forget_each_others_keys() {
    let mut path = two_in_turn(Affinity::From);
    let first = ["REGISTER", "INVITE"].map(|method| send(&mut path, method, "first"));
    for call in ["second", "third"] {
        assert_eq!(["REGISTER", "INVITE"].map(|method| send(&mut path, method, call)), first);
    }
}

/// Were the turn one for both, requests that alternate would all go to the same backends.
#[test]
fn each_pool_has_a_turn_of_its_own() {
    let mut path = two_in_turn(Affinity::CallId);
    for call in 0..6 {
        let went = ["REGISTER", "INVITE"].map(|method| send(&mut path, method, &format!("{call}-{method}")));
        assert_eq!(went, [format!("10.0.1.{}:5060", 1 + call % 3), BACKENDS[call % 3].to_owned()]);
    }
}

const STRATEGIES: [Strategy; 4] = [Strategy::Hash, Strategy::Priority, Strategy::Random, Strategy::RoundRobin];

/// How many of sixty calls each backend gets.
fn shares(path: &mut Path) -> [usize; 3] {
    let calls: Vec<String> = (0..60).map(|call| send(path, "INVITE", &format!("{call}"))).collect();
    BACKENDS.map(|name| calls.iter().filter(|to| *to == name).count())
}

#[test]
fn a_suspect_gets_nothing_until_the_next_tables_unless_there_is_nobody_else() {
    for strategy in STRATEGIES {
        let mut path = one_pool(strategy, &BACKENDS, 0);
        let before = shares(&mut path);
        assert!(before[0] > 5, "{strategy:?} {before:?}");
        let tables = path.tables.clone();
        path.dispatcher.router().suspect(&tables, address(BACKENDS[0]));
        path.dispatcher.router().suspect(&tables, address("203.0.113.9:5060"));
        let without = shares(&mut path);
        assert_eq!((without[0], without.iter().sum::<usize>()), (0, 60), "{strategy:?}");
        assert!(path.dispatcher.router().is_suspect(&tables, 0) && !path.dispatcher.router().is_suspect(&tables, 1));
        path.tables = Tables::new(2, settings(), vec![PoolParts { strategy, ..pool(&BACKENDS) }], None).into();
        // What rings elsewhere since stays there: other calls.
        path.now_ms = 200_000;
        assert!(shares(&mut path)[0] > 5, "{strategy:?}");
        let mut path = one_pool(strategy, &BACKENDS[..1], 0);
        let tables = path.tables.clone();
        path.dispatcher.router().suspect(&tables, address(BACKENDS[0]));
        assert_eq!(send(&mut path, "INVITE", "call"), BACKENDS[0], "{strategy:?}");
    }
}

#[test]
fn a_call_to_who_is_full_goes_to_another_and_is_counted_or_refused() {
    for strategy in STRATEGIES {
        let mut path = one_pool(strategy, &BACKENDS[..2], 10);
        let calls: Vec<String> = (0..30).map(|call| send(&mut path, "INVITE", &format!("{call}"))).collect();
        let count = |to: &str| calls.iter().filter(|call| *call == to).count();
        assert_eq!([count(BACKENDS[0]), count(BACKENDS[1]), count("503")], [10, 10, 10], "{strategy:?}");
        if matches!(strategy, Strategy::Hash | Strategy::Random) {
            assert!(path.dispatcher.router().full >= 10, "{strategy:?}");
        }
    }
}

#[test]
fn what_is_no_invite_or_within_a_dialog_takes_no_place_and_needs_none() {
    let mut path = one_pool(Strategy::Hash, &BACKENDS[..1], 1);
    let within = request("INVITE", "sip:b@example.com", "within").replace("b@example.net>", "b@example.net>;tag=2");
    for full in [false, true] {
        assert_eq!(send(&mut path, "MESSAGE", "message"), BACKENDS[0]);
        assert_eq!(target(&path.receive(within.as_bytes(), CLIENT)), BACKENDS[0]);
        let next = if full { "503" } else { BACKENDS[0] };
        assert_eq!(send(&mut path, "INVITE", &format!("full {full}").replace(' ', "-")), next);
    }
}

/// Else names that come and go with reloads would be remembered for ever.
#[test]
fn a_pool_that_is_gone_has_no_turn_any_more() {
    let tables = |generation: u64, name: &str| {
        let parts = PoolParts { name: name.into(), strategy: Strategy::RoundRobin, ..pool(&BACKENDS) };
        Tables::new(generation, settings(), vec![parts], None)
    };
    let mut path = Path::new(tables(1, "one"));
    assert_eq!([send(&mut path, "INVITE", "a"), send(&mut path, "INVITE", "b")], [BACKENDS[0], BACKENDS[1]]);
    path.tables = tables(2, "one").into();
    assert_eq!([send(&mut path, "INVITE", "c"), send(&mut path, "INVITE", "g")], [BACKENDS[2], BACKENDS[0]]);
    path.tables = tables(3, "another").into();
    assert_eq!(send(&mut path, "INVITE", "d"), BACKENDS[0]);
    path.tables = tables(4, "one").into();
    assert_eq!([send(&mut path, "INVITE", "e"), send(&mut path, "INVITE", "f")], [BACKENDS[0], BACKENDS[1]]);
}
