//! Callers against callees over the loopback: every scenario as it should be, and every fault noticed for what it is.

mod support;

use std::collections::{HashMap, HashSet};
use support::{Meddler, PATIENT, Puppet, Way, answer, any_port, call_number, callers, free_port, timers};
use viahop_load::clock::{MS_NS, SECOND_NS};
use viahop_load::digest::{ALGORITHMS, Realm};
use viahop_load::impair::Impairment;
use viahop_load::log::Log;
use viahop_load::scenario::{BUILT_IN, Mix, Scenario};
use viahop_load::uac::ask::ask;
use viahop_load::uac::{self, Uac};
use viahop_load::uas::{self, Uas};

/// T1 in milliseconds where retransmissions are what a test is about.
const BRISK: u64 = 20;

fn callees(count: usize, t1_ms: u64) -> Uas {
    let backends = vec![any_port(); count];
    Uas::start(uas::Config { backends, timers: timers(t1_ms), list_new_calls: true, ..uas::Config::default() }).unwrap()
}

/// What must be so after a run in which nothing went wrong.
fn assert_clean(called: &uac::Report, took: &uas::Report) {
    let (caller, callee) = (called.counts, took.total());
    assert_eq!(caller.completed, caller.placed, "{caller:?} {:?}", called.lines);
    assert_eq!((caller.failed, caller.cut, caller.wrong, caller.altered), (0, 0, 0, 0), "{:?}", called.wrongs);
    assert_eq!((caller.strays, caller.late, caller.malformed, caller.refused, caller.unsent), (0, 0, 0, 0, 0));
    assert_eq!((caller.unsealed, caller.unexpected, caller.overflowed, callee.unsealed), (0, 0, 0, 0));
    assert_eq!((callee.moved, callee.reordered, callee.overflowed), (0, 0, 0), "{:?}", took.moves);
    assert_eq!((callee.violations, callee.orphans, callee.unknown), (0, 0, 0), "{:?}", took.violations);
    assert_eq!((callee.altered, callee.malformed, callee.unacknowledged, callee.abandoned), (0, 0, 0, 0));
    assert_eq!(took.backends.iter().map(|backend| backend.open).sum::<u64>(), 0);
}

#[test]
fn every_scenario_that_is_built_in_goes_as_it_says() {
    for (name, _) in BUILT_IN {
        let realm = (*name == "register-digest").then(|| Realm::new("SHA-256", "secret").unwrap());
        let config =
            uas::Config { backends: vec![any_port()], timers: timers(PATIENT), realm, ..uas::Config::default() };
        let uas = Uas::start(config).unwrap();
        let (hold_ns, password) = (3 * MS_NS, Some("secret".into()));
        let uac = Uac::start(uac::Config { hold_ns, password, ..callers(uas.addresses()[0], 200, name) }).unwrap();
        let called = uac.join();
        let mut took = uas.join();
        let log = Log { calls: Some(called.clone()), callees: Some(took.clone()), ..Log::new() };
        assert!(log.flows().iter().all(|flow| flow.missing() == Some(0)), "{name}: {:?}", log.flows());
        if matches!(*name, "busy" | "cancel") {
            took.backends[0].open = 0; // They are kept for T4, so that late copies are told apart from new calls.
        }
        assert_clean(&called, &took);
        assert_eq!(called.counts.placed, 200, "{name}");
        assert!(called.lines.iter().all(|line| line.answered == 200 && line.latency.count() == 200), "{name}");
        assert_eq!(called.lateness.count(), 200);
    }
}

/// What lay in its socket was missing, and looked as if the element had lost it.
#[test]
fn a_callee_that_is_stopped_has_heard_all_that_had_come() {
    let uas = callees(1, PATIENT);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let options = "OPTIONS sip:a SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:9;branch=z9hG4bK1\r\nFrom: <sip:a@b>;tag=1\r\n\
                   To: <sip:a>\r\nCall-ID: c\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n";
    for _ in 0..1000 {
        socket.send_to(options.as_bytes(), uas.addresses()[0]).unwrap();
    }
    let took = uas.join().total();
    assert_eq!(took.requests + took.overflowed, 1000, "{took:?}");
}

#[test]
fn a_register_is_accepted_with_the_right_password_and_no_other() {
    for algorithm in ALGORITHMS {
        let realm = Realm::new(algorithm, "secret");
        let uas = Uas::start(uas::Config { backends: vec![any_port()], realm, ..uas::Config::default() }).unwrap();
        let calls = |password: &str| {
            let config = callers(uas.addresses()[0], 50, "register-digest");
            Uac::start(uac::Config { password: Some(password.into()), ..config }).unwrap().join()
        };
        let called = calls("secret");
        assert_eq!((called.counts.completed, called.lines[0].challenged), (50, 50), "{:?}", called.lines);
        let called = calls("Secret");
        assert_eq!(called.lines[0].failures.get("403"), Some(&50), "{:?}", called.lines);
        let took = uas.join().total();
        assert_eq!((took.registers, took.challenged, took.forbidden, took.altered), (50, 100, 50, 0));
    }
    let uas = callees(1, PATIENT);
    let called = Uac::start(callers(uas.addresses()[0], 10, "register-digest")).unwrap().join();
    assert_eq!(called.lines[0].failures.get("not challenged"), Some(&10), "a registrar that lets anybody in fails");
}

