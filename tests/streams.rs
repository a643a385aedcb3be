//! Messages in streams: where each ends, whoever cut the stream and wherever, and what becomes of it then.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;
use support::corpus::{self, own};
use support::framing::{self, Case, Judged, ODD_LENGTHS};
use support::stream::{Reader, read};
use support::{BACKENDS, CLIENT, Outcome, Path, address, readers};
use viahop::dataplane::frame::Frame;
use viahop::dataplane::limits::DATAGRAM_MAX;
use viahop::dataplane::route::Arrival;
use viahop::dataplane::tables::{Listener, Settings, Tables};
use viahop::dataplane::transport::{StreamId, Transport};
use viahop::dataplane::validate::Refusal;
use viahop::dataplane::verdict::{Answer, DropReason, Verdict};

/// Every message of the corpora as it is, and behind and before others; with a length where it has none.
fn streams() -> Vec<(String, Vec<u8>)> {
    let next = std::fs::read(own().join("b20-tcp-pipelined.bin")).unwrap();
    let mut streams = corpus::messages();
    for (name, message) in streams.clone() {
        streams.push((format!("{name} before others"), [&message[..], &next].concat()));
        if let Some(at) = message.windows(4).position(|four| four == b"\r\n\r\n") {
            let length = format!("\r\nContent-Length: {}\r\n\r\n", message.len() - at - 4);
            let whole = [&message[..at], length.as_bytes(), &message[at + 4..]].concat();
            streams.push((format!("{name} with its length, behind others"), [&next[..], &whole, &next].concat()));
        }
    }
    streams
}

#[test]
fn the_verdict_is_the_same_wherever_a_stream_is_cut() {
    for (name, stream) in streams() {
        let whole = read([&stream[..]]);
        assert_eq!(read(stream.chunks(1)), whole, "{name}, octet by octet");
        // What was read up to a cut is read on from there by a copy: reading all of it again for each would take minutes.
        let mut upto = Reader::default();
        let step = if stream.len() > 6000 { 97 } else { 1 };
        for cut in (0..=stream.len()).step_by(step) {
            let mut reader = upto.clone();
            reader.feed(&stream[cut..]);
            assert_eq!(reader.read, whole, "{name}, cut at {cut}");
            upto.feed(&stream[cut..stream.len().min(cut + step)]);
        }
    }
}

/// What becomes of a stream from a client: its frames, each through the data path.
fn verdicts(stream: &[u8]) -> Vec<String> {
    let mut path = Path::new(tables_of_streams());
    let arrival = Arrival { from: address(CLIENT), listener: Some(0), local: None, stream: StreamId::new(0, 7, 1) };
    let mut said = Vec::new();
    for (frame, octets) in read([stream]).frames {
        let outcome = match frame {
            Frame::LineEnd | Frame::Partial => continue,
            Frame::Ping => {
                said.push("PONG".to_owned());
                continue;
            }
            Frame::Message(_) => path.receive_on(&octets, arrival),
            Frame::Broken(broken) => path.receive_broken(&octets, arrival, broken.refusal),
        };
        match outcome.verdict {
            Verdict::Forward { .. } => {
                said.push("FWD".to_owned());
                judge_forwarded(&outcome);
            }
            Verdict::Reply { answer: Answer::Status(code), .. } => said.push(format!("REPLY {code}")),
            Verdict::Reply { .. } | Verdict::Drop(_) => {}
        }
        if matches!(frame, Frame::Broken(_)) {
            said.push("CLOSE".to_owned());
        }
    }
    said
}

/// What is forwarded to a backend on a stream is one message with one plain length.
fn judge_forwarded(outcome: &Outcome) {
    let lengths = outcome.rows("content-length").len() + outcome.rows("l").len();
    assert_eq!(lengths, 1, "{}", outcome.text());
    for (name, len) in readers::lengths(&outcome.sent) {
        assert_eq!(len, Some(outcome.sent.len()), "{name} reads another end than we do:\n{}", outcome.text());
    }
}

