//! Copies for a collector: taken by sngrep, read by tshark.

use crate::live::{
    Folder, PATIENCE, Process, UNPROBED, Viahop, calls, free_port, sipp_uac, sipp_uas, tcp_server, wait_for_port,
};
use crate::streams::{Backend, Client, EMPTY, answer, request, rows, tcp, udp};
use crate::support::has_peer;
use crate::tls::{Papers, Phone};
use rustls::version::TLS13;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// sngrep as a collector, which writes what it gets as if it had seen it on a wire. It says nothing of transports: all is UDP.
struct Collector {
    folder: Folder,
    port: u16,
    process: Process,
}

/// What tshark reads of a message.
#[derive(Clone, Debug)]
struct Copy {
    from: String,
    to: String,
    call_id: String,
    vias: usize,
    max_forwards: String,
    time: f64,
}

impl Collector {
    fn start(name: &str) -> Option<Collector> {
        if !has_peer("sngrep") || !has_peer("tshark") {
            return None;
        }
        let (folder, port) = (Folder::new(name), free_port());
        let mut command = Command::new("sngrep");
        command.args(["-N", "-q", "-L", &format!("udp:127.0.0.1:{port}"), "-O", "copies.pcap"]);
        command.current_dir(&folder.0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Process::start(&mut command);
        wait_for_port(port);
        Some(Collector { folder, port, process })
    }

    /// What it got, which is `count` copies: what it has not read when it is told to end is lost.
    fn end(mut self, count: usize) -> Vec<Copy> {
        let path = self.folder.0.join("copies.pcap");
        let until = Instant::now() + PATIENCE;
        while copies_in(&fs::read(&path).unwrap_or_default()) < count {
            assert!(Instant::now() < until, "sngrep has less than {count}");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.process.signal("INT");
        self.process.wait(Duration::from_secs(10));
        let mut command = Command::new("tshark");
        // Ports of tests are any: what they carry is SIP, whatever tshark knows them for.
        command.args(["-r", "copies.pcap", "-d", "udp.port==1-65535,sip", "-T", "fields", "-E", "separator=|"]);
        let fields = ["ip.src", "udp.srcport", "ip.dst", "udp.dstport", "sip.Call-ID", "sip.Via", "sip.Max-Forwards"];
        command.args(fields.iter().chain(&["frame.time_epoch"]).flat_map(|field| ["-e", field]));
        command.args(["-E", "aggregator=;"]).current_dir(&self.folder.0);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let copies = text.lines().map(|line| {
            let parts: Vec<&str> = line.split('|').collect();
            Copy {
                from: format!("{}:{}", parts[0], parts[1]),
                to: format!("{}:{}", parts[2], parts[3]),
                call_id: parts[4].into(),
                vias: parts[5].matches("SIP/2.0/").count(),
                max_forwards: parts[6].into(),
                time: parts[7].parse().unwrap(),
            }
        });
        copies.collect()
    }
}

/// How many packets are whole in what is written of a capture.
fn copies_in(file: &[u8]) -> usize {
    let mut rest = file.get(24..).unwrap_or_default();
    std::iter::from_fn(|| {
        let len = u32::from_le_bytes(rest.get(8..12)?.try_into().unwrap());
        rest = rest.get(16 + len as usize..)?;
        Some(())
    })
    .count()
}

fn config(listen: &str, backend: &str, capture: &str) -> String {
    format!(
        "[balancer]\nshards = 2\ngso = \"always\"\n{listen}\n[[pool]]\n{UNPROBED}\nbackend = [{{ uri = \"{backend}\" }}]\n\
         [capture]\n{capture}\n"
    )
}

/// A viahop through which SIPp has placed calls, its collector, and the ports of viahop and of the server.
fn copied_calls(name: &str, count: u32, capture: &str) -> Option<(Viahop, Collector, [u16; 2])> {
    let collector = has_peer("sipp").then(|| Collector::start(name)).flatten()?;
    let (port, listen) = (free_port(), free_port());
    // Nobody sends anything again, so that it is known how many copies there are.
    let _server = sipp_uas(&collector.folder.0, port, &["-nr"]);
    let listener = format!("[[listen]]\naddress = \"udp:127.0.0.1:{listen}\"");
    let capture = format!("hep = \"udp:127.0.0.1:{}\"\n{capture}", collector.port);
    let viahop = Viahop::start(name, &config(&listener, &udp(port), &capture));
    let mut client = Process::start(&mut sipp_uac(&collector.folder.0, listen, count, 100, &["-nr"]));
    assert!(client.wait(Duration::from_secs(60)).is_some_and(|status| status.success()));
    assert_eq!(calls(&collector.folder.0).successful, u64::from(count));
    Some((viahop, collector, [listen, port]))
}

#[test]
fn a_collector_gets_every_message_as_it_came_and_as_it_left() {
    let Some((viahop, collector, ports)) = copied_calls("capture", 20, "node = 7") else { return };
    // INVITE, 180, 200, ACK, BYE, 200; each twice.
    viahop.wait_for_metric("viahop_capture_packets_total", "outcome=\"sent\"", 240.0);
    viahop.end();
    let mut copies = collector.end(240);
    assert_eq!(copies.len(), 240);
    // Each call is on one shard, which copies its messages in order; between those of two shards there is none.
    copies.sort_by(|one, other| one.call_id.cmp(&other.call_id));
    let [us, server] = ports.map(|port| format!("127.0.0.1:{port}"));
    let (came, left): (Vec<&Copy>, Vec<&Copy>) = copies.iter().partition(|copy| copy.to == us || copy.from == server);
    assert_eq!((came.len(), left.len()), (120, 120));
    let client: BTreeSet<&str> = came.iter().filter(|copy| copy.to == us).map(|copy| &copy.from[..]).collect();
    assert_eq!(client.len(), 1);
    for (came, left) in came.iter().zip(&left) {
        let is_request = came.to == us;
        assert_eq!(came.call_id, left.call_id);
        assert!((left.time - came.time).abs() < 5.0, "{came:?} {left:?}");
        let (vias, hops, towards) = match is_request {
            true => ((1, 2), ("70", "69"), &server[..]),
            false => ((2, 1), ("", ""), *client.first().unwrap()),
        };
        assert_eq!((came.vias, left.vias), vias, "{came:?} {left:?}");
        assert_eq!((&came.max_forwards[..], &left.max_forwards[..]), hops, "{came:?} {left:?}");
        assert_eq!(left.to, towards);
        // Answers come to the port that requests leave from.
        assert!(is_request || (left.from == us && came.to.starts_with("127.0.0.1:")), "{came:?} {left:?}");
    }
}

#[test]
fn a_share_of_calls_is_copied_whole() {
    let Some((viahop, collector, _)) = copied_calls("capture-share", 200, "share = 30") else { return };
    viahop.wait_for_metric("viahop_messages_forwarded_total", "", 1200.0);
    let mut sent = 0.0;
    viahop.wait_until("whole calls are copied", PATIENCE, |_| {
        sent = viahop.metric("viahop_capture_packets_total", "outcome=\"sent\"");
        sent % 12.0 == 0.0
    });
    viahop.end();
    let mut calls: BTreeMap<String, usize> = BTreeMap::new();
    collector.end(sent as usize).into_iter().for_each(|copy| *calls.entry(copy.call_id).or_default() += 1);
    // Thrown like dice: six standard deviations.
    assert!((60 - 39..=60 + 39).contains(&calls.len()), "{}", calls.len());
    assert!(calls.values().all(|&copies| copies == 12), "{calls:?}");
}

#[test]
fn what_comes_by_tls_is_copied_in_clear() {
    let Some(collector) = Collector::start("capture-tls") else { return };
    let (papers, backend, listen) = (Papers::new("capture-papers"), Backend::new(), free_port());
    let listener = format!(
        "[[listen]]\naddress = \"tls:127.0.0.1:{listen}\"\ntls = {{ {} }}",
        papers.issue("a", &["sip.example"])
    );
    let capture = format!("hep = \"udp:127.0.0.1:{}\"", collector.port);
    let viahop = Viahop::start("capture-tls", &config(&listener, &udp(backend.port()), &capture));
    let mut phone = Phone::new(&papers, listen, &TLS13, None).connect("sip.example");
    let own = phone.address();
    phone.say(request("INVITE", "TLS", "192.0.2.1", "sealed", EMPTY));
    let (sent, from) = backend.hear();
    backend.say(&answer(&sent, "200 OK", ""), from);
    assert_eq!(rows(&phone.hear(), "Via").len(), 1);
    viahop.wait_for_metric("viahop_capture_packets_total", "outcome=\"sent\"", 4.0);
    viahop.end();
    let ways: Vec<(String, String)> = collector.end(4).into_iter().map(|copy| (copy.from, copy.to)).collect();
    let (own, us, shard, server) =
        (own.to_string(), format!("127.0.0.1:{listen}"), from.to_string(), format!("127.0.0.1:{}", backend.port()));
    let expected = [(&own, &us), (&shard, &server), (&server, &shard), (&us, &own)];
    assert_eq!(ways, expected.map(|(from, to)| (from.clone(), to.clone())));
}

/// A collector takes whatever has another address for another host, and draws it apart.
#[test]
fn we_are_at_one_address_on_both_ways_of_a_connection() {
    let Some(collector) = Collector::start("capture-ends") else { return };
    let (server, listen) = (tcp_server(), free_port());
    let listener = format!("[[listen]]\naddress = \"tcp:0.0.0.0:{listen}\"");
    let capture = format!("hep = \"udp:127.0.0.1:{}\"", collector.port);
    let port = server.local_addr().unwrap().port();
    let viahop = Viahop::start("capture-ends", &config(&listener, &tcp(port), &capture));
    let mut phone = Client::of(TcpStream::connect(("127.0.0.7", listen)).unwrap());
    let own = phone.address();
    phone.say(request("INVITE", "TCP", "192.0.2.1", "wild", EMPTY));
    let mut connection = Client::of(server.accept().unwrap().0);
    let sent = connection.hear();
    let via = rows(&sent, "Via")[0].split([' ', ';']).nth(1).unwrap().to_owned();
    connection.say(answer(&sent, "200 OK", EMPTY));
    phone.hear();
    viahop.wait_for_metric("viahop_capture_packets_total", "outcome=\"sent\"", 4.0);
    viahop.end();
    let ways: Vec<(String, String)> = collector.end(4).into_iter().map(|copy| (copy.from, copy.to)).collect();
    let (own, us, server) = (own.to_string(), format!("127.0.0.7:{listen}"), format!("127.0.0.1:{port}"));
    let expected = [(&own, &us), (&via, &server), (&server, &via), (&us, &own)];
    assert_eq!(ways, expected.map(|(from, to)| (from.clone(), to.clone())));
}

#[test]
fn what_we_answer_for_a_server_that_is_away_is_copied() {
    let Some(collector) = Collector::start("capture-503") else { return };
    let (port, listen) = (free_port(), free_port());
    let listener = format!("[[listen]]\naddress = \"tcp:127.0.0.1:{listen}\"");
    let capture = format!("hep = \"udp:127.0.0.1:{}\"", collector.port);
    let viahop = Viahop::start("capture-503", &config(&listener, &tcp(port), &capture));
    let mut phone = Client::connect(listen);
    let own = phone.address().to_string();
    phone.say(request("INVITE", "TCP", "192.0.2.1", "away", EMPTY));
    assert!(phone.hear().starts_with("SIP/2.0 503 "));
    viahop.wait_for_metric("viahop_capture_packets_total", "outcome=\"sent\"", 3.0);
    viahop.end();
    let copies = collector.end(3);
    let us = format!("127.0.0.1:{listen}");
    let ways: Vec<(&str, &str)> = copies.iter().map(|copy| (&copy.from[..], &copy.to[..])).collect();
    assert_eq!((ways.len(), ways[0], ways[2]), (3, (&own[..], &us[..]), (&us[..], &own[..])));
    assert_eq!(copies[2].call_id, "away");
}

#[test]
fn a_collector_that_is_away_costs_nobody_but_itself() {
    if !has_peer("sipp") {
        return;
    }
    let (folder, port, listen) = (Folder::new("capture-away"), free_port(), free_port());
    let _server = sipp_uas(&folder.0, port, &["-nr"]);
    let listener = format!("[[listen]]\naddress = \"udp:127.0.0.1:{listen}\"");
    let capture = |to: &str| config(&listener, &udp(port), &format!("hep = \"udp:{to}\""));
    // Nobody listens at the first, and to the second, which comes with a reload, the kernel sends nothing.
    let viahop = Viahop::start("capture-away", &capture(&format!("127.0.0.1:{}", free_port())));
    for to in [None, Some("255.255.255.255:9060")] {
        if let Some(to) = to {
            viahop.write_config(&capture(to));
            viahop.process.signal("HUP");
            viahop.wait_until("the reload", PATIENCE, |status| status["generation"] == 2);
        }
        let mut client = Process::start(&mut sipp_uac(&folder.0, listen, 20, 50, &["-nr"]));
        assert!(client.wait(Duration::from_secs(60)).is_some_and(|status| status.success()), "{:?}", calls(&folder.0));
    }
    viahop.wait_for_metric("viahop_capture_packets_total", "outcome=\"lost\"", 240.0);
    viahop.end();
}
