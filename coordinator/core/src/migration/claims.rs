//! To which volume each claim points while a VM's disks change hands, so that the VM can run on all of its old volumes
//! or on all of its new ones, and on nothing else: whoever starts it, whoever leads, whether anybody looks or not.
//!
//! ```text
//!      Old ────────────────► Locked ────────────────► New
//!   before the stop,        the last copy,           the VM starts here
//!   and put back            its verification
//!       ▲                     │     ▲                  │
//!       └─────────────────────┘     └──────────────────┘   never started: put back, by way of Locked again
//! ```
//!
//! A **lock** is a volume of ours that no node can reach. A claim that is bound to it is there as before (for `KubeVirt`,
//! CDI and an owner that would make a missing one anew), but no pod that uses it can be scheduled. From this follows
//! everything:
//!
//! - A claim goes only when no scheduled pod uses it (the API server's own protection). Once every claim is locked,
//!   nobody writes to the old volumes any more, and a copy made *after* that has every write that the guest ever made.
//!   No leader needs to have seen what the VM did before.
//! - The first claim leaves Old before the last copy, and the first one becomes New after it: no claim is New while
//!   another is Old, so that a VM which somebody starts in between waits, unscheduled, and never runs on a mix.
//!   [`put_back`] keeps to that: all that is New is locked before anything becomes Old.
//! - One volume at a time is pre-bound to the claim's name, so that an owner which makes the claim anew, in the moment in
//!   which it is gone, gets that one. The new volume is therefore kept for another name ([`reserved`]) until the swap.
//! - An admission policy says to who starts such a VM why it does not run ([`LOCK_LABEL`]). It may be missing, late or
//!   out of order: nothing depends on it.
//! - Once all claims are New, the VM may have run there, and the migration goes on, which is whole and loses nothing. It
//!   is put back only where the VM was wanted to run for minutes and never scheduled, and we have led all that time.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use super::dry_run::NewClaim;
use super::{Context, DiskMove, MigrationRecord, Refusal};
use crate::fleet::{Claim, ClaimRef, Fleet, Volume, folder};
use crate::io::{Action, ClaimTemplate, NewVolume};
use crate::names::{Key, VolumeName};

/// Label of a claim that is locked: the admission policy of `deploy/` refuses what would use it.
pub const LOCK_LABEL: &str = "somersault.novasphere.dev/locked";
/// Annotation of a claim that is locked: the migration of its namespace that holds it.
pub const LOCKED_BY: &str = "somersault.novasphere.dev/locked-by";

/// To which of its volumes a claim shall point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum To {
    New,
    Lock,
    Old {
        /// How long everything has been put back so far.
        waited: Duration,
    },
}

/// What a claim still needs until it points to the wanted volume.
enum Pointing {
    Done,
    /// Other people's turn.
    Wait,
    Act(Action),
}

/// The name for which a new volume is kept until the swap: no claim has it, and no claim of another name gets the volume.
pub(crate) fn reserved(claim: &Key, volume: &str) -> Key {
    Key::new(claim.namespace.clone(), volume)
}

/// The folder of a lock: it is nowhere, and never mounted.
pub const LOCK_FOLDER: &str = "/nowhere";

/// Agents list their roots each minute and report each minute: what is told after this was looked at since.
const LISTED_AGAIN: Duration = Duration::from_secs(150);
/// Age of a listing when it is reported, at most.
const LISTED_AGE_MAX: Duration = Duration::from_secs(75);

/// How the name of a lock ends, after that of the new volume.
const LOCK_SUFFIX: &str = "-lock";

/// The volume that locks a disk's claim.
fn lock(disk: &DiskMove) -> VolumeName {
    VolumeName(format!("{}{LOCK_SUFFIX}", disk.new.name))
}

/// The new volume of the disk whose claim has this lock.
pub(crate) fn locked_for(lock: &VolumeName) -> Option<VolumeName> {
    lock.as_str().strip_suffix(LOCK_SUFFIX).map(VolumeName::from)
}

/// Whether a claim is locked, and by what, in words.
pub(crate) fn locked(key: &Key, claim: &Claim) -> Option<String> {
    claim.labels.contains_key(LOCK_LABEL).then(|| {
        let by = claim.annotations.get(LOCKED_BY).map_or("an unknown name", String::as_str);
        format!("claim {key} is locked by VolumeMigration {by}, which has its disk between two volumes, or left it there")
    })
}

/// All disks, one step each; `None` where nothing is missing.
pub(super) fn point_all(
    record: &MigrationRecord,
    to: To,
    ctx: &Context<'_>,
) -> Result<Option<Vec<Action>>, Refusal> {
    point_each(record, |_| true, to, ctx)
}

