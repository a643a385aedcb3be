//! The data path: one datagram in, one verdict out.
//!
//! ```text
//! datagram ─► noise? keep-alive? STUN? ─► drop, or answer
//!         └─► scan ─► start line
//!               ├─ response: ours by the MAC in its top Via? ─► pop the Via ─► to the flow in the token
//!               └─ request:  valid? ─► for us? ─► route ─► push a Via ─► to the backend
//!                            └─ no: answer 4xx/5xx, an ACK never
//! ```
//!
//! Never blocks, allocates, locks or reads a clock. Everything it decides by is in the arguments, but for the router's
//! memory, so the same datagram in the same circumstances always leaves as the same octets.

use crate::dataplane::blame::{self, Blame};
use crate::dataplane::counters::Kind;
use crate::dataplane::frame;
use crate::dataplane::limits::{FRAME_MAX, PAYLOAD_MAX};
use crate::dataplane::overload::{self, Shedding};
use crate::dataplane::rewrite::edit::Edits;
use crate::dataplane::rewrite::pop::{self, Below, Top};
use crate::dataplane::rewrite::reply::{self, NoReply, Reply};
use crate::dataplane::rewrite::via::{self, Ours, Received};
use crate::dataplane::room::Room;
use crate::dataplane::route::record::{Passing, record, welcomes_keep_alives};
use crate::dataplane::route::reply_path::{self, SentBy};
use crate::dataplane::route::routes::Routes;
use crate::dataplane::route::{self, Arrival, Decision, Input, Router};
use crate::dataplane::scan::{Scan, Scanner, Span};
use crate::dataplane::shared;
use crate::dataplane::sip::grammar;
use crate::dataplane::sip::header::HeaderKind;
use crate::dataplane::sip::start_line::{self, Method, StartLine, StartLineError};
use crate::dataplane::sip::via::Via;
use crate::dataplane::stun;
use crate::dataplane::tables::Tables;
use crate::dataplane::text::Text;
use crate::dataplane::token;
use crate::dataplane::transport::Transport;
use crate::dataplane::validate::{self, Refusal, Request};
use crate::dataplane::verdict::{Answer, DropReason, Sender, Verdict};
use std::net::{IpAddr, SocketAddr};

const DRAINING: Refusal = Refusal::new(503, "Draining");
const LOOP: Refusal = Refusal::new(482, "Loop Detected");

/// The version as it is sent.
const SIP_VERSION: &[u8; 7] = b"SIP/2.0";

/// The ports of the shard's egress sockets, by address family.
#[derive(Clone, Copy, Debug, Default)]
pub struct EgressPorts {
    /// Port of the IPv4 socket, if there is one.
    pub v4: Option<u16>,
    /// Port of the IPv6 socket, if there is one.
    pub v6: Option<u16>,
}

/// A shard's data path, with the little that it keeps from one datagram to the next.
#[derive(Debug)]
pub struct Dispatcher {
    scanner: Scanner,
    egress: EgressPorts,
    router: Router,
    scan: Scan,
    request: Request,
    edits: Edits,
    /// What was decided last, for explanations.
    decision: Option<Decision>,
    /// What was refused last, for those who ask at once: it stays when other messages follow.
    refusal: Option<Refusal>,
    /// 100s whose client Via was rebuilt.
    pub vias_rebuilt: u64,
    /// What is refused because the shard cannot carry it.
    pub shedding: Shedding,
    /// Requests that were.
    pub shed: u64,
}

impl Dispatcher {
    /// A data path that sends to backends from these ports.
    pub fn new(scanner: Scanner, egress: EgressPorts) -> Dispatcher {
        Dispatcher {
            scanner,
            egress,
            router: Router::default(),
            scan: Scan::default(),
            request: Request::default(),
            edits: Edits::default(),
            decision: None,
            refusal: None,
            vias_rebuilt: 0,
            shedding: Shedding::Nothing,
            shed: 0,
        }
    }

    /// What the routing of the last request decided, if it came that far.
    pub fn decision(&self) -> Option<Decision> {
        self.decision
    }

