//! `viahop version`: what a report of a bug should begin with.

use std::fs;
use std::process::ExitCode;
use viahop::dataplane::scan::Scanner;

/// Prints it.
pub fn run() -> ExitCode {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    say!("viahop {}", env!("CARGO_PKG_VERSION"));
    say!("target   {}-{}", std::env::consts::ARCH, std::env::consts::OS);
    say!("scanner  {}", Scanner::best().name());
    say!("kernel   {}", kernel.trim());
    ExitCode::SUCCESS
}
