//! The copies of one phase: which orders are out, how they fare, when to try again or give up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Copied, DiskMove, Refusal, Unreadable};
use crate::BootTime;
use crate::io::{Effect, Order, OrderState};
use crate::names::{Key, NodeName, OrderId, VolumeName};
use crate::view::CopyView;

/// A copy resumes where it broke off, so three failures in a row are no accident of the network.
const ATTEMPTS_MAX: u32 = 3;
/// Between two attempts: an agent that is being restarted is back by then.
const RETRY_WAIT: Duration = Duration::from_secs(5);
/// No byte for this long and the copy counts as failed. Never a time for the whole: volumes are of any size.
const STALL_MAX: Duration = Duration::from_mins(5);
/// A pre-copy that waits for a word is made fresh this often, so that the final copy stays short.
const FRESHEN_EVERY: Duration = Duration::from_mins(10);
/// Dropping a partial copy is a courtesy to the target's disk; a target that is gone does not hold up the rest.
const DROP_WAIT_MAX: Duration = Duration::from_secs(30);

/// Reason of an agent that does not find its source, and of a migration whose old disk is gone.
pub(super) const SOURCE_MISSING: &str = "SourceMissing";
/// Reason of an agent whose source cannot be read.
const UNREADABLE: &str = "SourceReadFailed";
/// What can be done about it.
const TAKE_ZEROES: &str = "; a migration with spec.unreadable Zeroes takes zeroes for what cannot be read (kubectl somersault \
                           migrate --unreadable zeroes)";

/// Copies of one phase of one migration.
#[derive(Clone, Debug, Default)]
pub(super) struct Copies {
    by_claim: BTreeMap<Key, OneCopy>,
    /// Make order ids of one epoch unique: an agent answers a repeated id with the old result.
    serial: u64,
    round: u64,
    dropping: Dropping,
    removing: Dropping,
    /// Disks that nobody can read now, and of which nothing is waited for.
    left_out: BTreeSet<Key>,
    /// All was copied already, and is copied anew because that was a while ago.
    freshening: bool,
}

/// Orders to remove what copies have left on their targets.
#[derive(Clone, Debug, Default)]
struct Dropping {
    since: Option<BootTime>,
    /// The new volume that each is about, and whether it was done; `None` while it is not answered.
    orders: BTreeMap<OrderId, (VolumeName, Option<bool>)>,
}

impl Dropping {
    /// Once: each disk's order, under the id that is given for it.
    fn begin<'a>(
        &mut self,
        now: BootTime,
        disks: impl Iterator<Item = &'a DiskMove>,
        id: impl Fn(&DiskMove) -> OrderId,
        order: impl Fn(&DiskMove) -> Order,
    ) -> Vec<Effect> {
        if self.since.is_some() {
            return Vec::new();
        }
        self.since = Some(now);
        let give = |disk: &DiskMove| {
            let id = id(disk);
            self.orders.insert(id.clone(), (disk.new.name.clone(), None));
            Effect::Order { node: disk.target_node.clone(), id, order: order(disk) }
        };
        disks.map(give).collect()
    }

    fn progress(&mut self, order: &OrderId, state: &OrderState) -> bool {
        let Some((_, done)) = self.orders.get_mut(order) else { return false };
        *done = match state {
            OrderState::Running { .. } => None,
            OrderState::Done { .. } => Some(true),
            OrderState::Failed { .. } => Some(false),
        };
        true
    }

    /// Whether nothing more is to be expected.
    fn is_over(&self, now: BootTime) -> bool {
        self.since.is_some_and(|since| {
            self.orders.values().all(|(_, done)| done.is_some()) || now.saturating_sub(since) > DROP_WAIT_MAX
        })
    }
}

/// How all disks of a phase are copied.
#[derive(Clone, Copy)]
pub(super) struct Manner {
    /// Nobody writes to the sources any more.
    pub final_: bool,
    /// What becomes of what a source cannot read.
    pub unreadable: Unreadable,
}

/// From where to where a disk is copied now.
pub(super) struct Way {
    /// The node whose agent reads, and where.
    pub source: Option<Source>,
    /// Where the target's agent writes.
    pub target: Option<String>,
}

#[derive(Clone, Debug)]
struct OneCopy {
    order: OrderId,
    state: OrderState,
    moved: BootTime,
    attempt: u32,
    retry_at: Option<BootTime>,
    /// Where it reads; `None` before it is ordered.
    source: Option<Source>,
}

/// A node, and a path there.
type Source = (NodeName, String);

impl Copies {
    /// Of the migration that was taken up as the given one.
    pub fn new(serial: u64) -> Self {
        Self { serial, ..Self::default() }
    }

    /// Forgets the phase before, but never a used order id.
    pub fn reset(&mut self) {
        self.by_claim.clear();
        self.dropping = Dropping::default();
        self.removing = Dropping::default();
        self.left_out.clear();
        self.freshening = false;
        self.round += 1;
    }

