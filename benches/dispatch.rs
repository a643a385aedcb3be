//! The whole data path without sockets: scan, route, rewrite.
//!
//! `cargo bench --no-default-features --bench dispatch`
//!
//! Measured as a shard meets it: 32 datagrams of different calls lie in their slots, each is dispatched where it lies, and
//! what is written anew goes behind what the one before wrote. The only octets a dispatch changes in a datagram are the
//! digits of Max-Forwards; they are put back.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use viahop::dataplane::limits::{BATCH, HEAD_MAX};
use viahop::dataplane::room::Room;
use viahop::dataplane::route::Arrival;
use viahop::dataplane::verdict::Verdict;

/// A datagram in its slot.
#[derive(Clone)]
struct Slot {
    octets: Vec<u8>,
    arrival: Arrival,
    /// Where the digits of Max-Forwards are, and what they were.
    hops: Option<(usize, [u8; 2])>,
}

impl Slot {
    fn new(octets: Vec<u8>, arrival: Arrival) -> Slot {
        let name = b"Max-Forwards: ";
        let hops = octets.windows(name.len()).position(|window| window == name).map(|at| at + name.len());
        let hops = hops.map(|at| (at, [octets[at], octets[at + 1]]));
        Slot { octets, arrival, hops }
    }
}

fn bench(criterion: &mut Criterion) {
    let (tables, recording) = (support::tables(false), support::tables(true));
    let mut dispatcher = support::dispatcher();
    let mut heads = vec![0; 2 * HEAD_MAX];
    let mut group = criterion.benchmark_group("dispatch");

    let from_client = Arrival { from: support::address(support::CLIENT), listener: Some(0), local: None, stream: None };
    let mut requests: Vec<Slot> = (0..BATCH as u32).map(|call| Slot::new(support::invite(call), from_client)).collect();
    let mut responses: Vec<Slot> = requests
        .iter()
        .map(|slot| {
            let mut octets = slot.octets.clone();
            let mut room = Room::new(&mut octets, &mut heads);
            dispatcher.on_datagram(&tables, 0, from_client, &mut room);
            let verdict = room.verdict;
            let Verdict::Forward { to, .. } = verdict else { panic!("{verdict:?}") };
            Slot::new(
                support::ok_of(&room.output().concat()),
                Arrival { from: to, listener: None, local: None, stream: None },
            )
        })
        .collect();

    let mut recorded = requests.clone();
    for (name, tables, batch) in [
        ("invite-900", &tables, &mut requests),
        ("invite-900-recorded", &recording, &mut recorded),
        ("ok-of-invite", &tables, &mut responses),
    ] {
        let (mut next, mut heads_used) = (0, 0);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let slot = &mut batch[next % BATCH];
                heads_used = if next % BATCH == 0 { 0 } else { heads_used };
                next += 1;
                let mut room = Room::new(&mut slot.octets, &mut heads[heads_used..heads_used + HEAD_MAX]);
                dispatcher.on_datagram(tables, 0, slot.arrival, &mut room);
                assert!(matches!(room.verdict, Verdict::Forward { .. }));
                // Not a copy of it, which would have to wait until all its pieces are written.
                black_box(&room.verdict);
                heads_used += room.head_len.next_multiple_of(64);
                if let Some((at, digits)) = slot.hops {
                    slot.octets[at..at + 2].copy_from_slice(&digits);
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
