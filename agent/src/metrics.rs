//! `/metrics` and `/healthz`. What is known elsewhere is read when it is asked for, so that nothing drifts.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};
use somersault_agent_core::health::{Assessment, Grade};
use somersault_proto::tls::TlsSource;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::beat::Shared;
use crate::clock::boottime;
use crate::orders::Orders;
use crate::sense::{Sensed, WatchedRoot};

/// The beat thread turns at least once a beat, and beats are at most a minute apart.
const BEAT_IDLE_MAX: Duration = Duration::from_secs(75);

type Ratio = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCoordinator {
    coordinator: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRoot {
    root: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDisk {
    disk: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStatus {
    disk: String,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    disk: String,
    reason: &'static str,
}

/// What only the sessions know.
#[derive(Debug, Default)]
pub struct SessionMetrics {
    connected: Family<ByCoordinator, Gauge>,
    /// Reports sent.
    pub reports: Counter,
}

impl SessionMetrics {
    /// A session is open.
    pub fn opened(&self, coordinator: SocketAddr) {
        self.set(coordinator, 1);
    }

    /// It is closed.
    pub fn closed(&self, coordinator: SocketAddr) {
        self.set(coordinator, 0);
    }

    /// The coordinator is no more.
    pub fn gone(&self, coordinator: SocketAddr) {
        self.connected.remove(&ByCoordinator { coordinator: coordinator.to_string() });
    }

    fn set(&self, coordinator: SocketAddr, open: i64) {
        self.connected.get_or_create(&ByCoordinator { coordinator: coordinator.to_string() }).set(open);
    }
}

/// Where the figures come from.
pub struct Sources {
    /// Beats and grants.
    pub beats: Arc<Shared>,
    /// Sessions.
    pub sessions: Arc<SessionMetrics>,
    /// Orders.
    pub orders: Orders,
    /// Storage roots.
    pub roots: Vec<WatchedRoot>,
    /// Disks.
    pub sensed: watch::Receiver<Arc<Sensed>>,
    /// Our certificate.
    pub tls: TlsSource,
}

/// Says that an agent lives that has no certificate yet: it waits for a coordinator, and no restart would help.
/// Leaves the listener to [`serve`] when it is dropped.
pub async fn serve_waiting(listener: &TcpListener) -> std::io::Result<()> {
    let listener = std::net::TcpListener::from(listener.as_fd().try_clone_to_owned()?);
    let waiting = || async { "ok: waiting for a certificate\n" };
    axum::serve(TcpListener::from_std(listener)?, Router::new().route("/healthz", get(waiting))).await
}

/// Serves both pages until told to stop.
pub async fn serve(listener: TcpListener, sources: Sources, stop: CancellationToken) -> std::io::Result<()> {
    let sources = Arc::new(sources);
    let (health, metrics) = (sources.clone(), sources);
    let app = Router::new()
        .route("/healthz", get(move || async move { healthz(&health) }))
        .route("/metrics", get(move || async move { page(&metrics) }));
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await
}

fn healthz(sources: &Sources) -> Response {
    if sources.beats.idle_for() <= BEAT_IDLE_MAX {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the beat thread stands still\n").into_response()
    }
}

fn page(sources: &Sources) -> Response {
    let mut text = String::new();
    match encode(&mut text, &registry(sources)) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// All figures as they are now.
fn registry(sources: &Sources) -> Registry {
    let mut registry = Registry::with_prefix("somersault");
    beats(&mut registry, &sources.beats);
    let open = Gauge::<i64>::default();
    open.set(i64::try_from(sources.orders.open()).unwrap_or(i64::MAX));
    registry.register("agent_orders_open", "Orders under way", open);
    registry.register(
        "agent_session_connected",
        "1 while the session is open",
        sources.sessions.connected.clone(),
    );
    registry.register("agent_reports", "Reports sent", sources.sessions.reports.clone());
    let until = Gauge::<i64>::default();
    let not_after = sources.tls.current().validity().not_after;
    let seconds = not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    until.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    registry.register(
        "agent_certificate_not_after_timestamp_seconds",
        "When the agent's certificate ends; it is renewed long before",
        until,
    );
    roots(&mut registry, &sources.roots);
    disks(&mut registry, &sources.sensed.borrow());
    registry
}

fn beats(registry: &mut Registry, shared: &Shared) {
    let connected = family::<ByCoordinator, Gauge>(registry, "agent_beat_connected", "1 while beats flow");
    let sent = family::<ByCoordinator, Counter>(registry, "agent_beats", "Beats sent");
    let dropped = family::<ByCoordinator, Counter>(
        registry,
        "agent_beats_dropped",
        "Beats that the connection did not take",
    );
    let grants = family::<ByCoordinator, Counter>(registry, "agent_grants", "Grants received");
    for (coordinator, link) in shared.links() {
        let label = ByCoordinator { coordinator: coordinator.to_string() };
        connected.get_or_create(&label).set(link.connected.load(Ordering::Relaxed).into());
        sent.get_or_create(&label).inc_by(link.beats.load(Ordering::Relaxed));
        dropped.get_or_create(&label).inc_by(link.beats_dropped.load(Ordering::Relaxed));
        grants.get_or_create(&label).inc_by(link.grants.load(Ordering::Relaxed));
    }
    let epoch = Gauge::<i64>::default();
    epoch.set(shared.with_lease(|lease| i64::try_from(lease.epoch()).unwrap_or(i64::MAX)));
    registry.register("agent_epoch", "Highest leader epoch seen", epoch);
    let remaining = Ratio::default();
    let expiry = shared.with_lease(|lease| lease.expiry()).unwrap_or_default();
    remaining.set(expiry.saturating_sub(boottime()).as_secs_f64());
    registry.register(
        "agent_lease_remaining_seconds",
        "Until the lease ends; nothing here acts on it",
        remaining,
    );
}

fn roots(registry: &mut Registry, roots: &[WatchedRoot]) {
    let size =
        family::<ByRoot, Gauge>(registry, "filesystem_size_bytes", "Size of a storage root's filesystem");
    let avail = family::<ByRoot, Gauge>(registry, "filesystem_avail_bytes", "Room left on it");
    let readonly = family::<ByRoot, Gauge>(registry, "filesystem_readonly", "1 where it cannot be written");
    let stuck =
        family::<ByRoot, Gauge>(registry, "filesystem_probe_stuck", "1 while a look into the root hangs");
    let age = family::<ByRoot, Ratio>(registry, "filesystem_sample_age_seconds", "Age of the last look");
    for WatchedRoot { root, watch } in roots {
        let label = ByRoot { root: root.path.to_string() };
        stuck.get_or_create(&label).set(watch.stuck().into());
        let Some(sample) = watch.sample() else { continue };
        size.get_or_create(&label).set(gauge(sample.room.size_bytes));
        avail.get_or_create(&label).set(gauge(sample.room.available_bytes));
        readonly.get_or_create(&label).set(sample.room.read_only.into());
        age.get_or_create(&label).set(boottime().saturating_sub(sample.taken_at).as_secs_f64());
    }
}

fn disks(registry: &mut Registry, sensed: &Sensed) {
    let status = family::<ByStatus, Gauge>(registry, "device_health_status", "1 for the disk's grade");
    let reason =
        family::<ByReason, Gauge>(registry, "device_health_reason", "1 for each reason of the grade");
    let stalled = family::<ByDisk, Ratio>(registry, "device_io_stalled_seconds", "Time without completions");
    let supported =
        family::<ByDisk, Gauge>(registry, "device_smart_supported", "1 where SMART was ever read");
    let temperature = family::<ByDisk, Gauge>(registry, "device_temperature_celsius", "Temperature");
    let wear = family::<ByDisk, Ratio>(registry, "device_wear_ratio", "Used part of the rated endurance");
    let spare =
        family::<ByDisk, Ratio>(registry, "device_spare_ratio", "Part of the spare blocks that is left");
    for (name, assessment) in &sensed.disks {
        let disk = || name.clone();
        for (grade, grade_name) in GRADES {
            let label = ByStatus { disk: disk(), status: grade_name };
            status.get_or_create(&label).set((grade == assessment.grade).into());
        }
        let reasons: BTreeSet<_> = assessment.reasons.iter().map(|reason| reason.as_str()).collect();
        for name in reasons {
            reason.get_or_create(&ByReason { disk: disk(), reason: name }).set(1);
        }
        let label = ByDisk { disk: disk() };
        stalled.get_or_create(&label).set(assessment.stalled_for.as_secs_f64());
        supported.get_or_create(&label).set(assessment.smart_supported.into());
        set_smart(assessment, &label, &temperature, &wear, &spare);
    }
}

const GRADES: [(Grade, &str); 5] = [
    (Grade::Unknown, "Unknown"),
    (Grade::Ok, "Ok"),
    (Grade::Warning, "Warning"),
    (Grade::Failing, "Failing"),
    (Grade::Failed, "Failed"),
];

fn set_smart(
    assessment: &Assessment,
    label: &ByDisk,
    temperature: &Family<ByDisk, Gauge>,
    wear: &Family<ByDisk, Ratio>,
    spare: &Family<ByDisk, Ratio>,
) {
    let Some(values) = &assessment.values else { return };
    if let Some(celsius) = values.temperature_celsius {
        temperature.get_or_create(label).set(celsius);
    }
    // A percentage above u32 is a disk's nonsense; it saturates.
    let ratio = |percent: u64| f64::from(u32::try_from(percent).unwrap_or(u32::MAX)) / 100.0;
    if let Some(percent) = values.wear_percent {
        wear.get_or_create(label).set(ratio(percent));
    }
    if let Some(percent) = values.spare_percent {
        spare.get_or_create(label).set(ratio(percent));
    }
}

fn family<L, M>(registry: &mut Registry, name: &str, help: &str) -> Family<L, M>
where
    Family<L, M>: Metric + Clone + Default,
{
    let family = Family::<L, M>::default();
    registry.register(name, help, family.clone());
    family
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
