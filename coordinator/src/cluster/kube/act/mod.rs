//! The coordinator's actions on an API server.
//!
//! Each action looks first: when what it wants is so already, nothing is written; when its precondition does not
//! hold, it is refused with the reason. What was looked at is what is changed: every write carries the uid or the
//! `resourceVersion` of what was read. An action of several writes does them in an order that leaves a state from
//! which the same action, repeated, goes on.
//!
//! | action | verbs | precondition |
//! |---|---|---|
//! | `Taint`, `Untaint`, `OutOfService`, `InService` | nodes: get, patch | resourceVersion |
//! | `DeletePod` | pods: get, delete | uid; the node that the proof is about |
//! | `DeleteAttachment` | volumeattachments: get, delete | uid; the node that the proof is about |
//! | `CreateMigration`, `CreateEvacuation` | their kinds: get, create | name |
//! | `LiveMigrate` | nodes: get; virtualmachineinstancemigrations: get, create | name |
//! | `CancelMigration`, `ProceedMigration` | volumemigrations: get, patch | resourceVersion |
//! | `RetainVolume`, `PrebindVolume` | persistentvolumes: get, patch | resourceVersion |
//! | `CreateVolume` | nodes, storageclasses: get; persistentvolumes: get, create | name |
//! | `Stage` | deployments: get; persistentvolumes: get, create; persistentvolumeclaims, pods of the namespace for them: get, create; pods: delete | name |
//! | `Unstage` | persistentvolumes, persistentvolumeclaims, pods: get, delete | uid, resourceVersion of an alias |
//! | `DiscardVolume` | persistentvolumes: get, patch | resourceVersion |
//! | `CreateLock` | persistentvolumes: get, create; persistentvolumeclaims: get, patch; datavolumes: get | name |
//! | `ForgetVolume`, `DeleteReleased` | persistentvolumes: get, delete; persistentvolumeclaims: get | uid, resourceVersion |
//! | `StopVm`, `RestoreStart` of a VM | virtualmachines: get, patch | uid |
//! | the same of a Wukong | wukongs: get, update | resourceVersion |
//! | `DeleteClaim` | persistentvolumeclaims: get, patch, delete; pods: list; datavolumes: get | uid |
//! | `ReimportClaim` | persistentvolumeclaims: get, delete; persistentvolumes, datavolumes: get; pods: list | uid |
//! | `CreateClaim` | persistentvolumeclaims: get, create; datavolumes: get | name |
//!
//! A dry run: persistentvolumeclaims: create; resourcequotas: list.
//! Besides, and only where component `probe-jobs` of `deploy/` gives these rights: cronjobs: get; jobs: get, create.

mod claims;
pub(super) mod dry_run;
pub(super) mod job;
mod live;
mod staging;
mod start;
mod volumes;

use kube::api::Preconditions;
use serde_json::{Value, json};
use somersault_coordinator_core::io::Action;
use somersault_coordinator_core::names::{Key, NodeName, Uid};

use super::api::Api;
use crate::cluster::ClusterError;
use crate::cluster::change::request::Request;
use crate::cluster::change::taint::{OUT_OF_SERVICE, OurTaint, UNREACHABLE};
use crate::cluster::change::{check_attached_to, uid};
use crate::cluster::error::{conflict, refused};
use crate::cluster::manifest::ObjectId;

/// Performs an action.
pub(super) async fn perform(api: &Api, action: &Action) -> Result<(), ClusterError> {
    match action {
        Action::Taint { node } => set_taint(api, node, UNREACHABLE).await,
        Action::Untaint { node } => remove_taint(api, node, UNREACHABLE).await,
        Action::DeletePod { pod, uid, proof } => delete_pod(api, pod, uid, proof.node()).await,
        Action::DeleteAttachment { attachment, uid, proof } => {
            delete_attachment(api, attachment, uid, proof.node()).await
        }
        Action::OutOfService { proof } => set_taint(api, proof.node(), OUT_OF_SERVICE).await,
        Action::InService { node } => remove_taint(api, node, OUT_OF_SERVICE).await,
        Action::CreateMigration { key, spec } => {
            create_request(api, &Request::migration(ObjectId::namespaced("VolumeMigration", key), spec)?)
                .await
        }
        Action::LiveMigrate { key, vm, node } => live::migrate(api, key, vm, node.as_ref()).await,
        Action::CancelMigration { key } => set_spec(api, key, "cancelled", true).await,
        Action::ProceedMigration { key } => set_spec(api, key, "preCopyOnly", false).await,
        Action::CreateEvacuation { name, spec } => {
            create_request(api, &Request::evacuation(ObjectId::cluster("Evacuation", name), spec)?).await
        }
        Action::RetainVolume { volume } => volumes::retain(api, volume).await,
        Action::CreateVolume(new) => volumes::create(api, new).await,
        Action::Stage(wanted) => staging::stage(api, wanted).await,
        Action::Unstage { name, claim_uid, volume_goes } => {
            staging::unstage(api, name, claim_uid.as_ref(), *volume_goes).await
        }
        Action::DiscardVolume { volume, claim_uid } => staging::discard(api, volume, claim_uid).await,
        Action::CreateLock { volume, claim, template } => {
            volumes::create_lock(api, volume, claim, template).await
        }
        Action::ForgetVolume { volume } => volumes::forget(api, volume).await,
        Action::DeleteReleased { volume, claim_uid } => {
            volumes::delete_released(api, volume, claim_uid).await
        }
        Action::PrebindVolume { volume, claim } => volumes::prebind(api, volume, claim).await,
        Action::DeleteClaim { claim, uid } => claims::delete(api, claim, uid).await,
        Action::ReimportClaim { claim, uid, data_volume, volume } => {
            claims::reimport(api, claim, uid, data_volume, volume).await
        }
        Action::CreateClaim { claim, template, volume } => claims::create(api, claim, template, volume).await,
        Action::StopVm { vm, owner } => start::stop(api, vm, owner).await,
        Action::RestoreStart { vm, owner, start } => start::restore(api, vm, owner, start).await,
    }
}

