//! The keys of a fleet, and what is made with them: routing hashes, branches and MACs.
//!
//! All are derived by the control plane from one secret, so that nodes with the same secret agree on everything. They
//! are separate keys for separate purposes: whoever learns how one behaves learns nothing about the others, and the
//! MAC key can be replaced without moving a call or a branch.
//!
//! SipHash-1-3 where a hash only has to spread keys that an attacker chose; SipHash-2-4 where it is a MAC. Never ahash where
//! nodes have to agree: its output differs between CPUs and builds. The golden vectors below freeze all of them; a change of a
//! single bit would move the calls of every fleet that upgrades.

use crate::dataplane::text::copy_short;
use core::hash::{BuildHasher, Hasher};
use siphasher::sip::{SipHasher13, SipHasher24};

/// 128 bits of key.
pub type Key = [u8; 16];

/// Highest key id, plus one: tokens name a key by four bits.
pub const KEY_IDS: usize = 16;

/// The keys in use.
#[derive(Clone)]
pub struct Keys {
    route: SipHasher13,
    branch: SipHasher13,
    passing: ahash::RandomState,
    /// Keys that verify, by id.
    mac: [Option<SipHasher24>; KEY_IDS],
    /// The id of the key that signs.
    current: u8,
}

impl Keys {
    /// Keys for routing and branches, and one for MACs that has the id `current % 16`.
    pub fn new(route: &Key, branch: &Key, mac: &Key, current: u8) -> Keys {
        let current = current % KEY_IDS as u8;
        let seeds = [route, branch].map(|key| u128::from_le_bytes(*key) as u64);
        let mut keys = Keys {
            route: SipHasher13::new_with_key(route),
            branch: SipHasher13::new_with_key(branch),
            passing: ahash::RandomState::with_seeds(seeds[0], seeds[1], !seeds[0], !seeds[1]),
            mac: [const { None }; KEY_IDS],
            current,
        };
        keys.mac[current as usize] = Some(SipHasher24::new_with_key(mac));
        keys
    }

    /// The same, where `mac` verifies as well, under the id `id % 16`; it signs nothing. A key of that id is replaced.
    pub fn accepting(mut self, id: u8, mac: &Key) -> Keys {
        self.mac[id as usize % KEY_IDS] = Some(SipHasher24::new_with_key(mac));
        self
    }

    /// The hash by which a key finds its slot.
    #[inline(always)]
    pub fn route(&self, key: &[u8]) -> u64 {
        self.route.hash(key)
    }

    /// A digest of a backend's name: what it contends for slots with, and what tokens and memory know it by.
    pub fn backend(&self, name: &str) -> u64 {
        hash_fields(&self.route, [b"backend", name.as_bytes()], 0)
    }

    /// A hash of `fields` and `number` for the stable part of a branch. It does not depend on a key that is ever rotated
    /// (RFC 3261 16.11: a retransmission must leave with the branch of the first transmission).
    #[inline(always)]
    pub fn branch<const N: usize>(&self, fields: [&[u8]; N], number: u32) -> u64 {
        hash_fields(&self.branch, fields, number)
    }

    /// A hasher for what only this program has to recognise, within seconds: see `rewrite::via::Mark`. Quick, and no MAC.
    #[inline(always)]
    pub fn passing(&self) -> ahash::AHasher {
        self.passing.build_hasher()
    }

    /// The id of the key that signs.
    #[inline(always)]
    pub fn current(&self) -> u8 {
        self.current
    }

    /// The MAC of `octets` under the key `id`; `None` if there is no such key.
    #[inline(always)]
    pub fn mac_of(&self, id: u8, octets: &[u8]) -> Option<u64> {
        Some(self.mac.get(id as usize)?.as_ref()?.hash(octets))
    }

    /// The MAC of `fields` and `number` under the key `id`; `None` if there is no such key.
    #[inline(always)]
    pub fn mac<const N: usize>(&self, id: u8, fields: [&[u8]; N], number: u32) -> Option<u64> {
        Some(hash_fields(self.mac.get(id as usize)?.as_ref()?, fields, number))
    }
}

impl core::fmt::Debug for Keys {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Keys").field("current", &self.current).finish_non_exhaustive()
    }
}

