//! Looking for the few octets that end something, sixteen at a time.
//!
//! The values that the parsers of `sip/` read are 10 to 60 octets long: too short for a search that is called through a
//! pointer and sets itself up, too long to test octet by octet. SSE2 and NEON are part of their targets' baselines, so
//! these are inlined into the parsers; other targets take the plain way, which is also the tail of short texts.

/// The offset of the first octet of `text` that is one of `stops`.
#[inline(always)]
pub fn find<const N: usize>(text: &[u8], stops: [u8; N]) -> Option<usize> {
    search(text, |octets| Mask::any(octets, stops), |octet| stops.contains(&octet))
}

/// The offset of the first octet of `text` that is one of `stops`, or a blank, or a control character.
#[inline(always)]
pub fn find_blank_or<const N: usize>(text: &[u8], stops: [u8; N]) -> Option<usize> {
    search(
        text,
        |octets| Mask::any(octets, stops) | Mask::blank(octets),
        |octet| octet <= b' ' || octet == 0x7f || stops.contains(&octet),
    )
}

/// A bit for each octet of `text` that is `stop`, if `text` has 16 to 128 octets and none of them is one of `odd`, a blank,
/// or a control character.
#[inline(always)]
pub fn marks_unless<const N: usize>(text: &[u8], stop: u8, odd: [u8; N]) -> Option<u128> {
    if text.len() > 128 || !BLOCKS {
        return None;
    }
    let last: &[u8; 16] = text.last_chunk()?;
    let (mut marks, mut strange, mut at) = (0u128, 0, 0);
    while let Some(octets) = text.get(at..).and_then(|rest| rest.first_chunk()) {
        marks |= u128::from(Mask::any(octets, [stop])) << at;
        strange |= Mask::any(octets, odd) | Mask::blank(octets);
        at += 16;
    }
    // The rest as part of the last sixteen octets, some of which were seen before.
    marks |= u128::from(Mask::any(last, [stop])) << (text.len() - 16);
    strange |= Mask::any(last, odd) | Mask::blank(last);
    (strange == 0).then_some(marks)
}

/// `block` makes a bit per octet of sixteen, `one` says the same of a single one.
#[inline(always)]
fn search(text: &[u8], block: impl Fn(&[u8; 16]) -> u32, one: impl Fn(u8) -> bool) -> Option<usize> {
    if BLOCKS {
        let mut at = 0;
        while let Some(octets) = text.get(at..).and_then(|rest| rest.first_chunk()) {
            let found = block(octets);
            if found != 0 {
                return Some(at + found.trailing_zeros() as usize);
            }
            at += 16;
        }
        return text.get(at..)?.iter().position(|&octet| one(octet)).map(|distance| at + distance);
    }
    text.iter().position(|&octet| one(octet))
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
    fn every_octet_is_found_at_every_place_of_texts_of_every_length() {
        for len in 0..50 {
            for place in 0..len {
                for octet in 0..=255u8 {
                    let mut text = vec![b'x'; len];
                    text[place] = octet;
                    let stops = [b';', b'=', 0x80];
                    let naive = text.iter().position(|octet| stops.contains(octet));
                    assert_eq!(find(&text, stops), naive);
                    let naive = text.iter().position(|&octet| octet <= b' ' || octet == 0x7f || stops.contains(&octet));
                    assert_eq!(find_blank_or(&text, stops), naive);
                }
            }
            assert_eq!(find(&vec![b'x'; len], [b';']), None);
        }
    }

    #[test]
    fn marks_are_where_the_octet_is_and_nothing_strange_is_overlooked() {
        for len in 0..140 {
            for place in 0..len {
                let mut text = vec![b'x'; len];
                text[place] = b';';
                let expected = (BLOCKS && (16..=128).contains(&len)).then(|| 1u128 << place);
                assert_eq!(marks_unless(&text, b';', [b',']), expected);
                for strange in [b',', b' ', b'\r', 0x7f] {
                    text[place] = strange;
                    assert_eq!(marks_unless(&text, b';', [b',']), None);
                }
            }
        }
    }
}
