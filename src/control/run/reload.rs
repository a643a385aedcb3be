//! Reading the configuration again: beside the loop, compared in full before anything of it is used, and then put in force
//! at once or not at all.

use super::Control;
use crate::control::ask::{Answer, Refused};
use crate::control::clock::unix_now;
use crate::control::cluster::{Cluster, moved_slots};
use crate::control::config::problem::{Problem, Report, Source};
use crate::control::config::{Config, Listen, Loaded, Pool, PoolTls};
use crate::control::discovery::{self, Found};
use crate::control::list_watch::Event;
use crate::control::plan::Plan;
use crate::control::resolve::{InForce, Resolved, resolve};
use crate::control::secret::Obtained;
use crate::control::view::{Reason, Reload};
use crate::dataplane::keys::Keys;
use crate::dataplane::transport::Transport;
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::{error, info, warn};

/// A configuration that is being read.
pub(super) struct Reading {
    /// What comes of it is nothing if its lists, which are all that was read, are as they were.
    pub(super) task: JoinHandle<Result<Option<Read>, Report>>,
    /// Whether it is the one in force, with its lists read again.
    pub(super) of_lists: bool,
    /// Whether only to say what would change.
    pub(super) dry_run: bool,
    /// Who wants to know; nobody, if it was a signal.
    pub(super) reply: Option<oneshot::Sender<Answer>>,
}

pub(super) fn busy_reading() -> Refused {
    Refused::new(409, "a configuration is being read already").help("ask again when that is done; a name may take 5 s")
}

/// One that was read and may come into force.
pub(super) struct Read {
    resolved: Resolved,
    warnings: Report,
    keys: Keys,
    fingerprint: String,
}

impl Control {
    /// Reads the configuration beside the loop: a name may take seconds.
    pub(super) fn start_reading(&self, dry_run: bool, reply: Option<oneshot::Sender<Answer>>) -> Reading {
        let (origin, running, secret) = (self.origin.clone(), self.config.clone(), self.secret.clone());
        let in_force = self.in_force(Vec::new());
        let task = tokio::spawn(async move {
            let loaded = aside(move || origin.load()).await?;
            let problems = fixed_by_the_start(&running, &loaded.config);
            if !problems.is_empty() {
                return Err(Report { source: loaded.source, problems });
            }
            let (loaded, obtained) = aside(move || match secret.obtained(&loaded.config.token_keys, Vec::new()) {
                Ok(obtained) => Ok((loaded, obtained)),
                Err(problem) => Err(Report { source: loaded.source, problems: vec![problem] }),
            })
            .await?;
            let Obtained { keys, fingerprint, remarks, .. } = obtained;
            let (resolved, mut warnings) = resolve(loaded, &keys, &in_force).await?;
            warnings.problems.extend(remarks);
            Ok(Some(Read { resolved, warnings, keys, fingerprint }))
        });
        Reading { task, of_lists: false, dry_run, reply }
    }

    /// Reads the lists of the configuration in force, likewise, and takes what was found of its domains. The file itself may have been
    /// changed since and not be meant yet: it is left alone.
    pub(super) fn start_reading_lists(&self) -> Reading {
        let (running, source, is_well) = (self.config.clone(), self.source.clone(), self.view.reload.ok);
        let (keys, fingerprint) = (self.keys.clone(), self.fingerprint.clone());
        let in_force = self.in_force(self.discovery.found.clone());
        let task = tokio::spawn(async move {
            let loaded = Loaded { config: running.clone(), warnings: Vec::new(), source };
            let loaded = aside(move || loaded.with_lists_of_this_moment()).await?;
            let is_to_be_asked_for = |pool: &Pool| pool.discover.is_some();
            let is_as_before = |config: &Config| is_well && *config == running;
            if is_as_before(&loaded.config) && !running.pools.iter().any(is_to_be_asked_for) {
                return Ok(None);
            }
            let (resolved, warnings) = resolve(loaded, &keys, &in_force).await?;
            if is_as_before(&resolved.config) {
                return Ok(None);
            }
            Ok(Some(Read { resolved, warnings, keys, fingerprint }))
        });
        Reading { task, of_lists: true, dry_run: false, reply: None }
    }

