//! Stand-in for the volume binder of kube-controller-manager: binds a claim to the volume that it names, or
//! that is pre-bound to it, and releases volumes whose claim is gone.

use serde_json::{Value, json};
use somersault_coordinator::cluster::directory::store::Objects;
use somersault_coordinator::cluster::manifest::ObjectId;

use super::{Change, name, namespace, set, uid};

pub(super) fn reconcile(objects: &Objects) -> Vec<Change> {
    let mut changes = Vec::new();
    for claim in objects.of_kind("PersistentVolumeClaim") {
        if claim["status"]["phase"] != "Bound"
            && let Some(volume) = volume_for(objects, claim)
        {
            bind(&mut changes, claim, volume);
        }
    }
    for volume in objects.of_kind("PersistentVolume") {
        let phase = match &volume["spec"]["claimRef"]["uid"] {
            Value::Null => "Available",
            claim if objects.of_kind("PersistentVolumeClaim").any(|object| uid(object) == *claim) => "Bound",
            _ => "Released",
        };
        set(&mut changes, volume, json!({"status": {"phase": phase}}));
    }
    changes
}

fn volume_for<'a>(objects: &'a Objects, claim: &Value) -> Option<&'a Value> {
    match claim["spec"]["volumeName"].as_str() {
        Some(named) => objects
            .get(&ObjectId::cluster("PersistentVolume", named))
            .filter(|volume| volume["spec"]["claimRef"].is_null() || is_for(volume, claim)),
        None => objects.of_kind("PersistentVolume").find(|volume| is_for(volume, claim)),
    }
}

/// A reference without uid is a pre-binding; one with another uid belongs to an earlier claim.
fn is_for(volume: &Value, claim: &Value) -> bool {
    let reference = &volume["spec"]["claimRef"];
    reference["name"] == name(claim)
        && reference["namespace"] == namespace(claim)
        && reference["uid"].as_str().is_none_or(|bound| bound == uid(claim))
}

fn bind(changes: &mut Vec<Change>, claim: &Value, volume: &Value) {
    let reference = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "namespace": namespace(claim), "name": name(claim), "uid": uid(claim),
    });
    set(changes, volume, json!({"spec": {"claimRef": reference}, "status": {"phase": "Bound"}}));
    let bound = json!({
        "metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"volumeName": name(volume)},
        "status": {
            "phase": "Bound",
            "accessModes": volume["spec"]["accessModes"],
            "capacity": volume["spec"]["capacity"],
        },
    });
    set(changes, claim, bound);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(uid: &str) -> Value {
        json!({"metadata": {"name": "data", "namespace": "default", "uid": uid}})
    }

    #[test]
    fn a_volume_of_an_earlier_claim_of_the_same_name_is_not_taken() {
        let released = json!({"spec": {"claimRef": {"name": "data", "namespace": "default", "uid": "old"}}});
        assert!(!is_for(&released, &claim("new")));
    }

    #[test]
    fn a_pre_bound_volume_waits_for_its_claim_alone() {
        let pre_bound = json!({"spec": {"claimRef": {"name": "data", "namespace": "default"}}});
        assert!(is_for(&pre_bound, &claim("new")));
        let other = json!({"metadata": {"name": "data", "namespace": "other", "uid": "x"}});
        assert!(!is_for(&pre_bound, &other));
    }
}
