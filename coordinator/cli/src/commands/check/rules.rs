//! What follows from what was seen. Pure: no clock, no network.
//!
//! ```text
//!   Facts ──► kubernetes ─ definitions ─ rights ─ coordinator ─ agents ─ certificates ─ policy ─ fencing ─ storage
//!             ─ kubevirt ──► sections of findings, each with what to do
//! ```

use super::facts::{Definition, DefinitionState, Facts, KubeVirt, PolicySeen, Seen, Verdict, Workload};
use super::finding::{Finding, Section};
use crate::source::install;

mod fencing;
mod nodes;
mod places;
#[cfg(test)]
mod tests;

/// Taint-based removal of pods from lost nodes is stable since 1.28, and so is the question who one is.
const KUBERNETES_MIN: (u32, u32) = (1, 28);
/// Admission policies are stable since 1.30; without them nobody says why a VM does not start while its disks move.
const KUBERNETES_LOCKS: (u32, u32) = (1, 30);
/// Since 1.2 `KubeVirt` fails an instance at once whose launcher is gone (kubevirt/kubevirt,
/// pkg/virt-controller/watch/vmi); before, it waits for its own heartbeat of five minutes.
const KUBEVIRT_MIN: (u32, u32) = (1, 2);

/// Everything that follows.
pub fn sections(facts: &Facts) -> Vec<Section> {
    vec![
        Section { name: "kubernetes", findings: kubernetes(facts) },
        Section { name: "definitions", findings: definitions(&facts.definitions) },
        Section { name: "rights", findings: rights(facts) },
        Section { name: "coordinator", findings: coordinator(facts) },
        Section { name: "agents", findings: nodes::agents(facts) },
        Section { name: "certificates", findings: nodes::certificates(facts) },
        Section { name: "policy", findings: policy(facts) },
        Section { name: "fencing", findings: fencing::fencing(facts) },
        Section { name: "storage", findings: storage(facts) },
        Section { name: "kubevirt", findings: kubevirt(facts) },
    ]
}

fn kubernetes(facts: &Facts) -> Vec<Finding> {
    let server = &facts.server;
    let answers = match &server.user {
        Ok(user) => Finding::ok(format!("the API server {} answers, to {user}", server.address)),
        Err(why) => Finding::unseen(format!("the API server {} answers, to whom", server.address), why),
    };
    let version = &server.version;
    let (major, minor) = KUBERNETES_MIN;
    let age = match server.number {
        Some(number) if number < KUBERNETES_MIN => Finding::failed(
            format!("Kubernetes {version} is new enough"),
            vec![format!("{major}.{minor} is the oldest that Somersault works with")],
            "upgrade Kubernetes",
        ),
        Some(number) if number < KUBERNETES_LOCKS => Finding::warning(
            format!("Kubernetes {version} is new enough"),
            vec![format!(
                "before {}.{} it has no ValidatingAdmissionPolicy: a VM that somebody starts while its disks move waits until \
                 they are whole, and nobody tells why",
                KUBERNETES_LOCKS.0, KUBERNETES_LOCKS.1
            )],
            "upgrade Kubernetes when you can; nothing is unsafe",
        ),
        Some(_) => Finding::ok(format!("Kubernetes {version} is new enough")),
        None => Finding::warning(
            format!("Kubernetes {version} is new enough"),
            vec!["its version is no number".to_owned()],
            format!("make sure that it is {major}.{minor} or newer"),
        ),
    };
    let mut findings = vec![answers, age];
    if server.number.is_none_or(|number| number >= KUBERNETES_LOCKS) {
        findings.push(claim_lock(&facts.claim_lock));
        findings.push(record_guard(&facts.record_guard));
    }
    findings
}

/// Nothing depends on it: a locked claim is on a volume that no node reaches.
fn claim_lock(seen: &Seen<bool>) -> Finding {
    admission(
        seen,
        "who starts a VM while its disks move is told why it waits",
        format!(
            "the ValidatingAdmissionPolicy {} or its binding is missing: such a VM waits, unscheduled, until its disks are \
             whole, and nobody tells why",
            install::CLAIM_LOCK
        ),
        format!("nothing is unsafe; it comes with the installation: {}", install::HOW),
    )
}

