//! TCP sockets as shards use them: non-blocking, listeners several to a port. Reading and writing is std's.

use super::address::{ROOM, RawAddress};
use super::check;
use super::socket::{local_address, set};
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Connections that the kernel has completed and nobody has accepted yet. Capped by net.core.somaxconn, 4096 by default;
/// with as many SYNs a second as a shard accepts in a turn, it is never the bound.
const BACKLOG: libc::c_int = 4096;

/// How long what was sent may stay without an acknowledgement, in milliseconds: a peer that is gone without a word is
/// noticed (`TCP_USER_TIMEOUT`, RFC 5482). 64*T1, as a transaction would.
const UNACKNOWLEDGED_MS: libc::c_int = 32_000;

/// Opens a socket that listens on `address`. With `shared_port`, other sockets of this user may listen there too, and share
/// its connections. What is accepted sends at once (`TCP_NODELAY`), for which it is asked here: it is handed on.
///
/// # Errors
/// The kernel's.
pub fn listen(address: SocketAddr, shared_port: bool) -> io::Result<TcpListener> {
    let socket = open(address)?;
    let fd = socket.as_raw_fd();
    // A connection of a process before us may still be on its way down.
    set(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    if shared_port {
        set(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    }
    if address.is_ipv6() {
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    bind(&socket, address)?;
    // SAFETY: no pointers.
    check(unsafe { libc::listen(fd, BACKLOG) })?;
    Ok(TcpListener::from(socket))
}

/// Takes a connection that waits at `listener`. `None`: there is none.
///
/// # Errors
/// The kernel's: `EMFILE` and its like, if there is no room for a descriptor. What went wrong with a single connection
/// before it was taken is nobody's business, and the next is tried.
pub fn accept(listener: &TcpListener) -> io::Result<Option<(TcpStream, SocketAddr)>> {
    loop {
        let mut peer = RawAddress::default();
        *peer.len_mut() = ROOM;
        let pointer = peer.as_mut_ptr().cast();
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: the kernel writes at most `len` octets to the storage, which has as many.
        let result = check(unsafe { libc::accept4(listener.as_raw_fd(), pointer, peer.len_mut(), flags) });
        let error = match result {
            Ok(fd) => {
                // SAFETY: the descriptor was just made, and nobody else owns it.
                let stream = TcpStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
                match peer.address() {
                    Some(peer) => return Ok(Some((stream, peer))),
                    None => continue,
                }
            }
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EAGAIN) => return Ok(None),
            // accept(2): errors of the new connection itself.
            Some(
                libc::ECONNABORTED
                | libc::EINTR
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::EPERM
                | libc::ETIMEDOUT,
            ) => {}
            _ => return Err(error),
        }
    }
}

/// Begins to open a connection to `to`, from `local` if it is not for the kernel to choose. It is open, or has failed, when
/// it becomes writable; `take_error` tells which.
///
/// # Errors
/// The kernel's, if it cannot even begin.
pub fn connect(to: SocketAddr, local: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = open(to)?;
    if let Some(local) = local {
        // The port is found when the connection is made, when it need only be free towards `to` (ip(7)).
        set(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
        bind(&socket, SocketAddr::new(local, 0))?;
    }
    let raw = RawAddress::from(to);
    // SAFETY: the pointer and the length are those of one live `RawAddress`.
    match check(unsafe { libc::connect(socket.as_raw_fd(), raw.as_ptr(), raw.len()) }) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(TcpStream::from(socket)),
    }
}

fn open(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers; the descriptor is checked and owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(check(libc::socket(family, kind, 0))?) };
    set(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    set(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)?;
    Ok(socket)
}

fn bind(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    let raw = RawAddress::from(address);
    // SAFETY: the pointer and the length are those of one live `RawAddress`.
    check(unsafe { libc::bind(socket.as_raw_fd(), raw.as_ptr(), raw.len()) }).map(drop)
}

/// How often the kernel has sent again, by a timer, what the other side of `stream` has acknowledged nothing of. 0
/// if the kernel does not say.
pub fn repeats(stream: &TcpStream) -> u8 {
    // SAFETY: a C struct of integers; zero is a value of each.
    let mut info: libc::tcp_info = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    let room = (&raw mut info).cast();
    // SAFETY: the kernel writes at most `len` octets to the struct, which has as many.
    let result =
        check(unsafe { libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, room, &mut len) });
    result.map_or(0, |_| info.tcpi_retransmits)
}

/// The address that `listener` is bound to, its port filled in.
///
/// # Errors
/// The kernel's.
pub fn bound(listener: &TcpListener) -> io::Result<SocketAddr> {
    local_address(listener.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_connection_is_made_and_taken_without_waiting() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = listen(address.parse().unwrap(), true).unwrap();
            assert!(accept(&listener).unwrap().is_none());
            let at = bound(&listener).unwrap();
            let mut client = connect(at, Some(at.ip())).unwrap();
            let (mut server, peer) = loop {
                if let Some(taken) = accept(&listener).unwrap() {
                    break taken;
                }
            };
            assert_eq!(peer, client.local_addr().unwrap());
            assert!(server.nodelay().unwrap() && client.nodelay().unwrap());
            assert_eq!(client.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            client.write_all(b"x").unwrap();
            server.set_nonblocking(false).unwrap();
            assert_eq!(server.read(&mut [0; 8]).unwrap(), 1);
        }
    }

    #[test]
    fn listeners_share_a_port_only_when_all_of_them_say_so() {
        let first = listen("127.0.0.1:0".parse().unwrap(), true).unwrap();
        let at = bound(&first).unwrap();
        listen(at, true).unwrap();
        assert_eq!(listen(at, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
