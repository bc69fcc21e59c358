//! The status of a VM: requests that are done, failed starts, conditions, and the word that `kubectl get vm` prints.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::run_strategy;
use crate::condition::{self, Condition, find, set, time};
use crate::names::GENERATION_ANNOTATION;
use crate::objects::{Objects, annotation, is_deleting, list, phase, uid};
use crate::vmi::{has_run, is_final, misses_claim};
use crate::volumes;

/// vm.go, `calculateStartBackoffTime`.
const BACKOFF_SECONDS: u64 = 10;
const BACKOFF_SECONDS_MAX: u64 = 300;

/// `status.startFailure`.
pub(super) struct StartFailure {
    pub(super) retry_after: Timestamp,
}

impl StartFailure {
    pub(super) fn of(vm: &Value) -> Option<Self> {
        let retry_after = vm["status"]["startFailure"]["retryAfterTimestamp"].as_str()?.parse().ok()?;
        Some(Self { retry_after })
    }

    pub(super) fn is_waiting(&self, now: Timestamp) -> bool {
        self.retry_after.as_second() > now.as_second()
    }
}

/// The VM with its status as it should be.
pub(super) fn next(
    objects: &Objects,
    vm: &Value,
    vmi: Option<&Value>,
    ask_for_start: bool,
    now: Timestamp,
) -> Value {
    let mut next = vm.clone();
    if !next["status"].is_object() {
        next["status"] = json!({});
    }
    let status = &mut next["status"];
    status["created"] = json!(vmi.is_some());
    let ready = vmi.is_some_and(|vmi| condition::is(&vmi["status"], "Ready", true, None));
    status["ready"] = json!(ready);
    if let Some(vmi) = vmi {
        let observed = annotation(vmi, GENERATION_ANNOTATION).and_then(|text| text.parse::<u64>().ok());
        status["observedGeneration"] = json!(observed);
        status["desiredGeneration"] = vm["metadata"]["generation"].clone();
    }
    // Set for the first time when a VMI is there: it tells whether the VM was ever started.
    if vmi.is_some() || !status["runStrategy"].is_null() {
        status["runStrategy"] = json!(run_strategy(vm));
    }
    requests(status, vmi, ask_for_start);
    start_failure(status, vm, vmi, now);
    conditions(status, vmi, now);
    let word = printable(objects, vm, vmi, status);
    status["printableStatus"] = json!(word);
    next
}

/// `isTrimFirstChangeRequestNeeded`, `addStartRequest`.
fn requests(status: &mut Value, vmi: Option<&Value>, ask_for_start: bool) {
    let mut all: Vec<_> = list(&status["stateChangeRequests"]).cloned().collect();
    let is_done = |request: &Value| match (request["action"].as_str(), vmi) {
        (Some("Stop"), None) => true,
        (Some("Stop"), Some(vmi)) => request["uid"] != *uid(vmi),
        (Some("Start"), Some(vmi)) => !is_deleting(vmi) && !is_final(vmi),
        _ => false,
    };
    if all.first().is_some_and(is_done) {
        all.remove(0);
    }
    if ask_for_start {
        all.push(json!({"action": "Start"}));
    }
    if !all.is_empty() {
        status["stateChangeRequests"] = json!(all);
    } else if let Some(fields) = status.as_object_mut() {
        fields.remove("stateChangeRequests");
    }
}

/// `syncStartFailureStatus`.
fn start_failure(status: &mut Value, vm: &Value, vmi: Option<&Value>, now: Timestamp) {
    let counts = matches!(run_strategy(vm), "Always" | "RerunOnFailure" | "Once");
    if !counts || vmi.is_some_and(has_run) {
        if let Some(fields) = status.as_object_mut() {
            fields.remove("startFailure");
        }
        return;
    }
    let Some(vmi) = vmi.filter(|vmi| is_final(vmi)) else { return };
    let known = &status["startFailure"];
    if known["lastFailedVMIUID"] == *uid(vmi) {
        return;
    }
    let count = known["consecutiveFailCount"].as_u64().unwrap_or_default() + 1;
    let wait = i64::try_from(backoff_seconds(count, uid(vmi))).unwrap_or_default();
    status["startFailure"] = json!({
        "consecutiveFailCount": count,
        "lastFailedVMIUID": uid(vmi),
        "retryAfterTimestamp": time(now + SignedDuration::from_secs(wait)),
    });
}

