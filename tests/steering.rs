//! The steering program in the kernel reads what the scanner reads: the same octets through both.
//!
//! The program is run by `BPF_PROG_TEST_RUN`, which the kernel has for socket filters and classifiers and not for programs that
//! choose a socket: the same instructions but for where the datagram begins and what is done with the result. A classifier
//! reads the packet where it lies, as at a port; a filter copies each, as is done at a port with what lies in pieces. That
//! those at a port choose is shown on live sockets, at the end.

mod support;

use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use support::corpus::messages;
use viahop::dataplane::limits::PAYLOAD_MAX;
use viahop::dataplane::scan::{Scan, scalar};
use viahop::dataplane::sip::grammar;
use viahop::dataplane::sip::header::HeaderKind;
use viahop::dataplane::sip::start_line;
use viahop::dataplane::validate::{single_headers_stand_once, trim};
use viahop::shard::steering::program::{HASHED_MAX, LOOK_MAX, Outcome, STEPS_MAX};
use viahop::shard::steering::{Bench, Steering};
use viahop::sys::socket::{self, Options};

/// Shards in these tests: more than there are cores, so that a Call-ID read wrongly is nearly always seen.
const SHARDS: u32 = 61;

/// Octets of the longest datagram that every kernel tries out: they have to lie in one page.
const TRIED_MAX: usize = 3500;

/// The program that reads in place, and the one that copies.
struct Benches([Bench; 2]);

impl Benches {
    /// What both say of `message`.
    fn decide(&self, message: &[u8]) -> Result<u32, Outcome> {
        let [in_place, by_copy] = self.0.each_ref().map(|bench| bench.decide(message).unwrap());
        assert_eq!(in_place, by_copy, "{}", String::from_utf8_lossy(message));
        in_place
    }

    fn shard_of(&self, call_id: &[u8]) -> u32 {
        self.0[0].shard_of(call_id)
    }
}

fn bench() -> Option<Benches> {
    let load = |make: fn(u32, u64) -> _| make(SHARDS, 0x5eed_5eed_5eed_5eed);
    match load(Bench::in_place).and_then(|in_place| Ok(Benches([in_place, load(Bench::by_copy)?]))) {
        Ok(benches) => Some(benches),
        Err(missing) => {
            assert_ne!(std::env::var("VIAHOP_PEERS").as_deref(), Ok("required"), "{missing:?}");
            println!("skipped: {missing:?}");
            None
        }
    }
}

/// How many messages are made: `VIAHOP_STEERING_TRIES` makes a night of it.
fn tries() -> usize {
    let given = std::env::var("VIAHOP_STEERING_TRIES").ok().and_then(|text| text.parse().ok());
    given.unwrap_or(60_000)
}

/// What they are made from: another seed for each number of tries, the same each time.
fn seed(number: u64) -> u64 {
    number + 1000 * (tries() as u64 / 60_000)
}

/// What the scanner takes as the Call-ID of a message that may be forwarded, as far as start line and header section can
/// tell; `None` for one that is refused.
fn call_id(message: &[u8]) -> Option<&[u8]> {
    let mut scan = Scan::default();
    scalar::scan(message, &mut scan);
    let line = start_line::parse(message, scan.start_line);
    if line.is_err() || !scan.faults.is_empty() || single_headers_stand_once(&scan).is_err() {
        return None;
    }
    let span = trim(message, scan.value(HeaderKind::CallId)?);
    grammar::is_call_id(message, span).then(|| span.of(message))
}

/// Runs `message` through both, and returns whether it was one that the scanner has a Call-ID of.
fn agree(benches: &Benches, message: &[u8]) -> bool {
    let Some(message) = message.get(..message.len().min(TRIED_MAX)) else { return false };
    let Some(call_id) = call_id(message) else {
        for bench in &benches.0 {
            bench.decide(message).unwrap().ok();
        }
        return false;
    };
    benches.0.iter().for_each(|bench| agrees(bench, message, call_id));
    true
}

