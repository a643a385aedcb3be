//! What we answer ourselves, to the octet, and what a response must be that passes.

mod support;

use support::{BACKENDS, CLIENT, Outcome, Path, address, pool, settings, shared_tables, tables};
use viahop::dataplane::dispatch::{Dispatcher, EgressPorts};
use viahop::dataplane::limits::PAYLOAD_MAX;
use viahop::dataplane::overload::Shedding;
use viahop::dataplane::route::Arrival;
use viahop::dataplane::scan::Scanner;
use viahop::dataplane::tables::{Listener, Settings, Tables};
use viahop::dataplane::transport::{StreamId, Transport};
use viahop::dataplane::validate::Refusal;
use viahop::dataplane::verdict::{DropReason, Sender, Verdict};

/// The text of an answer, the token in its To tag left out.
fn text(outcome: &Outcome) -> String {
    let text = outcome.text();
    match text.split_once(";tag=vh") {
        Some((before, behind)) => format!("{before};tag=vh{}", &behind[16..]),
        None => text,
    }
}

#[test]
fn an_answer_is_a_status_line_and_what_it_has_to_copy() {
    let mut path = Path::new(shared_tables());
    let request = |more: &str| {
        format!(
            "INVITE sip:b@example.net SIP/2.0\r\nMax-Forwards: 70\r\nCSeq: 7 INVITE\r\n\
             v: SIP/2.0/UDP phone.example.net:5062;branch=z9hG4bK-1;rport , SIP/2.0/TCP 192.0.2.77 \t\r\n\
             Via: SIP/2.0/UDP a\r\n ;x\r\nFrom : \"A\" <sip:a@example.net>;tag=1\r\nTo:<sip:b@example.net>\r\n\
             i:call@example.net\r\nSubject: neither this nor the body goes back\r\n{more}\r\nbody, which is long enough"
        )
    };
    let expected = |first: &str, to_tag: &str, more: &str| {
        format!(
            "SIP/2.0 {first}\r\n\
             Via: SIP/2.0/UDP phone.example.net:5062;branch=z9hG4bK-1;received=198.51.100.7;rport=5060 , SIP/2.0/TCP 192.0.2.77\r\n\
             Via: SIP/2.0/UDP a\r\n ;x\r\nFrom: \"A\" <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>{to_tag}\r\n\
             Call-ID: call@example.net\r\nCSeq: 7 INVITE\r\n{more}Content-Length: 0\r\n\r\n"
        )
    };
    let required = "Proxy-Require: foo, sec-agree ,\r\n bar,,\r\nProxy-Require: SEC-Agree, baz\r\n";
    let answer = path.receive(request(required).as_bytes(), CLIENT);
    assert_eq!(text(&answer), expected("420 Bad Extension", ";tag=vh", "Unsupported: foo, bar, baz\r\n"));
    let none_left = request("").replace("Forwards: 70", "Forwards: 0");
    assert_eq!(text(&path.receive(none_left.as_bytes(), CLIENT)), expected("483 Too Many Hops", ";tag=vh", ""));
    let in_dialog = none_left.replace("To:<sip:b@example.net>", "To:<sip:b@example.net>;tag=2");
    assert_eq!(text(&path.receive(in_dialog.as_bytes(), CLIENT)), expected("483 Too Many Hops", ";tag=2", ""));
}

