//! Asks which backend given Call-IDs lead to: one OPTIONS each, and a look at who answered. That is how one sees what share
//! of calls moves when the set of backends changes.

use crate::clock::{MS_NS, now_ns};
use crate::sip::message::{Message, Name, Rows, Start};
use crate::sip::text::Text;
use crate::sip::value::{domain, number, param, split_first};
use crate::sys::address::Address;
use crate::sys::batch::{BATCH_MAX, Receiver, Sender, drain_errors};
use crate::sys::socket::Socket;
use crate::sys::wait::Waiter;
use std::io;
use std::net::SocketAddr;

/// Questions that wait for their answer at the same time: enough to be done soon, few enough not to be a load.
const WINDOW: usize = 64;

/// The gap before a question is asked again, in nanoseconds; it doubles each time.
const AGAIN_NS: u64 = 50 * MS_NS;

/// How often a question is asked at most.
const ASKED_MAX: u8 = 4;

/// Sends one OPTIONS with each of these Call-IDs to `target` and says which backend answered it with a 200; `None` where none did within a second.
/// Backends name themselves in `X-Backend`, as [`Uas`](crate::uas::Uas) does.
pub fn ask(call_ids: &[String], target: SocketAddr) -> io::Result<Vec<Option<usize>>> {
    let from: SocketAddr = match target {
        SocketAddr::V4(_) => ([127, 0, 0, 1], 0).into(),
        SocketAddr::V6(_) => ([0, 0, 0, 0, 0, 0, 0, 1], 0).into(),
    };
    let socket = Socket::bind(from)?;
    let waiter = Waiter::new()?;
    waiter.add(&socket, 0)?;
    let mut asking = Asking {
        target,
        answers: vec![None; call_ids.len()],
        open: Vec::new(),
        next: 0,
        run: crate::rng::seed(),
        sender: Sender::new(),
        call_ids,
        socket,
    };
    let (mut receiver, mut rows, mut ready) = (Receiver::new(BATCH_MAX), Rows::default(), Vec::new());
    while asking.send(now_ns()) {
        waiter.wait(MS_NS, &mut ready)?;
        if receiver.receive(&asking.socket).is_err() {
            drain_errors(&asking.socket, &mut |_| ());
        }
        for index in 0..receiver.filled() {
            if let Ok(message) = Message::read(receiver.datagram(index).0, &mut rows) {
                asking.take(&message);
            }
        }
    }
    Ok(asking.answers)
}

struct Asking<'a> {
    call_ids: &'a [String],
    target: SocketAddr,
    answers: Vec<Option<usize>>,
    open: Vec<Question>,
    /// The first Call-ID that has not been asked about.
    next: usize,
    run: u64,
    socket: Socket,
    sender: Sender,
}

struct Question {
    index: usize,
    again_ns: u64,
    asked: u8,
}

impl Asking<'_> {
    /// Asks what is due and says whether there is anything left to wait for.
    fn send(&mut self, now: u64) -> bool {
        self.open.retain(|question| question.asked < ASKED_MAX || now < question.again_ns);
        while self.open.len() < WINDOW && self.next < self.call_ids.len() {
            self.open.push(Question { index: self.next, again_ns: now, asked: 0 });
            self.next += 1;
        }
        for at in 0..self.open.len() {
            let question = &mut self.open[at];
            if now >= question.again_ns {
                question.again_ns = now + (AGAIN_NS << question.asked);
                question.asked += 1;
                let index = question.index;
                self.put(index);
            }
        }
        self.sender.flush(&self.socket, &mut |_| ());
        !self.open.is_empty()
    }

    fn put(&mut self, index: usize) {
        if self.sender.is_full() {
            self.sender.flush(&self.socket, &mut |_| ());
        }
        let (local, target, run) = (self.socket.local(), self.target, self.run);
        let domain = domain(target);
        let call_id = &self.call_ids[index];
        let request = format!(
            "OPTIONS sip:callee@{target} SIP/2.0\r\nVia: SIP/2.0/UDP {local};branch=z9hG4bK{run:016x}.{index};rport\r\n\
             Max-Forwards: 70\r\nFrom: <sip:asker@{domain}>;tag={run:016x}\r\nTo: <sip:callee@{domain}>\r\n\
             Call-ID: {call_id}\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
        );
        let mut out = Text::new(self.sender.room());
        out.put(request.as_bytes());
        if let Some(len) = out.finish() {
            self.sender.push(len, Address::from(target));
        }
    }

    fn take(&mut self, message: &Message<'_>) {
        if message.start != Start::Response(200) {
            return;
        }
        let via = split_first(message.value(Name::Via).unwrap_or_default()).0;
        let prefix = format!("z9hG4bK{:016x}.", self.run);
        let index = param(via, b"branch").and_then(|branch| number(branch.strip_prefix(prefix.as_bytes())?));
        let Some(at) = index.and_then(|index| self.open.iter().position(|question| question.index == index as usize))
        else {
            return;
        };
        let index = self.open.swap_remove(at).index;
        self.answers[index] = message.value_of_other("X-Backend").and_then(number).map(|backend| backend as usize);
    }
}
