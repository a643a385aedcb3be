//! What a stranger can make us send: never more octets than it sent, never to anybody but itself or a backend, and no
//! response that is not one.
//!
//! A million forgeries in a release build: `cargo test --release --test amplification`.

mod support;

use support::{BACKENDS, CLIENT, Outcome, Path, address, corpus, shared_tables};
use viahop::dataplane::keys::Keys;
use viahop::dataplane::tables::Tables;
use viahop::dataplane::verdict::{Answer, Verdict};

/// A Binding Request without attributes has 20 octets, and the answer consists of the address: RFC 8489 leaves no choice.
const STUN_MORE: usize = 12;

/// How much came in and went out, and the worst of all answers.
#[derive(Default)]
struct Sums {
    sent_in: usize,
    sent_out: usize,
    answered: usize,
    worst: (f64, String),
}

impl Sums {
    fn hold(&mut self, what: &str, message: &[u8], outcome: &Outcome) {
        self.sent_in += message.len();
        match outcome.verdict {
            Verdict::Drop(_) => {}
            Verdict::Forward { to, .. } => {
                assert!(BACKENDS.contains(&to.to_string().as_str()), "{what}: sent to {to}");
            }
            Verdict::Reply { to, answer } => {
                let more = if answer == Answer::Stun { STUN_MORE } else { 0 };
                assert!(
                    outcome.sent.len() <= message.len() + more,
                    "{what}: {} octets answered with {}",
                    message.len(),
                    outcome.sent.len()
                );
                assert_eq!(to.ip(), address(CLIENT).ip(), "{what}: answered to somebody else");
                self.answered += 1;
                self.sent_out += outcome.sent.len();
                let factor = outcome.sent.len() as f64 / message.len() as f64;
                if answer != Answer::Stun && factor > self.worst.0 {
                    self.worst = (factor, what.to_owned());
                }
            }
        }
    }
}

#[test]
fn a_line_end_that_is_none_comes_into_no_answer() {
    let mut path = Path::new(shared_tables());
    let (mut answered, mut silent) = (0, 0);
    let rows = [
        "Via: SIP/2.0/UDP a;branch=1",
        "Via: SIP/2.0/UDP b;branch=2",
        "From: <sip:a@b>;tag=1",
        "To: <sip:a@b>",
        "Call-ID: 1",
        "CSeq: 1 INVITE",
    ];
    for place in 0..rows.len() {
        for end in ["\r", ";x=\r", ";x\r\n =\r", " \r\t", "\r\r", "\n", "\r\n \r"] {
            let mut rows = rows.map(str::to_owned);
            rows[place] += end;
            let rows = rows.join("\r\n");
            let message = format!("INVITE sip:b@b SIP/2.0\r\n{rows}\r\nSubject: {}\r\n\r\n", "x".repeat(200));
            let text = path.receive(message.as_bytes(), CLIENT).text();
            if text.is_empty() {
                silent += 1;
                continue;
            }
            answered += 1;
            assert!(text.starts_with("SIP/2.0 400 "), "{text:?}");
            assert!(!text.replace("\r\n", "").contains(['\r', '\n']), "{message:?}: {text:?}");
        }
    }
    // Without a Via there is nobody to answer.
    assert!(answered >= 30 && silent >= 12, "{answered} {silent}");
}

#[test]
fn an_unverified_source_gets_no_more_octets_than_it_sent_and_nobody_else_gets_any() {
    let mut path = Path::new(shared_tables());
    let mut sums = Sums::default();
    let step = if cfg!(debug_assertions) { 7 } else { 1 };
    // What is longer than a datagram can be is there for streams.
    for (name, message) in corpus::messages().into_iter().filter(|(_, message)| message.len() <= 65_507) {
        sums.hold(&name, &message, &path.receive(&message, CLIENT));
        // Cut anywhere, and with any octet spoilt, up to a length that has all that an answer repeats.
        for at in (0..message.len().min(2000)).step_by(step) {
            sums.hold(&format!("{name}, cut at {at}"), &message[..at], &path.receive(&message[..at], CLIENT));
            let mut spoilt = message.clone();
            spoilt[at] ^= 0x20;
            sums.hold(&format!("{name}, spoilt at {at}"), &spoilt, &path.receive(&spoilt, CLIENT));
        }
    }
    println!(
        "{} octets in, {} answers with {} octets out; the worst answer has {:.3} of its request ({})",
        sums.sent_in, sums.answered, sums.sent_out, sums.worst.0, sums.worst.1
    );
    assert!(sums.answered > 1000 && sums.sent_out < sums.sent_in);
}

