//! Where a request goes.
//!
//! ```text
//! from outside, in this order; the first that applies:
//!   the Request-URI is ours and loose (a strict router was upstream): the last Route value takes its place    R-1
//!   the top Route is ours: taken out, twice if need be                                                        R-3
//!   a token of its dialog was in it: the backend it names; if that does not serve, by the key, whatever else names
//!   it; if it is gone, 481
//!   the token of a flow was in it: 403, but for the client whose flow it is                                   O-4
//!   a Route or, without one, the Request-URI names a backend: that one; 503 if it is in maintenance           R-5
//!   another Route: 403, or ignored, by policy
//!   the tables changed not long ago, and its INVITE went to a backend that lives: the same                    D-3
//!   the pool of the first rule that matches; in it, by its strategy, the backend of the request's key
//!   no backend is up: 503
//! from inside:
//!   the same repairs; a token of a dialog or flow was in the Route: to the client it names, or from that client to
//!   the backend; if it does not verify, 403; if we have left the address it came to, 430                      O-4
//!   the next Route or the Request-URI must be an address, and the request goes there; else 404
//! ```
//!
//! Who is inside is decided by the source, never by the key: the same Call-ID comes back from the backends' side.
//! Requests from outside never choose a next hop that is no backend.

pub mod key;
pub mod loose;
pub mod memory;
pub mod record;
pub mod reply_path;
pub mod route_token;
pub mod routes;
pub mod table;

use crate::dataplane::limits::{BATCH, MEMORY_MS, RINGING_MS};
use crate::dataplane::rewrite::edit::Edits;
use crate::dataplane::scan::Scan;
use crate::dataplane::sip::cursor::Param;
use crate::dataplane::sip::header::HeaderKind;
use crate::dataplane::sip::start_line::Method;
use crate::dataplane::sip::uri::{Scheme, Uri, address};
use crate::dataplane::tables::{Backend, Listener, Pool, Rule, Serves, Side, Strategy, Tables};
use crate::dataplane::transport::{StreamId, Transport};
use crate::dataplane::validate::{Refusal, Request};
use crate::dataplane::verdict::Sender;
use ahash::AHashMap;
use memory::{Memory, Remembered};
use route_token::RouteToken;
use smallvec::SmallVec;
use std::net::{IpAddr, SocketAddr};
use table::{NONE, SlotTable};

/// Where a datagram came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Its source.
    pub from: SocketAddr,
    /// The listener; `None`: the egress socket.
    pub listener: Option<u8>,
    /// The local address it was sent to, where the listener is bound to a wildcard address.
    pub local: Option<IpAddr>,
    /// The connection it came on, if it came on one.
    pub stream: Option<StreamId>,
}

/// What a request is routed by.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
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
    /// Its transaction, as our branch names it: a digest.
    pub transaction: u64,
    /// The shard's clock in milliseconds.
    pub now_ms: u64,
}

/// Why a request goes where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The slot of its key's hash, by the table.
    Key {
        /// The hash.
        hash: u64,
        /// Whether the slot's owner was passed over for its runner-up.
        runner_up: bool,
    },
    /// The call memory: it is where its call went before.
    Memory,
    /// Its INVITE went there, and the tables changed since.
    Open,
    /// The first backend that is up.
    Priority,
    /// The slot of its transaction's hash.
    Random {
        /// The hash.
        hash: u64,
    },
    /// The Request-URI names it.
    RequestUri,
    /// A Route names it.
    Route,
    /// It was the next one's turn.
    RoundRobin,
    /// The token in its Route names the backend or the client.
    Token,
}

/// A target and the reasons for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Where to.
    pub to: SocketAddr,
    /// From which socket.
    pub from: Sender,
    /// The backend, if it is one.
    pub backend: Option<u16>,
    /// Why.
    pub how: How,
    /// The rule that chose the pool.
    pub rule: Option<u16>,
    /// What was found in a Route value of ours.
    pub popped: Popped,
}

