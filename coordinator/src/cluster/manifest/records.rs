//! The coordinator's records, to and from the status of our objects.
//!
//! What is read back decides over lives of VMs, and somebody may have edited it: a record that contradicts
//! itself is refused, never guessed.

use serde::Serialize;
use serde::de::DeserializeOwned;
use somersault_coordinator_core::evacuation::{EvacuationRecord, Planned};
use somersault_coordinator_core::fencing::{FenceRecord, FenceStage};
use somersault_coordinator_core::fleet::{Owner, SavedStart};
use somersault_coordinator_core::io::{ClaimTemplate, NewVolume};
use somersault_coordinator_core::migration::{Check, Copied, DiskMove, Guest, MigrationRecord};
use somersault_coordinator_core::names::{BootId, Key, NodeName, Uid, VolumeName};
use somersault_coordinator_core::rebuild::{DeadPod, RebuildRecord, RebuiltDisk};
use somersault_crd as crd;
use somersault_crd::common::ObjectKey;
use somersault_crd::{evacuation as evac, node_health, recovery, volume_migration as vmig};

use super::convert::FieldError;

/// `kind` of a VM that nobody stands above, in a stored owner.
const OWN_KIND: &str = "VirtualMachine";
/// `kind` of a Wukong.
const WUKONG_KIND: &str = "Wukong";

/// The value of the other enum with the same variant name. Both enums of each pair are written to be equal;
/// a test compares all their variants.
pub(super) fn same_name<A: Serialize, B: DeserializeOwned>(value: A, field: &str) -> Result<B, FieldError> {
    let name = serde_json::to_value(value).map_err(|e| FieldError::new(field, &e))?;
    serde_json::from_value(name).map_err(|e| FieldError::new(field, &e))
}

fn object_key(key: &Key) -> ObjectKey {
    ObjectKey { namespace: key.namespace.clone(), name: key.name.clone() }
}

fn key_of(key: &ObjectKey) -> Key {
    Key::new(key.namespace.clone(), key.name.clone())
}

/// A fence record as it is stored.
pub fn fence_status(record: &FenceRecord) -> Result<node_health::FenceRecord, FieldError> {
    let (stage, proof, returned) = match &record.stage {
        FenceStage::Declared => (node_health::FenceStage::Declared, None, None),
        FenceStage::PowerOrdered => (node_health::FenceStage::PowerOrdered, None, None),
        FenceStage::Fenced { proof } => {
            (node_health::FenceStage::Fenced, Some(same_name(proof, "status.fence.proof")?), None)
        }
        FenceStage::Quarantine { boot_id } => {
            (node_health::FenceStage::Quarantine, None, Some(boot_id.0.clone()))
        }
        FenceStage::Closed => (node_health::FenceStage::Closed, None, None),
    };
    Ok(node_health::FenceRecord {
        boot_id: record.boot_id.as_ref().map(|id| id.0.clone()),
        epoch: record.epoch,
        stage,
        proof,
        returned_boot_id: returned,
        agent_distrusted: record.agent_distrusted,
    })
}

/// The fence record of a node.
pub fn fence_record(node: &NodeName, stored: &node_health::FenceRecord) -> Result<FenceRecord, FieldError> {
    use node_health::FenceStage as Stored;
    let missing = |field: &str| FieldError::new(format!("status.fence.{field}"), "missing in this stage");
    let stage = match stored.stage {
        Stored::Declared => FenceStage::Declared,
        Stored::PowerOrdered => FenceStage::PowerOrdered,
        Stored::Fenced => {
            let proof = stored.proof.ok_or_else(|| missing("proof"))?;
            FenceStage::Fenced { proof: same_name(proof, "status.fence.proof")? }
        }
        Stored::Quarantine => {
            let boot = stored.returned_boot_id.clone().ok_or_else(|| missing("returnedBootID"))?;
            FenceStage::Quarantine { boot_id: BootId(boot) }
        }
        Stored::Closed => FenceStage::Closed,
    };
    let boot_id = stored.boot_id.clone().map(BootId);
    Ok(FenceRecord {
        node: node.clone(),
        boot_id,
        epoch: stored.epoch,
        stage,
        agent_distrusted: stored.agent_distrusted,
    })
}

