//! Measures elements against each other: started one after the other, in interleaved rounds, on the same core, under the
//! same load. Absolute figures of a shared machine drift by the minute; ratios within a round do not.
//!
//! ```text
//!   core A: the driver                       core B: the element
//!   client socket ── INVITE, 900 octets ──►  ┌──────────┐
//!        ▲                                   │ viahop,  │ ──► sink socket
//!        └────────────── 200 ◄────────────── │ relay, … │ ◄── 200, all rows copied
//!                                            └──────────┘
//! ```
//!
//! [`driver`] is the load and what it sees, [`element`] starts and stops what is measured, [`hop`] tells whether the cores
//! stay where they are, [`rounds`] puts them together, [`table`] prints and [`picture`] draws. The driver is not the generator of calls: it has
//! one kind of transaction and no timers, so that it can outrun any element from one core.

pub mod driver;
pub mod element;
pub mod hop;
pub mod invite;
pub mod picture;
pub mod rounds;
pub mod table;