#[test]
fn a_password_is_proven_to_a_proxy_and_to_the_registrar_behind_it() {
    let realm = Realm::new("SHA-256", "secret");
    let backends = vec![any_port()];
    let uas = Uas::start(uas::Config { backends, realm, timers: timers(PATIENT), ..uas::Config::default() }).unwrap();
    let proxy = Meddler::start(uas.addresses().to_vec(), |way, octets| {
        let text = String::from_utf8(octets).unwrap();
        // What has no proof for the proxy goes to the registrar without any; its 401 becomes the proxy's 407.
        let (to_proxy, from_proxy) = (text.contains("\r\nProxy-Authorization: "), text.contains("CSeq: 1 "));
        let text = match way {
            Way::There if !to_proxy => text.replace("\r\nAuthorization: ", "\r\nX-Authorization: "),
            Way::Back if from_proxy => text.replace("SIP/2.0 401", "SIP/2.0 407").replace("\r\nWWW-", "\r\nProxy-"),
            _ => text,
        };
        vec![(text.into(), 0)]
    });
    let config = callers(proxy.address, 20, "register");
    let called = Uac::start(uac::Config { password: Some("secret".into()), ..config }).unwrap().join();
    assert_eq!((called.counts.completed, called.lines[0].challenged), (20, 40), "{:?}", called.lines);
}

#[test]
fn shards_sockets_and_a_mix_share_one_run() {
    let uas = Uas::start(uas::Config { backends: vec![any_port(); 3], cores: vec![None; 2], ..uas::Config::default() })
        .unwrap();
    let mix = Mix::new(["call", "options", "register"].map(|name| (Scenario::built_in(name).unwrap(), 1.0)).into());
    let config =
        uac::Config { cores: vec![None; 2], sockets: 3, mix: mix.unwrap(), ..callers(uas.addresses()[1], 601, "call") };
    let uac = Uac::start(config).unwrap();
    assert_eq!(uac.addresses().len(), 6);
    let called = uac.join();
    let took = uas.join();
    assert_clean(&called, &took);
    assert_eq!(called.counts.placed, 601);
    let counts = took.backends[1].counts;
    assert_eq!(counts.calls + counts.options + counts.registers, 601);
    assert!(counts.calls > 100 && counts.options > 100 && counts.registers > 100, "{counts:?}");
    let rate = 601.0 / (called.placing_ns as f64 / SECOND_NS as f64);
    // One shard by itself would place 1,000 a second.
    assert!((1100.0..2050.0).contains(&rate), "as asked, or less on a machine that was late: {rate}");
}

#[test]
fn messages_that_share_their_way_through_the_kernel_arrive_as_any_others() {
    let backends = vec![any_port(); 2];
    let config = uas::Config { backends, segments: true, timers: timers(PATIENT), ..uas::Config::default() };
    let uas = Uas::start(config).unwrap();
    let config = callers(uas.addresses()[0], 2000, "call");
    let called = Uac::start(uac::Config { segments: true, rate: 20_000.0, ..config }).unwrap().join();
    assert_clean(&called, &uas.join());
    assert_eq!(called.counts.placed, 2000);
}

#[test]
fn a_network_that_loses_one_datagram_in_eleven_costs_retransmissions_and_no_call() {
    let uas = callees(1, BRISK);
    // Not every eleventh: that keeps step with the messages of calls, and then loses some of them again and again, others never.
    let mut random = fastrand::Rng::with_seed(11);
    let lose = move |_, octets| if random.u32(..11) == 0 { vec![] } else { vec![(octets, 0)] };
    let meddler = Meddler::start(uas.addresses().to_vec(), lose);
    let called =
        Uac::start(uac::Config { timers: timers(BRISK), ..callers(meddler.address, 300, "call") }).unwrap().join();
    assert_eq!((called.counts.placed, called.counts.completed), (300, 300), "{:?}", called.lines);
    assert!(called.counts.retransmissions > 20, "{:?}", called.counts);
    let took = uas.snapshot().total();
    assert!(took.copies > 10 && took.resent > 10, "{took:?}");
    assert_eq!(took.calls, 300, "a retransmission opens no second call");
}

//= RFC 3261 section 17.1.2.2
// Timer E: T1, 2 T1, 4 T1, then T2 = 8 T1 until Timer F, 64 T1: at 1, 3, 7, 15, 23, … 63 T1, ten in all.
#[test]
fn a_request_that_nobody_answers_is_sent_eleven_times_and_given_up() {
    let uas = callees(1, PATIENT);
    let meddler = Meddler::start(uas.addresses().to_vec(), |_, _| vec![]);
    let config = uac::Config { timers: timers(BRISK), ..callers(meddler.address, 10, "options") };
    let called = Uac::start(config).unwrap().join();
    assert_eq!(called.lines[0].failures.get("timeout: no response"), Some(&10));
    assert_eq!((called.lines[0].sent, called.lines[0].retransmissions), (10, 100));
}

