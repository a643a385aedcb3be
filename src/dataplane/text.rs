//! Writing into room that somebody lent: no allocation, no formatting machinery, no way to overrun.

use std::net::IpAddr;

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
                place.copy_from_slice(octets);
                self.len += octets.len();
            }
            None => self.overrun = true,
        }
        self
    }

    /// Appends a number in decimal.
    #[inline(always)]
    pub fn put_number(&mut self, mut number: u32) -> &mut Self {
        let mut digits = [0u8; 10];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.put(&digits[at..])
    }

    /// Appends an address as `received` has it: IPv6 without brackets (RFC 5118 4.5), and an IPv4-mapped IPv6 address as
    /// the IPv4 address it is (4.9).
    #[inline(always)]
    pub fn put_address(&mut self, address: IpAddr) -> &mut Self {
        match address.to_canonical() {
            IpAddr::V4(address) => {
                let [a, b, c, d] = address.octets().map(u32::from);
                self.put_number(a).put(b".").put_number(b).put(b".").put_number(c).put(b".").put_number(d)
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
        for address in ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"] {
            text.put_address(address.parse().unwrap()).put(b" ");
        }
        assert_eq!(text.finish().unwrap(), b"0 5060 4294967295 192.0.2.1 2001:db8::1 192.0.2.1 ");
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
