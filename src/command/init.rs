//! `viahop init`: a configuration to start from, which explains itself.

use crate::say::answer;
use std::process::ExitCode;

/// Every key, its default, and what it is for. Keys that are commented out show their default.
const TEXT: &str = include_str!("init.toml");

/// Prints it.
pub fn run() -> ExitCode {
    answer(format_args!("{TEXT}"));
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;
    use viahop::control::config::problem::Source;
    use viahop::control::config::{Loaded, parse};

    fn parsed(text: String) -> Loaded {
        let report = |report: viahop::control::config::problem::Report| report.render(false);
        parse(Source { name: "init".into(), text }).map_err(report).unwrap_or_else(|shown| panic!("{shown}"))
    }

    #[test]
    fn it_works_as_it_is() {
        assert!(parsed(TEXT.into()).warnings.is_empty());
    }

    /// With every key written out the meaning is the same: what is commented out is the default.
    #[test]
    fn what_is_commented_out_is_the_default() {
        let is_key = |line: &str| {
            line.strip_prefix("#").is_some_and(|rest| {
                let name: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                !name.is_empty() && rest[name.len()..].trim_start().starts_with('=')
            })
        };
        // These have no default: they stand for a choice.
        let examples = [
            "cores",
            "secret",
            "secret_file",
            "egress",
            "egress_ports",
            "advertise",
            "list",
            "set",
            "discover",
            "nameservers",
            "mtu",
            "inside",
            "aliases",
            "proxy_require",
            "socket",
            "origins",
            "proxy_protocol",
            "hep",
            "node",
            "share",
        ];
        let is_example = |line: &str| examples.iter().any(|name| line.starts_with(&format!("#{name} ")));
        let written: Vec<String> = TEXT
            .lines()
            .map(|line| if is_key(line) && !is_example(line) { line[1..].to_owned() } else { line.to_owned() })
            .collect();
        let places_aside = |loaded: Loaded| {
            let mut config = loaded.config;
            config.listeners.iter_mut().for_each(|one| one.at = 0..0);
            config.pools.iter_mut().flat_map(|pool| &mut pool.backends).for_each(|one| one.at = 0..0);
            config
        };
        let mut all = places_aside(parsed(written.join("\n")));
        let given = places_aside(parsed(TEXT.into()));
        // `shards` is the exception: its default depends on the machine.
        all.cores = given.cores.clone();
        assert_eq!(all, given);
    }

    /// Asks the reader itself which keys there are: it lists them when it meets one that it does not know.
    #[test]
    fn every_key_stands_in_it() {
        let base = "[[listen]]\naddress = \"udp:0.0.0.0\"\n[[pool]]\nbackend = [{ uri = \"sip:a\" }]\n";
        let mut missing = Vec::new();
        for (table, header) in [
            ("balancer", "[balancer]"),
            ("listen", "[[listen]]"),
            ("token_key", "[balancer]\ntoken_keys = [{ xyzzy = 1 }]"),
            ("pool", "[[pool]]"),
            ("route", "[[route]]"),
            ("policy", "[policy]"),
            ("admin", "[admin]"),
            ("capture", "[capture]"),
            ("log", "[log]"),
            ("health", "[[pool]]\nhealth = { xyzzy = 1 }"),
            ("backend", "[[pool]]\nbackend = [{ xyzzy = 1 }]"),
            ("streams", "[streams]"),
            ("listen.tls", "[[listen]]\ntls = { xyzzy = 1 }"),
            ("pool.tls", "[[pool]]\ntls = { xyzzy = 1 }"),
        ] {
            let text = if header.contains("xyzzy") { header.to_owned() } else { format!("{header}\nxyzzy = 1") };
            let report = parse(Source { name: "x".into(), text: format!("{base}{text}\n") }).unwrap_err();
            let label = &report.problems[0].label;
            let keys: Vec<&str> = label.split('`').skip(1).step_by(2).collect();
            assert!(keys.len() > 1, "{table}: {label}");
            let stands = |key: &str| {
                TEXT.lines().any(|line| line.trim_start_matches('#').trim_start().starts_with(&format!("{key} ")))
                    || TEXT.contains(&format!("{{ {key} ="))
                    || TEXT.contains(&format!(", {key} ="))
                    || TEXT.contains(&format!("`{key}`:"))
            };
            missing.extend(keys.into_iter().filter(|key| !stands(key)).map(|key| format!("{table}.{key}")));
        }
        assert!(missing.is_empty(), "{missing:?} are not in init.toml");
    }
}