    /// What the last message was refused for, if `verdict` is what became of it.
    pub fn refused(&self, verdict: Verdict) -> Option<Refusal> {
        self.refusal.filter(|refusal| match verdict {
            Verdict::Reply { answer, .. } => answer == Answer::Status(refusal.code),
            Verdict::Drop(reason) => {
                matches!(reason, DropReason::AckRefused | DropReason::MalformedRequest | DropReason::ReplyTooLarge)
            }
            Verdict::Forward { .. } => false,
        })
    }

    /// Where the last message is malformed, if `verdict`, which became of it, says that it is. Few messages are asked about.
    #[cold]
    pub fn blame(&self, message: &[u8], verdict: Verdict) -> Option<Blame> {
        if verdict == Verdict::Drop(DropReason::MalformedResponse) {
            return Some(blame::of_response(message, &self.scan));
        }
        let refusal = self.refused(verdict).filter(|refusal| blame::MALFORMED.contains(&refusal.code))?;
        Some(blame::of_request(message, &self.scan, refusal))
    }

    /// The Call-ID of the last message, which `message` is, if it has one.
    pub fn call_id<'a>(&self, message: &'a [u8]) -> Option<&'a [u8]> {
        self.scan.value(HeaderKind::CallId).map(|value| grammar::trim(value.of(message)))
    }

    /// Whether the last message says how long its body is.
    #[inline]
    pub fn says_length(&self) -> bool {
        self.scan.has(HeaderKind::ContentLength)
    }

    /// The start line of the last message, which `message` is.
    pub fn start_line<'a>(&self, message: &'a [u8]) -> &'a [u8] {
        self.scan.start_line.of(message)
    }

    /// The router.
    pub fn router(&mut self) -> &mut Router {
        &mut self.router
    }

    /// Decides what happens to the datagram in `room`, and leaves there the verdict and what is to be sent. Returns what it was.
    pub fn on_datagram(&mut self, tables: &Tables, now_ms: u64, arrival: Arrival, room: &mut Room<'_>) -> Kind {
        self.decision = None;
        if !route::is_somebody(arrival.from) {
            room.verdict = Verdict::Drop(DropReason::BadSource);
            return Kind::NoMessage;
        }
        if let Some(verdict) = no_sip(&arrival, room) {
            room.verdict = verdict;
            return Kind::NoMessage;
        }
        self.scanner.scan(room.input, &mut self.scan);
        match start_line::parse(room.input, self.scan.start_line) {
            Ok(StartLine::Response(code)) => {
                if let Err(reason) = self.on_response(tables, now_ms, code, &arrival, room) {
                    room.verdict = Verdict::Drop(reason);
                }
                Kind::Response(code)
            }
            Ok(line @ StartLine::Request { method, .. }) => {
                self.on_request(tables, now_ms, Ok(line), &arrival, room);
                Kind::Request(method)
            }
            Err(StartLineError::Response) => {
                room.verdict = Verdict::Drop(DropReason::MalformedResponse);
                Kind::Response(0)
            }
            Err(StartLineError::NotSip) => {
                room.verdict = Verdict::Drop(DropReason::NotSip);
                Kind::NoMessage
            }
            Err(error) => {
                self.on_request(tables, now_ms, Err(error), &arrival, room);
                Kind::Request(Method::Other)
            }
        }
    }

    fn on_request(
        &mut self,
        tables: &Tables,
        now_ms: u64,
        line: Result<StartLine, StartLineError>,
        arrival: &Arrival,
        room: &mut Room<'_>,
    ) {
        if let Err(refusal) = self.handle(tables, now_ms, line, arrival, room) {
            room.verdict = self.refuse_unless_ack(tables, refusal, arrival, room);
        }
    }

    #[inline(always)]
    fn handle(
        &mut self,
        tables: &Tables,
        now_ms: u64,
        line: Result<StartLine, StartLineError>,
        arrival: &Arrival,
        room: &mut Room<'_>,
    ) -> Result<(), Refusal> {
        validate::request(room.input, &self.scan, line, &tables.policy, &mut self.request)?;
        if let Some(verdict) = self.for_us(tables, arrival, room)? {
            room.verdict = verdict;
            return Ok(());
        }
        let (message, scan, request) = (&*room.input, &self.scan, &self.request);
        let transaction = via::transaction(&tables.keys, message, request);
        if request.method == Method::Invite {
            self.router.expect(transaction);
        }
        // What repeats an INVITE that went on goes on as well: its server has the call.
        if self.shedding.refuses(message, request) && !self.router.has_open(transaction, now_ms) {
            self.shed += 1;
            return Err(overload::REFUSAL);
        }
        self.edits.clear();
        let input = Input { tables, message, scan, request, arrival, transaction, now_ms };
        let mut place = None;
        let decision = self.router.route(&input, &mut self.edits, &mut place)?;
        let forwarded = self.forward(tables, transaction, decision, arrival, room);
        // Kept for explanations, and only now: a copy of what was just written has to wait for it.
        self.decision = place;
        // An INVITE that is refused after all rings nowhere.
        forwarded.inspect_err(|_| self.router.settle(transaction, now_ms))
    }

    /// What needs no backend: an ACK for an answer of ours, an OPTIONS that asks us, a stranger on the egress port.
    #[inline(always)]
    fn for_us(&mut self, tables: &Tables, arrival: &Arrival, room: &mut Room<'_>) -> Result<Option<Verdict>, Refusal> {
        let (message, request) = (&*room.input, &self.request);
        if arrival.listener.is_none() && !tables.is_inside(arrival.from) {
            return Ok(Some(Verdict::Drop(DropReason::StrangerOnEgress)));
        }
        //= RFC 3261 section 16.3
        //# If a loop is detected, the element MAY return a 482 (Loop Detected)
        //# response.
        if request.via.token.is_present() && via::is_ours(&tables.keys, message, &request.via) {
            // The optional check of RFC 3261 16.3 item 4: a request whose topmost Via is ours came back without passing anybody who
            // would have added a Via: a backend's address is ours.
            return Err(LOOP);
        }
        //= RFC 3261 section 8.2.7
        //# A stateless UAS MUST ignore ACK requests.
        if request.method == Method::Ack {
            let tag = request.to.tag.of(message);
            let from_tag = request.from.tag.of(message);
            let (call_id, branch) = (request.call_id.of(message), request.via.branch.of(message));
            let ours = token::is_own_to_tag(tag, &tables.keys, call_id, request.cseq, from_tag, branch);
            return Ok(ours.then_some(Verdict::Drop(DropReason::AckForOwnReply)));
        }
        let uri = &request.uri;
        let asks_us = request.method == Method::Options
            && !uri.userinfo.is_present()
            && !self.scan.has(HeaderKind::Route)
            && route::is_own(tables, arrival, uri.host.of(message), uri.port);
        if !asks_us {
            return Ok(None);
        }
        if tables.draining {
            return Err(DRAINING);
        }
        //= RFC 3261 section 8.2.2.3
        //# If a UAS does not understand an option-tag listed in a Require header
        //# field, it MUST respond by generating a response with status code 420
        //# (Bad Extension).
        if validate::required_tags(message, &self.scan).next().is_some() {
            return Err(validate::BAD_EXTENSION);
        }
        // Where it cannot be answered, that is not for what was refused before.
        self.refusal = None;
        let ok = Reply { code: 200, reason: "OK", lists_unsupported: None };
        Ok(Some(self.reply(tables, &ok, arrival, room)))
    }

    /// Puts our Via on top and makes the other changes a proxy makes (RFC 3261 16.6).
    #[inline(always)]
    fn forward(
        &mut self,
        tables: &Tables,
        transaction: u64,
        decision: &Decision,
        arrival: &Arrival,
        room: &mut Room<'_>,
    ) -> Result<(), Refusal> {
        let egress_port = if decision.to.is_ipv4() { self.egress.v4 } else { self.egress.v6 };
        if decision.from == Sender::Egress && egress_port.is_none() {
            room.verdict = Verdict::Drop(DropReason::NoEgress);
            return Ok(());
        }
        let request = &self.request;
        let sent_by = reply_path::sent_by(tables, decision);
        let mark = match (sent_by, arrival.listener) {
            (SentBy::Egress(start) | SentBy::Connect(start, _) | SentBy::Switched(start), Some(listener)) => {
                Some(via::mark(&tables.keys, room.input, &self.scan, request, listener, start))
            }
            _ => None,
        };
        if (request.via.comma != 0 || self.scan.is_repeated(HeaderKind::Via))
            && mark.is_some_and(|mark| has_come_round(tables, room.input, &self.scan, arrival, &mark))
        {
            return Err(LOOP);
        }
        //= RFC 3261 section 16.6
        //# If the copy contains a Max-Forwards header field, the proxy MUST
        //# decrement its value by one (1).
        if request.max_forwards.is_present() {
            count_down(room.input, request.max_forwards, request.hops_left);
        }
        let message = &*room.input;
        let by_stream = decision.from.is_stream();
        let start = if by_stream { reply_path::via_start(tables, decision.from) } else { via::START };
        let ours = Ours { sent_by, start, egress_port: egress_port.unwrap_or_default(), transaction, mark };
        let end = request.end as usize;
        // What is to be written of a length; the message says it itself, or goes out in a datagram.
        let length = if by_stream { fit_for_stream(message, &self.scan, end, &mut self.edits)? } else { None };
        if by_stream
            && decision.from.is_inward()
            && let Some(reason) = shared::objection(message, &self.scan, request)
        {
            return Err(Refusal::new(400, reason));
        }
        //= RFC 3261 section 7.1
        //# The SIP-Version string is case-insensitive, but implementations MUST
        //# send upper-case.
        send_upper_case(&mut self.edits, message, request.version);
        let mut head = Text::new(room.head);
        let headers = self.scan.headers as usize;
        let start = self.scan.start_line.start as usize;
        let behind_start_line = self.edits.apply_until(message, start, headers, &mut head);
        via::write(&mut head, &tables.keys, message, request, &ours, &reply_path::response_flow(request, arrival));
        // Behind our Via, above every Record-Route and Path of others (RFC 3261 16.6 item 4, RFC 3327 5.2).
        let passing = Passing { tables, message, scan: &self.scan, request, arrival, decision };
        record(&mut head, &passing);
        if request.via.keep.is_present() && welcomes_keep_alives(&passing) {
            let seconds = if arrival.stream.is_some() { tables.policy.stream_keep_s } else { via::DATAGRAM_KEEP_S };
            via::answer_keep(&mut self.edits, &request.via, seconds);
        }
        if request.via.has_overload {
            via::cut_overload(&mut self.edits, message, &request.via);
        }

        //= RFC 3261 section 16.6
        //# If the copy does not contain a Max-Forwards header field, the proxy
        //# MUST add one with a field value, which SHOULD be 70.
        if !request.max_forwards.is_present() {
            head.put(b"Max-Forwards: 70\r\n");
        }
        if let Some(length) = length {
            put_length(&mut head, length);
        }
        let tail = match Received::of(message, &request.via, arrival.from) {
            Some(received) => received.apply(&mut self.edits, message, behind_start_line, &mut head),
            None => self.edits.apply(message, behind_start_line, &mut head),
        };
        const TOO_LARGE: Refusal = Refusal::new(513, "Message Too Large");
        let most = if by_stream { stream_max(tables, decision.backend) } else { PAYLOAD_MAX };
        room.head_len = head.finished_len().filter(|len| len + (end - tail) <= most).ok_or(TOO_LARGE)?;
        room.tail = tail..end;
        room.verdict = Verdict::Forward { to: decision.to, from: decision.from, backend: decision.backend };
        Ok(())
    }

    /// The same, of what a stream holds that is no message: whoever reads the stream closes it.
    pub fn on_broken(
        &mut self,
        tables: &Tables,
        refusal: Option<Refusal>,
        arrival: Arrival,
        room: &mut Room<'_>,
    ) -> Kind {
        self.decision = None;
        self.scanner.scan(room.input, &mut self.scan);
        let kind = match start_line::parse(room.input, self.scan.start_line) {
            Ok(StartLine::Request { method, .. }) => Kind::Request(method),
            Ok(StartLine::Response(code)) => Kind::Response(code),
            Err(_) => Kind::NoMessage,
        };
        room.verdict = match refusal.filter(|_| matches!(kind, Kind::Request(_))) {
            Some(refusal) => self.refuse_unless_ack(tables, refusal, &arrival, room),
            None => Verdict::Drop(DropReason::BadFrame),
        };
        kind
    }

    /// Writes into `out` what the next hop of `request`, which we were to forward, would have answered; returns its length.
    /// As its answer it finds its way back by our own Via. `None`: it is an ACK, or no request.
    ///
    //= RFC 3261 section 16.9
    //# If the transport layer notifies a proxy of an error when it tries to
    //# forward a request (see Section 18.4), the proxy MUST behave as if the
    //# forwarded request received a 503 (Service Unavailable) response.
    pub fn answer_for_next_hop(
        &mut self,
        tables: &Tables,
        refusal: Refusal,
        request: &[u8],
        next_hop: SocketAddr,
        out: &mut [u8],
    ) -> Option<usize> {
        self.scanner.scan(request, &mut self.scan);
        let Ok(StartLine::Request { method, .. }) = start_line::parse(request, self.scan.start_line) else {
            return None;
        };
        if method == Method::Ack {
            return None;
        }
        let via = validate::first_via(request, &self.scan);
        let Refusal { code, reason } = refusal;
        let reply = Reply { code, reason, lists_unsupported: None };
        reply::write(out, &tables.keys, request, &self.scan, via.as_ref(), next_hop, &reply).ok()
    }

    /// Where the client at `host`, whose connection is gone, is reached by another, if `request`, which was to go down the first, belongs
    /// to a dialog and says so: its next hop is at that host, over TCP. Who is behind a NAT knows itself by another address, and a
    /// registration is reached by its flow or not at all (RFC 5626 5.3.1).
    ///
    //= RFC 3261 section 16.6
    //# Otherwise, the proxy MUST apply
    //# the procedures to the first value in the Route header field, if
    //# present, else the Request-URI.
    pub fn next_hop_at(&mut self, tables: &Tables, request: &[u8], host: IpAddr) -> Option<SocketAddr> {
        self.scanner.scan(request, &mut self.scan);
        let line = start_line::parse(request, self.scan.start_line);
        validate::request(request, &self.scan, line, &tables.policy, &mut self.request).ok()?;
        let routes = Routes::read(request, &self.scan).filter(|_| self.request.to.tag.is_present())?;
        let uri = routes.first().map_or(self.request.uri, |first| first.uri);
        let next =
            route::address_over_tcp(request, &uri).filter(|next| next.ip() == host && route::is_somebody(*next))?;
        (!tables.is_own_address(next) && !tables.by_address.contains_key(&next)).then_some(next)
    }

    /// Takes our Via off a response and sends it where the token in that Via says (RFC 3261 16.11, 18.1.2, 18.2.2).
    fn on_response(
        &mut self,
        tables: &Tables,
        now_ms: u64,
        code: u16,
        arrival: &Arrival,
        room: &mut Room<'_>,
    ) -> Result<(), DropReason> {
        let (message, scan) = (&*room.input, &self.scan);
        let readable = scan.faults.is_empty() && validate::single_headers_stand_once(scan).is_ok();
        //= RFC 3261 section 18.3
        //# If the message is a response, it MUST be discarded.
        let Some((row, end)) = scan.row(HeaderKind::Via).zip(validate::end(message, scan).ok()) else {
            return Err(DropReason::MalformedResponse);
        };
        if !readable {
            return Err(DropReason::MalformedResponse);
        }
        //= RFC 3261 section 16.11
        //# If the address does not match the proxy, the message MUST be silently
        //# discarded.
        let Top { token, digest, comma, value_start } = pop::top(message, row)?;
        if code > 100
            && let Some(digest) = digest
        {
            self.router.expect(digest);
        }
        let listener_known =
            |flow: &token::Flow| flow.listener.is_none_or(|index| (index as usize) < tables.listeners.len());
        let flow = digest.and_then(|digest| token.verify(&tables.keys, digest)).filter(listener_known);
        let Some((flow, digest)) = flow.zip(digest) else { return Err(DropReason::ResponseForged) };
        if code > 100
            && scan.value(HeaderKind::CSeq).is_some_and(|cseq| cseq.of(message).trim_ascii_end().ends_with(b"INVITE"))
        {
            self.router.answered(tables, digest, code, now_ms);
        }
        let mut next = Via::default();
        let rebuild = match pop::below(message, scan, row, comma, &mut next) {
            Below::Via if pop::is_answered_at(message, &next, &flow) => None,
            Below::Via => return Err(DropReason::ResponseForged),
            Below::Unreadable => return Err(DropReason::MalformedResponse),
            //= RFC 3261 section 16.7
            //# If no Via header field values remain in the response, the response was
            //# meant for this element and MUST NOT be forwarded.
            Below::Nothing => match pop::lost_via(tables, message, scan, &token, digest).filter(|_| code == 100) {
                Some(rebuild) => Some(rebuild),
                None => return Err(DropReason::ResponseForUs),
            },
        };

        //= RFC 3261 section 16.11
        //# the proxy MUST remove that header field value from the response and
        //# forward the result to the location indicated in the next Via header
        //# field value. The proxy MUST NOT add to, modify, or remove the message
        //# body.
        //
        // Our value alone where another follows in the same row, the whole row with its line end where none does.
        let (cut_start, cut_end) = match comma {
            0 => (row.start as usize, row.end as usize + 2),
            comma => (value_start as usize, comma as usize + 1),
        };
        let start = scan.start_line.start as usize;
        let end = end as usize;
        let backend = tables.by_address.get(&arrival.from).copied();
        if flow.stream.is_some() {
            let cut = Span::new(cut_start, cut_end);
            self.edits.clear();
            if next.has_overload {
                via::cut_overload(&mut self.edits, message, &next);
            }
            let (from, head_len, tail) =
                self.respond_by_stream(tables, &flow, rebuild, cut, message, end, room.head)?;
            (room.head_len, room.tail) = (head_len, tail..end);
            room.verdict = Verdict::Forward { to: flow.to, from, backend };
            return Ok(());
        }
        let mut head = Text::new(room.head);
        //= RFC 3261 section 7.1
        //# The SIP-Version string is case-insensitive, but implementations MUST
        //# send upper-case.
        head.put(SIP_VERSION).put(message.get(start + SIP_VERSION.len()..cut_start).unwrap_or_default());
        if let Some(rebuild) = rebuild {
            pop::write_rebuilt_via(&mut head, rebuild, &flow, transport_of(tables, &flow));
            self.vias_rebuilt += 1;
        }
        let tail = match next.has_overload {
            true => via::copy_without_overload(&mut self.edits, message, &next, cut_end, &mut head),
            false => cut_end,
        };
        let len = head.finished_len().filter(|len| len + end.saturating_sub(tail) <= PAYLOAD_MAX);
        room.head_len = len.ok_or(DropReason::TooLarge)?;
        room.tail = tail..end;
        //= RFC 3581 section 4
        //# The response MUST be sent from the same address and port that the
        //# corresponding request was received on.
        let to = flow.to;
        room.verdict = match flow.listener {
            Some(index) => Verdict::Forward { to, from: Sender::Listener { index, local: flow.local }, backend },
            None => Verdict::Forward { to, from: Sender::Egress, backend },
        };
        Ok(())
    }

    /// The same, down the connection that the request came on: a response that ends at `end` and loses `cut`, our Via, and is
    /// changed as the edits say already.
    /// Returns how much of `head` is to be sent, and where the message goes on.
    #[cold]
    #[expect(clippy::too_many_arguments, reason = "the second half of a function that has them all at hand")]
    fn respond_by_stream(
        &mut self,
        tables: &Tables,
        flow: &token::Flow,
        rebuild: Option<token::Rebuild<'_>>,
        cut: Span,
        message: &[u8],
        end: usize,
        head: &mut [u8],
    ) -> Result<(Sender, usize, usize), DropReason> {
        let id = flow.stream.ok_or(DropReason::ResponseForged)?;
        if leads_inside(tables, flow) && shared::objection_to_response(message, &self.scan).is_some() {
            return Err(DropReason::MalformedResponse);
        }
        let length = fit_for_stream(message, &self.scan, end, &mut self.edits);
        let length = length.map_err(|_| DropReason::MalformedResponse)?;
        let mut head = Text::new(head);
        let start = self.scan.start_line.start as usize;
        send_upper_case(&mut self.edits, message, Span::new(start, start + SIP_VERSION.len()));
        let headers = self.scan.headers as usize;
        let at = self.edits.apply_until(message, start, headers, &mut head);
        if let Some(length) = length {
            put_length(&mut head, length);
        }
        if let Some(rebuild) = rebuild {
            pop::write_rebuilt_via(&mut head, rebuild, flow, transport_of(tables, flow));
            self.vias_rebuilt += 1;
        }
        self.edits.cut(cut);
        let tail = self.edits.apply(message, at, &mut head);
        let len = head.finished_len().filter(|len| len + end.saturating_sub(tail) <= FRAME_MAX);
        Ok((Sender::Stream { id, listener: flow.listener }, len.ok_or(DropReason::TooLarge)?, tail))
    }

    #[cold]
    fn refuse_unless_ack(
        &mut self,
        tables: &Tables,
        refusal: Refusal,
        arrival: &Arrival,
        room: &mut Room<'_>,
    ) -> Verdict {
        self.refusal = Some(refusal);
        // RFC 3261 8.2.7: there is no response to ACK, whatever is wrong with it, be it the rest of its start line.
        let line = self.scan.start_line.of(room.input);
        if line.trim_ascii_start().split(|&octet| grammar::is_blank(octet)).next() == Some(b"ACK") {
            return Verdict::Drop(DropReason::AckRefused);
        }
        let Refusal { code, reason } = refusal;
        //= RFC 3261 section 16.3
        //# The response MUST include an Unsupported (Section
        //# 20.40) header field listing those option-tags the element did not
        //# understand.
        let lists_unsupported = (code == 420).then_some(&tables.policy);
        self.reply(tables, &Reply { code, reason, lists_unsupported }, arrival, room)
    }

    #[cold]
    fn reply(&mut self, tables: &Tables, reply: &Reply<'_>, arrival: &Arrival, room: &mut Room<'_>) -> Verdict {
        let via = validate::first_via(room.input, &self.scan);
        let to = reply_path::response_address(via.as_ref(), arrival.from);
        let source = arrival.from;
        match reply::write(room.head, &tables.keys, room.input, &self.scan, via.as_ref(), source, reply) {
            Ok(len) => {
                room.head_len = len;
                room.tail = 0..0;
                Verdict::Reply { to, answer: Answer::Status(reply.code) }
            }
            Err(NoReply::NobodyToAnswer) => Verdict::Drop(DropReason::MalformedRequest),
            Err(NoReply::TooLarge) => Verdict::Drop(DropReason::ReplyTooLarge),
        }
    }
}