    /// Disks that nobody can read before this phase is over: the others are all that there is to copy. One that can be read
    /// again is copied as if it had never been.
    pub fn leave_out(&mut self, claims: BTreeSet<Key>) {
        self.by_claim.retain(|claim, _| !claims.contains(claim));
        if claims != self.left_out {
            // No order of before has an id of the next one.
            self.round += 1;
            self.left_out = claims;
        }
    }

    /// Orders that are not out yet, and new attempts whose time has come. `way` says from where to where a disk is copied;
    /// while it cannot be, that counts as no progress.
    pub fn order(
        &mut self,
        now: BootTime,
        migration: &Key,
        epoch: u64,
        disks: &[DiskMove],
        manner: Manner,
        way: impl Fn(&DiskMove) -> Way,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        for disk in disks {
            if self.left_out.contains(&disk.claim) {
                continue;
            }
            let way = way(disk);
            effects.extend(self.break_off(migration, epoch, disk, way.source.as_ref()));
            let attempt = match self.by_claim.get(&disk.claim) {
                None => 1,
                Some(copy) if copy.retry_at.is_some_and(|at| at <= now) => copy.attempt + 1,
                Some(_) => continue,
            };
            let kind = if manner.final_ { "final" } else { "pre" };
            let id = OrderId(format!(
                "{migration}:{}:{kind}:{epoch}.{}.{}.{attempt}",
                disk.claim.name, self.serial, self.round
            ));
            let state = OrderState::Running { done_bytes: 0, total_bytes: 0, rate_bytes_per_s: 0 };
            let (Some(source), Some(target)) = (way.source, way.target) else {
                let waits =
                    OneCopy { order: id, state, moved: now, attempt: 0, retry_at: Some(now), source: None };
                self.by_claim.entry(disk.claim.clone()).or_insert(waits);
                continue;
            };
            let from = Some(source.clone());
            let copy =
                OneCopy { order: id.clone(), state, moved: now, attempt, retry_at: None, source: from };
            self.by_claim.insert(disk.claim.clone(), copy);
            effects.push(Effect::Order {
                node: disk.target_node.clone(),
                id,
                order: pull(disk, source, target, manner),
            });
        }
        effects
    }

    /// Stops a copy whose source is elsewhere now, or nowhere: what an agent reads a kubelet cannot unmount, and keeps the pod
    /// until it can. What has arrived is kept, and goes on from where the source is next.
    fn break_off(
        &mut self,
        migration: &Key,
        epoch: u64,
        disk: &DiskMove,
        source: Option<&Source>,
    ) -> Option<Effect> {
        let copy = self.by_claim.get(&disk.claim)?;
        let runs = matches!(copy.state, OrderState::Running { .. }) && copy.source.is_some();
        if !runs || copy.source.as_ref() == source {
            return None;
        }
        self.by_claim.remove(&disk.claim);
        self.round += 1;
        if source.is_some() {
            // The next order of a transfer ends the one before.
            return None;
        }
        let id =
            OrderId(format!("{migration}:{}:off:{epoch}.{}.{}", disk.claim.name, self.serial, self.round));
        let order =
            Order::CancelPull { transfer: disk.new.name.0.clone(), drop_partial: false, target_path: None };
        Some(Effect::Order { node: disk.target_node.clone(), id, order })
    }

    /// Takes an agent's word about an order; false where it is none of ours.
    pub fn progress(&mut self, now: BootTime, order: &OrderId, state: &OrderState) -> bool {
        if self.dropping.progress(order, state) || self.removing.progress(order, state) {
            return true;
        }
        let Some(copy) = self.by_claim.values_mut().find(|copy| copy.order == *order) else { return false };
        if copy.state != *state {
            copy.moved = now;
            copy.state = state.clone();
        }
        if matches!(copy.state, OrderState::Failed { .. }) && copy.retry_at.is_none() {
            copy.retry_at = Some(now + RETRY_WAIT);
        }
        true
    }

    /// All results once every copy that can be made is done, `None` while some are not, or why it is hopeless.
    pub fn outcome(&self, now: BootTime, disks: &[DiskMove]) -> Result<Option<Vec<Copied>>, Refusal> {
        let mut results = Vec::new();
        let mut wanted = 0;
        for disk in disks.iter().filter(|disk| !self.left_out.contains(&disk.claim)) {
            wanted += 1;
            let Some(copy) = self.by_claim.get(&disk.claim) else { continue };
            match &copy.state {
                OrderState::Done { root_hash, total_bytes, sent_bytes, elapsed, unreadable } => {
                    results.push(Copied {
                        root_hash: hex(root_hash),
                        total_bytes: *total_bytes,
                        sent_bytes: *sent_bytes,
                        elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
                        unreadable: unreadable.clone(),
                    });
                }
                OrderState::Failed { reason, message } if copy.attempt >= ATTEMPTS_MAX => {
                    let what_else = if reason == UNREADABLE { TAKE_ZEROES } else { "" };
                    let message = format!(
                        "copying {} failed {ATTEMPTS_MAX} times, last {reason}: {message}{what_else}",
                        disk.claim
                    );
                    let is_gone = reason == SOURCE_MISSING && disk.reading.is_none();
                    return Err(Refusal::new(if is_gone { SOURCE_MISSING } else { "CopyFailed" }, message));
                }
                _ if now.saturating_sub(copy.moved) > STALL_MAX => {
                    let message =
                        format!("copying {} made no progress for {} s", disk.claim, STALL_MAX.as_secs());
                    return Err(Refusal::new("CopyStalled", message));
                }
                _ => {}
            }
        }
        Ok((results.len() == wanted).then_some(results))
    }

