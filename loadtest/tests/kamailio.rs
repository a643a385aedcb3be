//! Against Kamailio, which was written by others: as the registrar that challenges, and as the element in the path.
//! Skipped, visibly, where Kamailio is not installed.

mod support;

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::{any_port, free_port, timers};
use viahop_load::clock::{MS_NS, SECOND_NS};
use viahop_load::compare::element::Element;
use viahop_load::endpoint::{Endpoint, Transport};
use viahop_load::scenario::{Mix, Scenario};
use viahop_load::uac::ask::ask;
use viahop_load::uac::{self, Uac};
use viahop_load::uas::{self, Uas};

/// Where Debian has Kamailio's modules.
const MODULES: [&str; 2] =
    ["/usr/lib/x86_64-linux-gnu/kamailio/modules", "/usr/lib/aarch64-linux-gnu/kamailio/modules"];

#[test]
fn a_registrar_that_challenges_accepts_md5_and_sha_256_and_refuses_a_wrong_password() {
    for algorithm in ["MD5", "SHA-256"] {
        let Some(kamailio) = Kamailio::start(algorithm) else { return };
        let config = uac::Config {
            mix: Scenario::built_in("register").unwrap().into(),
            rate: 500.0,
            calls: 500,
            users: 100,
            password: Some("secret".into()),
            ..uac::Config::new(kamailio.at)
        };
        let called = Uac::start(config.clone()).unwrap().join();
        let line = &called.lines[0];
        assert_eq!((called.counts.completed, line.challenged), (500, 500), "{algorithm}: {line:?}");
        assert_eq!((line.sent, called.counts.wrong), (1000, 0), "{:?}", called.wrongs);

        let config = uac::Config { password: Some("Secret".into()), calls: 20, ..config };
        let called = Uac::start(config).unwrap().join();
        assert_eq!(called.counts.failed, 20);
        assert_eq!(called.lines[0].failures.get("401"), Some(&20), "{:?}", called.lines);
    }
}

#[test]
fn twenty_thousand_calls_through_a_dispatcher_are_all_verified() {
    let element = match Element::read("kamailio", Path::new("viahop")) {
        Ok(element) => element,
        Err(why) => return skip(&why),
    };
    let uas = Uas::start(uas::Config { backends: vec![any_port()], ..uas::Config::default() }).unwrap();
    let core = viahop_load::sys::process::cores()[0];
    let running = element.start(core, uas.addresses()[0]).unwrap();
    let ready = (0..50).any(|_| ask(&["ready".to_owned()], running.target.address).unwrap()[0].is_some());
    assert!(ready, "{}", running.last_words());

    let part = |name, weight| (Scenario::built_in(name).unwrap(), weight);
    let config = uac::Config {
        // What Kamailio does with a tenth of a core, and a T1 that starts no storm on a machine that is late: it is about
        // every call, not about speed.
        rate: 600.0,
        timers: timers(4000),
        drain_ns: 120 * SECOND_NS,
        calls: 20_000,
        hold_ns: 50 * MS_NS,
        sockets: 4,
        duration_ns: 60 * SECOND_NS,
        mix: Mix::new(vec![part("call", 8.0), part("options", 1.0), part("busy", 1.0)]).unwrap(),
        ..uac::Config::new(running.target)
    };
    let called = Uac::start(config).unwrap().join();
    let took = uas.join().total();
    let counts = called.counts;
    assert_eq!((counts.placed, counts.completed, counts.failed), (20_000, 20_000, 0), "{:?}", called.lines);
    assert_eq!((counts.wrong, counts.altered, counts.strays), (0, 0, 0), "{:?}", called.wrongs);
    assert_eq!((took.altered, took.violations, took.unknown, took.malformed), (0, 0, 0, 0), "{took:?}");
}

#[test]
fn two_thousand_calls_over_connections_of_a_dispatcher_are_all_verified() {
    two_thousand_calls(Transport::Tcp);
}

#[test]
fn two_thousand_calls_over_tls_through_a_dispatcher_are_all_verified() {
    let folder = |modules: &&str| Path::new(modules).join("tls.so").exists();
    match MODULES.iter().find(|modules| folder(modules)) {
        Some(_) => two_thousand_calls(Transport::Tls),
        None => skip("Kamailio's TLS is not installed"),
    }
}

