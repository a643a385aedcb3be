//! One call, one core: which shard gets what, by the shards' own counters, with and without the program in the kernel.

use crate::live::{Folder, PATIENCE, Process, UNPROBED, Viahop, alone, config, free_port, free_ports, output, viahop};
use crate::support::{has_peer, skip};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};
use viahop::sys::uninterrupted;
use viahop_load::uac::{self, Uac};
use viahop_load::uas::{self, Uas};

/// Adds keys of `[balancer]` to what `config` makes.
fn with(keys: &str, config: &str) -> String {
    config.replacen("[balancer]\n", &format!("[balancer]\n{keys}\n"), 1)
}

/// Whether this viahop steers by Call-ID. Where that is not permitted a test of it has nothing to see, which is a failure
/// where everything is required.
fn steers(viahop: &Viahop) -> bool {
    let steering = &viahop.status()["steering"];
    let steers = steering["in_force"] == "call-id";
    if !steers {
        assert_ne!(std::env::var("VIAHOP_PEERS").as_deref(), Ok("required"), "{steering}");
        skip(&format!("no steering: {}", steering["missing"]));
    }
    steers
}

/// Datagrams each shard has received.
fn loads(status: &Value) -> Vec<u64> {
    status["shards"].as_array().unwrap().iter().map(|shard| shard["received"].as_u64().unwrap()).collect()
}

fn undecided(viahop: &Viahop) -> f64 {
    viahop.metric("viahop_steering_datagrams_total", "")
        - viahop.metric("viahop_steering_datagrams_total", "\"call_id\"")
}

/// A peer that reads and writes SIP by hand.
struct Peer {
    socket: UdpSocket,
    address: SocketAddr,
}

impl Peer {
    fn new() -> Peer {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let address = socket.local_addr().unwrap();
        Peer { socket, address }
    }

    fn send(&self, text: &str, to: SocketAddr) {
        self.socket.send_to(text.as_bytes(), to).unwrap();
    }

    fn receive(&self) -> (String, SocketAddr) {
        let mut room = vec![0; 65_536];
        let (len, from) = uninterrupted(|| self.socket.recv_from(&mut room)).unwrap();
        (String::from_utf8(room[..len].to_vec()).unwrap(), from)
    }

    fn request(&self, method: &str, uri: &str, call_id: &str, cseq: u32) -> String {
        format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {};branch=z9hG4bK{call_id}{cseq}{method}\r\nMax-Forwards: 70\r\n\
             From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>;tag=2\r\nCall-ID: {call_id}\r\nCSeq: {cseq} {method}\r\n\
             Content-Length: 0\r\n\r\n",
            self.address
        )
    }
}

/// The answer to `request` with its Vias.
fn answer(request: &str, line: &str) -> String {
    let copied = ["Via:", "From:", "To:", "Call-ID:", "CSeq:"];
    let rows: Vec<&str> = request.lines().filter(|row| copied.iter().any(|name| row.starts_with(name))).collect();
    format!("SIP/2.0 {line}\r\n{}\r\nContent-Length: 0\r\n\r\n", rows.join("\r\n"))
}

/// Messages that viahop receives of a call of [`play`].
const RECEIVED: u64 = 11;

