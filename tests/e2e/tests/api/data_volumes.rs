//! Claims of a `DataVolume`: nothing is pre-bound and nothing is deleted before CDI has noted that they are populated.
//! CDI itself is played by these lines, with the one habit that matters here.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use somersault_coordinator_core::io::Action;

use crate::bed::Bed;
use crate::claims::{bound, new_volume, old_volume, shop, template};

const CLAIM: &str = "PersistentVolumeClaim";
const POPULATED_FOR: &str = "cdi.kubevirt.io/storage.populatedFor";
const PRE_POPULATED: &str = "cdi.kubevirt.io/storage.prePopulated";

pub async fn handshake(bed: &Bed) -> Result<()> {
    let data_volume = bed
        .create(json!({
            "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", "metadata": { "name": "system" },
            "spec": {}, "status": { "phase": "ImportInProgress" },
        }))
        .await?;
    bed.patch_status("DataVolume", "system", json!({ "phase": "ImportInProgress" })).await?;
    let owner = json!([{
        "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", "name": "system", "controller": true,
        "uid": data_volume["metadata"]["uid"],
    }]);
    let uid = old_volume(bed, "pv-system", "system", owner).await?;
    bed.writer.act(&Action::RetainVolume { volume: "pv-system".into() }).await?;
    let delete = Action::DeleteClaim { claim: shop("system"), uid: uid.as_str().into() };
    let make = Action::CreateVolume(new_volume("pv-system-new", "system"));
    let lock = Action::CreateLock {
        volume: "pv-system-lock".into(),
        claim: shop("system"),
        template: template("local-path"),
    };
    for action in [&delete, &make, &lock] {
        bed.refused(action, "its import has not ended", CLAIM, "system").await?;
    }
    bed.patch_status("DataVolume", "system", json!({ "phase": "Succeeded" })).await?;

    // CDI is away: it is asked, and nothing happens without its answer.
    for action in [&delete, &make, &lock] {
        let error = bed.writer.act(action).await.err().context("done without CDI's answer")?;
        ensure!(error.to_string().contains("would import its image again"), "{error}");
    }
    let asked = bed.get(CLAIM, "system").await?;
    ensure!(asked["metadata"]["annotations"][POPULATED_FOR] == "system", "CDI was not asked: {asked}");
    ensure!(asked["metadata"]["deletionTimestamp"].is_null(), "deleted without CDI's answer");
    for volume in ["pv-system-new", "pv-system-lock"] {
        let found = bed.get("PersistentVolume", volume).await?;
        ensure!(found.is_null(), "pre-bound without CDI's answer: {found}");
    }

    // CDI is back, and answers whoever asks.
    let cdi = async {
        let asked = async || {
            let claim: Value = bed.get(CLAIM, "system").await?;
            Ok(claim["metadata"]["annotations"][POPULATED_FOR] == "system")
        };
        bed.until("CDI is asked", asked).await?;
        let answer = json!({ "metadata": { "annotations": { PRE_POPULATED: "system" } } });
        bed.patch("DataVolume", "system", answer).await
    };
    tokio::try_join!(cdi, async { Ok(bed.writer.act(&make).await?) })?;
    bed.writer.act(&delete).await?;
    bed.until("the claim is gone", async || Ok(bed.get(CLAIM, "system").await?.is_null())).await?;
    let create = Action::CreateClaim {
        claim: shop("system"),
        template: template("local-path"),
        volume: "pv-system-new".into(),
    };
    bed.writer.act(&create).await?;
    let claim = bound(bed, "system", "pv-system-new").await?;
    ensure!(claim["metadata"]["annotations"][POPULATED_FOR] == "system", "CDI will wait for ever: {claim}");
    Ok(())
}
