//! Alerts of our own, for clusters that have no Prometheus: to Alertmanagers, and to a webhook.
//!
//! ```text
//!   view, fleet, requests ──every few seconds──► core: what fires ──► newest ─┬─► each replica of each Alertmanager
//!                                                                  (a watch) └─► the webhook
//! ```
//!
//! Only the leader tells; a follower looks too, so that it knows since when things are as they are. A receiver takes the newest
//! when it is ready for it: one that hangs or fails holds up neither the deciding loop, which knows nothing of all this, nor
//! another receiver, and what it missed is in the next.

mod alertmanager;
pub mod config;
mod http;
mod receiver;
mod template;
#[cfg(test)]
mod tests;
mod webhook;

use std::sync::Arc;

use somersault_coordinator_core::BootTime;
use somersault_coordinator_core::alerts::told::Ended;
use somersault_coordinator_core::alerts::{Alerts, Known};
use somersault_coordinator_core::policy::Policy;
use somersault_coordinator_core::view::View;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::config::AlertPlan;
use self::receiver::Common;
use crate::clock::Clock;
use crate::cluster::Snapshot;
use crate::leader::Epoch;
use crate::metrics::Metrics;

/// What alerts are made of, and what sending them takes.
pub struct Sources {
    /// The cluster's objects.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// What the core shows.
    pub views: watch::Receiver<Arc<View>>,
    /// The policy.
    pub policies: watch::Receiver<Arc<Policy>>,
    /// The clock of the view.
    pub clock: Arc<dyn Clock>,
    /// Whether we lead.
    pub epoch: Epoch,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// Looks and tells, until told to stop.
pub async fn run(plan: AlertPlan, sources: Sources, stop: CancellationToken) {
    let Sources { snapshots, views, policies, clock, epoch, metrics } = sources;
    let plan = Arc::new(plan);
    let common = Common {
        plan: Arc::clone(&plan),
        clock: Arc::clone(&clock),
        epoch: epoch.clone(),
        metrics: Arc::clone(&metrics),
    };
    let (sender, newest) = watch::channel(None);
    // They end with this.
    let mut receivers = JoinSet::new();
    for endpoint in &plan.alertmanagers {
        receivers.spawn(alertmanager::follow(endpoint.clone(), newest.clone(), common.clone()));
    }
    if plan.webhook.is_some() {
        receivers.spawn(webhook::follow(newest, common));
    }
    let (mut alerts, mut term) = (Alerts::default(), None);
    loop {
        let now = clock.now();
        let (snapshot, view, policy) =
            (Arc::clone(&snapshots.borrow()), Arc::clone(&views.borrow()), Arc::clone(&policies.borrow()));
        let firing = alerts.look(
            now,
            &Known {
                view: &view,
                fleet: &snapshot.fleet,
                requests: &snapshot.requests,
                overrides: &policy.class_overrides,
                backups: plan.backups,
            },
        );
        term = Term::of(term, epoch.current(), now);
        let settled = term.as_mut().filter(|term| now >= term.since + plan.pace.settle);
        metrics.alerts_firing(settled.is_some().then_some(&firing.counts));
        let tell = settled.map(|term| Arc::new((term.epoch, term.ended.look(now, firing))));
        sender.send_replace(tell);
        if stop.run_until_cancelled(tokio::time::sleep(plan.pace.look)).await.is_none() {
            return;
        }
    }
}

/// An epoch in which we lead.
struct Term {
    epoch: u64,
    since: BootTime,
    ended: Ended,
}

impl Term {
    fn of(before: Option<Self>, epoch: Option<u64>, now: BootTime) -> Option<Self> {
        let epoch = epoch?;
        let same = before.filter(|term| term.epoch == epoch);
        Some(same.unwrap_or_else(|| Self { epoch, since: now, ended: Ended::default() }))
    }
}
