//! `PersistentVolumeClaim`s: deleted and created again under the same name, with what the binder does on both sides.

use serde_json::{Value, json};
use somersault_coordinator_core::io::ClaimTemplate;
use somersault_coordinator_core::names::{Key, Uid, VolumeName};

use super::volumes;
use crate::cluster::ClusterError;
use crate::cluster::directory::store::{Transaction, conflict, not_found, refused};
use crate::cluster::manifest::ObjectId;

/// Annotations of the binder, the provisioners, the scheduler and CDI: each means something about the claim that
/// was, and nothing about the one that will be. `bind-completed` on a new claim makes it Lost; an import source
/// makes CDI overwrite the disk.
const FOREIGN_ANNOTATIONS: [&str; 4] =
    ["pv.kubernetes.io/", "volume.kubernetes.io/", "volume.beta.kubernetes.io/", "cdi.kubevirt.io/"];
/// What `kubectl apply` remembers: of the old claim.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// What CDI writes on a `DataVolume` that it will not fill again.
const PRE_POPULATED: &str = "cdi.kubevirt.io/storage.prePopulated";

/// Deletes a claim; its volume becomes Released and keeps its `claimRef`.
pub(super) fn delete(tx: &Transaction<'_>, claim: &Key, uid: &Uid) -> Result<(), ClusterError> {
    let id = ObjectId::namespaced("PersistentVolumeClaim", claim);
    let Some(object) = tx.get(&id)? else { return Ok(()) };
    let have = object["metadata"]["uid"].as_str().unwrap_or_default();
    if have != uid.as_str() {
        return Err(conflict(&id, format!("its uid is {have:?}, not {uid}")));
    }
    if let Some(pod) = scheduled_user(tx, claim)? {
        return Err(refused(&id.to_string(), format!("{pod} uses it: stop that first")));
    }
    if let Some(data_volume) = would_be_filled_again(tx, claim, &object)? {
        let why =
            format!("{data_volume} would import its image again: it lacks the annotation {PRE_POPULATED}");
        return Err(refused(&id.to_string(), why));
    }
    if let Some(name) = object["spec"]["volumeName"].as_str() {
        let volume = VolumeName::from(name);
        let volume_id = volumes::id(&volume);
        if let Some(stored) = tx.get(&volume_id)? {
            if stored["spec"]["persistentVolumeReclaimPolicy"]
                .as_str()
                .is_some_and(|policy| policy != "Retain")
            {
                let why = format!("{volume_id} is not on reclaim policy Retain: its data would be deleted");
                return Err(refused(&id.to_string(), why));
            }
            // First, so that a crash in between leaves the claim, and with it the reason to come here again.
            volumes::release(tx, &volume)?;
        }
    }
    tx.delete(&id, Some(uid.as_str()))
}

/// A pod that keeps the claim from being deleted: scheduled, finished or not, as Kubernetes has it.
fn scheduled_user(tx: &Transaction<'_>, claim: &Key) -> Result<Option<ObjectId>, ClusterError> {
    let pods = tx.list("Pod")?;
    let uses = |pod: &&Value| {
        let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
        let scheduled = pod["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
        let mut names = volumes.filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str());
        scheduled && names.any(|name| name == claim.name)
    };
    let in_namespace = |pod: &&Value| ObjectId::of(pod).is_ok_and(|id| id.namespace == claim.namespace);
    Ok(pods.iter().filter(in_namespace).find(uses).and_then(|pod| ObjectId::of(pod).ok()))
}

/// The `DataVolume` that would make the claim anew and import into it.
fn would_be_filled_again(
    tx: &Transaction<'_>,
    claim: &Key,
    object: &Value,
) -> Result<Option<ObjectId>, ClusterError> {
    let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    let mut owner =
        owners.filter(|owner| owner["controller"] == json!(true) && owner["kind"] == "DataVolume");
    let Some(name) = owner.find_map(|owner| owner["name"].as_str()) else { return Ok(None) };
    let id = ObjectId::namespaced("DataVolume", &Key::new(claim.namespace.clone(), name));
    let data_volume = tx.get(&id)?;
    let filled = |object: &Value| object["metadata"]["annotations"][PRE_POPULATED].is_string();
    Ok(data_volume.is_some_and(|object| !filled(&object)).then_some(id))
}

/// Creates a claim and binds it to the volume that is pre-bound to it.
pub(super) fn create(
    tx: &Transaction<'_>,
    claim: &Key,
    template: &ClaimTemplate,
    volume: &VolumeName,
) -> Result<(), ClusterError> {
    let id = ObjectId::namespaced("PersistentVolumeClaim", claim);
    let volume_id = volumes::id(volume);
    let stored_volume = tx.get(&volume_id)?.ok_or_else(|| not_found(&volume_id))?;
    let reference = &stored_volume["spec"]["claimRef"];
    if reference["namespace"] != claim.namespace || reference["name"] != claim.name {
        return Err(refused(&volume_id.to_string(), format!("it is not pre-bound to {id}")));
    }
    if let Some(stored) = tx.get(&id)? {
        if stored["spec"]["volumeName"] != volume.as_str() {
            return Err(conflict(&id, format!("it exists and is not for {volume_id}")));
        }
        let uid = stored["metadata"]["uid"].as_str().unwrap_or_default();
        return match reference["uid"].as_str() {
            Some(bound) if bound == uid => Ok(()),
            Some(_) => Err(conflict(&volume_id, format!("it belongs to an earlier claim than {id}"))),
            None => volumes::bind(tx, volume, claim, uid).map(|_| ()),
        };
    }
    if reference["uid"].is_string() {
        return Err(conflict(&volume_id, format!("it belongs to an earlier {id}: pre-bind it again")));
    }
    // The volume first, under the uid that the claim will have: a crash in between leaves a volume that is Released
    // in all but name, which the next pre-binding takes back.
    let uid = uuid::Uuid::new_v4().to_string();
    let bound = volumes::bind(tx, volume, claim, &uid)?;
    tx.create_with_uid(new_claim(claim, template, volume, &bound), &uid).map(|_| ())
}

fn new_claim(claim: &Key, template: &ClaimTemplate, volume: &VolumeName, bound: &Value) -> Value {
    let foreign =
        |key: &str| key == LAST_APPLIED || FOREIGN_ANNOTATIONS.iter().any(|prefix| key.starts_with(prefix));
    let mut annotations = template.annotations.clone();
    annotations.retain(|key, _| !foreign(key));
    // The binder's own note on a claim that it has bound.
    annotations.insert("pv.kubernetes.io/bind-completed".to_owned(), "yes".to_owned());
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
            "volumeMode": volumes::mode(template.mode),
            "volumeName": volume.as_str(),
        },
        "status": {
            "accessModes": bound["spec"]["accessModes"],
            "capacity": bound["spec"]["capacity"],
            "phase": "Bound",
        },
    })
}
