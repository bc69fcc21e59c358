//! What people are told about the fencing of a node: what happened, and what they can do.

use std::time::Duration;

use super::agents::FenceRoster;
use super::{FenceStage, ProofKind, proofs_possible};
use crate::fleet::FENCING_TAINT;
use crate::io::{Effect, Notice, Severity, Subject};
use crate::names::{BootId, NodeName};
use crate::scene::{Scene, tell_node};

/// `failed` is why the last run of its fence agent failed, where it did.
pub(super) fn stage(
    node: &NodeName,
    stage: Option<&FenceStage>,
    beats: bool,
    failed: Option<&str>,
) -> String {
    match stage {
        None => "declared unreachable; the record is being stored".to_owned(),
        Some(FenceStage::Declared) => format!(
            "unreachable; nothing proves yet that it is off: make sure of it, then kubectl somersault attest {node}"
        ),
        Some(FenceStage::PowerOrdered) if beats => {
            "it beats, but a run of its fence agent may still switch it off".to_owned()
        }
        Some(FenceStage::PowerOrdered) if let Some(why) = failed => format!(
            "its fence agent fails to switch it off ({why}) and is tried again; or make sure that it is off, then kubectl \
             somersault attest {node}"
        ),
        Some(FenceStage::PowerOrdered) => {
            "its fence agent is to switch it off and to read that back".to_owned()
        }
        Some(FenceStage::Fenced { proof }) => {
            format!("proven dead by {proof:?}; waits for the node to come back")
        }
        Some(FenceStage::Quarantine { .. }) => {
            "back in a new boot, and watched before it is trusted".to_owned()
        }
        Some(FenceStage::Closed) => "its incident is over".to_owned(),
    }
}

/// While a node beats in the boot that was proven dead, or has since.
pub(super) fn stands_contradicted(node: &NodeName, proof: Option<ProofKind>, silent: bool) -> String {
    let proof = proof.map_or_else(String::new, |proof| format!(" by {proof:?}"));
    let now = if silent { "beat after that, and is silent now" } else { "beats" };
    format!(
        "it was taken for dead{proof}, and {now}: its VMs may run twice. Switch the machine off, make sure of it, then kubectl \
         somersault attest {node}"
    )
}

/// While its agent may have switched another machine off.
pub(super) fn stands_with_fallen(node: &NodeName, other: &NodeName) -> String {
    format!(
        "its fence agent was run, and {other} fell, which had been beating: it may have switched that one off instead, so what it \
         says proves nothing. Make sure that this machine is off, then kubectl somersault attest {node}"
    )
}

/// While its agent is not believed, for a reason that this coordinator does not know any more.
pub(super) fn stands_distrusted(node: &NodeName) -> String {
    format!(
        "its fence agent may switch another machine, and what it says proves nothing in this incident. Make sure that this \
         machine is off, then kubectl somersault attest {node}"
    )
}

/// While its agent says off, and is not believed yet.
pub(super) fn waits_for_bystander(node: &NodeName, other: &NodeName) -> String {
    format!(
        "its fence agent says off; believed as soon as {other} beats, which lived when it was run. If {other} is gone for good, make \
         sure that this machine is off, then kubectl somersault attest {node}"
    )
}

pub(super) fn bystander_fell(fx: &mut Vec<Effect>, node: &NodeName, other: &NodeName) {
    let message = format!(
        "The fence agent of {node} was run, and {other} fell, which had been beating: it may be set to the machine of {other}. It is \
         not believed in this incident, and the VMs of {node} wait. Look which machine it switches; make sure that {node} is \
         off, then run `kubectl somersault attest {node}`."
    );
    tell_node(fx, Severity::Critical, node, "FenceHitAnother", message);
}

pub(super) fn fencing_started(fx: &mut Vec<Effect>, node: &NodeName) {
    let message = format!("Switching {node} off by its fence agent, then reading back that it is off.");
    tell_node(fx, Severity::Info, node, "FencingStarted", message);
}

