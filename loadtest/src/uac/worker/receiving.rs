//! What a shard of the calling side makes of what comes: responses, which move their call to its next step or end it, and
//! requests of the callee.

use super::{Io, Response, Shard};
use crate::clock::now_ns;
use crate::scenario::Step;
use crate::seal::{Sealed, code_digits, put_seal};
use crate::sip::answer::{Echoed, Span, destination, echo, reason};
use crate::sip::message::{Malformed, Message, Method, Name, Rows, Start};
use crate::sip::text::Text;
use crate::sip::value::{address, cseq, param, split, split_first, tag, uri, uri_host_port};
use crate::sys::address::Address;
use crate::sys::batch::drain_errors;
use crate::tally::Kind;
use crate::uac::call::{Cancel, Direction, State};
use crate::uac::request::{ALLOW, SDP_MAX, Stationery};
use std::sync::Arc;

/// Receives of one socket in a row before the others get their turn.
const RECEIVES_MAX: usize = 4;

impl Shard {
    /// Takes what has come on a socket: its port and its lane have one number.
    pub(super) fn receive(&mut self, io: &mut Io, port: usize) {
        for _ in 0..RECEIVES_MAX {
            let Some(socket) = &self.lanes[port].socket else { return };
            if io.receiver.receive(socket).is_err() {
                let refused = &mut self.report.counts.refused;
                drain_errors(socket, &mut |_| *refused += 1);
                continue;
            }
            if io.receiver.filled() == 0 {
                return;
            }
            // Each is the answer to something.
            self.pace.note(2 * io.receiver.filled() as u64);
            let now = now_ns();
            for index in 0..io.receiver.filled() {
                let (octets, from) = io.receiver.datagram(index);
                let counts = &mut self.report.counts;
                if self.lanes[port].network.as_mut().is_some_and(|network| network.loses(&mut counts.on_purpose)) {
                    continue;
                }
                self.on_octets(port, octets, &mut io.rows, from, now);
            }
            self.flush();
            if !io.receiver.is_full() {
                return;
            }
        }
    }

    /// Takes what has come on a connection.
    pub(super) fn read(&mut self, io: &mut Io, token: u32) {
        let Some((port, from)) = self.streams.read(token, &mut io.inlet) else { return };
        let now = now_ns();
        while let Some(octets) = io.inlet.next_message() {
            self.pace.note(2);
            self.on_octets(port as usize, octets, &mut io.rows, from, now);
        }
        self.report.counts.malformed += u64::from(io.inlet.broken().is_some());
        self.streams.keep(from, &mut io.inlet);
        self.flush();
    }

    #[inline]
    fn on_octets(&mut self, port: usize, octets: &[u8], rows: &mut Rows, from: Address, now: u64) {
        match Message::read(octets, rows) {
            Ok(message) => match message.start {
                Start::Request(method, _) => self.on_request(port, &message, method, from, now),
                Start::Response(code) => self.on_response(port, &message, code, now),
            },
            Err(Malformed::KeepAlive) => {}
            Err(_) => self.report.counts.malformed += 1,
        }
    }

