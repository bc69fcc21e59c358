//! Pods: those of VMs, of which much is known, and all others, which matter for nothing but the claims that they use.
//!
//! A cluster has many more pods than VMs, so the two are read apart, and of the others nothing else is kept.

use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use super::vm::controller;

/// Label that tells what a pod is to KubeVirt.
const KUBEVIRT_LABEL: &str = "kubevirt.io";
/// Its value on hotplug pods.
pub(super) const HOTPLUG_POD: &str = "hotplug-disk";
/// Its value on launchers.
pub(super) const LAUNCHER_POD: &str = "virt-launcher";
/// Selects the pods that KubeVirt made for VMs.
pub const OF_VMS: &str = "kubevirt.io in (virt-launcher, hotplug-disk)";
/// Selects all others, those without the label included.
pub const NOT_OF_VMS: &str = "kubevirt.io notin (virt-launcher, hotplug-disk)";

/// Whether KubeVirt made the pod as this.
pub(super) fn is(pod: &core::Pod, what: &str) -> bool {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(KUBEVIRT_LABEL)).is_some_and(|l| l == what)
}

/// Whether the pod may be a VM's own: by its label, or, in a dump written by hand, by who controls it.
pub(super) fn may_be_of_a_vm(pod: &core::Pod) -> bool {
    is(pod, LAUNCHER_POD)
        || is(pod, HOTPLUG_POD)
        || controller(&pod.metadata).is_some_and(|owner| owner.kind == "VirtualMachineInstance")
}

/// Names of the claims that a pod uses, generic ephemeral ones included.
pub(super) fn claims_of(pod: &core::Pod) -> impl Iterator<Item = String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    volumes.iter().filter_map(move |volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{name}-{}", volume.name)),
        (None, None) => None,
    })
}

/// What is left of a pod that is no VM's: its name and the claims that it uses; `None` where it uses none. A pod's
/// volumes never change, and where it runs or whether it has ended is nothing to us: as long as it is there,
/// Kubernetes keeps its claims from being deleted.
pub fn claims_alone(pod: &Value) -> Option<Value> {
    let volumes = pod["spec"]["volumes"].as_array()?;
    let of_claims = volumes.iter().filter_map(|volume| {
        let claim = &volume["persistentVolumeClaim"]["claimName"];
        if claim.is_string() {
            return Some(json!({ "name": volume["name"], "persistentVolumeClaim": { "claimName": claim } }));
        }
        volume["ephemeral"].is_object().then(|| json!({ "name": volume["name"], "ephemeral": {} }))
    });
    let of_claims: Vec<Value> = of_claims.collect();
    if of_claims.is_empty() {
        return None;
    }
    let metadata = &pod["metadata"];
    Some(json!({
        "apiVersion": pod["apiVersion"],
        "kind": pod["kind"],
        "metadata": { "namespace": metadata["namespace"], "name": metadata["name"] },
        "spec": { "containers": [], "volumes": of_claims },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(volumes: &Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "shop", "name": "web-0", "labels": { "app": "web" }, "uid": "u" },
            "spec": { "nodeName": "n1", "containers": [{ "name": "web", "image": "web" }], "volumes": volumes },
            "status": { "phase": "Running" },
        })
    }

    #[test]
    fn of_a_pod_that_is_no_vms_its_claims_are_left_and_nothing_else() {
        let left = claims_alone(&pod(&json!([
            { "name": "token", "projected": { "sources": [] } },
            { "name": "data", "persistentVolumeClaim": { "claimName": "web-data", "readOnly": true } },
            { "name": "scratch", "ephemeral": { "volumeClaimTemplate": { "spec": { "accessModes": ["ReadWriteOnce"] } } } },
        ])));
        let left = left.expect("it uses claims");
        assert_eq!(left["metadata"], json!({ "namespace": "shop", "name": "web-0" }));
        assert!(left.get("status").is_none() && left["spec"].get("nodeName").is_none(), "{left}");
        let typed: core::Pod = serde_json::from_value(left).expect("a pod still");
        assert_eq!(claims_of(&typed).collect::<Vec<_>>(), ["web-data", "web-0-scratch"]);
    }

    #[test]
    fn of_a_pod_without_claims_nothing_is_left() {
        assert_eq!(claims_alone(&pod(&Value::Null)), None);
        assert_eq!(claims_alone(&pod(&json!([{ "name": "tmp", "emptyDir": {} }]))), None);
    }
}
