//! What is compared: how each element is started on a core, found ready, and ended.

use crate::failure::{Exit, Failure};
use crate::sys::process::{confine, signal_group};
use crate::usage;
use std::fs::File;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long an element may take to end when asked to, before it is killed.
const PATIENCE: Duration = Duration::from_secs(3);

/// An element that can be started.
#[derive(Clone, Debug)]
pub struct Element {
    /// What the table calls it.
    pub name: String,
    /// Program and arguments, with `{ip}`, `{port}`, `{backend_ip}`, `{backend_port}`, `{core}` and `{dir}` to be filled in.
    /// Empty: there is no element, and the driver talks to itself.
    command: Vec<String>,
    /// Files it needs, by their name in `{dir}`.
    files: Vec<(&'static str, String)>,
}

/// The names of the elements that are known, in the order of the table.
pub const KNOWN: &[&str] = &["direct", "relay", "relay-scalar", "viahop", "nginx", "kamailio"];

/// Folders where Debian and others keep modules; the first that is there.
const KAMAILIO_MODULES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/kamailio/modules",
    "/usr/lib/aarch64-linux-gnu/kamailio/modules",
    "/usr/lib64/kamailio/modules",
    "/usr/local/lib64/kamailio/modules",
];
const NGINX_MODULES: &[&str] = &["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/etc/nginx/modules"];

/// The configurations that are published with the program.
const KAMAILIO_CFG: &str = include_str!("../../configs/kamailio.cfg");
const NGINX_CONF: &str = include_str!("../../configs/nginx.conf");

impl Element {
    /// The element of this name, or `NAME=COMMAND LINE`. `viahop` is the balancer's program. `Err` says why there is none.
    pub fn read(text: &str, viahop: &Path) -> Result<Element, String> {
        if let Some((name, line)) = text.split_once('=') {
            let command: Vec<String> = line.split_ascii_whitespace().map(str::to_owned).collect();
            return match command.is_empty() || name.is_empty() {
                true => Err("write NAME=COMMAND with {port} and {backend_port} in it".to_owned()),
                false => Ok(Element { name: name.to_owned(), command, files: Vec::new() }),
            };
        }
        let element = |line: &str, files| {
            let command = line.split_ascii_whitespace().map(str::to_owned).collect();
            Ok(Element { name: text.to_owned(), command, files })
        };
        match text {
            "direct" => element("", Vec::new()),
            "relay" => relay(text, "batched"),
            "relay-scalar" => relay(text, "scalar"),
            "viahop" => {
                if !viahop.exists() {
                    return Err(format!("{} is not there; say where with --viahop", viahop.display()));
                }
                let args =
                    "run --listen udp:{ip}:{port} --backend sip:{backend_ip}:{backend_port} --cores {core} --admin off";
                let command = args.split(' ').map(str::to_owned);
                let command = std::iter::once(viahop.display().to_string()).chain(command).collect();
                Ok(Element { name: text.to_owned(), command, files: Vec::new() })
            }
            "nginx" => {
                let program = installed("nginx").ok_or("not installed")?;
                let module = |folder: &&&str| Path::new(folder).join("ngx_stream_module.so").exists();
                let modules = NGINX_MODULES.iter().find(module).ok_or("its stream module is not installed")?;
                let conf = NGINX_CONF.replace("{modules}", modules);
                element(&format!("{program} -c {{dir}}/nginx.conf -e stderr"), vec![("nginx.conf", conf)])
            }
            "kamailio" => {
                let program = installed("kamailio").ok_or("not installed")?;
                let modules = KAMAILIO_MODULES
                    .iter()
                    .find(|folder| Path::new(folder).exists())
                    .ok_or("its modules are not where they are looked for")?;
                let files = vec![
                    ("kamailio.cfg", KAMAILIO_CFG.replace("{modules}", modules)),
                    ("dispatcher.list", "1 sip:{backend_ip}:{backend_port}\n".to_owned()),
                ];
                element(&format!("{program} -DD -E -f {{dir}}/kamailio.cfg -Y {{dir}} -P {{dir}}/kamailio.pid"), files)
            }
            other => Err(format!("`{other}` is not known; these are: {}; or NAME=COMMAND", KNOWN.join(", "))),
        }
    }

    /// Its command line and its files, as they are before they are filled in.
    pub fn description(&self) -> String {
        let mut text = if self.command.is_empty() {
            "the driver talks to itself\n".to_owned()
        } else {
            format!("{}\n", self.command.join(" "))
        };
        for (name, content) in &self.files {
            text += &format!("\n--- {name}\n{content}");
        }
        text
    }

