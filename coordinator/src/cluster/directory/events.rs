//! Events: what people should know, as `kubectl get events` shows it. The same notice again counts up instead of
//! making another object, and only the newest are kept.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde_json::{Value, json};
use somersault_coordinator_core::io::{Notice, Severity, Subject};
use somersault_crd as crd;

use super::store::Transaction;
use super::write::now_seconds;
use crate::cluster::ClusterError;
use crate::cluster::manifest::ObjectId;

/// Enough for the incidents of a bad day; Kubernetes itself forgets events after an hour.
pub const EVENTS_MAX: usize = 500;
/// Longest message of an Event in Kubernetes.
const MESSAGE_BYTES_MAX: usize = 1024;
/// Where Events about cluster-scoped objects live.
const NAMESPACE: &str = "default";

/// Writes a notice.
pub(super) fn write(tx: &Transaction<'_>, notice: &Notice) -> Result<(), ClusterError> {
    let mut event = event(notice);
    let name = event["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let namespace = event["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
    let id = ObjectId { kind: "Event".to_owned(), namespace, name };
    if tx.get(&id)?.is_some() {
        tx.patch(&id, |stored| {
            let count = stored["count"].as_u64().unwrap_or(1);
            stored["count"] = json!(count.saturating_add(1));
            stored["lastTimestamp"] = json!(now_seconds());
            Ok(())
        })?;
        return Ok(());
    }
    make_room(tx)?;
    event["firstTimestamp"] = json!(now_seconds());
    event["lastTimestamp"] = event["firstTimestamp"].clone();
    tx.create(event).map(|_| ())
}

/// Removes the oldest of our Events until one more fits.
fn make_room(tx: &Transaction<'_>) -> Result<(), ClusterError> {
    let all = tx.list("Event")?;
    let mut ours: Vec<_> = all.iter().filter(|event| event["source"]["component"] == "somersault").collect();
    let excess = (ours.len() + 1).saturating_sub(EVENTS_MAX);
    if excess == 0 {
        return Ok(());
    }
    // The format sorts by time.
    ours.sort_by_key(|event| event["lastTimestamp"].as_str().unwrap_or_default().to_owned());
    for id in ours.into_iter().take(excess).filter_map(|event| ObjectId::of(event).ok()) {
        tx.delete(&id, None)?;
    }
    Ok(())
}

fn event(notice: &Notice) -> Value {
    let (api_version, kind, namespace, name) = match &notice.subject {
        Subject::Node(node) => ("v1", "Node", None, node.as_str()),
        Subject::Vm(key) => ("kubevirt.io/v1", "VirtualMachine", Some(&key.namespace), key.name.as_str()),
        Subject::Migration(key) => {
            (crd::API_VERSION, "VolumeMigration", Some(&key.namespace), key.name.as_str())
        }
        Subject::Evacuation(name) => (crd::API_VERSION, "Evacuation", None, name.as_str()),
        Subject::Coordinator => ("apps/v1", "Deployment", None, "somersault-coordinator"),
    };
    let mut hasher = DefaultHasher::new();
    (kind, notice.reason, &notice.message).hash(&mut hasher);
    let mut object = json!({ "apiVersion": api_version, "kind": kind, "name": name });
    if let Some(namespace) = namespace {
        object["namespace"] = json!(namespace);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "namespace": namespace.map_or(NAMESPACE, String::as_str),
            "name": format!("{}.{:016x}", cut(name, 200), hasher.finish()),
        },
        "involvedObject": object,
        "reason": notice.reason,
        "message": cut(&notice.message, MESSAGE_BYTES_MAX),
        "type": if notice.severity == Severity::Info { "Normal" } else { "Warning" },
        "source": { "component": "somersault" },
        "count": 1,
    })
}

/// At most so many bytes, at a character's boundary.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}
