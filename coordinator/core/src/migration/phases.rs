//! What each phase still needs, asked of the newest facts. No phase remembers what it did: it looks.

use super::copies::Copies;
use super::{Check, Context, DiskMove, MigrationRecord, MigrationSpec, Phase, Refusal, checks};
use crate::BootTime;
use crate::fleet::{RunStrategy, SavedStart, Vm};
use crate::io::Action;
use crate::names::Key;

use std::time::Duration;

/// A guest may take its time to shut down: three minutes is the longest grace period in common use; beyond that,
/// and the kubelet's own rounds, something is wrong and the VM is given back.
const STOP_WAIT_MAX: Duration = Duration::from_mins(5);
/// Pull of an image and boot of a guest, generously.
const START_WAIT_MAX: Duration = Duration::from_mins(5);
/// The binder works within seconds; a swap that takes longer is stuck, and the old volumes are at hand.
const SWAP_WAIT_MAX: Duration = Duration::from_mins(2);
/// A VM that somebody keeps starting is theirs, not ours to fight for.
pub(super) const RESTARTS_MAX: u32 = 3;

/// One migration, as its phase sees it.
pub(super) struct Moment<'a> {
    pub now: BootTime,
    /// When the phase was entered, on our clock.
    pub entered: BootTime,
    pub record: &'a MigrationRecord,
    pub spec: &'a MigrationSpec,
    pub copies: &'a mut Copies,
    pub restarts: u32,
    /// The start field was given back in this phase.
    pub restored: bool,
    pub ctx: &'a Context<'a>,
}

/// What to do next.
#[derive(Debug)]
pub(super) enum Next {
    /// These are still missing; with none, only time or other people's work is.
    Need(Vec<Action>),
    /// Copies are missing.
    Copy { final_: bool },
    /// Take orders back.
    DropCopies,
    /// Go on, with what was learnt.
    Enter(Phase, Vec<Learnt>),
    /// Put everything back.
    Undo(Refusal),
    /// A person must look; nothing more is touched.
    Fail(Refusal),
}

/// What goes into the record with a new phase.
#[derive(Debug)]
pub(super) enum Learnt {
    /// The owner's start field, before it is changed.
    Stopped(crate::fleet::Owner, SavedStart),
    /// Results of the final copy, in the order of the disks.
    Copied(Vec<super::Copied>),
    /// Answers to checks.
    Checked(Vec<Check>),
}

const WAIT: Next = Next::Need(Vec::new());

