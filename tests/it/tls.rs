//! TLS, for real: rustls, OpenSSL, sipsak and Kamailio on the other side; wrong certificates and what is no TLS at all.

use crate::authority::{Authority, Issued, self_signed};
use crate::live::{
    Folder, PATIENCE, Process, UNPROBED, Viahop, alone, calls, free_port, output, sipp_uac, sipp_uas, tcp_server,
    viahop,
};
use crate::registrars::{DIGEST, kamailio, wait_for_registrars};
use crate::streams::{Backend, Client, EMPTY, answer, request, rows, udp};
use crate::support::{has_peer, skip};
use rustls::crypto::cipher::{OutboundChunks, OutboundPlainMessage};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};
use rustls::{ConnectionTrafficSecrets, ContentType, ProtocolVersion, SupportedCipherSuite};
use rustls::{SupportedProtocolVersion, version};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use viahop::sys::uninterrupted;

/// The certificates of a test, in a folder.
pub struct Papers {
    pub folder: Folder,
    authority: Authority,
}

impl Papers {
    pub fn new(name: &str) -> Papers {
        let papers = Papers { folder: Folder::new(name), authority: Authority::new("the authority of a test") };
        papers.folder.write("ca.pem", &papers.authority.pem());
        papers
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.0.join(name).display().to_string()
    }

    fn write(&self, name: &str, issued: &Issued) {
        self.folder.write(&format!("{name}.pem"), &issued.certificate);
        self.folder.write(&format!("{name}.key"), &issued.key);
    }

    /// Issues a certificate and returns `certificate = …, key = …`.
    pub fn issue(&self, name: &str, names: &[&str]) -> String {
        self.write(name, &self.authority.issue(names));
        self.pair(name)
    }

    fn pair(&self, name: &str) -> String {
        format!("certificate = \"{}.pem\", key = \"{}.key\"", self.path(name), self.path(name))
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.pem().as_bytes()).unwrap()).unwrap();
        roots
    }
}

fn tls_of(issued: &Issued) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_slice_iter(issued.certificate.as_bytes()).collect::<Result<_, _>>().unwrap();
    (chain, PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap())
}

pub type Sealed<T> = StreamOwned<T, TcpStream>;

/// A client that speaks TLS.
pub struct Phone {
    config: Arc<ClientConfig>,
    port: u16,
}

impl Phone {
    pub fn new(
        papers: &Papers,
        port: u16,
        version: &'static SupportedProtocolVersion,
        shown: Option<&Issued>,
    ) -> Phone {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
        let builder = builder.with_root_certificates(papers.roots());
        let config = match shown.map(tls_of) {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        };
        Phone { config: Arc::new(config), port }
    }

    fn try_connect(&self, name: &str) -> std::io::Result<Client<Sealed<ClientConnection>>> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut tls = ClientConnection::new(self.config.clone(), name).unwrap();
        let mut socket = stream.try_clone().unwrap();
        while tls.is_handshaking() {
            tls.complete_io(&mut socket)?;
        }
        Ok(Client { stream: StreamOwned::new(tls, stream), came: Vec::new() })
    }

    pub fn connect(&self, name: &str) -> Client<Sealed<ClientConnection>> {
        self.try_connect(name).unwrap()
    }
}

impl Client<Sealed<ClientConnection>> {
    pub fn address(&self) -> SocketAddr {
        self.stream.sock.local_addr().unwrap()
    }

    /// The serial number, so to say, of whom one speaks to.
    fn certificate(&self) -> Vec<u8> {
        self.stream.conn.peer_certificates().unwrap()[0].to_vec()
    }

    /// A call to a backend that answers at once.
    fn call(&mut self, call: &str, backend: &Backend) -> (String, String) {
        self.say(request("INVITE", "TLS", self.address(), call, EMPTY));
        let (sent, from) = backend.hear();
        assert!(sent.contains(&format!("Call-ID: {call}\r\n")), "{sent}");
        backend.say(&answer(&sent, "200 OK", ""), from);
        (sent, self.hear())
    }
}

/// A UDP and a TLS listener, and a pool; `tls` is how the latter speaks, `pool` are further keys of the former.
fn config(ports: [u16; 2], tls: &str, backend: &str, pool: &str) -> String {
    let [plain, sealed] = ports;
    format!(
        "[balancer]\nshards = 2\n[[listen]]\naddress = \"udp:127.0.0.1:{plain}\"\n\
         [[listen]]\nname = \"sealed\"\naddress = \"tls:127.0.0.1:{sealed}\"\ntls = {{ {tls} }}\n\
         [[pool]]\nname = \"proxies\"\n{pool}\nbackend = [{{ uri = \"{backend}\" }}]\n"
    )
}

fn ports() -> [u16; 2] {
    [free_port(), free_port()]
}

fn handshakes(viahop: &Viahop, by: &str, result: &str) -> f64 {
    viahop.metric("viahop_tls_handshakes_total", &format!("by=\"{by}\",result=\"{result}\""))
}

fn wait_for_handshakes(viahop: &Viahop, by: &str, result: &str, count: f64) {
    viahop.wait_until(result, PATIENCE, |_| handshakes(viahop, by, result) >= count);
    assert_eq!(handshakes(viahop, by, result), count, "{result}");
}

