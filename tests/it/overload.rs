//! More than viahop can carry: calls that are up go on, new ones are refused, and it is over when the surge is.

use crate::live::{PATIENCE, UNPROBED, Viahop, alone, config, free_port, udp_server};
use socket2::SockRef;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn request(method: &str, call: &str, to_tag: &str) -> Vec<u8> {
    format!(
        "{method} sip:bob@example.net SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:5;branch=z9hG4bK{method}{call};rport\r\n\
         Max-Forwards: 70\r\nFrom: <sip:a@example.net>;tag=1\r\nTo: <sip:bob@example.net>{to_tag}\r\n\
         Call-ID: {call}\r\nCSeq: 1 {method}\r\nContact: <sip:a@127.0.0.1>\r\nContent-Length: 0\r\n\r\n"
    )
    .into_bytes()
}

/// Answers every request but those of the surge, until it is told to stop.
fn serve(socket: &UdpSocket, is_over: &AtomicBool) {
    let mut room = vec![0; 65_536];
    while !is_over.load(Ordering::Relaxed) {
        let Ok((len, from)) = socket.recv_from(&mut room) else { continue };
        let text = String::from_utf8_lossy(&room[..len]).into_owned();
        if text.contains("Call-ID: surge") {
            continue;
        }
        let rows = text.split("\r\n").skip(1).filter(|row| !row.starts_with("Max-Forwards"));
        let answer = ["SIP/2.0 200 OK"].into_iter().chain(rows).collect::<Vec<_>>().join("\r\n");
        socket.send_to(answer.as_bytes(), from).unwrap();
    }
}

/// Sends INVITEs as fast as it can, and counts what is refused.
fn surge(target: u16, is_over: &AtomicBool, refused: &AtomicU64) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(("127.0.0.1", target)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut room = vec![0; 2048];
    let mut call = 0u32;
    let from = socket.local_addr().unwrap();
    while !is_over.load(Ordering::Relaxed) {
        for _ in 0..64 {
            call += 1;
            socket.send(&request("INVITE", &format!("surge-{call}@{from}"), "")).ok();
        }
        while let Ok(len) = socket.recv(&mut room) {
            refused.fetch_add(u64::from(room[..len].starts_with(b"SIP/2.0 503 Overloaded")), Ordering::Relaxed);
        }
    }
}

/// Sends what viahop answers itself, as fast as it can, from a port that refuses all answers.
fn ask_and_refuse(target: u16, is_over: &AtomicBool) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    // Connected elsewhere it takes nothing from viahop, to which the kernel says so (ICMP).
    socket.connect("127.0.0.1:9").unwrap();
    let text = String::from_utf8(request("OPTIONS", "refusing", "")).unwrap();
    let text = text.replace("sip:bob@example.net SIP", &format!("sip:127.0.0.1:{target} SIP"));
    while !is_over.load(Ordering::Relaxed) {
        SockRef::from(&socket).send_to(text.as_bytes(), &SocketAddr::from(([127, 0, 0, 1], target)).into()).ok();
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Sends `message` every 20 ms until it is answered: how long that took, and the status line.
fn ask(client: &UdpSocket, target: u16, message: &[u8]) -> Option<(Duration, String)> {
    let start = Instant::now();
    let mut room = vec![0; 4096];
    while start.elapsed() < PATIENCE {
        client.send_to(message, ("127.0.0.1", target)).unwrap();
        if let Ok(len) = client.recv(&mut room) {
            let text = String::from_utf8_lossy(&room[..len]).into_owned();
            return Some((start.elapsed(), text.lines().next().unwrap_or_default().to_owned()));
        }
    }
    None
}

#[test]
fn in_a_surge_new_calls_are_refused_those_that_are_up_end_and_afterwards_all_are_served_within_two_seconds() {
    let _alone = alone();
    let server = udp_server();
    server.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let listen = free_port();
    let backends = [server.local_addr().unwrap().port()];
    let text = config(listen, &backends, UNPROBED).replace("shards = 2", "shards = 1");
    let viahop = Viahop::start("overload", &text);
    let caller = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        socket
    };
    let (surge_is_over, all_is_over, refused) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| serve(&server, &all_is_over));
        for _ in 0..2 {
            scope.spawn(|| surge(listen, &surge_is_over, &refused));
        }
        scope.spawn(|| ask_and_refuse(listen, &surge_is_over));
        let start = Instant::now();
        while refused.load(Ordering::Relaxed) < 100 && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
        }
        let in_call: Vec<_> =
            (0..8).map(|call| ask(&caller(), listen, &request("BYE", &format!("up-{call}"), ";tag=2"))).collect();
        let still = refused.load(Ordering::Relaxed);
        surge_is_over.store(true, Ordering::Relaxed);
        let after = ask(&caller(), listen, &request("INVITE", "after", ""));
        // A new call that finds the rest of the surge in front of it is refused, and the next is not.
        let later = ask(&caller(), listen, &request("INVITE", "later", ""));
        all_is_over.store(true, Ordering::Relaxed);
        let took: Duration = [&after, &later].into_iter().flatten().map(|answer| answer.0).sum();
        println!("{still} refused; in calls {in_call:?}; afterwards {after:?}, {later:?}");
        assert!(still >= 100, "{still} refused");
        assert!(in_call.iter().flatten().filter(|answer| answer.1 == "SIP/2.0 200 OK").count() == 8, "{in_call:?}");
        assert!(later.is_some_and(|answer| answer.1 == "SIP/2.0 200 OK") && took < Duration::from_secs(2), "{took:?}");
    });
    viahop.wait_until("told of", PATIENCE, |_| {
        viahop.metric("viahop_requests_shed_total", "") >= 100.0 && viahop.log().contains("event=\"overload\"")
    });
    viahop.end();
}
