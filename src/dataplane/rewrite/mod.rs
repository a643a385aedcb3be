//! What changes in a message on its way through, and how it is written.
//!
//! Of a request: our Via goes on top, the Via below learns where the request came from, Max-Forwards goes down by one,
//! Route values of ours go out, octets behind the body are cut. Of a response: our Via goes. Nothing else is touched
//! (RFC 3261 16.6 item 1); bodies are neither copied nor read.

pub mod edit;
pub mod pop;
pub mod reply;
pub mod via;