fn tables_of_streams() -> Arc<Tables> {
    static TABLES: LazyLock<Arc<Tables>> = LazyLock::new(|| Arc::new(framing::tables()));
    TABLES.clone()
}

#[test]
fn streams_of_the_corpus_get_the_verdicts_of_its_manifest() {
    let manifest = std::fs::read_to_string(own().join("MANIFEST.tsv")).unwrap();
    let mut checked = 0;
    for row in manifest.lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>()) {
        let (file, transport, expect) = (row[0], row[1], row[3]);
        if transport != "tcp" {
            continue;
        }
        let stream = std::fs::read(own().join(file)).unwrap();
        let said = verdicts(&stream).join(",");
        // An answer before the close is welcome where a close is asked for.
        let fits = |one: &str| one == said || one == "CLOSE" && said.ends_with("CLOSE");
        assert!(expect.split('|').any(fits), "{file}: expected {expect}, got {said}");
        checked += 1;
    }
    assert!(checked >= 18, "{checked}");
}

#[test]
fn whatever_is_forwarded_from_the_corpora_ends_for_every_reader_where_it_ends() {
    let mut forwarded = 0;
    for (name, message) in corpus::messages() {
        if message.len() > DATAGRAM_MAX {
            continue;
        }
        println!("{name}");
        // As a datagram, which says its own end, and as a stream.
        let mut path = Path::new(tables_of_streams());
        let arrival = Arrival { from: address(CLIENT), listener: Some(0), local: None, stream: None };
        let outcome = path.receive_on(&message, arrival);
        if outcome.is_forward() && !message.starts_with(b"SIP/") {
            judge_forwarded(&outcome);
            forwarded += 1;
        }
        verdicts(&message);
    }
    assert!(forwarded > 80, "{forwarded}");
}

/// Every odd way to say a length, in every pair: whatever is let through ends for everybody at the same place.
#[test]
fn odd_lengths_are_refused_or_read_alike_by_all() {
    let (mut through, mut refused) = (0, 0);
    for one in ODD_LENGTHS {
        for other in ODD_LENGTHS {
            let rows: String =
                [one, other].iter().filter(|row| !row.is_empty()).map(|row| format!("{row}\r\n")).collect();
            let stream = format!(
                "OPTIONS sip:bob@example.net SIP/2.0\r\nVia: SIP/2.0/TCP {CLIENT};branch=z9hG4bKodd\r\n\
                 From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: odd\r\nCSeq: 1 OPTIONS\r\n{rows}\r\n\
                 OPTIO"
            );
            match &verdicts(stream.as_bytes())[..] {
                [first, ..] if first == "FWD" => through += 1,
                _ => refused += 1,
            }
            // As a datagram it may be let through more easily; what leaves by a stream is judged all the same.
            let mut path = Path::new(tables_of_streams());
            let arrival = Arrival { from: address(CLIENT), listener: Some(0), local: None, stream: None };
            let outcome = path.receive_on(stream.as_bytes(), arrival);
            if outcome.is_forward() {
                judge_forwarded(&outcome);
            }
        }
    }
    assert!(through > 50 && refused > 1500, "{through} {refused}");
}

