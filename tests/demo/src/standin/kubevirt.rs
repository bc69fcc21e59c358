//! Stand-in for KubeVirt's controllers, by what they were seen to do from 1.2 on.
//!
//! ```text
//!   VM should run ──► VMI Scheduling ──► launcher Pending ──► scheduled ──► process runs: VMI Running
//!                        ▲                                                         │
//!                        └── VMI deleted ◄── VMI Failed ◄── launcher gone, or its process ended
//!   VM should stop ──► launcher Terminating ──► kubelet says its process is gone ──► launcher, then VMI deleted
//! ```
//!
//! A launcher whose node is silent stays Terminating for ever: nobody says that its process is gone.

use serde_json::{Value, json};
use somersault_coordinator::cluster::directory::store::Objects;

use super::kubelets::PodState;
use super::{Change, Reports, bound, claims, delete, name, namespace, now, set, uid};

pub(super) fn reconcile(objects: &Objects, reports: &Reports) -> Vec<Change> {
    let mut changes = Vec::new();
    for vm in objects.of_kind("VirtualMachine") {
        let vmi = objects
            .of_kind("VirtualMachineInstance")
            .find(|vmi| name(vmi) == name(vm) && namespace(vmi) == namespace(vm));
        let pod = vmi.and_then(|vmi| launcher(objects, vmi));
        match (should_run(vm), vmi) {
            (true, None) => start(&mut changes, objects, vm),
            (true, Some(vmi)) => keep(&mut changes, reports, vm, vmi, pod),
            (false, Some(vmi)) => stop(&mut changes, reports, vmi, pod),
            (false, None) => status(&mut changes, vm, "Stopped"),
        }
    }
    changes
}

fn should_run(vm: &Value) -> bool {
    match vm["spec"]["runStrategy"].as_str() {
        Some(strategy) => matches!(strategy, "Always" | "RerunOnFailure"),
        None => vm["spec"]["running"] == true,
    }
}

fn launcher<'a>(objects: &'a Objects, vmi: &Value) -> Option<&'a Value> {
    objects.of_kind("Pod").find(|pod| pod["metadata"]["labels"]["kubevirt.io/created-by"] == uid(vmi))
}

fn start(changes: &mut Vec<Change>, objects: &Objects, vm: &Value) {
    let template = &vm["spec"]["template"]["spec"];
    if claims(template).into_iter().any(|claim| bound(objects, namespace(vm), claim).is_none()) {
        status(changes, vm, "ErrorPvcNotFound");
        return;
    }
    changes.push(Change::Create(json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {
            "name": name(vm), "namespace": namespace(vm),
            "ownerReferences": [owner("VirtualMachine", vm)],
        },
        "spec": template,
        "status": {"phase": "Scheduling", "phaseTransitionTimestamps": [
            {"phase": "Scheduling", "phaseTransitionTimestamp": now()}]},
    })));
    status(changes, vm, "Starting");
}

fn keep(changes: &mut Vec<Change>, reports: &Reports, vm: &Value, vmi: &Value, pod: Option<&Value>) {
    let phase = vmi["status"]["phase"].as_str().unwrap_or_default();
    match (phase, pod) {
        ("Failed" | "Succeeded", Some(pod)) => delete(changes, pod),
        ("Failed" | "Succeeded", None) => delete(changes, vmi),
        ("Running" | "Scheduled", None) => set(changes, vmi, json!({"status": {"phase": "Failed"}})),
        (_, None) => changes.push(Change::Create(new_launcher(vmi))),
        (_, Some(pod)) => follow(changes, reports, vm, vmi, pod),
    }
}

/// What the kubelet says of the launcher's process becomes the phase of launcher, VMI and VM.
fn follow(changes: &mut Vec<Change>, reports: &Reports, vm: &Value, vmi: &Value, pod: &Value) {
    let Some(node) = pod["spec"]["nodeName"].as_str() else {
        let unschedulable = pod["status"]["conditions"][0]["status"] == "False";
        status(changes, vm, if unschedulable { "ErrorUnschedulable" } else { "Starting" });
        return;
    };
    match reports.get(node).and_then(|report| report.pods.get(uid(pod))) {
        Some(PodState::Running) => {
            set(changes, pod, json!({"status": {"phase": "Running"}}));
            if vmi["status"]["phase"] != "Running" {
                let mut times =
                    vmi["status"]["phaseTransitionTimestamps"].as_array().cloned().unwrap_or_default();
                times.push(json!({"phase": "Running", "phaseTransitionTimestamp": now()}));
                let running = json!({
                    "phase": "Running", "nodeName": node,
                    "phaseTransitionTimestamps": times,
                    "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now()}],
                });
                set(changes, vmi, json!({"status": running}));
            }
            status(changes, vm, "Running");
        }
        Some(PodState::Ended { .. }) => {
            set(changes, pod, json!({"status": {"phase": "Failed"}}));
            set(changes, vmi, json!({"status": {"phase": "Failed"}}));
        }
        None => {}
    }
}