/// The verdict on a datagram that is no SIP message by its first octets.
#[inline(always)]
fn no_sip(arrival: &Arrival, room: &mut Room<'_>) -> Option<Verdict> {
    let first = *match room.input.first() {
        Some(first) => first,
        None => return Some(Verdict::Drop(DropReason::Empty)),
    };
    if first.is_ascii_alphabetic() && room.input.len() > 1 {
        return None;
    }
    //= RFC 5626 section 4.4.1
    //# This approach MUST only be used with connection oriented transports
    //# such as TCP or SCTP
    //
    // So in datagrams line ends are noise that keeps a NAT binding open.
    if room.input.len() == 1 || room.input.iter().all(|octet| matches!(octet, b'\r' | b'\n' | 0 | b' ')) {
        return Some(Verdict::Drop(DropReason::KeepAlive));
    }
    if !stun::looks_like_stun(first) {
        return None;
    }
    let mut out = Text::new(room.head);
    let answered = stun::answer(room.input, arrival.from, &mut out).and_then(|()| out.finished_len());
    Some(match answered {
        Some(len) => {
            room.head_len = len;
            Verdict::Reply { to: arrival.from, answer: Answer::Stun }
        }
        None => Verdict::Drop(DropReason::StunMalformed),
    })
}

/// RFC 3261 7.1: `version` is compared without regard to case, and sent in upper case.
#[inline(always)]
fn send_upper_case(edits: &mut Edits, message: &[u8], version: Span) {
    if version.of(message) != SIP_VERSION {
        edits.replace(version, |text| {
            text.put(SIP_VERSION);
        });
    }
}

