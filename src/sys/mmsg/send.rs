//! `sendmmsg`, and `UDP_SEGMENT` for what is alike: most of what a datagram costs is its way through the kernel, and a run of
//! datagrams of one length to one destination takes that way once.
//!
//! Runs are made where they are asked for: who captures on the same machine sees a run as one packet, before it is cut. Each
//! message of a run is a datagram of its own on the wire. The device has to be able to do it (nearly all are, and the
//! kernel for those that are not), and each message has to fit a packet: where the kernel says no, the same messages go one
//! by one, and so does what is like them from then on.

use super::{CONTROL, Control, header};
use crate::sys::address::RawAddress;
use std::io;
use std::mem::size_of;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;

/// Octets of the longest message that is sent in a run: what packets of 1,500 octets hold behind the headers of IPv6 and UDP.
const SEGMENT_MAX: usize = 1452;

/// Octets of a run: what a datagram of IPv4 holds.
const RUN_MAX: usize = 65_507;

/// Messages of a run (`UDP_MAX_SEGMENTS` of older kernels).
const RUN_MESSAGES_MAX: usize = 64;

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

impl Outgoing<'_> {
    fn len(&self) -> usize {
        self.parts[0].len() + self.parts[1].len()
    }

    /// Whether both may go in one run.
    fn is_like(&self, other: &Outgoing<'_>) -> bool {
        self.len() == other.len() && self.to == other.to && self.from == other.from
    }
}

/// The arrays for sending a number of datagrams.
pub struct SendBatch {
    names: Box<[RawAddress]>,
    controls: Box<[Control]>,
    parts: Box<[[libc::iovec; 2]]>,
    /// One per datagram, or run of them.
    headers: Box<[libc::mmsghdr]>,
    /// Octets of the longest message that goes in a run.
    segment_max: usize,
}

// SAFETY: the pointers in `headers` lead into boxes of the same struct; those in `parts` are used only inside
// [`SendBatch::send`], which sets them.
unsafe impl Send for SendBatch {}

impl SendBatch {
    /// Arrays for `count` datagrams, of which those that are alike go as runs.
    pub fn with_runs(count: usize) -> SendBatch {
        SendBatch { segment_max: SEGMENT_MAX, ..SendBatch::new(count) }
    }

    /// Arrays for `count` datagrams, each of which goes by itself.
    pub fn new(count: usize) -> SendBatch {
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut names = vec![RawAddress::default(); count].into_boxed_slice();
        let mut controls = vec![Control([0; CONTROL]); count].into_boxed_slice();
        let headers = names.iter_mut().zip(&mut controls).map(|(name, control)| header(name, control)).collect();
        SendBatch { names, controls, parts: vec![[nothing; 2]; count].into(), headers, segment_max: 0 }
    }

    /// Whether runs are made, as far as the kernel has not refused them all.
    pub fn makes_runs(&self) -> bool {
        self.segment_max > 0
    }