fn agrees(bench: &Bench, message: &[u8], call_id: &[u8]) {
    let shown = || String::from_utf8_lossy(message).into_owned();
    match bench.decide(message).unwrap() {
        Ok(shard) => assert_eq!(shard, bench.shard_of(call_id), "{:?} in\n{}", call_id.escape_ascii(), shown()),
        // More lines or blanks than are looked at: left to the kernel, and rare.
        Err(Outcome::Beyond) => {
            let lines = message.iter().filter(|&&octet| octet == b'\n').count();
            let blanks = message.iter().filter(|&&octet| grammar::is_lws(octet)).count();
            assert!(lines + message.len() / 64 >= STEPS_MAX as usize || blanks >= STEPS_MAX as usize, "{}", shown());
        }
        Err(outcome) => panic!("{outcome:?} though there is {:?} in\n{}", call_id.escape_ascii(), shown()),
    }
}

#[test]
fn the_program_and_the_scanner_agree_on_every_file() {
    let Some(bench) = bench() else { return };
    let agreed = messages().iter().filter(|(_, message)| agree(&bench, message)).count();
    assert!(agreed > 100, "{agreed}");
    println!("{agreed} messages with a Call-ID; {}", bench.0[0].verdict());
}

/// Cut anywhere, a message is refused: nothing to agree on but that the program ends, and counts it.
#[test]
fn every_datagram_is_counted_once_whatever_it_is() {
    let Some(bench) = bench() else { return };
    let mut tried = 0u64;
    for (_, message) in messages().iter().step_by(5) {
        for len in (1..message.len().min(600)).step_by(7) {
            agree(&bench, &message[..len]);
            tried += 1;
        }
    }
    for bench in &bench.0 {
        let outcomes = bench.outcomes().unwrap();
        assert_eq!(outcomes.iter().sum::<u64>(), tried, "{outcomes:?}");
    }
}

/// Damage where it may change what is read: line ends, blanks, colons and letters, at places of the header section.
#[test]
fn the_program_and_the_scanner_agree_on_damaged_files() {
    let Some(bench) = bench() else { return };
    let damage: [&[u8]; 14] = [
        b"\r\n",
        b"\r\n ",
        b"\r\n\t",
        b"\r\nCall-ID: d@x",
        b"\r\ni: ",
        b"\r\nX-Call-ID: y",
        b" ",
        b"\t",
        b":",
        b"i",
        b"Call-ID",
        b"\r\n\r\n",
        b"\x00",
        b"\xff",
    ];
    let mut random = fastrand::Rng::with_seed(seed(5));
    let (mut agreed, tries) = (0, tries());
    let files: Vec<_> = messages().into_iter().filter(|(_, message)| message.len() < 2000).collect();
    for _ in 0..tries {
        let (_, message) = &files[random.usize(..files.len())];
        let mut message = message.clone();
        for _ in 0..random.usize(1..4) {
            let end = message.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(message.len());
            let at = random.usize(..=end.min(message.len()));
            let part = damage[random.usize(..damage.len())];
            match random.u8(..3) {
                0 => drop(message.splice(at..at, part.iter().copied())),
                1 => drop(message.splice(at..(at + part.len()).min(message.len()), part.iter().copied())),
                _ => drop(message.splice(at..(at + random.usize(..9)).min(message.len()), [])),
            }
        }
        agreed += usize::from(agree(&bench, &message));
    }
    println!("{tries} tried, {agreed} of them with a Call-ID");
    assert!(agreed > tries / 10, "{agreed}");
}

/// Messages made of the pieces that matter, so that nearly all of them may be forwarded.
#[test]
fn the_program_and_the_scanner_agree_on_made_messages() {
    let Some(bench) = bench() else { return };
    let mut random = fastrand::Rng::with_seed(seed(7));
    let (mut agreed, tries) = (0, tries());
    for _ in 0..tries {
        let message = made(&mut random);
        agreed += usize::from(agree(&bench, &message));
    }
    println!("{tries} tried, {agreed} of them with a Call-ID");
    assert!(agreed > tries / 2, "{agreed}");
}

