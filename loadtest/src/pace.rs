//! When a shard sleeps for a fixed moment instead of waiting for the next datagram.
//!
//! A sleeper that waits on its socket is woken by the very next datagram, and the sender pays for it: here 2 µs and more
//! per wake-up, most of all in a virtual machine, against 3 µs for the datagram itself. From some rate on it is cheaper for
//! both sides if the sleeper looks up by itself, ten thousand times a second, and finds several datagrams each time. The
//! price is up to [`LINGER_NS`] of latency, which is why it is not done at rates where it saves nothing.

use crate::clock::{MS_NS, SECOND_NS, US_NS};

/// How long a shard sleeps that has more to do than it waits.
pub const LINGER_NS: u64 = 100 * US_NS;

/// Messages a second, in and out, from which on a shard sleeps: three in the time it sleeps.
const RATE_MIN: u64 = 30_000;

/// How long a rate is looked at before it counts.
const WINDOW_NS: u64 = 10 * MS_NS;

/// The rate of one shard.
#[derive(Debug, Default)]
pub struct Pace {
    since_ns: u64,
    messages: u64,
    lingers: bool,
}

impl Pace {
    /// So many messages have come or gone.
    #[inline]
    pub fn note(&mut self, messages: u64) {
        self.messages += messages;
    }

    /// Whether to sleep for [`LINGER_NS`] instead of waiting.
    #[inline]
    pub fn lingers(&mut self, now: u64) -> bool {
        let elapsed = now.saturating_sub(self.since_ns);
        if elapsed >= WINDOW_NS {
            self.lingers = self.messages * SECOND_NS / elapsed >= RATE_MIN;
            (self.since_ns, self.messages) = (now, 0);
        }
        self.lingers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_busy_shard_lingers_and_an_idle_one_stops() {
        let mut pace = Pace::default();
        assert!(!pace.lingers(0));
        pace.note(400);
        assert!(pace.lingers(10 * MS_NS), "40,000 a second");
        assert!(pace.lingers(15 * MS_NS), "half a window changes nothing");
        pace.note(100);
        assert!(!pace.lingers(20 * MS_NS), "10,000 a second");
    }
}
