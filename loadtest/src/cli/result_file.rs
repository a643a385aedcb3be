//! A file for what comes of a run. It is opened before the run begins, because a run may take an hour, and that it cannot be
//! written down is to be known before; and written when the run is over.

use crate::failure::{Exit, Failure};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

pub struct ResultFile {
    path: PathBuf,
    file: File,
}

impl ResultFile {
    /// Opens it, and leaves what is in it: the run may come to nothing.
    pub fn open(path: &Path) -> Result<ResultFile, Failure> {
        let opened = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let path = path.to_owned();
        match opened {
            Ok(file) => Ok(ResultFile { path, file }),
            Err(error) => Err(failure(&path, &error).help("nothing was run; name a file that can be written")),
        }
    }

    /// Puts `text` in the place of what is in it.
    pub fn write(mut self, text: &str) -> Result<(), Failure> {
        // A pipe or a terminal has no length, and nothing in it that would be left.
        let _ = self.file.set_len(0);
        self.file.write_all(text.as_bytes()).map_err(|error| failure(&self.path, &error))
    }
}

fn failure(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Environment, "write", format!("{}: {error}", path.display()))
}
