//! viahop, put together: machine examined, names looked up, sockets opened, shards started, control plane over them.
//!
//! ```text
//! Loaded ─► cores ─► preflight ─► resolve ─► ports free? ─► sockets ─► tables ─► link ─► shards ─► control loop
//!           └──────────── each of these refuses with a reason and a remedy ────────────┘
//! ```

use super::{port_owner, steering};
use std::io;
use std::mem::ManuallyDrop;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tracing::field::display;
use tracing::{info, warn};
use viahop::control::admin;
use viahop::control::clock::unix_now;
use viahop::control::cluster::Cluster;
use viahop::control::config::problem::{Problem, Report, Severity};
use viahop::control::config::{Config, Cores, EgressMode, Loaded};
use viahop::control::events::Events;
use viahop::control::kept_ports::KeptPorts;
use viahop::control::origin::Origin;
use viahop::control::resolve::{InForce, Resolved, resolve};
use viahop::control::run::{Order, Setup, first_view, run};
use viahop::control::secret::Obtained;
use viahop::control::socket::{self, NoSocket, Opened};
use viahop::control::view::{Fixed, ShardView, View};
use viahop::link::link;
use viahop::shard::socket::{OpenError, Plan, StreamPlan, are_free};
use viahop::shard::streams::StreamLimits;
use viahop::shard::streams::websocket::Origins;
use viahop::shard::{self, Running, Unstarted};
use viahop::sys::preflight;

/// Octets of memory that a process must be allowed to lock before glommio starts.
const MEMLOCK_MIN: u64 = preflight::MEMLOCK_PER_SHARD;

/// Threads of the control plane beside its own: one reads names and files, more come and go where that one hangs.
const THREADS_ASIDE: usize = 1;

/// How long a port may stay taken after the process that had it is gone: the kernel takes io_uring's descriptors down in
/// its own time.
const PORT_LINGERS: Duration = Duration::from_secs(3);

/// Everything started but the control loop.
pub struct Service {
    runtime: ManuallyDrop<Runtime>,
    setup: Setup,
    shards: Vec<Running>,
}

