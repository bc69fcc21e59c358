//! What becomes of the VMs of dead nodes: decided at once, acted upon after the proof.
//!
//! ```text
//!                        ┌─ Recreate ─► AwaitingProof ─ proof, taint, a free place ─► Acting ─ pods gone ─► Restarting
//!   declared ─► decided ─┤                 ▲   │                                        │                       │
//!                        │   decided anew  │   │ node back in a new boot                │ fails for good        │ seen
//!                        │   on each       ▼   ▼                                        ▼                       │ running
//!                        └─ anything else ► NeedsPerson ─ node back ─► NodeReturned   NeedsPerson               ▼ elsewhere
//!                                            ▲ │ └────────────── started elsewhere by a person ─────────────► Recovered
//!                             decided anew   │ ▼ a person moved its disks, or stopped it                         ▲
//!                                          Unaffected ───────────────── seen running elsewhere ──────────────────┘
//! ```
//!
//! A VM that was decided upon stays in its incident until that is over, whatever becomes of it: a Recovery that nobody
//! writes any more would go on to tell people to replace what is in use again. For the same reason a new leader takes in
//! the VMs that are shown as not recovered, wherever they are.
//!
//! While a person is at work on a VM, nothing is decided of it anew (see [`by_hand`]).
//!
//! A VM that is decided `Rebuild` goes the same way; instead of `Acting` begins what [`crate::rebuild`] draws.
//!
//! Deleting a launcher is the permission to run its VM elsewhere, so a pod is deleted only when
//! - the proof of its node's death is stored under our epoch, and the node has not come back;
//! - its instance had run on that node when the proof was stored: such a launcher died with that boot, while one
//!   that was still waiting may start the moment the machine is switched on;
//! - the VM is decided `Recreate` (or `Rebuild`, and stopped) at that very moment, with every node on which it may run
//!   proven;
//! - the node has our taint, or the scheduler would put the new launcher back on it.
//!
//! Once a VM's launcher is gone, the `VolumeAttachment`s of its volumes to that node are deleted under the same proof:
//! otherwise Kubernetes waits six minutes before it attaches them elsewhere.

mod by_hand;
mod incident;
mod rebuild;
pub(crate) mod remedy;
mod storage;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use self::incident::{Incident, VmCase};
use self::rebuild::Rebuild;
pub(crate) use self::storage::{Elsewhere, StorageWatch};
use crate::BootTime;
use crate::decision::{Decider, Question};
use crate::fencing::{FenceProof, ProofKind, Settled};
use crate::fleet::FENCING_TAINT;
use crate::io::{Action, Effect, OpenRecovery};
use crate::names::{Key, NodeName, Uid};
use crate::rebuild::RebuildRecord;
use crate::scene::Scene;
use crate::view::{RecoveryProgress, RecoveryView};

/// VMs of ended incidents that are still shown.
const ENDED_MAX: usize = 1_000;

/// All incidents.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recovery {
    incidents: BTreeMap<NodeName, Incident>,
    /// They outlive the incident that they began in.
    rebuilds: BTreeMap<Key, Rebuild>,
    ended: BTreeMap<Key, RecoveryView>,
}

/// Which nodes are in which trouble.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Trouble {
    /// Declared, proven or not.
    pub declared: BTreeSet<NodeName>,
    /// Proven, and still away: with the permission to act.
    pub proven: BTreeMap<NodeName, FenceProof>,
    /// Back in a new boot.
    pub returned: BTreeSet<NodeName>,
    /// Must not receive a VM now, for any other reason.
    pub unusable: BTreeSet<NodeName>,
}

impl Recovery {
    /// A node was declared, by us or by a leader before us, who may have stored a proof.
    pub fn begin(&mut self, node: &NodeName, proof: Option<ProofKind>) {
        self.incidents.entry(node.clone()).or_default().proof = proof;
    }

