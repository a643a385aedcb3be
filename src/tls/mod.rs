//! TLS without a socket: who we are, whom we trust, and a session that turns octets of the one kind into the other.
//!
//! ```text
//! PEM ─► Certificate, Trust ─► Server, Client ─► Credentials ─► a Session for each connection
//!        (control reads the files)               (swapped whole)   (shards and probes give it octets)
//! ```
//!
//! Everything rustls is here, so that its next version changes this folder and no other. Versions 1.2 and 1.3, and the
//! ciphers rustls holds safe; there is nothing to choose. No I/O: who has a socket reads and writes it.

mod identity;
pub mod session;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// How long before its end a certificate is warned of: those who renew by themselves do it before.
pub const SOON: Duration = Duration::from_secs(14 * 86_400);

/// A year that no certificate is meant to see, in seconds since 1970: 9000.
const FAR_AWAY: Duration = Duration::from_secs(221_845_392_000);

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));
    PROVIDER.clone()
}

/// What is wrong with a certificate or its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The file of the certificate.
    Certificate(String),
    /// The file of the key.
    Key(String),
    /// Each is right, and they do not belong together.
    Mismatch,
}

/// A certificate with its chain and its key.
#[derive(Clone, Debug)]
pub struct Certificate {
    signed: Arc<CertifiedKey>,
    /// The names that it is for: of `sip:` URIs, or, if there are none, of DNS (RFC 5922 7.1).
    pub names: Vec<String>,
    /// Those of DNS: what browsers ask for, also where there is a `sip:` URI.
    hosts: Vec<String>,
    /// From when it is valid, in seconds since 1970.
    pub begins_at: Option<u64>,
    /// Until when.
    pub expires_at: Option<u64>,
}

impl PartialEq for Certificate {
    /// One chain has one key.
    fn eq(&self, other: &Certificate) -> bool {
        self.signed.cert == other.signed.cert
    }
}

impl Certificate {
    /// Reads a chain, the end entity's certificate first, and its key, both in PEM.
    ///
    /// # Errors
    /// One of them is not that, or they do not belong together.
    pub fn read(chain: &[u8], key: &[u8]) -> Result<Certificate, Fault> {
        let chain = certificates(chain).map_err(Fault::Certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| Fault::Key(format!("no private key: {error}")))?;
        let About { names, hosts, begins_at, expires_at } = match chain.first().map(about) {
            Some(Ok(about)) => about,
            Some(Err(error)) => return Err(Fault::Certificate(error)),
            None => return Err(Fault::Certificate("no certificate".into())),
        };
        let signed = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => Fault::Mismatch,
            error => Fault::Key(error.to_string()),
        })?;
        Ok(Certificate { signed: Arc::new(signed), names, hosts, begins_at, expires_at })
    }

    /// Whether it is for `name`, in whole or by a wildcard for one label: clients decide what they accept.
    pub fn is_for(&self, name: &str) -> bool {
        is_among(name, &self.names)
    }
}

fn is_among(name: &str, listed: &[String]) -> bool {
    let below = name.split_once('.').map(|(_, rest)| rest);
    listed.iter().any(|own| {
        own.eq_ignore_ascii_case(name)
            || own.strip_prefix("*.").zip(below).is_some_and(|(own, rest)| own.eq_ignore_ascii_case(rest))
    })
}

/// The names in a certificate, and from when until when it is valid.
struct About {
    names: Vec<String>,
    hosts: Vec<String>,
    begins_at: Option<u64>,
    expires_at: Option<u64>,
}

fn about(certificate: &CertificateDer<'_>) -> Result<About, String> {
    let read = webpki::EndEntityCert::try_from(certificate).map_err(|error| format!("unreadable: {error}"))?;
    let at = |time| {
        // Its dates are looked at before who signed it; without anybody to trust it cannot be verified in any case.
        let usage = webpki::KeyUsage::server_auth();
        let algorithms = provider().signature_verification_algorithms.all;
        read.verify_for_usage(algorithms, &[], &[], UnixTime::since_unix_epoch(time), usage, None, None).err()
    };
    let begins_at = match at(Duration::ZERO) {
        Some(webpki::Error::CertNotValidYet { not_before, .. }) => Some(not_before.as_secs()),
        _ => None,
    };
    let expires_at = match at(FAR_AWAY) {
        Some(webpki::Error::CertExpired { not_after, .. }) => Some(not_after.as_secs()),
        _ => None,
    };
    let hosts = read.valid_dns_names().map(str::to_owned).collect();
    Ok(About { names: identity::names(&read), hosts, begins_at, expires_at })
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let list: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("no certificates in PEM: {error}"))?;
    if list.is_empty() { Err("no `BEGIN CERTIFICATE`".into()) } else { Ok(list) }
}

/// Who may sign the certificates of others.
#[derive(Clone, Debug)]
pub struct Trust {
    roots: Arc<RootCertStore>,
    listed: Vec<CertificateDer<'static>>,
}

impl PartialEq for Trust {
    fn eq(&self, other: &Trust) -> bool {
        self.listed == other.listed
    }
}

impl Trust {
    /// Reads certificates of authorities in PEM.
    ///
    /// # Errors
    /// It holds none, or one that cannot be read.
    pub fn read(pem: &[u8]) -> Result<Trust, String> {
        let listed = certificates(pem)?;
        let mut roots = RootCertStore::empty();
        for one in &listed {
            roots.add(one.clone()).map_err(|error| error.to_string())?;
        }
        Ok(Trust { roots: Arc::new(roots), listed })
    }
}

