//! A real order to delete a pod: nobody but the core can give one, since it needs a proof. So the core is led through
//! the death of a node on which, as it believes, the pod's VM runs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use somersault_coordinator::cluster::manifest::{Inventory, ObjectId};
use somersault_coordinator_core::Coordinator;
use somersault_coordinator_core::io::{Action, Effect, FenceResult, Input, Reachability};
use somersault_coordinator_core::policy::{Policy, PolicySpec, Profile};

use crate::bed::SHOP;

/// Between two moments of the core's time.
const STEP: Duration = Duration::from_millis(100);
/// The fast profile declares after a second, and nothing here takes longer than a few.
const MOMENTS_MAX: u32 = 600;
/// The node that lives.
const OTHER: &str = "other";

/// The order to delete this pod of that node, which is proven dead.
pub fn deletion(pod: &str, uid: &str, dead: &str) -> Result<Action> {
    let mut spec = PolicySpec { profile: Profile::Fast, ..PolicySpec::default() };
    spec.fencing.nodes = [dead.into()].into();
    let mut core = Coordinator::new(Policy::try_from(spec)?);
    let mut now = Duration::from_secs(100);
    let mut inputs = VecDeque::from([
        Input::Leading { epoch: 1, records: Vec::new(), recoveries: Vec::new() },
        Input::Fleet(Box::new(fleet(pod, uid, dead)?)),
        beat(dead, 0),
    ]);
    for moment in 0..MOMENTS_MAX {
        inputs.push_back(beat(OTHER, u64::from(moment)));
        while let Some(input) = inputs.pop_front() {
            for effect in core.step(now, input) {
                match effect {
                    Effect::Act(action @ Action::DeletePod { .. }) => return Ok(action),
                    effect => inputs.extend(answer(effect)),
                }
            }
        }
        inputs.push_back(Input::Tick);
        now += STEP;
    }
    anyhow::bail!("the core has not ordered the deletion within {:?}", STEP * MOMENTS_MAX)
}

fn beat(node: &str, sequence: u64) -> Input {
    Input::Beat { node: node.into(), boot_id: format!("boot-of-{node}").as_str().into(), sequence }
}

/// A world in which the node is silent, its power can be cut, and whatever is ordered is done.
fn answer(effect: Effect) -> Option<Input> {
    match effect {
        Effect::Probe { node, by, .. } => Some(Input::Probed { node, by, answer: Reachability::Silent }),
        Effect::Commit(record) => Some(Input::Committed(record.key())),
        Effect::RunFence { node, epoch, .. } => {
            Some(Input::FenceEnded { node, epoch, result: FenceResult::ConfirmedOff })
        }
        Effect::Act(action) => Some(Input::Acted(action)),
        Effect::AskFence { .. }
        | Effect::AskGuest { .. }
        | Effect::DryRun(_)
        | Effect::Grant { .. }
        | Effect::Order { .. }
        | Effect::Notify(_) => None,
    }
}

fn fleet(pod: &str, uid: &str, dead: &str) -> Result<somersault_coordinator_core::fleet::Fleet> {
    let owner = |api_version: &str, kind: &str, uid: &str| json!([{ "apiVersion": api_version, "kind": kind, "name": "web", "uid": uid, "controller": true }]);
    let mut objects = vec![
        json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
            "metadata": { "namespace": SHOP, "name": "web", "uid": "v-web" },
            "spec": { "runStrategy": "Always", "template": { "spec": { "domain": {}, "volumes": [] } } },
        }),
        json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {
                "namespace": SHOP, "name": "web", "uid": "i-web",
                "ownerReferences": owner("kubevirt.io/v1", "VirtualMachine", "v-web"),
            },
            "spec": { "domain": {} },
            "status": { "phase": "Running", "nodeName": dead },
        }),
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": SHOP, "name": pod, "uid": uid, "labels": { "kubevirt.io": "virt-launcher" },
                "ownerReferences": owner("kubevirt.io/v1", "VirtualMachineInstance", "i-web"),
            },
            "spec": { "nodeName": dead, "containers": [] },
            "status": { "phase": "Running" },
        }),
    ];
    objects.extend([dead, OTHER].map(|node| {
        let taints =
            json!([{ "key": somersault_coordinator_core::fleet::FENCING_TAINT, "effect": "NoSchedule" }]);
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": node, "uid": node,
                "labels": { "kubernetes.io/hostname": node, "kubevirt.io/schedulable": "true" },
            },
            "spec": { "taints": if node == dead { taints } else { Value::Null } },
            "status": {
                "allocatable": { "cpu": "8", "memory": "16Gi", "pods": "110" },
                "conditions": [{ "type": "Ready", "status": "True" }],
                "nodeInfo": node_info(node),
            },
        })
    }));
    let mut inventory = Inventory::default();
    for object in &objects {
        let id = ObjectId::of(object).map_err(anyhow::Error::msg)?;
        inventory.add("", 0, &id, object);
    }
    let snapshot = inventory.snapshot();
    anyhow::ensure!(snapshot.problems.is_empty(), "{:?}", snapshot.problems);
    Ok(Arc::unwrap_or_clone(snapshot.fleet))
}

fn node_info(node: &str) -> Value {
    let mut info = json!({ "bootID": format!("boot-of-{node}") });
    for field in [
        "architecture",
        "containerRuntimeVersion",
        "kernelVersion",
        "kubeProxyVersion",
        "kubeletVersion",
        "machineID",
        "operatingSystem",
        "osImage",
        "systemUUID",
    ] {
        info[field] = json!("");
    }
    info
}
