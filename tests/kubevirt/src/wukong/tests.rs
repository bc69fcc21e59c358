//! Shows when Wukong looks, what it makes and what it rewrites.

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).expect("a time")
}

fn wukong(version: u64, spec: &Value) -> Value {
    let mut wukong = json!({
        "apiVersion": "vm.novasphere.dev/v1alpha1", "kind": "Wukong",
        "metadata": {
            "namespace": "default", "name": "wk1", "uid": "wk-uid", "resourceVersion": version.to_string(),
            "finalizers": [WUKONG_FINALIZER],
        },
        "spec": {
            "cpu": 1, "memory": "128Mi",
            "disks": [
                {"name": "system", "size": "1Gi", "storageClassName": "local-path", "image": "http://images.invalid/x"},
                {"name": "data", "size": "1Gi", "storageClassName": "local-path"},
            ],
        },
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        wukong["spec"][field] = value.clone();
    }
    wukong
}

/// A Wukong whose disks are there and bound.
fn settled() -> Objects {
    let mut objects = Objects::default();
    objects.put(wukong(1, &json!({})));
    objects.put(json!({"kind": "StorageClass", "metadata": {"name": "local-path"}, "volumeBindingMode": "WaitForFirstConsumer"}));
    objects.put(json!({"kind": "DataVolume", "metadata": {"namespace": "default", "name": "wk1-system"}, "status": {"phase": "Succeeded"}}));
    for claim in ["wk1-system", "wk1-data"] {
        objects.put(json!({"kind": "PersistentVolumeClaim", "metadata": {"namespace": "default", "name": claim, "uid": claim}, "status": {"phase": "Bound"}}));
    }
    objects
}

fn vmi(objects: &mut Objects, phase: &str) {
    objects.put(json!({
        "kind": "VirtualMachineInstance", "metadata": {"namespace": "default", "name": "wk1-vm"},
        "status": {"phase": phase, "nodeName": "n1"},
    }));
}

fn created<'a>(changes: &'a [Change], kind: &str) -> Vec<&'a Value> {
    let new =
        changes.iter().filter_map(|change| if let Change::Create(new) = change { Some(new) } else { None });
    new.filter(|new| new["kind"] == kind).collect()
}

#[test]
fn missing_disks_are_made_without_an_owner_and_the_vm_waits_for_the_import() {
    let mut objects = Objects::default();
    objects.put(wukong(1, &json!({})));
    let (changes, due) = Operator::default().reconcile(&objects, at(0));
    assert_eq!(
        created(&changes, "DataVolume")[0]["metadata"],
        json!({"name": "wk1-system", "namespace": "default"})
    );
    let claims = created(&changes, "PersistentVolumeClaim");
    assert_eq!(claims[0]["metadata"], json!({"name": "wk1-data", "namespace": "default"}));
    assert!(created(&changes, "VirtualMachine").is_empty());
    assert_eq!(due, Some(at(10)));
}

#[test]
fn while_the_vm_is_stopped_it_looks_every_ten_seconds_and_makes_a_missing_claim_blank() {
    let mut objects = settled();
    let mut operator = Operator::default();
    let (changes, due) = operator.reconcile(&objects, at(0));
    assert_eq!(created(&changes, "VirtualMachine").len(), 1);
    assert_eq!(due, Some(at(10)));
    objects.remove(&json!({"kind": "PersistentVolumeClaim", "metadata": {"namespace": "default", "name": "wk1-data", "uid": "wk1-data"}}));
    assert_eq!(operator.reconcile(&objects, at(9)).0, [], "it watches no claims");
    let (changes, due) = operator.reconcile(&objects, at(10));
    assert_eq!(created(&changes, "PersistentVolumeClaim").len(), 1);
    assert_eq!(due, Some(at(20)));
}

#[test]
fn while_the_vm_runs_it_sleeps_after_its_own_status() {
    let mut objects = settled();
    vmi(&mut objects, "Running");
    let mut operator = Operator::default();
    let (changes, due) = operator.reconcile(&objects, at(0));
    let Some(Change::UpdateStatus(written)) = changes.last() else { panic!("{changes:?}") };
    assert_eq!((&written["status"]["phase"], due), (&json!("Running"), None));
    // Its own write wakes it; within the same second nothing has changed.
    let mut written = written.clone();
    written["metadata"]["resourceVersion"] = json!("2");
    objects.put(written);
    let (changes, due) = operator.reconcile(&objects, at(0));
    assert!(!changes.iter().any(|change| matches!(change, Change::UpdateStatus(_))), "{changes:?}");
    assert_eq!(due, None);
    assert_eq!(operator.reconcile(&objects, at(1000)).0, []);
}

#[test]
fn the_whole_spec_is_rewritten_at_each_look_but_the_vm_has_no_more_than_an_owner() {
    let mut objects = settled();
    vmi(&mut objects, "Running");
    let (changes, _) = Operator::default().reconcile(&objects, at(0));
    let mut vm = created(&changes, "VirtualMachine")[0].clone();
    assert_eq!(vm["metadata"]["ownerReferences"][0]["kind"], "Wukong");
    assert_eq!(vm["spec"]["running"], true, "without a startStrategy");
    vm["spec"]["running"] = json!(false);
    vm["spec"]["template"]["spec"]["affinity"] = json!({"nodeAffinity": {}});
    objects.put(vm);
    for (start, running) in [
        (json!({"autoStart": false}), false),
        (json!({}), false),
        (json!({"autoStart": true}), true),
        (Value::Null, true),
    ] {
        objects.put(wukong(2, &json!({"startStrategy": start})));
        let (changes, _) = Operator::default().reconcile(&objects, at(1));
        let Some(Change::Update(rewritten)) = changes.first() else { panic!("{changes:?}") };
        assert_eq!(
            (&rewritten["spec"]["running"], &rewritten["spec"]["template"]["spec"]["affinity"]),
            (&json!(running), &Value::Null)
        );
    }
}

#[test]
fn a_deleted_wukong_takes_its_vm_and_leaves_its_disks() {
    let mut objects = settled();
    let mut deleted = wukong(2, &json!({}));
    deleted["metadata"]["deletionTimestamp"] = json!("2026-11-23T11:16:00Z");
    objects.put(deleted);
    objects.put(json!({"kind": "VirtualMachine", "metadata": {"namespace": "default", "name": "wk1-vm"}}));
    let (changes, _) = Operator::default().reconcile(&objects, at(0));
    let [Change::Delete { object, .. }, Change::Update(released)] = changes.as_slice() else {
        panic!("{changes:?}")
    };
    assert_eq!(
        (&object["kind"], &released["metadata"]["finalizers"]),
        (&json!("VirtualMachine"), &json!([]))
    );
}
