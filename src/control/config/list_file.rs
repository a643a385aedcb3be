//! Lists that pools name: the files read, and the pools filled with what they say.
//!
//! Ways to get this wrong, and what catches each: a list is read while it is written (its stamp before and after must be
//! the same, and its last line must end); a path leads to something endless (only files are read, and those of a size);
//! two pools with one list see two versions of it (each file is read once for all of them); half of what is wrong is
//! told (every pool is looked at, whatever was wrong with the one before).

use super::dispatcher_list::{self, Entry, Set};
use super::problem::{Problem, Report, Severity, Source};
use super::{Backend, List, Pool};
use crate::dataplane::limits::BACKENDS_MAX;
use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Octets of a list at most: as many backends as there can be, and as many octets of attributes and comments for each.
const FILE_MAX: u64 = 16 << 20;

/// How often a list that changes under our eyes is read again, and after how long.
const TRIES: u32 = 5;
const BETWEEN_TRIES: Duration = Duration::from_millis(50);

/// What tells one state of a file from another without reading it: change time and inode catch what size and modification
/// time would miss, as a file put in the place of another with its times kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// That of the file at `path`, wherever links lead.
    ///
    /// # Errors
    /// There is none, or it cannot be looked at.
    pub fn of(path: &Path) -> io::Result<Stamp> {
        fs::metadata(path).map(|metadata| Stamp::from(&metadata))
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Fills the pools that name a list with the backends it holds at this moment, and returns what is wrong with it. If that
/// is an error, the pools are of no use.
pub fn fill(pools: &mut [Pool]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut files: HashMap<PathBuf, Option<Read>> = HashMap::new();
    for pool in pools.iter_mut() {
        let Some(list) = &pool.list else { continue };
        let file = files.entry(list.path.clone()).or_insert_with(|| read(list, &mut problems));
        let Some(Read { source, entries }) = file else { continue };
        let set = dispatcher_list::backends(entries, list.set, pool.health.is_some());
        pool.backends = take(set, list, source, &mut problems);
    }
    let count: usize = pools.iter().map(|pool| pool.backends.len()).sum();
    if count > BACKENDS_MAX && problems.iter().all(|problem| problem.severity != Severity::Error) {
        problems.push(Problem {
            at: None,
            ..Problem::error(0..0, format!("{count} backends: at most {BACKENDS_MAX}"), "")
        });
    }
    problems
}

/// A list with which nothing is wrong.
struct Read {
    source: Arc<Source>,
    entries: Vec<Entry>,
}

/// Reads the list at `path` for its own sake.
///
/// # Errors
/// It cannot be read, or something in it is wrong.
pub fn load(path: &Path) -> Result<(Source, Vec<Entry>), Report> {
    match parsed(path) {
        Ok((source, entries, problems)) => {
            let report = Report { source, problems };
            if report.is_error() { Err(report) } else { Ok((report.source, entries)) }
        }
        Err(error) => {
            let name = path.display().to_string();
            let problem = Problem::error(0..0, format!("cannot read {name}: {error}"), "");
            let problem = Problem { at: None, ..problem.help(remedy(&error)) };
            Err(Report { source: Source { name, text: String::new() }, problems: vec![problem] })
        }
    }
}

/// Reads a list for the pools that name it. What is wrong with it goes to `problems`.
fn read(list: &List, problems: &mut Vec<Problem>) -> Option<Read> {
    let (source, entries, said) = match parsed(&list.path) {
        Ok(parsed) => parsed,
        Err(error) => {
            let title = format!("cannot read {}: {error}", list.path.display());
            problems.push(Problem::error(list.at.clone(), title, "named here").help(remedy(&error)));
            return None;
        }
    };
    let source = Arc::new(source);
    let is_wrong = said.iter().any(|problem| problem.severity == Severity::Error);
    problems.extend(said.into_iter().map(|problem| problem.within(Some(source.clone()))));
    (!is_wrong).then_some(Read { source, entries })
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "write the path from the root; the file must be there when viahop starts",
        io::ErrorKind::PermissionDenied => "the user that viahop runs as must be able to read it",
        _ => "it must be a file, and at rest: write it beside, then `mv` it into place",
    }
}

/// The text of a list, its entries, and what is wrong with it.
fn parsed(path: &Path) -> io::Result<(Source, Vec<Entry>, Vec<Problem>)> {
    let name = path.display().to_string();
    match String::from_utf8(octets(path)?) {
        Ok(text) => {
            let (entries, problems) = dispatcher_list::parse(&text);
            Ok((Source { name, text }, entries, problems))
        }
        Err(error) => {
            // Everything before it is as it was, so the place is right; what is behind it says nothing of worth.
            let at = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            let problem = Problem::error(at..at + 1, "these octets are no text in UTF-8", "here");
            Ok((Source { name, text }, Vec::new(), vec![problem.help("is this a dispatcher.list?")]))
        }
    }
}

