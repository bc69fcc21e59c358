//! Nodes that live, whatever it looks like: none may be declared, tainted, switched off or robbed of a VM.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use somersault_test_cluster::{condition, until};
use somersault_test_e2e::api::Kind;
use somersault_test_e2e::bed::{Bed, VMS};
use somersault_test_e2e::look::throughout;
use somersault_test_e2e::stage::{DB, Stage, WEB};

/// Many times the time to a verdict of the fast profile.
const LONG_ENOUGH: Duration = Duration::from_secs(15);
/// Kubernetes calls a node Unknown after 50 s at most, plus its own period.
const NOT_READY_DEADLINE: Duration = Duration::from_mins(2);
/// A storm's calm, reconnections, a leader's lease.
const HEALTHY_DEADLINE: Duration = Duration::from_mins(3);
/// The leader's Lease may have run out meanwhile: it is taken again, then the silence counts anew.
const HELD_DEADLINE: Duration = Duration::from_mins(2);
/// How long a node stands still that must not be taken for dead.
const SHORT_PAUSE: Duration = Duration::from_secs(5);
/// Between two looks at a hold.
const HELD_LOOK: Duration = Duration::from_millis(250);
/// An Event is written at once.
const TOLD_DEADLINE: Duration = Duration::from_secs(30);

/// Command line of an agent's process, for pkill.
const AGENT: &str = "^/usr/local/bin/somersault-agent";
/// Between two looks for an agent that has come back: it beats five times a second.
const KILL_LOOK: Duration = Duration::from_millis(100);

/// The kubelet dies, the agent lives: Kubernetes calls the node `NotReady`, and it is not dead.
pub fn kubelet_killed(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let stage = Stage::set(bed, &node, &[WEB])?;
    bed.cluster().stop_program(Some(&node), "kubelet")?;
    until(&format!("Kubernetes calls {node} Unknown"), NOT_READY_DEADLINE, &[], || {
        bed.check_undeclared()?;
        let object = bed.api().get(Kind::NODE, "", &node)?;
        Ok((condition(&object, "Ready") == Some("Unknown")).then_some(()))
    })?;
    bed.stays_undeclared(LONG_ENOUGH)?;
    ensure!(bed.node_state(&node)? == "Healthy", "its agent beats, and it is {}", bed.node_state(&node)?);
    bed.cluster().start_program(Some(&node), "kubelet")?;
    stage.undisturbed(LONG_ENOUGH)
}

/// The agent stops, the node lives.
pub fn agent_stopped(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let stage = Stage::set(bed, &node, &[WEB])?;
    signal_agent(bed, &node, "-STOP")?;
    bed.wait_state(&node, "AgentSilent", LONG_ENOUGH)?;
    bed.stays_undeclared(LONG_ENOUGH)?;
    signal_agent(bed, &node, "-CONT")?;
    bed.wait_state(&node, "Healthy", LONG_ENOUGH)?;
    stage.undisturbed(LONG_ENOUGH)
}

/// The agent's process is killed as often as it comes back, then its pod is removed: the node lives.
pub fn agent_killed(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let stage = Stage::set(bed, &node, &[WEB, DB])?;
    let (mut kills, mut states) = (0, BTreeSet::new());
    // The kubelet starts it again at once, then after 10 s: silence of many times what a verdict takes.
    throughout(LONG_ENOUGH, KILL_LOOK, || {
        kills += u32::from(kill_agent(bed, &node)?);
        bed.check_undeclared()?;
        states.insert(bed.node_state(&node)?);
        Ok(())
    })?;
    ensure!(kills > 1, "the agent of {node} was killed once, and did not come back");
    ensure!(
        states.contains("AgentSilent"),
        "nobody has noticed that the agent of {node} was gone: {states:?}"
    );
    let no_death = states.iter().all(|state| ["Healthy", "Suspect", "AgentSilent"].contains(&state.as_str()));
    ensure!(no_death, "{node} was called {states:?} while only its agent was dead");
    bed.kill_agents_pod(&node)?;
    bed.stays_undeclared(LONG_ENOUGH)?;
    bed.wait_state(&node, "Healthy", HEALTHY_DEADLINE)?;
    for vm in stage.staged() {
        let recovery = bed.api().find(Kind::RECOVERY, VMS, vm.name)?;
        ensure!(recovery.is_none(), "{} runs on a living node, and has a Recovery: {recovery:?}", vm.name);
    }
    stage.undisturbed(LONG_ENOUGH)
}

/// Packets from a node to the coordinators are lost, and no others.
pub fn one_way_cut(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let stage = Stage::set(bed, &node, &[WEB])?;
    for pod in bed.coordinators()? {
        let address = pod["status"]["podIP"].as_str().context("a coordinator without an address")?;
        let rules = format!(
            "add table inet oneway; add chain inet oneway out {{ type filter hook output priority 0; }}; \
             add rule inet oneway out ip daddr {address} drop"
        );
        on_node(bed, &node, &["nft", &rules])?;
    }
    bed.wait_state(&node, "Partitioned", LONG_ENOUGH)?;
    bed.stays_undeclared(LONG_ENOUGH)?;
    on_node(bed, &node, &["nft", "delete table inet oneway"])?;
    bed.wait_state(&node, "Healthy", HEALTHY_DEADLINE)?;
    stage.undisturbed(LONG_ENOUGH)
}

