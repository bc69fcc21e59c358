//! Which disks of the subject move, from where, whereto: or why not.

use std::collections::BTreeMap;

use super::claims::reserved;
use super::{
    CLASS_NOT_FOUND, Context, Destination, DiskMove, MigrationSpec, OldVolume, Refusal, WhichDisks, mounted,
    staging,
};
use crate::decision::{Locality, placement};
use crate::fleet::{
    Claim, ClaimUse, Disk, DiskSource, NodeReport, StorageClass, StorageRoot, Vm, Volume, VolumeMode, folder,
};
use crate::io::{ClaimTemplate, NewVolume};
use crate::locality;
use crate::names::{Key, NodeName, Uid, VolumeName};
use crate::runbook::shell_word;

/// Annotations that belong to the binder, the provisioner or CDI. A re-created claim that carried them would be
/// taken for bound already (phase Lost), or imported again.
const FOREIGN_ANNOTATIONS: [&str; 5] = [
    "pv.kubernetes.io/",
    "cdi.kubevirt.io/",
    "volume.kubernetes.io/",
    "volume.beta.kubernetes.io/",
    "kubectl.kubernetes.io/last-applied-configuration",
];

/// Phase of a `DataVolume` whose claim is filled.
const FILLED: &str = "Succeeded";

/// Every disk that has to move, in the order of the VM.
pub(super) fn disks_to_move(
    migration: &Key,
    uid: &Uid,
    spec: &MigrationSpec,
    ctx: &Context<'_>,
) -> Result<Vec<DiskMove>, Refusal> {
    let local = match subject(migration, spec, ctx)? {
        Subject::Vm(key, vm) => disks_of_vm(&key, vm, spec, ctx)?,
        Subject::Claim(key) => claim_alone(&key, spec, ctx)?.into_iter().collect(),
    };
    if local.is_empty() {
        return Err(Refusal::new("NothingToMove", nothing_to_move(spec)));
    }
    // First of all that is asked of nodes: no other answer helps, and no report will come.
    let dead = |source: &Source<'_>| source.node.clone().filter(|node| ctx.dead.contains(node));
    if let Some((source, node)) = local.iter().find_map(|source| Some((source, dead(source)?))) {
        let message = format!(
            "node {node} holds volume {} and is dead, so nothing can be copied from it: bring the node back first{}",
            source.volume_name,
            spec.vm.as_ref().map_or_else(String::new, |vm| format!(
                ", or bring the VM back by hand: kubectl somersault runbook {} -n {}",
                shell_word(vm),
                shell_word(&migration.namespace)
            ))
        );
        return Err(Refusal::new("SourceDead", message));
    }
    let vm = spec.vm_key(migration);
    let target = choose_target(spec, vm.as_ref(), &local, ctx)?;
    let runs_on = vm.and_then(|vm| ctx.fleet.vms.get(&vm)?.node());
    local.into_iter().map(|source| disk_move(migration, uid, source, &target, runs_on, ctx)).collect()
}

fn nothing_to_move(spec: &MigrationSpec) -> String {
    let whose = if spec.vm.is_some() { "each disk of the VM is" } else { "the claim is" };
    match &spec.destination {
        Destination::Node(node) => {
            format!(
                "{whose} on node {node} already, or on network storage: choose another node, or a storage class"
            )
        }
        Destination::Class(class) if spec.disks == WhichDisks::All => {
            format!("{whose} of class {class} already")
        }
        Destination::Class(_) => format!(
            "{whose} on network storage already: every node reaches it as it is (to move it all the same: \
             spec.disks: All, or --include-network-disks)"
        ),
    }
}

enum Subject<'a> {
    Vm(Key, &'a Vm),
    Claim(Key),
}

