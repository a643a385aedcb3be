//! `viahop-load completions` and `viahop-load man`: the command line, described to a shell and to man(1).

use super::{Cli, Outcome};
use crate::failure::{Exit, Failure};
use crate::say::answer;
use clap::{Command, CommandFactory};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, io};

/// Print what a shell needs to complete these commands and their flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Where shells look for it:
  viahop-load completions bash > /etc/bash_completion.d/viahop-load
  viahop-load completions zsh > /usr/local/share/zsh/site-functions/_viahop-load
  viahop-load completions fish > /etc/fish/completions/viahop-load.fish")]
pub struct Completions {
    /// The shell.
    shell: clap_complete::Shell,
}

/// Write the manual pages, one for each command.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Where man(1) looks for them:
  viahop-load man /usr/local/share/man/man1")]
pub struct Man {
    /// Where to write them. It is made if it is not there.
    folder: PathBuf,
}

pub fn completions(args: &Completions) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "viahop-load", &mut script);
    answer(format_args!("{}", String::from_utf8_lossy(&script)));
    Ok(ExitCode::SUCCESS)
}

pub fn man(args: &Man) -> Outcome {
    let folder = &args.folder;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    fs::create_dir_all(folder).and_then(|()| write_pages(&command, folder)).map_err(|error| {
        Failure::new(Exit::Environment, "man", format!("cannot write into {}: {error}", folder.display()))
            .help("name a folder that this user may write to")
    })?;
    remark!("written; look at one: man {}", folder.join("viahop-load.1").display());
    Ok(ExitCode::SUCCESS)
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
