//! The call memory: where calls went whose backend no hash can tell.
//!
//! A fixed number of entries, allocated at start, in sets of four. A new call takes the entry of its set that would
//! expire first; if that one was still in use, it is forgotten before its time, which is counted. Nothing else is kept
//! per call, and pools that choose by hash do not use it at all.

use crate::dataplane::limits::{MEMORY_ENTRIES, MEMORY_MS};

/// Entries that share a hash: a look-up reads one cache line.
const WAYS: usize = 4;
const SETS: usize = MEMORY_ENTRIES / WAYS;

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Entry {
    /// Digest of the call's key.
    digest: u64,
    /// Stable id of its backend.
    backend: u32,
    /// When the entry may be taken, in units of 1.024 s of the shard's clock; 0: it is free.
    expires: u32,
}

#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Set([Entry; WAYS]);

/// A shard's call memory.
pub struct Memory {
    sets: Box<[Set]>,
}

/// Milliseconds to the unit of [`Entry::expires`]. Never 0, which means "free".
fn units(ms: u64) -> u32 {
    (ms >> 10) as u32 + 1
}

impl Default for Memory {
    fn default() -> Memory {
        Memory { sets: vec![Set::default(); SETS].into_boxed_slice() }
    }
}

impl core::fmt::Debug for Memory {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}

impl Memory {
    #[inline(always)]
    fn set(&mut self, digest: u64) -> &mut Set {
        // The low bits: a slot number is made of the high ones.
        &mut self.sets[digest as usize % SETS]
    }

    /// The backend of the call with this digest; the call is remembered for another while.
    #[inline(always)]
    pub fn recall(&mut self, digest: u64, now_ms: u64) -> Option<u32> {
        let now = units(now_ms);
        let entry = self.set(digest).0.iter_mut().find(|entry| entry.digest == digest && entry.expires >= now)?;
        entry.expires = units(now_ms + MEMORY_MS);
        Some(entry.backend)
    }

    /// Remembers a call. Returns whether another had to be forgotten before its time.
    pub fn remember(&mut self, digest: u64, backend: u32, now_ms: u64) -> bool {
        let set = self.set(digest);
        let place = set.0.iter().position(|entry| entry.digest == digest && entry.expires != 0);
        let place = place.unwrap_or_else(|| {
            let oldest = set.0.iter().enumerate().min_by_key(|(_, entry)| entry.expires);
            oldest.map_or(0, |(place, _)| place)
        });
        let entry = &mut set.0[place];
        let evicted = entry.digest != digest && entry.expires >= units(now_ms);
        *entry = Entry { digest, backend, expires: units(now_ms + MEMORY_MS) };
        evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_remembered_until_it_is_silent_for_too_long() {
        let mut memory = Memory::default();
        assert_eq!(memory.recall(7, 0), None);
        assert!(!memory.remember(7, 42, 0));
        assert_eq!(memory.recall(7, 20_000), Some(42));
        assert_eq!(memory.recall(7, 50_000), Some(42), "the message before renewed it");
        assert_eq!(memory.recall(7, 50_000 + MEMORY_MS + 2048), None);
    }

    #[test]
    fn a_full_set_forgets_the_oldest_and_says_so() {
        let mut memory = Memory::default();
        let digest = |i: usize| (i * SETS) as u64 + 5;
        for i in 0..WAYS {
            assert!(!memory.remember(digest(i), i as u32, i as u64 * 2000));
        }
        assert!(memory.remember(digest(WAYS), 99, 8000));
        assert_eq!(memory.recall(digest(0), 8000), None);
        assert_eq!(memory.recall(digest(1), 8000), Some(1));
        assert_eq!(memory.recall(digest(WAYS), 8000), Some(99));
    }

    #[test]
    fn expired_entries_are_taken_silently() {
        let mut memory = Memory::default();
        for i in 0..WAYS {
            memory.remember((i * SETS) as u64, 1, 0);
        }
        assert!(!memory.remember((WAYS * SETS) as u64, 2, 2 * MEMORY_MS));
    }
}
