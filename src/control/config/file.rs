//! A configuration as it is written: the shape of the TOML file, with the place of each value. What it means is in the
//! parent module.
//!
//! Every key here stands in `viahop init`, with its default and what it is for; a test sees to that.

use serde::de::Visitor;
use serde::{Deserialize, Deserializer};
use std::fmt::{self, Formatter};
use toml::Spanned;

/// A value and where it stands.
pub type Value<T> = Option<Spanned<T>>;

/// One of a few words. `true` and numbers are taken for words too: whoever writes `gso = true` is told which words there are, and not
/// that a string belongs there.
#[derive(Clone, Debug)]
pub struct Word(pub String);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Word, D::Error> {
        struct AsWritten;

        impl Visitor<'_> for AsWritten {
            type Value = Word;

            fn expecting(&self, to: &mut Formatter<'_>) -> fmt::Result {
                to.write_str("a string")
            }

            fn visit_str<E>(self, word: &str) -> Result<Word, E> {
                Ok(Word(word.to_owned()))
            }

            fn visit_bool<E>(self, word: bool) -> Result<Word, E> {
                Ok(Word(word.to_string()))
            }

            fn visit_i64<E>(self, word: i64) -> Result<Word, E> {
                Ok(Word(word.to_string()))
            }
        }

        from.deserialize_any(AsWritten)
    }
}

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// `[balancer]`
    #[serde(default)]
    pub balancer: Balancer,
    /// `[[listen]]`
    #[serde(default)]
    pub listen: Vec<Listen>,
    /// `[[pool]]`
    #[serde(default)]
    pub pool: Vec<Pool>,
    /// `[[route]]`
    #[serde(default)]
    pub route: Vec<Route>,
    /// `[policy]`
    #[serde(default)]
    pub policy: Policy,
    /// `[streams]`
    #[serde(default)]
    pub streams: Streams,
    /// `[admin]`
    #[serde(default)]
    pub admin: Admin,
    /// `[capture]`
    #[serde(default)]
    pub capture: Capture,
    /// `[log]`
    #[serde(default)]
    pub log: Log,
}

/// What concerns the process as a whole.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balancer {
    /// Cores to run on.
    pub cores: Value<Vec<Spanned<i64>>>,
    /// Or how many of those there are.
    pub shards: Value<i64>,
    /// The fleet's secret.
    pub secret: Value<String>,
    /// Or the file it stands in.
    pub secret_file: Value<String>,
    /// The keys that tokens are signed with: the first signs, all verify.
    pub token_keys: Value<Vec<TokenKey>>,
    /// Addresses to send to backends from.
    pub egress: Value<Vec<Spanned<String>>>,
    /// `own` or `shared`: whether each shard has a port towards backends.
    pub egress_mode: Value<Word>,
    /// `FIRST-LAST`, or one port.
    pub egress_ports: Value<String>,
    /// `auto`, `call-id` or `kernel`.
    pub steering: Value<Word>,
    /// `auto`, `always` or `off`: whether datagrams that are alike go through the kernel as one.
    pub gso: Value<Word>,
    /// How long a shard at work lets messages gather.
    pub linger: Value<String>,
    /// Octets of each socket's receive buffer.
    pub receive_buffer: Value<i64>,
    /// Octets of each socket's send buffer.
    pub send_buffer: Value<i64>,
    /// How long to go on serving after SIGTERM.
    pub drain: Value<String>,
    /// Name servers for `discover`.
    pub nameservers: Value<Vec<Spanned<String>>>,
}

/// A key that tokens are signed with.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenKey {
    /// Its number, which stands in each token.
    pub id: Spanned<i64>,
    /// The file that it is made of, if it is not the fleet's secret.
    pub file: Value<String>,
}

/// An address to receive on.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// `udp:`, `tcp:`, `tls:`, `ws:` or `wss:`, and `ADDRESS:PORT`
    pub address: Spanned<String>,
    /// What rules and metrics call it.
    pub name: Value<String>,
    /// What the world calls it.
    pub advertise: Value<String>,
    /// `outside` or `inside`.
    pub side: Value<Word>,
    /// Who we are there, and who may come.
    pub tls: Option<ListenTls>,
    /// Networks whose connections begin with a PROXY header.
    pub proxy_protocol: Value<Vec<Spanned<String>>>,
    /// The pages that may open WebSockets.
    pub origins: Value<Vec<Spanned<String>>>,
}

/// How a listener speaks TLS.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenTls {
    /// Path of the certificate with its chain.
    pub certificate: Spanned<String>,
    /// Path of its key.
    pub key: Spanned<String>,
    /// Further ones, for the names that they are for.
    pub more: Option<Vec<Pair>>,
    /// Path of certificates of those who may have signed the clients'.
    pub client_ca: Value<String>,
    /// `required` or `optional`.
    pub client_certificate: Value<Word>,
}

/// A certificate and its key.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// Path of the certificate with its chain.
    pub certificate: Spanned<String>,
    /// Path of its key.
    pub key: Spanned<String>,
}

/// How backends are spoken to by TLS.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolTls {
    /// Path of certificates of those who may have signed the backends'.
    pub ca: Spanned<String>,
    /// The name that the backends' certificates have to be for, if not the hosts of their URIs.
    pub name: Value<String>,
    /// Path of the certificate that they are shown, if they ask for one.
    pub certificate: Value<String>,
    /// Path of its key.
    pub key: Value<String>,
}

