//! The sockets of a shard: one per listener, which shares its port with the same listener of the other shards, and one
//! per address family towards backends, alone on a port of the kernel's choice.
//!
//! That port stands in every Via we send to a backend. So responses come home to the shard that forwarded the request,
//! without a privilege and without a word between shards: a port shared by all would take all responses of one backend
//! to one core. (DESIGN: the kernel spreads a shared port by the pair of addresses.)

use crate::dataplane::dispatch::EgressPorts;
use crate::dataplane::limits::PAYLOAD_MAX;
use crate::sys::socket::{Options, UdpSocket};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What to open.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Addresses to listen on.
    pub listeners: Vec<SocketAddr>,
    /// The address to send to IPv4 backends from; unspecified: the kernel's choice. `None`: there are none.
    pub egress_v4: Option<Ipv4Addr>,
    /// Likewise for IPv6.
    pub egress_v6: Option<Ipv6Addr>,
    /// Octets asked for each receive buffer.
    pub receive_buffer: usize,
    /// Octets asked for each send buffer.
    pub send_buffer: usize,
}

/// Why a socket could not be opened.
#[derive(Debug)]
pub struct OpenError {
    /// The address it was to be bound to.
    pub address: SocketAddr,
    /// What the kernel said.
    pub error: io::Error,
}

/// The sockets, opened.
#[derive(Debug)]
pub struct Sockets {
    listeners: Vec<UdpSocket>,
    egress_v4: Option<UdpSocket>,
    egress_v6: Option<UdpSocket>,
}

impl Sockets {
    /// Opens all of them.
    pub fn open(plan: &Plan) -> Result<Sockets, OpenError> {
        let listener = Options {
            shared_port: true,
            receive_buffer: plan.receive_buffer,
            send_buffer: plan.send_buffer.max(PAYLOAD_MAX),
            errors: true,
            tell_local: true,
        };
        let egress = Options { shared_port: false, tell_local: false, ..listener };
        let open = |address, options| UdpSocket::bind(address, options).map_err(|error| OpenError { address, error });
        let to_backends =
            |address: Option<IpAddr>| address.map(|address| open(SocketAddr::new(address, 0), &egress)).transpose();
        Ok(Sockets {
            listeners: plan.listeners.iter().map(|&address| open(address, &listener)).collect::<Result<_, _>>()?,
            egress_v4: to_backends(plan.egress_v4.map(IpAddr::V4))?,
            egress_v6: to_backends(plan.egress_v6.map(IpAddr::V6))?,
        })
    }

    /// All of them, in the order of their numbers.
    pub fn all(&self) -> impl Iterator<Item = &UdpSocket> {
        self.listeners.iter().chain(&self.egress_v4).chain(&self.egress_v6)
    }

    /// How many are listeners.
    pub fn listeners(&self) -> usize {
        self.listeners.len()
    }

    /// The ports towards backends.
    pub fn egress_ports(&self) -> EgressPorts {
        let port = |socket: &Option<UdpSocket>| socket.as_ref().map(|socket| socket.address().port());
        EgressPorts { v4: port(&self.egress_v4), v6: port(&self.egress_v6) }
    }
}

/// Whether a socket of anybody else is bound to a port that `listeners` want. A port may be shared by all sockets of a
/// user who ask for it, so a second viahop would quietly get half of the first one's messages: ask once without sharing.
pub fn are_free(listeners: &[SocketAddr]) -> Result<(), OpenError> {
    let alone = Options { shared_port: false, receive_buffer: 0, send_buffer: 0, errors: false, tell_local: false };
    for &address in listeners.iter().filter(|address| address.port() != 0) {
        UdpSocket::bind(address, &alone).map_err(|error| OpenError { address, error })?;
    }
    Ok(())
}
