//! Calls over every pair of transports, two shards and two backends in between, each message checked on both sides by our own
//! generator: seals, Via stacks, tags, which backend has which call.

use crate::live::{Folder, UNPROBED, Viahop, alone, free_port};
use std::net::{Ipv4Addr, SocketAddr};
use viahop_load::clock::{MS_NS, SECOND_NS};
use viahop_load::endpoint::{Endpoint, Transport};
use viahop_load::scenario::{Mix, Scenario};
use viahop_load::tls;
use viahop_load::uac::{self, Uac};
use viahop_load::uas::{self, Uas};

const FRONTS: [Transport; 5] = [Transport::Udp, Transport::Tcp, Transport::Tls, Transport::Ws, Transport::Wss];
const BEHIND: [Transport; 3] = [Transport::Udp, Transport::Tcp, Transport::Tls];

#[test]
fn calls_over_any_transport_to_backends_over_any_other_are_all_what_they_should_be() {
    let _alone = alone();
    for (front, behind) in FRONTS.into_iter().flat_map(|front| BEHIND.map(|behind| (front, behind))) {
        let name = format!("carried-{front}-{behind}");
        let folder = Folder::new(&name);
        let made = tls::SelfSigned::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = folder.write("cert.pem", &made.certificate);
        let key = folder.write("key.pem", &made.key);
        let (certificate, key) = (certificate.display(), key.display());

        // None that a caller may get: who comes from the address and port of a backend is that backend.
        let backends = [(); 2]
            .map(|()| Endpoint { transport: behind, address: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())) });
        let server = Some(tls::Server::of(&made).unwrap());
        let uas = Uas::start(uas::Config { backends: backends.into(), tls: server, ..uas::Config::default() }).unwrap();
        let uri = |address: &SocketAddr| format!("{{ uri = \"sip:{address}{}\" }}", behind.uri_param());
        let backends: Vec<String> = uas.addresses().iter().map(uri).collect();
        let listen = free_port();
        // Callers over TLS have to show a certificate, too.
        let shown =
            format!("tls = {{ certificate = \"{certificate}\", key = \"{key}\", client_ca = \"{certificate}\" }}\n");
        let demanded = format!("tls = {{ ca = \"{certificate}\", name = \"localhost\" }}");
        let viahop = Viahop::start(
            &name,
            &format!(
                "[balancer]\nshards = 2\n[[listen]]\naddress = \"{front}:127.0.0.1:{listen}\"\n{}{}\n[[pool]]\nname = \"callees\"\n\
                 {UNPROBED}\n{}\nbackend = [{}]\n",
                if front.has_tls() { &shown } else { "" },
                if front.is_websocket() { "origins = [\"https://phone.example\"]" } else { "" },
                if behind == Transport::Tls { &demanded } else { "" },
                backends.join(", ")
            ),
        );

        let mix = ["call", "reinvite", "cancel", "busy", "options", "message", "register"];
        let mix = Mix::new(mix.map(|name| (Scenario::built_in(name).unwrap(), 1.0)).into()).unwrap();
        let target = Endpoint { transport: front, address: SocketAddr::from((Ipv4Addr::LOCALHOST, listen)) };
        let papers = (folder.0.join("cert.pem"), folder.0.join("key.pem"));
        let client = tls::Client::showing("localhost", Some(&papers.0), Some((&papers.0, &papers.1))).unwrap();
        let config = uac::Config { rate: 200.0, calls: 300, connections: 10, mix, ..uac::Config::new(target) };
        let (hold_ns, drain_ns) = (20 * MS_NS, 30 * SECOND_NS);
        let called = Uac::start(uac::Config { tls: Some(client), hold_ns, drain_ns, ..config }).unwrap().join();
        let took = uas.join();

        let (caller, callee) = (called.counts, took.total());
        assert_eq!((caller.completed, caller.failed), (300, 0), "{name}: {:?}\n{}", called.lines, viahop.log());
        let wrong = (caller.wrong, caller.altered, caller.strays, caller.malformed, caller.unexpected);
        assert_eq!(wrong, (0, 0, 0, 0, 0), "{name}: {:?}", called.wrongs);
        let wrong = (callee.violations, callee.altered, callee.unknown, callee.malformed, callee.unacknowledged);
        assert_eq!(wrong, (0, 0, 0, 0, 0), "{name}: {:?}", took.violations);
        assert_eq!((caller.connections_lost, callee.unsent), (0, 0), "{name}");
        assert!(took.backends.iter().all(|backend| backend.counts.requests > 100), "{name}");
        viahop.end();
    }
}

#[test]
fn callers_that_viahop_does_not_let_in_say_why_their_calls_fail() {
    let folder = Folder::new("carried-nobody");
    let made = tls::SelfSigned::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = folder.write("cert.pem", &made.certificate).display().to_string();
    let key = folder.write("key.pem", &made.key).display().to_string();
    let (secure, plain) = (free_port(), free_port());
    let viahop = Viahop::start(
        "carried-nobody",
        &format!(
            "[[listen]]\naddress = \"wss:127.0.0.1:{secure}\"\norigins = [\"*\"]\n\
             tls = {{ certificate = \"{certificate}\", key = \"{key}\", client_ca = \"{certificate}\" }}\n\
             [[listen]]\naddress = \"tcp:127.0.0.1:{plain}\"\n[[pool]]\n{UNPROBED}\nbackend = [{{ uri = \"sip:127.0.0.1:9\" }}]\n"
        ),
    );
    for (transport, port, why) in [
        (Transport::Wss, secure, "TLS: the other side refused"),
        (Transport::Ws, plain, "connection closed by the other side"),
    ] {
        let target = Endpoint { transport, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)) };
        let mix = Mix::new(vec![(Scenario::built_in("options").unwrap(), 1.0)]).unwrap();
        let config = uac::Config { rate: 100.0, calls: 20, connections: 2, mix, ..uac::Config::new(target) };
        let called = Uac::start(config).unwrap().join();
        assert_eq!((called.counts.completed, called.counts.failed), (0, 20), "{:?}", called.lines);
        assert!(called.lines[0].failures.contains_key(why), "{transport}: {:?}", called.lines);
    }
    viahop.end();
}
