//! How the outside talks to a shard: commands through a channel that the shard looks into once per turn, at the price of
//! one atomic load while there are none.

use crate::sys::wait::Waker;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

/// The outside's end.
#[derive(Debug)]
pub struct Remote<C> {
    commands: mpsc::Sender<C>,
    pending: Arc<AtomicBool>,
    waker: Waker,
}

/// The shard's end.
#[derive(Debug)]
pub struct Inbox<C> {
    commands: mpsc::Receiver<C>,
    pending: Arc<AtomicBool>,
}

/// Both ends. `waker` ends the shard's wait.
pub fn pair<C>(waker: Waker) -> (Remote<C>, Inbox<C>) {
    let (sender, receiver) = mpsc::channel();
    let pending = Arc::new(AtomicBool::new(false));
    (Remote { commands: sender, pending: Arc::clone(&pending), waker }, Inbox { commands: receiver, pending })
}

impl<C> Remote<C> {
    /// Sends a command. A shard that has ended does not hear it.
    pub fn tell(&self, command: C) {
        if self.commands.send(command).is_ok() {
            self.pending.store(true, Ordering::Release);
            self.waker.wake();
        }
    }

    /// Sends a command that is answered and waits for the answer; `None` if the shard has ended.
    pub fn ask<T>(&self, command: impl FnOnce(mpsc::SyncSender<T>) -> C) -> Option<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.tell(command(sender));
        receiver.recv().ok()
    }
}

impl<C> Inbox<C> {
    /// The next command, if there is one. Never waits.
    #[inline]
    pub fn next(&self) -> Option<C> {
        if !self.pending.load(Ordering::Acquire) {
            return None;
        }
        // The mark goes before the second look: a command sent in between sets it again.
        self.commands.try_recv().ok().or_else(|| {
            self.pending.store(false, Ordering::Release);
            self.commands.try_recv().ok()
        })
    }
}
