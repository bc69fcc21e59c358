//! Which node can take a VM: what KubeVirt and the scheduler would ask, as far as objects tell.
//!
//! Not modelled: pod affinity and spreading, devices, CPU features and machine types, and what pods that are no
//! VM's ask for. Where those refuse, the new launcher stays Pending, which loses nothing.

use crate::decision::Question;
use crate::decision::disks::{Examined, local};
use crate::decision::index::Index;
use crate::fleet::{FENCING_TAINT, Fleet, Node, Resources, Taint, Vm};
use crate::names::{Key, NodeName};

/// Set to `true` by virt-handler on nodes that take VMs; launchers select it.
const SCHEDULABLE_LABEL: &str = "kubevirt.io/schedulable";
/// Taint by which the scheduler treats a cordoned node.
const CORDON_TAINT: &str = "node.kubernetes.io/unschedulable";
/// Most nodes whose refusal is told: a sentence, not a list of the cluster.
const REFUSALS_TOLD_MAX: usize = 5;

/// The first node that fits, or why none does, in words.
pub(super) fn fitting_node<'a>(
    index: &Index,
    fleet: &'a Fleet,
    question: &Question,
    vm: &Vm,
    disks: &[Examined],
) -> Result<&'a NodeName, String> {
    // Without KubeVirt's label on any node (a hand-written dump), its absence says nothing.
    let labelled = fleet.nodes.values().any(|node| node.labels.contains_key(SCHEDULABLE_LABEL));
    let mut refusals = Vec::new();
    for (name, node) in fleet.nodes.iter().filter(|(name, _)| !question.dead.contains(*name)) {
        let others = index.asked_by_others(vm, name);
        let refusal = if question.unusable.contains(name) {
            Some("is not to be used now".to_owned())
        } else if labelled && node.labels.get(SCHEDULABLE_LABEL).is_none_or(|value| value != "true") {
            Some("takes no VMs (kubevirt.io/schedulable)".to_owned())
        } else {
            refusal(name, node, vm, others)
                .or_else(|| unreachable_disk(fleet, name, node, disks))
                .or_else(|| no_new_disk(fleet, name, node, disks))
        };
        match refusal {
            None => return Ok(name),
            Some(why) => refusals.push(format!("{name} {why}")),
        }
    }
    if refusals.is_empty() {
        return Err("there is no other node".to_owned());
    }
    let untold = refusals.len().saturating_sub(REFUSALS_TOLD_MAX);
    refusals.truncate(REFUSALS_TOLD_MAX);
    let rest = if untold > 0 { format!("; and {untold} more") } else { String::new() };
    Err(format!("no other node fits: {}{rest}", refusals.join("; ")))
}

/// The dead node to which the scheduler could bind the VM again: it tolerates the taint that keeps others away, and wants the
/// node. A dead node has all its room, and looks best.
pub(super) fn dead_node_that_takes_it<'a>(
    fleet: &'a Fleet,
    question: &'a Question,
    vm: &Vm,
) -> Option<&'a NodeName> {
    if !tolerates(vm, &no_schedule(FENCING_TAINT)) {
        return None;
    }
    question.dead.iter().find(|name| {
        let node = fleet.nodes.get(*name);
        node.is_some_and(|node| unwanted(name, node, vm).is_none())
    })
}

/// Why a node does not take a VM, wherever its disks are; `None` where it does.
pub(crate) fn node_refusal(fleet: &Fleet, name: &NodeName, key: &Key) -> Option<String> {
    node_refusals(fleet, key)(name)
}

/// The same for several nodes: the fleet's VMs are counted once.
pub(crate) fn node_refusals<'a>(
    fleet: &'a Fleet,
    key: &'a Key,
) -> impl Fn(&NodeName) -> Option<String> + use<'a> {
    let index = Index::of(fleet);
    move |name| {
        let (node, vm) = (fleet.nodes.get(name)?, fleet.vms.get(key)?);
        refusal(name, node, vm, index.asked_by_others(vm, name))
    }
}

