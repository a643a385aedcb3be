//! A phone in a browser: JsSIP in Chromium, over a secure WebSocket, registered at a Kamailio and in calls with baresip over
//! UDP, to it and from it, with media that both sides hear.
//!
//! JsSIP is no program that could be installed, so whoever runs this brings it, in one file that puts it into
//! `window.JsSIP`: `docs/websocket.md` says how. `VIAHOP_JSSIP` is its path.

use crate::live::{Folder, PATIENCE, Process, Viahop, free_port};
use crate::registrars::{kamailio, wait_for_registrars};
use crate::support::{has_peer, skip};
use crate::tls::Papers;
use std::fs::{self, File};
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Registers, calls bob, hangs up after a while, and answers whoever calls. What is told begins with `said`.
const PAGE: &str = r#"
<script src="jssip.js"></script>
<script>
const say = (...words) => console.log("said " + words.join(" "));
const options = { mediaConstraints: { audio: true, video: false }, pcConfig: { iceServers: [] } };
function follow(session, name) {
    for (const event of ["confirmed", "ended", "failed"]) session.on(event, () => say(name, event));
    session.on("confirmed", () => setTimeout(async () => {
        const stats = await session.connection.getStats();
        stats.forEach((one) => { if (one.type == "inbound-rtp" && one.packetsReceived > 20) say(name, "hears"); });
        session.terminate();
    }, 2000));
}
JsSIP.debug.disable();
const sockets = [new JsSIP.WebSocketInterface("wss://localhost:LISTEN/")];
const phone = new JsSIP.UA({ sockets, uri: "sip:alice@load.example", password: "secret", register: true });
phone.on("registrationFailed", (event) => say("not registered", event.cause));
phone.on("registered", () => { say("registered"); setTimeout(() => follow(phone.call("sip:bob@load.example", options), "caller"), 1000); });
phone.on("newRTCSession", (event) => {
    if (event.originator == "local") return;
    follow(event.session, "callee");
    event.session.answer(options);
});
phone.start();
</script>
"#;

/// The first of two: baresip takes the one behind its port for TLS.
fn two_free_ports() -> u16 {
    loop {
        let port = free_port();
        if free_port() == port + 1 {
            return port;
        }
    }
}

/// baresip as a user of load.example, with what a browser wants of media.
fn baresip(folder: &Folder, ip: IpAddr, user: &str, viahop: u16, more: &[&str]) -> Process {
    let modules = ["/usr/lib/baresip/modules", "/usr/lib/x86_64-linux-gnu/baresip/modules"];
    let modules = modules.iter().find(|path| Path::new(path).is_dir()).unwrap();
    folder.write(
        "config",
        &format!(
            "sip_listen {ip}:{}\naudio_player aubridge,pipe\naudio_source aubridge,pipe\naudio_alert aubridge,pipe\n\
             rtcp_mux yes\nmodule_path {modules}\nmodule g711.so\nmodule aubridge.so\nmodule ice.so\n\
             module dtls_srtp.so\nmodule srtp.so\nmodule_app account.so\nmodule_app menu.so\n",
            two_free_ports()
        ),
    );
    folder.write(
        "accounts",
        &format!(
            "<sip:{user}@load.example>;outbound=\"sip:{ip}:{viahop};transport=udp\";regint=60;answermode=auto;\
             mediaenc=dtls_srtp;medianat=ice;audio_codecs=PCMU/8000/1\n"
        ),
    );
    let mut command = Command::new("baresip");
    command.arg("-f").arg(&folder.0).args(more).stdout(File::create(folder.0.join("log")).unwrap());
    Process::start(command.stderr(Stdio::null()))
}

#[test]
fn a_browser_registers_over_wss_and_calls_and_is_called_by_a_phone_over_udp() {
    let Some(jssip) = std::env::var_os("VIAHOP_JSSIP") else { return skip("VIAHOP_JSSIP names no JsSIP") };
    if !["chromium", "baresip", "kamailio", "python3"].iter().all(|name| has_peer(name)) {
        return;
    }
    // Browsers give media no loopback address. Nothing is sent to find ours.
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    let Ok(ip) = probe.connect("192.0.2.1:9").and_then(|()| probe.local_addr()).map(|address| address.ip()) else {
        return skip("no address but loopback");
    };
    let papers = Papers::new("browser");
    let own = papers.issue("a", &["localhost"]);
    let (plain, listen, registrar, web) = (free_port(), free_port(), free_port(), free_port());
    let _registrar = kamailio(&papers.folder, "127.0.0.1", registrar, "");
    let viahop = Viahop::start(
        "browser",
        &format!(
            "[balancer]\nshards = 2\n[[listen]]\naddress = \"udp:0.0.0.0:{plain}\"\n[[listen]]\n\
             address = \"wss:127.0.0.1:{listen}\"\norigins = [\"http://localhost:{web}\"]\ntls = {{ {own} }}\n\
             [[pool]]\naffinity = \"aor\"\nhealth = {{ interval = \"500ms\", timeout = \"200ms\" }}\n\
             backend = [{{ uri = \"sip:127.0.0.1:{registrar}\" }}]\n[policy]\npath = \"always\"\n"
        ),
    );
    wait_for_registrars(&viahop);
    let (bob, carol, site) = (Folder::new("bob"), Folder::new("carol"), Folder::new("site"));
    let _bob = baresip(&bob, ip, "bob", plain, &[]);
    fs::copy(jssip, site.0.join("jssip.js")).unwrap();
    site.write("index.html", &PAGE.replace("LISTEN", &listen.to_string()));
    let mut server = Command::new("python3");
    server.args(["-m", "http.server", &web.to_string(), "--bind", "127.0.0.1"]).current_dir(&site.0);
    let _server = Process::start(server.stdout(Stdio::null()).stderr(Stdio::null()));
    std::thread::sleep(Duration::from_secs(1));
    let log = papers.folder.0.join("chromium");
    let mut browser = Command::new("chromium");
    browser.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--ignore-certificate-errors"]);
    browser.args(["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", "--enable-logging=stderr"]);
    browser.arg(format!("--user-data-dir={}", papers.path("profile"))).arg(format!("http://localhost:{web}/"));
    let mut browser = Process::start(browser.stdout(Stdio::null()).stderr(File::create(&log).unwrap()));
    let wait_for = |what: &str| {
        let until = Instant::now() + 2 * PATIENCE;
        let said = || String::from_utf8_lossy(&fs::read(&log).unwrap()).contains(&format!("said {what}"));
        while !said() {
            assert!(Instant::now() < until, "{what}: {}\n{}", fs::read_to_string(&log).unwrap(), viahop.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    for what in ["registered", "caller confirmed", "caller hears", "caller ended"] {
        wait_for(what);
    }
    let _carol = baresip(&carol, ip, "carol", plain, &["-e", "/dial sip:alice@load.example", "-t", "20"]);
    for what in ["callee confirmed", "callee hears", "callee ended"] {
        wait_for(what);
    }
    assert_eq!(viahop.metric("viahop_connections", ""), 1.0);
    browser.signal("TERM");
    let gone = viahop.wait_until("its flow is gone", PATIENCE, |_| viahop.metric("viahop_connections", "") == 0.0);
    assert!(gone < Duration::from_secs(1), "{gone:?}");
    browser.wait(PATIENCE);
    viahop.end();
}
