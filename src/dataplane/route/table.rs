//! Which backend owns a slot: weighted rendezvous, worked out in advance for all 65,536 slots.
//!
//! Each slot gives every backend a score from a hash of both; the highest score owns the slot, the second highest is
//! the slot's runner-up. The order of two backends in a slot depends on these two alone. Hence, exactly and not nearly:
//!
//! * a backend that leaves gives up its own slots and no other slot changes; each goes to its runner-up;
//! * a backend that comes takes slots for itself and no other slot changes;
//! * a backend that returns gets back the slots it had;
//! * the order of the configuration, and what happened before, mean nothing.
//!
//! Rendezvous hashing: Thaler and Ravishankar, 1998. With weights, a backend of weight `w` scores `w / -ln(u)`, `u`
//! uniform in (0, 1]: then its chance to win is `w` over the sum of the weights (Efraimidis and Spirakis, 2006).
//!
//! All nodes of a fleet must come to the same table, so nothing here is floating point: `ln` may differ between
//! platforms in the last bit. The logarithm is a table of 32-bit fractions, worked out by the compiler in integers, and
//! interpolated; scores are compared by cross-multiplication in 128 bits. And only the best two of each weight need a
//! logarithm at all: among equals the larger `u` wins.
//!
//! A table is worked out anew only where it has to be. Since a change of one contender changes nothing between the others, the
//! next table comes from the last one: who is new contends with owner and runner-up of each slot, and only the slots of those
//! who left are contested by all again. With many contenders that is all the difference: milliseconds for seconds.

use crate::dataplane::limits::SLOTS;
use core::cmp::Ordering;

/// What a slot holds where there is no backend.
pub const NONE: u16 = u16::MAX;

/// A backend as the table sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contender {
    /// What stands in the slots it wins. Not [`NONE`].
    pub index: u16,
    /// A digest of the backend's stable id, under the fleet's key. The index never enters a score.
    pub digest: u64,
    /// Relative weight. Zero wins nothing.
    pub weight: u32,
}

/// Owner and runner-up of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Who owns it, or [`NONE`].
    pub owner: u16,
    /// Who would own it without the owner, or [`NONE`].
    pub runner_up: u16,
}

/// The table of one pool.
#[derive(Clone)]
pub struct SlotTable(Box<[Slot]>);

impl SlotTable {
    /// Works the table out. Takes about 2 ns per slot and contender; 65,536 slots.
    pub fn build(contenders: &[Contender]) -> SlotTable {
        let sorted = by_weight(contenders);
        let classes = classes(&sorted);
        SlotTable((0..SLOTS).map(|slot| contest(slot as u64, &classes)).collect())
    }

    /// The table of `after`, which is what [`SlotTable::build`] makes of it, worked out of this one, which is that of `before`.
    /// Takes about 10 to 30 ns per slot for each contender that is new or left, however many stay.
    pub fn changed(&self, before: &[Contender], after: &[Contender]) -> SlotTable {
        let (before, sorted) = (by_weight(before), by_weight(after));
        let Changes { stayed, new } = changes(&before, &sorted);
        let gone = before.len() - stayed.iter().flatten().count();
        if 4 * (new.len() + gone) > sorted.len() {
            return SlotTable::build(after);
        }
        let classes = classes(&sorted);
        let of = |index: u16| stayed.get(index as usize).copied().flatten();
        let next = |(slot, old): (usize, &Slot)| match (of(old.owner), of(old.runner_up)) {
            (Some(owner), Some(runner_up)) => challenged(slot as u64, [owner, runner_up], &new),
            _ => contest(slot as u64, &classes),
        };
        SlotTable(self.0.iter().enumerate().map(next).collect())
    }

    /// The slot number of a hash: its top 16 bits.
    #[inline(always)]
    pub const fn number(hash: u64) -> usize {
        (hash >> 48) as usize
    }

    /// The slot of a hash.
    #[inline(always)]
    pub fn slot(&self, hash: u64) -> Slot {
        self.0[SlotTable::number(hash)]
    }

    /// All slots.
    pub fn slots(&self) -> &[Slot] {
        &self.0
    }

    /// How many slots have another owner in `other`, and how many there are.
    pub fn moved(&self, other: &SlotTable, same: impl Fn(u16, u16) -> bool) -> (usize, usize) {
        let moved = self.0.iter().zip(&other.0).filter(|(a, b)| !same(a.owner, b.owner)).count();
        (moved, SLOTS)
    }
}

impl core::fmt::Debug for SlotTable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SlotTable").finish_non_exhaustive()
    }
}

