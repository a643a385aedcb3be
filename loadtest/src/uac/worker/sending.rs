//! What a shard of the calling side sends: requests, for the first time and again, ACKs, CANCELs, credentials; and the
//! timers of the transactions behind them.

use super::{Response, Shard, Sketch};
use crate::digest;
use crate::digest::Asked;
use crate::scenario::{Body, Send, Step};
use crate::sip::message::{Method, Name};
use crate::sip::text::Text;
use crate::sip::value::{cseq, tag};
use crate::tally::Kind;
use crate::uac::Config;
use crate::uac::call::{Cancel, Direction, State};
use crate::uac::request::Request;
use std::sync::Arc;

impl Shard {
    pub(super) fn begin_request(&mut self, slot: u32, method: Method, due: u64, now: u64) {
        let timers = self.config.timers;
        let line = self.line_of(slot);
        let offers = self.offers(slot);
        let call = &mut self.calls[slot as usize];
        if offers {
            call.turn(Direction::SendRecv);
        }
        call.transaction = call.transaction.wrapping_add(2);
        call.cseq += 1;
        call.cancel = Cancel::No;
        call.status_ns = 0;
        if method == Method::Invite {
            (call.invite, call.invite_cseq) = (call.transaction, call.cseq);
        }
        (call.state, call.due_ns, call.interval_ns) = (State::Calling, due, timers.t1_ns);
        //= RFC 3261 section 17.1.1.2
        //# If a reliable transport is being used, the client transaction SHOULD
        //# NOT start timer A (Timer A controls request retransmissions).
        // Nor Timer E (17.1.2.2). B and F run over any transport.
        let again_ns = if self.config.transport.is_reliable() { u64::MAX } else { now + timers.t1_ns };
        (call.timer_ns, call.give_up_ns) = (again_ns, now + timers.give_up_ns());
        self.report.counts.requests += 1;
        if let Some(line) = line {
            self.report.lines[line].sent += 1;
        }
        self.arm(slot);
        self.send_request(slot);
    }

    /// Sends what the call is waiting for an answer to, for the first time or again: the octets are the same.
    pub(super) fn send_request(&mut self, slot: u32) {
        let config = Arc::clone(&self.config);
        let call = &self.calls[slot as usize];
        let (method, body, expires) = match self.step(&config, slot) {
            Some(send) => (send.method, send.body, send.expires),
            None => (Method::Bye, Body::None, None),
        };
        let (transaction, cseq) = (call.transaction, call.cseq);
        self.send(slot, &Sketch { method, body, expires, transaction, cseq, failure_tag: b"" });
    }

    pub(super) fn send(&mut self, slot: u32, sketch: &Sketch<'_>) {
        let Sketch { method, body, expires, transaction, cseq, failure_tag } = *sketch;
        let call = &self.calls[slot as usize];
        let port = &self.ports[usize::from(call.port)];
        let lane = &mut self.lanes[port.lane];
        let id = port.stationery.id(slot, call.generation);
        let in_dialog = call.is_in_dialog(cseq);
        let next_hop = if in_dialog { call.next_hop } else { self.target };
        let callee = self.config.mix.scenario(usize::from(call.scenario)).callee.as_bytes();
        let request = Request { method, body, expires, callee, transaction, cseq, in_dialog, failure_tag };
        lane.make_room(&mut self.streams, &mut self.report.counts);
        let mut out = Text::new(lane.sender.room());
        port.stationery.put(&mut out, call, id, &request);
        match out.finish() {
            Some(len) => {
                let call = &mut self.calls[slot as usize];
                let level = call.order.next(&lane.sender);
                lane.sender.push_at(len, port.peer.unwrap_or(next_hop), level);
                self.report.sent.note(Kind::request(method));
            }
            None => self.report.counts.unsent += 1,
        }
    }

