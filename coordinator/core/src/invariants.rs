//! What must hold after every step, whatever happened: used by tests and by the simulation.
//!
//! A [`Watch`] stands beside one coordinator, sees what goes in and what comes out, and knows nothing of how the
//! coordinator decides. Its rules are those that keep a VM from running twice.

use std::collections::{BTreeMap, BTreeSet};

use crate::decision::DecisionKind;
use crate::fencing::{FenceProof, FenceRecord, FenceStage, ProofKind};
use crate::fleet::Fleet;
use crate::io::{Action, Effect, Input, Record, RecordKey};
use crate::names::{Key, NodeName, Uid, VolumeName};
use crate::rebuild::{RebuildRecord, RebuildStage};
use crate::view::View;

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A follower acted.
    #[error("an effect left a coordinator that does not lead: {0}")]
    ActedAsFollower(String),
    /// A record of another epoch than the current one was to be stored.
    #[error("a record of {node} was to be stored under epoch {epoch}, but the epoch is {current}")]
    ForeignEpoch {
        /// Whose record.
        node: NodeName,
        /// Its epoch.
        epoch: u64,
        /// Ours.
        current: u64,
    },
    /// A leader's epoch did not grow.
    #[error("epoch {new} follows epoch {old}")]
    EpochWentBack {
        /// Epoch before.
        old: u64,
        /// Epoch after.
        new: u64,
    },
    /// A pod was deleted without a stored proof of this epoch.
    #[error("pod {pod} was to be deleted, but no proof of {node} is stored under epoch {epoch}")]
    NoProof {
        /// Which pod.
        pod: Key,
        /// Whose death is claimed.
        node: NodeName,
        /// The proof's epoch.
        epoch: u64,
    },
    /// Something of a node was taken away without a stored proof of this epoch.
    #[error("{what} was to be taken from {node}, but no proof of it is stored under epoch {epoch}")]
    TakenWithoutProof {
        /// What.
        what: String,
        /// Whose death is claimed.
        node: NodeName,
        /// The proof's epoch.
        epoch: u64,
    },
    /// A claim was to be made anew without a record that says so, or while its VM or its old volume were not safe.
    #[error("claim {claim} was to be made anew, but {why}")]
    UnsafeReimport {
        /// Which claim.
        claim: Key,
        /// What is missing.
        why: &'static str,
    },
    /// A pod was deleted whose VM is not decided to be recreated.
    #[error("pod {pod} was to be deleted, but its VM is not decided Recreate or Rebuild")]
    NotDecided {
        /// Which pod.
        pod: Key,
    },
    /// A fence agent was run before the order was stored.
    #[error("the fence agent of {node} was run, but no power order is stored under epoch {epoch}")]
    UnrecordedOrder {
        /// Whose.
        node: NodeName,
        /// The run's epoch.
        epoch: u64,
    },
    /// A beat of a declared node was answered.
    #[error("a beat of {node} was answered although it is declared")]
    GrantedDeclared {
        /// Whose.
        node: NodeName,
    },
    /// A watchdog's lease served as a proof where none is enrolled.
    #[error("{node} was proven by its lease, but is not enrolled for watchdog fencing")]
    LeaseWithoutWatchdog {
        /// Whose.
        node: NodeName,
    },
}

/// Stands beside one coordinator.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    leading: Option<u64>,
    newest: u64,
    pending: BTreeMap<NodeName, FenceRecord>,
    stored: BTreeMap<NodeName, FenceRecord>,
    vm_of: BTreeMap<Uid, Key>,
    rebuilding: BTreeMap<Key, RebuildRecord>,
    rebuilds: BTreeMap<Key, RebuildRecord>,
    retained: BTreeSet<VolumeName>,
    active: BTreeSet<Key>,
}

impl Watch {
    /// Sees an input before the coordinator takes it.
    pub fn input(&mut self, input: &Input) -> Result<(), Violation> {
        match input {
            Input::Leading { epoch, records, .. } => {
                if *epoch < self.newest {
                    return Err(Violation::EpochWentBack { old: self.newest, new: *epoch });
                }
                self.newest = *epoch;
                self.leading = Some(*epoch);
                self.pending.clear();
                self.stored = records.iter().filter_map(fence_record).collect();
                self.rebuilding.clear();
                self.rebuilds = records.iter().filter_map(rebuild_record).collect();
            }
            Input::Deposed => self.leading = None,
            Input::Committed(RecordKey::Fence(node)) => {
                self.stored.extend(self.pending.remove(node).map(|record| (node.clone(), record)));
            }
            Input::CommitRefused(RecordKey::Fence(node)) => _ = self.pending.remove(node),
            Input::Committed(RecordKey::Rebuild(vm)) => {
                self.rebuilds.extend(self.rebuilding.remove(vm).map(|record| (vm.clone(), record)));
            }
            Input::CommitRefused(RecordKey::Rebuild(vm)) => _ = self.rebuilding.remove(vm),
            Input::Fleet(fleet) => {
                self.vm_of = vms_by_pod(fleet);
                let volumes = fleet.volumes.iter().filter(|(_, volume)| volume.retained);
                self.retained = volumes.map(|(name, _)| name.clone()).collect();
                let active = fleet.vms.iter().filter(|(_, vm)| vm.instance.is_some() || !vm.pods.is_empty());
                self.active = active.map(|(key, _)| key.clone()).collect();
            }
            _ => {}
        }
        Ok(())
    }

