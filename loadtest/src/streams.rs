//! The connections of one shard: those it opened to an element, and those an element opened to its backends.
//!
//! ```text
//!   opened:    Connecting ──► (Shaking, with TLS) ──► (Asking, as a WebSocket) ──► Open ──► down ──► Connecting …
//!   accepted:                 (Shaking, with TLS) ────────────────────────────────► Open ──► gone
//!
//!   What was opened is kept, and opened again: at once, then after a while.
//! ```
//!
//! Who owns them says where messages go by an [`Address`] that names the connection, and learns from [`Streams::next_ended`]
//! which were lost and why. Octets that wait are bounded: an other side that reads nothing loses its connection. What comes
//! is read into one room for all, an [`Inlet`]; only what is no whole message yet is kept for its connection.

use crate::clock::{MS_NS, SECOND_NS, now_ns};
use crate::rng::{Rng, seed};
use crate::sip::frame::{Framer, Front, MESSAGE_MAX};
use crate::sip::message::Malformed;
use crate::sys::address::Address;
use crate::sys::tcp;
use crate::sys::wait::{Registry, Waiter};
use crate::tls;
use crate::websocket::{self, Asking};
use rustls::Connection;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;

/// Connections have the tokens from here on; sockets and listeners those below.
pub const STREAM_TOKENS: u32 = 1 << 31;

/// Octets that may wait for one other side to read: some 4,000 messages, and far more than a kernel takes before that.
pub const WAITING_MAX: usize = 4 << 20;

/// Octets read at a time. More waits in the kernel, so that every connection gets its turn.
const READ_MAX: usize = 64 << 10;

/// Room that one read of TLS may fill: what was held back of a record, and what has come behind it, 16 KiB each.
const RECORDS_MAX: usize = 40 << 10;

/// The gap before a connection that could not be opened is tried again; it doubles each time, up to the second.
const RETRY_NS: u64 = 100 * MS_NS;
const RETRY_MAX_NS: u64 = 2 * SECOND_NS;

/// Bits of a connection's number that are its place; those above tell apart who had that place.
const SLOT_BITS: u32 = 20;
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;

/// The answer to a ping (RFC 5626 4.4.1).
const PONG: &[u8] = b"\r\n";

/// A connection that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Whose it was.
    pub place: u32,
    /// Whether it had been open; otherwise it could not be opened, or something was to go there while it was down.
    pub was_open: bool,
    /// Why, as a report has it.
    pub cause: &'static str,
}

/// Connections.
#[derive(Debug)]
pub struct Streams {
    registry: Registry,
    /// What opens with TLS; `None`: plainly.
    client: Option<tls::Client>,
    /// What is accepted with TLS.
    server: Option<tls::Server>,
    /// What is opened is a WebSocket, and masked by this.
    masks: Option<Rng>,
    slots: Vec<Option<Stream>>,
    /// How often each slot has been given away, counted from 1.
    generations: Vec<u32>,
    free: Vec<u32>,
    /// Slots with something to send.
    dirty: Vec<u32>,
    ended: Vec<Ended>,
    /// How many are down.
    down: usize,
}

#[derive(Debug)]
struct Stream {
    /// Whose it is: the owner's own number.
    place: u32,
    /// The other side, and this connection's number.
    address: Address,
    /// `None`: it is down.
    socket: Option<TcpStream>,
    phase: Phase,
    tls: Option<Box<Connection>>,
    /// It is to become a WebSocket, and has not been told that it is.
    asking: Option<Box<Asking>>,
    /// What opens it again; `None`: it was accepted.
    opening: Option<Opening>,
    framer: Framer,
    /// What has come of a message that is not whole.
    partial: Vec<u8>,
    /// What is to be sent, of which `sent` octets have been. sent <= out.len()
    out: Vec<u8>,
    sent: usize,
    waits_writable: bool,
    is_dirty: bool,
}

/// What a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The other side is asked to make a WebSocket of it.
    Asking,
    /// It is being opened, or is down.
    Connecting,
    /// Messages go both ways.
    Open,
    /// TLS is being agreed on.
    Shaking,
}