#[test]
fn a_call_from_tls_to_udp_and_back_goes_down_its_connection_and_a_session_is_resumed() {
    let (papers, ports, backend) = (Papers::new("tls-papers"), ports(), Backend::new());
    let (first, second) = (papers.issue("a", &["a.example"]), papers.issue("b", &["sip:b.example", "b.example"]));
    let tls = format!("{first}, more = [{{ {second} }}]");
    let viahop = Viahop::start("tls-udp", &config(ports, &tls, &udp(backend.port()), UNPROBED));
    let mut number = 0;
    for version in [&version::TLS12, &version::TLS13] {
        let phone = Phone::new(&papers, ports[1], version, None);
        for (name, kind) in [
            ("a.example", HandshakeKind::Full),
            ("a.example", HandshakeKind::Resumed),
            ("b.example", HandshakeKind::Full),
        ] {
            let mut client = phone.connect(name);
            client.say("\r\n\r\n");
            assert_eq!(client.hear(), "\r\n");
            assert_eq!(client.stream.conn.handshake_kind(), Some(kind), "{name}");
            number += 1;
            let call = format!("call{number}");
            let (sent, heard) = client.call(&call, &backend);
            let vias = rows(&sent, "Via");
            assert!(vias[0].starts_with("SIP/2.0/UDP 127.0.0.1:") && vias[1].starts_with("SIP/2.0/TLS "), "{sent}");
            let recorded = rows(&sent, "Record-Route");
            assert_eq!(recorded.len(), 2, "{sent}");
            let sealed = format!("<sip:127.0.0.1:{};transport=tls;lr;vh=", ports[1]);
            assert!(!recorded[0].contains("transport") && recorded[1].starts_with(&sealed), "{sent}");
            assert!(heard.starts_with("SIP/2.0 200 OK\r\nContent-Length: 0\r\n"), "{heard}");
            // The server hangs up: its BYE comes to the UDP listener, on whichever shard the kernel chooses.
            let route = recorded.iter().map(|row| format!("Route: {row}\r\n")).collect::<String>();
            let bye = format!(
                "BYE sip:alice@{};transport=tls SIP/2.0\r\n\
                 Via: SIP/2.0/UDP 127.0.0.1:{};branch=z9hG4bKbye{number};rport\r\n\
                 {route}Max-Forwards: 70\r\nFrom: <sip:bob@example.net>;tag=uas\r\n\
                 To: <sip:alice@example.net>;tag=1\r\nCall-ID: {call}\r\nCSeq: 1 BYE\r\n\r\n",
                client.address(),
                backend.port()
            );
            backend.say(&bye, ("127.0.0.1", ports[0]));
            let heard = client.hear();
            assert!(heard.starts_with("BYE ") && rows(&heard, "Via")[0].starts_with("SIP/2.0/TLS "), "{heard}");
            client.say(answer(&heard, "200 OK", EMPTY));
            assert!(backend.hear().0.starts_with("SIP/2.0 200 OK"));
        }
    }
    wait_for_handshakes(&viahop, "accepted", "full", 4.0);
    wait_for_handshakes(&viahop, "accepted", "resumed", 2.0);
    viahop.wait_until("they end", PATIENCE, |_| viahop.metric("viahop_connections", "") == 0.0);
    viahop.end();
}

#[test]
fn long_messages_pass_in_both_directions_and_a_reader_that_stops_is_closed() {
    let (papers, ports, backend) = (Papers::new("tls-long"), ports(), Backend::new());
    let tls = papers.issue("a", &["a.example"]);
    let more = "[streams]\nframe_timeout = \"1s\"\n";
    let viahop = Viahop::start("tls-long", &(more.to_owned() + &config(ports, &tls, &udp(backend.port()), UNPROBED)));
    let phone = Phone::new(&papers, ports[1], &version::TLS13, None);
    let mut client = phone.connect("a.example");
    let body = "x".repeat(40_000);
    for call in 0..20 {
        let length = format!("Content-Length: {}\r\n", body.len());
        let invite = request("INVITE", "TLS", client.address(), &format!("long{call}"), &length) + &body;
        // In odd pieces, so that messages and records end at different places.
        for piece in invite.as_bytes().chunks(7001) {
            client.say(piece);
        }
        let (sent, from) = backend.hear();
        assert!(sent.ends_with(&body));
        backend.say(&(answer(&sent, "200 OK", &length) + &body), from);
        assert!(client.hear().ends_with(&body));
    }
    let mut deaf = phone.connect("a.example");
    deaf.say(request("INVITE", "TLS", deaf.address(), "deaf", EMPTY));
    let (sent, from) = backend.hear();
    let length = format!("Content-Length: {}\r\n", body.len());
    for _ in 0..400 {
        backend.say(&(answer(&sent, "183 Session Progress", &length) + &body), from);
        std::thread::sleep(Duration::from_millis(1));
    }
    let unread = |viahop: &Viahop| viahop.metric("viahop_connections_ended_total", "reason=\"unread\"");
    viahop.wait_until("the deaf one is closed", PATIENCE, |_| unread(&viahop) == 1.0);
    client.call("afterwards", &backend);
    drop(deaf);
    viahop.end();
}

/// Sixteen thousand octets of a record wait with TLS, and none of them is a message that has begun.
#[test]
fn who_begins_a_record_and_does_not_end_it_is_closed_and_what_it_holds_is_counted() {
    let (papers, ports, backend) = (Papers::new("tls-amid"), ports(), Backend::new());
    let tls = papers.issue("a", &["a.example"]);
    let more = "[streams]\nframe_timeout = \"2s\"\n";
    let viahop = Viahop::start("tls-amid", &(more.to_owned() + &config(ports, &tls, &udp(backend.port()), UNPROBED)));
    let phone = Phone::new(&papers, ports[1], &version::TLS13, None);
    let mut both = [phone.connect("a.example"), phone.connect("a.example")];
    for client in &mut both {
        client.say("\r\n\r\n");
        assert_eq!(client.hear(), "\r\n");
    }
    let [mut amid, mut silent] = both;
    amid.stream.sock.write_all(&[&[0x17, 3, 3, 0x40, 0][..], &[0; 16_000]].concat()).unwrap();
    let held = |viahop: &Viahop| viahop.metric("viahop_connections_held_bytes", "");
    viahop.wait_until("it is counted", PATIENCE, |_| held(&viahop) == 16_005.0);
    // New keys are a whole record: nothing is waited for behind it.
    silent.stream.conn.refresh_traffic_keys().unwrap();
    silent.stream.conn.complete_io(&mut silent.stream.sock).unwrap();
    viahop.wait_for_metric("viahop_connections_ended_total", "reason=\"slow\"", 1.0);
    // But for those keys.
    viahop.wait_until("it is given back", PATIENCE, |_| held(&viahop) < 100.0);
    std::thread::sleep(Duration::from_millis(2500));
    silent.say("\r\n\r\n");
    assert_eq!(silent.hear(), "\r\n");
    viahop.end();
}

/// A certificate for a SIP domain, and for the name that browsers know.
#[test]
fn who_asks_for_a_dns_name_beside_a_sip_domain_gets_its_certificate() {
    let (papers, ports, backend) = (Papers::new("tls-beside"), ports(), Backend::new());
    let first = papers.issue("a", &["a.example"]);
    let tls = format!("{first}, more = [{{ {} }}]", papers.issue("b", &["sip:b.example", "*.web.b.example"]));
    let viahop = Viahop::start("tls-beside", &config(ports, &tls, &udp(backend.port()), UNPROBED));
    let mut client = Phone::new(&papers, ports[1], &version::TLS13, None).connect("phone.web.b.example");
    client.call("beside", &backend);
    viahop.end();
}

