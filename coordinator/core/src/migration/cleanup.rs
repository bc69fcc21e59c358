//! Removal of the old volumes of a migration that has succeeded, once somebody asks for it: the only place where bytes of a
//! disk are given up.
//!
//! ```text
//!   Kept ── asked, and nothing speaks for keeping it ──► Removing ──► its object goes ──► its folder goes ──► Removed
//!    ▲                                                      │  ▲  │
//!    └── somebody has a use for it, and its object is there ┘  └──┘ in doubt for now: nothing more is done
//! ```
//!
//! What was asked of the API server may be done at any moment after: a doubt that comes then (the agent of the present disk is
//! silent) stops the next step, and does not say that nothing was done.
//!
//! Kept as long as the present disk of the claim was not seen to be sound, or anybody else may have the folder. The object
//! goes first, under the precondition that it is still Released by the claim that the migration took it from: from then on
//! no claim can be bound to it, and only then the folder goes. What is stored says that it must, after any crash.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::guest::PROBE_ANSWERED;
use super::{Context, DiskMove, MigrationRecord, Phase, Refusal, checks};
use crate::BootTime;
use crate::fleet::{DiskImage, Grade, StorageRoot, Volume, VolumeMode, folder};
use crate::io::{Action, Effect, Order, OrderState};
use crate::locality;
use crate::names::{Key, NodeName, OrderId, VolumeName};

/// A folder that could not be removed is tried again: what held it may be gone by then.
const RETRY_WAIT: Duration = Duration::from_mins(1);
/// Agents list each minute; what was seen longer ago may not be so any more, as on a disk that hangs.
const LISTED_AGE_MAX: Duration = Duration::from_mins(5);
/// Why an agent says that another folder has the name of one that it has removed.
const TARGET_EXISTS: &str = "TargetExists";

/// What became of an old volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OldVolume {
    /// It is there, with its data, or was never touched by us.
    #[default]
    Kept,
    /// Object and folder are being removed.
    Removing,
    /// Both are gone.
    Removed,
}

/// The removals of one migration.
#[derive(Clone, Debug, Default)]
pub(super) struct Cleanup {
    orders: BTreeMap<VolumeName, Ordered>,
    /// Make order ids of one epoch unique: an agent answers a repeated id with the old result.
    serial: u64,
    given: u64,
}

#[derive(Clone, Debug)]
struct Ordered {
    id: OrderId,
    state: OrderState,
    /// When one that failed is tried again.
    retry_at: BootTime,
}

/// What comes next.
#[derive(Debug, Default)]
pub(super) struct Step {
    /// To be stored before anything else is done: disks, by their place, whose old volumes change.
    pub store: Vec<(usize, OldVolume)>,
    pub actions: Vec<Action>,
    pub orders: Vec<Effect>,
    /// Why something is kept, or is not gone yet.
    pub why: Option<Refusal>,
}

impl Cleanup {
    /// Of the migration that was taken up as the given one.
    pub fn new(serial: u64) -> Self {
        Self { serial, ..Self::default() }
    }

    /// Takes an agent's word about an order; false where it is none of ours.
    pub fn progress(&mut self, now: BootTime, order: &OrderId, state: &OrderState) -> bool {
        let Some(ordered) = self.orders.values_mut().find(|ordered| ordered.id == *order) else {
            return false;
        };
        ordered.state = state.clone();
        ordered.retry_at = now + RETRY_WAIT;
        true
    }

