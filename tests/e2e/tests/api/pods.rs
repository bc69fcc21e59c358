//! Launchers of a dead node: the very pod, of the very node, at once.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use somersault_test_cluster::TOOLBOX_IMAGE;
use tokio::time::Instant;

use crate::bed::{Bed, NODE};
use crate::proof;

const POD: &str = "virt-launcher-web-abcde";

pub async fn deletions(bed: &Bed) -> Result<()> {
    let pod = bed
        .create(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": POD },
            "spec": {
                "nodeName": NODE,
                // A kubelet that is alive would take this long; one that is dead takes for ever.
                "terminationGracePeriodSeconds": 600,
                "containers": [{
                    "name": "compute", "image": TOOLBOX_IMAGE, "imagePullPolicy": "Never", "args": ["pause"],
                }],
            },
        }))
        .await?;
    let uid = pod["metadata"]["uid"].as_str().context("a pod without a uid")?;
    bed.until("the pod runs", async || Ok(bed.get("Pod", POD).await?["status"]["phase"] == "Running"))
        .await?;

    let elsewhere = proof::deletion(POD, uid, "n9")?;
    bed.refused(&elsewhere, "the proof is about n9", "Pod", POD).await?;
    let another = proof::deletion(POD, "00000000-0000-4000-8000-000000000000", NODE)?;
    bed.refused(&another, "its uid is", "Pod", POD).await?;
    let pending = bed
        .create(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "pending" },
            "spec": {
                "nodeSelector": { "example.org/nowhere": "x" },
                "containers": [{ "name": "compute", "image": TOOLBOX_IMAGE }],
            },
        }))
        .await?;
    let unscheduled =
        proof::deletion("pending", pending["metadata"]["uid"].as_str().unwrap_or_default(), NODE)?;
    bed.refused(&unscheduled, "it is on node \"\"", "Pod", "pending").await?;
    bed.delete("Pod", "pending").await?;

    let began = Instant::now();
    bed.twice(&proof::deletion(POD, uid, NODE)?, "Pod", POD).await?;
    ensure!(bed.get("Pod", POD).await?.is_null(), "the pod is still there");
    ensure!(began.elapsed().as_secs() < 10, "it took {:?}", began.elapsed());
    Ok(())
}
