//! As much of a URI as routing needs: scheme, host, port and a few parameters of `sip:` and `sips:`.

use super::cursor::{self, Cursor};
use super::grammar;
use crate::dataplane::scan::{Span, find};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Schemes we can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the scheme of its name")]
pub enum Scheme {
    Sip,
    Sips,
    Tel,
    Urn,
    Other,
}

/// A URI. All but the scheme is empty for schemes other than `sip` and `sips`.
///
/// `SIP-URI = "sip:" [ userinfo ] hostport uri-parameters [ headers ]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uri {
    /// The scheme.
    pub scheme: Scheme,
    /// Everything from the scheme to the end.
    pub whole: Span,
    /// User part without password and `@`.
    pub user: Option<Span>,
    /// Host, with the brackets of an IPv6 reference.
    pub host: Span,
    /// Port, if written.
    pub port: Option<u16>,
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
#[inline(always)]
pub fn parse(message: &[u8], span: Span) -> Option<Uri> {
    let mut cursor = Cursor::new(message, span);
    let scheme = if cursor.take_text(b"sip:") {
        Scheme::Sip
    } else if cursor.take_text(b"sips:") {
        Scheme::Sips
    } else {
        return other_scheme(message, span);
    };
    let mut user = None;
    // An `@` can stand in a user part or behind it, nowhere else: what is before it is the user, semicolons included.
    if let Some(userinfo) = cursor.take_through(b'@') {
        let octets = userinfo.of(message);
        let start = userinfo.start as usize;
        let len = find(octets, [b':']).unwrap_or(octets.len());
        if len == 0 || !grammar::is_uri(octets) {
            return None;
        }
        user = Some(Span::new(start, start + len));
    }
    let host = if cursor.peek() == Some(b'[') {
        let start = cursor.at();
        cursor.take_through(b']')?;
        Span::new(start, cursor.at())
    } else {
        cursor.take_while(grammar::HOST)
    };
    if host.start == host.end {
        return None;
    }
    let mut port = None;
    if cursor.take(b':') {
        port = Some(u16::try_from(grammar::number(cursor.take_while(grammar::DIGIT).of(message))?).ok()?);
    }
    let params_start = cursor.at();
    let (mut is_loose, mut has_maddr) = (false, false);
    while cursor.take(b';') {
        let param = cursor.rest();
        let len = grammar::URI_PARAM.prefix(param);
        match &param[..len] {
            [b'l' | b'L', b'r' | b'R'] | [b'l' | b'L', b'r' | b'R', b'=', ..] => is_loose = true,
            [name @ .., _] if len > 5 && name[..5].eq_ignore_ascii_case(b"maddr") => has_maddr = true,
            _ => {}
        }
        cursor.skip(len);
    }
    let params = Span::new(params_start, cursor.at());
    let has_headers = cursor.take(b'?');
    let uri = Uri { scheme, whole: span, user, host, port, params, is_loose, has_maddr, has_headers };
    (has_headers || cursor.is_done()).then_some(uri)
}

#[cold]
fn other_scheme(message: &[u8], span: Span) -> Option<Uri> {
    let text = span.of(message);
    let colon = find(text, [b':'])?;
    let name = &text[..colon];
    // scheme = ALPHA *( ALPHA / DIGIT / "+" / "-" / "." )
    let starts_well = name.first().is_some_and(u8::is_ascii_alphabetic) && grammar::is_uri(text);
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
    let none = Span::new(span.end as usize, span.end as usize);
    Some(Uri {
        scheme,
        whole: span,
        user: None,
        host: none,
        port: None,
        params: none,
        is_loose: false,
        has_maddr: false,
        has_headers: false,
    })
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

    /// The port, or the default one of the scheme (RFC 3261 19.1.2).
    #[inline(always)]
    pub fn port_or_default(&self) -> u16 {
        self.port.unwrap_or(if self.scheme == Scheme::Sips { 5061 } else { 5060 })
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
    fn sip_uris_come_apart_into_user_host_port_and_parameters() {
        let text = "sip:user;par=u%40example.net@Example.NET:5070;transport=udp;lr?Subject=x";
        let uri = read(text).unwrap();
        let of = |span: Span| String::from_utf8_lossy(span.of(text.as_bytes())).into_owned();
        assert_eq!(of(uri.user.unwrap()), "user;par=u%40example.net");
        assert_eq!(of(uri.host), "Example.NET");
        assert_eq!(uri.port, Some(5070));
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
        assert_eq!(uri.port, Some(5070));
        assert_eq!(uri.address(b"sip:[2001:db8::10]:5070;lr"), Some("2001:db8::10".parse().unwrap()));
        assert!(read("sip:2001:db8::10").is_none());
        assert!(read("sip:[2001:db8::10").is_none());
    }

    #[test]
    fn malformed_uris_are_refused() {
        for text in ["sip:", "sip:@host", "sip:a@", "sip:a@b:port", "sip:a@b:99999", "sip:a@b@c", "bob", ":x", "1a:x"] {
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
