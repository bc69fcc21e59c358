//! VMs of every strategy and state on one dead node, each as the decision table says.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use somersault_test_cluster::until;
use somersault_test_e2e::api::Kind;
use somersault_test_e2e::bed::{Bed, VMS};
use somersault_test_e2e::stage::{Stage, Storage, Vm, WEB};
use somersault_test_kubevirt::{PAUSE, builders};

const DECIDE_DEADLINE: Duration = Duration::from_secs(30);
const RECREATE_DEADLINE: Duration = Duration::from_mins(1);
/// Long beside every retry of the coordinator, for what must not happen.
const LONG_ENOUGH: Duration = Duration::from_secs(10);

const RERUN: Vm = network("rerun", "RerunOnFailure");
const MANUAL: Vm = network("manual", "Manual");
const ONCE: Vm = network("once", "Once");
const PAUSED: Vm = network("paused", "Always");
const MOVING: Vm = network("moving", "Always");
const STOPPED: Vm = network("stopped", "Always");

const fn network(name: &'static str, strategy: &'static str) -> Vm {
    Vm { name, storage: Storage::Network, strategy }
}

/// All of them at once: their disks are all on network storage, so that only the VM's own state tells.
pub fn all(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let stage = Stage::set(bed, &node, &[WEB, RERUN, MANUAL, ONCE, PAUSED, MOVING, STOPPED])?;
    let api = bed.api();
    api.merge(Kind::VMI, VMS, PAUSED.name, &json!({"metadata": {"annotations": {PAUSE: "true"}}}))?;
    api.create(Kind::LIVE_MIGRATION, VMS, builders::live_migration(VMS, "moving", MOVING.name))?;
    api.merge(Kind::VM, VMS, STOPPED.name, &json!({"spec": {"runStrategy": "Halted"}}))?;
    until("one is stopped, one paused, one under way", DECIDE_DEADLINE, &[bed.standin_log()], || {
        ensure!(api.find(Kind::VMI, VMS, STOPPED.name)?.is_none(), "stopped is not stopped");
        let paused = api.get(Kind::VMI, VMS, PAUSED.name)?["status"]["conditions"].to_string();
        ensure!(paused.contains("\"Paused\""), "paused is not paused: {paused}");
        let moving = api.get(Kind::LIVE_MIGRATION, VMS, "moving")?["status"]["phase"].clone();
        Ok((moving == "Running").then_some(()))
    })?;

    bed.cluster().power_off(&node)?;
    for vm in [&WEB, &RERUN] {
        stage.wait_new_writer(vm, RECREATE_DEADLINE)?;
    }
    for vm in [&MANUAL, &ONCE, &PAUSED, &MOVING] {
        let recovery = bed.wait_decision(vm.name, "ManualRecovery", DECIDE_DEADLINE)?;
        ensure!(recovery["status"]["reasons"][0].is_string(), "{} without a reason", vm.name);
    }
    std::thread::sleep(LONG_ENOUGH);
    for vm in [&MANUAL, &ONCE, &PAUSED, &MOVING, &STOPPED] {
        ensure!(stage.instances(vm)? == 1, "{} was started elsewhere", vm.name);
    }
    let stopped = api.find(Kind::RECOVERY, VMS, STOPPED.name)?;
    ensure!(stopped.is_none(), "a stopped VM is nothing to recover: {stopped:?}");
    api.delete(Kind::LIVE_MIGRATION, VMS, "moving")?;
    bed.calm()?;
    stage.judge()
}
