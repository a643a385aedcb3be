//! The next hop that a request names itself, by Route or Request-URI: whom it may name, and what is left of them when it goes on.

mod support;

use support::{BACKENDS, CLIENT, Outcome, Path, address, pool, settings, tables};
use viahop::dataplane::route::Arrival;
use viahop::dataplane::tables::*;
use viahop::dataplane::transport::Transport;
use viahop::dataplane::verdict::{Answer, DropReason, Sender, Verdict};

fn request(uri: &str, call: &str, tag: &str, routes: &[&str]) -> String {
    let rows: String = routes.iter().map(|route| format!("Route: {route}\r\n")).collect();
    format!(
        "INVITE {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {CLIENT};branch=z9hG4bK{call};rport\r\nMax-Forwards: 70\r\n\
         From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>{tag}\r\nCall-ID: {call}\r\nCSeq: 1 INVITE\r\n\
         {rows}Content-Length: 0\r\n\r\n"
    )
}

/// Where it goes, or the code it is answered with; and its Request-URI and Routes as they go on.
fn sent(path: &mut Path, uri: &str, routes: &[&str], from: &str) -> (String, String, Vec<String>) {
    seen(&path.receive(request(uri, "call", "", routes).as_bytes(), from))
}

fn seen(outcome: &Outcome) -> (String, String, Vec<String>) {
    let to = match outcome.verdict {
        Verdict::Forward { to, .. } => to.to_string(),
        Verdict::Reply { answer: Answer::Status(code), .. } => code.to_string(),
        other => format!("{other:?}"),
    };
    (to, outcome.text().split(' ').nth(1).unwrap_or_default().to_owned(), outcome.rows("route"))
}

const BOB: &str = "sip:bob@example.net";

/// A backend that is not the one of the key.
fn another(path: &mut Path) -> &'static str {
    let by_key = sent(path, BOB, &[], CLIENT).0;
    BACKENDS.into_iter().find(|name| *name != by_key).unwrap()
}

#[test]
fn a_route_to_a_stranger_is_refused_or_ignored_as_the_policy_says() {
    let stranger = "<sip:203.0.113.80;lr>";
    let refuse = || {
        let mut settings = settings();
        settings.policy.foreign_route = ForeignRoute::Refuse;
        Path::new(Tables::new(1, settings, vec![pool(&BACKENDS)], None))
    };
    for mut path in [Path::new(tables()), refuse()] {
        let ignores = path.tables.policy.foreign_route == ForeignRoute::Ignore;
        let by_key = sent(&mut path, BOB, &[], CLIENT).0;
        for (route, goes_on) in [
            (stranger, stranger),
            ("<sip:203.0.113.80>", "<sip:203.0.113.80>"),
            ("<sip:192.0.2.100;lr>, <sip:proxy.example.com;lr>", "<sip:proxy.example.com;lr>"),
        ] {
            let (to, uri, routes) = sent(&mut path, BOB, &[route], CLIENT);
            if ignores {
                assert_eq!((&to, &uri[..], &routes[..]), (&by_key, BOB, &[goes_on.to_owned()][..]));
            } else {
                assert_eq!(to, "403", "{route}");
            }
        }
        // A backend may stand there, and behind a token of ours anybody.
        let named = another(&mut path);
        assert_eq!(sent(&mut path, BOB, &[&format!("<sip:{named};lr>")], CLIENT).0, named);
        let recorded = path.receive(request(BOB, "call", "", &[]).as_bytes(), CLIENT).rows("record-route").remove(0);
        let bye = request(BOB, "call", ";tag=2", &[&recorded, stranger]);
        assert_eq!(seen(&path.receive(bye.as_bytes(), CLIENT)), (by_key.clone(), BOB.into(), vec![stranger.into()]));
        // Also where its backend is dead, and another takes the request.
        let mut parts = pool(&BACKENDS);
        let dead = parts.backends.iter_mut().find(|backend| *backend.name == *by_key).unwrap();
        (dead.is_up, dead.serves) = (false, Serves::Named);
        let mut settings = settings();
        settings.policy.foreign_route = path.tables.policy.foreign_route;
        path.tables = Tables::new(2, settings, vec![parts], None).into();
        let (to, ..) = seen(&path.receive(bye.as_bytes(), CLIENT));
        assert!(BACKENDS.contains(&&*to) && to != by_key, "{to}");
    }
}

