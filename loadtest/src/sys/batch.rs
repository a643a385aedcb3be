//! Datagrams by the batch: `recvmmsg` into slots, `sendmmsg` out of one room, and both together for a relay.
//!
//! One system call moves up to [`BATCH_MAX`] datagrams. The arrays the kernel reads are built once; a batch only resets
//! what the kernel wrote into them.
//!
//! With segmentation (UDP GSO) messages of one length to one address also share one way through the kernel, which takes
//! them apart again in front of the receiver's socket. Nobody who receives can tell, except by how close they follow each
//! other. For that they are put in order of their length; [`Order`] keeps the messages of one call in theirs.
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

/// Octets of the longest message that is sent by segmentation: with its headers it has to fit the MTU of any network, as
/// segments are not fragmented.
const SEGMENT_MAX: usize = 1400;

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
            out.iovecs[count] = libc::iovec { iov_base: base.cast_mut().cast(), iov_len: len };
            out.stage(count, count, 1, len, to);
            count += 1;
        }
        self.filled = 0;
        // The iovecs lead into `slots.room`, which nothing touches until this returns.
        self.slots.out.send(socket, count, &mut |_| ()).gone
    }
}

/// Room for datagrams that are to leave together.
pub struct Sender {
    room: Box<[u8]>,
    /// Octets of `room` in use. used + DATAGRAM_MAX <= room.len()
    used: usize,
    /// At most BATCH_MAX.
    waiting: Vec<Waiting>,
    out: Outgoing,
    segments: bool,
    /// How many batches there have been: tells whether an [`Order`] is of this one.
    batch: u32,
}

/// A message that waits: where it is, where it goes, and before which others.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    at: usize,
    len: usize,
    to: Address,
    level: u8,
}

/// The order of one call's messages within a batch: the second has a higher level than the first, and all of a level leave
/// before the next. Messages of different calls may overtake each other, as they may in any network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    batch: u32,
    level: u8,
}

impl Order {
    /// The level of this call's next message in the sender's present batch.
    #[inline]
    pub fn next(&mut self, sender: &Sender) -> u8 {
        let level = if self.batch == sender.batch { self.level.saturating_add(1) } else { 0 };
        *self = Order { batch: sender.batch, level };
        level
    }
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
            waiting: Vec::with_capacity(BATCH_MAX),
            out: Outgoing::new(BATCH_MAX),
            segments: false,
            // So that an order that has seen no batch is of none.
            batch: 1,
        }
    }

    /// One that segments. Where the network device cannot, it finds out and sends one by one.
    pub fn segmenting() -> Sender {
        Sender { segments: true, ..Sender::new() }
    }

    /// Whether messages are segmented: asked for, and the device can.
    pub fn segments(&self) -> bool {
        self.segments
    }

    /// Whether [`flush`](Self::flush) has to come before the next message.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.waiting.len() == BATCH_MAX || self.used + DATAGRAM_MAX > self.room.len()
    }

    /// Whether there is nothing to flush.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many messages wait.
    #[inline]
    pub fn count(&self) -> usize {
        self.waiting.len()
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
        self.push_at(len, to, 0);
    }

    /// The same, and it must not leave before those of a lower level: see [`Order`].
    #[inline]
    pub fn push_at(&mut self, len: usize, to: Address, level: u8) {
        assert!(len <= DATAGRAM_MAX && !self.is_full(), "the message lies within the room handed out");
        self.waiting.push(Waiting { at: self.used, len, to, level });
        self.used += len;
    }

    /// The messages that wait, for those who put the network's faults in between.
    pub fn message(&self, index: usize) -> (&[u8], Address) {
        let Waiting { at, len, to, .. } = self.waiting[index];
        (&self.room[at..at + len], to)
    }

    /// Forgets the messages that wait.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.used = 0;
        self.batch = self.batch.wrapping_add(1);
    }

    /// Sends what waits and says how many left. `report` hears of each that did not, and of ICMP about earlier ones.
    pub fn flush(&mut self, socket: &Socket, report: &mut dyn FnMut(SendError)) -> usize {
        if self.segments {
            // Where a message lies in the room is its place in time.
            self.waiting.sort_unstable_by_key(|message| (message.level, message.len, message.at));
        }
        let (mut at, mut gone) = (0, 0);
        while at < self.waiting.len() {
            let datagrams = self.stage(at);
            // The iovecs lead into `room`, which nothing touches until this returns.
            let outcome = self.out.send(socket, datagrams, report);
            gone += outcome.gone;
            if outcome.done == datagrams {
                break;
            }
            // The device does not segment: what is left goes one by one, and so does all that follows.
            self.segments = false;
            at += (0..outcome.done).map(|index| self.out.messages(index)).sum::<usize>();
        }
        self.clear();
        gone
    }

    /// Makes datagrams of the messages that wait from `from` on, or runs of them, and says how many.
    fn stage(&mut self, from: usize) -> usize {
        let (mut at, mut datagrams) = (from, 0);
        while at < self.waiting.len() {
            let Waiting { len, to, level, .. } = self.waiting[at];
            let same = |next: &&Waiting| next.len == len && next.to == to && next.level == level;
            let run = match self.segments && (1..=SEGMENT_MAX).contains(&len) {
                true => self.waiting[at..].iter().take_while(same).take(DATAGRAM_MAX / len - 1).count(),
                false => 1,
            };
            for (place, message) in (at - from..).zip(&self.waiting[at..at + run]) {
                let octets = self.room[message.at..message.at + message.len].as_mut_ptr();
                self.out.iovecs[place] = libc::iovec { iov_base: octets.cast(), iov_len: message.len };
            }
            self.out.stage(datagrams, at - from, run, len, to);
            (at, datagrams) = (at + run, datagrams + 1);
        }
        datagrams
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
    /// One per message. Never moved or resized: the headers point into it.
    iovecs: Box<[libc::iovec]>,
    /// One per datagram, or run of them.
    headers: Box<[libc::mmsghdr]>,
    /// For each header what says how long a segment is. Never moved or resized: the headers point into it.
    controls: Box<[SegmentSize]>,
}

