//! One connection: its wire, what has come and is no message yet, what is to be sent, and since when it waits for what.

use super::prelude::Prelude;
use super::proxied::OnBehalf;
use super::websocket::{Pushed, WebSocket, put_header};
use super::wire::Wire;
use crate::dataplane::counters::{Ended, Tally};
use crate::dataplane::frame::Framer;
use crate::dataplane::limits::SEND_BACKLOG_MAX;
use crate::dataplane::tables::{Backend, Serves, Tables};
use crate::sys::errors;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};

/// Octets of buffers that an idle connection keeps.
const KEPT: usize = 2048;

/// Who opened a connection, and so what is known of the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// They did.
    Accepted,
    /// We did.
    Opened,
}

/// What a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is being opened.
    Connecting,
    /// It is open, and the two sides agree on how to speak TLS. Messages wait.
    Handshaking,
    /// Messages go both ways.
    Open,
    /// The other side has said all it had to say, and may wait for answers.
    HalfClosed,
    /// What is still to be sent is sent, and what comes is thrown away: whoever closes with octets unread makes the
    /// kernel reset the connection, and the answer is lost on its way.
    Closing,
}

/// A message on its way out.
#[derive(Clone, Copy, Debug)]
struct Queued {
    len: usize,
    /// Octets before the message that belong to a frame of a WebSocket.
    head: usize,
    /// How it is counted; `None`: it is no message.
    tally: Option<Tally>,
}

/// A message that did not leave.
#[derive(Debug)]
pub struct Unsent {
    /// The message.
    pub octets: Box<[u8]>,
    /// How it would have been counted.
    pub tally: Tally,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    /// What its octets go through.
    pub wire: Wire,
    /// Which of those that had its slot.
    pub generation: u32,
    /// The other side.
    pub peer: SocketAddr,
    /// Whose connections it counts with; `None`: nobody's, or nobody knows yet.
    pub source: Option<IpAddr>,
    /// What stands in front of what the client says, until it has come: a PROXY header.
    pub prelude: Option<Box<Prelude>>,
    /// The local address, where the listener is bound to a wildcard address.
    pub local: Option<IpAddr>,
    /// The listener it came to, or that it was opened for; `None`: it is to a backend.
    pub listener: Option<u8>,
    /// What its octets are frames of, if it is a WebSocket.
    pub websocket: Option<Box<WebSocket>>,
    /// The client it is for, if it is to a backend that wants to know.
    pub on_behalf: Option<Box<OnBehalf>>,
    /// Who opened it.
    pub origin: Origin,
    /// What it is at.
    pub state: State,
    /// What it will have ended for, if it is closing.
    pub closes_as: Ended,
    /// The error number for which it could not be opened, if it cannot be.
    pub failed_with: i32,
    /// How far the message that has begun was read.
    pub framer: Framer,
    /// What of it has come.
    pub partial: Vec<u8>,
    /// When it began; `None`: nothing has begun.
    pub partial_since_ms: Option<u64>,
    /// Whether a whole message has ever come.
    pub has_spoken: bool,
    /// Requests that came, or went for the client it is for, and have no final response yet, as far as one that keeps no
    /// transactions can tell.
    pub unanswered: u32,
    /// When something was last sent or received.
    pub active_ms: u64,
    /// When the state was last changed.
    pub state_since_ms: u64,
    /// What is to be sent, from the first octet of the first message that has not left whole.
    out: Vec<u8>,
    /// Octets of `out` that the kernel has. `sent <= out.len()`
    sent: usize,
    /// The messages in `out`. The sum of their lengths is its length.
    queue: VecDeque<Queued>,
    /// Since when the kernel has taken nothing of what is to be sent.
    pub stuck_since_ms: Option<u64>,
    /// Whether it is asked to be told when it can send.
    pub wants_writable: bool,
    /// Whether it is noted as having something to send.
    pub is_dirty: bool,
    /// Whether it waits for a step of its handshake.
    pub is_in_line: bool,
}

impl Connection {
    /// A connection that was accepted, or is being opened.
    pub fn new(
        wire: Wire,
        peer: SocketAddr,
        listener: Option<u8>,
        origin: Origin,
        generation: u32,
        now_ms: u64,
    ) -> Connection {
        Connection {
            state: match origin {
                Origin::Opened => State::Connecting,
                Origin::Accepted if wire.is_handshaking() => State::Handshaking,
                Origin::Accepted => State::Open,
            },
            wire,
            generation,
            peer,
            source: None,
            prelude: None,
            local: None,
            listener,
            websocket: None,
            on_behalf: None,
            origin,
            closes_as: Ended::BadFrame,
            failed_with: errors::TIMED_OUT,
            framer: Framer::default(),
            partial: Vec::new(),
            partial_since_ms: None,
            has_spoken: false,
            unanswered: 0,
            active_ms: now_ms,
            state_since_ms: now_ms,
            out: Vec::new(),
            sent: 0,
            queue: VecDeque::new(),
            stuck_since_ms: None,
            wants_writable: false,
            is_dirty: false,
            is_in_line: false,
        }
    }

