//! What is asked of viahop itself, or of every proxy, is answered as a server answers (RFC 3261 8.2, 11.2, 16.3).

mod support;

use support::{CLIENT, LB, Outcome, Path, pool, settings, shared_tables};
use viahop::dataplane::tables::Tables;

fn request(method: &str, uri: &str, rows: &str) -> String {
    format!(
        "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {CLIENT};branch=z9hG4bK-1;rport\r\nMax-Forwards: 70\r\n\
         From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: 1@{CLIENT}\r\nCSeq: 1 {method}\r\n\
         {rows}Content-Length: 0\r\n\r\n"
    )
}

fn receive(method: &str, uri: &str, rows: &str) -> Outcome {
    Path::new(shared_tables()).receive(request(method, uri, rows).as_bytes(), CLIENT)
}

fn options_to_us(rows: &str) -> Outcome {
    receive("OPTIONS", &format!("sip:{LB}"), rows)
}

#[test]
fn a_420_lists_what_the_cluster_does_not_know_of_what_is_asked_of_proxies() {
    // The tables know sec-agree. What is asked of servers is the callee's to judge.
    let rows = "Proxy-Require: foo, Sec-Agree\r\nRequire: 100rel\r\nProxy-Require: ,\r\n bar ,baz\r\n";
    let outcome = receive("INVITE", "sip:b@example.net", rows);
    assert_eq!(outcome.verdict_code(), Some(420));
    assert_eq!(outcome.rows("Unsupported"), ["foo, bar, baz"]);
    assert!(receive("INVITE", "sip:b@example.net", "Proxy-Require: sec-agree\r\nRequire: 100rel\r\n").is_forward());
    assert!(receive("CANCEL", "sip:b@example.net", "Proxy-Require: foo\r\n").is_forward());
}

#[test]
fn an_options_to_us_that_requires_an_extension_is_answered_420() {
    assert_eq!(options_to_us("Supported: 100rel\r\n").verdict_code(), Some(200));
    let outcome = options_to_us("require : 100rel ,timer\r\nRequire: path\r\n");
    assert_eq!(outcome.verdict_code(), Some(420));
    assert_eq!(outcome.rows("Unsupported"), ["100rel, timer, path"]);
    assert!(receive("OPTIONS", "sip:b@example.net", "Require: 100rel\r\n").is_forward());
}

#[test]
fn an_options_to_us_while_we_drain_is_answered_503_whatever_it_requires() {
    let mut settings = settings();
    settings.draining = true;
    let mut path = Path::new(Tables::new(1, settings, vec![pool(&support::BACKENDS)], None));
    for rows in ["", "Require: 100rel\r\n"] {
        let outcome = path.receive(request("OPTIONS", &format!("sip:{LB}"), rows).as_bytes(), CLIENT);
        assert_eq!(outcome.verdict_code(), Some(503), "{rows}");
    }
}