impl Moment<'_> {
    pub fn next(&mut self) -> Next {
        if self.spec.cancelled && self.record.phase < Phase::Starting {
            return Next::Undo(Refusal::new("Cancelled", "cancelled by somebody's word"));
        }
        match self.record.phase {
            Phase::Provisioning => self.provisioning(),
            Phase::PreCopying => self.pre_copying(),
            Phase::Stopping => self.stopping(),
            Phase::FinalCopying => self.final_copying(),
            Phase::Verifying => self.verifying(),
            Phase::Swapping => self.swapping(),
            Phase::Starting => self.starting(),
            Phase::Confirming => self.confirming(),
            Phase::RollingBack => self.rolling_back(),
            Phase::Pending
            | Phase::Checking
            | Phase::Succeeded
            | Phase::Failed
            | Phase::RolledBack
            | Phase::Cancelled => WAIT,
        }
    }

    fn vm(&self) -> Option<(Key, &Vm)> {
        let key = Key::new(self.record.key.namespace.clone(), self.spec.vm.as_ref()?);
        self.ctx.fleet.vms.get(&key).map(|vm| (key, vm))
    }

    /// Nothing of the VM runs, and its owner does not want it to. True for a bare claim.
    fn is_halted(&self) -> bool {
        self.vm().is_none_or(|(_, vm)| {
            vm.run == RunStrategy::Halted && vm.instance.is_none() && vm.pods.is_empty()
        })
    }

    fn provisioning(&self) -> Next {
        let mut needs = Vec::new();
        for disk in &self.record.disks {
            match self.ctx.fleet.volumes.get(&disk.new.name) {
                None => needs.push(Action::CreateVolume(disk.new.clone())),
                Some(volume) if !volume.retained => {
                    needs.push(Action::RetainVolume { volume: disk.new.name.clone() });
                }
                Some(_) => {}
            }
            if self.ctx.fleet.volumes.get(&disk.old).is_some_and(|volume| !volume.retained) {
                needs.push(Action::RetainVolume { volume: disk.old.clone() });
            }
        }
        if !needs.is_empty() {
            return Next::Need(needs);
        }
        let runs = self.vm().is_some_and(|(_, vm)| vm.instance.is_some());
        if runs || self.spec.pre_copy_only {
            Next::Enter(Phase::PreCopying, vec![])
        } else {
            self.to_stopping()
        }
    }

    fn pre_copying(&mut self) -> Next {
        match self.copies.outcome(self.now, &self.record.disks) {
            Err(refusal) => Next::Undo(refusal),
            Ok(None) => Next::Copy { final_: false },
            Ok(Some(_)) if !self.spec.pre_copy_only => self.to_stopping(),
            Ok(Some(_)) => {
                self.copies.freshen(self.now);
                WAIT
            }
        }
    }

    fn to_stopping(&self) -> Next {
        let learnt = match self.vm() {
            Some((_, vm)) if vm.run != RunStrategy::Halted => {
                vec![Learnt::Stopped(vm.owner.clone(), vm.start.clone())]
            }
            _ => vec![],
        };
        Next::Enter(Phase::Stopping, learnt)
    }

    fn stopping(&self) -> Next {
        if self.is_halted() {
            return Next::Enter(Phase::FinalCopying, vec![]);
        }
        if self.now.saturating_sub(self.entered) > STOP_WAIT_MAX {
            let message =
                format!("the VM did not stop within {} s; it is left as it was", STOP_WAIT_MAX.as_secs());
            return Next::Undo(Refusal::new("StopTimedOut", message));
        }
        match &self.record.stopped {
            Some(_) => self.stop_again(),
            // It was halted when we came and somebody starts it: what is found now must be stored before it is changed.
            None => self.to_stopping(),
        }
    }

    fn stop_again(&self) -> Next {
        match (self.vm(), &self.record.stopped) {
            (Some((vm, _)), Some((owner, _))) => {
                Next::Need(vec![Action::StopVm { vm, owner: owner.clone() }])
            }
            _ => WAIT,
        }
    }

    fn final_copying(&mut self) -> Next {
        if !self.is_halted() {
            if self.restarts >= RESTARTS_MAX {
                let message =
                    format!("somebody started the VM {} times between stop and swap", self.restarts + 1);
                return Next::Undo(Refusal::new("StartedMeanwhile", message));
            }
            return Next::Enter(Phase::Stopping, vec![]);
        }
        match self.copies.outcome(self.now, &self.record.disks) {
            Err(refusal) => Next::Undo(refusal),
            Ok(None) => Next::Copy { final_: true },
            Ok(Some(copied)) => Next::Enter(Phase::Verifying, vec![Learnt::Copied(copied)]),
        }
    }

    /// The binder checks nothing when a volume is pre-bound to the claim that names it: all of it is checked here.
    fn verifying(&self) -> Next {
        if !self.is_halted() {
            return Next::Enter(Phase::Stopping, vec![]);
        }
        let mut answers = Vec::new();
        for disk in &self.record.disks {
            match verify(disk, self.ctx) {
                Ok(found) => answers.push(checks::passed("CopyVerified", found)),
                Err(refusal) => return Next::Undo(refusal),
            }
        }
        Next::Enter(Phase::Swapping, vec![Learnt::Checked(answers)])
    }

    fn swapping(&self) -> Next {
        match point_all(&self.record.disks, To::New, self.ctx) {
            Ok(None) => Next::Enter(Phase::Starting, vec![]),
            Ok(Some(_)) if self.now.saturating_sub(self.entered) > SWAP_WAIT_MAX => {
                let message = format!("the claims were not bound within {} s", SWAP_WAIT_MAX.as_secs());
                Next::Undo(Refusal::new("SwapTimedOut", message))
            }
            Ok(Some(actions)) => Next::Need(actions),
            Err(refusal) => Next::Undo(refusal),
        }
    }

    fn starting(&self) -> Next {
        match self.restore() {
            Some(action) => Next::Need(vec![action]),
            None => Next::Enter(Phase::Confirming, vec![]),
        }
    }

    /// The action that gives the owner's start field back, while it differs from what was found. A reading from before
    /// our stop shows no difference: only the answer to the action itself, which the shell performs after every earlier
    /// one of the VM, tells that it is given back.
    fn restore(&self) -> Option<Action> {
        let (owner, start) = self.record.stopped.as_ref()?;
        let (key, vm) = self.vm()?;
        (!self.restored || vm.start != *start).then(|| Action::RestoreStart {
            vm: key,
            owner: owner.clone(),
            start: start.clone(),
        })
    }

    fn confirming(&self) -> Next {
        if self.record.stopped.is_none() {
            return Next::Enter(Phase::Succeeded, vec![]);
        }
        let instance = self.vm().and_then(|(_, vm)| vm.instance.clone());
        if let Some(instance) = &instance
            && instance.phase == "Running"
            && let Some(node) = &instance.node
        {
            if let Some(wrong) =
                self.record.disks.iter().find(|disk| disk.new.node.as_ref().is_some_and(|at| at != node))
            {
                let message = format!(
                    "the VM runs on {node}, its volume {} is on {}",
                    wrong.new.name, wrong.target_node
                );
                return Next::Fail(Refusal::new("RunsElsewhere", message));
            }
            let answer = checks::passed("VmRunning", format!("the VM runs on node {node}"));
            return Next::Enter(Phase::Succeeded, vec![Learnt::Checked(vec![answer])]);
        }
        if self.now.saturating_sub(self.entered) <= START_WAIT_MAX {
            return WAIT;
        }
        let seconds = START_WAIT_MAX.as_secs();
        if instance.is_some_and(|instance| instance.node.is_some()) {
            let message = format!(
                "the VM was scheduled and is not Running after {seconds} s; both volumes are kept, and it may have written to the new ones: look at the instance, then decide"
            );
            Next::Fail(Refusal::new("NotRunning", message))
        } else {
            let message =
                format!("the VM was not scheduled within {seconds} s; it goes back to its old volumes");
            Next::Undo(Refusal::new("NotScheduled", message))
        }
    }

    fn rolling_back(&mut self) -> Next {
        if !self.copies.dropped(self.now) {
            return Next::DropCopies;
        }
        match point_all(&self.record.disks, To::Old, self.ctx) {
            Ok(None) => {}
            // Claims change only under a VM that is halted.
            Ok(Some(_)) if !self.is_halted() => return self.stop_again(),
            Ok(Some(actions)) => return Next::Need(actions),
            Err(refusal) => return Next::Fail(refusal),
        }
        let unbound = |disk: &&DiskMove| {
            let volume = self.ctx.fleet.volumes.get(&disk.new.name);
            volume.is_some_and(|volume| volume.claim.as_ref().is_none_or(|claim| claim.uid.is_none()))
        };
        let forget = self.record.disks.iter().filter(unbound);
        let mut needs: Vec<Action> =
            forget.map(|disk| Action::ForgetVolume { volume: disk.new.name.clone() }).collect();
        needs.extend(self.restore());
        if !needs.is_empty() {
            return Next::Need(needs);
        }
        let cancelled = self.record.reason.as_deref() == Some("Cancelled");
        Next::Enter(if cancelled { Phase::Cancelled } else { Phase::RolledBack }, vec![])
    }
}

