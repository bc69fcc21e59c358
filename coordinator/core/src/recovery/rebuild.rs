//! Drives one rebuild from stage to stage: commits first, then acts, and repeats what got lost. The stages are drawn
//! in [`crate::rebuild`].
//!
//! Nothing is remembered of what was done: the newest fleet says what is still missing. There is one exception: a
//! reading from before our stop shows the start field as we want it back, so giving it back ends with the answer to
//! the action, which the shell performs after every earlier one of the VM.
//!
//! The proof of the node's death is needed for the launchers only; once they are gone the VM is stopped, and nobody
//! runs on its disks.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use super::Trouble;
use crate::BootTime;
use crate::decision::{Decision, DecisionKind, DiskFinding, Locality, Reason, RestoreSource, SourceKind};
use crate::fencing::FenceProof;
use crate::fleet::{ClaimUse, DiskSource, RunStrategy, Vm};
use crate::io::{Action, Effect, Record, Severity};
use crate::names::{Key, NodeName};
use crate::rebuild::{DeadPod, RebuildRecord, RebuildStage, RebuiltDisk};
use crate::runbook::{Progress, Standing, runbook};
use crate::scene::{Scene, tell_vm};
use crate::view::{RecoveryCause, RecoveryProgress, RecoveryView};

/// An action whose effect does not show is asked for again: lost answers and restarted shells are repaired by this.
const ACTION_RETRY: Duration = Duration::from_secs(10);
/// Stopping, deleting and making anew take seconds, the import of a large image many minutes: after this long people
/// are told that it takes long. Nothing is given up.
const SLOW_AFTER: Duration = Duration::from_mins(30);
/// Phase of a `DataVolume` whose claim is filled.
const SUCCEEDED: &str = "Succeeded";
/// Annotation in which CDI keeps the phase of the pod that fills a claim.
const IMPORT_POD_PHASE: &str = "cdi.kubevirt.io/storage.pod.phase";

/// One VM that is being rebuilt.
#[derive(Clone, Debug)]
pub(super) struct Rebuild {
    decision: Decision,
    /// As stored, once `stored`.
    record: RebuildRecord,
    stored: bool,
    committing: Option<RebuildRecord>,
    commit_after: BootTime,
    entered: BootTime,
    /// What was asked for in this stage, and when it may be asked for again.
    asked: BTreeMap<Action, BootTime>,
    /// The start field was given back in this stage.
    started: bool,
    failures: u32,
    told_slow: bool,
}

/// What comes next.
enum Next {
    /// These are still missing; with none, other people's work is.
    Need(Vec<Action>),
    /// Go on.
    Enter(RebuildStage),
}

const WAIT: Next = Next::Need(Vec::new());

impl Rebuild {
    /// Begins; nothing was done yet. `None` where a disk's claim or volume is not what the decision says any more.
    pub fn begin(
        scene: &Scene<'_>,
        proof: &FenceProof,
        vm: &Vm,
        pods: Vec<DeadPod>,
        decision: Decision,
    ) -> Option<Self> {
        let local = decision.disks.iter().filter(|disk| {
            let is_disk = vm.disks.iter().any(|of| {
                of.name == disk.disk && matches!(of.source, DiskSource::Claim { use_: ClaimUse::Disk, .. })
            });
            is_disk && disk.is_local()
        });
        let disks: Option<Vec<RebuiltDisk>> =
            local.map(|disk| rebuilt_disk(scene, &decision.vm, disk)).collect();
        let record = RebuildRecord {
            vm: decision.vm.clone(),
            vm_uid: vm.uid.clone(),
            node: proof.node().clone(),
            epoch: scene.facts.epoch?,
            proof: Some(proof.kind()),
            stage: RebuildStage::Retaining,
            stopped: None,
            pods,
            disks: disks.filter(|disks| !disks.is_empty())?,
        };
        Some(Self::new(scene, record, decision, false))
    }

    /// A leader before us left this record.
    pub fn inherited(scene: &Scene<'_>, record: RebuildRecord) -> Self {
        let decision = decision_of(&record);
        Self::new(scene, record, decision, true)
    }

    fn new(scene: &Scene<'_>, record: RebuildRecord, decision: Decision, stored: bool) -> Self {
        Self {
            decision,
            record,
            stored,
            committing: None,
            commit_after: BootTime::ZERO,
            entered: scene.now,
            asked: BTreeMap::new(),
            started: false,
            failures: 0,
            told_slow: false,
        }
    }