fn made(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut pick = |of: &[&str]| of[random.usize(..of.len())].to_owned();
    let blank = |pick: &mut dyn FnMut(&[&str]) -> String| pick(&["", " ", "\t", "   ", "\r\n ", " \r\n\t ", ""]);
    let start = pick(&["", "", "", "\r\n", "\r\n\r\n\r\n"]);
    let line = pick(&["INVITE sip:i:b@c SIP/2.0", "SIP/2.0 200 Call-ID: x", "OPTIONS sip:a SIP/2.0"]);
    let others = [
        "X-Call-ID: no",
        "Call-IDs: no",
        "Call: no",
        "Call-I: no",
        "i-x: no",
        "In-Reply-To: i",
        "Subject: a\r\n Call-ID: no",
        "Subject: a\r\n\ti: no",
        "Identity: e",
        "I2: no",
        "CSeq: 1 INVITE",
        "Contact: <sip:i>",
        "Content-Length: 0",
        "X: \u{e9}\u{e9}\u{e9}\u{e9}",
        "Max-Forwards: 70",
        "Subject:",
        "Call-ID-: no",
        "c: x",
        "-: y",
        "*x: z",
        "c:",
        "a:",
        "K:",
        "\u{e9}: \u{e9}",
    ];
    let mut before: Vec<String> =
        (0..random.usize(..12)).map(|_| others[random.usize(..others.len())].to_owned()).collect();
    // Moves what comes behind to any place within a word and a step.
    before.push(format!("P: {}", "p".repeat(random.usize(..140))));
    let mut pick = |of: &[&str]| of[random.usize(..of.len())].to_owned();
    let name = pick(&["Call-ID", "call-id", "CALL-ID", "cAlL-iD", "i", "I"]);
    let before_colon = pick(&["", "", "", " ", "\t ", "    "]);
    let (lead, trail) = (blank(&mut pick), blank(&mut pick));
    let len = if random.u8(..10) == 0 { random.usize(1..400) } else { random.usize(1..70) };
    let letters = b"abcXYZ019-.!%*_+`'~()<>:\\\"/[]?{}@;,=\xc3\xa9";
    let value: Vec<u8> = (0..len).map(|_| letters[random.usize(..letters.len())]).collect();
    let mut message = format!("{start}{line}\r\n{}\r\n{name}{before_colon}:{lead}", before.join("\r\n")).into_bytes();
    message.extend(&value);
    message.extend(format!("{trail}\r\n").bytes());
    // Or the value is the last there is, or nearly.
    match random.u8(..4) {
        0 => message.extend(b"\r\n"),
        1 => message.extend(format!("\r\n{}", "b".repeat(random.usize(..80))).bytes()),
        _ => message.extend(format!("{}\r\n\r\ni: body", others[random.usize(..others.len())]).bytes()),
    }
    message
}

fn with_call_id(before: &str, value: &str) -> Vec<u8> {
    format!("OPTIONS sip:x SIP/2.0\r\n{before}Call-ID: {value}\r\nTo: x\r\n\r\n").into_bytes()
}

#[test]
fn what_is_left_to_the_kernel_says_why() {
    let Some(bench) = bench() else { return };
    let rows: [(&str, Vec<u8>, Outcome); 12] = [
        ("a keep-alive", b"\r\n\r\n".to_vec(), Outcome::NoMessage),
        ("a pong", b"\r\n".to_vec(), Outcome::NoMessage),
        ("an octet of nothing", b"\0".to_vec(), Outcome::NoMessage),
        ("STUN", b"\x00\x01\x00\x00\x21\x12\xa4\x42i:abcdefghijk".to_vec(), Outcome::NoMessage),
        ("no Call-ID", b"OPTIONS sip:x SIP/2.0\r\nTo: x\r\n\r\nCall-ID: body".to_vec(), Outcome::Absent),
        ("cut before it", b"OPTIONS sip:x SIP/2.0\r\nTo: x\r\nCall-I".to_vec(), Outcome::Absent),
        ("an empty one", with_call_id("", ""), Outcome::Empty),
        ("one of blanks", with_call_id("", " \t \r\n  "), Outcome::Empty),
        ("a start line only", b"Call-ID: x SIP/2.0".to_vec(), Outcome::Absent),
        ("too many lines", with_call_id(&"X:\r\n".repeat(STEPS_MAX as usize), "a"), Outcome::Beyond),
        ("too many blanks", with_call_id("", &format!("{}a", " ".repeat(STEPS_MAX as usize + 8))), Outcome::Beyond),
        ("too many line ends", ["\r\n".repeat(STEPS_MAX as usize).as_bytes(), b"A"].concat(), Outcome::Beyond),
    ];
    for (what, message, expected) in rows {
        assert_eq!(bench.decide(&message), Err(expected), "{what}");
    }
}