/// Writes a migration's record into its status; the display part stays.
pub fn set_migration(
    record: &MigrationRecord,
    status: &mut crd::VolumeMigrationStatus,
) -> Result<(), FieldError> {
    status.phase = same_name(record.phase, "status.phase")?;
    status.reason.clone_from(&record.reason);
    status.message.clone_from(&record.message);
    status.epoch = record.epoch;
    status.object_uid.clone_from(&record.uid.0);
    status.stopped = record.stopped.as_ref().map(|(owner, start)| stopped(owner, start));
    status.guest = record.guest.as_ref().map(|guest| vmig::Guest {
        agent_connected: guest.agent_connected,
        has_address: guest.has_address,
        claims: guest.claims.iter().cloned().collect(),
    });
    status.disks = record.disks.iter().map(disk_status).collect::<Result<_, _>>()?;
    status.checks = record.checks.iter().map(check_status).collect();
    status.downtime_ms = record.downtime_ms;
    Ok(())
}

/// The record in the status of the migration with this uid; `None` while no leader has written one. Epochs start at 1.
/// A record of before uids were recorded is the object's own.
pub fn migration_record(
    key: &Key,
    uid: &str,
    status: Option<&crd::VolumeMigrationStatus>,
) -> Result<Option<MigrationRecord>, FieldError> {
    let Some(status) = status.filter(|status| status.epoch > 0) else { return Ok(None) };
    // Whoever may write it here must reach nothing elsewhere.
    if status.disks.iter().any(|disk| disk.claim.namespace != key.namespace) {
        return Err(FieldError::new("status.disks.claim", "it is of another namespace"));
    }
    Ok(Some(MigrationRecord {
        key: key.clone(),
        uid: Uid::from(if status.object_uid.is_empty() { uid } else { &status.object_uid }),
        epoch: status.epoch,
        phase: same_name(status.phase, "status.phase")?,
        reason: status.reason.clone(),
        message: status.message.clone(),
        stopped: status.stopped.as_ref().map(read_stopped).transpose()?,
        guest: status.guest.as_ref().map(|guest| Guest {
            agent_connected: guest.agent_connected,
            has_address: guest.has_address,
            claims: guest.claims.iter().cloned().collect(),
        }),
        disks: status.disks.iter().map(disk_record).collect::<Result<_, _>>()?,
        checks: status.checks.iter().map(check_record).collect(),
        downtime_ms: status.downtime_ms,
    }))
}

fn stopped(owner: &Owner, start: &SavedStart) -> vmig::Stopped {
    let owner = match owner {
        Owner::Itself => vmig::Owner { kind: OWN_KIND.to_owned(), name: String::new() },
        Owner::Wukong { name } => vmig::Owner { kind: WUKONG_KIND.to_owned(), name: name.clone() },
        Owner::Unknown { kind, name } => vmig::Owner { kind: kind.clone(), name: name.clone() },
    };
    let start = match start {
        SavedStart::Running(running) => vmig::SavedStart::Running(*running),
        SavedStart::RunStrategy(strategy) => vmig::SavedStart::RunStrategy(strategy.clone()),
        SavedStart::WukongStartStrategy(json) => {
            vmig::SavedStart::Wukong(vmig::WukongStart { start_strategy: json.clone() })
        }
    };
    vmig::Stopped { owner, start }
}

fn read_stopped(stopped: &vmig::Stopped) -> Result<(Owner, SavedStart), FieldError> {
    let name = stopped.owner.name.clone();
    let owner = match stopped.owner.kind.as_str() {
        OWN_KIND => Owner::Itself,
        WUKONG_KIND => Owner::Wukong { name },
        kind => Owner::Unknown { kind: kind.to_owned(), name },
    };
    let start = match &stopped.start {
        vmig::SavedStart::Running(running) => SavedStart::Running(*running),
        vmig::SavedStart::RunStrategy(strategy) => SavedStart::RunStrategy(strategy.clone()),
        vmig::SavedStart::Wukong(start) => SavedStart::WukongStartStrategy(start.start_strategy.clone()),
    };
    let of_wukong = matches!(start, SavedStart::WukongStartStrategy(_));
    if of_wukong != matches!(owner, Owner::Wukong { .. }) {
        return Err(FieldError::new("status.stopped", "the start field is not one of this owner's"));
    }
    Ok((owner, start))
}