    /// The node that died.
    pub fn node(&self) -> &NodeName {
        &self.record.node
    }

    /// Launchers that died with the node.
    pub fn pods(&self) -> &[DeadPod] {
        &self.record.pods
    }

    /// Nothing more will happen.
    pub fn is_over(&self) -> bool {
        self.record.stage.is_final()
    }

    /// A deletion of a launcher is under way.
    pub fn is_deleting(&self) -> bool {
        self.asked.keys().any(|action| matches!(action, Action::DeletePod { .. }))
    }

    /// It takes one of the places of VMs that are recovered at the same time. An import may take hours, and holds
    /// nobody up.
    pub fn takes_place(&self, scene: &Scene<'_>) -> bool {
        let limit = scene.facts.policy.recovery.restart_timeout;
        self.record.stage < RebuildStage::Importing
            || (self.record.stage == RebuildStage::Importing && scene.now < self.entered + limit)
    }

    /// What to show; after too many failures a person is asked for.
    pub fn view(&self, scene: &Scene<'_>) -> RecoveryView {
        let stuck = self.failures >= scene.facts.policy.recovery.attempts_max && !self.is_over();
        let (progress, stands) = match self.record.stage {
            _ if stuck => (RecoveryProgress::NeedsPerson, Progress::Stuck),
            RebuildStage::Retaining
            | RebuildStage::Stopping
            | RebuildStage::Replacing
            | RebuildStage::Starting => (RecoveryProgress::Acting, Progress::UnderWay),
            RebuildStage::Importing => (RecoveryProgress::Restarting, Progress::UnderWay),
            RebuildStage::Rebuilt => (RecoveryProgress::Recovered, Progress::Elsewhere),
            RebuildStage::GivingBack | RebuildStage::GivenBack => {
                (RecoveryProgress::NodeReturned, Progress::NodeBack)
            }
        };
        let standing = Standing { over: self.is_over(), ..Standing::at(stands) };
        RecoveryView {
            cause: RecoveryCause::NodeDied,
            node: Some(self.record.node.clone()),
            decision: self.decision.clone(),
            progress,
            proof: self.record.proof,
            ended: false,
            runbook: Some(runbook(&scene.facts.fleet, &self.decision, &standing)),
        }
    }

    /// Since when it is at its stage.
    pub fn since(&self) -> BootTime {
        self.entered
    }

    /// Takes the next step that the facts allow.
    pub fn advance(&mut self, scene: &Scene<'_>, trouble: &Trouble, fx: &mut Vec<Effect>) {
        let Some(epoch) = scene.facts.epoch else { return };
        if self.committing.is_some() || scene.now < self.commit_after || self.is_over() {
            return;
        }
        // A record of ours is stored before anything is done, and one of an earlier leader taken over.
        if !self.stored || self.record.epoch != epoch {
            return self.commit(epoch, self.record.stage, None, fx);
        }
        // Before the first reading of the cluster a VM that is not there says nothing.
        if !scene.facts.fleet_read {
            return;
        }
        match self.next(scene, trouble) {
            Next::Need(actions) => self.ask(scene, actions, fx),
            Next::Enter(stage) => {
                let vm = scene.facts.fleet.vms.get(&self.record.vm);
                let stopped = vm.filter(|_| stage == RebuildStage::Stopping);
                let stopped = stopped.map(|vm| (vm.owner.clone(), vm.start.clone()));
                self.commit(epoch, stage, stopped, fx);
            }
        }
        self.tell_if_slow(scene, fx);
    }

    fn next(&self, scene: &Scene<'_>, trouble: &Trouble) -> Next {
        let record = &self.record;
        let Some(vm) = scene.facts.fleet.vms.get(&record.vm).filter(|vm| vm.uid == record.vm_uid) else {
            return Next::Enter(RebuildStage::GivenBack);
        };
        // Neither declared by us nor by a leader before us: back, or its incident is over.
        let back = !trouble.declared.contains(&record.node);
        match record.stage {
            RebuildStage::Retaining if back || vm.run == RunStrategy::Halted => {
                Next::Enter(RebuildStage::GivenBack)
            }
            RebuildStage::Retaining => self.retaining(scene, trouble),
            RebuildStage::Stopping if back => Next::Enter(RebuildStage::GivingBack),
            RebuildStage::Stopping => self.stopping(vm, trouble.proven.get(&record.node)),
            RebuildStage::Replacing if back && self.is_untouched(scene) => {
                Next::Enter(RebuildStage::GivingBack)
            }
            RebuildStage::Replacing => self.replacing(scene, vm),
            RebuildStage::Starting => self.give_back(vm, RebuildStage::Importing),
            RebuildStage::Importing => self.importing(scene, vm),
            RebuildStage::GivingBack => self.give_back(vm, RebuildStage::GivenBack),
            RebuildStage::Rebuilt | RebuildStage::GivenBack => WAIT,
        }
    }

