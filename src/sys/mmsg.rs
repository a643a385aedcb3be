//! Many datagrams in one system call: `recvmmsg` and `sendmmsg`.
//!
//! A batch owns the arrays that the kernel reads and writes; they are filled with pointers once, where pointers do not
//! change, and per call otherwise. Neither call ever blocks: sockets are non-blocking, and `recvmmsg`'s own timeout is
//! broken by design (it is looked at only when a datagram arrives).

use super::address::{ROOM, RawAddress};
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::RawFd;

/// Octets of control messages per datagram: room for one `in6_pktinfo` with its header.
const CONTROL: usize = 64;

/// Octets between slots. Without them the first lines of all slots would share one set of the cache, since a slot is as
/// good as 64 KiB: 17 lines spread 32 slots of messages over it, and stay clear of powers of two.
const STAGGER: usize = 17 * 64;

/// No value that [`ReceiveBatch::receive`] sets: all headers are to be reset.
const CONTROL_UNKNOWN: usize = usize::MAX;

/// Control messages, aligned as the kernel lays them out.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Room for a number of datagrams of any size.
pub struct ReceiveBatch {
    slot_len: usize,
    /// Octets from the start of a slot to the start of the next.
    stride: usize,
    /// Slots that the last receive filled, whose headers say so and have to be reset for the next.
    filled: usize,
    /// Octets of control room that the headers were last set to.
    controllen: usize,
    slots: Slots,
    names: Box<[RawAddress]>,
    #[expect(dead_code, reason = "reached through `headers`")]
    controls: Box<[Control]>,
    /// Points into `slots`.
    parts: Box<[libc::iovec]>,
    /// Points into `names`, `controls` and `parts`.
    headers: Box<[libc::mmsghdr]>,
}

// SAFETY: the pointers in `parts` and `headers` lead into allocations of the same struct, which move with it and not away
// from it; nothing of it is shared.
unsafe impl Send for ReceiveBatch {}

/// The octets of all slots, which the kernel writes to and we read: reached through one pointer by both, and owned by
/// this.
struct Slots(*mut [u8]);

impl Slots {
    fn new(octets: usize) -> Slots {
        Slots(Box::into_raw(vec![0u8; octets].into_boxed_slice()))
    }

    fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.0.len());
        // SAFETY: the offset is inside the allocation, as just asserted.
        unsafe { self.0.cast::<u8>().add(offset) }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::into_raw`, and this is its only owner.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

/// A datagram that was received.
pub struct Received<'a> {
    /// What is in it.
    pub octets: &'a mut [u8],
    /// Who sent it; `None` for an address family we do not know.
    pub from: Option<SocketAddr>,
    /// The local address it was sent to, if the socket tells.
    pub local: Option<IpAddr>,
    /// Whether the kernel cut it to the room there was.
    pub truncated: bool,
}

impl ReceiveBatch {
    /// Room for `count` datagrams of up to `slot_len` octets. The memory is taken from the system when a datagram first
    /// touches it.
    pub fn new(count: usize, slot_len: usize) -> ReceiveBatch {
        let stride = slot_len.next_multiple_of(64) + STAGGER;
        let slots = Slots::new(count * stride);
        let mut names = vec![RawAddress::default(); count].into_boxed_slice();
        let mut controls = vec![Control([0; CONTROL]); count].into_boxed_slice();
        let mut parts: Box<[libc::iovec]> = (0..count)
            .map(|index| libc::iovec { iov_base: slots.at(index * stride).cast(), iov_len: slot_len })
            .collect();
        let headers = parts
            .iter_mut()
            .zip(names.iter_mut())
            .zip(controls.iter_mut())
            .map(|((part, name), control)| {
                let mut header = empty_header();
                header.msg_hdr.msg_name = name.as_mut_ptr();
                header.msg_hdr.msg_iov = part;
                header.msg_hdr.msg_iovlen = 1;
                header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
                header
            })
            .collect();
        ReceiveBatch { slot_len, stride, filled: count, controllen: 0, slots, names, controls, parts, headers }
    }

    /// Receives what is there, up to the number of slots, and returns how many datagrams it is. Zero if none is there.
    ///
    /// Returns an error that a former send has left on the socket as an error, once.
    pub fn receive(&mut self, fd: RawFd, tells_local: bool) -> io::Result<usize> {
        // A socket that tells local addresses and one that does not may take turns with the same batch.
        let controllen = if tells_local { CONTROL } else { 0 };
        let stale = if self.controllen == controllen { self.filled } else { self.headers.len() };
        for header in &mut self.headers[..stale] {
            header.msg_hdr.msg_namelen = ROOM;
            header.msg_hdr.msg_controllen = controllen as _;
            header.msg_hdr.msg_flags = 0;
        }
        self.controllen = controllen;
        self.filled = 0;
        debug_assert!(self.parts.iter().all(|part| part.iov_len == self.slot_len));
        // SAFETY: every header points to an address of `ROOM` octets, to one part of `slot_len` octets and to `CONTROL`
        // octets of control room, all owned by `self`, which is borrowed mutably for the call.
        let count = unsafe {
            let headers = self.headers.as_mut_ptr();
            libc::recvmmsg(fd, headers, self.headers.len() as _, libc::MSG_DONTWAIT, std::ptr::null_mut())
        };
        match count {
            0.. => {
                self.filled = count as usize;
                Ok(self.filled)
            }
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
                error => Err(error),
            },
        }
    }

    /// Slots.
    pub fn capacity(&self) -> usize {
        self.headers.len()
    }

    /// The datagram in slot `index`, which the last [`ReceiveBatch::receive`] filled.
    #[inline(always)]
    pub fn datagram(&mut self, index: usize) -> Received<'_> {
        let len = self.len(index);
        let header = &self.headers[index];
        let flags = header.msg_hdr.msg_flags;
        let has_control = header.msg_hdr.msg_controllen > 0;
        Received {
            // SAFETY: `len` says how many octets of slot `index` may be read and written; the kernel writes to the slot
            // in `receive` only, which needs `self` as this borrow does.
            octets: unsafe { std::slice::from_raw_parts_mut(self.slots.at(index * self.stride), len) },
            from: self.names[index].address(),
            local: if has_control { local_address(&header.msg_hdr) } else { None },
            truncated: flags & libc::MSG_TRUNC != 0,
        }
    }

    /// What is in slot `index`.
    #[inline(always)]
    pub fn octets(&self, index: usize) -> &[u8] {
        // SAFETY: as above, and the borrow is shared, so nobody writes.
        unsafe { std::slice::from_raw_parts(self.slots.at(index * self.stride), self.len(index)) }
    }

    /// Octets in slot `index`: never more than a slot has.
    #[inline(always)]
    fn len(&self, index: usize) -> usize {
        (self.headers[index].msg_len as usize).min(self.slot_len)
    }

    /// Puts a datagram into slot `index` as the kernel would, cut to what there is room for: the way in for tests and
    /// replays. A `local` address is not kept.
    pub fn put(&mut self, index: usize, octets: &[u8], from: SocketAddr) {
        let kept = &octets[..octets.len().min(self.slot_len)];
        let header = &mut self.headers[index];
        header.msg_len = kept.len() as u32;
        header.msg_hdr.msg_controllen = 0;
        header.msg_hdr.msg_flags = if kept.len() < octets.len() { libc::MSG_TRUNC } else { 0 };
        self.controllen = CONTROL_UNKNOWN;
        self.names[index].set(from);
        self.datagram(index).octets.copy_from_slice(kept);
    }
}

/// The local address in the control messages that the kernel wrote for `header`.
fn local_address(header: &libc::msghdr) -> Option<IpAddr> {
    // SAFETY: the header is one the kernel filled: `msg_control` points to `msg_controllen` octets of control messages,
    // and the macros stay inside them. A data pointer is read as the struct that level and type say is there.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while let Some(found) = message.as_ref() {
            match (found.cmsg_level, found.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info: libc::in_pktinfo = libc::CMSG_DATA(found).cast::<libc::in_pktinfo>().read_unaligned();
                    return Some(IpAddr::V4(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes())));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info: libc::in6_pktinfo = libc::CMSG_DATA(found).cast::<libc::in6_pktinfo>().read_unaligned();
                    return Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)));
                }
                _ => message = libc::CMSG_NXTHDR(header, found),
            }
        }
    }
    None
}

/// A datagram to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Where to.
    pub to: SocketAddr,
    /// What is in it, in two parts that are sent as one.
    pub parts: [&'a [u8]; 2],
    /// The local address to send from, on a socket bound to a wildcard address.
    pub from: Option<IpAddr>,
}

/// The arrays for sending a number of datagrams.
pub struct SendBatch {
    names: Box<[RawAddress]>,
    controls: Box<[Control]>,
    parts: Box<[[libc::iovec; 2]]>,
    headers: Box<[libc::mmsghdr]>,
}

// SAFETY: the pointers in `headers` lead into boxes of the same struct; those in `parts` are used only inside
// [`SendBatch::send`], which sets them.
unsafe impl Send for SendBatch {}

impl SendBatch {
    /// Arrays for `count` datagrams.
    pub fn new(count: usize) -> SendBatch {
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut names = vec![RawAddress::default(); count].into_boxed_slice();
        let mut controls = vec![Control([0; CONTROL]); count].into_boxed_slice();
        let mut parts = vec![[nothing; 2]; count].into_boxed_slice();
        let headers = parts
            .iter_mut()
            .zip(names.iter_mut())
            .zip(controls.iter_mut())
            .map(|((part, name), control)| {
                let mut header = empty_header();
                header.msg_hdr.msg_name = name.as_mut_ptr();
                header.msg_hdr.msg_iov = part.as_mut_ptr();
                header.msg_hdr.msg_iovlen = 2;
                header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
                header
            })
            .collect();
        SendBatch { names, controls, parts, headers }
    }

    /// Sends `datagrams`, as many as there are arrays for, and returns how many the kernel took. An error is about the
    /// first of them; when some were taken, the error that stopped the rest comes with the next call.
    pub fn send(&mut self, fd: RawFd, datagrams: &[Outgoing<'_>]) -> io::Result<usize> {
        let count = datagrams.len().min(self.headers.len());
        for (index, datagram) in datagrams[..count].iter().enumerate() {
            self.names[index].set(datagram.to);
            for (place, octets) in self.parts[index].iter_mut().zip(datagram.parts) {
                *place = libc::iovec { iov_base: octets.as_ptr().cast_mut().cast(), iov_len: octets.len() };
            }
            let header = &mut self.headers[index].msg_hdr;
            header.msg_namelen = self.names[index].len();
            header.msg_controllen = 0;
            if let Some(from) = datagram.from {
                set_source(header, &mut self.controls[index], from);
            }
        }
        // SAFETY: the first `count` headers point to addresses, parts and control messages set above. The octets that the
        // parts point to are borrowed by `datagrams` until the call returns, and the kernel only reads them.
        let sent = unsafe { libc::sendmmsg(fd, self.headers.as_mut_ptr(), count as _, libc::MSG_DONTWAIT) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
    }
}

/// Whether a send failed because the kernel's buffers are full: it may work later.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS))
}

/// Writes the control message that makes the kernel send from `source`.
fn set_source(header: &mut libc::msghdr, control: &mut Control, source: IpAddr) {
    debug_assert_eq!(header.msg_control, control.0.as_mut_ptr().cast());
    // SAFETY: `CONTROL` octets hold a control message header and the larger of the two structs, checked at compile time
    // below; `CMSG_FIRSTHDR` gives the first octet of that room once its length is set, and `CMSG_DATA` the place of the
    // data behind it.
    unsafe {
        header.msg_controllen = CONTROL as _;
        let message = libc::CMSG_FIRSTHDR(header);
        match source {
            IpAddr::V4(source) => {
                let spec_dst = libc::in_addr { s_addr: u32::from_ne_bytes(source.octets()) };
                let info =
                    libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: spec_dst, ipi_addr: libc::in_addr { s_addr: 0 } };
                (*message).cmsg_level = libc::IPPROTO_IP;
                (*message).cmsg_type = libc::IP_PKTINFO;
                (*message).cmsg_len = libc::CMSG_LEN(size_of::<libc::in_pktinfo>() as _) as _;
                libc::CMSG_DATA(message).cast::<libc::in_pktinfo>().write_unaligned(info);
                header.msg_controllen = libc::CMSG_SPACE(size_of::<libc::in_pktinfo>() as _) as _;
            }
            IpAddr::V6(source) => {
                let info =
                    libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: source.octets() }, ipi6_ifindex: 0 };
                (*message).cmsg_level = libc::IPPROTO_IPV6;
                (*message).cmsg_type = libc::IPV6_PKTINFO;
                (*message).cmsg_len = libc::CMSG_LEN(size_of::<libc::in6_pktinfo>() as _) as _;
                libc::CMSG_DATA(message).cast::<libc::in6_pktinfo>().write_unaligned(info);
                header.msg_controllen = libc::CMSG_SPACE(size_of::<libc::in6_pktinfo>() as _) as _;
            }
        }
    }
}

/// `CMSG_SPACE` of the larger struct: its size and that of the header before it, each rounded up to eight.
const _: () = assert!(
    CONTROL >= size_of::<libc::cmsghdr>().next_multiple_of(8) + size_of::<libc::in6_pktinfo>().next_multiple_of(8)
);

fn empty_header() -> libc::mmsghdr {
    // SAFETY: a C struct of integers and pointers; zero is a value of each.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::{Options, UdpSocket};
    use std::os::fd::AsRawFd;

    const OPTIONS: Options =
        Options { shared_port: false, receive_buffer: 1 << 20, send_buffer: 1 << 20, errors: false, tell_local: true };

    fn bind(address: &str) -> UdpSocket {
        UdpSocket::bind(address.parse().unwrap(), &OPTIONS).unwrap()
    }

    #[test]
    fn datagrams_of_every_size_arrive_whole_in_order_and_in_two_parts() {
        let (a, b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let payload: Vec<u8> = (0..65_507).map(|i| i as u8).collect();
        let lengths = [0, 1, 2, 900, 1500, 65_507];
        let outgoing: Vec<_> = lengths
            .iter()
            .map(|&len| Outgoing { to: b.address(), parts: [&payload[..len / 3], &payload[len / 3..len]], from: None })
            .collect();
        assert_eq!(SendBatch::new(8).send(a.as_raw_fd(), &outgoing).unwrap(), lengths.len());
        let mut batch = ReceiveBatch::new(4, 65_535);
        let mut seen = Vec::new();
        loop {
            let count = batch.receive(b.as_raw_fd(), false).unwrap();
            for index in 0..count {
                let datagram = batch.datagram(index);
                assert_eq!(datagram.from, Some(a.address()));
                assert_eq!(datagram.octets, &payload[..datagram.octets.len()]);
                assert!(!datagram.truncated && datagram.local.is_none());
                seen.push(datagram.octets.len());
            }
            if count == 0 {
                break;
            }
        }
        assert_eq!(seen, lengths);
    }

    #[test]
    fn a_datagram_larger_than_its_slot_is_marked() {
        let (a, b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let outgoing = [Outgoing { to: b.address(), parts: [&[1; 600], &[2; 600]], from: None }];
        SendBatch::new(1).send(a.as_raw_fd(), &outgoing).unwrap();
        let mut batch = ReceiveBatch::new(1, 1000);
        assert_eq!(batch.receive(b.as_raw_fd(), false).unwrap(), 1);
        assert!(batch.datagram(0).truncated);
        assert_eq!(batch.datagram(0).octets.len(), 1000);
    }

    #[test]
    fn a_wildcard_socket_tells_where_to_and_sends_from_there() {
        for (wildcard, local, other) in [("0.0.0.0:0", "127.0.0.3", "127.0.0.1:0"), ("[::]:0", "::1", "[::1]:0")] {
            let (server, client) = (bind(wildcard), bind(other));
            let to = SocketAddr::new(local.parse().unwrap(), server.address().port());
            let outgoing = [Outgoing { to, parts: [b"ping", b""], from: None }];
            SendBatch::new(1).send(client.as_raw_fd(), &outgoing).unwrap();
            let mut batch = ReceiveBatch::new(1, 100);
            assert_eq!(batch.receive(server.as_raw_fd(), true).unwrap(), 1);
            assert_eq!(batch.datagram(0).local, Some(to.ip()));

            let answer = [Outgoing { to: client.address(), parts: [b"pong", b""], from: Some(to.ip()) }];
            SendBatch::new(1).send(server.as_raw_fd(), &answer).unwrap();
            assert_eq!(batch.receive(client.as_raw_fd(), false).unwrap(), 1);
            assert_eq!(batch.datagram(0).from, Some(to));
        }
    }

    #[test]
    fn an_empty_socket_gives_nothing_and_an_error_names_the_first_datagram() {
        let socket = bind("127.0.0.1:0");
        let mut batch = ReceiveBatch::new(2, 100);
        assert_eq!(batch.receive(socket.as_raw_fd(), false).unwrap(), 0);
        let too_large = vec![0; 65_508];
        let outgoing = [Outgoing { to: socket.address(), parts: [&too_large, b""], from: None }];
        let error = SendBatch::new(1).send(socket.as_raw_fd(), &outgoing).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    }
}
