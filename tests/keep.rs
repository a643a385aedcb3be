//! Keep-alives that a phone offers (RFC 6223): whose offer is taken up, and how.

mod support;

use std::sync::Arc;
use support::{BACKENDS, CLIENT, Path, address, pool, settings, shared_tables};
use viahop::dataplane::route::Arrival;
use viahop::dataplane::tables::{STREAM_KEEP_S, Tables};
use viahop::dataplane::transport::StreamId;

fn request(method: &str, to_tag: &str, params: &str) -> Vec<u8> {
    format!(
        "{method} sip:bob@example.net SIP/2.0\r\nVia: SIP/2.0/UDP {CLIENT};branch=z9hG4bKkeep{params}\r\nMax-Forwards: 70\r\n\
         From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>{to_tag}\r\nCall-ID: keep\r\nCSeq: 1 {method}\r\n\
         Content-Length: 0\r\n\r\n"
    )
    .into_bytes()
}

/// The parameters of the client's Via behind its branch, as the backend gets it.
fn passed_on(path: &mut Path, message: &[u8], stream: Option<StreamId>) -> String {
    let arrival = Arrival { from: address(CLIENT), listener: Some(0), local: None, stream };
    let outcome = path.receive_on(message, arrival);
    assert!(outcome.is_forward(), "{:?}", outcome.verdict);
    let via = outcome.rows("via").remove(1);
    via.split_once("z9hG4bKkeep").expect("the branch").1.to_owned()
}

#[test]
fn an_offer_for_a_registration_or_a_dialog_we_stay_in_is_taken_up() {
    let mut path = Path::new(shared_tables());
    for (method, to_tag, params, expected) in [
        ("REGISTER", "", ";keep", ";keep=30"),
        ("INVITE", "", ";keep", ";keep=30"),
        ("SUBSCRIBE", "", ";rport;keep", ";received=198.51.100.7;rport=5060;keep=30"),
        ("INVITE", "", ";keep;rport;x", ";keep=30;received=198.51.100.7;rport=5060;x"),
        ("INVITE", "", "; KEEP ;x=\"keep\"", ";keep=30 ;x=\"keep\""),
        // RFC 6223 4.3: an ACK has no response; what is no dialog has no time in which they could be sent.
        ("ACK", "", ";keep", ";keep"),
        ("OPTIONS", "", ";keep", ";keep"),
        // Within a dialog the beginning has decided, and we have no memory of it.
        ("INVITE", ";tag=2", ";keep", ";keep"),
        // Who writes a number does not ask for one, and what is not offered is not taken.
        ("REGISTER", "", ";keep=5", ";keep=5"),
        ("REGISTER", "", ";keeper", ";keeper"),
        ("REGISTER", "", "", ""),
    ] {
        assert_eq!(passed_on(&mut path, &request(method, to_tag, params), None), expected, "{method} {params}");
    }
}

#[test]
fn connections_are_kept_alive_less_often_and_as_often_as_they_have_to_be() {
    for stream_keep_s in [STREAM_KEEP_S, 24] {
        let mut settings = settings();
        settings.policy.stream_keep_s = stream_keep_s;
        let mut path = Path::new(Arc::new(Tables::new(1, settings, vec![pool(&BACKENDS)], None)));
        let passed_on = passed_on(&mut path, &request("REGISTER", "", ";keep"), StreamId::new(0, 7, 1));
        assert_eq!(passed_on, format!(";keep={stream_keep_s}"));
    }
}

#[test]
fn an_offer_for_a_dialog_that_we_leave_is_not_taken_up() {
    let mut settings = settings();
    settings.policy.record_route = false;
    let mut path = Path::new(Arc::new(Tables::new(1, settings, vec![pool(&BACKENDS)], None)));
    assert_eq!(passed_on(&mut path, &request("INVITE", "", ";keep"), None), ";keep");
    assert_eq!(passed_on(&mut path, &request("REGISTER", "", ";keep"), None), ";keep=30");
}

#[test]
fn the_response_brings_the_answer_home() {
    let mut path = Path::new(shared_tables());
    let sent = path.receive(&request("REGISTER", "", ";keep"), CLIENT);
    let rows: Vec<String> = sent.rows("via").iter().map(|via| format!("Via: {via}\r\n")).collect();
    let response = format!(
        "SIP/2.0 200 OK\r\n{}From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>;tag=2\r\nCall-ID: keep\r\n\
         CSeq: 1 REGISTER\r\nContent-Length: 0\r\n\r\n",
        rows.concat()
    );
    let home = path.receive(response.as_bytes(), BACKENDS[0]);
    assert!(home.is_forward(), "{:?}", home.verdict);
    assert_eq!(home.rows("via"), [format!("SIP/2.0/UDP {CLIENT};branch=z9hG4bKkeep;keep=30")]);
}
