//! The called side: backends that answer like SIP servers do, and that keep book of what reaches them.
//!
//! ```text
//!             shard thread                          shard thread
//!   ┌──────────────────────────────┐      ┌──────────────────────────────┐
//!   │ backend 0   backend 2   …    │      │ backend 1   backend 3   …    │    each a socket of its own, so that each can
//!   │ calls, timers                │      │ calls, timers                │    be killed and brought back by itself
//!   └──────────────┬───────────────┘      └───────────────┬──────────────┘
//!                  └──────────► owners ◄──────────────────┘                 which backend took which call
//! ```
//!
//! What a backend does is decided by the user part of the Request-URI: see [`Manner`]. `worker` is one shard, `call`
//! what it remembers of a call. A backend that is killed closes its socket, so that the kernel answers for it with ICMP
//! port unreachable, and forgets its calls, as a server that crashed does. Over TCP its connections close, and new ones are
//! refused.

mod call;
mod worker;

use crate::clock::{SECOND_NS, now_ns};
use crate::digest::Realm;
use crate::endpoint::{Endpoint, Transport};
use crate::failure::{Exit, Failure, cannot_bind};
use crate::fault::Fault;
use crate::owners::{BACKENDS_MAX, CALLS_REMEMBERED, Owners};
use crate::remote::{self, Remote};
use crate::sys::process;
use crate::sys::socket::{PATIENT_BUFFER_OCTETS, Socket};
use crate::sys::tcp;
use crate::sys::wait::Waiter;
use crate::tally::Tally;
use crate::timer::Timers;
use crate::tls;
use crate::usage::{self, Usage};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use worker::Worker;

/// New calls that wait to be fetched by [`Uas::take_new_calls`]. More are counted and not listed.
pub const NEW_CALLS_MAX: usize = 1 << 17;

/// Violations that are kept with their Call-ID. All are counted.
pub const VIOLATIONS_LISTED: usize = 32;

/// What the called side is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// One backend each; port 0 lets the kernel choose.
    pub backends: Vec<Endpoint>,
    /// One shard per entry, on that core; `None` leaves the choice to the kernel.
    pub cores: Vec<Option<usize>>,
    /// From the 180 to the 200, in nanoseconds. 0: both at once.
    pub ring_ns: u64,
    /// The timers of RFC 3261.
    pub timers: Timers,
    /// Calls one shard holds at the same time. A call beyond is answered with 503.
    pub calls_max: usize,
    /// How long a call may be silent before it counts as abandoned, in nanoseconds.
    pub silence_max_ns: u64,
    /// Calls whose backend is remembered, over all shards.
    pub calls_remembered: usize,
    /// Whether messages of one length share their way through the kernel (UDP GSO), which lets one core send more. Not done
    /// by backends that are slow on purpose.
    pub segments: bool,
    /// Whether new calls are listed for [`Uas::take_new_calls`].
    pub list_new_calls: bool,
    /// What those who come over TLS are shown. Without it a certificate that nobody has signed is made.
    pub tls: Option<tls::Server>,
    /// What a REGISTER has to prove, if anything.
    pub realm: Option<Realm>,
    /// What backends do wrong. [`Fault::Down`] is whoever calls [`Uas::kill`]'s business.
    pub faults: Vec<Fault>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            backends: Vec::new(),
            cores: vec![None],
            ring_ns: 0,
            timers: Timers::default(),
            calls_max: 1 << 20,
            silence_max_ns: 600 * SECOND_NS,
            calls_remembered: CALLS_REMEMBERED,
            segments: false,
            list_new_calls: false,
            tls: None,
            realm: None,
            faults: Vec::new(),
        }
    }
}

/// What a backend does with an INVITE, by the beginning of the user part it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Any other user: 180, then 200.
    Answer,
    /// `busy…`: 486.
    Busy,
    /// `ring…`: 180, and nothing more until a CANCEL comes.
    Ring,
}

