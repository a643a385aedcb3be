//! The steering program: finds the Call-ID of a datagram in the kernel, hashes it, and picks the shard's socket.
//!
//! # The plain algorithm
//!
//! ```text
//! glance at the packet's first piece where it lies, 1,024 octets at most:
//!     find the next LF with "call-id:" or "i:" in any case behind it, at most a blank, and a value up to its end
//! found: hash it; shard = hash * shards >> 64
//! else, by copy:
//! copy the datagram's first 8,000 octets into room of this CPU, and line feeds behind them
//! skip CR and LF at the start; what does not begin with a visible octet is no SIP message
//! find the next LF; if the line behind it
//!     begins with CR or LF:                                  the header section is over, there is none
//!     begins with "call-id" or "i" in any case, blanks, ":"  it is found
//!     else:                                                  go on
//! skip blanks and folds behind the colon
//! hash up to the next blank, control character or line end; shard = hash * shards >> 64
//! ```
//!
//! The kernel's scan reads what the scanner in `dataplane/scan` reads, as far as messages go that may be forwarded; it
//! may be as lax as it likes about those that are refused anyway. Why each laxness is harmless:
//!
//! 1. *An LF alone ends a line here.* A message with one is refused (`Fault::BareLf`), and so is one with a CR alone.
//! 2. *The first Call-ID counts.* A message with two is refused.
//! 3. *Bit 5 is set before a name is compared*, so that a CR passes for the hyphen. A name that has one is refused.
//! 4. *A fold is not looked at but behind the colon.* A folded line begins with a blank, and no name does.
//! 5. *The value ends at its first blank.* A Call-ID with anything behind that is refused.
//! 6. *The glance does not stop at the end of the header section.* It comes past it only where there was no Call-ID before,
//!    and a message without one is refused.
//! 7. *Octets from the 257th on are not hashed.* Equal Call-IDs still meet; long ones that differ only there meet, too.
//!
//! What is not found within the bounds ([`LOOK_MAX`], [`STEPS_MAX`]) is left to the kernel's own hash, and counted.
//! Nothing depends on the choice but which core works: every shard can serve every message.
//!
//! # How it is made
//!
//! A step is a line, or 64 octets of a long one, eight at a time: `(v - 0x01..) & !v & 0x80..` has a bit for each octet of
//! `v` that is zero, and `v` is the word with LF in place of zero. The kernel calls `STEP`, which takes a few steps,
//! again and again (`bpf_loop`, Linux 5.17), which its verifier follows once. A loop of jumps alone would spare the calls,
//! and was tried: the verifier followed each of 256 steps in all its variants, and gave up after a million instructions
//! and three seconds.
//!
//! The glance is what nearly every message needs: no copy, no call. For each word of eight octets it works out in nine
//! instructions, without a branch that depends on where lines end, whether an LF stands in it with a letter behind it that
//! may begin the name. Only at such a place, and at octets from 0x80 on, does it look more closely. Whatever is not as most
//! write it (an empty line in front, a fold, a blank before the colon, two candidates in a word, a value that ends with the
//! piece) is left to the copy, which begins anew.
//!
//! The copy makes it indifferent whether the datagram lies in one piece, and the line feeds behind it are an end that
//! needs no test.
//!
//! In `STEER`, `R6` is what the program was handed, `R7` this CPU's room, `R9` where we are and then the hash; what the functions
//! share lies there, too.

use crate::sys::bpf::asm::Operation::{Add, And, Multiply, Or, ShiftLeft, ShiftRight, Subtract, Xor};
use crate::sys::bpf::asm::Register::{Fp, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9};
use crate::sys::bpf::asm::Test::{Differ, Equal, Greater, GreaterOrEqual, Less};
use crate::sys::bpf::asm::Width::{Eight, Four, One};
use crate::sys::bpf::asm::{Code, Register, Table, Width};
use std::ffi::c_int;

