//! What two shards carry beside one, without a generator that has one of their cores: the program itself is stopped, its
//! receive buffers are filled with requests by one socket, as a trunk would, and it is let go on; and once more with their 200s. What it
//! then takes for what lies there is read from `schedstat`, thread by thread.
//!
//! `cargo bench --bench shards`; needs CAP_BPF and CAP_PERFMON (steering by Call-ID), CAP_NET_ADMIN (large buffers) and two cores.
//!
//! Beside them two processes of one shard each, which share the machine, the caller and the backends: what two shards cost more
//! than those is viahop's. Rounds in which the hypervisor had the two cores on different dies are counted by
//! themselves (`viahop_load::compare::hop`).

use std::convert::Infallible;
use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;
use viahop::sys::socket::{self, Options};
use viahop_load::compare::hop::{Cores, is_apart};
use viahop_load::sys::process;
use viahop_load::usage;

/// Requests for each shard. What they take in the buffers stays within the caches that cores share.
const EACH: usize = 4000;
/// Backends, so that two shards seldom send to the same one at once.
const BACKENDS: usize = 16;
/// Octets of a request.
const LEN: usize = 900;
/// Octets of receive buffers, of which `EACH` requests take a twentieth.
const BUFFER: usize = 256 << 20;
const ROUNDS: usize = 61;
/// How long a round waits for the cores to be near each other.
const PATIENCE_NS: u64 = 5_000_000_000;

/// One way to have shards.
struct Setup {
    name: &'static str,
    processes: Vec<Process>,
    /// Shards of all of them.
    shards: usize,
}

struct Process {
    child: Child,
    port: u16,
    config: PathBuf,
}

impl Process {
    fn start(cores: &[usize], backends: &[UdpSocket]) -> Process {
        let free = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
        let mut text = format!(
            "[balancer]\ncores = {cores:?}\nreceive_buffer = {BUFFER}\nsteering = \"call-id\"\n[admin]\nlisten = \"off\"\nsocket = \"off\"\n\
             [[listen]]\naddress = \"udp:{free}\"\n[[pool]]\nname = \"p\"\nhealth = {{ probe = false }}\noutlier = {{ on = false }}\nbackend = [\n"
        );
        for backend in backends {
            let address = backend.local_addr().expect("bound");
            let _ = writeln!(text, "  {{ uri = \"sip:{address}\" }},");
        }
        text += "]\n";
        let config = std::env::temp_dir().join(format!("viahop-bench-{}.toml", free.port()));
        fs::write(&config, text).expect("a folder for temporary files");
        let mut command = Command::new(env!("CARGO_BIN_EXE_viahop"));
        command.arg("run").arg("-c").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        process::confine(&mut command, cores);
        Process { child: command.spawn().expect("the program"), port: free.port(), config }
    }

    /// Waits until it answers OPTIONS.
    fn wait_until_ready(&self, caller: &UdpSocket) {
        let port = caller.local_addr().expect("bound").port();
        let options = format!(
            "OPTIONS sip:127.0.0.1:{0} SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:{port};branch=z9hG4bK-r\r\nMax-Forwards: 1\r\n\
             From: <sip:bench@127.0.0.1>;tag=1\r\nTo: <sip:127.0.0.1:{0}>\r\nCall-ID: ready-{0}\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n",
            self.port
        );
        for _ in 0..200 {
            // Refused while nobody listens.
            let _ = caller.send_to(options.as_bytes(), ("127.0.0.1", self.port));
            sleep(Duration::from_millis(50));
            if take_all(caller).count() > 0 {
                return;
            }
        }
        panic!("does not answer: has this process CAP_BPF and CAP_PERFMON? `viahop doctor` says");
    }

    fn signal(&self, signal: &str) {
        let done = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(done.is_ok_and(|status| status.success()), "kill {signal}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait(), fs::remove_file(&self.config));
    }
}

/// A caller or a backend: a socket that never blocks and has room for all that is sent to it.
fn peer() -> UdpSocket {
    let options =
        Options { shared_port: false, receive_buffer: BUFFER, send_buffer: 1 << 16, errors: false, tell_local: false };
    let socket = socket::UdpSocket::bind("127.0.0.1:0".parse().expect("an address"), &options).expect("a socket");
    UdpSocket::from(OwnedFd::from(socket))
}

/// What one measurement says.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// CPU nanoseconds for each message.
    cpu_ns: f64,
    /// Messages a second, by the shards that took longest.
    rate: f64,
}

