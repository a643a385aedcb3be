//! Whole fleets in virtual time: callers, two balancers, servers and a network that loses, doubles and reorders, while
//! servers die, come and go, balancers restart and callers are moved from one to the other.
//!
//! Every schedule is a function of its seed, which a failure prints: `VIAHOP_SEED=N cargo test --test simulation` runs
//! that one alone. What is checked at every step stands in `World::judge`; at the end every caller must have come to one.

mod support;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex};
use support::{address, backend, pool, settings};
use viahop::dataplane::dispatch::{Dispatcher, EgressPorts};
use viahop::dataplane::limits::{DATAGRAM_MAX, HEAD_MAX};
use viahop::dataplane::room::Room;
use viahop::dataplane::route::Arrival;
use viahop::dataplane::scan::Scanner;
use viahop::dataplane::tables::*;
use viahop::dataplane::verdict::{Sender, Verdict};

/// What all balancers of the fleet are called, and where clients send to.
const FLEET: &str = support::LB;
const SERVERS: [&str; 5] = ["10.0.0.11:5060", "10.0.0.12:5060", "10.0.0.13:5060", "10.0.0.14:5060", "10.0.0.15:5060"];
const NODES: [&str; 2] = ["192.0.2.101", "192.0.2.102"];
const EGRESS: u16 = 40_001;
/// RFC 3261 17: 500 ms, and 64 times that.
const T1: u64 = 500;

/// How schedules differ.
#[derive(Clone, Copy)]
struct Weather {
    /// Per mille of datagrams lost, and doubled.
    loss: u32,
    double: u32,
    /// Whether servers die, the set changes, balancers restart and callers are moved.
    unrest: bool,
}

/// What is configured and known of a server.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Standing {
    Absent,
    Down,
    Drain,
    Maint,
    Up,
}

impl Standing {
    fn serves(self) -> Serves {
        match self {
            Standing::Up | Standing::Drain => Serves::Calls,
            Standing::Maint => Serves::Nothing,
            Standing::Absent | Standing::Down => Serves::Named,
        }
    }
}

type Standings = [Standing; SERVERS.len()];

/// Tables for one node, with slot tables worked out once for all schedules.
fn tables(generation: u64, node: usize, standings: Standings) -> Tables {
    static KNOWN: LazyLock<Mutex<HashMap<Standings, Arc<Tables>>>> = LazyLock::new(Mutex::default);
    let parts = || {
        let mut pool = pool(&[]);
        let present = SERVERS.iter().zip(standings).filter(|(_, standing)| *standing != Standing::Absent);
        pool.backends = present
            .map(|(name, standing)| BackendParts {
                is_up: standing == Standing::Up,
                serves: standing.serves(),
                via_host: NODES[node].into(),
                ..backend(name)
            })
            .collect();
        vec![pool]
    };
    let mut known = KNOWN.lock().unwrap();
    let same = known.entry(standings).or_insert_with(|| Arc::new(Tables::new(0, settings(), parts(), None)));
    Tables::new(generation, settings(), parts(), Some(same))
}

struct Node {
    dispatcher: Dispatcher,
    tables: Tables,
    /// Counts up when it loses its memory.
    life: u32,
    /// Servers that refused since the tables came.
    suspects: Vec<SocketAddr>,
}

impl Node {
    fn new(number: usize, generation: u64, standings: Standings, life: u32) -> Node {
        let egress = EgressPorts { v4: Some(EGRESS), v6: None };
        let dispatcher = Dispatcher::new(Scanner::best(), egress);
        Node { dispatcher, tables: tables(generation, number, standings), life, suspects: Vec::new() }
    }
}

/// A caller with its one call.
struct Caller {
    at: SocketAddr,
    node: usize,
    call: String,
    /// Where it is in its call.
    stage: Stage,
    dialog: Option<Dialog>,
    /// The request that waits for its final response, its retransmissions so far, and whether a provisional one came.
    waiting: Option<(String, u32)>,
    provisional: bool,
    cancels: bool,
    /// How often its CANCEL was repeated.
    cancelled: u64,
    cseq: u32,
    refreshes: u32,
}

/// A dialog as its 200 gave it.
#[derive(Clone)]
struct Dialog {
    tag: String,
    routes: Vec<String>,
    target: String,
}

