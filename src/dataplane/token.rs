//! Tokens: the state of a transaction, travelling in the message instead of in our memory.
//!
//! # In our Via
//!
//! ```text
//! Via: SIP/2.0/UDP 10.0.0.5:40001;branch=z9hG4bK<digest>;vh=<head>[~<sent-by>~<branch>][;vl=<mark>]
//!
//! digest   16 letters of hexadecimal: 64 bits over the client's branch, sent-by, Call-ID and CSeq number
//! head     hexadecimal: 1 octet    key id (low four bits), flags: 16 = IPv6, 32 = local address present, 128 = a connection
//!                       1 octet    the listener the request came to; 255: the egress socket
//!                       4 or 16    address the response goes to
//!                       2          port it goes to
//!                       0, 4 or 16 local address the request came to, if the listener is bound to a wildcard
//!                       0 or 8     the connection the request came on
//!                       8          MAC over the above and the digest
//! sent-by, branch       of the client's Via, in requests whose 100 may lose it, if the branch may stand here; `[`, `]` and `:` written `'`, `` ` `` and `!`
//! mark     8 letters: what tells a loop from a spiral, towards backends (`rewrite::via::Mark`)
//! ```
//!
//! The *branch* is a function of what stays the same when a request is retransmitted, cancelled, or acknowledged after a
//! failure, and of nothing else (RFC 3261 16.11): the backend must see the transaction as one. It knows no rotating key.
//!
//! The *head* says where the response goes and from which address, so that a response needs no table, no name
//! resolution, and no trust in what anybody wrote below our Via. Who has not seen a token cannot make one, and one that
//! was made for a transaction sends responses to that transaction's client and nowhere else: forged responses die here
//! (RFC 6026 10 says that stateless proxies are open to them otherwise).
//!
//! *sent-by* and *branch* serve one case: sofia-sip, so FreeSWITCH, copies only the topmost Via into a `100 Trying`.
//! When ours is gone no Via is left, and the caller would go on retransmitting its INVITE. A 100 is hop-by-hop, so its
//! Via may be rebuilt; the digest tells whether it is the right one.
//!
//! # In the To tag of our own answers
//!
//! `vh` and 16 letters: a MAC over Call-ID, CSeq number, From tag and the branch of the client. The same for the same request
//! every time (RFC 3261 8.2.7), and recognised in the ACK that follows, which no backend has a use for. The branch tells that
//! ACK from another's: a proxy that called somebody through us passes our answer on, tag and all, and waits for its caller's ACK.
//!
//! Letters are lower-case and any case is understood, since tokens compare without regard to case (RFC 3261 7.3.1).

use crate::dataplane::keys::Keys;
use crate::dataplane::limits::{REBUILD_BRANCH_MAX, REBUILD_SENT_BY_MAX};
use crate::dataplane::scan::find;
use crate::dataplane::sip::via;
use crate::dataplane::text::Text;
use crate::dataplane::transport::StreamId;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Where a response goes, and from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The listener the request came to; `None`: the egress socket.
    pub listener: Option<u8>,
    /// The address the response goes to.
    pub to: SocketAddr,
    /// The local address the request came to, if the listener is bound to a wildcard address.
    pub local: Option<IpAddr>,
    /// The connection the request came on.
    pub stream: Option<StreamId>,
}

/// What is needed to write a client's Via anew. `host` and `port` are its sent-by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebuild<'a> {
    /// The sent-by, as in the token: `[`, `]` and `:` replaced.
    pub sent_by: &'a [u8],
    /// The branch.
    pub branch: &'a [u8],
}

/// A token that was read and is not verified yet.
#[derive(Clone, Copy, Debug)]
pub struct ViaToken<'a> {
    flow: Flow,
    key_id: u8,
    mac: u64,
    rebuild: Option<Rebuild<'a>>,
}

/// Octets of the longest head, and of the digest that is hashed with it.
const HEAD_MAX: usize = 2 + 16 + 2 + 16 + StreamId::LEN + 8;
const EGRESS: u8 = u8::MAX;
const IPV6: u8 = 1 << 4;
const LOCAL: u8 = 1 << 5;
const STREAM: u8 = 1 << 7;

