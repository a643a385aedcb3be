//! What the commands that generate load share: the options of callers, of callees, and of what is written down.

use super::result_file::ResultFile;
use crate::assertion::Assertion;
use crate::clock::{SECOND_NS, ns};
use crate::digest::{ALGORITHMS, Realm};
use crate::endpoint::{Endpoint, Transport, parse_listen};
use crate::failure::{Exit, Failure, cannot_bind};
use crate::fault::{self, Fault, read_share};
use crate::impair::Impairment;
use crate::latency::Latencies;
use crate::log::Log;
use crate::rng;
use crate::run::{self, LATENESS_MAX_NS, Plan, Progress, Watcher, Wish};
use crate::say::answer;
use crate::scenario::{BUILT_IN, BUILT_IN_MIXES, Mix, Scenario, read_parts};
use crate::schedule::Arrivals;
use crate::screen::Screen;
use crate::sys::process;
use crate::sys::socket::Socket;
use crate::timer::Timers;
use crate::tls;
use crate::{hgrm, html, report, uac, uas};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Descriptors that are asked for in any case: callers and callees of one process share them, and how many connections come is up
/// to the element. Fewer are no error.
const DESCRIPTORS_HOPED: u64 = 65_536;

/// Cores as users list them: `0,2-3`.
pub type Cores = Vec<Option<usize>>;

/// Options of the calling side.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Callers")]
pub struct Calling {
    /// Session attempt rate: calls per second, all cores together.
    #[arg(long, short, default_value_t = 100.0, value_parser = positive, env = "VIAHOP_LOAD_RATE")]
    pub rate: f64,
    /// How long calls are placed, in seconds.
    #[arg(long, default_value_t = 10.0, value_parser = positive)]
    pub seconds: f64,
    /// Place no more than so many calls.
    #[arg(long, short = 'm', value_name = "N")]
    pub calls: Option<u64>,
    /// What a call does: a name of those that are built in (see `viahop-load scenarios`), or a TOML file. Several, each with
    /// =WEIGHT behind it, are mixed.
    #[arg(long = "scenario", value_name = "SCENARIO[=WEIGHT]", default_value = "call")]
    pub scenarios: Vec<String>,
    /// Session duration: how long an answered call lasts.
    #[arg(long, short = 'd', default_value = "0s", value_parser = humantime::parse_duration)]
    pub hold: Duration,
    /// How calls are spread in time.
    #[arg(long, value_enum, default_value_t = ArrivalsName::Constant)]
    pub arrivals: ArrivalsName,
    /// How long calls that are open may go on after the last was placed, beyond their hold time; what is open then is cut.
    /// After 32 s every transaction has ended by itself.
    #[arg(long, default_value = "40s", value_parser = humantime::parse_duration)]
    pub drain: Duration,
    /// Our own address. Default: the one from which the kernel would send to the target.
    #[arg(long, value_name = "IP")]
    pub from: Option<IpAddr>,
    /// Sockets per core, over UDP: elements that spread by source address see so many phones.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub sockets: u16,
    /// Connections to the target, over TCP, TLS or WebSocket, all cores together. Calls take turns. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub connections: Option<u32>,
    /// Whoever may have signed the element's certificate, over TLS: a file in PEM. Default: any certificate will do.
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// The name that the element is asked for (SNI), and that its certificate has to be for. Default: the target's address.
    #[arg(long, value_name = "NAME")]
    pub tls_name: Option<String>,
    /// What an element that asks callers for a certificate is shown, in PEM, with its chain.
    #[arg(long, value_name = "FILE", requires = "tls_client_key")]
    pub tls_client_certificate: Option<PathBuf>,
    /// The key of that certificate, in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_client_certificate")]
    pub tls_client_key: Option<PathBuf>,
    /// Different callers and callees.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub users: u64,
    /// Calls that may be open at the same time, per core. A call beyond is not placed and counts as failed.
    #[arg(long, short = 'l', value_name = "N", default_value_t = 1 << 20)]
    pub calls_max: usize,
    /// T1 of RFC 3261: the gap before the first retransmission. T2, T4 and Timers B, F and H follow in proportion.
    #[arg(long, default_value = "500ms", value_parser = humantime::parse_duration)]
    pub t1: Duration,
    /// User name for digest authentication, when challenged. Default: the caller's own, as in its From.
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Password for digest authentication, when challenged.
    #[arg(long, value_name = "PASSWORD", env = "VIAHOP_LOAD_PASSWORD")]
    pub password: Option<String>,
    /// A bad network: lose this share of what callers send, and of what comes for them.
    #[arg(long, help_heading = "Faults on purpose", value_name = "SHARE", value_parser = read_share, default_value = "0%")]
    pub lose: f64,
    /// A bad network: send this share of datagrams twice.
    #[arg(long, help_heading = "Faults on purpose", value_name = "SHARE", value_parser = read_share, default_value = "0%")]
    pub duplicate: f64,
    /// A bad network: keep this share of datagrams back for 20 ms, so that others overtake them.
    #[arg(long, help_heading = "Faults on purpose", value_name = "SHARE", value_parser = read_share, default_value = "0%")]
    pub reorder: f64,
    /// Let messages of one length share their way through the kernel (UDP GSO), callers' and callees': one core then sends
    /// more, in tighter bursts.
    #[arg(long)]
    pub gso: bool,
    /// Decides Call-IDs, tags and arrivals. Default: another one each time.
    #[arg(long)]
    pub seed: Option<u64>,
    /// The run is void if one call in a thousand is placed later than this.
    #[arg(long, default_value_t = humantime::Duration::from(Duration::from_nanos(LATENESS_MAX_NS)))]
    pub lateness_max: humantime::Duration,
}