    fn retaining(&self, scene: &Scene<'_>, trouble: &Trouble) -> Next {
        if !trouble.proven.contains_key(&self.record.node) {
            return WAIT;
        }
        let not_kept = self.not_kept(scene);
        if not_kept.is_empty() { Next::Enter(RebuildStage::Stopping) } else { Next::Need(not_kept) }
    }

    /// Old volumes that the cluster does not show on Retain: until it does, no claim may go.
    fn not_kept(&self, scene: &Scene<'_>) -> Vec<Action> {
        let kept = |disk: &&RebuiltDisk| {
            scene.facts.fleet.volumes.get(&disk.old_volume).is_some_and(|volume| volume.retained)
        };
        let volumes = self.record.disks.iter().filter(|disk| !kept(disk));
        volumes.map(|disk| Action::RetainVolume { volume: disk.old_volume.clone() }).collect()
    }

    fn stopping(&self, vm: &Vm, proof: Option<&FenceProof>) -> Next {
        if vm.run != RunStrategy::Halted {
            return self.stop();
        }
        let dead = |pod: &&DeadPod| vm.pods.iter().any(|other| other.uid == pod.uid);
        let left: Vec<&DeadPod> = self.record.pods.iter().filter(dead).collect();
        match (left.as_slice(), proof) {
            ([], _) if vm.pods.is_empty() && vm.instance.is_none() => Next::Enter(RebuildStage::Replacing),
            ([], _) | (_, None) => WAIT,
            (left, Some(proof)) => Next::Need(
                left.iter()
                    .map(|pod| Action::DeletePod {
                        pod: Key::new(self.record.vm.namespace.clone(), pod.name.clone()),
                        uid: pod.uid.clone(),
                        proof: proof.clone(),
                    })
                    .collect(),
            ),
        }
    }

    fn stop(&self) -> Next {
        let Some((owner, _)) = &self.record.stopped else { return WAIT };
        Next::Need(vec![Action::StopVm { vm: self.record.vm.clone(), owner: owner.clone() }])
    }

    /// Every claim is still the one that the old volume is bound to.
    fn is_untouched(&self, scene: &Scene<'_>) -> bool {
        let claims = &scene.facts.fleet.claims;
        self.record
            .disks
            .iter()
            .all(|disk| claims.get(&self.claim(disk)).is_some_and(|claim| claim.uid == disk.claim_uid))
    }

    fn claim(&self, disk: &RebuiltDisk) -> Key {
        Key::new(self.record.vm.namespace.clone(), disk.claim.clone())
    }

    fn replacing(&self, scene: &Scene<'_>, vm: &Vm) -> Next {
        // Claims change only under a VM that is stopped.
        if vm.run != RunStrategy::Halted {
            return self.stop();
        }
        if vm.instance.is_some() || !vm.pods.is_empty() {
            return WAIT;
        }
        let not_kept = self.not_kept(scene);
        if !not_kept.is_empty() {
            return Next::Need(not_kept);
        }
        let fleet = &scene.facts.fleet;
        let mut needs = Vec::new();
        let mut made = 0;
        for disk in &self.record.disks {
            let key = self.claim(disk);
            let data_volume =
                fleet.data_volumes.get(&Key::new(key.namespace.clone(), disk.data_volume.clone()));
            match (fleet.claims.get(&key), data_volume) {
                (Some(claim), Some(data_volume))
                    if claim.uid == disk.claim_uid && !data_volume.pre_populated =>
                {
                    needs.push(Action::ReimportClaim {
                        claim: key,
                        uid: disk.claim_uid.clone(),
                        data_volume: disk.data_volume.clone(),
                        volume: disk.old_volume.clone(),
                    });
                }
                // A DataVolume that is still called Succeeded has not been looked at since: a VM that starts now
                // would not wait for the import.
                (Some(claim), Some(data_volume)) if claim.uid != disk.claim_uid => {
                    let imported =
                        claim.annotations.get(IMPORT_POD_PHASE).is_some_and(|phase| phase == SUCCEEDED);
                    made += usize::from(data_volume.phase != SUCCEEDED || imported);
                }
                _ => {}
            }
        }
        if made == self.record.disks.len() { Next::Enter(RebuildStage::Starting) } else { Next::Need(needs) }
    }

