//! From what is written to what is meant. Every value is looked at even when an earlier one is wrong, so that one run of
//! `viahop check` tells of all of them. What never gets here is a file that `toml` does not make a [`file::File`] of: it stops
//! at the first unknown key, value of a wrong type, or line that is no TOML, and that is all that is told then.

mod balancer;
mod pool;
mod route;
mod syntax;
mod tls;
mod value;
mod words;

pub use pool::WEIGHT_MAX;
pub use syntax::toml_problem;
pub use words::{closest, did_you_mean};

use super::address;
use super::file::{self, Value};
use super::problem::Problem;
use super::{Config, EgressMode, Listen, Log, LogFormat, Policy, Socket, Steering, Streams};
use crate::dataplane::limits::LISTENERS_MAX;
use crate::dataplane::sip::uri::Scheme;
use crate::dataplane::tables::{Capture, ForeignRoute, Network, PathPolicy, Side};
use crate::dataplane::transport::Transport;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;
use toml::Spanned;
use value::Reader;

/// How long a shard lets messages gather: as long as network cards that moderate interrupts do; a fifth of a millisecond of a round
/// trip.
const LINGER: Duration = Duration::from_micros(100);

/// The longest: what else a shard has to do waits as long.
const LINGER_MAX: Duration = Duration::from_millis(1);

/// The words for [`EgressMode`].
const EGRESS_MODES: [(&str, EgressMode); 2] = [("own", EgressMode::Own), ("shared", EgressMode::Shared)];

/// Octets of a path in a socket's address, without the zero that ends it: unix(7).
pub const SOCKET_PATH_MAX: usize = 107;

/// What `file` means, and what is wrong with it. Without a configuration there is an error among the problems.
pub fn read(file: &file::File, text: &str) -> (Option<Config>, Vec<Problem>) {
    let mut reader = Reader { text, problems: Vec::new() };
    let config = reader.config(file);
    (config, reader.problems)
}

