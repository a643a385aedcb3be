//! Our Via on a request, and what a server owes the Via below it.

use super::edit::Edits;
use crate::dataplane::keys::Keys;
use crate::dataplane::route::reply_path::SentBy;
use crate::dataplane::scan::{Scan, Span, find, rows};
use crate::dataplane::sip::header::HeaderKind;
use crate::dataplane::sip::start_line::Method;
use crate::dataplane::sip::uri;
use crate::dataplane::sip::via::{self, Via};
use crate::dataplane::text::Text;
use crate::dataplane::token::{self, Flow};
use crate::dataplane::transport::Transport;
use crate::dataplane::validate::Request;
use core::hash::Hasher;
use std::net::{IpAddr, SocketAddr};

/// The digest in our branch: equal for all messages of a transaction, which are retransmissions, CANCEL, and the ACK of
/// a failure; different for any two transactions.
#[inline(always)]
pub fn transaction(keys: &Keys, message: &[u8], request: &Request) -> u64 {
    let via = &request.via;
    let call_id = request.call_id.of(message);
    match via.is_unique.then(|| via.branch.of(message)) {
        //= RFC 3261 section 16.11
        //# for a stateless proxy, the branch parameter MUST be computed as
        //# a combinatoric function of message parameters which are
        //# invariant on retransmission.
        Some(branch) => digest(keys, branch, via.sent_by.of(message), call_id, request.cseq),
        // 16.11, for a client of RFC 2543: the topmost Via, tags, Call-ID, CSeq number and Request-URI. The To tag stays
        // out: the ACK of a failure has one that its INVITE had not.
        None => {
            let (tag, uri) = (request.from.tag.of(message), request.uri.whole.of(message));
            keys.branch([via.whole.of(message), tag, uri, call_id], request.cseq)
        }
    }
}

/// The digest of a transaction whose branch is unique to its client. Two clients can choose equal branches (SIPp makes
/// them of process id and call number), so sent-by, Call-ID and CSeq number are mixed in: all of them are the same in
/// CANCEL and ACK.
//= RFC 3261 section 16.6
//# The request method MUST NOT be included in the calculation of the
//# branch parameter. In particular, CANCEL and ACK requests (for non-2xx
//# responses) MUST have the same branch value as the corresponding
//# request they cancel or acknowledge.
#[inline(always)]
pub fn digest(keys: &Keys, branch: &[u8], sent_by: &[u8], call_id: &[u8], cseq: u32) -> u64 {
    keys.branch([branch, sent_by, call_id], cseq)
}

/// How every Via of ours begins that goes out in a datagram.
pub const START: &str = "Via: SIP/2.0/UDP ";

/// How every Via of ours begins that goes out by `transport`.
pub const fn start(transport: Transport) -> &'static str {
    match transport {
        Transport::Udp => START,
        Transport::Tcp => "Via: SIP/2.0/TCP ",
        Transport::Tls => "Via: SIP/2.0/TLS ",
        Transport::Ws => "Via: SIP/2.0/WS ",
        Transport::Wss => "Via: SIP/2.0/WSS ",
    }
}

/// Writes our Via row (RFC 3261 16.6 item 8).
//= RFC 3261 section 16.6
//# The proxy MUST insert a Via header field value into the copy before
//# the existing Via header field values.
#[inline(always)]
pub fn write(out: &mut Text<'_>, keys: &Keys, message: &[u8], request: &Request, ours: &Ours<'_>, flow: &Flow) {
    ours.write_start(out);
    out.put(b";branch=");
    token::write_branch(out, ours.transaction);
    out.put(b";vh=");
    // Only an INVITE is answered with 100, so only an INVITE's Via may have to be rebuilt.
    let may_lose_via = request.method == Method::Invite;
    let Via { sent_by, branch, is_unique, .. } = request.via;
    let rebuild = may_lose_via && is_unique && !request.via.has_blanks;
    let rebuild = rebuild.then(|| (sent_by.of(message), branch.of(message)));
    let rebuild =
        rebuild.filter(|_| find(message, branch.start as usize, branch.end as usize, NO_TOKEN) == branch.end as usize);
    token::write_via_token(out, keys, flow, ours.transaction, rebuild);
    if let Some(mark) = &ours.mark {
        out.put(MARK).put(mark);
    }
    out.put(b"\r\n");
}

