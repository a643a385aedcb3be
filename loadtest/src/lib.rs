//! A SIP load generator and verifier.

pub mod cli;
pub mod clock;
pub mod endpoint;
pub mod failure;
pub mod relay;
pub mod sip;
pub mod sys;