    /// One look at each disk. `others` are the records of all other migrations that have not ended.
    pub fn step(
        &mut self,
        now: BootTime,
        record: &MigrationRecord,
        others: &[MigrationRecord],
        moves: &Moves,
        ctx: &Context<'_>,
    ) -> Step {
        let mut step = Step::default();
        for (place, disk) in record.disks.iter().enumerate() {
            let there = ctx.fleet.volumes.contains_key(&disk.old);
            match disk.old_volume {
                OldVolume::Removed => {}
                OldVolume::Kept => match may_go(record, disk, others, moves, ctx) {
                    Ok(()) => step.store.push((place, OldVolume::Removing)),
                    Err(why) => step.why = Some(why),
                },
                OldVolume::Removing if there => match may_go(record, disk, others, moves, ctx) {
                    Ok(()) => step.actions.push(Action::DeleteReleased {
                        volume: disk.old.clone(),
                        claim_uid: disk.claim_uid.clone(),
                    }),
                    Err(_) if is_wanted(record, disk, ctx) => self.keep(place, disk, &mut step),
                    Err(why) => {
                        let message = format!("its removal has begun, and waits: {}", why.message);
                        step.why = Some(Refusal::not_yet(why.reason, message));
                    }
                },
                OldVolume::Removing if self.is_removed(disk) => step.store.push((place, OldVolume::Removed)),
                // For good: the object is gone, and with it the only way back to Removing.
                OldVolume::Removing if gives_up(record, disk, ctx) => self.keep(place, disk, &mut step),
                OldVolume::Removing => match self.order(now, &record.key, disk, moves, ctx) {
                    Ok(order) => step.orders.extend(order),
                    Err(why) => step.why = Some(why),
                },
            }
        }
        // Those of a VM belong together: none is begun while something speaks for keeping another.
        if record.disks.iter().all(|disk| disk.old_volume == OldVolume::Kept) && step.why.is_some() {
            step.store.clear();
        }
        step
    }

    fn keep(&mut self, place: usize, disk: &DiskMove, step: &mut Step) {
        self.orders.remove(&disk.old);
        step.store.push((place, OldVolume::Kept));
    }

    /// One that has another folder's name now is gone all the same.
    fn is_removed(&self, disk: &DiskMove) -> bool {
        self.orders.get(&disk.old).is_some_and(|ordered| match &ordered.state {
            OrderState::Done { .. } => true,
            OrderState::Failed { reason, .. } => reason == TARGET_EXISTS,
            OrderState::Running { .. } => false,
        })
    }

    /// The order to remove the folder, where it is to be given now.
    fn order(
        &mut self,
        now: BootTime,
        migration: &Key,
        disk: &DiskMove,
        moves: &Moves,
        ctx: &Context<'_>,
    ) -> Result<Option<Effect>, Refusal> {
        alone(disk, ctx)?;
        present_is_sound(disk, moves, ctx)?;
        source_answers(disk, ctx)?;
        match self.orders.get(&disk.old) {
            Some(Ordered { state: OrderState::Failed { reason, message }, retry_at, .. })
                if now < *retry_at =>
            {
                let message = format!(
                    "its object is gone, and its folder {} on node {} is not yet ({reason}: {message}); tried again every {} s",
                    disk.source_path,
                    disk.source_node,
                    RETRY_WAIT.as_secs()
                );
                return Err(Refusal::not_yet("RemovalFailed", message));
            }
            // One that a new session of the agent has swept away is given anew, after another look at everything.
            Some(Ordered { state: OrderState::Running { .. }, retry_at, .. }) if now < *retry_at => {
                return Ok(None);
            }
            Some(Ordered { state: OrderState::Done { .. }, .. }) => return Ok(None),
            Some(Ordered { state: OrderState::Failed { .. } | OrderState::Running { .. }, .. }) | None => {}
        }
        self.given += 1;
        let id = OrderId(format!(
            "{migration}:{}:remove:{}.{}.{}",
            disk.claim.name, ctx.epoch, self.serial, self.given
        ));
        let state = OrderState::Running { done_bytes: 0, total_bytes: 0, rate_bytes_per_s: 0 };
        let ordered = Ordered { id: id.clone(), state, retry_at: now + RETRY_WAIT };
        self.orders.insert(disk.old.clone(), ordered);
        let order = Order::RemoveVolume { path: disk.source_path.clone() };
        Ok(Some(Effect::Order { node: disk.source_node.clone(), id, order }))
    }
}

/// Whether somebody has a use for an old volume whose removal has begun and whose object is there.
fn is_wanted(record: &MigrationRecord, disk: &DiskMove, ctx: &Context<'_>) -> bool {
    is_as_left(disk, ctx).is_err() || gives_up(record, disk, ctx)
}

