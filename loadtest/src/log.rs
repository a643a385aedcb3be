//! What a run leaves behind: one JSON file with all counts and whole histograms, so that reports can be made from it later
//! and the logs of several machines add up exactly.

use crate::clock::{self, SECOND_NS};
use crate::latency::{Latencies, Short};
use crate::sip::message::Method;
use crate::tally::{Kind, Tally};
use crate::{uac, uas, usage};
use serde::{Deserialize, Serialize};

/// Written into every log; a file with another mark is not read.
pub const FORMAT: &str = "viahop-load log 1";

/// A run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// [`FORMAT`].
    pub format: String,
    /// When it began, UTC.
    pub began: String,
    /// The machine, or the machines.
    pub machine: String,
    /// What the machine was like while it ran; of several machines, the worst.
    pub conditions: Conditions,
    /// The command line, or one per machine.
    pub commands: Vec<String>,
    /// The calling side, if this run had one.
    pub calls: Option<uac::Report>,
    /// The called side, if this run had one.
    pub callees: Option<uas::Report>,
    /// How it went, second by second.
    pub seconds: Vec<Second>,
    /// What keeps this from being a whole and valid result: `VOID: …`, `PARTIAL: …`.
    pub marks: Vec<String>,
}

/// What a machine was like while a run went on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conditions {
    /// The share of the time that the hypervisor gave to others, 0 to 1.
    pub steal: f64,
    /// The most memory this process had, in KiB.
    pub memory_kib: u64,
}

/// Messages of one kind on their way between callers and callees, of whom a log may know one side only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Of which kind.
    pub kind: Kind,
    /// Whether they go from the callers to the callees.
    pub there: bool,
    /// How many one side sent.
    pub sent: Option<u64>,
    /// How many reached the other side.
    pub arrived: Option<u64>,
    /// Of responses that were sent, those that are for the element: to requests that no caller had sent, as its probes are.
    pub to_the_element: u64,
}

/// One second of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Second {
    /// How long it really was, in nanoseconds.
    pub length_ns: u64,
    /// Calls placed in it.
    pub placed: u64,
    /// Calls completed.
    pub completed: u64,
    /// Calls failed.
    pub failed: u64,
    /// Retransmissions.
    pub retransmissions: u64,
    /// Calls open at its end.
    pub open: u64,
    /// The longest that a call was late in it, in nanoseconds.
    pub lateness_max_ns: u64,
    /// Latencies of what was answered in it, as [`Latencies::steps`].
    pub latency: Vec<(u64, u64)>,
}

impl Second {
    /// The latencies as a distribution.
    pub fn latencies(&self) -> Latencies {
        let mut latencies = Latencies::default();
        self.latency.iter().for_each(|(ns, count)| latencies.record_step(*ns, *count));
        latencies
    }

    /// The most by which a call was placed late, for people to read; `-` where none was placed.
    pub fn lateness(&self) -> String {
        if self.placed == 0 { "-".to_owned() } else { Short(self.lateness_max_ns).to_string() }
    }

    fn add(&mut self, other: &Second) {
        let mut both = self.latencies();
        both.add(&other.latencies());
        *self = Second {
            length_ns: self.length_ns.max(other.length_ns),
            placed: self.placed + other.placed,
            completed: self.completed + other.completed,
            failed: self.failed + other.failed,
            retransmissions: self.retransmissions + other.retransmissions,
            open: self.open + other.open,
            lateness_max_ns: self.lateness_max_ns.max(other.lateness_max_ns),
            latency: both.steps(),
        };
    }
}

impl Log {
    /// An empty log of a run that begins at this moment.
    pub fn new() -> Log {
        Log {
            format: FORMAT.to_owned(),
            began: clock::utc(clock::unix_seconds()),
            machine: usage::machine(),
            conditions: Conditions::default(),
            commands: vec![command_line(std::env::args_os().map(|word| word.to_string_lossy().into_owned()))],
            calls: None,
            callees: None,
            seconds: Vec::new(),
            marks: Vec::new(),
        }
    }

