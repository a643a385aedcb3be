//! What a message must be to go down a connection that carries everybody's calls.
//!
//! A server that cannot parse a message closes the connection it came on, and what stands behind it is lost (Kamailio does). In a
//! datagram a sender's mistake costs that sender alone, so there nearly all is passed on; here it is refused, as far as servers
//! are known to stumble over it. A response is dropped for it: whoever is called must not cut off all the others that a server has called.

use crate::dataplane::scan::{Scan, Span, rows, rows_named};
use crate::dataplane::sip::cursor::{Cursor, next_param};
use crate::dataplane::sip::grammar;
use crate::dataplane::sip::header::HeaderKind;
use crate::dataplane::sip::name_addr::{self, NameAddr};
use crate::dataplane::sip::uri;
use crate::dataplane::sip::via::{self, Via};
use crate::dataplane::validate::Request;
use core::iter;

/// Octets of a status line that ends behind its code.
const BARE_STATUS_LINE: usize = "SIP/2.0 200".len();

/// Why the request may not go down such a connection, if it may not.
#[cold]
pub fn objection(message: &[u8], scan: &Scan, request: &Request) -> Option<&'static str> {
    objection_to(message, scan, [request.from, request.to])
}

/// Why the response may not, of which only the Vias have been read.
#[cold]
pub fn objection_to_response(message: &[u8], scan: &Scan) -> Option<&'static str> {
    if scan.start_line.len() == BARE_STATUS_LINE {
        return Some("A Status-Line Without A Space At Its End");
    }
    if !scan.has(HeaderKind::CallId) {
        return Some("No Call-ID");
    }
    if !scan.value(HeaderKind::CSeq).is_some_and(|value| is_plain_cseq(grammar::trim(value.of(message)))) {
        return Some("CSeq Is Malformed");
    }
    let read = |kind| name_addr::parse(message, scan.value(kind)?).filter(|value| value.comma == 0);
    let (Some(from), Some(to)) = (read(HeaderKind::From), read(HeaderKind::To)) else {
        return Some("From Or To Is Malformed");
    };
    objection_to(message, scan, [from, to])
}

fn objection_to(message: &[u8], scan: &Scan, from_and_to: [NameAddr; 2]) -> Option<&'static str> {
    let is_folded = |kind| scan.value(kind).is_some_and(|value| value.of(message).contains(&b'\r'));
    // Folds are legal, and Kamailio closes at one in each of these.
    if scan.has_folds() && [HeaderKind::CSeq, HeaderKind::From, HeaderKind::To].into_iter().any(is_folded) {
        return Some("A Folded CSeq, From Or To");
    }
    if !from_and_to.iter().all(|value| is_plain_address(message, value)) {
        return Some("From Or To Is Malformed");
    }
    if let Some(reason) = odd_header(message, scan) {
        return Some(reason);
    }
    let all_plain = rows(message, scan, HeaderKind::Via).all(|row| are_plain_vias(message, row.span()));
    (!all_plain).then_some("A Via Is Malformed")
}

/// `1*DIGIT LWS Method`
fn is_plain_cseq(value: &[u8]) -> bool {
    let (number, method) = value.split_at(grammar::DIGIT.prefix(value));
    let name = grammar::trim(method);
    !number.is_empty() && name.len() < method.len() && !name.is_empty() && grammar::TOKEN.has_all(name)
}

/// Which header Kamailio closes at, of those that nobody else here looks at: one whose name has letters of a `token` that it does not
/// know in names, or a Retry-After without `delta-seconds`.
fn odd_header(message: &[u8], scan: &Scan) -> Option<&'static str> {
    const RETRY_AFTER: &[u8] = b"retry-after";
    let head = message.get(scan.headers as usize..scan.body as usize).unwrap_or_default();
    let lines = || iter::once(0).chain(memchr::memchr_iter(b'\n', head).map(|lf| lf + 1)).map(|start| &head[start..]);
    // Few messages have such letters at all.
    let may_be_odd = memchr::memchr3(b'!', b'%', b'\'', head).is_some() || memchr::memchr2(b'*', b'`', head).is_some();
    if may_be_odd && lines().any(has_odd_name) {
        return Some("A Header Name With Odd Letters");
    }
    let begins_so =
        |line: &[u8]| line.get(..RETRY_AFTER.len()).is_some_and(|name| name.eq_ignore_ascii_case(RETRY_AFTER));
    let is_odd = |value: Span| {
        let value = grammar::trim(value.of(message));
        let digits = grammar::DIGIT.prefix(value);
        let ends = value.get(digits).is_none_or(|&next| grammar::is_lws(next) || b";(".contains(&next));
        !(1..10).contains(&digits) || !ends
    };
    let has_odd = lines().any(begins_so) && rows_named(message, scan, &[RETRY_AFTER]).any(is_odd);
    has_odd.then_some("Retry-After Is Malformed")
}