/// What became of a datagram. Each is the number of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// It went where its Call-ID says.
    CallId,
    /// There is no Call-ID up to the end of the header section.
    Absent,
    /// Not found within [`LOOK_MAX`] octets and [`STEPS_MAX`] steps.
    Beyond,
    /// The Call-ID has no value.
    Empty,
    /// No message: a keep-alive, STUN, nothing.
    NoMessage,
    /// The shard's socket is closed.
    NoSocket,
    /// The kernel did not hand out the datagram's octets.
    Unreadable,
}

impl Outcome {
    /// All of them, in the order of their numbers.
    pub const ALL: [Outcome; 7] = [
        Outcome::CallId,
        Outcome::Absent,
        Outcome::Beyond,
        Outcome::Empty,
        Outcome::NoMessage,
        Outcome::NoSocket,
        Outcome::Unreadable,
    ];

    /// The label `outcome` of the metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Outcome::CallId => "call_id",
            Outcome::Absent => "absent",
            Outcome::Beyond => "beyond",
            Outcome::Empty => "empty",
            Outcome::NoMessage => "no_message",
            Outcome::NoSocket => "no_socket",
            Outcome::Unreadable => "unreadable",
        }
    }
}

/// Octets of a datagram that are looked at. Nearly all SIP requests fit one frame of 1,500; the Call-ID stands in the
/// first half of nearly all of them.
pub const LOOK_MAX: usize = 8000;

/// Lines, or pieces of 64 octets of longer ones, that are looked at; likewise blanks before the start line, the colon and
/// the value. 8,000 octets of lines of 31. Bounds the time a hostile datagram can take: `docs/steering.md` has it.
pub const STEPS_MAX: i32 = 256;

/// Lines that one call of [`STEP`] looks at. A call costs as much as a line of 50 octets; the verifier has to follow this
/// many in all their variants.
const LINES: i32 = 8;

/// Octets of a Call-ID that are hashed.
pub const HASHED_MAX: usize = 256;

/// Octets of the room of each CPU: counters, the copy, and what reads beyond its end may touch.
pub const ROOM: usize = COPY as usize + PLACES as usize + HASHED_MAX + 64 + 16;

/// Where the copy begins, behind the counters.
const COPY: i16 = 128;
/// Places in the copy are taken modulo this, which tells the verifier that they are inside. Above [`LOOK_MAX`] by more
/// than a step is long, so that it never changes one.
const PLACES: i32 = 8192;

/// Octets that [`glance`] looks at in one go, and how often it does: 1,024 in all. Each block is some 600 instructions for the
/// verifier to follow. Blocks of 64 octets were no quicker, and leave more of a short message to the copy.
const BLOCK: i32 = 32;
const BLOCKS: i32 = 32;

/// Octets of the Ethernet header, which stands before the datagram on the bench.
const ETHERNET_HEADER: i32 = 14;
/// Octets of the UDP header, which stands before the datagram in what a [`REUSEPORT`] program sees.
const UDP_HEADER: i32 = 8;

const LOOKUP: i32 = 1;
const LOAD_BYTES: i32 = 26;
const SELECT: i32 = 82;
const LOOP: i32 = 181;

/// The program.
const STEER: &str = "steer";
/// Looks at a line.
const STEP: &str = "step";
/// Skips an octet.
const SKIP: &str = "skip";

/// Where on the stack the functions find this CPU's room.
const SHARED: i16 = -8;

/// Where in the room they keep, behind the counters: the place in the copy,
const PLACE_AT: i16 = 64;
/// what [`STEP`] and [`SKIP`] found (see the constants below),
const FOUND_AT: i16 = 72;
/// and a bit for each octet that is skipped. In the room and not on the stack, because of a number that comes from
/// there the verifier knows nothing: the second call of a function then looks to it like the first, and it is done.
const SKIPPED_AT: i16 = 80;

/// Nothing was found within [`STEPS_MAX`].
const NOTHING: i32 = 0;
/// The header section is over; or an octet that is not skipped was found.
const END: i32 = 1;
/// Behind a Call-ID's colon.
const VALUE: i32 = 2;
/// Behind a Call-ID's name, at a blank.
const NAME_AND_BLANK: i32 = 3;

