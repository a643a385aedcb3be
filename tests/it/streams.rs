//! TCP, for real: clients and backends over streams, mixed with datagrams; the bad ones among them; what each loses.

use crate::live::{
    Folder, PATIENCE, Process, UNPROBED, Viahop, alone, calls, free_port, sipp, sipp_uac, sipp_uas, tcp_server,
    udp_server, wait_for_port,
};
use crate::support::has_peer;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use viahop::sys::uninterrupted;

/// A UDP and a TCP listener on one port, and a pool; `more` is put in front of the pools.
pub fn config(listen: u16, backends: &[String], more: &str) -> String {
    let backends: Vec<String> = backends.iter().map(|uri| format!("{{ uri = \"{uri}\" }}")).collect();
    format!(
        "[balancer]\nshards = 2\n[[listen]]\naddress = \"udp:127.0.0.1:{listen}\"\n\
         [[listen]]\naddress = \"tcp:127.0.0.1:{listen}\"\n{more}\n[[pool]]\nname = \"proxies\"\n{UNPROBED}\n\
         backend = [{}]\n",
        backends.join(", ")
    )
}

pub fn udp(port: u16) -> String {
    format!("sip:127.0.0.1:{port}")
}

pub fn tcp(port: u16) -> String {
    format!("sip:127.0.0.1:{port};transport=tcp")
}

/// A client that speaks in pieces and waits for whole messages.
pub struct Client<S = TcpStream> {
    pub stream: S,
    pub came: Vec<u8>,
}

impl Client {
    pub fn connect(port: u16) -> Client {
        Client::of(TcpStream::connect(("127.0.0.1", port)).unwrap())
    }

    pub fn of(stream: TcpStream) -> Client {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream, came: Vec::new() }
    }

    pub fn address(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }
}

impl<S: Read + Write> Client<S> {
    pub fn say(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).unwrap();
    }

    /// The next message, or the line end that answers a ping.
    pub fn hear(&mut self) -> String {
        let heard = self.listen();
        heard.unwrap_or_else(|error| panic!("{error} behind {:?}", String::from_utf8_lossy(&self.came)))
    }

    /// The same, or why there is none.
    pub fn listen(&mut self) -> std::io::Result<String> {
        loop {
            if let Some(len) = whole(&self.came) {
                return Ok(String::from_utf8(self.came.drain(..len).collect()).unwrap());
            }
            let mut room = [0; 4096];
            match uninterrupted(|| self.stream.read(&mut room))? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => self.came.extend_from_slice(&room[..count]),
            }
        }
    }

    /// Waits for the other side to close, and returns what it said before.
    pub fn hear_the_end(mut self) -> String {
        let mut rest = std::mem::take(&mut self.came);
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
        }
        String::from_utf8_lossy(&rest).into_owned()
    }
}

fn whole(octets: &[u8]) -> Option<usize> {
    if octets.starts_with(b"\r\n") {
        return Some(2);
    }
    let head = octets.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&octets[..head]).to_ascii_lowercase();
    let rows: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("content-length:")).collect();
    assert_eq!(rows.len(), 1, "one length in every message on a stream:\n{text}");
    assert!(rows[0].strip_prefix(' ').is_some_and(|digits| digits == "0" || !digits.starts_with('0')), "{text}");
    let len = head + rows[0].trim().parse::<usize>().unwrap();
    (octets.len() >= len).then_some(len)
}

pub fn request(method: &str, transport: &str, sent_by: impl std::fmt::Display, call: &str, more: &str) -> String {
    format!(
        "{method} sip:bob@example.net SIP/2.0\r\nVia: SIP/2.0/{transport} {sent_by};branch=z9hG4bK{call}{method}\r\n\
         Max-Forwards: 70\r\nFrom: <sip:alice@example.net>;tag=1\r\nTo: <sip:bob@example.net>\r\nCall-ID: {call}\r\n\
         CSeq: 1 {method}\r\nContact: <sip:alice@{sent_by};transport={transport}>\r\n{more}\r\n"
    )
}

pub const EMPTY: &str = "Content-Length: 0\r\n";

/// The rows of a message with this name.
pub fn rows<'a>(message: &'a str, name: &str) -> Vec<&'a str> {
    let head = message.split("\r\n\r\n").next().unwrap();
    head.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).collect()
}

/// The answer of a server.
pub fn answer(request: &str, line: &str, more: &str) -> String {
    let keep = ["Via", "Record-Route", "From", "Call-ID", "CSeq"];
    let copied: String = keep
        .iter()
        .flat_map(|name| rows(request, name).into_iter().map(move |row| format!("{name}: {row}\r\n")))
        .collect();
    format!(
        "SIP/2.0 {line}\r\n{copied}To: {};tag=uas\r\n{more}\r\n",
        rows(request, "To")[0].split(";tag").next().unwrap()
    )
}

