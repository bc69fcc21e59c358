//! Trouble of the control plane, ours and Kubernetes' own: no VM notices, and what had begun goes on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use somersault_test_cluster::until;
use somersault_test_e2e::api::Kind;
use somersault_test_e2e::bed::{Bed, NAMESPACE};
use somersault_test_e2e::stage::{DB, Stage, WEB};

/// Many times the time to a verdict of the fast profile.
const LONG_ENOUGH: Duration = Duration::from_secs(15);
/// What everything that we install is labelled with.
const OURS: &str = "app.kubernetes.io/name=somersault";
/// Kinds of it that live in namespaces.
const LABELLED: &str = "daemonsets,deployments,pods,services,secrets,configmaps,serviceaccounts,leases";
/// How long the API server is away.
const AWAY: Duration = Duration::from_mins(2);
/// Pods are replaced one after the other, each ready for 15 s; a lease may have to run out.
const WHOLE_DEADLINE: Duration = Duration::from_mins(4);
/// From the attestation to a VM that writes elsewhere.
const RECREATE_DEADLINE: Duration = Duration::from_mins(2);

/// Every coordinator is replaced by one of another image while a node waits for a proof: the new leader goes on from what
/// is stored. The image is the same one under a second name, so Kubernetes rolls it out as it would a new version, and no
/// program changes: what two versions make of each other's records is for another test. The bed keeps that image.
pub fn upgrade(bed: &Bed) -> Result<()> {
    bed.wait_whole(WHOLE_DEADLINE)?;
    let image = next_image(bed)?;
    let node = bed.node_without_leader()?;
    let stage = Stage::set(bed, &node, &[WEB, DB])?;
    let unfenced = bed.without_fence_agents()?;
    bed.cluster().cut(&node)?;
    bed.wait_state(&node, "AwaitingProof", LONG_ENOUGH)?;
    let (before, leader, epoch) = (bed.coordinators()?, bed.leader()?, bed.leaders_epoch()?);
    let set = format!("coordinator={image}");
    bed.cluster().ask(&["-n", NAMESPACE, "set", "image", "deployment/somersault-coordinator", &set])?;
    bed.wait_replaced(&before, &image, WHOLE_DEADLINE)?;
    ensure!(
        bed.leader()?["metadata"]["uid"] != leader["metadata"]["uid"],
        "the Lease is still the old leader's"
    );
    // A leader writes the records that it has taken over anew, under its own epoch: only a new one has a greater one.
    until("the new leader has taken the incident over", WHOLE_DEADLINE, &[], || {
        let now = bed.fence_epoch(&node)?;
        ensure!(now > epoch, "its record is of epoch {now}, as before");
        Ok(Some(()))
    })?;
    bed.wait_state(&node, "AwaitingProof", LONG_ENOUGH)?;
    ensure!(stage.instances(&WEB)? == 1, "web was started elsewhere without a proof");
    bed.cluster().power_off(&node)?;
    bed.plugin(&["attest", &node, "--yes"])?;
    stage.wait_new_writer(&WEB, RECREATE_DEADLINE)?;
    drop(unfenced);
    bed.calm()?;
    stage.judge()
}

/// The coordinator's image under a name that it does not have yet, on every node.
fn next_image(bed: &Bed) -> Result<String> {
    let deployment = bed.api().get(Kind::DEPLOYMENT, NAMESPACE, "somersault-coordinator")?;
    let present = deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str();
    let present = present.context("a Deployment without an image")?;
    let next = format!("{present}-next");
    bed.cluster().tag_image(present, &next)?;
    Ok(next)
}

/// The API server ends and starts again.
pub fn restart(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed, &bed.node_without_leader()?, &[WEB, DB])?;
    bed.restart_apiserver()?;
    undisturbed(bed, &stage)
}

/// The API server is away for two minutes: every VM runs on, nothing is acted on.
pub fn away(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed, &bed.node_without_leader()?, &[WEB, DB])?;
    bed.stop_apiserver()?;
    std::thread::sleep(AWAY);
    for node in bed.nodes() {
        ensure!(bed.cluster().is_on(&node)?, "{node} lives, and was switched off");
    }
    stage.wait_writes(&WEB, LONG_ENOUGH)?;
    stage.wait_writes(&DB, LONG_ENOUGH)?;
    bed.start_apiserver()?;
    undisturbed(bed, &stage)
}

/// The product goes, with everything that it has installed, while VMs run; and comes back.
pub fn uninstalled(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed, &bed.node_without_leader()?, &[WEB, DB])?;
    let shown = bed.plugin(&["uninstall", "--dry-run"])?;
    ensure!(shown.contains("Deployment"), "it does not show what it would remove:\n{shown}");
    bed.wait_whole(WHOLE_DEADLINE)?;
    bed.plugin(&["uninstall", "--yes", "--delete-crds"])?;
    until("nothing of it is left", WHOLE_DEADLINE, &[], || {
        let left = bed.cluster().ask(&["get", LABELLED, "-A", "-l", OURS, "-o", "name"])?;
        ensure!(left.trim().is_empty(), "left: {left}");
        let left = bed.cluster().ask(&["get", "crds,clusterroles,clusterrolebindings", "-o", "name"])?;
        ensure!(!left.contains("somersault"), "left: {left}");
        Ok(Some(()))
    })?;
    let again = bed.plugin(&["uninstall", "--yes"])?;
    ensure!(!again.contains("done:"), "there was something left to do:\n{again}");
    for vm in stage.staged() {
        stage.wait_writes(vm, LONG_ENOUGH)?;
    }
    bed.install()?;
    undisturbed(bed, &stage)
}

/// After the API server is back: nobody was declared, every VM has only ever been where it was.
fn undisturbed(bed: &Bed, stage: &Stage<'_>) -> Result<()> {
    bed.wait_whole(WHOLE_DEADLINE)?;
    bed.stays_undeclared(LONG_ENOUGH)?;
    stage.undisturbed(LONG_ENOUGH)
}
