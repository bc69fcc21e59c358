//! The coordinator's records in the status of our objects, by compare-and-swap.
//!
//! What is compared is the record itself, and not `resourceVersion`: a person who cancels a migration, or our own
//! display, changes the object and not the record, and must not make a commit fail.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use somersault_coordinator_core::io::{Record, RecordKey};
use somersault_crd as crd;

use super::store::{Objects, Transaction, conflict, not_found, refused};
use crate::cluster::ClusterError;
use crate::cluster::manifest::{FieldError, ObjectId, records};

/// Records as they were when we last read or wrote them.
#[derive(Debug, Default)]
pub(super) struct Known(BTreeMap<RecordKey, Last>);

#[derive(Debug)]
struct Last {
    /// Of the object: one of the same name that was made later starts without a record.
    uid: Option<String>,
    record: Option<Record>,
}

/// Stores a record of epoch `epoch`, while `leading` is the epoch in which we lead.
pub(super) fn commit(
    tx: &Transaction<'_>,
    known: &mut Known,
    record: &Record,
    epoch: u64,
    leading: u64,
) -> Result<(), ClusterError> {
    let id = object_of(&record.key());
    if leading != epoch {
        return Err(conflict(&id, format!("epoch {leading} leads, and this record is of epoch {epoch}")));
    }
    let object = match (tx.get(&id)?, record) {
        (Some(object), _) => object,
        // The coordinator's own object: made with its first record.
        (None, Record::Fence(_)) => tx.create(new_node_health(&id.name))?,
        (None, _) => return Err(not_found(&id)),
    };
    let uid = object["metadata"]["uid"].as_str().map(str::to_owned);
    let stored = read(&object, &record.key()).map_err(|e| refused(&id.to_string(), repair(&e)))?;
    let last = known.0.get(&record.key()).filter(|last| last.uid == uid);
    let expected = last.and_then(|last| last.record.as_ref());
    if stored.as_ref() != Some(record) {
        if let Some(stored) = stored.as_ref().filter(|stored| epoch_of(stored) > epoch) {
            return Err(conflict(&id, format!("its record is of the newer epoch {}", epoch_of(stored))));
        }
        if stored.as_ref() != expected {
            return Err(conflict(&id, "its record was changed by somebody else".to_owned()));
        }
        tx.patch(&id, |object| write(object, record).map_err(|e| refused(&id.to_string(), e.to_string())))?;
    }
    known.0.insert(record.key(), Last { uid, record: Some(record.clone()) });
    Ok(())
}

/// Every stored record. One that cannot be read stops everything: to act as if it were not there may run a VM twice.
pub(super) fn all(objects: &Objects, known: &mut Known) -> Result<Vec<Record>, ClusterError> {
    let mut found = Known::default();
    for (_, entry) in objects.iter() {
        let Some(key) = key_of(&entry.id) else { continue };
        let record = read(&entry.value, &key).map_err(|e| refused(&entry.id.to_string(), repair(&e)))?;
        let uid = entry.value["metadata"]["uid"].as_str().map(str::to_owned);
        found.0.insert(key, Last { uid, record });
    }
    let records = found.0.values().filter_map(|last| last.record.clone()).collect();
    *known = found;
    Ok(records)
}

/// The newest epoch of any record.
pub(super) fn newest_epoch(records: &[Record]) -> u64 {
    records.iter().map(epoch_of).max().unwrap_or(0)
}

fn repair(error: &FieldError) -> String {
    format!(
        "{error}: mend this field of the coordinator's record, or remove the object if its incident is over"
    )
}

fn epoch_of(record: &Record) -> u64 {
    match record {
        Record::Fence(record) => record.epoch,
        Record::Migration(record) => record.epoch,
        Record::Evacuation(record) => record.epoch,
    }
}

/// The object that holds a record.
fn object_of(key: &RecordKey) -> ObjectId {
    match key {
        RecordKey::Fence(node) => ObjectId::cluster("NodeHealth", node.as_str()),
        RecordKey::Migration(key) => ObjectId::namespaced("VolumeMigration", key),
        RecordKey::Evacuation(name) => ObjectId::cluster("Evacuation", name),
    }
}

/// The record that an object may hold.
fn key_of(id: &ObjectId) -> Option<RecordKey> {
    match id.kind.as_str() {
        "NodeHealth" => Some(RecordKey::Fence(id.name.as_str().into())),
        "VolumeMigration" => Some(RecordKey::Migration(id.key())),
        "Evacuation" => Some(RecordKey::Evacuation(id.name.clone())),
        _ => None,
    }
}

/// An object of a node that nobody has said anything about yet.
pub(super) fn new_node_health(node: &str) -> Value {
    json!({
        "apiVersion": crd::API_VERSION,
        "kind": "NodeHealth",
        "metadata": { "name": node },
        "spec": {},
    })
}

/// An object's status, typed; absent is empty.
pub(super) fn status<T: DeserializeOwned + Default>(object: &Value) -> Result<T, FieldError> {
    match &object["status"] {
        Value::Null => Ok(T::default()),
        status => serde_path_to_error::deserialize(status)
            .map_err(|e| FieldError::new(format!("status.{}", e.path()), e.inner())),
    }
}

fn read(object: &Value, key: &RecordKey) -> Result<Option<Record>, FieldError> {
    Ok(match key {
        RecordKey::Fence(node) => {
            let status: crd::NodeHealthStatus = status(object)?;
            let fence = status.fence.as_ref().map(|fence| records::fence_record(node, fence)).transpose()?;
            fence.map(Record::Fence)
        }
        RecordKey::Migration(key) => {
            let status: crd::VolumeMigrationStatus = status(object)?;
            records::migration_record(key, Some(&status))?.map(Box::new).map(Record::Migration)
        }
        RecordKey::Evacuation(name) => {
            let status: crd::EvacuationStatus = status(object)?;
            records::evacuation_record(name, Some(&status))?.map(Record::Evacuation)
        }
    })
}

fn write(object: &mut Value, record: &Record) -> Result<(), FieldError> {
    let json = |status: Result<Value, serde_json::Error>| status.map_err(|e| FieldError::new("status", &e));
    object["status"] = match record {
        Record::Fence(record) => {
            let mut status: crd::NodeHealthStatus = status(object)?;
            status.fence = Some(records::fence_status(record)?);
            json(serde_json::to_value(status))?
        }
        Record::Migration(record) => {
            let mut status: crd::VolumeMigrationStatus = status(object)?;
            records::set_migration(record, &mut status)?;
            json(serde_json::to_value(status))?
        }
        Record::Evacuation(record) => {
            let mut status: crd::EvacuationStatus = status(object)?;
            records::set_evacuation(record, &mut status)?;
            json(serde_json::to_value(status))?
        }
    };
    Ok(())
}
