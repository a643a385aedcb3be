//! Backends that DNS knows: dnsmasq says who serves a domain, and calls follow what it says.

use crate::ctl::{PROBED, Phone, Server, ctl_ok};
use crate::live::{Folder, PATIENCE, Process, UNPROBED, Viahop, free_port, output, viahop, wait_for_port};
use crate::support::has_peer;
use std::fmt::Display;
use std::net::UdpSocket;
use std::process::{Command, Stdio};

/// A name server for what is below `test`, whose records are valid for a second.
struct Dns {
    port: u16,
    folder: Folder,
    process: Option<Process>,
}

impl Dns {
    fn new(name: &str) -> Dns {
        Dns { port: free_port(), folder: Folder::new(name), process: None }
    }

    /// Says this from now on, in the words of dnsmasq's configuration.
    fn says(&mut self, records: &str) {
        self.says_for(1, records);
    }

    /// The same, valid for so many seconds.
    fn says_for(&mut self, ttl: u32, records: &str) {
        self.process = None;
        let text = format!(
            "port={}\nlisten-address=127.0.0.1\nbind-interfaces\nno-resolv\nno-hosts\nno-daemon\npid-file\nlocal=/test/\nlocal-ttl={ttl}\n{records}",
            self.port
        );
        let path = self.folder.write("dnsmasq.conf", &text);
        let mut command = Command::new("/usr/sbin/dnsmasq");
        command.arg("-C").arg(path).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(Process::start(&mut command));
        wait_for_port(self.port);
    }

    /// Says that these serve `sip.test`, over UDP, each on 127.0.0.1 under a name of its own.
    fn says_srv(&mut self, servers: &[(&str, u16)]) {
        let of = |(name, port): &(&str, u16)| {
            format!("srv-host=_sip._udp.sip.test,{name}.test,{port},10,50\nhost-record={name}.test,127.0.0.1\n")
        };
        self.says(&servers.iter().map(of).collect::<String>());
    }
}

fn config(listen: u16, dns: impl Display, discover: &str, pool: &str) -> String {
    format!(
        "[balancer]\nshards = 2\nnameservers = [\"127.0.0.1:{dns}\"]\n[[listen]]\naddress = \"udp:127.0.0.1:{listen}\"\n\
         [[pool]]\ndiscover = \"{discover}\"\n{pool}\n"
    )
}

/// The backends, each with what it is used for.
fn backends(viahop: &Viahop) -> Vec<String> {
    let status = viahop.status();
    let all = status["backends"].as_array().unwrap().iter();
    all.map(|one| format!("{} {}", one["name"].as_str().unwrap(), one["operator"].as_str().unwrap())).collect()
}

fn wait_for(viahop: &Viahop, wanted: &[String]) {
    viahop.wait_until(&format!("{wanted:?}"), PATIENCE, |_| {
        let mut found = backends(viahop);
        found.sort_unstable();
        found == wanted
    });
}

