//! What people see of the coordinator's view: the display part of our objects' status.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use somersault_coordinator_core::BootTime;
use somersault_coordinator_core::decision::{DiskFinding, Locality};
use somersault_coordinator_core::evacuation::{EvacuationRecord, PlanState};
use somersault_coordinator_core::fencing::agents::{CHANGE_REFUSED, FenceAgentView, FencingState};
use somersault_coordinator_core::fleet::{
    DiskHealth, DiskImage, Fleet, Grade, NodeReport, Volume, VolumeMode,
};
use somersault_coordinator_core::migration::{DiskMove, Phase};
use somersault_coordinator_core::names::{Key, NodeName, VolumeName};
use somersault_coordinator_core::view::{
    CopyView, MigrationView, NodeState, NodeView, RecoveryCause, RecoveryProgress, RecoveryView, RemovalView,
};
use somersault_crd as crd;
use somersault_crd::{common, node_health, volume_migration};

use super::convert::FieldError;
use super::records::same_name;

/// Turns readings of our own boot clock into wall-clock stamps, for people only.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    /// What the wall clock said when the boot clock said 0.
    pub boot: Timestamp,
}

impl WallClock {
    /// The wall-clock time of a reading; the epoch where that is out of range.
    pub fn at(&self, reading: BootTime) -> Timestamp {
        self.boot.checked_add(reading).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// A condition without its times, which its writer adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Type.
    pub kind: &'static str,
    /// `True` or `False`; `None` for `Unknown`: nobody can tell.
    pub holds: Option<bool>,
    /// `CamelCase`.
    pub reason: String,
    /// For people.
    pub message: String,
}

impl Verdict {
    fn new(
        kind: &'static str,
        holds: impl Into<Option<bool>>,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, holds: holds.into(), reason: reason.into(), message: message.into() }
    }
}

/// Display of a node; the record is left out.
pub fn node(
    name: &NodeName,
    view: &NodeView,
    places: &Places<'_>,
    clock: WallClock,
) -> Result<(crd::NodeHealthStatus, Vec<Verdict>), FieldError> {
    let mut status = crd::NodeHealthStatus {
        state: same_name(view.state, "status.state")?,
        since: Some(Time(clock.at(view.since))),
        message: view.message.clone(),
        boot_id: view.boot_id.as_ref().map(|id| id.0.clone()),
        proof: view.proof.map(|proof| same_name(proof, "status.proof")).transpose()?,
        proofs_possible: same_name(&view.proofs_possible, "status.proofsPossible")?,
        ..crd::NodeHealthStatus::default()
    };
    for (milestone, at) in &view.timeline {
        let milestone = same_name(milestone, "status.timeline")?;
        status.timeline.push(node_health::TimelineEntry { milestone, at: MicroTime(clock.at(*at)) });
    }
    if let Some(report) = &view.report {
        add_report(&mut status, name, report, places)?;
    }
    let verdicts = node_verdicts(view, clock);
    Ok((status, verdicts))
}

/// `None` for a time beyond all calendars: a certificate of a test that never ends.
fn time_of_second(seconds: u64) -> Option<Time> {
    i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok()).map(Time)
}