#[test]
fn a_strict_next_hop_moves_into_the_request_uri_which_goes_to_the_end_of_route() {
    let mut path = Path::new(tables());
    let named = another(&mut path);
    let strict = format!("sip:{named}");
    let routes = [&*format!("<sip:192.0.2.100;lr>, <{strict}>, <sip:one@example.com>"), "<sip:two@example.com>"];
    let kept = vec!["<sip:one@example.com>".into(), "<sip:two@example.com>, <sip:bob@example.net>".into()];
    assert_eq!(sent(&mut path, BOB, &routes, CLIENT), (named.into(), strict, kept));
    // Behind a token it may be anybody.
    let recorded = path.receive(request(BOB, "call", "", &[]).as_bytes(), CLIENT).rows("record-route").remove(0);
    let bye = request(BOB, "call", ";tag=2", &[&recorded, "<sip:203.0.113.80>"]);
    let (_, uri, routes) = seen(&path.receive(bye.as_bytes(), CLIENT));
    assert_eq!((&*uri, &routes[..]), ("sip:203.0.113.80", &["<sip:bob@example.net>".to_owned()][..]));
}

#[test]
fn only_a_loose_uri_of_ours_is_what_a_strict_router_upstream_puts_there() {
    let mut path = Path::new(tables());
    let named = another(&mut path);
    let last = format!("<sip:bob@{named}>");
    let uri = format!("sip:bob@{named}");
    assert_eq!(sent(&mut path, "sip:192.0.2.100;lr", &[&last], CLIENT), (named.into(), uri.clone(), vec![]));
    let last = format!("<{uri};lr>");
    for uri in ["sip:192.0.2.100", "sip:192.0.2.101;lr", "sip:example.net;lr", "tel:+49;lr"] {
        let (to, kept, routes) = sent(&mut path, uri, &[&last], CLIENT);
        assert_eq!((&*to, &*kept, &routes[..]), (named, uri, &[last.clone()][..]), "{uri}");
    }
}

/// Two values of ours that are no pair are those of a call that goes through us twice.
#[test]
fn of_values_of_ours_no_more_are_taken_out_than_are_for_this_time() {
    let mut path = Path::new(tables());
    let (one, two, three) = ("<sip:192.0.2.100;lr>", "<sip:lb.example.net;lr>", "<sip:LB.example.net:5060;lr>");
    assert_eq!(sent(&mut path, BOB, &[one, two, three], CLIENT).2, [three]);
    let recorded = path.receive(request(BOB, "call", "", &[]).as_bytes(), CLIENT).rows("record-route").remove(0);
    let bye = request(BOB, "call", ";tag=2", &[&recorded, &recorded]);
    assert_eq!(seen(&path.receive(bye.as_bytes(), CLIENT)).2, [recorded]);
}

#[test]
fn a_route_of_more_than_32_values_is_refused() {
    let mut path = Path::new(tables());
    let named = format!("<sip:{};lr>", another(&mut path));
    for (count, code) in [(32, None), (33, Some(400))] {
        let outcome = path.receive(request(BOB, "call", "", &vec![&*named; count]).as_bytes(), CLIENT);
        assert_eq!(outcome.verdict_code(), code);
    }
}

#[test]
fn from_inside_route_and_request_uri_are_obeyed_where_they_are_addresses() {
    let mut settings = settings();
    for transport in [Transport::Tcp, Transport::Tls, Transport::Ws, Transport::Wss] {
        settings.listeners.push(Listener { transport, ..settings.listeners[0].clone() });
    }
    let mut path = Path::new(Tables::new(1, settings, vec![pool(&["[2001:db8::11]:5060", BACKENDS[0]])], None));
    let there = "203.0.113.9:5070";
    let mut go = |uri: &str, routes: &[&str]| sent(&mut path, uri, routes, BACKENDS[0]).0;
    assert_eq!(go("sip:b@203.0.113.9:5070", &[]), there);
    assert_eq!(go(BOB, &["<sip:203.0.113.9:5070;lr>"]), there);
    assert_eq!(go("sip:b@[2001:db8::11]", &[]), "[2001:db8::11]:5060");
    for (uri, routes) in [
        (BOB, &[][..]),
        ("tel:+49", &[]),
        ("sip:b@203.0.113.9", &["<sip:proxy.example.com;lr>"]),
        // Ourselves, and nobody.
        ("sip:b@192.0.2.100", &[]),
        ("sip:b@0.0.0.0", &[]),
        ("sip:b@224.0.1.75", &[]),
        ("sip:b@255.255.255.255", &[]),
        ("sip:b@203.0.113.9:0", &[]),
        // A certificate is for a name, and nobody listens in a browser.
        ("sip:b@203.0.113.9;transport=tls", &[]),
        ("sip:b@203.0.113.9;transport=ws", &[]),
        ("sip:b@203.0.113.9;transport=wss", &[]),
        // No listener of that family.
        ("sip:b@[2001:db8::9]", &[]),
    ] {
        assert_eq!(go(uri, routes), "404", "{uri} {routes:?}");
    }
    // We never write a user part: whoever made up one means a flow. From outside it says nothing.
    let (plain, with_user) = ("<sip:192.0.2.100;lr>", "<sip:somebody@192.0.2.100;lr>");
    assert_eq!(go("sip:b@203.0.113.9:5070", &[plain]), there);
    assert_eq!(go("sip:b@203.0.113.9:5070", &[with_user]), "403");
    assert!(path.receive(request(BOB, "call", "", &[with_user]).as_bytes(), CLIENT).is_forward());
    let mut by = |uri: &str| match path.receive(request(uri, "call", "", &[]).as_bytes(), BACKENDS[0]).verdict {
        Verdict::Forward { from, .. } => from,
        other => panic!("{other:?}"),
    };
    assert_eq!(by("sip:b@203.0.113.9;transport=TCP"), Sender::Connect { listener: Some(1) });
    assert_eq!(by("sip:b@203.0.113.9;transport=udp"), Sender::Listener { index: 0, local: None });
}

