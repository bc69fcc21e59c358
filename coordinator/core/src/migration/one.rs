//! Drives one migration from phase to phase: commits first, then acts, and repeats what got lost.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use super::cleanup::{Cleanup, Moves, OldVolume};
use super::copies::{Copies, Manner, Way};
use super::dry_run::{DryRun, DryRuns};
use super::guest::Asking;
use super::phases::{Learnt, Moment, Next, Seen};
use super::{Context, DiskMove, MigrationRecord, MigrationSpec, Phase, Refusal, checks, reading, staging};
use crate::BootTime;
use crate::fleet::Vm;
use crate::io::{Action, Effect, Notice, Record, Severity, Subject};
use crate::names::VolumeName;
use crate::view::{MigrationView, RemovalView};

/// An action whose effect does not show is asked for again: lost answers and restarted shells are repaired by this.
const ACTION_RETRY: Duration = Duration::from_secs(10);
/// The shell has retried what can be retried; this often we try the whole action anew before we put things back.
const ACTION_FAILURES_MAX: u32 = 5;
/// How long a missing report is waited for before a migration is refused.
const REPORT_WAIT_MAX: Duration = Duration::from_mins(1);
/// Reason of an old volume whose object could not be deleted.
const NOT_DELETED: &str = "ObjectNotDeleted";

#[derive(Clone, Debug)]
pub(super) struct Migration {
    pub(super) record: MigrationRecord,
    pub(super) spec: MigrationSpec,
    /// What the store was asked to keep; nothing else happens until it answers.
    pub(super) committing: Option<MigrationRecord>,
    pub(super) commit_at: Option<BootTime>,
    entered: BootTime,
    pub(super) copies: Copies,
    pub(super) asking: Asking,
    pub(super) dry_runs: DryRuns,
    pub(super) cleanup: Cleanup,
    /// Why an old volume whose removal was asked for is still there.
    kept: Option<Refusal>,
    pub(super) asked: BTreeMap<Action, BootTime>,
    failures: u32,
    /// How often a claim's lock was taken away during the last copy.
    broken: u32,
    /// What we have seen of the VM since the claims were swapped.
    seen: Seen,
    /// The start field was given back in this phase.
    pub(super) restored: bool,
    /// Claims and holders of ours that were deleted in this phase.
    pub(super) unstaged: BTreeSet<String>,
    stopped_at: Option<BootTime>,
    /// It runs on its new volumes since then.
    running_at: Option<BootTime>,
    /// When it was driven last.
    looked: BootTime,
    /// Its object is gone, whether another one has its name or not, and with it the place to store anything: it is ended
    /// from memory, as by somebody's word to cancel.
    pub(super) orphan: bool,
}

impl Migration {
    pub(super) fn new(now: BootTime, serial: u64, record: MigrationRecord, spec: MigrationSpec) -> Self {
        Self {
            seen: if record.phase < Phase::Swapping { Seen::NoNode } else { Seen::NotAll },
            record,
            spec,
            committing: None,
            commit_at: None,
            entered: now,
            copies: Copies::new(serial),
            asking: Asking::default(),
            dry_runs: DryRuns::default(),
            cleanup: Cleanup::new(serial),
            kept: None,
            asked: BTreeMap::new(),
            failures: 0,
            broken: 0,
            restored: false,
            unstaged: BTreeSet::new(),
            stopped_at: None,
            running_at: None,
            looked: now,
            orphan: false,
        }
    }

    pub(super) fn newest(&self) -> &MigrationRecord {
        self.committing.as_ref().unwrap_or(&self.record)
    }

    pub(super) fn is_waiting_to_begin(&self) -> bool {
        self.committing.is_none() && matches!(self.record.phase, Phase::Pending | Phase::Checking)
    }

    pub(super) fn view(&self) -> MigrationView {
        let waits = self.record.phase == Phase::PreCopying && self.spec.pre_copy_only;
        MigrationView {
            record: self.record.clone(),
            copies: self.copies.each(),
            waits_for_word: waits && self.copies.has_copied_ahead(self.looked, &self.record.disks),
            removal: self.spec.remove_old.then(|| self.removal()),
        }
    }