    fn give_back(&self, vm: &Vm, then: RebuildStage) -> Next {
        match &self.record.stopped {
            Some((owner, start)) if !self.started || vm.start != *start => {
                Next::Need(vec![Action::RestoreStart {
                    vm: self.record.vm.clone(),
                    owner: owner.clone(),
                    start: start.clone(),
                }])
            }
            _ => Next::Enter(then),
        }
    }

    fn importing(&self, scene: &Scene<'_>, vm: &Vm) -> Next {
        let namespace = &self.record.vm.namespace;
        let imported = self.record.disks.iter().all(|disk| {
            let data_volume = Key::new(namespace.clone(), disk.data_volume.clone());
            scene.facts.fleet.data_volumes.get(&data_volume).is_some_and(|found| found.phase == SUCCEEDED)
        });
        let runs = vm.instance.as_ref().is_some_and(|instance| instance.phase == "Running");
        if imported && (runs || vm.run == RunStrategy::Halted) {
            return Next::Enter(RebuildStage::Rebuilt);
        }
        WAIT
    }

    fn ask(&mut self, scene: &Scene<'_>, actions: Vec<Action>, fx: &mut Vec<Effect>) {
        self.asked.retain(|action, _| actions.contains(action));
        for action in actions {
            if self.asked.get(&action).is_none_or(|again| scene.now >= *again) {
                self.asked.insert(action.clone(), scene.now + ACTION_RETRY);
                fx.push(Effect::Act(action));
            }
        }
    }

    fn commit(
        &mut self,
        epoch: u64,
        stage: RebuildStage,
        stopped: Option<(crate::fleet::Owner, crate::fleet::SavedStart)>,
        fx: &mut Vec<Effect>,
    ) {
        let mut record = RebuildRecord { epoch, stage, ..self.record.clone() };
        record.stopped = record.stopped.or(stopped);
        self.committing = Some(record.clone());
        fx.push(Effect::Commit(Record::Rebuild(Box::new(record))));
    }

    /// Our commit came back.
    pub fn committed(&mut self, scene: &Scene<'_>, fx: &mut Vec<Effect>) {
        let Some(record) = self.committing.take() else { return };
        let (begun, moved) = (!self.stored, self.record.stage != record.stage);
        self.stored = true;
        self.record = record;
        if begun {
            self.tell_begun(fx);
        }
        if moved {
            self.entered = scene.now;
            self.asked.clear();
            self.started = false;
            self.failures = 0;
            self.told_slow = false;
            self.tell_stage(fx);
        }
    }

    /// Our commit was refused: wait, so that a record that somebody else writes is not fought over.
    pub fn refused(&mut self, scene: &Scene<'_>) {
        self.committing = None;
        self.commit_after = scene.now + scene.facts.policy.leader.retry;
    }

    /// Whether it asked for this.
    pub fn has_asked(&self, action: &Action) -> bool {
        self.asked.contains_key(action)
    }

    /// An action was performed.
    pub fn acted(&mut self, action: &Action) {
        self.started |= matches!(action, Action::RestoreStart { vm, .. } if *vm == self.record.vm);
    }

    /// An action failed for good.
    pub fn failed(&mut self, scene: &Scene<'_>, action: &Action, why: &str, fx: &mut Vec<Effect>) {
        let limits = &scene.facts.policy;
        self.failures += 1;
        let given_up = self.failures >= limits.recovery.attempts_max;
        let wait = if given_up { limits.fencing.reminder } else { limits.recovery.retry };
        self.asked.insert(action.clone(), scene.now + wait);
        if self.failures == limits.recovery.attempts_max {
            let message = format!(
                "The rebuild of {} does not get on ({:?}): {why}. It is tried again every {wait:?}. Its old volumes are \
                 kept: {}.",
                self.record.vm,
                self.record.stage,
                self.old_volumes()
            );
            tell_vm(fx, Severity::Critical, &self.record.vm, "VmRecoveryFailed", message);
        }
    }

