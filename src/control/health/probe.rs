//! Asks a backend whether it is alive: OPTIONS from a socket of its own (RFC 3261 11), again and again.
//!
//! ```text
//! wait: interval, or less if a shard saw a refusal ─► OPTIONS ─► a final response, ICMP, or nothing in time ─► outcome
//! ```
//!
//! A backend that is reached over TCP or TLS is asked so, on one connection that is opened again when it is gone, or when a shard
//! could not open one. Where connections begin with a PROXY header, its own says that it is for nobody.
//!
//! A probe is not retransmitted: `fall` counts what is lost. The socket is connected, so ICMP errors come back to it and
//! nobody else can answer in the backend's name.

mod stream;

use super::detector::Outcome;
use crate::control::config::Health;
use crate::control::config::address::uri_host;
use crate::control::resolve::Place;
use crate::dataplane::frame::{Frame, Framer, LINE_END, PING};
use crate::dataplane::scan::{Scan, Scanner};
use crate::dataplane::sip::grammar;
use crate::dataplane::sip::header::HeaderKind;
use crate::dataplane::sip::start_line::{self, StartLine};
use crate::dataplane::tables::ProxyHeader;
use crate::dataplane::transport::Transport;
use crate::tls::Credentials;
use crate::tls::session::Failure;
use arc_swap::ArcSwap;
use ppp::{v1, v2};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stream::Stream;
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::timeout_at;

/// Octets of the longest answer that is looked at. An answer to OPTIONS carries a list of headers, no body worth reading.
const ANSWER_MAX: usize = 8192;

/// Probes asked for by shards come at most this often: a backend that refuses everything would be asked at line rate.
const HURRY_GAP: Duration = Duration::from_millis(50);

/// What a probe reports.
#[derive(Clone, Debug)]
pub struct Report {
    /// The number of the watch.
    pub watch: u64,
    /// What came of it.
    pub outcome: Outcome,
    /// Why there was no TLS with it, if it refused so.
    pub failure: Option<Failure>,
    /// How long it took.
    pub took: Duration,
}

/// What watches need of their surroundings.
#[derive(Clone, Debug)]
pub struct Reports {
    /// Who is told.
    pub to: mpsc::Sender<Report>,
    /// What a connection that speaks TLS begins with.
    pub credentials: Arc<ArcSwap<Credentials>>,
}

/// A backend under watch; dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    task: AbortHandle,
    hurry: Arc<Notify>,
}

impl Watch {
    /// Begins to watch the backend at `place`, and tells of it under the number `watch`. `offset` delays the first
    /// probe, so that probes of many backends do not leave at once.
    ///
    /// Must be called within a tokio runtime.
    pub fn start(watch: u64, place: Place, health: Health, offset: Duration, reports: Reports) -> Watch {
        let hurry = Arc::new(Notify::new());
        let task = tokio::spawn(run(watch, place, health, offset, hurry.clone(), reports));
        Watch { task: task.abort_handle(), hurry }
    }

    /// Asks for a probe at once.
    pub fn hurry(&self) {
        self.hurry.notify_one();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    watch: u64,
    place: Place,
    health: Health,
    offset: Duration,
    hurry: Arc<Notify>,
    Reports { to, credentials }: Reports,
) {
    let mut asker = Asker { credentials, ..Asker::default() };
    let mut next = tokio::time::Instant::now() + offset;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = hurry.notified() => {
                tokio::time::sleep(HURRY_GAP).await;
                // A shard was refused: that a connection could be opened once says nothing of whether one can be opened. Its descriptor
                // is free for the next, where there is no other.
                asker.stream = None;
            }
        }
        let started = Instant::now();
        next = tokio::time::Instant::now() + health.interval;
        let outcome = asker.ask(place, &health).await;
        let (failure, took) = (asker.failure.take(), started.elapsed());
        if to.send(Report { watch, outcome, failure, took }).await.is_err() {
            return;
        }
    }
}

