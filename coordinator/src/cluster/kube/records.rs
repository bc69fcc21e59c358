//! The coordinator's records in the status of our objects, by compare-and-swap.
//!
//! ```text
//!   read ──► compare epoch and record with what we last saw ──► replace the status, if still as read ──► stored
//!    ▲                    │                                                   │
//!    │                    └──► conflict: somebody else's record               └──► changed since: an edit of the
//!    └─────────────────────────────────────────────────────────────────────────────spec, or our own display
//! ```

use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use somersault_coordinator_core::io::Record;

use super::api::{Api, again};
use super::held;
use crate::cluster::ClusterError;
use crate::cluster::error::not_found;
use crate::cluster::manifest::ObjectId;
use crate::cluster::stored::{self, Known};

/// Stores a record of epoch `epoch`, while `leading` is the epoch in which we lead.
pub(super) async fn commit(
    api: &Api,
    known: &Mutex<Known>,
    record: &Record,
    epoch: u64,
    leading: u64,
) -> Result<(), ClusterError> {
    stored::check_epoch(record, epoch, leading)?;
    let id = stored::object_of(&record.key());
    let mut waits = again();
    loop {
        let object = match (api.get(&id).await?, stored::new_object(record)) {
            (Some(object), _) => Some(object),
            (None, Some(new)) => api.create(&new).await?,
            (None, None) => return Err(not_found(&id)),
        };
        // Made by somebody else at this moment: read it.
        let Some(object) = object else { continue };
        let object = held::hold(api, &id, object, record).await?;
        let next = lock(known).next(&object, record, epoch)?;
        let written = match next {
            Some(next) => api.replace_record(&id, &next).await,
            None => Ok(()),
        };
        match written {
            Ok(()) => {
                lock(known).note(&object, record);
                return held::let_go_after(api, &id, record).await;
            }
            Err(ClusterError::Conflict { .. }) if let Some(wait) = waits.next() => {
                tokio::time::sleep(wait).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Stores again the record that somebody deleted with its object, in the one that was made since. One that a commit has
/// stored in the meantime is newer, and stays.
pub(super) async fn restore(
    api: &Api,
    known: &Mutex<Known>,
    id: &ObjectId,
    object: &Value,
) -> Result<(), ClusterError> {
    let lost = lock(known).lost(id, object)?;
    let Some((record, next)) = lost else { return Ok(()) };
    tracing::warn!(object = %id, "somebody deleted it with its record, which is stored again");
    api.replace_record(id, &next).await?;
    lock(known).note(object, &record);
    Ok(())
}

/// Every stored record.
pub(super) async fn all(api: &Api, known: &Mutex<Known>) -> Result<Vec<Record>, ClusterError> {
    let mut objects = Vec::new();
    for kind in stored::KINDS {
        objects.extend(api.list(kind, None).await?);
    }
    let found = Known::of(objects.iter().map(|(id, object)| (id.clone(), object)))?;
    let records = found.records();
    *lock(known) = found;
    // Whoever stored its last record died before it let the object go. That one of them cannot be let go is no reason to
    // leave the cluster without a leader.
    for (id, _) in objects.iter().filter(|(id, object)| held::is_held(id, object)) {
        if let Some(record) = records.iter().find(|record| stored::object_of(&record.key()) == *id)
            && let Err(error) = held::let_go_after(api, id, record).await
        {
            tracing::warn!(object = %id, %error, "what it tells of is over, and it cannot be let go");
        }
    }
    Ok(records)
}

fn lock(known: &Mutex<Known>) -> std::sync::MutexGuard<'_, Known> {
    // It is changed by one insertion, or replaced as a whole.
    known.lock().unwrap_or_else(PoisonError::into_inner)
}