/// What clients write into branches though it is no `token`, as base64 and addresses have it; in our parameter it would make our own Via
/// malformed. Rarer octets do so where that costs nobody else: to servers on streams such a request does not go (`dataplane::shared`).
const NO_TOKEN: [u8; 4] = *b"=/:@";

/// What our Via says of us.
#[derive(Clone, Copy, Debug)]
pub struct Ours<'a> {
    /// Who we are to the next hop; the egress socket's port is beside it.
    pub sent_by: SentBy<'a>,
    /// How the row begins, unless `sent_by` is the start of one.
    pub start: &'static str,
    /// Port of the egress socket.
    pub egress_port: u16,
    /// The digest for the branch.
    pub transaction: u64,
    /// What tells a loop from a spiral, where the request comes from outside: see [`Mark`].
    pub mark: Option<Mark>,
}

/// A hash of what we decided by, in hexadecimal: Request-URI and Route as they came, the listener, and who we are. A
/// request that comes back with our Via and all of that unchanged would be sent on as before, without end; one that comes
/// back with anything changed is a spiral and goes on (RFC 3261 16.3 item 4, RFC 5393 4.2).
pub type Mark = [u8; 8];

/// What stands before it in our Via.
pub const MARK: &[u8; 4] = b";vl=";

/// The mark of a request that came to `listener` and goes to a backend that knows us as `start` says.
#[inline(always)]
pub fn mark(keys: &Keys, message: &[u8], scan: &Scan, request: &Request, listener: u8, start: &str) -> Mark {
    let mut hasher = keys.passing();
    hasher.write(start.as_bytes());
    hasher.write(request.uri.whole.of(message));
    if scan.has(HeaderKind::Route) {
        rows(message, scan, HeaderKind::Route).for_each(|row| hasher.write(row.span().of(message)));
    }
    hasher.write_u8(listener);
    token::hex::half(hasher.finish() as u32).to_be_bytes()
}

/// Whether a Via of ours further down has this mark.
#[cold]
pub fn has_mark(keys: &Keys, message: &[u8], scan: &Scan, mark: &Mark) -> bool {
    let head = message.get(..scan.body as usize).unwrap_or_default();
    if memchr::memmem::find(head, MARK).is_none() {
        return false;
    }
    rows(message, scan, HeaderKind::Via).any(|row| {
        let mut rest = row.span();
        while let Some(via) = via::parse(message, rest) {
            let value = via.whole.of(message);
            let place = memchr::memmem::find(value, MARK).map(|place| place + MARK.len());
            let is_equal = place.is_some_and(|place| value.get(place..place + mark.len()) == Some(mark));
            if is_equal && is_ours(keys, message, &via) {
                return true;
            }
            if via.comma == 0 {
                break;
            }
            rest = Span { start: via.comma + 1, end: rest.end };
        }
        false
    })
}

/// Whether `via` is one that we, or a node with our secret, wrote.
#[cold]
pub fn is_ours(keys: &Keys, message: &[u8], via: &Via) -> bool {
    let digest = token::read_branch(via.branch.of(message));
    let token = token::read_via_token(via.token.of(message));
    token.zip(digest).is_some_and(|(token, digest)| token.verify(keys, digest).is_some())
}

impl Ours<'_> {
    /// Writes the row up to and with sent-by.
    #[inline(always)]
    fn write_start(&self, out: &mut Text<'_>) {
        match self.sent_by {
            SentBy::Egress(start) => out.put(start.as_bytes()).put_number(u32::from(self.egress_port)),
            SentBy::Connect(start, port) => out.put(start.as_bytes()).put_number(u32::from(port)),
            SentBy::Switched(host) => {
                out.put(self.start.as_bytes()).put(host.as_bytes()).put(b":").put_number(u32::from(self.egress_port))
            }
            other => {
                other.write_host_port(out.put(self.start.as_bytes()));
                out
            }
        };
    }
}

