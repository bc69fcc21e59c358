//! Joins a VM from its parts.
//!
//! ```text
//!   Wukong ◄─controller─ VirtualMachine ◄─controller─ VirtualMachineInstance ◄─controller─ launcher pod
//!                              │                              │                                 ▲
//!                              └── template volumes           └── hotplugged volumes            └─controller─ hotplug pod
//! ```
//!
//! An owner reference with `controller: true` joins, and where both sides have uids they must agree. Names alone
//! never do, with one exception: an instance that nothing controls is its namesake's (see `instance_of`). A pod that joins no VM counts as somebody else who uses its claims.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use somersault_coordinator_core::fleet::{
    Fleet, Instance, LiveMigration, LiveMigrationState, Owner, Resources, RunStrategy, SavedStart,
    Toleration, Vm,
};
use somersault_coordinator_core::names::{Key, NodeName, Uid};

use super::convert::{self, FieldError};
use super::inventory::{Inventory, Placed, insert};
use super::kubevirt::{
    Condition, InstanceMigration, InstanceSpec, VirtualMachine, VirtualMachineInstance, Wukong,
};
use super::pod::{Part, VmPod};
use super::{disks, quantity};
use crate::cluster::Problem;

/// Annotation on a VM or its Wukong: its system disks may be imported anew.
pub const REBUILD_ANNOTATION: &str = "somersault.novasphere.dev/rebuild";
/// Group of the Wukong.
const WUKONG_GROUP: &str = "vm.novasphere.dev/";
/// What one virtual CPU asks of the node where the VM does not say (KubeVirt's cpuAllocationRatio of 10).
const CPU_MILLIS_PER_VCPU: u64 = 100;
/// What a launcher asks beside the guest's memory where no instance tells: what KubeVirt 1.9 adds to a guest
/// with one virtual CPU.
const MEMORY_OVERHEAD_BYTES: u64 = 268 << 20;

/// Joins every VM into the fleet, and notes who else uses claims.
pub(super) fn join(inventory: &Inventory, fleet: &mut Fleet, problems: &mut Vec<Problem>) {
    let (mut pods, states) = (PodsByVm::of(inventory), disks::States::of(fleet));
    for (key, placed) in &inventory.vms {
        let joined = one(inventory, key, placed, &pods, &states);
        if let Ok(vm) = &joined {
            pods.taken.extend(vm.pods.iter().map(|pod| Key::new(key.namespace.clone(), pod.name.clone())));
        }
        insert(&mut fleet.vms, key, placed, joined, problems);
    }
    fleet.claims_used_by_others = pods.claims_of_the_rest(inventory);
    fleet.stray_launchers = pods.strays(inventory);
}

fn one(
    inventory: &Inventory,
    key: &Key,
    placed: &Placed<VirtualMachine>,
    pods: &PodsByVm<'_>,
    states: &disks::States,
) -> Result<Vm, FieldError> {
    let vm = &placed.object;
    let wukong = owning_wukong(inventory, key, &vm.metadata);
    let (owner, start) = owner_of(vm, wukong)?;
    let instance = instance_of(inventory, key, vm);
    let own_pods = pods.of_vm(inventory, key, instance);
    let spec = &vm.spec.template.spec;
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let affinity = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let rebuild = |meta: &ObjectMeta| {
        meta.annotations.as_ref().and_then(|a| a.get(REBUILD_ANNOTATION)).is_some_and(|value| value == "true")
    };
    Ok(Vm {
        uid: uid_of(&vm.metadata),
        owner,
        run: run_strategy(vm)?,
        start,
        disks: disks::of_vm(inventory, key, vm, instance, wukong.map(|(wukong, _)| wukong), states)?,
        fixed: disks::fixed(spec),
        node_selector: spec.node_selector.clone().unwrap_or_default(),
        node_affinity: affinity.map(convert::node_selector),
        tolerations: spec.tolerations.iter().flatten().map(toleration).collect(),
        requests: requests(spec, instance, &own_pods)?,
        rebuild_allowed: rebuild(&vm.metadata) || wukong.is_some_and(|(wukong, _)| rebuild(&wukong.metadata)),
        instance: instance.map(|found| instance_value(inventory, key, found)),
        pods: own_pods.into_iter().map(|(pod, of)| pod.value(of)).collect(),
    })
}

