//! Connections of those who ask over HTTP or the socket: how many there may be, and how long one may be silent. Each takes a
//! descriptor that a call could need, and whoever opens them need not mean harm: a firewall that forgets a scraper's
//! connection leaves it open here for ever.

use axum::serve::Listener;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// Connections at a time, of HTTP and of the socket each. One more waits until another has ended.
const VISITORS_MAX: usize = 64;

/// How long nothing may be said on a connection.
#[derive(Clone, Copy)]
struct Patience {
    /// Between an answer and the next question: a probe of an orchestrator that finds no room asks again, and may kill a process that does
    /// not answer the third time.
    idle: Duration,
    /// Between a question and its answer: longer than `viahop ctl` waits for one, 120 s.
    asked: Duration,
}

const PATIENCE: Patience = Patience { idle: Duration::from_secs(10), asked: Duration::from_secs(130) };

/// A listener that lets in no more than there is room for.
pub struct Visitors<L> {
    listener: L,
    room: Arc<Semaphore>,
    patience: Patience,
}

impl<L> Visitors<L> {
    /// Those who come to `listener`.
    pub fn of(listener: L) -> Visitors<L> {
        Visitors { listener, room: Arc::new(Semaphore::new(VISITORS_MAX)), patience: PATIENCE }
    }
}

impl<L: Listener> Listener for Visitors<L> {
    type Io = Visitor<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let place = self.room.clone().acquire_owned().await.expect("nobody closes it");
        let (stream, address) = self.listener.accept().await;
        (
            Visitor { stream, patience: self.patience, until: Box::pin(sleep(self.patience.idle)), _place: place },
            address,
        )
    }

    fn local_addr(&self) -> io::Result<L::Addr> {
        self.listener.local_addr()
    }
}

/// A connection, and its place.
pub struct Visitor<S> {
    stream: S,
    patience: Patience,
    until: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl<S> Visitor<S> {
    /// Passes on what became of a read or write, behind which it may be silent for so long, unless it has been for too long.
    fn heed<T>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
        silence: Duration,
    ) -> Poll<io::Result<T>> {
        if outcome.is_pending() {
            ready!(self.until.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.until.as_mut().reset(Instant::now() + silence);
        outcome
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Visitor<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_read(cx, room);
        let silence = self.patience.asked;
        self.heed(cx, outcome, silence)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Visitor<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, octets);
        let silence = self.patience.idle;
        self.heed(cx, outcome, silence)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::routing::get;
    use std::io::Write;
    use std::net::TcpStream;
    use tokio::net::TcpListener;

    /// Takes longer than one may be silent who asks nothing.
    async fn slow() -> &'static str {
        sleep(Duration::from_millis(500)).await;
        "here"
    }

    #[tokio::test]
    async fn who_is_silent_makes_room_for_who_asks_and_waits_for_an_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let room = Arc::new(Semaphore::new(2));
        let short = Duration::from_millis(200);
        let visitors = Visitors { listener, room, patience: Patience { idle: short, ..PATIENCE } };
        tokio::spawn(async { axum::serve(visitors, Router::new().route("/", get(slow))).await });
        let asked = tokio::task::spawn_blocking(move || {
            let connect = || TcpStream::connect(address).unwrap();
            let (_silent, mut late) = ([connect(), connect()], connect());
            late.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            late.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            // Until it is closed: from its answer on it is silent as well.
            io::read_to_string(late).unwrap()
        });
        let answer = asked.await.unwrap();
        assert!(answer.ends_with("here"), "{answer}");
    }
}
