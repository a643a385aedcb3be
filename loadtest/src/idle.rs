//! Many connections that do nothing: what an element keeps for each of them.
//!
//! ```text
//! open all ─► OPTIONS on each, 200 ─► memory ─► nothing, for a while ─► OPTIONS on each, 200 ─► memory
//! ```
//!
//! Only what answered is counted: an element may have left a connection in the kernel's hands, where it costs nothing of its
//! own. Connections are opened a few hundred at a time, so that no backlog of a listener overflows.

use crate::clock::{MS_NS, SECOND_NS, now_ns};
use crate::endpoint::Transport;
use crate::rng::seed;
use crate::sip::message::{Message, Rows, Start};
use crate::sip::value::domain;
use crate::streams::{Inlet, STREAM_TOKENS, Streams};
use crate::sys::address::Address;
use crate::sys::process::stop_signals;
use crate::sys::wait::Waiter;
use crate::tls;
use crate::usage;
use std::io;
use std::net::{IpAddr, SocketAddr};

/// Connections that are opened, or asked, at the same time.
const AT_ONCE: usize = 256;

/// How long the slowest of them may take, in nanoseconds.
const PATIENCE_NS: u64 = 5 * SECOND_NS;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The element.
    pub target: SocketAddr,
    /// How it is spoken to: over connections.
    pub transport: Transport,
    /// What connections are opened with, where there is TLS.
    pub tls: Option<tls::Client>,
    /// Our own address.
    pub from: IpAddr,
    /// How many connections.
    pub connections: usize,
    /// How long they do nothing, in nanoseconds.
    pub hold_ns: u64,
    /// The element's process, whose memory is looked at, with all that it has started.
    pub pid: Option<u32>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Connections whose OPTIONS was answered when they were open.
    pub answered: usize,
    /// And again at the end.
    pub answered_again: usize,
    /// How long opening them took, with the answers, in nanoseconds.
    pub opening_ns: u64,
    /// Memory of the element before the first connection, in KiB; 0 where no process was named.
    pub before_kib: u64,
    /// With all of them.
    pub open_kib: u64,
    /// After they had done nothing, and had answered again.
    pub after_kib: u64,
}

/// Opens them, waits, asks, and closes them all; after a signal to stop, nothing more of that but the last.
pub fn run(plan: &Plan) -> io::Result<Outcome> {
    let memory = || plan.pid.map_or(0, |pid| usage::descendants(pid).into_iter().map(usage::resident_kib).sum());
    let before_kib = memory();
    let mut idlers = Idlers::new(plan)?;
    let start = now_ns();
    idlers.open()?;
    let answered = idlers.ask()?;
    let opening_ns = now_ns() - start;
    let open_kib = memory();
    idlers.wait(plan.hold_ns, |_| true)?;
    let answered_again = idlers.ask()?;
    Ok(Outcome { answered, answered_again, opening_ns, before_kib, open_kib, after_kib: memory() })
}

struct Idlers {
    plan: Plan,
    waiter: Waiter,
    streams: Streams,
    inlet: Inlet,
    rows: Rows,
    ready: Vec<u32>,
    /// One for each connection.
    idlers: Vec<Idler>,
    run: u64,
    asked: u32,
    answered: usize,
}

#[derive(Clone, Copy)]
struct Idler {
    to: Address,
    local: SocketAddr,
    waits: bool,
}

impl Idlers {
    fn new(plan: &Plan) -> io::Result<Idlers> {
        let waiter = Waiter::new()?;
        Ok(Idlers {
            plan: plan.clone(),
            streams: Streams::new(&waiter)
                .with_tls(plan.tls.clone(), None)
                .with_websockets(plan.transport.is_websocket()),
            waiter,
            inlet: Inlet::default(),
            rows: Rows::default(),
            ready: Vec::new(),
            idlers: Vec::with_capacity(plan.connections),
            run: seed(),
            asked: 0,
            answered: 0,
        })
    }

    fn open(&mut self) -> io::Result<()> {
        let Plan { target, from, connections, .. } = self.plan;
        while self.idlers.len() < connections && stop_signals() == 0 {
            for _ in 0..AT_ONCE.min(connections - self.idlers.len()) {
                let to = self.streams.open(target, from, self.idlers.len() as u32);
                self.idlers.push(Idler { to, local: SocketAddr::new(from, 0), waits: false });
            }
            let idlers = &mut self.idlers;
            self.streams.reopen(now_ns(), |place, local| idlers[place as usize].local = local);
            self.streams.settle(&self.waiter, PATIENCE_NS)?;
        }
        Ok(())
    }