/// What was found in the Route values of ours that were taken out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Popped {
    /// There was none.
    #[default]
    Nothing,
    /// A value without a token.
    Plain,
    /// A token that does not verify.
    Stranger {
        /// Whether it looks like that of a flow.
        of_flow: bool,
    },
    /// A token of ours, of this dialog or of a flow.
    Token(RouteToken),
}

/// A shard's router: what of routing needs memory.
#[derive(Debug, Default)]
pub struct Router {
    /// Calls of pools whose strategy no hash can repeat, by their key.
    calls: Memory,
    /// INVITEs without a final response, and those that had one lately, by their transaction: what a client sends before
    /// it has seen a token of ours (retransmission, CANCEL, ACK of a failure) has to go where they went.
    open: Memory,
    /// INVITEs that were too long for a datagram, by their transaction; there when a backend has a limit.
    switched: Option<Memory>,
    /// Until when that may be another backend than the table says: in the shard's milliseconds.
    unsettled_until_ms: u64,
    /// Whether the answer to "which backend" has changed since the last request.
    has_changed: bool,
    /// Whose turn it is, by the digest of the pool, in each that is served in turn.
    turns: SmallVec<[(u64, u32); 8]>,
    /// Backends that refused a datagram since the tables were built: passed over until the control plane has decided.
    suspects: Vec<u16>,
    /// Of these tables.
    generation: u64,
    /// INVITEs that ring at backends with a limit, by id; counted anew every [`RECOUNT_MS`], since some are never answered.
    ringing: AHashMap<u32, u32>,
    /// When they are counted anew.
    recount_at_ms: u64,
    /// Whose it is: the shard's number.
    pub shard: usize,
    /// Whether responses may come to a shard that did not forward their requests.
    pub collects_strays: bool,
    /// Transactions that were answered here and are not known here, at most [`BATCH`]: since whoever takes them last did.
    pub strays: SmallVec<[u64; BATCH]>,
    /// INVITEs that found their backend full.
    pub full: u64,
    /// Requests that followed their INVITE to a backend which the table may not have named any more.
    pub followed: u64,
    /// Requests that may belong to an open INVITE of which nothing was known, while that might have mattered.
    pub unknown: u64,
    /// Calls and INVITEs that had to be forgotten before their time.
    pub evicted: u64,
    /// Requests from outside whose dialog token did not verify: mangled by a phone, forged, or of another secret.
    pub strange_tokens: u64,
    /// Requests whose dialog's backend was down, so that they went by their key.
    pub orphaned: u64,
}

/// How often INVITEs that ring are counted anew.
const RECOUNT_MS: u64 = 8_000;

/// Suspects remembered at a time. When more backends refuse at once, the tables that say so come within milliseconds.
const SUSPECTS_MAX: usize = 64;

const NOT_FOUND: Refusal = Refusal::new(404, "Next Hop Is Not An Address");
const UNAVAILABLE: Refusal = Refusal::new(503, "No Backend Available");
// RFC 5057 5.1: 503 ends the transaction and not the dialog, which may go on when the backend is back.
const IN_MAINTENANCE: Refusal = Refusal::new(503, "Backend In Maintenance");

impl Router {
    /// Passes over the backend at `address` until the next tables, as far as its slots have a runner-up: so whoever makes
    /// tables has to know of it.
    pub fn suspect(&mut self, tables: &Tables, address: SocketAddr) {
        let Some(&known) = tables.by_address.get(&address) else { return };
        if self.is_suspect(tables, known) {
            return;
        }
        // A server that stands in two pools is a backend of each.
        for (index, _) in tables.backends.iter().enumerate().filter(|(_, backend)| backend.address == address) {
            if self.suspects.len() < SUSPECTS_MAX {
                self.suspects.push(index as u16);
                self.has_changed = true;
            }
        }
    }

    /// Whether the backend of this index is passed over.
    pub fn is_suspect(&mut self, tables: &Tables, index: u16) -> bool {
        self.look_at_tables(tables);
        self.suspects.contains(&index)
    }

    /// Says that an INVITE of this transaction is to be routed, or its answer taken note of, soon.
    #[inline(always)]
    pub fn expect(&self, transaction: u64) {
        self.open.expect(transaction);
    }

