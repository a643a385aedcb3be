//! The program as a user has it: what it prints, what it writes, how it ends.

mod support;

use std::io::{Read, Write};
use std::process::Command;
use support::free_port;
use support::program::{ANY, Dir, Ended, ended, run, run_plain};

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
    assert!(output.stdout.contains("/s), completed 40, failed 0"), "{}", output.stdout);
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
fn a_run_whose_lines_cannot_be_written_goes_on_and_writes_its_log() {
    let dir = Dir::new("unheard");
    let json = dir.path("run.json");
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap().into();
    let closed = || std::io::pipe().unwrap().1.into();
    let args = ["run", "--listen", ANY, "--calls", "30", "--rate", "20", "--lateness-max", "10s", "--json", &json];
    for (args, stdout, code, said) in [
        (&args[..], full(), 4, "error: cannot write to standard output: No space left"),
        (&["scenarios"], full(), 4, "error: cannot write to standard output: No space left"),
        (&["scenarios"], closed(), 141, ""),
        (&["report", &json], closed(), 141, ""),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_viahop-load"));
        command.args(args).stdout::<std::process::Stdio>(stdout).stderr(std::process::Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(said) && stderr.is_empty() == said.is_empty(), "{args:?}: {stderr}");
    }
    assert!(run(&["report", &json]).stdout.contains("completed 30"));
}

#[test]
fn a_file_that_cannot_be_written_is_said_before_the_run_and_one_that_is_there_stays_until_there_is_another() {
    let dir = Dir::new("unwritable");
    for command in [&["run", "--listen", ANY, "--calls", "1"][..], &["search", "--listen", ANY], &["compare"]] {
        let path = dir.path("absent/x.json");
        let output = run_plain(&[command, &["--json", &path]].concat());
        assert_eq!(output.code, 4, "{}", output.all());
        assert!(output.stderr.contains(&path) && output.stderr.contains("nothing was run"), "{}", output.all());
        assert_eq!(output.stdout, "", "{command:?}");
    }
    let log = dir.path("run.json");
    std::fs::write(&log, "a log that is longer than what comes next".repeat(1000)).unwrap();
    let before = std::fs::read(&log).unwrap();
    let output = run(&["run", "--listen", "udp:192.0.2.1:5060", "--calls", "1", "-q", "--json", &log]);
    assert_ne!(output.code, 0, "nobody here has this address: {}", output.all());
    assert_eq!(std::fs::read(&log).unwrap(), before);
    assert_eq!(run(&["run", "--listen", ANY, "--calls", "1", "-q", "--json", &log]).code, 0);
    assert_eq!(run(&["report", &log, "--assert", "placed==1"]).code, 0);
}

#[test]
fn a_target_where_nobody_listens_is_void_and_says_why() {
    let args = ["uac", "--target", "sip:127.0.0.1:9", "--calls", "3", "--t1", "5ms", "-q"];
    let output = run(&args);
    assert_eq!(output.code, 1, "{}", output.all());
    assert!(output.stdout.contains("VOID: not one request was answered; nobody listens there"), "{}", output.stdout);
    // To this port nothing can be sent at all.
    let output = run(&["uac", "--target", "sip:127.0.0.1:0", "--calls", "3", "--t1", "5ms", "-q"]);
    assert_eq!(output.code, 1, "{}", output.all());
    assert!(output.stdout.contains("answered; this machine's kernel did not take them"), "{}", output.stdout);
}

#[test]
fn a_target_that_listens_for_something_else_is_void_for_what_it_did() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("sip:{};transport=tls", listener.local_addr().unwrap());
    let serve = move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]).and_then(|_| stream.write_all(b"SIP/2.0 400 Bad Request\r\n\r\n"));
        }
    };
    std::thread::Builder::new().name("plain".into()).spawn(serve).unwrap();
    let output = run(&["uac", "--target", &target, "--calls", "3", "--t1", "5ms", "-q"]);
    assert_eq!(output.code, 1, "{}", output.all());
    assert!(output.stdout.contains("answered; TLS: what came is no TLS"), "{}", output.stdout);
    assert!(!output.stdout.contains("nobody listens"), "{}", output.stdout);
}

