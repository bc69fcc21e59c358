//! Stopping and starting a VM through its owner.
//!
//! A VM's field is patched, for the very VM and whatever its version: beside a stopped Wukong its object changes many
//! times a second (measured on KubeVirt 1.9). A Wukong's field is an object that must be given back to the byte, which
//! no patch can say, so the Wukong is replaced as it was read but for that field.

use serde_json::{Map, Value, json};
use somersault_coordinator_core::fleet::{Owner, SavedStart};
use somersault_coordinator_core::names::Key;

use super::Api;
use crate::cluster::ClusterError;
use crate::cluster::change::start;
use crate::cluster::error::not_found;
use crate::cluster::manifest::ObjectId;

/// Makes the owner stop the VM.
pub(super) async fn stop(api: &Api, vm: &Key, owner: &Owner) -> Result<(), ClusterError> {
    change(api, vm, owner, start::stop).await
}

/// Gives the owner's start field back.
pub(super) async fn restore(
    api: &Api,
    vm: &Key,
    owner: &Owner,
    saved: &SavedStart,
) -> Result<(), ClusterError> {
    change(api, vm, owner, |id, object| start::restore(id, object, saved)).await
}

async fn change(
    api: &Api,
    vm: &Key,
    owner: &Owner,
    change: impl Fn(&ObjectId, &mut Value) -> Result<(), ClusterError> + Send + Sync,
) -> Result<(), ClusterError> {
    let vm_id = ObjectId::namespaced("VirtualMachine", vm);
    let stored = api.get(&vm_id).await?.ok_or_else(|| not_found(&vm_id))?;
    let id = start::owner_object(&vm_id, &stored, owner)?;
    if id != vm_id {
        return api.modify_exactly(&id, |object| change(&id, object)).await.map(drop);
    }
    let mut object = stored.clone();
    change(&id, &mut object)?;
    let changed =
        start::VM_FIELDS.into_iter().filter(|field| object["spec"][*field] != stored["spec"][*field]);
    let spec: Map<_, _> = changed.map(|field| (field.to_owned(), object["spec"][field].clone())).collect();
    if spec.is_empty() {
        return Ok(());
    }
    api.merge(&id, &stored, json!({ "spec": spec })).await
}
