//! A decision of the core as a row: the same fields in every command that shows one.

use serde::Serialize;
use somersault_coordinator_core::decision::{
    Decision, DecisionKind, DiskFinding, Locality, Reason, ReportRow,
};
use somersault_coordinator_core::names::NodeName;
use somersault_crd::recovery::RecoveryStatus;

use super::{incident, migrate, recoveries};
use crate::output::{Mood, cell, render, table};
use crate::world::World;

/// What becomes of a VM.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Namespace of the VM.
    pub namespace: String,
    /// Name of the VM.
    pub name: String,
    /// The node that is supposed to die.
    pub node: Option<String>,
    /// It is dead now, and no more supposed to be.
    pub node_is_dead: bool,
    /// `Recreate`, `Rebuild`, `ManualRecovery` or `NothingToDo`.
    pub decision: DecisionKind,
    /// Why, the most telling first.
    pub reasons: Vec<Reason>,
    /// Of these, what is broken already, whether its node dies or not.
    pub broken_storage: Vec<Reason>,
    /// The reasons in sentences.
    pub details: Vec<String>,
    /// Nodes on which it may run: each must be proven dead before anything is done elsewhere.
    pub proof_needed_for: Vec<String>,
    /// Its disks.
    pub disks: Vec<DiskRow>,
    /// What to do so that it fares better.
    pub remedy: String,
}

/// A disk of a VM.
#[derive(Clone, Debug, Serialize)]
pub struct DiskRow {
    /// Volume name in the VM.
    pub disk: String,
    /// Its claim.
    pub claim: Option<String>,
    /// Its `PersistentVolume`.
    pub volume: Option<String>,
    /// Its storage class.
    pub class: Option<String>,
    /// `Local`, `Network`, `Rebuildable`, `Lost` or `Unknown`.
    pub locality: &'static str,
    /// The node, for `Local`.
    pub node: Option<String>,
    /// How that is known.
    pub because: String,
}

impl Verdict {
    /// The decision, if this node died; where it is dead already, with what can be done now.
    pub fn of(world: &World, decision: &Decision, node: Option<&NodeName>) -> Self {
        Self::advising(world, decision, node, &decision.remedy)
    }

    /// The row of a report: what it advises is for a node that lives.
    pub fn of_report(world: &World, row: &ReportRow) -> Self {
        Self::advising(world, &row.decision, row.node.as_ref(), &row.remedy)
    }

    /// With this advice, unless the node is dead.
    fn advising(world: &World, decision: &Decision, node: Option<&NodeName>, advice: &str) -> Self {
        let unproven = decision.nodes.iter().filter(|node| !incident::is_proven(world, node));
        let told = recoveries::broken_storage(world, &decision.vm);
        let reasons = reasons(decision, told);
        let broken = reasons.iter().filter(|reason| reason.is_broken_storage());
        let remedy = incident::remedy(world, decision, node)
            .or_else(|| between_volumes(world, decision))
            .or_else(|| told.map(|told| told.remedy.clone()).filter(|remedy| !remedy.is_empty()));
        Self {
            namespace: decision.vm.namespace.clone(),
            name: decision.vm.name.clone(),
            node: node.map(ToString::to_string),
            node_is_dead: node.is_some_and(|node| incident::is_dead(world, node)),
            decision: decision.kind,
            broken_storage: broken.copied().collect(),
            reasons,
            details: decision.details.clone(),
            proof_needed_for: unproven.map(ToString::to_string).collect(),
            disks: decision.disks.iter().map(DiskRow::of).collect(),
            remedy: remedy.unwrap_or_else(|| advice.to_owned()),
        }
    }

    /// The disks as a table.
    pub fn disk_table(&self) -> String {
        let mut table =
            table(&["DISK", "CLAIM", "VOLUME", "CLASS", "WHERE", "BECAUSE"]).below(&["VOLUME", "BECAUSE"]);
        for disk in &self.disks {
            table.add_row([
                cell(&disk.disk),
                cell(disk.claim.as_deref().unwrap_or_default()),
                cell(disk.volume.as_deref().unwrap_or_default()),
                cell(disk.class.as_deref().unwrap_or_default()),
                cell(&disk.place()),
                cell(&disk.because),
            ]);
        }
        render(&table)
    }
}

/// The reasons of a decision, and before them what the coordinator tells of storage that is broken now: that is the most
/// telling.
fn reasons(decision: &Decision, told: Option<&RecoveryStatus>) -> Vec<Reason> {
    let told = told.map_or(&[][..], |told| &told.reasons);
    let is_told =
        |reason: &&Reason| reason.is_broken_storage() && told.iter().any(|it| it == reason.as_str());
    let mut reasons: Vec<Reason> = Reason::ALL.iter().filter(is_told).copied().collect();
    for reason in &decision.reasons {
        if !reasons.contains(reason) {
            reasons.push(*reason);
        }
    }
    reasons
}

/// What to do where a claim is missing because a migration is giving it another volume just now.
fn between_volumes(world: &World, decision: &Decision) -> Option<String> {
    if !decision.reasons.contains(&Reason::ClaimMissing) {
        return None;
    }
    let migration = migrate::under_way(world, &decision.vm, true)?;
    Some(format!("let migration {migration} end: it is giving the claim its new volume"))
}

/// Names of reasons, for people.
pub fn names(reasons: &[Reason]) -> String {
    reasons.iter().map(|reason| reason.as_str()).collect::<Vec<_>>().join(", ")
}

impl DiskRow {
    fn of(finding: &DiskFinding) -> Self {
        let (locality, node) = locality(&finding.locality);
        Self {
            disk: finding.disk.clone(),
            claim: finding.claim.clone(),
            volume: finding.volume.clone(),
            class: finding.class.clone(),
            locality,
            node,
            because: finding.because.clone(),
        }
    }

    /// The locality with its node, in a word or two.
    pub fn place(&self) -> String {
        match &self.node {
            Some(node) => format!("{} {node}", self.locality),
            None => self.locality.to_owned(),
        }
    }
}

/// Name of a locality, and its node.
pub fn locality(locality: &Locality) -> (&'static str, Option<String>) {
    match locality {
        Locality::Local { node } => ("Local", Some(node.to_string())),
        Locality::Network => ("Network", None),
        Locality::Rebuildable => ("Rebuildable", None),
        Locality::Lost => ("Lost", None),
        Locality::Unknown => ("Unknown", None),
    }
}

/// Name of a decision.
pub fn decision_name(kind: DecisionKind) -> &'static str {
    match kind {
        DecisionKind::Recreate => "Recreate",
        DecisionKind::Rebuild => "Rebuild",
        DecisionKind::ManualRecovery => "ManualRecovery",
        DecisionKind::NothingToDo => "NothingToDo",
    }
}

/// What a decision means, in a clause.
pub fn decision_meaning(kind: DecisionKind) -> &'static str {
    match kind {
        DecisionKind::Recreate => {
            "once the node is proven dead, it is started elsewhere from its disks on network storage"
        }
        DecisionKind::Rebuild => {
            "once the node is proven dead, its system disk is imported anew elsewhere and its data disks are attached; the old system disk is kept"
        }
        DecisionKind::ManualRecovery => "nothing is touched; a person follows the runbook",
        DecisionKind::NothingToDo => "nothing is done",
    }
}

/// How good a decision is.
pub fn decision_mood(kind: DecisionKind) -> Mood {
    match kind {
        DecisionKind::Recreate => Mood::Good,
        DecisionKind::Rebuild => Mood::Doubtful,
        DecisionKind::ManualRecovery => Mood::Bad,
        DecisionKind::NothingToDo => Mood::Plain,
    }
}
