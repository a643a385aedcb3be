//! A WebSocket as the server has it, without I/O: octets in, SIP messages out (RFC 6455, RFC 7118).
//!
//! ```text
//! GET … Upgrade: websocket ─► from a page that may? for SIP? ─► 101, or 400, 403 and the end
//! frames: text, binary ─► a message each, or in fragments ─► a message │ ping ─► pong │ close ─► close
//! ```
//!
//! The handshake and the headers of frames are tungstenite's. A frame is taken when all of it is there, and unmasked in place.
//!
//! # What is bounded
//!
//! The request: [`REQUEST_MAX`] octets. A message, in one frame or many: what one in a stream may have. Control frames, and those
//! that hold nothing: [`CONTROLS_MAX`] between two looks at the connection, twice a second. Whoever breaks a rule loses the
//! connection, with the code of RFC 6455 7.4.1.

use crate::dataplane::counters::Upgrade;
use crate::dataplane::limits::FRAME_MAX;
use std::io::Cursor;
use std::ops::Range;
use std::sync::Arc;
use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server::{Request, create_response, write_response};
use tungstenite::http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue, ORIGIN, SEC_WEBSOCKET_PROTOCOL, TRANSFER_ENCODING, UPGRADE,
};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

/// Octets of the request to be a WebSocket, with all its headers.
pub const REQUEST_MAX: usize = 8192;

/// Control frames, and frames that hold nothing, between two calls of [`WebSocket::rest`].
pub const CONTROLS_MAX: u32 = 100;

/// Octets of the header of a frame at most (RFC 6455 5.2).
const HEADER_MAX: usize = 14;

/// Octets that a control frame may hold (RFC 6455 5.5).
const CONTROL_MAX: u64 = 125;

/// What the other side is told when the connection is closed for what it did (RFC 6455 7.4.1).
const PROTOCOL_ERROR: u16 = 1002;
/// Likewise: it wants more than we grant.
const POLICY: u16 = 1008;
/// Likewise: a message is too long.
const TOO_LARGE: u16 = 1009;

/// The pages that may open WebSockets.
#[derive(Debug, Default)]
pub struct Origins(Vec<String>);

impl Origins {
    /// Those that are listed, in lower case; `*` stands for all.
    pub fn new(listed: Vec<String>) -> Origins {
        Origins(listed)
    }

    /// Whether a page of this origin may. Who names none is no page in a browser (RFC 6455 10.2).
    fn may(&self, origin: Option<&HeaderValue>) -> bool {
        let Some(origin) = origin else { return true };
        let is_it = |listed: &String| listed == "*" || origin.as_bytes().eq_ignore_ascii_case(listed.as_bytes());
        self.0.iter().any(is_it)
    }
}

/// What stands at the start of the octets that were brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing whole: more octets decide.
    Partial,
    /// Nothing that matters.
    Nothing,
    /// A message: these octets.
    Message(Range<usize>),
    /// A message that came in fragments.
    Assembled(Vec<u8>),
    /// Somebody asks whether the connection is alive: these octets are to go back in a pong.
    Ping(Range<usize>),
    /// The connection is a WebSocket if this is sent.
    Open(Vec<u8>),
    /// It is to be closed: this is sent, and nothing more is read.
    Close(Vec<u8>),
    /// The same, for something that the other side did.
    Broken(Vec<u8>),
    /// The same, and it never was a WebSocket.
    Refused(Upgrade, Vec<u8>),
}

/// The state of one.
#[derive(Debug)]
pub struct WebSocket {
    origins: Arc<Origins>,
    is_open: bool,
    /// What has come of a message in fragments; `None`: none is under way.
    assembled: Option<Vec<u8>>,
    /// When that began.
    since_ms: u64,
    controls: u32,
}

impl WebSocket {
    /// One that is still to be asked for, by a page of `origins`.
    pub fn new(origins: Arc<Origins>) -> WebSocket {
        WebSocket { origins, is_open: false, assembled: None, since_ms: 0, controls: 0 }
    }

