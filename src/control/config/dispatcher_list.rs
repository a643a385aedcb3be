//! Kamailio's `dispatcher.list`: text in, entries and problems out. Nothing is read or looked up here.
//!
//! ```text
//! list     = *( line LF )
//! line     = [ blanks ] [ entry ] [ blanks ] [ "#" whatever ]            at most 1,022 octets and their LF
//! entry    = set blanks uri [ blanks flags [ blanks priority ] ] [ blanks attrs ]
//! set      = 1*DIGIT                                                    0 to 2147483647
//! uri      = ( "sip:" / "sips:" ) host [ ":" port ] *( ";" name [ "=" value ] )
//! flags    = 1*DIGIT                                                    sum of 1, 2, 4, 8, 16, 32; 0 if left out
//! priority = 1*DIGIT                                                    0 to 65535; 0 if left out
//! attrs    = name [ "=" value ] *( ";" name [ "=" value ] ) [ ";" ]
//! value    = octets but blank and ";", or anything but blank in quotes, `"` or `'`
//! blanks   = 1*( SP / HTAB / CR )
//! ```
//!
//! That is what Kamailio's module documents, and narrower than what its reader lets pass: it reads `0x8` as the flags 0
//! and the attributes `x8`, drops what stands behind a blank in the attributes, and takes a line without a set for set 0,
//! all without a word. A list that is accepted here means the same there; one that is refused here may do something
//! else there than its author thinks. So a list that was cut short is refused as well: the last line has to end.
//!
//! What an entry means for us is [`backends`]; [`super::list_file`] reads the file.

use super::Backend;
use super::address::{self, AddressError, HostPort};
use super::problem::Problem;
use crate::control::operator::State;
use crate::dataplane::limits::FRAME_MAX;
use crate::dataplane::transport::Transport;
use std::collections::HashMap;
use std::ops::Range;

/// Octets of a line with its end, which is what Kamailio reads in one go; it takes the rest for a line of its own.
const LINE_MAX: usize = 1023;

/// What some editors put in front of a text in UTF-8.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Problems told of one list. A file that is no list at all has one in every line.
const PROBLEMS_MAX: usize = 100;

/// Weight of an entry that says none, as in a configuration of ours.
const WEIGHT_DEFAULT: u32 = 100;

/// The bits of `flags`.
pub mod flag {
    /// Takes nothing until a probe finds it alive.
    pub const INACTIVE: u8 = 1;
    /// Missed a probe and is used all the same.
    pub const TRYING: u8 = 2;
    /// Switched off by the operator.
    pub const DISABLED: u8 = 4;
    /// Probed.
    pub const PROBING: u8 = 8;
    /// Its name is not looked up at the start.
    pub const NO_DNS: u8 = 16;
    /// Never probed.
    pub const NO_PING: u8 = 32;
    /// All there are.
    pub const ALL: u8 = INACTIVE | TRYING | DISABLED | PROBING | NO_DNS | NO_PING;
}

/// Attributes that Kamailio gives a meaning and we do not.
const UNUSED: [&str; 11] = [
    "cc",
    "latency",
    "maxload",
    "obproxy",
    "ocmax",
    "ocmin",
    "ocrate",
    "ping_from",
    "ping_socket",
    "sockname",
    "socket",
];

/// A destination, as it is written.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The number of its set.
    pub set: u32,
    /// Its URI.
    pub uri: String,
    /// Where that stands.
    pub at: Range<usize>,
    /// Where that leads.
    pub target: HostPort,
    /// How.
    pub transport: Transport,
    /// Why we cannot send there, if so.
    pub unreachable: Option<AddressError>,
    /// Bits of [`flag`].
    pub flags: u8,
    /// Its rank. Kamailio tries the highest first.
    pub priority: u16,
    /// Percent of the calls, for Kamailio's algorithm 9.
    pub weight: Option<u8>,
    /// Parts of the calls, for algorithm 11.
    pub rweight: Option<u8>,
    /// What Kamailio counts its calls under.
    pub duid: Option<String>,
    /// Names of attributes and URI parameters that mean nothing here, with their places, and whether they are the user's
    /// own: such that Kamailio gives no meaning either.
    pub unused: Vec<(String, Range<usize>, bool)>,
}

/// Reads a list. Whoever finds an error among the problems must not use the entries.
pub fn parse(text: &str) -> (Vec<Entry>, Vec<Problem>) {
    let mut reader = Reader { entries: Vec::new(), problems: Vec::new(), more: 0 };
    let mut start = 0;
    // Nobody sees it, so what is said of the first field would puzzle.
    if text.starts_with(BYTE_ORDER_MARK) {
        start = BYTE_ORDER_MARK.len_utf8();
        let label = "Kamailio takes it for a part of the first line";
        let help = "save the list as UTF-8 without it; `sed -i '1s/^\\xef\\xbb\\xbf//' FILE` takes it out";
        reader.error(0..start, "the list begins with a byte order mark", label, Some(help.into()));
    }
    for line in text[start..].split_inclusive('\n') {
        reader.line(start, line);
        start += line.len();
    }
    let Reader { entries, mut problems, more } = reader;
    if more > 0 {
        let title = format!("{more} more lines are wrong");
        problems.push(Problem { at: None, ..Problem::error(0..0, title, "") }.help("is this a dispatcher.list?"));
    }
    (entries, problems)
}

