//! What people ask for by our own objects.

use std::collections::BTreeMap;

use somersault_coordinator_core::evacuation::{Disruption, EvacuationSpec};
use somersault_coordinator_core::io::{Attestation, Requests};
use somersault_coordinator_core::migration::{Destination, MigrationRequest, MigrationSpec};
use somersault_coordinator_core::names::{BootId, NodeName, Uid};
use somersault_crd as crd;

use super::convert::FieldError;
use super::inventory::{Inventory, insert};
use crate::cluster::Problem;
use crate::windows::Window;

/// Every request; one that contradicts itself becomes a problem.
pub(super) fn read(inventory: &Inventory, problems: &mut Vec<Problem>) -> Requests {
    let mut requests = Requests::default();
    for (key, placed) in &inventory.migrations {
        let uid = Uid(placed.object.metadata.uid.clone().unwrap_or_default());
        // One that is being deleted waits for its migration to end: whoever deletes it wants it to end now.
        let deleted = placed.object.metadata.deletion_timestamp.is_some();
        let request = migration(&placed.object.spec).map(|spec| {
            let cancelled = spec.cancelled || deleted;
            MigrationRequest { uid, spec: MigrationSpec { cancelled, ..spec } }
        });
        insert(&mut requests.migrations, key, placed, request, problems);
    }
    for (name, placed) in &inventory.evacuations {
        let complete = placed.object.status.as_ref().is_some_and(|status| status.complete);
        let spec = evacuation(&placed.object.spec, complete);
        insert(&mut requests.evacuations, name, placed, spec, problems);
    }
    for (node, placed) in &inventory.node_healths {
        if let Some(word) = &placed.object.spec.attestation {
            let attestation = attestation(word);
            insert(&mut requests.attestations, node, placed, attestation, problems);
        }
    }
    let policy = inventory.policies.get(crd::recovery_policy::POLICY_NAME);
    requests.hold_release = policy.and_then(|placed| placed.object.spec.hold_release.clone());
    requests
}

/// Windows of the evacuations that have one.
pub(super) fn windows(inventory: &Inventory) -> BTreeMap<String, Window> {
    let window = |spec: &crd::EvacuationSpec| Window::try_from(spec.window.as_ref()?).ok();
    let evacuations = inventory.evacuations.iter();
    evacuations.filter_map(|(name, placed)| Some((name.clone(), window(&placed.object.spec)?))).collect()
}

/// Spec of a `VolumeMigration`.
pub fn migration(spec: &crd::VolumeMigrationSpec) -> Result<MigrationSpec, FieldError> {
    if spec.vm.is_some() == spec.claim.is_some() {
        return Err(FieldError::new("spec", "exactly one of vm and claim must be set"));
    }
    Ok(MigrationSpec {
        vm: spec.vm.clone(),
        claim: spec.claim.clone(),
        destination: destination(&spec.destination)?,
        pre_copy_only: spec.pre_copy_only,
        cancelled: spec.cancelled,
        remove_old: spec.remove_old_volumes,
        evacuation: spec.evacuation.clone(),
    })
}

/// The spec of a `VolumeMigration` that asks this.
pub fn migration_spec(spec: &MigrationSpec) -> crd::VolumeMigrationSpec {
    crd::VolumeMigrationSpec {
        vm: spec.vm.clone(),
        claim: spec.claim.clone(),
        destination: destination_spec(&spec.destination),
        pre_copy_only: spec.pre_copy_only,
        cancelled: spec.cancelled,
        remove_old_volumes: spec.remove_old,
        evacuation: spec.evacuation.clone(),
    }
}

fn evacuation(spec: &crd::EvacuationSpec, complete: bool) -> Result<EvacuationSpec, FieldError> {
    if spec.node.is_empty() {
        return Err(FieldError::new("spec.node", "missing"));
    }
    match &spec.window {
        Some(window) => {
            drop(Window::try_from(window).map_err(|error| FieldError::new("spec.window", &error))?);
        }
        None if spec.disruption == crd::evacuation::Disruption::Window => {
            return Err(FieldError::new("spec.window", "missing, and disruption is Window"));
        }
        None => {}
    }
    Ok(EvacuationSpec {
        node: NodeName(spec.node.clone()),
        disk: spec.disk.clone(),
        destination: spec.destination.as_ref().map(destination).transpose()?,
        disruption: match spec.disruption {
            crd::evacuation::Disruption::PreCopyOnly => Disruption::PreCopyOnly,
            crd::evacuation::Disruption::Window => Disruption::Window,
            crd::evacuation::Disruption::Now => Disruption::Now,
        },
        window_open: false,
        dry_run: spec.dry_run,
        cancelled: spec.cancelled,
        complete,
    })
}

/// The spec of an `Evacuation` that asks this.
pub fn evacuation_spec(spec: &EvacuationSpec) -> crd::EvacuationSpec {
    crd::EvacuationSpec {
        node: spec.node.0.clone(),
        disk: spec.disk.clone(),
        destination: spec.destination.as_ref().map(destination_spec),
        disruption: match spec.disruption {
            Disruption::PreCopyOnly => crd::evacuation::Disruption::PreCopyOnly,
            Disruption::Window => crd::evacuation::Disruption::Window,
            Disruption::Now => crd::evacuation::Disruption::Now,
        },
        // What we ask for ourselves has none.
        window: None,
        dry_run: spec.dry_run,
        cancelled: spec.cancelled,
    }
}

fn destination(destination: &crd::common::Destination) -> Result<Destination, FieldError> {
    let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    match (set(&destination.node), set(&destination.storage_class)) {
        (Some(node), None) => Ok(Destination::Node(NodeName(node))),
        (None, Some(class)) => Ok(Destination::Class(class)),
        _ => Err(FieldError::new("spec.destination", "exactly one of node and storageClass must be set")),
    }
}

fn destination_spec(destination: &Destination) -> crd::common::Destination {
    let (node, storage_class) = match destination {
        Destination::Node(node) => (Some(node.0.clone()), None),
        Destination::Class(class) => (None, Some(class.clone())),
    };
    crd::common::Destination { node, storage_class }
}

/// An attestation counts only for a boot and with a name to it.
fn attestation(word: &crd::node_health::Attestation) -> Result<Attestation, FieldError> {
    for (field, text) in [("bootID", &word.boot_id), ("by", &word.by)] {
        if text.trim().is_empty() {
            return Err(FieldError::new(format!("spec.attestation.{field}"), "missing"));
        }
    }
    Ok(Attestation { boot_id: BootId(word.boot_id.clone()), by: word.by.clone(), at: word.at.clone() })
}