/// Elsewhere on the stack: the key of a map, octets copied, octets of the datagram.
const KEY: i16 = -16;
const COPIED: i16 = -24;
const LENGTH: i16 = -32;
/// While [`glance`] needs all registers: what the program was handed, and the candidates of a word.
const CONTEXT: i16 = -40;
const CANDIDATES: i16 = -48;

/// Where a program is to run.
#[derive(Clone, Copy, Debug)]
pub struct Seat {
    /// Octets before the datagram.
    header: i32,
    /// Where the length stands in what the program is handed.
    len_at: i16,
    /// Where the packet's first piece begins and ends, if the program may read it where it lies.
    piece: Option<Piece>,
    /// Where the sockets are; `None`: the program says what it would choose.
    sockets: Option<c_int>,
}

impl Seat {
    /// At a port that several sockets share: chooses one of `sockets`.
    pub const fn at_port(sockets: c_int) -> Seat {
        let piece = Some(Piece { width: Eight, begin_at: 0, end_at: 8 });
        Seat { header: UDP_HEADER, len_at: 16, piece, sockets: Some(sockets) }
    }

    /// On the bench: says the number of the shard, or [`UNDECIDED`] and the [`Outcome`].
    pub const fn on_bench() -> Seat {
        let piece = Some(Piece { width: Four, begin_at: 76, end_at: 80 });
        Seat { header: ETHERNET_HEADER, len_at: 0, piece, sockets: None }
    }

    /// On the bench, with nothing that it could read where it lies: each datagram is copied.
    pub const fn on_bench_by_copy() -> Seat {
        Seat { header: 0, len_at: 0, piece: None, sockets: None }
    }
}

/// Where two pointers stand in what the program is handed: to the first piece of the packet, and behind it.
#[derive(Clone, Copy, Debug)]
struct Piece {
    width: Width,
    begin_at: i16,
    end_at: i16,
}

/// The bit of a bench's result that says: not decided.
pub const UNDECIDED: u32 = 1 << 31;

/// Which of `shards` shards a Call-ID belongs to under `seed`: what the program works out, in Rust.
///
/// A mix of multiplications over words of eight octets. The seed is made of the secret: nobody else can choose Call-IDs that all
/// meet on one core, and a call is on the same one behind a restart, where its CANCEL leaves from the port of its INVITE.
pub fn shard_of(call_id: &[u8], seed: u64, shards: u32) -> u32 {
    let mut hash = seed;
    let hashed = &call_id[..call_id.len().min(HASHED_MAX)];
    for octets in hashed.chunks(8) {
        let mut word = [0; 8];
        word[..octets.len()].copy_from_slice(octets);
        hash = mixed(hash ^ u64::from_le_bytes(word));
    }
    // The program meets the end of the value as a word of its own where that begins one.
    if hashed.len() < HASHED_MAX && hashed.len().is_multiple_of(8) {
        hash = mixed(hash);
    }
    let hash = mixed(hash) >> 32;
    ((hash * u64::from(shards)) >> 32) as u32
}

fn mixed(hash: u64) -> u64 {
    let hash = hash.wrapping_mul(FACTOR);
    hash ^ (hash >> 32)
}

/// An odd number without a pattern: the golden ratio's fraction, as in splitmix64.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// The octet `octet` in each of eight places.
const fn eight(octet: u8) -> u64 {
    u64::from_ne_bytes([octet; 8])
}

const LF: u8 = b'\n';
/// `call-id` in the seven octets from the second on, as a word has them after a shift to the left by one.
const NAME: u64 = u64::from_le_bytes(*b"\0call-id");
/// Bit 5 of those.
const FOLD: u64 = u64::from_le_bytes([0, 0x20, 0x20, 0x20, 0x20, 0x20, 0x20, 0x20]);

