//! The display part of our objects' status, written when it changed: a change of state at once, numbers that always
//! move at most once an interval for each object. Records and specs are never touched here.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use serde_json::{Map, Value, json};
use somersault_coordinator_core::fleet::Fleet;
use somersault_coordinator_core::names::NodeName;
use somersault_coordinator_core::view::{NodeState, NodeView, View};
use somersault_crd as crd;

use super::records::new_node_health;
use super::store::{Transaction, refused};
use super::write::now_seconds;
use crate::cluster::ClusterError;
use crate::cluster::manifest::display::{self, Verdict, WallClock};
use crate::cluster::manifest::{FieldError, ObjectId};

/// At rest, a node's numbers (load, usage) are written at most once a minute.
const NODE_INTERVAL: Duration = Duration::from_mins(1);
/// Progress that people watch: twice a second looks alive.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// The wall clock was set when it strays from the boot clock by more than this; below, stamps stay as they are.
const CLOCK_STEP: SignedDuration = SignedDuration::from_secs(1);

/// Fields of each kind's status that are display; the others are records.
const NODE_FIELDS: [&str; 12] = [
    "state",
    "since",
    "message",
    "bootID",
    "proof",
    "proofsPossible",
    "timeline",
    "agent",
    "host",
    "disks",
    "roots",
    "volumes",
];
const RECOVERY_FIELDS: [&str; 8] =
    ["node", "decision", "reasons", "remedy", "disks", "progress", "proof", "runbook"];
const MIGRATION_FIELDS: [&str; 2] = ["progress", "downtimeMs"];

/// What was written when.
#[derive(Debug)]
pub(super) struct Published {
    clock: WallClock,
    sent: HashMap<ObjectId, Sent>,
}

#[derive(Debug)]
struct Sent {
    prompt: Value,
    whole: Value,
    at: Instant,
}

/// One object's display, to be written.
#[derive(Clone, Debug)]
pub(super) struct Change {
    id: ObjectId,
    /// Made where it does not exist; `None` for objects that only people make.
    template: Option<Value>,
    fields: &'static [&'static str],
    values: Map<String, Value>,
    verdicts: Vec<Verdict>,
    /// What is written at once when it changes.
    prompt: Value,
    interval: Duration,
}

impl Change {
    fn whole(&self) -> Value {
        let verdicts = self.verdicts.iter().map(|v| json!([v.kind, v.holds, v.reason, v.message]));
        json!([self.values, verdicts.collect::<Vec<_>>()])
    }
}

impl Published {
    /// Nothing written yet.
    pub(super) fn new() -> Self {
        Self { clock: WallClock { boot: boot_instant() }, sent: HashMap::new() }
    }

    /// What has to be written of this view now.
    pub(super) fn changes(&mut self, view: &View, fleet: &Fleet) -> Vec<Change> {
        let boot = boot_instant();
        if boot.duration_since(self.clock.boot).abs() > CLOCK_STEP {
            self.clock.boot = boot;
        }
        let mut changes = Vec::new();
        for (name, node) in &view.nodes {
            changes.extend(tell(&name.0, node_change(name, node, self.clock, fleet)));
        }
        for (key, recovery) in &view.recoveries {
            let id = ObjectId::namespaced("Recovery", key);
            let node = view.nodes.get(&recovery.node);
            let change = node.map(display::proof).transpose().and_then(|proof| {
                let (status, verdicts) = display::recovery(recovery, proof.flatten())?;
                let values = fields(&status, &RECOVERY_FIELDS)?;
                let prompt = json!(values);
                let template = Some(new_recovery(&id));
                let interval = NODE_INTERVAL;
                let fields = &RECOVERY_FIELDS[..];
                Ok(Change { id, template, fields, values, verdicts, prompt, interval })
            });
            changes.extend(tell(&key.to_string(), change));
        }
        for (key, migration) in &view.migrations {
            let id = ObjectId::namespaced("VolumeMigration", key);
            let (status, verdicts) = display::migration(migration);
            let values = fields(&status, &MIGRATION_FIELDS);
            let prompt = json!([format!("{:?}", migration.record.phase), status.downtime_ms]);
            let fields = &MIGRATION_FIELDS[..];
            let interval = PROGRESS_INTERVAL;
            let change = values.map(|values| Change {
                id,
                template: None,
                fields,
                values,
                verdicts,
                prompt,
                interval,
            });
            changes.extend(tell(&key.to_string(), change));
        }
        changes.retain(|change| self.is_due(change));
        changes
    }

    fn is_due(&self, change: &Change) -> bool {
        self.sent.get(&change.id).is_none_or(|sent| {
            sent.prompt != change.prompt
                || (sent.at.elapsed() >= change.interval && sent.whole != change.whole())
        })
    }
}

/// A view that cannot be shown is a defect of ours, and no reason to show nothing else.
fn tell(object: &str, change: Result<Change, FieldError>) -> Option<Change> {
    change.inspect_err(|e| tracing::error!(object, error = %e, "cannot show the state of an object")).ok()
}

