//! A running viahop, and the peers round it.

use crate::ports;
use serde_json::Value;
use socket2::SockRef;
use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long anything may take that should take no time.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A folder of this test's own, removed with it.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("viahop-it-{}-{number}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// A UDP port of 127.0.0.1 that is free, and a TCP port of the same number likewise. It is none that the kernel gives to
/// whoever asks for any (from 32,768 on) nor one that SIPp takes for media (from 16,384 on), and no other test of this process
/// gets it: it is still free when it is bound.
pub fn free_port() -> u16 {
    free_ports(1)
}

/// The first of `count` such ports in a row.
pub fn free_ports(count: u16) -> u16 {
    const FIRST: u16 = 9_000;
    const COUNT: u16 = 7_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes that run at the same time begin at different places.
    let begin = (std::process::id() as u16).wrapping_mul(251);
    loop {
        let number = NEXT.fetch_add(count, Ordering::Relaxed);
        let port = FIRST + begin.wrapping_add(number) % COUNT;
        if (port..port + count).all(ports::is_free) {
            return port;
        }
    }
}

/// A server's socket. Who comes from the address and port of a backend is that backend, so no client of the same host may get
/// its port, as one in some thousand would if the kernel chose both. It has room for what comes while the test is kept from its core.
pub fn udp_server() -> UdpSocket {
    let socket = UdpSocket::bind(("127.0.0.1", free_port())).unwrap();
    SockRef::from(&socket).set_recv_buffer_size(1 << 20).unwrap();
    socket
}

/// The same for connections.
pub fn tcp_server() -> TcpListener {
    TcpListener::bind(("127.0.0.1", free_port())).unwrap()
}

/// A process that ends with the test.
pub struct Process(pub Child);

