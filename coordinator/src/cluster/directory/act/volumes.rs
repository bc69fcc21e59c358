//! `PersistentVolume`s: kept, created, pre-bound, forgotten. A volume's data is never touched here, and a `claimRef`
//! is replaced in one patch, never through null: a volume without one is anybody's.

use serde_json::{Value, json};
use somersault_coordinator_core::fleet::VolumeMode;
use somersault_coordinator_core::io::NewVolume;
use somersault_coordinator_core::names::{Key, NodeName, VolumeName};

use super::{MANAGED_BY, MANAGER};
use crate::cluster::ClusterError;
use crate::cluster::directory::store::{Transaction, conflict, not_found, refused};
use crate::cluster::manifest::ObjectId;

/// Label that local volumes are pinned by.
const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";
/// Annotation with the folder of a volume that has no path of its own in its spec.
const PATH_ANNOTATION: &str = "somersault.novasphere.dev/path";
/// Driver of csi-driver-nfs.
const NFS_CSI: &str = "nfs.csi.k8s.io";

/// `volumeMode` as Kubernetes spells it.
pub(super) fn mode(mode: VolumeMode) -> &'static str {
    match mode {
        VolumeMode::Filesystem => "Filesystem",
        VolumeMode::Block => "Block",
    }
}

pub(super) fn id(volume: &VolumeName) -> ObjectId {
    ObjectId::cluster("PersistentVolume", volume.as_str())
}

/// Sets reclaim policy Retain.
pub(super) fn retain(tx: &Transaction<'_>, volume: &VolumeName) -> Result<(), ClusterError> {
    tx.patch(&id(volume), |object| {
        object["spec"]["persistentVolumeReclaimPolicy"] = json!("Retain");
        Ok(())
    })?;
    Ok(())
}

/// Creates a static volume, pre-bound to its claim. Without the annotation `pv.kubernetes.io/provisioned-by`, no
/// provisioner ever deletes it.
pub(super) fn create(tx: &Transaction<'_>, new: &NewVolume) -> Result<(), ClusterError> {
    let id = id(&new.name);
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
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": new.class,
            "volumeMode": mode(new.mode),
        },
        "status": { "phase": "Available" },
    });
    let (field, source) = match &new.node {
        Some(node) => {
            object["spec"]["nodeAffinity"] = affinity(tx, node)?;
            ("local".to_owned(), json!({ "path": new.path }))
        }
        None => shared_source(tx, new)?,
    };
    object["spec"][field.as_str()] = source;
    if let Some(stored) = tx.get(&id)? {
        let same = is_ours(&stored)
            && stored["spec"][field.as_str()] == object["spec"][field.as_str()]
            && stored["spec"]["nodeAffinity"] == object["spec"]["nodeAffinity"]
            && stored["spec"]["claimRef"]["namespace"] == json!(new.claim.namespace)
            && stored["spec"]["claimRef"]["name"] == json!(new.claim.name);
        return if same { Ok(()) } else { Err(conflict(&id, "another volume has this name".to_owned())) };
    }
    tx.create(object).map(|_| ())
}

fn is_ours(object: &Value) -> bool {
    object["metadata"]["labels"][MANAGED_BY] == MANAGER
}

