//! The command line: what can be typed. What it does is in `command`.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// A stateless SIP load balancer: one Via hop between the world and a cluster of SIP servers.
///
/// It receives SIP over UDP, TCP, TLS and WebSocket, picks a backend by a hash of the Call-ID, adds one Via and passes the message on. A call
/// stays on one backend for life, on every node of a fleet alike.
#[derive(Debug, Parser)]
#[command(name = "viahop", version, max_term_width = 100, arg_required_else_help = true, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
Start here:
  viahop demo                          ten seconds of real calls on this machine
  viahop run --listen udp:0.0.0.0:5060 --backend sip:10.0.0.11,sip:10.0.0.12
  viahop init > viahop.toml            a configuration with every key explained

Exit codes:
  0 ok   1 failed   2 usage   3 configuration wrong
  4 this machine does not allow it   5 not ready";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Balance SIP until told to stop: SIGHUP reads the configuration again, SIGTERM drains, SIGINT (Ctrl-C) ends.
    Run(Run),
    /// Say whether a configuration would work here: look up its names, open and close its sockets, build its table.
    Check(Check),
    /// Show viahop at work: real calls over loopback through a real viahop to four backends, one of which dies.
    Demo(Demo),
    /// Print a configuration with every key, its default and what it is for.
    Init,
    /// Operate a running viahop: its backends, its configuration, its end; what it sees, and what it decides.
    Ctl(Ctl),
    /// Make a configuration of a Kamailio dispatcher.list: pools, backends and weights, with notes on what was left out.
    Import(Import),
    /// Say what viahop does with a message, and why: rule, key, slot, backend, and the octets it would send.
    Explain(Explain),
    /// Examine this machine: io_uring, memory limits, socket buffers, ports, privileges; with the remedy for each.
    Doctor(Doctor),
    /// Ask a running viahop whether it wants traffic. Exit code 0: yes; 5: no. For keepalived and probes.
    Health(Health),
    /// Print the version and what this build and machine make of it.
    Version,
    /// Print what a shell needs to complete these commands and their flags.
    Completions(Completions),
    /// Write the manual pages, one for each command.
    Man(Man),
}

/// `viahop run`
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Either a file or flags say what to do:
  viahop run -c viahop.toml
  viahop run --listen udp:0.0.0.0:5060 --backend 'sip:10.0.0.11;weight=50' \\
      --backend sip:10.0.0.12
Quote a backend that has a `;`: the shell would end the command there.")]
pub struct Run {
    /// Configuration to read, and to read again on SIGHUP. Default: none, then --listen and --backend are needed.
    #[arg(short, long, value_name = "FILE", env = "VIAHOP_CONFIG", conflicts_with_all = ["listen", "backend"])]
    pub config: Option<PathBuf>,

    /// Address to receive on, `udp:ADDRESS:PORT` or `tcp:ADDRESS:PORT`; 0.0.0.0 means all of IPv4, [::] all of IPv6. Repeat for more, or
    /// separate by commas. Default port: 5060.
    #[arg(long, value_name = "udp:ADDRESS:PORT", env = "VIAHOP_LISTEN", value_delimiter = ',')]
    pub listen: Vec<String>,

    /// Server to send calls to, `sip:HOST[:PORT]`, with `;transport=tcp` to reach it over TCP. (TLS wants a file.) Repeat for more, or separate by commas. `;weight=N` gives it N parts
    /// of the calls (1 to 10000, default 100), `;name=NAME` a name for metrics. Renaming a backend moves its calls.
    #[arg(long, value_name = "sip:HOST:PORT", env = "VIAHOP_BACKEND", value_delimiter = ',')]
    pub backend: Vec<String>,

    /// Host and port that the world knows us by. Stands in the Via of what backends send out through us; needed behind
    /// NAT. Default: the address a message came to.
    #[arg(long, value_name = "HOST:PORT", env = "VIAHOP_ADVERTISE", conflicts_with = "config")]
    pub advertise: Option<String>,

    /// File with the secret of the fleet, at least 16 octets. Nodes with the same secret route alike and know each
    /// other's Vias. Default: a secret of this node's own, kept in its state directory.
    #[arg(long, value_name = "FILE", env = "VIAHOP_SECRET_FILE", conflicts_with = "config")]
    pub secret_file: Option<PathBuf>,

    /// Do not ask backends with OPTIONS. They count as up, whatever happens; one that refuses is passed over for 2 s. For
    /// servers that do not answer OPTIONS.
    #[arg(long, env = "VIAHOP_NO_PROBE")]
    pub no_probe: bool,