#[test]
fn servers_come_and_go_as_dns_says_and_their_calls_stay_with_them() {
    if !has_peer("dnsmasq") {
        return;
    }
    let [a, b, c] = [Server::start(), Server::start(), Server::start()];
    let is = |name: &str, server: &Server, state: &str| format!("{name}.test:{} {state}", server.port);
    let mut dns = Dns::new("dns");
    dns.says_srv(&[("a", a.port), ("b", b.port)]);
    let listen = free_port();
    let viahop = Viahop::start("discover", &config(listen, dns.port, "sip:sip.test", PROBED));
    wait_for(&viahop, &[is("a", &a, "ready"), is("b", &b, "ready")]);
    let phone = Phone::new(listen);
    let calls: Vec<(String, String)> = (0..40)
        .map(|n| format!("first-{n}"))
        .map(|id| (phone.call(&id), id))
        .map(|(routes, id)| (id, routes))
        .collect();
    assert!(a.count("INVITE") > 0 && b.count("INVITE") > 0 && c.count("INVITE") == 0);

    // One leaves that has calls, another comes.
    dns.says_srv(&[("a", a.port), ("c", c.port)]);
    wait_for(&viahop, &[is("a", &a, "ready"), is("b", &b, "drain"), is("c", &c, "ready")]);
    let before = b.count("INVITE");
    (0..40).for_each(|n| drop(phone.call(&format!("second-{n}"))));
    assert_eq!(b.count("INVITE"), before, "a new call for a server that DNS names no longer");
    assert!(c.count("INVITE") > 0);
    for (id, routes) in &calls {
        assert!(phone.hang_up(id, routes).starts_with("SIP/2.0 200"));
        let server = [&a, &b, &c].into_iter().find(|server| server.has("INVITE", id)).unwrap();
        assert!(server.has("BYE", id), "{id} was hung up elsewhere");
    }

    // Who answers no longer is not missed when something changes next.
    let name = is("b", &b, "");
    drop(b);
    viahop.wait_until("b is down", PATIENCE, |status| {
        let all = status["backends"].as_array().unwrap();
        all.iter().any(|one| name.starts_with(one["name"].as_str().unwrap()) && one["state"] == "down")
    });
    dns.says_srv(&[("c", c.port)]);
    wait_for(&viahop, &[is("a", &a, "drain"), is("c", &c, "ready")]);

    // Without DNS everybody stays, whatever is read meanwhile.
    dns.process = None;
    viahop.wait_until("the outage is told", PATIENCE, |_| {
        viahop.log().contains("event=\"discovery_failed\" domain=\"sip.test\"")
    });
    let told = ctl_ok(&viahop, &["reload"]);
    assert!(told.contains("the 2 of before stay"), "{told}");
    wait_for(&viahop, &[is("a", &a, "drain"), is("c", &c, "ready")]);
    dns.says_srv(&[("a", a.port), ("c", c.port)]);
    wait_for(&viahop, &[is("a", &a, "ready"), is("c", &c, "ready")]);

    let others = format!("{}\", \"127.0.0.1:{}", dns.port, free_port());
    viahop.write_config(&config(listen, others, "sip:sip.test", PROBED));
    assert!(ctl_ok(&viahop, &["reload", "--dry-run"]).contains("nameservers"));
    viahop.end();
}

#[test]
fn without_srv_records_or_with_a_port_each_address_of_a_domain_is_a_backend() {
    if !has_peer("dnsmasq") {
        return;
    }
    let mut dns = Dns::new("addresses");
    dns.says(
        "host-record=plain.test,127.0.0.12\nhost-record=plain.test,127.0.0.11,2001:db8::1\n\
         host-record=six.test,::1\nsrv-host=_sip._udp.a_b.test,c_d.test,5060\nhost-record=c_d.test,127.0.0.13\nsrv-host=_sip._tcp.plain.test,.,0\n",
    );
    let folder = Folder::new("discover-check");
    let mut ignorant = Dns::new("ignorant");
    ignorant.says("");
    let check_with = |ports: &[u16], discover: &str| {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        let text =
            config(free_port(), ports.join("\", \"127.0.0.1:"), discover, UNPROBED) + "[admin]\nlisten = \"off\"\n";
        let path = folder.write("viahop.toml", &text);
        output(viahop(&["check", path.to_str().unwrap()]).env("STATE_DIRECTORY", &folder.0))
    };
    let check = |discover: &str| check_with(&[dns.port], discover);
    for (discover, port) in
        [("sip:plain.test", 5060), ("sip:plain.test:5070", 5070), ("sip:plain.test:5070;transport=tcp", 5070)]
    {
        let (code, said, told) = check(discover);
        assert_eq!(code, 0, "{told}");
        for address in ["127.0.0.11", "127.0.0.12"] {
            assert!(said.contains(&format!("  {address}:{port} ")), "{discover}: {said}");
        }
        assert!(!said.contains("2001:db8::1"), "a server with both addresses is two: {said}");
    }
    let (_, said, told) = check("sip:six.test");
    assert!(said.contains("  [::1]:5060 "), "{said}{told}");
    let (_, said, told) = check("sip:a_b.test");
    assert!(said.contains("  c_d.test:5060 "), "{said}{told}");
    let (code, said, told) = check_with(&[free_port(), free_port(), ignorant.port, dns.port], "sip:six.test");
    assert_eq!(code, 0, "name servers that are away or know nothing are in the way of one that knows: {said}{told}");
    let (code, _, told) = check("sip:nobody.test");
    assert_eq!(code, 4);
    assert!(
        told.contains("viahop.toml:7:12") && told.contains("no servers of `nobody.test` found: DNS knows none"),
        "{told}"
    );
}

