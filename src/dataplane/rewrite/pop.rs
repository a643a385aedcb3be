//! Our Via comes off a response: what it says, and what the Via below it must say.

use crate::dataplane::limits::REBUILD_SENT_BY_MAX;
use crate::dataplane::rewrite::via;
use crate::dataplane::scan::{Row, Scan, Span, rows};
use crate::dataplane::sip::cursor::Cursor;
use crate::dataplane::sip::header::HeaderKind;
use crate::dataplane::sip::via::Via;
use crate::dataplane::sip::{grammar, uri};
use crate::dataplane::tables::Tables;
use crate::dataplane::text::Text;
use crate::dataplane::token::{self, Flow, Rebuild, ViaToken};
use crate::dataplane::transport::Transport;
use crate::dataplane::verdict::DropReason;
use std::net::IpAddr;

/// The topmost Via of a response, if it may be ours. Nothing of it is verified yet.
#[derive(Clone, Copy, Debug)]
pub struct Top<'a> {
    /// Its token.
    pub token: ViaToken<'a>,
    /// The digest in its branch.
    pub digest: Option<u64>,
    /// Where the value begins.
    pub value_start: u32,
    /// The offset of the comma behind it, if another value follows in the same row; else 0.
    pub comma: u32,
}

/// Reads the first value of `row`, the first Via row; an error says why it is none of ours.
#[inline(always)]
pub fn top(message: &[u8], row: Row) -> Result<Top<'_>, DropReason> {
    as_written(message, row).map_or_else(|| by_grammar(message, row), Ok)
}

/// Reads a Via as we write it, which is how nearly all servers send it back. `None` says only that it is not one. Our own name is
/// not looked at: who may have written this row is for its MAC to say.
#[inline(always)]
fn as_written(message: &[u8], row: Row) -> Option<Top<'_>> {
    /// Letters of the shortest token.
    const TOKEN_MIN: usize = 32;
    let mut cursor = Cursor::new(message, row.span());
    if !(cursor.take_text(b" SIP/2.0/UDP ") || cursor.take_text(b" SIP/2.0/TCP ") || cursor.take_text(b" SIP/2.0/TLS "))
    {
        return None;
    }
    cursor.take_until([b';', b',', b'"', b'<', b'>']);
    let digest: &[u8; 16] = cursor.take_behind(b";branch=z9hG4bK")?;
    let digest = token::hex::decode_number(digest)?;
    let start = cursor.at() + b";vh=".len();
    cursor.take_behind::<4, TOKEN_MIN>(b";vh=")?;
    cursor.take_until([b';', b',', b'"', b'<', b'>']);
    let token = token::read_via_token(Span::new(start, cursor.at()).of(message))?;
    if !cursor.is_done() {
        let mark: &[u8; 8] = cursor.take_behind(via::MARK)?;
        token::hex::decode_half(mark).filter(|_| cursor.is_done())?;
    }
    Some(Top { token, digest: Some(digest), value_start: row.value + 1, comma: 0 })
}

#[cold]
fn by_grammar(message: &[u8], row: Row) -> Result<Top<'_>, DropReason> {
    let mut via = Via::default();
    if !via.read(message, row.span()) {
        return Err(DropReason::MalformedResponse);
    }
    let token = token::read_via_token(via.token.of(message)).ok_or(DropReason::ResponseNotOurs)?;
    let digest = token::read_branch(via.branch.of(message));
    Ok(Top { token, digest, value_start: via.whole.start, comma: via.comma })
}

/// What stands below our Via.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    /// No Via.
    Nothing,
    /// One that was read.
    Via,
    /// One that does not follow the grammar.
    Unreadable,
}

