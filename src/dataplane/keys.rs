//! The keys of a fleet, and what is made with them: routing hashes, branches and MACs.
//!
//! All are derived by the control plane from one secret, so that nodes with the same secret agree on everything. They
//! are separate keys for separate purposes: whoever learns how one behaves learns nothing about the others, and the
//! MAC key can be replaced without moving a call or a branch.
//!
//! SipHash-1-3 where a hash only has to spread keys that an attacker chose; SipHash-2-4 where it is a MAC. Never ahash:
//! its output differs between CPUs, builds and processes. The golden vectors below freeze all of them; a change of a
//! single bit would move the calls of every fleet that upgrades.

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

    /// The hash by which a key finds its slot.
    #[inline(always)]
    pub fn route(&self, key: &[u8]) -> u64 {
        self.route.hash(key)
    }

    /// A hasher for the stable part of a branch. It does not depend on a key that is ever rotated (RFC 3261 16.11: a
    /// retransmission must leave with the branch of the first transmission).
    #[inline(always)]
    pub fn branch(&self) -> Fields<SipHasher13> {
        Fields(self.branch)
    }

    /// The id of the key that signs.
    #[inline(always)]
    pub fn current(&self) -> u8 {
        self.current
    }

    /// A MAC under the key `id`; `None` if there is no such key.
    #[inline(always)]
    pub fn mac(&self, id: u8) -> Option<Fields<SipHasher24>> {
        self.mac.get(id as usize).copied().flatten().map(Fields)
    }
}

impl core::fmt::Debug for Keys {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Keys").field("current", &self.current).finish_non_exhaustive()
    }
}

/// A hash over a list of fields. Each is followed by its length, so that no two lists run into the same octets.
#[derive(Clone, Copy)]
pub struct Fields<H>(H);

impl<H: Hasher> Fields<H> {
    /// Adds a field.
    #[inline(always)]
    pub fn add(&mut self, field: &[u8]) -> &mut Self {
        self.0.write(field);
        self.0.write(&(field.len() as u32).to_le_bytes());
        self
    }

    /// The hash of the fields added.
    #[inline(always)]
    pub fn finish(&self) -> u64 {
        self.0.finish()
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
        assert_eq!(keys.branch().add(b"z9hG4bK776asdhds").add(b"1").finish(), 0x3d88_ccb5_2775_f0fd);
        assert_eq!(keys.mac(3).unwrap().add(b"x").finish(), 0xa6e5_e4a5_a0d8_184a);
        assert!(keys.mac(4).is_none());
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        let keys = keys();
        let two = |a: &[u8], b: &[u8]| keys.branch().add(a).add(b).finish();
        assert_ne!(two(b"ab", b"c"), two(b"a", b"bc"));
        assert_ne!(two(b"abc", b""), two(b"", b"abc"));
    }
}
