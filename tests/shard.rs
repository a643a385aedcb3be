//! A shard whose kernel misbehaves: every message is accounted for, whatever a send or a receive comes back with.

#[path = "support/authority.rs"]
mod authority;
mod support;

use authority::Authority;
use socket2::SockRef;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{BACKENDS, CLIENT, address, backend, pool, settings, tables};
use viahop::dataplane::counters::{Ended, Handshake, ShardCounters};
use viahop::dataplane::dispatch::EgressPorts;
use viahop::dataplane::limits::{BATCH, OVERLOAD_STANDING_MS, SEND_BACKLOG_MAX};
use viahop::dataplane::scan::Scanner;
use viahop::dataplane::tables::{BackendParts, PoolParts, Reach, Tables};
use viahop::dataplane::transport::Transport;
use viahop::dataplane::verdict::DropReason;
use viahop::link::{ControlEnd, ShardEnd, Signal, link};
use viahop::shard::io::Io;
use viahop::shard::run::Shard;
use viahop::shard::streams::{Listening, StreamLimits, Streams};
use viahop::sys::errors::Unreachable;
use viahop::sys::mmsg::{Outgoing, ReceiveBatch};
use viahop::sys::poll::Poller;
use viahop::tls::session::{CARRIED, Session};
use viahop::tls::{Certificate, Clienthood, Credentials, Server, Trust};

const LISTENER: usize = 0;
const EGRESS: usize = 1;
const EAGAIN: i32 = 11;
const EPERM: i32 = 1;
const EMSGSIZE: i32 = 90;
const ENOBUFS: i32 = 105;
const ECONNREFUSED: i32 = 111;
const EADDRNOTAVAIL: i32 = 99;
/// The number under which a shard's connections begin to become ready.
const FIRST: u32 = 10;

/// A network made of queues, and a script of what goes wrong with sending.
#[derive(Default)]
struct Network {
    arriving: [VecDeque<(Vec<u8>, SocketAddr)>; 2],
    /// What the next sends do; without an entry, all is taken.
    script: VecDeque<Send>,
    sent: Vec<(usize, SocketAddr, Vec<u8>)>,
    /// How many were to be sent in each call.
    sends: Vec<usize>,
    reports: VecDeque<Unreachable>,
    drops: u64,
    makes_runs: bool,
    /// Octets of each receive buffer in use, of 1,000.
    queued: u64,
}

#[derive(Clone, Copy, Debug)]
enum Send {
    Take(usize),
    Fail(i32),
}

impl Io for Network {
    fn receive(&mut self, socket: usize, into: &mut ReceiveBatch) -> io::Result<usize> {
        let count = self.arriving[socket].len().min(into.capacity());
        for (slot, (octets, from)) in self.arriving[socket].drain(..count).enumerate() {
            into.put(slot, &octets, from);
        }
        Ok(count)
    }

    fn send(&mut self, socket: usize, datagrams: &[Outgoing<'_>]) -> io::Result<usize> {
        self.sends.push(datagrams.len());
        let count = match self.script.pop_front() {
            Some(Send::Fail(code)) => return Err(io::Error::from_raw_os_error(code)),
            Some(Send::Take(count)) => count.clamp(1, datagrams.len()),
            None => datagrams.len(),
        };
        self.sent.extend(datagrams[..count].iter().map(|one| (socket, one.to, one.parts.concat())));
        Ok(count)
    }

    fn allow_runs(&mut self, _: bool) {}

    fn makes_runs(&self) -> bool {
        self.makes_runs
    }

    fn next_error(&mut self, _socket: usize) -> Option<Unreachable> {
        self.reports.pop_front()
    }

    fn queued(&mut self, _socket: usize) -> (u64, u64) {
        (self.queued, 1000)
    }

    fn drops(&mut self, _socket: usize) -> u64 {
        self.drops
    }
}

struct Bench {
    shard: Shard<Network>,
    control: ControlEnd,
    calls: u32,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(tables())
    }

    fn with(tables: Tables) -> Bench {
        let (control, mut ends) = link(vec![Box::new(|| ())], 1, tables);
        Bench::of(control, ends.remove(0))
    }

    fn of(control: ControlEnd, end: ShardEnd) -> Bench {
        let egress = EgressPorts { v4: Some(40001), v6: None };
        let shard = Shard::new(0, Network::default(), 1, egress, Scanner::best(), end);
        Bench { shard, control, calls: 0 }
    }

    /// Gives the shard connections without a listener of its own, and nothing to speak TLS with.
    fn connecting(mut self, limits: StreamLimits) -> Bench {
        let poller = Poller::new().unwrap();
        let streams = Streams::new(0, poller, FIRST, Vec::new(), limits, Arc::default()).unwrap();
        self.shard = self.shard.with_streams(streams);
        self
    }

    /// Gives the shard, which is the first, a listener for connections, and returns its address.
    fn listen(self, transport: Transport, limits: StreamLimits, credentials: Credentials) -> (Bench, SocketAddr) {
        self.listen_as(0, transport, limits, credentials)
    }

