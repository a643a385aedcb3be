//! The numbers of `/metrics`: each named once, with what it means. `docs/metrics.md` has the same list for people.
//!
//! Labels take only values that the configuration or this program lists: nothing that traffic brings can add a series.

use super::operator::State;
use super::view::{ProbeTimes, View};
use crate::dataplane::counters::{Counter, Ended, Handshake, Histogram, Kind, Upgrade};
use crate::dataplane::verdict::{Answer, DropReason};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::fmt::Error;
use std::fs;
use std::sync::Arc;
use tokio::sync::watch;

/// The text that a scrape gets: the format of Prometheus, version 0.0.4.
///
/// # Errors
/// Never on a string; the encoder's signature has it.
pub fn text(registry: &Registry) -> Result<String, Error> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry)?;
    Ok(plain(&text))
}

/// A registry of everything `views` shows.
pub fn registry(views: watch::Receiver<Arc<View>>) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics { views }));
    registry
}

/// OpenMetrics as the older format has it, which every scraper and `promtool` read: there, the family of a counter is
/// called like its samples, with `_total`, and the text has no end mark.
fn plain(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut lines = open_metrics.lines().peekable();
    while let Some(line) = lines.next() {
        if line == "# EOF" {
            break;
        }
        let is_help = line.starts_with("# HELP ");
        let line = match lines.peek().filter(|_| is_help).and_then(|next| next.strip_suffix(" counter")) {
            Some(next) => {
                let name = next.trim_start_matches("# TYPE ");
                let help = line.trim_start_matches("# HELP ").trim_start_matches(name);
                lines.next();
                format!("# HELP {name}_total{help}\n# TYPE {name}_total counter")
            }
            None => line.to_owned(),
        };
        out.push_str(&line);
        out.push('\n');
    }
    out
}

#[derive(Debug)]
struct Metrics {
    views: watch::Receiver<Arc<View>>,
}

/// Labels of one sample.
type Labels<'a> = Vec<(&'static str, &'a str)>;

/// One family after the other.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn counter<'a>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels<'a>, u64)>,
    ) -> Result<(), Error> {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in rows {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    fn gauge<'a>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels<'a>, f64)>,
    ) -> Result<(), Error> {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in rows {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// Rows are labels, sum, and buckets: a bound and how many values are below it and above the one before.
    fn histogram<'a>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels<'a>, f64, Vec<(f64, u64)>)>,
    ) -> Result<(), Error> {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, sum, buckets) in rows {
            let count = buckets.iter().map(|bucket| bucket.1).sum();
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}

/// Numbers of shards, as labels: as many as there can be cores.
fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let view = self.views.borrow().clone();
        let mut out = Families(encoder);
        process(&mut out, &view)?;
        messages(&mut out, &view)?;
        backends(&mut out, &view)?;
        shards(&mut out, &view)
    }
}

fn process(out: &mut Families<'_>, view: &View) -> Result<(), Error> {
    let build: Labels<'_> = vec![("version", env!("CARGO_PKG_VERSION"))];
    out.gauge("viahop_build_info", "The version that runs, as a label", [(build, 1.0)])?;
    let flag = |is: bool| f64::from(u8::from(is));
    out.gauge(
        "viahop_ready",
        "1 while the process wants calls: not draining, and every pool has a backend that takes new calls",
        [(vec![], flag(view.is_ready))],
    )?;
    out.gauge("viahop_draining", "1 from SIGTERM on", [(vec![], flag(view.is_draining))])?;
    out.gauge(
        "viahop_config_last_reload_successful",
        "1 if the configuration that was last read is in force",
        [(vec![], flag(view.reload.ok))],
    )?;
    out.gauge(
        "viahop_config_last_reload_success_timestamp_seconds",
        "When the configuration in force was read",
        [(vec![], view.reload.last_success_at as f64)],
    )?;
    out.gauge(
        "viahop_config_hash_info",
        "A digest of what decides where messages go, as a label: nodes of a fleet must agree on it",
        [(vec![("hash", &view.config_hash[..])], 1.0)],
    )?;
    out.gauge(
        "process_start_time_seconds",
        "When the process started, in seconds since 1970",
        [(vec![], view.fixed.started_at as f64)],
    )?;
    let Some(usage) = Usage::read() else { return Ok(()) };
    // The encoder adds `_total`, and prints whole numbers of a counter of octets as such.
    let mut family =
        out.0.encode_descriptor("process_cpu_seconds", "CPU time of all threads", None, MetricType::Counter)?;
    family.encode_counter::<NoLabelSet, _, u64>(&usage.cpu_seconds, None)?;
    out.gauge(
        "process_resident_memory_bytes",
        "Memory of the process that is in RAM",
        [(vec![], usage.resident_bytes as f64)],
    )?;
    out.gauge("process_open_fds", "Descriptors that are open", [(vec![], usage.open_fds as f64)])
}

