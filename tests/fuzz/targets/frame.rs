//! A stream, cut anywhere: what is made of it does not depend on the cuts, every message ends where its one Content-Length
//! says, and what is read differently elsewhere is no message.
//!
//! The first octet says how many cuts there are, the next so many where they are: each is a distance from the one before.
#![no_main]

use libfuzzer_sys::fuzz_target;
use viahop::dataplane::frame::{Frame, PING};
use viahop_fuzz::plain::Message;
use viahop_fuzz::support::stream::read;

fuzz_target!(|data: &[u8]| {
    let Some((&count, rest)) = data.split_first() else { return };
    let Some((distances, stream)) = rest.split_at_checked(count as usize % 16) else { return };
    let whole = read([stream]);
    assert_eq!(read(stream.chunks(1)), whole, "octet by octet");
    let mut pieces = Vec::new();
    let mut left = stream;
    for &distance in distances {
        let (piece, behind) = left.split_at(left.len().min(distance as usize));
        pieces.push(piece);
        left = behind;
    }
    pieces.push(left);
    assert_eq!(read(pieces.iter().copied()), whole, "cut {distances:?}");
    for (frame, octets) in &whole.frames {
        match frame {
            Frame::Message(len) => check(octets, *len),
            Frame::Ping => assert_eq!((octets.len(), &octets[..]), (PING, &b"\r\n\r\n"[..])),
            Frame::LineEnd => assert_eq!(octets, b"\r\n"),
            Frame::Broken(broken) => assert_eq!(broken.head, octets.len()),
            Frame::Partial => panic!("nothing is no frame"),
        }
    }
    // Nothing but what is behind a broken frame gets lost.
    let is_broken = whole.frames.iter().any(|(frame, _)| matches!(frame, Frame::Broken(_)));
    let octets: usize = whole.frames.iter().map(|(_, octets)| octets.len()).sum();
    assert!(is_broken || octets + whole.rest.len() == stream.len());
});

/// A reader that splits text finds one length, and it is the message's.
fn check(octets: &[u8], len: usize) {
    assert_eq!(octets.len(), len);
    let message = Message::read(octets).expect("a message with an empty line");
    let mut lengths = message.rows.iter().filter(|row| row.name == "content-length");
    let value = core::str::from_utf8(lengths.next().expect("a length").value).expect("digits");
    assert_eq!(value.parse(), Ok(message.body.len()), "{value}");
    assert!(lengths.next().is_none());
}