    fn removal(&self) -> RemovalView {
        match (self.record.phase, &self.kept) {
            (Phase::Succeeded, _) if !self.wants_cleanup() => RemovalView::Removed,
            (Phase::Succeeded, Some(why)) => RemovalView::Kept(why.clone()),
            (phase, _) if phase.is_final() && phase != Phase::Succeeded => {
                let message =
                    format!("it has ended as {phase:?}: the old volumes are in use, or a person must decide");
                RemovalView::Kept(Refusal::new("NotSucceeded", message))
            }
            _ => RemovalView::UnderWay,
        }
    }

    /// Somebody asked for the old volumes to be removed, and not all are.
    pub(super) fn wants_cleanup(&self) -> bool {
        let there = |disk: &DiskMove| disk.old_volume != OldVolume::Removed;
        let asked = self.spec.remove_old && !self.orphan && self.record.phase == Phase::Succeeded;
        asked && self.record.disks.iter().any(there)
    }

    pub(super) fn drive(
        &mut self,
        now: BootTime,
        ctx: &Context<'_>,
        others: &[MigrationRecord],
        moves: &Moves,
    ) -> Vec<Effect> {
        self.looked = now;
        if self.committing.is_some() || self.commit_at.is_some_and(|at| now < at) {
            return Vec::new();
        }
        if self.wants_cleanup() {
            return self.clean_up(now, ctx, others, moves);
        }
        if self.record.phase.is_final() {
            return Vec::new();
        }
        if matches!(self.record.phase, Phase::Pending | Phase::Checking) {
            return self.check(now, ctx, others);
        }
        if self.failures > ACTION_FAILURES_MAX && self.record.phase < Phase::Starting {
            let why = Refusal::new("ActionFailed", std::mem::take(&mut self.record.message));
            return self.undo(ctx, &why);
        }
        if matches!(self.record.phase, Phase::Starting | Phase::Confirming) && self.has_node(ctx) {
            self.seen = Seen::HadNode;
        }
        if self.record.phase == Phase::Confirming && self.is_running(ctx) {
            self.running_at.get_or_insert(now);
        }
        let mut moment = Moment {
            now,
            entered: self.entered,
            record: &self.record,
            spec: &self.spec,
            copies: &mut self.copies,
            asking: &self.asking,
            dry_runs: &self.dry_runs,
            broken: self.broken,
            seen: self.seen,
            restored: self.restored,
            unstaged: &self.unstaged,
            refused: self.failures > ACTION_FAILURES_MAX,
            ctx,
        };
        let target = |disk: &DiskMove| staging::reach(disk, ctx.fleet);
        match moment.next() {
            Next::Need(actions) => self.ask(now, actions),
            Next::Copy { final_, hold } => {
                let record = &self.record;
                let vm = self.spec.vm_key(&self.record.key).and_then(|key| ctx.fleet.vms.get(&key));
                let way = |disk: &DiskMove| Way {
                    source: reading::reach(vm, disk, final_, ctx.fleet),
                    target: target(disk),
                };
                let manner = Manner { final_, unreadable: self.spec.unreadable };
                let orders = self.copies.order(now, &record.key, ctx.epoch, &record.disks, manner, way);
                let mut effects = self.ask(now, hold);
                effects.extend(orders);
                effects
            }
            Next::AskGuest(question) => self.asking.ask(now, question).into_iter().collect(),
            Next::DryRun(question) => self.dry_runs.ask(now, question).into_iter().collect(),
            Next::DropCopies => {
                self.copies.cancel(now, &self.record.key, ctx.epoch, &self.record.disks, target)
            }
            Next::RemoveCopies(unused) => {
                self.copies.remove(now, &self.record.key, ctx.epoch, &self.record.disks, &unused)
            }
            Next::Enter(phase, learnt) => self.enter(ctx, phase, learnt),
            Next::Undo(why) => self.undo(ctx, &why),
            Next::Fail(why) => self.leave_for(ctx, Phase::Failed, &why),
        }
    }

