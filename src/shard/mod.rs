//! A shard: one core's thread, executor, sockets and memory. It acts; what to do is decided in `dataplane`.
//!
//! ```text
//! open ──► Unstarted ──► start ──► Running ──► join
//!  │ sockets, a bell      │ thread, pinned; executor; the loop of `run`, which waits as `wait` says
//!  └ all shards, before any of them starts: an address in use is an error of the start and not of a thread
//! ```
//!
//! Nothing is shared between shards but what is immutable (`link`). A backend index in a message's tally is resolved in
//! the tables in force when it is sent; a message that waits for the kernel while tables change may be counted for
//! another backend, which is a counter's error and nobody's harm.

pub mod io;
mod linger;
mod mirror;
pub mod outbox;
mod overload;
pub mod run;
pub mod socket;
pub mod steering;
pub mod streams;
mod wait;
mod witness;

use crate::dataplane::counters::ShardCounters;
use crate::dataplane::scan::Scanner;
use crate::link::{Ring, ShardEnd};
use crate::sys::poll::{Bell, Ready};
use core_affinity::CoreId;
use glommio::{LocalExecutorBuilder, Placement, PoolPlacement};
use io::Kernel;
use linger::Linger;
use run::Shard;
use socket::{OpenError, Plan, Sockets};
use std::io as std_io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;
use streams::Streams;
use wait::Waiter;

/// A shard whose sockets are open.
#[derive(Debug)]
pub struct Unstarted {
    number: usize,
    core: usize,
    sockets: Sockets,
    bell: Arc<Bell>,
    tells_answers: bool,
    linger: Duration,
}

/// A shard at work.
#[derive(Debug)]
pub struct Running {
    thread: thread::JoinHandle<()>,
}

/// Opens the sockets of a shard that is to run on `core`.
pub fn open(number: usize, core: usize, plan: &Plan) -> Result<Unstarted, OpenError> {
    let sockets = Sockets::open(plan)?;
    let no_bell = |error| OpenError { protocol: "udp", address: SocketAddr::from(([0; 4], 0)), error };
    let bell = Arc::new(Bell::new().map_err(no_bell)?);
    Ok(Unstarted { number, core, sockets, bell, tells_answers: false, linger: plan.linger })
}

/// How many threads `shards` shards take: one each, and one of its executor.
pub const fn threads(shards: usize) -> usize {
    2 * shards
}

/// Whether as many threads may be started as shards on `cores` take, and `beside` more, and those of shards be bound to their
/// cores. All of them are, and end again: glommio and tokio panic where there is none for them.
///
/// # Errors
/// What the kernel refused.
pub fn rehearse(cores: &[usize], beside: usize) -> std_io::Result<()> {
    let door = Mutex::new(());
    thread::scope(|scope| {
        let shut = door.lock();
        let one = |number: usize| {
            let (core, door) = (cores.get(number).copied(), &door);
            thread::Builder::new().spawn_scoped(scope, move || {
                let bound = core.map_or(Ok(()), bind);
                drop(door.lock());
                bound
            })
        };
        let all: std_io::Result<Vec<_>> = (0..threads(cores.len()) + beside).map(one).collect();
        drop(shut);
        all?.into_iter().try_for_each(|one| one.join().expect("nothing in it panics"))
    })
}

impl Unstarted {
    /// Lets the shard tell the others of answers to INVITEs that it did not forward: see [`crate::link::Handed`].
    pub fn tell_answers(&mut self) {
        self.tells_answers = true;
    }

    /// What wakes the shard.
    pub fn ring(&self) -> Ring {
        let bell = self.bell.clone();
        Box::new(move || bell.ring())
    }

    /// The sockets.
    pub fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// Starts the shard's thread.
    ///
    /// # Errors
    /// The executor cannot be had: io_uring is refused, too little memory may be locked, the core is not ours.
    pub fn start(self, link: ShardEnd) -> std_io::Result<Running> {
        let (started, outcome) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name(format!("viahop-{}", self.number)).spawn(move || {
            // glommio's own memory is for storage, which there is none of here: the least it takes.
            let builder = LocalExecutorBuilder::new(Placement::Unbound)
                .name("viahop")
                .io_memory(0)
                .blocking_thread_pool_placement(PoolPlacement::Unbound(1));
            match bind(self.core).and_then(|()| builder.make().map_err(std_io::Error::from)) {
                Ok(executor) => executor.run(self.work(link, started)),
                Err(error) => drop(started.send(Err(error))),
            }
        })?;
        match outcome.recv() {
            Ok(Ok(())) => Ok(Running { thread }),
            Ok(Err(error)) => Err(error),
            Err(mpsc::RecvError) => Err(std_io::Error::other("the shard's thread ended before it had begun")),
        }
    }