impl Dialog {
    fn of(ok: &str) -> Dialog {
        let mut routes = rows(ok, "Record-Route");
        routes.reverse();
        let target = row(ok, "Contact").trim_matches(['<', '>']).to_owned();
        Dialog { tag: tag(row(ok, "To")).unwrap().to_owned(), routes, target }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Calling,
    Cancelling,
    Talking,
    Closing,
    /// Over, with the status of the last response; 408 for none.
    Over(u16),
}

#[derive(Default)]
struct Server {
    is_dead: bool,
    /// Dialogs by Call-ID and their answered state; gone when the server dies.
    calls: HashMap<String, Ringing>,
}

struct Ringing {
    invite: String,
    is_final: bool,
    is_cancelled: bool,
    is_acknowledged: bool,
}

enum Event {
    /// A datagram arrives: from, to, octets, and through which node if it is to the fleet.
    Datagram(SocketAddr, SocketAddr, Vec<u8>),
    /// Timer A or E of a caller, for this CSeq.
    Retransmit(usize, u32, u64),
    /// What a caller does next.
    Act(usize),
    /// A server answers a call, or repeats its 200: with this pause behind.
    Answer(usize, String, u64),
    Unrest,
    /// The control plane notices that a server died or came back.
    Notice(usize),
}

struct World {
    now: u64,
    sequence: u64,
    queue: BinaryHeap<(Reverse<(u64, u64)>, usize)>,
    events: HashMap<usize, Event>,
    random: fastrand::Rng,
    weather: Weather,
    nodes: Vec<Node>,
    standings: Standings,
    generation: u64,
    callers: Vec<Caller>,
    servers: Vec<Server>,
    /// Of each INVITE transaction: the last server it was sent to, by which node in which of its lives, when.
    sent: HashMap<String, (SocketAddr, usize, u32, u64)>,
    /// The server that each dialog was made with, by Call-ID and tag of the callee.
    homes: HashMap<(String, String), SocketAddr>,
    forwarded: u64,
}

fn row<'a>(message: &'a str, name: &str) -> &'a str {
    found(message, name).next().unwrap_or_else(|| panic!("no {name} in {message}"))
}

fn rows(message: &str, name: &str) -> Vec<String> {
    found(message, name).map(str::to_owned).collect()
}

/// The values of rows called `name`, or by its compact form: answers of a balancer to short requests use those.
fn found<'a>(message: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let compact = match name {
        "Call-ID" => "i",
        "From" => "f",
        "To" => "t",
        "Via" => "v",
        _ => "",
    };
    let names = [name.to_owned(), compact.to_owned()];
    let rows = message.split("\r\n").filter_map(|line| line.split_once(':'));
    rows.filter(move |(key, _)| names.iter().any(|name| name == key)).map(|(_, value)| value.trim())
}

fn tag(value: &str) -> Option<&str> {
    value.split(";tag=").nth(1)
}

impl World {
    fn new(seed: u64, weather: Weather) -> World {
        let standings = [Standing::Up, Standing::Up, Standing::Up, Standing::Absent, Standing::Absent];
        let mut world = World {
            now: 0,
            sequence: 0,
            queue: BinaryHeap::new(),
            events: HashMap::new(),
            random: fastrand::Rng::with_seed(seed),
            weather,
            nodes: (0..NODES.len()).map(|number| Node::new(number, 1, standings, 0)).collect(),
            standings,
            generation: 1,
            callers: Vec::new(),
            servers: SERVERS.map(|_| Server::default()).into(),
            sent: HashMap::new(),
            homes: HashMap::new(),
            forwarded: 0,
        };
        for number in 0..24 {
            world.callers.push(Caller {
                at: address(&format!("198.51.100.{}:5060", number + 1)),
                node: world.random.usize(..NODES.len()),
                call: format!("call-{number}-{seed}"),
                stage: Stage::Calling,
                dialog: None,
                waiting: None,
                provisional: false,
                cancels: world.random.u8(..) < 60,
                cancelled: 0,
                cseq: 0,
                refreshes: world.random.u32(..4),
            });
            let start = world.random.u64(..20_000);
            world.later(start, Event::Act(number));
        }
        if weather.unrest {
            world.later(300, Event::Unrest);
        }
        world
    }

