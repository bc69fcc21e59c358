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
        self.observe(now, ctx);
        let mut effects = self.guard(ctx);
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

    fn observe(&mut self, now: BootTime, ctx: &Context<'_>) {
        let sources_min = ctx.policy.evacuation.sources_min;
        let mut bad = BTreeSet::new();
        for (node, report) in &ctx.fleet.reports {
            for (disk, health) in &report.disks {
                if is_bad(health, sources_min) {
                    bad.insert((node.clone(), disk.clone()));
                }
            }
        }
        self.bad_since.retain(|id, _| bad.contains(id));
        for id in bad {
            self.bad_since.entry(id).or_insert(now);
        }
    }

    /// A single disk is always allowed: in a small cluster it is more than a quarter of all.
    fn guard(&mut self, ctx: &Context<'_>) -> Vec<Effect> {
        let all: usize = ctx.fleet.reports.values().map(|report| report.disks.len()).sum();
        let allowed = (all * ctx.policy.evacuation.guard_percent / 100).max(1);
        let guarded = self.bad_since.len() > allowed;
        let newly = guarded && !std::mem::replace(&mut self.guarded, guarded);
        let message = || {
            format!(
                "{} of {all} disks turned bad together: no automatic evacuation; look at what they share, then evacuate by hand",
                self.bad_since.len()
            )
        };
        let notice = |message| {
            let reason = "EvacuationGuarded";
            Effect::Notify(Notice {
                severity: Severity::Critical,
                subject: Subject::Coordinator,
                reason,
                message,
            })
        };
        newly.then(|| notice(message())).into_iter().collect()
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
    let sources: BTreeSet<&str> = health.reasons.iter().map(|reason| source_of(reason)).collect();
    health.grade == Grade::Failing && (hard || sources.len() >= sources_min)
}

/// Which sense a reason comes from: two counters of one SMART page are one source.
fn source_of(reason: &str) -> &str {
    const SOURCES: [(&str, &[&str]); 3] = [
        (
            "smart",
            &["Smart", "Nvme", "PendingSectors", "Uncorrectable", "Reallocated", "MediaErrors", "Wear"],
        ),
        ("filesystem", &["Filesystem", "ReadOnlyAfterError", "Btrfs", "HistoricErrors"]),
        ("device", &["IoStalled", "MediumErrors", "SlowDisk", "Canary"]),
    ];
    let known = SOURCES.iter().find(|(_, prefixes)| prefixes.iter().any(|prefix| reason.starts_with(prefix)));
    known.map_or(reason, |(source, _)| source)
}

/// Derived from the disk, so that asking twice is noticed; object names are lower case letters, digits and dashes.
fn name(node: &NodeName, disk: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    format!("auto-{node}-{}", disk.chars().map(safe).collect::<String>().trim_matches('-'))
}
