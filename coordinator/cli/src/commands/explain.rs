//! `explain`: what would happen if a node died, to one VM or to every VM of it, and because of which disk.

use std::fmt::Write as _;

use somersault_coordinator_core::decision::{Decider, Decision, DecisionKind, Question};
use somersault_coordinator_core::names::{Key, NodeName};
use somersault_crd::node_health::{NodeHealthStatus, NodeState};

use super::incident;
use super::verdict::{Verdict, decision_meaning, decision_name, names};
use crate::args::{ExplainArgs, Global, Target};
use crate::exit::{Exit, Failure};
use crate::output::{self, clean};
use crate::world::{self, World};

/// What is explained.
enum Subject {
    Vm(Key),
    Node(NodeName),
}

/// Runs the command.
pub fn run(global: &Global, args: &ExplainArgs) -> Result<Exit, Failure> {
    let namespace = match &args.target {
        Target::Vm(named) => named.namespace(global)?,
        Target::Either(_) | Target::Node(_) => global.namespace.as_deref(),
    };
    let world = World::read(global, &args.source)?;
    let subject = match find(&world, &args.target, namespace) {
        // What was asked for may be in the very manifest that could not be read.
        Err(failure) => {
            world::end(&world);
            return Err(failure);
        }
        Ok(subject) => subject,
    };
    let verdicts = match &subject {
        Subject::Vm(key) => vec![of_vm(&world, key)],
        Subject::Node(node) => of_node(&world, node, namespace),
    };
    output::print(global.output, &verdicts, || match &subject {
        Subject::Vm(_) => verdicts.iter().map(paragraph).collect(),
        Subject::Node(node) => node_text(&world, node, &verdicts),
    })?;
    Ok(world::end(&world))
}

fn find(world: &World, target: &Target, namespace: Option<&str>) -> Result<Subject, Failure> {
    let node = |name: &str| {
        let node = NodeName::from(name);
        (world.fleet.nodes.contains_key(&node) || world.healths.contains_key(&node)).then_some(node)
    };
    match target {
        Target::Vm(named) => Ok(Subject::Vm(world.find_vm(&named.name, namespace)?)),
        Target::Node(name) => {
            node(name).map(Subject::Node).ok_or_else(|| Failure::NotFound(format!("there is no Node {name}")))
        }
        Target::Either(name) => match (node(name), world.find_vm(name, namespace)) {
            (Some(_), Ok(_)) => {
                Err(Failure::Usage(format!("{name} is a node and a VM; say node/{name} or vm/{name}")))
            }
            (Some(node), Err(_)) => Ok(Subject::Node(node)),
            (None, Ok(key)) => Ok(Subject::Vm(key)),
            (None, Err(Failure::NotFound(_))) => {
                let place = namespace.map_or_else(String::new, |n| format!(" in namespace {n}"));
                Err(Failure::NotFound(format!(
                    "there is neither a Node {name} nor a VirtualMachine {name}{place}"
                )))
            }
            (None, Err(failure)) => Err(failure),
        },
    }
}

/// What would become of a VM if the node died that it runs on, or that its first local disk is on.
pub fn of_vm(world: &World, key: &Key) -> Verdict {
    let (decision, node) = decide_for_vm(world, key);
    Verdict::of(world, &decision, node.as_ref())
}

/// The decision behind [`of_vm`], and the node that is supposed to die.
pub fn decide_for_vm(world: &World, key: &Key) -> (Decision, Option<NodeName>) {
    let running = world.fleet.vms.get(key).and_then(|vm| vm.node().cloned());
    let decider = Decider::new(&world.fleet, &world.policy.class_overrides);
    let decision = decider.decide(key, &question(world, running.as_ref()));
    if running.is_some() {
        return (decision, running);
    }
    let Some(home) = decision.local_nodes().next().cloned() else { return (decision, None) };
    (decider.decide(key, &question(world, Some(&home))), Some(home))
}