    /// When the message began that comes in fragments, if one does.
    pub fn assembling_since_ms(&self) -> Option<u64> {
        self.assembled.as_ref().map(|_| self.since_ms)
    }

    /// Octets that are kept for it.
    pub fn held(&self) -> usize {
        self.assembled.as_ref().map_or(0, Vec::len)
    }

    /// Some time has passed.
    pub fn rest(&mut self) {
        self.controls = 0;
    }

    /// What `octets` begin with, and how many of them that is. They are those that were left of the last call with more
    /// behind them. What is returned as a message is unmasked.
    pub fn next(&mut self, octets: &mut [u8], now_ms: u64) -> (usize, Event) {
        if !self.is_open {
            return self.upgrade(octets);
        }
        let end = octets.len();
        let mut cursor = Cursor::new(&octets[..end.min(HEADER_MAX)]);
        let (header, len) = match FrameHeader::parse(&mut cursor) {
            Ok(Some(read)) => read,
            Ok(None) => return (0, Event::Partial),
            Err(_) => return (end, broken(PROTOCOL_ERROR)),
        };
        let start = cursor.position() as usize;
        let mask = match self.fault(&header, len) {
            Ok(mask) => mask,
            Err(code) => return (end, broken(code)),
        };
        let payload = start..start + len as usize;
        let Some(octets) = octets.get_mut(payload.clone()) else { return (0, Event::Partial) };
        for (octet, mask) in octets.iter_mut().zip(mask.into_iter().cycle()) {
            *octet ^= mask;
        }
        // Once for each frame, in however many pieces it came.
        self.controls += u32::from(is_idle(header.opcode, len));
        let event = match header.opcode {
            OpCode::Control(Control::Ping) => Event::Ping(payload.clone()),
            OpCode::Control(Control::Close) => on_close(octets),
            OpCode::Control(_) => Event::Nothing,
            OpCode::Data(_) if header.is_final && self.assembled.is_none() => Event::Message(payload.clone()),
            OpCode::Data(_) => self.assemble(octets, header.is_final, now_ms),
        };
        (payload.end, event)
    }

    /// The mask of a frame, or what is wrong with it.
    fn fault(&self, header: &FrameHeader, len: u64) -> Result<[u8; 4], u16> {
        let FrameHeader { is_final, rsv1, rsv2, rsv3, opcode, mask } = *header;
        let is_under_way = self.assembled.is_some();
        let is_out_of_place = match opcode {
            OpCode::Control(_) => !is_final || len > CONTROL_MAX,
            OpCode::Data(Data::Continue) => !is_under_way,
            OpCode::Data(_) => is_under_way,
        };
        match mask {
            // No extension was agreed upon, so nobody gives these bits a meaning (RFC 6455 5.2).
            _ if rsv1 || rsv2 || rsv3 || is_out_of_place => Err(PROTOCOL_ERROR),
            _ if self.controls >= CONTROLS_MAX && is_idle(opcode, len) => Err(POLICY),
            _ if len > (FRAME_MAX - self.held()) as u64 => Err(TOO_LARGE),
            //= RFC 6455 section 5.1
            //# The server MUST close the connection upon receiving a
            //# frame that is not masked.
            None => Err(PROTOCOL_ERROR),
            Some(mask) => Ok(mask),
        }
    }

    fn assemble(&mut self, octets: &[u8], is_final: bool, now_ms: u64) -> Event {
        let assembled = self.assembled.get_or_insert_with(|| {
            self.since_ms = now_ms;
            Vec::new()
        });
        assembled.extend_from_slice(octets);
        match is_final {
            true => Event::Assembled(self.assembled.take().unwrap_or_default()),
            false => Event::Nothing,
        }
    }