/// The head of a datagram's flow by IPv4, which practically all are, as one word: what is put together in a register need not be waited for, as a
/// struct that was written in pieces has to be before it is copied.
#[inline(always)]
fn word(flow: &Flow, key_id: u8) -> Option<u64> {
    let (IpAddr::V4(to), None, None) = (flow.to.ip(), flow.local, flow.stream) else { return None };
    let key_and_listener = u64::from(key_id) << 56 | u64::from(flow.listener.unwrap_or(EGRESS)) << 48;
    Some(key_and_listener | u64::from(to.to_bits()) << 16 | u64::from(flow.to.port()))
}

/// The flow that such a word says, and the id of its key; `None` if it is of another kind.
#[inline(always)]
fn of_word(word: u64) -> Option<(Flow, u8)> {
    let (flags, listener) = ((word >> 56) as u8, (word >> 48) as u8);
    let to = SocketAddr::from((Ipv4Addr::from_bits((word >> 16) as u32), word as u16));
    let flow = Flow { listener: (listener != EGRESS).then_some(listener), to, local: None, stream: None };
    (flags <= 0x0f).then_some((flow, flags))
}

/// The MAC over the head of `flow`, which tells its own length by its flags, and `digest`. No To tag's MAC is over such octets: they begin
/// with an octet below 64 or from 128 on.
#[inline(always)]
fn mac(keys: &Keys, id: u8, flow: &Flow, digest: u64) -> Option<u64> {
    let Some(word) = word(flow, id) else { return Head::new(flow, id).mac(keys, id, digest) };
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&word.to_be_bytes());
    octets[8..].copy_from_slice(&digest.to_be_bytes());
    keys.mac_of(id, &octets)
}

/// The octets of any other head, and room behind them for what they are hashed with.
#[derive(Clone, Copy, Debug)]
struct Head {
    octets: [u8; HEAD_MAX],
    len: u8,
}

impl Head {
    #[cold]
    fn new(flow: &Flow, key_id: u8) -> Head {
        let listener = flow.listener.unwrap_or(EGRESS);
        let port = flow.to.port();
        let mut head = Head { octets: [0; HEAD_MAX], len: 0 };
        let ipv6 = if flow.to.is_ipv6() { IPV6 } else { 0 };
        let local = if flow.local.is_some() { LOCAL } else { 0 };
        let stream = if flow.stream.is_some() { STREAM } else { 0 };
        head.push(&[key_id | ipv6 | local | stream, listener]);
        head.push_address(flow.to.ip(), ipv6 != 0);
        head.push(&port.to_be_bytes());
        if let Some(local) = flow.local {
            head.push_address(local, ipv6 != 0);
        }
        if let Some(stream) = flow.stream {
            head.push(&stream.octets());
        }
        head
    }

    #[inline(always)]
    fn push<const N: usize>(&mut self, octets: &[u8; N]) {
        let start = self.len as usize;
        self.octets[start..start + N].copy_from_slice(octets);
        self.len += N as u8;
    }

    /// Both addresses of a flow are of one family: a socket has one.
    fn push_address(&mut self, address: IpAddr, as_ipv6: bool) {
        match (address, as_ipv6) {
            (IpAddr::V4(address), false) => self.push(&address.octets()),
            (IpAddr::V4(address), true) => self.push(&address.to_ipv6_mapped().octets()),
            (IpAddr::V6(address), true) => self.push(&address.octets()),
            (IpAddr::V6(_), false) => self.push(&[0; 4]),
        }
    }

    /// See [`mac`].
    #[cold]
    fn mac(mut self, keys: &Keys, id: u8, digest: u64) -> Option<u64> {
        self.push(&digest.to_be_bytes());
        keys.mac_of(id, &self.octets[..self.len as usize])
    }

    /// Writes its letters.
    #[cold]
    fn write(&self, out: &mut Text<'_>) {
        hex::encode(out, &self.octets[..self.len as usize]);
    }
}

/// Writes the value of our Via parameter for the transaction whose branch carries `digest`. `rebuild` is the client's
/// sent-by and branch, where a 100 may lose them.
//= RFC 3581 section 4
//# a stateless proxy can encode the destination address and port of a
//# request into the Via header field value that it inserts. When the
//# response arrives, it can extract this information and use it to
//# forward the response.
#[inline(always)]
pub fn write_via_token(out: &mut Text<'_>, keys: &Keys, flow: &Flow, digest: u64, rebuild: Option<(&[u8], &[u8])>) {
    match word(flow, keys.current()) {
        Some(word) => hex::encode_number(out, word),
        None => Head::new(flow, keys.current()).write(out),
    }
    hex::encode_number(out, mac(keys, keys.current(), flow, digest).unwrap_or_default());
    let fits =
        |(sent_by, branch): &(&[u8], &[u8])| sent_by.len() <= REBUILD_SENT_BY_MAX && branch.len() <= REBUILD_BRANCH_MAX;
    if let Some((sent_by, branch)) = rebuild.filter(fits) {
        out.put(b"~").put_mapped(sent_by, to_token_octet).put(b"~").put(branch);
    }
}