/// A control message `UDP_SEGMENT`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SegmentSize {
    header: libc::cmsghdr,
    octets: u16,
    // The kernel wants whole words.
    _padding: [u16; 3],
}

/// What became of a send.
struct Outcome {
    /// Headers that were dealt with, sent or reported; less than all if the device does not segment.
    done: usize,
    /// Messages that left.
    gone: usize,
}

// SAFETY: the raw pointers lead into boxes that the same value owns, or, for the time of one `send`, into octets its
// caller holds; nothing is shared with the thread it came from.
unsafe impl Send for Outgoing {}

impl Outgoing {
    fn new(count: usize) -> Outgoing {
        let nothing = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        let mut iovecs = vec![nothing; count].into_boxed_slice();
        let headers = iovecs.iter_mut().map(|iovec| header(ptr::null_mut(), iovec)).collect();
        // SAFETY: all-zero is a valid cmsghdr.
        let mut control: libc::cmsghdr = unsafe { std::mem::zeroed() };
        control.cmsg_level = libc::SOL_UDP;
        control.cmsg_type = libc::UDP_SEGMENT;
        control.cmsg_len = (size_of::<libc::cmsghdr>() + size_of::<u16>()) as _;
        let control = SegmentSize { header: control, octets: 0, _padding: [0; 3] };
        Outgoing { names: vec![Address::NONE; count].into(), iovecs, headers, controls: vec![control; count].into() }
    }

    /// Makes header `index` send `run` messages to `to`, whose iovecs begin at `first`; more than one are `len` octets each.
    fn stage(&mut self, index: usize, first: usize, run: usize, len: usize, to: Address) {
        self.names[index] = to;
        self.controls[index].octets = len as u16;
        let header = &mut self.headers[index].msg_hdr;
        header.msg_iov = &raw mut self.iovecs[first];
        header.msg_iovlen = run as _;
        debug_assert!(first + run <= self.iovecs.len());
        (header.msg_control, header.msg_controllen) = match run {
            1 => (ptr::null_mut(), 0),
            _ => ((&raw mut self.controls[index]).cast(), size_of::<SegmentSize>() as _),
        };
    }

