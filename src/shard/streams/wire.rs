//! What a connection's octets go through on their way: the socket, and TLS on it where there is TLS.
//!
//! Whoever reads and writes need not know which it is. What is written counts as written when the kernel has all of what
//! became of it, so that a message is counted, or given up, alike over TCP and TLS.

use crate::dataplane::counters::Handshake;
use crate::tls::session::{CARRIED, Failure, SEALED_MAX, Session};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

/// Why nothing can be read any more.
#[derive(Debug)]
pub enum Broken {
    /// The kernel says so.
    Socket,
    /// What came cannot be opened.
    Tls(Failure),
}

/// A socket, perhaps with TLS on it.
#[derive(Debug)]
pub struct Wire {
    socket: TcpStream,
    session: Option<Box<Session>>,
    /// What stands in front of everything, of TLS too, as far as the kernel has not taken it.
    preface: Box<[u8]>,
    /// Octets of the last write that are sealed, and not all with the kernel: the next write begins with the same.
    sealed: usize,
}

impl Wire {
    /// A socket as it is, or with a session on it.
    pub fn new(socket: TcpStream, session: Option<Session>) -> Wire {
        Wire { socket, session: session.map(Box::new), preface: Box::default(), sealed: 0 }
    }

    /// The same, with `preface` in front of everything that is written.
    pub fn behind(self, preface: Vec<u8>) -> Wire {
        Wire { preface: preface.into(), ..self }
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Whether there is TLS on it.
    pub fn is_tls(&self) -> bool {
        self.session.is_some()
    }

    /// Whether messages have to wait for the handshake.
    pub fn is_handshaking(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.is_handshaking())
    }

    /// What the handshake was that is over.
    pub fn handshake(&self) -> Handshake {
        self.session.as_ref().map_or(Handshake::Full, |session| session.handshake())
    }

    /// Whether the other side has said anything of TLS.
    pub fn has_heard(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.has_heard())
    }

    /// Whether the other side has said, without closing the socket, that nothing more will come.
    pub fn has_closed(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.has_closed())
    }

    /// Why nothing can be read behind what was read last.
    pub fn take_failure(&mut self) -> Option<Failure> {
        self.session.as_mut().and_then(|session| session.take_failure())
    }

    /// Whether there is something that [`Wire::flush`] would send.
    pub fn wants_write(&self) -> bool {
        !self.preface.is_empty() || self.session.as_ref().is_some_and(|session| session.wants_write())
    }

    /// Octets kept beside those that are to be written.
    pub fn held(&self) -> usize {
        self.sealed + self.unopened()
    }

    /// Octets of these that have come, and are nothing whole that could be opened.
    pub fn unopened(&self) -> usize {
        self.session.as_ref().map_or(0, |session| session.unopened())
    }

    /// Whether the other side has begun something that TLS opens only when all of it is there.
    pub fn has_begun(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.has_begun())
    }

    /// Octets that [`Wire::read`] needs beside those it is to read.
    pub fn margin(&self) -> usize {
        if self.is_tls() { CARRIED } else { 0 }
    }

    /// Reads what has come, once. `Some(0)`: nothing more will. Nothing of what has come stays behind, so the socket tells
    /// when there is more.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub fn read(&mut self, room: &mut [u8]) -> Result<Option<usize>, Broken> {
        let margin = self.margin().min(room.len());
        let read = read_once(&mut self.socket, &mut room[margin..]).map_err(|_| Broken::Socket)?;
        let (Some(session), Some(len @ 1..)) = (&mut self.session, read) else { return Ok(read) };
        match session.open(room, CARRIED, len).map_err(Broken::Tls)? {
            0 => Ok(None),
            opened => Ok(Some(opened)),
        }
    }

    /// Reads what has come and throws it away. Whether more may come.
    pub fn discard(&mut self) -> bool {
        matches!(read_once(&mut self.socket, &mut [0; 4096]), Ok(None | Some(1..)))
    }

    /// Writes from the beginning of `octets`, and returns how many of them the kernel has taken. If it takes none, the next
    /// write begins with the same octets.
    ///
    /// # Errors
    /// The socket's.
    pub fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        let Some(session) = &mut self.session else { return self.socket.write(octets) };
        if self.sealed == 0 {
            self.sealed = session.seal(octets);
        }
        session.write_to(&mut self.socket)?;
        Ok(std::mem::take(&mut self.sealed))
    }

    /// Sends what stands in front of everything, what TLS has to say itself, and what it has of earlier writes. Nothing is
    /// to be written before this has succeeded.
    ///
    /// # Errors
    /// The socket's.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.preface.is_empty() {
            match self.socket.write(&self.preface) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.preface = self.preface[count..].into(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        match &mut self.session {
            Some(session) => session.write_to(&mut self.socket),
            None => Ok(()),
        }
    }

    /// Says that nothing more will come from us, as far as that can be said at once.
    pub fn say_goodbye(&mut self) {
        if let Some(session) = &mut self.session {
            session.close();
            // Whoever does not take it learns of the end from the socket.
            session.write_to(&mut self.socket).ok();
        }
    }

    /// The same, and the kernel says it too.
    pub fn shut(&mut self) {
        self.say_goodbye();
        self.socket.shutdown(Shutdown::Write).ok();
    }
}

fn read_once(socket: &mut TcpStream, room: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match socket.read(room) {
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// What a connection may keep sealed is within what it may keep at all.
const _: () = assert!(SEALED_MAX <= crate::dataplane::limits::SEND_BACKLOG_MAX);
