//! The coordinator's records: who is somebody else does not write them, not even an administrator.

use anyhow::{Context, Result, ensure};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::bed::{Bed, NODE};

/// The policy that `deploy/base` installs.
const POLICY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/base/records.yaml");
const BINDING: &str = "validatingadmissionpolicybinding/somersault-records";

pub async fn of_records(bed: &Bed) -> Result<()> {
    let forged = || json!({ "fence": { "stage": "Fenced", "proof": "PowerOffConfirmed" } });
    let before = bed.get("NodeHealth", NODE).await?["status"].clone();
    bed.cluster.ask(&["apply", "-f", POLICY])?;
    bed.until("the policy counts", async || {
        Ok(bed.patch_status("NodeHealth", NODE, json!({ "host": { "load1": 1.5 } })).await.is_err())
    })
    .await?;
    let refused = bed.patch_status("NodeHealth", NODE, forged()).await.err().context("it was not refused")?;
    let said = format!("{refused:#}");
    ensure!(
        said.contains("the status of nodehealths is the record of the coordinator of Somersault"),
        "{said}"
    );
    ensure!(bed.get("NodeHealth", NODE).await?["status"]["fence"] == before["fence"], "it was written");

    // What people and the coordinator write passes.
    bed.patch("NodeHealth", NODE, json!({ "metadata": { "labels": { "a": "b" } } })).await?;
    let status = Patch::Merge(json!({ "status": { "host": { "load1": 2.5 } } }));
    let as_coordinator = bed.api_as_coordinator("NodeHealth").await?;
    as_coordinator
        .patch_status(NODE, &PatchParams::default(), &status)
        .await
        .context("the coordinator itself is refused")?;

    bed.cluster.ask(&["delete", BINDING])?;
    bed.until("without its binding it does not count", async || {
        Ok(bed.patch_status("NodeHealth", NODE, json!({ "host": { "load1": 1.5 } })).await.is_ok())
    })
    .await
}
