//! Where in a message the place is that it was refused for. Asked after the fact and for few messages, for people: nothing
//! on the way of a message waits for it.
//!
//! A refusal carries its reason phrase and no place, so that refusing costs nothing more than deciding. The phrases are
//! ours, and each that blames a header has the header's name in it: the place is that header, or where it is missing, the
//! end of the headers.

use crate::dataplane::frame;
use crate::dataplane::scan::{Scan, rows};
use crate::dataplane::shared;
use crate::dataplane::sip::grammar;
use crate::dataplane::sip::header::{HeaderKind, NAMES};
use crate::dataplane::sip::start_line;
use crate::dataplane::validate::{self, Refusal};

/// What a message is blamed for, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blame {
    /// What is wrong.
    pub reason: &'static str,
    /// Offset of the first octet it is about; at most the length of the message.
    pub at: usize,
}

/// Codes of refusals that say that a message cannot be read, rather than that it may not pass.
pub const MALFORMED: [u16; 5] = [400, 414, 416, 501, 505];

/// The place `refusal` is about.
#[cold]
pub fn of_request(message: &[u8], scan: &Scan, refusal: Refusal) -> Blame {
    let fault = scan.faults.first().map(|(_, at)| at);
    let at = fault.unwrap_or_else(|| match refusal.code {
        414 | 416 => word(message, scan, 1),
        505 => word(message, scan, 2),
        _ if refusal.reason == "Bad Request-URI" => word(message, scan, 1),
        _ => named(message, scan, refusal.reason).unwrap_or(scan.start_line.start as usize),
    });
    Blame { reason: refusal.reason, at: at.min(message.len()) }
}

/// Why a response is malformed. It gets no answer, so there is no refusal to ask.
#[cold]
pub fn of_response(message: &[u8], scan: &Scan) -> Blame {
    if let Some((fault, at)) = scan.faults.first() {
        return Blame { reason: fault.describe(), at: at.min(message.len()) };
    }
    let reason = match (validate::single_headers_stand_once(scan), validate::end(message, scan)) {
        _ if start_line::parse(message, scan.start_line).is_err() => "Bad Status-Line",
        (Err(refusal), _) | (_, Err(refusal)) => refusal.reason,
        _ if validate::first_via(message, scan).is_none() => "Bad Via",
        _ => {
            let unfit = frame::misleads(message, scan).or_else(|| shared::objection_to_response(message, scan));
            unfit.unwrap_or("Bad Second Via")
        }
    };
    let at = named(message, scan, reason).unwrap_or(scan.start_line.start as usize);
    Blame { reason, at: at.min(message.len()) }
}

/// Where word `number` of the start line begins, counted from 0.
fn word(message: &[u8], scan: &Scan, number: usize) -> usize {
    let line = scan.start_line.of(message);
    let mut begins = (0..line.len()).filter(|&at| {
        !grammar::is_blank(line[at]) && (at == 0 || line.get(at - 1).is_none_or(|&before| grammar::is_blank(before)))
    });
    scan.start_line.start as usize + begins.nth(number).unwrap_or(0)
}