    /// The same, where the shard has this number.
    fn listen_as(
        mut self,
        number: usize,
        transport: Transport,
        limits: StreamLimits,
        credentials: Credentials,
    ) -> (Bench, SocketAddr) {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let at = socket.local_addr().unwrap();
        let listening = vec![Listening { index: 0, transport, origins: Arc::default(), socket, tells_local: false }];
        let credentials = Arc::new(Arc::new(credentials).into());
        let streams = Streams::new(number, Poller::new().unwrap(), FIRST, listening, limits, credentials).unwrap();
        self.shard = self.shard.with_streams(streams);
        (self, at)
    }

    /// A turn in which the connections, or their listener, with these numbers are ready.
    fn turn_streams(&mut self, numbers: impl IntoIterator<Item = u32>) {
        self.shard.turn_streams(numbers.into_iter(), false);
    }

    fn counters(&self) -> Arc<ShardCounters> {
        self.control.counters[0].clone()
    }

    /// A request of a call of its own.
    fn request(&mut self) -> Vec<u8> {
        self.calls += 1;
        request_of_call(self.calls)
    }

    fn arrive(&mut self, octets: Vec<u8>) {
        self.shard.io_mut().arriving[LISTENER].push_back((octets, address(CLIENT)));
    }

    fn turn(&mut self) {
        self.shard.turn([LISTENER, EGRESS].into_iter());
    }

    /// How many of the messages that left since are answers of this status to clients.
    fn answers(&mut self, status: u16) -> usize {
        let start = format!("SIP/2.0 {status} ");
        let sent = std::mem::take(&mut self.shard.io_mut().sent);
        sent.iter().filter(|(socket, _, octets)| *socket == LISTENER && octets.starts_with(start.as_bytes())).count()
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.counters().dropped[reason as usize].get()
    }

    fn assert_balanced(&self) {
        let counters = self.counters();
        let out = counters.forwarded.get() + counters.replied_total() + counters.dropped_total();
        assert_eq!(counters.received_total(), out + counters.waiting.get());
    }

    /// Which calls' messages left, and for where, in the order in which they did.
    fn sent(&mut self) -> Vec<(SocketAddr, u32)> {
        let sent = std::mem::take(&mut self.shard.io_mut().sent);
        let call = |octets: &[u8]| {
            let text = String::from_utf8_lossy(octets);
            let call = text.split("Call-ID: call-").nth(1).unwrap();
            call.split('\r').next().unwrap().parse().unwrap()
        };
        sent.iter().map(|(_, to, octets)| (*to, call(octets))).collect()
    }

    fn sent_calls(&mut self) -> Vec<u32> {
        self.sent().into_iter().map(|(_, call)| call).collect()
    }
}

fn request_of_call(call: u32) -> Vec<u8> {
    format!(
        "INVITE sip:b@example.net SIP/2.0\r\nVia: SIP/2.0/UDP {CLIENT};branch=z9hG4bK{call};rport\r\n\
         Max-Forwards: 70\r\nFrom: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\n\
         Call-ID: call-{call}\r\nCSeq: 1 INVITE\r\nContent-Length: 0\r\n\r\n"
    )
    .into_bytes()
}

#[test]
fn messages_leave_in_order_however_few_the_kernel_takes_at_a_time() {
    let mut bench = Bench::new();
    for _ in 0..70 {
        let request = bench.request();
        bench.arrive(request);
    }
    bench.shard.io_mut().script = (0..40).map(|i| Send::Take(1 + i % 3)).collect();
    for _ in 0..3 {
        bench.turn();
    }
    assert_eq!(bench.sent_calls(), (1..=70).collect::<Vec<_>>());
    assert_eq!(bench.counters().forwarded.get(), 70);
    bench.assert_balanced();
}

#[test]
fn where_runs_are_made_a_batch_leaves_by_destination_and_to_each_in_order() {
    let mut bench = Bench::new();
    bench.shard.io_mut().makes_runs = true;
    for _ in 0..70 {
        let request = bench.request();
        bench.arrive(request);
    }
    // What waits and what is lost is counted as what it is, too.
    bench.shard.io_mut().script = [Send::Take(5), Send::Fail(EPERM), Send::Take(3), Send::Fail(EAGAIN)].into();
    for _ in 0..3 {
        bench.turn();
    }
    let sent = bench.sent();
    let batches = [&sent[..31], &sent[31..63], &sent[63..]];
    assert!(batches.iter().all(|batch| batch.chunk_by(|a, b| a.0 == b.0).count() <= BACKENDS.len()), "{sent:?}");
    let mut sorted = sent.clone();
    sorted.sort_by_key(|(to, _)| *to);
    assert!(sorted.is_sorted(), "{sent:?}");
    assert_eq!(sent.iter().map(|(_, call)| call).collect::<BTreeSet<_>>().len(), 69);
    assert_eq!((bench.counters().forwarded.get(), bench.dropped(DropReason::SendFailed)), (69, 1));
    bench.assert_balanced();
}

