//! Stand-in for what kubelets and the node controller write on Node objects and Leases.

use std::time::Duration;

use serde_json::{Value, json};
use somersault_coordinator::cluster::directory::store::Objects;
use somersault_coordinator::cluster::manifest::ObjectId;

use super::kubelets::Report;
use super::{Change, Reports, name, now, set};

/// Kubernetes 1.32 and later; earlier ones wait 40 s (`--node-monitor-grace-period`).
const GRACE_PERIOD: Duration = Duration::from_secs(50);
/// How often a kubelet renews its Lease.
const RENEW_PERIOD: jiff::SignedDuration = jiff::SignedDuration::from_secs(10);

pub(super) fn reconcile(objects: &Objects, reports: &Reports) -> Vec<Change> {
    let mut changes = Vec::new();
    for node in objects.of_kind("Node") {
        let Some(report) = reports.get(name(node)) else { continue };
        let ready = if report.silence > GRACE_PERIOD { "Unknown" } else { "True" };
        if ready_of(node) != Some(ready) {
            let condition = json!([{"type": "Ready", "status": ready, "lastTransitionTime": now()}]);
            set(&mut changes, node, json!({"status": {"conditions": condition}}));
        }
        set(&mut changes, node, json!({"status": {"nodeInfo": {"bootID": report.boot_id}}}));
        if report.connected {
            renew(&mut changes, objects, name(node), report);
        }
    }
    changes
}

/// Status of a Node's condition Ready.
pub(super) fn ready_of(node: &Value) -> Option<&str> {
    let conditions = node["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == "Ready")?["status"].as_str()
}

fn renew(changes: &mut Vec<Change>, objects: &Objects, node: &str, report: &Report) {
    let id = ObjectId { kind: "Lease".into(), namespace: "kube-node-lease".into(), name: node.into() };
    let now = jiff::Timestamp::now();
    let spec = json!({
        "holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": now.to_string(),
    });
    match objects.get(&id) {
        None => changes.push(Change::Create(json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": node, "namespace": id.namespace}, "spec": spec,
        }))),
        Some(lease) => {
            let renewed = lease["spec"]["renewTime"].as_str().and_then(|time| time.parse().ok());
            let due = renewed.is_none_or(|at: jiff::Timestamp| now.duration_since(at) >= RENEW_PERIOD);
            // Silence shows before the connection is found dead: no renewal on behalf of a node that is gone.
            if due && report.silence < Duration::from_secs(1) {
                set(changes, lease, json!({"spec": spec}));
            }
        }
    }
}
