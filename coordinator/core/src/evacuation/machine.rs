//! Drives every evacuation: plans once, then keeps a few migrations going.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::auto::Automatic;
use super::drain::Drains;
use super::returned::Returned;
use super::{ACTION_RETRY, Disruption, EvacuationRecord, EvacuationSpec, PlanState, Planned, live, plan};
use crate::BootTime;
use crate::io::{Action, Effect, Input, Notice, Record, RecordKey, Severity, Subject};
use crate::migration::{Context, Migrations, Phase};
use crate::names::Key;

/// A refused commit is tried again with what was read anew.
const COMMIT_RETRY: Duration = Duration::from_secs(1);

/// All evacuations.
#[derive(Clone, Debug, Default)]
pub struct Evacuations {
    all: BTreeMap<String, Evacuation>,
    automatic: Automatic,
    drains: Drains,
    returned: Returned,
}

#[derive(Clone, Debug, Default)]
struct Evacuation {
    record: Option<EvacuationRecord>,
    committing: Option<EvacuationRecord>,
    next_look: BootTime,
    /// What was asked last.
    asked: Vec<Effect>,
    /// Live migrations that were refused, and why.
    refused: BTreeMap<Key, String>,
}

impl Evacuations {
    /// Takes one input, after the migrations have taken it. Only a leader calls this.
    pub fn step(
        &mut self,
        now: BootTime,
        input: &Input,
        ctx: &Context<'_>,
        migrations: &Migrations,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Leading { records, .. } => {
                self.load(records);
                self.drains = Drains::default();
            }
            Input::Deposed => *self = Self::default(),
            Input::Committed(RecordKey::Evacuation(name)) => {
                if let Some(evacuation) = self.all.get_mut(name) {
                    effects.extend(evacuation.committed(name));
                }
            }
            Input::CommitRefused(RecordKey::Evacuation(name)) => {
                if let Some(evacuation) = self.all.get_mut(name) {
                    evacuation.committing = None;
                    evacuation.next_look = now + COMMIT_RETRY;
                }
            }
            Input::ActionFailed { action: Action::LiveMigrate { key, .. }, why } => {
                for evacuation in self.all.values_mut().filter(|evacuation| evacuation.has(key)) {
                    evacuation.refused.insert(key.clone(), why.clone());
                }
            }
            _ => {}
        }
        self.all.retain(|name, _| ctx.requests.evacuations.contains_key(name));
        for (name, spec) in &ctx.requests.evacuations {
            let evacuation = self.all.entry(name.clone()).or_default();
            effects.extend(evacuation.drive(now, name, spec, ctx, migrations));
        }
        effects.extend(self.automatic.step(now, ctx));
        effects.extend(self.drains.step(now, ctx));
        effects.extend(self.returned.step(now, ctx));
        effects
    }

    /// When to be called again at the latest.
    pub fn next_deadline(&self) -> Option<BootTime> {
        let active = self
            .all
            .values()
            .filter(|evacuation| !evacuation.is_complete())
            .map(|evacuation| evacuation.next_look);
        let asked =
            [self.automatic.next_deadline(), self.drains.next_deadline(), self.returned.next_deadline()];
        active.chain(asked.into_iter().flatten()).min()
    }

    /// What to show.
    pub fn views(&self) -> BTreeMap<String, EvacuationRecord> {
        self.all
            .iter()
            .filter_map(|(name, evacuation)| Some((name.clone(), evacuation.record.clone()?)))
            .collect()
    }

    fn load(&mut self, records: &[Record]) {
        self.all.clear();
        for record in records {
            if let Record::Evacuation(record) = record {
                let evacuation = Evacuation { record: Some(record.clone()), ..Evacuation::default() };
                self.all.insert(record.name.clone(), evacuation);
            }
        }
    }
}

impl Evacuation {
    fn has(&self, migration: &Key) -> bool {
        self.record.iter().flat_map(|record| &record.plan).any(|line| line.migration == *migration)
    }

