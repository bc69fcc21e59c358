//! What the coordinator asks of the API server, by the API server's own audit log, in which nobody else is.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Deserialize;

/// The account that the coordinator has on every cluster.
pub const NAMESPACE: &str = "somersault-system";
/// See [`NAMESPACE`].
pub const ACCOUNT: &str = "somersault-coordinator";

/// Tells of each of its requests, and of nobody else's.
pub fn policy() -> String {
    format!(
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
         - {{level: Metadata, users: [\"system:serviceaccount:{NAMESPACE}:{ACCOUNT}\"]}}\n- {{level: None}}\n"
    )
}

/// Requests of a while.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// By verb and resource; `patch nodehealths/status`, say.
    pub by_kind: BTreeMap<String, usize>,
    /// Of them, those that change something.
    pub writes: usize,
    /// All of them.
    pub all: usize,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(rename = "auditID")]
    audit_id: String,
    verb: String,
    request_received_timestamp: Timestamp,
    object_ref: Option<Object>,
}

#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    resource: String,
    #[serde(default)]
    subresource: String,
}

/// Requests that arrived from `begin` until `end`.
pub fn read(log: &Path, begin: Timestamp, end: Timestamp) -> Result<Requests> {
    let text = std::fs::read_to_string(log).with_context(|| format!("reading {}", log.display()))?;
    // The last line may not be complete yet; it is younger than `end`.
    let complete = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    count(complete, begin, end)
}

fn count(text: &str, begin: Timestamp, end: Timestamp) -> Result<Requests> {
    let mut requests = Requests::default();
    // A watch has an entry when it begins and one when it ends.
    let mut counted = HashSet::new();
    for line in text.lines() {
        let entry: Entry = serde_json::from_str(line).context("an entry of the audit log")?;
        let is_now = (begin..end).contains(&entry.request_received_timestamp);
        if !is_now || !counted.insert(entry.audit_id) {
            continue;
        }
        requests.all += 1;
        requests.writes += usize::from(!matches!(entry.verb.as_str(), "get" | "list" | "watch"));
        let what = match entry.object_ref {
            Some(Object { resource, subresource }) if subresource.is_empty() => resource,
            Some(Object { resource, subresource }) => format!("{resource}/{subresource}"),
            None => "other".to_owned(),
        };
        *requests.by_kind.entry(format!("{} {what}", entry.verb)).or_default() += 1;
    }
    Ok(requests)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_of_the_while_counts_once() {
        let entry = |id: &str, verb: &str, at: u32| {
            format!(
                "{{\"auditID\":\"{id}\",\"verb\":\"{verb}\",\"requestReceivedTimestamp\":\"2026-01-01T00:00:{at:02}.5Z\",\
                 \"objectRef\":{{\"resource\":\"nodehealths\",\"subresource\":\"status\"}}}}\n"
            )
        };
        let log = [
            entry("a", "watch", 1),
            entry("a", "watch", 1),
            entry("b", "patch", 2),
            entry("c", "patch", 9),
            entry("d", "get", 0),
        ];
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        let found = count(&log.concat(), at("2026-01-01T00:00:01Z"), at("2026-01-01T00:00:05Z"));
        let found = found.expect("read");
        assert_eq!((found.all, found.writes), (2, 1));
        assert_eq!(found.by_kind["patch nodehealths/status"], 1);
    }
}
