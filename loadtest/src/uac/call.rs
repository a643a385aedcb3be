//! What a caller remembers of a call.
//!
//! ```text
//!            request sent                 1xx                    final
//!  Free ───► Calling ───────────────────► Proceeding ──────────► next step: Calling or Pausing, or the end
//!              │  ▲ again, Timer A or E     │                      │
//!              └──┘ until B or F            └ CANCEL if wanted     └ Lingering after a failed INVITE, for Timer D
//! ```

use crate::sip::message::Method;
use crate::sip::value::{param, uri};
use crate::sys::address::Address;
use crate::sys::batch::Order;

/// Where a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A request has been sent and nothing has come back.
    Calling,
    /// The place is free.
    Free,
    /// All is over, but a final response that comes again still gets its ACK.
    Lingering,
    /// Between two requests.
    Pausing,
    /// A provisional response has come.
    Proceeding,
    /// A request of the callee is awaited.
    Receiving,
}

/// Which way media go, as our last session description has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Inactive,
    RecvOnly,
    SendOnly,
    SendRecv,
}

impl Direction {
    /// The answer to an offer.
    pub fn answering(offer: &[u8]) -> Direction {
        //= RFC 3264 section 6.1
        //# If a stream is offered as sendonly, the corresponding stream MUST be
        //# marked as recvonly or inactive in the answer.
        let mut lines = offer.split(|octet| *octet == b'\n').map(<[u8]>::trim_ascii_end);
        let answer = lines.find_map(|line| match line {
            b"a=inactive" => Some(Direction::Inactive),
            b"a=recvonly" => Some(Direction::SendOnly),
            b"a=sendonly" => Some(Direction::RecvOnly),
            _ => None,
        });
        answer.unwrap_or(Direction::SendRecv)
    }

    pub fn name(self) -> &'static str {
        match self {
            Direction::Inactive => "inactive",
            Direction::RecvOnly => "recvonly",
            Direction::SendOnly => "sendonly",
            Direction::SendRecv => "sendrecv",
        }
    }
}

/// How far a CANCEL is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// It has been answered.
    Answered,
    /// None is wanted, or not yet: the INVITE has had no provisional response (RFC 3261 9.1).
    No,
    /// It has been sent, and is to be sent again at this time after this gap.
    Sent { again_ns: u64, interval_ns: u64 },
    /// It is to be sent at this time.
    Wanted(u64),
}

/// One call.
#[derive(Debug)]
pub struct Call {
    pub state: State,
    pub cancel: Cancel,
    /// Whether the dialog is being ended outside of the scenario, because something failed.
    pub closing: bool,
    /// How often this place has been used: tells its calls apart.
    pub generation: u64,
    /// Which call of the run it is; decides who calls whom.
    pub number: u64,
    pub scenario: u8,
    pub step: u8,
    /// Which socket it uses.
    pub port: u16,
    /// Number of the transaction that is going on, written into the branch. The ACK of a 2xx has the next one.
    pub transaction: u8,
    /// The transaction of the last INVITE.
    pub invite: u8,
    pub cseq: u32,
    pub invite_cseq: u32,
    /// CSeq number of the request that opened the dialog. What came before it knows nothing of the dialog.
    pub opened_cseq: u32,
    /// CSeq number of the callee's last request.
    pub remote_cseq: u32,
    /// Our session description: which way media go, and how often that has changed.
    pub direction: Direction,
    pub turns: u32,
    /// Method of a request that came before its step.
    pub early: Option<Method>,
    /// When the request was due.
    pub due_ns: u64,
    /// When the first provisional response other than 100 came; 0: not yet.
    pub status_ns: u64,
    /// The gap before its next retransmission.
    pub interval_ns: u64,
    /// When there is something to do: send again, next step, give up.
    pub timer_ns: u64,
    pub give_up_ns: u64,
    /// Where requests go.
    pub next_hop: Address,
    /// Its messages among those that are about to leave.
    pub order: Order,
    pub peer: Peer,
    /// The rows with credentials, once a challenge has asked for them, with their line ends: one for servers, one for proxies.
    pub credentials: Vec<u8>,
}

/// The other side of the dialog, as its 2xx described it. The octets keep their room when the place is used again, so that
/// a steady load allocates nothing.
#[derive(Debug, Default)]
pub struct Peer {
    octets: Vec<u8>,
    /// tag_end <= target_end <= strict_end <= octets.len()
    tag_end: usize,
    target_end: usize,
    strict_end: usize,
}

