//! Backends that die in the middle of calls: refused, and silent.

use crate::dialogs::{Servers, assert_completed, caller};
use crate::live::{
    Folder, PATIENCE, Process, UNPROBED, Viahop, alone, calls, config, free_port, output, sipp, sipp_uac, sipp_uas,
};
use crate::support::{has_peer, skip};
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use viahop::sys::uninterrupted;

fn request(call: &str) -> String {
    format!(
        "OPTIONS sip:bob@example.net SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:5;branch=z9hG4bK{call};rport\r\n\
         Max-Forwards: 70\r\nFrom: <sip:a@example.net>;tag=1\r\nTo: <sip:bob@example.net>\r\n\
         Call-ID: {call}\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
    )
}

/// A server that answers everything with a 200 from its own port, until it is told to be silent, busy or to leave, or dropped.
struct Server {
    port: u16,
    silent: Arc<AtomicBool>,
    /// Every other request that is no probe is answered 503.
    busy: Arc<AtomicBool>,
    /// Probes are answered 503.
    leaves: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(port: u16) -> Server {
        let socket = UdpSocket::bind(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let [silent, stop, busy, leaves] = [(); 4].map(|()| Arc::new(AtomicBool::new(false)));
        let flags = (silent.clone(), stop.clone(), busy.clone(), leaves.clone());
        let thread = std::thread::spawn(move || {
            let mut room = vec![0; 65_536];
            let mut turn = false;
            while !flags.1.load(Ordering::Relaxed) {
                let Ok((len, from)) = socket.recv_from(&mut room) else { continue };
                if flags.0.load(Ordering::Relaxed) {
                    continue;
                }
                let text = String::from_utf8_lossy(&room[..len]).into_owned();
                let rows = text.split("\r\n").skip(1).filter(|row| !row.starts_with("Max-Forwards"));
                let is_refused = flags.2.load(Ordering::Relaxed) && text.starts_with("OPTIONS sip:bob@") && turn;
                let is_left = flags.3.load(Ordering::Relaxed) && text.starts_with("OPTIONS sip:127.");
                turn = !turn;
                let status = if is_refused || is_left { "503 Service Unavailable" } else { "200 OK" };
                let line = format!("SIP/2.0 {status}\r\nServer: {port}");
                let answer = [line.as_str()].into_iter().chain(rows).collect::<Vec<_>>().join("\r\n");
                socket.send_to(answer.as_bytes(), from).unwrap();
            }
        });
        Server { port, silent, busy, leaves, stop, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(|thread| thread.join().ok());
    }
}

/// Sends a request and returns the port of the server that answered. An answer to an earlier one is none to this.
fn ask(client: &UdpSocket, listen: u16, call: &str) -> Option<u16> {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let rows = format!("Call-ID: {call}\r\nCSeq: {} OPTIONS\r\n", NUMBER.fetch_add(1, Ordering::Relaxed));
    let text = request(call).replace(&format!("Call-ID: {call}\r\nCSeq: 1 OPTIONS\r\n"), &rows);
    client.send_to(text.as_bytes(), ("127.0.0.1", listen)).unwrap();
    let mut room = vec![0; 4096];
    loop {
        let len = uninterrupted(|| client.recv(&mut room)).ok()?;
        let text = String::from_utf8_lossy(&room[..len]).into_owned();
        if text.contains(&rows) {
            return text.lines().find_map(|line| line.strip_prefix("Server: ")).and_then(|port| port.parse().ok());
        }
    }
}

/// Asterisk answers 503 to every OPTIONS from `core stop gracefully` until its last call is over, and serves that call.
#[test]
fn who_answers_503_to_probes_keeps_its_calls_and_loses_them_when_it_answers_nothing() {
    let servers: Vec<Server> = (0..2).map(|_| Server::start(free_port())).collect();
    let ports: Vec<u16> = servers.iter().map(|server| server.port).collect();
    let listen = free_port();
    let viahop = Viahop::start("leaves", &config(listen, &ports, PROBED));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let exchange = |method: &str, call: &str, rows: &str| -> String {
        let text = request(call).replace("OPTIONS", method).replace("Max-Forwards", &format!("{rows}Max-Forwards"));
        client.send_to(text.as_bytes(), ("127.0.0.1", listen)).unwrap();
        let mut room = vec![0; 4096];
        let len = uninterrupted(|| client.recv(&mut room)).unwrap();
        String::from_utf8_lossy(&room[..len]).into_owned()
    };
    let row = |answer: &str, name: &str| -> String {
        let found = answer.lines().find_map(|line| line.strip_prefix(name));
        found.unwrap_or_else(|| panic!("no {name} in {answer}")).trim().to_owned()
    };
    let calls: Vec<(String, String, String)> = (0..8)
        .map(|number| {
            let call = format!("leaving-{number}");
            let answer = exchange("INVITE", &call, "");
            (call, row(&answer, "Server:"), row(&answer, "Record-Route:"))
        })
        .collect();
    let info = |(call, _, route): &(String, String, String)| {
        row(&exchange("INFO", call, &format!("Route: {route}\r\n")), "Server:")
    };
    let explained = |(call, _, route): &(String, String, String)| {
        let text = request(call).replace("OPTIONS", "INFO");
        let text = text.replace("Max-Forwards", &format!("Route: {route}\r\nMax-Forwards"));
        let path = viahop.folder.write("info.sip", &text);
        let file = viahop.folder.0.join("viahop.toml");
        let args = ["explain", "--live", "-c", file.to_str().unwrap(), path.to_str().unwrap()];
        let (code, stdout, stderr) = output(crate::live::viahop(&args).env("STATE_DIRECTORY", &viahop.folder.0));
        assert_eq!(code, 0, "{stdout}{stderr}");
        stdout.lines().find_map(|line| line.strip_prefix("sent to 127.0.0.1:")).unwrap().to_owned()
    };
    let left = calls[0].1.clone();
    let place = ports.iter().position(|port| port.to_string() == left).unwrap();
    let other = ports[1 - place].to_string();
    servers[place].leaves.store(true, Ordering::Relaxed);
    viahop.wait_until("down", PATIENCE, |status| status["backends"][place]["state"] == "down");
    for call in &calls {
        assert_eq!(info(call), call.1, "{call:?}");
        assert_eq!(explained(call), call.1, "{call:?}");
    }
    assert_eq!((0..20).filter(|new| ask(&client, listen, &format!("new-{new}")) == Some(ports[place])).count(), 0);
    servers[place].silent.store(true, Ordering::Relaxed);
    viahop.wait_until("silent", PATIENCE, |status| status["backends"][place]["silent"] == true);
    assert!(viahop.log().contains("event=\"backend_silent\""), "{}", viahop.log());
    assert_eq!(info(&calls[0]), other, "nobody took the call over");
    assert_eq!(explained(&calls[0]), other);
    viahop.end();
}

/// An ICMP message that says of a datagram from `from` to `to`, both ports of 127.0.0.1, that nobody listens there.
fn port_unreachable(from: u16, to: u16) -> Vec<u8> {
    let mut icmp = vec![3, 3, 0, 0, 0, 0, 0, 0];
    icmp.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1]);
    icmp.extend([from.to_be_bytes(), to.to_be_bytes(), [0, 8], [0, 0]].concat());
    let sum: u32 = icmp.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
    icmp
}

