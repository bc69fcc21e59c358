//! Whose disks leave a node or a disk, and in which order.

use super::{EvacuationSpec, PlanState, Planned, live};
use crate::decision::{Locality, placement};
use crate::fleet::{ClaimUse, Disk, DiskSource, Fleet, Grade, NodeReport, StorageRoot, Vm, folder};
use crate::locality::{self, ClassOverrides};
use crate::migration::{self, CLASS_NOT_FOUND, Context, Destination, MigrationSpec, Unreadable, WhichDisks};
use crate::names::{Key, NodeName};

/// Why a line has no destination.
pub(super) const NO_ROOM: &str =
    "no other healthy node takes it and has room for its disks: make room, or name a destination";

/// Order of the plan: fields in priority order, the name last so that it is deterministic.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// Worst disk first.
    healthier: std::cmp::Reverse<Grade>,
    /// Small ones first: more VMs are safe earlier.
    bytes: u64,
    subject: Key,
    /// Nobody can tell whether something of it is there.
    unclear: bool,
}

/// How one line's subject moves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moves {
    /// A VM, with its disks there.
    Vm,
    /// A VM that runs there, and has no disk there.
    Live,
    /// A claim that no VM uses.
    Claim,
}

/// Every VM, and every claim that no VM uses, with data on what is to be emptied. What may be there and cannot be moved
/// has failed from the start, so that nobody takes the node for empty; a dry run says so of each that would fail.
pub(super) fn plan(name: &str, spec: &EvacuationSpec, ctx: &Context<'_>) -> Vec<Planned> {
    let mut found: Vec<(Rank, Moves)> = Vec::new();
    let mut used: Vec<Key> = Vec::new();
    for (key, vm) in &ctx.fleet.vms {
        used.extend(vm.claims(&key.namespace));
        let mut here = of_vm(key, vm, spec, ctx);
        let moves = if here.is_empty() && vm.node() == Some(&spec.node) && spec.disk.is_none() {
            here.bytes = Some(0);
            Moves::Live
        } else {
            Moves::Vm
        };
        found.extend(here.rank(key).map(|rank| (rank, moves)));
    }
    for key in ctx.fleet.claims.keys().filter(|key| !used.contains(key)) {
        found.extend(of_claim(key, spec, ctx).rank(key).map(|rank| (rank, Moves::Claim)));
    }
    found.sort();
    let planned = |(rank, moves): (Rank, Moves)| {
        let mut line = Planned {
            migration: free_migration(name, &rank.subject, ctx),
            subject: rank.subject,
            is_vm: moves != Moves::Claim,
            live: moves == Moves::Live,
            bytes: rank.bytes,
            state: PlanState::Waiting,
            message: String::new(),
        };
        if moves == Moves::Live {
            live::can_move(spec, &mut line, ctx);
            return line;
        }
        let hindrance = (rank.unclear || spec.dry_run).then(|| hindrance(name, spec, &line, ctx)).flatten();
        match hindrance {
            Some((state, why)) => (line.state, line.message) = (state, why),
            None if spec.dry_run => line.message = whereto(spec, &line, ctx),
            None => {}
        }
        line
    };
    found.into_iter().map(planned).collect()
}

/// What is on what is to be emptied, of a VM.
fn of_vm(key: &Key, vm: &Vm, spec: &EvacuationSpec, ctx: &Context<'_>) -> Here {
    let (fleet, overrides) = (ctx.fleet, &ctx.policy.class_overrides);
    let runs_here = vm.node() == Some(&spec.node);
    let mut here = Here::default();
    for disk in &vm.disks {
        here.unclear |= may_be_here(fleet, overrides, spec, &key.namespace, disk, runs_here);
        here.add(disk_here(fleet, overrides, spec, &key.namespace, disk));
    }
    here
}

/// The same of a claim that no VM uses.
fn of_claim(key: &Key, spec: &EvacuationSpec, ctx: &Context<'_>) -> Here {
    let (fleet, overrides) = (ctx.fleet, &ctx.policy.class_overrides);
    let disk = Disk {
        name: key.name.clone(),
        source: DiskSource::Claim { name: key.name.clone(), use_: ClaimUse::Disk },
        boot: false,
        image: None,
    };
    let mut here = Here {
        unclear: may_be_here(fleet, overrides, spec, &key.namespace, &disk, false),
        ..Here::default()
    };
    here.add(disk_here(fleet, overrides, spec, &key.namespace, &disk));
    here
}

