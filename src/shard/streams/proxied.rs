//! Connections to backends that want to know whom a connection is for: one for each client, and in front of it a PROXY
//! header that names the client (`haproxy.org`, "The PROXY protocol").
//!
//! ```text
//! request of a client, its pool has `send_proxy` ─► the client's own connection to the backend, opened if there is none
//!
//! ended: silent for `proxied_idle` · the client's connection has ended, and what it asked is answered
//!        · there are `max_proxied`, and of them it has waited longest for a request
//! ```
//!
//! The header stands in front of everything, of TLS too. It says `STREAM` whatever the client speaks, as version 1 knows
//! nothing else: what begins with `DGRAM` is reset by Kamailio 5.6, and goes nowhere in HAProxy 2.6.
//!
//! All else about them is as about the connections that clients share: what comes on them is from inside, what cannot be
//! delivered is answered, and after a failure the backend has a moment's peace, whoever asks for it.

use super::Streams;
use super::connection::Connection;
use super::sweep::HALF_CLOSED_MS;
use crate::dataplane::counters::{Ended, StreamCounters, Tally};
use crate::dataplane::route::Arrival;
use crate::dataplane::tables::{ProxyHeader, Tables};
use crate::dataplane::transport::StreamId;
use crate::shard::outbox::Fates;
use lru::LruCache;
use ppp::{v1, v2};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Whom a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// Where it sends from.
    pub from: SocketAddr,
    /// Where it has reached us.
    reached: SocketAddr,
    /// Its connection, if it has one.
    stream: Option<StreamId>,
    /// How that is said.
    header: ProxyHeader,
}

impl Client {
    /// Whom a message is from that arrived so, if it is a request to a backend that is to be told.
    pub fn of(tables: &Tables, arrival: &Arrival, tally: Tally) -> Option<Client> {
        let Tally::Request(Some(backend)) = tally else { return None };
        let header = tables.backends.get(backend as usize)?.reach.proxy_header?;
        let Arrival { from, listener, local, stream } = *arrival;
        let listener = listener.and_then(|index| tables.listeners.get(index as usize));
        let reached = listener.map(|one| SocketAddr::new(local.unwrap_or(one.host), one.address.port()));
        // A header has addresses of one family. Who came by a proxy may have another than we do, and that is what counts.
        let nowhere: IpAddr = match from {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let reached = reached.filter(|reached| reached.is_ipv4() == from.is_ipv4());
        Some(Client { from, reached: reached.unwrap_or_else(|| SocketAddr::new(nowhere, 0)), stream, header })
    }

    /// What stands in front of the connection.
    pub(super) fn header(&self) -> io::Result<Vec<u8>> {
        let addresses = (self.from, self.reached);
        match self.header {
            ProxyHeader::V1 => Ok(v1::Addresses::from(addresses).to_string().into_bytes()),
            ProxyHeader::V2 => {
                let is_for = v2::Version::Two | v2::Command::Proxy;
                v2::Builder::with_addresses(is_for, v2::Protocol::Stream, addresses).build()
            }
        }
    }
}

/// What is known of a connection for one client, beside what is known of any.
#[derive(Debug)]
pub struct OnBehalf {
    /// The client.
    pub client: Client,
    /// When a message last went or came.
    used_ms: u64,
    /// Since when the client's own connection is gone.
    gone_since_ms: Option<u64>,
}

/// The connections that are for one client each.
#[derive(Debug)]
pub struct Proxied {
    /// By backend and client. What was not asked for longest comes last.
    slots: LruCache<(SocketAddr, Client), usize>,
    /// Their slots, by the connection of their client.
    by_stream: HashMap<StreamId, SmallVec<[usize; 1]>>,
}

impl Default for Proxied {
    fn default() -> Proxied {
        Proxied { slots: LruCache::unbounded(), by_stream: HashMap::new() }
    }
}

impl Proxied {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.slots.len()
    }

    fn insert(&mut self, to: SocketAddr, client: Client, slot: usize) {
        self.slots.put((to, client), slot);
        if let Some(stream) = client.stream {
            self.by_stream.entry(stream).or_default().push(slot);
        }
    }

    fn remove(&mut self, to: SocketAddr, client: Client) {
        let Some(slot) = self.slots.pop(&(to, client)) else { return };
        if let Some(stream) = client.stream
            && let Some(slots) = self.by_stream.get_mut(&stream)
        {
            slots.retain(|one| *one != slot);
            if slots.is_empty() {
                self.by_stream.remove(&stream);
            }
        }
    }
}

