//! What leaves by connections: queued at one, sent with the end of the turn, or given back as undelivered.

use super::Streams;
use super::connection::{Origin, State};
use super::proxied::Client;
use crate::dataplane::counters::{Ended, StreamCounters, Tally};
use crate::dataplane::tables::Tables;
use crate::dataplane::transport::StreamId;
use crate::dataplane::verdict::{DropReason, Sender};
use crate::link::{Handed, Mesh};
use crate::shard::outbox::Fates;
use crate::shard::witness::Ends;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

/// What a request could not be delivered for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The client's connection is gone: 430 (RFC 5626 5.3.1).
    FlowGone,
    /// There is no way to the server: 503 (RFC 3261 16.9).
    Unreachable,
}

/// A request that could not be delivered.
#[derive(Debug)]
pub struct Undelivered {
    /// The request as it was to be sent.
    pub octets: Box<[u8]>,
    /// Where to.
    pub to: SocketAddr,
    /// The backend, if it was to go to one.
    pub backend: Option<u16>,
    /// The listener that its connection came to, or was opened for, if it is a client's.
    pub listener: Option<u8>,
    /// Why not.
    pub why: Why,
    /// Whether no connection could be opened at all.
    pub was_connecting: bool,
}

impl Streams {
    /// Takes a message that is to leave by `from`, to whoever is at `to`: queues it at its connection, which is opened if
    /// it has to be, hands it to the shard that has the connection, or gives it up. With `client`, the connection to a
    /// backend is the client's own.
    #[expect(
        clippy::too_many_arguments,
        reason = "one caller for each way a message comes, which has them all at hand"
    )]
    pub fn send(
        &mut self,
        from: Sender,
        to: SocketAddr,
        parts: [&[u8]; 2],
        tally: Tally,
        client: Option<Client>,
        now_ms: u64,
        mesh: &mut Mesh,
        tables: &Tables,
        counters: &StreamCounters,
        fates: &mut impl Fates,
    ) {
        let slot = match from {
            Sender::Stream { id, .. } if mesh.leads_to(id.shard()) => {
                let handed = Handed::Message { from, to, octets: parts.concat().into(), tally };
                return match mesh.hand(id.shard(), handed) {
                    true => fates.handed_over(),
                    false => fates.lost(DropReason::HandoffFull),
                };
            }
            Sender::Stream { id, listener } => {
                let found = self.find(id, to);
                let has_ended = found.is_some_and(|slot| self.has_ended(slot));
                let connected = match (found, tally) {
                    // Who has said all it had to say answers nothing, and may be gone altogether. An ACK is not answered.
                    (Some(_), Tally::Request(_)) if has_ended && !parts[0].starts_with(b"ACK ") => Err(()),
                    // RFC 3261 18.2.2: where it cannot go down the connection it is to go down, a response goes down another. To a
                    // server, that by which it gets its requests; no server closes a half alone.
                    (_, Tally::Response(..)) if (found.is_none() || has_ended) && is_shared_with(tables, to) => {
                        self.connect(to, None, now_ms, tables, counters, fates)
                    }
                    (Some(slot), _) => Ok(slot),
                    (None, Tally::Response(..)) if listener.is_some() => {
                        self.connect(to, listener, now_ms, tables, counters, fates)
                    }
                    _ => Err(()),
                };
                connected.map_err(|()| Why::FlowGone)
            }
            Sender::Connect { listener } => {
                let slot = match client.filter(|_| listener.is_none()) {
                    Some(client) => self.connect_for(client, to, now_ms, tables, counters, fates),
                    None => self.connect(to, listener, now_ms, tables, counters, fates),
                };
                if slot.is_err() && listener.is_none() {
                    // A backend may not be tried again for longer than it is suspected, and others could have its requests.
                    fates.refused(to, self.failed_with(to));
                }
                slot.map_err(|()| Why::Unreachable)
            }
            Sender::Egress | Sender::Listener { .. } => Err(Why::Unreachable),
        };
        let len = parts[0].len() + parts[1].len();
        let is_full = self.held + len > self.limits.held;
        if let Ok(slot) = slot
            && is_full
        {
            // What was queued earlier in this turn does not wait for the kernel, only for the end of the turn.
            self.flush_one(slot, now_ms, counters, fates);
        }
        let held = slot.ok().and_then(|slot| Some((self.connection(slot)?, slot)));
        let why = match (held, slot) {
            (None, Err(why)) => why,
            (None, Ok(_)) => Why::FlowGone,
            (Some((connection, slot)), _) if !connection.has_room(len) || is_full && !connection.is_clear() => {
                // A client that does not read is closed, but none for what others hold. A backend's connection carries
                // everybody's calls.
                if connection.origin == Origin::Accepted && !connection.has_room(len) {
                    self.end(slot, Ended::Unread, now_ms, counters, fates);
                }
                match tally {
                    Tally::Request(_) => Why::Unreachable,
                    _ => return fates.lost(DropReason::SendBacklogFull),
                }
            }
            (Some((connection, slot)), _) => {
                connection.note_goes(parts[0], tally, now_ms);
                let before = connection.held();
                connection.push(parts, Some(tally));
                let grown = connection.held() - before;
                self.held += grown;
                fates.waiting(1);
                return self.note_dirty(slot);
            }
        };
        match tally {
            Tally::Request(backend) => {
                let octets = parts.concat().into();
                let listener = match from {
                    Sender::Connect { listener } | Sender::Stream { listener, .. } => listener,
                    Sender::Egress | Sender::Listener { .. } => None,
                };
                self.undelivered.push(Undelivered { octets, to, backend, listener, why, was_connecting: true });
            }
            _ if why == Why::FlowGone => fates.lost(DropReason::FlowGone),
            _ => fates.lost(DropReason::ConnectionFailed),
        }
    }

    pub(super) fn note_dirty(&mut self, slot: usize) {
        if let Some(connection) = self.connection(slot)
            && !connection.is_dirty
        {
            connection.is_dirty = true;
            self.dirty.push(slot);
        }
    }

    /// Messages that are still to be sent on connection `id` to `to`.
    pub(super) fn queued(&mut self, id: StreamId, to: SocketAddr) -> usize {
        let slot = self.find(id, to);
        slot.and_then(|slot| self.connection(slot)).map_or(0, |connection| connection.queued())
    }

    /// The ends of connection `id`, where that is one to the host of `to`.
    pub(in crate::shard) fn ends(&mut self, id: StreamId, to: SocketAddr) -> Option<Ends> {
        let slot = self.find(id, to)?;
        self.connection(slot).map(|connection| (connection.peer, connection.local))
    }

    /// The slot of connection `id`, if it is there and leads to the host of `to`. A token may be of a process that had more
    /// shards.
    pub(super) fn find(&mut self, id: StreamId, to: SocketAddr) -> Option<usize> {
        if id.shard() != self.shard {
            return None;
        }
        let connection = self.connection(id.slot())?;
        let is_it = connection.generation == id.generation() && connection.peer.ip() == to.ip();
        (is_it && connection.state != State::Closing).then(|| id.slot())
    }

    fn has_ended(&mut self, slot: usize) -> bool {
        self.connection(slot).is_some_and(|connection| connection.state == State::HalfClosed)
    }

    /// Sends what connections have to send, as far as their kernel takes it.
    pub(super) fn flush(&mut self, now_ms: u64, counters: &StreamCounters, fates: &mut impl Fates) {
        while let Some(slot) = self.dirty.pop() {
            self.flush_one(slot, now_ms, counters, fates);
        }
    }

    pub(super) fn flush_one(&mut self, slot: usize, now_ms: u64, counters: &StreamCounters, fates: &mut impl Fates) {
        let number = self.number_of(slot);
        let Some(connection) = self.slots.get_mut(slot).and_then(Option::as_deref_mut) else { return };
        connection.is_dirty = false;
        if connection.state == State::Connecting {
            return;
        }
        let before = connection.held();
        let flushed = connection.flush(now_ms, |tally| {
            fates.waiting(-1);
            fates.sent(tally);
        });
        self.held = (self.held + connection.held()).saturating_sub(before);
        let is_done = !connection.wants_write();
        let may_end = connection.state == State::HalfClosed && connection.unanswered == 0;
        let idle_ms = self.limits.proxied_idle_ms;
        let is_left = is_done && connection.is_over_for_client(now_ms, idle_ms) == Some(Ended::ClientGone);
        match flushed {
            Err(_) => return self.end(slot, Ended::Reset, now_ms, counters, fates),
            Ok(()) if is_done && may_end => return self.end(slot, Ended::Closed, now_ms, counters, fates),
            Ok(()) if is_left => return self.end(slot, Ended::ClientGone, now_ms, counters, fates),
            Ok(()) => {}
        }
        if is_done && connection.state == State::Closing {
            // The other side learns that nothing more will come; what it still says is read and thrown away.
            connection.wire.shut();
        }
        if connection.wants_writable == is_done {
            connection.wants_writable = !is_done;
            let readable = connection.state != State::HalfClosed && !connection.is_in_line;
            let fd = connection.wire.socket().as_raw_fd();
            self.poller.set_interest(fd, number, readable, !is_done).ok();
        }
    }
}