pub struct Backend(UdpSocket);

impl Backend {
    pub fn new() -> Backend {
        let socket = udp_server();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Backend(socket)
    }

    pub fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    pub fn hear(&self) -> (String, SocketAddr) {
        let mut room = [0; 65_536];
        let (len, from) = uninterrupted(|| self.0.recv_from(&mut room)).unwrap();
        (String::from_utf8(room[..len].to_vec()).unwrap(), from)
    }

    pub fn say(&self, text: &str, to: impl std::net::ToSocketAddrs) {
        self.say_octets(text.as_bytes(), to);
    }

    pub fn say_octets(&self, octets: &[u8], to: impl std::net::ToSocketAddrs) {
        self.0.send_to(octets, to).unwrap();
    }
}

#[test]
fn a_message_for_the_only_connection_there_is_comes_to_the_shard_that_has_it() {
    let (listen, backend) = (free_port(), Backend::new());
    let viahop = Viahop::start("tcp-only", &config(listen, &[udp(backend.port())], ""));
    let handed_over = || viahop.metric("viahop_messages_handed_over_total", "");
    // Half of these come to the shard without a connection: by the Call-ID, or by addresses.
    for number in 0.. {
        if number >= 8 && handed_over() > 0.0 {
            break;
        }
        assert!(number < 64, "none has come to the other shard");
        let mut client = Client::connect(listen);
        let call = format!("only{number}");
        client.say(request("INVITE", "TCP", client.address(), &call, EMPTY));
        let (sent, from) = backend.hear();
        backend.say(&answer(&sent, "200 OK", ""), from);
        client.hear();
        let route: String = rows(&sent, "Record-Route").iter().map(|row| format!("Route: {row}\r\n")).collect();
        let bye = request("BYE", "UDP", format!("127.0.0.1:{}", backend.port()), &call, &route);
        backend.say(&bye, ("127.0.0.1", listen));
        assert!(client.hear().starts_with("BYE "));
        client.say("\r\n\r\n");
        assert_eq!(client.hear(), "\r\n");
        drop(client);
        viahop.wait_until("it is gone", PATIENCE, |_| viahop.metric("viahop_connections", "") == 0.0);
    }
    viahop.end();
}

