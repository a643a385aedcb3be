//! As much of a URI as routing needs: scheme, host, port and a few parameters of `sip:` and `sips:`.

use super::cursor::{self, Cursor};
use super::grammar;
use crate::dataplane::scan::{Span, find, find_blank_or};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Schemes we can tell apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the scheme of its name")]
pub enum Scheme {
    Sip,
    Sips,
    Tel,
    Urn,
    #[default]
    Other,
}

/// A URI. What is not there, and for schemes other than `sip` and `sips` everything but `whole`, is [`Span::ABSENT`].
///
/// `SIP-URI = "sip:" [ userinfo ] hostport uri-parameters [ headers ]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uri {
    /// The scheme.
    pub scheme: Scheme,
    /// Everything from the scheme to the end.
    pub whole: Span,
    /// `userinfo` without the `@`.
    pub userinfo: Span,
    /// Host, with the brackets of an IPv6 reference.
    pub host: Span,
    /// Port, or the default one of the scheme (19.1.2).
    pub port: u16,
    /// The port as written, with its colon.
    pub port_text: Span,
    /// From the first semicolon behind the host to the headers or the end.
    pub params: Span,
    /// Whether there is a parameter `lr`: a loose router (RFC 3261 19.1.1).
    pub is_loose: bool,
    /// Whether there is a parameter `maddr`.
    pub has_maddr: bool,
    /// Whether a `?headers` part follows.
    pub has_headers: bool,
}

/// Reads the URI that fills `span`. `None` if it is `sip:` or `sips:` and does not follow the grammar, or has no scheme.
///
/// What the grammar keeps out is refused as far as it could end, quote or bracket something: blanks, control characters,
/// `<`, `>`, `"` and `\`. Other octets that do not belong in a URI are a telephone's mistake, and no danger.
#[inline(always)]
pub fn parse(message: &[u8], span: Span) -> Option<Uri> {
    let text = span.of(message);
    let (scheme, rest) = match text {
        [b's' | b'S', b'i' | b'I', b'p' | b'P', b':', rest @ ..] => (Scheme::Sip, rest),
        [b's' | b'S', b'i' | b'I', b'p' | b'P', b's' | b'S', b':', rest @ ..] => (Scheme::Sips, rest),
        _ => return other_scheme(message, span),
    };
    let offset = |part: &[u8]| span.end as usize - part.len();
    let (mut userinfo, mut host) = (Span::ABSENT, rest);
    // An `@` can stand in a user part or behind it, nowhere else: what is before it is the user, semicolons included.
    match find_blank_or(rest, [b'@', b'<', b'>', b'"', b'\\']) {
        Some(len) if rest[len] == b'@' && len > 0 => {
            userinfo = Span::new(offset(rest), offset(rest) + len);
            host = &rest[len + 1..];
        }
        // Behind the host quotes are let pass: they do not belong into parameters, but Routes hold them.
        Some(len) if rest[len] != b'"' => return None,
        _ => {}
    }
    let host_len = match host {
        [b'[', ..] => find(host, [b']'])? + 1,
        _ => find_blank_or(host, [b':', b';', b'?', b'@', b'[', b'"', b'<', b'>']).unwrap_or(host.len()),
    };
    let mut behind = &host[host_len..];
    let mut uri = Uri {
        scheme,
        whole: span,
        userinfo,
        host: Span::new(offset(host), offset(host) + host_len),
        port: if scheme == Scheme::Sips { 5061 } else { 5060 },
        ..Uri::default()
    };
    if let [b':', digits @ ..] = behind {
        let len = grammar::DIGIT.prefix(digits);
        uri.port = u16::try_from(grammar::number(&digits[..len])?).ok()?;
        uri.port_text = Span::new(offset(behind), offset(digits) + len);
        behind = &digits[len..];
    }
    uri.params = Span::new(offset(behind), offset(behind));
    while let [b';', param @ ..] = behind {
        let len = find_blank_or(param, [b';', b'?', b'@', b'<', b'>']).unwrap_or(param.len());
        match &param[..len] {
            [b'l' | b'L', b'r' | b'R'] | [b'l' | b'L', b'r' | b'R', b'=', ..] => uri.is_loose = true,
            [b'm' | b'M', name @ ..] if name.len() > 4 && name[..4].eq_ignore_ascii_case(b"addr") => uri.has_maddr = true,
            _ => {}
        }
        behind = &param[len..];
    }
    uri.params.end = offset(behind) as u32;
    uri.has_headers = behind.first() == Some(&b'?');
    (host_len > 0 && (behind.is_empty() || uri.has_headers)).then_some(uri)
}

#[cold]
fn other_scheme(message: &[u8], span: Span) -> Option<Uri> {
    let text = span.of(message);
    let colon = find(text, [b':'])?;
    let name = &text[..colon];
    // scheme = ALPHA *( ALPHA / DIGIT / "+" / "-" / "." )
    let starts_well = name.first().is_some_and(u8::is_ascii_alphabetic) && find_blank_or(text, [b'<', b'>', b'"', b'\\']).is_none();
    if !starts_well || !name.iter().all(|&octet| octet.is_ascii_alphanumeric() || b"+-.".contains(&octet)) {
        return None;
    }
    let scheme = if name.eq_ignore_ascii_case(b"tel") {
        Scheme::Tel
    } else if name.eq_ignore_ascii_case(b"urn") {
        Scheme::Urn
    } else {
        Scheme::Other
    };
    Some(Uri { scheme, whole: span, ..Uri::default() })
}

impl Uri {
    /// The parameter `name`: where it stands, and its value.
    pub fn param(&self, message: &[u8], name: &[u8]) -> Option<cursor::Param> {
        let mut cursor = Cursor::new(message, self.params);
        while let Ok(Some(param)) = cursor::next_param(&mut cursor) {
            if param.is(message, name) {
                return Some(param);
            }
        }
        None
    }