    fn in_force(&self, found: Vec<Found>) -> InForce {
        let (addresses, answering) = (self.cluster.addresses(), self.cluster.answering());
        InForce { addresses, pools: self.config.pools.clone(), answering, found }
    }

    /// What a list does, or a domain; whether it wants to be read.
    pub(super) fn is_to_be_read(&mut self, event: Event) -> bool {
        let path = match event {
            Event::Vanished(path) => path,
            Event::Changed(_) => return true,
            Event::Discovered(found) => {
                self.discovery.take(found);
                return true;
            }
        };
        let note = "what was last read of it stays in force, and it is read when it is back; a start would fail";
        warn!(event = "list_vanished", path = %path.display(), note);
        self.view.reload.ok = false;
        self.view.reload.error = Some(format!("{} has vanished", path.display()));
        self.show();
        false
    }

    /// What would change, and nothing else.
    pub(super) fn rehearse(&self, outcome: Result<Read, Report>) -> Answer {
        let Read { resolved, warnings, keys, fingerprint } = outcome.map_err(|report| refused_file(&report))?;
        let beside = self.differs_beside_the_cluster(&resolved, &fingerprint);
        let after = Cluster::new(resolved, Some(&self.cluster), self.counters.len(), unix_now(), &fingerprint);
        let before = self.shared.tables.load_full();
        let tables = after.tables(before.generation + 1, &keys, self.drain.is_some(), Some(&before));
        let mut plan = Plan::new((&self.cluster, &before), (&after, &tables));
        plan.also.extend(beside);
        Ok(json!({ "applied": false, "plan": plan, "warnings": shown(&warnings) }))
    }

    /// What of `resolved` differs from what is in force and is not in the cluster.
    fn differs_beside_the_cluster(&self, resolved: &Resolved, fingerprint: &str) -> Vec<&'static str> {
        let pools = |config: &Config| -> Vec<(String, PoolTls)> {
            config.pools.iter().filter_map(|pool| Some((pool.name.clone(), pool.tls.clone()?))).collect()
        };
        let are_renewed = resolved.credentials().servers != self.shared.credentials.load().servers;
        let rows = [
            ("token keys", fingerprint != self.fingerprint),
            ("certificates", are_renewed || pools(&resolved.config) != pools(&self.config)),
            ("drain", resolved.config.drain != self.config.drain),
            ("nameservers", resolved.config.nameservers != self.config.nameservers),
            ("gso", resolved.config.gso != self.config.gso),
        ];
        rows.into_iter().filter(|row| row.1).map(|row| row.0).collect()
    }

    pub(super) fn reload(&mut self, outcome: Result<Read, Report>, of_lists: bool) -> Answer {
        match outcome {
            Ok(Read { resolved, warnings, keys, fingerprint }) => {
                let beside = self.differs_beside_the_cluster(&resolved, &fingerprint);
                warnings.tell(false);
                (self.keys, self.fingerprint) = (keys, fingerprint);
                self.config = resolved.config.clone();
                // Until the tables are swapped, they may send by TLS to whom these credentials leave out; from then on, to whom
                // those before left out.
                let (credentials, before) = (resolved.credentials(), self.shared.credentials.load_full());
                let credentials = credentials.taking_over(&before);
                self.shared.credentials.store(Arc::new(credentials.clone().keeping_clients_of(&before)));
                self.view.credentials = Arc::new(credentials);
                self.source.clone_from(&warnings.source);
                self.wrong_file = self.wrong_file.take().filter(|_| of_lists);
                let before = self.shared.tables.load_full();
                let shards = self.counters.len();
                let after = Cluster::new(resolved, Some(&self.cluster), shards, unix_now(), &self.fingerprint);
                let cluster_before = std::mem::replace(&mut self.cluster, after);
                let is_there = |name: &str| self.cluster.pools.iter().any(|pool| *pool.name == *name);
                self.view.moves.retain(|(pool, _), _| is_there(pool));
                self.view.probe_times.retain(|pool, _| is_there(pool));
                let (ok, error) = (self.wrong_file.is_none(), self.wrong_file.clone());
                self.view.reload = Reload { ok, last_success_at: unix_now(), error };
                self.publish(Some(Reason::Reload));
                self.shared.credentials.store(self.view.credentials.clone());
                self.watch();
                self.lists.follow(&self.config, &self.list_to);
                if !of_lists {
                    // DNS was asked anew: what the watch has found may be older.
                    self.discovery = discovery::Watch::default();
                }
                self.discovery.follow(&self.config, &self.list_to);
                let after = self.shared.tables.load_full();
                let moved: Vec<String> = moved_slots(&before, &after)
                    .into_iter()
                    .map(|(pool, count)| format!("{pool}:{:.1}%", count as f64 * 100.0 / 65_536.0))
                    .collect();
                let generation = after.generation;
                info!(event = "reloaded", generation, hash = %self.cluster.hash, keys_moved = moved.join(","));
                let mut plan = Plan::new((&cluster_before, &before), (&self.cluster, &after));
                plan.also.extend(beside);
                Ok(json!({ "applied": true, "generation": generation, "plan": plan, "warnings": shown(&warnings) }))
            }
            Err(report) => {
                let first = report.summary();
                error!(event = "reload_refused", error = first, note = "the configuration in force stays");
                report.tell(false);
                if !of_lists {
                    self.wrong_file.clone_from(&first);
                }
                self.view.reload.ok = false;
                self.view.reload.error = first;
                self.show();
                Err(refused_file(&report))
            }
        }
    }
}