/// Why a read or a write came to nothing.
enum Nothing {
    /// There is nothing at the moment.
    Yet,
    /// It is lost, for this reason.
    Lost(&'static str),
}

impl From<io::Error> for Nothing {
    fn from(error: io::Error) -> Nothing {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::Interrupted => Nothing::Yet,
            _ => Nothing::Lost(cause(&error)),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Opening {
    target: SocketAddr,
    from: IpAddr,
    /// Attempts that have failed since the last that has not.
    failures: u32,
    retry_ns: u64,
    /// Why it is down.
    cause: &'static str,
}

/// Room for what comes on one connection at a time, and the messages in it.
#[derive(Debug)]
pub struct Inlet {
    room: Box<[u8]>,
    /// at <= len <= room.len()
    at: usize,
    len: usize,
    framer: Framer,
    pings: usize,
    broken: Option<Malformed>,
    /// Whether messages have frames.
    is_websocket: bool,
    /// What the last ping held that came in a frame.
    ping: Option<Range<usize>>,
    /// Whether the other side has said that nothing more will come.
    is_closed: bool,
}

impl Default for Inlet {
    fn default() -> Inlet {
        let room = vec![0; MESSAGE_MAX + READ_MAX].into_boxed_slice();
        Inlet {
            room,
            at: 0,
            len: 0,
            framer: Framer::default(),
            pings: 0,
            broken: None,
            is_websocket: false,
            ping: None,
            is_closed: false,
        }
    }
}

impl Inlet {
    /// The next whole message.
    #[inline]
    pub fn next_message(&mut self) -> Option<&[u8]> {
        if self.is_websocket {
            return self.next_in_frame();
        }
        while self.broken.is_none() {
            match self.framer.front(&self.room[self.at..self.len]) {
                Ok(Front::Message(len)) => {
                    self.at += len;
                    return Some(&self.room[self.at - len..self.at]);
                }
                Ok(Front::LineEnds(len)) => {
                    self.at += len;
                    self.pings += usize::from(len >= 4);
                }
                Ok(Front::More) => return None,
                Err(why) => self.broken = Some(why),
            }
        }
        None
    }

    fn next_in_frame(&mut self) -> Option<&[u8]> {
        while self.broken.is_none() && !self.is_closed {
            let at = self.at;
            let of = |range: Range<usize>| at + range.start..at + range.end;
            match websocket::front(&self.room[at..self.len]) {
                Ok(websocket::Front::Message(range)) => {
                    self.at = at + range.end;
                    return Some(&self.room[of(range)]);
                }
                Ok(websocket::Front::Ping(range)) => {
                    self.at = at + range.end;
                    self.ping = Some(of(range));
                }
                Ok(websocket::Front::Nothing(len)) => self.at += len,
                Ok(websocket::Front::Closed) => self.is_closed = true,
                Ok(websocket::Front::More) => return None,
                Err(why) => self.broken = Some(why),
            }
        }
        None
    }

    /// Why nothing more can be read on this connection.
    pub fn broken(&self) -> Option<Malformed> {
        self.broken
    }
}

impl Streams {
    /// None yet.
    pub fn new(waiter: &Waiter) -> Streams {
        Streams {
            registry: waiter.registry(),
            client: None,
            server: None,
            masks: None,
            slots: Vec::new(),
            generations: Vec::new(),
            free: Vec::new(),
            dirty: Vec::new(),
            ended: Vec::new(),
            down: 0,
        }
    }

    /// The same, with TLS on what is opened and what is accepted, each where it is given.
    #[must_use]
    pub fn with_tls(self, client: Option<tls::Client>, server: Option<tls::Server>) -> Streams {
        Streams { client, server, ..self }
    }

    /// The same, and what is opened becomes a WebSocket if `are_opened`.
    #[must_use]
    pub fn with_websockets(self, are_opened: bool) -> Streams {
        Streams { masks: are_opened.then(|| Rng::new(seed())), ..self }
    }

    /// Begins to open a connection for `place`, and keeps it open from here on. Says what messages for it are addressed to.
    pub fn open(&mut self, target: SocketAddr, from: IpAddr, place: u32) -> Address {
        let slot = self.take_slot();
        let address = Address::from(target).on_stream(self.number(slot));
        let opening = Opening { target, from, failures: 0, retry_ns: 0, cause: "" };
        self.slots[slot as usize] = Some(Stream::new(place, address, Some(opening)));
        self.down += 1;
        address
    }

    /// Takes what waits at a listener of `place`, and says how many; those of a listener for TLS with that.
    pub fn accept(&mut self, listener: &TcpListener, place: u32, with_tls: bool) -> io::Result<usize> {
        let mut count = 0;
        while let Some((socket, peer)) = tcp::accept(listener)? {
            let slot = self.take_slot();
            let address = Address::from(peer).on_stream(self.number(slot));
            self.registry.add(&socket, STREAM_TOKENS | slot, false)?;
            let tls = self.server.as_ref().filter(|_| with_tls).map(tls::Server::begin).transpose();
            let tls = tls.map_err(io::Error::other)?.map(Box::new);
            let phase = if tls.is_some() { Phase::Shaking } else { Phase::Open };
            self.slots[slot as usize] =
                Some(Stream { socket: Some(socket), phase, tls, ..Stream::new(place, address, None) });
            count += 1;
        }
        Ok(count)
    }

    /// Opens what is down and due. `opened` hears for whom, and from which address.
    pub fn reopen(&mut self, now: u64, mut opened: impl FnMut(u32, SocketAddr)) {
        if self.down == 0 {
            return;
        }
        for slot in 0..self.slots.len() {
            let Some(stream) = self.slots[slot].as_mut().filter(|stream| stream.socket.is_none()) else { continue };
            let Some(opening) = stream.opening.filter(|opening| opening.retry_ns <= now) else { continue };
            let begun = tcp::connect(opening.target, opening.from).and_then(|(socket, local)| {
                self.registry.add(&socket, STREAM_TOKENS | slot as u32, true)?;
                let tls = self.client.as_ref().map(tls::Client::begin).transpose().map_err(io::Error::other)?;
                stream.tls = tls.map(Box::new);
                Ok((socket, local))
            });
            match begun {
                Ok((socket, local)) => {
                    (stream.socket, stream.waits_writable) = (Some(socket), true);
                    if self.masks.is_some() {
                        let (asking, request) = Asking::new(opening.target);
                        (stream.asking, stream.out) = (Some(Box::new(asking)), request);
                    }
                    self.down -= 1;
                    opened(stream.place, local);
                }
                Err(error) => {
                    self.down -= 1;
                    self.end(slot as u32, cause(&error));
                }
            }
        }
    }

    /// Waits until no connection is being opened, for at most `patience_ns`.
    pub fn settle(&mut self, waiter: &Waiter, patience_ns: u64) -> io::Result<()> {
        let (start, mut ready, mut inlet) = (now_ns(), Vec::new(), Inlet::default());
        let is_opening = |stream: &Stream| stream.socket.is_some() && stream.phase != Phase::Open;
        while now_ns() - start < patience_ns && self.slots.iter().flatten().any(is_opening) {
            waiter.wait(10 * MS_NS, &mut ready)?;
            for token in ready.drain(..).filter(|token| token & STREAM_TOKENS != 0) {
                if self.slots.get((token & SLOT_MASK) as usize).and_then(Option::as_ref).is_some_and(is_opening)
                    && let Some((_, from)) = self.read(token, &mut inlet)
                {
                    // Nobody speaks before he is asked.
                    self.keep(from, &mut inlet);
                }
            }
        }
        Ok(())
    }

    /// When one that is down is to be opened; `u64::MAX` if none is.
    pub fn next_ns(&self) -> u64 {
        if self.down == 0 {
            return u64::MAX;
        }
        let down = self.slots.iter().flatten().filter(|stream| stream.socket.is_none());
        down.filter_map(|stream| Some(stream.opening?.retry_ns)).min().unwrap_or(u64::MAX)
    }

    /// How many of those that were opened are open.
    pub fn opened(&self) -> usize {
        self.slots.iter().flatten().filter(|stream| stream.opening.is_some() && stream.is_open()).count()
    }

    /// Lets a message wait for the next flush, on the connection that `to` names. `false`: that is gone, or its other side
    /// reads nothing. Of one that is down the owner is told again, so that what was to go there fails at once: a message that
    /// waited would speak of an address that the connection has no more when it is back.
    pub fn push(&mut self, to: Address, octets: &[u8]) -> bool {
        let slot = to.stream() & SLOT_MASK;
        if to.stream() != self.number(slot) {
            return false;
        }
        let Some(stream) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) else { return false };
        if stream.socket.is_none() {
            let (place, cause) = (stream.place, stream.opening.map_or("", |opening| opening.cause));
            if self.ended.iter().all(|ended| ended.place != place) {
                self.ended.push(Ended { place, was_open: false, cause });
            }
            return false;
        }
        if stream.out.len() - stream.sent + octets.len() > WAITING_MAX {
            self.end(slot, "connection: the other side does not read");
            return false;
        }
        match self.masks.as_mut().filter(|_| stream.opening.is_some()) {
            Some(masks) => websocket::put_message(&mut stream.out, octets, masks.next_u64() as u32),
            None => stream.out.extend_from_slice(octets),
        }
        if !stream.is_dirty {
            stream.is_dirty = true;
            self.dirty.push(slot);
        }
        true
    }

    /// Sends what waits, as much of it as the kernel takes: one system call per connection.
    pub fn flush(&mut self) {
        while let Some(slot) = self.dirty.pop() {
            if let Some(stream) = self.slots[slot as usize].as_mut() {
                stream.is_dirty = false;
            }
            self.flush_one(slot);
        }
    }

    /// Reads what has come on the connection with this token, and says from whom. `None`: nothing.
    pub fn read(&mut self, token: u32, inlet: &mut Inlet) -> Option<(u32, Address)> {
        let slot = token & SLOT_MASK;
        if !self.advance(slot) {
            return None;
        }
        let stream = self.slots[slot as usize].as_mut()?;
        let began = stream.partial.len();
        inlet.room[..began].copy_from_slice(&stream.partial);
        let received = stream.receive(&mut inlet.room[began..began + READ_MAX]);
        let is_shaken = stream.phase == Phase::Shaking && stream.tls.as_ref().is_some_and(|tls| !tls.is_handshaking());
        if is_shaken {
            stream.ask_or_open();
        }
        if stream.tls.as_ref().is_some_and(|tls| tls.wants_write()) || is_shaken {
            self.flush_one(slot);
        }
        match received {
            Ok(0) => self.end(slot, "connection closed by the other side"),
            Ok(count) => {
                let answer = self.take_answer(slot, &inlet.room[..began + count])?;
                let stream = self.slots[slot as usize].as_ref()?;
                (inlet.at, inlet.len, inlet.framer) = (answer, began + count, stream.framer);
                (inlet.pings, inlet.broken, inlet.ping, inlet.is_closed) = (0, None, None, false);
                inlet.is_websocket = self.masks.is_some() && stream.opening.is_some();
                return Some((stream.place, stream.address));
            }
            Err(Nothing::Yet) => {}
            Err(Nothing::Lost(cause)) => self.end(slot, cause),
        }
        None
    }

    /// Takes back what is left of what was read from there: the beginning of a message.
    pub fn keep(&mut self, from: Address, inlet: &mut Inlet) {
        let slot = from.stream() & SLOT_MASK;
        let Some(stream) = self.slots[slot as usize].as_mut().filter(|stream| stream.is_open()) else { return };
        if inlet.broken.is_some() {
            return self.end(slot, "connection: what came is no message");
        }
        if inlet.is_closed {
            return self.end(slot, "WebSocket closed by the other side");
        }
        if let Some((ping, masks)) = inlet.ping.take().zip(self.masks.as_mut()) {
            websocket::put_pong(&mut stream.out, &inlet.room[ping], masks.next_u64() as u32);
            if !std::mem::replace(&mut stream.is_dirty, true) {
                self.dirty.push(slot);
            }
        }
        stream.framer = inlet.framer;
        stream.partial.clear();
        stream.partial.extend_from_slice(&inlet.room[inlet.at..inlet.len]);
        if stream.opening.is_none() {
            // RFC 5626 4.4.1: who is called answers; a line end that comes to a caller is such an answer.
            for _ in 0..std::mem::take(&mut inlet.pings) {
                self.push(from, PONG);
            }
        }
    }

    /// The next connection that was lost since this was last asked.
    #[inline]
    pub fn next_ended(&mut self) -> Option<Ended> {
        self.ended.pop()
    }

    /// Ends every connection that was opened; with the next [`reopen`](Self::reopen) others take their place.
    pub fn renew(&mut self) {
        for slot in 0..self.slots.len() as u32 {
            let is_up = |stream: &Stream| stream.opening.is_some() && stream.socket.is_some();
            if self.slots[slot as usize].as_ref().is_some_and(is_up) {
                self.end(slot, "connection renewed");
            }
        }
    }

    /// Closes all connections of `place`, without a word to anybody.
    pub fn close_all_of(&mut self, place: u32) {
        for slot in 0..self.slots.len() as u32 {
            if self.slots[slot as usize].as_ref().is_some_and(|stream| stream.place == place) {
                self.vacate(slot);
            }
        }
    }

    /// Finishes opening it, sends what waits, and says whether it can be read.
    fn advance(&mut self, slot: u32) -> bool {
        let Some(stream) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) else { return false };
        let Some(socket) = &stream.socket else { return false };
        if stream.phase == Phase::Connecting {
            if let Some(error) = tcp::connect_error(socket) {
                if error.kind() != ErrorKind::NotConnected {
                    self.end(slot, cause(&error));
                }
                return false;
            }
            match stream.tls {
                Some(_) => stream.phase = Phase::Shaking,
                None => stream.ask_or_open(),
            }
        }
        if stream.waits_writable {
            self.flush_one(slot);
        }
        self.slots[slot as usize].as_ref().is_some_and(|stream| stream.phase != Phase::Connecting)
    }

