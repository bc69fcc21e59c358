//! A locked claim: no node runs what uses it, and who tries is told why.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use somersault_coordinator_core::io::{Action, ClaimTemplate};
use somersault_coordinator_core::migration::{LOCK_LABEL, LOCKED_BY};

use crate::bed::Bed;
use crate::claims::{shop, template};

/// The policy that `deploy/base` installs.
const POLICY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/base/claim-lock.yaml");
const CLAIM: &str = "locked-disk";
const LOCK: &str = "pv-locked-disk-lock";
/// What everybody is told.
const SENTENCE: &str =
    "claim locked-disk is locked by VolumeMigration move-it, which has its disk between two nodes";

pub async fn of_a_claim(bed: &Bed) -> Result<()> {
    let template = ClaimTemplate {
        labels: BTreeMap::from([(LOCK_LABEL.to_owned(), "true".to_owned())]),
        annotations: BTreeMap::from([(LOCKED_BY.to_owned(), "move-it".to_owned())]),
        ..template("local-path")
    };
    let lock = Action::CreateLock { volume: LOCK.into(), claim: shop(CLAIM), template: template.clone() };
    bed.twice(&lock, "PersistentVolume", LOCK).await?;
    let create = Action::CreateClaim { claim: shop(CLAIM), template, volume: LOCK.into() };
    bed.twice(&create, "PersistentVolumeClaim", CLAIM).await?;
    let phase = async || Ok(bed.get("PersistentVolumeClaim", CLAIM).await?["status"]["phase"] == "Bound");
    bed.until("the claim is bound to its lock", phase).await?;
    without_the_policy(bed).await?;
    with_the_policy(bed).await?;

    let uid = bed.get("PersistentVolumeClaim", CLAIM).await?["metadata"]["uid"].clone();
    let uid = uid.as_str().context("a claim without a uid")?;
    bed.writer.act(&Action::DeleteClaim { claim: shop(CLAIM), uid: uid.into() }).await?;
    bed.until("the locked claim is gone", async || {
        Ok(bed.get("PersistentVolumeClaim", CLAIM).await?.is_null())
    })
    .await?;
    bed.writer.act(&Action::ForgetVolume { volume: LOCK.into() }).await?;
    bed.until("its VM starts again", async || Ok(start(bed, "locked").await.is_ok())).await
}

/// The lock itself: the real scheduler finds no node.
async fn without_the_policy(bed: &Bed) -> Result<()> {
    bed.create(pod("waits", CLAIM)).await?;
    bed.until("the scheduler finds no node", async || {
        let pod = bed.get("Pod", "waits").await?;
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Ok(conditions.iter().any(|condition| condition["reason"] == "Unschedulable"))
    })
    .await?;
    ensure!(bed.get("Pod", "waits").await?["spec"]["nodeName"].is_null(), "a node runs it");
    bed.delete("Pod", "waits").await
}

/// The sentence.
async fn with_the_policy(bed: &Bed) -> Result<()> {
    for (name, claim) in [("locked", CLAIM), ("free", "free-disk")] {
        bed.create(machine("VirtualMachine", name, claim)).await?;
    }
    bed.cluster.ask(&["apply", "-f", POLICY])?;
    bed.until("the policy counts", async || {
        let refused = start(bed, "locked").await.is_err();
        bed.patch("VirtualMachine", "locked", json!({ "spec": { "runStrategy": "Halted" } })).await?;
        Ok(refused)
    })
    .await?;
    told(start(bed, "locked").await)?;
    told(bed.create(machine("VirtualMachineInstance", "locked", CLAIM)).await.map(drop))?;
    told(bed.create(pod("refused", CLAIM)).await.map(drop))?;
    let said = start(bed, "locked").await.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(said.contains("kubectl somersault cancel migration/move-it -n shop"), "{said}");

    // Whatever else happens to it passes, and so do all others.
    let edit = json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "template": { "spec": { "domain": { "x": 1 } } } } });
    bed.patch("VirtualMachine", "locked", edit).await.context("an edit that starts nothing")?;
    start(bed, "free").await.context("a VM whose claim is not locked")?;
    bed.create(machine("VirtualMachineInstance", "free", "free-disk")).await?;
    bed.create(pod("free", "free-disk")).await?;
    bed.delete("Pod", "free").await?;
    // One that runs in spite of it is not kept from being changed, or stopped.
    let as_coordinator = bed.api_as_coordinator("VirtualMachine").await?;
    let running = json!({ "spec": { "runStrategy": "Always" } });
    let started = as_coordinator.patch("locked", &PatchParams::default(), &Patch::Merge(running)).await;
    started.context("our own start is refused")?;
    bed.patch("VirtualMachine", "locked", json!({ "metadata": { "labels": { "a": "c" } } })).await?;
    bed.patch("VirtualMachine", "locked", json!({ "spec": { "runStrategy": "Halted" } })).await
}

async fn start(bed: &Bed, vm: &str) -> Result<()> {
    let patch = Patch::Merge(json!({ "spec": { "runStrategy": "Always" } }));
    let started = bed.api("VirtualMachine").patch(vm, &PatchParams::default(), &patch).await;
    started.map(drop).map_err(Into::into)
}

fn told(answer: Result<()>) -> Result<()> {
    let error = answer.err().context("it was not refused")?;
    let said = format!("{error:#}");
    ensure!(said.contains(SENTENCE), "{said}");
    Ok(())
}

fn machine(kind: &str, name: &str, claim: &str) -> Value {
    let inside = json!({
        "domain": {}, "volumes": [{ "name": "disk", "persistentVolumeClaim": { "claimName": claim } }],
    });
    let spec = if kind == "VirtualMachine" {
        json!({ "runStrategy": "Halted", "template": { "spec": inside } })
    } else {
        inside
    };
    json!({ "apiVersion": "kubevirt.io/v1", "kind": kind, "metadata": { "name": name }, "spec": spec })
}

fn pod(name: &str, claim: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "containers": [{ "name": "c", "image": "none.example.org/none" }],
            "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": claim } }],
        },
    })
}
