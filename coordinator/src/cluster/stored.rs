//! The coordinator's records in the status of our objects: which one may replace which.
//!
//! ```text
//!   stored == new                      ──► nothing to do: it is there already
//!   stored is of a newer epoch         ──► conflict: somebody else leads
//!   stored != what we last saw         ──► conflict: somebody else changed it
//!   else                               ──► the object with the new record, to be written
//! ```
//!
//! What is compared is the record itself, and not `resourceVersion`: a person who cancels a migration, or our own
//! display, changes the object and not the record, and must not make a commit fail. Only the record's fields of a
//! status are written: the others are display, or of a newer version of us.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use somersault_coordinator_core::io::{Record, RecordKey};
use somersault_coordinator_core::names::Uid;
use somersault_crd as crd;

use super::error::{conflict, refused};
use super::manifest::{FieldError, ObjectId, records};
use super::{ClusterError, change};

/// Fields of each kind's status that are the record; the others are display.
const FENCE_FIELDS: [&str; 1] = ["fence"];
const MIGRATION_FIELDS: [&str; 10] =
    ["phase", "reason", "message", "epoch", "objectUID", "stopped", "guest", "disks", "checks", "downtimeMs"];
const EVACUATION_FIELDS: [&str; 4] = ["epoch", "plan", "complete", "message"];
const REBUILD_FIELDS: [&str; 1] = ["rebuild"];

/// Kinds that hold records.
pub(super) const KINDS: [&str; 4] = ["NodeHealth", "VolumeMigration", "Evacuation", "Recovery"];

/// Records as they were when we last read or wrote them.
#[derive(Debug, Default)]
pub(super) struct Known(BTreeMap<RecordKey, Last>);

#[derive(Debug)]
struct Last {
    /// Of the object: one of the same name that was made later starts without a record.
    uid: String,
    record: Option<Record>,
}

impl Known {
    /// Every record of these objects. One that cannot be read stops everything: to act as if it were not there may
    /// run a VM twice.
    pub(super) fn of<'a>(objects: impl Iterator<Item = (ObjectId, &'a Value)>) -> Result<Self, ClusterError> {
        let mut known = Self::default();
        for (id, object) in objects {
            let Some(key) = key_of(&id) else { continue };
            let record = read(object, &key).map_err(|e| refused(&id, repair(&e)))?;
            known.0.insert(key, Last { uid: change::uid(object).to_owned(), record });
        }
        Ok(known)
    }

    /// The records.
    pub(super) fn records(&self) -> Vec<Record> {
        self.0.values().filter_map(|last| last.record.clone()).collect()
    }

    /// The object with this record of epoch `epoch` in it, to be written; `None` where it is stored already.
    pub(super) fn next(
        &self,
        object: &Value,
        record: &Record,
        epoch: u64,
    ) -> Result<Option<Value>, ClusterError> {
        let key = record.key();
        let id = object_of(&key);
        check_object(&id, object, record)?;
        let stored = read(object, &key).map_err(|e| refused(&id, repair(&e)))?;
        if stored.as_ref() == Some(record) {
            return Ok(None);
        }
        if let Some(stored) = stored.as_ref().filter(|stored| epoch_of(stored) > epoch) {
            return Err(conflict(&id, format!("its record is of the newer epoch {}", epoch_of(stored))));
        }
        let last = self.0.get(&key).filter(|last| last.uid == change::uid(object));
        if stored.as_ref() != last.and_then(|last| last.record.as_ref()) {
            return Err(conflict(&id, "its record was changed by somebody else"));
        }
        let mut object = object.clone();
        write(&mut object, record).map_err(|e| refused(&id, e.to_string()))?;
        Ok(Some(object))
    }

    /// The record that was in an object of this name before somebody deleted it, where the new one has none, and the object
    /// with it: from this record a new leader goes on. Migrations and evacuations are people's, who may delete them.
    pub(super) fn lost(
        &self,
        id: &ObjectId,
        object: &Value,
    ) -> Result<Option<(Record, Value)>, ClusterError> {
        let Some(key) = key_of(id) else { return Ok(None) };
        let last = self.0.get(&key).filter(|last| last.uid != change::uid(object));
        let record = last.and_then(|last| last.record.as_ref()).filter(|r| new_object(r).is_some());
        let Some(record) = record else { return Ok(None) };
        if read(object, &key).map_err(|e| refused(id, repair(&e)))?.is_some() {
            return Ok(None);
        }
        let mut object = object.clone();
        write(&mut object, record).map_err(|e| refused(id, e.to_string()))?;
        Ok(Some((record.clone(), object)))
    }

    /// The object holds this record now.
    pub(super) fn note(&mut self, object: &Value, record: &Record) {
        let last = Last { uid: change::uid(object).to_owned(), record: Some(record.clone()) };
        self.0.insert(record.key(), last);
    }
}

