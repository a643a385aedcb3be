//! What is to be sent: collected per socket while a batch is worked through, and sent with as few system calls as there
//! are sockets in it.
//!
//! The kernel may refuse:
//!
//! | it says | what that means | what becomes of the message |
//! |---|---|---|
//! | fewer than asked for | the next one has a problem: asking again tells which | |
//! | `EAGAIN` | the socket's buffer is full | waits here, up to [`SEND_BACKLOG_MAX`] octets a socket |
//! | `ENOBUFS` | a queue below is full, of one card among several maybe | dropped there: `send_backlog_full` |
//! | `EINVAL`, `ENETUNREACH` | maybe the address it is to leave from is not ours any more | sent from another |
//! | `ECONNREFUSED` and the like, with a report on the error queue | an *earlier* datagram was lost | sent again at once |
//! | anything, without a report | this one cannot be sent | dropped: `send_failed` |
//!
//! A message is counted when its fate is known, and then once.

use super::io::Io;
use crate::dataplane::counters::Tally;
use crate::dataplane::limits::{BATCH, SEND_BACKLOG_MAX};
use crate::dataplane::verdict::DropReason;
use crate::sys::errors::Unreachable;
use crate::sys::mmsg::{Outgoing, ReceiveBatch, is_dropped, is_full, may_be_of_source};
use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

/// A message on its way out. Its octets lie in the batch it came in and in the room for heads; all of them there, if it came
/// in no batch.
#[derive(Clone, Debug)]
pub struct Leaving {
    /// Where to.
    pub to: SocketAddr,
    /// From which local address, on a wildcard socket.
    pub local: Option<IpAddr>,
    /// What was written anew, in the room for heads.
    pub head: Range<usize>,
    /// Which slot of the batch it came in.
    pub slot: usize,
    /// What is sent of that slot.
    pub tail: Range<usize>,
    /// Whether octets that mean nothing may follow: see [`Outgoing::pads`].
    pub pads: bool,
    /// How it is counted.
    pub tally: Tally,
}

/// Told what becomes of messages.
pub trait Fates {
    /// The kernel took it.
    fn sent(&mut self, tally: Tally);
    /// It is lost.
    fn lost(&mut self, reason: DropReason);
    /// A destination cannot be reached.
    fn unreachable(&mut self, report: Unreachable);
    /// No connection could be opened to a destination, or none is tried so soon after one could not, for what the error number `code`
    /// stands for.
    fn refused(&mut self, to: SocketAddr, code: i32);
    /// Another shard has taken it over.
    fn handed_over(&mut self);
    /// So many more messages wait (or fewer, if negative).
    fn waiting(&mut self, change: i64);
}

/// A message that waits for the kernel, in octets of its own.
#[derive(Debug)]
struct Held {
    to: SocketAddr,
    local: Option<IpAddr>,
    octets: Bytes,
    tally: Tally,
}

#[derive(Debug, Default)]
struct Lane {
    leaving: Vec<Leaving>,
    held: VecDeque<Held>,
    /// The sum of their lengths. At most [`SEND_BACKLOG_MAX`].
    held_octets: usize,
}

/// Messages to be sent, by socket.
#[derive(Debug)]
pub struct Outbox {
    lanes: Vec<Lane>,
}

/// How often one message is tried because the errors that came back were about others.
const TRIES_MAX: u32 = 4;

impl Outbox {
    /// For so many sockets.
    pub fn new(sockets: usize) -> Outbox {
        let lane = || Lane { leaving: Vec::with_capacity(BATCH), ..Lane::default() };
        Outbox { lanes: (0..sockets).map(|_| lane()).collect() }
    }

    /// How many sockets there are.
    pub fn sockets(&self) -> usize {
        self.lanes.len()
    }

    /// Adds a message for `socket`.
    #[inline]
    pub fn add(&mut self, socket: usize, leaving: Leaving) {
        self.lanes[socket].leaving.push(leaving);
    }

    /// Whether as many have been added for `socket` as leave with one system call.
    pub fn is_full(&self, socket: usize) -> bool {
        self.lanes[socket].leaving.len() >= BATCH
    }

    /// Whether messages wait for `socket` to take more.
    pub fn is_waiting(&self, socket: usize) -> bool {
        !self.lanes[socket].held.is_empty()
    }