fn add_report(
    status: &mut crd::NodeHealthStatus,
    name: &NodeName,
    report: &NodeReport,
    places: &Places<'_>,
) -> Result<(), FieldError> {
    status.agent = Some(node_health::AgentInfo {
        address: report.address.clone(),
        version: report.agent_version.clone(),
        certificate_not_after: report.certificate_until_s.and_then(time_of_second),
        pods: report.pods.clone(),
    });
    status.host = Some(node_health::HostInfo {
        cpu_ratio: rounded(report.host.cpu_ratio),
        memory_total_bytes: report.host.memory_total_bytes,
        memory_available_bytes: report.host.memory_available_bytes,
        load1: rounded(report.host.load1),
        io_pressure_ratio: report.host.io_pressure_ratio.map(rounded),
    });
    for (disk, health) in &report.disks {
        status.disks.push(node_health::DiskInfo {
            name: disk.clone(),
            grade: same_name(health.grade, "status.disks.grade")?,
            reasons: health.reasons.clone(),
            model: health.model.clone(),
            serial: health.serial.clone(),
        });
    }
    status.roots.extend(report.roots.iter().map(|root| node_health::RootInfo {
        path: root.path.clone(),
        class: root.class.clone(),
        depth: (root.depth != 1).then_some(root.depth),
        shared: root.shared,
        size_bytes: root.size_bytes,
        available_bytes: root.available_bytes,
        read_only: root.read_only,
        disk: root.disk.clone(),
        listed_age_ms: root.listed_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
    }));
    for (path, usage) in &report.usage {
        let (volume, claim) = places.volume_at(name, path);
        status.volumes.push(node_health::VolumeInfo {
            path: path.clone(),
            volume,
            claim,
            allocated_bytes: usage.allocated_bytes,
            apparent_bytes: usage.apparent_bytes,
            inodes: usage.inodes,
            disk_image: disk_image(usage.disk_image),
        });
    }
    Ok(())
}

fn disk_image(image: DiskImage) -> Option<node_health::DiskImage> {
    match image {
        DiskImage::Untold => None,
        DiskImage::Present => Some(node_health::DiskImage::Present),
        DiskImage::Absent => Some(node_health::DiskImage::Absent),
        DiskImage::Vanished => Some(node_health::DiskImage::Vanished),
    }
}

/// Where the volumes of a fleet are, by their folders: asked for every folder of every node.
#[derive(Debug)]
pub struct Places<'a> {
    fleet: &'a Fleet,
    by_path: HashMap<&'a str, Vec<(&'a VolumeName, &'a Volume)>>,
}

impl<'a> Places<'a> {
    /// Of this fleet.
    pub fn of(fleet: &'a Fleet) -> Self {
        let mut by_path: HashMap<_, Vec<_>> = HashMap::new();
        for (name, volume) in &fleet.volumes {
            if let (VolumeMode::Filesystem, Some(path)) = (volume.mode, volume.source.path()) {
                by_path.entry(path).or_default().push((name, volume));
            }
        }
        Self { fleet, by_path }
    }

    /// The volume whose folder this is on the node, and the claim bound to it.
    fn volume_at(&self, name: &NodeName, path: &str) -> (Option<String>, Option<String>) {
        let node = self.fleet.nodes.get(name);
        let found = self.by_path.get(path).into_iter().flatten().find(|(_, volume)| {
            match (&volume.node_affinity, node) {
                (Some(selector), Some(node)) => selector.matches(name, node),
                (Some(_), None) => false,
                (None, _) => true,
            }
        });
        let Some((volume, facts)) = found else { return (None, None) };
        let claim = facts.claim.as_ref().filter(|claim| claim.uid.is_some());
        (Some(volume.0.clone()), claim.map(|claim| claim.key.to_string()))
    }
}

fn node_verdicts(view: &NodeView, clock: WallClock) -> Vec<Verdict> {
    let reachable = matches!(view.state, NodeState::Healthy | NodeState::Quarantine);
    let mut verdicts = vec![Verdict::new("Reachable", reachable, format!("{:?}", view.state), &view.message)];
    verdicts.extend(view.report.as_ref().and_then(|report| disks_healthy(&report.disks)));
    let proofs: Vec<String> = view.proofs_possible.iter().map(|proof| format!("{proof:?}")).collect();
    let reason = if proofs.is_empty() { "NoProofPossible" } else { "ProofPossible" };
    verdicts.push(Verdict::new("ProofPossible", !proofs.is_empty(), reason, proofs.join(", ")));
    verdicts.extend(view.fence_agent.as_ref().and_then(|agent| fencing_answers(agent, clock)));
    verdicts
}

/// People read three digits.
fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