    /// Starts it on `core`, in front of `backend`.
    pub fn start(&self, core: usize, backend: SocketAddr) -> Result<Running, Failure> {
        if self.command.is_empty() {
            return Ok(Running { child: None, target: backend, dir: None });
        }
        let failure = |what: String| Failure::new(Exit::Environment, "compare", what);
        let target = free_port().map_err(|error| failure(format!("no free port: {error}")))?;
        let dir = std::env::temp_dir().join(format!("viahop-load-{}-{}", std::process::id(), target.port()));
        std::fs::create_dir_all(&dir).map_err(|error| failure(format!("{}: {error}", dir.display())))?;
        let filled = |text: &str| {
            text.replace("{ip}", &target.ip().to_string())
                .replace("{port}", &target.port().to_string())
                .replace("{backend_ip}", &backend.ip().to_string())
                .replace("{backend_port}", &backend.port().to_string())
                .replace("{core}", &core.to_string())
                .replace("{dir}", &dir.display().to_string())
        };
        let log = dir.join("log");
        let write = |name: &str, text: &str| std::fs::write(dir.join(name), filled(text));
        let files = self.files.iter().try_for_each(|(name, text)| write(name, text));
        let open = || File::create(&log).and_then(|file| Ok((file.try_clone()?, file)));
        let (out, err) = files.and_then(|()| open()).map_err(|error| failure(format!("{}: {error}", dir.display())))?;
        let mut command = Command::new(filled(&self.command[0]));
        command.args(self.command[1..].iter().map(|argument| filled(argument)));
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        confine(&mut command, &[core]);
        let child = command.spawn().map_err(|error| failure(format!("{} does not start: {error}", self.name)))?;
        Ok(Running { child: Some(child), target, dir: Some(dir) })
    }
}

/// The relay is this very program.
fn relay(name: &str, mode: &str) -> Result<Element, String> {
    let program = std::env::current_exe().map_err(|error| format!("this program cannot find itself: {error}"))?;
    let args = [
        "relay",
        "--listen",
        "udp:{ip}:{port}",
        "--backend",
        "sip:{backend_ip}:{backend_port}",
        "--core",
        "{core}",
        "--mode",
        mode,
    ];
    let command = std::iter::once(program.display().to_string()).chain(args.map(str::to_owned)).collect();
    Ok(Element { name: name.to_owned(), command, files: Vec::new() })
}

/// An element that runs. It ends when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Option<Child>,
    /// Where it listens.
    pub target: SocketAddr,
    dir: Option<PathBuf>,
}

impl Running {
    /// It and all it has started.
    pub fn pids(&self) -> Vec<u32> {
        self.child.as_ref().map_or_else(Vec::new, |child| usage::descendants(child.id()))
    }

    /// The last lines of what it printed.
    pub fn last_words(&self) -> String {
        let log = self.dir.as_ref().map(|dir| std::fs::read_to_string(dir.join("log")).unwrap_or_default());
        let log = log.unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            signal_group(child.id(), libc::SIGTERM);
            let mut waited = Duration::ZERO;
            let step = Duration::from_millis(10);
            while waited < PATIENCE && matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(step);
                waited += step;
            }
            // Whoever is left of its group goes too.
            signal_group(child.id(), libc::SIGKILL);
            let _ = child.wait();
        }
        if let Some(dir) = &self.dir {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

/// Where a program of this name is.
pub(super) fn installed(program: &str) -> Option<String> {
    let path = std::env::var_os("PATH")?;
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let found = folders.map(|folder| folder.join(program)).find(|path| path.is_file())?;
    Some(found.display().to_string())
}

fn free_port() -> std::io::Result<SocketAddr> {
    UdpSocket::bind("127.0.0.1:0")?.local_addr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_element_is_refused_with_those_that_are_known() {
        let error = Element::read("freeswitch", Path::new("/nowhere")).unwrap_err();
        assert!(error.contains("relay") && error.contains("NAME=COMMAND"), "{error}");
        assert!(Element::read("viahop", Path::new("/nowhere")).unwrap_err().contains("--viahop"));
        assert!(Element::read("x=", Path::new("/nowhere")).is_err());
    }

    #[test]
    fn a_command_line_is_an_element_and_ends_with_its_children() {
        let element = Element::read("mine=sleep 60", Path::new("/nowhere")).unwrap();
        let core = crate::sys::process::cores()[0];
        let running = element.start(core, "127.0.0.1:9".parse().unwrap()).unwrap();
        let pids = running.pids();
        assert_eq!(pids.len(), 1);
        drop(running);
        assert!(!Path::new(&format!("/proc/{}", pids[0])).exists());
    }
}
