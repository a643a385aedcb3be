//! Looking for the few octets that end something, sixteen at a time.
//!
//! The values that the parsers of `sip/` read are 5 to 60 octets long: too short for a search that is called through a
//! pointer and sets itself up, too long to test octet by octet. SSE2 and NEON are part of their targets' baselines, so
//! these are inlined into the parsers; other targets take the plain way, and so do the last 15 octets of a message.
//!
//! A search looks at octets behind the value it searches, never behind the message, and forgets what it saw there.

/// The offset of the first octet of `message[start..end]` that is one of `stops`; `end` if none is.
#[inline(always)]
pub fn find<const N: usize>(message: &[u8], start: usize, end: usize, stops: [u8; N]) -> usize {
    let found = search(message, start, end, |octets| Mask::any(octets, stops));
    found.unwrap_or_else(|at| plainly(message, at, end, stops, false))
}

/// The offset of the first octet of `message[start..end]` that is one of `stops`, or a blank, or a control character;
/// `end` if none is.
#[inline(always)]
pub fn find_blank_or<const N: usize>(message: &[u8], start: usize, end: usize, stops: [u8; N]) -> usize {
    let found = search(message, start, end, |octets| Mask::any(octets, stops) | Mask::blank(octets));
    found.unwrap_or_else(|at| plainly(message, at, end, stops, true))
}

/// `block` makes a bit per octet of sixteen. `Err` says from where on there are fewer, and none was found before.
#[inline(always)]
fn search(message: &[u8], start: usize, end: usize, block: impl Fn(&[u8; 16]) -> u32) -> Result<usize, usize> {
    let mut at = start;
    while at < end {
        let Some(octets) = message.get(at..).and_then(|rest| rest.first_chunk()).filter(|_| BLOCKS) else {
            return Err(at);
        };
        let found = block(octets);
        if found != 0 {
            return Ok((at + found.trailing_zeros() as usize).min(end));
        }
        at += 16;
    }
    Ok(end)
}

/// The same, octet by octet. A function of its own: where the address of `stops` is taken they are put into memory, octet by octet, and
/// read from there for every search.
#[cold]
#[inline(never)]
fn plainly<const N: usize>(message: &[u8], at: usize, end: usize, stops: [u8; N], blanks: bool) -> usize {
    let is_it = |&octet: &u8| stops.contains(&octet) || blanks && (octet <= b' ' || octet == 0x7f);
    let rest = message.get(at..end).unwrap_or_default();
    rest.iter().position(is_it).map_or(end, |distance| at + distance)
}

#[cfg(target_arch = "x86_64")]
use sse2::{BLOCKS, Mask};

#[cfg(target_arch = "x86_64")]
mod sse2 {
    use core::arch::x86_64::*;

    pub const BLOCKS: bool = true;
    pub struct Mask;

    impl Mask {
        #[inline(always)]
        pub fn any<const N: usize>(octets: &[u8; 16], stops: [u8; N]) -> u32 {
            // SAFETY: the unaligned load reads 16 octets of 16; every x86-64 has SSE2.
            unsafe {
                let octets = _mm_loadu_si128(octets.as_ptr().cast());
                let mut found = _mm_setzero_si128();
                for stop in stops {
                    found = _mm_or_si128(found, _mm_cmpeq_epi8(octets, _mm_set1_epi8(stop as i8)));
                }
                _mm_movemask_epi8(found) as u32
            }
        }

        #[inline(always)]
        pub fn blank(octets: &[u8; 16]) -> u32 {
            // SAFETY: as above.
            unsafe {
                let octets = _mm_loadu_si128(octets.as_ptr().cast());
                // Unsigned `octet <= 0x20`: the smaller of the two is the octet itself.
                let low = _mm_cmpeq_epi8(_mm_min_epu8(octets, _mm_set1_epi8(0x20)), octets);
                let delete = _mm_cmpeq_epi8(octets, _mm_set1_epi8(0x7f));
                _mm_movemask_epi8(_mm_or_si128(low, delete)) as u32
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
use neon::{BLOCKS, Mask};

#[cfg(target_arch = "aarch64")]
mod neon {
    use core::arch::aarch64::*;

    pub const BLOCKS: bool = true;
    pub struct Mask;

    impl Mask {
        #[inline(always)]
        pub fn any<const N: usize>(octets: &[u8; 16], stops: [u8; N]) -> u32 {
            // SAFETY: the load reads 16 octets of 16; every AArch64 has NEON.
            unsafe {
                let octets = vld1q_u8(octets.as_ptr());
                let mut found = vdupq_n_u8(0);
                for stop in stops {
                    found = vorrq_u8(found, vceqq_u8(octets, vdupq_n_u8(stop)));
                }
                bits(found)
            }
        }

        #[inline(always)]
        pub fn blank(octets: &[u8; 16]) -> u32 {
            // SAFETY: as above.
            unsafe {
                let octets = vld1q_u8(octets.as_ptr());
                bits(vorrq_u8(vcleq_u8(octets, vdupq_n_u8(0x20)), vceqq_u8(octets, vdupq_n_u8(0x7f))))
            }
        }
    }

    /// A bit per lane that is all ones.
    #[inline(always)]
    fn bits(lanes: uint8x16_t) -> u32 {
        // SAFETY: register operations of the AArch64 baseline; the load reads 16 octets of 16.
        unsafe {
            let weights = vld1q_u8([1u8, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128].as_ptr());
            let weighted = vandq_u8(lanes, weights);
            let low = u32::from(vaddv_u8(vget_low_u8(weighted)));
            low | u32::from(vaddv_u8(vget_high_u8(weighted))) << 8
        }
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
use plain::{BLOCKS, Mask};

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod plain {
    pub const BLOCKS: bool = false;
    pub struct Mask;

    impl Mask {
        pub fn any<const N: usize>(_: &[u8; 16], _: [u8; N]) -> u32 {
            0
        }

        pub fn blank(_: &[u8; 16]) -> u32 {
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_octet_is_found_at_every_place_of_values_of_every_length() {
        let stops = [b';', b'=', 0x80];
        for len in 0..40 {
            for place in 0..len {
                for octet in 0..=255u8 {
                    let mut message = vec![b'x'; len];
                    message[place] = octet;
                    for (start, end) in
                        [(0, len), (1, len), (len / 2, len), (0, len / 2), (3, 3), (0, len.saturating_sub(1))]
                    {
                        let (start, end) = (start.min(end).min(len), end.min(len));
                        let naive = |is: &dyn Fn(u8) -> bool| {
                            message[start..end].iter().position(|&octet| is(octet)).map_or(end, |at| start + at)
                        };
                        let stop = |octet: u8| stops.contains(&octet);
                        assert_eq!(find(&message, start, end, stops), naive(&stop));
                        let blank = |octet: u8| octet <= b' ' || octet == 0x7f || stop(octet);
                        assert_eq!(find_blank_or(&message, start, end, stops), naive(&blank));
                    }
                }
            }
        }
    }
}
