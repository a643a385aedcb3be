//! Where a request goes.
//!
//! ```text
//! from outside, in this order; the first that applies:
//!   the Request-URI is ours and loose (a strict router was upstream): the last Route value takes its place    R-1
//!   the top Route is ours: taken out, twice if need be                                                        R-3
//!   a token of its dialog was in it: the backend it names; if that does not serve, by the key; if it is gone, 481
//!   the token of a flow was in it: 403, but for the client whose flow it is                                   O-4
//!   a Route or, without one, the Request-URI names a backend: that one; 503 if it is in maintenance           R-5
//!   another Route: 403, or ignored, by policy
//!   the tables changed not long ago, and its INVITE went to a backend that lives: the same                    D-3
//!   the pool of the first rule that matches; in it, by its strategy, the backend of the request's key
//!   no backend is up: 503
//! from inside:
//!   the same repairs; a token of a dialog or flow was in the Route: to the client it names; if it does not verify,
//!   403; if we have left the address it came to, 430                                                          O-4
//!   the next Route or the Request-URI must be an address, and the request goes there; else 404
//! ```
//!
//! Who is inside is decided by the source, never by the key: the same Call-ID comes back from the backends' side.
//! Requests from outside never choose a next hop that is no backend.

pub mod key;
pub mod memory;
pub mod record;
pub mod route_token;
pub mod routes;
pub mod table;

use crate::dataplane::limits::{MEMORY_MS, RINGING_MS};
use crate::dataplane::rewrite::edit::Edits;
use crate::dataplane::rewrite::via;
use crate::dataplane::scan::{Scan, Span};
use crate::dataplane::sip::header::HeaderKind;
use crate::dataplane::sip::start_line::Method;
use crate::dataplane::sip::uri::Uri;
use crate::dataplane::tables::{Backend, ForeignRoute, Listener, Pool, Rule, Serves, Side, Strategy, Tables};
use crate::dataplane::text::Text;
use crate::dataplane::token::Flow;
use crate::dataplane::validate::{Refusal, Request};
use crate::dataplane::verdict::Sender;
use ahash::AHashMap;
use memory::{Memory, Remembered};
use route_token::{Purpose, RouteToken};
use routes::Routes;
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
    pub arrival: Arrival,
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
    /// Until when that may be another backend than the table says: in the shard's milliseconds.
    unsettled_until_ms: u64,
    /// Whether the answer to "which backend" has changed since the last request.
    has_changed: bool,
    /// Whose turn it is, for round robin.
    turn: u32,
    /// Backends that refused a datagram since the tables were built: passed over until the control plane has decided.
    suspects: Vec<u16>,
    /// Of these tables.
    generation: u64,
    /// INVITEs that ring at backends with a limit, by id; counted anew every [`RECOUNT_MS`], since some are never answered.
    ringing: AHashMap<u32, u32>,
    /// When they are counted anew.
    recount_at_ms: u64,
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

const FORBIDDEN: Refusal = Refusal::new(403, "Route Is Not Ours");
const NOT_FOUND: Refusal = Refusal::new(404, "Next Hop Is Not An Address");
const UNAVAILABLE: Refusal = Refusal::new(503, "No Backend Available");
// RFC 5057 5.1: 503 ends the transaction and not the dialog, which may go on when the backend is back.
const IN_MAINTENANCE: Refusal = Refusal::new(503, "Backend In Maintenance");
const TAMPERED: Refusal = Refusal::new(403, "Route Token Does Not Verify");
const NOT_YOURS: Refusal = Refusal::new(403, "Flow Is Another Client's");
const FLOW_GONE: Refusal = Refusal::new(430, "Flow Failed");
// RFC 5057 5.1: 481 ends the dialog that is lost anyway and nothing else.
const GONE: Refusal = Refusal::new(481, "Backend Of This Dialog Is Gone");

impl Router {
    /// Passes over the backend at `address` until the next tables, as far as its slots have a runner-up.
    pub fn suspect(&mut self, tables: &Tables, address: SocketAddr) -> Option<u16> {
        let &index = tables.by_address.get(&address)?;
        self.forget_suspects_of_other_tables(tables);
        if !self.suspects.contains(&index) && self.suspects.len() < SUSPECTS_MAX {
            self.suspects.push(index);
            self.has_changed = true;
        }
        Some(index)
    }

