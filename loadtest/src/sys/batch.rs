//! Datagrams by the batch: `recvmmsg` into slots, `sendmmsg` out of one room, and both together for a relay.
//!
//! One system call moves up to [`BATCH_MAX`] datagrams. The arrays the kernel reads are built once; a batch only resets
//! what the kernel wrote into them.
//!
//! Ways to get this wrong, and what catches each: a datagram longer than its slot (slots hold the largest UDP payload,
//! and `MSG_TRUNC` is looked at all the same); `sendmmsg` stopping in the middle (the loop goes on where it stopped); an
//! error that belongs to an earlier datagram (ICMP: taken off the error queue, then the same datagram is sent again);
//! sends that block (waited for, for a bounded time, then reported as lost).

use super::address::{ADDRESS_MAX, Address};
use super::socket::{Socket, none_if_nothing_there};
use std::io;
use std::ptr;

/// Octets of the largest datagram a UDP socket delivers.
pub const DATAGRAM_MAX: usize = 65_535;

/// Datagrams of one system call. The gain of a batch is nearly all had at 8; at 64, messages of 900 octets still fit the
/// first two cache levels.
pub const BATCH_MAX: usize = 64;

/// How long a flush waits for room in the socket's send buffer before it calls a datagram lost.
const SEND_WAIT_MS: i32 = 100;

/// How often one datagram is tried again after errors of earlier ones, so that a storm of ICMP cannot hold the loop.
const SEND_RETRIES: u32 = 64;

/// A network error about a datagram of ours.
#[derive(Debug)]
pub struct SendError {
    /// Where the datagram was to go.
    pub to: Address,
    /// What the kernel said.
    pub error: io::Error,
    /// Whether the datagram never left this machine's UDP. False for ICMP: it left, and nobody was there.
    pub unsent: bool,
}

/// Room for the datagrams of one receive.
pub struct Receiver {
    slots: Slots,
    /// 0 <= filled <= slots
    filled: usize,
}

impl Receiver {
    /// Room for `slots` datagrams of any size. Only the octets that datagrams really reach are ever backed by memory.
    pub fn new(slots: usize) -> Receiver {
        Receiver { slots: Slots::new(slots.clamp(1, BATCH_MAX)), filled: 0 }
    }

    /// Fills the slots with what is there and says how many. Waits for the first datagram only if the socket is blocking.
    ///
    /// An error of the network (ICMP about a datagram of ours) is an `Err`; see [`Socket::next_error`].
    pub fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        self.filled = 0;
        self.slots.rearm();
        let headers = &mut self.slots.headers;
        // SAFETY: each header leads to a name and an iovec of `Slots`, which leads to the slot's own DATAGRAM_MAX octets
        // of `room`. All are owned by `self`, never moved or resized after `new`, and borrowed mutably for the call.
        let result = unsafe {
            libc::recvmmsg(
                socket.fd(),
                headers.as_mut_ptr(),
                headers.len() as libc::c_uint,
                libc::MSG_WAITFORONE as _,
                ptr::null_mut(),
            )
        };
        self.filled = match usize::try_from(result) {
            Ok(filled) => filled.min(headers.len()),
            Err(_) => none_if_nothing_there(io::Error::last_os_error())?.unwrap_or(0),
        };
        Ok(self.filled)
    }

    /// How many slots the last receive filled.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Whether the last receive filled every slot, so that more is probably waiting.
    pub fn is_full(&self) -> bool {
        self.filled == self.slots.headers.len()
    }

    /// A datagram of the last receive and where it came from.
    #[inline]
    pub fn datagram(&self, index: usize) -> (&[u8], Address) {
        assert!(index < self.filled, "the slot was filled by the last receive");
        self.slots.datagram(index)
    }

    /// Sends the datagrams of the last receive on, each to where `to` says, or nowhere. Says how many left.
    ///
    /// This is a relay that looks at nothing: the octets go out of the slot they came into.
    pub fn send_on(&mut self, socket: &Socket, mut to: impl FnMut(Address) -> Option<Address>) -> usize {
        let mut count = 0;
        for index in 0..self.filled {
            let (datagram, from) = self.slots.datagram(index);
            let Some(to) = to(from) else { continue };
            let (base, len) = (datagram.as_ptr(), datagram.len());
            let out = &mut self.slots.out;
            out.names[count] = to;
            out.iovecs[count] = libc::iovec { iov_base: base.cast_mut().cast(), iov_len: len };
            count += 1;
        }
        self.filled = 0;
        // The iovecs lead into `slots.room`, which nothing touches until this returns.
        self.slots.out.send(socket, count, &mut |_| ())
    }
}

