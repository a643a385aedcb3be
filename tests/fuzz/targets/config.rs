//! The reader of configurations: any text is a configuration that keeps its promises, or a report that says what is wrong
//! and where, and can be shown. The reader of `dispatcher.list`, likewise.
#![no_main]

use control::config::problem::{Report, Severity, Source};
use control::config::{self, Config, Loaded, address, dispatcher_list};
use libfuzzer_sys::fuzz_target;
use std::collections::HashSet;
use std::time::Duration;
use viahop::dataplane;

/// The reader itself and what it needs, without the rest of the control plane.
#[allow(dead_code, unused_imports, reason = "all of it, and the target needs a part")]
#[path = "../../../src/control"]
mod control {
    pub mod clock;
    pub mod config;
    pub mod operator;
    pub mod health {
        pub mod outlier;
    }
}

/// What certificates are read with.
#[allow(dead_code, unused_imports, reason = "all of it, and the target needs a part")]
#[path = "../../../src/tls/mod.rs"]
mod tls;

fuzz_target!(|text: &str| {
    check_addresses(text);
    check_list(text);
    // A pool that names a list, or `tls`, has files read, and what comes of that is no function of the text.
    if text.replace("listen", "").contains("list") || text.contains("tls") {
        return;
    }
    let read = || config::parse(Source { name: "viahop.toml".into(), text: text.into() });
    match read() {
        Ok(Loaded { config, warnings, source }) => {
            check_promises(&config);
            assert_eq!(read().map(|again| again.config).ok(), Some(config));
            let report = Report { source, problems: warnings };
            assert!(!report.is_error());
            check_report(&report, text);
        }
        Err(report) => {
            assert!(report.is_error());
            assert_eq!(report.exit_code(), 3);
            check_report(&report, text);
        }
    }
});

/// Problems that concern what is not there, and so have no place.
const NOWHERE: [&str; 4] = ["nothing to listen on", "no backends", "pool `", "backends: at most"];

fn check_report(report: &Report, text: &str) {
    for problem in &report.problems {
        assert!(!problem.title.is_empty());
        match &problem.at {
            Some(at) => assert!(at.start <= at.end && text.get(at.clone()).is_some(), "{problem:?}"),
            None => assert!(NOWHERE.iter().any(|title| problem.title.contains(title)), "{problem:?}"),
        }
        assert!(problem.at.is_some() || problem.severity == Severity::Error, "{problem:?}");
    }
    if report.problems.is_empty() {
        return;
    }
    assert!(report.render(false).contains("[config]"));
    report.render(true);
    let rows: Vec<serde_json::Value> = serde_json::from_str(&report.json()).expect("JSON");
    assert_eq!(rows.len(), report.problems.len());
    for (row, problem) in rows.iter().zip(&report.problems) {
        assert_eq!((row["line"].is_number(), row["column"].is_number()), (problem.at.is_some(), problem.at.is_some()));
    }
}

/// What `Config` says of itself.
fn check_promises(config: &Config) {
    assert!(!config.listeners.is_empty() && config.listeners.len() <= 255);
    assert!(!config.pools.is_empty());
    let distinct = |names: Vec<&String>| names.iter().collect::<HashSet<_>>().len() == names.len();
    assert!(distinct(config.listeners.iter().map(|listener| &listener.name).collect()));
    assert!(distinct(config.pools.iter().map(|pool| &pool.name).collect()));
    assert!(distinct(config.routes.iter().map(|route| &route.name).collect()));
    let addresses: HashSet<_> = config.listeners.iter().map(|listener| listener.address).collect();
    assert_eq!(addresses.len(), config.listeners.len());
    assert!(config.listeners.iter().all(|listener| listener.address.port() != 0));
    for pool in &config.pools {
        // DNS has not been asked yet.
        assert_eq!(pool.backends.is_empty(), pool.discover.is_some(), "{}", pool.name);
        assert!(distinct(pool.backends.iter().map(|backend| &backend.name).collect()));
        assert!(pool.backends.iter().all(|backend| (1..=10_000).contains(&backend.weight) && backend.target.port != 0));
        assert!(pool.slow_start <= Duration::from_secs(3600) && pool.panic <= 100);
        if let Some(limits) = &pool.outlier {
            assert!((1..=100).contains(&limits.share) && limits.requests > 0 && limits.max_ejected <= 100);
            assert!(limits.eject >= Duration::from_secs(1));
        }
        if let Some(health) = &pool.health {
            assert!(Duration::ZERO < health.timeout && health.timeout <= health.interval);
            assert!(health.fall > 0 && health.rise > 0 && !health.ok.is_empty());
            assert!(
                health.ok.iter().all(|&(first, last)| (200..=699).contains(&first) && (first..=699).contains(&last))
            );
        }
    }
    for route in &config.routes {
        assert!((route.pool as usize) < config.pools.len());
        let known = |&index: &u8| (index as usize) < config.listeners.len();
        assert!(route.listeners.iter().flatten().all(known));
    }
    assert!(
        (64 << 10..=1 << 30).contains(&config.receive_buffer) && (64 << 10..=1 << 30).contains(&config.send_buffer)
    );
    assert!(config.drain <= Duration::from_secs(86_400));
    if let config::Socket::Path(path) = &config.socket {
        assert!(path.is_absolute() && path.as_os_str().len() <= config::SOCKET_PATH_MAX);
    }
    if let config::Secret::Given(secret) = &config.secret {
        assert!(secret.len() >= 16);
    }
}