/// What the kernel says about this process.
struct Usage {
    cpu_seconds: f64,
    resident_bytes: u64,
    open_fds: usize,
}

impl Usage {
    fn read() -> Option<Usage> {
        // proc(5): clock ticks are 1/100 s and pages 4 KiB on every Linux that viahop is built for, as far as /proc goes.
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number)?.parse::<u64>().ok();
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().trim_end_matches(" kB");
        Some(Usage {
            cpu_seconds: (field(11)? + field(12)?) as f64 / 100.0,
            resident_bytes: resident.trim().parse::<u64>().ok()? * 1024,
            open_fds: fs::read_dir("/proc/self/fd").ok()?.count(),
        })
    }
}

fn messages(out: &mut Families<'_>, view: &View) -> Result<(), Error> {
    let fixed = &view.fixed;
    let mut received = Vec::new();
    let names = fixed.listeners.iter().map(|(name, _)| &name[..]).chain(["egress"]);
    for (index, name) in names.enumerate() {
        let listener = (index < fixed.listeners.len()).then_some(index as u8);
        for kind in Kind::all() {
            let count = view.sum(|counters| counters.received(listener, kind).get());
            received.push((vec![("listener", name), ("kind", kind.label()), ("method", kind.method_label())], count));
        }
    }
    out.counter(
        "viahop_messages_received",
        "Datagrams, and messages on connections, received, by listener; `egress` is the ports and connections towards backends",
        received,
    )?;
    out.counter(
        "viahop_messages_replied",
        "Answers of our own, by status code; `stun` is a STUN Binding response",
        Answer::LABELS
            .iter()
            .enumerate()
            .map(|(index, label)| (vec![("code", *label)], view.sum(|counters| counters.replied[index].get()))),
    )?;
    out.counter(
        "viahop_messages_dropped",
        "Messages discarded, by reason",
        DropReason::ALL.iter().map(|&reason| {
            (vec![("reason", reason.label())], view.sum(|counters| counters.dropped[reason as usize].get()))
        }),
    )?;
    out.gauge(
        "viahop_messages_waiting",
        "Messages that wait: the kernel's send buffer is full, or a connection is being opened",
        [(vec![], view.sum(|counters| counters.waiting.get()) as f64)],
    )?;
    out.counter(
        "viahop_messages_handed_over",
        "Messages that came to one shard and left by a connection of another",
        [(vec![], view.sum(|counters| counters.handed_over.get()))],
    )?;
    connections(out, view)?;
    out.counter(
        "viahop_vias_rebuilt",
        "100 responses that had lost the client's Via and got it back",
        [(vec![], view.sum(|counters| counters.vias_rebuilt.get()))],
    )?;
    out.counter(
        "viahop_dialog_tokens_refused",
        "Requests from outside whose dialog token did not verify: mangled, forged or of another secret; they went by their key",
        [(vec![], view.sum(|counters| counters.strange_tokens.get()))],
    )?;
    out.counter(
        "viahop_dialogs_orphaned",
        "Requests whose dialog's backend was down, so that they went by their key",
        [(vec![], view.sum(|counters| counters.orphaned.get()))],
    )?;
    out.counter(
        "viahop_backend_full",
        "INVITEs whose backend had as many ringing as it may have: they went to the runner-up, or were answered 503",
        [(vec![], view.sum(|counters| counters.backend_full.get()))],
    )?;
    out.counter(
        "viahop_requests_shed",
        "New requests answered 503 because a shard could not carry what came; anything above 0 is overload",
        [(vec![], view.sum(|counters| counters.shed.get()))],
    )?;
    out.counter(
        "viahop_call_memory_hits",
        "Requests that went where their INVITE had gone, within Timer C of a change of the tables",
        [(vec![], view.sum(|counters| counters.memory_followed.get()))],
    )?;
    out.counter(
        "viahop_call_memory_misses",
        "INVITE, ACK and CANCEL of no INVITE that is remembered, within Timer C of a change of the tables",
        [(vec![], view.sum(|counters| counters.memory_unknown.get()))],
    )?;
    out.counter(
        "viahop_call_memory_evicted",
        "INVITEs, and calls of round-robin pools, that had to be forgotten before their time",
        [(vec![], view.sum(|counters| counters.memory_evicted.get()))],
    )
}

