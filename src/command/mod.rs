//! What the commands do: one file each, and what they share.
//!
//! | file | |
//! |---|---|
//! | `run`, `check`, `ctl`, `demo`, `init`, `import`, `explain`, `doctor`, `health`, `version` | a command |
//! | `describe` | the commands `completions` and `man` |
//! | `flags` | flags of `run` as a configuration |
//! | `log` | its log lines |
//! | `service` | sockets, shards and control plane, put together and started |
//! | `steering` | which shard a datagram comes to: installed, or what is missing |
//! | `port_owner` | who holds a port |

pub mod check;
pub mod ctl;
pub mod demo;
pub mod describe;
pub mod doctor;
pub mod explain;
pub mod health;
pub mod import;
pub mod init;
pub mod run;
pub mod version;

mod flags;
mod log;
mod port_owner;
mod service;
mod steering;

use std::io::IsTerminal;
use std::process::ExitCode;
use viahop::control::config::problem::{Problem, Report, Source};

/// `run` failed, or a check did not hold.
const FAILED: u8 = 1;
/// The command line is wrong.
const USAGE: u8 = 2;
/// The machine does not allow it.
pub const ENVIRONMENT: u8 = 4;
/// No traffic, please.
const NOT_READY: u8 = 5;

/// Tells what is wrong and gives the exit code that goes with it.
fn fail(report: &Report) -> ExitCode {
    tell(report);
    ExitCode::from(report.exit_code())
}

/// Prints the problems of a report, if there are any, to standard error.
fn tell(report: &Report) {
    report.tell(colors_on_stderr());
}

/// Colours only where somebody sees them, and not where they asked for none (https://no-color.org).
fn colors_on_stderr() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A report about the machine, not about a text.
fn environment(problem: Problem) -> Report {
    Report { source: Source::default(), problems: vec![problem] }
}
