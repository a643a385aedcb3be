//! Against SIPp, which was written by others: our callers and its callee, its caller and our callees. Skipped, visibly,
//! where SIPp is not installed.

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::any_port;
use viahop_load::clock::{MS_NS, SECOND_NS};
use viahop_load::uac::{self, Uac};
use viahop_load::uas::{self, Uas};

const CALLS: u64 = 300;

#[test]
fn our_callers_and_sipps_callee_agree_on_every_call() {
    let at = free_port();
    let Some(mut callee) = sipp(&["-sn", "uas", "-i", "127.0.0.1", "-p", &at.port().to_string()]) else { return };
    wait_until_taken(at);
    let config = uac::Config { rate: 500.0, calls: CALLS, hold_ns: 20 * MS_NS, ..uac::Config::new(at) };
    let called = Uac::start(uac::Config { drain_ns: 5 * SECOND_NS, ..config }).unwrap().join();
    callee.kill().unwrap();
    callee.wait().unwrap();
    let counts = called.counts;
    assert_eq!((counts.placed, counts.completed), (CALLS, CALLS), "{counts:?} {:?}", called.lines);
    assert_eq!((counts.retransmissions, counts.wrong, counts.strays), (0, 0, 0), "{:?}", called.wrongs);
}

#[test]
fn sipps_caller_and_our_callees_agree_on_every_call() {
    let uas = Uas::start(uas::Config { backends: vec![any_port()], ..uas::Config::default() }).unwrap();
    let target = uas.addresses()[0].to_string();
    let calls = CALLS.to_string();
    let args =
        ["-sn", "uac", target.as_str(), "-i", "127.0.0.1", "-r", "500", "-m", &calls, "-d", "20", "-timeout", "20"];
    let Some(mut caller) = sipp(&args) else { return };
    let status = wait(&mut caller, Duration::from_secs(30));
    assert_eq!(status, Some(0), "SIPp ends with 0 when no call has failed");
    let took = uas.join();
    let counts = took.total();
    assert_eq!((counts.calls, counts.acks, counts.byes), (CALLS, CALLS, CALLS), "{counts:?}");
    assert_eq!((counts.copies, counts.resent, counts.malformed, took.backends[0].open), (0, 0, 0, 0));
}

/// SIPp, if there is one.
fn sipp(args: &[&str]) -> Option<Child> {
    let mut command = Command::new("sipp");
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.spawn() {
        Ok(child) => Some(child),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: sipp not installed");
            eprintln!("skipped: sipp not installed");
            None
        }
        Err(error) => panic!("sipp does not start: {error}"),
    }
}

fn free_port() -> SocketAddr {
    UdpSocket::bind(any_port()).unwrap().local_addr().unwrap()
}

/// A callee that has its port is ready.
fn wait_until_taken(at: SocketAddr) {
    let deadline = now() + Duration::from_secs(10);
    while UdpSocket::bind(at).is_ok() && now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(100));
}

fn wait(child: &mut Child, patience: Duration) -> Option<i32> {
    let deadline = now() + patience;
    while now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

#[expect(clippy::disallowed_methods, reason = "a test that waits for another program has to look at a clock")]
fn now() -> Instant {
    Instant::now()
}
