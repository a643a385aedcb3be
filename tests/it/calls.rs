//! Calls of SIPp through the program, to SIPp; and what tshark has to say about them.

use crate::live::{Folder, Process, UNPROBED, Viahop, calls, config, free_port, sipp_uac, sipp_uas};
use crate::support::{has_peer, skip};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

fn uas_ports() -> Vec<u16> {
    (0..4).map(|_| free_port()).collect()
}

#[test]
fn ten_thousand_calls_at_500_a_second_complete_without_a_retransmission() {
    if !has_peer("sipp") {
        return;
    }
    let folder = Folder::new("calls");
    let ports = uas_ports();
    let servers: Vec<Process> = ports.iter().map(|&port| sipp_uas(&folder.0, port, &[])).collect();
    let listen = free_port();
    let viahop = Viahop::start("calls", &config(listen, &ports, UNPROBED));
    let capture = Capture::start(&folder.0, listen, &ports);
    let mut client = Process::start(&mut sipp_uac(&folder.0, listen, 10_000, 500, &[]));
    assert!(client.wait(2 * MINUTE).is_some_and(|status| status.success()), "{:?}", calls(&folder.0));
    let counted = calls(&folder.0);
    assert_eq!((counted.successful, counted.failed, counted.retransmissions), (10_000, 0, 0));
    let shares: Vec<f64> =
        ports.iter().map(|port| viahop.metric("viahop_messages_forwarded_total", &port.to_string())).collect();
    let total: f64 = shares.iter().sum();
    assert!(shares.iter().all(|share| (share / total - 0.25).abs() < 0.03), "{shares:?}");
    if let Some(capture) = capture {
        capture.judge(listen, &ports);
    }
    let log = viahop.end();
    assert!(log.contains("received=60000 forwarded=60000 replied=0 dropped=0"), "{log}");
    drop(servers);
}

#[test]
fn with_one_message_in_twenty_lost_every_call_stays_on_its_backend_and_completes() {
    if !has_peer("sipp") {
        return;
    }
    let folder = Folder::new("lost");
    let ports = uas_ports();
    let lost = ["-lost", "5", "-trace_msg"];
    let folders: Vec<Folder> = ports.iter().map(|port| Folder::new(&port.to_string())).collect();
    let servers: Vec<Process> =
        ports.iter().zip(&folders).map(|(&port, folder)| sipp_uas(&folder.0, port, &lost)).collect();
    let listen = free_port();
    let viahop = Viahop::start("lost", &config(listen, &ports, UNPROBED));
    // Far more retransmissions than SIPp allows by default: a loss on either side of either message is one.
    let mut client = Process::start(&mut sipp_uac(&folder.0, listen, 2000, 200, &["-lost", "5", "-max_retrans", "30"]));
    assert!(client.wait(3 * MINUTE).is_some(), "{:?}", calls(&folder.0));
    let counted = calls(&folder.0);
    assert!(counted.retransmissions > 100, "{counted:?}");
    // SIPp's server ends a call once it has answered BYE and answers the next BYE of the call as one it does not know: the
    // client then counts a call as failed whose 200 was lost. That is 5 % of 5 % of calls at most.
    assert!(counted.successful >= 1900, "{counted:?}");
    let mut homes: HashMap<String, BTreeSet<u16>> = HashMap::new();
    for (&port, folder) in ports.iter().zip(&folders) {
        for call_id in call_ids_received(&folder.0) {
            homes.entry(call_id).or_default().insert(port);
        }
    }
    assert!(homes.len() >= 1990, "{}", homes.len());
    let strays: Vec<_> = homes.iter().filter(|(_, ports)| ports.len() > 1).collect();
    assert!(strays.is_empty(), "{strays:?}");
    drop(servers);
    viahop.end();
}

/// Call-IDs of what SIPp's message log says it received.
fn call_ids_received(folder: &Path) -> BTreeSet<String> {
    let files = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    let logs = files.filter(|path| path.to_string_lossy().ends_with("messages.log"));
    let text: String = logs.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let received =
        text.split("-----------------------------------------------").filter(|part| part.contains("message received"));
    received
        .filter_map(|part| part.lines().find_map(|line| line.strip_prefix("Call-ID: ")))
        .map(str::to_owned)
        .collect()
}

/// What went over loopback, for tshark.
struct Capture {
    process: Process,
    path: std::path::PathBuf,
}

impl Capture {
    /// `None`, and said so, where we may not capture or have no tshark.
    fn start(folder: &Path, listen: u16, ports: &[u16]) -> Option<Capture> {
        if !has_peer("tshark") || !has_peer("dumpcap") {
            return None;
        }
        let path = folder.join("calls.pcapng");
        let mut filter = format!("udp port {listen}");
        ports.iter().for_each(|port| filter.push_str(&format!(" or udp port {port}")));
        let mut command = Command::new("dumpcap");
        command.args(["-q", "-i", "lo", "-B", "64", "-f", &filter, "-w"]).arg(&path);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Process::start(&mut command);
        let until = std::time::Instant::now() + crate::live::PATIENCE;
        while std::fs::metadata(&path).map_or(0, |meta| meta.len()) == 0 {
            if process.0.try_wait().unwrap().is_some() || std::time::Instant::now() > until {
                skip("capturing on loopback is not permitted");
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(300));
        Some(Capture { process, path })
    }

    /// Every response at the caller has exactly the Vias that the caller sent, every request at a server has ours on top
    /// of them, and tshark finds nothing malformed.
    fn judge(mut self, listen: u16, ports: &[u16]) {
        std::thread::sleep(Duration::from_millis(500));
        self.process.signal("INT");
        assert!(self.process.wait(MINUTE).is_some());
        let mut command = Command::new("tshark");
        command.args(["-r"]).arg(&self.path);
        for port in ports.iter().chain([&listen]) {
            command.args(["-d", &format!("udp.port=={port},sip")]);
        }
        command.args(["-T", "fields", "-E", "separator=\t", "-E", "aggregator=|"]);
        for field in [
            "udp.srcport",
            "udp.dstport",
            "sip.Method",
            "sip.Status-Code",
            "sip.Call-ID",
            "sip.CSeq",
            "sip.Via",
            "_ws.malformed",
        ] {
            command.args(["-e", field]);
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let mut sent: BTreeMap<(String, String), String> = BTreeMap::new();
        let (mut responses, mut requests) = (0, 0);
        for row in text.lines().map(|line| line.split('\t').collect::<Vec<_>>()) {
            let [from, to, method, status, call_id, cseq, vias, malformed] = row[..] else { panic!("{row:?}") };
            assert_eq!(malformed, "", "{row:?}");
            let key = (call_id.to_owned(), cseq.to_owned());
            // rport and received are what a proxy fills in (RFC 3581 4, RFC 3261 18.2.1); SIPp asks for neither.
            if !method.is_empty() && to == listen.to_string() {
                sent.insert(key, vias.to_owned());
            } else if !status.is_empty() && from == listen.to_string() {
                assert_eq!(Some(&vias.to_owned()), sent.get(&key), "{row:?}");
                responses += 1;
            } else if !method.is_empty() && ports.iter().any(|port| *port.to_string() == *to) {
                let (ours, theirs) = vias.split_once('|').unwrap_or_else(|| panic!("{row:?}"));
                assert!(ours.contains(";vh="), "{row:?}");
                assert_eq!(Some(&theirs.to_owned()), sent.get(&key), "{row:?}");
                requests += 1;
            }
        }
        // The kernel may drop packets of a capture, never many.
        assert!(responses > 29_000 && requests > 29_000, "{responses} responses, {requests} requests");
    }
}
