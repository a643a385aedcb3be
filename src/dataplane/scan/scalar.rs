//! The slow twin: the algorithm of the module's page, one octet at a time, with nothing shared with the fast arms but
//! the result type and the list of names.

use super::index::{DISCARD, Fault, Kinds, Row, Scan, Span};
use crate::dataplane::sip::grammar;
use crate::dataplane::sip::header::{self, HeaderKind, NAMES};

/// Scans `message` into `scan`.
pub fn scan(message: &[u8], scan: &mut Scan) {
    scan.clear();
    let mut at = 0;
    while message[at..].starts_with(b"\r\n") {
        at += 2;
    }
    let mut start_line_seen = false;
    let mut header_seen = false;
    let mut open = DISCARD;
    let mut kinds = Kinds::default();
    let mut line = at;
    scan.start_line = Span::new(at, message.len());
    scan.headers = message.len() as u32;
    scan.body = message.len() as u32;

    while at < message.len() {
        if message[at] == b'\r' && message.get(at + 1) != Some(&b'\n') {
            scan.faults.add(Fault::BareCr, at);
        }
        if message[at] != b'\n' {
            at += 1;
            continue;
        }
        let has_cr = at > line && message[at - 1] == b'\r';
        if !has_cr {
            scan.faults.add(Fault::BareLf, at);
        }
        let end = if has_cr { at - 1 } else { at };
        at += 1;
        if !start_line_seen {
            start_line_seen = true;
            scan.start_line = Span::new(line, end);
            scan.headers = at as u32;
        } else if end == line {
            scan.body = at as u32;
            return;
        } else if grammar::is_blank(message[line]) {
            if header_seen {
                scan.extend(open, end);
            } else {
                scan.faults.add(Fault::LeadingFold, line);
            }
        } else {
            header_seen = true;
            let (kind, value) = match read_name(&message[line..end]) {
                Header::Row(kind, value) => (kind, line + value),
                Header::LookAlike(value) => {
                    scan.faults.add(Fault::LookAlike, line);
                    (None, line + value)
                }
                Header::Malformed => {
                    scan.faults.add(Fault::NotAHeader, line);
                    (None, end)
                }
            };
            let row = Row { start: line as u32, value: value as u32, end: end as u32 };
            open = scan.put(&mut kinds, kind.map_or(header::OTHER, |kind| kind as usize), row);
            scan.note(kinds);
        }
        line = at;
    }
    scan.faults.add(Fault::NoEmptyLine, message.len());
}

/// What a line that begins a row is.
pub(super) enum Header {
    /// A header, of ours or not, and the offset behind its colon.
    Row(Option<HeaderKind>, usize),
    /// A header whose name others would take for one of ours, and the offset behind its colon.
    LookAlike(usize),
    /// No header.
    Malformed,
}

/// Reads `token [blanks] ":"` from the start of a line; the offset is that of the octet behind the colon.
pub(super) fn read_name(line: &[u8]) -> Header {
    let name_len = line.iter().take_while(|&&octet| grammar::TOKEN.has(octet)).count();
    let blanks = line[name_len..].iter().take_while(|&&octet| grammar::is_blank(octet)).count();
    let colon = name_len + blanks;
    if name_len == 0 || line.get(colon) != Some(&b':') {
        return Header::Malformed;
    }
    let name = &line[..name_len];
    let known = |same: fn(u8, u8) -> bool| {
        let found = NAMES.iter().find(|(text, _)| {
            text.len() == name.len()
                && text.bytes().zip(name).all(|(ours, &theirs)| same(ours, theirs.to_ascii_lowercase()))
        });
        found.map(|&(_, kind)| kind)
    };
    if let Some(kind) = known(|ours, theirs| ours == theirs) {
        return Header::Row(Some(kind), colon + 1);
    }
    let looks_like_ours = known(|ours, theirs| ours == theirs || (ours == b'-' && theirs == b'_')).is_some();
    if looks_like_ours { Header::LookAlike(colon + 1) } else { Header::Row(None, colon + 1) }
}