#[test]
fn who_says_goodbye_behind_what_is_refused_is_told_why() {
    let (papers, ports, backend) = (Papers::new("tls-goodbye"), ports(), Backend::new());
    let tls = papers.issue("a", &["a.example"]);
    let viahop = Viahop::start("tls-goodbye", &config(ports, &tls, &udp(backend.port()), UNPROBED));
    let mut client = Phone::new(&papers, ports[1], &version::TLS13, None).connect("a.example");
    let text = request("OPTIONS", "TLS", client.address(), "goodbye", "");
    client.stream.conn.writer().write_all(text.as_bytes()).unwrap();
    client.stream.conn.send_close_notify();
    // Both in one segment.
    let mut sealed = Vec::new();
    while client.stream.conn.wants_write() {
        client.stream.conn.write_tls(&mut sealed).unwrap();
    }
    client.stream.sock.write_all(&sealed).unwrap();
    let heard = client.hear_the_end();
    assert!(heard.starts_with("SIP/2.0 400 Missing Content-Length\r\n"), "{heard}");
    viahop.wait_for_metric("viahop_connections_ended_total", "reason=\"bad_frame\"", 1.0);
    viahop.end();
}

/// TLS keeps 64 KiB of a message of its own that comes in whole records.
#[test]
fn who_begins_a_message_of_tls_and_does_not_end_it_is_closed_and_what_it_holds_is_counted() {
    let (papers, ports, backend) = (Papers::new("tls-message"), ports(), Backend::new());
    let tls = papers.issue("a", &["a.example"]);
    let more = "[streams]\nframe_timeout = \"1s\"\n";
    let text = more.to_owned() + &config(ports, &tls, &udp(backend.port()), UNPROBED);
    let viahop = Viahop::start("tls-message", &text);
    let mut phone = Phone::new(&papers, ports[1], &version::TLS13, None);
    Arc::get_mut(&mut phone.config).unwrap().enable_secret_extraction = true;
    let mut client = phone.connect("a.example");
    client.say("\r\n\r\n");
    assert_eq!(client.hear(), "\r\n");
    let StreamOwned { conn, mut sock, .. } = client.stream;
    let Some(SupportedCipherSuite::Tls13(suite)) = conn.negotiated_cipher_suite() else { panic!("no TLS 1.3") };
    let (number, secrets) = conn.dangerous_extract_secrets().unwrap().tx;
    let ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else { panic!("another cipher") };
    let mut encrypter = suite.aead_alg.encrypter(key, iv);
    // A KeyUpdate of 60,000 octets.
    let whole = [&[24, 0, 0xea, 0x60][..], &[0; 48_000]].concat();
    for (number, piece) in (number..).zip(whole.chunks(12_000)) {
        let (typ, version) = (ContentType::Handshake, ProtocolVersion::TLSv1_2);
        let message = OutboundPlainMessage { typ, version, payload: OutboundChunks::Single(piece) };
        sock.write_all(&encrypter.encrypt(message, number).unwrap().encode()).unwrap();
    }
    let held = |viahop: &Viahop| viahop.metric("viahop_connections_held_bytes", "");
    viahop.wait_until("it is counted", PATIENCE, |_| held(&viahop) > 48_000.0);
    viahop.wait_for_metric("viahop_connections_ended_total", "reason=\"slow\"", 1.0);
    viahop.end();
}

#[test]
fn what_is_no_tls_is_counted_by_what_it_is_and_harms_nobody() {
    let (papers, ports, backend) = (Papers::new("tls-bad"), ports(), Backend::new());
    let tls = papers.issue("a", &["a.example"]);
    let more = "[streams]\nhandshake_timeout = \"1s\"\nmax_handshakes = 40\n";
    let viahop = Viahop::start("tls-bad", &(more.to_owned() + &config(ports, &tls, &udp(backend.port()), UNPROBED)));
    let phone = Phone::new(&papers, ports[1], &version::TLS13, None);
    let mut client = phone.connect("a.example");
    client.call("before", &backend);

    let raw = |octets: &[u8]| {
        let mut stream = TcpStream::connect(("127.0.0.1", ports[1])).unwrap();
        stream.write_all(octets).unwrap();
        stream
    };
    for plain in [&b"OPTIONS sip:a SIP/2.0\r\n\r\n"[..], b"GET / HTTP/1.1\r\n\r\n", b"\r\n\r\n"] {
        raw(plain);
    }
    wait_for_handshakes(&viahop, "accepted", "not_tls", 3.0);
    raw(b"\x16\x03\x01\x00\x05\x02\x00\x00\x00\x00");
    wait_for_handshakes(&viahop, "accepted", "violation", 1.0);
    drop(raw(b"\x16\x03\x01"));
    wait_for_handshakes(&viahop, "accepted", "closed", 1.0);
    // A record that begins and does not go on, and nothing at all.
    let stuck = [raw(b"\x16\x03\x01\x02\x00\x01"), raw(b"")];
    wait_for_handshakes(&viahop, "accepted", "slow", 2.0);
    drop(stuck);
    // A client that does not trust us says so.
    let strangers = Papers::new("tls-strangers");
    assert!(Phone::new(&strangers, ports[1], &version::TLS13, None).try_connect("a.example").is_err());
    wait_for_handshakes(&viahop, "accepted", "refused", 1.0);
    // As many at a time as may be; whoever comes then is turned away, and not for long.
    let flood: Vec<TcpStream> = (0..60).map(|_| raw(b"\x16\x03\x01\x02\x00\x01")).collect();
    viahop.wait_until("some are turned away", PATIENCE, |_| handshakes(&viahop, "accepted", "limit") >= 20.0);
    client.call("meanwhile", &backend);
    drop(flood);
    viahop.wait_until("they are gone", PATIENCE, |_| viahop.metric("viahop_connections", "") == 1.0);
    client.call("afterwards", &backend);
    let mut more = phone.connect("a.example");
    more.call("from-others", &backend);
    let log = viahop.log();
    assert!(log.contains("event=\"client_tls_failed\"") && log.contains("reason=\"not_tls\""), "{log}");
    viahop.end();
}

/// It was told of with the next connection of its shard, and when nobody else came, never.
#[test]
fn the_only_client_there_is_is_told_of_when_its_handshake_fails() {
    let (papers, ports) = (Papers::new("tls-only"), ports());
    let text = config(ports, &papers.issue("a", &["a.example"]), &udp(free_port()), UNPROBED);
    let viahop = Viahop::start("tls-only", &text.replace("shards = 2", "shards = 1"));
    // A balancer looks whether we are there, and is no client that has failed.
    drop(TcpStream::connect(("127.0.0.1", ports[1])).unwrap());
    wait_for_handshakes(&viahop, "accepted", "closed", 1.0);
    let strangers = Papers::new("tls-only-strangers");
    assert!(Phone::new(&strangers, ports[1], &version::TLS13, None).try_connect("a.example").is_err());
    viahop
        .wait_until("it is told", PATIENCE, |_| viahop.log().contains("reason=\"refused\" why=\"received fatal alert"));
    assert!(!viahop.log().contains("reason=\"closed\""), "{}", viahop.log());
    viahop.end();
}

