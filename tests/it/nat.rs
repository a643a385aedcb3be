//! A phone behind a NAT: baresip in a network namespace, behind an nft masquerade in another.
//!
//! ```text
//!  namespace "phone"          namespace "nat"                       here
//!  192.168.211.2 ──────── 192.168.211.1  198.18.x.2 ──────── 198.18.x.1 viahop ──── 127.0.0.1 Kamailio
//!     baresip                  masquerade, any port                   └──── 127.0.0.1 SIPp, the caller
//! ```
//!
//! Nobody but the NAT reaches the phone, and the NAT lets in only what answers it: calls come in down the flow that the
//! registration came out on, or not at all.

use crate::dialogs::{assert_completed, caller};
use crate::live::{Folder, PATIENCE, Process, Viahop, free_port};
use crate::registrars::{DIGEST, kamailio, wait_for_registrars};
use crate::support::{has_peer, skip};
use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The namespaces and the links between them; gone with it.
struct Nat {
    phone: String,
    nat: String,
    /// Our end of the link to the NAT.
    link: String,
    /// Our address on it, but for the last octet.
    net: String,
}

impl Nat {
    /// `None`, and said so, where we may not have namespaces.
    fn start() -> Option<Nat> {
        let id = std::process::id() % 100_000;
        let nat = Nat {
            phone: format!("vh-phone-{id}"),
            nat: format!("vh-nat-{id}"),
            link: format!("vh{id}"),
            net: format!("198.18.{}", id % 250),
        };
        let Nat { phone, nat: router, link, net } = &nat;
        let steps = [
            format!("ip netns add {phone}"),
            format!("ip netns add {router}"),
            format!("ip link add {link} type veth peer name out netns {router}"),
            format!("ip -n {router} link add in type veth peer name eth netns {phone}"),
            format!("ip addr add {net}.1/24 dev {link}"),
            format!("ip link set {link} up"),
            format!("ip -n {router} addr add {net}.2/24 dev out"),
            format!("ip -n {router} link set out up"),
            format!("ip -n {router} addr add 192.168.211.1/24 dev in"),
            format!("ip -n {router} link set in up"),
            format!("ip -n {phone} addr add 192.168.211.2/24 dev eth"),
            format!("ip -n {phone} link set eth up"),
            format!("ip -n {phone} link set lo up"),
            format!("ip -n {phone} route add default via 192.168.211.1"),
            format!("ip netns exec {router} sysctl -qw net.ipv4.ip_forward=1"),
            format!("ip netns exec {router} nft add table ip nat"),
            format!("ip netns exec {router} nft add chain ip nat out {{ type nat hook postrouting priority 100; }}"),
            format!("ip netns exec {router} nft add rule ip nat out oifname out masquerade random"),
        ];
        for step in steps {
            let words: Vec<&str> = step.split(' ').collect();
            let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
            if !output.status.success() {
                skip(&format!("network namespaces: {step}: {}", String::from_utf8_lossy(&output.stderr).trim()));
                return None;
            }
        }
        Some(nat)
    }
}

impl Drop for Nat {
    fn drop(&mut self) {
        for name in [&self.phone, &self.nat] {
            Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status().ok();
        }
        Command::new("ip").args(["link", "del", &self.link]).stderr(Stdio::null()).status().ok();
    }
}

fn baresip(folder: &Folder, nat: &Nat, target: &str) -> Process {
    let modules = ["/usr/lib/baresip/modules", "/usr/lib/x86_64-linux-gnu/baresip/modules"];
    let modules = modules.iter().find(|path| std::path::Path::new(path).is_dir()).unwrap();
    folder.write(
        "config",
        &format!(
            "sip_listen 192.168.211.2:5060\naudio_player aubridge,pipe\naudio_source aubridge,pipe\n\
             audio_alert aubridge,pipe\nmodule_path {modules}\nmodule g711.so\nmodule aubridge.so\n\
             module_app account.so\nmodule_app menu.so\n"
        ),
    );
    folder.write(
        "accounts",
        &format!(
            "<sip:alice@load.example>;auth_user=alice;auth_pass=secret;outbound=\"sip:{target};transport=udp\";\
             regint=60;answermode=auto\n"
        ),
    );
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &nat.phone, "baresip", "-f", folder.0.to_str().unwrap()]);
    command.stdout(File::create(folder.0.join("log")).unwrap()).stderr(Stdio::null());
    Process::start(&mut command)
}

#[test]
fn a_phone_behind_a_nat_is_called_down_the_flow_it_registered_on() {
    if !["baresip", "nft", "ip", "kamailio", "sipp"].iter().all(|name| has_peer(name)) {
        return;
    }
    let Some(nat) = Nat::start() else { return };
    let folder = Folder::new("nat");
    let (listen, registrar) = (free_port(), free_port());
    let _registrar = kamailio(&folder, "127.0.0.1", registrar, DIGEST);
    // On all addresses: what stands in Path and Record-Route is the one a message came to. baresip does not say that it
    // supports Path; without one, Kamailio would send to 192.168.211.2, which it cannot reach.
    let config = format!(
        "[balancer]\nshards = 2\n[[listen]]\naddress = \"udp:0.0.0.0:{listen}\"\n[[pool]]\naffinity = \"aor\"\n\
         health = {{ interval = \"500ms\", timeout = \"200ms\" }}\nbackend = [{{ uri = \"sip:127.0.0.1:{registrar}\" }}]\n\
         [policy]\npath = \"always\"\n"
    );
    let viahop = Viahop::start("nat", &config);
    wait_for_registrars(&viahop);
    let at_home = Folder::new("baresip");
    let _phone = baresip(&at_home, &nat, &format!("{}.1:{listen}", nat.net));
    let log = || std::fs::read_to_string(at_home.0.join("log")).unwrap_or_default();
    let until = Instant::now() + PATIENCE;
    while !log().contains("200 OK") {
        assert!(Instant::now() < until, "{}\n{}", log(), viahop.metrics());
        std::thread::sleep(Duration::from_millis(50));
    }
    folder.write("users.csv", "SEQUENTIAL\nalice;\n");
    let mut client = caller(&folder, "uac_users", listen, 5, 5, &["-inf", "users.csv", "-d", "500"]);
    assert_completed(&folder, &mut client, 5);
    // ACK and BYE of each went through Kamailio and down the flow as well.
    let until = Instant::now() + PATIENCE;
    while log().matches("session closed").count() < 5 {
        assert!(Instant::now() < until, "{}", log());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(log().matches("Call established").count(), 5, "{}", log());
    viahop.end();
}
