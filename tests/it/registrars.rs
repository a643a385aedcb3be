//! viahop in front of two real registrars: Kamailio, with sipsak and SIPp as the phones.

use crate::dialogs::{assert_completed, caller};
use crate::live::{Folder, PATIENCE, Process, Viahop, alone, config, free_port, output, wait_for_port};
use crate::support::has_peer;
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use viahop::sys::uninterrupted;

/// A registrar and proxy in a few lines: locations in memory, nothing shared with the other. What is in capitals is filled
/// in by `kamailio`.
const KAMAILIO: &str = r#"
children=1
log_stderror=yes
debug=0
disable_tcp=yes
maxbuffer=8388608
listen=udp:ADDRESS:PORT
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
loadmodule "auth.so"
modparam("registrar", "use_path", 1)
modparam("registrar", "path_mode", 0)
request_route {
    if (!mf_process_maxfwd_header("10")) { sl_send_reply("483", "Too Many Hops"); exit; }
    if (is_method("OPTIONS") && $rU == $null) { sl_send_reply("200", "OK"); exit; }
    if (is_method("REGISTER")) { CHALLENGE append_to_reply("X-Registrar: PORT\r\n"); save("location"); exit; }
    if (loose_route()) { t_relay(); exit; }
    if (is_method("INVITE")) { record_route(); }
    if (!lookup("location")) { sl_send_reply("404", "Not Found"); exit; }
    t_relay();
}
"#;

/// With it, a user has to prove that the password is "secret".
pub const DIGEST: &str =
    r#"if (!pv_www_authenticate("load.example", "secret", "0")) { www_challenge("load.example", "0"); exit; }"#;

pub fn kamailio(folder: &Folder, address: &str, port: u16, challenge: &str) -> Process {
    started(folder, address, port, &KAMAILIO.replace("CHALLENGE", challenge))
}

fn started(folder: &Folder, address: &str, port: u16, config: &str) -> Process {
    let config = config.replace("ADDRESS", address).replace("PORT", &port.to_string());
    let path = folder.write(&format!("kamailio-{port}.cfg"), &config);
    let runtime = folder.0.join(format!("run-{port}"));
    std::fs::create_dir_all(&runtime).unwrap();
    let mut command = Command::new("kamailio");
    command.args(["-DD", "-E", "-m", "64", "-M", "8", "-f"]).arg(&path).arg("-Y").arg(&runtime);
    command.stdout(Stdio::null()).stderr(std::fs::File::create(folder.0.join(format!("log-{port}"))).unwrap());
    let process = Process::start(&mut command);
    if address == "127.0.0.1" {
        wait_for_port(port);
    }
    process
}

/// All locations are with one registrar each: what concerns a user has to reach the registrar of that user.
const POOL: &str = "affinity = \"aor\"\nhealth = { interval = \"500ms\", timeout = \"200ms\" }";

pub fn wait_for_registrars(viahop: &Viahop) {
    viahop.wait_until("all answer OPTIONS", PATIENCE, |status| {
        let answers = |one: &serde_json::Value| {
            one["last_probe"].as_str().is_some_and(|text| text.starts_with("options_ok")) && one["state"] == "up"
        };
        status["backends"].as_array().unwrap().iter().all(answers)
    });
}

#[test]
fn ten_thousand_phones_register_by_digest_and_are_called_through_their_path() {
    if !has_peer("kamailio") || !has_peer("sipp") {
        return;
    }
    let _alone = alone();
    const PHONES: u32 = 10_000;
    const CALLS: u32 = 500;
    let folder = Folder::new("digest");
    let ports = [free_port(), free_port()];
    let registrars: Vec<Process> = ports.iter().map(|&port| kamailio(&folder, "127.0.0.1", port, DIGEST)).collect();
    let listen = free_port();
    let viahop = Viahop::start("digest", &config(listen, &ports, POOL));
    wait_for_registrars(&viahop);
    let users = |step: u32| -> String {
        let users = (0..PHONES)
            .step_by(step as usize)
            .map(|user| format!("user{user};[authentication username=user{user} password=secret]\n"));
        ["SEQUENTIAL\n".to_owned()].into_iter().chain(users).collect()
    };
    folder.write("all.csv", &users(1));
    folder.write("some.csv", &users(PHONES / CALLS));
    // All phones are at one address; what they give as their Contact is reached by nobody.
    let phone = free_port();
    let mut client = caller(
        &folder,
        "uac_register",
        listen,
        PHONES,
        800,
        &["-l", "100", "-inf", "all.csv", "-p", &phone.to_string()],
    );
    assert_completed(&folder, &mut client, u64::from(PHONES));
    let registers = ports.map(|port| viahop.metric("viahop_messages_forwarded_total", &format!("127.0.0.1:{port}\"")));
    assert!(registers.iter().sum::<f64>() >= 2.0 * f64::from(PHONES) && registers.iter().all(|&one| one > 9000.0));
    println!("{PHONES} digest registrations, 0 failed; at the registrars: {registers:?}");
    let phones = crate::dialogs::Servers::start_at(phone, "uas_rr");
    let other = Folder::new("outside");
    std::fs::copy(folder.0.join("some.csv"), other.0.join("some.csv")).unwrap();
    let mut client = caller(&other, "uac_users", listen, CALLS, 100, &["-inf", "some.csv", "-d", "500"]);
    assert_completed(&other, &mut client, u64::from(CALLS));
    phones.judge().assert_clean(CALLS as usize, CALLS as usize);
    drop(registrars);
    viahop.end();
}

