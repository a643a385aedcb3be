//! One call, one core: which shard's socket the kernel gives a datagram to.
//!
//! ```text
//!                         ┌ Call-ID found: hash ─► shard's socket
//! datagram ─► program ────┤
//!   a port that           └ no Call-ID, no message, shard gone: the kernel's own hash of the two addresses
//!   all shards share
//! ```
//!
//! By itself the kernel spreads datagrams by the pair of addresses: all calls of a trunk come to one core, and the two
//! directions of a call to two. The program of [`program`] sends both to where the Call-ID belongs. It is a matter of
//! load and of what a shard remembers of its calls, never of where a message goes: every shard can serve every message,
//! so whatever the program picks is right, and nothing is lost without it.
//!
//! Loaded before the sockets are opened, which takes the kernel tens of milliseconds, and attached at once when they are: what comes in
//! between goes by the kernel's hash. The sockets of a port stay the same for the life of the process, and so does the program. What is
//! not to be had is told as [`Missing`], with a remedy.

pub mod program;

use crate::sys::bpf::{self, Map, Program, Purpose, Refused};
use crate::sys::preflight;
use crate::sys::socket::{Options, UdpSocket};
use crate::sys::uninterrupted;
use program::{Outcome, ROOM, Seat, UNDECIDED, shard_of};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// Programs at work, with what they count. They go with the sockets they are at.
#[derive(Debug)]
pub struct Steering {
    room: Map,
    programs: Vec<Program>,
    /// The sockets of each program's port, by shard.
    sockets: Vec<Map>,
    seed: u64,
    shards: u32,
}

/// What is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// In a few words, the kernel's among them.
    pub what: String,
    /// What to do about it.
    pub remedy: &'static str,
}

impl Steering {
    /// Tries a program out on sockets of its own, and then has one ready for each of `ports` ports that `shards` shards
    /// share. With the same `seed` a Call-ID has the same shard.
    ///
    /// # Errors
    /// What is missing.
    pub fn load(ports: usize, shards: usize, seed: u64) -> Result<Steering, Missing> {
        self_test(shards)?;
        Steering::loaded(ports, shards, seed).map_err(|refused| missing(&refused))
    }

    /// Puts the programs at `ports`: of each, the sockets that share it, in the order of their shards.
    ///
    /// # Errors
    /// What is missing. The ports are then as they were before.
    pub fn attach(&self, ports: &[Vec<&UdpSocket>]) -> Result<(), Missing> {
        self.attached(ports).map_err(|refused| {
            // Some may have theirs already. Where there is none, there is nothing to take away.
            ports.iter().filter_map(|port| port.first()).for_each(|socket| drop(bpf::detach(socket.as_fd())));
            missing(&refused)
        })
    }

    fn loaded(ports: usize, shards: usize, seed: u64) -> Result<Steering, Refused> {
        let room = Map::per_cpu(ROOM)?;
        let mut steering = Steering { room, programs: Vec::new(), sockets: Vec::new(), seed, shards: shards as u32 };
        for _ in 0..ports {
            let sockets = Map::of_sockets(shards)?;
            let seat = Seat::at_port(sockets.descriptor());
            let code = program::program(seat, steering.room.descriptor(), steering.shards, seed);
            steering.programs.push(Program::load(Purpose::Reuseport, "viahop_steer", &code)?);
            steering.sockets.push(sockets);
        }
        Ok(steering)
    }

    fn attached(&self, ports: &[Vec<&UdpSocket>]) -> Result<(), Refused> {
        for ((program, sockets), port) in self.programs.iter().zip(&self.sockets).zip(ports) {
            for (shard, socket) in port.iter().enumerate() {
                sockets.put_socket(shard, socket.as_fd())?;
            }
            if let Some(socket) = port.first() {
                program.attach(socket.as_fd())?;
            }
        }
        Ok(())
    }

    /// The number of the shard that messages with this Call-ID come to.
    pub fn shard_of(&self, call_id: &[u8]) -> u32 {
        shard_of(call_id, self.seed, self.shards)
    }

    /// How many datagrams came to each [`Outcome`], since the start.
    pub fn outcomes(&self) -> io::Result<[u64; Outcome::ALL.len()]> {
        self.room.sums()
    }

    /// What the kernel's verifier said of the program: how far it had to look.
    pub fn verdict(&self) -> &str {
        self.programs.first().map_or("", Program::log)
    }

    /// Nanoseconds that the programs ran in all, and how often, while `kernel.bpf_stats_enabled` is 1.
    pub fn run_time(&self) -> io::Result<(u64, u64)> {
        self.programs.iter().try_fold((0, 0), |(time, count), program| {
            program.run_time().map(|(more, times)| (time + more, count + times))
        })
    }
}

/// Datagrams sent to each shard by the self-test.
const PROBES: usize = 4;

