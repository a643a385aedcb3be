//! The HTTP endpoint: for Prometheus, for orchestrators, for people with a browser. It only shows; it changes nothing.

use super::metrics;
use super::view::View;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;

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

/// Serves what `views` shows until the task is dropped.
///
/// # Errors
/// The listener failed for good.
pub async fn serve(listener: TcpListener, views: watch::Receiver<Arc<View>>) -> io::Result<()> {
    let registry = Arc::new(metrics::registry(views.clone()));
    let router = Router::new()
        .route("/", get(index))
        .route("/metrics", get(scrape))
        .route("/ready", get(ready))
        .route("/live", get(|| async { "live\n" }))
        .route("/status.json", get(status))
        .with_state(Shown { views, registry });
    axum::serve(listener, router).await
}

#[derive(Clone)]
struct Shown {
    views: watch::Receiver<Arc<View>>,
    registry: Arc<Registry>,
}

const INDEX: &str = "viahop\n\n\
    /metrics      numbers for Prometheus\n\
    /ready        200 while this node should get calls, else 503\n\
    /live         200 while the process answers at all\n\
    /status.json  backends, shards, configuration, messages\n";

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
    let view = shown.views.borrow().clone();
    if view.is_ready {
        return "ready\n".into_response();
    }
    let why = if view.is_draining { "draining\n".to_owned() } else { unready(&view) };
    (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
}

fn unready(view: &View) -> String {
    let mut pools: Vec<&str> = view.backends.iter().map(|backend| &backend.pool[..]).collect();
    pools.dedup();
    pools.retain(|pool| !view.backends.iter().any(|backend| &*backend.pool == *pool && backend.takes_new));
    format!("no backend takes new calls in: {}\n", pools.join(", "))
}

async fn status(State(shown): State<Shown>) -> Response {
    let view = shown.views.borrow().clone();
    match serde_json::to_string_pretty(&view.status()) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
