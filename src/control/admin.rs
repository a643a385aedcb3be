//! The admin endpoint: for Prometheus, for orchestrators, for people with a browser, and for `viahop ctl`.
//!
//! ```text
//! HTTP on loopback ──┐    GET  /metrics /ready /live /status.json    shows, to whoever may connect
//!                    ├──► GET  /events /errors /trace                shows what concerns the operator alone
//! a socket, 0600 ────┘    POST /backend /reload /drain /trace        asks the control loop, and waits for it
//! ```
//!
//! What changes something goes by POST and JSON. Over HTTP it is served to this machine alone: on an address that others
//! reach it is refused, and so is a request that a page in somebody's browser sent, which has an `Origin`. Whoever may
//! open the socket owns the process already.

use super::ask::{Answer, Ask, Asked, Refused};
use super::config::did_you_mean;
use super::events::Events;
use super::metrics;
use super::socket::CtlSocket;
use super::view::View;
use super::visitors::Visitors;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, RawQuery, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use prometheus_client::registry::Registry;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, oneshot, watch};

// Every handler of a path that may be posted to takes the body, even if it means nothing: the connection would be closed
// on a client that is still sending it.

/// Octets of the longest thing that can be asked.
const ASK_MAX: usize = 16 << 10;

/// Opens the socket for HTTP. The address stays usable right after a restart.
///
/// # Errors
/// The address is in use or not ours. Must be called within a tokio runtime.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(64)
}

/// What is served from.
#[derive(Clone, Debug)]
pub struct Desk {
    /// What the control plane shows.
    pub views: watch::Receiver<Arc<View>>,
    /// What happened lately.
    pub events: Arc<Events>,
    /// Where questions go.
    pub ask_to: mpsc::Sender<Asked>,
}

/// Serves HTTP until the task is dropped.
///
/// # Errors
/// The listener failed for good.
pub async fn serve(listener: TcpListener, desk: Desk) -> io::Result<()> {
    let is_remote = !listener.local_addr()?.ip().is_loopback();
    axum::serve(Visitors::of(listener), router(desk, is_remote)).await
}

/// Serves `viahop ctl` until the task is dropped, and gives the place of the socket up then.
///
/// # Errors
/// The listener failed for good.
pub async fn serve_ctl(socket: CtlSocket, desk: Desk) -> io::Result<()> {
    let CtlSocket { listener, place: _place } = socket;
    axum::serve(Visitors::of(listener), router(desk, false)).await
}

fn router(desk: Desk, is_remote: bool) -> Router {
    let registry = Arc::new(metrics::registry(desk.views.clone()));
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(scrape))
        .route("/ready", get(ready))
        .route("/live", get(|| async { "live\n" }))
        .route("/status.json", get(status))
        .route("/events", get(events))
        .route("/errors", get(errors))
        .route("/connections", get(connections))
        .route("/trace", get(trace).post(follow))
        .route("/backend", post(backend))
        .route("/reload", post(reload))
        .route("/drain", post(drain))
        .method_not_allowed_fallback(wrong_method)
        .fallback(nothing_there)
        .layer(DefaultBodyLimit::max(ASK_MAX))
        .with_state(Shown { desk, registry, is_remote })
}

#[derive(Clone)]
struct Shown {
    desk: Desk,
    registry: Arc<Registry>,
    /// Whether others than this machine can connect.
    is_remote: bool,
}

const INDEX: &str = "viahop\n\n\
    /metrics      numbers for Prometheus\n\
    /ready        200 while this node should get calls, else 503\n\
    /live         200 while the process answers at all\n\
    /status.json  backends, shards, configuration, messages\n\
    /events       what happened lately; on loopback only, as all below\n\
    /errors       the last messages that could not be read\n\
    /connections  who is connected; ?peer=ADDRESS for one of them\n\
    /trace        ?number=N: a call that is followed\n\n\
    by POST; `viahop ctl` speaks it:\n\
    /backend      {\"backend\": \"NAME\", \"state\": \"ready|drain|maint\", \"weight\": N}\n\
    /reload       {\"dry_run\": true}\n\
    /drain        finish what is under way, then end\n\
    /trace        {\"call_id\": \"ID\", \"seconds\": N}: follow a call\n";

/// The paths there are, for whoever misspells one.
const PATHS: [&str; 11] = [
    "/metrics",
    "/ready",
    "/live",
    "/status.json",
    "/events",
    "/errors",
    "/connections",
    "/trace",
    "/backend",
    "/reload",
    "/drain",
];

async fn index() -> &'static str {
    INDEX
}

