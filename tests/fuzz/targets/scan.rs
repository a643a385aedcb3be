//! The scanner's vector arms against their scalar twin, its searches against a plain loop, and the twin itself against a
//! reader that splits text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use viahop::dataplane::rewrite::pop::{self, Below};
use viahop::dataplane::scan::{Scan, Scanner, assert_arms_agree, find, find_blank_or, rows, scalar};
use viahop::dataplane::sip::header::{HeaderKind, NAMES};
use viahop::dataplane::sip::via::Via;
use viahop_fuzz::plain::Message;

fuzz_target!(|message: &[u8]| {
    assert_arms_agree(message);
    let seed = message.iter().fold(message.len(), |sum, &octet| sum.wrapping_mul(31) + octet as usize);
    let shift = seed % 64;
    // As it may lie in memory, with nothing of ours behind it; and into a scan that holds another message.
    let mut shifted = vec![b'\n'; shift];
    shifted.extend_from_slice(message);
    let lying = shifted.into_boxed_slice();
    let mut expected = Scan::default();
    scalar::scan(message, &mut expected);
    for scanner in Scanner::all() {
        let mut scan = Scan::default();
        scanner.scan(&message[message.len() / 2..], &mut scan);
        scanner.scan(&lying[shift..], &mut scan);
        assert!(scan.same_as(&expected), "{} at {shift}: {scan:?} is not {expected:?}", scanner.name());
    }
    // Where a line end, a name or the end lies within a block, which begin with the message.
    for turn in 0..4 {
        let pad = (shift + 17 * turn) % 64;
        assert_arms_agree(&[&[b'x'; 64][..pad], message].concat());
    }
    check_searches(message, shift);
    check_twin(message, &expected);
});

/// The searches of the parsers look at sixteen octets at a time.
fn check_searches(message: &[u8], seed: usize) {
    let start = seed % (message.len() + 1);
    let end = start + (message.len() - start) * (seed & 7) / 7;
    let plain = |stops: &dyn Fn(u8) -> bool| {
        message[start..end].iter().position(|&octet| stops(octet)).map_or(end, |distance| start + distance)
    };
    assert_eq!(find(message, start, end, [b'\r']), plain(&|octet| octet == b'\r'));
    let stops = [b';', b',', b'"', b'<', b'>'];
    assert_eq!(find(message, start, end, stops), plain(&|octet| stops.contains(&octet)));
    let is_blank = |octet| octet <= b' ' || octet == 0x7f;
    assert_eq!(find_blank_or(message, start, end, []), plain(&is_blank));
    assert_eq!(find_blank_or(message, start, end, stops), plain(&|octet| is_blank(octet) || stops.contains(&octet)));
}

/// A message without a fault is one that can be split at its line ends, and has the rows that are found so.
fn check_twin(message: &[u8], scan: &Scan) {
    let Some(plain) = Message::read(message) else {
        assert!(!scan.faults.is_empty());
        return;
    };
    let offset = |part: &[u8]| part.as_ptr() as usize - message.as_ptr() as usize;
    assert_eq!(scan.start_line.of(message), plain.start_line);
    assert_eq!(scan.body as usize, message.len() - plain.body.len());
    if !scan.faults.is_empty() {
        return;
    }
    for (name, kind) in NAMES.into_iter().filter(|(name, _)| name.len() > 1) {
        let plain_rows: Vec<(usize, usize)> = plain
            .rows
            .iter()
            .filter(|row| row.name == name)
            .map(|row| (offset(row.text), offset(row.text) + row.text.len() - 2))
            .collect();
        let places = rows(message, scan, kind).map(|row| (row.start as usize, row.end as usize));
        assert_eq!(places.collect::<Vec<_>>(), plain_rows, "{name}");
        assert_eq!(scan.is_repeated(kind), plain_rows.len() > 1, "{name}");
    }
    check_via_below(message, scan);
}

/// The quick look at the line behind the first Via sees what reading all rows sees.
fn check_via_below(message: &[u8], scan: &Scan) {
    let Some(first) = scan.row(HeaderKind::Via) else { return };
    let (mut via, mut expected_via) = (Via::default(), Via::default());
    let expected = match rows(message, scan, HeaderKind::Via).nth(1) {
        None => Below::Nothing,
        Some(row) if expected_via.read(message, row.span()) => Below::Via,
        Some(_) => Below::Unreadable,
    };
    assert_eq!(pop::below(message, scan, first, 0, &mut via), expected);
    assert!(expected != Below::Via || via == expected_via, "{via:?} is not {expected_via:?}");
}