    /// Sends `datagrams`, as many as there are arrays for, and returns how many the kernel took. An error is about the
    /// first of them; when some were taken, the error that stopped the rest comes with the next call.
    ///
    /// Where runs are made, those that follow one another and are alike go as one: who wants runs puts them side by side.
    pub fn send(&mut self, fd: RawFd, datagrams: &[Outgoing<'_>]) -> io::Result<usize> {
        let datagrams = &datagrams[..datagrams.len().min(self.headers.len())];
        loop {
            let headers = self.fill(datagrams);
            // SAFETY: `fill` has set these headers to addresses, parts and control messages of `self`. The octets that the
            // parts point to are borrowed by `datagrams` until the call returns, and the kernel only reads them.
            let sent = unsafe { libc::sendmmsg(fd, self.headers.as_mut_ptr(), headers as _, libc::MSG_DONTWAIT) };
            if sent >= 0 {
                return Ok(self.headers[..sent as usize].iter().map(messages).sum());
            }
            let error = io::Error::last_os_error();
            let is_run = self.headers.first().is_some_and(|header| messages(header) > 1);
            self.segment_max = match error.raw_os_error() {
                // Through this device, or encrypted on this way, nothing goes in runs.
                Some(libc::EIO) if is_run => 0,
                // Packets on this way are shorter.
                Some(libc::EINVAL | libc::EMSGSIZE) if is_run => datagrams[0].len() - 1,
                _ => return Err(error),
            };
        }
    }

    /// Sets the arrays for `datagrams`, and returns how many headers that takes.
    #[inline]
    fn fill(&mut self, datagrams: &[Outgoing<'_>]) -> usize {
        let (mut at, mut headers) = (0, 0);
        while let Some(first) = datagrams.get(at) {
            let run = self.run(&datagrams[at..]);
            for (places, datagram) in self.parts[at..].iter_mut().zip(&datagrams[at..at + run]) {
                *places = datagram
                    .parts
                    .map(|octets| libc::iovec { iov_base: octets.as_ptr().cast_mut().cast(), iov_len: octets.len() });
            }
            let (name, control) = (&mut self.names[headers], &mut self.controls[headers]);
            name.set(first.to);
            let header = &mut self.headers[headers].msg_hdr;
            header.msg_namelen = name.len();
            header.msg_iov = self.parts[at..at + run].as_mut_ptr().cast();
            header.msg_iovlen = 2 * run;
            header.msg_controllen = 0;
            if let Some(from) = first.from {
                set_source(header, control, from);
            }
            if run > 1 {
                set_segment(header, control, first.len() as u16);
            }
            (at, headers) = (at + run, headers + 1);
        }
        headers
    }

    /// How many of `datagrams`, from the first on, may go as one: at least that one.
    #[inline]
    fn run(&self, datagrams: &[Outgoing<'_>]) -> usize {
        let [first, rest @ ..] = datagrams else { return 0 };
        if rest.is_empty() || !(1..=self.segment_max).contains(&first.len()) {
            return 1;
        }
        let most = (RUN_MAX / first.len()).min(RUN_MESSAGES_MAX) - 1;
        1 + rest.iter().take(most).take_while(|next| next.is_like(first)).count()
    }
}

/// How many datagrams go by this header.
fn messages(header: &libc::mmsghdr) -> usize {
    header.msg_hdr.msg_iovlen / 2
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

/// Adds the control message that cuts what the kernel is given into datagrams of so many octets.
fn set_segment(header: &mut libc::msghdr, control: &mut Control, octets: u16) {
    debug_assert_eq!(header.msg_control, control.0.as_mut_ptr().cast());
    let used = header.msg_controllen;
    // SAFETY: what is in use ends at a multiple of eight, which `Control` is aligned to, and behind one `in6_pktinfo` there
    // is room for this: checked at compile time where `CONTROL` is.
    unsafe {
        let message = control.0.as_mut_ptr().add(used).cast::<libc::cmsghdr>();
        (*message).cmsg_level = libc::SOL_UDP;
        (*message).cmsg_type = libc::UDP_SEGMENT;
        (*message).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as _) as _;
        libc::CMSG_DATA(message).cast::<u16>().write_unaligned(octets);
    }
    header.msg_controllen =
        used + size_of::<libc::cmsghdr>().next_multiple_of(8) + size_of::<u16>().next_multiple_of(8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outgoing<'a>(to: &str, text: &'a [u8]) -> Outgoing<'a> {
        let (head, tail) = text.split_at(text.len() / 3);
        Outgoing { to: to.parse().unwrap(), parts: [head, tail], from: None }
    }

    #[test]
    fn neighbours_that_are_alike_and_fit_a_packet_share_a_header() {
        let (a, b) = ("127.0.0.1:6000", "127.0.0.1:6001");
        let text = vec![b'x'; 2 * RUN_MAX];
        let headers = |datagrams: &[Outgoing<'_>]| SendBatch::with_runs(datagrams.len()).fill(datagrams);
        let of = |to, lengths: &[usize]| lengths.iter().map(|&len| outgoing(to, &text[..len])).collect::<Vec<_>>();
        assert_eq!(headers(&[]), 0);
        assert_eq!(headers(&of(a, &[900; 32])), 1);
        assert_eq!(SendBatch::new(32).fill(&of(a, &[900; 32])), 32, "none unless asked for");
        assert_eq!(headers(&of(a, &[900, 900, 901, 901, 900])), 3);
        assert_eq!(headers(&[of(a, &[900; 4]), of(b, &[900; 4])].concat()), 2);
        assert_eq!(headers(&of(a, &[0, 0])), 2, "nothing cannot be cut");
        assert_eq!(headers(&of(a, &[SEGMENT_MAX + 1; 3])), 3, "packets of IPv6 hold less");
        assert_eq!(headers(&of(a, &[SEGMENT_MAX; 46])), 2, "45 of them are {RUN_MAX} octets or less");
        assert_eq!(headers(&of(a, &[1; 2 * RUN_MESSAGES_MAX + 1])), 3);
        let elsewhere = Outgoing { from: Some("127.0.0.9".parse().unwrap()), ..outgoing(a, &text[..900]) };
        assert_eq!(headers(&[outgoing(a, &text[..900]), elsewhere, elsewhere]), 2);
    }
}
