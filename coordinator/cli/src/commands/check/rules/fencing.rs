//! What follows for fencing: the runner runs, each node can be proven dead, its configuration is in use, and its fence agent
//! answers.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use somersault_coordinator_core::fencing::agents::{CHANGE_REFUSED, NOT_CONFIGURED, RUNNER_AWAY};
use somersault_crd::common::Proof;
use somersault_crd::node_health::NodeHealthStatus;

use super::nodes::cluster;
use super::replicas;
use crate::commands::check::facts::{Facts, FenceRunner, NodeSeen, Seen, Workload};
use crate::commands::check::finding::{Finding, Grade};
use crate::source::install;

/// Condition of a `NodeHealth`: the fence agent of the node answered when it was last asked.
const FENCING_ANSWERS: &str = "FencingAnswers";

/// What is checked of them.
const ANSWERS: &str = "every fence agent that is configured answers";

/// Each node can be proven dead without a person, and its fence agent answers.
pub fn fencing(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = runner(&facts.fence_runner).into_iter().collect();
    let what = "every node has a proof that needs no person";
    let runs = findings.iter().all(|finding| matches!(finding.grade, Grade::Ok | Grade::Warning));
    let Some(cluster) = cluster(facts, what, &mut findings) else { return findings };
    let known: Vec<_> = cluster.nodes.iter().filter_map(|node| Some((node, node.health.as_ref()?))).collect();
    // Without a coordinator, which is told of its own, nobody proves anything; what the last one left says nothing of now.
    if known.is_empty() || facts.is_old_news() {
        return findings;
    }
    let by_hand = known
        .iter()
        .filter(|(_, health)| !health.proofs_possible.iter().any(|proof| comes_by_itself(*proof)));
    let by_hand: Vec<_> = by_hand.collect();
    let what_to_do = what_to_do(facts, &by_hand, runs);
    let why =
        by_hand.iter().map(|(node, _)| format!("node {}: its VMs wait until somebody attests", node.name));
    let (which, when) = match by_hand.as_slice() {
        all if all.len() == known.len() => ("no node can".to_owned(), "a node dies"),
        [(node, _)] => (format!("node {} cannot", node.name), "it dies"),
        some => (format!("{} of {} nodes cannot", some.len(), known.len()), "one of them dies"),
    };
    let finding = Finding::warning_for(what, why.collect(), what_to_do)
        .so_that(format!("{which} be proven dead without a person: when {when}, its VMs wait for one"));
    // A fence runner that has just been started is not heard of yet.
    let starts = by_hand.len() == known.len() && matches!(facts.fence_runner, Ok(Some(_)));
    findings.push(if starts { finding.passing() } else { finding });
    let asked =
        known.iter().filter_map(|(node, health)| Some((node.name.as_str(), fencing_answers(health)?)));
    let (without, asked): (Vec<_>, Vec<_>) =
        asked.partition(|(_, condition)| condition.reason == NOT_CONFIGURED);
    findings.extend(configuration(&without, &asked));
    findings.extend(if asked.is_empty() { untested(&known) } else { Some(answers(&asked, runs)) });
    findings
}

/// What gives nodes that only a person can prove dead a fence agent that can be run.
fn what_to_do(facts: &Facts, by_hand: &[&(&NodeSeen, &NodeHealthStatus)], runs: bool) -> String {
    let told = || by_hand.iter().map(|(_, health)| fencing_answers(health));
    if told().flatten().any(|condition| condition.reason == NOT_CONFIGURED) {
        "mend the fence configuration (below)".to_owned()
    } else if told().any(|condition| condition.is_none()) {
        how_to_prove(&facts.fence_runner, runs)
    } else {
        // Each has a fence agent, and none of them can be run.
        "let its fence agent answer (below)".to_owned()
    }
}

/// A node, and the condition that tells of its fence agent.
type Told<'a> = (&'a str, &'a Condition);

fn lines<'a>(told: impl Iterator<Item = &'a Told<'a>>) -> Vec<String> {
    told.map(|(node, condition)| format!("node {node}: {}", condition.message)).collect()
}

/// Mistakes in the fence configuration: nothing where there is none.
fn configuration(without: &[Told], asked: &[Told]) -> Option<Finding> {
    let changed = asked.iter().filter(|(_, condition)| condition.reason == CHANGE_REFUSED);
    let why = lines(without.iter().chain(changed));
    let what_to_do =
        format!("mend key fence.yaml of Secret {} in {}", install::FENCE_SECRET, install::NAMESPACE);
    let what = "the fence configuration is in use, and names nodes of this cluster";
    (!why.is_empty()).then(|| Finding::failed(what, why, what_to_do))
}

/// Fence agents that can be run, of which none was asked yet: nothing where there is none.
fn untested(known: &[(&NodeSeen, &NodeHealthStatus)]) -> Option<Finding> {
    let untested = known.iter().filter(|(_, health)| {
        health.proofs_possible.contains(&Proof::PowerOffConfirmed) && fencing_answers(health).is_none()
    });
    let why: Vec<String> =
        untested.map(|(node, _)| format!("node {}: it was not asked yet", node.name)).collect();
    (!why.is_empty()).then(|| Finding::warning(ANSWERS, why, "look again in a moment (--wait)").passing())
}

/// What the agents said that were asked.
fn answers(asked: &[Told], runs: bool) -> Finding {
    let failed = || asked.iter().filter(|(_, condition)| condition.status == "False");
    let away = failed().all(|(_, condition)| condition.reason == RUNNER_AWAY);
    let what_to_do = match (away, runs) {
        (true, true) => format!(
            "a fence runner that has just come back is found within seconds (--wait); if not, see what keeps the \
             coordinator from it: kubectl logs -n {} deployment/{}",
            install::NAMESPACE,
            install::COORDINATOR
        ),
        (true, false) => "let the fence runner run first (above)".to_owned(),
        (false, _) => {
            "a fence agent that does not answer now will not cut the power later: mend its configuration \
                       or its device"
                .to_owned()
        }
    };
    Finding::failed_for(ANSWERS, lines(failed()), what_to_do)
}

/// What the node's fence agent said when it was last asked; `None` where no agent of it is known.
fn fencing_answers(health: &NodeHealthStatus) -> Option<&Condition> {
    health.conditions.iter().find(|condition| condition.type_ == FENCING_ANSWERS)
}

/// The fence runner runs, where one is installed: without it no fence agent is run, however well it is configured.
fn runner(seen: &Seen<Option<FenceRunner>>) -> Option<Finding> {
    let what = "the fence runner runs";
    let runner = match seen {
        Err(why) => return Some(Finding::unseen(what, why)),
        Ok(None) => return None,
        Ok(Some(runner)) => runner,
    };
    if !runner.is_asked {
        return Some(Finding::failed(
            "the coordinator asks the fence runner",
            vec!["it is installed without the component fence-runner, whose Deployment is still there: no fence agent is run".to_owned()],
            format!(
                "apply an overlay with that component (deploy/README.md, Fence agents); or, where none is wanted: kubectl delete \
                 deployment -n {} {}",
                install::NAMESPACE,
                install::FENCE_RUNNER
            ),
        ));
    }
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
        // What the coordinator says is as old as its last word with the runner.
        Ok(Some(FenceRunner { has_secret: Some(true), .. })) => format!(
            "Secret {} in {} is there: if its key fence.yaml names the node, a fence runner that has just come back was \
             not heard of yet, so look again in a moment; if not, name a fence agent for it there",
            install::FENCE_SECRET,
            install::NAMESPACE
        ),
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
