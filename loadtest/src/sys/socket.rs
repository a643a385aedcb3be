//! UDP sockets as a load generator needs them: not blocking, large buffers, errors of the network reported.

use super::address::{ADDRESS_MAX, Address};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};

/// Receive and send buffer asked for, in octets. The kernel clamps it to `net.core.rmem_max`, doubles it for its own
/// bookkeeping, and charges about 2.3 KiB for a SIP message of 900 octets: 8 MiB hold some 7,000 of them, which is
/// 40 ms at 180,000 messages a second. What the kernel really gave is in [`Socket::receive_buffer_octets`].
pub const BUFFER_OCTETS: usize = 8 << 20;

/// The same for callers and callees, whose own losses would be taken for the element's: 160 ms. Elements that are compared
/// all get [`BUFFER_OCTETS`].
pub const PATIENT_BUFFER_OCTETS: usize = 32 << 20;

/// What `SO_MEMINFO` fills (`linux/sock_diag.h`), and where in it the drops are. libc has no names for them.
const SK_MEMINFO_VARS: usize = 9;
const SK_MEMINFO_DROPS: usize = 8;

/// A bound UDP socket.
#[derive(Debug)]
pub struct Socket {
    socket: UdpSocket,
    local: SocketAddr,
}

impl Socket {
    /// Binds to `address`; port 0 lets the kernel choose. Nobody else may have it: a second generator on the same port
    /// would quietly take half of the answers.
    pub fn bind(address: SocketAddr) -> io::Result<Socket> {
        Socket::bind_with(address, BUFFER_OCTETS)
    }

