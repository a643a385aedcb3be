//! The readers of tokens: they take any text, and what they accept is what their writers write.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use viahop::dataplane::keys::Keys;
use viahop::dataplane::limits::{REBUILD_BRANCH_MAX, REBUILD_SENT_BY_MAX};
use viahop::dataplane::route::route_token::{Purpose, RouteToken};
use viahop::dataplane::text::Text;
use viahop::dataplane::token::{self, Flow, hex};

fuzz_target!(|input: Input| {
    check_hex(input.text);
    check_branch(input.text);
    check_tag(&input);
    check_via_token_text(&input);
    check_via_token_of_flow(&input);
    check_route_token_text(&input);
    check_route_token_of_flow(&input);
});

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    digest: u64,
    key_id: u8,
    listener: Option<u8>,
    to: Address,
    port: u16,
    local: bool,
    cseq: u32,
    flip: (u16, u8),
    text: &'a [u8],
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Address {
    V4([u8; 4]),
    V6([u8; 16]),
}

fn keys(id: u8) -> Keys {
    Keys::new(&[1; 16], &[2; 16], &[3; 16], id)
}

fn written(write: impl FnOnce(&mut Text<'_>)) -> Vec<u8> {
    let mut room = [0; 2048];
    let mut text = Text::new(&mut room);
    write(&mut text);
    text.finish().expect("room enough").to_vec()
}

/// Hexadecimal, digit by digit.
fn plain_hex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |octet: u8| char::from(octet).to_digit(16).map(|digit| digit as u8);
    let (pairs, []) = text.as_chunks::<2>() else { return None };
    pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect()
}

fn check_hex(text: &[u8]) {
    let text = &text[..text.len().min(128)];
    let mut octets = [0; 64];
    let read = hex::decode(text, &mut octets).map(|len| octets[..len].to_vec());
    assert_eq!(read, plain_hex(text));
    if let Some(octets) = read {
        assert_eq!(written(|out| hex::encode(out, &octets)), text.to_ascii_lowercase());
        assert_eq!(hex::decode(text, &mut vec![0; octets.len().saturating_sub(1)]).is_none(), !octets.is_empty());
    }
    let number = plain_hex(text).and_then(|octets| octets.try_into().ok()).map(u64::from_be_bytes);
    assert_eq!(hex::decode_number(text), number);
}

fn check_branch(text: &[u8]) {
    if let Some(digest) = token::read_branch(text) {
        assert!(written(|out| token::write_branch(out, digest)).eq_ignore_ascii_case(text));
    }
}

/// The text may be the tag, or part of what the tag is made of.
fn check_tag(input: &Input) {
    let keys = keys(input.key_id);
    let (call_id, rest) = input.text.split_at(input.text.len() / 2);
    let (from_tag, branch) = rest.split_at(rest.len() / 2);
    let tag = written(|out| token::write_to_tag(out, &keys, call_id, input.cseq, from_tag, branch));
    let is_own = |tag: &[u8], cseq| token::is_own_to_tag(tag, &keys, call_id, cseq, from_tag, branch);
    assert!(is_own(&tag, input.cseq) && is_own(&tag.to_ascii_uppercase(), input.cseq));
    assert!(!is_own(&tag, input.cseq.wrapping_add(1)));
    assert_eq!(is_own(input.text, input.cseq), tag.eq_ignore_ascii_case(input.text));
    let forged = flipped(&tag, input.flip);
    assert_eq!(is_own(&forged, input.cseq), tag.eq_ignore_ascii_case(&forged));
}

/// A text that reads as a token is signed here, as only its writer could, and must be what the writer writes then.
fn check_via_token_text(input: &Input) {
    if token::read_via_token(input.text).is_none() {
        return;
    }
    let head_end = input.text.iter().position(|&octet| octet == b'~').unwrap_or(input.text.len());
    let (head, riders) = input.text.split_at(head_end);
    let head = &head[..head.len().checked_sub(16).expect("a MAC")];
    let octets = plain_hex(head).expect("hexadecimal");
    let keys = keys(octets[0] & 15);
    let signed = [&octets[..], &input.digest.to_be_bytes()].concat();
    let mac = keys.mac_of(octets[0] & 15, &signed).expect("a key");
    let text = [head, format!("{mac:016X}").as_bytes(), riders].concat();

    let token = token::read_via_token(&text).expect("it differs in its MAC");
    assert_eq!(token.key_id(), octets[0] & 15);
    let flow = token.verify(&keys, input.digest).expect("signed");
    assert!(token.verify(&keys, !input.digest).is_none());
    let rebuild = token.rebuild();
    let sent_by: Vec<u8> =
        rebuild.iter().flat_map(|parts| parts.sent_by).map(|&octet| token::from_token_octet(octet)).collect();
    let parts = rebuild.map(|parts| (&sent_by[..], parts.branch));
    let again = written(|out| token::write_via_token(out, &keys, &flow, input.digest, parts));
    // What rides along is written in token characters; whoever reads it takes the others as well.
    let as_written: Vec<u8> = match riders.iter().skip(1).position(|&octet| octet == b'~') {
        _ if rebuild.is_none() => Vec::new(),
        Some(end) => {
            let (sent_by, branch) = riders.split_at(end + 1);
            let mapped = sent_by.iter().map(|&octet| match octet {
                b'[' => b'\'',
                b']' => b'`',
                b':' => b'!',
                other => other,
            });
            mapped.chain(branch.iter().copied()).collect()
        }
        None => riders.to_vec(),
    };
    let mac = format!("{mac:016x}");
    assert_eq!(again, [&head.to_ascii_lowercase()[..], mac.as_bytes(), &as_written].concat());
}

