//! What is refused when more comes than a shard can carry, and when.
//!
//! A shard that is slower than what comes to it has a standing queue: its receive buffer stays full, what does not fit is
//! lost whatever it is, and who lost a message sends it again. Calls then take up more and end less, until hardly one is
//! carried from its INVITE to its BYE. So new requests are refused before the buffer is full, and what belongs to calls that
//! are up finds room in it.
//!
//! ```text
//! share of the buffer in use    0 ──────────── 1/2 ──────── 5/8 ─────────── 7/8 ────────── 1
//! refused, once it has stood        nothing     │  OPTIONS   │  and new       │  and
//!                                               │            │  requests      │  REGISTER
//! ```
//!
//! Never refused: responses, ACK, BYE, CANCEL, PRACK, what has a To tag, an INVITE that the call memory knows, calls for help
//! (`urn:service:sos`, RFC 5031). A queue is no overload by itself: a shard that did not run for some milliseconds has one, and
//! works it off. It has to have stood for [`OVERLOAD_STANDING_MS`]; then shares decide at each look, until it has been short for
//! [`OVERLOAD_CALM_MS`].

use crate::dataplane::limits::{OVERLOAD_CALM_MS, OVERLOAD_STANDING_MS};
use crate::dataplane::sip::start_line::Method;
use crate::dataplane::validate::{Refusal, Request};

/// What a refused request is told. Without Retry-After: that would send the whole element's calls elsewhere for the time.
//= RFC 7339 section 5.10.2
//# A SIP server that is in overload and has started to throttle incoming
//# traffic MUST reject some requests from non-participating clients with
//# a 503 (Service Unavailable) response without the Retry-After header.
pub const REFUSAL: Refusal = Refusal::new(503, "Overloaded");

/// What is refused; each includes those before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shedding {
    /// Nothing.
    #[default]
    Nothing,
    /// OPTIONS.
    Probes,
    /// All that begin something but REGISTER.
    Calls,
    /// Those, too.
    Registrations,
}

impl Shedding {
    /// For a buffer of `room` octets of which `queued` are in use.
    fn of(queued: u64, room: u64) -> Shedding {
        // A kernel counts what was received as queued for a while, up to a quarter of the room: half may be a quarter.
        match queued.saturating_mul(8) / room.max(1) {
            0..4 => Shedding::Nothing,
            4 => Shedding::Probes,
            5..7 => Shedding::Calls,
            _ => Shedding::Registrations,
        }
    }

    /// Whether `request`, which `message` is, is refused.
    #[inline(always)]
    pub fn refuses(self, message: &[u8], request: &Request) -> bool {
        self != Shedding::Nothing && self.refuses_some(message, request)
    }

    #[cold]
    fn refuses_some(self, message: &[u8], request: &Request) -> bool {
        const HELP: &[u8] = b"urn:service:sos";
        let least = match request.method {
            Method::Ack | Method::Bye | Method::Cancel | Method::Prack => return false,
            Method::Options => Shedding::Probes,
            Method::Register => Shedding::Registrations,
            _ => Shedding::Calls,
        };
        let uri = request.uri.whole.of(message);
        let is_for_help = uri.get(..HELP.len()).is_some_and(|start| start.eq_ignore_ascii_case(HELP));
        self >= least && request.to.tag.of(message).is_empty() && !is_for_help
    }
}

/// What is known of one receive buffer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pressure {
    /// Since when every look has found a long queue.
    long_since_ms: Option<u64>,
    /// When a look last found one, if it has stood: `long_since_ms <= stood_ms`.
    stood_ms: Option<u64>,
}

impl Pressure {
    /// Takes note of a look at the buffer, and says what is refused until the next.
    pub fn on_look(&mut self, now_ms: u64, queued: u64, room: u64) -> Shedding {
        let shedding = Shedding::of(queued, room);
        if shedding == Shedding::Nothing {
            self.long_since_ms = None;
            if self.stood_ms.is_some_and(|stood| now_ms.saturating_sub(stood) >= OVERLOAD_CALM_MS) {
                self.stood_ms = None;
            }
            return Shedding::Nothing;
        }
        let since = *self.long_since_ms.get_or_insert(now_ms);
        if self.stood_ms.is_some_and(|stood| now_ms.saturating_sub(stood) < OVERLOAD_CALM_MS)
            || now_ms.saturating_sub(since) >= OVERLOAD_STANDING_MS
        {
            self.stood_ms = Some(now_ms);
            return shedding;
        }
        Shedding::Nothing
    }