/// Sends OPTIONS and reads answers.
#[derive(Default)]
struct Asker {
    /// Kept from probe to probe: backends that remember transactions see one peer.
    socket: Option<UdpSocket>,
    /// Of a backend that is reached over TCP or TLS: the connection, and what has come on it and is no message yet.
    stream: Option<(Stream, Vec<u8>)>,
    /// Why there was no TLS with it.
    failure: Option<Failure>,
    credentials: Arc<ArcSwap<Credentials>>,
    cseq: u32,
}

impl Asker {
    async fn ask(&mut self, place: Place, health: &Health) -> Outcome {
        let until = tokio::time::Instant::now() + health.timeout;
        match timeout_at(until, self.exchange(place)).await {
            Ok(Ok(code)) if health.is_ok(code) => Outcome::Alive(code),
            Ok(Ok(code)) => Outcome::Unwell(code),
            // A firewall of this machine has dropped it, or has no room for another flow: lost, as it may be on the way.
            Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => Outcome::Timeout,
            Ok(Err(error)) => {
                self.failure = error.downcast().ok();
                // The local address may be gone, or the route: the next probe starts from scratch.
                (self.socket, self.stream) = (None, None);
                Outcome::Refused
            }
            Err(_) => {
                // What comes late on a connection would be in the way of the next answer.
                self.stream = None;
                Outcome::Timeout
            }
        }
    }

    /// One OPTIONS and the code of its final response.
    async fn exchange(&mut self, place: Place) -> io::Result<u16> {
        match place.transport {
            Transport::Udp => self.exchange_datagrams(place).await,
            Transport::Tcp | Transport::Tls | Transport::Ws | Transport::Wss => {
                match self.exchange_on_stream(place).await {
                    // The connection may have been closed since the last time: the next is a new one.
                    Err(_) if self.stream.take().is_some() => self.exchange_on_stream(place).await,
                    outcome => outcome,
                }
            }
        }
    }

    async fn exchange_on_stream(&mut self, place: Place) -> io::Result<u16> {
        if self.stream.is_none() {
            let socket = if place.address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.bind(SocketAddr::new(place.local, 0))?;
            let stream = socket.connect(place.address).await?;
            stream.set_nodelay(true)?;
            let mut stream = Stream::plain(stream);
            if let Some(version) = place.proxy_header {
                stream.write(&header_of_our_own(version)?).await?;
            }
            if place.transport == Transport::Tls {
                stream = stream.sealed(place.address, &self.credentials.load())?;
            }
            self.stream = Some((stream, Vec::new()));
            // Whoever fails from here on has failed with a connection of this moment, and is not asked again at once.
            let outcome = self.ask_on_stream(place).await;
            return outcome.inspect_err(|_| self.stream = None);
        }
        self.ask_on_stream(place).await
    }

    async fn ask_on_stream(&mut self, place: Place) -> io::Result<u16> {
        self.cseq = self.cseq.wrapping_add(1) & 0x7fff_ffff;
        let call_id = format!("{:016x}", random()?);
        let Some((stream, came)) = &mut self.stream else { return Err(io::ErrorKind::NotConnected.into()) };
        let request = options(place, stream.local_addr()?, &call_id, self.cseq);
        stream.write(request.as_bytes()).await?;
        let (scanner, mut scan, mut framer) = (Scanner::best(), Scan::default(), Framer::default());
        loop {
            let len = match framer.next(&scanner, &mut scan, came) {
                Frame::Message(len) => len,
                Frame::LineEnd => LINE_END,
                Frame::Ping => PING,
                Frame::Broken(_) => return Err(io::ErrorKind::InvalidData.into()),
                Frame::Partial => {
                    stream.read(came).await?;
                    continue;
                }
            };
            let message: Vec<u8> = came.drain(..len).collect();
            if let Some(code) = final_code(&message, call_id.as_bytes(), self.cseq) {
                return Ok(code);
            }
        }
    }

