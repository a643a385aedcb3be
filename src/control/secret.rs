//! The fleet's secret, and the keys that are made of it.
//!
//! ```text
//! secret ─► HKDF ─┬─ "route"        which backend a key belongs to, and the ids of backends    for good
//!                 ├─ "branch"       our branches                                               for good
//!                 └─ "mac" and id   what tokens are signed with, ┐
//! file ───► HKDF ──── "mac" and id  or made of a file of its own ┘ the first signs, all verify: `token_keys`
//! ```
//!
//! Nodes with the same secret agree about everything: which backend a Call-ID belongs to, which branch a transaction
//! gets, whose tokens are genuine. A node without one makes its own and keeps it in a file, so that a restart in the
//! middle of a call changes nothing.
//!
//! Token keys are replaced while calls go on; the secret itself cannot be: with another one every call would move, and the
//! backend that a token names would be nobody's.
//!
//! A secret that others than its user can read, or its group can write, is used all the same, with a warning: a fleet must
//! not go down over the mode of a file, and orchestrators mount secrets as they like.

use super::config::problem::{Problem, Severity};
use super::config::{Secret, TokenKey};
use crate::dataplane::keys::{Key, Keys};
use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A secret, with what else is known about it.
#[derive(Debug)]
pub struct Obtained {
    /// What token keys can be made of again when the configuration names others.
    pub root: Root,
    /// The keys made of it.
    pub keys: Keys,
    /// 16 hex digits by which two nodes can be compared; they give nothing away.
    pub fingerprint: String,
    /// What the operator may want to know.
    pub remarks: Vec<Problem>,
}

/// Octets of a secret that we make, and the least we take from a file.
const OWN_OCTETS: usize = 32;
const FILE_OCTETS_MIN: usize = 16;

/// Reads the secret, or makes one and keeps it, and makes keys of it.
///
/// # Errors
/// A file that the operator names cannot be read, or holds too little.
pub fn obtain(secret: &Secret, token_keys: &[TokenKey]) -> Result<Obtained, Problem> {
    let mut remarks = Vec::new();
    let root = match secret {
        Secret::Given(secret) => Root::new(secret.as_bytes()),
        Secret::File(path) => {
            remarks.extend(too_open(path));
            Root::new(&from_file(path)?)
        }
        Secret::Own => {
            let path = own_path();
            match own(path.as_deref()) {
                Ok(Own { secret, is_fresh }) => {
                    remarks.extend(path.as_deref().filter(|_| is_fresh).map(made));
                    remarks.extend(path.as_deref().and_then(too_open));
                    Root::new(&secret)
                }
                Err(error) => {
                    let place = path.map_or(String::new(), |path| format!(" in {}", path.display()));
                    let problem = Problem::environment(format!("the secret cannot be kept{place}: {error}"));
                    let help = "responses to requests from before a restart will be dropped; set `secret_file` in `[balancer]`, or STATE_DIRECTORY";
                    remarks.push(Problem { severity: Severity::Warning, ..problem.help(help) });
                    Root::new(&fresh()?)
                }
            }
        }
    };
    root.obtained(token_keys, remarks)
}

/// The same for a command that only looks: where this node's own secret is not kept yet, or not for this user to read, none is
/// made to be kept but one for the moment, with a warning.
///
/// # Errors
/// A file that the operator names cannot be read, or holds too little.
pub fn look_up(secret: &Secret, token_keys: &[TokenKey]) -> Result<Obtained, Problem> {
    if *secret != Secret::Own {
        return obtain(secret, token_keys);
    }
    let path = own_path();
    let title = match path.as_deref().map(|path| (path, kept(path))) {
        Some((path, Ok(Some(secret)))) => {
            return Root::new(&secret).obtained(token_keys, too_open(path).into_iter().collect());
        }
        Some((path, Ok(None))) => format!("there is no secret in {}", path.display()),
        Some((path, Err(error))) => format!("cannot read the secret in {}: {error}", path.display()),
        None => "it is not known where the secret is kept: neither STATE_DIRECTORY nor HOME is set".to_owned(),
    };
    let problem = Problem { severity: Severity::Warning, ..Problem::environment(title) };
    let help = "with the one made up for now, keys lead to other backends than with viahop's own: ask as the user it runs as, with its \
                STATE_DIRECTORY, or name a `secret_file` in `[balancer]`";
    let mut obtained = ephemeral(token_keys)?;
    obtained.remarks.push(problem.help(help));
    Ok(obtained)
}

