//! Whether the place of each volume is known, and how to say it of a storage class of which nobody can know.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use somersault_coordinator_core::locality::ClassOverride;
use somersault_crd::recovery_policy::POLICY_NAME;

use crate::commands::check::facts::{Cluster, Unplaced};
use crate::commands::check::finding::Finding;

/// Stands for an answer that only a person can give. The API server refuses it, so that nobody declares a class by
/// pasting what we print.
const ANSWER: &str = "<Network|Local>";
/// Owner of what the command declares, for the API server: the next command then says all of it again.
const FIELD_MANAGER: &str = "somersault-storage-classes";

/// Each volume's place is known, or its class is one that a person has declared local.
pub fn places(cluster: &Cluster) -> Vec<Finding> {
    let of = |is: fn(&Unplaced) -> bool| cluster.unplaced.iter().filter(move |claim| is(claim));
    let undeclared: Vec<&Unplaced> = of(|claim| !claim.class.is_empty() && !claim.declared).collect();
    let unnamed: Vec<&Unplaced> = of(|claim| claim.class.is_empty()).collect();
    let declared = of(|claim| claim.declared).count();
    let mut findings = Vec::new();
    if !undeclared.is_empty() {
        let mut classes: Vec<&str> = undeclared.iter().map(|claim| claim.class.as_str()).collect();
        classes.sort_unstable();
        classes.dedup();
        findings.push(Finding::warning(
            format!("the place of volumes of {} is known", words(&classes)),
            undeclared.iter().map(|claim| why(claim)).collect(),
            say_place(&classes, &cluster.declared),
        ));
    }
    if !unnamed.is_empty() {
        findings.push(Finding::warning(
            "the place of volumes without a class is known",
            unnamed.iter().map(|claim| why(claim)).collect(),
            "give them a storage class and say where it is: RecoveryPolicy default, spec.storageClasses.CLASS: \
             Network or Local",
        ));
    }
    if declared > 0 {
        findings.push(Finding::ok(format!(
            "{declared} volumes are of a class that the policy declares local, and none says on which node it is: their \
             VMs wait for a person when a node dies, until each has a node affinity"
        )));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("each volume's place is known"));
    }
    findings
}

fn words(classes: &[&str]) -> String {
    match classes {
        [class] => format!("class {class}"),
        classes => format!("classes {}", classes.join(", ")),
    }
}

fn why(claim: &Unplaced) -> String {
    let class = if claim.class.is_empty() { String::new() } else { format!(", class {}", claim.class) };
    format!("{} (volume {}{class}): {}", claim.claim, claim.volume, claim.because)
}

/// How to find out where volumes of these classes are, and one command that says it of all: it makes the policy where
/// there is none, and leaves the rest of it as it is where there is one.
fn say_place(classes: &[&str], declared: &BTreeMap<String, ClassOverride>) -> String {
    let before = declared.iter().map(|(class, place)| (class.as_str(), json!(place)));
    let answers: BTreeMap<&str, Value> =
        before.chain(classes.iter().map(|class| (*class, json!(ANSWER)))).collect();
    let policy = json!({
        "apiVersion": somersault_crd::API_VERSION,
        "kind": "RecoveryPolicy",
        "metadata": { "name": POLICY_NAME },
        "spec": { "storageClasses": answers },
    });
    let policy = policy.to_string().replace('\'', r"'\''");
    format!(
        "their VMs wait for a person until somebody says where these volumes are. To find out: on a node that uses one, \
         findmnt -T FOLDER (its path: kubectl get pv VOLUME -o yaml) names a server where it is Network, and a disk of \
         the node where it is Local. Network: any node can reach it, and the VM is started elsewhere when its node dies; \
         said of a local class, it boots a blank disk there. Local: the data is on one node, and nothing is started \
         without it; in doubt, this is the safe answer. Write Network or Local for each {ANSWER}, then: echo '{policy}' | \
         kubectl apply --server-side --field-manager={FIELD_MANAGER} -f -"
    )
}