    #[inline(always)]
    fn look_at_tables(&mut self, tables: &Tables) {
        if self.generation != tables.generation {
            self.forget_other_tables(tables);
        }
    }

    #[cold]
    fn forget_other_tables(&mut self, tables: &Tables) {
        // The first tables are no change.
        self.has_changed = self.generation != 0;
        self.generation = tables.generation;
        self.suspects.clear();
        self.turns.retain(|(digest, _)| tables.pools.iter().any(|pool| pool.digest == *digest));
    }

    /// Decides where a request goes, and what that changes in it. The decision is written to `place`, where it stays: one that is
    /// returned is copied, and a copy of what was just written has to wait for it.
    //= RFC 3261 section 16.11
    //# Stateless proxies MUST NOT perform special processing for CANCEL
    //# requests.
    #[inline(always)]
    pub fn route<'d>(
        &mut self,
        input: &Input<'_>,
        edits: &mut Edits,
        place: &'d mut Option<Decision>,
    ) -> Result<&'d Decision, Refusal> {
        self.look_at_tables(input.tables);
        if self.has_changed {
            self.has_changed = false;
            self.unsettled_until_ms = input.now_ms + RINGING_MS;
        }
        let inside = is_from_inside(input.tables, input.arrival);
        let (mut popped, mut orphan_of) = (Popped::Nothing, None);
        let stripped;
        let mut uri = &input.request.uri;
        if input.scan.has(HeaderKind::Route) {
            let by_route = self.by_route(input, edits, inside)?;
            if let Some(decision) = by_route.decision {
                return Ok(place.insert(decision));
            }
            (popped, orphan_of) = (by_route.popped, by_route.orphan_of);
        } else if uri.has_maddr {
            stripped = loose::strip_maddr(input, edits);
            uri = &stripped;
        }
        if let Some(target) = target_of(input, uri, inside).filter(|target| orphan_of != Some(target.to)) {
            return Ok(place.insert(self.decide(input, target, How::RequestUri, popped)?));
        }
        if inside {
            return Err(NOT_FOUND);
        }
        let begins = input.request.method == Method::Invite && !input.request.to.tag.is_present();
        let belongs = begins || matches!(input.request.method, Method::Ack | Method::Cancel);
        let (rule, (index, how)) = match self.followed(input, belongs) {
            Some(index) => (None, (index, How::Open)),
            None => {
                if input.tables.can_be_full {
                    self.recount_ringing(input.now_ms);
                }
                let (rule, pool) = self.pool(input)?;
                (rule, self.pick(input, pool).ok_or(UNAVAILABLE)?)
            }
        };
        let backend = input.tables.backends.get(index as usize).ok_or(UNAVAILABLE)?;
        if begins {
            let Remembered { is_new, evicted } =
                self.open.remember_ringing(input.transaction, backend.id, input.now_ms, RINGING_MS);
            self.evicted += u64::from(evicted);
            if backend.max_open != 0 && is_new {
                *self.ringing.entry(backend.id).or_default() += 1;
            }
        }
        let (to, from) = (backend.address, self.way(input, backend));
        Ok(place.insert(Decision { to, from, backend: Some(index), how, rule, popped }))
    }

    /// The backend of the INVITE that this request repeats, cancels or acknowledges, if the table may say another: since it has
    /// changed, or since the one it says was full.
    #[inline(always)]
    fn followed(&mut self, input: &Input<'_>, belongs: bool) -> Option<u16> {
        if input.scan.has(HeaderKind::Replaces) || input.scan.has(HeaderKind::Join) {
            // Its CANCEL and ACK will not name the other call.
            self.unsettled_until_ms = input.now_ms + RINGING_MS;
        }
        // Where a backend can be full, the table's word is not the last one either.
        let is_settled = input.now_ms >= self.unsettled_until_ms;
        if !belongs || (is_settled && !input.tables.can_be_full) {
            return None;
        }
        let Some(id) = self.open.recall(input.transaction, input.now_ms) else {
            self.unknown += u64::from(!is_settled);
            return None;
        };
        let &index = input.tables.by_id.get(&id)?;
        let backend = input.tables.backends.get(index as usize);
        if backend.is_none_or(|backend| backend.serves != Serves::Calls) || self.suspects.contains(&index) {
            return None;
        }
        self.followed += u64::from(!is_settled);
        Some(index)
    }

    /// Learns that the INVITE of `transaction` has a response, of a code above 100: if it is final, what follows comes within 64*T1.
    #[inline(always)]
    pub fn answered(&mut self, tables: &Tables, transaction: u64, code: u16, now_ms: u64) {
        if let Some((backend, after_ms)) = self.open.first_heard(transaction, now_ms)
            && code < 300
        {
            self.count_delay(tables, backend, after_ms);
        }
        if code < 200 {
            return;
        }
        if self.collects_strays && self.open.recall(transaction, now_ms).is_none() {
            if self.strays.len() < BATCH {
                self.strays.push(transaction);
            }
            return;
        }
        self.settle(transaction, now_ms);
    }

    fn count_delay(&self, tables: &Tables, backend: u32, after_ms: u64) {
        let backend = tables.by_id.get(&backend).and_then(|&index| tables.backends.get(index as usize));
        if let Some(counters) = backend.and_then(|backend| backend.counters.shard(self.shard)) {
            counters.request_delay_ms.add(after_ms, 1);
        }
    }

    /// The same, of an INVITE that has its final response and is known here if it is known anywhere.
    #[inline(always)]
    pub fn settle(&mut self, transaction: u64, now_ms: u64) {
        let rang_at = self.open.keep(transaction, now_ms, MEMORY_MS);
        if let Some(count) = rang_at.and_then(|id| self.ringing.get_mut(&id)) {
            *count = count.saturating_sub(1);
        }
    }

    /// Whether an INVITE of this transaction was forwarded here, and still rings or was answered lately.
    #[cold]
    pub fn has_open(&mut self, transaction: u64, now_ms: u64) -> bool {
        self.open.recall(transaction, now_ms).is_some()
    }

    /// How many INVITEs that were forwarded here have no final response. Looks at all that is remembered: a millisecond.
    #[cold]
    pub fn open_invites(&self, now_ms: u64) -> u64 {
        self.open.ringing(now_ms).values().map(|&count| u64::from(count)).sum()
    }

    /// Before a backend is chosen, since no INVITE goes to who is full: those that nobody answers would keep it full.
    #[cold]
    fn recount_ringing(&mut self, now_ms: u64) {
        if now_ms >= self.recount_at_ms {
            self.recount_at_ms = now_ms + RECOUNT_MS;
            self.ringing = self.open.ringing(now_ms);
        }
    }

    /// Whether a backend takes no further INVITE. One that rings there already is repeated there: see [`Router::followed`].
    #[inline(always)]
    fn is_full(&self, input: &Input<'_>, index: u16) -> bool {
        let Some(backend) = input.tables.backends.get(index as usize).filter(|backend| backend.max_open != 0) else {
            return false;
        };
        let begins = input.request.method == Method::Invite && !input.request.to.tag.is_present();
        begins && self.ringing.get(&backend.id).is_some_and(|&count| count >= backend.max_open)
    }

    #[inline(always)]
    fn pool<'a>(&self, input: &Input<'a>) -> Result<(Option<u16>, &'a Pool), Refusal> {
        let rule = input.tables.rules.iter().position(|rule| matches(rule, input));
        let pool = rule.map_or(0, |index| input.tables.rules[index].pool);
        let pool = input.tables.pools.get(pool as usize).ok_or(UNAVAILABLE)?;
        Ok((rule.map(|index| index as u16), pool))
    }

    /// The backend of `pool` for a request that names none.
    //= RFC 3261 section 16.11
    //# This choice MUST only rely on fields in the
    //# message and time-invariant properties of the server.
    #[inline(always)]
    fn pick(&mut self, input: &Input<'_>, pool: &Pool) -> Option<(u16, How)> {
        match pool.strategy {
            Strategy::Hash => {
                let hash = key_hash(input, pool);
                let (index, runner_up) = self.slot(input, &pool.table, hash)?;
                Some((index, How::Key { hash, runner_up }))
            }
            Strategy::Random => {
                // The transaction's digest is a hash already, but one that clients see: it stands in our branch.
                let hash = input.tables.keys.route(&input.transaction.to_be_bytes());
                let (index, _) = self.slot(input, &pool.table, hash)?;
                Some((index, How::Random { hash }))
            }
            Strategy::Priority => {
                let mut free = pool.up.iter().filter(|&&index| !self.is_full(input, index));
                let trusted = free.clone().find(|index| !self.suspects.contains(index));
                Some((*trusted.or(free.next())?, How::Priority))
            }
            Strategy::RoundRobin => self.round_robin(input, pool),
        }
    }

    #[inline(always)]
    fn slot(&mut self, input: &Input<'_>, table: &SlotTable, hash: u64) -> Option<(u16, bool)> {
        let slot = table.slot(hash);
        if self.is_full(input, slot.owner) {
            self.full += 1;
            let is_free = slot.runner_up != NONE && !self.is_full(input, slot.runner_up);
            return is_free.then_some((slot.runner_up, true));
        }
        if !self.suspects.is_empty() && self.suspects.contains(&slot.owner) && slot.runner_up != NONE {
            return Some((slot.runner_up, true));
        }
        (slot.owner != NONE).then_some((slot.owner, false))
    }

    fn round_robin(&mut self, input: &Input<'_>, pool: &Pool) -> Option<(u16, How)> {
        let digest = key_hash(input, pool) ^ pool.digest;
        if let Some(id) = self.calls.recall(digest, input.now_ms) {
            self.calls.keep(digest, input.now_ms, MEMORY_MS);
            let is_it = |index: &usize| {
                let backend = input.tables.backends.get(*index);
                backend.is_some_and(|backend| backend.id == id && backend.serves == Serves::Calls)
            };
            let known = pool.members.clone().find(is_it).map(|index| index as u16);
            if let Some(index) = known.filter(|index| !self.suspects.contains(index)) {
                return Some((index, How::Memory));
            }
        }
        let count = pool.up.len();
        let start = *self.turn(pool) as usize;
        let next = (0..count).map(|step| (start + step) % count).filter(|&place| !self.is_full(input, pool.up[place]));
        let trusted = next.clone().find(|&place| !self.suspects.contains(&pool.up[place]));
        let place = trusted.or_else(|| next.clone().next())?;
        *self.turn(pool) = (place as u32 + 1) % count as u32;
        let index = pool.up[place];
        let id = input.tables.backends.get(index as usize)?.id;
        self.evicted += u64::from(self.calls.remember(digest, id, input.now_ms, MEMORY_MS).evicted);
        Some((index, How::RoundRobin))
    }

    fn turn(&mut self, pool: &Pool) -> &mut u32 {
        let place = self.turns.iter().position(|&(digest, _)| digest == pool.digest).unwrap_or_else(|| {
            self.turns.push((pool.digest, 0));
            self.turns.len() - 1
        });
        &mut self.turns[place].1
    }
}