/// Whether a line's subject still has data there. It may have been moved by somebody else since the plan was made, or be gone.
pub(super) fn is_here(spec: &EvacuationSpec, line: &Planned, ctx: &Context<'_>) -> bool {
    let here = if line.is_vm {
        ctx.fleet.vms.get(&line.subject).map(|vm| of_vm(&line.subject, vm, spec, ctx))
    } else {
        Some(of_claim(&line.subject, spec, ctx))
    };
    here.is_some_and(|here| !here.is_empty())
}

/// Name of a migration that is not there yet: those of an earlier evacuation of this name stay until somebody removes them, and
/// must not be taken for this one's.
fn free_migration(evacuation: &str, subject: &Key, ctx: &Context<'_>) -> Key {
    let key = |name: &str| Key::new(subject.namespace.clone(), name);
    let name = format!("{evacuation}-{}", subject.name);
    let is_taken = |name: &str| {
        let key = key(name);
        ctx.requests.migrations.contains_key(&key) || ctx.fleet.live_migrations.contains_key(&key)
    };
    // Where there are too many, the last one is refused when it is made.
    key(&super::free(&name, is_taken).unwrap_or(name))
}

/// Why a line would not move now: for good, or while something is still to come.
fn hindrance(
    name: &str,
    spec: &EvacuationSpec,
    line: &Planned,
    ctx: &Context<'_>,
) -> Option<(PlanState, String)> {
    let whereto = destination(spec, line, ctx);
    let has_room = whereto.is_some();
    // Without a destination everything else is asked all the same; a class of no name is found last, and not there.
    let asked =
        migration_spec(name, spec, line, whereto.unwrap_or_else(|| Destination::Class(String::new())));
    let refusal = migration::refusal(&line.migration, &asked, ctx)?;
    if !has_room && refusal.reason == CLASS_NOT_FOUND {
        return Some((PlanState::Failed, NO_ROOM.to_owned()));
    }
    let state = if refusal.transient { PlanState::Waiting } else { PlanState::Failed };
    Some((state, format!("{}: {}", refusal.reason, refusal.message)))
}

/// Where a line would go by what is free now, each as if it were the only one.
fn whereto(spec: &EvacuationSpec, line: &Planned, ctx: &Context<'_>) -> String {
    match destination(spec, line, ctx) {
        Some(Destination::Node(node)) => format!("to node {node}"),
        Some(Destination::Class(class)) => format!("to class {class}"),
        None => String::new(),
    }
}

/// The migration that a line of the plan stands for. `None` while no node can take it.
pub(super) fn migration_spec(
    evacuation: &str,
    spec: &EvacuationSpec,
    line: &Planned,
    destination: Destination,
) -> MigrationSpec {
    MigrationSpec {
        vm: line.is_vm.then(|| line.subject.name.clone()),
        claim: (!line.is_vm).then(|| line.subject.name.clone()),
        destination,
        // In a window only what has copied ahead gets the word, so that it is stopped while the window is open.
        pre_copy_only: spec.disruption != super::Disruption::Now,
        cancelled: false,
        remove_old: false,
        // Only who asks for one migration can say that.
        unreadable: Unreadable::Fail,
        disks: WhichDisks::Local,
        probe: None,
        evacuation: Some(evacuation.to_owned()),
    }
}

/// Where a line's disks can go: as asked, else the healthy node that takes the VM and has most room in a root of the same
/// class; where no root is of that class, one where its provisioner can make them.
pub(super) fn destination(spec: &EvacuationSpec, line: &Planned, ctx: &Context<'_>) -> Option<Destination> {
    if let Some(destination) = &spec.destination {
        return Some(destination.clone());
    }
    let classes = classes_of(line, ctx.fleet);
    let refusals = line.is_vm.then(|| placement::node_refusals(ctx.fleet, &line.subject));
    let takes = |node: &&NodeName| {
        **node != spec.node && refusals.as_ref().is_none_or(|refusal| refusal(node).is_none())
    };
    let others: Vec<&NodeName> = ctx.usable.iter().filter(takes).collect();
    let room = |node: &&NodeName| root_of(ctx.fleet.reports.get(*node)?, &classes).map(migration::room_in);
    let enough = others.iter().filter_map(|node| Some((room(node)?, *node)));
    let roomiest = enough
        .filter(|(bytes, _)| *bytes >= line.bytes)
        .max_by_key(|(bytes, node)| (*bytes, std::cmp::Reverse(*node)));
    let has_root = ctx.fleet.reports.values().any(|report| root_of(report, &classes).is_some());
    let made = || {
        let can_hold =
            |node: &&&NodeName| classes.iter().all(|class| migration::can_hold(ctx.fleet, node, class));
        others.iter().find(can_hold).copied().filter(|_| !has_root)
    };
    roomiest.map(|(_, node)| node).or_else(made).map(|node| Destination::Node(node.clone()))
}