fn disk_status(disk: &DiskMove) -> Result<vmig::DiskMove, FieldError> {
    Ok(vmig::DiskMove {
        claim: object_key(&disk.claim),
        claim_uid: disk.claim_uid.0.clone(),
        template: vmig::ClaimTemplate {
            class: disk.template.class.clone(),
            requested_bytes: disk.template.requested_bytes,
            access_modes: disk.template.access_modes.clone(),
            mode: same_name(disk.template.mode, "status.disks.template.mode")?,
            labels: disk.template.labels.clone(),
            annotations: disk.template.annotations.clone(),
        },
        old_volume: disk.old.0.clone(),
        source_node: disk.source_node.0.clone(),
        source_path: disk.source_path.clone(),
        reading: disk.reading.clone(),
        new_volume: vmig::NewVolume {
            name: disk.new.name.0.clone(),
            class: disk.new.class.clone(),
            node: disk.new.node.as_ref().map(|node| node.0.clone()),
            path: disk.new.path.clone(),
            capacity_bytes: disk.new.capacity_bytes,
            access_modes: disk.new.access_modes.clone(),
            mode: same_name(disk.new.mode, "status.disks.newVolume.mode")?,
            claim: object_key(&disk.new.claim),
        },
        staging: disk.staging.clone(),
        target_node: disk.target_node.0.clone(),
        old_volume_state: same_name(disk.old_volume, "status.disks.oldVolumeState")?,
        copied: disk.copied.as_ref().map(|copied| vmig::Copied {
            root_hash: copied.root_hash.clone(),
            total_bytes: copied.total_bytes,
            sent_bytes: copied.sent_bytes,
            elapsed_ms: copied.elapsed_ms,
            unreadable: copied.unreadable.clone(),
        }),
    })
}

fn disk_record(disk: &vmig::DiskMove) -> Result<DiskMove, FieldError> {
    Ok(DiskMove {
        claim: key_of(&disk.claim),
        claim_uid: Uid(disk.claim_uid.clone()),
        template: ClaimTemplate {
            class: disk.template.class.clone(),
            requested_bytes: disk.template.requested_bytes,
            access_modes: disk.template.access_modes.clone(),
            mode: same_name(disk.template.mode, "status.disks.template.mode")?,
            labels: disk.template.labels.clone(),
            annotations: disk.template.annotations.clone(),
        },
        old: VolumeName(disk.old_volume.clone()),
        source_node: NodeName(disk.source_node.clone()),
        source_path: disk.source_path.clone(),
        reading: disk.reading.clone(),
        new: NewVolume {
            name: VolumeName(disk.new_volume.name.clone()),
            class: disk.new_volume.class.clone(),
            node: disk.new_volume.node.clone().map(NodeName),
            path: disk.new_volume.path.clone(),
            capacity_bytes: disk.new_volume.capacity_bytes,
            access_modes: disk.new_volume.access_modes.clone(),
            mode: same_name(disk.new_volume.mode, "status.disks.newVolume.mode")?,
            claim: key_of(&disk.new_volume.claim),
        },
        staging: disk.staging.clone(),
        target_node: NodeName(disk.target_node.clone()),
        old_volume: same_name(disk.old_volume_state, "status.disks.oldVolumeState")?,
        copied: disk.copied.as_ref().map(|copied| Copied {
            root_hash: copied.root_hash.clone(),
            total_bytes: copied.total_bytes,
            sent_bytes: copied.sent_bytes,
            elapsed_ms: copied.elapsed_ms,
            unreadable: copied.unreadable.clone(),
        }),
    })
}

fn check_status(check: &Check) -> vmig::Check {
    vmig::Check { name: check.name.clone(), passed: check.passed, message: check.message.clone() }
}

fn check_record(check: &vmig::Check) -> Check {
    Check { name: check.name.clone(), passed: check.passed, message: check.message.clone() }
}

