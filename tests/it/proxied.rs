//! Connections that come by way of HAProxy, which says with a PROXY header for whom it opened them.

use crate::live::{Folder, PATIENCE, Process, UNPROBED, Viahop, free_port};
use crate::streams::{Backend, Client, EMPTY, answer, request, rows, udp};
use crate::support::has_peer;
use crate::tls::{Papers, Phone};
use rustls::version::TLS13;
use socket2::{Domain, Socket, Type};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A client at this address of loopback.
fn client_at(host: [u8; 4], port: u16) -> Client {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((host, 0)).into()).unwrap();
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()).unwrap();
    Client::of(TcpStream::from(socket))
}

/// HAProxy that is to listen at `front`, as `asks`, for the server that `server` describes.
pub fn haproxy(folder: &Folder, front: u16, asks: &str, server: &str) -> Process {
    let text = format!(
        "global\n  maxconn 100\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
         listen sip\n  bind 127.0.0.1:{front} {asks}\n  server one {server}\n"
    );
    let path = folder.write(&format!("haproxy-{front}.cfg"), &text);
    let mut command = Command::new("/usr/sbin/haproxy");
    command.args(["-db", "-f", path.to_str().unwrap()]).stdout(Stdio::null()).stderr(Stdio::null());
    let process = Process::start(&mut command);
    let until = Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", front)).is_err() {
        assert!(Instant::now() < until, "haproxy does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    process
}

/// One in front of `listen`. It asks with connections of its own whether we are there.
fn haproxy_before(viahop: &Viahop, front: u16, listen: u16, sends: &str) -> Process {
    let server = format!("127.0.0.1:{listen} {sends} check check-send-proxy inter 100");
    haproxy(&viahop.folder, front, "", &server)
}

fn config(plain: u16, sealed: u16, tls: &str, backend: u16) -> String {
    let proxies = "proxy_protocol = [\"127.0.0.1\"]";
    format!(
        "[balancer]\nshards = 2\n[[listen]]\naddress = \"tcp:127.0.0.1:{plain}\"\n{proxies}\n\
         [[listen]]\naddress = \"tls:127.0.0.1:{sealed}\"\n{proxies}\ntls = {{ {tls} }}\n\
         [[pool]]\n{UNPROBED}\nbackend = [{{ uri = \"{}\" }}]\n",
        udp(backend)
    )
}

#[test]
fn who_comes_by_a_proxy_is_who_the_proxy_says() {
    if !has_peer("/usr/sbin/haproxy") {
        return;
    }
    let (papers, backend) = (Papers::new("proxied-papers"), Backend::new());
    let (plain, sealed) = (free_port(), free_port());
    let tls = papers.issue("a", &["sip.example"]);
    let viahop = Viahop::start("proxied", &config(plain, sealed, &tls, backend.port()));
    for (number, sends) in ["send-proxy", "send-proxy-v2"].into_iter().enumerate() {
        let front = free_port();
        let _haproxy = haproxy_before(&viahop, front, plain, sends);
        let mut client = client_at([127, 0, 0, 9], front);
        let own = client.address();
        // It says that it is somebody else: what it is told is what the proxy has seen.
        client.say(request("INVITE", "TCP", "192.0.2.1;rport", &format!("by-proxy{number}"), EMPTY));
        let (sent, from) = backend.hear();
        let below = rows(&sent, "Via")[1];
        assert!(below.contains(&format!(";received=127.0.0.9;rport={}", own.port())), "{below}");
        backend.say(&answer(&sent, "200 OK", ""), from);
        assert!(client.hear().starts_with("SIP/2.0 200"));
    }
    let front = free_port();
    let _haproxy = haproxy_before(&viahop, front, sealed, "send-proxy-v2-ssl");
    let mut phone = Phone::new(&papers, front, &TLS13, None).connect("sip.example");
    let via = format!("{};rport", phone.address());
    phone.say(request("OPTIONS", "TLS", via, "by-proxy-and-tls", EMPTY));
    let (sent, from) = backend.hear();
    assert!(rows(&sent, "Via")[1].contains(&format!(";rport={}", phone.address().port())), "{sent}");
    backend.say(&answer(&sent, "200 OK", ""), from);
    assert!(phone.hear().starts_with("SIP/2.0 200"));
    // Its own questions whether we are there are no clients, and no errors.
    assert_eq!(viahop.metric("viahop_connections_ended_total", "proxy_header"), 0.0);
    viahop.end();
}

#[test]
fn a_header_is_wanted_from_proxies_and_refused_from_everybody_else() {
    let (papers, backend) = (Papers::new("unproxied-papers"), Backend::new());
    let (plain, sealed) = (free_port(), free_port());
    let tls = papers.issue("a", &["sip.example"]);
    let viahop = Viahop::start("unproxied", &config(plain, sealed, &tls, backend.port()));
    let header = "PROXY TCP4 192.0.2.9 127.0.0.1 4000 5060\r\n";
    let text = |call: &str| request("INVITE", "TCP", "192.0.2.1;rport", call, EMPTY);

    let mut stranger = client_at([127, 0, 0, 8], plain);
    stranger.say(header.to_owned() + &text("forged"));
    assert_eq!(stranger.hear_the_end(), "");
    let mut direct = client_at([127, 0, 0, 8], plain);
    direct.say(text("direct"));
    let (sent, _) = backend.hear();
    assert!(rows(&sent, "Call-ID") == ["direct"] && sent.contains(";received=127.0.0.8;"), "{sent}");

    let mut proxy = Client::connect(plain);
    proxy.say(text("headless"));
    assert_eq!(proxy.hear_the_end(), "");
    let mut nonsense = Client::connect(sealed);
    nonsense.say([&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"[..], &[0; 2000]].concat());
    assert_eq!(nonsense.hear_the_end(), "");
    let mut slow = Client::connect(plain);
    for octet in header.bytes() {
        slow.say([octet]);
        std::thread::sleep(Duration::from_millis(2));
    }
    slow.say(text("slowly"));
    let (sent, _) = backend.hear();
    assert!(rows(&sent, "Via")[1].contains(";received=192.0.2.9;rport=4000"), "{sent}");
    viahop.wait_for_metric("viahop_connections_ended_total", "proxy_header", 2.0);
    viahop.end();
}

/// Such a proxy listens on one IPv6 socket for both families, and passes addresses on as that has them.
#[test]
fn clients_over_ipv4_behind_a_proxy_that_writes_them_as_ipv6_are_told_apart_and_named_by_ipv4() {
    let (listen, backend) = (free_port(), Backend::new());
    let text = format!(
        "[balancer]\nshards = 1\n[[listen]]\naddress = \"tcp:127.0.0.1:{listen}\"\nproxy_protocol = [\"127.0.0.1\"]\n\
         [streams]\nmax_per_source = 1\n[[pool]]\n{UNPROBED}\nbackend = [{{ uri = \"{}\" }}]\n",
        udp(backend.port())
    );
    let viahop = Viahop::start("mapped", &text);
    let mut binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".to_vec();
    binary.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 8]);
    binary.extend([0; 15]);
    binary.extend([1, 0x0f, 0xa0, 0x13, 0xc4]);
    let headers = [b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:127.0.0.1 4000 5060\r\n".to_vec(), binary];
    let mut clients = Vec::new();
    for (header, host) in headers.into_iter().zip(["192.0.2.7", "192.0.2.8"]) {
        let mut client = Client::connect(listen);
        client.say([header, request("OPTIONS", "TCP", "10.0.0.1;rport", host, EMPTY).into_bytes()].concat());
        let (sent, from) = backend.hear();
        assert!(rows(&sent, "Via")[1].contains(&format!(";received={host};rport=4000")), "{sent}");
        backend.say(&answer(&sent, "200 OK", ""), from);
        assert!(client.hear().starts_with("SIP/2.0 200"));
        clients.push(client);
    }
    viahop.end();
}

#[test]
fn as_many_may_come_by_a_proxy_as_there_may_be() {
    let (listen, backend) = (free_port(), Backend::new());
    let text = format!(
        "[balancer]\nshards = 1\n[[listen]]\naddress = \"tcp:127.0.0.1:{listen}\"\nproxy_protocol = [\"127.0.0.1\"]\n\
         [streams]\nmax_connections = 2\n[[pool]]\n{UNPROBED}\nbackend = [{{ uri = \"{}\" }}]\n",
        udp(backend.port())
    );
    let viahop = Viahop::start("proxied-caps", &text);
    let mut clients = [7, 8].map(|host| {
        let mut client = Client::connect(listen);
        client.say(format!("PROXY TCP4 192.0.2.{host} 127.0.0.1 4000 5060\r\n\r\n\r\n"));
        assert_eq!(client.hear(), "\r\n");
        client
    });
    assert_eq!(Client::connect(listen).hear_the_end(), "");
    clients[0].say("\r\n\r\n");
    assert_eq!(clients[0].hear(), "\r\n");
    viahop.end();
}
