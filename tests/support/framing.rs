//! What has to hold for every stream there is, and a maker of streams that are likely to be read in two ways.
//!
//! ```text
//! octets ─► Case ── as it stands, or made: requests with odd rows and lengths, the corpus, then spoilt here and there
//!             └──► judge: cut anywhere ─► the same frames ─► each message through the data path ─► `readers` agree
//! ```
//!
//! The fuzz target `frame` lets libFuzzer choose the octets; `tests/streams.rs` takes them from a generator of random
//! numbers.

use super::plain::Message;
use super::readers::lengths;
use super::stream::{Reader, read};
use super::{BACKENDS, CLIENT, address, corpus, pool, settings};
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

/// Ways to say a length that somebody may read as another, as none, or where it is none.
pub const ODD_LENGTHS: [&str; 46] = [
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

/// Set in the first octet of a case whose stream is to be made.
const IS_MADE: u8 = 0x80;

/// Streams up to this length, in octets, are cut behind every octet.
const CUT_EVERYWHERE_MAX: usize = 256;

/// Octets of the longest stream that is made. Nothing that decides where a message ends is longer, but the limits, which
/// have their own tests.
const MADE_MAX: usize = 1536;

/// A stream, and how it is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    pub stream: Vec<u8>,
    /// Octets of all pieces but the last.
    pub pieces: Vec<u8>,
}

/// What was found in a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// Messages.
    pub messages: u64,
    /// Requests and responses that went on to somebody by a stream, among them what came as a datagram.
    pub forwarded: u64,
    /// Ends that not all would agree on.
    pub broken: u64,
}

impl Case {
    /// The case that `data` says: how many pieces, whether the stream is to be made, how long the pieces are, and the stream
    /// or what it is to be made of. `None`: there is not enough of it, or too much.
    pub fn read(data: &[u8]) -> Option<Case> {
        let (&first, rest) = data.split_first()?;
        let (pieces, rest) = rest.split_at_checked(first as usize % 16)?;
        let stream = if first & IS_MADE != 0 { made(&mut Choices(rest)) } else { rest.to_vec() };
        (stream.len() <= DATAGRAM_MAX).then(|| Case { stream, pieces: pieces.to_vec() })
    }

    /// Panics where a promise does not hold.
    pub fn judge(&self) -> Judged {
        let stream = &self.stream[..];
        let mut judged = Judged::default();
        let whole = read([stream]);
        judged.forwarded += u64::from(send_on(stream, None));
        if stream.len() <= CUT_EVERYWHERE_MAX {
            assert_eq!(read(stream.chunks(1)), whole, "octet by octet");
        }
        let mut reader = Reader::default();
        let mut left = stream;
        for &len in &self.pieces {
            let (piece, behind) = left.split_at(left.len().min(len as usize));
            reader.feed(piece);
            left = behind;
        }
        reader.feed(left);
        assert_eq!(reader.read, whole, "cut {:?}", self.pieces);
        for (frame, octets) in &whole.frames {
            match frame {
                Frame::Message(len) => {
                    judged.messages += 1;
                    check(octets, *len);
                    judged.forwarded += u64::from(send_on(octets, StreamId::new(0, 7, 1)));
                }
                Frame::Ping => assert_eq!((octets.len(), &octets[..]), (PING, &b"\r\n\r\n"[..])),
                Frame::LineEnd => assert_eq!(octets, b"\r\n"),
                Frame::Broken(broken) => {
                    judged.broken += 1;
                    assert_eq!(broken.head, octets.len());
                }
                Frame::Partial => panic!("nothing is no frame"),
            }
        }
        // Nothing but what is behind a broken frame gets lost.
        let octets: usize = whole.frames.iter().map(|(_, octets)| octets.len()).sum();
        assert!(judged.broken > 0 || octets + whole.rest.len() == stream.len());
        judged
    }
}

/// Sends `octets` through a data path whose backends are behind streams, and says whether it forwards them: then everybody
/// reads what leaves as one message.
fn send_on(octets: &[u8], stream: Option<StreamId>) -> bool {
    static TABLES: LazyLock<Tables> = LazyLock::new(tables);
    thread_local! {
        static DISPATCHER: RefCell<Dispatcher> = RefCell::new(Dispatcher::new(Scanner::best(), EgressPorts::default()));
        static HEAD: RefCell<Vec<u8>> = RefCell::new(vec![0; HEAD_MAX]);
    }
    let (mut input, mut head) = (octets.to_vec(), HEAD.take());
    let mut room = Room::new(&mut input, &mut head);
    let arrival = Arrival { from: address(CLIENT), listener: Some(0), local: None, stream };
    DISPATCHER.with_borrow_mut(|dispatcher| dispatcher.on_datagram(&TABLES, 0, arrival, &mut room));
    let verdict = room.verdict;
    let is_forwarded = matches!(verdict, Verdict::Forward { .. });
    if is_forwarded {
        let sent = room.output().concat();
        for (name, len) in lengths(&sent) {
            assert_eq!(len, Some(sent.len()), "{name} reads another end:\n{}", String::from_utf8_lossy(&sent));
        }
    }
    HEAD.set(head);
    is_forwarded
}

/// The cast's listener for streams, and its backends behind streams.
pub fn tables() -> Tables {
    let mut settings = settings();
    settings.listeners[0].transport = Transport::Tcp;
    let mut pool = pool(&BACKENDS);
    pool.backends.iter_mut().for_each(|backend| backend.reach.transport = Transport::Tcp);
    Tables::new(1, settings, vec![pool], None)
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

/// Octets to choose by; behind the last every choice is the first there is.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn next(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    fn below(&mut self, count: usize) -> usize {
        self.next() as usize % count
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// A place in so many octets, the end included.
    fn place(&mut self, len: usize) -> usize {
        u16::from_le_bytes([self.next(), self.next()]) as usize % (len + 1)
    }
}