/// A machine that stood still over two of the times at which it was to be sent again sent it once less, and took the rest of
/// its wait for the others.
#[test]
fn a_request_is_sent_as_often_as_it_has_to_be_by_a_machine_that_stood_still_for_a_while() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = format!("sip:{}", socket.local_addr().unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_viahop-load"));
    command.args(["uac", "--target", &target, "--calls", "1", "--t1", "50ms", "--lateness-max", "10s", "-q"]);
    let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    let signal = |name: &str| {
        let status = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
        assert!(status.success(), "kill {name}");
    };
    socket.recv(&mut [0; 4096]).unwrap();
    signal("-STOP");
    std::thread::sleep(std::time::Duration::from_millis(300));
    signal("-CONT");
    child.wait().unwrap();
    socket.set_nonblocking(true).unwrap();
    let again = std::iter::from_fn(|| socket.recv(&mut [0; 4096]).ok()).count();
    assert_eq!(again, 6, "at 1, 3, 7, 15, 31 and 63 T1");
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
fn a_load_over_tcp_is_asked_for_by_the_addresses_and_only_connections_belong_to_it() {
    let tcp = ["--listen", "tcp:127.0.0.1:0", "--rate", "200", "--calls", "40", "-q"];
    let output = run(&[&["run", "--connections", "4", "--assert", "completed==40"], &tcp[..]].concat());
    assert_eq!(output.code, 0, "{}", output.all());
    assert!(output.stdout.contains("4 connections taken"), "{}", output.stdout);
    let tls = ["--listen", "tls:127.0.0.1:0", "--rate", "200", "--calls", "40", "-q"];
    let output = run(&[&["run", "--connections", "4", "--assert", "completed==40"], &tls[..]].concat());
    assert_eq!(output.code, 0, "{}", output.all());
    let refused = |args: &[&str], why: &str| {
        let output = run(args);
        assert_eq!(output.code, 2, "{}", output.all());
        assert!(output.stderr.contains(why) && output.stderr.contains("help: "), "{}", output.stderr);
    };
    refused(&[&["run", "--sockets", "2"], &tcp[..]].concat(), "--sockets is for UDP");
    refused(&[&["run", "--lose", "1%"], &tcp[..]].concat(), "over TCP the kernel");
    refused(&["run", "--listen", ANY, "--connections", "2", "-q"], "over UDP");
    let output = run(&["uac", "--target", "sip:127.0.0.1:9;transport=tcp", "--calls", "3", "-q"]);
    assert_eq!(output.code, 1, "{}", output.all());
    assert!(output.stdout.contains("connection refused"), "{}", output.stdout);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("tcp:{}", taken.local_addr().unwrap());
    let output = run(&["uas", "--listen", &listen, "--seconds", "1"]);
    assert_eq!(output.code, 4);
    assert!(output.stderr.contains("/tcp is in use") && output.stderr.contains("ss -ltnp"), "{}", output.stderr);
}

#[test]
fn connections_that_do_nothing_are_asked_twice_and_void_where_they_are_not_there() {
    let output = run(&["idle", "--target", "sip:127.0.0.1:9;transport=tcp", "--connections", "3", "--hold", "0s"]);
    assert_eq!(output.code, 1, "{}", output.all());
    assert!(output.stdout.contains("0 of 3 open") && output.stdout.contains("VOID"), "{}", output.stdout);
    let output = run(&["idle", "--target", "sip:127.0.0.1:9"]);
    assert_eq!(output.code, 2, "{}", output.all());
    assert!(output.stderr.contains("no connections over UDP"), "{}", output.stderr);
}

#[test]
fn an_address_that_is_not_ours_is_said_with_the_way_out() {
    let target = "sip:127.0.0.1:9;transport=tcp";
    let output = run(&["uac", "--target", target, "--from", "192.0.2.1", "--calls", "1", "-q"]);
    assert_eq!(output.code, 4, "{}", output.all());
    assert!(output.stderr.contains("192.0.2.1 is not an address of this machine"), "{}", output.stderr);
    let output = run(&["uac", "--target", "sip:127.0.0.1:9", "--from", "192.0.2.1", "--calls", "1", "-q"]);
    assert_eq!(output.code, 4, "{}", output.all());
    assert!(output.stderr.contains("192.0.2.1 is not an address of this machine"), "{}", output.stderr);
    for command in [&["idle", "--target", target][..], &["hello", "--target", "sips:127.0.0.1:9"]] {
        let output = run(&[command, &["--from", "192.0.2.1"]].concat());
        assert_eq!(output.code, 4, "{}", output.all());
        assert!(output.stderr.contains("192.0.2.1 is not an address of this machine"), "{}", output.stderr);
    }
    for command in [&["uac", "--calls", "1", "-q"][..], &["idle"], &["hello"], &["search"]] {
        let output = run(&[command, &["--target", "sips:[::1]:9", "--from", "127.0.0.1"]].concat());
        assert_eq!(output.code, 2, "{}", output.all());
        assert!(output.stderr.contains("one is IPv4, the other IPv6"), "{}", output.stderr);
    }
    let output = run(&["uac", "--target", "sip:127.0.0.1:506O", "-q"]);
    assert_eq!(output.code, 2, "{}", output.all());
    assert!(output.stderr.contains("letter O"), "{}", output.stderr);
}

#[test]
fn a_scenario_with_a_mistake_is_shown_with_its_place() {
    let dir = Dir::new("scenario");
    let file = dir.path("call.toml");
    std::fs::write(&file, "name = \"x\"\n[[step]]\nsend = \"INVITE\"\nexpect = 99\n").unwrap();
    let output = run(&["run", "--listen", ANY, "--scenario", &file]);
    assert_eq!(output.code, 3);
    let said = &output.stderr;
    assert!(said.starts_with("error[scenario]: 99 is not a final status code (200 to 699)\n --> "), "{said}");
    assert!(said.contains("call.toml:4:10\n") && said.contains("4 | expect = 99\n  |          ^^\n"), "{said}");
}

#[test]
fn a_mix_is_a_file_of_scenarios_that_lie_beside_it() {
    let dir = Dir::new("mix");
    std::fs::write(dir.path("ping.toml"), "name = \"ping\"\n[[step]]\nsend = \"OPTIONS\"\n").unwrap();
    let mix = "name = \"both\"\n[[part]]\nscenario = \"ping.toml\"\nweight = 1\n[[part]]\nscenario = \"message\"\nweight = 1\n";
    std::fs::write(dir.path("both.toml"), mix).unwrap();
    let output =
        run(&["run", "--listen", ANY, "--scenario", &dir.path("both.toml"), "--rate", "500", "-m", "100", "-q"]);
    assert_eq!(output.code, 0, "{}", output.all());
    assert!(output.stdout.contains("ping OPTIONS") && output.stdout.contains("message MESSAGE"), "{}", output.stdout);
    let output = run(&[
        "run",
        "--listen",
        ANY,
        "--scenario",
        "mix",
        "--rate",
        "500",
        "--calls",
        "200",
        "-q",
        "--assert",
        "failed==0",
    ]);
    assert_eq!(output.code, 0, "{}", output.all());
}

#[test]
fn two_scenarios_of_one_name_are_refused_unless_they_are_the_same() {
    let dir = Dir::new("names");
    let path = dir.path("mine.toml");
    std::fs::write(&path, "name = \"call\"\ncallee = \"busy\"\n[[step]]\nsend = \"INVITE\"\nexpect = 486\n").unwrap();
    let output = run(&["run", "--listen", ANY, "--scenario", "call", "--scenario", &path, "-m", "10", "-q"]);
    assert_eq!(output.code, 3, "{}", output.all());
    assert!(output.stderr.contains("are called `call`") && output.stderr.contains(&path), "{}", output.all());
    let output = run(&["run", "--listen", ANY, "--scenario", "mix", "--scenario", "call=2", "-m", "10", "-q"]);
    assert_eq!(output.code, 0, "{}", output.all());
    assert_eq!(output.stdout.matches("call INVITE").count(), 1, "{}", output.stdout);
}

#[test]
fn what_is_no_command_line_ends_with_2() {
    for args in [
        &["run", "--rate", "0"][..],
        &["run", "--assert", "speed>1"],
        &["run", "--fault", "silent=200%"],
        &["run", "--fault", "silent=60%", "--fault", "refuse=60%"],
        &["uac", "--target", "sctp:127.0.0.1"],
        &["run", "--cores", "9999"],
        &["run", "--cores", "1-0"],
        &["run", "--listen", "udp:127.0.0.1:0-65535"],
        &["compare", "--element", "direct", "--rate", "0"],
        &["search", "--rise", "1.5"],
        &["search", "--failed-max", "nan"],
        &["compare", "--element", "direct", "--baseline", "relay"],
        &["uas", "--listen", "ws:127.0.0.1:1"],
        &["uac", "--target", "sip:127.0.0.1:9;transport=tcp", "--tls-name", "x"],
        &["uac", "--target", "sip:127.0.0.1:9;transport=ws", "--tls-client-certificate", "x", "--tls-client-key", "x"],
        &["uac", "--target", "sip:127.0.0.1:9;transport=tls", "--tls-client-key", "x.pem"],
        &["uas", "--listen", "tls:127.0.0.1:1", "--tls-key", "x.pem"],
    ] {
        assert_eq!(run(args).code, 2, "{args:?}");
    }
}

#[test]
fn callees_answer_callers_of_another_process_and_both_count_the_same() {
    let port = free_port().port();
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
fn a_callee_that_never_answers_ends_the_run_after_64_t1_with_what_there_was() {
    let dir = Dir::new("silent");
    let json = dir.path("run.json");
    let args =
        ["run", "--listen", ANY, "--calls", "5", "--t1", "10ms", "-q", "--fault", "silent=100%", "--json", &json];
    let output = run(&args);
    assert_eq!(output.code, 1, "{}", output.all());
    assert!(output.stdout.contains("failed: 5 × timeout: no response"), "{}", output.stdout);
    assert!(output.stdout.contains("VOID: not one request was answered; nothing came back"), "{}", output.stdout);
    assert!(
        output.stdout.contains("callees: 0 calls on 1 backends, 35 requests"),
        "they were heard: {}",
        output.stdout
    );
    let log = std::fs::read_to_string(&json).unwrap();
    assert!(log.contains("VOID: not one request was answered"), "the mark is kept with the log");
}

#[test]
fn a_time_that_was_not_measured_is_a_dash_and_seconds_of_waiting_look_like_the_others() {
    let dir = Dir::new("unmeasured");
    let page = dir.path("run.html");
    let args = ["run", "--listen", ANY, "--calls", "2", "--t1", "30ms", "--fault", "silent=100%", "--html", &page];
    let output = run(&args);
    assert_eq!(output.code, 1, "{}", output.all());
    let seconds: Vec<&str> = output.stdout.lines().filter(|line| line.contains("calls/s")).collect();
    assert!(seconds.len() > 1 && seconds.iter().all(|line| line.contains("failed") && line.contains("p50       -")));
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<b>-</b><span>latency p50</span>"), "{page}");
    assert!(!output.stdout.contains(" 0ns") && !page.contains(">0ns<"), "nothing is that fast: {}", output.stdout);
    assert!(output.stdout.contains("waiting for one, - per call"), "{}", output.stdout);
}

#[test]
fn a_rate_that_no_machine_can_do_ends_in_time_and_is_void() {
    let args =
        ["run", "--listen", ANY, "--rate", "500000000", "--seconds", "0.2", "--calls-max", "50", "--drain", "1s", "-q"];
    let output = run(&args);
    assert_eq!(output.code, 1, "{}", output.all());
    assert!(output.stdout.contains("VOID: the rate is beyond this generator: "), "{}", output.stdout);
    assert!(output.stdout.contains("× no room for more calls"), "{}", output.stdout);
}

#[test]
fn too_few_file_descriptors_are_said_with_what_to_type() {
    let program = env!("CARGO_BIN_EXE_viahop-load");
    let line = format!("ulimit -n 40; exec {program} uac --target sip:127.0.0.1:9 --sockets 100");
    let output = ended(Command::new("sh").args(["-c", &line]));
    assert_eq!(output.code, 4, "{}", output.all());
    assert!(
        output.stderr.contains("100 sockets need 116 file descriptors, and this process may have 40"),
        "{}",
        output.stderr
    );
    assert!(output.stderr.contains("ulimit -n "), "{}", output.stderr);
}

#[test]
fn callers_and_callees_of_one_process_have_descriptors_for_both() {
    let program = env!("CARGO_BIN_EXE_viahop-load");
    let backends = format!("--listen {ANY} ").repeat(40);
    let line = format!("ulimit -Sn 64; exec {program} run {backends} --sockets 40 --calls 40 -q --lateness-max 10s");
    let output = ended(Command::new("sh").args(["-c", &line]));
    assert_eq!(output.code, 0, "{}", output.all());
}

/// Older profiles of containers refuse `epoll_pwait2`; systemd's `@resources` has `sched_setaffinity`. strace plays the filter.
#[test]
fn calls_are_placed_where_a_filter_refuses_what_can_be_done_without() {
    if Command::new("strace").arg("-V").output().is_err() {
        assert!(std::env::var_os("VIAHOP_PEERS").is_none_or(|peers| peers != "required"), "strace is not installed");
        return eprintln!("skipped: strace not installed");
    }
    let core = viahop_load::sys::process::cores()[0].to_string();
    let output = ended(Command::new("strace").args([
        "-f",
        "-o",
        "/dev/null",
        "-e",
        "trace=epoll_pwait2,sched_setaffinity",
        "-e",
        "inject=epoll_pwait2,sched_setaffinity:error=EPERM",
        env!("CARGO_BIN_EXE_viahop-load"),
        "run",
        "--listen",
        ANY,
        "--calls",
        "5",
        "--cores",
        &core,
        "--callee-cores",
        &core,
        "-q",
        "--lateness-max",
        "10s",
    ]));
    assert_eq!(output.code, 0, "{}", output.all());
    for whose in ["callers", "callees"] {
        let warning = format!("{whose}' thread 0 is not bound to core {core}: Operation not permitted");
        assert!(output.stderr.contains(&warning), "{}", output.stderr);
    }
}

/// A shell in which SIGHUP does what it does by default: a shell cannot undo that it is ignored, as it is below `nohup`.
fn where_hangups_end(line: &str) -> Ended {
    ended(Command::new("env").args(["--default-signal=HUP", "sh", "-c", line]))
}

#[test]
fn a_run_that_is_interrupted_keeps_what_there_was_and_says_that_it_is_not_all() {
    let dir = Dir::new("interrupted");
    let json = dir.path("run.json");
    let program = env!("CARGO_BIN_EXE_viahop-load");
    let args = format!("run --listen {ANY} --rate 200 --seconds 60 --lateness-max 10s --json {json}");
    // The shell sends the signals when the first second has been printed.
    for (command, signals) in [
        ("", "-INT $child"),
        ("", "-HUP $child"),
        ("env --block-signal=TERM", "-TERM $child"),
        ("nohup", "-HUP $child; sleep 1; kill -TERM $child"),
    ] {
        let line = format!(
            "rm -f {json}; {command} {program} {args} > {dir}/out & child=$!
            while ! grep -q calls/s {dir}/out; do sleep 0.05; done; kill {signals}; wait $child",
            dir = dir.0.display()
        );
        let output = where_hangups_end(&line);
        assert_eq!(output.code, 0, "{signals}: {}", output.all());
        let printed = std::fs::read_to_string(dir.0.join("out")).unwrap();
        assert!(printed.contains("PARTIAL: ended by the user"), "{printed}");
        let least = if command == "nohup" { "placed>=300" } else { "placed>=100" };
        let output = run(&["report", &json, "--assert", "failed==0", "--assert", least]);
        assert_eq!(output.code, 0, "{signals}: {}", output.all());
        assert!(output.stdout.contains("PARTIAL: ended by the user"), "{}", output.stdout);
    }
}

#[test]
fn connections_that_do_nothing_are_given_up_when_the_user_says_so() {
    let dir = Dir::new("given-up");
    let (port, program) = (free_port().port(), env!("CARGO_BIN_EXE_viahop-load"));
    let line = format!(
        "{program} uas --listen tcp:127.0.0.1:{port} -q > {dir}/uas & uas=$!
        {program} idle --target 'sip:127.0.0.1:{port};transport=tcp' --connections 3 --hold 1h & child=$!
        # It is no shell any more, and has its handler: SIGINT is bit 1.
        while ! {{ grep -q viahop /proc/$child/comm && grep -q 'SigCgt:.*[2367abef]$' /proc/$child/status; }}; do sleep 0.05; done
        kill -INT $child; wait $child; code=$?; kill $uas; exit $code",
        dir = dir.0.display()
    );
    let output = ended(Command::new("sh").args(["-c", &line]));
    assert_eq!(output.code, 1, "{}", output.all());
    assert!(output.stdout.contains("PARTIAL: ended by the user"), "{}", output.stdout);
}

#[test]
fn what_is_kept_back_on_purpose_when_the_last_call_is_over_leaves_all_the_same() {
    // The last message of such a call is its ACK.
    let args =
        ["run", "--listen", ANY, "--scenario", "busy", "--calls", "20", "--rate", "500", "--reorder", "100%", "-q"];
    let output = run(&[&args[..], &["--t1", "2s", "--assert", "missing==0"]].concat());
    assert_eq!(output.code, 0, "{}", output.all());
}

#[test]
fn a_bad_network_on_purpose_is_counted_as_such() {
    let mut args = vec!["run", "--listen", ANY, "--rate", "500", "--calls", "300", "--t1", "50ms", "-q"];
    args.extend(["--lose", "5%", "--duplicate", "10%", "--reorder", "0.1", "--assert", "failed==0"]);
    let output = run(&args);
    assert_eq!(output.code, 0, "{}", output.all());
    let line = output.stdout.lines().find(|line| line.starts_with("on purpose:")).unwrap();
    assert!(line.contains(" lost") && line.contains(" sent twice") && line.contains(" kept back"), "{line}");
    assert!(output.stdout.contains("retransmissions"), "{}", output.stdout);
}

#[test]
fn a_backend_is_killed_and_comes_back_at_the_times_given() {
    let mut args = vec!["run", "--listen", ANY, "--rate", "200", "--seconds", "1.5", "--t1", "5ms", "-q"];
    args.extend(["--fault", "down=0@0.4-0.8", "--assert", "failed>10", "--assert", "completed>100"]);
    let output = run(&args);
    assert_eq!(output.code, 0, "{}", output.all());
    assert!(output.stdout.contains("refused: nobody listens"), "{}", output.stdout);
    assert_eq!(run(&["run", "--listen", ANY, "--fault", "down=1@1-2"]).code, 2, "there is only backend 0");
}

#[test]
fn a_registrar_challenges_and_a_scenario_without_a_password_is_refused_before_the_start() {
    let args = ["run", "--listen", ANY, "--scenario", "register-digest", "--calls", "20", "-q"];
    let output = run(&args);
    assert_eq!(output.code, 2, "{}", output.all());
    assert!(output.stderr.contains("--password"), "{}", output.stderr);
    let output =
        run(&[&args[..], &["--challenge", "sha-256", "--password", "secret", "--assert", "failed==0"]].concat());
    assert_eq!(output.code, 0, "{}", output.all());
    assert!(output.stdout.contains("401 REGISTER") && output.stdout.contains("20 challenged"), "{}", output.stdout);
    assert_eq!(run(&["uas", "--listen", ANY, "--challenge", "md5"]).code, 2);
    assert_eq!(run(&["uas", "--listen", ANY, "--challenge", "sha-1", "--password", "x"]).code, 2);
}

#[test]
fn what_is_missing_is_attributed_to_its_message_and_its_way() {
    let output = run(&["run", "--listen", ANY, "--calls", "50", "--rate", "500", "-q"]);
    assert_eq!(output.code, 0, "{}", output.all());
    for line in [
        "  INVITE           caller -> callee           50         50\n",
        "  180 INVITE       caller <- callee           50         50\n",
        "  ACK              caller -> callee           50         50\n",
        "  200 BYE          caller <- callee           50         50\n",
        "RFC 6076: SER 100.000 %, SEER 100.000 %, ISA 0.000 %\n",
    ] {
        assert!(output.stdout.contains(line), "{line}{}", output.stdout);
    }
}

#[test]
fn a_terminal_has_a_live_screen_and_the_keys_of_sipp() {
    let program = env!("CARGO_BIN_EXE_viahop-load");
    let line = format!("{program} run --listen {ANY} --rate 100 --seconds 60 --lateness-max 10s");
    // script(1) gives it a terminal and hands on what comes through the pipe. The keys: a tenth more, pause, pause, end.
    let dir = Dir::new("screen");
    let keys = format!(
        "(sleep 1.5; printf '*'; sleep 1; printf pp; sleep 1; printf q; sleep 3) | script -qec '{line}' {}",
        dir.path("typescript")
    );
    let output = ended(Command::new("sh").args(["-c", &keys]));
    if output.stderr.contains("not found") {
        eprintln!("skipped: script is not installed");
        return;
    }
    assert_eq!(output.code, 0, "{}", output.all());
    for part in ["calls/s", "q end (again: at once)", "110.0/s asked", "PARTIAL: ended by the user", "\x1b[?25h"] {
        assert!(output.stdout.contains(part), "{part}: {}", output.stdout);
    }
}

#[test]
fn a_run_whose_terminal_is_lost_writes_its_log() {
    let dir = Dir::new("hung-up");
    let (json, program) = (dir.path("run.json"), env!("CARGO_BIN_EXE_viahop-load"));
    let run_it = format!("exec {program} run --listen {ANY} --rate 100 --seconds 3 --lateness-max 10s --json {json}");
    for (prefix, is_partial) in [("", true), ("trap \"\" HUP;", false)] {
        // The terminal is gone when script(1) is, which has it.
        let line = format!(
            "rm -f {json}; script -qec '{prefix} {run_it}' /dev/null < /dev/null > {out} & child=$!
            while ! grep -q 'q end' {out}; do kill -0 $child || exit 1; sleep 0.05; done; kill -KILL $child
            for turn in $(seq 200); do [ -s {json} ] && exit 0; sleep 0.05; done; exit 42",
            out = dir.path("out")
        );
        let output = where_hangups_end(&line);
        if output.stderr.contains("not found") {
            eprintln!("skipped: script is not installed");
            return;
        }
        assert_eq!(output.code, 0, "{prefix} {}", output.all());
        assert_eq!(run(&["report", &json]).stdout.contains("PARTIAL: ended by the user"), is_partial, "{prefix}");
    }
}

#[test]
fn every_option_and_every_scenario_is_explained_in_the_docs() {
    let docs = include_str!("../../docs/load.md");
    for command in ["run", "uac", "uas", "search", "compare", "idle", "report", "relay"] {
        let help = run_plain(&[command, "--help"]).stdout;
        let options = help.split_ascii_whitespace().filter(|word| word.starts_with("--") && word.len() > 2);
        for option in options {
            let option = option.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            assert!(option == "--help" || docs.contains(option), "{command} {option}");
        }
    }
    for line in run_plain(&["scenarios"]).stdout.lines() {
        let name = line.split_ascii_whitespace().next().unwrap();
        assert!(docs.contains(&format!("`{name}`")), "{name}");
    }
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
