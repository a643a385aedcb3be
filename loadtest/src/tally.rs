//! How many messages of each kind went one way past one point: requests by method, responses by status and method. What
//! one side sent and the other side never saw was lost in between, and this says which kind it was.

use crate::sip::message::Method;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;

/// Kinds one tally tells apart; what else comes is counted under the last. A basic call has six, and no peer may make
/// this grow by inventing status codes.
const KINDS_MAX: usize = 64;

/// A kind of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// Method of the request, or of the request that a response is for.
    pub method: Method,
    /// Status of a response, 0 for a request.
    pub code: u16,
}

impl Kind {
    /// Requests with this method.
    pub const fn request(method: Method) -> Kind {
        Kind { method, code: 0 }
    }

    /// Responses with this status to requests with this method.
    pub const fn response(code: u16, method: Method) -> Kind {
        Kind { method, code }
    }

    fn read(text: &str) -> Option<Kind> {
        let (code, method) = text.split_once(' ').unwrap_or(("0", text));
        Some(Kind { method: Method::read(method.as_bytes()), code: code.parse().ok()? })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.method.name();
        if self.code == 0 { to.pad(name) } else { to.pad(&format!("{} {name}", self.code)) }
    }
}

/// Messages by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(Vec<(Kind, u64)>);

impl Tally {
    /// Counts one message.
    #[inline]
    pub fn note(&mut self, kind: Kind) {
        self.note_many(kind, 1);
    }

    /// Counts several.
    #[inline]
    pub fn note_many(&mut self, kind: Kind, count: u64) {
        // A run has a handful of kinds, so looking through them costs less than a hash.
        if let Some((_, counted)) = self.0.iter_mut().find(|(known, _)| *known == kind) {
            *counted += count;
        } else if self.0.len() < KINDS_MAX {
            self.0.push((kind, count));
        } else if let Some((_, last)) = self.0.last_mut() {
            *last += count;
        }
    }

    /// How many of this kind.
    pub fn of(&self, kind: Kind) -> u64 {
        self.0.iter().find(|(known, _)| *known == kind).map_or(0, |(_, count)| *count)
    }

    /// All kinds together.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// Adds what another counted.
    pub fn add(&mut self, other: &Tally) {
        other.0.iter().for_each(|(kind, count)| self.note_many(*kind, *count));
    }

    /// The kinds, in no order that means anything.
    pub fn kinds(&self) -> impl Iterator<Item = (Kind, u64)> + '_ {
        self.0.iter().copied()
    }
}

/// In a file: `{"INVITE": 100, "180 INVITE": 100}`.
impl Serialize for Tally {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let named: BTreeMap<String, u64> = self.kinds().map(|(kind, count)| (kind.to_string(), count)).collect();
        named.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Tally {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Tally, D::Error> {
        let mut tally = Tally::default();
        for (name, count) in BTreeMap::<String, u64>::deserialize(from)? {
            let kind =
                Kind::read(&name).ok_or_else(|| serde::de::Error::custom(format!("`{name}` is no kind of message")))?;
            tally.note_many(kind, count);
        }
        Ok(tally)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_counted_apart_and_add_up() {
        let (invite, ringing) = (Kind::request(Method::Invite), Kind::response(180, Method::Invite));
        let (mut one, mut other) = (Tally::default(), Tally::default());
        one.note(invite);
        one.note(ringing);
        other.note_many(ringing, 5);
        one.add(&other);
        assert_eq!((one.of(invite), one.of(ringing), one.total()), (1, 6, 7));
        assert_eq!(one.of(Kind::request(Method::Bye)), 0);
    }

    #[test]
    fn a_file_gives_the_same_tally_again() {
        let mut tally = Tally::default();
        tally.note_many(Kind::request(Method::Other), 2);
        tally.note_many(Kind::response(200, Method::Bye), 3);
        let text = serde_json::to_string(&tally).unwrap();
        assert_eq!(text, r#"{"(other)":2,"200 BYE":3}"#);
        assert_eq!(serde_json::from_str::<Tally>(&text).unwrap(), tally);
        assert!(serde_json::from_str::<Tally>(r#"{"2oo BYE":3}"#).is_err());
    }

    #[test]
    fn invented_codes_do_not_make_it_grow() {
        let mut tally = Tally::default();
        (100..700).for_each(|code| tally.note(Kind::response(code, Method::Invite)));
        assert_eq!((tally.kinds().count(), tally.total()), (KINDS_MAX, 600));
    }
}