/// A call with everything in it: retransmissions, answers, a second peer that goes on with it, and requests from the
/// backend's side with their answers.
fn play(caller: &Peer, other: &Peer, backend: &Peer, viahop: SocketAddr, call_id: &str) {
    let uri = format!("sip:b@{viahop}");
    let invite = caller.request("INVITE", &uri, call_id, 1).replace("tag=2", "x=y");
    for _ in 0..2 {
        caller.send(&invite, viahop);
        let (request, from) = backend.receive();
        for line in ["180 Ringing", "200 OK"] {
            backend.send(&answer(&request, line), from);
            assert!(caller.receive().0.starts_with(&format!("SIP/2.0 {line}")));
        }
    }
    other.send(&other.request("ACK", &uri, call_id, 1), viahop);
    backend.receive();
    // The backend's side asks the caller, by way of the port that everybody shares.
    backend.send(&backend.request("OPTIONS", &format!("sip:a@{}", caller.address), call_id, 7), viahop);
    let (request, from) = caller.receive();
    assert_eq!(from, viahop);
    caller.send(&answer(&request, "200 OK"), from);
    assert!(backend.receive().0.starts_with("SIP/2.0 200"));
    other.send(&other.request("BYE", &uri, call_id, 2), viahop);
    let (request, from) = backend.receive();
    backend.send(&answer(&request, "200 OK"), from);
    assert!(other.receive().0.starts_with("SIP/2.0 200"));
    assert_eq!(request.matches("Via:").count(), 2, "{request}");
    // A keep-alive says nothing of a call, and is counted as such.
    caller.send("\r\n\r\n", viahop);
}

/// Plays calls one by one, and returns how many of them were wholly on one shard.
fn calls_on_one_shard(name: &str, keys: &str, calls: u32) -> Option<(u32, Viahop)> {
    let (caller, other, backend) = (Peer::new(), Peer::new(), Peer::new());
    let listen = free_port();
    let address: SocketAddr = ([127, 0, 0, 1], listen).into();
    let text = with(keys, &config(listen, &[backend.address.port()], UNPROBED));
    let viahop = Viahop::start(name, &text);
    if !keys.contains("kernel") && !steers(&viahop) {
        return None;
    }
    let mut whole = 0;
    for number in 0..calls {
        let before = loads(&viahop.status());
        play(&caller, &other, &backend, address, &format!("{name}-{number}@example"));
        let mut rise = Vec::new();
        // The keep-alive is answered by nobody, so its count is waited for.
        viahop.wait_until("all messages of a call", PATIENCE, |status| {
            rise = loads(status).iter().zip(&before).map(|(now, before)| now - before).collect();
            rise.iter().sum::<u64>() > RECEIVED
        });
        assert_eq!(rise.iter().sum::<u64>(), RECEIVED + 1);
        // The keep-alive comes to whichever shard the kernel likes.
        whole += u32::from(rise.iter().any(|&one| one >= RECEIVED));
    }
    Some((whole, viahop))
}

#[test]
fn every_message_of_a_call_comes_to_one_shard_from_both_sides_and_from_two_peers() {
    let _alone = alone();
    let calls = 100;
    let Some((whole, viahop)) = calls_on_one_shard("whole", "steering = \"call-id\"", calls) else { return };
    assert_eq!(undecided(&viahop), f64::from(calls), "the keep-alives");
    assert_eq!(viahop.metric("viahop_handoffs_total", ""), 0.0);
    let load = loads(&viahop.status());
    viahop.end();
    let (by_kernel, viahop) = calls_on_one_shard("parts", "steering = \"kernel\"", calls).unwrap();
    println!(
        "calls wholly on one shard: {whole} of {calls} by Call-ID, {by_kernel} of {calls} by the kernel; shards {load:?}"
    );
    viahop.end();
    assert_eq!(whole, calls);
}

#[test]
fn with_one_port_towards_backends_calls_are_on_one_shard_all_the_same() {
    let _alone = alone();
    let keys = "steering = \"call-id\"\negress_mode = \"shared\"";
    let Some((whole, viahop)) = calls_on_one_shard("shared", keys, 60) else { return };
    assert_eq!(whole, 60);
    assert_eq!(viahop.metric("viahop_handoffs_total", ""), 0.0);
    let status = viahop.status();
    assert_eq!(status["shards"][0]["egress_port_v4"], status["shards"][1]["egress_port_v4"]);
    viahop.end();
}