/// A ClientHello costs nothing to repeat, and us a signature each time.
#[test]
fn datagrams_are_answered_while_hundreds_of_handshakes_wait_in_line() {
    let (papers, ports) = (Papers::new("tls-line"), ports());
    let tls = papers.issue("a", &["a.example"]);
    let text = config(ports, &tls, "sip:127.0.0.1:9", UNPROBED).replace("shards = 2", "shards = 1");
    let viahop = Viahop::start("tls-line", &format!("[streams]\nhandshake_timeout = \"60s\"\n{text}"));
    let phone = Phone::new(&papers, ports[1], &version::TLS13, None);
    let name = ServerName::try_from("a.example").unwrap();
    let mut hello = Vec::new();
    ClientConnection::new(phone.config.clone(), name).unwrap().write_tls(&mut hello).unwrap();
    let flood = |count: usize| -> Vec<TcpStream> {
        let open = |_| {
            let mut stream = TcpStream::connect(("127.0.0.1", ports[1])).unwrap();
            stream.write_all(&hello).unwrap();
            stream.set_nonblocking(true).unwrap();
            stream
        };
        (0..count).map(open).collect()
    };
    let answered = |flood: &[TcpStream]| flood.iter().filter(|one| matches!(one.peek(&mut [0]), Ok(1))).count();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let local = socket.local_addr().unwrap();
    let mut fewest: Option<usize> = None;
    for round in 0..3 {
        let flood = flood(300);
        let before = answered(&flood);
        for number in 0..96 {
            let options = format!(
                "OPTIONS sip:127.0.0.1:{} SIP/2.0\r\nVia: SIP/2.0/UDP {local};branch=z9hG4bK{round}.{number}\r\n\
                 From: <sip:a@a.example>;tag=1\r\nTo: <sip:b@a.example>\r\nCall-ID: {round}.{number}\r\n\
                 CSeq: 1 OPTIONS\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n",
                ports[0]
            );
            socket.send_to(options.as_bytes(), ("127.0.0.1", ports[0])).unwrap();
        }
        for _ in 0..96 {
            uninterrupted(|| socket.recv(&mut [0; 2048])).unwrap();
        }
        // Of 300 that are ready the kernel tells 64 at a time: if a step came with each, three batches would wait for twelve.
        if before + 40 < flood.len() {
            let between = answered(&flood) - before;
            fewest = Some(fewest.map_or(between, |fewest| fewest.min(between)));
        }
        viahop.wait_until("all are answered", PATIENCE, |_| answered(&flood) == flood.len());
    }
    // Where connecting takes longer than signing there is no line.
    assert!(fewest.is_none_or(|fewest| fewest <= 8), "{fewest:?} handshakes before 96 datagrams");
    viahop.end();
}

#[test]
fn certificates_are_read_again_and_connections_stay() {
    let (papers, ports, backend) = (Papers::new("tls-reload"), ports(), Backend::new());
    let tls = papers.issue("a", &["a.example"]);
    let text = config(ports, &tls, &udp(backend.port()), UNPROBED);
    let viahop = Viahop::start("tls-reload", &text);
    let phone = Phone::new(&papers, ports[1], &version::TLS13, None);
    let mut early = phone.connect("a.example");
    early.call("early", &backend);
    papers.issue("a", &["a.example"]);
    viahop.process.signal("HUP");
    viahop.wait_until("it is read again", PATIENCE, |_| viahop.log().contains("event=\"reloaded\""));
    let fresh = Phone::new(&papers, ports[1], &version::TLS13, None);
    let mut late = fresh.connect("a.example");
    assert_ne!(early.certificate(), late.certificate());
    late.call("late", &backend);
    early.call("still-there", &backend);
    let expires = viahop.metric("viahop_certificate_expires_timestamp_seconds", "certificate=\"a.example\"");
    assert_eq!(expires, 4_070_908_800.0);
    // A key that does not fit is told of, and what is in force stays.
    papers.folder.write("a.key", &self_signed(&["a.example"]).key);
    viahop.process.signal("HUP");
    viahop.wait_until("it is refused", PATIENCE, |_| viahop.log().contains("event=\"reload_refused\""));
    assert!(viahop.log().contains("the key is not that of the certificate"), "{}", viahop.log());
    fresh.connect("a.example").call("later", &backend);
    viahop.end();
}

#[test]
fn certificates_of_one_name_are_one_series_that_says_when_the_first_of_them_ends() {
    let (papers, backend) = (Papers::new("tls-series"), Backend::new());
    papers.write("b", &papers.authority.issue_until(&["a.example"], 2040));
    let tls = format!("{}, more = [{{ {} }}]", papers.issue("a", &["a.example"]), papers.pair("b"));
    let viahop = Viahop::start("tls-series", &config(ports(), &tls, &udp(backend.port()), UNPROBED));
    let text = viahop.metrics();
    let rows: Vec<&str> = text.lines().filter(|row| row.starts_with("viahop_certificate_expires")).collect();
    assert!(matches!(rows[..], [row] if row.ends_with("\"a.example\"} 2208988800.0")), "{rows:?}");
    viahop.end();
}

#[test]
fn clients_without_the_right_certificate_stay_out_where_one_is_required() {
    let (papers, ports, backend) = (Papers::new("tls-mutual"), ports(), Backend::new());
    let own = papers.issue("a", &["a.example"]);
    let tls = format!("{own}, client_ca = \"{}\"", papers.path("ca.pem"));
    let viahop = Viahop::start("tls-mutual", &config(ports, &tls, &udp(backend.port()), UNPROBED));
    let known = papers.authority.issue(&["trunk.example"]);
    for version in [&version::TLS12, &version::TLS13] {
        Phone::new(&papers, ports[1], version, Some(&known)).connect("a.example").call("known", &backend);
        let expired = papers.authority.issue_until(&["trunk.example"], 2021);
        for shown in [None, Some(&self_signed(&["trunk.example"])), Some(&expired)] {
            // In TLS 1.3 a client thinks that it is through before the server has looked.
            if let Ok(client) = Phone::new(&papers, ports[1], version, shown).try_connect("a.example") {
                let mut stream = client.stream;
                assert!(stream.read(&mut [0; 100]).is_err());
            }
        }
    }
    wait_for_handshakes(&viahop, "accepted", "no_certificate", 2.0);
    wait_for_handshakes(&viahop, "accepted", "bad_certificate", 4.0);
    viahop.end();
}

