//! For operators and their machines: `/healthz`, `/readyz`, `/metrics`. Plain HTTP on a port of its own, which
//! gives away states and counts and takes nothing.
//!
//! ```text
//!   open ──► starting: alive, not ready ──► begin ──► what the parts say
//! ```
//!
//! It is served before anything else is there: a start that waits for the API server is no reason to be restarted.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use somersault_coordinator_core::BootTime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::app::{AppError, listen};
use crate::clock::Clock;
use crate::leader::Epoch;
use crate::metrics::Metrics;

/// The loop turns ten times a second; one that has not for this long is stuck, and a restart is better.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// What the answers are made of.
#[derive(Clone)]
pub struct Admin {
    /// Our clock.
    pub clock: Arc<dyn Clock>,
    /// Last turn of the driver.
    pub turned: watch::Receiver<BootTime>,
    /// Whether we lead.
    pub epoch: Epoch,
    /// Whether a follower is of use.
    pub is_warm: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// The port of operators, served from now on.
pub struct Operators {
    address: SocketAddr,
    parts: watch::Sender<Option<Admin>>,
    serving: JoinHandle<io::Result<()>>,
    stop: DropGuard,
}

/// What the answers are made of, once there is something.
type Parts = watch::Receiver<Option<Admin>>;

impl Operators {
    /// Takes the port and serves it; ends when it is dropped.
    pub async fn open(address: SocketAddr) -> Result<Self, AppError> {
        let listener = listen(address, "operators").await?;
        let address = listener.local_addr().unwrap_or(address);
        let (parts, seen) = watch::channel(None);
        let stop = CancellationToken::new();
        let routes = Router::new()
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(seen);
        let ended = stop.clone().cancelled_owned();
        let serving =
            tokio::spawn(async move { axum::serve(listener, routes).with_graceful_shutdown(ended).await });
        Ok(Self { address, parts, serving, stop: stop.drop_guard() })
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on, the answers are made of this; serves until told to stop.
    pub async fn serve(self, admin: Admin, stop: CancellationToken) -> io::Result<()> {
        let Self { parts, mut serving, stop: own, .. } = self;
        parts.send_replace(Some(admin));
        tokio::select! {
            ended = &mut serving => return ended.map_err(io::Error::other)?,
            () = stop.cancelled() => drop(own),
        }
        serving.await.map_err(io::Error::other)?
    }
}

/// What there is now.
fn now(parts: &Parts) -> Option<Admin> {
    parts.borrow().clone()
}

async fn healthz(State(parts): State<Parts>) -> (StatusCode, String) {
    let Some(admin) = now(&parts) else { return (StatusCode::OK, "starting\n".to_owned()) };
    let late = admin.clock.now().saturating_sub(*admin.turned.borrow());
    if late < STUCK_AFTER {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("the deciding loop has not turned for {late:.1?}\n"))
    }
}

async fn readyz(State(parts): State<Parts>) -> (StatusCode, &'static str) {
    let Some(admin) = now(&parts) else {
        return (StatusCode::SERVICE_UNAVAILABLE, "starting: waiting for the API server\n");
    };
    match admin.epoch.current() {
        Some(_) => (StatusCode::OK, "leading\n"),
        None if (admin.is_warm)() => (StatusCode::OK, "following\n"),
        None => (StatusCode::SERVICE_UNAVAILABLE, "not leading\n"),
    }
}

async fn metrics(State(parts): State<Parts>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let Some(admin) = now(&parts) else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    match admin.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;
    use crate::testkit::FakeClock;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut socket = TcpStream::connect(address).await.expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.expect("an answer");
        answer
    }

    #[tokio::test]
    async fn a_start_that_waits_is_alive_and_not_ready() {
        let operators = Operators::open("127.0.0.1:0".parse().expect("an address")).await.expect("a port");
        let address = operators.address();
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        assert!(get(address, "/metrics").await.starts_with("HTTP/1.1 503"));

        let clock = FakeClock::new();
        let admin = Admin {
            turned: watch::channel(clock.now()).1,
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            epoch: Epoch::default(),
            is_warm: Arc::new(|| true),
            metrics: Arc::default(),
        };
        let stop = CancellationToken::new();
        let serving = tokio::spawn(operators.serve(admin, stop.clone()));
        while !get(address, "/readyz").await.starts_with("HTTP/1.1 200") {
            tokio::task::yield_now().await;
        }
        assert!(get(address, "/metrics").await.contains("somersault_leading 0\n"));
        clock.jump(STUCK_AFTER);
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 500"), "its loop does not turn");
        stop.cancel();
        serving.await.expect("no crash").expect("it ends");
    }
}