/// Those who can win, by weight. Within a weight the order is that of digests, so that even a tie of scores is broken the same way
/// everywhere.
fn by_weight(contenders: &[Contender]) -> Vec<Contender> {
    let mut sorted: Vec<Contender> = contenders.iter().copied().filter(|one| one.weight > 0).collect();
    sorted.sort_unstable_by_key(|one| (one.weight, one.digest));
    sorted
}

fn classes(sorted: &[Contender]) -> Vec<&[Contender]> {
    sorted.chunk_by(|a, b| a.weight == b.weight).collect()
}

/// What became of contenders.
struct Changes {
    /// By their old index, those who stayed, under the index they have now.
    stayed: Vec<Option<Contender>>,
    /// Those who were not there, or had another weight.
    new: Vec<Contender>,
}

/// Both lists are sorted as [`by_weight`] does.
fn changes(before: &[Contender], after: &[Contender]) -> Changes {
    let highest = before.iter().map(|one| one.index).max().unwrap_or_default();
    let mut stayed = vec![None; highest as usize + 1];
    let mut old = before.iter().peekable();
    let mut new = Vec::new();
    for one in after {
        let key = (one.weight, one.digest);
        while old.next_if(|old| (old.weight, old.digest) < key).is_some() {}
        match old.next_if(|old| (old.weight, old.digest) == key) {
            Some(old) => stayed[old.index as usize] = Some(*one),
            None => new.push(*one),
        }
    }
    Changes { stayed, new }
}

/// A contender's draw in a slot: its weight and the uniform 64-bit number it drew.
#[derive(Clone, Copy)]
struct Draw {
    index: u16,
    weight: u32,
    uniform: u64,
    digest: u64,
}

impl Draw {
    #[inline(always)]
    fn new(slot_digest: u64, contender: &Contender) -> Draw {
        let &Contender { index, digest, weight } = contender;
        Draw { index, weight, uniform: mix(slot_digest ^ digest), digest }
    }

    /// Whether this draw comes before the other, be it by a tie: the order in which [`contest`] finds them.
    fn precedes(&self, other: &Draw) -> bool {
        match self.weight.cmp(&other.weight) {
            Ordering::Less => !other.beats(self),
            Ordering::Equal => (other.uniform, self.digest) < (self.uniform, other.digest),
            Ordering::Greater => self.beats(other),
        }
    }

    /// Whether this draw scores higher: `w / -ln(u) > w' / -ln(u')`, as `w * -ln(u') > w' * -ln(u)`.
    fn beats(&self, other: &Draw) -> bool {
        let left = u128::from(self.weight) * u128::from(minus_log2(other.uniform));
        let right = u128::from(other.weight) * u128::from(minus_log2(self.uniform));
        left > right
    }
}

fn contest(slot: u64, classes: &[&[Contender]]) -> Slot {
    let slot_digest = mix(slot ^ SLOT_SALT);
    let (mut first, mut second): (Option<Draw>, Option<Draw>) = (None, None);
    for class in classes {
        for draw in best_two(slot_digest, class).into_iter().flatten() {
            if first.is_none_or(|best| draw.beats(&best)) {
                second = first.replace(draw);
            } else if second.is_none_or(|best| draw.beats(&best)) {
                second = Some(draw);
            }
        }
    }
    Slot { owner: first.map_or(NONE, |draw| draw.index), runner_up: second.map_or(NONE, |draw| draw.index) }
}

/// The slot of `holders`, owner and runner-up, when all of `new` contend for it as well.
fn challenged(slot: u64, holders: [Contender; 2], new: &[Contender]) -> Slot {
    let slot_digest = mix(slot ^ SLOT_SALT);
    if new.is_empty() {
        return Slot { owner: holders[0].index, runner_up: holders[1].index };
    }
    let [mut first, mut second] = holders.map(|holder| Draw::new(slot_digest, &holder));
    for contender in new {
        let draw = Draw::new(slot_digest, contender);
        if draw.precedes(&first) {
            second = core::mem::replace(&mut first, draw);
        } else if draw.precedes(&second) {
            second = draw;
        }
    }
    Slot { owner: first.index, runner_up: second.index }
}

/// The two largest draws among contenders of one weight, the largest first.
fn best_two(slot_digest: u64, class: &[Contender]) -> [Option<Draw>; 2] {
    let (mut first, mut second) = ((0, usize::MAX), (0, usize::MAX));
    for (place, contender) in class.iter().enumerate() {
        let uniform = mix(slot_digest ^ contender.digest);
        if uniform > first.0 || first.1 == usize::MAX {
            second = first;
            first = (uniform, place);
        } else if uniform > second.0 || second.1 == usize::MAX {
            second = (uniform, place);
        }
    }
    [first, second].map(|(_, place)| class.get(place).map(|contender| Draw::new(slot_digest, contender)))
}