fn connections(out: &mut Families<'_>, view: &View) -> Result<(), Error> {
    out.gauge(
        "viahop_connections",
        "Connections that are open, with those that are being opened",
        [(vec![], view.sum(|counters| counters.streams.open()) as f64)],
    )?;
    out.gauge(
        "viahop_connections_proxied",
        "Connections to backends that are for one client each, whom a PROXY header names",
        [(vec![], view.sum(|counters| counters.streams.proxied.get()) as f64)],
    )?;
    out.counter(
        "viahop_connections_begun",
        "Connections accepted from others, and opened or tried by viahop itself",
        [
            ("accepted", view.sum(|counters| counters.streams.accepted.get())),
            ("opened", view.sum(|counters| counters.streams.opened.get())),
        ]
        .map(|(by, count)| (vec![("by", by)], count)),
    )?;
    out.counter(
        "viahop_connections_ended",
        "Connections that ended, by reason",
        Ended::ALL.iter().map(|&ended| {
            (vec![("reason", ended.label())], view.sum(|counters| counters.streams.ended[ended as usize].get()))
        }),
    )?;
    out.counter(
        "viahop_tls_handshakes",
        "TLS handshakes, by who opened the connection and by what became of them",
        Handshake::ALL.iter().flat_map(|&handshake| {
            let of = |by, count| (vec![("by", by), ("result", handshake.label())], count);
            let place = handshake as usize;
            [
                of("accepted", view.sum(|counters| counters.streams.accepted_handshakes[place].get())),
                of("opened", view.sum(|counters| counters.streams.opened_handshakes[place].get())),
            ]
        }),
    )?;
    out.counter(
        "viahop_websocket_upgrades",
        "Requests to make a WebSocket of a connection, by what became of them",
        Upgrade::ALL.iter().map(|&upgrade| {
            let count = view.sum(|counters| counters.streams.upgrades[upgrade as usize].get());
            (vec![("result", upgrade.label())], count)
        }),
    )?;
    let listeners = view.fixed.listeners.iter().zip(&view.credentials.servers);
    // Those of one name, with another kind of key each, are one series: Prometheus keeps but one of two.
    let mut expiries: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for ((listener, _), server) in listeners {
        for one in server.iter().flat_map(|server| &server.certificates) {
            let Some(expires_at) = one.expires_at else { continue };
            let named = one.names.first().map_or("", String::as_str);
            let first = expiries.entry((listener, named)).or_insert(expires_at);
            *first = expires_at.min(*first);
        }
    }
    out.gauge(
        "viahop_certificate_expires_timestamp_seconds",
        "Until when a listener's certificate is valid, in seconds since 1970",
        expiries.into_iter().map(|((listener, certificate), expires_at)| {
            (vec![("listener", listener), ("certificate", certificate)], expires_at as f64)
        }),
    )?;
    out.counter(
        "viahop_accept_pauses",
        "Times that no connection was accepted for a second, since no descriptor was left",
        [(vec![], view.sum(|counters| counters.streams.pauses.get()))],
    )?;
    out.gauge(
        "viahop_connections_held_bytes",
        "Octets that wait in connections: to be sent, or of messages that are not whole",
        [(vec![], view.sum(|counters| counters.streams.held_octets.get()) as f64)],
    )
}