impl Manner {
    /// The manner of this user.
    pub fn of(user: &[u8]) -> Manner {
        match user {
            [b'b', b'u', b's', b'y', ..] => Manner::Busy,
            [b'r', b'i', b'n', b'g', ..] => Manner::Ring,
            _ => Manner::Answer,
        }
    }
}

/// What reached one backend, and what it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Requests, ACK included, copies included.
    pub requests: u64,
    /// Calls taken: INVITEs that opened one.
    pub calls: u64,
    /// ACK requests.
    pub acks: u64,
    /// BYE requests that ended a call.
    pub byes: u64,
    /// CANCEL requests that reached a ringing call.
    pub cancels: u64,
    /// REGISTER requests that were accepted.
    pub registers: u64,
    /// REGISTER requests that were challenged (401).
    pub challenged: u64,
    /// REGISTER requests whose credentials were wrong (403).
    pub forbidden: u64,
    /// OPTIONS requests.
    pub options: u64,
    /// Subscriptions taken.
    pub subscriptions: u64,
    /// NOTIFY requests that were answered with 200.
    pub notified: u64,
    /// Requests that had come before: retransmissions, or copies made on the way.
    pub copies: u64,
    /// Final responses to INVITE, and NOTIFY requests, sent again because no ACK or answer had come.
    pub resent: u64,
    /// Final responses to INVITE whose ACK, and NOTIFY requests whose answer never came (Timers H and F).
    pub unacknowledged: u64,
    /// Calls that fell silent.
    pub abandoned: u64,
    /// Requests of a call this backend does not know, answered with 481.
    pub unknown: u64,
    /// Messages of a call that another backend took, which is alive: the balancer was not sticky.
    pub violations: u64,
    /// Messages of a call whose backend has died since.
    pub orphans: u64,
    /// Messages of a call that came from another address of the element than the one before. Of an element that sends from
    /// one port per core: from another core.
    pub moved: u64,
    /// BYE requests that came before the ACK of their call, and requests with a lower CSeq than one before: something was
    /// overtaken on the way, or lost.
    pub reordered: u64,
    /// Messages whose seal is broken: something on the way changed what it must not.
    pub altered: u64,
    /// Messages without a seal: the element made them, or the caller is not of our kind.
    pub unsealed: u64,
    /// Datagrams that are no SIP message, connections on which something else came, and requests that cannot be answered.
    pub malformed: u64,
    /// Connections taken.
    #[serde(default)]
    pub connections: u64,
    /// Responses that found their connection gone.
    #[serde(default)]
    pub unsent: u64,
    /// Responses that reached this backend and belong to nothing it asked.
    pub responses: u64,
    /// Calls refused because there was no room for more.
    pub refused: u64,
    /// Datagrams that came and were dropped because our own receive buffer was full: this machine was too slow.
    pub overflowed: u64,
}

impl Counts {
    /// Adds what another counted.
    pub fn add(&mut self, other: &Counts) {
        self.requests += other.requests;
        self.calls += other.calls;
        self.acks += other.acks;
        self.byes += other.byes;
        self.cancels += other.cancels;
        self.registers += other.registers;
        self.challenged += other.challenged;
        self.forbidden += other.forbidden;
        self.options += other.options;
        self.subscriptions += other.subscriptions;
        self.notified += other.notified;
        self.copies += other.copies;
        self.resent += other.resent;
        self.unacknowledged += other.unacknowledged;
        self.abandoned += other.abandoned;
        self.unknown += other.unknown;
        self.violations += other.violations;
        self.orphans += other.orphans;
        self.moved += other.moved;
        self.reordered += other.reordered;
        self.altered += other.altered;
        self.unsealed += other.unsealed;
        self.malformed += other.malformed;
        self.connections += other.connections;
        self.unsent += other.unsent;
        self.responses += other.responses;
        self.refused += other.refused;
        self.overflowed += other.overflowed;
    }
}

/// A call that a backend took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCall {
    /// Its Call-ID.
    pub call_id: Box<str>,
    /// Index of the backend.
    pub backend: usize,
    /// When, on [`now_ns`]'s clock.
    pub at_ns: u64,
}

