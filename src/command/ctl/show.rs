//! Answers of a viahop, for people.

use super::table::Table;
use serde_json::Value;

/// How it is, on one screen.
pub fn status(status: &Value, place: &str) -> String {
    let mut text = format!("viahop {}, {}\n", word(&status["version"]), state_of(status));
    text.push_str(&format!("at       {place}\n"));
    text.push_str(&format!("config   {}, hash {}\n", word(&status["config"]), word(&status["config_hash"])));
    text.push_str(&format!("started  {}\n", time(&status["started_at"])));
    let reload = &status["reload"];
    text.push_str(&match reload["error"].as_str() {
        Some(error) => format!("reload   REFUSED: {error}; in force is that of {}\n", time(&reload["last_success_at"])),
        None => format!("tables   number {}, of {}\n", status["generation"], time(&reload["last_success_at"])),
    });
    text.push_str(&format!("steering {}\n", steering(status)));
    let runs = if status["gso"] == true {
        "made of datagrams that are alike"
    } else {
        "none: `gso` is off, or somebody captures there"
    };
    text.push_str(&format!("runs     {runs}\n"));
    let messages = &status["messages"];
    text.push_str(&format!("received {}", messages["received"]));
    for name in ["forwarded", "replied", "dropped", "waiting"] {
        let sign = if name == "forwarded" { "=" } else { "+" };
        text.push_str(&format!(" {sign} {} {name}", messages[name]));
    }
    text.push_str("\n\n");
    let mut shards = Table::new(&["shard", ">core", ">busy", ">received", ">forwarded", ">replied", ">dropped"]);
    for (number, shard) in list(&status["shards"]).enumerate() {
        let count = |name: &str| shard[name].to_string();
        let busy = format!("{:.0} %", shard["busy"].as_f64().unwrap_or_default() * 100.0);
        shards.add([
            number.to_string(),
            count("core"),
            busy,
            count("received"),
            count("forwarded"),
            count("replied"),
            count("dropped"),
        ]);
    }
    text + &shards.text() + "\n" + &backends(status).text()
}

/// Whether it wants calls.
pub fn state_of(status: &Value) -> &'static str {
    match (&status["ready"], &status["draining"]) {
        (_, Value::Bool(true)) => "draining",
        (Value::Bool(true), _) => "ready",
        _ => "NOT READY: a pool has no backend that takes new calls",
    }
}

/// What decides which shard a message comes to, and how even that is.
fn steering(status: &Value) -> String {
    let steering = &status["steering"];
    let by = match word(&steering["in_force"]).as_str() {
        "call-id" => {
            let of = |outcomes: &dyn Fn(&str) -> bool| -> u64 {
                let counts = steering["datagrams"].as_object().into_iter().flatten();
                counts.filter(|(outcome, _)| outcomes(outcome)).filter_map(|(_, count)| count.as_u64()).sum()
            };
            format!("by Call-ID, {} datagrams, {} undecided", of(&|_| true), of(&|outcome| outcome != "call_id"))
        }
        _ if steering["missing"].is_string() => "by the kernel, for want of more: see `viahop doctor`".into(),
        _ => "by the kernel".into(),
    };
    match status["shard_skew"].as_f64() {
        Some(skew) => format!("{by}; busiest shard {skew:.3} of the mean"),
        None => by,
    }
}

/// The backends: what fits 80 columns with names of usual length.
pub fn backends(status: &Value) -> Table {
    let mut table =
        Table::new(&["pool", "backend", "set to", "state", "flags", ">weight", ">requests", ">errors", "probe"]);
    for one in list(&status["backends"]) {
        let probe = match (one["last_probe"].as_str(), one["last_probe_ms"].as_f64()) {
            (Some(probe), Some(ms)) if probe.starts_with("options_ok") => format!("{ms:.1} ms"),
            (Some(probe), _) => probe.to_owned(),
            _ => "-".into(),
        };
        table.add([
            word(&one["pool"]),
            word(&one["name"]),
            word(&one["operator"]),
            word(&one["state"]),
            word(&one["flags"]),
            one["weight"].to_string(),
            one["requests"].to_string(),
            one["errors"].to_string(),
            probe,
        ]);
    }
    table
}

/// All that is known of them. New columns are added at the end.
pub fn backends_in_full(status: &Value) -> Table {
    const NAMES: [&str; 18] = [
        "pool",
        "name",
        "address",
        "state",
        "operator",
        "flags",
        "takes_new",
        "weight",
        "weight_written",
        "priority",
        "changed_at",
        "last_probe",
        "last_probe_ms",
        "requests",
        "responses",
        "errors",
        "weight_in_force",
        "silent",
    ];
    let mut table = Table::new(&NAMES);
    for one in list(&status["backends"]) {
        table.add(NAMES.map(|name| word(&one[name])));
    }
    table
}