/// A secret that nobody else has and that is forgotten with the process.
///
/// # Errors
/// The kernel has no random numbers, or a file that the operator names cannot be read.
pub fn ephemeral(token_keys: &[TokenKey]) -> Result<Obtained, Problem> {
    Root::new(&fresh()?).obtained(token_keys, Vec::new())
}

/// What a secret is kept as: enough to make keys of, and not the secret itself.
#[derive(Clone)]
pub struct Root(Hkdf<Sha256>);

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Root")
    }
}

impl Root {
    /// HKDF (RFC 5869) with a label for each purpose: keys that say nothing about each other.
    fn new(secret: &[u8]) -> Root {
        Root(Hkdf::new(Some(b"viahop"), secret))
    }

    fn key(&self, label: &str) -> Key {
        let mut key: Key = [0; 16];
        self.0.expand(label.as_bytes(), &mut key).expect("16 octets are fewer than HKDF can give");
        key
    }

    fn mac(&self, id: u8) -> Key {
        self.key(&format!("mac {id}"))
    }

    fn fingerprint(&self) -> String {
        let key = self.key("fingerprint");
        key.iter().take(8).map(|octet| format!("{octet:02x}")).collect()
    }

    /// The keys of this secret, with these to sign and verify tokens.
    ///
    /// # Errors
    /// A file cannot be read, or holds too little.
    pub fn obtained(&self, token_keys: &[TokenKey], mut remarks: Vec<Problem>) -> Result<Obtained, Problem> {
        let mut macs = Vec::new();
        let mut files: Vec<(String, &Path)> = Vec::new();
        let mut fingerprint = self.fingerprint();
        for TokenKey { id, file } in token_keys {
            let Some(path) = file else {
                macs.push((*id, self.mac(*id)));
                continue;
            };
            remarks.extend(too_open(path));
            let root = Root::new(&from_file(path)?);
            macs.push((*id, root.mac(*id)));
            let mark = root.fingerprint();
            let twin =
                files.iter().find(|(known, _)| *known == mark).map(|(_, other)| format!("as {}", other.display()));
            if let Some(twin) = twin.or_else(|| (mark == fingerprint).then(|| "as the fleet's secret".to_owned())) {
                let title = format!("{} holds the same {twin}", path.display());
                let problem = Problem { severity: Severity::Warning, ..Problem::environment(title) };
                remarks
                    .push(problem.help("who knows the one knows the other; `openssl rand -base64 32` makes another"));
            }
            files.push((mark, path));
        }
        // Nodes that do not know the same keys take each other's tokens for forged: their fingerprints differ.
        if token_keys != [TokenKey { id: 0, file: None }] {
            let mut digest = Sha256::new().chain_update(&fingerprint);
            for (id, mac) in &macs {
                digest.update([*id]);
                digest.update(mac);
            }
            fingerprint = digest.finalize().iter().take(8).map(|octet| format!("{octet:02x}")).collect();
        }
        let Some(((signs, mac), others)) = macs.split_first() else {
            return Err(Problem::environment("no token key is named"));
        };
        let keys = Keys::new(&self.key("route"), &self.key("branch"), mac, *signs);
        let keys = others.iter().fold(keys, |keys, (id, mac)| keys.accepting(*id, mac));
        Ok(Obtained { root: self.clone(), keys, fingerprint, remarks })
    }
}

