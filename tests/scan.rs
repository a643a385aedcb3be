//! Every vector arm of the scanner says what its scalar twin says: on the corpus, on what is left of it when it is cut
//! anywhere, and on what it becomes when any octet of it is another.
//!
//! A debug build tries a part of the replacements at each place, in turn, so that all of them meet all kinds of places; a
//! release build (`cargo test --release --test scan`) tries each of them everywhere.

mod support;

use support::corpus::messages;
use viahop::dataplane::scan::{Scan, Scanner, assert_arms_agree, scalar};

/// Octets of the longest message that is cut and damaged at every place. The work grows with the square of the length:
/// longer ones, of which there are six, are damaged at some hundred places and at those round the end of their headers.
const EVERY_PLACE_MAX: usize = 3500;

/// How many of the replacements a debug build tries at a place.
const DEBUG_TRIES: usize = 2;

#[test]
fn arms_agree_on_every_file() {
    for (_, message) in messages() {
        assert_arms_agree(&message);
    }
}

#[test]
fn arms_agree_on_every_file_cut_at_every_octet() {
    for (_, message) in messages() {
        for len in places(&message) {
            assert_arms_agree(&message[..len]);
        }
    }
}

/// Line ends and blanks, put where they split lines, glue them, fold them, or end the header section.
#[test]
fn arms_agree_on_every_file_with_any_octet_made_a_line_end_or_a_blank() {
    assert_damage_changes_nothing(&[|_| b'\r', |_| b'\n', |_| b' ', |_| b'\t', |_| 0]);
}

/// Separators, the other case, and octets above 0x7f, put where they make names of values and other names of names.
#[test]
fn arms_agree_on_every_file_with_any_octet_made_a_separator_or_another_letter() {
    assert_damage_changes_nothing(&[
        |octet| octet ^ 0x20,
        |octet| octet ^ 0x80,
        |octet| octet ^ 0x01,
        |_| b':',
        |_| b',',
        |_| b'"',
        |_| b'_',
    ]);
}

/// Where a line end, a name or the message's end lies within a block of the vector arms must not matter.
#[test]
fn arms_agree_wherever_a_message_lies_within_a_block() {
    let start = b"INVITE sip:";
    for (_, message) in messages().iter().filter(|(_, message)| message.len() < EVERY_PLACE_MAX) {
        let headers = memchr::memchr(b'\n', message).map_or(message.len(), |at| at + 1);
        let step = if cfg!(debug_assertions) { 3 } else { 1 };
        for pad in (0..128).step_by(step) {
            let mut shifted = start.to_vec();
            shifted.resize(start.len() + pad, b'x');
            shifted.extend_from_slice(b" SIP/2.0\r\n");
            shifted.extend_from_slice(&message[headers..]);
            assert_arms_agree(&shifted);
        }
    }
}

#[test]
fn a_scan_keeps_nothing_of_the_message_before() {
    let messages = messages();
    for scanner in Scanner::all() {
        let mut used = Scan::default();
        for (name, message) in messages.iter().chain(messages.iter().rev()) {
            let mut expected = Scan::default();
            scalar::scan(message, &mut expected);
            scanner.scan(message, &mut used);
            assert!(used.same_as(&expected), "{}: {name}", scanner.name());
        }
    }
}

fn assert_damage_changes_nothing(replacements: &[fn(u8) -> u8]) {
    let tries = if cfg!(debug_assertions) { DEBUG_TRIES } else { replacements.len() };
    let mut turn = replacements.iter().cycle();
    for (_, mut message) in messages() {
        for place in places(&message) {
            let Some(&whole) = message.get(place) else { continue };
            for replace in turn.by_ref().take(tries) {
                message[place] = replace(whole);
                assert_arms_agree(&message);
            }
            message[place] = whole;
        }
    }
}

/// The places at which a message is cut or damaged: each, or enough of them.
fn places(message: &[u8]) -> Vec<usize> {
    if message.len() <= EVERY_PLACE_MAX {
        return (0..message.len()).collect();
    }
    let mut scan = Scan::default();
    scalar::scan(message, &mut scan);
    let body = scan.body as usize;
    // The step has no factor in common with a block's 64 octets.
    let some = (0..message.len()).step_by((message.len() / 64) | 1);
    let mut places: Vec<_> = some.chain(body.saturating_sub(80)..(body + 80).min(message.len())).collect();
    places.sort_unstable();
    places.dedup();
    places
}
