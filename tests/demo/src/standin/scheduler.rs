//! Stand-in for kube-scheduler: a pending launcher goes to the node with the fewest launchers of those that are
//! ready, not tainted, and that its volumes allow.

use serde_json::{Value, json};
use somersault_coordinator::cluster::directory::store::Objects;

use super::{Change, bound, claims, name, namespace, nodes, set};

pub(super) fn reconcile(objects: &Objects) -> Vec<Change> {
    let mut changes = Vec::new();
    for pod in objects.of_kind("Pod") {
        let pending = pod["spec"]["nodeName"].is_null() && pod["metadata"]["deletionTimestamp"].is_null();
        if !pending {
            continue;
        }
        let scheduled = match choose(objects, pod) {
            Some(node) => json!({
                "spec": {"nodeName": node},
                "status": {"conditions": [{"type": "PodScheduled", "status": "True"}]},
            }),
            None => json!({"status": {"conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": "no node is ready, free of taints and allowed by the volumes",
            }]}}),
        };
        set(&mut changes, pod, scheduled);
    }
    changes
}

fn choose<'a>(objects: &'a Objects, pod: &Value) -> Option<&'a str> {
    let volumes = claims(&pod["spec"])
        .into_iter()
        .map(|claim| bound(objects, namespace(pod), claim).map(|(_, volume)| volume))
        .collect::<Option<Vec<_>>>()?;
    objects
        .of_kind("Node")
        .filter(|node| is_open(node) && volumes.iter().all(|volume| allows(volume, node)))
        .min_by_key(|node| objects.of_kind("Pod").filter(|pod| pod["spec"]["nodeName"] == name(node)).count())
        .map(name)
}

fn is_open(node: &Value) -> bool {
    let taints = node["spec"]["taints"].as_array().map(Vec::as_slice).unwrap_or_default();
    nodes::ready_of(node) == Some("True")
        && node["spec"]["unschedulable"] != true
        && taints.iter().all(|taint| taint["effect"] == "PreferNoSchedule")
}

/// The form of affinity that provisioners of local volumes write: label `In` values.
fn allows(volume: &Value, node: &Value) -> bool {
    let Some(terms) = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"].as_array() else {
        return true;
    };
    terms.iter().any(|term| {
        let expressions = term["matchExpressions"].as_array().map(Vec::as_slice).unwrap_or_default();
        expressions.iter().all(|expression| {
            let label = expression["key"].as_str().map(|key| &node["metadata"]["labels"][key]);
            let values = expression["values"].as_array().map(Vec::as_slice).unwrap_or_default();
            expression["operator"] == "In" && label.is_some_and(|label| values.contains(label))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tainted_or_silent_node_is_not_open() {
        let node = |taints: Value, ready: &str| {
            json!({
                "spec": {"taints": taints},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            })
        };
        assert!(is_open(&node(json!([]), "True")));
        assert!(!is_open(&node(json!([{"key": "x", "effect": "NoSchedule"}]), "True")));
        assert!(!is_open(&node(json!([]), "Unknown")));
    }

    #[test]
    fn a_local_volume_allows_its_node_alone() {
        let volume = json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]}]}}}});
        let node = |host: &str| json!({"metadata": {"labels": {"kubernetes.io/hostname": host}}});
        assert!(allows(&volume, &node("n1")));
        assert!(!allows(&volume, &node("n2")));
        assert!(allows(&json!({"spec": {}}), &node("n2")));
    }
}