/// The program for `shards` shards, with the map of room `room`.
pub fn program(seat: Seat, room: c_int, shards: u32, seed: u64) -> Table {
    let mut code = Code::new();
    code.function(STEER);
    find_room(&mut code, seat, room);
    if let Some(piece) = seat.piece {
        glance(&mut code, seat, piece);
        hash_value(&mut code, seed, Some(piece));
    }
    copy(&mut code, seat);
    find_start(&mut code);
    find_value(&mut code);
    hash_value(&mut code, seed, None);
    choose(&mut code, seat, shards);
    // The kernel refuses a program with instructions that nothing leads to, and on the bench no socket can be missing.
    for outcome in Outcome::ALL.into_iter().filter(|&one| seat.sockets.is_some() || one != Outcome::NoSocket) {
        count(&mut code, seat, outcome);
    }
    step(&mut code);
    skip(&mut code);
    code.finish()
}

/// Finds this CPU's room.
fn find_room(code: &mut Code, seat: Seat, room: c_int) {
    code.set(R6, R1).set(R1, 0).store(Four, Fp, KEY, R1);
    code.set_map(R1, room).set(R2, Fp).op(Add, R2, i32::from(KEY)).call(LOOKUP);
    code.jump_if(R0, Differ, 0, "has room");
    pass(code, seat, Outcome::Unreadable);
    code.label("has room").set(R7, R0).store(Eight, Fp, SHARED, R7);
}

/// Looks for a Call-ID in the packet's first piece, where it lies. Goes on at `value in packet` with its place in `R1`; or
/// at `by copy`, unless all is as most have it.
fn glance(code: &mut Code, seat: Seat, piece: Piece) {
    code.store(Eight, Fp, CONTEXT, R6);
    code.load(piece.width, R1, R6, piece.begin_at).load(piece.width, R9, R6, piece.end_at).op(Add, R1, seat.header);
    code.set(R0, R1).op(Add, R0, 1).jump_if(R0, Greater, R9, "by copy");
    code.load(One, R0, R1, 0).jump_if(R0, Greater, i32::from(b' '), "message");
    code.jump_if(R0, Equal, i32::from(b'\r'), "by copy").jump_if(R0, Equal, i32::from(LF), "by copy");
    code.jump(name(Outcome::NoMessage));

    // `R1` is where we are, `R9` the end, `R8` blocks left; the others from `R2` on are constants.
    code.label("message").set_wide(R2, eight(LF)).set_wide(R3, eight(1)).set_wide(R4, eight(0x80));
    code.set_wide(R6, eight(ANY_OF.0)).set_wide(R7, eight(ANY_OF.1)).set(R8, BLOCKS);
    code.label("block").set(R0, R1).op(Add, R0, BLOCK + 1).jump_if(R0, Greater, R9, "by copy");
    let words = BLOCK as i16 / 8;
    for word in 0..words {
        code.label(format!("word {word}"));
        line_and_letter(code, 8 * word);
        // Without octets from 0x80 on this has a bit where there is a zero, and nothing else.
        code.op(Subtract, R5, R3).op(And, R5, R4).jump_if(R5, Differ, 0, format!("seen in word {word}"));
    }
    code.label(format!("word {words}")).op(Add, R1, BLOCK).op(Subtract, R8, 1).jump_if(R8, Differ, 0, "block");
    code.jump("by copy");
    for word in 0..words {
        candidate(code, word);
    }

    // The same place, of which the verifier knows as little wherever it was found, so that it follows what comes once.
    code.label("long one").op(Add, R5, 6).label("compact one").op(Add, R5, 2);
    code.load(Eight, R6, Fp, CONTEXT).load(Eight, R7, Fp, SHARED).load(piece.width, R1, R6, piece.begin_at);
    code.op(Subtract, R5, R1).op(And, R5, 2 * BLOCK * BLOCKS - 1).op(Add, R1, R5);
    code.set(R0, R1).op(Add, R0, 2).jump_if(R0, Greater, R9, "by copy");
    code.load(One, R0, R1, 0).jump_if(R0, Greater, i32::from(b' '), "value in packet").op(Add, R1, 1);
    code.jump_if(R0, Differ, i32::from(b' '), "by copy");
    code.load(One, R0, R1, 0).jump_if(R0, Less, i32::from(b' ') + 1, "by copy");
}

/// Of an octet that may begin the name: it is one of `ACIKacik` if it is the second with the bits of the first set.
const ANY_OF: (u8, u8) = (0x2a, 0x6b);

