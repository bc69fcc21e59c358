//! Performs what the core decides. Nothing here waits: each effect becomes a task with a limit, and its result
//! comes back through the inbox.
//!
//! ```text
//!   Commit ──► store, in order for each record           ──► Committed | CommitRefused
//!   Act    ──► cluster, in order for each object         ──► Acted | ActionFailed
//!   Fence  ──► fence agent, one run for each node        ──► FenceEnded
//!   Ask    ──► fence agent's status                      ──► FenceAnswered
//!   Probe  ──► network                                   ──► Probed
//!   Guest  ──► network, the pods'; a Job of the cluster  ──► GuestAnswered
//!   DryRun ──► cluster                                   ──► DryRunAnswered
//!   Notify ──► log, metric, Event, in order per subject
//! ```
//!
//! Whatever waits in a queue is dropped when leadership is lost: see [`Epoch`].

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::Retryable;
use somersault_coordinator_core::io::{FenceResult, Prober as AskedBy, Record, Subject};
use somersault_coordinator_core::migration::{DryRun, GuestAnswer, GuestProbe, GuestQuestion};
use somersault_coordinator_core::names::NodeName;
use somersault_coordinator_core::{Action, Input, Notice, Severity};
use somersault_proto::model;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster::{Cluster, ClusterError};
use crate::convert;
use crate::fence::{FenceOrder, Fencer};
use crate::guest;
use crate::inbox::Inbox;
use crate::lanes::Lanes;
use crate::leader::Epoch;
use crate::metrics::Metrics;
use crate::probe::Prober;
use crate::store::{Store, is_passing, retries};

/// Changes of the cluster at the same time: what an API server gives one client without throttling.
const ACTIONS_SIDE_BY_SIDE: usize = 16;
/// Events at the same time; they must not crowd out the changes.
const EVENTS_SIDE_BY_SIDE: usize = 4;
/// Fence agents at the same time: more would not be granted by the storm limits, and each is a Python process.
const FENCE_RUNS_MAX: usize = 8;
/// Probes at the same time: a storm hold begins long before so many nodes are asked one by one.
const PROBES_MAX: usize = 256;
/// Guests that are asked at the same time: the core has few migrations at work, and each asks once at a time.
const GUESTS_ASKED_MAX: usize = 16;

