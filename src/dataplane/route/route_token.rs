//! The token in our Record-Route and Path: what later requests need from us, travelling in their route set instead of in
//! our memory.
//!
//! ```text
//! Record-Route: <sip:192.0.2.100:5060;lr;vh=TOKEN>
//! Path: <sip:192.0.2.100:5060;lr;vh=TOKEN;ob>
//!
//! TOKEN, in hexadecimal:
//!   1 octet    key id (low four bits), flags: 16 = IPv6, 32 = local address present, 64 = one of two (RFC 5658),
//!              128 = a flow (Path), not a dialog (Record-Route)
//!   1          the listener that faces the client
//!   4          of a dialog: the backend, by a digest of its name, the same on every node and after every reload
//!   4 or 16    the client's address
//!   2          the client's port
//!   0, 4, 16   the local address towards the client, if the listener is bound to a wildcard
//!   0, 8       the client's connection, if it has one
//!   8          MAC over the above and, of a dialog, the Call-ID
//! ```
//!
//! A request from outside goes to the backend it names, a request from inside to the client: whatever the table says by
//! then, after a restart, and on another node with the same secret. There is no time in it, no sequence and no random
//! number: a retransmission leaves with the same octets (RFC 3261 16.11). The Call-ID binds a dialog's token to its dialog,
//! so that nobody can take it to another; that of a Path is for every request that will ever go to this registration.
//!
//! What it says is advice where a backend is concerned (`super`: it may be gone), and authority where a client is: from
//! inside, a token that fails its MAC is refused, since it would choose where a datagram goes.

use crate::dataplane::keys::Keys;
use crate::dataplane::text::Text;
use crate::dataplane::token::{Flow, hex};
use crate::dataplane::transport::StreamId;
use std::net::{IpAddr, SocketAddr};

/// What a route set remembers for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteToken {
    /// What it was written for.
    pub purpose: Purpose,
    /// The way to the client. Its listener is known: requests of clients come to one.
    pub client: Flow,
    /// Whether a second value of ours stands beside this one, for the other side's address family or listener.
    pub is_double: bool,
}

/// What a token was written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Record-Route: the dialog stays with this backend, named by the digest of its name.
    Dialog {
        /// See [`Backend::id`](crate::dataplane::tables::Backend::id).
        backend: u32,
    },
    /// Path: requests to this registration take this way (RFC 3327, RFC 5626 5.3).
    Flow,
}

const IPV6: u8 = 1 << 4;
const LOCAL: u8 = 1 << 5;
const DOUBLE: u8 = 1 << 6;
const FLOW: u8 = 1 << 7;
const MAC_LEN: usize = 8;
/// Octets of the longest token, before they become letters.
const OCTETS_MAX: usize = 2 + 4 + 16 + 2 + 16 + StreamId::LEN + MAC_LEN;

/// Name of the URI parameter that holds it.
pub const PARAM: &[u8] = b"vh";

impl RouteToken {
    /// Writes this token into a request whose Call-ID is `call_id`.
    pub fn write(&self, out: &mut Text<'_>, keys: &Keys, call_id: &[u8]) {
        let mut octets = [0; OCTETS_MAX];
        let ipv6 = self.client.to.is_ipv6();
        let is_flow = self.purpose == Purpose::Flow;
        let flags = [(ipv6, IPV6), (self.client.local.is_some(), LOCAL), (self.is_double, DOUBLE), (is_flow, FLOW)];
        let flags = flags.iter().filter(|flag| flag.0).fold(keys.current(), |flags, flag| flags | flag.1);
        let mut len = 0;
        let mut push = |part: &[u8]| {
            if let Some(place) = octets.get_mut(len..len + part.len()) {
                place.copy_from_slice(part);
                len += part.len();
            }
        };
        push(&[flags, self.client.listener.unwrap_or(u8::MAX)]);
        if let Purpose::Dialog { backend } = self.purpose {
            push(&backend.to_be_bytes());
        }
        push_address(&mut push, self.client.to.ip(), ipv6);
        push(&self.client.to.port().to_be_bytes());
        if let Some(local) = self.client.local {
            push_address(&mut push, local, ipv6);
        }
        if let Some(stream) = self.client.stream {
            push(&stream.octets());
        }
        let said = octets.get(..len).unwrap_or_default();
        let mac = mac(keys, keys.current(), said, self.client.stream.is_some(), call_id).unwrap_or_default();
        let Some(place) = octets.get_mut(len..len + MAC_LEN) else { return };
        place.copy_from_slice(&mac.to_be_bytes());
        hex::encode(out, octets.get(..len + MAC_LEN).unwrap_or_default());
    }

