//! A migration at work holds its object by a finalizer: deleted in the middle, it is a migration that somebody cancels, with
//! its record, until its VM has its disks and its start field back. Without it a coordinator that dies then would leave a
//! stopped VM of which nothing tells any more.
//!
//! ```text
//!   record of a phase at work ──► held ──► record of a final phase ──► let go
//!   the same while an old volume is being removed, of which nothing but the record tells
//! ```
//!
//! The finalizer is there before the record, and goes after it: at every moment in between something is to be put back.

use serde_json::Value;
use somersault_coordinator_core::io::Record;
use somersault_crd::volume_migration::FINALIZER;

use super::api::Api;
use crate::cluster::manifest::ObjectId;
use crate::cluster::{ClusterError, change};

/// The object as it may be given this record: held, where that has to be.
pub(super) async fn hold(
    api: &Api,
    id: &ObjectId,
    object: Value,
    record: &Record,
) -> Result<Value, ClusterError> {
    let at_work = matches!(record, Record::Migration(record) if record.is_open());
    // Of one that is being deleted the API server takes no new finalizer; nothing of it was made yet.
    if !at_work || is_held(&object) || change::is_going(&object) {
        return Ok(object);
    }
    api.modify(id, |object| {
        if !is_held(object) && !change::is_going(object) {
            let mut finalizers = finalizers(object).to_vec();
            finalizers.push(FINALIZER.into());
            object["metadata"]["finalizers"] = finalizers.into();
        }
        Ok(())
    })
    .await
}

/// Lets the object of a stored record go, where its migration is over.
pub(super) async fn let_go_after(api: &Api, id: &ObjectId, record: &Record) -> Result<(), ClusterError> {
    match record {
        Record::Migration(record) if record.phase.is_final() && !record.is_open() => let_go(api, id).await,
        _ => Ok(()),
    }
}

/// Lets it go, whatever its record says. One that is gone already is as it should be.
pub(super) async fn let_go(api: &Api, id: &ObjectId) -> Result<(), ClusterError> {
    let released = api.modify(id, |object| {
        if is_held(object) {
            let others = finalizers(object).iter().filter(|name| *name != FINALIZER).cloned();
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
pub(super) fn is_held(object: &Value) -> bool {
    finalizers(object).iter().any(|name| name == FINALIZER)
}

fn finalizers(object: &Value) -> &[Value] {
    object["metadata"]["finalizers"].as_array().map_or(&[], Vec::as_slice)
}
