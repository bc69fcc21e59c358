//! Shows an instance's life and its end, and what stands in the way of it, on objects shaped as KubeVirt 1.9.0
//! writes them.

use super::*;
use crate::names::{CREATED_BY_LABEL, PART_LABEL};
use crate::objects::name;

fn now() -> Timestamp {
    "2026-11-23T11:17:52Z".parse().expect("a time")
}

fn vmi(phase: &str) -> Value {
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {
            "namespace": "default", "name": "web", "uid": "vmi-uid", "finalizers": [VM_FINALIZER, VMI_FINALIZER],
            "ownerReferences": [{"kind": "VirtualMachine", "name": "web", "uid": "vm-uid", "controller": true}],
        },
        "spec": {
            "volumes": [{"name": "root", "persistentVolumeClaim": {"claimName": "web-root"}}],
            "tolerations": [{"key": "a", "operator": "Exists"}],
        },
        "status": {"phase": phase},
    })
}

fn claim() -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"namespace": "default", "name": "web-root", "uid": "claim-uid"},
        "spec": {"storageClassName": "nfs-standin", "accessModes": ["ReadWriteOnce"]},
        "status": {"phase": "Bound", "capacity": {"storage": "16Mi"}},
    })
}

fn pod(phase: &str, started: bool) -> Value {
    let state = if phase == "Running" { json!({"running": {}}) } else { json!({"waiting": {}}) };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": "default", "name": "virt-launcher-web", "uid": "pod-uid",
            "labels": {PART_LABEL: "virt-launcher", CREATED_BY_LABEL: "vmi-uid"},
            "ownerReferences": [{"kind": "VirtualMachineInstance", "uid": "vmi-uid", "controller": true}],
        },
        "spec": {"nodeName": "n1"},
        "status": {"phase": phase, "containerStatuses": [{"started": started, "state": state}]},
    })
}

fn vm() -> Value {
    json!({"kind": "VirtualMachine", "metadata": {"namespace": "default", "name": "web", "uid": "vm-uid"}})
}

fn world(objects: impl IntoIterator<Item = Value>) -> Objects {
    let mut world = Objects::default();
    objects.into_iter().chain([vm()]).for_each(|object| world.put(object));
    world
}

fn updated(objects: &Objects) -> Option<Value> {
    reconcile(objects, now()).into_iter().find_map(|change| match change {
        Change::Update(vmi) => Some(vmi),
        _ => None,
    })
}

/// The phase after one look.
fn after(vmi: Value, pod: Option<Value>) -> String {
    let updated = updated(&world([Some(vmi), Some(claim()), pod].into_iter().flatten()));
    phase(&updated.expect("a change")).to_owned()
}

#[test]
fn an_instance_gets_to_run() {
    let changes = reconcile(&world([vmi(""), claim()]), now());
    let [Change::Update(pending), Change::Create(launcher)] = changes.as_slice() else {
        panic!("{changes:?}")
    };
    assert_eq!(phase(pending), "Pending");
    let arguments = launcher["spec"]["containers"][0]["args"].as_array().expect("arguments");
    // Nothing says that its volume is tied to one node.
    let disk = "/var/run/kubevirt-private/vmi-disks/root/disk.img,16777216,nolock";
    assert_eq!(arguments.last(), Some(&json!(disk)));
    assert_eq!(launcher["spec"]["terminationGracePeriodSeconds"], 60);
    assert_eq!(launcher["spec"]["tolerations"], json!([{"key": "a", "operator": "Exists"}]));
    assert_eq!(launcher["metadata"]["labels"][CREATED_BY_LABEL], "vmi-uid");
    assert_eq!(launcher["metadata"]["annotations"]["kubevirt.io/domain"], "web");

    assert_eq!(after(vmi("Pending"), Some(pod("Pending", false))), "Scheduling");
    assert_eq!(after(vmi("Scheduling"), Some(pod("Running", false))), "Scheduled");
    assert_eq!(after(vmi("Scheduled"), Some(pod("Running", false))), "Scheduled", "it waits for its disks");
    assert_eq!(after(vmi("Scheduled"), Some(pod("Running", true))), "Running");
}

#[test]
fn without_its_launcher_it_has_failed_at_once() {
    for phase in ["Scheduling", "Scheduled", "Running"] {
        assert_eq!(after(vmi(phase), None), "Failed");
    }
    assert_eq!(after(vmi("Running"), Some(pod("Failed", false))), "Failed");
    assert_eq!(after(vmi("Running"), Some(pod("Succeeded", false))), "Succeeded");
}