/// How calls are spread in time.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum ArrivalsName {
    /// Equal gaps.
    Constant,
    /// Independent callers.
    Poisson,
}

/// Options of the called side.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Callees")]
pub struct Called {
    /// Where backends listen: udp:ADDRESS:PORT or udp:ADDRESS:FIRST-LAST, or the same with tcp: or tls:, one backend per port. May be
    /// given several times.
    #[arg(long, value_name = "ADDRESS", default_value = "udp:127.0.0.1:6000", env = "VIAHOP_LOAD_BACKENDS")]
    pub listen: Vec<String>,
    /// What backends that listen on tls: show, in PEM, with its chain. Default: one that nobody has signed, made at the start.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// The key of that certificate, in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// How long a callee's phone rings: from the 180 to the 200.
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    pub ring: Duration,
    /// Calls whose backend is remembered, to notice when a message of theirs reaches another. 8 octets each.
    #[arg(long, value_name = "N", default_value_t = crate::owners::CALLS_REMEMBERED)]
    pub remember: usize,
    /// Challenge every REGISTER, and accept it only with the password: MD5, SHA-256 or SHA-512-256.
    #[arg(long, value_name = "ALGORITHM", value_parser = read_algorithm)]
    pub challenge: Option<&'static str>,
    /// What backends do wrong: silent=SHARE (take no notice), refuse=SHARE (486), unavailable=SHARE (503), slow=TIME
    /// (answer so much later), down=BACKEND@FROM-TO (killed and brought back, in seconds from the start). May be given
    /// several times.
    #[arg(long = "fault", help_heading = "Faults on purpose", value_name = "FAULT", value_parser = Fault::read)]
    pub faults: Vec<Fault>,
}

/// What is written down, and what is demanded.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Result")]
pub struct Written {
    /// Write the log to this file: all counts and whole histograms. `viahop-load report` reads it.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the latencies of all requests to this file, in HdrHistogram's text format, in milliseconds.
    #[arg(long, value_name = "FILE")]
    pub hgrm: Option<PathBuf>,
    /// Write a page to this file that any browser shows, without anything from elsewhere.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// What has to be so in the end, or the exit code is 99: failed==0, p99<2ms. May be given several times.
    #[arg(long = "assert", value_name = "CONDITION", value_parser = Assertion::read)]
    pub assertions: Vec<Assertion>,
    /// No live screen, and no line per second.
    #[arg(long, short)]
    pub quiet: bool,
}