/// One step of all disks towards their old volumes, by way of their locks where one has its new volume.
pub(super) fn put_back(
    record: &MigrationRecord,
    waited: Duration,
    ctx: &Context<'_>,
) -> Result<Option<Vec<Action>>, Refusal> {
    if record.disks.iter().any(|disk| is_new(disk, ctx)) {
        return point_each(record, |disk| !is_old(disk, ctx), To::Lock, ctx);
    }
    point_all(record, To::Old { waited }, ctx)
}

/// Every old volume is there: copies of them are not needed. Of one whose object somebody has deleted nobody knows whether
/// its data is.
pub(super) fn all_old_stay(disks: &[DiskMove], ctx: &Context<'_>) -> bool {
    let stays = |disk: &DiskMove| ctx.fleet.volumes.get(&disk.old).is_some_and(|volume| !volume.deleting);
    disks.iter().all(stays)
}

/// Every claim has its new volume: the VM can run there.
pub(super) fn all_new(disks: &[DiskMove], ctx: &Context<'_>) -> bool {
    disks.iter().all(|disk| is_new(disk, ctx))
}

/// Some claim was deleted, and a pod keeps it.
pub(super) fn any_going(disks: &[DiskMove], ctx: &Context<'_>) -> bool {
    disks.iter().any(|disk| ctx.fleet.claims.get(&disk.claim).is_some_and(|claim| claim.deleting))
}

/// The objects of volumes that nobody needs any more: the locks, and new volumes that no claim ever had.
pub(super) fn leftovers(disks: &[DiskMove], ctx: &Context<'_>) -> Vec<Action> {
    let locks = disks.iter().map(lock).filter(|lock| ctx.fleet.volumes.contains_key(lock));
    forget_new(disks, was_never_bound, ctx)
        .chain(locks.map(|volume| Action::ForgetVolume { volume }))
        .collect()
}

/// Locks that no migration at work has and no claim is bound to any more, as of one that ended while its claims were locked,
/// once somebody has given those a volume by hand.
pub(super) fn sweep<'a>(at_work: impl Iterator<Item = &'a DiskMove>, fleet: &Fleet) -> Vec<Action> {
    let wanted: BTreeSet<VolumeName> = at_work.map(lock).collect();
    let is_left = |(name, volume): &(&VolumeName, &Volume)| {
        volume.source.path() == Some(LOCK_FOLDER)
            && locked_for(name).is_some()
            && volume.phase == "Released"
            && !wanted.contains(*name)
    };
    let left = fleet.volumes.iter().filter(is_left);
    left.map(|(name, _)| Action::ForgetVolume { volume: name.clone() }).collect()
}

/// Some new volume was made and never bound by any claim: the VM cannot have run on the new ones, for that takes all of them.
pub(super) fn never_all_new(disks: &[DiskMove], ctx: &Context<'_>) -> bool {
    let unbound = |volume: &Volume| volume.claim.as_ref().is_some_and(|claim| claim.uid.is_none());
    disks.iter().any(|disk| ctx.fleet.volumes.get(&disk.new.name).is_some_and(unbound))
}

/// The objects of new volumes whose claims went back to the old ones, for a VM that never ran on the new ones.
pub(super) fn given_back(disks: &[DiskMove], ctx: &Context<'_>) -> Vec<Action> {
    forget_new(disks, |volume| is_given_back(volume, ctx), ctx).collect()
}

/// New volumes below roots whose objects are about to be forgotten: [`leftovers`], and where `never_ran` what was
/// [`given_back`].
pub(super) fn unused(disks: &[DiskMove], never_ran: bool, ctx: &Context<'_>) -> BTreeSet<VolumeName> {
    let is_unused = |volume: &Volume| was_never_bound(volume) || never_ran && is_given_back(volume, ctx);
    let below_root = disks.iter().filter(|disk| disk.staging.is_none()).map(|disk| &disk.new.name);
    below_root.filter(|name| ctx.fleet.volumes.get(*name).is_some_and(is_unused)).cloned().collect()
}

/// No claim ever had it.
fn was_never_bound(volume: &Volume) -> bool {
    volume.claim.as_ref().is_none_or(|claim| claim.uid.is_none())
}

/// The claim that had it is gone.
fn is_given_back(volume: &Volume, ctx: &Context<'_>) -> bool {
    let gone = |claim: &ClaimRef| {
        claim
            .uid
            .as_ref()
            .is_some_and(|uid| ctx.fleet.claims.get(&claim.key).is_none_or(|now| now.uid != *uid))
    };
    volume.claim.as_ref().is_some_and(gone)
}