#[inline(always)]
fn key_hash(input: &Input<'_>, pool: &Pool) -> u64 {
    let keys = &input.tables.keys;
    key::hash(keys, pool.affinity, input.message, input.scan, input.request, input.arrival.from.ip())
}

/// Whether what came there came from inside: from a backend, a network of ours, or on an inside listener.
#[inline(always)]
pub fn is_from_inside(tables: &Tables, arrival: &Arrival) -> bool {
    let listener = arrival.listener.and_then(|index| tables.listeners.get(index as usize));
    tables.is_inside(arrival.from) || listener.is_some_and(|listener| listener.side == Side::Inside)
}

fn matches(rule: &Rule, input: &Input<'_>) -> bool {
    let host = input.request.uri.host.of(input.message);
    let method_ok = rule.methods.as_ref().is_none_or(|methods| methods.contains(&input.request.method));
    let listener_ok = rule
        .listeners
        .as_ref()
        .is_none_or(|listeners| input.arrival.listener.is_some_and(|listener| listeners.contains(&listener)));
    let domain_ok = rule.domains.as_ref().is_none_or(|domains| domains.iter().any(|domain| is_below(host, domain)));
    method_ok && listener_ok && domain_ok
}

/// Whether `host` is `domain` or, for a domain that begins with `*.`, a name below it. In any case of letters.
fn is_below(host: &[u8], domain: &str) -> bool {
    match domain.strip_prefix('*') {
        None => host.eq_ignore_ascii_case(domain.as_bytes()),
        Some(suffix) => {
            let start = host.len().checked_sub(suffix.len());
            start.is_some_and(|start| start > 0 && host[start..].eq_ignore_ascii_case(suffix.as_bytes()))
        }
    }
}