fn classes_of(line: &Planned, fleet: &Fleet) -> Vec<String> {
    let claims = match fleet.vms.get(&line.subject).filter(|_| line.is_vm) {
        Some(vm) => vm.claims(&line.subject.namespace).collect(),
        None => vec![line.subject.clone()],
    };
    claims.iter().filter_map(|claim| fleet.claims.get(claim)).map(|claim| claim.class.clone()).collect()
}

fn root_of<'a>(report: &'a NodeReport, classes: &[String]) -> Option<&'a StorageRoot> {
    report
        .roots
        .iter()
        .find(|root| !root.shared && !root.read_only && root.takes_copies() && classes.contains(&root.class))
}

/// What of one subject is on what is to be emptied.
#[derive(Default)]
struct Here {
    bytes: Option<u64>,
    worst: Grade,
    /// It has a disk that nobody can place, and that may be there.
    unclear: bool,
}

impl Here {
    fn add(&mut self, found: Option<(u64, Grade)>) {
        if let Some((bytes, grade)) = found {
            self.bytes = Some(self.bytes.unwrap_or(0) + bytes);
            self.worst = self.worst.max(grade);
        }
    }

    /// Nothing of it is there, for certain.
    fn is_empty(&self) -> bool {
        self.bytes.is_none() && !self.unclear
    }

    fn rank(self, subject: &Key) -> Option<Rank> {
        let bytes = if self.unclear { self.bytes.unwrap_or(0) } else { self.bytes? };
        let subject = subject.clone();
        Some(Rank { healthier: std::cmp::Reverse(self.worst), bytes, subject, unclear: self.unclear })
    }
}

/// Whether a disk that nobody can place may be on what is to be emptied: its VM runs on the node, or the agent there has
/// seen its folder.
fn may_be_here(
    fleet: &Fleet,
    overrides: &ClassOverrides,
    spec: &EvacuationSpec,
    namespace: &str,
    disk: &Disk,
    runs_here: bool,
) -> bool {
    if locality::locate(fleet, overrides, namespace, disk).0 != Locality::Unknown {
        return false;
    }
    let path = match &disk.source {
        // It may be lost, and stays where it is.
        DiskSource::Claim { use_: ClaimUse::MemoryDump, .. } => return false,
        DiskSource::Claim { name, .. } => {
            let claim = fleet.claims.get(&Key::new(namespace, name));
            let volume = claim.and_then(|claim| fleet.volumes.get(claim.volume.as_ref()?));
            volume.and_then(|volume| volume.source.path())
        }
        DiskSource::HostDisk { path } => Some(path.as_str()),
        DiskSource::Unknown { .. } | DiskSource::Rebuildable { .. } | DiskSource::Empty => None,
    };
    let found = path.zip(fleet.reports.get(&spec.node));
    let on_disk = spec.disk.as_ref().is_none_or(|wanted| {
        let root = found.and_then(|(path, report)| report.root_of(folder(path)));
        root.is_some_and(|root| root.disk.as_ref() == Some(wanted))
    });
    let seen = found.is_some_and(|(path, report)| report.usage.contains_key(folder(path)));
    on_disk && (runs_here || seen)
}

fn disk_here(
    fleet: &Fleet,
    overrides: &ClassOverrides,
    spec: &EvacuationSpec,
    namespace: &str,
    disk: &Disk,
) -> Option<(u64, Grade)> {
    let (Locality::Local { node }, _) = locality::locate(fleet, overrides, namespace, disk) else {
        return None;
    };
    let DiskSource::Claim { name, .. } = &disk.source else { return None };
    let claim = fleet.claims.get(&Key::new(namespace, name))?;
    // A driver's volume has none, and lies on a disk that nobody tells.
    let path = fleet.volumes.get(claim.volume.as_ref()?)?.source.path();
    let report = fleet.reports.get(&node);
    let root = report.zip(path).and_then(|(report, path)| report.root_of(path));
    let physical = root.and_then(|root| root.disk.as_ref());
    if node != spec.node || spec.disk.as_ref().is_some_and(|wanted| physical != Some(wanted)) {
        return None;
    }
    let usage = report.zip(path).and_then(|(report, path)| report.usage.get(path));
    let bytes = usage.map_or(claim.requested_bytes, |usage| usage.allocated_bytes);
    let health = report.zip(physical).and_then(|(report, disk)| report.disks.get(disk));
    Some((bytes, health.map_or(Grade::Unknown, |health| health.grade)))
}