#[test]
fn a_call_from_tcp_to_udp_and_back_goes_down_its_connection() {
    let (listen, backend) = (free_port(), Backend::new());
    let viahop = Viahop::start("tcp-udp", &config(listen, &[udp(backend.port())], ""));
    let mut client = Client::connect(listen);
    client.say("\r\n\r\n");
    assert_eq!(client.hear(), "\r\n");

    // So many connections that some are the other shard's than the one datagrams come to, in all but one of millions of runs.
    let mut clients: Vec<Client> = (0..23).map(|_| Client::connect(listen)).collect();
    clients.push(client);
    for (number, client) in clients.iter_mut().enumerate() {
        let call = format!("call{number}");
        let invite = request("INVITE", "TCP", client.address(), &call, EMPTY);
        for octet in invite.as_bytes() {
            client.say([*octet]);
        }
        let (sent, from) = backend.hear();
        assert!(sent.contains(&format!("Call-ID: {call}\r\n")), "{sent}");
        let vias = rows(&sent, "Via");
        assert!(vias[0].starts_with("SIP/2.0/UDP 127.0.0.1:") && vias[1].starts_with("SIP/2.0/TCP "), "{sent}");
        let recorded = rows(&sent, "Record-Route");
        assert_eq!(recorded.len(), 2, "{sent}");
        assert!(!recorded[0].contains("transport") && recorded[1].contains(";transport=tcp;lr;vh="), "{sent}");
        backend.say(&answer(&sent, "200 OK", ""), from);
        let heard = client.hear();
        assert!(heard.starts_with("SIP/2.0 200 OK\r\nContent-Length: 0\r\n"), "{heard}");
        assert_eq!(rows(&heard, "Via").len(), 1);

        // The server hangs up: its BYE comes to a listener, on whichever shard the kernel chooses.
        let route = recorded.iter().map(|row| format!("Route: {row}\r\n")).collect::<String>();
        let bye = format!(
            "BYE sip:alice@{};transport=tcp SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:{};branch=z9hG4bKbye{number};rport\r\n\
             {route}Max-Forwards: 70\r\nFrom: <sip:bob@example.net>;tag=uas\r\nTo: <sip:alice@example.net>;tag=1\r\n\
             Call-ID: {call}\r\nCSeq: 1 BYE\r\n\r\n",
            client.address(),
            backend.port()
        );
        backend.say(&bye, ("127.0.0.1", listen));
        let heard = client.hear();
        assert!(heard.starts_with("BYE ") && heard.contains("\r\nContent-Length: 0\r\n"), "{heard}");
        assert!(rows(&heard, "Via")[0].starts_with("SIP/2.0/TCP "), "{heard}");
        assert!(rows(&heard, "Route").is_empty());
        client.say(answer(&heard, "200 OK", EMPTY));
        let (heard, _) = backend.hear();
        assert!(heard.starts_with("SIP/2.0 200 OK"), "{heard}");
        assert_eq!(rows(&heard, "Via").len(), 1);
    }
    assert!(viahop.metric("viahop_messages_handed_over_total", "") > 0.0);
    assert_eq!(viahop.metric("viahop_connections", ""), 24.0);

    // A flow that is gone is told of: 430, from whichever shard it would have been.
    let gone = clients.pop().unwrap();
    let at = gone.address();
    let (sent, _) = {
        let mut gone = gone;
        gone.say(request("INVITE", "TCP", at, "gone", EMPTY));
        let heard = backend.hear();
        backend.say(&answer(&heard.0, "200 OK", ""), heard.1);
        gone.hear();
        heard
    };
    viahop.wait_until("the connection ends", PATIENCE, |_| viahop.metric("viahop_connections", "") == 23.0);
    for number in 0..4 {
        let route = rows(&sent, "Record-Route").iter().map(|row| format!("Route: {row}\r\n")).collect::<String>();
        let own = UdpSocket::bind("127.0.0.1:0").unwrap();
        drop(own);
        let bye = format!(
            "BYE sip:alice@{at};transport=tcp SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:{};branch=z9hG4bKlate{number};rport\r\n\
             {route}Max-Forwards: 70\r\nFrom: <sip:bob@example.net>;tag=uas\r\nTo: <sip:alice@example.net>;tag=1\r\n\
             Call-ID: gone\r\nCSeq: 1 BYE\r\n\r\n",
            backend.port()
        );
        backend.say(&bye, ("127.0.0.1", listen));
        let (heard, _) = backend.hear();
        assert!(heard.starts_with("SIP/2.0 430 "), "{heard}");
    }
    viahop.end();
}

#[test]
fn a_phone_is_called_down_the_connection_it_registered_on() {
    let (listen, registrar) = (free_port(), Backend::new());
    let viahop = Viahop::start("path-tcp", &config(listen, &[udp(registrar.port())], ""));
    let mut phones: Vec<Client> = (0..4).map(|_| Client::connect(listen)).collect();
    for (number, phone) in phones.iter_mut().enumerate() {
        // Behind a NAT it knows its own address as another than it is.
        let more = format!("Supported: path, outbound\r\n{EMPTY}");
        let text = request("REGISTER", "TCP", "10.9.8.7:5060", &format!("register{number}"), &more);
        phone.say(text.replace(";transport=TCP>", ";transport=TCP>;reg-id=1;+sip.instance=\"<urn:uuid:0>\""));
        let (heard, from) = registrar.hear();
        let path = rows(&heard, "Path")[0].to_owned();
        assert!(path.contains(";lr;vh=") && path.ends_with(";ob>") && !path.contains("transport"), "{heard}");
        registrar.say(&answer(&heard, "200 OK", &format!("Path: {path}\r\n")), from);
        assert!(phone.hear().starts_with("SIP/2.0 200 OK"));
        // Another call than that of the registration, on whichever shard it comes to.
        for call in 0..3 {
            let invite = format!(
                "INVITE sip:alice@10.9.8.7:5060;transport=TCP SIP/2.0\r\n\
                 Via: SIP/2.0/UDP 127.0.0.1:{};branch=z9hG4bKcall{number}{call}\r\nRoute: {path}\r\nMax-Forwards: 70\r\n\
                 From: <sip:bob@example.net>;tag=2\r\nTo: <sip:alice@example.net>\r\nCall-ID: to{number}{call}\r\n\
                 CSeq: 1 INVITE\r\nContact: <sip:bob@127.0.0.1>\r\n\r\n",
                registrar.port()
            );
            registrar.say(&invite, ("127.0.0.1", listen));
            let heard = phone.hear();
            assert!(heard.starts_with("INVITE ") && rows(&heard, "Route").is_empty(), "{heard}");
            assert_eq!(rows(&heard, "Record-Route").len(), 2, "{heard}");
            phone.say(answer(&heard, "486 Busy Here", EMPTY));
            assert!(registrar.hear().0.starts_with("SIP/2.0 486"));
        }
    }
    viahop.end();
}

