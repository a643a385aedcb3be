//! The command line of the load generator.

use std::process::ExitCode;

fn main() -> ExitCode {
    viahop_load::cli::main()
}