fn forget_new<'a>(
    disks: &'a [DiskMove],
    which: impl Fn(&Volume) -> bool + 'a,
    ctx: &'a Context<'_>,
) -> impl Iterator<Item = Action> + 'a {
    // What a provisioner has made is not forgotten: its storage would be nobody's.
    let volumes = disks.iter().filter(|disk| disk.staging.is_none()).map(|disk| &disk.new.name);
    let unneeded = volumes.filter(move |name| ctx.fleet.volumes.get(*name).is_some_and(&which));
    unneeded.map(|volume| Action::ForgetVolume { volume: volume.clone() })
}

fn points_to(disk: &DiskMove, volume: &VolumeName, ctx: &Context<'_>) -> bool {
    ctx.fleet.claims.get(&disk.claim).is_some_and(|claim| claim.volume.as_ref() == Some(volume))
}

fn is_new(disk: &DiskMove, ctx: &Context<'_>) -> bool {
    points_to(disk, &disk.new.name, ctx)
}

fn is_old(disk: &DiskMove, ctx: &Context<'_>) -> bool {
    points_to(disk, &disk.old, ctx)
}

fn point_each(
    record: &MigrationRecord,
    which: impl Fn(&DiskMove) -> bool,
    to: To,
    ctx: &Context<'_>,
) -> Result<Option<Vec<Action>>, Refusal> {
    let mut actions = Vec::new();
    let mut done = true;
    for disk in record.disks.iter().filter(|disk| which(disk)) {
        match point(record, disk, to, ctx)? {
            Pointing::Done => {}
            Pointing::Wait => done = false,
            Pointing::Act(action) => actions.push(action),
        }
    }
    Ok(if done && actions.is_empty() { None } else { Some(actions) })
}

/// One step towards the claim being bound to the wanted volume. Only claims that we know are deleted: the one that we
/// found, the one that we made, or one that is not bound to anything yet.
fn point(record: &MigrationRecord, disk: &DiskMove, to: To, ctx: &Context<'_>) -> Result<Pointing, Refusal> {
    let lock = lock(disk);
    // From where a claim may come: never from Old to New, nor back, but by way of the lock.
    let (wanted, from): (&VolumeName, &[&VolumeName]) = match to {
        To::New => (&disk.new.name, &[&lock]),
        To::Lock => (&lock, &[&disk.old, &disk.new.name]),
        To::Old { .. } => (&disk.old, &[&lock]),
    };
    let claim = ctx.fleet.claims.get(&disk.claim);
    if claim.is_some_and(|claim| claim.deleting) {
        return Ok(Pointing::Wait);
    }
    if matches!(to, To::Old { .. }) && claim.is_some_and(|claim| claim.uid == disk.claim_uid) {
        return Ok(Pointing::Done);
    }
    let prebound = |name: &VolumeName| {
        let reference = ctx.fleet.volumes.get(name).and_then(|volume| volume.claim.as_ref());
        reference.is_some_and(|claim| claim.key == disk.claim && claim.uid.is_none())
    };
    if to != To::New && prebound(&disk.new.name) {
        let claim = reserved(&disk.claim, disk.new.name.as_str());
        return Ok(Pointing::Act(Action::PrebindVolume { volume: disk.new.name.clone(), claim }));
    }
    let Some(volume) = ctx.fleet.volumes.get(wanted) else {
        return match to {
            To::Lock => {
                let (claim, template) = (disk.claim.clone(), lock_template(disk, ctx));
                Ok(Pointing::Act(Action::CreateLock { volume: lock, claim, template }))
            }
            To::Old { waited } => make_again(disk, waited, ctx),
            To::New => Err(gone(disk, wanted)),
        };
    };
    // One that goes with its next claim is bound to none.
    if volume.deleting && claim.is_none_or(|claim| claim.volume.as_ref() != Some(wanted)) {
        return if to == To::New { Err(gone(disk, wanted)) } else { Ok(Pointing::Wait) };
    }
    let prebind =
        || Pointing::Act(Action::PrebindVolume { volume: wanted.clone(), claim: disk.claim.clone() });
    let Some(claim) = claim else {
        if !prebound(wanted) {
            return Ok(prebind());
        }
        let template = template(&record.key, disk, to, &volume.class);
        let claim = disk.claim.clone();
        return Ok(Pointing::Act(Action::CreateClaim { claim, template, volume: wanted.clone() }));
    };
    match &claim.volume {
        Some(bound) if bound == wanted => {
            let mutual = volume.claim.as_ref().and_then(|claim| claim.uid.as_ref()) == Some(&claim.uid);
            Ok(if mutual {
                Pointing::Done
            } else if prebound(wanted) {
                Pointing::Wait
            } else {
                prebind()
            })
        }
        Some(bound) if !from.contains(&bound) => {
            let message = format!(
                "somebody bound claim {} to {bound} during the migration: a person must look",
                disk.claim
            );
            Err(Refusal::new("ClaimTakenOver", message))
        }
        // Somebody else re-created the claim: our pre-bound volume wins it.
        None if prebound(wanted) => Ok(Pointing::Wait),
        // Before the claim goes: an owner that re-creates it at once would otherwise get a blank volume.
        _ if !prebound(wanted) => Ok(prebind()),
        _ => Ok(Pointing::Act(Action::DeleteClaim { claim: disk.claim.clone(), uid: claim.uid.clone() })),
    }
}