fn stop(changes: &mut Vec<Change>, reports: &Reports, vmi: &Value, pod: Option<&Value>) {
    let Some(pod) = pod else {
        delete(changes, vmi);
        return;
    };
    let gone = pod["spec"]["nodeName"].as_str().is_none_or(|node| {
        reports.get(node).is_some_and(|report| report.settled && !report.pods.contains_key(uid(pod)))
    });
    if pod["metadata"]["deletionTimestamp"].is_null() {
        set(changes, pod, json!({"metadata": {"deletionTimestamp": now()}}));
    } else if gone {
        delete(changes, pod);
    }
}

fn new_launcher(vmi: &Value) -> Value {
    let suffix: String = uid(vmi).chars().take(5).collect();
    let volumes: Vec<_> = claims(&vmi["spec"])
        .into_iter()
        .map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}}))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("virt-launcher-{}-{suffix}", name(vmi)), "namespace": namespace(vmi),
            "labels": {
                "kubevirt.io": "virt-launcher", "kubevirt.io/created-by": uid(vmi),
                "vm.kubevirt.io/name": name(vmi),
            },
            "annotations": {"kubevirt.io/domain": name(vmi)},
            "ownerReferences": [owner("VirtualMachineInstance", vmi)],
        },
        "spec": {"volumes": volumes, "containers": [{"name": "compute", "image": "registry.invalid/launcher:1"}]},
        "status": {"phase": "Pending"},
    })
}

fn owner(kind: &str, object: &Value) -> Value {
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": kind, "name": name(object), "uid": uid(object),
        "controller": true, "blockOwnerDeletion": true,
    })
}

fn status(changes: &mut Vec<Change>, vm: &Value, printable: &str) {
    let running = printable == "Running";
    set(changes, vm, json!({"status": {"printableStatus": printable, "ready": running, "created": running}}));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use somersault_coordinator::cluster::directory::files;

    use super::super::kubelets::Report;
    use super::*;

    const RUNNING: &str = "
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: web, namespace: default, uid: vm}
spec: {running: RUN, template: {spec: {volumes: []}}}
---
apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: web, namespace: default, uid: vmi}
status: {phase: Running, nodeName: n1}
";
    const LAUNCHER: &str = "
---
apiVersion: v1
kind: Pod
metadata: {name: virt-launcher-web-x, namespace: default, uid: pod, labels: {kubevirt.io/created-by: vmi}DELETED}
spec: {nodeName: n1}
status: {phase: Running}
";

    fn objects(text: &str) -> Objects {
        Objects::from_files(vec![("a.yaml".into(), Arc::new(files::parse(text, false)))])
    }

    fn silent() -> Reports {
        let report = Report { settled: false, ..Report::default() };
        [("n1".to_owned(), report)].into()
    }

    #[test]
    fn a_running_instance_whose_launcher_object_is_gone_fails_at_once() {
        let changes = reconcile(&objects(&RUNNING.replace("RUN,", "true,")), &silent());
        let failed = json!({"status": {"phase": "Failed"}});
        assert!(changes.iter().any(|change| matches!(change, Change::Merge(id, patch)
            if id.kind == "VirtualMachineInstance" && *patch == failed)));
    }

    #[test]
    fn a_launcher_of_a_silent_node_stays_terminating() {
        let text = RUNNING.replace("RUN,", "false,")
            + &LAUNCHER.replace("DELETED", ", deletionTimestamp: \"2026-01-01T00:00:00Z\"");
        assert_eq!(reconcile(&objects(&text), &silent()), vec![]);
    }

    #[test]
    fn a_stopped_launcher_goes_when_the_kubelet_says_so() {
        let text = RUNNING.replace("RUN,", "false,")
            + &LAUNCHER.replace("DELETED", ", deletionTimestamp: \"2026-01-01T00:00:00Z\"");
        let reports = [("n1".to_owned(), Report { settled: true, ..Report::default() })].into();
        let changes = reconcile(&objects(&text), &reports);
        assert!(matches!(changes.as_slice(), [Change::Delete(id, uid)] if id.kind == "Pod" && uid == "pod"));
    }

    #[test]
    fn a_launcher_that_did_not_survive_a_boot_makes_its_instance_fail() {
        let text = RUNNING.replace("RUN,", "true,") + &LAUNCHER.replace("DELETED", "");
        let mut report = Report { settled: true, ..Report::default() };
        report.pods.insert("pod".to_owned(), PodState::Ended { code: None });
        let changes = reconcile(&objects(&text), &[("n1".to_owned(), report)].into());
        assert_eq!(changes.len(), 2);
    }
}
