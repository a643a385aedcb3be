//! Whether a request may be forwarded (RFC 3261 16.3), and what its parts say.
//!
//! Checked is what routing and rewriting need; all else is carried unread, even when it is broken (16.3 item 1). A check
//! that fails names the answer. Who asked is answered by the dispatcher: an ACK never, and a response never.

use crate::dataplane::limits::{CALL_ID_MAX, START_LINE_MAX, VIA_ROWS_MAX};
use crate::dataplane::scan::{Scan, Span, rows, rows_named};
use crate::dataplane::sip::grammar;
use crate::dataplane::sip::header::HeaderKind;
use crate::dataplane::sip::name_addr::NameAddr;
use crate::dataplane::sip::start_line::{Method, StartLine, StartLineError};
use crate::dataplane::sip::uri::Uri;
use crate::dataplane::sip::via::{self, Via};
use crate::dataplane::tables::Policy;

/// An answer that refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status code.
    pub code: u16,
    /// The reason phrase: what exactly is wrong, for whoever reads the trace.
    pub reason: &'static str,
}

impl Refusal {
    /// An answer of `code` that says `reason`.
    pub const fn new(code: u16, reason: &'static str) -> Refusal {
        Refusal { code, reason }
    }
}

/// A request that may be forwarded. Spans are offsets into the message, without white space round them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request {
    /// Its method.
    pub method: Method,
    /// Its SIP-Version as written.
    pub version: Span,
    /// Its Request-URI.
    pub uri: Uri,
    /// The topmost Via.
    pub via: Via,
    /// The value of From.
    pub from: NameAddr,
    /// The value of To.
    pub to: NameAddr,
    /// The value of Call-ID.
    pub call_id: Span,
    /// The sequence number of CSeq.
    pub cseq: u32,
    /// The digits of Max-Forwards, if there is such a header.
    pub max_forwards: Span,
    /// How many hops are left; means nothing without the header.
    pub hops_left: u8,
    /// Where the message ends: behind the body that Content-Length announces, or at the end of the datagram.
    pub end: u32,
}

/// A URI that would lead us, or stand in our start line, is of a scheme that the policy leaves out.
pub const UNKNOWN_SCHEME: Refusal = Refusal::new(416, "Unsupported URI Scheme");
/// A request asks for what we do not know, of proxies, or of us where it is for us itself.
pub const BAD_EXTENSION: Refusal = Refusal::new(420, "Bad Extension");
const BAD_START_LINE: Refusal = Refusal::new(400, "Bad Request-Line");

