//! `tls` of `[[listen]]` and `[[pool]]`: certificates, keys and authorities are read here, since what is wrong with them is
//! to be told with everything else.

use super::value::Reader;
use crate::control::clock::unix_now;
use crate::control::config::address::HostPort;
use crate::control::config::file::{self, Value};
use crate::control::config::problem::Problem;
use crate::control::config::{Backend, Discover, PoolTls};
use crate::dataplane::transport::Transport;
use crate::tls::{Certificate, Clienthood, Clients, Fault, SOON, Server, Trust};
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::time::{Duration, UNIX_EPOCH};
use toml::Spanned;

/// Octets of a file of certificates at most: a chain has some thousands, all authorities of the Web 300,000.
const FILE_MAX: u64 = 4 << 20;

const SAMPLE: &str = "tls = { certificate = \"/etc/viahop/fullchain.pem\", key = \"/etc/viahop/key.pem\" }";

impl Reader<'_> {
    /// How a listener speaks TLS, if it is one that does.
    pub(super) fn server(
        &mut self,
        one: &file::Listen,
        transport: Transport,
        advertise: Option<&HostPort>,
    ) -> Option<Server> {
        let tls = match (&one.tls, transport) {
            (None, Transport::Tls | Transport::Wss) => {
                let problem = Problem::error(one.address.span(), "no certificate to speak TLS with", "listens by TLS");
                self.problems.push(problem.help(format!("add `{SAMPLE}`")));
                return None;
            }
            (Some(tls), Transport::Udp | Transport::Tcp | Transport::Ws) => {
                let at = tls.certificate.span();
                let label = "only `tls:` and `wss:` have a use for it";
                self.error(at, format!("`tls` of a listener on `{transport}:`"), label);
                return None;
            }
            (None, _) => return None,
            (Some(tls), Transport::Tls | Transport::Wss) => tls,
        };
        let more = tls.more.iter().flatten().map(|pair| (&pair.certificate, &pair.key));
        let all: Vec<_> = [(&tls.certificate, &tls.key)].into_iter().chain(more).collect();
        let certificates: Vec<Certificate> =
            all.iter().filter_map(|(certificate, key)| self.certificate(certificate, key)).collect();
        //= RFC 5922 section 7.5
        //# the proxy
        //# MUST insert into the Record-Route header a URI that corresponds to an
        //# identity for which the proxy has a certificate;
        let is_strange = |name: &HostPort| certificates.iter().all(|one| !one.is_for(&name.host));
        if let Some((name, value)) = advertise.filter(|name| is_strange(name)).zip(one.advertise.as_ref())
            && !certificates.is_empty()
        {
            let title = format!("no certificate of this listener is for `{}`", name.host);
            self.warn(value.span(), title, "clients compare the two (RFC 5922 7.5)");
        }
        let clients = self.clients(tls);
        if certificates.len() < all.len() || tls.client_ca.is_some() && clients.is_none() {
            return None;
        }
        match Server::new(certificates, clients) {
            Ok(server) => Some(server),
            Err(error) => {
                self.error(tls.certificate.span(), "TLS cannot be spoken with this", error);
                None
            }
        }
    }

    fn clients(&mut self, tls: &file::ListenTls) -> Option<Clients> {
        let is_required = self.word(&tls.client_certificate, true, &[("required", true), ("optional", false)]);
        match (&tls.client_ca, &tls.client_certificate) {
            (Some(ca), _) => self.trust(ca).map(|trust| Clients { trust, is_required }),
            (None, Some(word)) => {
                let label = "nothing says who may have signed it";
                self.error(word.span(), "`client_certificate` without `client_ca`", label).help =
                    Some("add `client_ca = \"/etc/viahop/clients-ca.pem\"`".into());
                None
            }
            (None, None) => None,
        }
    }

    /// How the backends of a pool are spoken to by TLS.
    pub(super) fn pool_tls(
        &mut self,
        pool: &file::Pool,
        backends: &[Backend],
        discover: Option<&Discover>,
    ) -> Option<PoolTls> {
        let mut sealed = backends.iter().filter(|backend| backend.transport == Transport::Tls).peekable();
        let domain = discover.filter(|discover| discover.transport == Transport::Tls);
        let Some(tls) = &pool.tls else {
            let backend = sealed.peek().map(|backend| (&backend.name, &backend.at));
            if let Some((name, at)) = backend.or(domain.map(|domain| (&domain.domain, &domain.at))) {
                let title = format!("nothing says whose certificates to trust of `{name}`");
                let problem = Problem::error(at.clone(), title, "is reached by TLS");
                let help = "add `tls = { ca = \"/etc/viahop/ca.pem\" }` to the pool: the certificates of those who sign \
                            its servers'; of public authorities, Debian keeps them in /etc/ssl/certs/ca-certificates.crt";
                self.problems.push(problem.help(help));
            }
            return None;
        };
        if sealed.peek().is_none() && domain.is_none() && pool.list.is_none() {
            let label = "write `sips:HOST`, or `sip:HOST;transport=tls`";
            self.warn(tls.span(), "no backend of this pool is reached by TLS", label);
        }
        let tls = tls.get_ref();
        let trust = self.trust(&tls.ca);
        let certificate = self.shown(&tls.certificate, &tls.key)?;
        // Whoever serves a domain shows a certificate for that, whatever DNS calls the server (RFC 5922 4).
        let name = tls.name.as_ref().map(|name| name.get_ref().clone());
        let name = name.or_else(|| domain.map(|domain| domain.domain.clone()));
        let clienthood = match Clienthood::new(trust?, certificate) {
            Ok(clienthood) => clienthood,
            Err(error) => {
                self.error(tls.ca.span(), "TLS cannot be spoken with this", error);
                return None;
            }
        };
        let pool_tls = PoolTls { clienthood, name };
        let domain = domain.map(|domain| (HostPort { host: domain.domain.clone(), port: 0 }, &domain.at));
        let targets = sealed.map(|backend| (backend.target.clone(), &backend.at)).chain(domain);
        for (target, at) in targets.filter(|(target, _)| pool_tls.towards(target).is_none()) {
            let (title, at) = match &tls.name {
                Some(name) => (format!("`{}` is no name of a domain", name.get_ref()), name.span()),
                None => (format!("no certificate could be for `{}`", target.host), at.clone()),
            };
            let problem = Problem::error(at, title, "a certificate names a domain (RFC 5922)");
            self.problems.push(problem.help("say which with `name = \"sip.example.net\"` in the pool's `tls`"));
        }
        Some(pool_tls)
    }

    /// The certificate that servers are shown, if any. `None`: it is wrong.
    fn shown(&mut self, certificate: &Value<String>, key: &Value<String>) -> Option<Option<Certificate>> {
        match (certificate, key) {
            (Some(certificate), Some(key)) => self.certificate(certificate, key).map(Some),
            (None, None) => Some(None),
            (Some(one), None) | (None, Some(one)) => {
                self.error(one.span(), "`certificate` and `key` belong together", "the other one is missing");
                None
            }
        }
    }

    fn certificate(&mut self, certificate: &Spanned<String>, key: &Spanned<String>) -> Option<Certificate> {
        let (chain, secret) = (self.file(certificate), self.file(key));
        match Certificate::read(&chain?, &secret?) {
            Ok(read) => {
                self.look_at_dates(certificate, &read);
                Some(read)
            }
            Err(Fault::Certificate(why)) => {
                self.cannot_use(certificate, &why, "a chain in PEM, the server's own first")
            }
            Err(Fault::Key(why)) => self.cannot_use(key, &why, "PKCS#8, PKCS#1 or SEC1 in PEM, without a passphrase"),
            Err(Fault::Mismatch) => {
                let problem = Problem::error(key.span(), "the key is not that of the certificate", "this key");
                self.problems.push(problem.beside(certificate.span(), None, "this certificate"));
                None
            }
        }
    }

    fn cannot_use<T>(&mut self, path: &Spanned<String>, why: &str, label: &str) -> Option<T> {
        self.error(path.span(), format!("cannot use {}: {why}", path.get_ref()), label);
        None
    }

    fn look_at_dates(&mut self, path: &Spanned<String>, read: &Certificate) {
        let now = unix_now();
        let at: Range<usize> = path.span();
        let label = "renew it, then `kill -HUP` or `viahop ctl reload`";
        match (read.begins_at, read.expires_at) {
            (Some(begins), _) if begins > now => {
                let title = format!("{} is not valid before {}", path.get_ref(), date(begins));
                self.warn(at, title, "others will refuse it until then");
            }
            (_, Some(expires)) if expires <= now => {
                self.warn(at, format!("{} has expired on {}", path.get_ref(), date(expires)), label);
            }
            (_, Some(expires)) if expires <= now + SOON.as_secs() => {
                self.warn(at, format!("{} expires on {}", path.get_ref(), date(expires)), label);
            }
            _ => {}
        }
    }

    fn trust(&mut self, path: &Spanned<String>) -> Option<Trust> {
        match Trust::read(&self.file(path)?) {
            Ok(trust) => Some(trust),
            Err(why) => self.cannot_use(path, &why, "certificates of authorities in PEM"),
        }
    }

    fn file(&mut self, path: &Spanned<String>) -> Option<Vec<u8>> {
        match read(path.get_ref()) {
            Ok(octets) => Some(octets),
            Err(error) => {
                let label = match error.kind() {
                    io::ErrorKind::PermissionDenied => "the user viahop runs as has to be able to read it",
                    _ => "named here",
                };
                self.error(path.span(), format!("cannot read {}: {error}", path.get_ref()), label);
                None
            }
        }
    }
}

fn read(path: &str) -> io::Result<Vec<u8>> {
    // Opening a pipe would wait for whoever writes to it.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let file = File::open(path)?;
    let mut octets = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut octets)?;
    if octets.len() as u64 > FILE_MAX {
        return Err(io::Error::other(format!("it has more than {FILE_MAX} octets")));
    }
    Ok(octets)
}

fn date(seconds: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}
