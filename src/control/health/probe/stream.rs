//! A probe's connection: TCP, perhaps with TLS on it.

use crate::tls::session::{CARRIED, Session};
use crate::tls::{Client, Credentials};
use std::io::{self, Write};
use std::net::SocketAddr;
use tokio::net::TcpStream;

/// Octets read at a time: an answer to OPTIONS, and more than one record.
const READ: usize = 20 << 10;

/// A connection.
pub(super) struct Stream {
    socket: TcpStream,
    session: Option<Session>,
}

impl Stream {
    /// One without TLS.
    pub(super) fn plain(socket: TcpStream) -> Stream {
        Stream { socket, session: None }
    }

    /// The same with it from here on, to the backend at `address`.
    pub(super) fn sealed(self, address: SocketAddr, credentials: &Credentials) -> io::Result<Stream> {
        let client: &Client = credentials.clients.get(&address).ok_or(io::ErrorKind::NotFound)?;
        let session = Session::connect(client).map_err(io::Error::other)?;
        Ok(Stream { session: Some(session), ..self })
    }

    /// The local address.
    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Writes all of `octets`. With TLS, when the handshake is over.
    pub(super) async fn write(&mut self, octets: &[u8]) -> io::Result<()> {
        while self.session.as_ref().is_some_and(Session::is_handshaking) {
            self.read(&mut Vec::new()).await?;
        }
        let mut left = octets;
        while !left.is_empty() {
            match &mut self.session {
                Some(session) => {
                    left = &left[session.seal(left)..];
                    self.flush().await?;
                }
                None => {
                    self.socket.writable().await?;
                    match self.socket.try_write(left) {
                        Ok(count) => left = &left[count..],
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads once, and puts what has come behind `came`; of a handshake, nothing has.
    pub(super) async fn read(&mut self, came: &mut Vec<u8>) -> io::Result<()> {
        self.flush().await?;
        self.socket.readable().await?;
        let mut room = vec![0; CARRIED + READ];
        let len = match self.socket.try_read(&mut room[CARRIED..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let Some(session) = &mut self.session else {
            came.extend_from_slice(&room[CARRIED..CARRIED + len]);
            return Ok(());
        };
        let opened = session.open(&mut room, CARRIED, len);
        let has_closed = session.has_closed();
        // An alert of ours goes too.
        self.flush().await?;
        let opened = opened.map_err(io::Error::other)?;
        came.extend_from_slice(&room[..opened]);
        // Whoever closes behind its answer has answered.
        if has_closed && opened == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    async fn flush(&mut self) -> io::Result<()> {
        while let Some(session) = self.session.as_mut().filter(|session| session.wants_write()) {
            match session.write_to(&mut Try(&self.socket)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.socket.writable().await?,
                outcome => outcome?,
            }
        }
        Ok(())
    }
}

/// A socket that is written to as much as it takes.
struct Try<'a>(&'a TcpStream);

impl Write for Try<'_> {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.0.try_write(octets)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