/// By the worst disk. One that tells nothing is neither sound nor failing: it is counted, and alone it is Unknown.
fn disks_healthy(disks: &BTreeMap<String, DiskHealth>) -> Option<Verdict> {
    let (disk, health) = disks.iter().max_by_key(|(_, health)| health.grade)?;
    let unknown = disks.values().filter(|health| health.grade == Grade::Unknown).count();
    let reason = format!("{:?}", health.grade);
    if health.grade == Grade::Unknown {
        let message = format!("{unknown} disks, and none tells anything (no SMART, no errors counted)");
        return Some(Verdict::new("DisksHealthy", None, reason, message));
    }
    let silent = match unknown {
        0 => String::new(),
        unknown => format!("; {unknown} of {} disks tell nothing", disks.len()),
    };
    let reasons = health.reasons.join(", ");
    let message = format!("{}{silent}", format!("{disk} is the worst: {reason} {reasons}").trim_end());
    Some(Verdict::new("DisksHealthy", health.grade <= Grade::Warning, reason, message))
}

/// Nothing is said before the agent was asked for the first time.
fn fencing_answers(agent: &FenceAgentView, clock: WallClock) -> Option<Verdict> {
    let what = match &agent.state {
        FencingState::Untested => return None,
        FencingState::Answers => "its fence agent says that the machine is on".to_owned(),
        FencingState::AnswersNot { why } => format!("its fence agent does not answer: {why}"),
        FencingState::RunnerAway { why } => format!("no fence agent can be run: {why}"),
        FencingState::WrongMachine => {
            "its fence agent said off while the node was beating: it looks at another machine, and is not run"
                .to_owned()
        }
        FencingState::NotConfigured { why } => {
            let message = format!("it has no fence agent: {why}");
            return Some(Verdict::new("FencingAnswers", false, agent.state.name(), message));
        }
    };
    let refused = agent.change_refused.as_ref();
    let refused = refused
        .map_or_else(String::new, |why| format!("; a change of its configuration is not in use: {why}"));
    let answered = agent.answered.map_or_else(
        || "it never answered".to_owned(),
        |at| format!("last answered {}", clock.at(at).strftime("%Y-%m-%dT%H:%M:%SZ")),
    );
    let holds = agent.state == FencingState::Answers;
    let reason = if holds && agent.change_refused.is_some() { CHANGE_REFUSED } else { agent.state.name() };
    Some(Verdict::new("FencingAnswers", holds, reason, format!("{what}; {answered}{refused}")))
}

/// Condition of a migration or an evacuation that has ended, or why not yet.
pub const COMPLETE: &str = "Complete";
/// Condition of a migration or an evacuation that has ended well: who waits for the end alone must not take a failure for
/// success.
pub const SUCCEEDED: &str = "Succeeded";
/// Condition of a migration whose old volumes somebody asked to be removed: they are, or why not yet.
pub const OLD_VOLUMES_REMOVED: &str = "OldVolumesRemoved";
/// Its reason once they are.
pub const REMOVED: &str = "Removed";
/// Its reason while nothing is in the way.
pub const UNDER_WAY: &str = "UnderWay";
/// Condition of a Recovery whose incident is over, or whose storage is sound again.
pub const ENDED: &str = "Ended";

