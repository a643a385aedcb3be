//! Writing a caller's messages. Every message is a function of its call, so a retransmission is written again, octet by
//! octet the same, instead of being kept.

use super::Config;
use super::call::Call;
use crate::rng::{mix, unmix};
use crate::scenario::Body;
use crate::seal::{Sealed, put_seal};
use crate::sip::message::Method;
use crate::sip::text::{Text, from_hex, hex};
use crate::sip::value::{are_params_as_sent, domain};
use std::net::SocketAddr;

/// What RFC 3261 8.1.1.7 puts before every branch.
const COOKIE: &[u8] = b"z9hG4bK";

/// What callers answer, for INVITE and what is answered to the callee.
pub const ALLOW: &[u8] = b"Allow: INVITE, ACK, BYE, CANCEL, INFO, MESSAGE, NOTIFY, OPTIONS, UPDATE\r\n";

/// Octets of a session description of ours, at most.
pub const SDP_MAX: usize = 512;

/// Where the version of a session description starts.
const SDP_VERSION: u64 = 2_890_844_526;

/// Bits of a call's identity that hold its place; the rest is the place's generation.
const SLOT_BITS: u32 = 24;

/// Places of one shard.
pub const SLOTS_MAX: usize = 1 << SLOT_BITS;

/// What all messages of one socket share.
#[derive(Debug)]
pub struct Stationery {
    /// `SIP/2.0/UDP ADDRESS`
    via: Vec<u8>,
    /// `@ADDRESS`, and over which transport, for Contact.
    at_local: Vec<u8>,
    /// The address without port, for Call-ID.
    host: Vec<u8>,
    /// `@TARGET`.
    at_target: Vec<u8>,
    /// The same without port, for From and To.
    at_domain: Vec<u8>,
    /// A session description, up to its version and from there up to its direction.
    sdp: [Vec<u8>; 2],
    /// Makes the identities of this run and shard differ from all others.
    key: u64,
    users: u64,
}

/// What is to be written.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub method: Method,
    pub body: Body,
    /// Value of a row Expires.
    pub expires: Option<u32>,
    /// User part of the callee, before the number.
    pub callee: &'a [u8],
    /// Transaction number and CSeq number.
    pub transaction: u8,
    pub cseq: u32,
    /// Whether the request carries the callee's tag, and goes along the dialog's route.
    pub in_dialog: bool,
    /// The To tag of a failure, which its ACK repeats; empty otherwise.
    pub failure_tag: &'a [u8],
}

impl Stationery {
    pub fn new(local: SocketAddr, config: &Config, key: u64) -> Stationery {
        let sdp = format!(
            " IN IP{version} {ip}\r\ns=-\r\nc=IN IP{version} {ip}\r\nt=0 0\r\n\
             m=audio 49170 RTP/AVP 8 0 101\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:0 PCMU/8000\r\n\
             a=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-15\r\na=",
            version = if local.is_ipv4() { 4 } else { 6 },
            ip = local.ip(),
        );
        Stationery {
            via: format!("SIP/2.0/{} {local}", config.transport.in_via()).into(),
            at_local: format!("@{local}{}", config.transport.uri_param()).into(),
            at_target: format!("@{}", config.target).into(),
            at_domain: format!("@{}", domain(config.target)).into(),
            host: domain(local).into(),
            sdp: ["v=0\r\no=alice 2890844526 ".into(), sdp.into()],
            key,
            users: config.users.max(1),
        }
    }

    /// What names a call in its Call-ID, tags and branches.
    pub fn id(&self, slot: u32, generation: u64) -> u64 {
        mix((generation << SLOT_BITS | u64::from(slot)) ^ self.key)
    }

    /// The place and the generation that such a name stands for. Of a foreign one, nonsense: the caller compares.
    pub fn place_of(&self, id: u64) -> (u32, u64) {
        let plain = unmix(id) ^ self.key;
        (plain as u32 & (SLOTS_MAX as u32 - 1), plain >> SLOT_BITS)
    }

    /// Identity and transaction number of a branch of ours.
    pub fn read_branch(branch: &[u8]) -> Option<(u64, u8)> {
        let rest = branch.strip_prefix(COOKIE)?;
        let (id, transaction) = rest.split_at_checked(16)?;
        let number = std::str::from_utf8(transaction).ok().filter(|digits| digits.len() == 2)?;
        Some((from_hex(id)?, u8::from_str_radix(number, 16).ok()?))
    }