/// Any constant: it keeps slot 0 from having the digest 0.
const SLOT_SALT: u64 = 0x7669_6168_6f70_2031;

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014; constants by Stafford, variant 13): every input bit changes
/// each output bit with a chance of one half, near enough. Its inputs are secret digests, so nobody can aim at a slot.
#[inline(always)]
const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// `-log2(u / 2^64)` in units of 2^-32, never zero. `u` of zero counts as one.
fn minus_log2(u: u64) -> u64 {
    let u = u.max(1);
    let leading = u64::from(u.leading_zeros());
    // u = 2^(63 - leading) * (1 + fraction / 2^63)
    let fraction = (u << leading) & (u64::MAX >> 1);
    let index = (fraction >> (63 - LOG_BITS)) as usize;
    let within = (fraction >> (63 - LOG_BITS - 32)) & u64::from(u32::MAX);
    let (low, high) = (LOG2[index], LOG2[index + 1]);
    let log2_fraction = low + (((high - low) * within) >> 32);
    // -log2(u / 2^64) = 64 - (63 - leading) - log2(1 + fraction)
    ((leading + 1) << 32) - log2_fraction
}

/// Entries of the logarithm table, as a power of two. With 256 the error of interpolation is below 2^-19, which moves a
/// share by less than a slot.
const LOG_BITS: u32 = 8;

