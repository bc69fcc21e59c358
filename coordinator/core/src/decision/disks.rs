//! Each disk of a VM: where it is, whether it holds data, whether it is sound.

use std::collections::BTreeSet;

use crate::decision::{DiskFinding, Finding, Locality, Question, Reason};
use crate::fleet::{
    self, Claim, ClaimUse, Disk, DiskImage, DiskSource, Fleet, Grade, NodeReport, Owner, StorageRoot, Vm,
    Volume, VolumeMode,
};
use crate::locality::{self, ClassOverrides, Likely};
use crate::names::{Key, NodeName, VolumeName};

/// Annotation in which CDI keeps the phase of the pod that fills a claim.
const IMPORT_POD_PHASE: &str = "cdi.kubevirt.io/storage.pod.phase";

/// Provisioner of classes whose volumes are made by hand.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// A disk with what a decision needs of it.
pub(super) struct Examined {
    pub(super) finding: DiskFinding,
    pub(super) claim: Option<Key>,
    pub(super) volume: Option<VolumeName>,
    pub(super) use_: Option<ClaimUse>,
    /// It must not be lost: every claim but a memory dump, host files, and what we do not know.
    pub(super) holds_data: bool,
    /// It is a system disk, and this is where its content can be had again.
    pub(super) image: Option<String>,
    fault: Option<Finding>,
    importing: bool,
}

impl Examined {
    /// What is broken about its storage, whether its node lives or not.
    pub(super) fn broken(&self) -> Option<Finding> {
        self.fault.clone().filter(|(reason, _)| reason.is_broken_storage() && self.holds_data)
    }

    /// Why the VM cannot be started elsewhere with it.
    pub(super) fn blocker(&self) -> Option<Finding> {
        if !self.holds_data {
            return None;
        }
        let name = &self.finding.disk;
        match (&self.finding.locality, &self.fault) {
            (Locality::Local { node }, Some((Reason::HostDisk, _))) => Some((
                Reason::HostDisk,
                format!("disk {name} is a hostDisk on node {node}, outside any claim"),
            )),
            (Locality::Local { node }, _) => {
                Some((local_reason(self.use_), format!("disk {name} is on node {node} only")))
            }
            (Locality::Unknown, Some((reason, why))) => Some((*reason, why.clone())),
            (Locality::Unknown, None) => {
                Some((Reason::LocalityUnknown, format!("disk {name}: nobody can tell where it is")))
            }
            (Locality::Network, _) if self.importing => {
                Some((Reason::DataVolumeImporting, format!("disk {name} is still being imported")))
            }
            (Locality::Network | Locality::Rebuildable | Locality::Lost, _) => None,
        }
    }

    /// A data disk on network storage.
    pub(super) fn on_network(&self) -> bool {
        self.holds_data && self.finding.locality == Locality::Network
    }
}

fn local_reason(use_: Option<ClaimUse>) -> Reason {
    match use_ {
        Some(ClaimUse::Hotplugged) => Reason::LocalHotplug,
        Some(ClaimUse::State) => Reason::LocalState,
        Some(ClaimUse::EphemeralBacking) => Reason::LocalBacking,
        Some(ClaimUse::Disk | ClaimUse::Folder | ClaimUse::MemoryDump) | None => Reason::LocalDisk,
    }
}

/// Examines every disk, in the VM's order.
pub(super) fn examine(
    fleet: &Fleet,
    overrides: &ClassOverrides,
    question: &Question,
    key: &Key,
    vm: &Vm,
) -> Vec<Examined> {
    vm.disks.iter().map(|disk| examine_one(fleet, overrides, question, key, vm, disk)).collect()
}