/// `R5` = the word at `R1 + at`, zero where an LF stands with one of [`ANY_OF`] behind it.
fn line_and_letter(code: &mut Code, at: i16) {
    code.load(Eight, R5, R1, at)
        .op(Xor, R5, R2)
        .load(Eight, R0, R1, at + 1)
        .op(Or, R0, R6)
        .op(Xor, R0, R7)
        .op(Or, R5, R0);
}

/// Whether the first zero in word `word` is what it looks like. If not, goes on with the next word.
fn candidate(code: &mut Code, word: i16) {
    let (seen, next, other) =
        (format!("seen in word {word}"), format!("word {}", word + 1), format!("none in word {word}"));
    let compact = format!("compact in word {word}");
    code.label(seen);
    line_and_letter(code, 8 * word);
    code.set(R0, R5).op(Subtract, R0, R3).op(Xor, R5, -1).op(And, R0, R5).op(And, R0, R4);
    code.jump_if(R0, Equal, 0, next.as_str()).store(Eight, Fp, CANDIDATES, R0);
    octets_up_to_first(code);
    code.set(R5, R1).op(Add, R5, 8 * i32::from(word)).op(Add, R5, R0);
    code.set(R0, R5).op(Add, R0, 8).jump_if(R0, Greater, R9, "by copy");
    code.load(Eight, R0, R5, 0).op(ShiftLeft, R0, 8).set_wide(R2, FOLD).op(Or, R0, R2).set_wide(R2, NAME);
    code.jump_if(R0, Differ, R2, compact.as_str()).load(One, R0, R5, 7).jump_if(R0, Equal, i32::from(b':'), "long one");
    code.jump_if(R0, Less, i32::from(b' ') + 1, "by copy").jump(other.as_str());
    code.label(compact).load(One, R0, R5, 0).op(Or, R0, 0x20).jump_if(R0, Differ, i32::from(b'i'), other.as_str());
    code.load(One, R0, R5, 1).jump_if(R0, Equal, i32::from(b':'), "compact one");
    code.jump_if(R0, Less, i32::from(b' ') + 1, "by copy");
    // Two of them in a word are rare: lines that short.
    code.label(other).set_wide(R2, eight(LF)).load(Eight, R0, Fp, CANDIDATES).set(R5, R0).op(Subtract, R5, 1);
    code.op(And, R0, R5).jump_if(R0, Equal, 0, next).jump("by copy");
}

/// Copies what is looked at, and sets what ends it behind it.
fn copy(code: &mut Code, seat: Seat) {
    if seat.piece.is_some() {
        code.label("by copy").load(Eight, R6, Fp, CONTEXT).load(Eight, R7, Fp, SHARED);
    }
    code.load(Four, R8, R6, seat.len_at);
    code.jump_if(R8, Less, seat.header + 1, name(Outcome::NoMessage)).op(Subtract, R8, seat.header);
    code.store(Eight, Fp, LENGTH, R8);
    code.jump_if(R8, Less, LOOK_MAX as i32, "fits").set(R8, LOOK_MAX as i32).label("fits");
    code.store(Eight, Fp, COPIED, R8);
    code.set(R1, R6).set(R2, seat.header).set(R3, R7).op(Add, R3, i32::from(COPY)).set(R4, R8).call(LOAD_BYTES);
    code.jump_if(R0, Differ, 0, name(Outcome::Unreadable));
    code.set_wide(R2, eight(LF)).set(R1, R7).op(Add, R1, R8).store(Eight, R1, COPY, R2);
}

/// Finds the start line, behind as many line ends as come before it.
fn find_start(code: &mut Code) {
    code.set(R1, 0).store(Eight, R7, PLACE_AT, R1).store(Eight, R7, FOUND_AT, R1);
    code.load(One, R0, R7, COPY).jump_if(R0, Greater, i32::from(b' '), "start line");
    // Without one, the first octet says that it is none: STUN, noise.
    skip_all(code, &[b'\r', LF]);
    code.load(Eight, R9, R7, PLACE_AT).load(Eight, R0, Fp, COPIED);
    code.jump_if(R9, GreaterOrEqual, R0, name(Outcome::NoMessage));
    look(code, R1, R7, R9);
    code.load(One, R0, R1, COPY).jump_if(R0, Less, i32::from(b' ') + 1, name(Outcome::NoMessage));
    code.label("start line");
}

