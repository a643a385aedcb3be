//! Changes to a message, collected first and applied in one pass: the only place where octets move.
//!
//! A message is never changed where it lies (but for the digits of Max-Forwards, whose number stays the same). What comes
//! before the last change is copied, with the changes, into a head that the caller lends; everything behind it, the body
//! above all, is sent from where it was received. Almost all changes stand at the top of a message.

use crate::dataplane::scan::Span;
use crate::dataplane::text::Text;
use smallvec::SmallVec;

/// `cut` is replaced by `text[from..to]`.
#[derive(Clone, Copy, Debug)]
struct Splice {
    cut: Span,
    from: usize,
    to: usize,
}

impl Splice {
    /// Copies what lies between `at` and the change, and the change; returns where the message goes on.
    #[inline(always)]
    fn copy(&self, text: &[u8], message: &[u8], at: usize, out: &mut Text<'_>) -> usize {
        debug_assert!(self.cut.start as usize >= at, "edits overlap");
        out.put(message.get(at..self.cut.start as usize).unwrap_or_default());
        out.put(text.get(self.from..self.to).unwrap_or_default());
        self.cut.end as usize
    }
}

/// Octets of replacement text of one message that need no allocation. Longer texts are Route values or a Request-URI of
/// extraordinary length.
const TEXT: usize = 512;
/// Changes of one message that need no allocation: more than any message gets that has no parameter of overload control twice.
const SPLICES: usize = 16;

/// The changes to one message.
#[derive(Debug, Default)]
pub struct Edits {
    splices: SmallVec<[Splice; SPLICES]>,
    text: SmallVec<[u8; TEXT]>,
}

impl Edits {
    /// Forgets all changes.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.splices.clear();
        self.text.clear();
    }

    /// Whether there are no changes.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.splices.is_empty()
    }

    /// Takes `span` out.
    pub fn cut(&mut self, span: Span) {
        self.replace(span, |_| {});
    }

    /// Puts what `write` writes in the place of `span`, which may be empty. Spans of one message must not overlap.
    #[inline(always)]
    pub fn replace(&mut self, span: Span, write: impl FnOnce(&mut Insert<'_>)) {
        let from = self.text.len();
        write(&mut Insert(&mut self.text));
        self.splices.push(Splice { cut: span, from, to: self.text.len() });
    }

    /// Copies `message` from `start` to `end` into `out`, with the changes that begin before `end`; these are done with
    /// then. Returns `end`.
    #[inline(always)]
    pub fn apply_until(&mut self, message: &[u8], start: usize, end: usize, out: &mut Text<'_>) -> usize {
        let mut at = start;
        if !self.splices.is_empty() {
            self.sort();
            let count = self.splices.iter().take_while(|splice| (splice.cut.start as usize) < end).count();
            for splice in self.splices.drain(..count) {
                at = splice.copy(&self.text, message, at, out);
            }
        }
        out.put(message.get(at..end).unwrap_or_default());
        end
    }

    /// Copies `message` from `start` on into `out`, changes made, up to behind the last change; returns the offset of
    /// what is left to be sent as it is.
    #[inline(always)]
    pub fn apply(&mut self, message: &[u8], start: usize, out: &mut Text<'_>) -> usize {
        self.sort();
        self.splices.iter().fold(start, |at, splice| splice.copy(&self.text, message, at, out))
    }

    #[inline(always)]
    fn sort(&mut self) {
        if self.splices.len() > 1 {
            self.splices.sort_unstable_by_key(|splice| splice.cut.start);
        }
    }
}

/// Room for the text of a change.
pub struct Insert<'a>(&'a mut SmallVec<[u8; TEXT]>);

impl Insert<'_> {
    /// Appends `octets`.
    #[inline(always)]
    pub fn put(&mut self, octets: &[u8]) -> &mut Self {
        self.0.extend_from_slice(octets);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_applied_in_the_order_of_their_places() {
        let message = b"0123456789";
        let mut edits = Edits::default();
        edits.replace(Span::new(7, 7), |text| {
            text.put(b"seven");
        });
        edits.cut(Span::new(2, 4));
        edits.replace(Span::new(5, 6), |text| {
            text.put(b"F");
        });
        let mut room = [0; 32];
        let mut out = Text::new(&mut room);
        let tail = edits.apply(message, 1, &mut out);
        assert_eq!(out.finish().unwrap(), b"14F6seven");
        assert_eq!(tail, 7);
        edits.clear();
        let mut out = Text::new(&mut room);
        assert_eq!(edits.apply(message, 3, &mut out), 3);
        assert!(out.is_empty());
    }
}
