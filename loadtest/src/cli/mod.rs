//! The command line: one file per command. Here is what they share.

mod compare;
mod describe;
mod hello;
mod idle;
mod options;
mod relay;
mod report;
mod result_file;
mod run;
mod scenarios;
mod search;
mod uac;
mod uas;

use crate::failure::Failure;
use crate::say;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// A SIP load generator and verifier.
#[derive(Debug, Parser)]
#[command(name = "viahop-load", version, max_term_width = 110, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  viahop-load run --rate 1000                       this machine by itself
  viahop-load uas --listen udp:127.0.0.1:6000-6003  four backends
  viahop-load uac --target sip:127.0.0.1:5060 --rate 10000 --html report.html
  viahop-load run --target 'sip:127.0.0.1:5060;transport=tcp' \\
      --connections 100 --listen tcp:127.0.0.1:6000
  viahop-load search --target sip:127.0.0.1:5060 --listen udp:127.0.0.1:6000

Exit codes: 0 as demanded, 1 failed or void, 2 command line, 3 scenario or log,
4 this machine does not allow it, 99 an --assert was broken. See docs/load.md.";

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Uac(uac::Args),
    Uas(uas::Args),
    Search(search::Args),
    Compare(compare::Args),
    Idle(idle::Args),
    Hello(hello::Args),
    Report(report::Args),
    Scenarios(scenarios::Args),
    Relay(relay::Args),
    Completions(describe::Completions),
    Man(describe::Man),
}

/// Runs the command line and says how the process is to end.
pub fn main() -> ExitCode {
    let code = obey(Cli::parse().command).unwrap_or_else(|failure| {
        remark!("{failure}");
        ExitCode::from(failure.exit as u8)
    });
    say::ended(code)
}

fn obey(command: Command) -> Outcome {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Uac(args) => uac::run(&args),
        Command::Uas(args) => uas::run(&args),
        Command::Search(args) => search::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Idle(args) => idle::run(&args),
        Command::Hello(args) => hello::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Scenarios(args) => scenarios::run(&args),
        Command::Relay(args) => relay::run(&args),
        Command::Completions(args) => describe::completions(&args),
        Command::Man(args) => describe::man(&args),
    }
}

type Outcome = Result<ExitCode, Failure>;

/// Cores by number, as an option has them. A type of its own, so that clap takes it for one value and not for several.
type Cores = Vec<usize>;

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::{Command, CommandFactory};

    /// Below a heading and no wider than a terminal: of what is wrapped nobody sees any more what stands below what, and a command
    /// that is copied is cut.
    #[test]
    fn examples_stand_as_they_are_written_on_a_terminal_of_80() {
        fn look_at(command: &Command) {
            let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let is_example = |line: &&str| line.starts_with("  ");
            let wide = text.lines().find(|line| is_example(line) && line.chars().count() > 80);
            assert_eq!(wide, None, "of {}", command.get_name());
            // A `\` at the end of a line of the source takes the blanks before an example that stands first.
            let first = text.lines().next().filter(|_| text.lines().any(|line| is_example(&line)));
            assert!(first.is_none_or(|line| line.ends_with(':')), "no heading:\n{text}");
            command.get_subcommands().for_each(look_at);
        }
        look_at(&Cli::command());
    }
}