/// A server that speaks TLS and answers everything but ACK with 200.
struct Cluster {
    port: u16,
}

impl Cluster {
    fn start(issued: &Issued) -> Cluster {
        Cluster::asking(issued, None)
    }

    /// One that asks its clients for a certificate.
    fn asking(issued: &Issued, clients: Option<RootCertStore>) -> Cluster {
        Cluster::of(issued, clients, serve)
    }

    fn of(issued: &Issued, clients: Option<RootCertStore>, serve: fn(Sealed<ServerConnection>)) -> Cluster {
        let (chain, key) = tls_of(issued);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.unwrap())
            }
        };
        let config = Arc::new(builder.with_single_cert(chain, key).unwrap());
        let listener = tcp_server();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let config = config.clone();
                std::thread::spawn(move || serve(StreamOwned::new(ServerConnection::new(config).unwrap(), stream)));
            }
        });
        Cluster { port }
    }

    fn uri(&self) -> String {
        format!("sips:localhost:{}", self.port)
    }
}

fn serve(stream: Sealed<ServerConnection>) {
    let mut client = Client { stream, came: Vec::new() };
    while let Ok(heard) = client.listen() {
        if heard.starts_with("\r\n") {
            continue;
        }
        let vias = rows(&heard, "Via").join(" | ");
        client.say(answer(&heard, "200 OK", &format!("X-Vias: {vias}\r\n{EMPTY}")));
    }
}

/// Answers and closes, with one write: what is read of the answer has the end behind it.
fn answer_and_close(stream: Sealed<ServerConnection>) {
    let mut client = Client { stream, came: Vec::new() };
    let Ok(heard) = client.listen() else { return };
    let StreamOwned { mut conn, mut sock } = client.stream;
    conn.writer().write_all(answer(&heard, "200 OK", EMPTY).as_bytes()).unwrap();
    conn.send_close_notify();
    let mut sealed = Vec::new();
    while conn.wants_write() {
        conn.write_tls(&mut sealed).unwrap();
    }
    sock.write_all(&sealed).ok();
}

fn udp_call(port: u16, call: &str) -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let invite = request("INVITE", "UDP", socket.local_addr().unwrap(), call, EMPTY);
    socket.send_to(invite.as_bytes(), ("127.0.0.1", port)).unwrap();
    let mut room = [0; 65_536];
    let (len, _) = uninterrupted(|| socket.recv_from(&mut room)).unwrap();
    String::from_utf8(room[..len].to_vec()).unwrap()
}

#[test]
fn backends_are_called_and_probed_over_tls_if_they_are_who_they_have_to_be() {
    let (papers, ports) = (Papers::new("tls-backend"), ports());
    let own = papers.issue("a", &["a.example"]);
    let trust = |name: &str| format!("tls = {{ ca = \"{}\", name = \"{name}\" }}", papers.path("ca.pem"));
    let cluster = Cluster::start(&papers.authority.issue(&["sip:cluster.example"]));
    let text = config(ports, &own, &cluster.uri(), &trust("cluster.example"));
    let viahop = Viahop::start("tls-backend", &text);
    viahop.wait_until("it answers OPTIONS", PATIENCE, |status| {
        status["backends"][0]["last_probe"].as_str().is_some_and(|text| text.starts_with("options_ok"))
    });
    for number in 0..8 {
        let heard = udp_call(ports[0], &format!("sealed{number}"));
        assert!(heard.starts_with("SIP/2.0 200 OK"), "{heard}");
        let vias = rows(&heard, "X-Vias");
        // The port at which a server could open a connection to us, were ours gone.
        let ours = format!("SIP/2.0/TLS 127.0.0.1:{};", ports[1]);
        assert!(vias[0].starts_with(&ours) && vias[0].contains("| SIP/2.0/UDP "), "{heard}");
        let recorded = rows(&heard, "Record-Route");
        assert!(recorded.len() == 2 && recorded[0].contains(";transport=tls;lr"), "{heard}");
    }
    // A phone with TLS to a server with TLS.
    let mut phone = Phone::new(&papers, ports[1], &version::TLS13, None).connect("a.example");
    phone.say(request("OPTIONS", "TLS", phone.address(), "both", EMPTY));
    assert!(phone.hear().starts_with("SIP/2.0 200 OK"));
    let opened = handshakes(&viahop, "opened", "full") + handshakes(&viahop, "opened", "resumed");
    assert!((1.0..=2.0).contains(&opened), "{opened}");

    // Who it has to be is said otherwise: connections that are there stay, and the next is refused.
    viahop.write_config(&config(ports, &own, &cluster.uri(), &trust("other.example")));
    viahop.process.signal("HUP");
    viahop.wait_until("it is read again", PATIENCE, |_| viahop.log().contains("event=\"reloaded\""));
    assert!(udp_call(ports[0], "again").starts_with("SIP/2.0 200 OK"));
    viahop.end();
}

/// Whom to trust is the pool's to say, and who is to be trusted the list's: also of a server that comes while it is followed.
#[test]
fn backends_of_a_dispatcher_list_are_reached_over_tls_as_its_pool_says() {
    let (papers, ports) = (Papers::new("tls-list"), ports());
    let own = papers.issue("a", &["a.example"]);
    let clusters = [(); 2].map(|()| Cluster::start(&papers.authority.issue(&["sip:cluster.example"])));
    let entry = |cluster: &Cluster| format!("1 sip:127.0.0.1:{};transport=tls\n", cluster.port);
    let list = papers.folder.write("dispatcher.list", &entry(&clusters[0]));
    let text = |tls: &str| {
        let text = config(ports, &own, "sip:127.0.0.1", tls);
        text.split("backend = ").next().unwrap().to_owned() + &format!("list = \"{}\"\n", list.display())
    };
    let trust = format!("tls = {{ ca = \"{}\", name = \"cluster.example\" }}", papers.path("ca.pem"));
    let rows = [
        (text(""), "nothing says whose certificates to trust of `127.0.0.1:"),
        (text(&trust.replace(", name = \"cluster.example\"", "")), "no certificate could be for `127.0.0.1`"),
    ];
    for (text, said) in rows {
        let path = papers.folder.write("viahop.toml", &(text + "\n[admin]\nlisten = \"off\"\n"));
        let (exit, _, stderr) = output(&mut viahop(&["check", path.to_str().unwrap()]));
        assert!(exit == 3 && stderr.contains(said) && stderr.contains("dispatcher.list:1:3"), "{exit}: {stderr}");
    }
    let of_list = format!("list = \"{}\"", list.display());
    let named = text(&trust.replace("cluster.example", "no name")).replace(&of_list, "discover = \"sips:sip.test\"");
    let path = papers.folder.write("viahop.toml", &(named + "\n[admin]\nlisten = \"off\"\n"));
    let (exit, _, stderr) = output(&mut viahop(&["check", path.to_str().unwrap()]));
    assert!(exit == 3 && stderr.contains("`no name` is no name of a domain"), "{exit}: {stderr}");
    let viahop = Viahop::start("tls-list", &text(&trust));
    let answers = |place: usize| {
        viahop.wait_until("it answers OPTIONS", PATIENCE, |status| {
            status["backends"][place]["last_probe"].as_str().is_some_and(|text| text.starts_with("options_ok"))
        });
    };
    answers(0);
    assert!(udp_call(ports[0], "listed").starts_with("SIP/2.0 200 OK"));
    let both = clusters.iter().map(entry).collect::<String>();
    fs::rename(papers.folder.write("next", &both), &list).unwrap();
    answers(1);
    for number in 0..8 {
        assert!(udp_call(ports[0], &format!("listed{number}")).starts_with("SIP/2.0 200 OK"));
    }
    viahop.end();
}

