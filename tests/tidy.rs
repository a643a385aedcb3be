//! The rules of the house that no compiler knows: what each folder may use, where `unsafe` may stand, what lies at the top,
//! what every file begins with, and that the docs speak of things that exist.
//!
//! The rules and their reasons are in `docs/ARCHITECTURE.md`. This reads the sources as text, without comments and
//! without their unit tests, which may use what they like.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use viahop::dataplane::verdict::DropReason;

/// A part of `src/`, and what it may name: crates, the parts of our own crate, and of `std` what it may not.
struct Law {
    part: &'static str,
    crates: &'static [&'static str],
    ours: &'static [&'static str],
    never: &'static [&'static str],
}

/// What a thing that thinks has no use for: clocks, threads, locks, files, sockets, and a voice.
const OF_THE_WORLD: &[&str] = &[
    "Instant",
    "SystemTime",
    "UNIX_EPOCH",
    "thread",
    "thread_local",
    "Mutex",
    "RwLock",
    "Condvar",
    "OnceLock",
    "LazyLock",
    "mpsc",
    "fs",
    "File",
    "io",
    "env",
    "process",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "println",
    "eprintln",
    "print",
];

const LAWS: &[Law] = &[
    Law {
        part: "dataplane",
        crates: &["ahash", "bytes", "memchr", "siphasher", "smallvec"],
        ours: &["dataplane"],
        never: OF_THE_WORLD,
    },
    Law { part: "sys", crates: &["libc"], ours: &["sys"], never: &[] },
    Law {
        part: "tls",
        crates: &["rustls", "webpki"],
        ours: &["dataplane", "tls"],
        never: &["Instant", "SystemTime", "UdpSocket", "TcpStream", "TcpListener", "fs", "File", "env", "thread"],
    },
    Law { part: "link.rs", crates: &["arc_swap", "tokio"], ours: &["dataplane", "tls"], never: &[] },
    Law {
        part: "shard",
        crates: &[
            "arc_swap",
            "bytes",
            "core_affinity",
            "glommio",
            "hdrhistogram",
            "lru",
            "ppp",
            "smallvec",
            "tungstenite",
        ],
        ours: &["dataplane", "link", "shard", "sys", "tls"],
        never: &["tokio"],
    },
    Law {
        part: "control",
        crates: &[
            "ahash",
            "annotate_snippets",
            "arc_swap",
            "axum",
            "getrandom",
            "hickory_resolver",
            "hkdf",
            "humantime",
            "if_addrs",
            "ipnet",
            "ppp",
            "prometheus_client",
            "serde",
            "serde_json",
            "sha2",
            "smallvec",
            "strsim",
            "tokio",
            "toml",
            "tracing",
            "ureq",
        ],
        ours: &["control", "dataplane", "link", "tls"],
        never: &["glommio", "unsafe"],
    },
];

/// Where `unsafe` may stand: where the kernel is spoken to, and where vector instructions are.
const UNSAFE_ROOMS: &[&str] = &["src/sys/", "src/dataplane/scan/simd/", "loadtest/src/sys/"];

/// What lies at the top, and what may lie there. Beside that only files and folders whose names begin with a dot, and
/// what a build leaves.
const TOP: &[&str] = &["Cargo.toml", "README.md", "benches", "docs", "loadtest", "src", "tests"];
const TOP_TOO: &[&str] = &["CHANGELOG.md", "Cargo.lock", "target"];

