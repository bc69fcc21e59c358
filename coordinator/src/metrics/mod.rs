//! What the coordinator counts and measures, for Prometheus: of itself (here), and of the cluster, as long as it leads
//! (`cluster`).

mod cluster;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use somersault_coordinator_core::BootTime;
use somersault_coordinator_core::alerts::AlertName;
use somersault_coordinator_core::decision::Decision;
use somersault_coordinator_core::names::NodeName;
use somersault_coordinator_core::view::{Milestone, NodeView, View};
use somersault_proto::declared::Declared;
use tokio::sync::Notify;

use cluster::ClusterMetrics;
pub use cluster::Facts;

/// Bounds of the timing buckets, in seconds: the fast profile declares after 1, the safe one after 5.
const TIMING_BUCKETS_S: [f64; 14] =
    [0.2, 0.5, 0.8, 1.0, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 6.0, 10.0, 30.0, 120.0];
/// Bounds of the driver's lateness, in seconds: a beat of the fast profile takes 0.2.
const LAG_BUCKETS_S: [f64; 8] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0];

/// All metrics. Cheap to share; every method may be called from anywhere.
pub struct Metrics {
    declared: Declared,
    node_state: Family<NodeStateLabels, Gauge>,
    fence_agent: Family<NodeStateLabels, Gauge>,
    vm_recoverable: Family<DecisionLabels, Gauge>,
    migrations: Family<PhaseLabels, Gauge>,
    declared_after: Histogram,
    proven_after: Histogram,
    notices: Family<NoticeLabels, Counter>,
    refused: Family<ReasonLabels, Counter>,
    beats: Counter,
    driver_lag: Histogram,
    stalls: Counter,
    manifest_problems: Gauge,
    leading: Gauge,
    enrolments: Family<OutcomeLabels, Counter>,
    alerts_firing: Family<AlertLabels, Gauge>,
    alerts_sent: Family<ReceiverLabels, Counter>,
    certificate_until: Gauge,
    authority_until: Gauge,
    cluster: ClusterMetrics,
    incidents: Mutex<BTreeMap<NodeName, Incident>>,
    led: Notify,
}

/// What of a node's incident was measured already.
#[derive(Clone, Copy, Default)]
struct Incident {
    declared: Option<BootTime>,
    proven: Option<BootTime>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeStateLabels {
    node: String,
    state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    decision: String,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NoticeLabels {
    reason: String,
    severity: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AlertLabels {
    alertname: String,
    severity: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReceiverLabels {
    receiver: String,
    outcome: String,
}

/// What became of a message to a receiver of alerts; the name is the metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It was taken.
    Taken,
    /// The receiver has answered, and does not take it.
    Refused,
    /// Nothing was answered in time.
    Late,
    /// It could not be sent.
    Failed,
}

/// What became of a request for a certificate; the name is the metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolled {
    /// It was given.
    Certified,
    /// Whoever asked has no right to it.
    Refused,
    /// The API server did not answer, or we could not sign.
    Failed,
}

/// Why something from outside was refused; the name is the metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No certificate, or one that names no node.
    Identity,
    /// It speaks for another node than its certificate does.
    ForeignNode,
    /// A message that is not valid.
    InvalidMessage,
    /// A message that is too large, or a broken stream.
    BrokenStream,
    /// Progress of an order that this node was not given.
    UnknownOrder,
    /// An answer to a probe that was not asked.
    UnknownProbe,
    /// A stream whose certificate has ended.
    CertificateEnded,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut to = Declared::default();
        Self {
            node_state: to.family("node_state", "1 for the state that a node is in"),
            fence_agent: to.family(
                "fence_agent",
                "1 for what a node's fence agent said when it was last asked for its status",
            ),
            vm_recoverable: to
                .family("vm_recoverable", "VMs by what would become of them if their node died now"),
            migrations: to.family("migrations", "Volume migrations by phase"),
            declared_after: to.add(
                "node_declared_after_seconds",
                "Time from a node's last beat to its being declared unreachable",
                Histogram::new(TIMING_BUCKETS_S),
            ),
            proven_after: to.add(
                "node_proven_after_seconds",
                "Time from a node's last beat to the proof that it cannot run anything",
                Histogram::new(TIMING_BUCKETS_S),
            ),
            notices: to.family("notices", "Notices to people, by reason and severity"),
            refused: to.family("refused", "Connections and messages that were refused, by reason"),
            beats: to.add("beats", "Heartbeats that arrived", Counter::default()),
            driver_lag: to.add(
                "driver_lag_seconds",
                "How late the deciding loop was",
                Histogram::new(LAG_BUCKETS_S),
            ),
            stalls: to.add("driver_stalls", "Times that the deciding loop stood still", Counter::default()),
            manifest_problems: to.add(
                "manifest_problems",
                "Manifests that could not be read",
                Gauge::default(),
            ),
            leading: to.add("leading", "1 while this process leads", Gauge::default()),
            enrolments: to.family("enrolments", "Requests for a certificate, by what became of them"),
            alerts_firing: to.family("alerts_firing", "Alerts that the leader tells its receivers of"),
            alerts_sent: to.family("alerts_sent", "Messages to receivers of alerts, by what became of them"),
            certificate_until: to.add(
                "certificate_not_after_timestamp_seconds",
                "When the coordinator's own certificate ends",
                Gauge::default(),
            ),
            authority_until: to.add(
                "authority_not_after_timestamp_seconds",
                "When the authority that signs certificates ends; 0 where certificates come from files",
                Gauge::default(),
            ),
            cluster: ClusterMetrics::declare(&mut to),
            incidents: Mutex::default(),
            led: Notify::new(),
            declared: to,
        }
    }
}