fn examine_one(
    fleet: &Fleet,
    overrides: &ClassOverrides,
    question: &Question,
    key: &Key,
    vm: &Vm,
    disk: &Disk,
) -> Examined {
    let verdict = locality::judge(fleet, overrides, &key.namespace, disk);
    let (claim_key, use_) = match &disk.source {
        DiskSource::Claim { name, use_ } => (Some(Key::new(&key.namespace, name)), Some(*use_)),
        _ => (None, None),
    };
    let holds_data = match &disk.source {
        DiskSource::Claim { use_, .. } => *use_ != ClaimUse::MemoryDump,
        DiskSource::HostDisk { .. } | DiskSource::Unknown { .. } => true,
        DiskSource::Rebuildable { .. } | DiskSource::Empty => false,
    };
    let claim = claim_key.as_ref().and_then(|key| fleet.claims.get(key));
    let volume_name = claim.and_then(|claim| claim.volume.clone());
    let volume = volume_name.as_ref().and_then(|name| fleet.volumes.get(name));
    let locality = match (&disk.source, vm.node()) {
        // A hostDisk is where the VM last ran: that much its instance tells.
        (DiskSource::HostDisk { .. }, Some(node)) => Locality::Local { node: node.clone() },
        _ => verdict.locality,
    };
    let mut because = verdict.because;
    if use_ == Some(ClaimUse::MemoryDump) {
        because.push_str("; a memory dump, which may be lost");
    }
    let fault = verdict.fault.map(|reason| (reason, format!("disk {}: {because}", disk.name)));
    let fault = fault.or_else(|| match (&locality, claim, volume) {
        (Locality::Local { node }, Some(claim), Some(volume)) => {
            let as_used =
                Used { vm, disk: &disk.name, claim_name: claim_key.as_ref()?, claim, volume, use_: use_? };
            broken_on_node(fleet, question, node, &as_used)
        }
        _ => None,
    });
    let unplaced = matches!(&fault, Some((Reason::LocalityUnknown, _)));
    let free_folder = |volume: &Volume| volume.source.path().is_some() && volume.node_affinity.is_none();
    let class = class_of(claim, volume);
    let finding = DiskFinding {
        untied: unplaced && volume.is_some_and(free_folder),
        declared: class.as_ref().is_some_and(|class| overrides.0.contains_key(class)),
        disk: disk.name.clone(),
        claim: claim_key.as_ref().map(|key| key.name.clone()),
        volume: volume_name.as_ref().map(|name| name.0.clone()),
        class,
        locality,
        because,
    };
    Examined {
        finding,
        importing: claim.is_some_and(is_importing),
        claim: claim_key,
        volume: volume_name,
        use_,
        holds_data,
        image: disk.image.clone().filter(|_| disk.boot && use_ == Some(ClaimUse::Disk)),
        fault,
    }
}

fn class_of(claim: Option<&Claim>, volume: Option<&Volume>) -> Option<String> {
    let class = volume.map(|volume| &volume.class).filter(|class| !class.is_empty());
    class.or(claim.map(|claim| &claim.class)).filter(|class| !class.is_empty()).cloned()
}

fn is_importing(claim: &Claim) -> bool {
    claim.data_volume.is_some()
        && claim.annotations.get(IMPORT_POD_PHASE).is_some_and(|phase| phase != "Succeeded")
}

/// A claim as a VM uses it.
struct Used<'a> {
    vm: &'a Vm,
    disk: &'a str,
    claim_name: &'a Key,
    claim: &'a Claim,
    volume: &'a Volume,
    use_: ClaimUse,
}

/// What the agent of a node last told about a volume there that makes it an incident of its own.
fn broken_on_node(fleet: &Fleet, question: &Question, node: &NodeName, used: &Used<'_>) -> Option<Finding> {
    let dead = question.dead.contains(node);
    let (reason, what) = on_node(fleet, node, dead, used)?;
    let when = if dead { "when last heard of, " } else { "" };
    let disk = used.disk;
    let why = match what {
        Broken::Disk(name) => {
            format!("disk {disk}: {when}physical disk {name} of node {node} was graded Failed")
        }
        Broken::Folder(path) => format!("disk {disk}: {when}there was no {path} on node {node}"),
        Broken::Image(path, how) => {
            format!("disk {disk}: {when}there was no disk.img in {path} on node {node}, though {how}")
        }
    };
    Some((reason, why))
}

