//! SSE2: 16 octets per instruction, present on every x86-64. Bindings only.

use super::{Arm, BLOCK, Scan, WINDOW};
use core::arch::x86_64::*;

pub struct Sse2;

/// # Safety
///
/// None beyond the target's baseline: every x86-64 has SSE2. Unsafe only to share its type with the other arms.
pub unsafe fn scan(message: &[u8], scan: &mut Scan) {
    // SAFETY: every x86-64 has SSE2.
    unsafe { super::scan::<Sse2>(message, scan) }
}

impl Arm for Sse2 {
    #[inline(always)]
    unsafe fn line_ends(block: &[u8; BLOCK]) -> (u64, u64) {
        let (mut lf, mut cr) = (0, 0);
        for at in [0, 16, 32, 48] {
            // SAFETY: `at + 16 <= 64`, so the unaligned load stays inside `block`.
            let octets = unsafe { _mm_loadu_si128(block.as_ptr().add(at).cast()) };
            lf |= equal(octets, b'\n') << at;
            cr |= equal(octets, b'\r') << at;
        }
        (lf, cr)
    }

    #[inline(always)]
    unsafe fn name_len(window: &[u8; WINDOW]) -> usize {
        // SAFETY: both unaligned loads stay inside the 32 octets of `window`.
        let (low, high) =
            unsafe { (_mm_loadu_si128(window.as_ptr().cast()), _mm_loadu_si128(window.as_ptr().add(16).cast())) };
        (name_octets(high) << 16 | name_octets(low)).trailing_ones() as usize
    }

    #[inline(always)]
    unsafe fn equal_folded(window: &[u8; WINDOW], name: &[u8; 16]) -> u16 {
        equal_folded(window, name)
    }
}

/// [`Arm::equal_folded`] of every x86-64 arm: sixteen octets need no wider registers.
#[inline(always)]
pub fn equal_folded(window: &[u8; WINDOW], name: &[u8; 16]) -> u16 {
    // SAFETY: the unaligned loads read 16 octets of 32 and of 16; every x86-64 has SSE2.
    unsafe {
        let folded = _mm_or_si128(_mm_loadu_si128(window.as_ptr().cast()), _mm_set1_epi8(0x20));
        _mm_movemask_epi8(_mm_cmpeq_epi8(folded, _mm_loadu_si128(name.as_ptr().cast()))) as u16
    }
}

/// A bit per octet that equals `octet`.
#[inline(always)]
fn equal(octets: __m128i, octet: u8) -> u64 {
    // SAFETY: register operations of the x86-64 baseline.
    unsafe { _mm_movemask_epi8(_mm_cmpeq_epi8(octets, _mm_set1_epi8(octet as i8))) as u64 }
}

/// A bit per octet that may stand in the name of a regular header: ranges, for want of a byte shuffle.
#[inline(always)]
fn name_octets(octets: __m128i) -> u32 {
    // SAFETY: register operations of the x86-64 baseline.
    unsafe {
        let one = |octet: u8| _mm_cmpeq_epi8(octets, _mm_set1_epi8(octet as i8));
        // Signed compares: octets above 0x7f are negative and outside every range.
        let range = |first: u8, last: u8| {
            _mm_and_si128(
                _mm_cmpgt_epi8(octets, _mm_set1_epi8(first as i8 - 1)),
                _mm_cmplt_epi8(octets, _mm_set1_epi8(last as i8 + 1)),
            )
        };
        let or = |a, b| _mm_or_si128(a, b);
        let letters = or(range(b'A', b'Z'), range(b'`', b'z'));
        let digits_and_dots = or(range(b'0', b'9'), range(b'-', b'.'));
        let marks = or(or(one(b'!'), one(b'%')), or(or(one(b'\''), one(b'~')), range(b'*', b'+')));
        _mm_movemask_epi8(or(or(letters, digits_and_dots), marks)) as u32
    }
}
