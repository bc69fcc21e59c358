//! The display part of our objects' status: what is to be written, and when. Records and specs are never touched here.
//!
//! ```text
//!   view ──► what each object shows ──► changed in what people wait for ──► now
//!                                  ├──► changed in numbers that always move ──► at its own time of the interval
//!                                  └──► unchanged ──► never
//! ```
//!
//! The times at which numbers are written differ from object to object, so that a thousand nodes that were first
//! shown together are not written together for ever.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use serde_json::{Map, Value, json};
use somersault_coordinator_core::fleet::Fleet;
use somersault_coordinator_core::io::OpenRecovery;
use somersault_coordinator_core::names::{Key, NodeName};
use somersault_coordinator_core::runbook::runbook_over;
use somersault_coordinator_core::view::{NodeState, NodeView, RecoveryCause, RecoveryView, View};
use somersault_crd as crd;

use super::Snapshot;
use super::manifest::display::{self, Places, Verdict, WallClock};
use super::manifest::{FieldError, ObjectId};
use super::stamp::now_seconds;
use super::stored::{new_node_health, new_recovery, set_fields};

/// At rest, a node's numbers (load, usage) are written at most once a minute.
const NODE_INTERVAL: Duration = Duration::from_mins(1);
/// Progress that people watch: twice a second looks alive.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// The wall clock was set when it strays from the boot clock by more than this; below, stamps stay as they are.
const CLOCK_STEP: SignedDuration = SignedDuration::from_secs(1);
/// `metadata.generation` of an object that nobody has changed since it was made.
const FIRST_GENERATION: i64 = 1;

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
const RECOVERY_FIELDS: [&str; 9] =
    ["cause", "node", "decision", "reasons", "remedy", "disks", "progress", "proof", "runbook"];
const MIGRATION_FIELDS: [&str; 1] = ["progress"];

/// What was written when.
#[derive(Debug)]
pub(super) struct Published {
    clock: WallClock,
    sent: HashMap<ObjectId, Sent>,
    /// Uids of our objects as last seen.
    seen: BTreeMap<ObjectId, String>,
    /// What each node's object shows: most of a large cluster's are the same at each look.
    made: HashMap<NodeName, Made>,
    /// The fleet that they were made with. It may be gone.
    made_with: Weak<Fleet>,
}

/// What a node's object shows, and what it was made of.
#[derive(Debug)]
struct Made {
    view: NodeView,
    generation: i64,
    change: Option<Change>,
}

#[derive(Debug)]
struct Sent {
    prompt: Value,
    whole: Value,
    /// The conditions with their times.
    conditions: Value,
    /// When numbers may be written again.
    next: Instant,
}

/// One object's display, to be written.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// The object.
    pub id: ObjectId,
    /// Made where it does not exist; `None` for objects that only people make.
    pub template: Option<Value>,
    fields: &'static [&'static str],
    values: Map<String, Value>,
    verdicts: Vec<Verdict>,
    generation: i64,
    /// What is written at once when it changes.
    prompt: Value,
    interval: Duration,
}

impl Change {
    fn whole(&self) -> Value {
        let verdicts = self.verdicts.iter().map(|v| json!([v.kind, v.holds, v.reason, v.message]));
        json!([self.values, verdicts.collect::<Vec<_>>(), self.generation])
    }

    /// The conditions, after those of before: the time of the last transition changes only with the status.
    pub(super) fn conditions(&self, before: &Value) -> Value {
        let old = before.as_array().map(Vec::as_slice).unwrap_or_default();
        let new = self.verdicts.iter().map(|verdict| {
            let status = match verdict.holds {
                Some(true) => "True",
                Some(false) => "False",
                None => "Unknown",
            };
            let same = old.iter().find(|c| c["type"] == verdict.kind && c["status"] == status);
            let since = same.map_or_else(|| json!(now_seconds()), |c| c["lastTransitionTime"].clone());
            json!({
                "type": verdict.kind,
                "status": status,
                "reason": verdict.reason,
                "message": verdict.message,
                "lastTransitionTime": since,
                "observedGeneration": self.generation,
            })
        });
        new.collect()
    }

