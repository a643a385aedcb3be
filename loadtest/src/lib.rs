//! A SIP load generator and verifier.

pub mod cli;
pub mod clock;
pub mod compare;
pub mod endpoint;
pub mod failure;
pub mod latency;
pub mod owners;
pub mod relay;
pub mod remote;
pub mod rng;
pub mod scenario;
pub mod schedule;
pub mod seal;
pub mod sip;
pub mod sys;
pub mod timer;
pub mod uac;
pub mod uas;
pub mod usage;