/// A next hop that a message names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    to: SocketAddr,
    /// How to get there, if it is no backend, which has its own way.
    transport: Transport,
}

/// What `uri` names, if a request from that side may go there: a backend, and from inside any address.
#[inline(always)]
fn target_of(input: &Input<'_>, uri: &Uri, inside: bool) -> Option<Target> {
    if inside
        && uri.has_maddr
        && let Some(maddr) = uri.param(input.message, b"maddr")
    {
        return at_maddr(input.message, uri, maddr);
    }
    if !uri.host.of(input.message).first().is_some_and(|&octet| octet == b'[' || octet.is_ascii_digit()) {
        return None;
    }
    let to = SocketAddr::new(uri.address(input.message)?, uri.port);
    if !inside && !input.tables.by_address.contains_key(&to) {
        return None;
    }
    let transport = if inside { transport_of(input.message, uri) } else { Transport::Udp };
    Some(Target { to, transport })
}

/// What `maddr` of `uri` names: it stands for the host.
//= RFC 3261 section 16.5
//# If the Request-URI of the request contains an maddr parameter, the
//# Request-URI MUST be placed into the target set as the only target
//# URI, and the proxy MUST proceed to Section 16.6.
#[cold]
fn at_maddr(message: &[u8], uri: &Uri, maddr: Param) -> Option<Target> {
    let to = SocketAddr::new(address(maddr.value?.of(message))?, uri.port);
    Some(Target { to, transport: transport_of(message, uri) })
}