fn refusal(name: &NodeName, node: &Node, vm: &Vm, others: Resources) -> Option<String> {
    closed(node, vm).or_else(|| unwanted(name, node, vm)).or_else(|| too_full(node, vm.requests, others))
}

/// The node takes no pods, or not this one.
fn closed(node: &Node, vm: &Vm) -> Option<String> {
    if !node.ready {
        return Some("is not ready".to_owned());
    }
    // Even where the VM tolerates everything: a node that we have declared dead is no place to go.
    if node.has_taint(FENCING_TAINT) {
        return Some("is declared unreachable, or not yet trusted again".to_owned());
    }
    let cordon = node.unschedulable.then(|| no_schedule(CORDON_TAINT));
    let mut taints = node.taints.iter().chain(&cordon).filter(|taint| taint.effect != "PreferNoSchedule");
    taints.find(|taint| !tolerates(vm, taint)).map(|taint| {
        if taint.key == CORDON_TAINT {
            "is cordoned".to_owned()
        } else {
            format!("has taint {}:{}", taint.key, taint.effect)
        }
    })
}

fn no_schedule(key: &str) -> Taint {
    Taint { key: key.to_owned(), value: String::new(), effect: "NoSchedule".to_owned() }
}

fn tolerates(vm: &Vm, taint: &Taint) -> bool {
    vm.tolerations.iter().any(|toleration| toleration.tolerates(taint))
}

/// The VM does not want the node.
fn unwanted(name: &NodeName, node: &Node, vm: &Vm) -> Option<String> {
    if let Some((label, value)) =
        vm.node_selector.iter().find(|(label, value)| node.labels.get(*label) != Some(value))
    {
        return Some(format!("lacks label {label}={value}, which the VM selects"));
    }
    let admits = vm.node_affinity.as_ref().is_none_or(|affinity| affinity.matches(name, node));
    (!admits).then(|| "does not match the VM's node affinity".to_owned())
}

/// A volume on the network cannot be reached from the node (another zone, mostly).
fn unreachable_disk(fleet: &Fleet, name: &NodeName, node: &Node, disks: &[Examined]) -> Option<String> {
    let volumes = disks.iter().filter(|disk| disk.on_network()).filter_map(|disk| disk.volume.as_ref());
    let affinities =
        volumes.filter_map(|volume| Some((volume, fleet.volumes.get(volume)?.node_affinity.as_ref()?)));
    affinities
        .filter(|(_, affinity)| !affinity.matches(name, node))
        .min_by_key(|(volume, _)| *volume)
        .map(|(volume, _)| format!("cannot reach volume {volume} (node affinity)"))
}

/// A local disk cannot be made anew there: its class makes none on that node. Only a rebuild gets here with one.
fn no_new_disk(fleet: &Fleet, name: &NodeName, node: &Node, disks: &[Examined]) -> Option<String> {
    let claims = local(disks).filter_map(|disk| fleet.claims.get(disk.claim.as_ref()?));
    let classes = claims.filter_map(|claim| Some((&claim.class, fleet.classes.get(&claim.class)?)));
    let closed = classes.filter(|(_, class)| {
        class.allowed_topologies.as_ref().is_some_and(|allowed| !allowed.matches(name, node))
    });
    closed
        .map(|(class, _)| class)
        .min()
        .map(|class| format!("is not among the allowedTopologies of storage class {class}"))
}

/// Room, by what VMs on the node ask for. A node whose allocatable resources are not told (zero) is not refused:
/// the scheduler knows.
fn too_full(node: &Node, wanted: Resources, others: Resources) -> Option<String> {
    let short = |allocatable: u64, taken: u64, wanted: u64| {
        allocatable > 0 && allocatable.saturating_sub(taken) < wanted
    };
    if short(node.allocatable.memory_bytes, others.memory_bytes, wanted.memory_bytes) {
        return Some("has too little memory left".to_owned());
    }
    short(node.allocatable.cpu_millis, others.cpu_millis, wanted.cpu_millis)
        .then(|| "has too little CPU left".to_owned())
}