/// Reads into `via` what stands below the first value of `first`, the first Via row, behind which a comma may stand (else 0).
#[inline(always)]
pub fn below(message: &[u8], scan: &Scan, first: Row, comma: u32, via: &mut Via) -> Below {
    let is_readable = if comma != 0 {
        via.read(message, Span { start: comma + 1, end: first.end })
    } else if !scan.is_repeated(HeaderKind::Via) {
        return Below::Nothing;
    } else if read_next_line(message, scan, first, via).is_some() {
        true
    } else {
        let second = rows(message, scan, HeaderKind::Via).nth(1);
        second.is_some_and(|row| via.read(message, row.span()))
    };
    if is_readable { Below::Via } else { Below::Unreadable }
}

/// Reads the Via in the line behind `first`, where it is one, as they stand in nearly all responses: its name written as the
/// first one's, its value an everyday one. Where the line ends is seen when the value has been read.
#[inline(always)]
fn read_next_line(message: &[u8], scan: &Scan, first: Row, via: &mut Via) -> Option<()> {
    let start = first.end as usize + 2;
    let name = first.start as usize..first.value as usize;
    let value = start + name.len();
    if message.get(start..value) != message.get(name) {
        return None;
    }
    let end = via.read_line(message, Span { start: value as u32, end: scan.body })?;
    let is_whole = message
        .get(end..)?
        .first_chunk::<3>()
        .is_some_and(|&[cr, lf, next]| [cr, lf] == *b"\r\n" && !grammar::is_blank(next));
    is_whole.then_some(())
}

/// What the client's Via was that a response has lost, if the token says so and the digest in our branch agrees.
#[cold]
pub fn lost_via<'a>(
    tables: &Tables,
    message: &[u8],
    scan: &Scan,
    token: &ViaToken<'a>,
    digest: u64,
) -> Option<Rebuild<'a>> {
    let rebuild = token.rebuild()?;
    let mut room = [0; REBUILD_SENT_BY_MAX];
    let sent_by = &mut room[..rebuild.sent_by.len()];
    for (place, &octet) in sent_by.iter_mut().zip(rebuild.sent_by) {
        *place = token::from_token_octet(octet);
    }
    let call_id = grammar::trim(scan.value(HeaderKind::CallId)?.of(message));
    let cseq = grammar::trim(scan.value(HeaderKind::CSeq)?.of(message));
    let number = grammar::number(&cseq[..grammar::DIGIT.prefix(cseq)]).and_then(|number| u32::try_from(number).ok())?;
    (via::digest(&tables.keys, rebuild.branch, sent_by, call_id, number) == digest).then_some(rebuild)
}

/// Whether a response to the Via `next` goes to `to` by RFC 3261 18.2.2 and RFC 3581 4: to `received` or sent-by, at
/// `rport` or the port of sent-by; on a connection, always the latter. It does if nobody changed what we wrote there when the request passed.
#[inline(always)]
pub fn is_answered_at(message: &[u8], next: &Via, flow: &Flow) -> bool {
    let to = flow.to;
    let host = next.received_value(message).unwrap_or(next.host.of(message));
    let port = match next.rport_value(message) {
        Some(rport) if flow.stream.is_none() => grammar::number(rport),
        _ => Some(u64::from(next.port)),
    };
    port == Some(u64::from(to.port())) && is_address(host, to.ip())
}

/// Whether `host` is `address`; mostly it is written as we would write it, and then it need not be read.
#[inline(always)]
fn is_address(host: &[u8], address: IpAddr) -> bool {
    let mut room = [0; 48];
    let mut text = Text::new(&mut room);
    text.put_address(address);
    text.finish() == Some(host) || uri::address(host) == Some(address.to_canonical())
}

