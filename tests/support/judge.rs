//! The corpora's manifests as a judge of balancers: the pure data path, or the live program.

use super::corpus::{foreign, own};
use super::{BACKENDS, CLIENT};

/// Cases of the manifest that need what later steps build, and what they wait for.
const LATER: [(&str, &str); 1] = [("f23-path-flow-gone.sip", "flows over connections: over UDP none is gone")];

/// What a balancer did with a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Did {
    /// Nothing was sent.
    Drop,
    /// It was passed on to this address.
    Forward(String),
    /// It was answered with this code.
    Reply(u16),
    /// It was answered as STUN.
    Stun,
}

/// What it did, and the octets it sent.
#[derive(Clone, Debug)]
pub struct Seen {
    pub did: Did,
    pub sent: Vec<u8>,
}

impl Seen {
    /// The values of the header rows called `name`, lower-case, as they stand in what was sent.
    fn rows(&self, name: &str) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.sent).into_owned();
        let head = text.split("\r\n\r\n").next().unwrap_or_default();
        let rows = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        rows.filter(|(key, _)| key.trim().eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
            .collect()
    }
}

/// Whoever is judged: called with a datagram and the address of the cast that it comes from.
pub trait Balancer {
    fn receive(&mut self, message: &[u8], source: &str) -> Seen;
}

struct Case {
    file: String,
    transport: String,
    side: String,
    expect: String,
}

fn manifest() -> Vec<Case> {
    let text = std::fs::read_to_string(own().join("MANIFEST.tsv")).unwrap();
    let rows = text.lines().skip(1).map(|line| line.split('\t').map(str::to_owned).collect::<Vec<_>>());
    rows.map(|row| Case {
        file: row[0].clone(),
        transport: row[1].clone(),
        side: row[2].clone(),
        expect: row[3].clone(),
    })
    .collect()
}

/// A request through the balancer, so that templates can be filled with what our Via really holds.
fn our_via(balancer: &mut impl Balancer, branch: &str, client: &str) -> (String, String) {
    let uri = if BACKENDS.contains(&client) { "sip:bob@198.51.100.7" } else { "sip:bob@example.net" };
    let request = format!(
        "INVITE {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {client};branch={branch};rport\r\nMax-Forwards: 70\r\n\
         From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: template\r\nCSeq: 1 INVITE\r\n\r\n"
    );
    let sent = balancer.receive(request.as_bytes(), client);
    let via = sent.rows("via").remove(0);
    let param = |name: &str| {
        via.split(';')
            .find_map(|param| param.strip_prefix(&format!("{name}=")))
            .unwrap_or_else(|| panic!("{via}"))
            .to_owned()
    };
    (param("branch"), param("vh"))
}

/// `@COOKIE@` and its like, filled from this balancer: the whole of `z9hG4bK-@COOKIE@` becomes our branch and our
/// parameter.
fn fill(balancer: &mut impl Balancer, file: &str, message: Vec<u8>) -> Vec<u8> {
    let Ok(text) = String::from_utf8(message.clone()) else { return message };
    let id = file.split('-').next().unwrap_or_default();
    let mut text = text;
    if text.contains("@COOKIE@") || text.contains("@LOOP@") {
        let client = if file.starts_with("c30") { BACKENDS[0] } else { CLIENT };
        let branch = format!("z9hG4bK-{id}");
        let client_via = if file.starts_with("c2") || file.starts_with("e19") { CLIENT } else { client };
        let (branch, token) = our_via(balancer, &branch, client_via);
        for template in ["z9hG4bK-@COOKIE@", "z9hG4bK-@LOOP@"] {
            text = text.replace(template, &format!("{branch};vh={token}"));
        }
    }
    if text.contains("@LBTAG@") {
        let refused = std::fs::read(own().join("e01-mf0-invite.sip")).unwrap();
        let reply = balancer.receive(&refused, CLIENT);
        let to = reply.rows("to").remove(0);
        text = text.replace("@LBTAG@", to.split("tag=").nth(1).unwrap());
    }
    if text.contains("@RR") {
        let invite = std::fs::read(own().join("f01-invite.sip")).unwrap();
        let recorded = balancer.receive(&invite, CLIENT).rows("record-route").remove(0);
        text = text.replace("@RR@", &recorded);
        // A backend that is gone is `dialogs.rs`'s; here its token is one of another secret.
        let other = recorded.replace(";vh=05", ";vh=06").replace(";vh=00", ";vh=01");
        text = text.replace("@RR_OF_REMOVED_BACKEND@", &other);
    }
    if text.contains("@PATH@") {
        let register = String::from_utf8(std::fs::read(own().join("f15-register.sip")).unwrap()).unwrap();
        let register = register.replace("Content-Length: 0", "Supported: path\r\nContent-Length: 0");
        let path = balancer.receive(register.as_bytes(), CLIENT).rows("path").remove(0);
        text = text.replace("@PATH@", &path);
    }
    text.into_bytes()
}

