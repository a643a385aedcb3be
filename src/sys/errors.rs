//! What the network said about datagrams we sent: ICMP errors, and whom they are about.
//!
//! A UDP socket that talks to many learns of an error as the failure of its *next* call, whatever that is about. With
//! `IP_RECVERR` the kernel also queues the error itself, with the address the lost datagram was for.

use super::address::{ROOM, RawAddress};
use std::mem::{MaybeUninit, size_of};
use std::net::SocketAddr;
use std::os::fd::RawFd;

/// An error about one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// Where the datagram was sent.
    pub to: SocketAddr,
    /// What became of it: `ECONNREFUSED`, `EHOSTUNREACH`, `ENETUNREACH` and their like.
    pub code: i32,
}

impl Unreachable {
    /// Whether that says something of the destination. That packets on the way there are shorter does not: the kernel has made a
    /// note of it, and what is sent from now on goes in fragments. Nor does it that a firewall of this machine has dropped a
    /// datagram, or has no room for another flow: it is lost, as on the way.
    pub fn is_of_destination(&self) -> bool {
        !matches!(self.code, libc::EMSGSIZE | libc::EPERM)
    }
}

/// What is said of a destination that has not answered in time when a connection was to be opened.
pub const TIMED_OUT: i32 = libc::ETIMEDOUT;

/// What is said of one that a connection was opened to, and no TLS could be spoken with, or for which there is nothing to speak it with.
pub const NO_TLS: i32 = libc::EPROTO;

/// Takes the oldest error off the queue of `fd`; `None` if the queue is empty.
pub fn next(fd: RawFd) -> Option<Unreachable> {
    let mut name = RawAddress::default();
    let mut control = MaybeUninit::<[u64; 64]>::uninit();
    let mut part = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    // SAFETY: a C struct of integers and pointers; zero is a value of each.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_name = name.as_mut_ptr();
    header.msg_namelen = ROOM;
    header.msg_iov = &mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of::<[u64; 64]>() as _;
    // SAFETY: the header points to an address of `ROOM` octets, to no octets of data, and to the control room above.
    let result = unsafe { libc::recvmsg(fd, &mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
    if result < 0 {
        return None;
    }
    Some(Unreachable { to: name.address()?, code: code(&header)? })
}

/// The error number in the control messages of `header`.
fn code(header: &libc::msghdr) -> Option<i32> {
    // SAFETY: the kernel filled the header: `msg_control` points to `msg_controllen` octets of control messages, and the
    // macros stay inside them. `IP_RECVERR` messages begin with a `sock_extended_err`.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while let Some(found) = message.as_ref() {
            let is_error = matches!(
                (found.cmsg_level, found.cmsg_type),
                (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
            );
            if is_error {
                let error = libc::CMSG_DATA(found).cast::<libc::sock_extended_err>().read_unaligned();
                return Some(error.ee_errno as i32);
            }
            message = libc::CMSG_NXTHDR(header, found);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mmsg::{Outgoing, ReceiveBatch, SendBatch};
    use crate::sys::socket::{Options, UdpSocket};
    use std::os::fd::AsRawFd;

    #[test]
    fn what_is_lost_on_this_machine_says_nothing_of_its_destination() {
        let to = "192.0.2.1:5060".parse().unwrap();
        let is_of_destination = |code| Unreachable { to, code }.is_of_destination();
        assert_eq!([libc::EPERM, libc::EMSGSIZE, libc::ECONNREFUSED].map(is_of_destination), [false, false, true]);
    }

    #[test]
    fn a_refused_datagram_names_its_destination_and_the_socket_goes_on_working() {
        let options = Options {
            shared_port: false,
            receive_buffer: 1 << 18,
            send_buffer: 1 << 18,
            errors: true,
            tell_local: false,
        };
        let socket = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &options).unwrap();
        let gone = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &options).unwrap().address();
        let outgoing = [Outgoing { to: gone, parts: [b"x", b""], from: None, pads: false }];
        let mut send = SendBatch::new(1);
        send.send(socket.as_raw_fd(), &outgoing).unwrap();

        let mut receive = ReceiveBatch::new(1, 100);
        let refused = receive.receive(socket.as_raw_fd(), false).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ECONNREFUSED));
        assert_eq!(next(socket.as_raw_fd()), Some(Unreachable { to: gone, code: libc::ECONNREFUSED }));
        assert_eq!(next(socket.as_raw_fd()), None);
        assert_eq!(receive.receive(socket.as_raw_fd(), false).unwrap(), 0);
    }
}