/// Whether its folder is left where it is, though its object is gone: somebody else has it now, or its node will never be
/// back.
fn gives_up(record: &MigrationRecord, disk: &DiskMove, ctx: &Context<'_>) -> bool {
    // One that is being deleted waits for nothing more than its next try.
    let deleted = ctx.requests.migrations.get(&record.key).is_some_and(|request| request.spec.cancelled);
    alone(disk, ctx).is_err() || !ctx.fleet.nodes.contains_key(&disk.source_node) || deleted
}

/// Why the old volume of a disk would be kept if somebody asked for its removal now; `None` where nothing speaks for that.
/// Whether another migration is about it is not asked.
pub fn kept_because(
    record: &MigrationRecord,
    disk: &DiskMove,
    moves: &Moves,
    ctx: &Context<'_>,
) -> Option<Refusal> {
    may_go(record, disk, &[], moves, ctx).err()
}

/// By which volume each one was replaced, in migrations that have succeeded.
#[derive(Clone, Debug, Default)]
pub struct Moves(BTreeMap<VolumeName, VolumeName>);

impl Moves {
    /// Of these migrations.
    pub fn of<'a>(records: impl Iterator<Item = &'a MigrationRecord>) -> Self {
        let succeeded = records.filter(|record| record.phase == Phase::Succeeded);
        let moves = succeeded.flat_map(|record| &record.disks);
        Self(moves.map(|disk| (disk.old.clone(), disk.new.name.clone())).collect())
    }

    /// What has come of a volume at last.
    fn last<'a>(&'a self, volume: &'a VolumeName) -> &'a VolumeName {
        let mut last = volume;
        // As many steps as there are moves: they may lead in a circle where somebody has bound volumes by hand.
        for _ in 0..self.0.len() {
            match self.0.get(last) {
                Some(next) => last = next,
                None => break,
            }
        }
        last
    }
}

/// Nothing speaks for keeping it.
fn may_go(
    record: &MigrationRecord,
    disk: &DiskMove,
    others: &[MigrationRecord],
    moves: &Moves,
    ctx: &Context<'_>,
) -> Result<(), Refusal> {
    is_as_left(disk, ctx)?;
    if disk.reading.is_none() {
        alone(disk, ctx)?;
    }
    present_is_sound(disk, moves, ctx)?;
    guest_is_confirmed(record, disk, ctx)?;
    probe_is_answered(record, ctx)?;
    an_agent_removes_it(disk, ctx)?;
    source_answers(disk, ctx)?;
    let is_of =
        |other: &DiskMove| other.old == disk.old || other.new.name == disk.old || other.claim == disk.claim;
    match others.iter().find(|other| other.disks.iter().any(is_of)) {
        Some(other) => {
            let message =
                format!("migration {} is at work on it, or on its claim: wait for its end", other.key);
            Err(Refusal::not_yet("MigratingAgain", message))
        }
        None => Ok(()),
    }
}

/// The old volume is as the migration left it.
fn is_as_left(disk: &DiskMove, ctx: &Context<'_>) -> Result<(), Refusal> {
    let Some(volume) = ctx.fleet.volumes.get(&disk.old) else {
        let rest = if disk.reading.is_some() {
            "its storage, if that is still there,".to_owned()
        } else {
            format!("folder {} on node {}, if it is still there,", disk.source_path, disk.source_node)
        };
        let message = format!("volume {} is gone already, by somebody else; {rest} is not touched", disk.old);
        return Err(Refusal::new("VolumeGone", message));
    };
    let released = volume.phase == "Released"
        && volume.claim.as_ref().is_some_and(|claim| claim.uid.as_ref() == Some(&disk.claim_uid));
    if !released {
        let phase = if volume.phase.is_empty() { "without a phase" } else { &volume.phase };
        let message = format!(
            "volume {} is {phase}, and not as the migration left it: somebody has a use for it",
            disk.old
        );
        return Err(Refusal::new("VolumeInUse", message));
    }
    let same_place =
        disk.reading.is_some() || volume.source.path().map(folder) == Some(folder(&disk.source_path));
    if !volume.retained || !same_place {
        let message = format!(
            "volume {} is not on reclaim policy Retain any more, or not at {} any more",
            disk.old, disk.source_path
        );
        return Err(Refusal::new("VolumeChanged", message));
    }
    match ctx.fleet.claims.iter().find(|(_, claim)| claim.volume.as_ref() == Some(&disk.old)) {
        Some((claim, _)) => {
            Err(Refusal::new("VolumeInUse", format!("claim {claim} names volume {}", disk.old)))
        }
        None => Ok(()),
    }
}

