//! Each disk of a VM: where it is, whether it holds data, whether it is sound.

use std::collections::BTreeSet;

use crate::decision::{DiskFinding, Finding, Locality, Question, Reason};
use crate::fleet::{Claim, ClaimUse, Disk, DiskSource, Fleet, Grade, Owner, Vm, Volume};
use crate::locality::{self, ClassOverrides};
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
        let (reason, _) = self.fault.as_ref()?;
        let broken = matches!(
            reason,
            Reason::ClaimLost
                | Reason::ClaimMissing
                | Reason::VolumeMissing
                | Reason::VolumeBoundElsewhere
                | Reason::VolumePathMissing
                | Reason::DiskFailed
                | Reason::DiskNodeGone
        );
        self.fault.clone().filter(|_| broken && self.holds_data)
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
        Some(ClaimUse::Disk | ClaimUse::MemoryDump) | None => Reason::LocalDisk,
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
    let fault = fault.or_else(|| match (&locality, volume) {
        (Locality::Local { node }, Some(volume)) => broken_on_node(fleet, question, node, &disk.name, volume),
        _ => None,
    });
    let finding = DiskFinding {
        disk: disk.name.clone(),
        claim: claim_key.as_ref().map(|key| key.name.clone()),
        volume: volume_name.as_ref().map(|name| name.0.clone()),
        class: class_of(claim, volume),
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

/// What the agent of a node last told about a volume there that makes it an incident of its own.
fn broken_on_node(
    fleet: &Fleet,
    question: &Question,
    node: &NodeName,
    disk: &str,
    volume: &Volume,
) -> Option<Finding> {
    let path = volume.source.path()?;
    let report = fleet.reports.get(node)?;
    let root = report.root_of(path)?;
    let when = if question.dead.contains(node) { "when last heard of, " } else { "" };
    if let Some(name) = &root.disk
        && report.disks.get(name).is_some_and(|health| health.grade == Grade::Failed)
    {
        return Some((
            Reason::DiskFailed,
            format!("disk {disk}: {when}physical disk {name} of node {node} was graded Failed"),
        ));
    }
    // An agent that has measured nothing below the root yet has not looked: silence is no finding.
    let measured = report.usage.keys().any(|folder| root.holds(folder));
    (measured && !report.usage.contains_key(path)).then(|| {
        (Reason::VolumePathMissing, format!("disk {disk}: {when}there was no {path} on node {node}"))
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
    examined.iter().filter(|disk| disk.holds_data && matches!(disk.finding.locality, Locality::Local { .. }))
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
