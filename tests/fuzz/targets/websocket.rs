//! A WebSocket's octets, cut anywhere: what is made of them does not depend on the cuts, is what a reader says that shares
//! no code with ours, and never more is kept than is allowed. What we send is read back by a client, tungstenite's.
//!
//! ```text
//! octets ─► how it is cut │ stream: as it stands, or made: a request to upgrade, then frames that are right but for what is
//!                         │         odd about them
//!             whole, in pieces, octet by octet ─► the same  ─► model: lines and frames, by the letter of RFC 6455 and 7118
//!                                                           ─► tungstenite: as a client what we sent, as a server what came
//! ```
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::io::{self, Read, Write};
use std::sync::Arc;
use tungstenite::Message;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{Role, WebSocketConfig};
use viahop::dataplane;
use viahop::dataplane::limits::FRAME_MAX;
use websocket::{CONTROLS_MAX, Event, Origins, Pushed, REQUEST_MAX, WebSocket, pong, put_header};

/// The reader itself, without the shard that it is a part of.
#[allow(dead_code, reason = "all of it, and the target needs a part")]
#[path = "../../../src/shard/streams/websocket.rs"]
mod websocket;

/// Set in the first octet: the stream is to be made.
const IS_MADE: u8 = 0x80;
/// Likewise: in front of it stands a request that is granted.
const IS_OPEN: u8 = 0x40;

/// Streams up to this length, in octets, are cut behind every octet.
const CUT_EVERYWHERE_MAX: usize = 512;

/// Octets behind which no more frames are made: enough for a message that is too long in fragments that are not.
const MADE_MAX: usize = 2 * FRAME_MAX;

/// Octets of the header of a frame at most (RFC 6455 5.2).
const HEADER_MAX: usize = 14;

/// The page that may.
const PAGE: &str = "https://phone.example";

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: sip\r\n\r\n";

/// The answer to this key (RFC 6455 1.3).
const ACCEPT: &str = "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

fuzz_target!(|data: &[u8]| {
    let Some((&first, rest)) = data.split_first() else { return };
    let Some((pieces, rest)) = rest.split_at_checked(first as usize % 16) else { return };
    let mut stream = if first & IS_OPEN != 0 { REQUEST.to_vec() } else { Vec::new() };
    match first & IS_MADE != 0 {
        true => made(&mut Choices(rest), &mut stream),
        false => stream.extend_from_slice(rest),
    }
    judge(&stream, pieces);
});

fn judge(stream: &[u8], pieces: &[u8]) {
    let came = read([stream]);
    if stream.len() <= CUT_EVERYWHERE_MAX {
        assert_eq!(read(stream.chunks(1)), came, "octet by octet");
    }
    let mut left = stream;
    let mut cut: Vec<&[u8]> = pieces
        .iter()
        .map(|&len| {
            // Short ones cut headers, long ones frames.
            let len = if len < 128 { len as usize } else { (len as usize - 127) * 64 };
            left.split_off(..len.min(left.len())).unwrap_or_default()
        })
        .collect();
    cut.push(left);
    assert_eq!(read(cut), came, "cut {pieces:?}");
    assert_eq!(model(stream), came);
    check_sent(&came);
    if let Some(frames) = came.upgraded.as_ref().map(|(_, len)| &stream[*len..]) {
        check_by_server(frames, &came.messages);
    }
}

/// What came of a stream.
#[derive(Debug, Default, PartialEq)]
struct Came {
    /// The response with which it became a WebSocket, and the length of the request.
    upgraded: Option<(Response, usize)>,
    messages: Vec<Vec<u8>>,
    pings: Vec<Vec<u8>>,
    end: Option<End>,
}

/// A response by its rows, since it may name them in any order; the model writes its own.
type Response = Vec<String>;

/// How a stream ended, if it did.
#[derive(Debug, PartialEq)]
enum End {
    /// Closed by the other side, which is told the code again.
    Closed(Option<u16>),
    /// Closed by us, with this code.
    Broken(u16),
    /// It never was a WebSocket: with this status, or without a word.
    Refused(Option<u16>),
}

