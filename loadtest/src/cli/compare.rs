//! `viahop-load compare`: elements against each other.

use super::Outcome;
use super::options::{enough_descriptors, positive};
use super::result_file::ResultFile;
use crate::clock::{SECOND_NS, now_ns, ns};
use crate::compare::element::{Element, KNOWN, KNOWN_TCP, KNOWN_TLS};
use crate::compare::rounds::{self, Plan};
use crate::compare::{picture, table};
use crate::failure::{Exit, Failure};
use crate::say::answer;
use crate::sys::process;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Compare what elements cost: the same load on the same core, in rounds, one element after the other.
///
/// The load is an INVITE of 900 octets (or so: --lengths) and its 200: one process of this program is caller and callee, on a
/// core of its own. Without --element, all that are installed are compared: over UDP, or with --transport tcp or tls over connections.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// An element: direct, relay, relay-scalar, viahop, viahop-no-gso, viahop-pad, nginx, kamailio, or NAME=COMMAND with {ip}, {port},
    /// {backend_ip}, {backend_port}, {core} and {dir}. A name that ends in -tcp or -tls is reached so, and reaches its backend so; in
    /// -tls-udp and the like each side has its own: viahop-tcp, kamailio-tls, direct-tcp. May be given several times.
    #[arg(long = "element", value_name = "ELEMENT")]
    elements: Vec<String>,
    /// Which elements are compared without --element: those over UDP; those over TCP, beside viahop over UDP; or those over
    /// TLS, beside viahop over TCP.
    #[arg(long, value_enum, default_value_t = TransportName::Udp)]
    transport: TransportName,
    /// Connections of the caller, to elements that are reached over TCP or TLS. It uses them by turns.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    connections: u16,
    /// Different lengths of the requests and the responses, each an octet longer than the one before, from 900 octets for an
    /// INVITE. With one, as with calls that are all alike, an element may send a batch as one run (UDP segmentation); with more
    /// no two neighbours are alike.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    lengths: u16,
    /// Whom the others are compared with. Default: relay; with --transport tcp viahop, over UDP; with
    /// tls viahop-tcp.
    #[arg(long, value_name = "ELEMENT")]
    baseline: Option<String>,
    /// Requests per second. May be given several times.
    #[arg(long = "rate", value_name = "N", default_values_t = [5_000.0, 20_000.0, 50_000.0], value_parser = positive)]
    rates: Vec<f64>,
    /// Leave out the measurement at saturation.
    #[arg(long)]
    no_saturation: bool,
    /// How many rounds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// How long each measurement takes.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// The core of the elements. Default: the last one.
    #[arg(long)]
    core: Option<usize>,
    /// The core of caller and callee. Default: the first one.
    #[arg(long)]
    driver_core: Option<usize>,
    /// Where viahop is. Default: beside this program.
    #[arg(long, value_name = "PATH")]
    viahop: Option<PathBuf>,
    /// Count system calls too, with strace, in a trial of its own: at saturation, or with --no-saturation at 1,000 requests a
    /// second.
    #[arg(long)]
    syscalls: bool,
    /// Write all measurements to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw CPU per message, medians and spread, into this file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print how the elements are started and configured, and end.
    #[arg(long)]
    print_configs: bool,
}

/// Over what the elements without a name are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum TransportName {
    Tcp,
    Tls,
    Udp,
}

