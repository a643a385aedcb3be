//! Searches and comparisons as a user has them: what they print, what they write, how they end.

mod support;

use std::process::Command;
use support::free_port;
use support::program::{ANY, Dir, ended, run};

#[test]
fn a_search_names_its_steps_its_setup_and_its_result() {
    // Callers that hold twenty calls of 200 ms can do a hundred a second, and no more.
    let limits = ["--rate", "40", "--seconds", "0.5", "--hold", "200ms", "--calls-max", "20", "--confirmations", "2"];
    let dir = Dir::new("search");
    let json = dir.path("search.json");
    let output = run(&[&["search", "--listen", ANY, "--json", &json], &limits[..]].concat());
    assert_eq!(output.code, 0, "{}", output.all());
    for part in
        ["trial   1:      40/s sustained", "Session Attempt Rate = 40 sessions/s", "SIP Transport Protocol = UDP"]
    {
        assert!(output.stdout.contains(part), "{part}: {}", output.stdout);
    }
    let rate = output.stdout.lines().find_map(|line| {
        line.strip_prefix("Session Establishment Rate, R = ")?.strip_suffix(" sessions/s")?.parse::<u64>().ok()
    });
    assert!(rate.is_some_and(|rate| (70..=110).contains(&rate)), "{}", output.stdout);
    assert!(std::fs::read_to_string(&json).unwrap().contains("\"trials\""));

    // Behind an element they cannot do more either, so nothing is known about the element.
    let port = free_port().port();
    let element = Relay::start(port);
    let (listen, target) = (format!("udp:127.0.0.1:{port}"), format!("sip:{}", element.address));
    let output = run(&[&["search", "--listen", &listen, "--target", &target], &limits[..]].concat());
    assert_eq!(output.code, 1, "{}", output.all());
    assert!(output.stdout.contains("baseline of the testbed (RFC 7502 6.1)"), "{}", output.stdout);
    assert!(output.stdout.contains("INVALID: generator-limited"), "{}", output.stdout);
}

#[test]
fn a_search_through_an_element_that_bridges_has_its_baseline_over_the_callees_own_transport() {
    let (port, program) = (free_port().port(), env!("CARGO_BIN_EXE_viahop-load"));
    // Callees of another process are as good as an element here.
    let limits = "--rate 40 --seconds 0.3 --hold 200ms --calls-max 20 --confirmations 1 --lateness-max 10s";
    let line = format!(
        "{program} uas --listen tcp:127.0.0.1:{port} -q > /dev/null & uas=$!
        {program} search --target 'sip:127.0.0.1:{port};transport=tcp' --connections 4 --listen {ANY} {limits}
        code=$?; kill $uas; exit $code",
    );
    let output = ended(Command::new("sh").args(["-c", &line]));
    assert_eq!(output.code, 1, "{}", output.all());
    assert!(output.stdout.contains("baseline of the testbed (RFC 7502 6.1)"), "{}", output.all());
}

#[test]
fn a_search_that_is_interrupted_keeps_its_trials_and_claims_nothing() {
    let dir = Dir::new("search-interrupted");
    let (json, program) = (dir.path("search.json"), env!("CARGO_BIN_EXE_viahop-load"));
    let args = format!("search --listen {ANY} --rate 20 --seconds 0.5 --rise 0.1 --lateness-max 10s --json {json}");
    let line = format!(
        "{program} {args} > {dir}/out & child=$!; while ! grep -q 'trial   2' {dir}/out; do sleep 0.05; done
        kill -INT $child; wait $child",
        dir = dir.0.display()
    );
    let output = ended(Command::new("sh").args(["-c", &line]));
    assert_eq!(output.code, 1, "{}", output.all());
    let printed = std::fs::read_to_string(dir.0.join("out")).unwrap();
    assert!(printed.contains("PARTIAL: ended by the user; the best trial that went well was 2"), "{printed}");
    let written = std::fs::read_to_string(&json).unwrap();
    assert!(written.contains("\"Ended\": 2") && written.contains("\"valid\": false"), "{written}");
    assert!(written.contains("\"rate\": 20") && written.contains("\"rate\": 22"), "{written}");
}

/// The null relay as a process of its own, in front of a callee on this port.
struct Relay {
    child: std::process::Child,
    address: String,
}

