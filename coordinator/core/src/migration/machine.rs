//! All migrations: takes up what is asked for, drives each, and sweeps up what nobody needs any more.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cleanup::{Moves, OldVolume};
use super::one::Migration;
use super::{Context, DiskMove, MigrationRecord, Phase, claims, staging};
use crate::BootTime;
use crate::io::{Action, Effect, Input, Record, RecordKey};
use crate::names::{Key, Uid};
use crate::view::MigrationView;

/// A refused commit means that the object changed under us, by a person's edit for example: read anew, then again.
const COMMIT_RETRY: Duration = Duration::from_secs(1);
/// Migrations at work at once: each takes a target's disk and network; more of them only make each one longer, and
/// with it the time during which a VM stands still.
pub(crate) const ACTIVE_MAX: usize = 4;
/// What keeps an old volume whose removal was asked for is looked at this often.
const CLEANUP_LOOK_EVERY: Duration = Duration::from_secs(10);
/// What a migration has left is in nobody's way, and what one is about to make must not be taken for left: a request that is
/// read late is read within seconds.
const SWEEP_EVERY: Duration = Duration::from_mins(1);
/// While a migration is active, facts that change without an event of ours are looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// All migrations, final ones included.
#[derive(Clone, Debug, Default)]
pub struct Migrations {
    all: BTreeMap<Key, Migration>,
    /// Records that were listed and whose requests have not been read yet: never begun anew.
    listed: BTreeMap<Key, MigrationRecord>,
    /// How many were taken up: the same epoch may list one again, and another one may come under its name.
    taken: u64,
    looked: BootTime,
    /// When claims and pods that nobody needs are looked for.
    sweep_at: Option<BootTime>,
}

impl Migrations {
    /// Takes one input. Only a leader calls this.
    pub fn step(&mut self, now: BootTime, input: &Input, ctx: &Context<'_>) -> Vec<Effect> {
        self.looked = now;
        let mut effects = Vec::new();
        match input {
            Input::Leading { records, .. } => self.load(records),
            Input::Deposed => {
                self.sweep_at = None;
                self.all.clear();
                self.listed.clear();
            }
            Input::Committed(RecordKey::Migration(key)) => {
                if let Some(migration) = self.all.get_mut(key) {
                    effects.extend(migration.committed(now));
                }
            }
            Input::CommitRefused(RecordKey::Migration(key)) => {
                if let Some(migration) = self.all.get_mut(key) {
                    migration.committing = None;
                    migration.commit_at = Some(now + COMMIT_RETRY);
                }
            }
            Input::Progress { order, state, .. } => {
                let _ = self.all.values_mut().any(|migration| {
                    migration.copies.progress(now, order, state)
                        || migration.cleanup.progress(now, order, state)
                });
            }
            Input::GuestAnswered { question, answer } => {
                if let Some(migration) = self.all.get_mut(&question.migration) {
                    migration.asking.answered(question, answer);
                }
            }
            Input::DryRunAnswered { question, answer } => {
                if let Some(migration) = self.all.get_mut(&question.migration) {
                    migration.dry_runs.answered(question, answer);
                }
            }
            Input::Acted(action @ Action::RestoreStart { .. }) => {
                self.asking(action, |migration| migration.restored = true);
            }
            Input::Acted(action @ Action::Unstage { name, .. }) => {
                self.asking(action, |migration| _ = migration.unstaged.insert(name.clone()));
            }
            Input::ActionFailed { action, why } => self.asking(action, |migration| migration.failed(why)),
            _ => {}
        }
        self.take_requests(now, ctx);
        effects.extend(self.drive(now, ctx));
        effects.extend(self.sweep(now, ctx).into_iter().map(Effect::Act));
        effects
    }

