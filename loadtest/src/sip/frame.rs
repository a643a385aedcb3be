//! Where one message ends and the next begins on a stream (RFC 3261 18.3): octets in, verdict out, whatever pieces they
//! come in.
//!
//! ```text
//!   CRLF CRLF  INVITE … Content-Length: 4 … CRLF CRLF body  SIP/2.0 200 …
//!   ping       └──────────── one message ────────────────┘  └── the next
//! ```
//!
//! A generator is as strict as what it tests has to be: what has no length, two of them, or one that is no plain number has
//! no end that both sides would agree on.

use super::message::Malformed;
use memchr::{memchr, memmem};

/// Octets of the longest message: what rows can be addressed in.
pub const MESSAGE_MAX: usize = u16::MAX as usize;

/// What is at the front of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    /// A message of so many octets.
    Message(usize),
    /// Nothing whole yet.
    More,
    /// So many octets of line ends between messages; four and more of them are a ping (RFC 5626 4.4.1).
    LineEnds(usize),
}

/// How far the message that has begun was read, so that no octet is looked at twice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Framer {
    /// Octets in which the end of the header is not.
    searched: usize,
    /// Octets of the whole message, once the header is there; 0 before.
    whole: usize,
}

impl Framer {
    /// What is at the front of `octets`, which begin where the last message ended. `Err`: no end that is certain; nothing
    /// that follows can be read either.
    pub fn front(&mut self, octets: &[u8]) -> Result<Front, Malformed> {
        if self.searched == 0 {
            let blank = octets.iter().take_while(|octet| matches!(octet, b'\r' | b'\n')).count();
            if blank > 0 {
                return Ok(Front::LineEnds(blank));
            }
        }
        if self.whole == 0 {
            // The end may lie across the last cut.
            let from = self.searched.saturating_sub(3);
            let Some(end) = memmem::find(&octets[from..], b"\r\n\r\n").map(|at| from + at + 4) else {
                self.searched = octets.len();
                return if octets.len() > MESSAGE_MAX { Err(Malformed::TooLong) } else { Ok(Front::More) };
            };
            let whole = end + content_length(&octets[..end])?;
            if whole > MESSAGE_MAX {
                return Err(Malformed::TooLong);
            }
            (self.searched, self.whole) = (end, whole);
        }
        if octets.len() < self.whole {
            return Ok(Front::More);
        }
        Ok(Front::Message(std::mem::take(self).whole))
    }
}

//= RFC 3261 section 20.14
//# If a stream-based protocol (such as TCP) is used as
//# transport, the header field MUST be used.
fn content_length(head: &[u8]) -> Result<usize, Malformed> {
    let mut found = None;
    let mut rest = head;
    while let Some(end) = memchr(b'\n', rest) {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        let value = match line.first() {
            Some(b'C' | b'c') => strip_name(line, b"content-length"),
            Some(b'L' | b'l') => strip_name(line, b"l"),
            _ => None,
        };
        let Some(value) = value else { continue };
        let digits = value.trim_ascii();
        let is_plain = (1..=9).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
        // A value that goes on in the next line is one that others read as another number.
        let is_folded = matches!(rest.first(), Some(b' ' | b'\t'));
        if found.is_some() || !is_plain || is_folded {
            return Err(Malformed::Length);
        }
        found = Some(digits.iter().fold(0, |number, digit| number * 10 + usize::from(digit - b'0')));
    }
    found.ok_or(Malformed::Length)
}

/// What follows the colon, if the row has this name.
fn strip_name<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = line.split_at_checked(name.len())?;
    let rest = rest.trim_ascii_start();
    if start.eq_ignore_ascii_case(name) { rest.strip_prefix(b":") } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "OPTIONS sip:a SIP/2.0\r\nVia: x\r\nContent-Length: 4\r\n\r\nbody";
    const TWO: &str = "SIP/2.0 200 OK\r\nl : 0\r\n\r\n";

    /// All fronts of a stream that comes in these pieces, and what ended it.
    fn fronts<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Front>, Option<Malformed>) {
        let (mut framer, mut here, mut found) = (Framer::default(), Vec::new(), Vec::new());
        for piece in pieces {
            here.extend_from_slice(piece);
            loop {
                match framer.front(&here) {
                    Ok(Front::More) => break,
                    Ok(front @ (Front::Message(len) | Front::LineEnds(len))) => {
                        here.drain(..len);
                        if matches!(front, Front::Message(_)) {
                            found.push(front);
                        }
                    }
                    Err(why) => return (found, Some(why)),
                }
            }
        }
        assert!(here.is_empty());
        (found, None)
    }

    #[test]
    fn however_a_stream_is_cut_its_messages_are_the_same() {
        let stream = format!("\r\n\r\n{ONE}{TWO}\r\n{ONE}");
        let whole = [Front::Message(ONE.len()), Front::Message(TWO.len()), Front::Message(ONE.len())];
        for first in 0..stream.len() {
            for second in first..stream.len() {
                let (left, rest) = stream.as_bytes().split_at(first);
                let (middle, right) = rest.split_at(second - first);
                assert_eq!(fronts([left, middle, right].into_iter()), (whole.to_vec(), None), "{first} {second}");
            }
        }
        assert_eq!(fronts(stream.as_bytes().chunks(1)), (whole.to_vec(), None));
    }

    #[test]
    fn what_has_no_certain_end_ends_the_stream() {
        for (row, why) in [
            ("Via: x\r\n", Malformed::Length),
            ("Content-Length: 1\r\nContent-Length: 1\r\n", Malformed::Length),
            ("Content-Length: 1\r\nl: 2\r\n", Malformed::Length),
            ("Content-Length: +1\r\n", Malformed::Length),
            ("Content-Length: -1\r\n", Malformed::Length),
            ("Content-Length: 0x1\r\n", Malformed::Length),
            ("Content-Length:\r\n", Malformed::Length),
            ("Content-Length: 1\r\n 0\r\n", Malformed::Length),
            ("Content-Length: 99999999999999999999\r\n", Malformed::Length),
            ("Content-Length: 65535\r\n", Malformed::TooLong),
        ] {
            let text = format!("OPTIONS sip:a SIP/2.0\r\n{row}\r\n");
            assert_eq!(fronts([text.as_bytes()].into_iter()), (vec![], Some(why)), "{row}");
        }
        let endless = vec![b'x'; MESSAGE_MAX + 1];
        assert_eq!(fronts([&endless[..]].into_iter()), (vec![], Some(Malformed::TooLong)));
    }

    #[test]
    fn a_row_that_only_begins_like_a_length_is_none() {
        let text = "OPTIONS sip:a SIP/2.0\r\nContent-Length-Extra: 7\r\nLanguage: 3\r\nl:0\r\n\r\n";
        assert_eq!(fronts([text.as_bytes()].into_iter()), (vec![Front::Message(text.len())], None));
    }
}