/// How long a datagram may take to a socket of the same machine. It takes microseconds.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whether calls come to the sockets they belong to: tried on a port of its own, which nobody else knows.
///
/// # Errors
/// What is missing.
pub fn self_test(shards: usize) -> Result<(), Missing> {
    let failed = |what: &str, error: io::Error| match error.kind() {
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable => Missing {
            what: format!("a loopback interface that is up (cannot {what}: {error})"),
            remedy: "`ip link set lo up`: the program is tried out there",
        },
        _ => Missing {
            what: format!("the self-test failed: {what}: {error}"),
            remedy: "please report it with the output of `viahop doctor`; `steering = \"kernel\"` leaves it alone",
        },
    };
    let options =
        Options { shared_port: true, receive_buffer: 1 << 18, send_buffer: 1 << 18, errors: false, tell_local: false };
    let any = |address: &str| UdpSocket::bind(address.parse().expect("an address"), &options);
    let first = any("127.0.0.1:0").or_else(|_| any("[::1]:0")).map_err(|error| failed("open a socket", error))?;
    let address = first.address();
    let mut sockets = vec![first];
    for _ in 1..shards {
        sockets.push(UdpSocket::bind(address, &options).map_err(|error| failed("open a socket", error))?);
    }
    let seed = RandomState::new().build_hasher().finish();
    let steering = Steering::loaded(1, shards, seed).map_err(|refused| missing(&refused))?;
    steering.attach(&[sockets.iter().collect()])?;
    let sockets: Vec<std::net::UdpSocket> =
        sockets.into_iter().map(|socket| std::net::UdpSocket::from(OwnedFd::from(socket))).collect();
    arrive(&steering, &sockets, address).map_err(|error| failed("send calls to their shards", error))
}

