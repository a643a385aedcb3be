//! The control loop: the one owner of everything that changes slowly.
//!
//! ```text
//!          ┌─ orders: reload, drain, stop        ┌─► tables to the shards
//! select! ─┼─ reports of probes          ─► act ─┼─► a view to admin
//!          ├─ signals of shards                  ├─► a line in the log
//!          ├─ what `viahop ctl` asks             └─► an answer to whoever asked
//!          ├─ lists that changed or vanished, domains with other servers
//!          ├─ a configuration read in the background
//!          ├─ every quarter of a second: does somebody capture
//!          └─ every second: how busy are the shards, what was dropped, is the drain over
//! ```
//!
//! Ways to get this wrong, and what catches each: a bad file replaces a running configuration (a reload is read,
//! resolved and compared in full before anything of it is used); a reload forgets which backends are down (`Cluster::new`
//! takes them over); reloads in quick succession starve probes (a watch whose backend did not change goes on, and so does
//! the count of its outcomes); a refusal floods the log (`Limiter`).

mod heard;
mod limiter;
mod operate;
mod reload;
mod tick;

use super::admin;
use super::ask::{Ask, Asked};
use super::cluster::{Cluster, moved_slots};
use super::config::problem::Source;
use super::config::{Config, Health};
use super::connections::Listings;
use super::discovery;
use super::events::Events;
use super::health::probe::{self, Reports, Watch};
use super::list_watch::{Event, ListWatch};
use super::operator::State;
use super::origin::Origin;
use super::resolve::Place;
use super::secret::Root;
use super::socket::CtlSocket;
use super::supervisor;
use super::view::{Fixed, Reason, View};
use super::witness::Witness;
use crate::dataplane::keys::Keys;
use crate::link::ControlEnd;
use limiter::Limiter;
use reload::{Reading, busy_reading};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tick::Seen;
use tokio::net::TcpListener;
use tokio::signal::unix as system;
use tokio::sync::{mpsc, watch};
use tracing::{error, info};

/// What the loop is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Read the configuration again (SIGHUP).
    Reload,
    /// Finish what is under way, then end (SIGTERM). A second time: end now.
    Drain,
    /// End now (SIGINT).
    Stop,
}

/// What the loop begins with.
#[derive(Debug)]
pub struct Setup {
    /// The link to the shards, with the tables of `cluster` in force.
    pub link: ControlEnd,
    /// The cluster.
    pub cluster: Cluster,
    /// The configuration it was made of.
    pub config: Config,
    /// The text of that.
    pub source: Source,
    /// Where that was read.
    pub origin: Origin,
    /// What they are made of.
    pub secret: Root,
    /// The keys in use.
    pub keys: Keys,
    /// The fingerprint of the secret.
    pub fingerprint: String,
    /// What will not change.
    pub fixed: Arc<Fixed>,
    /// The socket for HTTP.
    pub admin: Option<TcpListener>,
    /// The socket for `viahop ctl`.
    pub socket: Option<CtlSocket>,
    /// What happens, for whoever asks later.
    pub events: Arc<Events>,
}

/// Seconds without a forwarded message, and without a call that rings, after which a drain is over before its time.
const QUIET_S: u32 = 5;

/// How often we look whether somebody captures: who starts a capture and then what he wants to see takes longer.
const LOOK: Duration = Duration::from_millis(250);