fn toleration(toleration: &core::Toleration) -> Toleration {
    Toleration {
        key: toleration.key.clone().unwrap_or_default(),
        operator: toleration.operator.clone().unwrap_or_default(),
        value: toleration.value.clone().unwrap_or_default(),
        effect: toleration.effect.clone().unwrap_or_default(),
    }
}

/// The controlling owner, if there is one.
pub(super) fn controller(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.as_deref()?.iter().find(|owner| owner.controller == Some(true))
}

/// Whether the reference may mean the object: uids, where both are known, must agree.
fn same_uid(reference: &OwnerReference, uid: &Uid) -> bool {
    reference.uid.is_empty() || uid.as_str().is_empty() || reference.uid == uid.as_str()
}

pub(super) fn uid_of(meta: &ObjectMeta) -> Uid {
    Uid::from(meta.uid.as_deref().unwrap_or_default())
}

/// The Wukong that controls the VM, with its start field.
fn owning_wukong<'a>(
    inventory: &'a Inventory,
    key: &Key,
    meta: &ObjectMeta,
) -> Option<(&'a Wukong, &'a Option<String>)> {
    let owner = controller(meta).filter(|o| o.kind == "Wukong" && o.api_version.starts_with(WUKONG_GROUP))?;
    let (placed, start) = inventory.wukongs.get(&Key::new(key.namespace.clone(), owner.name.clone()))?;
    same_uid(owner, &uid_of(&placed.object.metadata)).then_some((&placed.object, start))
}

/// Who starts and stops the VM, and by which field. A Wukong that is not there cannot be told anything, and is
/// as good as an owner that we do not know.
fn owner_of(
    vm: &VirtualMachine,
    wukong: Option<(&Wukong, &Option<String>)>,
) -> Result<(Owner, SavedStart), FieldError> {
    if let Some((wukong, start)) = wukong {
        let name = wukong.metadata.name.clone().unwrap_or_default();
        return Ok((Owner::Wukong { name }, SavedStart::WukongStartStrategy(start.clone())));
    }
    let owner = controller(&vm.metadata)
        .map_or(Owner::Itself, |owner| Owner::Unknown { kind: owner.kind.clone(), name: owner.name.clone() });
    let start = match (vm.spec.running, &vm.spec.run_strategy) {
        (Some(running), None) => SavedStart::Running(running),
        (None, Some(strategy)) => SavedStart::RunStrategy(strategy.clone()),
        _ => return Err(start_error()),
    };
    Ok((owner, start))
}

fn start_error() -> FieldError {
    FieldError::new("spec", "exactly one of running and runStrategy must be set")
}

fn run_strategy(vm: &VirtualMachine) -> Result<RunStrategy, FieldError> {
    match (vm.spec.running, vm.spec.run_strategy.as_deref()) {
        (Some(true), None) | (None, Some("Always")) => Ok(RunStrategy::Always),
        (Some(false), None) | (None, Some("Halted")) => Ok(RunStrategy::Halted),
        (None, Some("RerunOnFailure")) => Ok(RunStrategy::RerunOnFailure),
        (None, Some("Manual")) => Ok(RunStrategy::Manual),
        (None, Some("Once")) => Ok(RunStrategy::Once),
        (None, Some(other)) => {
            Err(FieldError::new("spec.runStrategy", &format!("{other:?} is not a run strategy that we know")))
        }
        _ => Err(start_error()),
    }
}

/// The VM's instance: of the same name, and not controlled by anything else. One without a controller (of a dump
/// written by hand) keeps the VM from starting another one, so it is taken for the VM's own.
fn instance_of<'a>(
    inventory: &'a Inventory,
    key: &Key,
    vm: &VirtualMachine,
) -> Option<&'a VirtualMachineInstance> {
    let instance = &inventory.instances.get(key)?.object;
    let fits = controller(&instance.metadata).is_none_or(|owner| {
        owner.kind == "VirtualMachine" && owner.name == key.name && same_uid(owner, &uid_of(&vm.metadata))
    });
    fits.then_some(instance)
}

