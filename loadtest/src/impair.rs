//! A bad network on purpose: between a caller and its socket, datagrams are lost, doubled and overtaken, in both
//! directions, each by its own chance. What was done is counted, so that no report takes it for the element's doing.
//!
//! ```text
//! caller ──► loss ─► duplication ─► delay ──► socket
//! caller ◄────────── loss ◄────────────────── socket
//! ```

use crate::clock::MS_NS;
use crate::rng::Rng;
use crate::sys::address::Address;
use crate::sys::batch::Sender;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// How long a datagram is kept back that is to be overtaken: longer than a round trip through any element that is not in
/// trouble, and far below T1, so that it causes no retransmission by itself.
pub const DELAY_NS: u64 = 20 * MS_NS;

/// Datagrams one socket may keep back. What is beyond leaves in time.
const KEPT_MAX: usize = 1 << 14;

/// The chances, 0 to 1 each.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Impairment {
    /// That a datagram is lost, sent or received.
    pub loss: f64,
    /// That one is sent twice.
    pub duplication: f64,
    /// That one is kept back for [`DELAY_NS`], so that others overtake it.
    pub reordering: f64,
}

impl Impairment {
    /// Whether nothing is to be done at all.
    pub fn is_none(&self) -> bool {
        *self == Impairment::default()
    }
}

/// What was done on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Impaired {
    /// Datagrams lost on their way out and in.
    pub lost: u64,
    /// Datagrams sent twice.
    pub duplicated: u64,
    /// Datagrams kept back.
    pub reordered: u64,
}

impl Impaired {
    /// Adds what another counted.
    pub fn add(&mut self, other: &Impaired) {
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
    }
}

/// The bad network of one socket.
#[derive(Debug)]
pub struct BadNetwork {
    impairment: Impairment,
    rng: Rng,
    kept: VecDeque<(u64, Address, Box<[u8]>)>,
    leaving: Vec<(Address, Box<[u8]>)>,
}

impl BadNetwork {
    /// `None` for a good one.
    pub fn new(impairment: Impairment, seed: u64) -> Option<BadNetwork> {
        let network = BadNetwork { impairment, rng: Rng::new(seed), kept: VecDeque::new(), leaving: Vec::new() };
        (!impairment.is_none()).then_some(network)
    }

    /// Changes what `sender` is about to send, and adds what has been kept back long enough. Call it again while it says
    /// that there is more.
    pub fn send(&mut self, sender: &mut Sender, now: u64, done: &mut Impaired) -> bool {
        for index in 0..sender.count() {
            let (octets, to) = sender.message(index);
            if self.hits(self.impairment.loss) {
                done.lost += 1;
                continue;
            }
            let is_doubled = self.hits(self.impairment.duplication);
            done.duplicated += u64::from(is_doubled);
            for _ in 0..=u8::from(is_doubled) {
                if self.hits(self.impairment.reordering) && self.kept.len() < KEPT_MAX {
                    done.reordered += 1;
                    self.kept.push_back((now + DELAY_NS, to, octets.into()));
                } else {
                    self.leaving.push((to, octets.into()));
                }
            }
        }
        while self.kept.front().is_some_and(|(at, ..)| *at <= now) {
            let Some((_, to, octets)) = self.kept.pop_front() else { break };
            self.leaving.push((to, octets));
        }
        sender.clear();
        let mut sent = 0;
        while sent < self.leaving.len() && !sender.is_full() {
            let (to, octets) = &self.leaving[sent];
            sender.room()[..octets.len()].copy_from_slice(octets);
            sender.push(octets.len(), *to);
            sent += 1;
        }
        self.leaving.drain(..sent);
        !self.leaving.is_empty()
    }

    /// Whether a datagram that has come is lost.
    pub fn loses(&mut self, done: &mut Impaired) -> bool {
        let lost = self.hits(self.impairment.loss);
        done.lost += u64::from(lost);
        lost
    }

    /// When something that was kept back is to leave; `u64::MAX` if nothing is.
    pub fn next_ns(&self) -> u64 {
        self.kept.front().map_or(u64::MAX, |(at, ..)| *at)
    }

    fn hits(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.rng.next_unit() < chance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(impairment: Impairment, count: u32) -> (Vec<u32>, Impaired) {
        let mut network = BadNetwork::new(impairment, 5).unwrap();
        let to = Address::from(std::net::SocketAddr::from(([127, 0, 0, 1], 9)));
        let (mut sender, mut out, mut done) = (Sender::new(), Vec::new(), Impaired::default());
        let mut flush = |network: &mut BadNetwork, sender: &mut Sender, now| {
            loop {
                let more = network.send(sender, now, &mut done);
                let numbers = (0..sender.count())
                    .map(|index| u32::from_be_bytes(sender.message(index).0.try_into().unwrap()))
                    .collect::<Vec<_>>();
                out.extend(numbers);
                sender.clear();
                if !more {
                    return;
                }
            }
        };
        for number in 0..count {
            sender.room()[..4].copy_from_slice(&number.to_be_bytes());
            sender.push(4, to);
            if sender.is_full() {
                flush(&mut network, &mut sender, u64::from(number) * MS_NS);
            }
        }
        flush(&mut network, &mut sender, u64::from(count) * MS_NS);
        let last = network.kept.back().map_or(0, |(at, ..)| *at);
        flush(&mut network, &mut sender, last);
        assert_eq!(network.next_ns(), u64::MAX);
        (out, done)
    }

    #[test]
    fn each_chance_is_kept_and_counted() {
        let (out, done) = sent(Impairment { loss: 0.1, duplication: 0.05, reordering: 0.02 }, 20_000);
        assert!((1800..2200).contains(&done.lost), "{done:?}");
        assert!((730..1080).contains(&done.duplicated), "{done:?}");
        assert!((300..460).contains(&done.reordered), "{done:?}");
        assert_eq!(out.len() as u64, 20_000 - done.lost + done.duplicated);
        let overtaken = out.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert!(overtaken > 10, "what is kept back is overtaken: {overtaken}");
    }

    #[test]
    fn what_is_kept_back_is_doubled_as_often_as_what_is_not() {
        let (out, done) = sent(Impairment { loss: 0.0, duplication: 1.0, reordering: 1.0 }, 500);
        assert_eq!((out.len(), done), (1000, Impaired { lost: 0, duplicated: 500, reordered: 1000 }));
    }

    #[test]
    fn all_can_be_doubled_and_nothing_is_lost_without_being_told() {
        let (out, done) = sent(Impairment { duplication: 1.0, ..Impairment::default() }, 500);
        assert_eq!((out.len(), done), (1000, Impaired { duplicated: 500, ..Impaired::default() }));
        assert!(BadNetwork::new(Impairment::default(), 1).is_none());
    }
}
