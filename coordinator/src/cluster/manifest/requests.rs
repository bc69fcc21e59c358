//! What people ask for by our own objects.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use somersault_coordinator_core::evacuation::{Disruption, EvacuationSpec};
use somersault_coordinator_core::io::{Attestation, Requests};
use somersault_coordinator_core::migration::{
    BadProbe, Destination, GuestProbe, MigrationRequest, MigrationSpec, Unreadable, WhichDisks,
};
use somersault_coordinator_core::names::{BootId, NodeName, Uid};
use somersault_crd as crd;
use somersault_crd::volume_migration::{DisksToMove, HttpProbe, JobProbe, Probe, TcpProbe, UnreadableData};

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
        let uid = Uid(placed.object.metadata.uid.clone().unwrap_or_default());
        let spec = evacuation(&placed.object.spec, uid, complete);
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
    if spec.probe.is_some() && spec.vm.is_none() {
        return Err(FieldError::new("spec.probe", "asks the guest of a VM, and a claim alone has none"));
    }
    Ok(MigrationSpec {
        vm: spec.vm.clone(),
        claim: spec.claim.clone(),
        destination: destination(&spec.destination)?,
        disks: match spec.disks {
            DisksToMove::Local => WhichDisks::Local,
            DisksToMove::All => WhichDisks::All,
        },
        pre_copy_only: spec.pre_copy_only,
        cancelled: spec.cancelled,
        remove_old: spec.remove_old_volumes,
        unreadable: match spec.unreadable {
            UnreadableData::Fail => Unreadable::Fail,
            UnreadableData::Zeroes => Unreadable::Zeroes,
        },
        probe: spec.probe.as_ref().map(probe).transpose()?,
        evacuation: spec.evacuation.clone(),
    })
}

/// The spec of a `VolumeMigration` that asks this.
pub fn migration_spec(spec: &MigrationSpec) -> crd::VolumeMigrationSpec {
    crd::VolumeMigrationSpec {
        vm: spec.vm.clone(),
        claim: spec.claim.clone(),
        destination: destination_spec(&spec.destination),
        disks: match spec.disks {
            WhichDisks::Local => DisksToMove::Local,
            WhichDisks::All => DisksToMove::All,
        },
        pre_copy_only: spec.pre_copy_only,
        cancelled: spec.cancelled,
        remove_old_volumes: spec.remove_old,
        unreadable: match spec.unreadable {
            Unreadable::Fail => UnreadableData::Fail,
            Unreadable::Zeroes => UnreadableData::Zeroes,
        },
        probe: spec.probe.as_ref().map(probe_spec),
        evacuation: spec.evacuation.clone(),
    }
}

fn probe(probe: &Probe) -> Result<GuestProbe, FieldError> {
    let port = |kind: &str, port: u16| {
        NonZeroU16::new(port)
            .ok_or_else(|| FieldError::new(format!("spec.probe.{kind}.port"), &BadProbe::Port))
    };
    match (&probe.tcp, &probe.http, &probe.job) {
        (Some(tcp), None, None) => Ok(GuestProbe::Tcp { port: port("tcp", tcp.port)? }),
        (None, Some(http), None) => {
            let path = http.path.clone().try_into();
            let path = path.map_err(|error: BadProbe| FieldError::new("spec.probe.http.path", &error))?;
            Ok(GuestProbe::Http { port: port("http", http.port)?, path })
        }
        (None, None, Some(job)) => {
            let template = job.name.clone().try_into();
            let template =
                template.map_err(|error: BadProbe| FieldError::new("spec.probe.job.name", &error))?;
            Ok(GuestProbe::Job { template })
        }
        _ => Err(FieldError::new("spec.probe", "exactly one of tcp, http and job must be set")),
    }
}