    /// Sends an OPTIONS on each and says how many were answered with 200.
    fn ask(&mut self) -> io::Result<usize> {
        (self.asked, self.answered) = (self.asked + 1, 0);
        for first in (0..self.idlers.len()).step_by(AT_ONCE) {
            let last = (first + AT_ONCE).min(self.idlers.len());
            for place in first..last {
                let request = self.options(place);
                let idler = &mut self.idlers[place];
                idler.waits = self.streams.push(idler.to, request.as_bytes());
            }
            self.streams.flush();
            self.wait(PATIENCE_NS, |idlers| idlers[first..last].iter().any(|idler| idler.waits))?;
        }
        Ok(self.answered)
    }

    /// Takes what comes, for so long, while the connections are to go on, and until a signal to stop.
    fn wait(&mut self, for_ns: u64, goes_on: impl Fn(&[Idler]) -> bool) -> io::Result<()> {
        let start = now_ns();
        while now_ns() - start < for_ns && goes_on(&self.idlers) && stop_signals() == 0 {
            self.waiter.wait(10 * MS_NS, &mut self.ready)?;
            for token in self.ready.drain(..).filter(|token| token & STREAM_TOKENS != 0) {
                let Some((place, from)) = self.streams.read(token, &mut self.inlet) else { continue };
                while let Some(octets) = self.inlet.next_message() {
                    let start = Message::read(octets, &mut self.rows).map(|message| message.start);
                    let waits = &mut self.idlers[place as usize].waits;
                    if let Ok(Start::Response(code @ 200..)) = start
                        && std::mem::take(waits)
                    {
                        self.answered += usize::from(code == 200);
                    }
                }
                self.streams.keep(from, &mut self.inlet);
            }
            // One that is lost stays so: it does not answer, and that is what is counted.
            while let Some(ended) = self.streams.next_ended() {
                self.idlers[ended.place as usize].waits = false;
            }
        }
        Ok(())
    }

    fn options(&self, place: usize) -> String {
        let (target, local) = (self.plan.target, self.idlers[place].local);
        let (run, asked, transport) = (self.run, self.asked, self.plan.transport);
        let (param, via, domain) = (transport.uri_param(), transport.in_via(), domain(target));
        format!(
            "OPTIONS sip:{target}{param} SIP/2.0\r\nVia: SIP/2.0/{via} {local};branch=z9hG4bK{run:016x}.{place}.{asked};rport\r\n\
             Max-Forwards: 70\r\nFrom: <sip:idler{place}@{domain}>;tag={run:016x}\r\nTo: <sip:{domain}>\r\n\
             Call-ID: {run:016x}.{place}\r\nCSeq: {asked} OPTIONS\r\nContent-Length: 0\r\n\r\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Endpoint;
    use crate::sys::tcp;
    use crate::uas::{self, Uas};
    use std::io::Read;

    #[test]
    fn connections_that_are_open_answer_at_the_beginning_and_at_the_end() {
        let client = tls::Client::new("localhost", None).unwrap();
        for (transport, tls) in [(Transport::Tcp, None), (Transport::Tls, Some(client))] {
            let listen = Endpoint { transport, ..Endpoint::from(([127, 0, 0, 1], 0)) };
            let uas = Uas::start(uas::Config { backends: vec![listen], ..uas::Config::default() }).unwrap();
            let target = uas.addresses()[0];
            let plan = Plan {
                target,
                transport,
                tls,
                from: target.ip(),
                connections: 300,
                hold_ns: 20 * MS_NS,
                pid: Some(std::process::id()),
            };
            let outcome = run(&plan).unwrap();
            assert_eq!((outcome.answered, outcome.answered_again), (300, 300));
            assert!(outcome.open_kib > 0 && outcome.before_kib > 0);
            let took = uas.join().total();
            assert_eq!((took.connections, took.options, took.malformed), (300, 600, 0));
        }
    }

    #[test]
    fn who_closes_instead_of_answering_is_not_waited_for() {
        const CONNECTIONS: usize = 2 * AT_ONCE + 1;
        // With room for all that come at once: who finds none tries again after a second, and after two more.
        let listener = tcp::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        listener.set_nonblocking(false).unwrap();
        let target = listener.local_addr().unwrap();
        let close_all = move || {
            let accepted: Vec<_> = (0..CONNECTIONS).map(|_| listener.accept().unwrap().0).collect();
            for mut socket in accepted {
                let _ = socket.read(&mut [0; 4096]);
            }
        };
        let plan = Plan {
            target,
            transport: Transport::Tcp,
            tls: None,
            from: target.ip(),
            connections: CONNECTIONS,
            hold_ns: 0,
            pid: None,
        };
        let start = now_ns();
        let outcome = std::thread::scope(|scope| {
            scope.spawn(close_all);
            run(&plan).unwrap()
        });
        assert_eq!((outcome.answered, outcome.answered_again), (0, 0));
        assert!(now_ns() - start < PATIENCE_NS, "{} s", (now_ns() - start) / SECOND_NS);
    }
}