impl Streams {
    /// The slot of the connection of `client` to the backend at `to`, which may still be being opened.
    pub(super) fn connect_for(
        &mut self,
        client: Client,
        to: SocketAddr,
        now_ms: u64,
        tables: &Tables,
        counters: &StreamCounters,
        fates: &mut impl Fates,
    ) -> Result<usize, ()> {
        if let Some(&slot) = self.proxied.slots.get(&(to, client)) {
            if !self.speaks_otherwise(slot, tables) {
                return Ok(slot);
            }
            self.end(slot, Ended::Closed, now_ms, counters, fates);
        }
        if self.by_target.get(&to).is_some_and(|target| target.waits(now_ms)) {
            return Err(());
        }
        if self.proxied.count() >= self.limits.proxied
            && let Some((_, &oldest)) = self.proxied.slots.peek_lru()
        {
            self.end(oldest, Ended::Displaced, now_ms, counters, fates);
        }
        let slot = self.open(to, None, Some(client), now_ms, tables, counters)?;
        self.proxied.insert(to, client, slot);
        counters.proxied.set(self.proxied.count() as u64);
        Ok(slot)
    }

    /// Forgets the connection that was in `slot`, if it was for a client. Those that were for who had this one learn that it
    /// is gone, and end with the turn if nothing is waited for.
    pub(super) fn part(&mut self, connection: &Connection, slot: usize, now_ms: u64, counters: &StreamCounters) {
        if self.proxied.slots.is_empty() {
            return;
        }
        if let Some(OnBehalf { client, .. }) = connection.on_behalf.as_deref() {
            self.proxied.remove(connection.peer, *client);
            counters.proxied.set(self.proxied.count() as u64);
        }
        let id = StreamId::new(self.shard, slot, connection.generation);
        for slot in id.and_then(|id| self.proxied.by_stream.remove(&id)).unwrap_or_default() {
            let own = self.connection(slot).and_then(|connection| connection.on_behalf.as_deref_mut());
            own.into_iter().for_each(|own| own.gone_since_ms = Some(now_ms));
            self.note_dirty(slot);
        }
    }

    /// Notes that a message has come on connection `id`: `is_final`, a final response.
    pub(super) fn note_came(&mut self, id: StreamId, is_final: bool, now_ms: u64) {
        if self.proxied.slots.is_empty() {
            return;
        }
        let Some(connection) = self.connection(id.slot()) else { return };
        let Some(own) = connection.on_behalf.as_deref_mut() else { return };
        own.used_ms = now_ms;
        let is_left = own.gone_since_ms.is_some();
        connection.unanswered = connection.unanswered.saturating_sub(u32::from(is_final));
        if is_left {
            self.note_dirty(id.slot());
        }
    }
}

impl Connection {
    /// The same, for `client` alone.
    pub(super) fn on_behalf_of(mut self, client: Option<Client>, now_ms: u64) -> Connection {
        self.on_behalf = client.map(|client| Box::new(OnBehalf { client, used_ms: now_ms, gone_since_ms: None }));
        self
    }

    /// Notes that the message which begins with `head` is to leave.
    pub(super) fn note_goes(&mut self, head: &[u8], tally: Tally, now_ms: u64) {
        if let Tally::Response(_, 200..) = tally {
            self.unanswered = self.unanswered.saturating_sub(1);
        }
        let Some(own) = self.on_behalf.as_deref_mut() else { return };
        own.used_ms = now_ms;
        if matches!(tally, Tally::Request(_)) && !head.starts_with(b"ACK ") {
            self.unanswered = self.unanswered.saturating_add(1);
        }
    }

