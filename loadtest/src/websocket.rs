//! WebSockets as a phone in a browser has them, without I/O (RFC 6455, RFC 7118): the request to become one, and frames.
//!
//! ```text
//!   Asking ──► GET … Upgrade: websocket ──► 101? for SIP, with our key? ──► frames: a message each, ours masked
//! ```
//!
//! Handshake and headers of frames are tungstenite's. A message in several frames is not read: RFC 7118 has elements send one in
//! one.

use crate::sip::frame::MESSAGE_MAX;
use crate::sip::message::Malformed;
use std::io::Cursor;
use std::net::SocketAddr;
use std::ops::Range;
use tungstenite::handshake::client::{Response, generate_key};
use tungstenite::handshake::derive_accept_key;
use tungstenite::handshake::machine::TryParse;
use tungstenite::http::StatusCode;
use tungstenite::http::header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Octets of an answer to the request; more is none.
pub const ANSWER_MAX: usize = 16 << 10;

/// Octets of the header of a frame at most (RFC 6455 5.2).
const HEADER_MAX: usize = 14;

/// A request to become a WebSocket that is not answered yet.
#[derive(Debug)]
pub struct Asking {
    key: String,
    /// Octets of it that have not left.
    pub left: usize,
}

impl Asking {
    /// Asks `host`: what is asked, and what its answer is read with.
    pub fn new(host: SocketAddr) -> (Asking, Vec<u8>) {
        let key = generate_key();
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: sip\r\n\r\n"
        );
        (Asking { key, left: request.len() }, request.into_bytes())
    }

    /// How long the answer is that `octets` begin with; `None`: there is more to come. `Err`: a no, as a report has it.
    pub fn answer(&self, octets: &[u8]) -> Result<Option<usize>, &'static str> {
        let response = match Response::try_parse(octets) {
            Ok(Some(read)) => read,
            Ok(None) if octets.len() < ANSWER_MAX => return Ok(None),
            _ => return Err("WebSocket: what came is no answer to the request"),
        };
        let (len, response) = response;
        let says = |name, value: &str| response.headers().get(name).is_some_and(|said| said == value);
        //= RFC 7118 section 4.1
        //# The WebSocket client MUST include the value "sip" in the
        //# Sec-WebSocket-Protocol header in its handshake request.
        match response.status() == StatusCode::SWITCHING_PROTOCOLS {
            false => Err("WebSocket: the other side refused"),
            true if !says(SEC_WEBSOCKET_ACCEPT, &derive_accept_key(self.key.as_bytes())) => {
                Err("WebSocket: the answer is to another request")
            }
            true if !says(SEC_WEBSOCKET_PROTOCOL, "sip") => Err("WebSocket: the other side does not speak SIP"),
            true => Ok(Some(len)),
        }
    }
}

/// What is at the front of what has come, with the octets that it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Front {
    /// The other side says goodbye.
    Closed,
    /// A message.
    Message(Range<usize>),
    /// Nothing whole yet.
    More,
    /// So many octets that say nothing.
    Nothing(usize),
    /// What is to be sent back.
    Ping(Range<usize>),
}

/// What is at the front of `octets`. `Err`: nothing that follows can be read either.
pub fn front(octets: &[u8]) -> Result<Front, Malformed> {
    let mut cursor = Cursor::new(&octets[..octets.len().min(HEADER_MAX)]);
    let (header, len) = match FrameHeader::parse(&mut cursor) {
        Ok(Some(read)) => read,
        Ok(None) => return Ok(Front::More),
        Err(_) => return Err(Malformed::StartLine),
    };
    //= RFC 6455 section 5.1
    //# A server MUST NOT mask any frames that it sends to
    //# the client.
    if header.mask.is_some() || !header.is_final || header.rsv1 || header.rsv2 || header.rsv3 {
        return Err(Malformed::StartLine);
    }
    if len > (MESSAGE_MAX - HEADER_MAX) as u64 {
        return Err(Malformed::TooLong);
    }
    let start = cursor.position() as usize;
    let payload = start..start + len as usize;
    let Some(held) = octets.get(payload.clone()) else { return Ok(Front::More) };
    Ok(match header.opcode {
        OpCode::Control(Control::Close) => Front::Closed,
        OpCode::Control(Control::Ping) => Front::Ping(payload),
        OpCode::Control(_) => Front::Nothing(payload.end),
        OpCode::Data(Data::Text | Data::Binary) => match held.iter().all(|octet| matches!(octet, b'\r' | b'\n')) {
            true => Front::Nothing(payload.end),
            false => Front::Message(payload),
        },
        OpCode::Data(_) => return Err(Malformed::StartLine),
    })
}