/// A set of backends.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// What rules and metrics call it.
    pub name: Value<String>,
    /// What makes a call sticky.
    pub affinity: Value<Word>,
    /// How a backend is found.
    pub strategy: Value<Word>,
    /// How backends are watched.
    #[serde(default)]
    pub health: Health,
    /// What their answers to real requests are allowed to be.
    #[serde(default)]
    pub outlier: Outlier,
    /// How long a backend that comes back takes to its full share.
    pub slow_start: Value<String>,
    /// Per cent of backends below which health is not believed.
    pub panic: Value<i64>,
    /// Octets of the longest packet on the way to the backends.
    pub mtu: Value<i64>,
    /// `off`, `v1` or `v2`: the PROXY header that names the client of a connection.
    pub send_proxy: Value<Word>,
    /// Whether requests may be padded to go in runs.
    pub pad: Value<bool>,
    /// How they are spoken to by TLS.
    pub tls: Option<Spanned<PoolTls>>,
    /// The backends.
    #[serde(default)]
    pub backend: Vec<Backend>,
    /// Or the `dispatcher.list` that they stand in.
    pub list: Value<String>,
    /// And which set of it.
    pub set: Value<i64>,
    /// Or the domain whose servers they are, as a URI.
    pub discover: Value<String>,
}

/// Passive health.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outlier {
    /// Whether it counts.
    pub on: Value<bool>,
    /// Per cent of final answers that may be 503.
    pub share: Value<i64>,
    /// Answers below which nothing is concluded.
    pub requests: Value<i64>,
    /// How long a backend is ejected the first time.
    pub eject: Value<String>,
    /// Per cent of backends that may be ejected at a time.
    pub max_ejected: Value<i64>,
}

/// A server.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// `sip:HOST:PORT`
    pub uri: Spanned<String>,
    /// What metrics call it, and what its identity is made of.
    pub name: Value<String>,
    /// Share of new keys.
    pub weight: Value<i64>,
    /// Order, for `strategy = "priority"`.
    pub priority: Value<i64>,
    /// INVITEs that may ring there at a time.
    pub max_open: Value<i64>,
    /// `ready`, `drain` or `maint`.
    pub state: Value<Word>,
    /// Octets of the longest message that it takes over a stream.
    pub max_message_size: Value<i64>,
}

/// How the backends of a pool are watched.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// Whether they are.
    pub probe: Value<bool>,
    /// From one OPTIONS to the next.
    pub interval: Value<String>,
    /// How long an answer may take.
    pub timeout: Value<String>,
    /// Failures until it is down.
    pub fall: Value<i64>,
    /// Successes until it is up.
    pub rise: Value<i64>,
    /// Codes that mean success.
    pub ok: Value<Vec<Spanned<String>>>,
}

/// Which pool takes what.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// What explanations call it.
    pub name: Value<String>,
    /// Methods it is for.
    pub methods: Value<Vec<Spanned<String>>>,
    /// Hosts of the Request-URI it is for.
    pub domains: Value<Vec<Spanned<String>>>,
    /// Names of listeners it is for.
    pub listen: Value<Vec<Spanned<String>>>,
    /// Name of the pool.
    pub pool: Spanned<String>,
}

/// The operator's choices.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Networks inside.
    pub inside: Value<Vec<Spanned<String>>>,
    /// Further names that mean us.
    pub aliases: Value<Vec<Spanned<String>>>,
    /// Whether requests that begin a dialog get a Record-Route of ours.
    pub record_route: Value<bool>,
    /// `ignore` or `refuse`.
    pub foreign_route: Value<Word>,
    /// Which registrations get a Path of ours.
    pub path: Value<Word>,
    /// Schemes of Request-URIs.
    pub schemes: Value<Vec<Spanned<Word>>>,
    /// Option tags passed on.
    pub proxy_require: Value<Vec<Spanned<String>>>,
}

/// What connections are allowed.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Streams {
    /// Connections at a time.
    pub max_connections: Value<i64>,
    /// Of these, from one source.
    pub max_per_source: Value<i64>,
    /// How long a connection may be silent.
    pub idle: Value<String>,
    /// How long a message may take from its first octet to its last.
    pub frame_timeout: Value<String>,
    /// How long a connection to a backend may take to be opened.
    pub connect_timeout: Value<String>,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Value<String>,
    /// TLS handshakes of clients under way at a time.
    pub max_handshakes: Value<i64>,
    /// Connections to backends that a PROXY header stands in front of, at a time.
    pub max_proxied: Value<i64>,
    /// How long one may be silent.
    pub proxied_idle: Value<String>,
}

/// The HTTP endpoint.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// `ADDRESS:PORT`, or `off`.
    pub listen: Value<String>,
    /// Whether that may be an address that others reach.
    pub allow_remote: Value<bool>,
    /// Path of the socket that `viahop ctl` speaks to, or `off`.
    pub socket: Value<String>,
}

/// Who gets copies of messages.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capture {
    /// `udp:ADDRESS:PORT` of a collector that takes HEP 3.
    pub hep: Value<String>,
    /// What the collector is to know this node by.
    pub node: Value<i64>,
    /// Per cent of calls.
    pub share: Value<i64>,
}

/// What is written to standard error.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// `text` or `json`.
    pub format: Value<Word>,
    /// `error`, `warn`, `info` or `debug`.
    pub level: Value<Word>,
}
