//! `viahop-load report`: logs of one or several machines as one report.

use super::Outcome;
use super::options::Written;
use crate::failure::{Exit, Failure};
use crate::log::Log;
use crate::say::answer;
use std::path::{Path, PathBuf};

/// Make a report of one log, or of several machines' logs of the same run: counts add up, histograms exactly.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Logs that --json has written.
    #[arg(required = true)]
    logs: Vec<PathBuf>,
    #[command(flatten)]
    written: Written,
}

pub fn run(args: &Args) -> Outcome {
    let mut logs = args.logs.iter().map(|path| read(path));
    let mut log = logs.next().expect("clap demands one")?;
    for other in logs {
        log.add(&other?);
    }
    answer(format_args!("{}", crate::report::render(&log)));
    args.written.open()?.write(&log)?;
    Ok(args.written.judge(&log))
}

fn read(path: &Path) -> Result<Log, Failure> {
    let failure = |why: String| Failure::new(Exit::Config, "report", format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| failure(error.to_string()))?;
    Log::read(&text).map_err(failure)
}
