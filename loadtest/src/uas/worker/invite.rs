//! Calls: INVITE and what belongs to it, as a callee sees them.

use super::backend::{Carries, to_tag};
use super::{Request, Shard};
use crate::owners::Owner;
use crate::sip::answer::{destination, echo};
use crate::sip::message::Name;
use crate::sip::text::Text;
use crate::uas::call::State;
use crate::uas::{Manner, NEW_CALLS_MAX, NewCall};
use std::sync::PoisonError;

impl Shard {
    pub(super) fn on_invite(&mut self, request: &Request<'_>) {
        self.check_owner(request);
        let Some(slot) = request.call else {
            return match request.in_dialog {
                true => self.answer_unknown(request),
                false => self.open(request),
            };
        };
        let call = &self.calls[slot as usize];
        if request.number == call.cseq {
            self.backends[request.place].counts.copies += 1;
            match call.state {
                State::Ringing => self.send_of_call(slot, 180, Carries::Contact),
                State::Answered | State::Over => self.send_final(slot),
                State::Free | State::Notifying | State::Up => {}
            }
        } else if request.number < call.cseq || call.state == State::Ringing {
            self.backends[request.place].counts.reordered += u64::from(request.number < call.cseq);
            // A lower CSeq is out of order (RFC 3261 12.2.2); a second INVITE before the first has its answer is refused
            // (14.2).
            self.answer(request, 500, Carries::Nothing);
        } else {
            let failed = call.code >= 300;
            self.begin(slot, request);
            match failed {
                // Who was refused calls again.
                true => self.ring(slot, Manner::of(request.user), request.now),
                false => self.finish(slot, 200, request.now),
            }
        }
    }

    /// An INVITE that no call is known for.
    pub(super) fn open(&mut self, request: &Request<'_>) {
        let index = self.backends[request.place].index;
        if self.shared.owners.of(request.digest) == (Owner::Alive { backend: index, over: true }) {
            // A late copy of one that has had its BYE.
            self.backends[request.place].counts.copies += 1;
            return;
        }
        if self.meets_its_fate(request) {
            return;
        }
        if self.calls.len() - self.free.len() >= self.shared.config.calls_max {
            self.backends[request.place].counts.refused += 1;
            return self.answer(request, 503, Carries::Nothing);
        }
        let slot = self.occupy(request);
        if !self.begin(slot, request) {
            self.backends[request.place].counts.malformed += 1;
            return self.release(slot);
        }
        self.backends[request.place].counts.calls += 1;
        if self.shared.config.list_new_calls {
            self.list(request, index);
        }
        self.ring(slot, Manner::of(request.user), request.now);
    }

    pub(super) fn list(&self, request: &Request<'_>, backend: usize) {
        let call_id = String::from_utf8_lossy(request.message.value(Name::CallId).unwrap_or_default());
        let mut new_calls = self.shared.new_calls.lock().unwrap_or_else(PoisonError::into_inner);
        if new_calls.list.len() < NEW_CALLS_MAX {
            new_calls.list.push_back(NewCall { call_id: call_id.into(), backend, at_ns: request.now });
        } else {
            new_calls.unlisted += 1;
        }
    }

    /// Takes an INVITE's rows into its call. `false`: it lacks what an answer needs.
    pub(super) fn begin(&mut self, slot: u32, request: &Request<'_>) -> bool {
        let to_tag = to_tag(request.key);
        let mut out = Text::new(&mut self.scratch);
        let echoed = echo(request.message, request.from, &to_tag, true, &mut out);
        let (Some(echoed), Some(to), Some(len)) = (echoed, destination(request.message, request.from), out.finish())
        else {
            return false;
        };
        let call = &mut self.calls[slot as usize];
        call.rows.clear();
        call.rows.extend_from_slice(&self.scratch[..len]);
        (call.echoed, call.to, call.cseq) = (echoed, to, request.number);
        true
    }

