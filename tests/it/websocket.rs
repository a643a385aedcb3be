//! WebSocket, for real: Python's websockets as the phone, over ws and wss, and those who break the rules by hand.

use crate::live::{PATIENCE, UNPROBED, Viahop, free_port};
use crate::streams::{Backend, answer, request, rows, udp};
use crate::support::{has_peer, skip};
use crate::tls::Papers;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use viahop::sys::uninterrupted;

/// UDP and WebSocket listeners; `tls` makes the latter a secure one.
fn config(plain: u16, listen: u16, tls: &str, backend: u16, more: &str) -> String {
    let (scheme, tls) = if tls.is_empty() { ("ws", String::new()) } else { ("wss", format!("tls = {{ {tls} }}\n")) };
    format!(
        "[balancer]\nshards = 2\n{more}\n[[listen]]\naddress = \"udp:127.0.0.1:{plain}\"\n\
         [[listen]]\nname = \"web\"\naddress = \"{scheme}:127.0.0.1:{listen}\"\n\
         origins = [\"https://phone.example\"]\n{tls}[policy]\npath = \"always\"\n\
         [[pool]]\n{UNPROBED}\nbackend = [{{ uri = \"{}\" }}]\n",
        udp(backend)
    )
}

/// Registers from behind a name that nobody can look up, is called, answers, and is told what comes of it: each message on a
/// line of standard output, its lines joined by `|`.
const PHONE: &str = r#"
import asyncio, ssl, sys, websockets
url, ca = sys.argv[1], sys.argv[2]
def show(message):
    kind = "binary" if isinstance(message, bytes) else "text"
    text = message.decode("latin-1") if isinstance(message, bytes) else message
    print(kind + "|" + text.replace("\r\n", "|"), flush=True)
    return text
async def main():
    more = {"ssl": ssl.create_default_context(cafile=ca)} if ca else {}
    async with websockets.connect(url, subprotocols=["sip"], origin="https://phone.example", **more) as ws:
        print("protocol|" + ws.subprotocol, flush=True)
        await (await ws.ping(b"alive?"))
        await ws.send("\r\n\r\n")
        show(await ws.recv())
        via = "SIP/2.0/" + url.split(":")[0].upper() + " df7jal23ls0d.invalid;branch=z9hG4bKreg"
        register = ("REGISTER sip:example.net SIP/2.0\r\nVia: " + via + "\r\nMax-Forwards: 70\r\n"
            "From: <sip:alice@example.net>;tag=1\r\nTo: <sip:alice@example.net>\r\nCall-ID: web\r\nCSeq: 1 REGISTER\r\n"
            "Supported: path, outbound\r\nContact: <sip:alice@df7jal23ls0d.invalid;transport=ws>;reg-id=1\r\n\r\n")
        # In fragments, and as octets.
        await ws.send([register[:20], register[20:100], register[100:]])
        show(await ws.recv())
        await ws.send(register.replace("z9hG4bKreg", "z9hG4bKreg2").replace("1 REGISTER", "2 REGISTER").encode())
        show(await ws.recv())
        invite = show(await ws.recv())
        keep = [row for row in invite.split("\r\n") if row.split(":")[0] in ("Via", "Record-Route", "From", "To", "Call-ID", "CSeq")]
        await ws.send("SIP/2.0 200 OK\r\n" + "\r\n".join(keep) + "\r\n\r\n")
        body = "v=0\r\ns=" + "x" * 30000 + "\r\n"
        await ws.send(register.replace("REGISTER", "MESSAGE").replace("z9hG4bKreg", "z9hG4bKlong").replace("\r\n\r\n", "\r\nContent-Type: text/plain\r\n\r\n") + body)
        show(await ws.recv())
        await ws.recv()
asyncio.run(main())
"#;

/// Whether Python and its module are there.
fn has_websockets() -> bool {
    if !has_peer("python3") {
        return false;
    }
    let import = Command::new("/usr/bin/python3").args(["-c", "import websockets"]).stderr(Stdio::null()).status();
    let found = import.is_ok_and(|status| status.success());
    if !found {
        assert!(std::env::var_os("VIAHOP_PEERS").is_none(), "python3-websockets is not installed");
        skip("python3-websockets not installed");
    }
    found
}