fn request(number: usize, port: u16) -> Vec<u8> {
    let head = format!(
        "INVITE sip:bob{number}@example.net SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:{port};branch=z9hG4bK{number:08x};rport\r\n\
         Max-Forwards: 70\r\nFrom: \"Alice\" <sip:alice@example.net>;tag={number:x}28301774\r\nTo: \"Bob\" <sip:bob@example.net>\r\n\
         Call-ID: {number:08x}-4c76-e66710@198.51.100.7\r\nCSeq: 314159 INVITE\r\nContact: <sip:alice@198.51.100.7>\r\n\
         Content-Type: application/sdp\r\n"
    );
    let body = LEN - head.len() - "Content-Length: 000\r\n\r\n".len();
    format!("{head}Content-Length: {body:03}\r\n\r\n{}", "v".repeat(body)).into_bytes()
}

/// What the threads of a setup spent on what lay in its buffers.
#[derive(Clone, Copy)]
struct Spent {
    /// CPU nanoseconds of all.
    cpu_ns: u64,
    /// Nanoseconds that the one took which took longest, waiting for its core included.
    longest_ns: u64,
}

/// Stops `setup`, has `fill` put `count` datagrams in its buffers, lets it go on, and waits until `arrived` has counted as many.
fn drain(setup: &Setup, count: usize, fill: impl FnOnce(), mut arrived: impl FnMut() -> usize) -> Spent {
    setup.processes.iter().for_each(|process| process.signal("-STOP"));
    let pids: Vec<u32> = setup.processes.iter().map(|process| process.child.id()).collect();
    let threads = usage::threads(&pids);
    let used = || threads.iter().map(|one| usage::of_thread(one)).collect::<Vec<_>>();
    fill();
    let before = used();
    setup.processes.iter().for_each(|process| process.signal("-CONT"));
    // Nobody looks while they work: both cores are theirs. Some 5 microseconds a message, and as much again.
    sleep(Duration::from_micros(20_000 + 10 * count as u64));
    let mut came = arrived();
    for _ in 0..100 {
        if came == count {
            break;
        }
        sleep(Duration::from_millis(50));
        came += arrived();
    }
    assert_eq!(came, count, "{}: lost", setup.name);
    let spent: Vec<_> = used().iter().zip(&before).map(|(after, before)| after.since(*before)).collect();
    Spent {
        cpu_ns: spent.iter().map(|usage| usage.on_cpu_ns).sum(),
        longest_ns: spent.iter().map(|usage| usage.on_cpu_ns + usage.waiting_ns).max().unwrap_or(0),
    }
}

/// Has `setup` pass on `EACH` requests a shard, and then their 200s.
fn measure(setup: &Setup, caller: &UdpSocket, requests: &[Vec<u8>], backends: &[UdpSocket]) -> Seen {
    let count = EACH * setup.shards;
    let ask = || {
        for (number, request) in requests[..count].iter().enumerate() {
            let port = setup.processes[number % setup.processes.len()].port;
            caller.send_to(request, ("127.0.0.1", port)).expect("sent");
        }
    };
    let mut asked: Vec<(&UdpSocket, Vec<u8>, SocketAddr)> = Vec::with_capacity(count);
    let requests = drain(setup, count, ask, || {
        let before = asked.len();
        for backend in backends {
            asked.extend(take_all(backend).map(|(octets, from)| (backend, octets, from)));
        }
        asked.len() - before
    });
    let answer = || {
        for (backend, request, from) in &asked {
            let line_end = request.windows(2).position(|octets| octets == b"\r\n").expect("a start line");
            backend.send_to(&[b"SIP/2.0 200 OK", &request[line_end..]].concat(), from).expect("sent");
        }
    };
    let responses = drain(setup, count, answer, || take_all(caller).count());
    let [cpu_ns, longest_ns] =
        [requests.cpu_ns + responses.cpu_ns, requests.longest_ns + responses.longest_ns].map(|ns| ns as f64);
    let messages = 2.0 * count as f64;
    Seen { cpu_ns: cpu_ns / messages, rate: messages * 1e9 / longest_ns }
}

