//! Wukong, the operator whose VMs Somersault was first built for, with its habits (kuihuar/vmoperator,
//! `internal/controller/wukong_controller.go`, pkg/kubevirt/vm.go, pkg/storage). It watches nothing but its own
//! objects:
//!
//! ```text
//!   event of the Wukong, or its time has come
//!     ──► disks: what is missing is made: a DataVolume where there is an image, else a blank claim
//!         not all bound ──► again in 10 s, the VM untouched
//!     ──► the VM's whole spec is written anew, `running` included
//!     ──► VMI Running: own status, then sleep until the next event
//!         VMI Failed: status Error, again in 30 s
//!         any other, and none: again in 10 s, without a word in the status
//! ```
//!
//! So a deleted claim comes back blank within 10 s while the VM is stopped, and perhaps never while it runs;
//! `status` of a stopped VM's Wukong says Running for ever; and writing its own status wakes it once more as long
//! as the clock's second has changed since.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::change::Change;
use crate::condition::time;
use crate::names::WUKONG_FINALIZER;
use crate::objects::{
    Kind, Objects, add_finalizer, is_deleting, list, name, namespace, phase, remove_finalizer, uid,
};
use crate::volumes::waits_for_consumer;

const AGAIN: SignedDuration = SignedDuration::from_secs(10);
const AGAIN_AFTER_ERROR: SignedDuration = SignedDuration::from_secs(30);

/// The operator's work queue.
#[derive(Debug, Default)]
pub(crate) struct Operator {
    /// By uid: the version that was looked at last, and when to look again.
    queue: BTreeMap<String, (String, Option<Timestamp>)>,
}

impl Operator {
    /// What it does now, and when it does something next.
    pub(crate) fn reconcile(
        &mut self,
        objects: &Objects,
        now: Timestamp,
    ) -> (Vec<Change>, Option<Timestamp>) {
        let mut changes = Vec::new();
        let mut queue = BTreeMap::new();
        for wukong in objects.all(Kind::Wukong) {
            let version = wukong["metadata"]["resourceVersion"].as_str().unwrap_or_default();
            let entry = match self.queue.remove(uid(wukong)) {
                Some((seen, due)) if seen == version && due.is_none_or(|due| due > now) => (seen, due),
                _ => {
                    let outcome = one(objects, wukong, now);
                    changes.extend(outcome.changes);
                    (version.to_owned(), outcome.again.map(|after| now + after))
                }
            };
            queue.insert(uid(wukong).to_owned(), entry);
        }
        self.queue = queue;
        (changes, self.queue.values().filter_map(|(_, due)| *due).min())
    }

    /// A write has failed: everything is looked at again, as after a returned error.
    pub(crate) fn look_again(&mut self) {
        self.queue.clear();
    }
}

struct Outcome {
    changes: Vec<Change>,
    again: Option<SignedDuration>,
}

fn one(objects: &Objects, wukong: &Value, now: Timestamp) -> Outcome {
    let vm_name = format!("{}-vm", name(wukong));
    let vm = objects.get(Kind::VirtualMachine, namespace(wukong), &vm_name);
    let mut next = wukong.clone();
    if is_deleting(wukong) {
        // Its disks stay.
        remove_finalizer(&mut next, WUKONG_FINALIZER);
        let vm = vm.filter(|vm| !is_deleting(vm)).map(Change::delete);
        let finalizer = (next != *wukong).then_some(Change::Update(next));
        return Outcome { changes: vm.into_iter().chain(finalizer).collect(), again: None };
    }
    add_finalizer(&mut next, WUKONG_FINALIZER);
    if next != *wukong {
        return Outcome { changes: vec![Change::Update(next)], again: None };
    }
    let (mut changes, bound) = disks(objects, wukong);
    if !bound {
        return Outcome { changes, again: Some(AGAIN) };
    }
    let spec = vm_spec(wukong);
    match vm {
        None => changes.push(Change::Create(json!({
            "apiVersion": Kind::VirtualMachine.api_version(), "kind": Kind::VirtualMachine.name(),
            "metadata": {
                "name": vm_name, "namespace": namespace(wukong),
                "ownerReferences": [{
                    "apiVersion": Kind::Wukong.api_version(), "kind": Kind::Wukong.name(), "controller": true,
                    "name": name(wukong), "uid": uid(wukong),
                }],
            },
            "spec": spec,
        }))),
        Some(vm) if vm["spec"] != spec => {
            let mut rewritten = vm.clone();
            rewritten["spec"] = spec;
            changes.push(Change::Update(rewritten));
        }
        Some(_) => {}
    }
    let vmi = objects.get(Kind::VirtualMachineInstance, namespace(wukong), &vm_name);
    let (word, again) = match vmi.map(phase) {
        Some("Running") => ("Running", None),
        Some("Failed" | "Unknown") => ("Error", Some(AGAIN_AFTER_ERROR)),
        _ => return Outcome { changes, again: Some(AGAIN) },
    };
    let status = status(wukong, &vm_name, word, vmi, now);
    changes.extend((status != wukong["status"]).then(|| {
        let mut next = wukong.clone();
        next["status"] = status;
        Change::UpdateStatus(next)
    }));
    Outcome { changes, again }
}