#[test]
fn a_backend_over_tcp_gets_one_length_and_its_answers_reach_udp_clients() {
    let server = tcp_server();
    let (listen, port) = (free_port(), server.local_addr().unwrap().port());
    // Calls are spread over shards, and each shard has a connection of its own.
    let text = config(listen, &[tcp(port)], "").replace("shards = 2", "shards = 1");
    let viahop = Viahop::start("udp-tcp", &text);
    let client = Backend::new();
    // Without a length, with one that needs care, and with octets behind the body.
    for (number, length) in
        ["", "Content-Length: 0004\r\n", "l : 4\r\n", "Content-Length:\r\n 4\r\n", EMPTY].iter().enumerate()
    {
        let call = format!("call{number}");
        let mut text = request("MESSAGE", "UDP", format!("127.0.0.1:{}", client.port()), &call, length);
        text.push_str("body");
        client.say(&text, ("127.0.0.1", listen));
    }
    // All go down one connection of the shard's.
    let mut heard = Vec::new();
    let mut backends = vec![Client::of(server.accept().unwrap().0)];
    for number in 0..5 {
        let message = backends[0].hear();
        let body = message.split("\r\n\r\n").nth(1).unwrap();
        let expected = if message.contains("Call-ID: call4\r\n") { "" } else { "body" };
        assert_eq!(body, expected, "{message}");
        assert!(rows(&message, "Via")[0].starts_with(&format!("SIP/2.0/TCP 127.0.0.1:{listen};")), "{message}");
        backends[0].say(answer(&message, "200 OK", EMPTY));
        heard.push(client.hear().0);
        assert!(heard[number].starts_with("SIP/2.0 200 OK"), "{}", heard[number]);
    }
    // A folded length is another server's length: not on a connection that carries everybody's calls.
    let folded = request(
        "MESSAGE",
        "UDP",
        format!("127.0.0.1:{}", client.port()),
        "fold",
        "Subject: x\r\n Content-Length: 0\r\n",
    );
    client.say(&folded, ("127.0.0.1", listen));
    assert!(client.hear().0.starts_with("SIP/2.0 400 A Header In A Folded Line"));

    // It closes: the next request opens another connection. It refuses: 503, and at once.
    drop(backends);
    let send = |call: &str| {
        client
            .say(&request("MESSAGE", "UDP", format!("127.0.0.1:{}", client.port()), call, EMPTY), ("127.0.0.1", listen))
    };
    viahop.wait_until("the connection ends", PATIENCE, |_| viahop.metric("viahop_connections", "") == 0.0);
    send("again");
    let mut backend = Client::of(server.accept().unwrap().0);
    assert!(backend.hear().contains("Call-ID: again\r\n"));
    drop((backend, server));
    viahop.wait_until("the connection ends", PATIENCE, |_| viahop.metric("viahop_connections", "") == 0.0);
    let since = Instant::now();
    send("refused");
    let heard = client.hear().0;
    assert!(heard.starts_with("SIP/2.0 503 ") && since.elapsed() < Duration::from_secs(1), "{heard}");
    viahop.wait_for_metric("viahop_messages_replied_total", "503", 1.0);
    viahop.end();
}

#[test]
fn a_response_whose_connection_is_gone_takes_a_new_one_to_where_the_via_says() {
    let (listen, backend) = (free_port(), Backend::new());
    let viahop = Viahop::start("fallback", &config(listen, &[udp(backend.port())], ""));
    let reachable = tcp_server();
    let mut client = Client::connect(listen);
    client.say(request("INVITE", "TCP", reachable.local_addr().unwrap(), "moved", EMPTY));
    let (sent, from) = backend.hear();
    // It goes without a word, so that the answer has no connection to go down.
    client.say("not SIP\r\n");
    client.hear_the_end();
    backend.say(&answer(&sent, "200 OK", EMPTY), from);
    let heard = Client::of(reachable.accept().unwrap().0).hear();
    assert!(heard.starts_with("SIP/2.0 200 OK"), "{heard}");
    viahop.end();
}

