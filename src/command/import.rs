//! `viahop import`: a configuration made of a Kamailio dispatcher.list, for whoever would rather have it in one file.
//!
//! What the list says is taken over as a pool that names the list would take it; what it does not say (how a destination
//! is picked, how servers are probed) stands in kamailio.cfg, and comments say where it goes. Nothing is lost without a
//! word: what is left out stands there as a comment, with the reason, and is warned about.

use super::{environment, fail, tell};
use crate::cli;
use crate::say::answer;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use viahop::control::config::Backend;
use viahop::control::config::address::HostPort;
use viahop::control::config::dispatcher_list::{Entry, Set, backends, flag};
use viahop::control::config::list_file;
use viahop::control::config::problem::{Problem, Report, Severity, Source};
use viahop::control::operator::State;
use viahop::dataplane::transport::Transport;

/// Imports `args.file`.
pub fn run(args: &cli::Import) -> ExitCode {
    let made = list_file::load(&args.file).and_then(|(source, entries)| made_of(source, &entries, args.set));
    let (text, report) = match made {
        Ok(made) => made,
        Err(report) => return fail(&report),
    };
    tell(&report);
    match &args.output {
        Some(path) => match write_anew(path, &text) {
            Ok(()) => remark!("{} is written; next: viahop check {0}", path.display()),
            Err(error) => {
                let problem = Problem::environment(format!("cannot write {}: {error}", path.display()));
                return fail(&environment(problem.help("name a file that is not there yet, in a folder that is")));
            }
        },
        None => answer(format_args!("{text}")),
    }
    ExitCode::SUCCESS
}

fn write_anew(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).open(path)?.write_all(text.as_bytes())
}

/// The configuration, and what is not quite right about the list.
fn made_of(source: Source, entries: &[Entry], only: Option<u32>) -> Result<(String, Report), Report> {
    let sets: BTreeSet<u32> = entries.iter().map(|entry| entry.set).collect();
    let wanted: Vec<u32> = sets.iter().copied().filter(|set| only.is_none_or(|only| only == *set)).collect();
    let mut problems = Vec::new();
    let mut pools = String::new();
    let mut made = Vec::new();
    let mut names = HashMap::new();
    for &set in &wanted {
        let read = backends(entries, set, true);
        if read.rows.iter().any(|(_, row)| is_taken(row)) {
            made.push(set);
        }
        pools.push_str(&pool(set, &read, &mut names));
        problems.extend(left_out(&read));
        problems.extend(read.remarks);
    }
    if problems.iter().any(|problem| problem.severity == Severity::Error) {
        return Err(Report { source, problems });
    }
    if made.is_empty() {
        let title = match only.filter(|_| wanted.is_empty()) {
            Some(set) => format!("{} has no set {set}", source.name),
            None => format!("{} has no destination that viahop could send to", source.name),
        };
        let sets: Vec<String> = sets.iter().map(u32::to_string).collect();
        let problem = Problem { at: None, ..Problem::error(0..0, title, "") };
        problems.push(match sets.is_empty() {
            true => problem.help("it is empty"),
            false => problem.help(format!("its sets are {}", sets.join(", "))),
        });
        return Err(Report { source, problems });
    }
    let mut text = head(&source.name);
    text.push_str(&pools);
    text.push_str(&rules(&made));
    Ok((text, Report { source, problems }))
}

fn head(list: &str) -> String {
    let list = list.escape_debug();
    format!(
        "# Made by `viahop import` of {list}.
# `viahop check FILE` tells whether it works here; `viahop init` prints all the keys there are.
#
# The list says who the servers are. How one is picked (the algorithm of ds_select_dst) and how they are probed (ds_ping_*)
# stands in kamailio.cfg; comments below say where it goes. A pool can also follow the list as it changes, with
# `list = \"{list}\"` and `set = N` in the place of `backend`.

[[listen]]
# Where Kamailio listened: `listen=` in kamailio.cfg.
address = \"udp:0.0.0.0:5060\"
"
    )
}

/// What a pool needs before its servers over TLS can be used, which no list says.
const TLS: &str = "# Servers over TLS stand below as comments: they need this. `ca`: certificates of those who sign theirs; `name`: the domain
# those are for, if it is not the host of each uri.
#  tls = { ca = \"/etc/viahop/ca.pem\", name = \"sip.example.net\" }
";

/// Whether a destination is a backend as it stands.
fn is_taken(row: &Result<Backend, Box<Problem>>) -> bool {
    row.as_ref().is_ok_and(|backend| backend.transport != Transport::Tls)
}

/// Why destinations of a set are not taken over. One that stands there twice is an error, as in a list that is followed: which
/// of the two is meant, nobody can know. One that viahop cannot send to as it stands is not in the way of the others.
fn left_out(set: &Set<'_>) -> Vec<Problem> {
    let reason = |(entry, row): &(&Entry, Result<Backend, Box<Problem>>)| match row {
        Ok(backend) => (backend.transport == Transport::Tls).then(|| wants_tls(backend)),
        Err(problem) if problem.severity == Severity::Error && entry.unreachable.is_some() => {
            Some(Problem { severity: Severity::Warning, ..Problem::clone(problem) })
        }
        Err(problem) => Some(Problem::clone(problem)),
    };
    set.rows.iter().filter_map(reason).collect()
}