/// Room for datagrams that are to leave together.
pub struct Sender {
    room: Box<[u8]>,
    /// Octets of `room` in use. used + DATAGRAM_MAX <= room.len()
    used: usize,
    /// 0 <= count <= BATCH_MAX
    count: usize,
    spans: Box<[(usize, usize)]>,
    out: Outgoing,
}

impl Default for Sender {
    fn default() -> Sender {
        Sender::new()
    }
}

impl Sender {
    /// Room for [`BATCH_MAX`] messages of usual size, or fewer large ones.
    pub fn new() -> Sender {
        Sender {
            room: zeroed(DATAGRAM_MAX + BATCH_MAX * 2048),
            used: 0,
            count: 0,
            spans: vec![(0, 0); BATCH_MAX].into(),
            out: Outgoing::new(BATCH_MAX),
        }
    }

    /// Whether [`flush`](Self::flush) has to come before the next message.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.count == BATCH_MAX || self.used + DATAGRAM_MAX > self.room.len()
    }

    /// Whether there is nothing to flush.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many messages wait.
    #[inline]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Where the next message is to be written: room for the largest datagram.
    #[inline]
    pub fn room(&mut self) -> &mut [u8] {
        assert!(!self.is_full(), "a full batch is flushed before more is written");
        &mut self.room[self.used..self.used + DATAGRAM_MAX]
    }

    /// The first `len` octets of [`room`](Self::room) are a message for `to`.
    #[inline]
    pub fn push(&mut self, len: usize, to: Address) {
        assert!(len <= DATAGRAM_MAX && !self.is_full(), "the message lies within the room handed out");
        self.spans[self.count] = (self.used, len);
        self.out.names[self.count] = to;
        self.count += 1;
        self.used += len;
    }

    /// The messages that wait, for those who put the network's faults in between.
    pub fn message(&self, index: usize) -> (&[u8], Address) {
        assert!(index < self.count, "only messages that wait are asked for");
        let (at, len) = self.spans[index];
        (&self.room[at..at + len], self.out.names[index])
    }

    /// Forgets the messages that wait.
    pub fn clear(&mut self) {
        self.count = 0;
        self.used = 0;
    }

    /// Sends what waits and says how many left. `report` hears of each that did not, and of ICMP about earlier ones.
    pub fn flush(&mut self, socket: &Socket, report: &mut dyn FnMut(SendError)) -> usize {
        for index in 0..self.count {
            let (at, len) = self.spans[index];
            self.out.iovecs[index] =
                libc::iovec { iov_base: self.room[at..at + len].as_mut_ptr().cast(), iov_len: len };
        }
        let count = self.count;
        self.clear();
        // The iovecs lead into `room`, which nothing touches until this returns.
        self.out.send(socket, count, report)
    }
}

/// What `recvmmsg` fills.
struct Slots {
    /// `slots` times DATAGRAM_MAX octets. Never moved or resized: the iovecs point into it.
    room: Box<[u8]>,
    names: Box<[[u8; ADDRESS_MAX]]>,
    /// Never moved or resized: the headers point into it.
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    out: Outgoing,
}

// SAFETY: the raw pointers lead into `room`, `names` and `iovecs`, which the same value owns on the heap and which do not
// move with it; nothing is shared with the thread it came from.
unsafe impl Send for Slots {}

