//! Flags of `viahop run` as a configuration: written down as a text with a line for each, so that an error shows the very
//! argument, and read like a file.

use crate::cli;
use std::ops::Range;
use toml::Spanned;
use viahop::control::config::problem::{Problem, Report, Source};
use viahop::control::config::{self, Config, did_you_mean, file};
use viahop::control::origin::{Origin, Overrides};

/// Where `args` say the configuration is.
///
/// # Errors
/// The flags do not make sense.
pub fn origin(args: &cli::Run) -> Result<Origin, Report> {
    let mut written = Written { text: "viahop run".into(), problems: Vec::new() };
    if let Some(path) = &args.config {
        let alone = alone(args)?;
        let overrides = Overrides {
            cores: (args.cores.is_some() || args.shards.is_some()).then_some(alone.cores),
            admin: args.admin.as_ref().map(|_| alone.admin),
            socket: args.socket.as_ref().map(|_| alone.socket),
            steering: args.steering.map(|_| alone.steering),
            gso: args.gso.map(|_| alone.gso),
            linger: args.linger.as_ref().map(|_| alone.linger),
        };
        return Ok(Origin::File(path.clone(), overrides));
    }
    let file = written.file(args);
    let source = Source { name: "command line".into(), text: written.text };
    if !written.problems.is_empty() {
        return Err(Report { source, problems: written.problems });
    }
    if args.listen.is_empty() && args.backend.is_empty() {
        let problem = Problem { at: None, ..Problem::error(0..0, "nothing says what to do", "") };
        let help = "give a file with `-c viahop.toml`, or `--listen udp:0.0.0.0:5060 --backend sip:10.0.0.11:5060`";
        return Err(Report { source, problems: vec![problem.help(help)] });
    }
    let missing = match (args.listen.is_empty(), args.backend.is_empty()) {
        (true, _) => Some(("nothing to listen on", "add `--listen udp:0.0.0.0:5060`")),
        (_, true) => Some(("no backends", "add `--backend sip:10.0.0.11:5060`, once for each server")),
        _ => None,
    };
    if let Some((title, help)) = missing {
        let problem = Problem { at: None, ..Problem::error(0..0, title, "") };
        return Err(Report { source, problems: vec![problem.help(help)] });
    }
    config::read(&file, source).map(|loaded| Origin::Flags(Box::new(loaded)))
}

/// What `args` say beside a file, as a configuration whose listeners and backends mean nothing.
fn alone(args: &cli::Run) -> Result<Config, Report> {
    let (listen, backend) = (vec!["udp:127.0.0.1".into()], vec!["sip:127.0.0.1".into()]);
    let beside = cli::Run { config: None, listen, backend, ..args.clone() };
    origin(&beside)?.load().map(|loaded| loaded.config)
}

/// A word of the command line as the configuration has it.
fn steering(word: cli::Steering) -> (&'static str, config::Steering) {
    let meant = match word {
        cli::Steering::Auto => config::Steering::Auto,
        cli::Steering::CallId => config::Steering::CallId,
        cli::Steering::Kernel => config::Steering::Kernel,
    };
    (meant.word(), meant)
}

/// Likewise.
fn gso(word: cli::Gso) -> &'static str {
    match word {
        cli::Gso::Always => "always",
        cli::Gso::Auto => "auto",
        cli::Gso::Off => "off",
    }
}

struct Written {
    text: String,
    problems: Vec<Problem>,
}

impl Written {
    /// Writes `--flag value` and returns the value with its place.
    fn put(&mut self, flag: &str, value: &str) -> Spanned<String> {
        self.text.push_str(&format!("\n  --{flag} "));
        let start = self.text.len();
        self.text.push_str(value);
        Spanned::new(start..self.text.len(), value.to_owned())
    }

    fn put_word(&mut self, flag: &str, word: &str) -> Spanned<file::Word> {
        let put = self.put(flag, word);
        Spanned::new(put.span(), file::Word(put.into_inner()))
    }

