//! `viahop demo`.

use crate::cli;
use std::process::ExitCode;

/// Runs it.
pub fn run(_args: &cli::Demo) -> ExitCode {
    ExitCode::SUCCESS
}
