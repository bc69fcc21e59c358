//! What each phase still needs, asked of the newest facts. No phase remembers what it did: it looks.
//!
//! ```text
//!   here: Provisioning ──► PreCopying ──► Stopping ──► FinalCopying ──► Verifying ──► Swapping ──► Starting
//!              │                                                                                      │
//!              └──► back.rs: RollingBack                                        confirming.rs: Confirming
//! ```

mod back;
mod confirming;

use std::collections::BTreeSet;
use std::time::Duration;

use super::claims::{self, To, point_all};
use super::copies::Copies;
use super::dry_run::{DryRun, DryRuns};
use super::guest::{Asking, GuestQuestion};
use super::staging::{self, Step};
use super::{
    Check, Context, DiskMove, Guest, MigrationRecord, MigrationSpec, Phase, Refusal, checks, reading,
};
use crate::BootTime;
use crate::fleet::{RunStrategy, SavedStart, Vm, VolumeMode};
use crate::io::Action;
use crate::locality;
use crate::names::{Key, NodeName, VolumeName};

/// A guest may take its time to shut down: three minutes is the longest grace period in common use; beyond that,
/// the kubelet's own rounds and the few seconds of the locks, something is wrong and the VM is given back.
const STOP_WAIT_MAX: Duration = Duration::from_mins(5);
/// Pull of an image and boot of a guest, generously.
const START_WAIT_MAX: Duration = Duration::from_mins(5);
/// From the start until a guest must be as it was: its start, and as long again for its agent, its addresses and what it
/// serves.
pub const GUEST_WAIT_MAX: Duration = Duration::from_mins(10);
/// From the claim until its volume is made, attached and mounted: cloud disks take a minute or two.
const STAGE_WAIT_MAX: Duration = Duration::from_mins(5);
/// Until our holder's volume is taken from its node: after six minutes the attach-detach controller does so by force where the
/// node does not answer, and nothing is left to wait for.
const LET_GO_WAIT_MAX: Duration = Duration::from_mins(6);
/// The binder works within seconds; a swap that takes longer is stuck, and the old volumes are at hand.
const SWAP_WAIT_MAX: Duration = Duration::from_mins(2);
/// An operator that makes a deleted VM anew does so within its loop, a fraction of this.
const GIVE_UP_AFTER: Duration = Duration::from_mins(2);
/// Why a migration is put back after its start.
const NOT_SCHEDULED: &str = "NotScheduled";
/// Somebody who keeps taking our locks away wants the claims back, and is not ours to fight.
pub(super) const LOCKS_BROKEN_MAX: u32 = 3;

/// One migration, as its phase sees it.
pub(super) struct Moment<'a> {
    pub now: BootTime,
    /// When the phase was entered, on our clock.
    pub entered: BootTime,
    pub record: &'a MigrationRecord,
    pub spec: &'a MigrationSpec,
    pub copies: &'a mut Copies,
    pub asking: &'a Asking,
    pub dry_runs: &'a DryRuns,
    /// How often a lock was taken away.
    pub broken: u32,
    /// What we have seen of the VM since the claims were swapped.
    pub seen: Seen,
    /// The start field was given back in this phase.
    pub restored: bool,
    /// Claims and holders of ours that were deleted in this phase.
    pub unstaged: &'a BTreeSet<String>,
    /// What was asked in this phase has failed again and again.
    pub refused: bool,
    pub ctx: &'a Context<'a>,
}

/// What to do next.
#[derive(Debug)]
pub(super) enum Next {
    /// These are still missing; with none, only time or other people's work is.
    Need(Vec<Action>),
    /// Copies are missing, and what must be there so that they can be made.
    Copy { final_: bool, hold: Vec<Action> },
    /// The guest is to be asked, where it is not already.
    AskGuest(GuestQuestion),
    /// The API server is to be asked, where it is not already.
    DryRun(DryRun),
    /// Take orders back.
    DropCopies,
    /// Remove what was published of these new volumes, which nobody ever used.
    RemoveCopies(BTreeSet<VolumeName>),
    /// Go on, with what was learnt.
    Enter(Phase, Vec<Learnt>),
    /// Put everything back.
    Undo(Refusal),
    /// A person must look; nothing more is touched.
    Fail(Refusal),
}

/// What a leader has seen of a VM since its claims were swapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Not all: another one led when they were.
    NotAll,
    /// It had no node: no start on the new volumes was missed.
    NoNode,
    /// It had a node, and may have written to its new volumes, whatever becomes of it.
    HadNode,
}