    /// A leader before us has shown this recovery of a node of which we have an incident.
    pub fn inherit(&mut self, scene: &Scene<'_>, open: &OpenRecovery) {
        if let Some(incident) = self.incidents.get_mut(&open.node) {
            incident.vms.entry(open.vm.clone()).or_insert_with(|| VmCase::inherited(scene.now));
        }
    }

    /// The proof of a node was stored by us: what had run there until now died with that boot.
    pub fn proven(&mut self, scene: &Scene<'_>, node: &NodeName, proof: ProofKind) {
        if let Some(incident) = self.incidents.get_mut(node) {
            incident.proven(scene, node, proof);
        }
    }

    /// The incident is over.
    pub fn end(&mut self, scene: &Scene<'_>, node: &NodeName) {
        let Some(mut incident) = self.incidents.remove(node) else { return };
        incident.write_runbooks(&scene.facts.fleet, &BTreeMap::new(), true, true);
        for (_, key, view) in incident.views(node) {
            self.keep_ended(key.clone(), view);
        }
    }

    fn keep_ended(&mut self, vm: Key, view: RecoveryView) {
        if self.ended.len() < ENDED_MAX {
            self.ended.insert(vm, RecoveryView { ended: true, ..view });
        }
    }

    /// We lead no more: whoever does starts from the records.
    pub fn clear(&mut self) {
        self.incidents.clear();
        self.rebuilds.clear();
    }

    /// A leader before us left this record, of a rebuild that is not over.
    pub fn inherit_rebuild(&mut self, scene: &Scene<'_>, record: RebuildRecord) {
        self.rebuilds.insert(record.vm.clone(), Rebuild::inherited(scene, record));
    }

    /// The record of a rebuild is stored.
    pub fn rebuild_committed(&mut self, scene: &Scene<'_>, vm: &Key, fx: &mut Vec<Effect>) {
        let Some(rebuild) = self.rebuilds.get_mut(vm) else { return };
        rebuild.committed(scene, fx);
        if rebuild.is_over() {
            let view = rebuild.view(scene);
            self.rebuilds.remove(vm);
            self.keep_ended(vm.clone(), view);
        }
    }

    /// The record of a rebuild was refused.
    pub fn rebuild_refused(&mut self, scene: &Scene<'_>, vm: &Key) {
        if let Some(rebuild) = self.rebuilds.get_mut(vm) {
            rebuild.refused(scene);
        }
    }

    /// The cluster was read anew, or a node changed its state: decide again what is not yet acted upon.
    pub fn decide(&mut self, scene: &Scene<'_>, trouble: &Trouble, fx: &mut Vec<Effect>) {
        self.ended.retain(|vm, _| scene.facts.fleet.vms.contains_key(vm));
        if self.incidents.is_empty() {
            return;
        }
        let fleet = &scene.facts.fleet;
        let decider = Decider::new(fleet, &scene.facts.policy.class_overrides);
        let proven = trouble.proven.iter().map(|(node, proof)| (node.clone(), proof.kind())).collect();
        for (node, incident) in &mut self.incidents {
            let returned = trouble.returned.contains(node);
            incident.look(scene, node, !returned, &self.rebuilds, fx);
            // Before a proof, the question is what would become of the VM if every declared node were proven.
            let dead: BTreeSet<NodeName> = if returned {
                [node.clone()].into()
            } else if trouble.proven.contains_key(node) {
                trouble.proven.keys().cloned().collect()
            } else {
                trouble.declared.clone()
            };
            let unusable = trouble.unusable.union(&trouble.declared).filter(|node| !dead.contains(*node));
            let question = Question { unusable: unusable.cloned().collect(), dead };
            if returned {
                // What a leader before us decided has been told.
                for key in incident.undecided_vms() {
                    incident.decided(scene, node, decider.decide(&key, &question), &mut Vec::new());
                }
                incident.node_returned(scene, node, fx);
            } else {
                for key in incident.open_vms() {
                    incident.decided(scene, node, decider.decide(&key, &question), fx);
                }
            }
            incident.write_runbooks(fleet, &proven, returned, false);
        }
    }

