//! A position in a value, and the few steps every parser of this folder takes.

use super::grammar::{self, Class};
use crate::dataplane::scan::Span;

/// Reads forward through `message[at..end]`. `at <= end <= message.len()`; offsets are offsets into the message, so that
/// what is found can be edited in place.
#[derive(Clone)]
pub struct Cursor<'a> {
    message: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Cursor<'a> {
    /// Stands at the start of `span`.
    #[inline(always)]
    pub fn new(message: &'a [u8], span: Span) -> Cursor<'a> {
        let end = (span.end as usize).min(message.len());
        Cursor { message, at: (span.start as usize).min(end), end }
    }

    /// Offset of the octet to be read next.
    #[inline(always)]
    pub fn at(&self) -> usize {
        self.at
    }

    /// Whether everything was read.
    #[inline(always)]
    pub fn is_done(&self) -> bool {
        self.at == self.end
    }

    /// The octet to be read next.
    #[inline(always)]
    pub fn peek(&self) -> Option<u8> {
        if self.at < self.end { self.message.get(self.at).copied() } else { None }
    }

    /// Everything not read yet.
    #[inline(always)]
    pub fn rest(&self) -> &'a [u8] {
        self.message.get(self.at..self.end).unwrap_or_default()
    }

    /// Reads `octet`, if it comes next.
    #[inline(always)]
    pub fn take(&mut self, octet: u8) -> bool {
        let is_next = self.peek() == Some(octet);
        self.at += is_next as usize;
        is_next
    }

    /// Reads octets of `class`; the span may be empty.
    #[inline(always)]
    pub fn take_while(&mut self, class: &Class) -> Span {
        let start = self.at;
        while self.peek().is_some_and(|octet| class.has(octet)) {
            self.at += 1;
        }
        Span::new(start, self.at)
    }

    /// Reads `text`, of any case, if it comes next. `text` is lower-case.
    #[inline(always)]
    pub fn take_text(&mut self, text: &[u8]) -> bool {
        let found = self.rest().get(..text.len()).is_some_and(|next| next.eq_ignore_ascii_case(text));
        if found {
            self.at += text.len();
        }
        found
    }

    /// Reads linear white space: blanks and folds.
    #[inline(always)]
    pub fn skip_lws(&mut self) {
        while self.peek().is_some_and(grammar::is_lws) {
            self.at += 1;
        }
    }

    /// Reads `*LWS octet *LWS`, if that comes next. Without the octet nothing is read.
    #[inline(always)]
    pub fn take_separator(&mut self, octet: u8) -> bool {
        let mut ahead = self.clone();
        ahead.skip_lws();
        if !ahead.take(octet) {
            return false;
        }
        ahead.skip_lws();
        *self = ahead;
        true
    }

    /// Reads a `quoted-string` with its quotes; `None` if it does not begin here or does not end.
    ///
    /// `quoted-string = SWS DQUOTE *(qdtext / quoted-pair ) DQUOTE`; a quoted pair escapes any one octet.
    pub fn take_quoted(&mut self) -> Option<Span> {
        let start = self.at;
        if !self.take(b'"') {
            return None;
        }
        loop {
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Some(Span::new(start, self.at));
                }
                b'\\' if self.at + 1 < self.end => self.at += 2,
                _ => self.at += 1,
            }
        }
    }

    /// Moves to the next `octet`, if there is one.
    #[inline(always)]
    pub fn seek(&mut self, octet: u8) -> bool {
        match memchr::memchr(octet, self.rest()) {
            Some(distance) => {
                self.at += distance;
                true
            }
            None => false,
        }
    }

    /// Moves behind everything.
    pub fn finish(&mut self) {
        self.at = self.end;
    }
}

/// `generic-param = token [ EQUAL gen-value ]`, `gen-value = token / host / quoted-string`.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// From the semicolon to the end of the parameter, white space in front included: what to cut to be rid of it.
    pub whole: Span,
    /// The name.
    pub name: Span,
    /// The value with its quotes, if there is an equals sign.
    pub value: Option<Span>,
}

impl Param {
    /// Whether the name is `name`, in any case. `name` is lower-case.
    #[inline(always)]
    pub fn is(&self, message: &[u8], name: &[u8]) -> bool {
        self.name.of(message).eq_ignore_ascii_case(name)
    }
}

/// Octets of a parameter value that is no quoted string. Wider than `token / host`: real values hold `@`, `/` or `:` where
/// they should not, and a value nobody reads is no reason to refuse a call.
const VALUE: Class = grammar::URI_PARAM;

/// Reads the next `*( SEMI generic-param )`. `Ok(None)` if no semicolon comes next; `Err` if none can be read there.
#[inline(always)]
pub fn next_param(cursor: &mut Cursor<'_>) -> Result<Option<Param>, ()> {
    let start = cursor.at();
    if !cursor.take_separator(b';') {
        return Ok(None);
    }
    let name = cursor.take_while(&grammar::TOKEN);
    if name.start == name.end {
        return Err(());
    }
    let mut end = cursor.at();
    let value = if cursor.take_separator(b'=') {
        let value = match cursor.peek() {
            Some(b'"') => cursor.take_quoted().ok_or(())?,
            _ => cursor.take_while(&VALUE),
        };
        end = cursor.at();
        Some(value)
    } else {
        None
    };
    Ok(Some(Param { whole: Span::new(start, end), name, value }))
}