    /// Sees what the coordinator wants done; `view` is what it shows afterwards, `enrolled` who has a watchdog.
    pub fn effects(
        &mut self,
        effects: &[Effect],
        view: &View,
        enrolled: impl Fn(&NodeName) -> bool,
    ) -> Result<(), Violation> {
        for effect in effects {
            if matches!(effect, Effect::AskFence { .. }) {
                continue;
            }
            let Some(current) = self.leading else {
                return Err(Violation::ActedAsFollower(format!("{effect:?}")));
            };
            match effect {
                Effect::Commit(Record::Fence(record)) => self.commit(record, current, &enrolled)?,
                Effect::RunFence { node, epoch, .. } => {
                    let ordered = |record: &&FenceRecord| record.stage == FenceStage::PowerOrdered;
                    self.stored_in(node, *epoch)
                        .filter(ordered)
                        .ok_or_else(|| Violation::UnrecordedOrder { node: node.clone(), epoch: *epoch })?;
                }
                Effect::Grant { node, .. } if self.is_declared(node) => {
                    return Err(Violation::GrantedDeclared { node: node.clone() });
                }
                Effect::Commit(Record::Rebuild(record)) => {
                    if record.epoch != current {
                        let (node, epoch) = (record.node.clone(), record.epoch);
                        return Err(Violation::ForeignEpoch { node, epoch, current });
                    }
                    self.rebuilding.insert(record.vm.clone(), (**record).clone());
                }
                Effect::Act(Action::DeletePod { pod, uid, proof }) => {
                    if !self.proves(proof, current) {
                        let (node, epoch) = (proof.node().clone(), proof.epoch());
                        return Err(Violation::NoProof { pod: pod.clone(), node, epoch });
                    }
                    let recovery = self.vm_of.get(uid).and_then(|vm| view.recoveries.get(vm));
                    let decided = |kind| matches!(kind, DecisionKind::Recreate | DecisionKind::Rebuild);
                    if recovery.is_none_or(|recovery| !decided(recovery.decision.kind)) {
                        return Err(Violation::NotDecided { pod: pod.clone() });
                    }
                }
                Effect::Act(
                    action @ (Action::DeleteAttachment { proof, .. } | Action::OutOfService { proof }),
                ) if !self.proves(proof, current) => {
                    let (node, epoch) = (proof.node().clone(), proof.epoch());
                    return Err(Violation::TakenWithoutProof { what: format!("{action:?}"), node, epoch });
                }
                Effect::Act(Action::ReimportClaim { claim, uid, volume, .. }) => {
                    self.may_reimport(claim, uid, volume, current)
                        .map_err(|why| Violation::UnsafeReimport { claim: claim.clone(), why })?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn commit(
        &mut self,
        record: &FenceRecord,
        current: u64,
        enrolled: &impl Fn(&NodeName) -> bool,
    ) -> Result<(), Violation> {
        let (node, epoch) = (record.node.clone(), record.epoch);
        if epoch != current {
            return Err(Violation::ForeignEpoch { node, epoch, current });
        }
        if record.stage == (FenceStage::Fenced { proof: ProofKind::LeaseExpired }) && !enrolled(&node) {
            return Err(Violation::LeaseWithoutWatchdog { node });
        }
        self.pending.insert(node, record.clone());
        Ok(())
    }

    fn proves(&self, proof: &FenceProof, current: u64) -> bool {
        let stored = self.stored_in(proof.node(), proof.epoch());
        let fenced = stored.is_some_and(|record| matches!(record.stage, FenceStage::Fenced { .. }));
        fenced && proof.epoch() == current
    }

    fn may_reimport(
        &self,
        claim: &Key,
        uid: &Uid,
        volume: &VolumeName,
        current: u64,
    ) -> Result<(), &'static str> {
        let of_this = |record: &&RebuildRecord| {
            let mut disks = record.disks.iter();
            record.vm.namespace == claim.namespace
                && record.epoch == current
                && record.stage == RebuildStage::Replacing
                && disks.any(|disk| {
                    disk.claim == claim.name && disk.claim_uid == *uid && disk.old_volume == *volume
                })
        };
        let record = self.rebuilds.values().find(of_this).ok_or("no record of this epoch says so")?;
        if self.active.contains(&record.vm) {
            return Err("its VM has an instance or a pod");
        }
        if !self.retained.contains(volume) {
            return Err("its volume is not on Retain");
        }
        Ok(())
    }

    fn stored_in(&self, node: &NodeName, epoch: u64) -> Option<&FenceRecord> {
        self.stored.get(node).filter(|record| record.epoch == epoch)
    }

    fn is_declared(&self, node: &NodeName) -> bool {
        let served = |stage: &FenceStage| matches!(stage, FenceStage::Quarantine { .. } | FenceStage::Closed);
        let new_incident = |record: &FenceRecord| record.stage == FenceStage::Declared;
        self.stored.get(node).is_some_and(|record| !served(&record.stage))
            || self.pending.get(node).is_some_and(new_incident)
    }
}

fn fence_record(record: &Record) -> Option<(NodeName, FenceRecord)> {
    match record {
        Record::Fence(record) => Some((record.node.clone(), record.clone())),
        _ => None,
    }
}

fn rebuild_record(record: &Record) -> Option<(Key, RebuildRecord)> {
    match record {
        Record::Rebuild(record) => Some((record.vm.clone(), (**record).clone())),
        _ => None,
    }
}

fn vms_by_pod(fleet: &Fleet) -> BTreeMap<Uid, Key> {
    let pods =
        fleet.vms.iter().flat_map(|(key, vm)| vm.pods.iter().map(move |pod| (pod.uid.clone(), key.clone())));
    pods.collect()
}