    /// Claims, pods and locks of ours that nobody needs any more, once we know of every migration.
    fn sweep(&mut self, now: BootTime, ctx: &Context<'_>) -> Vec<Action> {
        let since = *self.sweep_at.get_or_insert(now + SWEEP_EVERY);
        if now < since {
            return Vec::new();
        }
        self.sweep_at = Some(now + SWEEP_EVERY);
        let newest = || self.all.values().map(Migration::newest).chain(self.listed.values());
        let at_work = || newest().filter(|record| !record.phase.is_final());
        let mut actions = claims::sweep(at_work().flat_map(|record| &record.disks), ctx.fleet);
        let wanted = at_work().flat_map(|record| {
            // An old volume is read by way of us in the last copy alone.
            let reads = matches!(record.phase, Phase::FinalCopying | Phase::Verifying);
            let reading = record.disks.iter().filter_map(move |disk| disk.reading.as_ref().filter(|_| reads));
            record.disks.iter().filter_map(|disk| disk.staging.as_ref()).chain(reading)
        });
        actions.extend(staging::sweep(&wanted.collect(), ctx.fleet));
        actions
    }

    /// When to be called again at the latest.
    pub fn next_deadline(&self) -> Option<BootTime> {
        let active = self.all.values().filter(|migration| !migration.record.phase.is_final());
        let active = active.map(|migration| {
            let look = self.looked + LOOK_EVERY;
            migration.copies.next_deadline().map_or(look, |at| at.min(look))
        });
        let removing = self.all.values().any(Migration::wants_cleanup);
        active.chain(removing.then(|| self.looked + CLEANUP_LOOK_EVERY)).min()
    }

    /// What to show.
    pub fn views(&self) -> BTreeMap<Key, MigrationView> {
        let stored = self.all.iter().filter(|(_, migration)| !migration.orphan);
        stored.map(|(key, migration)| (key.clone(), migration.view())).collect()
    }

    /// Where a migration stands, and why.
    pub(crate) fn record(&self, key: &Key) -> Option<&MigrationRecord> {
        self.all.get(key).map(|migration| &migration.record)
    }

    /// Copied, and not allowed to stop the VM.
    pub(crate) fn waits_for_word(&self, key: &Key) -> bool {
        self.all.get(key).is_some_and(|migration| {
            let copied = migration.copies.outcome(self.looked, &migration.record.disks);
            let copying = migration.record.phase == Phase::PreCopying;
            copying && migration.spec.pre_copy_only && matches!(copied, Ok(Some(_)))
        })
    }

    fn load(&mut self, records: &[Record]) {
        let listed = records.iter().filter_map(|record| match record {
            Record::Migration(record) => Some((record.key.clone(), (**record).clone())),
            _ => None,
        });
        self.listed = listed.collect();
        // Nobody but us knows of those whose objects are gone. What they have sent to the store is not answered any more.
        self.all.retain(|key, migration| {
            migration.committing = None;
            (migration.orphan || !self.listed.contains_key(key)) && migration.record.phase.is_at_work()
        });
    }

    fn asking(&mut self, action: &Action, f: impl Fn(&mut Migration)) {
        self.all.values_mut().filter(|migration| migration.asked.contains_key(action)).for_each(f);
    }

    fn take_requests(&mut self, now: BootTime, ctx: &Context<'_>) {
        // An orphan that has done nothing yet may simply end; what it has sent to the store is answered first, so that no
        // later one of its name takes the answer for its own.
        self.all.retain(|key, migration| {
            let request = ctx.requests.migrations.get(key);
            migration.orphan |= request.is_none_or(|request| request.uid != migration.record.uid);
            !migration.orphan || migration.committing.is_some() || migration.record.phase.is_at_work()
        });
        for (key, request) in &ctx.requests.migrations {
            let migration = self.all.entry(key.clone()).or_insert_with(|| {
                let new = || MigrationRecord::new(key.clone(), request.uid.clone(), ctx.epoch);
                // One of an earlier object is ended first.
                let ours = |record: &MigrationRecord| record.uid == request.uid || record.phase.is_at_work();
                let listed = self.listed.remove(key).filter(ours);
                self.taken += 1;
                Migration::new(now, self.taken, listed.unwrap_or_else(new), request.spec.clone())
            });
            migration.orphan |= migration.record.uid != request.uid;
            if !migration.orphan {
                migration.spec.cancelled = request.spec.cancelled;
                migration.spec.pre_copy_only = request.spec.pre_copy_only;
                migration.spec.remove_old = request.spec.remove_old;
                migration.spec.unreadable = request.spec.unreadable;
                migration.spec.probe.clone_from(&request.spec.probe);
            }
        }
        for migration in self.all.values_mut().filter(|migration| migration.orphan) {
            migration.spec.cancelled = true;
            // Nobody would learn of the answer.
            migration.spec.probe = None;
        }
    }

