//! Whom we connect to: backends, and clients whose connection is gone.
//!
//! One connection for all that goes to an address, opened with the first message. Where none can be opened, the next attempt waits.

use super::Streams;
use super::connection::{Connection, Origin};
use super::proxied::Client;
use super::wire::Wire;
use crate::dataplane::counters::{Ended, StreamCounters};
use crate::dataplane::tables::Tables;
use crate::shard::outbox::Fates;
use crate::sys::{errors, tcp};
use std::io;
use std::net::{IpAddr, SocketAddr};

/// How long after a failure to connect the next attempt is made; after each that fails, too, twice as long as before.
const BACK_OFF_MS: u64 = 100;
/// At most so long.
const BACK_OFF_MAX_MS: u64 = 5000;

/// Somebody we connect to.
#[derive(Debug, Default)]
pub(super) struct Target {
    pub(super) slot: Option<usize>,
    /// Attempts that have failed since the last that has not.
    failures: u32,
    /// The error number for which the last one has.
    failed_with: i32,
    /// No attempt before this.
    not_before_ms: u64,
}

impl Target {
    /// Whether it is too early for another attempt.
    pub(super) fn waits(&self, now_ms: u64) -> bool {
        now_ms < self.not_before_ms
    }

    /// Lets what comes next open another connection than the one in `slot`.
    pub(super) fn set_aside(&mut self, slot: usize) {
        self.slot = self.slot.filter(|&shared| shared != slot);
    }

    /// Whether the connection in `slot` is the one that messages go by.
    pub(super) fn is_reached_by(&self, slot: usize) -> bool {
        self.slot == Some(slot)
    }

    /// Whether nothing has to be remembered of it any more.
    pub(super) fn is_over(&self, now_ms: u64) -> bool {
        self.slot.is_none() && now_ms >= self.not_before_ms + BACK_OFF_MAX_MS
    }
}

impl Streams {
    /// The slot of a connection to `to`, which may still be being opened. For `listener`, if it is to no backend.
    pub(super) fn connect(
        &mut self,
        to: SocketAddr,
        listener: Option<u8>,
        now_ms: u64,
        tables: &Tables,
        counters: &StreamCounters,
        fates: &mut impl Fates,
    ) -> Result<usize, ()> {
        if let Some(slot) = self.by_target.get(&to).and_then(|target| target.slot) {
            if !self.speaks_otherwise(slot, tables) {
                return Ok(slot);
            }
            self.end(slot, Ended::Closed, now_ms, counters, fates);
        }
        let target = self.by_target.entry(to).or_default();
        if target.waits(now_ms) || listener.is_some_and(|index| self.only_accepts(index)) {
            // Who is at an address that a client gave, no certificate could tell; and nobody listens in a browser.
            return Err(());
        }
        let slot = self.open(to, listener, None, now_ms, tables, counters)?;
        self.by_target.entry(to).or_default().slot = Some(slot);
        Ok(slot)
    }

    /// Whether `tables`, which may have come after the last sweep, forbid that anything is sent on the connection in `slot`.
    pub(super) fn speaks_otherwise(&self, slot: usize, tables: &Tables) -> bool {
        let connection = self.slots.get(slot).and_then(Option::as_deref);
        connection.is_some_and(|connection| connection.speaks_otherwise(tables))
    }

    /// Begins to open a connection to `to`: for `listener`, if it is to no backend; for `client` alone, if it is for one.
    pub(super) fn open(
        &mut self,
        to: SocketAddr,
        listener: Option<u8>,
        client: Option<Client>,
        now_ms: u64,
        tables: &Tables,
        counters: &StreamCounters,
    ) -> Result<usize, ()> {
        counters.opened.add(1);
        let local = match to {
            SocketAddr::V4(_) => self.limits.egress_v4.map(IpAddr::V4),
            SocketAddr::V6(_) => self.limits.egress_v6.map(IpAddr::V6),
        };
        // Backends have a place of their own: clients that fill all there is must not cut the cluster off.
        let is_full = listener.is_some() && self.open_beside_proxied() >= self.limits.connections;
        let socket = if is_full { Err(io::ErrorKind::QuotaExceeded.into()) } else { tcp::connect(to, local) };
        let generation = self.next_generation();
        let inserted = socket.and_then(|socket| {
            let preface = client.map_or(Ok(Vec::new()), |client| client.header())?;
            let wire = Wire::new(socket, self.session_to(to, listener, tables)?).behind(preface);
            let connection = Connection::new(wire, to, listener, Origin::Opened, generation, now_ms);
            self.insert(connection.on_behalf_of(client, now_ms))
        });
        inserted.map_err(|error| {
            counters.ended[if is_full { Ended::Limit } else { Ended::ConnectFailed } as usize].add(1);
            let failed_with = error.raw_os_error().unwrap_or(errors::NO_TLS);
            self.lost(usize::MAX, to, Some(failed_with), listener.is_some(), now_ms);
        })
    }

