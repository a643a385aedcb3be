//! The program itself, started as a user starts it.

use std::path::PathBuf;
use std::process::{Command, Output};

pub const ANY: &str = "udp:127.0.0.1:0";

pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn all(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }
}

pub fn run(args: &[&str]) -> Ended {
    // A busy machine is late; what is tested is not how late.
    let lateness = match args[0] {
        "run" | "uac" | "search" => &["--lateness-max", "10s"][..],
        _ => &[],
    };
    let lateness = if args.contains(&"--lateness-max") { &[] } else { lateness };
    ended(Command::new(env!("CARGO_BIN_EXE_viahop-load")).args(args).args(lateness))
}

pub fn run_plain(args: &[&str]) -> Ended {
    ended(Command::new(env!("CARGO_BIN_EXE_viahop-load")).args(args))
}

pub fn ended(command: &mut Command) -> Ended {
    let Output { status, stdout, stderr } = command.output().unwrap();
    Ended {
        code: status.code().unwrap_or(-1),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

pub struct Dir(pub PathBuf);

impl Dir {
    pub fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("viahop-load-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