    fn later(&mut self, pause: u64, event: Event) {
        let id = self.sequence as usize;
        self.sequence += 1;
        self.queue.push((Reverse((self.now + pause, self.sequence)), id));
        self.events.insert(id, event);
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, octets: Vec<u8>) {
        for _ in 0..1 + u32::from(self.random.u32(..1000) < self.weather.double) {
            if self.random.u32(..1000) >= self.weather.loss {
                let delay = 1 + self.random.u64(..20);
                self.later(delay, Event::Datagram(from, to, octets.clone()));
            }
        }
    }

    /// Runs until nothing is left to happen.
    fn run(&mut self) {
        while let Some((Reverse((at, _)), id)) = self.queue.pop() {
            self.now = at;
            assert!(self.now < 3_600_000, "a world that does not come to an end");
            match self.events.remove(&id).unwrap() {
                Event::Datagram(from, to, octets) => self.deliver(from, to, octets),
                Event::Act(caller) => self.act(caller),
                Event::Retransmit(caller, cseq, pause) => self.retransmit(caller, cseq, pause),
                Event::Answer(server, call, pause) => self.answer(server, &call, pause),
                Event::Unrest => self.unrest(),
                Event::Notice(server) => self.notice(server),
            }
        }
    }

    fn deliver(&mut self, from: SocketAddr, to: SocketAddr, octets: Vec<u8>) {
        if to == address(FLEET) {
            let caller = self.callers.iter().find(|caller| caller.at == from);
            let node = caller.map_or_else(|| self.now as usize % NODES.len(), |caller| caller.node);
            return self.balance(node, from, Some(0), octets);
        }
        if let Some(node) = NODES.iter().position(|ip| address(&format!("{ip}:{EGRESS}")) == to) {
            return self.balance(node, from, None, octets);
        }
        let text = String::from_utf8(octets).unwrap();
        if let Some(server) = SERVERS.iter().position(|name| address(name) == to) {
            if self.servers[server].is_dead {
                // Its kernel says so, most of the time.
                let node = NODES.iter().position(|ip| from.ip().to_string() == *ip).unwrap();
                if self.random.bool() {
                    let Node { dispatcher, tables, suspects, .. } = &mut self.nodes[node];
                    dispatcher.router().suspect(tables, to);
                    suspects.push(to);
                }
                return;
            }
            return self.serve(server, from, &text);
        }
        let caller = self.callers.iter().position(|caller| caller.at == to).expect("somebody is there");
        self.hear(caller, &text);
    }

    /// A balancer handles a datagram.
    fn balance(&mut self, number: usize, from: SocketAddr, listener: Option<u8>, octets: Vec<u8>) {
        let mut input = octets.clone();
        let mut head = vec![0; HEAD_MAX];
        let mut room = Room::new(&mut input, &mut head);
        let node = &mut self.nodes[number];
        let arrival = Arrival { from, listener, local: None, stream: None };
        node.dispatcher.on_datagram(&node.tables, self.now, arrival, &mut room);
        let verdict = room.verdict;
        let (to, sender) = match verdict {
            Verdict::Drop(_) => return,
            Verdict::Forward { to, from, .. } => (to, from),
            Verdict::Reply { to, .. } => (to, Sender::Listener { index: 0, local: None }),
        };
        let sent = room.output().concat();
        assert!(sent.len() <= DATAGRAM_MAX);
        let is_forward = matches!(verdict, Verdict::Forward { .. });
        if is_forward {
            self.forwarded += 1;
            self.judge(number, from, to, &String::from_utf8(octets).unwrap());
        }
        let source = match sender {
            Sender::Egress => address(&format!("{}:{EGRESS}", NODES[number])),
            Sender::Listener { .. } => address(FLEET),
            Sender::Connect { .. } | Sender::Stream { .. } => panic!("there are only datagrams"),
        };
        self.send(source, to, sent);
    }

