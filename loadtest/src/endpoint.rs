//! Addresses as users write them: `udp:127.0.0.1:6000-6003` to listen on, `sip:proxy.example.net:5060` to send to.

use std::net::{SocketAddr, ToSocketAddrs};

/// Port of SIP where none is written (RFC 3261 19.1.2).
pub const SIP_PORT: u16 = 5060;

/// Sockets that one range of ports may open. More is a typing error more often than a wish.
const RANGE_MAX: usize = 4096;

/// Reads `[udp:]ADDRESS[:PORT[-PORT]]`: one socket address per port.
pub fn parse_listen(text: &str) -> Result<Vec<SocketAddr>, String> {
    let rest = strip_transport(text)?;
    let (host, ports) = split_port(rest)?;
    let (first, last) = match ports {
        None => (SIP_PORT, SIP_PORT),
        Some(ports) => match ports.split_once('-') {
            Some((first, last)) => (parse_port(first)?, parse_port(last)?),
            None => (parse_port(ports)?, parse_port(ports)?),
        },
    };
    if first > last {
        return Err(format!("the range {first}-{last} runs backwards; write {last}-{first}"));
    }
    if usize::from(last - first) >= RANGE_MAX {
        return Err(format!("{first}-{last} are {} ports; at most {RANGE_MAX} are opened", last - first + 1));
    }
    let ip = resolve(host, first)?.ip();
    Ok((first..=last).map(|port| SocketAddr::new(ip, port)).collect())
}

/// Reads a target: `sip:HOST[:PORT]`, or just `HOST[:PORT]`. A name is looked up once, here.
pub fn parse_target(text: &str) -> Result<SocketAddr, String> {
    let rest = match text.split_once(':') {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("sip") => rest,
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("sips") => {
            return Err("sips: needs TLS, which this load generator does not speak; use sip:".to_owned());
        }
        _ => strip_transport(text)?,
    };
    let (address, params) = rest.split_once(';').unwrap_or((rest, ""));
    for param in params.split(';').filter(|param| !param.is_empty()) {
        if !param.eq_ignore_ascii_case("transport=udp") && !param.eq_ignore_ascii_case("lr") {
            return Err(format!("`;{param}` is not understood; the load goes over UDP"));
        }
    }
    let address = address.rsplit_once('@').map_or(address, |(_, host)| host);
    let (host, port) = split_port(address)?;
    resolve(host, port.map_or(Ok(SIP_PORT), parse_port)?)
}

fn strip_transport(text: &str) -> Result<&str, String> {
    match text.split_once(':') {
        Some((transport, rest)) if transport.eq_ignore_ascii_case("udp") => Ok(rest),
        Some((transport, _))
            if ["tcp", "tls", "ws", "wss", "sctp"].iter().any(|other| transport.eq_ignore_ascii_case(other)) =>
        {
            Err(format!("{transport} is not spoken here; the load goes over UDP: udp:ADDRESS:PORT"))
        }
        _ => Ok(text),
    }
}

/// `[::1]:5060` into `::1` and `5060`; a bare IPv6 address has no port.
fn split_port(text: &str) -> Result<(&str, Option<&str>), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or_else(|| format!("`{text}` has no closing bracket"))?;
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if after.is_empty() => Ok((host, None)),
            None => Err(format!("`{after}` after the bracket is not a port")),
        };
    }
    match text.rsplit_once(':') {
        Some((host, _)) if host.contains(':') => Ok((text, None)),
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((text, None)),
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| match text.bytes().find(|octet| matches!(octet, b'O' | b'o')) {
        Some(_) => format!("`{text}` has a letter O where a digit 0 is meant"),
        None => format!("`{text}` is not a port (0 to 65535)"),
    })
}

fn resolve(host: &str, port: u16) -> Result<SocketAddr, String> {
    if host.is_empty() {
        return Err("the address is missing; write 127.0.0.1 or a name".to_owned());
    }
    if let Ok(ip) = host.parse() {
        return Ok(SocketAddr::new(ip, port));
    }
    let mut found = (host, port).to_socket_addrs().map_err(|error| format!("`{host}` is not found: {error}"))?;
    found.next().ok_or_else(|| format!("`{host}` has no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_ports_is_one_address_each() {
        let addresses = parse_listen("udp:127.0.0.1:6000-6003").unwrap();
        assert_eq!(addresses.len(), 4);
        assert_eq!(addresses[3], "127.0.0.1:6003".parse().unwrap());
        assert_eq!(parse_listen("[::1]:5070").unwrap(), ["[::1]:5070".parse().unwrap()]);
        assert_eq!(parse_listen("127.0.0.1").unwrap(), ["127.0.0.1:5060".parse().unwrap()]);
    }

    #[test]
    fn a_target_is_a_uri_or_an_address() {
        for text in [
            "sip:127.0.0.1:5060",
            "SIP:bob@127.0.0.1",
            "udp:127.0.0.1:5060",
            "127.0.0.1",
            "sip:127.0.0.1;transport=udp",
        ] {
            assert_eq!(parse_target(text), Ok("127.0.0.1:5060".parse().unwrap()), "{text}");
        }
        assert_eq!(parse_target("sip:[::1]"), Ok("[::1]:5060".parse().unwrap()));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, said) in [
            ("udp:127.0.0.1:6003-6000", "backwards"),
            ("udp:127.0.0.1:506O", "letter O"),
            ("tcp:127.0.0.1:5060", "UDP"),
            ("udp:127.0.0.1:99999", "not a port"),
            ("udp:[::1:5060", "bracket"),
            ("udp:127.0.0.1:1-60000", "at most"),
        ] {
            let error = parse_listen(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        assert!(parse_target("sips:127.0.0.1").unwrap_err().contains("TLS"));
        assert!(parse_target("sip:127.0.0.1;transport=tcp").unwrap_err().contains("UDP"));
    }
}
