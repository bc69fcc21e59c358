//! `/metrics` and `/healthz`. What is known elsewhere is read when it is asked for, so that nothing drifts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
use somersault_agent_core::health::{Assessment, Grade};
use somersault_proto::declared::Declared;
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
    open: Mutex<BTreeMap<SocketAddr, bool>>,
    reports: AtomicU64,
}

impl SessionMetrics {
    /// A session is open.
    pub fn opened(&self, coordinator: SocketAddr) {
        self.of_each().insert(coordinator, true);
    }

    /// It is closed.
    pub fn closed(&self, coordinator: SocketAddr) {
        self.of_each().insert(coordinator, false);
    }

    /// The coordinator is no more.
    pub fn gone(&self, coordinator: SocketAddr) {
        self.of_each().remove(&coordinator);
    }

    /// A report was sent.
    pub fn reported(&self) {
        self.reports.fetch_add(1, Ordering::Relaxed);
    }

    fn open(&self) -> Vec<(String, bool)> {
        self.of_each().iter().map(|(coordinator, open)| (coordinator.to_string(), *open)).collect()
    }

    fn reports(&self) -> u64 {
        self.reports.load(Ordering::Relaxed)
    }

    fn of_each(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, bool>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the figures come from.
pub struct Sources {
    /// Our node.
    pub node: String,
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
    match encode(&mut text, declared(sources).registry()) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// The names of all metrics, as rules and dashboards use them but for `_total`.
pub fn names() -> Vec<String> {
    let mut declared = Declared::default();
    Families::declare(&mut declared);
    declared.names().to_vec()
}

/// All figures as they are now.
fn declared(sources: &Sources) -> Declared {
    let mut declared = Declared::of_node(&sources.node);
    let families = Families::declare(&mut declared);
    families.set_beats(&sources.beats);
    for (coordinator, open) in sources.sessions.open() {
        families.session_connected.get_or_create(&ByCoordinator { coordinator }).set(open.into());
    }
    families.reports.inc_by(sources.sessions.reports());
    families.orders_open.set(i64::try_from(sources.orders.open()).unwrap_or(i64::MAX));
    let not_after = sources.tls.current().validity().not_after;
    let seconds = not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    families.certificate_until.set(gauge(seconds));
    families.set_roots(&sources.roots);
    families.set_disks(&sources.sensed.borrow());
    declared
}

/// Made anew for each answer, so that what is gone is not shown.
struct Families {
    beat_connected: Family<ByCoordinator, Gauge>,
    beats: Family<ByCoordinator, Counter>,
    beats_dropped: Family<ByCoordinator, Counter>,
    grants: Family<ByCoordinator, Counter>,
    epoch: Gauge,
    lease_remaining: Ratio,
    session_connected: Family<ByCoordinator, Gauge>,
    reports: Counter,
    orders_open: Gauge,
    certificate_until: Gauge,
    size: Family<ByRoot, Gauge>,
    avail: Family<ByRoot, Gauge>,
    readonly: Family<ByRoot, Gauge>,
    stuck: Family<ByRoot, Gauge>,
    sample_age: Family<ByRoot, Ratio>,
    status: Family<ByStatus, Gauge>,
    reason: Family<ByReason, Gauge>,
    stalled: Family<ByDisk, Ratio>,
    smart_supported: Family<ByDisk, Gauge>,
    temperature: Family<ByDisk, Gauge>,
    wear: Family<ByDisk, Ratio>,
    spare: Family<ByDisk, Ratio>,
}

impl Families {
    fn declare(to: &mut Declared) -> Self {
        Self {
            beat_connected: to.family("agent_beat_connected", "1 while beats flow"),
            beats: to.family("agent_beats", "Beats sent"),
            beats_dropped: to.family("agent_beats_dropped", "Beats that the connection did not take"),
            grants: to.family("agent_grants", "Grants received"),
            epoch: to.add("agent_epoch", "Highest leader epoch seen", Gauge::default()),
            lease_remaining: to.add(
                "agent_lease_remaining_seconds",
                "Until the lease ends; nothing here acts on it",
                Ratio::default(),
            ),
            session_connected: to.family("agent_session_connected", "1 while the session is open"),
            reports: to.add("agent_reports", "Reports sent", Counter::default()),
            orders_open: to.add("agent_orders_open", "Orders under way", Gauge::default()),
            certificate_until: to.add(
                "agent_certificate_not_after_timestamp_seconds",
                "When the agent's certificate ends; it is renewed long before",
                Gauge::default(),
            ),
            size: to.family("filesystem_size_bytes", "Size of a storage root's filesystem"),
            avail: to.family("filesystem_avail_bytes", "Room left on it"),
            readonly: to.family("filesystem_readonly", "1 where it cannot be written"),
            stuck: to.family("filesystem_probe_stuck", "1 while a look into the root hangs"),
            sample_age: to.family("filesystem_sample_age_seconds", "Age of the last look"),
            status: to.family("device_health_status", "1 for the disk's grade"),
            reason: to.family("device_health_reason", "1 for each reason of the grade"),
            stalled: to.family("device_io_stalled_seconds", "Time without completions"),
            smart_supported: to.family("device_smart_supported", "1 where SMART was ever read"),
            temperature: to.family("device_temperature_celsius", "Temperature"),
            wear: to.family("device_wear_ratio", "Used part of the rated endurance"),
            spare: to.family("device_spare_ratio", "Part of the spare blocks that is left"),
        }
    }

    fn set_beats(&self, shared: &Shared) {
        for (coordinator, link) in shared.links() {
            let label = ByCoordinator { coordinator: coordinator.to_string() };
            self.beat_connected.get_or_create(&label).set(link.connected.load(Ordering::Relaxed).into());
            self.beats.get_or_create(&label).inc_by(link.beats.load(Ordering::Relaxed));
            self.beats_dropped.get_or_create(&label).inc_by(link.beats_dropped.load(Ordering::Relaxed));
            self.grants.get_or_create(&label).inc_by(link.grants.load(Ordering::Relaxed));
        }
        self.epoch.set(shared.with_lease(|lease| gauge(lease.epoch())));
        let expiry = shared.with_lease(|lease| lease.expiry()).unwrap_or_default();
        self.lease_remaining.set(expiry.saturating_sub(boottime()).as_secs_f64());
    }

    fn set_roots(&self, roots: &[WatchedRoot]) {
        for WatchedRoot { root, watch } in roots {
            let label = ByRoot { root: root.path.to_string() };
            self.stuck.get_or_create(&label).set(watch.stuck().into());
            let Some(sample) = watch.sample() else { continue };
            self.size.get_or_create(&label).set(gauge(sample.room.size_bytes));
            self.avail.get_or_create(&label).set(gauge(sample.room.available_bytes));
            self.readonly.get_or_create(&label).set(sample.room.read_only.into());
            let age = boottime().saturating_sub(sample.taken_at);
            self.sample_age.get_or_create(&label).set(age.as_secs_f64());
        }
    }

    fn set_disks(&self, sensed: &Sensed) {
        for (name, assessment) in &sensed.disks {
            let disk = || name.clone();
            for (grade, grade_name) in GRADES {
                let label = ByStatus { disk: disk(), status: grade_name };
                self.status.get_or_create(&label).set((grade == assessment.grade).into());
            }
            let reasons: BTreeSet<_> = assessment.reasons.iter().map(|reason| reason.as_str()).collect();
            for name in reasons {
                self.reason.get_or_create(&ByReason { disk: disk(), reason: name }).set(1);
            }
            let label = ByDisk { disk: disk() };
            self.stalled.get_or_create(&label).set(assessment.stalled_for.as_secs_f64());
            self.smart_supported.get_or_create(&label).set(assessment.smart_supported.into());
            self.set_smart(assessment, &label);
        }
    }

    fn set_smart(&self, assessment: &Assessment, label: &ByDisk) {
        let Some(values) = &assessment.values else { return };
        if let Some(celsius) = values.temperature_celsius {
            self.temperature.get_or_create(label).set(celsius);
        }
        // A percentage above u32 is a disk's nonsense; it saturates.
        let ratio = |percent: u64| f64::from(u32::try_from(percent).unwrap_or(u32::MAX)) / 100.0;
        if let Some(percent) = values.wear_percent {
            self.wear.get_or_create(label).set(ratio(percent));
        }
        if let Some(percent) = values.spare_percent {
            self.spare.get_or_create(label).set(ratio(percent));
        }
    }
}

const GRADES: [(Grade, &str); 5] = [
    (Grade::Unknown, "Unknown"),
    (Grade::Ok, "Ok"),
    (Grade::Warning, "Warning"),
    (Grade::Failing, "Failing"),
    (Grade::Failed, "Failed"),
];

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