    /// The display alone, as a whole manifest: what server-side apply takes.
    pub(super) fn manifest(&self, conditions: &Value) -> Value {
        let mut object = json!({
            "apiVersion": crd::API_VERSION,
            "kind": self.id.kind,
            "metadata": { "name": self.id.name },
        });
        if !self.id.namespace.is_empty() {
            object["metadata"]["namespace"] = json!(self.id.namespace);
        }
        self.apply(&mut object, conditions);
        object
    }

    /// Writes the display into the object.
    pub(super) fn apply(&self, object: &mut Value, conditions: &Value) {
        set_fields(object, self.fields, &self.values);
        object["status"]["conditions"] = conditions.clone();
        object["status"]["observedGeneration"] = json!(self.generation);
    }
}

impl Published {
    /// Nothing written yet.
    pub(super) fn new() -> Self {
        Self {
            clock: WallClock { boot: boot_instant() },
            sent: HashMap::new(),
            seen: BTreeMap::new(),
            made: HashMap::new(),
            made_with: Weak::new(),
        }
    }

    /// What has to be written of this view now: what people wait for first.
    pub(super) fn changes(&mut self, view: &View, snapshot: &Snapshot) -> Vec<Change> {
        let boot = boot_instant();
        if boot.duration_since(self.clock.boot).abs() > CLOCK_STEP {
            self.clock.boot = boot;
            self.made.clear();
        }
        self.forget_deleted(snapshot);
        self.make_nodes(view, snapshot);
        let now = Instant::now();
        let nodes = view.nodes.keys().filter_map(|name| self.made.get(name)?.change.as_ref());
        let mut changes: Vec<Change> = nodes.filter(|change| self.is_due(change, now)).cloned().collect();
        let others = others(view, snapshot);
        changes.extend(others.into_iter().filter(|change| self.is_due(change, now)));
        changes.sort_by_key(|change| match self.sent.get(&change.id) {
            Some(sent) => u8::from(sent.prompt == change.prompt) * 2,
            None => u8::from(change.id.kind == "NodeHealth"),
        });
        changes
    }

    /// What was there and is not any more, or is another one, shows nothing of what we wrote. One that was not seen yet is
    /// one that we have just made.
    fn forget_deleted(&mut self, snapshot: &Snapshot) {
        for (id, uid) in &self.seen {
            if snapshot.ours.get(id) != Some(uid) {
                self.sent.remove(id);
            }
        }
        self.seen.clone_from(&snapshot.ours);
    }

    /// Makes anew what nodes show that have changed since.
    fn make_nodes(&mut self, view: &View, snapshot: &Snapshot) {
        let fleet = Arc::downgrade(&snapshot.fleet);
        let same_fleet = self.made_with.ptr_eq(&fleet);
        self.made_with = fleet;
        self.made.retain(|name, _| view.nodes.contains_key(name));
        let places = Places::of(&snapshot.fleet);
        for (name, node) in &view.nodes {
            let generation = generation(snapshot, &ObjectId::cluster("NodeHealth", name.as_str()));
            // Of the fleet, a node shows only whose the volumes are that lie there.
            let has_volumes = node.report.as_ref().is_some_and(|report| !report.usage.is_empty());
            let same = self.made.get(name).is_some_and(|made| {
                made.generation == generation && (same_fleet || !has_volumes) && made.view == *node
            });
            if !same {
                let change = tell(&name.0, node_change(name, node, self.clock, &places, generation));
                self.made.insert(name.clone(), Made { view: node.clone(), generation, change });
            }
        }
    }

    fn is_due(&self, change: &Change, now: Instant) -> bool {
        self.sent.get(&change.id).is_none_or(|sent| {
            sent.prompt != change.prompt || (now >= sent.next && sent.whole != change.whole())
        })
    }

    /// The conditions that we wrote last.
    pub(super) fn conditions(&self, id: &ObjectId) -> Option<Value> {
        self.sent.get(id).map(|sent| sent.conditions.clone())
    }

    /// It is written.
    pub(super) fn written(&mut self, change: Change, conditions: Value) {
        let offset = if self.sent.contains_key(&change.id) {
            Duration::ZERO
        } else {
            offset(&change.id, change.interval)
        };
        let next = Instant::now() + change.interval + offset;
        let sent = Sent { whole: change.whole(), prompt: change.prompt, conditions, next };
        self.sent.insert(change.id, sent);
    }

