//! Dialogs stay with their servers: SIPp on both sides, the set of backends changing under way.
//!
//! The judge is what the servers say they received: the server that got a call's INVITE is its home, and every other
//! request of the call has to arrive there.

use crate::live::{Folder, PATIENCE, Process, UNPROBED, Viahop, alone, calls, free_port, sipp, wait_for_port};
use crate::support::has_peer;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);

fn scenario(name: &str) -> String {
    format!("{}/tests/data/sipp/{name}.xml", env!("CARGO_MANIFEST_DIR"))
}

/// SIPp processes that play one scenario, each on a port of its own.
pub struct Servers {
    pub ports: Vec<u16>,
    folders: Vec<Folder>,
    pub processes: Vec<Process>,
}

impl Servers {
    pub fn start(count: usize, scenario: &str, more: &[&str]) -> Servers {
        let mut servers = Servers { ports: Vec::new(), folders: Vec::new(), processes: Vec::new() };
        (0..count).for_each(|_| servers.add(free_port(), scenario, more));
        servers
    }

    /// One of them, at this port.
    pub fn start_at(port: u16, scenario: &str) -> Servers {
        let mut servers = Servers::start(0, scenario, &[]);
        servers.add(port, scenario, &[]);
        servers
    }

    fn add(&mut self, port: u16, name: &str, more: &[&str]) {
        let folder = Folder::new(&format!("{name}-{port}"));
        let mut command = sipp(&folder.0);
        command.args(["-sf", &scenario(name), "-p", &port.to_string()]);
        command.args(["-trace_msg", "-message_file", "messages.log"]).args(more);
        self.processes.push(Process::start(&mut command));
        wait_for_port(port);
        self.ports.push(port);
        self.folders.push(folder);
    }

    /// What each received, by its message log.
    fn received(&self) -> Vec<Received> {
        let mut all = Vec::new();
        for (&port, folder) in self.ports.iter().zip(&self.folders) {
            let text = std::fs::read(folder.0.join("messages.log")).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let parts = text.split("-----------------------------------------------");
            for part in parts.filter(|part| part.contains("message received")) {
                let lines = || part.lines().skip_while(|line| !line.contains(" SIP/2.0"));
                let Some(method) = lines().next().and_then(|line| line.split(' ').next()) else { continue };
                let value =
                    |name: &str| lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
                let begins = matches!(method, "INVITE" | "SUBSCRIBE") && !value("To: ").contains(";tag=");
                all.push(Received { port, method: method.to_owned(), call_id: value("Call-ID: "), begins });
            }
        }
        all
    }

    /// Which server each call began at, how many later requests of these calls arrived, and which of those elsewhere.
    pub fn judge(&self) -> Judgement {
        let received = self.received();
        let mut homes: HashMap<String, BTreeSet<u16>> = HashMap::new();
        for one in received.iter().filter(|one| one.begins) {
            homes.entry(one.call_id.clone()).or_default().insert(one.port);
        }
        let later: Vec<_> = received.into_iter().filter(|one| !one.begins).collect();
        let in_calls = later.len();
        let is_stray = |one: &Received| homes.get(&one.call_id).is_none_or(|home| !home.contains(&one.port));
        let strays = later.into_iter().filter(is_stray).collect();
        Judgement { homes, in_calls, strays }
    }
}

/// A request at a server.
#[derive(Debug)]
struct Received {
    port: u16,
    method: String,
    call_id: String,
    /// Whether it begins a dialog.
    begins: bool,
}

pub struct Judgement {
    homes: HashMap<String, BTreeSet<u16>>,
    in_calls: usize,
    strays: Vec<Received>,
}

impl Judgement {
    /// Every call began at one server, and nothing of it came to another.
    pub fn assert_clean(&self, calls: usize, requests: usize) {
        assert!(self.strays.is_empty(), "{} of {} strayed: {:?}", self.strays.len(), self.in_calls, self.strays);
        let twice: Vec<_> = self.homes.iter().filter(|(_, homes)| homes.len() != 1).collect();
        assert!(twice.is_empty(), "{twice:?}");
        assert!(self.homes.len() == calls && self.in_calls >= requests, "{} {}", self.homes.len(), self.in_calls);
        println!("{} calls, {} requests within them, 0 misrouted", self.homes.len(), self.in_calls);
    }
}