#[test]
fn an_answer_that_would_be_longer_than_its_request_is_written_shorter_or_not_at_all() {
    let mut path = Path::new(shared_tables());
    let rest = "SIP/2.0/UDP a;branch=z9hG4bK1;received=198.51.100.7";
    let compact =
        format!("SIP/2.0 483 \r\nv:{rest}\r\nf:<sip:a>\r\nt:<sip:b>;tag=vh\r\ni:1\r\nCSeq:1 INFO\r\nl:0\r\n\r\n");
    let long = format!(
        "SIP/2.0 483 Too Many Hops\r\nVia: {rest}\r\nFrom: <sip:a>\r\nTo: <sip:b>;tag=vh\r\nCall-ID: 1\r\nCSeq: 1 INFO\r\n\
         Content-Length: 0\r\n\r\n"
    );
    let mut seen = Vec::new();
    for len in 0..100 {
        let request = format!(
            "INFO sip:x SIP/2.0\r\nv:SIP/2.0/UDP a;branch=z9hG4bK1\r\nf:<sip:a>\r\nt:<sip:b>\r\ni:1\r\nCSeq:1 INFO\r\n\
             Max-Forwards:0\r\n\r\n{}",
            "x".repeat(len)
        );
        let answer = path.receive(request.as_bytes(), CLIENT);
        assert!(answer.sent.len() <= request.len());
        let what = match text(&answer) {
            text if text == long => "long",
            text if text == compact => "compact",
            _ => {
                assert_eq!(answer.verdict, Verdict::Drop(DropReason::ReplyTooLarge), "{}", answer.text());
                "none"
            }
        };
        seen.push((what, answer.sent.len() == request.len()));
    }
    // Each as soon as there is room for it, to the octet.
    let firsts: Vec<_> = seen.chunk_by(|a, b| a.0 == b.0).map(|chunk| chunk[0]).collect();
    assert_eq!(firsts, [("none", false), ("compact", true), ("long", true)]);
}

/// Else whoever sends it could write a header of his own into our answer, for those who end lines elsewhere than we do.
#[test]
fn a_row_with_a_line_end_that_is_no_fold_is_not_copied() {
    let mut path = Path::new(shared_tables());
    let request = |via: &str, from: &str, to: &str, call: &str| {
        format!(
            "OPTIONS sip:b@example.net SIP/2.0\r\nVia: SIP/2.0/UDP a;branch=z9hG4bK1{via}\r\nFrom: <sip:a>{from}\r\nTo: <sip:b>{to}\r\n\
             Call-ID: 1{call}\r\nCSeq: 1 OPTIONS\r\nMax-Forwards: 0\r\nSubject: {}\r\n\r\n",
            "x".repeat(200)
        )
    };
    for evil in [
        "\n Contact: <sip:evil>",
        "\n  Contact: <sip:evil>",
        "\r Contact: <sip:evil>",
        "\rContact: <sip:evil>",
        "\0Contact: <sip:evil>",
    ] {
        for (place, row) in ["From", "To", "Call-ID"].into_iter().enumerate() {
            let [mut from, mut to, mut call] = [""; 3];
            *[&mut from, &mut to, &mut call][place] = evil;
            let answer = path.receive(request("", from, to, call).as_bytes(), CLIENT);
            assert!(answer.verdict_code().is_some(), "{row} {evil:?}: {:?}", answer.verdict);
            assert!(answer.rows(row).is_empty() && answer.rows("contact").is_empty(), "{}", answer.text());
            assert!(!answer.text().contains("evil"), "{}", answer.text());
        }
        let answer = path.receive(request(evil, "", "", "").as_bytes(), CLIENT);
        assert_eq!(answer.verdict, Verdict::Drop(DropReason::MalformedRequest), "{evil:?}");
    }
    let folded = path.receive(request("\r\n ;x", "\r\n\t;x\r\n ;y", "", "").as_bytes(), CLIENT);
    assert!(folded.text().contains("From: <sip:a>\r\n\t;x\r\n ;y\r\nTo"), "{}", folded.text());
}

#[test]
fn options_to_us_are_answered_200_and_503_while_draining() {
    let options = |uri: &str, more: &str| {
        format!(
            "OPTIONS {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {CLIENT};branch=z9hG4bK1\r\nMax-Forwards: 70\r\nFrom: <sip:a@example.net>;tag=1\r\n\
             To: <sip:b@example.net>\r\nCall-ID: options\r\nCSeq: 1 OPTIONS\r\n{more}Subject: room for an answer that is long\r\n\r\n"
        )
    };
    for (draining, code) in [(false, 200), (true, 503)] {
        let mut settings = settings();
        settings.draining = draining;
        let mut path = Path::new(Tables::new(1, settings, vec![pool(&BACKENDS)], None));
        for uri in ["sip:192.0.2.100", "sip:LB.example.net:5060;x"] {
            assert_eq!(path.receive(options(uri, "").as_bytes(), CLIENT).verdict_code(), Some(code), "{uri}");
        }
        let route = "Route: <sip:192.0.2.100;lr>\r\n";
        for (uri, more) in
            [("sip:x@192.0.2.100", ""), ("sip:192.0.2.100:5070", ""), ("tel:+49", ""), ("sip:192.0.2.100", route)]
        {
            assert!(path.receive(options(uri, more).as_bytes(), CLIENT).is_forward(), "{uri} {more}");
        }
        let message = options("sip:192.0.2.100", "").replace("OPTIONS", "MESSAGE");
        assert!(path.receive(message.as_bytes(), CLIENT).is_forward());
    }
}

