//! What becomes of connections when nothing happens: deadlines, and the question whether the other side is alive.

use super::connection::{Origin, State};
use super::{Streams, handshake};
use crate::dataplane::counters::{Ended, StreamCounters};
use crate::dataplane::limits::RINGING_MS;
use crate::dataplane::tables::Tables;
use crate::shard::outbox::Fates;
use crate::sys::tcp;

/// How long an accepted connection may take to its first whole message, in milliseconds: 64*T1.
const FIRST_MS: u64 = 32_000;

/// How long what follows a refusal is read and thrown away, in milliseconds: a round trip, generously.
const CLOSING_MS: u64 = 1000;

/// How long answers are waited for on a connection whose other side has closed its half, in milliseconds: 64*T1, the
/// longest a transaction waits.
pub(super) const HALF_CLOSED_MS: u64 = 32_000;

/// After how long of silence a connection of ours to a backend is asked whether it is alive, in milliseconds: half of the 120 s after
/// which Kamailio closes a silent one, and RFC 5626 4.4.1 asks a client.
const KEEP_ALIVE_MS: u64 = 60_000;

/// The same of one to a backend that does not answer probes, in milliseconds: if that has started anew meanwhile, it says so.
const KEEP_ALIVE_SILENT_MS: u64 = 5_000;

/// How often the kernel sends again what such a backend does not acknowledge, before the connection is set aside: 0.6 s, or three
/// round trips where those take long.
const REPEATS_MAX: u8 = 2;

/// How often deadlines are looked at, in milliseconds: a bound may be passed by as much.
const SWEEP_MS: u64 = 500;

impl Streams {
    /// Ends what has passed a deadline, asks silent connections of ours whether they are alive, and accepts again.
    pub(super) fn sweep(&mut self, now_ms: u64, tables: &Tables, counters: &StreamCounters, fates: &mut impl Fates) {
        if now_ms.saturating_sub(self.swept_ms) < SWEEP_MS {
            return;
        }
        self.swept_ms = now_ms;
        if self.paused_until_ms.is_some_and(|until| now_ms >= until) {
            self.paused_until_ms = None;
            self.listen(true);
        }
        let limits = self.limits;
        let mut held = 0;
        for slot in 0..self.slots.len() {
            let is_aside = self.is_aside(slot, tables);
            let Some(connection) = self.connection(slot) else { continue };
            let for_ms = |since: u64| now_ms.saturating_sub(since);
            let in_state_ms = for_ms(connection.state_since_ms);
            let is_stuck = |since: Option<u64>| since.is_some_and(|since| for_ms(since) >= limits.frame_ms);
            let ended = match connection.state {
                State::Connecting => (in_state_ms >= limits.connect_ms).then_some(Ended::ConnectFailed),
                State::Handshaking => (in_state_ms >= limits.handshake_ms).then_some(Ended::Handshake),
                State::Closing => (in_state_ms >= CLOSING_MS).then_some(connection.closes_as),
                State::HalfClosed if in_state_ms >= HALF_CLOSED_MS => Some(Ended::Closed),
                _ if is_stuck(connection.stuck_since_ms) => Some(Ended::Unread),
                _ if is_stuck(connection.partial_since_ms) => Some(Ended::Slow),
                _ if !connection.has_spoken && connection.origin == Origin::Accepted && in_state_ms >= FIRST_MS => {
                    Some(Ended::Slow)
                }
                State::Open if is_aside && for_ms(connection.active_ms) >= RINGING_MS => Some(Ended::Closed),
                _ if for_ms(connection.active_ms) >= limits.idle_ms => Some(Ended::Idle),
                _ if connection.is_left_for(tables) && for_ms(connection.active_ms) >= limits.proxied_idle_ms => {
                    Some(Ended::Idle)
                }
                // A configuration read again may want it the other way.
                _ if connection.speaks_otherwise(tables) => Some(Ended::Closed),
                _ => connection.is_over_for_client(now_ms, limits.proxied_idle_ms),
            };
            match ended {
                Some(Ended::Handshake) => {
                    self.fail(slot, handshake::too_slow(), now_ms, counters, fates);
                    continue;
                }
                Some(ended) => {
                    self.end(slot, ended, now_ms, counters, fates);
                    continue;
                }
                None => {}
            }
            connection.rest();
            let keep_alive_ms = if connection.is_to_silent(tables) { KEEP_ALIVE_SILENT_MS } else { KEEP_ALIVE_MS };
            let is_silent = connection.origin == Origin::Opened
                && connection.listener.is_none()
                && connection.state == State::Open
                && for_ms(connection.active_ms) >= keep_alive_ms
                && !is_aside
                && !connection.is_left_for(tables);
            if is_silent {
                connection.push([b"\r\n\r\n", b""], None);
                connection.active_ms = now_ms;
            }
            held += connection.held();
            if is_silent {
                self.note_dirty(slot);
            }
        }
        self.by_target.retain(|_, target| !target.is_over(now_ms));
        // Each that has ended took what it held off what was counted before.
        self.held = held;
        counters.held_octets.set(held as u64);
    }