impl Service {
    /// Starts the shards. Warnings are returned as well.
    ///
    /// # Errors
    /// What is wrong, where, and what to do.
    pub fn start(
        runtime: ManuallyDrop<Runtime>,
        loaded: Loaded,
        origin: Origin,
        secret: Obtained,
        kept_ports: Option<&KeptPorts>,
        events: Arc<Events>,
    ) -> Result<(Service, Report), Report> {
        let source = loaded.source.clone();
        let about = |problem: Problem| Report { source: source.clone(), problems: vec![problem] };
        let cores = cores(&loaded.config.cores).map_err(about)?;
        machine(&cores).map_err(about)?;
        // Had now, and for good: later on there may be none to be had.
        drop(runtime.spawn_blocking(|| ()));
        let (resolved, mut warnings) = runtime.block_on(resolve(loaded, &secret.keys, &InForce::default()))?;
        warnings.problems.extend(secret.remarks);
        let config = resolved.config.clone();
        let mut plan = plan(&resolved, cores.len());
        wait_for_ports(&plan).map_err(|error| about(cannot_open(&config, error)))?;
        if let Some(kept) = kept_ports {
            plan.egress_before = free_again(&plan, kept.read());
        }
        let programs = steering::load(config.steering, &plan, cores.len(), secret.keys.route(b"steering"));
        let mut unstarted = open(&cores, &mut plan).map_err(|error| about(cannot_open(&config, error)))?;
        let steering = steering::attach(config.steering, programs, &unstarted, plan.egress_shared).map_err(about)?;
        if plan.egress_shared && steering.outcomes.is_none() {
            unstarted.iter_mut().for_each(Unstarted::tell_answers);
        }
        warnings.problems.extend(small_buffers(&unstarted, &config));
        let bound = |address| runtime.block_on(async { admin::bind(address) });
        let admin = config.admin.map(|address| bound(address).map_err(|error| about(cannot_serve(address, &error))));
        let admin = admin.transpose()?;
        let socket = runtime.block_on(async { socket::open(&config.socket) });
        let socket = match socket.map_err(|error| about(cannot_be_told(&error)))? {
            Opened::At(socket) => Some(socket),
            Opened::Off => None,
            Opened::Nowhere(tried) => {
                let tried: Vec<String> =
                    tried.iter().map(|one| format!("{}: {}", one.path.display(), one.why)).collect();
                let remedy = "give it a place of its own with `socket` in `[admin]`, or `--socket`";
                info!(event = "ctl_socket_off", tried = tried.join("; "), remedy);
                None
            }
        };
        let ports = unstarted.iter().map(|shard| shard.sockets().egress_ports());
        if let Some(kept) = kept_ports
            && let Err(error) = kept.write(ports)
        {
            let path = kept.file.as_ref().map(|file| display(file.display()));
            let error = error.to_string();
            let effect = "answers to calls that ring over a restart are lost, unless `egress_ports` in `[balancer]` says where they come to";
            warn!(event = "ports_not_kept", path, error, effect);
        }
        let started_at = unix_now();
        let credentials = Arc::new(resolved.credentials());
        let cluster = Cluster::new(resolved, None, cores.len(), started_at, &secret.fingerprint);
        let tables = cluster.tables(1, &secret.keys, false, None);
        let (control_end, ends) = link(unstarted.iter().map(Unstarted::ring).collect(), config.listeners.len(), tables);
        control_end.shared.credentials.store(credentials);
        let fixed = Arc::new(Fixed {
            started_at,
            config: source.name.clone(),
            listeners: listeners(&unstarted, &config),
            shards: cores.iter().zip(&unstarted).map(|(&core, shard)| view_of(core, shard)).collect(),
            counters: control_end.counters.clone(),
            steering,
        });
        let mut shards = Vec::new();
        for (one, end) in unstarted.into_iter().zip(ends) {
            shards.push(one.start(end).map_err(|error| about(cannot_start(&error, cores.len())))?);
        }
        let (secret, keys, fingerprint) = (secret.root, secret.keys, secret.fingerprint);
        let link = control_end;
        let setup =
            Setup { link, cluster, config, source, origin, secret, keys, fingerprint, fixed, admin, socket, events };
        Ok((Service { runtime, setup, shards }, warnings))
    }

    /// What it is, before anything happened.
    pub fn view(&self) -> View {
        first_view(&self.setup)
    }

    /// The thread's tokio runtime, for tasks that live as long as the service.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Runs the control loop on this thread until an order to end, then ends the shards. Returns whether they ended well.
    pub fn serve(self, orders: mpsc::Receiver<Order>, views: watch::Sender<Arc<View>>) -> bool {
        let shared = self.setup.link.shared.clone();
        self.runtime.block_on(run(self.setup, orders, views));
        shared.stop();
        // All are waited for, whatever became of the first.
        let ended_well: Vec<bool> = self.shards.into_iter().map(Running::join).collect();
        ended_well.into_iter().all(|well| well)
    }
}

/// The tokio runtime of the control plane: one thread, this one. It ends with the process and is never dropped: that would
/// wait for whatever it reads aside, a name or a file, however long the resolver or the file system hangs. A thread that it has once had
/// for that stays: tokio panics where something is to be read, none is there and none can be had.
pub fn runtime() -> Result<ManuallyDrop<Runtime>, Problem> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(Duration::MAX)
        .build()
        .map(ManuallyDrop::new)
        .map_err(|error| Problem::environment(format!("cannot start the control plane: {error}")))
}

/// The cores that are meant, one for each shard.
pub fn cores(wanted: &Cores) -> Result<Vec<usize>, Problem> {
    let allowed: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
    let list = || allowed.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    match wanted {
        _ if allowed.is_empty() => Err(Problem::environment("the kernel does not say which cores we may use")),
        Cores::All => Ok(allowed),
        Cores::Count(count) if *count > allowed.len() => {
            let problem = Problem::environment(format!("{count} shards on {} cores", allowed.len()));
            Err(problem.help(format!("this process may use the cores {}; a shard needs one of its own", list())))
        }
        Cores::Count(count) => Ok(allowed[..*count].to_vec()),
        Cores::List(cores) => match cores.iter().find(|core| !allowed.contains(core)) {
            Some(core) => Err(Problem::environment(format!("core {core} is not ours to use"))
                .help(format!("this process may use the cores {}; see `taskset -p` and cpusets", list()))),
            None => Ok(cores.clone()),
        },
    }
}