    /// What must hold of everything a balancer passes on.
    fn judge(&mut self, number: usize, from: SocketAddr, to: SocketAddr, message: &str) {
        let node = &self.nodes[number];
        let call = row(message, "Call-ID").to_owned();
        if message.starts_with("SIP/2.0") {
            // A response comes to whom the call belongs, and to nobody else.
            let caller = self.callers.iter().find(|caller| caller.call == call).unwrap();
            let is_to_server = SERVERS.iter().any(|name| address(name) == to);
            assert!(to == caller.at || is_to_server, "{to} gets {message}");
            return;
        }
        let is_from_caller = self.callers.iter().any(|caller| caller.at == from);
        if !is_from_caller {
            let caller = self.callers.iter().find(|caller| caller.call == call).unwrap();
            assert_eq!(to, caller.at, "a request of a server goes down the caller's flow: {message}");
            return;
        }
        let serves = |server: SocketAddr| {
            let index = node.tables.by_address.get(&server);
            let serves = index.map(|&index| node.tables.backends[index as usize].serves);
            serves == Some(Serves::Calls) && !node.suspects.contains(&server)
        };
        let is_up = |server: SocketAddr| {
            let index = node.tables.by_address.get(&server);
            index.is_some_and(|&index| node.tables.backends[index as usize].is_up)
        };
        let method = message.split(' ').next().unwrap();
        let callee = tag(row(message, "To")).map(str::to_owned);
        if let (Some(callee), true) = (&callee, message.contains("\r\nRoute: ")) {
            let home = self.homes[&(call, callee.clone())];
            assert!(to == home || !serves(home), "{method} of a dialog with {home} goes to {to}");
            assert!(
                to != home || serves(home) || is_up(home),
                "{method} of a dialog goes to {home}, which serves nobody"
            );
            return;
        }
        let cseq = row(message, "CSeq").split(' ').next().unwrap();
        let transaction = format!("{call} {cseq}");
        if method == "INVITE" && callee.is_none() {
            let before = self.sent.insert(transaction, (to, number, node.life, self.now));
            if let Some((server, by, life, _)) = before
                && (by, life) == (number, node.life)
                && serves(server)
            {
                assert_eq!(to, server, "a retransmission rings a second phone");
            } else {
                assert!(is_up(to), "a call begins at {to}, which takes none");
            }
        } else if matches!(method, "CANCEL" | "ACK")
            && let Some(&(server, by, life, _)) = self.sent.get(&transaction)
            && (by, life) == (number, node.life)
            && serves(server)
        {
            assert_eq!(to, server, "{method} does not follow its INVITE");
        }
    }

    // Callers.

    fn act(&mut self, number: usize) {
        let caller = &mut self.callers[number];
        match caller.stage {
            Stage::Calling if caller.waiting.is_none() => {
                caller.cseq = 1;
                let invite = request(caller, None, "INVITE", 1);
                self.ask(number, invite);
                let pause = 300 + self.random.u64(..4_000);
                self.later(pause, Event::Act(number));
            }
            Stage::Calling if caller.cancels && caller.provisional => {
                caller.stage = Stage::Cancelling;
                let cancel = request(caller, None, "CANCEL", 1);
                let at = caller.at;
                self.send(at, address(FLEET), cancel.into_bytes());
                let pause = T1;
                self.later(pause, Event::Act(number));
            }
            // CANCEL is a transaction of its own and is repeated like one, until Timer F.
            Stage::Cancelling if caller.waiting.is_some() && caller.cancelled < 64 / 4 => {
                caller.cancelled += 1;
                let cancel = request(caller, None, "CANCEL", 1);
                let at = caller.at;
                self.send(at, address(FLEET), cancel.into_bytes());
                self.later(4 * T1, Event::Act(number));
            }
            Stage::Talking if caller.waiting.is_none() => {
                caller.cseq += 1;
                let method = if caller.refreshes > 0 { "INFO" } else { "BYE" };
                caller.refreshes = caller.refreshes.saturating_sub(1);
                if method == "BYE" {
                    caller.stage = Stage::Closing;
                }
                let text = request(caller, caller.dialog.as_ref(), method, caller.cseq);
                self.ask(number, text);
            }
            _ => {}
        }
    }

    /// Sends a request that is repeated until its final response comes.
    fn ask(&mut self, number: usize, text: String) {
        let caller = &mut self.callers[number];
        caller.waiting = Some((text.clone(), 0));
        caller.provisional = false;
        let (at, cseq) = (caller.at, caller.cseq);
        self.send(at, address(FLEET), text.into_bytes());
        self.later(T1, Event::Retransmit(number, cseq, T1));
    }