/// The files of [`Written`], open.
pub struct Files {
    json: Option<ResultFile>,
    hgrm: Option<ResultFile>,
    html: Option<ResultFile>,
}

impl Files {
    /// Writes what was asked for.
    pub fn write(self, log: &Log) -> Result<(), Failure> {
        if let Some(file) = self.json {
            file.write(&log.write())?;
        }
        if let Some(file) = self.hgrm {
            file.write(&hgrm::render(&log.calls.as_ref().map_or_else(Latencies::default, uac::Report::latency)))?;
        }
        if let Some(file) = self.html {
            file.write(&html::render(log))?;
        }
        Ok(())
    }
}

/// One line per second, for pipes and files.
struct Lines;

impl Watcher for Lines {
    fn on_second(&mut self, progress: &Progress<'_>) {
        say!("{}", run::line(progress));
    }

    fn wish(&mut self) -> Option<Wish> {
        None
    }
}

impl Calling {
    /// As the library wants it.
    pub fn config(&self, target: Endpoint, cores: Cores) -> Result<uac::Config, Failure> {
        let mut config = uac::Config::new(target);
        let target = target.address;
        // Where callers go straight to callees that `suits` knows nothing of, it may be of no use.
        let from = self.from.filter(|from| from.is_ipv4() == target.is_ipv4());
        config.from = match (from, target.ip().is_loopback()) {
            (Some(from), _) => from,
            (None, true) => config.from,
            (None, false) => local_address(target)?,
        };
        (config.cores, config.mix, config.rate) = (cores, mix(&self.scenarios)?, self.rate);
        config.sockets = usize::from(self.sockets);
        config.connections = self.connections.map_or(1, |connections| connections as usize).max(config.cores.len());
        config.duration_ns = (self.seconds * SECOND_NS as f64) as u64;
        config.calls = self.calls.unwrap_or(u64::MAX);
        (config.hold_ns, config.drain_ns) = (ns(self.hold), ns(self.hold).saturating_add(ns(self.drain)));
        (config.users, config.calls_max) = (self.users, self.calls_max);
        config.timers = timers(self.t1);
        config.seed = self.seed.unwrap_or_else(rng::seed);
        config.arrivals = match self.arrivals {
            ArrivalsName::Constant => Arrivals::Constant,
            ArrivalsName::Poisson => Arrivals::Poisson,
        };
        if config.transport.has_tls() {
            let name = self.tls_name.clone().unwrap_or_else(|| target.ip().to_string());
            let shown = self.tls_client_certificate.as_deref().zip(self.tls_client_key.as_deref());
            config.tls = Some(tls::Client::showing(&name, self.tls_ca.as_deref(), shown)?);
        }
        config.password = self.password.clone();
        config.user = self.user.clone();
        if let Some(scenario) =
            config.mix.scenarios().find(|scenario| scenario.needs_password() && self.password.is_none())
        {
            let what = format!("the scenario `{}` has to prove a password, and there is none", scenario.name);
            return Err(Failure::new(Exit::Usage, "scenario", what).help("--password, or VIAHOP_LOAD_PASSWORD"));
        }
        config.segments = self.gso;
        config.impairment = Impairment { loss: self.lose, duplication: self.duplicate, reordering: self.reorder };
        enough_descriptors(match config.transport.is_reliable() {
            true => config.connections,
            false => config.sockets * config.cores.len(),
        })?;
        Ok(config)
    }

