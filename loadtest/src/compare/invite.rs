//! The request of the driver: an INVITE of 900 octets or somewhat more with SDP, prebuilt, in which only digits change.

use crate::endpoint::Transport;
use crate::rng::{mix, unmix};
use crate::sip::message::{Message, Name};
use crate::sip::text::{from_hex, hex};
use crate::sip::value::{are_params_as_sent, domain};
use std::net::SocketAddr;

/// Octets of the INVITE: the size of one from a usual desk phone with five codecs.
pub const INVITE_OCTETS: usize = 900;

/// What stands in the template where a number is to go.
const HOLE: &str = "################";

/// A template with three holes of 16 hexadecimal digits each.
#[derive(Clone, Debug)]
pub struct Invite {
    text: Box<[u8]>,
    branch_at: usize,
    tag_at: usize,
    call_id_at: usize,
    /// Our Via as it is sent, up to its parameters.
    via: Box<[u8]>,
    /// Differs from run to run, so that an answer of an earlier one is recognised.
    key: u64,
}

impl Invite {
    /// The INVITE of a client that speaks so from `client` to an element at `target`. It has [`INVITE_OCTETS`] and `longer` more,
    /// in the caller's name, so that the response is as much longer.
    pub fn new(transport: Transport, client: SocketAddr, target: SocketAddr, key: u64, longer: usize) -> Invite {
        let (in_via, param) = (transport.in_via(), transport.uri_param());
        let sdp = |padding: usize| {
            format!(
                "v=0\r\no=alice 2890844526 2890844526 IN IP4 {ip}\r\ns={dashes}\r\nc=IN IP4 {ip}\r\nt=0 0\r\n\
                 m=audio 49170 RTP/AVP 8 0 9 18 101\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:0 PCMU/8000\r\n\
                 a=rtpmap:9 G722/8000\r\na=rtpmap:18 G729/8000\r\na=rtpmap:101 telephone-event/8000\r\n\
                 a=fmtp:101 0-15\r\na=sendrecv\r\n",
                ip = client.ip(),
                dashes = "-".repeat(padding + 1),
            )
        };
        let head = |length: usize, name: &str| {
            format!(
                "INVITE sip:+493012345678@{target} SIP/2.0\r\nVia: SIP/2.0/{in_via} {client};branch=z9hG4bK{HOLE};rport\r\n\
                 Max-Forwards: 70\r\nFrom: \"Alice{name}\" <sip:+498912345678@{domain}>;tag={HOLE}\r\n\
                 To: <sip:+493012345678@{domain}>\r\nCall-ID: {HOLE}@{ip}\r\nCSeq: 1 INVITE\r\n\
                 Contact: <sip:+498912345678@{client}{param}>\r\nAllow: INVITE,ACK,BYE,CANCEL,OPTIONS,UPDATE\r\n\
                 User-Agent: viahop-load\r\nContent-Type: application/sdp\r\nContent-Length: {length}\r\n\r\n",
                domain = domain(target),
                ip = client.ip(),
            )
        };
        // Content-Length has three digits with and without the padding.
        let padding = INVITE_OCTETS.saturating_sub(head(300, "").len() + sdp(0).len());
        let body = sdp(padding);
        let text = head(body.len(), &"-".repeat(longer)) + &body;
        let mut holes = text.match_indices(HOLE).map(|(at, _)| at);
        let mut hole = || holes.next().expect("the template above has three holes");
        let (branch_at, tag_at, call_id_at) = (hole(), hole(), hole());
        let via = format!("SIP/2.0/{in_via} {client}");
        Invite { text: text.into_bytes().into(), branch_at, tag_at, call_id_at, via: via.into_bytes().into(), key }
    }

    /// Writes INVITE number `number` to the front of `room` and says how long it is.
    #[inline]
    pub fn write(&self, number: u32, room: &mut [u8]) -> usize {
        let room = &mut room[..self.text.len()];
        room.copy_from_slice(&self.text);
        let id = self.id(number);
        let mut put = |at: usize, digits: u64| room[at..at + 16].copy_from_slice(&hex(digits));
        put(self.branch_at, mix(id));
        put(self.tag_at, mix(!id));
        put(self.call_id_at, id);
        room.len()
    }