fn subject<'a>(migration: &Key, spec: &MigrationSpec, ctx: &Context<'a>) -> Result<Subject<'a>, Refusal> {
    let key = |name: &str| Key::new(migration.namespace.clone(), name);
    match (&spec.vm, &spec.claim) {
        (Some(vm), None) => {
            let key = key(vm);
            let found = ctx.fleet.vms.get(&key);
            found.map(|vm| Subject::Vm(key.clone(), vm)).ok_or_else(|| {
                Refusal::new(
                    "VmNotFound",
                    format!("there is no VirtualMachine {key}: check name and namespace"),
                )
            })
        }
        (None, Some(claim)) => {
            let key = key(claim);
            let user = ctx.fleet.vms_with(&key).next();
            match user {
                Some((vm, _)) => Err(Refusal::new(
                    "ClaimUsedByVm",
                    format!(
                        "claim {key} belongs to VM {vm}: migrate the VM, so that all its disks move together"
                    ),
                )),
                None => Ok(Subject::Claim(key)),
            }
        }
        _ => Err(Refusal::new("InvalidSpec", "set exactly one of spec.vm and spec.claim")),
    }
}

/// A disk that moves, and where it is.
struct Source<'a> {
    claim_key: Key,
    claim: &'a Claim,
    volume_name: VolumeName,
    volume: &'a Volume,
    /// The one node that has it; `None` on network storage.
    node: Option<NodeName>,
    /// Its path below a storage root; `None` where only kubelets mount it.
    path: Option<String>,
}

fn disks_of_vm<'a>(
    key: &Key,
    vm: &Vm,
    spec: &MigrationSpec,
    ctx: &Context<'a>,
) -> Result<Vec<Source<'a>>, Refusal> {
    let mut sources = Vec::new();
    for disk in &vm.disks {
        match &disk.source {
            DiskSource::Claim { use_: ClaimUse::MemoryDump, .. }
            | DiskSource::Rebuildable { .. }
            | DiskSource::Empty => {}
            DiskSource::Claim { .. } => {
                let (locality, because) =
                    locality::locate(ctx.fleet, &ctx.policy.class_overrides, &key.namespace, disk);
                match locality {
                    Locality::Local { node } if spec.destination != Destination::Node(node.clone()) => {
                        sources.push(source(&key.namespace, disk, Some(node), ctx)?);
                    }
                    Locality::Network => {
                        sources.extend(on_network(&key.namespace, disk, spec, ctx)?);
                    }
                    Locality::Unknown => {
                        let message = format!(
                            "disk {} of VM {key} cannot be placed ({because}), so it cannot be copied: see what would tell, by \
                             kubectl somersault explain vm/{}",
                            disk.name,
                            shell_word(&key.to_string())
                        );
                        return Err(Refusal::new("DiskLocalityUnknown", message));
                    }
                    _ => {}
                }
            }
            DiskSource::HostDisk { path } => {
                let message =
                    format!("disk {} of VM {key} is the host file {path}, outside any claim", disk.name);
                return Err(Refusal::new("HostDisk", message));
            }
            DiskSource::Unknown { field } => {
                let message =
                    format!("disk {} of VM {key} has a source that we do not know: {field:?}", disk.name);
                return Err(Refusal::new("DiskSourceUnknown", message));
            }
        }
    }
    Ok(sources)
}

fn claim_alone<'a>(
    key: &Key,
    spec: &MigrationSpec,
    ctx: &Context<'a>,
) -> Result<Option<Source<'a>>, Refusal> {
    let disk = Disk {
        name: key.name.clone(),
        source: DiskSource::Claim { name: key.name.clone(), use_: ClaimUse::Disk },
        boot: false,
        image: None,
    };
    let claim = ctx.fleet.claims.get(key);
    if claim.is_none_or(|claim| claim.volume.is_none()) {
        let message = match claim {
            None => format!("there is no claim {key}: choose one of kubectl get pvc -n {}", key.namespace),
            Some(_) => format!("claim {key} is not bound, so there is nothing to move: kubectl describe it"),
        };
        return Err(Refusal::new("ClaimNotBound", message));
    }
    match locality::locate(ctx.fleet, &ctx.policy.class_overrides, &key.namespace, &disk) {
        (Locality::Local { node }, _) if spec.destination == Destination::Node(node.clone()) => Ok(None),
        (Locality::Local { node }, _) => source(&key.namespace, &disk, Some(node), ctx).map(Some),
        (Locality::Network, _) => on_network(&key.namespace, &disk, spec, ctx),
        (Locality::Unknown, because) => {
            let message = format!(
                "claim {key} cannot be placed ({because}), so it cannot be copied: tell by a node affinity which node its \
                 volume is on, or in the policy where its storage class is"
            );
            Err(Refusal::new("DiskLocalityUnknown", message))
        }
        _ => Ok(None),
    }
}

