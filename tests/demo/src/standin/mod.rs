//! Stand-ins for what a real cluster has and this machine has not: KubeVirt, the scheduler, the volume binder,
//! Wukong's operator, and the API server's side of the kubelets.
//!
//! ```text
//!   folder of manifests ──► rules (pure) ──► changes ──► folder       20 times a second
//!                             ▲      │
//!               what runs where      └─► pods that should run ──► kubelets, over the nodes' network
//! ```
//!
//! They know nothing of Somersault, and it knows nothing of them: both see objects.

mod binder;
pub mod kubelets;
mod kubevirt;
mod nodes;
mod scheduler;
mod wukong;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use somersault_coordinator::cluster::ClusterError;
use somersault_coordinator::cluster::directory::store::{Objects, Store};
use somersault_coordinator::cluster::manifest::ObjectId;

use self::kubelets::{Kubelets, Report};

const TICK: Duration = Duration::from_millis(50);

/// A change to the cluster.
#[derive(Clone, Debug, PartialEq)]
enum Change {
    Create(Value),
    /// By the rules of a JSON merge patch (RFC 7396).
    Merge(ObjectId, Value),
    /// Only the object with this uid.
    Delete(ObjectId, String),
}

/// What runs where, as the kubelets say, by node.
type Reports = std::collections::BTreeMap<String, Report>;

/// The running stand-ins; they end when this is dropped.
pub struct ControlPlane {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ControlPlane {
    /// Starts them on a cluster's folder. `network_volumes` is the folder on each node under which the volumes
    /// of network drivers are mounted.
    pub fn start(store: Store, network_volumes: String) -> Result<Self> {
        let kubelets = Kubelets::serve().context("serving the kubelets")?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("control-plane".to_owned()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Err(error) = tick(&store, &kubelets, &network_volumes) {
                    eprintln!("stand-ins: {error:#}");
                }
                std::thread::sleep(TICK);
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed already.
            let _ended = thread.join();
        }
    }
}

fn tick(store: &Store, kubelets: &Kubelets, network_volumes: &str) -> Result<()> {
    let objects = store.objects()?;
    kubelets.publish(&kubelets::pods_that_should_run(&objects, network_volumes));
    let reports = kubelets.reports();
    let mut changes = nodes::reconcile(&objects, &reports);
    changes.extend(wukong::reconcile(&objects));
    changes.extend(binder::reconcile(&objects));
    changes.extend(scheduler::reconcile(&objects));
    changes.extend(kubevirt::reconcile(&objects, &reports));
    changes.into_iter().try_for_each(|change| apply(store, change))
}

fn apply(store: &Store, change: Change) -> Result<()> {
    let done = match change {
        Change::Create(object) => store.create(object).map(drop),
        Change::Merge(id, patch) => store
            .patch(&id, |object| {
                merge(object, &patch);
                Ok(())
            })
            .map(drop),
        Change::Delete(id, uid) => store.delete(&id, Some(&uid)),
    };
    match done {
        // The world has moved on since the objects were read: the next tick sees it.
        Err(ClusterError::Conflict { .. } | ClusterError::NotFound { .. }) => Ok(()),
        other => other.context("changing the cluster"),
    }
}

/// A merge, unless the object says all that already.
fn set(changes: &mut Vec<Change>, object: &Value, patch: Value) {
    let mut wanted = object.clone();
    merge(&mut wanted, &patch);
    if wanted != *object
        && let Ok(id) = ObjectId::of(object)
    {
        changes.push(Change::Merge(id, patch));
    }
}

fn delete(changes: &mut Vec<Change>, object: &Value) {
    if let Ok(id) = ObjectId::of(object) {
        changes.push(Change::Delete(id, uid(object).to_owned()));
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    for (name, value) in fields {
        if value.is_null() {
            target.as_object_mut().map(|object| object.remove(name));
        } else {
            merge(&mut target[name.as_str()], value);
        }
    }
}

fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn namespace(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or("default")
}

/// Claims that a pod, or a VM's template, mounts.
fn claims(spec: &Value) -> Vec<&str> {
    let volumes = spec["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
    volumes.iter().filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str()).collect()
}

/// The bound claim of this name and its volume.
fn bound<'a>(objects: &'a Objects, namespace: &str, claim: &str) -> Option<(&'a Value, &'a Value)> {
    let claim = objects.of_kind("PersistentVolumeClaim").find(|object| {
        name(object) == claim && object["metadata"]["namespace"].as_str().unwrap_or("default") == namespace
    })?;
    if claim["status"]["phase"] != "Bound" {
        return None;
    }
    let volume = claim["spec"]["volumeName"].as_str()?;
    let volume = objects.get(&ObjectId::cluster("PersistentVolume", volume))?;
    Some((claim, volume))
}

/// The time as Kubernetes prints it.
fn now() -> String {
    jiff::Timestamp::now().round(jiff::Unit::Second).unwrap_or_else(|_| jiff::Timestamp::now()).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_merge_removes_nulls_replaces_lists_and_keeps_the_rest() {
        let mut object = json!({"a": {"b": 1, "c": 2}, "l": [1, 2]});
        merge(&mut object, &json!({"a": {"b": null, "d": 3}, "l": [3]}));
        assert_eq!(object, json!({"a": {"c": 2, "d": 3}, "l": [3]}));
    }
}