fn instance_value(inventory: &Inventory, key: &Key, instance: &VirtualMachineInstance) -> Instance {
    let status = instance.status.clone().unwrap_or_default();
    let phase = status.phase.unwrap_or_default();
    let transitions = status.phase_transition_timestamps.unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let interfaces = status.interfaces.unwrap_or_default();
    let found = |kind: &str, status: &str| conditions.iter().find(|c| c.type_ == kind && c.status == status);
    let own = status.migration_state.filter(|state| !state.completed && !state.failed);
    let own = own.map(|state| state.target_node);
    Instance {
        uid: uid_of(&instance.metadata),
        node: node_name(status.node_name.as_deref()),
        has_run: phase == "Running" || transitions.iter().any(|transition| transition.phase == "Running"),
        migrating: own.or_else(|| requested_migration(inventory, key)).map(|to| node_name(to.as_deref())),
        paused: found("Paused", "True").map(|condition| condition.reason.clone().unwrap_or_default()),
        not_migratable: found("LiveMigratable", "False").map(words),
        claims: disks::of_instance(instance),
        agent_connected: found("AgentConnected", "True").is_some(),
        has_address: interfaces.iter().any(|interface| interface.ip_address.is_some()),
        phase,
    }
}

/// A condition's reason and message.
fn words(condition: &Condition) -> String {
    let parts = [condition.reason.as_deref(), condition.message.as_deref()];
    parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ")
}

/// A live migration. What its own status does not tell, its instance's may: it is that which fails.
pub(super) fn live_migration(object: &InstanceMigration) -> LiveMigration {
    let status = object.status.as_ref();
    let why = || status?.migration_state.as_ref()?.failure_reason.clone();
    let state = match status.and_then(|status| status.phase.as_deref()) {
        Some("Succeeded") => LiveMigrationState::Succeeded,
        Some("Failed") => LiveMigrationState::Failed(why().unwrap_or_default()),
        _ => LiveMigrationState::UnderWay,
    };
    LiveMigration { vm: object.spec.vmi_name.clone(), state }
}

/// The target node of a live migration that was asked for and is not over.
#[expect(
    clippy::option_option,
    reason = "the core's own shape: none in flight, or in flight to a node not yet known"
)]
fn requested_migration(inventory: &Inventory, key: &Key) -> Option<Option<String>> {
    let mut all = inventory.live_migrations.iter().filter(|(at, _)| at.namespace == key.namespace);
    all.find_map(|(_, placed)| {
        let status = placed.object.status.as_ref();
        let phase = status.and_then(|s| s.phase.as_deref()).unwrap_or_default();
        let open = placed.object.spec.vmi_name == key.name && phase != "Succeeded" && phase != "Failed";
        let target = status.and_then(|s| s.migration_state.as_ref()).and_then(|s| s.target_node.clone());
        open.then_some(target)
    })
}

pub(super) fn node_name(name: Option<&str>) -> Option<NodeName> {
    name.filter(|name| !name.is_empty()).map(NodeName::from)
}

/// What the VM's launcher asks: the newest launcher's own word, else what its template leads to.
fn requests(
    spec: &InstanceSpec,
    instance: Option<&VirtualMachineInstance>,
    pods: &[(&VmPod, Option<Uid>)],
) -> Result<Resources, FieldError> {
    let launchers = pods.iter().map(|(pod, _)| *pod).filter(|pod| pod.part == Part::Launcher);
    if let Some(launcher) = launchers.max_by_key(|pod| pod.created.clone()) {
        return launcher.requests.clone();
    }
    let at = "spec.template.spec.domain";
    let explicit = spec.domain.resources.as_ref().and_then(|r| r.requests.as_ref());
    let asked = |name: &str| explicit.and_then(|map| map.get(name)).map(super::kubevirt::Scalar::text);
    let cpu = spec.domain.cpu.unwrap_or_default();
    let vcpus = [cpu.cores, cpu.sockets, cpu.threads].map(|n| u64::from(n.unwrap_or(1).max(1)));
    let vcpus = vcpus.into_iter().fold(1_u64, u64::saturating_mul);
    let cpu_millis = match asked("cpu") {
        Some(text) => quantity::millis(&text)
            .map_err(|e| FieldError::new(format!("{at}.resources.requests.cpu"), &e))?,
        None => vcpus.saturating_mul(CPU_MILLIS_PER_VCPU),
    };
    let guest = spec.domain.memory.as_ref().and_then(|memory| memory.guest.as_ref());
    let memory = match (asked("memory"), guest) {
        (Some(text), _) => quantity::units(&text)
            .map_err(|e| FieldError::new(format!("{at}.resources.requests.memory"), &e))?,
        (None, Some(guest)) => {
            quantity::units(&guest.text()).map_err(|e| FieldError::new(format!("{at}.memory.guest"), &e))?
        }
        (None, None) => 0,
    };
    let overhead = instance.and_then(|i| i.status.as_ref()?.memory.as_ref()?.memory_overhead.clone());
    let overhead = overhead.and_then(|o| quantity::units(&o.text()).ok()).unwrap_or(MEMORY_OVERHEAD_BYTES);
    Ok(Resources { cpu_millis, memory_bytes: memory.saturating_add(overhead) })
}