fn has_odd_name(line: &[u8]) -> bool {
    let name = &line[..memchr::memchr(b':', line).unwrap_or(0)];
    line.first().is_some_and(|&first| !grammar::is_lws(first))
        && name.iter().any(|octet| matches!(octet, b'!' | b'%' | b'\'' | b'*' | b'`'))
}

/// Whether the URI has only what may stand in one, and what stands behind it is parameters by the grammar.
fn is_plain_address(message: &[u8], value: &NameAddr) -> bool {
    let uri = value.uri.of(message);
    let is_plain_uri = uri.first() != Some(&b';') && !uri.iter().any(|octet| b"<\"\\ \t".contains(octet));
    let is_bracketed = message.get(value.uri.end as usize) == Some(&b'>');
    let start = value.uri.end + u32::from(is_bracketed);
    is_plain_uri && are_plain_params(message, Span { start, end: value.whole.end }, |_, _| true)
}

/// Whether all values of a Via row follow the grammar.
fn are_plain_vias(message: &[u8], row: Span) -> bool {
    let mut rest = row;
    loop {
        let Some(via) = via::parse(message, rest).filter(|via| is_plain_via(message, via)) else { return false };
        if via.comma == 0 {
            return true;
        }
        rest.start = via.comma + 1;
    }
}

fn is_plain_via(message: &[u8], via: &Via) -> bool {
    let protocol = Span { start: via.whole.start, end: via.sent_by.start }.of(message);
    let mut name = protocol.iter().filter(|&&octet| !grammar::is_lws(octet));
    let is_sip = b"SIP/2.0/".iter().all(|wanted| name.next().is_some_and(|octet| octet.eq_ignore_ascii_case(wanted)));
    // Whatever else it begins with is a transport that Kamailio does not know; at these it closes.
    let is_transport = name.next().is_some_and(|first| !b".02cdilp".contains(&first.to_ascii_lowercase()));
    let port = Span { start: via.host.end, end: via.sent_by.end }.of(message);
    // It is one that there is: without needless zeros it has five digits at most.
    let is_port = port.iter().find(|octet| octet.is_ascii_digit()) != Some(&b'0');
    let params = Span { start: via.sent_by.end, end: via.whole.end };
    is_sip
        && is_transport
        && is_port
        && is_host(via.host.of(message))
        && are_plain_params(message, params, is_plain_via_param)
}

/// Whether `host` is an IPv6 reference, or might be a name.
fn is_host(host: &[u8]) -> bool {
    grammar::TOKEN.has_all(host) || host.first() == Some(&b'[') && uri::address(host).is_some()
}

/// Whether Kamailio takes a parameter of a Via that is as it may be by the grammar: not a comma in quotes, and not a value missing or there
/// where it is otherwise. `i` and `a` are its own.
fn is_plain_via_param(name: &[u8], value: Option<&[u8]>) -> bool {
    let is_one_of = |names: &[&[u8]]| names.iter().any(|one| name.eq_ignore_ascii_case(one));
    match value {
        None => !is_one_of(&[b"i", b"maddr", b"received", b"ttl"]),
        Some(value) => !value.contains(&b',') && !is_one_of(&[b"a", b"alias"]),
    }
}

/// `*( SEMI generic-param )`, each of which is `fit`. A quoted value holds no quoted pair: those are legal, and Kamailio closes at one in a
/// Via or To.
fn are_plain_params(message: &[u8], span: Span, fit: impl Fn(&[u8], Option<&[u8]>) -> bool) -> bool {
    let mut cursor = Cursor::new(message, span);
    loop {
        match next_param(&mut cursor) {
            Err(_) => return false,
            Ok(None) => return true,
            Ok(Some(param)) => {
                let is_plain = param.value.is_none_or(|value| match value.of(message) {
                    [b'"', text @ ..] => !text.contains(&b'\\'),
                    // A host may stand there, which has brackets and colons if it is IPv6.
                    text => {
                        !text.is_empty()
                            && text.iter().all(|&octet| grammar::TOKEN.has(octet) || b"[]:".contains(&octet))
                    }
                });
                let name = param.name.of(message);
                if !is_plain || !grammar::TOKEN.has_all(name) || !fit(name, param.value.map(|value| value.of(message)))
                {
                    return false;
                }
            }
        }
    }
}