fn arrive(steering: &Steering, sockets: &[std::net::UdpSocket], address: SocketAddr) -> io::Result<()> {
    let sender = std::net::UdpSocket::bind((address.ip(), 0))?;
    for socket in sockets {
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    let mut wanted = vec![PROBES; sockets.len()];
    let mut number = 0u32;
    while wanted.iter().any(|&left| left > 0) {
        let call_id = format!("self-test-{number}@viahop");
        number += 1;
        let shard = steering.shard_of(call_id.as_bytes()) as usize;
        let (Some(socket), Some(left)) = (sockets.get(shard), wanted.get_mut(shard)) else { continue };
        *left = left.saturating_sub(1);
        let message = format!("OPTIONS sip:x SIP/2.0\r\nX-Call-ID: y\r\nCall-ID: {call_id}\r\n\r\n");
        sender.send_to(message.as_bytes(), address)?;
        let mut room = [0; 256];
        let (len, from) = uninterrupted(|| socket.recv_from(&mut room))?;
        if from != sender.local_addr()? || &room[..len] != message.as_bytes() {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(())
}

/// The same program on the bench: run on octets by call instead of on datagrams by the kernel. For tests, and for asking
/// what it costs on this machine.
#[derive(Debug)]
pub struct Bench {
    room: Map,
    program: Program,
    seed: u64,
    shards: u32,
}

/// Octets before the datagram that the kernel wants of a packet to try a program out on: an Ethernet header.
const ETHERNET: usize = 14;

impl Bench {
    /// The program for `shards` shards under `seed`: [`Bench::in_place`], or without `CAP_NET_ADMIN` [`Bench::by_copy`].
    ///
    /// # Errors
    /// What is missing.
    pub fn new(shards: u32, seed: u64) -> Result<Bench, Missing> {
        Bench::in_place(shards, seed).or_else(|_| Bench::by_copy(shards, seed))
    }

    /// The program as it is at a port, which reads datagrams where they lie.
    ///
    /// # Errors
    /// What is missing.
    pub fn in_place(shards: u32, seed: u64) -> Result<Bench, Missing> {
        Bench::load(Seat::on_bench(), Purpose::Classifier, shards, seed).map_err(|refused| missing(&refused))
    }

    /// The program that copies each datagram, as it does with those that do not lie in one piece.
    ///
    /// # Errors
    /// What is missing.
    pub fn by_copy(shards: u32, seed: u64) -> Result<Bench, Missing> {
        Bench::load(Seat::on_bench_by_copy(), Purpose::SocketFilter, shards, seed).map_err(|refused| missing(&refused))
    }

    fn load(seat: Seat, purpose: Purpose, shards: u32, seed: u64) -> Result<Bench, Refused> {
        let room = Map::per_cpu(ROOM)?;
        let code = program::program(seat, room.descriptor(), shards, seed);
        let program = Program::load(purpose, "viahop_bench", &code)?;
        Ok(Bench { room, program, seed, shards })
    }

    /// The shard that the program sends `datagram` to, or why it does not decide.
    ///
    /// # Errors
    /// The kernel does not try out packets as long as this: those of 4 kB it may not.
    pub fn decide(&self, datagram: &[u8]) -> io::Result<Result<u32, Outcome>> {
        let (result, _) = self.program.try_out(&packet(datagram), 1)?;
        let reason = Outcome::ALL.get((result & !UNDECIDED) as usize).copied().unwrap_or(Outcome::Unreadable);
        Ok(if result & UNDECIDED == 0 { Ok(result) } else { Err(reason) })
    }

    /// Nanoseconds that the program takes for `datagram`: the mean of `repeat` runs.
    ///
    /// # Errors
    /// As [`Bench::decide`].
    pub fn time(&self, datagram: &[u8], repeat: u32) -> io::Result<u32> {
        self.program.try_out(&packet(datagram), repeat).map(|(_, nanoseconds)| nanoseconds)
    }

    /// The number of the shard that messages with this Call-ID come to.
    pub fn shard_of(&self, call_id: &[u8]) -> u32 {
        shard_of(call_id, self.seed, self.shards)
    }

    /// How many datagrams came to each [`Outcome`].
    pub fn outcomes(&self) -> io::Result<[u64; Outcome::ALL.len()]> {
        self.room.sums()
    }

    /// What the kernel's verifier said of the program: how far it had to look.
    pub fn verdict(&self) -> &str {
        self.program.log()
    }
}

fn packet(datagram: &[u8]) -> Vec<u8> {
    [&[0; ETHERNET][..], datagram].concat()
}

/// What a refusal means, and what to do about it.
fn missing(refused: &Refused) -> Missing {
    explained(refused, preflight::missing_capability())
}

/// The same for a process that lacks `capability`.
fn explained(refused: &Refused, capability: Option<&str>) -> Missing {
    const CAPABILITY: &str = "systemd: `AmbientCapabilities=CAP_BPF CAP_PERFMON`; shell: `setcap cap_bpf,cap_perfmon+ep \
                              viahop`; docker: `--cap-add BPF --cap-add PERFMON` and a seccomp profile that allows bpf(2)";
    const LEAVE: &str = "a seccomp profile that allows bpf(2) (systemd: `SystemCallFilter=bpf`), no user namespace (rootless containers), no \
                         kernel in lockdown; up to Linux 5.10 also `LimitMEMLOCK=64M`, `ulimit -l 65536`";
    let (why, remedy) = match (refused.error.kind(), capability) {
        (io::ErrorKind::NotFound, _) => ("/sys".to_owned(), "mount it: it says how many CPUs the program may count on"),
        // Whatever is refused to those who lack one, is refused for that: the verifier says so in many ways.
        (_, Some(capability)) => (capability.to_owned(), CAPABILITY),
        (io::ErrorKind::PermissionDenied, None) => ("leave to use bpf(2)".to_owned(), LEAVE),
        (io::ErrorKind::OutOfMemory, None) => (
            "memory".to_owned(),
            "up to Linux 5.10 programs count as locked memory: `LimitMEMLOCK=64M`, `ulimit -l 65536`",
        ),
        (io::ErrorKind::Unsupported, None) => {
            ("bpf(2) in this kernel".to_owned(), "a kernel with CONFIG_BPF_SYSCALL, Linux 5.17 or newer")
        }
        _ => {
            let said: Vec<&str> = refused.log.lines().rev().take(3).collect();
            (
                format!("a kernel that takes the program ({})", said.join(" / ")),
                "Linux 5.17 or newer; on a newer one, please report it",
            )
        }
    };
    Missing { what: format!("{why} (cannot {}: {})", refused.what, refused.error), remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_what_refused() {
        let of = |errno, capability| {
            let error = io::Error::from_raw_os_error(errno);
            explained(&Refused { what: "make a map", error, log: String::new() }, capability)
        };
        let (both, bpf) = (Some("CAP_BPF and CAP_PERFMON"), "leave to use bpf(2) (cannot make a map");
        for (errno, capability, what, remedy) in [
            // Who has the capabilities may still be refused by a filter, or have them in a namespace of its own.
            (libc::EPERM, None, bpf, "seccomp profile that allows bpf(2)"),
            (libc::EPERM, None, bpf, "user namespace"),
            (libc::EPERM, both, "CAP_BPF and CAP_PERFMON (cannot", "AmbientCapabilities"),
            (libc::ENOENT, both, "/sys (cannot", "mount it"),
            (libc::ENOSYS, None, "bpf(2) in this kernel", "CONFIG_BPF_SYSCALL"),
            (libc::E2BIG, None, "a kernel that takes the program", "please report it"),
        ] {
            let missing = of(errno, capability);
            assert!(missing.what.starts_with(what) && missing.remedy.contains(remedy), "{missing:?}");
        }
    }
}