/// Passes the signals of the system on as orders until the task is dropped. `hangup` is listened to since before the
/// configuration was read.
///
/// # Errors
/// Handlers cannot be installed.
pub fn listen_to_the_system(mut hangup: system::Signal, orders: mpsc::Sender<Order>) -> std::io::Result<()> {
    use system::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        loop {
            let order = tokio::select! {
                _ = hangup.recv() => Order::Reload,
                _ = terminate.recv() => Order::Drain,
                _ = interrupt.recv() => Order::Stop,
            };
            if orders.send(order).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// The view before anything happened, for the channel that [`run`] sends on.
pub fn first_view(setup: &Setup) -> View {
    let mut view = View::new(setup.fixed.clone(), &setup.cluster, setup.link.shared.tables.load().generation);
    view.credentials = setup.link.shared.credentials.load_full();
    view
}

/// Runs until an order to end. The shards are left running: stopping them is up to the caller.
pub async fn run(setup: Setup, mut orders: mpsc::Receiver<Order>, views: watch::Sender<Arc<View>>) {
    let (report_to, mut reports) = mpsc::channel(1024);
    let (list_to, mut list_events) = mpsc::channel(16);
    let Setup { link, cluster, config, source, origin, secret, keys, fingerprint, fixed, admin, socket, events } =
        setup;
    let view = View::clone(&views.borrow());
    let (ask_to, mut asks) = mpsc::channel(16);
    let desk = admin::Desk { views: views.subscribe(), events, ask_to };
    let place = socket.as_ref().map(|socket| socket.place.path.clone());
    let mut serving = Vec::new();
    serving.extend(admin.map(|listener| tokio::spawn(admin::serve(listener, desk.clone()))));
    // The task keeps the place of the socket, and gives it up when it ends.
    serving.extend(socket.map(|socket| tokio::spawn(admin::serve_ctl(socket, desk.clone()))));
    tokio::spawn(supervisor::tell(views.subscribe()));
    if let Some(path) = place {
        info!(event = "ctl_socket", path = %path.display());
    }
    let ControlEnd { shared, counters, mut signals } = link;
    let mut control = Control {
        shared,
        counters,
        config,
        source,
        origin,
        wrong_file: None,
        lists: ListWatch::default(),
        discovery: discovery::Watch::default(),
        list_to,
        secret,
        keys,
        fingerprint,
        fixed,
        view,
        views,
        cluster,
        watches: Vec::new(),
        report_to,
        suspects: HashSet::new(),
        panicking: HashSet::new(),
        renew_at: None,
        limiter: Limiter::default(),
        drain: None,
        seen: Seen::default(),
        witness: Witness::default(),
        listings: Listings::default(),
    };
    control.watch();
    control.lists.follow(&control.config, &control.list_to);
    control.discovery.follow(&control.config, &control.list_to);
    let mut reading: Option<Reading> = None;
    let (mut read_again, mut read_lists_again) = (false, false);
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Reload) if reading.is_some() => read_again = true,
                Some(Order::Reload) => reading = Some(control.start_reading(false, None)),
                Some(Order::Drain) => {
                    if control.drain_on_signal() {
                        break;
                    }
                }
                Some(Order::Stop) | None => break,
            },
            outcome = async { (&mut reading.as_mut().expect("polled only if there is one").task).await }, if reading.is_some() => {
                let done = reading.take();
                if let (Ok(outcome), Some(Reading { dry_run, of_lists, reply, .. })) = (outcome, done)
                    && let Some(outcome) = outcome.transpose()
                {
                    let answer = if dry_run { control.rehearse(outcome) } else { control.reload(outcome, of_lists) };
                    // Whoever asked may have gone away.
                    reply.map(|reply| reply.send(answer));
                }
                // Whoever reads the file reads its lists.
                if std::mem::take(&mut read_again) {
                    reading = Some(control.start_reading(false, None));
                } else if std::mem::take(&mut read_lists_again) {
                    reading = Some(control.start_reading_lists());
                }
            }
            Some(event) = list_events.recv() => match control.is_to_be_read(event) {
                true if reading.is_some() => read_lists_again = true,
                true => reading = Some(control.start_reading_lists()),
                false => {}
            },
            Some(Asked { ask, reply }) = asks.recv() => match ask {
                Ask::Reload(_) if reading.is_some() => drop(reply.send(Err(busy_reading()))),
                Ask::Reload(how) => reading = Some(control.start_reading(how.dry_run, Some(reply))),
                Ask::Backend(change) => drop(reply.send(control.change(&change))),
                Ask::Connections(peer) => control.listings.ask(peer, reply, &control.shared),
                Ask::Drain => drop(reply.send(Ok(control.drain_on_demand()))),
                Ask::Errors => drop(reply.send(Ok(control.witness.errors()))),
                Ask::Follow(call) => drop(reply.send(control.follow(&call))),
                Ask::Trace { number, after } => drop(reply.send(control.trace(number, after))),
            },
            Some(report) = reports.recv() => control.on_probe(report),
            Some(signal) = signals.recv() => control.on_signal(signal),
            _ = look.tick() => control.look_for_captures(),
            _ = tick.tick() => {
                control.on_tick();
                if control.drain.as_ref().is_some_and(Drain::is_over) {
                    break;
                }
            }
        }
    }
    for task in serving {
        task.abort();
        // What it holds, the place of a socket, is given up before the process says that it has ended.
        task.await.ok();
    }
}