/// As Kamailio does with one that is silent for two minutes while a call rings.
#[test]
fn a_response_to_a_server_that_has_closed_its_connection_takes_that_of_its_requests() {
    let (listen, inside, phone) = (free_port(), free_port(), Backend::new());
    let server = tcp_server();
    let at = server.local_addr().unwrap();
    let more = format!("[[listen]]\naddress = \"tcp:127.0.0.1:{inside}\"\nside = \"inside\"\n");
    let viahop = Viahop::start("closed-by-server", &config(listen, &[tcp(at.port())], &more));
    let mut caller = Client::connect(inside);
    let invite = request("INVITE", "TCP", at, "rings-long", EMPTY);
    caller.say(invite.replacen("bob@example.net", &format!("127.0.0.1:{}", phone.port()), 1));
    let (sent, from) = phone.hear();
    caller.stream.shutdown(std::net::Shutdown::Write).unwrap();
    server.set_nonblocking(true).unwrap();
    let until = Instant::now() + PATIENCE;
    let another = loop {
        // Until it is known to have closed, answers go down what was open.
        phone.say(&answer(&sent, "486 Busy Here", EMPTY), from);
        match server.accept() {
            Ok((another, _)) => break another,
            Err(_) => assert!(Instant::now() < until, "{}", viahop.log()),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    another.set_nonblocking(false).unwrap();
    let heard = Client::of(another).hear();
    assert!(heard.starts_with("SIP/2.0 486"), "{heard}");
    viahop.end();
}

#[test]
fn what_is_no_sip_or_could_be_read_twice_is_refused_and_closed_alone() {
    let (listen, backend) = (free_port(), Backend::new());
    let viahop =
        Viahop::start("frames", &config(listen, &[udp(backend.port())], "[streams]\nframe_timeout = \"1s\"\n"));
    let mut neighbour = Client::connect(listen);
    for (text, expected) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", None),
        ("\u{16}\u{3}\u{1}", None),
        ("\r\n hello", None),
        ("Content-Length: 4\r\nContent-Length: 5\r\n", Some("More Than One Content-Length")),
        ("", Some("Missing Content-Length")),
        ("Content-Length: -1\r\n", Some("Bad Content-Length")),
        ("Content-Length: 4294967296\r\n", Some("Message Too Large")),
        ("Content_Length: 0\r\nContent-Length: 4\r\n", Some("that other servers read as")),
        ("Subject: a\r\n l: 0\r\nContent-Length: 4\r\n", Some("A Header In A Folded Line")),
        ("Subject: a\nb: 1\r\nContent-Length: 4\r\n", Some("LF without CR")),
    ] {
        let mut client = Client::connect(listen);
        match expected {
            None => client.say(text),
            Some(_) => client.say(request("OPTIONS", "TCP", client.address(), "odd", text)),
        }
        let said = client.hear_the_end();
        let is_right =
            expected.map_or(said.is_empty(), |reason| said.lines().next().is_some_and(|line| line.contains(reason)));
        assert!(is_right, "{text:?}: {said}");
    }
    // Who begins and does not end, and who never begins.
    let mut slow = Client::connect(listen);
    slow.say("OPTIONS sip:bob@example.net SIP/2.0\r\n");
    assert_eq!(slow.hear_the_end(), "");
    viahop.wait_for_metric("viahop_connections_ended_total", "slow", 1.0);
    // Whoever was there before has lost nothing.
    neighbour.say(request("OPTIONS", "TCP", neighbour.address(), "fine", EMPTY));
    let (sent, from) = backend.hear();
    backend.say(&answer(&sent, "200 OK", ""), from);
    assert!(neighbour.hear().starts_with("SIP/2.0 200"));
    viahop.end();
}

/// A phone that closes when it was refused, and comes again, would soon have a source's share of connections that are gone.
#[test]
fn who_closes_behind_a_503_of_ours_leaves_nothing_behind() {
    let listen = free_port();
    let viahop = Viahop::start("refused", &config(listen, &[tcp(free_port())], ""));
    for call in ["one", "two"] {
        let mut client = Client::connect(listen);
        client.say(request("OPTIONS", "TCP", client.address(), call, EMPTY));
        assert!(client.hear().starts_with("SIP/2.0 503"));
    }
    viahop.wait_until("both are gone", PATIENCE, |_| viahop.metric("viahop_connections", "") == 0.0);
    viahop.end();
}

#[test]
fn one_source_has_its_share_of_connections_and_no_more() {
    let (listen, backend) = (free_port(), Backend::new());
    let more = "[streams]\nmax_per_source = 3\n";
    let text = config(listen, &[udp(backend.port())], more).replace("shards = 2", "shards = 1");
    let viahop = Viahop::start("caps", &text);
    let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(listen)).collect();
    viahop.wait_until("all are accepted", PATIENCE, |_| viahop.metric("viahop_connections", "") == 3.0);
    assert_eq!(Client::connect(listen).hear_the_end(), "");
    let refused = || viahop.metric("viahop_connections_ended_total", "source_limit");
    viahop.wait_until("it is counted", PATIENCE, |_| refused() == 1.0);
    clients.pop();
    viahop.wait_until("one has gone", PATIENCE, |_| viahop.metric("viahop_connections", "") == 2.0);
    let mut next = Client::connect(listen);
    next.say("\r\n\r\n");
    assert_eq!(next.hear(), "\r\n");
    viahop.end();
}