/// What is asked of servers is the callee's to judge, and what is asked of us is ours (RFC 3261 8.2.2.3, 16.3).
#[test]
fn an_extension_that_is_required_is_refused_by_whom_it_is_asked_of() {
    let answer = |draining: bool, method: &str, uri: &str, rows: &str| {
        let mut settings = settings();
        settings.draining = draining;
        let request = format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {CLIENT};branch=z9hG4bK1\r\nMax-Forwards: 70\r\nFrom: <sip:a@example.net>;tag=1\r\n\
             To: <sip:b@example.net>\r\nCall-ID: required\r\nCSeq: 1 {method}\r\n{rows}Subject: room for an answer that is long\r\n\r\n"
        );
        Path::new(Tables::new(1, settings, vec![pool(&BACKENDS)], None)).receive(request.as_bytes(), CLIENT)
    };
    let (us, bob) = ("sip:192.0.2.100", "sip:b@example.net");
    let required = "require : 100rel ,timer\r\nRequire: path\r\n";
    let refused = answer(false, "OPTIONS", us, required);
    assert_eq!(refused.verdict_code(), Some(420));
    assert_eq!(refused.rows("Unsupported"), ["100rel, timer, path"]);
    assert_eq!(answer(false, "OPTIONS", us, "Supported: 100rel\r\n").verdict_code(), Some(200));
    assert_eq!(answer(true, "OPTIONS", us, required).verdict_code(), Some(503), "a drain goes first");
    assert!(answer(false, "OPTIONS", bob, required).is_forward());
    let both = answer(false, "INVITE", bob, &format!("{required}Proxy-Require: foo\r\n"));
    assert_eq!(both.rows("Unsupported"), ["foo"], "what is asked of proxies");
    assert!(answer(false, "CANCEL", bob, "Proxy-Require: foo\r\n").is_forward());
}

#[test]
fn what_is_no_sip_is_told_apart_and_an_ack_is_never_answered() {
    let mut path = Path::new(tables());
    for (octets, reason) in [
        ("", DropReason::Empty),
        ("x", DropReason::KeepAlive),
        ("\u{5}", DropReason::KeepAlive),
        ("\r\n", DropReason::KeepAlive),
        (" \0\n\r", DropReason::KeepAlive),
        ("\0\u{1}", DropReason::StunMalformed),
        ("\u{5}\u{5}", DropReason::NotSip),
        ("hello", DropReason::NotSip),
        (" ACK SIP/2.0\r\n\r\n", DropReason::AckRefused),
        ("ACK\tsip:b SIP/2.0\r\n\r\n", DropReason::AckRefused),
        ("INFO sip:b SIP/2.0\r\n\r\n", DropReason::MalformedRequest),
        ("SIP/2.0 abc\r\n\r\n", DropReason::MalformedResponse),
    ] {
        assert_eq!(path.receive(octets.as_bytes(), CLIENT).verdict, Verdict::Drop(reason), "{octets:?}");
    }
}

#[test]
fn a_hop_less_is_left_written_in_no_more_octets() {
    let mut path = Path::new(tables());
    for (hops, left) in [
        ("1", "0"),
        ("70", "69"),
        ("10", " 9"),
        ("100", " 99"),
        ("200", "199"),
        ("255", "254"),
        ("0068", "0067"),
        ("0010", "   9"),
    ] {
        let sent = path.receive(INVITE.replace("Forwards: 70", &format!("Forwards: {hops}")).as_bytes(), CLIENT).text();
        assert!(sent.contains(&format!("Max-Forwards: {left}\r\n")), "{hops}: {sent}");
    }
    assert_eq!(
        path.receive(INVITE.replace("Max-Forwards: 70\r\n", "").as_bytes(), CLIENT).rows("max-forwards"),
        ["70"]
    );
}

