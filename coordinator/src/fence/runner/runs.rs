//! Which runs are under way: one for each node, in the newest epoch that was seen.
//!
//! ```text
//!   order ── older epoch ────────────────────────────────► refused
//!     ├───── the run that is under way, or that ended last ► joined: one machine is switched once
//!     ├───── another run of this epoch is under way ──────► refused; it ends within its deadline
//!     └───── else ── a run of an older epoch is killed ───► runs
//! ```
//!
//! A result is given to the run of the same name only: "it is off" says nothing about a machine that was switched on
//! since. A run goes on when its caller is gone, so that the caller can come back for the result.
//!
//! The newest epoch lives as long as this process: it keeps a leader of the past from switching machines for nothing,
//! and leaders call every few seconds. It is not what keeps VMs from running twice: a proof counts only once it is
//! stored under the leader's epoch, and no leader of the past can store anything.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use somersault_coordinator_core::io::FenceResult;
use somersault_coordinator_core::names::NodeName;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::{FenceAgents, FenceOrder};
use super::metrics::RunnerMetrics;

/// Runs at the same time: the coordinator's storm limits let no more through, and each is a Python process.
const RUNS_MAX: usize = 8;

/// Said of a run that was killed.
const ENDED: &str = "the run was ended: the runner stops, or a newer leader ordered";

/// How a run goes: `None` while it does.
pub type Outcome = watch::Receiver<Option<FenceResult>>;

/// Why an order is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunRefused {
    /// Somebody newer leads.
    #[error("epoch {epoch} is over: a leader of epoch {newest} has called")]
    OldEpoch {
        /// The order's.
        epoch: u64,
        /// The newest that was seen.
        newest: u64,
    },
    /// Another order for the node is being carried out.
    #[error("another run of {node} is under way")]
    Busy {
        /// Which.
        node: NodeName,
    },
}

/// All runs. Cheap to share.
#[derive(Clone)]
pub struct Runs(Arc<Shared>);

struct Shared {
    table: Mutex<Table>,
    slots: Semaphore,
    tasks: TaskTracker,
    stop: CancellationToken,
    metrics: Arc<RunnerMetrics>,
}

#[derive(Default)]
struct Table {
    newest: u64,
    /// The last run of each node that has one.
    last: BTreeMap<NodeName, Run>,
}

struct Run {
    epoch: u64,
    name: String,
    outcome: Outcome,
    kill: CancellationToken,
}

impl Runs {
    /// None under way.
    pub fn new(metrics: Arc<RunnerMetrics>, stop: CancellationToken) -> Self {
        let slots = Semaphore::new(RUNS_MAX);
        Self(Arc::new(Shared { table: Mutex::default(), slots, tasks: TaskTracker::new(), stop, metrics }))
    }

    /// A leader of this epoch called; 0 is nobody's.
    pub fn saw(&self, epoch: u64) {
        let mut table = self.table();
        table.newest = table.newest.max(epoch);
    }

    /// Whether the node is being switched off now.
    pub fn is_under_way(&self, node: &NodeName) -> bool {
        self.table().last.get(node).is_some_and(|run| run.outcome.borrow().is_none())
    }

    /// Starts the run, or joins the one of the same name. It has ended at `deadline`.
    pub fn order(
        &self,
        order: FenceOrder,
        agents: FenceAgents,
        deadline: Instant,
    ) -> Result<Outcome, RunRefused> {
        let mut table = self.table();
        if order.epoch < table.newest {
            return Err(RunRefused::OldEpoch { epoch: order.epoch, newest: table.newest });
        }
        table.newest = order.epoch;
        let mut killed = None;
        if let Some(last) = table.last.get(&order.node) {
            if (last.epoch, &last.name) == (order.epoch, &order.run) {
                return Ok(last.outcome.clone());
            }
            if last.outcome.borrow().is_none() {
                if last.epoch == order.epoch {
                    return Err(RunRefused::Busy { node: order.node });
                }
                last.kill.cancel();
                killed = Some(last.outcome.clone());
            }
        }
        let (ended, outcome) = watch::channel(None);
        let kill = self.0.stop.child_token();
        let run =
            Run { epoch: order.epoch, name: order.run.clone(), outcome: outcome.clone(), kill: kill.clone() };
        table.last.insert(order.node.clone(), run);
        drop(table);

        let shared = Arc::clone(&self.0);
        self.0.tasks.spawn(async move {
            let turn = async {
                if let Some(mut killed) = killed {
                    // Its programs are gone when it says so; where it cannot even say so, they are too.
                    drop(killed.wait_for(Option::is_some).await);
                }
                shared.slots.acquire().await
            };
            let work = async {
                let Ok(_slot) = timeout_at(deadline, turn).await else {
                    return FenceResult::Failed("too many machines are being switched off".to_owned());
                };
                let left = deadline.saturating_duration_since(Instant::now());
                tracing::warn!(node = %order.node, epoch = order.epoch, run = order.run, "switching off");
                agents.fence(&order.node, left).await
            };
            let result = tokio::select! {
                biased;
                () = kill.cancelled() => FenceResult::Failed(ENDED.to_owned()),
                result = work => result,
            };
            match &result {
                FenceResult::ConfirmedOff => {
                    tracing::warn!(node = %order.node, run = order.run, "off, read back");
                }
                FenceResult::Failed(why) => {
                    tracing::error!(node = %order.node, run = order.run, %why, "not off");
                }
            }
            shared.metrics.ran(&result);
            ended.send_replace(Some(result));
        });
        Ok(outcome)
    }

    /// Waits until every run has ended; `stop` has been cancelled before.
    pub async fn finish(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