#[test]
fn a_backend_that_is_somebody_else_gets_nothing_and_the_log_says_who_and_why() {
    let (papers, ports) = (Papers::new("tls-wrong"), ports());
    let own = papers.issue("a", &["a.example"]);
    let rows = [
        (papers.authority.issue(&["other.example"]), "other.example"),
        (papers.authority.issue(&["*.example"]), "not valid for name"),
        (papers.authority.issue_until(&["cluster.example"], 2021), "expired"),
        (self_signed(&["cluster.example"]), "UnknownIssuer"),
    ];
    for (issued, why) in rows {
        let cluster = Cluster::start(&issued);
        let pool = format!("{UNPROBED}\ntls = {{ ca = \"{}\", name = \"cluster.example\" }}", papers.path("ca.pem"));
        let viahop = Viahop::start("tls-wrong", &config(ports, &own, &cluster.uri(), &pool));
        let heard = udp_call(ports[0], "wrong");
        assert!(heard.starts_with("SIP/2.0 503 "), "{heard}");
        wait_for_handshakes(&viahop, "opened", "bad_certificate", 1.0);
        let line = |log: &str| {
            let mut lines = log.lines().map(str::to_owned);
            lines.find(|line| line.contains("event=\"backend_tls_failed\""))
        };
        viahop.wait_until("it is told", PATIENCE, |_| line(&viahop.log()).is_some());
        let line = line(&viahop.log()).unwrap();
        let name = format!("backend=localhost:{}", cluster.port);
        assert!(line.contains(&name) && line.contains(why) && line.contains("bad_certificate"), "{line}");
        viahop.end();
    }
}

#[test]
fn a_backend_that_asks_for_a_certificate_is_shown_one_and_without_it_requests_are_refused() {
    let (papers, ports) = (Papers::new("tls-asking"), ports());
    let (own, shown) = (papers.issue("a", &["a.example"]), papers.issue("b", &["edge.example"]));
    let cluster = Cluster::asking(&papers.authority.issue(&["localhost"]), Some(papers.roots()));
    let trust = |more: &str| format!("{UNPROBED}\ntls = {{ ca = \"{}\"{more} }}", papers.path("ca.pem"));
    let text = config(ports, &own, &cluster.uri(), &trust(&format!(", {shown}")));
    let viahop = Viahop::start("tls-asking", &text);
    assert!(udp_call(ports[0], "shown").starts_with("SIP/2.0 200 OK"));
    viahop.end();
    let viahop = Viahop::start("tls-asked", &config(ports, &own, &cluster.uri(), &trust("")));
    // The server looks when the first requests are on their way; who comes then is told.
    let refused = |_: &serde_json::Value| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let invite = request("INVITE", "UDP", socket.local_addr().unwrap(), "unshown", EMPTY);
        socket.send_to(invite.as_bytes(), ("127.0.0.1", ports[0])).unwrap();
        let mut room = [0; 65_536];
        socket.recv(&mut room).is_ok_and(|len| room[..len].starts_with(b"SIP/2.0 503 "))
    };
    viahop.wait_until("it is refused", PATIENCE, refused);
    viahop.wait_until("it is told", PATIENCE, |_| viahop.log().contains("CertificateRequired"));
    viahop.end();
}

#[test]
fn a_backend_that_closes_behind_its_answer_has_answered_the_probe() {
    let (papers, ports) = (Papers::new("tls-closes"), ports());
    let own = papers.issue("a", &["a.example"]);
    let cluster = Cluster::of(&papers.authority.issue(&["localhost"]), None, answer_and_close);
    let pool = format!("tls = {{ ca = \"{}\" }}", papers.path("ca.pem"));
    let viahop = Viahop::start("tls-closes", &config(ports, &own, &cluster.uri(), &pool));
    viahop.wait_until("it is probed", PATIENCE, |status| !status["backends"][0]["last_probe"].is_null());
    let backend = &viahop.status()["backends"][0];
    assert_eq!((&backend["last_probe"], &backend["state"]), (&"options_ok (200)".into(), &"up".into()));
    viahop.end();
}

#[test]
fn a_probe_that_fails_for_its_tls_says_why_and_the_backend_is_down() {
    let (papers, ports) = (Papers::new("tls-plain"), ports());
    let own = papers.issue("a", &["a.example"]);
    let plain = tcp_server();
    let uri = format!("sips:localhost:{}", plain.local_addr().unwrap().port());
    std::thread::spawn(move || {
        for mut stream in plain.incoming().flatten() {
            // What is closed with octets that nobody has read is reset, and what was answered is lost with it.
            let _ = stream.read(&mut [0; 4096]);
            stream.write_all(b"SIP/2.0 400 Bad Request\r\nContent-Length: 0\r\n\r\n").ok();
        }
    });
    let pool = format!("tls = {{ ca = \"{}\" }}", papers.path("ca.pem"));
    let viahop = Viahop::start("tls-plain", &config(ports, &own, &uri, &pool));
    viahop.wait_until("it is down", PATIENCE, |status| status["backends"][0]["state"] == "down");
    let told = |log: &str, reason: &str, why: &str| {
        let mut lines = log.lines().filter(|line| line.contains("event=\"backend_tls_failed\""));
        lines.any(|line| line.contains(&format!("reason=\"{reason}\" why=\"")) && line.contains(why))
    };
    let log = viahop.log();
    assert!(told(&log, "not_tls", "corrupt message"), "{log}");
    viahop.end();

    let cluster = Cluster::start(&papers.authority.issue(&["other.example"]));
    let pool = format!("tls = {{ ca = \"{}\", name = \"cluster.example\" }}", papers.path("ca.pem"));
    let viahop = Viahop::start("tls-stranger", &config(ports, &own, &cluster.uri(), &pool));
    viahop.wait_until("it is down", PATIENCE, |status| status["backends"][0]["state"] == "down");
    let log = viahop.log();
    assert!(told(&log, "bad_certificate", "other.example"), "{log}");
    viahop.end();
}

