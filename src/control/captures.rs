//! Whether somebody captures on this machine, who would see a run of datagrams as one packet: the kernel shows packets to
//! captures before it cuts them (`gso = "auto"`).
//!
//! tcpdump, sngrep, tshark and probes of monitoring open packet sockets (packet(7)), which the kernel lists for everybody to
//! read. It says not what they look for, nor on whose behalf: `dhclient` has one all the time, and counts.

use std::io;

/// The table of packet sockets of this network namespace.
const TABLE: &str = "/proc/self/net/packet";

/// Protocols of the sockets that see SIP: `ETH_P_ALL`, `ETH_P_IP` and `ETH_P_IPV6`, as the table has them.
const PROTOCOLS: [&str; 3] = ["0003", "0800", "86dd"];

/// How many sockets there are that see each packet of the Internet protocol. None where the kernel has no packet sockets.
///
/// # Errors
/// The table cannot be read.
pub fn count() -> io::Result<usize> {
    match std::fs::read_to_string(TABLE) {
        Ok(table) => Ok(in_table(&table)),
        // The module has never been needed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

fn in_table(table: &str) -> usize {
    let protocols = table.lines().skip(1).filter_map(|row| row.split_whitespace().nth(3));
    protocols.filter(|protocol| PROTOCOLS.contains(protocol)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_count_that_see_packets_of_the_internet_protocol() {
        let table = "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n\
            00000000ef6e4bb2 3      3    0003   0     1 0      0      51207 \n\
            0000000000000000 3      3    88cc   2     1 0      0      18112 \n\
            0000000000000000 3      2    0806   0     0 0      0      18113 \n\
            0000000000000000 3      10   86dd   2     1 512    1000   18114 \n";
        assert_eq!(in_table(table), 2);
        let (header, _) = table.split_once('\n').unwrap();
        assert_eq!((in_table(header), in_table("")), (0, 0));
    }

    #[test]
    fn this_kernel_has_such_a_table() {
        assert!(count().is_ok());
    }
}
