//! TLS without sockets: a server and a client of ours that are handed each other's octets, in whatever pieces.

#[path = "support/authority.rs"]
mod authority;

use authority::{Authority, Issued, self_signed};
use viahop::dataplane::counters::Handshake;
use viahop::tls::session::{CARRIED, Failure, Session};
use viahop::tls::{Certificate, Clienthood, Clients, Credentials, Fault, Server, Trust};

fn certificate(issued: &Issued) -> Certificate {
    Certificate::read(issued.certificate.as_bytes(), issued.key.as_bytes()).unwrap()
}

fn trust(authority: &Authority) -> Trust {
    Trust::read(authority.pem().as_bytes()).unwrap()
}

fn server(issued: &Issued) -> Server {
    Server::new(vec![certificate(issued)], None).unwrap()
}

/// What one session has to say is given to the other in pieces of `step` octets; returns what comes out of them.
fn carry(from: &mut Session, to: &mut Session, step: usize) -> Result<Vec<u8>, Failure> {
    let mut sealed = Vec::new();
    from.write_to(&mut sealed).unwrap();
    let mut opened = Vec::new();
    for piece in sealed.chunks(step) {
        let mut room = vec![0; CARRIED + piece.len()];
        room[CARRIED..].copy_from_slice(piece);
        let count = to.open(&mut room, CARRIED, piece.len())?;
        opened.extend_from_slice(&room[..count]);
    }
    Ok(opened)
}

/// Both sides of a handshake, or why one of them gave up.
fn shake(server: &Server, clienthood: &Clienthood, name: &str, step: usize) -> Result<(Session, Session), Failure> {
    let mut client = Session::connect(&clienthood.towards(name).unwrap()).unwrap();
    let mut server = Session::accept(server).unwrap();
    while client.is_handshaking() || server.is_handshaking() || client.wants_write() || server.wants_write() {
        carry(&mut client, &mut server, step)?;
        carry(&mut server, &mut client, step)?;
    }
    Ok((server, client))
}

fn refusal(server: &Server, clienthood: &Clienthood, name: &str) -> Failure {
    shake(server, clienthood, name, usize::MAX).expect_err("a handshake that fails")
}

#[test]
fn what_is_sealed_in_any_pieces_is_opened_whole() {
    let authority = Authority::new("ca");
    let server = server(&authority.issue(&["example.net"]));
    let clienthood = Clienthood::new(trust(&authority), None).unwrap();
    let text: Vec<u8> = (0..200_000u32).map(|number| (number * 7) as u8).collect();
    for step in [1, 2, 3, 7, 1500, 16_389, 44_000, usize::MAX] {
        let (mut server, mut client) = shake(&server, &clienthood, "example.net", step).unwrap();
        for (from, to) in [(0, 1), (1, 0)] {
            let mut sides = [&mut server, &mut client];
            let (mut left, mut opened) = (&text[..], Vec::new());
            while !left.is_empty() {
                let sealed = sides[from].seal(left);
                assert!(sealed > 0);
                left = &left[sealed..];
                let [one, other] = &mut sides;
                let came = if from == 0 { carry(one, other, step) } else { carry(other, one, step) };
                opened.extend(came.unwrap());
            }
            assert!(opened == text, "{step}, from {from} to {to}");
        }
        server.close();
        assert_eq!(carry(&mut server, &mut client, step).unwrap(), b"");
        assert!(client.has_closed() && !server.has_closed());
    }
}

#[test]
fn a_server_is_who_its_certificate_says_and_nobody_else() {
    let authority = Authority::new("ca");
    let clienthood = Clienthood::new(trust(&authority), None).unwrap();
    // The names in a certificate, who the server has to be, and whether it is.
    let rows: [(&[&str], &str, bool); 10] = [
        (&["example.net"], "example.net", true),
        (&["EXAMPLE.net"], "example.NET", true),
        (&["sip:example.net"], "example.net", true),
        (&["sip:example.net", "other.example"], "example.net", true),
        //= RFC 5922 section 7.1
        //# if and only if no other
        //# identity is found that matches the "sip" URI type
        (&["sip:other.example", "example.net"], "example.net", false),
        (&["sips:example.net", "https://example.net", "sip:bob@example.net"], "example.net", false),
        //= RFC 5922 section 7.2
        //# Implementations MUST NOT match any form of wildcard
        (&["*.example.net"], "a.example.net", false),
        //= RFC 5922 section 7.2
        //# Implementations MUST NOT match suffixes.
        (&["a.example.net"], "example.net", false),
        (&["example.net"], "a.example.net", false),
        (&[], "example.net", false),
    ];
    for (names, wanted, is_it) in rows {
        let server = server(&authority.issue(names));
        match shake(&server, &clienthood, wanted, usize::MAX) {
            Ok(_) => assert!(is_it, "{names:?} for {wanted}"),
            Err(failure) => {
                assert!(!is_it, "{names:?} for {wanted}: {failure:?}");
                assert_eq!(failure.handshake, Handshake::BadCertificate);
                assert!(failure.text.contains("not valid for name"), "{}", failure.text);
            }
        }
    }
}

