//! Every message of the corpora gets the verdict that its manifest asks for, from the pure data path.
//!
//! `tests/data/own` is this project's; RFC 4475 and RFC 5118 are read from the folder that `VIAHOP_CORPUS` names, or from
//! `../shared/corpus`, and skipped visibly where there is none. `tests/it/torture.rs` does the same over real sockets.

mod support;

use support::corpus::{foreign, own};
use support::{BACKENDS, CLIENT, Outcome, Path, shared_tables};
use viahop::dataplane::verdict::{Answer, Verdict};

/// Cases of the manifest that need what later steps build, and what they wait for.
const LATER: [(&str, &str); 3] = [
    ("f20-notify-ood-from-backend.sip", "Path flow tokens"),
    ("f22-path-tampered.sip", "Path flow tokens"),
    ("f23-path-flow-gone.sip", "Path flow tokens of connections"),
];

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

/// A request through a fresh path, so that templates can be filled with what our Via really holds.
fn our_via(path: &mut Path, branch: &str, client: &str) -> (String, String) {
    let uri = if BACKENDS.contains(&client) { "sip:bob@198.51.100.7" } else { "sip:bob@example.net" };
    let request = format!(
        "INVITE {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {client};branch={branch};rport\r\nMax-Forwards: 70\r\n\
         From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: template\r\nCSeq: 1 INVITE\r\n\r\n"
    );
    let sent = path.receive(request.as_bytes(), client);
    let via = sent.rows("via").remove(0);
    let param = |name: &str| {
        via.split(';')
            .find_map(|param| param.strip_prefix(&format!("{name}=")))
            .unwrap_or_else(|| panic!("{via}"))
            .to_owned()
    };
    (param("branch"), param("vh"))
}

/// `@COOKIE@` and its like, filled from this path: the whole of `z9hG4bK-@COOKIE@` becomes our branch and our parameter.
fn fill(path: &mut Path, file: &str, message: Vec<u8>) -> Vec<u8> {
    let Ok(text) = String::from_utf8(message.clone()) else { return message };
    let id = file.split('-').next().unwrap_or_default();
    let mut text = text;
    if text.contains("@COOKIE@") || text.contains("@LOOP@") {
        let client = if file.starts_with("c30") { BACKENDS[0] } else { CLIENT };
        let branch = format!("z9hG4bK-{id}");
        let client_via = if file.starts_with("c2") || file.starts_with("e19") { CLIENT } else { client };
        let (branch, token) = our_via(path, &branch, client_via);
        for template in ["z9hG4bK-@COOKIE@", "z9hG4bK-@LOOP@"] {
            text = text.replace(template, &format!("{branch};vh={token}"));
        }
    }
    if text.contains("@LBTAG@") {
        let refused = std::fs::read(own().join("e01-mf0-invite.sip")).unwrap();
        let reply = path.receive(&refused, CLIENT);
        let to = reply.rows("to").remove(0);
        text = text.replace("@LBTAG@", to.split("tag=").nth(1).unwrap());
    }
    // Record-Route tokens come later; until then a client copies no Route of ours.
    let lines =
        text.split("\r\n").filter(|line| !(line.starts_with("Route: @RR") || line.starts_with("Record-Route: @RR@")));
    lines.collect::<Vec<_>>().join("\r\n").into_bytes()
}

fn agrees(outcome: &Outcome, expect: &str) -> bool {
    expect.split('|').any(|one| match (one.trim(), outcome.verdict) {
        ("DROP", Verdict::Drop(_)) => true,
        ("STUN-OK", Verdict::Reply { answer: Answer::Stun, .. }) => true,
        ("REPLY 4xx", Verdict::Reply { answer: Answer::Status(code), .. }) => code / 100 == 4,
        ("FWD-CLIENT", Verdict::Forward { to, .. }) => !BACKENDS.contains(&to.to_string().as_str()),
        ("FWD-BACKEND", Verdict::Forward { to, .. }) => BACKENDS.contains(&to.to_string().as_str()),
        (text, Verdict::Reply { answer: Answer::Status(code), .. }) => text == format!("REPLY {code}"),
        (text, Verdict::Forward { to, .. }) if text.starts_with("FWD 10.") => text[4..] == to.ip().to_string(),
        (text, Verdict::Forward { .. }) => text.starts_with("FWD") && !text.starts_with("FWD-"),
        _ => false,
    })
}

