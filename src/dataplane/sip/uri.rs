//! As much of a URI as routing needs: scheme, host, port and a few parameters of `sip:` and `sips:`.

use super::cursor::{self, Cursor};
use crate::dataplane::scan::{Span, find_blank_or};
use crate::dataplane::transport::Transport;
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
    /// Port, or the default one of scheme and transport (19.1.2).
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
#[inline(always)]
pub fn parse(message: &[u8], span: Span) -> Option<Uri> {
    let mut uri = Uri::default();
    uri.read(message, span).map(|()| uri)
}

impl Uri {
    /// [`parse`] in place: a struct that is returned is copied, and a copy of what was just written has to wait for it.
    ///
    /// What the grammar keeps out is refused as far as it could end, quote or bracket something: blanks, control
    /// characters, `<` and `>`, quotes and `\` in the user part. Other octets that do not belong in a URI are a
    /// telephone's mistake, and no danger; quotes behind the host are found in Routes.
    #[inline(always)]
    pub fn read(&mut self, message: &[u8], span: Span) -> Option<()> {
        let mut cursor = Cursor::new(message, span);
        *self = Uri { scheme: Scheme::Sip, port: 5060, whole: span, ..Uri::default() };
        if !cursor.take_text(b"sip:") {
            *self = scheme(message, span)?;
            if !self.is_sip() {
                return Some(());
            }
            cursor = Cursor::new(message, Span { start: self.host.start, ..span });
        }
        // An `@` can stand in a user part or behind it, nowhere else: what is before it is the user, semicolons included.
        let first = cursor.take_until([b'@', b'<', b'>', b'"', b'\\']);
        if cursor.take(b'@') {
            self.userinfo = first;
            if first.is_empty() {
                return None;
            }
        } else {
            cursor = Cursor::new(message, Span { start: first.start, ..span });
        }
        self.host = match cursor.peek() {
            Some(b'[') => cursor.take_bracketed()?,
            _ => cursor.take_until([b':', b';', b'?', b'@', b'[', b'"', b'<', b'>']),
        };
        let colon = cursor.at() as u32;
        if cursor.take(b':') {
            self.port = cursor.take_port()?;
            self.port_text = Span { start: colon, end: cursor.at() as u32 };
        }
        self.params = Span::new(cursor.at(), cursor.at());
        while cursor.take(b';') {
            let param = cursor.take_until([b';', b'?', b'@', b'<', b'>']);
            match param.of(message) {
                [b'l' | b'L', b'r' | b'R'] | [b'l' | b'L', b'r' | b'R', b'=', ..] => self.is_loose = true,
                [b'm' | b'M', b'a' | b'A', b'd' | b'D', b'd' | b'D', b'r' | b'R', ..] => self.has_maddr = true,
                transport @ [b't' | b'T', b'r' | b'R', ..] if !self.port_text.is_present() => {
                    self.take_port_of(transport)
                }
                _ => {}
            }
            self.params.end = param.end;
        }
        self.has_headers = cursor.take(b'?');
        (!self.host.is_empty() && (cursor.is_done() || self.has_headers)).then_some(())
    }
}

impl Uri {
    /// The port is the default one of the transport that `param` names, if it does and that has one of its own (19.1.2; RFC 7118 for
    /// WebSocket).
    #[cold]
    fn take_port_of(&mut self, param: &[u8]) {
        let Some((name, value)) = param.split_first_chunk::<10>() else { return };
        if name.eq_ignore_ascii_case(b"transport=") {
            let others = [Transport::Tls, Transport::Ws, Transport::Wss];
            let named = others.into_iter().find(|one| value.eq_ignore_ascii_case(one.name().as_bytes()));
            self.port = named.map_or(self.port, Transport::default_port);
        }
    }
}