    /// Whether the connection in `slot` is to a backend to which what comes next opens another: it is set aside if the backend
    /// answers no probes and its kernel acknowledges nothing. What is on its way there may still arrive, and be answered; but behind
    /// the backend's return our kernel tries that again only when it has waited for as long as the backend was away.
    fn is_aside(&mut self, slot: usize, tables: &Tables) -> bool {
        let connection = self.slots.get(slot).and_then(Option::as_deref);
        let Some(connection) = connection.filter(|connection| connection.is_shared()) else { return false };
        let Some(target) = self.by_target.get_mut(&connection.peer) else { return true };
        let is_open = connection.state == State::Open;
        if is_open && connection.is_to_silent(tables) && tcp::repeats(connection.wire.socket()) >= REPEATS_MAX {
            target.set_aside(slot);
        }
        !target.is_reached_by(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::super::admit::PAUSE_MS;
    use super::super::connection::Connection;
    use super::super::send::tests::{Bench, Fate};
    use super::super::{Listening, StreamLimits};
    use super::*;
    use crate::control::cluster::tests::{cluster, keys, text};
    use crate::control::health::detector::Outcome;
    use crate::dataplane::tables::ProxyHeader;
    use crate::dataplane::transport::Transport;
    use crate::link::link;
    use crate::sys::poll::{Poller, Ready};
    use socket2::{SockFilter, SockRef};
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::time::Duration;

    /// A server whose host is cut off for a while, with a request on its way.
    #[test]
    fn behind_a_servers_return_nothing_waits_for_what_its_kernel_never_acknowledged() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let mut cluster = cluster(&text(&[to.port()]).replace("\" }", ";transport=tcp\" }"), None);
        let up = cluster.tables(1, &keys(), false, None);
        cluster.pools[0].backends[0].detector.on_outcome(Outcome::Timeout);
        let down = cluster.tables(2, &keys(), false, Some(&up));
        let (_, ends) = link(vec![Box::new(|| ())], 1, up.clone());
        let counters = &ends[0].counters.streams;
        let limits = StreamLimits::default();
        let mut streams = Streams::new(0, Poller::new().unwrap(), 0, Vec::new(), limits, Arc::default()).unwrap();
        let reach = |streams: &mut Streams| {
            let slot = streams.connect(to, None, 0, &up, counters, &mut Fate::default()).unwrap();
            streams.connection(slot).unwrap().put_into(State::Open, 0);
            slot
        };
        let first = reach(&mut streams);
        let (mut server, _) = listener.accept().unwrap();
        // What comes for this socket never comes.
        let nothing = SockFilter::new(6, 0, 0, 0);
        SockRef::from(&server).attach_filter(&[nothing]).unwrap();
        let request = |streams: &mut Streams, slot| {
            streams.connection(slot).unwrap().push([b"request", b""], None);
            streams.flush_one(slot, 0, counters, &mut Fate::default());
        };
        request(&mut streams, first);
        let mut now_ms = SWEEP_MS;
        while reach(&mut streams) == first {
            std::thread::sleep(Duration::from_millis(10));
            streams.swept_ms = 0;
            streams.sweep(now_ms, &up, counters, &mut Fate::default());
            assert_eq!(reach(&mut streams), first, "nobody is given up who answers probes");
            streams.swept_ms = 0;
            streams.sweep(now_ms, &down, counters, &mut Fate::default());
            now_ms += 10;
        }
        let second = reach(&mut streams);
        let (mut again, _) = listener.accept().unwrap();
        request(&mut streams, second);
        let mut came = [0; 7];
        again.read_exact(&mut came).unwrap();
        SockRef::from(&server).detach_filter().unwrap();
        server.read_exact(&mut came).unwrap();
        assert_eq!(&came, b"request", "what was on its way arrives all the same");
        assert_eq!(streams.open, 2);
        streams.sweep(now_ms + RINGING_MS, &up, counters, &mut Fate::default());
        assert_eq!((streams.open, reach(&mut streams)), (1, second));
    }

    #[test]
    fn each_deadline_ends_a_connection_at_its_moment_and_as_what_it_is() {
        let limits = Bench::new().streams.limits;
        type Prepare = fn(&mut Connection);
        let rows: [(Prepare, u64, Ended); 8] = [
            (
                |one| (one.origin, one.state) = (Origin::Opened, State::Connecting),
                limits.connect_ms,
                Ended::ConnectFailed,
            ),
            (|one| one.state = State::Handshaking, limits.handshake_ms, Ended::Handshake),
            (|one| one.close_as(Ended::BadFrame, 0), CLOSING_MS, Ended::BadFrame),
            (|one| one.state = State::HalfClosed, HALF_CLOSED_MS, Ended::Closed),
            (|one| one.stuck_since_ms = Some(0), limits.frame_ms, Ended::Unread),
            (|one| one.partial_since_ms = Some(0), limits.frame_ms, Ended::Slow),
            (|one| one.has_spoken = false, FIRST_MS, Ended::Slow),
            (|_| (), limits.idle_ms, Ended::Idle),
        ];
        for (prepare, deadline, ended) in rows {
            let mut bench = Bench::new();
            bench.streams.handshaking = 1;
            let connection = bench.streams.connection(0).unwrap();
            connection.has_spoken = true;
            prepare(connection);
            assert!(bench.sweep(deadline - 1), "{ended:?}");
            assert!(!bench.sweep(deadline), "{ended:?}");
            assert_eq!(bench.end.counters.streams.ended[ended as usize].get(), 1, "{ended:?}");
        }
    }

    #[test]
    fn a_silent_connection_of_ours_is_asked_whether_it_is_alive_and_a_clients_is_not() {
        for (is_ours, asked) in [(true, 2), (false, 0)] {
            let mut bench = Bench::new();
            let backend = *bench.end.shared.tables.load().by_address.keys().next().unwrap();
            if is_ours {
                bench.opens_to(backend, None);
            }
            bench.streams.connection(0).unwrap().has_spoken = true;
            for now_ms in [KEEP_ALIVE_MS - 1, KEEP_ALIVE_MS, 2 * KEEP_ALIVE_MS - 1, 2 * KEEP_ALIVE_MS] {
                assert!(bench.sweep(now_ms));
            }
            bench.streams.slots.clear();
            let mut heard = String::new();
            bench.client.read_to_string(&mut heard).unwrap();
            assert_eq!(heard, "\r\n\r\n".repeat(asked));
        }
    }

    /// Nothing goes there any more, but an answer may come.
    #[test]
    fn what_clients_shared_ends_when_it_is_silent_where_each_has_its_own() {
        for proxy_header in [None, Some(ProxyHeader::V1)] {
            let mut bench = Bench::new();
            let idle_ms = bench.streams.limits.proxied_idle_ms;
            let mut tables = Tables::clone(&bench.end.shared.tables.load());
            tables.backends[0].reach.proxy_header = proxy_header;
            bench.opens_to(tables.backends[0].address, None);
            bench.streams.connection(0).unwrap().has_spoken = true;
            bench.end.shared.tables.store(Arc::new(tables));
            assert!(bench.sweep(idle_ms - 1));
            assert_eq!(bench.sweep(idle_ms), proxy_header.is_none());
        }
    }

    #[test]
    fn what_is_held_is_counted_anew() {
        let mut bench = Bench::new();
        bench.streams.held = 1 << 30;
        bench.streams.connection(0).unwrap().partial = vec![0; 100];
        bench.sweep(SWEEP_MS);
        assert_eq!((bench.streams.held, bench.end.counters.streams.held_octets.get()), (100, 100));
    }

    /// Or a shard without descriptors would do nothing but look at it.
    #[test]
    fn while_accepting_pauses_a_listener_is_not_ready_though_somebody_waits() {
        let mut bench = Bench::new();
        let (socket, poller) = (TcpListener::bind("127.0.0.1:0").unwrap(), Poller::new().unwrap());
        let (address, looked_at) = (socket.local_addr().unwrap(), poller.try_clone().unwrap());
        let (index, transport, origins) = (0, Transport::Tcp, Arc::default());
        let listeners = vec![Listening { index, transport, origins, socket, tells_local: false }];
        bench.streams = Streams::new(0, poller, 5, listeners, StreamLimits::default(), Arc::default()).unwrap();
        let _waits = TcpStream::connect(address).unwrap();
        let ready = || {
            let mut ready = Ready::default();
            looked_at.look(&mut ready).unwrap();
            ready.numbers().collect::<Vec<_>>()
        };
        assert_eq!(ready(), [5]);
        bench.streams.pause(0, &bench.end.counters.streams);
        for (now_ms, wanted) in [(0, &[][..]), (PAUSE_MS - 1, &[]), (PAUSE_MS, &[5])] {
            bench.sweep(now_ms);
            assert_eq!(ready(), wanted, "{now_ms}");
        }
    }
}
