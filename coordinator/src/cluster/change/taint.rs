//! Our taints on a node, and nobody else's.

use serde_json::{Value, json};
use somersault_coordinator_core::fleet::{FENCING_TAINT, OUT_OF_SERVICE_OURS, OUT_OF_SERVICE_TAINT};

use crate::cluster::ClusterError;
use crate::cluster::error::refused;
use crate::cluster::manifest::ObjectId;
use crate::cluster::stamp::now_seconds;

/// A taint that we set and remove.
#[derive(Clone, Copy, Debug)]
pub(in crate::cluster) struct OurTaint {
    key: &'static str,
    value: &'static str,
    effect: &'static str,
}

/// Nothing new is placed there, nothing that runs is evicted.
pub(in crate::cluster) const UNREACHABLE: OurTaint =
    OurTaint { key: FENCING_TAINT, value: "", effect: "NoSchedule" };
/// Everything there is deleted and detached. Others set it too: ours is told by its value.
pub(in crate::cluster) const OUT_OF_SERVICE: OurTaint =
    OurTaint { key: OUT_OF_SERVICE_TAINT, value: OUT_OF_SERVICE_OURS, effect: "NoExecute" };

impl OurTaint {
    /// Adds it, unless it is there. Kubernetes has one taint for each key and effect: what somebody else has set under
    /// them stays as it is.
    pub(in crate::cluster) fn set(self, id: &ObjectId, node: &mut Value) -> Result<(), ClusterError> {
        let taints = &mut node["spec"]["taints"];
        if taints.is_null() {
            *taints = json!([]);
        }
        let list = taints.as_array_mut().ok_or_else(|| refused(id, "spec.taints: not a list"))?;
        if !list.iter().any(|other| self.takes_the_place_of(other)) {
            let mut taint = json!({ "key": self.key, "effect": self.effect, "timeAdded": now_seconds() });
            if !self.value.is_empty() {
                taint["value"] = json!(self.value);
            }
            list.push(taint);
        }
        Ok(())
    }

    /// Removes it.
    pub(in crate::cluster) fn remove(self, node: &mut Value) {
        let Some(list) = node.pointer_mut("/spec/taints").and_then(Value::as_array_mut) else { return };
        list.retain(|taint| !self.is(taint));
        if list.is_empty()
            && let Some(spec) = node["spec"].as_object_mut()
        {
            spec.remove("taints");
        }
    }

    fn takes_the_place_of(self, other: &Value) -> bool {
        other["key"] == self.key && other["effect"] == self.effect
    }

    /// Whether this is it, and not one that somebody else has set under the same key.
    pub(in crate::cluster) fn is(self, other: &Value) -> bool {
        let value = other["value"].as_str().unwrap_or_default();
        self.takes_the_place_of(other) && (self.value.is_empty() || value == self.value)
    }
}
