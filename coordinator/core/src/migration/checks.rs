//! Pre-flight and post-migration checks: a table of names and questions. The first question that fails refuses the
//! migration, or fails it; every answer is recorded for people.

use super::{Check, Context, Destination, DiskMove, Guest, MigrationRecord, MigrationSpec, Refusal, plan};
use crate::decision::placement;
use crate::fleet::{DiskImage, Fixed, Fleet, Instance, Owner, StorageRoot, VolumeMode, folder, pods_words};
use crate::names::{Key, Uid, VolumeName};
use crate::runbook::shell_word;

/// A planned migration, and what was found on the way.
pub(super) struct Preflight {
    pub checks: Vec<Check>,
    pub disks: Result<Vec<DiskMove>, Refusal>,
}

type Answer = Result<String, Refusal>;

/// What a question is asked about.
struct Asked<'a> {
    key: &'a Key,
    spec: &'a MigrationSpec,
    disks: &'a [DiskMove],
    ctx: &'a Context<'a>,
}

type Question = fn(&Asked<'_>) -> Answer;

/// Asked in this order, after the disks are known.
const PREFLIGHT: [(&str, Question); 7] = [
    ("OwnerCanStop", owner_can_stop),
    ("NotMigratingAlready", not_migrating_already),
    ("DisksUnshared", disks_unshared),
    ("VolumesStay", volumes_stay),
    ("TargetHasStorage", target_has_storage),
    ("TargetFitsVm", target_fits_vm),
    ("BackupKnown", backup_known),
];

/// Looks at everything before anything is touched.
pub(super) fn preflight(
    key: &Key,
    uid: &Uid,
    spec: &MigrationSpec,
    others: &[&MigrationRecord],
    ctx: &Context<'_>,
) -> Preflight {
    // First: of a claim that another migration has locked, nothing else can be told.
    if let Err(refusal) = no_other_migration(key, spec, others, ctx) {
        return Preflight { checks: vec![failed("NotMigratingAlready", &refusal)], disks: Err(refusal) };
    }
    let disks = match plan::disks_to_move(key, uid, spec, ctx) {
        Ok(disks) => disks,
        Err(refusal) => {
            return Preflight { checks: vec![failed("DisksMovable", &refusal)], disks: Err(refusal) };
        }
    };
    let mut checks = vec![passed("DisksMovable", describe(&disks)), passed("DisksKnown", sizes(&disks, ctx))];
    let asked = Asked { key, spec, disks: &disks, ctx };
    for (name, question) in PREFLIGHT {
        match question(&asked) {
            Ok(found) => checks.push(passed(name, found)),
            Err(refusal) => {
                checks.push(failed(name, &refusal));
                return Preflight { checks, disks: Err(refusal) };
            }
        }
    }
    Preflight { checks, disks: Ok(disks) }
}

/// Of the guest before and of the instance now; `None` where the guest had nothing of the kind.
type AfterQuestion = fn(&Guest, &Instance) -> Option<Answer>;

/// Asked of a VM that runs on its new volumes: whatever its guest had before is there again.
const POSTFLIGHT: [(&str, AfterQuestion); 3] = [
    ("DisksAttached", disks_attached),
    ("AddressReported", address_reported),
    ("GuestAgentConnected", guest_agent_connected),
];

/// Asked once more before the VM is stopped: somebody may have come since.
pub(super) fn before_stop(
    record: &MigrationRecord,
    spec: &MigrationSpec,
    ctx: &Context<'_>,
) -> Result<(), Refusal> {
    let asked = Asked { key: &record.key, spec, disks: &record.disks, ctx };
    disks_unshared(&asked)?;
    volumes_stay(&asked).map(drop)
}

/// What can be asked of a guest that ran before, with the answers of now.
pub(super) fn postflight(
    record: &MigrationRecord,
    instance: &Instance,
) -> impl Iterator<Item = (&'static str, Answer)> {
    let ask = |guest: &Guest| POSTFLIGHT.map(|(name, question)| Some((name, question(guest, instance)?)));
    record.guest.as_ref().map(ask).into_iter().flatten().flatten()
}

fn disks_attached(guest: &Guest, now: &Instance) -> Option<Answer> {
    (!guest.claims.is_empty()).then(|| {
        let missing: Vec<&str> = guest.claims.difference(&now.claims).map(String::as_str).collect();
        if missing.is_empty() {
            return Ok(format!("{} claims, as before", guest.claims.len()));
        }
        let message = format!("claims are not attached any more: {}", missing.join(", "));
        Err(Refusal::not_yet("DisksNotAttached", message))
    })
}

fn address_reported(guest: &Guest, now: &Instance) -> Option<Answer> {
    guest.has_address.then(|| {
        let found = now.has_address.then(|| "the guest has an address".to_owned());
        found.ok_or_else(|| Refusal::not_yet("NoAddress", "the guest had an address and has told none"))
    })
}

fn guest_agent_connected(guest: &Guest, now: &Instance) -> Option<Answer> {
    guest.agent_connected.then(|| {
        let found = now.agent_connected.then(|| "the guest agent answers".to_owned());
        found.ok_or_else(|| Refusal::not_yet("NoGuestAgent", "the guest agent answered before and does not"))
    })
}

impl Guest {
    /// What is known of a guest that runs.
    pub(super) fn of(instance: &Instance) -> Self {
        Self {
            agent_connected: instance.agent_connected,
            has_address: instance.has_address,
            claims: instance.claims.clone(),
        }
    }
}

pub(super) fn passed(name: &str, message: impl Into<String>) -> Check {
    Check { name: name.to_owned(), passed: true, message: message.into() }
}

pub(super) fn failed(name: &str, refusal: &Refusal) -> Check {
    Check { name: name.to_owned(), passed: false, message: refusal.message.clone() }
}

fn describe(disks: &[DiskMove]) -> String {
    let lines = disks.iter().map(|disk| {
        let how = if disk.reading.is_some() { ", where its kubelet mounts it," } else { "" };
        format!(
            "{}: {} on {}{how} to {} on {}",
            disk.claim, disk.old, disk.source_node, disk.new.class, disk.target_node
        )
    });
    lines.collect::<Vec<_>>().join("; ")
}

fn owner_can_stop(asked: &Asked<'_>) -> Answer {
    let Some(name) = &asked.spec.vm else { return Ok("a claim without a VM".into()) };
    let vm = &asked.ctx.fleet.vms[&Key::new(asked.key.namespace.clone(), name)];
    match &vm.owner {
        Owner::Itself => Ok("the VirtualMachine itself".into()),
        Owner::Wukong { name } => Ok(format!("Wukong {name}, by spec.startStrategy.autoStart")),
        Owner::Unknown { kind, name } => Err(Refusal::new(
            "OwnerUnknown",
            format!(
                "the VM belongs to {kind} {name}, which we know neither how to stop nor how to start again: it can only be moved \
                 by hand"
            ),
        )),
    }
}

fn no_other_migration(
    key: &Key,
    spec: &MigrationSpec,
    others: &[&MigrationRecord],
    ctx: &Context<'_>,
) -> Result<(), Refusal> {
    let named = |name: &String| Key::new(key.namespace.clone(), name);
    let vm = spec.vm.as_ref().and_then(|name| ctx.fleet.vms.get(&named(name)));
    let of_vm = vm.into_iter().flat_map(|vm| vm.claims(&key.namespace));
    for claim in of_vm.chain(spec.claim.as_ref().map(named)) {
        let theirs = |other: &&&MigrationRecord| other.disks.iter().any(|disk| disk.claim == claim);
        if let Some(other) = others.iter().find(theirs) {
            let message =
                format!("migration {} moves claim {claim} already: wait for it or cancel it", other.key);
            return Err(Refusal::new("AlreadyMigrating", message));
        }
    }
    Ok(())
}

fn not_migrating_already(asked: &Asked<'_>) -> Answer {
    let vm = asked.spec.vm_key(asked.key);
    let instance = vm.as_ref().and_then(|key| asked.ctx.fleet.vms[key].instance.as_ref());
    if instance.is_some_and(|instance| instance.migrating.is_some()) {
        return Err(Refusal::new(
            "LiveMigrationInFlight",
            "the VM is in a live migration: try again when it has ended",
        ));
    }
    Ok("no other migration has these disks".into())
}

fn disks_unshared(asked: &Asked<'_>) -> Answer {
    let subject = asked.spec.vm_key(asked.key);
    let vm = subject.as_ref().and_then(|key| asked.ctx.fleet.vms.get(key));
    for disk in asked.disks {
        let (reason, why) = match vm.and_then(|vm| vm.fixed.get(&disk.claim.name)) {
            Some(Fixed::Shareable) => ("DiskShareable", "shareable: other VMs may write to it meanwhile"),
            Some(Fixed::ReadOnly) => ("VolumeReadOnly", "readOnly: who fills it is somebody else"),
            None if disk.template.access_modes == ["ReadOnlyMany"] => {
                ("VolumeReadOnly", "ReadOnlyMany: who fills it is somebody else")
            }
            None => ("", ""),
        };
        if !why.is_empty() {
            let message = format!(
                "the disk of claim {} is {why}: it is not moved; take it from the VM, or move the VM's other disks by hand",
                disk.claim
            );
            return Err(Refusal::new(reason, message));
        }
        if let Some(pods) = asked.ctx.fleet.claims_used_by_others.get(&disk.claim) {
            let message = format!(
                "claim {} is in use outside of any VM, by {}: scale down or delete what uses it first; a pod that has ended \
                 counts as long as it exists",
                disk.claim,
                pods_words(pods)
            );
            return Err(Refusal::new("ClaimUsedByPod", message));
        }
        let mut users = asked.ctx.fleet.vms_with(&disk.claim);
        if let Some((other, _)) = users.find(|(key, _)| Some(*key) != subject.as_ref()) {
            let message =
                format!("VM {other} uses claim {} too: its disks cannot be moved apart", disk.claim);
            return Err(Refusal::new("ClaimShared", message));
        }
    }
    Ok("nobody else uses the claims".into())
}

/// The object of a volume that is being deleted goes as soon as its claim does, and nothing takes that word back: there would be
/// nothing to go back to.
fn volumes_stay(asked: &Asked<'_>) -> Answer {
    let volumes = &asked.ctx.fleet.volumes;
    if let Some(disk) = asked.disks.iter().find(|disk| !volumes.contains_key(&disk.old)) {
        let message = format!("volume {} of claim {} is gone: somebody has deleted it", disk.old, disk.claim);
        return Err(Refusal::new("VolumeGone", message));
    }
    let is_going = |name: &VolumeName| volumes.get(name).is_some_and(|volume| volume.deleting);
    let going: Vec<&DiskMove> = asked.disks.iter().filter(|disk| is_going(&disk.old)).collect();
    if !going.is_empty() {
        let names: Vec<String> =
            going.iter().map(|disk| format!("{} of claim {}", disk.old, disk.claim)).collect();
        let adopt = |disk: &&DiskMove| {
            let folder = shell_word(&format!("{}:{}", disk.source_node, disk.source_path));
            format!("kubectl somersault adopt {folder} --claim {}", shell_word(&disk.claim.name))
        };
        let commands: Vec<String> = going.iter().filter(|disk| disk.reading.is_none()).map(adopt).collect();
        let anew = if commands.is_empty() { "make it a new volume".to_owned() } else { commands.join("; ") };
        let patch = |disk: &&DiskMove| {
            let patch = "'{\"spec\":{\"persistentVolumeReclaimPolicy\":\"Retain\"}}'";
            format!("kubectl patch pv {} -p {patch}", shell_word(disk.old.as_str()))
        };
        let retain = going.iter().map(patch).collect::<Vec<_>>().join("; ");
        let message = format!(
            "being deleted, as by kubectl delete pv: volume {}. It stays as long as its claim is bound, and goes when that changes \
             volumes; nothing takes this back. Put it on reclaim policy Retain ({retain}), stop the VM, delete the claim, and bind what \
             is left anew: {anew}",
            names.join(", volume ")
        );
        return Err(Refusal::new("VolumeBeingDeleted", message));
    }
    if let Some(disk) = asked.disks.iter().find(|disk| is_going(&disk.new.name)) {
        let message =
            format!("new volume {} of claim {} is being deleted by somebody", disk.new.name, disk.claim);
        return Err(Refusal::new("VolumeBeingDeleted", message));
    }
    Ok("no volume is being deleted".into())
}

/// Room that stays free on the target beside the copies: a filesystem filled to the brim hurts its neighbours.
const TARGET_RESERVE_PERCENT: u64 = 5;

/// How large each disk is, and what it is.
fn sizes(disks: &[DiskMove], ctx: &Context<'_>) -> String {
    let known = |disk: &DiskMove| {
        if disk.reading.is_some() {
            let what = match disk.new.mode {
                VolumeMode::Block => "a block device",
                VolumeMode::Filesystem => "a volume that nobody looks into before the VM has stopped",
            };
            return format!("{}: {what}, of {} bytes", disk.claim.name, disk.new.capacity_bytes);
        }
        let report = ctx.fleet.reports.get(&disk.source_node);
        let Some(usage) = report.and_then(|report| report.usage.get(folder(&disk.source_path))) else {
            return format!("{}: not reported yet", disk.claim.name);
        };
        let what = match usage.disk_image {
            DiskImage::Present => "a disk image",
            DiskImage::Untold => "a folder that no listing tells of",
            // One of before the first start, or of files of the guest's own.
            DiskImage::Absent | DiskImage::Vanished => "a folder in which no disk.img was seen",
        };
        let (size, on_disk) = (usage.apparent_bytes, usage.allocated_bytes);
        format!("{}: {what}, of {size} bytes, {on_disk} of them allocated", disk.claim.name)
    };
    disks.iter().map(known).collect::<Vec<_>>().join("; ")
}

/// Bytes that copies may take in a root.
pub(crate) fn room_in(root: &StorageRoot) -> u64 {
    root.available_bytes.saturating_sub(root.size_bytes / 100 * TARGET_RESERVE_PERCENT)
}

/// What a disk takes at its destination.
fn needed(disk: &DiskMove, asked: &Asked<'_>) -> Result<u64, Refusal> {
    if disk.reading.is_some() {
        // Nobody looks into it: all that it is made for may be there.
        let volume = asked.ctx.fleet.volumes.get(&disk.old);
        return Ok(volume.map_or(disk.new.capacity_bytes, |volume| volume.capacity_bytes));
    }
    let report = asked.ctx.fleet.reports.get(&disk.source_node);
    // The copy is as sparse as its source, but the VM may go on to fill it: what is allocated must fit.
    let usage = report.and_then(|report| report.usage.get(&disk.source_path));
    usage.map(|usage| usage.allocated_bytes).ok_or_else(|| {
        let message = format!(
            "the agent of node {} has not reported {}: is the folder there, and below one of its storage roots?",
            disk.source_node, disk.source_path
        );
        Refusal::not_yet("SourceNotReported", message)
    })
}

/// What a provisioner makes, it makes where it has room; the rest goes below one root.
fn target_has_storage(asked: &Asked<'_>) -> Answer {
    let differs = |disk: &&DiskMove| disk.template.mode != disk.new.mode;
    if let Some(disk) = asked.disks.iter().find(differs) {
        let message = format!("claim {} asks another volume mode", disk.claim);
        return Err(Refusal::new("VolumeModeDiffers", message));
    }
    let sum = |made: bool| -> Result<u64, Refusal> {
        asked.disks.iter().filter(|disk| disk.staging.is_some() == made).map(|disk| needed(disk, asked)).sum()
    };
    let (by_provisioner, needed) = (sum(true)?, sum(false)?);
    let Some(disk) = asked.disks.iter().find(|disk| disk.staging.is_none()) else {
        let class = &asked.disks[0].new.class;
        return Ok(format!(
            "{by_provisioner} bytes needed; the provisioner of class {class} says whether it has them"
        ));
    };
    let report = asked.ctx.fleet.reports.get(&disk.target_node);
    let root =
        report.and_then(|report| report.roots.iter().find(|root| disk.new.path.starts_with(&root.path)));
    let Some(root) = root.filter(|root| root.is_seen()) else {
        return Err(Refusal::not_yet(
            "TargetNotReported",
            format!(
                "the agent of node {} has not told yet how large the root of {} is",
                disk.target_node, disk.new.path
            ),
        ));
    };
    let usable = room_in(root);
    if root.read_only || usable < needed {
        let message = format!(
            "{} on node {} has {usable} bytes to give and {needed} are needed: make room or choose another destination",
            root.path, disk.target_node
        );
        return Err(Refusal::new("DestinationTooSmall", message));
    }
    Ok(format!("{needed} bytes needed, {usable} to be had in {} on {}", root.path, disk.target_node))
}

fn target_fits_vm(asked: &Asked<'_>) -> Answer {
    let node = match &asked.spec.destination {
        Destination::Node(node) => Some(node),
        // Its disks tie it to where they are.
        Destination::Class(_) => asked.disks.iter().find_map(|disk| disk.new.node.as_ref()),
    };
    let (Some(name), Some(node)) = (&asked.spec.vm, node) else {
        return Ok("no node is prescribed to the VM".into());
    };
    match placement::node_refusal(asked.ctx.fleet, node, &Key::new(asked.key.namespace.clone(), name)) {
        None => Ok(format!("node {node} takes the VM")),
        Some(why) => {
            Err(Refusal::new("TargetDoesNotFitVm", format!("node {node} {why}: choose another node")))
        }
    }
}

/// Never refuses: the old volume stays. But people should know, before a copy is all that stands between them and a
/// failing disk. Backups are not seen from here, snapshots are.
#[allow(clippy::unnecessary_wraps)] // one question of a table
fn backup_known(asked: &Asked<'_>) -> Answer {
    let of_disk = |disk: &DiskMove| match newest_snapshot(asked.ctx.fleet, &disk.claim) {
        Some((name, taken)) => format!("{}: snapshot {name}, taken {taken}", disk.claim),
        None => format!(
            "{}: no snapshot that can be used; whether there is a backup is not seen here",
            disk.claim
        ),
    };
    let lines: Vec<String> = asked.disks.iter().map(of_disk).collect();
    Ok(format!("{}. The old volumes are kept", lines.join("; ")))
}

/// The newest snapshot of a claim that can be restored from, and when it was taken.
fn newest_snapshot<'a>(fleet: &'a Fleet, claim: &Key) -> Option<(&'a str, &'a str)> {
    let of_claim = fleet.snapshots.iter().filter(|(key, snapshot)| {
        key.namespace == claim.namespace && snapshot.ready && snapshot.claim.as_ref() == Some(&claim.name)
    });
    let taken = of_claim.filter_map(|(key, snapshot)| Some((key.name.as_str(), snapshot.taken.as_deref()?)));
    taken.max_by_key(|(_, taken)| *taken)
}
