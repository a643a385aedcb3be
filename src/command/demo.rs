//! `viahop demo`: real calls over loopback through a real viahop to four servers, one of which dies and returns.
//!
//! ```text
//!  0 %          20 %                 40 %              60 %            70 %               90 %        100 %
//!  calls begin  ask 2,000 Call-IDs   one server dies   ask them again  it is back         once more   judge
//!               where they live                        which moved?                       all back?
//! ```
//!
//! Callers and servers are those of `viahop-load`, which shares no code with the balancer and notices every message that
//! reaches another server than its call's. What is claimed at the end was counted by them.

use super::service::{Service, runtime};
use super::{FAILED, environment, fail};
use crate::cli;
use std::io::IsTerminal;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use viahop::control::config::parse;
use viahop::control::config::problem::{Problem, Report, Source};
use viahop::control::origin::Origin;
use viahop::control::run::Order;
use viahop::control::secret;
use viahop::control::view::View;
use viahop_load::clock::MS_NS;
use viahop_load::failure::Failure;
use viahop_load::latency::Short;
use viahop_load::scenario::{Mix, Scenario};
use viahop_load::sys::process::{catch_stop_signals, stop_signals};
use viahop_load::uac::ask::ask;
use viahop_load::uac::{self, Uac};
use viahop_load::uas::{self, Uas};

const SERVERS: usize = 4;

/// The server that dies, by its number.
const VICTIM: usize = 1;

/// Call-IDs that are asked where they live.
const CALL_IDS: usize = 2000;

/// How long a call lasts.
const HOLD_NS: u64 = 300 * MS_NS;

/// The share of keys that move when a server goes may differ from its share of the table by this much: five standard
/// deviations of a sample of [`CALL_IDS`] are 4.8 %.
const SHARE_TOLERANCE: f64 = 0.05;

/// Exit code of a program that Ctrl-C ended, as shells have it: 128 and the number of SIGINT.
const INTERRUPTED: u8 = 130;

