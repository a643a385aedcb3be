//! Where things are in a SIP message: one pass over its header section.
//!
//! Finds the start line, the rows named in [`HeaderKind`](crate::dataplane::sip::header::HeaderKind), the end of the
//! header section, duplicates, and every ambiguity about where a line or a header ends. It reads no value: what a Via
//! or a CSeq says is for `sip/`, and what follows from it is for `validate.rs`.
//!
//! # The plain algorithm
//!
//! ```text
//! skip CRLFs before the start line                                   RFC 3261 7.5
//! for each line, ended by LF, until an empty one:
//!     first line:                    the start line
//!     begins with SP or HTAB:        belongs to the row above        RFC 3261 7.3.1
//!     else token [blanks] ":"        a row; look its name up
//!     else                           a fault
//! a CR without LF or an LF without CR, up to the empty line, is a fault
//! ```
//!
//! An LF alone ends a line here only so that a refused message can still be answered: it is a fault, and a message with
//! a fault is never forwarded. One decision for the whole product: only CRLF ends a line.
//!
//! [`scalar`] is that algorithm, octet by octet; it is the oracle of every test and fuzz target. The vector arms depart
//! from it:
//!
//! 1. They read *regular* messages only and hand any other to the twin: regular is a message that begins with its start
//!    line, whose lines all end with CRLF, whose header names have 32 octets at most, hold no `_` and are followed
//!    by their colon at once. Folded lines are regular. So is practically every message on a wire; the twin sees the
//!    legal oddities and all that is malformed, and what is hard to get right is written once, slowly.
//! 2. Line ends are looked for 64 octets at a time, as a bit mask for LF and one for CR. `lf ^ (cr << 1)` is zero
//!    exactly if each LF has its CR and each CR its LF, so strictness costs one test per 64 octets.
//! 3. Pass one collects the line ends, pass two reads the names. Each is a loop that ends once per message; one loop
//!    nested in the other would mispredict its end once per block. No search is started anew per line: short lines are
//!    what SIP is made of, and a restart costs about as much as a whole line does here.
//! 4. A name takes one load of 32 octets: how many may stand in a name, then one look-up by first letter and length
//!    (`sip/header.rs`) and one compare. No branch depends on which header it is, for no predictor knows their order.
//! 5. Reads never leave the message. The block in which it ends is replaced by its last 64 octets, shifted. Some blocks ahead
//!    of what is read the memory is asked for: an instruction that waits for it holds back all that depend on it.

mod index;
mod rows;
pub mod scalar;
mod simd;

pub use index::{Fault, Faults, Row, Scan, Span};
pub use rows::{has_folded_header, rows, rows_named};
pub use simd::{Scanner, find, find_blank_or, prefetch};

/// Calls the scalar twin and every arm this CPU can run on `message` and panics if two of them disagree.
///
/// The body of the `scan` fuzz target and of the exhaustive tests.
pub fn assert_arms_agree(message: &[u8]) {
    let mut expected = Scan::default();
    scalar::scan(message, &mut expected);
    assert!(expected.start_line.start <= expected.start_line.end);
    assert!(expected.start_line.end as usize <= message.len() && expected.body as usize <= message.len());
    for scanner in Scanner::all().filter(|scanner| scanner.name() != "scalar") {
        let mut scan = Scan::default();
        scanner.scan(message, &mut scan);
        assert!(
            scan.same_as(&expected),
            "arm {} disagrees with the scalar twin\n message: {:?}\n scalar:  {expected:?}\n {}: {scan:?}",
            scanner.name(),
            String::from_utf8_lossy(message),
            scanner.name(),
        );
    }
}
