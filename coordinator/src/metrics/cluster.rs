//! What is measured of the cluster, from its objects, the agents' reports and what the core shows: VMs and what would become
//! of them, nodes, local volumes, storage roots, disks, migrations.
//!
//! Only the leader shows these: one series for each thing, whichever replica is asked. Agents show the same of their own node
//! and disks by the same names and labels, for whoever asks them.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use somersault_coordinator_core::decision::ReportRow;
use somersault_coordinator_core::evacuation::PlanState;
use somersault_coordinator_core::fleet::{Fleet, Grade, NodeReport, RunStrategy, Vm, folder};
use somersault_coordinator_core::locality;
use somersault_coordinator_core::migration::MigrationRecord;
use somersault_coordinator_core::names::{Key, NodeName, Uid};
use somersault_coordinator_core::view::{CopyView, MigrationView, View};
use somersault_proto::declared::Declared;

type Ratio = Gauge<f64, AtomicU64>;

/// Grades of a disk.
const GRADES: [Grade; 5] = [Grade::Unknown, Grade::Ok, Grade::Warning, Grade::Failing, Grade::Failed];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VmLabels {
    namespace: String,
    vm: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VmStateLabels {
    namespace: String,
    vm: String,
    node: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VmDecisionLabels {
    namespace: String,
    vm: String,
    decision: String,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RecoveryLabels {
    namespace: String,
    vm: String,
    cause: String,
    progress: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabels {
    node: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RootLabels {
    node: String,
    root: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VolumeLabels {
    namespace: String,
    persistentvolumeclaim: String,
    persistentvolume: String,
    node: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DiskStatusLabels {
    node: String,
    disk: String,
    status: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DiskReasonLabels {
    node: String,
    disk: String,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MigrationLabels {
    namespace: String,
    migration: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MigrationPhaseLabels {
    namespace: String,
    migration: String,
    phase: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EvacuationLabels {
    evacuation: String,
    state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EvacuationName {
    evacuation: String,
}

/// What the cluster's metrics are made of.
pub struct Facts<'a> {
    /// Its objects, with the agents' reports.
    pub fleet: &'a Fleet,
    /// What the core shows.
    pub view: &'a View,
    /// What would become of every VM.
    pub rows: &'a [ReportRow],
}

/// The cluster's metrics.
pub struct ClusterMetrics {
    vm_state: Family<VmStateLabels, Gauge>,
    vm_decision: Family<VmDecisionLabels, Gauge>,
    vm_starts: Family<VmLabels, Counter>,
    recovery: Family<RecoveryLabels, Gauge>,
    storm_hold: Gauge,
    node_cpu: Family<NodeLabels, Ratio>,
    node_memory_size: Family<NodeLabels, Gauge>,
    node_memory_avail: Family<NodeLabels, Gauge>,
    node_load: Family<NodeLabels, Ratio>,
    node_io_pressure: Family<NodeLabels, Ratio>,
    volume_requested: Family<VolumeLabels, Gauge>,
    volume_used: Family<VolumeLabels, Gauge>,
    volume_apparent: Family<VolumeLabels, Gauge>,
    volume_inodes: Family<VolumeLabels, Gauge>,
    root_size: Family<RootLabels, Gauge>,
    root_avail: Family<RootLabels, Gauge>,
    root_readonly: Family<RootLabels, Gauge>,
    root_requested: Family<RootLabels, Gauge>,
    orphaned: Family<RootLabels, Gauge>,
    disk_status: Family<DiskStatusLabels, Gauge>,
    disk_reason: Family<DiskReasonLabels, Gauge>,
    migration_phase: Family<MigrationPhaseLabels, Gauge>,
    migration_total: Family<MigrationLabels, Gauge>,
    migration_done: Family<MigrationLabels, Gauge>,
    migration_rate: Family<MigrationLabels, Gauge>,
    migration_downtime: Family<MigrationLabels, Ratio>,
    evacuation: Family<EvacuationLabels, Gauge>,
    evacuation_remaining: Family<EvacuationName, Gauge>,
    /// The instance of each VM that was seen last: another one is another start.
    instances: Mutex<BTreeMap<Key, Uid>>,
}

impl ClusterMetrics {
    /// Declares all of them.
    pub fn declare(to: &mut Declared) -> Self {
        Self {
            vm_state: to.family("vm_state", "1 for the state that a VM is in, and its node"),
            vm_decision: to.family("vm_decision", "1 for what would become of a VM if its node died now"),
            vm_starts: to.family("vm_starts", "Instances of a VM that came since this coordinator leads"),
            recovery: to.family("recovery", "1 for how far the recovery of a VM is that is not over"),
            storm_hold: to.add(
                "storm_hold",
                "1 while too many nodes fell silent at once to act",
                Gauge::default(),
            ),
            node_cpu: to.family("node_cpu_used_ratio", "Part of a node's CPU time in use"),
            node_memory_size: to.family("node_memory_size_bytes", "Installed memory"),
            node_memory_avail: to.family("node_memory_avail_bytes", "Memory that is to be had"),
            node_load: to.family("node_load1", "Load average of one minute"),
            node_io_pressure: to
                .family("node_io_pressure_ratio", "Part of the time in which some task waited for IO"),
            volume_requested: to.family("volume_requested_bytes", "What the claim of a local volume asks"),
            volume_used: to.family("volume_used_bytes", "Blocks that a local volume takes"),
            volume_apparent: to.family("volume_apparent_bytes", "Sizes of the files of a local volume"),
            volume_inodes: to.family("volume_inodes_used", "Files and folders of a local volume"),
            root_size: to.family("filesystem_size_bytes", "Size of a storage root's filesystem"),
            root_avail: to.family("filesystem_avail_bytes", "Room left on it"),
            root_readonly: to.family("filesystem_readonly", "1 where it cannot be written"),
            root_requested: to
                .family("filesystem_requested_bytes", "What all claims in a storage root ask together"),
            orphaned: to.family("orphaned_bytes", "Blocks of folders in a storage root that no volume names"),
            disk_status: to.family("device_health_status", "1 for the disk's grade"),
            disk_reason: to.family("device_health_reason", "1 for each reason of the grade"),
            migration_phase: to.family("migration_phase", "1 for the phase that a volume migration is in"),
            migration_total: to
                .family("migration_total_bytes", "What its present copies have to copy; 0 while unknown"),
            migration_done: to.family("migration_done_bytes", "What of that is done"),
            migration_rate: to.family("migration_rate_bytes_per_second", "How fast"),
            migration_downtime: to
                .family("migration_downtime_seconds", "How long its VM stood still, once it has ended"),
            evacuation: to
                .family("evacuation_subjects", "VMs and claims of an evacuation, by what became of them"),
            evacuation_remaining: to
                .family("evacuation_remaining_bytes", "What an evacuation has still to move"),
            instances: Mutex::default(),
        }
    }

    /// Nothing is shown any more: another one leads.
    pub fn clear(&self) {
        self.vm_starts.clear();
        self.instances.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.storm_hold.set(0);
        self.clear_states();
    }

    fn clear_states(&self) {
        self.vm_state.clear();
        self.vm_decision.clear();
        self.recovery.clear();
        self.node_cpu.clear();
        self.node_memory_size.clear();
        self.node_memory_avail.clear();
        self.node_load.clear();
        self.node_io_pressure.clear();
        self.volume_requested.clear();
        self.volume_used.clear();
        self.volume_apparent.clear();
        self.volume_inodes.clear();
        self.root_size.clear();
        self.root_avail.clear();
        self.root_readonly.clear();
        self.root_requested.clear();
        self.orphaned.clear();
        self.disk_status.clear();
        self.disk_reason.clear();
        self.migration_phase.clear();
        self.migration_total.clear();
        self.migration_done.clear();
        self.migration_rate.clear();
        self.migration_downtime.clear();
        self.evacuation.clear();
        self.evacuation_remaining.clear();
    }

    /// Everything as it is now.
    pub fn set(&self, facts: &Facts<'_>) {
        self.clear_states();
        self.storm_hold.set(facts.view.storm_hold.is_some().into());
        for (key, vm) in &facts.fleet.vms {
            self.set_vm(key, vm);
        }
        self.forget_starts(facts.fleet);
        for row in facts.rows {
            self.set_decision(row);
        }
        for (key, recovery) in facts.view.recoveries.iter().filter(|(_, recovery)| !recovery.ended) {
            let labels = RecoveryLabels {
                namespace: key.namespace.clone(),
                vm: key.name.clone(),
                cause: format!("{:?}", recovery.cause),
                progress: format!("{:?}", recovery.progress),
            };
            self.recovery.get_or_create(&labels).set(1);
        }
        for (node, report) in &facts.fleet.reports {
            self.set_report(node, report);
        }
        self.set_volumes(facts.fleet);
        self.set_orphans(facts.fleet);
        for (key, migration) in &facts.view.migrations {
            self.set_migration(key, migration);
        }
        self.set_evacuations(facts.view);
    }

    fn set_vm(&self, key: &Key, vm: &Vm) {
        let labels = VmStateLabels {
            namespace: key.namespace.clone(),
            vm: key.name.clone(),
            node: vm.node().map_or_else(String::new, ToString::to_string),
            state: state_of(vm),
        };
        self.vm_state.get_or_create(&labels).set(1);
        let Some(instance) = &vm.instance else { return };
        let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = instances.insert(key.clone(), instance.uid.clone())
            && before != instance.uid
        {
            let labels = VmLabels { namespace: key.namespace.clone(), vm: key.name.clone() };
            self.vm_starts.get_or_create(&labels).inc();
        }
    }

    /// A VM that is gone starts no more.
    fn forget_starts(&self, fleet: &Fleet) {
        let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        instances.retain(|key, _| {
            let there = fleet.vms.contains_key(key);
            if !there {
                let labels = VmLabels { namespace: key.namespace.clone(), vm: key.name.clone() };
                self.vm_starts.remove(&labels);
            }
            there
        });
    }

    fn set_decision(&self, row: &ReportRow) {
        let decision = &row.decision;
        let labels = VmDecisionLabels {
            namespace: decision.vm.namespace.clone(),
            vm: decision.vm.name.clone(),
            decision: format!("{:?}", decision.kind),
            reason: decision.reasons.first().map_or_else(String::new, ToString::to_string),
        };
        self.vm_decision.get_or_create(&labels).set(1);
    }

    fn set_report(&self, node: &NodeName, report: &NodeReport) {
        let by_node = NodeLabels { node: node.to_string() };
        let host = &report.host;
        if host.memory_total_bytes > 0 {
            self.node_cpu.get_or_create(&by_node).set(host.cpu_ratio);
            self.node_memory_size.get_or_create(&by_node).set(gauge(host.memory_total_bytes));
            self.node_memory_avail.get_or_create(&by_node).set(gauge(host.memory_available_bytes));
            self.node_load.get_or_create(&by_node).set(host.load1);
        }
        if let Some(pressure) = host.io_pressure_ratio {
            self.node_io_pressure.get_or_create(&by_node).set(pressure);
        }
        for root in report.roots.iter().filter(|root| root.is_seen()) {
            let labels = RootLabels { node: node.to_string(), root: root.path.clone() };
            self.root_size.get_or_create(&labels).set(gauge(root.size_bytes));
            self.root_avail.get_or_create(&labels).set(gauge(root.available_bytes));
            self.root_readonly.get_or_create(&labels).set(root.read_only.into());
        }
        for (disk, health) in &report.disks {
            for grade in GRADES {
                let labels = DiskStatusLabels {
                    node: node.to_string(),
                    disk: disk.clone(),
                    status: format!("{grade:?}"),
                };
                self.disk_status.get_or_create(&labels).set((health.grade == grade).into());
            }
            for reason in &health.reasons {
                let labels =
                    DiskReasonLabels { node: node.to_string(), disk: disk.clone(), reason: reason.clone() };
                self.disk_reason.get_or_create(&labels).set(1);
            }
        }
    }

    /// Volumes with a path on one node. Of one that no report tells of, what is asked for is known all the same.
    fn set_volumes(&self, fleet: &Fleet) {
        for (name, volume) in &fleet.volumes {
            let (Some(path), Some(node)) = (volume.source.path(), locality::pinned_node(fleet, volume))
            else {
                continue;
            };
            let Some(claim) = volume.claim.as_ref().filter(|_| volume.phase == "Bound") else { continue };
            let requested =
                fleet.claims.get(&claim.key).map_or(volume.capacity_bytes, |claim| claim.requested_bytes);
            let labels = VolumeLabels {
                namespace: claim.key.namespace.clone(),
                persistentvolumeclaim: claim.key.name.clone(),
                persistentvolume: name.to_string(),
                node: node.to_string(),
            };
            let report = fleet.reports.get(&node);
            if let Some(root) = report.and_then(|report| report.root_of(path)) {
                let by_root = RootLabels { node: node.to_string(), root: root.path.clone() };
                self.root_requested.get_or_create(&by_root).inc_by(gauge(requested));
            }
            self.volume_requested.get_or_create(&labels).set(gauge(requested));
            let Some(usage) = report.and_then(|report| report.usage.get(folder(path))) else { continue };
            self.volume_used.get_or_create(&labels).set(gauge(usage.allocated_bytes));
            self.volume_apparent.get_or_create(&labels).set(gauge(usage.apparent_bytes));
            self.volume_inodes.get_or_create(&labels).set(gauge(usage.inodes));
        }
    }

    /// Folders below roots of one node alone that no volume names.
    fn set_orphans(&self, fleet: &Fleet) {
        for (node, path, usage) in fleet.orphans() {
            let root = fleet.reports.get(node).and_then(|report| report.root_of(path));
            let Some(root) = root.filter(|root| root.lists(path) && !root.shared) else { continue };
            let labels = RootLabels { node: node.to_string(), root: root.path.clone() };
            self.orphaned.get_or_create(&labels).inc_by(gauge(usage.allocated_bytes));
        }
    }

    fn set_migration(&self, key: &Key, migration: &MigrationView) {
        let MigrationRecord { phase, downtime_ms, .. } = &migration.record;
        let labels = MigrationPhaseLabels {
            namespace: key.namespace.clone(),
            migration: key.name.clone(),
            phase: format!("{phase:?}"),
        };
        self.migration_phase.get_or_create(&labels).set(1);
        let labels = MigrationLabels { namespace: key.namespace.clone(), migration: key.name.clone() };
        if !phase.is_final() {
            let copies = migration.copies.values().copied().fold(CopyView::default(), CopyView::and);
            self.migration_total.get_or_create(&labels).set(gauge(copies.total_bytes));
            self.migration_done.get_or_create(&labels).set(gauge(copies.done_bytes));
            self.migration_rate.get_or_create(&labels).set(gauge(copies.rate_bytes_per_s));
        }
        if let Some(millis) = downtime_ms {
            let time = std::time::Duration::from_millis(*millis);
            self.migration_downtime.get_or_create(&labels).set(time.as_secs_f64());
        }
    }

    fn set_evacuations(&self, view: &View) {
        for (name, record) in view.evacuations.iter().filter(|(_, record)| !record.complete) {
            let mut remaining = 0;
            for line in &record.plan {
                let labels =
                    EvacuationLabels { evacuation: name.clone(), state: format!("{:?}", line.state) };
                self.evacuation.get_or_create(&labels).inc();
                let ended = matches!(line.state, PlanState::Succeeded | PlanState::Failed);
                remaining += if ended { 0 } else { line.bytes };
            }
            self.evacuation_remaining
                .get_or_create(&EvacuationName { evacuation: name.clone() })
                .set(gauge(remaining));
        }
    }
}

/// The state of a VM, in the words that people use.
fn state_of(vm: &Vm) -> &'static str {
    let wanted = matches!(vm.run, RunStrategy::Always | RunStrategy::RerunOnFailure);
    match &vm.instance {
        Some(instance) if instance.paused.is_some() => "Paused",
        Some(instance) if instance.migrating.is_some() => "Migrating",
        Some(instance) if instance.phase == "Running" => "Running",
        Some(instance) if matches!(instance.phase.as_str(), "Succeeded" | "Failed") && !wanted => "Stopped",
        Some(_) => "Starting",
        None if wanted => "NotRunning",
        None => "Stopped",
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use somersault_coordinator_core::fleet::{
        Claim, ClaimRef, DiskHealth, Host, NodeSelector, Requirement, StorageRoot, Usage, Volume, VolumeMode,
        VolumeSource,
    };

    use super::super::Metrics;
    use super::*;

    const GIB: u64 = 1 << 30;

    /// One node with a failing disk, a root, and a claim's volume in it.
    fn fleet() -> Fleet {
        let root = StorageRoot {
            path: "/data".into(),
            class: "local-path".into(),
            depth: 1,
            shared: false,
            size_bytes: 100 * GIB,
            available_bytes: 40 * GIB,
            read_only: false,
            disk: Some("sda".into()),
            listed_age: None,
        };
        let usage =
            Usage { allocated_bytes: 3 * GIB, apparent_bytes: 10 * GIB, inodes: 2, ..Usage::default() };
        let disk = DiskHealth {
            grade: Grade::Failing,
            reasons: vec!["PendingSectors".into()],
            model: String::new(),
            serial: String::new(),
        };
        let report = NodeReport {
            roots: vec![root],
            usage: [("/data/pv-1".to_owned(), usage), ("/data/lost".to_owned(), usage)].into(),
            disks: [("sda".to_owned(), disk)].into(),
            host: Host { cpu_ratio: 0.5, memory_total_bytes: GIB, ..Host::default() },
            ..NodeReport::default()
        };
        let on_n1 = Requirement {
            key: "kubernetes.io/hostname".into(),
            operator: "In".into(),
            values: vec!["n1".into()],
        };
        let key = Key::new("shop", "db-data");
        let volume = Volume {
            source: VolumeSource::Local { path: "/data/pv-1".into() },
            node_affinity: Some(NodeSelector { terms: vec![vec![on_n1]] }),
            provisioned_by: None,
            class: "local-path".into(),
            capacity_bytes: 10 * GIB,
            access_modes: Vec::new(),
            mode: VolumeMode::Filesystem,
            retained: true,
            claim: Some(ClaimRef { key: key.clone(), uid: Some(Uid("u".into())) }),
            phase: "Bound".into(),
            created: None,
            deleting: false,
        };
        let claim = Claim {
            uid: Uid("u".into()),
            volume: Some("pv-1".into()),
            class: "local-path".into(),
            requested_bytes: 8 * GIB,
            access_modes: Vec::new(),
            mode: VolumeMode::Filesystem,
            phase: "Bound".into(),
            data_volume: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            deleting: false,
        };
        Fleet {
            reports: [("n1".into(), report)].into(),
            volumes: [("pv-1".into(), volume)].into(),
            claims: [(key, claim)].into(),
            ..Fleet::default()
        }
    }

    fn text(metrics: &Metrics) -> String {
        metrics.cluster(&Facts { fleet: &fleet(), view: &View::default(), rows: &[] });
        metrics.text().unwrap()
    }

    #[test]
    fn volumes_roots_and_disks_are_shown_with_their_claims_and_nodes() {
        let metrics = Metrics::default();
        metrics.leading(true);
        let text = text(&metrics);
        let volume =
            r#"{namespace="shop",persistentvolumeclaim="db-data",persistentvolume="pv-1",node="n1"}"#;
        for line in [
            format!("somersault_volume_used_bytes{volume} {}", 3 * GIB),
            format!("somersault_volume_requested_bytes{volume} {}", 8 * GIB),
            format!(r#"somersault_filesystem_requested_bytes{{node="n1",root="/data"}} {}"#, 8 * GIB),
            format!(r#"somersault_orphaned_bytes{{node="n1",root="/data"}} {}"#, 3 * GIB),
            format!(r#"somersault_filesystem_avail_bytes{{node="n1",root="/data"}} {}"#, 40 * GIB),
            r#"somersault_device_health_status{node="n1",disk="sda",status="Failing"} 1"#.to_owned(),
            r#"somersault_device_health_status{node="n1",disk="sda",status="Ok"} 0"#.to_owned(),
            r#"somersault_device_health_reason{node="n1",disk="sda",reason="PendingSectors"} 1"#.to_owned(),
            r#"somersault_node_cpu_used_ratio{node="n1"} 0.5"#.to_owned(),
        ] {
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
    }

    /// Else every sum over the replicas would be a multiple.
    #[test]
    fn only_the_leader_shows_the_cluster() {
        let metrics = Metrics::default();
        assert!(!text(&metrics).contains(r#"node="n1""#), "before it leads");
        metrics.leading(true);
        assert!(text(&metrics).contains(r#"node="n1""#), "while it leads");
        metrics.leading(false);
        assert!(!metrics.text().unwrap().contains(r#"node="n1""#), "after that");
    }
}
