//! What a scan leaves behind: offsets into the message, and what was odd about it.

use crate::dataplane::sip::header::{HeaderKind, KINDS, NAMES, OTHER};

/// A range of octets of one message. `start <= end <= message length`.
///
/// Nothing that a header says begins at offset 0, where the start line is: a span that begins there says "absent", and
/// no `Option` round it is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First octet.
    pub start: u32,
    /// One past the last octet.
    pub end: u32,
}

impl Span {
    /// The range from `start` to `end`.
    #[inline(always)]
    pub const fn new(start: usize, end: usize) -> Span {
        Span { start: start as u32, end: end as u32 }
    }

    /// Nothing.
    pub const ABSENT: Span = Span { start: 0, end: 0 };

    /// Whether the span is anything but [`Span::ABSENT`].
    #[inline(always)]
    pub const fn is_present(self) -> bool {
        self.start != 0
    }

    /// Octets covered.
    #[inline(always)]
    pub const fn len(self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether the span covers nothing.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The octets of `message` this span covers; empty if the span does not belong to `message`.
    #[inline(always)]
    pub fn of(self, message: &[u8]) -> &[u8] {
        message.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// One header row: `start <= value <= end`. Folded lines belong to the row (RFC 3261 7.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// First octet of the name.
    pub start: u32,
    /// First octet behind the colon.
    pub value: u32,
    /// The line end that ends the row: one past the last octet of the value.
    pub end: u32,
}

impl Row {
    /// The value with the blanks around it.
    #[inline(always)]
    pub const fn span(self) -> Span {
        Span { start: self.value, end: self.end }
    }
}

/// What can be wrong with the header section as a whole. Any of these means: not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// A CR that no LF follows. A server that ends lines there reads other headers than we do.
    BareCr = 1 << 0,
    /// An LF that no CR precedes. The same, and Kamailio is such a server.
    BareLf = 1 << 1,
    /// The first header line is a continuation of nothing.
    LeadingFold = 1 << 2,
    /// A name that other servers read as one of the headers we route by, such as `Content_Length`.
    LookAlike = 1 << 3,
    /// A line that is not `token HCOLON value`.
    NotAHeader = 1 << 4,
    /// The message ends before the empty line.
    NoEmptyLine = 1 << 5,
}

impl Fault {
    /// All faults, in the order in which a message with several is described.
    pub const ALL: [Fault; 6] =
        [Fault::BareLf, Fault::BareCr, Fault::LookAlike, Fault::NotAHeader, Fault::LeadingFold, Fault::NoEmptyLine];

    /// One sentence for a log line, a Warning or `viahop explain`.
    pub const fn describe(self) -> &'static str {
        match self {
            Fault::BareCr => "a CR without LF in the header section",
            Fault::BareLf => "an LF without CR in the header section",
            Fault::LeadingFold => "the first header line is a continuation line",
            Fault::LookAlike => "a header name with `_` that other servers read as `-`",
            Fault::NoEmptyLine => "no empty line ends the header section",
            Fault::NotAHeader => "a line that is not a header",
        }
    }
}

/// A set of [`Fault`]s and where the first of them is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    bits: u8,
    /// Offset of the first fault; means nothing if there is none.
    at: u32,
}

impl Faults {
    /// Adds a fault found at offset `at`.
    #[cold]
    pub fn add(&mut self, fault: Fault, at: usize) {
        self.at = if self.bits == 0 { at as u32 } else { self.at.min(at as u32) };
        self.bits |= fault as u8;
    }

    /// Whether the header section is in order.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.bits == 0
    }

    /// Whether `fault` is among them.
    pub const fn has(self, fault: Fault) -> bool {
        self.bits & fault as u8 != 0
    }

    /// The fault to name when only one can be named, and the offset of the first one.
    pub fn first(self) -> Option<(Fault, usize)> {
        Fault::ALL.into_iter().find(|&fault| self.has(fault)).map(|fault| (fault, self.at as usize))
    }
}

/// The result of a scan. Rows are the *first* of their kind; [`Scan::is_repeated`] tells whether there are more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// The start line without its line end. Empty if the message is nothing but line ends.
    pub start_line: Span,
    /// Offset of the first header line.
    pub headers: u32,
    /// Offset behind the empty line, where the body begins. The message length if there is no empty line.
    pub body: u32,
    /// What is wrong with the header section.
    pub faults: Faults,
    kinds: Kinds,
    /// One row per kind, and [`DISCARD`]. Sixteen, so that four bits index it without a check.
    rows: [Row; 16],
}