#[test]
fn what_strangers_say_of_a_backend_by_icmp_moves_no_call() {
    let Ok(stranger) = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)) else {
        return skip("raw sockets");
    };
    let servers: Vec<Server> = (0..2).map(|_| Server::start(free_port())).collect();
    let ports: Vec<u16> = servers.iter().map(|server| server.port).collect();
    let listen = free_port();
    let viahop = Viahop::start("icmp", &config(listen, &ports, PROBED).replace("shards = 2", "shards = 1"));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    for call in 0..50 {
        let call = format!("call-{call}");
        let before = ask(&client, listen, &call);
        assert!(before.is_some(), "{call}");
        for &port in &ports {
            // Whoever knows a backend's address can make this up; the port it would come from is in every Via.
            let to = SocketAddr::from(([127, 0, 0, 1], 0)).into();
            stranger.send_to(&port_unreachable(listen, port), &to).unwrap();
        }
        assert_eq!(ask(&client, listen, &call), before, "{call} moved");
    }
    assert!(!viahop.log().contains("event=\"backend_refused\""), "{}", viahop.log());
    viahop.end();
}

const PROBED: &str = "health = { interval = \"500ms\", timeout = \"200ms\", fall = 3, rise = 2 }";

#[test]
fn a_refused_message_is_the_last_that_goes_there_and_the_others_keep_their_calls() {
    let mut servers: Vec<Server> = (0..4).map(|_| Server::start(free_port())).collect();
    let ports: Vec<u16> = servers.iter().map(|server| server.port).collect();
    let listen = free_port();
    let viahop = Viahop::start("refused", &config(listen, &ports, PROBED));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    // Again until somebody answers, as clients do.
    let insist = |call: usize| {
        let answers = (0..40).map(|_| ask(&client, listen, &format!("call-{call}")));
        answers.flatten().next().unwrap_or_else(|| panic!("nobody answers call {call}"))
    };
    let all = || (0..200).map(insist).collect::<Vec<u16>>();
    let before = all();
    let victim = servers.pop().unwrap();
    let port = victim.port;
    let sent = || viahop.metric("viahop_messages_forwarded_total", &format!("127.0.0.1:{port}\",kind=\"request\""));
    drop(victim);
    let sent_before = sent();
    // One message is refused; the next of any call of the dead one goes elsewhere, at once.
    let of_victim: Vec<usize> = (0..200).filter(|&call| before[call] == port).collect();
    assert!(of_victim.len() > 20);
    for &call in &of_victim {
        insist(call);
    }
    // Each of the two shards has to learn it, unless the control plane is faster.
    let lost = sent() - sent_before;
    println!("{lost} messages of {} calls were lost", of_victim.len());
    assert!(lost <= 2.0, "{lost} messages were lost");
    viahop.wait_until("down", PATIENCE, |status| status["backends"][3]["state"] == "down");
    let after = all();
    for call in 0..200 {
        match before[call] == port {
            true => assert_ne!(after[call], port),
            false => assert_eq!(after[call], before[call], "a call of a living backend moved"),
        }
    }
    let _returned = Server::start(port);
    viahop.wait_until("up", PATIENCE, |status| status["backends"][3]["state"] == "up");
    assert_eq!(all(), before, "the map is restored");
    assert!(viahop.log().contains("event=\"backend_down\"") && viahop.log().contains("event=\"backend_up\""));
    viahop.end();
}

