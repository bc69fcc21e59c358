//! Reading, leading and writing, put together.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kube::Client;
use somersault_coordinator_core::io::{Action, Notice, OpenRecovery, Record};
use somersault_coordinator_core::migration::{CronJobName, DryRun, DryRunAnswer, GuestAnswer, GuestQuestion};
use somersault_coordinator_core::policy::Policy;
use somersault_coordinator_core::view::View;
use tokio::sync::{mpsc, watch};

use super::api::Api;
use super::client::{self, ConnectError};
use super::collect::{self, Outlets, StoredPolicy, WAITING_MAX};
use super::election::Times;
use super::kinds::WATCHED;
use super::lead::{Candidate, Pace, Place, Term};
use super::watch::watch as watch_kind;
use super::write::Writer;
use crate::cluster::error::refused;
use crate::cluster::{Cluster, ClusterError, Lasts, Leadership, Snapshot};

/// A real API server as a cluster.
pub struct Kube {
    client: Client,
    namespace: String,
    writer: Writer,
    place: Place,
    instance: String,
    term: Mutex<Option<Arc<Term>>>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    synced: watch::Receiver<bool>,
    policy: watch::Receiver<StoredPolicy>,
    /// Set once: a term ends by the times under which it began.
    pace: OnceLock<Pace>,
}

/// Which API server, and who we are there.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Context of the kubeconfig; else the pod's own files, else the kubeconfig's current context.
    pub context: Option<String>,
    /// The coordinator's own namespace; else the pod's, else the context's.
    pub namespace: Option<String>,
    /// Name of the pod, or another name by which people know this process.
    pub instance: String,
}

impl Kube {
    /// Begins to watch. Nothing needs to be reachable yet.
    pub async fn open(access: &Access) -> Result<Self, ConnectError> {
        let clients = client::connect(access.context.as_deref()).await?;
        let namespace = access.namespace.clone().unwrap_or(clients.namespace);
        let (snapshots, newest) = watch::channel(Arc::default());
        let (synced, is_synced) = watch::channel(false);
        let (policy, specs) = watch::channel(StoredPolicy::Unread);
        let (told, heard) = mpsc::channel(WAITING_MAX);
        for kind in WATCHED {
            tokio::spawn(watch_kind(clients.watches.clone(), kind, told.clone()));
        }
        let outlets = Outlets { snapshots, synced, policy };
        let own = namespace.clone();
        std::thread::Builder::new()
            .name("cluster-join".to_owned())
            .spawn(move || collect::run(heard, &own, &outlets))
            .map_err(ConnectError::Thread)?;
        Ok(Self {
            client: clients.calls.clone(),
            namespace: namespace.clone(),
            writer: Writer::new(clients.calls.clone(), &namespace, &access.instance),
            place: Place::new(clients.calls, &namespace),
            instance: access.instance.clone(),
            term: Mutex::default(),
            snapshots: newest,
            synced: is_synced,
            policy: specs,
            pace: OnceLock::new(),
        })
    }

    /// Stands for election by the times of this policy, from the first time on. Later calls change nothing: other
    /// coordinators go by what was written into the Lease when we began.
    pub fn set_leader_times(&self, policy: &Policy) {
        let pace = pace_of(policy);
        if *self.pace.get_or_init(|| pace) != pace {
            tracing::warn!("the leader's times change when this process starts anew");
        }
    }

    /// The policy that counts, as it changes.
    pub(super) fn policy_specs(&self) -> watch::Receiver<StoredPolicy> {
        self.policy.clone()
    }

    /// For calls that belong to nobody's leadership.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The coordinator's own namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The API server.
    pub(super) fn api(&self) -> &Api {
        self.writer.api()
    }

    /// Whether we lead at this very moment.
    pub fn leads(&self) -> bool {
        self.epoch().is_some()
    }

    /// Gives the leadership back, if we have it; what is in hand must have ended.
    pub async fn step_down(&self) {
        let term = lock(&self.term).take();
        if let Some(term) = term {
            term.give_back().await;
        }
    }

    fn epoch(&self) -> Option<u64> {
        lock(&self.term).as_ref().filter(|term| term.lasts()).map(|term| term.epoch)
    }

    /// Only the leader changes anything.
    fn check_lead(&self) -> Result<u64, ClusterError> {
        self.epoch().ok_or_else(|| refused("the cluster", "this process does not lead; it changes nothing"))
    }
}

impl Cluster for Kube {
    fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    fn is_warm(&self) -> bool {
        *self.synced.borrow()
    }

    async fn act(&self, action: &Action) -> Result<(), ClusterError> {
        self.check_lead()?;
        self.writer.act(action).await
    }

    async fn ask_job(
        &self,
        question: &GuestQuestion,
        template: &CronJobName,
    ) -> Result<GuestAnswer, ClusterError> {
        self.check_lead()?;
        self.writer.ask_job(question, template).await
    }

    async fn dry_run(&self, question: &DryRun) -> Result<DryRunAnswer, ClusterError> {
        self.check_lead()?;
        self.writer.dry_run(question).await
    }

    async fn commit(&self, record: &Record, epoch: u64) -> Result<(), ClusterError> {
        let leading = self.check_lead()?;
        self.writer.commit(record, epoch, leading).await
    }

    async fn records(&self) -> Result<Vec<Record>, ClusterError> {
        self.writer.records().await
    }

    async fn open_recoveries(&self) -> Result<Vec<OpenRecovery>, ClusterError> {
        self.writer.open_recoveries().await
    }

    async fn publish(&self, view: &View) -> Result<(), ClusterError> {
        // A follower's view is no less true, but two writers would fight.
        let Some(epoch) = self.epoch() else { return Ok(()) };
        let snapshot = Arc::clone(&self.snapshots.borrow());
        self.writer.publish(view, &snapshot, epoch).await
    }

    async fn event(&self, notice: &Notice) -> Result<(), ClusterError> {
        self.check_lead()?;
        self.writer.event(notice).await
    }

    async fn lead(&self, identity: &str) -> Result<Leadership, ClusterError> {
        // A leader that does not know the cluster would decide about half of it.
        if self.synced.clone().wait_for(|synced| *synced).await.is_err() {
            return Err(refused("the cluster", "its objects are not read any more"));
        }
        self.step_down().await;
        // The pod's name for people, the rest so that no other process has it.
        let identity = format!("{}_{identity}", self.instance);
        let pace = *self.pace.get_or_init(|| pace_of(&Policy::default()));
        let candidate = Candidate::new(self.place.clone(), identity, pace);
        let (term, lost) = candidate.win(&self.writer).await;
        let epoch = term.epoch;
        *lock(&self.term) = Some(Arc::clone(&term));
        Ok(Leadership { epoch, lost, lasts: Lasts::new(move || term.lasts()) })
    }
}

fn pace_of(policy: &Policy) -> Pace {
    let leader = &policy.leader;
    Pace { times: Times { lease: leader.lease, renew: leader.renew }, retry: leader.retry }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these guard is replaced as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
