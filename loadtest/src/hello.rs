//! A flood of TLS handshakes that are begun and never ended: what one that has no cryptography to do itself can make an
//! element work.
//!
//! ```text
//! one ClientHello, made once ─► connect ─► the same octets ─► the element's answer ─► reset      so many times a second
//! ```
//!
//! An element that answers has made a key, agreed on a secret and signed; we have sent 240 octets. What comes is not read, so
//! closing resets the connection and leaves no port waiting.

use crate::clock::{MS_NS, SECOND_NS, now_ns};
use crate::sys::process::stop_signals;
use crate::sys::tcp;
use crate::sys::wait::{Registry, Waiter};
use crate::tls;
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

/// Connections that may wait for their answer. More would ask for more descriptors than for work.
pub const WAITING_MAX: usize = 512;

/// How long one waits, in nanoseconds. An element that bounds handshakes leaves some of them waiting.
const PATIENCE_NS: u64 = 2 * SECOND_NS;

/// Connections begun at a time, if so many are due: whoever was held up does not make up for it in one burst.
const BURST: u64 = 16;

/// The first octet of a record that belongs to a handshake (RFC 8446 5.1). Of an alert it is another.
const HANDSHAKE: u8 = 22;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The element.
    pub target: SocketAddr,
    /// Our own address.
    pub from: IpAddr,
    /// What is said on each connection.
    pub hello: Vec<u8>,
    /// Connections a second.
    pub rate: f64,
    /// How long, in nanoseconds.
    pub for_ns: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Connections on which it was said.
    pub said: u64,
    /// Those that were answered with a handshake: the element has worked.
    pub answered: u64,
    /// Those that were closed, or answered with an alert.
    pub refused: u64,
    /// Those that heard nothing for two seconds, or until the end.
    pub unanswered: u64,
    /// Those that could not be opened, or were not within two seconds.
    pub failed: u64,
    /// Those that were due and not begun, since [`WAITING_MAX`] others waited or we were late.
    pub left_out: u64,
    /// How long it took, in nanoseconds.
    pub took_ns: u64,
}

/// The first octets of a handshake with an element of this name.
pub fn hello(name: &str) -> Result<Vec<u8>, String> {
    let client = tls::Client::new(name, None).map_err(|failure| failure.to_string())?;
    let mut connection = client.begin().map_err(|error| error.to_string())?;
    let mut octets = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut octets).map_err(|error| error.to_string())?;
    }
    Ok(octets)
}

/// Begins handshakes until the time is over, or a signal says stop.
pub fn run(plan: &Plan) -> io::Result<Outcome> {
    let waiter = Waiter::new()?;
    let mut flood =
        Flood { plan, registry: waiter.registry(), slots: Vec::new(), free: Vec::new(), came: Outcome::default() };
    let (start, mut ready, mut begun, mut swept) = (now_ns(), Vec::new(), 0, 0);
    loop {
        let elapsed = now_ns() - start;
        if elapsed >= plan.for_ns || stop_signals() > 0 {
            break;
        }
        let due = (elapsed as f64 * plan.rate / SECOND_NS as f64) as u64;
        let late = due.saturating_sub(begun + BURST);
        (begun, flood.came.left_out) = (begun + late, flood.came.left_out + late);
        while begun < due {
            begun += 1;
            flood.begin(elapsed);
        }
        if elapsed - swept > 100 * MS_NS {
            swept = elapsed;
            flood.give_up(|since| elapsed - since > PATIENCE_NS);
        }
        let next_ns = ((begun + 1) as f64 * SECOND_NS as f64 / plan.rate) as u64;
        waiter.wait(next_ns.saturating_sub(now_ns() - start).min(10 * MS_NS), &mut ready)?;
        for slot in ready.drain(..) {
            flood.look(slot as usize);
        }
    }
    flood.give_up(|_| true);
    Ok(Outcome { took_ns: now_ns() - start, ..flood.came })
}

struct Flood<'a> {
    plan: &'a Plan,
    registry: Registry,
    slots: Vec<Option<Waiting>>,
    free: Vec<usize>,
    came: Outcome,
}