    /// Takes the answer to the request to become a WebSocket, if one is waited for, and says how many of these octets it is. `None`:
    /// it is not there yet, or is a no.
    fn take_answer(&mut self, slot: u32, octets: &[u8]) -> Option<usize> {
        let stream = self.slots[slot as usize].as_mut()?;
        let Some(asking) = &stream.asking else { return Some(0) };
        match asking.answer(octets) {
            Ok(Some(len)) => {
                stream.asking = None;
                stream.open();
                stream.partial.clear();
                self.flush_one(slot);
                Some(len)
            }
            Ok(None) => {
                stream.partial = octets.to_vec();
                None
            }
            Err(cause) => {
                self.end(slot, cause);
                None
            }
        }
    }

    fn flush_one(&mut self, slot: u32) {
        let Some(stream) = self.slots[slot as usize].as_mut() else { return };
        let waits = match stream.transmit() {
            Ok(()) => false,
            Err(Nothing::Yet) => true,
            Err(Nothing::Lost(cause)) => return self.end(slot, cause),
        };
        let Some(socket) = stream.socket.as_ref().filter(|_| stream.phase != Phase::Connecting) else { return };
        if waits != stream.waits_writable {
            stream.waits_writable = waits;
            if let Err(error) = self.registry.set_writable(socket, STREAM_TOKENS | slot, waits) {
                self.end(slot, cause(&error));
            }
        }
    }

