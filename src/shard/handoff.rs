//! What one shard has to tell another: that an INVITE is answered, where the answer came to a shard that does not know it.
//!
//! ```text
//! shard that forwarded the INVITE ◄── word of the answer ── shard that the response came to
//!   call memory: it rings no longer                           forwards it like any other
//! ```
//!
//! Messages are never passed on: their tokens say all that is needed, so any shard serves any message. Only the call
//! memory of the INVITE's shard has to hear of its end, or it would count as ringing for three minutes (`max_open`). That
//! happens in one arrangement alone: one port for all shards towards backends, spread by the kernel. With a port for each
//! shard, or with steering by Call-ID, responses come home, and there is no mesh at all.
//!
//! A word is told to all others, since nothing in the response says whose it is. Words of a batch go together; what a
//! shard has no room for is lost and counted, and costs what it would have cost without.

use crate::dataplane::limits::BATCH;
use crate::sys::poll::Bell;
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Digests of answered transactions: of a batch of messages.
pub type Words = SmallVec<[u64; BATCH]>;

/// Batches that wait for a shard at most: 2,048 answers, more than it gets while it is busy with a batch of its own.
const WAITING_MAX: usize = 64;

/// A shard's end of the mesh.
#[derive(Debug)]
pub struct Handoff {
    others: Vec<(SyncSender<Words>, Arc<Bell>)>,
    inbox: Receiver<Words>,
}

/// Links shards that wait for these bells, each with all others.
pub fn mesh(bells: &[Arc<Bell>]) -> Vec<Handoff> {
    let (senders, inboxes): (Vec<_>, Vec<_>) = bells.iter().map(|_| sync_channel(WAITING_MAX)).unzip();
    let others = |own: usize| {
        let all = senders.iter().zip(bells).enumerate().filter(move |(number, _)| *number != own);
        all.map(|(_, (sender, bell))| (sender.clone(), bell.clone())).collect()
    };
    inboxes.into_iter().enumerate().map(|(own, inbox)| Handoff { others: others(own), inbox }).collect()
}

impl Handoff {
    /// Tells all others. Returns how many words they had no room for.
    pub fn tell(&self, words: &[u64]) -> u64 {
        let mut lost = 0;
        for (other, bell) in &self.others {
            match other.try_send(Words::from_slice(words)) {
                Ok(()) => bell.ring(),
                Err(_) => lost += words.len() as u64,
            }
        }
        lost
    }

    /// What others have told.
    pub fn told(&self) -> impl Iterator<Item = u64> {
        self.inbox.try_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_comes_to_all_others_and_what_does_not_fit_is_counted() {
        let bells: Vec<Arc<Bell>> = (0..3).map(|_| Arc::new(Bell::new().unwrap())).collect();
        let mesh = mesh(&bells);
        assert_eq!(mesh[0].tell(&[1, 2]), 0);
        assert_eq!(mesh[0].told().count(), 0);
        for other in [1, 2] {
            assert_eq!(mesh[other].told().collect::<Vec<_>>(), [1, 2]);
        }
        let lost: u64 = (0..WAITING_MAX + 5).map(|_| mesh[1].tell(&[7])).sum();
        assert_eq!(lost, 10);
        assert_eq!(mesh[2].told().count(), WAITING_MAX);
    }
}
