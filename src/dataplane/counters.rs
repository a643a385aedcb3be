//! What happened, counted.
//!
//! Every counter is written by one shard and read by whoever scrapes: a relaxed load, an add and a relaxed store, which
//! compile to the same instruction as a plain `+= 1`. Nothing here is ever a read-modify-write, or contended.

use crate::dataplane::sip::start_line::Method;
use crate::dataplane::verdict::{Answer, DropReason};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number that one thread counts up and others read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning shard may call this.
    #[inline(always)]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Replaces the value. Only the owning shard may call this.
    #[inline(always)]
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The value.
    #[inline(always)]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How often values fell below each of a few bounds.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds: &'static [u64; N],
    /// One for each bound, and one for what is above all of them.
    buckets: [Counter; N],
    above: Counter,
    sum: Counter,
}

impl<const N: usize> Histogram<N> {
    /// A histogram with nothing in it. `bounds` ascend and are inclusive.
    pub fn new(bounds: &'static [u64; N]) -> Histogram<N> {
        let buckets = core::array::from_fn(|_| Counter::default());
        Histogram { bounds, buckets, above: Counter::default(), sum: Counter::default() }
    }

    /// Adds `value`, `count` times over. Only the owning shard may call this.
    #[inline(always)]
    pub fn add(&self, value: u64, count: u64) {
        let place = self.bounds.iter().position(|&bound| value <= bound);
        place.map_or(&self.above, |place| &self.buckets[place]).add(count);
        self.sum.add(value.wrapping_mul(count));
    }

    /// The bounds with how many values fell below each and above the one before; `None` stands for no bound.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        let bounded = self.bounds.iter().zip(&self.buckets).map(|(&bound, count)| (Some(bound), count.get()));
        bounded.chain([(None, self.above.get())])
    }

    /// The sum of all values.
    pub fn sum(&self) -> u64 {
        self.sum.get()
    }
}

/// Bounds of [`ShardCounters::handling_ns`], in nanoseconds.
static HANDLING_NS: [u64; 10] =
    [5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 5_000_000, 20_000_000];

/// Bounds of [`ShardCounters::batches`], in messages: a batch has at most 32.
static BATCH: [u64; 5] = [1, 2, 4, 8, 16];

/// Bounds of [`BackendShard::request_delay_ms`]: from a server that answers by itself to a caller who has mostly given up.
static REQUEST_DELAY_MS: [u64; 7] = [5, 20, 100, 300, 1_000, 3_000, 10_000];

/// What a message is, as far as counting goes: a request's method, or a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Neither request nor response: keep-alives, STUN, noise.
    NoMessage,
    /// A request.
    Request(Method),
    /// A response, with its status code.
    Response(u16),
}

/// How a message is counted once it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tally {
    /// An answer of our own.
    Reply(Answer),
    /// A request, to the backend of this index unless it goes elsewhere.
    Request(Option<u16>),
    /// A response of this status code, from the backend of this index unless it came from elsewhere.
    Response(Option<u16>, u16),
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It held what is no message, or could be read as more than one.
    BadFrame,
    /// It was for a client, whose own connection has ended.
    ClientGone,
    /// The other side closed it.
    Closed,
    /// It could not be opened.
    ConnectFailed,
    /// It was for a client, and there were as many of these as there may be: another client needed the place.
    Displaced,
    /// Its TLS handshake failed.
    Handshake,
    /// Nothing was sent or received for as long as a connection may be silent.
    Idle,
    /// There are as many as there may be, or no descriptor was left.
    Limit,
    /// It came from a proxy and did not begin with a PROXY header.
    ProxyHeader,
    /// It was not to be read from, by its kernel's account: a reset, an unreachable peer.
    Reset,
    /// A message began and did not end in time, or the first did not begin.
    Slow,
    /// Its source has as many as it may have.
    SourceLimit,
    /// The process ended.
    Stopped,
    /// What came on it under TLS cannot be opened.
    Tls,
    /// The other side did not read what it was sent.
    Unread,
    /// It broke the rules of WebSocket, or its request to be one was refused.
    WebSocket,
}

