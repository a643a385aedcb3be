//! Memory: under a steady load nothing is allocated per message, neither by callers nor by callees, as an allocator that now
//! and then takes its time would show in the latencies that are measured; and a call that is open takes little, so that
//! hundreds of thousands are no problem.
//!
//! The allocator of this program counts what all threads ask for but the tests' own.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use support::{any_port, timers};
use viahop_load::clock::{MS_NS, SECOND_NS};
use viahop_load::uac::{self, Uac};
use viahop_load::uas::{self, Uas};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(true) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: hands everything on to the system's allocator; counting touches no memory that is being allocated.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is ending has no mark any more and is not counted.
        if COUNTED.try_with(Cell::get).unwrap_or(false) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: `place` came from `alloc` above, so from the system's allocator.
        unsafe { System.dealloc(place, layout) }
    }
}

/// Both look at all of the process: one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn a_call_that_is_open_takes_less_than_2_kib_of_caller_and_callee_together() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    COUNTED.set(false);
    // A T1 that gives no call up, however late the machine is.
    let timers = timers(4000);
    let uas = Uas::start(uas::Config { backends: vec![any_port()], timers, ..uas::Config::default() }).unwrap();
    let config =
        uac::Config { rate: 4000.0, duration_ns: 60 * SECOND_NS, timers, ..uac::Config::new(uas.addresses()[0]) };
    // The first calls pay for what does not grow: buffers, histograms, the record of owners.
    let few = Uac::start(uac::Config { calls: 500, ..config.clone() }).unwrap().join();
    assert_eq!(few.counts.completed, 500);
    let before = resident_octets();
    // With a seed of their own: calls of the same Call-ID would be late copies to the callees.
    let seed = config.seed + 1;
    let uac = Uac::start(uac::Config { calls: 20_000, hold_ns: 100 * SECOND_NS, seed, ..config }).unwrap();
    while uac.snapshot().open < 20_000 || uas.snapshot().backends[0].open < 20_000 {
        assert!(!uac.is_finished(), "{:?} {:?}", uac.snapshot().counts, uas.snapshot().backends[0]);
        std::thread::sleep(Duration::from_millis(20));
    }
    let per_call = resident_octets().saturating_sub(before) / 20_000;
    uac.cut();
    uac.join();
    assert!(per_call < 2048, "{per_call} octets");
}

/// What this process has in memory.
fn resident_octets() -> u64 {
    // /proc/self/statm: pages in all, pages resident, ...
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn nothing_is_allocated_per_message() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    COUNTED.set(false);
    let uas = Uas::start(uas::Config { backends: vec![any_port(); 2], ..uas::Config::default() }).unwrap();
    let config = uac::Config { rate: 1000.0, hold_ns: 100 * MS_NS, ..uac::Config::new(uas.addresses()[0]) };
    let uac = Uac::start(config).unwrap();
    // Places of calls are taken and get their room, once.
    while uac.snapshot().counts.completed < 1500 {
        std::thread::sleep(Duration::from_millis(10));
    }
    // On a machine that is late more calls are open than ever before, and their places are new: not so every time.
    let mut seen = Vec::new();
    let is_without = |_| {
        let before = (uac.snapshot().counts, ALLOCATIONS.load(Ordering::Relaxed));
        std::thread::sleep(Duration::from_millis(1500));
        let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before.1;
        let after = uac.snapshot().counts;
        let messages = after.requests + after.responses - before.0.requests - before.0.responses;
        seen.push((allocations, messages));
        messages > 3000 && allocations * 20 < messages
    };
    let is_without = (0..10).any(is_without);
    uac.cut();
    uac.join();
    assert!(is_without, "allocations for so many messages and as many on the other side: {seen:?}");
}