    /// Something wants to know something of us: a keep-alive by OPTIONS, the BYE of a callee that gave up.
    pub(super) fn on_request(&mut self, port: usize, message: &Message<'_>, method: Method, from: Address, now: u64) {
        self.report.counts.requests_received += 1;
        self.report.received.note(Kind::request(method));
        if method == Method::Ack {
            return;
        }
        self.check_seal(message);
        let slot = self.call_of(port, message);
        let in_dialog = message.value(Name::To).and_then(tag).is_some();
        let refreshes = matches!(method, Method::Invite | Method::Update);
        let offers = method == Method::Invite || (refreshes && !message.body.is_empty());
        let code = match slot {
            None if in_dialog => 481,
            //= RFC 3261 section 14.2
            //# A UAS that receives an INVITE on a dialog while an INVITE it had sent
            //# on that dialog is in progress MUST return a 491 (Request Pending)
            //# response to the received INVITE.
            // The same for offers in an UPDATE (RFC 3311 5.2).
            Some(slot) if offers && self.calls[slot as usize].is_waiting() && self.offers(slot) => 491,
            _ => 200,
        };
        let call = slot.filter(|_| code == 200).map(|slot| &mut self.calls[slot as usize]);
        let call = call.map(|call| {
            if offers {
                call.turn(Direction::answering(message.body));
            }
            (&*call, &self.ports[usize::from(call.port)].stationery)
        });
        let (mut room, mut contact_room) = ([0; SDP_MAX], [0; 128]);
        let (mut body, mut contact) = (Text::new(&mut room), Text::new(&mut contact_room));
        if let Some((call, stationery)) = call.filter(|_| refreshes) {
            stationery.put_contact(&mut contact, call);
            if offers {
                stationery.put_sdp(&mut body, call);
            }
        }
        let (body, contact) = (body.octets(), contact.octets());
        let content_type = if body.is_empty() { &[][..] } else { b"application/sdp" };
        let lane = &mut self.lanes[self.ports[port].lane];
        lane.make_room(&mut self.streams, &mut self.report.counts);
        let mut out = Text::new(lane.sender.room());
        let digits = code_digits(code);
        for part in [b"SIP/2.0 ", &digits[..], b" ", reason(code).as_bytes(), b"\r\n"] {
            out.put(part);
        }
        let echoed = echo(message, from, b"viahop-load", false, &mut out);
        let written = out.octets();
        let of = |span: fn(&Echoed) -> Span| echoed.as_ref().map_or(&[][..], |echoed| span(echoed).of(written));
        let sealed = Sealed {
            start: &digits,
            from: of(|echoed| echoed.from),
            to: of(|echoed| echoed.to),
            call_id: of(|echoed| echoed.call_id),
            cseq: of(|echoed| echoed.cseq),
            contact,
            content_type,
            body,
            ..Sealed::default()
        };
        let seal = sealed.digest();
        put_seal(&mut out, seal);
        if !contact.is_empty() {
            for part in [b"Contact: ", contact, b"\r\n"] {
                out.put(part);
            }
        }
        if refreshes || method == Method::Options {
            out.put(ALLOW);
        }
        out.put_body(content_type, body);
        match (echoed, destination(message, from), out.finish()) {
            (Some(_), Some(to), Some(len)) => {
                lane.sender.push(len, to);
                self.report.sent.note(Kind::response(code, method));
            }
            _ => self.report.counts.malformed += 1,
        }
        if let Some(slot) = slot {
            self.receive_request(slot, message, method, code, now);
        }
    }

    /// The call that a request of the callee belongs to.
    pub(super) fn call_of(&self, port: usize, message: &Message<'_>) -> Option<u32> {
        let stationery = &self.ports[port].stationery;
        let (slot, generation) = stationery.place_of(stationery.read_call_id(message.value(Name::CallId)?)?);
        let call = self.calls.get(slot as usize)?;
        let open = !matches!(call.state, State::Free | State::Lingering);
        (call.generation == generation && open).then_some(slot)
    }

    /// Takes a request of the callee into its call, if it is not a copy.
    pub(super) fn receive_request(&mut self, slot: u32, message: &Message<'_>, method: Method, code: u16, now: u64) {
        let Some((number, _)) = message.value(Name::CSeq).and_then(cseq) else { return };
        let config = Arc::clone(&self.config);
        let call = &mut self.calls[slot as usize];
        if number <= call.remote_cseq {
            self.report.counts.copies += 1;
            return;
        }
        call.remote_cseq = number;
        //= RFC 3261 section 12.2.2
        //# When a UAS receives a target refresh request, it MUST replace the
        //# dialog's remote target URI with the URI from the Contact header field
        //# in that request, if present.
        let refreshes = matches!(method, Method::Invite | Method::Update) && code == 200 && call.peer.is_known();
        if let Some(contact) = message.value(Name::Contact).filter(|_| refreshes) {
            call.peer.retarget(uri(split_first(contact).0));
        }
        let scenario = config.mix.scenario(usize::from(call.scenario));
        match scenario.steps.get(usize::from(call.step)) {
            Some(Step::Receive(receive)) if call.state == State::Receiving && receive.method == method => {
                self.on_received(slot, now);
            }
            // RFC 6665 4.1.2.4: a NOTIFY may well overtake the response to its SUBSCRIBE.
            _ if scenario.awaits(method, usize::from(call.step)) => call.early = Some(method),
            // What a callee may ask in any call, such as a server that refreshes its sessions or lets media take another way.
            _ if is_usual(method) => {}
            _ => {
                self.report.counts.unexpected += 1;
                self.list("unexpected", message, method.name().as_bytes());
            }
        }
    }

