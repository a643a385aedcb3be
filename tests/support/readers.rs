//! Where others find the end of a message in a stream: models of how Kamailio, OpenSIPS, PJSIP and Sofia-SIP read, as far
//! as framing goes. Made from what their readers were seen to do with odd messages, not from their code, and more gullible
//! rather than less: what all of these read alike, the real ones do.

use std::borrow::Cow;

/// By reader: how long it takes the first message in `octets` to be; `None`: it finds no length, or no end of the head.
pub fn lengths(octets: &[u8]) -> [(&'static str, Option<usize>); 5] {
    let kamailio = octet_by_octet(octets, false);
    [
        ("Kamailio", kamailio),
        // As far as this goes they read alike.
        ("OpenSIPS", kamailio),
        ("Kamailio 5.6, OpenSIPS 3.2 (lengths of 32 bits)", octet_by_octet(octets, true)),
        ("PJSIP", by_column_zero(octets)),
        ("Sofia-SIP", by_any_line_end(octets)),
    ]
}

fn is_blank(octet: u8) -> bool {
    octet == b' ' || octet == b'\t'
}

fn blanks(text: &[u8]) -> usize {
    text.iter().take_while(|&&octet| is_blank(octet)).count()
}

/// What is behind the colon of a length header, whose name may be written with `like` in the place of its letters.
fn value_of_length(line: &[u8], like: impl Fn(u8) -> u8) -> Option<&[u8]> {
    ["content-length", "l"].iter().find_map(|name| {
        let (start, rest) = line.split_at_checked(name.len())?;
        let same = start.iter().zip(name.bytes()).all(|(&theirs, ours)| like(theirs.to_ascii_lowercase()) == ours);
        rest[blanks(rest)..].strip_prefix(b":").filter(|_| same)
    })
}

fn without_cr(line: &[u8]) -> Cow<'_, [u8]> {
    let bare = line.strip_suffix(b"\r").unwrap_or(line);
    match bare.contains(&b'\r') {
        true => bare.iter().copied().filter(|&octet| octet != b'\r').collect(),
        false => bare.into(),
    }
}

/// Kamailio and OpenSIPS: octet by octet; LF ends a line, CR is nothing; a folded line is as good as any; `_` is `-`; the
/// first length that begins with digits wins, whatever follows a blank behind them.
fn octet_by_octet(octets: &[u8], wraps: bool) -> Option<usize> {
    let lead = octets.iter().take_while(|&&octet| is_blank(octet) || octet == b'\r' || octet == b'\n').count();
    let mut length = None;
    let mut at = lead;
    loop {
        let end = at + octets[at..].iter().position(|&octet| octet == b'\n')?;
        let line = &octets[at..end];
        let bare = without_cr(line);
        if bare.is_empty() {
            return Some(end + 1 + length?);
        }
        if length.is_none()
            && let Some(value) =
                value_of_length(&bare[blanks(&bare)..], |octet| if octet == b'_' { b'-' } else { octet })
        {
            let value = &value[blanks(value)..];
            let digits = value.iter().take_while(|octet| octet.is_ascii_digit()).count();
            let ends_well = value.get(digits).is_none_or(|&octet| is_blank(octet));
            if digits > 0 && ends_well {
                let number = value[..digits].iter().fold(0u64, |number, digit| {
                    let number = number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
                    if wraps { number & 0xffff_ffff } else { number }
                });
                length = usize::try_from(number).ok();
            }
        }
        at = end + 1;
    }
}

/// PJSIP: the head ends at `LF CR LF`; a header begins at the start of a line; the first length that is a number up to the
/// end of its line wins.
fn by_column_zero(octets: &[u8]) -> Option<usize> {
    let head = octets.windows(3).position(|three| three == b"\n\r\n")? + 3;
    let lines = octets[..head].split(|&octet| octet == b'\n');
    let length = lines.filter_map(|line| value_of_length(line, |octet| octet)).find_map(|value| {
        let text = std::str::from_utf8(value).ok()?.trim_matches([' ', '\t', '\r']);
        text.bytes().all(|octet| octet.is_ascii_digit()).then(|| text.parse::<i32>().ok()).flatten()
    });
    Some(head + length? as usize)
}

/// Sofia-SIP: CR, LF and CRLF each end a line, also CR alone; a line that begins with a blank belongs to the one before.
fn by_any_line_end(octets: &[u8]) -> Option<usize> {
    let (mut at, mut length, mut is_length) = (0, None, false);
    loop {
        let end = at + octets[at..].iter().position(|&octet| octet == b'\r' || octet == b'\n')?;
        let next = end + if octets[end..].starts_with(b"\r\n") { 2 } else { 1 };
        let line = &octets[at..end];
        if line.is_empty() {
            return Some(next + length?);
        }
        if line.first().is_some_and(|&octet| is_blank(octet)) {
            // A length that goes on in the next line is none.
            length = length.filter(|_| !is_length);
        } else {
            let value = value_of_length(line, |octet| octet);
            is_length = value.is_some() && length.is_none();
            if let (Some(value), None) = (value, length) {
                let text = std::str::from_utf8(value).ok()?.trim_matches([' ', '\t']);
                let number =
                    text.bytes().all(|octet| octet.is_ascii_digit()).then(|| text.parse::<u32>().ok()).flatten();
                // A length that is no number is an error to it, which ends everything.
                length = Some(number? as usize);
            }
        }
        at = next;
    }
}