/// The URI of a scheme that is not `sip:` in lower case. Of `sip` and `sips` the rest is still to be read: `host` begins
/// where it begins.
#[cold]
fn scheme(message: &[u8], span: Span) -> Option<Uri> {
    let text = span.of(message);
    let colon = text.iter().position(|&octet| octet == b':')?;
    let name = &text[..colon];
    // scheme = ALPHA *( ALPHA / DIGIT / "+" / "-" / "." )
    let starts_well = name.first().is_some_and(u8::is_ascii_alphabetic);
    if !starts_well || !name.iter().all(|&octet| octet.is_ascii_alphanumeric() || b"+-.".contains(&octet)) {
        return None;
    }
    let (scheme, port) = match name {
        _ if name.eq_ignore_ascii_case(b"sip") => (Scheme::Sip, 5060),
        _ if name.eq_ignore_ascii_case(b"sips") => (Scheme::Sips, 5061),
        _ if name.eq_ignore_ascii_case(b"tel") => (Scheme::Tel, 0),
        _ if name.eq_ignore_ascii_case(b"urn") => (Scheme::Urn, 0),
        _ => (Scheme::Other, 0),
    };
    let mut uri = Uri { scheme, port, whole: span, ..Uri::default() };
    if uri.is_sip() {
        uri.host.start = span.start + colon as u32 + 1;
        return Some(uri);
    }
    let end = span.end as usize;
    let clean = find_blank_or(message, span.start as usize, end, [b'<', b'>', b'"', b'\\']) == end;
    clean.then_some(uri)
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
    fn default_ports_are_those_of_scheme_and_transport() {
        for (text, port) in [
            ("sip:a", 5060),
            ("sips:a", 5061),
            ("sip:a;transport=tls;lr", 5061),
            ("sip:a;Transport=TLS", 5061),
            ("sip:a;transport=wss", 443),
            ("sip:a;transport=tcp", 5060),
            ("sips:a;transport=tcp", 5061),
            ("sip:a;transport=tlsx", 5060),
            ("sip:a;transports=tls", 5060),
            ("sip:a;trusted-1=tls", 5060),
            ("SIP:a", 5060),
            ("sip:a:5070;transport=tls", 5070),
            ("sip:a:5090", 5090),
            ("sip:a:0000005090", 5090),
        ] {
            assert_eq!(read(text).unwrap().port, port, "{text}");
        }
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
        assert!(read("sip:a;lr=on").unwrap().is_loose);
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
        for text in [
            "sip:",
            "sip:a b@c",
            "sip:a@b c",
            "sip:<a@b>",
            "sip:a;b c",
            "sip:a@b;c=d@e",
            "sip:@host",
            "sip:a@",
            "sip:a@b:port",
            "sip:a@b:",
            "sip:a@b:;transport=udp;x",
            "sip:]::1]",
            "sip:a@b:99999",
            "sip:a@b@c",
            "sip:[a b]",
            "sip:[::1>]",
            "sip:[::1;lr]",
            "sip:a;x>y",
            "sip:a[b",
            "sip:a\\b@c",
            "sip:a:0000065536",
            "tel:1 2",
            "tel:<1>",
            "tel:1>",
            "tel:\"1\"",
            "tel:1\\",
            "a(b:x",
            "bob",
            ":x",
            "1a:x",
        ] {
            assert!(read(text).is_none(), "{text}");
        }
        for octet in ['"', '<', '>', '\t'] {
            assert!(read(&format!("sip:a{octet}b@c")).is_none(), "{octet:?}");
            assert!(read(&format!("sip:a{octet}b")).is_none(), "{octet:?}");
        }
    }

    #[test]
    fn schemes_are_told_apart_in_any_case() {
        for (text, scheme) in [
            ("SIP:a@b", Scheme::Sip),
            ("sIpS:a@b", Scheme::Sips),
            ("TEL:+4930123", Scheme::Tel),
            ("URN:service:sos", Scheme::Urn),
            ("soap.beep://192.0.2.103:3002", Scheme::Other),
            ("a+b:x", Scheme::Other),
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
            &b"example.net"[..],
            b"192.0.2",
            b"192.0.2.",
            b"192.0.2.1.",
            b"1.2.3.4.5.6",
            b"256.0.2.1",
            b"192.0.2.256",
            b"192.0.2.01",
            b"192.0.2.1000",
            b"4294967488.0.2.1",
            b"1..2.3",
            b"[192.0.2.1]",
            b"",
            b"\xff",
            b"[::1",
        ] {
            assert_eq!(address(name), None);
        }
    }
}
