//! Virtual machines: pkg/virt-controller/watch/vm/vm.go.
//!
//! ```text
//!   run strategy      no VMI                         VMI Failed            VMI Succeeded   stop request
//!   Always            start, after a backoff         delete it             delete it       delete it
//!   RerunOnFailure    start when asked, or when      delete it, and ask    delete it       delete it
//!                     the strategy is a new one      for a start
//!   Manual            start when asked               nothing               nothing         delete it
//!   Once              start                          nothing               nothing         nothing
//!   Halted            nothing                        delete it, whatever its phase
//! ```
//!
//! `running: true` is Always, `running: false` is Halted. A VMI that failed before it ever ran is a failed start:
//! the next one waits 10 s times the square of their number, up to half of that more, 300 s at most. Nothing else
//! in a VM's template is looked at, and no `RestartRequired` is set.

mod status;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::change::Change;
use crate::names::{ALLOW_ADOPTION, CREATED_BY_LABEL, GENERATION_ANNOTATION, VM_FINALIZER, VMI_FINALIZER};
use crate::objects::{
    Kind, Objects, add_finalizer, has_finalizer, is_controlled_by, is_deleting, list, name, namespace,
    owner_reference, phase, remove_finalizer, uid,
};
use crate::vmi::is_final;
use status::StartFailure;

/// What to do, and when to look again even if nothing happens.
pub(crate) fn reconcile(objects: &Objects, now: Timestamp) -> (Vec<Change>, Option<Timestamp>) {
    let (mut changes, mut wake) = (Vec::new(), None::<Timestamp>);
    for vm in objects.all(Kind::VirtualMachine) {
        changes.extend(one(objects, vm, now));
        let retry = StartFailure::of(vm).map(|failure| failure.retry_after).filter(|retry| *retry > now);
        wake = wake.into_iter().chain(retry).min();
    }
    (changes, wake)
}

/// `spec.runStrategy`, or what `spec.running` stands for.
fn run_strategy(vm: &Value) -> &str {
    match (vm["spec"]["runStrategy"].as_str(), vm["spec"]["running"].as_bool()) {
        (Some(strategy), _) => strategy,
        (None, Some(true)) => "Always",
        (None, _) => "Halted",
    }
}

fn one(objects: &Objects, vm: &Value, now: Timestamp) -> Vec<Change> {
    let vmi = objects.get(Kind::VirtualMachineInstance, namespace(vm), name(vm));
    let vmi = vmi.filter(|vmi| is_controlled_by(vmi, vm));
    let mut changes = metadata(vm, vmi).into_iter().collect::<Vec<_>>();
    if !changes.is_empty() {
        // The rest is decided on the object as it will be then.
        return changes;
    }
    let mut ask_for_start = false;
    if is_deleting(vm) {
        changes.extend(stop(vmi));
    } else {
        let (missing, ready) = data_volumes(objects, vm);
        changes.extend(missing);
        if ready || run_strategy(vm) == "Halted" {
            let step = follow(vm, vmi, now);
            ask_for_start = step.ask_for_start;
            changes.extend(step.changes);
        }
    }
    let next = status::next(objects, vm, vmi, ask_for_start, now);
    if next == *vm {
        // Only when it is recorded what became of it (`removeVMIFinalizer`).
        changes.extend(vmi.and_then(release));
    } else {
        changes.push(Change::UpdateStatus(next));
    }
    changes
}

/// Finalizer, and the firmware's uuid where nobody gave one: from the VM's name, as pkg/virt-controller/watch/vm/firmware.go
/// does. A whole-spec rewrite of the VM removes it, and it is set again: the two of them change the VM's generation
/// (measured on KubeVirt 1.9.0 with Wukong).
fn metadata(vm: &Value, vmi: Option<&Value>) -> Option<Change> {
    let mut next = vm.clone();
    if is_deleting(vm) {
        if vmi.is_none() {
            remove_finalizer(&mut next, VM_FINALIZER);
        }
    } else {
        add_finalizer(&mut next, VM_FINALIZER);
        let firmware = &mut next["spec"]["template"]["spec"]["domain"]["firmware"];
        if firmware["uuid"].is_null() {
            firmware["uuid"] = json!(uuid_of_name(name(vm)));
        }
    }
    (next != *vm).then_some(Change::Update(next))
}