#[test]
fn a_request_that_becomes_longer_than_a_datagram_is_answered_513() {
    let mut path = Path::new(tables());
    let added = path.receive(INVITE.as_bytes(), CLIENT).sent.len() - INVITE.len();
    let of_len = |len: usize| format!("{INVITE}{}", "x".repeat(len - INVITE.len()));
    let longest = path.receive(of_len(PAYLOAD_MAX - added).as_bytes(), CLIENT);
    assert!(longest.is_forward() && longest.sent.len() == PAYLOAD_MAX, "{:?}", longest.verdict);
    assert_eq!(path.receive(of_len(PAYLOAD_MAX - added + 1).as_bytes(), CLIENT).verdict_code(), Some(513));
}

/// Where a connection turns out to be gone: as if the next hop had answered, whose answer finds its way by our own Via.
#[test]
fn what_cannot_be_delivered_is_answered_in_the_name_of_its_next_hop() {
    let mut path = Path::new(tables());
    let sent = path.receive(INVITE.as_bytes(), CLIENT).sent;
    let mut room = [0; 4096];
    let mut answer = |path: &mut Path, sent: &[u8]| {
        let gone = Refusal::new(503, "Gone");
        let len = path.dispatcher.answer_for_next_hop(&tables(), gone, sent, address(BACKENDS[0]), &mut room)?;
        Some(String::from_utf8_lossy(&room[..len]).into_owned())
    };
    let made = answer(&mut path, &sent).unwrap();
    let home = verdict(&mut path, &made);
    let Verdict::Forward { to, .. } = home.verdict else { panic!("{:?}", home.verdict) };
    assert_eq!(to, address(CLIENT));
    assert!(home.text().starts_with("SIP/2.0 503 Gone\r\nVia: SIP/2.0/UDP phone.example.net:5062;"), "{}", home.text());
    let ack = INVITE.replace("INVITE", "ACK").replace("<sip:b@example.net>", &home.rows("to")[0]);
    assert_eq!(path.receive(ack.as_bytes(), CLIENT).verdict, Verdict::Drop(DropReason::AckForOwnReply));
    assert_eq!(answer(&mut path, &passed_on("ACK")), None);
    assert_eq!(answer(&mut path, made.as_bytes()), None);
}

fn passed_on(method: &str) -> Vec<u8> {
    Path::new(tables()).receive(INVITE.replace("INVITE", method).as_bytes(), CLIENT).sent
}