//= RFC 6076 section 4.3.1
//# In some
//# cases, a non-100 Trying provisional message is not received, but rather a 200 message
//# is received as the first status message instead.  In these
//# situations, the 200 message would be used to calculate the interval.
#[test]
fn every_call_that_comes_about_has_one_session_request_delay_and_no_other_has() {
    let uas = callees(1, PATIENT);
    // Every other 180 is lost.
    let meddler = Meddler::start(uas.addresses().to_vec(), |_, octets| {
        let lost = octets.starts_with(b"SIP/2.0 180") && call_number(&octets).is_multiple_of(2);
        if lost { vec![] } else { vec![(octets, 0)] }
    });
    for (scenario, delays) in [("reinvite", 100), ("busy", 0), ("cancel", 0)] {
        let target = if scenario == "cancel" { uas.addresses()[0] } else { meddler.address };
        let called = Uac::start(callers(target, 100, scenario)).unwrap().join();
        assert_eq!(called.counts.completed, 100, "{scenario}: {:?}", called.lines);
        assert_eq!(called.ringing.count(), delays, "{scenario}");
    }
}

#[test]
fn requests_of_one_name_in_one_scenario_are_counted_apart() {
    let text = "name = \"x\"\n[[step]]\nsend = \"INVITE\"\n[[step]]\npause = \"1ms\"\n[[step]]\nsend = \"INVITE\"\n\
                [[step]]\nsend = \"BYE\"\n";
    let uas = callees(1, PATIENT);
    let mix = Scenario::read("x.toml", text).unwrap().into();
    let called = Uac::start(uac::Config { mix, ..callers(uas.addresses()[0], 10, "call") }).unwrap().join();
    let lines: Vec<_> = called.lines.iter().map(|line| (&*line.step, line.opens, line.answered)).collect();
    assert_eq!(lines, [("INVITE", true, 10), ("INVITE 2", false, 10), ("BYE", false, 10)]);
}