#[test]
fn what_finds_the_send_buffer_full_waits_and_later_messages_queue_up_behind_it() {
    let mut bench = Bench::new();
    bench.shard.io_mut().script = [Send::Take(2), Send::Fail(EAGAIN)].into();
    for _ in 0..5 {
        let request = bench.request();
        bench.arrive(request);
    }
    bench.shard.turn([LISTENER].into_iter());
    assert_eq!(bench.sent_calls(), [1, 2]);
    assert_eq!(bench.counters().waiting.get(), 3);
    assert!(bench.shard.is_waiting(EGRESS));
    bench.assert_balanced();

    let request = bench.request();
    bench.arrive(request);
    bench.shard.turn([LISTENER].into_iter());
    assert!(bench.sent_calls().is_empty());
    bench.shard.turn([EGRESS].into_iter());
    assert_eq!(bench.sent_calls(), [3, 4, 5, 6]);
    assert_eq!(bench.counters().waiting.get(), 0);
    assert!(!bench.shard.is_waiting(EGRESS));
    bench.assert_balanced();
}

#[test]
fn the_backlog_is_bounded_and_what_does_not_fit_is_counted() {
    let mut bench = Bench::new();
    bench.shard.io_mut().script = [Send::Fail(EAGAIN)].into();
    let large = |call: u32| {
        let mut request = request_of_call(call);
        let at = request.len() - "Content-Length: 0\r\n\r\n".len();
        request.truncate(at);
        request.extend_from_slice(format!("Content-Length: 50000\r\n\r\n{}", "x".repeat(50_000)).as_bytes());
        request
    };
    for call in 0..32 {
        bench.arrive(large(call));
    }
    bench.shard.turn([LISTENER].into_iter());
    let waiting = bench.counters().waiting.get();
    let held = waiting as usize;
    assert!(held * 50_000 <= SEND_BACKLOG_MAX && (held + 1) * 51_000 > SEND_BACKLOG_MAX, "{held}");
    assert_eq!(bench.dropped(DropReason::SendBacklogFull), 32 - waiting);
    bench.assert_balanced();
    bench.shard.io_mut().script = [Send::Take(3), Send::Fail(EAGAIN)].into();
    bench.shard.finish();
    assert_eq!(bench.counters().waiting.get(), 0);
    assert_eq!(bench.counters().forwarded.get(), 3);
    bench.assert_balanced();
}

#[test]
fn a_refusal_is_about_an_earlier_message_and_this_one_is_sent_again() {
    let mut bench = Bench::new();
    let request = bench.request();
    bench.arrive(request);
    let gone = Unreachable { to: address(BACKENDS[0]), code: ECONNREFUSED };
    bench.shard.io_mut().reports.push_back(gone);
    bench.shard.io_mut().script = [Send::Fail(ECONNREFUSED)].into();
    bench.shard.turn([LISTENER].into_iter());
    assert_eq!(bench.sent_calls(), [1]);
    assert_eq!(bench.control.signals.try_recv(), Ok(Signal::Unreachable { to: gone.to, code: gone.code }));
    bench.assert_balanced();
}

#[test]
fn a_backend_that_refused_is_passed_over_from_the_next_message_on() {
    let mut bench = Bench::new();
    for call in 0..32 {
        bench.arrive(request_of_call(call));
    }
    bench.turn();
    let first: Vec<_> = bench.shard.io_mut().sent.drain(..).map(|(_, to, _)| to).collect();
    let gone = first[0];
    bench.shard.io_mut().reports.push_back(Unreachable { to: gone, code: ECONNREFUSED });
    bench.turn();
    for call in 0..32 {
        bench.arrive(request_of_call(call));
    }
    bench.turn();
    let second: Vec<_> = bench.shard.io_mut().sent.drain(..).map(|(_, to, _)| to).collect();
    assert!(!second.contains(&gone));
    for (before, after) in first.iter().zip(&second) {
        assert!(before == after || *before == gone, "the calls of other backends stay where they are");
    }
    bench.assert_balanced();
}

#[test]
fn a_backend_behind_a_path_of_shorter_packets_keeps_its_calls() {
    let mut bench = Bench::new();
    let mut send_all = || {
        (0..32).for_each(|call| bench.arrive(request_of_call(call)));
        bench.turn();
        let sent: Vec<_> = bench.shard.io_mut().sent.drain(..).map(|(_, to, _)| to).collect();
        bench.shard.io_mut().reports.push_back(Unreachable { to: sent[0], code: EMSGSIZE });
        bench.turn();
        sent
    };
    assert_eq!(send_all(), send_all());
    assert!(bench.control.signals.try_recv().is_err());
    bench.assert_balanced();
}