fn gone(disk: &DiskMove, volume: &VolumeName) -> Refusal {
    let message =
        format!("volume {volume} of claim {} was deleted by somebody during the migration", disk.claim);
    Refusal::new("VolumeGone", message)
}

/// The object of the old volume, which somebody has deleted, once more for the same folder: where the agent of its node has
/// seen that folder since, the object is all that is gone.
fn make_again(disk: &DiskMove, waited: Duration, ctx: &Context<'_>) -> Result<Pointing, Refusal> {
    let refused = |why: &str| {
        let mut refusal = gone(disk, &disk.old);
        let _ = write!(
            refusal.message,
            ", and {why}: the claim stays locked. What the data can be had from: kubectl somersault runbook"
        );
        Err(refusal)
    };
    if disk.reading.is_some() {
        return refused("only who made it can say what it was");
    }
    if !ctx.fleet.nodes.contains_key(&disk.source_node) {
        return refused(&format!("its node {} is not in the cluster any more", disk.source_node));
    }
    let report = ctx.fleet.reports.get(&disk.source_node).filter(|_| ctx.usable.contains(&disk.source_node));
    let root = report.and_then(|report| report.root_of(&disk.source_path).filter(|root| root.is_seen()));
    // Until its node, or its disk, is back.
    let (Some(report), Some(root)) = (report, root) else { return Ok(Pointing::Wait) };
    // Who deletes the object may have deleted the folder just before: a listing of earlier says nothing.
    let listed_since = waited >= LISTED_AGAIN && root.listed_age.is_some_and(|age| age <= LISTED_AGE_MAX);
    if !listed_since {
        return Ok(Pointing::Wait);
    }
    if !report.usage.contains_key(folder(&disk.source_path)) {
        return refused(&format!("folder {} is not on node {} any more", disk.source_path, disk.source_node));
    }
    Ok(Pointing::Act(Action::CreateVolume(NewVolume {
        name: disk.old.clone(),
        class: disk.template.class.clone(),
        node: (!root.shared).then(|| disk.source_node.clone()),
        path: disk.source_path.clone(),
        capacity_bytes: disk.template.requested_bytes,
        access_modes: disk.template.access_modes.clone(),
        mode: disk.template.mode,
        claim: reserved(&disk.claim, disk.old.as_str()),
    })))
}

/// The claims that are made anew between the stop and the start, in their order: all locks, then all on the new volumes.
/// To go back makes claims as large, and of the class, that the locks have.
pub(super) fn to_make(migration: &Key, disks: &[DiskMove], ctx: &Context<'_>) -> [Vec<NewClaim>; 2] {
    let of = |disk: &DiskMove, to: To| {
        let (volume, class) = match to {
            To::Lock => (lock(disk), lock_template(disk, ctx).class),
            To::New | To::Old { .. } => (disk.new.name.clone(), disk.new.class.clone()),
        };
        NewClaim { claim: disk.claim.clone(), template: template(migration, disk, to, &class), volume }
    };
    [To::Lock, To::New].map(|to| disks.iter().map(|disk| of(disk, to)).collect())
}

fn template(migration: &Key, disk: &DiskMove, to: To, class: &str) -> ClaimTemplate {
    let mut template = disk.template.clone();
    class.clone_into(&mut template.class);
    if to == To::Lock {
        template.labels.insert(LOCK_LABEL.to_owned(), "true".to_owned());
        template.annotations.insert(LOCKED_BY.to_owned(), migration.name.clone());
    }
    template
}

/// As large as any claim of this name may ask, and of the class that it asks.
fn lock_template(disk: &DiskMove, ctx: &Context<'_>) -> ClaimTemplate {
    let old = ctx.fleet.volumes.get(&disk.old);
    ClaimTemplate {
        class: old.map_or_else(|| disk.template.class.clone(), |old| old.class.clone()),
        requested_bytes: disk.new.capacity_bytes,
        ..disk.template.clone()
    }
}