/// A message of a call that reached another backend than the one that took the call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The Call-ID.
    pub call_id: Box<str>,
    /// The method of the message.
    pub method: Box<str>,
    /// Index of the backend that took the call.
    pub owner: usize,
    /// Index of the backend that the message reached.
    pub reached: usize,
}

/// A message of a call that came from another address of the element than the one before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// The Call-ID.
    pub call_id: Box<str>,
    /// The method of the message.
    pub method: Box<str>,
    /// Where it came from.
    pub from: SocketAddr,
}

/// One backend at the moment of a snapshot, or at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendState {
    /// What it counted since the start, all its lives together.
    pub counts: Counts,
    /// Messages handed to the network, by kind.
    pub sent: Tally,
    /// Messages that came, by kind.
    pub received: Tally,
    /// Calls it holds.
    pub open: u64,
    /// Whether its socket is open.
    pub alive: bool,
}

/// The state of all backends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// In the order of [`Config::backends`].
    pub backends: Vec<BackendState>,
    /// The first [`VIOLATIONS_LISTED`] of each shard.
    pub violations: Vec<Violation>,
    /// The first [`VIOLATIONS_LISTED`] of each shard.
    pub moves: Vec<Move>,
    /// Calls that were forgotten because more were going on than [`Config::calls_remembered`]; violations among them
    /// were not noticed.
    pub forgotten: u64,
    /// New calls that were not listed because nobody fetched the list.
    pub unlisted: u64,
    /// CPU time of all shards together, once they have ended.
    pub usage: Usage,
    /// The lives of all shards together, in nanoseconds: what [`Report::usage`] is a share of.
    pub lives_ns: u64,
    /// Shards that ended before their time: by a panic, which is a mistake in this program and costs what they had counted, or
    /// because the kernel would not let them wait.
    pub broken: u64,
}

impl Report {
    /// Adds the backends of another machine after these.
    pub fn add(&mut self, other: &Report) {
        let own = self.backends.len();
        self.backends.extend(other.backends.iter().cloned());
        self.violations.extend(other.violations.iter().cloned().map(|violation| Violation {
            owner: violation.owner + own,
            reached: violation.reached + own,
            ..violation
        }));
        self.moves.extend(other.moves.iter().cloned());
        self.forgotten += other.forgotten;
        self.unlisted += other.unlisted;
        self.usage.add(&other.usage);
        self.lives_ns += other.lives_ns;
        self.broken += other.broken;
    }

    /// Messages of all backends together, by kind: those sent, and those that came.
    pub fn traffic(&self) -> (Tally, Tally) {
        let (mut sent, mut received) = (Tally::default(), Tally::default());
        for backend in &self.backends {
            sent.add(&backend.sent);
            received.add(&backend.received);
        }
        (sent, received)
    }

    /// All backends together.
    pub fn total(&self) -> Counts {
        let mut total = Counts::default();
        self.backends.iter().for_each(|backend| total.add(&backend.counts));
        total
    }
}

/// Where a backend listens.
#[derive(Debug)]
enum Mouth {
    Datagrams(Socket),
    Streams(TcpListener, Endpoint),
}

impl Mouth {
    fn open(endpoint: Endpoint) -> io::Result<Mouth> {
        match endpoint.transport {
            Transport::Ws | Transport::Wss => Err(io::ErrorKind::Unsupported.into()),
            Transport::Tcp | Transport::Tls => {
                let listener = tcp::listen(endpoint.address)?;
                let local = listener.local_addr()?;
                Ok(Mouth::Streams(listener, Endpoint { address: local, ..endpoint }))
            }
            Transport::Udp => Socket::bind_with(endpoint.address, PATIENT_BUFFER_OCTETS).map(Mouth::Datagrams),
        }
    }

    fn local(&self) -> SocketAddr {
        match self {
            Mouth::Datagrams(socket) => socket.local(),
            Mouth::Streams(_, local) => local.address,
        }
    }

