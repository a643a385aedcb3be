//! A stream, cut anywhere: what is made of it does not depend on the cuts, and every message ends where its one
//! Content-Length says. What of it goes on to a backend by a stream ends at the same place for all others that read streams
//! (`tests/support/readers.rs`), and so does what came as a datagram.
//!
//! The first octet says how many cuts there are, the next so many where they are: each is a distance from the one before.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use std::sync::LazyLock;
use viahop::dataplane::dispatch::{Dispatcher, EgressPorts};
use viahop::dataplane::frame::{Frame, PING};
use viahop::dataplane::limits::{DATAGRAM_MAX, HEAD_MAX};
use viahop::dataplane::room::Room;
use viahop::dataplane::route::Arrival;
use viahop::dataplane::scan::Scanner;
use viahop::dataplane::tables::Tables;
use viahop::dataplane::transport::{StreamId, Transport};
use viahop::dataplane::verdict::Verdict;
use viahop_fuzz::plain::Message;
use viahop_fuzz::support;
use viahop_fuzz::support::readers::lengths;
use viahop_fuzz::support::stream::read;

fuzz_target!(|data: &[u8]| {
    let Some((&count, rest)) = data.split_first() else { return };
    let Some((distances, stream)) = rest.split_at_checked(count as usize % 16) else { return };
    if stream.len() > DATAGRAM_MAX {
        return;
    }
    let whole = read([stream]);
    send_on(stream, None);
    // The cuts find what this finds, and long streams are slow to read so.
    if stream.len() <= 256 {
        assert_eq!(read(stream.chunks(1)), whole, "octet by octet");
    }
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
            Frame::Message(len) => {
                check(octets, *len);
                send_on(octets, StreamId::new(0, 7, 1));
            }
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

/// A backend on a stream gets what everybody reads as one message.
fn send_on(octets: &[u8], stream: Option<StreamId>) {
    static TABLES: LazyLock<Tables> = LazyLock::new(|| {
        let mut settings = support::settings();
        settings.listeners[0].transport = Transport::Tcp;
        let mut pool = support::pool(&support::BACKENDS);
        pool.backends.iter_mut().for_each(|backend| backend.reach.transport = Transport::Tcp);
        Tables::new(1, settings, vec![pool], None)
    });
    thread_local! {
        static DISPATCHER: RefCell<Dispatcher> = RefCell::new(Dispatcher::new(Scanner::best(), EgressPorts::default()));
        static HEAD: RefCell<Vec<u8>> = RefCell::new(vec![0; HEAD_MAX]);
    }
    let (mut input, mut head) = (octets.to_vec(), HEAD.take());
    let mut room = Room::new(&mut input, &mut head);
    let arrival = Arrival { from: support::address(support::CLIENT), listener: Some(0), local: None, stream };
    let (_, verdict) = DISPATCHER.with_borrow_mut(|dispatcher| dispatcher.on_datagram(&TABLES, 0, arrival, &mut room));
    if let Verdict::Forward { .. } = verdict {
        let sent = room.output().concat();
        for (name, len) in lengths(&sent) {
            assert_eq!(len, Some(sent.len()), "{name} reads another end:\n{}", String::from_utf8_lossy(&sent));
        }
    }
    HEAD.set(head);
}

/// A reader that splits text finds one length, and it is the message's.
fn check(octets: &[u8], len: usize) {
    assert_eq!(octets.len(), len);
    let message = Message::read(octets).expect("a message with an empty line");
    let mut lengths = message.rows.iter().filter(|row| row.name == "content-length");
    let value = core::str::from_utf8(lengths.next().expect("a length").value).expect("digits");
    assert_eq!(value.parse(), Ok(message.body.len()), "{value}");
    assert!(lengths.next().is_none());
}