/// The place of the header whose name is in `reason`, if one is: the value of its first row, or the second row of one that
/// stands there once too often. Where there is none, the end of the headers.
fn named(message: &[u8], scan: &Scan, reason: &str) -> Option<usize> {
    let is_it = |(name, _): &&(&str, HeaderKind)| reason.split(' ').any(|word| word.eq_ignore_ascii_case(name));
    let kind = NAMES.iter().find(is_it).map(|(_, kind)| *kind)?;
    if reason.starts_with("More Than One")
        && let Some(second) = rows(message, scan, kind).nth(1)
    {
        return Some(second.start as usize);
    }
    let end = scan.body as usize;
    Some(match scan.row(kind) {
        Some(row) if !row.span().is_empty() => validate::trim(message, row.span()).start as usize,
        Some(row) => row.start as usize,
        None => end.saturating_sub(2),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::scan::scalar;

    fn scanned(text: &str) -> Scan {
        let mut scan = Scan::default();
        scalar::scan(text.as_bytes(), &mut scan);
        scan
    }

    /// The octets at the place, three of them.
    fn at(text: &str, code: u16, reason: &'static str) -> String {
        let Blame { at, .. } = of_request(text.as_bytes(), &scanned(text), Refusal::new(code, reason));
        text[at..].chars().take(3).collect()
    }

    const INVITE: &str = "INVITE sip:b@x SIP/2.0\r\nVia:  SIP/2.0/UDP ;;\r\nCSeq: 1 BYE\r\nFrom: a\r\nFrom: b\r\n\r\n";

    #[test]
    fn the_place_is_that_of_the_header_or_word_that_is_blamed() {
        assert_eq!(at(INVITE, 400, "Bad Via"), "SIP");
        assert_eq!(at(INVITE, 501, "CSeq Method Is Not The Request's"), "1 B");
        assert_eq!(at(INVITE, 400, "More Than One From"), "Fro");
        assert_eq!(of_request(INVITE.as_bytes(), &scanned(INVITE), Refusal::new(400, "More Than One From")).at, 68);
        assert_eq!(at(INVITE, 400, "Bad Request-URI"), "sip");
        assert_eq!(at(INVITE, 505, "Version Not Supported"), "SIP");
        assert_eq!(at(INVITE, 400, "Bad Request-Line"), "INV");
        assert_eq!(at(INVITE, 400, "Bad Call-ID"), "\r\n", "what is missing is missing at the end");
        assert_eq!(at(INVITE, 414, "Request-URI Too Long"), "sip");
        assert_eq!(at(INVITE, 416, "Unsupported URI Scheme"), "sip");
        let odd = "INVITE  sip:b@x SIP/2.0\r\nVia: a\r\nVia: b\r\nFrom:\r\n\r\n";
        assert_eq!(at(odd, 400, "Bad Request-URI"), "sip");
        assert_eq!(at(odd, 400, "Bad Via"), "a\r\n");
        assert_eq!(at(odd, 400, "Bad From"), "Fro", "nothing stands there");
    }

    #[test]
    fn a_fault_of_the_header_section_is_where_the_scan_found_it() {
        let text = "INVITE sip:b@x SIP/2.0\r\nVia: x\r\nno header\r\n\r\n";
        assert_eq!(at(text, 400, "a line that is not a header"), "no ");
    }

    #[test]
    fn a_malformed_response_is_blamed_for_the_first_thing_that_is_wrong() {
        let of = |headers: &str| {
            let text = format!("SIP/2.0 200 OK\r\n{headers}\r\n");
            of_response(text.as_bytes(), &scanned(&text))
        };
        assert_eq!(of("Via: x;;\r\n"), Blame { reason: "Bad Via", at: 21 });
        assert_eq!(of("Via: SIP/2.0/UDP a\r\nl: 9\r\n").reason, "Content-Length Exceeds Datagram");
        assert_eq!(of("Via: SIP/2.0/UDP a\r\nl: 0\r\nl: 0\r\n").at, 42);
        let plain = "Via: SIP/2.0/UDP a\r\nCall-ID: 1\r\nCSeq: 1 BYE\r\nFrom: <sip:a>\r\nTo: <sip:a>\r\n";
        assert_eq!(of(&format!("{plain}Via: x\r\n")).reason, "A Via Is Malformed");
        assert_eq!(of(plain).reason, "Bad Second Via");
        assert_eq!(of("Via: SIP/2.0/UDP a\r\n").reason, "No Call-ID");
        assert_eq!(of("Via: SIP/2.0/UDP a\r\nX: a\0\r\n").reason, "NUL In The Header Section");
        let bad = "SIP/2.0 99 Odd\r\nVia: SIP/2.0/UDP a\r\nl: 0\r\nl: 0\r\n\r\n";
        assert_eq!(of_response(bad.as_bytes(), &scanned(bad)), Blame { reason: "Bad Status-Line", at: 0 });
    }
}