    fn retransmit(&mut self, number: usize, cseq: u32, pause: u64) {
        let caller = &mut self.callers[number];
        let Some((text, count)) = &mut caller.waiting else { return };
        if caller.cseq != cseq {
            return;
        }
        *count += 1;
        let is_invite = text.starts_with("INVITE");
        // Timer B or F; an INVITE that was heard of waits for Timer C instead.
        if *count > if is_invite && caller.provisional { 60 } else { 10 } {
            caller.waiting = None;
            caller.stage = Stage::Over(408);
            return;
        }
        let (text, at) = (text.clone(), caller.at);
        if !(is_invite && caller.provisional) {
            self.send(at, address(FLEET), text.into_bytes());
        }
        let pause = if is_invite { (pause * 2).min(8 * T1) } else { (pause * 2).min(4_000) };
        self.later(pause, Event::Retransmit(number, cseq, pause));
    }

    /// A caller gets a message.
    fn hear(&mut self, number: usize, text: &str) {
        let caller = &mut self.callers[number];
        assert_eq!(row(text, "Call-ID"), caller.call);
        if !text.starts_with("SIP/2.0") {
            // The server closes the call.
            let answer = response(text, 200, "OK", "");
            let at = caller.at;
            if caller.stage != Stage::Closing {
                caller.stage = Stage::Over(200);
                caller.waiting = None;
            }
            self.send(at, address(FLEET), answer.into_bytes());
            return;
        }
        assert_eq!(rows(text, "Via").len(), 1, "only the caller's own Via is left: {text}");
        let status: u16 = text[8..11].parse().unwrap();
        let cseq = row(text, "CSeq");
        let (answered, method) = cseq.split_once(' ').unwrap();
        if method == "CANCEL" || answered != caller.cseq.to_string() {
            if method == "INVITE" && status == 200 {
                self.acknowledge(number, text);
            }
            return;
        }
        if status < 200 {
            caller.provisional = true;
            return;
        }
        if method == "INVITE" && status >= 300 {
            let to = row(text, "To").to_owned();
            let ack = request(caller, None, "ACK", 1).replace("To: <sip:b@example.net>", &format!("To: {to}"));
            let at = caller.at;
            caller.waiting = None;
            caller.stage = Stage::Over(status);
            self.send(at, address(FLEET), ack.into_bytes());
            return;
        }
        if method == "INVITE" {
            if caller.waiting.take().is_some() {
                caller.dialog = Some(Dialog::of(text));
                caller.stage = Stage::Talking;
                let pause = 200 + self.random.u64(..30_000);
                self.later(pause, Event::Act(number));
            }
            return self.acknowledge(number, text);
        }
        if caller.waiting.take().is_none() {
            return;
        }
        if caller.stage == Stage::Closing || status == 481 {
            caller.stage = Stage::Over(status);
            return;
        }
        let pause = 200 + self.random.u64(..30_000);
        self.later(pause, Event::Act(number));
    }

    /// The ACK of a 200: to the dialog that it made, whichever of two servers that was.
    fn acknowledge(&mut self, number: usize, ok: &str) {
        let caller = &self.callers[number];
        let ack = request(caller, Some(&Dialog::of(ok)), "ACK", 1);
        let at = caller.at;
        self.send(at, address(FLEET), ack.into_bytes());
    }

    // Servers.

