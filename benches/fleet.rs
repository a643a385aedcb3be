//! What a large fleet costs: messages among ten thousand backends, calls that have to be remembered, and tables after a change.
//!
//! `cargo bench --no-default-features --bench fleet`
//!
//! As many different calls as do not fit the caches, the same ones for all that is compared, in turn.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::net::SocketAddr;
use viahop::dataplane::dispatch::Dispatcher;
use viahop::dataplane::limits::HEAD_MAX;
use viahop::dataplane::room::Room;
use viahop::dataplane::route::Arrival;
use viahop::dataplane::route::table::{Contender, SlotTable};
use viahop::dataplane::tables::{Strategy, Tables};
use viahop::dataplane::verdict::Verdict;

/// Calls in turn: 3.6 MB of INVITEs.
const CALLS: u32 = 4096;

fn bench(criterion: &mut Criterion) {
    let invites: Vec<Vec<u8>> = (0..CALLS).map(support::invite).collect();
    let mut group = criterion.benchmark_group("fleet");
    for (name, count, strategy, remembered) in [
        ("invite-4-backends", 4, Strategy::Hash, 0),
        ("invite-10000-backends", 10_000, Strategy::Hash, 0),
        ("invite-pinned-0-calls", 4, Strategy::RoundRobin, 0),
        ("invite-pinned-1000000-calls", 4, Strategy::RoundRobin, 1_000_000),
    ] {
        let mut path = Path::new(support::fleet(&addresses(count), strategy, false));
        (CALLS..CALLS + remembered).for_each(|call| path.dispatch(&mut support::invite(call)));
        let mut batch = invites.clone();
        let mut next = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                path.dispatch(&mut batch[next % CALLS as usize]);
                next += 1;
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("table");
    for count in [1_000, 10_000] {
        let all: Vec<Contender> = (0..count).map(contender).collect();
        let table = SlotTable::build(&all);
        group.sample_size(10);
        group.bench_function(format!("{count}-backends-anew"), |bencher| bencher.iter(|| SlotTable::build(&all)));
        let rest = &all[1..];
        let without = table.changed(&all, rest);
        group.bench_function(format!("{count}-backends-one-leaves"), |bencher| {
            bencher.iter(|| black_box(&table).changed(&all, rest));
        });
        group.bench_function(format!("{count}-backends-one-comes"), |bencher| {
            bencher.iter(|| black_box(&without).changed(rest, &all));
        });
    }
    group.finish();
}

/// A shard, and what its messages have in common.
struct Path {
    dispatcher: Dispatcher,
    tables: Tables,
    arrival: Arrival,
    head: Vec<u8>,
    /// Where the digits of Max-Forwards stand, the only octets that a dispatch changes.
    hops: usize,
}

impl Path {
    fn new(tables: Tables) -> Path {
        let from = support::address(support::CLIENT);
        let name = b"Max-Forwards: ";
        let row = support::invite(0).windows(name.len()).position(|window| window == name).unwrap();
        Path {
            dispatcher: support::dispatcher(),
            tables,
            arrival: Arrival { from, listener: Some(0), local: None, stream: None },
            head: vec![0; HEAD_MAX],
            hops: row + name.len(),
        }
    }

    fn dispatch(&mut self, invite: &mut [u8]) {
        let digits = [invite[self.hops], invite[self.hops + 1]];
        let mut room = Room::new(invite, &mut self.head);
        self.dispatcher.on_datagram(&self.tables, 0, self.arrival, &mut room);
        let verdict = room.verdict;
        assert!(matches!(verdict, Verdict::Forward { .. }));
        invite[self.hops..self.hops + 2].copy_from_slice(&digits);
        black_box(verdict);
    }
}

fn addresses(count: usize) -> Vec<SocketAddr> {
    let address = |index: usize| SocketAddr::from(([10, 0, (index >> 8) as u8, index as u8], 5060));
    (0..count).map(address).collect()
}

/// With a digest that looks like any.
fn contender(index: u16) -> Contender {
    let digest = (u64::from(index) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    Contender { index, digest, weight: 100 }
}

criterion_group!(benches, bench);
criterion_main!(benches);