#[test]
fn certificates_that_are_expired_or_nobodys_or_a_strangers_are_refused_and_it_is_said_which() {
    let authority = Authority::new("ca");
    let clienthood = Clienthood::new(trust(&authority), None).unwrap();
    for (issued, said) in [
        (authority.issue_until(&["example.net"], 2021), "expired"),
        (self_signed(&["example.net"]), "UnknownIssuer"),
        (Authority::new("stranger").issue(&["example.net"]), "UnknownIssuer"),
    ] {
        let failure = refusal(&server(&issued), &clienthood, "example.net");
        assert_eq!(failure.handshake, Handshake::BadCertificate);
        assert!(failure.text.contains(said), "{}", failure.text);
    }
}

#[test]
fn clients_show_a_certificate_where_they_have_to_and_may_where_they_may() {
    let (authority, stranger) = (Authority::new("ca"), Authority::new("stranger"));
    let of_server = authority.issue(&["example.net"]);
    let listener = |is_required| {
        let clients = Clients { trust: trust(&authority), is_required };
        Server::new(vec![certificate(&of_server)], Some(clients)).unwrap()
    };
    let client = |issued: Option<Issued>| Clienthood::new(trust(&authority), issued.as_ref().map(certificate)).unwrap();
    let known = || client(Some(authority.issue(&["client.example"])));
    for is_required in [false, true] {
        shake(&listener(is_required), &known(), "example.net", usize::MAX).unwrap();
        let of_stranger = client(Some(stranger.issue(&["client.example"])));
        let failure = refusal(&listener(is_required), &of_stranger, "example.net");
        assert_eq!(failure.handshake, Handshake::BadCertificate);
        let expired = client(Some(authority.issue_until(&["client.example"], 2021)));
        assert!(refusal(&listener(is_required), &expired, "example.net").text.contains("expired"));
    }
    shake(&listener(false), &client(None), "example.net", usize::MAX).unwrap();
    assert_eq!(refusal(&listener(true), &client(None), "example.net").handshake, Handshake::NoCertificate);
}

#[test]
fn a_second_handshake_goes_on_from_the_first_also_when_the_certificate_has_changed() {
    let authority = Authority::new("ca");
    let clienthood = Clienthood::new(trust(&authority), None).unwrap();
    let first = server(&authority.issue(&["example.net"]));
    let outcome = |server: &Server| {
        let (server, _) = shake(server, &clienthood, "example.net", usize::MAX).unwrap();
        server.handshake()
    };
    assert_eq!((outcome(&first), outcome(&first)), (Handshake::Full, Handshake::Resumed));
    let before = Credentials { servers: vec![Some(first.clone())], ..Credentials::default() };
    let after = |server: Server| {
        let credentials = Credentials { servers: vec![Some(server)], ..Credentials::default() };
        credentials.taking_over(&before).servers.remove(0).unwrap()
    };
    let renewed = after(server(&authority.issue(&["example.net"])));
    assert_eq!(outcome(&renewed), Handshake::Resumed);
    // But nobody goes on from a time when no certificate was asked of him.
    let clients = Clients { trust: trust(&authority), is_required: true };
    let strict = Server::new(vec![certificate(&authority.issue(&["example.net"]))], Some(clients)).unwrap();
    assert_eq!(refusal(&after(strict), &clienthood, "example.net").handshake, Handshake::NoCertificate);
}

/// A reload swaps tables a moment after credentials, and requests go by either until it is done.
#[test]
fn while_tables_are_swapped_backends_of_before_are_spoken_to_and_those_of_both_by_what_is_new() {
    let (before, after) = (Authority::new("before"), Authority::new("after"));
    let client =
        |authority: &Authority| Clienthood::new(trust(authority), None).unwrap().towards("example.net").unwrap();
    let of = |authority: &Authority, ports: &[u16]| {
        let clients = ports.iter().map(|&port| (([10, 0, 0, 1], port).into(), client(authority)));
        Credentials { clients: clients.collect(), ..Credentials::default() }
    };
    let both = of(&after, &[2, 3]).keeping_clients_of(&of(&before, &[1, 2]));
    for (port, authority) in [(1, &before), (2, &after), (3, &after)] {
        let mut server = Session::accept(&server(&authority.issue(&["example.net"]))).unwrap();
        let mut client = Session::connect(&both.clients[&([10, 0, 0, 1], port).into()]).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            carry(&mut client, &mut server, usize::MAX).unwrap();
            carry(&mut server, &mut client, usize::MAX).unwrap();
        }
    }
}