/// What `kamcmd dispatcher.list` prints of Kamailio's sets; here the sets have names, so their numbers are those of the
/// order in the configuration, from 1.
pub fn kamcmd(status: &Value) -> String {
    let mut pools: Vec<String> = Vec::new();
    for one in list(&status["backends"]) {
        if pools.last() != Some(&word(&one["pool"])) {
            pools.push(word(&one["pool"]));
        }
    }
    let mut text = format!("{{\n\tNRSETS: {}\n\tRECORDS: {{\n", pools.len());
    for (number, pool) in pools.iter().enumerate() {
        text.push_str(&format!("\t\tSET: {{\n\t\t\tID: {}\n\t\t\tTARGETS: {{\n", number + 1));
        for one in list(&status["backends"]).filter(|one| word(&one["pool"]) == *pool) {
            text.push_str(&format!(
                "\t\t\t\tDEST: {{\n\t\t\t\t\tURI: sip:{}\n\t\t\t\t\tFLAGS: {}\n\t\t\t\t\tPRIORITY: {}\n\t\t\t\t\tATTRS: {{\n\
                 \t\t\t\t\t\tBODY: \n\t\t\t\t\t\tDUID: {}\n\t\t\t\t\t\tMAXLOAD: 0\n\t\t\t\t\t\tWEIGHT: {}\n\t\t\t\t\t\tRWEIGHT: 0\n\
                 \t\t\t\t\t\tSOCKET: \n\t\t\t\t\t}}\n\t\t\t\t}}\n",
                word(&one["address"]),
                word(&one["flags"]),
                one["priority"],
                word(&one["name"]),
                one["weight"]
            ));
        }
        text.push_str("\t\t\t}\n\t\t}\n");
    }
    text + "\t}\n}\n"
}

/// What a change of a backend did.
pub fn changed(answer: &Value) -> String {
    let (pool, backend) = (word(&answer["pool"]), word(&answer["backend"]));
    let weight = &answer["weight"];
    let meaning = match (word(&answer["operator"]).as_str(), weight.as_u64()) {
        ("drain", _) => "no new calls; what belongs to it still goes there".to_owned(),
        ("maint", _) => "nothing goes there, and it is not probed".to_owned(),
        (_, Some(0)) => "weight 0: no new calls; what belongs to it still goes there".to_owned(),
        _ => format!("new calls by its weight of {weight}, while it is up"),
    };
    let mut text = format!("{pool}/{backend} is set to {}: {meaning}\n", word(&answer["operator"]));
    text.push_str(&match &answer["keys_moved"] {
        Value::Null => "its pool goes by turns or by rank: no table tells which keys go elsewhere\n".to_owned(),
        moved => format!("{} of the pool's keys go elsewhere than before\n", percent(moved)),
    });
    if answer["pool_is_empty"] == true {
        text.push_str(&format!("WARNING: no backend of {pool} takes new calls: they are answered 503\n"));
    }
    text
}

/// What a reload changed, or would.
pub fn reloaded(answer: &Value) -> String {
    let plan = &answer["plan"];
    let applied = answer["applied"] == true;
    let mut text = match answer["warnings"].as_str() {
        Some(warnings) => format!("{warnings}\n\n"),
        None => String::new(),
    };
    let mut changes = 0;
    for pool in list(&plan["pools"]) {
        let change = word(&pool["change"]);
        if change != "same" {
            changes += 1;
        }
        text.push_str(&format!(
            "pool {}: {}",
            word(&pool["pool"]),
            if change == "same" { "as it is" } else { &change }
        ));
        text.push_str(&match (pool["keys_moved"].as_f64(), change.as_str()) {
            (Some(_), "changed") => format!(", {} of its keys go elsewhere\n", percent(&pool["keys_moved"])),
            (None, "changed") => ", its keys go elsewhere in ways no table tells\n".into(),
            _ => "\n".into(),
        });
        for detail in list(&pool["details"]) {
            text.push_str(&format!("  * {}\n", word(detail)));
        }
        for backend in list(&pool["backends"]) {
            let sign = match word(&backend["change"]).as_str() {
                "added" => '+',
                "removed" => '-',
                _ => '*',
            };
            let details: Vec<String> = list(&backend["details"]).map(word).collect();
            let details = if details.is_empty() { String::new() } else { format!(": {}", details.join(", ")) };
            text.push_str(&format!("  {sign} {}{details}\n", word(&backend["backend"])));
        }
    }
    let also: Vec<String> = list(&plan["also"]).map(word).collect();
    if !also.is_empty() {
        changes += 1;
        text.push_str(&format!("changed besides: {}\n", also.join(", ")));
    }
    text + &match (applied, changes) {
        (true, _) => format!("in force as tables number {}\n", answer["generation"]),
        (false, 0) => "nothing would change\n".to_owned(),
        (false, _) => "nothing of this is in force: `viahop ctl reload` does it\n".to_owned(),
    }
}