/// SIPp as the caller.
pub fn caller(folder: &Folder, scenario_name: &str, target: u16, calls: u32, rate: u32, more: &[&str]) -> Process {
    let port = free_port().to_string();
    let mut command = sipp(&folder.0);
    command.args(["-sf", &scenario(scenario_name), &format!("127.0.0.1:{target}")]);
    command.args(["-r", &rate.to_string(), "-m", &calls.to_string()]);
    if !more.contains(&"-p") {
        command.args(["-p", &port]);
    }
    command.args(["-l", "100000", "-trace_stat", "-stf", "uac.csv", "-fd", "1"]);
    command.args(["-trace_err", "-error_file", "errors.log"]).args(more);
    Process::start(&mut command)
}

pub fn assert_completed(folder: &Folder, client: &mut Process, expected: u64) {
    let status = client.wait(2 * MINUTE);
    let counted = calls(&folder.0);
    let errors = std::fs::read_to_string(folder.0.join("errors.log")).unwrap_or_default();
    let errors: String = errors.chars().take(3000).collect();
    assert!(status.is_some(), "{counted:?}\n{errors}");
    assert_eq!((counted.successful, counted.failed), (expected, 0), "{counted:?}\n{errors}");
}

const SECRET: &str = "one secret for all nodes of this test";

/// One listener, one pool of these ports and weights, not probed: these scenarios do not answer OPTIONS.
fn weighted(listen: u16, backends: &[(u16, u32)]) -> String {
    let backends: Vec<String> = backends
        .iter()
        .map(|(port, weight)| format!("{{ uri = \"sip:127.0.0.1:{port}\", weight = {weight} }}"))
        .collect();
    format!(
        "[balancer]\nshards = 2\nsecret = \"{SECRET}\"\n[[listen]]\naddress = \"udp:127.0.0.1:{listen}\"\n\
         advertise = \"sip.example.net:{listen}\"\n[[pool]]\n{UNPROBED}\nbackend = [{}]\n",
        backends.join(", ")
    )
}

/// The same backends in other orders and with other weights, so that most keys move from one to the next.
fn reweighted(listen: u16, ports: &[u16]) -> Vec<String> {
    let rotated = |by: usize, weights: [u32; 2]| {
        let places = (0..ports.len()).map(|place| (place + by) % ports.len());
        let backends: Vec<_> = places.map(|place| (ports[place], weights[usize::from(place != by)])).collect();
        weighted(listen, &backends)
    };
    (0..ports.len()).map(|by| rotated(by, [1000, 50])).chain([rotated(0, [100, 100])]).collect()
}

