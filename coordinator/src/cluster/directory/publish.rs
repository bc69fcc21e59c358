//! The display part of our objects' status, written to the folder.

use serde_json::Value;
use somersault_coordinator_core::fleet::Fleet;
use somersault_coordinator_core::io::OpenRecovery;
use somersault_coordinator_core::view::View;

use super::records;
use super::store::{Objects, Transaction};
use crate::cluster::ClusterError;
use crate::cluster::manifest::ObjectId;
use crate::cluster::published::{self, Change, Published};
use crate::cluster::stored::Known;

/// Writes changes.
pub(super) fn write(
    tx: &Transaction<'_>,
    changes: Vec<Change>,
    published: &mut Published,
    known: &mut Known,
) -> Result<(), ClusterError> {
    for change in changes {
        if tx.get(&change.id)?.is_none() {
            match &change.template {
                Some(template) => {
                    let object = tx.create(template.clone())?;
                    records::restore(tx, known, &change.id, &object)?;
                }
                // Removed by somebody a moment ago.
                None => continue,
            }
        }
        let mut conditions = Value::Null;
        tx.patch(&change.id, |object| {
            conditions = change.conditions(&object["status"]["conditions"]);
            change.apply(object, &conditions);
            Ok(())
        })?;
        published.written(change, conditions);
    }
    Ok(())
}

/// Recoveries whose incident is over and that do not say so yet.
pub(super) fn stale(objects: &Objects, view: &View, fleet: &Fleet) -> Vec<ObjectId> {
    published::stale(&published::open_recoveries(objects.of_kind("Recovery")), view, fleet)
}

/// What a new leader has to show to its end.
pub(super) fn open_recoveries(objects: &Objects) -> Vec<OpenRecovery> {
    published::to_go_on(published::open_recoveries(objects.of_kind("Recovery")))
}

/// Marks Recoveries as ended.
pub(super) fn end(
    tx: &Transaction<'_>,
    stale: &[ObjectId],
    published: &mut Published,
) -> Result<(), ClusterError> {
    for id in stale {
        tx.patch(id, |object| {
            published::end(id, object);
            Ok(())
        })?;
        published.forget(id);
    }
    Ok(())
}
