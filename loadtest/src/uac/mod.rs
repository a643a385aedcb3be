//! The calling side: callers that start calls at fixed times, whatever the element does, and check all that comes back.
//!
//! ```text
//!  schedule ──► place a call ──► INVITE ─► … ─► BYE        transactions and timers of RFC 3261 17, one place per call
//!                    ▲                │
//!                    └── slot ◄───────┘                    the branch and the Call-ID name the place: no table to search
//! ```
//!
//! An open loop: latencies count from the time the schedule says, not from when this machine got round to it; how late it
//! was itself is published beside them ([`Report::lateness`]).
//!
//! `worker` is one shard: a thread with its own sockets, calls and timers. `request` writes messages, `call` is what
//! is remembered of a call, [`ask`] finds out which backend a given Call-ID leads to.

pub mod ask;
mod call;
mod request;
mod worker;

use crate::clock::{SECOND_NS, now_ns};
use crate::endpoint::{Endpoint, Transport};
use crate::failure::{Exit, Failure, cannot_bind};
use crate::impair::{Impaired, Impairment};
use crate::kpi::is_of_transport;
use crate::latency::Latencies;
use crate::remote::{self, Remote};
use crate::rng;
use crate::scenario::{Mix, Scenario, Step};
use crate::schedule::Arrivals;
use crate::sys::process;
use crate::sys::socket::{PATIENT_BUFFER_OCTETS, Socket};
use crate::sys::tcp;
use crate::sys::wait::Waiter;
use crate::tally::Tally;
use crate::timer::Timers;
use crate::tls;
use crate::usage::{self, Usage};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use worker::Worker;

/// Messages that are kept with what was wrong about them. All are counted.
pub const WRONGS_LISTED: usize = 32;

/// Why a call failed that was not placed: [`Config::calls_max`].
pub const NO_ROOM: &str = "no room for more calls";

/// How long after the time of the last call a shard that has fallen behind may go on placing calls, in nanoseconds. What is
/// due beyond that is not placed and counted in [`Counts::unplaced`], so that a rate that no machine can do ends too.
pub const OVERTIME_NS: u64 = 2 * SECOND_NS;

/// How long the first call waits for connections to be opened, in nanoseconds. What takes longer is in the latencies.
const CONNECT_NS: u64 = 2 * SECOND_NS;

/// What the calling side is to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// The element under test.
    pub target: SocketAddr,
    /// How it is spoken to.
    pub transport: Transport,
    /// Our own address; sockets take free ports there.
    pub from: IpAddr,
    /// What connections are opened with, over TLS.
    pub tls: Option<tls::Client>,
    /// Sockets of one shard, over UDP. Several look like several phones: an element that spreads by source address sees a
    /// spread.
    pub sockets: usize,
    /// Connections of all shards together, over TCP. Each shard has one at least.
    pub connections: usize,
    /// One shard per entry, on that core; `None` leaves the choice to the kernel.
    pub cores: Vec<Option<usize>>,
    /// What calls do.
    pub mix: Mix,
    /// Calls a second, all shards together.
    pub rate: f64,
    /// How they are spread in time.
    pub arrivals: Arrivals,
    /// No call starts later than so many nanoseconds after the first.
    pub duration_ns: u64,
    /// No more calls than this are placed.
    pub calls: u64,
    /// What `pause = "hold"` means, in nanoseconds.
    pub hold_ns: u64,
    /// How long calls that are open may go on after the last was placed, in nanoseconds.
    pub drain_ns: u64,
    /// Calls one shard holds at the same time. A call beyond is not placed and counts as failed.
    pub calls_max: usize,
    /// Different callers, and different callees: their numbers are taken in turn.
    pub users: u64,
    /// The timers of RFC 3261.
    pub timers: Timers,
    /// User name when challenged; `None`: the caller's own, as in its From.
    pub user: Option<String>,
    /// Password when challenged; `None`: a challenge is a final response like any other.
    pub password: Option<String>,
    /// Whether messages of one length share their way through the kernel (UDP GSO), which lets one core send more. Not done
    /// in a bad network.
    pub segments: bool,
    /// The bad network that callers are to have.
    pub impairment: Impairment,
    /// What decides Call-IDs, tags and arrivals.
    pub seed: u64,
}