/// sipsak that sends to this port, and tells what it gets.
fn sipsak(listen: u16) -> Command {
    let mut command = Command::new("sipsak");
    command.args(["-p", &format!("127.0.0.1:{listen}"), "-vvv"]);
    command
}

/// A phone at this port of 127.0.0.1: says yes to one request, and what it was.
fn answer_one(port: u16) -> JoinHandle<Option<String>> {
    let socket = UdpSocket::bind(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    std::thread::spawn(move || {
        let mut room = vec![0; 8192];
        let (len, from) = uninterrupted(|| socket.recv_from(&mut room)).ok()?;
        let text = String::from_utf8_lossy(&room[..len]).into_owned();
        let rows = text.split("\r\n").skip(1).filter(|row| !row.starts_with("Max-Forwards"));
        let answer = ["SIP/2.0 200 Here"].into_iter().chain(rows).collect::<Vec<_>>().join("\r\n");
        socket.send_to(answer.as_bytes(), from).ok()?;
        Some(text)
    })
}

#[test]
fn phones_register_with_and_are_reached_through_two_kamailios() {
    if !has_peer("kamailio") || !has_peer("sipsak") {
        return;
    }
    let folder = Folder::new("registrars");
    let ports = [free_port(), free_port()];
    let registrars: Vec<Process> = ports.iter().map(|&port| kamailio(&folder, "127.0.0.1", port, "")).collect();
    let listen = free_port();
    let viahop = Viahop::start("registrars", &config(listen, &ports, POOL));
    wait_for_registrars(&viahop);
    let sipsak = |args: &[&str]| output(sipsak(listen).args(args));
    let mut homes = std::collections::BTreeSet::new();
    // Twelve of them have one registrar in one of two thousand runs.
    for user in 0.. {
        if user >= 12 && homes.len() == 2 {
            break;
        }
        assert!(user < 60, "one registrar has them all: {homes:?}");
        let uri = format!("sip:user{user}@127.0.0.1");
        let phone = free_port();
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
        let answering = answer_one(phone);
        let (code, stdout, stderr) = sipsak(&["-s", &uri]);
        let arrived = answering.join().unwrap();
        assert_eq!(code, 0, "{stdout}{stderr}\n{arrived:?}");
        assert!(stdout.contains("200 Here"), "{stdout}");
        // Phone's view: the registrar's Via, ours, the caller's.
        assert_eq!(arrived.unwrap().matches("\r\nVia: ").count(), 3);
    }
    drop(registrars);
    viahop.end();
}

#[test]
fn a_registrar_sends_a_request_on_to_a_user_of_the_other_from_a_second_port() {
    if !has_peer("kamailio") || !has_peer("sipsak") {
        return;
    }
    let folder = Folder::new("sent-on");
    let listen = free_port();
    // What a registrar sends from the port it is known by here is from inside, and goes where it names and nowhere else.
    let registrars = [free_port(), free_port()].map(|port| {
        let second = free_port();
        let config = KAMAILIO
            .replace("CHALLENGE", "")
            .replace("listen=udp:ADDRESS:PORT\n", &format!("listen=udp:ADDRESS:PORT\nlisten=udp:ADDRESS:{second}\n"))
            .replace(
                "    if (!lookup(",
                &format!(
                    r#"    if ($rU =~ "^to-") {{
        $rU = $(rU{{s.substr,3,0}});
        $du = "sip:ADDRESS:{listen}";
        $fs = "udp:ADDRESS:{second}";
        append_hf("X-Sent-On: PORT\r\n");
        t_relay();
        exit;
    }}
    if (!lookup("#
                ),
            );
        (port, started(&folder, "127.0.0.1", port, &config))
    });
    let viahop = Viahop::start("sent-on", &config(listen, &[registrars[0].0, registrars[1].0], POOL));
    wait_for_registrars(&viahop);
    let mut is_crossed = false;
    for user in 0.. {
        if user >= 4 && is_crossed {
            break;
        }
        assert!(user < 40, "every user lives where the number that leads there does");
        let phone = free_port();
        let mut command = sipsak(listen);
        command.args(["-U", "-C", &format!("sip:user{user}@127.0.0.1:{phone}"), "-x", "60"]);
        let (code, stdout, stderr) = output(command.args(["-s", &format!("sip:user{user}@127.0.0.1")]));
        assert_eq!(code, 0, "{stdout}{stderr}");
        let answering = answer_one(phone);
        let (code, stdout, stderr) = output(sipsak(listen).args(["-s", &format!("sip:to-user{user}@127.0.0.1")]));
        assert_eq!(code, 0, "{stdout}{stderr}");
        let arrived = answering.join().unwrap().unwrap();
        // The phone's registrar, us, the one that sent it on, us, the caller.
        assert_eq!(arrived.matches("\r\nVia: ").count(), 5, "{arrived}");
        let registrar = arrived.split_once("\r\nVia: SIP/2.0/UDP 127.0.0.1:").unwrap().1;
        let registrar = &registrar[..registrar.find(';').unwrap()];
        is_crossed |= !arrived.contains(&format!("X-Sent-On: {registrar}\r\n"));
    }
    drop(registrars);
    viahop.end();
}