//= RFC 3261 section 12.1.1
//# When a UAS responds to a request with a response that establishes a
//# dialog (such as a 2xx to INVITE), the UAS MUST copy all Record-Route
//# header field values from the request into the response
#[test]
fn a_subscription_goes_along_the_route_that_the_element_recorded() {
    let uas = callees(1, PATIENT);
    let without_route = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counter = std::sync::Arc::clone(&without_route);
    let notified = std::sync::Arc::new(std::sync::Mutex::new(HashSet::new()));
    let notifies = std::sync::Arc::clone(&notified);
    let meddler = Meddler::start(uas.addresses().to_vec(), move |way, octets| {
        let text = String::from_utf8(octets).unwrap();
        if way == Way::There && text.starts_with("SUBSCRIBE") {
            if text.contains("\r\nCSeq: 1 ") {
                return vec![(text.replacen("\r\n", "\r\nRecord-Route: <sip:element.example;lr>\r\n", 1).into(), 0)];
            }
            let routed = text.contains("\r\nRoute: <sip:element.example;lr>\r\n");
            counter.fetch_add(u64::from(!routed), std::sync::atomic::Ordering::Relaxed);
        }
        if text.starts_with("NOTIFY") && text.contains("\r\nRoute: <sip:element.example;lr>\r\n") {
            notifies.lock().unwrap().insert(text.clone());
        }
        // RFC 6665 3.1.1: 200-class responses to SUBSCRIBE have an Expires, of no more than was asked for.
        let grants = text.contains("\r\nExpires: 600\r\n") || text.contains("\r\nExpires: 0\r\n");
        let granted = way == Way::There || !text.contains(" SUBSCRIBE\r\n") || grants;
        if granted { vec![(text.into(), 0)] } else { vec![] }
    });
    let config = uac::Config { timers: timers(BRISK), ..callers(meddler.address, 50, "subscribe") };
    let called = Uac::start(config).unwrap().join();
    assert_eq!((called.counts.completed, called.counts.altered), (50, 0), "{:?}", called.lines);
    assert_eq!(without_route.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert_eq!(notified.lock().unwrap().len(), 100, "the second of each, too, whose SUBSCRIBE has no Record-Route");
    assert_eq!(called.latency().count(), 100, "the wait for a NOTIFY is no latency of a request");
}

#[test]
fn who_was_busy_is_busy_when_called_again_at_once() {
    let again = "[[step]]\nsend = \"INVITE\"\nexpect = 486\n";
    let text = format!("name = \"x\"\ncallee = \"busy\"\n{again}{again}");
    let uas = callees(1, PATIENT);
    let mix = Scenario::read("x.toml", &text).unwrap().into();
    let called = Uac::start(uac::Config { mix, ..callers(uas.addresses()[0], 10, "call") }).unwrap().join();
    assert_eq!(called.counts.completed, 10, "{:?}", called.lines);
}

//= RFC 3261 section 13.3.1.4
// The 200 goes out again at the same times, which are those of Timer G as well, until the ACK comes or 64 T1 are over
// (Timer H).
#[test]
fn a_200_whose_ack_never_comes_is_sent_eleven_times_and_given_up() {
    let uas = Uas::start(uas::Config { backends: vec![any_port()], timers: timers(BRISK), ..uas::Config::default() })
        .unwrap();
    let meddler = Meddler::start(uas.addresses().to_vec(), |_, octets| match octets.starts_with(b"ACK") {
        true => vec![],
        false => vec![(octets, 0)],
    });
    let hold_ns = 80 * BRISK * MS_NS;
    let called = Uac::start(uac::Config { hold_ns, ..callers(meddler.address, 10, "call") }).unwrap().join();
    assert_eq!(
        (called.counts.completed, called.counts.failed),
        (10, 0),
        "a BYE ends it all the same: {:?}",
        called.lines
    );
    let took = uas.join().total();
    assert_eq!((took.resent, took.unacknowledged), (100, 10));
    assert_eq!(called.counts.copies, 100);
}

#[test]
fn a_bad_network_on_the_callers_side_costs_no_call_and_is_not_taken_for_the_elements_doing() {
    let uas = callees(1, BRISK);
    let impairment = Impairment { loss: 0.05, duplication: 0.1, reordering: 0.1 };
    let config = uac::Config { impairment, timers: timers(BRISK), ..callers(uas.addresses()[0], 500, "call") };
    let called = Uac::start(config).unwrap().join();
    let counts = called.counts;
    assert_eq!((counts.completed, counts.failed, counts.wrong), (500, 0, 0), "{:?}", called.lines);
    let done = counts.on_purpose;
    assert!(done.lost > 80 && done.duplicated > 80 && done.reordered > 80, "{done:?}");
    let took = uas.join().total();
    assert!(took.copies > 80, "{took:?}");
    assert!(took.reordered > 5, "a BYE that overtook its ACK: {took:?}");
    assert_eq!((took.calls, took.violations, took.altered), (500, 0, 0));
}

#[test]
fn a_200_that_comes_again_while_a_notify_is_awaited_is_a_copy() {
    let uas = callees(1, BRISK);
    let mut seen = HashSet::new();
    let meddler = Meddler::start(uas.addresses().to_vec(), move |way, octets| {
        // The first of each NOTIFY is lost, so that the copy comes before it.
        if way == Way::Back && octets.starts_with(b"NOTIFY") && seen.insert(octets.clone()) {
            return vec![];
        }
        let is_answer = way == Way::Back && octets.starts_with(b"SIP/2.0 200");
        vec![(octets, 0); 1 + usize::from(is_answer)]
    });
    let config = uac::Config { timers: timers(BRISK), ..callers(meddler.address, 50, "subscribe") };
    let called = Uac::start(config).unwrap().join();
    let counts = called.counts;
    assert_eq!((counts.completed, counts.wrong), (50, 0), "{:?}", called.wrongs);
    assert!(counts.copies >= 50, "{counts:?}");
}

#[test]
fn a_call_whose_messages_come_from_two_addresses_of_the_element_is_said_to_have_moved() {
    let uas = callees(1, PATIENT);
    let meddler = Meddler::start(uas.addresses().to_vec(), |way, octets| {
        let moves = way == Way::There && octets.starts_with(b"BYE") && call_number(&octets).is_multiple_of(4);
        vec![(octets, usize::from(moves))]
    });
    let called = Uac::start(callers(meddler.address, 200, "call")).unwrap().join();
    assert_eq!(called.counts.completed, 200, "{:?}", called.lines);
    let took = uas.join();
    assert!((20..80).contains(&took.total().moved), "{:?}", took.total());
    assert_eq!((&*took.moves[0].method, took.total().violations), ("BYE", 0));
}

#[test]
fn duplicates_and_late_copies_are_told_apart_from_calls() {
    let uas = callees(1, PATIENT);
    let meddler = Meddler::start(uas.addresses().to_vec(), |_, octets| vec![(octets.clone(), 0), (octets, 0)]);
    let called = Uac::start(callers(meddler.address, 200, "call")).unwrap().join();
    assert_eq!((called.counts.completed, called.counts.failed), (200, 0), "{:?}", called.lines);
    assert!(called.counts.copies + called.counts.late >= 200, "{:?}", called.counts);
    let took = uas.join().total();
    assert_eq!((took.calls, took.violations), (200, 0));
    assert!(took.copies >= 200, "{took:?}");
}

/// A change that something on the way makes to messages of one kind.
struct Change {
    way: Way,
    /// What the messages begin with.
    of: &'static str,
    from: &'static str,
    to: &'static str,
    /// What counts it: one for each, no more and no less.
    noticed: fn(&uac::Counts, &uas::Counts) -> u64,
}

/// A proxy alters every twentieth message of a kind. Whatever it alters, each is noticed, exactly once, by whom it reached.
#[test]
fn five_percent_altered_on_the_way_are_noticed_every_time() {
    const ALTERED_THERE: fn(&uac::Counts, &uas::Counts) -> u64 = |_, took| took.altered;
    const ALTERED_BACK: fn(&uac::Counts, &uas::Counts) -> u64 = |called, _| called.altered;
    const WRONG_BACK: fn(&uac::Counts, &uas::Counts) -> u64 = |called, _| called.wrong;
    const UNREADABLE: fn(&uac::Counts, &uas::Counts) -> u64 = |called, took| called.malformed + took.malformed;
    const NOBODYS: fn(&uac::Counts, &uas::Counts) -> u64 = |called, _| called.strays;
    let change = |way, of, from, to, noticed| Change { way, of, from, to, noticed };
    let (there, back) = (Way::There, Way::Back);
    for Change { way, of, from, to, noticed } in [
        change(there, "INVITE", "a=sendrecv", "a=sendonly", ALTERED_THERE),
        change(there, "INVITE", "\r\nv=0\r\n", "\r\nv=1\r\n", ALTERED_THERE),
        change(there, "INVITE", "Contact: <sip:caller", "Contact: <sip:dealer", ALTERED_THERE),
        change(there, "INVITE", "application/sdp", "application/sdq", ALTERED_THERE),
        change(there, "ACK", "User-Agent", "Expires: 5\r\nUser-Agent", ALTERED_THERE),
        change(there, "BYE", "To: <", "To: \"B\" <", ALTERED_THERE),
        change(there, "INVITE", "Content-Length: ", "Content-Length: 9", UNREADABLE),
        change(back, "SIP/2.0 200", "a=sendrecv", "a=inactive", ALTERED_BACK),
        change(back, "SIP/2.0 180", "180", "183", ALTERED_BACK),
        change(back, "SIP/2.0 200", "Contact: <sip:callee", "Contact: <sip:called", ALTERED_BACK),
        change(back, "SIP/2.0 180", "X-Load: ", "X-Load: 0", ALTERED_BACK),
        change(back, "SIP/2.0 180", ";rport", ";mangled;rport", WRONG_BACK),
        change(back, "SIP/2.0 180", "\r\nFrom:", "\r\nVia: SIP/2.0/UDP h\r\nFrom:", WRONG_BACK),
        change(back, "SIP/2.0 180", "From: <sip:c", "From: <sip:k", WRONG_BACK),
        change(back, "SIP/2.0 180", "Call-ID: ", "Call-ID: 0", WRONG_BACK),
        change(back, "SIP/2.0 180", "CSeq: 1", "CSeq: 2", WRONG_BACK),
        change(back, "SIP/2.0 180", "branch=z9hG4bK", "branch=z9hG4bk", NOBODYS),
        change(back, "SIP/2.0 180", "Via:", "Via;", UNREADABLE),
    ] {
        let uas = callees(1, PATIENT);
        let altered = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let counter = std::sync::Arc::clone(&altered);
        let mut number = 0;
        let meddler = Meddler::start(uas.addresses().to_vec(), move |this_way, octets| {
            let text = String::from_utf8(octets).unwrap();
            if this_way != way || !text.starts_with(of) || !text.contains(from) {
                return vec![(text.into(), 0)];
            }
            number += 1;
            if number % 20 != 7 {
                return vec![(text.into(), 0)];
            }
            counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            vec![(text.replacen(from, to, 1).into(), 0)]
        });
        let called = Uac::start(callers(meddler.address, 400, "call")).unwrap().join();
        drop(meddler);
        let took = uas.join().total();
        let altered = altered.load(std::sync::atomic::Ordering::Relaxed);
        let what = format!("{of}: {from:?} -> {to:?}");
        assert!(
            (5..=25).contains(&altered),
            "{what}: every twentieth of 400, more with copies, less of what a stall has lost: {altered}"
        );
        assert_eq!(noticed(&called.counts, &took), altered, "{what}: {:?} {took:?}", called.counts);
        let c = called.counts;
        let all = c.altered + c.wrong + c.malformed + c.strays + took.altered + took.malformed;
        assert_eq!(all, altered, "{what}: noticed once each: {c:?} {took:?}");
    }
}

#[test]
fn a_message_that_reaches_another_backend_than_its_call_is_a_violation() {
    let uas = callees(2, PATIENT);
    let meddler = Meddler::start(uas.addresses().to_vec(), |way, octets| {
        // BYEs of every other call go astray.
        let astray = way == Way::There && octets.starts_with(b"BYE") && call_number(&octets).is_multiple_of(2);
        vec![(octets, usize::from(astray))]
    });
    let called = Uac::start(callers(meddler.address, 200, "call")).unwrap().join();
    let took = uas.join();
    let astray = took.backends[1].counts;
    assert!(astray.violations > 40, "{astray:?}");
    assert_eq!((astray.violations, astray.unknown), (astray.requests, astray.requests));
    assert_eq!(called.counts.failed, astray.requests);
    assert_eq!(called.lines[1].failures.get("481"), Some(&astray.requests), "{:?}", called.lines);
    let listed = &took.violations[0];
    assert_eq!((listed.owner, listed.reached, &*listed.method), (0, 1, "BYE"));
}

#[test]
fn a_response_with_a_via_too_many_or_a_foreign_tag_is_discarded_and_listed() {
    for (what, from, to) in [
        ("Via", "\r\nFrom:", "\r\nVia: SIP/2.0/UDP other\r\nFrom:"),
        ("Via", ";rport", ";mangled"),
        ("Call-ID", "Call-ID: ", "Call-ID: 0"),
        ("From", "From: <sip:c", "From: <sip:d"),
        ("CSeq", "CSeq: 1 ", "CSeq: 7 "),
        ("To tag", ">;tag=", ">;got="),
    ] {
        let uas = callees(1, PATIENT);
        let meddler = Meddler::start(uas.addresses().to_vec(), move |way, octets| {
            let text = String::from_utf8(octets).unwrap();
            // Only the To of a response has its tag in the row after From.
            let at = if what == "To tag" { text.find("\nTo:").unwrap_or(0) } else { 0 };
            let text =
                if way == Way::Back { format!("{}{}", &text[..at], text[at..].replacen(from, to, 1)) } else { text };
            vec![(text.into(), 0)]
        });
        let config = uac::Config { timers: timers(2), ..callers(meddler.address, 20, "options") };
        let called = Uac::start(config).unwrap().join();
        assert_eq!((called.counts.completed, called.counts.failed), (0, 20), "{what}: {:?}", called.counts);
        assert!(called.counts.wrong >= 20, "{what}");
        assert_eq!(&*called.wrongs[0].what, what);
    }
}

#[test]
fn a_target_where_nobody_listens_ends_after_64_t1_and_is_said_to_refuse() {
    let gone = free_port();
    let called = Uac::start(uac::Config { timers: timers(10), ..callers(gone, 10, "call") }).unwrap().join();
    assert_eq!((called.counts.failed, called.counts.completed), (10, 0));
    assert_eq!(called.lines[0].failures.get("timeout: no response"), Some(&10));
    // T1, 2 T1, … 32 T1: six retransmissions fit into 64 T1.
    assert_eq!(called.counts.retransmissions, 60);
    assert_eq!(called.counts.refused, 70, "each of the 70 datagrams was refused by the kernel");
    assert!((640 * MS_NS..2 * SECOND_NS).contains(&called.elapsed_ns), "{}", called.elapsed_ns);
}

#[test]
fn a_backend_that_died_and_came_back_knows_nothing_of_its_calls() {
    let uas = callees(2, PATIENT);
    let config = uac::Config { hold_ns: 300 * MS_NS, ..callers(uas.addresses()[0], 50, "call") };
    let uac = Uac::start(config).unwrap();
    while uas.snapshot().backends[0].open < 50 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(uac.snapshot().open, 50);
    uas.kill(0);
    assert!(!uas.snapshot().backends[0].alive);
    uas.restore(0).unwrap();
    uas.restore(0).unwrap();
    let called = uac.join();
    let took = uas.join();
    assert_eq!(called.lines[1].failures.get("481"), Some(&50), "{:?}", called.lines);
    assert_eq!(
        (took.total().violations, took.total().orphans),
        (0, 50),
        "its owner is dead, so nobody else is to blame"
    );
    assert!(took.backends[0].alive && took.backends[0].open == 0);
}

#[test]
fn new_calls_are_listed_with_the_backend_that_took_them() {
    let uas = callees(2, PATIENT);
    let meddler = Meddler::start(uas.addresses().to_vec(), |_, octets| {
        let backend = call_number(&octets) as usize % 2;
        vec![(octets, backend)]
    });
    let called = Uac::start(callers(meddler.address, 100, "call")).unwrap().join();
    assert_eq!(called.counts.completed, 100);
    let listed = uas.take_new_calls();
    assert_eq!(listed.len(), 100);
    for call in &listed {
        let octets = format!("Call-ID: {}", call.call_id);
        assert_eq!(call.backend, call_number(octets.as_bytes()) as usize % 2);
    }
    assert!(listed.windows(2).all(|pair| pair[0].at_ns <= pair[1].at_ns));
    assert!(uas.take_new_calls().is_empty());
}

#[test]
fn asking_says_which_backend_each_call_id_leads_to() {
    let uas = callees(3, PATIENT);
    let meddler = Meddler::start(uas.addresses().to_vec(), |_, octets| {
        let backend = call_number(&octets) as usize % 3;
        vec![(octets, backend)]
    });
    let call_ids: Vec<String> = (0..500).map(|number| format!("probe-{number}@example.net")).collect();
    let answers = ask(&call_ids, meddler.address).unwrap();
    for (call_id, answer) in call_ids.iter().zip(&answers) {
        assert_eq!(*answer, Some(call_number(format!("Call-ID: {call_id}").as_bytes()) as usize % 3));
    }
    let gone = uas.addresses()[0];
    uas.kill(0);
    assert_eq!(ask(&call_ids[..3], gone).unwrap(), [None, None, None]);
}

#[test]
fn a_run_that_is_stopped_drains_and_one_that_is_cut_says_what_was_open() {
    let uas = callees(1, PATIENT);
    let config = || uac::Config { hold_ns: 100 * MS_NS, ..callers(uas.addresses()[0], u64::MAX, "call") };
    let wait = |uac: &Uac| {
        while uac.snapshot().open < 50 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    let uac = Uac::start(config()).unwrap();
    wait(&uac);
    uac.stop();
    let called = uac.join();
    assert_eq!((called.counts.completed, called.counts.cut), (called.counts.placed, 0));
    let uac = Uac::start(config()).unwrap();
    wait(&uac);
    uac.cut();
    let called = uac.join();
    assert!(called.counts.cut >= 50);
    assert_eq!(called.counts.completed + called.counts.cut, called.counts.placed);
}

#[test]
fn the_rate_can_be_changed_and_paused_while_it_runs() {
    let uas = callees(1, PATIENT);
    let uac = Uac::start(callers(uas.addresses()[0], u64::MAX, "options")).unwrap();
    uac.set_rate(0.0);
    std::thread::sleep(std::time::Duration::from_millis(30));
    let paused = uac.snapshot().counts.placed;
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(uac.snapshot().counts.placed, paused);
    assert!(!uac.is_finished());
    uac.set_rate(1000.0);
    while uac.snapshot().counts.placed < paused + 50 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    uac.stop();
    let report = uac.join();
    assert_eq!(report.counts.completed, report.counts.placed);
}

//= RFC 3261 section 13.2.2.4
//# The UAC core MUST generate an ACK request for each 2xx received from
//# the transaction layer.
#[test]
fn a_200_without_contact_fails_its_call_and_is_acknowledged_and_ended_all_the_same() {
    let puppet = Puppet::start(|message| match message.starts_with("ACK") {
        true => vec![],
        false => vec![answer(message, "200 OK", "them", "")],
    });
    let called = Uac::start(callers(puppet.address, 5, "call")).unwrap().join();
    assert_eq!(called.lines[0].failures.get("2xx without Contact"), Some(&5), "{:?}", called.lines);
    assert_eq!((called.counts.failed, called.ringing.count()), (5, 0));
    let heard = puppet.heard();
    for method in ["ACK", "BYE"] {
        let those: Vec<_> = heard.iter().filter(|message| message.starts_with(method)).collect();
        assert_eq!(those.len(), 5, "{heard:?}");
        let whole = |message: &&String| message.contains(" sip:callee") && message.contains(">;tag=them\r\n");
        assert!(those.iter().all(whole), "{those:?}");
    }
}

//= RFC 3261 section 17.1.1.2
//# Any retransmissions of the final response that
//# are received while in the "Completed" state MUST cause the ACK to be
//# re-passed to the transport layer for retransmission
#[test]
fn a_challenge_that_comes_again_after_the_call_is_up_gets_its_ack_again() {
    let mut challenges = HashMap::new();
    let puppet = Puppet::start(move |message| {
        let call_id = row(message, "Call-ID: ").to_owned();
        match message.split(' ').next().unwrap() {
            "INVITE" if !message.contains("\r\nAuthorization: ") => {
                let asks = "WWW-Authenticate: Digest realm=\"r\", nonce=\"n\"\r\n";
                let challenge = answer(message, "401 Unauthorized", "proxy", asks);
                challenges.insert(call_id, challenge.clone());
                vec![challenge]
            }
            // Once while the INVITE is under way again, and once after its 200, which has another tag and a next hop.
            "INVITE" => {
                let again = challenges[&call_id].clone();
                let rows = "Contact: <sip:them@127.0.0.1:9>\r\nRecord-Route: <sip:127.0.0.1:9;lr>\r\n";
                vec![again.clone(), answer(message, "200 OK", "them", rows), again]
            }
            _ => vec![],
        }
    });
    let config =
        uac::Config { password: Some("secret".into()), drain_ns: 100 * MS_NS, ..callers(puppet.address, 5, "call") };
    let called = Uac::start(config).unwrap().join();
    assert_eq!((called.lines[0].answered, called.counts.copies), (5, 10), "{:?}", called.counts);
    assert_eq!(called.counts.wrong, 0, "{:?}", called.wrongs);
    let heard = puppet.heard();
    let acks: Vec<_> = heard.iter().filter(|message| message.starts_with("ACK")).collect();
    assert_eq!(acks.len(), 15, "{acks:?}");
    for ack in acks {
        let invite = heard.iter().find(|message| row(message, "Via: ") == row(ack, "Via: ")).unwrap();
        assert_eq!(invite.replacen("INVITE", "ACK", 1).lines().next(), ack.lines().next());
        assert_eq!(row(ack, "CSeq: "), "1 ACK");
        assert_eq!(row(ack, "To: "), format!("{};tag=proxy", row(invite, "To: ")));
    }
}

#[test]
fn a_200_that_comes_again_while_the_next_invite_is_under_way_gets_its_ack_again() {
    let mut first = HashMap::new();
    let puppet = Puppet::start(move |message| {
        let ok = answer(message, "200 OK", "them", "Contact: <sip:them@127.0.0.1:9>\r\n");
        match (message.split(' ').next().unwrap(), row(message, "CSeq: ")) {
            ("ACK", _) => vec![],
            ("INVITE", "1 INVITE") => {
                first.insert(row(message, "Call-ID: ").to_owned(), ok.clone());
                vec![ok]
            }
            ("INVITE", _) => vec![first[row(message, "Call-ID: ")].clone(), ok],
            _ => vec![ok],
        }
    });
    let called = Uac::start(callers(puppet.address, 5, "reinvite")).unwrap().join();
    assert_eq!((called.counts.completed, called.counts.copies, called.counts.wrong), (5, 5, 0), "{:?}", called.wrongs);
    let heard = puppet.heard();
    let acks = |cseq| heard.iter().filter(|message| row(message, "CSeq: ") == cseq).collect::<Vec<_>>();
    assert_eq!((acks("1 ACK").len(), acks("2 ACK").len()), (10, 5), "{heard:?}");
    assert!(acks("1 ACK").iter().all(|ack| acks("1 ACK").iter().filter(|other| other == &ack).count() == 2));
}

/// The value of a row, which begins with `name`.
fn row<'a>(message: &'a str, name: &str) -> &'a str {
    message.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default()
}