pub(super) fn run_failed(fx: &mut Vec<Effect>, node: &NodeName, why: &str, wait: Duration, given_up: bool) {
    if given_up {
        let message = format!(
            "The fence agent of {node} fails again and again: {why}. Its VMs wait. Switch the machine off yourself, \
             make sure that it is off, then run `kubectl somersault attest {node}`. The agent is tried again every \
             {wait:?}."
        );
        tell_node(fx, Severity::Critical, node, "FencingFails", message);
    } else {
        let message = format!("The fence agent of {node} failed: {why}. Next try in {wait:?}.");
        tell_node(fx, Severity::Warning, node, "FencingRunFailed", message);
    }
}

pub(super) fn fenced(fx: &mut Vec<Effect>, node: &NodeName, proof: ProofKind) {
    let how = match proof {
        ProofKind::PowerOffConfirmed => "its fence agent switched it off and read that back",
        ProofKind::CloudShutdown => "the cloud says that the machine is shut down",
        ProofKind::OutOfServiceByOthers => "somebody set the out-of-service taint",
        ProofKind::NewBootId => "it has booted anew",
        ProofKind::HumanAttested => "a person attests it",
        ProofKind::LeaseExpired => "its lease ran out and its watchdog has fired",
    };
    let dead =
        format!("Nothing on {node} can run or write any more: {how}. Its VMs may be started elsewhere.");
    let message = match proof {
        ProofKind::NewBootId => {
            format!(
                "What ran on {node} runs no more: {how}. What was not started elsewhere starts there again."
            )
        }
        // Upon that taint Kubernetes itself deletes every pod of the node, those that we leave alone too.
        ProofKind::OutOfServiceByOthers => format!(
            "{dead} Upon that taint Kubernetes deletes every pod there, of VMs on local disks too: one whose disk no volume ties \
             to a node may start elsewhere with a blank disk. Remove the taint once the node is back."
        ),
        _ => dead,
    };
    tell_node(fx, Severity::Warning, node, "NodeFenced", message);
}

pub(super) fn contradicted(fx: &mut Vec<Effect>, node: &NodeName, proof: Option<ProofKind>) {
    let proof = proof.map_or_else(String::new, |proof| format!(" ({proof:?})"));
    let message = format!(
        "{node} beats in the very boot that was proven dead{proof}: the proof was wrong, and VMs may run twice. \
         Recovery from this node has stopped. Switch the machine off now, \
         check which machine the fence agent really switches, then run `kubectl somersault attest {node}`."
    );
    tell_node(fx, Severity::Critical, node, "FenceContradicted", message);
}

pub(super) fn resolved(fx: &mut Vec<Effect>, node: &NodeName) {
    let message = format!("A person attests anew that {node} is dead; recovery goes on.");
    tell_node(fx, Severity::Warning, node, "ContradictionResolved", message);
}

pub(super) fn returned(fx: &mut Vec<Effect>, node: &NodeName) {
    let message = format!(
        "{node} is back in a new boot, and is watched for a while before it is trusted; VMs that were not touched start there \
         again by themselves."
    );
    tell_node(fx, Severity::Info, node, "NodeReturned", message);
}

pub(super) fn refused(fx: &mut Vec<Effect>, node: &NodeName) {
    let message = format!(
        "The fence record of {node} could not be stored: somebody else changed it, or leads. Nothing is done before \
         it is."
    );
    tell_node(fx, Severity::Warning, node, "FenceRecordRefused", message);
}

pub(super) fn left_over(fx: &mut Vec<Effect>, node: &NodeName, by: &str) {
    let message = format!(
        "The word of {by} that {node} is dead does not count: it was given while the node still beat, or before this \
         coordinator could see whether it did. If the machine is really off, say it again: `kubectl somersault attest {node}`."
    );
    tell_node(fx, Severity::Warning, node, "AttestationTooOld", message);
}

