//! Everything that may be slow: what is decided here is decided per second, not per message.
//!
//! ```text
//!  viahop.toml ─► config ─► resolve ─┐                       ┌─► tables ─► link ─► shards
//!  dispatcher.list ─┘    secret ─────┤                       │
//!        └────► list_watch ──────────┤                       │
//!  OPTIONS ◄─► health ───────────────┼─► run (one loop) ─────┼─► view ─► admin: /metrics /ready /status.json
//!  signals of shards, of the system ─┘      owns Cluster     │        └─► supervisor: systemd
//!                                                            └─► log
//! ```
//!
//! One thread, one tokio runtime, one loop that owns all state ([`run`]). Shards read what it publishes and never wait
//! for it; if it stopped, calls would go on with the tables in force.

pub mod admin;
pub mod ask;
pub mod captures;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod connections;
mod discovery;
pub mod events;
pub mod health;
pub mod kept_ports;
pub mod list_watch;
pub mod metrics;
pub mod operator;
pub mod origin;
pub mod plan;
pub mod resolve;
pub mod run;
pub mod secret;
pub mod socket;
pub mod steering;
mod supervisor;
pub mod view;
mod visitors;
pub mod witness;