/// Calls of one trunk: all from one address and port.
fn trunk(name: &str, keys: &str, calls: u64) -> (uac::Report, uas::Report, Viahop) {
    let backends = vec![SocketAddr::from(([127, 0, 0, 1], 0)).into(); 2];
    let uas = Uas::start(uas::Config { backends, ..Default::default() }).unwrap();
    let ports: Vec<u16> = uas.addresses().iter().map(SocketAddr::port).collect();
    let listen = free_port();
    let viahop = Viahop::start(name, &with(keys, &config(listen, &ports, UNPROBED)));
    let target = SocketAddr::from(([127, 0, 0, 1], listen));
    let uac = Uac::start(uac::Config { rate: 800.0, calls, duration_ns: u64::MAX >> 8, ..uac::Config::new(target) });
    let called = uac.unwrap().join();
    (called, uas.join(), viahop)
}

#[test]
fn calls_of_a_trunk_are_spread_over_the_shards_and_each_stays_on_its_own() {
    let _alone = alone();
    let calls = 6000;
    let (called, answered, viahop) = trunk("trunk", "steering = \"auto\"", calls);
    if !steers(&viahop) {
        return;
    }
    assert_eq!((called.counts.completed, called.counts.failed), (calls, 0));
    // Each shard sends from a port of its own, so a callee sees when a call changes its shard.
    assert_eq!(answered.total().moved, 0);
    let status = viahop.status();
    let skew = status["shard_skew"].as_f64().unwrap();
    // As even as tossing a coin 6,000 times: within 5 standard deviations of the mean.
    assert!(skew < 1.0 + 5.0 / (calls as f64).sqrt(), "{status:#}");
    assert_eq!((undecided(&viahop), viahop.metric("viahop_handoffs_total", "")), (0.0, 0.0));
    viahop.end();

    let (called, _, viahop) = trunk("trunk-by-kernel", "steering = \"kernel\"", 1000);
    assert_eq!((called.counts.completed, called.counts.failed), (1000, 0));
    let by_kernel = viahop.status()["shard_skew"].as_f64().unwrap();
    println!("busiest shard by the mean: {skew:.3} by Call-ID, {by_kernel:.3} by the kernel");
    assert_eq!(by_kernel, 2.0, "the kernel takes a trunk to one shard");
    viahop.end();
}

#[test]
fn a_reload_leaves_steering_as_it_is_and_refuses_to_change_it() {
    let backend = Peer::new();
    let listen = free_port();
    let text = config(listen, &[backend.address.port()], UNPROBED);
    let viahop = Viahop::start("steering-reload", &text);
    let by = viahop.status()["steering"]["in_force"].clone();
    viahop.write_config(&text.replace("proxies", "others"));
    viahop.process.signal("HUP");
    viahop.wait_until("the reload", PATIENCE, |status| status["backends"][0]["pool"] == "others");
    assert_eq!(viahop.status()["steering"]["in_force"], by);
    viahop.write_config(&with("steering = \"kernel\"\negress_mode = \"shared\"", &text));
    viahop.process.signal("HUP");
    viahop.wait_until("the refusal", PATIENCE, |status| status["reload"]["ok"] == false);
    assert_eq!(viahop.status()["steering"]["in_force"], by);
    assert!(viahop.log().contains("`steering` cannot change in a reload"), "{}", viahop.log());
    let caller = Peer::new();
    caller.send(&caller.request("OPTIONS", "sip:x@example", "after@reload", 1), ([127, 0, 0, 1], listen).into());
    assert!(backend.receive().0.starts_with("OPTIONS"));
    viahop.end();
}

/// A command that may do nothing a user may not.
fn unprivileged(args: &[&str]) -> Command {
    let program = viahop(args);
    // `nobody`, and no capability to be had by any means.
    let drop = ["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"];
    let mut command = Command::new("setpriv");
    command.args(drop).arg("--").arg(program.get_program()).args(args).env("NO_COLOR", "1");
    command
}

