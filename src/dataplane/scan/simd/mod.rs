//! The scan's algorithm for vector arms, written once; the sibling files only bind it to an instruction set.
//!
//! The plain algorithm and the list of departures from it are on the parent module's page.
#![allow(unsafe_code)]

use super::index::{Kinds, Row, Scan, Span};
use super::scalar;
use crate::dataplane::sip::grammar;
use crate::dataplane::sip::header;
use core::mem::MaybeUninit;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod find;
#[cfg(target_arch = "aarch64")]
mod neon;
mod prefetch;
#[cfg(target_arch = "x86_64")]
mod sse2;

pub use find::{find, find_blank_or};
pub use prefetch::prefetch;

/// What an instruction set has to offer.
///
/// # Safety
///
/// The methods may be called only on a CPU that has the instruction set of the implementing type.
trait Arm {
    /// Bit `i` of the results says whether octet `i` is LF, and whether it is CR.
    unsafe fn line_ends(block: &[u8; BLOCK]) -> (u64, u64);

    /// How many octets come before the first that is not a letter, a digit or one of ``-.!%*+`'~``, that is, a `token`
    /// character other than `_`.
    unsafe fn name_len(window: &[u8; WINDOW]) -> usize;

    /// Bit `i` says whether octet `i` of `window`, with bit 5 set, equals octet `i` of `name`.
    unsafe fn equal_folded(window: &[u8; WINDOW], name: &[u8; 16]) -> u16;

    /// Writes where lines end, that is, the offset of each bit of `lf` less one, `base` added, from place `count` of `room` on, and
    /// what it likes behind them. Returns the new count; `None` if there are more than it can write.
    #[inline(always)]
    unsafe fn add_ends(room: &mut [MaybeUninit<u32>; LINES], count: usize, lf: u64, base: usize) -> Option<usize> {
        add_ends(room, count, lf, base)
    }
}

/// Octets per mask of line ends.
const BLOCK: usize = 64;
/// Octets between the block that is read and the line that is asked for: five blocks, about as long as memory takes to answer.
const AHEAD: usize = 6 * BLOCK;
/// Octets looked at for a header name. A message with a longer name is not regular.
const WINDOW: usize = 32;
/// Most lines of a regular message. More is legal, rare, and left to the scalar twin.
const LINES: usize = 256;

/// Octets of the CRLF that ends a line.
const LINE_END: u32 = 2;

/// One of the scan's implementations, chosen once.
#[derive(Clone, Copy, Debug)]
pub struct Scanner {
    name: &'static str,
    /// Precondition: the CPU has the instruction set the function was compiled for.
    run: unsafe fn(&[u8], &mut Scan),
}

impl Scanner {
    /// The fastest arm this CPU can run.
    pub fn best() -> Scanner {
        Scanner::all().next().expect("the scalar arm runs everywhere")
    }