/// The rights that we install give it to nobody else either.
fn record_guard(seen: &Seen<bool>) -> Finding {
    admission(
        seen,
        "nobody but the coordinator writes its records",
        format!(
            "the ValidatingAdmissionPolicy {} or its binding is missing, or was changed since it was installed: whoever has \
             the right to write the status of our objects can forge the proof that a node is dead, and have volumes removed",
            install::RECORDS
        ),
        format!("delete what is left of both, and apply the installation again: {}", install::HOW),
    )
}

/// An admission policy, which is there as it should be or not.
fn admission(seen: &Seen<bool>, what: &str, why: String, what_to_do: String) -> Finding {
    match seen {
        Ok(true) => Finding::ok(what),
        Ok(false) => Finding::warning(what, vec![why], what_to_do),
        Err(why) => Finding::unseen(what, why),
    }
}

fn definitions(seen: &Seen<Vec<Definition>>) -> Vec<Finding> {
    let definitions = match seen {
        Ok(definitions) => definitions,
        Err(why) => return vec![Finding::unseen("the definitions are installed", why)],
    };
    let of = |state: DefinitionState| -> Vec<String> {
        definitions.iter().filter(|d| d.state == state).map(|d| d.name.clone()).collect()
    };
    let mut findings = vec![Finding::failed_for(
        "the definitions are installed",
        of(DefinitionState::Missing).into_iter().map(|name| format!("{name} is missing")).collect(),
        install::HOW,
    )];
    let pending = of(DefinitionState::NotEstablished);
    if !pending.is_empty() {
        findings.push(Finding::failed(
            "the definitions are served",
            pending.into_iter().map(|name| format!("{name} is not Established")).collect(),
            "kubectl describe crd NAME tells why; just after an installation: wait (--wait)",
        ));
    }
    if definitions.iter().all(|definition| definition.state == DefinitionState::Missing) {
        return findings;
    }
    findings.push(Finding::warning_for(
        "the definitions are those of this program",
        of(DefinitionState::Differs).into_iter().map(|name| format!("{name} has another schema")).collect(),
        format!(
            "install one version of all: {}, or use the plugin of the version that is installed",
            install::HOW
        ),
    ));
    findings
}

fn rights(facts: &Facts) -> Vec<Finding> {
    let account = format!("system:serviceaccount:{}:{}", install::NAMESPACE, install::COORDINATOR);
    let namespace = match &facts.namespace {
        Ok(true) => Finding::ok(format!("the namespace {} exists", install::NAMESPACE)),
        Ok(false) => Finding::failed(
            format!("the namespace {} exists", install::NAMESPACE),
            vec!["it does not".to_owned()],
            install::HOW,
        ),
        Err(why) => Finding::unseen(format!("the namespace {} exists", install::NAMESPACE), why),
    };

    let coordinator = match &facts.coordinator_rights {
        Ok(verdicts) => Finding::failed_for(
            format!("the coordinator may do what it must ({} rights)", verdicts.len()),
            missing(&account, verdicts),
            format!("its roles come with the installation: {}", install::HOW),
        ),
        Err(why) => Finding::unseen("the coordinator may do what it must", why),
    };
    let own = match &facts.own_rights {
        Ok(verdicts) => Finding::warning_for(
            format!("you may do what the commands need ({} rights)", verdicts.len()),
            missing("you", verdicts),
            "only if you are meant to use those commands: ask whoever administrates the cluster",
        ),
        Err(why) => Finding::unseen("you may do what the commands need", why),
    };
    vec![namespace, coordinator, own]
}

/// What is not allowed; whoever may do nothing at all lacks a role, not rights.
fn missing(who: &str, verdicts: &[Verdict]) -> Vec<String> {
    if verdicts.len() > 1 && verdicts.iter().all(|verdict| !verdict.allowed) {
        return vec![format!("{who} may do none of it")];
    }
    let missing = verdicts.iter().filter(|verdict| !verdict.allowed);
    missing.map(|verdict| format!("{who} may not {}", verdict.right)).collect()
}