#[test]
fn credentials_for_a_proxy_count_on_when_the_server_behind_it_asks_too() {
    let puppet = Puppet::start(|message| {
        let asks = |realm| format!("Digest realm=\"{realm}\", nonce=\"{realm}\", qop=\"auth\"\r\n");
        let given = |name| !row(message, name).is_empty();
        vec![match (given("Proxy-Authorization: "), given("Authorization: ")) {
            (false, _) => answer(message, "407 P", "p", &format!("Proxy-Authenticate: {}", asks("p"))),
            (true, false) => answer(message, "401 S", "s", &format!("WWW-Authenticate: {}", asks("s"))),
            (true, true) => answer(message, "200 OK", "s", ""),
        }]
    });
    let config = uac::Config { password: Some("secret".into()), ..callers(puppet.address, 5, "register") };
    let called = Uac::start(config).unwrap().join();
    assert_eq!((called.counts.completed, called.lines[0].challenged), (5, 10), "{:?}", called.lines);
    let heard = puppet.heard();
    let nc = |name| heard.iter().filter_map(move |message| row(message, name).split("nc=").nth(1)).collect::<Vec<_>>();
    let mut proxys = nc("Proxy-Authorization: ");
    proxys.sort_unstable();
    assert_eq!(proxys, [["00000001"; 5], ["00000002"; 5]].concat());
    assert_eq!(nc("Authorization: "), ["00000001"; 5]);
}