    /// Which of our INVITEs this message belongs to, by its Call-ID.
    #[inline]
    pub fn number_of(&self, message: &Message<'_>) -> Option<u32> {
        let id = from_hex(message.value(Name::CallId)?)?;
        let plain = unmix(id) ^ self.key;
        u32::try_from(plain).ok()
    }

    /// Whether the Vias of a response are what they have to be: our own, unchanged, and nothing else.
    pub fn is_via_stack_ours(&self, response: &Message<'_>, number: u32) -> bool {
        let mut vias = response.values(Name::Via);
        let (Some(via), None) = (vias.next(), vias.next()) else { return false };
        let mut branch = *b"z9hG4bK################";
        branch[7..].copy_from_slice(&hex(mix(self.id(number))));
        via.strip_prefix(&*self.via).is_some_and(|params| are_params_as_sent(params, &branch))
    }

    fn id(&self, number: u32) -> u64 {
        mix(u64::from(number) ^ self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sip::message::{Method, Rows, Start};

    fn invite() -> Invite {
        Invite::new(Transport::Udp, "127.0.0.1:40000".parse().unwrap(), "127.0.0.1:5060".parse().unwrap(), 99 << 32, 0)
    }

    #[test]
    fn it_has_900_octets_and_is_an_invite() {
        let mut room = [0; 2000];
        let len = invite().write(7, &mut room);
        assert_eq!(len, INVITE_OCTETS);
        let mut rows = Rows::default();
        let message = Message::read(&room[..len], &mut rows).unwrap();
        assert!(matches!(message.start, Start::Request(Method::Invite, _)));
        assert!(message.body.ends_with(b"a=sendrecv\r\n"));
        assert_eq!(invite().number_of(&message), Some(7));
    }

    #[test]
    fn ipv6_and_short_ports_have_900_octets_too_and_who_is_to_be_longer_is_so() {
        for (client, target) in
            [("[::1]:9", "[::1]:8"), ("127.0.0.1:1", "127.0.0.1:2"), ("192.168.100.100:50000", "192.168.100.101:50000")]
        {
            for transport in [Transport::Tcp, Transport::Tls, Transport::Udp] {
                for longer in [0, 63] {
                    let invite = Invite::new(transport, client.parse().unwrap(), target.parse().unwrap(), 0, longer);
                    assert_eq!(invite.write(0, &mut [0; 2000]), INVITE_OCTETS + longer, "{client}");
                }
            }
        }
    }

    #[test]
    fn one_differs_from_the_next_and_from_another_run() {
        let (mut one, mut other) = ([0; 900], [0; 900]);
        invite().write(1, &mut one);
        invite().write(2, &mut other);
        assert_ne!(one, other);
        let mut rows = Rows::default();
        let message = Message::read(&one, &mut rows).unwrap();
        let another_run = Invite { key: 98 << 32, ..invite() };
        assert_eq!(another_run.number_of(&message), None);
    }

    #[test]
    fn only_our_own_via_is_ours() {
        let invite = invite();
        let mut room = [0; 900];
        invite.write(3, &mut room);
        let own = String::from_utf8(room.to_vec()).unwrap();
        let own = own.lines().nth(1).unwrap();
        let check = |vias: &str| {
            let text = format!("SIP/2.0 200 OK\r\n{vias}\r\n\r\n");
            let mut rows = Rows::default();
            invite.is_via_stack_ours(&Message::read(text.as_bytes(), &mut rows).unwrap(), 3)
        };
        assert!(check(own));
        assert!(check(&format!("{own}=40000;received=127.0.0.1")));
        assert!(!check(&format!("{own}\r\n{own}")));
        assert!(!check(&own.replace("127.0.0.1", "127.0.0.2")));
        assert!(!check(&own.replace(";rport", "")));
        assert!(!check(&format!("{own}, SIP/2.0/UDP h")));
        assert!(!check("To: nobody"));
    }
}
