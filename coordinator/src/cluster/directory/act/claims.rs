//! `PersistentVolumeClaim`s: deleted and created again under the same name, with what the binder does on both sides.

use serde_json::{Value, json};
use somersault_coordinator_core::io::ClaimTemplate;
use somersault_coordinator_core::names::{Key, Uid, VolumeName};

use super::volumes;
use crate::cluster::ClusterError;
use crate::cluster::change::claim::{self, Step};
use crate::cluster::change::{uid, volume};
use crate::cluster::directory::store::Transaction;
use crate::cluster::error::not_found;
use crate::cluster::manifest::ObjectId;

/// Deletes a claim; its volume becomes Released and keeps its `claimRef`.
pub(super) fn delete(tx: &Transaction<'_>, key: &Key, uid: &Uid) -> Result<(), ClusterError> {
    let id = claim::id(key);
    let Some(object) = tx.get(&id)? else { return Ok(()) };
    claim::check_uid(&id, &object, uid)?;
    check_unused(tx, &id)?;
    if let Some(name) = claim::data_volume(&object) {
        let data_volume = ObjectId::namespaced("DataVolume", &Key::new(key.namespace.clone(), name));
        if tx.get(&data_volume)?.is_some_and(|object| !claim::is_filled(&object)) {
            return Err(claim::would_be_filled_again(&id, &data_volume));
        }
    }
    delete_and_release(tx, &id, &object)
}

/// Deletes a claim so that its `DataVolume` makes it anew and imports its image once more.
pub(super) fn reimport(
    tx: &Transaction<'_>,
    key: &Key,
    wanted: &Uid,
    data_volume: &str,
    volume: &VolumeName,
) -> Result<(), ClusterError> {
    let id = claim::id(key);
    // Made anew already, or about to be: done.
    let object = tx.get(&id)?.filter(|object| uid(object) == wanted.as_str());
    let Some(object) = object else { return Ok(()) };
    check_unused(tx, &id)?;
    let data_volume = ObjectId::namespaced("DataVolume", &Key::new(key.namespace.clone(), data_volume));
    claim::check_made_anew(&id, &object, &data_volume, tx.get(&data_volume)?.as_ref(), volume)?;
    delete_and_release(tx, &id, &object)
}

fn check_unused(tx: &Transaction<'_>, id: &ObjectId) -> Result<(), ClusterError> {
    let pods = tx.list("Pod")?;
    let in_namespace = |pod: &&_| ObjectId::of(pod).is_ok_and(|pod| pod.namespace == id.namespace);
    claim::check_unused(id, pods.iter().filter(in_namespace))
}

fn delete_and_release(tx: &Transaction<'_>, id: &ObjectId, object: &Value) -> Result<(), ClusterError> {
    if let Some(name) = object["spec"]["volumeName"].as_str() {
        let volume = VolumeName::from(name);
        if let Some(stored) = tx.get(&volume::id(&volume))? {
            claim::check_kept(id, &volume::id(&volume), &stored)?;
            // First, so that a crash in between leaves the claim, and with it the reason to come here again.
            volumes::release(tx, &volume)?;
        }
    }
    tx.delete(id, Some(uid(object)))
}

/// Creates a claim and binds it to the volume that is pre-bound to it.
pub(super) fn create(
    tx: &Transaction<'_>,
    key: &Key,
    template: &ClaimTemplate,
    volume: &VolumeName,
) -> Result<(), ClusterError> {
    let (id, volume_id) = (claim::id(key), volume::id(volume));
    let stored_volume = tx.get(&volume_id)?.ok_or_else(|| not_found(&volume_id))?;
    let stored = tx.get(&id)?;
    match claim::next(&id, template, stored.as_ref(), &volume_id, &stored_volume)? {
        Step::Done => Ok(()),
        Step::Bind => {
            let uid = stored.as_ref().map(uid).unwrap_or_default();
            volumes::bind(tx, volume, key, uid).map(drop)
        }
        // The volume first, under the uid that the claim will have: a crash in between leaves a volume that is
        // Released in all but name, which the next pre-binding takes back.
        Step::Create => {
            let uid = uuid::Uuid::new_v4().to_string();
            let bound = volumes::bind(tx, volume, key, &uid)?;
            let mut object = claim::new_claim(key, template, volume);
            // The binder's own note on a claim that it has bound.
            object["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] = json!("yes");
            object["status"] = json!({
                "accessModes": bound["spec"]["accessModes"],
                "capacity": bound["spec"]["capacity"],
                "phase": "Bound",
            });
            tx.create_with_uid(object, &uid).map(drop)
        }
    }
}
