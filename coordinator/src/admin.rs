//! For operators and their machines: `/healthz`, `/readyz`, `/metrics`. Plain HTTP on a port of its own, which
//! gives away states and counts and takes nothing.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use somersault_coordinator_core::BootTime;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

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

/// Serves until told to stop.
pub async fn serve(listener: TcpListener, admin: Admin, stop: CancellationToken) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(admin);
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn healthz(State(admin): State<Admin>) -> (StatusCode, String) {
    let late = admin.clock.now().saturating_sub(*admin.turned.borrow());
    if late < STUCK_AFTER {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("the deciding loop has not turned for {late:.1?}\n"))
    }
}

async fn readyz(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    match admin.epoch.current() {
        Some(_) => (StatusCode::OK, "leading\n"),
        None if (admin.is_warm)() => (StatusCode::OK, "following\n"),
        None => (StatusCode::SERVICE_UNAVAILABLE, "not leading\n"),
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match admin.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