#[test]
fn every_folder_uses_what_it_may_and_nothing_else() {
    let known = dependencies();
    let mut wrong = Vec::new();
    for law in LAWS {
        let files = sources(&root().join("src").join(law.part));
        assert!(!files.is_empty(), "src/{} is gone; change its law", law.part);
        for file in files {
            let code = code_of(&file);
            for word in path_roots(&code).filter(|word| known.contains(*word) && !law.crates.contains(word)) {
                wrong.push(format!("{} uses the crate {word}", shown(&file)));
            }
            for word in parts_of_ours(&code).filter(|word| !law.ours.contains(word)) {
                wrong.push(format!("{} uses crate::{word}", shown(&file)));
            }
            for word in words(&code).filter(|word| law.never.contains(word)) {
                wrong.push(format!("{} names {word}", shown(&file)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A generator that shared our scanner could not find the scanner's bugs.
#[test]
fn the_load_generator_shares_no_code_with_the_balancer() {
    let manifest = fs::read_to_string(root().join("loadtest/Cargo.toml")).unwrap();
    assert!(!manifest.lines().any(|line| line.starts_with("viahop ") || line.starts_with("viahop.")), "{manifest}");
    for file in sources(&root().join("loadtest/src")) {
        assert!(path_roots(&code_of(&file)).all(|word| word != "viahop"), "{}", shown(&file));
    }
}

#[test]
fn unsafe_stands_only_in_its_rooms() {
    for file in ours() {
        let name = shown(&file);
        let is_room = UNSAFE_ROOMS.iter().any(|room| name.starts_with(room));
        assert!(is_room || words(&code_of(&file)).all(|word| word != "unsafe"), "{name}");
    }
}

/// The macros of `std` panic where nothing can be written: behind `| head -1`, and on a full disk.
#[test]
fn only_one_file_of_each_program_prints() {
    for file in ours() {
        let code = code_of(&file);
        assert!(!code.contains("print!(") && !code.contains("println!("), "{} prints; see say.rs", shown(&file));
    }
}

#[test]
fn nothing_lies_at_the_top_that_does_not_belong_there() {
    let entries = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let there: BTreeSet<String> = entries.filter(|name| !name.starts_with('.')).collect();
    for name in &there {
        let name = name.as_str();
        assert!(TOP.contains(&name) || TOP_TOO.contains(&name) || name.starts_with("LICENSE"), "{name}");
    }
    for name in TOP {
        assert!(there.contains(*name), "there is no {name}");
    }
}

#[test]
fn every_file_begins_by_saying_what_it_is() {
    let folders = ["src", "tests", "benches", "loadtest/src"].map(|folder| root().join(folder));
    for file in folders.iter().flat_map(|folder| sources(folder)) {
        assert!(fs::read_to_string(&file).unwrap().starts_with("//!"), "{}", shown(&file));
    }
}

/// The quotes themselves are checked by hand: the texts of the RFCs are not ours to ship.
#[test]
fn every_quote_names_its_rfc_and_section() {
    for file in ours() {
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (number, pair) in lines.windows(2).enumerate() {
            let [before, line] = [pair[0], pair[1]];
            let is_named = before.starts_with("//#") || before.starts_with("//= RFC ");
            assert!(!line.starts_with("//#") || is_named, "{}:{}", shown(&file), number + 2);
            let has_section = before.split_once(" section ").is_some_and(|(_, section)| !section.is_empty());
            assert!(!before.starts_with("//= ") || has_section, "{}:{}", shown(&file), number + 1);
        }
    }
}

#[test]
fn every_drop_reason_is_explained_in_the_docs() {
    let page = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    for reason in DropReason::ALL {
        assert!(page.contains(&format!("`{}`", reason.label())), "{}", reason.label());
    }
}

#[test]
fn every_event_of_the_log_is_explained_in_the_docs() {
    let page = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    for file in files(&root().join("src"), &["rs"]) {
        let text = fs::read_to_string(&file).unwrap();
        for event in text.split("event = \"").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(page.contains(&format!("`{event}`")), "{}: {event}", shown(&file));
        }
    }
}

/// Files of ours that a page names between backticks, or links to.
#[test]
fn the_docs_speak_of_files_that_exist() {
    let pages = files(&root().join("docs"), &["md"]).into_iter().chain([root().join("README.md")]);
    for page in pages.filter(|page| page.is_file()) {
        let text = fs::read_to_string(&page).unwrap();
        let quoted =
            text.split('`').skip(1).step_by(2).filter(|text| is_path_of_ours(text)).map(|name| root().join(name));
        let linked = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#', ' ']).next());
        let linked = linked.filter(|target| !target.is_empty() && !target.contains(':'));
        let linked = linked.map(|target| page.parent().unwrap().join(target));
        for named in quoted.chain(linked) {
            assert!(named.exists(), "{} names {}", shown(&page), named.display());
        }
    }
}

fn is_path_of_ours(text: &str) -> bool {
    let folders = ["src/", "tests/", "loadtest/", "benches/", "docs/"];
    folders.iter().any(|folder| text.starts_with(folder))
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn shown(file: &Path) -> String {
    file.strip_prefix(root()).unwrap_or(file).display().to_string()
}

/// Everything of ours that is compiled into a program.
fn ours() -> Vec<PathBuf> {
    ["src", "loadtest/src"].iter().flat_map(|folder| sources(&root().join(folder))).collect()
}

fn sources(place: &Path) -> Vec<PathBuf> {
    files(place, &["rs"])
}

/// The files at or below `place` whose names end so. Fuzz targets are a crate of their own.
fn files(place: &Path, endings: &[&str]) -> Vec<PathBuf> {
    if place.is_file() {
        let ends_so = place.extension().is_some_and(|end| endings.iter().any(|wanted| end == *wanted));
        return if ends_so { vec![place.to_owned()] } else { Vec::new() };
    }
    if place.ends_with("fuzz") {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir(place) else { return Vec::new() };
    let mut found: Vec<_> = entries.flat_map(|entry| files(&entry.unwrap().path(), endings)).collect();
    found.sort();
    found
}

/// What is compiled outside of tests: without comments, and up to the unit tests, which stand last.
fn code_of(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    // Tests that others borrow from are `pub` in some way.
    let is_tests = |behind: &str| behind.lines().next().is_some_and(|line| line.ends_with("mod tests {"));
    let mut marks = text.match_indices("#[cfg(test)]\n");
    let end = marks.find(|(at, mark)| is_tests(&text[at + mark.len()..])).map_or(text.len(), |(at, _)| at);
    let code = &text[..end];
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The names of our dependencies, as code writes them.
fn dependencies() -> BTreeSet<String> {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let lines = manifest.lines().skip_while(|line| *line != "[dependencies]").skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    let names: BTreeSet<String> =
        lines.filter_map(|line| line.split_once(" = ")).map(|(name, _)| name.replace('-', "_")).collect();
    assert!(names.contains("glommio") && names.len() > 15, "{names:?}");
    names
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// The first names of paths: `a` of `a::b::c`, and of `use a;`.
fn path_roots(code: &str) -> impl Iterator<Item = &str> {
    let in_paths =
        code.match_indices("::").map(|(at, _)| last_word(&code[..at])).filter(|(before, _)| !before.ends_with("::"));
    let uses = code.lines().filter_map(|line| line.trim().strip_prefix("use ")).flat_map(|rest| words(rest).next());
    in_paths.map(|(_, word)| word).chain(uses)
}

/// The parts of our own crate that code names: `a` of `crate::a`, and all of `crate::{a, b}`.
fn parts_of_ours(code: &str) -> impl Iterator<Item = &str> {
    code.match_indices("crate::").flat_map(|(at, found)| {
        let rest = &code[at + found.len()..];
        let list = rest.strip_prefix('{').map(|list| list.split('}').next().unwrap_or_default());
        match list {
            Some(list) => list.split(',').filter_map(|one| words(one).next()).collect::<Vec<_>>(),
            None => words(rest).take(1).collect(),
        }
    })
}

/// The word that ends `code`, and what is before it.
fn last_word(code: &str) -> (&str, &str) {
    let start = code
        .rfind(|c: char| !c.is_alphanumeric() && c != '_')
        .map_or(0, |at| at + code[at..].chars().next().map_or(1, char::len_utf8));
    code.split_at(start)
}

/// The readers above are as good as what they find.
#[test]
fn the_readers_of_sources_find_what_they_look_for() {
    let code =
        "use libc;\nuse crate::{link, shard::run};\nfn f() { std::fs::read(tokio::x); crate::sys::y(); a.b::<c::D>() }";
    let roots: Vec<_> = path_roots(code).collect();
    assert_eq!(roots, ["crate", "shard", "std", "tokio", "crate", "b", "c", "libc", "crate"]);
    assert_eq!(parts_of_ours(code).collect::<Vec<_>>(), ["link", "shard", "sys"]);
}