/// Reads a request into `request`, which is left half-written when it is refused. `line` is what its start line was read
/// as.
//= RFC 3261 section 16.3
//# Any other components, well-formed or not, SHOULD be ignored and remain
//# unchanged when the message is forwarded.
#[inline(always)]
pub fn request(
    message: &[u8],
    scan: &Scan,
    line: Result<StartLine, StartLineError>,
    policy: &Policy,
    request: &mut Request,
) -> Result<(), Refusal> {
    if let Some((fault, _)) = scan.faults.first() {
        return Err(Refusal::new(400, fault.describe()));
    }
    let (name, uri) = match line {
        Ok(StartLine::Request { method, name, uri, version }) => {
            request.method = method;
            request.version = version;
            (name, uri)
        }
        Err(StartLineError::RequestVersion) => return Err(Refusal::new(505, "Version Not Supported")),
        _ => return Err(BAD_START_LINE),
    };
    if scan.start_line.len() > START_LINE_MAX {
        return Err(Refusal::new(414, "Request-URI Too Long"));
    }
    single_headers_stand_once(scan)?;
    let value = |kind| scan.value(kind).unwrap_or_default();
    if !request.via.read(message, value(HeaderKind::Via)) {
        return Err(Refusal::new(400, "Bad Via"));
    }
    if scan.is_repeated(HeaderKind::Via) && rows(message, scan, HeaderKind::Via).nth(VIA_ROWS_MAX).is_some() {
        return Err(Refusal::new(483, "Too Many Hops"));
    }
    if !request.from.read(message, value(HeaderKind::From)) || request.from.comma != 0 {
        return Err(Refusal::new(400, "Bad From"));
    }
    if !request.to.read(message, value(HeaderKind::To)) || request.to.comma != 0 {
        return Err(Refusal::new(400, "Bad To"));
    }
    request.call_id = call_id(message, scan).ok_or(Refusal::new(400, "Bad Call-ID"))?;
    request.cseq = cseq(message, scan, request.method, name.of(message))?;
    request.end = end(message, scan)?;
    if request.uri.read(message, uri).is_none() || request.uri.has_headers {
        return Err(Refusal::new(400, "Bad Request-URI"));
    }

    // The order of 16.3: syntax is done; scheme, Max-Forwards, Proxy-Require.
    //= RFC 3261 section 16.3
    //# If the Request-URI has a URI whose scheme is not understood by the
    //# proxy, the proxy SHOULD reject the request with a 416 (Unsupported URI
    //# Scheme) response.
    if !policy.schemes.contains(&request.uri.scheme) {
        return Err(UNKNOWN_SCHEME);
    }
    (request.max_forwards, request.hops_left) = max_forwards(message, scan)?;
    //= RFC 3261 section 16.3
    //# If the request contains a Proxy-Require header field (Section 20.29)
    //# with one or more option-tags this element does not understand, the
    //# element MUST return a 420 (Bad Extension) response.
    if scan.has(HeaderKind::ProxyRequire) && !matches!(request.method, Method::Ack | Method::Cancel) {
        //= RFC 3261 section 8.2.2.3
        //# Note that Require and Proxy-Require MUST NOT be used in a SIP CANCEL
        //# request, or in an ACK request sent for a non-2xx response. These
        //# header fields MUST be ignored if they are present in these requests.
        //
        // 8.2.2.3, 16.3 item 5. It must not stand in CANCEL and ACK, and is ignored there.
        if unsupported_tags(message, scan, policy).next().is_some() {
            return Err(BAD_EXTENSION);
        }
    }
    Ok(())
}

/// RFC 4475 3.3.8: a header that may stand once and stands twice is refused; two servers could read different ones.
//= RFC 3261 section 7.3.1
//# Multiple header field rows with the same field-name MAY be present in
//# a message if and only if the entire field-value for that header field
//# is defined as a comma-separated list
#[inline(always)]
pub fn single_headers_stand_once(scan: &Scan) -> Result<(), Refusal> {
    scan.ambiguous().map_or(Ok(()), |kind| Err(more_than_one(kind)))
}

#[cold]
fn more_than_one(kind: HeaderKind) -> Refusal {
    let reason = match kind {
        HeaderKind::CSeq => "More Than One CSeq",
        HeaderKind::CallId => "More Than One Call-ID",
        HeaderKind::ContentLength => "More Than One Content-Length",
        HeaderKind::From => "More Than One From",
        HeaderKind::MaxForwards => "More Than One Max-Forwards",
        HeaderKind::To => "More Than One To",
        _ => "More Than One Of A Header That Stands Once",
    };
    Refusal::new(400, reason)
}

/// The topmost Via value, if it can be read.
#[inline(always)]
pub fn first_via(message: &[u8], scan: &Scan) -> Option<Via> {
    via::parse(message, scan.value(HeaderKind::Via)?)
}

/// The Call-ID: no white space and no control octets inside, since the key must be read the same by all.
#[inline(always)]
fn call_id(message: &[u8], scan: &Scan) -> Option<Span> {
    let call_id = trim(message, scan.value(HeaderKind::CallId)?);
    (call_id.len() <= CALL_ID_MAX && grammar::is_call_id(message, call_id)).then_some(call_id)
}

