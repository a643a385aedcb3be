//! TLS for connections: what callers demand of an element, and what callees show it. The octets in between are rustls'
//! affair, without I/O of its own: [`streams`](crate::streams) carries them.

use crate::failure::{Exit, Failure};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, Connection, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    ServerConnection, SignatureScheme,
};
use std::path::Path;
use std::sync::Arc;

/// How connections are opened.
#[derive(Clone, Debug)]
pub struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// How connections are taken.
#[derive(Clone, Debug)]
pub struct Server {
    config: Arc<ServerConfig>,
}

impl Client {
    /// Opens connections to an element of this name. Its certificate has to lead to one in the file `ca`; without that any
    /// will do, as a generator is no phone.
    pub fn new(name: &str, ca: Option<&Path>) -> Result<Client, Failure> {
        Client::showing(name, ca, None)
    }

    /// The same, and shows an element that asks for one the certificate in the first of these files, with its chain; its key is
    /// in the second.
    pub fn showing(name: &str, ca: Option<&Path>, shown: Option<(&Path, &Path)>) -> Result<Client, Failure> {
        let provider = Arc::new(ring::default_provider());
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| Failure::new(Exit::Usage, "tls", format!("`{name}` is no name that a certificate is for")))?;
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| broken(&error))?;
        let builder = match ca {
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|error| unfit(path, &error.to_string()))?;
                }
                builder.with_root_certificates(roots)
            }
            None => {
                let anybody = Arc::new(Anybody(provider));
                builder.dangerous().with_custom_certificate_verifier(anybody)
            }
        };
        let config = match shown {
            Some((certificate, key)) => {
                let chain = certificates(certificate)?;
                builder
                    .with_client_auth_cert(chain, private_key(key)?)
                    .map_err(|error| unfit(key, &error.to_string()))?
            }
            None => builder.with_no_client_auth(),
        };
        Ok(Client { config: Arc::new(config), name })
    }

    /// The beginning of a connection.
    pub fn begin(&self) -> Result<Connection, Error> {
        ClientConnection::new(Arc::clone(&self.config), self.name.clone()).map(Connection::from)
    }
}

impl Server {
    /// Shows this certificate, with its chain.
    pub fn new(certificate: &Path, key: &Path) -> Result<Server, Failure> {
        let chain = certificates(certificate)?;
        Server::with(chain, private_key(key)?).map_err(|error| unfit(key, &error.to_string()))
    }

    /// Shows a certificate for these names and addresses that nobody has signed, made here and for this run.
    pub fn self_signed(names: Vec<String>) -> Result<Server, Failure> {
        Server::of(&SelfSigned::new(names)?)
    }

    /// Shows this one.
    pub fn of(made: &SelfSigned) -> Result<Server, Failure> {
        let key = PrivateKeyDer::from_pem_slice(made.key.as_bytes()).map_err(|error| unfit_made(&error.to_string()))?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(made.certificate.as_bytes()).collect();
        let chain = chain.map_err(|error| unfit_made(&error.to_string()))?;
        Server::with(chain, key).map_err(|error| broken(&error))
    }

    fn with(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Server, Error> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(Server { config: Arc::new(builder.with_no_client_auth().with_single_cert(chain, key)?) })
    }

    /// The beginning of a connection.
    pub fn begin(&self) -> Result<Connection, Error> {
        ServerConnection::new(Arc::clone(&self.config)).map(Connection::from)
    }
}

/// A certificate that nobody has signed, and its key, in PEM: also its own authority.
#[derive(Debug)]
pub struct SelfSigned {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl SelfSigned {
    /// One for these names and addresses.
    pub fn new(names: Vec<String>) -> Result<SelfSigned, Failure> {
        let made = rcgen::generate_simple_self_signed(names).map_err(|error| unfit_made(&error.to_string()))?;
        Ok(SelfSigned { certificate: made.cert.pem(), key: made.signing_key.serialize_pem() })
    }
}

/// Why a connection came to nothing, as a report has it.
pub fn cause(error: &Error) -> &'static str {
    match error {
        Error::AlertReceived(_) => "TLS: the other side refused",
        Error::InvalidCertificate(_) | Error::NoCertificatesPresented => "TLS: a certificate that is not trusted",
        Error::InvalidMessage(_) => "TLS: what came is no TLS",
        Error::PeerIncompatible(_) => "TLS: nothing that both sides know",
        _ => "TLS: the other side broke the rules",
    }
}

/// Takes any certificate, whose key the other side has to have all the same.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    match read() {
        Ok(found) if found.is_empty() => Err(unfit(path, "there is no certificate in it")),
        Ok(found) => Ok(found),
        Err(error) => Err(unfit(path, &error.to_string())),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Failure> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| unfit(path, &error.to_string()))
}

fn unfit(path: &Path, why: &str) -> Failure {
    Failure::new(Exit::Config, "tls", format!("{}: {why}", path.display()))
        .help("certificates and keys are read in PEM: -----BEGIN CERTIFICATE-----")
}

fn unfit_made(why: &str) -> Failure {
    Failure::new(Exit::Failed, "tls", format!("no certificate can be made: {why}"))
}

fn broken(error: &Error) -> Failure {
    Failure::new(Exit::Failed, "tls", error.to_string())
}
