//! The rows of `status`: the objects joined, for people and machines alike.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use somersault_coordinator_core::decision::report;
use somersault_coordinator_core::names::NodeName;
use somersault_crd::Evacuation;
use somersault_crd::common::{Destination, Proof};
use somersault_crd::evacuation::PlanState;
use somersault_crd::node_health::{DiskGrade, DiskInfo, NodeHealthStatus, NodeState};
use somersault_crd::volume_migration::{Phase, VolumeMigration};

use super::super::incident;
use super::super::recoveries;
use super::super::storage::grade_mood;
use super::super::verdict::{self, Verdict};
use crate::output::{self, Mood};
use crate::units;
use crate::wait;
use crate::world::World;

mod ended;
pub mod volumes;

pub use ended::Ended;
pub use volumes::VolumeRow;

/// Everything.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Whether a coordinator leads now; absent for a dump.
    pub coordinator_leads: Option<bool>,
    /// Nodes whose silence is held back, by name, where any is.
    pub storm_hold: Option<String>,
    /// Nodes.
    pub nodes: Vec<NodeRow>,
    /// VMs.
    pub vms: Vec<VmRow>,
    /// Claims with their volumes, and volumes without a claim.
    pub volumes: Vec<VolumeRow>,
    /// Migrations, those that have ended lately included.
    pub migrations: Vec<MigrationRow>,
    /// Evacuations, those that have ended lately included.
    pub evacuations: Vec<EvacuationRow>,
    /// How many of both ended so long ago that they are left out.
    pub ended_long_ago: usize,
    /// Manifests that could not be read: file, document, object, what is wrong.
    pub problems: Vec<String>,
}

/// A node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRow {
    pub name: String,
    /// State as the coordinator sees it; without a coordinator what the Node object says.
    pub state: String,
    pub since: Option<String>,
    #[serde(skip)]
    pub since_age: Option<String>,
    pub zone: String,
    /// The proof at hand that it is dead.
    pub proof: Option<Proof>,
    /// The proofs that it could offer if it died now.
    pub proofs_possible: Vec<String>,
    pub disks: Vec<DiskInfo>,
    pub message: String,
}

/// A VM.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VmRow {
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The node that it runs on, or last ran on.
    pub runs_on: Option<String>,
    /// Phase of its instance, in doubt where its node is.
    pub running: String,
    /// How far its recovery is, where its node died or its storage broke.
    pub recovery: Option<String>,
    /// What is being done to bring it back, while it is: until it runs, no node can die under it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub under_way: Option<&'static str>,
}

/// A migration.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MigrationRow {
    pub namespace: String,
    pub name: String,
    pub subject: String,
    pub destination: String,
    pub phase: String,
    #[serde(skip)]
    phase_value: Phase,
    pub done_bytes: u64,
    pub total_bytes: u64,
    pub rate_bytes_per_second: u64,
    pub downtime_ms: Option<u64>,
    pub message: String,
}

/// An evacuation.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EvacuationRow {
    pub name: String,
    pub subject: String,
    pub planned: usize,
    pub succeeded: usize,
    pub failed: usize,
    pub state: &'static str,
    pub message: String,
}

impl Status {
    /// What the objects say; VMs, claims and migrations of one namespace where one is given.
    pub fn of(world: &World, namespace: Option<&str>, ended: Ended) -> Self {
        let wanted = |have: &str| namespace.is_none_or(|want| have == want);
        let nodes = node_rows(world);
        let held: Vec<&str> =
            nodes.iter().filter(|row| row.state == "StormHold").map(|row| row.name.as_str()).collect();
        let migrations = world.migrations.iter().filter(|(key, _)| wanted(&key.namespace));
        let (migrations, old_migrations): (Vec<_>, Vec<_>) = migrations.partition(|(_, migration)| {
            ended.shows(migration.status.as_ref().map_or(&[], |status| status.conditions.as_slice()))
        });
        let (evacuations, old_evacuations): (Vec<_>, Vec<_>) =
            world.evacuations.iter().partition(|(_, evacuation)| {
                ended.shows(evacuation.status.as_ref().map_or(&[], |status| status.conditions.as_slice()))
            });
        Self {
            storm_hold: (!held.is_empty()).then(|| held.join(", ")),
            vms: vm_rows(world).into_iter().filter(|row| wanted(&row.verdict.namespace)).collect(),
            volumes: volumes::rows(world, namespace),
            ended_long_ago: old_migrations.len() + old_evacuations.len(),
            migrations: migrations
                .into_iter()
                .map(|(key, object)| MigrationRow::of(&key.namespace, &key.name, object))
                .collect(),
            evacuations: evacuations
                .into_iter()
                .map(|(name, object)| EvacuationRow::of(name, object))
                .collect(),
            problems: world.problems.iter().map(output::describe).collect(),
            coordinator_leads: world.led,
            nodes,
        }
    }
}

