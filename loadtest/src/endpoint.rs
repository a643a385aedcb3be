//! Addresses as users write them: `udp:127.0.0.1:6000-6003` to listen on, `sip:proxy.example.net:5060;transport=tcp` to send to.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};

/// Port of SIP where none is written (RFC 3261 19.1.2).
pub const SIP_PORT: u16 = 5060;

/// The same, over TLS.
pub const SIPS_PORT: u16 = 5061;

/// Sockets that one range of ports may open. More is a typing error more often than a wish.
const RANGE_MAX: usize = 4096;

/// What carries messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Connections, on which messages follow each other without a gap.
    Tcp,
    /// The same, encrypted.
    Tls,
    /// Datagrams, each a message.
    #[default]
    Udp,
    /// Connections, on which each message has a frame of its own, as pages in browsers have them (RFC 7118).
    Ws,
    /// The same, encrypted.
    Wss,
}

impl Transport {
    /// Whether it delivers what it takes, so that no transaction sends anything again (RFC 3261 17).
    pub fn is_reliable(self) -> bool {
        self != Transport::Udp
    }

    /// As a Via has it.
    pub fn in_via(self) -> &'static str {
        match self {
            Transport::Tcp => "TCP",
            Transport::Tls => "TLS",
            Transport::Udp => "UDP",
            Transport::Ws => "WS",
            Transport::Wss => "WSS",
        }
    }

    /// Whether it is encrypted.
    pub fn has_tls(self) -> bool {
        matches!(self, Transport::Tls | Transport::Wss)
    }

    /// Whether messages are in frames of WebSockets.
    pub fn is_websocket(self) -> bool {
        matches!(self, Transport::Ws | Transport::Wss)
    }

    /// What a URI says about it: nothing of the usual one. One name stands for both kinds of WebSockets (RFC 7118 5.2.2).
    pub fn uri_param(self) -> &'static str {
        match self {
            Transport::Tcp => ";transport=tcp",
            Transport::Tls => ";transport=tls",
            Transport::Udp => "",
            Transport::Ws | Transport::Wss => ";transport=ws",
        }
    }

    /// The port where none is written.
    pub fn port(self) -> u16 {
        match self {
            Transport::Tcp | Transport::Udp => SIP_PORT,
            Transport::Tls => SIPS_PORT,
            Transport::Ws => 80,
            Transport::Wss => 443,
        }
    }

    /// The one of this name.
    pub fn read(name: &str) -> Option<Transport> {
        [Transport::Tcp, Transport::Tls, Transport::Udp, Transport::Ws, Transport::Wss]
            .into_iter()
            .find(|known| known.in_via().eq_ignore_ascii_case(name))
    }
}

/// `tcp`, as listeners are written.
impl fmt::Display for Transport {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.pad(match self {
            Transport::Tcp => "tcp",
            Transport::Tls => "tls",
            Transport::Udp => "udp",
            Transport::Ws => "ws",
            Transport::Wss => "wss",
        })
    }
}

/// An address and how to speak to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// How.
    pub transport: Transport,
    /// Where.
    pub address: SocketAddr,
}

/// `tcp:127.0.0.1:5060`.
impl fmt::Display for Endpoint {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}:{}", self.transport, self.address)
    }
}

/// Over UDP.
impl<A: Into<SocketAddr>> From<A> for Endpoint {
    fn from(address: A) -> Endpoint {
        Endpoint { transport: Transport::Udp, address: address.into() }
    }
}

/// Reads `[udp:|tcp:|tls:]ADDRESS[:PORT[-PORT]]`: one endpoint per port.
pub fn parse_listen(text: &str) -> Result<Vec<Endpoint>, String> {
    let (transport, rest) = split_transport(text)?;
    let transport = transport.unwrap_or_default();
    if transport.is_websocket() {
        return Err("servers behind an element are not reached by WebSocket; listen on udp:, tcp: or tls:".to_owned());
    }
    let (host, ports) = split_port(rest)?;
    let (first, last) = match ports {
        None => (transport.port(), transport.port()),
        Some(ports) => match ports.split_once('-') {
            Some((first, last)) => (parse_port(first)?, parse_port(last)?),
            None => (parse_port(ports)?, parse_port(ports)?),
        },
    };
    if first > last {
        return Err(format!("the range {first}-{last} runs backwards; write {last}-{first}"));
    }
    let ports = usize::from(last - first) + 1;
    if ports > RANGE_MAX {
        return Err(format!("{first}-{last} are {ports} ports; at most {RANGE_MAX} are opened"));
    }
    let ip = resolve(host, first)?.ip();
    Ok((first..=last).map(|port| Endpoint { transport, address: SocketAddr::new(ip, port) }).collect())
}

