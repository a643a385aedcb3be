//! The ports towards backends, kept from one process to the next.
//!
//! What a server answers comes to the port that it was asked from, and stands in our Via. A call that rings while viahop is started
//! anew is answered there: so the next process takes the same ports, as long as nobody else has them. Where the
//! configuration says which ports there are, nothing needs to be kept.

use super::config::Config;
use super::secret::{NO_STATE_DIRECTORY, state_directory};
use crate::dataplane::dispatch::EgressPorts;
use std::fs;
use std::io;
use std::path::PathBuf;

/// Listeners whose ports are kept: of viahops of one user that run at the same time, and of those before.
const LISTENERS_MAX: usize = 16;

/// Where the ports of a viahop are kept: in the line of its first listener, which no two have at a time.
///
/// ```text
/// udp:0.0.0.0:5060 40001/- 40002/40003        of each shard, of IPv4 and of IPv6
/// ```
#[derive(Debug)]
pub struct KeptPorts {
    /// What they are kept in, if there is a place for it.
    pub file: Option<PathBuf>,
    listener: String,
}

impl KeptPorts {
    /// Those of a viahop with this configuration. `None`: the operator has chosen them, or nothing is known of the next process.
    pub fn of(config: &Config) -> Option<KeptPorts> {
        let listener =
            config.listeners.first().filter(|one| one.address.port() != 0 && config.egress_ports.is_none())?;
        let listener = format!("{}:{}", listener.transport, listener.address);
        Some(KeptPorts { file: state_directory().map(|directory| directory.join("ports")), listener })
    }

    /// Those of the process before, of IPv4 and of IPv6, shard by shard. A file that holds something else holds none.
    pub fn read(&self) -> [Vec<u16>; 2] {
        let text = self.file.as_ref().and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        let own = text.lines().find_map(|line| self.own(line)).unwrap_or_default();
        let port =
            |shard: &str, place: usize| shard.split('/').nth(place)?.parse::<u16>().ok().filter(|port| *port != 0);
        [0, 1].map(|place| own.split(' ').filter_map(|shard| port(shard, place)).collect())
    }

    /// What stands behind the listener, if the line is its.
    fn own<'a>(&self, line: &'a str) -> Option<&'a str> {
        line.split_once(' ').filter(|(listener, _)| *listener == self.listener).map(|(_, ports)| ports)
    }

    /// Keeps these for the next process.
    ///
    /// # Errors
    /// The file cannot be written, or there is no place for it.
    pub fn write(&self, shards: impl Iterator<Item = EgressPorts>) -> io::Result<()> {
        let file = self.file.as_ref().ok_or_else(|| io::Error::other(NO_STATE_DIRECTORY))?;
        let word = |port: Option<u16>| port.map_or("-".to_owned(), |port| port.to_string());
        let shards: Vec<String> = shards.map(|ports| format!("{}/{}", word(ports.v4), word(ports.v6))).collect();
        let mut text = format!("{} {}\n", self.listener, shards.join(" "));
        let before = fs::read_to_string(file).unwrap_or_default();
        for line in before.lines().filter(|line| self.own(line).is_none()).take(LISTENERS_MAX - 1) {
            text.push_str(&format!("{line}\n"));
        }
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory)?;
        }
        let draft = file.with_extension(std::process::id().to_string());
        fs::write(&draft, text).and_then(|()| fs::rename(&draft, file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_listener_reads_what_it_wrote_and_anything_else_is_nothing() {
        let file = std::env::temp_dir().join(format!("viahop-ports-{}", std::process::id()));
        let of = |listener: &str| KeptPorts { file: Some(file.clone()), listener: listener.into() };
        let none = [const { Vec::<u16>::new() }; 2];
        let (one, other) = (of("udp:0.0.0.0:5060"), of("udp:0.0.0.0:5070"));
        assert_eq!(one.read(), none);
        let shards = [(Some(40_001), None), (Some(40_002), Some(40_003))].map(|(v4, v6)| EgressPorts { v4, v6 });
        one.write(shards.into_iter()).unwrap();
        other.write(shards[..1].iter().copied()).unwrap();
        assert_eq!(one.read(), [vec![40_001, 40_002], vec![40_003]]);
        assert_eq!(other.read(), [vec![40_001], vec![]]);
        one.write(shards[1..].iter().copied()).unwrap();
        assert_eq!(one.read(), [vec![40_002], vec![40_003]]);
        // Whoever has not been started for long is forgotten.
        (0..40).for_each(|port| of(&format!("udp:0.0.0.0:{port}")).write(shards.into_iter()).unwrap());
        assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), LISTENERS_MAX);
        assert_eq!(one.read(), none);
        fs::write(&file, "udp:0.0.0.0:5060 0 70000/x nonsense // 7\n\nudp:0.0.0.0:5070").unwrap();
        assert_eq!((one.read(), other.read()), ([vec![7], vec![]], none.clone()));
        fs::remove_file(&file).unwrap();
        let nowhere = KeptPorts { file: None, listener: "udp:0.0.0.0:5060".into() };
        assert_eq!(nowhere.read(), none);
        assert!(nowhere.write(shards.into_iter()).is_err(), "that they are not kept has to be said");
    }
}