async fn set_taint(api: &Api, node: &NodeName, taint: OurTaint) -> Result<(), ClusterError> {
    let id = ObjectId::cluster("Node", node.as_str());
    api.modify(&id, |object| taint.set(&id, object)).await.map(drop)
}

async fn remove_taint(api: &Api, node: &NodeName, taint: OurTaint) -> Result<(), ClusterError> {
    let id = ObjectId::cluster("Node", node.as_str());
    let removed = api.modify(&id, |object| {
        taint.remove(object);
        Ok(())
    });
    match removed.await {
        // The Node object is gone, and its taint with it.
        Ok(_) | Err(ClusterError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Deletes a pod of the node that the proof is about, and of no other: at once, since no kubelet is left to agree.
async fn delete_pod(api: &Api, pod: &Key, wanted: &Uid, proven: &NodeName) -> Result<(), ClusterError> {
    let id = ObjectId::namespaced("Pod", pod);
    let Some(object) = api.get(&id).await? else { return Ok(()) };
    let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
    if node != proven.as_str() {
        let why = format!("it is on node {node:?}, and the proof is about {proven}");
        return Err(refused(&id, why));
    }
    let have = uid(&object);
    if have != wanted.as_str() {
        return Err(conflict(&id, format!("its uid is {have:?}, not {wanted}")));
    }
    api.delete(&id, only(wanted.as_str()), Some(0)).await
}

/// Deletes an attachment to the node that the proof is about, and to no other. Its attacher detaches the volume.
async fn delete_attachment(
    api: &Api,
    attachment: &str,
    wanted: &Uid,
    proven: &NodeName,
) -> Result<(), ClusterError> {
    let id = ObjectId::cluster("VolumeAttachment", attachment);
    let Some(object) = api.get(&id).await? else { return Ok(()) };
    check_attached_to(&id, &object, proven)?;
    let have = uid(&object);
    if have != wanted.as_str() {
        return Err(conflict(&id, format!("its uid is {have:?}, not {wanted}")));
    }
    if object["metadata"]["deletionTimestamp"].is_string() {
        return Ok(());
    }
    api.delete(&id, only(wanted.as_str()), None).await
}

/// The very object, whatever became of it.
fn only(uid: &str) -> Preconditions {
    Preconditions { uid: Some(uid.to_owned()), resource_version: None }
}

/// Creates one of our own objects; one of its name that asks the same is it already.
async fn create_request(api: &Api, request: &Request) -> Result<(), ClusterError> {
    create_once(api, &request.id, &request.object, |stored| request.check_same(stored)).await
}

/// Creates an object, unless one of its name is there: then `check_same` says whether that is this very one.
async fn create_once(
    api: &Api,
    id: &ObjectId,
    object: &Value,
    check_same: impl FnOnce(&Value) -> Result<(), ClusterError>,
) -> Result<(), ClusterError> {
    if api.create(object).await?.is_some() {
        return Ok(());
    }
    match api.get(id).await? {
        Some(stored) => check_same(&stored),
        None => Err(conflict(id, "it was there and is gone at this moment")),
    }
}

/// Sets a field of a migration's `spec`.
async fn set_spec(api: &Api, key: &Key, field: &str, value: bool) -> Result<(), ClusterError> {
    let id = ObjectId::namespaced("VolumeMigration", key);
    let set = api.modify(&id, |object| {
        object["spec"][field] = json!(value);
        Ok(())
    });
    set.await.map(drop)
}