/// Whoever is suspected gets nothing more that could fail, so nobody would be told a second time.
#[test]
fn a_backend_is_passed_over_only_when_the_control_plane_knows_to_probe_it() {
    let (control, mut ends) = link(vec![Box::new(|| ()), Box::new(|| ())], 1, tables());
    let mut bench = Bench::of(control, ends.remove(0));
    let elsewhere = Signal::Unreachable { to: address(CLIENT), code: ECONNREFUSED };
    for _ in 0..1000 {
        ends[0].signal(elsewhere.clone());
    }
    let gone = Unreachable { to: address(BACKENDS[0]), code: ECONNREFUSED };
    let refuse = |bench: &mut Bench| {
        bench.shard.io_mut().reports.push_back(gone);
        bench.turn();
        for call in 0..32 {
            bench.arrive(request_of_call(call));
        }
        bench.turn();
        bench.sent().iter().filter(|(to, _)| *to == gone.to).count()
    };
    assert!(refuse(&mut bench) > 0, "nobody knows, so it is tried");
    while bench.control.signals.try_recv().is_ok_and(|signal| signal == elsewhere) {}
    assert_eq!(refuse(&mut bench), 0);
    let told = Signal::Unreachable { to: gone.to, code: gone.code };
    assert_eq!(bench.control.signals.try_recv(), Ok(told));
    // That is enough: it is known.
    refuse(&mut bench);
    assert!(bench.control.signals.try_recv().is_err());
    bench.assert_balanced();
}

#[test]
fn a_message_that_cannot_be_sent_is_counted_and_the_others_go() {
    let mut bench = Bench::new();
    for _ in 0..4 {
        let request = bench.request();
        bench.arrive(request);
    }
    bench.shard.io_mut().script = [Send::Take(1), Send::Fail(EPERM)].into();
    bench.turn();
    assert_eq!(bench.sent_calls(), [1, 3, 4]);
    assert_eq!(bench.dropped(DropReason::SendFailed), 1);
    bench.assert_balanced();
}

#[test]
fn a_message_that_a_full_queue_of_a_card_dropped_keeps_no_other_waiting() {
    let mut bench = Bench::new();
    (1..=4).for_each(|call| bench.arrive(request_of_call(call)));
    bench.shard.io_mut().script = [Send::Take(1), Send::Fail(ENOBUFS)].into();
    bench.turn();
    assert_eq!(bench.sent_calls(), [1, 3, 4]);
    assert!(!bench.shard.is_waiting(EGRESS));
    assert_eq!(bench.dropped(DropReason::SendBacklogFull), 1);
    assert!(bench.control.signals.try_recv().is_err(), "it says nothing of the backend");
    bench.assert_balanced();
}

#[test]
fn datagrams_the_kernel_cut_are_counted_and_not_read() {
    let mut bench = Bench::new();
    let mut request = bench.request();
    request.resize(70_000, b'x');
    bench.arrive(request);
    bench.turn();
    assert_eq!(bench.dropped(DropReason::Truncated), 1);
    bench.assert_balanced();
}

/// The ways out of what is sent: a forwarded request leaves by the egress socket, an answer of ours by the listener.
fn sent_by(bench: &mut Bench, socket: usize) -> usize {
    bench.shard.io_mut().sent.extract_if(.., |sent| sent.0 == socket).count()
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the shard reads the clock itself")]
fn while_the_receive_buffer_stands_full_new_calls_are_refused_and_what_belongs_to_calls_goes_on() {
    let mut bench = Bench::new();
    bench.shard.io_mut().queued = 1000;
    let start = Instant::now();
    let (mut before, mut forwarded) = (0, 0);
    while bench.counters().replied_total() == 0 {
        assert!(start.elapsed() < Duration::from_secs(5), "never refused");
        for _ in 0..BATCH {
            let request = bench.request();
            bench.arrive(request);
        }
        before = forwarded;
        bench.turn();
        forwarded = bench.counters().forwarded.get();
    }
    // The shard counts whole milliseconds: what begins late in one has stood for a part of it less.
    assert!(start.elapsed() > Duration::from_millis(OVERLOAD_STANDING_MS - 1), "a burst was taken for overload");
    assert_eq!(forwarded, before, "of the batch that was refused some went on");
    bench.shard.io_mut().sent.clear();
    for number in 0..BATCH as u32 {
        let bye = String::from_utf8(request_of_call(number + 1))
            .unwrap()
            .replace("INVITE", "BYE")
            .replace("To: <sip:b@example.net>", "To: <sip:b@example.net>;tag=2");
        bench.arrive(bye.into_bytes());
    }
    bench.turn();
    assert_eq!((sent_by(&mut bench, EGRESS), sent_by(&mut bench, LISTENER)), (BATCH, 0));
    // What repeats INVITEs that went on.
    (0..BATCH as u32).for_each(|number| bench.arrive(request_of_call(number + 1)));
    bench.turn();
    assert_eq!((sent_by(&mut bench, EGRESS), sent_by(&mut bench, LISTENER)), (BATCH, 0));
    // A batch that is not full has emptied the buffer.
    let request = bench.request();
    bench.arrive(request);
    bench.turn();
    assert_eq!((sent_by(&mut bench, EGRESS), sent_by(&mut bench, LISTENER)), (1, 0));
    bench.shard.ask_for_drops();
    assert_eq!(bench.counters().shed.get(), BATCH as u64);
    bench.assert_balanced();
}

#[test]
fn drops_of_the_sockets_are_seen() {
    let mut bench = Bench::new();
    bench.shard.io_mut().drops = 7;
    bench.shard.ask_for_drops();
    let counters = bench.counters();
    assert_eq!([counters.socket_drops[0].get(), counters.socket_drops[1].get()], [7, 7]);
}

/// 2,000 rounds of traffic through a kernel that fails in every way it can, in an order that the seed decides.
#[test]
fn what_many_connections_bring_leaves_in_datagrams_with_one_call_for_32() {
    const CLIENTS: u32 = 40;
    let (mut bench, at) = Bench::new().listen(Transport::Tcp, StreamLimits::default(), Credentials::default());
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| TcpStream::connect(at).unwrap()).collect();
    bench.turn_streams([FIRST]);
    let numbers = FIRST + 1..FIRST + 1 + CLIENTS;
    let all_write = |bench: &mut Bench, clients: &mut [TcpStream]| {
        for client in clients {
            // Longer than its head, so that the rest of it comes from where it was read.
            let request =
                String::from_utf8(bench.request()).unwrap().replace("Length: 0\r\n\r\n", "Length: 600\r\n\r\n");
            client.write_all(&[request.as_bytes(), &[b'x'; 600]].concat()).unwrap();
        }
    };

    all_write(&mut bench, &mut clients);
    bench.turn_streams(numbers.clone());
    assert_eq!(std::mem::take(&mut bench.shard.io_mut().sends), [32, 8]);
    let sent = &bench.shard.io_mut().sent;
    assert!(sent.iter().all(|(socket, _, octets)| *socket == EGRESS && octets.ends_with(&[b'x'; 600])));
    let mut calls = bench.sent_calls();
    calls.sort_unstable();
    assert_eq!(calls, (1..=CLIENTS).collect::<Vec<_>>());
    bench.assert_balanced();

    // The kernel takes five of them, and nothing more until the next turn.
    all_write(&mut bench, &mut clients);
    bench.shard.io_mut().script = [Send::Take(5), Send::Fail(EAGAIN)].into();
    bench.turn_streams(numbers);
    assert_eq!(bench.counters().waiting.get(), 35);
    bench.assert_balanced();
    bench.turn();
    let mut calls = bench.sent_calls();
    calls.sort_unstable();
    assert_eq!(calls, (CLIENTS + 1..=2 * CLIENTS).collect::<Vec<_>>());
    assert_eq!(bench.counters().forwarded.get(), 80);
    bench.assert_balanced();
}

