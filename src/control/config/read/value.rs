//! Single values: what is written, what it means, and what to write instead.

use super::words::did_you_mean;
use crate::control::config::address::AddressError;
use crate::control::config::file::{Value, Word};
use crate::control::config::problem::Problem;
use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;
use toml::Spanned;

/// A file that is being read, and what was found wrong with it so far.
pub struct Reader<'a> {
    /// The file.
    pub text: &'a str,
    /// What was found, in the order of finding.
    pub problems: Vec<Problem>,
}

impl Reader<'_> {
    pub(super) fn error(
        &mut self,
        at: Range<usize>,
        title: impl Into<String>,
        label: impl Into<String>,
    ) -> &mut Problem {
        self.problems.push(Problem::error(at, title, label));
        let last = self.problems.len() - 1;
        &mut self.problems[last]
    }

    pub(super) fn warn(&mut self, at: Range<usize>, title: impl Into<String>, label: impl Into<String>) {
        self.problems.push(Problem::warning(at, title, label));
    }

    /// The place of `part` of a string value: inside the quotes, if the text stands there as it is.
    fn within(&self, value: &Spanned<String>, part: Range<usize>) -> Range<usize> {
        let span = value.span();
        let written = self.text.get(span.clone()).unwrap_or_default();
        match written.find(value.get_ref().as_str()) {
            Some(offset) => span.start + offset + part.start..span.start + offset + part.end,
            None => span,
        }
    }

    pub(super) fn address<T>(
        &mut self,
        value: &Spanned<String>,
        parse: fn(&str) -> Result<T, AddressError>,
    ) -> Option<T> {
        match parse(value.get_ref()) {
            Ok(address) => Some(address),
            Err(AddressError { at, title, label }) => {
                let at = self.within(value, at);
                self.error(at, title, label);
                None
            }
        }
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&mut self, value: &Value<Word>, default: T, words: &[(&str, T)]) -> T {
        let Some(value) = value else { return default };
        let Word(written) = value.get_ref();
        if let Some((_, meaning)) = words.iter().find(|(word, _)| word == written) {
            return *meaning;
        }
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        self.error(value.span(), format!("`{written}` is none of the values there are"), did_you_mean(written, &names));
        default
    }

    pub(super) fn number(&mut self, value: &Value<i64>, default: u32, least: i64, most: i64, what: &str) -> u32 {
        let Some(value) = value else { return default };
        let number = *value.get_ref();
        if !(least..=most).contains(&number) {
            let title = format!("{what} {number} is out of range");
            self.error(value.span(), title, format!("a number from {least} to {most}"));
        }
        u32::try_from(number).unwrap_or(default)
    }

    pub(super) fn duration(
        &mut self,
        value: &Value<String>,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let Some(value) = value else { return default };
        match humantime::parse_duration(value.get_ref()) {
            Ok(duration) if range.contains(&duration) => duration,
            Ok(_) => {
                let (least, most) =
                    (humantime::format_duration(*range.start()), humantime::format_duration(*range.end()));
                let title = format!("`{}` is out of range", value.get_ref());
                self.error(value.span(), title, format!("a time from {least} to {most}"));
                default
            }
            Err(_) => {
                let title = format!("`{}` is not a time", value.get_ref());
                self.error(value.span(), title, "a number with its unit, like `500ms`, `2s` or `1m`");
                default
            }
        }
    }

    /// A name that nothing else of its kind has; by default what `otherwise` says.
    pub(super) fn name(
        &mut self,
        value: &Value<String>,
        taken: &mut HashMap<String, Range<usize>>,
        otherwise: impl FnOnce() -> String,
        at: Range<usize>,
    ) -> String {
        let (name, at) = match value {
            Some(value) => (value.get_ref().clone(), value.span()),
            None => (otherwise(), at),
        };
        let is_plain = |octet: u8| octet.is_ascii_graphic() && octet != b'"' && octet != b'\\';
        if name.is_empty() || !name.bytes().all(is_plain) {
            let label = "letters, digits and `-._:/` make good names";
            self.error(at.clone(), format!("`{}` cannot be a name", name.escape_debug()), label);
        }
        if taken.insert(name.clone(), at.clone()).is_some() {
            self.error(at, format!("two of the name `{name}`"), "give one of them another `name`");
        }
        name
    }
}
