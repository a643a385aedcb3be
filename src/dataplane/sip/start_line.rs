//! The first line: `Method SP Request-URI SP SIP-Version` or `SIP-Version SP Status-Code SP Reason-Phrase`.
//!
//! Of a request line the middle is what stands between the first SP and the last. A blank too many ends up there, where
//! the parser of URIs refuses it.

use super::grammar;
use crate::dataplane::scan::{Span, find};
use crate::dataplane::text::copy_short;

/// The methods we tell apart, for policy and for metrics. Methods are case-sensitive (RFC 3261 7.1): `invite` is
/// [`Method::Other`], and forwarded like any method we do not know (16.3 item 1).
//= RFC 3261 section 16.3
//# An element MUST NOT refuse to proxy a request because it contains a
//# method or header field it does not know about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "each is the method of its name")]
pub enum Method {
    Ack,
    Bye,
    Cancel,
    Info,
    Invite,
    Message,
    Notify,
    Options,
    Prack,
    Publish,
    Refer,
    Register,
    Subscribe,
    Update,
    #[default]
    Other,
}

impl Method {
    /// All methods, in the order of their discriminants.
    pub const ALL: [Method; 15] = [
        Method::Ack,
        Method::Bye,
        Method::Cancel,
        Method::Info,
        Method::Invite,
        Method::Message,
        Method::Notify,
        Method::Options,
        Method::Prack,
        Method::Publish,
        Method::Refer,
        Method::Register,
        Method::Subscribe,
        Method::Update,
        Method::Other,
    ];

    /// The method's name; `other` for [`Method::Other`].
    pub const fn name(self) -> &'static str {
        match self {
            Method::Ack => "ACK",
            Method::Bye => "BYE",
            Method::Cancel => "CANCEL",
            Method::Info => "INFO",
            Method::Invite => "INVITE",
            Method::Message => "MESSAGE",
            Method::Notify => "NOTIFY",
            Method::Options => "OPTIONS",
            Method::Other => "other",
            Method::Prack => "PRACK",
            Method::Publish => "PUBLISH",
            Method::Refer => "REFER",
            Method::Register => "REGISTER",
            Method::Subscribe => "SUBSCRIBE",
            Method::Update => "UPDATE",
        }
    }

    /// The method of this name.
    #[inline(always)]
    pub fn of(name: &[u8]) -> Method {
        // Compared as numbers: a name of ours fits two words, and a list of texts would be compared call by call.
        let mut word = [0; 16];
        let Some(place) = word.get_mut(..name.len()) else { return Method::Other };
        copy_short(place, name);
        const fn number(name: &str) -> u128 {
            let mut word = [0; 16];
            let mut i = 0;
            while i < name.len() {
                word[i] = name.as_bytes()[i];
                i += 1;
            }
            u128::from_le_bytes(word)
        }
        const NUMBERS: [u128; Method::ALL.len()] = {
            let mut numbers = [0; Method::ALL.len()];
            let mut i = 0;
            while i < Method::Other as usize {
                numbers[i] = number(Method::ALL[i].name());
                i += 1;
            }
            numbers
        };
        let word = u128::from_le_bytes(word);
        if name.last() == Some(&0) {
            // The octets that fill the words are zeros, too.
            return Method::Other;
        }
        // The commonest first.
        if word == NUMBERS[Method::Invite as usize] {
            return Method::Invite;
        }
        let found = NUMBERS[..Method::Other as usize].iter().position(|&number| number == word);
        found.map_or(Method::Other, |index| Method::ALL[index])
    }
}

/// A start line that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartLine {
    /// A request.
    Request {
        /// Which one.
        method: Method,
        /// The method as written; for [`Method::Other`] the only name it has.
        name: Span,
        /// What stands where the Request-URI belongs.
        uri: Span,
        /// The version as written, which is `SIP/2.0` in any case.
        version: Span,
    },
    /// A response and its status code, 100 to 699.
    Response(u16),
}

/// Why a start line cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartLineError {
    /// This is no SIP message at all: nothing names a SIP version.
    NotSip,
    /// A request with a start line that is not two single SPs between method, URI and version.
    Request,
    /// A request of another SIP version.
    RequestVersion,
    /// A response with a status line that is not version, SP, three digits from 100 to 699.
    Response,
}

/// Reads the start line `span` of `message`.
#[inline(always)]
pub fn parse(message: &[u8], span: Span) -> Result<StartLine, StartLineError> {
    let line = span.of(message);
    if starts_with_sip(line) {
        return status_line(line).ok_or(StartLineError::Response);
    }
    request_line(line, span.start as usize)
}

/// `SIP-Version = "SIP" "/" 1*DIGIT "." 1*DIGIT`, compared without regard to case (RFC 3261 7.1).
#[inline(always)]
fn starts_with_sip(text: &[u8]) -> bool {
    text.first_chunk::<4>().is_some_and(|start| start == b"SIP/" || start.eq_ignore_ascii_case(b"SIP/"))
}

#[inline(always)]
fn is_sip_2_0(version: &[u8]) -> bool {
    version == b"SIP/2.0" || version.eq_ignore_ascii_case(b"SIP/2.0")
}