const START_LINES: [&str; 8] = [
    "OPTIONS sip:bob@example.net SIP/2.0",
    "INVITE sip:bob@example.net SIP/2.0",
    "BYE sip:bob@example.net SIP/2.0",
    "ACK sip:bob@example.net SIP/2.0",
    "REGISTER sip:example.net SIP/2.0",
    "SIP/2.0 200 OK",
    "OPTIONS sip:bob@example.net SIP/2.1",
    "GET / HTTP/1.1",
];

/// What ends the line of an odd row. Most often what has to.
const LINE_ENDS: [&str; 16] = [
    "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", "\r\r\n", "\n\r",
    "\r\n\r\n", "\n\n",
];

/// What may stand between messages.
const BETWEEN: [&str; 8] = ["\r\n", "\r\n\r\n", "\r\n\r\n\r\n", "\r", "\n", " ", "\0", "\r\n\r"];

/// Bodies, some of which would be requests if somebody took them for such.
const BODIES: [&str; 8] = [
    "",
    "12345",
    "\r\n\r\n",
    "\n\n",
    "v=0\r\no=- 0 0 IN IP4 192.0.2.1\r\ns=-\r\n",
    "OPTIONS sip:smuggled@example.net SIP/2.0\r\nContent-Length: 0\r\n\r\n",
    "Content-Length: 0\r\n\r\nOPTIONS sip:smuggled@example.net SIP/2.0\r\n",
    "l: 5\r\n\r\n12345",
];

/// Octets that mean something to somebody who looks for lines, names, numbers.
const TELLING: &[u8] = b"\r\n \t:;,\"_-+0159lLcC\0\x0b\x0c\x7f\x80\x85\xa0\xc2\xff";

/// A stream of a few messages.
fn made(choices: &mut Choices<'_>) -> Vec<u8> {
    static CORPUS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
        let messages = corpus::messages().into_iter().map(|(_, octets)| octets);
        messages.filter(|octets| (1..MADE_MAX).contains(&octets.len())).collect()
    });
    let mut stream = Vec::new();
    for _ in 0..=choices.below(3) {
        match choices.below(8) {
            0 => stream.extend_from_slice(choices.of(&BETWEEN).as_bytes()),
            1 => stream.extend_from_slice(&CORPUS[choices.place(CORPUS.len() - 1)]),
            _ => write(choices, &mut stream),
        }
    }
    for _ in 0..choices.of(&[0, 0, 0, 1, 1, 2, 2, 3]) {
        spoil(choices, &mut stream);
    }
    stream.truncate(MADE_MAX);
    stream
}

/// A message that is right but for what is odd about it.
fn write(choices: &mut Choices<'_>, stream: &mut Vec<u8>) {
    let mut text = String::with_capacity(512);
    // The right one as often as all others.
    let start_line = if choices.next() < 128 { START_LINES[0] } else { choices.of(&START_LINES) };
    let method = start_line.split(' ').next().filter(|word| !word.contains('/')).unwrap_or("INVITE");
    for part in [start_line, "\r\nVia: SIP/2.0/TCP ", CLIENT, ";branch=z9hG4bKmade\r\n"] {
        text.push_str(part);
    }
    let body = choices.of(&BODIES);
    let (count, place) = (choices.of(&[0, 0, 0, 0, 1, 1, 1, 2]), choices.below(3));
    for here in 0..3 {
        if here == place {
            for _ in 0..count {
                text.push_str(choices.of(&ODD_LENGTHS));
                text.push_str(choices.of(&LINE_ENDS));
            }
        }
        match here {
            0 => {
                text.push_str(
                    "From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: made\r\nCSeq: 1 ",
                );
                text.push_str(method);
                text.push_str("\r\n");
            }
            1 => write_length(choices, body.len(), &mut text),
            _ => text.push_str("\r\n"),
        }
    }
    text.push_str(body);
    stream.extend_from_slice(text.as_bytes());
}

/// The row with the length of a body of `right` octets, mostly.
fn write_length(choices: &mut Choices<'_>, right: usize, text: &mut String) {
    let len = match choices.below(16) {
        0 => return,
        1 => right + 1,
        2 => right.saturating_sub(1),
        3 => 0,
        4 => right + 65_000,
        _ => right,
    };
    text.push_str(choices.of(&[
        "Content-Length: ",
        "Content-Length: ",
        "l: ",
        "CONTENT-LENGTH :",
        "Content-Length:\r\n ",
    ]));
    text.push_str(&len.to_string());
    text.push_str("\r\n");
}

/// Changes a little of `stream`.
fn spoil(choices: &mut Choices<'_>, stream: &mut Vec<u8>) {
    let at = choices.place(stream.len());
    match choices.below(6) {
        0 | 1 if at < stream.len() => stream[at] = choices.of(TELLING),
        2 | 3 => stream.insert(at, choices.of(TELLING)),
        4 => drop(stream.drain(at..stream.len().min(at + 1 + choices.below(4)))),
        _ => {
            // A piece of itself, from anywhere.
            let from = choices.place(stream.len());
            let piece = stream[from..stream.len().min(from + choices.below(64))].to_vec();
            stream.splice(at..at, piece);
        }
    }
}
