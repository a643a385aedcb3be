//! What the open network does to connections: resets at any moment, storms of them, people who dribble, no descriptors
//! left. Whoever does it loses his own; nobody else notices.

use crate::live::{
    Folder, PATIENCE, Process, UNPROBED, Viahop, alone, calls, free_port, output, sipp_uac, sipp_uas, viahop,
};
use crate::streams::{Backend, Client, EMPTY, answer, config, request, udp};
use crate::support::has_peer;
use crate::tls::Papers;
use serde_json::Value;
use socket2::SockRef;
use std::io::Write;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};
use viahop::sys::uninterrupted;
use viahop_load::endpoint::{self, Endpoint};
use viahop_load::scenario::Scenario;
use viahop_load::uac::{self, Uac};
use viahop_load::uas::{self, Uas};

/// An OPTIONS that asks the balancer itself, so that no server has a part in it.
fn ping(listen: u16, transport: &str, sent_by: impl std::fmt::Display, call: &str) -> String {
    let text = request("OPTIONS", transport, sent_by, call, EMPTY);
    text.replace("OPTIONS sip:bob@example.net", &format!("OPTIONS sip:127.0.0.1:{listen}"))
}

fn answers_udp(listen: u16, call: &str) -> bool {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let text = ping(listen, "UDP", socket.local_addr().unwrap(), call);
    socket.send_to(text.as_bytes(), ("127.0.0.1", listen)).unwrap();
    let mut room = [0; 2048];
    uninterrupted(|| socket.recv(&mut room)).is_ok_and(|len| room[..len].starts_with(b"SIP/2.0 200"))
}

fn answers_tcp(listen: u16, client: &mut Client, call: &str) -> bool {
    let text = ping(listen, "TCP", client.address(), call);
    client.say(text);
    client.hear().starts_with("SIP/2.0 200")
}

/// Ends a connection with a reset, as a crash, a firewall or an attacker does.
fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

#[test]
fn what_came_before_the_end_is_dealt_with_however_many_connections_are_busy() {
    const DATAGRAMS: usize = 2000;
    let (listen, backend) = (free_port(), Backend::new());
    let config = config(listen, &[udp(backend.port())], "").replace("shards = 2", "shards = 1");
    let mut viahop = Viahop::start("busy-end", &config);
    let mut streams: Vec<_> = (0..300).map(|_| TcpStream::connect(("127.0.0.1", listen)).unwrap()).collect();
    viahop.wait_until("connected", PATIENCE, |_| viahop.metric("viahop_connections", "") >= 300.0);
    viahop.process.signal("STOP");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let text = request("OPTIONS", "UDP", socket.local_addr().unwrap(), "late", EMPTY);
    for _ in 0..DATAGRAMS {
        socket.send_to(text.as_bytes(), ("127.0.0.1", listen)).unwrap();
    }
    viahop.process.signal("INT");
    viahop.process.signal("CONT");
    while viahop.process.0.try_wait().unwrap().is_none() {
        streams.retain_mut(|stream| stream.write_all(b"\r\n\r\n").is_ok());
    }
    let log = viahop.log();
    assert!(log.contains(&format!(" forwarded={DATAGRAMS} ")), "{log}");
}

#[test]
fn a_reset_at_any_moment_ends_its_own_connection_and_no_other() {
    let (listen, backend) = (free_port(), Backend::new());
    let viahop = Viahop::start("resets", &config(listen, &[udp(backend.port())], ""));
    let mut good = Client::connect(listen);
    assert!(answers_tcp(listen, &mut good, "first"));
    // At every place of a request, its first octet and its last among them, ...
    let text = request("OPTIONS", "TCP", "192.0.2.1", "half", EMPTY);
    for len in (0..text.len()).step_by(17) {
        let mut stream = TcpStream::connect(("127.0.0.1", listen)).unwrap();
        stream.write_all(&text.as_bytes()[..len]).unwrap();
        reset(stream);
    }
    // ... before the answer, ...
    for number in 0..20 {
        let mut client = Client::connect(listen);
        client.say(request("INVITE", "TCP", client.address(), &format!("gone{number}"), EMPTY));
        let (sent, from) = backend.hear();
        if number % 2 == 0 {
            reset(client.stream);
            backend.say(&answer(&sent, "180 Ringing", ""), from);
        } else {
            // ... and between a provisional one and the final one.
            backend.say(&answer(&sent, "180 Ringing", ""), from);
            client.hear();
            reset(client.stream);
        }
        backend.say(&answer(&sent, "200 OK", ""), from);
    }
    // Somebody who closes his half waits for what he asked.
    let mut half = Client::connect(listen);
    half.say(request("INVITE", "TCP", half.address(), "half-closed", EMPTY));
    half.stream.shutdown(std::net::Shutdown::Write).unwrap();
    let (sent, from) = backend.hear();
    backend.say(&answer(&sent, "200 OK", ""), from);
    assert!(half.hear().starts_with("SIP/2.0 200"));
    assert!(answers_tcp(listen, &mut good, "last") && answers_udp(listen, "datagram"));
    viahop.wait_until("all but one have ended", PATIENCE, |_| viahop.metric("viahop_connections", "") == 1.0);
    viahop.end();
}

