//! Copies of messages for a collector of SIP: HOMER, Kamailio's sipcapture, `sngrep -L`. As they came and as they left, what came by
//! TLS too, which nobody sees on the wire.
//!
//! Packed as HEP 3, the protocol of them all: `HEP3`, the length of all, and chunks of vendor (0), kind, length and value, in network
//! order. A copy is sent at once from a socket of its own or not at all: nothing here waits, and what is lost is counted.

use super::witness::Seen;
use crate::dataplane::counters::ShardCounters;
use crate::dataplane::route::Arrival;
use crate::dataplane::tables::{Capture, Tables};
use crate::dataplane::transport::Transport;
use crate::dataplane::verdict::{Sender, Verdict};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{SystemTime, UNIX_EPOCH};

/// The longest packet that a datagram holds over IPv4 (RFC 768): 65,535 octets less the headers of IP and UDP.
const PACKET_MAX: usize = 65_507;

/// Kinds of chunks.
const FAMILY: u16 = 1;
const PROTOCOL: u16 = 2;
const SOURCE_V4: u16 = 3;
const DESTINATION_V4: u16 = 4;
const SOURCE_V6: u16 = 5;
const DESTINATION_V6: u16 = 6;
const SOURCE_PORT: u16 = 7;
const DESTINATION_PORT: u16 = 8;
const SECONDS: u16 = 9;
const MICROSECONDS: u16 = 10;
const WHAT: u16 = 11;
const NODE: u16 = 12;
const PAYLOAD: u16 = 15;
const CORRELATION: u16 = 17;

/// Values of some of them.
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const TCP: u8 = 6;
const UDP: u8 = 17;
const SIP: u8 = 1;

/// A shard's.
#[derive(Debug, Default)]
pub struct Mirror {
    /// Towards the collector that is configured.
    socket: Option<(SocketAddr, UdpSocket)>,
    /// The message that is decided about, as it came; empty where none has.
    came: Vec<u8>,
    packet: Vec<u8>,
}

/// A message on its way.
#[derive(Clone, Copy)]
struct Leg<'a> {
    from: SocketAddr,
    to: SocketAddr,
    by_stream: bool,
    /// One part behind the other.
    octets: [&'a [u8]; 2],
}

impl Mirror {
    /// Keeps the message as it came: deciding changes it.
    pub fn note(&mut self, message: &[u8]) {
        self.came.clear();
        self.came.extend_from_slice(message);
    }

    /// Sends copies of the message that was noted, and of what is to be sent for it, if its call is among those that are copied.
    pub fn copy(&mut self, seen: &Seen<'_>, capture: &Capture, call_id: Option<&[u8]>, counters: &ShardCounters) {
        if !is_sampled(seen.tables, capture, call_id) {
            return;
        }
        let came = std::mem::take(&mut self.came);
        if !came.is_empty() {
            self.send(capture, call_id, &arrived(seen, &came), counters);
        }
        self.came = came;
        if let Some(left) = left(seen) {
            self.send(capture, call_id, &left, counters);
        }
    }

    fn send(&mut self, capture: &Capture, call_id: Option<&[u8]>, leg: &Leg<'_>, counters: &ShardCounters) {
        pack(&mut self.packet, capture.node, call_id, leg);
        let is_sent = self.packet.len() <= PACKET_MAX
            && self.open(capture.to).is_ok()
            && self.socket.as_ref().is_some_and(|(to, socket)| socket.send_to(&self.packet, to).is_ok());
        if is_sent { &counters.captured } else { &counters.captures_lost }.add(1);
    }

    /// Opens the socket towards `to`, unless it is open.
    fn open(&mut self, to: SocketAddr) -> io::Result<()> {
        if self.socket.as_ref().is_none_or(|(towards, _)| *towards != to) {
            let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_nonblocking(true)?;
            self.socket = Some((to, socket));
        }
        Ok(())
    }
}

/// Whether a call is copied: the same ones on all nodes that have one secret, and as many of each backend, since slots are made of
/// other bits.
fn is_sampled(tables: &Tables, capture: &Capture, call_id: Option<&[u8]>) -> bool {
    capture.share >= 100 || call_id.is_some_and(|call_id| tables.keys.route(call_id) as u32 % 100 < capture.share)
}

fn arrived<'a>(seen: &Seen<'_>, octets: &'a [u8]) -> Leg<'a> {
    let Arrival { from, listener, local, stream } = seen.arrival;
    let by_stream = stream.is_some();
    Leg { from, to: own(seen, listener, local, from, by_stream), by_stream, octets: [octets, &[]] }
}

/// What is to be sent, if anything is.
fn left<'a>(seen: &Seen<'a>) -> Option<Leg<'a>> {
    let arrival = &seen.arrival;
    let octets = seen.room.output();
    let (to, by_stream, listener, local) = match seen.room.verdict {
        Verdict::Drop(_) => return None,
        Verdict::Reply { to, .. } => {
            let to = if arrival.stream.is_some() { arrival.from } else { to };
            (to, arrival.stream.is_some(), arrival.listener, arrival.local)
        }
        Verdict::Forward { to, from, .. } => match from {
            Sender::Egress => (to, false, None, None),
            Sender::Listener { index, local } => (to, false, Some(index), local),
            Sender::Connect { listener } => (to, true, listener, None),
            Sender::Stream { listener, .. } => {
                let (peer, local) = seen.ends.unwrap_or((to, None));
                (peer, true, listener, local)
            }
        },
    };
    Some(Leg { from: own(seen, listener, local, to, by_stream), to, by_stream, octets })
}

