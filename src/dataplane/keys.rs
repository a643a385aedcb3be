//! The keys of a fleet, and what is made with them: routing hashes, branches and MACs.
//!
//! All are derived by the control plane from one secret, so that nodes with the same secret agree on everything. They
//! are separate keys for separate purposes: whoever learns how one behaves learns nothing about the others, and the
//! MAC key can be replaced without moving a call or a branch.
//!
//! SipHash-1-3 where a hash only has to spread keys that an attacker chose; SipHash-2-4 where it is a MAC. Never ahash:
//! its output differs between CPUs, builds and processes. The golden vectors below freeze all of them; a change of a
//! single bit would move the calls of every fleet that upgrades.

use crate::dataplane::text::copy_short;
use core::hash::Hasher;
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
    /// Keys that verify, by id.
    mac: [Option<SipHasher24>; KEY_IDS],
    /// The id of the key that signs.
    current: u8,
}

impl Keys {
    /// Keys for routing and branches, and one for MACs that has the id `current % 16`.
    pub fn new(route: &Key, branch: &Key, mac: &Key, current: u8) -> Keys {
        let current = current % KEY_IDS as u8;
        let mut keys = Keys {
            route: SipHasher13::new_with_key(route),
            branch: SipHasher13::new_with_key(branch),
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
        let mut fields = Fields::new(self.route);
        fields.add(b"backend").add(name.as_bytes());
        fields.finish(0)
    }

    /// A hasher for the stable part of a branch. It does not depend on a key that is ever rotated (RFC 3261 16.11: a
    /// retransmission must leave with the branch of the first transmission).
    #[inline(always)]
    pub fn branch(&self) -> Fields<SipHasher13> {
        Fields::new(self.branch)
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

    /// A MAC of fields under the key `id`; `None` if there is no such key.
    #[inline(always)]
    pub fn mac(&self, id: u8) -> Option<Fields<SipHasher24>> {
        self.mac.get(id as usize).copied().flatten().map(Fields::new)
    }
}

impl core::fmt::Debug for Keys {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Keys").field("current", &self.current).finish_non_exhaustive()
    }
}

/// A hash over a list of fields. Each is followed by an octet of zero, so that no two lists run into the same octets. A field
/// from a message that holds a zero itself can only be mistaken for another field of the same message.
///
/// The fields are laid side by side and hashed in one go: a third of the instructions of hashing them one by one. What
/// does not fit is hashed one by one, with the same result.
#[derive(Clone)]
pub struct Fields<H> {
    hasher: H,
    pending: [u8; PENDING],
    len: usize,
    /// Whether `hasher` has seen fields already.
    is_long: bool,
}

const PENDING: usize = 160;

/// A hasher that can also hash in one go.
pub trait OneGo: Hasher + Copy {
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

impl<H: OneGo> Fields<H> {
    #[inline(always)]
    fn new(hasher: H) -> Fields<H> {
        Fields { hasher, pending: [0; PENDING], len: 0, is_long: false }
    }

    /// Adds a field.
    #[inline(always)]
    pub fn add(&mut self, field: &[u8]) -> &mut Self {
        match self.pending.get_mut(self.len..self.len + field.len() + 1) {
            Some(place) => {
                copy_short(&mut place[..field.len()], field);
                place[field.len()] = 0;
                self.len += field.len() + 1;
            }
            None => self.write_through(field),
        }
        self
    }

    #[cold]
    fn write_through(&mut self, field: &[u8]) {
        self.is_long = true;
        self.hasher.write(self.pending.get(..self.len).unwrap_or_default());
        self.len = 0;
        self.hasher.write(field);
        self.hasher.write(&[0]);
    }

    /// The hash of the fields added, and of `number`.
    #[inline(always)]
    pub fn finish(mut self, number: u32) -> u64 {
        let number = number.to_be_bytes();
        if !self.is_long
            && let Some(place) = self.pending.get_mut(self.len..self.len + 4)
        {
            place.copy_from_slice(&number);
            return self.hasher.hash_all(self.pending.get(..self.len + 4).unwrap_or_default());
        }
        self.hasher.write(self.pending.get(..self.len).unwrap_or_default());
        self.hasher.write(&number);
        self.hasher.finish()
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
        assert_eq!(hash(keys.branch(), &[b"z9hG4bK776asdhds", b"1"]), 0xcd7a_187f_d64c_050d);
        assert_eq!(hash(keys.mac(3).unwrap(), &[b"x"]), 0xcef6_29a2_73bf_a152);
        assert!(keys.mac(4).is_none());
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
            assert_eq!(hash(other.branch(), &[b"x"]), hash(before.branch(), &[b"x"]));
        }
        assert_eq!([&before, &announced, &rotated, &done].map(Keys::current), [0, 0, 1, 1]);
        assert_eq!(rotated.mac_of(0, b"x"), before.mac_of(0, b"x"));
        assert_eq!(announced.mac_of(1, b"x"), done.mac_of(1, b"x"));
        assert_eq!((before.mac_of(1, b"x"), done.mac_of(0, b"x")), (None, None));
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        let keys = keys();
        let two = |a: &[u8], b: &[u8]| hash(keys.branch(), &[a, b]);
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
            assert_eq!(hash(keys.branch(), &[b"first", &long, b"last"]), expected, "{len}");
        }
    }

    fn hash<H: OneGo>(mut fields: Fields<H>, list: &[&[u8]]) -> u64 {
        for field in list {
            fields.add(field);
        }
        fields.finish(7)
    }
}