    fn upgrade(&mut self, octets: &[u8]) -> (usize, Event) {
        let refused = |upgrade| (octets.len(), Event::Refused(upgrade, refusal(upgrade)));
        // A request line begins with a letter: what speaks TLS here need not be waited for.
        if octets.first().is_some_and(|octet| !octet.is_ascii_alphabetic()) {
            return (octets.len(), Event::Refused(Upgrade::Malformed, Vec::new()));
        }
        let within = &octets[..octets.len().min(REQUEST_MAX)];
        let Some(end) = end_of_request(within) else {
            return if octets.len() < REQUEST_MAX { (0, Event::Partial) } else { refused(Upgrade::Malformed) };
        };
        let Ok(Some((len, mut request))) = Request::try_parse(within) else { return refused(Upgrade::Malformed) };
        // A line that ends with LF alone, or a body, and where the frames begin is read in two ways.
        let has_bare_end = within[..end].windows(2).any(|two| two[1] == b'\n' && two[0] != b'\r');
        let has_body = request.headers().contains_key(TRANSFER_ENCODING)
            || request.headers().get_all(CONTENT_LENGTH).iter().any(|len| len != "0");
        if has_bare_end || has_body {
            return refused(Upgrade::Malformed);
        }
        // tungstenite looks at the first row of each, and wants no other protocol beside ours.
        for (name, token) in [(CONNECTION, "Upgrade"), (UPGRADE, "websocket")] {
            if lists(&request, &name, token) {
                request.headers_mut().insert(name, HeaderValue::from_static(token));
            }
        }
        let Ok(mut response) = create_response(&request) else { return refused(Upgrade::Malformed) };
        let mut origins = request.headers().get_all(ORIGIN).iter();
        let origin = origins.next();
        if !self.origins.may(origin) || origins.next().is_some() {
            return refused(Upgrade::Origin);
        }
        //= RFC 7118 section 4.1
        //# The 101 reply from the server MUST contain "sip"
        //# in its corresponding Sec-WebSocket-Protocol header.
        if !lists(&request, &SEC_WEBSOCKET_PROTOCOL, "sip") {
            return refused(Upgrade::Subprotocol);
        }
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("sip"));
        let mut written = Vec::new();
        match write_response(&mut written, &response) {
            Ok(()) => {
                self.is_open = true;
                (len, Event::Open(written))
            }
            Err(_) => refused(Upgrade::Malformed),
        }
    }
}

/// The other side closes. What it says of the reason is told it again, if it may be said at all.
fn on_close(octets: &[u8]) -> Event {
    match octets.first_chunk() {
        None if octets.is_empty() => Event::Close(close(&[])),
        Some(code) if CloseCode::from(u16::from_be_bytes(*code)).is_allowed() => Event::Close(close(code)),
        //= RFC 6455 section 5.5.1
        //# If there is a body, the first two bytes of
        //# the body MUST be a 2-byte unsigned integer (in network byte order)
        //# representing a status code with value /code/ defined in Section 7.4.
        _ => broken(PROTOCOL_ERROR),
    }
}

/// Whether a frame brings nothing of a message.
fn is_idle(opcode: OpCode, len: u64) -> bool {
    matches!(opcode, OpCode::Control(_)) || len == 0
}

/// Whether `token` is among what the rows of this name list (RFC 9110 5.2).
fn lists(request: &Request, name: &HeaderName, token: &str) -> bool {
    let is_it = |one: &[u8]| one.trim_ascii().eq_ignore_ascii_case(token.as_bytes());
    request.headers().get_all(name).iter().any(|row| row.as_bytes().split(|&octet| octet == b',').any(is_it))
}