/// `CSeq = 1*DIGIT LWS Method`; the number fits 32 bits (RFC 4475 3.1.2.4), the method is the start line's.
//= RFC 3261 section 20.16
//# The sequence number MUST be expressible as a 32-bit unsigned integer.
//# The method part of CSeq is case-sensitive.
#[inline(always)]
fn cseq(message: &[u8], scan: &Scan, method: Method, name: &[u8]) -> Result<u32, Refusal> {
    const BAD: Refusal = Refusal::new(400, "Bad CSeq");
    let value = grammar::trim(scan.value(HeaderKind::CSeq).ok_or(BAD)?.of(message));
    let digits = value.iter().position(|&octet| grammar::is_lws(octet)).ok_or(BAD)?;
    let number = grammar::number(&value[..digits]).and_then(|number| u32::try_from(number).ok()).ok_or(BAD)?;
    if grammar::trim(&value[digits..]) != name {
        // RFC 4475 3.1.2.18: for a method nobody knows, 501 says more.
        let unknown = Refusal::new(501, "CSeq Method Is Not The Request's");
        return Err(if method == Method::Other { unknown } else { Refusal { code: 400, ..unknown } });
    }
    Ok(number)
}

/// Where the message ends in its datagram: behind as much of a body as is announced.
//= RFC 3261 section 18.3
//# If there are additional bytes in
//# the transport packet beyond the end of the body, they MUST be
//# discarded.  If the transport packet ends before the end of the
//# message body, this is considered an error.
#[inline(always)]
pub fn end(message: &[u8], scan: &Scan) -> Result<u32, Refusal> {
    let Some(value) = scan.value(HeaderKind::ContentLength) else { return Ok(message.len() as u32) };
    let announced = grammar::number(grammar::trim(value.of(message))).ok_or(Refusal::new(400, "Bad Content-Length"))?;
    let there = message.len() as u64 - u64::from(scan.body);
    if announced > there {
        return Err(Refusal::new(400, "Content-Length Exceeds Datagram"));
    }
    Ok(scan.body + announced as u32)
}

/// `Max-Forwards = 1*DIGIT`, 0 to 255 (RFC 3261 20.22). Zero: 483 (16.3 item 3).
//= RFC 3261 section 16.3
//# If the request contains a Max-Forwards header field with a field value
//# of zero (0), the element MUST NOT forward the request.
#[inline(always)]
fn max_forwards(message: &[u8], scan: &Scan) -> Result<(Span, u8), Refusal> {
    let Some(value) = scan.value(HeaderKind::MaxForwards) else { return Ok((Span::ABSENT, 0)) };
    let digits = trim(message, value);
    let number = grammar::number(digits.of(message)).and_then(|number| u8::try_from(number).ok());
    match number {
        None => Err(Refusal::new(400, "Bad Max-Forwards")),
        Some(0) => Err(Refusal::new(483, "Too Many Hops")),
        Some(left) => Ok((digits, left)),
    }
}

/// The option tags of Proxy-Require that are not let through.
pub fn unsupported_tags<'a>(message: &'a [u8], scan: &'a Scan, policy: &'a Policy) -> impl Iterator<Item = &'a [u8]> {
    let rows = rows(message, scan, HeaderKind::ProxyRequire).map(|row| row.span());
    tags(message, rows)
        .filter(|tag| !policy.proxy_require.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(tag)))
}

/// The option tags of Require: what a request that is for us itself asks of us, who know no extension (RFC 3261 8.2.2.3).
pub fn required_tags<'a>(message: &'a [u8], scan: &'a Scan) -> impl Iterator<Item = &'a [u8]> {
    tags(message, rows_named(message, scan, &[b"require"]))
}

fn tags(message: &[u8], values: impl Iterator<Item = Span>) -> impl Iterator<Item = &[u8]> {
    values
        .flat_map(|value| value.of(message).split(|&octet| octet == b','))
        .map(grammar::trim)
        .filter(|tag| !tag.is_empty())
}

/// `span` without white space round it.
#[inline(always)]
pub fn trim(message: &[u8], span: Span) -> Span {
    let text = span.of(message);
    let trimmed = grammar::trim(text);
    let lead = trimmed.as_ptr() as usize - text.as_ptr() as usize;
    let start = span.start as usize + lead;
    Span::new(start, start + trimmed.len())
}