/// `agent` is what there is to say of its fence agent.
pub(super) fn waits(
    fx: &mut Vec<Effect>,
    scene: &Scene<'_>,
    node: &NodeName,
    beats: bool,
    agent: Option<&str>,
) {
    let message = if beats {
        format!(
            "{node} beats again, but its fence agent has said off, or may still switch it off: it is not trusted in this \
             boot. If this does not end by itself, see which machine the fence agent switches, and reboot the node."
        )
    } else if let Some(agent) = agent {
        format!("{node} is still unreachable, and its VMs wait: {agent}")
    } else {
        let possible: Vec<String> =
            proofs_possible(scene, node).iter().map(|kind| format!("{kind:?}")).collect();
        format!(
            "{node} is still unreachable, and nothing proves that it is off, so its VMs wait. Possible here: {}. \
             Make sure that the machine is off, then run `kubectl somersault attest {node}`; or switch it on again.",
            possible.join(", ")
        )
    };
    tell_node(fx, Severity::Critical, node, "AwaitingProof", message);
}

pub(super) fn in_doubt(fx: &mut Vec<Effect>, node: &NodeName, boot: &BootId) {
    let message = format!(
        "{node} is proven dead, but its Node object names another boot ({boot}), which may be newer: its VMs may \
         already run there again, so nothing is touched. Start its agent, or switch the machine off and on again."
    );
    tell_node(fx, Severity::Critical, node, "BootInDoubt", message);
}

pub(crate) fn removed(fx: &mut Vec<Effect>, scene: &Scene<'_>, node: &NodeName) {
    let named = |values: &[String]| values.iter().any(|value| value == node.as_str());
    let volumes = scene.facts.fleet.volumes.iter().filter(|(_, volume)| {
        let terms = volume.node_affinity.iter().flat_map(|selector| selector.terms.iter().flatten());
        terms.into_iter().any(|requirement| requirement.operator == "In" && named(&requirement.values))
    });
    let lost: Vec<&str> = volumes.map(|(name, _)| name.as_str()).take(LOST_SHOWN_MAX).collect();
    let lost = if lost.is_empty() {
        "No volume is bound to it.".to_owned()
    } else {
        format!("Volumes on its disks are lost until it is found: {}.", lost.join(", "))
    };
    let message = format!("The Node object of {node} was deleted, which ends its incident. {lost}");
    tell_node(fx, Severity::Warning, node, "NodeRemoved", message);
}

pub(super) fn listed(names: &[NodeName]) -> String {
    names.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ")
}

/// Volumes named in one notice: an Event holds 1024 bytes.
const LOST_SHOWN_MAX: usize = 10;

pub(crate) fn declared(
    fx: &mut Vec<Effect>,
    scene: &Scene<'_>,
    node: &NodeName,
    why: &str,
    vms: (usize, usize),
    mistake: Option<&str>,
) {
    let (automatic, by_hand) = vms;
    let otherwise =
        format!("make sure that the machine is off, then run `kubectl somersault attest {node}`.");
    let next = if scene.can_power_off(node) {
        "Its fence agent switches it off now.".to_owned()
    } else if scene.facts.power_off.is_wrong(node) {
        format!("Its fence agent switches another machine and is not run: {otherwise}")
    } else if scene.has_fence_agent(node) {
        format!("Its fence agent cannot be run now, and is as soon as it can; or {otherwise}")
    } else if let Some(mistake) = mistake {
        format!("It has no fence agent ({mistake}): {otherwise}")
    } else {
        format!("No fence agent is configured for it: {otherwise}")
    };
    let message = format!(
        "{node} is unreachable: {why}. {automatic} of its VMs are started elsewhere once it is proven dead, {by_hand} \
         need a person. {next}"
    );
    tell_node(fx, Severity::Critical, node, "NodeUnreachable", message);
}

