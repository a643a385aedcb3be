//! Where a message ends in a stream: octets in, one frame after the other out. No I/O, no clock; whoever reads the stream
//! keeps the octets that are no frame yet and brings them again with more behind them.
//!
//! ```text
//! between messages ─┬─ CRLF CRLF ─► ping                                        RFC 5626 5.4
//!                   ├─ CRLF ─► nothing                                          RFC 3261 7.5
//!                   └─ an octet of a token ─► head, up to its empty line ─► as much body as Content-Length says ─► message
//! anything that two servers could read differently ─► broken: 400 where there is somebody to answer, and close
//! ```
//!
//! A stream has no way back to order: who misreads where one message ends reads the body of the next as a request. So
//! nothing is repaired here. Ways in which others find another end than we do, and what catches each:
//!
//! | they | caught by |
//! |---|---|
//! | end a line at LF or at CR alone | the scan: a fault |
//! | end the head at `LF LF` | the scan: a fault, and the head ends there for the answer |
//! | read `Content_Length` | the scan: a look-alike |
//! | read `Content-Length` in a folded line | [`misleads`] |
//! | end a header at NUL | [`misleads`] |
//! | take the first of two lengths, or the last | there is one |
//! | skip what is no number, take `0 191` as 0, wrap at 32 bits | the number is digits, and no larger than a message may be |
//! | take none for 0 | there is one |
//!
//! The verdict does not depend on how the stream is cut: every decision is made on a number of octets that the octets
//! themselves determine, never on how many happen to be there.

use crate::dataplane::limits::{FRAME_MAX, START_LINE_MAX};
use crate::dataplane::scan::{Fault, Scan, Scanner, Span, has_folded_header};
use crate::dataplane::sip::grammar;
use crate::dataplane::sip::header::HeaderKind;
use crate::dataplane::sip::start_line::{self, StartLineError};
use crate::dataplane::validate::Refusal;

/// What stands at the start of the octets that were brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Nothing whole: more octets decide.
    Partial,
    /// A line end that means nothing: [`LINE_END`] octets.
    LineEnd,
    /// Somebody asks whether the connection is alive: [`PING`] octets, to be answered with [`PONG`].
    Ping,
    /// A message of so many octets.
    Message(usize),
    /// Octets that have no end all would agree on. The connection is of no use any more.
    Broken(Broken),
}

/// Octets of a line end.
pub const LINE_END: usize = 2;
/// Octets of a ping.
pub const PING: usize = 4;
/// The answer to a ping.
//= RFC 5626 section 5.4
//# When a server receives a double CRLF sequence between SIP messages on
//# a connection-oriented transport such as TCP or SCTP, it MUST
//# immediately respond with a single CRLF over the same connection.
pub const PONG: &[u8] = b"\r\n";

/// Why a stream cannot be read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The answer, if it is SIP at all.
    pub refusal: Option<Refusal>,
    /// Octets that are known to belong to what is wrong: the head, where it has an end.
    pub head: usize,
}

impl Broken {
    /// Something else than SIP: HTTP, a TLS handshake on the plain port, noise.
    const NOT_SIP: Broken = Broken { refusal: None, head: 0 };

    const fn refused(code: u16, reason: &'static str, head: usize) -> Frame {
        Frame::Broken(Broken { refusal: Some(Refusal::new(code, reason)), head })
    }
}

/// How far the frame at the start of the octets has been read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Framer {
    /// Octets of the head in which its end has been looked for.
    searched: usize,
    /// Whether the start line has been seen to be SIP's.
    is_sip: bool,
    /// Octets of the whole message, once its head is there.
    whole: Option<usize>,
}

impl Framer {
    /// What `octets` begin with. They are those of the last call with more behind them, or, after a frame, what is behind
    /// that frame. `scan` is room for a scan.
    pub fn next(&mut self, scanner: &Scanner, scan: &mut Scan, octets: &[u8]) -> Frame {
        let frame = self.read(scanner, scan, octets);
        if frame != Frame::Partial {
            *self = Framer::default();
        }
        frame
    }

