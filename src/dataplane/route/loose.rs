//! Loose routing: what the Route header of a request says, and what our own values in it hold (RFC 3261 16.4, 16.6 item 6).

use super::route_token::{self, Purpose, RouteToken};
use super::routes::Routes;
use super::{Decision, How, Input, NOT_FOUND, Popped, Router, target_of};
use crate::dataplane::rewrite::edit::Edits;
use crate::dataplane::scan::Span;
use crate::dataplane::sip::uri::{Scheme, Uri};
use crate::dataplane::tables::{ForeignRoute, Serves};
use crate::dataplane::token::Flow;
use crate::dataplane::validate::{Refusal, UNKNOWN_SCHEME};
use crate::dataplane::verdict::Sender;
use std::net::SocketAddr;

const FORBIDDEN: Refusal = Refusal::new(403, "Route Is Not Ours");
const TAMPERED: Refusal = Refusal::new(403, "Route Token Does Not Verify");
const NOT_YOURS: Refusal = Refusal::new(403, "Flow Is Another Client's");
const FLOW_GONE: Refusal = Refusal::new(430, "Flow Failed");
// RFC 5057 5.1: 481 ends the dialog that is lost anyway and nothing else.
const GONE: Refusal = Refusal::new(481, "Backend Of This Dialog Is Gone");

/// What the Route header of a request has decided, and found.
pub struct ByRoute {
    /// Where it sends the request; `None`: the Request-URI or the key decides.
    pub decision: Option<Decision>,
    /// What was in values of ours.
    pub popped: Popped,
    /// The backend of the request's dialog, where that does not serve. The request goes by its key then, though its
    /// Route or Request-URI may well name that backend's address: as its remote target, or as the next hop.
    pub orphan_of: Option<SocketAddr>,
}

/// What the token in a Route value of ours says.
enum ByToken {
    /// There is none that decides anything.
    Nothing,
    /// The dialog's backend, which is there, does not serve.
    Orphan(SocketAddr),
    To(Decision),
}

impl Router {
    /// Obeys the Route header (16.4, 16.6 item 6).
    #[cold]
    pub(super) fn by_route(&mut self, input: &Input<'_>, edits: &mut Edits, inside: bool) -> Result<ByRoute, Refusal> {
        let mut routes = Routes::read(input.message, input.scan).ok_or(Refusal::new(400, "Bad Route"))?;
        let mut uri = input.request.uri;
        let (mut new_uri, mut popped) = (None, Popped::Nothing);
        // We never write a user part: where there is one, it is the callee.
        if is_own(input, &uri) && uri.is_loose && !uri.userinfo.is_present() {
            //= RFC 3261 section 16.4
            //# The proxy MUST inspect the Request-URI of the request.  If the
            //# Request-URI of the request contains a value this proxy previously
            //# placed into a Record-Route header field (see Section 16.6 item 4),
            //# the proxy MUST replace the Request-URI in the request with the last
            //# value from the Route header field, and remove that value from the
            //# Route header field.
            if let Some(last) = routes.take_last() {
                if !input.tables.policy.schemes.contains(&last.uri.scheme) {
                    return Err(UNKNOWN_SCHEME);
                }
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
                // Of a key that is not known any more: whether they were a pair is not to be read.
                (Popped::Stranger { of_flow: false }, Popped::Stranger { of_flow: false }) => {}
                (Popped::Nothing | Popped::Plain, _) => popped = found,
                _ => break,
            }
            routes.take_first();
        }
        let (by_token, orphan_of) = match self.target_of_token(input, popped, inside)? {
            ByToken::To(decision) => (Some(decision), None),
            ByToken::Orphan(backend) => (None, Some(backend)),
            ByToken::Nothing => (None, None),
        };
        let named_by = |uri: &Uri| target_of(input, uri, inside).filter(|target| orphan_of != Some(target.to));
        let next = routes.first().map(|first| first.uri);
        let by_next = next.and_then(|next| named_by(&next));
        if next.is_some() && by_token.is_none() && by_next.is_none() && orphan_of.is_none() {
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
            None => (named_by(&uri), How::RequestUri),
        };
        let decision = match (by_token, named) {
            (Some(decision), _) => Some(Decision { popped, ..decision }),
            (None, Some(target)) => Some(self.decide(input, target, how, popped)?),
            (None, None) => None,
        };
        Ok(ByRoute { decision, popped, orphan_of })
    }

