//! `PersistentVolume`s: kept, created, pre-bound, forgotten.

use kube::api::Preconditions;
use serde_json::Value;
use somersault_coordinator_core::io::{ClaimTemplate, NewVolume};
use somersault_coordinator_core::names::{Key, Uid, VolumeName};

use super::{Api, claims, create_once};
use crate::cluster::ClusterError;
use crate::cluster::change::{check_stays, claim, is_going, staging, volume};
use crate::cluster::error::{conflict, not_found, refused};
use crate::cluster::kube::api::again;
use crate::cluster::manifest::ObjectId;

/// Sets reclaim policy Retain, and reads it back: the data depends on it.
pub(super) async fn retain(api: &Api, name: &VolumeName) -> Result<(), ClusterError> {
    let id = volume::id(name);
    api.modify(&id, |object| {
        volume::retain(object);
        Ok(())
    })
    .await?;
    let stored = api.get(&id).await?.ok_or_else(|| not_found(&id))?;
    if volume::is_retained(&stored) {
        return Ok(());
    }
    let policy = &stored["spec"]["persistentVolumeReclaimPolicy"];
    Err(refused(&id, format!("set to Retain, its reclaim policy reads {policy}: find out who sets it back")))
}

/// Creates a static volume, kept for the claim that it names.
pub(super) async fn create(api: &Api, new: &NewVolume) -> Result<(), ClusterError> {
    let by = volume::reached_by(new);
    let by = api.get(&by).await?.ok_or_else(|| not_found(&by))?;
    let object = volume::new_volume(new, &by)?;
    claims::tell_populated(api, &new.claim).await?;
    create_volume(api, &volume::id(&new.name), &object).await
}

/// Creates the volume that locks a claim. From then on it is the one that the claim gets when it is made anew.
pub(super) async fn create_lock(
    api: &Api,
    name: &VolumeName,
    claim: &Key,
    template: &ClaimTemplate,
) -> Result<(), ClusterError> {
    claims::tell_populated(api, claim).await?;
    create_volume(api, &volume::id(name), &volume::new_lock(name, claim, template)).await
}

async fn create_volume(api: &Api, id: &ObjectId, object: &Value) -> Result<(), ClusterError> {
    let check_same = |stored: &Value| {
        if volume::is_same(stored, object) {
            check_stays(id, stored)
        } else {
            Err(conflict(id, "another volume has this name"))
        }
    };
    create_once(api, id, object, check_same).await
}

/// Removes the object of a volume that we created and that no claim is bound to.
pub(super) async fn forget(api: &Api, name: &VolumeName) -> Result<(), ClusterError> {
    delete_where(api, name, volume::check_forgettable).await
}

/// Removes the object of a volume that was Released by the claim of this uid.
pub(super) async fn delete_released(
    api: &Api,
    name: &VolumeName,
    claim_uid: &Uid,
) -> Result<(), ClusterError> {
    delete_where(api, name, |id, object, bound| volume::check_released(id, object, bound, claim_uid)).await
}

/// Removes the alias of this name, where there is one: most claims of ours have none.
pub(super) async fn delete_alias(api: &Api, namespace: &str, name: &str) -> Result<(), ClusterError> {
    delete_where(api, &name.into(), |id, object, _| staging::check_is_alias(namespace, id, object)).await
}

/// Removes the object where `check` allows that, as it was read then.
async fn delete_where(
    api: &Api,
    name: &VolumeName,
    check: impl Fn(&ObjectId, &Value, Option<&ObjectId>) -> Result<(), ClusterError>,
) -> Result<(), ClusterError> {
    let id = volume::id(name);
    let mut waits = again();
    loop {
        let Some(object) = api.get(&id).await?.filter(|object| !is_going(object)) else { return Ok(()) };
        check(&id, &object, bound_claim(api, &id, &object).await?.as_ref())?;
        let text = |field: &str| object["metadata"][field].as_str().map(str::to_owned);
        let as_read = Preconditions { uid: text("uid"), resource_version: text("resourceVersion") };
        match api.delete(&id, as_read, None).await {
            // Its own controller writes its phase; or a claim was bound to it in between.
            Err(ClusterError::Conflict { .. }) if let Some(wait) = waits.next() => {
                tokio::time::sleep(wait).await;
            }
            deleted => return deleted,
        }
    }
}

/// Points a volume to a claim by namespace and name.
pub(super) async fn prebind(api: &Api, name: &VolumeName, key: &Key) -> Result<(), ClusterError> {
    claims::tell_populated(api, key).await?;
    let id = volume::id(name);
    let seen = api.get(&id).await?.ok_or_else(|| not_found(&id))?;
    let bound = bound_claim(api, &id, &seen).await?;
    let prebound = api.modify(&id, |object| {
        if object["spec"]["claimRef"] != seen["spec"]["claimRef"] {
            return Err(conflict(&id, "it was bound in between"));
        }
        volume::prebind(&id, object, &claim::id(key), bound.as_ref())
    });
    prebound.await.map(drop)
}

/// The claim that a volume is bound to: only the one that its `claimRef` names can be.
async fn bound_claim(api: &Api, id: &ObjectId, object: &Value) -> Result<Option<ObjectId>, ClusterError> {
    let text = |field: &str| object["spec"]["claimRef"][field].as_str();
    let (Some(namespace), Some(name)) = (text("namespace"), text("name")) else { return Ok(None) };
    let claim_id = claim::id(&Key::new(namespace, name));
    let claim = api.get(&claim_id).await?;
    Ok(claim.is_some_and(|claim| volume::is_bound(id, object, &claim)).then_some(claim_id))
}