    fn read(&mut self, scanner: &Scanner, scan: &mut Scan, octets: &[u8]) -> Frame {
        if let Some(whole) = self.whole {
            return if octets.len() < whole { Frame::Partial } else { Frame::Message(whole) };
        }
        let Some(&first) = octets.first() else { return Frame::Partial };
        if first == b'\r' {
            return between(octets);
        }
        // RFC 3261 25.1: a method and a SIP-Version begin with a character of a token.
        if !grammar::TOKEN.has(first) {
            return Frame::Broken(Broken::NOT_SIP);
        }
        let end = match self.scan_head(scanner, scan, octets) {
            Ok(Some(end)) => end,
            Ok(None) => return Frame::Partial,
            Err(broken) => return broken,
        };
        match body_len(&octets[..end], scan) {
            Ok(body) => {
                self.whole = Some(end + body);
                self.read(scanner, scan, octets)
            }
            Err(Refusal { code, reason }) => Broken::refused(code, reason, end),
        }
    }

    /// Where the head ends: behind its empty line, as the scan understands lines. Once it is there, `scan` is its.
    fn scan_head(&mut self, scanner: &Scanner, scan: &mut Scan, octets: &[u8]) -> Result<Option<usize>, Frame> {
        let within = &octets[..octets.len().min(FRAME_MAX)];
        if !self.is_sip {
            // One more than a start line may have, for its line end.
            let most = within.len().min(START_LINE_MAX + LINE_END);
            let Some(lf) = memchr::memchr(b'\n', &within[..most]) else {
                let is_over = most == START_LINE_MAX + LINE_END;
                return if is_over { Err(Frame::Broken(Broken::NOT_SIP)) } else { Ok(None) };
            };
            // With its CR it is a line of SIP all the same: what decides stands in front.
            if start_line::parse(within, Span::new(0, lf)) == Err(StartLineError::NotSip) {
                return Err(Frame::Broken(Broken::NOT_SIP));
            }
            (self.is_sip, self.searched) = (true, lf);
            // Nearly always it is whole. What is not is searched, or each octet of who dribbles would cost a scan.
            scanner.scan(within, scan);
            if !scan.faults.has(Fault::NoEmptyLine) {
                return Ok(Some(scan.body as usize));
            }
        }
        // An empty line is an LF behind an LF, or behind an LF and a CR.
        while let Some(lf) = memchr::memchr(b'\n', &within[self.searched..]).map(|at| self.searched + at) {
            let end = match &within[lf + 1..] {
                [b'\n', ..] => lf + 2,
                [b'\r', b'\n', ..] => lf + 3,
                // The octets that decide are still to come.
                [] | [b'\r'] => {
                    self.searched = lf;
                    return self.more(within);
                }
                _ => {
                    self.searched = lf + 1;
                    continue;
                }
            };
            scanner.scan(&within[..end], scan);
            return Ok(Some(end));
        }
        self.searched = within.len();
        self.more(within)
    }

    /// The end of the head is not among `within`: is there to be one?
    fn more(&self, within: &[u8]) -> Result<Option<usize>, Frame> {
        if within.len() < FRAME_MAX {
            return Ok(None);
        }
        Err(Broken::refused(513, "Message Too Large", within.len()))
    }
}

/// What begins with a CR, between two messages.
fn between(octets: &[u8]) -> Frame {
    match octets {
        [b'\r', b'\n', b'\r', b'\n', ..] => Frame::Ping,
        [b'\r', b'\n', b'\r'] | [b'\r', b'\n'] | [b'\r'] => Frame::Partial,
        //= RFC 3261 section 7.5
        //# Implementations processing SIP messages over stream-oriented
        //# transports MUST ignore any CRLF appearing before the start-line
        [b'\r', b'\n', ..] => Frame::LineEnd,
        _ => Frame::Broken(Broken::NOT_SIP),
    }
}