    fn serve(&mut self, number: usize, from: SocketAddr, text: &str) {
        let call = row(text, "Call-ID").to_owned();
        let at = address(SERVERS[number]);
        if text.starts_with("SIP/2.0") {
            return;
        }
        let method = text.split(' ').next().unwrap();
        let callee = tag(row(text, "To"));
        let known = self.servers[number].calls.get_mut(&call);
        let status = match (method, known, callee) {
            ("INVITE", Some(_), None) => (180, "Ringing"),
            ("INVITE", None, None) => {
                let ringing =
                    Ringing { invite: text.to_owned(), is_final: false, is_cancelled: false, is_acknowledged: false };
                self.servers[number].calls.insert(call.clone(), ringing);
                let pause = 100 + self.random.u64(..5_000);
                self.later(pause, Event::Answer(number, call.clone(), 0));
                (180, "Ringing")
            }
            ("ACK", Some(ringing), _) => {
                ringing.is_acknowledged = true;
                return;
            }
            ("ACK", None, _) => return,
            ("CANCEL", Some(ringing), _) => {
                // Repeated with the CANCEL, for want of Timer G.
                if !ringing.is_final || ringing.is_cancelled {
                    (ringing.is_final, ringing.is_cancelled, ringing.is_acknowledged) = (true, true, true);
                    let refused = response(&ringing.invite, 487, "Request Terminated", &format!(";tag={number}"));
                    self.send(at, from, refused.into_bytes());
                }
                (200, "OK")
            }
            ("BYE", Some(_), Some(_)) => (200, "OK"),
            ("INFO", Some(_), Some(_)) => (200, "OK"),
            _ => (481, "Call/Transaction Does Not Exist"),
        };
        let tag = if callee.is_some() { String::new() } else { format!(";tag={number}") };
        self.send(at, from, response(text, status.0, status.1, &tag).into_bytes());
    }

    /// The phone is picked up; the 200 is repeated until its ACK comes.
    fn answer(&mut self, number: usize, call: &str, pause: u64) {
        let server = &mut self.servers[number];
        let Some(ringing) = server.calls.get_mut(call).filter(|_| !server.is_dead) else { return };
        if ringing.is_acknowledged || (ringing.is_final && pause == 0) || pause > 64 * T1 {
            return;
        }
        ringing.is_final = true;
        let ok = response(&ringing.invite, 200, "OK", &format!(";tag={number}"));
        let at = address(SERVERS[number]);
        // Some end calls themselves, and some are proxies with a phone behind them.
        let contact = if number.is_multiple_of(2) { format!("sip:uas@{at}") } else { "sip:b@203.0.113.9".to_owned() };
        let ok = ok.replace("Content-Length", &format!("Contact: <{contact}>\r\nContent-Length"));
        self.homes.insert((call.to_owned(), number.to_string()), at);
        // Back to where the request came from: the port in our Via.
        let via = rows(&ok, "Via").remove(0);
        let to = via.split([' ', ';']).nth(1).unwrap().parse().unwrap();
        self.send(at, to, ok.into_bytes());
        let next = if pause == 0 { T1 } else { pause * 2 };
        self.later(next, Event::Answer(number, call.to_owned(), next));
    }

    // The world.

    fn unrest(&mut self) {
        if self.callers.iter().all(|caller| matches!(caller.stage, Stage::Over(_))) {
            return;
        }
        let server = self.random.usize(..SERVERS.len());
        match self.random.u8(..9) {
            0 | 1 => {
                // Somebody is always left.
                let living = (0..SERVERS.len())
                    .filter(|&one| !self.servers[one].is_dead && self.standings[one] == Standing::Up && one != server);
                if living.count() > 0 {
                    self.servers[server].is_dead = !self.servers[server].is_dead;
                    if self.servers[server].is_dead {
                        self.servers[server].calls.clear();
                    }
                    let pause = 200 + self.random.u64(..1_500);
                    self.later(pause, Event::Notice(server));
                }
            }
            2 | 3 => {
                let others = (0..SERVERS.len()).filter(|&one| one != server && self.standings[one] == Standing::Up);
                if self.standings[server] == Standing::Absent {
                    self.standings[server] = if self.servers[server].is_dead { Standing::Down } else { Standing::Up };
                } else if others.count() > 0 {
                    self.standings[server] = Standing::Absent;
                }
                self.publish();
            }
            4 => {
                let others = (0..SERVERS.len()).filter(|&one| one != server && self.standings[one] == Standing::Up);
                self.standings[server] = match self.standings[server] {
                    Standing::Up if others.count() > 0 => {
                        if self.random.bool() {
                            Standing::Drain
                        } else {
                            Standing::Maint
                        }
                    }
                    Standing::Drain | Standing::Maint if self.servers[server].is_dead => Standing::Down,
                    Standing::Drain | Standing::Maint => Standing::Up,
                    other => other,
                };
                self.publish();
            }
            5 => {
                let node = self.random.usize(..NODES.len());
                let life = self.nodes[node].life + 1;
                self.nodes[node] = Node::new(node, self.generation, self.standings, life);
            }
            6 => {
                let caller = self.random.usize(..self.callers.len());
                self.callers[caller].node = self.random.usize(..NODES.len());
            }
            _ => self.publish(),
        }
        let pause = 200 + self.random.u64(..2_500);
        self.later(pause, Event::Unrest);
    }