/// What stands in a file at rest.
fn octets(path: &Path) -> io::Result<Vec<u8>> {
    for _ in 0..TRIES {
        let before = fs::metadata(path)?;
        if !before.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        if before.size() > FILE_MAX {
            return Err(io::Error::other(format!("it has {} octets, {FILE_MAX} are the most", before.size())));
        }
        let octets = fs::read(path)?;
        let at_rest = Stamp::of(path)? == Stamp::from(&before) && octets.len() as u64 == before.size();
        if at_rest {
            return Ok(octets);
        }
        std::thread::sleep(BETWEEN_TRIES);
    }
    Err(io::Error::other("somebody is writing to it"))
}

/// The backends of a set; what is wrong goes to `problems`.
fn take(set: Set<'_>, list: &List, source: &Arc<Source>, problems: &mut Vec<Problem>) -> Vec<Backend> {
    let Set { rows, remarks } = set;
    let (is_absent, mut is_wrong) = (rows.is_empty(), false);
    let mut backends = Vec::new();
    let within = |problem: Problem| {
        let beside = problem.beside.map(|mut mark| {
            mark.source = Some(source.clone());
            mark
        });
        Problem { source: Some(source.clone()), beside, ..problem }
    };
    for (_, row) in rows {
        match row {
            Ok(backend) => backends.push(Backend { source: Some(source.clone()), ..backend }),
            Err(problem) => {
                is_wrong |= problem.severity == Severity::Error;
                problems.push(within(*problem));
            }
        }
    }
    problems.extend(remarks.into_iter().map(within));
    if backends.is_empty() && !is_wrong {
        let (title, label) = match is_absent {
            true => (format!("{} has no set {}", source.name, list.set), "this list has other sets, or none"),
            false => (format!("viahop can send to nobody in set {}", list.set), "a pool needs a backend"),
        };
        let problem = Problem::error(list.at.clone(), title, label);
        problems.push(problem.help("`set = N` says which set; without it, set 1"));
    }
    backends
}

#[cfg(test)]
mod tests {
    use super::super::{Loaded, parse};
    use super::*;

    /// A list of this test's own.
    struct File(PathBuf);

    impl File {
        fn new(name: &str, octets: impl AsRef<[u8]>) -> File {
            let path = std::env::temp_dir().join(format!("viahop-list-{name}-{}", std::process::id()));
            fs::write(&path, octets).unwrap();
            File(path)
        }

        /// Pools of each of these sets.
        fn load(&self, pools: &[&str]) -> Result<Loaded, Report> {
            let mut text = "[[listen]]\naddress = \"udp:127.0.0.1:5070\"\n".to_owned();
            for pool in pools {
                text.push_str(&format!("[[pool]]\nlist = \"{}\"\n{pool}\n", self.0.display()));
            }
            parse(Source { name: "viahop.toml".into(), text })
        }

        fn wrong(&self, pools: &[&str]) -> String {
            self.load(pools).unwrap_err().render(false)
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            fs::remove_file(&self.0).ok();
        }
    }

    #[test]
    fn pools_take_their_sets_of_one_list() {
        let file =
            File::new("sets", "1 sip:10.0.0.1 0 0 rweight=10\n2 sip:10.0.0.2;transport=udp 8\n1 sip:10.0.0.3 4\n");
        let Loaded { config, warnings, .. } = file.load(&["set = 1", "set = 2"]).unwrap();
        let names: Vec<Vec<&str>> =
            config.pools.iter().map(|pool| pool.backends.iter().map(|one| &one.name[..]).collect()).collect();
        assert_eq!(names, [vec!["10.0.0.1:5060", "10.0.0.3:5060"], vec!["10.0.0.2:5060"]]);
        assert_eq!(config.pools[0].backends[0].weight, 10);
        assert_eq!((warnings.len(), warnings[0].severity), (1, Severity::Note));
    }

    #[test]
    fn every_error_is_shown_in_its_own_file() {
        let file = File::new("errors", "1 sip:10.0.0.1 0x1\n1 sip:10.0.0.2:506O\n");
        let shown = file.wrong(&["set = 1\nhealth = { fall = 0 }"]);
        for part in [":1:16", "write `1`", ":2:19", "the letter O", "viahop.toml:6:19"] {
            assert!(shown.contains(part), "{part} is missing in\n{shown}");
        }
        assert_eq!(shown.matches("error[config]").count(), 3, "{shown}");
    }

