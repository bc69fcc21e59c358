//! Events: what people should know, as `kubectl get events` shows it. The same notice again counts up.
//!
//! Written by hand and not by kube's `Recorder`, which counts up by reason alone and keeps the first note, so that
//! the second node's notice would be lost in the first one's; and which makes another Event where an answer was lost.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use somersault_coordinator_core::io::Notice;

use super::api::Api;
use crate::cluster::error::refused;
use crate::cluster::manifest::ObjectId;
use crate::cluster::{ClusterError, change, told};

/// Writes a notice.
pub(super) async fn write(api: &Api, notice: &Notice) -> Result<(), ClusterError> {
    let (api_version, subject) = told::subject(notice, api.namespace());
    let id = told::event_id(notice, &subject);
    let uid = match api.get(&subject).await {
        Ok(object) => object.map(|object| change::uid(&object).to_owned()),
        // The notice matters more than the link to its object.
        Err(ClusterError::Refused { .. }) => None,
        Err(error) => return Err(error),
    };
    let regarding = ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some(subject.kind.clone()),
        name: Some(subject.name.clone()),
        namespace: Some(subject.namespace.clone()).filter(|namespace| !namespace.is_empty()),
        uid,
        ..ObjectReference::default()
    };
    let event = event(&id, notice, regarding, api.instance());
    let event = serde_json::to_value(event).map_err(|e| refused(&id, e.to_string()))?;
    if api.create_as(&id, &event).await?.is_some() {
        return Ok(());
    }
    let counted = api.modify(&id, |event| {
        count_up(event);
        Ok(())
    });
    match counted.await {
        // It was the last moment of its hour.
        Err(ClusterError::NotFound { .. }) => api.create_as(&id, &event).await.map(drop),
        counted => counted.map(drop),
    }
}

fn event(id: &ObjectId, notice: &Notice, regarding: ObjectReference, instance: &str) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(id.name.clone()),
            namespace: Some(id.namespace.clone()),
            ..ObjectMeta::default()
        },
        action: Some(notice.reason.to_owned()),
        event_time: Some(MicroTime(Timestamp::now())),
        note: Some(told::note(notice).to_owned()),
        reason: Some(notice.reason.to_owned()),
        regarding: Some(regarding),
        reporting_controller: Some(told::CONTROLLER.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        type_: Some(told::event_type(notice).to_owned()),
        ..Event::default()
    }
}

fn count_up(event: &mut Value) {
    let count = event["series"]["count"].as_i64().unwrap_or(1);
    event["series"] = json!({
        "count": count.saturating_add(1),
        "lastObservedTime": MicroTime(Timestamp::now()),
    });
}