/// What of a volume on a node is broken.
enum Broken<'a> {
    /// The physical disk of this name.
    Disk(&'a str),
    /// The folder.
    Folder(&'a str),
    /// The image in the folder, and how we know that there must be one.
    Image(&'a str, &'static str),
}

/// The last words of a dead node's agent may be older than the volume, so that only what it has lost before our eyes
/// counts; of a living one nothing counts before its next listing (`recovery/storage`).
fn on_node<'a>(
    fleet: &'a Fleet,
    node: &NodeName,
    dead: bool,
    used: &Used<'a>,
) -> Option<(Reason, Broken<'a>)> {
    let path = fleet::folder(used.volume.source.path()?);
    let report = fleet.reports.get(node)?;
    let root = report.root_of(path)?;
    if let Some(name) = &root.disk
        && report.disks.get(name).is_some_and(|health| health.grade == Grade::Failed)
    {
        return Some((Reason::DiskFailed, Broken::Disk(name)));
    }
    // Agents tell of folders: a block volume's path is a device.
    if used.volume.mode != VolumeMode::Filesystem {
        return None;
    }
    match report.usage.get(path) {
        None => {
            let missing = if dead { report.gone.contains(path) } else { has_looked(report, root, path) };
            missing.then_some((Reason::VolumePathMissing, Broken::Folder(path)))
        }
        Some(usage) if dead && usage.disk_image == DiskImage::Absent => None,
        Some(usage) => {
            let how = image_must_exist(fleet, node, used, usage.disk_image)?;
            Some((Reason::DiskImageMissing, Broken::Image(path, how)))
        }
    }
}

/// Whether it says anything that the agent does not tell of this folder. One that neither lists nor has measured
/// anything below the root yet has not looked.
fn has_looked(report: &NodeReport, root: &StorageRoot, path: &str) -> bool {
    root.lists(path) && (root.listed_age.is_some() || report.usage.keys().any(|folder| root.holds(folder)))
}

/// How we know that an image that is not there must be. A volume with which no VM was ever started, and which nobody
/// has filled, has none, and that is no failure.
fn image_must_exist(
    fleet: &Fleet,
    node: &NodeName,
    used: &Used<'_>,
    image: DiskImage,
) -> Option<&'static str> {
    let keeps_image = matches!(used.use_, ClaimUse::Disk | ClaimUse::Hotplugged);
    if !keeps_image || used.claim.mode != VolumeMode::Filesystem {
        return None;
    }
    match image {
        DiskImage::Untold | DiskImage::Present => None,
        DiskImage::Vanished => Some("it was there before"),
        DiskImage::Absent if runs_with(used, node) => Some("the VM runs with it"),
        DiskImage::Absent => is_filled(fleet, used).then_some("its DataVolume has filled it"),
    }
}

/// Whether the VM's instance runs with the claim on this node. During a live migration its disks may be on two.
fn runs_with(used: &Used<'_>, node: &NodeName) -> bool {
    used.vm.instance.as_ref().is_some_and(|instance| {
        instance.phase == "Running"
            && instance.migrating.is_none()
            && instance.node.as_ref() == Some(node)
            && instance.claims.contains(&used.claim_name.name)
    })
}

fn is_filled(fleet: &Fleet, used: &Used<'_>) -> bool {
    let Some(owner) = &used.claim.data_volume else { return false };
    let data_volume = fleet.data_volumes.get(&Key::new(&used.claim_name.namespace, owner));
    data_volume.is_some_and(|found| found.phase == "Succeeded" || found.pre_populated)
}

/// Whether the storage of a VM may be broken: never no where [`Examined::broken`] finds something, and now and then
/// yes where it does not. It asks no node but the one that a volume names, so that ten thousand VMs are looked through
/// in the time that one decision about a few hundred of them takes.
pub(super) fn may_be_broken(fleet: &Fleet, key: &Key, vm: &Vm) -> bool {
    vm.disks.iter().any(|disk| match &disk.source {
        DiskSource::Claim { name, use_ } if *use_ != ClaimUse::MemoryDump => {
            let claim_name = Key::new(&key.namespace, name);
            let Ok((claim, _, volume)) = locality::bound_volume(fleet, &claim_name) else { return true };
            if volume.source.path().is_none() && volume.node_affinity.is_none() {
                return false;
            }
            let used = Used { vm, disk: &disk.name, claim_name: &claim_name, claim, volume, use_: *use_ };
            match locality::likely_node(fleet, volume) {
                Likely::Node(node) => on_node(fleet, node, false, &used).is_some(),
                Likely::Nowhere => false,
                Likely::Unclear => true,
            }
        }
        DiskSource::Claim { .. }
        | DiskSource::HostDisk { .. }
        | DiskSource::Rebuildable { .. }
        | DiskSource::Empty
        | DiskSource::Unknown { .. } => false,
    })
}