/// Has the kernel call [`STEP`] until there is a Call-ID, and skips what stands between its name and its value. Then `R1`
/// is the place of the value.
fn find_value(code: &mut Code) {
    call_often(code, STEP, STEPS_MAX / LINES);
    code.load(Eight, R9, R7, PLACE_AT).load(Eight, R0, R7, FOUND_AT);
    // So deep in a datagram of which we have a part only, what looks like the value's end may be that of the part.
    const DEEP: i32 = (LOOK_MAX - HASHED_MAX) as i32 - 16;
    code.jump_if(R9, Greater, DEEP, "deep").label("all here");
    code.jump_if(R0, Equal, VALUE, "colon").jump_if(R0, Equal, END, name(Outcome::Absent));
    code.jump_if(R0, Equal, NOTHING, name(Outcome::Beyond));

    skip_all(code, b" \t");
    code.load(Eight, R9, R7, PLACE_AT);
    look(code, R1, R7, R9);
    // What is not followed by a colon is no header, and the message is refused.
    code.load(One, R0, R1, COPY).jump_if(R0, Differ, i32::from(b':'), name(Outcome::Absent)).op(Add, R9, 1);

    // One blank is what nearly everybody writes.
    code.label("colon");
    look(code, R1, R7, R9);
    code.load(One, R0, R1, COPY).jump_if(R0, Greater, i32::from(b' '), "value").op(Add, R1, 1);
    code.jump_if(R0, Differ, i32::from(b' '), "blanks");
    code.load(One, R0, R1, COPY).jump_if(R0, Greater, i32::from(b' '), "value");
    code.label("blanks").store(Eight, R7, PLACE_AT, R9);
    skip_all(code, b" \t\r\n");
    code.load(Eight, R9, R7, PLACE_AT).load(Eight, R0, Fp, COPIED);
    code.jump_if(R9, GreaterOrEqual, R0, name(Outcome::Empty)).op(And, R9, PLACES - 1);
    // A line end that no blank follows is no fold: what was skipped is all there is of the value.
    code.jump_if(R9, Equal, 0, name(Outcome::Empty)).op(Subtract, R9, 1);
    look(code, R1, R7, R9);
    code.load(One, R0, R1, COPY).jump_if(R0, Equal, i32::from(LF), name(Outcome::Empty)).op(Add, R1, 1).jump("value");

    code.label("deep").load(Eight, R1, Fp, LENGTH).jump_if(R1, Less, LOOK_MAX as i32 + 1, "all here");
    code.jump(name(Outcome::Beyond));
}

/// Hashes the value that begins where `R1` points into `R9`: in the packet if it has a `piece`, else in the copy.
fn hash_value(code: &mut Code, seed: u64, piece: Option<Piece>) {
    let (value, word, last_word, at) = match piece {
        Some(_) => ("value in packet", "word of packet", "last of packet", 0),
        None => ("value", "word", "last word", COPY),
    };
    code.label(value).set_wide(R9, seed).set(R8, 0).set_wide(R2, eight(b' ' + 1)).set_wide(R4, eight(0x80));
    code.label(word);
    if let Some(piece) = piece {
        code.set(R0, R1).op(Add, R0, 8).load(piece.width, R3, R6, piece.end_at).jump_if(R0, Greater, R3, "by copy");
    }
    // As for LF, but for everything below "!"; an octet from 0x80 on is none of it.
    code.load(Eight, R5, R1, at).set(R0, R5).op(Subtract, R0, R2).set(R3, R5).op(Xor, R3, -1);
    code.op(And, R0, R3).op(And, R0, R4).jump_if(R0, Differ, 0, last_word);
    code.op(Xor, R9, R5);
    mix(code);
    code.op(Add, R1, 8).op(Add, R8, 1).jump_if(R8, Less, (HASHED_MAX / 8) as i32, word);
    code.jump("hashed").label(last_word);
    // Ones below the first of those bits, shifted to end before its octet: what of the word belongs to the value.
    code.set(R3, R0).op(Subtract, R3, 1).op(Xor, R0, -1).op(And, R3, R0).op(ShiftRight, R3, 7);
    code.op(And, R5, R3).op(Xor, R9, R5);
    mix(code);
    if piece.is_some() {
        code.jump("hashed");
        return;
    }
    code.label("hashed");
    mix(code);
    code.op(ShiftRight, R9, 32);
}

