//! Shows each run strategy, stop and start requests, failed starts and the printed word, on objects shaped as
//! KubeVirt 1.9.0 writes them.

use super::*;

const NOW: &str = "2026-11-23T11:17:52Z";

fn now() -> Timestamp {
    NOW.parse().expect("a time")
}

fn vm(start: &str, value: Value) -> Value {
    let mut vm = json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {
            "namespace": "default", "name": "web", "uid": "vm-uid", "generation": 3, "finalizers": [VM_FINALIZER],
        },
        "spec": {"template": {"spec": {
            "domain": {"firmware": {"uuid": "kept"}},
            "volumes": [{"name": "root", "persistentVolumeClaim": {"claimName": "web-root"}}],
        }}},
    });
    vm["spec"][start] = value;
    vm
}

fn vmi(phase: &str) -> Value {
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {
            "namespace": "default", "name": "web", "uid": "vmi-uid", "finalizers": [VM_FINALIZER, VMI_FINALIZER],
            "annotations": {GENERATION_ANNOTATION: "3"},
            "ownerReferences": [{"kind": "VirtualMachine", "name": "web", "uid": "vm-uid", "controller": true}],
        },
        "status": {"phase": phase, "phaseTransitionTimestamps": [{"phase": "Running"}]},
    })
}

fn claim() -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"namespace": "default", "name": "web-root", "uid": "claim-uid"},
        "status": {"phase": "Bound"},
    })
}

/// The VM's changes.
fn changes(vm: &Value, vmi: Option<Value>) -> Vec<Change> {
    let mut objects = Objects::default();
    [Some(vm.clone()), Some(claim()), vmi].into_iter().flatten().for_each(|object| objects.put(object));
    reconcile(&objects, now()).0
}

fn starts(vm: &Value) -> bool {
    changes(vm, None)
        .iter()
        .any(|change| matches!(change, Change::Create(new) if new["kind"] == "VirtualMachineInstance"))
}

fn stops(vm: &Value, vmi: Value) -> bool {
    changes(vm, Some(vmi)).iter().any(|change| matches!(change, Change::Delete { .. }))
}

fn status(vm: &Value, vmi: Option<Value>) -> Value {
    let found = changes(vm, vmi).into_iter().find_map(|change| match change {
        Change::UpdateStatus(vm) => Some(vm["status"].clone()),
        _ => None,
    });
    found.expect("a new status")
}

fn with_status(mut vm: Value, field: &str, value: Value) -> Value {
    vm["status"][field] = value;
    vm
}

fn strategy(name: &str) -> Value {
    vm("runStrategy", json!(name))
}

#[test]
fn each_strategy_starts_when_it_should() {
    assert!(starts(&strategy("Always")));
    assert!(starts(&vm("running", json!(true))));
    assert!(starts(&strategy("Once")));
    assert!(starts(&strategy("RerunOnFailure")), "never started: the strategy is new");
    assert!(!starts(&strategy("Halted")));
    assert!(!starts(&vm("running", json!(false))));
    assert!(!starts(&strategy("Manual")));
    let rerun = with_status(strategy("RerunOnFailure"), "runStrategy", json!("RerunOnFailure"));
    assert!(!starts(&rerun), "it ended by itself");
    let request = json!([{"action": "Start"}]);
    assert!(starts(&with_status(rerun, "stateChangeRequests", request.clone())));
    assert!(starts(&with_status(strategy("Manual"), "stateChangeRequests", request)));
    assert!(starts(&with_status(strategy("RerunOnFailure"), "runStrategy", json!("Halted"))), "given back");
}