/// How long a request is, with the empty line that ends it.
fn end_of_request(octets: &[u8]) -> Option<usize> {
    octets.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

fn refusal(upgrade: Upgrade) -> Vec<u8> {
    let line = match upgrade {
        Upgrade::Origin => "403 Forbidden",
        Upgrade::Done | Upgrade::Malformed | Upgrade::Subprotocol => "400 Bad Request",
    };
    format!("HTTP/1.1 {line}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").into_bytes()
}

fn broken(code: u16) -> Event {
    Event::Broken(close(&code.to_be_bytes()))
}

fn close(code: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    put_header(&mut frame, Pushed::Close, code.len());
    frame.extend_from_slice(code);
    frame
}

/// What a frame of ours holds.
#[derive(Clone, Copy, Debug)]
pub enum Pushed<'a> {
    /// A message.
    Message([&'a [u8]; 2]),
    /// An answer to a ping.
    Pong,
    /// The end.
    Close,
}

/// Writes the header of a frame of `len` octets.
pub fn put_header(out: &mut Vec<u8>, pushed: Pushed<'_>, len: usize) {
    let is_text = |parts: [&[u8]; 2]| parts.iter().all(|part| std::str::from_utf8(part).is_ok());
    let opcode = match pushed {
        //= RFC 7118 section 4.2
        //# If there is at least one non-UTF-8 symbol in the whole SIP message
        //# (including headers and the body), then the whole message MUST be
        //# sent within a WebSocket binary message.
        Pushed::Message(parts) if is_text(parts) => OpCode::Data(Data::Text),
        Pushed::Message(_) => OpCode::Data(Data::Binary),
        Pushed::Pong => OpCode::Control(Control::Pong),
        Pushed::Close => OpCode::Control(Control::Close),
    };
    // Memory takes whatever is written.
    FrameHeader { opcode, ..FrameHeader::default() }.format(len as u64, out).ok();
}

/// An answer to a ping that held `octets`.
pub fn pong(octets: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    put_header(&mut frame, Pushed::Pong, octets.len());
    frame.extend_from_slice(octets);
    frame
}

#[cfg(test)]
mod tests {
    use super::super::send::tests::Bench;
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    fn request(more: &str) -> Vec<u8> {
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{more}\r\n"
        )
        .into_bytes()
    }

    fn socket() -> WebSocket {
        WebSocket::new(Arc::new(Origins::new(vec!["https://phone.example".into()])))
    }

    fn open() -> WebSocket {
        WebSocket { is_open: true, ..socket() }
    }

    /// A frame as a client sends it: first octet, and what it holds.
    fn frame(first: u8, octets: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match octets.len() {
            len @ ..=125 => frame.push(0x80 | len as u8),
            len @ ..=65_535 => frame.extend([&[0xfe][..], &(len as u16).to_be_bytes()].concat()),
            len => frame.extend([&[0xff][..], &(len as u64).to_be_bytes()].concat()),
        }
        let mask = [1, 2, 3, 4];
        frame.extend(mask);
        frame.extend(octets.iter().zip(mask.iter().cycle()).map(|(octet, mask)| octet ^ mask));
        frame
    }

    fn next(socket: &mut WebSocket, mut octets: Vec<u8>) -> Event {
        socket.next(&mut octets, 0).1
    }

    #[test]
    fn what_is_a_list_may_stand_in_rows_and_beside_others() {
        let connection = "Connection: keep-alive, Upgrade\r\n";
        for (row, rows) in [
            (connection, "Connection: keep-alive\r\nConnection: Upgrade\r\n"),
            (connection, "connection:upgrade\r\nConnection: TE\r\n"),
            ("Upgrade: websocket\r\n", "Upgrade: h2c, WebSocket\r\n"),
            ("Upgrade: websocket\r\n", "Upgrade: h2c\r\nUpgrade: websocket\r\n"),
        ] {
            let text = String::from_utf8(request("Sec-WebSocket-Protocol: sip\r\n")).unwrap();
            let event = next(&mut socket(), text.replace(row, rows).into_bytes());
            assert!(matches!(event, Event::Open(_)), "{rows}: {event:?}");
            let event = next(&mut socket(), text.replace(row, "").into_bytes());
            assert!(matches!(event, Event::Refused(Upgrade::Malformed, _)), "{event:?}");
        }
    }

    #[test]
    fn a_page_that_may_gets_a_websocket_for_sip_and_others_get_none() {
        let sip = "Sec-WebSocket-Protocol: sip\r\n";
        let origin = |origin: &str| format!("{sip}Origin: {origin}\r\n");
        let rows = [
            (sip.to_owned(), Upgrade::Done),
            (origin("https://phone.example"), Upgrade::Done),
            (origin("https://PHONE.example"), Upgrade::Done),
            (format!("{sip}Content-Length: 0\r\n"), Upgrade::Done),
            ("Sec-WebSocket-Protocol: xmpp, sip\r\n".into(), Upgrade::Done),
            (origin("https://evil.example"), Upgrade::Origin),
            (origin("https://phone.example.evil.example"), Upgrade::Origin),
            (origin("null"), Upgrade::Origin),
            (origin("https://phone.example") + "Origin: https://evil.example\r\n", Upgrade::Origin),
            ("Sec-WebSocket-Protocol: sips\r\n".into(), Upgrade::Subprotocol),
            (String::new(), Upgrade::Subprotocol),
            (format!("{sip}bad header\r\n"), Upgrade::Malformed),
            (format!("{sip}Content-Length: 5\r\n"), Upgrade::Malformed),
            (format!("{sip}Transfer-Encoding: chunked\r\n"), Upgrade::Malformed),
            (format!("{sip}X: y\n\nZ: y\r\n"), Upgrade::Malformed),
        ];
        for (more, wanted) in rows {
            let octets = request(&more);
            let mut socket = socket();
            let mut part = octets[..octets.len() - 1].to_vec();
            assert_eq!(socket.next(&mut part, 0), (0, Event::Partial));
            match next(&mut socket, octets) {
                Event::Open(response) => {
                    assert_eq!(wanted, Upgrade::Done, "{more}");
                    let response = String::from_utf8(response).unwrap().to_ascii_lowercase();
                    // RFC 6455 1.3 has this answer to this key.
                    assert!(response.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "{response}");
                    assert!(response.contains("sec-websocket-protocol: sip\r\n"), "{response}");
                }
                Event::Refused(why, response) => {
                    assert_eq!(why, wanted, "{more}");
                    assert!(response.starts_with(b"HTTP/1.1 40"));
                }
                event => panic!("{more}: {event:?}"),
            }
        }
        let mut open_to_all = WebSocket::new(Arc::new(Origins::new(vec!["*".into()])));
        assert!(matches!(next(&mut open_to_all, request(&origin("https://evil.example"))), Event::Open(_)));
        for octets in [&b"\x16\x03\x01"[..], b"GET / HTTP/1.1\r\n\r\n", b"OPTIONS sip:a SIP/2.0\r\n\r\n"] {
            assert!(matches!(next(&mut socket(), octets.to_vec()), Event::Refused(Upgrade::Malformed, _)));
        }
        let endless = [request("")[..40].to_vec(), vec![b'a'; REQUEST_MAX]].concat();
        assert!(matches!(next(&mut socket(), endless), Event::Refused(Upgrade::Malformed, _)));
    }

    #[test]
    fn a_frame_is_a_message_and_so_are_fragments_together_wherever_they_are_cut() {
        let text = b"OPTIONS sip:a SIP/2.0\r\n\r\n";
        for len in [1, 125, 126, 65_535] {
            let octets = vec![b'x'; len];
            for first in [0x81, 0x82] {
                let mut whole = frame(first, &octets);
                for cut in [0, 1, 2, 3, 5, whole.len() - 1] {
                    assert_eq!(open().next(&mut whole[..cut].to_vec(), 0), (0, Event::Partial));
                }
                let end = whole.len();
                let (taken, event) = open().next(&mut whole, 0);
                let Event::Message(range) = event else { panic!("{event:?}") };
                assert_eq!((taken, &whole[range]), (end, &octets[..]));
            }
        }
        let mut socket = open();
        assert_eq!(socket.next(&mut frame(0x01, &text[..5]), 7).1, Event::Nothing);
        assert_eq!((socket.held(), socket.assembling_since_ms()), (5, Some(7)));
        assert!(matches!(next(&mut socket, frame(0x89, b"are you there")), Event::Ping(_)));
        assert_eq!(next(&mut socket, frame(0x00, &text[5..9])), Event::Nothing);
        assert_eq!(next(&mut socket, frame(0x80, &text[9..])), Event::Assembled(text.to_vec()));
        assert_eq!((socket.held(), socket.assembling_since_ms()), (0, None));
    }

    #[test]
    fn what_leaves_says_what_it_is_and_how_long() {
        let header = |pushed, len| {
            let mut out = Vec::new();
            put_header(&mut out, pushed, len);
            out
        };
        assert_eq!(header(Pushed::Message([b"a", "\u{f6}".as_bytes()]), 3), [0x81, 3]);
        assert_eq!(header(Pushed::Message([b"a", b"\xf6"]), 200), [0x82, 126, 0, 200]);
        assert_eq!(pong(b"abc"), b"\x8a\x03abc");
    }

    #[test]
    fn a_ping_that_dribbles_in_is_one_ping() {
        let (mut socket, ping) = (open(), frame(0x89, &[7; 125]));
        for end in 0..ping.len() {
            assert_eq!(socket.next(&mut ping[..end].to_vec(), 0), (0, Event::Partial));
        }
        assert!(matches!(next(&mut socket, ping), Event::Ping(_)));
    }

    #[test]
    fn who_pings_now_and_then_may_do_so_for_good() {
        let mut bench = Bench::new();
        let connection = bench.streams.connection(0).unwrap();
        (connection.websocket, connection.has_spoken) = (Some(Box::new(open())), true);
        for second in 0..2 * CONTROLS_MAX {
            let websocket = bench.streams.connection(0).unwrap().websocket.as_mut().unwrap();
            assert!(matches!(next(websocket, frame(0x89, b"")), Event::Ping(_)));
            assert!(bench.sweep(1000 * u64::from(second)));
        }
    }

    #[test]
    fn whoever_breaks_a_rule_is_told_which() {
        let code = |event: Event| match event {
            Event::Broken(frame) => u16::from_be_bytes([frame[2], frame[3]]),
            event => panic!("{event:?}"),
        };
        let huge = |len: u64| [&[0x81, 0xff][..], &len.to_be_bytes(), &[0; 4]].concat();
        let rows: [(Vec<u8>, u16); 15] = [
            (vec![0x81, 0x01, b'x'], PROTOCOL_ERROR),
            (frame(0xc1, b"x"), PROTOCOL_ERROR),
            (frame(0xa1, b"x"), PROTOCOL_ERROR),
            (frame(0x91, b"x"), PROTOCOL_ERROR),
            (frame(0x83, b"x"), PROTOCOL_ERROR),
            (frame(0x8b, b"x"), PROTOCOL_ERROR),
            (frame(0x09, b"x"), PROTOCOL_ERROR),
            (frame(0x89, &[0; 126]), PROTOCOL_ERROR),
            (frame(0x80, b"x"), PROTOCOL_ERROR),
            (frame(0x88, &[3]), PROTOCOL_ERROR),
            (frame(0x88, &1005u16.to_be_bytes()), PROTOCOL_ERROR),
            (huge(1 << 63), TOO_LARGE),
            (huge(u64::MAX), TOO_LARGE),
            (huge(65_536), TOO_LARGE),
            (frame(0x81, &[0; 65_536]), TOO_LARGE),
        ];
        for (octets, wanted) in rows {
            assert_eq!(code(next(&mut open(), octets.clone())), wanted, "{:?}", &octets[..3]);
        }
        let mut socket = open();
        next(&mut socket, frame(0x01, &[0; 40_000]));
        assert_eq!(code(next(&mut socket, frame(0x81, b"x"))), PROTOCOL_ERROR);
        assert_eq!(code(next(&mut socket, frame(0x00, &[0; 40_000]))), TOO_LARGE);
        for first in [0x89, 0x8a, 0x01] {
            let mut socket = open();
            for _ in 0..CONTROLS_MAX {
                next(&mut socket, frame(first, b""));
                socket.assembled = None;
            }
            assert_eq!(code(next(&mut socket, frame(first, b""))), POLICY);
            let message = next(&mut socket, frame(0x81, b"x"));
            assert!(matches!(message, Event::Message(_)), "what brings something is not what there is too much of");
            socket.rest();
            assert!(!matches!(next(&mut socket, frame(first, b"")), Event::Broken(_)));
        }
        assert_eq!(next(&mut open(), frame(0x88, &1001u16.to_be_bytes())), Event::Close(vec![0x88, 2, 0x03, 0xe9]));
        assert_eq!(next(&mut open(), frame(0x88, b"")), Event::Close(vec![0x88, 0]));
    }
}
