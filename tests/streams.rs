//! Messages in streams: where each ends, whoever cut the stream and wherever, and what becomes of it then.

mod support;

use std::sync::{Arc, LazyLock};
use support::corpus::{self, own};
use support::stream::{Reader, read};
use support::{BACKENDS, CLIENT, Outcome, Path, address, pool, readers, settings};
use viahop::dataplane::frame::Frame;
use viahop::dataplane::limits::DATAGRAM_MAX;
use viahop::dataplane::route::Arrival;
use viahop::dataplane::tables::Tables;
use viahop::dataplane::transport::{StreamId, Transport};
use viahop::dataplane::verdict::{Answer, Verdict};

/// Every message of the corpora as it is, and behind and before others; with a length where it has none.
fn streams() -> Vec<(String, Vec<u8>)> {
    let next = std::fs::read(own().join("b20-tcp-pipelined.bin")).unwrap();
    let mut streams = corpus::messages();
    for (name, message) in streams.clone() {
        streams.push((format!("{name} before others"), [&message[..], &next].concat()));
        if let Some(at) = message.windows(4).position(|four| four == b"\r\n\r\n") {
            let length = format!("\r\nContent-Length: {}\r\n\r\n", message.len() - at - 4);
            let whole = [&message[..at], length.as_bytes(), &message[at + 4..]].concat();
            streams.push((format!("{name} with its length, behind others"), [&next[..], &whole, &next].concat()));
        }
    }
    streams
}

#[test]
fn the_verdict_is_the_same_wherever_a_stream_is_cut() {
    for (name, stream) in streams() {
        let whole = read([&stream[..]]);
        assert_eq!(read(stream.chunks(1)), whole, "{name}, octet by octet");
        // What was read up to a cut is read on from there by a copy: reading all of it again for each would take minutes.
        let mut upto = Reader::default();
        let step = if stream.len() > 6000 { 97 } else { 1 };
        for cut in (0..=stream.len()).step_by(step) {
            let mut reader = upto.clone();
            reader.feed(&stream[cut..]);
            assert_eq!(reader.read, whole, "{name}, cut at {cut}");
            upto.feed(&stream[cut..stream.len().min(cut + step)]);
        }
    }
}

/// What becomes of a stream from a client: its frames, each through the data path.
fn verdicts(stream: &[u8]) -> Vec<String> {
    let mut path = Path::new(tables_of_streams());
    let arrival = Arrival { from: address(CLIENT), listener: Some(0), local: None, stream: StreamId::new(0, 7, 1) };
    let mut said = Vec::new();
    for (frame, octets) in read([stream]).frames {
        let outcome = match frame {
            Frame::LineEnd | Frame::Partial => continue,
            Frame::Ping => {
                said.push("PONG".to_owned());
                continue;
            }
            Frame::Message(_) => path.receive_on(&octets, arrival),
            Frame::Broken(broken) => path.receive_broken(&octets, arrival, broken.refusal),
        };
        match outcome.verdict {
            Verdict::Forward { .. } => {
                said.push("FWD".to_owned());
                judge_forwarded(&outcome);
            }
            Verdict::Reply { answer: Answer::Status(code), .. } => said.push(format!("REPLY {code}")),
            Verdict::Reply { .. } | Verdict::Drop(_) => {}
        }
        if matches!(frame, Frame::Broken(_)) {
            said.push("CLOSE".to_owned());
        }
    }
    said
}

/// What is forwarded to a backend on a stream is one message with one plain length.
fn judge_forwarded(outcome: &Outcome) {
    let lengths = outcome.rows("content-length").len() + outcome.rows("l").len();
    assert_eq!(lengths, 1, "{}", outcome.text());
    for (name, len) in readers::lengths(&outcome.sent) {
        assert_eq!(len, Some(outcome.sent.len()), "{name} reads another end than we do:\n{}", outcome.text());
    }
}

/// The cast's listener for streams, and its backends behind streams.
fn tables_of_streams() -> Arc<Tables> {
    static TABLES: LazyLock<Arc<Tables>> = LazyLock::new(|| Arc::new(made_for_streams()));
    TABLES.clone()
}

fn made_for_streams() -> Tables {
    let mut settings = settings();
    settings.listeners[0].transport = Transport::Tcp;
    let mut pool = pool(&BACKENDS);
    for backend in &mut pool.backends {
        backend.reach.transport = Transport::Tcp;
    }
    Tables::new(1, settings, vec![pool], None)
}

