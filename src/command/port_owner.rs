//! Who holds a UDP or TCP port of an address: what `ss -lnp` says, for error messages, and for whoever waits until nobody does.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;

/// A process.
#[derive(Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its name.
    pub name: String,
    /// Its id.
    pub pid: u32,
}

impl Owner {
    /// Whether that is us.
    pub fn is_this_process(&self) -> bool {
        self.pid == std::process::id()
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

/// The process that has a socket where `address` is wanted over `protocol`, `udp` or `tcp`, as far as we may see.
pub fn find(protocol: &str, address: SocketAddr) -> Option<Owner> {
    let inodes = inodes(protocol, address);
    if inodes.is_empty() {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).find_map(|pid| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        let holds = |entry: fs::DirEntry| fs::metadata(entry.path()).is_ok_and(|meta| inodes.contains(&meta.ino()));
        descriptors.into_iter().any(holds).then(|| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            Owner { name: name.trim().to_owned(), pid }
        })
    })
}

/// Inodes of sockets that keep others from `address`: `/proc/net/udp` has a line for each socket, `sl local_address ... inode`.
/// Listening TCP sockets are in state 0A.
fn inodes(protocol: &str, address: SocketAddr) -> Vec<u64> {
    let mut inodes = Vec::new();
    for suffix in ["", "6"] {
        let Ok(table) = fs::read_to_string(format!("/proc/net/{protocol}{suffix}")) else { continue };
        for line in table.lines().skip(1) {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (Some(local), Some(state), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9)) else {
                continue;
            };
            if is_in_the_way(local, address) && (protocol == "udp" || *state == "0A") {
                inodes.extend(inode.parse::<u64>());
            }
        }
    }
    inodes
}

/// Whether a socket at `local`, as the kernel writes it (`0100007F:13C4`), keeps another from `wanted`: the same port of the same
/// address, or of all. One for all of IPv6 may have IPv4 as well.
fn is_in_the_way(local: &str, wanted: SocketAddr) -> bool {
    let Some(local) = read(local).filter(|local| local.port() == wanted.port()) else { return false };
    let (ip, wanted) = (local.ip().to_canonical(), wanted.ip());
    let same_family = ip.is_ipv4() == wanted.is_ipv4();
    ip == wanted || (ip.is_unspecified() && (same_family || ip.is_ipv6())) || (same_family && wanted.is_unspecified())
}

/// An address as `/proc/net` has it: words of the network's order, each written as a number of this machine, and the port.
fn read(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let words = ip.as_bytes().chunks(8).map(|word| u32::from_str_radix(str::from_utf8(word).ok()?, 16).ok());
    let octets: Vec<u8> = words.collect::<Option<Vec<u32>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let ip = match <[u8; 4]>::try_from(&octets[..]) {
        Ok(octets) => IpAddr::from(octets),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(octets).ok()?),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    /// A server on this machine may well have our port at an address of its own, and is not to be ended for it.
    #[test]
    fn who_has_the_port_at_another_address_is_not_in_the_way() {
        let of_all = ["::1", "::", "127.0.0.1", "127.0.0.2", "0.0.0.0"];
        for (bound, in_the_way_of) in [("127.0.0.2:0", &of_all[3..]), ("[::1]:0", &of_all[..2]), ("[::]:0", &of_all)] {
            let udp = std::net::UdpSocket::bind(bound).unwrap();
            let inode = fs::metadata(format!("/proc/self/fd/{}", udp.as_raw_fd())).unwrap().ino();
            let keeps_from = |ip: &&str| {
                let wanted = SocketAddr::new(ip.parse().unwrap(), udp.local_addr().unwrap().port());
                inodes("udp", wanted).contains(&inode)
            };
            assert_eq!(of_all.into_iter().filter(keeps_from).collect::<Vec<_>>(), in_the_way_of, "{bound}");
        }
    }

    #[test]
    fn we_find_ourselves() {
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let pid = std::process::id();
        assert_eq!(find("udp", udp.local_addr().unwrap()).unwrap().pid, pid);
        assert_eq!(find("tcp", tcp.local_addr().unwrap()).unwrap().pid, pid);
        let free = udp.local_addr().unwrap();
        drop(udp);
        assert!(find("udp", free).is_none_or(|owner| owner.pid != pid));
    }
}