    /// Notes that `peer` can be connected to.
    pub(super) fn reached(&mut self, peer: SocketAddr) {
        if let Some(target) = self.by_target.get_mut(&peer) {
            target.failures = 0;
        }
    }

    /// The error number for which the last attempt to connect to `to` has failed.
    pub(super) fn failed_with(&self, to: SocketAddr) -> i32 {
        self.by_target.get(&to).map_or(0, |target| target.failed_with)
    }

    /// The connection to `to` that was in `slot` is gone, or could not be opened, for which there is an error number. `is_client`: it
    /// is no backend, and nothing is remembered of it.
    pub(super) fn lost(&mut self, slot: usize, to: SocketAddr, failed_with: Option<i32>, is_client: bool, now_ms: u64) {
        if is_client && failed_with.is_none() {
            self.by_target.remove(&to);
            return;
        }
        let target = self.by_target.entry(to).or_default();
        target.set_aside(slot);
        // Attempts that were made together fail together, and count as one.
        if let Some(failed_with) = failed_with
            && !target.waits(now_ms)
        {
            let wait = BACK_OFF_MS << target.failures.min(10);
            target.failures += 1;
            target.failed_with = failed_with;
            target.not_before_ms = now_ms + wait.min(BACK_OFF_MAX_MS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Listening;
    use super::super::send::tests::Bench;
    use super::*;
    use crate::dataplane::transport::Transport;
    use std::net::TcpListener;
    use std::sync::Arc;

    /// What was sealed must not go on in plain text, and clients must not fill what there is for others.
    #[test]
    fn a_client_whose_connection_is_gone_is_connected_to_over_tcp_alone_and_where_there_is_room() {
        for transport in [Transport::Tcp, Transport::Tls, Transport::Ws, Transport::Wss] {
            for room in [1, 2] {
                let mut bench = Bench::new();
                bench.streams.limits.connections = room;
                let socket = TcpListener::bind("127.0.0.1:0").unwrap();
                let to = socket.local_addr().unwrap();
                let listening = Listening { index: 3, transport, origins: Arc::default(), socket, tells_local: false };
                bench.streams.listeners.push(listening);
                let is_tcp = transport == Transport::Tcp;
                assert_eq!(bench.connect(to, Some(3)), is_tcp && room == 2, "{transport} {room}");
                let full = bench.end.counters.streams.ended[Ended::Limit as usize].get();
                assert_eq!(full, u64::from(is_tcp && room == 1));
                assert_eq!(bench.connect(to, Some(3)), is_tcp && room == 2, "the same, or too soon");
                assert_eq!(bench.end.counters.streams.opened.get(), u64::from(is_tcp));
            }
        }
    }

    #[test]
    fn after_each_failure_the_next_attempt_waits_twice_as_long_until_one_succeeds() {
        let mut bench = Bench::new();
        let streams = &mut bench.streams;
        let to = SocketAddr::from(([192, 0, 2, 1], 5060));
        let mut now_ms = 0;
        for _ in 0..2 {
            for wait in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
                // Attempts that were made together.
                streams.lost(usize::MAX, to, Some(errors::TIMED_OUT), false, now_ms);
                streams.lost(usize::MAX, to, Some(errors::TIMED_OUT), false, now_ms + 1);
                let target = &streams.by_target[&to];
                let then = now_ms + wait;
                assert!(target.waits(then - 1) && !target.waits(then), "{wait}");
                assert!(!target.is_over(then + BACK_OFF_MAX_MS - 1) && target.is_over(then + BACK_OFF_MAX_MS));
                now_ms = then;
            }
            streams.reached(to);
        }
        streams.lost(usize::MAX, to, None, false, now_ms);
        assert!(!streams.by_target[&to].waits(now_ms), "one that was open has not failed");
    }
}