fn claim_ref(claim: &Key, uid: Option<&str>) -> Value {
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
fn affinity(tx: &Transaction<'_>, node: &NodeName) -> Result<Value, ClusterError> {
    let node_id = ObjectId::cluster("Node", node.as_str());
    let object = tx.get(&node_id)?.ok_or_else(|| not_found(&node_id))?;
    let Some(hostname) = object["metadata"]["labels"][HOSTNAME_LABEL].as_str() else {
        let why = format!("it has no label {HOSTNAME_LABEL}, by which a local volume is pinned to it");
        return Err(refused(&node_id.to_string(), why));
    };
    let pin = json!({ "key": HOSTNAME_LABEL, "operator": "In", "values": [hostname] });
    Ok(json!({ "required": { "nodeSelectorTerms": [{ "matchExpressions": [pin] }] } }))
}

/// Source of a volume on a shared root, by its class: how every node reaches the folder that the agent made below
/// its mount of the same export.
fn shared_source(tx: &Transaction<'_>, new: &NewVolume) -> Result<(String, Value), ClusterError> {
    let class_id = ObjectId::cluster("StorageClass", &new.class);
    let class = tx.get(&class_id)?.ok_or_else(|| not_found(&class_id))?;
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
            ("csi".to_owned(), csi)
        }
        (NFS_CSI, ..) => {
            let why = "its parameters name no server and share, so that nobody can say where the volume is";
            return Err(refused(&class_id.to_string(), why));
        }
        (_, Some(server), Some(share)) => {
            let path = format!("{}/{folder}", share.trim_end_matches('/'));
            ("nfs".to_owned(), json!({ "server": server, "path": path }))
        }
        (driver, ..) => ("csi".to_owned(), json!({ "driver": driver, "volumeHandle": folder })),
    })
}

/// Removes the object of a volume that we created and that no claim is bound to.
pub(super) fn forget(tx: &Transaction<'_>, volume: &VolumeName) -> Result<(), ClusterError> {
    let id = id(volume);
    let Some(object) = tx.get(&id)? else { return Ok(()) };
    if !is_ours(&object) {
        return Err(refused(
            &id.to_string(),
            "we did not create it, and it may hold the only copy: left alone",
        ));
    }
    if let Some(claim) = bound_claim(tx, volume, &object)? {
        return Err(refused(&id.to_string(), format!("{claim} is bound to it")));
    }
    tx.delete(&id, None)
}

/// The claim that a volume is bound to, from either side.
fn bound_claim(
    tx: &Transaction<'_>,
    volume: &VolumeName,
    object: &Value,
) -> Result<Option<ObjectId>, ClusterError> {
    let uid = object["spec"]["claimRef"]["uid"].as_str();
    let claims = tx.list("PersistentVolumeClaim")?;
    let bound = claims.iter().find(|claim| {
        let by_name = claim["spec"]["volumeName"] == volume.as_str();
        by_name || (uid.is_some() && claim["metadata"]["uid"].as_str() == uid)
    });
    Ok(bound.and_then(|claim| ObjectId::of(claim).ok()))
}

/// Points a volume to a claim by namespace and name.
pub(super) fn prebind(tx: &Transaction<'_>, volume: &VolumeName, claim: &Key) -> Result<(), ClusterError> {
    let id = id(volume);
    let object = tx.get(&id)?.ok_or_else(|| not_found(&id))?;
    let wanted = ObjectId::namespaced("PersistentVolumeClaim", claim);
    match bound_claim(tx, volume, &object)? {
        // The claim that names this volume may be waiting for just this.
        Some(bound) if bound == wanted && object["spec"]["claimRef"]["uid"].is_string() => return Ok(()),
        Some(bound) if bound != wanted => {
            return Err(refused(&id.to_string(), format!("{bound} is bound to it")));
        }
        _ => {}
    }
    tx.patch(&id, |object| {
        object["spec"]["claimRef"] = claim_ref(claim, None);
        object["status"]["phase"] = json!("Available");
        Ok(())
    })?;
    Ok(())
}

/// Binds a volume to the claim that it was pre-bound to.
pub(super) fn bind(
    tx: &Transaction<'_>,
    volume: &VolumeName,
    claim: &Key,
    uid: &str,
) -> Result<Value, ClusterError> {
    tx.patch(&id(volume), |object| {
        object["spec"]["claimRef"] = claim_ref(claim, Some(uid));
        object["status"]["phase"] = json!("Bound");
        Ok(())
    })
}

/// What happens to a volume whose claim goes: it keeps its `claimRef`, and nobody else gets it.
pub(super) fn release(tx: &Transaction<'_>, volume: &VolumeName) -> Result<(), ClusterError> {
    tx.patch(&id(volume), |object| {
        object["status"]["phase"] = json!("Released");
        Ok(())
    })?;
    Ok(())
}
