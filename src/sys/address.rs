//! Socket addresses as the kernel has them.

use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A `sockaddr_storage` and how much of it is used.
#[derive(Clone, Copy)]
pub struct RawAddress {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

/// Octets of the storage: what to tell the kernel there is room for.
pub const ROOM: libc::socklen_t = size_of::<libc::sockaddr_storage>() as libc::socklen_t;

impl Default for RawAddress {
    fn default() -> RawAddress {
        // SAFETY: `sockaddr_storage` is a C struct of integers and arrays of them; zero is a value of each.
        RawAddress { storage: unsafe { MaybeUninit::zeroed().assume_init() }, len: ROOM }
    }
}

impl RawAddress {
    /// The address as the kernel wants it.
    #[inline(always)]
    pub fn set(&mut self, address: SocketAddr) {
        match address {
            SocketAddr::V4(address) => {
                let raw = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: the storage is larger than any `sockaddr` and aligned for all of them.
                unsafe { (&raw mut self.storage).cast::<libc::sockaddr_in>().write(raw) };
                self.len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            SocketAddr::V6(address) => {
                let raw = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                };
                // SAFETY: as above.
                unsafe { (&raw mut self.storage).cast::<libc::sockaddr_in6>().write(raw) };
                self.len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            }
        }
    }

    /// The address, if it is of a family we know.
    #[inline(always)]
    pub fn address(&self) -> Option<SocketAddr> {
        match i32::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says that this is what the storage holds, and it is large and aligned enough.
                let raw = unsafe { &*(&raw const self.storage).cast::<libc::sockaddr_in>() };
                let ip = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddr::new(IpAddr::V4(ip), u16::from_be(raw.sin_port)))
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let raw = unsafe { &*(&raw const self.storage).cast::<libc::sockaddr_in6>() };
                let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
                Some(SocketAddr::new(IpAddr::V6(ip), u16::from_be(raw.sin6_port)))
            }
            _ => None,
        }
    }

    /// Where the kernel reads or writes the address.
    #[inline(always)]
    pub fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        (&raw mut self.storage).cast()
    }

    /// Where the kernel reads the address.
    pub fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    /// Where the kernel writes how long the address is.
    pub fn len_mut(&mut self) -> &mut libc::socklen_t {
        &mut self.len
    }

    /// Octets used.
    #[inline(always)]
    pub fn len(&self) -> libc::socklen_t {
        self.len
    }
}

impl From<SocketAddr> for RawAddress {
    fn from(address: SocketAddr) -> RawAddress {
        let mut raw = RawAddress::default();
        raw.set(address);
        raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_went_in() {
        for text in ["192.0.2.1:5060", "0.0.0.0:0", "[2001:db8::1]:5060", "[::]:65535"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(RawAddress::from(address).address(), Some(address));
        }
        let mut nothing = RawAddress::default();
        assert_eq!(nothing.address(), None);
        assert!(!nothing.as_mut_ptr().is_null());
    }
}
