//! `PersistentVolumeClaim`s: what must hold before one is deleted, and what it looks like when it is created again
//! under the same name, for another volume.
//!
//! The binder checks nothing when a claim names a volume that is pre-bound to it (class, size, mode and access modes
//! may all differ; measured on Kubernetes 1.36), so it is checked here.

use serde_json::{Value, json};
use somersault_coordinator_core::io::ClaimTemplate;
use somersault_coordinator_core::names::{Key, Uid, VolumeName};

use super::{check_stays, uid, volume};
use crate::cluster::ClusterError;
use crate::cluster::error::{conflict, refused};
use crate::cluster::manifest::{ObjectId, quantity};

/// Annotations of the binder, the provisioners, the scheduler and CDI: each means something about the claim that
/// was, and nothing about the one that will be. `bind-completed` on a new claim makes it Lost; an import source
/// makes CDI overwrite the disk.
const FOREIGN_ANNOTATIONS: [&str; 4] =
    ["pv.kubernetes.io/", "volume.kubernetes.io/", "volume.beta.kubernetes.io/", "cdi.kubevirt.io/"];
/// What `kubectl apply` remembers: of the old claim.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// What CDI writes on a `DataVolume` that it will not fill again.
const PRE_POPULATED: &str = "cdi.kubevirt.io/storage.prePopulated";
/// What tells CDI that a claim holds the `DataVolume`'s content already.
pub(in crate::cluster) const POPULATED_FOR: &str = "cdi.kubevirt.io/storage.populatedFor";

/// The object of a claim.
pub(in crate::cluster) fn id(claim: &Key) -> ObjectId {
    ObjectId::namespaced("PersistentVolumeClaim", claim)
}

/// Whether this is the claim that is meant, and not a later one of its name.
pub(in crate::cluster) fn check_uid(id: &ObjectId, claim: &Value, wanted: &Uid) -> Result<(), ClusterError> {
    let have = uid(claim);
    if have == wanted.as_str() {
        return Ok(());
    }
    Err(conflict(id, format!("its uid is {have:?}, not {wanted}")))
}

/// Refuses while a pod keeps the claim from being deleted: scheduled, finished or not, as Kubernetes has it. The pods
/// are those of the claim's namespace.
pub(in crate::cluster) fn check_unused<'a>(
    id: &ObjectId,
    pods: impl IntoIterator<Item = &'a Value>,
) -> Result<(), ClusterError> {
    let uses = |pod: &&Value| {
        let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
        let scheduled = pod["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
        let mut names = volumes.filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str());
        scheduled && names.any(|name| name == id.name)
    };
    let name = pods.into_iter().find(uses).map(|pod| pod["metadata"]["name"].as_str().unwrap_or("?"));
    name.map_or(Ok(()), |name| {
        Err(refused(id, format!("Pod {}/{name} uses it: stop that first", id.namespace)))
    })
}

/// Refuses while the claim's deletion would delete its data.
pub(in crate::cluster) fn check_kept(
    id: &ObjectId,
    volume_id: &ObjectId,
    volume: &Value,
) -> Result<(), ClusterError> {
    if volume::is_retained(volume) {
        return Ok(());
    }
    Err(refused(id, format!("{volume_id} is not on reclaim policy Retain: its data would be deleted")))
}