/// Every process of a node stands still for five seconds, in the safe profile: no death. That profile declares a node 5 s
/// after its last beat, which may have been a second before the pause; what tells this node from a dead one is its kernel,
/// which answers the probes that go out after 3 s. (A machine whose kernel stands still with it answers nothing, and only
/// what is shorter than 4 s, a beat less than the limit, is certain to be no death in that profile.)
pub fn frozen_shortly(bed: &Bed) -> Result<()> {
    let safe = bed.with_policy(&json!({"profile": "Safe"}))?;
    let node = bed.node_without_leader()?;
    let stage = Stage::set(bed, &node, &[WEB, DB])?;
    bed.wait_healthy(&bed.nodes(), HEALTHY_DEADLINE)?;
    let before = incident(bed, &node)?;
    bed.cluster().freeze(&node)?;
    let mut states = BTreeSet::new();
    let mut look = || {
        states.insert(bed.node_state(&node)?);
        bed.check_undeclared()
    };
    let looked = throughout(SHORT_PAUSE, KILL_LOOK, &mut look);
    bed.cluster().thaw(&node)?;
    looked?;
    throughout(LONG_ENOUGH, KILL_LOOK, &mut look)?;
    bed.wait_healthy(&bed.nodes(), HEALTHY_DEADLINE)?;
    eprintln!("   MEASURED a node that stood still for {SHORT_PAUSE:?} was called {states:?}");
    ensure!(incident(bed, &node)? == before, "{node} lives, and has an incident: {}", incident(bed, &node)?);
    for vm in stage.staged() {
        let recovery = bed.api().find(Kind::RECOVERY, VMS, vm.name)?;
        ensure!(recovery.is_none(), "{} runs on a living node, and has a Recovery: {recovery:?}", vm.name);
    }
    drop(safe);
    stage.undisturbed(LONG_ENOUGH)
}

/// What is stored and shown of a node's last incident: another one would change it.
fn incident(bed: &Bed, node: &str) -> Result<Value> {
    let status = &bed.api().get(Kind::NODE_HEALTH, "", node)?["status"];
    Ok(json!([status["fence"], status["timeline"]]))
}

/// A pause of a minute: Kubernetes gives the node up meanwhile.
pub fn frozen_for_a_minute(bed: &Bed) -> Result<()> {
    frozen(bed, Duration::from_mins(1))
}

/// Every plug at once, those of the coordinators' nodes too: nobody can tell anything, and nothing is done. Then one
/// node is back, from where a coordinator can tell the API server what it sees: all others silent at once, which it
/// holds for its own trouble. It says so, and switches nobody off.
pub fn all_cut(bed: &Bed) -> Result<()> {
    bed.wait_whole(HEALTHY_DEADLINE)?;
    let back = bed.leaders_node()?;
    let node = bed.node_without_leader()?;
    let stage = Stage::set(bed, &node, &[WEB, DB])?;
    let told = bed.told_of_coordinator("StormHold")?;
    let nodes = bed.nodes();
    let away: Vec<&String> = nodes.iter().filter(|node| **node != back).collect();
    nodes.iter().try_for_each(|node| bed.cluster().cut(node))?;
    bed.stays_undeclared(LONG_ENOUGH)?;
    stage.wait_writes(&WEB, LONG_ENOUGH)?;

    bed.cluster().mend(&back)?;
    until(&format!("{away:?} are held back"), HELD_DEADLINE, &[], || bed.check_held(&away).map(Some))?;
    until("the hold is told", TOLD_DEADLINE, &[], || {
        Ok((bed.told_of_coordinator("StormHold")? > told).then_some(()))
    })?;
    throughout(LONG_ENOUGH, HELD_LOOK, || bed.check_held(&away))?;
    stage.wait_writes(&WEB, LONG_ENOUGH)?;

    nodes.iter().try_for_each(|node| bed.cluster().mend(node))?;
    bed.stays_undeclared(LONG_ENOUGH)?;
    bed.wait_healthy(&nodes, HEALTHY_DEADLINE)?;
    for node in &nodes {
        let health = bed.api().get(Kind::NODE_HEALTH, "", node)?;
        let fence = &health["status"]["fence"];
        ensure!(fence.is_null() || fence["stage"] == "Closed", "{node} lives, and is being fenced: {fence}");
    }
    stage.undisturbed(LONG_ENOUGH)
}

/// A machine that stands still is dead to everybody else. It may be taken for dead then, but not without being switched
/// off first; the disk tells whether its VM ran elsewhere meanwhile and went on when the machine woke.
fn frozen(bed: &Bed, pause: Duration) -> Result<()> {
    let node = bed.node_without_leader()?;
    let stage = Stage::set(bed, &node, &[WEB])?;
    bed.cluster().freeze(&node)?;
    std::thread::sleep(pause);
    let switched_off = !bed.cluster().is_on(&node)?;
    if !switched_off {
        bed.cluster().thaw(&node)?;
    }
    bed.calm()?;
    stage.wait_writes(&WEB, LONG_ENOUGH)?;
    stage.judge()?;
    let instances = stage.instances(&WEB)?;
    ensure!(instances == 1 || switched_off, "web was started elsewhere, and {node} was not switched off");
    Ok(())
}

fn signal_agent(bed: &Bed, node: &str, signal: &str) -> Result<()> {
    on_node(bed, node, &["pkill", signal, "-f", AGENT])
}

/// Returns whether there was one.
fn kill_agent(bed: &Bed, node: &str) -> Result<bool> {
    let status = bed.cluster().command_on(node)?.args(["pkill", "-KILL", "-f", AGENT]).status();
    // pkill(1): 1, and nothing else, says that no process matched.
    match status.context("starting pkill")?.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        other => bail!("pkill on {node} ended with {other:?}"),
    }
}

fn on_node(bed: &Bed, node: &str, command: &[&str]) -> Result<()> {
    let output = bed.cluster().command_on(node)?.args(command).output().context("starting a command")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{} on {node}: {said}", command.join(" "));
    Ok(())
}
