//! What becomes of connections when nothing happens: deadlines, and the question whether the other side is alive.

use super::connection::{Origin, State};
use super::{Streams, handshake};
use crate::dataplane::counters::{Ended, StreamCounters};
use crate::dataplane::tables::Tables;
use crate::shard::outbox::Fates;

/// How long an accepted connection may take to its first whole message, in milliseconds: 64*T1.
const FIRST_MS: u64 = 32_000;

/// How long what follows a refusal is read and thrown away, in milliseconds: a round trip, generously.
const CLOSING_MS: u64 = 1000;

/// How long answers are waited for on a connection whose other side has closed its half, in milliseconds: 64*T1, the
/// longest a transaction waits.
pub(super) const HALF_CLOSED_MS: u64 = 32_000;

/// After how long of silence a connection of ours is asked whether it is alive, in milliseconds: half of the 120 s after
/// which Kamailio closes a silent one, and RFC 5626 4.4.1 asks a client.
const KEEP_ALIVE_MS: u64 = 60_000;

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
        self.held = 0;
        for slot in 0..self.slots.len() {
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
            let is_silent = connection.origin == Origin::Opened
                && connection.state == State::Open
                && for_ms(connection.active_ms) >= KEEP_ALIVE_MS
                && !connection.is_left_for(tables);
            if is_silent {
                connection.push([b"\r\n\r\n", b""], None);
                connection.active_ms = now_ms;
            }
            let held = connection.held();
            self.held += held;
            if is_silent {
                self.note_dirty(slot);
            }
        }
        self.by_target.retain(|_, target| !target.is_over(now_ms));
        counters.held_octets.set(self.held as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::super::admit::PAUSE_MS;
    use super::super::connection::Connection;
    use super::super::send::tests::Bench;
    use super::*;
    use std::io::Read;

    #[test]
    fn each_deadline_ends_a_connection_at_its_moment_and_as_what_it_is() {
        let limits = Bench::new().streams.limits;
        let rows: [(fn(&mut Connection), u64, Ended); 8] = [
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
        for (origin, asked) in [(Origin::Opened, 2), (Origin::Accepted, 0)] {
            let mut bench = Bench::new();
            let connection = bench.streams.connection(0).unwrap();
            (connection.origin, connection.has_spoken) = (origin, true);
            for now_ms in [KEEP_ALIVE_MS - 1, KEEP_ALIVE_MS, 2 * KEEP_ALIVE_MS - 1, 2 * KEEP_ALIVE_MS] {
                assert!(bench.sweep(now_ms));
            }
            bench.streams.slots.clear();
            let mut heard = String::new();
            bench.client.read_to_string(&mut heard).unwrap();
            assert_eq!(heard, "\r\n\r\n".repeat(asked));
        }
    }

    #[test]
    fn what_is_held_is_counted_anew_and_a_pause_of_accepting_ends() {
        let mut bench = Bench::new();
        bench.streams.held = 1 << 30;
        bench.streams.connection(0).unwrap().partial = vec![0; 100];
        bench.streams.pause(0, &bench.end.counters.streams);
        assert!(bench.sweep(PAUSE_MS - 1) && bench.streams.paused_until_ms.is_some());
        assert!(bench.sweep(PAUSE_MS) && bench.streams.paused_until_ms.is_none());
        assert_eq!((bench.streams.held, bench.end.counters.streams.held_octets.get()), (100, 100));
    }
}
