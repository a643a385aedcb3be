//! The few answers we give ourselves, as a stateless UAS (RFC 3261 8.2.6, 8.2.7).
//!
//! An answer holds what 8.2.6.2 asks for and nothing else: status line, all Vias, From, To with a tag, Call-ID, CSeq, and
//! for some codes one header that says more. It is never longer than the request: whoever writes somebody else's address
//! into a datagram must not gain anything by having us answer it. Where long header names make it longer, short ones are
//! tried; if that does not help there is no answer.

use super::edit::Edits;
use super::via::{Received, is_ours};
use crate::dataplane::keys::Keys;
use crate::dataplane::scan::{Row, Scan, rows};
use crate::dataplane::sip::grammar;
use crate::dataplane::sip::header::HeaderKind;
use crate::dataplane::sip::name_addr;
use crate::dataplane::sip::via::{self, Via};
use crate::dataplane::tables::Policy;
use crate::dataplane::text::Text;
use crate::dataplane::token;
use crate::dataplane::validate;
use std::net::SocketAddr;

/// What is answered.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// The status code.
    pub code: u16,
    /// The reason phrase.
    pub reason: &'a str,
    /// Asks for `Unsupported`: the tags of Proxy-Require that this policy does not let through, or, where it lets all of them,
    /// those of Require (8.2.2.3).
    pub lists_unsupported: Option<&'a Policy>,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoReply {
    /// The request has no Via row, or one that cannot be copied.
    NobodyToAnswer,
    /// The answer would be longer than the request.
    TooLarge,
}

/// Writes the answer to the request in `message`, from `source`, into `room`; returns its length. `via` is the topmost
/// Via, if it can be read.
pub fn write(
    room: &mut [u8],
    keys: &Keys,
    message: &[u8],
    scan: &Scan,
    via: Option<&Via>,
    source: SocketAddr,
    reply: &Reply<'_>,
) -> Result<usize, NoReply> {
    let limit = message.len().min(room.len());
    for names in [&LONG, &COMPACT] {
        let mut out = Text::new(&mut room[..limit]);
        write_with(&mut out, names, keys, message, scan, via, source, reply)?;
        if let Some(len) = out.finished_len() {
            return Ok(len);
        }
    }
    Err(NoReply::TooLarge)
}

/// Header names, with colon and space.
struct Names {
    via: &'static [u8],
    from: &'static [u8],
    to: &'static [u8],
    call_id: &'static [u8],
    cseq: &'static [u8],
    content_length: &'static [u8],
    /// Whether the reason phrase is written; it may be empty (RFC 3261 7.2).
    reason: bool,
}

const LONG: Names = Names {
    via: b"Via: ",
    from: b"From: ",
    to: b"To: ",
    call_id: b"Call-ID: ",
    cseq: b"CSeq: ",
    content_length: b"Content-Length: 0\r\n",
    reason: true,
};

/// RFC 3261 7.3.3. CSeq has no compact form.
const COMPACT: Names = Names {
    via: b"v:",
    from: b"f:",
    to: b"t:",
    call_id: b"i:",
    cseq: b"CSeq:",
    content_length: b"l:0\r\n",
    reason: false,
};

