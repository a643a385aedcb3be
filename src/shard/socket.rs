//! The sockets of a shard: one per listener, which shares its port with the same listener of the other shards, and one
//! per address family towards backends, alone on its port unless all shards are to share one.
//!
//! That port stands in every Via we send to a backend. So responses come home to the shard that forwarded the request,
//! without a privilege and without a word between shards: a port shared by all would take all responses of one backend
//! to one core. (DESIGN: the kernel spreads a shared port by the pair of addresses.) Where a network insists on one port,
//! `steering` brings responses home, and without it shards tell each other what has to be known (`link::Handed`).

use crate::dataplane::dispatch::EgressPorts;
use crate::dataplane::limits::PAYLOAD_MAX;
use crate::dataplane::transport::Transport;
use crate::shard::streams::websocket::Origins;
use crate::shard::streams::{Listening, StreamLimits};
use crate::sys::socket::{Options, UdpSocket};
use crate::sys::tcp;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

/// What to open.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Addresses to listen on for datagrams: the first of all listeners.
    pub listeners: Vec<SocketAddr>,
    /// Addresses to listen on for connections, and how those are spoken on: the listeners behind those.
    pub streams: Vec<StreamPlan>,
    /// What connections are allowed, in each shard.
    pub stream_limits: StreamLimits,
    /// The address to send to IPv4 backends from; unspecified: the kernel's choice. `None`: there are none.
    pub egress_v4: Option<Ipv4Addr>,
    /// Likewise for IPv6.
    pub egress_v6: Option<Ipv6Addr>,
    /// The ports to send to backends from; `None`: any.
    pub egress_ports: Option<RangeInclusive<u16>>,
    /// Of any, those that are tried first: of IPv4 and of IPv6.
    pub egress_before: [Vec<u16>; 2],
    /// Whether all shards send to backends from one port: the first of `egress_ports`, once [`Plan::settle`] has found it.
    pub egress_shared: bool,
    /// How long a shard at work lets messages gather; zero: never.
    pub linger: Duration,
    /// Octets asked for each receive buffer.
    pub receive_buffer: usize,
    /// Octets asked for each send buffer.
    pub send_buffer: usize,
}

/// A listener for connections.
#[derive(Clone, Debug)]
pub struct StreamPlan {
    /// How they are spoken on.
    pub transport: Transport,
    /// Where.
    pub address: SocketAddr,
    /// The pages that may open WebSockets to it.
    pub origins: Arc<Origins>,
}

impl Plan {
    /// The addresses of [`Plan::streams`].
    pub fn stream_addresses(&self) -> Vec<SocketAddr> {
        self.streams.iter().map(|one| one.address).collect()
    }

    /// Finds the port that all shards are to share towards backends: one that nobody else has, and the same for both
    /// address families.
    pub fn settle(&mut self) -> Result<(), OpenError> {
        if !self.egress_shared {
            return Ok(());
        }
        let families = [self.egress_v4.map(IpAddr::V4), self.egress_v6.map(IpAddr::V6)];
        let mut wanted = families.into_iter().flatten();
        let Some(first) = wanted.next() else { return Ok(()) };
        let others: Vec<IpAddr> = wanted.collect();
        let free = |port: u16| {
            // Asked without sharing: a port that another viahop of this user shares is not free.
            let socket = alone(SocketAddr::new(first, port))?;
            let port = socket.address().port();
            others.iter().try_for_each(|&address| alone(SocketAddr::new(address, port)).map(drop))?;
            Ok(port)
        };
        let port = match &self.egress_ports {
            Some(ports) => first_free(ports.clone(), free)?,
            // The kernel's choice for one family may be taken in the other.
            None => {
                let before = self.egress_before.iter().flatten().copied();
                first_free(before.chain(std::iter::repeat_n(0, TRIES)), free)?
            }
        };
        self.egress_ports = Some(port..=port);
        Ok(())
    }
}

/// How often the kernel is asked for a port that is free in both address families.
const TRIES: usize = 16;

/// What `open` makes of the first port that it can be done with. A port that somebody has is passed over.
fn first_free<T>(
    ports: impl IntoIterator<Item = u16>,
    open: impl Fn(u16) -> Result<T, OpenError>,
) -> Result<T, OpenError> {
    let mut ports = ports.into_iter();
    let mut outcome = open(ports.next().unwrap_or_default());
    while let Err(taken) = &outcome
        && taken.error.kind() == io::ErrorKind::AddrInUse
        && let Some(port) = ports.next()
    {
        outcome = open(port);
    }
    outcome
}