/// RFC 3261 16.6 item 3. The number never gets longer; where it gets shorter, blanks take the place of digits in front of
/// it, which are white space behind the colon.
#[inline(always)]
fn count_down(message: &mut [u8], digits: Span, left: u8) {
    let Some(place) = message.get_mut(digits.start as usize..digits.end as usize) else { return };
    // One digit changes, or the last two do.
    match place {
        [.., ones @ b'1'..=b'9'] => return *ones -= 1,
        [.., tens @ b'2'..=b'9', ones @ b'0'] => return (*tens, *ones) = (*tens - 1, b'9'),
        _ => {}
    }
    let mut number = left.saturating_sub(1);
    let mut more = true;
    for octet in place.iter_mut().rev() {
        *octet = if more { b'0' + number % 10 } else { b' ' };
        number /= 10;
        more = number != 0;
    }
}

/// Sees to it that a message which ends at `end` is one message to everybody who reads it from a stream: nothing in it that
/// some read as another header, and one plain Content-Length. Returns the length that is to be written, if what the
/// message says of it itself is cut or was never there.
//= RFC 3261 section 16.6
//# If the request will be sent to the next hop using a stream-
//# based transport and the copy contains no Content-Length header
//# field, the proxy MUST insert one with the correct value for the
//# body of the request (see Section 20.14).
#[cold]
fn fit_for_stream(message: &[u8], scan: &Scan, end: usize, edits: &mut Edits) -> Result<Option<usize>, Refusal> {
    if let Some(reason) = frame::misleads(message, scan) {
        return Err(Refusal::new(400, reason));
    }
    let body = end - scan.body as usize;
    if frame::says_length(message, scan, body) {
        return Ok(None);
    }
    if let Some(row) = scan.row(HeaderKind::ContentLength) {
        // The row and its line end, which is CRLF: anything else is refused before.
        edits.cut(Span { start: row.start, end: row.end + 2 });
    }
    Ok(Some(body))
}

