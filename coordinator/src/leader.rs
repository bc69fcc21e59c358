//! Leadership: acquire, list the records, tell the core, and give up at once when it is lost. A record that
//! somebody else changed makes us list them all again: the core must see what is there before it goes on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use somersault_coordinator_core::Input;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, ClusterError, Lasts, Leadership};
use crate::inbox::Inbox;
use crate::metrics::Metrics;

/// Between two tries after an error: soon enough for an incident, seldom enough for a log.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// The epoch in which we lead now. Written before the core hears of it, and cleared before anything else happens
/// when leadership is lost, so that nothing that still waits in a queue is done in a dead leader's name. It ends by
/// itself when the lease does: a process that stood still acts before anybody can tell it.
#[derive(Clone, Debug, Default)]
pub struct Epoch(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    term: RwLock<Option<(u64, Lasts)>>,
    listing: AtomicU64,
    outdated: Notify,
}

impl Epoch {
    /// The epoch, while we lead.
    pub fn current(&self) -> Option<u64> {
        let term = self.0.term.read().unwrap_or_else(PoisonError::into_inner);
        term.as_ref().filter(|(_, lasts)| lasts.now()).map(|(epoch, _)| *epoch)
    }

    /// We lead in this epoch, for as long as it lasts.
    pub fn begin(&self, epoch: u64, lasts: Lasts) {
        *self.0.term.write().unwrap_or_else(PoisonError::into_inner) = Some((epoch, lasts));
    }

    /// We lead no more; whether we had begun to.
    pub fn end(&self) -> bool {
        self.0.term.write().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }

    /// Which listing of the records the core goes by: an answer to a commit from before says nothing to it.
    pub fn listing(&self) -> u64 {
        self.0.listing.load(Ordering::SeqCst)
    }

    /// Somebody else changed a record: they are listed again.
    pub fn records_are_outdated(&self) {
        self.0.outdated.notify_one();
    }

    fn begin_listing(&self) {
        self.0.listing.fetch_add(1, Ordering::SeqCst);
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
    epoch.end();
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
    let ended = loop {
        epoch.begin_listing();
        // Side by side: VMs wait for whoever takes over.
        let (records, recoveries) = match tokio::try_join!(cluster.records(), cluster.open_recoveries()) {
            Ok(both) => both,
            Err(error) => break Err(error),
        };
        tracing::info!(epoch = leadership.epoch, records = records.len(), "this process leads");
        epoch.begin(leadership.epoch, leadership.lasts.clone());
        metrics.leading(true);
        inbox.input(Input::Leading { epoch: leadership.epoch, records, recoveries }).await;
        tokio::select! {
            // An error means that whoever watches over the lease is gone, and the lease with it.
            _ = leadership.lost.wait_for(|lost| *lost) => break Ok(()),
            () = relisting_is_due(epoch) => {
                tracing::warn!(epoch = leadership.epoch, "somebody else changed a record; reading all of them again");
            }
        }
    };
    if epoch.end() {
        metrics.leading(false);
        tracing::warn!(epoch = leadership.epoch, "this process leads no more");
        inbox.input(Input::Deposed).await;
    }
    ended
}

/// Not at once: whoever edits a record may not be done yet.
async fn relisting_is_due(epoch: &Epoch) {
    epoch.0.outdated.notified().await;
    tokio::time::sleep(RETRY_AFTER).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbox::Event;
    use crate::testkit::{FakeClock, FakeCluster};

    #[tokio::test(start_paused = true)]
    async fn a_record_that_somebody_changed_is_listed_again_in_the_same_epoch() {
        let cluster = FakeCluster::new(&[], Duration::ZERO);
        let (inbox, mut events) = Inbox::new(FakeClock::new());
        let (epoch, stop) = (Epoch::default(), CancellationToken::new());
        let (metrics, who) = (Arc::new(Metrics::default()), "test".to_owned());
        tokio::spawn(run(Arc::clone(&cluster), who, epoch.clone(), inbox, metrics, stop.clone()));
        let mut next = async || match events.recv().await.map(|stamped| stamped.event) {
            Some(Event::Input(input)) => input,
            _ => panic!("an input was expected"),
        };
        let leading = Input::Leading { epoch: 1, records: Vec::new(), recoveries: Vec::new() };
        assert_eq!(next().await, leading);
        let first = epoch.listing();
        epoch.records_are_outdated();
        assert_eq!(next().await, leading);
        assert_ne!(epoch.listing(), first, "answers from before must not count");
        cluster.depose();
        assert_eq!(next().await, Input::Deposed);
        stop.cancel();
    }
}
