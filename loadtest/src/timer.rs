//! Timers by the hundred thousand: a wheel in which each call has one place, found by its slot number. Arming, moving and
//! taking one out cost the same however many there are, and nothing is allocated per timer.
//!
//! ```text
//! heads   [ 0 ][ 1 ][ 2 ] … [65535]      one list of slots per tick of 131 µs, 8.6 s around
//!           │         └► slot 7 ⇄ slot 3
//!           └► slot 9
//! ```
//!
//! A time further away than one turn waits in the last bucket and is put back when the wheel comes by.

use crate::clock::SECOND_NS;

/// Nanoseconds of a tick. Times are rounded up to the next one; whoever publishes a lateness counts from the tick.
pub const TICK_NS: u64 = 1 << 17;

/// Buckets of the wheel, a power of two: 8.6 s of ticks.
const BUCKETS: u64 = 1 << 16;

/// The timers of RFC 3261 17, Table 4, as far as they have a name of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// T1, the round-trip time that is assumed: 500 ms.
    pub t1_ns: u64,
    /// T2, the longest gap between two retransmissions of anything but an INVITE: 4 s.
    pub t2_ns: u64,
    /// T4, how long a message may live in the network: 5 s.
    pub t4_ns: u64,
    /// How long a caller waits for the final response after a provisional one, as Timer C has it for proxies: 181 s.
    pub ringing_ns: u64,
}

impl Default for Timers {
    fn default() -> Timers {
        Timers { t1_ns: SECOND_NS / 2, t2_ns: 4 * SECOND_NS, t4_ns: 5 * SECOND_NS, ringing_ns: 181 * SECOND_NS }
    }
}

impl Timers {
    /// Timers B, F, H: when a transaction gives up, 64 times T1.
    pub fn give_up_ns(&self) -> u64 {
        64 * self.t1_ns
    }
}

/// One timer per slot.
#[derive(Debug)]
pub struct Wheel {
    /// First slot of each bucket's list.
    heads: Box<[u32]>,
    /// One bit per bucket: whether its list holds anything.
    occupied: Box<[u64]>,
    links: Vec<Link>,
    /// All ticks before this one have fired.
    tick: u64,
    armed: usize,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
    /// [`NONE`]: not armed.
    bucket: u32,
    at_tick: u64,
}

const NONE: u32 = u32::MAX;
const UNLINKED: Link = Link { previous: NONE, next: NONE, bucket: NONE, at_tick: 0 };

impl Wheel {
    /// An empty wheel that starts at `now_ns`.
    pub fn new(now_ns: u64) -> Wheel {
        Wheel {
            heads: vec![NONE; BUCKETS as usize].into(),
            occupied: vec![0; BUCKETS as usize / 64].into(),
            links: Vec::new(),
            tick: now_ns / TICK_NS,
            armed: 0,
        }
    }

    /// Sets the timer of `slot`, which may have been set before, and says when it will fire: `at_ns` rounded up.
    pub fn arm(&mut self, slot: u32, at_ns: u64) -> u64 {
        debug_assert!(slot != NONE);
        let at_tick = at_ns.div_ceil(TICK_NS);
        if self.links.len() <= slot as usize {
            self.links.resize(slot as usize + 1, UNLINKED);
        }
        self.disarm(slot);
        self.link(slot, at_tick);
        at_tick * TICK_NS
    }

    /// Takes the timer of `slot` out, if it is set.
    pub fn disarm(&mut self, slot: u32) {
        let Some(&link) = self.links.get(slot as usize) else { return };
        if link.bucket == NONE {
            return;
        }
        match link.previous {
            NONE => self.heads[link.bucket as usize] = link.next,
            previous => self.links[previous as usize].next = link.next,
        }
        if link.next != NONE {
            self.links[link.next as usize].previous = link.previous;
        }
        if self.heads[link.bucket as usize] == NONE {
            self.occupied[link.bucket as usize / 64] &= !(1 << (link.bucket % 64));
        }
        self.links[slot as usize] = UNLINKED;
        self.armed -= 1;
    }

