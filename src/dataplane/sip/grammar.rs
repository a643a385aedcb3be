//! Classes of octets, each with the ABNF of RFC 3261 section 25.1 it stands for.

use crate::dataplane::scan::{Span, find_blank_or};

/// A set of octets: one bit of `TABLE`, so that all sets share one table of 256 octets, and a test is one load.
#[derive(Clone, Copy)]
pub struct Class(u8);

/// `alphanum = ALPHA / DIGIT`
pub const ALPHANUM: Class = Class(1 << 0);

/// `DIGIT`
pub const DIGIT: Class = Class(1 << 1);

/// `token = 1*(alphanum / "-" / "." / "!" / "%" / "*" / "_" / "+" / "`" / "'" / "~" )`
pub const TOKEN: Class = Class(1 << 2);

/// What an `addr-spec` holds that stands without angle brackets: its parameters are the header's (RFC 3261 20.10, RFC
/// 8217), and a comma ends the value.
pub const BARE_URI: Class = Class(1 << 3);

/// Octets of a display name that is no quoted string: `token`, and what is above 0x7f, which phones write there.
pub const DISPLAY_NAME: Class = Class(1 << 4);

static TABLE: [u8; 256] = {
    let mut table = [0u8; 256];
    let mut octet = 0;
    while octet < 256 {
        let high = octet > 0x7f;
        let o = octet as u8;
        let alphanum = o.is_ascii_alphanumeric();
        let token = alphanum || among(b"-.!%*_+`'~", o);
        let uri = alphanum || high || among(b";/?:@&=+$,-_.!~*'()%[]#^|`{}", o);
        let sets = [
            (ALPHANUM, alphanum),
            (DIGIT, o.is_ascii_digit()),
            (TOKEN, token),
            (BARE_URI, uri && !among(b";,?", o)),
            (DISPLAY_NAME, token || high),
        ];
        let mut i = 0;
        while i < sets.len() {
            if sets[i].1 {
                table[octet] |= sets[i].0.0;
            }
            i += 1;
        }
        octet += 1;
    }
    table
};

const fn among(octets: &[u8], octet: u8) -> bool {
    let mut i = 0;
    while i < octets.len() {
        if octets[i] == octet {
            return true;
        }
        i += 1;
    }
    false
}

impl Class {
    /// Whether `octet` belongs to the class.
    #[inline(always)]
    pub const fn has(self, octet: u8) -> bool {
        TABLE[octet as usize] & self.0 != 0
    }

    /// How many of the first `octets` belong to the class, up to one that does not.
    #[inline(always)]
    pub fn prefix(self, octets: &[u8]) -> usize {
        octets.iter().position(|&octet| !self.has(octet)).unwrap_or(octets.len())
    }

    /// Whether all of `octets` belong to the class. True for none.
    #[inline(always)]
    pub fn has_all(self, octets: &[u8]) -> bool {
        self.prefix(octets) == octets.len()
    }
}

/// Whether `span` may be a Call-ID: some octets, none of them a blank or a control character.
///
/// `callid = word [ "@" word ]`, and `word` has most visible characters. Those it leaves out, such as `;` and `=`, are let
/// through, and so are octets above 0x7f: phones write them, nothing ends or splits the value at them, and refusing them
/// would refuse calls that work today.
#[inline(always)]
pub fn is_call_id(message: &[u8], span: Span) -> bool {
    let (start, end) = (span.start as usize, span.end as usize);
    start < end && find_blank_or(message, start, end, []) == end
}

/// `SP / HTAB`: what may stand round separators, and what a folded line begins with (RFC 3261 7.3.1).
#[inline(always)]
pub const fn is_blank(octet: u8) -> bool {
    octet == b' ' || octet == b'\t'
}

/// LWS once line ends are known to be in order: blanks, and the CRLF of a fold.
#[inline(always)]
pub const fn is_lws(octet: u8) -> bool {
    matches!(octet, b' ' | b'\t' | b'\r' | b'\n')
}