/// The `DataVolume` that controls the claim.
pub(in crate::cluster) fn data_volume(claim: &Value) -> Option<&str> {
    let owners = claim["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    let mut owner =
        owners.filter(|owner| owner["controller"] == json!(true) && owner["kind"] == "DataVolume");
    owner.find_map(|owner| owner["name"].as_str())
}

/// Whether CDI knows that it must not fill the `DataVolume` again, even where its claim is gone.
pub(in crate::cluster) fn is_filled(data_volume: &Value) -> bool {
    data_volume["metadata"]["annotations"][PRE_POPULATED].is_string()
}

/// Why a claim whose `DataVolume` is not [`is_filled`] may not go.
pub(in crate::cluster) fn would_be_filled_again(id: &ObjectId, data_volume: &ObjectId) -> ClusterError {
    let why = format!("{data_volume} would import its image again: it lacks the annotation {PRE_POPULATED}");
    refused(id, why)
}

/// Refuses unless the claim, once deleted, is made anew and filled by this `DataVolume`, and is bound to this volume now.
pub(in crate::cluster) fn check_made_anew(
    id: &ObjectId,
    claim: &Value,
    data_volume_id: &ObjectId,
    data_volume: Option<&Value>,
    volume: &VolumeName,
) -> Result<(), ClusterError> {
    if claim["spec"]["volumeName"] != volume.as_str() {
        return Err(conflict(id, format!("it is not bound to {volume}")));
    }
    let controls = self::data_volume(claim) == Some(data_volume_id.name.as_str());
    if controls && data_volume.is_some_and(|found| !is_filled(found)) {
        return Ok(());
    }
    Err(refused(id, format!("{data_volume_id} would not make it anew: left alone")))
}

/// Says on the claim that it holds what its `DataVolume` would import.
pub(in crate::cluster) fn say_populated(claim: &mut Value, data_volume: &str) {
    claim["metadata"]["annotations"][POPULATED_FOR] = json!(data_volume);
}

/// What becomes of a claim that is to be created.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cluster) enum Step {
    /// It has to be made.
    Create,
    /// It is there; the volume is still to be bound to it.
    Bind,
    /// It is there, and bound.
    Done,
}

/// Looks whether the claim may be created on this volume, and whether it was already.
pub(in crate::cluster) fn next(
    id: &ObjectId,
    template: &ClaimTemplate,
    stored: Option<&Value>,
    volume_id: &ObjectId,
    volume: &Value,
) -> Result<Step, ClusterError> {
    let reference = &volume["spec"]["claimRef"];
    if reference["namespace"] != id.namespace.as_str() || reference["name"] != id.name.as_str() {
        return Err(refused(volume_id, format!("it is not pre-bound to {id}")));
    }
    let Some(stored) = stored else {
        if reference["uid"].is_string() {
            return Err(conflict(volume_id, format!("it belongs to an earlier {id}: pre-bind it again")));
        }
        check_fits(template, volume_id, volume)?;
        return Ok(Step::Create);
    };
    check_stays(id, stored)?;
    if stored["spec"]["volumeName"] != volume_id.name.as_str() {
        return Err(conflict(id, format!("it exists and is not for {volume_id}")));
    }
    match reference["uid"].as_str() {
        Some(bound) if bound == uid(stored) => Ok(Step::Done),
        Some(_) => Err(conflict(volume_id, format!("it belongs to an earlier claim than {id}"))),
        None => Ok(Step::Bind),
    }
}

/// Whether the volume is what the claim asks.
fn check_fits(template: &ClaimTemplate, id: &ObjectId, volume: &Value) -> Result<(), ClusterError> {
    let spec = &volume["spec"];
    let capacity = spec["capacity"]["storage"].as_str().unwrap_or_default();
    let capacity =
        quantity::units(capacity).map_err(|e| refused(id, format!("spec.capacity.storage: {e}")))?;
    let modes = spec["accessModes"].as_array().cloned().unwrap_or_default();
    let missing = if capacity < template.requested_bytes {
        format!("{} bytes, and it has {capacity}", template.requested_bytes)
    } else if spec["volumeMode"].as_str().unwrap_or("Filesystem") != volume::mode(template.mode) {
        format!("volume mode {}", volume::mode(template.mode))
    } else if let Some(mode) = template.access_modes.iter().find(|mode| !modes.contains(&json!(mode))) {
        format!("access mode {mode}")
    } else {
        return Ok(());
    };
    Err(refused(id, format!("the claim asks {missing}: the two do not fit")))
}

/// A claim on a volume that is pre-bound to it.
pub(in crate::cluster) fn new_claim(claim: &Key, template: &ClaimTemplate, volume: &VolumeName) -> Value {
    let foreign =
        |key: &str| key == LAST_APPLIED || FOREIGN_ANNOTATIONS.iter().any(|prefix| key.starts_with(prefix));
    let mut annotations = template.annotations.clone();
    annotations.retain(|key, _| !foreign(key));
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "namespace": claim.namespace,
            "name": claim.name,
            "labels": template.labels,
            "annotations": annotations,
        },
        "spec": {
            "accessModes": template.access_modes,
            "resources": { "requests": { "storage": template.requested_bytes.to_string() } },
            "storageClassName": template.class,
            "volumeMode": volume::mode(template.mode),
            "volumeName": volume.as_str(),
        },
    })
}