#[test]
fn a_silent_backend_is_down_within_fall_times_interval_and_timeout() {
    let servers: Vec<Server> = (0..2).map(|_| Server::start(free_port())).collect();
    let ports: Vec<u16> = servers.iter().map(|server| server.port).collect();
    let viahop = Viahop::start("silent", &config(free_port(), &ports, PROBED));
    viahop.wait_until("proven", PATIENCE, |status| {
        status["backends"].as_array().unwrap().iter().all(|one| one["last_probe"] == "options_ok (200)")
    });
    servers[1].silent.store(true, Ordering::Relaxed);
    let took = viahop.time_until("down", |status| status["backends"][1]["state"] == "down");
    // fall × interval + timeout, and what polling and a busy machine add.
    assert!(took < Duration::from_millis(3 * 500 + 200 + 500), "{took:?}");
    assert!(viahop.log().contains("reason=\"options_timeout\""));
    assert!(viahop.is_up(0));
    servers[1].silent.store(false, Ordering::Relaxed);
    viahop.wait_until("up", PATIENCE, |status| status["backends"][1]["state"] == "up");
    viahop.end();
}

/// SIPp's servers, of which one is killed and another stopped while calls run.
#[test]
fn kill_and_stop_of_a_server_under_load_cost_its_own_calls_and_no_others() {
    if !has_peer("sipp") {
        return;
    }
    let _alone = alone();
    let folder = Folder::new("kill");
    let ports: Vec<u16> = (0..4).map(|_| free_port()).collect();
    let mut servers: Vec<Process> = ports.iter().map(|&port| sipp_uas(&folder.0, port, &[])).collect();
    let listen = free_port();
    let viahop = Viahop::start("kill", &config(listen, &ports, UNPROBED));
    let mut client =
        Process::start(&mut sipp_uac(&folder.0, listen, 2000, 250, &["-l", "100", "-recv_timeout", "3000"]));
    std::thread::sleep(Duration::from_secs(3));
    servers.remove(3).signal("KILL");
    assert!(client.wait(Duration::from_secs(60)).is_some());
    let counted = calls(&folder.0);
    // A call of SIPp lives a millisecond or two, so at most a few are in the air when the server dies. Without probes the
    // shards try it again every 2 s.
    assert!(counted.failed <= 40 && counted.successful >= 1960, "{counted:?}");
    let refused = viahop.log().matches("event=\"backend_refused\"").count();
    assert!(refused >= 1, "{}", viahop.log());
    viahop.end();

    // The same with a stopped server, which only probes can find out about.
    let servers: Vec<Server> = (0..2).map(|_| Server::start(free_port())).collect();
    let stopped = sipp_options_server(&folder, free_port());
    let ports = [servers[0].port, servers[1].port, stopped.1];
    let viahop = Viahop::start("stop", &config(listen, &ports, PROBED));
    viahop.wait_until("proven", PATIENCE, |status| status["backends"][2]["last_probe"] == "options_ok (200)");
    stopped.0.signal("STOP");
    let took = viahop.time_until("down", |status| status["backends"][2]["state"] == "down");
    assert!(took < Duration::from_millis(3 * 500 + 200 + 500), "{took:?}");
    stopped.0.signal("CONT");
    viahop.wait_until("up", PATIENCE, |status| status["backends"][2]["state"] == "up");
    viahop.end();
}