//= RFC 3264 section 6.1
//# If a stream is offered as sendonly, the corresponding stream MUST be
//# marked as recvonly or inactive in the answer.
#[test]
fn who_is_put_on_hold_and_back_answers_each_offer_with_a_version_of_its_own() {
    let puppet = Puppet::start(|message| match (message.starts_with("SIP/2.0"), row(message, "CSeq: ")) {
        (false, "1 ACK") => vec![of_callee(message, "INVITE", 1, "v=0\r\na=sendonly\r\n")],
        (true, "1 INVITE") => vec![of_callee(message, "ACK", 1, ""), of_callee(message, "UPDATE", 2, "v=0\r\n")],
        (true, "2 UPDATE") => vec![of_callee(message, "INFO", 3, "")],
        (true, _) | (_, "2 ACK") => vec![],
        (false, _) => vec![answer(message, "200 OK", "them", "Contact: <sip:them@127.0.0.1:9>\r\n")],
    });
    let hold_ns = 300 * MS_NS;
    let called = Uac::start(uac::Config { hold_ns, ..callers(puppet.address, 5, "call") }).unwrap().join();
    let counts = called.counts;
    assert_eq!((counts.completed, counts.requests_received, counts.unexpected), (5, 20, 0), "{:?}", called.wrongs);
    let heard = puppet.heard();
    let answers = |cseq| {
        heard.iter().filter(|message| message.starts_with("SIP") && row(message, "CSeq: ") == cseq).collect::<Vec<_>>()
    };
    for (cseq, version, direction) in [("1 INVITE", "2890844527", "recvonly"), ("2 UPDATE", "2890844528", "sendrecv")] {
        let whole = |answer: &&&String| {
            let sdp = format!("o=alice 2890844526 {version} IN IP4");
            answer.contains(&sdp)
                && answer.ends_with(&format!("a={direction}\r\n"))
                && row(answer, "Contact: ").starts_with("<sip:caller")
        };
        assert_eq!(answers(cseq).iter().filter(whole).count(), 5, "{cseq}: {:?}", answers(cseq));
    }
    assert!(answers("3 INFO").iter().all(|answer| answer.starts_with("SIP/2.0 200") && answer.ends_with("\r\n\r\n")));
    let byes: Vec<_> = heard.iter().filter(|message| message.starts_with("BYE sip:moved@")).collect();
    assert_eq!(byes.len(), 5, "{heard:?}");
}