    fn clean_up(
        &mut self,
        now: BootTime,
        ctx: &Context<'_>,
        others: &[MigrationRecord],
        moves: &Moves,
    ) -> Vec<Effect> {
        let step = self.cleanup.step(now, &self.record, others, moves, ctx);
        let refused = self.kept.take().filter(|why| why.reason == NOT_DELETED && !step.actions.is_empty());
        self.kept = step.why.or(refused);
        if !step.store.is_empty() {
            return self.commit(ctx, |record| {
                for (place, old_volume) in step.store {
                    record.disks[place].old_volume = old_volume;
                }
            });
        }
        let mut effects = self.ask(now, step.actions);
        effects.extend(step.orders);
        effects
    }

    fn vm<'a>(&self, ctx: &Context<'a>) -> Option<&'a Vm> {
        self.spec.vm_key(&self.record.key).and_then(|key| ctx.fleet.vms.get(&key))
    }

    fn has_node(&self, ctx: &Context<'_>) -> bool {
        self.vm(ctx).is_some_and(|vm| vm.node().is_some())
    }

    fn is_running(&self, ctx: &Context<'_>) -> bool {
        let instance = self.vm(ctx).and_then(|vm| vm.instance.as_ref());
        instance.is_some_and(|instance| instance.phase == "Running")
    }

    fn check(&mut self, now: BootTime, ctx: &Context<'_>, others: &[MigrationRecord]) -> Vec<Effect> {
        if self.spec.cancelled {
            return self.commit(ctx, |record| {
                record.phase = Phase::Cancelled;
                record.reason = Some("Cancelled".to_owned());
                "cancelled before anything was done".clone_into(&mut record.message);
            });
        }
        let others: Vec<&MigrationRecord> = others.iter().collect();
        let mut found = checks::preflight(&self.record.key, &self.record.uid, &self.spec, &others, ctx);
        // Asked last: what is refused without it need not be asked.
        if let Ok(disks) = &found.disks {
            let question = DryRun::of(&self.record, &self.spec, disks, ctx);
            match self.dry_runs.outcome(now, &question) {
                Ok(checks) => found.checks.extend(checks),
                Err((why, _)) if why.transient => {
                    return self.dry_runs.ask(now, question).into_iter().collect();
                }
                Err((why, checks)) => {
                    found.checks.extend(checks);
                    found.disks = Err(why);
                }
            }
        }
        let (_, _, what) = self.told(Phase::Provisioning, false);
        match found.disks {
            Ok(disks) => self.commit(ctx, |record| {
                record.phase = Phase::Provisioning;
                record.disks = disks;
                record.checks = found.checks;
                what.clone_into(&mut record.message);
            }),
            Err(why) if why.transient && now.saturating_sub(self.entered) < REPORT_WAIT_MAX => Vec::new(),
            Err(why) => self.commit(ctx, |record| {
                record.phase = Phase::Failed;
                record.reason = Some(why.reason.to_owned());
                record.message = why.message;
                record.checks = found.checks;
            }),
        }
    }

    fn enter(&mut self, ctx: &Context<'_>, phase: Phase, learnt: Vec<Learnt>) -> Vec<Effect> {
        let stops =
            self.record.stopped.is_some() || learnt.iter().any(|fact| matches!(fact, Learnt::Stopped(..)));
        let (_, _, what) = self.told(phase, stops);
        let mut what = what.to_owned();
        if phase == Phase::Succeeded {
            let old = self.record.disks.iter().map(|disk| &disk.old);
            let gone: Vec<&str> =
                old.filter(|old| !ctx.fleet.volumes.contains_key(*old)).map(VolumeName::as_str).collect();
            if !gone.is_empty() {
                let gone = gone.join(", ");
                let _ = write!(
                    what,
                    ", but for the objects of {gone}, which somebody has deleted: their folders are left"
                );
            }
            if let Some(zeroes) = self.zeroes() {
                let _ = write!(what, ". {zeroes}");
            }
            if self.spec.cancelled && !self.orphan {
                what.push_str(
                    ". The word to end it came when the VM could run on its new volumes already: too late",
                );
            }
        }
        self.commit(ctx, |record| {
            // What was to be put back goes on instead.
            if record.phase == Phase::RollingBack && phase == Phase::Starting {
                record.reason = None;
            }
            // Why it is put back is said to the end.
            if record.reason.is_none() {
                record.message = what;
            }
            record.phase = phase;
            for fact in learnt {
                match fact {
                    Learnt::Stopped(owner, start) => record.stopped = Some((owner, start)),
                    // One that was started in the middle has not told everything yet.
                    Learnt::Ran(guest) => _ = record.guest.get_or_insert(guest),
                    Learnt::Made(volumes) => {
                        for (place, name, node) in volumes {
                            let new = &mut record.disks[place].new;
                            (new.name, new.node) = (name, node);
                        }
                    }
                    Learnt::LeftOver(left) => {
                        let left = format!("; left over, to be deleted by hand: {}", left.join(", "));
                        record.message.push_str(&left);
                    }
                    Learnt::Copied(results) => {
                        for (disk, copied) in record.disks.iter_mut().zip(results) {
                            disk.copied = Some(copied);
                        }
                    }
                    Learnt::Checked(checks) => record.checks.extend(checks),
                    Learnt::NotSeenAgain(why) => {
                        record.reason = Some(why.reason.to_owned());
                        record.message = why.message;
                    }
                }
            }
        })
    }

    fn undo(&mut self, ctx: &Context<'_>, why: &Refusal) -> Vec<Effect> {
        self.leave_for(ctx, Phase::RollingBack, why)
    }

    /// Something went wrong.
    fn leave_for(&mut self, ctx: &Context<'_>, phase: Phase, why: &Refusal) -> Vec<Effect> {
        self.commit(ctx, |record| {
            record.phase = phase;
            record.reason = Some(why.reason.to_owned());
            record.message.clone_from(&why.message);
        })
    }

    fn commit(&mut self, ctx: &Context<'_>, change: impl FnOnce(&mut MigrationRecord)) -> Vec<Effect> {
        let mut record = self.record.clone();
        record.epoch = ctx.epoch;
        change(&mut record);
        if record.phase.is_final() && !self.record.phase.is_final() {
            record.downtime_ms =
                self.downtime().map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        }
        self.committing = Some(record.clone());
        vec![Effect::Commit(Record::Migration(Box::new(record)))]
    }

    /// How long the VM stood still: until it ran again, or until now.
    fn downtime(&self) -> Option<Duration> {
        let until = self.running_at.unwrap_or(self.looked);
        self.stopped_at.map(|at| until.saturating_sub(at))
    }

    pub(super) fn committed(&mut self, now: BootTime) -> Vec<Effect> {
        let Some(record) = self.committing.take() else { return Vec::new() };
        let from = std::mem::replace(&mut self.record, record).phase;
        let to = self.record.phase;
        if from > Phase::Stopping && to == Phase::Stopping {
            self.broken += 1;
        }
        if to == Phase::Stopping && self.record.stopped.is_some() {
            self.stopped_at.get_or_insert(now);
        }
        self.entered = now;
        self.commit_at = None;
        self.failures = 0;
        self.restored = false;
        self.unstaged.clear();
        self.asked.clear();
        self.copies.reset();
        self.dry_runs = DryRuns::default();
        if from != to {
            return vec![Effect::Notify(self.notice())];
        }
        let removed = self.record.disks.iter().all(|disk| disk.old_volume == OldVolume::Removed);
        if removed && to == Phase::Succeeded { vec![Effect::Notify(self.removed())] } else { Vec::new() }
    }

    fn ask(&mut self, now: BootTime, actions: Vec<Action>) -> Vec<Effect> {
        let due: Vec<Action> = actions
            .into_iter()
            .filter(|action| self.asked.get(action).is_none_or(|at| now.saturating_sub(*at) >= ACTION_RETRY))
            .collect();
        for action in &due {
            self.asked.insert(action.clone(), now);
        }
        due.into_iter().map(Effect::Act).collect()
    }

    pub(super) fn failed(&mut self, why: &str) {
        if self.record.phase.is_final() {
            self.kept = Some(Refusal::not_yet(NOT_DELETED, why));
            return;
        }
        self.failures += 1;
        why.clone_into(&mut self.record.message);
    }

    fn removed(&self) -> Notice {
        let old: Vec<&str> = self.record.disks.iter().map(|disk| disk.old.as_str()).collect();
        let message = format!("the old volumes and their folders are removed, as asked: {}", old.join(", "));
        let subject = Subject::Migration(self.record.key.clone());
        Notice { severity: Severity::Info, subject, reason: "OldVolumesRemoved", message }
    }

    fn notice(&self) -> Notice {
        let record = &self.record;
        let (severity, reason, what) = self.told(record.phase, record.stopped.is_some());
        let message = match &record.reason {
            Some(why) if what.is_empty() => format!("{why}: {}", record.message),
            Some(_) => what.to_owned(),
            None => record.message.clone(),
        };
        Notice { severity, subject: Subject::Migration(record.key.clone()), reason, message }
    }

    /// What the new volumes have zeroes for.
    fn zeroes(&self) -> Option<String> {
        let of_disk = |disk: &DiskMove| {
            let what = disk.copied.as_ref()?.unreadable.as_ref()?;
            Some(format!("{}: {what}", disk.claim.name))
        };
        let all: Vec<String> = self.record.disks.iter().filter_map(of_disk).collect();
        (!all.is_empty())
            .then(|| format!("Zeroes stand for what the old ones could not give: {}", all.join("; ")))
    }

    /// How a phase is told: as an Event, and in the status while it lasts. What went wrong has words of its own. `stops` says
    /// whether the VM was wanted to run.
    fn told(&self, phase: Phase, stops: bool) -> (Severity, &'static str, &'static str) {
        let moves_vm = self.spec.vm.is_some();
        match phase {
            Phase::Provisioning => {
                (Severity::Info, "MigrationStarted", "checks passed, target volumes are being made")
            }
            Phase::PreCopying if self.spec.pre_copy_only => (
                Severity::Info,
                "PreCopying",
                "copying while the VM runs; it is not stopped before spec.preCopyOnly is false",
            ),
            Phase::PreCopying => (Severity::Info, "PreCopying", "copying while the VM runs"),
            Phase::Stopping if !moves_vm => {
                (Severity::Info, "Halted", "no VM uses the claim: nothing is to be stopped")
            }
            Phase::Stopping if !stops => {
                (Severity::Info, "Halted", "the VM is stopped already, and stays so: locking its claims")
            }
            Phase::Stopping => (Severity::Info, "StoppingVm", "stopping the VM through its owner"),
            Phase::FinalCopying => (
                Severity::Info,
                "FinalCopying",
                "the claims are locked and nobody writes any more: copying what differs",
            ),
            Phase::Verifying => (Severity::Info, "Verifying", "comparing the copy with its source"),
            Phase::Swapping => (Severity::Info, "Swapping", "the claims change volumes"),
            Phase::Starting | Phase::Confirming if !moves_vm => {
                (Severity::Info, "Swapped", "the claim has its new volume")
            }
            Phase::Starting | Phase::Confirming if !stops => (
                Severity::Info,
                "Swapped",
                "the claims have their new volumes; the VM stays stopped, as it was",
            ),
            Phase::Starting => (Severity::Info, "StartingVm", "giving the owner's start field back"),
            Phase::Confirming => {
                (Severity::Info, "Confirming", "waiting for the VM to run on its new volumes")
            }
            Phase::Succeeded if self.record.reason.is_some() => (Severity::Warning, "GuestNotConfirmed", ""),
            Phase::Succeeded if self.zeroes().is_some() => {
                (Severity::Warning, "MigrationSucceeded", "done; the old volumes are kept")
            }
            Phase::Succeeded => (Severity::Info, "MigrationSucceeded", "done; the old volumes are kept"),
            Phase::Failed => (Severity::Warning, "MigrationFailed", ""),
            Phase::RollingBack => (Severity::Warning, "RollingBack", ""),
            Phase::RolledBack => (Severity::Warning, "MigrationRolledBack", ""),
            Phase::Cancelled => (Severity::Info, "MigrationCancelled", ""),
            Phase::Pending | Phase::Checking => (Severity::Info, "MigrationSeen", "to be checked"),
        }
    }
}