struct Reader {
    entries: Vec<Entry>,
    problems: Vec<Problem>,
    /// Problems that there was no room for.
    more: usize,
}

/// The rest of a line, and where it stands in the text.
struct Rest<'a> {
    at: usize,
    text: &'a str,
}

impl<'a> Rest<'a> {
    fn skip_blanks(&mut self) {
        let text = self.text.trim_start_matches(is_blank);
        self.at += self.text.len() - text.len();
        self.text = text;
    }

    /// Whether nothing but a comment is left.
    fn is_over(&self) -> bool {
        self.text.is_empty() || self.text.starts_with('#')
    }

    /// What stands before the next octet that `ends` says ends it, and the blanks behind it are skipped.
    fn take(&mut self, ends: impl Fn(char) -> bool) -> (&'a str, Range<usize>) {
        let (token, rest) = self.text.split_at(self.text.find(ends).unwrap_or(self.text.len()));
        let at = self.at..self.at + token.len();
        (self.at, self.text) = (at.end, rest);
        self.skip_blanks();
        (token, at)
    }
}

fn is_blank(octet: char) -> bool {
    matches!(octet, ' ' | '\t' | '\r' | '\n')
}

/// Fields but the attributes may be followed by a comment at once.
fn ends_field(octet: char) -> bool {
    is_blank(octet) || octet == '#'
}

impl Reader {
    fn error(&mut self, at: Range<usize>, title: impl Into<String>, label: impl Into<String>, help: Option<String>) {
        if self.problems.len() == PROBLEMS_MAX {
            self.more += 1;
            return;
        }
        self.problems.push(Problem { help, ..Problem::error(at, title, label) });
    }

    /// One line, its end included. Everything in it is looked at even when something before it is wrong.
    fn line(&mut self, start: usize, line: &str) {
        let content = line.trim_end_matches('\n');
        let end = start + content.len();
        if content.len() == line.len() {
            let label = "is the rest of the file missing?";
            let help = "a list that is still being written looks so; if it is whole, end its last line";
            self.error(end.saturating_sub(1)..end, "the last line does not end", label, Some(help.into()));
        }
        if line.len() > LINE_MAX {
            let title = format!("the line has {} octets", line.len());
            let label = format!("Kamailio takes what is behind octet {LINE_MAX} for another line");
            return self.error(start..end, title, label, None);
        }
        let mut rest = Rest { at: start, text: content };
        rest.skip_blanks();
        if rest.is_over() {
            return;
        }
        let before = self.problems.len() + self.more;
        let entry = self.entry(&mut rest, end);
        if self.problems.len() + self.more == before {
            self.entries.extend(entry);
        }
    }

    fn entry(&mut self, rest: &mut Rest<'_>, end: usize) -> Option<Entry> {
        let (text, at) = rest.take(ends_field);
        if text.contains(':') {
            let help = "Kamailio takes it for set 0 then; write `0` if that is meant";
            self.error(at, "the number of the set is missing", format!("write `1 {text}`"), Some(help.into()));
            return None;
        }
        let set = self.number(text, at, i32::MAX as u32, "set");
        if rest.is_over() {
            self.error(end..end, "the destination is missing", "a URI like `sip:10.0.0.11:5060` belongs here", None);
            return None;
        }
        let (uri, at) = rest.take(ends_field);
        let mut entry = self.destination(uri, at);
        let (mut flags, mut priority) = (Some(0), Some(0));
        if !rest.is_over() && !begins_attributes(rest.text) {
            let (text, at) = rest.take(ends_field);
            flags = self.flags(text, at);
            if !rest.is_over() && !begins_attributes(rest.text) {
                let (text, at) = rest.take(ends_field);
                priority = self.number(text, at, u32::from(u16::MAX), "priority");
            }
        }
        if !rest.is_over() {
            let (text, at) = rest.take(is_blank);
            self.attributes(text, at.start, entry.as_mut());
        }
        if !rest.is_over() {
            let at = rest.at..rest.at + rest.text.trim_end_matches(is_blank).len();
            let help = "write attributes without blanks between them, and a comment behind `#`";
            self.error(at, "this line should be over", "Kamailio does not read what stands here", Some(help.into()));
        }
        let entry = entry.as_mut()?;
        (entry.set, entry.flags, entry.priority) = (set?, flags?, priority? as u16);
        Some(entry.clone())
    }

