//! Against SIPp, which was written by others: our callers and its callee, its caller and our callees. Skipped, visibly,
//! where SIPp is not installed.

mod support;

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use support::{PATIENT, any_port, callers, free_port, ports, timers};
use viahop_load::clock::{MS_NS, SECOND_NS};
use viahop_load::fault::Fault;
use viahop_load::relay::{Mode, Relay};
use viahop_load::uac::{self, Uac};
use viahop_load::uas::{self, Uas};

const CALLS: u64 = 300;

#[test]
fn our_callers_and_sipps_callee_agree_on_every_call() {
    let at = free_port();
    let args = ["-sn", "uas", "-i", "127.0.0.1", "-p", &at.port().to_string(), "-nr"];
    let Some(mut callee) = sipp(&args) else { return };
    wait_until_taken(at);
    let config = uac::Config { rate: 500.0, hold_ns: 20 * MS_NS, ..callers(at, CALLS, "call") };
    let called = Uac::start(config).unwrap().join();
    callee.kill().unwrap();
    callee.wait().unwrap();
    let counts = called.counts;
    assert_eq!((counts.placed, counts.completed), (CALLS, CALLS), "{counts:?} {:?}", called.lines);
    assert_eq!((counts.retransmissions, counts.wrong, counts.strays), (0, 0, 0), "{:?}", called.wrongs);
}

/// As Asterisk and FreeSWITCH do: the callee moves media and its Contact with a second INVITE, refreshes the session with an
/// UPDATE, asks whether the caller is there. SIPp fails a call whose answers lack what they must have.
#[test]
fn a_callee_that_asks_within_the_call_gets_its_answers() {
    let at = free_port();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sipp-asks.xml");
    let args = ["-sf", script, "-i", "127.0.0.1", "-p", &at.port().to_string(), "-m", "50", "-timeout", "20"];
    let Some(mut callee) = sipp(&args) else { return };
    wait_until_taken(at);
    let called =
        Uac::start(uac::Config { rate: 100.0, hold_ns: 300 * MS_NS, ..callers(at, 50, "call") }).unwrap().join();
    let counts = called.counts;
    assert_eq!((counts.completed, counts.wrong, counts.unexpected), (50, 0, 0), "{counts:?} {:?}", called.wrongs);
    assert_eq!(wait(&mut callee, Duration::from_secs(20)), Some(0), "SIPp ends with 0 when no call has failed");
}

#[test]
fn sipps_caller_and_our_callees_agree_on_every_call() {
    // Nobody is to send anything again because the machine is late.
    let config = uas::Config { backends: vec![any_port()], timers: timers(PATIENT), ..uas::Config::default() };
    let uas = Uas::start(config).unwrap();
    let target = uas.addresses()[0].to_string();
    let calls = CALLS.to_string();
    let args =
        ["-sn", "uac", &target, "-i", "127.0.0.1", "-r", "500", "-m", &calls, "-d", "20", "-timeout", "20", "-nr"];
    let Some(mut caller) = sipp(&args) else { return };
    let status = wait(&mut caller, Duration::from_secs(30));
    assert_eq!(status, Some(0), "SIPp ends with 0 when no call has failed");
    let took = uas.join();
    let counts = took.total();
    assert_eq!((counts.calls, counts.acks, counts.byes), (CALLS, CALLS, CALLS), "{counts:?}");
    assert_eq!((counts.copies, counts.resent, counts.malformed, took.backends[0].open), (0, 0, 0, 0));
}

