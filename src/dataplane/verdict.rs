//! The ways out: what can become of a datagram. There are no others, and each is counted.

use crate::dataplane::transport::StreamId;
use std::net::{IpAddr, SocketAddr};

/// What is to be done with one datagram. For all but [`Verdict::Drop`] the room holds what is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is sent.
    Drop(DropReason),
    /// The message is passed on.
    Forward {
        /// Where to.
        to: SocketAddr,
        /// From which of our sockets.
        from: Sender,
        /// The backend it goes to or, of a response, comes from: an index into the tables' backends.
        backend: Option<u16>,
    },
    /// An answer of our own.
    Reply {
        /// Where to.
        to: SocketAddr,
        /// What it says.
        answer: Answer,
    },
}

/// Which of a shard's sockets sends, or which connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// A connection to the destination, which is opened if there is none.
    Connect {
        /// The listener that a request speaks for which a backend sends out through us; `None`: it goes to a backend.
        listener: Option<u8>,
    },
    /// The socket of listener `index`, from local address `local` where the listener is bound to a wildcard address.
    Listener {
        /// Index of the listener.
        index: u8,
        /// The address the request came to, so that the response leaves from it (RFC 3581 4).
        local: Option<IpAddr>,
    },
    /// The shard's own socket towards backends, of the destination's address family.
    Egress,
    /// A connection that somebody opened, and that is there or not.
    Stream {
        /// Which.
        id: StreamId,
        /// The listener that accepted it; `None`: it is ours to a backend.
        listener: Option<u8>,
    },
}

impl Sender {
    /// Whether messages sent there follow one another in a stream.
    #[inline(always)]
    pub const fn is_stream(self) -> bool {
        matches!(self, Sender::Connect { .. } | Sender::Stream { .. })
    }

    /// Whether it is the way from outside to a backend.
    #[inline(always)]
    pub const fn is_inward(self) -> bool {
        matches!(self, Sender::Egress | Sender::Connect { listener: None })
    }
}

/// What an answer of our own is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A line end on a stream, for two (RFC 5626 5.4).
    Pong,
    /// A SIP response of this status code.
    Status(u16),
    /// A STUN Binding Success Response (RFC 5626 8).
    Stun,
}

impl Answer {
    /// The status codes we answer with, and how each answer is labelled in metrics: a fixed set.
    pub const LABELS: [&'static str; 17] = [
        "200", "400", "403", "404", "414", "416", "420", "430", "481", "482", "483", "501", "503", "505", "513",
        "pong", "stun",
    ];

    /// Index of the answer's label in [`Answer::LABELS`].
    pub fn index(self) -> usize {
        match self {
            Answer::Status(code) => Answer::LABELS.iter().position(|label| label.parse() == Ok(code)).unwrap_or(1),
            Answer::Pong => Answer::LABELS.len() - 2,
            Answer::Stun => Answer::LABELS.len() - 1,
        }
    }
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident => $label:literal,)+) => {
        /// Why a datagram is discarded. One word in code, in the label of `viahop_messages_dropped_total` and in
        /// `docs/metrics.md`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropReason {
            /// All reasons, in the order of their discriminants.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)+];

            /// The metric label.
            pub const fn label(self) -> &'static str {
                match self {
                    $(DropReason::$variant => $label,)+
                }
            }

            /// The first sentence of the reason's description, for people.
            pub const fn describe(self) -> &'static str {
                match self {
                    $(DropReason::$variant => concat!($($doc, "\n"),+),)+
                }
            }
        }
    };
}

drop_reasons! {
    /// An ACK for an answer of our own: it has arrived, and no backend knows the request (RFC 3261 8.2.7).
    AckForOwnReply => "ack_for_own_reply",
    /// An ACK that would have to be refused: an ACK is never answered (RFC 3261 8.2.7).
    AckRefused => "ack_refused",
    /// The source is not an address one can answer to: port 0, a broadcast, multicast or unspecified address.
    BadSource => "bad_source",
    /// What a stream holds where a message should begin or end, and nobody to answer: the connection is closed.
    BadFrame => "bad_frame",
    /// The connection it was to leave by could not be opened, or was closed before the message had left.
    ConnectionFailed => "connection_failed",
    /// A datagram of no octets.
    Empty => "empty",
    /// A response whose connection is gone, and whose client cannot be reached by another (RFC 3261 18.2.2).
    FlowGone => "flow_gone",
    /// Another shard has the connection it was to leave by, and as many messages to take over as it may have.
    HandoffFull => "handoff_full",
    /// Octets that keep a NAT binding open: line ends, NULs, a single octet (RFC 5626 4.4.1).
    KeepAlive => "keep_alive",
    /// A request that must be refused and names nobody to answer: no Via, or no line ends to find it by.
    MalformedRequest => "malformed_request",
    /// A response that cannot be read (RFC 3261 18.1.2: discarded silently).
    MalformedResponse => "malformed_response",
    /// No socket of ours can reach the destination's address family.
    NoEgress => "no_egress",
    /// Not SIP, and nothing else we speak.
    NotSip => "not_sip",
    /// A bug of ours met this message: its processing panicked, and only this message is lost.
    Panic => "panic",
    /// Our answer would be larger than the request. We do not amplify.
    ReplyTooLarge => "reply_too_large",
    /// A response whose only Via was ours: an answer to a request of our own, or nobody's (RFC 3261 16.7 item 3).
    ResponseForUs => "response_for_us",
    /// A response under our Via whose token does not verify: forged, altered, or of another secret.
    ResponseForged => "response_forged",
    /// A response whose topmost Via is not ours (RFC 3261 16.11: discarded silently).
    ResponseNotOurs => "response_not_ours",
    /// The kernel's send buffer stayed full and the backlog is full too.
    SendBacklogFull => "send_backlog_full",
    /// The kernel refused to send the datagram: no route, not permitted, too long for the path.
    SendFailed => "send_failed",
    /// A request on a port that only our backends know, from somebody else.
    StrangerOnEgress => "stranger_on_egress",
    /// A datagram that begins like STUN and is no Binding Request.
    StunMalformed => "stun_malformed",
    /// With our Via, or without it, the message does not fit a datagram.
    TooLarge => "too_large",
    /// The kernel cut the datagram to the receive buffer.
    Truncated => "truncated",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_listed_in_the_order_of_their_discriminants_under_distinct_labels() {
        let mut labels = std::collections::BTreeSet::new();
        for (index, &reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, index);
            assert!(labels.insert(reason.label()));
        }
    }

    #[test]
    fn every_answer_has_a_label() {
        assert_eq!(Answer::LABELS[Answer::Status(503).index()], "503");
        assert_eq!(Answer::LABELS[Answer::Pong.index()], "pong");
        assert_eq!(Answer::LABELS[Answer::Stun.index()], "stun");
    }
}
