//! What follows for fencing: the runner runs, each node can be proven dead, and its fence agent answers.

use somersault_crd::common::Proof;

use super::nodes::cluster;
use super::replicas;
use crate::commands::check::facts::{Facts, FenceRunner, Seen, Workload};
use crate::commands::check::finding::{Finding, Grade};
use crate::source::install;

/// Condition of a `NodeHealth`: the fence agent of the node answered when it was last asked.
const FENCING_ANSWERS: &str = "FencingAnswers";

/// Each node can be proven dead without a person, and its fence agent answers.
pub fn fencing(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = runner(&facts.fence_runner).into_iter().collect();
    let what = "every node can be proven dead without a person";
    let runs = findings.iter().all(|finding| matches!(finding.grade, Grade::Ok | Grade::Warning));
    let Some(cluster) = cluster(facts, what, &mut findings) else { return findings };
    let known: Vec<_> = cluster.nodes.iter().filter_map(|node| Some((node, node.health.as_ref()?))).collect();
    if known.is_empty() {
        return findings;
    }
    let by_hand = known
        .iter()
        .filter(|(_, health)| !health.proofs_possible.iter().any(|proof| comes_by_itself(*proof)));
    findings.push(Finding::warning_for(
        what,
        by_hand.map(|(node, _)| format!("node {}: its VMs wait until somebody attests", node.name)).collect(),
        how_to_prove(&facts.fence_runner, runs),
    ));
    let answers = known.iter().filter_map(|(node, health)| {
        Some((node, health.conditions.iter().find(|condition| condition.type_ == FENCING_ANSWERS)?))
    });
    let asked: Vec<_> = answers.collect();
    if asked.is_empty() {
        return findings;
    }
    let failed = asked.iter().filter(|(_, condition)| condition.status == "False");
    findings.push(Finding::failed_for(
        "every fence agent that is configured answers",
        failed.map(|(node, condition)| format!("node {}: {}", node.name, condition.message)).collect(),
        "a fence agent that does not answer now will not cut the power later: mend its configuration or its device",
    ));
    findings
}

/// The fence runner runs, where one is installed: without it no fence agent is run, however well it is configured.
fn runner(seen: &Seen<Option<FenceRunner>>) -> Option<Finding> {
    let what = "the fence runner runs";
    let runner = match seen {
        Err(why) => return Some(Finding::unseen(what, why)),
        Ok(None) => return None,
        Ok(Some(runner)) => runner,
    };
    let Workload { observed, wanted, ready, .. } = runner.workload;
    let counted = format!("{what} ({ready} of {wanted} ready)");
    if observed && wanted == 0 {
        return Some(Finding::failed(
            counted,
            vec!["it is scaled to 0: no fence agent is run, and no machine is switched off".to_owned()],
            format!(
                "kubectl scale deployment -n {} {} --replicas=2",
                install::NAMESPACE,
                install::FENCE_RUNNER
            ),
        ));
    }
    if observed && ready < wanted && runner.has_secret == Some(false) {
        return Some(Finding::failed(
            counted,
            vec![format!("its pods wait for Secret {}, which is not there", install::FENCE_SECRET)],
            format!(
                "write fence.yaml with a fence agent for each node (README.md, Fence agents), then: kubectl create secret \
                 generic -n {} {} --from-file=fence.yaml",
                install::NAMESPACE,
                install::FENCE_SECRET
            ),
        ));
    }
    Some(replicas(what, &runner.workload, "fence-runner"))
}

/// How a node that only a person can prove dead gets a fence agent.
fn how_to_prove(seen: &Seen<Option<FenceRunner>>, runs: bool) -> String {
    let configure = format!(
        "configure a fence agent for it: Secret {} in {}, key fence.yaml",
        install::FENCE_SECRET,
        install::NAMESPACE
    );
    match seen {
        Ok(None) => {
            format!(
                "{configure}, and the component fence-runner in your overlay (deploy/README.md, Fence agents)"
            )
        }
        _ if !runs => {
            "let the fence runner run first (above): it tells which nodes have a fence agent".to_owned()
        }
        _ => configure,
    }
}

/// A proof that needs neither a person nor the node's return.
fn comes_by_itself(proof: Proof) -> bool {
    match proof {
        Proof::PowerOffConfirmed | Proof::CloudShutdown | Proof::LeaseExpired => true,
        Proof::OutOfServiceByOthers | Proof::NewBootId | Proof::HumanAttested => false,
    }
}