    /// Every arm this CPU can run, fastest first. The last one is the scalar twin.
    pub fn all() -> impl Iterator<Item = Scanner> {
        #[cfg(target_arch = "x86_64")]
        let arms = [
            (is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vbmi2"))
            .then_some(Scanner { name: "avx512", run: avx512::scan }),
            is_x86_feature_detected!("avx2").then_some(Scanner { name: "avx2", run: avx2::scan }),
            Some(Scanner { name: "sse2", run: sse2::scan }),
            Some(Scanner { name: "scalar", run: scalar::scan }),
        ];
        #[cfg(target_arch = "aarch64")]
        let arms =
            [Some(Scanner { name: "neon", run: neon::scan }), Some(Scanner { name: "scalar", run: scalar::scan })];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let arms = [Some(Scanner { name: "scalar", run: scalar::scan })];
        arms.into_iter().flatten()
    }

    /// The arm called `name`, if this CPU can run it.
    pub fn named(name: &str) -> Option<Scanner> {
        Scanner::all().find(|scanner| scanner.name == name)
    }

    /// `avx512`, `avx2`, `sse2`, `neon` or `scalar`.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Scans `message` into `scan`, overwriting what was there.
    #[inline(always)]
    pub fn scan(&self, message: &[u8], scan: &mut Scan) {
        // SAFETY: a `Scanner` is only made by `all`, which asked the CPU for the arm's instruction set.
        unsafe { (self.run)(message, scan) }
    }
}

/// Scans a regular message; hands any other to the scalar twin.
///
/// # Safety
///
/// The CPU has `A`'s instruction set.
#[inline(always)]
unsafe fn scan<A: Arm>(message: &[u8], scan: &mut Scan) {
    // SAFETY: the caller vouches for the CPU.
    if unsafe { scan_regular::<A>(message, scan) }.is_none() {
        scalar::scan(message, scan);
    }
}

/// Scans `message` if it is regular, as the parent's page defines it; `None`, and nonsense in `scan`, if it is not.
///
/// # Safety
///
/// The CPU has `A`'s instruction set.
#[inline(always)]
unsafe fn scan_regular<A: Arm>(message: &[u8], scan: &mut Scan) -> Option<()> {
    let mut room = [const { MaybeUninit::uninit() }; LINES];
    // SAFETY: the caller vouches for the CPU.
    let ends = unsafe { find_ends::<A>(message, &mut room) }?;

    let (&empty_line, ends) = ends.split_last()?;
    let (&first, ends) = ends.split_first()?;
    let mut start = first + LINE_END;
    if grammar::is_blank(*message.get(start as usize)?) {
        return None;
    }
    scan.clear();
    scan.start_line = Span { start: 0, end: first };
    scan.headers = start;
    scan.body = empty_line + LINE_END;
    let mut place = header::OTHER;
    let mut kinds = Kinds::default();
    for &end in ends {
        // SAFETY: as above.
        match unsafe { read_name::<A>(message, start as usize) } {
            Some((kind, len)) => {
                place = scan.put(&mut kinds, kind, Row { start, value: start + len as u32 + 1, end });
            }
            None if grammar::is_blank(message[start as usize]) => scan.extend(place, end as usize),
            None => return None,
        }
        start = end + LINE_END;
    }
    scan.note(kinds);
    Some(())
}

/// Where the lines of the header section end, the empty one included: the offsets of their CRs. `None` unless each line ends
/// with CRLF, up to an empty one.
///
/// # Safety
///
/// The CPU has `A`'s instruction set.
#[inline(always)]
unsafe fn find_ends<'a, A: Arm>(message: &[u8], room: &'a mut [MaybeUninit<u32>; LINES]) -> Option<&'a [u32]> {
    if message.first() == Some(&b'\r') {
        return None;
    }
    let mut count = 0;
    let mut base = 0;
    // What a block hands on to the next one: whether its last octet is CR; which of its last two octets are LF.
    let (mut cr_before, mut lf_before) = (0, 0);
    loop {
        prefetch(message.as_ptr().wrapping_add(base + AHEAD));
        let (lf, cr) = match message.get(base..base + BLOCK) {
            // SAFETY: the caller vouches for the CPU.
            Some(block) => unsafe { A::line_ends(block.first_chunk()?) },
            // The message ends inside the block: take its last 64 octets, and shift out those seen before.
            None if base < message.len() => {
                // SAFETY: as above.
                let (lf, cr) = unsafe { A::line_ends(message.last_chunk()?) };
                let seen = base + BLOCK - message.len();
                (lf >> seen, cr >> seen)
            }
            None => return None,
        };
        // Bit i of `after_cr`: the octet before octet i is CR. In a regular message that is where the LFs are.
        let after_cr = cr << 1 | cr_before;
        let strays = lf ^ after_cr;
        // Two LFs with one octet between them: an empty line, if that octet is CR.
        let empty_line = lf & (lf << 2 | lf_before);
        if strays | empty_line == 0 {
            // SAFETY: as above.
            count = unsafe { A::add_ends(room, count, lf, base) }?;
            cr_before = cr >> 63;
            lf_before = lf >> 62;
            base += BLOCK;
            continue;
        }
        // The header section ends in this block, or the message is not regular. Behind the empty line anything goes.
        let header = empty_line ^ empty_line.wrapping_sub(1);
        if empty_line == 0 || strays & header != 0 {
            return None;
        }
        // SAFETY: as above.
        count = unsafe { A::add_ends(room, count, lf & header, base) }?;
        let ends: &[MaybeUninit<u32>] = &room[..count];
        // SAFETY: `Arm::add_ends` wrote the first `count` elements, and a `MaybeUninit<u32>` is laid out as a `u32`.
        return Some(unsafe { core::slice::from_raw_parts(ends.as_ptr().cast(), ends.len()) });
    }
}