    fn transport(&self) -> Transport {
        match self {
            Mouth::Datagrams(_) => Transport::Udp,
            Mouth::Streams(_, local) => local.transport,
        }
    }

    /// Datagrams that its receive buffer had no room for.
    fn dropped(&self) -> u64 {
        match self {
            Mouth::Datagrams(socket) => socket.dropped(),
            Mouth::Streams(..) => 0,
        }
    }
}

/// Backends that run.
pub struct Uas {
    addresses: Vec<SocketAddr>,
    shards: Vec<Remote<Command>>,
    threads: Vec<JoinHandle<Ended>>,
    shared: Arc<Shared>,
}

/// What all shards see.
struct Shared {
    config: Config,
    owners: Owners,
    new_calls: Mutex<NewCalls>,
}

#[derive(Default)]
struct NewCalls {
    list: VecDeque<NewCall>,
    unlisted: u64,
}

/// What a shard is told.
enum Command {
    Kill(usize, SyncSender<()>),
    Restore(usize, SyncSender<io::Result<()>>),
    Snapshot(SyncSender<Vec<Snapshot>>),
    Stop,
}

/// What a shard leaves behind.
struct Ended {
    backends: Vec<Snapshot>,
    usage: Usage,
    life_ns: u64,
    broken: bool,
}

/// One backend's part of a report.
struct Snapshot {
    index: usize,
    state: BackendState,
    violations: Vec<Violation>,
    moves: Vec<Move>,
}

impl Uas {
    /// Opens all sockets and starts to answer.
    pub fn start(mut config: Config) -> Result<Uas, Failure> {
        if config.backends.is_empty() || config.backends.len() > BACKENDS_MAX {
            let what = format!("{} backends were asked for; 1 to {BACKENDS_MAX} are possible", config.backends.len());
            return Err(Failure::new(Exit::Usage, "uas", what));
        }
        if config.cores.is_empty() {
            config.cores.push(None);
        }
        config.cores.truncate(config.backends.len());
        let is_tls = |endpoint: &Endpoint| endpoint.transport == Transport::Tls;
        if config.tls.is_none() && config.backends.iter().any(is_tls) {
            let hosts = config.backends.iter().map(|endpoint| endpoint.address.ip().to_string());
            config.tls = Some(tls::Server::self_signed(hosts.chain(["localhost".to_owned()]).collect())?);
        }
        let mut sockets = Vec::new();
        for endpoint in &mut config.backends {
            let mouth = Mouth::open(*endpoint).map_err(|error| cannot_bind(*endpoint, &error))?;
            endpoint.address = mouth.local();
            sockets.push(mouth);
        }
        let owners = Owners::new(config.calls_remembered, sockets.len());
        let addresses = config.backends.iter().map(|endpoint| endpoint.address).collect();
        let shared = Arc::new(Shared { config, owners, new_calls: Mutex::default() });
        let mut uas = Uas { addresses, shards: Vec::new(), threads: Vec::new(), shared };
        let count = uas.shared.config.cores.len();
        let mut shares: Vec<Vec<(usize, Mouth)>> = (0..count).map(|_| Vec::new()).collect();
        for (index, socket) in sockets.into_iter().enumerate() {
            shares[index % count].push((index, socket));
        }
        for (number, share) in shares.into_iter().enumerate() {
            uas.start_shard(number, share)?;
        }
        Ok(uas)
    }