    /// Refuses what means nothing for this target.
    pub fn suits(&self, Endpoint { transport, address }: Endpoint) -> Result<(), Failure> {
        of_one_family(self.from, address)?;
        let of_tls = self.tls_ca.is_some() || self.tls_name.is_some() || self.tls_client_certificate.is_some();
        if !transport.has_tls() && of_tls {
            let what = "--tls-ca, --tls-name and --tls-client-certificate, and there is no TLS";
            let failure = Failure::new(Exit::Usage, "callers", what);
            return Err(failure.help("--target 'sip:HOST:PORT;transport=tls'"));
        }
        let impaired = self.lose + self.duplicate + self.reorder > 0.0;
        let (what, help) = match transport {
            Transport::Udp if self.connections.is_some() => {
                ("--connections, and the target is spoken to over UDP", "--target 'sip:HOST:PORT;transport=tcp'")
            }
            _ if transport.is_reliable() && self.sockets > 1 => ("--sockets is for UDP", "--connections N"),
            _ if transport.is_reliable() && impaired => (
                "over TCP the kernel loses, doubles and reorders nothing that it would not mend",
                "tc-netem(8) does it below TCP",
            ),
            _ => return Ok(()),
        };
        Err(Failure::new(Exit::Usage, "callers", what).help(help))
    }
}

impl Called {
    /// Where backends listen.
    pub fn backends(&self) -> Result<Vec<Endpoint>, Failure> {
        let mut backends = Vec::new();
        for listen in &self.listen {
            let endpoints =
                parse_listen(listen).map_err(|why| Failure::new(Exit::Usage, "listen", format!("{listen}: {why}")))?;
            backends.extend(endpoints);
        }
        Ok(backends)
    }

    /// As the library wants it. `password` is what a REGISTER has to prove, if it is challenged.
    pub fn config(&self, cores: Cores, password: Option<&str>) -> Result<uas::Config, Failure> {
        let backends = self.backends()?;
        enough_descriptors(backends.len())?;
        let down = self.faults.iter().find_map(|fault| match fault {
            Fault::Down { backend, .. } if *backend >= backends.len() => Some(*backend),
            _ => None,
        });
        if let Some(backend) = down {
            let what = format!("there is no backend {backend}; {} are numbered from 0", backends.len());
            return Err(Failure::new(Exit::Usage, "fault", what));
        }
        let share = fault::shares(&self.faults);
        // 100 % in three parts may be a trifle more.
        if share > 1.0 + 1e-9 {
            let what = format!("a call meets one fault, and their shares add up to {:.0} %", share * 100.0);
            return Err(Failure::new(Exit::Usage, "fault", what));
        }
        let realm = match (self.challenge, password) {
            (None, _) => None,
            (Some(algorithm), Some(password)) => Realm::new(algorithm, password),
            (Some(_), None) => {
                let what = "--challenge demands a password, and there is none";
                return Err(Failure::new(Exit::Usage, "uas", what).help("--password, or VIAHOP_LOAD_PASSWORD"));
            }
        };
        let tls = match (&self.tls_certificate, &self.tls_key) {
            (Some(certificate), Some(key)) => Some(tls::Server::new(certificate, key)?),
            _ => None,
        };
        Ok(uas::Config {
            realm,
            tls,
            backends,
            cores,
            ring_ns: ns(self.ring),
            calls_remembered: self.remember,
            faults: self.faults.clone(),
            ..uas::Config::default()
        })
    }
}

impl Written {
    /// Runs the plan, shows it, writes it down, and says how the program is to end.
    pub fn run(&self, plan: &Plan) -> super::Outcome {
        let files = self.open()?;
        process::catch_stop_signals();
        let log = match (self.quiet, Screen::open(plan)) {
            (true, _) => run::run(plan, &mut ())?,
            (false, Some(mut screen)) => run::run(plan, &mut screen)?,
            (false, None) => run::run(plan, &mut Lines)?,
        };
        answer(format_args!("{}", report::render(&log)));
        files.write(&log)?;
        Ok(self.judge(&log))
    }

    /// Opens the files that were asked for.
    pub fn open(&self) -> Result<Files, Failure> {
        let open = |path: &Option<PathBuf>| path.as_deref().map(ResultFile::open).transpose();
        Ok(Files { json: open(&self.json)?, hgrm: open(&self.hgrm)?, html: open(&self.html)? })
    }