/// A report in one text, if there is anything in it.
pub(super) fn shown(report: &Report) -> Option<String> {
    (!report.problems.is_empty()).then(|| report.render(false))
}

pub(super) fn refused_file(report: &Report) -> Refused {
    let first = report.summary().unwrap_or_else(|| "the configuration is wrong".into());
    let refused = Refused::new(422, first).help("the configuration in force stays");
    Refused { report: shown(report), exit_code: report.exit_code(), ..refused }
}

/// Reads files where nobody waits for them but who asked: a file system may hang.
async fn aside<T: Send + 'static>(read: impl FnOnce() -> Result<T, Report> + Send + 'static) -> Result<T, Report> {
    spawn_blocking(read).await.unwrap_or_else(|error| {
        let problems = vec![Problem::environment(format!("reading broke off: {error}"))];
        Err(Report { source: Source::default(), problems })
    })
}

/// What a reload would have to change and cannot: sockets, threads and keys are those of the start.
pub(super) fn fixed_by_the_start(running: &Config, wanted: &Config) -> Vec<Problem> {
    let sockets = |config: &Config| -> Vec<(String, Transport, SocketAddr, Vec<String>)> {
        let of = |one: &Listen| (one.name.clone(), one.transport, one.address, one.origins.clone());
        config.listeners.iter().map(of).collect()
    };
    let rows = [
        ("`[[listen]]` addresses, names and origins", sockets(running) != sockets(wanted)),
        ("`cores` and `shards`", running.cores != wanted.cores),
        ("`[admin]`", (running.admin, &running.socket) != (wanted.admin, &wanted.socket)),
        ("`secret` and `secret_file`", running.secret != wanted.secret),
        ("`egress`", (running.egress_v4, running.egress_v6) != (wanted.egress_v4, wanted.egress_v6)),
        (
            "`egress_mode` and `egress_ports`",
            (running.egress_mode, &running.egress_ports) != (wanted.egress_mode, &wanted.egress_ports),
        ),
        ("`steering`", running.steering != wanted.steering),
        ("`linger`", running.linger != wanted.linger),
        (
            "`receive_buffer` and `send_buffer`",
            (running.receive_buffer, running.send_buffer) != (wanted.receive_buffer, wanted.send_buffer),
        ),
        ("`[streams]`", running.streams != wanted.streams),
        ("`[log]`", running.log != wanted.log),
    ];
    let changed = rows.into_iter().filter(|row| row.1);
    let problem = |(what, _)| {
        let problem = Problem { at: None, ..Problem::error(0..0, format!("{what} cannot change in a reload"), "") };
        problem.help("restart to change this; undo it to have the rest of the file in force at once")
    };
    changed.map(problem).collect()
}