//= RFC 3261 section 14.2
//# A UAS that receives an INVITE on a dialog while an INVITE it had sent
//# on that dialog is in progress MUST return a 491 (Request Pending)
//# response to the received INVITE.
#[test]
fn an_invite_of_the_callee_that_crosses_the_callers_is_refused() {
    let mut pending = HashMap::new();
    let puppet = Puppet::start(move |message| {
        let call_id = row(message, "Call-ID: ").to_owned();
        let ok = answer(message, "200 OK", "them", "Contact: <sip:them@127.0.0.1:9>\r\n");
        match (message.starts_with("SIP/2.0"), row(message, "CSeq: ")) {
            (false, "2 INVITE") => {
                pending.insert(call_id, ok);
                vec![of_callee(message, "INVITE", 1, "v=0\r\n")]
            }
            (true, _) if message.starts_with("SIP/2.0 491 ") => {
                vec![of_callee(message, "ACK", 1, ""), pending[&call_id].clone()]
            }
            (true, _) | (_, "1 ACK" | "2 ACK") => vec![],
            (false, _) => vec![ok],
        }
    });
    let called = Uac::start(callers(puppet.address, 5, "reinvite")).unwrap().join();
    assert_eq!((called.counts.completed, called.counts.unexpected), (5, 0), "{:?}", called.wrongs);
    assert!(
        puppet.heard().iter().any(|message| message.starts_with("BYE sip:them@")),
        "what was refused moves nothing"
    );
}

/// A request of the callee, in the call that a request or an answer of the caller belongs to.
fn of_callee(message: &str, method: &str, cseq: u32, body: &str) -> String {
    let names = if message.starts_with("SIP/2.0") { ["From: ", "To: "] } else { ["To: ", "From: "] };
    let [from, to] = names.map(|name| row(message, name));
    format!(
        "{method} sip:caller@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1;rport;branch=z9hG4bK{cseq}{method}\r\nMax-Forwards: 70\r\n\
         From: {from}\r\nTo: {to}\r\nCall-ID: {}\r\nCSeq: {cseq} {method}\r\nContact: <sip:moved@127.0.0.1:9>\r\n\
         Content-Length: {}\r\n\r\n{body}",
        row(message, "Call-ID: "),
        body.len()
    )
}
