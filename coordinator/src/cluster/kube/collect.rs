//! Joins what the watches tell into snapshots, on a thread of its own: a large cluster's join takes a while.
//!
//! ```text
//!   watches ──► one object at a time: changed at all? ──► inventory ─┐ at once when it was quiet,
//!                        └─ only a kubelet's Lease ──────────────────┤ else when the gap is over
//!                                                                    ▼
//!                                                         snapshot, once every kind was read
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use somersault_coordinator_core::names::NodeName;
use somersault_crd::recovery_policy::POLICY_NAME;
use tokio::sync::{mpsc, watch};

use super::kinds::{WATCHED, fingerprint};
use super::watch::Told;
use crate::cluster::Snapshot;
use crate::cluster::manifest::{Inventory, ObjectId};

/// Between two joins: short beside the second in which a node is declared at the earliest.
const GAP_MIN: Duration = Duration::from_millis(100);
/// And at least this many times what the last join took: in a cluster that is always in motion, however large it is,
/// joining takes one part of six of a core at most.
const GAP_TIMES: u32 = 5;
/// What lies in front of the join before the watches wait. An object has a few KiB.
pub(super) const WAITING_MAX: usize = 1_024;

/// The policy that counts, as it is stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum StoredPolicy {
    /// Nobody knows yet.
    #[default]
    Unread,
    /// There is none.
    Absent,
    /// Its `spec`.
    Is(Value),
}

/// Where snapshots and policies go.
pub(super) struct Outlets {
    /// The newest snapshot.
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    /// Whether every kind was read.
    pub synced: watch::Sender<bool>,
    /// The one policy that counts; told as soon as the policies were read, since all else may take longer.
    pub policy: watch::Sender<StoredPolicy>,
}

/// Joins until the watches are gone. `namespace` is our own.
pub(super) fn run(mut told: mpsc::Receiver<Told>, namespace: &str, outlets: &Outlets) {
    let mut collector = Collector::new(namespace);
    let (mut joined_at, mut gap) = (Instant::now(), Duration::ZERO);
    while let Some(first) = told.blocking_recv() {
        collector.take(first);
        drain(&mut told, &mut collector);
        if let Some(rest) = gap.checked_sub(joined_at.elapsed()) {
            std::thread::sleep(rest);
            drain(&mut told, &mut collector);
        }
        let began = Instant::now();
        collector.publish(outlets);
        joined_at = Instant::now();
        gap = GAP_MIN.max((joined_at - began) * GAP_TIMES);
    }
}

fn drain(told: &mut mpsc::Receiver<Told>, collector: &mut Collector) {
    while let Ok(next) = told.try_recv() {
        collector.take(next);
    }
}

/// What is remembered of each object, so that one that did not change changes nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Print {
    /// Its fingerprint.
    of: u64,
    /// The watch that told of it last: only that one can tell that it is gone.
    watch: &'static str,
}

/// Everything that was told, and what has changed since it was last published.
struct Collector {
    inventory: Inventory,
    prints: HashMap<ObjectId, Print>,
    renewals: BTreeMap<NodeName, String>,
    policy: StoredPolicy,
    /// Objects of the lists that are under way.
    lists: BTreeMap<&'static str, HashSet<ObjectId>>,
    /// Watches that were not read to their end yet.
    unread: BTreeSet<&'static str>,
    fleet_changed: bool,
    renewals_changed: bool,
}

impl Collector {
    fn new(namespace: &str) -> Self {
        Self {
            inventory: Inventory::of_coordinator(namespace),
            prints: HashMap::new(),
            renewals: BTreeMap::new(),
            policy: StoredPolicy::Absent,
            lists: BTreeMap::new(),
            unread: WATCHED.iter().map(|kind| kind.watch).collect(),
            fleet_changed: true,
            renewals_changed: false,
        }
    }

