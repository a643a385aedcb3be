//! UDP sockets as shards use them: non-blocking, several to a port, with the options that a proxy needs.

use super::address::{ROOM, RawAddress};
use super::check;
use std::ffi::c_int;
use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// How a socket is opened.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether other sockets of this user may be bound to the same port, and share its datagrams.
    pub shared_port: bool,
    /// Octets asked for the receive buffer. The kernel doubles what it grants, for its own bookkeeping.
    pub receive_buffer: usize,
    /// Octets asked for the send buffer, likewise.
    pub send_buffer: usize,
    /// Whether to ask for ICMP errors, which then tell what destination they are about.
    pub errors: bool,
    /// Whether datagrams are to come with the local address they were sent to. Heeded where it can differ: for a socket
    /// bound to a wildcard address.
    pub tell_local: bool,
}

/// A bound UDP socket.
#[derive(Debug)]
pub struct UdpSocket {
    fd: OwnedFd,
    address: SocketAddr,
    tells_local: bool,
}

impl UdpSocket {
    /// Opens a socket and binds it to `address`.
    pub fn bind(address: SocketAddr, options: &Options) -> io::Result<UdpSocket> {
        let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers; the descriptor is checked and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(check(libc::socket(family, kind, 0))?) };
        let raw = fd.as_raw_fd();
        if options.shared_port {
            set(raw, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        }
        set_buffer(raw, libc::SO_RCVBUF, libc::SO_RCVBUFFORCE, options.receive_buffer)?;
        set_buffer(raw, libc::SO_SNDBUF, libc::SO_SNDBUFFORCE, options.send_buffer)?;
        let tells_local = options.tell_local && address.ip().is_unspecified();
        if address.is_ipv6() {
            // IPv4 has listeners of its own; a socket for both would show its clients as mapped addresses.
            set(raw, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
            set(raw, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, tells_local.into())?;
            set(raw, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, options.errors.into())?;
        } else {
            set(raw, libc::IPPROTO_IP, libc::IP_PKTINFO, tells_local.into())?;
            set(raw, libc::IPPROTO_IP, libc::IP_RECVERR, options.errors.into())?;
            // Whoever on the way can only pass shorter packets is to cut ours. That it cannot would be said to our address, which
            // other nodes may have as well, and until we heard of it nothing of such a length arrived.
            set(raw, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_OMIT)?;
        }
        let wanted = RawAddress::from(address);
        // SAFETY: the pointer and the length are those of one live `RawAddress`.
        check(unsafe { libc::bind(raw, wanted.as_ptr(), wanted.len()) })?;
        let address = local_address(raw)?;
        Ok(UdpSocket { fd, address, tells_local })
    }

    /// The address the socket is bound to, its port filled in.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether datagrams come with the local address they were sent to.
    pub fn tells_local(&self) -> bool {
        self.tells_local
    }

    /// Octets the kernel keeps for datagrams that wait to be received, its bookkeeping left out.
    pub fn receive_buffer(&self) -> io::Result<usize> {
        Ok(get(self.fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF)?.max(0) as usize / 2)
    }

    /// Datagrams the kernel has dropped because that room was full, since the socket was opened.
    pub fn drops(&self) -> io::Result<u64> {
        memory(self.as_raw_fd()).map(|memory| memory.drops)
    }
}

/// What the kernel says of a socket's receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Octets in use, the kernel's bookkeeping among them. What was received counts for a while, up to a quarter of the room.
    pub queued: u64,
    /// Octets there are, counted likewise.
    pub room: u64,
    /// Datagrams dropped because it was full, since the socket was opened.
    pub drops: u64,
}

/// Reads `SO_MEMINFO`: exact at any time and free of cost per datagram, where `SO_RXQ_OVFL` tells of drops with the next
/// datagram that does arrive.
pub fn memory(fd: RawFd) -> io::Result<Memory> {
    // Places in its array: `SK_MEMINFO_RMEM_ALLOC`, `SK_MEMINFO_RCVBUF`, `SK_MEMINFO_DROPS`.
    const QUEUED: usize = 0;
    const ROOM: usize = 1;
    const DROPS: usize = 8;
    let mut info = [0u32; 9];
    let mut len = size_of::<[u32; 9]>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` octets to `info`, which has as many.
    let result = unsafe {
        let room = info.as_mut_ptr().cast();
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_MEMINFO, room, &mut len)
    };
    check(result)?;
    Ok(Memory { queued: info[QUEUED].into(), room: info[ROOM].into(), drops: info[DROPS].into() })
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<UdpSocket> for OwnedFd {
    fn from(socket: UdpSocket) -> OwnedFd {
        socket.fd
    }
}

impl AsRawFd for UdpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

pub(super) fn local_address(fd: RawFd) -> io::Result<SocketAddr> {
    let mut address = RawAddress::default();
    *address.len_mut() = ROOM;
    let pointer = address.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most `len` octets to the storage, which has as many.
    check(unsafe { libc::getsockname(fd, pointer, address.len_mut()) })?;
    address.address().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Asks for a buffer of `octets`: first beyond the system's limit, which needs `CAP_NET_ADMIN`, then within it.
fn set_buffer(fd: RawFd, option: c_int, force: c_int, octets: usize) -> io::Result<()> {
    let octets = c_int::try_from(octets).unwrap_or(c_int::MAX);
    set(fd, libc::SOL_SOCKET, force, octets).or_else(|_| set(fd, libc::SOL_SOCKET, option, octets))
}

pub(super) fn set(fd: RawFd, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    let len = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` octets of `value`, which has as many.
    check(unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), len) }).map(drop)
}

fn get(fd: RawFd, level: c_int, option: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut len = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` octets to `value`, which has as many.
    check(unsafe { libc::getsockopt(fd, level, option, (&raw mut value).cast(), &mut len) })?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: Options =
        Options { shared_port: true, receive_buffer: 1 << 18, send_buffer: 1 << 18, errors: true, tell_local: true };

    #[test]
    fn packets_may_be_cut_on_their_way() {
        let socket = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &OPTIONS).unwrap();
        let found = get(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER).unwrap();
        assert_eq!(found, libc::IP_PMTUDISC_OMIT);
    }

    #[test]
    fn sockets_share_a_port_only_when_all_of_them_say_so() {
        let first = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &OPTIONS).unwrap();
        assert_ne!(first.address().port(), 0);
        UdpSocket::bind(first.address(), &OPTIONS).unwrap();
        let alone = Options { shared_port: false, ..OPTIONS };
        let refused = UdpSocket::bind(first.address(), &alone).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_full_receive_buffer_is_seen_in_the_drop_counter() {
        let small = Options { receive_buffer: 2048, ..OPTIONS };
        let socket = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &small).unwrap();
        assert_eq!(socket.drops().unwrap(), 0);
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..100 {
            sender.send_to(&[0; 1000], socket.address()).unwrap();
        }
        let memory = memory(socket.as_raw_fd()).unwrap();
        assert!(memory.drops > 50 && memory.queued > memory.room / 2, "{memory:?}");
        assert!(socket.receive_buffer().unwrap() >= 1024);
    }

    #[test]
    fn only_wildcard_sockets_tell_the_local_address() {
        for (address, tells) in [("127.0.0.1:0", false), ("0.0.0.0:0", true), ("[::1]:0", false), ("[::]:0", true)] {
            let socket = UdpSocket::bind(address.parse().unwrap(), &OPTIONS).unwrap();
            assert_eq!(socket.tells_local(), tells, "{address}");
        }
    }
}
