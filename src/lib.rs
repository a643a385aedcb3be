//! viahop.
#![deny(unsafe_code)]
pub mod dataplane;
