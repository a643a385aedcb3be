//! Speaks to a running viahop: HTTP over its socket, or over loopback.

use crate::cli;
use serde_json::{Value, json};
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use ureq::Agent;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, DefaultConnector, LazyBuffers, NextTimeout, Transport,
};
use viahop::control::socket::usual_places;
use viahop::sys::uninterrupted;

/// How long an answer may take. A reload looks names up, 5 s each.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long whether anybody is there may take to find out.
const GREETING: Duration = Duration::from_secs(2);

/// The endpoint when there is no socket: the default of `[admin] listen`.
const LOOPBACK: &str = "http://127.0.0.1:8460";

/// A viahop that answers.
pub struct Client {
    agent: Agent,
    base: String,
    /// Where it is, for people.
    pub place: String,
}

/// Why there is no answer to work with.
#[derive(Debug)]
pub enum Trouble {
    /// Nobody answers; what was tried.
    Nobody(Vec<String>),
    /// It says no.
    Refused {
        /// The answer.
        answer: Value,
        /// The exit code it asks for.
        exit_code: u8,
    },
    /// It answers, but not as a viahop of this version does.
    Strange(String),
}

impl Client {
    /// Finds the viahop that `args` mean.
    pub fn find(args: &cli::Ctl) -> Result<Client, Trouble> {
        let candidates = match (&args.url, &args.socket) {
            (Some(url), _) => vec![Client::over_http(url)],
            // As `viahop run` has it: there is no socket.
            (None, Some(path)) if path == "off" => vec![Client::over_http(LOOPBACK)],
            (None, Some(path)) => vec![Client::over_socket(path)],
            (None, None) => {
                let sockets = usual_places().into_iter().map(|path| Client::over_socket(&path));
                sockets.chain([Client::over_http(LOOPBACK)]).collect()
            }
        };
        let mut tried = Vec::new();
        for client in candidates {
            match client.get_within("/live", GREETING) {
                Ok(_) => return Ok(client),
                Err(why) => tried.push(format!("{}: {why}", client.place)),
            }
        }
        Err(Trouble::Nobody(tried))
    }

    fn over_http(url: &str) -> Client {
        let base = url.trim_end_matches('/').to_owned();
        let agent = Agent::with_parts(config(), DefaultConnector::default(), DefaultResolver::default());
        Client { agent, place: base.clone(), base }
    }

    fn over_socket(path: &Path) -> Client {
        let agent = Agent::with_parts(config(), SocketConnector(path.to_owned()), DefaultResolver::default());
        // The host goes into the request and is asked of nobody.
        Client { agent, place: path.display().to_string(), base: "http://127.0.0.1".into() }
    }

    /// The JSON at `path`.
    pub fn get(&self, path: &str) -> Result<Value, Trouble> {
        match self.get_within(path, PATIENCE) {
            Ok((code, text)) => self.read(path, code, &text),
            Err(why) => Err(Trouble::Nobody(vec![format!("{}: {why}", self.place)])),
        }
    }

    /// The answer to `body`, posted to `path`.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, Trouble> {
        let request = self.agent.post(format!("{}{path}", self.base)).content_type("application/json");
        let answer = request.send(body.to_string()).and_then(|mut response| {
            let text = response.body_mut().read_to_string()?;
            Ok((response.status().as_u16(), text))
        });
        match answer {
            Ok((code, text)) => self.read(path, code, &text),
            Err(why) => Err(Trouble::Nobody(vec![format!("{}: {}", self.place, plain(&why))])),
        }
    }

    fn get_within(&self, path: &str, patience: Duration) -> Result<(u16, String), String> {
        let request = self.agent.get(format!("{}{path}", self.base));
        let request = request.config().timeout_global(Some(patience)).build();
        let mut response = request.call().map_err(|error| plain(&error))?;
        let text = response.body_mut().read_to_string().map_err(|error| plain(&error))?;
        Ok((response.status().as_u16(), text))
    }

    fn read(&self, path: &str, code: u16, text: &str) -> Result<Value, Trouble> {
        let strange = || Trouble::Strange(format!("{} answers {code} to {path}: {}", self.place, text.trim()));
        let answer: Value = serde_json::from_str(text).map_err(|_| strange())?;
        match answer["exit_code"].as_u64() {
            _ if code == 200 => Ok(answer),
            Some(exit_code) => Err(Trouble::Refused { exit_code: exit_code.clamp(1, 5) as u8, answer }),
            None => Err(strange()),
        }
    }
}

fn config() -> ureq::config::Config {
    // An environment that sends all of HTTP through a proxy does not mean this.
    Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).proxy(None).build()
}

/// What went wrong, in the words of the kernel where they are plainer.
pub(in crate::command) fn plain(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) if error.kind() == ErrorKind::NotFound => "there is no such socket".into(),
        ureq::Error::Io(error) if error.kind() == ErrorKind::PermissionDenied => {
            "it belongs to another user: try as that one, or as root".into()
        }
        ureq::Error::Io(error) if error.kind() == ErrorKind::ConnectionRefused => "nobody listens".into(),
        other => other.to_string(),
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Nobody(tried) => {
                writeln!(f, "error: no viahop answers")?;
                for one in tried {
                    writeln!(f, "  {one}")?;
                }
                write!(
                    f,
                    " help: if one runs, its log says `event=\"ctl_socket\"` with the path: give it with `--socket PATH`"
                )
            }
            Trouble::Refused { answer, .. } => {
                if let Some(report) = answer["report"].as_str() {
                    writeln!(f, "{report}\n")?;
                }
                write!(f, "error: {}", answer["error"].as_str().unwrap_or("refused"))?;
                match answer["help"].as_str() {
                    Some(help) => write!(f, "\n help: {help}"),
                    None => Ok(()),
                }
            }
            Trouble::Strange(what) => write!(f, "error: {what}\n help: is it a viahop, and of this version?"),
        }
    }
}

/// The body of a request that says nothing.
pub fn nothing() -> Value {
    json!({})
}

/// Connects to a socket, whatever the URL says.
#[derive(Debug)]
struct SocketConnector(PathBuf);

impl<In: Transport> Connector<In> for SocketConnector {
    type Out = SocketTransport;

    fn connect(&self, details: &ConnectionDetails<'_>, _: Option<In>) -> Result<Option<SocketTransport>, ureq::Error> {
        // Where as many wait for a viahop that hangs as may, the kernel would let us wait for ever.
        let (path, (tell, told)) = (self.0.clone(), mpsc::channel());
        thread::spawn(move || tell.send(UnixStream::connect(path)));
        let patience = details.timeout.not_zero().map_or(GREETING, |time| *time);
        let stream = told.recv_timeout(patience).map_err(|_| ureq::Error::Timeout(details.timeout.reason))??;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(SocketTransport { stream, buffers }))
    }
}

#[derive(Debug)]
struct SocketTransport {
    stream: UnixStream,
    buffers: LazyBuffers,
}

impl Transport for SocketTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.set_write_timeout(timeout.not_zero().map(|time| *time))?;
        let output = &self.buffers.output()[..amount];
        self.stream.write_all(output).map_err(|error| in_time(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.set_read_timeout(timeout.not_zero().map(|time| *time))?;
        let input = self.buffers.input_append_buf();
        let amount = uninterrupted(|| self.stream.read(input)).map_err(|error| in_time(error, timeout))?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        // A question each is all that is asked over one connection.
        false
    }
}

fn in_time(error: std::io::Error, timeout: NextTimeout) -> ureq::Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => ureq::Error::Timeout(timeout.reason),
        _ => error.into(),
    }
}
