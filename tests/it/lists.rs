//! Kamailio's dispatcher.list: read as Kamailio reads it, followed while it changes, imported.

use crate::live::{Folder, PATIENCE, Process, Viahop, free_port, output, viahop, wait_for_port};
use crate::support::has_peer;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use viahop::control::config::dispatcher_list::{flag, parse};

/// What both must read alike: every field and every way to leave one out.
const LIST: &str = "\
# set, destination, flags, priority, attributes
1 sip:127.0.0.1:7001 0 10 rweight=30;weight=20;duid=gw-a
1 sip:127.0.0.1:7002 8 5 rweight=60;\t
1 sip:127.0.0.1:7003 9

1 sip:127.0.0.1:7004 4 0 duid=\"q;x\" # behind
2 sip:127.0.0.1:7005;transport=udp weight=7
\t2  sip:127.0.0.1:7006#c\r
2 sip:127.0.0.1:7007 2 3 my=it's;DUID=z
0 sip:127.0.0.1:7008 16 65535 socket=udp:127.0.0.1:PORT;ping_from=sip:us@example.net
3 sip:127.0.0.1:7009;transport=tcp 0
";

const KAMAILIO: &str = r#"
children=1
log_stderror=yes
debug=0
listen=udp:127.0.0.1:PORT
mpath="/usr/lib/x86_64-linux-gnu/kamailio/modules/:/usr/lib/aarch64-linux-gnu/kamailio/modules/"
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "ctl.so"
loadmodule "dispatcher.so"
modparam("ctl", "binrpc", "unix:FOLDER/ctl")
modparam("dispatcher", "list_file", "FOLDER/dispatcher.list")
request_route { exit; }
"#;

/// A destination in one line: set, URI, flags as kamcmd shows them, priority, duid, weight, rweight.
fn row(set: &str, uri: &str, flags: &str, priority: &str, attrs: [&str; 3]) -> String {
    format!("{set} {uri} {flags} {priority} {attrs:?}")
}

fn ours(text: &str) -> Vec<String> {
    let (entries, problems) = parse(text);
    assert!(problems.is_empty(), "{problems:?}");
    let mut rows: Vec<String> = entries
        .iter()
        .map(|one| {
            let state = match one.flags {
                flags if flags & flag::INACTIVE != 0 => "I",
                flags if flags & flag::DISABLED != 0 => "D",
                flags if flags & flag::TRYING != 0 => "T",
                _ => "A",
            };
            let flags = format!("{state}{}", if one.flags & flag::PROBING != 0 { "P" } else { "X" });
            let number = |weight: Option<u8>| weight.unwrap_or(0).to_string();
            let (weight, rweight) = (number(one.weight), number(one.rweight));
            let attrs = [one.duid.as_deref().unwrap_or_default(), &weight[..], &rweight[..]];
            row(&one.set.to_string(), &one.uri, &flags, &one.priority.to_string(), attrs)
        })
        .collect();
    rows.sort();
    rows
}

/// The same from what `kamcmd dispatcher.list` prints: a `KEY: value` a line, sets and destinations one after the other.
fn theirs(text: &str) -> Vec<String> {
    let mut rows = Vec::new();
    let mut set = "";
    for part in text.split("SET: {").skip(1) {
        for (index, one) in part.split("DEST: {").enumerate() {
            let value = |key: &str| {
                let lines = one.lines().filter_map(|line| line.trim().split_once(": "));
                lines.filter(|(name, _)| *name == key).map(|(_, value)| value).next().unwrap_or_default()
            };
            if index == 0 {
                set = value("ID");
                continue;
            }
            let zero = |text| Some(text).filter(|text: &&str| !text.is_empty()).unwrap_or("0");
            let duid = value("DUID").trim_start_matches("<null string>");
            let attrs = [duid, zero(value("WEIGHT")), zero(value("RWEIGHT"))];
            rows.push(row(set, value("URI"), value("FLAGS"), value("PRIORITY"), attrs));
        }
    }
    rows.sort();
    rows
}

#[test]
fn kamailio_and_we_read_the_same_entries() {
    if !has_peer("kamailio") || !has_peer("kamcmd") {
        return;
    }
    let folder = Folder::new("kamcmd");
    let port = free_port();
    let list = LIST.replace("PORT", &port.to_string());
    folder.write("dispatcher.list", &list);
    let place = folder.0.display().to_string();
    let config = folder.write("kamailio.cfg", &KAMAILIO.replace("PORT", &port.to_string()).replace("FOLDER", &place));
    let mut command = Command::new("kamailio");
    command.args(["-DD", "-E", "-m", "32", "-M", "4", "-f"]).arg(&config).arg("-Y").arg(&folder.0);
    let kamailio = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    wait_for_port(port);
    let ask = || output(Command::new("kamcmd").args(["-s", &format!("unix:{place}/ctl"), "dispatcher.list"]));
    let until = Instant::now() + PATIENCE;
    let said = loop {
        let (code, stdout, stderr) = ask();
        if code == 0 && stdout.contains("DEST") {
            break stdout;
        }
        assert!(Instant::now() < until, "{stderr}");
        std::thread::sleep(Duration::from_millis(50));
    };
    kamailio.signal("TERM");
    assert_eq!(ours(&list), theirs(&said));
}

fn config(listen: u16, list: &Path) -> String {
    format!(
        "[balancer]\nshards = 1\n[[listen]]\naddress = \"udp:127.0.0.1:{listen}\"\n[[pool]]\nname = \"proxies\"\n\
         health = {{ probe = false }}\nlist = \"{}\"\nset = 1\n",
        list.display()
    )
}

