//! The least type information (BTF) that the kernel wants of a program with functions: that there are such, that they
//! return an `int`, and what they are called.
//!
//! ```text
//! header | 1: int | 2: int () | 3: function, 4: function, … | names
//! ```

/// Octets of the header.
const HEADER: u32 = 24;
const MAGIC: u16 = 0xeb9f;
const INT: u32 = 1 << 24;
const FUNCTION: u32 = 12 << 24;
const FUNCTION_TYPE: u32 = 13 << 24;
/// In the encoding of an integer: it has a sign. The low octet: its bits.
const SIGNED_32: u32 = 1 << 24 | 32;

/// The type of function number `number`.
pub fn function(number: usize) -> u32 {
    number as u32 + 3
}

/// The type information of static functions of these names.
pub fn of<'a>(names: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let mut text = b"\0int\0".to_vec();
    let mut types: Vec<u32> = vec![1, INT, 4, SIGNED_32, 0, FUNCTION_TYPE, 1];
    for name in names {
        types.extend([text.len() as u32, FUNCTION, 2]);
        text.extend(name.bytes().chain([0]));
    }
    let types_len = 4 * types.len() as u32;
    let header = [HEADER, 0, types_len, types_len, text.len() as u32];
    let mut octets = MAGIC.to_ne_bytes().to_vec();
    octets.extend([1, 0]);
    octets.extend(header.iter().chain(&types).flat_map(|number| number.to_ne_bytes()));
    octets.extend(text);
    octets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_where_the_header_says() {
        let octets = of(["steer", "step"].into_iter());
        assert_eq!(octets.len(), 24 + 4 * 13 + 5 + 6 + 5);
        assert_eq!(&octets[octets.len() - 11..], b"steer\0step\0");
        assert_eq!(function(1), 4);
    }
}