/// Kamailio as a server that speaks TLS, and passes everything on to `uas`.
const KAMAILIO: &str = r#"
children=1
log_stderror=yes
debug=0
enable_tls=yes
tcp_children=1
listen=tls:127.0.0.1:PORT
listen=udp:127.0.0.1:PORT
mpath="/usr/lib/x86_64-linux-gnu/kamailio/modules/:/usr/lib/aarch64-linux-gnu/kamailio/modules/"
loadmodule "tls.so"
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "pv.so"
loadmodule "siputils.so"
loadmodule "textops.so"
modparam("tls", "private_key", "CERTIFICATE.key")
modparam("tls", "certificate", "CERTIFICATE.pem")
modparam("tls", "tls_method", "METHOD")
request_route {
    if (is_method("OPTIONS") && $rU == $null) { sl_send_reply("200", "OK"); exit; }
    $du = "sip:127.0.0.1:UAS";
    t_relay();
}
"#;

#[test]
fn calls_from_udp_reach_a_kamailio_over_tls() {
    let has_tls = ["x86_64", "aarch64"]
        .iter()
        .any(|arch| fs::exists(format!("/usr/lib/{arch}-linux-gnu/kamailio/modules/tls.so")).is_ok_and(|it| it));
    if !has_peer("kamailio") || !has_peer("sipp") {
        return;
    }
    if !has_tls {
        assert!(std::env::var_os("VIAHOP_PEERS").is_none(), "kamailio-tls-modules is not installed");
        return skip("kamailio-tls-modules not installed");
    }
    let _alone = alone();
    for method in ["TLSv1.2", "TLSv1.2+"] {
        let (papers, ports) = (Papers::new("tls-kamailio"), ports());
        let own = papers.issue("a", &["a.example"]);
        papers.issue("kamailio", &["sip:cluster.example"]);
        let (port, uas) = (free_port(), free_port());
        let cfg = KAMAILIO.replace("PORT", &port.to_string()).replace("UAS", &uas.to_string());
        let cfg = cfg.replace("CERTIFICATE", &papers.path("kamailio")).replace("METHOD", method);
        let cfg = papers.folder.write("kamailio.cfg", &cfg);
        let mut command = Command::new("kamailio");
        command.args(["-DD", "-E", "-m", "64", "-M", "8", "-f"]).arg(cfg).arg("-Y").arg(&papers.folder.0);
        command.stdout(Stdio::null()).stderr(fs::File::create(papers.folder.0.join("log")).unwrap());
        let _kamailio = Process::start(&mut command);
        let _uas = sipp_uas(&papers.folder.0, uas, &[]);
        let pool = format!(
            "tls = {{ ca = \"{}\", name = \"cluster.example\" }}\noutlier = {{ on = false }}",
            papers.path("ca.pem")
        );
        let uri = format!("sip:127.0.0.1:{port};transport=tls");
        let viahop = Viahop::start("tls-kamailio", &config(ports, &own, &uri, &pool));
        let of_kamailio = || fs::read_to_string(papers.folder.0.join("log")).unwrap();
        let since = Instant::now();
        while !viahop.status()["backends"][0]["last_probe"].as_str().is_some_and(|one| one.starts_with("options_ok")) {
            assert!(since.elapsed() < PATIENCE, "{}\n{}", viahop.log(), of_kamailio());
            std::thread::sleep(Duration::from_millis(50));
        }
        let status = sipp_uac(&papers.folder.0, ports[0], 200, 100, &["-timeout", "30s"]).status().unwrap();
        let made = calls(&papers.folder.0);
        assert!(status.success() && made.successful == 200, "{method}: {made:?}\n{}\n{}", viahop.log(), of_kamailio());
        let backend = viahop.metric("viahop_messages_forwarded_total", "kind=\"request\"");
        assert!(backend >= 600.0, "{backend}");
        viahop.end();
    }
}

/// baresip as a user of load.example, who speaks TLS. Version 1.0 asks nobody for who he is.
fn baresip(folder: &Folder, user: &str, viahop: u16, more: &[&str]) -> Process {
    let modules = ["/usr/lib/baresip/modules", "/usr/lib/x86_64-linux-gnu/baresip/modules"];
    let modules = modules.iter().find(|path| fs::exists(path).is_ok_and(|it| it)).unwrap();
    folder.write(
        "config",
        &format!(
            "sip_listen 127.0.0.1:0\naudio_source ausine,440\naudio_player aubridge,pipe\n\
             audio_alert aubridge,pipe\nrtcp_enable yes\nmodule_path {modules}\nmodule opus.so\nmodule ausine.so\n\
             module aubridge.so\nmodule srtp.so\nmodule_app account.so\nmodule_app menu.so\nmodule_app rtcpsummary.so\n"
        ),
    );
    folder.write(
        "accounts",
        &format!(
            "<sip:{user}@load.example>;outbound=\"sip:127.0.0.1:{viahop};transport=tls\";regint=60;answermode=auto;\
             auth_pass=secret;mediaenc=srtp-mand;audio_codecs=opus/48000/2\n"
        ),
    );
    let log = fs::File::create(folder.0.join("log")).unwrap();
    let mut command = Command::new("baresip");
    command.arg("-f").arg(&folder.0).args(more).stdout(log.try_clone().unwrap()).stderr(log);
    Process::start(&mut command)
}

