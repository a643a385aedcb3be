//! `sendmmsg`, and `UDP_SEGMENT` for what is alike: most of what a datagram costs is its way through the kernel, and a run of
//! datagrams of one length to one destination takes that way once.
//!
//! Runs are made where they are allowed: who captures on the same machine sees a run as one packet, before it is cut. Each
//! message of a run is a datagram of its own on the wire. The device has to be able to do it (nearly all are, and the
//! kernel for those that are not), and each message has to fit a packet: where the kernel says no, the same messages go one
//! by one, and so does what is like them from then on.
//!
//! All of a run have one length, but for the last, which may be shorter. What is nearly as long as its neighbours goes with
//! them if it may be followed by octets that mean nothing; by itself it goes without.

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

/// Octets that mean nothing behind a message, at most: a fourteenth of an INVITE of 900.
const PADDING_MAX: usize = 64;

/// Line ends, which a reader that goes on behind the body takes for none, or for a keep-alive.
static PADDING: [u8; PADDING_MAX] = {
    let mut octets = [b'\r'; PADDING_MAX];
    let mut at = 1;
    while at < PADDING_MAX {
        octets[at] = b'\n';
        at += 2;
    }
    octets
};

/// A datagram to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Where to.
    pub to: SocketAddr,
    /// What is in it, in two parts that are sent as one.
    pub parts: [&'a [u8]; 2],
    /// The local address to send from, on a socket bound to a wildcard address.
    pub from: Option<IpAddr>,
    /// Whether octets that mean nothing may follow.
    //= RFC 3261 section 18.3
    //# If there are additional bytes in
    //# the transport packet beyond the end of the body, they MUST be
    //# discarded.
    pub pads: bool,
}

impl Outgoing<'_> {
    fn len(&self) -> usize {
        self.parts[0].len() + self.parts[1].len()
    }

    /// Whether both take the same way.
    fn goes_with(&self, other: &Outgoing<'_>) -> bool {
        self.to == other.to && self.from == other.from
    }
}

/// The arrays for sending a number of datagrams.
pub struct SendBatch {
    names: Box<[RawAddress]>,
    controls: Box<[Control]>,
    /// Up to three per datagram: its two parts and its padding, as far as there is something in them.
    parts: Box<[libc::iovec]>,
    /// One per datagram, or run of them.
    headers: Box<[libc::mmsghdr]>,
    /// How many datagrams go by each header.
    runs: Box<[usize]>,
    /// Whether runs are made.
    allows_runs: bool,
    /// Octets of the longest message that goes in a run; 0: the kernel has refused them all.
    segment_max: usize,
}

// SAFETY: the pointers in `headers` lead into boxes of the same struct; those in `parts` are used only inside
// [`SendBatch::send`], which sets them.
unsafe impl Send for SendBatch {}

impl SendBatch {
    /// Arrays for `count` datagrams, each of which goes by itself until [`SendBatch::allow_runs`].
    pub fn new(count: usize) -> SendBatch {
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut names = vec![RawAddress::default(); count].into_boxed_slice();
        let mut controls = vec![Control([0; CONTROL]); count].into_boxed_slice();
        let headers = names.iter_mut().zip(&mut controls).map(|(name, control)| header(name, control)).collect();
        let runs = vec![0; count].into();
        let parts = vec![nothing; 3 * count].into();
        SendBatch { names, controls, parts, headers, runs, allows_runs: false, segment_max: SEGMENT_MAX }
    }

    /// Arrays for `count` datagrams, of which those that are alike go as runs.
    #[cfg(test)]
    pub(super) fn with_runs(count: usize) -> SendBatch {
        SendBatch { allows_runs: true, ..SendBatch::new(count) }
    }

    /// Whether those that are alike go as runs from the next [`SendBatch::send`] on.
    pub fn allow_runs(&mut self, allows_runs: bool) {
        self.allows_runs = allows_runs;
    }

    /// Whether runs are made: they are allowed, and the kernel has not refused them all.
    pub fn makes_runs(&self) -> bool {
        self.allows_runs && self.segment_max > 0
    }