#[test]
fn streams_of_the_corpus_get_the_verdicts_of_its_manifest() {
    let manifest = std::fs::read_to_string(own().join("MANIFEST.tsv")).unwrap();
    let mut checked = 0;
    for row in manifest.lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>()) {
        let (file, transport, expect) = (row[0], row[1], row[3]);
        if transport != "tcp" {
            continue;
        }
        let stream = std::fs::read(own().join(file)).unwrap();
        let said = verdicts(&stream).join(",");
        // An answer before the close is welcome where a close is asked for.
        let fits = |one: &str| one == said || one == "CLOSE" && said.ends_with("CLOSE");
        assert!(expect.split('|').any(fits), "{file}: expected {expect}, got {said}");
        checked += 1;
    }
    assert!(checked >= 18, "{checked}");
}

#[test]
fn whatever_is_forwarded_from_the_corpora_ends_for_every_reader_where_it_ends() {
    let mut forwarded = 0;
    for (name, message) in corpus::messages() {
        if message.len() > DATAGRAM_MAX {
            continue;
        }
        println!("{name}");
        // As a datagram, which says its own end, and as a stream.
        let mut path = Path::new(tables_of_streams());
        let arrival = Arrival { from: address(CLIENT), listener: Some(0), local: None, stream: None };
        let outcome = path.receive_on(&message, arrival);
        if outcome.is_forward() && !message.starts_with(b"SIP/") {
            judge_forwarded(&outcome);
            forwarded += 1;
        }
        verdicts(&message);
    }
    assert!(forwarded > 80, "{forwarded}");
}

/// Every odd way to say a length, in every pair: whatever is let through ends for everybody at the same place.
#[test]
fn odd_lengths_are_refused_or_read_alike_by_all() {
    let odd = [
        "",
        "Content-Length: 0",
        "Content-Length: 4",
        "Content-Length: 5",
        "Content-Length: 05",
        "Content-Length:5",
        "Content-Length : 5",
        "Content-Length\t:\t5",
        "Content-Length: 5 ",
        "Content-Length:\r\n 5",
        "l: 5",
        "l: 0",
        "L : 5",
        "Content_Length: 0",
        "content_length: 5",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: 0x5",
        "Content-Length: 5 0",
        "Content-Length: 0 5",
        "Content-Length: 5,0",
        "Content-Length: \"5\"",
        "Content-Length: 5;q=1",
        "Content-Length: 4294967301",
        "Content-Length: 18446744073709551621",
        "Content-Length: 99999999999999999999999",
        "Content-Length:",
        "Content-Length",
        "X: 1\r\n Content-Length: 0",
        "X: 1\r\n\tl: 0",
        "X: 1\r\n  Content_Length: 0",
        "X: 1\nContent-Length: 0",
        "X: 1\rContent-Length: 0",
        "X: 1\0\r\nY: 2",
        "Content-Length: 5\0",
        "Content-Length\0: 5",
        "Subject: Content-Length: 0",
        "X-Content-Length: 0",
        "Content-Length-X: 0",
        " Content-Length: 0",
        "X: 1\n\nGET",
        "X: 1\r\n\n",
        "ll: 0",
        "Content-Lengt: 0",
        "Transfer-Encoding: chunked",
        "Content-Length: ５",
    ];
    let (mut through, mut refused) = (0, 0);
    for one in odd {
        for other in odd {
            let rows: String =
                [one, other].iter().filter(|row| !row.is_empty()).map(|row| format!("{row}\r\n")).collect();
            let stream = format!(
                "OPTIONS sip:bob@example.net SIP/2.0\r\nVia: SIP/2.0/TCP {CLIENT};branch=z9hG4bKodd\r\n\
                 From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: odd\r\nCSeq: 1 OPTIONS\r\n{rows}\r\n\
                 OPTIO"
            );
            match &verdicts(stream.as_bytes())[..] {
                [first, ..] if first == "FWD" => through += 1,
                _ => refused += 1,
            }
            // As a datagram it may be let through more easily; what leaves by a stream is judged all the same.
            let mut path = Path::new(tables_of_streams());
            let arrival = Arrival { from: address(CLIENT), listener: Some(0), local: None, stream: None };
            let outcome = path.receive_on(stream.as_bytes(), arrival);
            if outcome.is_forward() {
                judge_forwarded(&outcome);
            }
        }
    }
    assert!(through > 50 && refused > 1500, "{through} {refused}");
}