#[test]
fn without_privilege_it_goes_without_says_so_and_loses_nothing() {
    if !has_peer("setpriv") {
        return;
    }
    let (folder, backend, caller) = (Folder::new("unprivileged"), Peer::new(), Peer::new());
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o777)).unwrap();
    let (listen, admin) = (free_port(), free_port());
    let text = config(listen, &[backend.address.port()], UNPROBED);
    let text = format!("{text}\n[admin]\nlisten = \"127.0.0.1:{admin}\"\nsocket = \"off\"\n");
    let file = folder.write("viahop.toml", &text);
    let file = file.to_str().unwrap();
    if !unprivileged(&["version"]).output().is_ok_and(|output| output.status.success()) {
        return skip("this user may not become another, or that one not read the program");
    }
    let (code, _, said) =
        output(unprivileged(&["run", "-c", file, "--steering", "call-id"]).env("STATE_DIRECTORY", &folder.0));
    assert!(code == 4 && said.contains("no steering by Call-ID: missing is CAP_BPF"), "{code}\n{said}");
    assert!(said.contains("AmbientCapabilities=CAP_BPF"), "{said}");

    let log = folder.0.join("log");
    let mut command = unprivileged(&["run", "-c", file]);
    command.env("STATE_DIRECTORY", &folder.0).stderr(fs::File::create(&log).unwrap());
    let mut process = Process::start(&mut command);
    let text = || fs::read_to_string(&log).unwrap();
    let until = Instant::now() + PATIENCE;
    while !text().contains("event=\"started\"") {
        assert!(Instant::now() < until, "{}", text());
        std::thread::sleep(Duration::from_millis(20));
    }
    let line = text().lines().find(|line| line.contains("event=\"steering\"")).map(str::to_owned).unwrap_or_default();
    for part in ["WARN", "by=\"kernel\"", "wanted=\"auto\"", "missing=\"CAP_BPF", "cost=\"all calls", "remedy="] {
        assert!(line.contains(part), "{part}: {line}");
    }
    for number in 0..500 {
        let call_id = format!("{number}@unprivileged");
        caller.send(&caller.request("OPTIONS", "sip:x@example", &call_id, 1), ([127, 0, 0, 1], listen).into());
        let (request, from) = backend.receive();
        backend.send(&answer(&request, "200 OK"), from);
        assert!(caller.receive().0.contains(&call_id));
    }
    process.signal("INT");
    assert_eq!(process.wait(PATIENCE).and_then(|status| status.code()), Some(0), "{}", text());
    assert!(text().contains("received=1000 forwarded=1000"), "{}", text());
}

#[test]
fn two_capabilities_are_enough_to_steer_and_one_is_not() {
    if !has_peer("setpriv") {
        return;
    }
    let doctor = |capabilities: &str| {
        let program = viahop(&[]);
        let mut command = Command::new("setpriv");
        command.args([&format!("--bounding-set=-all{capabilities}"), "--inh-caps=-all", "--"]);
        command.arg(program.get_program()).arg("doctor").env("NO_COLOR", "1");
        output(&mut command).1
    };
    let said = doctor(",+bpf,+perfmon");
    if said.contains("one shard") || !said.contains("steering: by Call-ID") {
        let required = std::env::var("VIAHOP_PEERS").as_deref() == Ok("required") && said.contains("this is root");
        assert!(!required || said.contains("one shard"), "{said}");
        return skip("this user has no capabilities to keep two of, or one core");
    }
    assert!(doctor(",+bpf").contains("missing is CAP_PERFMON"), "{}", doctor(",+bpf"));
}

