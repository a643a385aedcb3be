//! `viahop ctl` against a running viahop, with calls through it.

use crate::live::{Folder, PATIENCE, Process, UNPROBED, Viahop, config, free_port, output, udp_server, viahop};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use viahop::sys::uninterrupted;

/// What a server was sent: method and Call-ID.
type Received = Arc<Mutex<Vec<(String, String)>>>;

/// A server that answers everything with a 200, as one that stays in the dialog does, and writes down what it was sent.
pub struct Server {
    pub port: u16,
    received: Received,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub fn start() -> Server {
        Server::start_at("127.0.0.1")
    }

    pub fn start_at(host: &str) -> Server {
        let port = free_port();
        let socket = UdpSocket::bind((host, port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (received, stop) = (Received::default(), Arc::new(AtomicBool::new(false)));
        let (log, stopped) = (received.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut room = vec![0; 65_536];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((len, from)) = socket.recv_from(&mut room) else { continue };
                let text = String::from_utf8_lossy(&room[..len]).into_owned();
                let method = text.split(' ').next().unwrap().to_owned();
                log.lock().unwrap().push((method, row(&text, "Call-ID").unwrap()));
                socket.send_to(answer(&text, port).as_bytes(), from).unwrap();
            }
        });
        Server { port, received, stop, thread: Some(thread) }
    }

