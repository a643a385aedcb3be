//! `viahop-load scenarios`: what is built in.

use super::Outcome;
use crate::failure::{Exit, Failure};
use crate::say::answer;
use crate::scenario::{BUILT_IN, BUILT_IN_MIXES, Scenario, read_parts};
use std::process::ExitCode;

/// List the scenarios that are built in, or print one as a file to start from.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print this one.
    name: Option<String>,
}

pub fn run(args: &Args) -> Outcome {
    let Some(name) = &args.name else {
        for scenario in BUILT_IN.iter().filter_map(|(name, _)| Scenario::built_in(name)) {
            say!("{:<16} {}", scenario.name, scenario.about);
        }
        for (name, text) in BUILT_IN_MIXES {
            let find = |part: &str| Scenario::built_in(part).ok_or_else(|| part.to_owned());
            let parts = read_parts(name, text, find).unwrap_or_default();
            let parts: Vec<String> =
                parts.iter().map(|(scenario, weight)| format!("{weight} {}", scenario.name)).collect();
            say!("{name:<16} A mix: {}", parts.join(", "));
        }
        return Ok(ExitCode::SUCCESS);
    };
    let Some((_, text)) = BUILT_IN.iter().chain(BUILT_IN_MIXES).find(|(built_in, _)| built_in == name) else {
        return Err(
            Failure::new(Exit::Usage, "scenario", format!("`{name}` is not built in")).help("viahop-load scenarios")
        );
    };
    answer(format_args!("{text}"));
    Ok(ExitCode::SUCCESS)
}
