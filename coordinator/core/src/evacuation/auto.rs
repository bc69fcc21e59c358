//! Asks for an evacuation when a disk starts to fail: opt-in, after a hold, one disk at a time, and never when so many
//! disks turn bad together that the sensing itself is the likelier culprit.
//!
//! ```text
//!   disk ok ─► bad (two sources, or one that leaves no doubt) ─► bad for the hold ─► Evacuation asked for
//!      ▲           │                                                  │
//!      └───────────┴── better again                                   └── guard: too many bad disks ─► told, not done
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::{ACTION_RETRY, EvacuationSpec, by_policy, free_name};
use crate::BootTime;
use crate::fleet::{DiskHealth, Grade};
use crate::io::{Action, Effect, Notice, Severity, Subject};
use crate::migration::Context;
use crate::names::NodeName;

/// Reasons that leave no doubt, each from the device itself: its own threshold crossed, or it refuses writes.
const HARD_REASONS: [&str; 3] = ["SmartFailingNow", "NvmeReadOnly", "NvmeDegraded"];

/// By which sense the reasons are told that make a disk Failing or Failed; the names are the agents'.
pub const SOURCES: [(&str, &[&str]); 3] = [
    (
        "smart",
        &[
            "SmartFailingNow",
            "NvmeSpareLow",
            "NvmeDegraded",
            "NvmeReadOnly",
            "PendingSectors",
            "UncorrectableGrowing",
            "Reallocated",
        ],
    ),
    ("filesystem", &["ReadOnlyAfterError", "FilesystemErrorsGrowing", "BtrfsDeviceErrors"]),
    ("device", &["DeviceGone", "DeviceOffline", "NvmeDead", "IoStalled"]),
];

/// How many disks are bad.
#[derive(Clone, Copy, Debug)]
struct Condition {
    bad: usize,
    all: usize,
    /// So many may be, at most, before it is the sensing that is doubted.
    allowed: usize,
}

type DiskId = (NodeName, String);

/// Disks that are bad, and since when.
#[derive(Clone, Debug, Default)]
pub(super) struct Automatic {
    bad_since: BTreeMap<DiskId, BootTime>,
    asked: BTreeMap<DiskId, BootTime>,
    guarded: bool,
    wake: Option<BootTime>,
}

impl Automatic {
    pub fn step(&mut self, now: BootTime, ctx: &Context<'_>) -> Vec<Effect> {
        self.wake = None;
        let policy = &ctx.policy.evacuation;
        if !policy.automatic {
            self.bad_since.clear();
            return Vec::new();
        }
        let condition = self.observe(now, ctx);
        let mut effects = self.guard(condition);
        if self.guarded || self.one_at_work(ctx) {
            return effects;
        }
        // One disk at a time: the one that is bad for longest, by name where that is equal.
        let due = self
            .bad_since
            .iter()
            .filter(|(id, _)| {
                // What was only told may be done now; what was done, however it ended, is a person's turn.
                of_disk(id, ctx).all(|spec| spec.dry_run && !policy.dry_run)
            })
            .min_by_key(|(id, since)| (**since, (*id).clone()));
        let Some((id, since)) = due.map(|(id, since)| (id.clone(), *since)) else { return effects };
        let asked = self.asked.get(&id).map_or(BootTime::ZERO, |at| *at + ACTION_RETRY);
        let at = (since + policy.hold).max(asked);
        if now < at {
            self.wake = Some(at);
            return effects;
        }
        self.asked.insert(id.clone(), now);
        self.wake = Some(now + ACTION_RETRY);
        let Some(name) = free_name(&name(&id.0, &id.1), ctx) else { return effects };
        effects.push(Effect::Act(Action::CreateEvacuation { name, spec: by_policy(id.0, Some(id.1), ctx) }));
        effects
    }

    pub fn next_deadline(&self) -> Option<BootTime> {
        self.wake
    }

    /// Only what living agents tell now: of one that is silent the last word may be hours old, and nothing can be copied from
    /// its disks.
    fn observe(&mut self, now: BootTime, ctx: &Context<'_>) -> Condition {
        let sources_min = ctx.policy.evacuation.sources_min;
        let reports = ctx.fleet.reports.iter().filter(|(node, _)| ctx.usable.contains(*node));
        let disks: Vec<(DiskId, &DiskHealth)> = reports
            .flat_map(|(node, report)| {
                report.disks.iter().map(|(disk, health)| ((node.clone(), disk.clone()), health))
            })
            .collect();
        let bad = disks.iter().filter(|(_, health)| is_bad(health, sources_min));
        let bad: BTreeSet<DiskId> = bad.map(|(id, _)| id.clone()).collect();
        let failed = disks.iter().filter(|(_, health)| health.grade == Grade::Failed).count();
        let allowed = (disks.len() * ctx.policy.evacuation.guard_percent / 100).max(1);
        let condition = Condition { bad: bad.len() + failed, all: disks.len(), allowed };
        self.bad_since.retain(|id, _| bad.contains(id));
        for id in bad {
            self.bad_since.entry(id).or_insert(now);
        }
        condition
    }

    /// A single disk is always allowed: in a small cluster it is more than a quarter of all.
    fn guard(&mut self, Condition { bad, all, allowed }: Condition) -> Vec<Effect> {
        let guarded = bad > allowed;
        let newly = guarded && !self.guarded;
        self.guarded = guarded;
        let notice = || {
            let message = format!(
                "{bad} of {all} disks turned bad together: no automatic evacuation; look at what they share, then evacuate by hand"
            );
            let (severity, reason) = (Severity::Critical, "EvacuationGuarded");
            Effect::Notify(Notice { severity, subject: Subject::Coordinator, reason, message })
        };
        newly.then(notice).into_iter().collect()
    }

    /// Whether an evacuation that we asked for, of a disk that is still bad, is not over yet.
    fn one_at_work(&self, ctx: &Context<'_>) -> bool {
        self.bad_since.keys().flat_map(|id| of_disk(id, ctx)).any(|spec| !spec.dry_run && !spec.complete)
    }
}

/// Evacuations that we have asked for, of this disk.
fn of_disk<'a>(id: &'a DiskId, ctx: &Context<'a>) -> impl Iterator<Item = &'a EvacuationSpec> {
    let asked = name(&id.0, &id.1);
    let ours = ctx.requests.evacuations.iter().filter(move |(name, _)| name.starts_with(&asked));
    ours.map(|(_, spec)| spec).filter(move |spec| spec.node == id.0 && spec.disk.as_ref() == Some(&id.1))
}

/// Bad enough to move data away: graded Failing, by a reason that leaves no doubt or by several sources. A Failed disk
/// cannot be trusted to be read: that is a person's decision.
fn is_bad(health: &DiskHealth, sources_min: usize) -> bool {
    let hard = health.reasons.iter().any(|reason| HARD_REASONS.contains(&reason.as_str()));
    let sources: BTreeSet<&str> = health.reasons.iter().filter_map(|reason| source_of(reason)).collect();
    health.grade == Grade::Failing && (hard || sources.len() >= sources_min)
}

/// Which sense a reason comes from: two counters of one SMART page are one source, and what only warns, or only tells that a
/// sense is missing, is none. One that is not known here is none either.
fn source_of(reason: &str) -> Option<&'static str> {
    let found = SOURCES.iter().find(|(_, reasons)| reasons.contains(&reason));
    found.map(|(source, _)| *source)
}

/// Derived from the disk, so that asking twice is noticed; object names are lower case letters, digits and dashes.
fn name(node: &NodeName, disk: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    format!("auto-{node}-{}", disk.chars().map(safe).collect::<String>().trim_matches('-'))
}
