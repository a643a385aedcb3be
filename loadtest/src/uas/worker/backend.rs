//! One backend of a shard: its socket, its book, and how its messages are written.

use super::Request;
use crate::clock::now_ns;
use crate::endpoint::Transport;
use crate::rng::mix;
use crate::seal::{Sealed, code_digits, put_seal};
use crate::sip::answer::{Echoed, reason};
use crate::sip::message::{Message, Method, Name};
use crate::sip::text::{Text, hex};
use crate::streams::Streams;
use crate::sys::address::Address;
use crate::sys::batch::Sender;
use crate::tally::{Kind, Tally};
use crate::uas::{Counts, Mouth, Move, Violation};
use std::collections::VecDeque;
use std::net::SocketAddr;

/// Responses one backend may hold back. What is beyond is lost, as it would be in a server that is so far behind.
const HELD_MAX: usize = 1 << 16;

pub(super) struct Backend {
    pub(super) index: usize,
    /// `None`: killed.
    pub(super) mouth: Option<Mouth>,
    pub(super) address: SocketAddr,
    pub(super) transport: Transport,
    pub(super) sender: Sender,
    pub(super) counts: Counts,
    pub(super) sent: Tally,
    pub(super) received: Tally,
    pub(super) open: u64,
    pub(super) violations: Vec<Violation>,
    pub(super) moves: Vec<Move>,
    /// Responses that leave later, and when: what [`Fault::Slow`](crate::fault::Fault::Slow) holds back.
    pub(super) held: VecDeque<(u64, Address, Box<[u8]>)>,
    pub(super) slow_ns: u64,
    /// `<sip:callee@ADDRESS>`.
    pub(super) contact: Vec<u8>,
    /// `X-Backend: INDEX` and `Server`, for every response.
    pub(super) signature: Vec<u8>,
    pub(super) sdp: Vec<u8>,
}

/// What a response carries besides what it copies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Carries {
    Challenge,
    Contact,
    Nothing,
    Sdp,
}

/// A response, but for what it copies.
pub(super) struct Response<'a> {
    pub(super) to: Address,
    /// Its place among the messages of its call.
    pub(super) level: u8,
    pub(super) kind: Kind,
    pub(super) carries: Carries,
    /// The REGISTER whose bindings it confirms, or the SUBSCRIBE it accepts: for as long as was asked.
    pub(super) grants: Option<&'a Message<'a>>,
    /// The value of WWW-Authenticate.
    pub(super) challenge: &'a str,
}

impl Backend {
    pub(super) fn new(index: usize, mouth: Mouth, slow_ns: u64) -> Backend {
        let (address, transport) = (mouth.local(), mouth.transport());
        let sdp = format!(
            "v=0\r\no=bob 2890844527 2890844527 IN IP{version} {ip}\r\ns=-\r\nc=IN IP{version} {ip}\r\nt=0 0\r\n\
             m=audio 49172 RTP/AVP 8 101\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:101 telephone-event/8000\r\na=sendrecv\r\n",
            version = if address.is_ipv4() { 4 } else { 6 },
            ip = address.ip()
        );
        Backend {
            index,
            mouth: Some(mouth),
            address,
            transport,
            sender: Sender::new(),
            counts: Counts::default(),
            sent: Tally::default(),
            received: Tally::default(),
            open: 0,
            violations: Vec::new(),
            moves: Vec::new(),
            held: VecDeque::new(),
            slow_ns,
            contact: format!("<sip:callee@{address}{}>", transport.uri_param()).into(),
            signature: format!("X-Backend: {index}\r\nServer: viahop-load\r\n").into(),
            sdp: sdp.into(),
        }
    }

    /// Makes room for one more message.
    #[inline]
    pub(super) fn make_room(&mut self, streams: &mut Streams) {
        if self.sender.is_full() {
            self.flush(streams);
        }
    }

    /// Writes a response into the room that has been made and lets it wait for the next flush. `rows` are those it copies.
    pub(super) fn send(&mut self, response: &Response<'_>, rows: &[u8], echoed: &Echoed) {
        let Response { to, level, kind, carries, grants, challenge } = *response;
        let body = if carries == Carries::Sdp { &self.sdp[..] } else { &[] };
        let content_type = if body.is_empty() { &[][..] } else { b"application/sdp" };
        let own_contact = if matches!(carries, Carries::Contact | Carries::Sdp) { &self.contact[..] } else { &[] };
        let register = grants.filter(|_| kind.method == Method::Register);
        let contact = register.and_then(|register| register.value(Name::Contact)).unwrap_or(own_contact);
        let expires = grants.map_or(&[][..], |asked| asked.value(Name::Expires).unwrap_or(b"3600"));
        let digits = code_digits(kind.code);
        let mut out = Text::new(self.sender.room());
        out.put(b"SIP/2.0 ");
        out.put(&digits);
        out.put(b" ");
        out.put(reason(kind.code).as_bytes());
        out.put(b"\r\n");
        out.put(rows);
        if !contact.is_empty() {
            out.put(b"Contact: ");
            out.put(contact);
            out.put(b"\r\n");
        }
        if !expires.is_empty() {
            out.put(b"Expires: ");
            out.put(expires);
            out.put(b"\r\n");
        }
        if !challenge.is_empty() {
            out.put(b"WWW-Authenticate: ");
            out.put(challenge.as_bytes());
            out.put(b"\r\n");
        }
        out.put(&self.signature);
        let sealed = Sealed {
            start: &digits,
            from: echoed.from.of(rows),
            to: echoed.to.of(rows),
            call_id: echoed.call_id.of(rows),
            cseq: echoed.cseq.of(rows),
            contact,
            expires,
            content_type,
            body,
            ..Sealed::default()
        };
        put_seal(&mut out, sealed.digest());
        out.put_body(content_type, body);
        match out.finish() {
            Some(len) => {
                self.sender.push_at(len, to, level);
                self.sent.note(kind);
            }
            None => self.counts.malformed += 1,
        }
    }

