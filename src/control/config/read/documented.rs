//! That docs/configuration.md and what is read say the same.

use super::tests::{LISTEN, POOL};
use crate::control::config::parse;
use crate::control::config::problem::Source;

/// A file with `key` as docs/configuration.md has it in `section`; with nothing in its place, if there is no `value`. All such
/// files of a key are of one length, so that places in them are the same.
fn with(section: &str, key: &str, value: Option<&str>, len: usize) -> String {
    let quoted = value.map(|value| match value.parse::<i64>() {
        Ok(_) => value.to_owned(),
        Err(_) => format!("\"{value}\""),
    });
    let of_backend = ["weight", "max_open", "priority", "max_message_size"].contains(&key);
    let comma = if of_backend { "," } else { "" };
    let written = format!("{:len$}", quoted.map(|value| format!("{key} = {value}{comma}")).unwrap_or_default());
    match section {
        "[balancer]" => format!("[balancer]\n{written}\n{LISTEN}{POOL}"),
        "[streams]" => format!("{LISTEN}{POOL}[streams]\n{written}\n"),
        // Not longer than that may the timeout be.
        "Health" if key == "timeout" => format!("{LISTEN}{POOL}[pool.health]\ninterval = \"1h\"\n{written}\n"),
        "Health" => format!("{LISTEN}{POOL}[pool.health]\n{written}\n"),
        "Outlier" => format!("{LISTEN}{POOL}[pool.outlier]\n{written}\n"),
        _ if of_backend => {
            format!("{LISTEN}[[pool]]\nbackend = [{{ {written} uri = \"sip:a;transport=tcp\" }}]\n")
        }
        _ => format!("{LISTEN}{POOL}{written}\n"),
    }
}

#[test]
fn defaults_and_bounds_are_those_that_the_documentation_says() {
    let step = std::time::Duration::from_micros(1);
    let beyond = |bound: &str, up: bool| match bound.parse::<i64>() {
        Ok(number) => Some((if up { number + 1 } else { number - 1 }).to_string()),
        Err(_) => {
            let time = humantime::parse_duration(bound).unwrap();
            let time = if up { Some(time + step) } else { time.checked_sub(step) };
            time.map(|time| humantime::format_duration(time).to_string())
        }
    };
    let bare = |text: &str| text.trim_matches(['`', '.', ',', ':', ';', ' ']).to_owned();
    let is_value = |text: &String| text.starts_with(|first: char| first.is_ascii_digit());
    let (mut section, mut checked) = (String::new(), Vec::new());
    for line in include_str!("../../../../docs/configuration.md").lines() {
        if line.starts_with('#') {
            section = bare(line.trim_start_matches(['#', ' ']).split(':').next().unwrap());
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, key, cells @ ..] = &cells[..] else { continue };
        let key = bare(key);
        let is_known = ["[balancer]", "[streams]", "[[pool]]", "Health", "Outlier"].contains(&&section[..]);
        if !is_known || ["token_keys", "egress_ports", "set", "ok"].contains(&&key[..]) {
            continue;
        }
        let bounds = cells.iter().find_map(|cell| {
            let (least, most) = cell.split_once(" to ")?;
            let ends = (bare(least.split(' ').next_back()?), bare(most.split(' ').next()?));
            (is_value(&ends.0) && is_value(&ends.1)).then_some(ends)
        });
        let Some((least, most)) = bounds else { continue };
        let file = |value: Option<&str>| Source { name: String::new(), text: with(&section, &key, value, 60) };
        // Where there is a column for its unit, that stands before.
        let default = bare(cells[usize::from(cells.len() == 5)].split([' ', ',']).next().unwrap());
        if is_value(&default) {
            let [silent, written] = [None, Some(&default[..])].map(|value| parse(file(value)).unwrap().config);
            assert_eq!(silent, written, "{key}");
        }
        for (value, up) in [(&least, false), (&most, true)] {
            assert!(parse(file(Some(value))).is_ok(), "{key} = {value}");
            let Some(beyond) = beyond(value, up) else { continue };
            assert!(parse(file(Some(&beyond))).is_err(), "{key} = {beyond}");
        }
        checked.push(key);
    }
    assert_eq!(checked.len(), 29, "{checked:?}");
}
