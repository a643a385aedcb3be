//! Classes of octets, each with the ABNF of RFC 3261 section 25.1 it stands for.

/// A set of octets as a bit per value, so that a test is one load and one shift.
#[derive(Clone, Copy)]
pub struct Class([u64; 4]);

impl Class {
    /// The class of exactly these octets.
    pub const fn of(octets: &[u8]) -> Class {
        let mut bits = [0u64; 4];
        let mut i = 0;
        while i < octets.len() {
            bits[(octets[i] >> 6) as usize] |= 1 << (octets[i] & 63);
            i += 1;
        }
        Class(bits)
    }

    /// The class of the octets of either.
    pub const fn and(self, other: Class) -> Class {
        Class([self.0[0] | other.0[0], self.0[1] | other.0[1], self.0[2] | other.0[2], self.0[3] | other.0[3]])
    }

    /// The class without these octets.
    pub const fn without(self, octets: &[u8]) -> Class {
        let out = Class::of(octets);
        Class([self.0[0] & !out.0[0], self.0[1] & !out.0[1], self.0[2] & !out.0[2], self.0[3] & !out.0[3]])
    }

    /// Whether `octet` belongs to the class.
    #[inline(always)]
    pub const fn has(&self, octet: u8) -> bool {
        self.0[(octet >> 6) as usize] >> (octet & 63) & 1 != 0
    }

    /// Whether all of `octets` belong to the class. True for none.
    #[inline]
    pub fn has_all(&self, octets: &[u8]) -> bool {
        octets.iter().all(|&octet| self.has(octet))
    }
}

/// `alphanum = ALPHA / DIGIT`
pub const ALPHANUM: Class = Class::of(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789");

/// `token = 1*(alphanum / "-" / "." / "!" / "%" / "*" / "_" / "+" / "`" / "'" / "~" )`
pub const TOKEN: Class = ALPHANUM.and(Class::of(b"-.!%*_+`'~"));

/// `word = 1*(alphanum / "-" / "." / "!" / "%" / "*" / "_" / "+" / "`" / "'" / "~" / "(" / ")" / "<" / ">" / ":" / "\" /
/// DQUOTE / "/" / "[" / "]" / "?" / "{" / "}" )` and the `@` between the two words of a `callid`.
///
/// Octets above 0x7f are let through too: some phones put them there, they cannot end or split the value, and refusing
/// them would refuse calls that work today.
pub const CALL_ID: Class = {
    let mut class = TOKEN.and(Class::of(b"()<>:\\\"/[]?{}@"));
    class.0[2] = u64::MAX;
    class.0[3] = u64::MAX;
    class
};

/// Octets of a parameter value outside quotes: `token / host`, and the octets of URIs that real values hold although they
/// should not. What ends a value is left out: `;`, `,`, white space, quotes, angle brackets.
pub const URI_PARAM: Class = {
    let mut class = TOKEN.and(Class::of(b"[]:/@&+$?#^|{}()\\="));
    class.0[2] = u64::MAX;
    class.0[3] = u64::MAX;
    class
};

/// Octets that may stand in a Request-URI: `reserved / unreserved / escaped` and the square brackets of IPv6. Octets
/// above 0x7f are not allowed by the grammar and are let through: they are a telephone's mistake, not a danger.
pub const URI: Class = {
    let mut class = ALPHANUM.and(Class::of(b";/?:@&=+$,-_.!~*'()%[]#^|`{}"));
    class.0[2] = u64::MAX;
    class.0[3] = u64::MAX;
    class
};

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
    let mut text = text;
    while let [first, rest @ ..] = text {
        if !is_lws(*first) {
            break;
        }
        text = rest;
    }
    while let [rest @ .., last] = text {
        if !is_lws(*last) {
            break;
        }
        text = rest;
    }
    text
}

/// `1*DIGIT` that fits `u64`; anything else is `None`: no sign, no blank, no overflow.
#[inline]
pub fn number(digits: &[u8]) -> Option<u64> {
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
    fn numbers_do_not_wrap_and_take_digits_only() {
        assert_eq!(number(b"0068"), Some(68));
        assert_eq!(number(b"18446744073709551615"), Some(u64::MAX));
        for bad in [&b""[..], b"18446744073709551616", b"18446744073709551617", b"-1", b"+0", b"0x10", b"1 2", b"many"] {
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
