//! The socket that `viahop ctl` speaks to: a file that its owner alone can open.
//!
//! ```text
//! where? configured ─► there, or the start fails
//!        default    ─► the first of $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR/viahop, /run/viahop that takes it, or nowhere
//! PATH.lock: held while the process lives ─► PATH: what a dead process left is removed ─► bound, 0600, listened on
//! ```
//!
//! The lock decides whose the path is, since the file of a socket tells nothing about whether anybody listens: the kernel
//! lets go of a lock with the process that held it, however that ended.

use super::config::{SOCKET_PATH_MAX, Socket};
use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixSocket};

/// Its name in a directory of ours.
const NAME: &str = "ctl.sock";

/// Connections that wait to be taken.
const BACKLOG: u32 = 16;

/// A socket that is listened on.
#[derive(Debug)]
pub struct CtlSocket {
    /// Where new connections come from.
    pub listener: UnixListener,
    /// What is to be kept while that is served.
    pub place: CtlPlace,
}

/// The place of a socket, which is ours until this is dropped.
#[derive(Debug)]
pub struct CtlPlace {
    /// Its path.
    pub path: PathBuf,
    _lock: File,
}

impl Drop for CtlPlace {
    fn drop(&mut self) {
        fs::remove_file(&self.path).ok();
    }
}

/// Why there is no socket at a path.
#[derive(Debug)]
pub struct NoSocket {
    /// The path.
    pub path: PathBuf,
    /// What is in the way.
    pub why: String,
    /// Whether that is a viahop that lives.
    pub is_taken: bool,
}

/// What came of a wish for a socket.
#[derive(Debug)]
pub enum Opened {
    /// There is one.
    At(CtlSocket),
    /// None is wanted.
    Off,
    /// Nobody asked for a certain place, and none of the usual ones would do.
    Nowhere(Vec<NoSocket>),
}

/// Opens what `wanted` says. Must be called within a tokio runtime.
///
/// # Errors
/// The path that is asked for cannot be had.
pub fn open(wanted: &Socket) -> Result<Opened, NoSocket> {
    match wanted {
        Socket::Off => Ok(Opened::Off),
        Socket::Path(path) => open_at(path).map(Opened::At),
        Socket::Default => {
            let mut tried = Vec::new();
            for path in usual_places() {
                // systemd has made its own, and packages make theirs; that of a user is made by whoever comes first.
                if let Some(folder) = path.parent().filter(|_| !path.starts_with("/run/viahop")) {
                    DirBuilder::new().mode(0o700).create(folder).ok();
                }
                match open_at(&path) {
                    Ok(socket) => return Ok(Opened::At(socket)),
                    Err(error) => tried.push(error),
                }
            }
            Ok(Opened::Nowhere(tried))
        }
    }
}

/// Whether there can be a socket at `path`. Nothing stays there that was not there before: a lock that root has made would keep the
/// user that viahop runs as from starting. Must be called within a tokio runtime.
///
/// # Errors
/// The path cannot be had.
pub fn try_out(path: &Path) -> Result<(), NoSocket> {
    let is_new = !lock_of(path).exists();
    let opened = open_at(path);
    if is_new {
        fs::remove_file(lock_of(path)).ok();
    }
    opened.map(drop)
}

/// Where sockets of ours are, if nobody says where: the places of a service, of a user, and of the machine.
pub fn usual_places() -> Vec<PathBuf> {
    let from = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    // systemd separates several directories by colons; the first is ours as well as any.
    let service = from("RUNTIME_DIRECTORY")
        .and_then(|list| Some(PathBuf::from(list.to_str()?.split(':').next()?)))
        .map(|folder| folder.join(NAME));
    let user = from("XDG_RUNTIME_DIR").map(|folder| Path::new(&folder).join("viahop").join(NAME));
    service.into_iter().chain(user).chain([Path::new("/run/viahop").join(NAME)]).collect()
}

fn open_at(path: &Path) -> Result<CtlSocket, NoSocket> {
    let because = |why: String| NoSocket { path: path.to_owned(), why, is_taken: false };
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(because(format!("the path is longer than {SOCKET_PATH_MAX} octets")));
    }
    let lock = lock(path).map_err(|(why, is_taken)| NoSocket { is_taken, ..because(why) })?;
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            fs::remove_file(path)
                .map_err(|error| because(format!("what a process before left there stays: {error}")))?;
        }
        Ok(_) => return Err(because("something that is no socket lies there".into())),
        Err(_) => {}
    }
    let listener = listen(path).map_err(|error| because(error.to_string()))?;
    Ok(CtlSocket { listener, place: CtlPlace { path: path.to_owned(), _lock: lock } })
}

fn lock_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// Takes the lock beside `path`. The file stays when we go, but for [`try_out`]: two others could lock two files.
///
/// # Errors
/// Why not, and whether it is because a viahop that lives has it.
fn lock(path: &Path) -> Result<File, (String, bool)> {
    let name = lock_of(path);
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&name);
    let mut file = options.map_err(|error| (format!("{}: {error}", name.display()), false))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            Read::take(&mut file, 16).read_to_string(&mut owner).ok();
            return Err((format!("the viahop with pid {} has it", owner.trim()), true));
        }
        Err(TryLockError::Error(error)) => return Err((format!("cannot be locked: {error}"), false)),
    }
    if !name.exists() {
        // Who tried the path out took it away behind us.
        return lock(path);
    }
    // For whoever finds it locked; nothing depends on it.
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).ok();
    Ok(file)
}

/// Nobody can connect before the mode is set: until then, nobody listens.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = env::temp_dir().join(format!("viahop-socket-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn open_path(path: &Path) -> Result<CtlSocket, NoSocket> {
        match open(&Socket::Path(path.to_owned()))? {
            Opened::At(socket) => Ok(socket),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn only_its_owner_can_open_it_and_it_goes_with_the_process() {
        let folder = folder("mode");
        let path = folder.join(NAME);
        let socket = open_path(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists());
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn a_second_process_is_refused_and_what_a_dead_one_left_is_not_in_the_way() {
        let folder = folder("stale");
        let path = folder.join(NAME);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a closed socket leaves its file");
        let first = open_path(&path).unwrap();
        let refused = open_path(&path).unwrap_err();
        assert_eq!(refused.why, format!("the viahop with pid {} has it", std::process::id()));
        drop(first);
        open_path(&path).unwrap();
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn what_is_tried_out_is_left_as_it_was() {
        let folder = folder("tried");
        let path = folder.join(NAME);
        try_out(&path).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        let socket = open_path(&path).unwrap();
        assert!(try_out(&path).unwrap_err().is_taken);
        assert!(path.exists() && lock_of(&path).exists());
        drop(socket);
        try_out(&path).unwrap();
        assert!(lock_of(&path).exists());
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let folder = folder("file");
        let path = folder.join(NAME);
        fs::write(&path, "precious").unwrap();
        assert!(open_path(&path).unwrap_err().why.contains("no socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_dir_all(folder).unwrap();
    }
}