    fn file(&mut self, args: &cli::Run) -> file::File {
        let mut file = file::File::default();
        for listen in &args.listen {
            let address = self.put("listen", listen.trim());
            file.listen.push(file::Listen {
                address,
                name: None,
                advertise: None,
                side: None,
                tls: None,
                proxy_protocol: None,
                origins: None,
            });
        }
        if let Some(advertise) = &args.advertise {
            let advertise = self.put("advertise", advertise);
            for listen in &mut file.listen {
                listen.advertise = Some(advertise.clone());
            }
        }
        let backends = args.backend.iter().map(|backend| self.backend(backend)).collect();
        let probe = args.no_probe.then(|| Spanned::new(self.put("no-probe", "").span(), false));
        file.pool.push(file::Pool {
            name: None,
            affinity: None,
            strategy: None,
            outlier: file::Outlier::default(),
            slow_start: None,
            panic: None,
            mtu: None,
            send_proxy: None,
            pad: None,
            tls: None,
            health: file::Health { probe, ..file::Health::default() },
            backend: backends,
            list: None,
            discover: None,
            set: None,
        });
        if let Some(path) = &args.secret_file {
            file.balancer.secret_file = Some(self.put("secret-file", &path.display().to_string()));
        }
        if let Some(cores) = &args.cores {
            let place = self.put("cores", cores).span();
            match core_list(cores) {
                Ok(list) => {
                    let list = list.into_iter().map(|core| Spanned::new(place.clone(), core)).collect();
                    file.balancer.cores = Some(Spanned::new(place, list));
                }
                Err(label) => self.problem(place, format!("`{cores}` is not a list of cores"), label),
            }
        }
        if let Some(shards) = &args.shards {
            let place = self.put("shards", shards).span();
            match shards.parse() {
                Ok(count) => file.balancer.shards = Some(Spanned::new(place, count)),
                Err(_) => self.problem(place, format!("`{shards}` is not a number"), "how many shards to run"),
            }
        }
        if let Some(admin) = &args.admin {
            file.admin.listen = Some(self.put("admin", admin));
        }
        if let Some(socket) = &args.socket {
            file.admin.socket = Some(self.put("socket", socket));
        }
        if let Some(word) = args.steering {
            file.balancer.steering = Some(self.put_word("steering", steering(word).0));
        }
        if let Some(word) = args.gso {
            file.balancer.gso = Some(self.put_word("gso", gso(word)));
        }
        if let Some(linger) = &args.linger {
            file.balancer.linger = Some(self.put("linger", linger));
        }
        file
    }

    /// `sip:HOST:PORT;weight=N;name=NAME`: parameters that are ours are taken out, the rest is the URI.
    fn backend(&mut self, text: &str) -> file::Backend {
        let text = text.trim();
        let whole = self.put("backend", text).span();
        let mut parts = text.split(';');
        let uri = parts.next().unwrap_or_default();
        let mut backend = file::Backend {
            uri: Spanned::new(whole.start..whole.start + uri.len(), uri.to_owned()),
            name: None,
            weight: None,
            priority: None,
            max_open: None,
            state: None,
            max_message_size: None,
        };
        let mut at = whole.start + uri.len() + 1;
        let mut rest = uri.to_owned();
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let place = at + part.len() - value.len()..at + part.len();
            match (name, value.parse::<i64>()) {
                ("name", _) => backend.name = Some(Spanned::new(place, value.to_owned())),
                ("weight", Ok(weight)) => backend.weight = Some(Spanned::new(place, weight)),
                ("weight", Err(_)) => {
                    self.problem(place, format!("weight `{value}` is not a whole number"), "a number from 1 to 10000");
                }
                ("transport" | "", _) => {
                    // Not ours: a parameter of the URI, whose reader knows better what to say.
                    rest = format!("{rest};{part}");
                    backend.uri = Spanned::new(whole.start..at + part.len(), rest.clone());
                }
                _ => {
                    let label = did_you_mean(name, &["name", "transport", "weight"]);
                    self.problem(at..at + part.len(), format!("unknown parameter `{part}`"), &label);
                }
            }
            at += part.len() + 1;
        }
        backend
    }

    fn problem(&mut self, at: Range<usize>, title: String, label: &str) {
        self.problems.push(Problem::error(at, title, label));
    }
}