    fn start_shard(&mut self, number: usize, sockets: Vec<(usize, Mouth)>) -> Result<(), Failure> {
        let cannot_start =
            |error: io::Error| Failure::new(Exit::Environment, "uas", format!("a thread cannot start: {error}"));
        let waiter = Waiter::new().map_err(cannot_start)?;
        let (remote, inbox) = remote::pair(waiter.waker());
        let core = self.shared.config.cores[number];
        let worker = Worker::new(Arc::clone(&self.shared), waiter, inbox, sockets, now_ns()).map_err(cannot_start)?;
        let run = move || {
            if let Some(core) = core {
                // A core that is not to be had was refused by the command line; where none may be chosen, the kernel does.
                if let Err(error) = process::pin_this_thread(core) {
                    remark!("warning[uas]: callees' thread {number} is not bound to core {core}: {error}");
                }
            }
            let born = now_ns();
            let (backends, result) = worker.run();
            if let Err(error) = &result {
                remark!("error[uas]: callees' thread {number} cannot wait: {error}");
            }
            Ended { backends, usage: usage::of_this_thread(), life_ns: now_ns() - born, broken: result.is_err() }
        };
        let thread = std::thread::Builder::new().name(format!("uas-{number}")).spawn(run).map_err(cannot_start)?;
        self.shards.push(remote);
        self.threads.push(thread);
        Ok(())
    }

    /// Where the backends listen, and how, by index.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let backends = self.shared.config.backends.iter().zip(&self.addresses);
        backends.map(|(endpoint, address)| Endpoint { address: *address, ..*endpoint }).collect()
    }

    /// Where the backends listen, by index.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Kills a backend: its socket is closed when this returns, so the kernel refuses what is sent to it, and its calls
    /// are forgotten. Killing a dead one does nothing.
    pub fn kill(&self, backend: usize) {
        let (shard, place) = self.place(backend);
        self.shards[shard].ask(|reply| Command::Kill(place, reply));
    }

    /// Brings a killed backend back, on the same port and without memory. Fails if somebody else has taken the port.
    pub fn restore(&self, backend: usize) -> io::Result<()> {
        let (shard, place) = self.place(backend);
        self.shards[shard].ask(|reply| Command::Restore(place, reply)).unwrap_or(Ok(()))
    }

    /// The state of this moment. Costs the shards some microseconds.
    pub fn snapshot(&self) -> Report {
        let parts = self.shards.iter().filter_map(|shard| shard.ask(Command::Snapshot)).flatten().collect();
        self.report(parts)
    }

    /// The calls taken since this was last called, oldest first. Empty unless [`Config::list_new_calls`] asks for it.
    pub fn take_new_calls(&self) -> Vec<NewCall> {
        let mut new_calls = self.shared.new_calls.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut new_calls.list).into()
    }

    /// Lets all backends end, when they have heard what has come. What is open then stays unanswered.
    pub fn stop(&self) {
        self.shards.iter().for_each(|shard| shard.tell(Command::Stop));
    }

    /// Stops, waits for the shards and says what there was.
    pub fn join(mut self) -> Report {
        self.stop();
        let (mut parts, mut usage, mut lives_ns, mut broken) = (Vec::new(), Usage::default(), 0, 0);
        for thread in std::mem::take(&mut self.threads) {
            match thread.join() {
                Ok(ended) => {
                    parts.extend(ended.backends);
                    usage.add(&ended.usage);
                    lives_ns += ended.life_ns;
                    broken += u64::from(ended.broken);
                }
                Err(_) => broken += 1,
            }
        }
        Report { usage, lives_ns, broken, ..self.report(parts) }
    }

    /// Shard of a backend, and its place in the shard.
    fn place(&self, backend: usize) -> (usize, usize) {
        assert!(backend < self.addresses.len(), "backends are named by their index");
        (backend % self.shards.len(), backend / self.shards.len())
    }

    fn report(&self, parts: Vec<Snapshot>) -> Report {
        let unlisted = self.shared.new_calls.lock().unwrap_or_else(PoisonError::into_inner).unlisted;
        let mut report = Report {
            backends: vec![BackendState::default(); self.addresses.len()],
            violations: Vec::new(),
            moves: Vec::new(),
            forgotten: self.shared.owners.forgotten(),
            unlisted,
            ..Report::default()
        };
        for part in parts {
            report.violations.extend(part.violations);
            report.moves.extend(part.moves);
            report.backends[part.index] = part.state;
        }
        report
    }
}

impl Drop for Uas {
    fn drop(&mut self) {
        self.stop();
    }
}
