//! What a backend gets in each of its states: new keys, calls of its own, or nothing.

mod support;

use std::collections::BTreeMap;
use support::{BACKENDS, CLIENT, Outcome, Path, address, pool, settings};
use viahop::dataplane::tables::{PoolParts, Serves, Strategy, Tables};
use viahop::dataplane::verdict::{Answer, Verdict};

/// Tables in which the first backend is as `is_up`, `serves` and `weight` say.
fn tables(strategy: Strategy, is_up: bool, serves: Serves, weight: u32) -> Tables {
    let mut parts = PoolParts { strategy, ..pool(&BACKENDS) };
    let first = &mut parts.backends[0];
    (first.is_up, first.serves, first.weight) = (is_up, serves, weight);
    Tables::new(1, settings(), vec![parts], None)
}

fn request(method: &str, uri: &str, call: usize, more: &str) -> Vec<u8> {
    format!(
        "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP 198.51.100.7:5060;branch=z9hG4bK{call};rport\r\nMax-Forwards: 70\r\n\
         From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: states-{call}\r\nCSeq: 1 {method}\r\n\
         {more}Content-Length: 0\r\n\r\n"
    )
    .into_bytes()
}

/// How many of a thousand new calls each backend gets.
fn new_calls(path: &mut Path) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for call in 0..1000 {
        let outcome = path.receive(&request("INVITE", "sip:b@example.net", call, ""), CLIENT);
        *counts.entry(target(&outcome)).or_default() += 1;
    }
    counts
}

fn target(outcome: &Outcome) -> String {
    match outcome.verdict {
        Verdict::Forward { to, .. } => to.to_string(),
        Verdict::Reply { answer: Answer::Status(code), .. } => code.to_string(),
        other => format!("{other:?}"),
    }
}

const STRATEGIES: [Strategy; 4] = [Strategy::Hash, Strategy::Priority, Strategy::Random, Strategy::RoundRobin];

#[test]
fn a_backend_that_drains_is_in_maintenance_or_weighs_nothing_gets_no_new_call_by_any_strategy() {
    for strategy in STRATEGIES {
        for (is_up, serves, weight) in
            [(false, Serves::Calls, 100), (false, Serves::Nothing, 100), (true, Serves::Calls, 0)]
        {
            let counts = new_calls(&mut Path::new(tables(strategy, is_up, serves, weight)));
            assert!(!counts.contains_key(BACKENDS[0]), "{strategy:?} {serves:?} {weight}: {counts:?}");
            assert_eq!(counts.values().sum::<usize>(), 1000);
        }
    }
}

#[test]
fn a_dialog_stays_with_its_backend_while_that_drains_and_goes_by_its_key_when_it_does_not_serve() {
    let ready = || tables(Strategy::Hash, true, Serves::Calls, 100);
    let mut path = Path::new(ready());
    let call = (0..)
        .find(|&call| target(&path.receive(&request("INVITE", "sip:b@example.net", call, ""), CLIENT)) == BACKENDS[0]);
    let call = call.unwrap();
    let invite = path.receive(&request("INVITE", "sip:b@example.net", call, ""), CLIENT);
    let route = format!("Route: {}\r\n", invite.rows("record-route")[0]);
    let bye = request("BYE", "sip:b@10.1.1.1", call, &route);
    for (tables, stays) in [
        (ready(), true),
        (tables(Strategy::Hash, false, Serves::Calls, 100), true),
        (tables(Strategy::Hash, true, Serves::Calls, 0), true),
        (tables(Strategy::Hash, false, Serves::Named, 100), false),
        (tables(Strategy::Hash, false, Serves::Nothing, 100), false),
    ] {
        let outcome = Path::new(tables).receive(&bye, CLIENT);
        assert!(outcome.is_forward(), "{:?}", outcome.verdict);
        assert_eq!(target(&outcome) == BACKENDS[0], stays, "{:?}", outcome.verdict);
    }
}

#[test]
fn a_remembered_call_of_a_round_robin_pool_stays_with_its_backend_while_that_drains() {
    let mut path = Path::new(tables(Strategy::RoundRobin, true, Serves::Calls, 100));
    let homes: Vec<String> =
        (0..30).map(|call| target(&path.receive(&request("INVITE", "sip:b@example.net", call, ""), CLIENT))).collect();
    let again = |path: &mut Path| -> Vec<String> {
        (0..30).map(|call| target(&path.receive(&request("BYE", "sip:b@example.net", call, ""), CLIENT))).collect()
    };
    path.tables = tables(Strategy::RoundRobin, false, Serves::Calls, 100).into();
    assert_eq!(again(&mut path), homes);
    path.tables = tables(Strategy::RoundRobin, false, Serves::Nothing, 100).into();
    let moved = again(&mut path);
    assert!(moved.iter().all(|to| to != BACKENDS[0]), "{moved:?}");
    let is_elsewhere = |(old, new): (&String, &String)| old == BACKENDS[0] || old == new;
    assert!(homes.iter().zip(&moved).all(is_elsewhere), "calls of the others moved");
}

