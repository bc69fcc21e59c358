//! Our taint on a node, and nobody else's.

use serde_json::{Value, json};
use somersault_coordinator_core::fleet::FENCING_TAINT;

use crate::cluster::ClusterError;
use crate::cluster::error::refused;
use crate::cluster::manifest::ObjectId;
use crate::cluster::stamp::now_seconds;

/// Effect of our taint: nothing new is placed there, nothing that runs is evicted.
const EFFECT: &str = "NoSchedule";

/// Adds our taint, unless it is there.
pub(in crate::cluster) fn set(id: &ObjectId, node: &mut Value) -> Result<(), ClusterError> {
    let taints = &mut node["spec"]["taints"];
    if taints.is_null() {
        *taints = json!([]);
    }
    let list = taints.as_array_mut().ok_or_else(|| refused(id, "spec.taints: not a list"))?;
    if !list.iter().any(is_ours) {
        list.push(json!({ "key": FENCING_TAINT, "effect": EFFECT, "timeAdded": now_seconds() }));
    }
    Ok(())
}

/// Removes our taint.
pub(in crate::cluster) fn remove(node: &mut Value) {
    let Some(list) = node.pointer_mut("/spec/taints").and_then(Value::as_array_mut) else { return };
    list.retain(|taint| !is_ours(taint));
    if list.is_empty()
        && let Some(spec) = node["spec"].as_object_mut()
    {
        spec.remove("taints");
    }
}

/// Whether a taint is ours.
pub(in crate::cluster) fn is_ours(taint: &Value) -> bool {
    taint["key"] == FENCING_TAINT && taint["effect"] == EFFECT
}
