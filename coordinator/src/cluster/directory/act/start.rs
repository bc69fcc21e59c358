//! Stopping and starting a VM through its owner.

use somersault_coordinator_core::fleet::{Owner, SavedStart};
use somersault_coordinator_core::names::Key;

use crate::cluster::ClusterError;
use crate::cluster::change::start;
use crate::cluster::directory::store::Transaction;
use crate::cluster::error::not_found;
use crate::cluster::manifest::ObjectId;

/// Makes the owner stop the VM.
pub(super) fn stop(tx: &Transaction<'_>, vm: &Key, owner: &Owner) -> Result<(), ClusterError> {
    let id = owner_object(tx, vm, owner)?;
    tx.patch(&id, |object| start::stop(&id, object)).map(drop)
}

/// Gives the owner's start field back.
pub(super) fn restore(
    tx: &Transaction<'_>,
    vm: &Key,
    owner: &Owner,
    saved: &SavedStart,
) -> Result<(), ClusterError> {
    let id = owner_object(tx, vm, owner)?;
    tx.patch(&id, |object| start::restore(&id, object, saved)).map(drop)
}

/// The object to change, after looking who owns the VM now.
fn owner_object(tx: &Transaction<'_>, vm: &Key, owner: &Owner) -> Result<ObjectId, ClusterError> {
    let id = ObjectId::namespaced("VirtualMachine", vm);
    let object = tx.get(&id)?.ok_or_else(|| not_found(&id))?;
    start::owner_object(&id, &object, owner)
}