pub fn run(args: &Args) -> Outcome {
    let elements = elements(args)?;
    if args.print_configs {
        for element in &elements {
            say!("=== {}\n{}", element.name, element.description());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let baseline = args.baseline.as_deref().unwrap_or(match args.transport {
        TransportName::Tcp => "viahop",
        TransportName::Tls => "viahop-tcp",
        TransportName::Udp => "relay",
    });
    if args.baseline.is_some() && elements.iter().all(|element| element.name != baseline) {
        let names: Vec<&str> = elements.iter().map(|element| &*element.name).collect();
        let what = format!("--baseline {baseline} is none of those that are compared: {}", names.join(", "));
        return Err(Failure::new(Exit::Usage, "compare", what));
    }
    // The client has that many, and an element may open as many to the sink.
    enough_descriptors(2 * usize::from(args.connections))?;
    let json = args.json.as_deref().map(ResultFile::open).transpose()?;
    let svg = args.svg.as_deref().map(ResultFile::open).transpose()?;
    let (driver_core, core) = cores(args)?;
    process::pin_this_thread(driver_core).map_err(|error| {
        Failure::new(Exit::Environment, "compare", format!("core {driver_core} is not to be had: {error}"))
    })?;
    process::catch_stop_signals();
    let saturation = (!args.no_saturation).then_some(None);
    let plan = Plan {
        loads: saturation.into_iter().chain(args.rates.iter().map(|rate| Some(*rate))).collect(),
        rounds: usize::from(args.rounds),
        measure_ns: ns(args.time).max(SECOND_NS / 100),
        core,
        driver_core,
        lengths: usize::from(args.lengths),
        connections: usize::from(args.connections),
        system_calls: args.syscalls,
        elements,
    };
    let measurements = plan.loads.len() * plan.rounds * plan.elements.len();
    remark!(
        "{measurements} measurements of {:.1} s, elements on core {core}, driver on core {driver_core}",
        args.time.as_secs_f64()
    );
    let mut done = 0;
    let outcome = rounds::run(&plan, |sample| {
        done += 1;
        let load = sample.load.map_or("saturation".to_owned(), |rate| format!("{rate}/s"));
        remark!(
            "{done:>4}/{measurements} {:<14} {load:>10} {:>9.0} messages/s {:>6.2} µs per message",
            sample.element,
            sample.messages_per_second,
            sample.cpu_us_per_message
        );
    })?;
    let distance = match outcome.least_distance_ns() {
        u64::MAX => String::new(),
        ns => format!(", {ns} ns from core {driver_core} to core {core} and back"),
    };
    say!("{}, {} ns for the cheapest system call{distance}\n", outcome.machine, process::system_call_ns(now_ns));
    answer(format_args!("{}", table::render(&outcome, baseline)));
    if let Some(file) = svg {
        file.write(&picture::render(&outcome, baseline))?;
    }
    if let Some(file) = json {
        let text = serde_json::to_string_pretty(&outcome).expect("numbers and names are JSON");
        file.write(&text)?;
    }
    let is_whole = !outcome.cut && outcome.missing.is_empty();
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::from(Exit::Failed as u8) })
}

fn elements(args: &Args) -> Result<Vec<Element>, Failure> {
    let beside = || std::env::current_exe().ok().map(|own| own.with_file_name("viahop")).unwrap_or_default();
    let viahop = args.viahop.clone().unwrap_or_else(beside);
    if !args.elements.is_empty() {
        let read = |text: &String| {
            Element::read(text, &viahop).map_err(|why| Failure::new(Exit::Usage, "compare", format!("{text}: {why}")))
        };
        return args.elements.iter().map(read).collect();
    }
    let mut elements = Vec::new();
    let known = match args.transport {
        TransportName::Tcp => KNOWN_TCP,
        TransportName::Tls => KNOWN_TLS,
        TransportName::Udp => KNOWN,
    };
    for name in known {
        match Element::read(name, &viahop) {
            Ok(element) => elements.push(element),
            Err(why) => remark!("left out: {name}: {why}"),
        }
    }
    Ok(elements)
}

/// The driver's core and the elements'.
fn cores(args: &Args) -> Result<(usize, usize), Failure> {
    let cores = process::cores();
    let driver = args.driver_core.unwrap_or(cores[0]);
    let element = args.core.unwrap_or(*cores.last().unwrap_or(&0));
    if let Some(core) = [driver, element].into_iter().find(|core| !cores.contains(core)) {
        let failure = Failure::new(Exit::Environment, "compare", format!("core {core} is not to be had"));
        return Err(failure.help(format!("this process may use {cores:?}")));
    }
    if driver == element {
        let what = format!("driver and elements would share core {element}");
        return Err(Failure::new(Exit::Usage, "compare", what).help("two cores are needed: --driver-core 0 --core 1"));
    }
    Ok((driver, element))
}
