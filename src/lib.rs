//! viahop: a stateless SIP load balancer. One Via hop between the world and a cluster of SIP servers.
//!
//! ```text
//!                     control/   config  health  secret  metrics  admin             (one tokio runtime, one thread)
//!                          │ Tables (immutable, swapped whole)        ▲ counters, signals
//!                          ▼            link.rs                       │
//! datagram in ─► shard/ ─► dataplane/dispatch ────────────────────► shard/ ─► datagram out
//!   (sys/ mmsg)  1 core    scan ─► route ─► rewrite                 same core  (sys/ mmsg)
//!                          pure: no I/O, no clock, no lock, no allocation
//! ```
//!
//! Folders are permissions; `tests/tidy.rs` holds them to it:
//!
//! | folder | does | may import | never |
//! |---|---|---|---|
//! | [`dataplane`] | thinks: octets in, verdict out | core, alloc, address types, bytes, memchr, smallvec, hashes | I/O, clocks, threads, locks, the rest |
//! | [`shard`] | acts: one core, its sockets, its loop | dataplane, link, sys, tls, glommio | control |
//! | [`control`] | may be slow: decides per second, not per message | dataplane types, link, tls, tokio and its like | shard, sys |
//! | [`sys`] | talks to the kernel; `unsafe` lives here and in the scanner's vector arms | libc | anything of ours |
//! | [`tls`] | seals and opens: certificates in, a session for each connection | rustls, webpki, dataplane types | I/O, the rest |
//! | [`link`] | the only thing that shards and control share | dataplane types, tls | shard, control, sys |
//!
//! Begin with [`dataplane::dispatch`]: the whole data path in one file. Without the feature `runtime` the data plane is all
//! there is, which is what fuzz targets and benches build.
#![deny(unsafe_code)]

// Only the data plane is kept from clocks and locks (`.clippy.toml`): there, time is an argument.
#[cfg(feature = "runtime")]
#[allow(clippy::disallowed_methods)]
pub mod control;
pub mod dataplane;
#[cfg(feature = "runtime")]
#[allow(clippy::disallowed_methods)]
pub mod link;
#[cfg(feature = "runtime")]
#[allow(clippy::disallowed_methods)]
pub mod shard;
#[cfg(feature = "runtime")]
pub mod sys;
#[cfg(feature = "runtime")]
pub mod tls;