#[test]
fn the_name_that_is_asked_for_chooses_the_certificate() {
    let authority = Authority::new("ca");
    let clienthood = Clienthood::new(trust(&authority), None).unwrap();
    let certificates = ["first.example", "second.example"].map(|name| certificate(&authority.issue(&[name])));
    let server = Server::new(certificates.to_vec(), None).unwrap();
    for name in ["first.example", "SECOND.example"] {
        shake(&server, &clienthood, name, usize::MAX).unwrap();
    }
    let failure = refusal(&server, &clienthood, "third.example");
    assert!(failure.text.contains("first.example"), "{}", failure.text);
    // Browsers ask for names of DNS, also of a certificate whose name is that of a SIP domain; one that is for the name comes first.
    let names: [&[&str]; 3] = [&["other.example"], &["sip:first.example", "*.Web.example"], &["Phone.web.example"]];
    let server = Server::new(names.map(|names| certificate(&authority.issue(names))).to_vec(), None).unwrap();
    shake(&server, &clienthood, "phone.web.example", usize::MAX).unwrap();
    for (name, chosen) in [("page.web.example", "first.example"), ("page.example", "other.example")] {
        let failure = refusal(&server, &clienthood, name);
        assert!(failure.text.contains(chosen), "{}", failure.text);
    }
}

#[test]
fn what_is_no_tls_or_breaks_its_rules_fails_at_once() {
    let authority = Authority::new("ca");
    let server = server(&authority.issue(&["example.net"]));
    let rows: [(&[u8], Handshake); 6] = [
        (b"OPTIONS sip:example.net SIP/2.0\r\n", Handshake::NotTls),
        (b"GET / HTTP/1.1\r\n\r\n", Handshake::NotTls),
        (b"\r\n\r\n\r\n", Handshake::NotTls),
        (b"\x16\x03\x01\xff\xff\x01\x00", Handshake::Violation),
        (b"\x16\x03\x01\x00\x05\x02\x00\x00\x00\x00", Handshake::Violation),
        (b"\x17\x03\x03\x00\x01a", Handshake::Violation),
    ];
    for (octets, outcome) in rows {
        let mut session = Session::accept(&server).unwrap();
        let mut room = vec![0; CARRIED + octets.len()];
        room[CARRIED..].copy_from_slice(octets);
        let failure = session.open(&mut room, CARRIED, octets.len()).unwrap_err();
        assert_eq!(failure.handshake, outcome, "{octets:?}: {}", failure.text);
    }
}

#[test]
fn what_was_whole_is_opened_and_then_the_failure_told_wherever_the_octets_are_cut() {
    let authority = Authority::new("ca");
    let server = server(&authority.issue(&["example.net"]));
    let clienthood = Clienthood::new(trust(&authority), None).unwrap();
    let text = b"a message and a half, of which this is all that came";
    for step in [1, 7, 60, 80, usize::MAX] {
        let (mut server, mut client) = shake(&server, &clienthood, "example.net", usize::MAX).unwrap();
        let mut octets = Vec::new();
        for half in text.chunks(30) {
            client.seal(half);
            client.write_to(&mut octets).unwrap();
        }
        octets.extend(b"\x17\x03\x03\x00\x20 a record of 32 octets, made up.");
        let (mut opened, mut failure) = (Vec::new(), None);
        for piece in octets.chunks(step) {
            let mut room = [&[0; CARRIED][..], piece].concat();
            match server.open(&mut room, CARRIED, piece.len()) {
                Ok(count) => opened.extend_from_slice(&room[..count]),
                Err(error) => failure = Some(error),
            }
            failure = server.take_failure().or(failure);
        }
        assert_eq!(opened, text, "in pieces of {step}");
        assert_eq!(failure.map(|failure| failure.handshake), Some(Handshake::Violation), "in pieces of {step}");
    }
}

#[test]
fn files_that_are_no_certificate_or_no_key_or_do_not_fit_are_told_apart() {
    let authority = Authority::new("ca");
    let (one, other) = (authority.issue(&["example.net"]), authority.issue(&["example.net"]));
    let read = |certificate: &str, key: &str| Certificate::read(certificate.as_bytes(), key.as_bytes()).unwrap_err();
    assert!(matches!(read("", &one.key), Fault::Certificate(_)));
    assert!(matches!(read(&one.key, &one.key), Fault::Certificate(_)));
    assert!(matches!(read(&one.certificate, &one.certificate), Fault::Key(_)));
    assert_eq!(read(&one.certificate, &other.key), Fault::Mismatch);
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(matches!(read(garbage, &one.key), Fault::Certificate(_)));
    assert!(Trust::read(b"").is_err() && Trust::read(garbage.as_bytes()).is_err());
    let certificate = certificate(&one);
    assert_eq!(certificate.names, ["example.net"]);
    assert_eq!((certificate.begins_at, certificate.expires_at), (Some(1_577_836_800), Some(4_070_908_800)));
}
