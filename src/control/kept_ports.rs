//! The ports towards backends, kept from one process to the next.
//!
//! What a server answers comes to the port that it was asked from, and stands in our Via. A call that rings while viahop is started
//! anew is answered there: so the next process takes the same ports, as long as nobody else has them. Where the
//! configuration says which ports there are, nothing needs to be kept.

use super::config::Config;
use super::secret::state_directory;
use crate::dataplane::dispatch::EgressPorts;
use std::fs;
use std::io;
use std::path::PathBuf;

/// Where the ports of a viahop are kept: two of one user have different listeners.
#[derive(Debug)]
pub struct KeptPorts(PathBuf);

impl KeptPorts {
    /// The place of those of a viahop with this configuration. `None`: the operator has chosen them, or nothing is known of the
    /// next process.
    pub fn of(config: &Config) -> Option<KeptPorts> {
        let listener =
            config.listeners.first().filter(|one| one.address.port() != 0 && config.egress_ports.is_none())?;
        Some(KeptPorts(state_directory()?.join(format!("ports-{}-{}", listener.transport, listener.address))))
    }

    /// Those of the process before, of IPv4 and of IPv6, shard by shard. A file that holds something else holds none.
    pub fn read(&self) -> [Vec<u16>; 2] {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        let port = |line: &str, place: usize| line.split(' ').nth(place)?.parse::<u16>().ok().filter(|port| *port != 0);
        [0, 1].map(|place| text.lines().filter_map(|line| port(line, place)).collect())
    }

    /// Keeps these for the next process.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, shards: impl Iterator<Item = EgressPorts>) -> io::Result<()> {
        let word = |port: Option<u16>| port.map_or("-".to_owned(), |port| port.to_string());
        let text: String = shards.map(|ports| format!("{} {}\n", word(ports.v4), word(ports.v6))).collect();
        if let Some(directory) = self.0.parent() {
            fs::create_dir_all(directory)?;
        }
        let mut draft = self.0.clone().into_os_string();
        draft.push(format!(".{}", std::process::id()));
        fs::write(&draft, text).and_then(|()| fs::rename(&draft, &self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_anything_else_is_nothing() {
        let kept = KeptPorts(std::env::temp_dir().join(format!("viahop-ports-{}", std::process::id())));
        assert_eq!(kept.read(), [const { Vec::<u16>::new() }; 2]);
        let shards = [(Some(40_001), None), (Some(40_002), Some(40_003))].map(|(v4, v6)| EgressPorts { v4, v6 });
        kept.write(shards.into_iter()).unwrap();
        assert_eq!(kept.read(), [vec![40_001, 40_002], vec![40_003]]);
        fs::write(&kept.0, "0 70000\nnonsense\n\n7").unwrap();
        assert_eq!(kept.read(), [vec![7], Vec::<u16>::new()]);
        fs::remove_file(&kept.0).unwrap();
    }
}