    /// Reads the token `text` in a request whose Call-ID is `call_id`. `None` if we did not write it, or for another dialog.
    pub fn read(text: &[u8], keys: &Keys, call_id: &[u8]) -> Option<RouteToken> {
        let mut octets = [0; OCTETS_MAX];
        let len = hex::decode(text, &mut octets)?;
        let (said, mac_octets) = octets.get(..len)?.split_last_chunk::<MAC_LEN>()?;
        let (&[flags, listener], rest) = said.split_first_chunk()?;
        let (purpose, rest) = if flags & FLOW != 0 {
            (Purpose::Flow, rest)
        } else {
            let (&backend, rest) = rest.split_first_chunk()?;
            (Purpose::Dialog { backend: u32::from_be_bytes(backend) }, rest)
        };
        let (address, rest) = read_address(rest, flags)?;
        let (&port, rest) = rest.split_first_chunk()?;
        let (local, rest) = if flags & LOCAL != 0 {
            let (local, rest) = read_address(rest, flags)?;
            (Some(local), rest)
        } else {
            (None, rest)
        };
        // Every flag is in use: that there is a connection is told by there being eight octets more.
        let stream = match rest {
            [] => None,
            rest => Some(StreamId::from_octets(rest.try_into().ok()?)?),
        };
        if mac(keys, flags & 0x0f, said, stream.is_some(), call_id)? != u64::from_be_bytes(*mac_octets) {
            return None;
        }
        let to = SocketAddr::new(address, u16::from_be_bytes(port));
        let client = Flow { listener: Some(listener), to, local, stream };
        Some(RouteToken { purpose, client, is_double: flags & DOUBLE != 0 })
    }

    /// Whether `text`, which does not verify, looks like the token of a Path: its first bit is set.
    pub fn claims_flow(text: &[u8]) -> bool {
        text.first().is_some_and(|letter| matches!(letter, b'8' | b'9' | b'a'..=b'f' | b'A'..=b'F'))
    }
}

/// Both addresses of a flow are of one family: a socket has one.
fn push_address(push: &mut impl FnMut(&[u8]), address: IpAddr, as_ipv6: bool) {
    match (address, as_ipv6) {
        (IpAddr::V4(address), false) => push(&address.octets()),
        (IpAddr::V4(address), true) => push(&address.to_ipv6_mapped().octets()),
        (IpAddr::V6(address), _) => push(&address.octets()),
    }
}

fn read_address(octets: &[u8], flags: u8) -> Option<(IpAddr, &[u8])> {
    if flags & IPV6 != 0 {
        let (&address, rest) = octets.split_first_chunk::<16>()?;
        return Some((IpAddr::from(address), rest));
    }
    let (&address, rest) = octets.split_first_chunk::<4>()?;
    Some((IpAddr::from(address), rest))
}