/// Whether shards can run here, on `cores`.
pub fn machine(cores: &[usize]) -> Result<(), Problem> {
    if let Err(error) = preflight::io_uring() {
        let problem = Problem::environment(format!("the kernel refused io_uring: {error}"));
        return Err(problem.help(match error.raw_os_error() {
            Some(libc::ENOSYS) => "Linux 5.8 or newer is needed; in a container, its seccomp profile may hide the call",
            Some(libc::EPERM) => {
                "in a container: its seccomp profile must allow io_uring_setup, io_uring_enter and io_uring_register \
                 (docker run --security-opt seccomp=FILE); on a host: `sysctl kernel.io_uring_disabled=0`"
            }
            _ => "`viahop doctor` examines this machine",
        }));
    }
    if let Err(error) = preflight::batches() {
        let problem = Problem::environment(format!("the kernel refused recvmmsg or sendmmsg: {error}"));
        return Err(problem.help("a filter of system calls, as containers and services have, must allow both"));
    }
    // As many descriptors as may be had: each connection takes one, and who started us may have left it at 1,024. A limit
    // that cannot be read stays as it is.
    preflight::open_files().ok();
    match preflight::memlock() {
        Ok(Some(octets)) if octets < MEMLOCK_MIN => {
            let problem = Problem::environment(format!(
                "this process may lock {} KiB of memory, {} KiB are needed",
                octets / 1024,
                MEMLOCK_MIN / 1024
            ));
            Err(problem.help(format!(
                "systemd: `LimitMEMLOCK={0}K`; shell: `ulimit -l {0}`; docker: `--ulimit memlock={1}:{1}`",
                MEMLOCK_MIN / 1024,
                MEMLOCK_MIN
            )))
        }
        _ => shard::rehearse(cores, THREADS_ASIDE).map_err(|error| cannot_start(&error, cores.len())),
    }
}

/// The sockets of a shard, of which there are `shards`.
pub fn plan(resolved: &Resolved, shards: usize) -> Plan {
    let config = &resolved.config;
    let (v4, v6) =
        (config.egress_v4.unwrap_or(Ipv4Addr::UNSPECIFIED), config.egress_v6.unwrap_or(Ipv6Addr::UNSPECIFIED));
    let has = |egress: IpAddr| {
        let is_of = |address: &SocketAddr| address.is_ipv4() == egress.is_ipv4();
        let backends = resolved.backends.iter().flatten().any(|place| is_of(&place.address));
        // Backends also send out to whoever our listeners can be reached by. The first backend of a kind may come with a reload, a
        // list or DNS, when it is too late for a socket: there is one wherever there can be.
        backends
            || config.listeners.iter().any(|listener| is_of(&listener.address))
            || UdpSocket::bind((egress, 0)).is_ok()
    };
    let of = |is_stream: bool| {
        let those = config.listeners.iter().filter(move |listener| listener.transport.is_stream() == is_stream);
        those.map(|listener| StreamPlan {
            transport: listener.transport,
            address: listener.address,
            origins: Arc::new(Origins::new(listener.origins.clone())),
        })
    };
    let streams = &config.streams;
    let ms = |duration: Duration| duration.as_millis() as u64;
    Plan {
        listeners: of(false).map(|one| one.address).collect(),
        streams: of(true).collect(),
        stream_limits: StreamLimits {
            connections: streams.max_connections.div_ceil(shards.max(1)),
            per_source: streams.max_per_source,
            idle_ms: ms(streams.idle),
            frame_ms: ms(streams.frame_timeout),
            connect_ms: ms(streams.connect_timeout),
            handshakes: streams.max_handshakes.div_ceil(shards.max(1)),
            handshake_ms: ms(streams.handshake_timeout),
            proxied: streams.max_proxied.div_ceil(shards.max(1)),
            proxied_idle_ms: ms(streams.proxied_idle),
            egress_v4: config.egress_v4,
            egress_v6: config.egress_v6,
            ..StreamLimits::default()
        },
        egress_v4: has(v4.into()).then_some(v4),
        egress_v6: has(v6.into()).then_some(v6),
        egress_ports: config.egress_ports.clone(),
        egress_before: Default::default(),
        egress_shared: config.egress_mode == EgressMode::Shared,
        linger: config.linger,
        receive_buffer: config.receive_buffer,
        send_buffer: config.send_buffer,
    }
}

