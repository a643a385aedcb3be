//! Digest authentication (RFC 3261 22, RFC 7616), both sides: from a challenge and a password to credentials, and from
//! credentials to whether they are right. MD5, SHA-256 and SHA-512-256, with `qop=auth` or, for servers of RFC 2069's time,
//! without.

use crate::rng::{mix, seed};
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

/// The credentials for a challenge, without the name of the header field, or for a further request those that answered it
/// before. `None`: it asks for what is not known here.
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
    let cnonce = format!("{cnonce:016x}");
    //= RFC 7616 section 3.4
    //# The nc value is the hexadecimal count of the number of requests
    //# (including the current request) that the client has sent with the
    //# nonce value in this request.
    let before = param(b"nc").and_then(|nc| u32::from_str_radix(nc, 16).ok()).unwrap_or(0);
    let nc = format!("{:08x}", before.wrapping_add(1));
    let once = qop.map(|qop| (&*nc, &*cnonce, qop));
    let response = response(hash, [user, realm, password], [method, uri], nonce, once);
    let mut text = format!(
        "Digest username=\"{user}\", realm=\"{realm}\", nonce=\"{nonce}\", uri=\"{uri}\", response=\"{response}\", algorithm={algorithm}"
    );
    if let Some(opaque) = param(b"opaque") {
        let _ = write!(text, ", opaque=\"{opaque}\"");
    }
    if let Some(qop) = qop {
        let _ = write!(text, ", qop={qop}, cnonce=\"{cnonce}\", nc={nc}");
    }
    Some(text)
}

/// `secret` is user, realm and password, `request` method and URI, `once` nc, cnonce and qop.
fn response(
    hash: Hash,
    secret: [&str; 3],
    request: [&str; 2],
    nonce: &str,
    once: Option<(&str, &str, &str)>,
) -> String {
    //= RFC 7616 section 3.4.1
    // response = KD(H(A1), nonce ":" nc ":" cnonce ":" qop ":" H(A2)); without qop as RFC 2069 had it.
    let (secret, request) = (hash(&secret.join(":")), hash(&request.join(":")));
    match once {
        Some((nc, cnonce, qop)) => hash(&format!("{secret}:{nonce}:{nc}:{cnonce}:{qop}:{request}")),
        None => hash(&format!("{secret}:{nonce}:{request}")),
    }
}

/// What callees demand of a REGISTER: one password for everybody, proven by digest. Nothing is remembered of a challenge:
/// its nonce is a function of the Call-ID it was for.
#[derive(Clone, Debug)]
pub struct Realm {
    algorithm: &'static str,
    hash: Hash,
    password: String,
    key: u64,
}

/// What became of the demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The credentials are right.
    Given,
    /// There are none, or they answer another challenge.
    Missing,
    /// They are wrong.
    Wrong,
}

impl Realm {
    /// A realm with this password. `None`: the algorithm is none of MD5, SHA-256 and SHA-512-256.
    pub fn new(algorithm: &str, password: &str) -> Option<Realm> {
        let hash = hash_of(algorithm)?;
        let algorithm = ALGORITHMS.into_iter().find(|known| known.eq_ignore_ascii_case(algorithm))?;
        Some(Realm { algorithm, hash, password: password.to_owned(), key: seed() })
    }

    /// The challenge for a request with this digest of its Call-ID.
    pub fn challenge(&self, call_id: u64) -> String {
        let (nonce, algorithm) = (self.nonce(call_id), self.algorithm);
        format!("Digest realm=\"viahop-load\", nonce=\"{nonce}\", algorithm={algorithm}, qop=\"auth\"")
    }

    /// Whether these credentials answer that challenge.
    pub fn check(&self, credentials: Option<&[u8]>, method: &str, call_id: u64) -> Proof {
        let Some(credentials) = credentials else { return Proof::Missing };
        let param = |name: &[u8]| auth_param(credentials, name).and_then(|value| std::str::from_utf8(value).ok());
        let of = |name: &[u8]| param(name).unwrap_or_default();
        if of(b"nonce") != self.nonce(call_id) || of(b"realm") != "viahop-load" {
            return Proof::Missing;
        }
        let secret = [of(b"username"), "viahop-load", &self.password];
        let once = param(b"qop").map(|qop| (of(b"nc"), of(b"cnonce"), qop));
        let expected = response(self.hash, secret, [method, of(b"uri")], of(b"nonce"), once);
        if of(b"response") == expected { Proof::Given } else { Proof::Wrong }
    }

    fn nonce(&self, call_id: u64) -> String {
        format!("{:016x}", mix(call_id ^ self.key))
    }
}

/// The algorithms of RFC 7616 and RFC 8760, without their `-sess` forms.
pub const ALGORITHMS: [&str; 3] = ["MD5", "SHA-256", "SHA-512-256"];

type Hash = fn(&str) -> String;

fn hash_of(algorithm: &str) -> Option<Hash> {
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
    fn credentials_prove_the_password_and_only_for_their_own_challenge() {
        for algorithm in ["md5", "SHA-256", "sha-512-256"] {
            let realm = Realm::new(algorithm, "secret").unwrap();
            let credentials = |challenge: &str, password| {
                let asked = Asked { user: "alice", password, method: "REGISTER", uri: "sip:x", cnonce: 7 };
                answer(challenge.as_bytes(), &asked).unwrap()
            };
            let right = credentials(&realm.challenge(5), "secret");
            assert_eq!(realm.check(Some(right.as_bytes()), "REGISTER", 5), Proof::Given);
            assert_eq!(realm.check(Some(right.as_bytes()), "INVITE", 5), Proof::Wrong);
            assert_eq!(realm.check(Some(right.as_bytes()), "REGISTER", 6), Proof::Missing);
            let wrong = credentials(&realm.challenge(5), "Secret");
            assert_eq!(realm.check(Some(wrong.as_bytes()), "REGISTER", 5), Proof::Wrong);
            assert_eq!(realm.check(None, "REGISTER", 5), Proof::Missing);
            assert_eq!(realm.check(Some(b"Digest"), "REGISTER", 5), Proof::Missing);
        }
        assert!(Realm::new("SHA-1", "secret").is_none());
    }

    #[test]
    fn who_asks_again_with_the_same_nonce_counts_on() {
        let challenge = "Digest realm=\"r, x\", nonce=\"n=\", opaque=\"o\", algorithm=SHA-256, qop=\"auth\"";
        let mut credentials = challenge.to_owned();
        for nc in ["00000001", "00000002", "00000003"] {
            let asked = Asked {
                user: "alice",
                password: "secret",
                method: "INVITE",
                uri: "sip:x",
                cnonce: 0x0123_4567_89ab_cdef,
            };
            credentials = answer(credentials.as_bytes(), &asked).unwrap();
            let hash = digits::<Sha256>;
            let (a1, a2) = (hash("alice:r, x:secret"), hash("INVITE:sip:x"));
            let response = hash(&format!("{a1}:n=:{nc}:0123456789abcdef:auth:{a2}"));
            let expected = format!(
                "Digest username=\"alice\", realm=\"r, x\", nonce=\"n=\", uri=\"sip:x\", response=\"{response}\", \
                 algorithm=SHA-256, opaque=\"o\", qop=auth, cnonce=\"0123456789abcdef\", nc={nc}"
            );
            assert_eq!(credentials, expected);
        }
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
