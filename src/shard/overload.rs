//! Looks whether more comes to a shard than it can carry. What follows from that is said in `dataplane/overload`.
//!
//! A receive buffer is looked at behind a batch that was full: once in [`OVERLOAD_LOOK_MS`], and each millisecond as soon as its
//! queue was found long. That is a system call for a thousand messages, and none where the shard keeps up. A batch that was
//! not full has emptied the buffer.

use super::io::Io;
use crate::dataplane::limits::{BATCH, OVERLOAD_LOOK_MS};
use crate::dataplane::overload::{Pressure, Shedding};

/// The receive buffers of a shard's listeners.
#[derive(Debug)]
pub struct Overload {
    buffers: Box<[Buffer]>,
}

#[derive(Clone, Debug, Default)]
struct Buffer {
    pressure: Pressure,
    /// When it is to be looked at again.
    look_at_ms: u64,
    /// What followed from the last look.
    shedding: Shedding,
}

impl Overload {
    /// Of `listeners` listeners.
    pub fn new(listeners: usize) -> Overload {
        Overload { buffers: vec![Buffer::default(); listeners].into_boxed_slice() }
    }

    /// Whether no listener's queue has stood of late.
    #[inline]
    pub fn is_calm(&self) -> bool {
        self.buffers.iter().all(|buffer| buffer.pressure.is_calm())
    }

    /// What is refused of a batch of `count` datagrams that came to `socket`. A socket that is no listener's has what
    /// backends sent: nothing of that.
    #[inline]
    pub fn on_batch(&mut self, io: &mut impl Io, socket: usize, count: usize, now_ms: u64) -> Shedding {
        let Some(buffer) = self.buffers.get_mut(socket) else { return Shedding::Nothing };
        if count < BATCH {
            if !buffer.pressure.is_calm() {
                buffer.pressure.on_look(now_ms, 0, 1);
            }
            buffer.shedding = Shedding::Nothing;
        } else if now_ms >= buffer.look_at_ms {
            let (queued, room) = io.queued(socket);
            buffer.shedding = buffer.pressure.on_look(now_ms, queued, room);
            buffer.look_at_ms = now_ms + if buffer.pressure.is_calm() { OVERLOAD_LOOK_MS } else { 1 };
        }
        buffer.shedding
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::limits::OVERLOAD_STANDING_MS;
    use crate::sys::errors::Unreachable;
    use crate::sys::mmsg::{Outgoing, ReceiveBatch};
    use std::io;

    /// A receive buffer: what of it is in use, and how often it was looked at.
    struct Buffers(u64, u64);

    impl Io for Buffers {
        fn receive(&mut self, _: usize, _: &mut ReceiveBatch) -> io::Result<usize> {
            Ok(0)
        }

        fn send(&mut self, _: usize, datagrams: &[Outgoing<'_>]) -> io::Result<usize> {
            Ok(datagrams.len())
        }

        fn allow_runs(&mut self, _: bool) {}

        fn makes_runs(&self) -> bool {
            false
        }

        fn next_error(&mut self, _: usize) -> Option<Unreachable> {
            None
        }

        fn queued(&mut self, _: usize) -> (u64, u64) {
            self.1 += 1;
            (self.0, 100)
        }

        fn drops(&mut self, _: usize) -> u64 {
            0
        }
    }

    #[test]
    fn a_buffer_is_looked_at_seldom_until_its_queue_is_long_and_a_batch_that_is_not_full_has_emptied_it() {
        let (mut overload, mut io) = (Overload::new(1), Buffers(0, 0));
        for now_ms in 0..10 * OVERLOAD_LOOK_MS {
            assert_eq!(overload.on_batch(&mut io, 0, BATCH, now_ms), Shedding::Nothing);
            assert_eq!(overload.on_batch(&mut io, 1, BATCH, now_ms), Shedding::Nothing, "no listener's");
            assert!(overload.is_calm());
        }
        assert_eq!(io.1, 10);
        let long = 10 * OVERLOAD_LOOK_MS;
        io.0 = 100;
        for now_ms in long..long + OVERLOAD_STANDING_MS {
            assert_eq!(overload.on_batch(&mut io, 0, BATCH, now_ms), Shedding::Nothing);
            assert!(!overload.is_calm());
        }
        assert_eq!(io.1, 10 + OVERLOAD_STANDING_MS);
        let stood = long + OVERLOAD_STANDING_MS;
        assert_eq!(overload.on_batch(&mut io, 0, BATCH, stood), Shedding::Registrations);
        assert_eq!(overload.on_batch(&mut io, 0, BATCH, stood), Shedding::Registrations, "until the next look");
        assert_eq!(overload.on_batch(&mut io, 0, BATCH - 1, stood + 1), Shedding::Nothing);
        assert_eq!(io.1, 11 + OVERLOAD_STANDING_MS);
        overload.on_batch(&mut io, 0, BATCH - 1, stood + 3_600_000);
        assert!(overload.is_calm());
    }
}