impl Ended {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Ended; 16] = [
        Ended::BadFrame,
        Ended::ClientGone,
        Ended::Closed,
        Ended::ConnectFailed,
        Ended::Displaced,
        Ended::Handshake,
        Ended::Idle,
        Ended::Limit,
        Ended::ProxyHeader,
        Ended::Reset,
        Ended::Slow,
        Ended::SourceLimit,
        Ended::Stopped,
        Ended::Tls,
        Ended::Unread,
        Ended::WebSocket,
    ];

    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Ended::BadFrame => "bad_frame",
            Ended::ClientGone => "client_gone",
            Ended::Closed => "closed",
            Ended::ConnectFailed => "connect_failed",
            Ended::Displaced => "displaced",
            Ended::Handshake => "handshake",
            Ended::Idle => "idle",
            Ended::Limit => "limit",
            Ended::ProxyHeader => "proxy_header",
            Ended::Reset => "reset",
            Ended::Slow => "slow",
            Ended::SourceLimit => "source_limit",
            Ended::Stopped => "stopped",
            Ended::Tls => "tls",
            Ended::Unread => "unread",
            Ended::WebSocket => "websocket",
        }
    }
}

/// What became of a TLS handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// The other side's certificate is not to be trusted, or is somebody else's.
    BadCertificate,
    /// The other side closed the connection.
    Closed,
    /// It succeeded, from the beginning.
    Full,
    /// The two sides have no version, cipher or signature in common.
    Incompatible,
    /// There were as many under way as there may be.
    Limit,
    /// The other side has shown no certificate and has to.
    NoCertificate,
    /// What came is no TLS.
    NotTls,
    /// The other side refused, with an alert.
    Refused,
    /// It succeeded, going on from an earlier one.
    Resumed,
    /// It took too long.
    Slow,
    /// What came is TLS and breaks its rules.
    Violation,
}

impl Handshake {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Handshake; 11] = [
        Handshake::BadCertificate,
        Handshake::Closed,
        Handshake::Full,
        Handshake::Incompatible,
        Handshake::Limit,
        Handshake::NoCertificate,
        Handshake::NotTls,
        Handshake::Refused,
        Handshake::Resumed,
        Handshake::Slow,
        Handshake::Violation,
    ];

    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Handshake::BadCertificate => "bad_certificate",
            Handshake::Closed => "closed",
            Handshake::Full => "full",
            Handshake::Incompatible => "incompatible",
            Handshake::Limit => "limit",
            Handshake::NoCertificate => "no_certificate",
            Handshake::NotTls => "not_tls",
            Handshake::Refused => "refused",
            Handshake::Resumed => "resumed",
            Handshake::Slow => "slow",
            Handshake::Violation => "violation",
        }
    }
}

/// What became of the request to make a WebSocket of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// It is one.
    Done,
    /// It was no such request.
    Malformed,
    /// It came from a page that may not.
    Origin,
    /// It did not offer SIP.
    Subprotocol,
}

impl Upgrade {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Upgrade; 4] = [Upgrade::Done, Upgrade::Malformed, Upgrade::Origin, Upgrade::Subprotocol];

    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Upgrade::Done => "done",
            Upgrade::Malformed => "malformed",
            Upgrade::Origin => "origin",
            Upgrade::Subprotocol => "subprotocol",
        }
    }
}

/// What became of connections.
#[derive(Debug, Default)]
pub struct StreamCounters {
    /// Accepted.
    pub accepted: Counter,
    /// Opened by us, or tried to.
    pub opened: Counter,
    /// Ended, by [`Ended`].
    pub ended: [Counter; Ended::ALL.len()],
    /// TLS handshakes on connections that were accepted, by [`Handshake`].
    pub accepted_handshakes: [Counter; Handshake::ALL.len()],
    /// What was asked to be a WebSocket, by [`Upgrade`].
    pub upgrades: [Counter; Upgrade::ALL.len()],
    /// Likewise on those opened by us.
    pub opened_handshakes: [Counter; Handshake::ALL.len()],
    /// How often accepting paused because no descriptor was left.
    pub pauses: Counter,
    /// Octets that wait in connections: to be sent, or of messages that are not whole.
    pub held_octets: Counter,
    /// Connections to backends that are for one client each.
    pub proxied: Counter,
}

impl StreamCounters {
    /// Connections that are there.
    pub fn open(&self) -> u64 {
        let began = self.accepted.get() + self.opened.get();
        began.saturating_sub(self.ended.iter().map(Counter::get).sum())
    }
}

/// How many kinds there are.
pub const KINDS: usize = Method::ALL.len() + 2;

impl Kind {
    /// A number below [`KINDS`].
    #[inline(always)]
    pub const fn index(self) -> usize {
        match self {
            Kind::Request(method) => method as usize,
            Kind::Response(_) => Method::ALL.len(),
            Kind::NoMessage => Method::ALL.len() + 1,
        }
    }