/// Whether the VM can be rebuilt: its only blockers are local system disks with an image, which CDI would import anew
/// on another node, and its owner agrees. The error is the reason that forbids it, where it would otherwise be
/// possible.
pub(super) fn rebuild(
    fleet: &Fleet,
    vm: &Vm,
    blockers: &[Finding],
    examined: &[Examined],
) -> Result<Finding, Option<Finding>> {
    let only_local = blockers.iter().all(|(reason, _)| *reason == Reason::LocalDisk);
    if !only_local || local(examined).any(|disk| disk.image.is_none()) {
        return Err(None);
    }
    let refusal = local(examined).find_map(|disk| not_importable(fleet, disk).err());
    match (vm.rebuild_allowed, refusal) {
        (_, None) => {}
        (true, Some(refusal)) => return Err(Some(refusal)),
        (false, Some(_)) => return Err(None),
    }
    if !vm.rebuild_allowed {
        return Err(Some((
            Reason::RebuildNotAllowed,
            "its system disk could be imported anew, but its owner has not allowed that".to_owned(),
        )));
    }
    if let Owner::Unknown { kind, name } = &vm.owner {
        return Err(Some((
            Reason::OwnerUnknown,
            format!("its owner {kind} {name} is of a kind that we cannot stop while its disk changes"),
        )));
    }
    let names: BTreeSet<&str> = local(examined).map(|disk| disk.finding.disk.as_str()).collect();
    let names: Vec<&str> = names.into_iter().collect();
    Ok((
        Reason::SystemDiskRebuildable,
        format!("only system disk {} is local, and it can be imported anew", names.join(", ")),
    ))
}

/// Data disks that are on one node.
pub(super) fn local(examined: &[Examined]) -> impl Iterator<Item = &Examined> {
    examined.iter().filter(|disk| disk.holds_data && disk.finding.is_local())
}

/// Whether CDI would make the claim of this disk anew, import its image into it, and on another node.
fn not_importable(fleet: &Fleet, disk: &Examined) -> Result<(), Finding> {
    let name = &disk.finding.disk;
    let missing = || (Reason::DataVolumeMissing, format!("disk {name}: no DataVolume controls its claim"));
    let key = disk.claim.as_ref().ok_or_else(missing)?;
    let claim = fleet.claims.get(key).ok_or_else(missing)?;
    let owner = claim.data_volume.as_ref().ok_or_else(missing)?;
    let data_volume =
        fleet.data_volumes.get(&Key::new(key.namespace.clone(), owner.clone())).ok_or_else(missing)?;
    if data_volume.pre_populated {
        let why = format!(
            "disk {name}: DataVolume {owner} is marked as filled by somebody else and imports no more"
        );
        return Err((Reason::DataVolumePrePopulated, why));
    }
    if data_volume.image.is_none() {
        let why =
            format!("disk {name}: the source of DataVolume {owner} is no image that can be imported again");
        return Err((Reason::ImageNotImportable, why));
    }
    let class = &claim.class;
    let portable = fleet.classes.get(class).is_some_and(|class| {
        class.waits_for_consumer && class.provisioner != NO_PROVISIONER && !class.provisioner.is_empty()
    });
    if !portable {
        let why = format!(
            "disk {name}: storage class {class:?} does not make volumes where their VM is scheduled \
             (WaitForFirstConsumer, with a provisioner)"
        );
        return Err((Reason::ClassNotPortable, why));
    }
    Ok(())
}