/// Runs the demonstration.
pub fn run(args: &cli::Demo) -> ExitCode {
    match play(args) {
        Ok(Some(true)) => ExitCode::SUCCESS,
        Ok(Some(false)) => ExitCode::from(FAILED),
        Ok(None) => ExitCode::from(INTERRUPTED),
        Err(Trouble::Balancer(report)) => fail(&report),
        Err(Trouble::Load(failure)) => {
            remark!("{failure}");
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// Why there is no demonstration.
enum Trouble {
    Balancer(Report),
    Load(Failure),
}

impl From<Report> for Trouble {
    fn from(report: Report) -> Trouble {
        Trouble::Balancer(report)
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Trouble {
        Trouble::Load(failure)
    }
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Trouble {
        let problem = Problem::environment(format!("loopback does not work as it should: {error}"));
        Trouble::Balancer(environment(problem.help("`viahop doctor` examines this machine")))
    }
}

/// Whether every claim held; `None` if it was interrupted.
fn play(args: &cli::Demo) -> Result<Option<bool>, Trouble> {
    catch_stop_signals();
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    let uas =
        Uas::start(uas::Config { backends: vec![any.into(); SERVERS], list_new_calls: true, ..Default::default() })?;
    let balancer = Balancer::start(uas.addresses())?;
    let screen = Screen::new();
    screen.head(&balancer, args);
    balancer.wait_for(|view| view.backends.iter().all(|backend| backend.last_probe.is_some()));

    let part = |name, weight| Scenario::built_in(name).map(|scenario| (scenario, weight));
    let parts = ["call", "register", "options"].into_iter().zip([0.8, 0.1, 0.1]);
    let mix = parts.map(|(name, weight)| part(name, weight)).collect::<Option<Vec<_>>>().and_then(Mix::new);
    let mix = mix.expect("these scenarios are built in, and their weights positive");
    let seconds = Duration::from_secs(args.seconds);
    let uac = Uac::start(uac::Config {
        rate: args.calls as f64,
        duration_ns: seconds.as_nanos() as u64,
        hold_ns: HOLD_NS,
        sockets: 8,
        mix,
        ..uac::Config::new(balancer.address)
    })?;
    let story = tell(&screen, &balancer, &uas, &uac, seconds)?;
    let interrupted = story.is_none();
    if interrupted {
        uac.cut();
        screen.note("stopped: nothing is claimed about half a demonstration");
    }
    let called = uac.join();
    let answered = uas.join();
    let ended = balancer.end();
    let Some(story) = story else { return Ok(None) };
    Ok(Some(judge(&screen, &story, &called, &answered, &ended)))
}

/// What happened on the way.
#[derive(Default)]
struct Story {
    /// Where the Call-IDs lived: at first, without the victim, with it again.
    homes: [Vec<Option<usize>>; 3],
    /// Calls the victim had when it died.
    open_at_death: u64,
    /// How long until no new call was sent to the dead server.
    noticed: Option<Duration>,
    /// How long until the server that is back got calls.
    welcomed: Option<Duration>,
}

/// Runs the clock. `None`: interrupted.
fn tell(
    screen: &Screen,
    balancer: &Balancer,
    uas: &Uas,
    uac: &Uac,
    seconds: Duration,
) -> Result<Option<Story>, Trouble> {
    let call_ids: Vec<String> = (0..CALL_IDS).map(|number| format!("where-{number}@demo")).collect();
    let mut story = Story::default();
    let start = Instant::now();
    let at = |share: f64| start + seconds.mul_f64(share);
    let (mut step, mut died, mut returned) = (0, None::<Instant>, None::<Instant>);
    let mut line = Line::new(uas);
    while !uac.is_finished() {
        if stop_signals() > 0 {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
        let now = Instant::now();
        line.tick(screen, start, uas, uac);
        let is_up = balancer.view().backends.get(VICTIM).is_some_and(|backend| backend.is_up);
        match step {
            0 if now >= at(0.2) => story.homes[0] = ask(&call_ids, balancer.address)?,
            1 if now >= at(0.4) => {
                story.open_at_death = uas.snapshot().backends[VICTIM].open;
                let before = viahop_load::clock::now_ns();
                uas.take_new_calls();
                uas.kill(VICTIM);
                died = Some(Instant::now());
                // Calls that came between the count and the end.
                let late = uas.take_new_calls();
                let late = late.iter().filter(|call| call.backend == VICTIM && call.at_ns >= before);
                story.open_at_death += late.count() as u64;
                screen.event("killed", VICTIM, "on purpose");
            }
            2 if now >= at(0.6) => story.homes[1] = ask(&call_ids, balancer.address)?,
            3 if now >= at(0.7) => {
                uas.restore(VICTIM)?;
                returned = Some(Instant::now());
                screen.event("is back", VICTIM, "");
            }
            4 if now >= at(0.9) => story.homes[2] = ask(&call_ids, balancer.address)?,
            _ => {
                if let (Some(died), None, false) = (died, story.noticed, is_up) {
                    story.noticed = Some(died.elapsed());
                    screen.event("is out of the table", VICTIM, &format!("after {:?}", rounded(died.elapsed())));
                }
                if let (Some(returned), None, true) = (returned, story.welcomed, is_up) {
                    story.welcomed = Some(returned.elapsed());
                    screen.event("gets calls again", VICTIM, &format!("after {:?}", rounded(returned.elapsed())));
                }
                continue;
            }
        }
        step += 1;
    }
    line.finish(screen);
    Ok(Some(story))
}

fn rounded(duration: Duration) -> Duration {
    Duration::from_millis(duration.as_millis() as u64)
}

/// The claims, each with what it was judged by. Returns whether all hold.
fn judge(screen: &Screen, story: &Story, called: &uac::Report, answered: &uas::Report, view: &View) -> bool {
    let calls = &called.counts;
    let total = answered.total();
    let [first, without, again] = &story.homes;
    let complete =
        first.len() == CALL_IDS && [first, without, again].iter().all(|homes| homes.iter().all(Option::is_some));
    let of_victim = first.iter().filter(|home| **home == Some(VICTIM)).count();
    let moved = first.iter().zip(without).filter(|(before, after)| before != after).count();
    let moved_of_others =
        first.iter().zip(without).filter(|(before, after)| **before != Some(VICTIM) && before != after).count();
    let strangers = again.iter().zip(first).filter(|(after, before)| after != before).count();
    let share = moved as f64 / CALL_IDS as f64;
    let ideal = 1.0 / SERVERS as f64;
    let received = view.sum(|counters| counters.received_total());
    let forwarded = view.sum(|counters| counters.forwarded.get());
    let replied = view.sum(|counters| counters.replied_total());
    let dropped = view.sum(|counters| counters.dropped_total());
    let dead = VICTIM + 1;
    let claims = [
        (
            calls.placed > 0 && calls.placed == calls.completed + calls.failed && calls.failed <= story.open_at_death,
            format!(
                "{} calls placed, {} completed; {} failed, and server {dead} had {} when it died",
                calls.placed, calls.completed, calls.failed, story.open_at_death
            ),
        ),
        (
            total.violations == 0 && answered.forgotten == 0 && total.acks > 0,
            format!(
                "{} of {} in-call messages reached another server than their call's",
                total.violations,
                total.acks + total.byes
            ),
        ),
        (
            story.noticed.is_some() && story.welcomed.is_some(),
            match (story.noticed, story.welcomed) {
                (Some(noticed), Some(welcomed)) => format!(
                    "server {dead} was out of the table {:?} after it died, and in it {:?} after it was back",
                    rounded(noticed),
                    rounded(welcomed)
                ),
                _ => format!("server {dead} was not noticed to die and return"),
            },
        ),
        (
            complete && moved == of_victim && moved_of_others == 0 && (share - ideal).abs() < SHARE_TOLERANCE,
            format!(
                "{:.1} % of {CALL_IDS} Call-IDs moved when 1 of {SERVERS} servers left (ideal {:.1} %), {moved_of_others} of them \
                 from a server that stayed",
                share * 100.0,
                ideal * 100.0
            ),
        ),
        (complete && strangers == 0, format!("{strangers} Call-IDs live elsewhere than at first, since it is back")),
        (
            calls.altered == 0 && total.altered == 0 && calls.malformed == 0 && total.malformed == 0,
            format!("{} messages were altered on the way, beyond their Via", calls.altered + total.altered),
        ),
        (
            received > 0 && received == forwarded + replied + dropped,
            format!("{received} messages received = {forwarded} forwarded + {replied} answered + {dropped} dropped"),
        ),
    ];
    screen.claims(&claims);
    let latency = called.latency();
    let at = |quantile| Short(latency.at(quantile)).to_string();
    screen.plain(&format!(
        "answers took (caller to server and back)   p50 {}  p90 {}  p99 {}  p99.9 {}  max {}",
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        Short(latency.max())
    ));
    let loads: Vec<String> = view.fixed.counters.iter().map(|counters| counters.received_total().to_string()).collect();
    let (by, skew) = (view.fixed.steering.in_force(), view.skew().unwrap_or(1.0));
    screen.plain(&format!(
        "shards received {} (busiest {skew:.3} of the mean), steered by {by}; {} requests came from another shard than their call's",
        loads.join(" / "),
        total.moved
    ));
    let held = claims.iter().all(|claim| claim.0);
    if held {
        screen.plain("\nnext: viahop init > viahop.toml && viahop check viahop.toml && viahop run -c viahop.toml");
    }
    held
}

/// A viahop in this process, as `viahop run` would start it.
struct Balancer {
    address: SocketAddr,
    admin: SocketAddr,
    shards: usize,
    orders: mpsc::Sender<Order>,
    views: watch::Receiver<Arc<View>>,
    thread: JoinHandle<bool>,
}

impl Balancer {
    fn start(servers: &[SocketAddr]) -> Result<Balancer, Trouble> {
        let address = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let admin = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let backends: Vec<String> = servers
            .iter()
            .enumerate()
            .map(|(number, server)| format!("{{ uri = \"sip:{server}\", name = \"server-{}\" }}", number + 1))
            .collect();
        let text = include_str!("demo.toml")
            .replace("@LISTEN@", &address.port().to_string())
            .replace("@ADMIN@", &admin.port().to_string())
            .replace("@BACKENDS@", &backends.join(", "));
        let loaded = parse(Source { name: "built-in".into(), text })?;
        let secret = secret::ephemeral(&loaded.config.token_keys).map_err(environment)?;
        let origin = Origin::Flags(Box::new(loaded.clone()));
        let (service, _) =
            Service::start(runtime().map_err(environment)?, loaded, origin, secret, None, Arc::default())?;
        let (orders, queue) = mpsc::channel(1);
        let view = service.view();
        let shards = view.fixed.shards.len();
        let (show, views) = watch::channel(Arc::new(view));
        let thread = thread::Builder::new().name("viahop-control".into()).spawn(move || service.serve(queue, show))?;
        Ok(Balancer { address, admin, shards, orders, views, thread })
    }

    fn view(&self) -> Arc<View> {
        self.views.borrow().clone()
    }

    /// Waits for the view to be so, for a few seconds at most.
    fn wait_for(&self, holds: impl Fn(&View) -> bool) {
        let until = Instant::now() + Duration::from_secs(5);
        while !holds(&self.view()) && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it, and returns its last view.
    fn end(self) -> Arc<View> {
        self.orders.blocking_send(Order::Stop).ok();
        self.thread.join().ok();
        self.views.borrow().clone()
    }
}

/// The line of the second under way.
struct Line {
    shown: Instant,
    second: u64,
    completed: u64,
    taken: Vec<u64>,
    text: String,
}

impl Line {
    fn new(uas: &Uas) -> Line {
        let taken = vec![0; uas.addresses().len()];
        Line { shown: Instant::now(), second: 0, completed: 0, taken, text: String::new() }
    }

    fn tick(&mut self, screen: &Screen, start: Instant, uas: &Uas, uac: &Uac) {
        if self.shown.elapsed() < Duration::from_secs(1) {
            return;
        }
        let span = self.shown.elapsed().as_secs_f64();
        self.shown = Instant::now();
        self.second = start.elapsed().as_secs();
        let calls = uac.snapshot();
        let servers = uas.snapshot();
        let rate = (calls.counts.completed - self.completed) as f64 / span;
        self.completed = calls.counts.completed;
        let requests: Vec<u64> = servers.backends.iter().map(|server| server.counts.requests).collect();
        let news: Vec<u64> = requests.iter().zip(&self.taken).map(|(now, before)| now - before).collect();
        let total = news.iter().sum::<u64>().max(1) as f64;
        self.taken = requests;
        let shares: String = news
            .iter()
            .zip(&servers.backends)
            .map(|(&count, server)| match server.alive || count > 0 {
                true => format!("{:>9.1}%", count as f64 * 100.0 / total),
                false => format!("{:>10}", "–"),
            })
            .collect();
        let at = |quantile| Short(calls.latency.at(quantile)).to_string();
        self.text = format!(
            "{:>3}s {:>9.0} {:>8} {:>8}  {shares} {:>7}",
            self.second,
            rate,
            at(0.5),
            at(0.99),
            calls.counts.failed
        );
        screen.plain(&self.text);
    }

    fn finish(&self, screen: &Screen) {
        screen.plain("");
    }
}

/// Where it is shown: colours on a terminal, plain lines on a pipe.
struct Screen {
    colors: bool,
}

impl Screen {
    fn new() -> Screen {
        let colors =
            std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Screen { colors }
    }

    /// A reader that went away is no reason to stop half way: `viahop demo | head` ends in its own time.
    fn plain(&self, text: &str) {
        say!("{text}");
    }

    fn paint(&self, code: u8, text: &str) -> String {
        if self.colors { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn head(&self, balancer: &Balancer, args: &cli::Demo) {
        let bold = self.paint(1, &format!("viahop {} demo", env!("CARGO_PKG_VERSION")));
        self.plain(&format!(
            "{bold}: {} shards at udp:{}, {SERVERS} servers, {} calls/s for {} s",
            balancer.shards, balancer.address, args.calls, args.seconds
        ));
        self.plain(&format!("metrics and status: http://{}/   stop: Ctrl-C\n", balancer.admin));
        let servers: String = (1..=SERVERS).map(|number| format!("{:>10}", format!("server-{number}"))).collect();
        self.plain(
            &self
                .paint(2, &format!("{:>4} {:>9} {:>8} {:>8}  {servers} {:>7}", "t", "calls/s", "p50", "p99", "failed")),
        );
    }

    fn event(&self, what: &str, server: usize, more: &str) {
        let text = format!("     ── server-{} {what} {more}", server + 1);
        self.plain(&self.paint(33, text.trim_end()));
    }

    fn note(&self, text: &str) {
        self.plain(&self.paint(33, text));
    }

    fn claims(&self, claims: &[(bool, String)]) {
        for (holds, text) in claims {
            let mark = if *holds { self.paint(32, "✓") } else { self.paint(31, "✗") };
            self.plain(&format!(" {mark} {text}"));
        }
    }
}
