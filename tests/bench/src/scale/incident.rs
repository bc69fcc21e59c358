//! A node with many VMs falls silent: from there until the last of them runs again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use somersault_crd::node_health::NodeHealthStatus;

use super::agents::Agents;
use super::api::{Api, Kind};
use super::coordinator::{Coordinator, Usage};
use super::kubelets::Kubelets;
use super::plan::{Plan, doomed_node};
use super::progress::Progress;
use super::standin::{Seen, Standin};
use super::wait::wait;

/// A minute or two is expected; what takes longer than this is not recovered but stuck.
const DEADLINE: Duration = Duration::from_mins(15);
/// What is shown follows what is done within seconds.
const SHOWN_WITHIN: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(200);

/// When what happened, after the verdict.
#[derive(Clone, Copy, Debug)]
pub struct Incident {
    /// From the last beat to the verdict.
    pub silence: Duration,
    /// The proof was stored.
    pub proven: Duration,
    /// The first launcher was deleted.
    pub first_deleted: Duration,
    /// The last one was.
    pub last_deleted: Duration,
    /// The last attachment was.
    pub last_detached: Duration,
    /// The last VM ran again.
    pub last_running: Duration,
    /// The coordinator has seen all of them run.
    pub settled: Duration,
    /// What the coordinator used meanwhile, as a share of one core.
    pub cpu: f64,
    /// What it used in the end.
    pub usage: Usage,
}

/// Lets the node fall silent, and waits until its VMs run elsewhere.
pub async fn run(
    api: &Api,
    plan: Plan,
    coordinator: &mut Coordinator,
    agents: &Agents,
    kubelets: &Kubelets,
) -> Result<Incident> {
    let standin = Standin::start(api, plan).await?;
    let (before, began) = (coordinator.usage()?, Instant::now());
    agents.silence();
    kubelets.silence();
    let progress = Progress::new("VMs that run again", plan.doomed);
    let mut told = 0;
    wait("every VM of the dead node runs again", DEADLINE, LOOK, async || {
        coordinator.check()?;
        let seen = standin.seen();
        ensure!(seen.failures.is_empty(), "KubeVirt's stand-in failed: {}", seen.failures.join("; "));
        (told..seen.running.len()).for_each(|_| progress.step());
        told = seen.running.len();
        Ok(told >= plan.doomed as usize)
    })
    .await?;
    drop(progress);
    let mut health = NodeHealthStatus::default();
    wait("the incident is settled", SHOWN_WITHIN, LOOK, async || {
        let object = api.all(Kind::HEALTH, None).get(&doomed_node()).await?;
        health = serde_json::from_value(object.data["status"].clone()).context("a NodeHealth")?;
        Ok(milestone(&health, "Settled").is_some())
    })
    .await?;
    let (usage, took) = (coordinator.usage()?, began.elapsed());
    let Seen { deleted, detached, running, .. } = standin.seen();
    let at = |name| milestone(&health, name).with_context(|| format!("the timeline has no {name}"));
    let verdict = at("Declared")?;
    let after = |at: Option<&Timestamp>| between(verdict, *at.context("nothing was seen")?);
    Ok(Incident {
        silence: between(at("LastBeat")?, verdict)?,
        proven: between(verdict, at("Proven")?)?,
        first_deleted: after(deleted.iter().min())?,
        last_deleted: after(deleted.iter().max())?,
        last_detached: after(detached.iter().max())?,
        last_running: after(running.iter().max())?,
        settled: between(verdict, at("Settled")?)?,
        cpu: usage.cpu_since(&before, took),
        usage,
    })
}

fn milestone(health: &NodeHealthStatus, name: &str) -> Option<Timestamp> {
    let found = health.timeline.iter().rev().find(|entry| entry.milestone == name)?;
    found.at.0.to_string().parse().ok()
}

/// One machine's clock tells all of these times.
fn between(from: Timestamp, to: Timestamp) -> Result<Duration> {
    Duration::try_from(to.duration_since(from)).with_context(|| format!("{to} is before {from}"))
}
