//! What an operator asks for who waits for the answer: a backend drained or weighed, a call followed, the end.

use super::{Control, Watched};
use crate::control::ask::{Answer, BackendChange, Follow, Refused, find};
use crate::control::clock::unix_now;
use crate::control::cluster::moved_slots;
use crate::control::config::WEIGHT_MAX;
use crate::control::operator::State;
use crate::control::view::Reason;
use crate::control::witness::TRACE_MAX;
use crate::dataplane::limits::SLOTS;
use crate::dataplane::tables::{Tables, Trace};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::info;

impl Control {
    /// What an operator wants of a backend.
    pub(super) fn change(&mut self, wanted: &BackendChange) -> Answer {
        let BackendChange { backend: name, state, weight } = wanted;
        if state.is_none() && weight.is_none() {
            return Err(Refused::usage(400, "neither a state nor a weight is given"));
        }
        if weight.is_some_and(|weight| i64::from(weight) > WEIGHT_MAX) {
            return Err(Refused::usage(400, format!("weight {} is out of range", weight.unwrap_or_default()))
                .help(format!("a number from 0 to {WEIGHT_MAX}")));
        }
        let (pool, place) = find(&self.cluster, name)?;
        let slow_start = self.cluster.pools[pool].slow_start;
        let backend = &mut self.cluster.pools[pool].backends[place];
        backend.put_into(state.unwrap_or(backend.state.now), slow_start, unix_now());
        if *state == Some(State::Ready) {
            backend.outlier.pardon();
        }
        backend.weight.now = weight.unwrap_or(backend.weight.now);
        self.cluster.rehash();
        let before = self.shared.tables.load_full();
        self.publish(Some(Reason::Operator));
        self.watch();
        let after = self.shared.tables.load_full();
        let pool = &self.cluster.pools[pool];
        let backend = &pool.backends[place];
        let moved = moved_slots(&before, &after).into_iter().find(|(name, _)| *name == pool.name);
        let keys_moved = moved.map(|(_, slots)| slots as f64 / SLOTS as f64);
        let (state, weight) = (backend.state.now, backend.weight.now);
        info!(
            event = "backend_changed",
            pool = %pool.name,
            backend = %backend.name,
            %state,
            weight,
            keys_moved = keys_moved.map(|share| format!("{:.1}%", share * 100.0))
        );
        // Whether it lives is not known yet if it comes out of maintenance: do not wait for its turn.
        let its_watch = |watched: &&Watched| watched.pool == pool.name && watched.name == backend.name;
        self.watches.iter().filter(its_watch).for_each(|watched| watched.watch.hurry());
        Ok(json!({
            "pool": pool.name,
            "backend": backend.name,
            "operator": state,
            "weight": weight,
            "keys_moved": keys_moved,
            "generation": after.generation,
            "pool_is_empty": pool.is_empty(),
        }))
    }

    pub(super) fn follow(&mut self, call: &Follow) -> Answer {
        let most = TRACE_MAX.as_secs();
        if !(1..=most).contains(&call.seconds) {
            return Err(Refused::usage(400, format!("{} seconds is out of range", call.seconds))
                .help(format!("a number from 1 to {most}")));
        }
        let call_id: Box<[u8]> = call.call_id.trim().as_bytes().into();
        if call_id.is_empty() {
            return Err(Refused::usage(400, "the Call-ID is empty"));
        }
        let number = self.witness.follow(Duration::from_secs(call.seconds));
        self.set_trace(Some(Trace { number, call_id }));
        info!(event = "trace_started", call_id = call.call_id, seconds = call.seconds);
        Ok(json!({ "trace": number, "seconds": call.seconds }))
    }

    pub(super) fn trace(&self, number: u64, after: u64) -> Answer {
        self.witness.trace(number, after).ok_or_else(|| {
            Refused::new(410, "another trace took the place of this one").help("one call is followed at a time")
        })
    }

    /// Tells shards which call to follow. The generation stays: nothing is decided otherwise than before.
    pub(super) fn set_trace(&self, trace: Option<Trace>) {
        let tables = Tables { trace, ..Tables::clone(&self.shared.tables.load()) };
        self.shared.tables.store(Arc::new(tables));
    }

    /// A drain that somebody asked for, who will not end the process by asking again.
    pub(super) fn drain_on_demand(&mut self) -> Value {
        let is_first = self.drain.is_none();
        if is_first {
            self.start_drain();
        }
        let left = self.drain.as_ref().map(|drain| drain.deadline.saturating_duration_since(Instant::now()));
        json!({ "draining": true, "is_first": is_first, "ends_within_s": left.unwrap_or_default().as_secs() })
    }
}
