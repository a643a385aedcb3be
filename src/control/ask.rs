//! What can be asked of the control loop by somebody who waits for the answer.
//!
//! ```text
//! admin: HTTP, or the socket ─► Asked { ask, reply } ─► run: does it ─► an answer in JSON, or why not
//! ```
//!
//! Signals of the system are orders too, but nobody waits for what becomes of those.

use super::cluster::Cluster;
use super::config::closest;
use super::operator::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::net::IpAddr;
use tokio::sync::oneshot;

/// Something that is asked.
#[derive(Debug)]
pub enum Ask {
    /// To change a backend.
    Backend(BackendChange),
    /// To show the connections, of all or of one peer.
    Connections(Option<IpAddr>),
    /// To finish what is under way, then end.
    Drain,
    /// To show the last messages that could not be read.
    Errors,
    /// To follow a call.
    Follow(Follow),
    /// To read the configuration again.
    Reload(Reload),
    /// To show what is known of a call that is followed.
    Trace {
        /// The number that the answer to [`Ask::Follow`] gave.
        number: u64,
        /// The number of the last message that is known already.
        after: u64,
    },
}

/// A call to follow.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Follow {
    /// Its Call-ID.
    pub call_id: String,
    /// For how long.
    pub seconds: u64,
}

/// A change of one backend: its state, its weight, or both.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct BackendChange {
    /// Its name, or the name of its pool, a slash, and its own.
    pub backend: String,
    /// What it is to be used for.
    #[serde(default)]
    pub state: Option<State>,
    /// Its share of new keys, 0 to 10,000.
    #[serde(default)]
    pub weight: Option<u32>,
}

/// A reload.
#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Reload {
    /// Whether only to say what would change.
    #[serde(default)]
    pub dry_run: bool,
}

/// An answer, as it is sent.
pub type Answer = Result<Value, Refused>;

/// Why not.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Refused {
    /// The status code of HTTP that goes with it.
    #[serde(skip)]
    pub status: u16,
    /// What is wrong, in a sentence without a full stop.
    pub error: String,
    /// What to do.
    pub help: Option<String>,
    /// What is wrong with the file, as `viahop check` shows it.
    pub report: Option<String>,
    /// The exit code of `viahop ctl`.
    pub exit_code: u8,
}

impl Refused {
    /// A refusal; exit code 1.
    pub fn new(status: u16, error: impl Into<String>) -> Refused {
        Refused { status, error: error.into(), help: None, report: None, exit_code: 1 }
    }

    /// Whoever asked wrote something that makes no sense; exit code 2.
    pub fn usage(status: u16, error: impl Into<String>) -> Refused {
        Refused { exit_code: 2, ..Refused::new(status, error) }
    }

    /// The same, with what to do.
    #[must_use]
    pub fn help(self, help: impl Into<String>) -> Refused {
        Refused { help: Some(help.into()), ..self }
    }
}

/// Something that is asked, and where the answer goes.
#[derive(Debug)]
pub struct Asked {
    /// What.
    pub ask: Ask,
    /// Where to; whoever asked may be gone.
    pub reply: oneshot::Sender<Answer>,
}

/// The place of the backend that `wanted` means: the number of its pool and its number in it.
///
/// # Errors
/// There is none of the name, or one in each of several pools.
pub fn find(cluster: &Cluster, wanted: &str) -> Result<(usize, usize), Refused> {
    let full = |pool: usize, name: &str| format!("{}/{name}", cluster.pools[pool].name);
    let meant: Vec<_> = cluster
        .backends()
        .filter(|((pool, _), backend)| *backend.name == *wanted || full(*pool, &backend.name) == wanted)
        .collect();
    match meant[..] {
        [(place, _)] => Ok(place),
        [] => {
            let names: Vec<&str> = cluster.backends().map(|(_, backend)| &*backend.name).collect();
            let error = format!("there is no backend of the name `{wanted}`");
            let help = match closest(wanted, &names) {
                Some(name) => format!("did you mean `{name}`?"),
                None => "`viahop ctl backends` lists them".into(),
            };
            Err(Refused::usage(404, error).help(help))
        }
        _ => {
            let names: Vec<String> =
                meant.iter().map(|((pool, _), one)| format!("`{}`", full(*pool, &one.name))).collect();
            let error = format!("backends of several pools have the name `{wanted}`");
            Err(Refused::usage(409, error).help(format!("say which: {}", names.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::cluster::tests::{cluster, text};
    use super::*;

    #[test]
    fn a_backend_is_found_by_its_name_or_by_that_of_its_pool_too() {
        let two_pools = text(&[1, 2]) + "[[pool]]\nname = \"other\"\nbackend = [{ uri = \"sip:127.0.0.1:2\" }]\n";
        let cluster = cluster(&two_pools, None);
        assert_eq!(find(&cluster, "127.0.0.1:1"), Ok((0, 0)));
        assert_eq!(find(&cluster, "other/127.0.0.1:2"), Ok((1, 0)));
        let unclear = find(&cluster, "127.0.0.1:2").unwrap_err();
        assert_eq!((unclear.status, unclear.exit_code), (409, 2));
        assert!(unclear.help.unwrap().contains("`proxies/127.0.0.1:2`, `other/127.0.0.1:2`"));
    }

    #[test]
    fn of_a_name_that_is_none_the_one_that_was_meant_is_named_and_no_other() {
        let three = "[[pool]]\nname = \"other\"\nbackend = [{ uri = \"sip:10.0.0.11\" }, { uri = \"sip:10.0.0.12\" }, { uri = \"sip:10.0.0.13\" }]\n";
        let cluster = cluster(&(text(&[1, 11_191, 11_192]) + three), None);
        for (wanted, help) in [
            ("127.0.0.l:1", "did you mean `127.0.0.1:1`?"),
            // Both have a 1 where the letter is, and one more behind it.
            ("127.0.0.l:11191", "did you mean `127.0.0.1:11191`?"),
            ("10.0.0.12", "did you mean `10.0.0.12:5060`?"),
            ("10.0.0.12:506O", "did you mean `10.0.0.12:5060`?"),
            ("10.0.0.14:5060", "`viahop ctl backends` lists them"),
        ] {
            let unknown = find(&cluster, wanted).unwrap_err();
            assert_eq!((unknown.status, unknown.help.as_deref()), (404, Some(help)), "{wanted}");
        }
    }
}
