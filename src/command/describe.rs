//! `viahop completions` and `viahop man`: the command line, described to a shell and to man(1).

use super::{environment, fail};
use crate::cli::{self, Cli};
use crate::say::answer;
use clap::{Command, CommandFactory};
use std::path::Path;
use std::process::ExitCode;
use std::{fs, io};
use viahop::control::config::problem::Problem;

/// Prints what `args.shell` needs.
pub fn completions(args: &cli::Completions) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "viahop", &mut script);
    answer(format_args!("{}", String::from_utf8_lossy(&script)));
    ExitCode::SUCCESS
}

/// Writes the pages into `args.folder`.
pub fn man(args: &cli::Man) -> ExitCode {
    let folder = &args.folder;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    if let Err(error) = fs::create_dir_all(folder).and_then(|()| write_pages(&command, folder)) {
        let problem = Problem::environment(format!("cannot write manual pages into {}: {error}", folder.display()));
        return fail(&environment(problem.help("name a folder that this user may write to")));
    }
    remark!("written; look at one: man {}", folder.join("viahop.1").display());
    ExitCode::SUCCESS
}

/// Writes the page of `command` and those of its subcommands.
fn write_pages(command: &Command, folder: &Path) -> io::Result<()> {
    let page = clap_mangen::Man::new(command.clone());
    let mut text = Vec::new();
    page.render(&mut text)?;
    // What a help ends with is laid out in columns.
    let text = String::from_utf8_lossy(&text).replace("\n.SH EXTRA\n", "\n.SH EXTRA\n.nf\n");
    fs::write(folder.join(page.get_filename()), text)?;
    command.get_subcommands().try_for_each(|one| write_pages(one, folder))
}
