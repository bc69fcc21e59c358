//! What must hold after every event, and what must hold in the end.

use std::collections::BTreeMap;

use somersault_coordinator_core::fencing::FenceStage;
use somersault_coordinator_core::fleet::FENCING_TAINT;
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
    if let Some((node, _)) = api.fleet.nodes.iter().find(|(_, node)| node.has_taint(FENCING_TAINT)) {
        return Some(format!("{node} is still tainted"));
    }
    api.records.values().find_map(|(_, record)| match record {
        Record::Fence(record) if record.stage != FenceStage::Closed => {
            Some(format!("the incident of {} is still at {:?}", record.node, record.stage))
        }
        _ => None,
    })
}