    fn take(&mut self, told: Told) {
        match told {
            Told::Begin(watch) => {
                self.lists.insert(watch, HashSet::new());
            }
            Told::Is(watch, object) => match ObjectId::of(&object) {
                Ok(id) => {
                    if let Some(listed) = self.lists.get_mut(watch) {
                        listed.insert(id.clone());
                    }
                    self.put(watch, id, &object);
                }
                Err(why) => tracing::warn!(kind = watch, why, "an object without a name that can be used"),
            },
            Told::Gone(watch, object) => {
                // A pod whose label changed goes from one watch to another, and either may be the first to tell.
                if let Ok(id) = ObjectId::of(&object)
                    && self.prints.get(&id).is_some_and(|print| print.watch == watch)
                {
                    self.remove(&id);
                }
            }
            Told::Complete(watch) => {
                let listed = self.lists.remove(watch).unwrap_or_default();
                self.remove_all_but(watch, &listed);
            }
            Told::Absent(watch) => self.remove_all_but(watch, &HashSet::new()),
        }
    }

    fn put(&mut self, watch: &'static str, id: ObjectId, object: &Value) {
        if id.kind == "Lease" {
            let renewed = object["spec"]["renewTime"].as_str().unwrap_or_default();
            let before = self.renewals.insert(NodeName(id.name.clone()), renewed.to_owned());
            self.renewals_changed |= before.is_none_or(|before| before != renewed);
            self.prints.insert(id, Print { of: 0, watch });
            return;
        }
        let print = Print { of: fingerprint(object), watch };
        if self.prints.insert(id.clone(), print) == Some(print) {
            return;
        }
        if is_the_policy(&id) {
            self.policy = StoredPolicy::Is(object["spec"].clone());
        }
        self.inventory.remove(&id);
        self.inventory.add(API_SERVER, 0, &id, object);
        self.fleet_changed = true;
    }

    fn remove(&mut self, id: &ObjectId) {
        if self.prints.remove(id).is_none() {
            return;
        }
        if id.kind == "Lease" {
            self.renewals.remove(&NodeName(id.name.clone()));
            self.renewals_changed = true;
            return;
        }
        if is_the_policy(id) {
            self.policy = StoredPolicy::Absent;
        }
        self.inventory.remove(id);
        self.fleet_changed = true;
    }

    /// What a complete list does not have was deleted while nobody watched.
    fn remove_all_but(&mut self, watch: &'static str, listed: &HashSet<ObjectId>) {
        let gone = self.prints.iter().filter(|(id, print)| print.watch == watch && !listed.contains(*id));
        for id in gone.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.remove(&id);
        }
        self.unread.remove(watch);
    }

    /// Publishes what has changed. Before every kind was read there is nothing to see: half a cluster looks like one
    /// that has lost the other half.
    fn publish(&mut self, outlets: &Outlets) {
        if !self.unread.contains(POLICIES) {
            outlets.policy.send_if_modified(|policy| {
                let changed = *policy != self.policy;
                policy.clone_from(&self.policy);
                changed
            });
        }
        // A list under way may be about to bring back what a cut watch has missed, but takes nothing away yet.
        if !self.unread.is_empty() {
            return;
        }
        if self.fleet_changed {
            let mut snapshot = self.inventory.snapshot();
            snapshot.kubelet_renewals.clone_from(&self.renewals);
            outlets.snapshots.send_replace(Arc::new(snapshot));
        } else if self.renewals_changed {
            outlets.snapshots.send_modify(|snapshot| {
                let renewed =
                    Snapshot { kubelet_renewals: self.renewals.clone(), ..Snapshot::clone(snapshot) };
                *snapshot = Arc::new(renewed);
            });
        }
        (self.fleet_changed, self.renewals_changed) = (false, false);
        outlets.synced.send_if_modified(|synced| !std::mem::replace(synced, true));
    }
}

/// Where an object comes from, for people.
const API_SERVER: &str = "API server";

/// The watch of policies.
const POLICIES: &str = "RecoveryPolicy";

fn is_the_policy(id: &ObjectId) -> bool {
    id.kind == POLICIES && id.name == POLICY_NAME
}

