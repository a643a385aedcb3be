//! What happened lately: the last lines of the log that have an `event=`, for `viahop ctl events`.
//!
//! The log itself may go anywhere, or nowhere; this is kept in memory, bounded, whatever its level is set to.

use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Events kept. A fleet that flaps all night shows its last hour.
const EVENTS_MAX: usize = 512;

/// Octets kept of one value. A refused reload brings the file's errors along.
const VALUE_MAX: usize = 512;

/// One of them.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// Counts up from 1, so that whoever asks again knows what is new.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// `info`, `warn` or `error`.
    pub level: &'static str,
    /// The word for it.
    pub event: String,
    /// What the line says beside.
    pub fields: Map<String, Value>,
}

/// The last events.
#[derive(Debug, Default)]
pub struct Events(Mutex<VecDeque<Event>>);

impl Events {
    /// Adds one, and forgets the oldest if there are too many.
    pub fn add(&self, level: &'static str, event: String, mut fields: Map<String, Value>) {
        for value in fields.values_mut() {
            if let Value::String(text) = value
                && let Some((end, _)) = text.char_indices().nth(VALUE_MAX)
            {
                text.truncate(end);
                text.push('…');
            }
        }
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = events.back().map_or(1, |last| last.number + 1);
        if events.len() == EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(Event { number, at_ms, level, event, fields });
    }

    /// The last ones, oldest first.
    pub fn last(&self) -> Vec<Event> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten_and_long_values_are_cut() {
        let events = Events::default();
        for _ in 0..EVENTS_MAX + 3 {
            events.add("info", "x".into(), Map::from_iter([("why".into(), "ä".repeat(600).into())]));
        }
        let last = events.last();
        assert_eq!((last.len(), last[0].number), (EVENTS_MAX, 4));
        assert_eq!(last[0].fields["why"].as_str().unwrap().chars().count(), VALUE_MAX + 1);
    }
}