/// Writes an evacuation's record into its status; the display part stays.
pub fn set_evacuation(
    record: &EvacuationRecord,
    status: &mut crd::EvacuationStatus,
) -> Result<(), FieldError> {
    let planned = |line: &Planned| {
        Ok(evac::PlannedMigration {
            migration: object_key(&line.migration),
            subject: object_key(&line.subject),
            is_vm: line.is_vm,
            live: line.live,
            bytes: line.bytes,
            state: same_name(line.state, "status.plan.state")?,
            message: line.message.clone(),
        })
    };
    status.epoch = record.epoch;
    status.plan = record.plan.iter().map(planned).collect::<Result<_, FieldError>>()?;
    status.complete = record.complete;
    status.message.clone_from(&record.message);
    Ok(())
}

/// The record in an evacuation's status; `None` while no leader has written one.
pub fn evacuation_record(
    name: &str,
    uid: &str,
    status: Option<&crd::EvacuationStatus>,
) -> Result<Option<EvacuationRecord>, FieldError> {
    let Some(status) = status.filter(|status| status.epoch > 0) else { return Ok(None) };
    let planned = |line: &evac::PlannedMigration| {
        Ok(Planned {
            migration: key_of(&line.migration),
            subject: key_of(&line.subject),
            is_vm: line.is_vm,
            live: line.live,
            bytes: line.bytes,
            state: same_name(line.state, "status.plan.state")?,
            message: line.message.clone(),
        })
    };
    Ok(Some(EvacuationRecord {
        name: name.to_owned(),
        uid: Uid(uid.to_owned()),
        epoch: status.epoch,
        plan: status.plan.iter().map(planned).collect::<Result<_, FieldError>>()?,
        complete: status.complete,
        message: status.message.clone(),
    }))
}

/// A rebuild's record as it is stored in `status.rebuild` of the VM's `Recovery`.
pub fn rebuild_status(record: &RebuildRecord) -> Result<recovery::RebuildRecord, FieldError> {
    let pods =
        record.pods.iter().map(|pod| recovery::DeadPod { name: pod.name.clone(), uid: pod.uid.0.clone() });
    let disks = record.disks.iter().map(|disk| recovery::RebuiltDisk {
        disk: disk.disk.clone(),
        claim: disk.claim.clone(),
        claim_uid: disk.claim_uid.0.clone(),
        data_volume: disk.data_volume.clone(),
        old_volume: disk.old_volume.0.clone(),
        class: disk.class.clone(),
    });
    Ok(recovery::RebuildRecord {
        vm_uid: record.vm_uid.0.clone(),
        node: record.node.0.clone(),
        epoch: record.epoch,
        proof: record.proof.map(|proof| same_name(proof, "status.rebuild.proof")).transpose()?,
        stage: same_name(record.stage, "status.rebuild.stage")?,
        stopped: record.stopped.as_ref().map(|(owner, start)| stopped(owner, start)),
        pods: pods.collect(),
        disks: disks.collect(),
    })
}