    /// Cores to run on, one shard on each, like `0,2-5`. Default: all this process may use. Calls are spread over
    /// shards; more cores carry more calls and need more memory (13 MiB each).
    #[arg(long, value_name = "LIST", env = "VIAHOP_CORES", conflicts_with = "shards")]
    pub cores: Option<String>,

    /// Number of shards, on the first cores this process may use. Default: one on each.
    #[arg(long, value_name = "N", env = "VIAHOP_SHARDS")]
    pub shards: Option<String>,

    /// Address and port of the HTTP endpoint for metrics, readiness and status, or `off`. Default: 127.0.0.1:8460. Other
    /// than loopback addresses are refused here; the file has a key to allow one.
    #[arg(long, value_name = "ADDRESS:PORT", env = "VIAHOP_ADMIN")]
    pub admin: Option<String>,

    /// What decides which shard a message comes to: its Call-ID, by a program in the kernel, or the kernel itself, by
    /// source and destination address. Default: as the file says, else auto.
    #[arg(long, value_enum, value_name = "WHAT", env = "VIAHOP_STEERING")]
    pub steering: Option<Steering>,

    /// Whether datagrams that are alike are handed to the kernel as one (UDP segmentation), which takes up to two fifths off the
    /// cost of a message under load. Captures on this machine (tcpdump, sngrep) would show them as one packet, so auto looks for captures
    /// four times a second. Default: as the file says, else auto.
    #[arg(long, value_enum, value_name = "WHEN", env = "VIAHOP_GSO")]
    pub gso: Option<Gso>,

    /// How long a shard at work lets messages gather before it looks again, `0s` to `1ms`; `0s`: not at all. It does so while it
    /// expects several and finds that a message costs less CPU that way; round trips then take up to twice that time longer.
    /// Default: 50us.
    #[arg(long, value_name = "TIME", env = "VIAHOP_LINGER")]
    pub linger: Option<String>,

    /// Path of the socket that `viahop ctl` speaks to, or `off`. Default: ctl.sock in $RUNTIME_DIRECTORY,
    /// $XDG_RUNTIME_DIR/viahop or /run/viahop, whichever takes it first.
    #[arg(long, value_name = "PATH", env = "VIAHOP_SOCKET")]
    pub socket: Option<String>,
}

/// `viahop run --steering`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Steering {
    /// The Call-ID if this machine lets us, else the kernel; the log says which.
    Auto,
    /// The Call-ID, or do not start. Needs CAP_BPF, CAP_PERFMON and Linux 5.17.
    CallId,
    /// The kernel.
    Kernel,
}

/// `viahop run --gso`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Gso {
    /// While nobody captures on this machine.
    Auto,
    /// Whoever captures.
    Always,
    /// Each datagram by itself.
    Off,
}

/// `viahop check`
#[derive(Debug, Args)]
pub struct Check {
    /// Configuration to check.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Only read: no look-ups, no sockets. For a machine other than the one it is meant for.
    #[arg(long)]
    pub offline: bool,

    /// Treat warnings as errors.
    #[arg(long)]
    pub strict: bool,

    /// Form of the answer.
    #[arg(long, value_enum, default_value_t = Format::Human)]
    pub format: Format,
}

/// `viahop import`
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  viahop import /etc/kamailio/dispatcher.list > viahop.toml
A pool can also follow the list as it changes, with this in its [[pool]]:
  list = \"/etc/kamailio/dispatcher.list\"

Exit codes:
  0 made   3 something in the list is wrong: nothing is made
  4 the file cannot be written")]
pub struct Import {
    /// The list to read.
    #[arg(value_name = "dispatcher.list")]
    pub file: PathBuf,

    /// Only the destinations of this set. Default: a pool for each set.
    #[arg(long, value_name = "N")]
    pub set: Option<u32>,

    /// File to write, which must not be there yet. Default: standard output.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Who reads the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Text for a terminal.
    Human,
    /// A JSON array of problems: severity, subject, file, line, column, message, label, help.
    Json,
}

/// `viahop demo`
#[derive(Debug, Args)]
pub struct Demo {
    /// How long, in seconds: 5 to 300. A backend dies at 40 % of it and is back at 70 %.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(5..=300))]
    pub seconds: u64,

    /// New calls a second: 10 to 20000.
    #[arg(long, value_name = "RATE", default_value_t = 500, value_parser = clap::value_parser!(u64).range(10..=20_000))]
    pub calls: u64,
}

/// `viahop explain`
#[derive(Debug, Args)]
#[command(after_help = "\
By the configuration, all backends up:
  viahop explain -c viahop.toml INVITE.sip
As the running viahop does at this moment:
  viahop explain --live -c viahop.toml INVITE.sip")]