/// `log2(1 + i / 256)` in units of 2^-32, for `i` from 0 to 256.
static LOG2: [u64; (1 << LOG_BITS) + 1] = {
    let mut table = [0u64; (1 << LOG_BITS) + 1];
    let mut i = 0;
    while i <= 1 << LOG_BITS {
        // 1 + i/256 as a fraction of 2^62; squaring it 32 times gives one bit of its logarithm each.
        let mut x: u128 = (1u128 << 62) + ((i as u128) << (62 - LOG_BITS));
        let mut log = 0u64;
        if x >= 1 << 63 {
            log = 1 << 32;
        } else {
            let mut bit = 32;
            while bit > 0 {
                bit -= 1;
                x = (x * x) >> 62;
                if x >= 1 << 63 {
                    x >>= 1;
                    log |= 1 << bit;
                }
            }
        }
        table[i] = log;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn contenders(weights: &[u32]) -> Vec<Contender> {
        let digest = |i: usize| mix(0x1234_5678 + i as u64);
        weights
            .iter()
            .enumerate()
            .map(|(i, &weight)| Contender { index: i as u16, digest: digest(i), weight })
            .collect()
    }

    fn share(table: &SlotTable, index: u16) -> f64 {
        table.slots().iter().filter(|slot| slot.owner == index).count() as f64 / SLOTS as f64
    }

    #[test]
    fn logarithm_is_right_to_a_millionth() {
        for u in [1, 2, 3, 1000, u64::MAX / 3, u64::MAX / 2, u64::MAX - 1, u64::MAX, 0x0123_4567_89ab_cdef] {
            let expected = -(u as f64 / 2f64.powi(64)).log2();
            let got = minus_log2(u) as f64 / 2f64.powi(32);
            assert!((got - expected).abs() < 4e-6, "{u}: {got} {expected}");
            assert!(minus_log2(u) > 0);
        }
    }

    #[test]
    fn a_backend_that_leaves_gives_its_slots_to_their_runners_up_and_moves_no_other() {
        for weights in [vec![1; 4], vec![1, 2, 7], vec![3, 3, 50, 50, 100, 1], vec![1; 26]] {
            let all = contenders(&weights);
            let before = SlotTable::build(&all);
            for leaver in 0..all.len() {
                let rest: Vec<_> = all.iter().copied().filter(|one| one.index != leaver as u16).collect();
                let after = SlotTable::build(&rest);
                for (old, new) in before.slots().iter().zip(after.slots()) {
                    let expected = if old.owner == leaver as u16 { old.runner_up } else { old.owner };
                    assert_eq!(new.owner, expected);
                }
            }
        }
    }

    #[test]
    fn order_of_configuration_and_history_mean_nothing() {
        let all = contenders(&[10, 20, 20, 70, 5]);
        let mut reversed = all.clone();
        reversed.reverse();
        assert_eq!(SlotTable::build(&all).slots(), SlotTable::build(&reversed).slots());
    }

    #[test]
    fn shares_follow_weights_within_a_percentage_point() {
        for weights in [vec![1, 2, 7], vec![1; 10], vec![50, 100], vec![1, 1000], vec![1; 100]] {
            let table = SlotTable::build(&contenders(&weights));
            let sum: u32 = weights.iter().sum();
            for (i, &weight) in weights.iter().enumerate() {
                let ideal = f64::from(weight) / f64::from(sum);
                assert!((share(&table, i as u16) - ideal).abs() < 0.01, "{weights:?} {i}");
            }
        }
    }

    #[test]
    fn changing_one_weight_moves_slots_to_or_from_that_backend_only() {
        let before = SlotTable::build(&contenders(&[10, 20, 30, 40]));
        let after = SlotTable::build(&contenders(&[10, 25, 30, 40]));
        for (old, new) in before.slots().iter().zip(after.slots()) {
            assert!(old.owner == new.owner || new.owner == 1);
        }
        assert!(share(&after, 1) > share(&before, 1));
    }

    #[test]
    fn weight_zero_and_no_contender_own_nothing() {
        let table = SlotTable::build(&contenders(&[0, 5]));
        assert!(table.slots().iter().all(|slot| *slot == Slot { owner: 1, runner_up: NONE }));
        assert!(SlotTable::build(&[]).slots().iter().all(|slot| slot.owner == NONE));
    }

    /// The shares of survivors of a failure: what falls to each is what its weight says, not a neighbour's whole load.
    #[test]
    fn the_slots_of_a_dead_backend_spread_over_all_survivors() {
        let all = contenders(&[1; 6]);
        let after = SlotTable::build(&all[1..]);
        let shares: Vec<f64> = (1..6).map(|i| share(&after, i)).collect();
        let max = shares.iter().copied().fold(0.0, f64::max);
        assert!(max / (1.0 / 5.0) < 1.03, "{shares:?}");
    }

    /// Contenders come, go, change their weight and get other indices: what is worked out of the last table is what is worked out
    /// of nothing. Draws of 64 bits never tie here, so that is a test of its own.
    #[test]
    fn a_table_worked_out_of_the_last_one_is_the_one_worked_out_of_nothing() {
        let weights: Vec<u32> = (0..32).map(|i| [1, 7, 7, 100][i % 4]).collect();
        let mut now = contenders(&weights);
        let mut table = SlotTable::build(&now);
        let mut seed = 7;
        let mut any = |below: usize| {
            seed = mix(seed);
            (seed % below as u64) as usize
        };
        for round in 0..16 {
            let before = now.clone();
            for _ in 0..any(4) {
                let place = any(now.len());
                match any(4) {
                    0 => drop(now.remove(place)),
                    1 => now[place].weight = [0, 1, 7, 50][any(4)],
                    2 => now.insert(place, Contender { index: 0, digest: mix(round * 64 + place as u64), weight: 7 }),
                    _ => now.swap(0, place),
                }
            }
            now.iter_mut().enumerate().for_each(|(index, one)| one.index = index as u16 + round as u16 % 3);
            table = table.changed(&before, &now);
            assert!(table.slots() == SlotTable::build(&now).slots(), "round {round}");
        }
    }

    #[test]
    fn a_table_of_one_or_none_can_be_changed() {
        let all = contenders(&[1, 1, 1, 1, 1, 1, 1, 1]);
        for before in [0, 1, 2, 3, 7] {
            for after in [0, 1, 2, 3, 8] {
                let table = SlotTable::build(&all[..before]).changed(&all[..before], &all[..after]);
                assert!(table.slots() == SlotTable::build(&all[..after]).slots(), "{before} {after}");
            }
        }
    }

    #[test]
    fn ties_are_broken_as_a_contest_breaks_them() {
        let draw = |weight, uniform, digest| Draw { index: 0, weight, uniform, digest };
        // One weight: the larger number, then the smaller digest.
        assert!(draw(5, 9, 2).precedes(&draw(5, 8, 1)) && !draw(5, 8, 1).precedes(&draw(5, 9, 2)));
        assert!(draw(5, 9, 1).precedes(&draw(5, 9, 2)) && !draw(5, 9, 2).precedes(&draw(5, 9, 1)));
        // Two weights that score the same, 1 / -log2(1/4) and 2 / -log2(1/16): the smaller weight comes first.
        let (light, heavy) = (draw(1, 1 << 62, 2), draw(2, 1 << 60, 1));
        assert!(!light.beats(&heavy) && !heavy.beats(&light));
        assert!(light.precedes(&heavy) && !heavy.precedes(&light));
    }

    /// Frozen: a change here moves the calls of every fleet that upgrades. The same owners come out of a few lines of
    /// floating point elsewhere: `max(w / -ln(mix(mix(slot ^ salt) ^ digest) / 2^64))`.
    #[test]
    fn golden_slots_do_not_change() {
        let table = SlotTable::build(&contenders(&[1, 2, 7, 7]));
        let owners: String =
            table.slots().iter().step_by(1021).map(|slot| char::from(b'0' + slot.owner as u8)).collect();
        assert_eq!(owners, "13221311012233320323320222333033332322323232122332232221211302223");
    }
}
