//! Leadership: acquire, list the records, tell the core, and give up at once when it is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use somersault_coordinator_core::Input;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, ClusterError, Leadership};
use crate::inbox::Inbox;
use crate::metrics::Metrics;

/// Between two tries after an error: soon enough for an incident, seldom enough for a log.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// The epoch in which we lead now. Written before the core hears of it, and cleared before anything else happens
/// when leadership is lost, so that nothing that still waits in a queue is done in a dead leader's name.
#[derive(Clone, Debug, Default)]
pub struct Epoch(Arc<AtomicU64>);

impl Epoch {
    /// The epoch, while we lead.
    pub fn current(&self) -> Option<u64> {
        match self.0.load(Ordering::SeqCst) {
            0 => None,
            epoch => Some(epoch),
        }
    }

    /// We lead in this epoch (`Some`), or no more.
    pub fn set(&self, epoch: Option<u64>) {
        self.0.store(epoch.unwrap_or(0), Ordering::SeqCst);
    }
}

/// Leads whenever it can, until told to stop.
pub async fn run<C: Cluster>(
    cluster: Arc<C>,
    identity: String,
    epoch: Epoch,
    inbox: Inbox,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let term = async {
            match cluster.lead(&identity).await {
                Ok(leadership) => serve_term(cluster.as_ref(), leadership, &epoch, &inbox, &metrics).await,
                Err(error) => Err(error),
            }
        };
        let ended = tokio::select! {
            () = stop.cancelled() => break,
            ended = term => ended,
        };
        if let Err(error) = ended {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot lead; trying again");
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(RETRY_AFTER) => {}
            }
        }
    }
    epoch.set(None);
    metrics.leading(false);
}

/// Leads until leadership is lost.
async fn serve_term<C: Cluster>(
    cluster: &C,
    mut leadership: Leadership,
    epoch: &Epoch,
    inbox: &Inbox,
    metrics: &Metrics,
) -> Result<(), ClusterError> {
    let records = cluster.records().await?;
    tracing::info!(epoch = leadership.epoch, records = records.len(), "this process leads");
    epoch.set(Some(leadership.epoch));
    metrics.leading(true);
    inbox.input(Input::Leading { epoch: leadership.epoch, records }).await;
    // An error means that whoever watches over the lease is gone, and the lease with it.
    drop(leadership.lost.wait_for(|lost| *lost).await);
    epoch.set(None);
    metrics.leading(false);
    tracing::warn!(epoch = leadership.epoch, "this process leads no more");
    inbox.input(Input::Deposed).await;
    Ok(())
}
