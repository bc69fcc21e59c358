//! What must hold after every event, and what must hold in the end.

use std::collections::BTreeMap;

use somersault_coordinator_core::fencing::FenceStage;
use somersault_coordinator_core::fleet::{FENCING_TAINT, RunStrategy};
use somersault_coordinator_core::invariants::Violation;
use somersault_coordinator_core::io::Record;
use somersault_coordinator_core::names::{Key, NodeName, Uid};

use crate::cluster::{Api, epoch_of, is_local};
use crate::machine::Machine;

/// What did not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The one thing that must never happen.
    #[error("VM {vm} is active twice: {places}")]
    ActiveTwice {
        /// Which VM.
        vm: Key,
        /// Where.
        places: String,
    },
    /// A launcher was deleted while its guest ran, or may run again.
    #[error("launcher {pod} of {vm} was deleted while its guest is active on {node}")]
    ActedWithoutProof {
        /// Which launcher.
        pod: String,
        /// Which VM.
        vm: Key,
        /// Where it runs.
        node: NodeName,
    },
    /// A VM that needs a person was touched.
    #[error("launcher {pod} of {vm} was deleted, which needs a person")]
    ManualTouched {
        /// Which launcher.
        pod: String,
        /// Which VM.
        vm: Key,
    },
    /// A claim was deleted while its VM may still write to it.
    #[error("claim {claim} was deleted while {vm} is active on {node}")]
    ClaimInUse {
        /// Which claim.
        claim: Key,
        /// Whose.
        vm: Key,
        /// Where it runs.
        node: NodeName,
    },
    /// A claim was deleted whose volume goes with it.
    #[error("claim {claim} was deleted, and its volume with it")]
    DiskLost {
        /// Which claim.
        claim: Key,
    },
    /// A guest was started on a disk that was still being filled.
    #[error("{vm} was started on {node} on a disk that is still being imported")]
    StartedUnfilled {
        /// Which VM.
        vm: Key,
        /// Where.
        node: NodeName,
    },
    /// A node was called out of service while something runs there.
    #[error("{node} was called out of service while guests are active on it")]
    OutOfServiceAlive {
        /// Which node.
        node: NodeName,
    },
    /// A record of an older epoch replaced a newer one.
    #[error("a record of epoch {new} replaced one of epoch {old}: {key}")]
    EpochWentBack {
        /// Epoch before.
        old: u64,
        /// Epoch after.
        new: u64,
        /// Whose record.
        key: String,
    },
    /// A rule of the core's own watch.
    #[error("coordinator {coordinator}: {source}")]
    Rule {
        /// Which.
        coordinator: usize,
        /// Which rule.
        source: Violation,
    },
    /// Everything was mended, and yet.
    #[error("all is mended, but {what}")]
    NotRecovered {
        /// What is still not as it should be.
        what: String,
    },
}

/// No VM runs at two places.
pub fn active_once(machines: &BTreeMap<NodeName, Machine>) -> Result<(), Broken> {
    let mut places: BTreeMap<&Key, (&NodeName, &Uid)> = BTreeMap::new();
    for machine in machines.values() {
        for (pod, vm) in machine.active() {
            if let Some((node, other)) = places.insert(vm, (&machine.name, pod)) {
                let places = format!("on {node} as {} and on {} as {}", other.0, machine.name, pod.0);
                return Err(Broken::ActiveTwice { vm: vm.clone(), places });
            }
        }
    }
    Ok(())
}

/// A deletion that the coordinator asks for touches no living guest, and nothing that needs a person.
pub fn may_delete(machines: &BTreeMap<NodeName, Machine>, api: &Api, pod: &Uid) -> Result<(), Broken> {
    let owner = api.fleet.vms.iter().find(|(_, vm)| vm.pods.iter().any(|other| other.uid == *pod));
    if let Some((vm, _)) = owner.filter(|(key, _)| is_local(key)) {
        return Err(Broken::ManualTouched { pod: pod.0.clone(), vm: vm.clone() });
    }
    for machine in machines.values() {
        if let Some((_, vm)) = machine.active().find(|(uid, _)| *uid == pod) {
            let (pod, vm, node) = (pod.0.clone(), vm.clone(), machine.name.clone());
            return Err(Broken::ActedWithoutProof { pod, vm, node });
        }
    }
    Ok(())
}

/// A claim that is made anew is used by nobody: no guest of its VM is active, and none waits for it.
pub fn may_reimport(
    machines: &BTreeMap<NodeName, Machine>,
    api: &Api,
    claim: &Key,
    uid: &Uid,
) -> Result<(), Broken> {
    if api.fleet.claims.get(claim).is_none_or(|found| found.uid != *uid) {
        return Ok(());
    }
    for machine in machines.values() {
        if let Some((_, vm)) = machine.active().find(|(_, vm)| claim.name == format!("{}-data", vm.name)) {
            let (claim, vm, node) = (claim.clone(), vm.clone(), machine.name.clone());
            return Err(Broken::ClaimInUse { claim, vm, node });
        }
    }
    Ok(())
}

/// Nothing runs on a node that is called out of service.
pub fn may_call_out_of_service(
    machines: &BTreeMap<NodeName, Machine>,
    node: &NodeName,
) -> Result<(), Broken> {
    match machines[node].active().next() {
        Some(_) => Err(Broken::OutOfServiceAlive { node: node.clone() }),
        None => Ok(()),
    }
}

/// A record's epoch never goes back.
pub fn epoch_grows(before: Option<&Record>, after: &Record) -> Result<(), Broken> {
    match before.map(epoch_of) {
        Some(old) if old > epoch_of(after) => {
            let key = format!("{:?}", after.key());
            Err(Broken::EpochWentBack { old, new: epoch_of(after), key })
        }
        _ => Ok(()),
    }
}

/// What is not yet as it should be, once everything is mended.
pub fn unrecovered(machines: &BTreeMap<NodeName, Machine>, api: &Api) -> Option<String> {
    for key in api.fleet.vms.keys() {
        let running = machines.values().flat_map(Machine::active).filter(|(_, vm)| *vm == key).count();
        if running != 1 {
            return Some(format!("{key} runs {running} times"));
        }
    }
    if let Some((key, _)) = api.fleet.vms.iter().find(|(_, vm)| vm.run != RunStrategy::Always) {
        return Some(format!("{key} was not given its start field back"));
    }
    if let Some((node, _)) = api.fleet.nodes.iter().find(|(_, node)| node.is_out_of_service_by_us()) {
        return Some(format!("{node} is still out of service"));
    }
    if let Some((node, _)) = api.fleet.nodes.iter().find(|(_, node)| node.has_taint(FENCING_TAINT)) {
        return Some(format!("{node} is still tainted"));
    }
    api.records.values().find_map(|(_, record)| match record {
        Record::Fence(record) if record.stage != FenceStage::Closed => {
            Some(format!("the incident of {} is still at {:?}", record.node, record.stage))
        }
        Record::Rebuild(record) if !record.stage.is_final() => {
            Some(format!("the rebuild of {} is still at {:?}", record.vm, record.stage))
        }
        _ => None,
    })
}
