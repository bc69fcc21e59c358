//! Imports: CDI's import controller (pkg/controller/import-controller.go) acts on every claim that names a source
//! and whose importer has not succeeded, whoever made the claim. The importer is `toolbox import`, which writes an
//! image that can be recognised over what the claim holds.

use serde_json::{Value, json};

use crate::change::Change;
use crate::names::{IMAGE, IMPORT_ENDPOINT, IMPORT_PHASE, IMPORT_SOURCE};
use crate::objects::{
    Kind, Objects, annotation, is_controlled_by, is_deleting, name, namespace, owner_reference, phase,
};
use crate::volumes::bytes;

pub(crate) fn reconcile(objects: &Objects) -> Vec<Change> {
    objects.all(Kind::PersistentVolumeClaim).filter_map(|claim| one(objects, claim)).collect()
}

fn one(objects: &Objects, claim: &Value) -> Option<Change> {
    let pod_name = format!("importer-{}", name(claim));
    let pod = objects.get(Kind::Pod, namespace(claim), &pod_name);
    let is_wanted = annotation(claim, IMPORT_SOURCE).is_some()
        && annotation(claim, IMPORT_PHASE) != Some("Succeeded")
        && !is_deleting(claim);
    match pod {
        None => is_wanted.then(|| importer(claim, &pod_name).map(Change::Create)).flatten(),
        Some(pod) if is_wanted && is_controlled_by(pod, claim) => follow(claim, pod),
        // It has done its work, or was an earlier claim's.
        Some(pod) => (!is_deleting(pod)).then(|| Change::delete(pod)),
    }
}

fn follow(claim: &Value, pod: &Value) -> Option<Change> {
    let to = phase(pod);
    if to.is_empty() || annotation(claim, IMPORT_PHASE) == Some(to) {
        return None;
    }
    let mut next = claim.clone();
    let annotations = &mut next["metadata"]["annotations"];
    annotations[IMPORT_PHASE] = json!(to);
    annotations["cdi.kubevirt.io/storage.import.importPodName"] = json!(name(pod));
    annotations["cdi.kubevirt.io/storage.condition.running"] = json!((to == "Running").to_string());
    if to == "Succeeded" {
        annotations["cdi.kubevirt.io/storage.condition.running.message"] = json!("Import Complete");
        annotations["cdi.kubevirt.io/storage.condition.running.reason"] = json!("Completed");
    }
    Some(Change::Update(next))
}

fn importer(claim: &Value, pod_name: &str) -> Option<Value> {
    let endpoint = annotation(claim, IMPORT_ENDPOINT).unwrap_or_default();
    let size = bytes(claim)?.to_string();
    Some(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": pod_name, "namespace": namespace(claim),
            "labels": {"app": "containerized-data-importer", "cdi.kubevirt.io": "importer"},
            "ownerReferences": [owner_reference(claim)],
        },
        "spec": {
            "containers": [{
                "name": "importer", "image": IMAGE, "imagePullPolicy": "Never",
                "args": ["import", "-source", endpoint, "-size", size, "/data/disk.img"],
                "volumeMounts": [{"name": "cdi-data-vol", "mountPath": "/data"}],
            }],
            "volumes": [{"name": "cdi-data-vol", "persistentVolumeClaim": {"claimName": name(claim)}}],
            "restartPolicy": "OnFailure",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
        },
    }))
}