    /// Acts on what is decided and proven, within the limit.
    pub fn act(&mut self, scene: &Scene<'_>, trouble: &Trouble, fx: &mut Vec<Effect>) {
        for rebuild in self.rebuilds.values_mut() {
            rebuild.advance(scene, trouble, fx);
        }
        let busy: usize = self.incidents.values().map(|incident| incident.places_taken(scene)).sum();
        let rebuilt = self.rebuilds.values().filter(|rebuild| rebuild.takes_place(scene)).count();
        let mut places = scene.facts.policy.recovery.concurrent_max.saturating_sub(busy + rebuilt);
        let mut begun = Vec::new();
        for (node, incident) in &mut self.incidents {
            let (Some(proof), Some(object)) = (trouble.proven.get(node), scene.facts.fleet.nodes.get(node))
            else {
                continue;
            };
            if object.has_taint(FENCING_TAINT) || incident.tainted {
                incident.act(scene, proof, trouble, &mut places, &mut begun, fx);
            }
        }
        for (key, mut rebuild) in begun {
            rebuild.advance(scene, trouble, fx);
            self.ended.remove(&key);
            self.rebuilds.insert(key, rebuild);
        }
    }

    /// Nodes that may be called out of service: proven, and every launcher on them is gone so that its VM is recreated.
    pub fn out_of_service<'a>(
        &'a self,
        scene: &'a Scene<'_>,
        trouble: &'a Trouble,
    ) -> impl Iterator<Item = (&'a NodeName, &'a FenceProof)> {
        let rebuilt = |node: &NodeName| self.rebuilds.values().any(|rebuild| rebuild.node() == node);
        trouble.proven.iter().filter(move |(node, _)| {
            !scene.facts.fleet.stray_launchers.contains(*node)
                && !rebuilt(node)
                && self.incidents.get(*node).is_some_and(Incident::is_all_recreated)
        })
    }

    /// An action was performed. Returns the node whose VM it concerned, where it was one of ours.
    pub fn acted(&mut self, scene: &Scene<'_>, action: &Action, fx: &mut Vec<Effect>) -> Option<NodeName> {
        if let Some(rebuild) = self.rebuilds.values_mut().find(|rebuild| rebuild.has_asked(action)) {
            rebuild.acted(action);
        }
        match action {
            Action::Taint { node } => {
                self.incidents.get_mut(node)?.tainted = true;
                None
            }
            Action::Untaint { node } => {
                self.incidents.get_mut(node)?.tainted = false;
                None
            }
            Action::DeletePod { proof, .. } => {
                let node = proof.node().clone();
                let rebuilt = self.rebuilds.values().any(|rebuild| rebuild.has_asked(action));
                if !rebuilt {
                    self.incidents.get_mut(&node)?.deleted(scene, action, fx);
                }
                Some(node)
            }
            _ => None,
        }
    }

    /// An action failed for good.
    pub fn failed(&mut self, scene: &Scene<'_>, action: &Action, why: &str, fx: &mut Vec<Effect>) {
        if let Some(rebuild) = self.rebuilds.values_mut().find(|rebuild| rebuild.has_asked(action)) {
            return rebuild.failed(scene, action, why, fx);
        }
        let (Action::DeletePod { proof, .. } | Action::DeleteAttachment { proof, .. }) = action else {
            return;
        };
        if let Some(incident) = self.incidents.get_mut(proof.node()) {
            incident.delete_failed(scene, action, why, fx);
        }
    }

    /// How far the VMs of a node are.
    pub fn settled(&self, scene: &Scene<'_>, node: &NodeName) -> Settled {
        let mut rebuilds = self.rebuilds.values().filter(|rebuild| rebuild.node() == node);
        let deleting = rebuilds.clone().any(Rebuild::is_deleting);
        let rebuilding = rebuilds.clone().filter(|rebuild| rebuild.takes_place(scene)).count();
        let rebuilt = rebuilds.next().is_some();
        let Some(incident) = self.incidents.get(node) else {
            return Settled { idle: !deleting, open: rebuilding, acted: rebuilt };
        };
        let is = |progress| move |case: &&VmCase| case.progress == progress;
        let acting = incident.vms.values().filter(is(RecoveryProgress::Acting)).count();
        let waiting = incident.vms.values().filter(is(RecoveryProgress::AwaitingProof)).count();
        Settled {
            idle: acting == 0 && !deleting,
            open: waiting + incident.places_taken(scene) + rebuilding,
            acted: incident.acted || rebuilt,
        }
    }

    /// Launchers of a node that were deleted, and whose VMs may run elsewhere by now.
    pub fn superseded(&self, node: &NodeName) -> Vec<Uid> {
        let incident = self.incidents.get(node).into_iter().flat_map(|incident| &incident.superseded);
        let rebuilds = self.rebuilds.values().filter(|rebuild| rebuild.node() == node);
        let pods: BTreeSet<&Uid> =
            incident.chain(rebuilds.flat_map(Rebuild::pods).map(|pod| &pod.uid)).collect();
        pods.into_iter().cloned().collect()
    }

    /// How many VMs of a node a person must see to, and how many not.
    pub fn counts(&self, node: &NodeName) -> (usize, usize) {
        let Some(incident) = self.incidents.get(node) else { return (0, 0) };
        let automatic = incident.vms.values().filter(|case| case.is_automatic()).count();
        (automatic, incident.vms.len() - automatic)
    }

    /// Whether a VM of the node waits for its disks, and nothing but the scheduler keeps it at them.
    pub fn has_unpinned(&self, node: &NodeName) -> bool {
        self.incidents.get(node).is_some_and(|incident| incident.vms.values().any(VmCase::is_unpinned))
    }

    /// Whether a node's incident is about this VM: one that it does not concern any more may have broken storage.
    pub fn has_case(&self, vm: &Key) -> bool {
        let about = |case: &VmCase| case.progress != RecoveryProgress::Unaffected;
        self.incidents.values().any(|incident| incident.vms.get(vm).is_some_and(about))
    }

    /// Whether the VM is being rebuilt.
    pub fn is_rebuilding(&self, vm: &Key) -> bool {
        self.rebuilds.contains_key(vm)
    }

    /// When time alone changes something.
    pub fn next_deadline(&self, scene: &Scene<'_>) -> Option<BootTime> {
        let rebuilds = self.rebuilds.values().filter_map(|rebuild| rebuild.next_deadline(scene));
        self.incidents.values().filter_map(|incident| incident.next_deadline(scene)).chain(rebuilds).min()
    }

    /// What to show. A VM that was caught by two incidents is shown in the one in which something happened last; broken
    /// storage is shown unless an incident that is not over is about the VM, and concerns it.
    pub fn views(&self, scene: &Scene<'_>, storage: &StorageWatch) -> BTreeMap<Key, RecoveryView> {
        let rebuilds =
            self.rebuilds.iter().map(|(key, rebuild)| (rebuild.since(), key.clone(), rebuild.view(scene)));
        let running = self.incidents.iter().flat_map(|(node, incident)| incident.views(node));
        let running = running.map(|(since, key, view)| (since, key.clone(), view));
        let mut running: Vec<(BootTime, Key, RecoveryView)> = running.chain(rebuilds).collect();
        running.sort_by_key(|(since, _, _)| *since);
        let (unaffected, running): (Vec<_>, Vec<_>) =
            running.into_iter().partition(|(_, _, view)| view.progress == RecoveryProgress::Unaffected);
        // Each of these is shown in place of those before it.
        let mut views = self.ended.clone();
        views.extend(unaffected.into_iter().map(|(_, key, view)| (key, view)));
        views.extend(storage.views(&scene.facts.fleet));
        views.extend(running.into_iter().map(|(_, key, view)| (key, view)));
        views
    }
}
