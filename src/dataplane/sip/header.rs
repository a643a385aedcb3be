//! The header names the data path reads, in every spelling RFC 3261 allows.
//!
//! Only headers that routing, validation or rewriting needs have a [`HeaderKind`]; all others pass unread
//! (RFC 3261 16.3 item 1, 16.6 item 1).
//!
//! To add one: a variant here and its rows in [`NAMES`]. Both scanners, the lookup table and the rule against
//! look-alike names take it from there; the tests below fail if the table's hash no longer tells all names apart.

/// A header that the data path reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum HeaderKind {
    /// `Call-ID`, compact `i` (RFC 3261 20.8): the default key of a call.
    CallId,
    /// `Content-Length`, compact `l` (20.14): where the body ends.
    ContentLength,
    /// `CSeq` (20.16): its number is part of a transaction's identity.
    CSeq,
    /// `From`, compact `f` (20.20).
    From,
    /// `Join` (RFC 3911): carries the Call-ID of the call to join.
    Join,
    /// `Max-Forwards` (20.22).
    MaxForwards,
    /// `Proxy-Require` (20.29): extensions a proxy must know or refuse.
    ProxyRequire,
    /// `Record-Route` (20.30).
    RecordRoute,
    /// `Replaces` (RFC 3891): carries the Call-ID of the call to replace.
    Replaces,
    /// `Route` (20.34).
    Route,
    /// `Target-Dialog` (RFC 4538): carries the Call-ID of an existing dialog.
    TargetDialog,
    /// `To`, compact `t` (20.39).
    To,
    /// `Via`, compact `v` (20.42).
    Via,
}

/// How many kinds there are.
pub const KINDS: usize = 13;

/// Every spelling of every kind, lower-case; compact forms are those of RFC 3261 7.3.3. Of these kinds only some have one.
//= RFC 3261 section 7.3.3
//# Implementations MUST accept both the long and short forms of each
//# header name.
pub const NAMES: [(&str, HeaderKind); 18] = [
    ("call-id", HeaderKind::CallId),
    ("i", HeaderKind::CallId),
    ("content-length", HeaderKind::ContentLength),
    ("l", HeaderKind::ContentLength),
    ("cseq", HeaderKind::CSeq),
    ("from", HeaderKind::From),
    ("f", HeaderKind::From),
    ("join", HeaderKind::Join),
    ("max-forwards", HeaderKind::MaxForwards),
    ("proxy-require", HeaderKind::ProxyRequire),
    ("record-route", HeaderKind::RecordRoute),
    ("replaces", HeaderKind::Replaces),
    ("route", HeaderKind::Route),
    ("target-dialog", HeaderKind::TargetDialog),
    ("to", HeaderKind::To),
    ("t", HeaderKind::To),
    ("via", HeaderKind::Via),
    ("v", HeaderKind::Via),
];

impl HeaderKind {
    /// Whether RFC 3261 7.3.1 allows one row only. A second row is an ambiguity, never a choice (RFC 4475 3.3.8).
    pub const fn is_single(self) -> bool {
        !matches!(self, HeaderKind::ProxyRequire | HeaderKind::RecordRoute | HeaderKind::Route | HeaderKind::Via)
    }
}

/// The index of a name that is none of ours: the last of four bits.
pub const OTHER: usize = 15;
const _: () = assert!(KINDS <= OTHER);

/// Octets of a name in the table that names are looked up in: the longest of ours has 14.
const ROOM: usize = 16;

/// What a name is looked up in; in one piece, so that one register leads to both tables.
#[repr(align(64))]
struct Lookup {
    /// Two names of each kind, the compact one behind the long one, in lower case and padded with zeros. Where a name stands says
    /// its kind, which spares a load. That of [`OTHER`] is all zeros: no header's name is.
    names: [u8; 2 * (OTHER + 1) * ROOM],
    /// `(first letter, length)` to an offset in `names`. No two names share both.
    offsets: [u16; 1 << 11],
}

static LOOKUP: Lookup = {
    let names = [0; 2 * (OTHER + 1) * ROOM];
    let mut lookup = Lookup { names, offsets: [(2 * OTHER * ROOM) as u16; 1 << 11] };
    let mut i = 0;
    while i < NAMES.len() {
        let name = NAMES[i].0.as_bytes();
        let offset = (2 * NAMES[i].1 as usize + (name.len() == 1) as usize) * ROOM;
        lookup.offsets[slot(name[0], name.len())] = offset as u16;
        let mut j = 0;
        while j < name.len() {
            lookup.names[offset + j] = name[j];
            j += 1;
        }
        i += 1;
    }
    lookup
};

const fn slot(first: u8, len: usize) -> usize {
    ((first & 0x1f) as usize) << 6 | len
}

/// The only name of ours that a name of `len` octets beginning with `first` can be, in lower case and padded with zeros, and the
/// index of its kind; [`OTHER`] if there is none. `len` is 1 to 32.
///
/// Whether it is that name is for the caller to compare, its first `len` octets, folding case by setting bit 5. Among
/// `token` characters that is exact: apart from letters and `-`, only `_` and control characters become a letter or `-` by
/// it, and the latter are no token characters.
#[inline(always)]
pub fn candidate(first: u8, len: usize) -> (&'static [u8; ROOM], usize) {
    const LAST: usize = (2 * OTHER + 1) * ROOM;
    // Whole places up to the last one, which every offset is: said in bits, it takes no test.
    let offset = LOOKUP.offsets[slot(first, len) & 0x7ff] as usize & LAST;
    let name = LOOKUP.names[offset..].first_chunk().expect("the last place is whole");
    (name, offset / (2 * ROOM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_names_share_first_letter_and_length() {
        for (text, kind) in NAMES {
            let (name, index) = candidate(text.as_bytes()[0], text.len());
            assert_eq!(index, kind as usize, "{text} collides");
            assert_eq!(&name[..text.len()], text.as_bytes());
        }
    }

    #[test]
    fn a_name_longer_than_all_of_ours_has_no_candidate() {
        for len in [15, 31, 32] {
            assert_eq!(candidate(b'v', len).1, OTHER, "{len}");
        }
    }
}