/// `text` without linear white space at either end.
#[inline]
pub fn trim(text: &[u8]) -> &[u8] {
    // One space and a word, which is what practically all values are.
    if let [b' ', word @ ..] = text
        && let ([first, ..], [.., last]) = (word, word)
        && !is_lws(*first)
        && !is_lws(*last)
    {
        return word;
    }
    let lead = text.iter().position(|&octet| !is_lws(octet)).unwrap_or(text.len());
    let tail = text.iter().rposition(|&octet| !is_lws(octet)).map_or(lead, |last| last + 1);
    &text[lead..tail]
}

/// How many of the first eight octets are digits up to one that is none, and the number they say. The octets are looked at
/// as one word, which for a port takes a third of the instructions of a loop; for one or two digits, [`number`] takes fewer.
#[inline(always)]
pub const fn leading_number(octets: [u8; 8]) -> (usize, u32) {
    const EACH: u64 = 0x0101_0101_0101_0101;
    // The first octet is the lowest. A digit becomes its value, anything else something above nine.
    let values = u64::from_le_bytes(octets) ^ (EACH * b'0' as u64);
    // The highest bit of each octet that is above nine. What is carried out of one only reaches those behind it.
    let others = (values.wrapping_add(EACH * 0x76) | values) & (EACH * 0x80);
    let count = others.trailing_zeros() as usize / 8;
    if count == 0 {
        return (0, 0);
    }
    // Zeros in front, so that there are eight digits; then pairs, fours, all.
    let digits = values << (64 - 8 * count);
    let pairs = (digits * 10 + (digits >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs * 100 + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    (count, (fours * 10_000 + (fours >> 32)) as u32)
}

/// `1*DIGIT` that fits `u64`; anything else is `None`: no sign, no blank, no overflow.
#[inline(always)]
pub fn number(digits: &[u8]) -> Option<u64> {
    if !(1..=9).contains(&digits.len()) {
        return long_number(digits);
    }
    // Nine digits fit 32 bits.
    let mut value = 0;
    for &digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = 10 * value + u32::from(digit);
    }
    Some(u64::from(value))
}

#[cold]
fn long_number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let mut value: u64 = 0;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_exactly_the_abnf() {
        for octet in 0..=255u8 {
            let expected = octet.is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(&octet);
            assert_eq!(TOKEN.has(octet), expected, "{octet:#x}");
        }
    }

    #[test]
    fn leading_numbers_end_where_digits_end() {
        for text in ["", "0", "7", "42", "506", "5060", "65535", "123456", "9999999", "00000000", "12345678"] {
            for behind in 0..=255u8 {
                let mut octets = [behind; 8];
                octets[..text.len()].copy_from_slice(text.as_bytes());
                let naive = octets.iter().take_while(|octet| octet.is_ascii_digit()).count();
                let value = octets[..naive].iter().fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
                assert_eq!(leading_number(octets), (naive, value), "{text} {behind:#x}");
            }
        }
    }

    #[test]
    fn numbers_do_not_wrap_and_take_digits_only() {
        for len in 0..20 {
            let text = "1234567890123456789".get(..len).unwrap();
            assert_eq!(number(text.as_bytes()), text.parse().ok(), "{text}");
        }
        assert_eq!(number(b"0068"), Some(68));
        assert_eq!(number(b"18446744073709551615"), Some(u64::MAX));
        for bad in [&b""[..], b"18446744073709551616", b"18446744073709551617", b"-1", b"+0", b"0x10", b"1 2", b"many"]
        {
            assert_eq!(number(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn trim_takes_folds_and_blanks_from_both_ends_only() {
        assert_eq!(trim(b" \t\r\n a b \t"), b"a b");
        assert_eq!(trim(b""), b"");
        assert_eq!(trim(b" \r\n "), b"");
    }
}
