//! What whoever started viahop is told of it by sd_notify(3), as systemd asks of units of `Type=notify`: that it serves, that it
//! drains, and the line that `systemctl status` shows. Without `NOTIFY_SOCKET` nobody is told anything.

use super::view::View;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::{env, io};
use tokio::sync::watch;

/// Tells of what `views` brings whenever it says something else than before, until no more come.
pub async fn tell(mut views: watch::Receiver<Arc<View>>) {
    let mut told = String::new();
    loop {
        let view = views.borrow_and_update().clone();
        let line = status(&view);
        if line != told {
            let phase = if view.is_draining { "STOPPING" } else { "READY" };
            match notify(&format!("{phase}=1\nSTATUS={line}\n")) {
                // Whoever is busy is told with the next view, which comes within a second.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Who does not listen gives up on us by itself: there is nothing to do about it here.
                _ => told = line,
            }
        }
        if views.changed().await.is_err() {
            return;
        }
    }
}

/// Says it at `NOTIFY_SOCKET`, a path or, with `@` before it, a name that is in no file system; at once or not at all, since calls
/// do not wait for a supervisor.
fn notify(state: &str) -> io::Result<()> {
    let Some(place) = env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match place.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(&place)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}

fn status(view: &View) -> String {
    let taking = view.backends.iter().filter(|backend| backend.takes_new).count();
    let mut line = format!("{taking} of {} backends take new calls", view.backends.len());
    if view.is_draining {
        line = "draining: serves on until nothing comes for a while".into();
    } else if !view.empty_pools.is_empty() {
        line = format!("{line}; none of pool {}", view.empty_pools.join(", "));
    }
    match &view.reload.error {
        Some(error) => format!("{line}; last reload refused: {error}"),
        None => line,
    }
}
