//! What the steering program costs a datagram: the same messages to two ports of two sockets each, in turn, of which one has
//! the program and the other goes by addresses. Sender and receiver are this thread, so all that the kernel does for a
//! datagram is in the time, and the difference is the program.
//!
//! `cargo bench --bench steering`; with `kernel.bpf_stats_enabled = 1` also what the kernel itself measures, whose two
//! readings of the clock are in its figure.
#![allow(clippy::disallowed_methods, reason = "this measures time")]

use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;
use viahop::shard::steering::{Bench, Steering};
use viahop::sys::bpf::asm::{Code, Register};
use viahop::sys::bpf::{Program, Purpose};
use viahop::sys::socket::{self, Options};

/// Datagrams sent before what came is received.
const BATCH: usize = 64;
/// Batches of a turn.
const BATCHES: usize = 4;
/// Turns of each port.
const ROUNDS: usize = 4001;
/// Different messages.
const MESSAGES: usize = 256;
/// Octets of a message.
const LEN: usize = 900;

/// What chooses the socket.
enum Chooser {
    /// The kernel, by addresses.
    Kernel,
    /// A program that leaves it to the kernel: what any program costs in this place.
    Empty(Program),
    /// The steering program.
    Steering(Steering),
}

struct Port {
    shards: Vec<UdpSocket>,
    sender: UdpSocket,
    chooser: Chooser,
}

impl Port {
    fn open(choose: impl FnOnce(&[socket::UdpSocket]) -> Chooser) -> Port {
        let options = Options {
            shared_port: true,
            receive_buffer: 1 << 20,
            send_buffer: 1 << 20,
            errors: true,
            tell_local: false,
        };
        let any = "127.0.0.1:0".parse().expect("an address");
        let first = socket::UdpSocket::bind(any, &options).expect("a socket");
        let second = socket::UdpSocket::bind(first.address(), &options).expect("a second one");
        let sender = UdpSocket::bind("127.0.0.1:0").expect("a sender");
        sender.connect(first.address()).expect("connected");
        let sockets = [first, second];
        let chooser = choose(&sockets);
        let shards = sockets.into_iter().map(|one| UdpSocket::from(OwnedFd::from(one))).collect();
        Port { shards, sender, chooser }
    }

    /// Nanoseconds that the program ran so far, and how often, as the kernel counts it.
    fn run_time(&self) -> (u64, u64) {
        let time = match &self.chooser {
            Chooser::Kernel => return (0, 0),
            Chooser::Empty(program) => program.run_time(),
            Chooser::Steering(steering) => steering.run_time(),
        };
        time.unwrap_or_default()
    }

    /// Nanoseconds a datagram, for the messages from number `from` on.
    fn turn(&self, messages: &[Vec<u8>]) -> f64 {
        let mut room = [0; 2048];
        let start = Instant::now();
        let mut received = 0;
        for batch in 0..BATCHES {
            for number in 0..BATCH {
                self.sender.send(&messages[(batch * BATCH + number) % messages.len()]).expect("sent");
            }
            for shard in &self.shards {
                while shard.recv(&mut room).is_ok() {
                    received += 1;
                }
            }
        }
        let elapsed = start.elapsed().as_nanos() as f64;
        assert_eq!(received, BATCH * BATCHES, "lost");
        elapsed / received as f64
    }
}

fn invite(number: usize) -> Vec<u8> {
    let mut text = format!(
        "INVITE sip:bob{number}@example.net SIP/2.0\r\nVia: SIP/2.0/UDP 198.51.100.7:5060;branch=z9hG4bK{number:08x};rport\r\n\
         Max-Forwards: 70\r\nFrom: \"Alice\" <sip:alice@example.net>;tag={number:x}28301774\r\nTo: \"Bob\" <sip:bob@example.net>\r\n\
         Call-ID: {number:08x}-4c76-e66710@198.51.100.7\r\nCSeq: 314159 INVITE\r\nContact: <sip:alice@198.51.100.7>\r\n\
         Content-Type: application/sdp\r\n\r\n"
    )
    .into_bytes();
    text.resize(LEN, b'v');
    text
}

fn empty(sockets: &[socket::UdpSocket]) -> Chooser {
    let mut code = Code::new();
    code.function("empty").set(Register::R0, 1).exit();
    let program = Program::load(Purpose::Reuseport, "viahop_empty", &code.finish()).expect("the privilege to load it");
    program.attach(sockets[0].as_fd()).expect("attached");
    Chooser::Empty(program)
}

fn steering(sockets: &[socket::UdpSocket]) -> Chooser {
    let steering = Steering::load(1, sockets.len(), 7).expect("the privilege to steer");
    steering.attach(&[sockets.iter().collect()]).expect("attached");
    Chooser::Steering(steering)
}

fn main() {
    let messages: Vec<Vec<u8>> = (0..MESSAGES).map(invite).collect();
    let noise: Vec<Vec<u8>> = (0..MESSAGES).map(|_| vec![0; LEN]).collect();
    let (plain, empty, steered) = (Port::open(|_| Chooser::Kernel), Port::open(empty), Port::open(steering));
    let turns = [(&plain, &messages), (&empty, &messages), (&steered, &noise), (&steered, &messages)];
    let names =
        ["by addresses", "more with an empty program", "more with steering, no message", "more with steering, INVITE"];
    let mut times = [const { Vec::new() }; 4];
    let mut clocks = [(0, 0); 4];
    for round in 0..ROUNDS {
        // Each round begins with another, so that none always follows the same.
        for turn in (0..4).map(|turn| (turn + round) % 4) {
            let (port, messages) = turns[turn];
            let before = port.run_time();
            times[turn].push(port.turn(messages));
            let after = port.run_time();
            clocks[turn] = (clocks[turn].0 + after.0 - before.0, clocks[turn].1 + after.1 - before.1);
        }
    }
    println!("{ROUNDS} rounds of {} datagrams of {LEN} octets: quartiles in ns a datagram", BATCH * BATCHES);
    for (turn, name) in names.iter().enumerate() {
        let base = |round: usize| if turn == 0 { 0.0 } else { times[0][round] };
        let mut values: Vec<f64> = times[turn].iter().enumerate().map(|(round, time)| time - base(round)).collect();
        values.sort_by(f64::total_cmp);
        let quartiles = [1, 2, 3].map(|quarter| values[values.len() * quarter / 4].round());
        let (time, runs) = clocks[turn];
        let clock = time.checked_div(runs).map_or(String::new(), |ns| format!("; by the kernel's clock {ns}"));
        println!("{name:<32} {quartiles:?}{clock}");
    }
    if let Ok(bench) = Bench::new(2, 1) {
        println!("on the bench, always the same INVITE: {:?}", bench.time(&messages[0], 1_000_000).ok());
    }
}