fn wants_tls(backend: &Backend) -> Problem {
    let title = format!("`{}` is reached by TLS, and no list says whose certificates to trust", backend.target);
    let help = "write a pool with `list`, `set` and `tls = { ca = \"/etc/viahop/ca.pem\" }`; `viahop init` shows one";
    Problem::warning(backend.at.clone(), title, "by TLS").help(help)
}

/// A set as a pool. `names` are those that other pools have given away.
fn pool<'a>(set: u32, read: &Set<'a>, names: &mut HashMap<String, &'a HostPort>) -> String {
    let taken = read.rows.iter().filter(|(_, row)| is_taken(row)).count();
    let has_tls = read.rows.iter().any(|(_, row)| row.as_ref().is_ok_and(|one| one.transport == Transport::Tls));
    let mut text = format!("\n# Set {set}: {} destinations, {taken} of them taken over.\n", read.rows.len());
    // A pool without backends is none: all of it is a comment then.
    let mark = if taken == 0 { "#" } else { "" };
    let _ = write!(
        text,
        "{mark}[[pool]]
{mark}name = \"set-{set}\"
# ds_select_dst(\"{set}\", …): 0 is affinity \"call-id\", 1 \"from\", 2 \"to\", 3 \"ruri-user\", each with strategy \"hash\"; 4 is
# strategy \"round-robin\"; 6, 9 and 11 are \"hash\", which spreads by weight; 8 is \"priority\".
#affinity = \"call-id\"
#strategy = \"hash\"
# ds_ping_interval, ds_probing_threshold, ds_inactive_threshold, ds_ping_reply_codes:
#health = {{ interval = \"2s\", fall = 3, rise = 2, ok = [\"2xx\", \"3xx\", \"4xx\", \"501\", \"6xx\"] }}
{}{mark}backend = [
",
        if has_tls { TLS } else { "" }
    );
    let has_ranks = read.rows.iter().any(|(entry, _)| entry.priority != read.rows[0].0.priority);
    for (entry, row) in &read.rows {
        let backend = match row {
            Ok(backend) => backend,
            Err(problem) => {
                let _ = writeln!(text, "  # {}: {}", entry.uri.escape_debug(), problem.title.escape_debug());
                continue;
            }
        };
        let transport = match backend.transport {
            Transport::Udp => "",
            Transport::Tcp => ";transport=tcp",
            Transport::Tls => ";transport=tls",
            Transport::Ws | Transport::Wss => ";transport=ws",
        };
        let mark = if is_taken(row) { mark } else { "#" };
        let _ = write!(text, "  {mark}{{ uri = \"sip:{}{transport}\"", backend.target);
        let mut notes = Vec::new();
        if entry.duid.is_some() {
            match names.insert(backend.name.clone(), &entry.target) {
                Some(other) if *other != entry.target => {
                    names.insert(backend.name.clone(), other);
                    notes.push(format!("duid {} is that of {other}", backend.name));
                }
                _ => drop(write!(text, ", name = \"{}\"", backend.name)),
            }
        }
        if backend.weight != 100 {
            let _ = write!(text, ", weight = {}", backend.weight);
        }
        if backend.state != State::Ready {
            let _ = write!(text, ", state = \"{}\"", backend.state);
            notes.push(why_it_drains(entry));
        }
        if has_ranks {
            notes.push(format!("with strategy \"priority\": priority = {}", backend.priority));
        }
        if !entry.unused.is_empty() {
            let unused: Vec<&str> = entry.unused.iter().map(|unused| &unused.0[..]).collect();
            notes.push(format!("not heeded: {}", unused.join(", ").escape_debug()));
        }
        let notes = if notes.is_empty() { String::new() } else { format!(" # {}", notes.join("; ")) };
        let _ = writeln!(text, " }},{notes}");
    }
    let _ = writeln!(text, "{mark}]");
    text
}

/// What in an entry takes new calls off it.
fn why_it_drains(entry: &Entry) -> String {
    match entry.rweight {
        _ if entry.flags & (flag::DISABLED | flag::INACTIVE) != 0 => format!("flags {}", entry.flags),
        Some(_) => "rweight=0".into(),
        None => "weight=0".into(),
    }
}