    pub(super) fn ring(&mut self, slot: u32, manner: Manner, now: u64) {
        let config = &self.shared.config;
        let (ring_ns, ringing_ns) = (config.ring_ns, config.timers.ringing_ns);
        let due = match manner {
            Manner::Busy => return self.finish(slot, 486, now),
            Manner::Answer => now + ring_ns,
            Manner::Ring => now + ringing_ns,
        };
        self.send_of_call(slot, 180, Carries::Contact);
        let call = &mut self.calls[slot as usize];
        (call.state, call.due_ns) = (State::Ringing, due);
        (call.code, call.give_up_ns) = (if manner == Manner::Ring { 480 } else { 200 }, due);
        if due == now {
            return self.finish(slot, 200, now);
        }
        self.wheel.arm(slot, due);
    }

    /// Sends a final response and keeps at it until its ACK comes.
    pub(super) fn finish(&mut self, slot: u32, code: u16, now: u64) {
        let timers = self.shared.config.timers;
        let call = &mut self.calls[slot as usize];
        //= RFC 3261 section 13.3.1.4
        //# The 2xx response is passed to the transport with an
        //# interval that starts at T1 seconds and doubles for each
        //# retransmission until it reaches T2 seconds (T1 and T2 are defined in
        //# Section 17).
        // Timer G does the same for any other final response (17.2.1), but not over a reliable transport: a 2xx goes from end
        // to end, and may be lost further on.
        let once = code >= 300 && call.to.stream() != 0;
        (call.state, call.code, call.interval_ns) = (State::Answered, code, timers.t1_ns);
        call.due_ns = if once { u64::MAX } else { now + timers.t1_ns };
        call.give_up_ns = now + timers.give_up_ns();
        let due = call.due_ns.min(call.give_up_ns);
        self.wheel.arm(slot, due);
        self.send_final(slot);
    }

    pub(super) fn send_final(&mut self, slot: u32) {
        let code = self.calls[slot as usize].code;
        self.send_of_call(slot, code, if code < 300 { Carries::Sdp } else { Carries::Nothing });
    }

    pub(super) fn on_ack(&mut self, request: &Request<'_>) {
        self.backends[request.place].counts.acks += 1;
        self.check_owner(request);
        let Some(slot) = request.call else { return };
        let call = &mut self.calls[slot as usize];
        if call.state != State::Answered || call.cseq != request.number {
            return;
        }
        let config = &self.shared.config;
        let (state, due) = match call.code {
            200..300 => (State::Up, request.now + config.silence_max_ns),
            // Timer I.
            _ if call.to.stream() != 0 => return self.release(slot),
            _ => (State::Over, request.now + config.timers.t4_ns),
        };
        (call.state, call.due_ns) = (state, due);
        self.wheel.arm(slot, due);
    }

    pub(super) fn on_bye(&mut self, request: &Request<'_>) {
        self.check_owner(request);
        let index = self.backends[request.place].index;
        let over = Owner::Alive { backend: index, over: true };
        match request.call {
            Some(slot) => {
                let counts = &mut self.backends[request.place].counts;
                counts.byes += 1;
                counts.reordered += u64::from(self.calls[slot as usize].state == State::Answered);
                self.answer(request, 200, Carries::Nothing);
                self.release(slot);
            }
            None if self.shared.owners.of(request.digest) == over => {
                self.backends[request.place].counts.copies += 1;
                self.answer(request, 200, Carries::Nothing);
            }
            None => self.answer_unknown(request),
        }
    }

    pub(super) fn on_cancel(&mut self, request: &Request<'_>) {
        self.check_owner(request);
        let Some(slot) = request.call else { return self.answer_unknown(request) };
        self.answer(request, 200, Carries::Nothing);
        if self.calls[slot as usize].state == State::Ringing {
            self.backends[request.place].counts.cancels += 1;
            self.finish(slot, 487, request.now);
        }
    }
}
