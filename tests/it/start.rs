//! Bad input and bad surroundings: what the program says, and how it ends.

use crate::live::{Folder, PATIENCE, Process, UNPROBED, Viahop, config, free_port, output, udp_server, viahop};
use crate::support::{has_peer, skip};
use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use viahop::sys::uninterrupted;

/// A configuration, the exit code of `check`, and what must be said about it.
#[test]
fn a_wrong_configuration_is_shown_with_file_line_column_and_remedy() {
    let folder = Folder::new("wrong");
    let listener = format!("127.0.0.1:{}", free_port());
    let listen = format!("[[listen]]\naddress = \"udp:{listener}\"\n");
    let pool = |backends: &str| format!("{listen}[[pool]]\nbackend = [{backends}]\n[admin]\nlisten = \"off\"\n");
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken_port = taken.local_addr().unwrap().port();
    let rows = [
        (pool("{ uri = \"sip:127.0.0.1\", wieght = 1 }"), 3, vec![":4:37", "`wieght`", "`weight`"]),
        (pool("{ uri = \"sip:127.0.0.1\", weight = \"1\" }"), 3, vec![":4:46", "expected a whole number"]),
        (pool("{ uri = \"sip:127.0.0.1:506O\" }"), 3, vec![":4:38", "the letter O, not the digit 0"]),
        (pool("{ uri = \"sip:127.0.0.1\" }, { uri = \"sip:127.0.0.1:5060\" }"), 3, vec!["stands twice", "leave one"]),
        (pool("{ uri = \"sip:127.0.0.1\", weight = 0 }"), 3, vec!["weight 0", "leave the backend out"]),
        (pool("{ uri = \"sip:127.0.0.1\", weight = -1 }"), 3, vec!["weight -1", "from 1 to 10000"]),
        (pool("{ uri = \"sip:nowhere.invalid\" }"), 4, vec![":4:20", "has no address", "getent hosts"]),
        (pool(""), 3, vec!["no backends", "backend = ["]),
        (
            pool("{ uri = \"sip:127.0.0.1\" }")
                .replace(&listen, &format!("[[listen]]\naddress = \"udp:127.0.0.1:{taken_port}\"\n")),
            4,
            vec![":2:11", "is in use", "pid"],
        ),
        (
            pool("{ uri = \"sip:127.0.0.1\" }").replace(&listen, "[[listen]]\naddress = \"udp:192.0.2.1:5060\"\n"),
            4,
            vec![":2:11", "is not an address of this machine", "ip addr"],
        ),
        (
            format!("[balancer]\negress = [\"192.0.2.1\"]\n{}", pool("{ uri = \"sip:127.0.0.1\" }")),
            4,
            vec!["`egress`: cannot send from 192.0.2.1", "ip addr"],
        ),
        (
            format!(
                "[balancer]\nshards = 2\negress_ports = \"{}\"\n{}",
                free_port(),
                pool("{ uri = \"sip:127.0.0.1\" }")
            ),
            4,
            vec!["`egress_ports`: no free port", "for every shard"],
        ),
        (
            pool("{ uri = \"sip:127.0.0.1\" }").replace("udp:", "tcp:").replace("\"off\"", &format!("\"{listener}\"")),
            4,
            vec!["for the admin endpoint", "a `[[listen]]` has it"],
        ),
    ];
    for (text, code, said) in rows {
        let path = folder.write("viahop.toml", &text);
        let path = path.to_str().unwrap();
        for args in [&["check", path][..], &["run", "-c", path]] {
            let since = Instant::now();
            let (exit, _, stderr) = output(viahop(args).env("STATE_DIRECTORY", &folder.0));
            assert_eq!(exit, code, "{args:?}: {stderr}\n{text}");
            for part in &said {
                assert!(stderr.contains(part), "{args:?} does not say `{part}`:\n{stderr}\n{text}");
            }
            assert!(since.elapsed() < Duration::from_secs(10));
        }
    }
}

/// What is there is not to be written over by who follows the advice.
#[test]
fn a_new_configuration_is_advised_only_where_there_is_none() {
    let folder = Folder::new("unreadable");
    let rows = [
        (folder.0.join("none.toml"), "No such file", "viahop init > viahop.toml"),
        (folder.0.clone(), "Is a directory", "name the file in it"),
        (folder.write("binary.toml", ""), "valid UTF-8", "text in UTF-8"),
    ];
    fs::write(&rows[2].0, [0xff, 0xfe]).unwrap();
    for (path, said, help) in rows {
        let (code, _, stderr) = output(&mut viahop(&["check", path.to_str().unwrap()]));
        assert_eq!(code, 3, "{stderr}");
        assert!(stderr.contains(said) && stderr.contains(help), "{stderr}");
        assert_eq!(stderr.contains("viahop init"), help.contains("viahop init"), "{stderr}");
    }
}