    /// Whether the last look found a short queue, as did all before for long enough.
    pub fn is_calm(&self) -> bool {
        self.long_since_ms.is_none() && self.stood_ms.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::scan::{Scan, scalar};
    use crate::dataplane::sip::start_line;
    use crate::dataplane::sip::uri::Scheme;
    use crate::dataplane::tables::{ForeignRoute, PathPolicy, Policy, STREAM_KEEP_S};
    use crate::dataplane::validate;

    const ROOM: u64 = 8000;

    #[test]
    fn a_queue_that_is_worked_off_is_no_overload_and_one_that_stands_is() {
        let mut pressure = Pressure::default();
        for now_ms in 0..OVERLOAD_STANDING_MS {
            assert_eq!(pressure.on_look(now_ms, ROOM, ROOM), Shedding::Nothing);
            assert!(!pressure.is_calm(), "it is to be looked at again soon");
        }
        assert_eq!(pressure.on_look(OVERLOAD_STANDING_MS, 0, ROOM), Shedding::Nothing);
        let again = OVERLOAD_STANDING_MS + 1;
        for now_ms in again..again + OVERLOAD_STANDING_MS {
            assert_eq!(pressure.on_look(now_ms, ROOM, ROOM), Shedding::Nothing);
        }
        let stood = again + OVERLOAD_STANDING_MS;
        assert_eq!(pressure.on_look(stood, ROOM, ROOM), Shedding::Registrations);
        assert!(!pressure.is_calm());
        // Nobody looks while nothing comes, and a surge an hour later has to stand anew.
        pressure.on_look(stood + 1, 0, ROOM);
        assert_eq!(pressure.on_look(stood + 3_600_000, ROOM, ROOM), Shedding::Nothing);
    }

    #[test]
    fn once_it_has_stood_shares_decide_until_it_has_been_short_for_a_while() {
        let mut pressure = Pressure::default();
        pressure.on_look(0, ROOM, ROOM);
        let stood = OVERLOAD_STANDING_MS;
        let rows = [
            (0, Shedding::Nothing),
            (3999, Shedding::Nothing),
            (4000, Shedding::Probes),
            (5000, Shedding::Calls),
            (6999, Shedding::Calls),
            (7000, Shedding::Registrations),
            (9000, Shedding::Registrations),
        ];
        for (queued, shedding) in rows {
            assert_eq!(pressure.on_look(stood, ROOM, ROOM), Shedding::Registrations);
            assert_eq!(pressure.on_look(stood, queued, ROOM), shedding, "{queued}");
        }
        assert_eq!(pressure.on_look(stood + OVERLOAD_CALM_MS - 1, 0, ROOM), Shedding::Nothing);
        assert!(!pressure.is_calm());
        assert_eq!(pressure.on_look(stood + OVERLOAD_CALM_MS, 0, ROOM), Shedding::Nothing);
        assert!(pressure.is_calm());
        assert_eq!(pressure.on_look(stood + OVERLOAD_CALM_MS, ROOM, ROOM), Shedding::Nothing);
    }

    #[test]
    fn what_belongs_to_a_call_and_calls_for_help_are_never_refused() {
        let policy = Policy {
            foreign_route: ForeignRoute::Refuse,
            record_route: true,
            path: PathPolicy::Off,
            schemes: vec![Scheme::Sip, Scheme::Urn],
            proxy_require: Vec::new(),
            stream_keep_s: STREAM_KEEP_S,
        };
        let least = |line: &str, tag: &str| {
            let method = line.split(' ').next().unwrap();
            let message = format!(
                "{line} SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKa\r\nMax-Forwards: 70\r\nFrom: <sip:a@x>;tag=a\r\n\
                 To: <sip:b@x>{tag}\r\nCall-ID: a@x\r\nCSeq: 1 {method}\r\nContact: <sip:a@x>\r\nContent-Length: 0\r\n\r\n"
            );
            let message = message.as_bytes();
            let (mut scan, mut request) = (Scan::default(), Request::default());
            scalar::scan(message, &mut scan);
            let line = start_line::parse(message, scan.start_line);
            validate::request(message, &scan, line, &policy, &mut request).unwrap();
            [Shedding::Nothing, Shedding::Probes, Shedding::Calls, Shedding::Registrations]
                .into_iter()
                .find(|shedding| shedding.refuses(message, &request))
        };
        for method in ["ACK", "BYE", "CANCEL", "PRACK"] {
            assert_eq!(least(&format!("{method} sip:b@x"), ""), None, "{method}");
        }
        for method in ["INVITE", "SUBSCRIBE", "PUBLISH", "MESSAGE", "REFER", "NOTIFY"] {
            assert_eq!(least(&format!("{method} sip:b@x"), ""), Some(Shedding::Calls), "{method}");
            assert_eq!(least(&format!("{method} sip:b@x"), ";tag=b"), None, "{method}");
        }
        assert_eq!(least("OPTIONS sip:b@x", ""), Some(Shedding::Probes));
        assert_eq!(least("REGISTER sip:x", ""), Some(Shedding::Registrations));
        assert_eq!(least("INVITE urn:service:sos", ""), None);
        assert_eq!(least("INVITE URN:service:SOS.fire", ""), None);
    }
}