pub(crate) fn quarantined(fx: &mut Vec<Effect>, scene: &Scene<'_>, node: &NodeName) {
    let quarantine = scene.facts.policy.recovery.quarantine;
    let closed = scene.facts.fleet.nodes.get(node).is_some_and(|node| node.has_taint(FENCING_TAINT));
    let message = if closed {
        format!("{node} is watched for {quarantine:?} before it takes VMs again.")
    } else {
        format!(
            "{node} is watched for {quarantine:?}. It takes VMs already: one of its own is tied to it by nothing, and must \
             find it open."
        )
    };
    tell_node(fx, Severity::Info, node, "NodeInQuarantine", message);
}

pub(crate) fn closed(fx: &mut Vec<Effect>, node: &NodeName) {
    let message = format!("{node} is healthy and takes VMs again; its incident is over.");
    tell_node(fx, Severity::Info, node, "NodeHealthy", message);
}

pub(crate) fn wrong_machine(fx: &mut Vec<Effect>, node: &NodeName) {
    let message = format!(
        "The fence agent of {node} said off while {node} was beating: it looks at another machine, and would switch \
         that one off. It is not run, and what it says proves nothing, until its entry in the fence configuration is \
         changed and it says on."
    );
    tell_node(fx, Severity::Critical, node, "FenceWrongMachine", message);
}

pub(crate) fn mended(fx: &mut Vec<Effect>, node: &NodeName) {
    let message =
        format!("The entry of {node} in the fence configuration was changed, and its fence agent says on.");
    tell_node(fx, Severity::Info, node, "FenceAgentMended", message);
}

pub(super) fn answers_not(fx: &mut Vec<Effect>, node: &NodeName, why: &str, before: bool) {
    let (reason, what) = if before {
        ("FenceAnswersNot", "answers no more")
    } else {
        ("FenceUntested", "has not answered yet")
    };
    let message = format!(
        "The fence agent of {node} {what}: {why}. If {node} died now, its VMs would wait for a person. Check the agent's \
         options and the management controller."
    );
    tell_node(fx, Severity::Warning, node, reason, message);
}

pub(super) fn answers_again(fx: &mut Vec<Effect>, node: &NodeName) {
    tell_node(fx, Severity::Info, node, "FenceAnswers", format!("The fence agent of {node} answers."));
}

/// Names in the fence configuration that no node has.
pub(super) fn strangers(fx: &mut Vec<Effect>, names: &[NodeName]) {
    if names.is_empty() {
        return;
    }
    let message = format!(
        "The fence configuration names {}, and no node is called so: a typo leaves the node that is meant without a fence agent.",
        listed(names)
    );
    tell(fx, Severity::Warning, "FenceNodeUnknown", message);
}

/// Only what has changed is told.
pub(super) fn roster_changed(fx: &mut Vec<Effect>, before: &FenceRoster, now: &FenceRoster) {
    match (&before.away, &now.away) {
        (None, Some(why)) => {
            let message =
                format!("No fence agent can be run: {why}. If a node died now, its VMs would wait.");
            tell(fx, Severity::Warning, "FenceRunnerAway", message);
        }
        (Some(_), None) => {
            tell(fx, Severity::Info, "FenceRunnerBack", "Fence agents can be run again.".to_owned());
        }
        _ => {}
    }
    match (&before.problem, &now.problem) {
        (old, Some(why)) if old.as_ref() != Some(why) => {
            let message =
                format!("The fence configuration was changed, but cannot be used: {why}. The old one stays.");
            tell(fx, Severity::Warning, "FenceConfigRefused", message);
        }
        (Some(_), None) => {
            tell(fx, Severity::Info, "FenceConfigMended", "The fence configuration is in use.".to_owned());
        }
        _ => {}
    }
}

fn tell(fx: &mut Vec<Effect>, severity: Severity, reason: &'static str, message: String) {
    fx.push(Effect::Notify(Notice { severity, subject: Subject::Coordinator, reason, message }));
}