/// [`mixed`].
fn mix(code: &mut Code) {
    code.set_wide(R0, FACTOR).op(Multiply, R9, R0).set(R0, R9).op(ShiftRight, R0, 32).op(Xor, R9, R0);
}

/// Takes the socket that the hash in `R9` says.
fn choose(code: &mut Code, seat: Seat, shards: u32) {
    code.op(Multiply, R9, shards as i32).op(ShiftRight, R9, 32);
    let Some(sockets) = seat.sockets else {
        code.jump(name(Outcome::CallId));
        return;
    };
    code.store(Four, Fp, KEY, R9).set(R1, R6).set_map(R2, sockets).set(R3, Fp).op(Add, R3, i32::from(KEY));
    code.set(R4, 0).call(SELECT);
    code.jump_if(R0, Equal, 0, name(Outcome::CallId)).jump(name(Outcome::NoSocket));
}

/// Counts `outcome` and ends.
fn count(code: &mut Code, seat: Seat, outcome: Outcome) {
    let place = 8 * i16::from(outcome as u8);
    code.label(name(outcome)).load(Eight, R0, R7, place).op(Add, R0, 1).store(Eight, R7, place, R0);
    pass(code, seat, outcome);
}

/// Ends. At a port, the socket that was chosen is taken; if none was, the kernel's own hash chooses.
fn pass(code: &mut Code, seat: Seat, outcome: Outcome) {
    const SK_PASS: i32 = 1;
    match (seat.sockets, outcome) {
        (Some(_), _) => code.set(R0, SK_PASS),
        (None, Outcome::CallId) => code.set(R0, R9),
        (None, _) => code.set_wide(R0, u64::from(UNDECIDED | u32::from(outcome as u8))),
    };
    code.exit();
}

/// Skips octets of `set`, at most [`STEPS_MAX`]: what is not ended then is beyond.
fn skip_all(code: &mut Code, set: &[u8]) {
    let bits = set.iter().fold(0u64, |bits, octet| bits | 1 << octet);
    code.set_wide(R1, bits).store(Eight, R7, SKIPPED_AT, R1);
    code.set(R1, NOTHING).store(Eight, R7, FOUND_AT, R1);
    call_often(code, SKIP, STEPS_MAX);
    code.load(Eight, R0, R7, FOUND_AT).jump_if(R0, Equal, NOTHING, name(Outcome::Beyond));
    code.set(R1, NOTHING).store(Eight, R7, FOUND_AT, R1);
}

/// Has the kernel call `function` until it says that it is enough, `calls` times at most.
fn call_often(code: &mut Code, function: &'static str, calls: i32) {
    code.set(R1, calls).set_function(R2, function).set(R3, Fp).op(Add, R3, i32::from(SHARED)).set(R4, 0).call(LOOP);
}

/// `to` = the copy in `room` at `place`, less [`COPY`].
fn look(code: &mut Code, to: Register, room: Register, place: Register) {
    code.op(And, place, PLACES - 1).set(to, room).op(Add, to, place);
}

/// `R0` = octets of a word up to the first that has its bit in `R0`, and with it. `R3` is a constant; changes `R5`.
fn octets_up_to_first(code: &mut Code) {
    // The lowest bit that is set belongs to the first, though higher ones may be a borrow's. Below it lie the lowest bits of
    // as many octets as come before it, and of its own.
    code.set(R5, R0).op(Subtract, R5, 1).op(Xor, R0, -1).op(And, R0, R5);
    code.op(And, R0, R3).op(Multiply, R0, R3).op(ShiftRight, R0, 56);
}

