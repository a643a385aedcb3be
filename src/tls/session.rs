//! One connection's TLS, without the connection: sealed octets in, open octets out, and the other way round.
//!
//! ```text
//! from the socket ─► open ─► what the other side says       (and perhaps something to send: the handshake, an alert)
//! what we say ─► seal ─► write_to ─► to the socket
//! ```
//!
//! # What is bounded
//!
//! What came and is no whole record: one record, or 64 KiB of a handshake; of what was opened nothing stays. What was sealed
//! and not sent: [`SEALED_MAX`] octets of plain text, and what rustls has to say itself.

use super::{Client, Server};
use crate::dataplane::counters::Handshake;
use rustls::{ClientConnection, Connection, Error, HandshakeKind, InvalidMessage, ServerConnection};
use std::fmt;
use std::io::{self, Read, Write};
use std::ops::Range;

/// Octets of plain text that what was carried from earlier octets can hold at most: a record is no longer (RFC 8446 5.2,
/// and 2048 octets more in RFC 5246 6.2.3).
pub const CARRIED: usize = 20 << 10;

/// Octets that are sealed at a time: four records. What is sealed is in the other side's way if what it waits for is not
/// sent, so it is sent before more is sealed.
pub const SEALED_MAX: usize = 64 << 10;

/// Octets of whole records with nothing in them to open behind which a client has to be in the middle of a message of TLS: the only one
/// that it may send after the handshake is five octets long, and of these 32 are taken in a row.
const SILENT_MAX: usize = 4096;

/// Octets that rustls keeps of a message of TLS at most.
const MESSAGE_MAX: usize = 64 << 10;

/// Octets of the header of a record (RFC 8446 5.1).
const HEADER: usize = 5;

/// Where records end in what comes: rustls keeps what is not whole, and does not say how much that is.
#[derive(Debug, Default)]
struct Records {
    /// The two octets of a header that came last: in the end the length of what is behind it.
    len: [u8; 2],
    /// Octets that have come of a record that is not whole.
    begun: usize,
    /// Octets of whole ones since something was opened.
    silent: usize,
}

impl Records {
    fn pass(&mut self, mut octets: &[u8]) {
        while let Some(&first) = octets.first() {
            let mut taken = 1;
            if self.begun < HEADER {
                self.len = [self.len[1], first];
            } else {
                taken = octets.len().min(self.whole() - self.begun);
            }
            self.begun += taken;
            octets = &octets[taken..];
            if self.begun >= HEADER && self.begun == self.whole() {
                self.silent = (self.silent + self.begun).min(MESSAGE_MAX);
                self.begun = 0;
            }
        }
    }

    fn whole(&self) -> usize {
        HEADER + usize::from(u16::from_be_bytes(self.len))
    }
}

/// Why a session is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What it means, if it comes in the handshake.
    pub handshake: Handshake,
    /// What rustls says.
    pub text: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let handshake = match &error {
            Error::InvalidCertificate(_) => Handshake::BadCertificate,
            Error::NoCertificatesPresented => Handshake::NoCertificate,
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Handshake::Incompatible,
            Error::AlertReceived(_) => Handshake::Refused,
            Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
                Handshake::NotTls
            }
            _ => Handshake::Violation,
        };
        Failure { handshake, text: error.to_string() }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure { handshake: Handshake::Violation, text: error.to_string() }
    }
}

/// A session.
#[derive(Debug)]
pub struct Session {
    tls: Connection,
    records: Records,
    has_heard: bool,
    has_closed: bool,
    failure: Option<Failure>,
}

impl Session {
    /// The session of a connection that was accepted.
    ///
    /// # Errors
    /// rustls's.
    pub fn accept(server: &Server) -> Result<Session, Failure> {
        Ok(Session::new(ServerConnection::new(server.config.clone())?.into()))
    }

    /// The session of a connection to a backend.
    ///
    /// # Errors
    /// rustls's.
    pub fn connect(client: &Client) -> Result<Session, Failure> {
        Ok(Session::new(ClientConnection::new(client.config.clone(), client.name.clone())?.into()))
    }