    /// The object is gone, or was changed by another hand of ours.
    pub(super) fn forget(&mut self, id: &ObjectId) {
        self.sent.remove(id);
    }
}

/// A time below the interval, another one for each object.
fn offset(id: &ObjectId, interval: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    let millis = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1);
    Duration::from_millis(hasher.finish() % millis)
}

fn generation(snapshot: &Snapshot, id: &ObjectId) -> i64 {
    snapshot.generations.get(id).copied().unwrap_or(FIRST_GENERATION)
}

/// What every object but the nodes' shows.
fn others(view: &View, snapshot: &Snapshot) -> Vec<Change> {
    let mut changes = Vec::new();
    for (key, recovery) in &view.recoveries {
        let id = ObjectId::namespaced("Recovery", key);
        let change = display::recovery(recovery).and_then(|(status, verdicts)| {
            let values = fields(&status, &RECOVERY_FIELDS)?;
            Ok(Change {
                template: Some(new_recovery(&id)),
                fields: &RECOVERY_FIELDS,
                prompt: json!(values),
                values,
                verdicts,
                generation: FIRST_GENERATION,
                interval: NODE_INTERVAL,
                id,
            })
        });
        changes.extend(tell(&key.to_string(), change));
    }
    for (key, migration) in &view.migrations {
        let id = ObjectId::namespaced("VolumeMigration", key);
        let generation = generation(snapshot, &id);
        let (status, verdicts) = display::migration(migration);
        let change = fields(&status, &MIGRATION_FIELDS).map(|values| Change {
            id,
            template: None,
            fields: &MIGRATION_FIELDS,
            values,
            verdicts,
            generation,
            prompt: json!([format!("{:?}", migration.record.phase), generation]),
            interval: PROGRESS_INTERVAL,
        });
        changes.extend(tell(&key.to_string(), change));
    }
    for (name, record) in &view.evacuations {
        let id = ObjectId::cluster("Evacuation", name);
        let generation = generation(snapshot, &id);
        let verdicts = display::evacuation(record);
        let prompt = json!([record.complete, record.message, generation]);
        changes.push(Change {
            id,
            template: None,
            fields: &[],
            values: Map::new(),
            verdicts,
            generation,
            prompt,
            interval: PROGRESS_INTERVAL,
        });
    }
    changes
}

/// A view that cannot be shown is a defect of ours, and no reason to show nothing else.
fn tell(object: &str, change: Result<Change, FieldError>) -> Option<Change> {
    change.inspect_err(|e| tracing::error!(object, error = %e, "cannot show the state of an object")).ok()
}

fn node_change(
    name: &NodeName,
    view: &NodeView,
    clock: WallClock,
    places: &Places<'_>,
    generation: i64,
) -> Result<Change, FieldError> {
    let (status, verdicts) = display::node(name, view, places, clock)?;
    let values = fields(&status, &NODE_FIELDS)?;
    let id = ObjectId::cluster("NodeHealth", name.as_str());
    let mut prompt = values.clone();
    prompt.remove("host");
    // Which folders there are is worth telling at once, how full they are is not; but by the room of a root people's requests are
    // refused, so that is told by the twentieth, as agents tell it.
    let room = |root: &crd::node_health::RootInfo| {
        root.available_bytes.saturating_mul(20).checked_div(root.size_bytes)
    };
    let roots =
        status.roots.iter().map(|root| json!([root.path, root.class, root.read_only, root.disk, room(root)]));
    prompt.insert("roots".to_owned(), roots.collect());
    let volumes = status.volumes.iter();
    let volumes = volumes.map(|volume| json!([volume.path, volume.volume, volume.claim, volume.disk_image]));
    prompt.insert("volumes".to_owned(), volumes.collect());
    prompt.insert("generation".to_owned(), json!(generation));
    Ok(Change {
        id,
        template: Some(new_node_health(name.as_str())),
        fields: &NODE_FIELDS,
        values,
        verdicts,
        generation,
        prompt: Value::Object(prompt),
        interval: NODE_INTERVAL,
    })
}

