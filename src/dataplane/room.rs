//! The room a caller lends for one datagram: what came in, and what is to go out.

use crate::dataplane::verdict::{DropReason, Verdict};

/// One datagram's octets. The dispatcher reads `input` and leaves behind what is to be sent, in two parts.
#[derive(Debug)]
pub struct Room<'a> {
    /// The datagram. Changed in one place: the digits of Max-Forwards.
    pub input: &'a mut [u8],
    /// Room for what is written anew: [`HEAD_MAX`](crate::dataplane::limits::HEAD_MAX) octets.
    pub head: &'a mut [u8],
    /// Octets of `head` that are to be sent first.
    pub head_len: usize,
    /// The part of `input` that is to be sent behind them.
    pub tail: core::ops::Range<usize>,
    /// What becomes of the datagram. It stays where it was decided: one that is returned is copied on the way, and a copy of what was just
    /// written has to wait for it.
    pub verdict: Verdict,
}

impl<'a> Room<'a> {
    /// A room with a datagram in it and nothing to be sent.
    pub fn new(input: &'a mut [u8], head: &'a mut [u8]) -> Room<'a> {
        Room { input, head, head_len: 0, tail: 0..0, verdict: Verdict::Drop(DropReason::Panic) }
    }

    /// What is to be sent: the octets written anew, and the part of the datagram behind them.
    pub fn output(&self) -> [&[u8]; 2] {
        [self.head.get(..self.head_len).unwrap_or_default(), self.input.get(self.tail.clone()).unwrap_or_default()]
    }
}