    /// Messages of header `index`.
    fn messages(&self, index: usize) -> usize {
        self.headers[index].msg_hdr.msg_iovlen
    }

    /// Sends the first `count` headers. Their iovecs lead to octets that live, unchanged, until this returns.
    fn send(&mut self, socket: &Socket, count: usize, report: &mut dyn FnMut(SendError)) -> Outcome {
        for (header, name) in self.headers.iter_mut().zip(&self.names).take(count) {
            header.msg_hdr.msg_name = name.octets().as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = name.octets().len() as libc::socklen_t;
        }
        let (mut at, mut gone, mut retries, mut waited) = (0, 0, 0, false);
        while at < count {
            let rest = &mut self.headers[at..count];
            // SAFETY: each header leads to a name in `self.names`, iovecs in `self.iovecs` and perhaps a control message in
            // `self.controls`, set for these `count` headers; the octets behind the iovecs live until this function
            // returns, as its callers see to.
            let result = unsafe {
                libc::sendmmsg(socket.fd(), rest.as_mut_ptr(), rest.len() as libc::c_uint, libc::MSG_DONTWAIT as _)
            };
            if let Ok(done @ 1..) = usize::try_from(result) {
                gone += (at..at + done).map(|index| self.messages(index)).sum::<usize>();
                (at, retries, waited) = (at + done, 0, false);
                continue;
            }
            let error = io::Error::last_os_error();
            if self.messages(at) > 1 && matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE))
            {
                return Outcome { done: at, gone };
            }
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
            for _ in 1..self.messages(at) {
                let error = io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO));
                report(SendError { to: self.names[at], error, unsent: true });
            }
            report(SendError { to: self.names[at], error, unsent: true });
            (at, retries, waited) = (at + 1, 0, false);
        }
        Outcome { done: at, gone }
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
    fn segments_arrive_as_they_were_written_and_a_calls_messages_in_order() {
        let (left, right, other) = (bound(), bound(), bound());
        let mut sender = Sender::segmenting();
        // Calls with three messages each, of different lengths, mixed with one for somebody else.
        let mut orders = [Order::default(); 8];
        for message in 0..3u8 {
            for (call, order) in orders.iter_mut().enumerate() {
                let len = [900, 300, 600][usize::from(message)];
                sender.room()[..len].fill(call as u8);
                sender.room()[len - 1] = message;
                let level = order.next(&sender);
                assert_eq!(level, message);
                sender.push_at(len, to(if call == 7 { &other } else { &right }), level);
            }
        }
        assert_eq!(sender.flush(&left, &mut |error| panic!("{error:?}")), 24);
        assert!(sender.segments(), "the loopback segments");
        let mut receiver = Receiver::new(BATCH_MAX);
        assert_eq!(receiver.receive(&right).unwrap(), 21);
        let mut next = [0; 8];
        for index in 0..21 {
            let (octets, from) = receiver.datagram(index);
            let (call, message) = (usize::from(octets[0]), octets[octets.len() - 1]);
            assert_eq!((message, from), (next[call], to(&left)));
            assert_eq!(octets.len(), [900, 300, 600][usize::from(message)]);
            assert!(octets[..octets.len() - 1].iter().all(|octet| usize::from(*octet) == call));
            next[call] += 1;
        }
        assert_eq!(receiver.receive(&other).unwrap(), 3);
        assert_eq!(orders[0].next(&sender), 0, "the next batch begins again");
    }

    #[test]
    fn a_run_that_cannot_be_sent_is_reported_message_by_message() {
        let left = bound();
        let mut sender = Sender::segmenting();
        // Port 0 is nobody's; the kernel refuses it.
        let nowhere = Address::from(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
        (0..3).for_each(|_| sender.push(100, nowhere));
        let mut unsent = 0;
        assert_eq!(sender.flush(&left, &mut |error| unsent += u32::from(error.unsent)), 0);
        assert_eq!(unsent, 3);
        assert!(sender.is_empty());
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
