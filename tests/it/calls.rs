//! Calls of SIPp through the program, to SIPp; and what tshark has to say about them.

use crate::live::{
    Folder, Process, UNPROBED, Viahop, alone, calls, config, free_port, sipp, sipp_uac, sipp_uas, udp_server,
    wait_for_port,
};
use crate::support::{has_peer, skip};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use viahop::sys::uninterrupted;

const MINUTE: Duration = Duration::from_secs(60);

fn uas_ports() -> Vec<u16> {
    (0..4).map(|_| free_port()).collect()
}

#[test]
fn ten_thousand_calls_at_500_a_second_complete_without_a_retransmission() {
    if !has_peer("sipp") {
        return;
    }
    let _alone = alone();
    let folder = Folder::new("calls");
    let ports = uas_ports();
    // Nobody sends anything again: a call of which something was lost never ends.
    let servers: Vec<Process> = ports.iter().map(|&port| sipp_uas(&folder.0, port, &["-nr"])).collect();
    let listen = free_port();
    let viahop = Viahop::start("calls", &config(listen, &ports, UNPROBED));
    let capture = Capture::start(&folder.0, listen, &ports);
    let mut client = Process::start(&mut sipp_uac(&folder.0, listen, 10_000, 500, &["-nr"]));
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

/// What is alike and comes at once goes through the kernel as one, and is as many datagrams at the backend, each whole.
#[test]
fn with_gso_what_is_alike_arrives_one_by_one() {
    let (client, server) = (UdpSocket::bind("127.0.0.1:0").unwrap(), udp_server());
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let listen = free_port();
    let text = config(listen, &[server.local_addr().unwrap().port()], UNPROBED);
    let viahop = Viahop::start(
        "gso",
        &text.replacen("[balancer]\nshards = 2\n", "[balancer]\nshards = 1\ngso = \"always\"\n", 1),
    );
    let from = client.local_addr().unwrap();
    let message = |number: usize| {
        let body = "x".repeat(if number % 10 == 9 { 40 } else { 30 });
        format!(
            "MESSAGE sip:b@example.net SIP/2.0\r\nVia: SIP/2.0/UDP {from};branch=z9hG4bKgso{number:04}\r\nMax-Forwards: 70\r\n\
             From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: gso-{number:04}\r\nCSeq: 1 MESSAGE\r\n\
             Content-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    for round in 0..10 {
        let numbers = round * 100..(round + 1) * 100;
        for number in numbers.clone() {
            client.send_to(message(number).as_bytes(), ("127.0.0.1", listen)).unwrap();
        }
        let mut room = [0; 4096];
        let arrived: BTreeSet<usize> = numbers
            .clone()
            .map(|_| {
                let len = uninterrupted(|| server.recv(&mut room)).unwrap();
                let text = str::from_utf8(&room[..len]).unwrap();
                let number = text.split("Call-ID: gso-").nth(1).unwrap()[..4].parse().unwrap();
                let sent = message(number);
                let (_, below) = sent.split_once("From:").unwrap();
                assert!(
                    text.starts_with("MESSAGE sip:b@example.net SIP/2.0\r\nVia: ") && text.ends_with(below),
                    "{text}"
                );
                number
            })
            .collect();
        assert_eq!(arrived, numbers.collect());
    }
    let log = viahop.end();
    assert!(log.contains("received=1000 forwarded=1000 replied=0 dropped=0"), "{log}");
}

/// A shard that has enough to do tries what it costs to let messages gather, whatever it finds, and loses none by it.
#[test]
fn a_shard_at_work_lets_messages_gather_if_it_may_and_loses_none() {
    for (name, linger, transport) in
        [("linger", "1ms", "UDP"), ("no-linger", "0s", "UDP"), ("linger-tcp", "1ms", "TCP")]
    {
        let (client, server) = (UdpSocket::bind("127.0.0.1:0").unwrap(), udp_server());
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let listen = free_port();
        let mut text = config(listen, &[server.local_addr().unwrap().port()], UNPROBED);
        text += &format!("[[listen]]\naddress = \"tcp:127.0.0.1:{listen}\"\n");
        let keys = format!("[balancer]\nshards = 1\nlinger = \"{linger}\"\n");
        let viahop = Viahop::start(name, &text.replacen("[balancer]\nshards = 2\n", &keys, 1));
        let mut connection = TcpStream::connect(("127.0.0.1", listen)).unwrap();
        let from = client.local_addr().unwrap();
        let naps = || viahop.metric("viahop_shard_naps_total", "shard");
        let (mut sent, start) = (0, Instant::now());
        // Two a millisecond are enough; three at a time go many times as fast.
        while sent < 6000 || (linger != "0s" && naps() == 0.0 && start.elapsed() < MINUTE) {
            for number in sent..sent + 3 {
                let text = format!(
                    "MESSAGE sip:b@example.net SIP/2.0\r\nVia: SIP/2.0/{transport} {from};branch=z9hG4bKlinger{number}\r\n\
                     From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: linger-{number}\r\n\
                     CSeq: 1 MESSAGE\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
                );
                match transport {
                    "UDP" => drop(client.send_to(text.as_bytes(), ("127.0.0.1", listen)).unwrap()),
                    _ => connection.write_all(text.as_bytes()).unwrap(),
                }
            }
            for _ in 0..3 {
                uninterrupted(|| server.recv(&mut [0; 4096])).unwrap();
            }
            sent += 3;
        }
        assert_eq!(naps() > 0.0, linger != "0s", "{name}: {} naps", naps());
        let log = viahop.end();
        assert!(log.contains(&format!("received={sent} forwarded={sent} replied=0 dropped=0")), "{sent}: {log}");
    }
}

/// A run would be one packet in it, of which readers of SIP see the first message.
#[test]
fn in_a_capture_on_this_machine_each_message_is_a_packet_of_its_own() {
    let (client, server) = (UdpSocket::bind("127.0.0.1:0").unwrap(), udp_server());
    let (listen, port, from) = (free_port(), server.local_addr().unwrap().port(), client.local_addr().unwrap());
    let folder = Folder::new("runs-capture");
    let Some(mut capture) = Capture::start(&folder.0, listen, &[port]) else { return };
    let text = config(listen, &[port], UNPROBED).replacen("shards = 2\n", "shards = 1\ngso = \"auto\"\n", 1);
    let viahop = Viahop::start("runs-capture", &text);
    viahop.wait_until("no runs", crate::live::PATIENCE, |status| status["gso"] == false);
    // The shard finds them all at once, when it goes on.
    viahop.process.signal("STOP");
    for number in 0..40 {
        let message = format!(
            "MESSAGE sip:b@example.net SIP/2.0\r\nVia: SIP/2.0/UDP {from};branch=z9hG4bKrun{number:04}\r\nMax-Forwards: 70\r\n\
             From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: run-{number:04}\r\nCSeq: 1 MESSAGE\r\n\r\n"
        );
        client.send_to(message.as_bytes(), ("127.0.0.1", listen)).unwrap();
    }
    viahop.process.signal("CONT");
    server.set_read_timeout(Some(crate::live::PATIENCE)).unwrap();
    for _ in 0..40 {
        server.recv(&mut [0; 4096]).unwrap();
    }
    let log = viahop.log();
    viahop.end();
    std::thread::sleep(Duration::from_millis(500));
    capture.process.signal("INT");
    assert!(capture.process.wait(MINUTE).is_some());
    let output =
        Command::new("tshark").arg("-r").arg(&capture.path).args(["-Y", &format!("udp.dstport=={port}")]).output();
    assert_eq!(String::from_utf8_lossy(&output.unwrap().stdout).lines().count(), 40);
    assert!(log.contains("event=\"runs_paused\""), "{log}");
}

/// viahop with one shard, which may pad what goes to `port`.
fn padding_towards(name: &str, listen: u16, port: u16) -> Viahop {
    let mut text = config(listen, &[port], &format!("pad = true\n{UNPROBED}"));
    text += &format!("[[listen]]\naddress = \"tcp:127.0.0.1:{listen}\"\n");
    Viahop::start(name, &text.replacen("[balancer]\nshards = 2\n", "[balancer]\nshards = 1\ngso = \"always\"\n", 1))
}

/// Octets that mean nothing follow requests that say where they end, are few, and follow some.
#[test]
fn with_pad_requests_of_many_lengths_arrive_whole_and_in_front_of_line_ends() {
    let (client, server) = (UdpSocket::bind("127.0.0.1:0").unwrap(), udp_server());
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let listen = free_port();
    let viahop = padding_towards("pad", listen, server.local_addr().unwrap().port());
    let from = client.local_addr().unwrap();
    let message = |number: usize| {
        let body = "x".repeat(30 + 7 * (number % 8));
        let length = if number % 5 == 4 { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        format!(
            "MESSAGE sip:b@example.net SIP/2.0\r\nVia: SIP/2.0/UDP {from};branch=z9hG4bKpad{number:04}\r\nMax-Forwards: 70\r\n\
             From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: pad-{number:04}\r\nCSeq: 1 MESSAGE\r\n\
             Content-Type: text/plain\r\n{length}\r\n{body}",
        )
    };
    let padded_of = |count: usize| {
        let mut room = [0; 4096];
        let is_padded = |_| {
            let len = uninterrupted(|| server.recv(&mut room)).unwrap();
            let text = str::from_utf8(&room[..len]).unwrap();
            let number = text.split("Call-ID: pad-").nth(1).unwrap()[..4].parse().unwrap();
            let sent = message(number);
            let (_, below) = sent.split_once("From:").unwrap();
            let (_, behind) = text.split_once(below).unwrap_or_else(|| panic!("{text}"));
            assert!(behind.len() <= 64 && behind.bytes().all(|octet| b"\r\n".contains(&octet)), "{text}");
            assert!(behind.is_empty() || number % 5 != 4, "it does not say where it ends: {text}");
            !behind.is_empty()
        };
        (0..count).map(is_padded).filter(|&is_padded| is_padded).count()
    };
    let mut padded = 0;
    for round in 0..10 {
        // All are there when it looks.
        viahop.process.signal("STOP");
        for number in round * 100..(round + 1) * 100 {
            client.send_to(message(number).as_bytes(), ("127.0.0.1", listen)).unwrap();
        }
        viahop.process.signal("CONT");
        padded += padded_of(100);
    }
    assert!(padded > 400, "{padded} of 800 over UDP");
    let all: String = (0..100).filter(|number| number % 5 != 4).map(message).collect();
    TcpStream::connect(("127.0.0.1", listen)).unwrap().write_all(all.as_bytes()).unwrap();
    let padded = padded_of(80);
    assert!(padded > 30, "{padded} of 80 over TCP");
    let log = viahop.end();
    assert!(log.contains("received=1080 forwarded=1080 replied=0 dropped=0"), "{log}");
}

/// Calls of SIPp complete, whether SIPp reads what is padded or Kamailio does and passes it on.
#[test]
fn with_pad_calls_complete_at_sipp_and_behind_kamailio() {
    if !has_peer("sipp") || !has_peer("kamailio") {
        return;
    }
    let _alone = alone();
    for through_kamailio in [false, true] {
        let folders = [Folder::new("pad-client-1"), Folder::new("pad-client-2")];
        let server_folder = Folder::new("pad-server");
        let (listen, server_port, proxy_port) = (free_port(), free_port(), free_port());
        let server = sipp_uas(&server_folder.0, server_port, &["-nr", "-trace_msg", "-message_file", "messages"]);
        let proxy = through_kamailio.then(|| kamailio_in_front_of(&server_folder, proxy_port, server_port));
        let viahop = padding_towards("pad-calls", listen, if through_kamailio { proxy_port } else { server_port });
        let mut clients = [(&folders[0], "b"), (&folders[1], "bob-of-client-2")]
            .map(|(folder, user)| Process::start(&mut sipp_uac(&folder.0, listen, 1000, 250, &["-nr", "-s", user])));
        // It looks now and then, and finds what fifteen calls have sent: more than SIPp has room for would be lost.
        for client in &mut clients {
            let status = loop {
                viahop.process.signal("STOP");
                std::thread::sleep(Duration::from_millis(30));
                viahop.process.signal("CONT");
                if let Some(status) = client.wait(Duration::from_millis(30)) {
                    break status;
                }
            };
            assert!(status.success(), "{:?}", folders.each_ref().map(|folder| calls(&folder.0)));
        }
        for folder in &folders {
            let counted = calls(&folder.0);
            assert_eq!((counted.successful, counted.failed), (1000, 0), "{counted:?}");
        }
        let log = viahop.end();
        assert!(log.contains("dropped=0"), "{log}");
        drop((server, proxy));
        let padded = padded_requests(&std::fs::read_to_string(server_folder.0.join("messages")).unwrap());
        println!("through Kamailio: {through_kamailio}; {padded} of 6,000 requests came with padding");
        assert!(padded > 500, "{padded}");
    }
}

/// Kamailio with the dispatcher, as the comparisons have it.
fn kamailio_in_front_of(folder: &Folder, port: u16, server: u16) -> Process {
    let modules = "/usr/lib/x86_64-linux-gnu/kamailio/modules/:/usr/lib/aarch64-linux-gnu/kamailio/modules/";
    let runtime = folder.0.to_str().unwrap();
    let text = include_str!("../../loadtest/configs/kamailio.cfg");
    let text = text.replace("{ip}", "127.0.0.1").replace("{port}", &port.to_string());
    let cfg = folder.write("kamailio.cfg", &text.replace("{modules}", modules).replace("{dir}", runtime));
    folder.write("dispatcher.list", &format!("1 sip:127.0.0.1:{server}\n"));
    let mut command = Command::new("kamailio");
    command.args(["-DD", "-E", "-m", "64", "-M", "8", "-f"]).arg(&cfg).args(["-Y", runtime]);
    let process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    wait_for_port(port);
    process
}

/// How many of the requests in a message file of SIPp are longer than they say.
fn padded_requests(log: &str) -> usize {
    let received = log.split("message received [").skip(1).filter_map(|one| one.split_once("] bytes :\n\n"));
    let is_padded = |(len, text): (&str, &str)| {
        let (head, _) = text.split_once("\r\n\r\n")?;
        let body = head.split("Content-Length:").nth(1)?.split("\r\n").next()?;
        let said = head.len() + 4 + body.trim().parse::<usize>().ok()?;
        (len.parse::<usize>().ok()? > said).then_some(())
    };
    received.filter_map(is_padded).count()
}

#[test]
fn with_one_message_in_twenty_lost_every_call_stays_on_its_backend_and_completes() {
    if !has_peer("sipp") {
        return;
    }
    let _alone = alone();
    let folder = Folder::new("lost");
    let ports = uas_ports();
    let folders: Vec<Folder> = ports.iter().map(|port| Folder::new(&port.to_string())).collect();
    let servers: Vec<Process> =
        ports.iter().zip(&folders).map(|(&port, folder)| patient_server(folder, port)).collect();
    let listen = free_port();
    let viahop = Viahop::start("lost", &config(listen, &ports, UNPROBED));
    let mut client = Process::start(&mut sipp_uac(
        &folder.0,
        listen,
        2000,
        200,
        &["-l", "2000", "-lost", "5", "-max_retrans", "30"],
    ));
    assert!(client.wait(3 * MINUTE).is_some(), "{:?}", calls(&folder.0));
    let counted = calls(&folder.0);
    assert!(counted.retransmissions > 100, "{counted:?}");
    assert_eq!((counted.successful, counted.failed), (2000, 0), "{counted:?}");
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

/// SIPp as a server that survives losses. Its built-in scenario aborts a call whose BYE overtakes a lost ACK, and one that
/// sends 180 and 200 takes an INVITE that comes again for unexpected when both were lost: together they fail 18 of 2,000
/// calls with nothing between server and client. So the ACK is optional here, and there is no 180. The client loses
/// messages in both directions.
fn patient_server(folder: &Folder, port: u16) -> Process {
    let head = "[last_Via:]\n[last_From:]\n[last_To:];tag=[call_number]\n[last_Call-ID:]\n[last_CSeq:]\n\
                Contact: <sip:[local_ip]:[local_port]>\nContent-Length: 0\n\n";
    let scenario = format!(
        "<?xml version=\"1.0\"?><scenario name=\"patient\">\n<recv request=\"INVITE\"/>\n\
         <send retrans=\"700\"><![CDATA[\nSIP/2.0 200 OK\n{head}]]></send>\n\
         <recv request=\"ACK\" optional=\"true\"/>\n<recv request=\"BYE\"/>\n\
         <send><![CDATA[\nSIP/2.0 200 OK\n{}]]></send>\n<timewait milliseconds=\"32000\"/></scenario>",
        head.replace(";tag=[call_number]", "")
    );
    by_scenario(folder, port, &scenario, &["-max_retrans", "30", "-trace_msg"])
}

fn by_scenario(folder: &Folder, port: u16, scenario: &str, more: &[&str]) -> Process {
    let path = folder.write(&format!("{port}.xml"), scenario);
    let mut command = sipp(&folder.0);
    command.args(["-sf", path.to_str().unwrap(), "-p", &port.to_string()]).args(more);
    let process = Process::start(&mut command);
    wait_for_port(port);
    process
}

/// What counts is the first response that says more than 100, and of calls that succeed (RFC 6076 4.3.1).
#[test]
fn how_long_a_server_lets_its_callers_wait_is_told_of_each() {
    if !has_peer("sipp") {
        return;
    }
    let folder = Folder::new("delay");
    let (quick, slow, refuses) = (free_port(), free_port(), free_port());
    let _servers = [
        sipp_uas(&folder.0, quick, &["-nr"]),
        server_that(&folder, slow, &["100 Trying", "180 Ringing", "183 Session Progress", "200 OK"]),
        server_that(&folder, refuses, &["404 Not Found"]),
    ];
    let listen = free_port();
    let viahop = Viahop::start("delay", &config(listen, &[quick, slow, refuses], UNPROBED));
    let mut client = Process::start(&mut sipp_uac(&folder.0, listen, 90, 50, &["-nr"]));
    assert!(client.wait(MINUTE).is_some(), "{}", viahop.log());
    let of = |what: &str, port: u16, more: &str| {
        let name = format!("viahop_backend_request_delay_seconds_{what}");
        viahop.metric(&name, &format!("127.0.0.1:{port}\"{more}"))
    };
    for port in [quick, slow] {
        // One for each INVITE and one for each BYE.
        let accepted =
            || viahop.metric("viahop_responses_total", &format!("127.0.0.1:{port}\",code_class=\"2xx\"")) / 2.0;
        viahop.wait_until("each is counted", MINUTE, |_| accepted() > 5.0 && of("count", port, "") == accepted());
    }
    assert_eq!(of("bucket", slow, ",le=\"0.1\""), 0.0, "{}", viahop.metrics());
    let mean = |port: u16| of("sum", port, "") / of("count", port, "");
    assert!(mean(slow) >= 0.149 && mean(quick) < 0.149, "{} {}", mean(slow), mean(quick));
    assert_eq!(of("count", refuses, ""), 0.0, "{}", viahop.metrics());
    viahop.end();
}

/// SIPp as a server that answers an INVITE with each of `answers`, 150 ms behind each other, a 100 at once.
fn server_that(folder: &Folder, port: u16, answers: &[&str]) -> Process {
    let send = |line: &str, lasts: bool| {
        let attribute = if lasts { " retrans=\"500\"" } else { "" };
        format!(
            "<send{attribute}><![CDATA[\nSIP/2.0 {line}\n[last_Via:]\n[last_From:]\n[last_To:];tag=[call_number]\n[last_Call-ID:]\n\
             [last_CSeq:]\nContact: <sip:[local_ip]:[local_port]>\nContent-Length: 0\n\n]]></send>\n"
        )
    };
    let answers = answers.iter().map(|&line| match line {
        "100 Trying" => send(line, false),
        _ => format!("<pause milliseconds=\"150\"/>\n{}", send(line, line >= "2")),
    });
    let answers: String = answers.collect();
    let bye = if answers.contains("200 OK") {
        format!("<recv request=\"BYE\"/>\n{}", send("200 OK", false))
    } else {
        String::new()
    };
    let scenario = format!(
        "<?xml version=\"1.0\"?><scenario name=\"slow\">\n<recv request=\"INVITE\"/>\n{answers}<recv request=\"ACK\"/>\n{bye}</scenario>"
    );
    by_scenario(folder, port, &scenario, &["-nr"])
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
        let until = Instant::now() + crate::live::PATIENCE;
        while std::fs::metadata(&path).map_or(0, |meta| meta.len()) == 0 {
            if process.0.try_wait().unwrap().is_some() || Instant::now() > until {
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