/// These fields of a status, as far as they are set.
fn fields(status: &impl Serialize, wanted: &[&str]) -> Result<Map<String, Value>, FieldError> {
    let value = serde_json::to_value(status).map_err(|e| FieldError::new("status", &e))?;
    let Value::Object(mut all) = value else { return Err(FieldError::new("status", "not an object")) };
    all.retain(|field, _| wanted.contains(&field.as_str()));
    Ok(all)
}

/// What a Recovery that is not marked as ended is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Open {
    cause: RecoveryCause,
    node: NodeName,
    /// The VM was seen running again, or its node is back.
    settled: bool,
}

impl Open {
    /// As it is shown.
    pub(super) fn of(view: &RecoveryView) -> Self {
        let node = view.node.clone().unwrap_or_else(|| NodeName::from(""));
        Self { cause: view.cause, node, settled: view.progress.is_settled() }
    }

    /// As it is stored; older ones name no cause.
    fn stored(object: &Value) -> Self {
        let cause = match object["status"]["cause"].as_str() {
            Some("StorageFailed") => RecoveryCause::StorageFailed,
            _ => RecoveryCause::NodeDied,
        };
        let settled = matches!(object["status"]["progress"].as_str(), Some("Recovered" | "NodeReturned"));
        Self { cause, node: NodeName::from(object["status"]["node"].as_str().unwrap_or_default()), settled }
    }

    /// Whether it is over, now that the view does not show it.
    fn is_over(&self, vm: &Key, view: &View) -> bool {
        match self.cause {
            RecoveryCause::NodeDied => {
                let state = view.nodes.get(&self.node).map(|node| node.state);
                state.is_none_or(|state| state == NodeState::Healthy)
            }
            RecoveryCause::StorageFailed => {
                view.storage_in_doubt.as_ref().is_some_and(|doubt| !doubt.contains(vm))
            }
        }
    }
}

/// Recoveries that are not marked as ended, of those that are stored.
pub(super) fn open_recoveries<'a>(stored: impl Iterator<Item = &'a Value>) -> BTreeMap<ObjectId, Open> {
    let open = |object: &&Value| {
        let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        !conditions.into_iter().any(|c| c["type"] == display::ENDED && c["status"] == "True")
    };
    let named = |object: &'a Value| Some((ObjectId::of(object).ok()?, Open::stored(object)));
    stored.filter(open).filter_map(named).collect()
}

/// Of these, what a new leader has to show to its end.
pub(super) fn to_go_on(open: BTreeMap<ObjectId, Open>) -> Vec<OpenRecovery> {
    let goes_on = |open: &Open| open.cause == RecoveryCause::NodeDied && !open.settled;
    let open = open.into_iter().filter(|(_, open)| goes_on(open));
    open.map(|(id, open)| OpenRecovery { vm: id.key(), node: open.node }).collect()
}

/// Those that are over: not in the view, and their VM is gone, or their node is healthy or gone, or the storage of every
/// VM is known. A new leader's view is empty at first, and must not end what still goes on.
pub(super) fn stale(open: &BTreeMap<ObjectId, Open>, view: &View, fleet: &Fleet) -> Vec<ObjectId> {
    if view.nodes.is_empty() {
        return Vec::new();
    }
    // A cluster without a node is one that was not read.
    let is_gone = |vm: &Key| !fleet.nodes.is_empty() && !fleet.vms.contains_key(vm);
    let live: HashSet<&Key> = view.recoveries.keys().collect();
    let over = |id: &ObjectId, open: &Open| {
        let vm = id.key();
        !live.contains(&vm) && (is_gone(&vm) || open.is_over(&vm, view))
    };
    open.iter().filter(|(id, open)| over(id, open)).map(|(id, _)| id.clone()).collect()
}

/// Marks a Recovery as ended. Its runbook told what to do while it went on; to follow that now would replace what is in
/// use again.
pub(super) fn end(id: &ObjectId, object: &mut Value) {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let others = conditions.into_iter().filter(|condition| condition["type"] != display::ENDED);
    let ended = json!({
        "type": display::ENDED,
        "status": "True",
        "reason": "IncidentOver",
        "message": "what it is about is over",
        "lastTransitionTime": now_seconds(),
        "observedGeneration": FIRST_GENERATION,
    });
    let conditions: Value = others.chain([ended]).collect();
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    object["status"]["conditions"] = conditions;
    if object["status"]["runbook"].is_string() {
        object["status"]["runbook"] = json!(runbook_over(&id.key()));
    }
}