/// Streams that [`framing`] makes, each by its number: `VIAHOP_STREAMS` says how many, two at a time.
#[test]
#[allow(clippy::disallowed_methods)]
fn made_streams_end_for_every_reader_where_they_end_however_they_are_cut() {
    let count = std::env::var("VIAHOP_STREAMS").map_or(STREAMS, |count| count.parse().expect("a number of streams"));
    let start = Instant::now();
    let next = AtomicU64::new(0);
    let work = || {
        let mut sum = Judged::default();
        loop {
            let first = next.fetch_add(SHARE, Ordering::Relaxed);
            if first >= count {
                return sum;
            }
            for number in first..count.min(first + SHARE) {
                let judged = judge_made(number);
                sum.messages += judged.messages;
                sum.forwarded += judged.forwarded;
                sum.broken += judged.broken;
            }
            if first.is_multiple_of(SHARE * 1000) {
                println!("{first} of {count} streams, {:.0} s", start.elapsed().as_secs_f64());
            }
        }
    };
    let sums = std::thread::scope(|scope| [scope.spawn(work), scope.spawn(work)].map(|one| one.join().unwrap()));
    let sum = |of: fn(&Judged) -> u64| sums.iter().map(of).sum::<u64>();
    let (messages, forwarded, broken) = (sum(|one| one.messages), sum(|one| one.forwarded), sum(|one| one.broken));
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{count} streams in {seconds:.0} s, {:.0}/s: {messages} messages, {forwarded} forwarded, {broken} broken",
        count as f64 / seconds
    );
    // The maker is worth something only if it makes all of them.
    assert!(messages > count / 4 && forwarded > count / 4 && broken > count / 4);
}

/// How many made streams a test run judges.
const STREAMS: u64 = 10_000;

/// How many a thread takes at a time.
const SHARE: u64 = 1000;

fn judge_made(number: u64) -> Judged {
    /// Says which stream it was that panicked.
    struct Told<'a>(u64, &'a Case);
    impl Drop for Told<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                println!("stream {}, in pieces of {:?}: {}", self.0, self.1.pieces, self.1.stream.escape_ascii());
            }
        }
    }
    let mut random = fastrand::Rng::with_seed(number);
    let mut data = [0; 64];
    random.fill(&mut data);
    data[0] |= 0x80;
    let case = Case::read(&data).expect("a stream that is made is none too long");
    let told = Told(number, &case);
    let judged = case.judge();
    drop(told);
    judged
}

