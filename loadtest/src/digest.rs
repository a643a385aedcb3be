//! Digest authentication (RFC 3261 22, RFC 7616): from a challenge and a password to credentials. MD5, SHA-256 and
//! SHA-512-256, with `qop=auth` or, for servers of RFC 2069's time, without.

use crate::sip::text::hex;
use crate::sip::value::auth_param;
use md5::Md5;
use sha2::{Digest, Sha256, Sha512_256};
use std::fmt::Write;

/// Who asks for what.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// User name.
    pub user: &'a str,
    /// Password.
    pub password: &'a str,
    /// Method of the request.
    pub method: &'a str,
    /// Its Request-URI.
    pub uri: &'a str,
    /// Something the server cannot foresee.
    pub cnonce: u64,
}

/// The credentials for a challenge, without the name of the header field. `None`: it asks for what is not known here.
pub fn answer(challenge: &[u8], asked: &Asked<'_>) -> Option<String> {
    let scheme = challenge.split(|octet| *octet == b' ').next()?;
    if !scheme.eq_ignore_ascii_case(b"Digest") {
        return None;
    }
    let param = |name: &[u8]| std::str::from_utf8(auth_param(challenge, name)?).ok();
    let (realm, nonce) = (param(b"realm")?, param(b"nonce")?);
    let algorithm = param(b"algorithm").unwrap_or("MD5");
    let hash = hash_of(algorithm)?;
    let qop = match param(b"qop") {
        None => None,
        Some(offered) if offered.split(',').any(|qop| qop.trim().eq_ignore_ascii_case("auth")) => Some("auth"),
        Some(_) => return None,
    };
    let Asked { user, password, method, uri, cnonce } = *asked;
    let cnonce = String::from_utf8_lossy(&hex(cnonce)).into_owned();
    //= RFC 7616 section 3.4.1
    // response = KD(H(A1), nonce ":" nc ":" cnonce ":" qop ":" H(A2)); without qop as RFC 2069 had it.
    let secret = hash(&format!("{user}:{realm}:{password}"));
    let request = hash(&format!("{method}:{uri}"));
    let response = match qop {
        Some(qop) => hash(&format!("{secret}:{nonce}:00000001:{cnonce}:{qop}:{request}")),
        None => hash(&format!("{secret}:{nonce}:{request}")),
    };
    let mut text = format!(
        "Digest username=\"{user}\", realm=\"{realm}\", nonce=\"{nonce}\", uri=\"{uri}\", response=\"{response}\", algorithm={algorithm}"
    );
    if let Some(opaque) = param(b"opaque") {
        let _ = write!(text, ", opaque=\"{opaque}\"");
    }
    if let Some(qop) = qop {
        let _ = write!(text, ", qop={qop}, cnonce=\"{cnonce}\", nc=00000001");
    }
    Some(text)
}

fn hash_of(algorithm: &str) -> Option<fn(&str) -> String> {
    match algorithm.to_ascii_uppercase().as_str() {
        "MD5" => Some(digits::<Md5>),
        "SHA-256" => Some(digits::<Sha256>),
        "SHA-512-256" => Some(digits::<Sha512_256>),
        _ => None,
    }
}

fn digits<D: Digest>(text: &str) -> String {
    D::digest(text.as_bytes()).iter().fold(String::new(), |mut digits, octet| {
        let _ = write!(digits, "{octet:02x}");
        digits
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(challenge: &str, method: &str, uri: &str, user: &str, password: &str, cnonce: u64) -> String {
        let asked = Asked { user, password, method, uri, cnonce };
        let answer = answer(challenge.as_bytes(), &asked).unwrap();
        String::from_utf8(auth_param(answer.as_bytes(), b"response").unwrap().to_vec()).unwrap()
    }

    /// The same by the letter of RFC 7616 3.4.1, written out.
    #[test]
    fn md5_and_sha_256_are_put_together_as_the_rfc_says() {
        let cnonce = "0123456789abcdef";
        for (algorithm, hash) in [("MD5", digits::<Md5> as fn(&str) -> String), ("SHA-256", digits::<Sha256>)] {
            let challenge =
                format!("Digest realm=\"r, x\", nonce=\"n=\", algorithm={algorithm}, qop=\"auth-int,auth\"");
            let (a1, a2) = (hash("alice:r, x:secret"), hash("REGISTER:sip:example.net"));
            let expected = hash(&format!("{a1}:n=:00000001:{cnonce}:auth:{a2}"));
            let uri = "sip:example.net";
            assert_eq!(response(&challenge, "REGISTER", uri, "alice", "secret", 0x0123_4567_89ab_cdef), expected);
        }
    }

    /// RFC 2617 3.5 gives user, password, nonce and the digests H(A1) and H(A2) belong to; without qop there is no client
    /// nonce in it, so the value is that of RFC 2069.
    #[test]
    fn md5_without_qop_is_that_of_rfc_2069() {
        let challenge = "Digest realm=\"testrealm@host.com\", nonce=\"dcd98b7102dd2f0e8b11d0f600bfb0c093\"";
        let seen = response(challenge, "GET", "/dir/index.html", "Mufasa", "Circle Of Life", 0);
        assert_eq!(digits::<Md5>("Mufasa:testrealm@host.com:Circle Of Life"), "939e7578ed9e3c518a452acee763bce9");
        assert_eq!(digits::<Md5>("GET:/dir/index.html"), "39aff3a2bab6126f332b942af96d3366");
        assert_eq!(seen, "670fd8c2df070c60b045671b8b24ff02");
    }

    #[test]
    fn what_is_not_known_is_not_answered() {
        let asked = Asked { user: "u", password: "p", method: "REGISTER", uri: "sip:x", cnonce: 0 };
        for challenge in [
            "Basic realm=\"x\"",
            "Digest realm=\"x\"",
            "Digest realm=\"x\", nonce=\"n\", algorithm=AKAv1-MD5",
            "Digest realm=\"x\", nonce=\"n\", qop=\"auth-int\"",
            "",
        ] {
            assert_eq!(answer(challenge.as_bytes(), &asked), None, "{challenge}");
        }
    }
}