    /// Writes the NOTIFY that follows a SUBSCRIBE.
    pub(super) fn put_notify(
        &self,
        out: &mut Text<'_>,
        request: &Request<'_>,
        target: &[u8],
        routes: &[&[u8]],
        last: bool,
    ) {
        let message = request.message;
        let row = |name| message.value(name).unwrap_or_default();
        let mut room = [0; 2048];
        let mut from = Text::new(&mut room);
        from.put(row(Name::To));
        if !request.in_dialog {
            from.put(b";tag=");
            from.put(&to_tag(request.key));
        }
        let cseq = format!("{} NOTIFY", request.number);
        let event = message.value(Name::Event).unwrap_or(b"presence");
        let state = if last { &b"terminated;reason=timeout"[..] } else { b"active" };
        let (address, transport) = (self.address, self.transport.in_via());
        out.put(b"NOTIFY ");
        out.put(target);
        out.put(
            format!(" SIP/2.0\r\nVia: SIP/2.0/{transport} {address};branch=z9hG4bK{:016x}", request.key).as_bytes(),
        );
        out.put(format!("{:x};rport\r\nMax-Forwards: 70\r\n", request.number).as_bytes());
        let rows = routes.iter().map(|&route| (&b"Route"[..], route)).chain([
            (&b"From"[..], from.octets()),
            (b"To", row(Name::From)),
            (b"Call-ID", row(Name::CallId)),
            (b"CSeq", cseq.as_bytes()),
            (b"Contact", &self.contact),
            (b"Event", event),
            (b"Subscription-State", state),
        ]);
        for (name, value) in rows {
            out.put(name);
            out.put(b": ");
            out.put(value);
            out.put(b"\r\n");
        }
        let sealed = Sealed {
            start: b"NOTIFY",
            from: from.octets(),
            to: row(Name::From),
            call_id: row(Name::CallId),
            cseq: cseq.as_bytes(),
            contact: &self.contact,
            event,
            subscription_state: state,
            ..Sealed::default()
        };
        put_seal(out, sealed.digest());
        out.put(b"Content-Length: 0\r\n\r\n");
    }

    pub(super) fn flush(&mut self, streams: &mut Streams) {
        if self.slow_ns > 0 {
            self.hold_back();
        }
        if self.sender.is_empty() {
            return;
        }
        match &self.mouth {
            // Who cannot be reached learns it from his own timers.
            Some(Mouth::Datagrams(socket)) => drop(self.sender.flush(socket, &mut |_| ())),
            Some(Mouth::Streams(..)) => {
                for index in 0..self.sender.count() {
                    let (octets, to) = self.sender.message(index);
                    self.counts.unsent += u64::from(!streams.push(to, octets));
                }
                self.sender.clear();
            }
            None => self.sender.clear(),
        }
    }

    /// Puts what is about to leave into the queue, and what has been there long enough in its place.
    pub(super) fn hold_back(&mut self) {
        let now = now_ns();
        for index in 0..self.sender.count() {
            let (octets, to) = self.sender.message(index);
            if self.held.len() < HELD_MAX {
                self.held.push_back((now + self.slow_ns, to, octets.into()));
            }
        }
        self.sender.clear();
        while self.held.front().is_some_and(|(at, ..)| *at <= now) {
            let Some((_, to, octets)) = self.held.pop_front() else { break };
            self.sender.room()[..octets.len()].copy_from_slice(&octets);
            self.sender.push(octets.len(), to);
            if self.sender.is_full() {
                break;
            }
        }
    }
}

/// The tag of a backend's To: the same for every copy of a request, as RFC 3261 8.2.7 wants it from a stateless server.
pub(super) fn to_tag(key: u64) -> [u8; 16] {
    hex(mix(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Endpoint;

    // RFC 4566 5.7: what follows IP4 is an IPv4 address, what follows IP6 one of IPv6.
    #[test]
    fn an_answer_says_of_which_kind_its_address_is() {
        for (address, said) in [("127.0.0.1:0", "IN IP4 127.0.0.1\r\n"), ("[::1]:0", "IN IP6 ::1\r\n")] {
            let endpoint = Endpoint { transport: Transport::Udp, address: address.parse().unwrap() };
            let backend = Backend::new(0, Mouth::open(endpoint).unwrap(), 0);
            assert_eq!(String::from_utf8(backend.sdp).unwrap().matches(said).count(), 2, "{address}");
        }
    }
}