    /// Why the client it is for has no more use for it, if it is for one.
    pub(super) fn is_over_for_client(&self, now_ms: u64, idle_ms: u64) -> Option<Ended> {
        let own = self.on_behalf.as_deref()?;
        let waits = self.unsent() > 0 || self.unanswered > 0;
        match own.gone_since_ms {
            Some(since) if !waits || now_ms.saturating_sub(since) >= HALF_CLOSED_MS => Some(Ended::ClientGone),
            _ => (now_ms.saturating_sub(own.used_ms) >= idle_ms).then_some(Ended::Idle),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::cluster::tests::{cluster, keys, text};
    use crate::shard::streams::connection::{Origin, State};
    use crate::shard::streams::wire::Wire;
    use ppp::HeaderResult;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    fn client(from: &str, reached: &str, header: ProxyHeader) -> Client {
        Client { from: from.parse().unwrap(), reached: reached.parse().unwrap(), stream: None, header }
    }

    #[test]
    fn a_header_has_these_octets_and_says_the_same_to_whoever_reads_it() {
        let [v4, v6] = [("192.0.2.7:5060", "10.0.0.1:5061"), ("[2001:db8::9]:5060", "[2001:db8::1]:5061")];
        let text = client(v4.0, v4.1, ProxyHeader::V1).header().unwrap();
        assert_eq!(text, b"PROXY TCP4 192.0.2.7 10.0.0.1 5060 5061\r\n");
        let text = client(v6.0, v6.1, ProxyHeader::V1).header().unwrap();
        assert_eq!(text, b"PROXY TCP6 2001:db8::9 2001:db8::1 5060 5061\r\n");
        let octets = client(v4.0, v4.1, ProxyHeader::V2).header().unwrap();
        let start = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c";
        assert_eq!(octets, [&start[..], &[192, 0, 2, 7, 10, 0, 0, 1, 0x13, 0xc4, 0x13, 0xc5]].concat());
        let octets = client(v6.0, v6.1, ProxyHeader::V2).header().unwrap();
        assert_eq!((octets.len(), &octets[12..16]), (52, &b"\x21\x21\0\x24"[..]));
        let HeaderResult::V2(Ok(header)) = HeaderResult::parse(&octets) else { panic!("{octets:?}") };
        let v2::Addresses::IPv6(read) = header.addresses else { panic!("{header:?}") };
        assert_eq!(SocketAddr::from((read.source_address, read.source_port)), v6.0.parse().unwrap());
        assert_eq!(SocketAddr::from((read.destination_address, read.destination_port)), v6.1.parse().unwrap());
    }

    #[test]
    fn who_came_by_a_proxy_with_another_address_family_keeps_his_address() {
        let mut tables = cluster(&text(&[1]), None).tables(1, &keys(), false, None);
        let arrival = |from: &str, local: Option<&str>| Arrival {
            from: from.parse().unwrap(),
            listener: Some(0),
            local: local.map(|local| local.parse().unwrap()),
            stream: None,
        };
        let to = Tally::Request(Some(0));
        assert_eq!(Client::of(&tables, &arrival("192.0.2.7:1000", None), to), None);
        tables.backends[0].reach.proxy_header = Some(ProxyHeader::V1);
        let port = tables.listeners[0].address.port();
        let header = |arrival| Client::of(&tables, &arrival, to).unwrap().header().unwrap();
        let expected = format!("PROXY TCP4 192.0.2.7 10.0.0.9 1000 {port}\r\n");
        assert_eq!(header(arrival("192.0.2.7:1000", Some("10.0.0.9"))), expected.as_bytes());
        let host = tables.listeners[0].host;
        let expected = format!("PROXY TCP4 192.0.2.7 {host} 1000 {port}\r\n");
        assert_eq!(header(arrival("192.0.2.7:1000", None)), expected.as_bytes());
        assert_eq!(header(arrival("[2001:db8::7]:1000", None)), b"PROXY TCP6 2001:db8::7 :: 1000 0\r\n");
        let otherwise = arrival("192.0.2.7:1000", Some("2001:db8::1"));
        assert_eq!(header(otherwise), b"PROXY TCP4 192.0.2.7 0.0.0.0 1000 0\r\n");
        for other in [Tally::Request(None), Tally::Response(Some(0), 200)] {
            assert_eq!(Client::of(&tables, &arrival("192.0.2.7:1000", None), other), None);
        }
    }

    fn pair(preface: Vec<u8>) -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let socket = TcpStream::connect(to).unwrap();
        socket.set_nonblocking(true).unwrap();
        let wire = Wire::new(socket, None).behind(preface);
        let connection = Connection::new(wire, to, None, Origin::Opened, 1, 0);
        let client = client("192.0.2.7:5060", "10.0.0.1:5060", ProxyHeader::V2);
        (connection.on_behalf_of(Some(client), 0), listener.accept().unwrap().0)
    }

    #[test]
    fn what_stands_in_front_leaves_first_and_once() {
        let (mut connection, mut server) = pair(b"PROXY UNKNOWN\r\n".to_vec());
        connection.put_into(State::Open, 0);
        assert!(connection.wants_write());
        connection.push([b"one", b""], None);
        connection.flush(0, |_| {}).unwrap();
        connection.push([b"two", b""], None);
        connection.flush(0, |_| {}).unwrap();
        assert!(!connection.wants_write());
        drop(connection);
        let mut heard = String::new();
        server.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "PROXY UNKNOWN\r\nonetwo");
    }

    #[test]
    fn it_ends_when_it_is_silent_and_when_its_client_is_gone_and_answered() {
        const IDLE: u64 = 300_000;
        let (mut connection, _server) = pair(Vec::new());
        assert_eq!(connection.is_over_for_client(IDLE - 1, IDLE), None);
        assert_eq!(connection.is_over_for_client(IDLE, IDLE), Some(Ended::Idle));
        connection.note_goes(b"INVITE sip:a SIP/2.0\r\n", Tally::Request(Some(0)), 1000);
        connection.note_goes(b"ACK sip:a SIP/2.0\r\n", Tally::Request(Some(0)), 2000);
        connection.note_goes(b"SIP/2.0 180 Ringing\r\n", Tally::Response(None, 180), 2000);
        assert_eq!(connection.unanswered, 1);
        assert_eq!(connection.is_over_for_client(IDLE + 1999, IDLE), None);
        assert_eq!(connection.is_over_for_client(IDLE + 2000, IDLE), Some(Ended::Idle));
        connection.on_behalf.as_mut().unwrap().gone_since_ms = Some(3000);
        assert_eq!(connection.is_over_for_client(3000 + HALF_CLOSED_MS - 1, IDLE), None);
        assert_eq!(connection.is_over_for_client(3000 + HALF_CLOSED_MS, IDLE), Some(Ended::ClientGone));
        connection.unanswered = 0;
        assert_eq!(connection.is_over_for_client(3000, IDLE), Some(Ended::ClientGone));
        connection.push([b"BYE sip:a SIP/2.0\r\n\r\n", b""], None);
        assert_eq!(connection.is_over_for_client(3001, IDLE), None);
    }
}