/// Reads a stream as a shard does.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Came {
    let mut socket = WebSocket::new(Arc::new(Origins::new(vec![PAGE.into()])));
    let (mut came, mut kept) = (Came::default(), Vec::new());
    for piece in pieces {
        kept.extend_from_slice(piece);
        let mut at = 0;
        while came.end.is_none() {
            let (len, event) = socket.next(&mut kept[at..], 0);
            assert!(len <= kept.len() - at);
            let octets = &kept[at..];
            match event {
                Event::Partial => {
                    assert_eq!(len, 0, "what is no whole frame stays");
                    break;
                }
                Event::Nothing => assert!(len > 0),
                Event::Message(range) => came.messages.push(octets[range].to_vec()),
                Event::Assembled(message) => came.messages.push(message),
                Event::Ping(range) => came.pings.push(octets[range].to_vec()),
                Event::Open(response) => {
                    assert!(came.upgraded.is_none());
                    came.upgraded = Some((rows_of(&response), len));
                }
                Event::Close(frame) => came.end = Some(End::Closed(code_of(&frame))),
                Event::Broken(frame) => came.end = Some(End::Broken(code_of(&frame).expect("says why"))),
                Event::Refused(_, response) => {
                    let status = response.get(9..12).map(|digits| String::from_utf8_lossy(digits).parse().unwrap());
                    assert!(response.is_empty() || response.ends_with(b"\r\n\r\n"));
                    came.end = Some(End::Refused(status));
                }
            }
            at += len;
        }
        kept.drain(..at);
        let kept_max = if came.upgraded.is_some() { FRAME_MAX + HEADER_MAX } else { REQUEST_MAX };
        assert!(kept.len() < kept_max || came.end.is_some(), "{} octets of no frame", kept.len());
        assert!(socket.held() <= FRAME_MAX);
        assert!(socket.held() == 0 || socket.assembling_since_ms().is_some(), "what is kept has a deadline");
    }
    came
}

/// The code in a frame that closes, which a client must be able to read and to be allowed to see.
fn code_of(frame: &[u8]) -> Option<u16> {
    let read = by_client(frame);
    let [Message::Close(close)] = &read[..] else { panic!("{read:?} is no close") };
    close.as_ref().map(|close| {
        assert!(close.code.is_allowed(), "{}", close.code);
        close.code.into()
    })
}

fn rows_of(response: &[u8]) -> Response {
    let text = core::str::from_utf8(response).expect("text");
    let mut rows: Vec<String> = text.strip_suffix("\r\n\r\n").expect("an end").split("\r\n").map(Into::into).collect();
    rows[1..].sort();
    rows
}

// The model: whole streams, read with the tables of the RFCs beside it and no care for speed.

fn model(stream: &[u8]) -> Came {
    let mut came = Came::default();
    match model_of_request(stream) {
        Upgrade::More => return came,
        Upgrade::Refused(status) => {
            came.end = Some(End::Refused(status));
            return came;
        }
        Upgrade::Open(response, len) => came.upgraded = Some((response, len)),
    }
    let mut left = &stream[came.upgraded.as_ref().map_or(0, |(_, len)| *len)..];
    let (mut message, mut idle) = (None::<Vec<u8>>, 0);
    while let Some(Frame { is_final, reserved, opcode, mask, len, start }) = Frame::read(left) {
        let is_control = opcode >= 8;
        let under_way = message.as_ref().map_or(0, Vec::len);
        let is_known = matches!(opcode, 0..=2 | 8..=10);
        let is_in_place = match opcode {
            0 => message.is_some(),
            1 | 2 => message.is_none(),
            _ => is_final && len <= 125,
        };
        let is_idle = is_control || len == 0;
        let fault = match () {
            () if !is_known || reserved != 0 || !is_in_place => Some(1002),
            () if is_idle && idle == CONTROLS_MAX => Some(1008),
            () if len > (FRAME_MAX - under_way) as u64 => Some(1009),
            () if mask.is_none() => Some(1002),
            () => None,
        };
        if let Some(code) = fault {
            came.end = Some(End::Broken(code));
            return came;
        }
        let Some(octets) = left.get(start..start + len as usize) else { break };
        left = &left[start + len as usize..];
        idle += u32::from(is_idle);
        let mask = mask.unwrap_or_default();
        let octets: Vec<u8> = (0..octets.len()).map(|at| octets[at] ^ mask[at % 4]).collect();
        match opcode {
            8 => {
                let code = octets.first_chunk::<2>().map(|code| u16::from_be_bytes(*code));
                came.end = Some(match code {
                    None if octets.is_empty() => End::Closed(None),
                    Some(code) if CloseCode::from(code).is_allowed() => End::Closed(Some(code)),
                    _ => End::Broken(1002),
                });
                return came;
            }
            9 => came.pings.push(octets),
            10 => {}
            _ => {
                message.get_or_insert_default().extend(octets);
                if is_final {
                    came.messages.extend(message.take());
                }
            }
        }
    }
    came
}

