//! What follows for nodes: their agents, and their certificates.

use jiff::{SignedDuration, Timestamp};
use somersault_coordinator_core::fleet::OUT_OF_SERVICE_TAINT;
use somersault_crd::node_health::NodeState;

use super::{replicas, versions};
use crate::commands::check::facts::{Cluster, Facts, NodeSeen};
use crate::commands::check::finding::Finding;
use crate::source::install;
use crate::units;

/// An agent renews its certificate long before; with less than this left, it has tried and failed for a while.
const CERTIFICATE_LEFT_MIN: SignedDuration = SignedDuration::from_hours(1);
/// A person has to renew an authority, or at least to see that it is renewed.
const AUTHORITY_LEFT_MIN: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Agents run, beat, and are of our version.
pub fn agents(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let workload = match &facts.agents {
        Err(why) => {
            findings.push(Finding::unseen("the agents run", why));
            None
        }
        Ok(None) => {
            findings.push(Finding::failed(
                "the agents run",
                vec![format!("there is no DaemonSet {} in {}", install::AGENT, install::NAMESPACE)],
                install::HOW,
            ));
            // What is left of what they once said says nothing of now.
            return findings;
        }
        Ok(Some(workload)) => {
            findings.push(replicas("the agents run", workload, "agent"));
            Some(workload)
        }
    };
    let Some(cluster) = cluster(facts, "every node's agent beats", &mut findings) else { return findings };
    if let Some(workload) = workload {
        let without: Vec<_> = cluster
            .nodes
            .iter()
            .filter(|node| workload.pods.iter().all(|pod| pod.node != node.name.0))
            .map(|node| format!("node {} has none", node.name))
            .collect();
        findings.push(Finding::failed_for(
            "every node has an agent",
            without,
            format!("kubectl describe daemonset -n {} {} tells why", install::NAMESPACE, install::AGENT),
        ));
    }
    let (mut silent, mut watched) = (Vec::new(), Vec::new());
    for node in &cluster.nodes {
        match state(node) {
            NodeState::Healthy => {}
            NodeState::Quarantine => watched.push(line(node)),
            _ => silent.push(line(node)),
        }
    }
    // What nobody keeps up to date is no news.
    let what = match &facts.led {
        Ok(Some(true) | None) => "every node's agent beats",
        _ => "every node's agent beat when a coordinator last led",
    };
    findings.push(Finding::failed_for(
        what,
        silent,
        format!(
            "kubectl somersault status; kubectl logs -n {} -l {}=agent --prefix",
            install::NAMESPACE,
            install::COMPONENT_LABEL
        ),
    ));
    if !watched.is_empty() {
        findings.push(Finding::warning("no node is in quarantine", watched, "wait: it ends by itself"));
    }
    let left_over =
        cluster.nodes.iter().filter(|node| node.out_of_service && state(node) == NodeState::Healthy);
    let left_over: Vec<String> =
        left_over.map(|node| format!("node {} has taint {OUT_OF_SERVICE_TAINT}", node.name)).collect();
    if !left_over.is_empty() {
        findings.push(Finding::warning(
            "no living node is out of service",
            left_over,
            format!("no pod without a toleration can run there, and so no VM; whoever has set it removes it: kubectl taint nodes NODE {OUT_OF_SERVICE_TAINT}-"),
        ));
    }
    if let Some(workload) = workload {
        findings.push(versions("agent", facts.version, workload));
    }
    let told: Vec<_> = cluster
        .nodes
        .iter()
        .filter_map(|node| Some((&node.name, &node.health.as_ref()?.agent.as_ref()?.version)))
        .collect();
    if told.is_empty() {
        return findings;
    }
    let others = told.into_iter().filter(|(_, version)| *version != facts.version);
    let others = others.map(|(node, version)| format!("the agent of node {node} says that it is {version}"));
    findings.push(Finding::warning_for(
        format!("the agents say that they are of version {}", facts.version),
        others.collect(),
        "install one version of all; during an upgrade: wait",
    ));
    findings
}

