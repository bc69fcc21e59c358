//! Nodes that die, or that nobody can tell from dead ones.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use somersault_test_cluster::{BmcFault, until};
use somersault_test_e2e::api::Kind;
use somersault_test_e2e::bed::{Bed, VMS, has_our_taint};
use somersault_test_e2e::side_by_side;
use somersault_test_e2e::stage::{DB, ODD, Stage, Storage, Vm, WEB};

/// From the plug to a VM that writes elsewhere: about 3 s on an idle machine; a busy one may take its time.
const RECREATE_DEADLINE: Duration = Duration::from_mins(1);
/// The decision is published when the node is declared.
const DECIDE_DEADLINE: Duration = Duration::from_secs(30);
/// A node boots, is quarantined, and starts what it had.
const RETURN_DEADLINE: Duration = Duration::from_mins(3);
/// Long beside every retry of the coordinator, for what must not happen.
const LONG_ENOUGH: Duration = Duration::from_secs(15);
/// A coordinator's pod is started anew, and ready for a while.
const NEW_LEADER_DEADLINE: Duration = Duration::from_mins(2);

/// In front of what was measured, so that a reader of a long log finds it.
const FIGURE: &str = "   MEASURED";

/// Pulls the power cord of a node with one VM of each kind.
pub fn power_off(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let stage = Stage::set(bed, &node, &[WEB, DB, ODD])?;
    let launchers = launchers(&stage, &node)?;
    let pulled = Instant::now();
    bed.cluster().power_off(&node)?;
    let disk = stage.wait_new_writer(&WEB, RECREATE_DEADLINE)?;
    let silence = disk.silence_before(disk.runs.len() - 1).unwrap_or_default();
    eprintln!(
        "{FIGURE} a node's power cord pulled → its VM writes elsewhere: {:.2} s (silent for {silence:.2?})",
        pulled.elapsed().as_secs_f32()
    );
    stands_by(bed, &stage, &node, &launchers)?;
    ensure!(has_our_taint(&bed.api().get(Kind::NODE, "", &node)?), "{node} is dead and not tainted");
    comes_back(bed, &stage, &node)
}

/// Pulls the network plug: the VMs go on running until their node is fenced.
pub fn network_cut(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let stage = Stage::set(bed, &node, &[WEB, DB, ODD])?;
    let launchers = launchers(&stage, &node)?;
    let recovered = side_by_side::pull_plug(bed, &stage, &WEB, &node)?;
    eprintln!("{FIGURE} a node's plug pulled → its VM writes elsewhere: {recovered}");
    ensure!(!bed.cluster().is_on(&node)?, "web runs elsewhere while {node} still has power");
    stands_by(bed, &stage, &node, &launchers)?;
    comes_back(bed, &stage, &node)
}

/// The same cut-off node, for us and for Kubernetes with its stock settings.
pub fn side_by_side(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let stage = Stage::set(bed, &node, &[WEB])?;
    let times = side_by_side::measure(bed, &stage, &WEB, &node)?;
    eprintln!("{}", times.table(None));
    ensure!(times.ours.declared < times.not_ready, "Kubernetes was first: {times:?}");
    comes_back(bed, &stage, &node)
}