/// Who is inside is also told by the listener; and a request leaves by the one it came to, if that faces outside and fits.
#[test]
fn what_comes_to_an_inside_listener_goes_out_by_one_that_faces_outside() {
    let mut settings = settings();
    let outside = settings.listeners[0].clone();
    let six = address("[2001:db8::100]:5060");
    settings.listeners = vec![
        Listener { side: Side::Inside, ..outside.clone() },
        Listener { address: six, host: six.ip(), ..outside.clone() },
        outside.clone(),
        outside,
    ];
    let mut path = Path::new(Tables::new(1, settings, vec![pool(&BACKENDS)], None));
    let mut way = |uri: &str, listener: u8, from: &str| {
        let arrival = Arrival { from: address(from), listener: Some(listener), local: None, stream: None };
        match path.receive_on(request(uri, "call", "", &[]).as_bytes(), arrival).verdict {
            Verdict::Forward { to, from: Sender::Listener { index, .. }, .. } => (to.to_string(), index),
            Verdict::Forward { to, .. } => (to.to_string(), u8::MAX),
            other => panic!("{other:?}"),
        }
    };
    let (uri, there) = ("sip:b@203.0.113.9", "203.0.113.9:5060".to_owned());
    assert_eq!(way(uri, 0, CLIENT), (there.clone(), 2));
    assert_eq!(way("sip:b@[2001:db8::9]", 0, CLIENT), ("[2001:db8::9]:5060".into(), 1));
    assert_eq!(way(uri, 3, BACKENDS[0]), (there.clone(), 3));
    assert_eq!(way(uri, 1, BACKENDS[0]), (there.clone(), 2));
    assert_eq!(way(uri, 2, CLIENT).1, u8::MAX);
}

/// RFC 3261 16.4: as if it, a transport and a port that is not the default had not been there.
#[test]
fn a_maddr_of_ours_is_taken_out_with_port_and_transport() {
    let mut settings = settings();
    for port in [5061, 5070] {
        settings.own.push(OwnName::Address(format!("192.0.2.100:{port}").parse().unwrap()));
    }
    let mut path = Path::new(Tables::new(1, settings, vec![pool(&BACKENDS)], None));
    let named = another(&mut path);
    let host = named.trim_end_matches(":5060");
    for (params, kept) in [
        (";maddr=192.0.2.100", ""),
        (":5060;x;maddr=lb.example.net;y", ":5060;x;y"),
        (":5070;transport=udp;x;maddr=192.0.2.100", ";x"),
        (";maddr=192.0.2.100;Transport=TLS", ""),
    ] {
        let expected = (named.to_owned(), format!("sip:b@{host}{kept}"), vec![]);
        assert_eq!(sent(&mut path, &format!("sip:b@{host}{params}"), &[], CLIENT), expected, "{params}");
    }
    let others = format!("sip:b@{host};transport=udp;maddr=192.0.2.77");
    assert_eq!(sent(&mut path, &others, &[], CLIENT).1, others);
}

#[test]
fn what_comes_from_nobody_goes_nowhere() {
    let mut path = Path::new(tables());
    for source in
        ["198.51.100.7:0", "0.0.0.0:5060", "224.0.1.75:5060", "255.255.255.255:5060", "[::]:5060", "[ff02::1]:5060"]
    {
        let outcome = path.receive(request(BOB, "call", "", &[]).as_bytes(), source);
        assert_eq!(outcome.verdict, Verdict::Drop(DropReason::BadSource), "{source}");
    }
}