#[test]
fn a_launcher_that_is_terminating_for_ever_keeps_it_running() {
    let mut terminating = pod("Running", true);
    terminating["metadata"]["deletionTimestamp"] = json!("2026-11-23T11:22:09Z");
    let updated = updated(&world([vmi("Running"), claim(), terminating])).expect("a change");
    assert_eq!(phase(&updated), "Running");
    let ready = condition::find(&updated["status"], "Ready").expect("a condition");
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!("PodTerminating")));
}

#[test]
fn a_missing_claim_and_a_full_cluster_are_told() {
    let updated_with = |objects: Vec<Value>| updated(&world(objects)).expect("a change")["status"].clone();
    let status = updated_with(vec![vmi("")]);
    assert!(condition::is(&status, "Synchronized", false, Some(PVC_NOT_FOUND)));
    assert!(condition::is(&status, "PodScheduled", false, Some("Unschedulable")));
    assert!(reconcile(&world([vmi("")]), now()).iter().all(|change| !matches!(change, Change::Create(_))));

    let mut unscheduled = pod("Pending", false);
    unscheduled["spec"] = json!({});
    let message = "0/3 nodes are available";
    unscheduled["status"]["conditions"] =
        json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]);
    let status = updated_with(vec![vmi("Scheduling"), claim(), unscheduled.clone()]);
    assert_eq!(status["phase"], "Scheduling");
    assert_eq!(condition::find(&status, "PodScheduled").expect("told")["message"], message);
    assert!(condition::find(&status, "Synchronized").is_none());
    // The claim is swapped under a launcher that is still Pending.
    let mut stuck = vmi("Scheduling");
    stuck["status"] = status;
    let status = updated_with(vec![stuck, unscheduled]);
    assert!(condition::is(&status, "Synchronized", false, Some(PVC_NOT_FOUND)));
    assert_eq!(status["phase"], "Scheduling");
}

#[test]
fn a_claim_that_is_not_filled_yet_is_waited_for() {
    let mut owned = claim();
    owned["metadata"]["ownerReferences"] =
        json!([{"kind": "DataVolume", "name": "web-root", "uid": "dv-uid", "controller": true}]);
    let data_volume = |phase: &str| json!({"kind": "DataVolume", "metadata": {"namespace": "default", "name": "web-root", "uid": "dv-uid"}, "status": {"phase": phase}});
    let starts = |phase: &str| {
        let changes = reconcile(&world([vmi("Pending"), owned.clone(), data_volume(phase)]), now());
        changes.iter().any(|change| matches!(change, Change::Create(_)))
    };
    assert!(!starts("ImportInProgress"));
    assert!(starts("Succeeded"));
}

#[test]
fn a_deleted_instance_takes_its_launcher_and_goes_when_both_finalizers_are_gone() {
    let mut deleted = vmi("Running");
    deleted["metadata"]["deletionTimestamp"] = json!("2026-11-23T11:22:09Z");
    let changes = reconcile(&world([deleted.clone(), claim(), pod("Running", true)]), now());
    let ends = |change: &Change| matches!(change, Change::Delete { object, .. } if name(object) == "virt-launcher-web");
    assert!(changes.iter().any(ends), "{changes:?}");
    deleted["status"]["phase"] = json!("Failed");
    let released = updated(&world([deleted, claim()])).expect("a change");
    assert_eq!(
        released["metadata"]["finalizers"],
        json!([VM_FINALIZER]),
        "the other one is the VM controller's"
    );
}

#[test]
fn the_launcher_that_counts_is_on_the_instance_s_node() {
    let mut running = vmi("Running");
    running["status"]["nodeName"] = json!("n1");
    let mut target = pod("Running", true);
    target["spec"]["nodeName"] = json!("n2");
    target["metadata"]["name"] = json!("target");
    assert_eq!(after(running, Some(target)), "Failed", "the target of a migration is no launcher of its own");
}

#[test]
fn it_is_paused_and_not() {
    let mut paused = vmi("Running");
    paused["metadata"]["annotations"][PAUSE] = json!("true");
    let updated = updated(&world([paused, claim(), pod("Running", true)])).expect("a change");
    assert!(condition::is(&updated["status"], "Paused", true, Some("PausedByUser")));
    let mut going_on = updated;
    going_on["metadata"]["annotations"] = Value::Null;
    let updated = self::updated(&world([going_on, claim(), pod("Running", true)])).expect("a change");
    assert!(condition::find(&updated["status"], "Paused").is_none());
}