/// By one port towards backends and without the program, answers come to any shard: word of them is passed on, so that no
/// INVITE seems to ring for ever.
#[test]
fn word_of_an_answer_reaches_the_shard_whose_invite_it_ends() {
    let _alone = alone();
    let backends: Vec<Peer> = (0..6).map(|_| Peer::new()).collect();
    let callers: Vec<Peer> = (0..4).map(|_| Peer::new()).collect();
    let listen = free_port();
    let uris: Vec<String> =
        backends.iter().map(|one| format!("{{ uri = \"sip:{}\", max_open = 1 }}", one.address)).collect();
    let text = format!(
        "[balancer]\nshards = 2\nsteering = \"kernel\"\negress_mode = \"shared\"\n[[listen]]\n\
         address = \"udp:127.0.0.1:{listen}\"\n[[pool]]\n{UNPROBED}\nbackend = [{}]\n",
        uris.join(", ")
    );
    let viahop = Viahop::start("word", &text);
    let address: SocketAddr = ([127, 0, 0, 1], listen).into();
    for backend in &backends {
        backend.socket.set_nonblocking(true).unwrap();
    }
    for number in 0..300 {
        let caller = &callers[number % callers.len()];
        let call_id = format!("{number}@word");
        caller.send(&caller.request("INVITE", "sip:x@example", &call_id, 1).replace(";tag=2", ""), address);
        let until = Instant::now() + PATIENCE;
        let mut room = [0; 4096];
        let (backend, len, from) = loop {
            let got = backends
                .iter()
                .find_map(|one| one.socket.recv_from(&mut room).ok().map(|(len, from)| (one, len, from)));
            if let Some(got) = got {
                break got;
            }
            assert!(Instant::now() < until, "call {number} reached nobody: a backend seems to be full");
        };
        backend.send(&answer(std::str::from_utf8(&room[..len]).unwrap(), "486 Busy Here"), from);
        assert!(caller.receive().0.starts_with("SIP/2.0 486"));
    }
    let words = viahop.metric("viahop_handoffs_total", "");
    println!("{words} of 300 answers came to another shard than their INVITE's");
    assert!(words > 0.0 && words < 300.0, "{words}");
    assert_eq!(
        (viahop.metric("viahop_handoffs_lost_total", ""), viahop.metric("viahop_backend_full_total", "")),
        (0.0, 0.0)
    );
    viahop.end();
}

#[test]
fn requests_leave_from_the_ports_that_are_configured() {
    let backend = Peer::new();
    let (listen, first) = (free_port(), free_ports(21));
    let range = format!("{first}-{}", first + 20);
    let text = config(listen, &[backend.address.port()], UNPROBED);
    let viahop = Viahop::start("ports", &with(&format!("egress_ports = \"{range}\""), &text));
    let status = viahop.status();
    let ports: BTreeSet<u64> =
        status["shards"].as_array().unwrap().iter().map(|shard| shard["egress_port_v4"].as_u64().unwrap()).collect();
    assert_eq!(ports.len(), 2);
    assert!(ports.iter().all(|&port| port >= u64::from(first) && port <= u64::from(first) + 20), "{ports:?}");
    viahop.end();
    let folder = Folder::new("too-few-ports");
    let taken = UdpSocket::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for (ports, expected) in [(format!("{port}"), "no free port among"), ("9-8".into(), "is not a range of ports")] {
        let file = folder.write("viahop.toml", &with(&format!("egress_ports = \"{ports}\""), &text));
        let (code, _, said) = output(&mut viahop_check(&file));
        assert!((3..=4).contains(&code) && said.contains(expected), "{code}\n{said}");
    }
}

fn viahop_check(file: &std::path::Path) -> Command {
    viahop(&["check", file.to_str().unwrap()])
}

/// Connections stay with the shard that the kernel gave them to.
#[test]
fn where_no_port_is_for_datagrams_nothing_is_missing() {
    let listen = free_port();
    let text = with("steering = \"call-id\"", &config(listen, &[free_port()], UNPROBED)).replacen("udp:", "tcp:", 1);
    let viahop = Viahop::start("no-datagrams", &text);
    assert_eq!(viahop.status()["steering"]["missing"], Value::Null);
    viahop.end();
}
