//! What is looked at each second: what real answers say of backends, how busy shards are, what was dropped, what has broken; and
//! more often, whether somebody captures.

use super::Control;
use crate::control::captures;
use crate::control::cluster::{Backend, Turn};
use crate::control::config::Gso;
use crate::control::resolve::Place;
use crate::control::view::Reason;
use crate::dataplane::counters::Ended;
use crate::dataplane::verdict::DropReason;
use std::time::Instant;
use tracing::{error, info, warn};

/// Counters as they were a second ago.
#[derive(Default)]
pub(super) struct Seen {
    at: Option<Instant>,
    busy_ns: Vec<u64>,
    drops: Vec<u64>,
    panics: u64,
    ended: Vec<u64>,
    forwarded: u64,
    shed: u64,
    displaced: u64,
}

impl Control {
    /// What real answers say of backends, and the slow start of those that came back.
    fn judge(&mut self) {
        let turns = self.cluster.on_second();
        let mut has_changed = false;
        for ((pool, index), turn) in turns {
            let (pool, backend) = (&self.cluster.pools[pool].name, &self.cluster.pools[pool].backends[index]);
            let Backend { name, place: Place { address, .. }, .. } = backend;
            has_changed |= !matches!(turn, Turn::Spared(_));
            match turn {
                Turn::Ejected(reason, for_s) => {
                    let reason = reason.to_string();
                    warn!(event = "backend_ejected", %pool, backend = %name, %address, reason, for_s);
                }
                Turn::Spared(reason) => {
                    if let Some(not_shown) = self.limiter.allow("backend_spared") {
                        let reason = reason.to_string();
                        let note = "not ejected: `max_ejected` of its pool are already, or no other takes new calls";
                        warn!(event = "backend_spared", %pool, backend = %name, %address, reason, note, not_shown);
                    }
                }
                Turn::Back => info!(event = "backend_back", %pool, backend = %name, %address),
                Turn::Grown => {}
            }
        }
        if has_changed {
            self.publish(Some(Reason::Outlier));
        }
    }

    /// Has shards make runs where they are wanted, which with `gso = "auto"` nobody may see.
    pub(super) fn look_for_captures(&mut self) {
        let allowed = match self.config.gso {
            Gso::Always => true,
            Gso::Auto => captures::count().is_ok_and(|count| count == 0),
            Gso::Off => false,
        };
        if self.view.allows_runs == Some(allowed) {
            return;
        }
        self.shared.allow_runs(allowed);
        let is_start = self.view.allows_runs.replace(allowed).is_none();
        self.show();
        if self.config.gso != Gso::Auto {
            return;
        }
        if !allowed {
            let note = "somebody captures on this machine, or that cannot be seen: `viahop doctor` says which";
            info!(event = "runs_paused", note);
        } else if !is_start {
            info!(event = "runs_resumed");
        }
    }

    pub(super) fn on_tick(&mut self) {
        let now = Instant::now();
        self.judge();
        if self.witness.is_over(now) {
            self.set_trace(None);
        }
        self.listings.on_tick(self.counters.len(), &self.fixed.listeners, &self.shared);
        if self.renew_at.is_some_and(|at| at <= now) {
            self.publish(None);
        }
        let busy: Vec<u64> = self.counters.iter().map(|counters| counters.busy_ns.get()).collect();
        if let Some(before) = self.seen.at {
            let elapsed = (now - before).as_nanos().max(1) as f64;
            let share = |(now, before): (&u64, &u64)| (now.saturating_sub(*before) as f64 / elapsed).min(1.0);
            self.view.busy = busy.iter().zip(&self.seen.busy_ns).map(share).collect();
        }
        let names = self.fixed.listeners.iter().map(|(name, _)| &name[..]).chain(["egress"]);
        let of = |index: usize| self.counters.iter().map(|counters| counters.socket_drops[index].get()).sum::<u64>();
        let drops: Vec<u64> = (0..names.clone().count()).map(of).collect();
        for (index, name) in names.enumerate() {
            let more = drops[index].saturating_sub(self.seen.drops.get(index).copied().unwrap_or(0));
            if more > 0
                && let Some(not_shown) = self.limiter.allow("receive_buffer_full")
            {
                let remedy = "raise `receive_buffer` and net.core.rmem_max, or add shards";
                warn!(event = "receive_buffer_full", listener = name, drops = more, remedy, not_shown);
            }
        }
        let shed = self.view.sum(|counters| counters.shed.get());
        if shed > self.seen.shed
            && let Some(not_shown) = self.limiter.allow("overload")
        {
            let remedy = "add cores, shards or nodes; what belongs to calls goes on";
            warn!(event = "overload", refused = shed - self.seen.shed, remedy, not_shown);
        }
        let displaced = self.view.sum(|counters| counters.streams.ended[Ended::Displaced as usize].get());
        if displaced > self.seen.displaced
            && let Some(not_shown) = self.limiter.allow("clients_displaced")
        {
            let remedy = "raise `max_proxied`, and what the servers take; or somebody invents source addresses";
            warn!(event = "clients_displaced", connections = displaced - self.seen.displaced, remedy, not_shown);
        }
        let panics = self.view.sum(|counters| counters.dropped[DropReason::Panic as usize].get());
        if panics > self.seen.panics {
            error!(event = "panic", messages = panics - self.seen.panics, remedy = "please report this bug");
        }
        let ended: Vec<u64> = self.counters.iter().map(|counters| counters.ended.get()).collect();
        for (shard, _) in ended.iter().zip(&self.seen.ended).enumerate().filter(|(_, (now, before))| now > before) {
            let remedy = "its calls come to the other shards; restart, and please report this bug";
            error!(event = "shard_ended", shard, remedy);
        }
        let forwarded = self.view.sum(|counters| counters.forwarded.get());
        let ringing = self.view.sum(|counters| counters.ringing.get());
        if let Some(drain) = &mut self.drain {
            let is_quiet = forwarded == self.seen.forwarded && ringing == 0;
            drain.quiet_s = if is_quiet { drain.quiet_s + 1 } else { 0 };
            self.shared.wake();
        }
        self.seen = Seen { at: Some(now), busy_ns: busy, drops, panics, ended, forwarded, shed, displaced };
        self.view.take(&self.cluster, self.view.generation);
        self.show();
    }
}