/// Display of a VM's recovery.
pub fn recovery(view: &RecoveryView) -> Result<(crd::RecoveryStatus, Vec<Verdict>), FieldError> {
    let decision = &view.decision;
    let reasons: Vec<String> = decision.reasons.iter().map(|reason| reason.as_str().to_owned()).collect();
    let reason = reasons.first().cloned().unwrap_or_default();
    let recovered = view.progress == RecoveryProgress::Recovered;
    let ended = match view.cause {
        RecoveryCause::NodeDied if view.ended => {
            Verdict::new(ENDED, true, "IncidentOver", "the node's incident is over")
        }
        RecoveryCause::NodeDied => {
            Verdict::new(ENDED, false, "IncidentGoesOn", "the node's incident is not over")
        }
        RecoveryCause::StorageFailed if recovered => {
            Verdict::new(ENDED, true, "StorageSound", "nothing of it is broken any more")
        }
        RecoveryCause::StorageFailed => Verdict::new(ENDED, false, "StorageBroken", "its storage is broken"),
    };
    let remedy = view.remedy();
    let verdicts = vec![
        Verdict::new("Decided", true, reason, format!("{:?}", decision.kind)),
        Verdict::new("Recovered", recovered, format!("{:?}", view.progress), &remedy),
        ended,
    ];
    let status = crd::RecoveryStatus {
        cause: Some(same_name(view.cause, "status.cause")?),
        node: view.node.as_ref().map(|node| node.0.clone()).unwrap_or_default(),
        decision: Some(same_name(decision.kind, "status.decision")?),
        reasons,
        remedy,
        disks: decision.disks.iter().map(disk).collect(),
        progress: Some(same_name(view.progress, "status.progress")?),
        proof: view.proof.map(|proof| same_name(proof, "status.proof")).transpose()?,
        runbook: view.runbook.clone(),
        ..crd::RecoveryStatus::default()
    };
    Ok((status, verdicts))
}

fn disk(finding: &DiskFinding) -> common::DiskFinding {
    let (locality, node) = match &finding.locality {
        Locality::Local { node } => (common::Locality::Local, Some(node.0.clone())),
        Locality::Network => (common::Locality::Network, None),
        Locality::Rebuildable => (common::Locality::Rebuildable, None),
        Locality::Lost => (common::Locality::Lost, None),
        Locality::Unknown => (common::Locality::Unknown, None),
    };
    common::DiskFinding {
        disk: finding.disk.clone(),
        claim: finding.claim.clone(),
        volume: finding.volume.clone(),
        class: finding.class.clone(),
        locality,
        node,
        because: finding.because.clone(),
    }
}

/// Display of a migration: what is not in its record.
pub fn migration(view: &MigrationView) -> (crd::VolumeMigrationStatus, Vec<Verdict>) {
    let record = &view.record;
    // Of one that is over, what was copied.
    let of_disk = |disk: &DiskMove| {
        let total_bytes = disk.copied.as_ref()?.total_bytes;
        Some((disk.claim.clone(), CopyView { done_bytes: total_bytes, total_bytes, rate_bytes_per_s: 0 }))
    };
    let mut copies: BTreeMap<Key, CopyView> = record.disks.iter().filter_map(of_disk).collect();
    if !record.phase.is_final() || copies.is_empty() {
        copies.clone_from(&view.copies);
    }
    let all = copies.values().fold(CopyView::default(), |sum, copy| sum.and(*copy));
    let volumes = copies.iter().map(|(claim, copy)| volume_migration::VolumeProgress {
        claim: claim.name.clone(),
        done_bytes: copy.done_bytes,
        total_bytes: copy.total_bytes,
        rate_bytes_per_second: copy.rate_bytes_per_s,
    });
    let status = crd::VolumeMigrationStatus {
        progress: Some(volume_migration::CopyProgress {
            done_bytes: all.done_bytes,
            total_bytes: all.total_bytes,
            rate_bytes_per_second: all.rate_bytes_per_s,
            seconds_left: all.left().map(|left| left.as_secs()),
            volumes: volumes.collect(),
        }),
        ..crd::VolumeMigrationStatus::default()
    };
    let reason = record.reason.clone().unwrap_or_else(|| format!("{:?}", record.phase));
    let well = record.phase == Phase::Succeeded;
    let complete = Verdict::new(COMPLETE, record.phase.is_final(), reason.clone(), &record.message);
    let mut verdicts = vec![complete, Verdict::new(SUCCEEDED, well, reason, &record.message)];
    verdicts.extend(view.removal.as_ref().map(removal));
    (status, verdicts)
}