struct Waiting {
    socket: TcpStream,
    since_ns: u64,
    has_said: bool,
}

impl Flood<'_> {
    fn begin(&mut self, now: u64) {
        if self.slots.len() - self.free.len() >= WAITING_MAX {
            self.came.left_out += 1;
            return;
        }
        let slot = self.free.pop().unwrap_or(self.slots.len());
        if slot == self.slots.len() {
            self.slots.push(None);
        }
        let opened = tcp::connect(self.plan.target, self.plan.from).and_then(|(socket, _)| {
            let has_said = say(&socket, &self.plan.hello)?;
            self.registry.add(&socket, slot as u32, !has_said)?;
            Ok(Waiting { socket, since_ns: now, has_said })
        });
        match opened {
            Ok(waiting) => {
                self.came.said += u64::from(waiting.has_said);
                self.slots[slot] = Some(waiting);
            }
            Err(_) => {
                self.came.failed += 1;
                self.free.push(slot);
            }
        }
    }

    /// Something has become of the connection in `slot`.
    fn look(&mut self, slot: usize) {
        let Some(waiting) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        if !waiting.has_said {
            match say(&waiting.socket, &self.plan.hello) {
                Ok(false) => return,
                Ok(true) => {
                    (waiting.has_said, self.came.said) = (true, self.came.said + 1);
                    if self.registry.set_writable(&waiting.socket, slot as u32, false).is_ok() {
                        return;
                    }
                }
                Err(_) => {}
            }
            self.came.failed += 1;
            return self.free(slot);
        }
        let mut first = [0];
        match waiting.socket.peek(&mut first) {
            Ok(1..) if first[0] == HANDSHAKE => self.came.answered += 1,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            _ => self.came.refused += 1,
        }
        self.free(slot);
    }

    fn give_up(&mut self, is_due: impl Fn(u64) -> bool) {
        for slot in 0..self.slots.len() {
            let Some(waiting) = self.slots[slot].as_ref().filter(|waiting| is_due(waiting.since_ns)) else { continue };
            match waiting.has_said {
                true => self.came.unanswered += 1,
                false => self.came.failed += 1,
            }
            self.free(slot);
        }
    }

    fn free(&mut self, slot: usize) {
        self.slots[slot] = None;
        self.free.push(slot);
    }
}

/// Says `hello`, all of it, and whether that could be done at once.
fn say(mut socket: &TcpStream, hello: &[u8]) -> io::Result<bool> {
    match socket.write(hello) {
        Ok(count) if count == hello.len() => Ok(true),
        Ok(_) => Err(ErrorKind::WriteZero.into()),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::{Endpoint, Transport};
    use crate::uas::{self, Uas};
    use std::net::TcpListener;

    fn plan(target: SocketAddr, rate: f64, for_ns: u64) -> Plan {
        Plan { target, from: target.ip(), hello: hello("localhost").unwrap(), rate, for_ns }
    }

    #[test]
    fn the_same_hello_is_answered_again_and_again() {
        let listen = Endpoint { transport: Transport::Tls, ..Endpoint::from(([127, 0, 0, 1], 0)) };
        let uas = Uas::start(uas::Config { backends: vec![listen], ..uas::Config::default() }).unwrap();
        let came = run(&plan(uas.addresses()[0], 200.0, 500 * MS_NS)).unwrap();
        assert!(came.answered > 10, "{came:?}");
        assert_eq!((came.refused, came.failed), (0, 0), "{came:?}");
        assert_eq!(came.said, came.answered + came.unanswered);
        uas.join();
    }

    #[test]
    fn who_answers_nothing_is_left_with_a_bounded_number_of_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let came = run(&plan(listener.local_addr().unwrap(), 100_000.0, 100 * MS_NS)).unwrap();
        assert!(came.said + came.failed <= WAITING_MAX as u64 && came.left_out > 0, "{came:?}");
        assert_eq!((came.answered, came.refused), (0, 0), "{came:?}");
        assert_eq!(came.said, came.unanswered, "who was not even connected has not been asked: {came:?}");
    }
}
