//! Every bound of the data plane, with its unit, its origin and what happens beyond it.

/// Octets of the largest datagram a socket can deliver: 16 bits of UDP length. Receive slots are this large, so that no
/// datagram is ever cut (RFC 3261 18.1.1 asks for 65,535).
//= RFC 3261 section 18.1.1
//# implementations MUST be able to handle messages up to the maximum
//# datagram packet size. For UDP, this size is 65,535 bytes, including IP
//# and UDP headers.
pub const DATAGRAM_MAX: usize = 65_535;

/// Octets of the largest UDP payload IPv4 can carry: 65,535 less 20 of IP and 8 of UDP header. A request that our Via
/// would push beyond it is answered 513, a response is dropped.
pub const PAYLOAD_MAX: usize = 65_507;

/// Octets of the longest message in a stream: what a datagram can hold, so that any message can go on over any transport's
/// room. Longer: 513, and the connection is closed, since nobody would read on to find the next message.
pub const FRAME_MAX: usize = DATAGRAM_MAX;

/// Octets we may write in front of what is left of a message: a copied start of it and the rows we add, or a whole
/// answer of our own. Our rows take a few hundred octets; a message that needs more is beyond [`PAYLOAD_MAX`] anyway.
pub const HEAD_MAX: usize = DATAGRAM_MAX + 2048;

/// Octets of the longest Call-ID we route by. Real ones have 20 to 100; 482 is the longest in our corpus. Longer: 400.
pub const CALL_ID_MAX: usize = 1024;

/// Octets of the longest start line. RFC 3261 has no limit, 21.4.12 a code for "too long": 414.
pub const START_LINE_MAX: usize = 8192;

/// Via rows of one message. Max-Forwards starts at 70 (RFC 3261 8.1.1.6), so a longer list is a loop or an attack; the
/// limit leaves room for elements that do not count down. Beyond: 483.
pub const VIA_ROWS_MAX: usize = 128;

/// Octets of the longest branch of a client that we carry in our own Via to be able to rebuild the client's (see
/// `token.rs`). Longer branches are legal; then a 100 that lost the client's Via is dropped and not repaired.
pub const REBUILD_BRANCH_MAX: usize = 128;

/// Octets of the longest sent-by carried likewise.
pub const REBUILD_SENT_BY_MAX: usize = 128;

/// Slots of a pool's table: 2^16, so that a slot is the top 16 bits of a hash. With `n` backends a share deviates from
/// its weight by about `sqrt(n / 65536)` of itself: 0.8 % for 4 backends, 4 % for 100.
pub const SLOTS: usize = 1 << 16;

/// Backends of all pools together: slots hold 16-bit indexes and one value stands for "none".
pub const BACKENDS_MAX: usize = u16::MAX as usize;

/// Listeners: tokens name one by 8 bits and one value stands for the egress socket.
pub const LISTENERS_MAX: usize = u8::MAX as usize;

/// Entries of each of a shard's two call memories. 262,144 entries of 16 octets: 4 MiB, enough for 6,000 new calls a
/// second that ring for 10 s. When it is full the entry of a set that would end first is forgotten, which is counted.
pub const MEMORY_ENTRIES: usize = 1 << 18;

/// How long the call memory remembers a call, in milliseconds: 64*T1, the longest a transaction outlives its last
/// message (RFC 3261 17.1.1.2), after each message of the call.
pub const MEMORY_MS: u64 = 32_000;

/// How long an INVITE without a final response is remembered, in milliseconds: Timer C, the longest that a proxy lets it
/// ring (RFC 3261 16.6 item 11).
pub const RINGING_MS: u64 = 180_000;

/// Route values of one request that we take apart. RFC 3261 has no limit; a route set has as many as proxies that
/// record-routed the call. More: 400.
pub const ROUTE_VALUES_MAX: usize = 32;

/// Datagrams that a shard takes from a socket with one system call, and answers with one. More would save little (the
/// call itself is 3 % of the cost by then) and make the first of a batch wait for the last.
pub const BATCH: usize = 32;

/// Octets that wait per socket because the kernel's own send buffer is full. 1 MiB: about a thousand messages, the tenth
/// of a second of a loaded shard. What does not fit is dropped and counted.
pub const SEND_BACKLOG_MAX: usize = 1 << 20;

/// How long a receive buffer has to be half full at each look before it counts as standing, in milliseconds. Longer than
/// a shard does not get its core on a busy machine (36 ms seen), and shorter than T1, 500 ms, after which what was
/// lost comes again.
pub const OVERLOAD_STANDING_MS: u64 = 100;

/// How often a receive buffer is looked at that was not full of late, in milliseconds.
pub const OVERLOAD_LOOK_MS: u64 = 8;

/// How long it has to be shorter before a queue has to stand anew, in milliseconds. Two of T1: retransmissions of what was lost
/// have come by then.
pub const OVERLOAD_CALM_MS: u64 = 1000;

/// Batches that a shard takes from its socket towards backends before it comes to the listeners: a call has as many
/// responses as requests, and its copies come on top.
pub const EGRESS_BATCHES: usize = 2;
