//! What the fuzz targets share: a world to send messages through, a slow reader of messages, and the rules that every
//! outcome keeps.
//!
//! ```text
//! octets ─► world::Path ─► outcome ─► rules      judged with plain::Message, which shares no code with the data plane
//! ```
//!
//! A rule that is broken panics, which is what the fuzzer looks for.

pub mod rules;
pub mod world;

pub use support::plain;

/// The cast of the tests: addresses, keys, parts of tables.
#[path = "../../support/mod.rs"]
pub mod support;
