//! Conditions as KubeVirt writes them: times that do not apply are null, and a condition that has not changed keeps
//! its times.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::objects::list;

/// A condition without times.
#[derive(Clone, Debug)]
pub struct Condition<'a> {
    /// Its type.
    pub kind: &'a str,
    /// Whether it holds.
    pub status: bool,
    /// Why; empty for none.
    pub reason: &'a str,
    /// In words; empty for none.
    pub message: &'a str,
}

/// Sets a condition in `status.conditions`.
pub fn set(status: &mut Value, condition: &Condition<'_>, now: Timestamp) {
    let value = if condition.status { "True" } else { "False" };
    let text = |text: &str| if text.is_empty() { Value::Null } else { json!(text) };
    let is_same = |old: &Value| {
        old["status"] == value
            && old["reason"] == text(condition.reason)
            && old["message"] == text(condition.message)
    };
    if find(status, condition.kind).is_some_and(is_same) {
        return;
    }
    let mut new = json!({
        "type": condition.kind, "status": value, "lastProbeTime": null, "lastTransitionTime": time(now),
    });
    for (field, content) in [("reason", condition.reason), ("message", condition.message)] {
        if !content.is_empty() {
            new[field] = json!(content);
        }
    }
    put(status, new);
}

/// Sets a condition that was copied with its times.
pub fn put(status: &mut Value, condition: Value) {
    let mut all: Vec<_> = list(&status["conditions"]).cloned().collect();
    match all.iter_mut().find(|old| old["type"] == condition["type"]) {
        Some(old) => *old = condition,
        None => all.push(condition),
    }
    status["conditions"] = json!(all);
}

/// Removes the conditions that are not wanted.
pub fn retain(status: &mut Value, keep: impl Fn(&str) -> bool) {
    if let Some(all) = status["conditions"].as_array_mut() {
        all.retain(|condition| condition["type"].as_str().is_some_and(&keep));
    }
}

/// A condition of an object's status.
pub fn find<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    list(&status["conditions"]).find(|condition| condition["type"] == kind)
}

/// Whether a condition has this status and, where given, this reason.
pub fn is(status: &Value, kind: &str, value: bool, reason: Option<&str>) -> bool {
    let value = if value { "True" } else { "False" };
    find(status, kind).is_some_and(|found| {
        found["status"] == value && reason.is_none_or(|reason| found["reason"] == reason)
    })
}

/// As Kubernetes writes times: whole seconds.
pub fn time(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