    async fn exchange_datagrams(&mut self, place: Place) -> io::Result<u16> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => {
                let socket = UdpSocket::bind(SocketAddr::new(place.local, 0)).await?;
                socket.connect(place.address).await?;
                socket
            }
        };
        self.cseq = self.cseq.wrapping_add(1) & 0x7fff_ffff;
        let call_id = format!("{:016x}", random()?);
        let request = options(place, socket.local_addr()?, &call_id, self.cseq);
        let socket = self.socket.insert(socket);
        socket.send(request.as_bytes()).await?;
        let mut room = vec![0; ANSWER_MAX];
        loop {
            let len = socket.recv(&mut room).await?;
            match final_code(&room[..len], call_id.as_bytes(), self.cseq) {
                Some(code) => return Ok(code),
                None => continue,
            }
        }
    }
}

/// The PROXY header of a connection that is for nobody but us: `LOCAL`, in version 1 `UNKNOWN`.
fn header_of_our_own(version: ProxyHeader) -> io::Result<Vec<u8>> {
    match version {
        ProxyHeader::V1 => Ok(v1::Addresses::Unknown.to_string().into_bytes()),
        ProxyHeader::V2 => {
            let nobody = v2::AddressFamily::Unspecified | v2::Protocol::Unspecified;
            v2::Builder::new(v2::Version::Two | v2::Command::Local, nobody).build()
        }
    }
}

fn random() -> io::Result<u64> {
    getrandom::u64().map_err(|error| io::Error::other(error.to_string()))
}

/// An OPTIONS request as RFC 3261 11.1 describes it; From and To without port, which Table 1 of 19.1.1 does not allow there.
fn options(place: Place, local: SocketAddr, call_id: &str, cseq: u32) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let Place { address: to, transport, .. } = place;
    let param = match transport.is_stream() {
        true => format!(";transport={transport}"),
        false => String::new(),
    };
    let name = transport.name();
    let [our_host, its_host] = [local, to].map(|address| uri_host(address.ip()));
    format!(
        "OPTIONS sip:{to}{param} SIP/2.0\r\n\
         Via: SIP/2.0/{name} {local};branch=z9hG4bK{call_id};rport\r\n\
         Max-Forwards: 70\r\n\
         From: <sip:viahop@{our_host}>;tag={call_id}\r\n\
         To: <sip:{its_host}>\r\n\
         Call-ID: {call_id}\r\n\
         CSeq: {cseq} OPTIONS\r\n\
         Accept: application/sdp\r\n\
         User-Agent: viahop/{version}\r\n\
         Content-Length: 0\r\n\r\n"
    )
}