    /// Copies anew what was copied a while ago.
    pub fn freshen(&mut self, now: BootTime) {
        let newest = self.by_claim.values().map(|copy| copy.moved).max();
        if newest.is_some_and(|at| now.saturating_sub(at) >= FRESHEN_EVERY) {
            self.reset();
            self.freshening = true;
        }
    }

    /// Whether all is copied, or was and is copied anew.
    pub fn has_copied_ahead(&self, now: BootTime, disks: &[DiskMove]) -> bool {
        self.outcome(now, disks).is_ok_and(|copied| copied.is_some() || self.freshening)
    }

    /// Takes every order back; the targets remove what has arrived.
    pub fn cancel(
        &mut self,
        now: BootTime,
        migration: &Key,
        epoch: u64,
        disks: &[DiskMove],
        target: impl Fn(&DiskMove) -> Option<String>,
    ) -> Vec<Effect> {
        let id = self.id(migration, "drop", epoch);
        self.dropping.begin(now, disks.iter(), id, |disk| Order::CancelPull {
            transfer: disk.new.name.0.clone(),
            drop_partial: true,
            target_path: target(disk),
        })
    }

    /// Whether nothing more is to be expected of [`Copies::cancel`].
    pub fn dropped(&self, now: BootTime) -> bool {
        self.dropping.is_over(now)
    }

    /// Has the targets remove the folders that copies were published in. Only of volumes that nobody ever used, and whose objects
    /// are still there: they are what tells so, to a later leader too.
    pub fn remove(
        &mut self,
        now: BootTime,
        migration: &Key,
        epoch: u64,
        disks: &[DiskMove],
        unused: &BTreeSet<VolumeName>,
    ) -> Vec<Effect> {
        let id = self.id(migration, "remove", epoch);
        let unused = disks.iter().filter(|disk| unused.contains(&disk.new.name));
        self.removing.begin(now, unused, id, |disk| Order::RemoveVolume { path: disk.new.path.clone() })
    }

    /// Ids of orders that take something back.
    fn id<'a>(
        &self,
        migration: &'a Key,
        what: &'a str,
        epoch: u64,
    ) -> impl Fn(&DiskMove) -> OrderId + use<'a> {
        let (serial, round) = (self.serial, self.round);
        move |disk| OrderId(format!("{migration}:{}:{what}:{epoch}.{serial}.{round}", disk.claim.name))
    }

    /// Whether nothing more is to be expected of [`Copies::remove`].
    pub fn removed(&self, now: BootTime) -> bool {
        self.removing.is_over(now)
    }

    /// Whether a target has not removed what it was asked to.
    pub fn are_left(&self) -> bool {
        self.removing.orders.values().any(|(_, done)| *done != Some(true))
    }

    /// Whether a target has removed the folder of this new volume.
    pub fn has_removed(&self, volume: &VolumeName) -> bool {
        self.removing.orders.values().any(|(of, done)| of == volume && *done == Some(true))
    }

    /// How far each disk is. One that is to be tried again shows nothing.
    pub fn each(&self) -> BTreeMap<Key, CopyView> {
        let view = |copy: &OneCopy| match copy.state {
            OrderState::Running { done_bytes, total_bytes, rate_bytes_per_s } => {
                CopyView { done_bytes, total_bytes, rate_bytes_per_s }
            }
            OrderState::Done { total_bytes, .. } => {
                CopyView { done_bytes: total_bytes, total_bytes, rate_bytes_per_s: 0 }
            }
            OrderState::Failed { .. } => CopyView::default(),
        };
        self.by_claim.iter().map(|(claim, copy)| (claim.clone(), view(copy))).collect()
    }

    /// When something of this changes by time alone.
    pub fn next_deadline(&self) -> Option<BootTime> {
        let copies = self.by_claim.values().map(|copy| copy.retry_at.unwrap_or(copy.moved + STALL_MAX));
        let since = [self.dropping.since, self.removing.since].into_iter().flatten();
        copies.chain(since.map(|since| since + DROP_WAIT_MAX)).min()
    }
}

fn pull(
    disk: &DiskMove,
    (source_node, source_path): Source,
    target_path: String,
    Manner { final_, unreadable }: Manner,
) -> Order {
    let transfer = disk.new.name.0.clone();
    Order::Pull { transfer, source_node, source_path, target_path, final_, unreadable }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |text, byte| text + &format!("{byte:02x}"))
}
