//! A migration at work holds its object by a finalizer, and so does a rebuild that has stopped its VM: deleted in the middle,
//! the object stays with its record until the VM has its disks and its start field back. Without it a coordinator that dies
//! then would leave a stopped VM of which nothing tells any more.
//!
//! ```text
//!   record of a phase at work ──► held ──► record of a final phase ──► let go
//!   the same while an old volume is being removed, of which nothing but the record tells
//! ```
//!
//! The finalizer is there before the record, and goes after it: at every moment in between something is to be put back.

use serde_json::Value;
use somersault_coordinator_core::io::Record;
use somersault_coordinator_core::rebuild::RebuildStage;
use somersault_crd::{recovery, volume_migration};

use super::api::Api;
use crate::cluster::manifest::ObjectId;
use crate::cluster::{ClusterError, change};

/// What a record says of its object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hold {
    Needed,
    /// As it is.
    Either,
    Over,
}

fn asked(record: &Record) -> Hold {
    match record {
        Record::Migration(record) if record.is_open() => Hold::Needed,
        Record::Migration(record) if record.phase.is_final() => Hold::Over,
        Record::Rebuild(record) if record.stage.has_vm_stopped() => Hold::Needed,
        Record::Rebuild(record) if record.stage != RebuildStage::Retaining => Hold::Over,
        _ => Hold::Either,
    }
}

/// The object as it may be given this record: held, where that has to be.
pub(super) async fn hold(
    api: &Api,
    id: &ObjectId,
    object: Value,
    record: &Record,
) -> Result<Value, ClusterError> {
    // Of one that is being deleted the API server takes no new finalizer; nothing of it was made yet.
    if asked(record) != Hold::Needed || is_held(id, &object) || change::is_going(&object) {
        return Ok(object);
    }
    api.modify(id, |object| {
        if !is_held(id, object) && !change::is_going(object) {
            let mut finalizers = finalizers(object).to_vec();
            finalizers.extend(finalizer(id).map(Value::from));
            object["metadata"]["finalizers"] = finalizers.into();
        }
        Ok(())
    })
    .await
}

/// Lets the object of a stored record go, where what it tells of is over.
pub(super) async fn let_go_after(api: &Api, id: &ObjectId, record: &Record) -> Result<(), ClusterError> {
    if asked(record) == Hold::Over { let_go(api, id).await } else { Ok(()) }
}

/// Lets it go, whatever its record says. One that is gone already is as it should be.
pub(super) async fn let_go(api: &Api, id: &ObjectId) -> Result<(), ClusterError> {
    let released = api.modify(id, |object| {
        if is_held(id, object) {
            let others = finalizers(object).iter().filter(|name| !is_ours(id, name)).cloned();
            object["metadata"]["finalizers"] = others.collect::<Vec<_>>().into();
        }
        Ok(())
    });
    match released.await {
        Ok(_) | Err(ClusterError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether our finalizer is on it.
pub(super) fn is_held(id: &ObjectId, object: &Value) -> bool {
    finalizers(object).iter().any(|name| is_ours(id, name))
}

fn is_ours(id: &ObjectId, name: &Value) -> bool {
    finalizer(id).is_some_and(|ours| name == ours)
}

/// What we put on objects of this kind.
fn finalizer(id: &ObjectId) -> Option<&'static str> {
    match id.kind.as_str() {
        "VolumeMigration" => Some(volume_migration::FINALIZER),
        "Recovery" => Some(recovery::FINALIZER),
        _ => None,
    }
}

fn finalizers(object: &Value) -> &[Value] {
    object["metadata"]["finalizers"].as_array().map_or(&[], Vec::as_slice)
}