#[cfg(test)]
mod tests {
    //! Shows what becomes of events: nothing half-read is seen, nothing deleted stays, nothing unchanged costs a join.

    use serde_json::json;

    use super::*;

    /// The watch of pods that are no VM's.
    const OTHERS: &str = "Pod that is no VM's";

    struct Bench {
        collector: Collector,
        outlets: Outlets,
    }

    fn node(name: &str, ready: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}})
    }

    fn lease(name: &str, renewed: &str) -> Value {
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": "kube-node-lease"}, "spec": {"renewTime": renewed}})
    }

    impl Bench {
        fn new() -> Self {
            let outlets = Outlets {
                snapshots: watch::channel(Arc::default()).0,
                synced: watch::channel(false).0,
                policy: watch::channel(StoredPolicy::Unread).0,
            };
            Self { collector: Collector::new("somersault-system"), outlets }
        }

        fn read() -> Self {
            let mut bench = Self::new();
            bench.tell([Told::Begin("Node"), Told::Is("Node", node("n1", "True"))]);
            bench.tell(WATCHED.iter().map(|kind| Told::Complete(kind.watch)));
            bench
        }

        fn tell(&mut self, told: impl IntoIterator<Item = Told>) {
            told.into_iter().for_each(|told| self.collector.take(told));
            self.collector.publish(&self.outlets);
        }

        fn snapshot(&self) -> Arc<Snapshot> {
            Arc::clone(&self.outlets.snapshots.borrow())
        }

        fn nodes(&self) -> Vec<String> {
            self.snapshot().fleet.nodes.keys().map(ToString::to_string).collect()
        }
    }

    /// A claim of ours, its pod and its alias, as the API server has them, come together; somebody else's with the same label do
    /// not.
    #[test]
    fn what_is_made_for_our_copies_is_apart_from_everything_else() {
        let object = |kind: &str, namespace: &str| {
            let mut object = json!({"apiVersion": "v1", "kind": kind, "metadata": {
                "name": "smst-1", "namespace": namespace, "uid": format!("uid-{kind}"),
                "labels": {"somersault.novasphere.dev/staging": "true"},
            }});
            if kind == "Pod" {
                object["spec"] = json!({"nodeName": "n1", "containers": [{"name": "hold"}],
                    "volumes": [{"name": "held", "persistentVolumeClaim": {"claimName": "smst-1"}}]});
                object["status"] = json!({"phase": "Running", "conditions": [
                    {"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}]});
            } else {
                object["spec"] = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "ceph",
                    "resources": {"requests": {"storage": "1Gi"}}, "volumeName": "pvc-1"});
                object["status"] = json!({"phase": "Bound"});
            }
            object
        };
        let others = WATCHED.iter().find(|kind| kind.watch == OTHERS).expect("watched");
        let mut bench = Bench::read();
        for namespace in ["somersault-system-volumes", "shop"] {
            let pod = others.kept(object("Pod", namespace)).expect("it uses a claim");
            let claim = object("PersistentVolumeClaim", namespace);
            bench.tell([Told::Is(OTHERS, pod), Told::Is("PersistentVolumeClaim", claim)]);
        }
        let snapshot = bench.snapshot();
        assert_eq!(snapshot.problems, []);
        let fleet = &snapshot.fleet;
        let keys = |claims: &mut dyn Iterator<Item = &somersault_coordinator_core::names::Key>| {
            claims.map(|key| key.namespace.clone()).collect::<Vec<_>>()
        };
        assert_eq!(keys(&mut fleet.claims.keys()), ["shop"]);
        assert_eq!(keys(&mut fleet.claims_used_by_others.keys()), ["shop"]);
        assert_eq!(fleet.staged.keys().collect::<Vec<_>>(), ["smst-1"]);
        let staged = &fleet.staged["smst-1"];
        let claim = staged.claim.as_ref().expect("a claim");
        assert_eq!(
            (claim.uid.0.as_str(), claim.volume.as_ref().map(|name| name.0.as_str())),
            ("uid-PersistentVolumeClaim", Some("pvc-1"))
        );
        let holder = staged.holder.as_ref().expect("a pod");
        assert_eq!((holder.uid.0.as_str(), holder.running, holder.deleting), ("uid-Pod", true, false));
        assert_eq!(holder.node.as_ref().map(|node| node.0.as_str()), Some("n1"));

        let alias = |namespace: &str, name: &str| {
            json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {
                "name": name, "labels": {"somersault.novasphere.dev/staging": "true"},
            }, "spec": {
                "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
                "claimRef": {"namespace": namespace, "name": "smst-1"}, "persistentVolumeReclaimPolicy": "Retain",
                "csi": {"driver": "rbd.csi.ceph.com", "volumeHandle": "h"},
            }})
        };
        let ours = alias("somersault-system-volumes", "smst-1");
        let volumes = [ours.clone(), alias("shop", "theirs")];
        bench.tell(volumes.map(|volume| Told::Is("PersistentVolume", volume)));
        let names = |bench: &Bench| {
            bench.snapshot().fleet.volumes.keys().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(names(&bench), ["theirs"], "an alias is nobody's volume");
        let alias_of = |bench: &Bench| bench.snapshot().fleet.staged["smst-1"].alias.clone();
        assert!(alias_of(&bench).is_some_and(|alias| !alias.deleting));
        bench.tell([Told::Gone("PersistentVolume", ours)]);
        assert_eq!(alias_of(&bench), None);

        let mut going = object("Pod", "somersault-system-volumes");
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        bench.tell([Told::Is(OTHERS, others.kept(going).expect("kept"))]);
        assert!(
            bench.snapshot().fleet.staged["smst-1"].holder.as_ref().is_some_and(|holder| holder.deleting)
        );
    }

    #[test]
    fn nothing_is_seen_before_every_kind_was_read() {
        let mut bench = Bench::new();
        bench.tell([Told::Begin("Node"), Told::Is("Node", node("n1", "True"))]);
        let (last, rest) = WATCHED.split_last().expect("kinds");
        bench.tell(rest.iter().map(|kind| Told::Complete(kind.watch)));
        assert!(!*bench.outlets.synced.borrow());
        assert_eq!(bench.nodes(), [""; 0]);
        bench.tell([Told::Absent(last.watch)]);
        assert!(*bench.outlets.synced.borrow());
        assert_eq!(bench.nodes(), ["n1"]);
    }

    #[test]
    fn what_a_new_list_does_not_have_is_gone_when_it_is_complete_and_not_before() {
        let mut bench = Bench::read();
        bench.tell([Told::Is("Node", node("n2", "True"))]);
        assert_eq!(bench.nodes(), ["n1", "n2"]);
        bench.tell([Told::Begin("Node"), Told::Is("Node", node("n3", "True"))]);
        assert_eq!(bench.nodes(), ["n1", "n2", "n3"]);
        bench.tell([Told::Complete("Node")]);
        assert_eq!(bench.nodes(), ["n3"]);
        bench.tell([Told::Gone("Node", node("n3", "True"))]);
        assert_eq!(bench.nodes(), [""; 0]);
    }

    /// Claims that somebody else uses, by name.
    fn used(bench: &Bench) -> Vec<String> {
        bench.snapshot().fleet.claims_used_by_others.keys().map(|claim| claim.name.clone()).collect()
    }

    fn pod(name: &str, claim: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": name},
            "spec": {"containers": [], "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}})
    }

    #[test]
    fn a_claim_that_a_pod_of_no_vm_uses_is_seen_until_that_pod_is_gone() {
        let mut bench = Bench::read();
        bench.tell([Told::Is(OTHERS, pod("backup", "db"))]);
        assert_eq!(used(&bench), ["db"]);
        bench.tell([Told::Gone(OTHERS, pod("backup", "db"))]);
        assert_eq!(used(&bench), [""; 0]);
    }

    #[test]
    fn two_watches_of_a_kind_leave_each_others_objects_alone() {
        let mut bench = Bench::read();
        bench.tell([Told::Is("Pod", pod("stray", "web")), Told::Is(OTHERS, pod("backup", "db"))]);
        bench.tell([Told::Begin("Pod"), Told::Complete("Pod")]);
        assert_eq!(used(&bench), ["db"], "the list of launchers has no other pods");
        bench.tell([Told::Is("Pod", pod("stray", "web")), Told::Begin(OTHERS), Told::Complete(OTHERS)]);
        assert_eq!(used(&bench), ["web"], "the list of other pods has no launchers");
    }

    #[test]
    fn a_pod_that_goes_from_one_watch_to_another_stays_whoever_tells_first() {
        for told_first in [true, false] {
            let mut bench = Bench::read();
            bench.tell([Told::Is("Pod", pod("p", "db"))]);
            let mut news = vec![Told::Gone("Pod", pod("p", "db")), Told::Is(OTHERS, pod("p", "db"))];
            if told_first {
                news.reverse();
            }
            bench.tell(news);
            bench.tell([Told::Begin("Pod"), Told::Complete("Pod")]);
            assert_eq!(used(&bench), ["db"], "told first: {told_first}");
        }
    }

    #[test]
    fn a_kubelets_lease_leaves_the_fleet_as_it_is() {
        let mut bench = Bench::read();
        let before = bench.snapshot();
        bench.tell([Told::Is("Lease", lease("n1", "12:00"))]);
        bench.tell([Told::Is("Node", node("n1", "True"))]);
        let after = bench.snapshot();
        assert_eq!(after.kubelet_renewals[&NodeName::from("n1")], "12:00");
        assert!(Arc::ptr_eq(&before.fleet, &after.fleet), "joined for a Lease, or for an unchanged node");
        bench.tell([Told::Is("Node", node("n1", "False"))]);
        let joined = bench.snapshot();
        assert!(!joined.fleet.nodes[&NodeName::from("n1")].ready);
        assert_eq!(joined.kubelet_renewals, after.kubelet_renewals);
    }

    #[test]
    fn an_object_that_was_mended_is_no_problem_any_more() {
        let mut bench = Bench::read();
        let mut broken = node("n2", "True");
        broken["spec"] = json!({"taints": "none"});
        bench.tell([Told::Is("Node", broken)]);
        assert_eq!(bench.snapshot().problems.len(), 1);
        bench.tell([Told::Is("Node", node("n2", "True"))]);
        assert_eq!(bench.snapshot().problems, []);
        assert_eq!(bench.nodes(), ["n1", "n2"]);
    }

    #[test]
    fn only_the_policy_that_counts_is_told() {
        let mut bench = Bench::read();
        let policy = |name: &str| {
            json!({"apiVersion": "somersault.novasphere.dev/v1alpha1", "kind": "RecoveryPolicy",
                "metadata": {"name": name}, "spec": {"profile": "Fast"}})
        };
        bench.tell([Told::Is("RecoveryPolicy", policy("other"))]);
        assert_eq!(*bench.outlets.policy.borrow(), StoredPolicy::Absent);
        bench.tell([Told::Is("RecoveryPolicy", policy("default"))]);
        assert_eq!(*bench.outlets.policy.borrow(), StoredPolicy::Is(json!({"profile": "Fast"})));
        bench.tell([Told::Gone("RecoveryPolicy", policy("default"))]);
        assert_eq!(*bench.outlets.policy.borrow(), StoredPolicy::Absent);
    }

    #[test]
    fn whether_there_is_a_policy_is_known_before_everything_else_was_read() {
        let mut bench = Bench::new();
        bench.tell([Told::Begin("RecoveryPolicy")]);
        assert_eq!(*bench.outlets.policy.borrow(), StoredPolicy::Unread);
        bench.tell([Told::Complete("RecoveryPolicy")]);
        assert_eq!(*bench.outlets.policy.borrow(), StoredPolicy::Absent);
        assert!(!*bench.outlets.synced.borrow());
    }
}