    /// When time alone changes something.
    pub fn next_deadline(&self, scene: &Scene<'_>) -> Option<BootTime> {
        if self.is_over() || self.committing.is_some() {
            return None;
        }
        let slow = (!self.told_slow).then_some(self.entered + SLOW_AFTER);
        let times = self.asked.values().copied().chain([self.commit_after]).chain(slow);
        times.filter(|at| *at > scene.now).min()
    }

    fn old_volumes(&self) -> String {
        let names: Vec<&str> = self.record.disks.iter().map(|disk| disk.old_volume.as_str()).collect();
        names.join(", ")
    }

    fn tell_begun(&self, fx: &mut Vec<Effect>) {
        let vm = &self.record.vm;
        let message = format!(
            "{vm} is rebuilt: it is stopped, its system disk is imported anew on another node, and it is started. The \
             old volume is kept ({}). To cloud-init it will be a new instance.",
            self.old_volumes()
        );
        tell_vm(fx, Severity::Warning, vm, "VmRebuilding", message);
    }

    fn tell_stage(&self, fx: &mut Vec<Effect>) {
        let vm = &self.record.vm;
        let (reason, message) = match self.record.stage {
            RebuildStage::Importing => {
                ("VmImporting", format!("{vm} starts elsewhere once its image is imported."))
            }
            RebuildStage::Rebuilt => (
                "VmRecovered",
                format!("{vm} has its new system disk; the old volume is kept: {}.", self.old_volumes()),
            ),
            RebuildStage::GivenBack => (
                "NodeReturned",
                format!(
                    "{vm} was not rebuilt: its node is back, or the VM is gone; its disks are untouched."
                ),
            ),
            _ => return,
        };
        tell_vm(fx, Severity::Info, vm, reason, message);
    }

    fn tell_if_slow(&mut self, scene: &Scene<'_>, fx: &mut Vec<Effect>) {
        if self.told_slow || scene.now < self.entered + SLOW_AFTER {
            return;
        }
        self.told_slow = true;
        let vm = &self.record.vm;
        let message = format!(
            "The rebuild of {vm} has been at {:?} for {SLOW_AFTER:?}. Look at its DataVolume and at the importer's pod: \
             kubectl get datavolume,pvc,pods -n {}. The old volume is kept: {}.",
            self.record.stage,
            vm.namespace,
            self.old_volumes()
        );
        tell_vm(fx, Severity::Warning, vm, "VmRebuildSlow", message);
    }
}

fn rebuilt_disk(scene: &Scene<'_>, vm: &Key, finding: &DiskFinding) -> Option<RebuiltDisk> {
    let name = finding.claim.clone()?;
    let claim = scene.facts.fleet.claims.get(&Key::new(vm.namespace.clone(), name.clone()))?;
    Some(RebuiltDisk {
        disk: finding.disk.clone(),
        claim: name,
        claim_uid: claim.uid.clone(),
        data_volume: claim.data_volume.clone()?,
        old_volume: claim.volume.clone()?,
        class: claim.class.clone(),
    })
}

/// The decision as far as the record tells it: what it was made from has changed since.
fn decision_of(record: &RebuildRecord) -> Decision {
    let finding = |disk: &RebuiltDisk| DiskFinding {
        disk: disk.disk.clone(),
        claim: Some(disk.claim.clone()),
        volume: Some(disk.old_volume.0.clone()),
        class: Some(disk.class.clone()),
        locality: Locality::Local { node: record.node.clone() },
        because: "as it was when the rebuild began".to_owned(),
        untied: false,
        declared: false,
    };
    let kept = |disk: &RebuiltDisk| RestoreSource {
        disk: disk.disk.clone(),
        source: SourceKind::Volume {
            name: disk.old_volume.clone(),
            phase: String::new(),
            created: None,
            node: Some(record.node.clone()),
        },
    };
    let reason = Reason::SystemDiskRebuildable;
    let mut decision = Decision {
        vm: record.vm.clone(),
        kind: DecisionKind::Rebuild,
        reasons: vec![reason],
        details: vec![format!("{}; the rebuild is under way", reason.summary())],
        nodes: vec![record.node.clone()],
        disks: record.disks.iter().map(finding).collect(),
        restore_from: record.disks.iter().map(kept).collect(),
        remedy: String::new(),
    };
    decision.remedy = decision.remedy_for(reason);
    decision
}
