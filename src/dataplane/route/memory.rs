//! The call memory: where a call or an open INVITE went, as long as neither a hash nor a token can tell.
//!
//! A fixed number of entries, allocated at start, in sets of four. A new one takes the entry of its set that would
//! end first; if that one was still in use, it is forgotten before its time, which is counted. Since an INVITE that has
//! its final response ends sooner than one that rings, a flood pushes out what is needed least. Nothing else is kept per
//! call.

use crate::dataplane::limits::{MEMORY_ENTRIES, RINGING_MS};
use crate::dataplane::scan::prefetch;
use ahash::AHashMap;

/// Entries that share a hash: a look-up reads one cache line.
const WAYS: usize = 4;
const SETS: usize = MEMORY_ENTRIES / WAYS;

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Entry {
    /// Digest of the call's key, or of the INVITE's transaction, and in its low bits a [`STAMP`].
    stamped: u64,
    /// Stable id of its backend.
    backend: u32,
    /// When the entry may be taken, in units of 1.024 s of the shard's clock; 0: it is free. The top bit: [`RINGING`].
    expires: u32,
}

/// An INVITE without a final response, in the top bit of [`Entry::expires`]: 69 years are left for the rest.
const RINGING: u32 = 1 << 31;

/// When an INVITE went out, in the shard's milliseconds, in the low bits of [`Entry::stamped`]; 0: more has come back than a 100. What the
/// digest has there is known of all in a set, but for two bits.
const STAMP: u64 = (1 << 18) - 1;
const _: () = assert!(RINGING_MS < STAMP && SETS > (STAMP >> 2) as usize);

impl Entry {
    fn until(&self) -> u32 {
        self.expires & !RINGING
    }

    #[inline(always)]
    fn is_of(&self, digest: u64) -> bool {
        (self.stamped ^ digest) & !STAMP == 0
    }
}

