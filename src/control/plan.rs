//! What a reload would change: the cluster that runs beside the one that was read, pool by pool.

use super::cluster::{Backend, Cluster, Pool, moved_slots};
use crate::dataplane::limits::SLOTS;
use crate::dataplane::tables::Tables;
use serde::Serialize;

/// The difference of two clusters.
#[derive(Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Every pool of either.
    pub pools: Vec<PoolPlan>,
    /// What differs beside pools: `routes`, `policy`, `names that mean us`, `listeners`, `capture`, `token keys`,
    /// `certificates`, `drain`, `nameservers`, `gso`.
    pub also: Vec<&'static str>,
}

/// What becomes of a pool.
#[derive(Debug, PartialEq, Serialize)]
pub struct PoolPlan {
    /// Its name.
    pub pool: String,
    /// Whether it stays.
    pub change: Change,
    /// What of it is different, in words.
    pub details: Vec<String>,
    /// The backends that come, go or change.
    pub backends: Vec<BackendPlan>,
    /// The share of keys that go elsewhere than before, 0 to 1; `None` where no table says where a key goes.
    pub keys_moved: Option<f64>,
}

/// What becomes of a backend.
#[derive(Debug, PartialEq, Serialize)]
pub struct BackendPlan {
    /// Its name.
    pub backend: String,
    /// Whether it stays.
    pub change: Change,
    /// What of it is different, in words.
    pub details: Vec<String>,
}

/// What becomes of a thing with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It comes.
    Added,
    /// It stays under its name and is different.
    Changed,
    /// It goes.
    Removed,
    /// It stays as it is.
    Same,
}

impl Plan {
    /// What is different in `after` from `before`, which have these tables.
    pub fn new((before, old): (&Cluster, &Tables), (after, new): (&Cluster, &Tables)) -> Plan {
        let moved = moved_slots(old, new);
        let slots = |name: &str| moved.iter().find(|(pool, _)| **pool == *name).map(|(_, slots)| *slots);
        let pool_of = |cluster: &Cluster, name: &str| cluster.pools.iter().position(|pool| *pool.name == *name);
        let mut pools: Vec<PoolPlan> = Vec::new();
        for pool in &after.pools {
            pools.push(match pool_of(before, &pool.name) {
                Some(old) => compare(&before.pools[old], pool, slots(&pool.name)),
                None => PoolPlan::whole(pool, Change::Added),
            });
        }
        let gone = before.pools.iter().filter(|pool| pool_of(after, &pool.name).is_none());
        pools.extend(gone.map(|pool| PoolPlan::whole(pool, Change::Removed)));
        Plan { pools, also: before.differs_beside_pools(after) }
    }
}

impl PoolPlan {
    fn whole(pool: &Pool, change: Change) -> PoolPlan {
        let backend = |one: &Backend| BackendPlan { backend: one.name.to_string(), change, details: Vec::new() };
        let backends = pool.backends.iter().map(backend).collect();
        PoolPlan { pool: pool.name.to_string(), change, details: Vec::new(), backends, keys_moved: None }
    }
}

/// `WHAT OLD -> NEW`, if they differ.
fn differs<T: PartialEq>(what: &str, old: &T, new: &T, word: impl Fn(&T) -> String) -> Option<String> {
    (old != new).then(|| format!("{what} {} -> {}", word(old), word(new)))
}

/// `CallId` as the configuration has it: `call-id`.
pub fn in_words(value: &impl std::fmt::Debug) -> String {
    let mut words = String::new();
    for letter in format!("{value:?}").chars() {
        if letter.is_ascii_uppercase() && !words.is_empty() {
            words.push('-');
        }
        words.push(letter.to_ascii_lowercase());
    }
    words
}

fn compare(old: &Pool, new: &Pool, moved: Option<usize>) -> PoolPlan {
    let mut details: Vec<String> = Vec::new();
    details.extend(differs("affinity", &old.affinity, &new.affinity, in_words));
    details.extend(differs("strategy", &old.strategy, &new.strategy, in_words));
    // All backends of a pool have these of it.
    let reach = |pool: &Pool| pool.backends.first().map(|one| one.reach);
    let rest = [
        ("health", old.health != new.health),
        ("outlier", old.outlier != new.outlier),
        ("slow_start", old.slow_start != new.slow_start),
        ("panic", old.panic != new.panic),
        ("mtu", reach(old).map(|reach| reach.datagram_max) != reach(new).map(|reach| reach.datagram_max)),
        ("pad", reach(old).map(|reach| reach.pads) != reach(new).map(|reach| reach.pads)),
        ("send_proxy", reach(old).map(|reach| reach.proxy_header) != reach(new).map(|reach| reach.proxy_header)),
    ];
    details.extend(rest.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name.to_owned()));
    let mut backends: Vec<BackendPlan> = Vec::new();
    let mut add = |one: &Backend, change, details| {
        backends.push(BackendPlan { backend: one.name.to_string(), change, details });
    };
    for one in &new.backends {
        match old.backends.iter().find(|before| before.name == one.name) {
            None => add(one, Change::Added, Vec::new()),
            Some(before) => {
                let number = |number: &u32| number.to_string();
                let details: Vec<String> = [
                    differs("address", &before.place.address, &one.place.address, ToString::to_string),
                    differs("our address", &before.place.local, &one.place.local, ToString::to_string),
                    differs("transport", &before.place.transport, &one.place.transport, ToString::to_string),
                    differs("max_message_size", &before.reach.message_max, &one.reach.message_max, number),
                    differs("weight", &before.weight.now, &one.weight.now, number),
                    differs("priority", &before.priority, &one.priority, number),
                    // Each shard's part is what is kept of it, which nobody wrote.
                    (before.max_open != one.max_open).then(|| "max_open".to_owned()),
                    differs("state", &before.state.now, &one.state.now, ToString::to_string),
                ]
                .into_iter()
                .flatten()
                .collect();
                if !details.is_empty() {
                    add(one, Change::Changed, details);
                }
            }
        }
    }
    for gone in old.backends.iter().filter(|gone| new.backends.iter().all(|one| one.name != gone.name)) {
        add(gone, Change::Removed, Vec::new());
    }
    PoolPlan {
        pool: new.name.to_string(),
        change: if details.is_empty() && backends.is_empty() { Change::Same } else { Change::Changed },
        keys_moved: moved.map(|slots| slots as f64 / SLOTS as f64),
        details,
        backends,
    }
}