#[test]
fn a_phone_behind_a_websocket_registers_and_is_called_down_it() {
    if !has_websockets() {
        return;
    }
    for scheme in ["ws", "wss"] {
        let papers = Papers::new("ws-papers");
        let tls = if scheme == "ws" { String::new() } else { papers.issue("a", &["localhost"]) };
        let (plain, listen, registrar) = (free_port(), free_port(), Backend::new());
        let viahop = Viahop::start("ws", &config(plain, listen, &tls, registrar.port(), ""));
        let script = papers.folder.write("phone.py", PHONE);
        let ca = if tls.is_empty() { String::new() } else { papers.path("ca.pem") };
        let mut command = Command::new("/usr/bin/python3");
        command.arg(script).args([format!("{scheme}://localhost:{listen}"), ca]);
        let log = std::fs::File::create(papers.folder.0.join("log")).unwrap();
        let mut phone = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut came = Lines { pipe: phone.stdout.take().unwrap(), came: Vec::new() };
        assert_eq!(came.next(), "protocol|sip");
        assert_eq!(came.next(), "text||");
        let mut path = String::new();
        for number in 1..=2 {
            let (sent, from) = registrar.hear();
            let vias = rows(&sent, "Via");
            assert!(vias[0].starts_with("SIP/2.0/UDP 127.0.0.1:"), "{sent}");
            let client = format!("SIP/2.0/{} df7jal23ls0d.invalid;", scheme.to_uppercase());
            assert!(vias[1].starts_with(&client) && vias[1].contains(";received=127.0.0.1"), "{sent}");
            assert!(sent.contains(&format!("CSeq: {number} REGISTER\r\n")), "{sent}");
            path = rows(&sent, "Path")[0].to_owned();
            assert!(path.contains(";lr;vh=") && path.ends_with(";ob>"), "{sent}");
            registrar.say(&answer(&sent, "200 OK", ""), from);
            let heard = came.next();
            assert!(heard.starts_with("text|SIP/2.0 200 OK|") && heard.contains("df7jal23ls0d.invalid"), "{heard}");
        }
        // The registrar calls the phone, by the Path it was given.
        let call = format!(
            "INVITE sip:alice@df7jal23ls0d.invalid;transport=ws SIP/2.0\r\n\
             Via: SIP/2.0/UDP 127.0.0.1:{};branch=z9hG4bKcall;rport\r\nRoute: {path}\r\nMax-Forwards: 70\r\n\
             From: <sip:bob@example.net>;tag=2\r\nTo: <sip:alice@example.net>\r\nCall-ID: called\r\nCSeq: 1 INVITE\r\n\
             Contact: <sip:bob@127.0.0.1>\r\n\r\n",
            registrar.port()
        );
        registrar.say(&call, ("127.0.0.1", plain));
        let heard = came.next();
        let ours = format!("|Via: SIP/2.0/{} 127.0.0.1:{listen};", scheme.to_uppercase());
        assert!(heard.starts_with("text|INVITE sip:alice@df7jal23ls0d.invalid;transport=ws SIP/2.0|"), "{heard}");
        assert!(heard.contains(&ours) && heard.contains(&format!(":{listen};transport=ws;lr;vh=")), "{heard}");
        assert!(registrar.hear().0.starts_with("SIP/2.0 200 OK"));
        let (sent, from) = registrar.hear();
        assert!(sent.starts_with("MESSAGE ") && sent.len() > 30_000, "{}", sent.len());
        // What is no UTF-8 comes in a binary frame.
        let latin = answer(&sent, "200 OK", "X-Name: J\u{e9}r\u{f4}me\r\n");
        let latin: Vec<u8> = latin.chars().map(|letter| letter as u8).collect();
        registrar.say_octets(&latin, from);
        assert!(came.next().starts_with("binary|SIP/2.0 200 OK|"));
        viahop.wait_for_metric("viahop_websocket_upgrades_total", "result=\"done\"", 1.0);
        // The tab is closed: the flow is gone within a second.
        phone.kill().unwrap();
        phone.wait().unwrap();
        let gone = viahop.time_until("it is gone", |_| viahop.metric("viahop_connections", "") == 0.0);
        assert!(gone < Duration::from_secs(1), "{gone:?}");
        registrar.say(&call.replace("z9hG4bKcall", "z9hG4bKgone"), ("127.0.0.1", plain));
        let (heard, _) = registrar.hear();
        assert!(heard.starts_with("SIP/2.0 430 "), "{heard}");
        viahop.end();
    }
}

/// What a process says, line by line.
struct Lines<R> {
    pipe: R,
    came: Vec<u8>,
}

impl<R: Read> Lines<R> {
    fn next(&mut self) -> String {
        loop {
            if let Some(at) = self.came.iter().position(|&octet| octet == b'\n') {
                let line: Vec<u8> = self.came.drain(..=at).collect();
                return String::from_utf8_lossy(&line[..at]).into_owned();
            }
            let mut room = [0; 4096];
            let count = self.pipe.read(&mut room).unwrap();
            assert!(count > 0, "it ended behind {:?}", String::from_utf8_lossy(&self.came));
            self.came.extend_from_slice(&room[..count]);
        }
    }
}

fn asking(more: &str) -> String {
    format!(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    )
}

const SIP: &str = "Sec-WebSocket-Protocol: sip\r\n";

pub struct Raw(pub TcpStream);

impl Raw {
    fn connect(port: u16) -> Raw {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Raw(stream)
    }

    pub fn open(port: u16) -> Raw {
        let mut raw = Raw::connect(port);
        raw.0.write_all(asking(SIP).as_bytes()).unwrap();
        assert!(raw.hear().starts_with(b"HTTP/1.1 101 "));
        raw
    }