/// Sockets are those of the start.
#[test]
fn the_first_server_with_an_address_of_its_kind_gets_calls() {
    if !has_peer("dnsmasq") {
        return;
    }
    let (four, six) = (Server::start(), Server::start_at("::1"));
    let mut dns = Dns::new("kinds");
    dns.says_srv(&[("four", four.port)]);
    let listen = free_port();
    let viahop = Viahop::start("kinds", &config(listen, dns.port, "sip:sip.test", UNPROBED));
    dns.says(&format!("srv-host=_sip._udp.sip.test,six.test,{},10,50\nhost-record=six.test,::1\n", six.port));
    wait_for(&viahop, &[format!("six.test:{} ready", six.port)]);
    Phone::new(listen).call("six");
    assert!(six.has("INVITE", "six"));
    viahop.end();
}

#[test]
fn a_target_that_has_no_address_yet_is_asked_for_before_its_record_is_stale() {
    if !has_peer("dnsmasq") {
        return;
    }
    let mut dns = Dns::new("early");
    let srv = "srv-host=_sip._udp.sip.test,old.test,5060,10,50\nsrv-host=_sip._udp.sip.test,new.test,5060,10,50\n\
               host-record=old.test,127.0.0.11\n";
    dns.says_for(3600, srv);
    let viahop = Viahop::start("early", &config(free_port(), dns.port, "sip:sip.test", UNPROBED));
    wait_for(&viahop, &["old.test:5060 ready".into()]);
    dns.says_for(3600, &format!("{srv}host-record=new.test,127.0.0.12\n"));
    wait_for(&viahop, &["new.test:5060 ready".into(), "old.test:5060 ready".into()]);
    viahop.end();
}

/// dnsmasq gives aliases of names with addresses alone, so this one is answered by hand.
#[test]
fn srv_records_may_stand_under_another_name() {
    let dns = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = dns.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let name = |labels: &[&str]| -> Vec<u8> {
            let of = |label: &&str| [&[label.len() as u8], label.as_bytes()].concat();
            [labels.iter().flat_map(of).collect(), vec![0]].concat()
        };
        let (alias, real) = (name(&["_sip", "_udp", "alias", "test"]), name(&["_sip", "_udp", "real", "test"]));
        let record = |owner: &[u8], kind: u8, data: &[u8]| {
            [owner, &[0, kind, 0, 1, 0, 0, 0, 60, 0, data.len() as u8], data].concat()
        };
        let is_alias = record(&alias, 5, &real);
        let srv = record(&real, 33, &[&[0, 1, 0, 1, 0x13, 0xc4], &name(&["host", "test"])[..]].concat());
        let mut room = [0; 512];
        while let Ok((len, from)) = dns.recv_from(&mut room) {
            let end = 12 + room[12..len].iter().position(|octet| *octet == 0).unwrap() + 1;
            let (asked, kind) = (room[12..end].to_vec(), room[end + 1]);
            let (count, answers) = match kind {
                1 => (1, record(&asked, 1, &[127, 0, 0, 13])),
                5 if asked == alias => (1, is_alias.clone()),
                33 if asked == alias => (2, [&is_alias[..], &srv].concat()),
                33 if asked == real => (1, srv.clone()),
                _ => (0, Vec::new()),
            };
            let head = [room[0], room[1], 0x85, 0x80, 0, 1, 0, count, 0, 0, 0, 0];
            dns.send_to(&[&head, &room[12..end + 4], &answers].concat(), from).unwrap();
        }
    });
    let folder = Folder::new("discover-alias");
    let text = config(free_port(), port, "sip:alias.test", UNPROBED) + "[admin]\nlisten = \"off\"\n";
    let path = folder.write("viahop.toml", &text);
    let (_, said, told) = output(viahop(&["check", path.to_str().unwrap()]).env("STATE_DIRECTORY", &folder.0));
    assert!(said.contains("  host.test:5060 "), "{said}{told}");
}