/// What remembering did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Nothing was remembered under this digest.
    pub is_new: bool,
    /// Another entry had to be forgotten before its time.
    pub evicted: bool,
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

    /// Fetches what will be looked up or remembered under this digest: among hundreds of thousands it is in no cache.
    #[inline(always)]
    pub fn expect(&self, digest: u64) {
        prefetch(&self.sets[digest as usize % SETS]);
    }

    /// The backend remembered under this digest.
    #[inline(always)]
    pub fn recall(&mut self, digest: u64, now_ms: u64) -> Option<u32> {
        self.find(digest, now_ms).map(|entry| entry.backend)
    }

    /// Lets what is remembered under this digest end `for_ms` from now, and ring no longer. Returns the backend if it rang.
    #[inline(always)]
    pub fn keep(&mut self, digest: u64, now_ms: u64, for_ms: u64) -> Option<u32> {
        let entry = self.find(digest, now_ms)?;
        let rang = entry.expires & RINGING != 0;
        entry.expires = units(now_ms + for_ms);
        rang.then_some(entry.backend)
    }

    /// Where the INVITE of this digest went, and how many milliseconds ago, once: when its first response comes that is no 100.
    #[inline(always)]
    pub fn first_heard(&mut self, digest: u64, now_ms: u64) -> Option<(u32, u64)> {
        let entry = self.find(digest, now_ms)?;
        let sent_ms = entry.stamped & STAMP;
        entry.stamped &= !STAMP;
        (sent_ms != 0).then(|| (entry.backend, now_ms.wrapping_sub(sent_ms) & STAMP))
    }

    /// How many INVITEs ring at each backend. Looks at every entry: a millisecond.
    pub fn ringing(&self, now_ms: u64) -> AHashMap<u32, u32> {
        let mut counts = AHashMap::new();
        for entry in self.sets.iter().flat_map(|set| &set.0) {
            if entry.expires & RINGING != 0 && entry.until() >= units(now_ms) {
                *counts.entry(entry.backend).or_default() += 1;
            }
        }
        counts
    }

    #[inline(always)]
    fn find(&mut self, digest: u64, now_ms: u64) -> Option<&mut Entry> {
        let now = units(now_ms);
        self.set(digest).0.iter_mut().find(|entry| entry.is_of(digest) && entry.until() >= now)
    }

    /// Remembers the backend of an INVITE, which rings, for `for_ms`.
    #[inline(always)]
    pub fn remember_ringing(&mut self, digest: u64, backend: u32, now_ms: u64, for_ms: u64) -> Remembered {
        // Where that is 0, the millisecond before: of one still to come, an answer at once would have taken four minutes.
        let sent_ms = if now_ms & STAMP == 0 { STAMP } else { now_ms & STAMP };
        let stamped = digest & !STAMP | sent_ms;
        self.enter(digest, Entry { stamped, backend, expires: units(now_ms + for_ms) | RINGING }, now_ms)
    }

    /// Remembers the backend of a call for `for_ms`.
    #[inline(always)]
    pub fn remember(&mut self, digest: u64, backend: u32, now_ms: u64, for_ms: u64) -> Remembered {
        self.enter(digest, Entry { stamped: digest & !STAMP, backend, expires: units(now_ms + for_ms) }, now_ms)
    }

    #[inline(always)]
    fn enter(&mut self, digest: u64, new: Entry, now_ms: u64) -> Remembered {
        let set = self.set(digest);
        let place = set.0.iter().position(|entry| entry.is_of(digest));
        let place = place.unwrap_or_else(|| {
            let oldest = set.0.iter().enumerate().min_by_key(|(_, entry)| entry.until());
            oldest.map_or(0, |(place, _)| place)
        });
        let entry = &mut set.0[place];
        let in_use = entry.until() >= units(now_ms);
        let is_new = !entry.is_of(digest) || !in_use;
        let evicted = !entry.is_of(digest) && in_use;
        let comes_again = !is_new && entry.backend == new.backend;
        // What comes again behind its final response rings no more: its server need not say so a second time.
        let has_ended = comes_again && entry.expires & RINGING == 0;
        let stamped = if comes_again { entry.stamped } else { new.stamped };
        *entry = Entry { stamped, expires: new.expires & if has_ended { !RINGING } else { u32::MAX }, ..new };
        Remembered { is_new, evicted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::limits::MEMORY_MS;

    #[test]
    fn a_call_is_remembered_until_it_is_silent_for_too_long() {
        const TEN_YEARS: u64 = 315_360_000_000;
        for start in [0, TEN_YEARS] {
            let mut memory = Memory::default();
            assert_eq!(memory.recall(7, start), None);
            assert!(!memory.remember(7, 42, start, MEMORY_MS).evicted);
            assert_eq!(memory.recall(7, start + 20_000), Some(42));
            memory.keep(7, start + 20_000, MEMORY_MS);
            assert_eq!(memory.recall(7, start + 50_000), Some(42));
            assert_eq!(memory.recall(7, start + 50_000 + MEMORY_MS + 2048), None);
        }
    }

    #[test]
    fn a_full_set_forgets_the_oldest_and_says_so() {
        let mut memory = Memory::default();
        let digest = |i: usize| (i as u64) << 18 | 5;
        for i in 0..WAYS {
            assert!(!memory.remember(digest(i), i as u32, i as u64 * 2000, MEMORY_MS).evicted);
        }
        let newest = memory.remember(digest(WAYS), 99, 8000, MEMORY_MS);
        assert_eq!(newest, Remembered { is_new: true, evicted: true });
        assert_eq!(memory.recall(digest(0), 8000), None);
        assert_eq!(memory.recall(digest(1), 8000), Some(1));
        assert_eq!(memory.recall(digest(WAYS), 8000), Some(99));
    }

    #[test]
    fn what_rings_is_counted_until_it_is_answered_or_given_up() {
        let mut memory = Memory::default();
        assert!(memory.remember_ringing(1, 42, 0, 10_000).is_new);
        assert!(!memory.remember_ringing(1, 42, 500, 10_000).is_new, "a retransmission");
        memory.remember_ringing(2, 42, 0, 10_000);
        memory.remember(3, 42, 0, 10_000);
        assert_eq!(memory.ringing(0), AHashMap::from_iter([(42, 2)]));
        assert_eq!(memory.keep(1, 1000, MEMORY_MS), Some(42));
        assert_eq!(memory.keep(1, 1000, MEMORY_MS), None, "answered once");
        assert!(!memory.remember_ringing(1, 42, 1000, 10_000).is_new, "a retransmission behind the answer");
        assert_eq!(memory.ringing(1000), AHashMap::from_iter([(42, 1)]));
        assert!(memory.ringing(20_000).is_empty());
    }

    #[test]
    fn an_invite_that_comes_again_rings_if_its_answer_is_forgotten_or_was_anothers() {
        let mut memory = Memory::default();
        let much_later = 2 * MEMORY_MS;
        for digest in [1, 2] {
            memory.remember_ringing(digest, 42, 0, 10_000);
            memory.keep(digest, 1000, MEMORY_MS);
        }
        assert!(!memory.remember_ringing(1, 43, 2000, 10_000).is_new);
        assert_eq!(memory.ringing(2000), AHashMap::from_iter([(43, 1)]));
        assert!(memory.remember_ringing(2, 42, much_later, 10_000).is_new);
        assert_eq!(memory.ringing(much_later), AHashMap::from_iter([(42, 1)]));
    }

    #[test]
    fn how_long_an_invite_waited_is_told_once_and_counts_from_the_first_time_it_went_there() {
        const TEN_YEARS: u64 = 315_360_000_000;
        // Stamps begin anew every four minutes or so.
        for start in [0, 7, STAMP - 10, STAMP, STAMP + 1, TEN_YEARS] {
            let mut memory = Memory::default();
            memory.remember_ringing(5, 42, start, RINGING_MS);
            memory.remember_ringing(5, 42, start + 500, RINGING_MS);
            let waited = memory.first_heard(5, start + 1_700).map(|(backend, ms)| (backend, ms / 2));
            assert_eq!(waited, Some((42, 850)), "{start}");
            memory.remember_ringing(5, 42, start + 1_800, RINGING_MS);
            assert_eq!(memory.first_heard(5, start + 1_900), None);
            memory.remember_ringing(5, 43, start + 2_000, RINGING_MS);
            let other = memory.first_heard(5, start + 2_000 + RINGING_MS - 2_000);
            assert_eq!(other.map(|(backend, ms)| (backend, ms / 2)), Some((43, (RINGING_MS - 2_000) / 2)));
            memory.remember(6, 42, start, MEMORY_MS);
            assert_eq!(memory.first_heard(6, start), None, "no INVITE");
            memory.remember_ringing(7, 42, start, RINGING_MS);
            let at_once = memory.first_heard(7, start);
            assert!(at_once.is_some_and(|(_, ms)| ms <= 1), "{start}: {at_once:?}");
        }
    }

    #[test]
    fn expired_entries_are_taken_silently() {
        let mut memory = Memory::default();
        for i in 0..WAYS {
            memory.remember((i as u64) << 18, 1, 0, MEMORY_MS);
        }
        assert!(!memory.remember((WAYS as u64) << 18, 2, 2 * MEMORY_MS, MEMORY_MS).evicted);
    }
}
