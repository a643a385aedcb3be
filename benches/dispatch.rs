//! The whole data path without sockets: scan, route, rewrite.
//!
//! `cargo bench --no-default-features --bench dispatch`

mod support;

use criterion::{Criterion, black_box, criterion_group, criterion_main};
use viahop::dataplane::limits::{DATAGRAM_MAX, HEAD_MAX};
use viahop::dataplane::room::Room;
use viahop::dataplane::route::Arrival;
use viahop::dataplane::verdict::Verdict;

fn bench(criterion: &mut Criterion) {
    let tables = support::tables();
    let mut dispatcher = support::dispatcher();
    let mut input = vec![0; DATAGRAM_MAX];
    let mut head = vec![0; HEAD_MAX];
    let mut group = criterion.benchmark_group("dispatch");

    let from_client = Arrival { from: support::address(support::CLIENT), listener: Some(0), local: None };
    let calls: Vec<Vec<u8>> = (0..512).map(support::invite).collect();
    let mut responses = Vec::new();
    for call in &calls {
        input[..call.len()].copy_from_slice(call);
        let mut room = Room::new(&mut input[..call.len()], &mut head);
        let (_, verdict) = dispatcher.on_datagram(&tables, 0, from_client, &mut room);
        let Verdict::Forward { to, .. } = verdict else { panic!("{verdict:?}") };
        responses.push((to, support::ok_of(&room.output().concat())));
    }

    let mut next = (0..calls.len()).cycle();
    group.bench_function("invite-900", |bencher| {
        bencher.iter(|| {
            let call = &calls[next.next().unwrap_or_default()];
            // Stands for the kernel's copy: the datagram is in the cache, and Max-Forwards is what the client sent.
            input[..call.len()].copy_from_slice(call);
            let mut room = Room::new(&mut input[..call.len()], &mut head);
            black_box(dispatcher.on_datagram(&tables, 0, from_client, &mut room))
        });
    });
    group.bench_function("ok-of-invite", |bencher| {
        bencher.iter(|| {
            let (from, response) = &responses[next.next().unwrap_or_default()];
            input[..response.len()].copy_from_slice(response);
            let mut room = Room::new(&mut input[..response.len()], &mut head);
            let arrival = Arrival { from: *from, listener: None, local: None };
            let verdict = dispatcher.on_datagram(&tables, 0, arrival, &mut room);
            debug_assert!(matches!(verdict.1, Verdict::Forward { .. }));
            black_box(verdict)
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