    fn new(mut tls: Connection) -> Session {
        tls.set_buffer_limit(Some(SEALED_MAX));
        Session { tls, records: Records::default(), has_heard: false, has_closed: false, failure: None }
    }

    /// Whether messages have to wait.
    pub fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// What the handshake was, once it is over.
    pub fn handshake(&self) -> Handshake {
        match self.tls.handshake_kind() {
            Some(HandshakeKind::Resumed) => Handshake::Resumed,
            _ => Handshake::Full,
        }
    }

    /// Octets that have come of a record that is not whole, and of whole ones that may be part of a message of TLS itself.
    pub fn unopened(&self) -> usize {
        self.records.begun + self.records.silent
    }

    /// Whether the other side has begun something that it has to end. Tickets of servers may be long, and come several at a time.
    pub fn has_begun(&self) -> bool {
        self.records.begun > 0 || matches!(self.tls, Connection::Server(_)) && self.records.silent > SILENT_MAX
    }

    /// Whether the other side has said anything.
    pub fn has_heard(&self) -> bool {
        self.has_heard
    }

    /// Whether the other side has said that nothing more will come.
    pub fn has_closed(&self) -> bool {
        self.has_closed
    }

    /// Why nothing more can be opened, if what was opened last is all there is.
    pub fn take_failure(&mut self) -> Option<Failure> {
        self.failure.take()
    }

    /// Whether there is something for [`Session::write_to`].
    pub fn wants_write(&self) -> bool {
        self.tls.wants_write()
    }

    /// Opens the `len` sealed octets that lie in `room` from `start` on, which is [`CARRIED`] at least. Returns how many
    /// open ones lie at the beginning of `room` then.
    ///
    /// Opened octets are no more than sealed ones were, with those that were carried, so they overtake none that is still
    /// to be opened.
    ///
    /// # Errors
    /// The session is of no use any more, and nothing was opened: what was whole before the fault comes first, and then
    /// [`Session::take_failure`] has the rest to say. There may be an alert to send.
    pub fn open(&mut self, room: &mut [u8], start: usize, len: usize) -> Result<usize, Failure> {
        debug_assert!(start >= CARRIED && start + len <= room.len());
        let (mut opened, was_handshaking) = (0, self.is_handshaking());
        self.has_heard = true;
        self.records.pass(&room[start..start + len]);
        let outcome = self.open_on(room, start..start + len, &mut opened);
        if opened > 0 || was_handshaking {
            self.records.silent = 0;
        }
        match outcome {
            Err(failure) if opened == 0 => Err(failure),
            outcome => {
                self.failure = outcome.err();
                Ok(opened)
            }
        }
    }

    fn open_on(&mut self, room: &mut [u8], sealed: Range<usize>, opened: &mut usize) -> Result<(), Failure> {
        let mut at = sealed.start;
        while at < sealed.end {
            let taken = self.tls.read_tls(&mut &room[at..sealed.end])?;
            at += taken;
            let state = self.tls.process_new_packets();
            *opened += self.take_opened(&mut room[*opened..at])?;
            self.has_closed |= state?.peer_has_closed();
            if taken == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Takes what is open, as far as there is room.
    fn take_opened(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let mut taken = 0;
        while taken < room.len() {
            match self.tls.reader().read(&mut room[taken..]) {
                Ok(0) => break,
                Ok(count) => taken += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }

    /// Seals as much of `octets` as may be sealed at a time, and returns how much that is. To be called only when all that
    /// was sealed before is sent.
    pub fn seal(&mut self, octets: &[u8]) -> usize {
        let most = octets.len().min(SEALED_MAX);
        self.tls.writer().write(&octets[..most]).unwrap_or(0)
    }

    /// Writes what is to be sent.
    ///
    /// # Errors
    /// Those of `out`; with `WouldBlock` the rest waits.
    pub fn write_to(&mut self, out: &mut impl Write) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(out) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Says that nothing more will come from us.
    pub fn close(&mut self) {
        self.tls.send_close_notify();
    }
}