/// A server that cannot parse a message closes the connection that all calls share: what is known to do that is refused, and passed
/// on only where it costs nobody else.
#[test]
fn what_would_close_a_shared_connection_is_refused() {
    let invite = |change: &dyn Fn(String) -> String| {
        change(format!(
            "INVITE sip:b@example.net SIP/2.0\r\nVia: SIP/2.0/UDP {CLIENT};branch=z9hG4bK-1;rport\r\nMax-Forwards: 70\r\n\
             From: \"A\" <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: shared\r\nCSeq: 1 INVITE\r\n\
             Content-Length: 0\r\n\r\n"
        ))
    };
    let second = |via: &str| invite(&|text| text.replacen("Max-", &format!("Via: {via}\r\nMax-"), 1));
    let swap = |from: &str, to: &str| {
        let changed = invite(&|text| text.replacen(from, to, 1));
        assert_ne!(changed, invite(&|text| text));
        changed
    };
    let refused = [
        second("x"),
        second("SIP/2.0/UDP 192.0.2.1, x"),
        second("XYZ/2.0/UDP 192.0.2.1"),
        second("SIP/3.0/UDP 192.0.2.1"),
        second("SIP/2.0/UDP 192.0.2.1:05060"),
        second("SIP/2.0/UDP 192.0.2.1;x=a=b"),
        second("SIP/2.0/UDP 192.0.2.1;maddr="),
        second("SIP/2.0/UDP 192.0.2.1;x=\"a\\\"b\""),
        second("SIP/2.0/UDP (x)=y"),
        second("SIP/2.0/UDP 192.0.2.1;(x)=y"),
        swap("To: <sip:b@example.net>", "To: <sip:b<@example.net>"),
        second("SIP/2.0/DCCP 192.0.2.1"),
        second("SIP/2.0/UDP [2001{::1]"),
        second("SIP/2.0/UDP 192.0.2.1;x=\"a,b\""),
        second("SIP/2.0/UDP 192.0.2.1;ttl"),
        second("SIP/2.0/UDP 192.0.2.1;Received"),
        second("SIP/2.0/UDP 192.0.2.1;i"),
        second("SIP/2.0/UDP 192.0.2.1;alias=[2001:db8::1]:5060"),
        swap("To: <sip:b@example.net>", "To: <sip:b@example.net;x=\"y\">"),
        swap("To: <sip:b@example.net>", "To: <sip: b@example.net>"),
        swap("Max-", "X!: y\r\nMax-"),
        swap("Max-", "It's: y\r\nMax-"),
        swap("z9hG4bK-1", "z9hG4bKa/b="),
        swap("To: <sip:b@example.net>", "To: <sip:b@example.net>;tag=a=b"),
        swap("CSeq: 1 INVITE", "CSeq: 1\r\n INVITE"),
        swap("\"A\" <", "\"A\"\r\n <"),
        swap("Max-", "Retry-After: soon\r\nMax-"),
        swap("Max-", "retry-AFTER :\r\nMax-"),
        swap("Max-", "Retry-After: 99999999999\r\nMax-"),
    ];
    let passed = [
        second("SIP / 2.0\r\n / UDP 192.0.2.1 : 5060;x;y=[2001:db8::1]:5060;alias;id"),
        second("SIP/2.0/TLS [2001:db8::1]:5061;branch=z9hG4bK-2;received=2001:db8::1, SIP/2.0/UDP a.example.net"),
        swap("\"A\" <", "\"A \\\" B\" <"),
        swap("To: <sip:b@example.net>", "To: sip:b@example.net"),
        swap(";rport", ";rport;oc;x=\"a b\""),
        swap("Max-", "Retry-After:\r\n 18000;duration=3600 (busy)\r\nMax-"),
        swap("Max-", "Retry-After-Lunch: soon\r\nMax-"),
        swap("Max-", "X+~_.: It's !\r\n %\r\nMax-"),
        second("SIP/2.0/UNKNOWN 192.0.2.1;maddr=192.0.2.2;ttl=1"),
        swap("To: <sip:b@example.net>", "To: <sip:b@example.net;x=y?h=1>;x=\"a,b\""),
    ];
    let arrival = Arrival { from: address(CLIENT), listener: Some(0), local: None, stream: None };
    let mut by_stream = Path::new(tables_of_streams());
    let mut by_datagram = Path::new(support::tables());
    for text in refused {
        assert_eq!(by_stream.receive_on(text.as_bytes(), arrival).verdict_code(), Some(400), "{text}");
        assert!(by_datagram.receive(text.as_bytes(), CLIENT).is_forward(), "{text}");
    }
    for text in passed {
        assert!(by_stream.receive_on(text.as_bytes(), arrival).is_forward(), "{text}");
    }
    // Towards a client, whose connection is his own, it passes.
    let tcp = Listener { transport: Transport::Tcp, ..support::settings().listeners[0].clone() };
    let settings = Settings { listeners: vec![tcp], ..support::settings() };
    let mut outward = Path::new(Tables::new(1, settings, vec![support::pool(&BACKENDS)], None));
    let folded =
        swap("CSeq: 1 INVITE", "CSeq: 1\r\n INVITE").replace("b@example.net SIP", "b@203.0.113.9;transport=tcp SIP");
    assert!(outward.receive(folded.as_bytes(), BACKENDS[0]).is_forward());
}

#[test]
fn only_a_request_is_answered_where_a_stream_breaks() {
    let mut path = Path::new(support::tables());
    let arrival = Arrival { from: address(CLIENT), listener: Some(0), local: None, stream: StreamId::new(0, 7, 1) };
    let rows =
        "Via: SIP/2.0/TCP a;branch=z9hG4bK-1\r\nCall-ID: 1\r\nSubject: room for an answer that is long enough\r\n\r\n";
    let refusal = Some(Refusal::new(400, "Missing Content-Length"));
    let mut broken =
        |start: &str, refusal| path.receive_broken(format!("{start}\r\n{rows}").as_bytes(), arrival, refusal);
    assert_eq!(broken("INFO sip:b SIP/2.0", refusal).verdict_code(), Some(400));
    assert_eq!(broken("ACK sip:b SIP/2.0", refusal).verdict, Verdict::Drop(DropReason::AckRefused));
    for (start, refusal) in [("SIP/2.0 200 OK", refusal), ("INFO sip:b SIP/2.0", None), ("GET / HTTP/1.1", refusal)] {
        assert_eq!(broken(start, refusal).verdict, Verdict::Drop(DropReason::BadFrame), "{start}");
    }
}