/// The same for the token of Record-Route and Path.
fn check_route_token_text(input: &Input) {
    let (call_id, text) = input.text.split_at(input.text.len().min(input.key_id as usize >> 4));
    let Some(said) = plain_hex(text).filter(|said| said.len() >= 2) else {
        assert_eq!(RouteToken::read(text, &keys(input.key_id), call_id), None);
        return;
    };
    let address_len = if said[0] & 16 != 0 { 16 } else { 4 };
    let is_flow = said[0] & 128 != 0;
    let local_len = if said[0] & 32 != 0 { address_len } else { 0 };
    if said.len() != 2 + if is_flow { 0 } else { 4 } + address_len + 2 + local_len {
        return;
    }
    let keys = keys(said[0] & 15);
    let bound_to = if is_flow { b"" } else { call_id };
    let mac = keys.mac(said[0] & 15, [b"route", &said, bound_to], 0).expect("a key");
    let signed = [text, format!("{mac:016X}").as_bytes()].concat();
    let token = RouteToken::read(&signed, &keys, call_id).expect("signed");
    assert_eq!(written(|out| token.write(out, &keys, call_id)), signed.to_ascii_lowercase());
    assert_eq!(RouteToken::claims_flow(&signed), is_flow);
    assert_eq!(RouteToken::read(&signed, &keys, b"another").is_some(), is_flow || call_id == b"another");
    let forged = flipped(&signed, input.flip);
    let read = RouteToken::read(&forged, &keys, call_id);
    assert_eq!(read, forged.eq_ignore_ascii_case(&signed).then_some(token), "{}", forged.escape_ascii());
}

fn check_route_token_of_flow(input: &Input) {
    let keys = keys(input.key_id);
    let client = Flow { listener: Some(input.listener.unwrap_or(0)), ..flow(input) };
    let purpose = match input.cseq & 1 {
        0 => Purpose::Flow,
        _ => Purpose::Dialog { backend: input.digest as u32 },
    };
    let token = RouteToken { purpose, client, is_double: input.cseq & 2 != 0 };
    let text = written(|out| token.write(out, &keys, input.text));
    assert_eq!(RouteToken::read(&text, &keys, input.text), Some(token));
    assert_eq!(RouteToken::claims_flow(&text), purpose == Purpose::Flow);
    let forged = flipped(&text, input.flip);
    let read = RouteToken::read(&forged, &keys, input.text);
    assert_eq!(read, forged.eq_ignore_ascii_case(&text).then_some(token), "{}", forged.escape_ascii());
}

/// A token for any flow comes back as it was written, for its transaction and no other, and dies of any touch.
fn check_via_token_of_flow(input: &Input) {
    let flow = flow(input);
    let keys = keys(input.key_id);
    let (sent_by, branch) = input.text.split_at(input.text.len() / 3);
    let write = |parts| written(|out| token::write_via_token(out, &keys, &flow, input.digest, parts));
    let text = write(Some((sent_by, branch)));
    let fits = sent_by.len() <= REBUILD_SENT_BY_MAX && branch.len() <= REBUILD_BRANCH_MAX;
    let token = token::read_via_token(&text).expect("a token of ours");
    assert_eq!(token.verify(&keys, input.digest), Some(flow));
    assert_eq!(token.verify(&keys, input.digest ^ 1), None);
    // A sent-by with a `~` cannot be told from its end. Hosts have none.
    if !sent_by.contains(&b'~') {
        let rebuilt = token.rebuild().map(|parts| (parts.sent_by.len(), parts.branch));
        assert_eq!(rebuilt, fits.then_some((sent_by.len(), branch)));
    }
    let bare = write(None);
    let forged = flipped(&bare, input.flip);
    let accepted = token::read_via_token(&forged).and_then(|token| token.verify(&keys, input.digest));
    assert_eq!(accepted, forged.eq_ignore_ascii_case(&bare).then_some(flow), "{}", forged.escape_ascii());
}

fn flow(input: &Input) -> Flow {
    let to = match input.to {
        Address::V4(octets) => IpAddr::V4(Ipv4Addr::from(octets)),
        Address::V6(octets) => IpAddr::V6(Ipv6Addr::from(octets)),
    };
    let listener = input.listener.filter(|&index| index != u8::MAX);
    Flow { listener, to: SocketAddr::new(to, input.port), local: input.local.then_some(to), stream: None }
}

fn flipped(text: &[u8], (place, flip): (u16, u8)) -> Vec<u8> {
    let mut text = text.to_vec();
    let place = place as usize % text.len();
    text[place] ^= flip;
    text
}