fn two_thousand_calls(transport: Transport) {
    let element = match Element::read(&format!("kamailio-{transport}"), Path::new("viahop")) {
        Ok(element) => element,
        Err(why) => return skip(&why),
    };
    let backends = vec![Endpoint { transport, ..any_port() }];
    let tls = element.tls().map(|tls| tls.server.clone());
    let uas = Uas::start(uas::Config { backends, tls, ..uas::Config::default() }).unwrap();
    let core = viahop_load::sys::process::cores()[0];
    let running = element.start(core, uas.addresses()[0]).unwrap();
    let is_up = |_| {
        std::thread::sleep(Duration::from_millis(100));
        TcpStream::connect(running.target.address).is_ok()
    };
    assert!((0..100).any(is_up), "{}", running.last_words());
    let config = uac::Config {
        rate: 300.0,
        timers: timers(4000),
        drain_ns: 120 * SECOND_NS,
        calls: 2000,
        hold_ns: 50 * MS_NS,
        connections: 20,
        ..uac::Config::new(running.target)
    };
    let called = Uac::start(config).unwrap().join();
    let took = uas.join().total();
    let counts = called.counts;
    assert_eq!((counts.placed, counts.completed, counts.failed), (2000, 2000, 0), "{:?}", called.lines);
    assert_eq!((counts.wrong, counts.altered, counts.strays, counts.malformed), (0, 0, 0, 0), "{:?}", called.wrongs);
    assert_eq!((counts.retransmissions, counts.connections_lost), (0, 0), "{counts:?}");
    assert_eq!((took.altered, took.violations, took.unknown, took.malformed), (0, 0, 0, 0), "{took:?}");
}

struct Kamailio {
    child: Child,
    at: SocketAddr,
    dir: std::path::PathBuf,
}

impl Kamailio {
    fn start(algorithm: &str) -> Option<Kamailio> {
        let Some(modules) = MODULES.into_iter().find(|folder| Path::new(folder).exists()) else {
            skip("not installed");
            return None;
        };
        let at = free_port();
        let dir = std::env::temp_dir().join(format!("viahop-load-test-{}-{}", std::process::id(), at.port()));
        std::fs::create_dir_all(&dir).unwrap();
        let config = include_str!("kamailio-registrar.cfg")
            .replace("{port}", &at.port().to_string())
            .replace("{modules}", modules)
            .replace("{algorithm}", algorithm);
        std::fs::write(dir.join("kamailio.cfg"), config).unwrap();
        let mut command = Command::new("kamailio");
        command.arg("-DD").arg("-E").arg("-f").arg(dir.join("kamailio.cfg")).arg("-Y").arg(&dir);
        command.arg("-P").arg(dir.join("pid")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        viahop_load::sys::process::confine(&mut command, &[]);
        let child = command.spawn().unwrap();
        let kamailio = Kamailio { child, at, dir };
        // It answers an OPTIONS with 405, which is no 200, but the first answer of any kind means that it is there.
        let probe = UdpSocket::bind(any_port().address).unwrap();
        probe.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let local = probe.local_addr().unwrap();
        let request = format!(
            "OPTIONS sip:{at} SIP/2.0\r\nVia: SIP/2.0/UDP {local};branch=z9hG4bK1;rport\r\nMax-Forwards: 70\r\n\
             From: <sip:probe@{at}>;tag=1\r\nTo: <sip:{at}>\r\nCall-ID: 1\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
        );
        let answered = (0..100).any(|_| {
            let _ = probe.send_to(request.as_bytes(), at);
            let answered = probe.recv(&mut [0; 2048]).is_ok();
            if !answered {
                std::thread::sleep(Duration::from_millis(50));
            }
            answered
        });
        assert!(answered, "Kamailio does not answer");
        Some(kamailio)
    }
}

impl Drop for Kamailio {
    fn drop(&mut self) {
        viahop_load::sys::process::signal_group(self.child.id(), 15);
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn skip(why: &str) {
    eprintln!("skipped: kamailio: {why}");
}
