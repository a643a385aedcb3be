//! The program: reads the command line and does what it says.
#![allow(clippy::disallowed_methods, reason = "commands read the clock; only the data plane does not")]

#[macro_use]
mod say;

mod cli;
mod command;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    viahop::sys::obey_signals();
    say::ended(obey(Cli::parse().command))
}

fn obey(command: Command) -> ExitCode {
    match command {
        Command::Run(args) => command::run::run(&args),
        Command::Check(args) => command::check::run(&args),
        Command::Ctl(args) => command::ctl::run(&args),
        Command::Demo(args) => command::demo::run(&args),
        Command::Init => command::init::run(),
        Command::Import(args) => command::import::run(&args),
        Command::Explain(args) => command::explain::run(&args),
        Command::Doctor(args) => command::doctor::run(&args),
        Command::Health(args) => command::health::run(&args),
        Command::Version => command::version::run(),
        Command::Completions(args) => command::describe::completions(&args),
        Command::Man(args) => command::describe::man(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Defaults of flags that the environment may set must not depend on it in a test.
    #[test]
    fn the_readme_commands_parse() {
        for line in [
            "viahop demo",
            "viahop run --listen udp:0.0.0.0:5060 --backend sip:10.0.0.11:5060 --backend sip:10.0.0.12:5060;weight=50",
            "viahop run -c viahop.toml",
            "viahop run --cores 0,2-5 --admin 127.0.0.1:8460 --advertise sip.example.net:5060 --listen udp:0.0.0.0 --backend sip:a",
            "viahop check viahop.toml --offline --strict --format json",
            "viahop ctl --socket /run/viahop/ctl.sock backend proxies/10.0.0.11:5060 weight 50",
            "viahop ctl backends --format csv",
            "viahop ctl reload --dry-run",
            "viahop explain --live -c viahop.toml -",
            "viahop import dispatcher.list --set 1 --output viahop.toml",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        assert!(Cli::try_parse_from("viahop run -c a --listen udp:0.0.0.0".split(' ')).is_err());
    }
}