#[test]
fn octets_of_a_call_id_beyond_those_that_are_hashed_change_nothing() {
    let Some(bench) = bench() else { return };
    for len in [1, 7, 8, 9, 63, 64, 65, HASHED_MAX - 1, HASHED_MAX, HASHED_MAX + 1, 1024] {
        let value = "c".repeat(len);
        assert_eq!(bench.decide(&with_call_id("", &value)), Ok(bench.shard_of(value.as_bytes())), "{len}");
    }
    let long = "c".repeat(HASHED_MAX);
    assert_eq!(bench.shard_of(format!("{long}x").as_bytes()), bench.shard_of(format!("{long}y").as_bytes()));
}

/// What the kernel measures of the program on the bench: printed for `docs/steering.md`, and bounded far above it, since
/// this machine may be busy.
#[test]
fn the_worst_datagram_costs_microseconds() {
    let Some(benches) = bench() else { return };
    let median = |bench: &Bench, message: &[u8]| {
        let mut rounds: Vec<u32> = (0..15).map(|_| bench.time(message, 20_000).unwrap()).collect();
        rounds.sort_unstable();
        rounds[rounds.len() / 2]
    };
    let lines = "X\n".repeat(1700).into_bytes();
    let near = "ci\nCall-IX:".repeat(300).into_bytes();
    // All of the glance is in vain, and then all of the copy.
    let both = [&b"C\n-----\n".repeat(128)[..], &b"X\n".repeat(1200)].concat();
    let mut invite =
        with_call_id(&"Via: SIP/2.0/UDP 198.51.100.7;branch=z9hG4bKnashds8\r\n".repeat(5), "a@198.51.100.7");
    invite.resize(900, b'v');
    let nothing = [0; 900];
    for (what, message) in [
        ("an INVITE", &invite[..]),
        ("nothing", &nothing),
        ("short lines", &lines),
        ("near misses", &near),
        ("both", &both),
    ] {
        let [in_place, by_copy] = benches.0.each_ref().map(|bench| median(bench, message));
        println!("{what}, {} octets: {in_place} ns in place, {by_copy} ns by copy", message.len());
        assert!(in_place.max(by_copy) < 50_000, "{what}");
    }
}

/// Sockets of two shards at one port, with the program at it.
struct Port {
    steering: Steering,
    shards: Vec<UdpSocket>,
    sender: UdpSocket,
}

impl Port {
    fn open(shards: usize) -> Option<Port> {
        let options = Options {
            shared_port: true,
            receive_buffer: 1 << 20,
            send_buffer: 1 << 20,
            errors: false,
            tell_local: false,
        };
        let mut sockets = vec![socket::UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &options).unwrap()];
        let address = sockets[0].address();
        sockets.extend((1..shards).map(|_| socket::UdpSocket::bind(address, &options).unwrap()));
        let attached = Steering::load(1, shards, 7)
            .and_then(|steering| steering.attach(&[sockets.iter().collect()]).map(|()| steering));
        let steering = match attached {
            Ok(steering) => steering,
            Err(missing) => {
                assert_ne!(std::env::var("VIAHOP_PEERS").as_deref(), Ok("required"), "{missing:?}");
                println!("skipped: {missing:?}");
                return None;
            }
        };
        let shards = sockets.into_iter().map(|socket| UdpSocket::from(OwnedFd::from(socket))).collect();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(address).unwrap();
        Some(Port { steering, shards, sender })
    }

    /// The number of the shard that gets `datagram`.
    #[allow(clippy::disallowed_methods)]
    fn shard_that_gets(&self, datagram: &[u8]) -> usize {
        self.sender.send(datagram).unwrap();
        let mut room = vec![0; 65_536];
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            for (number, shard) in self.shards.iter().enumerate() {
                if let Ok(len) = shard.recv(&mut room) {
                    assert_eq!(&room[..len], datagram);
                    return number;
                }
            }
        }
        panic!("lost: {} octets", datagram.len());
    }

    fn outcome(&self, outcome: Outcome) -> u64 {
        self.steering.outcomes().unwrap()[outcome as usize]
    }
}

