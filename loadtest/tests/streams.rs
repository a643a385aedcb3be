//! Callers against callees over TCP and TLS: every scenario as it should be, whatever pieces the stream comes in; and what becomes of
//! calls whose connection is lost.

mod support;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use support::{PATIENT, callers, timers};
use viahop_load::clock::{MS_NS, SECOND_NS};
use viahop_load::digest::Realm;
use viahop_load::endpoint::{Endpoint, Transport};
use viahop_load::fault::Fault;
use viahop_load::log::Log;
use viahop_load::scenario::BUILT_IN;
use viahop_load::tls;
use viahop_load::uac::{self, Uac};
use viahop_load::uas::{self, Uas};

fn tcp(address: SocketAddr) -> Endpoint {
    Endpoint { transport: Transport::Tcp, address }
}

fn any_port() -> Endpoint {
    tcp(SocketAddr::from(([127, 0, 0, 1], 0)))
}

fn callees(count: usize) -> Uas {
    let backends = vec![any_port(); count];
    Uas::start(uas::Config { backends, timers: timers(PATIENT), ..uas::Config::default() }).unwrap()
}

/// What must be so after a run in which nothing went wrong.
fn assert_clean(called: &uac::Report, took: &uas::Report) {
    let (caller, callee) = (called.counts, took.total());
    assert_eq!(caller.completed, caller.placed, "{caller:?} {:?}", called.lines);
    assert_eq!((caller.failed, caller.cut, caller.wrong, caller.altered), (0, 0, 0, 0), "{:?}", called.wrongs);
    assert_eq!((caller.strays, caller.late, caller.malformed, caller.refused, caller.unsent), (0, 0, 0, 0, 0));
    assert_eq!((caller.unsealed, caller.unexpected, callee.unsealed), (0, 0, 0));
    assert_eq!((caller.retransmissions, caller.copies, callee.copies, callee.resent), (0, 0, 0, 0), "sent once");
    assert_eq!((caller.connections_lost, caller.reconnects, callee.unsent), (0, 0, 0));
    assert_eq!((callee.moved, callee.reordered), (0, 0), "{:?}", took.moves);
    assert_eq!((callee.violations, callee.orphans, callee.unknown), (0, 0, 0), "{:?}", took.violations);
    assert_eq!((callee.altered, callee.malformed, callee.unacknowledged, callee.abandoned), (0, 0, 0, 0));
    assert_eq!(took.backends.iter().map(|backend| backend.open).sum::<u64>(), 0);
}

