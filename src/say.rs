//! What commands say: their answer on standard output, and words beside it on standard error.
//!
//! The macros of `std` panic where nothing can be written. A reader that has read enough, as in `viahop doctor | head -1`, is
//! no bug of ours, nor is a full disk: the command goes on to its end, and its exit code says that the answer did not arrive.

use crate::command::ENVIRONMENT;
use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

/// Exit code of a program that a pipe without a reader ended, as shells have it: 128 and the number of SIGPIPE.
const UNREAD: u8 = 141;

/// Why the answer did not arrive, if it did not.
static LOST: OnceLock<io::Error> = OnceLock::new();

/// Says a line of the answer.
macro_rules! say {
    ($($text:tt)*) => { $crate::say::answer(format_args!("{}\n", format_args!($($text)*))) };
}

/// Says a line beside the answer.
macro_rules! remark {
    ($($text:tt)*) => { $crate::say::beside(format_args!($($text)*)) };
}

/// Writes a part of the answer, if all before it has arrived.
pub fn answer(text: Arguments<'_>) {
    if arrives() {
        let mut out = io::stdout().lock();
        if let Err(error) = out.write_fmt(text).and_then(|()| out.flush()) {
            LOST.get_or_init(|| error);
        }
    }
}

/// Whether the answer has arrived so far.
pub fn arrives() -> bool {
    LOST.get().is_none()
}

/// Writes a line to standard error. If that cannot be written to, there is nobody left to tell.
pub fn beside(text: Arguments<'_>) {
    writeln!(io::stderr(), "{text}").ok();
}

/// How a command ends that would end with `code` if its answer has arrived. What went wrong before that is worse.
pub fn ended(code: ExitCode) -> ExitCode {
    let Some(error) = LOST.get() else { return code };
    let lost = unheard(error);
    if code == ExitCode::SUCCESS { lost } else { code }
}

fn unheard(error: &io::Error) -> ExitCode {
    if error.kind() == ErrorKind::BrokenPipe {
        return ExitCode::from(UNREAD);
    }
    remark!("error: cannot write to standard output: {error}");
    ExitCode::from(ENVIRONMENT)
}