#[test]
fn each_strategy_deals_with_an_ended_instance() {
    for (name, failed, succeeded) in [
        ("Always", true, true),
        ("RerunOnFailure", true, true),
        ("Manual", false, false),
        ("Once", false, false),
        ("Halted", true, true),
    ] {
        assert_eq!(stops(&strategy(name), vmi("Failed")), failed, "{name}, Failed");
        assert_eq!(stops(&strategy(name), vmi("Succeeded")), succeeded, "{name}, Succeeded");
        assert_eq!(stops(&strategy(name), vmi("Running")), name == "Halted", "{name}, Running");
    }
    let asked = status(&strategy("RerunOnFailure"), Some(vmi("Failed")));
    assert_eq!(asked["stateChangeRequests"], json!([{"action": "Start"}]));
    assert_eq!(
        status(&strategy("RerunOnFailure"), Some(vmi("Succeeded")))["stateChangeRequests"],
        Value::Null
    );
}

#[test]
fn a_stop_request_counts_for_the_instance_that_it_names() {
    let request = |uid: &str| {
        let requests = json!([{"action": "Stop", "uid": uid}]);
        with_status(strategy("Manual"), "stateChangeRequests", requests)
    };
    assert!(stops(&request("vmi-uid"), vmi("Running")));
    assert!(!stops(&request("an-earlier-one"), vmi("Running")));
    assert_eq!(status(&request("an-earlier-one"), Some(vmi("Running")))["stateChangeRequests"], Value::Null);
    assert_eq!(status(&request("vmi-uid"), None)["stateChangeRequests"], Value::Null);
}

#[test]
fn an_instance_that_failed_before_it_ran_is_a_failed_start() {
    let mut early = vmi("Failed");
    early["status"]["phaseTransitionTimestamps"] = json!([{"phase": "Scheduling"}]);
    let status = status(&strategy("Always"), Some(early.clone()));
    let failure = &status["startFailure"];
    assert_eq!(
        (&failure["consecutiveFailCount"], &failure["lastFailedVMIUID"]),
        (&json!(1), &json!("vmi-uid"))
    );
    let retry: Timestamp =
        failure["retryAfterTimestamp"].as_str().and_then(|t| t.parse().ok()).expect("a time");
    let wait = retry.duration_since(now()).as_secs();
    assert!((10..=15).contains(&wait), "{wait} s");
    assert_eq!(status["printableStatus"], "CrashLoopBackOff");

    let mut waiting = strategy("Always");
    waiting["status"] = status.clone();
    assert!(!starts(&waiting));
    let mut objects = Objects::default();
    objects.put(waiting.clone());
    assert_eq!(reconcile(&objects, now()).1, Some(retry), "it looks again then");
    assert!(reconcile(&objects, retry).0.iter().any(|change| matches!(change, Change::Create(_))));

    early["metadata"]["uid"] = json!("next-uid");
    let second = self::status(&waiting, Some(early));
    assert_eq!(second["startFailure"]["consecutiveFailCount"], 2);
    let ran = self::status(&waiting, Some(vmi("Failed")));
    assert_eq!(ran["startFailure"], Value::Null, "one that ran has no backoff");
}

#[test]
fn the_instance_is_let_go_only_after_its_end_is_recorded() {
    let vm = strategy("Manual");
    let first = changes(&vm, Some(vmi("Failed")));
    let [Change::UpdateStatus(recorded)] = first.as_slice() else { panic!("{first:?}") };
    let second = changes(recorded, Some(vmi("Failed")));
    let [Change::Update(released)] = second.as_slice() else { panic!("{second:?}") };
    assert_eq!(released["metadata"]["finalizers"], json!([VMI_FINALIZER]));
}