/// Whoever a server calls could close the connection by which it has called all the others: each of these closes one of Kamailio's.
#[test]
fn a_response_that_would_close_a_shared_connection_does_not_go_down_it() {
    let streamed = |from: &str| Arrival {
        from: address(from),
        listener: None,
        local: None,
        stream: Some(StreamId::new(0, 7, 1).unwrap()),
    };
    let datagram = |from: &str| Arrival { from: address(from), listener: None, local: None, stream: None };
    let mut path = Path::new(tables_of_streams());
    let asked = |path: &mut Path, arrival: Arrival, transport: &str| {
        let info = format!(
            "INFO sip:phone@{CLIENT};transport=tcp SIP/2.0\r\nVia: SIP/2.0/{transport} {};branch=z9hG4bK-1\r\nFrom: <sip:b@example.net>;tag=2\r\n\
             To: <sip:a@example.net>;tag=1\r\nCall-ID: shared\r\nCSeq: 1 INFO\r\nContent-Length: 0\r\n\r\n",
            arrival.from
        );
        path.receive_on(info.as_bytes(), arrival).rows("via")
    };
    let by_stream = asked(&mut path, streamed(BACKENDS[0]), "TCP");
    let by_datagram = asked(&mut path, datagram(BACKENDS[0]), "UDP");
    let ok = "SIP/2.0 200 OK\r\nVIAS\r\nFrom: <sip:b@example.net>;tag=2\r\nTo: <sip:a@example.net>;tag=1\r\nCall-ID: shared\r\n\
              CSeq: 1 INFO\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n";
    let mut verdict = |vias: &[String], from: &str, to: &str| {
        assert!(ok.contains(from), "{from}");
        let rows: Vec<String> = vias.iter().map(|via| format!("Via: {via}")).collect();
        let text = ok.replacen(from, to, 1).replace("VIAS", &rows.join("\r\n"));
        path.receive(text.as_bytes(), CLIENT).verdict
    };
    for (from, to) in [
        ("200 OK", "200"),
        ("To: <sip:a@example.net>;tag=1\r\n", ""),
        ("<sip:a@example.net>;tag=1", "<sip:a@example.net"),
        ("<sip:a@example.net>;tag=1", "<sip:a@example.net>;tag=1, <sip:c@example.net>"),
        ("<sip:a@example.net>;tag=1", "<sip:a@example.net>;tag=1;x=\"\\\"\""),
        ("From: <sip:b@example.net>;tag=2\r\n", ""),
        ("Call-ID: shared\r\n", ""),
        ("CSeq: 1 INFO\r\n", ""),
        ("1 INFO", "1"),
        ("1 INFO", "1 IN FO"),
        ("1 INFO", "1\r\n INFO"),
        ("VIAS", "VIAS\r\nVia: x"),
        ("Retry-After: 5", "Retry-After: soon"),
    ] {
        assert_eq!(verdict(&by_stream, from, to), Verdict::Drop(DropReason::MalformedResponse), "{to}");
        // In a datagram it costs the sender alone.
        assert!(matches!(verdict(&by_datagram, from, to), Verdict::Forward { .. }), "{to}");
    }
    assert!(matches!(verdict(&by_stream, "", ""), Verdict::Forward { .. }));
}