/// The client's Via as it came to us, with what we added to it.
pub fn write_rebuilt_via(out: &mut Text<'_>, rebuild: Rebuild<'_>, flow: &Flow, transport: Transport) {
    out.put(via::start(transport).as_bytes());
    out.put_mapped(rebuild.sent_by, token::from_token_octet).put(b";branch=").put(rebuild.branch);
    out.put(b";received=").put_address(flow.to.ip()).put(b";rport=").put_number(u32::from(flow.to.port())).put(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::scan::scalar;

    const HEAD: &str = "0300c633640713c46386a1e13d8b72c8";

    /// The short way says nothing that the long way does not say.
    #[test]
    fn what_we_wrote_is_read_as_the_grammar_reads_it() {
        let pieces = [
            "",
            ";",
            ",",
            "\"",
            "<",
            " ",
            "~",
            ":",
            "x",
            ";branch=z9hG4bK",
            "0123456789abcdef",
            "0123456789abcdeg",
            ";vh=",
            HEAD,
            "~192.0.2.1!5060~z9hG4bK-1",
            ";vl=",
            "01234567",
            "0123456x",
            "\r\n ",
            ";rport",
        ];
        let mut count = 0;
        for start in ["UDP", "TCP", "TLS", "WS", "UDP\t", "UDP 192.0.2.2,", "UDP a b"]
            .map(|start| format!(" SIP/2.0/{start} 192.0.2.1:40001"))
        {
            for first in pieces {
                for second in pieces {
                    for third in pieces {
                        for text in [
                            format!("{start}{first};branch=z9hG4bK0123456789abcdef{second};vh={HEAD}{third}"),
                            format!("{start};branch=z9hG4bK0123456789abcdef;vh={HEAD}{first}{second}{third}"),
                            format!("{start}{first}{second}{third};vl=01234567"),
                        ] {
                            let row = Row { start: 0, value: 0, end: text.len() as u32 };
                            let Some(top) = as_written(text.as_bytes(), row) else { continue };
                            let Ok(slow) = by_grammar(text.as_bytes(), row) else {
                                // Our own name may be anything, but for what ends it.
                                assert!(!first.is_empty() && !first.contains([' ', ';', ',', '"', '<', '>']), "{text}");
                                continue;
                            };
                            assert_eq!(format!("{top:?}"), format!("{slow:?}"), "{text}");
                            count += 1;
                        }
                    }
                }
            }
        }
        assert!(count > 20, "{count}");
    }

    #[test]
    fn the_via_below_is_the_second_of_all() {
        let (one, two) = ("SIP/2.0/UDP a;branch=1", "SIP/2.0/UDP b:5062;branch=2;rport=1");
        for headers in [
            format!("Via: {one}\r\nVia: {two}\r\nX: 3\r\n"),
            format!("Via: {one}\r\nVia: {two}\r\n"),
            format!("Via: {one}\r\nVia: {two}\r\n ;x=3\r\nX: 3\r\n"),
            format!("Via: {one}\r\nVia: {two},{one}\r\nX: 3\r\n"),
            format!("Via: {one}\r\nVia: {two};x=\"\r\n\"\r\nX: 3\r\n"),
            format!("Via: {one}\r\nVia: nonsense\r\nVia: {two}\r\n"),
            format!("Via: {one}\r\nVia: {two} \r\nVia: {one}\r\n"),
            format!("Via: {one}\r\nv: {two}\r\nVia: {one}\r\n"),
            format!("Via: {one}\r\nX: 2\r\nVia: {two}\r\n"),
            format!("Via: {one}\r\nVio: {one}\r\nVia: {two}\r\n"),
            format!("Via: {one}\r\n ;x\r\nVIA: {two}\r\n"),
            format!("v: {one}\r\nvx: {two}\r\nv: {two}\r\n"),
            format!("Via: {one}\r\nX: 2\r\n"),
        ] {
            let message = format!("SIP/2.0 200 OK\r\n{headers}\r\n");
            let message = message.as_bytes();
            let mut scan = Scan::default();
            scalar::scan(message, &mut scan);
            let (mut via, mut expected_via) = (Via::default(), Via::default());
            let expected = match rows(message, &scan, HeaderKind::Via).nth(1) {
                None => Below::Nothing,
                Some(row) if expected_via.read(message, row.span()) => Below::Via,
                Some(_) => Below::Unreadable,
            };
            let first = scan.row(HeaderKind::Via).unwrap();
            assert_eq!(below(message, &scan, first, 0, &mut via), expected, "{headers}");
            assert!(expected != Below::Via || via == expected_via, "{headers}");
        }
    }
}
