//! Whatever is no call: subscriptions with their NOTIFY, registrations, and requests that only want an answer.

use super::backend::Carries;
use super::{Request, Shard};
use crate::digest::Proof;
use crate::owners::Owner;
use crate::sip::message::{Message, Method, Name, Rows};
use crate::sip::text::{Text, from_hex};
use crate::sip::value::{address, cseq, param, split, split_first, uri, uri_host_port};
use crate::sys::address::Address;
use crate::tally::Kind;
use crate::uas::call::State;
use std::sync::Arc;

impl Shard {
    pub(super) fn on_subscribe(&mut self, request: &Request<'_>) {
        if request.in_dialog && request.call.is_none() {
            self.check_owner(request);
            let over = Owner::Alive { backend: self.backends[request.place].index, over: true };
            if self.shared.owners.of(request.digest) != over {
                return self.answer_unknown(request);
            }
            // A late copy of the one that ended the subscription.
            self.backends[request.place].counts.copies += 1;
            return self.answer(request, 200, Carries::Contact);
        }
        if !request.in_dialog && self.meets_its_fate(request) {
            return;
        }
        self.answer(request, 200, Carries::Contact);
        let slot = match request.call {
            Some(slot) if request.number <= self.calls[slot as usize].cseq => {
                self.backends[request.place].counts.copies += 1;
                return;
            }
            Some(slot) => slot,
            None if self.calls.len() - self.free.len() >= self.shared.config.calls_max => return,
            None => {
                let slot = self.occupy(request);
                self.backends[request.place].counts.subscriptions += 1;
                slot
            }
        };
        self.notify(slot, request);
    }

    /// Tells the subscriber the state, along the way its SUBSCRIBE came.
    pub(super) fn notify(&mut self, slot: u32, request: &Request<'_>) {
        let timers = self.shared.config.timers;
        let message = request.message;
        let expires = message.value(Name::Expires).and_then(crate::sip::value::number);
        let call = &mut self.calls[slot as usize];
        let (rows, mut before) = (std::mem::take(&mut call.rows), Rows::default());
        //= RFC 3261 section 12.1.1
        //# The route set MUST be set to the list of URIs in the Record-Route
        //# header field from the request, taken in order and preserving all URI
        //# parameters.
        //
        // Of the request that began the dialog: what comes later has none, and the NOTIFY before was sent along it.
        let routes: Vec<&[u8]> = match Message::read(&rows, &mut before) {
            Ok(notify) if request.in_dialog => notify.values(Name::Route).collect(),
            _ => message.values(Name::RecordRoute).flat_map(split).collect(),
        };
        let contact = split_first(message.value(Name::Contact).unwrap_or_default()).0;
        let hop = uri(routes.first().copied().unwrap_or(contact));
        let hop = uri_host_port(hop).and_then(|(host, port)| address(host, port)).map(Address::from);
        // On a stream along the connection it came on: a generator opens none to whoever may be named.
        let hop = hop.filter(|_| request.from.stream() == 0).unwrap_or(request.from);
        (call.cseq, call.last, call.to) = (request.number, expires == Some(0), hop);
        let mut out = Text::new(&mut self.scratch);
        self.backends[request.place].put_notify(&mut out, request, uri(contact), &routes, call.last);
        let len = out.finish();
        call.rows = rows;
        let Some(len) = len.filter(|_| !contact.is_empty()) else {
            self.backends[request.place].counts.malformed += 1;
            return self.release(slot);
        };
        call.rows.clear();
        call.rows.extend_from_slice(&self.scratch[..len]);
        (call.state, call.interval_ns) = (State::Notifying, timers.t1_ns);
        // Timer E is for datagrams (RFC 3261 17.1.2.2).
        call.due_ns = if call.to.stream() == 0 { request.now + timers.t1_ns } else { u64::MAX };
        call.give_up_ns = request.now + timers.give_up_ns();
        let due = call.due_ns.min(call.give_up_ns);
        self.wheel.arm(slot, due);
        self.send_notify(slot);
    }

    pub(super) fn send_notify(&mut self, slot: u32) {
        let call = &mut self.calls[slot as usize];
        let backend = &mut self.backends[call.backend];
        backend.make_room(&mut self.streams);
        let level = call.order.next(&backend.sender);
        backend.sender.room()[..call.rows.len()].copy_from_slice(&call.rows);
        backend.sender.push_at(call.rows.len(), call.to, level);
        backend.sent.note(Kind::request(Method::Notify));
    }

    /// A response: to a NOTIFY of ours, or to nothing.
    pub(super) fn on_response(&mut self, place: usize, message: &Message<'_>, code: u16, now: u64) {
        let method = message.value(Name::CSeq).and_then(cseq).map_or(Method::Other, |(_, method)| Method::read(method));
        self.backends[place].received.note(Kind::response(code, method));
        let branch = message.value(Name::Via).and_then(|via| param(via, b"branch")?.strip_prefix(b"z9hG4bK"));
        let slot = branch.and_then(|branch| self.by_key.get(&from_hex(branch)?).copied());
        let of_last = |slot: &u32| {
            let call = &self.calls[*slot as usize];
            call.backend == place
                && branch.and_then(|branch| branch.get(16..)) == Some(format!("{:x}", call.cseq).as_bytes())
        };
        let Some(slot) = slot.filter(of_last) else {
            self.backends[place].counts.responses += 1;
            return;
        };
        let call = &mut self.calls[slot as usize];
        if code < 200 || call.state != State::Notifying {
            return;
        }
        self.backends[place].counts.notified += u64::from(code == 200);
        if call.last || code >= 300 {
            return self.release(slot);
        }
        (call.state, call.due_ns) = (State::Up, now + self.shared.config.silence_max_ns);
        let due = call.due_ns;
        self.wheel.arm(slot, due);
    }

    pub(super) fn on_other(&mut self, request: &Request<'_>) {
        if request.in_dialog {
            self.check_owner(request);
            if request.call.is_none() {
                return self.answer_unknown(request);
            }
        } else if self.meets_its_fate(request) {
            return;
        }
        let counts = &mut self.backends[request.place].counts;
        match request.method {
            Method::Register => return self.on_register(request),
            Method::Options => counts.options += 1,
            _ => {}
        }
        self.answer(request, 200, Carries::Contact);
    }

    pub(super) fn on_register(&mut self, request: &Request<'_>) {
        let shared = Arc::clone(&self.shared);
        let proof = shared.config.realm.as_ref().map_or(Proof::Given, |realm| {
            realm.check(request.message.value(Name::Authorization), request.method.name(), request.digest)
        });
        let counts = &mut self.backends[request.place].counts;
        let (count, code, carries) = match proof {
            Proof::Given => (&mut counts.registers, 200, Carries::Contact),
            //= RFC 3261 section 10.3
            //# A registrar SHOULD authenticate the UAC.
            Proof::Missing => (&mut counts.challenged, 401, Carries::Challenge),
            // Not a second 401, so that a caller with the wrong password is not asked for ever.
            Proof::Wrong => (&mut counts.forbidden, 403, Carries::Nothing),
        };
        *count += 1;
        self.answer(request, code, carries);
    }
}