#[test]
fn who_does_not_read_is_closed_and_harms_nobody() {
    let (listen, backend) = (free_port(), Backend::new());
    let viahop = Viahop::start("unread", &config(listen, &[udp(backend.port())], ""));
    let mut deaf = Client::connect(listen);
    deaf.say(request("INVITE", "TCP", deaf.address(), "deaf", EMPTY));
    let (sent, from) = backend.hear();
    let body = "x".repeat(50_000);
    let ringing = answer(&sent, "180 Ringing", &format!("Content-Length: {}\r\n", body.len())) + &body;
    // As long as it takes until all buffers between are full.
    let until = Instant::now() + PATIENCE;
    while viahop.metric("viahop_connections_ended_total", "unread") == 0.0 {
        assert!(Instant::now() < until, "it is still there");
        (0..20).for_each(|_| backend.say(&ringing, from));
    }
    let mut other = Client::connect(listen);
    other.say(request("OPTIONS", "TCP", other.address(), "fine", EMPTY));
    let (sent, from) = backend.hear();
    backend.say(&answer(&sent, "200 OK", ""), from);
    assert!(other.hear().starts_with("SIP/2.0 200"));
    viahop.end();
}

#[test]
fn a_request_too_long_for_the_path_goes_over_tcp_and_its_cancel_after_it() {
    let (udp_server, tcp_server) = loop {
        let udp_server = Backend::new();
        if let Ok(tcp_server) = TcpListener::bind(("127.0.0.1", udp_server.port())) {
            break (udp_server, tcp_server);
        }
    };
    let listen = free_port();
    let text =
        config(listen, &[udp(udp_server.port())], "").replace("name = \"proxies\"", "name = \"proxies\"\nmtu = 1500");
    let viahop = Viahop::start("mtu", &text);
    let client = Backend::new();
    let sent_by = format!("127.0.0.1:{}", client.port());
    let short = request("INVITE", "UDP", &sent_by, "short", EMPTY);
    client.say(&short, ("127.0.0.1", listen));
    assert!(udp_server.hear().0.contains("Via: SIP/2.0/UDP 127.0.0.1:"));
    let long = request("INVITE", "UDP", &sent_by, "long", &format!("Subject: {}\r\n", "x".repeat(1000)));
    client.say(&long, ("127.0.0.1", listen));
    let mut backend = Client::of(tcp_server.accept().unwrap().0);
    let heard = backend.hear();
    let via = rows(&heard, "Via")[0].to_owned();
    assert!(via.starts_with("SIP/2.0/TCP 127.0.0.1:"), "{heard}");
    let cancel = request("CANCEL", "UDP", &sent_by, "long", EMPTY).replace("longCANCEL", "longINVITE");
    client.say(&cancel, ("127.0.0.1", listen));
    let heard = backend.hear();
    let of = |via: &str| via.split(";vh=").next().unwrap().to_owned();
    assert_eq!(of(rows(&heard, "Via")[0]), of(&via), "{heard}");
    backend.say(answer(&heard, "200 OK", EMPTY));
    assert!(client.hear().0.starts_with("SIP/2.0 200 OK"));
    // Nobody listens there any more: a datagram after all.
    drop((backend, tcp_server));
    viahop.wait_until("the connection ends", PATIENCE, |_| viahop.metric("viahop_connections", "") == 0.0);
    client.say(&long.replace("long", "late"), ("127.0.0.1", listen));
    let (heard, _) = udp_server.hear();
    assert!(heard.contains("Via: SIP/2.0/UDP 127.0.0.1:") && heard.contains("Call-ID: late"), "{heard}");
    viahop.end();
}

#[test]
fn probes_over_tcp_say_whether_a_backend_is_up() {
    let server = tcp_server();
    let (listen, port) = (free_port(), server.local_addr().unwrap().port());
    let text =
        config(listen, &[tcp(port)], "").replace(UNPROBED, "health = { interval = \"500ms\", timeout = \"500ms\" }");
    let viahop = Viahop::start("probe-tcp", &text);
    let mut backend = Client::of(server.accept().unwrap().0);
    for _ in 0..5 {
        let heard = backend.hear();
        assert!(heard.starts_with(&format!("OPTIONS sip:127.0.0.1:{port};transport=tcp SIP/2.0")), "{heard}");
        backend.say(answer(&heard, "200 OK", EMPTY));
        assert!(viahop.is_up(0), "{}", viahop.log());
    }
    drop((backend, server));
    viahop.wait_until("it is down", PATIENCE, |status| status["backends"][0]["state"] == "down");
    viahop.end();
}

