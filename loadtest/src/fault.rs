//! Faults on purpose: what backends do wrong when they are told to, so that one sees what the element makes of it.

use crate::clock::{SECOND_NS, ns};
use crate::rng::mix;

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// A backend is killed and brought back.
    Down {
        /// Its index.
        backend: usize,
        /// When it is killed, in nanoseconds from the start.
        from_ns: u64,
        /// When it is brought back.
        to_ns: u64,
    },
    /// This share of calls is answered with 486.
    Refuse(f64),
    /// Of this share of calls no backend takes notice: not of the INVITE, nor of its copies.
    Silent(f64),
    /// Every response leaves so much later, in nanoseconds.
    Slow(u64),
    /// This share of calls is answered with 503.
    Unavailable(f64),
}

/// What becomes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// No fault.
    Fine,
    /// This final response.
    Code(u16),
    /// No response.
    Nothing,
}

impl Fault {
    /// Reads `silent=10%`, `refuse=0.5%`, `unavailable=5%`, `slow=20ms`, `down=2@10-20`.
    pub fn read(text: &str) -> Result<Fault, String> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        match name {
            "silent" => read_share(value).map(Fault::Silent),
            "refuse" => read_share(value).map(Fault::Refuse),
            "unavailable" => read_share(value).map(Fault::Unavailable),
            "slow" => {
                let slow = humantime::parse_duration(value).map_err(|error| format!("{error}; write slow=20ms"))?;
                Ok(Fault::Slow(ns(slow)))
            }
            "down" => read_down(value).ok_or_else(|| "write down=BACKEND@FROM-TO, in seconds: down=2@10-20".to_owned()),
            _ => Err(format!("`{name}` is no fault; these are: silent, refuse, unavailable, slow, down")),
        }
    }
}

/// What these faults make of the call with this digest: the same for every copy of its INVITE.
pub fn fate(faults: &[Fault], digest: u64) -> Fate {
    if faults.is_empty() {
        return Fate::Fine;
    }
    let mut left = (mix(digest) >> 11) as f64 / (1u64 << 53) as f64;
    for fault in faults {
        let (share, fate) = match *fault {
            Fault::Silent(share) => (share, Fate::Nothing),
            Fault::Refuse(share) => (share, Fate::Code(486)),
            Fault::Unavailable(share) => (share, Fate::Code(503)),
            Fault::Down { .. } | Fault::Slow(_) => continue,
        };
        left -= share;
        if left < 0.0 {
            return fate;
        }
    }
    Fate::Fine
}

/// The share of calls that meet one of these faults; beyond 1 the last of them would not have theirs.
pub fn shares(faults: &[Fault]) -> f64 {
    let share = |fault: &Fault| match *fault {
        Fault::Refuse(share) | Fault::Silent(share) | Fault::Unavailable(share) => share,
        Fault::Down { .. } | Fault::Slow(_) => 0.0,
    };
    faults.iter().map(share).sum()
}

/// Reads a share: `5%` or `0.05`.
pub fn read_share(text: &str) -> Result<f64, String> {
    let wrong = || format!("`{text}` is not a share; write 5% or 0.05");
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().map_err(|_| wrong())? / 100.0,
        None => text.parse::<f64>().map_err(|_| wrong())?,
    };
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(wrong()) }
}

fn read_down(text: &str) -> Option<Fault> {
    let (backend, times) = text.split_once('@')?;
    let (from, to) = times.split_once('-')?;
    let seconds = |text: &str| {
        let seconds = text.parse::<f64>().ok().filter(|seconds| (0.0..1e9).contains(seconds))?;
        Some((seconds * SECOND_NS as f64) as u64)
    };
    let (from_ns, to_ns) = (seconds(from)?, seconds(to)?);
    (from_ns < to_ns).then_some(Fault::Down { backend: backend.parse().ok()?, from_ns, to_ns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_or_explained() {
        assert_eq!(Fault::read("silent=10%"), Ok(Fault::Silent(0.1)));
        assert_eq!(Fault::read("slow=20ms"), Ok(Fault::Slow(20_000_000)));
        let down = Fault::Down { backend: 2, from_ns: 10 * SECOND_NS, to_ns: 20 * SECOND_NS };
        assert_eq!(Fault::read("down=2@10-20"), Ok(down));
        for text in ["silent=200%", "silent", "slow=soon", "down=2", "down=2@20-10", "down=2@-1-1e99", "lazy=1%"] {
            assert!(Fault::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares_are_kept_and_a_call_meets_the_same_fate_again() {
        let faults = [Fault::Silent(0.1), Fault::Unavailable(0.05)];
        let fates: Vec<Fate> = (0..100_000).map(|digest| fate(&faults, digest)).collect();
        let share = |wanted| fates.iter().filter(|fate| **fate == wanted).count();
        assert!((9_700..10_300).contains(&share(Fate::Nothing)));
        assert!((4_700..5_300).contains(&share(Fate::Code(503))));
        assert_eq!(share(Fate::Code(486)), 0);
        assert!((0..1000).all(|digest| fate(&faults, digest) == fates[digest as usize]));
    }
}
