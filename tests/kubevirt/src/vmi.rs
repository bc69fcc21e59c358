//! Virtual machine instances: virt-controller's part (pkg/virt-controller/watch/vmi/lifecycle.go) and, from
//! Scheduled on, virt-handler's, which is told here by what the kubelet reports of the launcher. A node that is
//! silent reports nothing: its VMI stays Running for ever (measured on KubeVirt 1.9.0).
//!
//! ```text
//!   Pending ──launcher made──► Scheduling ──process there──► Scheduled ──guest has its disks──► Running
//!      │                           │                             │                                 │
//!      │ deleted                   │ launcher gone or ending     │ launcher gone: at once          │
//!      └───────────────────────────┴────────────► Failed ◄───────┴─────────────────────────────────┤
//!                                                                        guest ended well: Succeeded
//!   Failed, Succeeded: the finalizers go when no launcher is left and when the VM's controller has seen it.
//! ```

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::change::Change;
use crate::condition::{self, Condition, set};
use crate::launcher;
use crate::names::{IMAGE, NODE_LABEL, PAUSE, VM_FINALIZER, VMI_FINALIZER};
use crate::objects::{
    Kind, Objects, annotation, controller, is_deleting, list, namespace, phase, remove_finalizer, uid,
};
use crate::volumes;

/// pkg/controller, `FailedPvcNotFoundReason`.
const PVC_NOT_FOUND: &str = "FailedPvcNotFound";

pub(crate) fn reconcile(objects: &Objects, now: Timestamp) -> Vec<Change> {
    objects.all(Kind::VirtualMachineInstance).flat_map(|vmi| one(objects, vmi, now)).collect()
}

/// Whether its phase is a last one.
pub(crate) fn is_final(vmi: &Value) -> bool {
    matches!(phase(vmi), "Failed" | "Succeeded")
}

/// Whether it was ever Running: only then is its end no failed start.
pub(crate) fn has_run(vmi: &Value) -> bool {
    list(&vmi["status"]["phaseTransitionTimestamps"]).any(|entered| entered["phase"] == "Running")
}

fn one(objects: &Objects, vmi: &Value, now: Timestamp) -> Vec<Change> {
    let launchers = launcher::all(objects, vmi);
    let pod = launcher::current(vmi, &launchers);
    let mut next = vmi.clone();
    if !next["status"].is_object() {
        next["status"] = json!({});
    }
    let missing = volumes::missing_claim(objects, vmi, &vmi["spec"]);
    let data_volumes = volumes::data_volumes(objects, vmi, &vmi["spec"]);

    let mut changes = Vec::new();
    if is_deleting(vmi) {
        changes.extend(launchers.iter().filter(|pod| !is_deleting(pod)).map(|pod| Change::delete(pod)));
    } else if matches!(phase(vmi), "" | "Pending")
        && pod.is_none()
        && missing.is_none()
        && volumes::are_populated(&data_volumes)
    {
        changes.push(Change::Create(launcher::pod(objects, vmi)));
    }

    if !is_final(vmi) {
        conditions(&mut next["status"], objects, vmi, pod, &data_volumes, now);
        problems(&mut next["status"], vmi, pod, missing.as_deref(), now);
    }
    let to = next_phase(vmi, pod);
    if to != phase(vmi) {
        enter(&mut next, to, now);
    }
    if let Some(pod) = pod.filter(|_| matches!(to, "Scheduled" | "Running")) {
        report(&mut next, objects, vmi, pod);
    }
    let active = launchers.iter().map(|pod| (uid(pod).to_owned(), pod["spec"]["nodeName"].clone()));
    let active = active.map(|(uid, node)| (uid, node.as_str().unwrap_or_default().into()));
    next["status"]["activePods"] = Value::Object(active.collect());
    // lifecycle.go: the VMI's own finalizer goes with its last launcher; the VM's controller takes the other one.
    if is_final(vmi) {
        if launchers.is_empty() {
            remove_finalizer(&mut next, VMI_FINALIZER);
        }
        if owner(objects, vmi).is_none() {
            remove_finalizer(&mut next, VM_FINALIZER);
        }
    }
    if next != *vmi {
        changes.insert(0, Change::Update(next));
    }
    changes
}

fn owner<'a>(objects: &'a Objects, vmi: &Value) -> Option<&'a Value> {
    let reference = controller(vmi).filter(|owner| owner["kind"] == "VirtualMachine")?;
    let vm = objects.get(Kind::VirtualMachine, namespace(vmi), reference["name"].as_str()?)?;
    (reference["uid"] == *uid(vm)).then_some(vm)
}

/// lifecycle.go, `updateStatus`. A launcher that is Terminating has not ended, on a dead node for ever; one whose
/// object is gone ends its VMI at once (since KubeVirt 1.2; 20 ms were measured on 1.9.0), whoever deleted it.
fn next_phase<'a>(vmi: &'a Value, pod: Option<&Value>) -> &'a str {
    match (phase(vmi), pod) {
        ("" | "Pending", Some(_)) => "Scheduling",
        ("" | "Pending", None) if is_deleting(vmi) => "Failed",
        ("" | "Pending", None) => "Pending",
        ("Scheduling" | "Scheduled" | "Running", None) => "Failed",
        ("Scheduling", Some(pod)) if launcher::is_going_down(pod) => "Failed",
        ("Scheduling", Some(pod)) if launcher::is_up(pod) && !is_deleting(vmi) => "Scheduled",
        ("Scheduled" | "Running", Some(pod)) if phase(pod) == "Failed" => "Failed",
        ("Scheduled" | "Running", Some(pod)) if phase(pod) == "Succeeded" => "Succeeded",
        ("Scheduled", Some(pod)) if launcher::is_started(pod) => "Running",
        (unchanged, _) => unchanged,
    }
}