    /// Sends `datagrams`, as many as there are arrays for, and returns how many the kernel took. An error is about the
    /// first of them; when some were taken, the error that stopped the rest comes with the next call.
    ///
    /// Where runs are made, those that follow one another and are alike go as one, or that may be padded and nearly are: who
    /// wants runs puts them side by side.
    pub fn send(&mut self, fd: RawFd, datagrams: &[Outgoing<'_>]) -> io::Result<usize> {
        let datagrams = &datagrams[..datagrams.len().min(self.headers.len())];
        let mut asked_again = false;
        loop {
            let headers = self.fill(datagrams);
            // SAFETY: `fill` has set these headers to addresses, parts and control messages of `self`. The octets that the
            // parts point to are borrowed by `datagrams` until the call returns, and the kernel only reads them.
            let sent = unsafe {
                libc::syscall(libc::SYS_sendmmsg, fd, self.headers.as_mut_ptr(), headers, libc::MSG_DONTWAIT)
            };
            if sent >= 0 {
                return Ok(self.runs[..sent as usize].iter().sum());
            }
            let error = io::Error::last_os_error();
            let (run, segment) = self.run(datagrams);
            let segment_max = match error.raw_os_error() {
                // A router may have said that of what was sent earlier, to whomever: it is told once.
                Some(libc::EMSGSIZE) if run > 1 && !asked_again => {
                    asked_again = true;
                    continue;
                }
                // Through this device, or encrypted on this way, nothing goes in runs.
                Some(libc::EIO) if run > 1 => 0,
                // Packets on this way are shorter.
                Some(libc::EINVAL | libc::EMSGSIZE) if run > 1 => segment - 1,
                _ => return Err(error),
            };
            // What goes by itself no better was not refused for its run: our address that it is to leave from may be gone.
            let sent = self.send(fd, &datagrams[..1])?;
            self.segment_max = segment_max;
            return Ok(sent);
        }
    }

    /// Sets the arrays for `datagrams`, and returns how many headers that takes.
    #[inline]
    pub(super) fn fill(&mut self, datagrams: &[Outgoing<'_>]) -> usize {
        let (mut at, mut headers, mut parts) = (0, 0, 0);
        while let Some(first) = datagrams.get(at) {
            let (run, segment) = self.run(&datagrams[at..]);
            let start = parts;
            for (index, datagram) in datagrams[at..at + run].iter().enumerate() {
                let is_last = index + 1 == run;
                let padding = if is_last { 0 } else { segment - datagram.len() };
                let [head, tail] = datagram.parts;
                // An odd number begins with LF: a line may end without CR, and not without LF.
                let all = [head, tail, &PADDING[PADDING_MAX - padding..]];
                for octets in all.into_iter().filter(|octets| !octets.is_empty()) {
                    self.parts[parts] =
                        libc::iovec { iov_base: octets.as_ptr().cast_mut().cast(), iov_len: octets.len() };
                    parts += 1;
                }
            }
            let (name, control) = (&mut self.names[headers], &mut self.controls[headers]);
            name.set(first.to);
            let header = &mut self.headers[headers].msg_hdr;
            header.msg_namelen = name.len();
            header.msg_iov = self.parts[start..parts].as_mut_ptr();
            header.msg_iovlen = parts - start;
            header.msg_controllen = 0;
            if let Some(from) = first.from {
                set_source(header, control, from);
            }
            if run > 1 {
                set_segment(header, control, segment as u16);
            }
            self.runs[headers] = run;
            (at, headers) = (at + run, headers + 1);
        }
        headers
    }

    /// How many of `datagrams`, from the first on, may go as one, which is at least that one, and the length of the longest.
    #[inline]
    fn run(&self, datagrams: &[Outgoing<'_>]) -> (usize, usize) {
        let [first, rest @ ..] = datagrams else { return (0, 0) };
        let (mut shortest, mut longest, mut pads) = (first.len(), first.len(), first.pads);
        if rest.is_empty() || !self.allows_runs || !(1..=self.segment_max).contains(&longest) {
            return (1, longest);
        }
        for (count, next) in (1..).zip(rest) {
            let (low, high, both) = (shortest.min(next.len()), longest.max(next.len()), pads && next.pads);
            let slack = if both { PADDING_MAX } else { 0 };
            let is_full = count == RUN_MESSAGES_MAX || (count + 1) * high > RUN_MAX;
            if is_full || !next.goes_with(first) || high - low > slack || high > self.segment_max {
                return (count, longest);
            }
            (shortest, longest, pads) = (low, high, both);
        }
        (datagrams.len(), longest)
    }
}

/// Whether a send failed because the socket's buffer is full: it works when the socket is writable.
pub fn is_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAGAIN)
}

/// Whether the datagram was dropped because a queue below the socket is full, of which nothing tells when it is not: the socket is
/// writable all the time.
pub fn is_dropped(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}

/// Whether that is what the kernel says of a datagram that is to leave from an address which is not one of this machine: the first
/// with IPv6, the second with IPv4, where it may mean the destination as well.
pub fn may_be_of_source(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENETUNREACH))
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
        Outgoing { to: to.parse().unwrap(), parts: [head, tail], from: None, pads: false }
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

    #[test]
    fn neighbours_that_may_be_padded_share_a_header_if_they_are_nearly_as_long() {
        let text = vec![b'x'; 2 * RUN_MAX];
        let headers = |datagrams: &[(usize, bool)]| {
            let outgoing = |&(len, pads): &(usize, bool)| Outgoing { pads, ..outgoing("127.0.0.1:6000", &text[..len]) };
            SendBatch::with_runs(datagrams.len()).fill(&datagrams.iter().map(outgoing).collect::<Vec<_>>())
        };
        let all = |lengths: &[usize]| headers(&lengths.iter().map(|&len| (len, true)).collect::<Vec<_>>());
        assert_eq!(all(&[900, 963, 901, 964, 910]), 1);
        assert_eq!(all(&[900, 965]), 2);
        assert_eq!(all(&[932, 900, 964, 966, 901]), 3, "each neighbour is near, the first and the last are not");
        assert_eq!(all(&[SEGMENT_MAX, SEGMENT_MAX + 1]), 2);
        assert_eq!(all(&[SEGMENT_MAX - 1; 46]), 2);
        assert_eq!(headers(&[(900, true), (901, false), (901, true), (900, true)]), 3, "who may not be padded is not");
        assert_eq!(headers(&[(900, false), (900, true), (901, true)]), 2);
        let datagrams = [outgoing("127.0.0.1:6000", &text[..900]), outgoing("127.0.0.1:6000", &text[..901])];
        assert_eq!(SendBatch::new(2).fill(&datagrams.map(|one| Outgoing { pads: true, ..one })), 2);
    }
}
