//! What a shard does with the octets of a WebSocket: the counterpart of `Shard::frames` for TCP and TLS.
//!
//! A message in a frame has its end from the frame, so it is read like a datagram: a Content-Length may be missing. What
//! it says of itself must not be more than is there.

use super::connection::{Connection, State};
use super::websocket::{Event, pong};
use crate::dataplane::counters::{Ended, Upgrade};
use crate::dataplane::frame::PONG;
use crate::dataplane::route::Arrival;
use crate::shard::io::Io;
use crate::shard::run::Shard;
use std::ops::Range;

/// A double line end (RFC 7118 6 allows for that of RFC 5626, too).
const DOUBLE: &[u8] = b"\r\n\r\n";

/// Octets that may wait where a pong is still added: who does not read is not answered.
const PONGS_MAX: usize = 64 << 10;

impl<I: Io> Shard<I> {
    /// Whether the connection in `slot` is a WebSocket, or to become one.
    pub(super) fn is_websocket(&mut self, slot: usize) -> bool {
        let connection = self.streams.as_mut().and_then(|streams| streams.connection(slot));
        connection.is_some_and(|connection| connection.websocket.is_some())
    }

    /// Deals with the frames that `buffer` holds, which was read from the connection in `slot`. Returns how many of its
    /// octets are dealt with.
    pub(super) fn websocket_frames(&mut self, slot: usize, buffer: &mut [u8], now_ms: u64) -> usize {
        let Some(streams) = &mut self.streams else { return 0 };
        let id = streams.id_of(slot);
        let Some((id, connection)) = id.zip(streams.connection(slot)) else { return 0 };
        let (from, listener, local) = (connection.peer, connection.listener, connection.local);
        let arrival = Arrival { from, listener, local, stream: Some(id) };
        // Of several pings the last is answered (RFC 6455 5.5.3).
        let (mut at, mut ping) = (0, None);
        while let Some(connection) = self.websocket_of(&arrival) {
            let Some(websocket) = &mut connection.websocket else { break };
            let begin = at;
            let (len, event) = websocket.next(&mut buffer[at..], now_ms);
            at += len;
            match event {
                Event::Partial => break,
                Event::Nothing => {}
                Event::Ping(range) => ping = Some(begin + range.start..begin + range.end),
                Event::Message(range) => {
                    self.take_message(buffer, begin + range.start..begin + range.end, arrival, now_ms)
                }
                Event::Assembled(mut message) => {
                    let len = message.len();
                    self.take_message(&mut message, 0..len, arrival, now_ms);
                }
                Event::Open(response) => {
                    connection.has_spoken = true;
                    connection.push_raw(&response);
                    self.count_upgrade(Upgrade::Done);
                }
                Event::Close(frame) => self.close_websocket(&arrival, &frame, Ended::Closed, now_ms),
                Event::Broken(frame) => self.close_websocket(&arrival, &frame, Ended::WebSocket, now_ms),
                Event::Refused(upgrade, response) => {
                    self.count_upgrade(upgrade);
                    self.close_websocket(&arrival, &response, Ended::WebSocket, now_ms);
                }
            }
        }
        if let Some((range, connection)) = ping.zip(self.websocket_of(&arrival))
            && connection.unsent() < PONGS_MAX
        {
            connection.push_raw(&pong(&buffer[range]));
        }
        if let Some(streams) = &mut self.streams {
            streams.note_dirty(slot);
        }
        self.tell_others();
        at
    }

    /// The connection that `arrival` came by, as long as it is there and read from.
    fn websocket_of(&mut self, arrival: &Arrival) -> Option<&mut Connection> {
        let id = arrival.stream?;
        let connection = self.streams.as_mut()?.connection(id.slot())?;
        let is_it = connection.generation == id.generation() && connection.state != State::Closing;
        is_it.then_some(connection)
    }

    fn take_message(&mut self, buffer: &mut [u8], message: Range<usize>, arrival: Arrival, now_ms: u64) {
        match &buffer[message.clone()] {
            DOUBLE => self.pong(&arrival, now_ms),
            PONG | [] => {}
            _ => drop(self.take_frame(buffer, message, arrival, None, now_ms)),
        }
    }

    fn close_websocket(&mut self, arrival: &Arrival, last: &[u8], ended: Ended, now_ms: u64) {
        if let Some(connection) = self.websocket_of(arrival) {
            connection.push_raw(last);
            connection.close_as(ended, now_ms);
        }
    }

    fn count_upgrade(&self, upgrade: Upgrade) {
        self.link.counters.streams.upgrades[upgrade as usize].add(1);
    }
}