/// SIPp with a scenario that answers OPTIONS.
fn sipp_options_server(folder: &Folder, port: u16) -> (Process, u16) {
    let scenario = "<?xml version=\"1.0\"?><scenario name=\"options\"><recv request=\"OPTIONS\"/><send><![CDATA[\n\
         SIP/2.0 200 OK\n[last_Via:]\n[last_From:]\n[last_To:];tag=1\n[last_Call-ID:]\n[last_CSeq:]\n\
         Content-Length: 0\n\n]]></send></scenario>";
    let path = folder.write("options.xml", scenario);
    let mut command = sipp(&folder.0);
    command.args(["-sf", path.to_str().unwrap(), "-p", &port.to_string()]);
    let process = Process::start(&mut command);
    crate::live::wait_for_port(port);
    (process, port)
}

#[test]
fn after_a_refusal_the_next_message_is_elsewhere_within_ten_milliseconds() {
    let _alone = alone();
    let mut servers: Vec<Option<Server>> = (0..24).map(|_| Some(Server::start(free_port()))).collect();
    let ports: Vec<u16> = servers.iter().map(|server| server.as_ref().unwrap().port).collect();
    let listen = free_port();
    let viahop = Viahop::start("ten-ms", &config(listen, &ports, PROBED));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut took, mut trips) = (Vec::new(), Vec::new());
    for fault in 0..20 {
        let call = format!("fault-{fault}");
        let since = Instant::now();
        let home = ask(&client, listen, &call).unwrap();
        trips.push(since.elapsed());
        let place = ports.iter().position(|&port| port == home).unwrap();
        servers[place] = None;
        // The first message finds the door shut; a client in a hurry repeats it every millisecond. Read timeouts are in
        // ticks of the kernel, which are longer.
        client.set_nonblocking(true).unwrap();
        let (since, mut sent) = (Instant::now(), 0);
        let mut room = vec![0; 4096];
        while client.recv(&mut room).is_err() {
            assert!(since.elapsed() < PATIENCE);
            if since.elapsed() >= Duration::from_millis(sent) {
                client.send_to(request(&call).as_bytes(), ("127.0.0.1", listen)).unwrap();
                sent += 1;
            }
            std::thread::yield_now();
        }
        took.push(since.elapsed());
        client.set_nonblocking(false).unwrap();
        viahop.wait_until("down", PATIENCE, |status| status["backends"][place]["state"] == "down");
    }
    took.sort();
    trips.sort();
    println!("answered elsewhere after {:?} (median), {:?} (most) of {} deaths", took[10], took[19], took.len());
    // What a busy machine adds it adds to every message: one that is refused, word of it, and one or two that follow.
    assert!(took[10] < Duration::from_millis(10) + 4 * trips[10], "{took:?} {trips:?}");
    viahop.end();
}

