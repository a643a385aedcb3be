//! What is compared: how each element is started on a core, found ready, and ended.

use crate::endpoint::{Endpoint, Transport};
use crate::failure::{Exit, Failure};
use crate::sys::process::{confine, signal_group};
use crate::tls;
use crate::usage;
use std::fs::File;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
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
    /// How it is spoken to.
    front: Transport,
    /// How it is to speak to what is behind it.
    behind: Transport,
    /// What TLS takes; `None`: there is none on either side.
    tls: Option<Tls>,
}

/// The names of the elements that are known over UDP, in the order of the table.
pub const KNOWN: &[&str] = &["direct", "relay", "relay-scalar", "viahop", "viahop-no-gso", "nginx", "kamailio"];

/// The same for a comparison over TCP. What its cost is compared with goes over UDP.
pub const KNOWN_TCP: &[&str] =
    &["direct", "direct-tcp", "relay", "viahop", "viahop-tcp", "viahop-tcp-udp", "nginx-tcp", "kamailio-tcp"];

/// The same for a comparison over TLS. What its cost is compared with goes over TCP.
pub const KNOWN_TLS: &[&str] =
    &["direct-tcp", "direct-tls", "viahop-tcp", "viahop-tls", "viahop-tls-udp", "kamailio-tls"];

/// What is known beside these, and measured where it is asked for.
const KNOWN_BESIDE: &[&str] = &["viahop-pad", "viahop-ws-udp", "viahop-wss-udp"];

/// Folders where Debian and others keep its modules; the first that is there. Kamailio knows where its own are.
const NGINX_MODULES: &[&str] = &["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/etc/nginx/modules"];

/// The configurations that are published with the program.
const KAMAILIO_CFG: &str = include_str!("../../configs/kamailio.cfg");
const KAMAILIO_TCP_CFG: &str = include_str!("../../configs/kamailio-tcp.cfg");
const KAMAILIO_TLS_CFG: &str = include_str!("../../configs/kamailio-tls.cfg");
const NGINX_CONF: &str = include_str!("../../configs/nginx.conf");
const NGINX_TCP_CONF: &str = include_str!("../../configs/nginx-tcp.conf");

/// What the end of a name says: how an element is spoken to, and how it is to speak to what is behind it.
pub(super) fn transports(name: &str) -> (&str, Transport, Transport) {
    let last = |name| {
        let (before, end): (&str, &str) = str::rsplit_once(name, '-')?;
        Some((before, Transport::read(end).filter(|_| !before.is_empty())?))
    };
    match last(name).map(|(before, behind)| (before, behind, last(before))) {
        Some((_, behind, Some((plain, front)))) => (plain, front, behind),
        Some((plain, both, None)) => (plain, both, both),
        None => (name, Transport::Udp, Transport::Udp),
    }
}

/// What both ends of the driver have for an element that speaks TLS, and the element's own files.
#[derive(Clone, Debug)]
pub struct Tls {
    /// What the client opens connections with. It takes any certificate.
    pub client: tls::Client,
    /// What the sink shows.
    pub server: tls::Server,
    /// The certificate that both show, and its key.
    made: Arc<tls::SelfSigned>,
}

/// The name that certificates made for a comparison are for.
const NAME: &str = "localhost";

impl Tls {
    fn new() -> Result<Tls, String> {
        let client = tls::Client::new(NAME, None).map_err(|failure| failure.what().to_owned())?;
        let made = tls::SelfSigned::new(vec![NAME.to_owned()]).map_err(|failure| failure.what().to_owned())?;
        let server = tls::Server::of(&made).map_err(|failure| failure.what().to_owned())?;
        Ok(Tls { client, server, made: Arc::new(made) })
    }