impl Slots {
    fn new(count: usize) -> Slots {
        let mut room = zeroed(count * DATAGRAM_MAX);
        let mut names = vec![[0; ADDRESS_MAX]; count].into_boxed_slice();
        let mut iovecs: Box<[libc::iovec]> = room
            .chunks_exact_mut(DATAGRAM_MAX)
            .map(|slot| libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() })
            .collect();
        let headers = names.iter_mut().zip(&mut iovecs).map(|(name, iovec)| header(name.as_mut_ptr(), iovec)).collect();
        Slots { room, names, iovecs, headers, out: Outgoing::new(count) }
    }

    /// Undoes what the kernel wrote into the headers.
    fn rearm(&mut self) {
        debug_assert_eq!(self.iovecs.len(), self.headers.len());
        for header in &mut self.headers {
            header.msg_hdr.msg_namelen = ADDRESS_MAX as libc::socklen_t;
            header.msg_hdr.msg_flags = 0;
        }
    }

    fn datagram(&self, index: usize) -> (&[u8], Address) {
        let header = &self.headers[index];
        let from = Address::from_kernel(&self.names[index], header.msg_hdr.msg_namelen);
        let cut = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        debug_assert!(!cut, "a slot holds the largest datagram");
        let len = (header.msg_len as usize).min(DATAGRAM_MAX);
        (&self.room[index * DATAGRAM_MAX..][..len], from)
    }
}

/// What `sendmmsg` reads.
struct Outgoing {
    names: Box<[Address]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

// SAFETY: the raw pointers lead into boxes that the same value owns, or, for the time of one `send`, into octets its
// caller holds; nothing is shared with the thread it came from.
unsafe impl Send for Outgoing {}

impl Outgoing {
    fn new(count: usize) -> Outgoing {
        let nothing = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        let mut iovecs = vec![nothing; count].into_boxed_slice();
        let headers = iovecs.iter_mut().map(|iovec| header(ptr::null_mut(), iovec)).collect();
        Outgoing { names: vec![Address::NONE; count].into(), iovecs, headers }
    }