    /// Whether this row is our Via, and nothing but our Via, with at most what RFC 3581 adds.
    pub fn is_own_via(&self, row: &[u8], id: u64, transaction: u8) -> bool {
        let mut branch = [0; COOKIE.len() + 18];
        branch[..COOKIE.len()].copy_from_slice(COOKIE);
        branch[COOKIE.len()..COOKIE.len() + 16].copy_from_slice(&hex(id));
        branch[COOKIE.len() + 16..].copy_from_slice(&hex2(transaction));
        row.strip_prefix(&self.via[..]).is_some_and(|params| are_params_as_sent(params, &branch))
    }

    /// The identity that a Call-ID of ours stands for.
    pub fn read_call_id(&self, value: &[u8]) -> Option<u64> {
        let id = from_hex(value)?;
        self.is_own_call_id(value, id).then_some(id)
    }

    pub fn is_own_call_id(&self, value: &[u8], id: u64) -> bool {
        let rest = value.strip_prefix(&hex(id)).and_then(|rest| rest.strip_prefix(b"@"));
        rest == Some(&self.host)
    }

    pub fn is_own_from(&self, value: &[u8], id: u64, number: u64) -> bool {
        let mut room = [0; 20];
        let mut digits = Text::new(&mut room);
        digits.put_number(number % self.users);
        // What `put_from` writes.
        let rest = value.strip_prefix(b"<sip:caller").and_then(|rest| rest.strip_prefix(digits.octets()));
        let rest = rest.and_then(|rest| rest.strip_prefix(&self.at_domain[..]));
        rest.and_then(|rest| rest.strip_prefix(b">;tag=")) == Some(&hex(mix(!id)))
    }

    /// The Request-URI of a request of `call`.
    pub fn uri(&self, call: &Call, request: &Request<'_>) -> String {
        let mut room = [0; 1024];
        let mut out = Text::new(&mut room);
        self.put_uri(&mut out, call, request, call.number % self.users);
        String::from_utf8_lossy(out.octets()).into_owned()
    }

    /// The user part of the caller.
    pub fn caller(&self, call: &Call) -> String {
        format!("caller{}", call.number % self.users)
    }

    /// Writes a request of `call`.
    pub fn put(&self, out: &mut Text<'_>, call: &Call, id: u64, request: &Request<'_>) {
        let user = call.number % self.users;
        self.put_start(out, call, request, user);
        out.put(b"Via: ");
        out.put(&self.via);
        out.put(b";branch=z9hG4bK");
        out.put_hex(id);
        out.put(&hex2(request.transaction));
        out.put(b";rport\r\nMax-Forwards: 70\r\n");
        if request.in_dialog {
            out.put(call.peer.route_rows());
            //= RFC 3261 section 12.2.1.1
            //# The
            //# UAC MUST then place the remote target URI into the Route header field
            //# as the last value.
            if !call.peer.strict_router().is_empty() {
                out.put(b"Route: <");
                out.put(call.peer.target());
                out.put(b">\r\n");
            }
        }
        let from = value(out, b"From: ", |out| self.put_from(out, id, call.number));
        let to = value(out, b"To: ", |out| self.put_to(out, call, request, user));
        let call_id = value(out, b"Call-ID: ", |out| {
            out.put_hex(id);
            out.put(b"@");
            out.put(&self.host);
        });
        let cseq = value(out, b"CSeq: ", |out| {
            out.put_number(u64::from(request.cseq));
            out.put(b" ");
            out.put(request.method.name().as_bytes());
        });
        let contact = has_contact(request.method).then(|| value(out, b"Contact: ", |out| self.put_contact(out, call)));
        // ACK repeats the credentials of its INVITE (RFC 3261 22.1), CANCEL has none.
        if request.method != Method::Cancel {
            out.put(&call.credentials);
        }
        out.put(b"User-Agent: viahop-load\r\n");
        if request.method == Method::Invite {
            out.put(ALLOW);
        }
        let event = (request.method == Method::Subscribe).then(|| value(out, b"Event: ", |out| out.put(b"presence")));
        let usual = (request.method == Method::Register).then_some(3600);
        let expires =
            request.expires.or(usual).map(|expires| value(out, b"Expires: ", |out| out.put_number(u64::from(expires))));
        let mut room = [0; SDP_MAX];
        let mut sdp = Text::new(&mut room);
        if request.body == Body::Sdp {
            self.put_sdp(&mut sdp, call);
        }
        let (body, content_type) = match request.body {
            Body::None => (&[][..], &[][..]),
            Body::Sdp => (sdp.octets(), &b"application/sdp"[..]),
            Body::Text => (&b"Watson, come here."[..], &b"text/plain"[..]),
        };
        let written = out.octets();
        let written_if = |range: Option<std::ops::Range<usize>>| range.map_or(&[][..], |range| &written[range]);
        let sealed = Sealed {
            start: request.method.name().as_bytes(),
            from: &written[from],
            to: &written[to],
            call_id: &written[call_id],
            cseq: &written[cseq],
            contact: written_if(contact),
            event: written_if(event),
            expires: written_if(expires),
            content_type,
            body,
            ..Sealed::default()
        };
        let seal = sealed.digest();
        put_seal(out, seal);
        out.put_body(content_type, body);
    }