/// A frame's header (RFC 6455 5.2).
struct Frame {
    is_final: bool,
    reserved: u8,
    opcode: u8,
    mask: Option<[u8; 4]>,
    len: u64,
    /// Where what it holds begins.
    start: usize,
}

impl Frame {
    /// `None`: not all of it is there.
    fn read(octets: &[u8]) -> Option<Frame> {
        let &[first, second, ref behind @ ..] = octets else { return None };
        let (len, more) = match second & 0x7f {
            126 => (u16::from_be_bytes(*behind.first_chunk()?).into(), 2),
            127 => (u64::from_be_bytes(*behind.first_chunk()?), 8),
            len => (len.into(), 0),
        };
        let mask = match second & 0x80 {
            0 => None,
            _ => Some(*behind[more..].first_chunk()?),
        };
        let start = 2 + more + if mask.is_some() { 4 } else { 0 };
        Some(Frame { is_final: first & 0x80 != 0, reserved: first >> 4 & 7, opcode: first & 15, mask, len, start })
    }
}

enum Upgrade {
    More,
    Refused(Option<u16>),
    Open(Response, usize),
}

/// What becomes of a request, in the order in which it is looked at. What a row may hold at all, and how a start line
/// looks, is left to the reader: the model says what must be there, and no less is granted.
fn model_of_request(stream: &[u8]) -> Upgrade {
    if stream.first().is_some_and(|octet| !octet.is_ascii_alphabetic()) {
        return Upgrade::Refused(None);
    }
    let Some(end) = (0..stream.len()).find(|&at| stream[at..].starts_with(b"\r\n\r\n")).map(|at| at + 4) else {
        return if stream.len() < REQUEST_MAX { Upgrade::More } else { Upgrade::Refused(Some(400)) };
    };
    if end > REQUEST_MAX {
        return Upgrade::Refused(Some(400));
    }
    let granted = read_by_reader(&stream[..end]);
    let Some(rows) = rows_by_letter(&stream[..end]) else {
        // Not what the RFC's grammar makes: nobody has to grant it, and nobody may read another request in it.
        assert!(granted.is_err(), "granted, and no request by the grammar");
        return Upgrade::Refused(granted.err());
    };
    let values =
        |name: &str| rows.iter().filter(|(row, _)| row == name).map(|(_, value)| value.as_str()).collect::<Vec<_>>();
    let has = |name: &str, token: &str| {
        values(name).iter().any(|row| row.split([',', ' ', '\t']).any(|one| one.eq_ignore_ascii_case(token)))
    };
    let key = values("sec-websocket-key");
    let origins = values("origin");
    let is_wanted = has("connection", "upgrade")
        && has("upgrade", "websocket")
        && has("sec-websocket-version", "13")
        && key.iter().any(|key| key.len() == 24 && key.ends_with("=="))
        && values("transfer-encoding").is_empty()
        && values("content-length").iter().all(|len| *len == "0");
    let may = match origins[..] {
        [] => true,
        [origin] => origin.eq_ignore_ascii_case(PAGE),
        _ => false,
    };
    match granted {
        Ok(response) => {
            assert!(is_wanted && may && has("sec-websocket-protocol", "sip"), "{rows:?}");
            if key == ["dGhlIHNhbXBsZSBub25jZQ=="] {
                assert!(response.iter().any(|row| row == ACCEPT), "{response:?}");
            }
            assert!(response[0].starts_with("HTTP/1.1 101 "));
            for row in ["connection: Upgrade", "upgrade: websocket", "sec-websocket-protocol: sip"] {
                assert!(response.iter().any(|one| one.eq_ignore_ascii_case(row)), "{response:?}");
            }
            Upgrade::Open(response, end)
        }
        Err(status) => {
            assert!(status != 403 || !may, "{rows:?}");
            // What everybody would write is granted.
            assert!(stream[..end] != *REQUEST, "refused with {status}");
            Upgrade::Refused(Some(status))
        }
    }
}