    /// Works until told to stop. However it ends, that is told: its sockets are closed then, and the others get its calls.
    async fn work(mut self, link: ShardEnd, started: mpsc::SyncSender<std_io::Result<()>>) {
        let _end = End(link.counters.clone());
        let (listeners, egress) = (self.sockets.listeners(), self.sockets.egress_ports());
        let (listening, limits) = self.sockets.take_streams();
        let kernel = Kernel::new(self.sockets, crate::dataplane::limits::BATCH);
        let waiter = match Waiter::new(&kernel, &self.bell) {
            Ok(waiter) => waiter,
            Err(error) => return drop(started.send(Err(error))),
        };
        let shared = waiter.share();
        let credentials = link.shared.credentials.clone();
        let streams =
            shared.and_then(|(poller, first)| Streams::new(self.number, poller, first, listening, limits, credentials));
        let streams = match streams {
            Ok(streams) => streams,
            Err(error) => return drop(started.send(Err(error))),
        };
        drop(started.send(Ok(())));
        let shard = Shard::new(self.number, kernel, listeners, egress, Scanner::best(), link);
        let mut shard = shard.with_streams(streams);
        if self.tells_answers {
            shard.tell_answers();
        }
        let mut ready = Ready::default();
        let mut writable_wanted = vec![false; shard.sockets()];
        let bell = waiter.bell();
        let mut linger = Linger::new(self.linger);
        // Messages since the ticker last ticked.
        let mut came = 0;
        while !shard.is_stopping() {
            let has_steps = shard.has_steps();
            let waited = if has_steps { waiter.look(&mut ready) } else { waiter.block(&mut ready) };
            if waited.is_err() {
                break;
            }
            if ready.is_empty() && has_steps {
                shard.step(true);
                shard.turn_streams(std::iter::empty(), false);
                glommio::yield_if_needed().await;
                continue;
            }
            let is_rung = ready.numbers().any(|number| number == bell);
            if is_rung {
                self.bell.silence();
                shard.take_over();
            }
            let datagrams = shard.turn(waiter.sockets(&ready));
            let messages = datagrams + shard.turn_streams(waiter.streams(&ready), is_rung);
            shard.step(false);
            for (socket, wanted) in writable_wanted.iter_mut().enumerate() {
                let waits = shard.is_waiting(socket);
                if waits != *wanted && waiter.want_writable(shard.io(), socket, waits).is_ok() {
                    *wanted = waits;
                }
            }
            came += messages;
            // A step of a handshake that waits is something to do.
            if !shard.has_steps() && linger.after(messages) {
                shard.count_nap();
            }
            if waiter.has_ticked(&ready) && std::mem::take(&mut came) == 0 {
                shard.ask_for_drops();
                if !shard.has_steps() && !shard.has_deadlines() && waiter.park().await.is_err() {
                    break;
                }
            }
            glommio::yield_if_needed().await;
        }
        // What had come in before the end is dealt with; closing the sockets would lose it. All are read, ready or not: many
        // connections that nobody reads any more are ready in their place.
        for _ in 0..LAST_TURNS / 2 {
            // A socket that tells of an error in one turn gives what it has in the next.
            if shard.turn(0..shard.sockets()) + shard.turn(0..shard.sockets()) == 0 {
                break;
            }
        }
        shard.finish();
    }
}

/// Binds this thread to `core`, before anything is allocated for it. glommio would look the core up in /sys, which need not be
/// mounted, and shows other numbers where lxcfs lies over it.
fn bind(core: usize) -> std_io::Result<()> {
    if core_affinity::set_for_current(CoreId { id: core }) {
        return Ok(());
    }
    let error = std_io::Error::last_os_error();
    Err(std_io::Error::new(error.kind(), format!("no thread may be bound to core {core}: {error}")))
}

/// Says that the shard has ended, when it is dropped.
struct End(Arc<ShardCounters>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.ended.set(1);
    }
}

/// Turns that a shard takes at most when it is to end: 32,000 messages, more than its receive buffers hold by default.
const LAST_TURNS: usize = 1000;

impl Running {
    /// Waits until the shard has ended. Returns whether it ended well.
    pub fn join(self) -> bool {
        self.thread.join().is_ok()
    }
}
