//! From the coordinator's start until all is calm, and what it costs then.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use kube::api::ListParams;

use super::api::{Api, Kind};
use super::audit::{self, Requests};
use super::coordinator::{Coordinator, Usage};
use super::plan::Plan;
use super::wait::wait;

/// Lists of tens of thousands of objects, on a machine of two cores that runs everything else of this too.
const SYNC_DEADLINE: Duration = Duration::from_mins(10);
/// The figure is made anew once a minute.
const REPORT_DEADLINE: Duration = Duration::from_mins(3);
/// Before the measurement: a node's figures are written once a minute, and for the first time at its own moment of the
/// second minute.
const CALM: Duration = Duration::from_mins(2);
const LOOK_OFTEN: Duration = Duration::from_millis(25);
/// Pages that are as long as the fleet is large are not asked for more often.
const LOOK_SELDOM: Duration = Duration::from_secs(1);
/// Objects of one page.
const PAGE: u32 = 500;

/// How long the start took.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// Every object was read and joined.
    pub synced: Duration,
    /// It leads.
    pub leads: Duration,
    /// Every agent beats, and has a session.
    pub healthy: Duration,
    /// Every `NodeHealth` says so.
    pub shown: Duration,
}

/// What rest costs.
#[derive(Debug)]
pub struct Rest {
    /// For how long it was looked at.
    pub during: Duration,
    /// At its end.
    pub usage: Usage,
    /// Share of one core.
    pub cpu: f64,
    /// What was asked of the API server.
    pub requests: Requests,
    /// How often the deciding loop was late by more than a beat.
    pub stalls: f64,
}

/// Waits until all is calm.
pub async fn start(coordinator: &mut Coordinator, api: &Api, plan: Plan) -> Result<Start> {
    let began = coordinator.started;
    wait("every object is read", SYNC_DEADLINE, LOOK_OFTEN, async || {
        coordinator.check()?;
        Ok(coordinator.is_ready("ing"))
    })
    .await?;
    let synced = began.elapsed();
    wait("the coordinator leads", SYNC_DEADLINE, LOOK_OFTEN, async || Ok(coordinator.is_ready("leading")))
        .await?;
    let leads = began.elapsed();
    wait("every agent beats", SYNC_DEADLINE, LOOK_SELDOM, async || {
        coordinator.check()?;
        let healthy = coordinator.metric("somersault_node_state{", "state=\"Healthy\"");
        Ok(healthy >= f64::from(plan.nodes))
    })
    .await?;
    let healthy = began.elapsed();
    wait("every NodeHealth says so", SYNC_DEADLINE, LOOK_SELDOM, async || {
        coordinator.check()?;
        Ok(shown(api).await? >= plan.nodes as usize)
    })
    .await?;
    let shown = began.elapsed();
    wait("every VM could be recreated", REPORT_DEADLINE, LOOK_SELDOM, async || {
        let recreated = coordinator.metric("somersault_vm_recoverable{", "decision=\"Recreate\"");
        Ok(recreated >= f64::from(plan.vms))
    })
    .await
    .with_context(|| {
        format!("instead of it:\n{}", coordinator.series("somersault_vm_recoverable{").join("\n"))
    })?;
    Ok(Start { synced, leads, healthy, shown })
}

/// Nodes that are shown as healthy.
async fn shown(api: &Api) -> Result<usize> {
    let (mut healthy, mut page) = (0, ListParams::default().limit(PAGE));
    loop {
        let list = api.all(Kind::HEALTH, None).list(&page).await?;
        let is_healthy = |object: &&kube::api::DynamicObject| object.data["status"]["state"] == "Healthy";
        healthy += list.items.iter().filter(is_healthy).count();
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(healthy),
        }
    }
}

/// Looks on while nothing happens.
pub async fn look(
    coordinator: &mut Coordinator,
    audit_log: &std::path::Path,
    during: Duration,
) -> Result<Rest> {
    tokio::time::sleep(CALM).await;
    let stalls = |coordinator: &Coordinator| coordinator.metric("somersault_driver_stalls_total", "");
    let stalls_before = stalls(coordinator);
    let (before, began, from) = (coordinator.usage()?, Instant::now(), Timestamp::now());
    tokio::time::sleep(during).await;
    let (usage, took, until) = (coordinator.usage()?, began.elapsed(), Timestamp::now());
    coordinator.check()?;
    let requests = audit::read(audit_log, from, until)?;
    ensure!(requests.all > 0, "the audit log has no request of the coordinator's, who leads");
    Ok(Rest {
        during: took,
        usage,
        cpu: usage.cpu_since(&before, took),
        requests,
        stalls: stalls(coordinator) - stalls_before,
    })
}