    #[inline(always)]
    fn forget_suspects_of_other_tables(&mut self, tables: &Tables) {
        if self.generation != tables.generation {
            // The first tables are no change.
            self.has_changed = self.generation != 0;
            self.generation = tables.generation;
            self.suspects.clear();
        }
    }

    /// Decides where a request goes, and what that changes in it.
    //= RFC 3261 section 16.11
    //# Stateless proxies MUST NOT perform special processing for CANCEL
    //# requests.
    #[inline(always)]
    pub fn route(&mut self, input: &Input<'_>, edits: &mut Edits) -> Result<Decision, Refusal> {
        self.forget_suspects_of_other_tables(input.tables);
        if self.has_changed {
            self.has_changed = false;
            self.unsettled_until_ms = input.now_ms + RINGING_MS;
        }
        let inside = is_from_inside(input.tables, &input.arrival);
        let (mut popped, mut uri) = (Popped::Nothing, input.request.uri);
        if input.scan.has(HeaderKind::Route) {
            let by_route = self.by_route(input, edits, inside)?;
            if let Some(decision) = by_route.decision {
                return Ok(decision);
            }
            popped = by_route.popped;
        } else {
            uri = strip_maddr(input, edits);
        }
        if let Some(target) = target_of(input, &uri, inside) {
            return decide(input, target, How::RequestUri, popped);
        }
        if inside {
            return Err(NOT_FOUND);
        }
        let begins = input.request.method == Method::Invite && !input.request.to.tag.is_present();
        let belongs = begins || matches!(input.request.method, Method::Ack | Method::Cancel);
        let (rule, (index, how)) = match self.followed(input, belongs) {
            Some(index) => (None, (index, How::Open)),
            None => {
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
                self.count_ringing(backend.id, input.now_ms);
            }
        }
        Ok(Decision { to: backend.address, from: Sender::Egress, backend: Some(index), how, rule, popped })
    }

    /// The backend of the INVITE that this request repeats, cancels or acknowledges, if the table may say another by now.
    #[inline(always)]
    fn followed(&mut self, input: &Input<'_>, belongs: bool) -> Option<u16> {
        if input.scan.has(HeaderKind::Replaces) || input.scan.has(HeaderKind::Join) {
            // Its CANCEL and ACK will not name the other call.
            self.unsettled_until_ms = input.now_ms + RINGING_MS;
        }
        if !belongs || input.now_ms >= self.unsettled_until_ms {
            return None;
        }
        let Some(id) = self.open.recall(input.transaction, input.now_ms) else {
            self.unknown += 1;
            return None;
        };
        let &index = input.tables.by_id.get(&id)?;
        let backend = input.tables.backends.get(index as usize);
        if backend.is_none_or(|backend| backend.serves != Serves::Calls) || self.suspects.contains(&index) {
            return None;
        }
        self.followed += 1;
        Some(index)
    }

    /// Learns that the INVITE of `transaction` has its final response: what follows comes within 64*T1.
    #[inline(always)]
    pub fn answered(&mut self, transaction: u64, now_ms: u64) {
        let rang_at = self.open.keep(transaction, now_ms, MEMORY_MS);
        if let Some(count) = rang_at.and_then(|id| self.ringing.get_mut(&id)) {
            *count = count.saturating_sub(1);
        }
    }

    #[cold]
    fn count_ringing(&mut self, id: u32, now_ms: u64) {
        if now_ms >= self.recount_at_ms {
            self.recount_at_ms = now_ms + RECOUNT_MS;
            self.ringing = self.open.ringing(now_ms);
        } else {
            *self.ringing.entry(id).or_default() += 1;
        }
    }