    fn number(&mut self, text: &str, at: Range<usize>, most: u32, what: &str) -> Option<u32> {
        let number = text.parse::<u32>().ok().filter(|number| *number <= most);
        let is_number = text.bytes().all(|octet| octet.is_ascii_digit());
        if number.is_none() || !is_number {
            let title = match is_number {
                true => format!("{what} {text} is too large"),
                false => format!("{what} `{text}` is not a number"),
            };
            self.error(at, title, format!("a number from 0 to {most}"), None);
            return None;
        }
        number
    }

    fn flags(&mut self, text: &str, at: Range<usize>) -> Option<u8> {
        let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
        if let Some(number) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            let help = "Kamailio reads hexadecimal flags from 6.1 on; any before takes this for flags 0 and an attribute, \
                        and drops the rest of the line";
            self.error(at, "flags in hexadecimal", format!("write `{number}`"), Some(help.into()));
            return None;
        }
        let number = self.number(text, at.clone(), u32::from(u16::MAX), "flags")?;
        let known = u8::try_from(number).ok().filter(|bits| bits & !flag::ALL == 0);
        if known.is_none() {
            let label = "the sum of 1 inactive, 2 trying, 4 disabled, 8 probing, 16 no DNS, 32 no ping";
            self.error(at, format!("there are no flags {number}"), label, None);
        }
        known
    }

    /// The destination: what Kamailio could send to. What we cannot is told when it is asked for.
    fn destination(&mut self, uri: &str, at: Range<usize>) -> Option<Entry> {
        let place = |part: Range<usize>| at.start + part.start..at.start + part.end;
        let (address, params) = uri.split_once(';').map_or((uri, ""), |(address, params)| (address, params));
        let begins = |scheme: &str| address.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme));
        let is_secure = begins("sips:");
        let asks_for = |wanted: &str| {
            params
                .split(';')
                .filter_map(|param| param.split_once('='))
                .any(|(name, value)| name.eq_ignore_ascii_case("transport") && value.eq_ignore_ascii_case(wanted))
        };
        // What stands for no port depends on it.
        let sealed = format!("{address};transport=tls");
        let is_tls = is_secure || begins("sip:") && asks_for("tls");
        let target = match address::backend_uri(if is_tls { &sealed } else { address }) {
            Ok((target, _)) => target,
            Err(AddressError { at, title, label }) => {
                self.error(place(at), title, label, None);
                return None;
            }
        };
        let mut entry = Entry {
            set: 0,
            uri: uri.to_owned(),
            unreachable: None,
            target,
            transport: if is_tls { Transport::Tls } else { Transport::Udp },
            flags: 0,
            priority: 0,
            weight: None,
            rweight: None,
            duid: None,
            unused: Vec::new(),
            at: at.clone(),
        };
        let mut start = address.len() + 1;
        for param in params.split(';') {
            let part = place(start..start + param.len());
            start += param.len() + 1;
            match param.split_once('=') {
                Some((name, value)) if name.eq_ignore_ascii_case("transport") => {
                    let is_udp = value.eq_ignore_ascii_case("udp");
                    let is_tcp = value.eq_ignore_ascii_case("tcp");
                    if is_udp && is_secure {
                        entry.unreachable = Some(AddressError {
                            at: part,
                            title: "`sips:` goes over TLS, and TLS not over UDP".into(),
                            label: "leave this out, or write `sip:`".into(),
                        });
                    } else if is_tcp && !is_tls {
                        entry.transport = Transport::Tcp;
                    } else if !is_udp && !is_tcp && !value.eq_ignore_ascii_case("tls") {
                        entry.unreachable = Some(AddressError {
                            at: part,
                            title: format!("transport `{value}`: viahop reaches backends over UDP, TCP and TLS"),
                            label: "let the server take one of these, or leave the entry out".into(),
                        });
                    }
                }
                _ if param.is_empty() => {}
                split => entry.unused.push((split.map_or(param, |split| split.0).to_owned(), part, true)),
            }
        }
        Some(entry)
    }

    /// `name=value;…`, which begins at `start`.
    fn attributes(&mut self, text: &str, start: usize, mut entry: Option<&mut Entry>) {
        let mut seen: HashMap<String, Range<usize>> = HashMap::new();
        let mut at = start;
        let mut parts = split_attributes(text).peekable();
        while let Some(part) = parts.next() {
            let place = at..at + part.len();
            at += part.len() + 1;
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let value_at = place.end - value.len()..place.end;
            if name.is_empty() {
                // One `;` may end the list.
                if parts.peek().is_some() || !part.is_empty() || seen.is_empty() {
                    self.error(place, "an attribute without a name", "`name=value` belongs here", None);
                }
                continue;
            }
            let name = name.to_ascii_lowercase();
            if seen.insert(name.clone(), place.clone()).is_some() {
                self.error(place, format!("`{name}` stands twice"), "Kamailio heeds the last one; keep one", None);
                continue;
            }
            let Some(value) = unquoted(value) else {
                let label = "the quote that ends it is missing";
                self.error(value_at, format!("the value of `{name}` does not end"), label, None);
                continue;
            };
            let Some(entry) = entry.as_deref_mut() else { continue };
            match &name[..] {
                "weight" => entry.weight = self.weight(&name, value, value_at),
                "rweight" => entry.rweight = self.weight(&name, value, value_at),
                "duid" if is_name(value) => entry.duid = Some(value.to_owned()),
                "duid" => {
                    let label = "letters, digits and `-._:/` make good names";
                    self.error(value_at, format!("`{}` cannot be a name", value.escape_debug()), label, None);
                }
                _ => entry.unused.push((name.clone(), place, !UNUSED.contains(&&name[..]))),
            }
        }
    }

    fn weight(&mut self, name: &str, value: &str, at: Range<usize>) -> Option<u8> {
        let is_number = value.bytes().all(|octet| octet.is_ascii_digit());
        let weight = value.parse().ok().filter(|weight| is_number && *weight <= 100);
        if weight.is_none() {
            let title = format!("{name} `{value}` is not a number from 0 to 100");
            self.error(at, title, "Kamailio takes it for 0: no calls", None);
        }
        weight
    }
}

