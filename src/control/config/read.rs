//! From what is written to what is meant. Every value is looked at even when an earlier one is wrong, so that one run of
//! `viahop check` tells of all of them. What never gets here is a file that `toml` does not make a [`file::File`] of: it stops
//! at the first unknown key, value of a wrong type, or line that is no TOML, and that is all that is told then.

mod balancer;
#[cfg(test)]
mod documented;
mod listen;
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
use super::{Config, EgressMode, Gso, Log, LogFormat, Policy, Socket, Steering, Streams};
use crate::dataplane::sip::uri::Scheme;
use crate::dataplane::tables::{Capture, ForeignRoute, Network, PathPolicy};
use std::net::SocketAddr;
use std::time::Duration;
use toml::Spanned;
use value::Reader;

/// How long a shard lets messages gather: about as long as network cards that moderate interrupts do; a tenth of a millisecond of a
/// round trip. Twice as long takes less CPU still, and misses what is wanted of latency: `docs/decisions/0006-lingering.md`.
const LINGER: Duration = Duration::from_micros(50);

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
        let listener_names: Vec<String> = listen.iter().map(|one| listen::name(one)).collect();
        let pool_names: Vec<String> = file.pool.iter().enumerate().map(|(index, one)| pool::name(one, index)).collect();
        let routes = self.routes(&file.route, &listener_names, &pool_names);
        let balancer = &file.balancer;
        let gso = self.word(&balancer.gso, Gso::Auto, &Gso::WORDS);
        let pads = file.pool.iter().filter_map(|pool| pool.pad.as_ref()).filter(|pad| *pad.get_ref());
        for pad in pads.filter(|_| gso == Gso::Off) {
            self.warn(pad.span(), "`pad` has no effect with `gso = \"off\"`", "only runs are padded");
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

fn nowhere(title: impl Into<String>) -> Problem {
    Problem { at: None, ..Problem::error(0..0, title, "") }
}

#[cfg(test)]
pub(super) mod tests {
    use crate::control::config::problem::Source;
    use crate::control::config::{Gso, Loaded, Socket, parse};
    use crate::dataplane::tables::ProxyHeader;

    pub const LISTEN: &str = "[[listen]]\naddress = \"udp:0.0.0.0:5060\"\n";
    pub const POOL: &str = "[[pool]]\nbackend = [{ uri = \"sip:10.0.0.11\" }]\n";

    pub fn load(text: &str) -> Loaded {
        parse(Source { name: "viahop.toml".into(), text: text.into() })
            .unwrap_or_else(|report| panic!("{}", report.render(false)))
    }

    /// `line:column title | label` of each problem in `text`.
    pub fn problems(text: &str) -> Vec<String> {
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
            (
                "[balancer]\ngso = true",
                "6:7 `true` is none of the values there are | there are: `always`, `auto`, `off`",
            ),
            ("[[pool]]\nstrategy = [\"hash\"]", "6:12 this is a list | expected a string, in quotes"),
            (
                "[balancer]\ngso = \"on\"",
                "6:7 `on` is none of the values there are | there are: `always`, `auto`, `off`",
            ),
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
        let loaded = load(&format!("[balancer]\ngso = \"off\"\n{LISTEN}{POOL}{off}"));
        let pool = &loaded.config.pools[0];
        assert_eq!((loaded.config.gso, pool.pads, loaded.warnings.len()), (Gso::Off, false, 0));
        assert!(pool.health.is_none() && pool.outlier.is_none());
        let on = "pad = true\nhealth = { probe = true, ok = [\"2xx\", \"404\"] }\noutlier = { on = true }\n";
        let config = load(&format!("{LISTEN}{POOL}{on}")).config;
        assert!(config.gso == Gso::Auto && config.pools[0].pads && config.pools[0].outlier.is_some());
        let health = config.pools[0].health.as_ref().unwrap();
        let is_ok = [199, 200, 299, 300, 403, 404, 405].map(|code| health.is_ok(code));
        assert_eq!(is_ok, [false, true, true, false, false, true, false]);
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