#[test]
fn check_agrees_with_a_good_file_in_words_and_in_json() {
    let folder = Folder::new("good");
    let text = config(free_port(), &[free_port(), free_port()], "") + "[admin]\nlisten = \"off\"\n";
    let path = folder.write("viahop.toml", &text);
    let path = path.to_str().unwrap();
    let (code, stdout, stderr) = output(&mut viahop(&["check", path]));
    assert_eq!((code, &stderr[..]), (0, ""));
    assert!(stdout.contains("50.") && stdout.contains("works here"), "{stdout}");
    let (code, stdout, _) = output(&mut viahop(&["check", path, "--format", "json"]));
    assert_eq!((code, stdout.trim()), (0, "[]"));
    // Weights mean nothing by turns, and by rank all go to the first.
    for (strategy, shares) in [("round-robin", [" 50.0 %", " 50.0 %"]), ("priority", ["100.0 %", "  0.0 %"])] {
        let strategy = format!("[[pool]]\nstrategy = \"{strategy}\"");
        let ranks = text.replace("[[pool]]", &strategy).replacen("\" }", "\", weight = 7, name = \"0\" }", 1);
        folder.write("viahop.toml", &ranks);
        let (_, stdout, stderr) = output(&mut viahop(&["check", path]));
        let mut lines = stdout.lines().filter(|line| line.ends_with(" % of new calls"));
        assert!(shares.iter().all(|share| lines.next().is_some_and(|line| line.contains(share))), "{stdout}{stderr}");
    }
    folder.write("viahop.toml", &text.replace("shards = 2", "shards = \"two\""));
    let (code, stdout, _) = output(&mut viahop(&["check", path, "--format", "json"]));
    let problems: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &problems[0]["line"]), (3, &2.into()));
}

#[test]
fn strict_makes_errors_of_warnings() {
    let folder = Folder::new("strict");
    let text =
        config(free_port(), &[free_port()], "").replace("\" }", "\", priority = 5 }") + "[admin]\nlisten = \"off\"\n";
    let path = folder.write("viahop.toml", &text);
    let path = path.to_str().unwrap();
    assert_eq!(output(&mut viahop(&["check", "--offline", path])).0, 0);
    assert_eq!(output(&mut viahop(&["check", "--offline", "--strict", path])).0, 3);
}

#[test]
fn usage_errors_and_help_are_those_of_any_good_program() {
    assert_eq!(output(&mut viahop(&["run", "--listne", "x"])).0, 2);
    assert_eq!(output(&mut viahop(&["frobnicate"])).0, 2);
    let (code, _, stderr) = output(&mut viahop(&["ctl", "backend", "a", "disable"]));
    assert!(code == 2 && stderr.contains("ready|drain|maint|weight N"), "{stderr}");
    let (code, help, _) = output(&mut viahop(&["run", "--help"]));
    assert_eq!(code, 0);
    for flag in ["--listen", "--backend", "--cores", "--shards", "--admin", "--advertise"] {
        let name = format!("VIAHOP_{}", flag[2..].to_uppercase());
        assert!(help.contains(flag) && help.contains(&name), "{flag} or {name} is missing in\n{help}");
    }
    assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    assert_eq!(output(&mut viahop(&["version"])).0, 0);
    // On ports that nobody has: on 5060 there may be a server of this machine's.
    let folder = Folder::new("doctor");
    let admin = format!("[admin]\nlisten = \"127.0.0.1:{}\"\n", free_port());
    let file = folder.write("viahop.toml", &(config(free_port(), &[free_port()], "") + &admin));
    let (code, said, _) = output(&mut viahop(&["doctor", "-c", file.to_str().unwrap()]));
    assert_eq!(code, 0, "{said}");
}