struct Control {
    shared: Arc<crate::link::Shared>,
    counters: Vec<Arc<crate::dataplane::counters::ShardCounters>>,
    config: Config,
    source: Source,
    origin: Origin,
    /// What is wrong with the file on disk, if it was refused: lists that are right do not mend that.
    wrong_file: Option<String>,
    lists: ListWatch,
    discovery: discovery::Watch,
    list_to: mpsc::Sender<Event>,
    secret: Root,
    keys: Keys,
    fingerprint: String,
    fixed: Arc<Fixed>,
    view: View,
    views: watch::Sender<Arc<View>>,
    cluster: Cluster,
    watches: Vec<Watched>,
    report_to: mpsc::Sender<probe::Report>,
    /// Backends that refused a datagram while they were up: shards pass over them until the next tables.
    suspects: HashSet<SocketAddr>,
    /// Pools so short of backends that all are used.
    panicking: HashSet<Box<str>>,
    /// When tables are to be renewed for suspects that nobody probes.
    renew_at: Option<Instant>,
    limiter: Limiter,
    drain: Option<Drain>,
    seen: Seen,
    witness: Witness,
    /// Questions for the connections of shards.
    listings: Listings,
}

/// A backend under watch, by its names in the cluster.
struct Watched {
    number: u64,
    pool: Box<str>,
    name: Box<str>,
    place: Place,
    health: Health,
    watch: Watch,
}

/// The end of the process, under way.
struct Drain {
    deadline: Instant,
    quiet_s: u32,
    /// Whether a signal asked for it.
    by_signal: bool,
}

impl Drain {
    fn is_over(&self) -> bool {
        self.quiet_s >= QUIET_S || Instant::now() >= self.deadline
    }
}

impl Control {
    /// Puts the cluster as it is into force.
    fn publish(&mut self, reason: Option<Reason>) {
        let before = self.shared.tables.load_full();
        let generation = before.generation + 1;
        let mut after = self.cluster.tables(generation, &self.keys, self.drain.is_some(), Some(&before));
        after.trace.clone_from(&before.trace);
        if let Some(reason) = reason {
            for (pool, count) in moved_slots(&before, &after) {
                *self.view.moves.entry((pool, reason)).or_default() += count as u64;
            }
        }
        self.shared.tables.store(Arc::new(after));
        for pool in &self.cluster.pools {
            if pool.panics() && self.panicking.insert(pool.name.clone()) {
                let effect = "all backends that are ready get new calls, dead or not";
                error!(event = "pool_panic", pool = %pool.name, below = pool.panic, effect);
            } else if !pool.panics() && self.panicking.remove(&pool.name) {
                info!(event = "pool_calm", pool = %pool.name);
            }
        }
        // Tables that shards have not seen take their suspicions along.
        self.suspects.clear();
        self.renew_at = None;
        self.view.take(&self.cluster, generation);
        self.show();
    }

    fn show(&mut self) {
        self.views.send_replace(Arc::new(self.view.clone()));
    }

    /// Watches what is to be watched. Watches over what did not change go on.
    fn watch(&mut self) {
        let mut old = std::mem::take(&mut self.watches);
        let mut number = old.iter().map(|watched| watched.number + 1).max().unwrap_or(0);
        let count = self.cluster.backends().count().max(1) as u32;
        let mut watches = Vec::new();
        for (order, ((pool, _), backend)) in self.cluster.backends().enumerate() {
            let pool = &self.cluster.pools[pool];
            let Some(health) = pool.health.as_ref().filter(|_| backend.state.now != State::Maint) else { continue };
            let same = |watched: &Watched| {
                watched.pool == pool.name
                    && watched.name == backend.name
                    && watched.place == backend.place
                    && watched.health == *health
            };
            if let Some(at) = old.iter().position(same) {
                watches.push(old.swap_remove(at));
                continue;
            }
            let offset = health.interval / count * order as u32;
            let reports = Reports { to: self.report_to.clone(), credentials: self.shared.credentials.clone() };
            let watch = Watch::start(number, backend.place, health.clone(), offset, reports);
            let (pool, name, place, health) = (pool.name.clone(), backend.name.clone(), backend.place, health.clone());
            watches.push(Watched { number, pool, name, place, health, watch });
            number += 1;
        }
        self.watches = watches;
    }