/// What the reader says of a request that is all there.
fn read_by_reader(request: &[u8]) -> Result<Response, u16> {
    match &read([request]) {
        Came { upgraded: Some((response, len)), .. } => {
            assert_eq!(*len, request.len(), "a request ends with its first empty line");
            Ok(response.clone())
        }
        Came { end: Some(End::Refused(Some(status))), .. } => Err(*status),
        came => panic!("{came:?}"),
    }
}

/// The rows of a request, names in lower case: `None` where it is no request line with CRLF and rows `name: value` of
/// visible characters, spaces and tabs.
fn rows_by_letter(request: &[u8]) -> Option<Vec<(String, String)>> {
    let text = request.strip_suffix(b"\r\n\r\n")?;
    let lossy: String = text.iter().map(|&octet| octet as char).collect();
    let mut lines = lossy.split("\r\n");
    let mut words = lines.next()?.split(' ');
    if (words.next(), words.nth(1), words.next()) != (Some("GET"), Some("HTTP/1.1"), None) {
        return None;
    }
    let row = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let is_name = !name.is_empty() && name.chars().all(|one| one.is_ascii_graphic());
        let is_value = value.chars().all(|one| one == '\t' || one >= ' ' && one != '\x7f');
        (is_name && is_value).then(|| (name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()))
    };
    lines.map(row).collect()
}

// What others read.

/// Sends the messages on, cut in two as the data path has them, and the pongs: a client reads the same.
fn check_sent(came: &Came) {
    let mut sent = Vec::new();
    for message in &came.messages {
        let parts = message.split_at(message.len() / 2);
        put_header(&mut sent, Pushed::Message([parts.0, parts.1]), message.len());
        sent.extend_from_slice(message);
    }
    for ping in &came.pings {
        sent.extend(pong(ping));
    }
    let read = by_client(&sent);
    assert_eq!(read.len(), came.messages.len() + came.pings.len());
    for (read, message) in read.iter().zip(&came.messages) {
        assert!(matches!(read, Message::Text(_) | Message::Binary(_)));
        assert_eq!(read.clone().into_data(), message[..]);
    }
    for (read, ping) in read[came.messages.len()..].iter().zip(&came.pings) {
        assert_eq!(read, &Message::Pong(ping.clone().into()));
    }
}

fn by_client(sent: &[u8]) -> Vec<Message> {
    let (read, left) = by_tungstenite(Role::Client, sent);
    assert!(left.is_none(), "{left:?}");
    read
}

/// What tungstenite's own server reads: the same messages, as far as both read. It wants text to be UTF-8 and knows no bound of
/// pings; we let text be anything, as SIP is.
fn check_by_server(frames: &[u8], messages: &[Vec<u8>]) {
    let (read, _) = by_tungstenite(Role::Server, frames);
    let theirs = read.into_iter().filter(|one| one.is_text() || one.is_binary()).map(Message::into_data);
    for (ours, theirs) in messages.iter().zip(theirs) {
        assert_eq!(theirs, ours[..]);
    }
}

/// What tungstenite reads of these octets, and why not all of them, if there is a reason beside their end.
fn by_tungstenite(role: Role, octets: &[u8]) -> (Vec<Message>, Option<tungstenite::Error>) {
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .write_buffer_size(0)
        .max_frame_size(Some(FRAME_MAX))
        .max_message_size(Some(FRAME_MAX));
    let mut socket = tungstenite::WebSocket::from_raw_socket(Fed(octets), role, Some(config));
    let mut read = Vec::new();
    loop {
        match socket.read() {
            Ok(message) => read.push(message),
            Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return (read, None),
            Err(tungstenite::Error::ConnectionClosed) => return (read, None),
            Err(error) => return (read, Some(error)),
        }
    }
}

/// A stream that has come, and swallows what is said to it.
struct Fed<'a>(&'a [u8]);

impl Read for Fed<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.0.read(into)
    }
}

impl Write for Fed<'_> {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// Streams that get far.

