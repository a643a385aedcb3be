//! Reloads under load, drains, and what both leave behind.

use crate::live::{
    Folder, PATIENCE, Process, UNPROBED, Viahop, alone, calls, config, free_port, launch, sipp_uac, sipp_uas,
};
use crate::support::has_peer;
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn a_hundred_reloads_under_1000_calls_a_second_fail_no_call_of_the_backends_that_stay() {
    if !has_peer("sipp") {
        return;
    }
    let _alone = alone();
    let folder = Folder::new("reloads");
    let ports: Vec<u16> = (0..4).map(|_| free_port()).collect();
    let servers: Vec<Process> = ports.iter().map(|&port| sipp_uas(&folder.0, port, &[])).collect();
    let listen = free_port();
    let (all, fewer) = (config(listen, &ports, UNPROBED), config(listen, &ports[..3], UNPROBED));
    let viahop = Viahop::start("reloads", &all);
    let mut client =
        Process::start(&mut sipp_uac(&folder.0, listen, 25_000, 1000, &["-l", "400", "-recv_timeout", "5000"]));
    std::thread::sleep(Duration::from_secs(1));
    for round in 0..100u64 {
        viahop.write_config(if round % 2 == 0 { &fewer } else { &all });
        viahop.process.signal("HUP");
        let backends = if round % 2 == 0 { 3 } else { 4 };
        viahop.wait_until("the reload", PATIENCE, |status| status["backends"].as_array().unwrap().len() == backends);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(client.wait(Duration::from_secs(90)).is_some());
    let counted = calls(&folder.0);
    // Calls of the backend that comes and goes may lose their ACK or BYE to another in the millisecond they last: such a
    // server answers 481. Whoever had the call is not asked, so all failures together are held against that bound.
    assert!(counted.failed <= 100, "{counted:?}");
    assert_eq!(counted.successful + counted.failed, 25_000);
    assert_eq!(viahop.log().matches("event=\"reloaded\"").count(), 100);
    drop(servers);
    viahop.end();
}

#[test]
fn a_bad_file_changes_nothing_and_is_shown_in_the_log_and_the_metrics() {
    let port = free_port();
    let good = config(port, &[free_port()], UNPROBED);
    let viahop = Viahop::start("bad", &good);
    viahop.write_config(&good.replace("backend =", "bakcend ="));
    viahop.process.signal("HUP");
    viahop.wait_until("refused", PATIENCE, |status| status["reload"]["ok"] == false);
    let error = viahop.status()["reload"]["error"].as_str().unwrap().to_owned();
    assert!(error.ends_with("viahop.toml:9:1: unknown key `bakcend`"), "{error}");
    assert!(viahop.log().contains(&error), "{error} is not in\n{}", viahop.log());
    assert_eq!(viahop.metric("viahop_config_last_reload_successful", ""), 0.0);
    assert_eq!(viahop.status()["generation"], 1);
    assert!(viahop.log().contains("event=\"reload_refused\"") && viahop.log().contains("`backend`"));
    viahop.write_config(&good.replace(&format!(":{port}\""), &format!(":{}\"", free_port())));
    viahop.process.signal("HUP");
    let until = Instant::now() + PATIENCE;
    while !viahop.log().contains("cannot change in a reload") {
        assert!(Instant::now() < until, "{}", viahop.log());
    }
    viahop.write_config(&good);
    viahop.process.signal("HUP");
    viahop.wait_until("taken", PATIENCE, |status| status["reload"]["ok"] == true && status["generation"] == 2);
    viahop.end();
}

#[test]
fn a_file_that_hangs_while_it_is_read_does_not_keep_the_process() {
    let viahop = Viahop::start("hangs", &config(free_port(), &[free_port()], UNPROBED));
    let path = viahop.folder.0.join("viahop.toml");
    std::fs::remove_file(&path).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    viahop.process.signal("HUP");
    // Who reads it waits for somebody who writes, as for a server of NFS that is gone. Opened, it is being read.
    let _silent = std::fs::File::options().write(true).open(&path).unwrap();
    viahop.end();
}

#[test]
fn a_reload_that_is_ordered_during_the_start_is_done_after_it() {
    let mut viahop = Viahop::start("early", &config(free_port(), &[free_port()], UNPROBED));
    viahop.process.signal("KILL");
    assert!(viahop.process.wait(PATIENCE).is_some());
    let [path, aside] = ["viahop.toml", "aside"].map(|name| viahop.folder.0.join(name));
    std::fs::rename(&path, &aside).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    (viahop.process, viahop.log) = launch(&viahop.folder, "log-2");
    // Opened, it is being read: the start has come that far, and no further.
    let mut halted = std::fs::File::options().write(true).open(&path).unwrap();
    let text = std::fs::read(&aside).unwrap();
    std::fs::rename(&aside, &path).unwrap();
    viahop.process.signal("HUP");
    std::io::Write::write_all(&mut halted, &text).unwrap();
    drop(halted);
    viahop.wait_for_life();
    viahop.wait_until("the reload", PATIENCE, |status| status["generation"] == 2);
    viahop.end();
}

#[test]
fn reloads_are_refused_and_taken_where_nothing_can_be_written_to_standard_error() {
    let good = config(free_port(), &[free_port()], UNPROBED);
    let mut viahop = Viahop::start("full", &good.replace("\" }", "\", priority = 5 }"));
    viahop.restart_with_full_stderr();
    viahop.write_config(&good.replace("backend =", "bakcend ="));
    viahop.process.signal("HUP");
    viahop.wait_until("refused", PATIENCE, |status| status["reload"]["ok"] == false);
    // `priority` without its strategy is warned about, at the start and here.
    viahop.write_config(&good.replace("\" }", "\", priority = 6 }"));
    viahop.process.signal("HUP");
    viahop.wait_until("taken", PATIENCE, |status| status["reload"]["ok"] == true && status["generation"] == 2);
    viahop.process.signal("INT");
    assert_eq!(viahop.process.wait(PATIENCE).and_then(|status| status.code()), Some(0));
}

#[test]
fn a_rotation_of_token_keys_by_reloads_fails_no_call_and_moves_no_key() {
    if !has_peer("sipp") {
        return;
    }
    let folder = Folder::new("rotation");
    let key = folder.write("token-1", "an octet string of no other use\n");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let ports = [free_port(), free_port()];
    let _servers = ports.map(|port| sipp_uas(&folder.0, port, &[]));
    let listen = free_port();
    let text = config(listen, &ports, UNPROBED);
    let with = |keys: &str| text.replace("shards = 2", &format!("shards = 2\ntoken_keys = [{keys}]"));
    let new = format!("{{ id = 1, file = \"{}\" }}", key.display());
    let viahop = Viahop::start("rotation", &text);
    // Calls of a second each, so that each step has calls of the step before it under way.
    let mut client = Process::start(&mut sipp_uac(&folder.0, listen, 600, 100, &["-l", "1000", "-d", "1000"]));
    let mut hashes = vec![viahop.status()["config_hash"].clone()];
    for (step, keys) in [format!("{{ id = 0 }}, {new}"), format!("{new}, {{ id = 0 }}"), new.clone()].iter().enumerate()
    {
        std::thread::sleep(Duration::from_millis(1500));
        viahop.write_config(&with(keys));
        viahop.process.signal("HUP");
        viahop.wait_until("the step", PATIENCE, |status| status["generation"] == step + 2);
        let hash = viahop.status()["config_hash"].clone();
        assert!(!hashes.contains(&hash), "nodes that are a step apart can be told");
        hashes.push(hash);
    }
    assert!(client.wait(Duration::from_secs(60)).is_some_and(|status| status.success()), "{:?}", calls(&folder.0));
    assert_eq!(calls(&folder.0).failed, 0);
    assert_eq!(viahop.metric("viahop_messages_dropped_total", "response_forged"), 0.0);
    let log = viahop.end();
    assert_eq!(log.matches("proxies:0.0%").count(), 3, "{log}");
}

#[test]
fn sigterm_drains_calls_go_on_and_the_exit_code_is_0() {
    if !has_peer("sipp") {
        return;
    }
    let _alone = alone();
    let folder = Folder::new("drain");
    let ports = [free_port()];
    let _server = sipp_uas(&folder.0, ports[0], &[]);
    let listen = free_port();
    let mut viahop = Viahop::start("drain", &config(listen, &ports, UNPROBED));
    // Calls of a second each, so that many are under way when the drain begins.
    let mut client = Process::start(&mut sipp_uac(&folder.0, listen, 300, 100, &["-l", "1000", "-d", "1000"]));
    std::thread::sleep(Duration::from_millis(2500));
    viahop.process.signal("TERM");
    viahop.wait_until("draining", PATIENCE, |status| status["draining"] == true && status["ready"] == false);
    assert!(client.wait(Duration::from_secs(30)).is_some_and(|status| status.success()), "{:?}", calls(&folder.0));
    assert_eq!(calls(&folder.0).failed, 0);
    let status = viahop.process.wait(Duration::from_secs(20));
    assert_eq!(status.and_then(|status| status.code()), Some(0), "{}", viahop.log());
}

#[test]
fn metrics_are_clean_for_promtool_and_every_name_is_documented() {
    let viahop = Viahop::start("metrics", &config(free_port(), &[free_port()], UNPROBED));
    let text = viahop.metrics();
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(|rest| rest.split(' ').next().unwrap())
    {
        assert!(
            page.contains(&format!("`{name}`")) || page.contains(&format!("`{name}{{")),
            "{name} is not in docs/metrics.md"
        );
    }
    if has_peer("promtool") {
        let path = viahop.folder.write("metrics.txt", &text);
        let (code, stdout, stderr) = crate::live::output(
            Command::new("sh").args(["-c", &format!("promtool check metrics < {}", path.display())]),
        );
        assert_eq!((code, &stdout[..], &stderr[..]), (0, "", ""));
    }
    viahop.end();
}
