//! The call memory: where a call or an open INVITE went, as long as neither a hash nor a token can tell.
//!
//! A fixed number of entries, allocated at start, in sets of four. A new one takes the entry of its set that would
//! end first; if that one was still in use, it is forgotten before its time, which is counted. Since an INVITE that has
//! its final response ends sooner than one that rings, a flood pushes out what is needed least. Nothing else is kept per
//! call.

use crate::dataplane::limits::MEMORY_ENTRIES;

/// Entries that share a hash: a look-up reads one cache line.
const WAYS: usize = 4;
const SETS: usize = MEMORY_ENTRIES / WAYS;

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Entry {
    /// Digest of the call's key, or of the INVITE's transaction.
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

    /// The backend remembered under this digest.
    #[inline(always)]
    pub fn recall(&mut self, digest: u64, now_ms: u64) -> Option<u32> {
        self.find(digest, now_ms).map(|entry| entry.backend)
    }

    /// Lets what is remembered under this digest end `for_ms` from now.
    #[inline(always)]
    pub fn keep(&mut self, digest: u64, now_ms: u64, for_ms: u64) {
        if let Some(entry) = self.find(digest, now_ms) {
            entry.expires = units(now_ms + for_ms);
        }
    }

    #[inline(always)]
    fn find(&mut self, digest: u64, now_ms: u64) -> Option<&mut Entry> {
        let now = units(now_ms);
        self.set(digest).0.iter_mut().find(|entry| entry.digest == digest && entry.expires >= now)
    }

    /// Remembers a backend for `for_ms`. Returns whether another entry had to be forgotten before its time.
    #[inline(always)]
    pub fn remember(&mut self, digest: u64, backend: u32, now_ms: u64, for_ms: u64) -> bool {
        let set = self.set(digest);
        let place = set.0.iter().position(|entry| entry.digest == digest && entry.expires != 0);
        let place = place.unwrap_or_else(|| {
            let oldest = set.0.iter().enumerate().min_by_key(|(_, entry)| entry.expires);
            oldest.map_or(0, |(place, _)| place)
        });
        let entry = &mut set.0[place];
        let evicted = entry.digest != digest && entry.expires >= units(now_ms);
        *entry = Entry { digest, backend, expires: units(now_ms + for_ms) };
        evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::limits::MEMORY_MS;

    #[test]
    fn a_call_is_remembered_until_it_is_silent_for_too_long() {
        let mut memory = Memory::default();
        assert_eq!(memory.recall(7, 0), None);
        assert!(!memory.remember(7, 42, 0, MEMORY_MS));
        assert_eq!(memory.recall(7, 20_000), Some(42));
        memory.keep(7, 20_000, MEMORY_MS);
        assert_eq!(memory.recall(7, 50_000), Some(42));
        assert_eq!(memory.recall(7, 50_000 + MEMORY_MS + 2048), None);
    }

    #[test]
    fn a_full_set_forgets_the_oldest_and_says_so() {
        let mut memory = Memory::default();
        let digest = |i: usize| (i * SETS) as u64 + 5;
        for i in 0..WAYS {
            assert!(!memory.remember(digest(i), i as u32, i as u64 * 2000, MEMORY_MS));
        }
        assert!(memory.remember(digest(WAYS), 99, 8000, MEMORY_MS));
        assert_eq!(memory.recall(digest(0), 8000), None);
        assert_eq!(memory.recall(digest(1), 8000), Some(1));
        assert_eq!(memory.recall(digest(WAYS), 8000), Some(99));
    }

    #[test]
    fn expired_entries_are_taken_silently() {
        let mut memory = Memory::default();
        for i in 0..WAYS {
            memory.remember((i * SETS) as u64, 1, 0, MEMORY_MS);
        }
        assert!(!memory.remember((WAYS * SETS) as u64, 2, 2 * MEMORY_MS, MEMORY_MS));
    }
}
