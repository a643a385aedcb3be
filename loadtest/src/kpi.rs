//! The metrics of RFC 6076 that can be had from a run's counts: what share of sessions and registrations came about.

use crate::uac::{Line, NO_ROOM, Report};

/// Shares in percent; `None` where there was nothing to take a share of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Kpis {
    /// Session Establishment Ratio (4.6): INVITEs that got 200.
    pub ser: Option<f64>,
    /// Session Establishment Effectiveness Ratio (4.7): INVITEs that got 200, or whose callee was busy or did not want.
    pub seer: Option<f64>,
    /// Ineffective Session Attempts (4.8): INVITEs that got 408, 500, 503 or 504, or nothing, or lost their connection.
    pub isa: Option<f64>,
    /// Ineffective Registration Attempts (4.2): REGISTERs that did not get 200.
    pub ira: Option<f64>,
}

impl Kpis {
    /// Of a run. Attempts that were still open at its end are in no share.
    pub fn of(report: &Report) -> Kpis {
        let (mut attempts, mut redirected, mut established, mut by_user, mut ineffective) = (0, 0, 0, 0, 0);
        for (code, count) in
            report.lines.iter().filter(|line| line.opens && &*line.method == "INVITE").flat_map(outcomes)
        {
            attempts += count;
            match code {
                200..300 => established += count,
                300..400 => redirected += count,
                480 | 486 | 600 | 603 => by_user += count,
                408 | 500 | 503 | 504 => ineffective += count,
                _ => {}
            }
        }
        let (mut registrations, mut registered) = (0, 0);
        for (code, count) in report.lines.iter().filter(|line| &*line.method == "REGISTER").flat_map(outcomes) {
            registrations += count;
            registered += if code == 200 { count } else { 0 };
        }
        let share = |part: u64, of: u64| (of > 0).then(|| part as f64 * 100.0 / of as f64);
        Kpis {
            ser: share(established, attempts - redirected),
            seer: share(established + by_user, attempts - redirected),
            isa: share(ineffective, attempts),
            ira: share(registrations - registered, registrations),
        }
    }
}

/// Final status codes and how often each came.
fn outcomes(line: &Line) -> impl Iterator<Item = (u16, u64)> + '_ {
    //= RFC 3261 section 8.1.3.1
    //# When a
    //# timeout error is received from the transaction layer, it MUST be
    //# treated as if a 408 (Request Timeout) status code has been received.
    // And what went wrong with a connection as a 503.
    let code = move |reason: &str| match reason {
        reason if reason.starts_with("timeout") => 408,
        reason if is_of_transport(reason) => 503,
        reason => reason.parse().unwrap_or(0),
    };
    // Of a call that there was no room for nothing was asked.
    let attempts = line.failures.iter().filter(|(reason, _)| &***reason != NO_ROOM);
    let failures = attempts.map(move |(reason, count)| (code(reason), *count));
    failures.chain([(line.expect, line.answered)])
}

/// Whether a call failed for `reason` because a connection did not come about, or ended.
pub fn is_of_transport(reason: &str) -> bool {
    ["connection", "TLS", "WebSocket"].iter().any(|word| reason.starts_with(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(method: &str, expect: u16, answered: u64, failures: &[(&str, u64)]) -> Line {
        let failures = failures.iter().map(|(reason, count)| ((*reason).into(), *count)).collect();
        Line { method: method.into(), expect, answered, failures, opens: true, ..Line::default() }
    }

    #[test]
    fn the_formulas_are_those_of_the_rfc() {
        let lines = vec![
            line("INVITE", 200, 80, &[("302", 4), ("404", 2), ("503", 3), ("timeout: no response", 1)]),
            line("INVITE", 486, 10, &[]),
            line("REGISTER", 200, 9, &[("403", 1)]),
            Line { opens: false, ..line("INVITE", 200, 1000, &[]) },
        ];
        let kpis = Kpis::of(&Report { lines, ..Report::default() });
        assert_eq!(kpis.ser, Some(80.0 * 100.0 / 96.0));
        assert_eq!(kpis.seer, Some(90.0 * 100.0 / 96.0));
        assert_eq!(kpis.isa, Some(4.0));
        assert_eq!(kpis.ira, Some(10.0));
        assert_eq!(Kpis::of(&Report::default()), Kpis::default());
    }

    //= RFC 3261 section 8.1.3.1
    //# If a fatal transport error is reported by the transport layer
    //# (generally, due to fatal ICMP errors in UDP or connection failures in
    //# TCP), the condition MUST be treated as a 503 (Service Unavailable)
    //# status code.
    #[test]
    fn a_connection_that_failed_is_an_ineffective_attempt_and_a_call_not_made_is_none() {
        let failures = [("connection refused", 2), ("TLS: the other side refused", 1), (NO_ROOM, 100)];
        let lines = vec![line("INVITE", 200, 7, &failures)];
        let kpis = Kpis::of(&Report { lines, ..Report::default() });
        assert_eq!((kpis.isa, kpis.ser), (Some(30.0), Some(70.0)));
    }
}
