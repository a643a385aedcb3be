//! The keys of a run on a terminal: those of SIPp, in proportion to the rate.

use crate::run::Wish;
use crate::sys::terminal::Terminal;

/// The keyboard.
#[derive(Debug)]
pub struct Keys(Terminal);

impl Keys {
    /// `None` where there is no terminal.
    pub fn open() -> Option<Keys> {
        Terminal::open().map(Keys)
    }

    /// What the user wants, if a key was pressed that means something.
    pub fn wish(&mut self) -> Option<Wish> {
        meaning(self.0.key()?)
    }
}

fn meaning(key: u8) -> Option<Wish> {
    match key {
        b'+' => Some(Wish::Rate(1.01)),
        b'-' => Some(Wish::Rate(1.0 / 1.01)),
        b'*' => Some(Wish::Rate(1.1)),
        b'/' => Some(Wish::Rate(1.0 / 1.1)),
        b'p' => Some(Wish::Pause),
        b'q' => Some(Wish::End),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_up_comes_down_again() {
        let factor = |key| match meaning(key) {
            Some(Wish::Rate(factor)) => factor,
            other => panic!("{other:?}"),
        };
        assert!((factor(b'+') * factor(b'-') - 1.0).abs() < 1e-12);
        assert!((factor(b'*') * factor(b'/') - 1.0).abs() < 1e-12);
        assert_eq!((meaning(b'p'), meaning(b'q'), meaning(b'x')), (Some(Wish::Pause), Some(Wish::End), None));
    }
}