    fn is_complete(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.complete)
    }

    fn drive(
        &mut self,
        now: BootTime,
        name: &str,
        spec: &EvacuationSpec,
        ctx: &Context<'_>,
        migrations: &Migrations,
    ) -> Vec<Effect> {
        if self.committing.is_some() {
            return Vec::new();
        }
        if self.record.as_ref().is_some_and(|record| record.uid != spec.uid) {
            // Another one of its name.
            *self = Self::default();
        }
        let Some(record) = &self.record else {
            if now < self.next_look {
                return Vec::new();
            }
            return self.commit(first_record(name, spec, ctx));
        };
        if record.complete {
            return Vec::new();
        }
        let mut record = record.clone();
        follow(&mut record, spec, ctx, migrations);
        for line in record.plan.iter_mut().filter(|line| line.live && line.state == PlanState::Waiting) {
            if let Some(why) = self.refused.get(&line.migration) {
                live::fail(line, why);
            }
        }
        settle(&mut record, name, spec, ctx);
        let mut next = begin(&mut record, name, spec, ctx);
        next.extend(proceed(&record, spec, ctx));
        if Some(&record) != self.record.as_ref() {
            record.epoch = ctx.epoch;
            return self.commit(record);
        }
        // What was asked and shows no effect yet is asked again after a while; anything new at once.
        if next.is_empty() || (next == self.asked && now < self.next_look) {
            return Vec::new();
        }
        self.next_look = now + ACTION_RETRY;
        self.asked.clone_from(&next);
        next
    }

    fn commit(&mut self, record: EvacuationRecord) -> Vec<Effect> {
        self.committing = Some(record.clone());
        vec![Effect::Commit(Record::Evacuation(record))]
    }

    fn committed(&mut self, name: &str) -> Vec<Effect> {
        let Some(record) = self.committing.take() else { return Vec::new() };
        let before = self.record.replace(record.clone());
        self.next_look = BootTime::ZERO;
        let notice = |severity, reason, message: String| {
            vec![Effect::Notify(Notice {
                severity,
                subject: Subject::Evacuation(name.to_owned()),
                reason,
                message,
            })]
        };
        match before {
            None => notice(Severity::Info, "EvacuationPlanned", record.message),
            Some(before) if !before.complete && record.complete => {
                let failed = record.plan.iter().any(|line| line.state == PlanState::Failed);
                let severity = if failed { Severity::Warning } else { Severity::Info };
                notice(severity, "EvacuationComplete", record.message)
            }
            Some(_) => Vec::new(),
        }
    }
}

fn first_record(name: &str, spec: &EvacuationSpec, ctx: &Context<'_>) -> EvacuationRecord {
    let refused = |message: String| EvacuationRecord {
        name: name.to_owned(),
        uid: spec.uid.clone(),
        epoch: ctx.epoch,
        plan: Vec::new(),
        complete: true,
        message,
    };
    if !ctx.fleet.nodes.contains_key(&spec.node) {
        return refused(format!(
            "refused: there is no node {}: create another Evacuation, for one of kubectl get nodes",
            spec.node
        ));
    }
    if spec.cancelled {
        return refused("cancelled before anything was done".to_owned());
    }
    if ctx.dead.contains(&spec.node) {
        return refused(format!(
            "refused: node {} is dead, so nothing can be copied from it: bring it back first",
            spec.node
        ));
    }
    if let Some(why) = no_such_disk(spec, ctx) {
        return refused(why);
    }
    let plan = plan::plan(name, spec, ctx);
    let moving: Vec<&Planned> = plan.iter().filter(|line| line.state != PlanState::Failed).collect();
    let bytes: u64 = moving.iter().map(|line| line.bytes).sum();
    let what = if spec.dry_run { "dry run: would move" } else { "moves" };
    let stuck = match plan.len() - moving.len() {
        0 => String::new(),
        stuck => format!("; {stuck} cannot move, each with its reason"),
    };
    let message =
        format!("{what} {bytes} bytes in {} migrations off node {}{stuck}", moving.len(), spec.node);
    let complete = spec.dry_run || plan.is_empty();
    EvacuationRecord {
        name: name.to_owned(),
        uid: spec.uid.clone(),
        epoch: ctx.epoch,
        plan,
        complete,
        message,
    }
}

/// Why nothing can be told of the disk that is named.
fn no_such_disk(spec: &EvacuationSpec, ctx: &Context<'_>) -> Option<String> {
    let disk = spec.disk.as_ref()?;
    let report = ctx.fleet.reports.get(&spec.node);
    let below_roots =
        report.into_iter().flat_map(|report| &report.roots).filter_map(|root| root.disk.as_ref());
    let known: BTreeSet<&String> =
        report.into_iter().flat_map(|report| report.disks.keys()).chain(below_roots).collect();
    if known.contains(disk) {
        return None;
    }
    let known: Vec<&str> = known.into_iter().map(String::as_str).collect();
    let told = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Some(format!("refused: node {} has no disk {disk}; its agent has told of {told}", spec.node))
}

/// What the migrations have come to.
fn follow(record: &mut EvacuationRecord, spec: &EvacuationSpec, ctx: &Context<'_>, migrations: &Migrations) {
    for line in &mut record.plan {
        if line.live {
            live::follow(spec, line, ctx.fleet);
            continue;
        }
        let Some(migration) = migrations.record(&line.migration) else {
            let begun = matches!(line.state, PlanState::Running | PlanState::PreCopied);
            if begun && !ctx.requests.migrations.contains_key(&line.migration) {
                line.state = PlanState::Failed;
                line.message = format!(
                    "MigrationDeleted: VolumeMigration {} was deleted: look where it is, and evacuate again",
                    line.migration
                );
            }
            continue;
        };
        line.state = match migration.phase {
            Phase::Succeeded => PlanState::Succeeded,
            Phase::Failed | Phase::RolledBack | Phase::Cancelled => PlanState::Failed,
            Phase::PreCopying if migrations.waits_for_word(&line.migration) => PlanState::PreCopied,
            _ => PlanState::Running,
        };
        if line.state == PlanState::Failed {
            line.message =
                format!("{}: {}", migration.reason.as_deref().unwrap_or("Failed"), migration.message);
        }
    }
}