/// [`Arm::add_ends`] of most arms. The first three are written whether they are there or not: most blocks have one or two, and
/// what is written too much is overwritten by the next block.
#[inline(always)]
fn add_ends(room: &mut [MaybeUninit<u32>; LINES], count: usize, lf: u64, base: usize) -> Option<usize> {
    let before = (base as u32).wrapping_sub(1);
    let first: &mut [MaybeUninit<u32>; 3] = room.get_mut(count..)?.first_chunk_mut()?;
    let mut rest = lf;
    for place in first {
        place.write(before.wrapping_add(rest.trailing_zeros()));
        rest &= rest.wrapping_sub(1);
    }
    let mut place = count + 3;
    while rest != 0 {
        room.get_mut(place)?.write(before.wrapping_add(rest.trailing_zeros()));
        rest &= rest - 1;
        place += 1;
    }
    Some(count + lf.count_ones() as usize)
}

/// The index of the header name at `start`, and its length. `None` unless the line is a name and a colon, and the name of the
/// kind everybody uses.
///
/// # Safety
///
/// The CPU has `A`'s instruction set.
#[inline(always)]
unsafe fn read_name<A: Arm>(message: &[u8], start: usize) -> Option<(usize, usize)> {
    let mut padded = MaybeUninit::uninit();
    // The colon behind the longest name, too.
    let octets: &[u8; WINDOW + 1] = match message.get(start..start + WINDOW + 1) {
        Some(octets) => octets.first_chunk()?,
        None => pad(message, start, &mut padded),
    };
    let window = octets.first_chunk()?;
    // SAFETY: the caller vouches for the CPU.
    let len = unsafe { A::name_len(window) };
    if len == 0 || octets[len] != b':' {
        return None;
    }
    let (name, kind) = header::candidate(window[0], len);
    // SAFETY: as above.
    let equal = unsafe { A::equal_folded(window, name) };
    // No branch: Contact is as long as Call-ID and begins like it, and may stand anywhere.
    let is_it = u64::from(!equal) & ((1 << len) - 1) == 0;
    Some((core::hint::select_unpredictable(is_it, kind, header::OTHER), len))
}

/// The octets from `at` on, zero-padded.
#[cold]
#[inline(never)]
fn pad<'a>(message: &[u8], at: usize, padded: &'a mut MaybeUninit<[u8; WINDOW + 1]>) -> &'a [u8; WINDOW + 1] {
    let rest = message.get(at..).unwrap_or_default();
    let padded = padded.write([0; WINDOW + 1]);
    padded[..rest.len()].copy_from_slice(rest);
    padded
}

/// Two 16-entry tables whose entries for an octet's high and low nibble share a bit exactly if the octet may stand in the
/// name of a regular header: a `token` character other than `_`. Octets above 0x7f have no bit in the high table.
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), expect(dead_code))]
static NAME_NIBBLES: ([u8; 16], [u8; 16]) = {
    let mut high = [0u8; 16];
    let mut low = [0u8; 16];
    let mut octet = 0x20;
    while octet < 0x80 {
        if is_name_octet(octet) {
            let bit = 1 << ((octet >> 4) - 2);
            high[(octet >> 4) as usize] |= bit;
            low[(octet & 15) as usize] |= bit;
        }
        octet += 1;
    }
    (high, low)
};