/// Writes a message as a frame, masked with `mask`.
pub fn put_message(out: &mut Vec<u8>, message: &[u8], mask: u32) {
    //= RFC 7118 section 4.2
    //# If there is at least one non-UTF-8 symbol in the whole SIP message
    //# (including headers and the body), then the whole message MUST be
    //# sent within a WebSocket binary message.
    let kind = if std::str::from_utf8(message).is_ok() { Data::Text } else { Data::Binary };
    put(out, OpCode::Data(kind), message, mask);
}

/// Writes the answer to a ping.
pub fn put_pong(out: &mut Vec<u8>, held: &[u8], mask: u32) {
    put(out, OpCode::Control(Control::Pong), held, mask);
}

fn put(out: &mut Vec<u8>, opcode: OpCode, octets: &[u8], mask: u32) {
    let mask = mask.to_ne_bytes();
    // Memory takes whatever is written.
    FrameHeader { opcode, mask: Some(mask), ..FrameHeader::default() }.format(octets.len() as u64, out).ok();
    let start = out.len();
    out.extend_from_slice(octets);
    for (at, octet) in out[start..].iter_mut().enumerate() {
        *octet ^= mask[at % 4];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_to_our_key_and_for_sip_or_says_why_not() {
        let (asking, request) = Asking::new("127.0.0.1:80".parse().unwrap());
        assert_eq!(asking.left, request.len());
        let accept = derive_accept_key(asking.key.as_bytes());
        let yes = format!("HTTP/1.1 101 X\r\nSec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: sip\r\n\r\n");
        for end in 0..yes.len() {
            assert_eq!(asking.answer(&yes.as_bytes()[..end]), Ok(None));
        }
        assert_eq!(asking.answer(format!("{yes}\u{1}more").as_bytes()), Ok(Some(yes.len())));
        for (answer, why) in [
            (yes.replace("101", "403"), "refused"),
            (yes.replace("sip", "xmpp"), "does not speak SIP"),
            (yes.replace(&accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "another request"),
            ("SIP/2.0 400 Bad Request\r\n\r\n".to_owned(), "no answer"),
        ] {
            let said = asking.answer(answer.as_bytes()).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn frames_of_the_other_side_are_messages_pings_the_end_or_wrong() {
        let unmasked = |opcode, octets: &[u8]| {
            let mut frame = Vec::new();
            FrameHeader { opcode, ..FrameHeader::default() }.format(octets.len() as u64, &mut frame).unwrap();
            [frame, octets.to_vec()].concat()
        };
        let text = unmasked(OpCode::Data(Data::Text), &[b'x'; 300]);
        for end in 0..text.len() {
            assert_eq!(front(&text[..end]), Ok(Front::More));
        }
        assert_eq!(front(&text), Ok(Front::Message(4..304)));
        assert_eq!(front(&unmasked(OpCode::Data(Data::Binary), b"\r\n")), Ok(Front::Nothing(4)));
        assert_eq!(front(&unmasked(OpCode::Control(Control::Ping), b"?")), Ok(Front::Ping(2..3)));
        assert_eq!(front(&unmasked(OpCode::Control(Control::Close), b"")), Ok(Front::Closed));
        let mut masked = Vec::new();
        put_message(&mut masked, b"OPTIONS", 7);
        assert_eq!((front(&masked), masked.len()), (Err(Malformed::StartLine), 2 + 4 + 7));
        assert_eq!(front(&unmasked(OpCode::Data(Data::Continue), b"x")), Err(Malformed::StartLine));
        assert_eq!(front(&[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]), Err(Malformed::TooLong));
    }
}