#[test]
fn every_scenario_that_is_built_in_goes_over_connections_too() {
    let both = |(name, _): &(&'static str, _)| [(*name, Transport::Tcp), (*name, Transport::Tls)];
    for (name, transport) in BUILT_IN.iter().flat_map(both) {
        let realm = (name == "register-digest").then(|| Realm::new("SHA-256", "secret").unwrap());
        let timers = timers(PATIENT);
        let backends = vec![Endpoint { transport, ..any_port() }];
        let config = uas::Config { backends, timers, realm, ..uas::Config::default() };
        let uas = Uas::start(config).unwrap();
        let (hold_ns, password) = (3 * MS_NS, Some("secret".into()));
        let config = callers(tcp(uas.addresses()[0]), 200, name);
        let called = Uac::start(uac::Config { transport, hold_ns, password, connections: 3, ..config }).unwrap().join();
        let took = uas.join();
        let log = Log { calls: Some(called.clone()), callees: Some(took.clone()), ..Log::new() };
        assert!(log.flows().iter().all(|flow| flow.missing() == Some(0)), "{name}: {:?}", log.flows());
        assert_clean(&called, &took);
        assert_eq!((called.counts.placed, took.total().connections), (200, 3), "{name} {transport}");
        assert!(called.lines.iter().all(|line| line.answered == 200 && line.latency.count() == 200), "{name}");
    }
}

#[test]
fn connections_are_spread_over_the_shards() {
    let uas = Uas::start(uas::Config { backends: vec![any_port(); 2], cores: vec![None; 2], ..uas::Config::default() });
    let uas = uas.unwrap();
    let config = uac::Config { cores: vec![None; 2], connections: 5, ..callers(tcp(uas.addresses()[1]), 300, "call") };
    let uac = Uac::start(config).unwrap();
    assert_eq!(uac.addresses().len(), 5);
    let called = uac.join();
    let took = uas.join();
    assert_clean(&called, &took);
    assert_eq!((took.backends[0].counts.connections, took.backends[1].counts.connections), (0, 5));
}

#[test]
fn callers_over_tls_may_demand_a_certificate_and_plain_ones_get_nowhere() {
    let folder = std::env::temp_dir().join(format!("viahop-load-tls-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let made = tls::SelfSigned::new(vec!["sip.example.net".to_owned()]).unwrap();
    let other = tls::SelfSigned::new(vec!["sip.example.net".to_owned()]).unwrap();
    let (certificate, key) = (write("cert.pem", &made.certificate), write("key.pem", &made.key));
    let foreign = write("other.pem", &other.certificate);
    let backends = vec![Endpoint { transport: Transport::Tls, ..any_port() }];
    let server = tls::Server::new(&certificate, &key).unwrap();
    let uas = Uas::start(uas::Config { backends, tls: Some(server), ..uas::Config::default() }).unwrap();
    let target = uas.addresses()[0];
    let call = |name: &str, ca: Option<&std::path::Path>| {
        let tls = Some(tls::Client::new(name, ca).unwrap());
        let config =
            uac::Config { transport: Transport::Tls, tls, timers: timers(20), ..callers(tcp(target), 20, "options") };
        Uac::start(config).unwrap().join()
    };
    for (name, ca) in [("sip.example.net", Some(&*certificate)), ("192.0.2.1", None)] {
        assert_eq!(call(name, ca).counts.completed, 20, "{name}");
    }
    for (name, ca) in [("pbx.example.net", &certificate), ("sip.example.net", &foreign)] {
        let called = call(name, Some(ca));
        let why = "TLS: a certificate that is not trusted";
        assert_eq!(called.lines[0].failures.get(why), Some(&20), "{name}: {:?}", called.lines);
    }
    let called = Uac::start(callers(tcp(target), 20, "options")).unwrap().join();
    assert_eq!(called.counts.failed, 20, "{:?}", called.lines);
    let took = uas.join().total();
    assert_eq!((took.options, took.malformed), (40, 0));
    assert!(tls::Server::new(&key, &certificate).is_err() && tls::Client::new("", None).is_err());
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A relay for connections; `pass` gets what has come on one of them, and where it is to go, until it says no.
fn relay(to: SocketAddr, pass: impl Fn(&[u8], &mut TcpStream) -> bool + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let pass = Arc::new(pass);
    let spawn = |run: Box<dyn FnOnce() + Send>| std::thread::Builder::new().name("relay".into()).spawn(run).unwrap();
    spawn(Box::new(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect(to) else { continue };
            for stream in [&client, &server] {
                stream.set_nodelay(true).unwrap();
            }
            for (mut from, mut to) in [
                (client.try_clone().unwrap(), server.try_clone().unwrap()),
                (server.try_clone().unwrap(), client.try_clone().unwrap()),
            ] {
                let pass = Arc::clone(&pass);
                spawn(Box::new(move || {
                    let mut room = [0; 65_536];
                    while let Ok(count @ 1..) = from.read(&mut room) {
                        if !pass(&room[..count], &mut to) {
                            break;
                        }
                    }
                    let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
                }));
            }
        }
    }));
    address
}

#[test]
fn a_stream_in_pieces_is_the_same_calls() {
    let uas = callees(1);
    let through = relay(uas.addresses()[0], |octets, to| {
        // Of an odd length that nothing divides, and one octet by itself in between.
        octets.chunks(97).all(|piece| {
            let (first, rest) = piece.split_at(1);
            to.write_all(first).and_then(|()| to.write_all(rest)).is_ok()
        })
    });
    let called =
        Uac::start(uac::Config { rate: 500.0, connections: 2, ..callers(tcp(through), 100, "call") }).unwrap().join();
    let took = uas.join();
    assert_clean(&called, &took);
    assert_eq!(called.counts.completed, 100);
}

#[test]
fn calls_whose_connection_is_lost_fail_for_that_reason_and_the_next_go_through() {
    let uas = callees(1);
    // The connection breaks with the 20th 180 that is on its way back.
    let ringing = AtomicU64::new(0);
    let through = relay(uas.addresses()[0], move |octets, to| {
        let count = String::from_utf8_lossy(octets).matches("SIP/2.0 180").count() as u64;
        let before = ringing.fetch_add(count, Ordering::Relaxed);
        !(before < 20 && before + count >= 20) && to.write_all(octets).is_ok()
    });
    let config = uac::Config { rate: 200.0, hold_ns: 50 * MS_NS, ..callers(tcp(through), 60, "call") };
    let called = Uac::start(config).unwrap().join();
    let counts = called.counts;
    let lost: u64 = called.lines[0].failures.values().sum();
    assert!((1..=20).contains(&lost) && counts.failed >= lost, "{:?}", called.lines);
    assert!(called.lines.iter().flat_map(|line| line.failures.keys()).all(|why| why.starts_with("connection ")));
    assert_eq!((counts.connections_lost, counts.reconnects, counts.retransmissions), (1, 1, 0));
    // Calls that were up outlive it.
    assert_eq!(counts.completed, 60 - counts.failed);
    assert!(counts.completed >= 40, "{:?}", called.lines);
    uas.join();
}

#[test]
fn where_nobody_listens_calls_fail_at_once_and_not_after_timer_b() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let called = Uac::start(callers(tcp(gone), 20, "options")).unwrap().join();
    assert_eq!(called.lines[0].failures.get("connection refused"), Some(&20), "{:?}", called.lines);
    assert!(called.elapsed_ns < 5 * SECOND_NS && called.counts.refused > 0);
}

#[test]
fn a_backend_that_dies_takes_its_connections_along_and_comes_back() {
    let uas = callees(1);
    let uac =
        Uac::start(uac::Config { rate: 200.0, calls: 200, ..callers(tcp(uas.addresses()[0]), 0, "options") }).unwrap();
    while uac.snapshot().counts.completed < 20 {
        std::thread::sleep(Duration::from_millis(5));
    }
    uas.kill(0);
    while uac.snapshot().counts.failed == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    uas.restore(0).unwrap();
    let called = uac.join();
    assert_eq!(called.counts.completed + called.counts.failed, 200, "{:?}", called.lines);
    assert!(called.counts.completed > 20 && called.counts.reconnects > 0, "{:?}", called.lines);
    uas.join();
}

//= RFC 3261 section 17.1.1.2
//# For
//# any transport, the client transaction MUST start timer B with a value
//# of 64*T1 seconds (Timer B controls transaction timeouts).
#[test]
fn nothing_is_sent_again_over_a_connection_but_timers_b_and_f_run() {
    let faults = vec![Fault::Silent(1.0)];
    let uas = Uas::start(uas::Config { backends: vec![any_port()], faults, ..uas::Config::default() }).unwrap();
    for scenario in ["call", "options"] {
        let config = uac::Config { timers: timers(10), ..callers(tcp(uas.addresses()[0]), 10, scenario) };
        let called = Uac::start(config).unwrap().join();
        assert_eq!(called.lines[0].failures.get("timeout: no response"), Some(&10), "{:?}", called.lines);
        assert_eq!(called.counts.retransmissions, 0);
        assert!(called.elapsed_ns >= 640 * MS_NS);
    }
    assert_eq!(uas.join().total().copies, 0);
}

#[test]
fn a_ping_is_answered_and_what_is_no_message_costs_only_its_own_connection() {
    let uas = callees(1);
    let address = uas.addresses()[0];
    let connect = || {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    };
    let (mut quiet, mut bad) = (connect(), connect());
    let mut room = [0; 2];
    quiet.write_all(b"\r\n\r\n").unwrap();
    quiet.read_exact(&mut room).unwrap();
    assert_eq!(&room, b"\r\n");
    bad.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(bad.read_exact(&mut room[..1]).is_err_and(|error| error.kind() != ErrorKind::WouldBlock), "closed");
    let options = "OPTIONS sip:a SIP/2.0\r\nVia: SIP/2.0/TCP h;branch=z9hG4bK1\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:a>\r\n\
                   Call-ID: c\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n";
    quiet.write_all(options.as_bytes()).unwrap();
    let rows = BufReader::new(&quiet).lines().map(Result::unwrap);
    let answer = rows.take_while(|row| !row.is_empty()).collect::<Vec<_>>().join("\n");
    assert!(answer.starts_with("SIP/2.0 200 OK\n") && answer.contains(";transport=tcp>"), "{answer}");
    let took = uas.join().total();
    assert_eq!((took.malformed, took.options, took.connections), (1, 1, 2));
}

#[test]
fn an_other_side_that_reads_nothing_loses_its_connection_and_its_calls_fail_for_that_reason() {
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = deaf.local_addr().unwrap();
    // What is not accepted is not read either; the kernel takes some of it, our own buffer the rest, and then no more.
    let config =
        uac::Config { rate: 60_000.0, duration_ns: SECOND_NS, calls: 40_000, ..callers(tcp(target), 0, "call") };
    let called = Uac::start(uac::Config { calls: 40_000, drain_ns: 0, ..config }).unwrap().join();
    let why = "connection: the other side does not read";
    assert!(called.lines[0].failures.get(why).is_some_and(|count| *count > 1000), "{:?}", called.lines[0].failures);
}
