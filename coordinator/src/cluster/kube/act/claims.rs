//! `PersistentVolumeClaim`s: deleted and created again under the same name. The binder does the rest.
//!
//! A claim of a `DataVolume` needs CDI's agreement before anything else: CDI makes a deleted claim anew within
//! milliseconds, the claim is bound to whatever is pre-bound to its name, and the importer overwrites it (measured on
//! CDI 1.66).
//!
//! ```text
//!   claim says populatedFor ──► CDI notes prePopulated on the DataVolume ──► read back ──► volumes may be pre-bound,
//!                                                                                          the claim may go
//! ```

use serde_json::Value;
use somersault_coordinator_core::io::ClaimTemplate;
use somersault_coordinator_core::names::{Key, Uid, VolumeName};

use super::{Api, only};
use crate::cluster::ClusterError;
use crate::cluster::change::claim::{self, Step};
use crate::cluster::change::{is_going, uid, volume};
use crate::cluster::error::{conflict, not_found, refused};
use crate::cluster::kube::api::again;
use crate::cluster::manifest::ObjectId;

/// Deletes a claim; its volume becomes Released and keeps its `claimRef`.
pub(super) async fn delete(api: &Api, key: &Key, wanted: &Uid) -> Result<(), ClusterError> {
    let id = claim::id(key);
    let Some(object) = api.get(&id).await? else { return Ok(()) };
    claim::check_uid(&id, &object, wanted)?;
    let pods = api.list("Pod", Some(&key.namespace)).await?;
    claim::check_unused(&id, pods.iter().map(|(_, pod)| pod))?;
    if let Some(name) = object["spec"]["volumeName"].as_str() {
        let volume_id = volume::id(&VolumeName::from(name));
        if let Some(stored) = api.get(&volume_id).await? {
            claim::check_kept(&id, &volume_id, &stored)?;
        }
    }
    tell_populated(api, key).await?;
    if is_going(&object) {
        return Ok(());
    }
    api.delete(&id, only(wanted.as_str()), None).await
}

/// Deletes a claim so that its `DataVolume` makes it anew and imports its image once more.
pub(super) async fn reimport(
    api: &Api,
    key: &Key,
    wanted: &Uid,
    data_volume: &str,
    name: &VolumeName,
) -> Result<(), ClusterError> {
    let id = claim::id(key);
    // Made anew already, or about to be: done.
    let object = api.get(&id).await?.filter(|object| {
        uid(object) == wanted.as_str() && !object["metadata"]["deletionTimestamp"].is_string()
    });
    let Some(object) = object else { return Ok(()) };
    let pods = api.list("Pod", Some(&key.namespace)).await?;
    claim::check_unused(&id, pods.iter().map(|(_, pod)| pod))?;
    let data_volume = ObjectId::namespaced("DataVolume", &Key::new(key.namespace.clone(), data_volume));
    claim::check_made_anew(&id, &object, &data_volume, api.get(&data_volume).await?.as_ref(), name)?;
    let volume_id = volume::id(name);
    let stored = api.get(&volume_id).await?.ok_or_else(|| not_found(&volume_id))?;
    claim::check_kept(&id, &volume_id, &stored)?;
    api.delete(&id, only(wanted.as_str()), None).await
}

/// Creates a claim on the volume that is pre-bound to it.
pub(super) async fn create(
    api: &Api,
    key: &Key,
    template: &ClaimTemplate,
    name: &VolumeName,
) -> Result<(), ClusterError> {
    let (id, volume_id) = (claim::id(key), volume::id(name));
    let on = api.get(&volume_id).await?.ok_or_else(|| not_found(&volume_id))?;
    let stored = api.get(&id).await?;
    match claim::next(&id, template, stored.as_ref(), &volume_id, &on)? {
        Step::Done | Step::Bind => return Ok(()),
        Step::Create => {}
    }
    let mut object = claim::new_claim(key, template, name);
    // A DataVolume's claim has its name.
    let data_volume = ObjectId::namespaced("DataVolume", key);
    if api.get(&data_volume).await?.is_some() {
        claim::say_populated(&mut object, &data_volume.name);
    }
    if api.create(&object).await?.is_some() {
        return Ok(());
    }
    match api.get(&id).await? {
        Some(stored) => claim::next(&id, template, Some(&stored), &volume_id, &on).map(drop),
        None => Err(conflict(&id, "it was there and is gone at this moment")),
    }
}

/// Makes sure that CDI never imports into a claim of this name again.
pub(super) async fn tell_populated(api: &Api, key: &Key) -> Result<(), ClusterError> {
    let id = claim::id(key);
    let Some(object) = api.get(&id).await? else { return Ok(()) };
    let Some(name) = claim::data_volume(&object) else { return Ok(()) };
    let data_volume = ObjectId::namespaced("DataVolume", &Key::new(key.namespace.clone(), name));
    match api.get(&data_volume).await? {
        None => return Ok(()),
        Some(found) if claim::is_filled(&found) => return Ok(()),
        // An import that is told that it is done would stop halfway.
        Some(found) if found["status"]["phase"] != "Succeeded" => {
            let phase = &found["status"]["phase"];
            return Err(refused(
                &data_volume,
                format!("its import has not ended (phase {phase}): wait for it"),
            ));
        }
        Some(_) => {}
    }
    api.modify(&id, |claim| {
        claim::say_populated(claim, name);
        Ok(())
    })
    .await?;
    // CDI needs some 20 ms (measured on CDI 1.66).
    for wait in again() {
        tokio::time::sleep(wait).await;
        if api.get(&data_volume).await?.as_ref().is_none_or(|found: &Value| claim::is_filled(found)) {
            return Ok(());
        }
    }
    Err(claim::would_be_filled_again(&id, &data_volume))
}