/// The sockets of all shards. A port towards backends that no living process holds is waited for, as above.
fn open(cores: &[usize], plan: &mut Plan) -> Result<Vec<Unstarted>, OpenError> {
    let since = Instant::now();
    loop {
        let opened = plan
            .settle()
            .and_then(|()| cores.iter().enumerate().map(|(number, &core)| shard::open(number, core, plan)).collect());
        match opened {
            Err(taken) if lingers(&taken, since) => thread::sleep(Duration::from_millis(50)),
            outcome => return outcome,
        }
    }
}

/// Of the ports towards backends that the process before had, those that can be had again. One that no living process holds is
/// waited for.
fn free_again(plan: &Plan, before: [Vec<u16>; 2]) -> [Vec<u16>; 2] {
    let since = Instant::now();
    let is_free = |address: Option<IpAddr>, port: u16| loop {
        match address.map(|address| are_free(&[SocketAddr::new(address, port)], &[])) {
            Some(Err(taken)) if lingers(&taken, since) => thread::sleep(Duration::from_millis(50)),
            outcome => break outcome.is_some_and(|outcome| outcome.is_ok()),
        }
    };
    let [v4, v6] = before;
    let free =
        |address: Option<IpAddr>, ports: Vec<u16>| ports.into_iter().filter(|&port| is_free(address, port)).collect();
    [free(plan.egress_v4.map(IpAddr::V4), v4), free(plan.egress_v6.map(IpAddr::V6), v6)]
}

/// Whether a port is taken by nobody, as it is for a moment after the end of who had it.
fn lingers(taken: &OpenError, since: Instant) -> bool {
    taken.error.kind() == io::ErrorKind::AddrInUse
        && since.elapsed() < PORT_LINGERS
        && port_owner::find(taken.protocol, taken.address).is_none()
}

/// Waits until nobody holds the ports of the listeners of `plan`. A port that a living process holds is not waited for.
pub fn wait_for_ports(plan: &Plan) -> Result<(), OpenError> {
    let since = Instant::now();
    let streams = plan.stream_addresses();
    loop {
        match are_free(&plan.listeners, &streams) {
            Err(taken) if lingers(&taken, since) => thread::sleep(Duration::from_millis(50)),
            outcome => return outcome,
        }
    }
}

/// Why a socket cannot be opened, at the listener it is for.
pub fn cannot_open(config: &Config, OpenError { protocol, address, error }: OpenError) -> Problem {
    let is_listener = config.listeners.iter().any(|listener| listener.address == address);
    if let Some(ports) = config.egress_ports.as_ref().filter(|_| !is_listener && ports_are_out(&error)) {
        let title = format!("`egress_ports`: no free port among {} to {} for every shard", ports.start(), ports.end());
        let help = "each shard needs one, for IPv4 and for IPv6; give a longer range, or fewer shards";
        return Problem::environment(title).help(help);
    }
    let (what, label, help) = match error.kind() {
        io::ErrorKind::AddrInUse => {
            let owner = port_owner::find(protocol, address);
            let label = owner.as_ref().map_or("another process has it".to_owned(), |owner| format!("{owner} has it"));
            let help = match owner {
                Some(owner) if owner.name == "viahop" => {
                    format!("end it first (`kill {}` drains it), or choose another port", owner.pid)
                }
                Some(owner) => format!("end {owner}, or choose another port"),
                None => format!("`ss -l{}np 'sport = :{}'` as root tells who", &protocol[..1], address.port()),
            };
            ("is in use", label, help)
        }
        io::ErrorKind::PermissionDenied => (
            "may not be opened by this user",
            "ports below 1024 need a privilege".to_owned(),
            "give the program CAP_NET_BIND_SERVICE (systemd: `AmbientCapabilities=CAP_NET_BIND_SERVICE`, shell: \
             `setcap cap_net_bind_service+ep viahop`), or choose a port from 1024 on"
                .to_owned(),
        ),
        io::ErrorKind::AddrNotAvailable => (
            "is not an address of this machine",
            "not here".to_owned(),
            "`ip addr` lists them; `0.0.0.0` and `[::]` stand for all".to_owned(),
        ),
        _ => ("cannot be opened", error.to_string(), "`viahop doctor` examines this machine".to_owned()),
    };
    let problem = Problem::environment(format!("{address}/{protocol} {what}")).help(help);
    match config.listeners.iter().find(|one| one.address == address && one.transport.protocol() == protocol) {
        Some(listener) => problem.at(listener.at.clone(), label),
        None => problem,
    }
}

