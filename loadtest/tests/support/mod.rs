//! Elements to put between callers and callees: a relay whose treatment of each datagram a test decides.

#![allow(dead_code, reason = "each test program uses its own part of this")]

#[path = "../../../tests/support/ports.rs"]
pub mod ports;
pub mod program;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use viahop_load::clock::SECOND_NS;
use viahop_load::endpoint::Endpoint;
use viahop_load::scenario::Scenario;
use viahop_load::timer::Timers;
use viahop_load::uac;

/// Which way a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the caller to a callee.
    There,
    /// From a callee to the caller.
    Back,
}

/// A relay between one caller socket and some callees.
pub struct Meddler {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Meddler {
    /// Dropped, it has passed on all that had come. `meddle` gets each datagram and gives back what is to be sent instead:
    /// octets, and the callee (ignored on the way back). There are as many numbers again as there are callees: those mean the
    /// same callees, reached from a second socket, as an element with two cores might.
    pub fn start(
        callees: Vec<SocketAddr>,
        mut meddle: impl FnMut(Way, Vec<u8>) -> Vec<(Vec<u8>, usize)> + Send + 'static,
    ) -> Meddler {
        let sockets = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let address = sockets[0].local_addr().unwrap();
        // The second socket is only looked at while the first has nothing, which is often enough for what comes there.
        sockets[0].set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        sockets[1].set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let run = move || {
            let (mut room, mut caller) = (vec![0; 65_536], None);
            loop {
                let is_last = stopped.load(Ordering::Relaxed);
                let received = sockets[1].recv_from(&mut room).or_else(|_| sockets[0].recv_from(&mut room));
                // Nothing there, or ICMP about a callee that is gone.
                let Ok((len, from)) = received else {
                    if is_last {
                        return;
                    }
                    continue;
                };
                let way = if callees.contains(&from) { Way::Back } else { Way::There };
                if way == Way::There {
                    caller = Some(from);
                }
                for (octets, callee) in meddle(way, room[..len].to_vec()) {
                    let to = if way == Way::There { Some(callees[callee % callees.len()]) } else { caller };
                    let socket = usize::from(way == Way::There && callee >= callees.len());
                    if let Some(to) = to {
                        let _ = sockets[socket].send_to(&octets, to);
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("meddler".into()).spawn(run).unwrap();
        Meddler { address, stop, thread: Some(thread) }
    }
}

impl Drop for Meddler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A callee that does as a test says.
pub struct Puppet {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Puppet {
    /// `play` gets each message and gives back what its sender is sent.
    pub fn start(mut play: impl FnMut(&str) -> Vec<String> + Send + 'static) -> Puppet {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let run = move || {
            let (mut room, mut heard) = (vec![0; 65_536], Vec::new());
            loop {
                match socket.recv_from(&mut room) {
                    Ok((len, from)) => {
                        let message = String::from_utf8(room[..len].to_vec()).unwrap();
                        for text in play(&message) {
                            let _ = socket.send_to(text.as_bytes(), from);
                        }
                        heard.push(message);
                    }
                    // Nothing comes any more, or ICMP about a caller that is gone.
                    Err(_) if stopped.load(Ordering::Relaxed) => return heard,
                    Err(_) => {}
                }
            }
        };
        let thread = std::thread::Builder::new().name("puppet".into()).spawn(run).unwrap();
        Puppet { address, stop, thread: Some(thread) }
    }

    /// All that has come, in order.
    pub fn heard(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// An answer without a body. `line` is status and reason, `rows` are further rows with their line ends.
pub fn answer(request: &str, line: &str, to_tag: &str, rows: &str) -> String {
    let mut text = format!("SIP/2.0 {line}\r\n");
    for row in request.lines() {
        if ["Via:", "From:", "To:", "Call-ID:", "CSeq:"].iter().any(|name| row.starts_with(name)) {
            let tag = if row.starts_with("To:") && !row.contains(";tag=") { to_tag } else { "" };
            let tag = if tag.is_empty() { String::new() } else { format!(";tag={tag}") };
            text += &format!("{row}{tag}\r\n");
        }
    }
    format!("{text}{rows}Content-Length: 0\r\n\r\n")
}

/// The timers of RFC 3261 with `t1_ms` in place of 500 ms, all in proportion.
pub fn timers(t1_ms: u64) -> Timers {
    let ms = 1_000_000;
    Timers { t1_ns: t1_ms * ms, t2_ns: 8 * t1_ms * ms, t4_ns: 10 * t1_ms * ms, ringing_ns: 400 * t1_ms * ms }
}

/// T1 in milliseconds where nothing is to be sent again or given up, on a machine that does other things as well.
pub const PATIENT: u64 = 2000;

/// Callers of `target`, 2,000 a second.
pub fn callers(target: impl Into<Endpoint>, calls: u64, scenario: &str) -> uac::Config {
    uac::Config {
        rate: 2000.0,
        calls,
        mix: Scenario::built_in(scenario).unwrap().into(),
        timers: timers(PATIENT),
        drain_ns: 10 * SECOND_NS,
        ..uac::Config::new(target)
    }
}

/// A port of 127.0.0.1 that is free over UDP and TCP, for a program that takes a moment to bind it. The kernel gives it to nobody
/// meanwhile (it begins at 32,768), nor do we.
pub fn free_port() -> SocketAddr {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 8_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes that run at the same time begin at different places.
    let begin = (std::process::id() as u16).wrapping_mul(251);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let address = SocketAddr::from(([127, 0, 0, 1], FIRST + begin.wrapping_add(number) % COUNT));
        if ports::is_free(address.port()) {
            return address;
        }
    }
}

/// A callee on any port of the loopback.
pub fn any_port() -> Endpoint {
    SocketAddr::from(([127, 0, 0, 1], 0)).into()
}

/// A digest of a datagram's Call-ID line, for those who treat calls differently.
pub fn call_number(octets: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(octets);
    let line = text.lines().find(|line| line.starts_with("Call-ID: ")).unwrap_or_default().to_owned();
    line.bytes().fold(0u64, |sum, octet| sum.wrapping_mul(31).wrapping_add(u64::from(octet)))
}