impl Config {
    /// Basic calls to `target` at 100 a second for 10 s, without hold time.
    pub fn new(target: impl Into<Endpoint>) -> Config {
        let Endpoint { transport, address: target } = target.into();
        let from: IpAddr = match target {
            SocketAddr::V4(_) => [127, 0, 0, 1].into(),
            SocketAddr::V6(_) => [0, 0, 0, 0, 0, 0, 0, 1].into(),
        };
        Config {
            target,
            transport,
            tls: None,
            from,
            sockets: 1,
            connections: 1,
            cores: vec![None],
            mix: Scenario::built_in("call").expect("it is built in").into(),
            rate: 100.0,
            arrivals: Arrivals::Constant,
            duration_ns: 10 * SECOND_NS,
            calls: u64::MAX,
            hold_ns: 0,
            drain_ns: 40 * SECOND_NS,
            calls_max: 1 << 20,
            users: 10_000,
            timers: Timers::default(),
            user: None,
            password: None,
            segments: false,
            impairment: Impairment::default(),
            seed: rng::seed(),
        }
    }
}

/// What the calling side did and saw, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Calls that were due and have been placed, or failed to be for want of room. A REGISTER or OPTIONS by itself is a
    /// call too.
    pub placed: u64,
    /// Calls that went as their scenario says.
    pub completed: u64,
    /// Calls that did not: see [`Line::failures`].
    pub failed: u64,
    /// Calls that were still open when the run ended. Neither completed nor failed.
    pub cut: u64,
    /// Calls that were due and never placed, because this machine had fallen behind by more than [`OVERTIME_NS`]. Not among
    /// those placed.
    pub unplaced: u64,
    /// Requests sent, ACK and CANCEL included, retransmissions not.
    pub requests: u64,
    /// Requests sent again by Timers A and E.
    pub retransmissions: u64,
    /// Responses received, all of them.
    pub responses: u64,
    /// Requests received.
    pub requests_received: u64,
    /// Responses to something that had its response: copies, and 2xx sent again for want of our ACK.
    pub copies: u64,
    /// Responses for a call that is over.
    pub late: u64,
    /// Responses that belong to nothing of this run: see [`Wrong`].
    pub strays: u64,
    /// Requests received within a call whose scenario waits for none such: see [`Wrong`].
    pub unexpected: u64,
    /// Responses that RFC 3261 does not allow: see [`Wrong`]. They are discarded.
    pub wrong: u64,
    /// Responses whose seal is broken: something on the way changed what it must not. They are taken all the same.
    pub altered: u64,
    /// Messages without a seal, other than a 100: the element made them, or the callee is not of our kind.
    pub unsealed: u64,
    /// Datagrams that are no SIP message, and connections on which something else came.
    pub malformed: u64,
    /// ICMP errors, connections that could not be opened, and what was to go there meanwhile: nobody listens there, or there
    /// is no way.
    pub refused: u64,
    /// Datagrams the kernel did not take.
    pub unsent: u64,
    /// Datagrams that came and were dropped because our own receive buffers were full: this machine was too slow.
    pub overflowed: u64,
    /// Connections that were open and were lost. Calls that waited for something there have failed.
    #[serde(default)]
    pub connections_lost: u64,
    /// Attempts to open connections again.
    #[serde(default)]
    pub reconnects: u64,
    /// What was done to datagrams on purpose.
    pub on_purpose: Impaired,
}

impl Counts {
    /// Messages received, of any kind.
    pub fn received(&self) -> u64 {
        self.responses + self.requests_received + self.malformed
    }

    /// Adds what another counted.
    pub fn add(&mut self, other: &Counts) {
        self.placed += other.placed;
        self.completed += other.completed;
        self.failed += other.failed;
        self.cut += other.cut;
        self.unplaced += other.unplaced;
        self.requests += other.requests;
        self.retransmissions += other.retransmissions;
        self.responses += other.responses;
        self.requests_received += other.requests_received;
        self.copies += other.copies;
        self.late += other.late;
        self.strays += other.strays;
        self.unexpected += other.unexpected;
        self.wrong += other.wrong;
        self.altered += other.altered;
        self.unsealed += other.unsealed;
        self.malformed += other.malformed;
        self.refused += other.refused;
        self.unsent += other.unsent;
        self.overflowed += other.overflowed;
        self.connections_lost += other.connections_lost;
        self.reconnects += other.reconnects;
        self.on_purpose.add(&other.on_purpose);
    }
}

