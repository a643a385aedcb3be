//! viahop in front of two real registrars: Kamailio, with sipsak as the phone.

use crate::live::{Folder, PATIENCE, Process, Viahop, config, free_port, output, wait_for_port};
use crate::support::has_peer;
use std::process::{Command, Stdio};

/// A registrar and proxy in a few lines: locations in memory, nothing shared with the other.
const KAMAILIO: &str = r#"
children=1
log_stderror=yes
debug=0
listen=udp:127.0.0.1:PORT
mpath="/usr/lib/x86_64-linux-gnu/kamailio/modules/:/usr/lib/aarch64-linux-gnu/kamailio/modules/"
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "rr.so"
loadmodule "pv.so"
loadmodule "textops.so"
loadmodule "siputils.so"
loadmodule "maxfwd.so"
loadmodule "usrloc.so"
loadmodule "registrar.so"
request_route {
    if (!mf_process_maxfwd_header("10")) { sl_send_reply("483", "Too Many Hops"); exit; }
    if (is_method("OPTIONS") && $rU == $null) { sl_send_reply("200", "OK"); exit; }
    if (is_method("REGISTER")) { append_to_reply("X-Registrar: PORT\r\n"); save("location"); exit; }
    if (loose_route()) { t_relay(); exit; }
    if (is_method("INVITE")) { record_route(); }
    if (!lookup("location")) { sl_send_reply("404", "Not Found"); exit; }
    t_relay();
}
"#;

fn kamailio(folder: &Folder, port: u16) -> Process {
    let path = folder.write(&format!("kamailio-{port}.cfg"), &KAMAILIO.replace("PORT", &port.to_string()));
    let runtime = folder.0.join(format!("run-{port}"));
    std::fs::create_dir_all(&runtime).unwrap();
    let mut command = Command::new("kamailio");
    command.args(["-DD", "-E", "-m", "32", "-M", "4", "-f"]).arg(&path).arg("-Y").arg(&runtime);
    command.stdout(Stdio::null()).stderr(std::fs::File::create(folder.0.join(format!("log-{port}"))).unwrap());
    let process = Process::start(&mut command);
    wait_for_port(port);
    process
}

#[test]
fn phones_register_with_and_are_reached_through_two_kamailios() {
    if !has_peer("kamailio") || !has_peer("sipsak") {
        return;
    }
    let folder = Folder::new("registrars");
    let ports = [free_port(), free_port()];
    let registrars: Vec<Process> = ports.iter().map(|&port| kamailio(&folder, port)).collect();
    let listen = free_port();
    // Locations are not shared: all that concerns a user has to reach the registrar of that user.
    let pool = "affinity = \"aor\"\nhealth = { interval = \"500ms\", timeout = \"200ms\" }";
    let viahop = Viahop::start("registrars", &config(listen, &ports, pool));
    viahop.wait_until("both answer OPTIONS", PATIENCE, |status| {
        status["backends"]
            .as_array()
            .unwrap()
            .iter()
            .all(|one| one["last_probe"].as_str().is_some_and(|text| text.starts_with("options_ok")))
    });
    let sipsak = |args: &[&str]| {
        let mut command = Command::new("sipsak");
        output(command.args(["-p", &format!("127.0.0.1:{listen}"), "-vvv"]).args(args))
    };
    let mut homes = std::collections::BTreeSet::new();
    for user in 0..12 {
        let uri = format!("sip:user{user}@127.0.0.1");
        let phone = free_port().to_string();
        // -U registers; a 200 from the registrar is exit code 0.
        let (code, stdout, stderr) =
            sipsak(&["-U", "-C", &format!("sip:user{user}@127.0.0.1:{phone}"), "-x", "60", "-s", &uri]);
        assert_eq!(code, 0, "{stdout}{stderr}");
        let home =
            stdout.lines().find_map(|line| line.strip_prefix("X-Registrar: ")).unwrap_or_default().trim().to_owned();
        homes.insert(home.clone());
        // A second registration of the user comes to the same one.
        let (_, again, _) = sipsak(&["-U", "-C", &format!("sip:user{user}@127.0.0.1:{phone}"), "-x", "60", "-s", &uri]);
        assert!(again.contains(&format!("X-Registrar: {home}")), "{again}");
        // An OPTIONS to the user is looked up by its registrar and arrives at the phone.
        let socket = std::net::UdpSocket::bind(format!("127.0.0.1:{phone}")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let answering = std::thread::spawn(move || {
            let mut room = vec![0; 8192];
            let (len, from) = socket.recv_from(&mut room).ok()?;
            let text = String::from_utf8_lossy(&room[..len]).into_owned();
            let rows = text.split("\r\n").skip(1).filter(|row| !row.starts_with("Max-Forwards"));
            let answer = ["SIP/2.0 200 Here"].into_iter().chain(rows).collect::<Vec<_>>().join("\r\n");
            socket.send_to(answer.as_bytes(), from).ok()?;
            Some(text)
        });
        let (code, stdout, stderr) = sipsak(&["-s", &uri]);
        let arrived = answering.join().unwrap();
        assert_eq!(code, 0, "{stdout}{stderr}\n{arrived:?}");
        assert!(stdout.contains("200 Here"), "{stdout}");
        // Phone's view: the registrar's Via, ours, the caller's.
        assert_eq!(arrived.unwrap().matches("\r\nVia: ").count(), 3);
    }
    assert_eq!(homes.len(), 2, "both registrars are in use: {homes:?}");
    drop(registrars);
    viahop.end();
}