/// The VMs that run on a node, or have a disk there.
fn of_node(world: &World, node: &NodeName, namespace: Option<&str>) -> Vec<Verdict> {
    let question = question(world, Some(node));
    let decider = Decider::new(&world.fleet, &world.policy.class_overrides);
    world
        .fleet
        .vms
        .iter()
        .filter(|(key, _)| namespace.is_none_or(|want| key.namespace == want))
        .filter_map(|(key, vm)| {
            let decision = decider.decide(key, &question);
            let concerned = vm.node() == Some(node)
                || vm.pods.iter().any(|pod| pod.node.as_ref() == Some(node))
                || decision.local_nodes().any(|home| home == node);
            concerned.then(|| Verdict::of(world, &decision, Some(node)))
        })
        .collect()
}

/// The question: this node is dead, beside those that are proven so, and nothing may be placed on nodes that are in trouble themselves.
fn question(world: &World, dead: Option<&NodeName>) -> Question {
    let in_trouble = |name: &&NodeName| {
        let state =
            world.healths.get(*name).and_then(|health| health.status.as_ref()).map(|status| status.state);
        state.is_some_and(|state| !matches!(state, NodeState::Healthy | NodeState::NoAgent))
    };
    // With no node nobody asks but for the storage.
    let already = || incident::that_are(world, incident::is_proven);
    Question {
        dead: dead.map(|node| already().into_iter().chain([node.clone()]).collect()).unwrap_or_default(),
        unusable: world.healths.keys().filter(in_trouble).cloned().collect(),
    }
}

fn node_text(world: &World, node: &NodeName, verdicts: &[Verdict]) -> String {
    let mut text = String::new();
    let proofs = world.proofs().remove(node).unwrap_or_default();
    let proofs: Vec<_> = proofs.iter().map(|kind| format!("{kind:?}")).collect();
    let proofs = if proofs.is_empty() { "nothing".to_owned() } else { proofs.join(", ") };
    let (name, concerned) = (clean(node.as_str()), verdicts.len());
    let status = world.healths.get(node).and_then(|health| health.status.as_ref());
    let _ = match status.filter(|_| incident::is_dead(world, node)) {
        Some(NodeHealthStatus { proof: Some(proof), .. }) => {
            writeln!(text, "Node {name} is dead, proven by {proof:?}; {concerned} VMs are concerned.")
        }
        Some(status) => writeln!(
            text,
            "Node {name} is called dead ({:?}); {concerned} VMs are concerned. It can be proven dead by: {proofs}.",
            status.state
        ),
        None => writeln!(
            text,
            "If node {name} died now, {concerned} VMs would be concerned. It could be proven dead by: {proofs}."
        ),
    };
    for verdict in verdicts {
        text.push('\n');
        text.push_str(&paragraph(verdict));
    }
    text
}

fn paragraph(verdict: &Verdict) -> String {
    let mut text = String::new();
    let supposed = match &verdict.node {
        Some(node) if verdict.node_is_dead => format!("whose node {} is dead", clean(node)),
        Some(node) => format!("if node {} died", clean(node)),
        None => "it is on no node now".to_owned(),
    };
    let _ = writeln!(
        text,
        "VM {}/{}, {supposed}: {} ({})",
        clean(&verdict.namespace),
        clean(&verdict.name),
        decision_name(verdict.decision),
        decision_meaning(verdict.decision),
    );
    let _ = writeln!(text, "  reasons: {}", names(&verdict.reasons));
    if !verdict.broken_storage.is_empty() {
        let _ = writeln!(
            text,
            "  its storage is broken now, whether a node dies or not: {}",
            names(&verdict.broken_storage)
        );
    }
    for detail in &verdict.details {
        let _ = writeln!(text, "  because: {}", clean(detail));
    }
    if verdict.decision != DecisionKind::NothingToDo && !verdict.proof_needed_for.is_empty() {
        let _ = writeln!(
            text,
            "  needs proof that these nodes are dead: {}",
            clean(&verdict.proof_needed_for.join(", "))
        );
    }
    if !verdict.remedy.is_empty() {
        let when = if verdict.node_is_dead { "now" } else { "to fare better" };
        let _ = writeln!(text, "  {when}: {}", clean(&verdict.remedy));
    }
    if verdict.decision == DecisionKind::ManualRecovery {
        let _ = writeln!(
            text,
            "  step by step: kubectl somersault runbook {} -n {}",
            clean(&verdict.name),
            clean(&verdict.namespace)
        );
    }
    for line in verdict.disk_table().lines() {
        let _ = writeln!(text, "  {line}");
    }
    text
}
