//! Log lines that come in floods, one at a time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Lets a kind of log line pass once in ten seconds.
#[derive(Debug, Default)]
pub(super) struct Limiter(HashMap<&'static str, (Option<Instant>, u64)>);

impl Limiter {
    const EVERY: Duration = Duration::from_secs(10);

    /// How many lines of this kind were held back since the last, if one may pass.
    pub(super) fn allow(&mut self, event: &'static str) -> Option<u64> {
        let (last, held_back) = self.0.entry(event).or_default();
        if last.is_some_and(|last| last.elapsed() < Limiter::EVERY) {
            *held_back += 1;
            return None;
        }
        *last = Some(Instant::now());
        Some(std::mem::take(held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limiter_lets_one_pass_and_counts_the_rest() {
        let mut limiter = Limiter::default();
        assert_eq!(limiter.allow("x"), Some(0));
        assert_eq!(limiter.allow("x"), None);
        assert_eq!(limiter.allow("y"), Some(0));
    }
}