    /// The caller's session description, an offer or an answer.
    pub fn put_sdp(&self, out: &mut Text<'_>, call: &Call) {
        let [head, tail] = &self.sdp;
        out.put(head);
        //= RFC 3264 section 8
        //# if the version in the origin line does not
        //# increment, the SDP MUST be identical to the SDP with that version
        //# number.
        out.put_number(SDP_VERSION + u64::from(call.turns));
        out.put(tail);
        out.put(call.direction.name().as_bytes());
        out.put(b"\r\n");
    }

    /// The value of the caller's Contact.
    pub fn put_contact(&self, out: &mut Text<'_>, call: &Call) {
        out.put(b"<sip:caller");
        out.put_number(call.number % self.users);
        out.put(&self.at_local);
        out.put(b">");
    }

    fn put_start(&self, out: &mut Text<'_>, call: &Call, request: &Request<'_>, user: u64) {
        out.put(request.method.name().as_bytes());
        out.put(b" ");
        self.put_uri(out, call, request, user);
        out.put(b" SIP/2.0\r\n");
    }

    /// The Request-URI, which is also what credentials are for.
    fn put_uri(&self, out: &mut Text<'_>, call: &Call, request: &Request<'_>, user: u64) {
        let peer = &call.peer;
        let target = if peer.strict_router().is_empty() { peer.target() } else { peer.strict_router() };
        if request.in_dialog && !target.is_empty() {
            out.put(target);
        } else {
            out.put(b"sip:");
            //= RFC 3261 section 10.2
            // The Request-URI of a REGISTER names the domain and nobody in it.
            if request.method == Method::Register {
                out.put(&self.at_target[1..]);
            } else {
                out.put(request.callee);
                out.put_number(user);
                out.put(&self.at_target);
            }
        }
    }

    fn put_from(&self, out: &mut Text<'_>, id: u64, number: u64) {
        out.put(b"<sip:caller");
        out.put_number(number % self.users);
        out.put(&self.at_domain);
        out.put(b">;tag=");
        out.put_hex(mix(!id));
    }

    fn put_to(&self, out: &mut Text<'_>, call: &Call, request: &Request<'_>, user: u64) {
        out.put(b"<sip:");
        out.put(if request.method == Method::Register { b"caller" } else { request.callee });
        out.put_number(user);
        out.put(&self.at_domain);
        out.put(b">");
        let tag = if request.in_dialog { call.peer.tag() } else { request.failure_tag };
        if !tag.is_empty() {
            out.put(b";tag=");
            out.put(tag);
        }
    }
}

//= RFC 3261 section 20.10
// Mandatory in what opens a dialog, and what a REGISTER is about. Not sent where it means nothing (Table 2).
fn has_contact(method: Method) -> bool {
    matches!(method, Method::Invite | Method::Register | Method::Subscribe | Method::Refer | Method::Update)
}