/// RFC 3261 21.5.4: "not me, not now", while every probe is answered.
#[test]
fn who_answers_every_other_call_503_is_ejected_within_three_seconds_and_an_operator_may_pardon_it() {
    let _alone = alone();
    let servers: Vec<Server> = (0..4).map(|_| Server::start(free_port())).collect();
    let ports: Vec<u16> = servers.iter().map(|server| server.port).collect();
    let listen = free_port();
    // Health and outlier as they are by default.
    let viahop = Viahop::start("outlier", &config(listen, &ports, ""));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let homes: Vec<u16> = (0..200).map(|call| ask(&client, listen, &format!("call-{call}")).unwrap()).collect();
    let is_ejected = || viahop.metric("viahop_backend_ejected", &format!("127.0.0.1:{}", ports[1])) == 1.0;
    assert!(!is_ejected());
    servers[1].busy.store(true, Ordering::Relaxed);
    let since = Instant::now();
    let mut asked = 0;
    while !is_ejected() {
        assert!(since.elapsed() < PATIENCE, "{}", viahop.log());
        for _ in 0..20 {
            ask(&client, listen, &format!("call-{}", asked % homes.len())).unwrap();
            asked += 1;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let took = since.elapsed();
    println!("ejected after {took:?} and {asked} requests");
    // Three seconds at most: a window of two that begins with a second. The rest is what a busy machine adds.
    assert!(took < Duration::from_millis(4500), "{took:?}");
    for (call, &home) in homes.iter().enumerate() {
        let now = ask(&client, listen, &format!("call-{call}")).unwrap();
        assert!(if home == ports[1] { now != home } else { now == home }, "call {call} of {home} is at {now}");
    }
    servers[1].busy.store(false, Ordering::Relaxed);
    crate::ctl::ctl_ok(&viahop, &["backend", &format!("127.0.0.1:{}", ports[1]), "ready"]);
    assert!(!is_ejected());
    for (call, &home) in homes.iter().enumerate() {
        assert_eq!(ask(&client, listen, &format!("call-{call}")), Some(home), "the map is restored");
    }
    viahop.end();
}

#[test]
fn a_server_that_came_back_gets_its_share_by_and_by() {
    let _alone = alone();
    let mut servers: Vec<Server> = (0..4).map(|_| Server::start(free_port())).collect();
    let ports: Vec<u16> = servers.iter().map(|server| server.port).collect();
    let listen = free_port();
    let viahop = Viahop::start("slow-start", &config(listen, &ports, &format!("{PROBED}\nslow_start = \"5s\"")));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let share = |name: &str| {
        let homes = (0..400).map(|call| ask(&client, listen, &format!("{name}-{call}")));
        homes.filter(|&home| home.unwrap() == ports[3]).count()
    };
    let before = share("call");
    drop(servers.pop());
    viahop.wait_until("down", PATIENCE, |status| status["backends"][3]["state"] == "down");
    assert_eq!(share("call"), 0);
    let _returned = Server::start(ports[3]);
    viahop.wait_until("up", PATIENCE, |status| status["backends"][3]["state"] == "up");
    let at_first = share("call");
    assert!(at_first < before * 6 / 10, "{at_first} of {before} at once");
    let since = Instant::now();
    while share("call") != before {
        assert!(since.elapsed() < Duration::from_secs(15), "the whole share never came back");
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("{at_first} of {before} calls at once, all after {:?}", since.elapsed());
    assert!(since.elapsed() > Duration::from_secs(2));
    viahop.end();
}

/// When most servers fall silent at once, it is rather the way to them: the one that is left is not given all their calls.
#[test]
fn below_the_panic_threshold_all_servers_get_their_calls_again() {
    let _alone = alone();
    let servers: Vec<Server> = (0..4).map(|_| Server::start(free_port())).collect();
    let ports: Vec<u16> = servers.iter().map(|server| server.port).collect();
    let listen = free_port();
    let viahop = Viahop::start("panic", &config(listen, &ports, &format!("{PROBED}\npanic = 50")));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let homes: Vec<u16> = (0..60).map(|call| ask(&client, listen, &format!("call-{call}")).unwrap()).collect();
    servers[1..].iter().for_each(|server| server.silent.store(true, Ordering::Relaxed));
    viahop.wait_until("all but one down", PATIENCE, |status| {
        (1..4).all(|place| status["backends"][place]["state"] == "down")
    });
    for (call, &home) in homes.iter().enumerate() {
        // Silence needs no long wait, and an answer may take as long as a busy machine likes.
        let patience = if home == ports[0] { PATIENCE } else { Duration::from_millis(20) };
        client.set_read_timeout(Some(patience)).unwrap();
        let answered = ask(&client, listen, &format!("call-{call}"));
        assert_eq!(answered, (home == ports[0]).then_some(home), "call {call}");
    }
    servers[1..].iter().for_each(|server| server.silent.store(false, Ordering::Relaxed));
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    for (call, &home) in homes.iter().enumerate() {
        assert_eq!(ask(&client, listen, &format!("call-{call}")), Some(home), "it never left");
    }
    viahop.end();
}

#[test]
fn a_backend_that_falls_silent_is_down_within_a_second_and_a_half_and_no_invite_runs_into_timer_b() {
    if !has_peer("sipp") {
        return;
    }
    let _alone = alone();
    let servers = Servers::start(4, "uas_alive", &[]);
    let listen = free_port();
    // Health as it is by default.
    let viahop = Viahop::start("stopped", &config(listen, &servers.ports, ""));
    viahop.wait_until("proven", PATIENCE, |status| {
        status["backends"].as_array().unwrap().iter().all(|one| one["last_probe"] == "options_ok (200)")
    });
    let folder = Folder::new("caller");
    let mut client = caller(&folder, "uac_short", listen, 600, 100, &[]);
    std::thread::sleep(Duration::from_secs(2));
    servers.processes[2].signal("STOP");
    let took = viahop.time_until("down", |status| status["backends"][2]["state"] == "down");
    assert_completed(&folder, &mut client, 600);
    servers.processes[2].signal("CONT");
    let counted = calls(&folder.0);
    println!("silent, and down after {took:?}; 600 calls, 0 failed, {} retransmissions", counted.retransmissions);
    // 1.4 s, and what a busy machine adds.
    assert!(took < Duration::from_millis(2000), "{took:?}");
    assert!(counted.retransmissions > 0);
    viahop.end();
}
