//! `PersistentVolume`s: kept, created, pre-bound, forgotten. A volume's data is never touched here, and a `claimRef`
//! is replaced as a whole, never through null: a volume without one is anybody's.

use serde_json::{Value, json};
use somersault_coordinator_core::fleet::VolumeMode;
use somersault_coordinator_core::io::{ClaimTemplate, NewVolume};
use somersault_coordinator_core::migration::LOCK_FOLDER;
use somersault_coordinator_core::names::{Key, Uid, VolumeName};

use super::{MANAGED_BY, MANAGER, is_ours, uid};
use crate::cluster::ClusterError;
use crate::cluster::error::refused;
use crate::cluster::manifest::{ObjectId, RETAINED_ANNOTATION};

/// Label that local volumes are pinned by.
pub(super) const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";
/// Annotation with the folder of a volume that has no path of its own in its spec.
const PATH_ANNOTATION: &str = "somersault.novasphere.dev/path";
/// Driver of csi-driver-nfs.
const NFS_CSI: &str = "nfs.csi.k8s.io";
/// The node of a lock. No node has this host name, and none gets it by chance.
const NO_NODE: &str = "nowhere.somersault.novasphere.dev";
/// The reclaim policy under which nobody deletes the data.
pub(super) const RETAIN: &str = "Retain";

/// `volumeMode` as Kubernetes spells it.
pub(in crate::cluster) fn mode(mode: VolumeMode) -> &'static str {
    match mode {
        VolumeMode::Filesystem => "Filesystem",
        VolumeMode::Block => "Block",
    }
}

/// The object of a volume.
pub(in crate::cluster) fn id(volume: &VolumeName) -> ObjectId {
    ObjectId::cluster("PersistentVolume", volume.as_str())
}

/// Sets reclaim policy Retain, and notes which one it had: nothing else may tell of the volume one day.
pub(in crate::cluster) fn retain(volume: &mut Value) {
    if is_retained(volume) {
        return;
    }
    let before = volume["spec"]["persistentVolumeReclaimPolicy"].clone();
    volume["metadata"]["annotations"][RETAINED_ANNOTATION] = before;
    volume["spec"]["persistentVolumeReclaimPolicy"] = json!(RETAIN);
}

/// Whether the data stays when the claim goes.
pub(in crate::cluster) fn is_retained(volume: &Value) -> bool {
    volume["spec"]["persistentVolumeReclaimPolicy"] == RETAIN
}

/// The object by which it is decided how a new volume is reached: its node, or its class.
pub(in crate::cluster) fn reached_by(new: &NewVolume) -> ObjectId {
    match &new.node {
        Some(node) => ObjectId::cluster("Node", node.as_str()),
        None => ObjectId::cluster("StorageClass", &new.class),
    }
}

/// A static volume, pre-bound to its claim. Without the annotation `pv.kubernetes.io/provisioned-by`, no provisioner
/// ever deletes it. `by` is the object that [`reached_by`] names.
pub(in crate::cluster) fn new_volume(new: &NewVolume, by: &Value) -> Result<Value, ClusterError> {
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": new.name.as_str(),
            "labels": { MANAGED_BY: MANAGER },
            "annotations": { PATH_ANNOTATION: new.path },
        },
        "spec": {
            "accessModes": new.access_modes,
            "capacity": { "storage": new.capacity_bytes.to_string() },
            "claimRef": claim_ref(&new.claim, None),
            "persistentVolumeReclaimPolicy": RETAIN,
            "storageClassName": new.class,
            "volumeMode": mode(new.mode),
        },
    });
    if new.node.is_some() {
        object["spec"]["nodeAffinity"] = affinity(&reached_by(new), by)?;
        object["spec"]["local"] = json!({ "path": new.path });
    } else {
        let (field, source) = shared_source(new, by)?;
        object["spec"][field] = source;
    }
    Ok(object)
}

/// A volume that holds nothing and that no node reaches, pre-bound to the claim that it locks.
pub(in crate::cluster) fn new_lock(name: &VolumeName, claim: &Key, template: &ClaimTemplate) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": { "name": name.as_str(), "labels": { MANAGED_BY: MANAGER } },
        "spec": {
            "accessModes": template.access_modes,
            "capacity": { "storage": template.requested_bytes.to_string() },
            "claimRef": claim_ref(claim, None),
            "local": { "path": LOCK_FOLDER },
            "nodeAffinity": pinned_to(NO_NODE),
            "persistentVolumeReclaimPolicy": RETAIN,
            "storageClassName": template.class,
            "volumeMode": mode(template.mode),
        },
    })
}

/// Whether a volume of the new one's name is that very one.
pub(in crate::cluster) fn is_same(stored: &Value, wanted: &Value) -> bool {
    let (have, want) = (&stored["spec"], &wanted["spec"]);
    let same = |field: &str| have[field] == want[field];
    let same_claim = |field: &str| have["claimRef"][field] == want["claimRef"][field];
    is_ours(stored)
        && ["local", "csi", "nfs", "nodeAffinity"].into_iter().all(same)
        && ["namespace", "name"].into_iter().all(same_claim)
}