/// What becomes of the process.
pub fn draining(answer: &Value) -> String {
    let since = if answer["is_first"] == true { "draining" } else { "draining already" };
    format!(
        "{since}: it ends when 5 s pass without a forwarded message and no call rings, in {} s at most\n",
        answer["ends_within_s"]
    )
}

/// Events, a line each.
pub fn events(events: &[Value]) -> String {
    let mut text = String::new();
    for event in events {
        let fields = event["fields"].as_object().into_iter().flatten();
        let fields: Vec<String> = fields.map(|(name, value)| format!("{name}={}", word(value))).collect();
        let (at, level) = (time_ms(&event["at_ms"]), word(&event["level"]));
        text.push_str(&format!("{at}  {level:<5}  {:<15}  {}\n", word(&event["event"]), fields.join(" ")));
    }
    if text.is_empty() { "nothing has happened\n".into() } else { text }
}

/// Messages that could not be read, each with a mark under the place.
pub fn errors(errors: &[Value]) -> String {
    let mut text = String::new();
    for error in errors {
        let caret = usize::try_from(error["caret"].as_u64().unwrap_or_default()).unwrap_or_default();
        text.push_str(&format!(
            "{}  from {} on {}: {}\n  octet {} of {}, {}\n  | {}\n  | {:caret$}^\n\n",
            time_ms(&error["at_ms"]),
            word(&error["from"]),
            word(&error["listener"]),
            word(&error["reason"]),
            error["offset"],
            error["length"],
            word(&error["verdict"]),
            word(&error["line"]),
            "",
        ));
    }
    if text.is_empty() { "every message so far could be read\n".into() } else { text }
}

/// The same as rows.
pub fn errors_in_full(errors: &[Value]) -> Table {
    const NAMES: [&str; 9] =
        ["number", "at_ms", "from", "listener", "verdict", "reason", "offset", "length", "message"];
    let mut table = Table::new(&NAMES);
    for error in errors {
        table.add(NAMES.map(|name| word(&error[name])));
    }
    table
}

/// The connections, and how many there are.
pub fn connections(answer: &Value) -> String {
    let mut table = Table::new(&["peer", "listener", "state", "silent", ">unsent", ">unanswered"]);
    for one in list(&answer["connections"]) {
        let listener = match (one["listener"].is_null(), one["client"].is_null()) {
            (false, _) => word(&one["listener"]),
            (true, false) => format!("to a backend for {}", word(&one["client"])),
            (true, true) => "to a backend".into(),
        };
        let [peer, state, unsent, unanswered] = ["peer", "state", "unsent", "unanswered"].map(|name| word(&one[name]));
        table.add([peer, listener, state, age(&one["silent_ms"]), unsent, unanswered]);
    }
    let (count, shown) = (answer["count"].as_u64().unwrap_or_default(), list(&answer["connections"]).count() as u64);
    let mut text = if shown == 0 { String::new() } else { table.text() + "\n" };
    text.push_str(&match count - shown.min(count) {
        _ if count == 0 => "no connection\n".to_owned(),
        0 => format!("{count} in all\n"),
        more => format!("{count} in all; {more} are not shown: name a peer to see its own\n"),
    });
    for shard in list(&answer["silent_shards"]) {
        text.push_str(&format!("shard {shard} did not answer within a second: its connections are missing\n"));
    }
    text
}

/// The same as rows.
pub fn connections_in_full(answer: &Value) -> Table {
    const NAMES: [&str; 11] = [
        "peer",
        "listener",
        "client",
        "opened_by",
        "state",
        "state_ms",
        "silent_ms",
        "partial",
        "unsent",
        "unanswered",
        "shard",
    ];
    let mut table = Table::new(&NAMES);
    for one in list(&answer["connections"]) {
        table.add(NAMES.map(|name| word(&one[name])));
    }
    table
}