    pub fn hear(&mut self) -> Vec<u8> {
        let mut room = vec![0; 65_536];
        let count = uninterrupted(|| self.0.read(&mut room)).unwrap();
        room.truncate(count);
        room
    }

    /// Says something, and returns what is said until the other side closes.
    fn last_words(mut self, octets: &[u8]) -> Vec<u8> {
        self.0.write_all(octets).ok();
        let mut rest = Vec::new();
        if let Err(error) = self.0.read_to_end(&mut rest) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        }
        rest
    }
}

/// A frame under a mask of zeros, which changes nothing.
pub fn frame(first: u8, octets: &[u8]) -> Vec<u8> {
    let mut frame = vec![first, 0xfe];
    frame.extend((octets.len() as u16).to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(octets);
    if octets.len() <= 125 {
        frame.splice(1..4, [0x80 | octets.len() as u8]);
    }
    frame
}

#[test]
fn who_breaks_the_rules_of_websocket_is_closed_alone_and_counted() {
    let (plain, listen, backend) = (free_port(), free_port(), Backend::new());
    let more = "[streams]\nframe_timeout = \"1s\"\n";
    let viahop = Viahop::start("ws-bad", &config(plain, listen, "", backend.port(), more));
    let mut good = Raw::open(listen);
    let mut call = |call: &str| {
        good.0.write_all(&frame(0x81, request("INVITE", "WS", "a.invalid", call, "").as_bytes())).unwrap();
        let (sent, from) = backend.hear();
        assert!(sent.contains(call), "{sent}");
        backend.say(&answer(&sent, "200 OK", ""), from);
        assert!(String::from_utf8_lossy(&good.hear()).contains("SIP/2.0 200 OK"));
    };
    call("before");
    let refused = |more: &str| Raw::connect(listen).last_words(asking(more).as_bytes());
    assert!(refused(&format!("{SIP}Origin: https://evil.example\r\n")).starts_with(b"HTTP/1.1 403 "));
    assert!(refused("Sec-WebSocket-Protocol: xmpp\r\n").starts_with(b"HTTP/1.1 400 "));
    assert!(Raw::connect(listen).last_words(b"GET / HTTP/1.1\r\n\r\n").starts_with(b"HTTP/1.1 400 "));
    assert_eq!(Raw::connect(listen).last_words(b"\x16\x03\x01\x02\x00\x01"), b"");
    for (result, count) in [("origin", 1.0), ("subprotocol", 1.0), ("malformed", 2.0)] {
        viahop.wait_for_metric("viahop_websocket_upgrades_total", &format!("\"{result}\""), count);
    }
    let closed = |code: u16| [&[0x88, 2][..], &code.to_be_bytes()].concat();
    let huge = [&[0x81, 0xff, 0x80][..], &[0; 7], &[0; 4]].concat();
    let pings = frame(0x89, b"x").repeat(200);
    let rows: [(&[u8], u16); 5] = [
        (b"\x81\x03abc", 1002),
        (&huge, 1009),
        (&frame(0xc1, b"compressed"), 1002),
        (&frame(0x89, &[0; 200]), 1002),
        (&pings, 1008),
    ];
    for (octets, code) in rows {
        let said = Raw::open(listen).last_words(octets);
        assert!(said.ends_with(&closed(code)), "{code}: {said:?}");
        call(&format!("meanwhile{code}{}", octets.len()));
    }
    let ended = |reason: &str| viahop.metric("viahop_connections_ended_total", &format!("\"{reason}\""));
    viahop.wait_until("all are counted", PATIENCE, |_| ended("websocket") == 9.0);
    // A message in fragments that does not end, and a request to be one that does not.
    let since = Instant::now();
    let (mut slow, mut half) = (Raw::open(listen), Raw::connect(listen));
    half.0.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    while since.elapsed() < PATIENCE
        && slow.0.write_all(&frame(if since.elapsed().as_millis() < 50 { 0x01 } else { 0x00 }, b"x")).is_ok()
    {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(since.elapsed() < Duration::from_secs(5));
    viahop.wait_until("they are too slow", PATIENCE, |_| ended("slow") + ended("websocket") >= 11.0);
    // A message that is no SIP costs nobody the connection, and is answered where there is somebody to answer.
    good.0.write_all(&frame(0x81, b"hello")).unwrap();
    good.0
        .write_all(&frame(0x82, request("INVITE", "WS", "a.invalid", "long", "Content-Length: 5\r\n").as_bytes()))
        .unwrap();
    assert!(String::from_utf8_lossy(&good.hear()).contains("SIP/2.0 400 "));
    // Who says goodbye is answered, and gone.
    assert_eq!(good.last_words(&frame(0x88, &1001u16.to_be_bytes())), closed(1001));
    viahop.wait_until("it is gone", PATIENCE, |_| viahop.metric("viahop_connections", "") == 0.0);
    viahop.end();
}
