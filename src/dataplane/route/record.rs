//! What we write into a request so that later ones come back to us: Record-Route (RFC 3261 16.6 item 4), Path (RFC 3327).
//!
//! ```text
//!            the client's listener                an inside listener, if there is one, or one of the backend's family
//!  client ──────────────────────────► viahop ──────────────────────────────────────────────► backend
//! ```
//!
//! Where one name serves both sides there is one Record-Route, else two, the side the request goes to on top (RFC 5658).
//! Names are those of listeners, never of egress sockets: they live for hours, and in them every shard is reached.

use super::reply_path::{SentBy, name_of, response_flow};
use super::route_token::{PARAM, Purpose, RouteToken};
use super::{Arrival, Decision, Popped, is_from_inside};
use crate::dataplane::scan::{Scan, rows_named};
use crate::dataplane::sip::grammar;
use crate::dataplane::sip::header::HeaderKind;
use crate::dataplane::sip::start_line::Method;
use crate::dataplane::sip::uri::Scheme;
use crate::dataplane::tables::{Backend, PathPolicy, Side, Tables};
use crate::dataplane::text::Text;
use crate::dataplane::token::Flow;
use crate::dataplane::transport::Transport;
use crate::dataplane::validate::Request;
use crate::dataplane::verdict::Sender;

/// A request that is recorded, and the decision about it.
#[derive(Clone, Copy, Debug)]
pub struct Passing<'a> {
    /// The tables in force.
    pub tables: &'a Tables,
    /// The message.
    pub message: &'a [u8],
    /// Its scan.
    pub scan: &'a Scan,
    /// What it says.
    pub request: &'a Request,
    /// Where it came in.
    pub arrival: &'a Arrival,
    /// Where it goes.
    pub decision: &'a Decision,
}

/// Whether a request may begin a dialog.
#[inline(always)]
fn may_begin(request: &Request) -> bool {
    let is_one = matches!(request.method, Method::Invite | Method::Subscribe | Method::Refer | Method::Other);
    is_one && !request.to.tag.is_present()
}

/// Writes our Record-Route or Path, if this request gets one.
#[inline(always)]
pub fn record(out: &mut Text<'_>, passing: &Passing<'_>) {
    let Passing { tables, request, decision, .. } = passing;
    match request.method {
        _ if may_begin(request) => {}
        // RFC 6665 4.3: the subscriber takes its route set from NOTIFY, so a NOTIFY of a dialog we are in gets it too.
        Method::Notify if matches!(decision.popped, Popped::Token(_)) => {}
        Method::Register if tables.policy.path != PathPolicy::Off => return path(out, passing),
        _ => return,
    }
    if tables.policy.record_route {
        record_route(out, passing);
    }
}

/// Whether keep-alives are welcome that the sender of this request would send: for a registration, and for a dialog whose
/// requests will come this way.
//= RFC 6223 section 4.4
//# A SIP entity MUST NOT indicate willingness to receive keep-alives
//# associated with a dialog, unless it has also inserted itself in the
//# dialog route set
#[cold]
pub fn welcomes_keep_alives(passing: &Passing<'_>) -> bool {
    let Passing { tables, request, .. } = passing;
    match request.method {
        Method::Register => true,
        _ => may_begin(request) && tables.policy.record_route && sides(passing).is_some(),
    }
}

/// Client and backend of a request that we stay in the path of, and the listeners at which they reach us.
fn sides<'a>(passing: &Passing<'a>) -> Option<(Flow, &'a Backend, [u8; 2])> {
    let (client, backend) = ends(passing)?;
    let listener = client.listener?;
    let inside = listener_towards_backend(passing.tables, backend, listener)?;
    Some((client, backend, [listener, inside]))
}

#[cold]
fn record_route(out: &mut Text<'_>, passing: &Passing<'_>) {
    let Some((client, backend, [listener, inside])) = sides(passing) else { return };
    let Passing { tables, message, request, decision, .. } = passing;
    let is_double = inside != listener;
    let token = RouteToken { purpose: Purpose::Dialog { backend: backend.id }, client, is_double };
    //= RFC 3261 section 16.6
    //# If the
    //# Request-URI contains a SIPS URI, or the topmost Route header
    //# field value (after the post processing of bullet 6) contains a
    //# SIPS URI, the URI placed into the Record-Route header field
    //# MUST be a SIPS URI.
    //
    // Of a side that does not speak TLS it would lead nowhere.
    let is_sips = |index| request.uri.scheme == Scheme::Sips && tables.transport(index) == Transport::Tls;
    let mut row = |(index, name): (u8, SentBy<'_>)| {
        out.put(b"Record-Route: <").put(if is_sips(index) { &b"sips:"[..] } else { b"sip:" });
        name.write_host_port(out);
        if !is_sips(index) {
            put_transport(out, tables, index);
        }
        out.put(b";lr;").put(PARAM).put(b"=");
        token.write(out, &tables.keys, request.call_id.of(message));
        out.put(b">\r\n");
    };
    let outside = (listener, name_of(tables, listener, client.local));
    if !is_double {
        return row(outside);
    }
    let inside = (inside, name_towards(tables, inside, backend));
    let (top, below) = if decision.from.is_inward() { (inside, outside) } else { (outside, inside) };
    row(top);
    row(below);
}

