//! What we are called in a Via or Record-Route, and where responses go.

use super::{Arrival, Decision};
use crate::dataplane::rewrite::via;
use crate::dataplane::sip::via::Via;
use crate::dataplane::tables::{Backend, Tables};
use crate::dataplane::text::Text;
use crate::dataplane::token::Flow;
use crate::dataplane::transport::Transport;
use crate::dataplane::validate::Request;
use crate::dataplane::verdict::Sender;
use std::net::{IpAddr, SocketAddr};

/// The host and port that stand in our Via towards `decision`'s target.
pub fn sent_by<'a>(tables: &'a Tables, decision: &Decision) -> SentBy<'a> {
    match decision.from {
        Sender::Egress => {
            let backend = decision.backend.and_then(|index| tables.backends.get(index as usize));
            SentBy::Egress(backend.map_or(via::START, |backend: &Backend| &backend.via_start))
        }
        Sender::Listener { index, local } => name_of(tables, index, local),
        Sender::Connect { listener: Some(index) } | Sender::Stream { listener: Some(index), .. } => {
            name_of(tables, index, None)
        }
        Sender::Connect { listener: None } | Sender::Stream { listener: None, .. } => {
            let backend = decision.backend.and_then(|index| tables.backends.get(index as usize));
            match backend.map(|backend| (&*backend.via_start, backend.via_port, backend.reach.transport)) {
                // One that is reached by datagrams and gets a long request by TCP: the same sent-by, so that what belongs
                // to the transaction matches it.
                Some((_, _, Transport::Udp)) | None => {
                    SentBy::Switched(backend.map_or("", |backend| &backend.via_host))
                }
                Some((start, Some(port), _)) => SentBy::Connect(start, port),
                Some((start, None, _)) => SentBy::Egress(start),
            }
        }
    }
}

/// How our Via begins where the listener's name follows.
#[cold]
pub fn via_start(tables: &Tables, from: Sender) -> &'static str {
    match from {
        Sender::Egress | Sender::Listener { .. } => via::START,
        Sender::Connect { listener } | Sender::Stream { listener, .. } => {
            via::start(listener.map_or(Transport::Tcp, |index| tables.transport(index)))
        }
    }
}

/// What the world calls listener `index`: what is configured, or the address a message came to.
pub fn name_of(tables: &Tables, index: u8, local: Option<IpAddr>) -> SentBy<'_> {
    let listener = tables.listeners.get(index as usize);
    match listener.and_then(|listener| listener.advertised.as_deref()) {
        Some(host_port) => SentBy::Listener(host_port),
        None => {
            let (host, port) = listener.map_or((IpAddr::from([0; 4]), 5060), |one| (one.host, one.address.port()));
            SentBy::Address(SocketAddr::new(local.unwrap_or(host), port))
        }
    }
}

/// See [`sent_by`].
#[derive(Clone, Copy, Debug)]
pub enum SentBy<'a> {
    /// An address of ours.
    Address(SocketAddr),
    /// The start of a Via towards a backend over a stream, and the port that follows it.
    Connect(&'a str, u16),
    /// The start of a Via towards a backend, to be followed by the port of the shard's egress socket.
    Egress(&'a str),
    /// The host by which a backend knows us that is sent datagrams, and gets a long request over a stream: the port is that
    /// of the shard's egress socket.
    Switched(&'a str),
    /// Host and port as configured.
    Listener(&'a str),
    /// The host by which a backend knows us, and a listener's port.
    Local {
        /// In Via form.
        host: &'a str,
        /// The listener's.
        port: u16,
    },
}

impl SentBy<'_> {
    /// Writes host and port, of what is not the egress socket.
    pub fn write_host_port(&self, out: &mut Text<'_>) {
        match self {
            SentBy::Address(address) => {
                let (open, close): (&[u8], &[u8]) = if address.is_ipv4() { (b"", b":") } else { (b"[", b"]:") };
                out.put(open).put_address(address.ip()).put(close).put_number(u32::from(address.port()));
            }
            SentBy::Local { host, port } => {
                out.put(host.as_bytes()).put(b":").put_number(u32::from(*port));
            }
            SentBy::Connect(text, _) | SentBy::Egress(text) | SentBy::Listener(text) | SentBy::Switched(text) => {
                out.put(text.as_bytes());
            }
        }
    }
}

/// The flow on which the response to this request goes back (RFC 3261 18.2.2, RFC 3581 4).
#[inline(always)]
pub fn response_flow(request: &Request, arrival: &Arrival) -> Flow {
    let Arrival { from, listener, local, stream } = *arrival;
    let to = match stream {
        None => response_address(Some(&request.via), from),
        //= RFC 3261 section 18.2.2
        //# If that
        //# connection is no longer open, the server SHOULD open a
        //# connection to the IP address in the "received" parameter, if
        //# present, using the port in the "sent-by" value, or the default
        //# port for that transport, if no port is specified.
        Some(_) => SocketAddr::new(from.ip(), request.via.port),
    };
    Flow { listener, to, local, stream }
}

/// Where the response to a request from `source` goes: with `rport` to its source port, else to the port of sent-by.
/// Never to an address that the client wrote: a `maddr` would make us shoot at whoever it names (RFC 4475 3.3.10).
//= RFC 3261 section 18.2.2
//# the response MUST be sent to the address in the "received" parameter,
//# using the port indicated in the "sent-by" value, or using port 5060 if
//# none is specified explicitly.
#[inline(always)]
pub fn response_address(via: Option<&Via>, source: SocketAddr) -> SocketAddr {
    match via {
        Some(via) if !via.rport.is_present() => SocketAddr::new(source.ip(), via.port),
        _ => source,
    }
}
