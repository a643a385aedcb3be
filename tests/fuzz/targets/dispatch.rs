//! Any datagram, from anybody, at any door: it ends in one verdict that keeps the rules of a proxy, the same verdict by the
//! scalar scanner, and the same when it comes again. What is forwarded finds its way back.
//!
//! An input is a datagram from a client to the first listener; or, if it begins with an octet from 0x80 on, says more:
//!
//! ```text
//! octet 0      0x80, + 1: the second world, + 2 × door, + 0x70: the datagram is stuffed
//! octet 1      who sends, a number in `world::SOURCES`; from 0x80 on, six more octets have address and port
//! octet        of stuffed ones: how much is missing to the largest datagram there is, halved
//! the rest     the datagram
//! ```
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::net::SocketAddr;
use viahop::dataplane::limits::DATAGRAM_MAX;
use viahop_fuzz::world::{self, SOURCES, worlds};
use viahop_fuzz::{rules, support};

fuzz_target!(|data: &[u8]| {
    let Some(Input { number, door, from, octets }) = Input::read(data) else { return };
    world::begin();
    let world = &worlds()[number];
    let arrival = world.arrival(from, door);
    let outcome = world::receive(number, &octets, arrival);
    rules::check(world, &octets, &arrival, &outcome);
    assert_eq!(world::receive_slowly(number, &octets, arrival, 0xa5), outcome, "by the scalar scanner");
    assert_eq!(world::receive(number, &octets, arrival), outcome, "the second time");
    rules::check_way_back(number, &octets, &arrival, &outcome);
});

struct Input {
    number: usize,
    door: u8,
    from: SocketAddr,
    octets: Vec<u8>,
}

impl Input {
    fn read(data: &[u8]) -> Option<Input> {
        let (first, rest) = match data.split_first() {
            Some((&first, rest)) if first >= 0x80 => (first, rest),
            _ => return Some(Input { number: 0, door: 0, from: support::address(SOURCES[0]), octets: data.to_vec() }),
        };
        let (&source, mut rest) = rest.split_first()?;
        let mut from = support::address(SOURCES[source as usize % SOURCES.len()]);
        if source >= 0x80 {
            let (&[a, b, c, d, high, low], behind) = rest.split_first_chunk()?;
            from = SocketAddr::from(([a, b, c, d], u16::from_be_bytes([high, low])));
            rest = behind;
        }
        let mut octets = rest.to_vec();
        if first & 0x70 == 0x70 {
            let (&missing, behind) = rest.split_first()?;
            octets = behind.to_vec();
            octets.resize((DATAGRAM_MAX - 2 * missing as usize).max(octets.len()), b'x');
        }
        Some(Input { number: first as usize & 1, door: first >> 1 & 7, from, octets })
    }
}