fn node_rows(world: &World) -> Vec<NodeRow> {
    let proofs = world.proofs();
    let mut names: Vec<&NodeName> = world.fleet.nodes.keys().chain(world.healths.keys()).collect();
    names.sort();
    names.dedup();
    let now = Timestamp::now();
    let row = |name: &NodeName| {
        let status = world.healths.get(name).and_then(|health| health.status.as_ref());
        let node = world.fleet.nodes.get(name);
        let since = status.and_then(|status| status.since.as_ref()).map(|since| since.0);
        NodeRow {
            name: name.to_string(),
            state: match (status, node) {
                (Some(status), _) => format!("{:?}", status.state),
                (None, Some(node)) if node.ready => "NoAgent (Ready)".to_owned(),
                (None, _) => "NoAgent (NotReady)".to_owned(),
            },
            since: since.map(|since| since.to_string()),
            since_age: since.map(|since| units::age(since, now)),
            zone: node.map(|node| node.zone().to_owned()).unwrap_or_default(),
            proof: status.and_then(|status| status.proof),
            proofs_possible: proofs.get(name).into_iter().flatten().map(|kind| format!("{kind:?}")).collect(),
            disks: status.map(|status| status.disks.clone()).unwrap_or_default(),
            message: status.map(|status| status.message.clone()).unwrap_or_default(),
        }
    };
    names.into_iter().map(row).collect()
}

impl NodeRow {
    /// The proof at hand, else those that the node could offer.
    pub fn proof_words(&self) -> String {
        match (&self.proof, self.proofs_possible.as_slice()) {
            (Some(proof), _) => format!("given: {proof:?}"),
            (None, []) => "none possible".to_owned(),
            (None, possible) => format!("possible: {}", possible.join(", ")),
        }
    }

    /// The disks that are not well, else how many are, and of how many nothing is known.
    pub fn disks_words(&self) -> (String, Mood) {
        let bad: Vec<String> = self
            .disks
            .iter()
            .filter(|disk| !matches!(disk.grade, DiskGrade::Ok | DiskGrade::Unknown))
            .map(|disk| format!("{} {:?} ({})", disk.name, disk.grade, disk.reasons.join(", ")))
            .collect();
        let worst = self.disks.iter().map(|disk| disk.grade).max();
        let mood = worst.map_or(Mood::Plain, grade_mood);
        let words = match (worst, bad.is_empty()) {
            (None, _) => String::new(),
            (_, false) => bad.join("; "),
            (_, true) => {
                let well = self.disks.iter().filter(|disk| disk.grade == DiskGrade::Ok).count();
                match (well, self.disks.len() - well) {
                    (0, unknown) => format!("{unknown} unknown"),
                    (well, 0) => format!("{well} Ok"),
                    (well, unknown) => format!("{well} Ok, {unknown} unknown"),
                }
            }
        };
        (words, mood)
    }

    /// How good its state is.
    pub fn state_mood(&self) -> Mood {
        match self.state.as_str() {
            "Healthy" => Mood::Good,
            "AwaitingProof" | "Fenced" | "FenceContradicted" | "StormHold" => Mood::Bad,
            "Suspect" | "AgentSilent" | "Partitioned" | "Recovering" | "Quarantine" => Mood::Doubtful,
            _ => Mood::Plain,
        }
    }
}

fn vm_rows(world: &World) -> Vec<VmRow> {
    let report =
        report(&world.fleet, &world.policy.class_overrides, &world.proofs(), &world.expected_times());
    report
        .into_iter()
        .filter_map(|row| {
            let vm = world.fleet.vms.get(&row.vm)?;
            let runs_on = vm.node().cloned();
            let running = match &vm.instance {
                Some(_) if runs_on.as_ref().is_some_and(|node| incident::is_proven(world, node)) => {
                    "no, its node is dead".to_owned()
                }
                Some(instance) if runs_on.as_ref().is_some_and(|node| in_doubt(world, node)) => {
                    format!("in doubt (was {})", instance.phase)
                }
                Some(instance) if instance.paused.is_some() => format!("{} (paused)", instance.phase),
                Some(instance) if instance.phase.is_empty() => "Pending".to_owned(),
                Some(instance) => instance.phase.clone(),
                None => "no".to_owned(),
            };
            let recovery = world.recoveries.get(&row.vm);
            let recovery = recovery.map(|recovery| recoveries::Row::of(world, &row.vm, recovery));
            Some(VmRow {
                verdict: Verdict::of_report(world, &row),
                runs_on: runs_on.map(|node| node.to_string()),
                running,
                under_way: recovery.as_ref().and_then(recoveries::Row::under_way),
                recovery: recovery.map(|recovery| recovery.words()),
            })
        })
        .collect()
}