    /// Puts it into another state.
    pub fn put_into(&mut self, state: State, now_ms: u64) {
        (self.state, self.state_since_ms) = (state, now_ms);
    }

    /// Whether it is to a backend that `tables` want spoken to with TLS and it has none, or the other way round: they may have
    /// come after it, and it may have been opened when a client was there.
    pub fn speaks_otherwise(&self, tables: &Tables) -> bool {
        let is_ours = self.origin == Origin::Opened;
        is_ours && tables.speaks_tls(self.peer).is_some_and(|wanted| wanted != self.wire.is_tls())
    }

    /// Whether it is the one that all clients share to whom `tables` have no such connection to, since each client has its own or it
    /// is no backend: it was opened under another configuration, and no request goes there any more.
    pub fn is_left_for(&self, tables: &Tables) -> bool {
        self.is_shared() && self.shared_backend(tables).is_none_or(|backend| backend.reach.proxy_header.is_some())
    }

    /// Whether it is one that clients share, to a backend that does not answer probes.
    pub fn is_to_silent(&self, tables: &Tables) -> bool {
        self.shared_backend(tables).is_some_and(|backend| backend.serves == Serves::Named)
    }

    /// Whether it is to a backend, or was, and for no client alone.
    pub fn is_shared(&self) -> bool {
        self.origin == Origin::Opened && self.listener.is_none() && self.on_behalf.is_none()
    }