    /// It is lost. One that was opened is down from here on.
    fn end(&mut self, slot: u32, cause: &'static str) {
        let Some(stream) = self.slots[slot as usize].as_mut() else { return };
        self.ended.push(Ended { place: stream.place, was_open: stream.is_open(), cause });
        let Some(opening) = &mut stream.opening else { return self.vacate(slot) };
        opening.cause = cause;
        if stream.phase == Phase::Open {
            opening.retry_ns = 0;
        } else {
            opening.retry_ns = now_ns() + (RETRY_NS << opening.failures.min(8)).min(RETRY_MAX_NS);
            opening.failures += 1;
        }
        let (place, address, opening) = (stream.place, stream.address, stream.opening);
        *stream = Stream { is_dirty: stream.is_dirty, ..Stream::new(place, address, opening) };
        self.down += 1;
    }

    fn vacate(&mut self, slot: u32) {
        let Some(stream) = self.slots[slot as usize].take() else { return };
        self.down -= usize::from(stream.opening.is_some() && stream.socket.is_none());
        self.free.push(slot);
    }

    fn take_slot(&mut self) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.generations.push(0);
            self.slots.len() as u32 - 1
        });
        let generation = &mut self.generations[slot as usize];
        // Never 0, which is no connection's.
        *generation = *generation % (SLOT_MASK >> 8) + 1;
        slot
    }

    fn number(&self, slot: u32) -> u32 {
        self.generations.get(slot as usize).map_or(0, |generation| generation << SLOT_BITS | slot)
    }
}

