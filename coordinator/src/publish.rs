//! Shows what the core shows: in our objects' status, and as metrics. Never more often than people can read.

use std::sync::Arc;
use std::time::Duration;

use somersault_coordinator_core::decision::{ExpectedTimes, report};
use somersault_coordinator_core::fleet::Fleet;
use somersault_coordinator_core::policy::Policy;
use somersault_coordinator_core::view::View;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, Problem, Snapshot};
use crate::metrics::{Facts, Metrics};

/// Between two writes of statuses. At rest nothing changes and nothing is written; while a copy runs, this is what
/// its progress costs the API server.
const PUBLISH_EVERY: Duration = Duration::from_millis(250);
/// A view that stays the same is looked at again after this: numbers wait for their turn, and of many changes only
/// so many are written in one go.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// After a failed write.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Between two looks at what would become of every VM.
const RECOVERABILITY_EVERY: Duration = Duration::from_secs(5);
/// The agents' reports tell of disks, and no object of the cluster changes with them.
const RECOVERABILITY_AT_LEAST_EVERY: Duration = Duration::from_mins(1);

/// Publishes each view that is still the newest when its turn comes, and the last one again and again: what was not
/// due in it may be now.
pub async fn run<C: Cluster>(
    cluster: Arc<C>,
    mut views: watch::Receiver<Arc<View>>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    loop {
        let changed = tokio::time::timeout(LOOK_AGAIN, views.changed());
        match stop.run_until_cancelled(changed).await {
            None | Some(Ok(Err(_))) => break,
            Some(Ok(Ok(())) | Err(_)) => {}
        }
        let view = Arc::clone(&views.borrow_and_update());
        metrics.view(&view);
        let wait = match cluster.publish(&view).await {
            Ok(()) => PUBLISH_EVERY,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "statuses were not written");
                views.mark_changed();
                RETRY_AFTER
            }
        };
        if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            break;
        }
    }
}

/// Keeps the metrics of the cluster, and logs manifests that cannot be read, each once.
pub async fn watch_fleet(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    views: watch::Receiver<Arc<View>>,
    mut policies: watch::Receiver<Arc<Policy>>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut known: Vec<Problem> = Vec::new();
    let mut judged: Option<Arc<Fleet>> = None;
    snapshots.mark_changed();
    loop {
        let due = async {
            let again = tokio::time::sleep(RECOVERABILITY_AT_LEAST_EVERY);
            tokio::pin!(again);
            loop {
                tokio::select! {
                    Ok(()) = policies.changed() => return true,
                    () = &mut again => return true,
                    // Whoever leads shows the cluster, and at once.
                    () = metrics.led() => return true,
                    changed = snapshots.changed() => match changed {
                        // Most snapshots of a large cluster differ in the kubelets' Leases only.
                        Ok(()) if is_the_same(&mut snapshots, judged.as_ref()) => {}
                        changed => return changed.is_ok(),
                    },
                }
            }
        };
        if stop.run_until_cancelled(due).await != Some(true) {
            break;
        }
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        judged = Some(Arc::clone(&snapshot.fleet));
        let policy = Arc::clone(&policies.borrow_and_update());
        for problem in snapshot.problems.iter().filter(|problem| !known.contains(problem)) {
            let Problem { file, document, object, message } = problem;
            tracing::warn!(file, document, object, "manifest left out: {message}");
        }
        known.clone_from(&snapshot.problems);
        metrics.manifest_problems(known.len());

        let view = Arc::clone(&views.borrow());
        let proofs =
            view.nodes.iter().map(|(node, seen)| (node.clone(), seen.proofs_possible.clone())).collect();
        let mut fleet = Fleet::clone(&snapshot.fleet);
        let reports = view.nodes.iter().filter_map(|(node, seen)| Some((node.clone(), seen.report.clone()?)));
        fleet.reports.extend(reports);
        let expected = ExpectedTimes { declare: policy.detection.declare, ..ExpectedTimes::default() };
        let rows = report(&fleet, &policy.class_overrides, &proofs, &expected);
        metrics.cluster(&Facts { fleet: &fleet, view: &view, rows: &rows });
        if stop.run_until_cancelled(tokio::time::sleep(RECOVERABILITY_EVERY)).await.is_none() {
            break;
        }
    }
}

fn is_the_same(snapshots: &mut watch::Receiver<Arc<Snapshot>>, judged: Option<&Arc<Fleet>>) -> bool {
    let newest = snapshots.borrow_and_update();
    judged.is_some_and(|judged| Arc::ptr_eq(judged, &newest.fleet))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::FakeCluster;

    #[tokio::test(start_paused = true)]
    async fn a_view_that_stays_the_same_is_looked_at_again() {
        let cluster = FakeCluster::new(&[], Duration::ZERO);
        let (views, seen) = watch::channel(Arc::new(View::default()));
        let (metrics, stop) = (Arc::new(Metrics::default()), CancellationToken::new());
        let publisher = tokio::spawn(run(Arc::clone(&cluster), seen, metrics, stop.clone()));
        views.send_replace(Arc::new(View { storm_hold: Some("many".into()), ..View::default() }));
        tokio::time::sleep(Duration::from_millis(3_500)).await;
        assert_eq!(cluster.log.of("publish").len(), 3, "at once, and once for each 1.25 s");
        stop.cancel();
        publisher.await.unwrap();
    }
}
