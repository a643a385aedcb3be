//! The program as a user has it: what it prints, what it writes, how it ends.

use std::path::PathBuf;
use std::process::{Command, Output};

#[test]
fn a_run_that_comes_to_what_was_demanded_ends_with_0() {
    let output = run(&[
        "run",
        "--listen",
        ANY,
        "--rate",
        "200",
        "--calls",
        "40",
        "--assert",
        "failed==0",
        "--assert",
        "completed==40",
    ]);
    assert_eq!(output.code, 0, "{}", output.all());
    assert!(output.stdout.contains("calls: placed 40 (200.0/s), completed 40, failed 0"), "{}", output.stdout);
    assert!(output.stdout.contains("call INVITE") && output.stdout.contains("call BYE"));
    assert!(output.stdout.lines().next().unwrap().contains("calls/s"), "one line per second on a pipe");
}

#[test]
fn a_broken_assertion_ends_with_99_and_says_what_was_seen() {
    let output =
        run(&["run", "--listen", ANY, "--calls", "10", "-q", "--scenario", "options", "--assert", "completed>10"]);
    assert_eq!(output.code, 99, "{}", output.all());
    assert!(output.stdout.contains("BROKEN: completed>10 (it is 10)"), "{}", output.stdout);
}

#[test]
fn what_is_written_down_can_be_read_again_and_added_up() {
    let dir = Dir::new("log");
    let (json, hgrm, html) = (dir.path("run.json"), dir.path("run.hgrm"), dir.path("run.html"));
    let args = ["run", "--listen", ANY, "--calls", "30", "-q", "--json", &json, "--hgrm", &hgrm, "--html", &html];
    assert_eq!(run(&args).code, 0);
    assert!(std::fs::read_to_string(&hgrm).unwrap().contains("Total count    =           60"));
    assert!(std::fs::read_to_string(&html).unwrap().starts_with("<!doctype html>"));
    let output = run(&["report", &json, &json, "--assert", "placed==60"]);
    assert_eq!(output.code, 0, "{}", output.all());
    assert!(output.stdout.contains("placed 60"), "{}", output.stdout);
}

#[test]
fn a_target_where_nobody_listens_is_void_and_says_why() {
    let args = ["uac", "--target", "sip:127.0.0.1:9", "--calls", "3", "--t1", "5ms", "-q"];
    let output = run(&args);
    assert_eq!(output.code, 1, "{}", output.all());
    assert!(output.stdout.contains("VOID: not one request was answered; nobody listens there"), "{}", output.stdout);
}

#[test]
fn a_port_in_use_is_said_with_the_way_out() {
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let listen = format!("udp:{}", taken.local_addr().unwrap());
    let output = run(&["uas", "--listen", &listen, "--seconds", "1"]);
    assert_eq!(output.code, 4);
    assert!(output.stderr.contains("is in use") && output.stderr.contains("help: "), "{}", output.stderr);
}

#[test]
fn a_scenario_with_a_mistake_is_shown_with_its_place() {
    let dir = Dir::new("scenario");
    let file = dir.path("call.toml");
    std::fs::write(&file, "name = \"x\"\n[[step]]\nsend = \"INVITE\"\nexpect = 99\n").unwrap();
    let output = run(&["run", "--listen", ANY, "--scenario", &file]);
    assert_eq!(output.code, 3);
    assert!(output.stderr.contains("call.toml:4:10: 99 is not a final status code"), "{}", output.stderr);
    assert!(output.stderr.contains("         ^^"), "{}", output.stderr);
}

#[test]
fn what_is_no_command_line_ends_with_2() {
    for args in [
        &["run", "--rate", "0"][..],
        &["run", "--assert", "speed>1"],
        &["run", "--fault", "silent=200%"],
        &["uac", "--target", "tcp:127.0.0.1"],
        &["run", "--cores", "9999"],
        &["uas", "--listen", "tcp:127.0.0.1:1"],
    ] {
        assert_eq!(run(args).code, 2, "{args:?}");
    }
}

#[test]
fn callees_answer_callers_of_another_process_and_both_count_the_same() {
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let callees = std::thread::scope(|scope| {
        let listen = format!("udp:127.0.0.1:{port}");
        let callees = scope.spawn(move || run(&["uas", "--listen", &listen, "--seconds", "3", "-q"]));
        let target = format!("sip:127.0.0.1:{port}");
        // Calls that come too early are sent again.
        let output =
            run(&["uac", "--target", &target, "--calls", "50", "--t1", "100ms", "-q", "--assert", "completed==50"]);
        assert_eq!(output.code, 0, "{}", output.all());
        callees.join().unwrap()
    });
    assert_eq!(callees.code, 0);
    assert!(callees.stdout.contains("callees: 50 calls on 1 backends"), "{}", callees.stdout);
}

#[test]
fn faults_are_done_as_told_and_seen_as_what_they_are() {
    let faults = ["--fault", "unavailable=50%", "--fault", "slow=30ms"];
    let mut args = vec!["run", "--listen", ANY, "--rate", "500", "--calls", "200", "-q", "--assert", "p50>30ms"];
    args.extend(faults);
    let output = run(&args);
    assert_eq!(output.code, 0, "{}", output.all());
    assert!(output.stdout.contains("× 503"), "{}", output.stdout);
}

#[test]
fn a_search_in_which_every_call_fails_ends_without_a_rate() {
    let args = ["search", "--listen", ANY, "--rate", "4", "--seconds", "0.3", "--fault", "refuse=100%"];
    let output = run(&args);
    assert_eq!(output.code, 1, "{}", output.all());
    assert!(output.stdout.contains("INVALID: not even one call per second"), "{}", output.stdout);
}

#[test]
fn every_scenario_that_is_listed_can_be_printed() {
    let output = run(&["scenarios"]);
    for line in output.stdout.lines() {
        let name = line.split_ascii_whitespace().next().unwrap();
        assert!(run(&["scenarios", name]).stdout.contains(&format!("name = \"{name}\"")));
    }
    assert_eq!(run(&["scenarios", "nothing"]).code, 2);
}

#[test]
fn elements_and_their_configurations_are_printed_on_request() {
    let output = run(&["compare", "--element", "relay", "--element", "direct", "--print-configs"]);
    assert_eq!(output.code, 0);
    assert!(output.stdout.contains("relay --listen udp:{ip}:{port}"), "{}", output.stdout);
}

const ANY: &str = "udp:127.0.0.1:0";

struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn all(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }
}

fn run(args: &[&str]) -> Ended {
    // A busy machine is late; what is tested is not how late.
    let lateness = match args[0] {
        "run" | "uac" | "search" => &["--lateness-max", "10s"][..],
        _ => &[],
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_viahop-load"));
    let Output { status, stdout, stderr } = command.args(args).args(lateness).output().unwrap();
    Ended {
        code: status.code().unwrap_or(-1),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("viahop-load-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
