//! Commits: each record's versions in order, answered when they are stored and not before.

use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use somersault_coordinator_core::Input;
use somersault_coordinator_core::io::{Record, RecordKey};

use crate::cluster::{Cluster, ClusterError};
use crate::inbox::Inbox;
use crate::lanes::Lanes;
use crate::leader::Epoch;

/// Records that are written at the same time: one incident touches a record per node and per VM's migration, and
/// an API server gives one client a handful of parallel requests.
const SIDE_BY_SIDE: usize = 8;

/// How often, and how fast, trouble on the way is retried: about 3 s in all, less than a leader's renew deadline.
pub fn retries() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(1))
        .with_max_times(5)
}

/// Whether trying again may help.
pub fn is_passing(error: &ClusterError) -> bool {
    matches!(error, ClusterError::Io { .. })
}

/// Writes records.
pub struct Store<C> {
    cluster: Arc<C>,
    lanes: Lanes<RecordKey>,
    epoch: Epoch,
    inbox: Inbox,
}

impl<C: Cluster> Store<C> {
    /// A store in this cluster, which answers into `inbox`.
    pub fn new(cluster: Arc<C>, epoch: Epoch, inbox: Inbox) -> Self {
        Self { cluster, lanes: Lanes::new(SIDE_BY_SIDE), epoch, inbox }
    }

    /// Stores a record; the answer comes as [`Input::Committed`] or [`Input::CommitRefused`]. Refused at once
    /// where we do not lead.
    pub fn commit(&self, record: Record) {
        let key = record.key();
        let (cluster, epoch, inbox) = (Arc::clone(&self.cluster), self.epoch.clone(), self.inbox.clone());
        let (under, listing) = (epoch.current(), epoch.listing());
        let answer_to = key.clone();
        let job = async move {
            let answer = match under.filter(|_| epoch.current() == under && epoch.listing() == listing) {
                Some(under) => match write(cluster.as_ref(), &record, under).await {
                    Ok(()) => Input::Committed(answer_to),
                    Err(error) => {
                        if matches!(error, ClusterError::Conflict { .. }) {
                            epoch.records_are_outdated();
                        }
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(record = ?answer_to, error, "a record was not stored");
                        Input::CommitRefused(answer_to)
                    }
                },
                None => Input::CommitRefused(answer_to),
            };
            // The core goes by a newer listing: what this commit came to is in it, or is asked for again.
            if epoch.listing() == listing {
                inbox.input(answer).await;
            }
        };
        if let Err(error) = self.lanes.push(key.clone(), job) {
            tracing::error!(record = ?key, %error, "a record was not stored");
            let inbox = self.inbox.clone();
            tokio::spawn(async move { inbox.input(Input::CommitRefused(key)).await });
        }
    }

    /// Lets the commits in hand end.
    pub async fn finish(&self) {
        self.lanes.finish().await;
    }
}

async fn write<C: Cluster>(cluster: &C, record: &Record, epoch: u64) -> Result<(), ClusterError> {
    (|| cluster.commit(record, epoch)).retry(retries()).when(is_passing).await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use somersault_coordinator_core::fencing::FenceStage;
    use tokio::sync::mpsc;

    use super::*;
    use crate::cluster::Lasts;
    use crate::inbox::{Event, Stamped};
    use crate::testkit::{FakeClock, FakeCluster, fence_record};

    fn store(cluster: &Arc<FakeCluster>) -> (Store<FakeCluster>, Epoch, mpsc::Receiver<Stamped>) {
        let (inbox, events) = Inbox::new(FakeClock::new());
        let epoch = Epoch::default();
        epoch.begin(3, Lasts::until_told());
        (Store::new(Arc::clone(cluster), epoch.clone(), inbox), epoch, events)
    }

    async fn answer(events: &mut mpsc::Receiver<Stamped>) -> Input {
        match events.recv().await.unwrap().event {
            Event::Input(input) => input,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn versions_of_a_record_are_stored_in_order() {
        let cluster = FakeCluster::new(&[], Duration::from_secs(1));
        let (store, _epoch, mut events) = store(&cluster);
        store.commit(fence_record("n1", FenceStage::Declared));
        store.commit(fence_record("n1", FenceStage::PowerOrdered));
        for _ in 0..2 {
            assert_eq!(answer(&mut events).await, Input::Committed(RecordKey::Fence("n1".into())));
        }
        assert_eq!(
            cluster.log.of("commit"),
            ["commit n1 Declared epoch 3", "commit n1 PowerOrdered epoch 3"]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn passing_trouble_is_retried_and_lasting_trouble_is_refused() {
        let cluster = FakeCluster::new(&[], Duration::ZERO);
        let (store, _epoch, mut events) = store(&cluster);
        cluster.commit_failures.store(3, Ordering::SeqCst);
        store.commit(fence_record("n1", FenceStage::Declared));
        assert!(matches!(answer(&mut events).await, Input::Committed(_)));
        cluster.commit_failures.store(100, Ordering::SeqCst);
        store.commit(fence_record("n1", FenceStage::PowerOrdered));
        assert!(matches!(answer(&mut events).await, Input::CommitRefused(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_dropped_with_the_leadership() {
        let cluster = FakeCluster::new(&[], Duration::from_secs(1));
        let (store, epoch, mut events) = store(&cluster);
        store.commit(fence_record("n1", FenceStage::Declared));
        store.commit(fence_record("n1", FenceStage::PowerOrdered));
        tokio::task::yield_now().await;
        // Even when the same process leads again, in another epoch.
        epoch.begin(4, Lasts::until_told());
        assert!(matches!(answer(&mut events).await, Input::Committed(_)));
        assert!(matches!(answer(&mut events).await, Input::CommitRefused(_)));
        assert_eq!(cluster.log.of("commit").len(), 1);
    }
}