/// Whether a backend is at `to`, and no connection to it begins with whom it is for.
fn is_shared_with(tables: &Tables, to: SocketAddr) -> bool {
    let backend = tables.by_address.get(&to).and_then(|&index| tables.backends.get(index as usize));
    backend.is_some_and(|backend| backend.reach.proxy_header.is_none())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::control::cluster::tests::{cluster, keys, text};
    use crate::dataplane::limits::{FRAME_MAX, SEND_BACKLOG_MAX};
    use crate::link::{ShardEnd, link};
    use crate::shard::streams::StreamLimits;
    use crate::shard::streams::connection::Connection;
    use crate::shard::streams::wire::Wire;
    use crate::sys::errors::Unreachable;
    use crate::sys::poll::Poller;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    const RESPONSE: Tally = Tally::Response(None, 200);

    /// Others have sent 64 MiB of messages that are not whole.
    #[test]
    fn what_others_hold_costs_nobody_his_connection_nor_a_message_that_the_kernel_takes() {
        let mut bench = Bench::new();
        bench.streams.held = bench.streams.limits.held;
        for _ in 0..3 {
            bench.send(b"answer", RESPONSE);
        }
        bench.flush();
        bench.client.read_exact(&mut [0; 18]).unwrap();
        assert_eq!((bench.fates.sent, bench.fates.waiting), (3, 0));

        let large = vec![b'x'; FRAME_MAX];
        while bench.fates.lost.is_empty() {
            bench.send(&large, RESPONSE);
        }
        assert_eq!(bench.fates.lost, [DropReason::SendBacklogFull]);
        assert!(bench.streams.held <= bench.streams.limits.held + FRAME_MAX + 100, "{}", bench.streams.held);
        bench.send(b"request", Tally::Request(None));
        let undelivered = bench.streams.undelivered.pop().unwrap();
        assert_eq!((&undelivered.octets[..], undelivered.why), (&b"request"[..], Why::Unreachable));
        assert!(bench.streams.slots[0].is_some());
    }

    #[test]
    fn who_does_not_read_is_closed_for_what_waits_for_him() {
        let mut bench = Bench::new();
        let large = vec![b'x'; FRAME_MAX];
        while bench.streams.slots[0].is_some() {
            bench.send(&large, RESPONSE);
            bench.flush();
            assert!(bench.streams.held <= SEND_BACKLOG_MAX + FRAME_MAX, "{}", bench.streams.held);
        }
        assert_eq!(bench.end.counters.streams.ended[Ended::Unread as usize].get(), 1);
        assert_eq!((bench.streams.held, bench.fates.waiting), (0, 0));
    }

    /// A phone that is switched off while a request of its own is unanswered: what it is asked then was lost without a word.
    #[test]
    fn who_has_closed_its_half_gets_answers_and_no_requests() {
        let mut bench = Bench::new();
        bench.streams.connection(0).unwrap().put_into(State::HalfClosed, 0);
        bench.streams.connection(0).unwrap().unanswered = 2;
        bench.send(b"INVITE sip:a SIP/2.0\r\n\r\n", Tally::Request(None));
        assert_eq!(bench.streams.undelivered.pop().unwrap().why, Why::FlowGone);
        bench.send(b"ACK sip:a SIP/2.0\r\n\r\n", Tally::Request(None));
        bench.send(b"answer", RESPONSE);
        bench.flush();
        assert_eq!((bench.streams.undelivered.len(), bench.fates.sent), (0, 2));
    }

    /// Where there are no connections nobody looks round: what the last one had held stood in the metrics until the next came.
    #[test]
    fn with_the_last_connection_nothing_is_held() {
        let mut bench = Bench::new();
        bench.streams.connection(0).unwrap().partial = vec![b'x'; 100];
        let (tables, counters) = (bench.end.shared.tables.load(), &bench.end.counters.streams);
        bench.streams.sweep(1000, &tables, counters, &mut bench.fates);
        assert_eq!(counters.held_octets.get(), 100);
        bench.streams.end(0, Ended::Closed, 1001, counters, &mut bench.fates);
        assert_eq!((bench.streams.held, counters.held_octets.get()), (0, 0));
    }

    /// What went with a connection that the look at deadlines ended was taken off what the others hold.
    #[test]
    fn what_a_connection_held_that_is_too_slow_goes_and_what_others_hold_stays() {
        let mut bench = Bench::new();
        let other = bench.client.try_clone().unwrap();
        let peer = SocketAddr::from(([192, 0, 2, 7], 5060));
        let slow = Connection::new(Wire::new(other, None), peer, Some(0), Origin::Accepted, 2, 0);
        let slow = bench.streams.insert(slow).unwrap();
        for slot in [0, slow] {
            let connection = bench.streams.connection(slot).unwrap();
            (connection.partial, connection.has_spoken) = (vec![b'x'; 100], true);
        }
        bench.streams.connection(slow).unwrap().partial_since_ms = Some(0);
        bench.sweep(bench.streams.limits.frame_ms);
        assert!(bench.streams.connection(slow).is_none());
        assert_eq!((bench.streams.held, bench.end.counters.streams.held_octets.get()), (100, 100));
    }

    /// A server that was taken out of the set, and a client that an answer had taken a connection to, were asked for good whether they are
    /// alive, so that neither connection was ever silent enough to end.
    #[test]
    fn only_backends_are_asked_whether_they_are_alive() {
        let tables = Bench::new().end.shared.tables.load_full();
        let [served, gone] = [*tables.by_address.keys().next().unwrap(), "192.0.2.99:5060".parse().unwrap()];
        let rows =
            [(served, None, true, None), (gone, None, false, Some(300_000)), (gone, Some(0), false, Some(3_600_000))];
        for (peer, listener, is_asked, ends_ms) in rows {
            let mut bench = Bench::new();
            bench.opens_to(peer, listener);
            let mut sweep = |now_ms: u64| {
                bench.streams.sweep(now_ms, &tables, &bench.end.counters.streams, &mut bench.fates);
                bench.streams.connection(0).map(|connection| connection.unsent())
            };
            assert_eq!(sweep(60_000), Some(if is_asked { 4 } else { 0 }), "{peer} {listener:?}");
            if let Some(ends_ms) = ends_ms {
                assert_eq!((sweep(ends_ms - 1000), sweep(ends_ms)), (Some(0), None), "{peer} {listener:?}");
                assert_eq!(bench.end.counters.streams.ended[Ended::Idle as usize].get(), 1);
            }
        }
    }

    /// The connections of a shard: one, of a client.
    pub(in crate::shard::streams) struct Bench {
        pub(in crate::shard::streams) streams: Streams,
        pub(in crate::shard::streams) end: ShardEnd,
        pub(in crate::shard::streams) client: TcpStream,
        fates: Fate,
    }

    impl Bench {
        pub(in crate::shard::streams) fn new() -> Bench {
            let tables = cluster(&text(&[1]), None).tables(1, &keys(), false, None);
            let (_, mut ends) = link(vec![Box::new(|| ())], 1, tables);
            let (poller, limits) = (Poller::new().unwrap(), StreamLimits::default());
            let mut streams = Streams::new(0, poller, 0, Vec::new(), limits, Arc::default()).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (socket, peer) = listener.accept().unwrap();
            socket.set_nonblocking(true).unwrap();
            streams.insert(Connection::new(Wire::new(socket, None), peer, Some(0), Origin::Accepted, 1, 0)).unwrap();
            Bench { streams, end: ends.remove(0), client, fates: Fate::default() }
        }

        /// Makes the connection one of ours to `peer`, for `listener` if it is to no backend.
        pub(in crate::shard::streams) fn opens_to(&mut self, peer: SocketAddr, listener: Option<u8>) {
            let connection = self.streams.connection(0).unwrap();
            (connection.origin, connection.peer, connection.listener) = (Origin::Opened, peer, listener);
            self.streams.by_target.entry(peer).or_default().slot = Some(0);
        }

        fn send(&mut self, octets: &[u8], tally: Tally) {
            let from = Sender::Stream { id: StreamId::new(0, 0, 1).unwrap(), listener: None };
            let (to, counters) = (self.client.local_addr().unwrap(), &self.end.counters.streams);
            let (tables, mesh) = (self.end.shared.tables.load(), &mut self.end.mesh);
            self.streams.send(from, to, [octets, b""], tally, None, 0, mesh, &tables, counters, &mut self.fates);
        }

        fn flush(&mut self) {
            self.streams.flush(0, &self.end.counters.streams, &mut self.fates);
        }

        /// Whether there is a connection to `to`, or one is being opened.
        pub(in crate::shard::streams) fn connect(&mut self, to: SocketAddr, listener: Option<u8>) -> bool {
            let tables = self.end.shared.tables.load();
            let counters = &self.end.counters.streams;
            self.streams.connect(to, listener, 0, &tables, counters, &mut self.fates).is_ok()
        }

        /// Sweeps at this moment, however short the last time is ago, and sends what comes of it. Returns whether the connection is still
        /// there.
        pub(in crate::shard::streams) fn sweep(&mut self, now_ms: u64) -> bool {
            self.streams.swept_ms = 0;
            let tables = self.end.shared.tables.load();
            self.streams.sweep(now_ms, &tables, &self.end.counters.streams, &mut self.fates);
            self.streams.flush(now_ms, &self.end.counters.streams, &mut self.fates);
            matches!(self.streams.slots.first(), Some(Some(_)))
        }
    }

    /// What has become of messages.
    #[derive(Default)]
    pub(in crate::shard::streams) struct Fate {
        sent: usize,
        lost: Vec<DropReason>,
        waiting: i64,
    }

    impl Fates for Fate {
        fn sent(&mut self, _: Tally) {
            self.sent += 1;
        }

        fn lost(&mut self, reason: DropReason) {
            self.lost.push(reason);
        }

        fn unreachable(&mut self, _: Unreachable) {}

        fn refused(&mut self, _: SocketAddr, _: i32) {}

        fn handed_over(&mut self) {}

        fn waiting(&mut self, change: i64) {
            self.waiting += change;
        }
    }
}