/// What a VM's objects say about a node in this state may be long out of date.
fn in_doubt(world: &World, node: &NodeName) -> bool {
    let status: Option<&NodeHealthStatus> = world.healths.get(node).and_then(|health| health.status.as_ref());
    match status.map(|status| status.state) {
        Some(NodeState::NoAgent) | None => world.fleet.nodes.get(node).is_none_or(|node| !node.ready),
        Some(state) => !matches!(state, NodeState::Healthy | NodeState::Quarantine),
    }
}

impl VmRow {
    pub fn running_mood(&self) -> Mood {
        match self.running.as_str() {
            "Running" => Mood::Good,
            "no" => Mood::Plain,
            _ => Mood::Doubtful,
        }
    }

    /// The decision with its first reason; while it is being brought back, that.
    pub fn decision_words(&self) -> String {
        if let Some(what) = self.under_way {
            return format!("under way: {what}");
        }
        let reason = self.verdict.reasons.first().map_or("", |reason| reason.as_str());
        format!("{} ({reason})", verdict::decision_name(self.verdict.decision))
    }

    pub fn decision_mood(&self) -> Mood {
        if self.under_way.is_some() {
            return Mood::Doubtful;
        }
        verdict::decision_mood(self.verdict.decision)
    }
}

impl MigrationRow {
    fn of(namespace: &str, name: &str, object: &VolumeMigration) -> Self {
        let spec = &object.spec;
        let status = object.status.clone().unwrap_or_default();
        let progress = status.progress.clone().unwrap_or_default();
        let message = match &status.reason {
            Some(reason) => format!("{reason}: {}", status.message),
            None => wait::waits_for(&status).unwrap_or_else(|| status.message.clone()),
        };
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            subject: match (&spec.vm, &spec.claim) {
                (Some(vm), _) => format!("VM {vm}"),
                (None, Some(claim)) => format!("claim {claim}"),
                (None, None) => String::new(),
            },
            destination: destination_words(Some(&spec.destination)),
            phase: format!("{:?}", status.phase),
            phase_value: status.phase,
            done_bytes: progress.done_bytes,
            total_bytes: progress.total_bytes,
            rate_bytes_per_second: progress.rate_bytes_per_second,
            downtime_ms: status.downtime_ms,
            message,
        }
    }

    pub fn mood(&self) -> Mood {
        match self.phase_value {
            Phase::Succeeded => Mood::Good,
            Phase::Failed => Mood::Bad,
            Phase::RollingBack | Phase::RolledBack | Phase::Cancelled => Mood::Doubtful,
            _ => Mood::Plain,
        }
    }
}

impl EvacuationRow {
    fn of(name: &str, object: &Evacuation) -> Self {
        let spec = &object.spec;
        let status = object.status.clone().unwrap_or_default();
        let mut count: BTreeMap<PlanState, usize> = BTreeMap::new();
        for planned in &status.plan {
            *count.entry(planned.state).or_default() += 1;
        }
        let of = |state| count.get(&state).copied().unwrap_or(0);
        let disk = spec.disk.as_ref().map_or_else(String::new, |disk| format!(", disk {disk}"));
        let to = destination_words(spec.destination.as_ref());
        Self {
            name: name.to_owned(),
            subject: format!("node {}{disk}, to {to}", spec.node),
            planned: status.plan.len(),
            succeeded: of(PlanState::Succeeded),
            failed: of(PlanState::Failed),
            state: match (status.complete, spec.dry_run, spec.cancelled, of(PlanState::PreCopied) > 0) {
                (_, true, ..) => "DryRun",
                (true, ..) => "Complete",
                (_, _, true, _) => "Cancelling",
                (.., true) => "WaitsForProceed",
                _ => "Running",
            },
            message: status.message,
        }
    }
}

fn destination_words(destination: Option<&Destination>) -> String {
    match destination {
        Some(Destination { node: Some(node), .. }) => format!("node {node}"),
        Some(Destination { storage_class: Some(class), .. }) => format!("class {class}"),
        _ => "any node that fits".to_owned(),
    }
}