    /// A SIGTERM. Returns whether it is the second: one behind `viahop ctl drain` is the first, since supervisors send it.
    fn drain_on_signal(&mut self) -> bool {
        if self.drain.is_none() {
            self.start_drain();
        }
        self.drain.as_mut().is_some_and(|drain| std::mem::replace(&mut drain.by_signal, true))
    }

    fn start_drain(&mut self) {
        let deadline = self.config.drain;
        info!(event = "draining", deadline_s = deadline.as_secs(), note = "a second SIGTERM ends at once");
        self.drain = Some(Drain { deadline: Instant::now() + deadline, quiet_s: 0, by_signal: false });
        self.view.is_draining = true;
        self.publish(None);
    }
}

#[cfg(test)]
mod tests {
    use super::super::cluster::tests::{cluster, keys, text};
    use super::super::config::{load, parse, problem::Source};
    use super::super::origin::Overrides;
    use super::super::steering::Steering;
    use super::super::view::ShardView;
    use super::reload::fixed_by_the_start;
    use super::*;
    use crate::link::{Signal, link};
    use std::path::{Path, PathBuf};
    use tokio::task::JoinHandle;

    /// A control plane without shards, over backends on these ports.
    struct Bench {
        orders: mpsc::Sender<Order>,
        views: watch::Receiver<Arc<View>>,
        shared: Arc<crate::link::Shared>,
        shard: crate::link::ShardEnd,
        task: JoinHandle<()>,
        path: PathBuf,
    }

    impl Bench {
        fn start(name: &str, text: &str) -> Bench {
            let path = std::env::temp_dir().join(format!("viahop-{name}-{}.toml", std::process::id()));
            std::fs::write(&path, text).unwrap();
            let loaded = load(&path).unwrap();
            let config = loaded.config.clone();
            let cluster = std::thread::scope(|scope| scope.spawn(|| cluster(text, None)).join().unwrap());
            let tables = cluster.tables(1, &keys(), false, None);
            let (link, mut shards) = link(vec![Box::new(|| ())], 1, tables);
            let fixed = Arc::new(Fixed {
                started_at: 1000,
                config: path.display().to_string(),
                listeners: vec![("edge".into(), "127.0.0.1:5070".parse().unwrap())],
                shards: vec![ShardView { core: 0, egress_port_v4: Some(1), egress_port_v6: None }],
                counters: link.counters.clone(),
                steering: Steering::off(config.steering),
            });
            let shared = link.shared.clone();
            let origin = Origin::File(path.clone(), Overrides::default());
            let secret = super::super::secret::ephemeral(&config.token_keys).unwrap().root;
            let setup = Setup {
                link,
                cluster,
                config,
                source: loaded.source,
                origin,
                secret,
                keys: keys(),
                fingerprint: "f".into(),
                fixed,
                admin: None,
                socket: None,
                events: Arc::default(),
            };
            let (orders, order_queue) = mpsc::channel(8);
            let (view_to, views) = watch::channel(Arc::new(first_view(&setup)));
            let task = tokio::spawn(run(setup, order_queue, view_to));
            Bench { orders, views, shared, shard: shards.remove(0), task, path }
        }

        async fn until(&mut self, what: &str, holds: impl FnMut(&Arc<View>) -> bool) {
            let waited = tokio::time::timeout(Duration::from_secs(10), self.views.wait_for(holds)).await;
            assert!(waited.is_ok(), "{what} did not happen within 10 s");
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            std::fs::remove_file(&self.path).ok();
        }
    }

    const HEALTH: &str = "health = { interval = \"200ms\", timeout = \"100ms\" }\n";

    fn with_health(ports: &[u16]) -> String {
        text(ports).replace("name = \"proxies\"\n", &format!("name = \"proxies\"\n{HEALTH}"))
    }

    /// A port that answers every OPTIONS with a 200 until the task ends.
    async fn alive() -> (u16, JoinHandle<()>) {
        saying("200 OK").await
    }