/// A short cut, and a fence agent that fails until the node is back: nobody switches it off then, and what somebody has said
/// of it while it beat is no proof when it is cut off again, its VMs running.
pub fn short_cut(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let stage = Stage::set(bed, &node, &[WEB, DB])?;
    bed.cluster().bmc_fault(&node, Some(BmcFault::Fails))?;
    bed.cluster().cut(&node)?;
    // A run that is under way cannot be called back: it must have failed first.
    until("its fence agent has failed", DECIDE_DEADLINE, &[], || {
        let said = bed.api().get(Kind::NODE_HEALTH, "", &node)?["status"]["message"].to_string();
        Ok(said.contains("fails to switch it off").then_some(()))
    })?;
    bed.cluster().mend(&node)?;
    bed.wait_state(&node, "Healthy", RETURN_DEADLINE)?;
    bed.cluster().bmc_fault(&node, None)?;
    // Every retry that was due would come in this time.
    std::thread::sleep(LONG_ENOUGH);
    stage.undisturbed(LONG_ENOUGH)?;
    ensure!(bed.cluster().is_on(&node)?, "{node} was back, and was switched off");

    let boot = bed.api().get(Kind::NODE_HEALTH, "", &node)?["status"]["bootID"].clone();
    let word = json!({"spec": {"attestation": {"bootID": boot, "by": "somebody who is wrong"}}});
    bed.api().merge(Kind::NODE_HEALTH, "", &node, &word)?;
    std::thread::sleep(LONG_ENOUGH);
    let unfenced = bed.without_fence_agents()?;
    bed.cluster().cut(&node)?;
    bed.wait_state(&node, "AwaitingProof", DECIDE_DEADLINE)?;
    std::thread::sleep(LONG_ENOUGH);
    ensure!(
        stage.instances(&WEB)? == 1,
        "web was started elsewhere by a word that was given while {node} beat"
    );
    bed.cluster().mend(&node)?;
    bed.wait_state(&node, "Healthy", RETURN_DEADLINE)?;
    drop(unfenced);
    stage.undisturbed(LONG_ENOUGH)
}

/// The controller of a node that is cut off switches another one off, and says off with every right: the VMs of the first go
/// on, and nothing of it is started elsewhere.
pub fn miswired(bed: &Bed) -> Result<()> {
    bed.wait_whole(NEW_LEADER_DEADLINE)?;
    let leader = bed.leaders_node()?;
    // So that the leader goes on.
    let node = neighbour(bed, &leader, 1)?;
    wrong_one_is_hit(bed, &node, &neighbour(bed, &node, 1)?)
}

/// The same, and the one that is switched off is the leader's: the next leader finds an order of which it knows nothing.
pub fn miswired_to_the_leader(bed: &Bed) -> Result<()> {
    bed.wait_whole(NEW_LEADER_DEADLINE)?;
    let leader = bed.leaders_node()?;
    wrong_one_is_hit(bed, &neighbour(bed, &leader, bed.nodes().len() - 1)?, &leader)
}

/// The node so many places after this one; after the last comes the first.
fn neighbour(bed: &Bed, node: &str, places: usize) -> Result<String> {
    let nodes = bed.nodes();
    let at = nodes.iter().position(|name| name == node).context("no such node")?;
    Ok(nodes[(at + places) % nodes.len()].clone())
}

fn wrong_one_is_hit(bed: &Bed, node: &str, other: &str) -> Result<()> {
    let stage = Stage::set(bed, node, &[WEB, DB])?;
    bed.cluster().bmc_fault(node, Some(BmcFault::Miswired))?;
    bed.cluster().cut(node)?;
    until("the other one is switched off", DECIDE_DEADLINE, &[], || {
        Ok((!bed.cluster().is_on(other)?).then_some(()))
    })?;
    // A new leader is found, and tries again; then a storm hold is over.
    std::thread::sleep(LONG_ENOUGH * 6);
    ensure!(bed.cluster().is_on(node)?, "{node} was switched off too");
    for vm in [WEB, DB] {
        ensure!(stage.instances(&vm)? == 1, "{} was started elsewhere, and runs on {node}", vm.name);
        stage.wait_writes(&vm, DECIDE_DEADLINE)?;
    }
    stage.judge()?;
    bed.cluster().bmc_fault(node, None)?;
    bed.cluster().power_on(other)?;
    bed.cluster().wait_ready(other)?;
    comes_back(bed, &stage, node)?;
    bed.wait_state(other, "Healthy", RETURN_DEADLINE)
}

