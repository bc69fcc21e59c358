//! `DataVolumes`: CDI's part (pkg/controller/datavolume/controller-base.go, pkg/controller/import-controller.go),
//! without populators, clones and garbage collection, and as without its feature gate `HonorWaitForFirstConsumer`:
//! the importer is the claim's first consumer.
//!
//! ```text
//!                    claim missing ──no prePopulated──► claim made at once, whatever the phase was ──► import
//!                          └──prePopulated──► Pending, nothing is made
//!   claim of somebody else ──populatedFor, or adoption──► owned, Succeeded; when Bound: prePopulated is written
//!                          └──neither──► left alone
//!   claim of its own ──► Pending ──Bound──► ImportScheduled ──► ImportInProgress ──► Succeeded
//! ```
//!
//! So a claim that is deleted without the handshake is made again and imported over whatever it is bound to, in
//! three seconds (measured on CDI 1.66.0).

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::change::Change;
use crate::condition::time;
use crate::names::{
    ALLOW_ADOPTION, CREATED_FOR, IMPORT_ENDPOINT, IMPORT_PHASE, IMPORT_SOURCE, POPULATED_FOR, PRE_POPULATED,
};
use crate::objects::{
    Kind, Objects, annotation, controller, is_controlled_by, is_deleting, list, name, namespace,
    owner_reference, phase, uid,
};
use crate::volumes::quantity;

/// pkg/common, `DefaultGlobalOverhead` of 6 %, as it is added to the `storage:` form (measured on CDI 1.66.0: 1Gi
/// asks for 1138166334 bytes).
const OVERHEAD_PERCENT: u64 = 6;

pub(crate) fn reconcile(objects: &Objects, now: Timestamp) -> Vec<Change> {
    objects.all(Kind::DataVolume).flat_map(|data_volume| one(objects, data_volume, now)).collect()
}

/// controller-base.go: `handlePvcCreation` where the claim is missing, `pvcIsPopulated` where it is somebody else's.
fn one(objects: &Objects, data_volume: &Value, now: Timestamp) -> Vec<Change> {
    if is_deleting(data_volume) {
        // The garbage collector takes the claim.
        return Vec::new();
    }
    let claim = objects.get(Kind::PersistentVolumeClaim, namespace(data_volume), name(data_volume));
    let mut changes = Vec::new();
    let Some(claim) = claim else {
        if annotation(data_volume, PRE_POPULATED).is_none() {
            changes.extend(new_claim(data_volume).map(Change::Create));
        }
        changes.extend(status(data_volume, None, now));
        return changes;
    };
    if is_deleting(claim) {
        return changes;
    }
    if !is_controlled_by(claim, data_volume) {
        if !is_populated(claim, data_volume) || controller(claim).is_some() {
            // "PVC … already exists, and is not managed by" this one.
            return changes;
        }
        let mut next = claim.clone();
        let mut owners: Vec<_> = list(&claim["metadata"]["ownerReferences"]).cloned().collect();
        owners.push(owner_reference(data_volume));
        next["metadata"]["ownerReferences"] = json!(owners);
        return vec![Change::Update(next)];
    }
    if phase(claim) == "Bound"
        && is_populated(claim, data_volume)
        && annotation(data_volume, PRE_POPULATED) != Some(name(claim))
    {
        let mut next = data_volume.clone();
        next["metadata"]["annotations"][PRE_POPULATED] = json!(name(claim));
        return vec![Change::Update(next)];
    }
    changes.extend(status(data_volume, Some(claim), now));
    changes
}

/// controller-base.go, `pvcIsPopulated`: said by whoever made the claim, or adopted.
fn is_populated(claim: &Value, data_volume: &Value) -> bool {
    annotation(claim, POPULATED_FOR) == Some(name(data_volume))
        || (annotation(data_volume, ALLOW_ADOPTION) == Some("true")
            && annotation(claim, CREATED_FOR) != Some(uid(data_volume)))
}

fn new_claim(data_volume: &Value) -> Option<Value> {
    let spec = &data_volume["spec"];
    let mut annotations = data_volume["metadata"]["annotations"].clone();
    let (kind, endpoint) = source(spec)?;
    for (key, value) in [
        (CREATED_FOR, uid(data_volume)),
        (IMPORT_SOURCE, kind),
        (IMPORT_ENDPOINT, &endpoint),
        ("cdi.kubevirt.io/storage.contentType", "kubevirt"),
        ("cdi.kubevirt.io/storage.pod.restarts", "0"),
        ("cdi.kubevirt.io/storage.preallocation.requested", "false"),
        ("cdi.kubevirt.io/storage.usePopulator", "false"),
    ] {
        annotations[key] = json!(value);
    }
    let mut labels = data_volume["metadata"]["labels"].clone();
    labels["app"] = json!("containerized-data-importer");
    labels["app.kubernetes.io/managed-by"] = json!("cdi-controller");
    Some(json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name(data_volume), "namespace": namespace(data_volume), "labels": labels,
            "annotations": annotations, "ownerReferences": [owner_reference(data_volume)],
        },
        "spec": claim_spec(spec)?,
    }))
}