fn put_length(out: &mut Text<'_>, length: usize) {
    out.put(b"Content-Length: ").put_number(length as u32).put(b"\r\n");
}

/// Octets of the longest request to this backend over a stream.
#[cold]
fn stream_max(tables: &Tables, backend: Option<u16>) -> usize {
    let backend = backend.and_then(|index| tables.backends.get(index as usize));
    backend.map_or(FRAME_MAX, |backend| backend.reach.message_max as usize)
}

/// The transport of a client's flow.
fn transport_of(tables: &Tables, flow: &token::Flow) -> Transport {
    let otherwise = if flow.stream.is_some() { Transport::Tcp } else { Transport::Udp };
    flow.listener.map_or(otherwise, |index| tables.transport(index))
}

/// Whether a server is at the other end of a flow: it came by a connection of ours, or from inside.
fn leads_inside(tables: &Tables, flow: &token::Flow) -> bool {
    let token::Flow { listener, to: from, local, stream } = *flow;
    listener.is_none() || route::is_from_inside(tables, &Arrival { from, listener, local, stream })
}

/// Whether this request from outside passed us before, and nothing that we decide by has changed since. From inside it may
/// well be the same: a proxy that sends a call out through us leaves a Request-URI as it is.
#[cold]
fn has_come_round(tables: &Tables, message: &[u8], scan: &Scan, arrival: &Arrival, mark: &via::Mark) -> bool {
    !route::is_from_inside(tables, arrival) && via::has_mark(&tables.keys, message, scan, mark)
}