    /// Where a token of ours sends a request. `None`: its key decides.
    fn target_of_token(&mut self, input: &Input<'_>, popped: Popped, inside: bool) -> Result<ByToken, Refusal> {
        let Input { tables, arrival, .. } = input;
        let token = match popped {
            Popped::Token(token) => token,
            Popped::Stranger { of_flow } if inside || of_flow => return Err(TAMPERED),
            Popped::Stranger { .. } => {
                self.strange_tokens += 1;
                return Ok(ByToken::Nothing);
            }
            Popped::Nothing | Popped::Plain => return Ok(ByToken::Nothing),
        };
        let Flow { listener, to, local, stream } = token.client;
        let decision = Decision { to, from: Sender::Egress, backend: None, how: How::Token, rule: None, popped };
        if inside && !is_by_client(input, token) {
            let index = listener.filter(|&index| (index as usize) < tables.listeners.len()).ok_or(FLOW_GONE)?;
            let from = match (stream, tables.transport(index).is_stream()) {
                (Some(id), true) => Sender::Stream { id, listener },
                (None, true) => Sender::Connect { listener },
                (None, false) => Sender::Listener { index, local },
                (Some(_), false) => return Err(FLOW_GONE),
            };
            return Ok(ByToken::To(Decision { from, ..decision }));
        }
        let Purpose::Dialog { backend } = token.purpose else {
            // RFC 5626 5.3: from the client itself it is on its way out, as if there had been no Route. To others, never. It may send from
            // another port than it listens at.
            return if to.ip() == arrival.from.ip() { Ok(ByToken::Nothing) } else { Err(NOT_YOURS) };
        };
        let &index = tables.by_id.get(&backend).ok_or(GONE)?;
        let backend = tables.backends.get(index as usize).ok_or(GONE)?;
        if backend.serves != Serves::Calls || self.suspects.contains(&index) {
            if inside {
                // No key decides there: it goes where the rest of it says.
                return Ok(ByToken::Nothing);
            }
            // Another server may share its state; one that does not answers 481 itself.
            self.orphaned += 1;
            return Ok(ByToken::Orphan(backend.address));
        }
        Ok(ByToken::To(Decision {
            to: backend.address,
            from: self.way(input, backend),
            backend: Some(index),
            ..decision
        }))
    }
}

/// Whether a request from inside is the client's of this dialog and not the backend's: a host of ours that is no backend has called one.
fn is_by_client(input: &Input<'_>, token: RouteToken) -> bool {
    let (ip, is_dialog) = (input.arrival.from.ip(), token.purpose != Purpose::Flow);
    is_dialog && token.client.to.ip() == ip && !input.tables.has_backend_at(ip)
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
    super::is_own(input.tables, input.arrival, uri.host.of(input.message), uri.port)
}

/// RFC 3261 16.4: a maddr that is ours is taken out, and a port and transport that are not the default with it. Returns
/// the Request-URI as it is then.
//= RFC 3261 section 16.4
//# the proxy MUST strip the maddr and any non-default port or transport
//# parameter and continue processing as if those values had not been
//# present in the request.
#[cold]
pub(super) fn strip_maddr(input: &Input<'_>, edits: &mut Edits) -> Uri {
    let mut uri = input.request.uri;
    if !uri.has_maddr {
        return uri;
    }
    let Some(maddr) = uri.param(input.message, b"maddr") else { return uri };
    let host = maddr.value.unwrap_or_default().of(input.message);
    if !super::is_own(input.tables, input.arrival, host, uri.port) {
        return uri;
    }
    edits.cut(maddr.whole);
    uri.has_maddr = false;
    if let Some(transport) = uri.param(input.message, b"transport") {
        edits.cut(transport.whole);
    }
    let default = if uri.scheme == Scheme::Sips { 5061 } else { 5060 };
    if uri.port_text.is_present() && uri.port != default {
        edits.cut(uri.port_text);
    }
    uri.port = default;
    uri
}
