//! A position in a value, and the few steps every parser of this folder takes.

use super::grammar::{self, Class};
use crate::dataplane::scan::{Span, find, find_blank_or};

/// Reads forward through a part of a message. Offsets are offsets into the message, so that what is found can be edited
/// in place.
#[derive(Clone)]
pub struct Cursor<'a> {
    /// What was not read yet.
    rest: &'a [u8],
    /// Offset of the end of `rest`. `rest.len() <= end`
    end: usize,
}

impl<'a> Cursor<'a> {
    /// Stands at the start of `span`.
    #[inline(always)]
    pub fn new(message: &'a [u8], span: Span) -> Cursor<'a> {
        Cursor { rest: span.of(message), end: span.end as usize }
    }

    /// Offset of the octet to be read next.
    #[inline(always)]
    pub fn at(&self) -> usize {
        self.end - self.rest.len()
    }

    /// Whether everything was read.
    #[inline(always)]
    pub fn is_done(&self) -> bool {
        self.rest.is_empty()
    }

    /// The octet to be read next.
    #[inline(always)]
    pub fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    /// Everything not read yet.
    #[inline(always)]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Reads `count` octets, or what there is.
    #[inline(always)]
    pub fn skip(&mut self, count: usize) {
        self.rest = self.rest.get(count..).unwrap_or_default();
    }

    /// Reads `octet`, if it comes next.
    #[inline(always)]
    pub fn take(&mut self, octet: u8) -> bool {
        match self.rest {
            [first, rest @ ..] if *first == octet => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// Reads octets of `class`; the span may be empty.
    #[inline(always)]
    pub fn take_while(&mut self, class: Class) -> Span {
        let start = self.at();
        let count = class.prefix(self.rest);
        self.skip(count);
        Span::new(start, start + count)
    }

    /// Reads `text`, of any case, if it comes next. `text` is lower-case.
    #[inline(always)]
    pub fn take_text<const N: usize>(&mut self, text: &[u8; N]) -> bool {
        let found = self.rest.first_chunk::<N>().is_some_and(|next| next.eq_ignore_ascii_case(text));
        if found {
            self.rest = &self.rest[N..];
        }
        found
    }

    /// Reads linear white space: blanks and folds.
    #[inline(always)]
    pub fn skip_lws(&mut self) {
        while let [first, rest @ ..] = self.rest {
            if !grammar::is_lws(*first) {
                break;
            }
            self.rest = rest;
        }
    }

    /// Reads `*LWS octet *LWS`, if that comes next. Without the octet nothing is read.
    #[inline(always)]
    pub fn take_separator(&mut self, octet: u8) -> bool {
        let before = self.rest;
        self.skip_lws();
        if self.take(octet) {
            self.skip_lws();
            return true;
        }
        self.rest = before;
        false
    }

    /// Reads a `quoted-string` with its quotes; `None` if it does not begin here or does not end.
    ///
    /// `quoted-string = SWS DQUOTE *(qdtext / quoted-pair ) DQUOTE`; a quoted pair escapes any one octet.
    #[inline(always)]
    pub fn take_quoted(&mut self) -> Option<Span> {
        let start = self.at();
        if !self.take(b'"') {
            return None;
        }
        loop {
            let stop = find(self.rest, [b'"', b'\\'])?;
            let is_end = self.rest[stop] == b'"';
            // A quoted pair takes the octet behind the backslash with it, and must have one.
            let step = if is_end { 1 } else { 2 };
            self.rest = self.rest.get(stop + step..)?;
            if is_end {
                return Some(Span::new(start, self.at()));
            }
        }
    }

    /// Reads up to the next of `stops`, a blank, or the end; the span may be empty.
    #[inline(always)]
    pub fn take_until<const N: usize>(&mut self, stops: [u8; N]) -> Span {
        let start = self.at();
        let count = find_blank_or(self.rest, stops).unwrap_or(self.rest.len());
        self.rest = &self.rest[count..];
        Span::new(start, start + count)
    }

    /// Reads up to the next `octet` and reads that; `None` if there is none. The span is what is before it.
    #[inline(always)]
    pub fn take_through(&mut self, octet: u8) -> Option<Span> {
        let start = self.at();
        let count = find(self.rest, [octet])?;
        self.rest = &self.rest[count + 1..];
        Some(Span::new(start, start + count))
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

/// Reads the next `*( SEMI generic-param )`. `Ok(None)` if no semicolon comes next; `Err` if none can be read there.
///
/// A value without quotes ends where it must, at a semicolon, a comma or white space, and holds whatever phones write.
#[inline(always)]
pub fn next_param(cursor: &mut Cursor<'_>) -> Result<Option<Param>, ()> {
    let start = cursor.at();
    if !cursor.take(b';') && !cursor.take_separator(b';') {
        return Ok(None);
    }
    cursor.skip_lws();
    let name = cursor.take_until([b'=', b';', b',', b'"', b'<', b'>']);
    if name.start == name.end {
        return Err(());
    }
    let mut end = cursor.at();
    let value = if cursor.take(b'=') || cursor.take_separator(b'=') {
        cursor.skip_lws();
        let value = match cursor.peek() {
            Some(b'"') => cursor.take_quoted().ok_or(())?,
            _ => cursor.take_until([b';', b',', b'"', b'<', b'>']),
        };
        end = cursor.at();
        Some(value)
    } else {
        None
    };
    Ok(Some(Param { whole: Span::new(start, end), name, value }))
}
