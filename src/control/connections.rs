//! What connections the shards have, for `viahop ctl connections`.
//!
//! ```text
//! ctl ─► ask ─► here: a question with a number ─► link ─► every shard
//! ctl ◄── all have answered, or a second has passed ◄── signals ◄──┘
//! ```

use super::ask::{Answer, Refused};
use crate::link::{Connections, Listed, Listing, Shared};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long a shard may take to answer. One that is stuck is not to keep the others' answers.
const PATIENCE: Duration = Duration::from_secs(1);

/// Questions that wait for the one under way.
const WAITING_MAX: usize = 16;

/// Questions under way. Each goes to the shards alone: they answer the last that was asked, so the next one waits.
#[derive(Debug, Default)]
pub struct Listings {
    asked: u64,
    under_way: Option<UnderWay>,
    waiting: Vec<(Option<IpAddr>, oneshot::Sender<Answer>)>,
}

#[derive(Debug)]
struct UnderWay {
    since: Instant,
    answers: Vec<Connections>,
    reply: oneshot::Sender<Answer>,
}

impl Listings {
    /// Asks for the connections of `peer`, or for all.
    pub fn ask(&mut self, peer: Option<IpAddr>, reply: oneshot::Sender<Answer>, shared: &Shared) {
        if self.waiting.len() == WAITING_MAX {
            drop(reply.send(Err(Refused::new(503, "too many ask for connections at the same time"))));
            return;
        }
        self.waiting.push((peer, reply));
        self.next(shared);
    }

    fn next(&mut self, shared: &Shared) {
        if self.under_way.is_some() || self.waiting.is_empty() {
            return;
        }
        let (peer, reply) = self.waiting.remove(0);
        self.asked += 1;
        self.under_way = Some(UnderWay { since: Instant::now(), answers: Vec::new(), reply });
        shared.list(Listing { number: self.asked, peer: peer.map(|peer| peer.to_canonical()) });
    }

    /// Takes the answer of one of `shards` shards.
    pub fn on_told(&mut self, told: Connections, shards: usize, names: &[(Box<str>, SocketAddr)], shared: &Shared) {
        let Some(under_way) = self.under_way.as_mut().filter(|_| told.listing == self.asked) else { return };
        under_way.answers.push(told);
        if under_way.answers.len() == shards {
            self.answer(shards, names, shared);
        }
    }

    /// Answers with what there is, if a shard has taken too long.
    pub fn on_tick(&mut self, shards: usize, names: &[(Box<str>, SocketAddr)], shared: &Shared) {
        if self.under_way.as_ref().is_some_and(|one| one.since.elapsed() >= PATIENCE) {
            self.answer(shards, names, shared);
        }
    }

    fn answer(&mut self, shards: usize, names: &[(Box<str>, SocketAddr)], shared: &Shared) {
        let Some(UnderWay { mut answers, reply, .. }) = self.under_way.take() else { return };
        answers.sort_by_key(|told| told.shard);
        let count: usize = answers.iter().map(|told| told.count).sum();
        let silent: Vec<usize> =
            (0..shards).filter(|number| !answers.iter().any(|told| told.shard == *number)).collect();
        let rows = answers.iter().flat_map(|told| told.listed.iter().map(|one| row(told.shard, one, names)));
        let rows: Vec<Value> = rows.collect();
        // Whoever asked may have gone away.
        reply.send(Ok(json!({ "count": count, "silent_shards": silent, "connections": rows }))).ok();
        self.next(shared);
    }
}

fn row(shard: usize, one: &Listed, names: &[(Box<str>, SocketAddr)]) -> Value {
    let listener = one.listener.and_then(|index| names.get(index as usize)).map(|(name, _)| name);
    json!({
        "peer": one.peer,
        "listener": listener,
        "client": one.client,
        "opened_by": if one.is_accepted { "peer" } else { "viahop" },
        "state": one.state,
        "state_ms": one.state_ms,
        "silent_ms": one.silent_ms,
        "partial": one.partial,
        "unsent": one.unsent,
        "unanswered": one.unanswered,
        "shard": shard,
    })
}