    /// The request that a step waits for is there.
    pub(super) fn on_received(&mut self, slot: u32, now: u64) {
        let Some(line) = self.line_of(slot) else { return };
        self.wheel.disarm(slot);
        let call = &mut self.calls[slot as usize];
        let took = now.saturating_sub(call.due_ns);
        call.step += 1;
        call.state = State::Pausing;
        let line = &mut self.report.lines[line];
        line.answered += 1;
        line.latency.record(took);
        self.run_step(slot, now, now);
    }

    pub(super) fn on_response(&mut self, port: usize, message: &Message<'_>, code: u16, now: u64) {
        self.report.counts.responses += 1;
        let method = message.value(Name::CSeq).and_then(cseq).map_or(Method::Other, |(_, method)| Method::read(method));
        self.report.received.note(Kind::response(code, method));
        let via = message.value(Name::Via).unwrap_or_default();
        let branch = param(split_first(via).0, b"branch").unwrap_or_default();
        let place = |(id, transaction)| {
            let (slot, generation) = self.ports[port].stationery.place_of(id);
            let call = self.calls.get(slot as usize).filter(|call| call.generation >= generation)?;
            Some((id, transaction, slot, generation, call))
        };
        let Some((id, transaction, slot, generation, call)) = Stationery::read_branch(branch).and_then(place) else {
            self.report.counts.strays += 1;
            return self.list("stray", message, via);
        };
        if call.generation != generation || call.state == State::Free {
            self.report.counts.late += 1;
            return;
        }
        let response = Response { message, code, slot, id, transaction, now };
        if let Err((what, row)) = self.check(port, &response) {
            self.report.counts.wrong += 1;
            return self.list(what, message, row);
        }
        if code > 100 {
            self.check_seal(message);
        }
        self.take(&response);
    }

    pub(super) fn take(&mut self, response: &Response<'_>) {
        let Response { message, code, slot, transaction, now, .. } = *response;
        let is_cancel = message.value(Name::CSeq).is_some_and(|cseq| cseq.ends_with(b"CANCEL"));
        let call = &mut self.calls[slot as usize];
        if is_cancel {
            if code >= 200 {
                call.cancel = Cancel::Answered;
            }
            return;
        }
        if !call.is_waiting() || transaction != call.transaction {
            if code >= 200 {
                self.report.counts.copies += 1;
                self.acknowledge(response);
            }
            return;
        }
        if code < 200 { self.on_provisional(slot, code, now) } else { self.on_final(response) }
    }

    pub(super) fn on_provisional(&mut self, slot: u32, code: u16, now: u64) {
        let config = Arc::clone(&self.config);
        let Some(send) = self.step(&config, slot) else { return };
        let call = &mut self.calls[slot as usize];
        let first = call.state == State::Calling;
        call.state = State::Proceeding;
        if send.method != Method::Invite {
            // RFC 3261 17.1.2.2: from here on Timer E is T2, and Timer F still runs.
            return;
        }
        if first {
            //= RFC 3261 section 17.1.1.2
            //# If the client transaction receives a provisional response while in
            //# the "Calling" state, it transitions to the "Proceeding" state.
            // No retransmissions and no Timer B from here on; but a caller does not wait for ever.
            (call.timer_ns, call.give_up_ns) = (u64::MAX, now + config.timers.ringing_ns);
            if let Some(after) = send.cancel_ns {
                call.cancel = Cancel::Wanted(now + after);
            }
            self.arm(slot);
        }
        let call = &mut self.calls[slot as usize];
        if code > 100 && call.status_ns == 0 {
            call.status_ns = now;
        }
    }