    /// Whether a backend takes no further INVITE. One that rings there already may be repeated.
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
        if self.is_full(input, slot.owner) && !self.rings_at(input, slot.owner) {
            self.full += 1;
            let is_free = slot.runner_up != NONE && !self.is_full(input, slot.runner_up);
            return is_free.then_some((slot.runner_up, true));
        }
        if !self.suspects.is_empty() && self.suspects.contains(&slot.owner) && slot.runner_up != NONE {
            return Some((slot.runner_up, true));
        }
        (slot.owner != NONE).then_some((slot.owner, false))
    }

    /// Whether this very INVITE rings at that backend.
    #[cold]
    fn rings_at(&mut self, input: &Input<'_>, index: u16) -> bool {
        let id = input.tables.backends.get(index as usize).map(|backend| backend.id);
        id.is_some() && self.open.recall(input.transaction, input.now_ms) == id
    }

    fn round_robin(&mut self, input: &Input<'_>, pool: &Pool) -> Option<(u16, How)> {
        let digest = key_hash(input, pool);
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
        let start = self.turn as usize;
        let next = (0..count).map(|step| (start + step) % count).filter(|&place| !self.is_full(input, pool.up[place]));
        let trusted = next.clone().find(|&place| !self.suspects.contains(&pool.up[place]));
        let place = trusted.or_else(|| next.clone().next())?;
        self.turn = (place as u32 + 1) % count as u32;
        let index = pool.up[place];
        let id = input.tables.backends.get(index as usize)?.id;
        self.evicted += u64::from(self.calls.remember(digest, id, input.now_ms, MEMORY_MS).evicted);
        Some((index, How::RoundRobin))
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

/// RFC 3261 16.4: a maddr that is ours is taken out, and a port and transport that are not the default with it. Returns
/// the Request-URI as it is then.
//= RFC 3261 section 16.4
//# the proxy MUST strip the maddr and any non-default port or transport
//# parameter and continue processing as if those values had not been
//# present in the request.
fn strip_maddr(input: &Input<'_>, edits: &mut Edits) -> Uri {
    let mut uri = input.request.uri;
    if !uri.has_maddr {
        return uri;
    }
    let Some(maddr) = uri.param(input.message, b"maddr") else { return uri };
    let host = maddr.value.unwrap_or_default().of(input.message);
    if !input.tables.is_own(host, uri.port) {
        return uri;
    }
    edits.cut(maddr.whole);
    if let Some(transport) = uri.param(input.message, b"transport") {
        edits.cut(transport.whole);
    }
    if uri.port_text.is_present() && uri.port != 5060 {
        edits.cut(uri.port_text);
        uri.port = 5060;
    }
    uri
}

struct ByRoute {
    decision: Option<Decision>,
    popped: Popped,
}

impl Router {
    /// Obeys the Route header (16.4, 16.6 item 6).
    #[cold]
    fn by_route(&mut self, input: &Input<'_>, edits: &mut Edits, inside: bool) -> Result<ByRoute, Refusal> {
        let mut routes = Routes::read(input.message, input.scan).ok_or(Refusal::new(400, "Bad Route"))?;
        let mut uri = input.request.uri;
        let (mut new_uri, mut popped) = (None, Popped::Nothing);
        if is_own(input, &uri) && uri.is_loose {
            //= RFC 3261 section 16.4
            //# The proxy MUST inspect the Request-URI of the request.  If the
            //# Request-URI of the request contains a value this proxy previously
            //# placed into a Record-Route header field (see Section 16.6 item 4),
            //# the proxy MUST replace the Request-URI in the request with the last
            //# value from the Route header field, and remove that value from the
            //# Route header field.
            if let Some(last) = routes.take_last() {
                popped = token_in(input, &uri, inside);
                uri = last.uri;
                new_uri = Some(last.uri.whole);
            }
        }
        //= RFC 3261 section 16.4
        //# If the first value in the Route header field indicates this proxy,
        //# the proxy MUST remove that value from the request.
        //
        // RFC 5658 5: of a double Record-Route, both values at once. Two values of ours that are no pair are those of a
        // call that went through us twice: the second is for the second time.
        for _ in 0..2 {
            let Some(first) = routes.first().filter(|first| is_own(input, &first.uri)) else { break };
            let found = token_in(input, &first.uri, inside);
            match (popped, found) {
                (Popped::Token(one), Popped::Token(other)) if one.is_double && other.is_double => {}
                (Popped::Nothing | Popped::Plain, _) => popped = found,
                _ => break,
            }
            routes.take_first();
        }
        let by_token = self.target_of_token(input, popped, inside)?;
        let next = routes.first().map(|first| first.uri);
        let by_next = next.and_then(|next| target_of(input, &next, inside));
        if let (Some(_), None, None) = (next, by_token, by_next) {
            if inside {
                return Err(NOT_FOUND);
            }
            if input.tables.policy.foreign_route == ForeignRoute::Refuse {
                return Err(FORBIDDEN);
            }
        }
        match next {
            //= RFC 3261 section 16.6
            //# The proxy MUST place the Request-URI into the Route header field as
            //# the last value.
            //
            // A strict router finds its own URI in the Request-URI and the rest of the way in Route.
            Some(next) if !next.is_loose && (by_token.is_some() || by_next.is_some()) => {
                routes.take_first();
                routes.write(input.message, edits, Some(uri.whole));
                replace_uri(input, edits, next.whole);
            }
            _ => {
                routes.write(input.message, edits, None);
                match new_uri {
                    Some(new_uri) => replace_uri(input, edits, new_uri),
                    None => uri = strip_maddr(input, edits),
                }
            }
        }
        let (named, how) = match next {
            Some(_) => (by_next, How::Route),
            None => (target_of(input, &uri, inside), How::RequestUri),
        };
        let decision = match (by_token, named) {
            (Some(decision), _) => Some(Decision { popped, ..decision }),
            (None, Some(target)) => Some(decide(input, target, how, popped)?),
            (None, None) => None,
        };
        Ok(ByRoute { decision, popped })
    }

    /// Where a token of ours sends a request. `None`: its key decides.
    fn target_of_token(
        &mut self,
        input: &Input<'_>,
        popped: Popped,
        inside: bool,
    ) -> Result<Option<Decision>, Refusal> {
        let Input { tables, arrival, .. } = input;
        let token = match popped {
            Popped::Token(token) => token,
            Popped::Stranger { of_flow } if inside || of_flow => return Err(TAMPERED),
            Popped::Stranger { .. } => {
                self.strange_tokens += 1;
                return Ok(None);
            }
            Popped::Nothing | Popped::Plain => return Ok(None),
        };
        let Flow { listener, to, local } = token.client;
        let decision = Decision { to, from: Sender::Egress, backend: None, how: How::Token, rule: None, popped };
        if inside {
            let index = listener.filter(|&index| (index as usize) < tables.listeners.len()).ok_or(FLOW_GONE)?;
            return Ok(Some(Decision { from: Sender::Listener { index, local }, ..decision }));
        }
        let Purpose::Dialog { backend } = token.purpose else {
            // RFC 5626 5.3: from the client itself it is on its way out, as if there had been no Route. To others, never.
            return if to == arrival.from { Ok(None) } else { Err(NOT_YOURS) };
        };
        let &index = tables.by_id.get(&backend).ok_or(GONE)?;
        let backend = tables.backends.get(index as usize).ok_or(GONE)?;
        if backend.serves != Serves::Calls || self.suspects.contains(&index) {
            // Another server may share its state; one that does not answers 481 itself.
            self.orphaned += 1;
            return Ok(None);
        }
        Ok(Some(Decision { to: backend.address, backend: Some(index), ..decision }))
    }
}

/// What the Route value `uri`, which is ours, holds.
fn token_in(input: &Input<'_>, uri: &Uri, inside: bool) -> Popped {
    let Some(value) = uri.param(input.message, route_token::PARAM).and_then(|param| param.value) else {
        // We never write a user part. Whoever invents one in a request to a client means a flow.
        return if inside && uri.userinfo.is_present() { Popped::Stranger { of_flow: true } } else { Popped::Plain };
    };
    let (text, call_id) = (value.of(input.message), input.request.call_id.of(input.message));
    let token = RouteToken::read(text, &input.tables.keys, call_id);
    token.map_or(Popped::Stranger { of_flow: RouteToken::claims_flow(text) }, Popped::Token)
}

fn replace_uri(input: &Input<'_>, edits: &mut Edits, uri: Span) {
    edits.replace(input.request.uri.whole, |text| {
        text.put(uri.of(input.message));
    });
}

fn is_own(input: &Input<'_>, uri: &Uri) -> bool {
    uri.is_sip() && input.tables.is_own(uri.host.of(input.message), uri.port)
}

/// The address `uri` names, if a request from that side may go there: a backend, and from inside any address.
#[inline(always)]
fn target_of(input: &Input<'_>, uri: &Uri, inside: bool) -> Option<SocketAddr> {
    if !uri.is_sip()
        || !uri.host.of(input.message).first().is_some_and(|&octet| octet == b'[' || octet.is_ascii_digit())
    {
        return None;
    }
    let address = SocketAddr::new(uri.address(input.message)?, uri.port);
    (inside || input.tables.by_address.contains_key(&address)).then_some(address)
}

/// The decision for a target that the message names itself.
fn decide(input: &Input<'_>, to: SocketAddr, how: How, popped: Popped) -> Result<Decision, Refusal> {
    if let Some(&index) = input.tables.by_address.get(&to) {
        let backend = input.tables.backends.get(index as usize);
        if backend.is_some_and(|backend| backend.serves == Serves::Nothing) {
            return Err(IN_MAINTENANCE);
        }
        return Ok(Decision { to, from: Sender::Egress, backend: Some(index), how, rule: None, popped });
    }
    let from = listener_towards(input, to).ok_or(NOT_FOUND)?;
    if !is_somebody(to) || input.tables.is_own_address(to) {
        return Err(NOT_FOUND);
    }
    Ok(Decision { to, from, backend: None, how, rule: None, popped })
}

/// Whether `address` is one that a single host can have, so that a datagram may be sent to it.
#[inline(always)]
pub fn is_somebody(address: SocketAddr) -> bool {
    let ip = address.ip();
    let nobody = ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
    address.port() != 0 && !nobody
}

/// The listener from which a request goes out to `to`: the one it came to, if that faces outside, or the first that
/// does and has the right address family.
fn listener_towards(input: &Input<'_>, to: SocketAddr) -> Option<Sender> {
    let fits = |listener: &Listener| listener.side == Side::Outside && listener.address.is_ipv4() == to.is_ipv4();
    let listeners = &input.tables.listeners;
    if let Some(index) = input.arrival.listener
        && listeners.get(index as usize).is_some_and(fits)
    {
        return Some(Sender::Listener { index, local: input.arrival.local });
    }
    let index = listeners.iter().position(fits)?;
    Some(Sender::Listener { index: index as u8, local: None })
}

/// The host and port that stand in our Via towards `decision`'s target.
pub fn sent_by<'a>(tables: &'a Tables, decision: &Decision) -> SentBy<'a> {
    match decision.from {
        Sender::Egress => {
            let backend = decision.backend.and_then(|index| tables.backends.get(index as usize));
            SentBy::Egress(backend.map_or(via::START, |backend: &Backend| &backend.via_start))
        }
        Sender::Listener { index, local } => name_of(tables, index, local),
    }
}

