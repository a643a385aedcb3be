//! What the loop hears of others: of probes how backends are, of shards what they met.

use super::Control;
use crate::control::clock::unix_now;
use crate::control::health::detector::Outcome;
use crate::control::health::probe;
use crate::control::view::Reason;
use crate::link::{HandshakeFailed, Signal};
use crate::tls::session::Failure;
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// How long shards pass over a backend that refused and that nobody probes.
const SUSPICION: Duration = Duration::from_secs(2);

impl Control {
    /// What became of a probe.
    pub(super) fn on_probe(&mut self, report: probe::Report) {
        let Some(watched) = self.watches.iter().find(|watched| watched.number == report.watch) else { return };
        let pool = self.cluster.pools.iter_mut().find(|pool| pool.name == watched.pool);
        let Some(pool) = pool else { return };
        let Some(index) = pool.backends.iter().position(|backend| backend.name == watched.name) else { return };
        let probe::Report { outcome, failure, took, .. } = report;
        pool.backends[index].last_probe = Some((outcome, took));
        if matches!(outcome, Outcome::Alive(_) | Outcome::Unwell(_)) {
            self.view.probe_times.entry(watched.pool.clone()).or_default().add(took);
        }
        let is_suspect = self.suspects.contains(&pool.backends[index].place.address);
        let was_silent = pool.backends[index].detector.is_silent();
        let changed = pool.on_outcome(index, outcome);
        if changed.is_empty() {
            let backend = &pool.backends[index];
            // Who was winding up its calls is gone, and they go elsewhere.
            let fell_silent = !was_silent && backend.detector.is_silent();
            if fell_silent {
                let (pool, name, address) = (&pool.name, &backend.name, backend.place.address);
                warn!(event = "backend_silent", %pool, backend = %name, %address, reason = outcome.to_string());
            }
            // One refusal among messages that arrive: the shards may trust it again.
            let is_cleared = is_suspect
                && match outcome {
                    Outcome::Alive(_) => true,
                    Outcome::Unwell(_) => !backend.detector.is_up(),
                    Outcome::Refused | Outcome::Timeout => false,
                };
            if fell_silent || is_cleared {
                self.publish(None);
            }
            return;
        }
        let (slow_start, pool_name) = (pool.slow_start, &pool.name);
        if let Some(Failure { handshake, text }) = failure.filter(|_| !pool.backends[index].detector.is_up()) {
            let (backend, address) = (&pool.backends[index].name, pool.backends[index].place.address);
            warn!(event = "backend_tls_failed", %backend, %address, reason = handshake.label(), why = text);
        }
        for index in changed {
            let backend = &mut pool.backends[index];
            backend.changed_at = unix_now();
            let (name, address) = (&backend.name, backend.place.address);
            if backend.detector.is_up() {
                info!(event = "backend_up", pool = %pool_name, backend = %name, %address, reason = outcome.to_string());
                backend.starts_slowly(slow_start);
            } else {
                warn!(event = "backend_down", pool = %pool_name, backend = %name, %address, reason = outcome.to_string());
            }
        }
        if pool.backends[index].detector.is_up() {
            self.publish(Some(Reason::BackendUp));
        } else {
            let emptied = pool.is_empty().then(|| pool.name.clone());
            self.publish(Some(Reason::BackendDown));
            if let Some(pool) = emptied {
                let remedy = "if these servers do not answer OPTIONS: `health = { probe = false }`, or `--no-probe`";
                error!(event = "pool_empty", %pool, effect = "new requests are answered 503", remedy);
            }
        }
    }

    /// What a shard tells.
    pub(super) fn on_signal(&mut self, signal: Signal) {
        let (to, code) = match signal {
            Signal::Malformed(told) => return self.witness.on_malformed(&told, &self.fixed.listeners),
            Signal::Traced(told) => return self.witness.on_traced(&told, &self.fixed.listeners),
            Signal::Connections(told) => {
                let Control { listings, counters, fixed, shared, .. } = self;
                return listings.on_told(*told, counters.len(), &fixed.listeners, shared);
            }
            Signal::Handshake(failed) => return self.on_handshake_failed(&failed),
            Signal::Unreachable { to, code } => (to, code),
        };
        let mut here =
            self.cluster.backends().map(|(_, backend)| backend).filter(|backend| backend.place.address == to);
        if !here.any(|backend| !backend.detector.is_silent()) || !self.suspects.insert(to) {
            return;
        }
        if let Some(more) = self.limiter.allow("backend_refused") {
            let reason = std::io::Error::from_raw_os_error(code).to_string();
            warn!(event = "backend_refused", address = %to, reason, not_shown = more);
        }
        let mut watched = self.watches.iter().filter(|watched| watched.place.address == to).peekable();
        if watched.peek().is_none() {
            self.renew_at.get_or_insert(Instant::now() + SUSPICION);
        }
        watched.for_each(|watched| watched.watch.hurry());
    }

    /// A handshake that failed: towards a backend calls are lost by it, of clients only the kinds are told.
    fn on_handshake_failed(&mut self, failed: &HandshakeFailed) {
        let HandshakeFailed { peer, listener, as_what, text } = failed;
        let reason = as_what.label();
        match listener {
            None => {
                let Some(more) = self.limiter.allow("backend_tls_failed") else { return };
                let backend = self.cluster.backends().find(|(_, backend)| backend.place.address == *peer);
                let name = backend.map_or("", |(_, backend)| &*backend.name);
                let why = &**text;
                warn!(event = "backend_tls_failed", backend = %name, address = %peer, reason, why, not_shown = more);
            }
            Some(index) => {
                let Some(more) = self.limiter.allow(reason) else { return };
                let at = self.fixed.listeners.get(*index as usize).map_or("", |(name, _)| &**name);
                let why = &**text;
                info!(event = "client_tls_failed", listener = %at, from = %peer, reason, why, not_shown = more);
            }
        }
    }
}