#[test]
fn own_corpus_gets_the_verdicts_of_its_manifest() {
    let mut checked = 0;
    let mut wrong = Vec::new();
    for case in manifest() {
        if case.transport != "udp" && !(case.transport == "tls" && case.file.starts_with('e')) {
            continue;
        }
        if let Some((_, reason)) = LATER.iter().find(|(file, _)| *file == case.file) {
            println!("later: {} ({reason})", case.file);
            continue;
        }
        let mut path = Path::new(shared_tables());
        let message = std::fs::read(own().join(&case.file)).unwrap();
        let message = fill(&mut path, &case.file, message);
        let source = if case.side == "backend" { BACKENDS[0] } else { CLIENT };
        let outcome = path.receive(&message, source);
        checked += 1;
        if !agrees(&outcome, &case.expect) {
            wrong.push(format!(
                "{}: expected {}, got {:?}\n{}",
                case.file,
                case.expect,
                outcome.verdict,
                outcome.text()
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {checked}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(checked > 130, "{checked}");
}

fn torture(name: &str) {
    let Some(folder) = foreign(name) else { return };
    let expected = std::fs::read_to_string(folder.join("EXPECTED.tsv")).unwrap();
    let mut wrong = Vec::new();
    let mut checked = 0;
    for row in expected.lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>()) {
        let file =
            ["dat", "sip"].iter().map(|end| folder.join(format!("{}.{end}", row[0]))).find(|path| path.is_file());
        let message = std::fs::read(file.unwrap_or_else(|| panic!("no file for {}", row[0]))).unwrap();
        let mut path = Path::new(shared_tables());
        let outcome = path.receive(&message, CLIENT);
        checked += 1;
        let fits = |text: &str| match outcome.verdict {
            Verdict::Drop(_) => text.starts_with("DROP") || text.starts_with("drop") || text.starts_with("RESPONSE"),
            Verdict::Forward { .. } => text.to_ascii_uppercase().starts_with("FORWARD"),
            Verdict::Reply { answer: Answer::Status(code), .. } => text.starts_with(&code.to_string()),
            Verdict::Reply { .. } => false,
        };
        if !fits(row[2]) && !fits(row[3]) {
            wrong.push(format!(
                "{}: expected {} or {}, got {:?}\n{}",
                row[0],
                row[2],
                row[3],
                outcome.verdict,
                outcome.text()
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {checked}:\n{}", wrong.len(), wrong.join("\n"));
    println!("{name}: {checked} messages");
}

#[test]
fn rfc_4475_torture_messages_get_the_expected_or_the_tolerated_verdict() {
    torture("rfc4475");
}

#[test]
fn rfc_5118_ipv6_messages_get_the_expected_or_the_tolerated_verdict() {
    torture("rfc5118");
}

#[test]
fn own_corpus_call_ids_are_found_as_the_manifest_has_them() {
    use viahop::dataplane::scan::{Scan, Scanner};
    use viahop::dataplane::sip::{grammar, header::HeaderKind};
    let text = std::fs::read_to_string(own().join("MANIFEST.tsv")).unwrap();
    for row in text.lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>()) {
        let is_one_message = row[0].ends_with(".sip") && row[0].starts_with('a') && row[4] != "-";
        if !is_one_message {
            continue;
        }
        let message = std::fs::read(own().join(row[0])).unwrap();
        let mut scan = Scan::default();
        Scanner::best().scan(&message, &mut scan);
        let call_id = scan.value(HeaderKind::CallId).map(|span| grammar::trim(span.of(&message)).to_vec());
        assert_eq!(String::from_utf8_lossy(&call_id.unwrap()), row[4], "{}", row[0]);
    }
}
