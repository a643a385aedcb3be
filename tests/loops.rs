//! A loop is told from a spiral (RFC 3261 16.3 item 4): what comes back unchanged ends, what comes back changed goes on.

mod support;

use support::{BACKENDS, CLIENT, Outcome, Path, address, pool, settings, shared_tables};
use viahop::dataplane::route::Arrival;
use viahop::dataplane::tables::{Listener, Tables};
use viahop::dataplane::verdict::{Answer, Verdict};

/// Somebody outside through whom requests come back.
const CARRIER: &str = "203.0.113.9:5060";

fn invite(uri: &str, rows: &str) -> String {
    format!(
        "INVITE {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {CLIENT};branch=z9hG4bK-1;rport\r\nMax-Forwards: 70\r\n\
         From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: loop\r\nCSeq: 1 INVITE\r\n\
         {rows}Content-Length: 0\r\n\r\n"
    )
}

/// What we sent as the next hop would send it on: with a Via of its own on top, or in one row with ours.
fn onward(sent: &Outcome, in_one_row: bool) -> String {
    let separator = if in_one_row { ", " } else { "\r\nVia: " };
    sent.text().replacen("Via: ", &format!("Via: SIP/2.0/UDP {CARRIER};branch=z9hG4bK-2{separator}"), 1)
}

fn is_482(outcome: &Outcome) -> bool {
    matches!(outcome.verdict, Verdict::Reply { answer: Answer::Status(482), .. })
}

const BOB: &str = "sip:bob@example.net";

#[test]
fn what_comes_back_unchanged_is_answered_482() {
    let mut path = Path::new(shared_tables());
    for (rows, in_one_row) in [("", false), ("", true), ("Route: <sip:203.0.113.80;lr>\r\n", false)] {
        let sent = path.receive(invite(BOB, rows).as_bytes(), CLIENT);
        assert!(sent.is_forward() && sent.rows("via")[0].contains(";vl="), "{}", sent.text());
        let back = onward(&sent, in_one_row);
        assert!(is_482(&path.receive(back.as_bytes(), CARRIER)), "{back}");
        // In the place of a Via of ours, one that only looks like it says nothing.
        let forged = back.replacen(";vh=0", ";vh=1", 1);
        assert!(path.receive(forged.as_bytes(), CARRIER).is_forward(), "{forged}");
    }
}

/// Nobody put a Via above ours: it was sent to ourselves. One that only looks like ours says nothing.
#[test]
fn what_comes_back_as_we_sent_it_is_answered_482() {
    let mut path = Path::new(shared_tables());
    let sent = path.receive(invite(BOB, "").as_bytes(), CLIENT).text();
    assert!(is_482(&path.receive(sent.as_bytes(), CARRIER)));
    assert!(path.receive(sent.replacen(";vh=0", ";vh=1", 1).as_bytes(), CARRIER).is_forward());
}

#[test]
fn what_comes_back_with_another_request_uri_or_route_goes_on() {
    let mut path = Path::new(shared_tables());
    let sent = path.receive(invite(BOB, "Route: <sip:192.0.2.100;lr>, <sip:203.0.113.80;lr>\r\n").as_bytes(), CLIENT);
    assert_eq!(sent.rows("route"), ["<sip:203.0.113.80;lr>"], "a Route of ours is taken out: the next time it differs");
    assert!(path.receive(onward(&sent, false).as_bytes(), CARRIER).is_forward());
    // A call that is forwarded to somebody else of the same cluster.
    let sent = path.receive(invite(BOB, "").as_bytes(), CLIENT);
    let to_carol = onward(&sent, false).replacen(BOB, "sip:carol@example.net", 1);
    let again = path.receive(to_carol.as_bytes(), CARRIER);
    assert!(again.is_forward());
    // And on to a third, back to the first: that is a loop.
    assert!(is_482(&path.receive(onward(&again, false).replacen("sip:carol@", "sip:bob@", 1).as_bytes(), CARRIER)));
}

/// A loop is what would be sent on as before: by another listener, or to a backend that knows us otherwise, it may end elsewhere.
#[test]
fn what_comes_back_by_another_listener_or_goes_to_another_side_goes_on() {
    let with_via_host = |via_host: &str| {
        let mut settings = settings();
        settings.listeners.push(Listener { name: "second".into(), ..settings.listeners[0].clone() });
        let mut pool = pool(&BACKENDS);
        pool.backends.iter_mut().for_each(|backend| backend.via_host = via_host.into());
        Tables::new(1, settings, vec![pool], None)
    };
    let mut path = Path::new(with_via_host("192.0.2.100"));
    let back = onward(&path.receive(invite(BOB, "").as_bytes(), CLIENT), false);
    assert!(is_482(&path.receive(back.as_bytes(), CARRIER)));
    let second = Arrival { from: address(CARRIER), listener: Some(1), local: None, stream: None };
    assert!(path.receive_on(back.as_bytes(), second).is_forward());
    path.tables = with_via_host("192.0.2.101").into();
    assert!(path.receive(back.as_bytes(), CARRIER).is_forward());
}

#[test]
fn a_proxy_of_the_cluster_may_send_out_through_us_what_came_in_through_us() {
    let mut path = Path::new(shared_tables());
    let sent = path.receive(invite("sip:bob@203.0.113.9", "").as_bytes(), CLIENT);
    let outward = path.receive_on(
        onward(&sent, false).as_bytes(),
        Arrival { from: address(BACKENDS[0]), listener: Some(0), local: None, stream: None },
    );
    let Verdict::Forward { to, .. } = outward.verdict else { panic!("{:?}", outward.verdict) };
    assert_eq!(to, address(CARRIER));
}