fn verify(disk: &DiskMove, ctx: &Context<'_>) -> Result<String, Refusal> {
    let refuse = |what: String| Err(Refusal::new("VerificationFailed", what));
    let Some(copied) = &disk.copied else { return refuse(format!("{} has no copy on record", disk.claim)) };
    let (Some(old), Some(new)) = (ctx.fleet.volumes.get(&disk.old), ctx.fleet.volumes.get(&disk.new.name))
    else {
        return refuse(format!("volume {} or {} is gone", disk.old, disk.new.name));
    };
    if !old.retained || !new.retained {
        return refuse(format!("volume {} or {} is not on reclaim policy Retain", disk.old, disk.new.name));
    }
    if new.capacity_bytes < disk.template.requested_bytes
        || new.mode != disk.template.mode
        || !disk.template.access_modes.iter().all(|mode| new.access_modes.contains(mode))
    {
        return refuse(format!(
            "volume {} does not satisfy claim {}: size, mode or access",
            disk.new.name, disk.claim
        ));
    }
    match ctx.fleet.claims.get(&disk.claim) {
        Some(claim) if claim.uid == disk.claim_uid => {
            Ok(format!("{}: {} bytes, root {}", disk.claim, copied.total_bytes, copied.root_hash))
        }
        _ => refuse(format!("claim {} was replaced by somebody else", disk.claim)),
    }
}

