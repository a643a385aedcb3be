//! The fleet's secret, and the keys that are made of it.
//!
//! Nodes with the same secret agree about everything: which backend a Call-ID belongs to, which branch a transaction
//! gets, whose tokens are genuine. A node without one makes its own and keeps it in a file, so that a restart in the
//! middle of a call changes nothing.

use super::config::Secret;
use super::config::problem::Problem;
use crate::dataplane::keys::{Key, Keys};
use hkdf::Hkdf;
use sha2::Sha256;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A secret, with what else is known about it.
#[derive(Debug)]
pub struct Obtained {
    /// The keys made of it.
    pub keys: Keys,
    /// 16 hex digits by which two nodes can be compared; they give nothing away.
    pub fingerprint: String,
    /// What the operator may want to know.
    pub warning: Option<Problem>,
}

/// Octets of a secret that we make, and the least we take from a file.
const OWN_OCTETS: usize = 32;
const FILE_OCTETS_MIN: usize = 16;

/// Reads the secret, or makes one and keeps it.
///
/// # Errors
/// The file that the operator names cannot be read, or holds too little.
pub fn obtain(secret: &Secret) -> Result<Obtained, Problem> {
    match secret {
        Secret::Given(secret) => Ok(derive(secret.as_bytes(), None)),
        Secret::File(path) => from_file(path).map(|secret| derive(&secret, None)),
        Secret::Own => {
            let path = own_path();
            match own(path.as_deref()) {
                Ok(secret) => Ok(derive(&secret, None)),
                Err(error) => {
                    let place =
                        path.map_or("no state directory is known".to_owned(), |path| path.display().to_string());
                    let warning = Problem {
                        severity: super::config::problem::Severity::Warning,
                        ..Problem::environment(format!("the secret cannot be kept in {place}: {error}"))
                    };
                    let help = "responses to requests from before a restart will be dropped; set `secret_file` in `[balancer]`, or STATE_DIRECTORY";
                    Ok(derive(&fresh()?, Some(warning.help(help))))
                }
            }
        }
    }
}

/// A secret that nobody else has and that is forgotten with the process.
///
/// # Errors
/// The kernel has no random numbers.
pub fn ephemeral() -> Result<Obtained, Problem> {
    Ok(derive(&fresh()?, None))
}

fn from_file(path: &Path) -> Result<Vec<u8>, Problem> {
    let name = path.display();
    let text = fs::read(path).map_err(|error| {
        Problem::environment(format!("cannot read the secret in {name}: {error}"))
            .help(format!("`openssl rand -base64 32 > {name}` makes one; every node of a fleet needs the same"))
    })?;
    let secret = text.trim_ascii().to_vec();
    if secret.len() < FILE_OCTETS_MIN {
        let problem = Problem::environment(format!("the secret in {name} has {} octets", secret.len()));
        return Err(problem.help(format!("at least {FILE_OCTETS_MIN}; `openssl rand -base64 32` makes a good one")));
    }
    Ok(secret)
}

/// Where our own secret is kept: where systemd says, else where the user's programs keep their state.
fn own_path() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let directory = variable("STATE_DIRECTORY")
        .or_else(|| variable("XDG_STATE_HOME").map(|directory| directory.join("viahop")))
        .or_else(|| variable("HOME").map(|home| home.join(".local/state/viahop")))?;
    Some(directory.join("secret"))
}

fn own(path: Option<&Path>) -> io::Result<Vec<u8>> {
    let path = path.ok_or_else(|| io::Error::other("neither STATE_DIRECTORY nor HOME is set"))?;
    match fs::read(path) {
        Ok(secret) if secret.len() >= OWN_OCTETS => return Ok(secret),
        Ok(_) => return Err(io::Error::other("the file holds something else")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let secret = fresh().map_err(|problem| io::Error::other(problem.title))?;
    // Two processes may start at once: written beside it and linked into place, the file is never there without its
    // octets, and whoever comes second reads those of the first.
    let draft = path.with_extension(std::process::id().to_string());
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?.write_all(&secret)?;
    let linked = fs::hard_link(&draft, path);
    fs::remove_file(&draft)?;
    match linked {
        Ok(()) => Ok(secret.to_vec()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => fs::read(path),
        Err(error) => Err(error),
    }
}

fn fresh() -> Result<[u8; OWN_OCTETS], Problem> {
    let mut secret = [0; OWN_OCTETS];
    getrandom::fill(&mut secret)
        .map_err(|error| Problem::environment(format!("the kernel has no random numbers: {error}")))?;
    Ok(secret)
}

/// HKDF (RFC 5869) with a label for each purpose: keys that say nothing about each other.
fn derive(secret: &[u8], warning: Option<Problem>) -> Obtained {
    let hkdf = Hkdf::<Sha256>::new(Some(b"viahop"), secret);
    let key = |label: &[u8]| {
        let mut key: Key = [0; 16];
        hkdf.expand(label, &mut key).expect("16 octets are fewer than HKDF can give");
        key
    };
    let fingerprint = u64::from_be_bytes(*key(b"fingerprint").first_chunk().expect("16 octets have a first 8"));
    let keys = Keys::new(&key(b"route"), &key(b"branch"), &key(b"mac 0"), 0);
    Obtained { keys, fingerprint: format!("{fingerprint:016x}"), warning }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frozen: other keys would move every call of a fleet that upgrades.
    #[test]
    fn a_secret_always_gives_the_same_keys() {
        let obtained = obtain(&Secret::Given("correct horse battery staple".into())).unwrap();
        assert_eq!(obtained.fingerprint, "d5fecd5d6c142d4a");
        assert_eq!(format!("{:016x}", obtained.keys.route(b"call-1")), "7ab92185145f612c");
    }

    #[test]
    fn our_own_secret_outlives_a_restart() {
        let directory = std::env::temp_dir().join(format!("viahop-secret-{}", std::process::id()));
        let path = directory.join("deep/secret");
        let first = own(Some(&path)).unwrap();
        assert_eq!(own(Some(&path)).unwrap(), first);
        assert_eq!(first.len(), OWN_OCTETS);
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_secret_file_that_is_missing_or_short_is_refused_with_a_remedy() {
        let problem = from_file(Path::new("/nonexistent/secret")).unwrap_err();
        assert!(problem.help.unwrap().contains("openssl rand"));
        assert!(own(None).is_err());
    }
}