/// `0,2-5` as a list.
fn core_list(text: &str) -> Result<Vec<i64>, &'static str> {
    const LABEL: &str = "write it like `0,2-5`";
    let mut list = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u16>().map_err(|_| LABEL);
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err("the range runs backwards");
        }
        list.extend((first..=last).map(i64::from));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use viahop::control::config::{Cores, Gso};

    fn args(listen: &[&str], backend: &[&str]) -> cli::Run {
        cli::Run {
            config: None,
            listen: listen.iter().map(|&text| text.to_owned()).collect(),
            backend: backend.iter().map(|&text| text.to_owned()).collect(),
            advertise: None,
            secret_file: None,
            no_probe: false,
            cores: None,
            shards: None,
            admin: None,
            socket: None,
            steering: None,
            gso: None,
            linger: None,
        }
    }

    fn shown(args: &cli::Run) -> String {
        origin(args).map(|_| ()).unwrap_err().render(false)
    }

    #[test]
    fn flags_are_a_configuration() {
        // As in `VIAHOP_BACKEND="sip:10.0.0.11, sip:10.0.0.12"`.
        let mut args = args(&["udp:0.0.0.0"], &["sip:10.0.0.11", " sip:10.0.0.12:5070;weight=50;name=b"]);
        (args.cores, args.admin) = (Some("0,2-4".into()), Some("off".into()));
        let Origin::Flags(loaded) = origin(&args).unwrap() else { panic!("flags give no file") };
        let backends = &loaded.config.pools[0].backends;
        assert_eq!((backends[0].weight, backends[1].weight, &backends[1].name[..]), (100, 50, "b"));
        assert_eq!(loaded.config.cores, Cores::List(vec![0, 2, 3, 4]));
        assert_eq!(loaded.config.admin, None);
        assert_eq!((loaded.config.gso, loaded.config.linger), (Gso::Auto, Duration::from_micros(50)));
        (args.gso, args.linger) = (Some(cli::Gso::Always), Some("0s".into()));
        let config = origin(&args).unwrap().load().unwrap().config;
        assert_eq!((config.gso, config.linger), (Gso::Always, Duration::ZERO));
    }

    #[test]
    fn flags_beside_a_file_have_the_last_word() {
        let mut args = args(&[], &[]);
        (args.config, args.shards, args.gso) = (Some("x.toml".into()), Some("3".into()), Some(cli::Gso::Off));
        args.linger = Some("70us".into());
        let Origin::File(_, overrides) = origin(&args).unwrap() else { panic!("a file is a file") };
        let text = "[[listen]]\nname = \"edge\"\naddress = \"udp:127.0.0.1\"\n[[pool]]\nname = \"proxies\"\n\
                    backend = [{ uri = \"sip:127.0.0.1\" }]\n[balancer]\nshards = 2\ngso = \"always\"\n";
        let mut config = config::parse(Source { name: "x.toml".into(), text: text.into() }).unwrap().config;
        assert_eq!(config.gso, Gso::Always);
        overrides.apply(&mut config);
        assert_eq!((config.gso, config.linger), (Gso::Off, Duration::from_micros(70)));
        assert_eq!(config.cores, Cores::Count(3));
    }

    #[test]
    fn errors_show_the_argument() {
        let text = shown(&args(&["udp:0.0.0.0:5060"], &["sip:10.0.0.12:506O"]));
        assert!(text.contains("command line:3:30") && text.contains("the letter O"), "{text}");
        let text = shown(&args(&["udp:0.0.0.0:5060"], &["sip:10.0.0.12;weight=0"]));
        assert!(text.contains("weight 0 would get no calls"), "{text}");
        let text = shown(&args(&["udp:0.0.0.0:5060"], &["sip:10.0.0.12;weigth=5"]));
        assert!(text.contains("unknown parameter `weigth=5`") && text.contains("did you mean `weight`?"), "{text}");
        let text = shown(&args(&["udp:0.0.0.0:5060"], &["sip:10.0.0.12;lr"]));
        assert!(text.contains("`lr`") && text.contains("there are: `name`, `transport`, `weight`"), "{text}");
        let text = shown(&args(&["udp:0.0.0.0:5060"], &["sip:10.0.0.12;transport=sctp"]));
        assert!(text.contains("transport `sctp` is not available"), "{text}");
        assert!(shown(&args(&[], &[])).contains("-c viahop.toml"));
        assert!(shown(&args(&["udp:0.0.0.0"], &[])).contains("--backend sip:10.0.0.11:5060"));
    }

    #[test]
    fn what_stands_beside_a_file_is_checked_as_well() {
        let mut args = args(&[], &[]);
        (args.config, args.cores) = (Some("x.toml".into()), Some("5-2".into()));
        assert!(shown(&args).contains("the range runs backwards"));
        args.cores = None;
        args.admin = Some("0.0.0.0:80".into());
        assert!(shown(&args).contains("would be open to others"));
    }
}
