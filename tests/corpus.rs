//! Every message of the corpora gets the verdict that its manifest asks for, from the pure data path.
//!
//! `tests/data/own` is this project's; RFC 4475 and RFC 5118 are read from the folder that `VIAHOP_CORPUS` names, and
//! skipped visibly without it. `tests/it/torture.rs` does the same over real sockets.

mod support;

use support::corpus::own;
use support::judge::{self, Balancer, Did, Seen};
use support::{Path, shared_tables};
use viahop::dataplane::verdict::{Answer, Verdict};

impl Balancer for Path {
    fn receive(&mut self, message: &[u8], source: &str) -> Seen {
        let outcome = Path::receive(self, message, source);
        let did = match outcome.verdict {
            Verdict::Drop(_) => Did::Drop,
            Verdict::Forward { to, .. } => Did::Forward(to.to_string()),
            Verdict::Reply { answer: Answer::Status(code), .. } => Did::Reply(code),
            Verdict::Reply { answer: Answer::Pong | Answer::Stun, .. } => Did::Stun,
        };
        Seen { did, sent: outcome.sent }
    }
}

fn fresh() -> Path {
    Path::new(shared_tables())
}

#[test]
fn own_corpus_gets_the_verdicts_of_its_manifest() {
    judge::own_corpus(fresh);
}

#[test]
fn rfc_4475_torture_messages_get_the_expected_or_the_tolerated_verdict() {
    judge::torture("rfc4475", fresh);
}

#[test]
fn rfc_5118_ipv6_messages_get_the_expected_or_the_tolerated_verdict() {
    judge::torture("rfc5118", fresh);
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