    /// Looks at the assertions and at what makes a result none.
    pub fn judge(&self, log: &Log) -> ExitCode {
        let mut code = ExitCode::SUCCESS;
        if log.marks.iter().any(|mark| mark.starts_with("VOID")) {
            code = ExitCode::from(Exit::Failed as u8);
        }
        for assertion in &self.assertions {
            if !assertion.holds(log) {
                say!("BROKEN: {assertion} (it is {})", assertion.seen_text(log));
                code = ExitCode::from(Exit::AssertionBroken as u8);
            }
        }
        code
    }
}

/// Reads `0,2-3`.
pub fn read_cores(text: &str) -> Result<Vec<usize>, String> {
    let mut cores = Vec::new();
    let allowed = process::cores();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number =
            |text: &str| text.trim().parse::<usize>().map_err(|_| format!("`{text}` is not a core; write 0,2-3"));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("the range {first}-{last} runs backwards; write {last}-{first}"));
        }
        for core in first..=last {
            if !allowed.contains(&core) {
                return Err(format!("core {core} is not to be had; this process may use {allowed:?}"));
            }
            cores.push(core);
        }
    }
    Ok(cores)
}

/// A list of cores as the library wants it: one shard each, or one shard anywhere.
pub fn shards(cores: &[usize]) -> Cores {
    if cores.is_empty() { vec![None] } else { cores.iter().copied().map(Some).collect() }
}

/// A number above zero.
pub fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if number.is_finite() && number > 0.0 { Ok(number) } else { Err("a number above 0 is wanted".to_owned()) }
}

fn mix(texts: &[String]) -> Result<Mix, Failure> {
    let mut parts = Vec::new();
    for text in texts {
        let (name, weight) = match text.rsplit_once('=') {
            Some((name, weight)) => {
                let weight = weight.parse::<f64>();
                (
                    name,
                    weight.map_err(|_| {
                        Failure::new(Exit::Usage, "scenario", format!("`{text}`: the weight is no number"))
                    })?,
                )
            }
            None => (text.as_str(), 1.0),
        };
        // The parts of a mix share its weight.
        let own = read_scenarios(name)?;
        let total: f64 = own.iter().map(|(_, weight)| weight).sum();
        for (scenario, part) in own {
            // The report goes by names.
            if parts.iter().any(|(other, _): &(Scenario, f64)| other.name == scenario.name && *other != scenario) {
                let what = format!("two scenarios that are not the same are called `{}`", scenario.name);
                return Err(Failure::new(Exit::Config, "scenario", what).help(format!(
                    "the report would add them up: write another name = into the file of one ({name})"
                )));
            }
            parts.push((scenario, part / total * weight));
        }
    }
    Mix::new(parts).ok_or_else(|| Failure::new(Exit::Usage, "scenario", "no scenario has a weight above 0"))
}

/// The scenario or the mix of this name, or in this file.
fn read_scenarios(name: &str) -> Result<Vec<(Scenario, f64)>, Failure> {
    let built_in = BUILT_IN.iter().chain(BUILT_IN_MIXES);
    let text = match built_in.clone().find(|(known, _)| *known == name) {
        Some((_, text)) => (*text).to_owned(),
        None => std::fs::read_to_string(name).map_err(|error| {
            let names: Vec<&str> = built_in.map(|(name, _)| *name).collect();
            Failure::new(Exit::Config, "scenario", format!("{name}: {error}"))
                .help(format!("a file, or one of those that are built in: {}", names.join(", ")))
        })?,
    };
    // What a mix names is built in, or a file beside its own.
    let find = |part: &str| {
        let path = Path::new(name).with_file_name(part);
        Scenario::built_in(part).map_or_else(
            || {
                let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                Scenario::read(&path.display().to_string(), &text).map_err(|problem| problem.to_string())
            },
            Ok,
        )
    };
    read_parts(name, &text, find).map_err(|problem| Failure::rendered(Exit::Config, problem.to_string()))
}