/// Of storage that only kubelets mount, no agent can remove anything, and nothing is left to mount it by once its object is
/// gone: who made it removes it.
fn an_agent_removes_it(disk: &DiskMove, ctx: &Context<'_>) -> Result<(), Refusal> {
    if disk.reading.is_none() {
        return Ok(());
    }
    let made_by = ctx.fleet.volumes.get(&disk.old).and_then(|volume| volume.provisioned_by.as_ref());
    let how = match made_by {
        Some(provisioner) => format!(
            "{provisioner}, which made it, does so once it is on reclaim policy Delete: kubectl patch pv {} -p \
             '{{\"spec\":{{\"persistentVolumeReclaimPolicy\":\"Delete\"}}}}'",
            disk.old
        ),
        None => format!("remove it where it was made, and then its object: kubectl delete pv {}", disk.old),
    };
    let message = format!(
        "only kubelets mount what is behind volume {}, so that no agent can remove it: {how}",
        disk.old
    );
    Err(Refusal::new("NotRemovedByAgents", message))
}

/// No other volume, and no VM by its path, has the folder, one inside of it, or one around it.
fn alone(disk: &DiskMove, ctx: &Context<'_>) -> Result<(), Refusal> {
    let report = ctx.fleet.reports.get(&disk.source_node);
    let root = report.and_then(|report| report.root_of(&disk.source_path));
    // A folder that every node sees may be anybody's.
    let node = Some(&disk.source_node).filter(|_| !root.is_some_and(|root| root.shared));
    match locality::other_user(ctx.fleet, &disk.old, node, &disk.source_path) {
        Some(user) => {
            let message = format!("{user} has folder {} as well", disk.source_path);
            Err(Refusal::new("FolderShared", message))
        }
        None => Ok(()),
    }
}

/// The disk that the claim has now is what has come of the old one, and was seen where it should be: the old one is not the
/// last that is left.
fn present_is_sound(disk: &DiskMove, moves: &Moves, ctx: &Context<'_>) -> Result<(), Refusal> {
    let doubt = |why: String| {
        Refusal::new("PresentDiskInDoubt", format!("{why}; the old disk may be the last good one"))
    };
    let (_, name, volume) =
        locality::bound_volume(ctx.fleet, &disk.claim).map_err(|broken| doubt(broken.because))?;
    if name != moves.last(&disk.new.name) {
        return Err(doubt(format!(
            "claim {} has volume {name}, which is no copy of the old one: it was made anew, rebuilt, or bound by hand",
            disk.claim
        )));
    }
    // Where no agent looks: a driver's volume, or a folder that only the kubelet mounts.
    let made = disk.staging.is_some() && *name == disk.new.name;
    let listed =
        |path: &&str| !made || ctx.fleet.reports.values().any(|report| report.root_of(path).is_some());
    let Some(path) = volume.source.path().filter(listed) else {
        return is_attached(disk, ctx).then_some(()).ok_or_else(|| {
            doubt(format!("no agent can look into volume {name}, and no VM that runs has it attached"))
        });
    };
    let node = match locality::pinned_node(ctx.fleet, volume) {
        Some(node) => node,
        // A folder that every node sees: whoever fetched it looks at it.
        None => disk.target_node.clone(),
    };
    let report = ctx.fleet.reports.get(&node).filter(|_| ctx.usable.contains(&node));
    let Some(report) = report else {
        return Err(doubt(format!(
            "volume {name} is on node {node}, which is not healthy or has told nothing"
        )));
    };
    let root = report.root_of(path);
    let fresh = |root: &StorageRoot| root.listed_age.is_some_and(|age| age <= LISTED_AGE_MAX);
    if root.is_none_or(|root| root.read_only || !fresh(root)) {
        return Err(doubt(format!(
            "the storage root of volume {name} on node {node} cannot be written, or was not listed lately"
        )));
    }
    if let Some(health) = root.and_then(|root| report.disks.get(root.disk.as_ref()?))
        && health.grade >= Grade::Failing
    {
        return Err(doubt(format!("volume {name} is on a disk of node {node} that is {:?}", health.grade)));
    }
    match report.usage.get(folder(path)) {
        None => Err(doubt(format!("the agent of node {node} has not told of folder {path} yet"))),
        // The data of a claim that no VM uses may have any name; that of a VM cannot.
        Some(usage) if usage.disk_image != DiskImage::Present && is_disk_of_vm(disk, volume, ctx) => {
            Err(doubt(format!("the agent of node {node} does not see disk.img in folder {path}")))
        }
        Some(_) => Ok(()),
    }
}