fn backends(out: &mut Families<'_>, view: &View) -> Result<(), Error> {
    let mut forwarded_rows = Vec::new();
    let (mut responses, mut errors, mut states) = (Vec::new(), Vec::new(), Vec::new());
    let (mut wanted, mut weights, mut ejections) = (Vec::new(), Vec::new(), Vec::new());
    for backend in &view.backends {
        let (pool, name) = (&backend.pool, &backend.name);
        let requests = backend.counters.sum(|shard| shard.requests.get());
        let answered = backend.counters.sum(|shard| shard.responses.iter().map(Counter::get).sum());
        forwarded_rows.push((pool.clone(), name.clone(), "request", requests));
        forwarded_rows.push((pool.clone(), name.clone(), "response", answered));
        for (class, label) in ["1xx", "2xx", "3xx", "4xx", "5xx", "6xx"].into_iter().enumerate() {
            let count = backend.counters.sum(|shard| shard.responses[class].get());
            responses.push((pool.clone(), name.clone(), label, count));
        }
        errors.push((pool.clone(), name.clone(), backend.counters.sum(|shard| shard.errors.get())));
        ejections.push((pool.clone(), name.clone(), f64::from(u8::from(backend.is_ejected))));
        for (label, is) in [("up", backend.is_up), ("down", !backend.is_up)] {
            states.push((pool.clone(), name.clone(), label, f64::from(u8::from(is))));
        }
        for state in State::ALL {
            let is = f64::from(u8::from(backend.state.now == state));
            wanted.push((pool.clone(), name.clone(), state.word(), is));
        }
        weights.push((pool.clone(), name.clone(), f64::from(backend.weight.now)));
    }
    let elsewhere = view.sum(|counters| counters.forwarded_elsewhere.get());
    let none: Labels<'_> = vec![("pool", ""), ("backend", ""), ("kind", "other")];
    out.counter(
        "viahop_messages_forwarded",
        "Messages passed on: requests to a backend, responses from one; without a backend: what backends sent out",
        forwarded_rows
            .iter()
            .map(|(pool, name, kind, count)| {
                (vec![("pool", &pool[..]), ("backend", &name[..]), ("kind", *kind)], *count)
            })
            .chain([(none, elsewhere)]),
    )?;
    out.counter(
        "viahop_responses",
        "Responses of a backend that were passed on, by class",
        responses.iter().map(|(pool, name, class, count)| {
            (vec![("pool", &pool[..]), ("backend", &name[..]), ("code_class", *class)], *count)
        }),
    )?;
    out.counter(
        "viahop_backend_errors",
        "Datagrams to a backend that the network reported as undeliverable",
        errors.iter().map(|(pool, name, count)| (vec![("pool", &pool[..]), ("backend", &name[..])], *count)),
    )?;
    out.gauge(
        "viahop_backend_state",
        "1 for the state a backend is in, 0 for the others",
        states
            .iter()
            .map(|(pool, name, state, is)| (vec![("pool", &pool[..]), ("backend", &name[..]), ("state", *state)], *is)),
    )?;
    out.gauge(
        "viahop_backend_operator_state",
        "1 for the state an operator or the file has put a backend in, 0 for the others",
        wanted
            .iter()
            .map(|(pool, name, state, is)| (vec![("pool", &pool[..]), ("backend", &name[..]), ("state", *state)], *is)),
    )?;
    out.gauge(
        "viahop_backend_ejected",
        "1 while a backend takes no new keys because of what it answers to real requests",
        ejections.iter().map(|(pool, name, is)| (vec![("pool", &pool[..]), ("backend", &name[..])], *is)),
    )?;
    out.gauge(
        "viahop_backend_weight",
        "Share of new keys relative to the other backends of the pool, as it is in force",
        weights.iter().map(|(pool, name, weight)| (vec![("pool", &pool[..]), ("backend", &name[..])], *weight)),
    )?;
    out.counter(
        "viahop_affinity_moves",
        "Slots of a pool's table that changed hands, of 65,536: what share of new keys goes elsewhere than before",
        view.moves
            .iter()
            .map(|((pool, reason), count)| (vec![("pool", &pool[..]), ("reason", reason.label())], *count)),
    )?;
    out.histogram(
        "viahop_backend_request_delay_seconds",
        "From an INVITE that went to a backend until its first response between 101 and 299 (RFC 6076 4.3.1)",
        view.backends.iter().filter_map(|backend| {
            let in_seconds =
                |(bound, count): (Option<u64>, u64)| (bound.map_or(f64::INFINITY, |ms| ms as f64 / 1e3), count);
            let buckets: Vec<_> = backend.counters.request_delays().map(in_seconds).collect();
            let sum_ms = backend.counters.sum(|shard| shard.request_delay_ms.sum());
            let labels = vec![("pool", &backend.pool[..]), ("backend", &backend.name[..])];
            buckets.iter().any(|bucket| bucket.1 > 0).then(|| (labels, sum_ms as f64 / 1e3, buckets))
        }),
    )?;
    out.histogram(
        "viahop_backend_health_check_duration_seconds",
        "How long backends took to answer OPTIONS; without the probes that nobody answered",
        view.probe_times.iter().map(|(pool, times)| {
            let bounds = ProbeTimes::BOUNDS.into_iter().chain([f64::INFINITY]);
            (vec![("pool", &pool[..])], times.sum, bounds.zip(times.counts).collect())
        }),
    )
}