/// Seconds between keep-alives over datagrams: who is told a number takes 80 to 100 % of it (RFC 6223 5), and RFC 5626 4.4.2 has
/// 24 to 29 s.
pub const DATAGRAM_KEEP_S: u32 = 30;

/// What stands for a `keep` of the client's Via that is answered, in the place of `keep`: RFC 6223 4.4. The number goes where every
/// response to this request copies it from (RFC 3261 8.2.6.2), the first one and all others alike.
///
//= RFC 6223 section 4.4
//# it MUST add a parameter value to the "keep" parameter
//# before sending or forwarding the response.
#[cold]
pub fn answer_keep(edits: &mut Edits, via: &Via, seconds: u32) {
    let mut room = [0; 10];
    let mut number = Text::new(&mut room);
    number.put_number(seconds);
    edits.replace(via.keep, |text| {
        text.put(b";keep=").put(number.finish().unwrap_or_default());
    });
}

/// Takes the parameters of overload control out of a Via that is a neighbour's: what they say is between him and his next hop,
/// and that is we, who say nothing.
///
//= RFC 7339 section 5.6
//# This means that a SIP proxy
//# SHOULD strip the overload control parameters inserted by the client
//# before proxying the request further downstream.
//= RFC 7339 section 5.4
//# This prevents overload control parameters
//# that were accidentally or maliciously inserted into Via headers by a
//# downstream SIP server from traveling upstream.
#[cold]
pub fn cut_overload(edits: &mut Edits, message: &[u8], via: &Via) {
    via.overload_params(message).for_each(|param| edits.cut(param));
}

/// Copies `message` from `at` on into `out` without those, and with no other changes; returns where it goes on as it is.
#[cold]
pub fn copy_without_overload(edits: &mut Edits, message: &[u8], via: &Via, at: usize, out: &mut Text<'_>) -> usize {
    edits.clear();
    cut_overload(edits, message, via);
    edits.apply(message, at, out)
}

/// What the client's Via is told about where its request came from (RFC 3261 18.2.1, RFC 3581 4): `received` where sent-by
/// is a name or another address, and where `rport` asks for it; `rport` filled. What a client wrote there itself is
/// replaced. It is told in the first value of the row, never at the row's end.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// What it takes the place of.
    place: Span,
    /// The client's own `received`, if that stands elsewhere.
    elsewhere: Span,
    address: Option<IpAddr>,
    port: Option<u16>,
}

impl Received {
    /// What the Via `via` is to be told of `source`, if anything.
    #[inline(always)]
    pub fn of(message: &[u8], via: &Via, source: SocketAddr) -> Option<Received> {
        if via.rport.is_present() {
            //= RFC 3581 section 4
            //# In fact, the server MUST insert a "received" parameter
            //# containing the source IP address that the request came from, even if
            //# it is identical to the value of the "sent-by" component.
            //= RFC 3581 section 4
            //# If this Via header field value contains an "rport" parameter with no
            //# value, it MUST set the value of the parameter to the source port of
            //# the request.
            let (address, port) = (Some(source.ip()), Some(source.port()));
            return Some(Received { place: via.rport, elsewhere: via.received, address, port });
        }
        let is_source = uri::address(via.host.of(message)) == Some(source.ip().to_canonical());
        //= RFC 3261 section 18.2.1
        //# If the host portion of the "sent-by" parameter contains a domain name,
        //# or if it contains an IP address that differs from the packet source
        //# address, the server MUST add a "received" parameter to that Via header
        //# field value.
        let address = (!is_source).then_some(source.ip());
        let place = match via.received.is_present() {
            true => via.received,
            false if is_source => return None,
            false => Span { start: via.whole.end, end: via.whole.end },
        };
        Some(Received { place, elsewhere: Span::ABSENT, address, port: None })
    }

    #[inline(always)]
    fn write(&self, out: &mut Text<'_>) {
        if let Some(address) = self.address {
            out.put(b";received=").put_address(address);
        }
        if let Some(port) = self.port {
            out.put(b";rport=").put_number(u32::from(port));
        }
    }