    /// Sends the first `count` messages. Their iovecs lead to octets that live, unchanged, until this returns.
    fn send(&mut self, socket: &Socket, count: usize, report: &mut dyn FnMut(SendError)) -> usize {
        for (header, name) in self.headers.iter_mut().zip(&self.names).take(count) {
            header.msg_hdr.msg_name = name.octets().as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = name.octets().len() as libc::socklen_t;
        }
        let (mut at, mut sent, mut retries, mut waited) = (0, 0, 0, false);
        while at < count {
            let rest = &mut self.headers[at..count];
            // SAFETY: each header leads to a name in `self.names` and an iovec in `self.iovecs`, set for these `count`
            // messages; the octets behind the iovecs live until this function returns, as its callers see to.
            let result = unsafe {
                libc::sendmmsg(socket.fd(), rest.as_mut_ptr(), rest.len() as libc::c_uint, libc::MSG_DONTWAIT as _)
            };
            if let Ok(gone @ 1..) = usize::try_from(result) {
                (at, sent, retries, waited) = (at + gone, sent + gone, 0, false);
                continue;
            }
            let error = io::Error::last_os_error();
            let try_again = match error.kind() {
                io::ErrorKind::Interrupted => true,
                io::ErrorKind::WouldBlock if !waited => {
                    waited = true;
                    super::wait::writable(socket, SEND_WAIT_MS)
                }
                _ => drain_errors(socket, report) && retries < SEND_RETRIES,
            };
            if try_again {
                retries += 1;
                continue;
            }
            report(SendError { to: self.names[at], error, unsent: true });
            (at, retries, waited) = (at + 1, 0, false);
        }
        sent
    }
}

/// Takes all errors off a socket's queue and says whether there were any.
pub fn drain_errors(socket: &Socket, report: &mut dyn FnMut(SendError)) -> bool {
    let mut any = false;
    while let Some((error, to)) = socket.next_error() {
        any = true;
        report(SendError { to, error, unsent: false });
    }
    any
}

fn header(name: *mut u8, iovec: &mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: all-zero is a valid mmsghdr (null pointers, zero lengths).
    let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
    header.msg_hdr.msg_name = name.cast();
    header.msg_hdr.msg_namelen = ADDRESS_MAX as libc::socklen_t;
    header.msg_hdr.msg_iov = iovec;
    header.msg_hdr.msg_iovlen = 1;
    header
}

/// Zeroed octets that the allocator takes straight from the kernel, so that pages nobody writes cost nothing.
fn zeroed(octets: usize) -> Box<[u8]> {
    vec![0; octets].into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound() -> Socket {
        Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap()
    }

    fn to(socket: &Socket) -> Address {
        Address::from(socket.local())
    }

    #[test]
    fn a_batch_arrives_whole_and_in_order() {
        let (left, right) = (bound(), bound());
        let mut sender = Sender::new();
        for number in 0..BATCH_MAX {
            let text = format!("datagram {number}");
            sender.room()[..text.len()].copy_from_slice(text.as_bytes());
            sender.push(text.len(), to(&right));
        }
        assert!(sender.is_full());
        assert_eq!(sender.flush(&left, &mut |error| panic!("{error:?}")), BATCH_MAX);
        let mut receiver = Receiver::new(BATCH_MAX);
        assert_eq!(receiver.receive(&right).unwrap(), BATCH_MAX);
        assert!(receiver.is_full());
        for number in 0..BATCH_MAX {
            let (octets, from) = receiver.datagram(number);
            assert_eq!(octets, format!("datagram {number}").as_bytes());
            assert_eq!(from, to(&left));
        }
        assert_eq!(receiver.receive(&right).unwrap(), 0);
    }

    #[test]
    fn the_largest_datagram_is_not_cut() {
        let (left, right) = (bound(), bound());
        let mut sender = Sender::new();
        sender.room()[65_506] = 7;
        sender.push(65_507, to(&right));
        assert_eq!(sender.flush(&left, &mut |error| panic!("{error:?}")), 1);
        let mut receiver = Receiver::new(4);
        assert_eq!(receiver.receive(&right).unwrap(), 1);
        let (octets, _) = receiver.datagram(0);
        assert_eq!((octets.len(), octets[65_506]), (65_507, 7));
    }

    #[test]
    fn one_that_cannot_be_sent_does_not_keep_the_others() {
        let (left, right) = (bound(), bound());
        let mut sender = Sender::new();
        for len in [1, 65_535, 2] {
            sender.push(len, to(&right));
        }
        let mut errors = Vec::new();
        assert_eq!(sender.flush(&left, &mut |error| errors.push(error)), 2);
        assert_eq!(errors.len(), 1);
        assert!(errors[0].unsent);
        assert_eq!(errors[0].error.raw_os_error(), Some(libc::EMSGSIZE));
    }

    #[test]
    fn an_error_about_an_earlier_datagram_costs_no_later_one() {
        let (left, right) = (bound(), bound());
        let gone = to(&bound());
        let mut sender = Sender::new();
        let mut refused = 0;
        for _ in 0..100 {
            for to in [gone, to(&right)] {
                sender.push(1, to);
            }
            sender.flush(&left, &mut |error| {
                assert!(!error.unsent);
                assert_eq!(error.to, gone);
                refused += 1;
            });
        }
        drain_errors(&left, &mut |_| refused += 1);
        let mut receiver = Receiver::new(BATCH_MAX);
        let mut received = 0;
        while receiver.receive(&right).unwrap() > 0 {
            received += receiver.filled();
        }
        assert_eq!(received, 100);
        assert!(refused > 0);
    }

    #[test]
    fn a_relay_sends_the_same_octets_on() {
        let (client, relay, backend) = (bound(), bound(), bound());
        let mut receiver = Receiver::new(8);
        for text in ["one", "two"] {
            client.send_to(text.as_bytes(), &to(&relay)).unwrap();
        }
        assert_eq!(receiver.receive(&relay).unwrap(), 2);
        assert_eq!(receiver.send_on(&relay, |_| Some(to(&backend))), 2);
        let mut at_backend = Receiver::new(8);
        assert_eq!(at_backend.receive(&backend).unwrap(), 2);
        assert_eq!(at_backend.datagram(1), (&b"two"[..], to(&relay)));
    }
}