/// A hash over a list of fields and a number. Each field is followed by an octet of zero, so that no two lists run into the
/// same octets. A field from a message that holds a zero itself can only be mistaken for another field of the same message.
///
/// The fields are laid side by side and hashed in one go: a third of the instructions of hashing them one by one. What
/// does not fit is hashed one by one, with the same result.
#[inline(always)]
fn hash_fields<H: OneGo, const N: usize>(hasher: &H, fields: [&[u8]; N], number: u32) -> u64 {
    let mut room = [0; 160];
    let mut len = 0;
    for field in fields {
        // The octet behind the field is zero already.
        match room.get_mut(len..len + field.len()) {
            Some(place) => copy_short(place, field),
            None => return hash_one_by_one(hasher, &fields, number),
        }
        len += field.len() + 1;
    }
    match room.get_mut(len..len + 4) {
        Some(place) => place.copy_from_slice(&number.to_be_bytes()),
        None => return hash_one_by_one(hasher, &fields, number),
    }
    hasher.hash_all(&room[..len + 4])
}

#[cold]
fn hash_one_by_one<H: OneGo>(hasher: &H, fields: &[&[u8]], number: u32) -> u64 {
    let mut hasher = *hasher;
    for field in fields {
        hasher.write(field);
        hasher.write(&[0]);
    }
    hasher.write(&number.to_be_bytes());
    hasher.finish()
}

/// A hasher that can also hash in one go.
trait OneGo: Hasher + Copy {
    /// The hash of `octets` under the hasher's key.
    fn hash_all(&self, octets: &[u8]) -> u64;
}

impl OneGo for SipHasher13 {
    #[inline(always)]
    fn hash_all(&self, octets: &[u8]) -> u64 {
        self.hash(octets)
    }
}

impl OneGo for SipHasher24 {
    #[inline(always)]
    fn hash_all(&self, octets: &[u8]) -> u64 {
        self.hash(octets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        let key = |first: u8| core::array::from_fn(|i| first + i as u8);
        Keys::new(&key(0), &key(16), &key(32), 3)
    }

    /// The first is the SipHash reference implementation's own vector: key 00 01 .. 0f, no input. The others were
    /// computed by an implementation of the SipHash paper that shares no code with the crate.
    #[test]
    fn golden_vectors_do_not_change() {
        let keys = keys();
        assert_eq!(keys.route(b""), 0xabac_0158_050f_c4dc);
        assert_eq!(keys.route(b"a84b4c76e66710@pc33.atlanta.com"), 0xebec_6efc_0650_7c95);
        assert_eq!(keys.backend("10.0.0.11:5060"), 0x3c40_d43d_7212_4265);
        assert_eq!(keys.branch([b"z9hG4bK776asdhds", b"1"], 7), 0xcd7a_187f_d64c_050d);
        assert_eq!(keys.mac(3, [b"x"], 7).unwrap(), 0xcef6_29a2_73bf_a152);
        assert!(keys.mac(4, [b"x"], 7).is_none());
    }

    /// What moves no call and no branch when the key that signs is replaced, and what is verified then.
    #[test]
    fn a_rotation_changes_the_mac_and_nothing_else() {
        let (old, next) = ([7; 16], [8; 16]);
        let keys = |current: u8, mac: &Key| Keys::new(&[1; 16], &[2; 16], mac, current);
        let [before, announced, rotated, done] =
            [keys(0, &old), keys(0, &old).accepting(1, &next), keys(1, &next).accepting(0, &old), keys(1, &next)];
        for other in [&announced, &rotated, &done] {
            assert_eq!(other.route(b"call"), before.route(b"call"));
            assert_eq!(other.backend("a"), before.backend("a"));
            assert_eq!(other.branch([b"x"], 7), before.branch([b"x"], 7));
        }
        assert_eq!([&before, &announced, &rotated, &done].map(Keys::current), [0, 0, 1, 1]);
        assert_eq!(rotated.mac_of(0, b"x"), before.mac_of(0, b"x"));
        assert_eq!(announced.mac_of(1, b"x"), done.mac_of(1, b"x"));
        assert_eq!((before.mac_of(1, b"x"), done.mac_of(0, b"x")), (None, None));
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        let keys = keys();
        let two = |a: &[u8], b: &[u8]| keys.branch([a, b], 7);
        assert_ne!(two(b"ab", b"c"), two(b"a", b"bc"));
        assert_ne!(two(b"abc", b""), two(b"", b"abc"));
    }

    /// However the fields are cut, and however many of them fit side by side, the hash is that of all octets in a row.
    #[test]
    fn long_lists_hash_as_short_ones_do() {
        let keys = keys();
        for len in [0, 1, 140, 143, 144, 145, 146, 148, 149, 150, 160, 1000] {
            let long = vec![7u8; len];
            let mut row = Vec::new();
            for field in [&b"first"[..], &long, b"last"] {
                row.extend_from_slice(field);
                row.push(0);
            }
            row.extend_from_slice(&7u32.to_be_bytes());
            let expected = SipHasher13::new_with_key(&core::array::from_fn(|i| 16 + i as u8)).hash(&row);
            assert_eq!(keys.branch([b"first", &long, b"last"], 7), expected, "{len}");
        }
    }
}
