//! End to end: the real program over real sockets, against software we did not write.
//!
//! Each test starts a viahop of its own on addresses of its own, and ends it; its exit code is 0 only if every message it
//! received is accounted for, which `Viahop::end` checks.
#![allow(clippy::disallowed_methods, reason = "tests wait by the clock")]

#[path = "../support/authority.rs"]
mod authority;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../support/mod.rs"]
mod support;

mod browser;
mod calls;
mod capture;
mod ctl;
mod dialogs;
mod discovery;
mod edge;
mod faults;
mod lists;
mod live;
mod loops;
mod nat;
mod overload;
mod proxied;
mod proxying;
mod registrars;
mod reload;
mod start;
mod steering;
mod streams;
mod supervisor;
mod tls;
mod torture;
mod transports;
mod websocket;
