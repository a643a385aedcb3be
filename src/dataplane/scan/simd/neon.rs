//! NEON: 16 octets per instruction, present on every AArch64. Bindings only.

use super::{Arm, BLOCK, NAME_NIBBLES, Scan, WINDOW};
use core::arch::aarch64::*;

pub struct Neon;

/// # Safety
///
/// None beyond the target's baseline: every AArch64 has NEON. Unsafe only to share its type with the other arms.
pub unsafe fn scan(message: &[u8], scan: &mut Scan) {
    // SAFETY: every AArch64 has NEON.
    unsafe { super::scan::<Neon>(message, scan) }
}

impl Arm for Neon {
    #[inline(always)]
    unsafe fn line_ends(block: &[u8; BLOCK]) -> (u64, u64) {
        // SAFETY: the four loads of 16 octets stay inside the 64 octets of `block`.
        unsafe {
            let parts = [0, 16, 32, 48].map(|at| vld1q_u8(block.as_ptr().add(at)));
            let equal = |octet: u8| mask(parts.map(|part| vceqq_u8(part, vdupq_n_u8(octet))));
            (equal(b'\n'), equal(b'\r'))
        }
    }

    #[inline(always)]
    unsafe fn name_len(window: &[u8; WINDOW]) -> usize {
        // SAFETY: the two loads of 16 octets stay inside the 32 octets of `window`, the table loads read 16 of 16.
        unsafe {
            let (high, low) = (vld1q_u8(NAME_NIBBLES.0.as_ptr()), vld1q_u8(NAME_NIBBLES.1.as_ptr()));
            let names = [0, 16].map(|at| {
                let octets = vld1q_u8(window.as_ptr().add(at));
                let low = vqtbl1q_u8(low, vandq_u8(octets, vdupq_n_u8(0x0f)));
                vtstq_u8(low, vqtbl1q_u8(high, vshrq_n_u8::<4>(octets)))
            });
            let none = vdupq_n_u8(0);
            mask([names[0], names[1], none, none]).trailing_ones() as usize
        }
    }

    #[inline(always)]
    unsafe fn equal_folded(window: &[u8; WINDOW], name: &[u8; 16]) -> u16 {
        // SAFETY: the loads read 16 octets, of 32 and of 16.
        unsafe {
            let folded = vorrq_u8(vld1q_u8(window.as_ptr()), vdupq_n_u8(0x20));
            let none = vdupq_n_u8(0);
            mask([vceqq_u8(folded, vld1q_u8(name.as_ptr())), none, none, none]) as u16
        }
    }
}

/// One bit per lane of four vectors whose lanes are all ones or all zeros.
#[inline(always)]
fn mask(lanes: [uint8x16_t; 4]) -> u64 {
    // SAFETY: register operations of the AArch64 baseline; the load reads 16 octets of 16.
    unsafe {
        let weights = vld1q_u8([1u8, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128].as_ptr());
        let [a, b, c, d] = lanes.map(|lane| vandq_u8(lane, weights));
        // Three rounds of adding neighbours sum each run of eight weighted lanes into one octet.
        let sum = vpaddq_u8(vpaddq_u8(a, b), vpaddq_u8(c, d));
        vgetq_lane_u64::<0>(vreinterpretq_u64_u8(vpaddq_u8(sum, sum)))
    }
}