impl Relay {
    fn start(port: u16) -> Relay {
        use std::io::BufRead;
        let mut command = Command::new(env!("CARGO_BIN_EXE_viahop-load"));
        command.args(["relay", "--listen", ANY, "--backend", &format!("sip:127.0.0.1:{port}")]);
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split_ascii_whitespace().nth(1).unwrap().strip_prefix("udp:").unwrap().to_owned();
        Relay { child, address }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_comparison_prints_ratios_with_their_spread() {
    if viahop_load::sys::process::cores().len() < 2 {
        eprintln!("skipped: a comparison takes two cores");
        return;
    }
    let dir = Dir::new("picture");
    let svg = dir.path("cost.svg");
    let mut args = vec!["compare", "--element", "direct", "--element", "relay", "--element", "relay-scalar"];
    args.extend(["--rounds", "2", "--time", "100ms", "--rate", "2000", "--no-saturation", "--svg", &svg]);
    let output = run(&args);
    assert_eq!(output.code, 0, "{}", output.all());
    assert!(output.stdout.contains("2000 requests/s, Poisson"), "{}", output.stdout);
    assert_eq!(output.stdout.matches("ratio (spread)").count(), 2, "{}", output.stdout);
    for element in ["direct", "relay", "relay-scalar"] {
        assert!(output.stdout.lines().any(|line| line.trim_start().starts_with(element)), "{}", output.stdout);
    }
    let picture = std::fs::read_to_string(svg).unwrap();
    assert_eq!(picture.matches("<rect class='bar'").count(), 2, "{picture}");
}

#[test]
fn a_core_that_is_not_there_is_no_place_for_an_element() {
    for option in ["--core", "--driver-core"] {
        let output = run(&["compare", "--element", "relay", option, "9999"]);
        assert_eq!(output.code, 4, "{}", output.all());
        assert!(output.stderr.contains("core 9999 is not to be had") && output.stderr.contains("may use ["));
    }
}

#[test]
fn a_comparison_over_connections_has_descriptors_for_both_of_its_ends() {
    if viahop_load::sys::process::cores().len() < 2 {
        eprintln!("skipped: a comparison takes two cores");
        return;
    }
    let program = env!("CARGO_BIN_EXE_viahop-load");
    let args = "--element direct-tcp --connections 100 --rounds 1 --time 10ms --rate 500 --no-saturation";
    let output = ended(Command::new("sh").args(["-c", &format!("ulimit -Sn 64; exec {program} compare {args}")]));
    assert_eq!(output.code, 0, "{}", output.all());
}

#[test]
fn an_element_that_did_not_start_is_said_by_the_exit_code_too_and_leaves_no_folder() {
    if viahop_load::sys::process::cores().len() < 2 {
        eprintln!("skipped: a comparison takes two cores");
        return;
    }
    let dir = Dir::new("ghost");
    let mut command = Command::new(env!("CARGO_BIN_EXE_viahop-load"));
    command.args(["compare", "--element", "direct", "--element", "ghost=/nowhere/at-all {port}"]);
    command.args(["--rounds", "1", "--time", "10ms", "--rate", "500", "--no-saturation"]).env("TMPDIR", &dir.0);
    let output = ended(&mut command);
    assert_eq!(output.code, 1, "{}", output.all());
    assert!(output.stdout.contains("not measured: ghost: ghost does not start"), "{}", output.stdout);
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 0);
}

#[test]
fn an_element_that_nobody_answers_through_is_not_waited_for_beyond_an_interrupt_and_told_to_end() {
    if viahop_load::sys::process::cores().len() < 2 {
        eprintln!("skipped: a comparison takes two cores");
        return;
    }
    let dir = Dir::new("mute");
    let (element, program) = (dir.path("element"), env!("CARGO_BIN_EXE_viahop-load"));
    std::fs::write(&element, "trap 'kill $!; touch $0.ended; exit' INT; sleep 60 & touch $0.up; wait").unwrap();
    for (signal, code) in [("INT", 1), ("KILL", 137)] {
        let line = format!(
            "rm -f {element}.up {element}.ended; TMPDIR={tmp} {program} compare --element 'mute=sh {element}' & child=$!
            while [ ! -e {element}.up ]; do sleep 0.05; done; kill -{signal} $child; wait $child; code=$?
            for turn in $(seq 100); do [ -e {element}.ended ] && exit $code; sleep 0.05; done; exit 42",
            tmp = dir.0.display()
        );
        let output = ended(Command::new("sh").args(["-c", &line]));
        assert_eq!(output.code, code, "{signal}: {}", output.all());
        assert!(!output.stdout.contains("no answer within"), "{}", output.stdout);
    }
}

#[test]
fn a_search_in_which_every_call_fails_ends_without_a_rate() {
    let args = ["search", "--listen", ANY, "--rate", "4", "--seconds", "0.3", "--fault", "refuse=100%"];
    let output = run(&args);
    assert_eq!(output.code, 1, "{}", output.all());
    assert!(output.stdout.contains("INVALID: not even one call per second"), "{}", output.stdout);
}

#[test]
fn elements_and_their_configurations_are_printed_on_request() {
    let output = run(&["compare", "--element", "relay", "--element", "direct", "--print-configs"]);
    assert_eq!(output.code, 0);
    assert!(output.stdout.contains("relay --listen udp:{ip}:{port}"), "{}", output.stdout);
}