/// The address that `uri` names, if it asks for TCP.
#[cold]
pub fn address_over_tcp(message: &[u8], uri: &Uri) -> Option<SocketAddr> {
    let is_plain = transport_of(message, uri) == Transport::Tcp && !uri.has_maddr;
    Some(SocketAddr::new(uri.address(message).filter(|_| is_plain)?, uri.port))
}

/// The transport that `uri` asks for; datagrams where it asks for none that there is.
#[cold]
fn transport_of(message: &[u8], uri: &Uri) -> Transport {
    if uri.scheme == Scheme::Sips {
        // Whatever it is carried by, TLS is meant.
        return Transport::Tls;
    }
    let value = uri.param(message, b"transport").and_then(|param| param.value).unwrap_or_default().of(message);
    let streams = [Transport::Tcp, Transport::Tls, Transport::Ws, Transport::Wss];
    streams.into_iter().find(|one| value.eq_ignore_ascii_case(one.word().as_bytes())).unwrap_or(Transport::Udp)
}

impl Router {
    /// The decision for a target that the message names itself.
    fn decide(&mut self, input: &Input<'_>, target: Target, how: How, popped: Popped) -> Result<Decision, Refusal> {
        let Target { to, transport } = target;
        if let Some(&index) = input.tables.by_address.get(&to) {
            let backend = input.tables.backends.get(index as usize);
            if backend.is_some_and(|backend| backend.serves == Serves::Nothing) {
                return Err(IN_MAINTENANCE);
            }
            let from = backend.map_or(Sender::Egress, |backend| self.way(input, backend));
            return Ok(Decision { to, from, backend: Some(index), how, rule: None, popped });
        }
        let from = listener_towards(input, target).ok_or(NOT_FOUND)?;
        if !is_somebody(to) || input.tables.is_own_address(to) || came_to(input.tables, input.arrival, to) {
            return Err(NOT_FOUND);
        }
        debug_assert_eq!(from.is_stream(), transport.is_stream());
        Ok(Decision { to, from, backend: None, how, rule: None, popped })
    }

