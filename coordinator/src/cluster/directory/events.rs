//! Events: what people should know, as `kubectl get events` shows it. The same notice again counts up instead of
//! making another object, and only the newest are kept.

use serde_json::{Value, json};
use somersault_coordinator_core::io::Notice;

use super::store::Transaction;
use crate::cluster::manifest::ObjectId;
use crate::cluster::stamp::now_seconds;
use crate::cluster::{ClusterError, told};

/// Enough for the incidents of a bad day; Kubernetes itself forgets events after an hour.
pub const EVENTS_MAX: usize = 500;
/// A folder has no namespace of ours.
const NAMESPACE: &str = told::CLUSTER_NAMESPACE;
/// Who wrote an Event.
const SOURCE: &str = "somersault";

/// Writes a notice.
pub(super) fn write(tx: &Transaction<'_>, notice: &Notice) -> Result<(), ClusterError> {
    let (api_version, subject) = told::subject(notice, NAMESPACE);
    let id = told::event_id(notice, &subject);
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
    let mut event = event(&id, api_version, &subject, notice);
    event["firstTimestamp"] = json!(now_seconds());
    event["lastTimestamp"] = event["firstTimestamp"].clone();
    tx.create(event).map(|_| ())
}

/// Removes the oldest of our Events until one more fits.
fn make_room(tx: &Transaction<'_>) -> Result<(), ClusterError> {
    let all = tx.list("Event")?;
    let mut ours: Vec<_> = all.iter().filter(|event| event["source"]["component"] == SOURCE).collect();
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

fn event(id: &ObjectId, api_version: &str, subject: &ObjectId, notice: &Notice) -> Value {
    let mut object = json!({ "apiVersion": api_version, "kind": subject.kind, "name": subject.name });
    if !subject.namespace.is_empty() {
        object["namespace"] = json!(subject.namespace);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "namespace": id.namespace, "name": id.name },
        "involvedObject": object,
        "reason": notice.reason,
        "message": told::note(notice),
        "type": told::event_type(notice),
        "source": { "component": SOURCE },
        "count": 1,
    })
}
