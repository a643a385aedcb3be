//! A SIP load generator and verifier. What a user does with it is in `docs/load.md`; this is the map of how it is made.
//!
//! ```text
//!   cli ──► run, search ──────────────────────────────────────────────► log ──► report, html, hgrm, assertion
//!            │     once a second: snapshots, for screen or a line         ▲
//!            ▼                                                            │
//!   uac: one thread per core             element          uas: one thread per core
//!   schedule ► call ► request ► batch ──► under ──► batch ► answer ► call        owners: who took which call,
//!   timer ◄──┘        seal, digest        test           seal, digest └► timer   seen by all callees
//! ```
//!
//! * [`uac`] and [`uas`] are the two sides, each with shards that share nothing but what is told here: threads bound to a
//!   core, with sockets, calls and a timer wheel of their own, waiting on epoll. There is no executor: a shard is one task,
//!   and would have nobody to yield to (`docs/load.md`, What the generator itself can do).
//! * [`schedule`] decides when a call is due and nothing else does: an open loop. [`latency`] counts from there.
//! * [`streams`] are the connections of a shard, where the load goes over TCP or [TLS](tls): in the same epoll set, read and
//!   written by the same code as datagrams.
//! * [`scenario`] is what a call does, as data. [`sip`] reads and writes messages; it is not viahop's own, on purpose: a
//!   generator that shared the balancer's scanner could not find its bugs.
//! * [`seal`], [`owners`] and [`tally`] are the verification: what no hop may change, who took which call, and what was sent
//!   and never arrived. [`fault`] and [`impair`] break things on purpose.
//! * [`compare`] measures elements against each other and against [`relay`], which is what any element costs at least; its
//!   driver has one kind of transaction and no timers.
//! * [`idle`] holds connections that do nothing, and looks at what the element keeps for them; [`hello`] begins TLS handshakes and
//!   never ends one.
//! * [`sys`] is the only folder with `unsafe`, [`clock`] the only file that reads a clock, `say` the only one that prints.

#[macro_use]
mod say;

pub mod assertion;
pub mod cli;
pub mod clock;
pub mod compare;
pub mod digest;
pub mod endpoint;
pub mod failure;
pub mod fault;
pub mod hello;
pub mod hgrm;
pub mod html;
pub mod idle;
pub mod impair;
pub mod kpi;
pub mod latency;
pub mod log;
pub mod owners;
pub mod pace;
pub mod relay;
pub mod remote;
pub mod report;
pub mod rng;
pub mod run;
pub mod scenario;
pub mod schedule;
pub mod screen;
pub mod seal;
pub mod search;
pub mod sip;
pub mod streams;
pub mod svg;
pub mod sys;
pub mod tally;
pub mod timer;
pub mod tls;
pub mod uac;
pub mod uas;
pub mod usage;
pub mod websocket;
