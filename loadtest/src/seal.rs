//! The seal: a digest over what no hop may change, carried in a header field of our own. Whoever receives a sealed message
//! can tell whether it came as it was sent, octet by octet, without having the original.
//!
//! ```text
//! X-Load: 2b1f0c93d5a7e846
//! ```
//!
//! Under the seal: the method or the status code, From, To, Call-ID, CSeq, Contact, Event, Expires, Subscription-State, the
//! type and the octets of the body. Not under it: what hops do change (Via, Route, Record-Route, Max-Forwards, the
//! Request-URI), what they may add, and what nobody acts on (User-Agent, Server, Allow). The Via of a request is checked
//! when it comes back with the response, by its caller.
//!
//! A response is sealed over the same rows. Its To holds the callee's tag, and From, Call-ID and CSeq came with the request.

use crate::sip::message::{Message, Name, Start};
use crate::sip::text::{Text, from_hex};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What a message has to say about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is sealed, and what is under the seal is something else than what was sealed.
    Altered,
    /// It came as it was sent.
    Intact,
    /// It has no seal: the peer is not of our kind.
    Unsealed,
}

/// What goes under a seal, in the order in which it is digested.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sealed<'a> {
    /// The method of a request, the three digits of a response's status.
    pub start: &'a [u8],
    /// The value of From.
    pub from: &'a [u8],
    /// The value of To.
    pub to: &'a [u8],
    /// The value of Call-ID.
    pub call_id: &'a [u8],
    /// The value of CSeq.
    pub cseq: &'a [u8],
    /// The value of the first Contact, empty where there is none.
    pub contact: &'a [u8],
    /// The value of Event, empty where there is none.
    pub event: &'a [u8],
    /// The value of Expires, empty where there is none.
    pub expires: &'a [u8],
    /// The value of Subscription-State, empty where there is none.
    pub subscription_state: &'a [u8],
    /// The value of Content-Type, empty where there is none.
    pub content_type: &'a [u8],
    /// The body.
    pub body: &'a [u8],
}

impl Sealed<'_> {
    /// The seal itself.
    pub fn digest(&self) -> u64 {
        let parts = [
            self.start,
            self.from,
            self.to,
            self.call_id,
            self.cseq,
            self.contact,
            self.event,
            self.expires,
            self.subscription_state,
            self.content_type,
            self.body,
        ];
        // Each digest seeds the next, so that octets that move from one part to its neighbour change the result.
        parts.iter().fold(0, |seed, part| xxh3_64_with_seed(part, seed))
    }
}

/// Writes the row.
pub fn put_seal(out: &mut Text<'_>, digest: u64) {
    out.put(b"X-Load: ");
    out.put_hex(digest);
    out.put(b"\r\n");
}

/// Looks at the seal of a message.
pub fn check(message: &Message<'_>) -> Verdict {
    let Some(seal) = message.value(Name::XLoad) else { return Verdict::Unsealed };
    let value = |name| message.value(name).unwrap_or_default();
    let digits;
    let start = match message.start {
        Start::Request(method, _) => method.name().as_bytes(),
        Start::Response(code) => {
            digits = code_digits(code);
            &digits
        }
    };
    let sealed = Sealed {
        start,
        from: value(Name::From),
        to: value(Name::To),
        call_id: value(Name::CallId),
        cseq: value(Name::CSeq),
        contact: value(Name::Contact),
        event: value(Name::Event),
        expires: value(Name::Expires),
        subscription_state: value(Name::SubscriptionState),
        content_type: value(Name::ContentType),
        body: message.body,
    };
    // Whoever seals a message says how long its body is; a message that does not has lost that on the way.
    let has_length = message.value(Name::ContentLength).is_some();
    match has_length && seal.len() == 16 && from_hex(seal) == Some(sealed.digest()) {
        true => Verdict::Intact,
        false => Verdict::Altered,
    }
}

/// The digits of a status code, 100 to 699.
pub fn code_digits(code: u16) -> [u8; 3] {
    [100, 10, 1].map(|place| b'0' + (code / place % 10) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sip::message::Rows;

    fn sealed(change: impl Fn(String) -> String) -> Verdict {
        let parts = Sealed {
            start: b"INVITE",
            from: b"<sip:a@b>;tag=1",
            to: b"<sip:c@d>",
            call_id: b"x",
            cseq: b"1 INVITE",
            contact: b"<sip:a@h>",
            expires: b"60",
            content_type: b"application/sdp",
            body: b"v=0\r\n",
            ..Sealed::default()
        };
        let text = format!(
            "INVITE sip:c@d SIP/2.0\r\nVia: SIP/2.0/UDP h\r\nMax-Forwards: 70\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:c@d>\r\n\
             Call-ID: x\r\nCSeq: 1 INVITE\r\nContact: <sip:a@h>\r\nExpires: 60\r\nX-Load: {:016x}\r\nContent-Type: application/sdp\r\n\
             Content-Length: 5\r\n\r\nv=0\r\n",
            parts.digest()
        );
        let text = change(text);
        let mut rows = Rows::default();
        check(&Message::read(text.as_bytes(), &mut rows).unwrap())
    }

    #[test]
    fn what_a_proxy_does_leaves_the_seal_intact() {
        assert_eq!(sealed(|text| text), Verdict::Intact);
        assert_eq!(
            sealed(|text| text
                .replace("Via:", "Via: SIP/2.0/UDP p\r\nRecord-Route: <sip:p;lr>\r\nVia:")
                .replace("Forwards: 70", "Forwards: 69")
                .replace("sip:c@d SIP", "sip:c@192.0.2.7 SIP")),
            Verdict::Intact
        );
        assert_eq!(sealed(|text| text.replace("X-Load", "X-Other")), Verdict::Unsealed);
    }

    #[test]
    fn one_octet_under_the_seal_breaks_it() {
        for (from, to) in [
            ("v=0\r\n", "v=1\r\n"),
            ("v=0\r\n", "v=0\n\n"),
            ("tag=1", "tag=2"),
            ("To: <sip:c@d>", "To: <sip:c@e>"),
            ("Call-ID: x", "Call-ID: y"),
            ("1 INVITE", "2 INVITE"),
            ("<sip:a@h>", "<sip:a@i>"),
            ("application/sdp", "application/sdq"),
            ("INVITE sip", "UPDATE sip"),
            ("Expires: 60", "Expires: 61"),
            ("Expires: 60", "Event: 60"),
        ] {
            assert_eq!(sealed(|text| text.replacen(from, to, 1)), Verdict::Altered, "{from:?}");
        }
    }

    #[test]
    fn any_single_octet_of_the_body_and_the_sealed_rows_counts() {
        let body = [b'a'; 300];
        let seal = Sealed { body: &body, ..Sealed::default() }.digest();
        for at in 0..body.len() {
            let mut changed = body;
            changed[at] ^= 1;
            assert_ne!(Sealed { body: &changed, ..Sealed::default() }.digest(), seal);
        }
    }
}
