//! What the shell's tests share: a cluster, a fence agent and a network that do as they are told.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use somersault_coordinator_core::fencing::agents::{FenceAnswer, FenceRoster};
use somersault_coordinator_core::fencing::{FenceRecord, FenceStage};
use somersault_coordinator_core::fleet::{Fleet, Node};
use somersault_coordinator_core::io::{FenceResult, OpenRecovery, Reachability, Record};
use somersault_coordinator_core::migration::{
    CronJobName, DryRun, DryRunAnswer, GuestAnswer, GuestQuestion, Verdict,
};
use somersault_coordinator_core::names::NodeName;
use somersault_coordinator_core::view::View;
use somersault_coordinator_core::{Action, BootTime, Notice};
use somersault_proto::model;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::clock::Clock;
use crate::cluster::{Cluster, ClusterError, Lasts, Leadership, Snapshot};
use crate::fence::{Answer, FenceOrder, Fencer};
use crate::probe::Prober;

/// What happened, in order.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// Appends an entry.
    pub fn push(&self, entry: impl Into<String>) {
        self.0.lock().unwrap().push(entry.into());
    }

    /// The entries that begin so.
    pub fn of(&self, prefix: &str) -> Vec<String> {
        self.0.lock().unwrap().iter().filter(|entry| entry.starts_with(prefix)).cloned().collect()
    }
}

/// Tokio's clock, which can be moved beside: what a suspended machine looks like.
pub struct FakeClock {
    start: Instant,
    ahead_ms: AtomicU64,
}

impl FakeClock {
    /// At one hour, so that nothing is early by accident.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), ahead_ms: AtomicU64::new(3_600_000) })
    }

    /// The machine was suspended so long.
    pub fn jump(&self, by: Duration) {
        let by_ms = u64::try_from(by.as_millis()).unwrap();
        self.ahead_ms.fetch_add(by_ms, Ordering::SeqCst);
    }
}

impl Clock for FakeClock {
    fn now(&self) -> BootTime {
        self.start.elapsed() + Duration::from_millis(self.ahead_ms.load(Ordering::SeqCst))
    }
}

/// A cluster of nodes without anything on them.
pub struct FakeCluster {
    /// What was asked of it.
    pub log: Log,
    /// How long a commit takes.
    pub commit_takes: Duration,
    /// Commits that fail on the way before one succeeds.
    pub commit_failures: AtomicU64,
    snapshots: watch::Sender<Arc<Snapshot>>,
    epoch: AtomicU64,
    /// The lease has run out, and nobody has been told yet.
    pub stood_still: Arc<AtomicBool>,
    lost: Mutex<Option<watch::Sender<bool>>>,
}

impl FakeCluster {
    /// With these nodes.
    pub fn new(nodes: &[&str], commit_takes: Duration) -> Arc<Self> {
        let node = |name: &&str| {
            let node = Node { ready: true, address: Some("10.0.0.1".into()), ..Node::default() };
            (NodeName::from(*name), node)
        };
        let fleet = Fleet { nodes: nodes.iter().map(node).collect::<BTreeMap<_, _>>(), ..Fleet::default() };
        let snapshots = watch::channel(Arc::new(Snapshot { fleet: fleet.into(), ..Snapshot::default() })).0;
        Arc::new(Self {
            log: Log::default(),
            commit_takes,
            commit_failures: AtomicU64::new(0),
            snapshots,
            epoch: AtomicU64::new(0),
            stood_still: Arc::default(),
            lost: Mutex::new(None),
        })
    }

    /// A kubelet renews its Lease.
    pub fn renew_lease(&self, node: &str, stamp: &str) {
        self.snapshots.send_modify(|current| {
            let mut next = Snapshot::clone(current);
            next.kubelet_renewals.insert(NodeName::from(node), stamp.to_owned());
            *current = Arc::new(next);
        });
    }

    /// Somebody else leads from now on.
    pub fn depose(&self) {
        self.lost.lock().unwrap().as_ref().unwrap().send_replace(true);
    }
}

