//! What connections there are, for an operator who asks: `viahop ctl connections`.

use super::Streams;
use super::connection::{Connection, Origin, State};
use crate::link::{Connections, Listed, Listing, Signal};
use crate::shard::io::Io;
use crate::shard::run::Shard;
use std::iter::once;
use std::net::SocketAddr;

/// Connections that are described at most: it takes as long as three messages. How many there are is told in any case.
const LISTED_MAX: usize = 1000;

impl<I: Io> Shard<I> {
    /// Tells of the connections, if they were asked for and were not told yet.
    pub(super) fn list_if_asked(&mut self, now_ms: u64) {
        let listing = self.link.shared.listing();
        if listing.number == self.listed {
            return;
        }
        self.listed = listing.number;
        let (count, listed) = self.streams.as_ref().map_or_else(Default::default, |one| one.list(listing, now_ms));
        let told = Connections { listing: listing.number, shard: self.number, count, listed };
        self.link.signal(Signal::Connections(Box::new(told)));
    }
}

impl Streams {
    /// How many connections `listing` means, and the first of them.
    fn list(&self, listing: Listing, now_ms: u64) -> (usize, Vec<Listed>) {
        let is_meant = |one: &&Connection| {
            let mut ends = once(one.peer).chain(one.client());
            listing.peer.is_none_or(|peer| ends.any(|end| end.ip().to_canonical() == peer))
        };
        let mut all = self.slots.iter().filter_map(|slot| slot.as_deref()).filter(is_meant);
        let listed: Vec<Listed> = all.by_ref().take(LISTED_MAX).map(|one| one.listed(now_ms)).collect();
        (listed.len() + all.count(), listed)
    }
}

impl Connection {
    /// The client it is for, if it is to a backend that wants to know.
    fn client(&self) -> Option<SocketAddr> {
        self.on_behalf.as_deref().map(|own| own.client.from)
    }

    fn listed(&self, now_ms: u64) -> Listed {
        Listed {
            peer: self.peer,
            listener: self.listener,
            client: self.client(),
            is_accepted: self.origin == Origin::Accepted,
            state: match self.state {
                State::Connecting => "connecting",
                State::Handshaking => "handshaking",
                State::Open => "open",
                State::HalfClosed => "half-closed",
                State::Closing => "closing",
            },
            state_ms: now_ms.saturating_sub(self.state_since_ms),
            silent_ms: now_ms.saturating_sub(self.active_ms),
            partial: self.partial.len(),
            unsent: self.unsent(),
            unanswered: self.unanswered,
        }
    }
}