fn coordinator(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &facts.coordinator {
        Err(why) => findings.push(Finding::unseen("the coordinator runs", why)),
        Ok(None) => findings.push(Finding::failed(
            "the coordinator runs",
            vec![format!("there is no Deployment {} in {}", install::COORDINATOR, install::NAMESPACE)],
            install::HOW,
        )),
        Ok(Some(workload)) => {
            let nodes = facts.cluster.as_ref().map_or(0, |cluster| cluster.nodes.len());
            findings.push(match (nodes, workload.wanted, workload.ready) {
                (1, 2.., _) => too_many_for_one_node(workload),
                (2.., 1, 1) => nobody_to_take_over(workload),
                _ => replicas("the coordinator runs", workload, "coordinator"),
            });
            findings.push(versions("coordinator", facts.version, workload));
        }
    }
    findings.push(match &facts.led {
        Err(why) => Finding::unseen("a coordinator leads", why),
        Ok(None) => Finding::unseen("a coordinator leads", "you may not read its Lease"),
        Ok(Some(true)) => Finding::ok("a coordinator leads"),
        Ok(Some(false)) => Finding::failed(
            "a coordinator leads",
            vec![format!("the Lease {} is held by nobody, or is not renewed", install::COORDINATOR)],
            format!("kubectl logs -n {} deployment/{} tells why", install::NAMESPACE, install::COORDINATOR),
        ),
    });
    findings
}

/// As many pods are ready as there should be.
fn replicas(what: &str, workload: &Workload, component: &str) -> Finding {
    let what = of_ready(what, workload);
    if !workload.observed {
        let why = vec!["it has just changed, and Kubernetes has not taken it up yet".to_owned()];
        return Finding::failed(what, why, "wait a moment (--wait)");
    }
    if workload.wanted > 0 && workload.ready >= workload.wanted {
        return Finding::ok(what);
    }
    let mut why: Vec<String> = workload
        .pods
        .iter()
        .filter(|pod| !pod.ready)
        .map(|pod| match pod.trouble.as_str() {
            "" => format!("pod {} is not ready", pod.name),
            trouble => format!("pod {} is not ready: {trouble}", pod.name),
        })
        .collect();
    if why.is_empty() {
        why.push("there are too few pods".to_owned());
    }
    let what_to_do =
        format!("kubectl describe pods -n {} -l {} tells why", install::NAMESPACE, install::part(component));
    // With one of two the work goes on; of agents there is one for each node.
    if workload.ready > 0 && component != "agent" {
        Finding::warning(what, why, what_to_do).passing()
    } else {
        Finding::failed(what, why, what_to_do)
    }
}

fn of_ready(what: &str, workload: &Workload) -> String {
    format!("{what} ({} of {} ready)", workload.ready, workload.wanted)
}

/// Two are never on one node, so that the second waits for ever, and with it every upgrade.
fn too_many_for_one_node(workload: &Workload) -> Finding {
    Finding::warning(
        of_ready("the coordinator runs", workload),
        vec![
            "the cluster has one node, and two replicas are never on one: an upgrade would wait for ever"
                .to_owned(),
        ],
        "install the overlay for one node (deploy/overlays/k3s-one-node, or component one-node in yours)",
    )
}

/// Whose node dies with it decides nothing.
fn nobody_to_take_over(workload: &Workload) -> Finding {
    Finding::warning(
        of_ready("the coordinator runs", workload),
        vec![
            "there is one replica: where its node dies, nobody decides anything before Kubernetes has started it elsewhere, a \
             minute later or more"
                .to_owned(),
        ],
        format!(
            "kubectl scale deployment -n {} {} --replicas=2",
            install::NAMESPACE,
            install::COORDINATOR
        ),
    )
}

/// Pods of another version than ours.
fn versions(component: &str, own: &str, workload: &Workload) -> Finding {
    let others = workload.pods.iter().filter_map(|pod| {
        let version = pod.version.as_deref().filter(|version| *version != own)?;
        Some(format!("pod {} is {version}, this program is {own}", pod.name))
    });
    Finding::warning_for(
        format!("the {component} is of this program's version ({own})"),
        others.collect(),
        "install one version of all; during an upgrade: wait",
    )
}