impl Reader<'_> {
    fn config(&mut self, file: &file::File) -> Option<Config> {
        // Tokens name listeners by number: one for streams that comes to a configuration moves none for datagrams.
        let mut listen: Vec<&file::Listen> = file.listen.iter().collect();
        listen.sort_by_key(|one| !one.address.get_ref().starts_with("udp:"));
        let listeners = self.listeners(&listen);
        let pools = self.pools(&file.pool);
        let listener_names: Vec<String> = listen.iter().map(|one| listener_name(one)).collect();
        let pool_names: Vec<String> = file.pool.iter().enumerate().map(|(index, one)| pool::name(one, index)).collect();
        let routes = self.routes(&file.route, &listener_names, &pool_names);
        let balancer = &file.balancer;
        let gso = balancer.gso.as_ref().is_some_and(|gso| *gso.get_ref());
        for pad in file.pool.iter().filter_map(|pool| pool.pad.as_ref()).filter(|pad| *pad.get_ref() && !gso) {
            let help = "add `gso = true` to [balancer], which the flag does not stand in for, or leave it out";
            self.error(pad.span(), "`pad` without `gso`", "only runs are padded").help = Some(help.into());
        }
        let (egress_v4, egress_v6) = self.egress(&balancer.egress);
        Some(Config {
            cores: self.cores(balancer),
            policy: self.policy(&file.policy),
            streams: self.streams(&file.streams, &file.pool),
            admin: self.admin(&file.admin),
            socket: self.socket(&file.admin),
            secret: self.secret(balancer),
            token_keys: self.token_keys(&balancer.token_keys),
            egress_v4,
            egress_v6,
            egress_mode: self.word(&balancer.egress_mode, EgressMode::Own, &EGRESS_MODES),
            egress_ports: self.ports(&balancer.egress_ports),
            steering: self.word(&balancer.steering, Steering::Auto, &Steering::WORDS),
            gso,
            linger: self.duration(&balancer.linger, LINGER, Duration::ZERO..=LINGER_MAX),
            receive_buffer: self.buffer(&balancer.receive_buffer, 2 << 20),
            send_buffer: self.buffer(&balancer.send_buffer, 1 << 20),
            drain: self.duration(
                &balancer.drain,
                Duration::from_secs(32),
                Duration::ZERO..=Duration::from_secs(86_400),
            ),
            nameservers: self.nameservers(&balancer.nameservers, &file.pool),
            capture: self.capture(&file.capture),
            log: self.log(&file.log),
            listeners: listeners?,
            pools: pools?,
            routes,
        })
    }

    fn listeners(&mut self, listen: &[&file::Listen]) -> Option<Vec<Listen>> {
        let Some(first) = listen.first() else {
            let help = "[[listen]]\naddress = \"udp:0.0.0.0:5060\"";
            self.problems.push(nowhere("nothing to listen on").help(format!("add a listener:\n{help}")));
            return None;
        };
        if listen.len() > LISTENERS_MAX {
            self.error(first.address.span(), format!("{} listeners", listen.len()), format!("at most {LISTENERS_MAX}"));
        }
        let mut names = HashMap::new();
        let mut ports = HashMap::new();
        let mut listeners = Vec::new();
        for one in listen {
            let Some((transport, address)) = self.address(&one.address, address::listen) else { continue };
            let text = format!("{transport}:{address}");
            if let Some(other) = ports.insert((transport.protocol(), address), text.clone()) {
                let (title, label) = match other == text {
                    true => (format!("`{text}` is listened on twice"), "leave one of them out"),
                    // The kernel would spread connections over the two by chance.
                    false => (format!("`{other}` and `{text}` are one TCP port"), "give it a port of its own"),
                };
                self.error(one.address.span(), title, label);
                continue;
            }
            let name = self.name(&one.name, &mut names, || text, one.address.span());
            if let Some(written) = one.name.as_ref().filter(|name| name.get_ref() == "egress") {
                let label = "metrics call the ports towards backends that";
                self.error(written.span(), "a listener cannot be called `egress`", label);
            }
            let host_port = match transport {
                Transport::Udp | Transport::Tcp => address::host_port,
                Transport::Tls => address::tls_host_port,
                Transport::Ws => address::ws_host_port,
                Transport::Wss => address::wss_host_port,
            };
            let advertise = one.advertise.as_ref().and_then(|value| self.address(value, host_port));
            let side = self.word(&one.side, Side::Outside, &[("outside", Side::Outside), ("inside", Side::Inside)]);
            let tls = self.server(one, transport, advertise.as_ref());
            let (proxies, origins) = (self.proxies(one, transport), self.origins(one, transport));
            let at = one.address.span();
            listeners.push(Listen { name, transport, address, advertise, side, tls, proxies, origins, at });
        }
        if listeners.iter().all(|listener| listener.side == Side::Inside) && !listeners.is_empty() {
            let label = "clients need a listener with `side = \"outside\"`";
            self.error(first.address.span(), "all listeners face inside", label);
        }
        Some(listeners)
    }

    fn proxies(&mut self, one: &file::Listen, transport: Transport) -> Vec<Network> {
        let Some(list) = &one.proxy_protocol else { return Vec::new() };
        if transport == Transport::Udp {
            let label = "a datagram has no beginning of a connection to stand at";
            self.error(list.span(), "`proxy_protocol` of a listener on `udp:`", label);
        }
        list.get_ref().iter().filter_map(|network| self.address(network, address::network)).collect()
    }

    /// The pages that may open WebSockets.
    fn origins(&mut self, one: &file::Listen, transport: Transport) -> Vec<String> {
        let Some(list) = &one.origins else {
            if transport.is_websocket() {
                let label = "without it, any page on the Web could use a phone's network";
                let problem = Problem::error(one.address.span(), "nothing says which pages may open WebSockets", label);
                self.problems.push(problem.help("add `origins = [\"https://phone.example.net\"]`; `[\"*\"]`: all"));
            }
            return Vec::new();
        };
        if !transport.is_websocket() {
            let label = "only `ws:` and `wss:` have a use for it";
            self.error(list.span(), format!("`origins` of a listener on `{transport}:`"), label);
        }
        for origin in list.get_ref() {
            let text = origin.get_ref();
            let host = text.split_once("://").map(|(_, host)| host);
            if text != "*" && host.is_none_or(|host| host.is_empty() || host.contains('/')) {
                self.error(
                    origin.span(),
                    format!("`{text}` is no origin"),
                    "like `https://phone.example.net`, without a path",
                );
            }
        }
        list.get_ref().iter().map(|origin| origin.get_ref().to_ascii_lowercase()).collect()
    }

    fn streams(&mut self, streams: &file::Streams, pools: &[file::Pool]) -> Streams {
        let second = Duration::from_secs(1);
        let written = [("max_proxied", streams.max_proxied.as_ref().map(Spanned::span))];
        let written = written.into_iter().chain([("proxied_idle", streams.proxied_idle.as_ref().map(Spanned::span))]);
        for (key, at) in written.filter_map(|(key, at)| Some((key, at?))) {
            if pools.iter().all(|pool| pool.send_proxy.is_none()) {
                self.warn(at, format!("`{key}` has no effect here"), "heeded only where a pool has `send_proxy`");
            }
        }
        Streams {
            max_connections: self.number(&streams.max_connections, 20_000, 1, 1_000_000, "`max_connections`") as usize,
            max_per_source: self.number(&streams.max_per_source, 1000, 1, 1_000_000, "`max_per_source`"),
            // RFC 3261 18: connections stay for the longest a transaction takes, at least.
            idle: self.duration(&streams.idle, 3600 * second, 32 * second..=7 * 86_400 * second),
            frame_timeout: self.duration(&streams.frame_timeout, 5 * second, second..=60 * second),
            connect_timeout: self.duration(&streams.connect_timeout, 2 * second, second / 10..=30 * second),
            handshake_timeout: self.duration(&streams.handshake_timeout, 5 * second, second / 2..=60 * second),
            max_handshakes: self.number(&streams.max_handshakes, 1000, 1, 100_000, "`max_handshakes`") as usize,
            max_proxied: self.number(&streams.max_proxied, 10_000, 1, 1_000_000, "`max_proxied`") as usize,
            // Longer than an INVITE may ring (Timer C): its answer comes back on the connection.
            proxied_idle: self.duration(&streams.proxied_idle, 300 * second, 32 * second..=7 * 86_400 * second),
        }
    }

    fn policy(&mut self, policy: &file::Policy) -> Policy {
        let each = |list: &Value<Vec<Spanned<String>>>| -> Vec<Spanned<String>> {
            list.as_ref().map(|list| list.get_ref().clone()).unwrap_or_default()
        };
        let inside: Vec<Network> =
            each(&policy.inside).iter().filter_map(|one| self.address(one, address::network)).collect();
        let aliases = each(&policy.aliases).iter().filter_map(|one| self.address(one, address::host_port)).collect();
        let paths = [("always", PathPolicy::Always), ("off", PathPolicy::Off), ("supported", PathPolicy::Supported)];
        let foreign = [("ignore", ForeignRoute::Ignore), ("refuse", ForeignRoute::Refuse)];
        let known = [("sip", Scheme::Sip), ("sips", Scheme::Sips), ("tel", Scheme::Tel), ("urn", Scheme::Urn)];
        let schemes = match &policy.schemes {
            None => vec![Scheme::Sip, Scheme::Tel, Scheme::Urn],
            Some(list) => list.get_ref().iter().map(|one| self.word(&Some(one.clone()), Scheme::Sip, &known)).collect(),
        };
        let proxy_require = each(&policy.proxy_require).iter().map(|tag| tag.get_ref().to_ascii_lowercase()).collect();
        Policy {
            inside,
            aliases,
            record_route: policy.record_route.as_ref().is_none_or(|value| *value.get_ref()),
            path: self.word(&policy.path, PathPolicy::Supported, &paths),
            foreign_route: self.word(&policy.foreign_route, ForeignRoute::Ignore, &foreign),
            schemes,
            proxy_require,
        }
    }

    fn admin(&mut self, admin: &file::Admin) -> Option<SocketAddr> {
        let default = SocketAddr::from(([127, 0, 0, 1], 8460));
        let Some(value) = &admin.listen else { return Some(default) };
        if value.get_ref() == "off" {
            return None;
        }
        let Ok(address) = value.get_ref().parse::<SocketAddr>() else {
            let title = format!("`{}` is not an address and a port", value.get_ref());
            self.error(value.span(), title, "write `127.0.0.1:8460`, or `off`");
            return Some(default);
        };
        let remote = admin.allow_remote.as_ref().is_some_and(|allowed| *allowed.get_ref());
        if !address.ip().is_loopback() && !remote {
            let label = "everybody who reaches this address could read names and addresses of your cluster";
            self.error(value.span(), "the admin endpoint would be open to others", label).help = Some(
                "use `127.0.0.1`, or set `allow_remote = true` in `[admin]` if a firewall stands before it".into(),
            );
        }
        Some(address)
    }

    fn socket(&mut self, admin: &file::Admin) -> Socket {
        let Some(value) = &admin.socket else { return Socket::Default };
        let path = value.get_ref();
        if path == "off" {
            return Socket::Off;
        }
        if !path.starts_with('/') {
            self.error(
                value.span(),
                format!("`{path}` is no path from the root"),
                "like `/run/viahop/ctl.sock`, or `off`",
            );
        } else if path.len() > SOCKET_PATH_MAX {
            let title = format!("the path of the socket has {} octets", path.len());
            self.error(value.span(), title, format!("the kernel takes {SOCKET_PATH_MAX} at most"));
        }
        Socket::Path(path.into())
    }

    fn capture(&mut self, capture: &file::Capture) -> Option<Capture> {
        let node = self.number(&capture.node, 1, 1, u32::MAX.into(), "`node`");
        let share = self.number(&capture.share, 100, 1, 100, "`share`");
        let Some(hep) = &capture.hep else {
            for alone in [&capture.node, &capture.share].into_iter().flatten() {
                self.error(alone.span(), "nobody gets copies", "`hep = \"udp:ADDRESS:PORT\"` says who");
            }
            return None;
        };
        let to = hep.get_ref().strip_prefix("udp:").and_then(|address| address.parse::<SocketAddr>().ok());
        let Some(to) = to.filter(|to| to.port() != 0 && !to.ip().is_unspecified()) else {
            let title = format!("`{}` is not where a collector listens", hep.get_ref());
            self.error(hep.span(), title, "an address and a port, like `udp:10.0.0.5:9060`");
            return None;
        };
        Some(Capture { to, node, share })
    }

    fn log(&mut self, log: &file::Log) -> Log {
        use tracing::Level;
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        let levels = [("error", Level::ERROR), ("warn", Level::WARN), ("info", Level::INFO), ("debug", Level::DEBUG)];
        Log {
            format: self.word(&log.format, LogFormat::Text, &formats),
            level: self.word(&log.level, Level::INFO, &levels),
        }
    }
}

