//! STUN Binding on the SIP port: how a client behind NAT learns the address we see, and keeps it (RFC 5626 4.4.2, 8).
//!
//! The first octet tells STUN from SIP: 0 or 1 there, a letter here. Only a Binding Request of RFC 8489 without anything
//! that must be understood is answered; a server that exists to answer keep-alives has no use for more.
//!
//! The answer is 12 octets longer than the shortest request (24 over IPv6): the one place where we send more than we were
//! sent, because the answer consists of the address.

use crate::dataplane::text::Text;
use std::net::{IpAddr, SocketAddr};

const HEADER: usize = 20;
const MAGIC: [u8; 4] = 0x2112_A442_u32.to_be_bytes();
const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
const BINDING_SUCCESS: [u8; 2] = [0x01, 0x01];
const XOR_MAPPED_ADDRESS: [u8; 2] = [0x00, 0x20];
const FINGERPRINT: u16 = 0x8028;

/// Whether a datagram that begins with `first` is meant to be STUN (RFC 5626 8).
//= RFC 5626 section 8
//# the first octet of a STUN Binding method has a value of 0 or 1, while
//# the first octet of a SIP message is never a 0 or 1.
#[inline(always)]
pub const fn looks_like_stun(first: u8) -> bool {
    first < 2
}

/// Writes the answer to `request`; `None` if it is no Binding Request.
pub fn answer(request: &[u8], source: SocketAddr, out: &mut Text<'_>) -> Option<()> {
    let (header, attributes) = request.split_at_checked(HEADER)?;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[..2] != BINDING_REQUEST || header[4..8] != MAGIC || length != attributes.len() {
        return None;
    }
    let wants_fingerprint = read_attributes(attributes)?;
    let transaction = &header[4..HEADER];

    let ip = source.ip().to_canonical();
    let address_len: u16 = if ip.is_ipv4() { 8 } else { 20 };
    let body_len = 4 + address_len + if wants_fingerprint { 8 } else { 0 };
    let start = out.len();
    out.put(&BINDING_SUCCESS).put(&body_len.to_be_bytes()).put(transaction);
    out.put(&XOR_MAPPED_ADDRESS).put(&address_len.to_be_bytes());
    let port = source.port() ^ u16::from_be_bytes([MAGIC[0], MAGIC[1]]);
    out.put(&[0, if ip.is_ipv4() { 1 } else { 2 }]).put(&port.to_be_bytes());
    // The address is XORed with magic cookie and transaction id, so that no router in between mistakes it for one.
    match ip {
        IpAddr::V4(address) => put_xored(out, &address.octets(), transaction),
        IpAddr::V6(address) => put_xored(out, &address.octets(), transaction),
    }
    if wants_fingerprint {
        // RFC 8489 14.7: over everything before the attribute, XORed with "STUN".
        let crc = crc32(out.written_since(start)) ^ 0x5354_554e;
        out.put(&FINGERPRINT.to_be_bytes()).put(&[0, 4]).put(&crc.to_be_bytes());
    }
    Some(())
}

fn put_xored(out: &mut Text<'_>, octets: &[u8], with: &[u8]) {
    for (octet, mask) in octets.iter().zip(with) {
        out.put(&[octet ^ mask]);
    }
}

/// Whether there is a FINGERPRINT; `None` if the attributes do not fill their room, or if one must be understood and is
/// not (RFC 8489 6.3.1: types below 0x8000).
fn read_attributes(mut attributes: &[u8]) -> Option<bool> {
    let mut fingerprint = false;
    while !attributes.is_empty() {
        let (&[t0, t1, l0, l1], rest) = attributes.split_first_chunk()?;
        let kind = u16::from_be_bytes([t0, t1]);
        if kind < 0x8000 {
            return None;
        }
        fingerprint |= kind == FINGERPRINT;
        let padded = usize::from(u16::from_be_bytes([l0, l1])).next_multiple_of(4);
        attributes = rest.get(padded..)?;
    }
    Some(fingerprint)
}

/// The CRC-32 of ITU V.42.
fn crc32(octets: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0u32; 256];
        let mut i = 0;
        while i < 256 {
            let mut crc = i as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 != 0 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    !octets.iter().fold(!0, |crc, &octet| crc >> 8 ^ TABLE[((crc ^ u32::from(octet)) & 0xff) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(request: &[u8], source: &str) -> Option<Vec<u8>> {
        let mut room = [0; 128];
        let mut out = Text::new(&mut room);
        answer(request, source.parse().unwrap(), &mut out)?;
        out.finish().map(<[u8]>::to_vec)
    }

    fn request(attributes: &[u8]) -> Vec<u8> {
        let mut request = vec![0, 1, 0, attributes.len() as u8];
        request.extend_from_slice(&MAGIC);
        request.extend_from_slice(b"\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae");
        request.extend_from_slice(attributes);
        request
    }

    /// The addresses and their encodings are those of the sample responses in RFC 5769 2.2 and 2.3.
    #[test]
    fn a_binding_request_learns_its_address() {
        let v4 = answered(&request(b""), "192.0.2.1:32853").unwrap();
        assert_eq!(&v4[..4], [1, 1, 0, 12]);
        assert_eq!(&v4[20..], b"\x00\x20\x00\x08\x00\x01\xa1\x47\xe1\x12\xa6\x43");
        assert_eq!(answered(&request(b""), "[::ffff:192.0.2.1]:32853").unwrap(), v4);
        let unknown = answered(&request(b"\x80\x00\x00\x01x\0\0\0"), "192.0.2.1:32853");
        assert_eq!(unknown.unwrap(), v4, "what need not be understood changes nothing");
        let v6 = answered(&request(b""), "[2001:db8:1234:5678:11:2233:4455:6677]:32853").unwrap();
        assert_eq!(
            &v6[20..],
            b"\x00\x20\x00\x14\x00\x02\xa1\x47\x01\x13\xa9\xfa\xa5\xd3\xf1\x79\xbc\x25\xf4\xb5\xbe\xd2\xb9\xd9"
        );
    }

    #[test]
    fn a_fingerprint_is_answered_with_one() {
        let answer = answered(&request(b"\x80\x28\x00\x04\x01\x02\x03\x04"), "192.0.2.1:32853").unwrap();
        assert_eq!((answer.len(), &answer[..4], &answer[32..36]), (40, &[1, 1, 0, 20][..], &[0x80, 0x28, 0, 4][..]));
        let crc = crc32(&answer[..32]) ^ 0x5354_554e;
        assert_eq!(&answer[36..], crc.to_be_bytes());
    }

    #[test]
    fn crc_is_the_one_of_the_check_value() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    /// Two that answered answers would never end.
    #[test]
    fn neither_an_answer_nor_an_indication_is_answered() {
        for kind in [[0x01, 0x01], [0x01, 0x11], [0x00, 0x11], [0x00, 0x03]] {
            let mut other = request(b"");
            other[..2].copy_from_slice(&kind);
            assert!(answered(&other, "192.0.2.1:1").is_none(), "{kind:?}");
        }
    }

    #[test]
    fn anything_else_is_not_answered() {
        let mut wrong_length = request(b"");
        wrong_length[3] = 4;
        let mut no_cookie = request(b"");
        no_cookie[4] = 0;
        for bad in [
            &b""[..],
            b"\0\x01",
            &wrong_length,
            &no_cookie,
            &request(b"\x00\x06\x00\x00"),
            &request(b"\x80\x22\x00\x08\0\0\0\0"),
            &request(b"\x80\x22\x00\x01x\0"),
        ] {
            assert!(answered(bad, "192.0.2.1:1").is_none(), "{bad:?}");
        }
    }
}