    /// Sends everything added since the last time, whose octets lie in `heads` and `came_in`.
    pub fn flush(&mut self, io: &mut impl Io, came_in: &ReceiveBatch, heads: &[u8], fates: &mut impl Fates) {
        for (socket, lane) in self.lanes.iter_mut().enumerate() {
            if lane.leaving.is_empty() {
                continue;
            }
            if io.makes_runs() {
                side_by_side(&mut lane.leaving);
            }
            let outgoing: SmallVec<[Outgoing<'_>; BATCH]> = lane
                .leaving
                .iter()
                .map(|one| Outgoing {
                    to: one.to,
                    parts: [&heads[one.head.clone()], &came_in.octets(one.slot)[one.tail.clone()]],
                    from: one.local,
                    pads: one.pads,
                })
                .collect();
            // What waits goes first, and what comes meanwhile queues up behind it.
            let taken = match lane.held.is_empty() {
                true => send(io, socket, &outgoing, |index| lane.leaving[index].tally, fates),
                false => 0,
            };
            for (one, outgoing) in lane.leaving[taken..].iter().zip(&outgoing[taken..]) {
                let octets = outgoing.parts[0].len() + outgoing.parts[1].len();
                if lane.held_octets + octets > SEND_BACKLOG_MAX {
                    fates.lost(DropReason::SendBacklogFull);
                    continue;
                }
                let mut copy = BytesMut::with_capacity(octets);
                copy.put_slice(outgoing.parts[0]);
                copy.put_slice(outgoing.parts[1]);
                lane.held_octets += octets;
                lane.held.push_back(Held { to: one.to, local: one.local, octets: copy.freeze(), tally: one.tally });
                fates.waiting(1);
            }
            lane.leaving.clear();
        }
    }

    /// Sends what waits for `socket`, as far as the kernel takes it.
    #[cold]
    pub fn resume(&mut self, io: &mut impl Io, socket: usize, fates: &mut impl Fates) {
        let lane = &mut self.lanes[socket];
        while !lane.held.is_empty() {
            let outgoing: SmallVec<[Outgoing<'_>; BATCH]> = lane
                .held
                .iter()
                .take(BATCH)
                .map(|one| Outgoing { to: one.to, parts: [&one.octets, b""], from: one.local, pads: false })
                .collect();
            let taken = send(io, socket, &outgoing, |index| lane.held[index].tally, fates);
            let all_taken = taken == outgoing.len();
            drop(outgoing);
            for held in lane.held.drain(..taken) {
                lane.held_octets -= held.octets.len();
                fates.waiting(-1);
            }
            if !all_taken {
                return;
            }
        }
        debug_assert_eq!(lane.held_octets, 0);
    }

    /// Gives up on all that waits.
    pub fn abandon(&mut self, fates: &mut impl Fates) {
        for lane in &mut self.lanes {
            for _ in lane.held.drain(..) {
                fates.waiting(-1);
                fates.lost(DropReason::SendBacklogFull);
            }
            lane.held_octets = 0;
        }
    }
}

/// Puts messages to one destination side by side, in the order they came in, so that what is alike can go as a run. The 32 of a
/// batch need no memory for that.
fn side_by_side(leaving: &mut [Leaving]) {
    // Two destinations of IPv6 that are taken for one break a run, and nothing else.
    leaving.sort_by_key(|one| match one.to.ip() {
        IpAddr::V4(ip) => u64::from(ip.to_bits()) << 16 | u64::from(one.to.port()),
        IpAddr::V6(ip) => ip.to_bits() as u64 ^ (ip.to_bits() >> 64) as u64 ^ u64::from(one.to.port()),
    });
}

/// Sends `outgoing` and returns how many of them are dealt with: all, unless the socket's buffer is full.
#[inline]
fn send(
    io: &mut impl Io,
    socket: usize,
    outgoing: &[Outgoing<'_>],
    tally: impl Fn(usize) -> Tally,
    fates: &mut impl Fates,
) -> usize {
    let (mut at, mut tries, mut has_moved) = (0, 0, false);
    while at < outgoing.len() {
        let from_anywhere;
        let next = match has_moved {
            true => {
                from_anywhere = [Outgoing { from: None, ..outgoing[at] }];
                &from_anywhere
            }
            false => &outgoing[at..],
        };
        match io.send(socket, next) {
            Ok(count) => {
                (at..at + count).for_each(|index| fates.sent(tally(index)));
                (at, tries, has_moved) = (at + count, 0, false);
                if count == 0 {
                    return at;
                }
            }
            Err(error) if is_full(&error) => return at,
            Err(error) if is_dropped(&error) => {
                fates.lost(DropReason::SendBacklogFull);
                (at, tries, has_moved) = (at + 1, 0, false);
            }
            Err(error) => {
                tries += 1;
                let about_others = take_reports(io, socket, fates) || error.kind() == io::ErrorKind::Interrupted;
                if about_others && tries < TRIES_MAX {
                    continue;
                }
                // RFC 3581 4 asks for the address that the request came to. Where that has moved to another node, an answer from
                // another is worth more than none: who is behind no NAT gets it.
                if may_be_of_source(&error) && next[0].from.is_some() {
                    has_moved = true;
                    continue;
                }
                fates.lost(DropReason::SendFailed);
                if let Some(code) = error.raw_os_error() {
                    fates.unreachable(Unreachable { to: outgoing[at].to, code });
                }
                (at, tries, has_moved) = (at + 1, 0, false);
            }
        }
    }
    at
}

/// Passes on all reports about datagrams sent earlier. Returns whether there were any.
#[cold]
pub fn take_reports(io: &mut impl Io, socket: usize, fates: &mut impl Fates) -> bool {
    let mut any = false;
    while let Some(report) = io.next_error(socket) {
        any = true;
        fates.unreachable(report);
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::verdict::Answer;

    /// A machine that the first address has left: what was sent from where. To one port it knows no way; to another it sends nothing
    /// either, and has a report about somebody else each time.
    #[derive(Default)]
    struct Machine(Vec<(SocketAddr, Option<IpAddr>)>, Vec<Unreachable>);

    const ENETUNREACH: i32 = 101;
    const ECONNREFUSED: i32 = 111;
    const CLOSED: u16 = 666;
    const NOWHERE: u16 = 667;
    const GONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 50));

    impl Io for Machine {
        fn receive(&mut self, _: usize, _: &mut ReceiveBatch) -> io::Result<usize> {
            Ok(0)
        }

        fn send(&mut self, _: usize, datagrams: &[Outgoing<'_>]) -> io::Result<usize> {
            if datagrams[0].to.port() == CLOSED {
                self.1.push(Unreachable { to: ([192, 0, 2, 9], 9).into(), code: ECONNREFUSED });
                return Err(io::Error::from_raw_os_error(ECONNREFUSED));
            }
            let is_sent = |one: &&Outgoing<'_>| one.from != Some(GONE) && ![CLOSED, NOWHERE].contains(&one.to.port());
            let taken: Vec<_> = datagrams.iter().take_while(is_sent).collect();
            self.0.extend(taken.iter().map(|one| (one.to, one.from)));
            if taken.is_empty() { Err(io::Error::from_raw_os_error(ENETUNREACH)) } else { Ok(taken.len()) }
        }

        fn allow_runs(&mut self, _: bool) {}

        fn makes_runs(&self) -> bool {
            false
        }

        fn next_error(&mut self, _: usize) -> Option<Unreachable> {
            self.1.pop()
        }

        fn queued(&mut self, _: usize) -> (u64, u64) {
            (0, 1)
        }

        fn drops(&mut self, _: usize) -> u64 {
            0
        }
    }

    /// How many were sent, and how many were lost, and who cannot be reached.
    #[derive(Default)]
    struct Counted([usize; 2], Vec<SocketAddr>);

    impl Fates for Counted {
        fn sent(&mut self, _: Tally) {
            self.0[0] += 1;
        }

        fn lost(&mut self, _: DropReason) {
            self.0[1] += 1;
        }

        fn unreachable(&mut self, report: Unreachable) {
            self.1.push(report.to);
        }

        fn refused(&mut self, _: SocketAddr, _: i32) {}
        fn handed_over(&mut self) {}
        fn waiting(&mut self, _: i64) {}
    }

    #[test]
    fn what_is_to_leave_from_an_address_that_has_moved_away_leaves_from_another() {
        let here = Some("192.0.2.1".parse().unwrap());
        let to = |port| SocketAddr::from(([198, 51, 100, 7], port));
        let outgoing = [(1, here), (2, Some(GONE)), (3, Some(GONE)), (4, here)].map(|(port, from)| Outgoing {
            to: to(port),
            parts: [b"x", b""],
            from,
            pads: false,
        });
        let (mut machine, mut counted) = (Machine::default(), Counted::default());
        assert_eq!(send(&mut machine, 0, &outgoing, |_| Tally::Reply(Answer::Stun), &mut counted), 4);
        assert_eq!(machine.0, [(to(1), here), (to(2), None), (to(3), None), (to(4), here)]);
        assert_eq!(counted.0, [4, 0]);
    }

    #[test]
    fn a_message_that_never_leaves_is_given_up_and_keeps_no_other_waiting() {
        let outgoing = [1, CLOSED, 3, NOWHERE, 5].map(|port| Outgoing {
            to: ([198, 51, 100, 7], port).into(),
            parts: [b"x", b""],
            from: Some(GONE).filter(|_| port == NOWHERE),
            pads: false,
        });
        let (mut machine, mut counted) = (Machine::default(), Counted::default());
        assert_eq!(send(&mut machine, 0, &outgoing, |_| Tally::Reply(Answer::Stun), &mut counted), 5);
        assert_eq!(counted.0, [3, 2]);
        let others = vec![SocketAddr::from(([192, 0, 2, 9], 9)); TRIES_MAX as usize];
        assert_eq!(counted.1, [others, vec![outgoing[1].to, outgoing[3].to]].concat());
    }
}