/// Writes a row and says where its value is.
fn value(out: &mut Text<'_>, name: &[u8], put: impl FnOnce(&mut Text<'_>)) -> std::ops::Range<usize> {
    out.put(name);
    let start = out.len();
    put(out);
    let end = out.len();
    out.put(b"\r\n");
    start..end
}

fn hex2(number: u8) -> [u8; 2] {
    let all = hex(u64::from(number));
    [all[14], all[15]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::{self, Verdict};
    use crate::sip::message::{Message, Name, Rows, Start};
    use crate::sip::value::{cseq, tag};

    fn stationery() -> Stationery {
        let config = Config::new("127.0.0.1:5060".parse::<SocketAddr>().unwrap());
        Stationery::new("127.0.0.1:40000".parse().unwrap(), &config, 77 << 50)
    }

    fn request(method: Method, in_dialog: bool) -> Request<'static> {
        Request {
            method,
            body: Body::Sdp,
            expires: None,
            callee: b"callee",
            transaction: 6,
            cseq: 3,
            in_dialog,
            failure_tag: b"",
        }
    }

    fn written(call: &Call, request: &Request<'_>, check: impl FnOnce(&Message<'_>)) {
        let stationery = stationery();
        let mut room = [0; 4096];
        let mut out = Text::new(&mut room);
        stationery.put(&mut out, call, stationery.id(9, 4), request);
        let len = out.finish().unwrap();
        let mut rows = Rows::default();
        check(&Message::read(&room[..len], &mut rows).unwrap());
    }

    #[test]
    fn an_invite_names_its_call_in_branch_and_call_id() {
        let call = Call { number: 12, ..Call::free() };
        written(&call, &request(Method::Invite, false), |message| {
            let stationery = stationery();
            let id = stationery.id(9, 4);
            assert_eq!(message.start, Start::Request(Method::Invite, b"sip:callee12@127.0.0.1:5060"));
            let via = message.value(Name::Via).unwrap();
            assert!(stationery.is_own_via(via, id, 6));
            let branch = crate::sip::value::param(via, b"branch").unwrap();
            assert_eq!(Stationery::read_branch(branch), Some((id, 6)));
            assert_eq!(stationery.place_of(id), (9, 4));
            assert!(stationery.is_own_call_id(message.value(Name::CallId).unwrap(), id));
            assert!(stationery.is_own_from(message.value(Name::From).unwrap(), id, 12));
            assert_eq!(cseq(message.value(Name::CSeq).unwrap()), Some((3, &b"INVITE"[..])));
            assert_eq!(tag(message.value(Name::To).unwrap()), None);
            assert_eq!(seal::check(message), Verdict::Intact);
            assert!(message.body.ends_with(b"a=sendrecv\r\n"));
        });
    }

    //= RFC 3261 section 12.2.1.1
    //# If the route set is not empty, and the first URI in the route set
    //# contains the lr parameter (see Section 19.1.1), the UAC MUST place
    //# the remote target URI into the Request-URI and MUST include a Route
    //# header field containing the route set values in order, including all
    //# parameters.
    #[test]
    fn a_request_within_a_dialog_goes_along_its_route_to_the_remote_target() {
        let mut call = Call::free();
        let routes = [&b"<sip:near;lr;x=1>"[..], b"<sip:far;lr>"];
        call.peer.learn(b"them", b"sip:bob@192.0.2.5", routes.into_iter());
        written(&call, &Request { body: Body::None, ..request(Method::Bye, true) }, |message| {
            assert_eq!(message.start, Start::Request(Method::Bye, b"sip:bob@192.0.2.5"));
            assert_eq!(message.values(Name::Route).collect::<Vec<_>>(), routes);
            assert_eq!(tag(message.value(Name::To).unwrap()), Some(&b"them"[..]));
            assert_eq!(message.value(Name::Contact), None);
            assert_eq!(seal::check(message), Verdict::Intact);
        });
    }

    //= RFC 3261 section 12.2.1.1
    //# If the route set is not empty, and its first URI does not contain the
    //# lr parameter, the UAC MUST place the first URI from the route set
    //# into the Request-URI, stripping any parameters that are not allowed
    //# in a Request-URI.
    #[test]
    fn a_strict_router_finds_itself_in_the_request_uri() {
        let mut call = Call::free();
        let routes = [&b"<sip:old.example:5070>"[..], b"<sip:far;lr>"];
        call.peer.learn(b"them", b"sip:bob@192.0.2.5", routes.into_iter());
        call.peer.retarget(b"sip:bob@192.0.2.77:5080");
        written(&call, &Request { body: Body::None, ..request(Method::Bye, true) }, |message| {
            assert_eq!(message.start, Start::Request(Method::Bye, b"sip:old.example:5070"));
            let routes: Vec<_> = message.values(Name::Route).collect();
            assert_eq!(routes, [&b"<sip:far;lr>"[..], b"<sip:bob@192.0.2.77:5080>"]);
        });
    }

    #[test]
    fn a_register_is_for_the_domain_and_about_the_caller() {
        written(&Call { number: 5, ..Call::free() }, &request(Method::Register, false), |message| {
            assert_eq!(message.start, Start::Request(Method::Register, b"sip:127.0.0.1:5060"));
            assert!(message.value(Name::To).unwrap().starts_with(b"<sip:caller5@127.0.0.1>"));
        });
    }

    //= RFC 3261 section 19.1.1
    //# Elements processing URIs SHOULD ignore any disallowed components if
    //# they are present.
    #[test]
    fn from_and_to_have_no_port_which_an_answer_might_lack() {
        let call = Call { number: 5, ..Call::free() };
        written(&call, &request(Method::Invite, false), |message| {
            assert_eq!(message.value(Name::To), Some(&b"<sip:callee5@127.0.0.1>"[..]));
            let from = message.value(Name::From).unwrap();
            assert!(from.starts_with(b"<sip:caller5@127.0.0.1>;tag="), "{}", String::from_utf8_lossy(from));
        });
        assert_eq!(domain("[2001:db8::7]:5070".parse().unwrap()), "[2001:db8::7]");
    }

    /// Every octet of a request in turn is altered. What stays unnoticed is what hops may change, what nobody acts on, and
    /// the Via, which is checked when it comes back.
    #[test]
    fn no_octet_that_counts_can_be_altered_unnoticed() {
        let stationery = stationery();
        for method in [Method::Invite, Method::Bye, Method::Register, Method::Subscribe] {
            let mut room = [0; 4096];
            let mut out = Text::new(&mut room);
            stationery.put(&mut out, &Call::free(), stationery.id(9, 4), &request(method, false));
            let len = out.finish().unwrap();
            let mut rows = Rows::default();
            for at in 0..len {
                room[at] ^= 1;
                let noticed = match Message::read(&room[..len], &mut rows) {
                    Err(_) => true,
                    Ok(message) => seal::check(&message) != Verdict::Intact,
                };
                room[at] ^= 1;
                let before = String::from_utf8_lossy(&room[..at]).into_owned();
                let line = before.rsplit("\r\n").next().unwrap_or_default();
                let row = String::from_utf8_lossy(&room[at - line.len()..len]).into_owned();
                let row = row.lines().next().unwrap_or_default();
                let may_change = [method.name(), "Via", "Max-Forwards", "User-Agent", "Allow"];
                let unsealed = may_change.iter().any(|name| row.starts_with(name));
                assert!(noticed || unsealed, "octet {at}, {} of {row:?}", line.len());
            }
        }
    }

    #[test]
    fn only_our_own_via_is_ours() {
        let stationery = stationery();
        let id = stationery.id(1, 1);
        let own = format!("SIP/2.0/UDP 127.0.0.1:40000;branch=z9hG4bK{id:016x}06;rport");
        let is_own = |via: &str| stationery.is_own_via(via.as_bytes(), id, 6);
        assert!(is_own(&own));
        assert!(is_own(&format!("{own}=40000;received=127.0.0.1")));
        assert!(!is_own(&format!("{own}, SIP/2.0/UDP h")));
        assert!(!is_own(&own.replace("40000", "40001")));
        assert!(!is_own(&own.replace(";rport", "")));
        assert!(!is_own(&format!("{own}s")));
        for branch in [
            "z9hG4bK",
            "z9hG4bK0123456789abcdef",
            "z9hG4bK0123456789abcdef0g",
            "0123456789abcdef00",
            "z9hG4bK0123456789abcdef000",
        ] {
            assert_eq!(Stationery::read_branch(branch.as_bytes()), None, "{branch}");
        }
    }
}