    /// The same, with another answer.
    async fn saying(status: &'static str) -> (u16, JoinHandle<()>) {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let mut room = vec![0; 4096];
            while let Ok((len, from)) = socket.recv_from(&mut room).await {
                let text = String::from_utf8_lossy(&room[..len]).into_owned();
                let answer = text.replacen(text.lines().next().unwrap(), &format!("SIP/2.0 {status}"), 1);
                socket.send_to(answer.as_bytes(), from).await.unwrap();
            }
        });
        (port, task)
    }

    #[tokio::test]
    async fn a_dead_backend_leaves_the_tables_and_comes_back_when_it_lives() {
        let (first, _first_task) = alive().await;
        let (second, second_task) = alive().await;
        let mut bench = Bench::start("dead", &with_health(&[first, second]));
        bench.until("both proven", |view| view.backends.iter().all(|one| one.last_probe.is_some())).await;
        second_task.abort();
        bench.until("down", |view| !view.backends[1].is_up).await;
        let tables = bench.shared.tables.load_full();
        assert_eq!(tables.pools[0].up, [0]);
        assert!(bench.views.borrow().moves.values().sum::<u64>() > 20_000);
        assert!(bench.views.borrow().is_ready);
        // The kernel may have given it to another test for a moment.
        let mut tries = 0;
        let back = loop {
            match tokio::net::UdpSocket::bind(("127.0.0.1", second)).await {
                Ok(back) => break back,
                Err(error) => assert!(tries < 1000, "{error}"),
            }
            tries += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        tokio::spawn(async move {
            let mut room = vec![0; 4096];
            while let Ok((len, from)) = back.recv_from(&mut room).await {
                let text = String::from_utf8_lossy(&room[..len]).into_owned();
                let answer = text.replacen(text.lines().next().unwrap(), "SIP/2.0 404 Who", 1);
                back.send_to(answer.as_bytes(), from).await.unwrap();
            }
        });
        bench.until("up", |view| view.backends[1].is_up).await;
        bench.orders.send(Order::Stop).await.unwrap();
        (&mut bench.task).await.unwrap();
    }

    #[tokio::test]
    async fn a_bad_file_never_replaces_a_running_configuration() {
        let (port, _task) = alive().await;
        let mut bench = Bench::start("bad", &with_health(&[port]));
        for bad in ["[[listen]]\nadress = 1\n".to_owned(), with_health(&[port]).replace("5070", "5071")] {
            let generation = bench.shared.tables.load().generation;
            std::fs::write(&bench.path, bad).unwrap();
            bench.orders.send(Order::Reload).await.unwrap();
            bench.until("refused", |view| !view.reload.ok).await;
            assert_eq!(bench.shared.tables.load().generation, generation);
            std::fs::write(&bench.path, with_health(&[port])).unwrap();
            bench.orders.send(Order::Reload).await.unwrap();
            bench.until("taken", |view| view.reload.ok).await;
            assert_eq!(bench.shared.tables.load().generation, generation + 1);
        }
    }

    /// The shard that saw the refusal passes over the server until the next tables come.
    #[tokio::test]
    async fn who_answers_503_gets_its_calls_again_behind_a_refusal() {
        let (first, _first_task) = saying("503 Leaving").await;
        let (second, _second_task) = alive().await;
        let mut bench = Bench::start("leaving", &with_health(&[first, second]));
        bench.until("down", |view| !view.backends[0].is_up).await;
        let generation = bench.shared.tables.load().generation;
        let to = SocketAddr::from(([127, 0, 0, 1], first));
        assert!(bench.shard.signal(Signal::Unreachable { to, code: 111 }));
        bench.until("new tables", |view| view.generation > generation).await;
        assert!(!bench.views.borrow().backends[0].is_up);
    }

    #[tokio::test]
    async fn a_pool_that_a_reload_takes_out_takes_its_series_along() {
        let (port, task) = alive().await;
        let mut bench = Bench::start("renamed", &with_health(&[port]));
        bench.until("probed", |view| !view.probe_times.is_empty()).await;
        task.abort();
        bench.until("down", |view| !view.moves.is_empty()).await;
        std::fs::write(&bench.path, with_health(&[port]).replace("\"proxies\"", "\"others\"")).unwrap();
        bench.orders.send(Order::Reload).await.unwrap();
        bench.until("renamed", |view| &*view.backends[0].pool == "others").await;
        let view = bench.views.borrow();
        let pools: Vec<_> = view.moves.keys().map(|(pool, _)| pool).chain(view.probe_times.keys()).collect();
        assert!(pools.iter().all(|pool| &***pool == "others"), "{pools:?}");
    }

    #[tokio::test]
    async fn a_reload_takes_runs_away_and_gives_them_back() {
        let with = |gso: &str| format!("[balancer]\ngso = \"{gso}\"\n{}", text(&[1]));
        let mut bench = Bench::start("runs", &with("always"));
        for (gso, allowed) in [("always", true), ("off", false), ("always", true)] {
            std::fs::write(&bench.path, with(gso)).unwrap();
            bench.orders.send(Order::Reload).await.unwrap();
            bench.until(gso, |view| view.allows_runs == Some(allowed)).await;
            assert_eq!(bench.shared.allows_runs(), allowed);
        }
    }

    fn with_list(list: &Path) -> String {
        let backends = text(&[1]);
        let (before, _) = backends.split_once("backend = ").unwrap();
        format!("{before}health = {{ probe = false }}\nlist = \"{}\"\n", list.display())
    }

    #[tokio::test]
    async fn a_list_is_followed_through_changes_errors_and_its_loss() {
        let list = std::env::temp_dir().join(format!("viahop-followed-{}.list", std::process::id()));
        let write = |text: &str| {
            let draft = list.with_extension("draft");
            std::fs::write(&draft, text).unwrap();
            std::fs::rename(&draft, &list).unwrap();
        };
        write("1 sip:127.0.0.1:1\n");
        let mut bench = Bench::start("followed", &with_list(&list));
        // What is in the file but not ordered yet stays out of it.
        std::fs::write(&bench.path, with_list(&list).replace("\"proxies\"", "\"others\"")).unwrap();
        write("1 sip:127.0.0.1:1\n1 sip:127.0.0.1:2\n");
        bench.until("a second backend", |view| view.backends.len() == 2 && view.reload.ok).await;
        assert_eq!(&*bench.views.borrow().backends[0].pool, "proxies");
        write("1 sip:127.0.0.1:1 0x1\n1 sip:127.0.0.1:3\n");
        bench.until("refused", |view| !view.reload.ok).await;
        assert_eq!(bench.views.borrow().backends.len(), 2);
        write("1 sip:127.0.0.1:3\n");
        bench.until("taken", |view| view.reload.ok && view.backends.len() == 1).await;
        let generation = bench.shared.tables.load().generation;
        std::fs::remove_file(&list).unwrap();
        bench.until("gone", |view| !view.reload.ok).await;
        assert_eq!(bench.shared.tables.load().generation, generation);
        write("1 sip:127.0.0.1:3\n");
        bench.until("back", |view| view.reload.ok).await;
        bench.orders.send(Order::Reload).await.unwrap();
        bench.until("the file as well", |view| &*view.backends[0].pool == "others").await;
        std::fs::remove_file(&list).ok();
    }

    #[tokio::test]
    async fn a_drain_says_so_and_ends_when_it_is_quiet() {
        let (port, _task) = alive().await;
        let mut bench = Bench::start("drain", &with_health(&[port]));
        bench.orders.send(Order::Drain).await.unwrap();
        bench.until("draining", |view| view.is_draining && !view.is_ready).await;
        assert!(bench.shared.tables.load().draining);
        let ended = tokio::time::timeout(Duration::from_secs(10), &mut bench.task).await;
        assert!(ended.is_ok(), "a quiet drain is over within {QUIET_S} s");
    }

    #[test]
    fn what_the_start_has_fixed_is_named_in_the_refusal() {
        let config = |text: &str| parse(Source { name: "x".into(), text: text.into() }).unwrap().config;
        let running = config(&text(&[1]));
        assert!(fixed_by_the_start(&running, &config(&text(&[2]))).is_empty());
        for (key, value) in [("shards", "1"), ("linger", "\"0s\""), ("steering", "\"kernel\"")] {
            let problems =
                fixed_by_the_start(&running, &config(&format!("{}[balancer]\n{key} = {value}\n", text(&[1]))));
            assert_eq!(problems.len(), 1, "{key}");
            assert!(problems[0].title.contains(&format!("`{key}`")), "{}", problems[0].title);
        }
    }
}
