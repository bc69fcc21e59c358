//! What our actions make of objects: pure changes of manifests, the same for a folder and for an API server.
//!
//! ```text
//!   object as stored ──► look: is it so already? may it be done? ──► object as it should be, or the refusal
//! ```
//!
//! Who reads and writes the objects, and how nobody gets in between, is the clusters' own matter.

pub(super) mod claim;
pub(super) mod job;
pub(super) mod live;
pub(super) mod quota;
pub(super) mod request;
pub(super) mod staging;
pub(super) mod start;
pub(super) mod taint;
pub(super) mod volume;

use serde_json::Value;
use somersault_coordinator_core::names::NodeName;

use super::ClusterError;
use super::error::{conflict, refused};
use super::manifest::ObjectId;

/// Label on the objects that we create.
pub(super) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Its value.
pub(super) const MANAGER: &str = "somersault";

/// Whether we created the object.
pub(super) fn is_ours(object: &Value) -> bool {
    object["metadata"]["labels"][MANAGED_BY] == MANAGER
}

/// Refuses an object that is going to be gone: what it is now says nothing about what will be there.
pub(super) fn check_stays(id: &ObjectId, object: &Value) -> Result<(), ClusterError> {
    if is_going(object) { Err(conflict(id, "it is being deleted")) } else { Ok(()) }
}

/// Whether the object is being deleted, and waits for its finalizers.
pub(super) fn is_going(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// Its uid; empty where a manifest written by hand has none.
pub(super) fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

/// Refuses an attachment to any other node than the one that the proof is about.
pub(super) fn check_attached_to(
    id: &ObjectId,
    attachment: &Value,
    proven: &NodeName,
) -> Result<(), ClusterError> {
    let node = attachment["spec"]["nodeName"].as_str().unwrap_or_default();
    if node == proven.as_str() {
        return Ok(());
    }
    Err(refused(id, format!("it is to node {node:?}, and the proof is about {proven}")))
}