/// Launcher and hotplug pods, by the instance that they belong to.
struct PodsByVm<'a> {
    /// By namespace and name of the instance; each with the uid of the instance that it was made for.
    by_instance: BTreeMap<Key, Vec<(&'a VmPod, Option<Uid>)>>,
    /// Keys of the pods that some VM took.
    taken: BTreeSet<Key>,
}

impl<'a> PodsByVm<'a> {
    fn of(inventory: &'a Inventory) -> Self {
        let mut by_instance: BTreeMap<Key, Vec<_>> = BTreeMap::new();
        for (key, pod) in &inventory.pods {
            let owner = match pod.part {
                Part::Hotplug => launcher_owner(inventory, key, pod),
                Part::Launcher | Part::Unsaid => pod.controller.as_ref(),
            };
            let Some(owner) = owner.filter(|owner| owner.kind == "VirtualMachineInstance") else { continue };
            let uid = Some(owner.uid.as_str()).filter(|uid| !uid.is_empty()).map(Uid::from);
            let instance = Key::new(key.namespace.clone(), owner.name.clone());
            by_instance.entry(instance).or_default().push((pod, uid));
        }
        Self { by_instance, taken: BTreeSet::new() }
    }

    /// The pods of a VM: made for its instance, or for an earlier one of its name. An instance of this name
    /// that somebody else controls keeps its pods to itself.
    fn of_vm(
        &self,
        inventory: &Inventory,
        key: &Key,
        instance: Option<&VirtualMachineInstance>,
    ) -> Vec<(&'a VmPod, Option<Uid>)> {
        let foreign = instance.is_none() && inventory.instances.contains_key(key);
        if foreign { Vec::new() } else { self.by_instance.get(key).cloned().unwrap_or_default() }
    }

    /// Claims of pods that no VM took, with those pods. Finished pods count: while they exist, Kubernetes keeps their
    /// claims from being deleted.
    fn claims_of_the_rest(&self, inventory: &Inventory) -> BTreeMap<Key, BTreeSet<String>> {
        let strays = inventory.pods.iter().filter(|(pod, _)| !self.taken.contains(pod));
        let others = inventory.claims_of_other_pods.iter();
        let mut used: BTreeMap<Key, BTreeSet<String>> = BTreeMap::new();
        for (pod, claims) in strays.map(|(key, pod)| (key, &pod.claims)).chain(others) {
            for claim in claims {
                used.entry(Key::new(pod.namespace.clone(), claim)).or_default().insert(pod.name.clone());
            }
        }
        used
    }

    /// Nodes of launchers and hotplug pods that no VM took, and that have not ended.
    fn strays(&self, inventory: &Inventory) -> BTreeSet<NodeName> {
        let others = inventory.pods.iter().filter(|(key, _)| !self.taken.contains(key));
        let launchers = others.map(|(_, pod)| pod).filter(|pod| pod.part != Part::Unsaid && pod.is_alive());
        launchers.filter_map(|pod| pod.node.clone()).collect()
    }
}

/// The launcher's owner, for a hotplug pod, which its launcher controls.
fn launcher_owner<'a>(inventory: &'a Inventory, key: &Key, pod: &VmPod) -> Option<&'a OwnerReference> {
    let owner = pod.controller.as_ref().filter(|owner| owner.kind == "Pod")?;
    let launcher = inventory.pods.get(&Key::new(key.namespace.clone(), owner.name.clone()))?;
    same_uid(owner, &launcher.uid).then_some(launcher.controller.as_ref()).flatten()
}