fn removal(view: &RemovalView) -> Verdict {
    match view {
        RemovalView::Removed => {
            Verdict::new(OLD_VOLUMES_REMOVED, true, REMOVED, "objects and folders are gone")
        }
        RemovalView::UnderWay => {
            Verdict::new(OLD_VOLUMES_REMOVED, false, UNDER_WAY, "asked, and not done yet")
        }
        RemovalView::Kept(why) => Verdict::new(OLD_VOLUMES_REMOVED, false, why.reason, &why.message),
    }
}

/// Display of an evacuation: its conditions; the rest is its record.
pub fn evacuation(record: &EvacuationRecord) -> Vec<Verdict> {
    let of = |state| record.plan.iter().filter(move |line| line.state == state).count();
    let planned = format!("{} migrations", record.plan.len());
    let reason = if !record.complete {
        "InProgress"
    } else if record.plan.is_empty() {
        // Refused, or there was nothing: the message tells.
        "NothingMoved"
    } else if of(PlanState::Failed) > 0 {
        "SomeFailed"
    } else {
        "AllMoved"
    };
    vec![
        Verdict::new("Planned", true, "Planned", planned),
        Verdict::new(COMPLETE, record.complete, reason, &record.message),
        Verdict::new(SUCCEEDED, reason == "AllMoved", reason, &record.message),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disks(grades: &[Grade]) -> Option<Verdict> {
        let health =
            |grade| DiskHealth { grade, reasons: Vec::new(), model: String::new(), serial: String::new() };
        let named = grades.iter().enumerate().map(|(n, grade)| (format!("sd{n}"), health(*grade)));
        disks_healthy(&named.collect())
    }

    #[test]
    fn a_disk_that_tells_nothing_is_neither_healthy_nor_failing() {
        use Grade::{Failing, Ok, Unknown, Warning};
        let cases: [(&[Grade], Option<bool>, &str); 6] = [
            (&[Unknown, Unknown], None, "Unknown"),
            (&[Ok, Ok], Some(true), "Ok"),
            (&[Ok, Unknown], Some(true), "Ok"),
            (&[Ok, Warning], Some(true), "Warning"),
            (&[Failing, Ok], Some(false), "Failing"),
            (&[Unknown, Failing], Some(false), "Failing"),
        ];
        for (grades, holds, reason) in cases {
            let verdict = disks(grades).expect("there are disks");
            assert_eq!((verdict.holds, verdict.reason.as_str()), (holds, reason), "{grades:?}");
            let counted = verdict.message.contains("tell");
            assert_eq!(counted, grades.contains(&Unknown), "{}", verdict.message);
        }
        assert_eq!(disks(&[]), None);
    }

    /// Who waits for `Complete` alone would take a failure for success.
    #[test]
    fn an_end_is_told_apart_from_success() {
        let record = |complete: bool, states: &[PlanState]| {
            let line = |state: &PlanState| {
                serde_json::from_value(serde_json::json!({
                    "migration": {"namespace": "a", "name": "m"}, "subject": {"namespace": "a", "name": "vm"},
                    "is_vm": true, "bytes": 1, "state": state, "message": "",
                }))
            };
            EvacuationRecord {
                name: "n1".to_owned(),
                uid: "u".into(),
                epoch: 1,
                plan: states.iter().map(line).collect::<Result<_, _>>().expect("a plan"),
                complete,
                message: String::new(),
            }
        };
        let holds = |record: &EvacuationRecord| {
            let verdicts = evacuation(record);
            let of =
                |kind: &str| verdicts.iter().find(|verdict| verdict.kind == kind).and_then(|it| it.holds);
            (of(COMPLETE), of(SUCCEEDED))
        };
        let (well, failed) = (PlanState::Succeeded, PlanState::Failed);
        assert_eq!(holds(&record(false, &[well])), (Some(false), Some(false)));
        assert_eq!(holds(&record(true, &[well, failed])), (Some(true), Some(false)));
        assert_eq!(holds(&record(true, &[well, well])), (Some(true), Some(true)));
    }
}