fn policy(facts: &Facts) -> Vec<Finding> {
    let cluster = match &facts.cluster {
        Ok(cluster) => cluster,
        Err(why) => return vec![Finding::unseen("the policy is accepted", why)],
    };
    vec![match &cluster.policy {
        None => Finding::ok("there is no RecoveryPolicy: the defaults count (safe profile)"),
        // By a coordinator that is there no more.
        Some(PolicySeen { accepted: Some(Ok(())), .. }) if matches!(facts.coordinator, Ok(None)) => {
            return Vec::new();
        }
        Some(PolicySeen { profile, accepted: Some(Ok(())) }) => {
            Finding::ok(format!("the RecoveryPolicy is accepted ({profile} profile)"))
        }
        Some(PolicySeen { accepted: Some(Err(why)), .. }) => Finding::failed(
            "the RecoveryPolicy is accepted",
            vec![format!(
                "{why}; the coordinator goes on with the last one that it accepted, or its defaults"
            )],
            "kubectl edit recoverypolicy default",
        ),
        // The profile, the times and the classes that somebody wrote do not count yet, and nobody knows whether they will.
        Some(PolicySeen { accepted: None, .. }) => Finding::failed(
            "the RecoveryPolicy is accepted",
            vec!["no coordinator has looked at it since it was changed".to_owned()],
            "wait a moment (--wait); if a coordinator leads, its log tells why it does not",
        ),
    }]
}

fn storage(facts: &Facts) -> Vec<Finding> {
    let cluster = match &facts.cluster {
        Ok(cluster) => cluster,
        Err(why) => return vec![Finding::unseen("each volume's place is known", why)],
    };
    let mut findings = vec![Finding::warning_for(
        "every object could be read",
        cluster.problems.clone(),
        "decisions are made without these; mend them, or tell us why they are right",
    )];
    findings.extend(places::places(cluster));
    findings
}

fn kubevirt(facts: &Facts) -> Vec<Finding> {
    let what = "KubeVirt is there, and new enough";
    vec![match &facts.kubevirt {
        Err(why) => Finding::unseen(what, why),
        Ok(None) => no_kubevirt(what, facts.cluster.as_ref().ok().map(|cluster| cluster.vms)),
        Ok(Some(seen)) => kubevirt_version(seen),
    }]
}

/// `KubeVirt`'s own object is missing; VMs may be there nevertheless, and run.
fn no_kubevirt(what: &str, vms: Option<usize>) -> Finding {
    let (major, minor) = KUBEVIRT_MIN;
    match vms {
        Some(0) => Finding::warning(
            what,
            vec!["there is no KubeVirt object, and no VirtualMachine".to_owned()],
            "install KubeVirt; until then there are no VMs to look after",
        ),
        Some(vms) => Finding::warning(
            what,
            vec![format!(
                "there is no KubeVirt object, by which it tells its version, though there are {vms} VirtualMachines: they are \
                 looked after all the same"
            )],
            format!(
                "if KubeVirt was removed, install it again; if not, make sure that it is {major}.{minor} or newer"
            ),
        ),
        None => {
            let why = "there is no KubeVirt object; whether there are VMs could not be seen".to_owned();
            Finding::warning(what, vec![why], format!("install KubeVirt {major}.{minor} or newer"))
        }
    }
}

fn kubevirt_version(seen: &KubeVirt) -> Finding {
    let what = format!("KubeVirt {} is there, and new enough", seen.version);
    let number = number(&seen.version);
    let (major, minor) = KUBEVIRT_MIN;
    if seen.phase != "Deployed" {
        return Finding::warning(
            what,
            vec![format!(
                "it is {}, not Deployed",
                if seen.phase.is_empty() { "unknown" } else { &seen.phase }
            )],
            "kubectl get kubevirt -A -o yaml tells why",
        );
    }
    match number {
        Some(number) if number < KUBEVIRT_MIN => Finding::warning(
            what,
            vec![format!(
                "before {major}.{minor} it does not notice at once that a launcher is gone: a VM is back minutes, not \
                 seconds, after the proof"
            )],
            format!("upgrade KubeVirt to {major}.{minor} or newer"),
        ),
        Some(_) => Finding::ok(what),
        None => Finding::warning(
            what,
            vec!["its version is no number".to_owned()],
            format!("make sure that it is {major}.{minor} or newer"),
        ),
    }
}

/// `v1.36.3+x` as (1, 36).
pub fn number(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}