/// Sent-by and branch of a client stand in our own Via only if they may stand there.
#[test]
fn a_branch_that_is_no_token_makes_no_via_of_ours_malformed() {
    let mut path = Path::new(support::tables());
    for (sent_by, branch, is_there) in
        [(CLIENT, "z9hG4bK-1", true), (CLIENT, "z9hG4bKa/b=", false), ("phone.example.net : 5060", "z9hG4bK-1", false)]
    {
        let text = format!(
            "INVITE sip:b@example.net SIP/2.0\r\nVia: SIP/2.0/UDP {sent_by};branch={branch}\r\nFrom: <sip:a@example.net>;tag=1\r\n\
             To: <sip:b@example.net>\r\nCall-ID: branch\r\nCSeq: 1 INVITE\r\n\r\n"
        );
        let via = path.receive(text.as_bytes(), CLIENT).rows("via").remove(0);
        assert_eq!(via.contains('~'), is_there, "{via}");
    }
}

/// Counted is what we add as well; and what belongs to an INVITE goes the way that went, or its server would not know it.
#[test]
fn a_request_too_long_for_a_datagram_goes_over_a_stream_and_its_cancel_and_ack_after_it() {
    let mut pool = support::pool(&BACKENDS[..1]);
    pool.backends[0].reach.datagram_max = 1300;
    let mut path = Path::new(Tables::new(1, support::settings(), vec![pool], None));
    let mut way = |method: &str, call: &str, len: usize| {
        let text = format!(
            "{method} sip:b@example.net SIP/2.0\r\nVia: SIP/2.0/UDP {CLIENT};branch=z9hG4bK{call};rport\r\n\
             From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: {call}\r\nCSeq: 1 {method}\r\n\r\n"
        );
        let whole = format!("{text}{}", "x".repeat(len.saturating_sub(text.len())));
        match path.receive(whole.as_bytes(), CLIENT).verdict {
            Verdict::Forward { from, .. } => from.is_stream(),
            other => panic!("{other:?}"),
        }
    };
    assert!(!way("INVITE", "short", 950) && way("INVITE", "long", 951) && way("MESSAGE", "message", 951));
    for method in ["CANCEL", "ACK"] {
        assert!(way(method, "long", 0) && !way(method, "short", 0) && !way(method, "message", 0), "{method}");
    }
    assert!(!way("BYE", "long", 0) && way("INVITE", "long", 951));
}

/// Where our Via says we are: over a stream at a listener of its transport, so that a server can come back when its connection is gone.
#[test]
fn our_via_names_the_transport_and_a_port_that_a_backend_can_open_a_connection_to() {
    let tcp = Listener {
        name: "tcp".into(),
        transport: Transport::Tcp,
        address: address("192.0.2.100:5080"),
        ..support::settings().listeners[0].clone()
    };
    let invite = format!(
        "INVITE sip:b@example.net SIP/2.0\r\nVia: SIP/2.0/UDP {CLIENT};branch=z9hG4bK1\r\nFrom: <sip:a@example.net>;tag=1\r\n\
         To: <sip:b@example.net>\r\nCall-ID: via\r\nCSeq: 1 INVITE\r\n\r\n"
    );
    for (transport, listener, datagram_max, start) in [
        (Transport::Udp, None, u32::MAX, "UDP 192.0.2.100:40001;"),
        (Transport::Tcp, None, u32::MAX, "TCP 192.0.2.100:40001;"),
        (Transport::Tcp, Some(&tcp), u32::MAX, "TCP 192.0.2.100:5080;"),
        (Transport::Tls, Some(&tcp), u32::MAX, "TLS 192.0.2.100:40001;"),
        // One that gets datagrams, but for long requests: the transaction is known by the same sent-by.
        (Transport::Udp, Some(&tcp), 300, "TCP 192.0.2.100:40001;"),
    ] {
        let mut settings = support::settings();
        settings.listeners.extend(listener.cloned());
        let mut pool = support::pool(&BACKENDS);
        pool.backends.iter_mut().for_each(|backend| {
            backend.reach.transport = transport;
            backend.reach.datagram_max = datagram_max;
        });
        let mut path = Path::new(Tables::new(1, settings, vec![pool], None));
        let via = path.receive(invite.as_bytes(), CLIENT).rows("via").remove(0);
        assert!(via.starts_with(&format!("SIP/2.0/{start}")), "{via}");
    }
}