impl Peer {
    /// The tag of the To; empty while there is no dialog.
    pub fn tag(&self) -> &[u8] {
        &self.octets[..self.tag_end]
    }

    /// The remote target: the URI of the Contact.
    pub fn target(&self) -> &[u8] {
        &self.octets[self.tag_end..self.target_end]
    }

    /// The nearest hop, if it is a strict router, which wants to see itself in the Request-URI. Empty otherwise.
    pub fn strict_router(&self) -> &[u8] {
        &self.octets[self.target_end..self.strict_end]
    }

    /// The route set, as rows of a request, without a strict router that is in front of it.
    pub fn route_rows(&self) -> &[u8] {
        &self.octets[self.strict_end..]
    }

    /// Whether there is a dialog.
    pub fn is_known(&self) -> bool {
        self.tag_end > 0
    }

    /// There is no dialog.
    pub fn forget(&mut self) {
        self.octets.clear();
        (self.tag_end, self.target_end, self.strict_end) = (0, 0, 0);
    }

    /// The remote target has moved.
    pub fn retarget(&mut self, target: &[u8]) {
        if target != self.target() {
            let strict = self.strict_end - self.target_end;
            self.octets.splice(self.tag_end..self.target_end, target.iter().copied());
            self.target_end = self.tag_end + target.len();
            self.strict_end = self.target_end + strict;
        }
    }

    /// There is one: `routes` are the URIs of the route set, the nearest first.
    pub fn learn<'a>(&mut self, tag: &[u8], target: &[u8], routes: impl Iterator<Item = &'a [u8]>) {
        let mut routes = routes.peekable();
        self.octets.clear();
        self.octets.extend_from_slice(tag);
        self.tag_end = self.octets.len();
        self.octets.extend_from_slice(target);
        self.target_end = self.octets.len();
        let strict = routes.next_if(|first| param(uri(first), b"lr").is_none());
        self.octets.extend_from_slice(strict.map_or(&[], uri));
        self.strict_end = self.octets.len();
        for route in routes {
            self.octets.extend_from_slice(b"Route: ");
            self.octets.extend_from_slice(route);
            self.octets.extend_from_slice(b"\r\n");
        }
    }
}

impl Call {
    pub fn free() -> Call {
        Call {
            state: State::Free,
            cancel: Cancel::No,
            closing: false,
            generation: 0,
            number: 0,
            scenario: 0,
            step: 0,
            port: 0,
            transaction: 0,
            invite: 0,
            cseq: 0,
            invite_cseq: 0,
            opened_cseq: 0,
            remote_cseq: 0,
            direction: Direction::SendRecv,
            turns: 0,
            early: None,
            due_ns: 0,
            status_ns: 0,
            interval_ns: 0,
            timer_ns: 0,
            give_up_ns: 0,
            next_hop: Address::NONE,
            order: Order::default(),
            peer: Peer::default(),
            credentials: Vec::new(),
        }
    }

    /// Forgets the call before this one, but for the room it took.
    pub fn reset(&mut self) {
        let mut peer = std::mem::take(&mut self.peer);
        peer.forget();
        let mut credentials = std::mem::take(&mut self.credentials);
        credentials.clear();
        *self = Call { generation: self.generation + 1, peer, credentials, ..Call::free() };
    }

    /// Whether a request of ours is under way.
    pub fn is_waiting(&self) -> bool {
        matches!(self.state, State::Calling | State::Proceeding)
    }

    /// Our next session description has this direction.
    pub fn turn(&mut self, direction: Direction) {
        self.turns += u32::from(direction != self.direction);
        self.direction = direction;
    }

    /// Whether the request with this CSeq number, or its ACK, belongs to the dialog.
    pub fn is_in_dialog(&self, cseq: u32) -> bool {
        self.peer.is_known() && cseq >= self.opened_cseq
    }

    /// When the timer has to fire, given what is going on.
    pub fn next_timer_ns(&self) -> u64 {
        let cancel = match self.cancel {
            Cancel::Wanted(at) => at,
            Cancel::Sent { again_ns, .. } => again_ns,
            Cancel::Answered | Cancel::No => u64::MAX,
        };
        self.timer_ns.min(self.give_up_ns).min(cancel)
    }
}
