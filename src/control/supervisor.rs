//! What whoever started viahop is told of it by sd_notify(3), as systemd asks of units of `Type=notify`: that it serves, that it
//! drains, and the line that `systemctl status` shows. Without `NOTIFY_SOCKET` nobody is told anything.

use super::view::View;
use sd_notify::{NotifyState, notify};
use std::sync::Arc;
use tokio::sync::watch;

/// Tells of what `views` brings whenever it says something else than before, until no more come.
pub async fn tell(mut views: watch::Receiver<Arc<View>>) {
    let mut told = String::new();
    loop {
        let view = views.borrow_and_update().clone();
        let line = status(&view);
        if line != told {
            let phase = if view.is_draining { NotifyState::Stopping } else { NotifyState::Ready };
            // Who does not listen gives up on us by itself: there is nothing to do about it here.
            notify(&[phase, NotifyState::Status(&line)]).ok();
            told = line;
        }
        if views.changed().await.is_err() {
            return;
        }
    }
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