/// To which of its volumes a claim shall point.
#[derive(Clone, Copy, PartialEq)]
enum To {
    New,
    Old,
}

/// What a claim still needs until it points to the wanted volume.
enum Pointing {
    Done,
    /// The binder's turn.
    Wait,
    Act(Action),
}

/// One step towards the claim being bound to the wanted volume. Only claims that we know are deleted: the one that we
/// found, the one that we made, or one that is not bound to anything yet.
fn point(disk: &DiskMove, to: To, ctx: &Context<'_>) -> Result<Pointing, Refusal> {
    let (wanted, other) = match to {
        To::New => (&disk.new.name, &disk.old),
        To::Old => (&disk.old, &disk.new.name),
    };
    let claim = ctx.fleet.claims.get(&disk.claim);
    if to == To::Old && claim.is_some_and(|claim| claim.uid == disk.claim_uid) {
        return Ok(Pointing::Done);
    }
    let Some(volume) = ctx.fleet.volumes.get(wanted) else {
        let message =
            format!("volume {wanted} is gone; claim {} is left alone: a person must look", disk.claim);
        return Err(Refusal::new("VolumeGone", message));
    };
    let prebound = volume.claim.as_ref().is_some_and(|claim| claim.key == disk.claim && claim.uid.is_none());
    let prebind =
        || Pointing::Act(Action::PrebindVolume { volume: wanted.clone(), claim: disk.claim.clone() });
    let Some(claim) = claim else {
        if !prebound {
            return Ok(prebind());
        }
        let mut template = disk.template.clone();
        template.class.clone_from(&volume.class);
        let claim = disk.claim.clone();
        return Ok(Pointing::Act(Action::CreateClaim { claim, template, volume: wanted.clone() }));
    };
    match &claim.volume {
        Some(bound) if bound == wanted => {
            let mutual = volume.claim.as_ref().and_then(|claim| claim.uid.as_ref()) == Some(&claim.uid);
            Ok(if mutual {
                Pointing::Done
            } else if prebound {
                Pointing::Wait
            } else {
                prebind()
            })
        }
        Some(bound) if bound != other => {
            let message =
                format!("claim {} is bound to {bound}, which is not ours: a person must look", disk.claim);
            Err(Refusal::new("ClaimTakenOver", message))
        }
        // Somebody else re-created the claim: our pre-bound volume wins it.
        None if prebound => Ok(Pointing::Wait),
        // Before the claim goes: an owner that re-creates it at once would otherwise get a blank volume.
        _ if !prebound => Ok(prebind()),
        _ => Ok(Pointing::Act(Action::DeleteClaim { claim: disk.claim.clone(), uid: claim.uid.clone() })),
    }
}

/// All disks, one step each.
fn point_all(disks: &[DiskMove], to: To, ctx: &Context<'_>) -> Result<Option<Vec<Action>>, Refusal> {
    let mut actions = Vec::new();
    let mut done = true;
    for disk in disks {
        match point(disk, to, ctx)? {
            Pointing::Done => {}
            Pointing::Wait => done = false,
            Pointing::Act(action) => actions.push(action),
        }
    }
    Ok(if done && actions.is_empty() { None } else { Some(actions) })
}