/// A message that RFC 3261 does not allow, or that nobody waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrong {
    /// What is wrong about it: `Via`, `Call-ID`, `From`, `To tag`, `CSeq`; `altered`, its seal being broken; `stray`, no
    /// call of this run having asked for it; `unexpected`, no step of its scenario waiting for it.
    pub what: Box<str>,
    /// The Call-ID of the call it was taken to belong to.
    pub call_id: Box<str>,
    /// The row that is wrong, as it came, or its first line.
    pub row: Box<str>,
}

/// One request of one scenario: a row of the report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Line {
    /// The scenario's name.
    pub scenario: Box<str>,
    /// The step's name.
    pub step: Box<str>,
    /// The method of the request.
    pub method: Box<str>,
    /// The final response that is a success; 0 for a request that is awaited.
    pub expect: u16,
    /// Whether a call begins with it.
    pub opens: bool,
    /// How often it was sent, retransmissions not counted.
    pub sent: u64,
    /// How often the expected final response came; of a request that is awaited, how often it came.
    pub answered: u64,
    /// Retransmissions.
    pub retransmissions: u64,
    /// How often it was challenged and sent again with credentials.
    pub challenged: u64,
    /// What went wrong, by reason.
    pub failures: BTreeMap<Box<str>, u64>,
    /// From the scheduled time to the final response.
    pub latency: Latencies,
}

/// The state of the moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Since the start.
    pub counts: Counts,
    /// Calls that are open.
    pub open: u64,
    /// Messages sent and received since the start, by kind.
    pub sent: Tally,
    /// See `sent`.
    pub received: Tally,
    /// Requests answered since the last snapshot: from the scheduled time to the final response.
    pub latency: Latencies,
    /// How late calls were placed since the last snapshot.
    pub lateness: Latencies,
    /// Whether all shards have ended.
    pub finished: bool,
}

/// What a run came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// The numbers.
    pub counts: Counts,
    /// One per request of each scenario.
    pub lines: Vec<Line>,
    /// Messages handed to the network, copies and retransmissions included, by kind.
    pub sent: Tally,
    /// Messages that came, by kind.
    pub received: Tally,
    /// From the scheduled time of a call to the first provisional response other than 100 to its INVITE, or to the 200 where
    /// none came before: the Session Request Delay of RFC 6076 4.3.1, of calls that came about.
    pub ringing: Latencies,
    /// From the scheduled time of a call to the moment its first request was in the kernel's hands.
    pub lateness: Latencies,
    /// The first [`WRONGS_LISTED`] of each shard.
    pub wrongs: Vec<Wrong>,
    /// From the first call's due time to when the last was placed, and a gap more, in nanoseconds: what rates refer to.
    pub placing_ns: u64,
    /// From the start to the end of the last call, in nanoseconds.
    pub elapsed_ns: u64,
    /// Most calls that were open at the same time. Over several shards: the sum of each one's most.
    pub open_max: u64,
    /// CPU time of all shards together.
    pub usage: Usage,
    /// The lives of all shards together, in nanoseconds: what [`Report::usage`] is a share of.
    pub lives_ns: u64,
    /// Shards that ended before their time: by a panic, which is a mistake in this program and costs what they had counted, or
    /// because the kernel would not let them wait.
    pub broken: u64,
}

impl Report {
    /// The latencies of all requests sent in one. How long a request of the callee was waited for is its own affair.
    pub fn latency(&self) -> Latencies {
        let mut all = Latencies::default();
        let sent = self.lines.iter().filter(|line| line.expect != 0);
        sent.for_each(|line| all.add(&line.latency));
        all
    }

    /// What was in the way of most calls that had no connection, if it was something else than that nobody listens.
    pub fn hindrance(&self) -> Option<&str> {
        let failures = self.lines.iter().flat_map(|line| &line.failures);
        let of_connections = failures.filter(|(reason, _)| is_of_transport(reason));
        let (most, _) = of_connections.max_by_key(|(_, count)| **count)?;
        Some(&**most).filter(|reason| *reason != "connection refused")
    }

