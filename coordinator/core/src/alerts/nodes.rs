//! Alerts about nodes, their fence agents and their disks: the view -> findings.

use std::time::Duration;

use super::{AlertName, AlertSubject, Findings, Known};
use crate::fencing::ProofKind;
use crate::fencing::agents::FencingState;
use crate::fleet::{DiskHealth, Grade};
use crate::names::NodeName;
use crate::runbook::shell_word;
use crate::view::{NodeState, NodeView, RecoveryCause, RecoveryProgress};

/// How long a proof that comes by itself is waited for: a fence agent switches a machine off and reads that back within
/// seconds, and is given a minute for it (`fencing.timeoutMs`).
const PROOF_WITHIN: Duration = Duration::from_mins(1);

pub(super) fn look(known: &Known<'_>, found: &mut Findings) {
    if let Some(why) = &known.view.storm_hold {
        let description = format!(
            "{why}. Nothing is declared dead and nothing is recovered meanwhile. Look at the network and the power of those nodes, \
             and of the coordinator. If they are really down: kubectl somersault release-hold"
        );
        found.add(AlertName::StormHold, AlertSubject::Cluster, description);
    }
    for (node, view) in &known.view.nodes {
        state(known, node, view, found);
        fence_agent(known, node, view, found);
        disks(node, view, found);
    }
}

fn state(known: &Known<'_>, node: &NodeName, view: &NodeView, found: &mut Findings) {
    let name = match view.state {
        NodeState::FenceContradicted => AlertName::FenceContradicted,
        NodeState::AwaitingProof => AlertName::AwaitingProof,
        NodeState::AgentSilent => AlertName::AgentSilent,
        NodeState::Partitioned => AlertName::NodePartitioned,
        NodeState::NoAgent
        | NodeState::Healthy
        | NodeState::Suspect
        | NodeState::StormHold
        | NodeState::Fenced
        | NodeState::Recovering
        | NodeState::Quarantine => return,
    };
    let message = &view.message;
    let description = match name {
        AlertName::AwaitingProof => {
            let waiting = known.view.recoveries.values().filter(|recovery| {
                recovery.cause == RecoveryCause::NodeDied
                    && !recovery.ended
                    && recovery.progress == RecoveryProgress::AwaitingProof
                    && recovery.node.as_ref() == Some(node)
            });
            format!("{message}. {} of its VMs start elsewhere as soon as it is proven dead", waiting.count())
        }
        AlertName::AgentSilent | AlertName::NodePartitioned => format!(
            "{message}. The node is not taken for dead. Look at its agent: kubectl get pods -n somersault-system -o wide \
             --field-selector spec.nodeName={}",
            shell_word(node.as_str())
        ),
        _ => message.clone(),
    };
    let finding = found.add(name, AlertSubject::Node(node.clone()), description);
    finding.since = Some(view.since);
    let by_itself = |kind: &ProofKind| matches!(kind, ProofKind::PowerOffConfirmed | ProofKind::LeaseExpired);
    if name == AlertName::AwaitingProof && view.proofs_possible.iter().any(by_itself) {
        finding.hold = PROOF_WITHIN;
    }
}

/// A node without a fence agent, and without a mistake that may be why, is one that nobody wants to have one.
fn fence_agent(known: &Known<'_>, node: &NodeName, view: &NodeView, found: &mut Findings) {
    let Some(agent) = &view.fence_agent else { return };
    // Others are not asked, and their state is what people hear of.
    if view.state != NodeState::Healthy || !known.fleet.nodes.contains_key(node) {
        return;
    }
    let mend = "Until that is mended, a person must switch the machine off and attest it if the node dies. Look: kubectl somersault check";
    let (subject, why) = match &agent.state {
        FencingState::Answers => (AlertSubject::Cluster, None),
        // Of the runners as a whole, not of each node.
        FencingState::RunnerAway { why } => (
            AlertSubject::Cluster,
            Some(format!("no fence runner answers ({why}), so that no node can be switched off")),
        ),
        FencingState::Untested => (
            AlertSubject::Node(node.clone()),
            Some("its fence agent has not answered since it was configured".to_owned()),
        ),
        FencingState::AnswersNot { why } => {
            (AlertSubject::Node(node.clone()), Some(format!("its fence agent does not answer: {why}")))
        }
        FencingState::WrongMachine => (
            AlertSubject::Node(node.clone()),
            Some(
                "its fence agent says off while the node beats: it looks at another machine, and is not run any more. Correct its \
                 entry in the fence configuration"
                    .to_owned(),
            ),
        ),
        FencingState::NotConfigured { why } => {
            (AlertSubject::Node(node.clone()), Some(format!("it has no fence agent: {why}")))
        }
    };
    if let Some(why) = why {
        let finding = found.add(AlertName::FenceUntested, subject, format!("{why}. {mend}"));
        if agent.state == FencingState::WrongMachine {
            finding.hold = Duration::ZERO;
        }
    }
    if let Some(why) = &agent.change_refused {
        let description =
            format!("a change of the fence configuration is not in use, the one before it is: {why}. {mend}");
        found.add(AlertName::FenceUntested, AlertSubject::Cluster, description);
    }
}

/// As last told. What the agent of a node told that is dead by now says nothing of a disk that nobody can read.
fn disks(node: &NodeName, view: &NodeView, found: &mut Findings) {
    let dead = matches!(
        view.state,
        NodeState::NoAgent | NodeState::AwaitingProof | NodeState::Fenced | NodeState::Recovering
    );
    let Some(report) = view.report.as_ref().filter(|_| !dead) else { return };
    for (disk, health) in &report.disks {
        let name = match health.grade {
            Grade::Failed => AlertName::DiskFailed,
            Grade::Failing => AlertName::DiskFailing,
            Grade::Warning => AlertName::DiskWarning,
            Grade::Unknown | Grade::Ok => continue,
        };
        let description = disk_words(name, node, disk, health);
        found.add(name, AlertSubject::Disk { node: node.clone(), disk: disk.clone() }, description);
    }
}

fn disk_words(name: AlertName, node: &NodeName, disk: &str, health: &DiskHealth) -> String {
    let reasons = if health.reasons.is_empty() { "no reason told".into() } else { health.reasons.join(", ") };
    let which: Vec<&str> =
        [health.model.as_str(), health.serial.as_str()].into_iter().filter(|word| !word.is_empty()).collect();
    let which = if which.is_empty() { String::new() } else { format!(" ({})", which.join(" ")) };
    let (node, disk) = (shell_word(node.as_str()), shell_word(disk));
    let what = match name {
        AlertName::DiskFailed => format!(
            "VMs on it need a person: kubectl somersault recoveries. What can still be read: kubectl somersault evacuate {node} \
             --disk {disk}"
        ),
        AlertName::DiskFailing => {
            format!(
                "Move what is on it while it can be read: kubectl somersault evacuate {node} --disk {disk}"
            )
        }
        _ => "Nothing needs to be done yet; have another disk at hand".to_owned(),
    };
    format!("{reasons}{which}. {what}")
}