impl Metrics {
    /// The names of all metrics, as rules and dashboards use them but for `_total`, `_bucket`, `_sum` and `_count`.
    pub fn names(&self) -> &[String] {
        self.declared.names()
    }

    /// Everything in the text format of `OpenMetrics`.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, self.declared.registry())?;
        Ok(text)
    }

    /// A heartbeat arrived.
    pub fn beat(&self) {
        self.beats.inc();
    }

    /// Something from outside was refused.
    pub fn refused(&self, why: Refused) {
        self.refused.get_or_create(&ReasonLabels { reason: format!("{why:?}") }).inc();
    }

    /// Somebody asked for a certificate.
    pub fn enrolled(&self, outcome: Enrolled) {
        self.enrolments.get_or_create(&OutcomeLabels { outcome: format!("{outcome:?}") }).inc();
    }

    /// What fires, where it is ours to tell.
    pub fn alerts_firing(&self, counts: Option<&BTreeMap<AlertName, usize>>) {
        self.alerts_firing.clear();
        for (name, count) in counts.into_iter().flatten() {
            let labels = AlertLabels {
                alertname: name.as_str().to_owned(),
                severity: name.severity().as_str().to_owned(),
            };
            self.alerts_firing.get_or_create(&labels).set(i64::try_from(*count).unwrap_or(i64::MAX));
        }
    }

    /// A message went to a receiver of alerts, or did not.
    pub fn alert_sent(&self, receiver: &str, outcome: Sent) {
        let labels = ReceiverLabels { receiver: receiver.to_owned(), outcome: format!("{outcome:?}") };
        self.alerts_sent.get_or_create(&labels).inc();
    }

    /// When our own certificate ends.
    pub fn certificate_until(&self, not_after: SystemTime) {
        let seconds = not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.certificate_until.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// When our authority ends.
    pub fn authority_until(&self, not_after: Timestamp) {
        self.authority_until.set(not_after.as_second());
    }

    /// People were told something.
    pub fn notice(&self, reason: &str, severity: &str) {
        self.notices
            .get_or_create(&NoticeLabels { reason: reason.to_owned(), severity: severity.to_owned() })
            .inc();
    }

    /// How late the driver was.
    pub fn lag(&self, lag: Duration) {
        self.driver_lag.observe(lag.as_secs_f64());
    }

    /// The driver stood still.
    pub fn stall(&self) {
        self.stalls.inc();
    }

    /// Manifests that could not be read at the last reading.
    pub fn manifest_problems(&self, count: usize) {
        self.manifest_problems.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Whether we lead. Who does not shows nothing of the cluster.
    pub fn leading(&self, leads: bool) {
        self.leading.set(leads.into());
        if leads {
            self.led.notify_one();
        } else {
            self.clear_cluster();
        }
    }

    /// Until we lead, from now on or since the last time that this was waited for.
    pub async fn led(&self) {
        self.led.notified().await;
    }

    /// The cluster as it is now, where we lead.
    pub fn cluster(&self, facts: &Facts<'_>) {
        if self.leading.get() == 0 {
            return;
        }
        self.cluster.set(facts);
        self.recoverability(facts.rows.iter().map(|row| &row.decision));
        // Deposed meanwhile.
        if self.leading.get() == 0 {
            self.clear_cluster();
        }
    }

    fn clear_cluster(&self) {
        self.cluster.clear();
        self.vm_recoverable.clear();
    }

    fn recoverability<'a>(&self, decisions: impl Iterator<Item = &'a Decision>) {
        let mut counts: BTreeMap<(String, String), i64> = BTreeMap::new();
        for decision in decisions {
            let reason = decision.reasons.first().map_or_else(String::new, ToString::to_string);
            *counts.entry((format!("{:?}", decision.kind), reason)).or_default() += 1;
        }
        self.vm_recoverable.clear();
        for ((decision, reason), count) in counts {
            self.vm_recoverable.get_or_create(&DecisionLabels { decision, reason }).set(count);
        }
    }

    /// What the core shows of itself.
    pub fn view(&self, view: &View) {
        self.node_state.clear();
        self.fence_agent.clear();
        for (node, seen) in &view.nodes {
            let labels = NodeStateLabels { node: node.to_string(), state: format!("{:?}", seen.state) };
            self.node_state.get_or_create(&labels).set(1);
            if let Some(agent) = &seen.fence_agent {
                let labels = NodeStateLabels { node: node.to_string(), state: agent.state.name().to_owned() };
                self.fence_agent.get_or_create(&labels).set(1);
            }
            self.measure_incident(node, seen);
        }
        let mut phases: BTreeMap<String, i64> = BTreeMap::new();
        for migration in view.migrations.values() {
            *phases.entry(format!("{:?}", migration.record.phase)).or_default() += 1;
        }
        self.migrations.clear();
        for (phase, count) in phases {
            self.migrations.get_or_create(&PhaseLabels { phase }).set(count);
        }
    }

    /// Each verdict and each proof once.
    fn measure_incident(&self, node: &NodeName, seen: &NodeView) {
        let at = |wanted| seen.timeline.iter().find(|(what, _)| *what == wanted).map(|(_, at)| *at);
        let Some(last_beat) = at(Milestone::LastBeat) else { return };
        let mut incidents = self.incidents.lock().unwrap_or_else(PoisonError::into_inner);
        let known = incidents.entry(node.clone()).or_default();
        if let Some(declared) = at(Milestone::Declared).filter(|at| known.declared != Some(*at)) {
            known.declared = Some(declared);
            self.declared_after.observe(declared.saturating_sub(last_beat).as_secs_f64());
        }
        if let Some(proven) = at(Milestone::Proven).filter(|at| known.proven != Some(*at)) {
            known.proven = Some(proven);
            self.proven_after.observe(proven.saturating_sub(last_beat).as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use somersault_coordinator_core::fencing::agents::{FenceAgentView, FencingState};
    use somersault_coordinator_core::view::NodeState;

    use super::*;

    fn incident(declared_s: u64) -> View {
        let seen = NodeView {
            state: NodeState::AwaitingProof,
            since: Duration::ZERO,
            message: String::new(),
            boot_id: None,
            proofs_possible: Vec::new(),
            fence_agent: Some(FenceAgentView {
                state: FencingState::WrongMachine,
                answered: None,
                change_refused: None,
            }),
            proof: None,
            timeline: vec![
                (Milestone::LastBeat, Duration::from_secs(10)),
                (Milestone::Declared, Duration::from_secs(declared_s)),
            ],
            report: None,
            fence: None,
        };
        View { nodes: BTreeMap::from([("n1".into(), seen)]), ..View::default() }
    }

    #[test]
    fn a_verdict_is_measured_once() {
        let metrics = Metrics::default();
        metrics.view(&incident(11));
        metrics.view(&incident(11));
        let text = metrics.text().unwrap();
        assert!(text.contains("somersault_node_declared_after_seconds_count 1\n"), "{text}");
        assert!(text.contains("somersault_node_declared_after_seconds_sum 1.0\n"), "{text}");
        assert!(text.contains(r#"somersault_node_state{node="n1",state="AwaitingProof"} 1"#), "{text}");
        assert!(text.contains(r#"somersault_fence_agent{node="n1",state="WrongMachine"} 1"#), "{text}");
        metrics.view(&incident(12));
        assert!(metrics.text().unwrap().contains("somersault_node_declared_after_seconds_count 2\n"));
    }

    #[test]
    fn a_state_that_has_passed_is_shown_no_more() {
        let metrics = Metrics::default();
        metrics.view(&incident(11));
        metrics.view(&View::default());
        assert!(!metrics.text().unwrap().contains(r#"node="n1""#));
    }

    #[test]
    fn refusals_are_counted_by_reason() {
        let metrics = Metrics::default();
        metrics.refused(Refused::ForeignNode);
        assert!(metrics.text().unwrap().contains(r#"somersault_refused_total{reason="ForeignNode"} 1"#));
    }
}
