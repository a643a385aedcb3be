//! eBPF by the bpf(2) system call: maps, programs, and a program at a group of sockets that share a port.
//!
//! Knows nothing of what programs do. Needs `CAP_BPF` (or `CAP_SYS_ADMIN`), for programs with loops `CAP_PERFMON` beside it,
//! up to Linux 5.10 lockable memory as well; without them `EPERM`, which [`Refused`] comes with.

pub mod asm;

mod btf;

use super::check;
use asm::Table;
use std::ffi::{c_int, c_uint};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const MAP_CREATE: c_int = 0;
const MAP_LOOKUP: c_int = 1;
const MAP_UPDATE: c_int = 2;
const PROG_LOAD: c_int = 5;
const PROG_TEST_RUN: c_int = 10;
const OBJ_GET_INFO: c_int = 15;
const BTF_LOAD: c_int = 18;

/// What could not be done, and why.
#[derive(Debug)]
pub struct Refused {
    /// What: an infinitive with its object.
    pub what: &'static str,
    /// What the kernel said.
    pub error: io::Error,
    /// The end of what its verifier wrote, if it looked at a program.
    pub log: String,
}

impl Refused {
    fn to(what: &'static str) -> impl FnOnce(io::Error) -> Refused {
        move |error| Refused { what, error, log: String::new() }
    }
}

/// An array that programs and this process share; with a copy of its own for each CPU, or of sockets.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    value_size: usize,
    cpus: usize,
}

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
struct MapElement {
    fd: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Map {
    /// One value of `octets` octets for each CPU, zeros at first.
    pub fn per_cpu(octets: usize) -> Result<Map, Refused> {
        const PERCPU_ARRAY: u32 = 6;
        let octets = octets.next_multiple_of(8);
        let cpus = possible_cpus().map_err(Refused::to("count the CPUs"))?;
        Map::create(PERCPU_ARRAY, octets, 1, cpus).map_err(Refused::to("make a map of counters"))
    }

    /// An array of `sockets` sockets, none at first.
    pub fn of_sockets(sockets: usize) -> Result<Map, Refused> {
        const REUSEPORT_SOCKARRAY: u32 = 20;
        Map::create(REUSEPORT_SOCKARRAY, 8, sockets, 0).map_err(Refused::to("make a map of sockets"))
    }

    fn create(map_type: u32, value_size: usize, entries: usize, cpus: usize) -> io::Result<Map> {
        let attributes = MapCreate {
            map_type,
            key_size: 4,
            value_size: value_size as u32,
            max_entries: entries.try_into().map_err(|_| io::ErrorKind::InvalidInput)?,
        };
        Ok(Map { fd: descriptor(MAP_CREATE, &attributes)?, value_size, cpus })
    }

    /// The number that a program names it by.
    pub fn descriptor(&self) -> c_int {
        self.fd.as_raw_fd()
    }

    /// Puts a bound socket that shares its port into the place `index` of an array of sockets. It leaves by being closed.
    pub fn put_socket(&self, index: usize, socket: BorrowedFd<'_>) -> Result<(), Refused> {
        let index = index as u32;
        let value = socket.as_raw_fd() as u64;
        let attributes = self.element(&index, (&raw const value).addr());
        // SAFETY: the kernel reads four octets of `index` and, as the map was made so, eight of `value`; both live.
        unsafe { bpf(MAP_UPDATE, &attributes) }.map(drop).map_err(Refused::to("put a socket into its map"))
    }

    /// The first `N` numbers of each CPU's value, added up.
    pub fn sums<const N: usize>(&self) -> io::Result<[u64; N]> {
        let words = self.value_size / 8;
        let mut values = vec![0u64; words * self.cpus];
        let index = 0u32;
        let attributes = self.element(&index, values.as_mut_ptr().addr());
        // SAFETY: the kernel reads four octets of `index` and writes `value_size` for each possible CPU, which is what
        // `values` has room for: the kernel rounds to multiples of eight, and `value_size` is one.
        unsafe { bpf(MAP_LOOKUP, &attributes) }?;
        let mut sums = [0u64; N];
        for of_cpu in values.chunks_exact(words) {
            for (sum, value) in sums.iter_mut().zip(of_cpu) {
                *sum = sum.wrapping_add(*value);
            }
        }
        Ok(sums)
    }

    fn element(&self, index: &u32, value: usize) -> MapElement {
        MapElement {
            fd: self.fd.as_raw_fd() as u32,
            key: (&raw const *index).addr() as u64,
            value: value as u64,
            flags: 0,
        }
    }
}

/// How many CPUs there could be, from `/sys/devices/system/cpu/possible`: `0-3`, `0`, `0-3,8-11`.
fn possible_cpus() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<usize>().ok());
    last.map(|last| last + 1).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// What a program is for, which decides what it is given and what it may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// To look at a packet and return a number: what the kernel lets be tried out without a socket.
    SocketFilter = 1,
    /// The same for whoever may read the packet where it lies, as [`Purpose::Reuseport`] may. Needs `CAP_NET_ADMIN` beside.
    Classifier = 3,
    /// To choose one of the sockets that share a port.
    Reuseport = 21,
}

