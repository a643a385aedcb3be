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