    fn name(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// How many requests of this method it was sent.
    pub fn count(&self, method: &str) -> usize {
        self.received.lock().unwrap().iter().filter(|(one, _)| one == method).count()
    }

    pub fn has(&self, method: &str, call_id: &str) -> bool {
        self.received.lock().unwrap().iter().any(|(one, id)| one == method && id == call_id)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn rows<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = String> + 'a {
    let rows = text.split("\r\n").filter_map(|line| line.split_once(':'));
    rows.filter(move |(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
}

fn row(text: &str, name: &str) -> Option<String> {
    rows(text, name).next()
}

fn answer(request: &str, port: u16) -> String {
    let mut answer = "SIP/2.0 200 OK\r\n".to_owned();
    for line in request.split("\r\n").skip(1) {
        let is = |name: &str| line.to_ascii_lowercase().starts_with(name);
        if is("via:") || is("record-route:") || is("from:") || is("call-id:") || is("cseq:") {
            answer.push_str(&format!("{line}\r\n"));
        } else if is("to:") {
            let tag = if line.contains(";tag=") { "" } else { ";tag=uas" };
            answer.push_str(&format!("{line}{tag}\r\n"));
        }
    }
    answer + &format!("Contact: <sip:uas@127.0.0.1:{port}>\r\nContent-Length: 0\r\n\r\n")
}

/// A caller.
pub struct Phone {
    socket: UdpSocket,
    target: u16,
}

impl Phone {
    pub fn new(target: u16) -> Phone {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Phone { socket, target }
    }

    fn ask(&self, method: &str, call_id: &str, tag: &str, routes: &str) -> String {
        let request = format!(
            "{method} sip:bob@example.net SIP/2.0\r\nVia: SIP/2.0/UDP {};branch=z9hG4bK{call_id}{method};rport\r\n\
             Max-Forwards: 70\r\n{routes}From: <sip:a@example.net>;tag=1\r\nTo: <sip:bob@example.net>{tag}\r\n\
             Call-ID: {call_id}\r\nCSeq: 1 {method}\r\n\
             User-Agent: a phone with a name of some length\r\nContent-Length: 0\r\n\r\n",
            self.socket.local_addr().unwrap()
        );
        self.socket.send_to(request.as_bytes(), ("127.0.0.1", self.target)).unwrap();
        let mut room = vec![0; 65_536];
        loop {
            let len = uninterrupted(|| self.socket.recv(&mut room));
            let len = len.unwrap_or_else(|error| panic!("{method} {call_id}: {error}"));
            let text = String::from_utf8_lossy(&room[..len]).into_owned();
            if row(&text, "Call-ID").as_deref() == Some(call_id) {
                return text;
            }
        }
    }

    /// Begins a call. Returns the route set of its dialog, as header rows.
    pub fn call(&self, call_id: &str) -> String {
        let answer = self.ask("INVITE", call_id, "", "");
        assert!(answer.starts_with("SIP/2.0 200"), "{answer}");
        rows(&answer, "Record-Route").map(|value| format!("Route: {value}\r\n")).collect()
    }

    pub fn hang_up(&self, call_id: &str, routes: &str) -> String {
        self.ask("BYE", call_id, ";tag=uas", routes)
    }
}

/// Runs `viahop ctl` over the socket of `viahop`.
fn ctl(viahop: &Viahop, args: &[&str]) -> (i32, String, String) {
    let socket = viahop.folder.0.join("ctl.sock");
    output(&mut crate::live::viahop(&[&["ctl", "--socket", socket.to_str().unwrap()], args].concat()))
}

pub fn ctl_ok(viahop: &Viahop, args: &[&str]) -> String {
    let (code, stdout, stderr) = ctl(viahop, args);
    assert_eq!(code, 0, "{args:?}: {stderr}\n{}", viahop.log());
    stdout
}

fn ctl_json(viahop: &Viahop, args: &[&str]) -> Value {
    serde_json::from_str(&ctl_ok(viahop, &[args, &["--format", "json"]].concat())).unwrap()
}

pub const PROBED: &str = "health = { interval = \"200ms\", timeout = \"150ms\" }";

/// A viahop over `count` servers, and a phone.
fn stage(name: &str, count: usize, pool: &str) -> (Viahop, Vec<Server>, Phone) {
    let servers: Vec<Server> = (0..count).map(|_| Server::start()).collect();
    let ports: Vec<u16> = servers.iter().map(|server| server.port).collect();
    let listen = free_port();
    let viahop = Viahop::start(name, &config(listen, &ports, pool));
    (viahop, servers, Phone::new(listen))
}

#[test]
fn a_draining_backend_gets_no_new_call_and_every_request_of_its_calls() {
    let (viahop, servers, phone) = stage("ctl-drain", 3, PROBED);
    let routes: BTreeMap<String, String> =
        (0..150).map(|n| format!("old-{n}")).map(|id| (id.clone(), phone.call(&id))).collect();
    let said = ctl_ok(&viahop, &["backend", &servers[0].name(), "drain"]);
    assert!(said.contains("no new calls") && said.contains('%'), "{said}");
    assert_eq!(viahop.metric("viahop_backend_operator_state", "state=\"drain\""), 1.0);
    let before = servers[0].count("INVITE");
    assert!(before > 20, "{before}");
    for number in 0..300 {
        phone.call(&format!("new-{number}"));
    }
    assert_eq!(servers[0].count("INVITE"), before, "a draining backend got a new call");
    // What has no answer yet belongs to it as well: the INVITE again, by the memory of open ones.
    let (own, _) = routes.iter().find(|(id, _)| servers[0].has("INVITE", id)).unwrap();
    phone.call(own);
    assert_eq!(servers[0].count("INVITE"), before + 1, "the retransmission went elsewhere");
    for (call_id, routes) in &routes {
        assert!(phone.hang_up(call_id, routes).starts_with("SIP/2.0 200"));
        let home = servers.iter().find(|server| server.has("INVITE", call_id)).unwrap();
        assert!(home.has("BYE", call_id), "the BYE of {call_id} went elsewhere");
    }
    // A reload does not forget it; ready ends it.
    viahop.process.signal("HUP");
    viahop.wait_until("the reload", PATIENCE, |status| status["generation"].as_u64() >= Some(3));
    assert_eq!(viahop.status()["backends"][0]["operator"], "drain");
    assert_eq!(viahop.status()["backends"][0]["flags"], "DP");
    ctl_ok(&viahop, &["backend", &servers[0].name(), "ready"]);
    for number in 0..100 {
        phone.call(&format!("again-{number}"));
    }
    assert!(servers[0].count("INVITE") > before + 10);
    viahop.end();
}

#[test]
fn a_pool_is_said_to_be_empty_when_new_calls_are_refused_and_not_when_it_panics() {
    for (pool, is_empty) in [("", true), ("panic = 1\n", false)] {
        let (viahop, mut servers, phone) = stage("ctl-empty", 2, &format!("{pool}{PROBED}"));
        ctl_ok(&viahop, &["backend", &servers[0].name(), "drain"]);
        drop(servers.pop());
        viahop.wait_until("the other is down", PATIENCE, |status| status["backends"][1]["state"] == "down");
        if is_empty {
            assert!(phone.ask("INVITE", "nowhere", "", "").starts_with("SIP/2.0 503"));
        }
        assert_eq!(viahop.status()["ready"], !is_empty);
        let log = viahop.end();
        assert_eq!((log.contains("pool_empty"), log.contains("pool_panic")), (is_empty, !is_empty), "{log}");
    }
}

#[test]
fn a_sigterm_behind_a_drain_leaves_it_its_time_and_a_second_one_does_not() {
    let (mut viahop, _servers, _phone) = stage("ctl-term", 1, PROBED);
    ctl_ok(&viahop, &["drain"]);
    viahop.process.signal("TERM");
    assert!(viahop.process.wait(Duration::from_secs(1)).is_none(), "{}", viahop.log());
    viahop.process.signal("TERM");
    let status = viahop.process.wait(Duration::from_secs(3));
    assert_eq!(status.and_then(|status| status.code()), Some(0), "{}", viahop.log());
}

#[test]
fn silent_connections_to_the_endpoint_take_few_descriptors_and_not_the_socket() {
    let (viahop, _servers, phone) = stage("ctl-silent", 1, PROBED);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", viahop.process.0.id())).unwrap().count();
    let before = descriptors();
    let silent: Vec<_> = (0..100).map(|_| std::net::TcpStream::connect(viahop.admin).unwrap()).collect();
    let until = Instant::now() + PATIENCE;
    while descriptors() <= before {
        assert!(Instant::now() < until, "none is accepted");
    }
    let said = ctl_ok(&viahop, &["status"]);
    assert!(said.contains("ready") && phone.ask("OPTIONS", "meanwhile", "", "").starts_with("SIP/2.0 200"));
    let more = descriptors().saturating_sub(before);
    assert!((1..80).contains(&more), "{more} for 100 connections");
    drop(silent);
    viahop.end();
}

#[test]
fn a_backend_in_maintenance_gets_nothing_not_even_probes_until_it_is_ready() {
    let (viahop, servers, phone) = stage("ctl-maint", 2, PROBED);
    let ids: Vec<String> = (0..40).map(|n| format!("call-{n}")).collect();
    let routes: Vec<String> = ids.iter().map(|id| phone.call(id)).collect();
    ctl_ok(&viahop, &["backend", &servers[1].name(), "maint"]);
    // A probe that was on its way is in front of this.
    std::thread::sleep(Duration::from_millis(300));
    Phone::new(servers[1].port).call("marker");
    let before = servers[1].received.lock().unwrap().len();
    for (id, routes) in ids.iter().zip(&routes) {
        phone.hang_up(id, routes);
        phone.call(&format!("{id}-new"));
    }
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(servers[1].received.lock().unwrap().len(), before, "{:?}", servers[1].received.lock().unwrap().last());
    assert!(viahop.metric("viahop_dialogs_orphaned_total", "") > 0.0);
    let probes = servers[1].count("OPTIONS");
    ctl_ok(&viahop, &["backend", &servers[1].name(), "ready"]);
    let until = Instant::now() + PATIENCE;
    while servers[1].count("OPTIONS") == probes {
        assert!(Instant::now() < until, "it is not probed again");
    }
    for number in 0..40 {
        phone.call(&format!("after-{number}"));
    }
    assert!(servers[1].count("INVITE") > 5);
    viahop.end();
}

#[test]
fn a_weight_moves_calls_from_or_to_that_backend_only() {
    let (viahop, servers, phone) = stage("ctl-weight", 3, UNPROBED);
    let homes = |round: &str| -> Vec<usize> {
        servers.iter().for_each(|server| server.received.lock().unwrap().clear());
        (0..200)
            .map(|number| {
                phone.ask("OPTIONS", &format!("weight-{number}"), "", "");
                let has = |server: &Server| server.has("OPTIONS", &format!("weight-{number}"));
                servers.iter().position(has).unwrap_or_else(|| panic!("{round} {number}"))
            })
            .collect()
    };
    let even = homes("even");
    let said = ctl_json(&viahop, &["backend", &format!("proxies/{}", servers[2].name()), "weight", "400"]);
    assert!((said["keys_moved"].as_f64().unwrap() - 1.0 / 3.0).abs() < 0.02, "{said}");
    let heavy = homes("heavy");
    assert!(even.iter().zip(&heavy).all(|(old, new)| old == new || *new == 2), "calls moved between the others");
    let share = heavy.iter().filter(|home| **home == 2).count();
    // Thrown like dice: five standard deviations.
    assert!((100..=166).contains(&share), "{share} of 200, ideally 133");
    ctl_ok(&viahop, &["backend", &servers[2].name(), "weight", "0"]);
    assert!(homes("none").iter().all(|home| *home != 2));
    ctl_ok(&viahop, &["backend", &servers[2].name(), "weight", "100"]);
    assert_eq!(homes("even again"), even);
    let (code, _, stderr) = ctl(&viahop, &["backend", &servers[2].name(), "weight", "10001"]);
    assert_eq!(code, 2, "{stderr}");
    viahop.end();
}

#[test]
fn the_file_may_say_drain_and_the_last_backend_that_goes_is_warned_about() {
    let servers = [Server::start(), Server::start()];
    let listen = free_port();
    let text = config(listen, &[servers[0].port, servers[1].port], UNPROBED);
    let text =
        text.replace(&format!("{}\" }}", servers[0].name()), &format!("{}\", state = \"drain\" }}", servers[0].name()));
    let viahop = Viahop::start("ctl-file", &text);
    let phone = Phone::new(listen);
    for number in 0..30 {
        phone.call(&format!("file-{number}"));
    }
    assert_eq!((servers[0].count("INVITE"), servers[1].count("INVITE")), (0, 30));
    let said = ctl_ok(&viahop, &["backend", &servers[1].name(), "maint"]);
    assert!(said.contains("WARNING: no backend of proxies takes new calls"), "{said}");
    assert_eq!(viahop.status()["ready"], false);
    assert!(phone.ask("INVITE", "nobody", "", "").starts_with("SIP/2.0 503"));
    viahop.end();
}

#[test]
fn a_dry_run_tells_what_would_change_and_changes_nothing() {
    let servers: Vec<Server> = (0..4).map(|_| Server::start()).collect();
    let ports: Vec<u16> = servers.iter().map(|server| server.port).collect();
    let listen = free_port();
    let viahop = Viahop::start("ctl-dry", &config(listen, &ports[..3], UNPROBED));
    viahop.write_config(&config(listen, &[ports[0], ports[1], ports[3]], UNPROBED));
    let said = ctl_ok(&viahop, &["reload", "--dry-run"]);
    for part in [format!("+ {}", servers[3].name()), format!("- {}", servers[2].name()), "nothing of this".into()] {
        assert!(said.contains(&part), "{part} is missing in\n{said}");
    }
    // What is not of the cluster is told as well.
    viahop.write_config(
        &config(listen, &ports[..3], UNPROBED).replace("shards", "drain = \"9s\"\ngso = \"off\"\nshards"),
    );
    let said = ctl_ok(&viahop, &["reload", "--dry-run"]);
    assert!(said.contains("changed besides: drain, gso\n") && !said.contains("nothing would change"), "{said}");
    viahop.write_config(&config(listen, &[ports[0], ports[1], ports[3]], UNPROBED));
    let claimed = ctl_json(&viahop, &["reload", "--dry-run"])["plan"]["pools"][0]["keys_moved"].as_f64().unwrap();
    assert_eq!(
        (viahop.status()["generation"].as_u64(), viahop.status()["backends"].as_array().unwrap().len()),
        (Some(1), 3)
    );
    assert!(!viahop.log().contains("event=\"reloaded\""), "{}", viahop.log());
    // A file with an error is shown with its place, and is not held against the running configuration.
    let good = config(listen, &[ports[0], ports[1], ports[3]], UNPROBED);
    viahop.write_config(&good.replace("backend =", "bakcend ="));
    let (code, _, stderr) = ctl(&viahop, &["reload", "--dry-run"]);
    assert!(code == 3 && stderr.contains("`bakcend`") && stderr.contains('^'), "{code}: {stderr}");
    assert_eq!(viahop.status()["reload"]["ok"], true);
    assert_eq!(ctl(&viahop, &["reload"]).0, 3);
    assert_eq!(viahop.status()["reload"]["ok"], false);
    // Done, it moves what was claimed.
    viahop.write_config(&good);
    let done = ctl_json(&viahop, &["reload"]);
    assert_eq!(done["plan"]["pools"][0]["keys_moved"].as_f64(), Some(claimed));
    assert_eq!(viahop.metric("viahop_affinity_moves_total", "reload"), claimed * 65_536.0);
    assert_eq!(viahop.status()["generation"], done["generation"]);
    viahop.end();
}

#[test]
fn reloads_at_the_same_time_are_done_one_by_one_or_refused_in_words() {
    let (viahop, _servers, _) = stage("ctl-race", 2, UNPROBED);
    let socket = viahop.folder.0.join("ctl.sock");
    let start = || {
        let mut command = crate::live::viahop(&["ctl", "--socket", socket.to_str().unwrap(), "reload"]);
        std::thread::spawn(move || output(&mut command))
    };
    let asked: Vec<_> = (0..6).map(|_| start()).collect();
    let mut done = 0;
    for asked in asked {
        match asked.join().unwrap() {
            (0, stdout, _) => {
                assert!(stdout.contains("in force as tables number"), "{stdout}");
                done += 1;
            }
            (1, _, stderr) => assert!(stderr.contains("is being read already"), "{stderr}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(done > 0);
    assert_eq!(viahop.status()["generation"], 1 + done);
    viahop.end();
}

#[test]
fn a_wrong_name_is_answered_with_the_one_that_was_meant() {
    let (viahop, servers, _) = stage("ctl-name", 2, UNPROBED);
    let wrong = servers[0].name().replace("127.0.0.1", "127.0.0.l");
    let (code, _, stderr) = ctl(&viahop, &["backend", &wrong, "drain"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("there is no backend") && stderr.contains("did you mean `127.0.0.1:"), "{stderr}");
    assert_eq!(ctl(&viahop, &["backend", &servers[0].name(), "drian"]).0, 2);
    assert_eq!(viahop.status()["generation"], 1);
    viahop.end();
}

#[test]
fn the_socket_is_its_owners_alone_and_one_path_serves_one_viahop() {
    let (mut first, _servers, _) = stage("ctl-socket", 1, UNPROBED);
    let socket = first.folder.0.join("ctl.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let path = socket.to_str().unwrap().to_owned();
    let second = |port: u16| {
        let listen = format!("udp:127.0.0.1:{port}");
        let mut command = viahop(&["run", "--listen", &listen, "--backend", "sip:127.0.0.1:9", "--no-probe"]);
        command.args(["--admin", "off", "--shards", "1", "--socket", &path]).env("STATE_DIRECTORY", &first.folder.0);
        command
    };
    let (code, _, stderr) = output(&mut second(free_port()));
    assert_eq!(code, 4, "{stderr}");
    let pid = first.process.0.id();
    assert!(stderr.contains(&format!("the viahop with pid {pid} has it")), "{stderr}");
    // Killed, it leaves the file of its socket; the next takes the path all the same.
    let mut heir = second(free_port());
    first.process.0.kill().unwrap();
    first.process.0.wait().unwrap();
    assert!(socket.exists());
    let log = std::fs::File::create(first.folder.0.join("heir.log")).unwrap();
    let mut heir = Process::start(heir.stderr(log));
    let until = Instant::now() + PATIENCE;
    while output(&mut viahop(&["ctl", "--socket", &path, "status"])).0 != 0 {
        assert!(Instant::now() < until);
    }
    heir.signal("INT");
    assert_eq!(heir.wait(PATIENCE).and_then(|status| status.code()), Some(0));
    assert!(!socket.exists(), "it takes its socket along");
    let (code, _, stderr) = output(&mut viahop(&["ctl", "--socket", &path, "status"]));
    assert_eq!(code, 5);
    assert!(stderr.contains("no viahop answers") && stderr.contains("there is no such socket"), "{stderr}");
}

#[test]
fn over_http_changes_go_by_post_and_never_for_a_page_in_a_browser() {
    let (viahop, servers, _) = stage("ctl-http", 2, UNPROBED);
    let agent = ureq::Agent::from(ureq::Agent::config_builder().http_status_as_error(false).build());
    let url = |path: &str| format!("http://{}{path}", viahop.admin);
    let got = agent.get(url("/backend")).call().unwrap();
    assert_eq!(got.status(), 405);
    assert_eq!(got.headers()["allow"], "POST");
    let body = format!("{{\"backend\": \"{}\", \"state\": \"drain\"}}", servers[0].name());
    let posted = agent.post(url("/backend")).header("Origin", "http://example.net").send(&body).unwrap();
    assert_eq!(posted.status(), 403);
    assert_eq!(agent.get(url("/events")).header("Origin", "null").call().unwrap().status(), 403);
    assert_eq!(agent.post(url("/backend")).send("{\"backend\": \"x\", \"sate\": 1}").unwrap().status(), 400);
    assert_eq!(agent.post(url("/backend")).send("{\"backend\": \"x\", \"state\": \"drain\"}").unwrap().status(), 404);
    assert_eq!(agent.get(url("/evnts")).call().unwrap().status(), 404);
    assert_eq!(viahop.status()["generation"], 1);
    assert_eq!(agent.post(url("/backend")).send(&body).unwrap().status(), 200);
    let args = ["ctl", "--url", &url(""), "backend", &servers[0].name(), "ready"];
    assert_eq!(output(&mut crate::live::viahop(&args)).0, 0);
    assert_eq!(viahop.status()["generation"], 3);
    viahop.end();
}

#[test]
fn answers_come_as_tables_json_csv_and_as_kamcmd_prints_them() {
    let (viahop, servers, _) = stage("ctl-formats", 2, UNPROBED);
    ctl_ok(&viahop, &["backend", &servers[1].name(), "maint"]);
    let table = ctl_ok(&viahop, &["backends"]);
    assert!(table.starts_with("pool") && table.contains("maint") && table.contains("DX"), "{table}");
    let status = ctl_ok(&viahop, &["status"]);
    assert!(status.contains("ready\n") && status.contains("shard") && status.contains("busy"), "{status}");
    let json = ctl_json(&viahop, &["backends"]);
    assert_eq!((&json[1]["operator"], &json[1]["takes_new"]), (&"maint".into(), &false.into()));
    let csv = ctl_ok(&viahop, &["backends", "--format", "csv"]);
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!((lines.len(), lines[0].split(',').count(), lines[2].split(',').count()), (3, 18, 18), "{csv}");
    let kamcmd = ctl_ok(&viahop, &["backends", "--format", "kamcmd"]);
    assert!(kamcmd.contains(&format!("URI: sip:{}", servers[0].name())) && kamcmd.contains("FLAGS: AX"), "{kamcmd}");
    let events = ctl_ok(&viahop, &["events", "--json"]);
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = events.last().unwrap();
    assert_eq!((&last["event"], &last["fields"]["state"]), (&"backend_changed".into(), &"maint".into()));
    assert_eq!(ctl(&viahop, &["status", "--format", "csv"]).0, 2);
    viahop.end();
}

#[test]
fn a_message_that_cannot_be_read_is_shown_with_a_mark_under_the_place() {
    let (viahop, _servers, phone) = stage("ctl-errors", 1, UNPROBED);
    assert!(ctl_ok(&viahop, &["errors"]).contains("every message so far could be read"));
    let from = phone.socket.local_addr().unwrap();
    let via = format!("Via: SIP/2.0/UDP {from};branch=z9hG4bKx;rport\r\n");
    let rest =
        "From: <sip:a@b>;tag=1\r\nTo: <sip:b@b>\r\nCall-ID: bad\r\nCSeq: 1 INVITE\r\nUser-Agent: some words more\r\n";
    let message = format!("INVITE sip:b@b SIP/2.0\r\n{via}{rest}Subject \x1b[2J\r\n\r\n");
    let offset = message.find("Subject").unwrap();
    phone.socket.send_to(message.as_bytes(), ("127.0.0.1", phone.target)).unwrap();
    let mut room = [0; 4096];
    assert!(uninterrupted(|| phone.socket.recv(&mut room)).is_ok_and(|_| room.starts_with(b"SIP/2.0 400 ")));
    let mut said = String::new();
    // The caller may know it before the control plane does.
    viahop.wait_until("it is told", PATIENCE, |_| {
        said = ctl_ok(&viahop, &["errors"]);
        !said.contains("every message so far could be read")
    });
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].contains(&from.to_string()) && lines[0].contains("a line that is not a header"), "{said}");
    assert!(lines[1].contains(&format!("octet {offset} of {}, answered 400", message.len())), "{said}");
    assert_eq!((lines[2], lines[3]), ("  | Subject \\x1b[2J\\r\\n", "  | ^"), "{said}");
    let json = ctl_json(&viahop, &["errors"]);
    assert_eq!((&json[0]["offset"], &json[0]["line_offset"]), (&offset.into(), &offset.into()));
    // However many come, few are told of.
    for _ in 0..500 {
        phone.socket.send_to(message.as_bytes(), ("127.0.0.1", phone.target)).unwrap();
    }
    viahop.wait_until("all are counted", PATIENCE, |status| status["messages"]["replied"].as_u64() >= Some(400));
    let told = ctl_json(&viahop, &["errors", "-n", "1000"]).as_array().unwrap().len();
    assert!((2..=64).contains(&told), "{told}");
    viahop.end();
}

#[test]
fn a_trace_shows_the_messages_of_its_call_and_of_no_other_and_ends_by_itself() {
    let (viahop, servers, phone) = stage("ctl-trace", 2, UNPROBED);
    let socket = viahop.folder.0.join("ctl.sock");
    let mut command = crate::live::viahop(&[
        "ctl",
        "--socket",
        socket.to_str().unwrap(),
        "trace",
        "--call-id",
        "this",
        "--seconds",
        "2",
    ]);
    let trace = std::thread::spawn(move || output(&mut command));
    let until = Instant::now() + PATIENCE;
    while !viahop.log().contains("event=\"trace_started\"") {
        assert!(Instant::now() < until, "{}", viahop.log());
    }
    let routes = phone.call("this");
    phone.call("another");
    phone.hang_up("this", &routes);
    let (code, said, stderr) = trace.join().unwrap();
    assert_eq!(code, 0, "{stderr}");
    // A request and its response, twice.
    assert_eq!(said.matches("from 127.0.0.1:").count(), 4, "{said}");
    let home = servers.iter().find(|server| server.has("INVITE", "this")).unwrap().name();
    assert!(said.contains("INVITE sip:bob@example.net SIP/2.0") && said.contains("its key, slot"), "{said}");
    assert!(
        said.contains("the token in its Route names it") && said.contains(&format!("backend proxies/{home}")),
        "{said}"
    );
    assert_eq!(viahop.status()["generation"], 1, "nothing is decided otherwise");
    assert_eq!(ctl(&viahop, &["trace", "--call-id", "x", "--seconds", "0"]).0, 2);
    viahop.end();
}

#[test]
fn a_drain_that_is_waited_for_returns_when_the_process_has_ended() {
    let (mut viahop, _servers, _) = stage("ctl-end", 1, UNPROBED);
    let (code, stdout, stderr) = ctl(&viahop, &["drain", "--wait"]);
    assert_eq!((code, &stdout[..]), (0, "ended\n"), "{stderr}");
    assert!(stderr.contains("draining: it ends when 5 s pass"), "{stderr}");
    let status = viahop.process.wait(PATIENCE);
    assert_eq!(status.and_then(|status| status.code()), Some(0), "{}", viahop.log());
}

/// A supervisor may start another at once, which answers at the same place and has nothing to do with it.
#[test]
fn a_drain_that_is_waited_for_does_not_wait_for_who_came_in_its_place() {
    let answer = json!({ "is_first": true, "ends_within_s": 1, "draining": false }).to_string();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(if request.starts_with(b"POST") { &b"{}"[..] } else { &b"\r\n\r\n"[..] }) {
                let mut room = [0; 4096];
                let length = uninterrupted(|| stream.read(&mut room)).unwrap();
                request.extend_from_slice(&room[..length]);
            }
            let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", answer.len());
            stream.write_all((head + &answer).as_bytes()).ok();
        }
    });
    let mut waiting = Process::start(&mut viahop(&["ctl", "--url", &url, "drain", "--wait"]));
    assert_eq!(waiting.wait(PATIENCE).and_then(|status| status.code()), Some(0));
}

/// A call that rings at a server while `meanwhile` happens, and is answered then, at the port that it came from. Returns the
/// viahop between the two.
fn answered_after(name: &str, keys: &str, meanwhile: impl FnOnce(&mut Viahop)) -> Viahop {
    let server = udp_server();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let (listen, port) = (free_port(), server.local_addr().unwrap().port());
    let text = config(listen, &[port], UNPROBED).replace("shards = 2", keys);
    let mut viahop = Viahop::start(name, &text);
    let caller = std::thread::spawn(move || Phone::new(listen).ask("INVITE", "rings", "", ""));
    let mut room = vec![0; 65_536];
    let (len, shard) = uninterrupted(|| server.recv_from(&mut room)).unwrap();
    meanwhile(&mut viahop);
    server.send_to(answer(&String::from_utf8_lossy(&room[..len]), port).as_bytes(), shard).unwrap();
    assert!(caller.join().unwrap().starts_with("SIP/2.0 200"));
    viahop
}

/// Its answer comes to a port of this process, and nobody may start another one to take that over.
#[test]
fn a_drain_waits_for_the_answer_to_a_call_that_rings() {
    let mut viahop = answered_after("ctl-rings", "shards = 2", |viahop| {
        ctl_ok(viahop, &["drain"]);
        assert!(viahop.process.wait(Duration::from_secs(7)).is_none(), "{}", viahop.log());
    });
    let status = viahop.process.wait(PATIENCE);
    assert_eq!(status.and_then(|status| status.code()), Some(0), "{}", viahop.log());
}

#[test]
fn a_call_that_rings_over_a_restart_is_answered() {
    let chosen = format!("shards = 1\negress_ports = \"{}\"", free_port());
    // Without a word about ports the next process takes those of the one before.
    for keys in [&chosen, "shards = 2", "shards = 2\negress_mode = \"shared\""] {
        let viahop = answered_after("ctl-again", keys, Viahop::restart);
        assert!(!viahop.end().contains("ports_not_kept"), "{keys}");
    }
}

/// RFC 3261 16.11: from another port it would be another transaction to the server, and a CANCEL the cancel of nothing.
#[test]
fn a_retransmission_behind_a_restart_leaves_as_the_same_octets_from_the_same_port() {
    let server = udp_server();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let (listen, port) = (free_port(), server.local_addr().unwrap().port());
    let mut viahop = Viahop::start("ctl-same", &config(listen, &[port], UNPROBED));
    let phone = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = phone.local_addr().unwrap();
    // Each by its Call-ID, and where it came from.
    let sent = |method: &str| {
        let calls = (0..16).map(|number| {
            let request = format!(
                "{method} sip:bob@example.net SIP/2.0\r\nVia: SIP/2.0/UDP {at};branch=z9hG4bK{number};rport\r\nMax-Forwards: 70\r\n\
                 From: <sip:a@example.net>;tag=1\r\nTo: <sip:bob@example.net>\r\nCall-ID: same-{number}\r\nCSeq: 1 {method}\r\n\
                 Content-Length: 0\r\n\r\n"
            );
            phone.send_to(request.as_bytes(), ("127.0.0.1", listen)).unwrap();
            let mut room = vec![0; 65_536];
            let (len, shard) = uninterrupted(|| server.recv_from(&mut room)).unwrap();
            (String::from_utf8_lossy(&room[..len]).into_owned(), shard)
        });
        calls.collect::<Vec<_>>()
    };
    let before = sent("INVITE");
    viahop.restart();
    assert_eq!(sent("INVITE"), before);
    // What a server tells transactions apart by, without the token behind it.
    let transaction =
        |(text, _): &(String, SocketAddr)| row(text, "Via").unwrap().split(";vh=").next().unwrap().to_owned();
    let of = |all: &[(String, SocketAddr)]| all.iter().map(transaction).collect::<Vec<_>>();
    assert_eq!(of(&sent("CANCEL")), of(&before));
    viahop.end();
}

#[test]
fn a_port_that_somebody_has_taken_meanwhile_is_passed_over() {
    let (mut viahop, servers, phone) = stage("ctl-ports", 1, UNPROBED);
    let ports = |viahop: &Viahop| {
        let status = viahop.status();
        let shards = status["shards"].as_array().unwrap().iter();
        shards.map(|shard| shard["egress_port_v4"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let before = ports(&viahop);
    viahop.restart();
    assert_eq!(ports(&viahop), before);
    let mut taken = None;
    viahop.restart_after(|| taken = Some(UdpSocket::bind(("0.0.0.0", before[0] as u16)).unwrap()));
    let after = ports(&viahop);
    assert!(!after.contains(&before[0]) && after.contains(&before[1]), "{before:?}, {after:?}");
    phone.call("elsewhere");
    assert_eq!(servers[0].count("INVITE"), 1);
    viahop.end();
}

#[test]
fn nobody_there_is_exit_code_5_with_what_was_tried() {
    let folder = Folder::new("ctl-nobody");
    let mut command = viahop(&["ctl", "--url", &format!("http://127.0.0.1:{}", free_port()), "status"]);
    let (code, _, stderr) = output(command.current_dir(&folder.0));
    assert_eq!(code, 5);
    assert!(stderr.contains("nobody listens"), "{stderr}");
    for typed in ["127.0.0.1:8460", "https://127.0.0.1:8460", "http://"] {
        let (code, _, stderr) = output(&mut viahop(&["ctl", "--url", typed, "status"]));
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains("write http://ADDRESS:PORT"), "{stderr}");
    }
}

/// The kernel lets who connects wait for a place, however long that takes.
#[test]
fn a_viahop_that_hangs_is_exit_code_5_also_when_many_wait_for_it() {
    let (viahop, _servers, _) = stage("ctl-hung", 1, UNPROBED);
    viahop.process.signal("STOP");
    let path = viahop.folder.0.join("ctl.sock");
    let mut waiting = Vec::new();
    loop {
        let (path, (tell, told)) = (path.clone(), mpsc::channel());
        std::thread::spawn(move || tell.send(UnixStream::connect(path)));
        match told.recv_timeout(Duration::from_millis(500)) {
            Ok(stream) => waiting.push(stream),
            Err(_) => break,
        }
    }
    let mut command = crate::live::viahop(&["ctl", "--socket", path.to_str().unwrap(), "status"]);
    let ended = Process::start(&mut command).wait(PATIENCE);
    viahop.process.signal("CONT");
    assert_eq!(ended.and_then(|status| status.code()), Some(5));
    drop(waiting);
    viahop.end();
}

/// The file is a pipe, so that reading it takes as long as the test likes.
#[test]
fn a_second_reload_is_refused_while_one_is_being_read_and_the_first_goes_on() {
    let (viahop, _servers, _) = stage("busy", 2, PROBED);
    let path = viahop.folder.0.join("viahop.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    std::thread::scope(|scope| {
        let first = scope.spawn(|| ctl(&viahop, &["reload"]));
        // Opens as soon as somebody reads.
        let mut pipe = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        for _ in 0..3 {
            let (code, stdout, stderr) = ctl(&viahop, &["reload"]);
            assert!(code == 1 && stderr.contains("is being read already"), "{code} {stdout} {stderr}");
        }
        // Meanwhile the rest of the program lives.
        assert!(ctl_ok(&viahop, &["status"]).contains("ready"));
        pipe.write_all(text.as_bytes()).unwrap();
        drop(pipe);
        let (code, stdout, stderr) = first.join().unwrap();
        assert_eq!(code, 0, "{stdout} {stderr}");
    });
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, text).unwrap();
    ctl_ok(&viahop, &["reload"]);
    viahop.end();
}

#[test]
fn top_shows_a_screen_for_each_second() {
    let (viahop, servers, phone) = stage("top", 2, UNPROBED);
    let calls = std::thread::scope(|scope| {
        let shown = scope.spawn(|| ctl_ok(&viahop, &["top", "-n", "2"]));
        let mut calls = 0;
        while !shown.is_finished() {
            phone.call(&format!("top-{calls}"));
            calls += 1;
        }
        let shown = shown.join().unwrap();
        assert_eq!(shown.matches("received/s  forwarded/s").count(), 2, "{shown}");
        for server in &servers {
            let line = shown.lines().find(|line| line.contains(&server.name())).unwrap();
            let requests = line.split_whitespace().nth(4).unwrap().replace(',', "");
            assert!(requests.parse::<u64>().unwrap() > 0, "{line}");
        }
        calls
    });
    assert_eq!(servers.iter().map(|server| server.count("INVITE")).sum::<usize>(), calls);
    let (code, _, told) = ctl(&viahop, &["--format", "json", "top"]);
    assert!(code == 2 && told.contains("`status --format json`"), "{told}");
    viahop.end();
}