    /// What an element reads.
    fn files(&self) -> [(&'static str, String); 2] {
        [("cert.pem", self.made.certificate.clone()), ("key.pem", self.made.key.clone())]
    }
}

/// What viahop runs with where there is TLS or WebSocket, or requests are padded, which its flags have no words for.
fn viahop_toml(front: Transport, behind: Transport, pads: bool) -> String {
    let pad = if pads { "pad = true\n" } else { "" };
    let param = behind.uri_param();
    let shown = match front {
        Transport::Tls | Transport::Wss => "tls = { certificate = \"{dir}/cert.pem\", key = \"{dir}/key.pem\" }\n",
        Transport::Tcp | Transport::Udp | Transport::Ws => "",
    };
    let pages = if front.is_websocket() { "origins = [\"*\"]\n" } else { "" };
    let demanded = match behind {
        Transport::Tls => format!("tls = {{ ca = \"{{dir}}/cert.pem\", name = \"{NAME}\" }}\n"),
        Transport::Tcp | Transport::Udp | Transport::Ws | Transport::Wss => String::new(),
    };
    format!(
        "[balancer]\ncores = [{{core}}]\n\n[[listen]]\naddress = \"{front}:{{ip}}:{{port}}\"\n{shown}{pages}\n[[pool]]\nname = \"sink\"\n\
         {pad}{demanded}backend = [{{ uri = \"sip:{{backend_ip}}:{{backend_port}}{param}\" }}]\n\n[admin]\nlisten = \"off\"\n"
    )
}

impl Element {
    /// The element of this name, or `NAME=COMMAND LINE`. A name that ends in `-tcp` or `-tls` is spoken to, and speaks, so; in
    /// `-tcp-udp`, `-ws-udp` and the like each side has its own. `viahop` is the balancer's program. `Err` says why there is none.
    pub fn read(text: &str, viahop: &Path) -> Result<Element, String> {
        let (name, line) = text.split_once('=').unwrap_or((text, ""));
        let (plain, front, behind) = transports(name);
        let has_tls = front.has_tls() || behind.has_tls();
        if behind.is_websocket() {
            return Err("servers are not reached by WebSocket; write -ws-udp, -ws-tcp".to_owned());
        }
        let tls = has_tls.then(Tls::new).transpose()?;
        let from = |command, mut files: Vec<_>| {
            files.extend(tls.iter().flat_map(Tls::files));
            Ok(Element { name: name.to_owned(), command, files, front, behind, tls: tls.clone() })
        };
        let words = |line: &str| line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
        if text.contains('=') {
            return match words(line).is_empty() || name.is_empty() {
                true => Err("write NAME=COMMAND with {port} and {backend_port} in it".to_owned()),
                false => from(words(line), Vec::new()),
            };
        }
        let element = |line: &str, files| from(words(line), files);
        match (plain, front, behind) {
            ("direct", front, behind) if front == behind => element("", Vec::new()),
            ("relay", Transport::Udp, Transport::Udp) => from(relay("batched")?, Vec::new()),
            ("relay-scalar", Transport::Udp, Transport::Udp) => from(relay("scalar")?, Vec::new()),
            ("viahop-no-gso" | "viahop-pad", Transport::Udp, Transport::Udp) | ("viahop", ..) => {
                if !viahop.exists() {
                    return Err(format!("{} is not there; say where with --viahop", viahop.display()));
                }
                let pads = plain == "viahop-pad";
                if has_tls || front.is_websocket() || pads {
                    let args = ["run", "--config", "{dir}/viahop.toml"].map(str::to_owned);
                    let command = std::iter::once(viahop.display().to_string()).chain(args).collect();
                    return from(command, vec![("viahop.toml", viahop_toml(front, behind, pads))]);
                }
                let param = behind.uri_param();
                let gso = if plain == "viahop-no-gso" { " --gso off" } else { "" };
                let args = format!(
                    "run --listen {front}:{{ip}}:{{port}} --backend sip:{{backend_ip}}:{{backend_port}}{param} \
                     --cores {{core}} --admin off{gso}"
                );
                from(std::iter::once(viahop.display().to_string()).chain(words(&args)).collect(), Vec::new())
            }
            ("nginx", front, behind) if front == behind && !has_tls => {
                let program = installed("nginx").ok_or("not installed")?;
                let module = |folder: &&&str| Path::new(folder).join("ngx_stream_module.so").exists();
                let modules = NGINX_MODULES.iter().find(module).ok_or("its stream module is not installed")?;
                let conf = if front == Transport::Tcp { NGINX_TCP_CONF } else { NGINX_CONF };
                let conf = conf.replace("{modules}", modules);
                element(&format!("{program} -c {{dir}}/nginx.conf -e stderr"), vec![("nginx.conf", conf)])
            }
            ("kamailio", front, behind) if front == behind => {
                let program = installed("kamailio").ok_or("not installed")?;
                let cfg = match front {
                    Transport::Tcp => KAMAILIO_TCP_CFG,
                    Transport::Tls => KAMAILIO_TLS_CFG,
                    Transport::Udp | Transport::Ws | Transport::Wss => KAMAILIO_CFG,
                };
                let files = vec![
                    ("kamailio.cfg", cfg.to_owned()),
                    ("dispatcher.list", format!("1 sip:{{backend_ip}}:{{backend_port}}{}\n", behind.uri_param())),
                ];
                element(&format!("{program} -DD -E -f {{dir}}/kamailio.cfg -Y {{dir}} -P {{dir}}/kamailio.pid"), files)
            }
            _ => {
                let mut known: Vec<&str> = [KNOWN, KNOWN_BESIDE, KNOWN_TCP, KNOWN_TLS].concat();
                known.sort_unstable();
                known.dedup();
                Err(format!("`{name}` is not known; these are: {}; or NAME=COMMAND", known.join(", ")))
            }
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

    /// How it speaks to what is behind it.
    pub fn behind(&self) -> Transport {
        self.behind
    }

    /// What its two sides have, if one of them is TLS.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Starts it on `core`, in front of `backend`.
    pub fn start(&self, core: usize, backend: SocketAddr) -> Result<Running, Failure> {
        let endpoint = |address| Endpoint { transport: self.front, address };
        if self.command.is_empty() {
            return Ok(Running { child: None, target: endpoint(backend), dir: None });
        }
        let failure = |what: String| Failure::new(Exit::Environment, "compare", what);
        let target = free_port().map_err(|error| failure(format!("no free port: {error}")))?;
        let dir = std::env::temp_dir().join(format!("viahop-load-{}-{}", std::process::id(), target.port()));
        std::fs::create_dir_all(&dir).map_err(|error| failure(format!("{}: {error}", dir.display())))?;
        // From here on the folder goes with it, also where nothing comes of the rest.
        let mut running = Running { child: None, target: endpoint(target), dir: Some(dir.clone()) };
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
        running.child = Some(child);
        Ok(running)
    }
}

/// The command line of the relay, which is this very program.
fn relay(mode: &str) -> Result<Vec<String>, String> {
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
    Ok(std::iter::once(program.display().to_string()).chain(args.map(str::to_owned)).collect())
}

/// An element that runs. It ends when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Option<Child>,
    /// Where it listens, and how.
    pub target: Endpoint,
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
            // Not SIGTERM: a server may take its time then, as viahop does, which drains.
            signal_group(child.id(), libc::SIGINT);
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

/// A port that is free for datagrams and for connections.
fn free_port() -> std::io::Result<SocketAddr> {
    let address = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
    match TcpListener::bind(address) {
        Ok(_) => Ok(address),
        Err(_) => free_port(),
    }
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
        assert!(Element::read("relay-tcp", Path::new("/nowhere")).is_err());
        assert!(Element::read("mine-ws=cmd", Path::new("/nowhere")).unwrap_err().contains("-ws-udp"));
    }

    #[test]
    fn the_end_of_a_name_says_how_an_element_speaks_on_either_side() {
        use Transport::{Tcp, Tls, Udp, Ws, Wss};
        for (text, front, behind) in [
            ("direct", Udp, Udp),
            ("direct-tcp", Tcp, Tcp),
            ("mine=cmd", Udp, Udp),
            ("mine-tcp=cmd", Tcp, Tcp),
            ("mine-tcp-udp=cmd", Tcp, Udp),
            ("mine-udp-tcp=cmd -tcp", Udp, Tcp),
            ("my-mine-tls=cmd", Tls, Tls),
            ("mine-tls-tcp=cmd", Tls, Tcp),
            ("mine-ws-udp=cmd", Ws, Udp),
            ("mine-wss-tcp=cmd", Wss, Tcp),
            ("tls=cmd", Udp, Udp),
        ] {
            let element = Element::read(text, Path::new("/nowhere")).unwrap();
            assert_eq!((element.front, element.behind), (front, behind), "{text}");
            assert_eq!(element.name, text.split('=').next().unwrap());
        }
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
