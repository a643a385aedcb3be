//! TCP sockets as a load generator needs them: not blocking, and every message sent at once. Reading and writing is std's.

use super::address::Address;
use super::owned;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

/// Connections that the kernel has completed and nobody has accepted yet; capped by `net.core.somaxconn`. All of an element's
/// may come at once.
const BACKLOG: libc::c_int = 4096;

/// Listens on `address`; port 0 lets the kernel choose.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // SAFETY: no pointers; a second `listen` changes the backlog.
    if unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) } < 0 {
        return Err(io::Error::last_os_error());
    }
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Takes a connection that waits at `listener`; `None` where there is none. One that failed before it was taken is nobody's.
pub fn accept(listener: &TcpListener) -> io::Result<Option<(TcpStream, SocketAddr)>> {
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                return Ok(Some((stream, peer)));
            }
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
            Err(error) => return super::socket::none_if_nothing_there(error),
        }
    }
}

/// Begins to open a connection to `to` from `from`, and says from where it is opened. It is open, or has failed, when it
/// becomes writable; `take_error` tells which.
pub fn connect(to: SocketAddr, from: IpAddr) -> io::Result<(TcpStream, SocketAddr)> {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers; the result is checked before it is owned.
    let socket = owned(unsafe { libc::socket(family, kind, 0) })?;
    let fd = socket.as_raw_fd();
    let one: libc::c_int = 1;
    // The port is found when the connection is made, when it need only be free towards `to` (ip(7)): ten thousand
    // connections take ten thousand ports of this target's, and not of this machine's.
    // SAFETY: `one` is readable for the length passed beside it.
    let result = unsafe {
        libc::setsockopt(
            fd,
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const one).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let local = Address::from(SocketAddr::new(from, 0));
    let name = local.octets();
    // SAFETY: the pointer is readable for the length passed beside it.
    if unsafe { libc::bind(fd, name.as_ptr().cast(), name.len() as libc::socklen_t) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let target = Address::from(to);
    let name = target.octets();
    // SAFETY: the pointer is readable for the length passed beside it.
    if unsafe { libc::connect(fd, name.as_ptr().cast(), name.len() as libc::socklen_t) } < 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINPROGRESS) {
            return Err(error);
        }
    }
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    Ok((stream, local))
}

/// Why the attempt to open it failed; `None`: it is open.
pub fn connect_error(stream: &TcpStream) -> Option<io::Error> {
    match stream.take_error() {
        Ok(None) => stream.peer_addr().err(),
        Ok(Some(error)) | Err(error) => Some(error),
    }
}