    fn shared_backend<'t>(&self, tables: &'t Tables) -> Option<&'t Backend> {
        // First what costs nothing: most connections are of clients, and each is asked twice a second.
        let index = if self.is_shared() { tables.by_address.get(&self.peer)? } else { return None };
        tables.backends.get(*index as usize)
    }

    /// Octets that are kept for it.
    pub fn held(&self) -> usize {
        let queue = self.queue.len() * size_of::<Queued>();
        self.partial.len() + self.out.len() + queue + self.wire.held() + self.assembled()
    }

    /// Octets of a message in fragments that have come, if it is a WebSocket.
    pub fn assembled(&self) -> usize {
        self.websocket.as_ref().map_or(0, |websocket| websocket.held())
    }

    /// Octets that have come and are kept elsewhere than in [`Connection::partial`], until what they belong to is whole.
    pub fn unopened(&self) -> usize {
        self.assembled() + self.wire.unopened()
    }

    /// Messages that are still to be sent.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Octets that are still to be sent.
    pub fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Whether so many octets more may wait to be sent.
    pub fn has_room(&self, len: usize) -> bool {
        self.unsent() + len <= SEND_BACKLOG_MAX
    }

    /// Whether nothing stands between the next message and the kernel.
    pub fn is_clear(&self) -> bool {
        !matches!(self.state, State::Connecting | State::Handshaking) && !self.wants_write()
    }

    /// Closes it when what is to be sent is sent.
    pub fn close_as(&mut self, ended: Ended, now_ms: u64) {
        self.closes_as = ended;
        self.put_into(State::Closing, now_ms);
    }

    /// Adds octets to what is to be sent that are no message.
    pub fn push_raw(&mut self, octets: &[u8]) {
        if octets.is_empty() {
            return;
        }
        self.queue.push_back(Queued { len: octets.len(), head: 0, tally: None });
        self.out.extend_from_slice(octets);
    }

    /// Adds a message to what is to be sent.
    pub fn push(&mut self, parts: [&[u8]; 2], tally: Option<Tally>) {
        let before = self.out.len();
        if self.websocket.is_some() {
            put_header(&mut self.out, Pushed::Message(parts), parts[0].len() + parts[1].len());
        }
        let head = self.out.len() - before;
        self.queue.push_back(Queued { len: head + parts[0].len() + parts[1].len(), head, tally });
        self.out.extend_from_slice(parts[0]);
        self.out.extend_from_slice(parts[1]);
    }

    /// Whether there is something that can be sent as soon as the kernel takes it.
    pub fn wants_write(&self) -> bool {
        self.wire.wants_write() || self.unsent() > 0 && self.state != State::Handshaking
    }

    /// Sends as much as the kernel takes, and tells `sent` of each message that has left whole.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub fn flush(&mut self, now_ms: u64, mut sent: impl FnMut(Tally)) -> io::Result<()> {
        if let Err(error) = self.wire.flush() {
            return self.held_up(error, now_ms);
        }
        while self.unsent() > 0 && self.state != State::Handshaking {
            let count = match self.wire.write(&self.out[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return self.held_up(error, now_ms),
            };
            (self.stuck_since_ms, self.active_ms) = (None, now_ms);
            self.sent += count;
            let mut left = 0;
            while let Some(first) = self.queue.front().filter(|first| left + first.len <= self.sent) {
                left += first.len;
                if let Some(tally) = first.tally {
                    sent(tally);
                }
                self.queue.pop_front();
            }
            self.out.drain(..left);
            self.sent -= left;
        }
        self.stuck_since_ms = None;
        debug_assert!(self.state == State::Handshaking || self.out.is_empty() && self.queue.is_empty());
        Ok(())
    }

    fn held_up(&mut self, error: io::Error, now_ms: u64) -> io::Result<()> {
        if error.kind() != ErrorKind::WouldBlock {
            return Err(error);
        }
        self.stuck_since_ms.get_or_insert(now_ms);
        Ok(())
    }

    /// Gives up on what is to be sent, and returns it. What has left in part is not whole on the other side either.
    pub fn give_up(&mut self) -> Vec<Unsent> {
        let mut at = 0;
        let mut unsent = Vec::new();
        for Queued { len, head, tally } in self.queue.drain(..) {
            if let Some(tally) = tally {
                unsent.push(Unsent { octets: self.out[at + head..at + len].into(), tally });
            }
            at += len;
        }
        self.out.clear();
        self.sent = 0;
        unsent
    }

    /// Gives memory back that is not in use.
    pub fn rest(&mut self) {
        if self.out.is_empty() && self.out.capacity() > KEPT {
            self.out = Vec::new();
        }
        if self.queue.is_empty() && self.queue.capacity() * size_of::<Queued>() > KEPT {
            self.queue = VecDeque::new();
        }
        if let Some(websocket) = &mut self.websocket {
            websocket.rest();
        }
        if self.partial.is_empty() && self.partial.capacity() > 0 {
            self.partial = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::verdict::Answer;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, peer) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        (Connection::new(Wire::new(socket, None), peer, Some(0), Origin::Accepted, 1, 0), client)
    }

    /// Ten thousand idle ones are to be had for some megabytes.
    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<Connection>() <= 320, "{}", size_of::<Connection>());
    }

    #[test]
    fn messages_are_counted_when_their_last_octet_has_left() {
        let (mut connection, mut client) = pair();
        let large = vec![b'x'; 4 << 20];
        connection.push([b"one", b""], Some(Tally::Reply(Answer::Pong)));
        connection.push([&large, b"end"], Some(Tally::Request(None)));
        connection.push([b"th", b"ree"], Some(Tally::Response(None, 200)));
        let mut sent = Vec::new();
        connection.flush(7, |tally| sent.push(tally)).unwrap();
        assert_eq!(sent, [Tally::Reply(Answer::Pong)]);
        assert_eq!(connection.stuck_since_ms, Some(7));
        let reader = std::thread::spawn(move || {
            let mut octets = Vec::new();
            client.read_to_end(&mut octets).unwrap();
            octets
        });
        while connection.unsent() > 0 {
            connection.flush(8, |tally| sent.push(tally)).unwrap();
        }
        assert_eq!(sent.len(), 3);
        assert_eq!((connection.held(), connection.stuck_since_ms), (0, None));
        drop(connection);
        assert_eq!(reader.join().unwrap(), [b"one", &large[..], b"endthree"].concat());
    }

    /// Of a pong two octets leave, and what is noted of it takes twelve times as many.
    #[test]
    fn what_is_noted_of_messages_counts_as_held_and_is_given_back() {
        let (mut connection, _client) = pair();
        (0..1000).for_each(|_| connection.push([b"\r\n", b""], Some(Tally::Reply(Answer::Pong))));
        assert_eq!((connection.queued(), connection.held()), (1000, 1000 * (2 + size_of::<Queued>())));
        connection.flush(0, |_| {}).unwrap();
        connection.rest();
        assert_eq!((connection.queued(), connection.held(), connection.queue.capacity()), (0, 0, 0));
    }

    #[test]
    fn who_reads_slowly_is_not_stuck() {
        let (mut connection, mut client) = pair();
        let large = vec![b'x'; 16 << 20];
        connection.push([&large, b""], None);
        connection.flush(7, |_| {}).unwrap();
        assert_eq!((connection.stuck_since_ms, connection.active_ms), (Some(7), 7));
        let before = connection.unsent();
        client.read_exact(&mut vec![0; large.len() - before]).unwrap();
        while connection.unsent() == before {
            connection.flush(9, |_| {}).unwrap();
        }
        assert_eq!((connection.stuck_since_ms, connection.active_ms), (Some(9), 9));
    }

    #[test]
    fn what_did_not_leave_whole_comes_back_whole() {
        for websocket in [None, Some(Box::new(WebSocket::new(Arc::default())))] {
            let (mut connection, _client) = pair();
            connection.websocket = websocket;
            comes_back(&mut connection);
        }
    }

    fn comes_back(connection: &mut Connection) {
        let large = vec![b'x'; 8 << 20];
        connection.push([b"one", b""], Some(Tally::Request(None)));
        connection.push([b"two", &large], Some(Tally::Request(Some(1))));
        connection.push([b"\r\n", b""], None);
        connection.push([b"three", b""], Some(Tally::Response(None, 200)));
        connection.flush(0, |_| {}).unwrap();
        let unsent = connection.give_up();
        assert_eq!(unsent.len(), 2);
        assert_eq!((&unsent[0].octets[..5], unsent[0].tally), (&b"twoxx"[..], Tally::Request(Some(1))));
        assert_eq!(unsent[0].octets.len(), 3 + large.len());
        assert_eq!(&unsent[1].octets[..], b"three");
        assert_eq!((connection.held(), connection.unsent()), (0, 0));
    }
}
