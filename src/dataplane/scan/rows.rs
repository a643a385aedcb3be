//! All rows of a kind, for those who need more than the first: answers of our own, Route lists, responses.
//!
//! A second walk over the header section, line by line. Messages that need it pay for it; most do not.

use super::index::{Row, Scan, Span};
use super::scalar::{self, Header};
use crate::dataplane::sip::grammar;
use crate::dataplane::sip::header::HeaderKind;

/// The rows of `kind` in `message`, which `scan` is the scan of, in order.
pub fn rows<'a>(message: &'a [u8], scan: &Scan, kind: HeaderKind) -> impl Iterator<Item = Row> + 'a {
    let end = (scan.body as usize).min(message.len());
    let is_repeated = scan.is_repeated(kind);
    let first = scan.row(kind);
    let mut next = first.map_or(end, |row| line_behind(message, row.end as usize));
    let more = core::iter::from_fn(move || {
        while is_repeated && next < end {
            let row = row_at(message, next, end)?;
            next = line_behind(message, row.row.end as usize);
            if row.kind == Some(kind) {
                return Some(row.row);
            }
        }
        None
    });
    first.into_iter().chain(more)
}

/// The values of all rows with one of these names, lower-case; for headers that the scan does not look for. Slow.
pub fn rows_named<'a>(message: &'a [u8], scan: &Scan, names: &'a [&'a [u8]]) -> impl Iterator<Item = Span> + 'a {
    let end = (scan.body as usize).min(message.len());
    let mut next = scan.headers as usize;
    core::iter::from_fn(move || {
        while next < end {
            let row = row_at(message, next, end)?.row;
            next = line_behind(message, row.end as usize);
            let line = Span { start: row.start, end: row.end }.of(message);
            let (name, value) = line.split_at(line.iter().position(|&octet| octet == b':').unwrap_or(line.len()));
            if names.iter().any(|one| grammar::trim(name).eq_ignore_ascii_case(one)) {
                let colon = usize::from(!value.is_empty());
                return Some(Span { start: row.start + (name.len() + colon) as u32, end: row.end });
            }
        }
        None
    })
}

/// Whether a continuation line begins as a header of ours would: some servers read it as one.
pub fn has_folded_header(message: &[u8], scan: &Scan) -> bool {
    if !scan.has_folds() {
        return false;
    }
    let head = message.get(..scan.body as usize).unwrap_or(message);
    memchr::memchr_iter(b'\n', head).any(|lf| {
        let line = &head[lf + 1..];
        let blanks = line.iter().take_while(|&&octet| grammar::is_blank(octet)).count();
        let is_known = |line| matches!(scalar::read_name(line), Header::Row(Some(_), _) | Header::LookAlike(_));
        blanks > 0 && is_known(&line[blanks..memchr::memchr(b'\n', line).unwrap_or(line.len())])
    })
}

struct KnownRow {
    kind: Option<HeaderKind>,
    row: Row,
}

/// The row that begins at `start`, its continuation lines included.
fn row_at(message: &[u8], start: usize, end: usize) -> Option<KnownRow> {
    let mut line_end = end_of_line(message, start, end)?;
    let first_line = &message[start..line_end];
    loop {
        let next = line_behind(message, line_end);
        if next >= end || !grammar::is_blank(message[next]) {
            break;
        }
        line_end = end_of_line(message, next, end)?;
    }
    let (kind, value) = match scalar::read_name(first_line) {
        Header::Row(kind, value) => (kind, value),
        Header::LookAlike(value) => (None, value),
        Header::Malformed => (None, first_line.len()),
    };
    let row = Row { start: start as u32, value: (start + value) as u32, end: line_end as u32 };
    Some(KnownRow { kind, row })
}

/// Where the line at `start` ends: at its CRLF, or at an LF without CR.
fn end_of_line(message: &[u8], start: usize, end: usize) -> Option<usize> {
    let lf = start + memchr::memchr(b'\n', &message[start..end])?;
    Some(if lf > start && message[lf - 1] == b'\r' { lf - 1 } else { lf })
}

/// The first octet behind the line end at `line_end`.
fn line_behind(message: &[u8], line_end: usize) -> usize {
    line_end + if message.get(line_end) == Some(&b'\r') { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::scan::scalar;

    #[test]
    fn all_rows_of_a_kind_are_found_in_order_with_their_folds() {
        let message = b"OPTIONS sip:a SIP/2.0\r\nVia: 1\r\nX: Via: no\r\n v: no\r\nv : 2,\r\n\t3\r\nCall-ID: x\nVIA:4\r\n\r\nVia: 5\r\n";
        let mut scan = Scan::default();
        scalar::scan(message, &mut scan);
        let values: Vec<_> = rows(message, &scan, HeaderKind::Via).map(|row| row.span().of(message).to_vec()).collect();
        assert_eq!(values, [b" 1".to_vec(), b" 2,\r\n\t3".to_vec(), b"4".to_vec()]);
        assert_eq!(rows(message, &scan, HeaderKind::Route).count(), 0);
    }

    #[test]
    fn a_fold_is_known_of_in_whatever_row_it_is() {
        let folds = |rows: &str| {
            let message = format!("OPTIONS sip:a SIP/2.0\r\n{rows}\r\n v: body\r\n");
            let mut scan = Scan::default();
            scalar::scan(message.as_bytes(), &mut scan);
            (scan.has_folds(), has_folded_header(message.as_bytes(), &scan))
        };
        assert_eq!(folds("Via: 1\r\nCall-ID: x\r\n"), (false, false));
        for rows in
            ["Via: 1,\r\n 2\r\nCall-ID: x\r\n", "Via: 1\r\nVia: 2,\r\n\t3\r\nX: y\r\n", "X: y\r\n z\r\nVia: 1\r\n"]
        {
            assert_eq!(folds(rows), (true, false), "{rows}");
        }
        for rows in ["X: y\r\n v: 2\r\nVia: 1\r\n", "Via: 1\r\nVia: 2\r\n\tTo: x\r\n"] {
            assert_eq!(folds(rows), (true, true), "{rows}");
        }
    }

    #[test]
    fn rows_of_any_name_are_found() {
        let message = b"OPTIONS sip:a SIP/2.0\r\nk: 1\r\nX: Supported: no\r\n k: no\r\nSUPPORTED : 2,\r\n 3\r\nSupported:4\r\n\r\nk: 5\r\n";
        let mut scan = Scan::default();
        scalar::scan(message, &mut scan);
        let names: &[&[u8]] = &[b"supported", b"k"];
        let values: Vec<_> = rows_named(message, &scan, names).map(|row| row.of(message).to_vec()).collect();
        assert_eq!(values, [b" 1".to_vec(), b" 2,\r\n 3".to_vec(), b"4".to_vec()]);
        assert_eq!(rows_named(message, &scan, &[b"contact", b"m"]).count(), 0);
    }
}