/// Any uuid that is the same for the same name.
fn uuid_of_name(name: &str) -> String {
    let hash = |seed: u64| {
        name.bytes()
            .fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3).rotate_left(29))
    };
    let (high, low) = (hash(0xcbf2_9ce4_8422_2325), hash(0x9e37_79b9_7f4a_7c15));
    format!(
        "{:08x}-{:04x}-5{:03x}-8{:03x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        low >> 52,
        low & 0xffff_ffff_ffff
    )
}

struct Step {
    changes: Vec<Change>,
    ask_for_start: bool,
}

/// `syncRunStrategy`.
fn follow(vm: &Value, vmi: Option<&Value>, now: Timestamp) -> Step {
    let nothing = Step { changes: Vec::new(), ask_for_start: false };
    let strategy = run_strategy(vm);
    let Some(vmi) = vmi else {
        let asked = list(&vm["status"]["stateChangeRequests"]).any(|request| request["action"] == "Start");
        let waits = StartFailure::of(vm).is_some_and(|failure| failure.is_waiting(now));
        let starts = match strategy {
            "Always" => !waits,
            "RerunOnFailure" => (asked || vm["status"]["runStrategy"] != strategy) && !waits,
            "Manual" => asked,
            "Once" => true,
            _ => false,
        };
        let changes = starts.then(|| Change::Create(instance(vm))).into_iter().collect();
        return Step { changes, ..nothing };
    };
    let failed = phase(vmi) == "Failed";
    let asked = list(&vm["status"]["stateChangeRequests"])
        .any(|request| request["action"] == "Stop" && request["uid"] == *uid(vmi));
    let stops = match strategy {
        "Always" | "RerunOnFailure" => asked || is_final(vmi),
        "Manual" => asked,
        "Once" => false,
        _ => true,
    };
    if !stops || is_deleting(vmi) {
        return nothing;
    }
    Step { changes: stop(Some(vmi)), ask_for_start: failed && strategy == "RerunOnFailure" }
}

fn stop(vmi: Option<&Value>) -> Vec<Change> {
    vmi.filter(|vmi| !is_deleting(vmi)).map(Change::delete).into_iter().collect()
}

/// A VMI of the VM's template, with the eviction strategy that the objects of KubeVirt 1.9.0 had where none was given.
fn instance(vm: &Value) -> Value {
    let template = &vm["spec"]["template"];
    let mut annotations = template["metadata"]["annotations"].clone();
    let generation = vm["metadata"]["generation"].as_u64().unwrap_or_default();
    annotations[GENERATION_ANNOTATION] = json!(generation.to_string());
    let mut spec = template["spec"].clone();
    if spec["evictionStrategy"].is_null() {
        spec["evictionStrategy"] = json!("None");
    }
    json!({
        "apiVersion": Kind::VirtualMachineInstance.api_version(), "kind": Kind::VirtualMachineInstance.name(),
        "metadata": {
            "name": name(vm), "namespace": namespace(vm), "annotations": annotations,
            "labels": template["metadata"]["labels"],
            "finalizers": [VM_FINALIZER, VMI_FINALIZER],
            "ownerReferences": [owner_reference(vm)],
        },
        "spec": spec,
    })
}

fn release(vmi: &Value) -> Option<Change> {
    if !is_final(vmi) || !has_finalizer(vmi, VM_FINALIZER) {
        return None;
    }
    let mut next = vmi.clone();
    remove_finalizer(&mut next, VM_FINALIZER);
    Some(Change::Update(next))
}

/// `DataVolumes` of the templates that are missing, and whether all are there and filled (`handleDataVolumes`). They
/// may adopt a claim (pkg/storage/types/dv.go).
fn data_volumes(objects: &Objects, vm: &Value) -> (Vec<Change>, bool) {
    let (mut missing, mut ready) = (Vec::new(), true);
    for template in list(&vm["spec"]["dataVolumeTemplates"]) {
        let found = objects.get(Kind::DataVolume, namespace(vm), name(template));
        ready &= found.is_some_and(|found| phase(found) == "Succeeded");
        if found.is_none() {
            let mut new = template.clone();
            new["apiVersion"] = json!(Kind::DataVolume.api_version());
            new["kind"] = json!(Kind::DataVolume.name());
            new["metadata"]["namespace"] = json!(namespace(vm));
            new["metadata"]["labels"][CREATED_BY_LABEL] = json!(uid(vm));
            new["metadata"]["annotations"][ALLOW_ADOPTION] = json!("true");
            new["metadata"]["ownerReferences"] = json!([owner_reference(vm)]);
            missing.push(Change::Create(new));
        }
    }
    (missing, ready)
}

#[cfg(test)]
mod tests;