fn shards(out: &mut Families<'_>, view: &View) -> Result<(), Error> {
    let counters = &view.fixed.counters;
    let names = numbers(counters.len());
    let each = || names.iter().map(|name| vec![("shard", &name[..])]).zip(counters);
    out.counter(
        "viahop_shard_messages_received",
        "Datagrams, and messages on connections, received, by shard: how evenly the kernel spreads them",
        each().map(|(labels, counters)| (labels, counters.received_total())),
    )?;
    out.gauge(
        "viahop_shard_skew",
        "What the busiest shard received by the mean of all shards, since the start: 1 is even",
        view.skew().map(|skew| (vec![], skew)),
    )?;
    let steering = &view.fixed.steering;
    out.gauge(
        "viahop_steering_by_call_id",
        "1 if a program in the kernel gives datagrams to shards by their Call-ID, 0 if the kernel does by addresses",
        [(vec![], f64::from(u8::from(steering.outcomes.is_some())))],
    )?;
    out.counter(
        "viahop_steering_datagrams",
        "Datagrams that the program looked at; all but `call_id` were left to the kernel, for this reason",
        steering.datagrams().into_iter().map(|(outcome, count)| (vec![("outcome", outcome)], count)),
    )?;
    out.gauge(
        "viahop_gso",
        "1 while datagrams that are alike may go through the kernel as one: `gso`, and with `auto` nobody captures on this machine",
        [(vec![], f64::from(u8::from(view.allows_runs == Some(true))))],
    )?;
    let captures = [("sent", view.sum(|one| one.captured.get())), ("lost", view.sum(|one| one.captures_lost.get()))];
    out.counter(
        "viahop_capture_packets",
        "Copies of messages for a collector of HEP, by what became of them; none where `[capture]` names none",
        captures.iter().map(|(outcome, count)| (vec![("outcome", *outcome)], *count)),
    )?;
    out.counter(
        "viahop_handoffs",
        "Words of answers passed to other shards, by shard: none but with `egress_mode = \"shared\"` and without steering",
        each().map(|(labels, counters)| (labels, counters.handoffs.get())),
    )?;
    out.counter(
        "viahop_handoffs_lost",
        "Words of answers that another shard had no room for",
        each().map(|(labels, counters)| (labels, counters.handoffs_lost.get())),
    )?;
    out.gauge(
        "viahop_shard_busy_ratio",
        "Share of the last second in which a shard worked rather than waited",
        names.iter().map(|name| vec![("shard", &name[..])]).zip(view.busy.iter().copied()),
    )?;
    out.counter(
        "viahop_shard_naps",
        "Times a shard slept for `linger` after its work, to find several messages when it looked again",
        each().map(|(labels, counters)| (labels, counters.naps.get())),
    )?;
    let buckets = |histogram: &dyn Fn() -> Vec<(Option<u64>, u64)>, unit: f64| -> Vec<(f64, u64)> {
        histogram()
            .into_iter()
            .map(|(bound, count)| (bound.map_or(f64::INFINITY, |b| b as f64 / unit), count))
            .collect()
    };
    out.histogram(
        "viahop_shard_batch_messages",
        "Datagrams received with one system call",
        each().map(|(labels, counters)| {
            (labels, counters.batches.sum() as f64, buckets(&|| all(&counters.batches), 1.0))
        }),
    )?;
    out.histogram(
        "viahop_forward_duration_seconds",
        "From when the kernel handed a datagram over until it had taken what became of it; a batch shares its time",
        each().map(|(labels, counters)| {
            (labels, counters.handling_ns.sum() as f64 / 1e9, buckets(&|| all(&counters.handling_ns), 1e9))
        }),
    )?;
    let mut drops = Vec::new();
    for (index, name) in view.fixed.listeners.iter().map(|(name, _)| &name[..]).chain(["egress"]).enumerate() {
        for (shard, counters) in names.iter().zip(counters) {
            drops.push((vec![("listener", name), ("shard", &shard[..])], counters.socket_drops[index].get()));
        }
    }
    out.counter(
        "viahop_socket_receive_drops",
        "Datagrams the kernel dropped because a receive buffer was full; anything above 0 is lost traffic",
        drops,
    )
}

fn all<const N: usize>(histogram: &Histogram<N>) -> Vec<(Option<u64>, u64)> {
    histogram.buckets().collect()
}

/// What the encoder asks of labels: checked here once, so that [`Labels`] stays a plain list.
const _: fn(&Labels<'static>) = |labels| {
    fn is_label_set(_: &impl EncodeLabelSet) {}
    is_label_set(labels);
};