impl Cluster for FakeCluster {
    fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.subscribe()
    }

    async fn act(&self, action: &Action) -> Result<(), ClusterError> {
        self.log.push(format!("act {action:?}"));
        Ok(())
    }

    async fn ask_job(&self, _: &GuestQuestion, _: &CronJobName) -> Result<GuestAnswer, ClusterError> {
        Ok(Ok("as the test asked".to_owned()))
    }

    async fn dry_run(&self, question: &DryRun) -> Result<DryRunAnswer, ClusterError> {
        let claims = question.claims.iter().flatten().map(|_| Verdict::Admitted).collect();
        Ok(DryRunAnswer { claims, quotas: Vec::new(), job: question.job.as_ref().map(|_| Verdict::Admitted) })
    }

    async fn commit(&self, record: &Record, epoch: u64) -> Result<(), ClusterError> {
        sleep(self.commit_takes).await;
        if self.commit_failures.load(Ordering::SeqCst) > 0 {
            self.commit_failures.fetch_sub(1, Ordering::SeqCst);
            let source = std::io::Error::other("as the test asked");
            return Err(ClusterError::Io { place: "here".into(), source });
        }
        let what = match record {
            Record::Fence(FenceRecord { node, stage, .. }) => format!("{node} {stage:?}"),
            other => format!("{:?}", other.key()),
        };
        self.log.push(format!("commit {what} epoch {epoch}"));
        Ok(())
    }

    async fn records(&self) -> Result<Vec<Record>, ClusterError> {
        Ok(Vec::new())
    }

    async fn open_recoveries(&self) -> Result<Vec<OpenRecovery>, ClusterError> {
        Ok(Vec::new())
    }

    async fn publish(&self, _view: &View) -> Result<(), ClusterError> {
        self.log.push("publish".to_owned());
        Ok(())
    }

    async fn event(&self, notice: &Notice) -> Result<(), ClusterError> {
        self.log.push(format!("event {}", notice.reason));
        Ok(())
    }

    async fn lead(&self, _identity: &str) -> Result<Leadership, ClusterError> {
        let (lost, receiver) = watch::channel(false);
        *self.lost.lock().unwrap() = Some(lost);
        let epoch = self.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        let stood_still = Arc::clone(&self.stood_still);
        let lasts = Lasts::new(move || !stood_still.load(Ordering::SeqCst));
        Ok(Leadership { epoch, lost: receiver, lasts })
    }
}

/// A fence record of a node.
pub fn fence_record(node: &str, stage: FenceStage) -> Record {
    let record = FenceRecord { node: node.into(), boot_id: None, epoch: 1, stage, agent_distrusted: false };
    Record::Fence(record)
}

/// A fence agent that takes a while and then says this.
pub struct FakeFencer {
    /// Where runs are noted.
    pub log: Log,
    /// How long a run takes.
    pub takes: Duration,
    /// How it ends.
    pub result: FenceResult,
}

impl Fencer for FakeFencer {
    fn fence(&self, order: FenceOrder) -> Answer<FenceResult> {
        self.log.push(format!("fence {}", order.node));
        let (takes, result) = (self.takes, self.result.clone());
        Box::pin(async move {
            sleep(takes).await;
            result
        })
    }

    fn status(&self, node: NodeName, _: Duration) -> Answer<FenceAnswer> {
        self.log.push(format!("status {node}"));
        Box::pin(async { FenceAnswer::On })
    }

    fn roster(&self) -> watch::Receiver<FenceRoster> {
        watch::channel(FenceRoster::default()).1
    }
}

/// A network on which nobody answers.
pub struct Silence;

impl Prober for Silence {
    fn probe(
        &self,
        _node: model::NodeName,
        _address: model::Address,
        timeout: Duration,
    ) -> Pin<Box<dyn Future<Output = Reachability> + Send>> {
        Box::pin(async move {
            sleep(timeout).await;
            Reachability::Silent
        })
    }
}
