//! Where the configuration comes from: a file and what flags say instead, or flags alone.

use super::config::problem::Report;
use super::config::{Config, Cores, Gso, Loaded, Socket, Steering, load};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where the configuration comes from when it is to be read again.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A file, and what flags say instead.
    File(PathBuf, Overrides),
    /// Flags alone: nothing but names can have changed.
    Flags(Box<Loaded>),
}

/// What flags say instead of the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--cores` or `--shards`.
    pub cores: Option<Cores>,
    /// `--admin`.
    pub admin: Option<Option<SocketAddr>>,
    /// `--socket`.
    pub socket: Option<Socket>,
    /// `--steering`.
    pub steering: Option<Steering>,
    /// `--gso`.
    pub gso: Option<Gso>,
    /// `--linger`.
    pub linger: Option<Duration>,
}

impl Overrides {
    /// Puts what flags say in the place of what the file says.
    pub fn apply(&self, config: &mut Config) {
        if let Some(cores) = &self.cores {
            config.cores.clone_from(cores);
        }
        if let Some(admin) = self.admin {
            config.admin = admin;
        }
        if let Some(socket) = &self.socket {
            config.socket.clone_from(socket);
        }
        if let Some(steering) = self.steering {
            config.steering = steering;
        }
        config.gso = self.gso.unwrap_or(config.gso);
        config.linger = self.linger.unwrap_or(config.linger);
    }
}

impl Origin {
    /// Reads it.
    ///
    /// # Errors
    /// The file cannot be read, or what it says cannot be done.
    pub fn load(&self) -> Result<Loaded, Report> {
        match self {
            Origin::Flags(loaded) => Ok((**loaded).clone()),
            Origin::File(path, overrides) => load(path).map(|mut loaded| {
                overrides.apply(&mut loaded.config);
                loaded
            }),
        }
    }
}