/// Puts a list in the place of another as a careful writer does.
fn put(list: &Path, text: &str) {
    let draft = list.with_extension("draft");
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(&draft, list).unwrap();
}

#[test]
fn a_list_is_in_force_when_it_changes_and_stays_so_when_it_is_wrong_or_gone() {
    let folder = Folder::new("list");
    let list = folder.write("dispatcher.list", "1 sip:127.0.0.1:7001\n1 sip:127.0.0.1:7002\n2 sip:127.0.0.1:7003\n");
    let viahop = Viahop::start("followed", &config(free_port(), &list));
    let count = |status: &serde_json::Value| status["backends"].as_array().unwrap().len();
    assert_eq!(count(&viahop.status()), 2);
    put(&list, "1 sip:127.0.0.1:7001\n1 sip:127.0.0.1:7002 0 0 duid=b;rweight=5\n1 sip:127.0.0.1:7004\n");
    viahop.wait_until("three backends", PATIENCE, |status| count(status) == 3);
    let is_told = |log: String| log.contains("event=\"reloaded\"") && log.contains("keys_moved");
    viahop.wait_until("it is told", PATIENCE, |_| is_told(viahop.log()));
    // In place and in halves: what is there at first is cut in the middle of a port.
    std::fs::write(&list, "1 sip:127.0.0.1:7001\n1 sip:127.0.0.1:70").unwrap();
    viahop.wait_until("the half is refused", PATIENCE, |status| status["reload"]["ok"] == false);
    assert_eq!(count(&viahop.status()), 3);
    assert!(viahop.log().contains("the last line does not end"), "{}", viahop.log());
    put(&list, "1 sip:127.0.0.1:7001 0x1\n1 sip:127.0.0.1:7OO2\n1 sip:127.0.0.1:7003;transport=tls\n");
    let until = Instant::now() + PATIENCE;
    while !viahop.log().contains("the letter O") {
        assert!(Instant::now() < until, "{}", viahop.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    let log = viahop.log();
    for said in ["dispatcher.list:1:22", "write `1`", "dispatcher.list:2:18", "^ the letter O"] {
        assert!(log.contains(said), "{said} is missing in\n{log}");
    }
    assert_eq!(viahop.metric("viahop_config_last_reload_successful", ""), 0.0);
    assert_eq!(count(&viahop.status()), 3);
    put(&list, "1 sip:127.0.0.1:7001\n");
    viahop.wait_until("one backend", PATIENCE, |status| status["reload"]["ok"] == true && count(status) == 1);
    std::fs::remove_file(&list).unwrap();
    viahop.wait_until("gone", PATIENCE, |status| status["reload"]["ok"] == false);
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(viahop.log().matches("list_vanished").count(), 1, "{}", viahop.log());
    assert_eq!(count(&viahop.status()), 1);
    put(&list, "1 sip:127.0.0.1:7001\n1 sip:127.0.0.1:7002\n");
    viahop.wait_until("two backends", PATIENCE, |status| status["reload"]["ok"] == true && count(status) == 2);
    viahop.end();
}

#[test]
fn what_import_makes_of_a_list_check_accepts() {
    let folder = Folder::new("import");
    let list = folder.write("dispatcher.list", &LIST.replace("PORT", "5060"));
    let made = folder.0.join("viahop.toml");
    let (list, path) = (list.to_str().unwrap(), made.to_str().unwrap());
    let (code, stdout, stderr) = output(&mut viahop(&["import", list, "--output", path]));
    assert_eq!((code, &stdout[..]), (0, ""), "{stderr}");
    assert!(stderr.contains("`ping_from` (1), `socket` (1)") && stderr.contains("viahop check"), "{stderr}");
    let text = std::fs::read_to_string(&made).unwrap();
    for said in ["name = \"set-0\"", "name = \"gw-a\", weight = 30", "sip:127.0.0.1:7009;transport=tcp\""] {
        assert!(text.contains(said), "{said} is missing in\n{text}");
    }
    let here = text.replace("udp:0.0.0.0:5060", &format!("udp:127.0.0.1:{}", free_port()));
    let here = folder.write("here.toml", &(here + "[admin]\nlisten = \"off\"\n"));
    let (code, stdout, stderr) = output(&mut viahop(&["check", "--strict", here.to_str().unwrap()]));
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("pool set-1") && stdout.contains("gw-a"), "{stdout}");
    // What is there is never written over, and a list that is wrong makes nothing.
    let (code, _, stderr) = output(&mut viahop(&["import", list, "--output", path]));
    assert!(code == 4 && stderr.contains("cannot write"), "{code} {stderr}");
    let wrong = folder.write("wrong.list", "1 sip:a 0x1\n1 sip:b:99999\n");
    let (code, stdout, stderr) = output(&mut viahop(&["import", wrong.to_str().unwrap()]));
    assert_eq!((code, &stdout[..]), (3, ""));
    assert!(stderr.contains("wrong.list:1:9") && stderr.contains("wrong.list:2:9"), "{stderr}");
    let twice = folder.write("twice.list", "1 sip:a\n1 sip:b\n1 sip:a:5060\n");
    let unmade = folder.0.join("unmade.toml");
    let args = ["import", twice.to_str().unwrap(), "--output", unmade.to_str().unwrap()];
    let (code, _, stderr) = output(&mut viahop(&args));
    assert!(code == 3 && stderr.contains("twice.list:3:3") && !unmade.exists(), "{code} {stderr}");
    assert_eq!(output(&mut viahop(&["import", "/nonexistent/list"])).0, 3);
    assert_eq!(output(&mut viahop(&["import"])).0, 2);
}