#[test]
fn a_storm_of_connections_leaves_nothing_behind() {
    let (listen, backend) = (free_port(), Backend::new());
    let viahop = Viahop::start("storm", &config(listen, &[udp(backend.port())], ""));
    let mut good = Client::connect(listen);
    for round in 0..2000 {
        let stream = TcpStream::connect(("127.0.0.1", listen)).unwrap();
        if round % 2 == 0 {
            reset(stream);
        }
    }
    assert!(answers_tcp(listen, &mut good, "beside") && answers_udp(listen, "beside-too"));
    viahop.wait_until("all but one have ended", PATIENCE, |_| viahop.metric("viahop_connections", "") == 1.0);
    assert_eq!(viahop.metric("viahop_connections_held_bytes", ""), 0.0);
    viahop.end();
}

#[test]
fn when_descriptors_run_out_accepting_pauses_and_everything_else_goes_on() {
    if !has_peer("prlimit") {
        return;
    }
    let (listen, backend) = (free_port(), Backend::new());
    let text = config(listen, &[udp(backend.port())], "").replace("shards = 2", "shards = 1");
    let viahop = Viahop::start("descriptors", &text);
    let mut good = Client::connect(listen);
    assert!(answers_tcp(listen, &mut good, "before"));
    let pid = viahop.process.0.id();
    let in_use = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let used = in_use();
    // Room for eight connections, and for whoever asks for the metrics.
    let limit = |descriptors: usize| {
        let args = ["--pid", &pid.to_string(), &format!("--nofile={descriptors}:")];
        assert!(Command::new("prlimit").args(args).status().unwrap().success());
    };
    limit(used + 8);
    let waiting: Vec<Client> = (0..40).map(|_| Client::connect(listen)).collect();
    // Nobody else can ask it anything now.
    let until = Instant::now() + PATIENCE;
    while in_use() < used + 8 {
        assert!(Instant::now() < until, "{} of {}", in_use(), used + 8);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(answers_tcp(listen, &mut good, "beside") && answers_udp(listen, "beside-too"));
    limit(used + 1000);
    viahop.wait_until("accepting goes on", PATIENCE, |_| viahop.metric("viahop_connections", "") == 41.0);
    assert!(viahop.metric("viahop_accept_pauses_total", "") >= 1.0);
    for (number, mut client) in waiting.into_iter().enumerate() {
        assert!(answers_tcp(listen, &mut client, &format!("after{number}")));
    }
    viahop.end();
}

/// A message that comes an octet at a time takes its time and nothing else.
#[test]
fn two_hundred_who_dribble_are_served_beside_traffic_at_full_speed() {
    if !has_peer("sipp") {
        return;
    }
    let _alone = alone();
    let folder = Folder::new("dribble");
    let (listen, server) = (free_port(), free_port());
    let _uas = sipp_uas(&folder.0, server, &[]);
    let more = "[streams]\nframe_timeout = \"30s\"\n";
    let viahop = Viahop::start("dribble", &config(listen, &[udp(server)], more));
    let mut uac = Process::start(&mut sipp_uac(&folder.0, listen, 1000, 200, &[]));
    let mut clients: Vec<(Client, String)> = (0..200)
        .map(|number| {
            let client = Client::connect(listen);
            let text = ping(listen, "TCP", client.address(), &format!("drop{number}"));
            (client, text)
        })
        .collect();
    let longest = clients.iter().map(|(_, text)| text.len()).max().unwrap();
    for at in 0..longest {
        let round = Instant::now();
        for (client, text) in &mut clients {
            if let Some(octet) = text.as_bytes().get(at) {
                client.say([*octet]);
            }
        }
        std::thread::sleep(Duration::from_millis(10).saturating_sub(round.elapsed()));
    }
    for (client, _) in &mut clients {
        assert!(client.hear().starts_with("SIP/2.0 200"));
    }
    let status = uac.wait(Duration::from_secs(60));
    let calls = calls(&folder.0);
    assert_eq!((calls.successful, calls.failed), (1000, 0), "{status:?}");
    assert_eq!(viahop.metric("viahop_connections_ended_total", "slow"), 0.0);
    viahop.end();
}

#[test]
fn ctl_lists_who_is_connected_on_every_shard() {
    let (listen, backend) = (free_port(), Backend::new());
    let balancer = Viahop::start("connections", &config(listen, &[udp(backend.port())], ""));
    let socket = balancer.folder.0.join("ctl.sock");
    let ctl = |args: &[&str]| output(&mut viahop(&[&["ctl", "--socket", socket.to_str().unwrap()], args].concat()));
    assert_eq!(ctl(&["connections"]), (0, "no connection\n".into(), String::new()));

    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(listen)).collect();
    balancer.wait_until("all are accepted", PATIENCE, |_| balancer.metric("viahop_connections", "") == 20.0);
    clients[7].say("INVITE sip:");
    let ringing = request("INVITE", "TCP", clients[8].address(), "ringing", EMPTY);
    clients[8].say(ringing);
    backend.hear();
    let is_seen = |answer: &Value, index: usize, name: &str, value: u64| {
        let peer = clients[index].address().to_string();
        answer["connections"].as_array().unwrap().iter().any(|one| one["peer"] == *peer && one[name] == value)
    };
    balancer.wait_until("both are known", PATIENCE, |_| {
        let answer: Value = serde_json::from_str(&ctl(&["--format", "json", "connections"]).1).unwrap();
        assert_eq!((&answer["count"], answer["connections"].as_array().unwrap().len()), (&20.into(), 20));
        assert_eq!(answer["silent_shards"], Value::Array(Vec::new()));
        is_seen(&answer, 7, "partial", 11) && is_seen(&answer, 8, "unanswered", 1)
    });
    let (code, text, _) = ctl(&["connections"]);
    assert!(code == 0 && text.ends_with("\n\n20 in all\n"), "{text}");
    assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    assert!(text.contains(&format!("{}  tcp:127.0.0.1:{listen}  open", clients[0].address())), "{text}");
    assert_eq!(ctl(&["--format", "csv", "connections"]).1.lines().count(), 21);
    assert!(ctl(&["connections", "127.0.0.1"]).1.ends_with("\n20 in all\n"));
    assert_eq!(ctl(&["connections", "192.0.2.1"]).1, "no connection\n");
    let (code, _, said) = ctl(&["connections", "nonsense"]);
    assert!(code == 2 && said.contains("nonsense"), "{said}");
    balancer.end();
}