/// The table of docs/datapath.md, "may it go on?", in its order.
#[test]
fn what_may_not_go_on_is_refused_with_a_code_and_a_reason() {
    let mut path = Path::new(tables());
    let sane = INVITE.replace("Subject", "Content-Length: 0\r\nSubject");
    let long = |len: usize| format!("sip:{}@example.net", "b".repeat(len - "INVITE sip:@example.net SIP/2.0".len()));
    let vias = |count: usize| format!("{}Max-Forwards", "Via: SIP/2.0/UDP 192.0.2.77\r\n".repeat(count - 1));
    let call = |len: usize| "c".repeat(len);
    let required = |method: &str| format!("CSeq: 1 {method}\r\nProxy-Require: foo");
    for (from, to, refused) in [
        ("", "", None),
        ("\r\nCSeq", "\nCSeq", Some((400, "an LF without CR in the header section"))),
        ("SIP/2.0\r\nVia", "SIP/3.0\r\nVia", Some((505, "Version Not Supported"))),
        ("INVITE sip", "INVITE  sip", Some((400, "Bad Request-URI"))),
        ("INVITE sip", "INV(TE sip", Some((400, "Bad Request-Line"))),
        ("sip:b@example.net SIP", &format!("{} SIP", long(8192)), None),
        ("sip:b@example.net SIP", &format!("{} SIP", long(8193)), Some((414, "Request-URI Too Long"))),
        ("Call-ID: answers", "Call-ID: answers\r\ni: answers", Some((400, "More Than One Call-ID"))),
        ("CSeq", "CSeq: 1 INVITE\r\nCSeq", Some((400, "More Than One CSeq"))),
        ("From", "f: <sip:a>\r\nFrom", Some((400, "More Than One From"))),
        ("To:", "t: <sip:a>\r\nTo:", Some((400, "More Than One To"))),
        ("Content-L", "l: 0\r\nContent-L", Some((400, "More Than One Content-Length"))),
        ("Max-", "Max-Forwards: 70\r\nMax-", Some((400, "More Than One Max-Forwards"))),
        ("Max-", "Join: 1\r\nJoin: 1\r\nMax-", Some((400, "More Than One Of A Header That Stands Once"))),
        ("SIP/2.0/UDP phone", "SIP/2.0/UDP <phone", Some((400, "Bad Via"))),
        ("5062", "0", Some((400, "Bad Via"))),
        ("Max-Forwards", &vias(128), None),
        ("Max-Forwards", &vias(129), Some((483, "Too Many Hops"))),
        ("From: <sip:a@example.net>", "From: <sip:a", Some((400, "Bad From"))),
        ("From: <sip:a@example.net>", "From: <sip:c>, <sip:a>", Some((400, "Bad From"))),
        ("To: <sip:b@example.net>", "To: <>", Some((400, "Bad To"))),
        ("To: <sip:b@example.net>", "To: <sip:c>, <sip:a>", Some((400, "Bad To"))),
        ("answers", &call(1024), None),
        ("answers", &call(1025), Some((400, "Bad Call-ID"))),
        ("answers", "two words", Some((400, "Bad Call-ID"))),
        ("CSeq: 1 ", "CSeq: 4294967296 ", Some((400, "Bad CSeq"))),
        ("CSeq: 1 ", "CSeq: ", Some((400, "Bad CSeq"))),
        ("CSeq: 1 INVITE", "CSeq: 1 invite", Some((400, "CSeq Method Is Not The Request's"))),
        ("INVITE sip", "WHAT sip", Some((501, "CSeq Method Is Not The Request's"))),
        ("Length: 0", "Length: -1", Some((400, "Bad Content-Length"))),
        ("Length: 0", "Length: 1", Some((400, "Content-Length Exceeds Datagram"))),
        ("sip:b@example.net SIP", "sip:b@example.net?a=b SIP", Some((400, "Bad Request-URI"))),
        ("sip:b@example.net SIP", "http://example.net/ SIP", Some((416, "Unsupported URI Scheme"))),
        ("Forwards: 70", "Forwards: 256", Some((400, "Bad Max-Forwards"))),
        ("Forwards: 70", "Forwards: 255", None),
        ("Forwards: 70", "Forwards: 00", Some((483, "Too Many Hops"))),
        ("CSeq: 1 INVITE", &required("INVITE"), Some((420, "Bad Extension"))),
        ("CSeq: 1 INVITE", "CSeq: 1 INVITE\r\nProxy-Require: Sec-Agree,", None),
    ] {
        let request = sane.replacen(from, to, 1);
        let outcome = path.receive(request.as_bytes(), CLIENT);
        let said = path.dispatcher.refused(outcome.verdict).map(|refusal| (refusal.code, refusal.reason));
        assert_eq!((said, outcome.is_forward()), (refused, refused.is_none()), "{request}");
        assert_eq!(outcome.verdict_code(), refused.map(|(code, _)| code), "{request}");
    }
    for method in ["ACK", "CANCEL"] {
        let request = sane.replace("INVITE", method).replacen(&format!("CSeq: 1 {method}"), &required(method), 1);
        assert!(path.receive(request.as_bytes(), CLIENT).is_forward(), "{request}");
    }
}

/// Its server has the call, so what repeats an INVITE that went on goes on, though a new one is refused.
#[test]
fn while_calls_are_shed_an_invite_that_went_on_goes_on_when_it_comes_again() {
    let mut path = Path::new(tables());
    let other = INVITE.replace("bK-1", "bK-2");
    assert!(path.receive(INVITE.as_bytes(), CLIENT).is_forward());
    path.dispatcher.shedding = Shedding::Calls;
    assert!(path.receive(INVITE.as_bytes(), CLIENT).is_forward());
    assert_eq!(path.receive(other.as_bytes(), CLIENT).verdict_code(), Some(503));
    assert_eq!(path.dispatcher.shed, 1);
    path.dispatcher.shedding = Shedding::Nothing;
    assert!(path.receive(other.as_bytes(), CLIENT).is_forward());
}