#[test]
fn datagrams_of_any_size_come_to_the_socket_of_their_call() {
    let Some(port) = Port::open(4) else { return };
    let mut sent = 0;
    for (_, message) in messages().into_iter().filter(|(_, message)| message.len() <= PAYLOAD_MAX) {
        let got = port.shard_that_gets(&message);
        sent += 1;
        if let Some(call_id) = call_id(&message).filter(|_| message.len() <= LOOK_MAX) {
            assert_eq!(got, port.steering.shard_of(call_id) as usize, "{}", String::from_utf8_lossy(&message));
        }
    }
    // Those of which the kernel keeps the most in pages beside the first piece, up to the largest there are.
    for body in [0, 100, 1400, 4000, 9000, 20_000, 40_000, 65_000] {
        for number in 0..20 {
            let call_id = format!("{number}@{body}.example");
            let mut message = with_call_id("Via: SIP/2.0/UDP 192.0.2.1\r\n", &call_id);
            message.resize(message.len() + body, b'i');
            assert_eq!(port.shard_that_gets(&message), port.steering.shard_of(call_id.as_bytes()) as usize, "{body}");
            sent += 1;
        }
    }
    assert_eq!(port.steering.outcomes().unwrap().iter().sum::<u64>(), sent);
    // The kernel's own hash sends all of a source to one socket.
    let undecided: Vec<usize> = (0..20).map(|number| port.shard_that_gets(&[0, number])).collect();
    assert!(undecided.iter().all(|&shard| shard == undecided[0]), "{undecided:?}");
    assert!(port.outcome(Outcome::NoMessage) >= 20);
    for empty in 0..3 {
        assert_eq!(port.shard_that_gets(b""), undecided[0], "{empty}");
    }
}

#[test]
fn a_call_id_deeper_than_is_looked_at_is_left_to_the_kernel() {
    let Some(port) = Port::open(4) else { return };
    let before = |octets: usize| format!("X: {}\r\n", "x".repeat(octets));
    let deep = with_call_id(&before(LOOK_MAX - 400), "near@example");
    assert_eq!(port.shard_that_gets(&deep), port.steering.shard_of(b"near@example") as usize);
    // Longer than what is looked at by an octet and more: round the end of what is looked at, where a value would be cut, and in the middle of nowhere.
    let decided = port.outcome(Outcome::CallId);
    for octets in (LOOK_MAX - 58..LOOK_MAX + 20).chain([20_000, 60_000]) {
        port.shard_that_gets(&with_call_id(&before(octets), "far@example"));
    }
    assert_eq!(port.outcome(Outcome::CallId), decided);
    assert_eq!(port.outcome(Outcome::Beyond), 80);
}

/// A trunk: one source address and port, of which the kernel alone would send all to one socket.
#[test]
fn calls_of_one_source_are_spread_evenly() {
    let Some(port) = Port::open(2) else { return };
    let calls = 40_000;
    let mut load = [0u32; 2];
    for number in 0..calls {
        load[port.shard_that_gets(&with_call_id("", &format!("{number}@trunk.example.net")))] += 1;
    }
    let skew = f64::from(load[0].max(load[1])) * 2.0 / f64::from(calls);
    println!("{load:?}: busiest {skew:.4} of the mean");
    assert!(skew <= 1.02, "{load:?}");
}

#[test]
fn when_a_shard_is_gone_its_calls_come_to_another_and_none_is_lost() {
    let Some(mut port) = Port::open(3) else { return };
    let call_ids: Vec<String> = (0..300).map(|number| format!("{number}@example")).collect();
    let owner = |port: &Port, call_id: &str| port.steering.shard_of(call_id.as_bytes()) as usize;
    for call_id in &call_ids {
        assert_eq!(port.shard_that_gets(&with_call_id("", call_id)), owner(&port, call_id));
    }
    drop(port.shards.remove(1));
    let mut orphans = 0;
    for call_id in &call_ids {
        let got = port.shard_that_gets(&with_call_id("", call_id));
        match owner(&port, call_id) {
            0 => assert_eq!(got, 0),
            // Number 2, which is the second of those that are left.
            2 => assert_eq!(got, 1),
            _ => orphans += 1,
        }
    }
    assert!(orphans > 50, "{orphans}");
    assert_eq!(port.outcome(Outcome::NoSocket), orphans);
}