/// Reads the value of our Via parameter. `None` if nothing of ours looks like this.
#[inline(always)]
pub fn read_via_token(value: &[u8]) -> Option<ViaToken<'_>> {
    // Of a datagram's flow by IPv4 the head has 32 letters, none of which is a `~` if it can be read.
    let head_len = match value.get(32) {
        Some(b'~') => 32,
        _ => find(value, 0, value.len(), [b'~']),
    };
    let (head_text, rebuild) = value.split_at(head_len);
    let (head_text, mac) = head_text.split_last_chunk::<16>()?;
    let mac = hex::decode_number(mac)?;
    let (flow, key_id) = match hex::decode_number(head_text).and_then(of_word) {
        Some(read) => read,
        None => read_head(head_text)?,
    };
    let rebuild = match rebuild {
        [] => None,
        rebuild => read_rebuild(rebuild),
    };
    Some(ViaToken { flow, key_id, mac, rebuild })
}

/// Reads any head.
#[cold]
fn read_head(text: &[u8]) -> Option<(Flow, u8)> {
    let mut octets = [0; HEAD_MAX];
    let len = hex::decode(text, &mut octets)?;
    let (&[flags, listener], rest) = octets[..len].split_first_chunk()?;
    let (to, rest) = read_address(rest, flags)?;
    let (&port, rest) = rest.split_first_chunk()?;
    let (local, rest) = if flags & LOCAL != 0 {
        let (local, rest) = read_address(rest, flags)?;
        (Some(local), rest)
    } else {
        (None, rest)
    };
    let (stream, rest) = if flags & STREAM != 0 {
        let (&stream, rest) = rest.split_first_chunk()?;
        (Some(StreamId::from_octets(stream)?), rest)
    } else {
        (None, rest)
    };
    let flow = Flow {
        listener: (listener != EGRESS).then_some(listener),
        to: SocketAddr::new(to, u16::from_be_bytes(port)),
        local,
        stream,
    };
    if !rest.is_empty() || flags & !(IPV6 | LOCAL | STREAM | 0x0f) != 0 {
        return None;
    }
    Some((flow, flags & 0x0f))
}

/// `~` sent-by `~` branch.
#[inline(always)]
fn read_rebuild(text: &[u8]) -> Option<Rebuild<'_>> {
    let end = find(text, 1, text.len(), [b'~']);
    let rebuild = Rebuild { sent_by: text.get(1..end)?, branch: text.get(end + 1..)? };
    let fits = rebuild.sent_by.len() <= REBUILD_SENT_BY_MAX && rebuild.branch.len() <= REBUILD_BRANCH_MAX;
    fits.then_some(rebuild)
}

fn read_address(octets: &[u8], flags: u8) -> Option<(IpAddr, &[u8])> {
    if flags & IPV6 != 0 {
        let (&address, rest) = octets.split_first_chunk::<16>()?;
        return Some((IpAddr::V6(Ipv6Addr::from(address)), rest));
    }
    let (&address, rest) = octets.split_first_chunk::<4>()?;
    Some((IpAddr::V4(Ipv4Addr::from(address)), rest))
}

impl<'a> ViaToken<'a> {
    /// The flow, if the token was made with one of our keys for the transaction with this digest.
    #[inline(always)]
    pub fn verify(&self, keys: &Keys, digest: u64) -> Option<Flow> {
        let expected = mac(keys, self.key_id, &self.flow, digest)?;
        // One compare of a 64-bit word: there is no early exit that could be timed.
        (expected == self.mac).then_some(self.flow)
    }

    /// What the client's Via can be rebuilt from. The MAC does not cover it: whoever uses it compares the digest of what
    /// it says with the one in our branch.
    pub fn rebuild(&self) -> Option<Rebuild<'a>> {
        self.rebuild
    }

    /// The id of the key that made it.
    pub fn key_id(&self) -> u8 {
        self.key_id
    }
}