/// Puts one configuration after the other in force, for as long as `client` runs. Returns how often.
fn change_while(viahop: &Viahop, client: &mut Process, sets: &[String]) -> usize {
    let until = Instant::now() + 2 * MINUTE;
    let mut changes = 0;
    while client.0.try_wait().unwrap().is_none() && Instant::now() < until {
        change(viahop, &sets[changes % sets.len()]);
        changes += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    changes
}

fn change(viahop: &Viahop, set: &str) {
    let before = viahop.status()["generation"].as_u64().unwrap();
    viahop.write_config(set);
    viahop.process.signal("HUP");
    viahop.wait_until("the reload", PATIENCE, |status| status["generation"].as_u64().unwrap() > before);
}

#[test]
fn calls_that_follow_their_route_set_stay_with_their_servers_while_the_set_changes() {
    if !has_peer("sipp") {
        return;
    }
    let _alone = alone();
    let servers = Servers::start(6, "uas_reinvite", &[]);
    let [a, b, c, d, e, f] = servers.ports[..] else { unreachable!() };
    let listen = free_port();
    let sets = [
        weighted(listen, &[(a, 100), (b, 100), (c, 100), (d, 100), (e, 100), (f, 100)]),
        weighted(listen, &[(d, 100), (c, 100), (b, 100), (a, 100)]),
        weighted(listen, &[(a, 1000), (e, 500), (b, 10), (c, 100), (d, 100)]),
        weighted(listen, &[(f, 100), (d, 10), (b, 1000), (c, 10), (a, 10)]),
    ];
    let viahop = Viahop::start("changes", &sets[0]);
    let folder = Folder::new("caller");
    let mut client = caller(&folder, "uac_reinvite", listen, 1000, 150, &["-d", "1000"]);
    let changes = change_while(&viahop, &mut client, &sets);
    assert_completed(&folder, &mut client, 1000);
    assert!(changes >= 12, "{changes}");
    let judgement = servers.judge();
    // ACK, re-INVITE, ACK and BYE of the calls whose servers were never taken out, and some of the others.
    judgement.assert_clean(1000, 2400);
    let refused = viahop.metric("viahop_messages_replied_total", "code=\"481\"");
    println!("{changes} changes; {refused} answered 481 for servers that were out of the set");
    viahop.end();
}

#[test]
fn calls_that_ignore_their_route_set_move_only_with_their_key_and_only_to_the_newcomer() {
    if !has_peer("sipp") {
        return;
    }
    let _alone = alone();
    let servers = Servers::start(5, "uas_rr", &[]);
    let listen = free_port();
    let set = |ports: &[u16]| weighted(listen, &ports.iter().map(|&port| (port, 100)).collect::<Vec<_>>());
    let viahop = Viahop::start("routeless", &set(&servers.ports[..4]));
    let folder = Folder::new("caller");
    let mut client = caller(&folder, "uac_routeless", listen, 600, 200, &["-d", "6000", "-recv_timeout", "2000"]);
    // All calls are up, and none has ended.
    let until = Instant::now() + PATIENCE;
    while servers.judge().homes.len() < 600 {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(50));
    }
    let reversed: Vec<u16> = servers.ports[..4].iter().rev().copied().collect();
    change(&viahop, &set(&reversed));
    change(&viahop, &set(&servers.ports));
    client.wait(MINUTE);
    let judgement = servers.judge();
    let newcomer = servers.ports[4];
    let byes: BTreeSet<&str> = judgement.strays.iter().map(|one| one.call_id.as_str()).collect();
    assert!(judgement.strays.iter().all(|one| one.port == newcomer && one.method == "BYE"), "{:?}", judgement.strays);
    // A fifth of the keys, as it has a fifth of the weight.
    assert!((60..=180).contains(&byes.len()), "{}", byes.len());
    println!("600 calls without Route, one backend added to four: {} BYEs went to it", byes.len());
    viahop.end();
}

#[test]
fn cancel_and_ack_follow_their_invite_while_the_table_changes() {
    if !has_peer("sipp") {
        return;
    }
    let _alone = alone();
    let servers = Servers::start(4, "uas_cancel", &["-nr"]);
    let listen = free_port();
    let sets = reweighted(listen, &servers.ports);
    let viahop = Viahop::start("cancels", &sets[0]);
    let folder = Folder::new("caller");
    let mut client = caller(&folder, "uac_cancel", listen, 1000, 150, &["-nr", "-d", "800"]);
    let changes = change_while(&viahop, &mut client, &sets);
    assert_completed(&folder, &mut client, 1000);
    assert!(changes >= 10, "{changes}");
    // Neither has a token: CANCEL and ACK of each.
    servers.judge().assert_clean(1000, 2000);
    println!("{changes} changes, {} followed their INVITE", viahop.metric("viahop_call_memory_hits_total", ""));
    viahop.end();
}

#[test]
fn a_callee_that_hangs_up_reaches_its_caller_while_the_set_changes() {
    if !has_peer("sipp") {
        return;
    }
    let _alone = alone();
    let servers = Servers::start(4, "uas_hangs_up", &["-d", "1000"]);
    let listen = free_port();
    let sets = reweighted(listen, &servers.ports);
    let viahop = Viahop::start("hangs-up", &sets[0]);
    let folder = Folder::new("caller");
    let mut client = caller(&folder, "uac_is_hung_up", listen, 600, 150, &["-recv_timeout", "20000"]);
    change_while(&viahop, &mut client, &sets);
    assert_completed(&folder, &mut client, 600);
    servers.judge().assert_clean(600, 600);
    viahop.end();
}