/// A disk on network storage, where it is to move.
fn on_network<'a>(
    namespace: &str,
    disk: &Disk,
    spec: &MigrationSpec,
    ctx: &Context<'a>,
) -> Result<Option<Source<'a>>, Refusal> {
    let Destination::Class(class) = &spec.destination else { return Ok(None) };
    if spec.disks != WhichDisks::All {
        return Ok(None);
    }
    let DiskSource::Claim { name, .. } = &disk.source else { return Ok(None) };
    let bound = locality::bound_volume(ctx.fleet, &Key::new(namespace, name));
    // One that is there already is nobody's concern, however it is made.
    if bound.is_ok_and(|(_, _, volume)| volume.class == *class) {
        return Ok(None);
    }
    source(namespace, disk, None, ctx).map(Some)
}

fn source<'a>(
    namespace: &str,
    disk: &Disk,
    node: Option<NodeName>,
    ctx: &Context<'a>,
) -> Result<Source<'a>, Refusal> {
    let DiskSource::Claim { name, .. } = &disk.source else {
        unreachable!("only claims are located as local or on the network")
    };
    let claim_key = Key::new(namespace, name);
    let missing = |what: &str| Refusal::new("ClaimNotBound", format!("claim {claim_key} {what}"));
    let claim = ctx.fleet.claims.get(&claim_key).ok_or_else(|| missing("does not exist"))?;
    let volume_name = claim.volume.clone().ok_or_else(|| missing("is not bound"))?;
    let volume =
        ctx.fleet.volumes.get(&volume_name).ok_or_else(|| missing("names a volume that is not there"))?;
    data_volume_is_filled(&claim_key, claim, ctx)?;
    let path = path(&volume_name, volume, node.as_ref(), ctx)?;
    Ok(Source { claim_key, claim, volume_name, volume, node, path })
}

/// Where agents read a volume; `None` where kubelets mount it and no root covers it.
fn path(
    name: &VolumeName,
    volume: &Volume,
    node: Option<&NodeName>,
    ctx: &Context<'_>,
) -> Result<Option<String>, Refusal> {
    let is_found = mounted::is_found(&volume.source);
    let Some(path) = volume.source.path().filter(|_| volume.mode == VolumeMode::Filesystem) else {
        let message = format!(
            "volume {name} is {}: only what agents reach below a storage root can be copied, or where kubelets mount CSI, NFS \
             and local volumes",
            mounted::words(&volume.source)
        );
        return if is_found { Ok(None) } else { Err(Refusal::new("VolumeNotReachable", message)) };
    };
    let report = node.and_then(|node| ctx.fleet.reports.get(node));
    let is_below = report.is_none_or(|report| report.root_of(path).is_some_and(|root| root.lists(path)));
    let is_read = report.is_some_and(|report| report.pods.is_some());
    Ok((is_below || !is_found || !is_read).then(|| path.to_owned()))
}

/// A claim of a `DataVolume` can change its volume once CDI has filled it: CDI is then told that it need not do so again
/// (which the shell does, and reads back, before the claim goes). Told before, the import would stop halfway.
fn data_volume_is_filled(claim_key: &Key, claim: &Claim, ctx: &Context<'_>) -> Result<(), Refusal> {
    let Some(name) = &claim.data_volume else { return Ok(()) };
    let Some(found) = ctx.fleet.data_volumes.get(&Key::new(claim_key.namespace.clone(), name.clone())) else {
        let message =
            format!("claim {claim_key} belongs to DataVolume {name}, which is not there: look at its owner");
        return Err(Refusal::new("DataVolumeMissing", message));
    };
    if found.pre_populated || found.phase == FILLED {
        return Ok(());
    }
    let message =
        format!("DataVolume {name} of claim {claim_key} is in phase {:?}: wait for its import", found.phase);
    Err(Refusal::not_yet("DataVolumeImporting", message))
}

/// Where the copies land: all disks of the subject on one node.
struct Target {
    node: NodeName,
    class: String,
    /// The root that takes them; `None` where the class's own provisioner makes the volumes.
    root: Option<StorageRoot>,
}