pub struct Explain {
    /// File with one SIP message as it comes from the network, or `-` for standard input. Lines that end in a bare LF are
    /// mended to CRLF, which is said.
    #[arg(value_name = "MESSAGE.sip")]
    pub message: PathBuf,

    /// Configuration to explain by.
    #[arg(short, long, value_name = "FILE", env = "VIAHOP_CONFIG")]
    pub config: PathBuf,

    /// Ask the running viahop which backends are up and which ports it sends from. Needs its `[admin]`.
    #[arg(long)]
    pub live: bool,

    /// Where the message is thought to come from. Default: an address that nobody has (198.51.100.7:5060).
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "198.51.100.7:5060")]
    pub from: SocketAddr,

    /// Name of the listener it is thought to arrive on. Default: the first.
    #[arg(long, value_name = "NAME")]
    pub listener: Option<String>,
}

/// `viahop ctl`
#[derive(Debug, Args)]
#[command(
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "\
Examples:
  viahop ctl status                        is it well?
  viahop ctl backend 10.0.0.11:5060 drain  no new calls; those it has go on
  viahop ctl backend 10.0.0.11:5060 ready  new calls again
  viahop ctl reload --dry-run              what would the file on disk change?
  viahop ctl events                        what happened lately
  viahop ctl errors                        messages that could not be read
  viahop ctl connections                   who is connected, what waits on whom
  viahop ctl trace --call-id ID            what is decided about each message

What is changed here holds until the process ends: what a restart is to find belongs in the file.

Exit codes:
  0 done   1 refused   2 no such thing, or usage   3 configuration wrong
  4 this machine does not allow it   5 no viahop answers"
)]
pub struct Ctl {
    /// The socket of the viahop that is meant. Default: the first of ctl.sock in $RUNTIME_DIRECTORY,
    /// $XDG_RUNTIME_DIR/viahop and /run/viahop at which one answers, then http://127.0.0.1:8460. With `off`, as `viahop run`
    /// has it, only that.
    #[arg(long, global = true, value_name = "PATH", env = "VIAHOP_SOCKET")]
    pub socket: Option<PathBuf>,

    /// Its HTTP endpoint instead of the socket, on this machine.
    #[arg(long, global = true, value_name = "http://ADDRESS:PORT", value_parser = http)]
    pub url: Option<String>,

    /// Form of the answer. Tables may change from version to version; `json` and `csv` grow at their ends only. `kamcmd` is
    /// what `kamcmd dispatcher.list` prints; the command `backends` knows it.
    #[arg(long, global = true, value_enum, default_value_t = Shape::Table)]
    pub format: Shape,

    /// What to do.
    #[command(subcommand)]
    pub command: CtlCommand,
}

/// What begins as the URL of an endpoint does; whether there is one, asking tells.
fn http(text: &str) -> Result<String, String> {
    match text.strip_prefix("http://") {
        Some(place) if !place.is_empty() => Ok(text.to_owned()),
        _ => Err("write http://ADDRESS:PORT, like http://127.0.0.1:8460".into()),
    }
}

/// Form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// For people: aligned columns, 80 wide where names allow it.
    Table,
    /// What the endpoint answers.
    Json,
    /// A line of names, then a line for each row.
    Csv,
    /// As Kamailio's dispatcher lists its sets.
    Kamcmd,
}

