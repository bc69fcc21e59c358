//! Jobs in order for each object, side by side for different ones.
//!
//! ```text
//!   push(key, job) ──► lane of key: job, job, …   one at a time, in order
//!                      lane of other key: job     at the same time, up to the limit
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Jobs that may wait for one object. The core waits for the answer to one step before it takes the next, so more
/// than a few mean that something is badly wrong.
const WAITING_MAX: usize = 64;

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;
type Queues<K> = Arc<Mutex<BTreeMap<K, VecDeque<Job>>>>;

/// The lane is full: the job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{WAITING_MAX} changes of this object wait already")]
pub struct LaneFull;

/// The lanes.
pub struct Lanes<K> {
    queues: Queues<K>,
    slots: Arc<Semaphore>,
    tasks: TaskTracker,
    closed: CancellationToken,
}

impl<K: Ord + Clone + Send + 'static> Lanes<K> {
    /// Lanes of which `side_by_side` work at the same time.
    pub fn new(side_by_side: usize) -> Self {
        Self {
            queues: Arc::default(),
            slots: Arc::new(Semaphore::new(side_by_side)),
            tasks: TaskTracker::new(),
            closed: CancellationToken::new(),
        }
    }

    /// Appends a job to its lane; never waits.
    pub fn push(&self, key: K, job: impl Future<Output = ()> + Send + 'static) -> Result<(), LaneFull> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queues.get_mut(&key) {
            if queue.len() >= WAITING_MAX {
                return Err(LaneFull);
            }
            queue.push_back(Box::pin(job));
            return Ok(());
        }
        queues.insert(key.clone(), VecDeque::new());
        drop(queues);
        let lane =
            work(Arc::clone(&self.queues), Arc::clone(&self.slots), self.closed.clone(), key, Box::pin(job));
        self.tasks.spawn(lane);
        Ok(())
    }

    /// Lets the jobs in hand end, and drops those that wait.
    pub async fn finish(&self) {
        self.closed.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Works through one lane until it is empty.
async fn work<K: Ord>(
    queues: Queues<K>,
    slots: Arc<Semaphore>,
    closed: CancellationToken,
    key: K,
    first: Job,
) {
    let mut job = first;
    loop {
        let slot = tokio::select! {
            biased;
            () = closed.cancelled() => return,
            slot = slots.acquire() => slot,
        };
        if slot.is_err() {
            return;
        }
        job.await;
        drop(slot);
        let mut queues = queues.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(next) = queues.get_mut(&key).and_then(VecDeque::pop_front) else {
            queues.remove(&key);
            return;
        };
        job = next;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;
    use tokio::time::{Instant, sleep};

    use super::*;

    fn push(lanes: &Lanes<u8>, key: u8, name: &'static str, log: &mpsc::UnboundedSender<&'static str>) {
        let log = log.clone();
        let job = async move {
            sleep(Duration::from_secs(1)).await;
            log.send(name).unwrap();
        };
        lanes.push(key, job).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn one_object_in_order_others_beside_it() {
        let (log, mut done) = mpsc::unbounded_channel();
        let lanes = Lanes::new(8);
        let start = Instant::now();
        push(&lanes, 1, "first", &log);
        push(&lanes, 1, "second", &log);
        push(&lanes, 2, "other", &log);
        let mut order = vec![done.recv().await.unwrap(), done.recv().await.unwrap()];
        order.sort_unstable();
        assert_eq!(order, ["first", "other"]);
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        assert_eq!(done.recv().await.unwrap(), "second");
        assert_eq!(start.elapsed(), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_the_limit_at_the_same_time() {
        let (log, mut done) = mpsc::unbounded_channel();
        let lanes = Lanes::new(2);
        let start = Instant::now();
        for key in 0..6 {
            push(&lanes, key, "job", &log);
        }
        for _ in 0..6 {
            done.recv().await.unwrap();
        }
        assert_eq!(start.elapsed(), Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_lane_refuses() {
        let (log, _done) = mpsc::unbounded_channel();
        let lanes = Lanes::new(1);
        for _ in 0..=WAITING_MAX {
            push(&lanes, 1, "job", &log);
        }
        assert_eq!(lanes.push(1, async {}), Err(LaneFull));
        assert_eq!(lanes.push(2, async {}), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn finishing_ends_the_job_in_hand_and_starts_no_other() {
        let (log, mut done) = mpsc::unbounded_channel();
        let lanes = Lanes::new(1);
        push(&lanes, 1, "in hand", &log);
        push(&lanes, 1, "waiting", &log);
        tokio::task::yield_now().await;
        lanes.finish().await;
        drop((lanes, log));
        assert_eq!(done.recv().await, Some("in hand"));
        assert_eq!(done.recv().await, None);
    }
}
