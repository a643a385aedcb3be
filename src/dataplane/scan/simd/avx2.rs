//! AVX2: 32 octets per instruction. Bindings only.

use super::{Arm, BLOCK, NAME_NIBBLES, Scan, WINDOW, sse2};
use core::arch::x86_64::*;

pub struct Avx2;

/// # Safety
///
/// The CPU has AVX2, BMI1, BMI2, LZCNT and POPCNT.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub unsafe fn scan(message: &[u8], scan: &mut Scan) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { super::scan::<Avx2>(message, scan) }
}

impl Arm for Avx2 {
    #[inline(always)]
    unsafe fn line_ends(block: &[u8; BLOCK]) -> (u64, u64) {
        // SAFETY: both unaligned loads stay inside the 64 octets of `block`; the caller vouches for AVX2.
        unsafe {
            let low = _mm256_loadu_si256(block.as_ptr().cast());
            let high = _mm256_loadu_si256(block.as_ptr().add(32).cast());
            (equal(low, high, b'\n'), equal(low, high, b'\r'))
        }
    }

    #[inline(always)]
    unsafe fn name_len(window: &[u8; WINDOW]) -> usize {
        // SAFETY: the unaligned load covers the 32 octets of `window`, the table loads read 16 octets of 16; the caller
        // vouches for AVX2.
        unsafe {
            let octets = _mm256_loadu_si256(window.as_ptr().cast());
            let high = _mm256_broadcastsi128_si256(_mm_loadu_si128(NAME_NIBBLES.0.as_ptr().cast()));
            let low = _mm256_broadcastsi128_si256(_mm_loadu_si128(NAME_NIBBLES.1.as_ptr().cast()));
            let high_nibbles = _mm256_and_si256(_mm256_srli_epi16(octets, 4), _mm256_set1_epi8(0x0f));
            // A lane whose octet is above 0x7f gives zero by the shuffle, and by the table of high nibbles.
            let class = _mm256_and_si256(_mm256_shuffle_epi8(low, octets), _mm256_shuffle_epi8(high, high_nibbles));
            let other = _mm256_movemask_epi8(_mm256_cmpeq_epi8(class, _mm256_setzero_si256())) as u32;
            other.trailing_zeros() as usize
        }
    }

    #[inline(always)]
    unsafe fn equal_folded(window: &[u8; WINDOW], name: &[u8; 16]) -> u16 {
        sse2::equal_folded(window, name)
    }
}

// A plain function: a closure is compiled without the caller's instruction set, and called where it should be inlined.
/// # Safety
///
/// The CPU has AVX2.
#[inline(always)]
unsafe fn equal(low: __m256i, high: __m256i, octet: u8) -> u64 {
    // SAFETY: register operations; the caller vouches for AVX2.
    unsafe {
        let octet = _mm256_set1_epi8(octet as i8);
        let low = _mm256_movemask_epi8(_mm256_cmpeq_epi8(low, octet)) as u32;
        let high = _mm256_movemask_epi8(_mm256_cmpeq_epi8(high, octet)) as u32;
        u64::from(high) << 32 | u64::from(low)
    }
}
