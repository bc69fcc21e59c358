//! `attest`: a person's word that nothing on a node runs or writes any more.
//!
//! ```text
//!   Healthy, NoAgent, Fenced, Recovering, Quarantine ──► refused: nothing to attest
//!   Suspect, AgentSilent, Partitioned ───────────────► refused: something there may live
//!   AwaitingProof, StormHold ────────────────────────► asked, bound to the boot id, written
//!   FenceContradicted ───────────────────────────────► the same: the way out once the machine is off. While it beats, the
//!                                                      coordinator does not count the word
//! ```

use std::io::{self, BufRead, Write};

use serde_json::json;
use somersault_coordinator::cluster::manifest::ObjectId;
use somersault_coordinator_core::names::NodeName;
use somersault_crd::node_health::{Attestation, FenceStage, NodeState};

use crate::args::{AttestArgs, Global};
use crate::exit::{Exit, Failure};
use crate::output::{self, clean};
use crate::requests::{self, Written};
use crate::source::Source;
use crate::world::World;

const KIND: &str = "NodeHealth";
/// A node's name is shorter than this; whatever is longer is no answer.
const ANSWER_BYTES_MAX: u64 = 1_024;

/// Runs the command.
pub fn run(global: &Global, args: &AttestArgs) -> Result<Exit, Failure> {
    let source = Source::open(global)?;
    let world = World::of(&source.objects()?, None)?;
    let node = NodeName(args.node.clone());
    let attestation = Attestation {
        boot_id: boot_to_attest(&world, &node)?,
        by: requests::whose_word(&source, args.by.as_deref())?,
        at: Some(jiff::Timestamp::now().to_string()),
    };
    if !args.yes {
        ask(&world, &node, &attestation)?;
    }
    let id = ObjectId::cluster(KIND, &node.0);
    source.set_spec(&id, |health| {
        // People think for a while before they answer; the node may have come back meanwhile.
        if health["status"]["state"] == json!(NodeState::Healthy) {
            return Err("the node is Healthy again; nothing was written".to_owned());
        }
        Ok(("attestation", json!(attestation)))
    })?;
    let written = Written { kind: KIND, namespace: None, name: node.0.clone() };
    output::print(global.output, &written, || {
        format!(
            "{} has attested that node {} (boot {}) runs and writes nothing any more. It counts as long as the node is \
             silent; see what follows: kubectl somersault status",
            clean(&attestation.by),
            clean(node.as_str()),
            clean(&attestation.boot_id)
        )
    })?;
    Ok(Exit::Ok)
}

/// The boot that the word would be about; refused where there is nothing to attest.
fn boot_to_attest(world: &World, node: &NodeName) -> Result<String, Failure> {
    let health = world.healths.get(node).and_then(|health| health.status.as_ref());
    if health.is_none() && !world.fleet.nodes.contains_key(node) {
        return Err(Failure::NotFound(format!("there is no Node {node}")));
    }
    let refuse = |why: &str| Err(Failure::Refused(format!("node {node} is {why}")));
    let Some(status) = health else {
        return refuse(
            "unknown to the coordinator: no agent was ever heard from, so nothing would follow from your word",
        );
    };
    match status.state {
        NodeState::Healthy => return refuse("Healthy: its agent sends heartbeats. Power it off first"),
        NodeState::NoAgent => {
            return refuse(
                "without an agent: this coordinator has heard of none since it started, so nothing would follow from your \
                 word. Where the coordinator has just started, look again in half a minute",
            );
        }
        NodeState::Suspect | NodeState::AgentSilent | NodeState::Partitioned => {
            return refuse(&format!(
                "{:?}: something there may still run, and a wrong word runs VMs twice. Wait for the verdict, or power \
                 it off first",
                status.state
            ));
        }
        NodeState::Fenced | NodeState::Recovering | NodeState::Quarantine => {
            return refuse(&format!("{:?}: it needs no more proof", status.state));
        }
        NodeState::AwaitingProof | NodeState::StormHold | NodeState::FenceContradicted => {}
    }
    // The record of an incident that is over is about an earlier boot.
    let open = status.fence.as_ref().filter(|fence| fence.stage != FenceStage::Closed);
    let fenced = open.and_then(|fence| fence.boot_id.clone());
    let told = world.fleet.nodes.get(node).and_then(|node| node.boot_id.as_ref()).map(ToString::to_string);
    fenced.or_else(|| status.boot_id.clone()).or(told).ok_or_else(|| {
        Failure::Refused(format!(
            "nobody knows in which boot node {node} was; a word without a boot would cover later ones"
        ))
    })
}

/// Says what it implies, and wants the node's name typed.
fn ask(world: &World, node: &NodeName, attestation: &Attestation) -> Result<(), Failure> {
    let concerned: Vec<String> = world
        .fleet
        .vms
        .iter()
        .filter(|(_, vm)| vm.node() == Some(node))
        .map(|(key, _)| key.to_string())
        .collect();
    let name = clean(node.as_str());
    let mut err = io::stderr().lock();
    write!(
        err,
        "You are about to give your word that node {name} runs nothing and writes nothing any more: that it is powered \
         off, or cut from power and storage, and stays so until somebody has looked at it.\n\n\
         Upon it, VMs of that node whose disks are on network storage are started on other nodes at once.\n\
         VMs that ran there: {}.\n\
         If the node still lives, they run twice and destroy their disks. A node that merely does not answer is not \
         dead.\n\n\
         Your word covers boot {} only, and is kept as that of {}.\n\n\
         Type the node's name to give it: ",
        if concerned.is_empty() { "none".to_owned() } else { clean(&concerned.join(", ")).into_owned() },
        clean(&attestation.boot_id),
        clean(&attestation.by),
    )?;
    err.flush()?;
    let mut answer = String::new();
    let mut stdin = io::Read::take(io::stdin().lock(), ANSWER_BYTES_MAX);
    stdin
        .read_line(&mut answer)
        .map_err(|error| Failure::Failed(format!("cannot read the answer: {error}")))?;
    if answer.trim() == node.as_str() {
        return Ok(());
    }
    Err(Failure::Refused("the node's name was not typed; nothing was written".to_owned()))
}
