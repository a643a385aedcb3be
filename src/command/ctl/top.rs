//! `viahop ctl top`: what happens in each second, on one screen that is drawn anew.

use super::client::{Client, Trouble};
use super::show::{list, state_of, word};
use super::table::Table;
use crate::say;
use crossterm::cursor::MoveTo;
use crossterm::terminal::{Clear, ClearType, size};
use serde_json::Value;
use std::io::IsTerminal;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// From one screen to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// Steps of a bar.
const BAR: usize = 10;

/// Shows it until `screens` were shown, or whoever looks has gone.
pub fn run(client: &Client, screens: Option<u64>) -> Result<String, Trouble> {
    let (mut before, mut looked_at) = (client.get("/status.json")?, Instant::now());
    let mut left = screens.unwrap_or(u64::MAX);
    while left > 0 && say::arrives() {
        sleep(INTERVAL);
        let (now, at) = (client.get("/status.json")?, Instant::now());
        let seconds = at.duration_since(looked_at).as_secs_f64();
        let text = screen(&before, &now, seconds, &client.place);
        if std::io::stdout().is_terminal() {
            say::answer(format_args!("{}", drawn(&text)));
        } else {
            say::answer(format_args!("{text}\n"));
        }
        (before, looked_at) = (now, at);
        left -= 1;
    }
    Ok(String::new())
}

/// `text` over what is on the terminal, cut where that ends.
fn drawn(text: &str) -> String {
    let (columns, rows) = size().unwrap_or((80, 24));
    let mut out = MoveTo(0, 0).to_string();
    for line in text.lines().take(usize::from(rows).saturating_sub(1)) {
        let line: String = line.chars().take(columns.into()).collect();
        out.push_str(&format!("{line}{}\n", Clear(ClearType::UntilNewLine)));
    }
    out + &Clear(ClearType::FromCursorDown).to_string()
}

/// What happened between two looks, `seconds` from each other.
fn screen(before: &Value, now: &Value, seconds: f64, place: &str) -> String {
    let a_second = |before: &Value, now: &Value, name: &str| {
        let grown = now[name].as_u64().unwrap_or_default().saturating_sub(before[name].as_u64().unwrap_or_default());
        grouped((grown as f64 / seconds).round() as u64)
    };
    let mut messages = Table::new(&[">received/s", ">forwarded/s", ">replied/s", ">dropped/s", ">waiting"]);
    let all = |name: &str| a_second(&before["messages"], &now["messages"], name);
    let waiting = now["messages"]["waiting"].to_string();
    messages.add([all("received"), all("forwarded"), all("replied"), all("dropped"), waiting]);
    let mut shards = Table::new(&["shard", ">core", "busy", ">", ">received/s", ">dropped/s", ">connections"]);
    for (number, (before, shard)) in list(&before["shards"]).zip(list(&now["shards"])).enumerate() {
        let busy = shard["busy"].as_f64().unwrap_or_default().clamp(0.0, 1.0);
        let full = (busy * BAR as f64).round() as usize;
        shards.add([
            number.to_string(),
            shard["core"].to_string(),
            format!("[{}{}]", "#".repeat(full), ".".repeat(BAR - full)),
            format!("{:.0} %", busy * 100.0),
            a_second(before, shard, "received"),
            a_second(before, shard, "dropped"),
            shard["connections"].to_string(),
        ]);
    }
    let mut backends = Table::new(&["pool", "backend", "set to", "state", ">requests/s", ">responses/s", ">errors/s"]);
    for one in list(&now["backends"]) {
        let is_it = |before: &&Value| ["pool", "name"].iter().all(|key| before[*key] == one[*key]);
        // One that has come since counts from here on.
        let before = list(&before["backends"]).find(is_it).unwrap_or(one);
        let ejected = if one["ejected"] == true { ", ejected" } else { "" };
        backends.add([
            word(&one["pool"]),
            word(&one["name"]),
            word(&one["operator"]),
            word(&one["state"]) + ejected,
            a_second(before, one, "requests"),
            a_second(before, one, "responses"),
            a_second(before, one, "errors"),
        ]);
    }
    let head = format!("viahop {}, {}, at {place}; Ctrl-C ends this\n", word(&now["version"]), state_of(now));
    [head, messages.text(), shards.text(), backends.text()].join("\n")
}

/// With a comma before each three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn look(received: u64, requests: u64, more: Option<&str>) -> Value {
        let backend = |name: &str| {
            json!({ "pool": "proxies", "name": name, "operator": "ready", "state": "up", "ejected": true,
                    "requests": requests, "responses": requests, "errors": 0 })
        };
        let backends: Vec<Value> = ["10.0.0.11:5060"].into_iter().chain(more).map(backend).collect();
        json!({ "version": "1.0.0", "ready": true, "draining": false, "backends": backends,
                "shards": [{ "core": 3, "busy": 0.42, "received": received, "dropped": 0, "connections": 7 }],
                "messages": { "received": received, "forwarded": received, "replied": 0, "dropped": 0, "waiting": 0 } })
    }

    #[test]
    fn it_shows_what_happened_in_a_second_and_fits_eighty_columns() {
        let text =
            screen(&look(1_000, 50, None), &look(2_470_000, 150, Some("10.0.0.12:5060")), 2.0, "/run/viahop/ctl.sock");
        for part in [
            " 1,234,500    1,234,500          0          0        0\n",
            "[####......]  42 %",
            "up, ejected          50           50         0",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        let late = text.lines().find(|line| line.contains("10.0.0.12")).unwrap();
        assert!(late.ends_with("0            0         0"), "{late}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn counters_that_begin_anew_are_no_rate() {
        let text = screen(&look(1_000, 50, None), &look(10, 0, None), 1.0, "x");
        assert!(text.contains("\n         0            0 "), "{text}");
    }
}