/// Octets to choose by; behind the last every choice is the first there is.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn next(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.next() as usize % all.len()]
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        self.0.split_off(..len.min(self.0.len())).unwrap_or_default().to_vec()
    }
}

/// Rows of a request, most of them odd.
const ROWS: [&str; 34] = [
    "Sec-WebSocket-Protocol: sip",
    "sec-websocket-protocol: xmpp , SIP",
    "Sec-WebSocket-Protocol: sips",
    "Origin: https://phone.example",
    "origin: https://PHONE.example",
    "Origin: https://evil.example",
    "Origin: https://phone.example.evil.example",
    "Origin: null",
    "Origin:",
    "Connection: Upgrade",
    "Connection: keep-alive, upgrade",
    "Connection: close",
    "Upgrade: websocket",
    "Upgrade: h2c, websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Version: 8",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ",
    "Content-Length: 0",
    "Content-Length: 5",
    "Transfer-Encoding: chunked",
    "Sec-WebSocket-Extensions: permessage-deflate",
    "X : y",
    ": y",
    "no colon",
    " folded: line",
    "X: \u{1}",
    "X: \u{fc}",
    "X: a\nY: b",
    "X: a\rY: b",
    "X: a\n",
    "\n",
    "Expect: 100-continue",
];

fn made(choices: &mut Choices<'_>, stream: &mut Vec<u8>) {
    if stream.is_empty() {
        let line = choices.of(&[
            "GET / HTTP/1.1",
            "GET /sip?a=b HTTP/1.1",
            "GET * HTTP/1.1",
            "GET / HTTP/1.0",
            "POST / HTTP/1.1",
        ]);
        stream.extend_from_slice(line.as_bytes());
        let left_out = choices.next() as usize;
        let needed = [ROWS[0], ROWS[9], ROWS[12], ROWS[14], ROWS[16]];
        for row in needed.iter().enumerate().filter(|(number, _)| *number + 1 != left_out).map(|(_, row)| row) {
            stream.extend([b"\r\n", row.as_bytes()].concat());
        }
        for _ in 0..choices.next() % 4 {
            stream.extend([b"\r\n", choices.of(&ROWS).as_bytes()].concat());
        }
        stream.extend_from_slice(b"\r\n\r\n");
    }
    while !choices.0.is_empty() && stream.len() < MADE_MAX {
        frame(choices, stream);
    }
}

/// A frame: mostly a whole one, of what a message may be made of.
fn frame(choices: &mut Choices<'_>, stream: &mut Vec<u8>) {
    let odd = choices.next();
    let first =
        choices.of(&[0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8a, 0x88, 0x09, 0x83, 0x8b, 0xc1, 0xa1, 0x91, 0x08]);
    let len = choices.next() as usize;
    let octets = match odd & 7 {
        // Much of it costs the fuzzer no octets, and the clock many.
        0 if len >= 192 => vec![choices.next(); len * 257],
        0 | 1 => vec![choices.next(); len],
        2 => choices.of(&[&b"\r\n\r\n"[..], b"\r\n", b"", b"\xff", &[0x03, 0xe8], &[0x03, 0xed, b'x']]).to_vec(),
        _ => choices.take(len),
    };
    let mask: [u8; 4] = if odd & 8 == 0 { [0; 4] } else { std::array::from_fn(|_| choices.next()) };
    stream.push(first);
    let said = match odd >> 4 {
        1 => octets.len() as u64 + 1,
        2 => 1 << 63,
        3 => FRAME_MAX as u64 + 1,
        _ => octets.len() as u64,
    };
    let masked = if odd >> 4 == 4 { 0 } else { 0x80 };
    match (odd >> 4, said) {
        // The longest form of all that there are for a length.
        (5 | 6, 0..=65_535) => stream.extend([&[masked | 126][..], &(said as u16).to_be_bytes()].concat()),
        (0..=4 | 8.., 0..=125) => stream.push(masked | said as u8),
        (0..=4 | 8.., 126..=65_535) => stream.extend([&[masked | 126][..], &(said as u16).to_be_bytes()].concat()),
        _ => stream.extend([&[masked | 127][..], &said.to_be_bytes()].concat()),
    }
    if masked != 0 {
        stream.extend(mask);
    }
    stream.extend(octets.iter().zip(mask.iter().cycle()).map(|(octet, mask)| octet ^ mask));
}
