//! A WebSocket's octets, in whatever pieces they come: the same messages, and never more kept than is allowed.

use proptest::prelude::*;
use std::sync::Arc;
use viahop::dataplane::limits::FRAME_MAX;
use viahop::shard::streams::websocket::{Event, Origins, WebSocket};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: sip\r\n\r\n";

/// What came of a stream: messages, pings and the end.
#[derive(Debug, Default, PartialEq)]
struct Came {
    messages: Vec<Vec<u8>>,
    pings: Vec<Vec<u8>>,
    last: Option<Vec<u8>>,
}

/// Reads a stream as a shard does, in pieces of these lengths, by turns.
fn read(stream: &[u8], pieces: &[usize]) -> Came {
    let mut socket = WebSocket::new(Arc::new(Origins::default()));
    let (mut came, mut kept) = (Came::default(), Vec::new());
    let (mut left, mut lengths) = (stream, pieces.iter().cycle());
    while !left.is_empty() && came.last.is_none() {
        let (piece, rest) = left.split_at(left.len().min(*lengths.next().unwrap()));
        left = rest;
        kept.extend_from_slice(piece);
        let mut at = 0;
        while came.last.is_none() {
            let (len, event) = socket.next(&mut kept[at..], 0);
            let octets = kept[at..].to_vec();
            assert!(len <= octets.len());
            at += len;
            match event {
                Event::Partial => break,
                Event::Nothing | Event::Open(_) => {}
                Event::Message(range) => came.messages.push(octets[range].to_vec()),
                Event::Assembled(message) => came.messages.push(message),
                Event::Ping(range) => came.pings.push(octets[range].to_vec()),
                Event::Close(frame) | Event::Broken(frame) | Event::Refused(_, frame) => came.last = Some(frame),
            }
        }
        kept.drain(..at);
        assert!(socket.held() <= FRAME_MAX && kept.len() <= FRAME_MAX + 14 + pieces.iter().max().unwrap());
    }
    came
}

fn frame(first: u8, mask: [u8; 4], octets: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match octets.len() {
        len @ ..=125 => frame.push(0x80 | len as u8),
        len => frame.extend([&[0xfe][..], &(len as u16).to_be_bytes()].concat()),
    }
    frame.extend(mask);
    frame.extend(octets.iter().zip(mask.iter().cycle()).map(|(octet, mask)| octet ^ mask));
    frame
}

type Message = (Vec<u8>, Vec<prop::sample::Index>, [u8; 4], bool);

/// A message, in as many fragments as there are cuts, with pings between them.
fn messages() -> impl Strategy<Value = Vec<Message>> {
    let message = prop::collection::vec(any::<u8>(), 0..2000);
    let cuts = prop::collection::vec(any::<prop::sample::Index>(), 0..4);
    prop::collection::vec((message, cuts, any::<[u8; 4]>(), any::<bool>()), 1..8)
}

proptest! {
    #[test]
    fn the_same_messages_come_of_a_stream_wherever_it_is_cut(
        messages in messages(),
        pieces in prop::collection::vec(1usize..3000, 1..20),
    ) {
        let (mut stream, mut wanted) = (REQUEST.to_vec(), Came::default());
        for (message, cuts, mask, pings) in messages {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(message.len() + 1)).collect();
            cuts.extend([0, message.len()]);
            cuts.sort_unstable();
            let last = cuts.len() - 2;
            for (number, pair) in cuts.windows(2).enumerate() {
                let first = u8::from(number == last) << 7 | u8::from(number == 0) << 1;
                stream.extend(frame(first, mask, &message[pair[0]..pair[1]]));
                if pings {
                    stream.extend(frame(0x89, mask, &mask));
                    wanted.pings.push(mask.to_vec());
                }
            }
            wanted.messages.push(message);
        }
        prop_assert_eq!(&read(&stream, &[stream.len()]), &wanted);
        prop_assert_eq!(&read(&stream, &pieces), &wanted);
        prop_assert_eq!(&read(&stream, &[1]), &wanted);
    }

    #[test]
    fn noise_is_read_alike_in_any_pieces(
        noise in prop::collection::vec(any::<u8>(), 0..400),
        is_open in any::<bool>(),
        pieces in prop::collection::vec(1usize..50, 1..10),
    ) {
        let stream = if is_open { [REQUEST, &noise].concat() } else { noise };
        prop_assert_eq!(read(&stream, &pieces), read(&stream, &[1]));
    }
}