impl Stream {
    fn new(place: u32, address: Address, opening: Option<Opening>) -> Stream {
        Stream {
            place,
            address,
            socket: None,
            phase: Phase::Connecting,
            tls: None,
            asking: None,
            opening,
            framer: Framer::default(),
            partial: Vec::new(),
            out: Vec::new(),
            sent: 0,
            waits_writable: false,
            is_dirty: false,
        }
    }

    fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// It can be written to: it is open, or may become a WebSocket.
    fn ask_or_open(&mut self) {
        match self.asking {
            Some(_) => self.phase = Phase::Asking,
            None => self.open(),
        }
    }

    fn open(&mut self) {
        self.phase = Phase::Open;
        if let Some(opening) = &mut self.opening {
            opening.failures = 0;
        }
    }

    /// Reads what has come; 0 octets: the other side has closed.
    fn receive(&mut self, room: &mut [u8]) -> Result<usize, Nothing> {
        let Some(socket) = &mut self.socket else { return Err(Nothing::Yet) };
        let Some(tls) = &mut self.tls else { return Ok(socket.read(room)?) };
        let (mut len, mut is_closed) = (0, false);
        while !is_closed && room.len() - len >= RECORDS_MAX {
            match tls.read_tls(socket) {
                Ok(count) => is_closed = count == 0,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if len == 0 => return Err(error.into()),
                // What has come before counts; the error comes again.
                Err(_) => break,
            }
            if let Err(error) = tls.process_new_packets() {
                // The alert tells the other side; whether it arrives is not ours to know.
                let _ = tls.write_tls(socket);
                return Err(Nothing::Lost(tls::cause(&error)));
            }
            loop {
                match tls.reader().read(&mut room[len..]) {
                    Ok(0) => is_closed = true,
                    Ok(count) => {
                        len += count;
                        continue;
                    }
                    Err(_) => {}
                }
                break;
            }
        }
        if len > 0 || is_closed { Ok(len) } else { Err(Nothing::Yet) }
    }