#[test]
fn subscriptions_are_refreshed_and_notified_in_both_directions_while_the_set_changes() {
    if !has_peer("sipp") {
        return;
    }
    let _alone = alone();
    let servers = Servers::start(4, "uas_notify", &[]);
    let listen = free_port();
    let sets = reweighted(listen, &servers.ports);
    let viahop = Viahop::start("subscriptions", &sets[0]);
    let folder = Folder::new("subscriber");
    let mut client = caller(&folder, "uac_subscribe", listen, 600, 150, &["-d", "700", "-recv_timeout", "20000"]);
    change_while(&viahop, &mut client, &sets);
    assert_completed(&folder, &mut client, 600);
    // The refresh and the end of each.
    servers.judge().assert_clean(600, 1200);
    viahop.end();
}

#[test]
fn an_invite_with_replaces_reaches_the_server_of_the_call_it_replaces() {
    if !has_peer("sipp") {
        return;
    }
    let _alone = alone();
    let servers = Servers::start(4, "uas_replaces", &[]);
    let listen = free_port();
    let set = |ports: &[u16]| weighted(listen, &ports.iter().map(|&port| (port, 100)).collect::<Vec<_>>());
    let viahop = Viahop::start("replaces", &set(&servers.ports));
    let folder = Folder::new("caller");
    let mut client = caller(&folder, "uac_replaces", listen, 600, 150, &["-d", "500", "-recv_timeout", "20000"]);
    // Another order moves no key.
    let orders: Vec<String> = (0..4).map(|by| set(&[&servers.ports[by..], &servers.ports[..by]].concat())).collect();
    change_while(&viahop, &mut client, &orders);
    assert_completed(&folder, &mut client, 600);
    let judgement = servers.judge();
    judgement.assert_clean(1200, 1800);
    for (call_id, homes) in judgement.homes.iter().filter(|(call_id, _)| call_id.starts_with("moved///")) {
        assert_eq!(Some(homes), judgement.homes.get(&call_id["moved///".len()..]), "{call_id}");
    }
    viahop.end();
}

#[test]
fn after_a_kill_and_a_restart_in_the_middle_of_calls_every_bye_arrives_where_it_belongs() {
    if !has_peer("sipp") {
        return;
    }
    let _alone = alone();
    const CALLS: u32 = 5000;
    let servers = Servers::start(4, "uas_rr", &[]);
    let listen = free_port();
    let sets = reweighted(listen, &servers.ports);
    let mut viahop = Viahop::start("restart", &sets[0]);
    let folder = Folder::new("caller");
    // The first call ends some seconds after the last has begun.
    let mut client = caller(&folder, "uac_rr", listen, CALLS, 700, &["-d", "12000"]);
    let until = Instant::now() + PATIENCE;
    while viahop.metric("viahop_messages_received_total", "ACK") < f64::from(CALLS) {
        assert!(Instant::now() < until, "{:?}", calls(&folder.0));
        std::thread::sleep(Duration::from_millis(100));
    }
    // What was the owner of nearly all keys has hardly any.
    viahop.write_config(&sets[1]);
    let since = Instant::now();
    viahop.restart();
    println!("{CALLS} calls up; killed and back after {} ms", since.elapsed().as_millis());
    assert_completed(&folder, &mut client, u64::from(CALLS));
    servers.judge().assert_clean(CALLS as usize, CALLS as usize);
    viahop.end();
}

#[test]
fn two_nodes_with_one_secret_serve_each_others_dialogs() {
    if !has_peer("sipp") {
        return;
    }
    let _alone = alone();
    let servers = Servers::start(4, "uas_reinvite", &[]);
    let [listen, other] = [free_port(), free_port()];
    // One name for both, as an address that moves between them would be, and tables that agree on hardly any key.
    let one = Viahop::start("node-1", &reweighted(listen, &servers.ports)[0]);
    let of_two = reweighted(other, &servers.ports)[1].replace(&format!("net:{other}"), &format!("net:{listen}"));
    let two = Viahop::start("node-2", &of_two);
    let folder = Folder::new("caller");
    let mut client =
        caller(&folder, "uac_two_nodes", listen, 600, 150, &["-d", "500", "-key", "other", &other.to_string()]);
    assert_completed(&folder, &mut client, 600);
    servers.judge().assert_clean(600, 2400);
    two.wait_for_metric("viahop_messages_received_total", "BYE", 600.0);
    assert_eq!(one.metric("viahop_messages_received_total", "BYE"), 0.0);
    one.end();
    two.end();
}