#[expect(clippy::too_many_arguments, reason = "one caller, which has them all at hand")]
fn write_with(
    out: &mut Text<'_>,
    names: &Names,
    keys: &Keys,
    message: &[u8],
    scan: &Scan,
    via: Option<&Via>,
    source: SocketAddr,
    reply: &Reply<'_>,
) -> Result<(), NoReply> {
    out.put(b"SIP/2.0 ").put_number(u32::from(reply.code)).put(b" ");
    if names.reason {
        out.put(reply.reason.as_bytes());
    }
    out.put(b"\r\n");
    let mut is_first = true;
    for row in rows(message, scan, HeaderKind::Via) {
        let value = clean(message, row).ok_or(NoReply::NobodyToAnswer)?;
        out.put(names.via);
        match via.filter(|_| is_first) {
            Some(via) => {
                let start = via.whole.start as usize;
                let received = Received::of(message, via, source);
                let tail = received.map_or(start, |one| one.apply(&mut Edits::default(), message, start, out));
                let end = row.value as usize + row.span().of(message).trim_ascii_end().len();
                out.put(message.get(tail..end).unwrap_or_default());
            }
            None => {
                out.put(value);
            }
        }
        out.put(b"\r\n");
        is_first = false;
    }
    if is_first {
        return Err(NoReply::NobodyToAnswer);
    }
    //= RFC 3261 section 8.2.6.2
    //# The From field of the response MUST equal the From header field of the
    //# request. The Call-ID header field of the response MUST equal the
    //# Call-ID header field of the request. The CSeq header field of the
    //# response MUST equal the CSeq field of the request. The Via header
    //# field values in the response MUST equal the Via header field values in
    //# the request and MUST maintain the same ordering.
    let call_id = first(message, scan, HeaderKind::CallId).unwrap_or_default();
    let cseq = first(message, scan, HeaderKind::CSeq).unwrap_or_default();
    if let Some(from) = first(message, scan, HeaderKind::From) {
        out.put(names.from).put(from).put(b"\r\n");
    }
    if let Some(to) = first(message, scan, HeaderKind::To) {
        out.put(names.to).put(to);
        //= RFC 3261 section 8.2.6.2
        //# additionally, the UAS MUST add a tag to the To header field in the
        //# response
        if tag(message, scan, HeaderKind::To) == Some(None) {
            let number = cseq.split(|&octet| grammar::is_lws(octet)).next().and_then(grammar::number);
            let number = number.and_then(|number| u32::try_from(number).ok()).unwrap_or_default();
            let from_tag = tag(message, scan, HeaderKind::From).flatten().unwrap_or_default();
            out.put(b";tag=");
            token::write_to_tag(out, keys, call_id, number, from_tag, client_branch(keys, message, scan));
        }
        out.put(b"\r\n");
    }
    for (name, value) in [(names.call_id, call_id), (names.cseq, cseq)] {
        if !value.is_empty() {
            out.put(name).put(value).put(b"\r\n");
        }
    }
    if let Some(policy) = reply.lists_unsupported {
        let mut proxy_tags = validate::unsupported_tags(message, scan, policy).peekable();
        if proxy_tags.peek().is_some() {
            put_unsupported(out, proxy_tags);
        } else {
            put_unsupported(out, validate::required_tags(message, scan));
        }
    }
    out.put(names.content_length).put(b"\r\n");
    Ok(())
}

/// The branch of the topmost Via that is not ours. Above it stands ours where we answer in the name of a next hop.
fn client_branch<'a>(keys: &Keys, message: &'a [u8], scan: &Scan) -> &'a [u8] {
    let mut vias = rows(message, scan, HeaderKind::Via).filter_map(|row| via::parse(message, row.span()));
    let client = vias.find(|via| !is_ours(keys, message, via));
    client.map(|via| via.branch.of(message)).unwrap_or_default()
}

fn put_unsupported<'a>(out: &mut Text<'_>, tags: impl Iterator<Item = &'a [u8]>) {
    let mut before: &[u8] = b"Unsupported: ";
    for tag in tags {
        out.put(before).put(tag);
        before = b", ";
    }
    out.put(b"\r\n");
}

/// The value of the first row of `kind`, if it may be copied.
fn first<'a>(message: &'a [u8], scan: &Scan, kind: HeaderKind) -> Option<&'a [u8]> {
    clean(message, scan.row(kind)?).filter(|value| !value.is_empty())
}

/// A row's value without white space round it. `None` if there is a line end that is no fold in the row, be it at its end: a copy
/// would end our own header where whoever sent it wants it to end.
fn clean(message: &[u8], row: Row) -> Option<&[u8]> {
    let value = row.span().of(message);
    let mut rest = value;
    while let Some(at) = memchr::memchr3(b'\r', b'\n', 0, rest) {
        let folded = rest[at..].starts_with(b"\r\n") && rest.get(at + 2).is_some_and(|&next| grammar::is_blank(next));
        if !folded {
            return None;
        }
        rest = &rest[at + 2..];
    }
    Some(grammar::trim(value))
}

/// The tag of From or To: `None` if the value cannot be read, `Some(None)` if it has no tag.
fn tag<'a>(message: &'a [u8], scan: &Scan, kind: HeaderKind) -> Option<Option<&'a [u8]>> {
    let value = name_addr::parse(message, scan.value(kind)?)?;
    Some(value.tag.is_present().then(|| value.tag.of(message)))
}