/// What effects are performed with.
pub struct Tools<C> {
    /// The cluster.
    pub cluster: Arc<C>,
    /// Cuts power.
    pub fencer: Arc<dyn Fencer>,
    /// Asks nodes.
    pub prober: Arc<dyn Prober>,
    /// Where results go.
    pub inbox: Inbox,
    /// Whether we lead.
    pub epoch: Epoch,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// Performs effects.
pub struct Effects<C> {
    tools: Tools<C>,
    store: Store<C>,
    actions: Lanes<String>,
    events: Lanes<Subject>,
    fencing: Arc<Mutex<BTreeSet<NodeName>>>,
    fence_slots: Arc<Semaphore>,
    probe_slots: Arc<Semaphore>,
    guest_slots: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl<C: Cluster> Effects<C> {
    /// Performs with these.
    pub fn new(tools: Tools<C>) -> Self {
        let store = Store::new(Arc::clone(&tools.cluster), tools.epoch.clone(), tools.inbox.clone());
        Self {
            tools,
            store,
            actions: Lanes::new(ACTIONS_SIDE_BY_SIDE),
            events: Lanes::new(EVENTS_SIDE_BY_SIDE),
            fencing: Arc::default(),
            fence_slots: Arc::new(Semaphore::new(FENCE_RUNS_MAX)),
            probe_slots: Arc::new(Semaphore::new(PROBES_MAX)),
            guest_slots: Arc::new(Semaphore::new(GUESTS_ASKED_MAX)),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Whether we lead in this epoch at this very moment.
    pub fn leads_in(&self, epoch: u64) -> bool {
        self.tools.epoch.current() == Some(epoch)
    }

    /// Stores a record.
    pub fn commit(&self, record: Record) {
        self.store.commit(record);
    }

    /// Changes the cluster.
    pub fn act(&self, action: Action) {
        let (cluster, epoch, inbox) =
            (Arc::clone(&self.tools.cluster), self.tools.epoch.clone(), self.tools.inbox.clone());
        let under = epoch.current();
        let (object, refused) = (object_of(&action), action.clone());
        let job = async move {
            let answer = if under.is_some() && epoch.current() == under {
                let leads = || epoch.current() == under;
                match perform(cluster.as_ref(), &action, leads).await {
                    Ok(()) => Input::Acted(action),
                    Err(error) => Input::ActionFailed { why: with_causes(&error), action },
                }
            } else {
                Input::ActionFailed { action, why: "this process leads no more".to_owned() }
            };
            if let Input::ActionFailed { action, why } = &answer {
                tracing::warn!(?action, %why, "a change of the cluster failed");
            }
            inbox.input(answer).await;
        };
        if let Err(error) = self.actions.push(object, job) {
            let (inbox, why) = (self.tools.inbox.clone(), error.to_string());
            self.tasks.spawn(async move { inbox.input(Input::ActionFailed { action: refused, why }).await });
        }
    }

    /// Runs a node's fence agent, unless it runs already.
    pub fn run_fence(&self, node: NodeName, epoch: u64, timeout: Duration) {
        if !self.fencing.lock().unwrap_or_else(PoisonError::into_inner).insert(node.clone()) {
            return;
        }
        let run = uuid::Uuid::new_v4().to_string();
        tracing::warn!(%node, epoch, run, "running the fence agent");
        let order = FenceOrder { node: node.clone(), epoch, run, timeout };
        let (fencer, inbox, leads) =
            (Arc::clone(&self.tools.fencer), self.tools.inbox.clone(), self.tools.epoch.clone());
        let (fencing, slots, stop) =
            (Arc::clone(&self.fencing), Arc::clone(&self.fence_slots), self.stop.clone());
        self.tasks.spawn(async move {
            let run = async {
                let _slot = slots.acquire().await;
                if leads.current() == Some(epoch) {
                    fencer.fence(order).await
                } else {
                    FenceResult::Failed("this process leads no more".to_owned())
                }
            };
            let result = tokio::select! {
                result = run => result,
                // Dropping the run kills its processes. The committed record says that power may have been cut.
                () = stop.cancelled() => return,
            };
            match &result {
                FenceResult::ConfirmedOff => tracing::warn!(%node, "power is off, read back"),
                FenceResult::Failed(why) => tracing::error!(%node, %why, "fencing failed"),
            }
            fencing.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
            inbox.input(Input::FenceEnded { node, epoch, result }).await;
        });
    }

    /// Asks a node's fence agent for its status. The core asks few at a time.
    pub fn ask_fence(&self, node: NodeName, timeout: Duration) {
        let (fencer, inbox, stop) =
            (Arc::clone(&self.tools.fencer), self.tools.inbox.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let asked = fencer.status(node.clone(), timeout);
            let Some(answer) = stop.run_until_cancelled(asked).await else { return };
            tracing::debug!(%node, ?answer, "a fence agent was asked for its status");
            inbox.input(Input::FenceAnswered { node, answer }).await;
        });
    }

    /// Asks a node from here. One that cannot be asked now gives no answer, which proves nothing.
    pub fn probe(&self, node: model::NodeName, address: model::Address, timeout: Duration) {
        let Ok(slot) = Arc::clone(&self.probe_slots).try_acquire_owned() else {
            tracing::warn!(%node, "too many probes are out; not asking this node");
            return;
        };
        let (prober, inbox) = (Arc::clone(&self.tools.prober), self.tools.inbox.clone());
        self.tasks.spawn(async move {
            let answer = prober.probe(node.clone(), address, timeout).await;
            drop(slot);
            tracing::debug!(%node, ?answer, "probed");
            inbox.input(Input::Probed { node: convert::node(&node), by: AskedBy::Coordinator, answer }).await;
        });
    }

    /// Asks a guest. One that cannot be asked now is asked again by the core.
    pub fn ask_guest(&self, question: GuestQuestion, timeout: Duration) {
        let (cluster, inbox, stop) =
            (Arc::clone(&self.tools.cluster), self.tools.inbox.clone(), self.stop.clone());
        let slot = Arc::clone(&self.guest_slots).try_acquire_owned();
        self.tasks.spawn(async move {
            let answer = match slot {
                Ok(_slot) => {
                    let asked = answer(cluster.as_ref(), &question, timeout);
                    let Some(answer) = stop.run_until_cancelled(asked).await else { return };
                    answer
                }
                Err(_) => Err("too many guests are asked at the same time".into()),
            };
            tracing::debug!(?question, ?answer, "a guest was asked");
            inbox.input(Input::GuestAnswered { question, answer }).await;
        });
    }

    /// Asks the API server. It changes nothing; the core asks few at a time.
    pub fn dry_run(&self, question: DryRun) {
        let (cluster, inbox, stop) =
            (Arc::clone(&self.tools.cluster), self.tools.inbox.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let asked = cluster.dry_run(&question);
            let Some(answer) = stop.run_until_cancelled(asked).await else { return };
            let answer = answer.map_err(|error| with_causes(&error));
            tracing::debug!(?question, ?answer, "asked by a dry run");
            inbox.input(Input::DryRunAnswered { question, answer }).await;
        });
    }

    /// Tells people.
    pub fn notify(&self, notice: Notice) {
        log(&notice);
        self.tools.metrics.notice(notice.reason, notice.severity.as_str());
        let cluster = Arc::clone(&self.tools.cluster);
        let subject = notice.subject.clone();
        let job = async move {
            if let Err(error) = (|| cluster.event(&notice)).retry(retries()).when(is_passing).await {
                tracing::warn!(
                    reason = notice.reason,
                    error = with_causes(&error),
                    "an Event was not written"
                );
            }
        };
        if let Err(error) = self.events.push(subject, job) {
            tracing::warn!(%error, "an Event was not written");
        }
    }

    /// Lets the changes in hand end, drops those that wait, and ends every fence agent.
    pub async fn finish(&self) {
        self.stop.cancel();
        self.tasks.close();
        tokio::join!(self.store.finish(), self.actions.finish(), self.events.finish(), self.tasks.wait());
    }
}

async fn answer<C: Cluster>(cluster: &C, question: &GuestQuestion, timeout: Duration) -> GuestAnswer {
    let at = |port: NonZeroU16| SocketAddr::new(question.address, port.get());
    let answer = match &question.probe {
        GuestProbe::Tcp { port } => guest::ask(at(*port), None, timeout).await,
        GuestProbe::Http { port, path } => guest::ask(at(*port), Some(path), timeout).await,
        GuestProbe::Job { template } => {
            let asked = cluster.ask_job(question, template).await;
            return asked.unwrap_or_else(|error| Err(with_causes(&error).into()));
        }
    };
    answer.map_err(|error| with_causes(&error).into())
}

/// Tries for as long as we lead: a change that arrives late would undo what the next leader does.
async fn perform<C: Cluster>(
    cluster: &C,
    action: &Action,
    leads: impl Fn() -> bool,
) -> Result<(), ClusterError> {
    (|| cluster.act(action)).retry(retries()).when(|error| is_passing(error) && leads()).await
}

/// The object that an action changes: actions on one object keep their order.
fn object_of(action: &Action) -> String {
    match action {
        Action::Taint { node } | Action::Untaint { node } | Action::InService { node } => {
            format!("node {node}")
        }
        Action::OutOfService { proof } => format!("node {}", proof.node()),
        Action::DeleteAttachment { attachment, .. } => format!("attachment {attachment}"),
        Action::DeletePod { pod, .. } => format!("pod {pod}"),
        Action::CreateMigration { key, .. }
        | Action::CancelMigration { key }
        | Action::ProceedMigration { key } => format!("migration {key}"),
        Action::LiveMigrate { key, .. } => format!("live migration {key}"),
        Action::CreateEvacuation { name, .. } => format!("evacuation {name}"),
        Action::Stage(staging) => format!("staging {}", staging.name),
        Action::Unstage { name, .. } => format!("staging {name}"),
        Action::CreateVolume(volume) => format!("volume {}", volume.name),
        Action::RetainVolume { volume }
        | Action::DiscardVolume { volume, .. }
        | Action::CreateLock { volume, .. }
        | Action::ForgetVolume { volume }
        | Action::DeleteReleased { volume, .. }
        | Action::PrebindVolume { volume, .. } => format!("volume {volume}"),
        Action::StopVm { vm, .. } | Action::RestoreStart { vm, .. } => format!("vm {vm}"),
        Action::DeleteClaim { claim, .. }
        | Action::CreateClaim { claim, .. }
        | Action::ReimportClaim { claim, .. } => format!("claim {claim}"),
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn log(notice: &Notice) {
    let Notice { severity, subject, reason, message } = notice;
    match severity {
        Severity::Info => tracing::info!(?subject, reason, "{message}"),
        Severity::Warning => tracing::warn!(?subject, reason, "{message}"),
        Severity::Critical => tracing::error!(?subject, reason, "{message}"),
    }
}
