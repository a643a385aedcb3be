//! Addresses as they are written in configurations: `udp:192.0.2.1:5060`, `sip:host:5060`, `host:port`, `10.0.0.0/8`.
//!
//! An error says which octets of the text are wrong and what to write there; the data plane's parser only says "no".

use super::read::did_you_mean;
use crate::dataplane::tables::Network;
use crate::dataplane::transport::Transport;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::Range;

/// What is wrong with an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressError {
    /// Which octets of the text.
    pub at: Range<usize>,
    /// What.
    pub title: String,
    /// What to write there, beside the place.
    pub label: String,
}

fn error<T>(at: Range<usize>, title: impl Into<String>, label: impl Into<String>) -> Result<T, AddressError> {
    Err(AddressError { at, title: title.into(), label: label.into() })
}

/// A host, by name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// A name in lower case, or an address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl HostPort {
    /// The address, if the host is one.
    pub fn address(&self) -> Option<SocketAddr> {
        self.host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, self.port))
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            return write!(f, "[{}]:{}", self.host, self.port);
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// An address as the host of a URI: of IPv6 in brackets.
pub fn uri_host(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// `HOST`, `HOST:PORT`, `[IPv6]` or `[IPv6]:PORT`; without a port, 5060.
pub fn host_port(text: &str) -> Result<HostPort, AddressError> {
    host_port_at(text, 0, Transport::Udp)
}

/// The same, where TLS is spoken; without a port, 5061.
pub fn tls_host_port(text: &str) -> Result<HostPort, AddressError> {
    host_port_at(text, 0, Transport::Tls)
}

/// The same, of a WebSocket; without a port, 80.
pub fn ws_host_port(text: &str) -> Result<HostPort, AddressError> {
    host_port_at(text, 0, Transport::Ws)
}

/// The same, of a secure one; without a port, 443.
pub fn wss_host_port(text: &str) -> Result<HostPort, AddressError> {
    host_port_at(text, 0, Transport::Wss)
}

fn host_port_at(text: &str, start: usize, transport: Transport) -> Result<HostPort, AddressError> {
    let all = start..start + text.len();
    if text.is_empty() {
        return error(all, "the host is missing", "write a name or an address here");
    }
    let (host, port_at) = if let Some(inner) = text.strip_prefix('[') {
        let Some(end) = inner.find(']') else {
            return error(all, format!("`{text}` has no closing bracket"), "an IPv6 address stands in `[` and `]`");
        };
        (&inner[..end], end + 2)
    } else if text.matches(':').count() > 1 {
        return error(all, format!("`{text}` is not a host and a port"), in_brackets(text));
    } else {
        let end = text.find(':').unwrap_or(text.len());
        (&text[..end], end)
    };
    let host_span = start + usize::from(text.starts_with('['))..start + usize::from(text.starts_with('[')) + host.len();
    let host = host_name(host, host_span, text.starts_with('['))?;
    let rest = &text[port_at..];
    if rest.is_empty() {
        return Ok(HostPort { host, port: transport.default_port() });
    }
    let Some(port) = rest.strip_prefix(':') else {
        return error(
            start + port_at..all.end,
            format!("`{rest}` does not belong behind the host"),
            "a `:` and a port may",
        );
    };
    let port = port_number(port, start + port_at + 1..all.end)?;
    Ok(HostPort { host, port })
}

/// How an IPv6 address that stands without brackets is written. Its last part may be a port, or look like one.
fn in_brackets(text: &str) -> String {
    let is_address = |text: &str| text.parse::<Ipv6Addr>().is_ok();
    let (address, port) = text.rsplit_once(':').unwrap_or((text, ""));
    match (is_address(text), is_address(address)) {
        (true, true) => format!("write `[{address}]:{port}` if {port} is the port, else `[{text}]`"),
        (true, false) => format!("an IPv6 address is written `[{text}]`"),
        (false, true) => format!("an IPv6 address and a port are written `[{address}]:{port}`"),
        (false, false) => "write `HOST:PORT`, or `[ADDRESS]:PORT` of an IPv6 address".into(),
    }
}

fn host_name(host: &str, at: Range<usize>, bracketed: bool) -> Result<String, AddressError> {
    if bracketed {
        return match host.parse::<Ipv6Addr>() {
            Ok(address) => Ok(address.to_string()),
            Err(_) => error(at, format!("`{host}` is not an IPv6 address"), "only IPv6 addresses stand in brackets"),
        };
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_'))
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    // A last label of digits alone would be an address (RFC 3696 2), and one with an error in it.
    let looks_like_address =
        name.rsplit('.').next().is_some_and(|last| last.bytes().all(|octet| octet.is_ascii_digit()));
    if looks_like_address {
        return error(
            at,
            format!("`{host}` is not an IPv4 address"),
            "four numbers from 0 to 255, with dots between them",
        );
    }
    if name.len() > 253 || !name.split('.').all(is_label) {
        return error(at, format!("`{host}` is not a host name"), "letters, digits, `-` and `.`");
    }
    Ok(name.to_ascii_lowercase())
}

fn port_number(port: &str, at: Range<usize>) -> Result<u16, AddressError> {
    match port.parse::<u16>() {
        Ok(0) => error(at, "port 0 is no port", "a number from 1 to 65535"),
        Ok(number) if port.bytes().all(|octet| octet.is_ascii_digit()) => Ok(number),
        _ if port.is_empty() => {
            error(at.start - 1..at.end, "the port is missing", "a number from 1 to 65535 behind the `:`")
        }
        _ if port.bytes().all(|octet| octet.is_ascii_digit()) => {
            error(at, format!("port {port} is too large"), "a number from 1 to 65535")
        }
        _ if port.contains(['O', 'o']) && port.replace(['O', 'o'], "0").parse::<u16>().is_ok() => {
            let place = at.start + port.find(['O', 'o']).unwrap_or(0);
            let title = format!("port `{port}` is not a number");
            error(
                place..place + 1,
                title,
                format!("the letter {}, not the digit 0", &port[place - at.start..=place - at.start]),
            )
        }
        _ => error(at, format!("port `{port}` is not a number"), "a number from 1 to 65535"),
    }
}

/// `udp:ADDRESS:PORT`, likewise `tcp:`, `tls:`, `ws:` and `wss:`. The address is one of this machine, or a wildcard: `0.0.0.0`, `[::]`.
pub fn listen(text: &str) -> Result<(Transport, SocketAddr), AddressError> {
    let Some((transport, rest)) = text.split_once(':') else {
        return error(0..text.len(), format!("`{text}` is not an address to listen on"), "write `udp:ADDRESS:PORT`");
    };
    let start = transport.len() + 1;
    let transport = match transport {
        "udp" => Transport::Udp,
        "tcp" => Transport::Tcp,
        "tls" => Transport::Tls,
        "ws" => Transport::Ws,
        "wss" => Transport::Wss,
        // A word before something that is no port was meant as a transport; all else is an address without one.
        word if !word.is_empty()
            && word.bytes().all(|octet| octet.is_ascii_alphabetic())
            && !rest.starts_with(':')
            && !rest.bytes().all(|octet| octet.is_ascii_digit()) =>
        {
            let label = did_you_mean(&word.to_ascii_lowercase(), &["udp", "tcp", "tls", "ws", "wss"]);
            return error(0..word.len(), format!("`{word}` is no transport"), label);
        }
        _ => {
            return error(0..text.len(), format!("`{text}` does not say its transport"), format!("write `udp:{text}`"));
        }
    };
    let parsed = host_port_at(rest, start, transport)?;
    match parsed.address() {
        Some(address) => Ok((transport, address)),
        None => {
            let end = start + parsed.host.len();
            let label = "an address of this machine, or `0.0.0.0` for all of them";
            error(start..end, format!("`{}` is a name", parsed.host), label)
        }
    }
}

/// A backend's URI: `sip:HOST`, `sip:HOST:PORT`, with `;transport=tcp` or `;transport=tls` if it is to be reached so;
/// `sips:` means TLS by itself. In capitals all of it means the same (RFC 3261 19.1.4).
pub fn backend_uri(text: &str) -> Result<(HostPort, Transport), AddressError> {
    let is_sip = |scheme: &str| scheme.eq_ignore_ascii_case("sip") || scheme.eq_ignore_ascii_case("sips");
    let Some((scheme, rest)) = text.split_once(':').filter(|(scheme, _)| is_sip(scheme)) else {
        return error(0..text.len(), format!("`{text}` is not a SIP URI"), format!("write `sip:{text}`"));
    };
    let is_secure = scheme.eq_ignore_ascii_case("sips");
    let begin = scheme.len() + 1;
    let (authority, params) = rest.split_once(';').map_or((rest, ""), |(authority, params)| (authority, params));
    if let Some(at) = authority.find('@') {
        return error(begin..begin + at + 1, "a backend is a server, without a user", "leave this out");
    }
    if let Some(at) = authority.find('?') {
        return error(begin + at..begin + authority.len(), "a backend has no headers", "leave this out");
    }
    let mut next = begin + authority.len() + 1;
    let mut transport = if is_secure { Transport::Tls } else { Transport::Udp };
    for param in params.split(';') {
        let at = next..next + param.len();
        next = at.end + 1;
        match param.to_ascii_lowercase().split_once('=') {
            None if param.is_empty() => {}
            // RFC 3261 26.2.2: TLS is what `sips:` asks for, and TCP what is below it.
            Some(("transport", "tcp" | "tls")) if is_secure => {}
            Some(("transport", "udp")) if is_secure => {
                return error(at, "`sips:` goes over TLS, and TLS not over UDP", "leave this out");
            }
            Some(("transport", "udp")) => transport = Transport::Udp,
            Some(("transport", "tcp")) => transport = Transport::Tcp,
            Some(("transport", "tls")) => transport = Transport::Tls,
            Some(("transport", other)) => {
                let label = "this version sends to backends over `udp`, `tcp` and `tls` only";
                return error(at, format!("transport `{other}` is not available"), label);
            }
            _ => {
                let label = "only `transport=udp`, `transport=tcp` or `transport=tls` can stand here";
                return error(at, format!("unknown URI parameter `{param}`"), label);
            }
        }
    }
    Ok((host_port_at(authority, begin, transport)?, transport))
}

/// The URI of a domain whose servers are backends, written as that of one: its name, its port if one is written, and how messages
/// get there.
pub fn domain_uri(text: &str) -> Result<(String, Option<u16>, Transport), AddressError> {
    let (HostPort { host, port }, transport) = backend_uri(text)?;
    let authority = text.split(';').next().unwrap_or(text);
    let begin = authority.find(':').map_or(0, |colon| colon + 1);
    if host.parse::<IpAddr>().is_ok() {
        let label = "DNS is asked for the servers of a domain: of an address, write `backend`";
        return error(begin..authority.len(), format!("`{host}` is an address"), label);
    }
    Ok((host, authority[begin..].contains(':').then_some(port), transport))
}

/// `ADDRESS` or `ADDRESS:PORT` of a name server; without a port, 53.
pub fn nameserver(text: &str) -> Result<SocketAddr, AddressError> {
    let bare = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
    match text.parse().ok().or(bare.ok()) {
        Some(address) => Ok(address),
        None => error(0..text.len(), format!("`{text}` is not an address"), "write `ADDRESS` or `ADDRESS:PORT`"),
    }
}

/// `ADDRESS/BITS`, or an address alone.
pub fn network(text: &str) -> Result<Network, AddressError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Network { address, prefix: if address.is_ipv4() { 32 } else { 128 } });
    }
    match text.parse::<ipnet::IpNet>() {
        Ok(network) => Ok(Network { address: network.addr(), prefix: network.prefix_len() }),
        Err(_) => {
            error(0..text.len(), format!("`{text}` is not a network"), "write it like `10.0.0.0/8` or `2001:db8::/32`")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(host: &str, port: u16) -> HostPort {
        HostPort { host: host.into(), port }
    }

    #[test]
    fn addresses_are_read_as_written() {
        assert_eq!(host_port("Example.NET."), Ok(host("example.net", 5060)));
        assert_eq!(host_port("10.0.0.1:5070"), Ok(host("10.0.0.1", 5070)));
        assert_eq!(host_port("[2001:DB8::1]:5061"), Ok(host("2001:db8::1", 5061)));
        assert_eq!(host("2001:db8::1", 5061).to_string(), "[2001:db8::1]:5061");
        assert_eq!(listen("udp:0.0.0.0:5060"), Ok((Transport::Udp, "0.0.0.0:5060".parse().unwrap())));
        assert_eq!(listen("tcp:[::]"), Ok((Transport::Tcp, "[::]:5060".parse().unwrap())));
        assert_eq!(backend_uri("sip:a.example.net;transport=udp"), Ok((host("a.example.net", 5060), Transport::Udp)));
        assert_eq!(backend_uri("sip:10.0.0.1:5070;transport=tcp"), Ok((host("10.0.0.1", 5070), Transport::Tcp)));
        assert_eq!(listen("tls:[::1]"), Ok((Transport::Tls, "[::1]:5061".parse().unwrap())));
        assert_eq!(listen("wss:127.0.0.1"), Ok((Transport::Wss, "127.0.0.1:443".parse().unwrap())));
        assert_eq!(backend_uri("SIP:A;Transport=TCP"), Ok((host("a", 5060), Transport::Tcp)));
        for uri in ["sip:a:5061;transport=tls", "sip:a;transport=tls", "sips:a", "SIPS:a;transport=TCP"] {
            assert_eq!(backend_uri(uri), Ok((host("a", 5061), Transport::Tls)), "{uri}");
        }
        assert_eq!(domain_uri("sip:Example.NET"), Ok(("example.net".into(), None, Transport::Udp)));
        assert_eq!(domain_uri("sips:a:5063"), Ok(("a".into(), Some(5063), Transport::Tls)));
        assert_eq!(nameserver("127.0.0.1"), Ok("127.0.0.1:53".parse().unwrap()));
        assert_eq!(nameserver("[::1]:8600"), Ok("[::1]:8600".parse().unwrap()));
        assert_eq!(nameserver("::1"), Ok("[::1]:53".parse().unwrap()));
        assert_eq!(network("10.1.2.3/8").unwrap().prefix, 8);
        assert_eq!(network("::1").unwrap().prefix, 128);
        assert_eq!(network("10.0.0.1").unwrap().prefix, 32);
    }

    #[test]
    fn hosts_are_names_of_dns_and_addresses_and_nothing_else() {
        let label = |len: usize| "a".repeat(len);
        let longest = format!("{}.{}.{}.{}", label(63), label(63), label(63), label(61));
        for good in ["my-sbc_1.example.net", "a.1b", &label(63), &longest] {
            assert_eq!(host_port(good), Ok(host(good, 5060)));
        }
        for bad in
            ["a..b", ".a", "a b", "a/b", "b\u{fc}ro", "1.2.3", "[10.0.0.1]", "[a]", &label(64), &format!("{longest}a")]
        {
            assert!(host_port(bad).is_err(), "{bad}");
        }
        for bad in ["http:a", "ws:a", "sip:a?x=y", "sip:a:+5060", "sip:a:5O60x", "sip:", "sip:a;lr"] {
            assert!(backend_uri(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn errors_point_at_the_octets_that_are_wrong() {
        let rows = [
            (backend_uri("sip:10.0.0.12:506O").unwrap_err(), 17..18, "the letter O, not the digit 0"),
            (backend_uri("sip:10.0.0.12:70000").unwrap_err(), 14..19, "a number from 1 to 65535"),
            (backend_uri("sip:10.0.0.12:").unwrap_err(), 13..14, "a number from 1 to 65535 behind the `:`"),
            (backend_uri("sip:10.0.0.256").unwrap_err(), 4..14, "four numbers from 0 to 255, with dots between them"),
            (backend_uri("10.0.0.1").unwrap_err(), 0..8, "write `sip:10.0.0.1`"),
            (backend_uri("sip:bob@10.0.0.1").unwrap_err(), 4..8, "leave this out"),
            (backend_uri("sip:2001:db8::1").unwrap_err(), 4..15, "an IPv6 address is written `[2001:db8::1]`"),
            (
                backend_uri("sip:::1:5060").unwrap_err(),
                4..12,
                "write `[::1]:5060` if 5060 is the port, else `[::1:5060]`",
            ),
            (backend_uri("sip:a:b:c").unwrap_err(), 4..9, "write `HOST:PORT`, or `[ADDRESS]:PORT` of an IPv6 address"),
            (
                backend_uri("sip:a;;;transport=ws").unwrap_err(),
                8..20,
                "this version sends to backends over `udp`, `tcp` and `tls` only",
            ),
            (
                backend_uri("sip:a;transport=ws").unwrap_err(),
                6..18,
                "this version sends to backends over `udp`, `tcp` and `tls` only",
            ),
            (backend_uri("sips:a;transport=udp").unwrap_err(), 7..20, "leave this out"),
            (backend_uri("sips:a:506O").unwrap_err(), 10..11, "the letter O, not the digit 0"),
            (
                domain_uri("sip:10.0.0.1:5060;transport=tcp").unwrap_err(),
                4..17,
                "DNS is asked for the servers of a domain: of an address, write `backend`",
            ),
            (nameserver("dns.example.net").unwrap_err(), 0..15, "write `ADDRESS` or `ADDRESS:PORT`"),
            (listen("0.0.0.0:5060").unwrap_err(), 0..12, "write `udp:0.0.0.0:5060`"),
            (listen("localhost:5060").unwrap_err(), 0..14, "write `udp:localhost:5060`"),
            (listen("sctp:0.0.0.0").unwrap_err(), 0..4, "there are: `udp`, `tcp`, `tls`, `ws`, `wss`"),
            (listen("upd:0.0.0.0:5060").unwrap_err(), 0..3, "there are: `udp`, `tcp`, `tls`, `ws`, `wss`"),
            (listen("UDP:0.0.0.0:5060").unwrap_err(), 0..3, "did you mean `udp`?"),
            (
                listen("udp:sip.example.net").unwrap_err(),
                4..19,
                "an address of this machine, or `0.0.0.0` for all of them",
            ),
        ];
        for (error, at, label) in rows {
            assert_eq!((error.at, &error.label[..]), (at, label), "{}", error.title);
        }
    }
}
