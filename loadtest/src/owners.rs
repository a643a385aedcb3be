//! Which backend took which call: a bounded record that all backends of a run share, by a digest of the Call-ID. It is
//! how a message of a call that reaches another backend than the one that took it is found out.
//!
//! The record is a table of atomic words in buckets of eight: taking a call and looking one up cost one cache line and no
//! lock. The oldest of eight gives way to a ninth, one that has ended before one that goes on; what has been forgotten is
//! unknown, never wrong.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use xxhash_rust::xxh3::xxh3_64;

/// Calls remembered unless asked otherwise: 8 MiB.
pub const CALLS_REMEMBERED: usize = 1 << 20;

/// Backends that a record can tell apart.
pub const BACKENDS_MAX: usize = 1 << 12;

/// Entries of a bucket.
const WAYS: usize = 8;

/// The record.
#[derive(Debug)]
pub struct Owners {
    // Digest (its upper 48 bits) | life of the backend (3 bits) | over (1 bit) | backend (12 bits). 0: empty.
    entries: Box<[AtomicU64]>,
    /// How often each backend has died, modulo 8: a call taken in an earlier life belongs to nobody.
    lives: Box<[AtomicU8]>,
    /// Calls that went on and gave way to others.
    forgotten: AtomicU64,
}

/// What is known of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This backend took it and has not died since.
    Alive {
        /// The backend's index.
        backend: usize,
        /// Whether the call has ended.
        over: bool,
    },
    /// The backend with this index took it, and died.
    Dead(usize),
    /// Never seen, or forgotten.
    Unknown,
}

/// What stands for a Call-ID in the record.
#[inline]
pub fn digest(call_id: &[u8]) -> u64 {
    // The digest also makes the tag of an entry, and an entry is never 0.
    xxh3_64(call_id) | 1 << 63
}

impl Owners {
    /// A record of at least `calls` calls for `backends` backends.
    pub fn new(calls: usize, backends: usize) -> Owners {
        assert!(backends <= BACKENDS_MAX, "the caller checks how many backends there are");
        let entries = calls.clamp(64, 1 << 28).next_power_of_two();
        Owners {
            entries: (0..entries).map(|_| AtomicU64::new(0)).collect(),
            lives: (0..backends).map(|_| AtomicU8::new(0)).collect(),
            forgotten: AtomicU64::new(0),
        }
    }

    /// Remembers that `backend` took the call.
    pub fn take(&self, digest: u64, backend: usize) {
        self.write(digest, self.entry(digest, backend, false));
    }

    /// Remembers that the call has ended where it was.
    pub fn end(&self, digest: u64, backend: usize) {
        self.write(digest, self.entry(digest, backend, true));
    }

    /// Who has the call.
    pub fn of(&self, digest: u64) -> Owner {
        let bucket = self.bucket(digest);
        let entry = bucket.iter().map(|entry| entry.load(Ordering::Relaxed)).find(|entry| entry >> 16 == digest >> 16);
        let Some(entry) = entry else { return Owner::Unknown };
        let backend = (entry & 0xfff) as usize;
        match entry >> 13 & 7 == self.life(backend) {
            true => Owner::Alive { backend, over: entry & 1 << 12 != 0 },
            false => Owner::Dead(backend),
        }
    }

    /// The backend died: its calls are nobody's from here on.
    pub fn died(&self, backend: usize) {
        self.lives[backend].fetch_add(1, Ordering::Relaxed);
    }

    /// How many calls were forgotten while they went on, because there were more than there is room for.
    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed)
    }

    fn entry(&self, digest: u64, backend: usize, over: bool) -> u64 {
        digest >> 16 << 16 | self.life(backend) << 13 | u64::from(over) << 12 | backend as u64
    }

    fn life(&self, backend: usize) -> u64 {
        u64::from(self.lives.get(backend).map_or(0, |life| life.load(Ordering::Relaxed)) & 7)
    }

    fn bucket(&self, digest: u64) -> &[AtomicU64] {
        let at = digest as usize & (self.entries.len() - 1) & !(WAYS - 1);
        &self.entries[at..at + WAYS]
    }

    fn write(&self, digest: u64, new: u64) {
        let bucket = self.bucket(digest);
        let same = |entry: &&AtomicU64| entry.load(Ordering::Relaxed) >> 16 == digest >> 16;
        if let Some(entry) = bucket.iter().find(same) {
            entry.store(new, Ordering::Relaxed);
            return;
        }
        // The newest is first; the oldest that is not needed any more gives way, or else the oldest. Two threads that meet
        // here may lose one entry, which then is unknown.
        let to_spare = bucket.iter().rposition(|entry| !is_needed(entry.load(Ordering::Relaxed)));
        let mut carried = new;
        for entry in &bucket[..=to_spare.unwrap_or(WAYS - 1)] {
            carried = entry.swap(carried, Ordering::Relaxed);
        }
        self.forgotten.fetch_add(u64::from(is_needed(carried)), Ordering::Relaxed);
    }
}

/// Whether there is a call in this entry that goes on.
fn is_needed(entry: u64) -> bool {
    entry != 0 && entry & 1 << 12 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_belongs_to_who_took_it_until_that_one_dies() {
        let owners = Owners::new(1000, 3);
        let call = digest(b"abc@192.0.2.1");
        assert_eq!(owners.of(call), Owner::Unknown);
        owners.take(call, 2);
        assert_eq!(owners.of(call), Owner::Alive { backend: 2, over: false });
        owners.end(call, 2);
        assert_eq!(owners.of(call), Owner::Alive { backend: 2, over: true });
        owners.died(2);
        assert_eq!(owners.of(call), Owner::Dead(2));
        owners.take(call, 1);
        assert_eq!(owners.of(call), Owner::Alive { backend: 1, over: false });
    }

    #[test]
    fn what_is_forgotten_is_unknown_and_counted() {
        let owners = Owners::new(1024, 1);
        for number in 0..4096u32 {
            owners.take(digest(&number.to_be_bytes()), 0);
        }
        let known = (0..4096u32).filter(|number| owners.of(digest(&number.to_be_bytes())) != Owner::Unknown).count();
        assert!(known <= 1024);
        assert_eq!(known as u64 + owners.forgotten(), 4096);
        assert_ne!(owners.of(digest(&4095u32.to_be_bytes())), Owner::Unknown, "the last is remembered");
    }

    #[test]
    fn a_call_that_goes_on_outlives_any_number_that_have_ended() {
        let owners = Owners::new(1024, 1);
        let calls = |from: u32, count: u32| (from..from + count).map(|number| digest(&number.to_be_bytes()));
        calls(0, 200).for_each(|call| owners.take(call, 0));
        for call in calls(1000, 10_000) {
            owners.take(call, 0);
            owners.end(call, 0);
        }
        assert_eq!(owners.forgotten(), 0);
        assert!(calls(0, 200).all(|call| owners.of(call) == Owner::Alive { backend: 0, over: false }));
    }
}