    /// The step's request; `None` while the dialog is being ended outside of the scenario.
    pub(super) fn step<'a>(&self, config: &'a Config, slot: u32) -> Option<&'a Send> {
        let call = &self.calls[slot as usize];
        let scenario = config.mix.scenario(usize::from(call.scenario));
        match scenario.steps.get(usize::from(call.step)) {
            Some(Step::Send(send)) if !call.closing => Some(send),
            _ => None,
        }
    }

    /// Whether the step's request has an offer, or asks for one.
    pub(super) fn offers(&self, slot: u32) -> bool {
        self.step(&self.config, slot).is_some_and(|send| send.method == Method::Invite || send.body == Body::Sdp)
    }

    pub(super) fn line_of(&self, slot: u32) -> Option<usize> {
        let call = &self.calls[slot as usize];
        (!call.closing).then(|| self.places[usize::from(call.scenario)][usize::from(call.step)])
    }

    pub(super) fn on_timer(&mut self, slot: u32, now: u64) {
        let call = &mut self.calls[slot as usize];
        match call.state {
            State::Free => {}
            State::Lingering => self.release(slot),
            State::Receiving => self.fail(slot, "timeout: it never came", now),
            State::Pausing => {
                let due = call.timer_ns;
                call.step += 1;
                self.run_step(slot, due, now);
            }
            // A retransmission that was due before the end is not left out because this machine was late.
            State::Calling if now >= call.give_up_ns && call.timer_ns >= call.give_up_ns => {
                self.fail(slot, "timeout: no response", now);
            }
            State::Proceeding if now >= call.give_up_ns && call.timer_ns >= call.give_up_ns => {
                self.fail(slot, "timeout: no final response", now);
            }
            State::Calling | State::Proceeding => {
                if now >= call.timer_ns {
                    self.retransmit(slot);
                }
                self.cancel_if_due(slot, now);
                self.arm(slot);
            }
        }
    }

    pub(super) fn retransmit(&mut self, slot: u32) {
        let config = Arc::clone(&self.config);
        let t2_ns = config.timers.t2_ns;
        let method = self.step(&config, slot).map_or(Method::Bye, |send| send.method);
        let call = &mut self.calls[slot as usize];
        //= RFC 3261 section 17.1.1.2
        //# When timer A fires, the client transaction MUST retransmit the
        //# request by passing it to the transport layer, and MUST reset the
        //# timer with a value of 2*T1.
        // Timer E stops doubling at T2, and is T2 at once after a provisional response (17.1.2.2).
        call.interval_ns = match (method, call.state) {
            (Method::Invite, _) => call.interval_ns * 2,
            (_, State::Proceeding) => t2_ns,
            _ => (call.interval_ns * 2).min(t2_ns),
        };
        // From when it was due, so that a late wake-up does not shift all that follow.
        call.timer_ns += call.interval_ns;
        self.report.counts.retransmissions += 1;
        if let Some(line) = self.line_of(slot) {
            self.report.lines[line].retransmissions += 1;
        }
        self.send_request(slot);
    }

    pub(super) fn cancel_if_due(&mut self, slot: u32, now: u64) {
        let timers = self.config.timers;
        let call = &mut self.calls[slot as usize];
        let interval_ns = match call.cancel {
            Cancel::Wanted(at) if now >= at => {
                //= RFC 3261 section 9.1
                // Without a final response 64*T1 after the CANCEL the client considers the INVITE over.
                call.give_up_ns = now + timers.give_up_ns();
                self.report.counts.requests += 1;
                timers.t1_ns
            }
            Cancel::Sent { again_ns, interval_ns } if now >= again_ns => {
                self.report.counts.retransmissions += 1;
                (interval_ns * 2).min(timers.t2_ns)
            }
            _ => return,
        };
        let again_ns = if self.config.transport.is_reliable() { u64::MAX } else { now + interval_ns };
        call.cancel = Cancel::Sent { again_ns, interval_ns };
        let (invite, cseq) = (call.invite, call.invite_cseq);
        self.send(slot, &Sketch::bare(Method::Cancel, invite, cseq));
    }

    //= RFC 3261 section 13.2.2.4
    //# The
    //# ACK MUST be passed to the client transport every time a
    //# retransmission of the 2xx final response that triggered the ACK
    //# arrives.
    // A failure that comes again gets its ACK again, too (17.1.1.2, Completed).
    /// Sends the ACK of a final response, if it is one to an INVITE: the current one or, as late copies are, one before it.
    pub(super) fn acknowledge(&mut self, response: &Response<'_>) {
        let Response { message, code, slot, transaction, .. } = *response;
        let Some((number, b"INVITE")) = message.value(Name::CSeq).and_then(cseq) else { return };
        if code >= 300 {
            //= RFC 3261 section 17.1.1.3
            //# The To header field in the ACK MUST equal the To header field in the
            //# response being acknowledged, and therefore will usually differ from
            //# the To header field in the original request by the addition of the
            //# tag parameter.
            let failure_tag = message.value(Name::To).and_then(tag).unwrap_or_default();
            self.report.counts.requests += 1;
            self.send(slot, &Sketch { failure_tag, ..Sketch::bare(Method::Ack, transaction, number) });
        } else if self.calls[slot as usize].is_in_dialog(number) {
            self.report.counts.requests += 1;
            self.send(slot, &Sketch::bare(Method::Ack, transaction.wrapping_add(1), number));
        }
    }

    /// Answers a challenge: the request goes out again with credentials, for which the clock that measures it goes on.
    /// `false`: there is no password, or it has been refused.
    pub(super) fn authorize(&mut self, send: &Send, response: &Response<'_>) -> bool {
        let config = Arc::clone(&self.config);
        let Some(password) = &config.password else { return false };
        let (asks, answers) = match response.code {
            401 => (Name::WwwAuthenticate, "Authorization"),
            _ => (Name::ProxyAuthenticate, "Proxy-Authorization"),
        };
        let Response { message, slot, now, .. } = *response;
        let stale = |challenge: &[u8]| {
            crate::sip::value::auth_param(challenge, b"stale").is_some_and(|stale| stale.eq_ignore_ascii_case(b"true"))
        };
        let call = &self.calls[slot as usize];
        // A proxy may ask, and the server behind it too: each has a row of its own (RFC 3261 22.2, 22.3). Refused once is
        // refused, unless only the nonce was too old; and nobody is asked for ever.
        let rows = call.credentials.split_inclusive(|octet| *octet == b'\n');
        let (given, others): (Vec<&[u8]>, Vec<&[u8]>) = rows.partition(|row| row.starts_with(answers.as_bytes()));
        if !given.is_empty() && (!message.values(asks).any(stale) || call.cseq > 8) {
            return false;
        }
        let stationery = &self.ports[usize::from(call.port)].stationery;
        let scenario = config.mix.scenario(usize::from(call.scenario));
        let request = Request {
            method: send.method,
            body: Body::None,
            expires: None,
            callee: scenario.callee.as_bytes(),
            transaction: call.transaction,
            cseq: call.cseq,
            in_dialog: call.peer.is_known(),
            failure_tag: b"",
        };
        let (uri, own) = (stationery.uri(call, &request), stationery.caller(call));
        let user = config.user.as_deref().unwrap_or(&own);
        let asked = Asked { user, password, method: send.method.name(), uri: &uri, cnonce: self.rng.next_u64() };
        // RFC 7616 3.7: the first that we know, the server having put the best first.
        let Some(credentials) = message.values(asks).find_map(|challenge| digest::answer(challenge, &asked)) else {
            return false;
        };
        // The other's row goes out again as well, and counts on.
        let renew = |row: &[u8]| {
            let (name, before) = std::str::from_utf8(row).ok()?.trim_end().split_once(": ")?;
            Some(format!("{name}: {}\r\n", digest::answer(before.as_bytes(), &asked)?))
        };
        let others: String = others.into_iter().filter_map(renew).collect();
        let line = self.line_of(slot);
        let call = &mut self.calls[slot as usize];
        call.credentials = format!("{others}{answers}: {credentials}\r\n").into();
        let due = call.due_ns;
        if let Some(line) = line {
            self.report.lines[line].challenged += 1;
        }
        self.begin_request(slot, send.method, due, now);
        true
    }
}