    #[test]
    fn what_is_no_list_is_refused_where_the_configuration_names_it() {
        let file = File::new("strange", b"1 sip:10.0.0.1\n1 sip:\xff\n");
        assert!(file.wrong(&[""]).contains(":2:7"), "{}", file.wrong(&[""]));
        let set = File::new("set", "1 sip:10.0.0.1 4\n");
        assert!(set.wrong(&["set = 7"]).contains("viahop.toml:4:8"), "{}", set.wrong(&["set = 7"]));
        let drains = &set.load(&[""]).unwrap().config.pools[0].backends[0];
        assert_eq!(drains.state, crate::control::operator::State::Drain);
        let gone = File(std::env::temp_dir().join("viahop-no-such-list"));
        assert!(gone.wrong(&[""]).contains("viahop.toml:4:8"), "{}", gone.wrong(&[""]));
        let folder = File(std::env::temp_dir());
        assert!(folder.wrong(&[""]).contains("it is not a file"));
    }

    #[test]
    fn what_is_wrong_with_a_set_is_shown_in_the_list_and_an_empty_one_says_why_it_is() {
        let file = File::new(
            "twice",
            "1 sip:10.0.0.1\n1 sip:10.0.0.1\n2 sip:10.0.0.2;transport=sctp 4\n3 sip:a;transport=sctp\n",
        );
        let shown = file.wrong(&["set = 1"]);
        assert!(shown.contains(":2:3") && shown.contains("here first"), "{shown}");
        assert_eq!(shown.matches("error[config]").count(), 1, "{shown}");
        assert_eq!(file.wrong(&["set = 3"]).matches("error[config]").count(), 1, "{}", file.wrong(&["set = 3"]));
        assert!(file.wrong(&["set = 2"]).contains("viahop can send to nobody in set 2"));
        assert!(file.wrong(&["set = 7"]).contains("has no set 7"));
        let unsound = "1 sip:10.0.0.1 32\n1 sip:10.0.0.2 9\n";
        let states = |pool: &str| {
            let Loaded { config, warnings, .. } = File::new("probed", unsound).load(&[pool]).unwrap();
            (config.pools[0].backends[1].state.word(), warnings.len())
        };
        assert_eq!(states(""), ("ready", 1), "flag 32 has no effect");
        assert_eq!(states("health = { probe = false }"), ("drain", 1), "nobody would wake it");
    }

    #[test]
    fn lists_and_backends_are_bounded() {
        let file = File::new("long", "");
        fs::File::options().write(true).open(&file.0).unwrap().set_len(FILE_MAX + 1).unwrap();
        assert!(file.wrong(&[""]).contains("16777216 are the most"), "{}", file.wrong(&[""]));
        let number = |number: usize| format!("1 sip:10.{}.{}.{}\n", number >> 16, number >> 8 & 0xff, number & 0xff);
        let list = |count: usize| (0..count).map(number).collect::<String>();
        let file = File::new("many", list(BACKENDS_MAX));
        assert_eq!(file.load(&[""]).unwrap().config.pools[0].backends.len(), BACKENDS_MAX);
        fs::write(&file.0, list(BACKENDS_MAX + 1)).unwrap();
        assert!(file.wrong(&[""]).contains("65536 backends: at most 65535"));
    }

    #[test]
    fn backends_and_a_list_do_not_go_together() {
        let file = File::new("both", "1 sip:10.0.0.1\n");
        let shown = file.wrong(&["backend = [{ uri = \"sip:10.0.0.2\" }]"]);
        assert!(shown.contains("viahop.toml:4:8") && shown.contains("in the way of the list"), "{shown}");
        let text = "[[listen]]\naddress = \"udp:127.0.0.1:5070\"\n[[pool]]\nset = 1\nbackend = [{ uri = \"sip:a\" }]\n";
        let report = parse(Source { name: "viahop.toml".into(), text: text.into() }).unwrap_err();
        assert!(report.render(false).contains("viahop.toml:4:7"), "{}", report.render(false));
    }

    #[test]
    fn a_stamp_tells_a_file_put_in_the_place_of_another_from_it() {
        let (one, other) = (File::new("one", "1 sip:a\n"), File::new("other", "1 sip:b\n"));
        let before = Stamp::of(&one.0).unwrap();
        assert_eq!(Stamp::of(&one.0).unwrap(), before);
        fs::rename(&other.0, &one.0).unwrap();
        assert_ne!(Stamp::of(&one.0).unwrap(), before);
    }
}