/// Client and backend of a request between the two. `None`: it goes from one backend to another, which reach each other
/// without us, or to somebody who is neither.
fn ends<'a>(passing: &Passing<'a>) -> Option<(Flow, &'a Backend)> {
    let Passing { tables, request, arrival, decision, .. } = passing;
    let sender = match is_from_inside(tables, arrival) {
        true => tables.speaker(arrival.from, arrival.listener.map_or(Transport::Udp, |index| tables.transport(index))),
        false => None,
    };
    let (client, backend) = match decision.from {
        Sender::Egress | Sender::Connect { listener: None } if sender.is_none() => {
            let client = match **arrival {
                // Where its responses go: who asks for no `rport` may listen at another port than it sends from.
                Arrival { stream: None, .. } => response_flow(request, arrival),
                Arrival { from: to, listener, local, stream } => Flow { listener, to, local, stream },
            };
            (client, decision.backend?)
        }
        Sender::Egress | Sender::Connect { listener: None } => return None,
        Sender::Listener { index, local } => {
            (Flow { listener: Some(index), to: decision.to, local, stream: None }, sender?)
        }
        Sender::Connect { listener } => (Flow { listener, to: decision.to, local: None, stream: None }, sender?),
        Sender::Stream { id, listener } => (Flow { listener, to: decision.to, local: None, stream: Some(id) }, sender?),
    };
    Some((client, tables.backends.get(backend as usize)?))
}

/// The listener at which `backend` reaches us: an inside one, else the client's, else any, of its transport and address
/// family; of its address family alone, if there is none of its transport.
fn listener_towards_backend(tables: &Tables, backend: &Backend, client_side: u8) -> Option<u8> {
    let of_family = |index: &u8| {
        let listener = tables.listeners.get(*index as usize);
        listener.is_some_and(|listener| listener.address.is_ipv4() == backend.address.is_ipv4())
    };
    let fits = |index: &u8| of_family(index) && tables.transport(*index) == backend.reach.transport;
    let all = || 0..tables.listeners.len().min(u8::MAX as usize) as u8;
    let is_inside = |index: &u8| tables.listeners[*index as usize].side == Side::Inside;
    let by = |fits: &dyn Fn(&u8) -> bool| {
        all().filter(is_inside).find(fits).or(Some(client_side).filter(fits)).or_else(|| all().find(fits))
    };
    by(&fits).or_else(|| by(&of_family))
}

/// The transport of listener `index`, in a URI that leads there, unless it is the one that needs no word (RFC 3263 4.1).
fn put_transport(out: &mut Text<'_>, tables: &Tables, index: u8) {
    let transport = tables.transport(index);
    if transport.is_stream() {
        out.put(b";transport=").put(transport.param().as_bytes());
    }
}

/// What `backend` calls listener `index`.
fn name_towards<'a>(tables: &'a Tables, index: u8, backend: &'a Backend) -> SentBy<'a> {
    match tables.listeners.get(index as usize) {
        Some(listener) if listener.advertised.is_none() => {
            SentBy::Local { host: &backend.via_host, port: listener.address.port() }
        }
        _ => name_of(tables, index, None),
    }
}

/// Writes our Path into a registration from outside (RFC 3327 5.2): requests to it go down the flow it came on.
#[cold]
fn path(out: &mut Text<'_>, passing: &Passing<'_>) {
    let Passing { tables, message, scan, request, .. } = *passing;
    let has_tag = |tag: &[u8]| {
        let mut rows = rows_named(message, scan, &[b"supported", b"k"]);
        rows.any(|row| {
            row.of(message).split(|&octet| octet == b',').any(|one| grammar::trim(one).eq_ignore_ascii_case(tag))
        })
    };
    let is_supported = has_tag(b"path");
    if tables.policy.path == PathPolicy::Supported && !is_supported {
        return;
    }
    let Some((client, backend)) = ends(passing).filter(|_| passing.decision.from.is_inward()) else { return };
    let Some(inside) = client.listener.and_then(|listener| listener_towards_backend(tables, backend, listener)) else {
        return;
    };
    let name = match client.listener == Some(inside) {
        true => name_of(tables, inside, client.local),
        false => name_towards(tables, inside, backend),
    };
    out.put(b"Path: <sip:");
    name.write_host_port(out);
    put_transport(out, tables, inside);
    out.put(b";lr;").put(PARAM).put(b"=");
    RouteToken { purpose: Purpose::Flow, client, is_double: false }.write(out, &tables.keys, b"");
    //= RFC 5626 section 5.1
    //# If the edge proxy is the first hop, as
    //# indicated by the Via header field, it MUST insert its URI in a Path
    //# header field value as described in [RFC3327].
    let is_first_hop = !scan.is_repeated(HeaderKind::Via) && request.via.comma == 0;
    let asks_for_outbound = || rows_named(message, scan, &[b"contact", b"m"]).any(|row| names_reg_id(row.of(message)));
    if is_first_hop && asks_for_outbound() {
        out.put(b";ob");
    }
    out.put(b">\r\n");
    //= RFC 3327 section 5.3
    //# The recommended
    //# policy is for the registrar to reject the request with a 420 "Bad
    //# Extension" response indicating the Path extension.
    //
    // Asterisk does. What the phone does not say, whoever chose `path = "always"` says for it.
    if !is_supported {
        out.put(b"Supported: path\r\n");
    }
}

/// Whether a Contact has a `reg-id` parameter (RFC 5626 4.2).
fn names_reg_id(contact: &[u8]) -> bool {
    contact.split(|&octet| octet == b';').any(|param| {
        let name = param.split(|&octet| octet == b'=').next().unwrap_or_default();
        grammar::trim(name).eq_ignore_ascii_case(b"reg-id")
    })
}