/// The datagrams that lie there, and who sent them.
fn take_all(socket: &UdpSocket) -> impl Iterator<Item = (Vec<u8>, SocketAddr)> {
    let mut room = [0; 2048];
    std::iter::from_fn(move || socket.recv_from(&mut room).ok().map(|(len, from)| (room[..len].to_vec(), from)))
}

fn main() {
    let cores = process::cores();
    let [first, second, ..] = cores[..] else {
        println!("skipped: two shards need two cores");
        return;
    };
    // As a test it only has to work.
    let rounds = if std::env::args().any(|argument| argument == "--bench") { ROUNDS } else { 1 };
    let backends: Vec<_> = (0..BACKENDS).map(|_| peer()).collect();
    let caller = peer();
    let port = caller.local_addr().expect("bound").port();
    let requests: Vec<_> = (0..2 * EACH).map(|number| request(number, port)).collect();
    let start = |cores: &[usize]| Process::start(cores, &backends);
    let setups = [
        Setup { name: "one shard", processes: vec![start(&[first])], shards: 1 },
        Setup { name: "two shards", processes: vec![start(&[first, second])], shards: 2 },
        Setup { name: "two processes", processes: vec![start(&[first]), start(&[second])], shards: 2 },
    ];
    setups.iter().flat_map(|setup| &setup.processes).for_each(|process| process.wait_until_ready(&caller));
    let bind = |core| process::pin_this_thread(core).expect("a core of ours");
    let mut seen = Vec::new();
    let mut distance = Cores::new(first, second);
    for round in 0..rounds {
        bind(first);
        let rest = |ns| {
            sleep(Duration::from_nanos(ns));
            Ok::<_, Infallible>(())
        };
        let Ok(before) = distance.wait_until_near(PATIENCE_NS, rest);
        // Who fills the buffers has one of the cores by turns: what lies there was allocated on it.
        bind(cores[round % 2]);
        let mut figures = [Seen::default(); 3];
        for turn in (0..3).map(|turn| (turn + round) % 3) {
            figures[turn] = measure(&setups[turn], &caller, &requests, &backends);
        }
        bind(first);
        seen.push((figures, before.max(distance.distance_ns())));
    }
    let least = distance.least_ns();
    println!("{}, {least} ns from core {first} to core {second} and back", usage::machine());
    let (near, apart): (Vec<_>, Vec<_>) = seen.into_iter().partition(|(_, distance)| !is_apart(*distance, least));
    print(&setups, "cores near each other", &near.iter().map(|(figures, _)| *figures).collect::<Vec<_>>());
    print(&setups, "cores moved apart", &apart.iter().map(|(figures, _)| *figures).collect::<Vec<_>>());
}

fn print(setups: &[Setup], title: &str, rounds: &[[Seen; 3]]) {
    println!("{title}: {} rounds of {EACH} requests and their 200s for each shard, medians (quartiles)", rounds.len());
    if rounds.is_empty() {
        return;
    }
    for (index, setup) in setups.iter().enumerate() {
        let of = |figure: fn(&Seen, &Seen) -> f64| quartiles(rounds.iter().map(|seen| figure(&seen[index], &seen[0])));
        println!(
            "  {:<14} {:>16} ns CPU a message, {:>22} of one shard; {:>22} times its throughput",
            setup.name,
            of(|seen, _| seen.cpu_ns).whole(),
            of(|seen, one| seen.cpu_ns / one.cpu_ns).fine(),
            of(|seen, one| seen.rate / one.rate).fine(),
        );
    }
}

/// The middle of some figures, and the quarters on either side.
struct Quartiles([f64; 3]);

fn quartiles(figures: impl Iterator<Item = f64>) -> Quartiles {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    Quartiles([1, 2, 3].map(|quarter| figures[figures.len() * quarter / 4]))
}

impl Quartiles {
    fn whole(&self) -> String {
        let [low, middle, high] = self.0;
        format!("{middle:.0} ({low:.0}-{high:.0})")
    }

    fn fine(&self) -> String {
        let [low, middle, high] = self.0;
        format!("{middle:.3} ({low:.3}-{high:.3})")
    }
}