/// The note about a secret that was not there before.
fn made(path: &Path) -> Problem {
    let problem = Problem::environment(format!("a secret was made, and is kept in {}", path.display()));
    let help = "that is all a single node needs; the nodes of a fleet must share one: `openssl rand -base64 32` makes it, `secret_file` in \
                `[balancer]` names it on each";
    Problem { severity: Severity::Note, ..problem.help(help) }
}

/// A warning if the secret at `path` can be read by anybody, or written by others than its user.
fn too_open(path: &Path) -> Option<Problem> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    if mode & 0o026 == 0 {
        return None;
    }
    let problem = Problem::environment(format!("{} has the mode {mode:04o}", path.display()));
    let help = format!("who reads it can forge tokens, who writes it can end calls: `chmod 600 {}`", path.display());
    Some(Problem { severity: Severity::Warning, ..problem.help(help) })
}

fn from_file(path: &Path) -> Result<Vec<u8>, Problem> {
    let name = path.display();
    let text = fs::read(path).map_err(|error| {
        let help = match error.kind() {
            io::ErrorKind::NotFound => {
                format!("`(umask 077; openssl rand -base64 32 > {name})` makes one; every node of a fleet needs the same")
            }
            // Not a word of making one: it would be written over the fleet's.
            io::ErrorKind::PermissionDenied => format!(
                "let the user that viahop runs as read it: `chgrp GROUP {name}; chmod 640 {name}`, with a group of that user"
            ),
            _ => "name the file that the fleet's secret is in".to_owned(),
        };
        Problem::environment(format!("cannot read the secret in {name}: {error}")).help(help)
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
    Some(state_directory()?.join("secret"))
}

/// Why nothing can be kept.
pub const NO_STATE_DIRECTORY: &str = "neither STATE_DIRECTORY nor HOME is set";

/// Where what the next process has to know is kept, if anywhere. It may not be there yet.
pub fn state_directory() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("STATE_DIRECTORY")
        .or_else(|| variable("XDG_STATE_HOME").map(|directory| directory.join("viahop")))
        .or_else(|| variable("HOME").map(|home| home.join(".local/state/viahop")))
}

/// A secret of our own.
#[derive(Debug, PartialEq)]
struct Own {
    secret: Vec<u8>,
    /// Whether there was none before.
    is_fresh: bool,
}

/// Our own secret, if one was made before.
fn kept(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(secret) if secret.len() >= OWN_OCTETS => Ok(Some(secret)),
        Ok(_) => Err(io::Error::other("the file holds something else")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn own(path: Option<&Path>) -> io::Result<Own> {
    let old = |secret| Own { secret, is_fresh: false };
    let path = path.ok_or_else(|| io::Error::other(NO_STATE_DIRECTORY))?;
    if let Some(secret) = kept(path)? {
        return Ok(old(secret));
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let secret = fresh().map_err(|problem| io::Error::other(problem.title))?;
    // Two processes may start at once: written beside it and linked into place, the file is never there without its
    // octets, and whoever comes second reads those of the first.
    let draft = path.with_extension(std::process::id().to_string());
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    // On the disk before it has its name: the power may fail in between, and an empty secret would be there for good.
    let written = file.write_all(&secret).and_then(|()| file.sync_all());
    let linked = written.and_then(|()| fs::hard_link(&draft, path));
    // Whatever came of it: in a container the next process has the same number, and could not make a draft of its own.
    fs::remove_file(&draft)?;
    match linked {
        Ok(()) => Ok(Own { secret: secret.to_vec(), is_fresh: true }),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => fs::read(path).map(old),
        Err(error) => Err(error),
    }
}

fn fresh() -> Result<[u8; OWN_OCTETS], Problem> {
    let mut secret = [0; OWN_OCTETS];
    getrandom::fill(&mut secret)
        .map_err(|error| Problem::environment(format!("the kernel has no random numbers: {error}")))?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u8, file: Option<&Path>) -> TokenKey {
        TokenKey { id, file: file.map(Path::to_owned) }
    }

    fn given(token_keys: &[TokenKey]) -> Obtained {
        obtain(&Secret::Given("correct horse battery staple".into()), token_keys).unwrap()
    }

    /// A file of this test's own, readable by its user only.
    fn file(name: &str, text: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("viahop-key-{name}-{}", std::process::id()));
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// Frozen: other keys would move every call of a fleet that upgrades.
    #[test]
    fn a_secret_always_gives_the_same_keys() {
        let obtained = given(&[key(0, None)]);
        assert_eq!(obtained.fingerprint, "d5fecd5d6c142d4a");
        assert_eq!(format!("{:016x}", obtained.keys.route(b"call-1")), "7ab92185145f612c");
        assert_eq!(format!("{:016x}", obtained.keys.mac_of(0, b"x").unwrap()), "600486f8b8fac301");
    }

    /// Frozen likewise: a node that is upgraded verifies what the others sign. Computed by an implementation of RFC 5869 and of
    /// SipHash that shares no code with the crates.
    #[test]
    fn token_keys_are_those_of_their_file_and_id() {
        let path = file("golden", "staple battery horse correct\n");
        let obtained = given(&[key(1, Some(&path)), key(2, None), key(0, None)]);
        let mac = |id| format!("{:016x}", obtained.keys.mac_of(id, b"x").unwrap());
        assert_eq!([mac(0), mac(1), mac(2)], ["600486f8b8fac301", "449884fb80a4d745", "cf22704337389144"]);
        assert_eq!(obtained.keys.current(), 1);
        assert_eq!(format!("{:016x}", obtained.keys.route(b"call-1")), "7ab92185145f612c", "calls stay");
        let reversed = given(&[key(2, None), key(1, Some(&path)), key(0, None)]);
        assert_ne!(obtained.fingerprint, reversed.fingerprint, "nodes half way through a rotation can be told");
        assert!(obtained.remarks.is_empty(), "{:?}", obtained.remarks);
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_secret_that_others_can_read_or_that_is_used_twice_is_warned_about() {
        let (one, other) = (file("one", "a secret of 16 octets"), file("other", "a secret of 16 octets"));
        fs::set_permissions(&other, fs::Permissions::from_mode(0o644)).unwrap();
        let remarks = given(&[key(0, None), key(1, Some(&one)), key(2, Some(&other))]).remarks;
        let said: Vec<&str> = remarks.iter().map(|problem| &problem.title[..]).collect();
        assert!(said[0].contains("has the mode 0644") && said[1].contains("holds the same as"), "{said:?}");
        assert!(remarks.iter().all(|problem| problem.severity == Severity::Warning));
        let open = obtain(&Secret::File(other.clone()), &[key(0, None)]).unwrap();
        assert!(open.remarks[0].help.as_ref().unwrap().contains("chmod 600"));
        let twice = obtain(&Secret::File(one.clone()), &[key(1, Some(&one))]).unwrap();
        assert!(twice.remarks[0].title.contains("the fleet's secret"), "{:?}", twice.remarks);
        for path in [one, other] {
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn our_own_secret_outlives_a_restart() {
        let directory = std::env::temp_dir().join(format!("viahop-secret-{}", std::process::id()));
        let path = directory.join("deep/secret");
        let first = own(Some(&path)).unwrap();
        assert!(first.is_fresh && made(&path).help.unwrap().contains("a fleet must share one"));
        assert_eq!(own(Some(&path)).unwrap(), Own { secret: first.secret.clone(), is_fresh: false });
        assert_eq!(first.secret.len(), OWN_OCTETS);
        assert!(too_open(&path).is_none());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_secret_file_that_is_missing_or_short_is_refused_with_a_remedy() {
        let problem = from_file(Path::new("/nonexistent/secret")).unwrap_err();
        assert!(problem.help.unwrap().contains("openssl rand"));
        let problem = from_file(&std::env::temp_dir()).unwrap_err();
        assert!(!problem.help.unwrap().contains("openssl rand"), "what is there is not to be written over");
        assert!(own(None).is_err());
    }
}
