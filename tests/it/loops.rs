//! Loops: two viahops that take each other for a server, and one that takes itself for one.

use crate::live::{Viahop, free_port};
use std::net::UdpSocket;
use std::time::Duration;
use viahop::sys::uninterrupted;

fn config(listen: u16, backend: u16, secret: &str) -> String {
    format!(
        "[balancer]\nshards = 2\nsecret = \"{secret}\"\n[[listen]]\naddress = \"udp:127.0.0.1:{listen}\"\n\
         [[pool]]\nhealth = {{ probe = false }}\nbackend = [{{ uri = \"sip:127.0.0.1:{backend}\" }}]\n"
    )
}

/// What Max-Forwards says, or its absence.
const HOPS: [Option<u32>; 4] = [None, Some(0), Some(70), Some(255)];

/// Sends an INVITE of each kind to `listen`; each must be refused, and enter one of `nodes` again at most once. Returns
/// the codes.
fn codes(name: &str, listen: u16, nodes: &[&Viahop]) -> Vec<u16> {
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut codes = Vec::new();
    let invites = || nodes.iter().map(|node| node.metric("viahop_messages_received_total", "INVITE")).sum::<f64>();
    for (number, hops) in HOPS.iter().enumerate() {
        let hops = hops.map_or(String::new(), |hops| format!("Max-Forwards: {hops}\r\n"));
        let request = format!(
            "INVITE sip:bob@example.net SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:9;branch=z9hG4bK{name}{number};rport\r\n\
             {hops}From: <sip:a@example.net>;tag=1\r\nTo: <sip:bob@example.net>\r\nCall-ID: {name}-{number}\r\n\
             CSeq: 1 INVITE\r\nContact: <sip:a@127.0.0.1:9>\r\nContent-Length: 0\r\n\r\n"
        );
        let before = invites();
        client.send_to(request.as_bytes(), ("127.0.0.1", listen)).unwrap();
        let mut room = [0; 4096];
        let len = uninterrupted(|| client.recv(&mut room)).expect("the loop ends, and the client learns of it");
        let text = String::from_utf8_lossy(&room[..len]).into_owned();
        codes.push(text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{text}")));
        let entered = invites() - before;
        println!("{name}, {}: entered {entered} times, {}", hops.trim(), codes.last().unwrap());
        assert!(entered <= nodes.len() as f64 + 1.0, "{entered}");
    }
    codes
}

#[test]
fn two_nodes_pointed_at_each_other_end_a_request_when_it_comes_back() {
    for (name, secrets) in
        [("fleet", ["one secret for both"; 2]), ("strangers", ["the secret of one", "the secret of the other"])]
    {
        let [a, b] = [free_port(), free_port()];
        let one = Viahop::start("loop-a", &config(a, b, secrets[0]));
        let two = Viahop::start("loop-b", &config(b, a, secrets[1]));
        assert_eq!(codes(name, a, &[&one, &two]), [482, 483, 482, 482]);
        one.end();
        two.end();
    }
}

#[test]
fn a_node_pointed_at_itself_ends_a_request_when_it_comes_back() {
    let listen = free_port();
    let viahop = Viahop::start("loop", &config(listen, listen, "the secret of this node"));
    assert_eq!(codes("self", listen, &[&viahop]), [482, 483, 482, 482]);
    viahop.end();
}
