//! The data plane: octets of a datagram in, a verdict out.
//!
//! ```text
//!  octets, source, listener, clock ──►  dispatch.rs   the whole path on one screen
//!                                          │
//!      scan/       where things are        │  one pass over the header section, no value read
//!        │
//!      sip/        what they say           │  start line, Via, URI, From and To: as much as routing needs
//!        │
//!      validate    may it go on?           │  RFC 3261 16.3; a "no" is a status code
//!        │
//!      route/      where to                │  Route, Request-URI, rules, key ─► hash ─► slot ─► backend
//!        │
//!      rewrite/    as what                 │  our Via on or off, hops, received; or an answer of our own
//!                                          ▼
//!  room: what is to be sent           ◄── verdict.rs    forward, reply, or drop with a reason
//! ```
//!
//! A stream comes to the ladder one message at a time: [`frame`] finds where each ends.
//!
//! Beside the ladder: [`tables`] is what it decides by, immutable and swapped whole; [`keys`] and [`token`] are the
//! secrets and what is written with them into messages, so that responses need no memory of ours; [`room`] and [`text`]
//! are lent memory and how it is written to; [`limits`] has every bound; [`counters`] is how a shard tells what happened.
//!
//! What it does not do: receive, send, wait, look at a clock, take a lock, resolve a name, log, or allocate per
//! datagram. Sockets and time belong to `shard`, slow things to `control`. So it runs in a test, a fuzz target or an
//! explanation (`viahop explain`) exactly as it runs live, and `cargo check --lib --no-default-features` builds it alone.
//!
//! What it remembers from one datagram to the next is in [`dispatch::Dispatcher`]: whose turn it is in a pool served in
//! turn, the calls of such pools ([`route::memory`], of fixed size), and backends that just refused a datagram. A pool
//! that chooses by hash needs none of it.
//!
//! It trusts nothing that came over the wire. A message that two servers could read differently is refused, not
//! interpreted; no octet of it is indexed without a check; whatever it holds, the path ends in exactly one
//! [`verdict::Verdict`], which is counted. `docs/datapath.md` follows a call through it.

pub mod blame;
pub mod counters;
pub mod dispatch;
pub mod frame;
pub mod keys;
pub mod limits;
pub mod overload;
pub mod rewrite;
pub mod room;
pub mod route;
pub mod scan;
pub mod shared;
pub mod sip;
pub mod stun;
pub mod tables;
pub mod text;
pub mod token;
pub mod transport;
pub mod validate;
pub mod verdict;