fn enter(vmi: &mut Value, phase: &str, now: Timestamp) {
    let status = &mut vmi["status"];
    status["phase"] = json!(phase);
    let mut entered: Vec<_> = list(&status["phaseTransitionTimestamps"]).cloned().collect();
    entered.push(json!({"phase": phase, "phaseTransitionTimestamp": condition::time(now)}));
    status["phaseTransitionTimestamps"] = json!(entered);
}

/// What is known of a VMI that has a node, in the fields of objects that KubeVirt 1.9.0 and its virt-handler wrote.
fn report(vmi: &mut Value, objects: &Objects, old: &Value, pod: &Value) {
    if vmi["metadata"]["labels"][NODE_LABEL] != pod["spec"]["nodeName"] {
        vmi["metadata"]["labels"][NODE_LABEL] = pod["spec"]["nodeName"].clone();
    }
    let status = &mut vmi["status"];
    status["nodeName"] = pod["spec"]["nodeName"].clone();
    status["volumeStatus"] = volumes::status(objects, old, pod);
    status["launcherContainerImageVersion"] = json!(IMAGE);
    status["memory"] = json!({"memoryOverhead": launcher::MEMORY_OVERHEAD});
    if let Some(address) = pod["status"]["podIP"].as_str() {
        status["interfaces"] = json!([{"name": "default", "infoSource": "domain", "ipAddress": address, "ipAddresses": [address]}]);
    }
}

fn conditions(
    status: &mut Value,
    objects: &Objects,
    vmi: &Value,
    pod: Option<&Value>,
    data_volumes: &[Option<&Value>],
    now: Timestamp,
) {
    ready(status, vmi, pod, now);
    if !data_volumes.is_empty() {
        let ready = volumes::are_populated(data_volumes);
        let (reason, message) = if ready {
            ("AllDVsReady", "All of the VMI's DVs are bound and ready")
        } else {
            ("NotAllDVsReady", "Not all of the VMI's DVs are ready")
        };
        set(status, &Condition { kind: "DataVolumesReady", status: ready, reason, message }, now);
    }
    if phase(vmi) == "Running" {
        let is_shared =
            |claim: &Value| list(&claim["spec"]["accessModes"]).any(|mode| mode == "ReadWriteMany");
        let mut claims = volumes::of(&vmi["spec"]).map(|volume| volumes::claim(objects, vmi, volume));
        let migratable = claims.all(|claim| claim.is_none_or(is_shared));
        // pkg/virt-handler/vm.go, `isLiveMigratable`.
        let (reason, message) = if migratable {
            ("", "")
        } else {
            (
                "DisksNotLiveMigratable",
                "cannot migrate VMI: PVC is not shared, live migration requires that all PVCs must be shared (using ReadWriteMany access mode)",
            )
        };
        set(status, &Condition { kind: "LiveMigratable", status: migratable, reason, message }, now);
        if annotation(vmi, PAUSE) == Some("true") {
            let message = "VMI was paused by user";
            set(status, &Condition { kind: "Paused", status: true, reason: "PausedByUser", message }, now);
        } else {
            condition::retain(status, |kind| kind != "Paused");
        }
    }
}

/// lifecycle.go, `syncReadyConditionFromPod`.
fn ready(status: &mut Value, vmi: &Value, pod: Option<&Value>, now: Timestamp) {
    let not = |reason, message| Condition { kind: "Ready", status: false, reason, message };
    match pod {
        None => set(status, &not("PodNotExists", "virt-launcher pod has not yet been scheduled"), now),
        Some(pod) if launcher::is_going_down(pod) => {
            set(status, &not("PodTerminating", "virt-launcher pod is terminating"), now);
        }
        Some(_) if phase(vmi) != "Running" => {
            set(status, &not("GuestNotRunning", "Guest VM is not reported as running"), now);
        }
        Some(pod) => {
            if let Some(found) = condition::find(&pod["status"], "Ready") {
                let mut copy = found.clone();
                if let Some(fields) = copy.as_object_mut() {
                    fields.remove("observedGeneration");
                }
                condition::put(status, copy);
            }
        }
    }
}

/// Why it does not get on: a claim that is not there, a launcher that fits nowhere (both as measured on KubeVirt
/// 1.9.0; a VM on a dead node's local disk is the latter until the node is back).
fn problems(status: &mut Value, vmi: &Value, pod: Option<&Value>, missing: Option<&str>, now: Timestamp) {
    if !matches!(phase(vmi), "" | "Pending" | "Scheduling") {
        return;
    }
    match missing {
        Some(message) => {
            let problem = Condition { kind: "Synchronized", status: false, reason: PVC_NOT_FOUND, message };
            set(status, &problem, now);
        }
        None => condition::retain(status, |kind| kind != "Synchronized"),
    }
    let scheduled = pod.and_then(|pod| condition::find(&pod["status"], "PodScheduled"));
    match (scheduled.filter(|found| found["status"] == "False"), pod, missing) {
        (Some(found), _, _) => {
            let mut copy = found.clone();
            if let Some(fields) = copy.as_object_mut() {
                fields.remove("observedGeneration");
            }
            condition::put(status, copy);
        }
        (None, None, Some(message)) => {
            let unschedulable =
                Condition { kind: "PodScheduled", status: false, reason: "Unschedulable", message };
            set(status, &unschedulable, now);
        }
        _ => condition::retain(status, |kind| kind != "PodScheduled"),
    }
}

/// Whether a VMI misses a claim (the VM's `ErrorPvcNotFound`).
pub(crate) fn misses_claim(vmi: &Value) -> bool {
    condition::is(&vmi["status"], "Synchronized", false, Some(PVC_NOT_FOUND))
}

#[cfg(test)]
mod tests;