fn settle(record: &mut EvacuationRecord, name: &str, spec: &EvacuationSpec, ctx: &Context<'_>) {
    let all_moved = record.plan.iter().all(|line| line.state == PlanState::Succeeded);
    if all_moved && !spec.cancelled {
        tell_what_is_left(record, name, spec, ctx);
    }
    let count = |state| record.plan.iter().filter(|line| line.state == state).count();
    let open = count(PlanState::Waiting) + count(PlanState::Running) + count(PlanState::PreCopied);
    let begun = count(PlanState::Running) + count(PlanState::PreCopied);
    record.complete = if spec.cancelled { begun == 0 } else { open == 0 };
    record.message = format!(
        "{} of {} moved off node {}, {} failed, {} wait for {}{}",
        count(PlanState::Succeeded),
        record.plan.len(),
        spec.node,
        count(PlanState::Failed),
        count(PlanState::PreCopied),
        match spec.disruption {
            Disruption::Window => "the window",
            Disruption::PreCopyOnly => "a word",
            Disruption::Now => "their turn to stop",
        },
        if spec.cancelled { "; cancelled" } else { "" }
    );
}

/// Nobody may take for empty what is not: what came since the plan was made, or came back, is told as what has failed.
fn tell_what_is_left(record: &mut EvacuationRecord, name: &str, spec: &EvacuationSpec, ctx: &Context<'_>) {
    let left = plan::plan(name, spec, ctx).into_iter().filter(|line| !line.live);
    for line in left {
        let same = |known: &&mut Planned| known.subject == line.subject && known.is_vm == line.is_vm;
        let message =
            "CameSince: it is here, and was not when the others had left: evacuate again".to_owned();
        match record.plan.iter_mut().find(same) {
            Some(known) => (known.state, known.message) = (PlanState::Failed, message),
            None => record.plan.push(Planned { state: PlanState::Failed, message, ..line }),
        }
    }
}

/// The word for migrations that have copied ahead, or still do, and may stop their VMs: as many as may move at once.
fn proceed(record: &EvacuationRecord, spec: &EvacuationSpec, ctx: &Context<'_>) -> Vec<Effect> {
    if spec.cancelled || !spec.may_stop() {
        return Vec::new();
    }
    // While a window is open only what is ready: what copies yet might be so when it is closed again.
    let ready = |line: &&Planned| spec.disruption == Disruption::Now || line.state == PlanState::PreCopied;
    let waits = |line: &Planned| {
        let request = ctx.requests.migrations.get(&line.migration);
        request.is_some_and(|request| request.spec.pre_copy_only)
    };
    let begun =
        record.plan.iter().filter(|line| matches!(line.state, PlanState::Running | PlanState::PreCopied));
    let (waiting, moving): (Vec<&Planned>, Vec<&Planned>) = begun.partition(|line| waits(line));
    let free = ctx.policy.evacuation.concurrent_max.saturating_sub(moving.len());
    let word = |line: &Planned| Effect::Act(Action::ProceedMigration { key: line.migration.clone() });
    waiting.into_iter().filter(ready).take(free).map(word).collect()
}

/// Creations of the next migrations. A line without a destination waits and says so.
fn begin(record: &mut EvacuationRecord, name: &str, spec: &EvacuationSpec, ctx: &Context<'_>) -> Vec<Effect> {
    let begun = |line: &&Planned| matches!(line.state, PlanState::Running | PlanState::PreCopied);
    if spec.cancelled {
        let cancel = |line: &Planned| Effect::Act(Action::CancelMigration { key: line.migration.clone() });
        // One that moves while it runs ends by itself, and is as well there as here.
        let ours = record.plan.iter().filter(|line| !line.live);
        return ours.filter(begun).map(cancel).collect();
    }
    let running = record.plan.iter().filter(|line| line.state == PlanState::Running).count();
    let waiting = record.plan.iter_mut().filter(|line| line.state == PlanState::Waiting);
    let mut effects = Vec::new();
    for line in waiting {
        if effects.len() + running >= ctx.policy.evacuation.concurrent_max {
            break;
        }
        if line.live {
            if live::can_move(spec, line, ctx) {
                effects.push(Effect::Act(live::action(spec, line)));
            }
            continue;
        }
        if !plan::is_here(spec, line, ctx) {
            line.state = PlanState::Succeeded;
            "it has left already".clone_into(&mut line.message);
            continue;
        }
        let Some(destination) = plan::destination(spec, line, ctx) else {
            plan::NO_ROOM.clone_into(&mut line.message);
            continue;
        };
        line.message.clear();
        let spec = plan::migration_spec(name, spec, line, destination);
        effects.push(Effect::Act(Action::CreateMigration { key: line.migration.clone(), spec }));
    }
    effects
}