/// Whether a field is the attributes: flags and priority begin with a digit, or want to.
fn begins_attributes(text: &str) -> bool {
    text.starts_with(|octet: char| octet.is_ascii_alphabetic() || octet == '_')
}

/// Splits at each `;` that stands outside of quotes. Quotes open a value and do not stand within one.
fn split_attributes(text: &str) -> impl Iterator<Item = &str> {
    let (mut quote, mut before) = (None, ';');
    text.split(move |octet| {
        match (quote, octet) {
            (None, '"' | '\'') if before == '=' => quote = Some(octet),
            (Some(open), _) if open == octet => quote = None,
            _ => {}
        }
        before = octet;
        quote.is_none() && octet == ';'
    })
}

/// A value without its quotes; `None` if one of them is missing.
fn unquoted(value: &str) -> Option<&str> {
    let Some(quote) = value.chars().next().filter(|first| matches!(first, '"' | '\'')) else { return Some(value) };
    value[1..].strip_suffix(quote)
}

/// Whether a backend may be called so: what [`super::read`] takes for `name`.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_graphic() && octet != b'"' && octet != b'\\')
}

/// What the entries of one set are to us, in the order of the list.
#[derive(Debug)]
pub struct Set<'a> {
    /// Each entry with its backend, or with why there is none: an error, or a note if it is switched off anyway.
    pub rows: Vec<(&'a Entry, Result<Backend, Box<Problem>>)>,
    /// What is not quite right about the rest, and who is switched off.
    pub remarks: Vec<Problem>,
}

/// The backends of `set`, in a pool that is probed or not.
///
/// ```text
/// duid, else HOST:PORT       name: what the table is made of and what dialogs know it by
/// rweight, else weight       weight; 100 if there is neither. 0: it drains
/// priority                   turned round: the highest of the set becomes 0, since lower comes first here
/// flag 4 disabled            it drains: no new keys, what belongs to it stays, as Kamailio's loose_route() has it
/// flag 1 inactive            it drains; with flag 8, and probes, it is ready: what Kamailio makes of the first answer
/// flags 2, 8, 16             nothing: all are probed or none is, and names are always looked up
/// flag 32 no ping            a warning where there are probes
/// ```
pub fn backends(entries: &[Entry], set: u32, is_probed: bool) -> Set<'_> {
    let mut rows = Vec::new();
    let mut remarks = Vec::new();
    let members: Vec<&Entry> = entries.iter().filter(|entry| entry.set == set).collect();
    let first = members.iter().map(|entry| entry.priority).max().unwrap_or(0);
    let mut targets: HashMap<&HostPort, &Entry> = HashMap::new();
    let mut names: HashMap<String, &Entry> = HashMap::new();
    for &entry in &members {
        let name = entry.duid.clone().unwrap_or_else(|| entry.target.to_string());
        let off = switched_off(entry, is_probed);
        let row = match (&off, &entry.unreachable) {
            (Some(_), Some(AddressError { at, title, label })) => Err(Problem::note(at.clone(), title, label)),
            (None, Some(AddressError { at, title, label })) => Err(Problem::error(at.clone(), title, label)),
            (_, None) => match (targets.insert(&entry.target, entry), names.insert(name.clone(), entry)) {
                (Some(other), _) => {
                    let title = format!("`{}` stands twice in set {set}", entry.target);
                    let problem = Problem::error(entry.at.clone(), title, "a second time");
                    let help = "leave one of them out; `rweight` says how many of the calls it gets";
                    Err(problem.beside(other.at.clone(), None, "here first").help(help))
                }
                (None, Some(other)) => {
                    let title = format!("two destinations of set {set} have the name `{name}`");
                    let problem = Problem::error(entry.at.clone(), title, "the second");
                    let help = "give each a `duid` of its own: the name says which calls are whose";
                    Err(problem.beside(other.at.clone(), None, "the first").help(help))
                }
                (None, None) => Ok(Backend {
                    name,
                    target: entry.target.clone(),
                    addresses: Vec::new(),
                    transport: entry.transport,
                    message_max: FRAME_MAX as u32,
                    max_open: 0,
                    // Of a backend that drains it says nothing; as a weight, 0 is none.
                    weight: weight(entry).max(1),
                    priority: u32::from(first - entry.priority),
                    state: if off.is_some() { State::Drain } else { State::Ready },
                    at: entry.at.clone(),
                    source: None,
                }),
            },
        };
        remarks.extend(off.filter(|_| row.is_ok()).map(|(title, label)| Problem::note(entry.at.clone(), title, label)));
        rows.push((entry, row.map_err(Box::new)));
    }
    let taken = || rows.iter().filter(|(_, row)| row.is_ok()).map(|(entry, _)| *entry);
    remarks.extend(mixed_weights(set, taken().filter(|entry| switched_off(entry, is_probed).is_none())));
    remarks.extend(without_effect(taken(), is_probed));
    Set { rows, remarks }
}