/// What `[[route]]` and everything we print call a listener: its name or, without one, its address as it is read. One that
/// cannot be read is called what is written, since that mistake has been told.
fn listener_name(one: &file::Listen) -> String {
    let written = one.address.get_ref();
    let by_address = || address::listen(written).map_or(written.clone(), |(transport, at)| format!("{transport}:{at}"));
    one.name.as_ref().map_or_else(by_address, |name| name.get_ref().clone())
}

fn nowhere(title: impl Into<String>) -> Problem {
    Problem { at: None, ..Problem::error(0..0, title, "") }
}

#[cfg(test)]
mod tests {
    use crate::control::config::problem::{Severity, Source};
    use crate::control::config::{Loaded, Socket, parse};
    use crate::dataplane::tables::ProxyHeader;

    const LISTEN: &str = "[[listen]]\naddress = \"udp:0.0.0.0:5060\"\n";
    const POOL: &str = "[[pool]]\nbackend = [{ uri = \"sip:10.0.0.11\" }]\n";

    fn load(text: &str) -> Loaded {
        parse(Source { name: "viahop.toml".into(), text: text.into() })
            .unwrap_or_else(|report| panic!("{}", report.render(false)))
    }

    /// `line:column title | label` of each problem in `text`.
    fn problems(text: &str) -> Vec<String> {
        let report = match parse(Source { name: "viahop.toml".into(), text: text.into() }) {
            Ok(loaded) => crate::control::config::problem::Report { source: loaded.source, problems: loaded.warnings },
            Err(report) => report,
        };
        let rows: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let rows = rows.as_array().unwrap().iter();
        rows.map(|row| format!("{}:{} {} | {}", row["line"], row["column"], text(&row["message"]), text(&row["label"])))
            .collect()
    }

    #[test]
    fn a_short_file_has_sensible_defaults() {
        let Loaded { config, warnings, .. } = load(&format!("{LISTEN}{POOL}"));
        assert!(warnings.is_empty());
        assert_eq!(config.listeners[0].name, "udp:0.0.0.0:5060");
        assert_eq!((&config.pools[0].name[..], &config.pools[0].backends[0].name[..]), ("default", "10.0.0.11:5060"));
        assert_eq!(config.pools[0].backends[0].weight, 100);
        let health = config.pools[0].health.as_ref().unwrap();
        assert!(health.is_ok(200) && health.is_ok(404) && !health.is_ok(503) && health.is_ok(501));
        assert_eq!(config.admin, Some("127.0.0.1:8460".parse().unwrap()));
    }

