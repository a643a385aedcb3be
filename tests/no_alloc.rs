//! Nothing is allocated per datagram: not for a request or a response, not for an answer of our own, not for a drop.
//!
//! The allocator of this program counts what the thread under test asks for. Every message of the corpus passes once to
//! warm up what grows once and is kept, then again, counted.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use support::{BACKENDS, CLIENT, EGRESS_PORT, address, corpus, tables};
use viahop::dataplane::dispatch::{Dispatcher, EgressPorts};
use viahop::dataplane::limits::{DATAGRAM_MAX, HEAD_MAX};
use viahop::dataplane::room::Room;
use viahop::dataplane::route::Arrival;
use viahop::dataplane::scan::Scanner;
use viahop::dataplane::tables::{Strategy, Tables};
use viahop::dataplane::verdict::{Answer, Verdict};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: hands everything on to the system's allocator; counting touches no memory that is being allocated.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: `place` came from `alloc` above, so from the system's allocator.
        unsafe { System.dealloc(place, layout) }
    }
}

fn allocations_of(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

/// A data path whose verdicts are not copied anywhere.
struct Path {
    dispatcher: Dispatcher,
    tables: Tables,
    input: Vec<u8>,
    head: Vec<u8>,
}

impl Path {
    fn new(tables: Tables) -> Path {
        let egress = EgressPorts { v4: Some(EGRESS_PORT), v6: Some(EGRESS_PORT) };
        let dispatcher = Dispatcher::new(Scanner::best(), egress);
        Path { dispatcher, tables, input: vec![0; DATAGRAM_MAX], head: vec![0; HEAD_MAX] }
    }

    fn receive(&mut self, message: &[u8], arrival: Arrival) -> (Verdict, [&[u8]; 2]) {
        let len = message.len().min(DATAGRAM_MAX);
        self.input[..len].copy_from_slice(&message[..len]);
        let mut room = Room::new(&mut self.input[..len], &mut self.head);
        self.dispatcher.on_datagram(&self.tables, 0, arrival, &mut room);
        let verdict = room.verdict;
        let (head_len, tail) = (room.head_len, room.tail.clone());
        (verdict, [&self.head[..head_len], &self.input[tail]])
    }
}

fn from_client() -> Arrival {
    Arrival { from: address(CLIENT), listener: Some(0), local: None, stream: None }
}

#[test]
fn no_message_of_the_corpus_makes_us_allocate() {
    let messages = corpus::messages();
    let mut path = Path::new(tables());
    let sources = [
        from_client(),
        Arrival { from: address(BACKENDS[0]), ..from_client() },
        Arrival { listener: None, ..from_client() },
    ];
    let mut verdicts = [0; 3];
    for (name, message) in &messages {
        for arrival in sources {
            path.receive(message, arrival);
            let mut verdict = None;
            let count = allocations_of(|| verdict = Some(path.receive(message, arrival).0));
            assert_eq!(count, 0, "{name}: {verdict:?}");
            let place = match verdict {
                Some(Verdict::Forward { .. }) => 0,
                Some(Verdict::Reply { .. }) => 1,
                _ => 2,
            };
            verdicts[place] += 1;
        }
    }
    assert!(verdicts.iter().all(|&count| count > 50), "forwarded, replied, dropped: {verdicts:?}");
}

#[test]
fn a_response_that_passes_does_not_make_us_allocate() {
    let mut path = Path::new(tables());
    let (_, message) = corpus::messages().into_iter().find(|(name, _)| name == "h02-ims-invite.sip").unwrap();
    let (verdict, sent) = path.receive(&message, from_client());
    let Verdict::Forward { to, .. } = verdict else { panic!("{verdict:?}") };
    let forwarded = String::from_utf8(sent.concat()).unwrap();
    let headers = forwarded.split_once("\r\n").unwrap().1;
    for status in ["SIP/2.0 100 Trying", "SIP/2.0 200 OK"] {
        let response = format!("{status}\r\n{headers}");
        let arrival = Arrival { from: to, listener: None, local: None, stream: None };
        let mut verdict = None;
        let count = allocations_of(|| verdict = Some(path.receive(response.as_bytes(), arrival).0));
        assert!(matches!(verdict, Some(Verdict::Forward { .. })), "{verdict:?}");
        assert_eq!(count, 0, "{status}");
    }
}

#[test]
fn an_answer_that_lists_extensions_does_not_make_us_allocate() {
    let mut path = Path::new(tables());
    let (_, message) = corpus::messages().into_iter().find(|(name, _)| name.starts_with("e10")).unwrap();
    let mut verdict = None;
    let count = allocations_of(|| verdict = Some(path.receive(&message, from_client()).0));
    assert!(matches!(verdict, Some(Verdict::Reply { answer: Answer::Status(420), .. })), "{verdict:?}");
    assert_eq!(count, 0);
}

/// The call memory is as large as it gets from the start, and is overwritten when it is full.
#[test]
fn calls_served_in_turn_do_not_make_us_allocate() {
    let mut pool = support::pool(&BACKENDS);
    pool.strategy = Strategy::RoundRobin;
    let mut path = Path::new(Tables::new(1, support::settings(), vec![pool], None));
    let calls: Vec<Vec<u8>> = (0..1000)
        .map(|call| {
            format!(
                "INVITE sip:bob@example.net SIP/2.0\r\nVia: SIP/2.0/UDP {CLIENT};branch=z9hG4bK-{call}\r\n\
                 From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: {call}\r\nCSeq: 1 INVITE\r\n\r\n"
            )
            .into_bytes()
        })
        .collect();
    let count = allocations_of(|| {
        for call in &calls {
            assert!(matches!(path.receive(call, from_client()).0, Verdict::Forward { .. }));
        }
    });
    assert_eq!(count, 0);
}
