//! `recvmmsg`: what is there, up to a batch.

use super::{CONTROL, Control, header};
use crate::sys::address::{ROOM, RawAddress};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::RawFd;

/// Octets between slots. Without them the first lines of all slots would share one set of the cache, since a slot is as
/// good as 64 KiB: 17 lines spread 32 slots of messages over it, and stay clear of powers of two.
const STAGGER: usize = 17 * 64;

/// No value that [`ReceiveBatch::receive`] sets: all headers are to be reset.
const CONTROL_UNKNOWN: usize = usize::MAX;

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
                let mut header = header(name, control);
                header.msg_hdr.msg_iov = part;
                header.msg_hdr.msg_iovlen = 1;
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
            let no_timeout = std::ptr::null_mut::<libc::timespec>();
            libc::syscall(libc::SYS_recvmmsg, fd, headers, self.headers.len(), libc::MSG_DONTWAIT, no_timeout)
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
