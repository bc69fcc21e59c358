//! The recoverability report: what would become of every VM if its node died now.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::decision::{Decider, Decision, DecisionKind, Question};
use crate::fencing::ProofKind;
use crate::fleet::Fleet;
use crate::locality::ClassOverrides;
use crate::names::{Key, NodeName};
use crate::runbook::shell_word;

/// How long the steps of a recovery take here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedTimes {
    /// From the last beat to the verdict.
    pub declare: Duration,
    /// How long each kind of proof takes, of those that come without a person. A kind that is absent is not
    /// counted upon.
    pub prove: BTreeMap<ProofKind, Duration>,
    /// From the proof to the VM running elsewhere.
    pub restart: Duration,
}

impl Default for ExpectedTimes {
    /// The safe profile's verdict, no proof that comes by itself, and the restart that KubeVirt's controllers
    /// need once the launcher is gone (1.4 s measured with KubeVirt 1.9, rounded up; the guest's own boot comes
    /// on top).
    fn default() -> Self {
        Self { declare: Duration::from_secs(5), prove: BTreeMap::new(), restart: Duration::from_secs(2) }
    }
}

/// One VM of the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReportRow {
    /// The VM.
    pub vm: Key,
    /// The node that is supposed to die: where it runs, else where its first local disk is.
    pub node: Option<NodeName>,
    /// What would become of it.
    pub decision: Decision,
    /// Proofs that the node could offer.
    pub proofs: Vec<ProofKind>,
    /// Something of it is concerned, but no proof would come by itself: a person would have to attest, beside whatever
    /// else the decision asks of one.
    pub proof_missing: bool,
    /// From the death of the node to the VM running elsewhere, without a person, in milliseconds; `None` where
    /// a person is needed, where there is nothing to do, and where an import of unknown length comes in between.
    pub expected_ms: Option<u64>,
    /// One line: what to do so that it fares better.
    pub remedy: String,
}

/// Asks of every VM what would become of it if its node died now. `proofs` are those that each node could offer.
pub fn report(
    fleet: &Fleet,
    overrides: &ClassOverrides,
    proofs: &BTreeMap<NodeName, Vec<ProofKind>>,
    expected: &ExpectedTimes,
) -> Vec<ReportRow> {
    let decider = Decider::new(fleet, overrides);
    let mut rows = Vec::with_capacity(fleet.vms.len());
    for (key, vm) in &fleet.vms {
        let ask = |node: Option<&NodeName>| {
            let question = Question { dead: node.cloned().into_iter().collect(), ..Question::default() };
            decider.decide(key, &question)
        };
        let mut node = vm.node().cloned();
        let mut decision = ask(node.as_ref());
        // A stopped VM has no node to die, but its disks may.
        let home = decision.local_nodes().next().cloned();
        if node.is_none()
            && let Some(home) = home
        {
            decision = ask(Some(&home));
            node = Some(home);
        }
        let offered = node.as_ref().and_then(|node| proofs.get(node)).cloned().unwrap_or_default();
        rows.push(row(decision, node, offered, expected));
    }
    rows
}

fn row(
    decision: Decision,
    node: Option<NodeName>,
    proofs: Vec<ProofKind>,
    expected: &ExpectedTimes,
) -> ReportRow {
    let acted_upon = matches!(decision.kind, DecisionKind::Recreate | DecisionKind::Rebuild);
    let prove = proofs.iter().filter_map(|kind| expected.prove.get(kind)).min();
    let proof_missing = node.is_some() && decision.kind != DecisionKind::NothingToDo && prove.is_none();
    let expected_ms = match (decision.kind, prove) {
        (DecisionKind::Recreate, Some(prove)) => {
            u64::try_from((expected.declare + *prove + expected.restart).as_millis()).ok()
        }
        _ => None,
    };
    let remedy = match &node {
        Some(node) if acted_upon && proof_missing => format!(
            "configure a fence agent for node {node}; without one somebody must run: kubectl somersault attest {}",
            shell_word(node.as_str())
        ),
        _ => decision.remedy.clone(),
    };
    ReportRow { vm: decision.vm.clone(), node, decision, proofs, proof_missing, expected_ms, remedy }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::Reason;
    use crate::decision::testkit::{World, host_path, key, on_host, running_vm};
    use crate::fleet::RunStrategy;

    fn expected() -> ExpectedTimes {
        ExpectedTimes {
            declare: Duration::from_secs(1),
            prove: [(ProofKind::PowerOffConfirmed, Duration::from_secs(4))].into(),
            restart: Duration::from_secs(2),
        }
    }

    fn rows(world: &World, proofs: &[(&str, &[ProofKind])]) -> Vec<ReportRow> {
        let proofs = proofs.iter().map(|(node, kinds)| (NodeName::from(*node), kinds.to_vec())).collect();
        report(&world.fleet, &world.overrides, &proofs, &expected())
    }

    #[test]
    fn adds_up_the_expected_time_where_a_proof_comes_by_itself() {
        let world = World::new();
        let rows = rows(&world, &[("n1", &[ProofKind::HumanAttested, ProofKind::PowerOffConfirmed])]);
        assert_eq!(rows.len(), 1);
        let row = &rows[0];
        assert_eq!(
            (row.decision.kind, row.proof_missing, row.expected_ms),
            (DecisionKind::Recreate, false, Some(7_000))
        );
        assert_eq!(row.remedy, "none needed");
    }

    #[test]
    fn a_node_that_only_a_person_can_prove_dead_lacks_a_proof() {
        let rows = rows(&World::new(), &[("n1", &[ProofKind::HumanAttested, ProofKind::NewBootId])]);
        assert_eq!((rows[0].proof_missing, rows[0].expected_ms), (true, None));
        assert!(rows[0].remedy.contains("fence agent"), "{}", rows[0].remedy);
    }

    #[test]
    fn asks_each_vm_about_its_own_node() {
        let mut world = World::new();
        world.fleet.vms.insert(key("db"), running_vm("db", "n2"));
        world.add_disk("db", "x", host_path(), on_host(&["n2"]));
        let rows = rows(&world, &[]);
        let found: Vec<_> =
            rows.iter().map(|row| (row.vm.name.as_str(), row.node.clone(), row.decision.kind)).collect();
        assert_eq!(
            found,
            [
                ("db", Some(NodeName::from("n2")), DecisionKind::ManualRecovery),
                ("web", Some(NodeName::from("n1")), DecisionKind::Recreate),
            ]
        );
        assert_eq!((rows[0].proof_missing, rows[0].expected_ms), (true, None), "beside the data");
        assert_eq!(rows[0].remedy, rows[0].decision.remedy, "the data comes first");
    }

    #[test]
    fn a_stopped_vm_is_asked_about_the_node_of_its_disk() {
        let mut world = World::new();
        world.add_disk("web", "x", host_path(), on_host(&["n3"]));
        world.vm("web").run = RunStrategy::Halted;
        world.vm("web").instance = None;
        world.vm("web").pods.clear();
        let row = rows(&world, &[]).remove(0);
        assert_eq!(
            (row.node, row.decision.reasons.as_slice()),
            (Some(NodeName::from("n3")), [Reason::Stopped].as_slice())
        );
        assert!(row.remedy.contains("migrate web -n shop"), "{}", row.remedy);
    }
}
