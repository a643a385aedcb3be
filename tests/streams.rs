//! Messages in streams: where each ends, whoever cut the stream and wherever, and what becomes of it then.

mod support;

use support::corpus::{self, own};
use support::stream::{Reader, read};

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