const fn is_name_octet(octet: u8) -> bool {
    grammar::TOKEN.has(octet) && octet != b'_'
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares an arm with the grammar for all octet values at all places.
    ///
    /// # Safety
    ///
    /// The CPU has `A`'s instruction set.
    unsafe fn assert_classes<A: Arm>() {
        for octet in 0..=255u8 {
            for place in 0..BLOCK {
                let mut block = [b'x'; BLOCK];
                block[place] = octet;
                // SAFETY: the caller vouches for the CPU.
                let (lf, cr) = unsafe { A::line_ends(&block) };
                assert_eq!(lf, u64::from(octet == b'\n') << place, "{octet:#x}");
                assert_eq!(cr, u64::from(octet == b'\r') << place, "{octet:#x}");
            }
            for place in 0..WINDOW {
                let mut window = [b'x'; WINDOW];
                window[place] = octet;
                // SAFETY: as above.
                let len = unsafe { A::name_len(&window) };
                assert_eq!(len, if is_name_octet(octet) { WINDOW } else { place }, "{octet:#x} at {place}");
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn every_arm_classifies_every_octet_as_the_grammar_does() {
        // SAFETY: each arm is asked for before it runs.
        unsafe {
            assert_classes::<sse2::Sse2>();
            if Scanner::named("avx2").is_some() {
                assert_classes::<avx2::Avx2>();
            }
            if Scanner::named("avx512").is_some() {
                assert_classes::<avx512::Avx512>();
            }
        }
    }

    #[test]
    #[cfg(target_arch = "aarch64")]
    fn every_arm_classifies_every_octet_as_the_grammar_does() {
        // SAFETY: every AArch64 has NEON.
        unsafe { assert_classes::<neon::Neon>() }
    }

    /// However many lines end in a block, and wherever it stands in the message.
    #[test]
    fn blocks_of_many_lines_are_read_as_the_twin_reads_them() {
        for line in ["a:\r\n", "x\r\n", " \r\n", "\t \r\n", "To:b\r\n", "i:1\r\n \r\n"] {
            for count in [0, 1, 2, 3, 4, 15, 16, 17, 40, 250, 300] {
                for behind in ["", "Via: 1\r\n", "v:\r\n v\r\n"] {
                    let lines = line.repeat(count);
                    let message = format!("INVITE a SIP/2.0\r\nFrom: a\r\n{lines}{behind}\r\nbody\r\n\r\n");
                    super::super::assert_arms_agree(message.as_bytes());
                }
            }
        }
    }

    /// The longest name of a regular message and its neighbours, as the last header but one and as the last.
    #[test]
    fn names_as_long_as_a_window_are_read_as_the_twin_reads_them() {
        for len in [1, 2, 14, 15, 16, 17, WINDOW - 1, WINDOW, WINDOW + 1] {
            for first in ["x", "v", "m", "i", "_"] {
                for behind in [":", "", " :", "_:"] {
                    let name = format!("{first}{}{behind}", "x".repeat(len - 1));
                    for more in ["", "l: 0\r\n\r\nand a body which is longer than the window of a name"] {
                        let message = format!("BYE a SIP/2.0\r\nVia: b\r\n{name}c\r\n{more}\r\n");
                        super::super::assert_arms_agree(message.as_bytes());
                    }
                }
            }
        }
    }

    /// A message no arm hands to the scalar twin must stay that way: the twin is six times slower, and right.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn an_everyday_message_is_regular() {
        let message =
            b"INVITE sip:bob@example.net SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK-1;rport\r\n\
            From: \"A_B\" <sip:a@example.net>\r\n ;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: 1@192.0.2.1\r\n\
            CSeq: 1 INVITE\r\nX-Empty:\r\nl: 3\r\n\r\na\n_";
        let mut scan = Scan::default();
        // SAFETY: each arm is asked for before it runs.
        unsafe {
            assert!(scan_regular::<sse2::Sse2>(message, &mut scan).is_some());
            assert!(Scanner::named("avx2").is_none() || scan_regular::<avx2::Avx2>(message, &mut scan).is_some());
            assert!(Scanner::named("avx512").is_none() || scan_regular::<avx512::Avx512>(message, &mut scan).is_some());
        }
    }
}