/// What the reader of a `dispatcher.list` makes of any text: places that are in it, and backends that may be used.
fn check_list(text: &str) {
    let (entries, problems) = dispatcher_list::parse(text);
    let mut all = problems;
    for set in entries.iter().map(|entry| entry.set).collect::<HashSet<_>>() {
        for is_probed in [true, false] {
            let dispatcher_list::Set { rows, remarks } = dispatcher_list::backends(&entries, set, is_probed);
            assert_eq!(rows.len(), entries.iter().filter(|entry| entry.set == set).count());
            let names: Vec<_> = rows.iter().filter_map(|(_, row)| row.as_ref().ok()).map(|one| &one.name).collect();
            assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
            for (_, row) in rows {
                match row {
                    Ok(one) => {
                        assert!((1..=100).contains(&one.weight) && one.priority <= 65_535 && one.target.port != 0)
                    }
                    Err(problem) => all.push(*problem),
                }
            }
            all.extend(remarks);
        }
    }
    assert!(all.iter().flat_map(|problem| &problem.at).all(|at| at.start <= at.end && at.end <= text.len()));
    let source = Source { name: "dispatcher.list".into(), text: text.into() };
    let report = Report { source, problems: all };
    report.render(false);
    report.json();
}

/// The readers of addresses, which the command line uses alone. What they accept reads the same once it is written.
fn check_addresses(text: &str) {
    let within = |error: &address::AddressError| text.get(error.at.clone()).is_some();
    match address::host_port(text) {
        Ok(host_port) => assert_eq!(address::host_port(&host_port.to_string()), Ok(host_port)),
        Err(error) => assert!(within(&error), "{error:?}"),
    }
    match address::backend_uri(text) {
        Ok((host_port, transport)) => {
            let again = format!("sip:{host_port};transport={transport}");
            assert_eq!(address::backend_uri(&again), Ok((host_port, transport)));
        }
        Err(error) => assert!(within(&error), "{error:?}"),
    }
    match address::listen(text) {
        Ok((transport, bound)) => {
            assert_eq!(address::listen(&format!("{transport}:{bound}")), Ok((transport, bound)));
        }
        Err(error) => assert!(within(&error), "{error:?}"),
    }
    match address::domain_uri(text) {
        Ok((domain, port, transport)) => {
            let port_again = port.map(|port| format!(":{port}")).unwrap_or_default();
            let again = format!("sip:{domain}{port_again};transport={transport}");
            assert_eq!(address::domain_uri(&again), Ok((domain, port, transport)));
        }
        Err(error) => assert!(within(&error), "{error:?}"),
    }
    match address::nameserver(text) {
        Ok(server) => assert_eq!(address::nameserver(&server.to_string()), Ok(server)),
        Err(error) => assert!(within(&error), "{error:?}"),
    }
    match address::network(text) {
        Ok(network) => assert!(network.has(network.address)),
        Err(error) => assert!(within(&error), "{error:?}"),
    }
}