/// A server that has stopped listening and answers on what it has, as one whose certificate has expired does: it was up, and each
/// connection to it that failed was a 503.
#[test]
fn a_probe_asks_on_a_new_connection_when_a_shard_could_open_none() {
    let server = tcp_server();
    let (listen, port) = (free_port(), server.local_addr().unwrap().port());
    let text = config(listen, &[tcp(port)], "").replace(UNPROBED, "health = { interval = \"1s\", timeout = \"1s\" }");
    let viahop = Viahop::start("probe-anew", &text);
    let mut backend = Client::of(server.accept().unwrap().0);
    drop(server);
    std::thread::spawn(move || {
        while let Ok(heard) = backend.listen() {
            backend.say(answer(&heard, "200 OK", EMPTY));
        }
    });
    viahop.wait_until("it answers", PATIENCE, |status| status["backends"][0]["last_probe"] == "options_ok (200)");
    let mut client = Client::connect(listen);
    client.say(request("INVITE", "TCP", client.address(), "anew", EMPTY));
    let heard = client.hear();
    assert!(heard.starts_with("SIP/2.0 503 Next Hop Unreachable\r\n"), "{heard}");
    viahop.wait_until("it is down", PATIENCE, |status| status["backends"][0]["state"] == "down");
    viahop.end();
}

/// A server that hangs was "Connection refused (os error 111)" in the log, as one that does not listen is.
#[test]
fn the_log_says_why_a_backend_could_not_be_connected_to() {
    let server = tcp_server();
    let address = server.local_addr().unwrap();
    // What nobody accepts fills the kernel's queue, and then it answers no more.
    let patience = Duration::from_millis(200);
    let queue: Vec<_> = std::iter::from_fn(|| TcpStream::connect_timeout(&address, patience).ok()).collect();
    let gone = free_port();
    for (name, port, why) in [("hangs", address.port(), "Connection timed out"), ("gone", gone, "Connection refused")] {
        let listen = free_port();
        let viahop = Viahop::start(name, &config(listen, &[tcp(port)], "[streams]\nconnect_timeout = \"300ms\""));
        let mut client = Client::connect(listen);
        client.say(request("INVITE", "TCP", client.address(), name, EMPTY));
        assert!(client.hear().starts_with("SIP/2.0 503 Next Hop Unreachable\r\n"));
        let line = format!("event=\"backend_refused\" address=127.0.0.1:{port} reason=\"{why} (");
        viahop.wait_until("it is told", PATIENCE, |_| viahop.log().contains(&line));
        viahop.end();
    }
    drop(queue);
}

/// SIPp as a server over TCP on this port: one connection, or one for each call.
fn sipp_tcp_uas(folder: &std::path::Path, port: u16) -> Process {
    let process = Process::start(sipp(folder).args(["-sn", "uas", "-t", "t1", "-p", &port.to_string()]));
    let until = Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < until, "sipp does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    process
}

#[test]
fn sipp_calls_over_tcp_from_one_connection_and_from_one_for_each_call_to_either_transport() {
    if !has_peer("sipp") {
        return;
    }
    let _alone = alone();
    for (client, over_tcp) in [("t1", false), ("tn", false), ("t1", true), ("tn", true), ("u1", true)] {
        let folder = Folder::new("sipp-tcp");
        let (listen, server) = (free_port(), free_port());
        let _uas = match over_tcp {
            true => sipp_tcp_uas(&folder.0, server),
            false => sipp_uas(&folder.0, server, &[]),
        };
        if !over_tcp {
            wait_for_port(server);
        }
        let uri = if over_tcp { tcp(server) } else { udp(server) };
        let viahop = Viahop::start("sipp-tcp", &config(listen, &[uri], ""));
        // With fewer sockets than calls that are open at once SIPp 3.6.1 sends the next call on its first socket, which it never
        // connected, and ends with "Broken pipe" (EPIPE, exit code 255), also against its own server.
        let mut uac = sipp_uac(&folder.0, listen, 1000, 250, &["-t", client, "-max_socket", "2000"]);
        let mut uac = Process::start(&mut uac);
        let status = uac.wait(Duration::from_secs(60));
        let calls = calls(&folder.0);
        assert_eq!((calls.successful, calls.failed), (1000, 0), "{client} to tcp: {over_tcp}: {status:?}");
        viahop.end();
    }
}