    /// Moves the wheel to `now_ns` and appends every slot whose time has come to `fired`. Those are not armed any more.
    pub fn expire(&mut self, now_ns: u64, fired: &mut Vec<u32>) {
        let now_tick = now_ns / TICK_NS;
        // After a stall of more than one turn every bucket is due once; there is no need to go around twice.
        let last = now_tick.min(self.tick.saturating_add(BUCKETS - 1));
        let mut tick = self.tick;
        while tick <= last && self.armed > 0 {
            let bucket = (tick % BUCKETS) as usize;
            if self.occupied[bucket / 64] == 0 {
                // Nothing in this word of 64 buckets.
                tick = (tick | 63) + 1;
                continue;
            }
            let mut slot = self.heads[bucket];
            while slot != NONE {
                let link = self.links[slot as usize];
                self.disarm(slot);
                if link.at_tick <= now_tick {
                    fired.push(slot);
                } else {
                    self.tick = self.tick.max(tick + 1);
                    self.link(slot, link.at_tick);
                }
                slot = link.next;
            }
            tick += 1;
        }
        self.tick = self.tick.max(now_tick + 1);
    }

    /// When [`expire`](Self::expire) has something to do next; `u64::MAX` if never. Never too late, but it may be early: by
    /// up to one turn of the wheel, for a timer further away than that.
    pub fn next_ns(&self) -> u64 {
        if self.armed == 0 {
            return u64::MAX;
        }
        let start = (self.tick % BUCKETS) as usize;
        let words = self.occupied.len();
        let first = self.occupied[start / 64] & (u64::MAX << (start % 64));
        let distance = match first {
            0 => (1..=words).find_map(|step| {
                let word = self.occupied[(start / 64 + step) % words];
                (word != 0).then(|| step as u64 * 64 + u64::from(word.trailing_zeros()) - start as u64 % 64)
            }),
            word => Some(u64::from(word.trailing_zeros()) - start as u64 % 64),
        };
        distance.map_or(u64::MAX, |distance| (self.tick + distance) * TICK_NS)
    }

    fn link(&mut self, slot: u32, at_tick: u64) {
        let tick = at_tick.clamp(self.tick, self.tick + BUCKETS - 1);
        let bucket = (tick % BUCKETS) as u32;
        let next = std::mem::replace(&mut self.heads[bucket as usize], slot);
        if next != NONE {
            self.links[next as usize].previous = slot;
        }
        self.links[slot as usize] = Link { previous: NONE, next, bucket, at_tick };
        self.occupied[bucket as usize / 64] |= 1 << (bucket % 64);
        self.armed += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MS_NS;
    use crate::rng::Rng;

    #[test]
    fn timers_fire_in_their_tick_and_never_before() {
        let mut wheel = Wheel::new(0);
        let mut rng = Rng::new(1);
        let mut due: Vec<u64> = (0..2000).map(|slot| wheel.arm(slot, rng.next_below(30 * SECOND_NS))).collect();
        // Some are moved, some taken out.
        for slot in (0..2000).step_by(3) {
            due[slot as usize] = wheel.arm(slot, rng.next_below(30 * SECOND_NS));
        }
        for slot in (0..2000).step_by(7) {
            wheel.disarm(slot);
            due[slot as usize] = u64::MAX;
        }
        let (mut now, mut fired, mut seen) = (0, Vec::new(), 0);
        while wheel.next_ns() != u64::MAX {
            assert!(wheel.next_ns() <= due.iter().copied().min().unwrap());
            now = wheel.next_ns().max(now) + rng.next_below(3) * MS_NS;
            wheel.expire(now, &mut fired);
            for slot in fired.drain(..) {
                assert!(due[slot as usize] <= now, "slot {slot} fired too early");
                due[slot as usize] = u64::MAX;
                seen += 1;
            }
            assert!(due.iter().all(|&due| due > now), "something was forgotten");
        }
        assert_eq!(seen, 2000 - 2000usize.div_ceil(7));
    }

    #[test]
    fn a_stall_of_minutes_loses_nothing() {
        let mut wheel = Wheel::new(5 * SECOND_NS);
        for slot in 0..100 {
            wheel.arm(slot, u64::from(slot) * SECOND_NS);
        }
        let mut fired = Vec::new();
        wheel.expire(300 * SECOND_NS, &mut fired);
        fired.sort_unstable();
        assert_eq!(fired, (0..100).collect::<Vec<u32>>());
        assert_eq!(wheel.next_ns(), u64::MAX);
    }
}