impl Target {
    fn below(node: &NodeName, root: &StorageRoot) -> Self {
        Self { node: node.clone(), class: root.class.clone(), root: Some(root.clone()) }
    }
}

fn choose_target(
    spec: &MigrationSpec,
    vm: Option<&Key>,
    sources: &[Source<'_>],
    ctx: &Context<'_>,
) -> Result<Target, Refusal> {
    match &spec.destination {
        Destination::Node(node) => {
            let class = one_class(sources)?;
            let report = usable_report(node, ctx)?;
            let fits = |root: &&StorageRoot| root.class == class && !root.shared && root.takes_copies();
            match report.roots.iter().find(fits) {
                Some(root) => Ok(Target::below(node, root)),
                None if staging::can_hold(ctx.fleet, node, &class) => {
                    Ok(Target { node: node.clone(), class, root: None })
                }
                None => Err(Refusal::new(
                    "ClassNotOnNode",
                    format!(
                        "the agent of node {node} has no storage root of class {class} that takes copies, nor may it write to what its \
                         kubelet mounts (component movers of Somersault's deploy/)"
                    ),
                )),
            }
        }
        Destination::Class(class) => {
            if !ctx.fleet.classes.contains_key(class) {
                let message =
                    format!("there is no StorageClass {class}: choose one of kubectl get storageclass");
                return Err(Refusal::new(CLASS_NOT_FOUND, message));
            }
            target_of_class(class, vm, sources, ctx)
        }
    }
}

/// Where the VM can run first of all, as far as the disks tie it to their node; then away from the source: its disk may be why
/// we move. A root of the class is written without anybody's help; else its
/// provisioner is asked.
fn target_of_class(
    class: &str,
    vm: Option<&Key>,
    sources: &[Source<'_>],
    ctx: &Context<'_>,
) -> Result<Target, Refusal> {
    let on_source = |node: &NodeName| sources.iter().any(|source| source.node.as_ref() == Some(node));
    let refusals = vm.map(|vm| placement::node_refusals(ctx.fleet, vm));
    let takes = |node: &NodeName| refusals.as_ref().is_none_or(|refusal| refusal(node).is_none());
    // A folder of a share is a volume only to who can say what the share is.
    let named = ctx.fleet.classes.get(class).is_some_and(StorageClass::names_its_export);
    let below_root = ctx
        .usable
        .iter()
        .filter_map(|node| ctx.fleet.reports.get(node).map(|report| (node, report)))
        .flat_map(|(node, report)| report.roots.iter().map(move |root| (node, root)))
        .filter(|(node, root)| {
            let takes = root.class == class && !root.read_only && root.takes_copies();
            takes && if root.shared { named } else { !on_source(node) }
        })
        .max_by_key(|(node, root)| {
            let order = std::cmp::Reverse((*node).clone());
            (root.shared || takes(node), !on_source(node), root.available_bytes, order)
        });
    if let Some((node, root)) = below_root {
        return Ok(Target::below(node, root));
    }
    let held = ctx.usable.iter().filter(|node| staging::can_hold(ctx.fleet, node, class));
    let held = held.max_by_key(|node| (takes(node), !on_source(node), std::cmp::Reverse((*node).clone())));
    if let Some(node) = held {
        return Ok(Target { node: node.clone(), class: class.to_owned(), root: None });
    }
    let message = format!(
        "no healthy node's agent has a writable storage root of class {class} that takes copies, nor may any write to what \
         kubelets mount (component movers of Somersault's deploy/)"
    );
    Err(Refusal::new("ClassNotReachable", message))
}

fn one_class(sources: &[Source<'_>]) -> Result<String, Refusal> {
    let mut by_class: BTreeMap<&str, &Key> = BTreeMap::new();
    for source in sources {
        by_class.insert(&source.volume.class, &source.claim_key);
    }
    match by_class.keys().collect::<Vec<_>>().as_slice() {
        [class] => Ok((**class).to_owned()),
        classes => {
            let message = format!("the disks are of several classes ({classes:?}): name a destination class");
            Err(Refusal::new("SeveralClasses", message))
        }
    }
}

fn usable_report<'a>(node: &NodeName, ctx: &Context<'a>) -> Result<&'a NodeReport, Refusal> {
    if !ctx.fleet.nodes.contains_key(node) {
        return Err(Refusal::new(
            "NodeNotFound",
            format!("there is no node {node}: choose one of kubectl get nodes"),
        ));
    }
    if ctx.dead.contains(node) {
        return Err(Refusal::new(
            "TargetDead",
            format!("node {node} is dead: choose another node, or bring it back first"),
        ));
    }
    if !ctx.usable.contains(node) {
        return Err(Refusal::not_yet(
            "TargetNotUsable",
            format!(
                "node {node} is not healthy, or its agent is silent: choose another node, or see kubectl somersault status"
            ),
        ));
    }
    ctx.fleet.reports.get(node).ok_or_else(|| {
        Refusal::not_yet("TargetNotReported", format!("the agent of node {node} has not reported yet"))
    })
}

fn disk_move(
    migration: &Key,
    uid: &Uid,
    source: Source<'_>,
    target: &Target,
    runs_on: Option<&NodeName>,
    ctx: &Context<'_>,
) -> Result<DiskMove, Refusal> {
    let source_node = match &source.path {
        Some(path) => reader(&source, path, &target.node, ctx)?,
        None => mounting_reader(&source, &target.node, runs_on, ctx)?,
    };
    let name = volume_name(migration, uid, &source);
    let is_device = source.volume.mode == VolumeMode::Block;
    let root = target.root.as_ref().filter(|_| !is_device);
    if is_device && ctx.fleet.reports.get(&target.node).is_none_or(|report| report.pods.is_none()) {
        let message = format!(
            "volume {} is a block device, and the agent of node {} may not reach the pods that hold such (component movers of \
             Somersault's deploy/)",
            source.volume_name, target.node
        );
        return Err(Refusal::new("ClassNotReachable", message));
    }
    let new = NewVolume {
        class: target.class.clone(),
        node: root.filter(|root| !root.shared).map(|_| target.node.clone()),
        path: root.map_or_else(String::new, |root| format!("{}/{name}", root.path.trim_end_matches('/'))),
        capacity_bytes: capacity(&source, &source_node, root.is_none(), ctx),
        access_modes: source.volume.access_modes.clone(),
        mode: source.volume.mode,
        claim: reserved(&source.claim_key, &name),
        name: VolumeName(name),
    };
    Ok(DiskMove {
        template: template(source.claim, &new.class),
        claim: source.claim_key,
        claim_uid: source.claim.uid.clone(),
        old: source.volume_name,
        source_node,
        reading: source.path.is_none().then(|| format!("{}-source", new.name)),
        source_path: source.path.unwrap_or_default(),
        target_node: target.node.clone(),
        staging: root.is_none().then(|| new.name.0.clone()),
        new,
        copied: None,
        old_volume: OldVolume::Kept,
    })
}

/// The node whose agent reads a disk: the one that has it; of a folder that nodes share, the target itself, or else any.
fn reader(
    source: &Source<'_>,
    path: &str,
    target: &NodeName,
    ctx: &Context<'_>,
) -> Result<NodeName, Refusal> {
    if let Some(node) = &source.node {
        return usable_source(source, node, ctx);
    }
    let shares = |node: &&NodeName| {
        let root = ctx.fleet.reports.get(*node).and_then(|report| report.root_of(path));
        root.is_some_and(|root| root.shared && root.lists(path))
    };
    // Where the share is not mounted, the folder is not there.
    let sees = |node: &&NodeName| {
        let report = ctx.fleet.reports.get(*node);
        report.is_some_and(|report| report.usage.contains_key(folder(path)))
    };
    let nodes = || std::iter::once(target).chain(ctx.usable).filter(shares);
    let reader = nodes().find(sees).or_else(|| nodes().next());
    reader.cloned().ok_or_else(|| {
        let message = format!(
            "volume {} is at {path} and on network storage, and no healthy node's agent has a storage root there that is told to be \
             shared: --shared-root of the agents",
            source.volume_name
        );
        Refusal::not_yet("VolumeNotReachable", message)
    })
}

fn usable_source(source: &Source<'_>, node: &NodeName, ctx: &Context<'_>) -> Result<NodeName, Refusal> {
    if ctx.usable.contains(node) {
        return Ok(node.clone());
    }
    let message = format!(
        "node {node} holds volume {} and is not healthy, so nothing can be read from it: see kubectl somersault status",
        source.volume_name
    );
    Err(Refusal::not_yet("SourceNotUsable", message))
}

/// The node whose agent reads a disk where its kubelet mounts it: the one that has it, or on which the VM has it mounted now;
/// else the target itself where the volume can be used there, or any other.
fn mounting_reader(
    source: &Source<'_>,
    target: &NodeName,
    runs_on: Option<&NodeName>,
    ctx: &Context<'_>,
) -> Result<NodeName, Refusal> {
    let reads = |node: &NodeName| ctx.fleet.reports.get(node).is_some_and(|report| report.pods.is_some());
    let refused = |which: String| {
        let message = format!(
            "volume {} is {}, which only kubelets mount, and {which} may not read what those mount (component movers of \
             Somersault's deploy/)",
            source.volume_name,
            mounted::words(&source.volume.source)
        );
        Refusal::new("VolumeNotReachable", message)
    };
    if let Some(node) = source.node.as_ref().or(runs_on) {
        usable_source(source, node, ctx)?;
        usable_report(node, ctx)?;
        return reads(node).then(|| node.clone()).ok_or_else(|| refused(format!("the agent of node {node}")));
    }
    let affinity = source.volume.node_affinity.as_ref();
    let admits = |node: &&NodeName| {
        let found = ctx.fleet.nodes.get(*node);
        affinity.is_none_or(|affinity| found.is_some_and(|found| affinity.matches(node, found)))
    };
    let mut nodes = std::iter::once(target).chain(ctx.usable).filter(|node| ctx.usable.contains(*node));
    let reader = nodes.find(|node| reads(node) && admits(node));
    reader.cloned().ok_or_else(|| refused("no healthy node's agent where it can be used".to_owned()))
}

/// A folder below a root is as large as its filesystem, whatever its volume says, and a block device as large as it says. A volume that a provisioner makes has its
/// own filesystem, which takes a part of it, ext4 with its reserve some 7 %: the disk image must fit when the guest has
/// filled it. Of a volume that no agent looks into, the image may be as large as all of it.
fn capacity(source: &Source<'_>, reader: &NodeName, made: bool, ctx: &Context<'_>) -> u64 {
    let asked = source.volume.capacity_bytes.max(source.claim.requested_bytes);
    if !made || source.volume.mode == VolumeMode::Block {
        return asked;
    }
    let image = match &source.path {
        None => asked,
        Some(path) => {
            let usage = ctx.fleet.reports.get(reader).and_then(|report| report.usage.get(folder(path)));
            usage.map_or(0, |usage| usage.apparent_bytes)
        }
    };
    asked.max(image.div_ceil(9).saturating_mul(10))
}

/// The same for the same migration object and the same claim object, so that provisioning twice makes one volume;
/// another one for a later migration of that name, which may go elsewhere, and once the claim was swapped. Stays below
/// the 253 characters of an object's name.
fn volume_name(migration: &Key, uid: &Uid, source: &Source<'_>) -> String {
    let short =
        |uid: &Uid| uid.as_str().chars().filter(char::is_ascii_alphanumeric).take(12).collect::<String>();
    let (claim, uid) = (short(&source.claim.uid), short(uid));
    format!("smst-{claim}-{uid}-{}-{}", name_part(&migration.name), name_part(&source.claim_key.name))
}

/// As much of an object's name as there is room for in a volume's.
pub(crate) fn name_part(name: &str) -> String {
    const NAME_CHARS_MAX: usize = 80;
    let part: String = name.chars().take(NAME_CHARS_MAX).collect();
    part.trim_end_matches(['-', '.']).to_owned()
}

/// What a claim asks, for another class; without what others have noted on it.
pub(crate) fn template(claim: &Claim, class: &str) -> ClaimTemplate {
    let annotations = claim
        .annotations
        .iter()
        .filter(|(key, _)| !FOREIGN_ANNOTATIONS.iter().any(|foreign| key.starts_with(foreign)))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    ClaimTemplate {
        class: class.to_owned(),
        requested_bytes: claim.requested_bytes,
        access_modes: claim.access_modes.clone(),
        mode: claim.mode,
        labels: claim.labels.clone(),
        annotations,
    }
}