/// A time in milliseconds, in its largest two units.
fn age(value: &Value) -> String {
    let seconds = value.as_u64().unwrap_or_default() / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A message of a call that is followed.
pub fn traced(message: &Value) -> String {
    let mut text = format!(
        "{}  {}  from {} on {}, shard {}\n    {}",
        time_ms(&message["at_ms"]),
        word(&message["line"]),
        word(&message["from"]),
        word(&message["listener"]),
        message["shard"],
        word(&message["verdict"])
    );
    for (name, before) in [("backend", ", backend "), ("rule", ", rule "), ("why", ": ")] {
        if let Some(value) = message[name].as_str() {
            text.push_str(&format!("{before}{value}"));
        }
    }
    text + "\n"
}

/// Events as rows.
pub fn events_in_full(events: &[Value]) -> Table {
    let mut table = Table::new(&["number", "at_ms", "level", "event", "fields"]);
    for event in events {
        table.add(["number", "at_ms", "level", "event", "fields"].map(|name| word(&event[name])));
    }
    table
}

/// The values in a list.
pub fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A value without the quotes of a string; nothing for `null`.
pub fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn percent(share: &Value) -> String {
    format!("{:.1} %", share.as_f64().unwrap_or_default() * 100.0)
}

/// Seconds since 1970, as RFC 3339 writes them.
fn time(seconds: &Value) -> String {
    let since = std::time::Duration::from_secs(seconds.as_u64().unwrap_or_default());
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since).to_string()
}

fn time_ms(ms: &Value) -> String {
    let since = std::time::Duration::from_millis(ms.as_u64().unwrap_or_default());
    humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + since).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document() -> Value {
        let backend = |name: &str, operator: &str, flags: &str| {
            json!({ "pool": "proxies", "name": name, "address": name, "state": "up", "operator": operator, "flags": flags,
                    "weight": 100, "priority": 0, "requests": 123_456, "errors": 0, "last_probe": "options_ok (200)",
                    "last_probe_ms": 0.4 })
        };
        json!({ "version": "1.0.0", "ready": true, "draining": false, "started_at": 0, "generation": 3,
                "reload": { "ok": true, "last_success_at": 0, "error": null },
                "shards": [{ "core": 0, "busy": 0.25, "received": 7, "forwarded": 6, "replied": 1, "dropped": 0 }],
                "messages": { "received": 7, "forwarded": 6, "replied": 1, "dropped": 0, "waiting": 0 },
                "backends": [backend("10.0.0.11:5060", "ready", "AP"), backend("10.0.0.12:5060", "drain", "DP")] })
    }

    #[test]
    fn tables_fit_eighty_columns() {
        for line in status(&document(), "/run/viahop/ctl.sock").lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        let text = backends(&document()).text();
        assert!(text.contains("10.0.0.12:5060  drain   up     DP"), "{text}");
    }

    #[test]
    fn kamcmd_has_a_set_for_each_pool_and_a_dest_for_each_backend() {
        let text = kamcmd(&document());
        assert!(text.starts_with("{\n\tNRSETS: 1\n") && text.ends_with("\t}\n}\n"), "{text}");
        assert_eq!(text.matches("DEST: {").count(), 2);
        assert!(text.contains("URI: sip:10.0.0.12:5060\n\t\t\t\t\tFLAGS: DP\n"), "{text}");
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }

    #[test]
    fn a_share_of_keys_is_told_only_where_there_is_one() {
        let answer = |keys_moved: Value| {
            changed(&json!({ "pool": "p", "backend": "a", "operator": "drain", "weight": 1, "keys_moved": keys_moved }))
        };
        assert!(answer(json!(0.5)).ends_with("\n50.0 % of the pool's keys go elsewhere than before\n"));
        let text = answer(Value::Null);
        assert!(text.contains("by turns or by rank") && !text.contains('%'), "{text}");
    }

    #[test]
    fn a_plan_says_what_comes_what_goes_and_that_nothing_happened_yet() {
        let plan = json!({ "applied": false, "plan": { "also": ["routes"], "pools": [
            { "pool": "proxies", "change": "changed", "details": [], "keys_moved": 0.25, "backends": [
                { "backend": "a", "change": "removed", "details": [] },
                { "backend": "b", "change": "changed", "details": ["weight 100 -> 50"] }] }] } });
        let text = reloaded(&plan);
        for part in ["25.0 % of its keys", "  - a\n", "  * b: weight 100 -> 50\n", "besides: routes", "nothing of this"]
        {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }
}