    pub(super) fn on_final(&mut self, response: &Response<'_>) {
        let Response { code, slot, now, .. } = *response;
        let config = Arc::clone(&self.config);
        let Some(send) = self.step(&config, slot) else { return self.release(slot) };
        let call = &mut self.calls[slot as usize];
        let took = now.saturating_sub(call.due_ns);
        call.timer_ns = u64::MAX;
        let invite = send.method == Method::Invite;
        let session = invite && code < 300 && !call.peer.is_known();
        let opens = invite || send.method == Method::Subscribe;
        let described = !opens || code >= 300 || self.learn(response);
        //= RFC 6076 section 4.3
        //# SRD for
        //# session requests ending in a failure MUST NOT be combined in the same
        //# result with successful requests.
        // So it is counted here, and only of the INVITE that opens the session; one whose first word is the 200 has it then.
        if session && described {
            let call = &self.calls[slot as usize];
            let status_ns = if call.status_ns == 0 { now } else { call.status_ns };
            self.report.ringing.record(status_ns.saturating_sub(call.due_ns));
        }
        if invite {
            self.acknowledge(response);
        }
        if !described {
            return self.fail(slot, "2xx without Contact", now);
        }
        if matches!(code, 401 | 407) && send.expect != code && self.authorize(send, response) {
            return;
        }
        if code != send.expect {
            return self.fail(slot, &code.to_string(), now);
        }
        if send.challenge && self.calls[slot as usize].credentials.is_empty() {
            return self.fail(slot, "not challenged", now);
        }
        let line =
            self.places[usize::from(self.calls[slot as usize].scenario)][usize::from(self.calls[slot as usize].step)];
        let line = &mut self.report.lines[line];
        line.answered += 1;
        line.latency.record(took);
        self.recent.record(took);
        self.wheel.disarm(slot);
        let call = &mut self.calls[slot as usize];
        call.step += 1;
        call.state = State::Pausing;
        call.credentials.clear();
        if send.method == Method::Bye {
            call.peer.forget();
        }
        self.run_step(slot, now, now);
    }

    /// Takes the dialog from a 2xx. `false`: it does not describe one; without Contact it is taken to be with whom the request
    /// was for, so that it can be ended.
    pub(super) fn learn(&mut self, response: &Response<'_>) -> bool {
        let call = &mut self.calls[response.slot as usize];
        let message = response.message;
        let to = message.value(Name::To).unwrap_or_default();
        let contact = message.value(Name::Contact).map(|contact| uri(split_first(contact).0));
        // A second INVITE renews the remote target and leaves the route set as it is (RFC 3261 12.2.1.2).
        if call.peer.is_known() {
            if let Some(target) = contact {
                call.peer.retarget(target);
            }
            return contact.is_some();
        }
        //= RFC 3261 section 12.1.2
        //# The route set MUST be set to the list of URIs in the Record-Route
        //# header field from the response, taken in reverse order and preserving
        //# all URI parameters.
        let mut room = [&[][..]; 32];
        let mut count = 0;
        for route in message.values(Name::RecordRoute).flat_map(split) {
            let Some(place) = room.get_mut(count) else { return false };
            *place = route;
            count += 1;
        }
        let routes = &room[..count];
        if let Some(first) = routes.last() {
            // A next hop that is a name stays the target: a load generator looks nothing up while it runs.
            let hop = uri_host_port(uri(first)).and_then(|(host, port)| address(host, port));
            call.next_hop = hop.map_or(self.target, Address::from);
        }
        call.opened_cseq = call.cseq;
        // The To of the response is that of the request, whose URI is also its Request-URI.
        call.peer.learn(tag(to).unwrap_or_default(), contact.unwrap_or(uri(to)), routes.iter().rev().copied());
        contact.is_some()
    }

    pub(super) fn fail(&mut self, slot: u32, reason: &str, now: u64) {
        let Some(line) = self.line_of(slot) else { return self.release(slot) };
        self.report.counts.failed += 1;
        self.open -= 1;
        self.count_failure(line, reason);
        let ended = reason == "481" || self.step(&self.config, slot).is_some_and(|send| send.method == Method::Bye);
        let call = &mut self.calls[slot as usize];
        if !call.peer.is_known() {
            return self.leave(slot, now);
        }
        // Only calls are ended with BYE.
        if ended || call.invite_cseq == 0 {
            return self.release(slot);
        }
        // Nobody is left behind in a call: it ends, but nobody counts how.
        call.closing = true;
        self.begin_request(slot, Method::Bye, now, now);
    }

    pub(super) fn count_failure(&mut self, line: usize, reason: &str) {
        let failures = &mut self.report.lines[line].failures;
        match failures.get_mut(reason) {
            Some(count) => *count += 1,
            None => drop(failures.insert(reason.into(), 1)),
        }
    }
}

/// Whether a callee may send this in a call without anybody waiting for it.
fn is_usual(method: Method) -> bool {
    use Method::{Info, Invite, Message, Notify, Options, Update};
    matches!(method, Info | Invite | Message | Notify | Options | Update)
}