/// Refuses a record of an earlier object of this name.
fn check_object(id: &ObjectId, object: &Value, record: &Record) -> Result<(), ClusterError> {
    let of = |uid: &Uid| Err(conflict(id, format!("the record is of its predecessor with uid {uid}")));
    match record {
        Record::Migration(record) if record.uid.as_str() != change::uid(object) => of(&record.uid),
        Record::Evacuation(record) if record.uid.as_str() != change::uid(object) => of(&record.uid),
        _ => Ok(()),
    }
}

/// Refuses a record of another epoch than the one in which we lead.
pub(super) fn check_epoch(record: &Record, epoch: u64, leading: u64) -> Result<(), ClusterError> {
    if leading == epoch {
        return Ok(());
    }
    let why = format!("epoch {leading} leads, and this record is of epoch {epoch}");
    Err(conflict(&object_of(&record.key()), why))
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
        Record::Rebuild(record) => record.epoch,
    }
}

/// The object that holds a record.
pub(super) fn object_of(key: &RecordKey) -> ObjectId {
    match key {
        RecordKey::Fence(node) => ObjectId::cluster("NodeHealth", node.as_str()),
        RecordKey::Migration(key) => ObjectId::namespaced("VolumeMigration", key),
        RecordKey::Evacuation(name) => ObjectId::cluster("Evacuation", name),
        RecordKey::Rebuild(vm) => ObjectId::namespaced("Recovery", vm),
    }
}

/// The record that an object may hold.
fn key_of(id: &ObjectId) -> Option<RecordKey> {
    match id.kind.as_str() {
        "NodeHealth" => Some(RecordKey::Fence(id.name.as_str().into())),
        "VolumeMigration" => Some(RecordKey::Migration(id.key())),
        "Evacuation" => Some(RecordKey::Evacuation(id.name.clone())),
        "Recovery" => Some(RecordKey::Rebuild(id.key())),
        _ => None,
    }
}

/// The object of a record that does not exist yet, where it is the coordinator's to make: with its first record.
pub(super) fn new_object(record: &Record) -> Option<Value> {
    match record {
        Record::Fence(record) => Some(new_node_health(record.node.as_str())),
        Record::Rebuild(record) => Some(new_recovery(&ObjectId::namespaced("Recovery", &record.vm))),
        Record::Migration(_) | Record::Evacuation(_) => None,
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

/// The `Recovery` of a VM that nobody has said anything about yet.
pub(super) fn new_recovery(id: &ObjectId) -> Value {
    json!({
        "apiVersion": crd::API_VERSION,
        "kind": "Recovery",
        "metadata": { "namespace": id.namespace, "name": id.name },
        "spec": { "vm": id.name },
    })
}

/// An object's status, typed; absent is empty.
fn status<T: DeserializeOwned + Default>(object: &Value) -> Result<T, FieldError> {
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
            let uid = change::uid(object);
            records::migration_record(key, uid, Some(&status))?.map(Box::new).map(Record::Migration)
        }
        RecordKey::Evacuation(name) => {
            let status: crd::EvacuationStatus = status(object)?;
            records::evacuation_record(name, change::uid(object), Some(&status))?.map(Record::Evacuation)
        }
        RecordKey::Rebuild(vm) => {
            let status: crd::RecoveryStatus = status(object)?;
            let rebuild = status.rebuild.as_ref().map(|rebuild| records::rebuild_record(vm, rebuild));
            rebuild.transpose()?.map(Box::new).map(Record::Rebuild)
        }
    })
}

fn write(object: &mut Value, record: &Record) -> Result<(), FieldError> {
    let (fields, values) = match record {
        Record::Fence(record) => {
            let fence = Some(records::fence_status(record)?);
            (&FENCE_FIELDS[..], fields(&crd::NodeHealthStatus { fence, ..Default::default() })?)
        }
        Record::Migration(record) => {
            let mut status = crd::VolumeMigrationStatus::default();
            records::set_migration(record, &mut status)?;
            (&MIGRATION_FIELDS[..], fields(&status)?)
        }
        Record::Evacuation(record) => {
            let mut status = crd::EvacuationStatus::default();
            records::set_evacuation(record, &mut status)?;
            (&EVACUATION_FIELDS[..], fields(&status)?)
        }
        Record::Rebuild(record) => {
            let rebuild = Some(records::rebuild_status(record)?);
            (&REBUILD_FIELDS[..], fields(&crd::RecoveryStatus { rebuild, ..Default::default() })?)
        }
    };
    set_fields(object, fields, &values);
    Ok(())
}

fn fields(status: &impl Serialize) -> Result<Map<String, Value>, FieldError> {
    match serde_json::to_value(status) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(FieldError::new("status", "not an object")),
        Err(e) => Err(FieldError::new("status", &e)),
    }
}

/// Makes these fields of an object's status what `values` has, absent ones absent; the others stay.
pub(super) fn set_fields(object: &mut Value, fields: &[&str], values: &Map<String, Value>) {
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    for field in fields {
        match values.get(*field) {
            Some(value) => object["status"][*field] = value.clone(),
            None => _ = object["status"].as_object_mut().map(|status| status.remove(*field)),
        }
    }
}