#[cfg(test)]
mod tests {
    use super::super::cluster::tests::{cluster, keys, text};
    use super::*;

    fn plan(before: &str, after: &str) -> Plan {
        let before = cluster(before, None);
        let old = before.tables(1, &keys(), false, None);
        let after = cluster(after, Some(&before));
        let new = after.tables(2, &keys(), false, Some(&old));
        Plan::new((&before, &old), (&after, &new))
    }

    #[test]
    fn a_backend_that_comes_and_one_that_goes_are_named_with_the_share_they_move() {
        let plan = plan(&text(&[1, 2, 3]), &text(&[1, 2, 4]));
        let pool = &plan.pools[0];
        let said: Vec<_> = pool.backends.iter().map(|one| (&one.backend[..], one.change)).collect();
        assert_eq!(said, [("127.0.0.1:4", Change::Added), ("127.0.0.1:3", Change::Removed)]);
        // Of three equals, one leaves a third and another takes a third: some slots go straight from one to the other.
        assert!(pool.keys_moved.is_some_and(|share| (0.4..0.7).contains(&share)), "{pool:?}");
        assert!(plan.also.is_empty());
    }

    #[test]
    fn a_changed_weight_is_said_and_an_unchanged_pool_moves_nothing() {
        let heavier = text(&[1, 2]).replace(":1\" }", ":1\", weight = 200 }");
        let changed = plan(&text(&[1, 2]), &heavier);
        assert_eq!(changed.pools[0].backends[0].details, ["weight 100 -> 200"]);
        assert_eq!(changed.pools[0].change, Change::Changed);
        let same = plan(&text(&[1, 2]), &text(&[1, 2]));
        assert_eq!((same.pools[0].change, same.pools[0].keys_moved), (Change::Same, Some(0.0)));
    }

    #[test]
    fn how_messages_get_there_is_told_in_the_words_of_the_file() {
        let tcp = text(&[1]).replace(":1\"", ":1;transport=tcp\"");
        let all = tcp.replace("name =", "mtu = 1500\nname =").replace("tcp\" }", "tcp\", max_message_size = 4000 }");
        let plan = plan(&text(&[1]), &all);
        assert_eq!(plan.pools[0].details, ["mtu"]);
        assert_eq!(plan.pools[0].backends[0].details, ["transport udp -> tcp", "max_message_size 65535 -> 4000"]);
    }

    #[test]
    fn whatever_is_written_of_a_pool_or_backend_is_a_change_of_it() {
        let of_pool = |written: &str| {
            let before = format!("[balancer]\ngso = \"off\"\n{}", text(&[1, 2]).replace("\" }", ";transport=tcp\" }"));
            let PoolPlan { change, details, backends, .. } =
                plan(&before, &before.replace("name =", &format!("{written}\nname ="))).pools.remove(0);
            assert_eq!((change, backends), (Change::Changed, Vec::new()), "{written}");
            details.join(", ")
        };
        for (written, said) in [
            ("strategy = \"round-robin\"", "strategy hash -> round-robin"),
            ("health = { fall = 5 }", "health"),
            ("outlier = { share = 41 }", "outlier"),
            ("slow_start = \"10s\"", "slow_start"),
            ("panic = 50", "panic"),
            ("pad = true", "pad"),
            ("send_proxy = \"v2\"", "send_proxy"),
        ] {
            assert_eq!(of_pool(written), said);
        }
        let limited = plan(&text(&[1]), &text(&[1]).replace(":1\" }", ":1\", max_open = 7 }"));
        assert_eq!(limited.pools[0].backends[0].details, ["max_open"]);
    }

    #[test]
    fn another_affinity_makes_other_keys_so_no_share_is_claimed() {
        let plan = plan(&text(&[1, 2]), &text(&[1, 2]).replace("name =", "affinity = \"aor\"\nname ="));
        assert_eq!(plan.pools[0].details, ["affinity call-id -> aor"]);
        assert_eq!(plan.pools[0].keys_moved, None);
    }

    #[test]
    fn pools_that_come_and_go_and_rules_are_told() {
        let more = text(&[1])
            + "[[pool]]\nname = \"extra\"\nbackend = [{ uri = \"sip:127.0.0.1:9\" }]\n\
                                 [[route]]\nmethods = [\"REGISTER\"]\npool = \"extra\"\n";
        let moved = |plan: Plan| plan.pools.iter().map(|pool| pool.keys_moved).collect::<Vec<_>>();
        assert_eq!(moved(plan(&more, &more.replace(":9", ":8"))), [Some(0.0), Some(1.0)]);
        let there = plan(&text(&[1]), &more);
        assert_eq!((&there.pools[1].pool[..], there.pools[1].change), ("extra", Change::Added));
        assert_eq!(there.also, ["routes"]);
        let back = plan(&more, &text(&[1]));
        assert_eq!((&back.pools[1].pool[..], back.pools[1].change), ("extra", Change::Removed));
    }
}