fn agrees(did: &Did, expect: &str) -> bool {
    expect.split('|').any(|one| match (one.trim(), did) {
        ("DROP", Did::Drop) | ("STUN-OK", Did::Stun) => true,
        ("REPLY 4xx", Did::Reply(code)) => code / 100 == 4,
        ("FWD-CLIENT" | "FWD-CLIENT flow", Did::Forward(to)) => !BACKENDS.contains(&to.as_str()),
        ("FWD-BACKEND", Did::Forward(to)) => BACKENDS.contains(&to.as_str()),
        (text, Did::Reply(code)) => text == format!("REPLY {code}"),
        (text, Did::Forward(to)) if text.starts_with("FWD 10.") => text[4..] == to[..to.rfind(':').unwrap_or(0)],
        (text, Did::Forward(_)) => text.starts_with("FWD") && !text.starts_with("FWD-"),
        _ => false,
    })
}

/// Holds every case of this project's corpus that comes as a datagram, or is read like one, as the message in a frame of a
/// WebSocket is, against a balancer from `fresh`.
pub fn own_corpus<B: Balancer>(mut fresh: impl FnMut() -> B) {
    let mut checked = 0;
    let mut wrong = Vec::new();
    for case in manifest() {
        let is_read_so = match case.transport.as_str() {
            "udp" | "ws" => true,
            "tls" => case.file.starts_with('e'),
            _ => false,
        };
        if !is_read_so {
            continue;
        }
        if let Some((_, reason)) = LATER.iter().find(|(file, _)| *file == case.file) {
            println!("later: {} ({reason})", case.file);
            continue;
        }
        let mut balancer = fresh();
        let message = std::fs::read(own().join(&case.file)).unwrap();
        let message = fill(&mut balancer, &case.file, message);
        let source = if case.side == "backend" { BACKENDS[0] } else { CLIENT };
        let seen = balancer.receive(&message, source);
        checked += 1;
        let first = std::fs::read(own().join("f01-invite.sip")).unwrap();
        let strayed = case.expect == "FWD B1" && seen.did != balancer.receive(&first, CLIENT).did;
        if strayed || !agrees(&seen.did, &case.expect) {
            let sent = String::from_utf8_lossy(&seen.sent);
            wrong.push(format!("{}: expected {}, got {:?}\n{sent}", case.file, case.expect, seen.did));
        }
    }
    assert!(wrong.is_empty(), "{} of {checked}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(checked > 130, "{checked}");
}

/// Holds the torture messages of the RFC called `name` against a balancer from `fresh`, if they are at hand.
pub fn torture<B: Balancer>(name: &str, mut fresh: impl FnMut() -> B) {
    let Some(folder) = foreign(name) else {
        return super::skip(&format!("no messages of {name} (set VIAHOP_CORPUS to a folder that has them)"));
    };
    let expected = std::fs::read_to_string(folder.join("EXPECTED.tsv")).unwrap();
    let mut wrong = Vec::new();
    let mut checked = 0;
    for row in expected.lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>()) {
        let file =
            ["dat", "sip"].iter().map(|end| folder.join(format!("{}.{end}", row[0]))).find(|path| path.is_file());
        let message = std::fs::read(file.unwrap_or_else(|| panic!("no file for {}", row[0]))).unwrap();
        let seen = fresh().receive(&message, CLIENT);
        checked += 1;
        let fits = |text: &str| match seen.did {
            Did::Drop => text.starts_with("DROP") || text.starts_with("drop") || text.starts_with("RESPONSE"),
            Did::Forward(_) => text.to_ascii_uppercase().starts_with("FORWARD"),
            Did::Reply(code) => text.starts_with(&code.to_string()),
            Did::Stun => false,
        };
        if !fits(row[2]) && !fits(row[3]) {
            let sent = String::from_utf8_lossy(&seen.sent);
            wrong.push(format!("{}: expected {} or {}, got {:?}\n{sent}", row[0], row[2], row[3], seen.did));
        }
    }
    assert!(wrong.is_empty(), "{} of {checked}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(checked >= 12, "{name}: {checked} messages");
}