    /// Adds another shard's, or another machine's. Exact: all latencies have the same steps.
    pub fn add(&mut self, other: &Report) {
        self.counts.add(&other.counts);
        for line in &other.lines {
            let same = |own: &&mut Line| own.scenario == line.scenario && own.step == line.step;
            match self.lines.iter_mut().find(same) {
                Some(own) => own.add(line),
                None => self.lines.push(line.clone()),
            }
        }
        self.sent.add(&other.sent);
        self.received.add(&other.received);
        self.ringing.add(&other.ringing);
        self.lateness.add(&other.lateness);
        self.wrongs.extend(other.wrongs.iter().cloned());
        self.placing_ns = self.placing_ns.max(other.placing_ns);
        self.elapsed_ns = self.elapsed_ns.max(other.elapsed_ns);
        self.open_max += other.open_max;
        self.usage.add(&other.usage);
        self.lives_ns += other.lives_ns;
        self.broken += other.broken;
    }
}

impl Line {
    fn add(&mut self, other: &Line) {
        self.sent += other.sent;
        self.answered += other.answered;
        self.retransmissions += other.retransmissions;
        self.challenged += other.challenged;
        for (reason, count) in &other.failures {
            *self.failures.entry(reason.clone()).or_default() += count;
        }
        self.latency.add(&other.latency);
    }
}

/// Callers that run.
pub struct Uac {
    shards: Vec<Remote<Command>>,
    threads: Vec<JoinHandle<Report>>,
    /// The state of each shard when it ended.
    ended: Arc<[Mutex<Snapshot>]>,
    addresses: Vec<SocketAddr>,
}

/// What a shard is told.
enum Command {
    Cut,
    Rate(f64),
    Snapshot(SyncSender<Snapshot>),
    Stop,
}

impl Uac {
    /// Opens all sockets and starts to call.
    pub fn start(mut config: Config) -> Result<Uac, Failure> {
        if config.cores.is_empty() {
            config.cores.push(None);
        }
        if config.transport.has_tls() && config.tls.is_none() {
            config.tls = Some(tls::Client::new(&config.target.ip().to_string(), None)?);
        }
        let shards = config.cores.len();
        let ended = (0..shards).map(|_| Mutex::default()).collect();
        let mut uac = Uac { shards: Vec::new(), threads: Vec::new(), ended, addresses: Vec::new() };
        let config = Arc::new(config);
        if config.transport.is_reliable() {
            // Connections take their address when they are opened; that it is ours is found out here.
            let endpoint = Endpoint { transport: Transport::Tcp, address: SocketAddr::new(config.from, 0) };
            tcp::listen(endpoint.address).map_err(|error| cannot_bind(endpoint, &error))?;
        }
        let mut workers = Vec::new();
        for number in 0..shards {
            let mut sockets = Vec::new();
            let count = if config.transport == Transport::Udp { config.sockets.clamp(1, 1024) } else { 0 };
            for _ in 0..count {
                let address = SocketAddr::new(config.from, 0);
                let socket =
                    Socket::bind_with(address, PATIENT_BUFFER_OCTETS).map_err(|error| cannot_bind(address, &error))?;
                uac.addresses.push(socket.local());
                sockets.push(socket);
            }
            let waiter = Waiter::new().map_err(cannot_start)?;
            let (remote, inbox) = remote::pair(waiter.waker());
            uac.shards.push(remote);
            workers.push(Worker::new(Arc::clone(&config), number, waiter, inbox, sockets).map_err(cannot_start)?);
        }
        for worker in &mut workers {
            uac.addresses.extend(worker.connect(CONNECT_NS).map_err(cannot_start)?);
        }
        // All start from one moment, a little ahead, so that no shard begins with a debt of the time its thread took.
        let start = now_ns() + 2 * crate::clock::MS_NS;
        for (number, mut worker) in workers.into_iter().enumerate() {
            let core = config.cores[number];
            let ended = Arc::clone(&uac.ended);
            let run = move || {
                if let Some(core) = core {
                    // A core that is not to be had was refused by the command line; where none may be chosen, the kernel does.
                    if let Err(error) = process::pin_this_thread(core) {
                        remark!("warning[uac]: callers' thread {number} is not bound to core {core}: {error}");
                    }
                }
                let born = now_ns();
                let result = worker.run(start);
                if let Err(error) = &result {
                    remark!("error[uac]: callers' thread {number} cannot wait: {error}");
                }
                // Before the worker and its inbox go: whoever asks in vain finds this.
                *ended[number].lock().unwrap_or_else(PoisonError::into_inner) = worker.snapshot();
                Report {
                    usage: usage::of_this_thread(),
                    lives_ns: now_ns() - born,
                    broken: u64::from(result.is_err()),
                    ..worker.end()
                }
            };
            let thread = std::thread::Builder::new().name(format!("uac-{number}")).spawn(run).map_err(cannot_start)?;
            uac.threads.push(thread);
        }
        Ok(uac)
    }