/// `doctor | head -1` is no bug, and a full disk is none of ours.
#[test]
fn an_answer_that_cannot_be_written_is_said_and_one_that_nobody_reads_is_not() {
    let folder = Folder::new("unheard");
    let list = folder.write("dispatcher.list", "1 sip:127.0.0.1:5070\n");
    let viahop = Viahop::start("unheard", &config(free_port(), &[free_port()], UNPROBED));
    let file = viahop.folder.0.join("viahop.toml");
    let message = folder.write("message.sip", "OPTIONS sip:a SIP/2.0\r\n\r\n");
    // Ports that nobody has: what doctor found would be told by its exit code.
    let off = "[admin]\nlisten = \"off\"\n";
    let idle = folder.write("idle.toml", &(config(free_port(), &[free_port()], UNPROBED) + off));
    let [file, list, message, idle] = [&file, &list, &message, &idle].map(|path| path.to_str().unwrap());
    let (admin, socket) = (viahop.admin.to_string(), viahop.folder.0.join("ctl.sock"));
    let socket = socket.to_str().unwrap();
    for args in [
        &["check", file][..],
        &["check", file, "--format", "json"],
        &["ctl", "--socket", socket, "reload"],
        &["ctl", "--socket", socket, "status"],
        &["doctor", "-c", idle],
        &["explain", "-c", file, message],
        &["health", "--admin", &admin],
        &["import", list],
        &["init"],
        &["version"],
    ] {
        let ended = |stdout: Stdio| {
            let mut command = crate::live::viahop(args);
            command.env("STATE_DIRECTORY", &viahop.folder.0).stdout(stdout);
            let output = command.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
            (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let (code, stderr) = ended(fs::File::options().write(true).open("/dev/full").unwrap().into());
        assert_eq!(code, 4, "{args:?}: {stderr}");
        assert!(stderr.contains("error: cannot write to standard output: No space left"), "{args:?}: {stderr}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (code, stderr) = ended(writer.into());
        assert_eq!(code, 141, "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("cannot write"), "{args:?}: {stderr}");
    }
    viahop.end();
}

#[test]
fn flags_have_twins_in_the_environment() {
    let admin = free_port();
    let mut command = viahop(&["run"]);
    command.env("VIAHOP_LISTEN", format!("udp:127.0.0.1:{}", free_port())).env("VIAHOP_BACKEND", "sip:127.0.0.1:9");
    command.env("VIAHOP_ADMIN", format!("127.0.0.1:{admin}")).env("VIAHOP_SHARDS", "1").env("VIAHOP_NO_PROBE", "true");
    let folder = Folder::new("env");
    command.env("STATE_DIRECTORY", &folder.0).stderr(Stdio::null());
    let process = Process::start(&mut command);
    let until = Instant::now() + PATIENCE;
    while output(&mut viahop(&["health", "--admin", &format!("127.0.0.1:{admin}")])).0 != 0 {
        assert!(Instant::now() < until);
    }
    process.signal("INT");
}

#[test]
fn values_of_the_environment_that_turn_something_off_are_understood_by_every_command() {
    let folder = Folder::new("off");
    let (code, _, stderr) = output(viahop(&["health"]).env("VIAHOP_ADMIN", "off"));
    assert!(code == 5 && stderr.contains("the HTTP endpoint is off"), "{stderr}");
    let (code, _, stderr) = output(viahop(&["health"]).env("VIAHOP_ADMIN", "of"));
    assert!(code == 2 && stderr.contains("ADDRESS:PORT, like 127.0.0.1:8460, or off"), "{stderr}");
    // Somebody may answer there.
    let (code, _, stderr) = output(viahop(&["ctl", "status"]).env("VIAHOP_SOCKET", "off"));
    assert!(code == 0 || code == 5 && stderr.contains("\n  http://127.0.0.1:8460: "), "{stderr}");
    let path = folder.write("viahop.toml", "");
    let mut command = viahop(&["run", "-c", path.to_str().unwrap()]);
    let (code, _, stderr) = output(command.env("VIAHOP_NO_PROBE", "false"));
    assert!(code == 3 && stderr.contains("nothing to listen on"), "{stderr}");
    let (code, _, stderr) = output(command.env("VIAHOP_NO_PROBE", "true"));
    assert!(code == 2 && stderr.contains("health = { probe = false }"), "{stderr}");
}

#[test]
fn health_tells_ready_from_not_ready() {
    let (code, _, stderr) = output(&mut viahop(&["health", "--timeout", "1s"]));
    assert!(code == 2 && stderr.contains("milliseconds without its unit, like 1000"), "{stderr}");
    let nobody = format!("127.0.0.1:{}", free_port());
    let (code, _, stderr) = output(&mut viahop(&["health", "--admin", &nobody]));
    assert!(code == 5 && stderr.contains("nobody listens"), "{stderr}");
    let backend = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = backend.local_addr().unwrap().port();
    let probed = "health = { interval = \"200ms\", timeout = \"100ms\" }";
    let viahop = Viahop::start("health", &config(free_port(), &[port], probed));
    viahop.wait_until("a silent backend is down", PATIENCE, |status| status["ready"] == false);
    let (code, _, stderr) = output(&mut crate::live::viahop(&["health", "--admin", &viahop.admin.to_string()]));
    assert_eq!(code, 5);
    assert!(stderr.contains("proxies"), "{stderr}");
    // What an environment says of HTTP to the world does not hold for this machine.
    let mut health = crate::live::viahop(&["health", "--admin", &viahop.admin.to_string()]);
    let (_, _, stderr) = output(health.env("HTTP_PROXY", format!("http://{nobody}")));
    assert!(stderr.contains("proxies"), "{stderr}");
    viahop.end();
}

/// `ulimit -l` stands for a container with default limits.
#[test]
fn too_little_lockable_memory_is_refused_at_once_with_the_remedy() {
    let folder = Folder::new("memlock");
    let program = env!("CARGO_BIN_EXE_viahop");
    let line = format!(
        "ulimit -l 64; exec {program} run --listen udp:127.0.0.1:{} --backend sip:127.0.0.1:9 --admin off",
        free_port()
    );
    let since = Instant::now();
    let (code, _, stderr) = output(Command::new("sh").args(["-c", &line]).env("STATE_DIRECTORY", &folder.0));
    assert_eq!(code, 4, "{stderr}");
    assert!(stderr.contains("64 KiB") && stderr.contains("LimitMEMLOCK") && stderr.contains("ulimit -l"), "{stderr}");
    assert!(since.elapsed() < Duration::from_secs(10));
}

#[test]
fn doctor_asks_for_no_privilege_that_is_there() {
    if !has_peer("unshare") {
        return;
    }
    let folder = Folder::new("privilege");
    let path = folder.write("viahop.toml", &config(443, &[9], UNPROBED));
    let args = ["--user", "--net", "--map-user=1000", "--keep-caps", env!("CARGO_BIN_EXE_viahop"), "doctor", "-c"];
    let (_, said, stderr) = output(Command::new("unshare").args(args).arg(path));
    if said.is_empty() {
        return skip(&format!("no user namespace here: {}", stderr.trim()));
    }
    assert!(said.contains("port 443 is below 1024, and CAP_NET_BIND_SERVICE is there"), "{said}");
    assert!(!said.contains("AmbientCapabilities=CAP_NET_BIND_SERVICE"), "{said}");
}

/// Shells and systemd leave a process 1,024 descriptors of half a million that it may take by itself.
#[test]
fn a_start_takes_as_many_descriptors_as_doctor_says_it_may_have() {
    let folder = Folder::new("descriptors");
    let listen = format!("udp:127.0.0.1:{}", free_port());
    let program = env!("CARGO_BIN_EXE_viahop");
    let line = format!(
        "ulimit -Sn 128; exec {program} run --listen {listen} --backend sip:127.0.0.1:9 --admin off --socket {}",
        folder.0.join("ctl.sock").display()
    );
    let viahop = Process::start(Command::new("sh").args(["-c", &line]).env("STATE_DIRECTORY", &folder.0));
    let until = Instant::now() + PATIENCE;
    while !folder.0.join("ctl.sock").exists() {
        assert!(Instant::now() < until, "no start");
        std::thread::sleep(Duration::from_millis(10));
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", viahop.0.id())).unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let mut limits = files.split_ascii_whitespace();
    assert_eq!(limits.next(), limits.next(), "soft and hard: {files}");
}

/// Nothing wakes it but what comes: neither a timeout nor the ticker that ends its waits while it works.
#[test]
fn a_shard_to_which_nothing_comes_is_not_woken() {
    let server = udp_server();
    let (listen, client) = (free_port(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let viahop = Viahop::start("idle", &config(listen, &[server.local_addr().unwrap().port()], UNPROBED));
    let wakes = || -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", viahop.process.0.id())).unwrap().flatten();
        let status = tasks.map(|task| fs::read_to_string(task.path().join("status")).unwrap_or_default());
        let shards = status.filter(|status| status.starts_with("Name:\tviahop-"));
        let wakes = |status: String| -> Option<u64> {
            status.rsplit("\nvoluntary_ctxt_switches:").next()?.lines().next()?.trim().parse().ok()
        };
        shards.filter_map(wakes).sum()
    };
    for number in 0..2 {
        let until = Instant::now() + PATIENCE;
        loop {
            let before = wakes();
            std::thread::sleep(Duration::from_secs(1));
            if before > 0 && wakes() == before {
                break;
            }
            assert!(Instant::now() < until, "a shard is woken and woken again");
        }
        let message = format!(
            "MESSAGE sip:b@example.net SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:9;branch=z9hG4bKidle{number}\r\nMax-Forwards: 70\r\n\
             From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: idle\r\nCSeq: 1 MESSAGE\r\n\r\n"
        );
        client.send_to(message.as_bytes(), ("127.0.0.1", listen)).unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        server.recv(&mut [0; 4096]).unwrap();
    }
    viahop.end();
}

/// `ulimit -f` stands for a full disk; that the port is taken ends it.
#[test]
fn a_secret_that_cannot_be_kept_leaves_nothing_in_the_way_of_the_next_start() {
    let folder = Folder::new("full");
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let program = env!("CARGO_BIN_EXE_viahop");
    let line = format!(
        "trap '' XFSZ; ulimit -f 0; exec {program} run --listen udp:{} --backend sip:127.0.0.1:9 --admin off",
        taken.local_addr().unwrap()
    );
    let (code, _, stderr) = output(Command::new("sh").args(["-c", &line]).env("STATE_DIRECTORY", &folder.0));
    assert_eq!(code, 4, "{stderr}");
    let left: Vec<_> = fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The kernel's switch for io_uring needs root and is everybody's; a seccomp filter is what containers use, and strace
/// can play one: for one of the calls that are needed, since profiles name them one by one.
#[test]
fn a_system_call_that_is_refused_is_named_with_its_remedy_by_check_and_by_the_start() {
    if !has_peer("strace") {
        return;
    }
    let folder = Folder::new("filter");
    let path = folder.write("viahop.toml", &(config(free_port(), &[9], UNPROBED) + "[admin]\nlisten = \"off\"\n"));
    let path = path.to_str().unwrap();
    let rows = [
        ("io_uring_setup", ["refused io_uring", "seccomp"]),
        ("io_uring_enter", ["refused io_uring", "seccomp"]),
        ("io_uring_register", ["refused io_uring", "seccomp"]),
        ("recvmmsg", ["refused recvmmsg", "filter"]),
        ("sendmmsg", ["refused recvmmsg or sendmmsg", "filter"]),
        ("sched_setaffinity", ["no thread may be bound to core", "@resources"]),
        // Of threads none may be started, as where a limit is reached.
        ("clone3", ["Resource temporarily unavailable", "6 threads are needed in all: systemd `TasksMax`"]),
    ];
    for (call, words) in rows {
        for command in [&["check", path][..], &["run", "-c", path]] {
            let error = if call == "clone3" { "EAGAIN" } else { "EPERM" };
            let inject = format!("inject={call}:error={error}");
            let mut strace = Command::new("strace");
            strace.args(["-f", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject]);
            strace.arg(env!("CARGO_BIN_EXE_viahop")).args(command).env("STATE_DIRECTORY", &folder.0);
            let (code, _, stderr) = output(&mut strace);
            assert_eq!(code, 4, "{call}, {command:?}: {stderr}");
            assert!(words.iter().all(|word| stderr.contains(word)), "{call}, {command:?}: {stderr}");
            assert!(!stderr.contains("panic"), "{call}, {command:?}: {stderr}");
        }
    }
}

/// A pod with `dnsPolicy: None`, or an image without the file.
#[test]
fn nobody_to_ask_for_servers_is_said_with_the_file_and_the_key_that_name_them() {
    if !has_peer("unshare") {
        return;
    }
    let folder = Folder::new("resolv");
    let text = format!("[[listen]]\naddress = \"udp:127.0.0.1:{}\"\n[[pool]]\n", free_port());
    let path = folder.write("viahop.toml", &(text + "discover = \"sip:proxies.example.net\"\n"));
    let bare = "mount --bind /dev/null /etc/resolv.conf && exec \"$0\" \"$@\"";
    let args = ["--map-root-user", "--mount", "sh", "-c", bare, env!("CARGO_BIN_EXE_viahop"), "check"];
    let (code, _, stderr) = output(Command::new("unshare").args(args).arg(path));
    if ["unshare:", "mount:"].iter().any(|who| stderr.starts_with(who)) {
        return skip(&format!("no mount namespace here: {}", stderr.trim()));
    }
    assert_eq!(code, 4, "{stderr}");
    assert!(stderr.contains("/etc/resolv.conf names nobody to ask") && stderr.contains("`nameservers`"), "{stderr}");
}

/// As in a `chroot`, or systemd's `RootDirectory=`: what glommio would look cores up in is not there.
#[test]
fn without_sys_it_runs_all_the_same() {
    if !has_peer("unshare") {
        return;
    }
    let folder = Folder::new("sys");
    let path = folder.write("viahop.toml", &(config(free_port(), &[9], UNPROBED) + "[admin]\nlisten = \"off\"\n"));
    let hidden = "mount -t tmpfs none /sys && exec \"$0\" \"$@\"";
    let start = ["run", "-c", path.to_str().unwrap(), "--socket", folder.0.join("ctl.sock").to_str().unwrap()]
        .map(String::from);
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", hidden, env!("CARGO_BIN_EXE_viahop")]).args(start);
    let log = folder.0.join("log");
    command.env("STATE_DIRECTORY", &folder.0).stderr(fs::File::create(&log).unwrap());
    let mut process = Process::start(&mut command);
    let until = Instant::now() + PATIENCE;
    let said = || fs::read_to_string(&log).unwrap();
    while !said().contains("event=\"started\"") {
        if ["unshare:", "mount:"].iter().any(|who| said().starts_with(who)) {
            return skip(&format!("no mount namespace here: {}", said().trim()));
        }
        assert!(Instant::now() < until && process.wait(Duration::ZERO).is_none(), "{}", said());
        std::thread::sleep(Duration::from_millis(10));
    }
    process.signal("INT");
    assert_eq!(process.wait(PATIENCE).and_then(|status| status.code()), Some(0), "{}", said());
}

/// Some supervisors start what they supervise while they handle signals, and leave them blocked.
#[test]
fn signals_that_the_parent_has_blocked_are_obeyed() {
    let folder = Folder::new("blocked");
    let log = folder.0.join("log");
    let listen = format!("udp:127.0.0.1:{}", free_port());
    let mut env = Command::new("env");
    env.args(["--block-signal=HUP", "--block-signal=TERM", env!("CARGO_BIN_EXE_viahop"), "run", "--listen", &listen]);
    env.args(["--backend", "sip:127.0.0.1:9", "--no-probe", "--admin", "off", "--socket"])
        .arg(folder.0.join("ctl.sock"));
    env.env("STATE_DIRECTORY", &folder.0).stderr(fs::File::create(&log).unwrap());
    let mut viahop = Process::start(&mut env);
    let waits_until_it_says = |word: &str| {
        let until = Instant::now() + PATIENCE;
        while !fs::read_to_string(&log).unwrap().contains(word) {
            assert!(Instant::now() < until, "no {word}: {}", fs::read_to_string(&log).unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    waits_until_it_says("event=\"started\"");
    viahop.signal("HUP");
    waits_until_it_says("event=\"reload");
    viahop.signal("TERM");
    waits_until_it_says("event=\"draining\"");
    viahop.signal("TERM");
    assert_eq!(viahop.wait(PATIENCE).and_then(|status| status.code()), Some(0));
}

/// The kernel keeps from the first process of a container what that has no handler for.
#[test]
fn a_start_that_hangs_can_be_ended_where_it_is_the_first_process() {
    if !has_peer("unshare") {
        return;
    }
    let folder = Folder::new("first");
    let path = folder.0.join("viahop.toml");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let mut unshare = Command::new("unshare");
        unshare.args(["--map-root-user", "--pid", "--fork", "--kill-child", env!("CARGO_BIN_EXE_viahop"), "run", "-c"]);
        let mut unshare = Process::start(unshare.arg(&path).stderr(Stdio::null()));
        // Opened for both, as nobody may ever read it: a file that hangs.
        let hangs = fs::File::options().read(true).write(true).open(&path).unwrap();
        let pid = unshare.0.id();
        let first = || {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
            let first = children.trim().to_owned();
            let is_it = fs::read_link(format!("/proc/{first}/exe")).is_ok_and(|exe| exe.ends_with("viahop"));
            // It reads: it has come past its first steps.
            let fds = fs::read_dir(format!("/proc/{first}/fd")).ok()?.flatten();
            let reads = fds.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|file| file == path));
            (is_it && reads).then_some(first)
        };
        let until = Instant::now() + PATIENCE;
        let first = loop {
            if let Some(first) = first() {
                break first;
            }
            if unshare.wait(Duration::ZERO).is_some() {
                return skip("no namespace of processes here");
            }
            assert!(Instant::now() < until, "no start");
            std::thread::sleep(Duration::from_millis(10));
        };
        assert!(Command::new("kill").args([&format!("-{signal}"), &first]).status().unwrap().success());
        assert_eq!(unshare.wait(PATIENCE).and_then(|status| status.code()), Some(code), "{signal}");
        drop(hangs);
    }
}

/// A pod whose neighbours take all the threads it may have. strace refuses them to a viahop that runs.
#[test]
fn a_reload_needs_no_thread_that_is_not_there() {
    if !has_peer("strace") {
        return;
    }
    let viahop = Viahop::start("threads", &config(free_port(), &[free_port()], UNPROBED));
    let pid = viahop.process.0.id();
    let filter = ["-f", "-o", "/dev/null", "-e", "trace=clone3", "-e", "inject=clone3:error=EAGAIN"];
    let mut strace = Command::new("strace");
    let mut strace = Process::start(strace.args(filter).args(["-p", &pid.to_string()]).stderr(Stdio::null()));
    let is_traced = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        !status.contains("TracerPid:\t0\n")
    };
    let until = Instant::now() + PATIENCE;
    while !fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().all(is_traced) {
        if strace.wait(Duration::ZERO).is_some() {
            return skip("strace may not attach here");
        }
        assert!(Instant::now() < until, "strace does not attach");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut ctl = crate::live::viahop(&["ctl", "--url", &format!("http://{}", viahop.admin), "reload"]);
    let (code, _, stderr) = output(&mut ctl);
    assert_eq!(code, 0, "{stderr}");
    drop(strace);
    viahop.end();
}

#[test]
fn a_restart_on_the_same_port_copes_with_what_the_kernel_has_not_taken_down_yet() {
    let port = free_port();
    let text = config(port, &[free_port()], UNPROBED);
    for _ in 0..5 {
        Viahop::start("restart", &text).end();
    }
}

#[test]
fn explain_says_what_the_live_program_does_when_one_is_ejected_or_starts_slowly_and_in_a_drain() {
    let backends: Vec<UdpSocket> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let ports: Vec<u16> = backends.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
    let listen = free_port();
    let pool = "slow_start = \"1h\"\nhealth = { probe = false }\noutlier = { requests = 20, eject = \"1h\" }";
    let text = config(listen, &ports, pool).replace("shards = 2", "shards = 1");
    let viahop = Viahop::start("explain", &text);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let request = |method: &str, uri: &str, call: u32| {
        format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:5;branch=z9hG4bK{call};rport\r\n\
             Max-Forwards: 70\r\nFrom: <sip:a@example.net>;tag=1\r\nTo: <sip:bob@example.net>\r\n\
             Call-ID: explain-{call}\r\nCSeq: 1 {method}\r\nContent-Length: 0\r\n\r\n"
        )
    };
    let invite = |call| request("INVITE", "sip:bob@example.net", call);
    let explain = |message: &str| {
        let path = viahop.folder.write("message.sip", message);
        let file = viahop.folder.0.join("viahop.toml");
        let from = client.local_addr().unwrap().to_string();
        let args = ["explain", "--live", "-c", file.to_str().unwrap(), "--from", &from, path.to_str().unwrap()];
        let (code, stdout, stderr) = output(crate::live::viahop(&args).env("STATE_DIRECTORY", &viahop.folder.0));
        assert_eq!((code, &stderr[..]), (0, ""));
        stdout
    };
    for call in 0..30 {
        let message = invite(call);
        let explained = explain(&message);
        let (reasons, explained) = explained.split_once("\n\n").unwrap();
        client.send_to(message.as_bytes(), ("127.0.0.1", listen)).unwrap();
        let mut room = vec![0; 4096];
        let to = reasons.lines().find_map(|line| line.strip_prefix("sent to 127.0.0.1:")).unwrap();
        let place = ports.iter().position(|port| port.to_string() == to).unwrap();
        backends[place].set_read_timeout(Some(PATIENCE)).unwrap();
        let len = uninterrupted(|| backends[place].recv(&mut room)).unwrap();
        assert_eq!(String::from_utf8_lossy(&room[..len]).trim_end(), explained.trim_end());
        assert!(reasons.contains("slot") && reasons.contains("pool     proxies"), "{reasons}");
        if call == 10 {
            // It has a tenth of its share.
            let (name, socket) = (format!("127.0.0.1:{}", ports[0]), viahop.folder.0.join("ctl.sock"));
            for state in ["maint", "ready"] {
                let args = ["ctl", "--socket", socket.to_str().unwrap(), "backend", &name, state];
                assert_eq!(output(&mut crate::live::viahop(&args)).0, 0);
            }
            viahop.wait_until("a slow start", PATIENCE, |status| status["backends"][0]["weight_in_force"] == 10);
        }
        if call == 20 {
            // Nobody answers, and one of the three is ejected for it.
            for call in 100..200 {
                client.send_to(invite(call).as_bytes(), ("127.0.0.1", listen)).unwrap();
            }
            let ejects = |status: &serde_json::Value| status.to_string().contains("\"ejected\":true");
            viahop.wait_until("an ejection", PATIENCE, ejects);
            viahop.wait_for_metric("viahop_messages_forwarded_total", "kind=\"request\"", 121.0);
            for backend in &backends {
                backend.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
                while uninterrupted(|| backend.recv(&mut room)).is_ok() {}
            }
        }
    }
    let options = request("OPTIONS", &format!("sip:127.0.0.1:{listen}"), 300);
    assert!(explain(&options).contains("viahop itself: 200"));
    viahop.process.signal("TERM");
    viahop.wait_until("a drain", PATIENCE, |status| status["draining"] == true);
    assert!(explain(&options).contains("viahop itself: 503"));
    viahop.end();
}

/// A message that a datagram may be is none on a connection without Content-Length.
#[test]
fn explain_takes_a_message_on_a_tcp_listener_from_a_stream() {
    let port = free_port();
    let text = config(port, &[free_port()], UNPROBED).replacen(
        "[[pool]]",
        &format!("[[listen]]\naddress = \"tcp:127.0.0.1:{port}\"\n[[pool]]"),
        1,
    );
    let viahop = Viahop::start("explain-stream", &text);
    let file = viahop.folder.0.join("viahop.toml");
    let explained = |message: &str, listener: &str| {
        let path = viahop.folder.write("message.sip", message);
        let args = ["explain", "-c", file.to_str().unwrap(), "--listener", listener, path.to_str().unwrap()];
        let (code, stdout, stderr) = output(crate::live::viahop(&args).env("STATE_DIRECTORY", &viahop.folder.0));
        assert_eq!((code, &stderr[..]), (0, ""));
        stdout
    };
    let [udp, tcp] = ["udp", "tcp"].map(|transport| format!("{transport}:127.0.0.1:{port}"));
    let without = "OPTIONS sip:bob@example.net SIP/2.0\r\nVia: SIP/2.0/TCP 127.0.0.1:5;branch=z9hG4bK1\r\nMax-Forwards: 70\r\n\
                   From: <sip:a@example.net>;tag=1\r\nTo: <sip:bob@example.net>\r\nCall-ID: explain\r\nCSeq: 1 OPTIONS\r\n\
                   User-Agent: long enough for an answer that says why\r\nAccept: application/sdp\r\n\r\n";
    let with = without.replace("\r\n\r\n", "\r\nContent-Length: 0\r\n\r\n");
    let sent = explained(without, &udp);
    assert!(sent.contains("sent to ") && sent.contains("(affinity call-id, strategy hash)"), "{sent}");
    assert!(explained(&with, &tcp).contains("sent to "));
    // The answer has no room for the words, being no longer than the request.
    let short = "OPTIONS sip:bob@a SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:5;branch=z9hG4bK1\r\nTo: <sip:b@a>\r\n\
                 From: <sip:a@a>;tag=1\r\nCall-ID: explain\r\nCSeq: one OPTIONS\r\n\r\n";
    let refused = explained(short, &udp);
    let why = "because  400 Bad CSeq, octet 135 of 150\n  | CSeq: one OPTIONS\\r\\n\n  |       ^\n";
    assert!(refused.contains(why), "{refused}");
    let refused = explained(without, &tcp);
    assert!(refused.contains("400 Missing Content-Length") && refused.contains("closed"), "{refused}");
    let mut client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    std::io::Write::write_all(&mut client, without.as_bytes()).unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut client, &mut answer).unwrap();
    assert!(answer.starts_with("SIP/2.0 400 Missing Content-Length"), "{answer}");
    viahop.end();
}

#[test]
fn explain_says_when_its_secret_is_not_that_of_the_running_viahop_and_makes_none() {
    let viahop = Viahop::start("explain-stranger", &config(free_port(), &[free_port()], UNPROBED));
    let message = viahop.folder.write("message.sip", "OPTIONS sip:bob@example.net SIP/2.0\r\n\r\n");
    let file = viahop.folder.0.join("viahop.toml");
    let explained_from = |state: &Path, live: &[&str]| {
        let args = ["explain", "-c", file.to_str().unwrap(), message.to_str().unwrap()];
        let (code, _, stderr) = output(crate::live::viahop(&args).args(live).env("STATE_DIRECTORY", state));
        assert_eq!(code, 0, "{stderr}");
        stderr
    };
    // Somebody else's place, with no secret at first, and then with one of its own.
    let state = viahop.folder.0.join("stranger");
    fs::create_dir(&state).unwrap();
    let secret = state.join("secret");
    let alone = explained_from(&state, &[]);
    assert!(alone.contains(&format!("there is no secret in {}", secret.display())), "{alone}");
    assert!(alone.contains("as the user it runs as") && !secret.exists(), "{alone}");
    fs::write(&secret, [7; 32]).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(explained_from(&state, &[]), "");
    let other = explained_from(&state, &["--live"]);
    let hash = viahop.status()["config_hash"].as_str().unwrap().to_owned();
    assert!(other.contains(&format!("another secret or file: its config_hash is {hash}")), "{other}");
    // What was set by hand in the running one is no difference.
    let socket = viahop.folder.0.join("ctl.sock");
    let port = viahop.status()["backends"][0]["name"].as_str().unwrap().to_owned();
    let args = ["ctl", "--socket", socket.to_str().unwrap(), "backend", &port, "weight", "7"];
    let (code, _, stderr) = output(&mut crate::live::viahop(&args));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(explained_from(&viahop.folder.0, &["--live"]), "");
    viahop.end();
}

#[test]
fn completions_and_manual_pages_come_from_the_command_line_itself() {
    let (code, script, _) = output(&mut viahop(&["completions", "bash"]));
    assert_eq!(code, 0);
    // As bash does when somebody types the command and presses the tab key behind its last word.
    let complete = |words: &[&str], last: &str| {
        let line = words.join(" ");
        let ask = format!(
            "{script}\nCOMP_WORDS=({line} {last}); COMP_CWORD={}; _viahop viahop '{last}' x; echo ${{COMPREPLY[@]}}",
            words.len()
        );
        output(Command::new("bash").args(["--norc", "-c", &ask])).1
    };
    assert_eq!(complete(&["viahop", "ctl", "backend", "x"], "dr"), "drain\n");
    assert_eq!(complete(&["viahop", "run"], "--st"), "--steering\n");

    let folder = Folder::new("man");
    let pages = folder.0.join("man1");
    let (code, _, told) = output(&mut viahop(&["man", pages.to_str().unwrap()]));
    assert_eq!(code, 0, "{told}");
    let page = |name: &str| fs::read_to_string(pages.join(name)).unwrap();
    assert!(page("viahop.1").contains("Exit codes:"));
    assert!(page("viahop-ctl-backend-drain.1").contains("what belongs to it still goes there"));
    let (code, _, told) = output(&mut viahop(&["man", "/proc/man1"]));
    assert_eq!(code, 4);
    assert!(told.contains("help: name a folder"), "{told}");
}