/// Sent-by octets that are no token characters, and what stands for them. Neither side of the mapping occurs in a host.
const fn to_token_octet(octet: u8) -> u8 {
    match octet {
        b'[' => b'\'',
        b']' => b'`',
        b':' => b'!',
        other => other,
    }
}

/// The inverse of the mapping above.
pub const fn from_token_octet(octet: u8) -> u8 {
    match octet {
        b'\'' => b'[',
        b'`' => b']',
        b'!' => b':',
        other => other,
    }
}

/// Writes a branch: the cookie and the digest.
#[inline(always)]
pub fn write_branch(out: &mut Text<'_>, digest: u64) {
    out.put(via::COOKIE);
    hex::encode_number(out, digest);
}

/// The digest in a branch of ours; `None` if it cannot be one of ours.
#[inline(always)]
pub fn read_branch(branch: &[u8]) -> Option<u64> {
    let (cookie, letters) = branch.split_at_checked(via::COOKIE.len())?;
    hex::decode_number(letters).filter(|_| cookie.eq_ignore_ascii_case(via::COOKIE))
}

/// What begins a To tag of ours.
const TAG_PREFIX: &[u8] = b"vh";

/// Writes the To tag of an answer of our own.
//= RFC 3261 section 8.2.7
//# To header tags MUST be generated for responses in a stateless
//# manner - in a manner that will generate the same tag for the
//# same request consistently.
pub fn write_to_tag(out: &mut Text<'_>, keys: &Keys, call_id: &[u8], cseq: u32, from_tag: &[u8], branch: &[u8]) {
    out.put(TAG_PREFIX);
    let tag = tag_mac(keys, keys.current(), call_id, cseq, from_tag, branch).unwrap_or_default();
    hex::encode_number(out, tag);
}

/// Whether `tag` is the To tag that an answer of our own to this request has.
#[inline(always)]
pub fn is_own_to_tag(tag: &[u8], keys: &Keys, call_id: &[u8], cseq: u32, from_tag: &[u8], branch: &[u8]) -> bool {
    let Some((prefix, text)) = tag.split_at_checked(TAG_PREFIX.len()) else { return false };
    if !prefix.eq_ignore_ascii_case(TAG_PREFIX) {
        return false;
    }
    let Some(mac) = hex::decode_number(text) else { return false };
    (0..crate::dataplane::keys::KEY_IDS as u8).any(|id| tag_mac(keys, id, call_id, cseq, from_tag, branch) == Some(mac))
}

fn tag_mac(keys: &Keys, id: u8, call_id: &[u8], cseq: u32, from_tag: &[u8], branch: &[u8]) -> Option<u64> {
    keys.mac(id, [b"tag", call_id, from_tag, branch], cseq)
}

/// Hexadecimal, eight octets at a time. A quarter longer than base32 and several times faster: both are arithmetic on
/// words here, but eight octets make two words of letters, and five make one that nothing divides into evenly.
pub mod hex {
    use crate::dataplane::text::Text;

    const EACH: u64 = 0x0101_0101_0101_0101;
    /// The highest bit of each octet.
    const TOPS: u64 = 0x80 * EACH;

    /// Writes `octets`, at most 64 of them, as twice as many letters.
    #[inline(always)]
    pub fn encode(out: &mut Text<'_>, octets: &[u8]) {
        if let Ok(&word) = octets.try_into() {
            return encode_number(out, u64::from_be_bytes(word));
        }
        let mut text = [0; 128];
        let (whole, rest) = octets.as_chunks();
        for (place, &group) in text.as_chunks_mut::<16>().0.iter_mut().zip(whole) {
            *place = letters(group);
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            if let Some(place) = text[whole.len() * 16..].first_chunk_mut() {
                *place = letters(last);
            }
        }
        out.put(text.get(..octets.len() * 2).unwrap_or_default());
    }

    /// Writes the eight octets of `number`, the highest first.
    #[inline(always)]
    pub fn encode_number(out: &mut Text<'_>, number: u64) {
        out.put(&letters(number.to_be_bytes()));
    }

    #[inline(always)]
    fn letters(octets: [u8; 8]) -> [u8; 16] {
        let word = u64::from_be_bytes(octets);
        let (high, low) = (half((word >> 32) as u32), half(word as u32));
        let mut text = [0; 16];
        text[..8].copy_from_slice(&high.to_be_bytes());
        text[8..].copy_from_slice(&low.to_be_bytes());
        text
    }

