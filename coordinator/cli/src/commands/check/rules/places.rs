//! Whether the place of each volume is known, and how to say it of a storage class of which nobody can know.

use std::collections::BTreeMap;

use serde_json::json;
use somersault_crd::recovery_policy::POLICY_NAME;

use crate::commands::check::facts::{Cluster, Unplaced};
use crate::commands::check::finding::Finding;

/// Stands for an answer that only a person can give. The API server refuses it, so that nobody declares a class by
/// pasting what we print.
const ANSWER: &str = "<Network|Local>";

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
        let of = words(&classes);
        let asked = Finding::warning(
            format!("the place of volumes of {of} is known"),
            undeclared.iter().map(|claim| why(claim)).collect(),
            say_place(&classes, cluster.policy.is_some()),
        );
        findings
            .push(asked.so_that(format!("VMs with volumes of {of} wait for a person when their node dies")));
    }
    if !unnamed.is_empty() {
        let asked = Finding::warning(
            "the place of volumes without a class is known",
            unnamed.iter().map(|claim| why(claim)).collect(),
            "give them a storage class and say where it is: RecoveryPolicy default, spec.storageClasses.CLASS: \
             Network or Local",
        );
        findings
            .push(asked.so_that("VMs with volumes without a class wait for a person when their node dies"));
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
    findings.extend(unlisted(cluster));
    findings
}

/// Of volumes that no agent looks at nobody knows the size or the health, and they cannot be copied.
fn unlisted(cluster: &Cluster) -> Option<Finding> {
    let ((class, folder), _) = cluster.unlisted.first_key_value()?;
    let why = cluster.unlisted.iter().map(|((class, folder), count)| {
        format!("{count} volumes of class {class} below {folder}: no storage root of their nodes")
    });
    let what_to_do = format!(
        "give the agent --root={class}={folder} and the folder's mount, in your overlay (deploy/README.md, Overlays and their \
         storage roots)"
    );
    Some(Finding::warning("every local volume is below a storage root", why.collect(), what_to_do).so_that(
        "their sizes and the health of their disks are not told, and they cannot be copied to another node",
    ))
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

/// How to find out where volumes of these classes are, and one command that says it of all. Neither form of it touches
/// anything else of a policy: a merge changes what it names, and a creation fails where there is one. (Applying on the
/// server's side would take over what was applied on the client's, and drop what it does not name.)
fn say_place(classes: &[&str], has_policy: bool) -> String {
    let answers: BTreeMap<&str, &str> = classes.iter().map(|class| (*class, ANSWER)).collect();
    let spec = json!({ "storageClasses": answers });
    let command = if has_policy {
        let patch = quoted(&json!({ "spec": spec }).to_string());
        format!("kubectl patch recoverypolicy {POLICY_NAME} --type merge -p {patch}")
    } else {
        let policy = json!({
            "apiVersion": somersault_crd::API_VERSION,
            "kind": "RecoveryPolicy",
            "metadata": { "name": POLICY_NAME },
            "spec": spec,
        });
        format!("echo {} | kubectl create -f -", quoted(&policy.to_string()))
    };
    format!(
        "their VMs wait for a person until somebody says where these volumes are. To find out: on a node that uses one, \
         findmnt -T FOLDER (its path: kubectl get pv VOLUME -o yaml) names a server where it is Network, and a disk of \
         the node where it is Local. Network: any node can reach it, and the VM is started elsewhere when its node dies; \
         said of a local class, it boots a blank disk there. Local: the data is on one node, and nothing is started \
         without it; in doubt, this is the safe answer. Write Network or Local for each {ANSWER}, then: {command}"
    )
}

/// One word for a shell, whatever is in it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