#[test]
fn the_printed_word() {
    let word = |vm: &Value, vmi| status(vm, vmi)["printableStatus"].as_str().map(str::to_owned);
    let is =
        |vm: &Value, vmi: Option<Value>, expected: &str| assert_eq!(word(vm, vmi).as_deref(), Some(expected));
    let always = strategy("Always");
    is(&strategy("Halted"), None, "Stopped");
    is(&always, Some(vmi("Running")), "Running");
    is(&always, Some(vmi("Scheduling")), "Starting");
    is(&strategy("Manual"), Some(vmi("Failed")), "Stopped");
    let with = |phase: &str, conditions: Value| {
        let mut vmi = vmi(phase);
        vmi["status"]["conditions"] = conditions;
        Some(vmi)
    };
    let paused = json!([{"type": "Paused", "status": "True"}]);
    is(&always, with("Running", paused), "Paused");
    let unschedulable = json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]);
    is(&always, with("Scheduling", unschedulable.clone()), "ErrorUnschedulable");
    let mut both = unschedulable;
    both.as_array_mut()
        .expect("a list")
        .push(json!({"type": "Synchronized", "status": "False", "reason": "FailedPvcNotFound"}));
    is(&always, with("Pending", both), "ErrorPvcNotFound");
    let mut migrating = vmi("Running");
    migrating["status"]["migrationState"] = json!({"targetNode": "n2"});
    is(&always, Some(migrating), "Migrating");
    let mut deleted = vmi("Running");
    deleted["metadata"]["deletionTimestamp"] = json!(NOW);
    is(&always, Some(deleted), "Stopping");
}

#[test]
fn a_volume_that_waits_and_a_data_volume_that_is_not_there_yet_are_named() {
    let mut vm = strategy("Always");
    let mut unbound = claim();
    unbound["status"]["phase"] = json!("Pending");
    let mut objects = Objects::default();
    objects.put(vm.clone());
    objects.put(unbound);
    let word = |objects: &Objects| {
        reconcile(objects, now()).0.into_iter().find_map(|change| match change {
            Change::UpdateStatus(vm) => Some(vm["status"]["printableStatus"].clone()),
            _ => None,
        })
    };
    assert_eq!(word(&objects), Some(json!("WaitingForVolumeBinding")));
    vm["spec"]["template"]["spec"]["volumes"] = json!([{"name": "root", "dataVolume": {"name": "web-root"}}]);
    objects.put(vm);
    let mut data_volume =
        json!({"kind": "DataVolume", "metadata": {"namespace": "default", "name": "web-root"}});
    for (phase, expected) in [("ImportInProgress", "Provisioning"), ("Failed", "DataVolumeError")] {
        data_volume["status"]["phase"] = json!(phase);
        objects.put(data_volume.clone());
        assert_eq!(word(&objects), Some(json!(expected)));
    }
}

#[test]
fn a_rewritten_spec_gets_its_firmware_back_and_nothing_else_happens_meanwhile() {
    let mut vm = strategy("Always");
    vm["spec"]["template"]["spec"]["domain"] = json!({});
    let changes = changes(&vm, None);
    let [Change::Update(next)] = changes.as_slice() else { panic!("{changes:?}") };
    let uuid = &next["spec"]["template"]["spec"]["domain"]["firmware"]["uuid"];
    assert_eq!(uuid.as_str().map(str::len), Some(36));
    assert_eq!(*uuid, json!(uuid_of_name("web")), "the same each time");
    assert_ne!(uuid_of_name("web"), uuid_of_name("wed"));
}

#[test]
fn templates_make_their_data_volumes_first() {
    let mut vm = strategy("Always");
    vm["spec"]["dataVolumeTemplates"] = json!([{"metadata": {"name": "web-root"}, "spec": {}}]);
    let changes = changes(&vm, None);
    let created: Vec<_> =
        changes.iter().filter_map(|c| if let Change::Create(new) = c { Some(new) } else { None }).collect();
    let [new] = created.as_slice() else { panic!("{changes:?}") };
    assert_eq!((&new["kind"], &new["metadata"]["name"]), (&json!("DataVolume"), &json!("web-root")));
    assert_eq!(new["metadata"]["annotations"][ALLOW_ADOPTION], "true");
    assert_eq!(new["metadata"]["ownerReferences"][0]["uid"], "vm-uid");
}

#[test]
fn a_deleted_vm_goes_after_its_instance() {
    let mut vm = strategy("Always");
    vm["metadata"]["deletionTimestamp"] = json!(NOW);
    assert!(stops(&vm, vmi("Running")));
    let last = changes(&vm, None);
    let [Change::Update(released)] = last.as_slice() else { panic!("{last:?}") };
    assert_eq!(released["metadata"]["finalizers"], json!([]));
}