/// Octets of the body that belongs to `head`.
//= RFC 3261 section 18.3
//# The Content-Length header field MUST be used with stream oriented
//# transports.
fn body_len(head: &[u8], scan: &Scan) -> Result<usize, Refusal> {
    if let Some((fault, _)) = scan.faults.first() {
        return Err(Refusal::new(400, fault.describe()));
    }
    if let Some(reason) = misleads(head, scan) {
        return Err(Refusal::new(400, reason));
    }
    if scan.is_repeated(HeaderKind::ContentLength) {
        return Err(Refusal::new(400, "More Than One Content-Length"));
    }
    let value = scan.value(HeaderKind::ContentLength).ok_or(Refusal::new(400, "Missing Content-Length"))?;
    let announced = grammar::number(grammar::trim(value.of(head))).ok_or(Refusal::new(400, "Bad Content-Length"))?;
    match usize::try_from(announced) {
        Ok(announced) if announced <= FRAME_MAX - head.len() => Ok(announced),
        _ => Err(Refusal::new(513, "Message Too Large")),
    }
}

/// What of the head of a message without faults servers behind a stream would read otherwise than we do, if anything.
pub fn misleads(message: &[u8], scan: &Scan) -> Option<&'static str> {
    let head = message.get(..scan.body as usize).unwrap_or(message);
    if memchr::memchr(0, head).is_some() {
        return Some("NUL In The Header Section");
    }
    has_folded_header(message, scan).then_some("A Header In A Folded Line")
}

