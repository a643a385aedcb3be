//! A stream, cut anywhere: what is made of it does not depend on the cuts, and every message ends where its one
//! Content-Length says. What of it goes on to a backend by a stream ends at the same place for all others that read streams
//! (`tests/support/readers.rs`), and so does what came as a datagram.
//!
//! What the octets mean and what has to hold is in `tests/support/framing.rs`, from where `tests/streams.rs` runs it, too:
//! fewer assertions there, and as many streams as a night has room for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use viahop_fuzz::support::framing::Case;

fuzz_target!(|data: &[u8]| {
    if let Some(case) = Case::read(data) {
        case.judge();
    }
});