/// The head of our Via in a forwarded request: where `branch` and `vh` stand, in letters.
struct Ours {
    via: String,
    digest: std::ops::Range<usize>,
    token: std::ops::Range<usize>,
}

fn ours(path: &mut Path, call: &str) -> (Ours, String) {
    let request = format!(
        "OPTIONS sip:bob@example.net SIP/2.0\r\nVia: SIP/2.0/UDP {CLIENT};branch=z9hG4bK{call};rport\r\n\
         Max-Forwards: 70\r\nFrom: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: {call}\r\n\
         CSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
    );
    let outcome = path.receive(request.as_bytes(), CLIENT);
    let Verdict::Forward { to, .. } = outcome.verdict else { panic!("{:?}", outcome.verdict) };
    let via = outcome.rows("via").remove(0);
    let digest = via.find("z9hG4bK").unwrap() + 7;
    let token = via.find(";vh=").unwrap() + 4;
    let end = via[token..].find(';').map_or(via.len(), |len| token + len);
    (Ours { digest: digest..digest + 16, token: token..end, via }, to.to_string())
}

fn response(via: &str, below: &str, call: &str) -> String {
    format!(
        "SIP/2.0 200 OK\r\nVia: {via}\r\nVia: SIP/2.0/UDP {below}\r\nFrom: <sip:a@example.net>;tag=1\r\n\
         To: <sip:b@example.net>;tag=2\r\nCall-ID: {call}\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
    )
}

#[test]
fn no_forged_response_is_passed_on_to_anybody() {
    let tries = if cfg!(debug_assertions) { 20_000 } else { 1_000_000 };
    let seed = std::env::var("VIAHOP_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(39);
    println!("VIAHOP_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut path = Path::new(shared_tables());
    let mut stranger = support::settings();
    stranger.keys = Keys::new(&[1; 16], &[2; 16], &[9; 16], 0);
    let mut stranger = Path::new(Tables::new(1, stranger, vec![support::pool(&BACKENDS)], None));
    let below = format!("{CLIENT};branch=z9hG4bKcall;received=198.51.100.7;rport=5060");
    let (genuine, backend) = ours(&mut path, "call");
    let (other_call, _) = ours(&mut path, "other");
    let (other_secret, _) = ours(&mut stranger, "call");
    assert!(path.receive(response(&genuine.via, &below, "call").as_bytes(), &backend).is_forward());
    let hex = |random: &mut fastrand::Rng, len: usize| -> String {
        (0..len).map(|_| char::from_digit(random.u32(..16), 16).unwrap()).collect()
    };
    let victim = "192.0.2.66:53;branch=z9hG4bKcall";
    let (mut tried, mut passed) = (0, Vec::new());
    while tried < tries {
        let mut via = genuine.via.clone();
        let mut to_victim = false;
        let range = if random.bool() { genuine.digest.clone() } else { genuine.token.clone() };
        match random.u8(..7) {
            // One letter, a row of letters, all of them.
            0 => via.replace_range(random.choice(range).map(|at| at..at + 1).unwrap(), &hex(&mut random, 1)),
            1 => {
                let start = random.usize(range.clone());
                let len = random.usize(1..=range.end - start);
                via.replace_range(start..start + len, &hex(&mut random, len));
            }
            2 => via.replace_range(range.clone(), &hex(&mut random, range.len())),
            // Shorter, longer, none.
            3 => via.truncate(random.usize(range)),
            4 => via.insert_str(random.usize(range), &hex(&mut random, 2)),
            // Of another transaction, or of somebody with another secret.
            5 if random.bool() => via.replace_range(genuine.token.clone(), &other_call.via[other_call.token.clone()]),
            5 => via.replace_range(genuine.token.clone(), &other_secret.via[other_secret.token.clone()]),
            // Genuine, but somebody else stands below it.
            _ => to_victim = true,
        }
        let is_genuine = via[..genuine.token.end.min(via.len())] == genuine.via[..genuine.token.end];
        if is_genuine && !to_victim {
            continue;
        }
        tried += 1;
        let forged = response(&via, if to_victim { victim } else { &below }, "call");
        let source = if random.bool() { backend.as_str() } else { "203.0.113.9:5060" };
        let outcome = path.receive(forged.as_bytes(), source);
        if !matches!(outcome.verdict, Verdict::Drop(_)) {
            passed.push((via, outcome.verdict));
        }
    }
    assert!(passed.is_empty(), "{} of {tried}: {passed:?}", passed.len());
    println!("{tried} forged responses, 0 passed on");
}
