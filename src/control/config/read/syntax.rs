//! What the TOML reader has to say, in our words where they are plainer.

use super::words::closest;
use crate::control::config::problem::Problem;

/// The problem that `error`, found in `text`, is to the one who wrote it.
pub fn toml_problem(error: &toml::de::Error, text: &str) -> Problem {
    let at = error.span().unwrap_or(0..0);
    let message = error.message();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if message.starts_with("unknown field") {
        let (key, known) = (quoted.first().copied().unwrap_or_default(), quoted.get(1..).unwrap_or_default());
        let mut problem = Problem::error(at, format!("unknown key `{key}`"), "");
        problem.label = match (closest(key, known), known.is_empty()) {
            (Some(name), _) => format!("help: a key with a similar name exists: `{name}`"),
            (None, true) => "there are no keys here".into(),
            (None, false) => format!("the keys here are {}", list(known)),
        };
        return problem;
    }
    if message.starts_with("missing field") {
        let key = quoted.first().copied().unwrap_or_default();
        return Problem::error(at, format!("`{key}` is missing"), format!("`{key} = …` belongs here"));
    }
    if let Some((found, expected)) =
        message.strip_prefix("invalid type: ").and_then(|rest| rest.split_once(", expected "))
    {
        let found = found.split(' ').next().unwrap_or_default();
        // Of a table that is written as a list of one, the first key is what the reader misses its value of.
        match (found, expected, text.get(at.start..).and_then(header)) {
            ("map", _, Some(("[[", name))) => {
                return Problem::error(
                    at,
                    format!("`[[{name}]]` is a list"),
                    format!("there is one: write `[{name}]`"),
                );
            }
            ("map", "a sequence", Some((_, name))) => {
                let label = format!("there may be several: write `[[{name}]]`");
                return Problem::error(at, format!("`[{name}]` is one table"), label);
            }
            _ => {}
        }
        if (found, expected) == ("integer", "i64") {
            return Problem::error(at, "this number is far out of range", "no key takes one of this size");
        }
        // What stands alone is most likely the first key of the table.
        let alone = |key: &str| text.get(at.clone()).map(|value| format!("write `{{ {key} = {value} }}`"));
        let instead = match (found, expected) {
            ("string", "struct Backend") => alone("uri"),
            ("string", "struct Listen") => alone("address"),
            _ => None,
        };
        let expected = match expected {
            "i64" => "a whole number, without quotes",
            "a string" => "a string, in quotes",
            "a boolean" => "`true` or `false`",
            "a sequence" => "a list, in `[` and `]`",
            other if other.starts_with("struct") => "a table, in `{` and `}`",
            other => other,
        };
        let found = match found {
            "string" => "a string",
            "integer" => "a whole number",
            "floating" => "a number with a point",
            "boolean" => "true or false",
            "sequence" => "a list",
            "map" => "a table",
            other => other,
        };
        let label = instead.unwrap_or_else(|| format!("expected {expected}"));
        return Problem::error(at, format!("this is {found}"), label);
    }
    let label = match text.get(at.clone()).is_some_and(|part| part.is_empty()) {
        true => "here",
        false => "",
    };
    Problem::error(at, format!("this is not TOML: {}", message.trim_end().replace('\n', ", ")), label)
}

/// The brackets of a table's header and the name between them, where `text` begins with one.
fn header(text: &str) -> Option<(&str, &str)> {
    let bracket = text.bytes().take_while(|octet| *octet == b'[').count();
    let (brackets, rest) = text.split_at_checked(bracket).filter(|(brackets, _)| !brackets.is_empty())?;
    let name = rest.split(']').next()?;
    name.bytes().all(|octet| octet.is_ascii_lowercase() || octet == b'.').then_some((brackets, name))
}

fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