fn weight(entry: &Entry) -> u32 {
    entry.rweight.or(entry.weight).map_or(WEIGHT_DEFAULT, u32::from)
}

/// Why an entry takes no new calls.
fn switched_off(entry: &Entry, is_probed: bool) -> Option<(String, &'static str)> {
    let drains = |why: &str| format!("`{}` is {why}: it drains", entry.uri);
    if entry.flags & flag::DISABLED != 0 {
        return Some((drains("disabled (flag 4)"), "no new calls; those it has stay"));
    }
    if entry.flags & flag::INACTIVE != 0 {
        let why = match entry.flags & flag::PROBING != 0 {
            true if is_probed => None,
            true => Some("nothing probes this pool, so it stays inactive"),
            false => Some("with flags 9 an answer to a probe makes it active"),
        };
        if let Some(why) = why {
            return Some((drains("inactive (flag 1)"), why));
        }
    }
    (weight(entry) == 0).then(|| (drains("of weight 0"), "no new calls; those it has stay"))
}

/// A warning if weights of different meanings stand side by side.
fn mixed_weights<'a>(set: u32, mut taken: impl Iterator<Item = &'a Entry>) -> Option<Problem> {
    let kind = |entry: &Entry| match (entry.rweight, entry.weight) {
        (Some(_), _) => "`rweight`",
        (None, Some(_)) => "`weight`",
        (None, None) => "no weight, so 100",
    };
    let first = taken.next()?;
    let other = taken.find(|entry| kind(entry) != kind(first))?;
    let title = format!("weights of set {set} are not of one kind");
    let problem = Problem::warning(other.at.clone(), title, format!("{} here", kind(other)));
    let help = "give all of them `rweight`, or none";
    Some(problem.beside(first.at.clone(), None, format!("{} here", kind(first))).help(help))
}