impl Process {
    pub fn start(command: &mut Command) -> Process {
        Process(command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([&format!("-{signal}"), &self.0.id().to_string()]).status().unwrap();
        assert!(status.success(), "kill -{signal}");
    }

    /// Waits until it ends.
    pub fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + patience;
        loop {
            match self.0.try_wait().unwrap() {
                Some(status) => return Some(status),
                None if Instant::now() >= until => return None,
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

/// Asks it to end, since Kamailio ends its children then, and kills it if it does not.
impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status().ok();
            self.wait(Duration::from_secs(1));
        }
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A command of the program.
pub fn viahop(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_viahop"));
    command.args(args).env("NO_COLOR", "1").env_remove("RUNTIME_DIRECTORY").env_remove("XDG_RUNTIME_DIR");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("VIAHOP_")) {
        command.env_remove(name);
    }
    command
}

/// Exit code, standard output and standard error of a command that ends.
pub fn output(command: &mut Command) -> (i32, String, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |octets: Vec<u8>| String::from_utf8_lossy(&octets).into_owned();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// A viahop at work.
pub struct Viahop {
    pub process: Process,
    pub admin: SocketAddr,
    pub log: PathBuf,
    pub folder: Folder,
}

impl Viahop {
    /// Starts `viahop run -c` with this configuration, to which the admin endpoint and a place for the secret are added.
    pub fn start(name: &str, config: &str) -> Viahop {
        let folder = Folder::new(name);
        let admin: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        folder.write("viahop.toml", &with_admin(config, admin, &folder));
        let (process, log) = launch(&folder, "log");
        let mut viahop = Viahop { process, admin, log, folder };
        viahop.wait_for_life();
        viahop
    }

    /// Kills it as a power cut would, and starts it again from what is in its folder: the configuration and the secret.
    pub fn restart(&mut self) {
        self.restart_after(|| ());
    }

    /// The same, with something done while it is gone.
    pub fn restart_after(&mut self, meanwhile: impl FnOnce()) {
        self.process.signal("KILL");
        assert!(self.process.wait(PATIENCE).is_some());
        meanwhile();
        (self.process, self.log) = launch(&self.folder, "log-2");
        self.wait_for_life();
    }

    /// The same, with a standard error to which nothing can be written.
    pub fn restart_with_full_stderr(&mut self) {
        self.process.signal("KILL");
        assert!(self.process.wait(PATIENCE).is_some());
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        (self.process, self.log) = (launch_with(&self.folder, full), "/dev/null".into());
        self.wait_for_life();
    }

    pub fn wait_for_life(&mut self) {
        let until = Instant::now() + PATIENCE;
        while ureq::get(format!("http://{}/live", self.admin)).call().is_err() {
            let ended = self.process.0.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < until, "viahop did not start: {ended:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Another configuration in the place of the one it was started with; in force after a SIGHUP.
    pub fn write_config(&self, config: &str) {
        fs::write(self.folder.0.join("viahop.toml"), with_admin(config, self.admin, &self.folder)).unwrap();
    }

    fn get(&self, path: &str) -> String {
        let mut text = String::new();
        let mut response = ureq::get(format!("http://{}{path}", self.admin)).call().unwrap();
        response.body_mut().as_reader().read_to_string(&mut text).unwrap();
        text
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.get("/status.json")).unwrap()
    }

    pub fn metrics(&self) -> String {
        self.get("/metrics")
    }

    /// The sum of the samples of a metric whose labels contain `labels`.
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = self.metrics();
        let samples = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(labels)
        });
        samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// Whether backend number `index` is up.
    pub fn is_up(&self, index: usize) -> bool {
        self.status()["backends"][index]["state"] == "up"
    }

    pub fn wait_until(&self, what: &str, patience: Duration, mut holds: impl FnMut(&Value) -> bool) -> Duration {
        let since = Instant::now();
        loop {
            let status = self.status();
            if holds(&status) {
                return since.elapsed();
            }
            assert!(since.elapsed() < patience, "{what} did not happen:\n{status:#}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The same, without the time in which nobody here could run: where a machine stands still, so does what is waited for.
    pub fn time_until(&self, what: &str, holds: impl FnMut(&Value) -> bool) -> Duration {
        const NAP: Duration = Duration::from_millis(5);
        let (is_over, over) = mpsc::channel::<()>();
        let naps = std::thread::spawn(move || {
            let mut late = Duration::ZERO;
            let mut since = Instant::now();
            while over.recv_timeout(NAP) == Err(RecvTimeoutError::Timeout) {
                late += since.elapsed().saturating_sub(2 * NAP);
                since = Instant::now();
            }
            late
        });
        let took = self.wait_until(what, PATIENCE, holds);
        drop(is_over);
        took.saturating_sub(naps.join().unwrap())
    }

    /// Waits until [`Viahop::metric`] says `value`: what has been heard of is counted a moment later.
    pub fn wait_for_metric(&self, name: &str, labels: &str, value: f64) {
        self.wait_until(&format!("{name} {labels} {value}"), PATIENCE, |_| self.metric(name, labels) == value);
    }

    /// Ends it as Ctrl-C does, and checks that every message is accounted for.
    pub fn end(mut self) -> String {
        self.process.signal("INT");
        let status = self.process.wait(PATIENCE);
        let log = self.log();
        assert_eq!(status.and_then(|status| status.code()), Some(0), "{log}");
        assert!(log.contains("event=\"ended\"") && !log.contains("event=\"panic\""), "{log}");
        log
    }
}

/// `viahop run` of what is in `folder`, with its log there under this name.
pub fn launch(folder: &Folder, log: &str) -> (Process, PathBuf) {
    let log = folder.0.join(log);
    (launch_with(folder, fs::File::create(&log).unwrap()), log)
}

fn launch_with(folder: &Folder, stderr: fs::File) -> Process {
    let path = folder.0.join("viahop.toml");
    let mut command = viahop(&["run", "-c", path.to_str().unwrap()]);
    command.env("STATE_DIRECTORY", &folder.0).stderr(stderr);
    Process::start(&mut command)
}

fn with_admin(config: &str, admin: SocketAddr, folder: &Folder) -> String {
    let socket = folder.0.join("ctl.sock");
    format!("{config}\n[admin]\nlisten = \"{admin}\"\nsocket = \"{}\"\n", socket.display())
}

/// A configuration with one listener and one pool of backends on ports of 127.0.0.1, with `pool` as further keys.
pub fn config(listen: u16, backends: &[u16], pool: &str) -> String {
    let backends: Vec<String> = backends.iter().map(|port| format!("{{ uri = \"sip:127.0.0.1:{port}\" }}")).collect();
    format!(
        "[balancer]\nshards = 2\n[[listen]]\naddress = \"udp:127.0.0.1:{listen}\"\n[[pool]]\nname = \"proxies\"\n{pool}\n\
         backend = [{}]\n",
        backends.join(", ")
    )
}

/// A pool whose backends are always up: SIPp's own scenarios do not answer OPTIONS, and where all share a machine that is
/// too busy some would be thought silent.
pub const UNPROBED: &str = "health = { probe = false }\noutlier = { on = false }";

/// Held by whoever puts load on the machine: what a test says of hundreds of calls a second holds for one test at a time.
pub fn alone() -> impl Sized {
    static LOAD: Mutex<()> = Mutex::new(());
    // Whoever failed while holding it has said so.
    LOAD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until something is bound to a UDP port.
pub fn wait_for_port(port: u16) {
    let until = Instant::now() + PATIENCE;
    while !ports::is_taken("udp", port) {
        assert!(Instant::now() < until, "nobody listens on {port}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// SIPp that works in this folder, at 127.0.0.1. Of 64 KiB, as it has them by itself, it loses what comes while it is kept from
/// its core for a tenth of a second.
pub fn sipp(folder: &Path) -> Command {
    let mut command = Command::new("sipp");
    command.args(["-i", "127.0.0.1", "-nostdin", "-buff_size", "1048576"]);
    command.current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// SIPp as a server on this port.
pub fn sipp_uas(folder: &Path, port: u16, more: &[&str]) -> Process {
    let mut command = sipp(folder);
    command.args(["-sn", "uas", "-p", &port.to_string()]).args(more);
    let process = Process::start(&mut command);
    wait_for_port(port);
    process
}

/// What SIPp as a client has counted.
#[derive(Debug)]
pub struct Calls {
    pub successful: u64,
    pub failed: u64,
    pub retransmissions: u64,
}

/// SIPp as a client: `calls` calls at `rate` a second to `target`. It has no more of them open at a time than it has room for
/// the answers to, also when it makes up for a moment in which it could not run: of a call whose 180 and 200 are both lost
/// its own server knows nothing any more. Where calls last, `more` says how many there may be (`-l`).
pub fn sipp_uac(folder: &Path, target: u16, calls: u32, rate: u32, more: &[&str]) -> Command {
    let mut command = sipp(folder);
    command.args(["-sn", "uac", &format!("127.0.0.1:{target}"), "-p", &free_port().to_string()]);
    command.args(["-r", &rate.to_string(), "-m", &calls.to_string(), "-l", "40"]);
    command.args(["-trace_stat", "-stf", "uac.csv", "-fd", "1"]).args(more);
    command
}

/// The last line of SIPp's statistics in `folder`.
pub fn calls(folder: &Path) -> Calls {
    let text = fs::read_to_string(folder.join("uac.csv")).unwrap();
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap().split(';').collect();
    let last: Vec<&str> = lines.next_back().unwrap().split(';').collect();
    let value = |name: &str| {
        let place = names.iter().position(|one| *one == name).unwrap_or_else(|| panic!("no {name} in {names:?}"));
        last[place].parse::<u64>().unwrap()
    };
    Calls {
        successful: value("SuccessfulCall(C)"),
        failed: value("FailedCall(C)"),
        retransmissions: value("Retransmissions(C)"),
    }
}