/// The code of `answer`, if it is a final response to the OPTIONS of this Call-ID and CSeq number.
fn final_code(answer: &[u8], call_id: &[u8], cseq: u32) -> Option<u16> {
    let mut scan = Scan::default();
    Scanner::best().scan(answer, &mut scan);
    let Ok(StartLine::Response(code)) = start_line::parse(answer, scan.start_line) else { return None };
    let of_this_call = grammar::trim(scan.value(HeaderKind::CallId)?.of(answer)) == call_id;
    let number = grammar::trim(scan.value(HeaderKind::CSeq)?.of(answer));
    let number = grammar::number(&number[..grammar::DIGIT.prefix(number)]);
    (of_this_call && number == Some(cseq.into()) && code >= 200).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What of `request` an answer repeats (RFC 3261 8.2.6.2), under `line`.
    fn answer(request: &str, line: &str) -> String {
        let is_repeated =
            |row: &&str| ["Via:", "From:", "To:", "Call-ID:", "CSeq:"].iter().any(|name| row.starts_with(name));
        let rows: Vec<&str> = request.split("\r\n").filter(is_repeated).collect();
        format!("SIP/2.0 {line}\r\n{}\r\n\r\n", rows.join("\r\n"))
    }

    /// What waits so long for an answer.
    fn health(timeout: Duration) -> Health {
        Health { interval: timeout, timeout, fall: 3, rise: 2, ok: vec![(200, 299)] }
    }

    const SOON: Duration = Duration::from_millis(200);
    const PATIENCE: Duration = Duration::from_secs(10);

    async fn outcome(lines: &[&str], timeout: Duration) -> Outcome {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let place = Place { address, local: [127, 0, 0, 1].into(), transport: Transport::Udp, proxy_header: None };
        let lines: Vec<String> = lines.iter().map(|&line| line.to_owned()).collect();
        tokio::spawn(async move {
            let mut room = vec![0; ANSWER_MAX];
            let (len, from) = server.recv_from(&mut room).await.unwrap();
            let request = String::from_utf8(room[..len].to_vec()).unwrap();
            for line in lines {
                server.send_to(answer(&request, &line).as_bytes(), from).await.unwrap();
            }
            tokio::time::sleep(PATIENCE).await;
        });
        Asker::default().ask(place, &health(timeout)).await
    }

    #[tokio::test]
    async fn the_final_response_decides() {
        assert_eq!(outcome(&["200 OK"], PATIENCE).await, Outcome::Alive(200));
        assert_eq!(outcome(&["100 Trying", "503 Busy"], PATIENCE).await, Outcome::Unwell(503));
        assert_eq!(outcome(&["100 Trying"], SOON).await, Outcome::Timeout);
        assert_eq!(outcome(&[], SOON).await, Outcome::Timeout);
    }

    #[tokio::test]
    async fn a_closed_port_refuses() {
        let address = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let place = Place { address, local: [127, 0, 0, 1].into(), transport: Transport::Udp, proxy_header: None };
        assert_eq!(Asker::default().ask(place, &health(PATIENCE)).await, Outcome::Refused);
    }

    #[tokio::test]
    async fn what_this_machine_forbids_is_no_refusal() {
        // To send there takes a permission that the socket has not.
        let address = "255.255.255.255:5060".parse().unwrap();
        let place = Place { address, local: [0, 0, 0, 0].into(), transport: Transport::Udp, proxy_header: None };
        assert_eq!(Asker::default().ask(place, &health(SOON)).await, Outcome::Timeout);
    }

    #[test]
    fn from_and_to_have_no_port() {
        let [address, local] = ["[2001:db8::1]:5061", "[2001:db8::9]:4000"].map(|address| address.parse().unwrap());
        let place = Place { address, local: local.ip(), transport: Transport::Tls, proxy_header: None };
        let request = options(place, local, "abc", 7);
        assert!(request.starts_with("OPTIONS sip:[2001:db8::1]:5061;transport=tls SIP/2.0\r\n"), "{request}");
        assert!(
            request.contains("From: <sip:viahop@[2001:db8::9]>;tag=abc\r\nTo: <sip:[2001:db8::1]>\r\n"),
            "{request}"
        );
    }

    #[test]
    fn answers_to_something_else_do_not_count() {
        let [address, local] = ["10.0.0.1:5060", "10.0.0.9:4000"].map(|address| address.parse().unwrap());
        let place = Place { address, local: [10, 0, 0, 9].into(), transport: Transport::Udp, proxy_header: None };
        let request = options(place, local, "abc", 7);
        assert_eq!(final_code(answer(&request, "200 OK").as_bytes(), b"abc", 7), Some(200));
        assert_eq!(final_code(answer(&request, "200 OK").as_bytes(), b"abd", 7), None);
        assert_eq!(final_code(answer(&request, "200 OK").as_bytes(), b"abc", 8), None);
        assert_eq!(final_code(request.as_bytes(), b"abc", 7), None);
        assert_eq!(final_code(b"", b"abc", 7), None);
    }
}
