//! A SIP load generator and verifier.