/// The part that KubeVirt draws at random comes from the uid.
fn backoff_seconds(count: u64, uid: &str) -> u64 {
    let seconds = count.saturating_mul(count).saturating_mul(BACKOFF_SECONDS);
    let drawn: u64 = uid.bytes().map(u64::from).sum();
    seconds.saturating_add(drawn % (seconds / 2 + 1)).min(BACKOFF_SECONDS_MAX)
}

/// `syncConditions`: Ready is kept without a VMI; the others are the VMI's.
fn conditions(status: &mut Value, vmi: Option<&Value>, now: Timestamp) {
    let Some(vmi) = vmi else {
        let gone =
            Condition { kind: "Ready", status: false, reason: "VMINotExists", message: "VMI does not exist" };
        set(status, &gone, now);
        return;
    };
    if find(&vmi["status"], "Ready").is_none() {
        let message = "VMI is missing the Ready condition";
        let missing = Condition { kind: "Ready", status: false, reason: "VMIConditionMissing", message };
        set(status, &missing, now);
    }
    for found in list(&vmi["status"]["conditions"]) {
        condition::put(status, found.clone());
    }
    condition::retain(status, |kind| {
        matches!(kind, "Ready" | "Failure" | "RestartRequired") || find(&vmi["status"], kind).is_some()
    });
}

/// `setPrintableStatus`: the first that fits.
fn printable(objects: &Objects, vm: &Value, vmi: Option<&Value>, status: &Value) -> &'static str {
    let template = &vm["spec"]["template"]["spec"];
    let is_vmi = |check: &dyn Fn(&Value) -> bool| vmi.is_some_and(check);
    let in_phase = |wanted: &str| is_vmi(&|vmi| phase(vmi) == wanted);
    let is_paused = is_vmi(&|vmi| condition::is(&vmi["status"], "Paused", true, None));
    let unschedulable =
        is_vmi(&|vmi| condition::is(&vmi["status"], "PodScheduled", false, Some("Unschedulable")));
    let data_volumes = volumes::data_volumes(objects, vm, template);
    let data_volume_is =
        |wanted: &[&str]| data_volumes.iter().flatten().any(|found| wanted.contains(&phase(found)));
    let starts = ["", "Pending", "Scheduling", "Scheduled"].into_iter().any(in_phase);
    let failed_start = status["startFailure"]["consecutiveFailCount"].as_u64().is_some_and(|count| count > 0);
    match () {
        () if is_deleting(vm) => "Terminating",
        () if is_vmi(&|vmi| is_deleting(vmi) && !is_final(vmi)) => "Stopping",
        () if is_vmi(&is_migrating) => "Migrating",
        () if in_phase("Running") && is_paused => "Paused",
        () if in_phase("Running") => "Running",
        () if is_vmi(&misses_claim) => "ErrorPvcNotFound",
        () if data_volume_is(&["Failed"]) => "DataVolumeError",
        () if unschedulable => "ErrorUnschedulable",
        () if data_volume_is(&["Pending", "PVCBound", "ImportScheduled", "ImportInProgress"]) => {
            "Provisioning"
        }
        () if is_set_to_start(vm, vmi, status) && volumes::has_unbound(objects, vm, template) => {
            "WaitingForVolumeBinding"
        }
        () if starts => "Starting",
        () if vmi.is_none_or(is_final) && failed_start => "CrashLoopBackOff",
        () => "Stopped",
    }
}

/// `isSetToStart`.
fn is_set_to_start(vm: &Value, vmi: Option<&Value>, status: &Value) -> bool {
    let asked =
        |action: &str| list(&status["stateChangeRequests"]).any(|request| request["action"] == action);
    match (run_strategy(vm), vmi) {
        ("Always", _) | ("Once" | "RerunOnFailure", None) => true,
        ("RerunOnFailure", Some(vmi)) => phase(vmi) != "Succeeded",
        ("Manual", Some(_)) => !asked("Stop"),
        ("Manual", None) => asked("Start"),
        _ => false,
    }
}

fn is_migrating(vmi: &Value) -> bool {
    let state = &vmi["status"]["migrationState"];
    state.is_object() && state["completed"] != true
}