/// Two hundred strangers begin messages of 60,000 octets and let them be, and somebody's INVITE comes in two pieces.
#[test]
fn messages_that_are_not_whole_hold_what_all_may_hold_and_not_more() {
    let limits = StreamLimits { held: 1 << 20, ..StreamLimits::default() };
    let (mut bench, at) = Bench::new().listen(Transport::Tcp, limits, Credentials::default());
    let mut connect = || {
        let connection = TcpStream::connect(at).unwrap();
        bench.turn_streams([FIRST]);
        connection
    };
    let (strangers, mut client): (Vec<_>, _) = ((0..200).map(|_| connect()).collect(), connect());
    let numbers = FIRST + 1..=FIRST + 201;
    let request = bench.request();
    let beginning = String::from_utf8(request.clone()).unwrap().replace("Length: 0", "Length: 65000");
    for mut stranger in &strangers {
        stranger.write_all(&[beginning.as_bytes(), &[b'x'; 60_000]].concat()).unwrap();
    }
    client.write_all(&request[..200]).unwrap();
    bench.turn_streams(numbers.clone());
    client.write_all(&request[200..]).unwrap();
    bench.turn_streams(numbers);
    assert_eq!(bench.sent_calls(), [1]);

    let ended = bench.counters().streams.ended[Ended::Limit as usize].get();
    assert_eq!(ended, 200 - (1 << 20) / (beginning.len() as u64 + 60_000));
    bench.assert_balanced();
}

/// Tables of this generation, with one backend that is reached so.
fn tables_towards(generation: u64, server: &TcpListener, transport: Transport) -> Tables {
    let at = server.local_addr().unwrap().to_string();
    let reach = Reach { transport, ..Reach::default() };
    let parts = PoolParts { backends: vec![BackendParts { reach, ..backend(&at) }], ..pool(&[]) };
    Tables::new(generation, settings(), vec![parts], None)
}

/// In a reload credentials are swapped before tables, and these may come while a connection is there.
#[test]
fn a_backend_that_speaks_tls_gets_nothing_in_plain_text_whatever_credentials_there_are() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bench = Bench::with(tables_towards(1, &server, Transport::Tcp)).connecting(StreamLimits::default());
    bench.arrive(request_of_call(1));
    bench.turn();
    let (mut plain, _) = server.accept().unwrap();
    bench.shard.turn_streams(FIRST..=FIRST, false);
    let mut room = [0; 4096];
    let len = plain.read(&mut room).unwrap();
    assert!(String::from_utf8_lossy(&room[..len]).contains("Call-ID: call-1\r\n"));

    bench.control.shared.tables.store(Arc::new(tables_towards(2, &server, Transport::Tls)));
    for call in 2..4 {
        bench.arrive(request_of_call(call));
        bench.turn();
        bench.shard.turn_streams(FIRST..=FIRST, false);
        assert_eq!(bench.answers(503), 1);
    }
    server.set_nonblocking(true).unwrap();
    for mut connection in std::iter::from_fn(|| server.accept().ok()).map(|(connection, _)| connection).chain([plain]) {
        let mut heard = Vec::new();
        // However it ended.
        connection.read_to_end(&mut heard).ok();
        assert_eq!(String::from_utf8_lossy(&heard), "");
    }
    bench.assert_balanced();
}

