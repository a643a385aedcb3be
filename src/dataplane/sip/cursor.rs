//! A position in a value, and the few steps every parser of this folder takes.

use super::grammar::{self, Class};
use crate::dataplane::scan::{Span, find, find_blank_or};

/// Reads forward through `message[at..end]`. Offsets are offsets into the message, so that what is found can be edited in
/// place.
#[derive(Clone)]
pub struct Cursor<'a> {
    message: &'a [u8],
    /// `at <= end <= message.len()`
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

    /// Reads `text`, exactly as it is, if it comes next.
    #[inline(always)]
    pub fn take_text<const N: usize>(&mut self, text: &[u8; N]) -> bool {
        let is_next = self.rest().first_chunk() == Some(text);
        self.at += if is_next { N } else { 0 };
        is_next
    }

    /// Reads `text` and the `M` octets behind it, whatever they are, and returns those; nothing if that does not come next.
    #[inline(always)]
    pub fn take_behind<const N: usize, const M: usize>(&mut self, text: &[u8; N]) -> Option<&'a [u8; M]> {
        let (found, rest) = self.rest().split_first_chunk()?;
        let octets = rest.first_chunk().filter(|_| found == text)?;
        self.at += N + M;
        Some(octets)
    }

    /// Reads octets of `class`; the span may be empty.
    #[inline(always)]
    pub fn take_while(&mut self, class: Class) -> Span {
        let start = self.at;
        self.at += class.prefix(self.rest());
        Span::new(start, self.at)
    }

    /// Reads `1*DIGIT`, a port; `None` if there is no digit, or the number is none a port can have.
    #[inline(always)]
    pub fn take_port(&mut self) -> Option<u16> {
        // Five digits at most and something behind them, in one word; what comes later in the message is not looked at.
        if let Some(&octets) = self.rest().first_chunk() {
            let (digits, port) = grammar::leading_number(octets);
            if digits < octets.len() {
                self.at += digits;
                return u16::try_from(port).ok().filter(|_| digits > 0);
            }
        }
        let mut port: u32 = 0;
        let mut digits = 0;
        for &octet in self.rest() {
            let digit = octet.wrapping_sub(b'0');
            if digit > 9 {
                break;
            }
            port = port.saturating_mul(10).saturating_add(u32::from(digit));
            digits += 1;
        }
        self.at += digits;
        u16::try_from(port).ok().filter(|_| digits > 0)
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
        let before = self.at;
        self.skip_lws();
        if self.take(octet) {
            self.skip_lws();
            return true;
        }
        self.at = before;
        false
    }

    /// Reads a `quoted-string` with its quotes; `None` if it does not begin here or does not end.
    ///
    /// `quoted-string = SWS DQUOTE *(qdtext / quoted-pair ) DQUOTE`; a quoted pair escapes any one octet.
    #[inline(always)]
    pub fn take_quoted(&mut self) -> Option<Span> {
        let start = self.at;
        if !self.take(b'"') {
            return None;
        }
        loop {
            let stop = find(self.message, self.at, self.end, [b'"', b'\\']);
            let is_end = *self.message.get(stop).filter(|_| stop < self.end)? == b'"';
            // A quoted pair takes the octet behind the backslash with it, and must have one.
            self.at = stop + if is_end { 1 } else { 2 };
            if is_end {
                return Some(Span::new(start, self.at));
            }
            if self.at > self.end {
                self.at = self.end;
                return None;
            }
        }
    }

    /// Reads up to the next of `stops`, a blank, a control character, or the end; the span may be empty.
    #[inline(always)]
    pub fn take_until<const N: usize>(&mut self, stops: [u8; N]) -> Span {
        let start = self.at;
        self.at = find_blank_or(self.message, start, self.end, stops);
        Span::new(start, self.at)
    }

    /// Reads an address in brackets, `IPv6reference = "[" IPv6address "]"`; `None` if that does not come next. What stands
    /// in the brackets is left to whoever wants an address, but for octets that would end or quote something elsewhere.
    #[inline(always)]
    pub fn take_bracketed(&mut self) -> Option<Span> {
        let start = self.at;
        let opens = self.take(b'[');
        self.take_until([b'[', b']', b'"', b'<', b'>', b';', b',', b'@', b'?']);
        (opens && self.take(b']')).then(|| Span::new(start, self.at))
    }

    /// Reads up to the next `octet` and reads that; `None` if there is none. The span is what is before it.
    #[inline(always)]
    pub fn take_through(&mut self, octet: u8) -> Option<Span> {
        let start = self.at;
        let stop = find(self.message, start, self.end, [octet]);
        if stop == self.end {
            return None;
        }
        self.at = stop + 1;
        Some(Span::new(start, stop))
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

/// Behind a semicolon stands something that is no parameter.
#[derive(Clone, Copy, Debug)]
pub struct NotAParam;

/// Reads the next `*( SEMI generic-param )`. `Ok(None)` if no semicolon comes next; `Err` if none can be read there.
///
/// A value without quotes ends where it must, at a semicolon, a comma or white space, and holds whatever phones write.
#[inline(always)]
pub fn next_param(cursor: &mut Cursor<'_>) -> Result<Option<Param>, NotAParam> {
    let start = cursor.at();
    if !cursor.take(b';') && !cursor.take_separator(b';') {
        return Ok(None);
    }
    cursor.skip_lws();
    let name = cursor.take_until([b'=', b';', b',', b'"', b'<', b'>']);
    if name.start == name.end {
        return Err(NotAParam);
    }
    let mut end = cursor.at();
    let value = if cursor.take(b'=') || cursor.take_separator(b'=') {
        let behind_equals = cursor.at();
        cursor.skip_lws();
        let value = match cursor.peek() {
            Some(b'"') => cursor.take_quoted().ok_or(NotAParam)?,
            _ => cursor.take_until([b';', b',', b'"', b'<', b'>']),
        };
        // White space in front of a value that is none does not belong to the parameter: what is put behind it would stand
        // behind that.
        end = if value.is_empty() { behind_equals } else { cursor.at() };
        Some(value)
    } else {
        None
    };
    Ok(Some(Param { whole: Span::new(start, end), name, value }))
}