    fn notice(&mut self, server: usize) {
        if matches!(self.standings[server], Standing::Drain | Standing::Down | Standing::Up) {
            self.standings[server] = if self.servers[server].is_dead { Standing::Down } else { Standing::Up };
            self.publish();
        }
    }

    fn publish(&mut self) {
        self.generation += 1;
        for (number, node) in self.nodes.iter_mut().enumerate() {
            node.tables = tables(self.generation, number, self.standings);
            node.suspects.clear();
        }
    }
}

fn request(caller: &Caller, dialog: Option<&Dialog>, method: &str, cseq: u32) -> String {
    let Caller { at, call, .. } = caller;
    let branch = match method {
        // Of their INVITE's transaction, but for the ACK of a 200.
        "CANCEL" | "ACK" if dialog.is_none() => "INVITE",
        _ => method,
    };
    let target = dialog.map_or("sip:b@example.net", |dialog| &dialog.target);
    let to = dialog.map(|dialog| format!(";tag={}", dialog.tag)).unwrap_or_default();
    let routes: String =
        dialog.iter().flat_map(|dialog| &dialog.routes).map(|route| format!("Route: {route}\r\n")).collect();
    format!(
        "{method} {target} SIP/2.0\r\nVia: SIP/2.0/UDP {at};branch=z9hG4bK-{call}-{cseq}-{branch};rport\r\n\
         {routes}Max-Forwards: 70\r\nFrom: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>{to}\r\n\
         Call-ID: {call}\r\nCSeq: {cseq} {method}\r\nContent-Length: 0\r\n\r\n"
    )
}

fn response(request: &str, status: u16, reason: &str, tag: &str) -> String {
    let copied =
        |name: &str| -> String { rows(request, name).iter().map(|value| format!("{name}: {value}\r\n")).collect() };
    format!(
        "SIP/2.0 {status} {reason}\r\n{}{}{}To: {}{tag}\r\n{}{}Content-Length: 0\r\n\r\n",
        copied("Via"),
        copied("Record-Route"),
        copied("From"),
        row(request, "To"),
        copied("Call-ID"),
        copied("CSeq"),
    )
}

/// Runs as many schedules as there is time for, or the one that is asked for.
fn worlds(weather: Weather, check: impl Fn(&World)) {
    let one = std::env::var("VIAHOP_SEED").ok().and_then(|seed| seed.parse().ok());
    let count: u64 = if cfg!(debug_assertions) { 40 } else { 2_000 };
    let seeds = one.map_or(0..count, |seed| seed..seed + 1);
    let mut forwarded = 0;
    for seed in seeds {
        // Shown if one of them fails.
        println!("VIAHOP_SEED={seed}");
        let mut world = World::new(seed, weather);
        world.run();
        for caller in &world.callers {
            assert!(matches!(caller.stage, Stage::Over(_)), "{} ends {:?}", caller.call, caller.stage);
        }
        forwarded += world.forwarded;
        check(&world);
    }
    assert!(forwarded > 100, "{forwarded}");
}

fn ended(world: &World, status: u16) -> usize {
    world.callers.iter().filter(|caller| caller.stage == Stage::Over(status)).count()
}

#[test]
fn in_a_calm_world_every_call_is_answered_or_cancelled_and_closed() {
    worlds(Weather { loss: 0, double: 50, unrest: false }, |world| {
        assert_eq!(ended(world, 200) + ended(world, 487), world.callers.len());
        assert!(ended(world, 200) > 0);
    });
}

#[test]
fn loss_costs_time_and_no_call() {
    worlds(Weather { loss: 50, double: 20, unrest: false }, |world| {
        assert_eq!(ended(world, 200) + ended(world, 487), world.callers.len());
    });
}

#[test]
fn whatever_happens_to_servers_and_balancers_messages_go_where_they_belong() {
    worlds(Weather { loss: 20, double: 20, unrest: true }, |_| {});
}