#[test]
fn a_backend_that_is_named_gets_its_request_unless_it_is_in_maintenance() {
    let uri = format!("sip:b@{}", BACKENDS[0]);
    let route = format!("Route: <sip:{};lr>\r\n", BACKENDS[0]);
    for request in [request("INVITE", &uri, 1, ""), request("INVITE", "sip:b@example.net", 1, &route)] {
        for (serves, expected) in [(Serves::Calls, BACKENDS[0]), (Serves::Named, BACKENDS[0]), (Serves::Nothing, "503")]
        {
            let mut path = Path::new(tables(Strategy::Hash, false, serves, 100));
            assert_eq!(target(&path.receive(&request, CLIENT)), expected, "{serves:?}");
        }
    }
}

/// A server that is emptied still ends its calls, and what it sends out is still from inside.
#[test]
fn what_a_backend_in_maintenance_sends_is_still_from_inside() {
    let tables = tables(Strategy::Hash, false, Serves::Nothing, 100);
    assert!(tables.is_inside(address(BACKENDS[0])));
}

#[test]
fn a_changed_weight_moves_slots_from_or_to_that_backend_only() {
    let before = tables(Strategy::Hash, true, Serves::Calls, 100);
    for weight in [0, 10, 200] {
        let after = tables(Strategy::Hash, true, Serves::Calls, weight);
        let slots = before.pools[0].table.slots().iter().zip(after.pools[0].table.slots());
        assert!(slots.clone().all(|(old, new)| old.owner == new.owner || old.owner == 0 || new.owner == 0));
        assert!(slots.clone().any(|(old, new)| old.owner != new.owner));
    }
}

/// Tables with a second pool of the same servers, which no rule leads to. `serves`: what the first server gets in each pool.
fn in_two_pools(serves: [Serves; 2]) -> Tables {
    let mut pools = [pool(&BACKENDS), PoolParts { name: "others".into(), ..pool(&BACKENDS) }];
    for (pool, serves) in pools.iter_mut().zip(serves) {
        (pool.backends[0].is_up, pool.backends[0].serves) = (serves == Serves::Calls, serves);
    }
    Tables::new(1, settings(), pools.to_vec(), None)
}

#[test]
fn a_server_of_two_pools_that_has_refused_is_passed_over_in_both() {
    let mut path = Path::new(in_two_pools([Serves::Calls; 2]));
    assert!(new_calls(&mut path).contains_key(BACKENDS[0]));
    path.dispatcher.router().suspect(&path.tables, address(BACKENDS[0]));
    let counts = new_calls(&mut path);
    assert!(!counts.contains_key(BACKENDS[0]), "{counts:?}");
}

#[test]
fn a_server_of_two_pools_keeps_its_dialogs_and_what_names_it_while_it_serves_in_one() {
    let mut path = Path::new(in_two_pools([Serves::Calls; 2]));
    let is_its = |call: &usize, path: &mut Path| {
        target(&path.receive(&request("INVITE", "sip:b@example.net", *call, ""), CLIENT)) == BACKENDS[0]
    };
    let call = (0..).find(|call| is_its(call, &mut path)).unwrap();
    let invite = path.receive(&request("INVITE", "sip:b@example.net", call, ""), CLIENT);
    let bye = request("BYE", "sip:b@10.1.1.1", call, &format!("Route: {}\r\n", invite.rows("record-route")[0]));
    let named = request("INVITE", &format!("sip:b@{}", BACKENDS[0]), call, "");
    for (serves, stays) in [
        ([Serves::Calls, Serves::Nothing], true),
        ([Serves::Nothing, Serves::Calls], true),
        ([Serves::Calls, Serves::Named], true),
        ([Serves::Named, Serves::Calls], true),
        ([Serves::Nothing, Serves::Nothing], false),
    ] {
        let mut path = Path::new(in_two_pools(serves));
        let to = [&bye, &named].map(|message| target(&path.receive(message, CLIENT)) == BACKENDS[0]);
        assert_eq!(to, [stays; 2], "{serves:?}");
    }
}
