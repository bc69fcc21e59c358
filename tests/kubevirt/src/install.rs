//! Brings the CRDs and the storage classes into the cluster.

use std::time::Duration;

use anyhow::{Context, Result};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use serde_json::Value;

use crate::condition;

/// The CRDs, as a `List`.
pub const CRDS: &str = include_str!("../manifests/crds.yaml");
/// The storage classes.
pub const CLASSES: &str = include_str!("../manifests/classes.yaml");
const MANAGER: &str = "kubevirt-standin";
/// The API server serves a new CRD after a second or two.
const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

/// Applies all of them, and waits until the API server serves the CRDs.
pub async fn install(client: &Client) -> Result<()> {
    let crds: Value = serde_saphyr::from_str(CRDS).context("the CRDs")?;
    let classes: Vec<Value> = serde_saphyr::from_multiple(CLASSES).context("the storage classes")?;
    let crds = crds["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    for manifest in crds.iter().chain(&classes) {
        apply(client, manifest).await?;
    }
    for crd in crds {
        tokio::time::timeout(DEADLINE, served(client, crd))
            .await
            .with_context(|| format!("CRD {} is not served", crd["metadata"]["name"]))??;
    }
    Ok(())
}

async fn apply(client: &Client, manifest: &Value) -> Result<()> {
    let name = manifest["metadata"]["name"].as_str().context("a manifest without a name")?;
    let parameters = PatchParams::apply(MANAGER).force();
    api(client, manifest)?
        .patch(name, &parameters, &Patch::Apply(manifest))
        .await
        .with_context(|| format!("applying {name}"))?;
    Ok(())
}

async fn served(client: &Client, crd: &Value) -> Result<()> {
    let name = crd["metadata"]["name"].as_str().unwrap_or_default();
    loop {
        let found = api(client, crd)?.get(name).await?;
        if condition::is(&found.data["status"], "Established", true, None) {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    let resource =
        resource(&crd["spec"]["group"], &crd["spec"]["versions"][0]["name"], &crd["spec"]["names"]["kind"])?;
    let listed: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    while listed.list(&kube::api::ListParams::default().limit(1)).await.is_err() {
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

fn api(client: &Client, manifest: &Value) -> Result<Api<DynamicObject>> {
    let both = manifest["apiVersion"].as_str().and_then(|both| both.split_once('/'));
    let (group, version) = both.context("a manifest without group and version")?;
    let resource = resource(&group.into(), &version.into(), &manifest["kind"])?;
    Ok(Api::all_with(client.clone(), &resource))
}

fn resource(group: &Value, version: &Value, kind: &Value) -> Result<ApiResource> {
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a manifest without a kind");
    Ok(ApiResource::from_gvk(&GroupVersionKind::gvk(&text(group)?, &text(version)?, &text(kind)?)))
}