/// The same calls through the same element to the same callees, of whom none fails in the one run and half of the calls in
/// the other: what SIPp counts and what we count is that, within 5 % of the calls.
#[test]
fn sipp_and_we_agree_on_rate_and_failures_through_the_same_element() {
    const PLACED: u64 = 2500;
    if sipp(&["-v"]).is_none() {
        return;
    }
    for failing in [0.0, 0.5] {
        let faults = vec![Fault::Unavailable(failing)];
        let uas = Uas::start(uas::Config { backends: vec![any_port()], faults, ..uas::Config::default() }).unwrap();
        let element = Element::start(uas.addresses()[0]);

        let (sipps_rate, sipps_failed) = sipp_calls(element.address, PLACED);
        let config = uac::Config { rate: 500.0, calls: PLACED, ..uac::Config::new(element.address) };
        let called = Uac::start(uac::Config { drain_ns: 5 * SECOND_NS, ..config }).unwrap().join();

        assert_eq!(called.counts.placed, PLACED);
        let rate = PLACED as f64 * SECOND_NS as f64 / called.placing_ns as f64;
        assert!((rate / sipps_rate - 1.0).abs() < 0.05, "{rate} and {sipps_rate} calls/s");
        // Thrown like dice: five standard deviations of each.
        let (failed, sipps_failed) = (called.counts.failed as f64, sipps_failed as f64);
        let agrees = |failed: f64| (failed / PLACED as f64 - failing).abs() <= 0.05;
        assert!(agrees(failed) && agrees(sipps_failed), "{failed} and {sipps_failed} of {PLACED}");
        if failing == 0.0 {
            assert_eq!((failed, sipps_failed), (0.0, 0.0), "{:?}", called.lines);
        }
    }
}

/// Calls of SIPp at 500 a second, as it counted them itself: their rate, and how many failed.
fn sipp_calls(to: SocketAddr, calls: u64) -> (f64, u64) {
    let stats = std::env::temp_dir().join(format!("viahop-load-sipp-{}-{}.csv", std::process::id(), to.port()));
    let (to, calls, stats_name) = (to.to_string(), calls.to_string(), stats.display().to_string());
    let mut caller = sipp(&[
        "-sn",
        "uac",
        &to,
        "-i",
        "127.0.0.1",
        "-r",
        "500",
        "-m",
        &calls,
        "-d",
        "0",
        "-timeout",
        "60",
        "-trace_stat",
        "-stf",
        &stats_name,
        "-fd",
        "1",
    ])
    .unwrap();
    wait(&mut caller, Duration::from_secs(90)).expect("SIPp ends by itself");
    let text = std::fs::read_to_string(&stats).unwrap();
    let _ = std::fs::remove_file(&stats);
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split(';').collect()).collect();
    let column = |name: &str| rows[0].iter().position(|column| *column == name).unwrap();
    let last = rows.last().unwrap();
    let number = |name: &str| last[column(name)].parse::<f64>().unwrap();
    // The mean over the run has the time in it that SIPp waits for the last calls; the periods while it places have not.
    let created = column("OutgoingCall(P)");
    let full = rows[1..].iter().map(|row| row[created].parse::<f64>().unwrap()).filter(|placed| *placed > 0.0);
    let mut full: Vec<f64> = full.collect();
    full.sort_by(f64::total_cmp);
    (full[full.len() / 2], number("FailedCall(C)") as u64)
}

/// An element in the path that looks at nothing.
struct Element {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Element {
    fn start(callee: SocketAddr) -> Element {
        let mut relay = Relay::bind(any_port().address, callee).unwrap();
        let (address, stop) = (relay.local(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let run = move || {
            relay.run(Mode::Batched, || stopped.load(Ordering::Relaxed)).unwrap();
        };
        let thread = std::thread::Builder::new().name("relay".into()).spawn(run).unwrap();
        Element { address, stop, thread: Some(thread) }
    }
}

impl Drop for Element {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// SIPp, if there is one.
fn sipp(args: &[&str]) -> Option<Child> {
    let mut command = Command::new("sipp");
    // Of the 64 KiB that it has by itself it loses what comes while it is kept from its core.
    command.args(args).args(["-buff_size", "1048576"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
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

/// A callee that has its port is ready.
fn wait_until_taken(at: SocketAddr) {
    let deadline = now() + Duration::from_secs(10);
    while !ports::is_taken("udp", at.port()) && now() < deadline {
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
