//! The coordinator's records in the folder: read, compared and written under one lock.

use serde_json::Value;
use somersault_coordinator_core::io::Record;

use super::store::{Objects, Transaction};
use crate::cluster::ClusterError;
use crate::cluster::error::not_found;
use crate::cluster::manifest::ObjectId;
use crate::cluster::stored::{self, Known};

/// Stores a record of epoch `epoch`, while `leading` is the epoch in which we lead.
pub(super) fn commit(
    tx: &Transaction<'_>,
    known: &mut Known,
    record: &Record,
    epoch: u64,
    leading: u64,
) -> Result<(), ClusterError> {
    stored::check_epoch(record, epoch, leading)?;
    let id = stored::object_of(&record.key());
    let object = match (tx.get(&id)?, stored::new_object(record)) {
        (Some(object), _) => object,
        (None, Some(new)) => tx.create(new)?,
        (None, None) => return Err(not_found(&id)),
    };
    if let Some(next) = known.next(&object, record, epoch)? {
        tx.patch(&id, |object| {
            *object = next;
            Ok(())
        })?;
    }
    known.note(&object, record);
    Ok(())
}

/// Stores again the record that somebody deleted with its object, in the one that was just made.
pub(super) fn restore(
    tx: &Transaction<'_>,
    known: &mut Known,
    id: &ObjectId,
    object: &Value,
) -> Result<(), ClusterError> {
    let Some((record, next)) = known.lost(id, object)? else { return Ok(()) };
    tx.patch(id, |object| {
        *object = next;
        Ok(())
    })?;
    known.note(object, &record);
    Ok(())
}

/// Every stored record.
pub(super) fn all(objects: &Objects, known: &mut Known) -> Result<Vec<Record>, ClusterError> {
    *known = Known::of(objects.iter().map(|(_, entry)| (entry.id.clone(), &entry.value)))?;
    Ok(known.records())
}