    /// Each row: what is written behind a listener and a pool that are right, and what is said about it. The listener
    /// takes lines 1 and 2, the pool 3 and 4.
    #[test]
    fn errors_say_where_what_and_what_instead() {
        let rows = [
            ("[balancer]\nshard = 2", "6:1 unknown key `shard` | help: a key with a similar name exists: `shards`"),
            ("[balancer]\nshards = \"two\"", "6:10 this is a string | expected a whole number, without quotes"),
            ("[balancer]\nshards = 0", "6:10 shard count 0 is out of range | a number from 1 to 1024"),
            ("[balancer]\ncores = [1, 1]", "6:13 core 1 is named twice | one shard runs on a core"),
            ("[balancer]\ncores = [-1]", "6:10 a core has a number from 0 on | see `lscpu`"),
            ("[balancer]\ntoken_keys = [{ id = 16 }]", "6:22 key id 16 is out of range | a number from 0 to 15"),
            ("[balancer]\ntoken_keys = [{ id = 1 }, { id = 1 }]", "6:34 two token keys of the id 1 | the second"),
            (
                "[balancer]\ntoken_keys = []",
                "6:14 no token key is named | leave `token_keys` out for the one made of the secret",
            ),
            ("[balancer]\nsecret = \"short\"", "6:10 the secret has 5 octets | at least 16"),
            (
                "[balancer]\negress = [\"10.0.0.1:5\"]",
                "6:11 `10.0.0.1:5` is not an address | an address of this machine, without a port",
            ),
            (
                "[balancer]\ndrain = \"soon\"",
                "6:9 `soon` is not a time | a number with its unit, like `500ms`, `2s` or `1m`",
            ),
            ("[balancer]\nlinger = \"2ms\"", "6:10 `2ms` is out of range | a time from 0s to 1ms"),
            (
                "[[listen]]\nadress = \"udp:0.0.0.0\"",
                "6:1 unknown key `adress` | help: a key with a similar name exists: `address`",
            ),
            (
                "[[listen]]\nname = \"egress\"\naddress = \"udp:0.0.0.0:5061\"",
                "6:8 a listener cannot be called `egress` | metrics call the ports towards backends that",
            ),
            ("[[listen]]\nname = \"x\"", "5:1 `address` is missing | `address = …` belongs here"),
            (
                "[[listen]]\naddress = \"udp:0.0.0.0:5061\"\nproxy_protocol = [\"10.0.0.1\"]",
                "7:18 `proxy_protocol` of a listener on `udp:` | a datagram has no beginning of a connection to stand at",
            ),
            (
                "[[listen]]\naddress = \"udp:0.0.0.0:5060\"",
                "6:11 `udp:0.0.0.0:5060` is listened on twice | leave one of them out",
            ),
            (
                "[[listen]]\naddress = \"tcp:0.0.0.0\"\n[[listen]]\naddress = \"ws:0.0.0.0:5060\"\norigins = [\"*\"]",
                "8:11 `tcp:0.0.0.0:5060` and `ws:0.0.0.0:5060` are one TCP port | give it a port of its own",
            ),
            (
                "[[listen]]\naddress = \"ws:0.0.0.0:5060\"",
                "6:11 nothing says which pages may open WebSockets | without it, any page on the Web could use a phone's network",
            ),
            (
                "[[listen]]\naddress = \"ws:0.0.0.0\"\norigins = [\"phone.example.net\"]",
                "7:12 `phone.example.net` is no origin | like `https://phone.example.net`, without a path",
            ),
            (
                "[[listen]]\naddress = \"tcp:0.0.0.0\"\norigins = [\"*\"]",
                "7:11 `origins` of a listener on `tcp:` | only `ws:` and `wss:` have a use for it",
            ),
            ("[[listen]]\naddress = \"tls:0.0.0.0\"", "6:11 no certificate to speak TLS with | listens by TLS"),
            (
                "[[listen]]\naddress = \"tcp:0.0.0.0\"\ntls = { certificate = \"a\", key = \"b\" }",
                "7:23 `tls` of a listener on `tcp:` | only `tls:` and `wss:` have a use for it",
            ),
            ("[[pool]]\npad = true\nbackend = [{ uri = \"sip:a\" }]", "6:7 `pad` without `gso` | only runs are padded"),
            (
                "[[pool]]\nsend_proxy = \"on\"\nbackend = [{ uri = \"sip:a;transport=tcp\" }]",
                "6:14 `on` is none of the values there are | there are: `off`, `v1`, `v2`",
            ),
            (
                "[[pool]]\nsend_proxy = \"v2\"\nbackend = [{ uri = \"sip:a\" }]",
                "7:20 `a:5060` is reached over UDP, and its pool has `send_proxy` | no server reads a PROXY header in datagrams",
            ),
            (
                "[[pool]]\nsend_proxy = \"v2\"\nbackend = [{ uri = \"sip:a;transport=tcp\" }]\n[streams]\nmax_proxied = 0",
                "9:15 `max_proxied` 0 is out of range | a number from 1 to 1000000",
            ),
            (
                "[[pool]]\nsend_proxy = \"v2\"\nbackend = [{ uri = \"sip:a;transport=tcp\" }]\n[streams]\nproxied_idle = \"1s\"",
                "9:16 `1s` is out of range | a time from 32s to 7days",
            ),
            (
                "[[pool]]\nbackend = [{ uri = \"sips:a\" }]",
                "6:20 nothing says whose certificates to trust of `a:5061` | is reached by TLS",
            ),
            (
                "[[pool]]\nbackend = [{ uri = \"sip:10.0.0.12:506O\" }]",
                "6:38 port `506O` is not a number | the letter O, not the digit 0",
            ),
            (
                "[[pool]]\nbackend = [{ uri = \"sip:a\", wieght = 5 }]",
                "6:29 unknown key `wieght` | help: a key with a similar name exists: `weight`",
            ),
            (
                "[[pool]]\nbackend = [{ uri = \"sip:a\", weight = 0 }]",
                "6:38 weight 0 would get no calls | leave the backend out",
            ),
            (
                "[[pool]]\nbackend = [{ uri = \"sip:a\", weight = -5 }]",
                "6:38 weight -5 is out of range | a number from 1 to 10000",
            ),
            (
                "[[pool]]\nbackend = [{ uri = \"sip:a\" }, { uri = \"sip:a:5060\" }]",
                "6:39 backend `a:5060` stands twice in its pool | leave one of them out, or add up their weights",
            ),
            ("[[pool]]\nname = \"empty\"", "6:8 pool `empty` has no backends | of this pool"),
            (
                "[[pool]]\naffinity = \"callid\"\nbackend = [{ uri = \"sip:a\" }]",
                "6:12 `callid` is none of the values there are | did you mean `call-id`?",
            ),
            (
                "[[pool]]\nhealth = { ok = [\"1xx\"] }\nbackend = [{ uri = \"sip:a\" }]",
                "6:18 `1xx` is no final response | a code like `404`, or a class like `2xx`; from 200 to 699",
            ),
            (
                "[[pool]]\nhealth = { timeout = \"3s\" }\nbackend = [{ uri = \"sip:a\" }]",
                "6:22 `timeout` is longer than `interval` | an answer is waited for until the next probe at most",
            ),
            (
                "[[pool]]\nbackend = [{ uri = \"sip:a\", weight = 99999999999999999999 }]",
                "6:38 this number is far out of range | no key takes one of this size",
            ),
            (
                "[[pool]]\nbackend = [{ uri = \"sip:::1:26000\" }]",
                "6:25 `::1:26000` is not a host and a port | an IPv6 address and a port are written `[::1]:26000`",
            ),
            ("[[pool]]\nbackend = [\"sip:a\"]", "6:12 this is a string | write `{ uri = \"sip:a\" }`"),
            ("[[pool]]\nbackend = { uri = \"sip:a\" }", "6:11 this is a table | expected a list, in `[` and `]`"),
            ("[route]\npool = \"default\"", "5:1 `[route]` is one table | there may be several: write `[[route]]`"),
            ("[[policy]]\npath = \"off\"", "5:1 `[[policy]]` is a list | there is one: write `[policy]`"),
            ("[[pool.health]]\nprobe = false", "5:1 `[[pool.health]]` is a list | there is one: write `[pool.health]`"),
            ("[[route]]\npool = \"proxies\"", "6:8 there is no pool of the name `proxies` | there are: `default`"),
            (
                "[[route]]\npool = \"default\"\nlisten = [\"udp:0.0.0.0:5061\"]",
                "7:11 there is no listener of the name `udp:0.0.0.0:5061` | did you mean `udp:0.0.0.0:5060`?",
            ),
            (
                "[[route]]\nmethods = []\npool = \"default\"",
                "6:11 `methods` is empty, so the rule never holds | leave it out if the rule is for all",
            ),
            (
                "[[pool]]\nname = \"regs\"\nbackend = [{ uri = \"sip:a\" }]\n[[route]]\nmethods = [\"register\"]\npool = \"regs\"",
                "9:12 `register` is no method viahop tells apart | did you mean `REGISTER`?",
            ),
            (
                "[policy]\ninside = [\"10.0.0.0/33\"]",
                "6:12 `10.0.0.0/33` is not a network | write it like `10.0.0.0/8` or `2001:db8::/32`",
            ),
            (
                "[admin]\nlisten = \"0.0.0.0:8460\"",
                "6:10 the admin endpoint would be open to others | everybody who reaches this address could read names and addresses of your cluster",
            ),
            ("[capture]\nshare = 5", "6:9 nobody gets copies | `hep = \"udp:ADDRESS:PORT\"` says who"),
            (
                "[capture]\nhep = \"10.0.0.5:9060\"",
                "6:7 `10.0.0.5:9060` is not where a collector listens | an address and a port, like `udp:10.0.0.5:9060`",
            ),
            (
                "[capture]\nhep = \"udp:10.0.0.5:9060\"\nshare = 0",
                "7:9 `share` 0 is out of range | a number from 1 to 100",
            ),
            (
                "[balancer]\nshards = 2\ncores = [0]",
                "6:10 `cores` and `shards` are both given | `cores` says how many there are already",
            ),
            ("[balancer]\ncores = []", "6:9 no core is named | leave `cores` out to use all of them"),
            (
                "[balancer]\nsecret = \"0123456789abcdef\"\nsecret_file = \"x\"",
                "6:10 `secret` and `secret_file` are both given | keep one of them",
            ),
            (
                "[balancer]\negress = [\"10.0.0.1\", \"::1\", \"10.0.0.2\"]",
                "6:30 two addresses of one family to send from | one address for IPv4 and one for IPv6",
            ),
            (
                "[balancer]\negress_ports = \"40015-40000\"",
                "6:16 `40015-40000` is not a range of ports | like `40000-40015`: from 1 to 65535, the lower one first",
            ),
            (
                "[balancer]\negress_ports = \"0-5\"",
                "6:16 `0-5` is not a range of ports | like `40000-40015`: from 1 to 65535, the lower one first",
            ),
            (
                "[balancer]\nnameservers = [\"127.0.0.1\"]",
                "6:15 `nameservers` has no effect here | asked only where a pool says `discover`; names elsewhere are this machine's to look up",
            ),
            (
                "[[listen]]\nname = \"a b\"\naddress = \"udp:0.0.0.0:5061\"",
                "6:8 `a b` cannot be a name | letters, digits and `-._:/` make good names",
            ),
            (
                "[[listen]]\nname = \"udp:0.0.0.0:5060\"\naddress = \"udp:0.0.0.0:5061\"",
                "6:8 two of the name `udp:0.0.0.0:5060` | give one of them another `name`",
            ),
            (
                "[[listen]]\naddress = \"ws:0.0.0.0\"\norigins = [\"https://a/b\"]",
                "7:12 `https://a/b` is no origin | like `https://phone.example.net`, without a path",
            ),
            (
                "[[listen]]\naddress = \"ws:0.0.0.0\"\norigins = [\"https://\"]",
                "7:12 `https://` is no origin | like `https://phone.example.net`, without a path",
            ),
            (
                "[[pool]]\nname = \"\"\nbackend = [{ uri = \"sip:a\" }]",
                "6:8 `` cannot be a name | letters, digits and `-._:/` make good names",
            ),
            (
                "[[pool]]\nhealth = { ok = [] }\nbackend = [{ uri = \"sip:a\" }]",
                "6:17 no response would count as alive | leave `ok` out for the default",
            ),
            (
                "[[pool]]\nsend_proxy = \"v2\"\ndiscover = \"sip:example.net\"",
                "7:12 `example.net` is reached over UDP, and its pool has `send_proxy` | no server reads a PROXY header in datagrams",
            ),
            (
                "[[pool]]\nbackend = [{ uri = \"sip:a\", max_message_size = 2000 }]",
                "6:48 `max_message_size` has no effect here | heeded only for what goes to a backend over TCP or TLS",
            ),
            (
                "[admin]\nlisten = \"localhost\"",
                "6:10 `localhost` is not an address and a port | write `127.0.0.1:8460`, or `off`",
            ),
            (
                "[admin]\nsocket = \"ctl.sock\"",
                "6:10 `ctl.sock` is no path from the root | like `/run/viahop/ctl.sock`, or `off`",
            ),
            ("[admin]\nlisten = 8460", "6:10 this is a whole number | expected a string, in quotes"),
            (
                "[log]\nlevel = \"verbose\"",
                "6:9 `verbose` is none of the values there are | there are: `error`, `warn`, `info`, `debug`",
            ),
        ];
        let wrong: Vec<_> = rows
            .into_iter()
            .map(|(text, expected)| (text, problems(&format!("{LISTEN}{POOL}{text}")), expected))
            .filter(|(_, said, expected)| said != &[*expected])
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    /// A file with `key` as docs/configuration.md has it in `section`; with nothing in its place, if there is no `value`. All such
    /// files of a key are of one length, so that places in them are the same.
    fn with(section: &str, key: &str, value: Option<&str>, len: usize) -> String {
        let quoted = value.map(|value| match value.parse::<i64>() {
            Ok(_) => value.to_owned(),
            Err(_) => format!("\"{value}\""),
        });
        let of_backend = ["weight", "max_open", "priority", "max_message_size"].contains(&key);
        let comma = if of_backend { "," } else { "" };
        let written = format!("{:len$}", quoted.map(|value| format!("{key} = {value}{comma}")).unwrap_or_default());
        match section {
            "[balancer]" => format!("[balancer]\n{written}\n{LISTEN}{POOL}"),
            "[streams]" => format!("{LISTEN}{POOL}[streams]\n{written}\n"),
            // Not longer than that may the timeout be.
            "Health" if key == "timeout" => format!("{LISTEN}{POOL}[pool.health]\ninterval = \"1h\"\n{written}\n"),
            "Health" => format!("{LISTEN}{POOL}[pool.health]\n{written}\n"),
            "Outlier" => format!("{LISTEN}{POOL}[pool.outlier]\n{written}\n"),
            _ if of_backend => {
                format!("{LISTEN}[[pool]]\nbackend = [{{ {written} uri = \"sip:a;transport=tcp\" }}]\n")
            }
            _ => format!("{LISTEN}{POOL}{written}\n"),
        }
    }

    #[test]
    fn defaults_and_bounds_are_those_that_the_documentation_says() {
        let step = std::time::Duration::from_micros(1);
        let beyond = |bound: &str, up: bool| match bound.parse::<i64>() {
            Ok(number) => Some((if up { number + 1 } else { number - 1 }).to_string()),
            Err(_) => {
                let time = humantime::parse_duration(bound).unwrap();
                let time = if up { Some(time + step) } else { time.checked_sub(step) };
                time.map(|time| humantime::format_duration(time).to_string())
            }
        };
        let bare = |text: &str| text.trim_matches(['`', '.', ',', ':', ';', ' ']).to_owned();
        let is_value = |text: &String| text.starts_with(|first: char| first.is_ascii_digit());
        let (mut section, mut checked) = (String::new(), Vec::new());
        for line in include_str!("../../../docs/configuration.md").lines() {
            if line.starts_with('#') {
                section = bare(line.trim_start_matches(['#', ' ']).split(':').next().unwrap());
            }
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let [_, key, cells @ ..] = &cells[..] else { continue };
            let key = bare(key);
            let is_known = ["[balancer]", "[streams]", "[[pool]]", "Health", "Outlier"].contains(&&section[..]);
            if !is_known || ["token_keys", "egress_ports", "set", "ok"].contains(&&key[..]) {
                continue;
            }
            let bounds = cells.iter().find_map(|cell| {
                let (least, most) = cell.split_once(" to ")?;
                let ends = (bare(least.split(' ').next_back()?), bare(most.split(' ').next()?));
                (is_value(&ends.0) && is_value(&ends.1)).then_some(ends)
            });
            let Some((least, most)) = bounds else { continue };
            let file = |value: Option<&str>| Source { name: String::new(), text: with(&section, &key, value, 60) };
            // Where there is a column for its unit, that stands before.
            let default = bare(cells[usize::from(cells.len() == 5)].split([' ', ',']).next().unwrap());
            if is_value(&default) {
                let [silent, written] = [None, Some(&default[..])].map(|value| parse(file(value)).unwrap().config);
                assert_eq!(silent, written, "{key}");
            }
            for (value, up) in [(&least, false), (&most, true)] {
                assert!(parse(file(Some(value))).is_ok(), "{key} = {value}");
                let Some(beyond) = beyond(value, up) else { continue };
                assert!(parse(file(Some(&beyond))).is_err(), "{key} = {beyond}");
            }
            checked.push(key);
        }
        assert_eq!(checked.len(), 29, "{checked:?}");
    }

    #[test]
    fn a_file_with_several_errors_tells_them_all_at_once() {
        let text = "[[listen]]\naddress = \"0.0.0.0\"\n[[pool]]\nbackend = [{ uri = \"10.0.0.1\", weight = 0 }]\n";
        assert_eq!(problems(text).len(), 3);
    }

    #[test]
    fn an_empty_file_says_what_it_takes() {
        let said = problems("");
        assert_eq!(said, ["null:null nothing to listen on | ", "null:null no backends | "]);
    }

    #[test]
    fn rules_may_use_the_names_that_pools_and_listeners_have_by_default() {
        let unnamed = "[[listen]]\naddress = \"tcp:[::1]\"\n[[pool]]\nbackend = [{ uri = \"sip:10.0.0.12\" }]\n";
        let rules = "[[route]]\nlisten = [\"tcp:[::1]:5060\"]\npool = \"pool-2\"\n\
                     [[route]]\nlisten = [\"udp:0.0.0.0:5060\"]\npool = \"default\"\n";
        let config = load(&format!("{LISTEN}{POOL}{unnamed}{rules}")).config;
        let found: Vec<_> = config.routes.iter().map(|rule| (rule.listeners.clone().unwrap(), rule.pool)).collect();
        assert_eq!(found, [(vec![1], 1), (vec![0], 0)]);
    }

    #[test]
    fn what_is_bounded_by_the_kernel_or_by_sense_is_taken_up_to_its_bound() {
        let said = |text: &str| problems(&format!("{text}{LISTEN}{POOL}")).len();
        for (good, bad) in [
            ("[balancer]\negress_ports = \"40000\"\n", "[balancer]\negress_ports = \"1-65536\"\n"),
            ("[balancer]\negress = [\"10.0.0.1\", \"::1\"]\n", "[balancer]\negress = [\"::1\", \"::2\"]\n"),
            ("[balancer]\nsecret = \"0123456789abcdef\"\n", "[balancer]\nsecret = \"0123456789abcde\"\n"),
            (
                "[[listen]]\nname = 'a-b'\naddress = \"udp:[::1]\"\n",
                "[[listen]]\nname = 'a\"b'\naddress = \"udp:[::1]\"\n",
            ),
            (
                "[[listen]]\nname = 'a/b'\naddress = \"udp:[::1]\"\n",
                "[[listen]]\nname = 'a\\b'\naddress = \"udp:[::1]\"\n",
            ),
            ("[admin]\nlisten = \"[::1]:1\"\n", "[admin]\nlisten = \"10.0.0.1:1\"\nallow_remote = false\n"),
            ("[admin]\nlisten = \"10.0.0.1:1\"\nallow_remote = true\n", "[admin]\nlisten = \"10.0.0.1:1\"\n"),
            ("[admin]\nlisten = \"off\"\nsocket = \"off\"\n", "[admin]\nsocket = \"off/\"\n"),
            (&format!("[admin]\nsocket = \"/{:x<106}\"\n", ""), &format!("[admin]\nsocket = \"/{:x<107}\"\n", "")),
        ] {
            assert_eq!((said(good), said(bad)), (0, 1), "{good}{bad}");
        }
        let listeners = |count: usize| -> String {
            let one = |port: usize| format!("[[listen]]\naddress = \"udp:127.0.0.1:{}\"\n", 1 + port);
            (0..count).map(one).collect()
        };
        assert_eq!([254, 255].map(|more| said(&listeners(more))), [0, 1]);
        let inside = LISTEN.replace("[[listen]]", "[[listen]]\nside = \"inside\"");
        assert!(problems(&format!("{inside}{POOL}"))[0].contains("all listeners face inside"));
        let silent = "[policy]\nrecord_route = false\n[admin]\nlisten = \"off\"\nsocket = \"off\"\n";
        let config = load(&format!("{LISTEN}{POOL}{silent}")).config;
        assert_eq!((config.policy.record_route, config.admin, config.socket), (false, None, Socket::Off));
        assert!(load(&format!("{LISTEN}{POOL}")).config.policy.record_route);
    }

    /// Tokens name listeners by number.
    #[test]
    fn a_listener_for_streams_changes_no_number_of_one_for_datagrams_wherever_it_stands() {
        let streams = "[[listen]]\naddress = \"tcp:0.0.0.0\"\n";
        for text in [format!("{streams}{LISTEN}{POOL}"), format!("{LISTEN}{streams}{POOL}")] {
            let names: Vec<_> = load(&text).config.listeners.into_iter().map(|one| one.name).collect();
            assert_eq!(names, ["udp:0.0.0.0:5060", "tcp:0.0.0.0:5060"]);
        }
    }

    #[test]
    fn what_is_off_is_nothing_to_complain_about() {
        let off = "pad = false\nsend_proxy = \"off\"\nhealth = { probe = false }\noutlier = { on = false }\n";
        let loaded = load(&format!("[balancer]\ngso = false\n{LISTEN}{POOL}{off}"));
        let pool = &loaded.config.pools[0];
        assert_eq!((loaded.config.gso, pool.pads, loaded.warnings.len()), (false, false, 0));
        assert!(pool.health.is_none() && pool.outlier.is_none());
        let on = "pad = true\nhealth = { probe = true, ok = [\"2xx\", \"404\"] }\noutlier = { on = true }\n";
        let config = load(&format!("[balancer]\ngso = true\n{LISTEN}{POOL}{on}")).config;
        assert!(config.gso && config.pools[0].pads && config.pools[0].outlier.is_some());
        let health = config.pools[0].health.as_ref().unwrap();
        let is_ok = [199, 200, 299, 300, 403, 404, 405].map(|code| health.is_ok(code));
        assert_eq!(is_ok, [false, true, true, false, false, true, false]);
    }

    #[test]
    fn domains_are_compared_as_they_stand_in_messages_and_what_never_could_is_refused() {
        let rule = |domains: &str| format!("{LISTEN}{POOL}[[route]]\ndomains = [{domains}]\npool = \"default\"\n");
        let config = load(&rule(r#""Example.NET.", "*.example.net.", "10.0.0.1", "[2001:DB8:0::1]""#)).config;
        let domains = config.routes[0].domains.clone().unwrap();
        assert_eq!(domains, ["example.net", "*.example.net", "10.0.0.1", "[2001:db8::1]"]);
        for wrong in ["", "*", "bob@example.net", "sip:example.net", "example.net:5060", "[::1]:5060", "münchen.de"] {
            let said = problems(&rule(&format!("\"{wrong}\"")));
            let expected = format!("6:12 `{wrong}` is not a domain | a host name, `*.` and a host name, or an address");
            assert_eq!(said, [expected]);
        }
    }

    #[test]
    fn a_rule_that_names_a_listener_as_it_is_miswritten_is_no_second_mistake() {
        let rule = "[[route]]\nlisten = [\"udp:0.0.0.0:506O\"]\npool = \"default\"\n";
        let said = problems(&format!("[[listen]]\naddress = \"udp:0.0.0.0:506O\"\n{POOL}{rule}"));
        assert_eq!(said.len(), 1, "{said:?}");
    }

    #[test]
    fn a_rule_that_hides_others_and_a_priority_without_use_are_warned_about() {
        let text = "[[listen]]\naddress = \"udp:0.0.0.0\"\n[[pool]]\nname = \"a\"\nbackend = [{ uri = \"sip:a\", priority = 1 }]\n\
                    [[route]]\npool = \"a\"\n[[route]]\nmethods = [\"REGISTER\"]\npool = \"a\"\n";
        let loaded = load(text);
        let hides_none = text.replacen("[[route]]", "[[route]]\ndomains = [\"a\"]", 1);
        assert_eq!((loaded.warnings.len(), load(&hides_none).warnings.len()), (2, 1));
        assert!(loaded.warnings.iter().all(|problem| problem.severity == Severity::Warning));
    }

    #[test]
    fn a_rule_that_parts_an_invite_from_its_ack_or_cancel_is_warned_about() {
        let said = |rules: &[(&str, &str)]| {
            let rule =
                |(methods, pool): &(&str, &str)| format!("[[route]]\nmethods = [{methods}]\npool = \"{pool}\"\n");
            let rules: String = rules.iter().map(rule).collect();
            problems(&format!("{LISTEN}{POOL}[[pool]]\nname = \"other\"\nbackend = [{{ uri = \"sip:b\" }}]\n{rules}"))
        };
        let without = said(&[("\"BYE\", \"INVITE\", \"CANCEL\"", "other")]);
        assert!(without[0].starts_with("9:19 this rule takes INVITE without ACK | "), "{without:?}");
        assert!(said(&[("\"INVITE\"", "other")])[0].contains("INVITE without ACK and CANCEL"));
        assert!(said(&[("\"ACK\", \"CANCEL\"", "other"), ("\"INVITE\"", "default")])[0].contains("ACK and CANCEL"));
        let (invite, rest) = ("\"INVITE\"]\ndomains = [\"a\"", "\"ACK\", \"CANCEL\"]\ndomains = [\"a\"");
        assert!(said(&[("\"INVITE\"", "other"), (rest, "other")])[0].contains("without ACK and CANCEL"));
        for all_in_one in [
            &[(invite, "other"), (rest, "other")][..],
            &[(invite, "other"), ("\"ACK\", \"CANCEL\"", "other")],
            &[("\"INVITE\", \"CANCEL\", \"ACK\"", "other")],
            &[("\"INVITE\"", "default")],
            &[("\"INVITE\"", "other"), ("\"ACK\", \"CANCEL\", \"BYE\"", "other")],
        ] {
            assert_eq!(said(all_in_one), [""; 0]);
        }
    }

    #[test]
    fn bounds_of_what_there_is_none_of_are_warned_about() {
        let bounds = "[streams]\nmax_proxied = 100\nproxied_idle = \"2m\"\n";
        let said = problems(&format!("{LISTEN}{POOL}{bounds}"));
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(said[0], "6:15 `max_proxied` has no effect here | heeded only where a pool has `send_proxy`");
        let pool = "[[pool]]\nsend_proxy = \"v2\"\nbackend = [{ uri = \"sip:a;transport=tcp\" }]\n";
        let config = load(&format!("{LISTEN}{pool}{bounds}")).config;
        assert!(config.pools[0].proxy_header == Some(ProxyHeader::V2) && config.streams.max_proxied == 100);
        assert!(load(&format!("{LISTEN}{}", pool.replace("v2", "off"))).config.pools[0].proxy_header.is_none());
    }

    #[test]
    fn what_is_not_toml_is_shown_where_it_stops_being_toml() {
        let said = problems("[balancer\nx = 1");
        assert!(said[0].starts_with("1:10 this is not TOML"), "{said:?}");
    }
}