/// What is missing, and whether all is bound (pkg/storage/pvc.go, datavolume.go). Claims and `DataVolumes` have no
/// owner; what exists is never changed.
fn disks(objects: &Objects, wukong: &Value) -> (Vec<Change>, bool) {
    let (mut changes, mut bound) = (Vec::new(), true);
    for disk in list(&wukong["spec"]["disks"]) {
        let claim_name = claim_name(wukong, disk);
        let find = |kind: Kind| objects.get(kind, namespace(wukong), &claim_name);
        let claim = find(Kind::PersistentVolumeClaim);
        let metadata = json!({"name": claim_name, "namespace": namespace(wukong)});
        let spec = json!({
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": disk["size"]}},
            "storageClassName": disk["storageClassName"],
        });
        let image = disk["image"].as_str().filter(|image| !image.is_empty());
        match (image, find(Kind::DataVolume)) {
            (Some(_), Some(data_volume)) => {
                bound &=
                    phase(data_volume) == "Succeeded" && claim.is_some_and(|claim| phase(claim) == "Bound");
            }
            (Some(image), None) => {
                bound = false;
                changes.push(Change::Create(json!({
                    "apiVersion": Kind::DataVolume.api_version(), "kind": Kind::DataVolume.name(),
                    "metadata": metadata, "spec": {"source": {"http": {"url": image}}, "pvc": spec},
                })));
            }
            (None, _) if claim.is_some_and(|claim| phase(claim) == "Bound") => {}
            (None, _) => {
                let mut blank = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim"});
                blank["metadata"] = metadata;
                blank["spec"] = spec;
                bound &= waits_for_consumer(objects, claim.unwrap_or(&blank));
                if claim.is_none() {
                    changes.push(Change::Create(blank));
                }
            }
        }
    }
    (changes, bound)
}

fn claim_name(wukong: &Value, disk: &Value) -> String {
    format!("{}-{}", name(wukong), disk["name"].as_str().unwrap_or_default())
}

/// The whole of it (pkg/kubevirt/vm.go, `updateVMSpec`): affinity, eviction strategy, firmware, templates and
/// whatever else stood there is gone.
fn vm_spec(wukong: &Value) -> Value {
    let spec = &wukong["spec"];
    let start = &spec["startStrategy"];
    let running = !start.is_object() || start["autoStart"] == true;
    let disks: Vec<_> = list(&spec["disks"]).collect();
    let devices: Vec<_> =
        disks.iter().map(|disk| json!({"name": disk["name"], "disk": {"bus": "virtio"}})).collect();
    let volumes: Vec<_> = disks
        .iter()
        .map(|disk| {
            json!({"name": disk["name"], "persistentVolumeClaim": {"claimName": claim_name(wukong, disk)}})
        })
        .collect();
    let mut template = json!({
        "domain": {
            "cpu": {"cores": spec["cpu"].as_u64().unwrap_or(1)},
            "memory": {"guest": spec["memory"]},
            "devices": {"disks": devices, "interfaces": [{"name": "default", "masquerade": {}}]},
        },
        "networks": [{"name": "default", "pod": {}}],
        "volumes": volumes,
    });
    let selector = &spec["highAvailability"]["nodeSelector"];
    if selector.is_object() {
        template["nodeSelector"] = selector.clone();
    }
    let tolerations = list(&spec["highAvailability"]["tolerations"]).cloned().map(|mut toleration| {
        if let Some(fields) = toleration.as_object_mut() {
            fields.remove("tolerationSeconds");
        }
        toleration
    });
    let tolerations: Vec<_> = tolerations.collect();
    if !tolerations.is_empty() {
        template["tolerations"] = json!(tolerations);
    }
    json!({"running": running, "template": {"spec": template}})
}

fn status(wukong: &Value, vm_name: &str, word: &str, vmi: Option<&Value>, now: Timestamp) -> Value {
    let volumes: Vec<_> = list(&wukong["spec"]["disks"])
        .map(|disk| {
            let claim = claim_name(wukong, disk);
            json!({"name": disk["name"], "pvcName": claim, "size": disk["size"], "bound": true})
        })
        .collect();
    let ready = word == "Running";
    json!({
        "phase": word,
        "vmName": vm_name,
        "nodeName": vmi.map(|vmi| vmi["status"]["nodeName"].clone()),
        "conditions": [{
            "type": "Ready", "status": if ready { "True" } else { "False" },
            "reason": if ready { "VMRunning" } else { "VMError" },
            "message": if ready { "Virtual machine is running" } else { "Virtual machine is in error state" },
            // A new one each time.
            "lastTransitionTime": time(now),
        }],
        "volumes": volumes,
    })
}

#[cfg(test)]
mod tests;
