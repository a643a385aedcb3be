//! AVX-512 (BW, VL and VBMI2): 64 octets per instruction, and masks as results. Bindings only.

use super::{Arm, BLOCK, LINES, NAME_NIBBLES, Scan, WINDOW, sse2};
use core::arch::x86_64::*;
use core::mem::MaybeUninit;

pub struct Avx512;

/// # Safety
///
/// The CPU has AVX-512 F, BW, VL and VBMI2, BMI1, BMI2, LZCNT and POPCNT.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
pub unsafe fn scan(message: &[u8], scan: &mut Scan) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { super::scan::<Avx512>(message, scan) }
}

impl Arm for Avx512 {
    #[inline(always)]
    unsafe fn line_ends(block: &[u8; BLOCK]) -> (u64, u64) {
        // SAFETY: the unaligned load covers the 64 octets of `block`; the caller vouches for the CPU.
        unsafe {
            let octets = _mm512_loadu_si512(block.as_ptr().cast());
            (
                _mm512_cmpeq_epi8_mask(octets, _mm512_set1_epi8(b'\n' as i8)),
                _mm512_cmpeq_epi8_mask(octets, _mm512_set1_epi8(b'\r' as i8)),
            )
        }
    }

    #[inline(always)]
    unsafe fn name_len(window: &[u8; WINDOW]) -> usize {
        // SAFETY: the unaligned load covers the 32 octets of `window`, the table loads read 16 octets of 16; the caller
        // vouches for the CPU.
        unsafe {
            let octets = _mm256_loadu_si256(window.as_ptr().cast());
            let high = _mm256_broadcastsi128_si256(_mm_loadu_si128(NAME_NIBBLES.0.as_ptr().cast()));
            let low = _mm256_broadcastsi128_si256(_mm_loadu_si128(NAME_NIBBLES.1.as_ptr().cast()));
            let high_nibbles = _mm256_and_si256(_mm256_srli_epi16(octets, 4), _mm256_set1_epi8(0x0f));
            // A lane whose octet is above 0x7f gives zero by the shuffle, and by the table of high nibbles.
            let other =
                _mm256_testn_epi8_mask(_mm256_shuffle_epi8(low, octets), _mm256_shuffle_epi8(high, high_nibbles));
            other.trailing_zeros() as usize
        }
    }

    #[inline(always)]
    unsafe fn equal_folded(window: &[u8; WINDOW], name: &[u8; 16]) -> u16 {
        sse2::equal_folded(window, name)
    }

    /// All of them at once, however many: how many lines end in a block is what no predictor knows.
    #[inline(always)]
    unsafe fn add_ends(room: &mut [MaybeUninit<u32>; LINES], count: usize, lf: u64, base: usize) -> Option<usize> {
        /// Lines that are written at once. A regular header takes four octets at least, so that a block with more has folds of
        /// nothing.
        const AT_ONCE: usize = 16;
        static PLACES: [u8; BLOCK] = {
            let mut places = [0; BLOCK];
            let mut place = 0;
            while place < BLOCK {
                places[place] = place as u8;
                place += 1;
            }
            places
        };
        let place: &mut [MaybeUninit<u32>; AT_ONCE] = room.get_mut(count..)?.first_chunk_mut()?;
        let lines = lf.count_ones() as usize;
        if lines > AT_ONCE {
            return None;
        }
        // SAFETY: the loads read 64 octets of 64, the unaligned store writes 16 numbers to 16; the caller vouches for the CPU.
        unsafe {
            let places = _mm512_maskz_compress_epi8(lf, _mm512_loadu_si512(PLACES.as_ptr().cast()));
            let places = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(places));
            let offsets = _mm512_add_epi32(places, _mm512_set1_epi32(base as i32 - 1));
            _mm512_storeu_si512(place.as_mut_ptr().cast(), offsets);
        }
        Some(count + lines)
    }
}