fn node_change(
    name: &NodeName,
    view: &NodeView,
    clock: WallClock,
    fleet: &Fleet,
) -> Result<Change, FieldError> {
    let (status, verdicts) = display::node(name, view, fleet, clock)?;
    let values = fields(&status, &NODE_FIELDS)?;
    let mut prompt = values.clone();
    prompt.remove("host");
    // Which folders there are is worth telling at once, how full they are is not.
    let roots = status.roots.iter().map(|root| json!([root.path, root.class, root.read_only, root.disk]));
    prompt.insert("roots".to_owned(), roots.collect());
    let volumes = status.volumes.iter().map(|volume| json!([volume.path, volume.volume, volume.claim]));
    prompt.insert("volumes".to_owned(), volumes.collect());
    Ok(Change {
        id: ObjectId::cluster("NodeHealth", name.as_str()),
        template: Some(new_node_health(name.as_str())),
        fields: &NODE_FIELDS,
        values,
        verdicts,
        prompt: Value::Object(prompt),
        interval: NODE_INTERVAL,
    })
}

fn new_recovery(id: &ObjectId) -> Value {
    json!({
        "apiVersion": crd::API_VERSION,
        "kind": "Recovery",
        "metadata": { "namespace": id.namespace, "name": id.name },
        "spec": { "vm": id.name },
    })
}

/// These fields of a status, as far as they are set.
fn fields(status: &impl Serialize, wanted: &[&str]) -> Result<Map<String, Value>, FieldError> {
    let value = serde_json::to_value(status).map_err(|e| FieldError::new("status", &e))?;
    let Value::Object(mut all) = value else { return Err(FieldError::new("status", "not an object")) };
    all.retain(|field, _| wanted.contains(&field.as_str()));
    Ok(all)
}

/// Writes changes, and ends the Recoveries that the view does not know any more.
pub(super) fn write(
    tx: &Transaction<'_>,
    changes: Vec<Change>,
    published: &mut Published,
) -> Result<(), ClusterError> {
    for change in changes {
        if tx.get(&change.id)?.is_none() {
            match &change.template {
                Some(template) => _ = tx.create(template.clone())?,
                // Removed by somebody a moment ago.
                None => continue,
            }
        }
        tx.patch(&change.id, |object| {
            apply(object, &change);
            Ok(())
        })?;
        let sent = Sent { whole: change.whole(), prompt: change.prompt, at: Instant::now() };
        published.sent.insert(change.id, sent);
    }
    Ok(())
}

fn apply(object: &mut Value, change: &Change) {
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    for field in change.fields {
        match change.values.get(*field) {
            Some(value) => object["status"][*field] = value.clone(),
            None => {
                object["status"].as_object_mut().map(|status| status.remove(*field));
            }
        }
    }
    let generation = object["metadata"]["generation"].clone();
    set_conditions(&mut object["status"]["conditions"], &change.verdicts, &generation);
    if generation.is_u64() {
        object["status"]["observedGeneration"] = generation;
    }
}

/// Sets conditions; the time of the last transition changes only with the status.
fn set_conditions(conditions: &mut Value, verdicts: &[Verdict], generation: &Value) {
    let old = conditions.as_array().cloned().unwrap_or_default();
    let new = verdicts.iter().map(|verdict| {
        let status = if verdict.holds { "True" } else { "False" };
        let same = old.iter().find(|c| c["type"] == verdict.kind && c["status"] == status);
        let since = same.map_or_else(|| json!(now_seconds()), |c| c["lastTransitionTime"].clone());
        let mut condition = json!({
            "type": verdict.kind,
            "status": status,
            "reason": verdict.reason,
            "message": verdict.message,
            "lastTransitionTime": since,
        });
        if generation.is_u64() {
            condition["observedGeneration"] = generation.clone();
        }
        condition
    });
    *conditions = new.collect();
}

/// Recoveries of incidents that are over: not in the view, and their node is healthy or gone. A new leader's view is
/// empty at first, and must not end what still goes on.
pub(super) fn stale<'a>(stored: impl Iterator<Item = &'a Value>, view: &View) -> Vec<ObjectId> {
    let live: HashSet<_> = view.recoveries.keys().collect();
    let over = |object: &&Value| {
        let node = object["status"]["node"].as_str().unwrap_or_default();
        let state = view.nodes.get(&node.into()).map(|node| node.state);
        !view.nodes.is_empty() && state.is_none_or(|state| state == NodeState::Healthy)
    };
    let open = |object: &&Value| {
        let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        !conditions.into_iter().any(|c| c["type"] == ENDED && c["status"] == "True")
    };
    let ids = stored.filter(over).filter(open).filter_map(|object| ObjectId::of(object).ok());
    ids.filter(|id| !live.contains(&id.key())).collect()
}

/// Condition of a Recovery whose incident is over.
const ENDED: &str = "Ended";

/// Marks Recoveries as ended.
pub(super) fn end(
    tx: &Transaction<'_>,
    stale: &[ObjectId],
    published: &mut Published,
) -> Result<(), ClusterError> {
    for id in stale {
        tx.patch(id, |object| {
            if object["status"]["conditions"].is_null() {
                object["status"]["conditions"] = json!([]);
            }
            let list = object["status"]["conditions"].as_array_mut();
            let list = list.ok_or_else(|| refused(&id.to_string(), "status.conditions: not a list"))?;
            list.retain(|condition| condition["type"] != ENDED);
            list.push(json!({
                "type": ENDED,
                "status": "True",
                "reason": "IncidentOver",
                "message": "the node's incident is over",
                "lastTransitionTime": now_seconds(),
            }));
            Ok(())
        })?;
        published.sent.remove(id);
    }
    Ok(())
}

/// What the wall clock said when this machine's boot clock said 0.
fn boot_instant() -> Timestamp {
    // The clock exists on every Linux since 2.6.39; without it stamps would only be wrong for people.
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    Timestamp::now().checked_sub(since_boot).unwrap_or(Timestamp::UNIX_EPOCH)
}