fn name(outcome: Outcome) -> &'static str {
    outcome.label()
}

/// [`STEP`]: looks for the next LF within 64 octets, and reads the name of the line behind it; and so on.
fn step(code: &mut Code) {
    let again = |code: &mut Code| {
        code.op(Subtract, R8, 1).jump_if(R8, Differ, 0, "line");
        code.store(Eight, R7, PLACE_AT, R6).set(R0, 0).exit();
    };
    let enough = |code: &mut Code, found: i32| {
        code.store(Eight, R7, PLACE_AT, R6).set(R0, found).store(Eight, R7, FOUND_AT, R0).set(R0, 1).exit();
    };
    // `R6` is the place, `R7` the room, `R8` lines left; `R2` to `R4` are constants.
    code.function(STEP).load(Eight, R7, R2, 0).load(Eight, R6, R7, PLACE_AT);
    code.set_wide(R2, eight(LF)).set_wide(R3, eight(1)).set_wide(R4, eight(0x80)).set(R8, LINES).label("line");
    look(code, R1, R7, R6);
    for word in 0..8i16 {
        code.load(Eight, R5, R1, COPY + 8 * word).op(Xor, R5, R2);
        code.set(R0, R5).op(Subtract, R0, R3).op(Xor, R5, -1).op(And, R0, R5).op(And, R0, R4);
        code.jump_if(R0, Differ, 0, format!("in word {word}"));
    }
    code.op(Add, R6, 64);
    again(code);
    for word in (1..8).rev() {
        // Falls through to the words before: each adds its eight octets.
        code.label(format!("in word {word}")).op(Add, R6, 8);
    }
    code.label("in word 0");
    octets_up_to_first(code);
    code.op(Add, R6, R0);

    look(code, R1, R7, R6);
    code.load(Eight, R5, R1, COPY).set(R0, R5).op(And, R0, 0xff);
    code.jump_if(R0, Equal, i32::from(LF), "empty line").jump_if(R0, Equal, i32::from(b'\r'), "empty line");
    code.op(Or, R0, 0x20);
    code.jump_if(R0, Equal, i32::from(b'c'), "long").jump_if(R0, Equal, i32::from(b'i'), "compact");
    code.label("other");
    again(code);
    code.label("empty line");
    enough(code, END);

    code.label("long").op(ShiftLeft, R5, 8).set_wide(R0, FOLD).op(Or, R5, R0).set_wide(R0, NAME);
    code.jump_if(R5, Differ, R0, "other").load(One, R0, R1, COPY + 7).set(R5, 7).jump("behind name");
    code.label("compact").load(One, R0, R1, COPY + 1).set(R5, 1);
    code.label("behind name").jump_if(R0, Equal, i32::from(b':'), "colon of it");
    code.jump_if(R0, Equal, i32::from(b' '), "blank of it").jump_if(R0, Differ, i32::from(b'\t'), "other");
    code.label("blank of it").op(Add, R6, R5);
    enough(code, NAME_AND_BLANK);
    code.label("colon of it").op(Add, R6, R5).op(Add, R6, 1);
    enough(code, VALUE);
}

/// [`SKIP`]: goes on by an octet, if it is one of those that are skipped.
fn skip(code: &mut Code) {
    code.function(SKIP).load(Eight, R3, R2, 0).load(Eight, R4, R3, PLACE_AT);
    look(code, R1, R3, R4);
    code.load(One, R5, R1, COPY).jump_if(R5, Greater, i32::from(b' '), "stop");
    code.load(Eight, R0, R3, SKIPPED_AT).op(ShiftRight, R0, R5).op(And, R0, 1).jump_if(R0, Equal, 0, "stop");
    code.op(Add, R4, 1).store(Eight, R3, PLACE_AT, R4).set(R0, 0).exit();
    code.label("stop").set(R0, END).store(Eight, R3, FOUND_AT, R0).set(R0, 1).exit();
}
