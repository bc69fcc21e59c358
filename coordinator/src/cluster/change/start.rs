//! Stopping and starting a VM through its owner: the one field by which the owner decides, changed and given back
//! exactly as it was found.

use serde_json::{Map, Value, json};
use somersault_coordinator_core::fleet::{Owner, SavedStart};
use somersault_coordinator_core::names::Key;

use crate::cluster::ClusterError;
use crate::cluster::error::{conflict, refused};
use crate::cluster::manifest::ObjectId;

/// The Wukong's start field.
const START_STRATEGY: &str = "startStrategy";
/// The start fields of a VM, of which it uses one.
pub(in crate::cluster) const VM_FIELDS: [&str; 2] = ["running", "runStrategy"];

/// The object to change, after looking who owns the VM now.
pub(in crate::cluster) fn owner_object(
    id: &ObjectId,
    vm: &Value,
    owner: &Owner,
) -> Result<ObjectId, ClusterError> {
    let owners = vm["metadata"]["ownerReferences"].as_array();
    let controller = owners.into_iter().flatten().find(|owner| owner["controller"] == json!(true));
    let text = |field: &str| controller.and_then(|found| found[field].as_str()).unwrap_or_default();
    match owner {
        Owner::Itself if controller.is_none() => Ok(id.clone()),
        Owner::Wukong { name } if text("kind") == "Wukong" && text("name") == name => {
            Ok(ObjectId::namespaced("Wukong", &Key::new(id.namespace.clone(), name.clone())))
        }
        Owner::Unknown { kind, name } => {
            let why =
                format!("{kind} {name} controls it, and we do not know how to stop that: stop it there");
            Err(refused(id, why))
        }
        Owner::Itself | Owner::Wukong { .. } => {
            let found = format!("{} {}", text("kind"), text("name"));
            let found = if controller.is_none() { "nobody" } else { found.as_str() };
            Err(conflict(id, format!("its controller is {found} now, not {owner:?}")))
        }
    }
}

/// Makes the owner stop the VM.
pub(in crate::cluster) fn stop(id: &ObjectId, object: &mut Value) -> Result<(), ClusterError> {
    let spec = spec_of(id, object)?;
    if id.kind == "Wukong" {
        let strategy = spec.entry(START_STRATEGY).or_insert(Value::Null);
        if strategy.is_null() {
            *strategy = json!({});
        }
        let fields = strategy.as_object_mut();
        let fields = fields.ok_or_else(|| refused(id, "spec.startStrategy: not an object"))?;
        fields.insert("autoStart".to_owned(), json!(false));
        return Ok(());
    }
    match start_field(spec) {
        Some("running") => spec.insert("running".to_owned(), json!(false)),
        Some(field) => spec.insert(field.to_owned(), json!("Halted")),
        None => return Err(refused(id, "exactly one of running and runStrategy must be set")),
    };
    Ok(())
}

/// Gives the owner's start field back.
pub(in crate::cluster) fn restore(
    id: &ObjectId,
    object: &mut Value,
    start: &SavedStart,
) -> Result<(), ClusterError> {
    let spec = spec_of(id, object)?;
    let used = start_field(spec);
    match (id.kind.as_str(), start) {
        ("Wukong", SavedStart::WukongStartStrategy(None)) => _ = spec.remove(START_STRATEGY),
        ("Wukong", SavedStart::WukongStartStrategy(Some(text))) => {
            let value: Value = serde_json::from_str(text)
                .map_err(|e| refused(id, format!("the saved startStrategy is not JSON: {e}")))?;
            spec.insert(START_STRATEGY.to_owned(), value);
        }
        ("VirtualMachine", SavedStart::Running(value)) if used == Some("running") => {
            spec.insert("running".to_owned(), json!(value));
        }
        ("VirtualMachine", SavedStart::RunStrategy(value)) if used == Some("runStrategy") => {
            spec.insert("runStrategy".to_owned(), json!(value));
        }
        _ => {
            let why = format!("it does not have the start field that was saved ({start:?}) any more");
            return Err(conflict(id, why));
        }
    }
    Ok(())
}

fn spec_of<'a>(id: &ObjectId, object: &'a mut Value) -> Result<&'a mut Map<String, Value>, ClusterError> {
    object["spec"].as_object_mut().ok_or_else(|| refused(id, "spec: not an object"))
}

/// The one start field that a VM uses.
fn start_field(spec: &Map<String, Value>) -> Option<&'static str> {
    let mut set =
        VM_FIELDS.into_iter().filter(|field| spec.get(*field).is_some_and(|value| !value.is_null()));
    match (set.next(), set.next()) {
        (one, None) => one,
        _ => None,
    }
}
