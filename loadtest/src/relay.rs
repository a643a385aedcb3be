//! The null relay: a UDP relay that looks at nothing. It is what any element in the path costs at the very least, and
//! every comparison runs it beside the others.
//!
//! ```text
//! client ──► relay ──► backend      whatever does not come from the backend goes to the backend
//! client ◄── relay ◄── backend      whatever comes from the backend goes to who last sent something else
//! ```
//!
//! It has one socket and therefore serves one client at a time, which is what the load driver is. It is no SIP element:
//! it leaves no trace in the message, so an answer only finds its way back if the callee answers to where the request
//! came from (RFC 3581).

use crate::sys::address::Address;
use crate::sys::batch::{Receiver, drain_errors};
use crate::sys::socket::Socket;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Datagrams of one `recvmmsg`.
pub const BATCH: usize = 32;

/// How long a receive may block before the relay looks whether it is to stop. Long enough to cost nothing.
const LOOK_UP_EVERY: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1000 });

/// How the relay talks to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// `recvmmsg` and `sendmmsg`: what a relay can be at best without leaving the socket interface.
    #[default]
    Batched,
    /// `recvfrom` and `sendto`, as servers have been written since there are sockets.
    Scalar,
}

/// What a relay did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Datagrams that came in.
    pub received: u64,
    /// Datagrams that left.
    pub sent: u64,
    /// System calls made for them.
    pub system_calls: u64,
}

/// A relay, bound and not yet running.
#[derive(Debug)]
pub struct Relay {
    socket: Socket,
    backend: Address,
    /// Who gets what the backend sends. [`Address::NONE`] until somebody has sent something.
    client: Address,
    counts: Counts,
}

impl Relay {
    /// Binds to `listen`.
    pub fn bind(listen: SocketAddr, backend: SocketAddr) -> io::Result<Relay> {
        let socket = Socket::bind(listen)?;
        socket.set_blocking(true)?;
        socket.set_receive_timeout(LOOK_UP_EVERY)?;
        Ok(Relay { socket, backend: Address::from(backend), client: Address::NONE, counts: Counts::default() })
    }

    /// Where it listens.
    pub fn local(&self) -> SocketAddr {
        self.socket.local()
    }

    /// Relays until `stop` says so; asked at least once a second.
    pub fn run(&mut self, mode: Mode, stop: impl FnMut() -> bool) -> io::Result<Counts> {
        match mode {
            Mode::Batched => self.run_batched(stop)?,
            Mode::Scalar => self.run_scalar(stop)?,
        }
        Ok(self.counts)
    }

    fn run_batched(&mut self, mut stop: impl FnMut() -> bool) -> io::Result<()> {
        let mut receiver = Receiver::new(BATCH);
        while !stop() {
            self.counts.system_calls += 1;
            match receiver.receive(&self.socket) {
                Ok(0) => continue,
                Ok(count) => self.counts.received += count as u64,
                Err(error) => self.forgive(error)?,
            }
            let (backend, mut client) = (self.backend, self.client);
            let sent = receiver.send_on(&self.socket, |from| next_hop(from, backend, &mut client));
            self.client = client;
            self.counts.system_calls += 1;
            self.counts.sent += sent as u64;
        }
        Ok(())
    }

    fn run_scalar(&mut self, mut stop: impl FnMut() -> bool) -> io::Result<()> {
        let mut room = vec![0; crate::sys::batch::DATAGRAM_MAX];
        while !stop() {
            self.counts.system_calls += 1;
            let (len, from) = match self.socket.receive_from(&mut room) {
                Ok(Some(datagram)) => datagram,
                Ok(None) => continue,
                Err(error) => {
                    self.forgive(error)?;
                    continue;
                }
            };
            self.counts.received += 1;
            let Some(to) = next_hop(from, self.backend, &mut self.client) else { continue };
            self.counts.system_calls += 1;
            match self.socket.send_to(&room[..len], &to) {
                Ok(()) => self.counts.sent += 1,
                Err(error) => self.forgive(error)?,
            }
        }
        Ok(())
    }

    /// A peer that is not there is no reason to stop relaying.
    fn forgive(&self, error: io::Error) -> io::Result<()> {
        let of_the_network = drain_errors(&self.socket, &mut |_| ());
        let refused = matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable);
        if of_the_network || refused { Ok(()) } else { Err(error) }
    }
}

#[inline]
fn next_hop(from: Address, backend: Address, client: &mut Address) -> Option<Address> {
    if from == backend {
        return (!client.is_none()).then_some(*client);
    }
    *client = from;
    Some(backend)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets a relay pass `datagrams`, then stop.
    fn run(relay: &mut Relay, mode: Mode, datagrams: u64) -> Counts {
        let mut passes = 0;
        relay
            .run(mode, || {
                passes += 1;
                passes > datagrams
            })
            .unwrap()
    }

    fn socket() -> Socket {
        let socket = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        socket.set_blocking(true).unwrap();
        socket
    }

    #[test]
    fn requests_go_to_the_backend_and_answers_to_the_client() {
        for mode in [Mode::Batched, Mode::Scalar] {
            let (client, backend) = (socket(), socket());
            let mut relay = Relay::bind("127.0.0.1:0".parse().unwrap(), backend.local()).unwrap();
            let at = Address::from(relay.local());
            let mut room = [0; 64];

            client.send_to(b"request", &at).unwrap();
            run(&mut relay, mode, 1);
            let (len, from) = backend.receive_from(&mut room).unwrap().unwrap();
            assert_eq!((&room[..len], from), (&b"request"[..], at));

            backend.send_to(b"answer", &at).unwrap();
            let counts = run(&mut relay, mode, 1);
            let (len, from) = client.receive_from(&mut room).unwrap().unwrap();
            assert_eq!((&room[..len], from), (&b"answer"[..], at));
            assert_eq!(counts, Counts { received: 2, sent: 2, system_calls: 4 });
        }
    }

    #[test]
    fn an_answer_to_nobody_goes_nowhere() {
        let backend = socket();
        let mut relay = Relay::bind("127.0.0.1:0".parse().unwrap(), backend.local()).unwrap();
        backend.send_to(b"hello?", &Address::from(relay.local())).unwrap();
        assert_eq!(run(&mut relay, Mode::Batched, 1).sent, 0);
    }

    #[test]
    fn a_backend_that_is_gone_does_not_end_the_relay() {
        for mode in [Mode::Batched, Mode::Scalar] {
            let (client, backend) = (socket(), socket());
            let mut relay = Relay::bind("127.0.0.1:0".parse().unwrap(), backend.local()).unwrap();
            drop(backend);
            for _ in 0..3 {
                client.send_to(b"request", &Address::from(relay.local())).unwrap();
            }
            run(&mut relay, mode, 6);
        }
    }
}