/// The label keeps it apart from the MACs of Vias and To tags, and a token with a connection from one without. The first
/// octet says whether the Call-ID counts.
fn mac(keys: &Keys, id: u8, said: &[u8], has_stream: bool, call_id: &[u8]) -> Option<u64> {
    let is_flow = said.first().is_some_and(|flags| flags & FLOW != 0);
    let label: &[u8] = if has_stream { b"route-stream" } else { b"route" };
    keys.mac(id, [label, said, if is_flow { b"" } else { call_id }], 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::new(&[1; 16], &[2; 16], &[3; 16], 5)
    }

    fn dialog(client: &str, local: Option<&str>) -> RouteToken {
        let local = local.map(|text| text.parse().unwrap());
        let client = Flow { listener: Some(2), to: client.parse().unwrap(), local, stream: None };
        RouteToken { purpose: Purpose::Dialog { backend: 0x0a0b_0c0d }, client, is_double: local.is_some() }
    }

    fn on_stream(one: RouteToken) -> RouteToken {
        let client = Flow { stream: StreamId::new(1, 2, 0x0a0b_0c0d), ..one.client };
        RouteToken { client, ..one }
    }

    fn flow(client: &str) -> RouteToken {
        RouteToken { purpose: Purpose::Flow, ..dialog(client, None) }
    }

    fn written(token: &RouteToken) -> Vec<u8> {
        let mut room = [0; 256];
        let mut out = Text::new(&mut room);
        token.write(&mut out, &keys(), b"call-1");
        out.finish().unwrap().to_vec()
    }

    #[test]
    fn what_is_written_is_read() {
        for one in [
            dialog("198.51.100.7:5060", None),
            dialog("198.51.100.7:5060", Some("192.0.2.1")),
            dialog("[2001:db8::7]:5070", None),
            dialog("[2001:db8::7]:5070", Some("2001:db8::1")),
            on_stream(dialog("198.51.100.7:5060", None)),
            on_stream(dialog("[2001:db8::7]:5070", Some("2001:db8::1"))),
        ] {
            let text = written(&one);
            assert_eq!(RouteToken::read(&text, &keys(), b"call-1"), Some(one));
            assert_eq!(RouteToken::read(&text.to_ascii_uppercase(), &keys(), b"call-1"), Some(one));
            assert_eq!(RouteToken::read(&text, &keys(), b"call-2"), None);
            assert!(!RouteToken::claims_flow(&text));
            assert_eq!(RouteToken::read(&text, &Keys::new(&[1; 16], &[2; 16], &[4; 16], 5), b"call-1"), None);
        }
    }

    #[test]
    fn a_flow_is_for_every_call_to_its_registration() {
        let behind_wildcard = RouteToken { purpose: Purpose::Flow, ..dialog("198.51.100.7:5060", Some("192.0.2.1")) };
        let plain = flow("198.51.100.7:5060");
        for one in [plain, flow("[2001:db8::7]:5070"), on_stream(plain), behind_wildcard] {
            let text = written(&one);
            assert_eq!(RouteToken::read(&text, &keys(), b"call-2"), Some(one));
            assert!(RouteToken::claims_flow(&text) && RouteToken::claims_flow(&text.to_ascii_uppercase()));
            // As a dialog's it is worth nothing.
            let mut other = text.clone();
            let flags = char::from(text[0]).to_digit(16).unwrap();
            other[0] = char::from_digit(flags & 7, 16).unwrap() as u8;
            assert_eq!(RouteToken::read(&other, &keys(), b""), None);
        }
    }

    /// Frozen: tokens live as long as calls, which may be longer than a version of viahop.
    #[test]
    fn golden_vector_does_not_change() {
        let text = written(&dialog("198.51.100.7:5060", None));
        assert_eq!(String::from_utf8(text).unwrap(), "05020a0b0c0dc633640713c4704e2b429b1332d3");
        let text = written(&on_stream(dialog("198.51.100.7:5060", None)));
        assert_eq!(String::from_utf8(text).unwrap(), "05020a0b0c0dc633640713c4004000020a0b0c0d77c0a8fa3daa0bf5");
    }

    #[test]
    fn no_flipped_bit_and_no_cut_survives() {
        for text in [dialog("198.51.100.7:5060", Some("192.0.2.1")), on_stream(dialog("198.51.100.7:5060", None))] {
            no_change_survives(&written(&text));
        }
    }

    fn no_change_survives(text: &[u8]) {
        for at in 0..text.len() {
            assert_eq!(RouteToken::read(&text[..at], &keys(), b"call-1"), None);
            for bit in 0..8 {
                let mut other = text.to_vec();
                other[at] ^= 1 << bit;
                if !other.eq_ignore_ascii_case(text) {
                    assert_eq!(RouteToken::read(&other, &keys(), b"call-1"), None, "{at} {bit}");
                }
            }
        }
        assert_eq!(RouteToken::read(&[text, b"00"].concat(), &keys(), b"call-1"), None);
        assert_eq!(RouteToken::read(&vec![b'0'; 1000], &keys(), b"call-1"), None);
        assert_eq!(RouteToken::read(b"", &keys(), b"call-1"), None);
    }
}
