//! Writing into room that somebody lent: no allocation, no formatting machinery, no way to overrun.

use std::net::IpAddr;

/// Copies `from` to `to`, which is as long. What we copy is mostly shorter than 64 octets and of a length only known when it
/// is copied; a call of `memcpy` would cost more than the copy. Two pieces of a fixed length that may overlap cover any
/// length between theirs and twice that.
#[inline(always)]
pub fn copy_short(to: &mut [u8], from: &[u8]) {
    let len = from.len();
    macro_rules! two_pieces {
        ($piece:literal) => {
            if let (Some(first), Some(last)) = (from.first_chunk::<$piece>(), from.last_chunk::<$piece>())
                && to.len() == len
            {
                to[..$piece].copy_from_slice(first);
                to[len - $piece..].copy_from_slice(last);
            }
        };
    }
    match len {
        0 => {}
        1..4 => {
            for (place, &octet) in to.iter_mut().zip(from) {
                *place = octet;
            }
        }
        4..8 => two_pieces!(4),
        8..16 => two_pieces!(8),
        16..=32 => two_pieces!(16),
        33..=64 => two_pieces!(32),
        _ => to.copy_from_slice(from),
    }
}

/// `00` to `99`.
static PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[0; 2]; 100];
    let mut i = 0;
    while i < 100 {
        pairs[i] = [b'0' + i as u8 / 10, b'0' + i as u8 % 10];
        i += 1;
    }
    pairs
};

/// The decimal digits of every octet and a `.`, and how many octets that is.
static DECIMAL: [([u8; 4], u8); 256] = {
    let mut table = [([b'.'; 4], 0); 256];
    let mut octet = 0;
    while octet < 256 {
        let digits = if octet > 99 {
            3
        } else if octet > 9 {
            2
        } else {
            1
        };
        let mut rest = octet;
        let mut place = digits;
        while place > 0 {
            place -= 1;
            table[octet].0[place] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        table[octet].1 = digits as u8 + 1;
        octet += 1;
    }
    table
};

/// A text being written. What does not fit is left out and remembered: see [`Text::finish`].
#[derive(Debug)]
pub struct Text<'a> {
    room: &'a mut [u8],
    /// `len <= room.len()`
    len: usize,
    overrun: bool,
}