/// Whether the one Content-Length there is says `body` in a way that nobody can read otherwise: digits, no needless zero,
/// one line.
pub fn says_length(message: &[u8], scan: &Scan, body: usize) -> bool {
    let Some(row) = scan.row(HeaderKind::ContentLength) else { return false };
    let name = Span { start: row.start, end: row.value }.of(message);
    let value = row.span().of(message);
    let digits = value.strip_prefix(b" ").unwrap_or(value);
    let no_needless_zero = digits.len() == 1 || digits.first() != Some(&b'0');
    // The colon stands at the name: some readers do not look for it further on.
    let is_plain = !name.iter().any(|&octet| grammar::is_blank(octet));
    is_plain && no_needless_zero && grammar::number(digits) == Some(body as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(octets: &[u8]) -> Frame {
        Framer::default().next(&Scanner::best(), &mut Scan::default(), octets)
    }

    fn request(headers: &str, body: &str) -> Vec<u8> {
        format!("OPTIONS sip:a SIP/2.0\r\nCall-ID: 1\r\n{headers}\r\n{body}").into_bytes()
    }

    fn refused(headers: &str) -> Option<(u16, &'static str)> {
        match first(&request(headers, "")) {
            Frame::Broken(Broken { refusal: Some(refusal), head }) => {
                assert_eq!(head, request(headers, "").len());
                Some((refusal.code, refusal.reason))
            }
            _ => None,
        }
    }

    #[test]
    fn a_message_ends_where_its_content_length_says() {
        let message = request("Content-Length: 7\r\n", "\r\n\r\nOPT");
        assert_eq!(first(&message), Frame::Message(message.len()));
        assert_eq!(first(&[&message[..], b"OPTIONS"].concat()), Frame::Message(message.len()));
        assert_eq!(first(&message[..message.len() - 1]), Frame::Partial);
        let folded = request("l \t:\r\n 007\r\n", "1234567");
        assert_eq!(first(&folded), Frame::Message(folded.len()));
    }

    #[test]
    fn what_two_servers_could_read_differently_is_refused() {
        let missing = Some((400, "Missing Content-Length"));
        let bad = Some((400, "Bad Content-Length"));
        assert_eq!(refused(""), missing);
        for value in ["-1", "+0", "0x", "0 191", "many", "", "18446744073709551617", "1,1", "\"0\""] {
            assert_eq!(refused(&format!("Content-Length: {value}\r\n")), bad, "{value}");
        }
        let twice = Some((400, "More Than One Content-Length"));
        assert_eq!(refused("Content-Length: 0\r\nl: 0\r\n"), twice);
        assert_eq!(refused("Content-Length: 0\r\nCONTENT-LENGTH : 10\r\n"), twice);
        let folded = Some((400, "A Header In A Folded Line"));
        assert_eq!(refused("Subject: hi\r\n Content-Length: 0\r\nContent-Length: 0\r\n"), folded);
        assert_eq!(refused("Subject: hi\r\n\t l : 0\r\nContent-Length: 0\r\n"), folded);
        assert_eq!(refused("Subject: a\0b\r\nContent-Length: 0\r\n"), Some((400, "NUL In The Header Section")));
        for headers in ["Content_Length: 0\r\nContent-Length: 0\r\n", "Subject: a\nContent-Length: 0\r\n", "X\r\n"] {
            assert!(refused(headers).is_some(), "{headers}");
        }
        let most = |len: usize| FRAME_MAX - request("Content-Length: 65000\r\n", "").len() + len;
        assert_eq!(refused(&format!("Content-Length: {}\r\n", most(0))), None);
        for length in [&most(1).to_string()[..], "65535", "4294967296", "9223372036854775808"] {
            assert_eq!(refused(&format!("Content-Length: {length}\r\n")), Some((513, "Message Too Large")), "{length}");
        }
    }

    #[test]
    fn line_ends_between_messages_are_pings_or_nothing() {
        assert_eq!(first(b"\r\n\r\nOPTIONS"), Frame::Ping);
        assert_eq!(first(b"\r\nOPTIONS"), Frame::LineEnd);
        for partial in [&b""[..], b"\r", b"\r\n", b"\r\n\r"] {
            assert_eq!(first(partial), Frame::Partial);
        }
        for noise in [&b"\rO"[..], b"\n", b" OPTIONS", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n", b"\0"] {
            assert_eq!(first(noise), Frame::Broken(Broken::NOT_SIP), "{noise:?}");
        }
    }

    /// For the answer: what others read as the next message is no part of it.
    #[test]
    fn a_head_that_ends_at_two_bare_lfs_is_broken_there() {
        let head = "OPTIONS sip:a SIP/2.0\nCall-ID: 1\n\n";
        let Frame::Broken(broken) = first(format!("{head}OPTIONS sip:b SIP/2.0\r\n\r\n").as_bytes()) else { panic!() };
        assert_eq!((broken.head, broken.refusal.map(|refusal| refusal.code)), (head.len(), Some(400)));
    }

    #[test]
    fn what_has_no_end_ends_at_its_limit() {
        let endless = vec![b'a'; START_LINE_MAX + 10];
        assert_eq!(first(&endless), Frame::Broken(Broken::NOT_SIP));
        assert_eq!(first(&endless[..START_LINE_MAX]), Frame::Partial);
        let mut endless = b"OPTIONS sip:a SIP/2.0\r\nX: ".to_vec();
        endless.resize(FRAME_MAX - 1, b'x');
        assert_eq!(first(&endless), Frame::Partial);
        endless.resize(FRAME_MAX + 100, b'x');
        let too_large = Refusal::new(513, "Message Too Large");
        assert_eq!(first(&endless), Frame::Broken(Broken { refusal: Some(too_large), head: FRAME_MAX }));
    }

    #[test]
    fn only_a_plain_content_length_is_passed_on_as_it_is() {
        for (header, plain) in [
            ("Content-Length: 10", true),
            ("l:10", true),
            ("CONTENT-LENGTH: 10", true),
            ("Content-Length: 010", false),
            ("Content-Length : 10", false),
            ("Content-Length:  10", false),
            ("Content-Length: 10 ", false),
            ("Content-Length:\r\n 10", false),
            ("Content-Length: 9", false),
            ("X: 10", false),
        ] {
            let message = request(&format!("{header}\r\n"), "0123456789");
            let mut scan = Scan::default();
            Scanner::best().scan(&message, &mut scan);
            assert_eq!(says_length(&message, &scan, 10), plain, "{header}");
        }
    }
}
