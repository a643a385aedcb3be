//! What a backend remembers of a call.
//!
//! ```text
//!            180 sent                     200, 486, 487 sent                 ACK
//!  INVITE ─► Ringing ──(answer time, CANCEL)─► Answered ───────────────────► Up ──► BYE
//!                                              │  ▲ again after T1, 2 T1 …    └──► Over (486, 487), for T4
//!                                              └──┘ until Timer H
//!
//!                   200 and NOTIFY sent       200                  SUBSCRIBE
//!  SUBSCRIBE ─────► Notifying ──────────────► Up ────────────────► Notifying, and so on until one with Expires 0
//!                   │  ▲ again, Timer E
//!                   └──┘ until Timer F
//! ```

use crate::sip::answer::Echoed;
use crate::sys::address::Address;
use crate::sys::batch::Order;

/// Where a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A final response has been sent and no ACK has come.
    Answered,
    /// The place is free.
    Free,
    /// The ACK of a failure has come; the INVITE's late copies are still told apart from a new call.
    Over,
    /// A NOTIFY has been sent and not been answered.
    Notifying,
    /// A provisional response has been sent; [`Call::due_ns`] is when the answer follows.
    Ringing,
    /// The dialog is confirmed.
    Up,
}

/// One call.
#[derive(Debug)]
pub struct Call {
    pub state: State,
    /// Digest of Call-ID, From tag and backend: what finds this call.
    pub key: u64,
    /// Digest of the Call-ID alone: what the record of owners goes by.
    pub digest: u64,
    /// The place of its backend in the shard.
    pub backend: usize,
    /// CSeq number of the INVITE that is going on or was the last.
    pub cseq: u32,
    /// Status of the final response, once there is one.
    pub code: u16,
    /// Digest of the address its last request came from: an element with a port for each of its cores shows here which of
    /// them had it.
    pub source: u64,
    /// Where responses to the INVITE go.
    pub to: Address,
    /// Its messages among those that are about to leave.
    pub order: Order,
    /// What responses to the INVITE copy from it; of a subscription, the NOTIFY as it was sent. Kept with its room when the
    /// place is used again, so that a steady load allocates nothing.
    pub rows: Vec<u8>,
    /// Whether the NOTIFY that is going on is the last of its subscription.
    pub last: bool,
    /// Where in `rows` the values are.
    pub echoed: Echoed,
    /// The gap before the next copy of the final response.
    pub interval_ns: u64,
    /// When there is something to do: answer, send again.
    pub due_ns: u64,
    /// When to give up.
    pub give_up_ns: u64,
}

impl Call {
    pub fn free() -> Call {
        Call {
            state: State::Free,
            key: 0,
            digest: 0,
            backend: 0,
            cseq: 0,
            code: 0,
            source: 0,
            to: Address::NONE,
            order: Order::default(),
            rows: Vec::new(),
            last: false,
            echoed: Echoed::default(),
            interval_ns: 0,
            due_ns: 0,
            give_up_ns: 0,
        }
    }
}
