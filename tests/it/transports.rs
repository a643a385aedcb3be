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

const TRANSPORTS: [Transport; 3] = [Transport::Udp, Transport::Tcp, Transport::Tls];

#[test]
fn calls_over_any_transport_to_backends_over_any_other_are_all_what_they_should_be() {
    let _alone = alone();
    for (front, behind) in TRANSPORTS.into_iter().flat_map(|front| TRANSPORTS.map(|behind| (front, behind))) {
        let name = format!("carried-{front}-{behind}");
        let folder = Folder::new(&name);
        let made = tls::SelfSigned::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = folder.write("cert.pem", &made.certificate);
        let key = folder.write("key.pem", &made.key);
        let (certificate, key) = (certificate.display(), key.display());

        let any = Endpoint { transport: behind, address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)) };
        let server = Some(tls::Server::of(&made).unwrap());
        let uas = Uas::start(uas::Config { backends: vec![any; 2], tls: server, ..uas::Config::default() }).unwrap();
        let uri = |address: &SocketAddr| format!("{{ uri = \"sip:{address}{}\" }}", behind.uri_param());
        let backends: Vec<String> = uas.addresses().iter().map(uri).collect();
        let listen = free_port();
        let shown = format!("tls = {{ certificate = \"{certificate}\", key = \"{key}\" }}");
        let demanded = format!("tls = {{ ca = \"{certificate}\", name = \"localhost\" }}");
        let viahop = Viahop::start(
            &name,
            &format!(
                "[balancer]\nshards = 2\n[[listen]]\naddress = \"{front}:127.0.0.1:{listen}\"\n{}\n[[pool]]\nname = \"callees\"\n\
                 {UNPROBED}\n{}\nbackend = [{}]\n",
                if front == Transport::Tls { &shown } else { "" },
                if behind == Transport::Tls { &demanded } else { "" },
                backends.join(", ")
            ),
        );

        let mix = ["call", "reinvite", "cancel", "busy", "options", "message", "register"];
        let mix = Mix::new(mix.map(|name| (Scenario::built_in(name).unwrap(), 1.0)).into()).unwrap();
        let target = Endpoint { transport: front, address: SocketAddr::from((Ipv4Addr::LOCALHOST, listen)) };
        let client = tls::Client::new("localhost", Some(&folder.0.join("cert.pem"))).unwrap();
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
