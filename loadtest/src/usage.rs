//! What processes cost: CPU time of all their threads, from `/proc`. Works for any process of the same user, so it
//! measures every element in the same way.

use serde::{Deserialize, Serialize};
use std::fs;

/// CPU time of a set of processes or threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Nanoseconds on a core, user and kernel together.
    pub on_cpu_ns: u64,
    /// Nanoseconds ready to run and waiting for a core: others were in the way.
    pub waiting_ns: u64,
}

impl Usage {
    /// What was used since `before`.
    #[must_use]
    pub fn since(self, before: Usage) -> Usage {
        Usage {
            on_cpu_ns: self.on_cpu_ns.saturating_sub(before.on_cpu_ns),
            waiting_ns: self.waiting_ns.saturating_sub(before.waiting_ns),
        }
    }

    /// Adds what another used.
    pub fn add(&mut self, other: &Usage) {
        self.on_cpu_ns += other.on_cpu_ns;
        self.waiting_ns += other.waiting_ns;
    }

    /// What a thread has used, from the text of its `schedstat`: nanoseconds on a core, nanoseconds waiting for one, turns.
    fn read(text: &str) -> Usage {
        let mut fields = text.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0));
        Usage { on_cpu_ns: fields.next().unwrap_or(0), waiting_ns: fields.next().unwrap_or(0) }
    }
}

/// What a process has in memory, in KiB; 0 of one that is gone.
pub fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let row = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    row.and_then(|row| row.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// The time this very thread has used so far.
pub fn of_this_thread() -> Usage {
    Usage::read(&fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default())
}

/// The time all threads of these processes have used so far. A process that is gone counts nothing.
pub fn of(pids: &[u32]) -> Usage {
    let mut usage = Usage::default();
    for thread in threads(pids) {
        usage.add(&of_thread(&thread));
    }
    usage
}

/// The time that one of [`threads`] has used so far.
pub fn of_thread(thread: &str) -> Usage {
    Usage::read(&fs::read_to_string(format!("/proc/{thread}/schedstat")).unwrap_or_default())
}

/// All threads of these processes, each as `PID/task/TID`.
pub fn threads(pids: &[u32]) -> Vec<String> {
    let mut threads = Vec::new();
    for pid in pids {
        for entry in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            threads.push(format!("{pid}/task/{}", entry.file_name().to_string_lossy()));
        }
    }
    threads
}

/// This process and all it started, and they, that are alive.
pub fn descendants(pid: u32) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(child) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        // /proc/PID/stat: pid (name, which may hold anything) state ppid ...
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        let Some((_, after_name)) = stat.rsplit_once(')') else { continue };
        let mut fields = after_name.split_ascii_whitespace();
        let (state, parent) = (fields.next(), fields.next().and_then(|parent| parent.parse::<u32>().ok()));
        if let Some(parent) = parent
            && state != Some("Z")
        {
            parents.push((child, parent));
        }
    }
    let mut family = vec![pid];
    let mut at = 0;
    while at < family.len() {
        let parent = family[at];
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(child, _)| child));
        at += 1;
    }
    family
}

/// Hundredths of a second that the hypervisor gave to somebody else while we wanted to run, summed over all cores.
pub fn steal_ticks() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = text.lines().next().unwrap_or_default();
    first.split_ascii_whitespace().nth(8).and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// Cores of the machine, whichever of them this process may use.
pub fn cores() -> usize {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpuinfo.lines().filter(|line| line.starts_with("processor")).count().max(1)
}

/// The machine in one line, for the head of a report.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map(|(_, model)| model.trim());
    let kernel = read("/proc/sys/kernel/osrelease");
    let cores = cores();
    format!("{cores} cores, {}, Linux {kernel}", model.unwrap_or("unknown CPU"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{MS_NS, SECOND_NS, now_ns};

    #[test]
    fn time_spent_shows() {
        // Until it shows: on a busy machine a thread may get little time. The bound is for a machine where it never does.
        let until = now_ns() + 20 * SECOND_NS;
        while of_this_thread().on_cpu_ns < 10 * MS_NS && now_ns() < until {
            std::hint::spin_loop();
        }
        assert!(of_this_thread().on_cpu_ns >= 10 * MS_NS);
        assert!(of(&[std::process::id()]).on_cpu_ns >= 10 * MS_NS, "this thread is one of the process's");
    }

    #[test]
    fn children_are_found_and_the_dead_cost_nothing() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(descendants(std::process::id()).contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!descendants(std::process::id()).contains(&child.id()));
        assert_eq!(of(&[child.id()]), Usage::default());
    }
}
