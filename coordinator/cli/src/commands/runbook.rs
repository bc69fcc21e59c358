//! `runbook`: what a person has to do to bring a VM back.

use serde::Serialize;
use somersault_coordinator_core::decision::{Decider, DecisionKind, Question};
use somersault_coordinator_core::runbook::{runbook, storage_runbook};

use super::explain::decide_for_vm;
use crate::args::{Global, RunbookArgs};
use crate::exit::{Exit, Failure};
use crate::output::{self, clean_lines};
use crate::world::{self, World};

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
    let world = World::read(global, &args.source)?;
    let key = world.find_vm(&args.vm, global.namespace.as_deref()).inspect_err(|_| {
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
            (storage_runbook(&world.fleet, &storage), node)
        } else {
            (runbook(&world.fleet, &decision), node)
        }
    });
    let answer =
        Runbook { namespace: key.namespace, name: key.name, node, incident, text: clean_lines(&text) };
    output::print(global.output, &answer, || answer.text.clone())?;
    Ok(world::end(&world))
}