/// Callers over UDP, TCP and TLS, servers over UDP and TCP, 5,000 calls up at the same time: two servers are drained, and each
/// call goes on where it is, through its re-INVITE to its BYE.
#[test]
fn five_thousand_calls_over_every_transport_outlive_the_drain_of_their_servers() {
    let _alone = alone();
    let papers = Papers::new("mixed");
    let certificate = papers.issue("a", &["localhost"]);
    let backend = |transport| endpoint::parse_listen(&format!("{transport}:127.0.0.1:{}", free_port())).unwrap()[0];
    let backends = ["udp", "tcp", "udp", "tcp"].map(backend);
    let uas = Uas::start(uas::Config { backends: backends.into(), ..Default::default() }).unwrap();
    let addresses = uas.addresses().to_vec();
    let uri = |(number, address): (usize, &SocketAddr)| match number % 2 {
        0 => format!("{{ uri = \"sip:{address}\" }}"),
        _ => format!("{{ uri = \"sip:{address};transport=tcp\" }}"),
    };
    let uris: Vec<String> = addresses.iter().enumerate().map(uri).collect();
    let (plain, sealed) = (free_port(), free_port());
    let balancer = Viahop::start(
        "mixed",
        &format!(
            "[balancer]\nshards = 2\n[[listen]]\naddress = \"udp:127.0.0.1:{plain}\"\n\
             [[listen]]\naddress = \"tcp:127.0.0.1:{plain}\"\n\
             [[listen]]\naddress = \"tls:127.0.0.1:{sealed}\"\ntls = {{ {certificate} }}\n\
             [[pool]]\n{UNPROBED}\nbackend = [{}]\n",
            uris.join(", ")
        ),
    );
    // All are placed within 14 s, and none ends before 20 s: there are two holds.
    let (calls, hold_ns) = (1667, 10_000_000_000);
    let place = |target: String| {
        let Endpoint { transport, address: target } = endpoint::parse_target(&target).unwrap();
        let config = uac::Config {
            transport,
            tls: Some(viahop_load::tls::Client::new("localhost", None).unwrap()),
            mix: Scenario::built_in("reinvite").unwrap().into(),
            rate: 120.0,
            calls,
            hold_ns,
            connections: 10,
            duration_ns: u64::MAX >> 8,
            ..uac::Config::new(target)
        };
        Uac::start(config).unwrap()
    };
    let targets = [
        format!("sip:127.0.0.1:{plain}"),
        format!("sip:127.0.0.1:{plain};transport=tcp"),
        format!("sips:127.0.0.1:{sealed}"),
    ];
    let callers = targets.map(place);
    let placed = || callers.iter().map(|uac| uac.snapshot().counts.placed).sum::<u64>();
    balancer.wait_until("all calls are placed", Duration::from_secs(40), |_| placed() == 3 * calls);
    let socket = balancer.folder.0.join("ctl.sock");
    for address in &addresses[..2] {
        let args = ["ctl", "--socket", socket.to_str().unwrap(), "backend", &address.to_string(), "drain"];
        let (code, _, said) = output(&mut viahop(&args));
        assert_eq!(code, 0, "{said}");
    }
    let ended = callers.iter().map(|uac| uac.snapshot().counts.completed).sum::<u64>();
    assert_eq!(ended, 0, "all were up when the servers were drained");
    for (caller, target) in callers.into_iter().zip(["udp", "tcp", "tls"]) {
        let counts = caller.join().counts;
        assert_eq!((counts.completed, counts.failed), (calls, 0), "{target}");
    }
    assert_eq!(uas.join().total().moved, 0);
    balancer.end();
}