/// A reference to a claim: by namespace and name, or bound to the very one.
pub(in crate::cluster) fn claim_ref(claim: &Key, uid: Option<&str>) -> Value {
    let mut reference = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "namespace": claim.namespace,
        "name": claim.name,
    });
    if let Some(uid) = uid {
        reference["uid"] = json!(uid);
    }
    reference
}

/// Affinity to a node by its host name label, which need not be its name.
fn affinity(id: &ObjectId, node: &Value) -> Result<Value, ClusterError> {
    Ok(pinned_to(hostname(id, node)?))
}

fn pinned_to(hostname: &str) -> Value {
    let pin = json!({ "key": HOSTNAME_LABEL, "operator": "In", "values": [hostname] });
    json!({ "required": { "nodeSelectorTerms": [{ "matchExpressions": [pin] }] } })
}

/// The label by which something is pinned to a node.
pub(in crate::cluster) fn hostname<'a>(id: &ObjectId, node: &'a Value) -> Result<&'a str, ClusterError> {
    let label = node["metadata"]["labels"][HOSTNAME_LABEL].as_str();
    label.ok_or_else(|| {
        refused(id, format!("it has no label {HOSTNAME_LABEL}, by which something is pinned to it"))
    })
}

/// Source of a volume on a shared root, by its class: how every node reaches the folder that the agent made below
/// its mount of the same export.
fn shared_source(new: &NewVolume, class: &Value) -> Result<(&'static str, Value), ClusterError> {
    let parameter = |name: &str| class["parameters"][name].as_str();
    let provisioner = class["provisioner"].as_str().unwrap_or_default();
    let folder = new.path.rsplit('/').next().filter(|folder| !folder.is_empty());
    let folder =
        folder.ok_or_else(|| refused(new.name.as_str(), format!("{:?} names no folder", new.path)))?;
    let export = parameter("share").or_else(|| parameter("path"));
    Ok(match (provisioner, parameter("server"), export) {
        (NFS_CSI, Some(server), Some(share)) => {
            let attributes = json!({ "server": server, "share": share, "subDir": folder });
            let handle = format!("{server}#{}#{folder}#{}#", share.trim_matches('/'), new.name);
            let csi = json!({ "driver": NFS_CSI, "volumeHandle": handle, "volumeAttributes": attributes });
            ("csi", csi)
        }
        (_, Some(server), Some(share)) => {
            let path = format!("{}/{folder}", share.trim_end_matches('/'));
            ("nfs", json!({ "server": server, "path": path }))
        }
        _ => {
            let why = "its class names no server and share, so that only its provisioner can say what a volume of it is";
            return Err(refused(&reached_by(new), why));
        }
    })
}

/// Whether the object may be removed: only where we made it, and no claim is bound to it.
pub(in crate::cluster) fn check_forgettable(
    id: &ObjectId,
    volume: &Value,
    bound: Option<&ObjectId>,
) -> Result<(), ClusterError> {
    if !is_ours(volume) {
        return Err(refused(id, "we did not create it, and it may hold the only copy: left alone"));
    }
    bound.map_or(Ok(()), |claim| Err(refused(id, format!("{claim} is bound to it"))))
}

/// Whether the object may be deleted though it held data: no claim is bound to it, and the one that was is gone.
pub(in crate::cluster) fn check_released(
    id: &ObjectId,
    volume: &Value,
    bound: Option<&ObjectId>,
    claim_uid: &Uid,
) -> Result<(), ClusterError> {
    if let Some(claim) = bound {
        return Err(refused(id, format!("{claim} is bound to it")));
    }
    if !is_retained(volume) {
        return Err(refused(id, "it is not on reclaim policy Retain: its provisioner would delete the data"));
    }
    let released = volume["status"]["phase"] == "Released"
        && volume["spec"]["claimRef"]["uid"].as_str() == Some(claim_uid.as_str());
    if released { Ok(()) } else { Err(refused(id, "it is not Released by the claim that it was taken from")) }
}

/// Whether a claim and a volume are bound, as either side has it.
pub(in crate::cluster) fn is_bound(id: &ObjectId, volume: &Value, claim: &Value) -> bool {
    let referenced = volume["spec"]["claimRef"]["uid"].as_str();
    claim["spec"]["volumeName"] == id.name.as_str()
        || referenced.is_some_and(|referenced| referenced == uid(claim))
}

/// Points a volume to a claim by namespace and name. `bound` is the claim that it is bound to now.
pub(in crate::cluster) fn prebind(
    id: &ObjectId,
    volume: &mut Value,
    claim: &ObjectId,
    bound: Option<&ObjectId>,
) -> Result<(), ClusterError> {
    match bound {
        Some(bound) if bound == claim && volume["spec"]["claimRef"]["uid"].is_string() => return Ok(()),
        Some(bound) if bound != claim => {
            return Err(refused(id, format!("{bound} is bound to it")));
        }
        // The claim that names this volume may be waiting for just this.
        _ => {}
    }
    volume["spec"]["claimRef"] = claim_ref(&claim.key(), None);
    Ok(())
}
