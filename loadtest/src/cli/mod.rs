//! The command line: one file per command. Here is what they share.

mod compare;
mod relay;

use crate::failure::Failure;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// A SIP load generator and verifier.
#[derive(Debug, Parser)]
#[command(name = "viahop-load", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Compare(compare::Args),
    Relay(relay::Args),
}

/// Runs the command line and says how the process is to end.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Compare(args) => compare::run(&args),
        Command::Relay(args) => relay::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.exit as u8)
        }
    }
}

type Outcome = Result<ExitCode, Failure>;