    fn drive(&mut self, now: BootTime, ctx: &Context<'_>) -> Vec<Effect> {
        let mut effects = Vec::new();
        let keys: Vec<Key> = self.all.keys().cloned().collect();
        for key in keys {
            let mut others: Vec<MigrationRecord> = Vec::new();
            let waits = self.all[&key].is_waiting_to_begin();
            if waits || self.all[&key].wants_cleanup() {
                others = self.at_work().filter(|other| other.key != key).cloned().collect();
            }
            if waits && self.turns_are_taken() {
                continue;
            }
            let moves = self.moves(&key);
            let Some(migration) = self.all.get_mut(&key) else { continue };
            let asked = migration.drive(now, ctx, &others, &moves);
            let (commits, rest): (Vec<_>, Vec<_>) =
                asked.into_iter().partition(|effect| migration.orphan && matches!(effect, Effect::Commit(_)));
            effects.extend(rest);
            if !commits.is_empty() {
                effects.extend(migration.committed(now));
            }
        }
        effects
    }

    /// How many copy, or hold up a VM. One that has copied ahead and waits for a word takes nobody's turn, and neither does one
    /// whose VM has been given back.
    fn turns(&self) -> usize {
        let takes =
            |record: &&MigrationRecord| record.phase < Phase::Confirming && !self.waits_for_word(&record.key);
        self.at_work().filter(takes).count()
    }

    /// Whether a migration that waits to begin has to wait for another one's end.
    pub(crate) fn turns_are_taken(&self) -> bool {
        self.turns() >= ACTIVE_MAX
    }

    /// Which volumes have replaced which, for a migration that removes old ones.
    fn moves(&self, key: &Key) -> Moves {
        let wanted = self.all[key].wants_cleanup();
        let records = self.all.values().filter(|_| wanted).map(|migration| &migration.record);
        Moves::of(records)
    }

    /// Claims that change hands: from the stop for the last copy until all of it is over.
    pub fn switching(&self) -> impl Iterator<Item = &Key> {
        let open = self.all.values().map(Migration::newest);
        let open = open.filter(|record| !record.phase.is_before_stop() && !record.phase.is_final());
        open.flat_map(|record| record.disks.iter().map(|disk| &disk.claim))
    }

    /// Records of the migrations that have begun and not ended, as they will be once stored.
    fn at_work(&self) -> impl Iterator<Item = &MigrationRecord> {
        let newest = |migration: &'_ Migration| -> bool {
            !migration.newest().phase.is_final() && !migration.is_waiting_to_begin()
        };
        self.all.values().filter(move |migration| newest(migration)).map(Migration::newest)
    }
}

impl MigrationRecord {
    /// Something of it is to be finished or put back: its disks, or the removal of an old volume.
    pub fn is_open(&self) -> bool {
        let removing = |disk: &DiskMove| disk.old_volume == OldVolume::Removing;
        self.phase.is_at_work() || self.disks.iter().any(removing)
    }

    pub(super) fn new(key: Key, uid: Uid, epoch: u64) -> Self {
        Self {
            key,
            uid,
            epoch,
            phase: Phase::Pending,
            reason: None,
            message: String::new(),
            stopped: None,
            guest: None,
            disks: Vec::new(),
            checks: Vec::new(),
            downtime_ms: None,
        }
    }
}
