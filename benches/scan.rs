//! The scanner's arms on a 900-octet INVITE with SDP: on one again and again, and on as many in turn as fit neither the
//! second-level cache nor a branch predictor.
//!
//! `cargo bench --no-default-features --bench scan`

mod support;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use viahop::dataplane::scan::{Scan, Scanner, scalar};
use viahop::dataplane::sip::header::HeaderKind;

/// INVITEs in turn, each with its header rows in an order of its own: 3.6 MB.
const CALLS: u32 = 4096;

fn one(criterion: &mut Criterion) {
    let invite = support::invite(1);
    let mut expected = Scan::default();
    scalar::scan(&invite, &mut expected);
    let mut group = criterion.benchmark_group("scan/invite-900");
    group.throughput(Throughput::Bytes(invite.len() as u64));
    for scanner in Scanner::all() {
        let mut scan = Scan::default();
        scanner.scan(&invite, &mut scan);
        assert!(scan.same_as(&expected), "{} is wrong", scanner.name());
        group.bench_function(scanner.name(), |bencher| {
            bencher.iter(|| {
                scanner.scan(black_box(&invite), &mut scan);
                black_box(scan.value(HeaderKind::CallId))
            });
        });
    }
    // Reference: one memchr per line and nothing else, as parsers do it that go line by line.
    group.bench_function("memchr-per-line", |bencher| bencher.iter(|| lines(black_box(&invite))));
    group.finish();
}

fn mixed(criterion: &mut Criterion) {
    let invites: Vec<Vec<u8>> = (0..CALLS).map(support::shuffled_invite).collect();
    let mut group = criterion.benchmark_group("scan/mixed-900");
    group.throughput(Throughput::Bytes(invites[0].len() as u64));
    for scanner in Scanner::all() {
        let mut scan = Scan::default();
        let mut turn = invites.iter().cycle();
        group.bench_function(scanner.name(), |bencher| {
            bencher.iter(|| {
                scanner.scan(turn.next().expect("a cycle"), &mut scan);
                black_box(scan.value(HeaderKind::CallId))
            });
        });
    }
    let mut turn = invites.iter().cycle();
    group.bench_function("memchr-per-line", |bencher| bencher.iter(|| lines(turn.next().expect("a cycle"))));
    group.finish();
}

/// How many line ends come before the empty line.
fn lines(message: &[u8]) -> usize {
    let mut at = 0;
    let mut count = 0;
    while let Some(lf) = memchr::memchr(b'\n', &message[at..]) {
        if lf <= 1 {
            return count;
        }
        at += lf + 1;
        count += 1;
    }
    count
}

criterion_group!(benches, one, mixed);
criterion_main!(benches);