/// What clients of a listener have to show.
#[derive(Clone, Debug, PartialEq)]
pub struct Clients {
    /// Who may have signed it.
    pub trust: Trust,
    /// Whether there is no way in without.
    pub is_required: bool,
}

/// How a listener speaks TLS.
#[derive(Clone, Debug)]
pub struct Server {
    config: Arc<ServerConfig>,
    /// Its certificates: by the name a client asks for, else the first.
    pub certificates: Vec<Certificate>,
    clients: Option<Clients>,
}

impl PartialEq for Server {
    fn eq(&self, other: &Server) -> bool {
        self.certificates == other.certificates && self.clients == other.clients
    }
}

impl Server {
    /// A listener with these certificates, of which there is at least one.
    ///
    /// # Errors
    /// Nobody can be trusted by what `clients` says, or the machine has no randomness.
    pub fn new(certificates: Vec<Certificate>, clients: Option<Clients>) -> Result<Server, String> {
        let told = |error: rustls::Error| error.to_string();
        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder.with_safe_default_protocol_versions().map_err(told)?;
        let builder = match &clients {
            None => builder.with_no_client_auth(),
            Some(Clients { trust, is_required }) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(trust.roots.clone(), provider());
                let verifier = if *is_required { verifier } else { verifier.allow_unauthenticated() };
                builder.with_client_cert_verifier(verifier.build().map_err(|error| error.to_string())?)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(ByName(certificates.clone())));
        // What a session goes on from is with the client, sealed with keys that change: nothing to store, and every shard
        // can open it.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = ring::Ticketer::new().map_err(told)?;
        config.send_tls13_tickets = 1;
        Ok(Server { config: Arc::new(config), certificates, clients })
    }

    /// The same, with the tickets of `before` still good if whoever had to show a certificate has to show the same.
    fn taking_over(self, before: &Server) -> Server {
        if self == *before {
            return before.clone();
        }
        if self.clients != before.clients {
            return self;
        }
        let mut config = (*self.config).clone();
        config.ticketer.clone_from(&before.config.ticketer);
        Server { config: Arc::new(config), ..self }
    }
}

/// Chooses the certificate for the name that a client asks for.
#[derive(Debug)]
struct ByName(Vec<Certificate>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let can_sign = |one: &&Certificate| one.signed.key.choose_scheme(hello.signature_schemes()).is_some();
        let able = || self.0.iter().filter(can_sign);
        let named = hello.server_name().and_then(|name| {
            able().find(|one| one.is_for(name)).or_else(|| able().find(|one| is_among(name, &one.hosts)))
        });
        named.or_else(|| able().next()).map(|one| one.signed.clone())
    }
}

/// How a backend is spoken to by TLS.
#[derive(Clone, Debug)]
pub struct Client {
    config: Arc<ClientConfig>,
    /// Who it has to be.
    name: ServerName<'static>,
}

/// How the backends of a pool are spoken to by TLS.
#[derive(Clone, Debug)]
pub struct Clienthood {
    config: Arc<ClientConfig>,
    trust: Trust,
    certificate: Option<Certificate>,
}

impl PartialEq for Clienthood {
    fn eq(&self, other: &Clienthood) -> bool {
        self.trust == other.trust && self.certificate == other.certificate
    }
}

impl Clienthood {
    /// For servers whose certificates `trust` has signed. Those that ask are shown `certificate`.
    ///
    /// # Errors
    /// rustls's, if its provider has no version of TLS.
    pub fn new(trust: Trust, certificate: Option<Certificate>) -> Result<Clienthood, String> {
        let builder = ClientConfig::builder_with_provider(provider());
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let verifier = identity::SipDomain::new(trust.roots.clone(), provider());
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &certificate {
            None => builder.with_no_client_auth(),
            Some(one) => {
                let shown = SingleCertAndKey::from((*one.signed).clone());
                builder.with_client_cert_resolver(Arc::new(shown))
            }
        };
        config.resumption = Resumption::in_memory_sessions(256);
        Ok(Clienthood { config: Arc::new(config), trust, certificate })
    }

    /// For the server of this name. `None`: it is none that a certificate could be for.
    pub fn towards(&self, name: &str) -> Option<Client> {
        let name = ServerName::try_from(name.to_owned()).ok().filter(|name| matches!(name, ServerName::DnsName(_)))?;
        Some(Client { config: self.config.clone(), name })
    }
}

/// Everything that connections need to speak TLS: swapped whole, and looked at by each new connection.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// By index of the listener; those that do not speak TLS have none.
    pub servers: Vec<Option<Server>>,
    /// By address of the backend.
    pub clients: HashMap<SocketAddr, Client>,
}

impl Credentials {
    /// The same, with the sessions of `before` taken over as far as what they were made with has not changed.
    pub fn taking_over(mut self, before: &Credentials) -> Credentials {
        for (server, before) in self.servers.iter_mut().zip(&before.servers) {
            if let (Some(one), Some(before)) = (server.take(), before) {
                *server = Some(one.taking_over(before));
            }
        }
        self
    }

    /// The same, and in addition what `before` has for backends that these leave out.
    pub fn keeping_clients_of(mut self, before: &Credentials) -> Credentials {
        for (address, client) in &before.clients {
            self.clients.entry(*address).or_insert_with(|| client.clone());
        }
        self
    }
}
