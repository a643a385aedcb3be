//! Who holds a UDP or TCP port: what `ss -lnp` says, for error messages.

use std::fs;
use std::net::SocketAddr;
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

/// The process that has a socket bound to the port of `address` over `protocol`, `udp` or `tcp`, as far as we may see.
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

/// Inodes of sockets bound to the port: `/proc/net/udp` has a line for each, `sl local_address ... inode`. Listening TCP
/// sockets are in state 0A.
fn inodes(protocol: &str, address: SocketAddr) -> Vec<u64> {
    let mut inodes = Vec::new();
    for suffix in ["", "6"] {
        let Ok(table) = fs::read_to_string(format!("/proc/net/{protocol}{suffix}")) else { continue };
        for line in table.lines().skip(1) {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (Some(local), Some(state), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9)) else {
                continue;
            };
            let port = local.rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok());
            if port == Some(address.port()) && (protocol == "udp" || *state == "0A") {
                inodes.extend(inode.parse::<u64>());
            }
        }
    }
    inodes
}

#[cfg(test)]
mod tests {
    use super::*;

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