/// What the world calls listener `index`: what is configured, or the address a message came to.
fn name_of(tables: &Tables, index: u8, local: Option<IpAddr>) -> SentBy<'_> {
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
    /// The start of a Via towards a backend, to be followed by the port of the shard's egress socket.
    Egress(&'a str),
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
            SentBy::Egress(text) | SentBy::Listener(text) => {
                out.put(text.as_bytes());
            }
        }
    }
}

/// The flow on which the response to this request goes back (RFC 3261 18.2.2, RFC 3581 4).
#[inline(always)]
pub fn response_flow(request: &Request, arrival: &Arrival) -> Flow {
    Flow { listener: arrival.listener, to: response_address(Some(&request.via), arrival.from), local: arrival.local }
}

/// Where the response to a request from `source` goes: with `rport` to its source port, else to the port of sent-by.
/// Never to an address that the client wrote: a `maddr` would make us shoot at whoever it names (RFC 4475 3.3.10).
//= RFC 3261 section 18.2.2
//# the response MUST be sent to the address in the "received" parameter,
//# using the port indicated in the "sent-by" value, or using port 5060 if
//# none is specified explicitly.
#[inline(always)]
pub fn response_address(via: Option<&crate::dataplane::sip::via::Via>, source: SocketAddr) -> SocketAddr {
    match via {
        Some(via) if !via.rport.is_present() => SocketAddr::new(source.ip(), via.port),
        _ => source,
    }
}
