//! `runbook`: what a person has to do to bring a VM back.

use serde::Serialize;
use somersault_coordinator_core::decision::{Decider, DecisionKind, Question};
use somersault_coordinator_core::names::NodeName;
use somersault_coordinator_core::runbook::{Progress, Standing, runbook, shell_word, storage_runbook};
use somersault_crd::node_health::NodeState;
use somersault_crd::recovery;

use super::explain::decide_for_vm;
use super::recoveries::has_ended;
use crate::args::{Global, RunbookArgs};
use crate::exit::{Exit, Failure};
use crate::output::{self, clean_lines};
use crate::world::{self, World, proof_kind};

/// A runbook.
#[derive(Debug, Serialize)]
struct Runbook {
    namespace: String,
    name: String,
    node: Option<String>,
    /// Whether the coordinator wrote it for a dead node or for broken storage; otherwise the text is about what is broken
    /// now, or about what would be if its node died.
    incident: bool,
    /// Markdown.
    #[serde(rename = "runbook")]
    text: String,
}

/// Runs the command.
pub fn run(global: &Global, args: &RunbookArgs) -> Result<Exit, Failure> {
    let namespace = args.vm.namespace(global)?;
    let world = World::read(global, &args.source)?;
    let key = world.find_vm(&args.vm.name, namespace).inspect_err(|_| {
        world::end(&world);
    })?;
    let recovery = world.recoveries.get(&key).and_then(|recovery| recovery.status.as_ref());
    let stored = recovery.and_then(|status| {
        let node = Some(status.node.clone()).filter(|node| !node.is_empty());
        Some((status.runbook.clone()?, node))
    });
    let incident = stored.is_some();
    let (text, node) = stored.unwrap_or_else(|| {
        let (decision, node) = decide_for_vm(&world, &key);
        let node = node.map(|node| node.to_string());
        let decider = Decider::new(&world.fleet, &world.policy.class_overrides);
        let storage = decider.decide(&key, &Question::default());
        if storage.kind == DecisionKind::ManualRecovery {
            (storage_runbook(&world.fleet, &world.policy.class_overrides, &storage), node)
        } else {
            let text = runbook(&world.fleet, &decision, &standing(recovery));
            (below_title(text, recovery.filter(|status| has_ended(status)).map(ended)), node)
        }
    });
    let text = below_title(text, recovery.and_then(|status| contradicted(&world, status)));
    let answer =
        Runbook { namespace: key.namespace, name: key.name, node, incident, text: clean_lines(&text) };
    output::print(global.output, &answer, || answer.text.clone())?;
    Ok(world::end(&world))
}

/// The text, with this paragraph before all that follows its title.
fn below_title(text: String, paragraph: Option<String>) -> String {
    match paragraph {
        Some(paragraph) => text.replacen("\n\n", &format!("\n\n{paragraph}\n\n"), 1),
        None => text,
    }
}

/// How the VM stands in an incident in which the coordinator wrote no runbook, since it needs no person: what is proven,
/// and how far it is. Nothing has happened where there is none, or it is over.
fn standing(recovery: Option<&recovery::RecoveryStatus>) -> Standing {
    let open =
        recovery.filter(|status| status.cause != Some(recovery::Cause::StorageFailed) && !has_ended(status));
    let Some(status) = open else { return Standing::default() };
    let progress = match status.progress {
        None => Progress::Supposed,
        Some(recovery::Progress::AwaitingProof) => Progress::Untouched,
        Some(recovery::Progress::NeedsPerson) => Progress::Stuck,
        Some(recovery::Progress::Acting | recovery::Progress::Restarting) => Progress::UnderWay,
        Some(recovery::Progress::Recovered) => Progress::Elsewhere,
        Some(recovery::Progress::NodeReturned) => Progress::NodeBack,
        Some(recovery::Progress::Unaffected) => Progress::Unaffected,
    };
    let proven = status.proof.map(|proof| (status.node.as_str().into(), proof_kind(proof)));
    Standing { proven: proven.into_iter().collect(), progress, over: false }
}

/// What comes before all else while the node that was proven dead beats.
fn contradicted(world: &World, status: &recovery::RecoveryStatus) -> Option<String> {
    let health = world.healths.get(&NodeName(status.node.clone()))?.status.as_ref()?;
    (health.state == NodeState::FenceContradicted).then(|| {
        let node = shell_word(&status.node);
        format!(
            "**The proof was wrong: node {node} was taken for dead, and beat afterwards. This VM may run there and elsewhere at \
             once, and destroy its disks. Switch that machine off now, make sure of it, then: kubectl somersault attest {node}**"
        )
    })
}

/// What is to be said of an incident that is over, before what would be in the next one.
fn ended(status: &recovery::RecoveryStatus) -> String {
    let progress =
        status.progress.map_or_else(|| "nothing was done".to_owned(), |progress| format!("{progress:?}"));
    match status.cause {
        Some(recovery::Cause::StorageFailed) => "Its storage was broken, and is not any more.".to_owned(),
        Some(recovery::Cause::NodeDied) | None => {
            format!("Its last recovery, when node {} died, is over ({progress}).", status.node)
        }
    }
}