fn read_algorithm(text: &str) -> Result<&'static str, String> {
    let known = ALGORITHMS.into_iter().find(|algorithm| algorithm.eq_ignore_ascii_case(text));
    known.ok_or_else(|| format!("`{text}` is none of {}", ALGORITHMS.join(", ")))
}

fn timers(t1: Duration) -> Timers {
    let t1_ns = ns(t1).max(crate::clock::MS_NS);
    Timers { t1_ns, t2_ns: 8 * t1_ns, t4_ns: 10 * t1_ns, ..Timers::default() }
}

/// Our own address towards `target`: `from`, which has to be one, or that from which the kernel would send there.
pub fn own_address(from: Option<IpAddr>, target: SocketAddr) -> Result<IpAddr, Failure> {
    of_one_family(from, target)?;
    let Some(from) = from else { return local_address(target) };
    let any_port = SocketAddr::new(from, 0);
    Socket::bind(any_port).map_err(|error| cannot_bind(any_port, &error))?;
    Ok(from)
}

fn of_one_family(from: Option<IpAddr>, target: SocketAddr) -> Result<(), Failure> {
    match from.filter(|from| from.is_ipv4() != target.is_ipv4()) {
        None => Ok(()),
        Some(from) => {
            let what = format!("nothing can be sent from {from} to {target}: one is IPv4, the other IPv6");
            Err(Failure::new(Exit::Usage, "target", what).help("another --from, or none"))
        }
    }
}

/// The address from which the kernel would send to `target`.
fn local_address(target: SocketAddr) -> Result<IpAddr, Failure> {
    let failure = |error: std::io::Error| {
        Failure::new(Exit::Environment, "target", format!("there is no way to {target}: {error}"))
            .help("--from says which of our addresses to use")
    };
    Socket::toward(target).map_err(failure)
}

/// Sixteen beyond the sockets: standard streams, epoll and eventfd of each shard, files.
pub fn enough_descriptors(sockets: usize) -> Result<(), Failure> {
    let wanted = sockets as u64 + 16;
    let allowed = process::raise_descriptors(wanted.max(DESCRIPTORS_HOPED));
    if wanted <= allowed {
        return Ok(());
    }
    let what = format!("{sockets} sockets need {wanted} file descriptors, and this process may have {allowed}");
    Err(Failure::new(Exit::Environment, "start", what)
        .help(format!("raise the limit before the start: ulimit -n {}", wanted * 2))
        .help("a service: LimitNOFILE= in its unit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_listed_with_commas_and_ranges() {
        let first = process::cores()[0];
        assert_eq!(read_cores(&first.to_string()).unwrap(), [first]);
        assert_eq!(read_cores(&format!("{first}-{first},{first}")).unwrap(), [first, first]);
        assert!(read_cores("9999").unwrap_err().contains("may use"));
        assert!(read_cores(&format!("{}-{}", usize::MAX, usize::MAX)).unwrap_err().contains("may use"));
        assert!(read_cores("1-0").unwrap_err().contains("write 0-1"));
        assert!(read_cores("a").unwrap_err().contains("0,2-3"));
        assert_eq!(shards(&[]), [None]);
    }

    #[test]
    fn scenarios_are_named_or_files_and_have_weights() {
        assert_eq!(mix(&["call=3".into(), "options".into()]).unwrap().scenarios().len(), 2);
        let mixed = mix(&["mix".into(), "options=1".into()]).unwrap();
        assert!(mixed.scenarios().len() > 5);
        assert_eq!(&*mixed.scenario(mixed.choose(0.51)).name, "options", "a mix has the weight of one");
        assert!(mix(&["nowhere.toml".into()]).unwrap_err().to_string().contains("built in"));
        assert!(mix(&["call=x".into()]).is_err());
        assert!(mix(&["call=0".into()]).is_err());
    }

    #[test]
    fn a_rate_is_above_zero_and_finite() {
        assert_eq!(positive("0.5"), Ok(0.5));
        for text in ["0", "-1", "nan", "inf", "fast"] {
            assert!(positive(text).is_err(), "{text}");
        }
    }
}
