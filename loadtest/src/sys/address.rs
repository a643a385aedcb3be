//! A socket address in the form in which the kernel reads and writes it, so that none is converted per datagram.
//!
//! It may also say on which of our connections that peer is: who answers to where a request came from then answers on the
//! connection it came on, and need not know that there is one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Octets of the larger of the two forms, `struct sockaddr_in6`.
pub const ADDRESS_MAX: usize = size_of::<libc::sockaddr_in6>();

/// `struct sockaddr_in` or `struct sockaddr_in6`, and how long it is.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address {
    /// Family (host order), port (network order), then what the family has. Octets beyond `len` are zero. The number of a
    /// connection lies where the kernel has nothing of an address: in `sin_zero`, or in `sin6_flowinfo`.
    octets: [u8; ADDRESS_MAX],
    /// 0 (no address), 16 or 28.
    len: u32,
}

impl Address {
    /// No address at all: what a slot holds before a datagram fills it.
    pub const NONE: Address = Address { octets: [0; ADDRESS_MAX], len: 0 };

    /// What the kernel wrote into `octets`, whose first `len` count.
    pub(super) fn from_kernel(octets: &[u8; ADDRESS_MAX], len: u32) -> Address {
        let len = match u16::from_ne_bytes([octets[0], octets[1]]) {
            _ if (len as usize) < 2 => 0,
            family if i32::from(family) == libc::AF_INET => 16,
            family if i32::from(family) == libc::AF_INET6 => 28,
            _ => 0,
        };
        let mut address = Address { octets: [0; ADDRESS_MAX], len };
        address.octets[..len as usize].copy_from_slice(&octets[..len as usize]);
        // What the kernel has no use for, or what a sender labelled his flow with.
        match len {
            16 => address.octets[8..16].fill(0),
            _ => address.octets[4..8].fill(0),
        }
        address
    }

    /// The octets the kernel reads.
    pub(super) fn octets(&self) -> &[u8] {
        &self.octets[..self.len as usize]
    }

    /// The peer at this address, on our connection number `stream`. 0: on none.
    #[must_use]
    pub fn on_stream(mut self, stream: u32) -> Address {
        let at = self.stream_at();
        self.octets[at..at + 4].copy_from_slice(&stream.to_ne_bytes());
        self
    }

    /// Which of our connections this peer is on; 0: none.
    #[inline]
    pub fn stream(&self) -> u32 {
        let at = self.stream_at();
        u32::from_ne_bytes(std::array::from_fn(|index| self.octets[at + index]))
    }

    /// Where in `octets` the number of a connection is.
    #[inline]
    fn stream_at(&self) -> usize {
        if self.len == 28 { 4 } else { 8 }
    }

    /// Whether there is no address here.
    pub fn is_none(&self) -> bool {
        self.len == 0
    }

    /// The port, 0 where there is no address.
    #[inline]
    pub fn port(&self) -> u16 {
        u16::from_be_bytes([self.octets[2], self.octets[3]])
    }

    /// A number that two different addresses hardly ever share: for those who only want to know whether it is another one.
    #[inline]
    pub fn digest(&self) -> u64 {
        // Port and IPv4 address are the second to eighth octet, and are all there is to an IPv4 address.
        let head = |at: usize| u64::from_ne_bytes(std::array::from_fn(|index| self.octets[at + index]));
        match self.len {
            28 => head(0) ^ crate::rng::mix(head(8)).rotate_left(1) ^ crate::rng::mix(!head(16)),
            _ => head(0),
        }
    }

    /// As the standard library has it; `0.0.0.0:0` where there is no address.
    pub fn to_std(&self) -> SocketAddr {
        let at = |index: usize| self.octets[index];
        match self.len {
            28 => {
                let mut ip = [0; 16];
                ip.copy_from_slice(&self.octets[8..24]);
                let scope = u32::from_ne_bytes([at(24), at(25), at(26), at(27)]);
                SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from(ip), self.port(), 0, scope))
            }
            _ => SocketAddr::new(IpAddr::V4(Ipv4Addr::new(at(4), at(5), at(6), at(7))), self.port()),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        let mut octets = [0; ADDRESS_MAX];
        octets[2..4].copy_from_slice(&address.port().to_be_bytes());
        let (family, len) = match address {
            SocketAddr::V4(address) => {
                octets[4..8].copy_from_slice(&address.ip().octets());
                (libc::AF_INET, 16)
            }
            SocketAddr::V6(address) => {
                octets[8..24].copy_from_slice(&address.ip().octets());
                octets[24..28].copy_from_slice(&address.scope_id().to_ne_bytes());
                (libc::AF_INET6, 28)
            }
        };
        octets[..2].copy_from_slice(&(family as u16).to_ne_bytes());
        Address { octets, len }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_none() { to.write_str("(no address)") } else { self.to_std().fmt(to) }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_the_way_to_the_kernel_and_back() {
        for text in ["127.0.0.1:5060", "255.255.255.255:65535", "[::1]:5061", "[fe80::1%3]:7"] {
            let address: SocketAddr = text.parse().unwrap();
            let kernel = Address::from(address);
            assert_eq!(kernel.to_std(), address);
            assert_eq!(kernel.port(), address.port());
            assert_eq!(Address::from_kernel(&kernel.octets, kernel.len), kernel);
        }
    }

    #[test]
    fn different_addresses_have_different_digests() {
        let texts = [
            "127.0.0.1:5060",
            "127.0.0.1:5061",
            "127.0.0.2:5060",
            "[::1]:5060",
            "[::1]:5061",
            "[::2]:5060",
            "[1::1]:5060",
        ];
        let digests: std::collections::HashSet<u64> =
            texts.map(|text| Address::from(text.parse::<SocketAddr>().unwrap()).digest()).into();
        assert_eq!(digests.len(), texts.len());
    }

    #[test]
    fn what_the_kernel_left_in_the_padding_does_not_make_two_addresses_differ() {
        let mut octets = Address::from("127.0.0.1:5060".parse::<SocketAddr>().unwrap()).octets;
        octets[8..16].fill(0xaa);
        assert_eq!(Address::from_kernel(&octets, 16), Address::from("127.0.0.1:5060".parse::<SocketAddr>().unwrap()));
    }

    #[test]
    fn a_peer_on_a_connection_is_still_at_its_address() {
        for text in ["127.0.0.1:5060", "[::1]:5061"] {
            let address = Address::from(text.parse::<SocketAddr>().unwrap());
            let there = address.on_stream(7 << 20);
            assert_eq!((address.stream(), there.stream(), there.to_std()), (0, 7 << 20, address.to_std()));
            assert_ne!(there, address);
            assert_eq!(there.on_stream(0), address);
        }
    }

    #[test]
    fn an_unknown_family_is_no_address() {
        let mut octets = [0; ADDRESS_MAX];
        octets[0] = 1;
        assert!(Address::from_kernel(&octets, 28).is_none());
        assert!(Address::from_kernel(&octets, 0).is_none());
    }
}