/// A VM runs with it.
fn is_attached(disk: &DiskMove, ctx: &Context<'_>) -> bool {
    ctx.fleet.vms.iter().any(|(key, vm)| {
        let running = vm.instance.as_ref().filter(|instance| instance.phase == "Running");
        key.namespace == disk.claim.namespace
            && running.is_some_and(|instance| instance.claims.contains(&disk.claim.name))
    })
}

/// Where something of the guest was waited for in vain after the move, it must be there by now.
fn guest_is_confirmed(record: &MigrationRecord, disk: &DiskMove, ctx: &Context<'_>) -> Result<(), Refusal> {
    if record.reason.is_none() {
        return Ok(());
    }
    let users = ctx.fleet.vms_with(&disk.claim);
    let confirmed = users.filter_map(|(_, vm)| vm.instance.as_ref()).any(|instance| {
        instance.phase == "Running" && checks::postflight(record, instance).all(|(_, answer)| answer.is_ok())
    });
    if confirmed {
        return Ok(());
    }
    let message =
        format!("its guest was not seen as it was before the move ({}): look at it first", record.message);
    Err(Refusal::new("GuestNotConfirmed", message))
}

/// What a person asked of the guest must have been answered after the move. It is asked no more: whoever has looked takes
/// the question away.
fn probe_is_answered(record: &MigrationRecord, ctx: &Context<'_>) -> Result<(), Refusal> {
    let request = ctx.requests.migrations.get(&record.key);
    let Some(probe) = request.and_then(|request| request.spec.probe.as_ref()) else { return Ok(()) };
    if record.checks.iter().any(|check| check.name == PROBE_ANSWERED && check.passed) {
        return Ok(());
    }
    let message = format!(
        "its guest was not seen to answer {probe} after the move: look at it, then take spec.probe off the VolumeMigration"
    );
    Err(Refusal::new("ProbeNotAnswered", message))
}

fn is_disk_of_vm(disk: &DiskMove, volume: &Volume, ctx: &Context<'_>) -> bool {
    volume.mode == VolumeMode::Filesystem && ctx.fleet.vms_with(&disk.claim).next().is_some()
}

fn source_answers(disk: &DiskMove, ctx: &Context<'_>) -> Result<(), Refusal> {
    let node: &NodeName = &disk.source_node;
    let root = ctx.fleet.reports.get(node).and_then(|report| report.root_of(&disk.source_path));
    if !ctx.usable.contains(node) || root.is_none() {
        let message = format!("node {node} is not healthy, or its agent does not serve {}", disk.source_path);
        return Err(Refusal::not_yet("SourceNotUsable", message));
    }
    if root.is_some_and(|root| root.read_only) {
        let message =
            format!("{} on node {node} is on a filesystem that cannot be written", disk.source_path);
        return Err(Refusal::new("SourceReadOnly", message));
    }
    Ok(())
}