    /// Four octets to eight letters: each step halves the groups of bits until there are four to an octet.
    #[inline(always)]
    pub const fn half(octets: u32) -> u64 {
        let bits = octets as u64;
        let bits = (bits << 16 | bits) & 0x0000_ffff_0000_ffff;
        let bits = (bits << 8 | bits) & 0x00ff_00ff_00ff_00ff;
        let digits = (bits << 4 | bits) & 0x0f0f_0f0f_0f0f_0f0f;
        // Ten and more are letters: adding six carries into the next bit for those.
        let is_letter = (digits + 6 * EACH) >> 4 & EACH;
        digits + EACH * b'0' as u64 + is_letter * (b'a' - b'0' - 10) as u64
    }

    /// Reads letters of either case into `octets` and returns how many octets they are. `None` for anything else, and for
    /// more than there is room for.
    #[inline(always)]
    pub fn decode(text: &[u8], octets: &mut [u8]) -> Option<usize> {
        let len = text.len() / 2;
        if !text.len().is_multiple_of(2) || len > octets.len() {
            return None;
        }
        let mut strange = 0;
        let (whole, rest) = text.as_chunks();
        let mut last = *b"00000000";
        last[..rest.len()].copy_from_slice(rest);
        for (place, &group) in octets[..len].chunks_mut(4).zip(whole.iter().chain([&last])) {
            let (four, odd) = digits(group);
            strange |= odd;
            place.copy_from_slice(&four.to_be_bytes()[..place.len()]);
        }
        (strange == 0).then_some(len)
    }

    /// Reads eight letters as a number.
    #[inline(always)]
    pub fn decode_half(text: &[u8; 8]) -> Option<u32> {
        let (number, strange) = digits(*text);
        (strange == 0).then_some(number)
    }

    /// Reads sixteen letters as a number.
    #[inline(always)]
    pub fn decode_number(text: &[u8]) -> Option<u64> {
        let (&high, rest) = text.split_first_chunk()?;
        let ((high, odd), (low, odd_too)) = (digits(high), digits(rest.try_into().ok()?));
        (odd | odd_too == 0).then_some(u64::from(high) << 32 | u64::from(low))
    }