/// Which kinds of rows there are, two bits each: whether there is a row of the kind, and whether there is more than one; and
/// [`FOLDS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kinds(u32);

impl Kinds {
    /// The bit of the kind with this index: that there is one.
    const fn one(kind: usize) -> u32 {
        1 << (2 * (kind & 15))
    }

    /// And that there are more.
    const fn more(kind: usize) -> u32 {
        Kinds::one(kind) << 1
    }

    const fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }
}

/// That a row goes on in another line, where a kind would stand that there is not.
const FOLDS: u32 = Kinds::one(KINDS);
const _: () = assert!(KINDS < OTHER);

/// Index of the row that takes what nobody asks for. Writing it costs less than the branch around it.
pub(super) const DISCARD: usize = OTHER;

impl Scan {
    /// The first row of `kind`.
    #[inline(always)]
    pub fn row(&self, kind: HeaderKind) -> Option<Row> {
        self.has(kind).then_some(self.rows[kind as usize])
    }

    /// The value of the first row of `kind`, with the blanks around it.
    #[inline(always)]
    pub fn value(&self, kind: HeaderKind) -> Option<Span> {
        self.row(kind).map(Row::span)
    }

    /// Whether there is a row of `kind`.
    #[inline(always)]
    pub const fn has(&self, kind: HeaderKind) -> bool {
        self.kinds.has(Kinds::one(kind as usize))
    }

    /// Whether there is more than one row of `kind`.
    #[inline(always)]
    pub const fn is_repeated(&self, kind: HeaderKind) -> bool {
        self.kinds.has(Kinds::more(kind as usize))
    }

    /// Whether a row goes on in another line (RFC 3261 7.3.1).
    #[inline(always)]
    pub const fn has_folds(&self) -> bool {
        self.kinds.has(FOLDS)
    }

    /// A kind of which RFC 3261 7.3.1 allows one row only and of which there are more, if there is one.
    #[inline(always)]
    pub fn ambiguous(&self) -> Option<HeaderKind> {
        const SINGLE: u32 = {
            let mut bits = 0;
            let mut i = 0;
            while i < NAMES.len() {
                if NAMES[i].1.is_single() {
                    bits |= Kinds::more(NAMES[i].1 as usize);
                }
                i += 1;
            }
            bits
        };
        if !self.kinds.has(SINGLE) {
            return None;
        }
        NAMES.iter().map(|&(_, kind)| kind).find(|&kind| kind.is_single() && self.is_repeated(kind))
    }

    /// Forgets everything but the rows' offsets, which the bits hide.
    #[inline(always)]
    pub(super) fn clear(&mut self) {
        self.start_line = Span::default();
        self.headers = 0;
        self.body = 0;
        self.faults = Faults::default();
        self.kinds = Kinds::default();
    }

    /// Notes a row of the kind with index `kind` and keeps it if it is the first; returns where it went. `kinds` is what was
    /// noted before, and goes to [`Scan::note`] in the end: a local variable, so that it stays in a register.
    #[inline(always)]
    pub(super) fn put(&mut self, kinds: &mut Kinds, kind: usize, row: Row) -> usize {
        let bit = Kinds::one(kind);
        let again = kinds.0 & bit;
        let place = if again == 0 { kind } else { DISCARD } & 15;
        kinds.0 |= again << 1 | bit;
        self.rows[place] = row;
        place
    }

    /// Which kinds there are.
    #[inline(always)]
    pub(super) fn note(&mut self, kinds: Kinds) {
        self.kinds.0 |= kinds.0;
    }

    /// Lets the row put last, to `place`, end at `end` instead: a folded line belongs to it.
    #[cold]
    #[inline(never)]
    pub(super) fn extend(&mut self, place: usize, end: usize) {
        self.rows[place & 15].end = end as u32;
        self.kinds.0 |= FOLDS;
    }

    /// Two scans of one message say the same. Offsets of rows that do not exist are left out.
    pub fn same_as(&self, other: &Scan) -> bool {
        self.start_line == other.start_line
            && self.headers == other.headers
            && self.body == other.body
            && self.faults == other.faults
            && self.kinds == other.kinds
            && (0..KINDS).all(|kind| !self.kinds.has(Kinds::one(kind)) || self.rows[kind] == other.rows[kind])
    }
}