    /// Our own addresses.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The state of this moment; latencies are those since the last call of this. Costs the shards some microseconds.
    pub fn snapshot(&self) -> Snapshot {
        let mut all = Snapshot { finished: self.is_finished(), ..Snapshot::default() };
        for (number, shard) in self.shards.iter().enumerate() {
            let ended = || {
                let mut last = self.ended[number].lock().unwrap_or_else(PoisonError::into_inner);
                let (latency, lateness) = (std::mem::take(&mut last.latency), std::mem::take(&mut last.lateness));
                Snapshot { latency, lateness, ..last.clone() }
            };
            let part = shard.ask(Command::Snapshot).unwrap_or_else(ended);
            all.counts.add(&part.counts);
            all.open += part.open;
            all.sent.add(&part.sent);
            all.received.add(&part.received);
            all.latency.add(&part.latency);
            all.lateness.add(&part.lateness);
        }
        all
    }

    /// Whether every call has ended.
    pub fn is_finished(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Changes the rate, all shards together, in calls a second. 0 pauses.
    pub fn set_rate(&self, rate: f64) {
        let rate = rate / self.shards.len() as f64;
        self.shards.iter().for_each(|shard| shard.tell(Command::Rate(rate)));
    }

    /// Places no more calls. Those that are open may go on, for at most [`Config::drain_ns`].
    pub fn stop(&self) {
        self.shards.iter().for_each(|shard| shard.tell(Command::Stop));
    }

    /// Places no more calls and leaves those that are open where they are.
    pub fn cut(&self) {
        self.shards.iter().for_each(|shard| shard.tell(Command::Cut));
    }

    /// Waits until every call has ended and says what there was.
    pub fn join(mut self) -> Report {
        let mut report = Report::default();
        for thread in std::mem::take(&mut self.threads) {
            let broken = |_| Report { broken: 1, ..Report::default() };
            report.add(&thread.join().unwrap_or_else(broken));
        }
        report
    }
}

impl Drop for Uac {
    fn drop(&mut self) {
        self.cut();
    }
}

fn cannot_start(error: io::Error) -> Failure {
    Failure::new(Exit::Environment, "uac", format!("a thread cannot start: {error}"))
}

/// The rows of a report that is still empty, and for each scenario where its steps' rows are.
fn lines(mix: &Mix) -> (Vec<Line>, Vec<Vec<usize>>) {
    let (mut lines, mut places) = (Vec::new(), Vec::new());
    for scenario in mix.scenarios() {
        let (mut of_scenario, first) = (Vec::new(), lines.len());
        for (index, step) in scenario.steps.iter().enumerate() {
            of_scenario.push(lines.len());
            let (name, method, expect) = match step {
                Step::Pause(_) => continue,
                Step::Receive(receive) => (&receive.name, receive.method, 0),
                Step::Send(send) => (&send.name, send.method, send.expect),
            };
            // Reports add up what has one name.
            let (mut step, mut number) = (name.clone(), 1);
            while lines[first..].iter().any(|line: &Line| line.step == step) {
                number += 1;
                step = format!("{name} {number}").into();
            }
            lines.push(Line {
                scenario: scenario.name.clone(),
                step,
                method: method.name().into(),
                expect,
                opens: index == 0,
                ..Line::default()
            });
        }
        places.push(of_scenario);
    }
    (lines, places)
}
