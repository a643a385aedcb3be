//! Who may have a connection: what is accepted at a listener, and how many of one source.

use super::Streams;
use super::connection::{Connection, Origin};
use super::websocket::WebSocket;
use crate::dataplane::counters::{Ended, StreamCounters};
use crate::dataplane::tables::Tables;
use crate::sys::tcp;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsRawFd;

/// Connections accepted in one turn of a listener, so that nobody keeps the shard to himself.
const ACCEPTS: usize = 64;

/// How long accepting pauses when no descriptor is left, in milliseconds.
pub(super) const PAUSE_MS: u64 = 1000;

impl Streams {
    /// Takes connections that wait at listener number `place` of this list.
    pub(super) fn accept(&mut self, place: usize, now_ms: u64, tables: &Tables, counters: &StreamCounters) {
        for _ in 0..ACCEPTS {
            let Some(listener) = self.listeners.get(place) else { return };
            let (index, tells_local, transport) = (listener.index, listener.tells_local, listener.transport);
            let origins = listener.origins.clone();
            let (socket, peer) = match tcp::accept(&listener.socket) {
                Ok(Some(taken)) => taken,
                Ok(None) => return,
                Err(_) => return self.pause(now_ms, counters),
            };
            counters.accepted.add(1);
            // Who comes by a proxy is known when the proxy has said it.
            let listens = tables.listeners.get(index as usize);
            let is_proxied = listens.is_some_and(|one| one.proxies.iter().any(|network| network.has(peer.ip())));
            let source = (!is_proxied).then(|| source_of(peer.ip()));
            let wire = self.admit(source).and_then(|()| self.wire_of(socket, index, transport, peer, counters));
            let taken = wire.and_then(|wire| {
                let generation = self.next_generation();
                let mut connection = Connection::new(wire, peer, Some(index), Origin::Accepted, generation, now_ms);
                connection.websocket = transport.is_websocket().then(|| Box::new(WebSocket::new(origins.clone())));
                if tells_local {
                    connection.local = connection.wire.socket().local_addr().ok().map(|address| address.ip());
                }
                connection.source = source;
                connection.prelude = is_proxied.then(Box::default);
                self.insert(connection).map_err(|_| Ended::Limit)
            });
            match taken {
                Ok(_) => self.count(source),
                Err(ended) => counters.ended[ended as usize].add(1),
            }
        }
    }

    /// Counts a connection with those of its source.
    pub(super) fn count(&mut self, source: Option<IpAddr>) {
        source.into_iter().for_each(|source| *self.by_source.entry(source).or_default() += 1);
    }

    /// Whether there is room for a connection from `source`.
    pub(super) fn admit(&self, source: Option<IpAddr>) -> Result<(), Ended> {
        if self.open_beside_proxied() >= self.limits.connections || self.held >= self.limits.held {
            return Err(Ended::Limit);
        }
        self.admit_of(source)
    }

    /// Whether `source` may have another, wherever there is room.
    pub(super) fn admit_of(&self, source: Option<IpAddr>) -> Result<(), Ended> {
        let of_source = source.and_then(|source| self.by_source.get(&source).copied()).unwrap_or_default();
        if of_source >= self.limits.per_source { Err(Ended::SourceLimit) } else { Ok(()) }
    }

    /// Connections that count against what there may be: those that are for one client have a bound of their own.
    pub(super) fn open_beside_proxied(&self) -> usize {
        self.open - self.proxied.count()
    }

    /// Accepts nothing for a while: each attempt would fail for want of a descriptor, and the listener stays ready.
    pub(super) fn pause(&mut self, now_ms: u64, counters: &StreamCounters) {
        counters.pauses.add(1);
        self.paused_until_ms = Some(now_ms + PAUSE_MS);
        self.listen(false);
    }

    pub(super) fn listen(&mut self, wanted: bool) {
        for (place, listener) in self.listeners.iter().enumerate() {
            // It can fail only for a descriptor that is not in the set.
            self.poller.set_interest(listener.socket.as_raw_fd(), self.first + place as u32, wanted, false).ok();
        }
    }
}

/// Whose connections count together: an IPv4 address, or the /64 that one site of IPv6 has.
pub(super) fn source_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::send::tests::Bench;
    use super::*;
    use crate::dataplane::counters::Handshake;
    use crate::dataplane::transport::Transport;

    #[test]
    fn handshakes_are_begun_up_to_their_bound() {
        let mut bench = Bench::new();
        let counters = &bench.end.counters.streams;
        bench.streams.limits.handshakes = 2;
        for (under_way, refused) in [(1, 0), (2, 1)] {
            bench.streams.handshaking = under_way;
            let (socket, peer) = (bench.client.try_clone().unwrap(), bench.client.peer_addr().unwrap());
            // There are no credentials to begin one with either.
            assert!(bench.streams.wire_of(socket, 0, Transport::Tls, peer, counters).is_err());
            assert_eq!(counters.accepted_handshakes[Handshake::Limit as usize].get(), refused);
        }
    }

    #[test]
    fn a_connection_is_admitted_up_to_each_bound_and_not_beyond() {
        let mut bench = Bench::new();
        let source = |text: &str| Some(source_of(text.parse().unwrap()));
        let (one, same, other) = (source("2001:db8::1"), source("2001:db8::ffff:0:0:2"), source("2001:db8:0:1::1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
        bench.streams.limits.per_source = 2;
        bench.streams.count(one);
        assert_eq!(bench.streams.admit(one), Ok(()));
        bench.streams.count(same);
        assert_eq!(bench.streams.admit(one), Err(Ended::SourceLimit));
        assert_eq!((bench.streams.admit(other), bench.streams.admit(None)), (Ok(()), Ok(())));
        bench.streams.held = bench.streams.limits.held - 1;
        assert_eq!(bench.streams.admit(other), Ok(()));
        bench.streams.held += 1;
        assert_eq!(bench.streams.admit(other), Err(Ended::Limit));
        (bench.streams.held, bench.streams.limits.connections) = (0, 2);
        assert_eq!(bench.streams.admit(other), Ok(()), "one is there");
        bench.streams.limits.connections = 1;
        assert_eq!(bench.streams.admit(other), Err(Ended::Limit));
    }
}
