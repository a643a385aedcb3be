//! Writing into lent room. What does not fit makes the whole text invalid, never a part of it wrong.

/// A text that grows in room somebody lends.
#[derive(Debug)]
pub struct Text<'a> {
    room: &'a mut [u8],
    /// len <= room.len()
    len: usize,
    overflowed: bool,
}

impl<'a> Text<'a> {
    /// An empty text.
    pub fn new(room: &'a mut [u8]) -> Text<'a> {
        Text { room, len: 0, overflowed: false }
    }

    /// Appends octets.
    #[inline]
    pub fn put(&mut self, octets: &[u8]) {
        match self.room.get_mut(self.len..self.len + octets.len()) {
            Some(room) => {
                room.copy_from_slice(octets);
                self.len += octets.len();
            }
            None => self.overflowed = true,
        }
    }

    /// Appends a decimal number.
    #[inline]
    pub fn put_number(&mut self, number: u64) {
        let mut digits = [0; 20];
        let mut at = digits.len();
        let mut rest = number;
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.put(&digits[at..]);
    }

    /// Appends a decimal number with at least `width` digits, zeros in front.
    #[inline]
    pub fn put_padded(&mut self, number: u64, width: usize) {
        let mut digits = [b'0'; 20];
        let mut rest = number;
        let mut at = digits.len();
        while rest > 0 {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        self.put(&digits[at.min(digits.len() - width.min(20))..]);
    }

    /// Appends 64 bits as 16 lower-case hexadecimal digits.
    #[inline]
    pub fn put_hex(&mut self, number: u64) {
        self.put(&hex(number));
    }

    /// Ends a message: the type of its body if there is one, its length, the empty line, and the body.
    pub fn put_body(&mut self, content_type: &[u8], body: &[u8]) {
        if !body.is_empty() {
            for part in [b"Content-Type: ", content_type, b"\r\n"] {
                self.put(part);
            }
        }
        self.put(b"Content-Length: ");
        self.put_number(body.len() as u64);
        self.put(b"\r\n\r\n");
        self.put(body);
    }

    /// What has been written so far.
    #[inline]
    pub fn octets(&self) -> &[u8] {
        &self.room[..self.len]
    }

    /// How much has been written so far.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How much has been written, `None` if it was more than there is room for.
    #[inline]
    pub fn finish(self) -> Option<usize> {
        (!self.overflowed).then_some(self.len)
    }
}

/// 64 bits as 16 lower-case hexadecimal digits.
#[inline]
pub fn hex(number: u64) -> [u8; 16] {
    // All sixteen nibbles side by side in 128 bits, one per octet, most significant first in memory.
    let mut wide = u128::from(number);
    wide = (wide | wide << 32) & 0x0000_0000_ffff_ffff_0000_0000_ffff_ffff;
    wide = (wide | wide << 16) & 0x0000_ffff_0000_ffff_0000_ffff_0000_ffff;
    wide = (wide | wide << 8) & 0x00ff_00ff_00ff_00ff_00ff_00ff_00ff_00ff;
    wide = (wide | wide << 4) & 0x0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f;
    // A nibble above 9 carries into bit 4 when 6 is added; 'a' is 39 beyond '0' + 10.
    let above_nine =
        (wide + 0x0606_0606_0606_0606_0606_0606_0606_0606) >> 4 & 0x0101_0101_0101_0101_0101_0101_0101_0101;
    (wide + 0x3030_3030_3030_3030_3030_3030_3030_3030 + above_nine * 39).to_be_bytes()
}

/// What 16 lower-case hexadecimal digits stand for.
#[inline]
pub fn from_hex(digits: &[u8]) -> Option<u64> {
    let digits: &[u8; 16] = digits.get(..16)?.try_into().ok()?;
    // `hex` backwards. Of a digit the lower four bits count, of a letter, which has bit 6, those and nine more.
    let wide = u128::from_be_bytes(*digits);
    let letters = wide >> 6 & 0x0101_0101_0101_0101_0101_0101_0101_0101;
    let mut wide = (wide & 0x0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f) + letters * 9;
    wide = (wide | wide >> 4) & 0x00ff_00ff_00ff_00ff_00ff_00ff_00ff_00ff;
    wide = (wide | wide >> 8) & 0x0000_ffff_0000_ffff_0000_ffff_0000_ffff;
    wide = (wide | wide >> 16) & 0x0000_0000_ffff_ffff_0000_0000_ffff_ffff;
    wide |= wide >> 32;
    let number = wide as u64;
    // Whatever is no digit at all gives a number that is written differently.
    (hex(number) == *digits).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_is_what_the_standard_library_writes() {
        let mut number = 1u64;
        for _ in 0..1000 {
            number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
            for number in [number, number >> 32, !number, 0, u64::MAX] {
                assert_eq!(hex(number), format!("{number:016x}").as_bytes());
                assert_eq!(from_hex(&hex(number)), Some(number));
            }
        }
        assert_eq!(from_hex(b"0123456789ABCDEF"), None);
        for octet in (0..=255).filter(|octet| !b"0123456789abcdef".contains(octet)) {
            for at in 0..16 {
                let mut digits = *b"0123456789abcdef";
                digits[at] = octet;
                assert_eq!(from_hex(&digits), None, "{octet} at {at}");
            }
        }
        assert_eq!(from_hex(b"0123"), None);
    }

    #[test]
    fn a_text_that_does_not_fit_is_no_text() {
        let mut room = [0; 8];
        let mut text = Text::new(&mut room);
        text.put(b"12345678");
        assert_eq!(text.octets(), b"12345678");
        text.put_number(9);
        assert_eq!(text.finish(), None);
    }

    #[test]
    fn numbers_are_written_in_decimal() {
        let mut room = [0; 64];
        let mut text = Text::new(&mut room);
        text.put_number(0);
        text.put(b" ");
        text.put_number(u64::MAX);
        text.put(b" ");
        text.put_padded(42, 6);
        text.put(b" ");
        text.put_padded(1_234_567, 6);
        assert_eq!(text.octets(), b"0 18446744073709551615 000042 1234567");
    }
}