#[test]
fn the_ack_of_an_answer_of_ours_goes_no_further_and_all_else_with_its_tag_does() {
    let mut path = Path::new(tables());
    let refused = path.receive(INVITE.replace("Forwards: 70", "Forwards: 0").as_bytes(), CLIENT);
    let to = refused.rows("to").remove(0);
    let with_tag = |method: &str| INVITE.replace("INVITE", method).replace("<sip:b@example.net>", &to);
    let ack = path.receive(with_tag("ACK").as_bytes(), CLIENT);
    assert_eq!(ack.verdict, Verdict::Drop(DropReason::AckForOwnReply));
    assert!(path.receive(with_tag("ACK").replace("answers", "another").as_bytes(), CLIENT).is_forward());
    assert!(path.receive(with_tag("INFO").as_bytes(), CLIENT).is_forward());
}

/// A server that calls a phone for its caller, both through us, passes our answer on with the tag that we gave it, and sends it
/// again until the caller's ACK is there.
#[test]
fn the_ack_for_an_answer_of_ours_that_a_server_has_passed_on_reaches_that_server() {
    let mut path = Path::new(tables());
    let went_on = path.receive(INVITE.as_bytes(), CLIENT);
    let Verdict::Forward { to: server, .. } = went_on.verdict else { panic!("{:?}", went_on.verdict) };
    let called = went_on.text().replacen("Via", "Via: SIP/2.0/UDP server;branch=z9hG4bK-server\r\nVia", 1);
    let refused = path.receive(called.as_bytes(), &server.to_string());
    assert_eq!(refused.verdict_code(), Some(404), "{}", refused.text());
    let tagged = |request: &str| {
        request.replace("INVITE", "ACK").replace("<sip:b@example.net>", &refused.rows("to")[0]).into_bytes()
    };
    let of_the_server = path.receive(&tagged(&called), &server.to_string());
    assert_eq!(of_the_server.verdict, Verdict::Drop(DropReason::AckForOwnReply));
    let of_the_caller = path.receive(&tagged(INVITE), CLIENT);
    assert!(
        matches!(of_the_caller.verdict, Verdict::Forward { to, .. } if to == server),
        "{:?}",
        of_the_caller.verdict
    );
}

#[test]
fn the_port_towards_backends_is_for_those_inside() {
    let mut path = Path::new(tables());
    let mut on_egress = |message: &str, from: &str| {
        path.receive_on(message.as_bytes(), Arrival { from: address(from), listener: None, local: None, stream: None })
    };
    assert_eq!(on_egress(INVITE, CLIENT).verdict, Verdict::Drop(DropReason::StrangerOnEgress));
    assert!(on_egress(&INVITE.replace("sip:b@example.net SIP", "sip:b@203.0.113.9 SIP"), BACKENDS[0]).is_forward());
}

#[test]
fn without_a_socket_of_the_backends_family_nothing_is_sent() {
    let dispatcher = |v4, v6| Dispatcher::new(Scanner::best(), EgressPorts { v4, v6 });
    let six = || Tables::new(1, settings(), vec![pool(&["[2001:db8::11]:5060"])], None);
    for (tables, of_family, of_the_other) in [
        (tables(), dispatcher(Some(7), None), dispatcher(None, Some(7))),
        (six(), dispatcher(None, Some(7)), dispatcher(Some(7), None)),
    ] {
        let mut path = Path::new(tables);
        path.dispatcher = of_family;
        assert!(path.receive(INVITE.as_bytes(), CLIENT).rows("via")[0].starts_with("SIP/2.0/UDP 192.0.2.100:7;"));
        path.dispatcher = of_the_other;
        assert_eq!(path.receive(INVITE.as_bytes(), CLIENT).verdict, Verdict::Drop(DropReason::NoEgress));
    }
}

