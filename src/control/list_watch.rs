//! Watches the lists that pools name, and tells when one has changed and come to rest, vanished, or come back.
//!
//! ```text
//! every second, of each file: its stamp ─► the same as a second ago, and not as last told? ─► told
//! ```
//!
//! It asks, where inotify would be told: a look at a file is one system call, and inotify does not see what matters. It
//! watches inodes, and the usual way to write a list puts another inode in its place; watching the folder instead
//! misses the link that Kubernetes turns behind a mounted ConfigMap; and over NFS, 9p and overlay mounts changes made on the
//! other side are not reported at all. A path that is looked up anew each second leads to whatever is there by then. (A
//! single file that is bind-mounted is an inode for good: who replaces it outside has not changed what is seen inside.
//! Mount its folder.)
//!
//! A change is told when two looks in a row saw the same, so one to two seconds after it: a list that is being written
//! is left alone until it is whole. The first look tells of every file, because it may have changed since it was read
//! at the start; who is told compares.

use super::config::Config;
use super::config::list_file::Stamp;
use super::discovery::Found;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_blocking};

/// From one look to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The file is there and may hold something else than what was last told of.
    Changed(PathBuf),
    /// It was there and is gone.
    Vanished(PathBuf),
    /// DNS says of a domain what it did not say before: of that watch is told in the same way.
    Discovered(Found),
}

/// A watch, which ends when it is dropped.
#[derive(Debug, Default)]
pub struct ListWatch {
    paths: Vec<PathBuf>,
    task: Option<AbortHandle>,
}

impl ListWatch {
    /// Watches the lists that `config` names from here on. A watch over the same lists goes on undisturbed.
    pub fn follow(&mut self, config: &Config, events: &mpsc::Sender<Event>) {
        let mut paths: Vec<PathBuf> =
            config.pools.iter().filter_map(|pool| pool.list.as_ref()).map(|list| list.path.clone()).collect();
        paths.sort_unstable();
        paths.dedup();
        if paths == self.paths {
            return;
        }
        self.stop();
        if !paths.is_empty() {
            self.task = Some(tokio::spawn(watch(paths.clone(), events.clone())).abort_handle());
        }
        self.paths = paths;
    }

    fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl Drop for ListWatch {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn watch(paths: Vec<PathBuf>, events: mpsc::Sender<Event>) {
    let mut files: Vec<(PathBuf, Watched)> = paths.into_iter().map(|path| (path, Watched::default())).collect();
    loop {
        // A file system that hangs must not hang the control loop.
        let looked = spawn_blocking(move || {
            let mut told = Vec::new();
            for (path, watched) in &mut files {
                told.extend(watched.on_look(Stamp::of(path).ok()).map(|make| make(path.clone())));
            }
            (files, told)
        });
        let Ok((back, told)) = looked.await else { return };
        files = back;
        for event in told {
            if events.send(event).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// What is known of a file.
#[derive(Debug, Default)]
struct Watched {
    /// What the last look saw; at first there was none.
    seen: Option<Option<Stamp>>,
    /// What was last told.
    told: Option<Option<Stamp>>,
}

impl Watched {
    /// Takes note of what is there, and says what to tell of it.
    fn on_look(&mut self, stamp: Option<Stamp>) -> Option<fn(PathBuf) -> Event> {
        let is_first = self.seen.is_none();
        let is_at_rest = self.seen.replace(stamp) == Some(stamp) || is_first;
        if !is_at_rest || self.told == Some(stamp) {
            return None;
        }
        self.told = Some(stamp);
        Some(if stamp.is_some() { Event::Changed } else { Event::Vanished })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stamps of two states of a file, which is that of one test.
    fn stamps(name: &str) -> [Option<Stamp>; 2] {
        let path = std::env::temp_dir().join(format!("viahop-watched-{name}-{}", std::process::id()));
        let stamp = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Stamp::of(&path).ok()
        };
        let both = [stamp("1"), stamp("22")];
        std::fs::remove_file(&path).ok();
        both
    }

    /// What is told while a file is seen so, look by look: `c` changed, `v` vanished, `.` nothing.
    fn told(looks: &[Option<Stamp>]) -> String {
        let mut watched = Watched::default();
        let mut letter = |stamp: &Option<Stamp>| match watched.on_look(*stamp).map(|make| make(PathBuf::new())) {
            Some(Event::Changed(_)) => 'c',
            Some(Event::Vanished(_)) => 'v',
            Some(Event::Discovered(_)) | None => '.',
        };
        looks.iter().map(&mut letter).collect()
    }

    #[test]
    fn a_change_is_told_once_and_when_it_has_come_to_rest() {
        let [a, b] = stamps("changed");
        assert_eq!(told(&[a, a, a]), "c..");
        assert_eq!(told(&[a, b, b, b]), "c.c.");
        assert_eq!(told(&[a, b, a, b, b]), "c...c", "still being written");
        assert_eq!(told(&[a, b, a, a]), "c...", "as it was");
    }

    #[test]
    fn a_file_that_is_gone_for_a_moment_is_not_gone() {
        let [a, b] = stamps("gone");
        assert_eq!(told(&[a, None, b, b]), "c..c");
        assert_eq!(told(&[a, None, None, None]), "c.v.");
        assert_eq!(told(&[a, None, None, a, a]), "c.v.c", "the same file again is read again");
    }
}