/// Without a fence agent's proof a dead node waits for a person.
pub fn attested(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let stage = Stage::set(bed, &node, &[WEB, DB])?;
    let unfenced = bed.without_fence_agents()?;
    bed.cluster().cut(&node)?;
    bed.wait_state(&node, "AwaitingProof", DECIDE_DEADLINE)?;
    bed.wait_decision("web", "Recreate", DECIDE_DEADLINE)?;
    std::thread::sleep(LONG_ENOUGH);
    ensure!(stage.instances(&WEB)? == 1, "web was started elsewhere without a proof");
    ensure!(bed.cluster().is_on(&node)?, "{node} was switched off without a fence agent");
    stage.judge()?;
    // What a person does: walk to the machine, pull its plug, and say so.
    bed.cluster().power_off(&node)?;
    bed.plugin(&["attest", &node, "--yes"])?;
    stage.wait_new_writer(&WEB, RECREATE_DEADLINE)?;
    drop(unfenced);
    comes_back(bed, &stage, &node)
}

/// The node of the leader is cut off, and the leader with it, which goes on running: its follower takes over once the
/// leader's Lease has run out, and does the same.
pub fn leaders_node(bed: &Bed) -> Result<()> {
    bed.wait_whole(NEW_LEADER_DEADLINE)?;
    let node = bed.leaders_node()?;
    let stage = Stage::set(bed, &node, &[WEB, DB])?;
    let recovered = side_by_side::pull_plug(bed, &stage, &WEB, &node)?;
    eprintln!("{FIGURE} the plug of the leader's own node pulled → its VM writes elsewhere: {recovered}");
    ensure!(!bed.cluster().is_on(&node)?, "web runs elsewhere while {node} still has power");
    bed.wait_decision("db", "ManualRecovery", DECIDE_DEADLINE)?;
    comes_back(bed, &stage, &node)?;
    bed.wait_whole(NEW_LEADER_DEADLINE)
}

/// The launchers of the VMs that nobody may touch.
fn launchers(stage: &Stage<'_>, node: &str) -> Result<Vec<(Vm, Option<String>)>> {
    stage
        .staged()
        .filter(|vm| vm.name != WEB.name)
        .map(|vm| Ok((vm.clone(), stage.launcher_on(vm.name, node)?)))
        .collect()
}

/// The VMs on local and unknown disks: told, with a runbook, and untouched.
fn stands_by(bed: &Bed, stage: &Stage<'_>, node: &str, launchers: &[(Vm, Option<String>)]) -> Result<()> {
    for (vm, launcher) in launchers {
        let recovery = bed.wait_decision(vm.name, "ManualRecovery", DECIDE_DEADLINE)?;
        let runbook = recovery["status"]["runbook"].as_str().unwrap_or_default();
        ensure!(runbook.contains(vm.name), "the runbook of {} is {runbook:?}", vm.name);
        ensure!(launcher.is_some(), "{} had no launcher", vm.name);
        ensure!(stage.launcher_on(vm.name, node)? == *launcher, "the launcher of {} was touched", vm.name);
        let elsewhere = stage.node_of(vm.name)?.is_some_and(|on| on != node);
        ensure!(!elsewhere, "{} runs elsewhere", vm.name);
    }
    Ok(())
}

/// The node returns: the VMs that stayed with it go on from their disks, and every disk is in order. A VM on a disk of
/// which nobody knows where it is, is started by KubeVirt wherever the scheduler likes; its old disk must be as it was.
fn comes_back(bed: &Bed, stage: &Stage<'_>, node: &str) -> Result<()> {
    bed.cluster().mend(node)?;
    bed.cluster().power_off(node)?;
    bed.cluster().power_on(node)?;
    bed.cluster().wait_ready(node)?;
    if stage.staged().any(|vm| vm.storage == Storage::Unknown) {
        bed.wait_untainted(node, RETURN_DEADLINE)?;
        ensure!(
            bed.node_state(node)? != "Healthy",
            "our taint kept a VM from its disk until quarantine ended"
        );
    }
    bed.wait_state(node, "Healthy", RETURN_DEADLINE)?;
    for vm in stage.staged().filter(|vm| vm.storage != Storage::Unknown) {
        stage.wait_writes(vm, RETURN_DEADLINE).with_context(|| format!("{} in {VMS}", vm.name))?;
    }
    stage.judge()
}