/// A program that the kernel has accepted.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
    /// What the verifier wrote: how many instructions it followed.
    log: String,
}

#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
    btf: u32,
    function_size: u32,
    functions: u64,
    function_count: u32,
}

#[repr(C)]
struct BtfLoad {
    btf: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
}

impl Program {
    /// Has the kernel verify and translate `table`. `name`: what `bpftool` calls it, 15 letters at most.
    pub fn load(purpose: Purpose, name: &str, table: &Table) -> Result<Program, Refused> {
        /// Of the verifier's log: numbers only, as it fits a few lines.
        const STATISTICS: u32 = 4;
        const LOG: usize = 4096;
        // Functions that the kernel calls must have a type.
        let types = btf::of(table.functions.iter().map(|function| function.1));
        let btf =
            BtfLoad { btf: types.as_ptr().addr() as u64, log: 0, size: types.len() as u32, log_size: 0, log_level: 0 };
        let btf = descriptor(BTF_LOAD, &btf).map_err(Refused::to("describe the program's functions"))?;
        let functions: Vec<[u32; 2]> =
            table.functions.iter().enumerate().map(|(number, function)| [function.0, btf::function(number)]).collect();
        let mut log = vec![0u8; LOG];
        let mut short = [0; 16];
        for (to, from) in short[..15].iter_mut().zip(name.bytes()) {
            *to = from;
        }
        let mut attributes = ProgLoad {
            prog_type: purpose as u32,
            instruction_count: table.instructions.len() as u32,
            instructions: table.instructions.as_ptr().addr() as u64,
            license: c"MIT OR Apache-2.0".as_ptr().addr() as u64,
            log_level: STATISTICS,
            log_size: LOG as u32,
            log: log.as_mut_ptr().addr() as u64,
            kernel_version: 0,
            flags: 0,
            name: short,
            interface: 0,
            attach_type: 0,
            btf: btf.as_raw_fd() as u32,
            function_size: size_of::<[u32; 2]>() as u32,
            functions: functions.as_ptr().addr() as u64,
            function_count: functions.len() as u32,
        };
        /// The verifier breaks off when a signal is pending, which is also how the kernel takes down an io_uring of ours.
        const TRIES: usize = 10;
        let is_interrupted =
            |loaded: &io::Result<_>| loaded.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        let mut loaded = descriptor(PROG_LOAD, &attributes);
        for _ in 1..TRIES {
            if is_interrupted(&loaded) {
                loaded = descriptor(PROG_LOAD, &attributes);
            }
        }
        if loaded.is_err() {
            // Once more for the reason alone. The room is small: what does not fit is an error of its own.
            attributes.log_level = 1;
            loaded = descriptor(PROG_LOAD, &attributes).or(loaded);
        }
        let end = log.iter().position(|&octet| octet == 0).unwrap_or(LOG);
        let log = String::from_utf8_lossy(&log[..end]).trim().to_owned();
        match loaded {
            Ok(fd) => Ok(Program { fd, log }),
            Err(error) => Err(Refused { what: "load the program", error, log }),
        }
    }

    /// What the verifier wrote.
    pub fn log(&self) -> &str {
        &self.log
    }

    /// Lets the program choose among all sockets that share the port of `socket`.
    pub fn attach(&self, socket: BorrowedFd<'_>) -> Result<(), Refused> {
        const SO_ATTACH_REUSEPORT_EBPF: c_int = 52;
        option(socket, SO_ATTACH_REUSEPORT_EBPF, self.fd.as_raw_fd()).map_err(Refused::to("attach the program"))
    }