    /// Eight letters to four octets, and a word that is not zero if one of them is no hexadecimal digit.
    #[inline(always)]
    const fn digits(letters: [u8; 8]) -> (u32, u64) {
        let word = u64::from_be_bytes(letters);
        let high = word & TOPS;
        let word = word & !TOPS;
        // A bit per octet, in its place 7, for what is in a range: adding carries into it from the range's first octet
        // on, and, for the octet behind its last, out of it again.
        let digit = (word + (0x80 - b'0' as u64) * EACH) & !(word + (0x7f - b'9' as u64) * EACH) & TOPS;
        let lower = word | (0x20 * EACH);
        let letter = (lower + (0x80 - b'a' as u64) * EACH) & !(lower + (0x7f - b'f' as u64) * EACH) & TOPS;
        let strange = high | ((digit | letter) ^ TOPS);
        // `0` to `9` are their low four bits; of letters these count from one, so nine more.
        let bits = (word & (0x0f * EACH)) + (letter >> 7) * 9;
        let bits = (bits | bits >> 4) & 0x00ff_00ff_00ff_00ff;
        let bits = (bits | bits >> 8) & 0x0000_ffff_0000_ffff;
        ((bits | bits >> 16) as u32, strange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(id: u8) -> Keys {
        Keys::new(&[1; 16], &[2; 16], &[3 + id; 16], id)
    }

    fn written(write: impl FnOnce(&mut Text<'_>)) -> Vec<u8> {
        let mut room = [0; 1024];
        let mut text = Text::new(&mut room);
        write(&mut text);
        text.finish().unwrap().to_vec()
    }

    fn flows() -> Vec<Flow> {
        let to = |text: &str| text.parse().unwrap();
        vec![
            Flow { listener: Some(0), to: to("198.51.100.7:5060"), local: None, stream: None },
            Flow { listener: None, to: to("255.255.255.255:65535"), local: None, stream: None },
            Flow {
                listener: Some(254),
                to: to("198.51.100.7:1"),
                local: Some("192.0.2.1".parse().unwrap()),
                stream: None,
            },
            Flow { listener: Some(3), to: to("[2001:db8::1]:5060"), local: None, stream: None },
            Flow {
                listener: Some(3),
                to: to("[2001:db8::1]:5060"),
                local: Some("2001:db8::2".parse().unwrap()),
                stream: None,
            },
            Flow {
                listener: Some(1),
                to: to("198.51.100.7:5060"),
                local: None,
                stream: StreamId::new(1, 2, 0x0a0b_0c0d),
            },
            Flow { listener: None, to: to("[2001:db8::1]:5060"), local: None, stream: StreamId::new(1023, 70_000, 1) },
        ]
    }

    const BRANCH: &[u8] = b"z9hG4bK-1~x";

    #[test]
    fn a_token_comes_back_as_it_was_written_for_its_transaction_and_no_other() {
        for flow in flows() {
            for sent_by in [None, Some(&b"[2001:db8::1]:5060"[..]), Some(b"host.example.net")] {
                let rebuild = sent_by.map(|sent_by| (sent_by, BRANCH));
                let value = written(|out| write_via_token(out, &keys(3), &flow, 42, rebuild));
                assert!(crate::dataplane::sip::grammar::TOKEN.has_all(&value), "{}", String::from_utf8_lossy(&value));
                let token = read_via_token(&value).unwrap();
                assert_eq!(token.verify(&keys(3), 42), Some(flow));
                assert_eq!(token.verify(&keys(3), 43), None);
                assert_eq!(token.verify(&keys(4), 42), None);
                let upper = value.to_ascii_uppercase();
                assert_eq!(read_via_token(&upper).unwrap().verify(&keys(3), 42), Some(flow));
                let rebuilt = token.rebuild().map(|parts| {
                    let sent_by: Vec<u8> = parts.sent_by.iter().map(|&octet| from_token_octet(octet)).collect();
                    (sent_by, parts.branch)
                });
                assert_eq!(rebuilt, sent_by.map(|text| (text.to_vec(), BRANCH)));
            }
        }
    }

    #[test]
    fn no_bit_of_a_token_can_be_flipped() {
        for flow in flows() {
            let value = written(|out| write_via_token(out, &keys(3), &flow, 42, None));
            for bit in 0..value.len() * 8 {
                let mut forged = value.clone();
                forged[bit / 8] ^= 1 << (bit % 8);
                let same = forged.eq_ignore_ascii_case(&value);
                let verified = read_via_token(&forged).and_then(|token| token.verify(&keys(3), 42));
                assert!(verified.is_none() || same, "bit {bit}");
            }
        }
    }

    /// A `~` in a sent-by, where none belongs, makes of it a shorter one and a branch that is too long. It costs a 100 that
    /// lost the client's Via, and no other response.
    #[test]
    fn what_rides_along_and_cannot_be_read_leaves_the_token_valid() {
        let sent_by = [&b"h~"[..], &[b'a'; 120]].concat();
        let rebuild = Some((&sent_by[..], &b"z9hG4bK-1-and-more"[..]));
        let value = written(|out| write_via_token(out, &keys(3), &flows()[0], 42, rebuild));
        let token = read_via_token(&value).unwrap();
        assert_eq!(token.verify(&keys(3), 42), Some(flows()[0]));
        assert_eq!(token.rebuild(), None);
    }

    #[test]
    fn a_sent_by_or_branch_of_more_than_128_octets_stays_at_home() {
        for (sent_by, branch, is_there) in [(128, 128, true), (129, 128, false), (128, 129, false)] {
            let [sent_by, branch] = [sent_by, branch].map(|len| vec![b'a'; len]);
            let value = written(|out| write_via_token(out, &keys(3), &flows()[0], 42, Some((&sent_by, &branch))));
            assert_eq!(value.contains(&b'~'), is_there);
            let rebuild = is_there.then_some(Rebuild { sent_by: &sent_by, branch: &branch });
            assert_eq!(read_via_token(&value).unwrap().rebuild(), rebuild);
        }
    }

    #[test]
    fn a_branch_carries_its_digest() {
        let branch = written(|out| write_branch(out, 0x0123_4567_89ab_cdef));
        assert_eq!(branch.len(), 23);
        assert_eq!(read_branch(&branch), Some(0x0123_4567_89ab_cdef));
        assert_eq!(read_branch(&branch.to_ascii_uppercase()), Some(0x0123_4567_89ab_cdef));
        for other in [
            "",
            "z9hG4bX0123456789abcdef",
            "z9hG4bK",
            "z9hG4bK-524287-1---2bd1",
            "z9hG4bK0123456789abcdeg",
            "0123456789abcdef",
        ] {
            assert_eq!(read_branch(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn what_is_no_token_is_not_read() {
        for text in [
            "",
            "a",
            "aaaaaaaa",
            "1",
            "~",
            "~~",
            "aa~b",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        ] {
            assert!(read_via_token(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn a_v4_token_is_32_letters_long() {
        let value = written(|out| write_via_token(out, &keys(0), &flows()[0], 42, None));
        assert_eq!(value.len(), 32);
    }

    #[test]
    fn hexadecimal_reads_back_what_it_writes_and_nothing_else() {
        for len in 0..50 {
            let octets: Vec<u8> = (0..len).map(|i| (i * 37 + 11) as u8).collect();
            let text = written(|out| hex::encode(out, &octets));
            let expected: String = octets.iter().map(|octet| format!("{octet:02x}")).collect();
            assert_eq!(text, expected.as_bytes());
            let mut back = [0; 64];
            assert_eq!(hex::decode(&text, &mut back), Some(len));
            assert_eq!(&back[..len], octets);
        }
        let mut room = [0; 8];
        for octet in 0..=255u8 {
            for place in 0..8 {
                let mut text = *b"00000000";
                text[place] = octet;
                assert_eq!(hex::decode(&text, &mut room).is_some(), octet.is_ascii_hexdigit(), "{octet:#x} at {place}");
                if octet.is_ascii_hexdigit() {
                    let text = core::str::from_utf8(&text).unwrap();
                    assert_eq!(u32::from_str_radix(text, 16).unwrap().to_be_bytes(), room[..4]);
                }
            }
        }
        assert_eq!(hex::decode(b"0", &mut room), None);
        assert_eq!(hex::decode(b"000000000000000000", &mut room), None);
    }

    #[test]
    fn our_to_tag_is_recognised_in_its_ack_only() {
        let tag = written(|out| write_to_tag(out, &keys(3), b"call@h", 7, b"a1", b"z9hG4bK-1"));
        assert_eq!(tag.len(), 18);
        assert!(is_own_to_tag(&tag, &keys(3), b"call@h", 7, b"a1", b"z9hG4bK-1"));
        assert!(is_own_to_tag(&tag.to_ascii_uppercase(), &keys(3), b"call@h", 7, b"a1", b"z9hG4bK-1"));
        assert!(!is_own_to_tag(&[b"vx", &tag[2..]].concat(), &keys(3), b"call@h", 7, b"a1", b"z9hG4bK-1"));
        assert!(!is_own_to_tag(&tag, &keys(3), b"call@h", 8, b"a1", b"z9hG4bK-1"));
        assert!(!is_own_to_tag(&tag, &keys(3), b"other@h", 7, b"a1", b"z9hG4bK-1"));
        assert!(!is_own_to_tag(&tag, &keys(3), b"call@h", 7, b"a2", b"z9hG4bK-1"));
        assert!(!is_own_to_tag(&tag, &keys(3), b"call@h", 7, b"a1", b"z9hG4bK-2"));
        assert!(!is_own_to_tag(&tag, &keys(4), b"call@h", 7, b"a1", b"z9hG4bK-1"));
        assert!(!is_own_to_tag(b"vhabc", &keys(3), b"call@h", 7, b"a1", b"z9hG4bK-1"));
        assert!(!is_own_to_tag(b"", &keys(3), b"call@h", 7, b"a1", b"z9hG4bK-1"));
    }

    /// Frozen: nodes of different versions read each other's tokens. Computed once by an implementation of the page
    /// above that shares no code with this one.
    #[test]
    fn golden_tokens_do_not_change() {
        let rebuild = Some((&b"198.51.100.7:5060"[..], &b"z9hG4bK-1"[..]));
        let token = written(|out| write_via_token(out, &keys(3), &flows()[0], 42, rebuild));
        assert_eq!(token, b"0300c633640713c46386a1e13d8b72c8~198.51.100.7!5060~z9hG4bK-1");
        let token = written(|out| write_via_token(out, &keys(3), &flows()[5], 42, None));
        assert_eq!(String::from_utf8_lossy(&token), "8301c633640713c4004000020a0b0c0df7d8541875fd5832");
        let tag = written(|out| write_to_tag(out, &keys(3), b"call@h", 7, b"a1", b"z9hG4bK-1"));
        assert_eq!(tag, b"vh08b4cef07b042812");
    }
}
