//! What a shard of the calling side demands of a message before it takes it.

use super::{Response, Shard};
use crate::seal;
use crate::seal::Verdict;
use crate::sip::message::{Message, Name};
use crate::sip::value::{cseq, tag};
use crate::uac::call::State;
use crate::uac::{WRONGS_LISTED, Wrong};

/// Octets that are kept of a row that was wrong.
const ROW_MAX: usize = 200;

/// Name of the end of a dialog that no step asks for: something failed, and the callee is not left behind with it.
const CLOSING: &[u8] = b"BYE";

impl Shard {
    /// Whether a response is what RFC 3261 lets a response to this call be.
    pub(super) fn check<'a>(&self, port: usize, response: &Response<'a>) -> Result<(), (&'static str, &'a [u8])> {
        let Response { message, code, slot, id, transaction, .. } = *response;
        let call = &self.calls[slot as usize];
        let stationery = &self.ports[port].stationery;
        //= RFC 3261 section 8.1.3.3
        //# If more than one Via header field value is present in a response, the
        //# UAC SHOULD discard the message.
        let mut vias = message.values(Name::Via);
        let via = vias.next().unwrap_or_default();
        if !stationery.is_own_via(via, id, transaction) || usize::from(call.port) != port {
            return Err(("Via", via));
        }
        if let Some(second) = vias.next() {
            return Err(("Via", second));
        }
        let call_id = message.value(Name::CallId).unwrap_or_default();
        if !stationery.is_own_call_id(call_id, id) {
            return Err(("Call-ID", call_id));
        }
        let from = message.value(Name::From).unwrap_or_default();
        if !stationery.is_own_from(from, id, call.number) {
            return Err(("From", from));
        }
        let cseq_row = message.value(Name::CSeq).unwrap_or_default();
        let own = cseq(cseq_row).filter(|(number, method)| self.is_own_cseq(slot, transaction, *number, method));
        let Some((number, _)) = own else { return Err(("CSeq", cseq_row)) };
        let to = message.value(Name::To).unwrap_or_default();
        match tag(to) {
            //= RFC 3261 section 8.2.6.2
            // Everything but a 100 carries a tag, and within a dialog it is the dialog's. A late copy of the challenge that came
            // before may have another.
            None if code > 100 => Err(("To tag", to)),
            Some(tag) if call.is_in_dialog(number) && tag != call.peer.tag() => Err(("To tag", to)),
            _ => Ok(()),
        }
    }

    pub(super) fn is_own_cseq(&self, slot: u32, transaction: u8, number: u32, method: &[u8]) -> bool {
        let call = &self.calls[slot as usize];
        if transaction == call.invite && call.invite_cseq > 0 {
            return number == call.invite_cseq && matches!(method, b"INVITE" | b"CANCEL");
        }
        let expected = self.step(&self.config, slot).map_or(CLOSING, |send| send.method.name().as_bytes());
        // An earlier transaction of this call: its number was lower, and its method is not remembered.
        (transaction == call.transaction && number == call.cseq && method == expected)
            || (transaction != call.transaction && number < call.cseq)
            || (matches!(call.state, State::Pausing | State::Receiving) && number == call.cseq)
    }

    pub(super) fn check_seal(&mut self, message: &Message<'_>) {
        match seal::check(message) {
            Verdict::Altered => {
                self.report.counts.altered += 1;
                self.list(
                    "altered",
                    message,
                    message.octets().split(|octet| *octet == b'\r').next().unwrap_or_default(),
                );
            }
            Verdict::Intact => {}
            Verdict::Unsealed => self.report.counts.unsealed += 1,
        }
    }

    /// Keeps a message that should not have come, if there is room.
    pub(super) fn list(&mut self, what: &str, message: &Message<'_>, row: &[u8]) {
        let text = |octets: &[u8]| String::from_utf8_lossy(&octets[..octets.len().min(ROW_MAX)]).into();
        if self.report.wrongs.len() < WRONGS_LISTED {
            let call_id = text(message.value(Name::CallId).unwrap_or_default());
            self.report.wrongs.push(Wrong { what: what.into(), call_id, row: text(row) });
        }
    }
}