/// Our authority and the certificates that it gave are valid, and will be.
pub fn certificates(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let renew = format!(
        "the coordinator renews it: kubectl logs -n {} deployment/{} tells why it does not",
        install::NAMESPACE,
        install::COORDINATOR
    );
    findings.push(match &facts.authority_until {
        Err(why) => Finding::unseen("our certificate authority is valid", why),
        Ok(None) => Finding::failed(
            "our certificate authority is valid",
            vec![format!("ConfigMap {} in {} has no certificate", install::CA_BUNDLE, install::NAMESPACE)],
            format!("the coordinator makes it when it first leads; {renew}"),
        ),
        Ok(Some(until)) => {
            let what = format!("our certificate authority is valid (until {until:.0})");
            match until.duration_since(facts.now) {
                left if left.is_negative() => {
                    Finding::failed(what, vec!["it has expired".to_owned()], renew.clone())
                }
                left if left < AUTHORITY_LEFT_MIN => Finding::warning(
                    what,
                    vec![format!("it expires in {}", left_words(*until, facts.now))],
                    renew.clone(),
                ),
                _ => Finding::ok(what),
            }
        }
    });
    if matches!(facts.agents, Ok(None)) {
        return findings;
    }
    let Some(cluster) = cluster(facts, "the agents' certificates are valid", &mut findings) else {
        return findings;
    };
    let (mut expired, mut ending, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    for node in cluster.nodes.iter().filter(|node| state(node) != NodeState::NoAgent) {
        match node.certificate_until {
            None => unknown.push(format!("that of node {} is not told", node.name)),
            Some(until) if until <= facts.now => {
                expired.push(format!("that of node {} has expired at {until:.0}", node.name));
            }
            Some(until) if until.duration_since(facts.now) < CERTIFICATE_LEFT_MIN => {
                ending.push(format!(
                    "that of node {} expires in {}",
                    node.name,
                    left_words(until, facts.now)
                ));
            }
            Some(_) => {}
        }
    }
    let what_to_do = format!(
        "an agent renews its own: kubectl logs -n {} -l {}=agent --prefix tells why it does not",
        install::NAMESPACE,
        install::COMPONENT_LABEL
    );
    if cluster.nodes.iter().all(|node| state(node) == NodeState::NoAgent) {
        return findings;
    }
    if expired.is_empty() && ending.is_empty() && unknown.is_empty() {
        findings.push(Finding::ok("the agents' certificates are valid"));
    }
    if !expired.is_empty() {
        findings.push(Finding::failed("the agents' certificates are valid", expired, what_to_do.clone()));
    }
    if !ending.is_empty() {
        findings.push(Finding::warning("the agents' certificates are valid for a while", ending, what_to_do));
    }
    if !unknown.is_empty() {
        findings.push(Finding::warning(
            "the agents tell until when their certificates are valid",
            unknown,
            "wait: an agent tells with its first report; one whose certificates come from files does not",
        ));
    }
    findings
}

/// The objects, where they could be read.
pub(super) fn cluster<'a>(facts: &'a Facts, what: &str, findings: &mut Vec<Finding>) -> Option<&'a Cluster> {
    match &facts.cluster {
        Ok(cluster) => Some(cluster),
        Err(why) => {
            findings.push(Finding::unseen(what, why));
            None
        }
    }
}

fn state(node: &NodeSeen) -> NodeState {
    node.health.as_ref().map(|health| health.state).unwrap_or_default()
}

fn line(node: &NodeSeen) -> String {
    let ready = if node.ready { "Ready" } else { "NotReady" };
    match &node.health {
        None => format!("node {} ({ready}): the coordinator has never heard of it", node.name),
        Some(health) => match health.message.as_str() {
            "" => format!("node {} ({ready}): {:?}", node.name, health.state),
            message => format!("node {} ({ready}): {:?}: {message}", node.name, health.state),
        },
    }
}

fn left_words(until: Timestamp, now: Timestamp) -> String {
    units::age(now, until)
}