/// Reads a target: `sip:HOST[:PORT][;transport=tcp|tls|ws|wss]`, `sips:HOST[:PORT]`, `tcp:HOST[:PORT]`, or just `HOST[:PORT]`. A
/// name is looked up once, here.
pub fn parse_target(text: &str) -> Result<Endpoint, String> {
    let (mut transport, rest) = match text.split_once(':') {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("sip") => (None, rest),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("sips") => (Some(Transport::Tls), rest),
        _ => split_transport(text)?,
    };
    let (address, params) = rest.split_once(';').unwrap_or((rest, ""));
    for param in params.split(';').filter(|param| !param.is_empty()) {
        let (name, value) = param.split_once('=').unwrap_or((param, ""));
        if name.eq_ignore_ascii_case("lr") && value.is_empty() {
            continue;
        }
        let known = if name.eq_ignore_ascii_case("transport") { Transport::read(value) } else { None };
        let Some(known) = known else {
            return Err(format!(
                "`;{param}` is not understood; the load goes over UDP, TCP, TLS or WebSocket: ;transport=tcp"
            ));
        };
        // `sips:…;transport=ws` says wss.
        let is_wss = transport == Some(Transport::Tls) && known.is_websocket();
        let known = if is_wss { Transport::Wss } else { known };
        if transport.replace(known).is_some_and(|before| before != known && !is_wss) {
            return Err(format!("`;{param}` contradicts what stands before the address"));
        }
    }
    let address = address.rsplit_once('@').map_or(address, |(_, host)| host);
    let (host, port) = split_port(address)?;
    let transport = transport.unwrap_or_default();
    let address = resolve(host, port.map_or(Ok(transport.port()), parse_port)?)?;
    Ok(Endpoint { transport, address })
}

fn split_transport(text: &str) -> Result<(Option<Transport>, &str), String> {
    let Some((name, rest)) = text.split_once(':') else { return Ok((None, text)) };
    if let Some(transport) = Transport::read(name) {
        return Ok((Some(transport), rest));
    }
    if name.eq_ignore_ascii_case("sctp") {
        return Err(format!(
            "{name} is not spoken here; the load goes over UDP, TCP, TLS or WebSocket: udp:ADDRESS:PORT, tcp:ADDRESS:PORT"
        ));
    }
    Ok((None, text))
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

    fn udp(address: &str) -> Endpoint {
        address.parse::<SocketAddr>().unwrap().into()
    }

    fn tcp(address: &str) -> Endpoint {
        Endpoint { transport: Transport::Tcp, ..udp(address) }
    }

    #[test]
    fn a_range_of_ports_is_one_address_each() {
        let addresses = parse_listen("udp:127.0.0.1:6000-6003").unwrap();
        assert_eq!(addresses.len(), 4);
        assert_eq!(addresses[3], udp("127.0.0.1:6003"));
        assert_eq!(parse_listen("[::1]:5070").unwrap(), [udp("[::1]:5070")]);
        assert_eq!(parse_listen("127.0.0.1").unwrap(), [udp("127.0.0.1:5060")]);
        assert_eq!(parse_listen("tcp:127.0.0.1:6000-6001").unwrap(), [tcp("127.0.0.1:6000"), tcp("127.0.0.1:6001")]);
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
            assert_eq!(parse_target(text), Ok(udp("127.0.0.1:5060")), "{text}");
        }
        for text in ["sip:127.0.0.1;transport=tcp", "sip:127.0.0.1:5060;lr;Transport=TCP", "tcp:127.0.0.1"] {
            assert_eq!(parse_target(text), Ok(tcp("127.0.0.1:5060")), "{text}");
        }
        assert_eq!(parse_target("sip:[::1]"), Ok(udp("[::1]:5060")));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, said) in [
            ("udp:127.0.0.1:6003-6000", "backwards"),
            ("udp:127.0.0.1:506O", "letter O"),
            ("ws:127.0.0.1:5060", "not reached by WebSocket"),
            ("sctp:127.0.0.1:5060", "UDP, TCP, TLS or WebSocket"),
            ("udp:127.0.0.1:99999", "not a port"),
            ("udp:[::1:5060", "bracket"),
            ("udp:127.0.0.1:1-60000", "at most"),
            ("udp:127.0.0.1:0-65535", "are 65536 ports"),
        ] {
            let error = parse_listen(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        let tls = Endpoint { transport: Transport::Tls, ..udp("127.0.0.1:5061") };
        for text in ["sips:127.0.0.1", "sip:127.0.0.1;transport=tls", "tls:127.0.0.1:5061"] {
            assert_eq!(parse_target(text), Ok(tls), "{text}");
        }
        assert_eq!(parse_listen("tls:127.0.0.1").unwrap(), [tls]);
        let ws = |transport, port| Ok(Endpoint { transport, ..udp(&format!("127.0.0.1:{port}")) });
        assert_eq!(parse_target("sip:127.0.0.1;transport=ws"), ws(Transport::Ws, 80));
        for text in ["sips:127.0.0.1;transport=ws", "sip:127.0.0.1;transport=wss", "sips:127.0.0.1;transport=wss"] {
            assert_eq!(parse_target(text), ws(Transport::Wss, 443), "{text}");
        }
        assert!(parse_target("tcp:127.0.0.1;transport=wss").unwrap_err().contains("contradicts"));
        assert!(parse_target("sip:127.0.0.1;transport=sctp").unwrap_err().contains("UDP, TCP, TLS or WebSocket"));
        assert!(parse_target("udp:127.0.0.1;transport=tcp").unwrap_err().contains("contradicts"));
    }
}