    /// Reads a file's text.
    pub fn read(text: &str) -> Result<Log, String> {
        /// What logs of all versions have.
        #[derive(Deserialize)]
        struct Head {
            format: String,
        }
        let none = |error| format!("it is no log of this program: {error}");
        let Head { format } = serde_json::from_str(text).map_err(none)?;
        if format == FORMAT {
            serde_json::from_str(text).map_err(none)
        } else {
            Err(format!("its format is `{format}`, this program reads `{FORMAT}`"))
        }
    }

    /// As a file's text.
    pub fn write(&self) -> String {
        serde_json::to_string(self).expect("names and numbers are JSON")
    }

    /// Adds the log of another machine. Exact: the histograms have the same steps. Seconds are put beside each other from
    /// the start of each run.
    pub fn add(&mut self, other: &Log) {
        self.began = self.began.clone().min(other.began.clone());
        if self.machine.split(" + ").all(|machine| machine != other.machine) {
            self.machine = format!("{} + {}", self.machine, other.machine);
        }
        self.conditions.steal = self.conditions.steal.max(other.conditions.steal);
        self.conditions.memory_kib = self.conditions.memory_kib.max(other.conditions.memory_kib);
        self.commands.extend(other.commands.iter().cloned());
        // The seconds of callees alone have the same calls once more: beside those of callers they say nothing.
        let (own_calls, other_calls) = (self.calls.is_some(), other.calls.is_some());
        match (&mut self.calls, &other.calls) {
            (Some(own), Some(other)) => own.add(other),
            (own @ None, other) => *own = other.clone(),
            (Some(_), None) => {}
        }
        match (&mut self.callees, &other.callees) {
            (Some(own), Some(other)) => own.add(other),
            (own @ None, other) => *own = other.clone(),
            (Some(_), None) => {}
        }
        if !own_calls && other_calls {
            self.seconds.clear();
        }
        for (index, second) in other.seconds.iter().enumerate().filter(|_| other_calls || !own_calls) {
            match self.seconds.get_mut(index) {
                Some(own) => own.add(second),
                None => self.seconds.push(second.clone()),
            }
        }
        self.marks.extend(other.marks.iter().cloned());
    }

    /// Calls placed per second.
    pub fn rate(&self) -> f64 {
        let Some(calls) = &self.calls else { return 0.0 };
        calls.counts.placed as f64 * SECOND_NS as f64 / calls.placing_ns.max(1) as f64
    }

    /// What went between callers and callees, by kind, in the order in which a call has it.
    pub fn flows(&self) -> Vec<Flow> {
        let callers = self.calls.as_ref().map(|calls| (&calls.sent, &calls.received));
        let callees = self.callees.as_ref().map(uas::Report::traffic);
        let callees = callees.as_ref().map(|(sent, received)| (sent, received));
        let ways = [
            (true, callers.map(|callers| callers.0), callees.map(|callees| callees.1)),
            (false, callees.map(|callees| callees.0), callers.map(|callers| callers.1)),
        ];
        let mut flows = Vec::new();
        for (there, sent, arrived) in ways {
            let mut kinds: Vec<Kind> =
                [sent, arrived].into_iter().flatten().flat_map(Tally::kinds).map(|(kind, _)| kind).collect();
            kinds.sort_unstable();
            kinds.dedup();
            let of = |tally: Option<&Tally>, kind| tally.map(|tally| tally.of(kind));
            flows.extend(kinds.into_iter().map(|kind| Flow {
                kind,
                there,
                sent: of(sent, kind),
                arrived: of(arrived, kind),
                to_the_element: 0,
            }));
        }
        let made: Vec<_> = flows.iter().filter(|flow| flow.there).map(|flow| (flow.kind.method, -flow.gap())).collect();
        for (method, mut left) in made {
            let answers = |flow: &&mut Flow| !flow.there && flow.kind.method == method && flow.gap() > 0;
            for flow in flows.iter_mut().filter(answers) {
                let own = flow.gap().min(left).max(0);
                flow.to_the_element = own as u64;
                left -= own;
            }
        }
        let place = |method| match method {
            Method::Invite => 0,
            // Comes right after the responses to its INVITE.
            Method::Ack => 1,
            Method::Bye => 3,
            _ => 2,
        };
        flows.sort_by_key(|flow| (place(flow.kind.method), flow.kind));
        flows
    }
}