    /// All kinds, in the order of their indexes.
    pub fn all() -> impl Iterator<Item = Kind> {
        Method::ALL.into_iter().map(Kind::Request).chain([Kind::Response(0), Kind::NoMessage])
    }

    /// The label `kind` of the metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Kind::NoMessage => "none",
            Kind::Request(_) => "request",
            Kind::Response(_) => "response",
        }
    }

    /// The label `method` of the metrics.
    pub const fn method_label(self) -> &'static str {
        match self {
            Kind::Request(method) => method.name(),
            Kind::Response(_) | Kind::NoMessage => "",
        }
    }
}

/// The counters of one shard. `received + taken over = forwarded + replied + sum of dropped + waiting + handed over`
/// whenever the shard is between batches, and `waiting` is zero as long as the kernel takes what is sent.
#[derive(Debug)]
pub struct ShardCounters {
    /// By listener, then by kind. The last listener is the egress socket.
    received: Box<[[Counter; KINDS]]>,
    /// Messages passed on.
    pub forwarded: Counter,
    /// Of these, the ones that neither went to a backend nor came from one as a response: what backends sent out.
    pub forwarded_elsewhere: Counter,
    /// Answers of our own, by [`Answer::index`].
    pub replied: [Counter; Answer::LABELS.len()],
    /// Messages discarded, by reason.
    pub dropped: [Counter; DropReason::ALL.len()],
    /// Messages that the kernel did not take at once and that wait to be sent: received, and not counted elsewhere yet.
    pub waiting: Counter,
    /// Messages handed over to the shard that has the connection they leave by.
    pub handed_over: Counter,
    /// Messages taken over from other shards.
    pub taken_over: Counter,
    /// Connections.
    pub streams: StreamCounters,
    /// Messages received with one system call.
    pub batches: Histogram<5>,
    /// From when the kernel handed a message over until it had taken what became of it, in nanoseconds. The messages of
    /// a batch share the time of their batch.
    pub handling_ns: Histogram<10>,
    /// Time spent on anything but waiting, in nanoseconds.
    pub busy_ns: Counter,
    /// Times the shard slept after a turn to let messages gather.
    pub naps: Counter,
    /// 100s that had lost the client's Via and got it back (see `token.rs`).
    pub vias_rebuilt: Counter,
    /// Requests from outside whose Route token did not verify, so that they went by their key.
    pub strange_tokens: Counter,
    /// Requests whose dialog's backend was down, so that they went by their key.
    pub orphaned: Counter,
    /// INVITEs that found their backend full.
    pub backend_full: Counter,
    /// Requests refused because the shard could not carry them.
    pub shed: Counter,
    /// INVITEs that went to backends and have no final response: looked at while the process drains, which waits for them.
    pub ringing: Counter,
    /// Requests that the call memory sent after their INVITE.
    pub memory_followed: Counter,
    /// Requests that may belong to an open INVITE which the call memory did not know, while the tables had changed.
    pub memory_unknown: Counter,
    /// Calls and INVITEs the call memory had to forget before their time.
    pub memory_evicted: Counter,
    /// Copies of messages that were sent to a collector.
    pub captured: Counter,
    /// Copies that could not be sent.
    pub captures_lost: Counter,
    /// Answers to INVITEs of other shards that these were told of.
    pub handoffs: Counter,
    /// Those that one of them had no room for.
    pub handoffs_lost: Counter,
    /// Datagrams the kernel dropped because a receive buffer was full, by listener; the last is the egress socket.
    pub socket_drops: Box<[Counter]>,
    /// 1 once the shard's thread has ended and its sockets are closed.
    pub ended: Counter,
    /// When the shard last finished a turn of its loop, in milliseconds of its clock: it is alive.
    pub last_turn_ms: Counter,
}

impl ShardCounters {
    /// Counters at zero, for `listeners` listeners.
    pub fn new(listeners: usize) -> ShardCounters {
        ShardCounters {
            received: (0..=listeners).map(|_| Default::default()).collect(),
            forwarded: Counter::default(),
            forwarded_elsewhere: Counter::default(),
            replied: Default::default(),
            dropped: core::array::from_fn(|_| Counter::default()),
            waiting: Counter::default(),
            handed_over: Counter::default(),
            taken_over: Counter::default(),
            streams: StreamCounters::default(),
            batches: Histogram::new(&BATCH),
            handling_ns: Histogram::new(&HANDLING_NS),
            busy_ns: Counter::default(),
            naps: Counter::default(),
            vias_rebuilt: Counter::default(),
            strange_tokens: Counter::default(),
            orphaned: Counter::default(),
            backend_full: Counter::default(),
            shed: Counter::default(),
            ringing: Counter::default(),
            memory_followed: Counter::default(),
            memory_unknown: Counter::default(),
            memory_evicted: Counter::default(),
            captured: Counter::default(),
            captures_lost: Counter::default(),
            handoffs: Counter::default(),
            handoffs_lost: Counter::default(),
            socket_drops: (0..=listeners).map(|_| Counter::default()).collect(),
            ended: Counter::default(),
            last_turn_ms: Counter::default(),
        }
    }