/// The commands of `viahop ctl`.
#[derive(Debug, Subcommand)]
pub enum CtlCommand {
    /// Show how it is: version, tables, shards and their load, backends, messages.
    Status,
    /// Show what happens in each second, until Ctrl-C: messages, how busy the shards are, what each backend gets and answers.
    Top {
        /// End after so many screens, one a second.
        #[arg(short = 'n', long, value_name = "N")]
        screens: Option<u64>,
    },
    /// Show the backends: state, weight, requests and errors so far, last probe.
    Backends,
    /// Change one backend, at once and until the process ends.
    #[command(
        after_help = "\
What it gets:
  ready      new calls by its weight, as long as probes find it up
  drain      no new calls; those it has go on: what has a token of ours, what
             names it, INVITEs under way
  maint      nothing at all, and no probes: it is being taken apart
  weight N   N parts of new calls, 0 to 10000; 0 is none. Only calls from or
             to this backend move",
        subcommand_value_name = "ready|drain|maint|weight N"
    )]
    Backend {
        /// Its name, or POOL/NAME where several pools have one of the name.
        #[arg(value_name = "NAME")]
        name: String,
        /// What to do with it.
        #[command(subcommand)]
        change: Change,
    },
    /// Read the configuration again, and say what that changed.
    Reload {
        /// Read, look up and compare, and change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Finish what is under way, then end, as after SIGTERM. Asking again does not hurry it.
    Drain {
        /// Return when it has ended.
        #[arg(long)]
        wait: bool,
    },
    /// Show what happened lately: backends that came and went, reloads, and whatever else the log has an event for.
    Events {
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
        /// How many at most, the latest.
        #[arg(short = 'n', long, value_name = "N", default_value_t = 40)]
        lines: usize,
    },

    /// Show the last messages that could not be read, with a mark under the place.
    Errors {
        /// How many at most, the latest.
        #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
        lines: usize,
    },
    /// List the connections: who is connected, over what, and whether anything waits on them.
    #[command(after_help = "\
At most 1000 are listed for each shard; how many there are is told in any case. With an address, only those of that peer.")]
    Connections {
        /// Only those to this address, like 192.0.2.1.
        #[arg(value_name = "ADDRESS")]
        peer: Option<IpAddr>,
    },

    /// Follow one call: show what is decided about each of its messages, as they come.
    #[command(after_help = "\
The call is followed until the time is over, also when this command is stopped; a new trace ends the one before. Of a \
call at most 100 messages a second are shown for each shard, and 1000 kept.")]
    Trace {
        /// The call's Call-ID, as it stands in its messages.
        #[arg(long, value_name = "ID")]
        call_id: String,
        /// For how long: 1 to 3600.
        #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
        seconds: u64,
    },
}

/// A change of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum Change {
    /// New calls and everything that belongs to it.
    Ready,
    /// No new calls; what belongs to it still goes there.
    Drain,
    /// Nothing at all, and no probes.
    Maint,
    /// So many parts of new calls.
    Weight {
        /// 0 to 10000; backends begin with 100.
        #[arg(value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_000))]
        parts: u32,
    },
}

/// `viahop doctor`
#[derive(Debug, Args)]
pub struct Doctor {
    /// Configuration whose addresses, buffers and cores to examine. Default: port 5060, default buffers, all cores.
    #[arg(short, long, value_name = "FILE", env = "VIAHOP_CONFIG")]
    pub config: Option<PathBuf>,
}

/// A time without its unit, which other flags and the configuration have.
fn milliseconds(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "a whole number of milliseconds without its unit, like 1000".into())
}

/// `viahop health`
#[derive(Debug, Args)]
pub struct Health {
    /// Address and port of its HTTP endpoint. `off`, as `viahop run` has it: there is nobody to ask, exit code 5.
    #[arg(long, value_name = "ADDRESS:PORT", env = "VIAHOP_ADMIN", default_value = "127.0.0.1:8460")]
    pub admin: Endpoint,

    /// How long to wait for an answer, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = milliseconds)]
    pub timeout: u64,
}

/// `viahop completions`
#[derive(Debug, Args)]
#[command(after_help = "\
Where shells look for it:
  viahop completions bash > /etc/bash_completion.d/viahop
  viahop completions zsh  > /usr/local/share/zsh/site-functions/_viahop
  viahop completions fish > /etc/fish/completions/viahop.fish")]
pub struct Completions {
    /// The shell.
    pub shell: clap_complete::Shell,
}

/// `viahop man`
#[derive(Debug, Args)]
#[command(after_help = "\
Where man(1) looks for them:
  viahop man /usr/local/share/man/man1")]
pub struct Man {
    /// Where to write them. It is made if it is not there.
    pub folder: PathBuf,
}

/// Where HTTP is served.
#[derive(Clone, Copy, Debug)]
pub enum Endpoint {
    /// There.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Endpoint, String> {
        match text {
            "off" => Ok(Endpoint::Off),
            _ => text.parse().map(Endpoint::At).map_err(|_| "write ADDRESS:PORT, like 127.0.0.1:8460, or off".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::{Command, CommandFactory};

    /// Below a heading and no wider than a terminal: of what is wrapped nobody sees any more what stands below what, and a command
    /// that is copied is cut.
    #[test]
    fn examples_stand_as_they_are_written_on_a_terminal_of_80() {
        fn look_at(command: &Command) {
            let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let is_example = |line: &&str| line.starts_with("  ");
            let wide = text.lines().find(|line| is_example(line) && line.chars().count() > 80);
            assert_eq!(wide, None, "of {}", command.get_name());
            // A `\` at the end of a line of the source takes the blanks before an example that stands first.
            let first = text.lines().next().filter(|_| text.lines().any(|line| is_example(&line)));
            assert!(first.is_none_or(|line| line.ends_with(':')), "no heading:\n{text}");
            command.get_subcommands().for_each(look_at);
        }
        look_at(&Cli::command());
    }
}