/// A client of RFC 2543 has no branch that is its own: RFC 3261 16.11 names what tells its transactions apart.
#[test]
fn without_a_unique_branch_via_from_tag_call_id_cseq_and_request_uri_tell_transactions_apart() {
    let mut path = Path::new(tables());
    let mut branch = |text: &str| {
        let via = path.receive(text.as_bytes(), CLIENT).rows("via").remove(0);
        assert!(!via.contains('~'), "{via}");
        via.split("branch=").nth(1).unwrap().split(';').next().unwrap().to_owned()
    };
    for old in [INVITE.replace(";branch=z9hG4bK-1", ""), INVITE.replace("z9hG4bK-1", "1")] {
        let first = branch(&old);
        for (from, to) in [
            ("5062", "5063"),
            ("tag=1", "tag=2"),
            ("answers", "other"),
            ("CSeq: 1", "CSeq: 2"),
            ("b@example.net SIP", "c@example.net SIP"),
        ] {
            assert_ne!(branch(&old.replace(from, to)), first, "{to}");
        }
        assert_eq!(branch(&old.replace("INVITE", "CANCEL")), first);
        assert_eq!(
            branch(&old.replace("INVITE", "ACK").replace("<sip:b@example.net>", "<sip:b@example.net>;tag=3")),
            first
        );
    }
}

// Responses.

const INVITE: &str = "INVITE sip:b@example.net SIP/2.0\r\nVia: SIP/2.0/UDP phone.example.net:5062;branch=z9hG4bK-1;rport\r\n\
                      Max-Forwards: 70\r\nFrom: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: answers\r\n\
                      CSeq: 1 INVITE\r\nSubject: room for an answer of ours that is long\r\n\r\n";

/// A response to what we sent as `invite`, with these Vias.
fn response(status: &str, vias: &[&str]) -> String {
    let rows: String = vias.iter().map(|via| format!("Via: {via}\r\n")).collect();
    format!(
        "SIP/2.0 {status}\r\n{rows}From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>;tag=2\r\nCall-ID: answers\r\n\
         CSeq: 1 INVITE\r\n\r\n"
    )
}

fn verdict(path: &mut Path, text: &str) -> Outcome {
    path.receive_on(text.as_bytes(), Arrival { from: address(BACKENDS[0]), listener: None, local: None, stream: None })
}

#[test]
fn a_100_that_lost_the_callers_via_gets_it_back_if_the_token_was_not_touched() {
    let mut path = Path::new(tables());
    let sent = path.receive(INVITE.as_bytes(), CLIENT);
    let ours = &sent.rows("via")[0];
    let whole = verdict(&mut path, &response("100 Trying", &[ours]));
    let via = "SIP/2.0/UDP phone.example.net:5062;branch=z9hG4bK-1;received=198.51.100.7;rport=5060";
    assert_eq!(whole.text(), response("100 Trying", &[via]));
    for (from, to) in [("~phone", "~phony"), ("!5062", "!5063"), ("bK-1", "bK-2")] {
        let touched = ours.replacen(from, to, 1);
        assert_ne!(*ours, touched);
        let dropped = verdict(&mut path, &response("100 Trying", &[&touched])).verdict;
        assert_eq!(dropped, Verdict::Drop(DropReason::ResponseForUs), "{touched}");
    }
}

#[test]
fn a_response_that_two_could_read_differently_or_for_a_listener_that_is_no_more_is_dropped() {
    let mut path = Path::new(tables());
    let second = Listener { name: "second".into(), ..settings().listeners[0].clone() };
    let listeners = vec![settings().listeners[0].clone(), second];
    path.tables = Tables::new(1, Settings { listeners, ..settings() }, vec![pool(&BACKENDS)], None).into();
    let arrival = Arrival { from: address(CLIENT), listener: Some(1), local: None, stream: None };
    let vias = path.receive_on(INVITE.as_bytes(), arrival).rows("via");
    let ok = response("200 OK", &[&vias[0], &vias[1]]);
    assert!(verdict(&mut path, &ok).is_forward());
    for odd in [
        ok.replacen("Call-ID", "Call-ID: other\r\nCall-ID", 1),
        ok.replacen("CSeq", "Call_ID: other\r\nCSeq", 1),
        ok.replacen("\r\nCSeq", "\nCSeq", 1),
        ok.replacen("CSeq", "Content-Length: 1\r\nCSeq", 1),
    ] {
        assert_ne!(odd, ok);
        assert_eq!(verdict(&mut path, &odd).verdict, Verdict::Drop(DropReason::MalformedResponse), "{odd}");
    }
    path.tables = tables().into();
    assert_eq!(verdict(&mut path, &ok).verdict, Verdict::Drop(DropReason::ResponseForged));
}