impl<'a> Text<'a> {
    /// An empty text in `room`.
    #[inline(always)]
    pub fn new(room: &'a mut [u8]) -> Text<'a> {
        Text { room, len: 0, overrun: false }
    }

    /// Octets written.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends `octets`.
    #[inline(always)]
    pub fn put(&mut self, octets: &[u8]) -> &mut Self {
        match self.room.get_mut(self.len..self.len + octets.len()) {
            Some(place) => {
                copy_short(place, octets);
                self.len += octets.len();
            }
            None => self.overrun = true,
        }
        self
    }

    /// Appends `octets`, each as `map` has it.
    #[inline(always)]
    pub fn put_mapped(&mut self, octets: &[u8], map: impl Fn(u8) -> u8) -> &mut Self {
        match self.room.get_mut(self.len..self.len + octets.len()) {
            Some(place) => {
                for (place, &octet) in place.iter_mut().zip(octets) {
                    *place = map(octet);
                }
                self.len += octets.len();
            }
            None => self.overrun = true,
        }
        self
    }

    /// Appends a number in decimal.
    #[inline(always)]
    pub fn put_number(&mut self, number: u32) -> &mut Self {
        if number > 99_999_999 {
            return self.put_long_number(number);
        }
        // Put together in a register, the first digit its lowest octet: what is written to memory in pieces and read back as a
        // whole has to wait until all of it is there.
        let (mut digits, mut len, mut rest) = (0u64, 0, number);
        while rest > 9 {
            digits = digits << 16 | u64::from(u16::from_le_bytes(PAIRS[(rest % 100) as usize]));
            len += 2;
            rest /= 100;
        }
        // A last pair below ten, or a last digit; of the number zero that is all there is.
        if rest > 0 || len == 0 {
            digits = digits << 8 | u64::from(b'0' + rest as u8);
            len += 1;
        }
        let digits = digits.to_le_bytes();
        match self.room.get_mut(self.len..).and_then(|rest| rest.first_chunk_mut()) {
            Some(place) => {
                *place = digits;
                self.len += len;
                self
            }
            None => self.put(&digits[..len]),
        }
    }

    /// The same, of nine or ten digits.
    #[cold]
    fn put_long_number(&mut self, number: u32) -> &mut Self {
        use core::fmt::Write;
        self.overrun |= write!(self, "{number}").is_err();
        self
    }

    /// Appends an address as `received` has it: IPv6 without brackets (RFC 5118 4.5), and an IPv4-mapped IPv6 address as
    /// the IPv4 address it is (4.9).
    #[inline(always)]
    pub fn put_address(&mut self, address: IpAddr) -> &mut Self {
        match address.to_canonical() {
            IpAddr::V4(address) => {
                // Four entries of four octets each, laid over each other's unused ends; the last dot is not counted. An
                // address has at most 15 octets: room that has not 16 left counts as too small.
                let Some(place) = self.room.get_mut(self.len..self.len + 16) else {
                    self.overrun = true;
                    return self;
                };
                let mut len = 0;
                for octet in address.octets() {
                    let (text, octets) = DECIMAL[octet as usize];
                    if let Some(place) = place.get_mut(len..len + 4) {
                        place.copy_from_slice(&text);
                    }
                    len += octets as usize;
                }
                self.len += len - 1;
                self
            }
            IpAddr::V6(address) => {
                use core::fmt::Write;
                if write!(self, "{address}").is_err() {
                    self.overrun = true;
                }
                self
            }
        }
    }

    /// What was written from offset `start` on.
    pub fn written_since(&self, start: usize) -> &[u8] {
        self.room.get(start..self.len).unwrap_or_default()
    }

    /// The text, or `None` if the room was too small for it.
    #[inline(always)]
    pub fn finish(self) -> Option<&'a [u8]> {
        if self.overrun { None } else { self.room.get(..self.len) }
    }

    /// The text's length, or `None` if the room was too small for it.
    #[inline(always)]
    pub fn finished_len(&self) -> Option<usize> {
        (!self.overrun).then_some(self.len)
    }
}

impl core::fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.put(text.as_bytes());
        if self.overrun { Err(core::fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_addresses_are_written_as_people_write_them() {
        let mut room = [0; 128];
        let mut text = Text::new(&mut room);
        text.put_number(0).put(b" ").put_number(5060).put(b" ").put_number(u32::MAX).put(b" ");
        for number in [7, 10, 99, 100, 101, 999, 1000, 12345, 65535, 100_000, 1_000_000_000] {
            let mut room = [0; 16];
            let mut text = Text::new(&mut room);
            text.put_number(number);
            assert_eq!(text.finish().unwrap(), number.to_string().as_bytes());
        }
        for address in ["192.0.2.1", "10.99.100.255", "2001:db8::1", "::ffff:192.0.2.1"] {
            text.put_address(address.parse().unwrap()).put(b" ");
        }
        assert_eq!(text.finish().unwrap(), b"0 5060 4294967295 192.0.2.1 10.99.100.255 2001:db8::1 192.0.2.1 ");
    }

    #[test]
    fn short_copies_are_copies_of_any_length() {
        let from: Vec<u8> = (0..200).collect();
        for len in 0..200 {
            let mut to = vec![255; len];
            copy_short(&mut to, &from[..len]);
            assert_eq!(to, from[..len]);
        }
    }

    #[test]
    fn what_does_not_fit_is_remembered_and_never_written_in_part() {
        let mut room = [b'-'; 4];
        let mut text = Text::new(&mut room);
        text.put(b"abc").put(b"de");
        assert_eq!((text.len(), text.finished_len()), (3, None));
        assert!(text.finish().is_none());
        assert_eq!(&room, b"abc-");
    }
}