/// Warnings that list what stands in the list and does nothing: one for what Kamailio knows, one for the rest.
fn without_effect<'a>(taken: impl Iterator<Item = &'a Entry> + Clone, is_probed: bool) -> Vec<Problem> {
    let mut warnings = Vec::new();
    for (is_own, title) in [
        (false, "attributes of Kamailio's that viahop does not heed"),
        (true, "attributes and parameters that viahop does not know"),
    ] {
        let all = taken.clone().flat_map(|entry| &entry.unused).filter(|unused| unused.2 == is_own);
        let Some((_, at, _)) = all.clone().next() else { continue };
        let mut counts: Vec<(&str, usize)> = Vec::new();
        for (name, ..) in all {
            match counts.iter_mut().find(|(known, _)| known == name) {
                Some((_, count)) => *count += 1,
                None => counts.push((name, 1)),
            }
        }
        counts.sort_unstable();
        let list: Vec<String> = counts.iter().map(|(name, count)| format!("`{name}` ({count})")).collect();
        warnings.push(Problem::warning(at.clone(), format!("{title}: {}", list.join(", ")), "the first of them"));
    }
    if let Some(entry) = taken.clone().find(|entry| is_probed && entry.flags & flag::NO_PING != 0) {
        let problem = Problem::warning(entry.at.clone(), "flag 32 (no ping) has no effect", "is probed all the same");
        warnings.push(problem.help("`health = { probe = false }` turns probes off, for the whole pool"));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::super::problem::{Report, Severity, Source};
    use super::*;

    fn entries(text: &str) -> Vec<Entry> {
        let (entries, problems) = parse(text);
        assert!(problems.is_empty(), "{problems:#?}");
        entries
    }

    /// `line:column title | label` of a problem in `text`.
    fn shown(text: &str, problem: &Problem) -> String {
        let source = Source { name: "list".into(), text: text.into() };
        let (line, column) = source.line_and_column(problem.at.as_ref().map_or(0, |at| at.start));
        format!("{line}:{column} {} | {}", problem.title, problem.label)
    }

    #[test]
    fn what_kamailios_documentation_shows_is_read_as_it_is_meant() {
        let text = "# line format\n\n2 sip:127.0.0.1:5080;transport=tcp 0 10 class=4;prefix=448;strip=2\n\
                    2 sip:127.0.0.1:5082;px=vx 0 5 duid=abc;socket=udp:192.168.0.125:5060;pipe=p10\n\
                    # gateways\n1 sip:127.0.0.1:7070 0 0 duid=xyz;maxload=20\n1 sip:127.0.0.1:7072 0 5\n\
                    \t1  sip:127.0.0.1:7074 \r\n";
        let list = entries(text);
        let row = |one: &Entry| (one.set, one.target.to_string(), one.flags, one.priority, one.duid.clone());
        assert_eq!(row(&list[0]), (2, "127.0.0.1:5080".into(), 0, 10, None));
        assert_eq!(row(&list[1]), (2, "127.0.0.1:5082".into(), 0, 5, Some("abc".into())));
        assert_eq!(row(&list[4]), (1, "127.0.0.1:7074".into(), 0, 0, None));
        assert!(list.iter().all(|one| one.unreachable.is_none()));
        assert_eq!((list[0].transport, list[1].transport), (Transport::Tcp, Transport::Udp));
        let unused: Vec<&str> = list[1].unused.iter().map(|unused| &unused.0[..]).collect();
        assert_eq!(unused, ["px", "socket", "pipe"]);
    }

    #[test]
    fn tls_is_asked_for_by_scheme_or_transport_and_has_a_port_of_its_own() {
        let list =
            entries("1 SIPS:a\n1 SIP:b;px=y;Transport=TLS\n1 sip:c:5070;transport=tls\n1 sips:d;transport=tcp\n");
        assert!(list.iter().all(|one| one.transport == Transport::Tls && one.unreachable.is_none()));
        let targets: Vec<String> = list.iter().map(|one| one.target.to_string()).collect();
        assert_eq!(targets, ["a:5061", "b:5061", "c:5070", "d:5061"]);
    }

    #[test]
    fn the_transport_is_what_says_so_in_any_case_and_nothing_else() {
        let list = entries("1 sip:a;px=tls\n1 sip:b;px=tcp\n1 sip:c;Transport=TCP\n1 sip:d;TRANSPORT=UDP\n");
        let transports: Vec<Transport> = list.iter().map(|one| one.transport).collect();
        assert_eq!(transports, [Transport::Udp, Transport::Udp, Transport::Tcp, Transport::Udp]);
        assert!(list.iter().all(|one| one.unreachable.is_none()));
    }

    #[test]
    fn numbers_and_lines_are_taken_up_to_their_bounds() {
        let list = entries("2147483647 sip:a 63 65535 _my=1;weight=100;rweight=100\n0 sip:b 0 0 my='a;b';weight=0\n");
        let row = |one: &Entry| (one.set, one.flags, one.priority, one.weight, one.rweight);
        assert_eq!(row(&list[0]), (2_147_483_647, 63, 65_535, Some(100), Some(100)));
        assert_eq!(row(&list[1]), (0, 0, 0, Some(0), None));
        let line = |len: usize| format!("{:<len$}\n", "1 sip:a # ");
        assert_eq!(entries(&line(LINE_MAX - 1)).len(), 1);
        assert_eq!(parse(&line(LINE_MAX)).1.len(), 1);
    }

    #[test]
    fn fields_may_be_left_out_and_values_quoted() {
        let list = entries(
            "1 sip:a _my=1;weight=50\n1 sip:b 8 RWEIGHT=7;\n1 sip:c#x\n1 sip:d 0# x\n1 sip:[2001:db8::1]:5070 0 1 my=it's;duid='a;b' # y\n",
        );
        assert_eq!((list[0].weight, list[1].rweight, list[1].flags), (Some(50), Some(7), 8));
        assert_eq!((&list[2].uri[..], &list[3].uri[..]), ("sip:c", "sip:d"));
        assert_eq!((list[4].duid.as_deref(), &list[4].target.to_string()[..]), (Some("a;b"), "[2001:db8::1]:5070"));
    }

    #[test]
    fn errors_say_where_what_and_what_instead() {
        let rows = [
            ("sip:10.0.0.1\n", "1:1 the number of the set is missing | write `1 sip:10.0.0.1`"),
            ("one sip:10.0.0.1\n", "1:1 set `one` is not a number | a number from 0 to 2147483647"),
            ("9999999999 sip:a\n", "1:1 set 9999999999 is too large | a number from 0 to 2147483647"),
            ("+1 sip:a\n", "1:1 set `+1` is not a number | a number from 0 to 2147483647"),
            ("1\n", "1:2 the destination is missing | a URI like `sip:10.0.0.11:5060` belongs here"),
            ("1 10.0.0.1\n", "1:3 `10.0.0.1` is not a SIP URI | write `sip:10.0.0.1`"),
            ("1 sip:10.0.0.12:506O\n", "1:20 port `506O` is not a number | the letter O, not the digit 0"),
            ("1 sips:10.0.0.1:0\n", "1:17 port 0 is no port | a number from 1 to 65535"),
            ("1 sip:bob@10.0.0.1\n", "1:7 a backend is a server, without a user | leave this out"),
            ("1 sip:a 0x8 5 rweight=30\n", "1:9 flags in hexadecimal | write `8`"),
            ("1 sip:a 0X10\n", "1:9 flags in hexadecimal | write `16`"),
            (
                "1 sip:a 64\n",
                "1:9 there are no flags 64 | the sum of 1 inactive, 2 trying, 4 disabled, 8 probing, 16 no DNS, 32 no ping",
            ),
            ("1 sip:a -1\n", "1:9 flags `-1` is not a number | a number from 0 to 65535"),
            ("1 sip:a 0 70000\n", "1:11 priority 70000 is too large | a number from 0 to 65535"),
            (
                "1 sip:a 0 0 weight=101\n",
                "1:20 weight `101` is not a number from 0 to 100 | Kamailio takes it for 0: no calls",
            ),
            (
                "1 sip:a 0 0 weight=+5\n",
                "1:20 weight `+5` is not a number from 0 to 100 | Kamailio takes it for 0: no calls",
            ),
            (
                "1 sip:a 0 0 weight=5; duid=x\n",
                "1:23 this line should be over | Kamailio does not read what stands here",
            ),
            ("1 sip:a 0 0 =5\n", "1:13 an attribute without a name | `name=value` belongs here"),
            ("1 sip:a 0 0 weight=5;;duid=a\n", "1:22 an attribute without a name | `name=value` belongs here"),
            ("1 sip:a 0 0 weight=5;;\n", "1:22 an attribute without a name | `name=value` belongs here"),
            ("1 sip:a 0 0 duid=a;duid=b\n", "1:20 `duid` stands twice | Kamailio heeds the last one; keep one"),
            ("1 sip:a 0 0 duid=\"a\n", "1:18 the value of `duid` does not end | the quote that ends it is missing"),
            (
                "1 sip:a 0 0 weight=\n",
                "1:20 weight `` is not a number from 0 to 100 | Kamailio takes it for 0: no calls",
            ),
            ("1 sip:a 0 0 duid=a\\b\n", "1:18 `a\\\\b` cannot be a name | letters, digits and `-._:/` make good names"),
            ("1 sip:a 0 0 duid=a\"b\n", "1:18 `a\\\"b` cannot be a name | letters, digits and `-._:/` make good names"),
            (
                "1 sip:a 0 0 duid=a\u{7f}\n",
                "1:18 `a\\u{7f}` cannot be a name | letters, digits and `-._:/` make good names",
            ),
            ("1 sip:a 0 0 duid=\n", "1:18 `` cannot be a name | letters, digits and `-._:/` make good names"),
            (
                "\u{feff}1 sip:a\n",
                "1:1 the list begins with a byte order mark | Kamailio takes it for a part of the first line",
            ),
            ("1 sip:a", "1:7 the last line does not end | is the rest of the file missing?"),
        ];
        let wrong: Vec<_> = rows
            .into_iter()
            .map(|(text, expected)| {
                (text, parse(text).1.iter().map(|one| shown(text, one)).collect::<Vec<_>>(), expected)
            })
            .filter(|(_, said, expected)| said != &[*expected])
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        let long = format!("1 sip:a # {}\n", "x".repeat(LINE_MAX));
        assert!(shown(&long, &parse(&long).1[0]).starts_with("1:1 the line has 1034 octets"));
    }

    #[test]
    fn all_lines_that_are_wrong_are_told_but_no_more_than_a_screen_can_hold() {
        let (entries, problems) = parse("1 sip:a\nx sip:b 0x1 y=\"\n1 sip:c\n2\n");
        assert_eq!((entries.len(), problems.len()), (2, 4), "{problems:#?}");
        let (_, problems) = parse(&"no list\n".repeat(5000));
        assert_eq!(problems.len(), PROBLEMS_MAX + 1);
        assert_eq!(problems[PROBLEMS_MAX].title, "9900 more lines are wrong");
    }

    #[test]
    fn nothing_that_can_stand_in_a_file_makes_the_reader_panic() {
        let text = "1 sip:[::1]:5060;a=b 8 3 weight=5;duid='x';é=\"ü\" # ß\r\n";
        for cut in 0..text.len() {
            for octet in ["", "\0", "\"", "'", ";", "=", "#", " ", "\n", "é", "9"] {
                let (Some(before), Some(after)) = (text.get(..cut), text.get(cut..)) else { continue };
                for text in [format!("{before}{octet}{after}"), format!("{before}{octet}")] {
                    let (entries, problems) = parse(&text);
                    backends(&entries, 1, true);
                    let source = Source { name: "list".into(), text };
                    Report { source, problems }.render(false);
                }
            }
        }
    }

    /// A set, the backends it makes, and what is said about the rest.
    fn read(text: &str, is_probed: bool) -> (Vec<String>, Vec<String>) {
        let list = entries(text);
        let Set { rows, remarks } = backends(&list, 1, is_probed);
        let mut said = Vec::new();
        let mut made = Vec::new();
        for (_, row) in rows {
            match row {
                Ok(one) if one.state != State::Ready => made.push(format!("{} {}", one.name, one.state)),
                Ok(one) => made.push(format!("{} {} {} {}", one.name, one.target, one.weight, one.priority)),
                Err(problem) => said.push(shown(text, &problem)),
            }
        }
        said.extend(remarks.iter().map(|remark| shown(text, remark)));
        (made, said)
    }

    #[test]
    fn a_set_becomes_a_pool() {
        let (made, said) = read(
            "1 sip:a 0 10 rweight=30;weight=9\n1 sip:b 8 20 duid=gw-b;rweight=60\n2 sip:c;transport=tls\n1 sip:d 2 0 rweight=1\n",
            true,
        );
        assert_eq!(made, ["a:5060 a:5060 30 10", "gw-b b:5060 60 0", "d:5060 d:5060 1 20"]);
        assert!(said.is_empty(), "{said:?}");
    }

    #[test]
    fn what_is_switched_off_drains_with_a_note() {
        let text =
            "1 sip:a 4\n1 sip:b 1\n1 sip:c 9\n1 sip:d 0 0 weight=0\n1 sip:e;transport=sctp 4\n1 sip:f 9 0 weight=0\n";
        let (made, said) = read(text, true);
        assert_eq!(made, ["a:5060 drain", "b:5060 drain", "c:5060 c:5060 100 0", "d:5060 drain", "f:5060 drain"]);
        assert_eq!(said[1], "1:3 `sip:a` is disabled (flag 4): it drains | no new calls; those it has stay");
        assert_eq!(said.iter().filter(|said| said.contains("it drains")).count(), 4, "{said:?}");
        let list = entries(text);
        let Set { rows, remarks } = backends(&list, 1, true);
        assert!(rows[4].1.as_ref().is_err_and(|problem| problem.severity == Severity::Note));
        assert_eq!(rows[3].1.as_ref().unwrap().weight, 1, "an operator may put it to use");
        assert!(remarks[..4].iter().all(|remark| remark.severity == Severity::Note));
        assert_eq!(read(text, false).0[2], "c:5060 drain", "without a probe nobody would wake it");
    }

    #[test]
    fn what_cannot_be_done_or_is_not_heeded_is_told() {
        let text = "1 sip:a;px=y;transport=SCTP\n1 sips:b;transport=udp\n1 sip:c\n1 sip:c:5060\n1 sip:d 0 0 duid=c:5060\n1 sip:e 32 0 rweight=5;maxload=3;my=x\n\
                    1 sip:f 0 0 my=y;other\n";
        let (made, said) = read(text, true);
        assert_eq!(made.len(), 3);
        assert_eq!(
            said,
            [
                "1:14 transport `SCTP`: viahop reaches backends over UDP, TCP and TLS | let the server take one of these, or leave the entry out",
                "2:10 `sips:` goes over TLS, and TLS not over UDP | leave this out, or write `sip:`",
                "4:3 `c:5060` stands twice in set 1 | a second time",
                "5:3 two destinations of set 1 have the name `c:5060` | the second",
                "6:3 weights of set 1 are not of one kind | `rweight` here",
                "6:24 attributes of Kamailio's that viahop does not heed: `maxload` (1) | the first of them",
                "6:34 attributes and parameters that viahop does not know: `my` (2), `other` (1) | the first of them",
                "6:3 flag 32 (no ping) has no effect | is probed all the same",
            ]
        );
    }
}
