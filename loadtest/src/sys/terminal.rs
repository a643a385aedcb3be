//! A terminal that hands over each key as it is pressed, and gets its old settings back.

use std::io::{self, IsTerminal, Read};

/// Standard input, without line editing and echo for as long as this lives.
#[derive(Debug)]
pub struct Terminal {
    before: libc::termios,
}

impl Terminal {
    /// `None` where standard input or output is no terminal.
    pub fn open() -> Option<Terminal> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return None;
        }
        // SAFETY: all-zero is a valid termios, and the call fills it.
        let before = unsafe {
            let mut settings: libc::termios = std::mem::zeroed();
            if libc::tcgetattr(libc::STDIN_FILENO, &raw mut settings) < 0 {
                return None;
            }
            settings
        };
        let mut keys = before;
        // Signals stay: Ctrl-C ends a run as everywhere.
        keys.c_lflag &= !(libc::ICANON | libc::ECHO);
        // A read gives what is there, also nothing, at once.
        keys.c_cc[libc::VMIN] = 0;
        keys.c_cc[libc::VTIME] = 0;
        // SAFETY: `keys` is a whole termios.
        (unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const keys) } == 0)
            .then_some(Terminal { before })
    }

    /// The key that was pressed, if one was.
    pub fn key(&self) -> Option<u8> {
        let mut octet = [0];
        matches!(io::stdin().read(&mut octet), Ok(1)).then_some(octet[0])
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // SAFETY: `before` is the termios that tcgetattr filled.
        let _ = unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const self.before) };
    }
}