/// A command line as a shell takes it again; but for passwords, since reports are handed around.
fn command_line(words: impl Iterator<Item = String>) -> String {
    let mut line = String::new();
    let mut is_secret = false;
    for word in words {
        let word = match word.strip_prefix("--password=") {
            Some(_) => "--password=***".to_owned(),
            None if is_secret => "***".to_owned(),
            None => word,
        };
        is_secret = word == "--password";
        let is_plain = |octet: u8| octet.is_ascii_alphanumeric() || b"-_./:,@%+=".contains(&octet);
        if !line.is_empty() {
            line.push(' ');
        }
        match !word.is_empty() && word.bytes().all(is_plain) {
            true => line += &word,
            false => line += &format!("'{}'", word.replace('\'', r"'\''")),
        }
    }
    line
}

impl Flow {
    /// How many did not arrive: lost on the way, or kept by the element. Negative: how many came that the other side had not
    /// sent, made or copied in between.
    pub fn missing(&self) -> Option<i64> {
        Some(self.sent? as i64 - self.arrived? as i64 - self.to_the_element as i64)
    }

    /// The same, 0 where one side only is known.
    fn gap(&self) -> i64 {
        self.missing().unwrap_or(0)
    }
}

impl Default for Log {
    fn default() -> Log {
        Log::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(placed: u64, latency_ns: u64) -> Log {
        let mut latency = Latencies::default();
        latency.record(latency_ns);
        let line =
            uac::Line { scenario: "call".into(), step: "BYE".into(), sent: placed, latency, ..uac::Line::default() };
        let counts = uac::Counts { placed, completed: placed, ..uac::Counts::default() };
        let calls = uac::Report { counts, lines: vec![line], placing_ns: SECOND_NS, ..uac::Report::default() };
        let second = Second { placed, latency: vec![(latency_ns, 1)], ..Second::default() };
        Log { calls: Some(calls), seconds: vec![second], ..Log::new() }
    }

    #[test]
    fn a_log_survives_its_file() {
        let before = log(100, 1_000_000);
        let after = Log::read(&before.write()).unwrap();
        assert_eq!(after.write(), before.write());
        assert_eq!(crate::report::render(&after), crate::report::render(&before));
    }

    #[test]
    fn a_command_can_be_given_to_a_shell_again_and_holds_no_password() {
        let line = |words: &[&str]| command_line(words.iter().map(|word| (*word).to_owned()));
        let target = "sip:127.0.0.1;transport=tcp";
        assert_eq!(line(&["uac", "--target", target]), format!("uac --target '{target}'"));
        assert_eq!(line(&["x", "--user", "it's", ""]), r"x --user 'it'\''s' ''");
        for words in [&["x", "--password", "s3cret", "-q"][..], &["x", "--password=s3cret", "-q"]] {
            let line = line(words);
            assert!(!line.contains("s3cret") && line.contains("***") && line.ends_with(" -q"), "{line}");
        }
    }

    #[test]
    fn logs_of_two_machines_add_up_exactly() {
        let mut both = log(100, 1_000_000);
        both.add(&log(50, 64_000_000));
        let calls = both.calls.as_ref().unwrap();
        assert_eq!((calls.counts.placed, calls.lines.len(), calls.lines[0].sent), (150, 1, 150));
        let mut expected = Latencies::default();
        expected.record(1_000_000);
        expected.record(64_000_000);
        assert_eq!(calls.lines[0].latency.steps(), expected.steps());
        assert_eq!((both.seconds.len(), both.seconds[0].placed), (1, 150));
        assert_eq!(both.seconds[0].latencies().count(), 2);
        assert_eq!(both.rate(), 150.0);
    }

    #[test]
    fn the_seconds_of_callees_do_not_count_the_calls_of_callers_twice() {
        let called = |placed| Log { calls: None, callees: Some(uas::Report::default()), ..log(placed, 1) };
        let placed = |logs: [Log; 3]| {
            let [mut sum, second, third] = logs;
            sum.add(&second);
            sum.add(&third);
            sum.seconds[0].placed
        };
        assert_eq!(placed([log(100, 1), called(100), log(50, 1)]), 150);
        assert_eq!(placed([called(70), called(80), log(150, 1)]), 150);
        assert_eq!(placed([called(1), called(2), called(3)]), 6, "there is nothing else to go by");
    }

    #[test]
    fn a_machine_is_named_once_and_one_whose_name_is_in_anothers_too() {
        let of = |machine: &str| Log { machine: machine.to_owned(), ..log(1, 1) };
        let mut sum = of("12 cores, X, Linux 6.18");
        for machine in ["2 cores, X, Linux 6.1", "2 cores, X, Linux 6.18", "2 cores, X, Linux 6.1"] {
            sum.add(&of(machine));
        }
        assert_eq!(sum.machine, "12 cores, X, Linux 6.18 + 2 cores, X, Linux 6.1 + 2 cores, X, Linux 6.18");
    }

    #[test]
    fn what_one_side_sent_and_the_other_never_saw_is_missing() {
        let tally = |counts: &[(Kind, u64)]| {
            let mut tally = Tally::default();
            counts.iter().for_each(|(kind, count)| tally.note_many(*kind, *count));
            tally
        };
        let (invite, ok, bye) =
            (Kind::request(Method::Invite), Kind::response(200, Method::Invite), Kind::request(Method::Bye));
        let trying = Kind::response(100, Method::Invite);
        let mut log = log(10, 1);
        let calls = log.calls.as_mut().unwrap();
        (calls.sent, calls.received) = (tally(&[(bye, 9), (invite, 10)]), tally(&[(ok, 9), (trying, 10)]));
        let backend = uas::BackendState {
            sent: tally(&[(ok, 9)]),
            received: tally(&[(invite, 9), (bye, 9)]),
            ..Default::default()
        };
        log.callees = Some(uas::Report { backends: vec![backend], ..uas::Report::default() });
        let flows: Vec<_> = log.flows().iter().map(|flow| (flow.kind, flow.there, flow.missing())).collect();
        assert_eq!(
            flows,
            [(invite, true, Some(1)), (trying, false, Some(-10)), (ok, false, Some(0)), (bye, true, Some(0))]
        );
        let (options, alive) = (Kind::request(Method::Options), Kind::response(200, Method::Options));
        let backend = &mut log.callees.as_mut().unwrap().backends[0];
        backend.received.note_many(options, 7);
        backend.sent.note_many(alive, 7);
        let of = |log: &Log, kind| log.flows().iter().find(|flow| flow.kind == kind).unwrap().missing();
        assert_eq!(
            (of(&log, options), of(&log, alive)),
            (Some(-7), Some(0)),
            "the element has asked, and was answered"
        );
        log.callees.as_mut().unwrap().backends[0].sent.note_many(alive, 2);
        assert_eq!(of(&log, alive), Some(2), "and no more than it had asked");
        log.callees = None;
        assert!(log.flows().iter().all(|flow| flow.missing().is_none()));
    }

    #[test]
    fn what_is_no_log_is_refused() {
        assert!(Log::read("{}").is_err());
        let other = r#"{"format":"viahop-load log 7","what_is_in_no_other":1}"#;
        assert!(Log::read(other).unwrap_err().contains("its format is `viahop-load log 7`"));
    }
}