/// As a `VolumeMigration` asks it.
pub fn probe_spec(probe: &GuestProbe) -> Probe {
    let none = Probe::default();
    match probe {
        GuestProbe::Tcp { port } => Probe { tcp: Some(TcpProbe { port: port.get() }), ..none },
        GuestProbe::Http { port, path } => {
            Probe { http: Some(HttpProbe { port: port.get(), path: path.as_str().to_owned() }), ..none }
        }
        GuestProbe::Job { template } => {
            Probe { job: Some(JobProbe { name: template.as_str().to_owned() }), ..none }
        }
    }
}

fn evacuation(spec: &crd::EvacuationSpec, uid: Uid, complete: bool) -> Result<EvacuationSpec, FieldError> {
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
        uid,
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use somersault_coordinator_core::migration::{CRON_JOB_NAME_LENGTH_MAX, HTTP_PATH_LENGTH_MAX};

    use super::*;

    fn asked(probe: &Value) -> Result<Option<GuestProbe>, String> {
        let spec = json!({ "vm": "web", "destination": { "node": "n3" }, "probe": probe });
        let spec: crd::VolumeMigrationSpec =
            serde_json::from_value(spec).map_err(|error| error.to_string())?;
        let read = migration(&spec).map_err(|error| error.to_string())?;
        assert_eq!(migration_spec(&read), spec, "written as it was read");
        Ok(read.probe)
    }

    #[test]
    fn reads_probes() {
        let probe = |text: &str| Ok(Some(text.parse().expect("a probe")));
        assert_eq!(asked(&Value::Null), Ok(None));
        assert_eq!(asked(&json!({ "tcp": { "port": 5432 } })), probe("tcp:5432"));
        assert_eq!(asked(&json!({ "http": { "port": 80 } })), probe("http:80/"));
        assert_eq!(asked(&json!({ "http": { "port": 80, "path": "/a?b=c" } })), probe("http:80/a?b=c"));
        assert_eq!(asked(&json!({ "job": { "name": "check" } })), probe("job:check"));
    }

    /// An API server that checks no rules must not be able to make us ask anything else.
    #[test]
    fn names_what_is_wrong_with_a_probe() {
        let long = format!("/{}", "a".repeat(HTTP_PATH_LENGTH_MAX));
        for (probe, field) in [
            (json!({}), "spec.probe: "),
            (json!({ "tcp": { "port": 1 }, "http": { "port": 1 } }), "spec.probe: "),
            (json!({ "tcp": { "port": 1 }, "job": { "name": "check" } }), "spec.probe: "),
            (json!({ "job": { "name": "../secrets/x" } }), "spec.probe.job.name: "),
            (json!({ "tcp": { "port": 0 } }), "spec.probe.tcp.port: "),
            (json!({ "http": { "port": 0 } }), "spec.probe.http.port: "),
            (json!({ "http": { "port": 80, "path": "" } }), "spec.probe.http.path: "),
            (json!({ "http": { "port": 80, "path": "/a b" } }), "spec.probe.http.path: "),
            (json!({ "http": { "port": 80, "path": "/\r\nX: y" } }), "spec.probe.http.path: "),
            (json!({ "http": { "port": 80, "path": long } }), "spec.probe.http.path: "),
        ] {
            let error = asked(&probe).expect_err("wrong");
            assert!(error.starts_with(field), "{probe}: {error}");
        }
        assert!(asked(&json!({ "tcp": { "port": 65_536 } })).is_err());
        let spec =
            json!({ "claim": "spare", "destination": { "node": "n3" }, "probe": { "tcp": { "port": 1 } } });
        let spec = serde_json::from_value(spec).expect("it fits the type");
        assert!(migration(&spec).expect_err("no VM").to_string().starts_with("spec.probe: "));
    }

    /// The definition and the core say the same, and neither depends on the other.
    #[test]
    fn a_path_is_as_long_as_the_definition_allows() {
        assert_eq!(crd::volume_migration::HTTP_PATH_LENGTH_MAX, HTTP_PATH_LENGTH_MAX);
        assert_eq!(crd::volume_migration::CRON_JOB_NAME_LENGTH_MAX, CRON_JOB_NAME_LENGTH_MAX);
    }
}