/// A restart with fewer shards, or another node that has fewer: nobody there has the connection. A proxy whose connection carried calls lost
/// all that their servers asked, BYE too, for as long as they were up.
//= RFC 3261 section 18.2.2
//# If that connection is no longer open, the server SHOULD open
//# a connection to the IP address in the "received" parameter, if
//# present, using the port in the "sent-by" value, or the default
//# port for that transport, if no port is specified.
#[test]
fn what_is_for_a_connection_of_a_shard_that_there_is_not_is_answered_430_or_takes_another() {
    let mut settings = settings();
    settings.listeners[0].transport = Transport::Tcp;
    let tables = Tables::new(1, settings, vec![pool(&BACKENDS)], None);
    let reachable = TcpListener::bind("127.0.0.1:0").unwrap();

    // The second of two shards has the client's connection, and writes that into the request.
    let (control, mut ends) = link(vec![Box::new(|| ()), Box::new(|| ())], 1, tables.clone());
    let bench = Bench::of(control, ends.remove(1));
    let (mut before, at) = bench.listen_as(1, Transport::Tcp, StreamLimits::default(), Credentials::default());
    let mut client = TcpStream::connect(at).unwrap();
    before.shard.turn_streams(FIRST..=FIRST, false);
    let invite = String::from_utf8(request_of_call(1)).unwrap();
    let via = format!("Via: SIP/2.0/TCP {};", reachable.local_addr().unwrap());
    client.write_all(invite.replace(&format!("Via: SIP/2.0/UDP {CLIENT};"), &via).as_bytes()).unwrap();
    before.shard.turn_streams(FIRST + 1..=FIRST + 1, false);
    let (_, server, sent) = before.shard.io_mut().sent.remove(0);
    let sent = String::from_utf8(sent).unwrap();
    let rows = |name: &str| sent.split_inclusive("\r\n").filter(|row| row.starts_with(name)).collect::<String>();

    let mut after = Bench::with(tables).connecting(StreamLimits::default());
    let from_server = |bench: &mut Bench, message: String| {
        bench.shard.io_mut().arriving[EGRESS].push_back((message.into_bytes(), server));
        bench.turn();
    };
    let dialog = "Call-ID: call-1\r\nContent-Length: 0\r\n";
    let request = |contact: SocketAddr, tag: &str| {
        format!(
            "BYE sip:a@{contact};transport=tcp SIP/2.0\r\nVia: SIP/2.0/UDP {server};branch=z9hG4bKbye\r\nMax-Forwards: 70\r\n\
             {}From: <sip:b@example.net>;tag=2\r\nTo: <sip:a@example.net>{tag}\r\nCSeq: 1 BYE\r\n{dialog}\r\n",
            rows("Record-Route: ").replace("Record-Route", "Route")
        )
    };
    let at = reachable.local_addr().unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Behind a NAT; without a dialog; not to be reached.
    for (contact, tag) in [(address(CLIENT), ";tag=1"), (at, ""), (nobody, ";tag=1")] {
        from_server(&mut after, request(contact, tag));
        after.shard.turn_streams(std::iter::empty(), false);
        after.shard.turn_streams(FIRST..=FIRST, false);
        let (_, to, answer) = after.shard.io_mut().sent.remove(0);
        assert_eq!(to, server);
        assert!(answer.starts_with(b"SIP/2.0 430 "), "{contact}{tag}: {}", String::from_utf8_lossy(&answer));
    }
    from_server(&mut after, request(at, ";tag=1"));
    after.shard.turn_streams(std::iter::empty(), false);
    assert!(after.shard.io_mut().sent.is_empty());
    let (mut another, _) = reachable.accept().unwrap();
    after.shard.turn_streams(FIRST..=FIRST, false);
    let mut room = [0; 4096];
    let len = another.read(&mut room).unwrap();
    assert!(room[..len].starts_with(b"BYE "), "{}", String::from_utf8_lossy(&room[..len]));

    let ok = format!(
        "SIP/2.0 200 OK\r\n{}From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>;tag=2\r\nCSeq: 1 INVITE\r\n{dialog}\r\n",
        rows("Via: ")
    );
    from_server(&mut after, ok);
    after.shard.turn_streams(FIRST..=FIRST, false);
    let len = another.read(&mut room).unwrap();
    assert!(room[..len].starts_with(b"SIP/2.0 200 OK\r\n"));
    assert_eq!(after.dropped(DropReason::HandoffFull), 0);
    after.assert_balanced();
}