const KAMAILIO: &str = r#"
children=1
tcp_children=1
log_stderror=yes
debug=0
listen=tcp:127.0.0.1:PORT
mpath="/usr/lib/x86_64-linux-gnu/kamailio/modules/:/usr/lib/aarch64-linux-gnu/kamailio/modules/"
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "pv.so"
loadmodule "xlog.so"
request_route {
    xlog("L_ERR", "SEEN <$ci>\n");
    sl_send_reply("200", "OK");
    exit;
}
"#;

/// Kamailio 5.6 reads seven of fifteen oddly framed messages as two. Nothing of the kind reaches it through viahop, and the
/// one connection that carries everybody's requests is never closed.
#[test]
fn no_request_is_smuggled_into_kamailio_and_nobody_loses_the_shared_connection() {
    if !has_peer("kamailio") {
        return;
    }
    let _alone = alone();
    let folder = Folder::new("smuggling");
    let (listen, port) = (free_port(), free_port());
    let config_file = folder.write("kamailio.cfg", &KAMAILIO.replace("PORT", &port.to_string()));
    let log = folder.0.join("kamailio.log");
    let mut command = Command::new("kamailio");
    command.args(["-DD", "-E", "-f", config_file.to_str().unwrap(), "-Y", folder.0.to_str().unwrap()]);
    command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
    let _kamailio = Process::start(&mut command);
    let until = Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < until, "{}", std::fs::read_to_string(&log).unwrap());
        std::thread::sleep(Duration::from_millis(50));
    }
    let text = config(listen, &[tcp(port)], "").replace("shards = 2", "shards = 1");
    let viahop = Viahop::start("smuggling", &text);
    // Where it is a message of its own by every reading, viahop answers it itself: there are no hops left.
    let hidden = request("OPTIONS", "TCP", "127.0.0.1:9", "SMUGGLED", EMPTY).replace("Forwards: 70", "Forwards: 0");
    let len = hidden.len();
    let right = format!("Content-Length: {len}");
    let odd = [
        String::new(),
        right.clone(),
        "Content-Length: 0".into(),
        "Content_Length: 0".into(),
        "Content-Length : 0".into(),
        "l: 0".into(),
        format!("l: {len}"),
        format!("Content-Length: 0{len}"),
        format!("Content-Length: 0 {len}"),
        format!("Content-Length: {len} 0"),
        "Content-Length: 0x".into(),
        "Content-Length: +0".into(),
        "Content-Length: 4294967296".into(),
        "Content-Length: 18446744073709551616".into(),
        "Subject: hi\r\n Content-Length: 0".into(),
        "Subject: hi\r\n\tl: 0".into(),
        "X: a\rContent-Length: 0".into(),
        "X: a\nContent-Length: 0".into(),
        "X: a\n\n".into(),
        "X: a\0".into(),
    ];
    let mut neighbour = Client::connect(listen);
    let (mut cases, mut clients) = (0, Vec::new());
    let mut is_well = |call: String| {
        neighbour.say(request("OPTIONS", "TCP", neighbour.address(), &call, EMPTY));
        let heard = neighbour.hear();
        assert!(heard.starts_with("SIP/2.0 200") && heard.contains(&format!("Call-ID: {call}\r\n")), "{heard}");
    };
    for one in &odd {
        for other in &odd {
            let rows: String =
                [one, other].iter().filter(|row| !row.is_empty()).map(|row| format!("{row}\r\n")).collect();
            let case = request("OPTIONS", "TCP", "127.0.0.1:9", &format!("case{cases}"), &rows) + &hidden;
            let mut client = Client::connect(listen);
            client.say(&case);
            // It stays: an answer that finds it gone would have viahop open a connection to where the Via says.
            clients.push(client);
            // As a datagram too: what is behind the body is cut off, what is folded is refused.
            let datagram = UdpSocket::bind("127.0.0.1:0").unwrap();
            datagram.send_to(case.replace("/TCP", "/UDP").as_bytes(), ("127.0.0.1", listen)).unwrap();
            cases += 1;
            if cases % 10 == 0 {
                is_well(format!("well{cases}"));
            }
        }
    }
    is_well("last".into());
    let seen = std::fs::read_to_string(&log).unwrap();
    // A message with a body of its own that is a whole request went through as what it is: once, under its own name.
    assert!(seen.contains("SEEN <last>") && seen.contains("SEEN <case1>"), "{seen}");
    assert!(!seen.contains("SEEN <SMUGGLED>"), "{seen}");
    assert!(cases >= 400);
    let metrics = viahop.metrics();
    let ended: Vec<&str> = metrics.lines().filter(|line| line.starts_with("viahop_connections_")).collect();
    assert_eq!(
        viahop.metric("viahop_connections_begun_total", "opened"),
        1.0,
        "the shared connection closed: {ended:#?}"
    );
    viahop.end();
}