/// Two phones on TLS alone register with a Kamailio that speaks UDP, by digest; one calls the other, which is called down
/// the connection it registered on.
#[test]
fn two_baresips_register_and_call_each_other_over_tls_alone() {
    if !["baresip", "kamailio"].iter().all(|name| has_peer(name)) {
        return;
    }
    let (papers, ports, registrar) = (Papers::new("tls-baresip"), ports(), free_port());
    let own = papers.issue("a", &["load.example", "127.0.0.1"]);
    let _registrar = kamailio(&papers.folder, "127.0.0.1", registrar, DIGEST);
    let pool = "affinity = \"aor\"\nhealth = { interval = \"500ms\", timeout = \"200ms\" }";
    let text = config(ports, &own, &udp(registrar), pool) + "[policy]\npath = \"always\"\n";
    let viahop = Viahop::start("tls-baresip", &text);
    wait_for_registrars(&viahop);
    let (bob, alice) = (Folder::new("bob"), Folder::new("alice"));
    let _bob = baresip(&bob, "bob", ports[1], &[]);
    let log =
        |folder: &Folder| String::from_utf8_lossy(&fs::read(folder.0.join("log")).unwrap_or_default()).into_owned();
    let wait_for = |folder: &Folder, what: &str| {
        let since = Instant::now();
        while !log(folder).contains(what) {
            let (one, other) = (log(&bob), log(&alice));
            assert!(since.elapsed() < PATIENCE, "{what}\n{one}\n\n{other}\n{}", viahop.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait_for(&bob, "200 OK");
    let mut calls = baresip(&alice, "alice", ports[1], &["-e", "/dial sip:bob@load.example", "-t", "8"]);
    for folder in [&alice, &bob] {
        wait_for(folder, "Call established");
        wait_for(folder, "incoming rtp for 'audio' established");
    }
    let wires = |count: f64| {
        viahop.wait_until("each has one connection", PATIENCE, |_| viahop.metric("viahop_connections", "") == count);
    };
    wires(2.0);
    viahop.wait_for_metric("viahop_tls_handshakes_total", "\"accepted\",result=\"full\"", 2.0);
    assert!(calls.wait(PATIENCE).is_some());
    // Alice has hung up, and bob knows it; what came of her voice, he counts with each report of five seconds.
    wait_for(&bob, "session closed");
    wait_for(&bob, "EX=BareSip;");
    let counted = log(&bob);
    let heard = counted.split(";PR=").nth(1).and_then(|rest| rest.split(';').next()?.parse::<u32>().ok());
    assert!(heard > Some(100), "{counted}");
    wires(1.0);
    viahop.end();
}

#[test]
fn sipsak_and_openssl_speak_to_us() {
    let (papers, ports, backend) = (Papers::new("tls-peers"), ports(), Backend::new());
    let own = papers.issue("a", &["localhost"]);
    let viahop = Viahop::start("tls-peers", &config(ports, &own, &udp(backend.port()), UNPROBED));
    if has_peer("openssl") {
        for version in ["-tls1_2", "-tls1_3"] {
            let mut command = Command::new("openssl");
            command.args(["s_client", "-connect", &format!("127.0.0.1:{}", ports[1]), "-servername", "localhost"]);
            command.args(["-CAfile", &papers.path("ca.pem"), "-verify_return_error", "-quiet", version]);
            let mut client =
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            let options = format!(
                "OPTIONS sip:127.0.0.1:{}{EMPTY}",
                format_args!(
                    "{} SIP/2.0\r\nVia: SIP/2.0/TLS 127.0.0.1;branch=z9hG4bKo\r\nMax-Forwards: 70\r\n\
                     From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: o\r\nCSeq: 1 OPTIONS\r\n",
                    ports[1]
                )
            ) + "\r\n";
            client.stdin.as_mut().unwrap().write_all(options.as_bytes()).unwrap();
            let mut room = [0; 2000];
            let len = client.stdout.as_mut().unwrap().read(&mut room).unwrap();
            let heard = String::from_utf8_lossy(&room[..len]).into_owned();
            client.kill().unwrap();
            client.wait().unwrap();
            assert!(heard.starts_with("SIP/2.0 200 OK\r\n"), "{version}: {heard}");
        }
        let obsolete =
            ["s_client", "-connect", &format!("127.0.0.1:{}", ports[1]), "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"];
        let (code, _, _) = output(Command::new("openssl").args(obsolete));
        assert_ne!(code, 0);
        wait_for_handshakes(&viahop, "accepted", "incompatible", 1.0);
    }
    if has_peer("sipsak") {
        // It gives up at the ticket that follows a handshake of TLS 1.3.
        let policy = papers.folder.write("gnutls", "[overrides]\ndisabled-version = tls1.3\n");
        let mut command = Command::new("sipsak");
        command.args(["--transport=tls", "--tls-ca-cert", &papers.path("ca.pem")]);
        command.args(["-s", &format!("sip:bob@localhost:{}", ports[1])]).env("GNUTLS_SYSTEM_PRIORITY_FILE", policy);
        let mut asking = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
        let (sent, from) = backend.hear();
        assert!(sent.starts_with("OPTIONS ") && rows(&sent, "Via")[1].starts_with("SIP/2.0/TLS "), "{sent}");
        backend.say(&answer(&sent, "200 OK", ""), from);
        assert_eq!(asking.wait(PATIENCE).and_then(|status| status.code()), Some(0));
    }
    viahop.end();
}

#[test]
fn check_says_what_is_wrong_with_certificates() {
    let papers = Papers::new("tls-check");
    let own = papers.issue("a", &["a.example"]);
    papers.write("old", &papers.authority.issue_until(&["a.example"], 2021));
    let (old, ca) = (papers.pair("old"), papers.path("ca.pem"));
    let plain = udp(free_port());
    let rows = [
        (config(ports(), &own, &plain, ""), 0, ""),
        (config(ports(), &old, &plain, ""), 0, "old.pem has expired on 2021-01-01T00:00:00Z"),
        (config(ports(), &own.replace("a.pem", "b.pem"), &plain, ""), 3, "b.pem: No such file"),
        (config(ports(), &own.replace("a.key", "old.key"), &plain, ""), 3, "the key is not that of the certificate"),
        (config(ports(), &own.replace("a.key", "a.pem"), &plain, ""), 3, "no private key"),
        (config(ports(), &format!("{own}, client_ca = \"{}\"", papers.path("a.key")), &plain, ""), 3, "cannot use"),
        (config(ports(), &own, "sips:localhost", ""), 3, "nothing says whose certificates to trust"),
        (
            config(ports(), &own, "sips:127.0.0.1", &format!("tls = {{ ca = \"{ca}\" }}")),
            3,
            "no certificate could be for",
        ),
        (
            config(ports(), &own, &plain, &format!("tls = {{ ca = \"{ca}\" }}")),
            0,
            "no backend of this pool is reached by TLS",
        ),
    ];
    for (text, code, said) in rows {
        let path = papers.folder.write("viahop.toml", &(text + "\n[admin]\nlisten = \"off\"\n"));
        let (exit, _, stderr) = output(&mut viahop(&["check", path.to_str().unwrap()]));
        assert!(exit == code && stderr.contains(said), "{exit}: {stderr}");
    }
}