fn alone(address: SocketAddr) -> Result<UdpSocket, OpenError> {
    let options = Options { shared_port: false, receive_buffer: 0, send_buffer: 0, errors: false, tell_local: false };
    UdpSocket::bind(address, &options).map_err(|error| OpenError { protocol: "udp", address, error })
}

/// Why a socket could not be opened.
#[derive(Debug)]
pub struct OpenError {
    /// What it is of: `udp` or `tcp`.
    pub protocol: &'static str,
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
    streams: Vec<Listening>,
    stream_limits: StreamLimits,
}

impl Sockets {
    /// Opens all of them.
    pub fn open(plan: &Plan) -> Result<Sockets, OpenError> {
        let listener = Options {
            shared_port: true,
            receive_buffer: plan.receive_buffer,
            send_buffer: plan.send_buffer.max(PAYLOAD_MAX),
            // Everybody knows the port of a listener, so anybody can make up ICMP about a backend that it sent to; and a
            // receive that fails for what became of an answer says nothing of the queue, by which overload is seen.
            errors: false,
            tell_local: true,
        };
        let egress = Options { shared_port: plan.egress_shared, errors: true, tell_local: false, ..listener };
        let open = |address, options| {
            UdpSocket::bind(address, options).map_err(|error| OpenError { protocol: "udp", address, error })
        };
        let to_backends = |address: Option<IpAddr>, before: &[u16]| {
            let at = |address| {
                let open = |port| open(SocketAddr::new(address, port), &egress);
                match &plan.egress_ports {
                    Some(ports) => first_free(ports.clone(), open),
                    None => first_free(before.iter().copied().chain([0]), open),
                }
            };
            address.map(at).transpose()
        };
        let [before_v4, before_v6] = &plan.egress_before;
        Ok(Sockets {
            listeners: plan.listeners.iter().map(|&address| open(address, &listener)).collect::<Result<_, _>>()?,
            egress_v4: to_backends(plan.egress_v4.map(IpAddr::V4), before_v4)?,
            egress_v6: to_backends(plan.egress_v6.map(IpAddr::V6), before_v6)?,
            streams: plan
                .streams
                .iter()
                .enumerate()
                .map(|(place, wanted)| {
                    let StreamPlan { transport, address, origins } = wanted.clone();
                    let socket =
                        tcp::listen(address, true).map_err(|error| OpenError { protocol: "tcp", address, error })?;
                    let index = (plan.listeners.len() + place) as u8;
                    Ok(Listening { index, transport, origins, socket, tells_local: address.ip().is_unspecified() })
                })
                .collect::<Result<_, _>>()?,
            stream_limits: plan.stream_limits,
        })
    }

    /// All of them, in the order of their numbers.
    pub fn all(&self) -> impl Iterator<Item = &UdpSocket> {
        self.listeners.iter().chain(&self.egress_v4).chain(&self.egress_v6)
    }

    /// The addresses that connections are accepted at.
    pub fn stream_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.streams.iter().filter_map(|listening| tcp::bound(&listening.socket).ok())
    }

    /// Gives the listeners for connections away, with what those are allowed.
    pub fn take_streams(&mut self) -> (Vec<Listening>, StreamLimits) {
        (std::mem::take(&mut self.streams), self.stream_limits)
    }

    /// How many are listeners.
    pub fn listeners(&self) -> usize {
        self.listeners.len()
    }

    /// The socket of listener number `index`.
    pub fn listener(&self, index: usize) -> Option<&UdpSocket> {
        self.listeners.get(index)
    }

    /// The sockets towards backends.
    pub fn egress(&self) -> impl Iterator<Item = &UdpSocket> {
        self.egress_v4.iter().chain(&self.egress_v6)
    }

    /// The ports towards backends.
    pub fn egress_ports(&self) -> EgressPorts {
        let port = |socket: &Option<UdpSocket>| socket.as_ref().map(|socket| socket.address().port());
        EgressPorts { v4: port(&self.egress_v4), v6: port(&self.egress_v6) }
    }
}

/// Whether a socket of anybody else is bound to a port that the listeners of `plan` want. A port may be shared by all sockets of a
/// user who ask for it, so a second viahop would quietly get half of the first one's messages: ask once without sharing.
pub fn are_free(listeners: &[SocketAddr], streams: &[SocketAddr]) -> Result<(), OpenError> {
    listeners.iter().filter(|address| address.port() != 0).try_for_each(|&address| alone(address).map(drop))?;
    let free = |&address: &SocketAddr| {
        let listened = tcp::listen(address, false).map(drop);
        listened.map_err(|error| OpenError { protocol: "tcp", address, error })
    };
    streams.iter().filter(|address| address.port() != 0).try_for_each(free)
}