async fn scrape(State(shown): State<Shown>) -> Response {
    match metrics::text(&shown.registry) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn ready(State(shown): State<Shown>) -> Response {
    let view = shown.desk.views.borrow().clone();
    if view.is_ready {
        return "ready\n".into_response();
    }
    let why = match view.is_draining {
        true => "draining\n".to_owned(),
        false => format!("no backend takes new calls in: {}\n", view.empty_pools.join(", ")),
    };
    (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
}

async fn status(State(shown): State<Shown>) -> Response {
    let view = shown.desk.views.borrow().clone();
    json(StatusCode::OK, &view.status())
}

async fn events(State(shown): State<Shown>, headers: HeaderMap) -> Response {
    match shown.for_the_operator(&headers) {
        Ok(()) => json(StatusCode::OK, &shown.desk.events.last()),
        Err(refused) => refused.into_response(),
    }
}

async fn errors(State(shown): State<Shown>, headers: HeaderMap) -> Response {
    shown.ask(&headers, Ok(Ask::Errors)).await
}

/// `?peer=ADDRESS` for the connections of one peer.
async fn connections(State(shown): State<Shown>, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    let ask = match value_in(query.as_deref(), "peer").map(str::parse) {
        None => Ok(Ask::Connections(None)),
        Some(Ok(peer)) => Ok(Ask::Connections(Some(peer))),
        Some(Err(_)) => Err(Refused::usage(400, "`peer` is no address, like 192.0.2.1 or 2001:db8::1")),
    };
    shown.ask(&headers, ask).await
}

/// The value that `query` gives to `name`.
fn value_in<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    let mut pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// `?number=N`, and `&after=M` for what came behind message M only.
async fn trace(State(shown): State<Shown>, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    let value = |name| value_in(query.as_deref(), name).and_then(|value| value.parse().ok());
    let ask = match value("number") {
        Some(number) => Ok(Ask::Trace { number, after: value("after").unwrap_or(0) }),
        None => Err(Refused::usage(400, "which trace? `?number=N`, as the answer to POST gave it")),
    };
    shown.ask(&headers, ask).await
}

async fn follow(State(shown): State<Shown>, headers: HeaderMap, body: Bytes) -> Response {
    shown.ask(&headers, read(&body).map(Ask::Follow)).await
}

async fn backend(State(shown): State<Shown>, headers: HeaderMap, body: Bytes) -> Response {
    shown.ask(&headers, read(&body).map(Ask::Backend)).await
}

async fn reload(State(shown): State<Shown>, headers: HeaderMap, body: Bytes) -> Response {
    shown.ask(&headers, read_or_default(&body).map(Ask::Reload)).await
}

async fn drain(State(shown): State<Shown>, headers: HeaderMap, _: Bytes) -> Response {
    shown.ask(&headers, Ok(Ask::Drain)).await
}

/// What `body` asks.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(body)
        .map_err(|error| Refused::usage(400, format!("the body is not what it should be: {error}")))
}

fn read_or_default<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, Refused> {
    if body.is_empty() { Ok(T::default()) } else { read(body) }
}

impl Shown {
    /// Whether what concerns the operator alone may be told to whoever sent this.
    fn for_the_operator(&self, headers: &HeaderMap) -> Result<(), Refused> {
        if self.is_remote {
            let help = "on this machine, `viahop ctl` speaks over its socket";
            return Err(Refused::new(403, "this is not served on an address that others reach").help(help));
        }
        if headers.contains_key(header::ORIGIN) {
            return Err(Refused::new(403, "a page in a browser asks this").help("`viahop ctl` and curl send no Origin"));
        }
        Ok(())
    }

    /// Asks the control loop.
    async fn ask(&self, headers: &HeaderMap, ask: Result<Ask, Refused>) -> Response {
        let answer = match self.for_the_operator(headers).and(ask) {
            Ok(ask) => self.wait_for(ask).await,
            Err(refused) => Err(refused),
        };
        match answer {
            Ok(value) => json(StatusCode::OK, &value),
            Err(refused) => refused.into_response(),
        }
    }

    async fn wait_for(&self, ask: Ask) -> Answer {
        let (reply, answer) = oneshot::channel();
        let ending = || Refused::new(503, "viahop is ending");
        self.desk.ask_to.send(Asked { ask, reply }).await.map_err(|_| ending())?;
        answer.await.unwrap_or_else(|_| Err(ending()))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        json(StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &self)
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_string_pretty(value) {
        Ok(text) => (status, [(header::CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// RFC 9110 15.5.6: says which method it is, in `Allow`, which the router adds.
async fn wrong_method(method: Method, uri: Uri, _: Bytes) -> Refused {
    Refused::usage(405, format!("{} does not take {method}", uri.path()))
}

async fn nothing_there(uri: Uri, _: Bytes) -> Refused {
    Refused::usage(404, format!("there is no {}", uri.path())).help(did_you_mean(uri.path(), &PATHS))
}
