//! Whether a request is where it belongs, and came the way the one before it came.

use super::backend::Backend;
use super::{Request, Shard};
use crate::owners::Owner;
use crate::sip::message::Name;
use crate::uas::{Move, VIOLATIONS_LISTED, Violation};

impl Shard {
    /// Notes whether the call of this request is where it belongs.
    pub(super) fn check_owner(&mut self, request: &Request<'_>) {
        let backend = &mut self.backends[request.place];
        match self.shared.owners.of(request.digest) {
            Owner::Alive { backend: owner, .. } if owner != backend.index => {
                backend.counts.violations += 1;
                if backend.violations.len() < VIOLATIONS_LISTED {
                    let call_id = request.message.value(Name::CallId).unwrap_or_default();
                    backend.violations.push(Violation {
                        call_id: String::from_utf8_lossy(call_id).into(),
                        method: request.method.name().into(),
                        owner,
                        reached: backend.index,
                    });
                }
            }
            Owner::Dead(_) if request.in_dialog => backend.counts.orphans += 1,
            _ => {}
        }
    }

    /// Notes whether a request within a call came from where the one before it came from.
    pub(super) fn check_source(&mut self, request: &Request<'_>) {
        let Some(slot) = request.call else { return };
        let source = request.from.digest();
        if std::mem::replace(&mut self.calls[slot as usize].source, source) == source {
            return;
        }
        let Backend { counts, moves, .. } = &mut self.backends[request.place];
        counts.moved += 1;
        if moves.len() < VIOLATIONS_LISTED {
            let call_id = request.message.value(Name::CallId).unwrap_or_default();
            moves.push(Move {
                call_id: String::from_utf8_lossy(call_id).into(),
                method: request.method.name().into(),
                from: request.from.to_std(),
            });
        }
    }
}
