//! The language, free of policy: how the values that the scan found are read.
//!
//! Read are the start line, the first Via, Route values, From and To as far as their tags and URIs, CSeq, and numbers.
//! Everything else is carried unread, even when it is broken (RFC 3261 16.3 item 1). Nothing here unescapes, resolves,
//! normalises or allocates: results are offsets into the message.

pub mod cursor;
pub mod grammar;
pub mod header;
pub mod name_addr;
pub mod start_line;
pub mod uri;
pub mod via;
