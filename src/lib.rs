//! viahop.
#![deny(unsafe_code)]
#[cfg(feature = "runtime")]
pub mod control;
pub mod dataplane;
#[cfg(feature = "runtime")]
pub mod link;
#[cfg(feature = "runtime")]
pub mod shard;
#[cfg(feature = "runtime")]
pub mod sys;
