//! Stopping and starting a VM through its owner: the one field by which the owner decides, changed and given back
//! exactly as it was found.

use serde_json::{Map, Value, json};
use somersault_coordinator_core::fleet::{Owner, SavedStart};
use somersault_coordinator_core::names::Key;

use crate::cluster::ClusterError;
use crate::cluster::directory::store::{Transaction, conflict, not_found, refused};
use crate::cluster::manifest::ObjectId;

/// The Wukong's start field.
const START_STRATEGY: &str = "startStrategy";

/// Makes the owner stop the VM.
pub(super) fn stop(tx: &Transaction<'_>, vm: &Key, owner: &Owner) -> Result<(), ClusterError> {
    let id = owner_object(tx, vm, owner)?;
    tx.patch(&id, |object| {
        let spec = spec_of(&id, object)?;
        if id.kind == "Wukong" {
            let strategy = spec.entry(START_STRATEGY).or_insert(Value::Null);
            if strategy.is_null() {
                *strategy = json!({});
            }
            let fields = strategy.as_object_mut();
            let fields =
                fields.ok_or_else(|| refused(&id.to_string(), "spec.startStrategy: not an object"))?;
            fields.insert("autoStart".to_owned(), json!(false));
            return Ok(());
        }
        match start_field(spec) {
            Some("running") => spec.insert("running".to_owned(), json!(false)),
            Some(field) => spec.insert(field.to_owned(), json!("Halted")),
            None => {
                return Err(refused(&id.to_string(), "exactly one of running and runStrategy must be set"));
            }
        };
        Ok(())
    })?;
    Ok(())
}

/// Gives the owner's start field back.
pub(super) fn restore(
    tx: &Transaction<'_>,
    vm: &Key,
    owner: &Owner,
    start: &SavedStart,
) -> Result<(), ClusterError> {
    let id = owner_object(tx, vm, owner)?;
    tx.patch(&id, |object| {
        let spec = spec_of(&id, object)?;
        let used = start_field(spec).map(str::to_owned);
        match (id.kind.as_str(), start) {
            ("Wukong", SavedStart::WukongStartStrategy(None)) => _ = spec.remove(START_STRATEGY),
            ("Wukong", SavedStart::WukongStartStrategy(Some(text))) => {
                let value: Value = serde_json::from_str(text).map_err(|e| {
                    refused(&id.to_string(), format!("the saved startStrategy is not JSON: {e}"))
                })?;
                spec.insert(START_STRATEGY.to_owned(), value);
            }
            ("VirtualMachine", SavedStart::Running(value)) if used.as_deref() == Some("running") => {
                spec.insert("running".to_owned(), json!(value));
            }
            ("VirtualMachine", SavedStart::RunStrategy(value)) if used.as_deref() == Some("runStrategy") => {
                spec.insert("runStrategy".to_owned(), json!(value));
            }
            _ => {
                let why = format!("it does not have the start field that was saved ({start:?}) any more");
                return Err(conflict(&id, why));
            }
        }
        Ok(())
    })?;
    Ok(())
}

fn spec_of<'a>(id: &ObjectId, object: &'a mut Value) -> Result<&'a mut Map<String, Value>, ClusterError> {
    object["spec"].as_object_mut().ok_or_else(|| refused(&id.to_string(), "spec: not an object"))
}

/// The one start field that a VM uses.
fn start_field(spec: &Map<String, Value>) -> Option<&'static str> {
    let set = |field: &str| spec.get(field).is_some_and(|value| !value.is_null());
    match (set("running"), set("runStrategy")) {
        (true, false) => Some("running"),
        (false, true) => Some("runStrategy"),
        _ => None,
    }
}

/// The object to change, after looking who owns the VM now.
fn owner_object(tx: &Transaction<'_>, vm: &Key, owner: &Owner) -> Result<ObjectId, ClusterError> {
    let id = ObjectId::namespaced("VirtualMachine", vm);
    let object = tx.get(&id)?.ok_or_else(|| not_found(&id))?;
    let owners = object["metadata"]["ownerReferences"].as_array();
    let controller = owners.into_iter().flatten().find(|owner| owner["controller"] == json!(true));
    let text = |field: &str| controller.and_then(|found| found[field].as_str()).unwrap_or_default();
    match owner {
        Owner::Itself if controller.is_none() => Ok(id),
        Owner::Wukong { name } if text("kind") == "Wukong" && text("name") == name => {
            Ok(ObjectId::namespaced("Wukong", &Key::new(vm.namespace.clone(), name.clone())))
        }
        Owner::Unknown { kind, name } => {
            let why =
                format!("{kind} {name} controls it, and we do not know how to stop that: stop it there");
            Err(refused(&id.to_string(), why))
        }
        Owner::Itself | Owner::Wukong { .. } => {
            let found = format!("{} {}", text("kind"), text("name"));
            let found = if controller.is_none() { "nobody" } else { found.as_str() };
            Err(conflict(&id, format!("its controller is {found} now, not {owner:?}")))
        }
    }
}