/// The record in `status.rebuild` of the `Recovery` of this VM.
pub fn rebuild_record(vm: &Key, stored: &recovery::RebuildRecord) -> Result<RebuildRecord, FieldError> {
    let pods = stored.pods.iter().map(|pod| DeadPod { name: pod.name.clone(), uid: Uid(pod.uid.clone()) });
    let disks = stored.disks.iter().map(|disk| RebuiltDisk {
        disk: disk.disk.clone(),
        claim: disk.claim.clone(),
        claim_uid: Uid(disk.claim_uid.clone()),
        data_volume: disk.data_volume.clone(),
        old_volume: VolumeName(disk.old_volume.clone()),
        class: disk.class.clone(),
    });
    Ok(RebuildRecord {
        vm: vm.clone(),
        vm_uid: Uid(stored.vm_uid.clone()),
        node: NodeName(stored.node.clone()),
        epoch: stored.epoch,
        proof: stored.proof.map(|proof| same_name(proof, "status.rebuild.proof")).transpose()?,
        stage: same_name(stored.stage, "status.rebuild.stage")?,
        stopped: stored.stopped.as_ref().map(read_stopped).transpose()?,
        pods: pods.collect(),
        disks: disks.collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use somersault_coordinator_core::decision::DecisionKind;
    use somersault_coordinator_core::evacuation::PlanState;
    use somersault_coordinator_core::fencing::ProofKind;
    use somersault_coordinator_core::fleet::{Grade, VolumeMode};
    use somersault_coordinator_core::migration::{OldVolume, Phase};
    use somersault_coordinator_core::rebuild::RebuildStage;
    use somersault_coordinator_core::view::{Milestone, NodeState, RecoveryProgress};
    use somersault_crd::common;

    use super::*;

    fn both_ways<A, B>(values: &[A])
    where
        A: Serialize + DeserializeOwned + PartialEq + Debug,
        B: Serialize + DeserializeOwned,
    {
        for value in values {
            let there: B = same_name(value, "field").unwrap();
            let back: A = same_name(&there, "field").unwrap();
            assert_eq!(back, *value);
        }
    }

    #[test]
    fn our_objects_know_every_state_of_the_core() {
        both_ways::<_, node_health::NodeState>(&[
            NodeState::NoAgent,
            NodeState::Healthy,
            NodeState::Suspect,
            NodeState::AgentSilent,
            NodeState::Partitioned,
            NodeState::StormHold,
            NodeState::AwaitingProof,
            NodeState::Fenced,
            NodeState::Recovering,
            NodeState::Quarantine,
            NodeState::FenceContradicted,
        ]);
        both_ways::<_, common::Proof>(&[
            ProofKind::PowerOffConfirmed,
            ProofKind::CloudShutdown,
            ProofKind::OutOfServiceByOthers,
            ProofKind::NewBootId,
            ProofKind::HumanAttested,
            ProofKind::LeaseExpired,
        ]);
        both_ways::<_, node_health::DiskGrade>(&[
            Grade::Unknown,
            Grade::Ok,
            Grade::Warning,
            Grade::Failing,
            Grade::Failed,
        ]);
        both_ways::<_, String>(&[Milestone::LastBeat, Milestone::FencingStarted, Milestone::Closed]);
    }

    #[test]
    fn our_objects_know_every_state_of_work() {
        both_ways::<_, vmig::Phase>(&[
            Phase::Pending,
            Phase::Checking,
            Phase::Provisioning,
            Phase::PreCopying,
            Phase::Stopping,
            Phase::FinalCopying,
            Phase::Verifying,
            Phase::Swapping,
            Phase::Starting,
            Phase::Confirming,
            Phase::Succeeded,
            Phase::Failed,
            Phase::RollingBack,
            Phase::RolledBack,
            Phase::Cancelled,
        ]);
        both_ways::<_, vmig::VolumeMode>(&[VolumeMode::Filesystem, VolumeMode::Block]);
        both_ways::<_, vmig::OldVolume>(&[OldVolume::Kept, OldVolume::Removing, OldVolume::Removed]);
        both_ways::<_, evac::PlanState>(&[
            PlanState::Waiting,
            PlanState::Running,
            PlanState::PreCopied,
            PlanState::Succeeded,
            PlanState::Failed,
        ]);
        both_ways::<_, recovery::DecisionKind>(&[
            DecisionKind::Recreate,
            DecisionKind::Rebuild,
            DecisionKind::ManualRecovery,
            DecisionKind::NothingToDo,
        ]);
        both_ways::<_, recovery::RebuildStage>(&[
            RebuildStage::Retaining,
            RebuildStage::Stopping,
            RebuildStage::Replacing,
            RebuildStage::Starting,
            RebuildStage::Importing,
            RebuildStage::Rebuilt,
            RebuildStage::GivingBack,
            RebuildStage::GivenBack,
        ]);
        both_ways::<_, recovery::Progress>(&[
            RecoveryProgress::AwaitingProof,
            RecoveryProgress::Acting,
            RecoveryProgress::Restarting,
            RecoveryProgress::Recovered,
            RecoveryProgress::NeedsPerson,
            RecoveryProgress::NodeReturned,
            RecoveryProgress::Unaffected,
        ]);
    }

    #[test]
    fn a_start_field_of_another_owner_is_refused() {
        let owner = vmig::Owner { kind: WUKONG_KIND.to_owned(), name: "w".to_owned() };
        let stopped = vmig::Stopped { owner, start: vmig::SavedStart::Running(true) };
        assert_eq!(read_stopped(&stopped).unwrap_err().field, "status.stopped");
    }
}