/// Kind and name of what is imported; a blank disk has no name. What is neither http nor blank is named by its
/// JSON: nothing is downloaded anyway.
fn source(spec: &Value) -> Option<(&str, String)> {
    if spec["sourceRef"].is_object() {
        return Some(("sourceRef", spec["sourceRef"].to_string()));
    }
    let (kind, content) = spec["source"].as_object()?.iter().next()?;
    let endpoint = match kind.as_str() {
        "blank" => String::new(),
        _ => content["url"].as_str().map_or_else(|| content.to_string(), str::to_owned),
    };
    Some((kind, endpoint))
}

/// `pvc:` as it is; `storage:` with its defaults, and with room for the filesystem.
fn claim_spec(spec: &Value) -> Option<Value> {
    if spec["pvc"].is_object() {
        return Some(spec["pvc"].clone());
    }
    let mut claim = spec["storage"].as_object().map(|fields| Value::Object(fields.clone()))?;
    let asked = quantity(claim["resources"]["requests"]["storage"].as_str()?)?;
    let with_room = asked.checked_mul(100 + OVERHEAD_PERCENT)?.div_ceil(100);
    claim["resources"]["requests"]["storage"] = json!(with_room.to_string());
    for (field, default) in [("accessModes", json!(["ReadWriteOnce"])), ("volumeMode", json!("Filesystem"))] {
        if claim[field].is_null() {
            claim[field] = default;
        }
    }
    Some(claim)
}

fn status(data_volume: &Value, claim: Option<&Value>, now: Timestamp) -> Option<Change> {
    let imported = claim.and_then(|claim| annotation(claim, IMPORT_PHASE));
    let populated = claim.is_some_and(|claim| is_populated(claim, data_volume));
    let to = match (claim.map(phase), imported) {
        (Some(_), Some("Succeeded")) => "Succeeded",
        (Some("Bound"), _) if populated => "Succeeded",
        (Some("Bound"), Some("Running")) => "ImportInProgress",
        (Some("Bound"), _) => "ImportScheduled",
        (Some("Lost"), _) => "Failed",
        _ => "Pending",
    };
    let mut next = data_volume.clone();
    if !next["status"].is_object() {
        next["status"] = json!({});
    }
    let status = &mut next["status"];
    status["phase"] = json!(to);
    status["progress"] = json!(if to == "Succeeded" { "100.0%" } else { "N/A" });
    if let Some(claim) = claim {
        status["claimName"] = json!(name(claim));
    }
    let is_bound = claim.is_some_and(|claim| phase(claim) == "Bound");
    let claim_name = name(data_volume);
    let bound = match (is_bound, claim) {
        (true, _) => ("Bound", format!("PVC {claim_name} Bound")),
        (false, Some(_)) => ("Pending", format!("PVC {claim_name} Pending")),
        (false, None) => ("NotFound", "No PVC found".to_owned()),
    };
    condition(status, "Bound", is_bound, bound.0, &bound.1, now);
    condition(status, "Ready", to == "Succeeded", "", "", now);
    let runs = to == "ImportInProgress";
    let (reason, message) = match imported {
        Some("Succeeded") => ("Completed", "Import Complete"),
        _ => ("", ""),
    };
    condition(status, "Running", runs, reason, message, now);
    (next != *data_volume).then_some(Change::UpdateStatus(next))
}

/// CDI's conditions have a heartbeat where KubeVirt's have a probe.
fn condition(status: &mut Value, kind: &str, holds: bool, reason: &str, message: &str, now: Timestamp) {
    let mut new = json!({"type": kind, "status": if holds { "True" } else { "False" }});
    for (field, content) in [("reason", reason), ("message", message)] {
        if !content.is_empty() {
            new[field] = json!(content);
        }
    }
    let mut all: Vec<_> = list(&status["conditions"]).cloned().collect();
    let at = all.iter().position(|old| old["type"] == kind);
    let same = |old: &Value| ["status", "reason", "message"].iter().all(|field| old[field] == new[field]);
    if at.is_some_and(|at| same(&all[at])) {
        return;
    }
    new["lastHeartbeatTime"] = json!(time(now));
    new["lastTransitionTime"] = json!(time(now));
    match at {
        Some(at) => all[at] = new,
        None => all.push(new),
    }
    status["conditions"] = json!(all);
}

#[cfg(test)]
mod tests;