    /// Whether the URI is one of `sip:` or `sips:`.
    #[inline(always)]
    pub const fn is_sip(&self) -> bool {
        matches!(self.scheme, Scheme::Sip | Scheme::Sips)
    }

    /// The host as an address, if it is one and not a name.
    pub fn address(&self, message: &[u8]) -> Option<IpAddr> {
        address(self.host.of(message))
    }
}

/// `host` as an address, if it is one and not a name. IPv6 with its brackets or, as RFC 5118 4.5 has it in `received`,
/// without. An IPv4-mapped IPv6 address is its IPv4 address (RFC 5118 4.9).
#[inline(always)]
pub fn address(host: &[u8]) -> Option<IpAddr> {
    if let Some(address) = ipv4(host) {
        return Some(IpAddr::V4(address));
    }
    if host.contains(&b':') { ipv6(host) } else { None }
}

/// `IPv4address = 1*3DIGIT "." 1*3DIGIT "." 1*3DIGIT "." 1*3DIGIT`, each at most 255 and without needless zeros, which
/// some read as octal.
#[inline(always)]
fn ipv4(text: &[u8]) -> Option<Ipv4Addr> {
    let (mut octets, mut place, mut digits, mut value) = ([0u8; 4], 0, 0, 0u32);
    for &octet in text {
        match octet {
            b'0'..=b'9' if digits < 3 && !(digits > 0 && value == 0) => {
                value = value * 10 + u32::from(octet - b'0');
                digits += 1;
            }
            b'.' if digits > 0 && place < 3 && value < 256 => {
                octets[place] = value as u8;
                (place, digits, value) = (place + 1, 0, 0);
            }
            _ => return None,
        }
    }
    octets[3] = u8::try_from(value).ok()?;
    (place == 3 && digits > 0).then(|| Ipv4Addr::from(octets))
}

#[cold]
fn ipv6(text: &[u8]) -> Option<IpAddr> {
    let text = core::str::from_utf8(text).ok()?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse::<Ipv6Addr>().ok().map(|address| IpAddr::V6(address).to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Uri> {
        parse(text.as_bytes(), Span::new(0, text.len()))
    }

    #[test]
    fn default_ports_are_those_of_the_schemes() {
        assert_eq!(read("sip:a").unwrap().port, 5060);
        assert_eq!(read("sips:a").unwrap().port, 5061);
    }

    #[test]
    fn sip_uris_come_apart_into_user_host_port_and_parameters() {
        let text = "sip:user;par=u%40example.net@Example.NET:5070;transport=udp;lr?Subject=x";
        let uri = read(text).unwrap();
        let of = |span: Span| String::from_utf8_lossy(span.of(text.as_bytes())).into_owned();
        assert_eq!(of(uri.userinfo), "user;par=u%40example.net");
        assert_eq!(of(uri.host), "Example.NET");
        assert_eq!((uri.port, of(uri.port_text)), (5070, ":5070".to_owned()));
        assert_eq!(of(uri.params), ";transport=udp;lr");
        assert!(uri.has_headers);
        assert!(uri.is_loose && !uri.has_maddr);
        assert!(read("sip:a;maddr=192.0.2.1").unwrap().has_maddr);
        assert!(uri.param(text.as_bytes(), b"lr").is_some());
        assert_eq!(of(uri.param(text.as_bytes(), b"transport").unwrap().value.unwrap()), "udp");
        assert!(uri.param(text.as_bytes(), b"user").is_none());
    }

    #[test]
    fn ipv6_needs_its_brackets() {
        let uri = read("sip:[2001:db8::10]:5070;lr").unwrap();
        assert_eq!(uri.port, 5070);
        assert_eq!(uri.address(b"sip:[2001:db8::10]:5070;lr"), Some("2001:db8::10".parse().unwrap()));
        assert!(read("sip:2001:db8::10").is_none());
        assert!(read("sip:[2001:db8::10").is_none());
    }

    #[test]
    fn malformed_uris_are_refused() {
        for text in ["sip:", "sip:a b@c", "sip:a@b c", "sip:<a@b>", "sip:a;b c", "sip:a@b;c=d@e", "sip:@host", "sip:a@", "sip:a@b:port", "sip:a@b:99999", "sip:a@b@c", "bob", ":x", "1a:x"] {
            assert!(read(text).is_none(), "{text}");
        }
    }

    #[test]
    fn schemes_are_told_apart_in_any_case() {
        for (text, scheme) in [
            ("SIP:a@b", Scheme::Sip),
            ("sIpS:a@b", Scheme::Sips),
            ("tel:+4930123", Scheme::Tel),
            ("URN:service:sos", Scheme::Urn),
            ("soap.beep://192.0.2.103:3002", Scheme::Other),
        ] {
            assert_eq!(read(text).unwrap().scheme, scheme, "{text}");
        }
    }

    #[test]
    fn addresses_are_read_with_and_without_brackets_and_mapped_ones_unmapped() {
        assert_eq!(address(b"192.0.2.1"), Some("192.0.2.1".parse().unwrap()));
        assert_eq!(address(b"[2001:db8::1]"), address(b"2001:db8::1"));
        assert_eq!(address(b"[::ffff:192.0.2.1]"), address(b"192.0.2.1"));
        for name in [
            &b"example.net"[..], b"192.0.2", b"192.0.2.", b"192.0.2.1.", b"192.0.2.256", b"192.0.2.01", b"192.0.2.1000",
            b"1..2.3", b"[192.0.2.1]", b"", b"\xff", b"[::1",
        ] {
            assert_eq!(address(name), None);
        }
    }
}
