//! What we tell a user when something does not work: what, why, what to do. And the exit codes.

use crate::endpoint::Endpoint;
use std::fmt;

/// How the program ends. Documented in `docs/load.md`; scripts rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The run failed: the target does not answer, a run is void, a search is invalid.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A scenario or a file of settings is wrong.
    Config = 3,
    /// This machine does not allow it: a port in use, too few descriptors, a program that is not installed.
    Environment = 4,
    /// An `--assert` was broken.
    AssertionBroken = 99,
}

/// A failure as the user sees it.
///
/// ```text
/// error[start]: 127.0.0.1:5060/udp is in use
///    help: free the port, or choose another with --listen
/// ```
#[derive(Debug)]
pub struct Failure {
    /// How the program ends because of it.
    pub exit: Exit,
    /// Which part of the work it was: `start`, `scenario`, `target`. Empty where `what` says that itself.
    topic: &'static str,
    what: String,
    help: Vec<String>,
}

impl Failure {
    /// A failure that ends the program with `exit`.
    pub fn new(exit: Exit, topic: &'static str, what: impl Into<String>) -> Failure {
        Failure { exit, topic, what: what.into(), help: Vec::new() }
    }

    /// One whose text is laid out already, from its first word on.
    pub fn rendered(exit: Exit, text: impl Into<String>) -> Failure {
        Failure::new(exit, "", text)
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Failure {
        self.help.push(help.into());
        self
    }

    /// What failed, without the help.
    pub fn what(&self) -> &str {
        &self.what
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.topic {
            "" => to.write_str(&self.what)?,
            topic => write!(to, "error[{topic}]: {}", self.what)?,
        }
        for help in &self.help {
            write!(to, "\n   help: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// Turns the kernel's refusal of an address into a failure that says what to do.
pub fn cannot_bind(endpoint: impl Into<Endpoint>, error: &std::io::Error) -> Failure {
    let Endpoint { transport, address } = endpoint.into();
    use std::io::ErrorKind;
    let failure = |what: String| Failure::new(Exit::Environment, "start", what);
    match error.kind() {
        ErrorKind::AddrInUse => failure(format!("{address}/{transport} is in use"))
            .help(format!(
                "who has it: ss -l{}np 'sport = :{}'",
                if transport.is_reliable() { 't' } else { 'u' },
                address.port()
            ))
            .help("choose another port, or port 0 for any that is free"),
        ErrorKind::AddrNotAvailable => failure(format!("{} is not an address of this machine", address.ip()))
            .help("the addresses it has: ip -brief address"),
        ErrorKind::PermissionDenied => failure(format!("this user may not open {address}/{transport}"))
            .help("ports below 1024 need CAP_NET_BIND_SERVICE; SIP is at home on 5060"),
        _ if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => failure(format!(
            "no file descriptor left for {address}/{transport}; this process may have {}",
            crate::sys::process::descriptors_max()
        ))
        .help("raise the limit before the start: ulimit -n 65536"),
        _ => failure(format!("cannot open {address}/{transport}: {error}")),
    }
}