/// A call that a server places down the connection it gets its requests by, and that is answered when another has taken its place.
#[test]
fn a_response_to_a_server_takes_the_connection_that_its_requests_take() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let tables = tables_towards(1, &server, Transport::Tcp);
    let mut bench = Bench::with(tables).connecting(StreamLimits::default());
    bench.arrive(request_of_call(1));
    bench.turn();
    let (mut before, at) = (server.accept().unwrap().0, server.local_addr().unwrap());
    bench.turn_streams([FIRST]);
    let invite = String::from_utf8(request_of_call(2)).unwrap();
    let invite = invite.replace(&format!("UDP {CLIENT};"), &format!("TCP {at};")).replace("b@example.net", CLIENT);
    before.write_all(invite.as_bytes()).unwrap();
    bench.turn_streams([FIRST]);
    let (_, phone, sent) = bench.shard.io_mut().sent.remove(0);
    assert_eq!(phone, address(CLIENT));
    drop(before);
    bench.turn_streams([FIRST]);

    let sent = String::from_utf8(sent).unwrap();
    bench.arrive(sent.replacen(&format!("INVITE sip:{CLIENT} SIP/2.0"), "SIP/2.0 200 OK", 1).into_bytes());
    bench.turn();
    let (mut after, _) = server.accept().unwrap();
    bench.turn_streams([FIRST]);
    let mut room = [0; 4096];
    let len = after.read(&mut room).unwrap();
    assert!(room[..len].starts_with(b"SIP/2.0 200 OK\r\n"));
    bench.assert_balanced();
}

#[test]
fn a_backend_to_which_no_connection_can_be_had_loses_one_message_and_another_gets_the_rest() {
    let at = address(BACKENDS[0]);
    let reach = Reach { transport: Transport::Tcp, ..Reach::default() };
    let over_tcp = BackendParts { reach, ..backend(BACKENDS[0]) };
    let parts = PoolParts { backends: vec![over_tcp, backend(BACKENDS[1])], ..pool(&[]) };
    // Nobody has this address to connect from, so each attempt fails at once; while none may be made, the same happens.
    let limits = StreamLimits { egress_v4: Some([192, 0, 2, 1].into()), ..StreamLimits::default() };
    let mut bench = Bench::with(Tables::new(1, settings(), vec![parts], None)).connecting(limits);
    for _ in 0..2 {
        for _ in 0..32 {
            let request = bench.request();
            bench.arrive(request);
        }
        bench.turn();
        bench.shard.turn_streams(std::iter::empty(), false);
    }
    assert_eq!(bench.control.signals.try_recv(), Ok(Signal::Unreachable { to: at, code: EADDRNOTAVAIL }));
    assert!(bench.control.signals.try_recv().is_err());
    assert_eq!(bench.shard.io_mut().sent.iter().filter(|(_, to, _)| *to == address(BACKENDS[1])).count(), 63);
    assert_eq!(bench.answers(503), 1);
    bench.assert_balanced();
}

#[test]
fn of_more_pings_than_anybody_needs_some_are_answered_and_all_are_counted() {
    const PINGS: u64 = 5000;
    const ANSWERED: u64 = 1024;
    let (mut bench, at) = Bench::new().listen(Transport::Tcp, StreamLimits::default(), Credentials::default());
    let mut client = TcpStream::connect(at).unwrap();
    client.write_all(&b"\r\n\r\n".repeat(PINGS as usize)).unwrap();
    bench.turn_streams([FIRST]);
    bench.turn_streams([FIRST + 1]);
    client.read_exact(&mut [0; 2 * ANSWERED as usize]).unwrap();
    assert_eq!(bench.counters().replied_total(), ANSWERED);
    assert_eq!(bench.dropped(DropReason::SendBacklogFull), PINGS - ANSWERED);
    bench.assert_balanced();

    client.write_all(b"\r\n\r\n").unwrap();
    bench.turn_streams([FIRST + 1]);
    client.read_exact(&mut [0; 2]).unwrap();
    assert_eq!(bench.counters().replied_total(), ANSWERED + 1);
    bench.assert_balanced();
}

#[test]
fn what_was_whole_is_answered_though_no_sip_follows_in_the_same_read() {
    let (mut bench, at) = Bench::new().listen(Transport::Tcp, StreamLimits::default(), Credentials::default());
    for round in 1..=2 {
        let mut client = TcpStream::connect(at).unwrap();
        let refused = String::from_utf8(bench.request()).unwrap().replace("Max-Forwards: 70", "Max-Forwards: 0");
        client.write_all(&[b"\r\n\r\n", refused.as_bytes(), b"\0 no SIP"].concat()).unwrap();
        bench.turn_streams([FIRST]);
        bench.turn_streams([FIRST + 1]);
        let mut heard = String::new();
        client.read_to_string(&mut heard).unwrap();
        assert!(heard.starts_with("\r\nSIP/2.0 483 ") && heard.ends_with("\r\n\r\n"), "{heard}");
        assert_eq!(bench.counters().streams.ended[Ended::BadFrame as usize].get(), round);
        assert_eq!(bench.dropped(DropReason::ConnectionFailed), 0);
        bench.assert_balanced();
    }
}

