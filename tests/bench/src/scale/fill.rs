//! Fills the API server: every object by requests as a controller would make them, many side by side.

use anyhow::{Context, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use serde_json::json;

use super::api::{Api, Kind};
use super::objects;
use super::plan::{Plan, TENANTS, Vm, node_name, tenant};
use super::progress::Progress;

/// Keeps both cores busy; more would only wait in the API server.
const SIDE_BY_SIDE: usize = 48;

/// Creates everything.
pub async fn run(api: &Api, plan: Plan) -> Result<()> {
    api.create(Kind::CLASS, objects::class()).await?;
    api.create(Kind::DRIVER, objects::driver()).await?;
    for number in 0..TENANTS {
        api.create(Kind::NAMESPACE, objects::namespace(&tenant(number))).await?;
        api.create(Kind::ACCOUNT, objects::account(&tenant(number), "default")).await?;
    }
    let progress = Progress::new("nodes", plan.nodes);
    futures::stream::iter(plan.nodes().map(Ok::<_, anyhow::Error>))
        .try_for_each_concurrent(SIDE_BY_SIDE, async |number| {
            api.create_with_status(Kind::NODE, objects::node(number), objects::node_status(number)).await?;
            // The API server itself taints each new node as not ready; a controller takes that back.
            api.merge(Kind::NODE, None, &node_name(number), json!({"spec": {"taints": null}})).await?;
            api.create(Kind::LEASE, objects::lease(number, &renew_time())).await?;
            progress.step();
            Ok(())
        })
        .await
        .context("creating the nodes")?;
    drop(progress);
    let progress = Progress::new("VMs", plan.vms);
    futures::stream::iter(plan.vms())
        .map(|number| async move { vm(api, plan, number).await })
        .buffer_unordered(SIDE_BY_SIDE)
        .try_for_each(async |()| {
            progress.step();
            Ok(())
        })
        .await
        .context("creating the VMs")
}

/// A Lease's time, as a kubelet writes it.
pub fn renew_time() -> String {
    format!("{:.6}", Timestamp::now())
}

/// A VM that runs, with everything that belongs to it.
async fn vm(api: &Api, plan: Plan, vm: Vm) -> Result<()> {
    let node = plan.node_of(vm);
    let (claim, bound) = objects::claim(vm);
    let claim = api.create_with_status(Kind::CLAIM, claim, bound).await?;
    let (volume, bound) = objects::volume(vm, &claim);
    api.create_with_status(Kind::VOLUME, volume, bound).await?;
    let (object, status) = objects::vm(vm);
    let uid = api.create_with_status(Kind::VM, object, status).await?;
    let instance = api.create(Kind::INSTANCE, objects::instance(vm, &uid, node, "Running")).await?;
    let launcher = objects::launcher(vm, 0, &instance, node);
    api.create_with_status(Kind::POD, launcher, objects::launcher_status()).await?;
    let (attachment, attached) = objects::attachment(vm, 0, node);
    api.create_with_status(Kind::ATTACHMENT, attachment, attached).await.map(drop)
}
