//! Whether a server is who it has to be, by RFC 5922: domain certificates in SIP.
//!
//! Unlike HTTP's: a `sip:` URI in subjectAltName comes first, and where there is one, no DNS name counts; names are compared
//! in whole, and a wildcard stands for nothing. The common name is never looked at, which 7.1 permits.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::sync::Arc;

/// The domains that a certificate speaks for.
//= RFC 5922 section 7.1
//# An implementation MUST accept a domain name system
//# identifier as a SIP domain identity if and only if no other
//# identity is found that matches the "sip" URI type described
//# above.
pub fn names(certificate: &webpki::EndEntityCert<'_>) -> Vec<String> {
    let of_uris: Vec<String> = certificate.valid_uri_names().filter_map(domain_of).map(str::to_owned).collect();
    if of_uris.is_empty() { certificate.valid_dns_names().map(str::to_owned).collect() } else { of_uris }
}

/// The host of a `sip:` URI without a user.
fn domain_of(uri: &str) -> Option<&str> {
    let (scheme, rest) = uri.split_once(':')?;
    //= RFC 5922 section 7.1
    //# If the scheme of the URI is not "sip", then the
    //# implementation MUST NOT accept the value as a SIP domain
    //# identity.
    if !scheme.eq_ignore_ascii_case("sip") || rest.contains('@') {
        return None;
    }
    let host = rest.split([':', ';', '?', '/']).next()?;
    (!host.is_empty()).then_some(host)
}

/// Verifies servers.
#[derive(Debug)]
pub struct SipDomain {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl SipDomain {
    /// Servers whose certificates lead to `roots`.
    pub fn new(roots: Arc<RootCertStore>, provider: Arc<CryptoProvider>) -> SipDomain {
        SipDomain { roots, provider }
    }
}

impl ServerCertVerifier for SipDomain {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        let read = webpki::EndEntityCert::try_from(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        let presented = names(&read);
        //= RFC 5922 section 7.2
        //# Implementations MUST match the values in their entirety
        let expected = server_name.to_str();
        if presented.iter().any(|name| name.eq_ignore_ascii_case(&expected)) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::NotValidForNameContext { expected: server_name.to_owned(), presented }.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sip_uri_without_a_user_names_a_domain() {
        assert_eq!(domain_of("sip:example.net"), Some("example.net"));
        assert_eq!(domain_of("SIP:example.net:5061;transport=tls"), Some("example.net"));
        for uri in ["sips:example.net", "sip:bob@example.net", "http://example.net", "example.net", "sip:"] {
            assert_eq!(domain_of(uri), None, "{uri}");
        }
    }
}