    /// Sends what waits, as much of it as the kernel takes.
    fn transmit(&mut self) -> Result<(), Nothing> {
        let result = self.transmit_some();
        if let Some(asking) = &mut self.asking {
            asking.left -= self.sent;
        }
        self.out.drain(..self.sent);
        self.sent = 0;
        result
    }

    fn transmit_some(&mut self) -> Result<(), Nothing> {
        let Some(socket) = self.socket.as_mut().filter(|_| self.phase != Phase::Connecting) else { return Ok(()) };
        // Messages wait for the answer.
        let end = self.asking.as_ref().map_or(self.out.len(), |asking| asking.left);
        let Some(tls) = &mut self.tls else {
            while self.sent < end {
                match socket.write(&self.out[self.sent..end]) {
                    Ok(count) => self.sent += count,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error.into()),
                }
            }
            return Ok(());
        };
        loop {
            if self.phase != Phase::Shaking && self.sent < end {
                self.sent += tls.writer().write(&self.out[self.sent..end])?;
            }
            if !tls.wants_write() {
                return Ok(());
            }
            match tls.write_tls(socket) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
                _ => {}
            }
        }
    }
}

/// Why a connection is gone, as a report has it.
fn cause(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused",
        ErrorKind::TimedOut => "connection timed out",
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "connection: there is no way to it",
        ErrorKind::AddrNotAvailable => "connection: no port is left on this side",
        _ => "connection reset",
    }
}