/// A shard that listens for TLS, where, and what its clients need.
fn sealed(limits: StreamLimits) -> (Bench, SocketAddr, Clienthood) {
    let authority = Authority::new("ca");
    let issued = authority.issue(&["example.net"]);
    let certificate = Certificate::read(issued.certificate.as_bytes(), issued.key.as_bytes()).unwrap();
    let servers = vec![Some(Server::new(vec![certificate], None).unwrap())];
    let clienthood = Clienthood::new(Trust::read(authority.pem().as_bytes()).unwrap(), None).unwrap();
    let (bench, at) = Bench::new().listen(Transport::Tls, limits, Credentials { servers, ..Credentials::default() });
    (bench, at, clienthood)
}

#[test]
fn what_was_whole_is_forwarded_though_no_tls_follows_in_the_same_read() {
    let (mut bench, at, clienthood) = sealed(StreamLimits::default());
    let mut client = TcpStream::connect(at).unwrap();
    let mut session = Session::connect(&clienthood.towards("example.net").unwrap()).unwrap();
    bench.turn_streams([FIRST]);
    let say = |bench: &mut Bench, session: &mut Session, client: &mut TcpStream| {
        session.write_to(client).unwrap();
        bench.turn_streams([FIRST + 1]);
        bench.shard.step(true);
    };
    while session.is_handshaking() {
        say(&mut bench, &mut session, &mut client);
        let mut room = vec![0; 2 * CARRIED];
        let count = client.read(&mut room[CARRIED..]).unwrap();
        session.open(&mut room, CARRIED, count).unwrap();
    }
    say(&mut bench, &mut session, &mut client);

    let mut octets = Vec::new();
    session.seal(&bench.request());
    session.write_to(&mut octets).unwrap();
    octets.extend(b"\x17\x03\x03\x00\x20 a record of 32 octets, made up.");
    client.write_all(&octets).unwrap();
    bench.turn_streams([FIRST + 1]);
    assert_eq!(bench.sent_calls(), [1]);
    assert_eq!(bench.counters().streams.ended[Ended::Tls as usize].get(), 1);
    bench.assert_balanced();
}

/// Linux hands out what came before a reset, and a ClientHello costs us a signature.
#[test]
fn who_says_hello_and_resets_the_connection_gets_no_step_of_a_handshake() {
    let limits = StreamLimits { handshakes: 1, ..StreamLimits::default() };
    let (mut bench, at, clienthood) = sealed(limits);
    for round in 1..=3 {
        let mut client = TcpStream::connect(at).unwrap();
        Session::connect(&clienthood.towards("example.net").unwrap()).unwrap().write_to(&mut client).unwrap();
        bench.turn_streams([FIRST]);
        bench.turn_streams([FIRST + 1]);
        assert!(bench.shard.has_steps(), "it stands in the line");
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        bench.turn_streams([FIRST + 1]);
        let streams = &bench.counters().streams;
        // Had a step been made, its answer would have found the connection reset.
        assert_eq!([Ended::Handshake, Ended::Reset].map(|ended| streams.ended[ended as usize].get()), [round, 0]);
        assert_eq!(streams.accepted_handshakes[Handshake::Closed as usize].get(), round);
        assert_eq!(streams.accepted_handshakes[Handshake::Limit as usize].get(), 0);
        bench.shard.step(true);
        assert!(!bench.shard.has_steps());
    }
}

#[test]
fn accounts_balance_under_any_mix_of_faults() {
    for seed in 1..=20u64 {
        let mut bench = Bench::new();
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = move |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        for _ in 0..100 {
            for _ in 0..next(50) {
                let octets = match next(4) {
                    0 => b"\r\n\r\n".to_vec(),
                    1 => b"OPTIONS sip:192.0.2.100 SIP/2.0\r\nnonsense\r\n\r\n".to_vec(),
                    _ => bench.request(),
                };
                bench.arrive(octets);
            }
            for _ in 0..next(6) {
                let step = match next(7) {
                    0 => Send::Fail(EAGAIN),
                    3 => Send::Fail(ENOBUFS),
                    1 => Send::Fail(ECONNREFUSED),
                    2 => Send::Fail(EPERM),
                    _ => Send::Take(next(32) as usize),
                };
                bench.shard.io_mut().script.push_back(step);
            }
            if next(3) == 0 {
                let to = address(BACKENDS[next(3) as usize]);
                bench.shard.io_mut().reports.push_back(Unreachable { to, code: ECONNREFUSED });
            }
            bench.turn();
            bench.assert_balanced();
        }
        while bench.shard.io_mut().arriving.iter().any(|queue| !queue.is_empty()) {
            bench.turn();
        }
        bench.shard.finish();
        bench.assert_balanced();
        let counters = bench.counters();
        assert_eq!(counters.waiting.get(), 0, "seed {seed}");
        assert_eq!(
            counters.forwarded.get() + counters.replied_total(),
            bench.shard.io_mut().sent.len() as u64,
            "seed {seed}: what is counted as sent was sent"
        );
    }
}
