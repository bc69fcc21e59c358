//! `recoveries`: what becomes, or became, of the VMs of dead nodes, and of those whose storage broke.

use serde::Serialize;
use somersault_coordinator::cluster::manifest::display;
use somersault_coordinator_core::decision::{Decider, Question};
use somersault_coordinator_core::names::{Key, NodeName};
use somersault_crd::Recovery;
use somersault_crd::recovery::{Cause, DecisionKind, Progress, RecoveryStatus};

use crate::args::{Global, SourceArgs};
use crate::exit::{Exit, Failure};
use crate::output::{self, Mood, cell, clean, mood_cell, render, table};
use crate::world::{self, World};

/// A VM whose own node selector names its node is tied to it.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// One VM of an incident.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Namespace of the VM.
    pub namespace: String,
    /// Name of the VM.
    pub name: String,
    /// Why it has to be recovered; absent in those that an older coordinator wrote, which knew dead nodes only.
    pub cause: Option<Cause>,
    /// The node that died; for broken storage the node that it runs on, or that its disk is on.
    pub node: String,
    /// What becomes of it.
    pub decision: Option<DecisionKind>,
    /// Why.
    pub reasons: Vec<String>,
    /// How far it is.
    pub progress: Option<Progress>,
    /// What permitted acting.
    pub proof: Option<somersault_crd::common::Proof>,
    /// The node where it was started away from its disks after their node had returned, if it was: nothing ties it to
    /// them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strayed_to: Option<String>,
    /// Whether a runbook waits for a person.
    pub has_runbook: bool,
    /// Its incident is over: nothing of it changes any more.
    pub over: bool,
}

/// Runs the command.
pub fn run(global: &Global, args: &SourceArgs) -> Result<Exit, Failure> {
    let world = World::read(global, args)?;
    let rows: Vec<Row> = world
        .recoveries
        .iter()
        .filter(|(key, _)| global.namespace.as_ref().is_none_or(|want| key.namespace == *want))
        .map(|(key, recovery)| Row::of(&world, key, recovery))
        .collect();
    output::print(global.output, &rows, || text(&rows, global.namespace.as_deref()))?;
    Ok(world::end(&world))
}

impl Row {
    /// The row of a `Recovery`.
    pub fn of(world: &World, key: &Key, recovery: &Recovery) -> Self {
        let status = recovery.status.clone().unwrap_or_default();
        let over = has_ended(&status);
        Self {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            strayed_to: strayed_to(world, key, &status).map(ToString::to_string),
            cause: status.cause,
            node: status.node,
            decision: status.decision,
            reasons: status.reasons,
            progress: status.progress,
            proof: status.proof,
            has_runbook: status.runbook.is_some(),
            over,
        }
    }

    /// How far it is, in words; with what is broken, where that is its storage.
    pub fn words(&self) -> String {
        let (progress, _) = self.progress_words();
        match (self.cause, self.progress, self.reasons.first()) {
            (Some(Cause::StorageFailed), Some(Progress::NeedsPerson), Some(reason)) if !self.over => {
                format!("{progress} (storage: {reason})")
            }
            _ => self.stray_words().unwrap_or_else(|| progress.to_owned()),
        }
    }

    fn stray_words(&self) -> Option<String> {
        let node = self.strayed_to.as_ref()?;
        let what = if self.progress == Some(Progress::NodeReturned) { "NodeReturned" } else { "Started" };
        Some(format!("{what}, but it runs on {node}, away from its disks"))
    }

    /// What is being done to bring it back elsewhere, while it is.
    pub fn under_way(&self) -> Option<&'static str> {
        match self.progress {
            Some(Progress::Acting) => Some("its old launcher is being removed"),
            Some(Progress::Restarting) => Some("it is being started elsewhere"),
            _ => None,
        }
    }

    /// How far it is, and how good that is.
    pub fn progress_words(&self) -> (&'static str, Mood) {
        match self.progress {
            None => ("", Mood::Plain),
            Some(Progress::NeedsPerson | Progress::AwaitingProof) if self.over => {
                ("over, untouched", Mood::Plain)
            }
            Some(Progress::AwaitingProof) => ("AwaitingProof", Mood::Bad),
            Some(Progress::Acting) => ("Acting", Mood::Doubtful),
            Some(Progress::Restarting) => ("Restarting", Mood::Doubtful),
            Some(Progress::Recovered) if self.strayed_to.is_some() => ("Started", Mood::Bad),
            Some(Progress::Recovered) => ("Recovered", Mood::Good),
            Some(Progress::NeedsPerson) => ("NeedsPerson", Mood::Bad),
            Some(Progress::NodeReturned) if self.strayed_to.is_some() => ("NodeReturned", Mood::Bad),
            Some(Progress::NodeReturned) => ("NodeReturned", Mood::Good),
            Some(Progress::Unaffected) => ("Unaffected", Mood::Plain),
        }
    }
}

/// The node where a VM runs though its disks are on another one: nothing ties it to them.
fn strayed_to<'a>(world: &'a World, key: &Key, status: &RecoveryStatus) -> Option<&'a NodeName> {
    let away = matches!(status.progress, Some(Progress::NodeReturned | Progress::Recovered));
    let of_a_node = status.cause != Some(Cause::StorageFailed);
    let vm = world.fleet.vms.get(key).filter(|_| away && of_a_node)?;
    let instance = vm.instance.as_ref().filter(|instance| instance.phase == "Running")?;
    let elsewhere = instance.node.as_ref().filter(|node| node.as_str() != status.node)?;
    let decider = Decider::new(&world.fleet, &world.policy.class_overrides);
    let tied =
        vm.node_selector.contains_key(HOSTNAME) || !decider.decide(key, &Question::default()).is_unpinned();
    (!tied).then_some(elsewhere)
}

/// Its incident is over.
pub fn has_ended(status: &RecoveryStatus) -> bool {
    status.conditions.iter().any(|condition| condition.type_ == display::ENDED && condition.status == "True")
}

/// What the coordinator tells of a VM whose storage is broken now. It hears the agents' listings, which no object holds.
pub fn broken_storage<'a>(world: &'a World, vm: &Key) -> Option<&'a RecoveryStatus> {
    let status = world.recoveries.get(vm)?.status.as_ref()?;
    (status.cause == Some(Cause::StorageFailed) && !has_ended(status)).then_some(status)
}

fn text(rows: &[Row], namespace: Option<&str>) -> String {
    if rows.is_empty() {
        let within = namespace.map_or_else(String::new, |name| format!(" in namespace {}", clean(name)));
        return format!("No VM had to be recovered{within}.");
    }
    let mut table = table(&["VM", "CAUSE", "NODE", "DECISION", "PROGRESS", "PROOF", "REASONS", "RUNBOOK"])
        .below(&["REASONS", "RUNBOOK"]);
    for row in rows {
        let (progress, mood) = row.progress_words();
        let progress = row.stray_words().unwrap_or_else(|| progress.to_owned());
        let runbook = format!("kubectl somersault runbook {} -n {}", row.name, row.namespace);
        table.add_row([
            cell(&format!("{}/{}", row.namespace, row.name)),
            cell(&row.cause.map(|cause| format!("{cause:?}")).unwrap_or_default()),
            cell(&row.node),
            cell(&row.decision.map(|kind| format!("{kind:?}")).unwrap_or_default()),
            mood_cell(&progress, mood),
            cell(&row.proof.map(|proof| format!("{proof:?}")).unwrap_or_default()),
            cell(&row.reasons.join(", ")),
            cell(if row.has_runbook { &runbook } else { "" }),
        ]);
    }
    render(&table)
}
