//! Under systemd: the unit of docs/configuration.md, started, reloaded and stopped by a `systemd --user` of this test's own.

use crate::live::{Folder, PATIENCE, Process, UNPROBED, config, free_port, output, viahop, wait_for_port};
use crate::support::{has_peer, skip};
use std::fs::{self, File};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use viahop::sys::uninterrupted;

const SYSTEMD: &str = "/lib/systemd/systemd";

/// A systemd that manages units of a folder.
struct Systemd<'a> {
    _process: Process,
    folder: &'a Folder,
}

impl Systemd<'_> {
    /// `None`, and said so, where there can be none. It believes that the machine runs systemd, in a mount namespace of its own.
    fn start(folder: &Folder) -> Option<Systemd<'_>> {
        // What is hidden from a service is covered with what stands in `inaccessible`.
        let run = "mount -t tmpfs none /run && cd /run && mkdir -p systemd/system systemd/inaccessible/dir && \
                   touch systemd/inaccessible/reg && mknod systemd/inaccessible/chr c 0 0 && \
                   exec \"$0\" --user --unit=basic.target --log-target=console";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", run, SYSTEMD]);
        command.env("XDG_RUNTIME_DIR", &folder.0).env("XDG_CONFIG_HOME", &folder.0).env("XDG_STATE_HOME", &folder.0);
        command.stdout(Stdio::null()).stderr(File::create(folder.0.join("systemd.log")).unwrap());
        let mut process = Process::start(&mut command);
        let until = Instant::now() + PATIENCE;
        while !folder.0.join("systemd/private").exists() {
            if Instant::now() > until || process.wait(Duration::ZERO).is_some() {
                let log = fs::read_to_string(folder.0.join("systemd.log")).unwrap();
                skip(&format!("no systemd --user here: {}", log.lines().last().unwrap_or_default()));
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(Systemd { _process: process, folder })
    }

    /// Exit code and both outputs of `systemctl` with these arguments.
    fn ctl(&self, args: &[&str]) -> (i32, String) {
        let mut command = Command::new("systemctl");
        command.arg("--user").args(args).env("XDG_RUNTIME_DIR", &self.folder.0);
        let (code, out, err) = output(&mut command);
        (code, out + &err)
    }

    fn property(&self, name: &str) -> String {
        let (_, text) = self.ctl(&["show", "viahop", "--value", "-p", name]);
        text.trim().to_owned()
    }
}

/// The unit of the docs, for this program and this user: a user's own systemd has no other users to give.
fn documented_unit(folder: &Folder) -> String {
    let page = include_str!("../../docs/configuration.md");
    let (_, behind) = page.split_once("```ini\n[Unit]").expect("the unit of the docs");
    let (unit, _) = behind.split_once("```").unwrap();
    let config = folder.0.join("viahop.toml");
    let unit = unit.replace("/usr/local/bin/viahop", env!("CARGO_BIN_EXE_viahop"));
    format!("[Unit]{}", unit.replace("/etc/viahop.toml", config.to_str().unwrap()).replace("DynamicUser=yes\n", ""))
}

#[test]
fn systemd_is_told_when_it_is_ready_what_a_reload_came_to_and_when_it_drains() {
    if !["unshare", "systemctl"].iter().all(|name| has_peer(name)) {
        return;
    }
    let folder = Folder::new("systemd");
    fs::create_dir(folder.0.join("systemd")).unwrap();
    fs::create_dir(folder.0.join("systemd/user")).unwrap();
    let unit = documented_unit(&folder);
    folder.write("systemd/user/viahop.service", &unit);
    let ports = [free_port(), free_port()];
    let listen = free_port();
    let right = |backends: &[u16]| {
        let config = config(listen, backends, UNPROBED) + "[admin]\nlisten = \"off\"\n";
        // With all that may be kept from it kept from it.
        config.replacen("[balancer]\n", "[balancer]\nsteering = \"call-id\"\n", 1)
    };
    folder.write("viahop.toml", &right(&ports));
    let Some(systemd) = Systemd::start(&folder) else { return };

    let (code, told) = systemd.ctl(&["start", "viahop"]);
    assert_eq!(code, 0, "{told}{}", systemd.ctl(&["status", "viahop"]).1);
    assert_eq!(systemd.property("StatusText"), "2 of 2 backends take new calls");

    folder.write("viahop.toml", "nonsense");
    assert_ne!(systemd.ctl(&["reload", "viahop"]).0, 0, "a reload that is refused fails");
    let told = systemd.property("StatusText");
    assert!(told.starts_with("2 of 2 backends take new calls; last reload refused: "), "{told}");
    folder.write("viahop.toml", &right(&ports[..1]));
    let (code, told) = systemd.ctl(&["reload", "viahop"]);
    assert_eq!(code, 0, "{told}");
    assert_eq!(systemd.property("StatusText"), "1 of 1 backends take new calls");

    assert_eq!(systemd.ctl(&["stop", "--no-block", "viahop"]).0, 0);
    let until = Instant::now() + PATIENCE;
    while systemd.property("ActiveState") != "inactive" {
        assert!(Instant::now() < until, "{}", systemd.ctl(&["status", "viahop"]).1);
        let told = systemd.property("StatusText");
        assert!(["1 of 1", "draining", ""].iter().any(|one| told.starts_with(one)), "{told}");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(systemd.property("Result"), "success");
}

#[test]
fn a_supervisor_that_does_not_read_is_not_waited_for_and_learns_of_it_all_when_it_does() {
    let folder = Folder::new("supervisor");
    let name = format!("viahop-it-{}-supervisor", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let supervisor = UnixDatagram::bind_addr(&address).unwrap();
    supervisor.set_read_timeout(Some(PATIENCE)).unwrap();
    let busy = UnixDatagram::unbound().unwrap();
    busy.set_nonblocking(true).unwrap();
    while busy.send_to_addr(b"something else", &address).is_ok() {}

    let [listen, admin] = [free_port(), free_port()];
    let text = config(listen, &[free_port()], UNPROBED) + &format!("[admin]\nlisten = \"127.0.0.1:{admin}\"\n");
    let file = folder.write("viahop.toml", &text);
    let mut command = viahop(&["run", "-c", file.to_str().unwrap()]);
    command.env("NOTIFY_SOCKET", format!("@{name}")).env("STATE_DIRECTORY", &folder.0);
    let process = Process::start(command.stderr(Stdio::null()));
    wait_for_port(listen);
    let until = Instant::now() + PATIENCE;
    while ureq::get(format!("http://127.0.0.1:{admin}/live")).call().is_err() {
        assert!(Instant::now() < until, "it waits for its supervisor");
        std::thread::sleep(Duration::from_millis(20));
    }

    let told = |wanted: &str| {
        let mut room = [0; 4096];
        loop {
            let len = uninterrupted(|| supervisor.recv(&mut room)).unwrap_or_else(|error| panic!("{wanted}: {error}"));
            let text = String::from_utf8_lossy(&room[..len]);
            if text.starts_with(wanted) {
                return text.into_owned();
            }
        }
    };
    assert_eq!(told("READY=1\n"), "READY=1\nSTATUS=1 of 1 backends take new calls\n");
    process.signal("TERM");
    assert!(told("STOPPING=1\n").contains("STATUS=draining"));
}
