//! Which ports of this host are taken, read rather than tried: who binds a port to see whether it is free keeps it from the
//! program that is about to have it, and a child that another thread forks at that moment keeps it until it is replaced.

use std::fs;

/// Whether nobody has this port, over UDP or TCP, at any address.
pub fn is_free(port: u16) -> bool {
    !is_taken("udp", port) && !is_taken("tcp", port)
}

/// Whether a socket has this port: `/proc/net/udp` and its kin have a line for each, `sl local_address rem_address st ...`,
/// with the address as `0100007F:13C4`. A TCP connection in state 06, TIME_WAIT, has no socket left.
pub fn is_taken(protocol: &str, port: u16) -> bool {
    ["", "6"].into_iter().any(|suffix| {
        let table = fs::read_to_string(format!("/proc/net/{protocol}{suffix}")).unwrap_or_default();
        table.lines().skip(1).any(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let local = fields.next().and_then(|local| local.rsplit_once(':'));
            let state = fields.nth(1);
            local.is_some_and(|(_, digits)| u16::from_str_radix(digits, 16) == Ok(port)) && state != Some("06")
        })
    })
}