/// What the wall clock said when this machine's boot clock said 0.
fn boot_instant() -> Timestamp {
    // The clock exists on every Linux since 2.6.39; without it stamps would only be wrong for people.
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    Timestamp::now().checked_sub(since_boot).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    //! Shows that what a node shows follows its view and its volumes, though it is made anew only when they change.

    use somersault_coordinator_core::fleet::{
        NodeReport, StorageRoot, Usage, Volume, VolumeMode, VolumeSource,
    };

    use super::*;

    const FOLDER: &str = "/srv/volumes/a";

    fn view(message: &str) -> View {
        let report =
            NodeReport { usage: [(FOLDER.into(), Usage::default())].into(), ..NodeReport::default() };
        let node = NodeView {
            state: NodeState::Healthy,
            since: Duration::ZERO,
            message: message.to_owned(),
            boot_id: None,
            proofs_possible: Vec::new(),
            fence_agent: None,
            proof: None,
            timeline: Vec::new(),
            report: Some(report),
            fence: None,
        };
        View { nodes: [("n1".into(), node)].into(), ..View::default() }
    }

    fn snapshot(volumes: &[&str]) -> Snapshot {
        let volume = Volume {
            source: VolumeSource::HostPath { path: FOLDER.to_owned() },
            node_affinity: None,
            provisioned_by: None,
            class: String::new(),
            capacity_bytes: 0,
            access_modes: Vec::new(),
            mode: VolumeMode::Filesystem,
            retained: true,
            claim: None,
            phase: "Available".to_owned(),
            created: None,
            deleting: false,
        };
        let volumes = volumes.iter().map(|name| ((*name).into(), volume.clone())).collect();
        Snapshot { fleet: Arc::new(Fleet { volumes, ..Fleet::default() }), ..Snapshot::default() }
    }

    /// What is written of a view, and taken for written.
    fn write(published: &mut Published, view: &View, snapshot: &Snapshot) -> Vec<Map<String, Value>> {
        let changes = published.changes(view, snapshot);
        let values = changes.iter().map(|change| change.values.clone()).collect();
        for change in changes {
            published.written(change, Value::Null);
        }
        values
    }

    #[test]
    fn a_change_of_the_view_or_of_a_volume_is_shown_and_nothing_else() {
        let mut published = Published::new();
        let empty = snapshot(&[]);
        assert_eq!(write(&mut published, &view("a"), &empty).len(), 1);
        assert_eq!(write(&mut published, &view("a"), &empty).len(), 0);
        assert_eq!(write(&mut published, &view("b"), &empty)[0]["message"], "b");
        let shown = write(&mut published, &view("b"), &snapshot(&["pv-a"]));
        assert_eq!(shown[0]["volumes"][0]["volume"], "pv-a");
        let before = snapshot(&["pv-a"]);
        assert_eq!(write(&mut published, &view("b"), &before).len(), 0, "another fleet, the same volumes");
    }

    /// People's requests are refused by the room that the object tells.
    #[test]
    fn room_that_was_made_is_shown_at_once_and_a_little_of_it_is_not() {
        let with_room = |available_bytes| {
            let root = StorageRoot {
                path: "/srv/volumes".into(),
                class: String::new(),
                depth: 1,
                shared: false,
                size_bytes: 1000,
                available_bytes,
                read_only: false,
                disk: None,
                listed_age: None,
            };
            let mut view = view("a");
            let node = view.nodes.get_mut(&"n1".into()).unwrap();
            node.report = Some(NodeReport { roots: vec![root], ..NodeReport::default() });
            view
        };
        let mut published = Published::new();
        let empty = snapshot(&[]);
        write(&mut published, &with_room(0), &empty);
        assert_eq!(write(&mut published, &with_room(40), &empty).len(), 0);
        assert_eq!(write(&mut published, &with_room(60), &empty)[0]["roots"][0]["availableBytes"], 60);
    }

    #[test]
    fn a_node_that_is_gone_is_shown_no_more() {
        let mut published = Published::new();
        let empty = snapshot(&[]);
        write(&mut published, &view("a"), &empty);
        assert_eq!(write(&mut published, &View::default(), &empty).len(), 0);
        assert!(published.made.is_empty());
    }
}