/// What goes into the record with a new phase.
#[derive(Debug)]
pub(super) enum Learnt {
    /// The owner's start field, before it is changed.
    Stopped(crate::fleet::Owner, SavedStart),
    /// Volumes that provisioners have made, with the one node of each, by the disks' places.
    Made(Vec<(usize, VolumeName, Option<NodeName>)>),
    /// What was made and nobody has a use for any more, in words.
    LeftOver(Vec<String>),
    /// Results of the final copy, in the order of the disks.
    Copied(Vec<super::Copied>),
    /// Answers to checks.
    Checked(Vec<Check>),
    /// The guest before it is stopped.
    Ran(Guest),
    /// Something of the guest that was there before was waited for in vain.
    NotSeenAgain(Refusal),
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
        let key = self.spec.vm_key(&self.record.key)?;
        self.ctx.fleet.vms.get(&key).map(|vm| (key, vm))
    }

    /// Nothing of the VM runs, and its owner does not want it to. True for a bare claim.
    fn is_halted(&self) -> bool {
        self.vm().is_none_or(|(_, vm)| {
            vm.run == RunStrategy::Halted && vm.instance.is_none() && vm.pods.is_empty()
        })
    }

    fn provisioning(&self) -> Next {
        let (mut needs, mut waits, mut made) = (Vec::new(), Vec::new(), Vec::new());
        for (place, disk) in self.record.disks.iter().enumerate() {
            let step = match &disk.staging {
                None => self.make(disk),
                Some(name) => match staging::prepare(self.record, disk, name, self.ctx.fleet) {
                    Ok(step) => step,
                    Err(refusal) => return Next::Undo(refusal),
                },
            };
            match step {
                Step::Act(action) => needs.push(action),
                Step::Wait(what) => waits.push(what),
                Step::Ready(name) if disk.staging.is_some() => made.push((place, name)),
                Step::Ready(_) => {}
            }
            if self.ctx.fleet.volumes.get(&disk.old).is_some_and(|volume| !volume.retained) {
                needs.push(Action::RetainVolume { volume: disk.old.clone() });
            }
        }
        if needs.is_empty() && waits.is_empty() {
            return self.provisioned(made);
        }
        let staged = self.record.disks.iter().any(|disk| disk.staging.is_some());
        let for_others = staged || !waits.is_empty();
        if for_others && self.now.saturating_sub(self.entered) > STAGE_WAIT_MAX {
            if waits.is_empty() {
                waits.push(format!("asked, and not done: {needs:?}"));
            }
            let message = format!("not within {} s: {}", STAGE_WAIT_MAX.as_secs(), waits.join("; "));
            return Next::Undo(Refusal::new("VolumeNotMade", message));
        }
        Next::Need(needs)
    }

    /// A volume of ours below a storage root.
    fn make(&self, disk: &DiskMove) -> Step {
        match self.ctx.fleet.volumes.get(&disk.new.name) {
            None => Step::Act(Action::CreateVolume(disk.new.clone())),
            Some(volume) if volume.deleting => {
                Step::Wait(format!("new volume {} is being deleted by somebody", disk.new.name))
            }
            Some(volume) if !volume.retained => {
                Step::Act(Action::RetainVolume { volume: disk.new.name.clone() })
            }
            Some(_) => Step::Ready(disk.new.name.clone()),
        }
    }

    fn provisioned(&self, made: Vec<(usize, VolumeName)>) -> Next {
        let runs = self.vm().is_some_and(|(_, vm)| vm.instance.is_some());
        let next = if runs || self.spec.pre_copy_only {
            Next::Enter(Phase::PreCopying, vec![])
        } else {
            self.before_stop()
        };
        let Next::Enter(phase, mut learnt) = next else { return next };
        // Of a driver's volume the scheduler knows where it can be reached, and may learn of more nodes.
        let node = |name: &VolumeName| {
            let volume = self.ctx.fleet.volumes.get(name).filter(|volume| volume.source.path().is_some())?;
            locality::pinned_node(self.ctx.fleet, volume)
        };
        let made = made.into_iter().map(|(place, name)| (place, name.clone(), node(&name)));
        learnt.push(Learnt::Made(made.collect()));
        Next::Enter(phase, learnt)
    }

    /// Every new volume can be written.
    fn is_held(&self) -> bool {
        self.record.disks.iter().all(|disk| staging::reach(disk, self.ctx.fleet).is_some())
    }

    fn copy(&self, final_: bool) -> Next {
        let mut hold = staging::hold_again(self.record, self.ctx.fleet);
        if final_ {
            hold.extend(reading::hold(self.record, self.ctx.fleet));
        }
        Next::Copy { final_, hold }
    }

    fn pre_copying(&mut self) -> Next {
        self.copies.leave_out(self.not_mounted());
        match self.copies.outcome(self.now, &self.record.disks) {
            Err(refusal) => Next::Undo(refusal),
            Ok(None) => self.copy(false),
            // No VM is stopped for a copy that cannot be made now.
            Ok(Some(_)) if !self.spec.pre_copy_only && !self.is_held() => self.copy(false),
            Ok(Some(_)) if !self.spec.pre_copy_only => self.before_stop(),
            Ok(Some(_)) => {
                self.copies.freshen(self.now);
                WAIT
            }
        }
    }

    /// Claims whose old volumes no agent finds mounted before the claims are locked: block devices, which no pod of a VM hands
    /// over; and all that only kubelets mount where nobody runs the VM, or will by himself. A holder of ours would keep it from
    /// starting elsewhere.
    fn not_mounted(&self) -> BTreeSet<Key> {
        let vm = self.vm().map(|(_, vm)| vm);
        let runs = vm
            .is_some_and(|vm| vm.run == RunStrategy::Always || vm.instance.is_some() || !vm.pods.is_empty());
        let is_left_out =
            |disk: &&DiskMove| disk.reading.is_some() && (!runs || disk.new.mode == VolumeMode::Block);
        self.record.disks.iter().filter(is_left_out).map(|disk| disk.claim.clone()).collect()
    }

    /// No VM is stopped for what the API server would refuse afterwards, nor while somebody else has its claims, nor for a volume
    /// whose object somebody has deleted: that is made anew.
    fn before_stop(&self) -> Next {
        let made_by_us = self.record.disks.iter().filter(|disk| disk.staging.is_none());
        let missing = made_by_us.filter_map(|disk| match self.make(disk) {
            Step::Act(action) => Some(action),
            Step::Wait(_) | Step::Ready(_) => None,
        });
        let missing: Vec<Action> = missing.collect();
        if !missing.is_empty() {
            return Next::Need(missing);
        }
        if let Err(why) = checks::before_stop(self.record, self.spec, self.ctx) {
            return Next::Undo(why);
        }
        let question = DryRun::of(self.record, self.spec, &self.record.disks, self.ctx);
        match self.dry_runs.outcome(self.now, &question) {
            Ok(_) => self.to_stopping(),
            Err((why, _)) if why.transient => Next::DryRun(question),
            Err((why, _)) => Next::Undo(why),
        }
    }

    fn to_stopping(&self) -> Next {
        let mut learnt = Vec::new();
        if let Some((_, vm)) = self.vm().filter(|(_, vm)| vm.run != RunStrategy::Halted) {
            learnt.push(Learnt::Stopped(vm.owner.clone(), vm.start.clone()));
            let running = vm.instance.as_ref().filter(|instance| instance.phase == "Running");
            learnt.extend(running.map(|instance| Learnt::Ran(Guest::of(instance))));
        }
        Next::Enter(Phase::Stopping, learnt)
    }

    /// A halted VM's claims are locked at once. It may be started again before the last of them is: then it is stopped
    /// once more, and has written to its old volumes only.
    fn stopping(&self) -> Next {
        let mut actions = match point_all(self.record, To::Lock, self.ctx) {
            Ok(None) if reading::are_gone(&self.record.disks, self.ctx) => {
                return Next::Enter(Phase::FinalCopying, vec![]);
            }
            Ok(actions) => actions.unwrap_or_default(),
            Err(refusal) => return Next::Undo(refusal),
        };
        // One of a last copy whose locks were broken: the VM may run again on what it has mounted.
        actions.extend(reading::let_go(&self.record.disks, self.ctx.fleet));
        let (halted, seconds) = (self.is_halted(), STOP_WAIT_MAX.as_secs());
        if self.now.saturating_sub(self.entered) > STOP_WAIT_MAX {
            return Next::Undo(if halted {
                let message = format!(
                    "the claims were not locked, or what had their volumes mounted for us did not go, within {seconds} s"
                );
                Refusal::new("LockTimedOut", message)
            } else {
                let message = format!("the VM did not stop within {seconds} s; it is left as it was");
                Refusal::new("StopTimedOut", message)
            });
        }
        if halted {
            return Next::Need(actions);
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
        if let Some(again) = self.lock_again() {
            return again;
        }
        match self.copies.outcome(self.now, &self.record.disks) {
            Err(mut refusal) => {
                if let Some(missing) = reading::missing(&self.record.disks, self.ctx.fleet) {
                    refusal.message = format!("{}; {missing}", refusal.message);
                }
                Next::Undo(refusal)
            }
            Ok(None) => self.copy(true),
            Ok(Some(copied)) => Next::Enter(Phase::Verifying, vec![Learnt::Copied(copied)]),
        }
    }

    /// Where a claim is not locked any more, what was copied is worth nothing.
    fn lock_again(&self) -> Option<Next> {
        match point_all(self.record, To::Lock, self.ctx) {
            Ok(None) => None,
            Ok(Some(_)) if self.broken >= LOCKS_BROKEN_MAX => {
                let message = format!(
                    "somebody took the lock off a claim {} times during the copy: nobody may use these claims until the migration \
                     has ended",
                    self.broken + 1
                );
                Some(Next::Undo(Refusal::new("LockBroken", message)))
            }
            Ok(Some(_)) => Some(Next::Enter(Phase::Stopping, vec![])),
            Err(refusal) => Some(Next::Undo(refusal)),
        }
    }

    /// The binder checks nothing when a volume is pre-bound to the claim that names it: all of it is checked here.
    fn verifying(&self) -> Next {
        if let Some(again) = self.lock_again() {
            return again;
        }
        let mut answers = Vec::new();
        for disk in &self.record.disks {
            match verify(disk, self.ctx) {
                Ok(found) => answers.push(checks::passed("CopyVerified", found)),
                Err(refusal) => return Next::Undo(refusal),
            }
        }
        answers.extend(self.record.disks.iter().filter_map(|disk| {
            let what = disk.copied.as_ref()?.unreadable.as_ref()?;
            let message =
                format!("{}: {what}; the copy has zeroes there, as spec.unreadable says", disk.claim);
            Some(Check { name: "AllRead".to_owned(), passed: false, message })
        }));
        Next::Enter(Phase::Swapping, vec![Learnt::Checked(answers)])
    }

    fn swapping(&mut self) -> Next {
        // What a copy keeps beside the volume lies inside of one that is mounted: it goes before anybody else sees it.
        let staged = self.record.disks.iter().any(|disk| disk.staging.is_some());
        if staged && !self.copies.dropped(self.now) {
            return Next::DropCopies;
        }
        // The copies are whole: nothing is to be written to them any more before the VM does, and their sources are not
        // needed.
        let mut letting = reading::let_go(&self.record.disks, self.ctx.fleet);
        let held = staging::let_go(&self.record.disks, self.ctx.fleet);
        let is_free = held.is_none() && letting.is_empty();
        letting.extend(held.unwrap_or_default());
        let pointed = if is_free { point_all(self.record, To::New, self.ctx) } else { Ok(Some(letting)) };
        match pointed {
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
        let mut needs: Vec<Action> = self.restore().into_iter().collect();
        needs.extend(claims::leftovers(&self.record.disks, self.ctx));
        // One that was asked for in the last copy, and made late.
        needs.extend(reading::let_go(&self.record.disks, self.ctx.fleet));
        if needs.is_empty() { Next::Enter(Phase::Confirming, vec![]) } else { Next::Need(needs) }
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
}

fn verify(disk: &DiskMove, ctx: &Context<'_>) -> Result<String, Refusal> {
    let refuse = |what: String| Err(Refusal::new("VerificationFailed", what));
    let Some(copied) = &disk.copied else { return refuse(format!("{} has no copy on record", disk.claim)) };
    let Some(new) = ctx.fleet.volumes.get(&disk.new.name).filter(|new| !new.deleting) else {
        let message = format!("new volume {} of claim {} was deleted by somebody", disk.new.name, disk.claim);
        return Err(Refusal::new("VolumeGone", message));
    };
    // One whose object somebody has deleted has given all that it had.
    let old = ctx.fleet.volumes.get(&disk.old);
    if old.is_some_and(|old| !old.retained) || !new.retained {
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
    let found = format!("{}: {} bytes, root {}", disk.claim, copied.total_bytes, copied.root_hash);
    Ok(match old {
        Some(_) => found,
        None => format!(
            "{found}; the object of its old volume {} was deleted by somebody: of that, {} on node {} is left",
            disk.old, disk.source_path, disk.source_node
        ),
    })
}