    /// Runs a [`Purpose::SocketFilter`] or [`Purpose::Classifier`] on `packet`, `repeat` times. Returns its result and the mean
    /// time of a run in nanoseconds. The packet has an Ethernet header, which a filter does not see.
    pub fn try_out(&self, packet: &[u8], repeat: u32) -> io::Result<(u32, u32)> {
        #[repr(C)]
        struct TestRun {
            fd: u32,
            result: u32,
            size_in: u32,
            size_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
            rest: [u64; 4],
        }
        let mut attributes = TestRun {
            fd: self.fd.as_raw_fd() as u32,
            result: 0,
            size_in: packet.len() as u32,
            size_out: 0,
            data_in: packet.as_ptr().addr() as u64,
            data_out: 0,
            repeat,
            duration: 0,
            rest: [0; 4],
        };
        let pointer = &raw mut attributes;
        // SAFETY: the kernel reads `size_in` octets of `packet` and writes results into the struct, which has its size.
        let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, pointer, size_of::<TestRun>() as c_uint) };
        check(result as c_int)?;
        Ok((attributes.result, attributes.duration))
    }

    /// How long the program ran in all, in nanoseconds, and how often. Counted only while `kernel.bpf_stats_enabled` is 1.
    pub fn run_time(&self) -> io::Result<(u64, u64)> {
        /// Octets of `struct bpf_prog_info`, up to and with what is read here; the kernel fills as much as it is asked for.
        const INFO: usize = 232;
        const RUN_TIME_NS: usize = 192;
        const RUN_COUNT: usize = 200;
        #[repr(C)]
        struct GetInfo {
            fd: u32,
            len: u32,
            info: u64,
        }
        let mut info = [0u64; INFO / 8];
        let attributes =
            GetInfo { fd: self.fd.as_raw_fd() as u32, len: INFO as u32, info: info.as_mut_ptr().addr() as u64 };
        // SAFETY: the kernel reads and writes `INFO` octets of an array of as many.
        unsafe { bpf(OBJ_GET_INFO, &attributes) }?;
        Ok((info[RUN_TIME_NS / 8], info[RUN_COUNT / 8]))
    }
}

/// Takes the program away from the sockets that share the port of `socket`.
pub fn detach(socket: BorrowedFd<'_>) -> io::Result<()> {
    const SO_DETACH_REUSEPORT_BPF: c_int = 68;
    option(socket, SO_DETACH_REUSEPORT_BPF, 0)
}

fn option(socket: BorrowedFd<'_>, option: c_int, value: c_int) -> io::Result<()> {
    let len = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` octets of `value`, which has as many.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const value).cast(), len) };
    check(result).map(drop)
}

/// A command that gives a descriptor.
fn descriptor<T>(command: c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: pointers in `attributes` were taken from live arrays of the lengths beside them; the descriptor is checked
    // and owned by nobody else. The kernel sets close-on-exec itself.
    unsafe { Ok(OwnedFd::from_raw_fd(bpf(command, attributes)?)) }
}

/// # Safety
/// Addresses in `attributes` are of memory that lives and has as many octets as the command reads or writes there.
unsafe fn bpf<T>(command: c_int, attributes: &T) -> io::Result<c_int> {
    let pointer: *const T = attributes;
    // SAFETY: the kernel reads `size_of::<T>()` octets of the struct; the rest is the caller's promise.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, pointer, size_of::<T>() as c_uint) } as c_int)
}

#[cfg(test)]
mod tests {
    use super::asm::{Code, Register};
    use super::*;

    #[test]
    fn a_program_is_loaded_and_run_or_refused_with_a_reason() {
        let mut code = Code::new();
        code.function("length").load(asm::Width::Four, Register::R0, Register::R1, 0).exit();
        match Program::load(Purpose::SocketFilter, "length", &code.finish()) {
            Ok(program) => {
                assert!(program.log().contains("processed 2 insns"), "{}", program.log());
                assert_eq!(program.try_out(&[0; 14 + 30], 1).unwrap().0, 30);
            }
            Err(refused) => println!("skipped: this process may not load programs: {refused:?}"),
        }
    }

    #[test]
    fn a_program_that_is_wrong_is_refused_with_what_the_verifier_says() {
        let mut code = Code::new();
        code.function("no_result").exit();
        let refused = Program::load(Purpose::SocketFilter, "no_result", &code.finish()).unwrap_err();
        if refused.error.raw_os_error() == Some(libc::EPERM) {
            println!("skipped: this process may not load programs");
        } else {
            assert!(refused.log.contains("R0 !read_ok"), "{refused:?}");
        }
    }

    #[test]
    fn a_value_of_each_cpu_begins_at_zero() {
        match Map::per_cpu(100) {
            Ok(map) => assert_eq!(map.sums::<13>().unwrap(), [0; 13]),
            Err(refused) => println!("skipped: this process may not make maps: {refused:?}"),
        }
    }
}