    /// The same, with buffers of so many octets.
    pub fn bind_with(address: SocketAddr, buffer_octets: usize) -> io::Result<Socket> {
        let socket = UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        let bound = Socket { local: socket.local_addr()?, socket };
        bound.enlarge(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, buffer_octets);
        bound.enlarge(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, buffer_octets);
        let (level, option) = match address {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVERR),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
        };
        bound.set_option(level, option, 1)?;
        Ok(bound)
    }

    /// The address from which the kernel would send to `target`.
    pub fn toward(target: SocketAddr) -> io::Result<std::net::IpAddr> {
        let any: SocketAddr = match target {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0; 16], 0).into(),
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(target)?;
        Ok(socket.local_addr()?.ip())
    }

    /// Where it is bound.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Whether receives wait for a datagram. They do not unless this is called; a relay with one socket and nothing else
    /// to do saves the `epoll` with it.
    pub fn set_blocking(&self, blocking: bool) -> io::Result<()> {
        self.socket.set_nonblocking(!blocking)
    }

    /// How long a blocking receive waits at most.
    pub fn set_receive_timeout(&self, timeout: std::time::Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(timeout))
    }

    /// Octets of the receive buffer as the kernel accounts for it.
    pub fn receive_buffer_octets(&self) -> io::Result<usize> {
        let mut value: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: `value` is writable and `len` says how large it is; the descriptor is open for as long as `self` lives.
        let result = unsafe {
            libc::getsockopt(self.fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, (&raw mut value).cast(), &raw mut len)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value.max(0) as usize) }
    }

    /// Datagrams that came for this socket and were dropped since it was opened, nearly always because its buffer was full.
    pub fn dropped(&self) -> u64 {
        let mut values = [0u32; SK_MEMINFO_VARS];
        let mut len = size_of_val(&values) as libc::socklen_t;
        // SAFETY: `values` is writable and `len` says how large it is; the descriptor is open for as long as `self` lives.
        let result = unsafe {
            libc::getsockopt(self.fd(), libc::SOL_SOCKET, libc::SO_MEMINFO, values.as_mut_ptr().cast(), &raw mut len)
        };
        if result < 0 { 0 } else { u64::from(values[SK_MEMINFO_DROPS]) }
    }

    /// One datagram into `room`: its length and its source, `None` where there is none.
    pub fn receive_from(&self, room: &mut [u8]) -> io::Result<Option<(usize, Address)>> {
        let mut octets = [0; ADDRESS_MAX];
        let mut len = ADDRESS_MAX as libc::socklen_t;
        // SAFETY: `room` and `octets` are writable for the lengths passed beside them, and outlive the call.
        let result = unsafe {
            libc::recvfrom(self.fd(), room.as_mut_ptr().cast(), room.len(), 0, octets.as_mut_ptr().cast(), &raw mut len)
        };
        match usize::try_from(result) {
            Ok(octets_read) => Ok(Some((octets_read, Address::from_kernel(&octets, len)))),
            Err(_) => none_if_nothing_there(io::Error::last_os_error()),
        }
    }

    /// Sends one datagram.
    pub fn send_to(&self, datagram: &[u8], to: &Address) -> io::Result<()> {
        let name = to.octets();
        // SAFETY: both pointers are readable for the lengths passed beside them, and outlive the call.
        let result = unsafe {
            libc::sendto(
                self.fd(),
                datagram.as_ptr().cast(),
                datagram.len(),
                0,
                name.as_ptr().cast(),
                name.len() as libc::socklen_t,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next error the network reported (ICMP), with the address our datagram was for: `None` when there is no more.
    /// While one is queued, each receive and send on the socket fails once with it.
    ///
    /// What this machine refused by itself (a datagram too large, say) is queued too; the send has reported it already, so
    /// it is passed over.
    pub fn next_error(&self) -> Option<(io::Error, Address)> {
        loop {
            let (local, error, address) = self.next_queued_error()?;
            if !local {
                return Some((error, address));
            }
        }
    }

    /// Whether it is of this machine, the error, and the address our datagram was for.
    fn next_queued_error(&self) -> Option<(bool, io::Error, Address)> {
        let mut name = [0u8; ADDRESS_MAX];
        // 512 octets hold `struct sock_extended_err`, the offender's address and both control headers several times over.
        let mut control = [0u64; 64];
        // SAFETY: all-zero is a valid msghdr (null pointers, zero lengths).
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_name = name.as_mut_ptr().cast();
        header.msg_namelen = ADDRESS_MAX as libc::socklen_t;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control);
        // SAFETY: the header's pointers lead to `name` and `control`, writable for the lengths beside them. There is no
        // iovec: what is left of our own datagram is not asked for.
        if unsafe { libc::recvmsg(self.fd(), &raw mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) } < 0 {
            return None;
        }
        let address = Address::from_kernel(&name, header.msg_namelen);
        // SAFETY: the kernel filled the header; `control` is aligned to 8, as CMSG_FIRSTHDR wants it.
        let first = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
        if first.is_null() {
            return Some((false, io::Error::from_raw_os_error(libc::EPROTO), address));
        }
        // SAFETY: CMSG_FIRSTHDR is not null, so a whole cmsghdr lies in `control`.
        let control_header = unsafe { &*first };
        if control_header.cmsg_len < size_of::<libc::cmsghdr>() + size_of::<libc::sock_extended_err>() {
            return Some((false, io::Error::from_raw_os_error(libc::EPROTO), address));
        }
        // SAFETY: by the check above the data part holds a whole `sock_extended_err`; it is read unaligned.
        let error = unsafe { std::ptr::read_unaligned(libc::CMSG_DATA(first).cast::<libc::sock_extended_err>()) };
        let local = error.ee_origin == libc::SO_EE_ORIGIN_LOCAL;
        Some((local, io::Error::from_raw_os_error(error.ee_errno as i32), address))
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn enlarge(&self, forced: libc::c_int, polite: libc::c_int, octets: usize) {
        // The forced form ignores net.core.*mem_max and needs CAP_NET_ADMIN. Neither is an error: the size is reported.
        if self.set_option(libc::SOL_SOCKET, forced, octets as libc::c_int).is_err() {
            let _ = self.set_option(libc::SOL_SOCKET, polite, octets as libc::c_int);
        }
    }

    fn set_option(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        // SAFETY: `value` is readable for the length passed beside it.
        let result = unsafe {
            libc::setsockopt(
                self.fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// "Nothing there" and "interrupted" are not errors to a caller who asks again anyway.
pub(super) fn none_if_nothing_there<T>(error: io::Error) -> io::Result<Option<T>> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound() -> Socket {
        Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap()
    }

    #[test]
    fn a_port_that_is_taken_is_refused() {
        let first = bound();
        let error = Socket::bind(first.local()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn what_a_full_buffer_drops_is_counted() {
        let (left, right) = (bound(), bound());
        right.set_option(libc::SOL_SOCKET, libc::SO_RCVBUF, 0).unwrap();
        assert_eq!(right.dropped(), 0);
        for _ in 0..100 {
            left.send_to(&[0; 1000], &Address::from(right.local())).unwrap();
        }
        let (mut room, mut received) = ([0; 1000], 0);
        while right.receive_from(&mut room).unwrap().is_some() {
            received += 1;
        }
        assert!(received < 100);
        assert_eq!(right.dropped(), 100 - received);
    }

    #[test]
    fn a_datagram_arrives_with_its_source() {
        let (left, right) = (bound(), bound());
        left.send_to(b"hello", &Address::from(right.local())).unwrap();
        let mut room = [0; 64];
        let (len, from) = right.receive_from(&mut room).unwrap().unwrap();
        assert_eq!(&room[..len], b"hello");
        assert_eq!(from.to_std(), left.local());
        assert!(right.receive_from(&mut room).unwrap().is_none());
    }

    #[test]
    fn a_closed_port_is_reported_with_its_address() {
        let socket = bound();
        let gone = bound().local();
        socket.send_to(b"anybody?", &Address::from(gone)).unwrap();
        // On loopback the ICMP error is queued before `sendto` returns.
        let (error, address) = socket.next_error().expect("the kernel refuses at once");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(address.to_std(), gone);
        assert!(socket.next_error().is_none());
    }
}