fn ports_are_out(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

/// Why HTTP cannot be served.
pub fn cannot_serve(address: SocketAddr, error: &io::Error) -> Problem {
    let owner = port_owner::find("tcp", address).map_or(String::new(), |owner| match owner.is_this_process() {
        true => ": a `[[listen]]` has it".to_owned(),
        false => format!(": {owner} has it"),
    });
    let problem =
        Problem::environment(format!("{address}/tcp cannot be opened for the admin endpoint: {error}{owner}"));
    problem.help("choose another with `--admin 127.0.0.1:PORT` or `listen` in `[admin]`, or `off`")
}

/// Why there can be no socket for `viahop ctl` where it is wanted.
pub fn cannot_be_told(NoSocket { path, why, .. }: &NoSocket) -> Problem {
    let problem = Problem::environment(format!("no socket for `viahop ctl` at {}: {why}", path.display()));
    problem.help("each viahop needs a path of its own, in a folder its user may write to; `off`: none")
}

fn cannot_start(error: &io::Error, shards: usize) -> Problem {
    let problem = Problem::environment(format!("a shard cannot start: {error}"));
    problem.help(match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "a filter of system calls must allow sched_setaffinity, which is in systemd's `@resources`".to_owned()
        }
        io::ErrorKind::WouldBlock => format!(
            "{} threads are needed in all: systemd `TasksMax`, docker `--pids-limit`, Kubernetes `podPidsLimit`, shell `ulimit -u`",
            1 + THREADS_ASIDE + shard::threads(shards)
        ),
        _ => "`viahop doctor` examines this machine".to_owned(),
    })
}

/// Receive buffers that the kernel made smaller than asked.
fn small_buffers(shards: &[Unstarted], config: &Config) -> Option<Problem> {
    let got = shards.first()?.sockets().all().filter_map(|socket| socket.receive_buffer().ok()).min()?;
    if got >= config.receive_buffer {
        return None;
    }
    let title = format!(
        "receive buffers have {} KiB, {} KiB were asked for: about {} ms of traffic at 100,000 messages/s",
        got / 1024,
        config.receive_buffer / 1024,
        (got / 2304).div_ceil(100)
    );
    let problem = Problem { severity: Severity::Warning, ..Problem::environment(title) };
    Some(problem.help(format!("`sysctl -w net.core.rmem_max={}`", config.receive_buffer)))
}

fn listeners(shards: &[Unstarted], config: &Config) -> Vec<(Box<str>, SocketAddr)> {
    let of = |shard: &Unstarted| -> Vec<SocketAddr> {
        let sockets = shard.sockets();
        let datagrams = sockets.all().take(sockets.listeners()).map(|socket| socket.address());
        datagrams.chain(sockets.stream_addresses()).collect()
    };
    let addresses = shards.first().map(of).unwrap_or_default();
    config.listeners.iter().zip(addresses).map(|(one, address)| (one.name.as_str().into(), address)).collect()
}

fn view_of(core: usize, shard: &Unstarted) -> ShardView {
    let ports = shard.sockets().egress_ports();
    ShardView { core, egress_port_v4: ports.v4, egress_port_v6: ports.v6 }
}