/// The address of ours on a way to or from `other`: the listener's or, towards a backend, the one that our Via names.
fn own(seen: &Seen<'_>, listener: Option<u8>, local: Option<IpAddr>, other: SocketAddr, by_stream: bool) -> SocketAddr {
    let tables = seen.tables;
    if let Some(listener) = listener.and_then(|index| tables.listeners.get(index as usize)) {
        return SocketAddr::new(local.unwrap_or(listener.host), listener.address.port());
    }
    // Datagrams of a server may come from any port of its host.
    let backend = tables.speaker(other, Transport::Udp).and_then(|index| tables.backends.get(index as usize));
    let host = backend.and_then(|backend| backend.via_host.trim_matches(['[', ']']).parse().ok());
    let (any, port): (IpAddr, _) = match other {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), seen.egress.v4),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), seen.egress.v6),
    };
    let port = backend.and_then(|backend| backend.via_port).filter(|_| by_stream).or(port);
    SocketAddr::new(host.unwrap_or(any), port.unwrap_or_default())
}

fn pack(out: &mut Vec<u8>, node: u32, call_id: Option<&[u8]>, leg: &Leg<'_>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    out.clear();
    out.extend_from_slice(b"HEP3\0\0");
    match (leg.from.ip(), leg.to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            chunk(out, FAMILY, &[&[IPV4]]);
            chunk(out, SOURCE_V4, &[&from.octets()]);
            chunk(out, DESTINATION_V4, &[&to.octets()]);
        }
        (from, to) => {
            chunk(out, FAMILY, &[&[IPV6]]);
            chunk(out, SOURCE_V6, &[&as_v6(from).octets()]);
            chunk(out, DESTINATION_V6, &[&as_v6(to).octets()]);
        }
    }
    chunk(out, PROTOCOL, &[&[if leg.by_stream { TCP } else { UDP }]]);
    chunk(out, SOURCE_PORT, &[&leg.from.port().to_be_bytes()]);
    chunk(out, DESTINATION_PORT, &[&leg.to.port().to_be_bytes()]);
    chunk(out, SECONDS, &[&(now.as_secs() as u32).to_be_bytes()]);
    chunk(out, MICROSECONDS, &[&now.subsec_micros().to_be_bytes()]);
    chunk(out, WHAT, &[&[SIP]]);
    chunk(out, NODE, &[&node.to_be_bytes()]);
    if let Some(call_id) = call_id {
        chunk(out, CORRELATION, &[call_id]);
    }
    chunk(out, PAYLOAD, &leg.octets);
    // One that is too long for this is never sent.
    let len = (out.len() as u16).to_be_bytes();
    out[4..6].copy_from_slice(&len);
}

fn chunk(out: &mut Vec<u8>, kind: u16, parts: &[&[u8]]) {
    const HEAD: usize = 6;
    let len = HEAD + parts.iter().map(|part| part.len()).sum::<usize>();
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(len as u16).to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

fn as_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chunks of a packet: what each is, and its octets.
    fn chunks(mut packet: &[u8]) -> Vec<(u16, Vec<u8>)> {
        let two = |at: &[u8]| u16::from_be_bytes(at[..2].try_into().unwrap());
        assert_eq!((&packet[..4], usize::from(two(&packet[4..]))), (&b"HEP3"[..], packet.len()));
        packet = &packet[6..];
        let mut found = Vec::new();
        while !packet.is_empty() {
            let len = usize::from(two(&packet[4..]));
            assert_eq!(two(packet), 0, "of no vendor");
            found.push((two(&packet[2..]), packet[6..len].to_vec()));
            packet = &packet[len..];
        }
        found
    }

    #[test]
    fn a_packet_over_ipv6_has_its_addresses_and_one_between_the_families_those_of_ipv6() {
        let [six, four] = ["[2001:db8::7]:5060", "192.0.2.9:6000"].map(|text| text.parse::<SocketAddr>().unwrap());
        let mapped = "::ffff:192.0.2.9".parse::<Ipv6Addr>().unwrap().octets().to_vec();
        let own = "2001:db8::7".parse::<Ipv6Addr>().unwrap().octets().to_vec();
        for (from, to, ends) in [(six, six, [&own, &own]), (four, six, [&mapped, &own]), (six, four, [&own, &mapped])] {
            let mut out = Vec::new();
            pack(&mut out, 7, Some(b"abc"), &Leg { from, to, by_stream: true, octets: [b"BYE ", b"x"] });
            let found: Vec<_> =
                chunks(&out).into_iter().filter(|(kind, _)| ![SECONDS, MICROSECONDS].contains(kind)).collect();
            let expected = [
                (1, vec![10]),
                (5, ends[0].clone()),
                (6, ends[1].clone()),
                (2, vec![6]),
                (7, from.port().to_be_bytes().to_vec()),
                (8, to.port().to_be_bytes().to_vec()),
                (11, vec![1]),
                (12, vec![0, 0, 0, 7]),
                (17, b"abc".to_vec()),
                (15, b"BYE x".to_vec()),
            ];
            assert_eq!(found, expected);
        }
    }
}