    /// Copies `message` from `at` on into `out`, the Via told, and with the changes of `edits` that are left; returns
    /// where the message goes on as it is.
    #[inline(always)]
    pub fn apply(&self, edits: &mut Edits, message: &[u8], at: usize, out: &mut Text<'_>) -> usize {
        if edits.is_empty() && !self.elsewhere.is_present() {
            // Nearly always it is the only change, which needs no list.
            out.put(message.get(at..self.place.start as usize).unwrap_or_default());
            self.write(out);
            return self.place.end as usize;
        }
        let mut room = [0; 64];
        let mut text = Text::new(&mut room);
        self.write(&mut text);
        let text = text.finish().unwrap_or_default();
        edits.replace(self.place, |insert| {
            insert.put(text);
        });
        if self.elsewhere.is_present() {
            edits.cut(self.elsewhere);
        }
        edits.apply(message, at, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(value: &str, source: &str) -> String {
        let message = value.as_bytes();
        let via = via::parse(message, Span::new(0, message.len())).unwrap();
        let mut room = [0; 512];
        let mut out = Text::new(&mut room);
        let received = Received::of(message, &via, source.parse().unwrap());
        let tail = received.map_or(0, |received| received.apply(&mut Edits::default(), message, 0, &mut out));
        String::from_utf8(out.finish().unwrap().to_vec()).unwrap() + &value[tail..]
    }

    #[test]
    fn received_and_rport_say_where_the_request_came_from() {
        for (value, source, expected) in [
            ("SIP/2.0/UDP 192.0.2.1:5060;branch=z", "192.0.2.1:5060", "SIP/2.0/UDP 192.0.2.1:5060;branch=z"),
            ("SIP/2.0/UDP 192.0.2.1;branch=z", "192.0.2.9:5060", "SIP/2.0/UDP 192.0.2.1;branch=z;received=192.0.2.9"),
            ("SIP/2.0/UDP host;branch=z", "192.0.2.1:5060", "SIP/2.0/UDP host;branch=z;received=192.0.2.1"),
            (
                "SIP/2.0/UDP 192.0.2.1;rport;branch=z",
                "192.0.2.1:99",
                "SIP/2.0/UDP 192.0.2.1;received=192.0.2.1;rport=99;branch=z",
            ),
            (
                "SIP/2.0/UDP a;received=6.6.6.6;rport=1;branch=z",
                "192.0.2.1:99",
                "SIP/2.0/UDP a;received=192.0.2.1;rport=99;branch=z",
            ),
            ("SIP/2.0/UDP 192.0.2.1;received=6.6.6.6;branch=z", "192.0.2.1:99", "SIP/2.0/UDP 192.0.2.1;branch=z"),
            (
                "SIP/2.0/UDP a ; branch=z , SIP/2.0/TCP b",
                "192.0.2.1:99",
                "SIP/2.0/UDP a ; branch=z;received=192.0.2.1 , SIP/2.0/TCP b",
            ),
            ("SIP/2.0/UDP a;branch=\r", "192.0.2.1:99", "SIP/2.0/UDP a;branch=;received=192.0.2.1\r"),
            ("SIP/2.0/UDP a;x= \r\n ;y", "192.0.2.1:99", "SIP/2.0/UDP a;x= \r\n ;y;received=192.0.2.1"),
            ("SIP/2.0/UDP [2001:db8::1];branch=z", "[2001:db8::1]:5060", "SIP/2.0/UDP [2001:db8::1];branch=z"),
            (
                "SIP/2.0/UDP [2001:db8::1];branch=z",
                "[2001:db8::2]:5060",
                "SIP/2.0/UDP [2001:db8::1];branch=z;received=2001:db8::2",
            ),
            ("SIP/2.0/UDP [::ffff:192.0.2.2];branch=z", "192.0.2.2:5060", "SIP/2.0/UDP [::ffff:192.0.2.2];branch=z"),
        ] {
            assert_eq!(received(value, source), expected);
        }
    }
}
