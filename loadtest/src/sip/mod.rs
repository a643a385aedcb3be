//! SIP as far as a load generator reads and writes it. Written apart from the balancer on purpose: two parsers that
//! share a bug agree about it.
//!
//! Reading is one pass over the lines into a reusable list of rows ([`message`]); what a row's value holds is looked at
//! when it is needed ([`value`]). Writing is appending to lent room ([`text`]), and answers copy what RFC 3261 8.2.6 says
//! ([`answer`]). A stream is taken apart before that ([`frame`]). Nothing here allocates per message, and no octet from the wire can make it panic.

pub mod answer;
pub mod frame;
pub mod message;
pub mod text;
pub mod value;