/// Which pool takes what, as far as the list tells: it does not.
fn rules(made: &[u32]) -> String {
    let [first, others @ ..] = made else { return String::new() };
    if others.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\n# Pool set-{first} takes whatever no rule sends elsewhere. When kamailio.cfg asks for another set, a rule says so here:
# conditions are `methods`, `domains` and `listen`.\n"
    );
    for set in others {
        let _ = write!(text, "#[[route]]\n#methods = [\"REGISTER\"]\n#pool = \"set-{set}\"\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use viahop::control::config::dispatcher_list::parse;
    use viahop::control::config::{Loaded, parse as configuration};

    fn imported(list: &str, set: Option<u32>) -> Result<(String, Report), Report> {
        let (entries, problems) = parse(list);
        assert!(problems.is_empty(), "{problems:?}");
        made_of(Source { name: "dispatcher.list".into(), text: list.into() }, &entries, set)
    }

    fn loaded(text: &str) -> Loaded {
        configuration(Source { name: "viahop.toml".into(), text: text.into() })
            .unwrap_or_else(|report| panic!("{}\n{text}", report.render(false)))
    }

    const LIST: &str = "2 sip:10.0.0.5 0 0 duid=x\n1 sip:10.0.0.1 0 10 duid=x;rweight=30\n1 sip:10.0.0.2:5070;px=y 8 5 rweight=60;maxload=3\n\
                        1 sip:10.0.0.3;transport=tls\n3 sip:10.0.0.4;transport=tls 4\n2 sip:10.0.0.6 4\n2 sip:10.0.0.7 0 0 rweight=0\n";

    #[test]
    fn what_is_made_is_a_configuration_without_warnings() {
        let (text, report) = imported(LIST, None).unwrap();
        let Loaded { config, warnings, .. } = loaded(&text);
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(config.pools[1].backends[1].state, State::Drain);
        let row = |pool: usize, place: usize| {
            let one = &config.pools[pool].backends[place];
            (&one.name[..], one.target.to_string(), one.weight)
        };
        assert_eq!(config.pools.len(), 2);
        assert_eq!(row(0, 0), ("x", "10.0.0.1:5060".into(), 30));
        assert_eq!(row(0, 1), ("10.0.0.2:5070", "10.0.0.2:5070".into(), 60));
        assert_eq!(row(1, 0), ("10.0.0.5:5060", "10.0.0.5:5060".into(), 100), "the name is taken");
        for said in [
            "\n#  tls = { ca = \"/etc/viahop/ca.pem\", name = \"sip.example.net\" }\nbackend = [\n",
            "\n  #{ uri = \"sip:10.0.0.3:5061;transport=tls\" },",
            "# Set 1: 3 destinations, 2 of them taken over",
            "# with strategy \"priority\": priority = 5; not heeded: px, maxload",
            "{ uri = \"sip:10.0.0.6:5060\", state = \"drain\" }, # flags 4",
            "{ uri = \"sip:10.0.0.7:5060\", weight = 1, state = \"drain\" }, # rweight=0",
            "#[[pool]]\n#name = \"set-3\"",
            "#pool = \"set-2\"",
            "duid x is that of 10.0.0.1:5060",
        ] {
            assert!(text.contains(said), "{said} is missing in\n{text}");
        }
        assert_eq!(report.problems.len(), 8, "{report:?}");
    }

    #[test]
    fn every_key_in_a_comment_is_one_that_can_be_used() {
        let (text, _) = imported(LIST, None).unwrap();
        let uncommented: Vec<&str> = text
            .lines()
            .map(|line| {
                line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '['))
            })
            .zip(text.lines())
            .filter(|(_, line)| {
                !line.contains("set-3") && *line != "#[[pool]]" && *line != "#backend = [" && *line != "#]"
            })
            .map(|(bare, line)| bare.unwrap_or(line))
            .collect();
        // Of the pool that is all comment, the keys that are left belong to no pool of theirs.
        let text = uncommented.join("\n");
        let (before, behind) = text.split_once("# Set 3").unwrap();
        loaded(&format!("{before}{}", &behind[behind.find("\n# Pool set-1").unwrap()..]));
    }

    #[test]
    fn a_destination_that_stands_twice_makes_nothing_and_one_that_is_not_reached_is_warned_about() {
        for list in ["1 sip:a\n1 sip:b\n1 sip:a:5060\n", "1 sip:a 0 0 duid=x\n1 sip:b 0 0 duid=x\n"] {
            let report = imported(list, None).unwrap_err();
            assert_eq!((report.exit_code(), report.problems.len()), (3, 1), "{report:?}");
        }
        let (text, report) = imported("1 sip:a\n1 sip:b;transport=sctp\n2 sip:a\n", None).unwrap();
        assert!(text.contains("\n  # sip:b;transport=sctp: transport `sctp`"), "{text}");
        let said = report.render(false);
        assert!(said.contains("warning[config]: transport `sctp`") && said.contains("dispatcher.list:2:9"), "{said}");
    }

    #[test]
    fn one_set_is_taken_alone_and_one_that_is_not_there_is_refused() {
        let (text, _) = imported(LIST, Some(2)).unwrap();
        assert_eq!(loaded(&text).config.pools[0].backends[0].name, "x");
        let shown = imported(LIST, Some(7)).unwrap_err().render(false);
        assert!(shown.contains("no set 7") && shown.contains("its sets are 1, 2, 3"), "{shown}");
        let shown = imported(LIST, Some(3)).unwrap_err().render(false);
        assert!(shown.contains("no destination") && shown.contains("is reached by TLS"), "{shown}");
    }
}