/// The client reads a stream, where a message without a length has no end.
#[test]
fn a_response_goes_down_the_connection_of_its_request_with_one_plain_length() {
    let mut settings = settings();
    settings.listeners[0].transport = Transport::Tcp;
    let mut path = Path::new(Tables::new(1, settings, vec![pool(&BACKENDS)], None));
    let (listener, id) = (Some(0), StreamId::new(0, 7, 1).unwrap());
    let arrival = Arrival { from: address(CLIENT), listener, local: None, stream: Some(id) };
    let invite = INVITE.replace("\r\n\r\n", "\r\nContent-Length: 0\r\n\r\n");
    let vias = path.receive_on(invite.as_bytes(), arrival).rows("via");
    let ok = response("200 OK", &[&vias[0], &vias[1]]);
    let home = response("200 OK", &[&vias[1]]).replacen("\r\n", "\r\nContent-Length: 4\r\n", 1) + "body";
    for length in ["", "Content-Length: 4\r\n", "l : 04\r\n"] {
        let outcome = verdict(&mut path, &(ok.replace("\r\n\r\n", &format!("\r\n{length}\r\n")) + "body"));
        let Verdict::Forward { from, .. } = outcome.verdict else { panic!("{:?}", outcome.verdict) };
        assert_eq!(from, Sender::Stream { id, listener });
        if length.starts_with("Content-Length") {
            assert_eq!(outcome.rows("content-length"), ["4"]);
        } else {
            assert_eq!(outcome.text(), home, "{length}");
        }
    }
    let lost = verdict(&mut path, &response("100 Trying", &[&vias[0]]));
    let via = "SIP/2.0/TCP phone.example.net:5062;branch=z9hG4bK-1;received=198.51.100.7;rport=5062";
    assert_eq!((lost.rows("via"), lost.rows("content-length")), (vec![via.to_owned()], vec!["0".to_owned()]));
    assert_eq!(path.dispatcher.vias_rebuilt, 1);
}

/// It must be answered where we wrote that the request came from, however that is written.
#[test]
fn a_response_passes_if_the_via_below_ours_leads_where_the_token_does() {
    for (client, same, others) in [
        (
            CLIENT,
            &[
                "198.51.100.7;rport=5060",
                "198.51.100.7",
                "x;received=198.51.100.7",
                "x;Received = [::ffff:198.51.100.7];rport=5060",
            ][..],
            &[
                "198.51.100.7:5061",
                "198.51.100.7;rport=5061",
                "198.51.100.8",
                "198.51.100.7;received=198.51.100.8",
                "x",
            ][..],
        ),
        (
            "[2001:db8::7]:5060",
            &["[2001:DB8:0:0::7]", "x;received=2001:db8::7", "x;received=[2001:db8:0::7]"],
            &["[2001:db8::8]", "[2001:db8::7]:5061"],
        ),
    ] {
        let mut path = Path::new(tables());
        let sent = path.receive(INVITE.as_bytes(), client);
        let ours = &sent.rows("via")[0];
        for below in same {
            let via = format!("SIP/2.0/UDP {below}");
            for text in [response("200 OK", &[ours, &via]), response("200 OK", &[&format!("{ours}, {via}")])] {
                let outcome = verdict(&mut path, &text);
                let Verdict::Forward { to, .. } = outcome.verdict else { panic!("{below}: {:?}", outcome.verdict) };
                assert_eq!((to, outcome.rows("via")), (address(client), vec![via.clone()]));
            }
        }
        for below in others {
            let dropped = verdict(&mut path, &response("200 OK", &[ours, &format!("SIP/2.0/UDP {below}")])).verdict;
            assert_eq!(dropped, Verdict::Drop(DropReason::ResponseForged), "{below}");
        }
        // Ours has to be the first, in the row as well.
        let hidden = response("200 OK", &[&format!("SIP/2.0/UDP {client}, {ours}")]);
        assert_eq!(verdict(&mut path, &hidden).verdict, Verdict::Drop(DropReason::ResponseNotOurs));
    }
}