    /// The counter of messages of `kind` received by listener `listener`, or by the egress socket for `None`.
    #[inline(always)]
    pub fn received(&self, listener: Option<u8>, kind: Kind) -> &Counter {
        let egress = self.received.len() - 1;
        &self.received[listener.map_or(egress, |index| (index as usize).min(egress))][kind.index()]
    }

    /// The sum of all received.
    pub fn received_total(&self) -> u64 {
        self.received.iter().flatten().map(Counter::get).sum()
    }

    /// The sum of all replied.
    pub fn replied_total(&self) -> u64 {
        self.replied.iter().map(Counter::get).sum()
    }

    /// The sum of all dropped.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().map(Counter::get).sum()
    }
}

/// The counters of one backend: a set per shard.
#[derive(Debug)]
pub struct BackendCounters {
    shards: Box<[BackendShard]>,
}

/// One shard's counters of one backend, alone on its cache lines.
#[derive(Debug)]
#[repr(align(128))]
pub struct BackendShard {
    /// Requests sent to it.
    pub requests: Counter,
    /// Responses from it that were passed on, by the first digit of their code less one.
    pub responses: [Counter; 6],
    /// Of these, 503.
    pub unavailable: Counter,
    /// ICMP errors that named it, or refusals to send to it.
    pub errors: Counter,
    /// Milliseconds from when an INVITE went to it until its first response between 101 and 299: session request delay (RFC 6076
    /// 4.3.1).
    pub request_delay_ms: Histogram<7>,
}

impl Default for BackendShard {
    fn default() -> BackendShard {
        BackendShard {
            requests: Counter::default(),
            responses: Default::default(),
            unavailable: Counter::default(),
            errors: Counter::default(),
            request_delay_ms: Histogram::new(&REQUEST_DELAY_MS),
        }
    }
}

impl BackendCounters {
    /// Counters at zero, for `shards` shards.
    pub fn new(shards: usize) -> BackendCounters {
        BackendCounters { shards: (0..shards).map(|_| BackendShard::default()).collect() }
    }

    /// The counters of one shard.
    #[inline(always)]
    pub fn shard(&self, shard: usize) -> Option<&BackendShard> {
        self.shards.get(shard)
    }

    /// A sum over all shards.
    pub fn sum(&self, of: impl Fn(&BackendShard) -> u64) -> u64 {
        self.shards.iter().map(of).sum()
    }

    /// The buckets of [`BackendShard::request_delay_ms`], as [`Histogram::buckets`] has them, over all shards.
    pub fn request_delays(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        let bounds = REQUEST_DELAY_MS.iter().map(|&bound| Some(bound)).chain([None]);
        bounds.enumerate().map(|(place, bound)| {
            let count = self.sum(|shard| shard.request_delay_ms.buckets().nth(place).map_or(0, |(_, count)| count));
            (bound, count)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_each_value_once_at_the_first_bound_it_fits() {
        let histogram = Histogram::new(&BATCH);
        for value in [1, 2, 3, 4, 16, 17, 32] {
            histogram.add(value, 2);
        }
        let counts: Vec<_> = histogram.buckets().collect();
        assert_eq!(counts, [(Some(1), 2), (Some(2), 2), (Some(4), 4), (Some(8), 0), (Some(16), 2), (None, 4)]);
        assert_eq!(histogram.sum(), 150);
    }

    #[test]
    fn ends_and_handshakes_are_listed_in_the_order_of_their_discriminants() {
        assert!(Ended::ALL.iter().enumerate().all(|(index, &ended)| ended as usize == index));
        assert!(Upgrade::ALL.iter().enumerate().all(|(index, &upgrade)| upgrade as usize == index));
        assert!(Handshake::ALL.iter().enumerate().all(|(index, &handshake)| handshake as usize == index));
    }

    #[test]
    fn kinds_are_numbered_in_order() {
        for (index, kind) in Kind::all().enumerate() {
            assert_eq!(kind.index(), index);
        }
        assert_eq!(Kind::all().count(), KINDS);
    }
}