/// A missing SP behind the code is let pass together with the missing reason (RFC 4475 3.1.1.13 has an empty one).
fn status_line(line: &[u8]) -> Option<StartLine> {
    let (version, rest) = line.split_first_chunk::<7>()?;
    let (&[b' ', hundreds @ b'1'..=b'6', tens @ b'0'..=b'9', ones @ b'0'..=b'9'], reason) = rest.split_first_chunk()?
    else {
        return None;
    };
    let [hundreds, tens, ones] = [hundreds, tens, ones].map(|digit| u16::from(digit - b'0'));
    let reason_ok = reason.first().is_none_or(|&octet| octet == b' ');
    (is_sip_2_0(version) && reason_ok).then_some(StartLine::Response(100 * hundreds + 10 * tens + ones))
}

/// `at` is the offset of `line` in its message.
#[inline(always)]
fn request_line(line: &[u8], at: usize) -> Result<StartLine, StartLineError> {
    let uri_end = match line.split_last_chunk() {
        Some((before, b" SIP/2.0")) => before.len(),
        _ => odd_version(line)?,
    };
    let name_end = find(line, 0, uri_end, [b' ']);
    if name_end == uri_end {
        return Err(StartLineError::Request);
    }
    let name = &line[..name_end];
    let method = Method::of(name);
    if method == Method::Other && (name.is_empty() || !grammar::TOKEN.has_all(name)) {
        return Err(StartLineError::Request);
    }
    Ok(StartLine::Request {
        method,
        name: Span::new(at, at + name_end),
        uri: Span::new(at + name_end + 1, at + uri_end),
        version: Span::new(at + uri_end + 1, at + line.len()),
    })
}

/// Where the Request-URI ends in a line that does not end with the version as everybody writes it.
#[cold]
fn odd_version(line: &[u8]) -> Result<usize, StartLineError> {
    let malformed = if names_sip(line) { StartLineError::Request } else { StartLineError::NotSip };
    let uri_end = memchr::memrchr(b' ', line).ok_or(malformed)?;
    let version = &line[uri_end + 1..];
    match version {
        _ if is_sip_2_0(version) => Ok(uri_end),
        _ if starts_with_sip(version) && is_version(version) => Err(StartLineError::RequestVersion),
        _ => Err(malformed),
    }
}

fn is_version(version: &[u8]) -> bool {
    let mut numbers = version[4..].split(|&octet| octet == b'.').map(grammar::number);
    matches!((numbers.next(), numbers.next(), numbers.next()), (Some(Some(_)), Some(Some(_)), None))
}

/// Whether a line that cannot be read was at least meant to be SIP: some word of it begins with `SIP/`.
#[cold]
fn names_sip(line: &[u8]) -> bool {
    line.split(|&octet| grammar::is_blank(octet)).any(starts_with_sip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<StartLine, StartLineError> {
        parse(line.as_bytes(), Span::new(0, line.len()))
    }

    #[test]
    fn requests_are_read_from_the_first_space_to_the_last() {
        let Ok(StartLine::Request { method, name, uri, version }) = read("INVITE sip:bob@example.net sip/2.0") else {
            panic!("not a request");
        };
        assert_eq!(method, Method::Invite);
        assert_eq!((name, uri, version), (Span::new(0, 6), Span::new(7, 26), Span::new(27, 34)));
        for line in [
            "INVITE sip:bob@example.net SIP/2.0 ",
            "INVITE\tsip:bob@example.net SIP/2.0",
            "INV<ITE sip:bob@example.net SIP/2.0",
            "ACK\0\0 sip:bob@example.net SIP/2.0",
            " sip:bob@example.net SIP/2.0",
            "INVITE SIP/2.0",
        ] {
            assert_eq!(read(line), Err(StartLineError::Request), "{line}");
        }
    }

    #[test]
    fn other_versions_and_other_protocols_are_told_apart() {
        assert_eq!(read("OPTIONS sip:t.example.org SIP/7.0"), Err(StartLineError::RequestVersion));
        for version in ["SIP/7", "SIP/7.x", "SIP/7.0.0", "SIP/"] {
            assert_eq!(read(&format!("OPTIONS sip:a {version}")), Err(StartLineError::Request), "{version}");
        }
        for line in ["NOTIFY * HTTP/1.1", "GET / HTTP/1.1", "hello", "", "OPTIONS sip:a@b"] {
            assert_eq!(read(line), Err(StartLineError::NotSip), "{line}");
        }
    }

    #[test]
    fn methods_are_case_sensitive_and_never_found_inside_others() {
        for (line, expected) in [
            ("invite sip:a SIP/2.0", Method::Other),
            ("INVITEX sip:a SIP/2.0", Method::Other),
            ("MESSAGE sip:INVITE@ACK SIP/2.0", Method::Message),
        ] {
            assert!(matches!(read(line), Ok(StartLine::Request { method, .. }) if method == expected), "{line}");
        }
        for method in Method::ALL {
            assert_eq!(Method::ALL[method as usize], method);
            assert_eq!(Method::of(method.name().as_bytes()), method);
        }
    }

    #[test]
    fn status_codes_are_three_digits_from_100_to_699() {
        for (line, expected) in [
            ("SIP/2.0 200 OK", Ok(StartLine::Response(200))),
            ("sip/2.0 699 ", Ok(StartLine::Response(699))),
            ("SIP/2.0 100", Ok(StartLine::Response(100))),
            ("SIP/2.0 099 No", Err(StartLineError::Response)),
            ("SIP/2.0 700 No", Err(StartLineError::Response)),
            ("SIP/2.0 4294967301 better not break the receiver", Err(StartLineError::Response)),
            ("SIP/3.0 200 OK", Err(StartLineError::Response)),
            ("SIP/2.0  200 OK", Err(StartLineError::Response)),
        ] {
            assert_eq!(read(line), expected, "{line}");
        }
    }
}