    /// Which socket or connection a request to `backend` leaves by.
    #[inline(always)]
    fn way(&mut self, input: &Input<'_>, backend: &Backend) -> Sender {
        if input.tables.datagram_max == u32::MAX { backend.way } else { self.way_by_size(input, backend) }
    }

    /// The same, where long requests go over a stream; and what belongs to their transaction goes after them: CANCEL and the
    /// ACK of a failure take the way of their INVITE (RFC 3261 9.1, 17.1.1.3), however short they are.
    //= RFC 3261 section 18.1.1
    //# If a request is within 200 bytes of the path MTU, or if it is larger
    //# than 1300 bytes and the path MTU is unknown, the request MUST be sent
    //# using an RFC 2914 [43] congestion controlled transport protocol, such
    //# as TCP.
    #[cold]
    fn way_by_size(&mut self, input: &Input<'_>, backend: &Backend) -> Sender {
        let way = backend.way;
        if way != Sender::Egress {
            return way;
        }
        let switched = self.switched.get_or_insert_default();
        let is_long = u64::from(input.request.end) + ADDED > u64::from(backend.reach.datagram_max);
        let follows = matches!(input.request.method, Method::Ack | Method::Cancel)
            && switched.recall(input.transaction, input.now_ms).is_some();
        if is_long && input.request.method == Method::Invite {
            switched.remember(input.transaction, backend.id, input.now_ms, RINGING_MS);
        }
        if is_long || follows { Sender::Connect { listener: None } } else { way }
    }
}

/// Octets that we count for what we add to a request, when its length decides how it travels: a Via, two Record-Routes and
/// what the client's Via is told have 200 to 350.
const ADDED: u64 = 350;

/// Whether `address` is one that a single host can have, so that a datagram may be sent to it.
#[inline(always)]
pub fn is_somebody(address: SocketAddr) -> bool {
    let ip = address.ip();
    let nobody = ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
    address.port() != 0 && !nobody
}

/// Whether `host:port` means us in a message that came in at `arrival`: it is known to, or it is where the message came to. An address
/// that moves between nodes comes here when the tables are made long since.
pub fn is_own(tables: &Tables, arrival: &Arrival, host: &[u8], port: u16) -> bool {
    let came_to = || address(host).is_some_and(|ip| came_to(tables, arrival, SocketAddr::new(ip, port)));
    tables.is_own(host, port) || came_to()
}

/// Whether a message that came in at `arrival`, on a wildcard listener, was sent to this address.
#[cold]
fn came_to(tables: &Tables, arrival: &Arrival, address: SocketAddr) -> bool {
    let listener = arrival.listener.and_then(|index| tables.listeners.get(index as usize));
    arrival.local == Some(address.ip()) && listener.is_some_and(|listener| listener.address.port() == address.port())
}

/// The listener from which a request goes out to `target`, or for which the connection there is opened: the one it came
/// to, if that faces outside, or the first that does and has the right transport and address family.
fn listener_towards(input: &Input<'_>, target: Target) -> Option<Sender> {
    let fits = |listener: &Listener| {
        let family_fits = listener.address.is_ipv4() == target.to.is_ipv4();
        listener.side == Side::Outside && listener.transport == target.transport && family_fits
    };
    let listeners = &input.tables.listeners;
    if !matches!(target.transport, Transport::Udp | Transport::Tcp) {
        // A certificate is for a name, and an address is all that is known; and nobody listens in a browser.
        return None;
    }
    if target.transport.is_stream() {
        let index = listeners.iter().position(fits)?;
        return Some(Sender::Connect { listener: Some(index as u8) });
    }
    if let Some(index) = input.arrival.listener
        && listeners.get(index as usize).is_some_and(fits)
    {
        return Some(Sender::Listener { index, local: input.arrival.local });
    }
    let index = listeners.iter().position(fits)?;
    Some(Sender::Listener { index: index as u8, local: None })
}
