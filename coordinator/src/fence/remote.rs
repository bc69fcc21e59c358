//! Fence agents that a fence runner has: asked over the network, at whichever runner answers first.
//!
//! ```text
//!   List, every few seconds, of every runner ──► roster (away: nobody has answered for a while)
//!   Run ── connect to all, the first counts ──► goes on ─► ended ─► result, if it is about this very order
//!            ▲                                     └ broken off, silent ──┐
//!            └── the same order again, within its deadline ◄──────────────┘
//! ```
//!
//! What breaks off says nothing about the machine: the order is repeated, at another runner where there is one, and
//! a runner that has it already goes on with it. Each call has a connection of its own, since an old one may lead to a
//! machine that has just died.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use backon::{ConstantBuilder, Retryable};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use somersault_coordinator_core::fencing::agents::{AgentRevision, FenceAnswer, FenceRoster};
use somersault_coordinator_core::io::FenceResult;
use somersault_coordinator_core::names::NodeName;
use somersault_proto::model::{
    self, FLEET_MESSAGE_BYTES_MAX, FenceEvent, FenceList, FencePower, FenceRun, FenceStatus,
};
use somersault_proto::tls::{Identity, TlsSource};
use somersault_proto::v1;
use somersault_proto::v1::fence_client::FenceClient;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::{Answer, FenceOrder, Fencer};
use crate::leader::Epoch;

/// Between two looks at which nodes have an agent.
const LIST_EVERY: Duration = Duration::from_secs(5);
/// The same while nobody answers.
const LIST_AGAIN: Duration = Duration::from_secs(1);
/// Without an answer for so long the runners are away: a new pod of theirs starts within this time.
const AWAY_AFTER: Duration = Duration::from_secs(10);
/// A runner in this cluster accepts within milliseconds; one on a dead node never does.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// One look at one runner.
const LIST_WITHIN: Duration = Duration::from_secs(2);
/// A run says every second that it goes on: three times missed, and its runner has died.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Before an order is repeated.
const REPEAT_AFTER: Duration = Duration::from_millis(250);
/// Behind a deadline: what the runner needs to end the agent and to say so.
const SLACK: Duration = Duration::from_secs(3);
/// Runners that are asked: a name that stands for more is a mistake.
const RUNNERS_MAX: usize = 8;

/// Asks fence runners. Cheap to share.
#[derive(Clone, Debug)]
pub struct RemoteFencer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Each `HOST:PORT`; a host may stand for several runners.
    addresses: Vec<String>,
    tls: TlsSource,
    epoch: Epoch,
    roster: watch::Sender<FenceRoster>,
}

/// Why a runner was not asked, or did not answer.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("{address} has no address: {source}")]
    Resolve { address: String, source: std::io::Error },
    #[error("no fence runner can be reached at {address}{why}")]
    Unreachable { address: String, why: String },
    #[error("the fence runner says: {}", .0.message())]
    Refused(Status),
    #[error("{0}; whether the machine was switched off is unknown")]
    BrokenOff(String),
}

impl CallError {
    /// Whether the same order may fare better, here or at another runner.
    fn is_passing(&self) -> bool {
        match self {
            Self::Resolve { .. } | Self::Unreachable { .. } | Self::BrokenOff(_) => true,
            // Another runner may have the entry that is meant, and a run that is in the way ends.
            Self::Refused(status) => {
                matches!(status.code(), Code::FailedPrecondition | Code::NotFound | Code::Aborted)
            }
        }
    }
}

impl RemoteFencer {
    /// Asks the runners at each `HOST:PORT`.
    pub fn new(addresses: Vec<String>, tls: TlsSource, epoch: Epoch) -> Self {
        let away = Some("it was not asked yet which nodes have a fence agent".to_owned());
        let roster = watch::channel(FenceRoster { away, ..FenceRoster::default() }).0;
        Self(Arc::new(Shared { addresses, tls, epoch, roster }))
    }

    /// Keeps asking which nodes have an agent, until told to stop.
    pub async fn follow(&self, stop: CancellationToken) {
        let mut answered = Instant::now();
        loop {
            let wait = match self.list().await {
                Ok(lists) => {
                    answered = Instant::now();
                    self.0.roster.send_if_modified(|roster| {
                        let next = merged(roster, lists);
                        let changed = *roster != next;
                        *roster = next;
                        changed
                    });
                    LIST_EVERY
                }
                Err(error) => {
                    tracing::debug!(%error, "the fence runners were not asked");
                    if answered.elapsed() >= AWAY_AFTER || self.0.roster.borrow().away.is_some() {
                        self.is_away(error.to_string());
                    }
                    LIST_AGAIN
                }
            };
            if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
        }
    }

    fn is_away(&self, why: String) {
        self.0.roster.send_if_modified(|roster| {
            let news = roster.away.as_ref() != Some(&why);
            roster.away = Some(why);
            news
        });
    }

    /// What every runner that answers says.
    async fn list(&self) -> Result<Vec<FenceList>, CallError> {
        let addresses = self.addresses().await?;
        let ask = |address: SocketAddr| async move {
            let request = v1::ListRequest { epoch: self.0.epoch.current().unwrap_or(0) };
            let mut client = self.connect(address).await?;
            let reply = timeout(LIST_WITHIN, client.list(request)).await;
            let reply = reply.map_err(|_| "it did not answer in time".to_owned())?;
            let reply = reply.map_err(|status| status.message().to_owned())?.into_inner();
            FenceList::try_from(reply).map_err(|error| error.to_string())
        };
        let answers: Vec<Result<FenceList, String>> =
            futures::future::join_all(addresses.into_iter().map(ask)).await;
        let (lists, errors): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
        if lists.is_empty() {
            return Err(self.unreachable(errors.into_iter().find_map(Result::err)));
        }
        Ok(lists.into_iter().filter_map(Result::ok).collect())
    }

    async fn run(
        &self,
        order: &FenceOrder,
        revision: &AgentRevision,
        deadline: Instant,
    ) -> Result<FenceResult, CallError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let request = FenceRun {
            node: wire_name(&order.node)?,
            epoch: order.epoch,
            run: order.run.clone(),
            deadline: left.min(order.timeout).max(Duration::from_millis(1)),
            revision: revision.0.clone(),
        };
        let mut last = None;
        let mut connecting = self.connect_all().await?;
        while let Some(connected) = connecting.next().await {
            let outcome = match connected {
                Ok(client) => follow_run(client, request.clone()).await,
                Err(why) => Err(self.unreachable(Some(why))),
            };
            match outcome {
                // The order was not taken there: somebody else may take it.
                Err(error @ (CallError::Refused(_) | CallError::Unreachable { .. }))
                    if error.is_passing() =>
                {
                    last = Some(error);
                }
                outcome => return outcome,
            }
        }
        Err(last.unwrap_or_else(|| self.unreachable(None)))
    }

    async fn ask(
        &self,
        node: &NodeName,
        revision: &AgentRevision,
        within: Duration,
    ) -> Result<FencePower, CallError> {
        let request = FenceStatus {
            node: wire_name(node)?,
            epoch: self.0.epoch.current().unwrap_or(0),
            deadline: within,
            revision: revision.0.clone(),
        };
        let mut last = None;
        let mut connecting = self.connect_all().await?;
        while let Some(connected) = connecting.next().await {
            let mut client = match connected {
                Ok(client) => client,
                Err(why) => {
                    last = Some(self.unreachable(Some(why)));
                    continue;
                }
            };
            match client.status(v1::StatusRequest::from(request.clone())).await {
                Ok(reply) => {
                    return FencePower::try_from(reply.into_inner())
                        .map_err(|error| CallError::Refused(Status::internal(error.to_string())));
                }
                Err(status) => last = Some(CallError::Refused(status)),
            }
        }
        Err(last.unwrap_or_else(|| self.unreachable(None)))
    }

    /// Every runner that there is, in the order in which they accept.
    async fn connect_all(
        &self,
    ) -> Result<FuturesUnordered<impl Future<Output = Result<FenceClient<Channel>, String>>>, CallError> {
        Ok(self.addresses().await?.into_iter().map(|address| self.connect(address)).collect())
    }

    async fn connect(&self, address: SocketAddr) -> Result<FenceClient<Channel>, String> {
        let tls = self.0.tls.client(&Identity::FenceRunner);
        let connect = async {
            Endpoint::from_shared(format!("https://{address}"))?
                .tcp_nodelay(true)
                .tls_config(tls)?
                .connect()
                .await
        };
        match timeout(CONNECT_WITHIN, connect).await {
            Ok(Ok(channel)) => Ok(FenceClient::new(channel)
                .max_decoding_message_size(FLEET_MESSAGE_BYTES_MAX)
                .max_encoding_message_size(FLEET_MESSAGE_BYTES_MAX)),
            Ok(Err(error)) => Err(format!("{address}: {}", root_cause(&error))),
            Err(_) => Err(format!("{address} does not accept within {CONNECT_WITHIN:?}")),
        }
    }

    async fn addresses(&self) -> Result<Vec<SocketAddr>, CallError> {
        let mut found = Vec::new();
        let mut failed = None;
        for address in &self.0.addresses {
            match timeout(CONNECT_WITHIN, tokio::net::lookup_host(address)).await {
                Ok(Ok(resolved)) => found.extend(resolved),
                Ok(Err(source)) => failed = Some(CallError::Resolve { address: address.clone(), source }),
                Err(_) => {
                    let source = std::io::ErrorKind::TimedOut.into();
                    failed = Some(CallError::Resolve { address: address.clone(), source });
                }
            }
        }
        found.truncate(RUNNERS_MAX);
        match failed {
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    fn unreachable(&self, why: Option<String>) -> CallError {
        let why = why.map_or_else(String::new, |why| format!(": {why}"));
        CallError::Unreachable { address: self.0.addresses.join(", "), why }
    }

    fn revision(&self, node: &NodeName) -> Result<AgentRevision, String> {
        let roster = self.0.roster.borrow();
        let unknown = || "no fence runner has a fence agent for this node".to_owned();
        roster.agents.get(node).cloned().ok_or_else(unknown)
    }
}

/// Listens to one run until it ends.
async fn follow_run(mut client: FenceClient<Channel>, run: FenceRun) -> Result<FenceResult, CallError> {
    let started = timeout(SILENCE_MAX, client.run(v1::RunRequest::from(run.clone()))).await;
    let started = started.map_err(|_| silent())?;
    let mut events = match started {
        Ok(response) => response.into_inner(),
        Err(status) if is_lost(&status) => return Err(CallError::BrokenOff(broken(&status))),
        Err(status) => return Err(CallError::Refused(status)),
    };
    loop {
        let event = timeout(SILENCE_MAX, events.message()).await.map_err(|_| silent())?;
        let event = event.map_err(|status| CallError::BrokenOff(broken(&status)))?;
        let event =
            event.ok_or_else(|| CallError::BrokenOff("the fence runner ended the call".to_owned()))?;
        match FenceEvent::try_from(event) {
            Ok(FenceEvent::GoesOn) => {}
            Ok(FenceEvent::Ended(ended)) => {
                let ours = (&ended.node, ended.epoch, &ended.run) == (&run.node, run.epoch, &run.run);
                return match ended.result {
                    _ if !ours => Err(CallError::Refused(Status::internal("it answered to another order"))),
                    Ok(()) => Ok(FenceResult::ConfirmedOff),
                    Err(why) => Ok(FenceResult::Failed(why)),
                };
            }
            Err(error) => return Err(CallError::Refused(Status::internal(error.to_string()))),
        }
    }
}

/// The transport's word, not the runner's.
fn is_lost(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded)
}

fn silent() -> CallError {
    CallError::BrokenOff(format!("the fence runner was silent for {SILENCE_MAX:?}"))
}

fn broken(status: &Status) -> String {
    format!("the call to the fence runner broke off ({})", status.message())
}

/// Runners read a changed configuration at different times. Where two differ, the entry that is new to us counts: only
/// a runner that has it will act on it.
fn merged(before: &FenceRoster, lists: Vec<FenceList>) -> FenceRoster {
    let mut next = FenceRoster::default();
    for list in lists {
        for model::FencedNode { node, revision } in list.nodes {
            let (node, revision) = (NodeName(node.into()), AgentRevision(revision));
            let known = before.agents.get(&node) == Some(&revision);
            if !known || !next.agents.contains_key(&node) {
                next.agents.insert(node, revision);
            }
        }
        next.problem = next.problem.or(list.problem);
    }
    next
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

/// A Node object whose name no certificate can hold has no fence agent either.
fn wire_name(node: &NodeName) -> Result<model::NodeName, CallError> {
    let malformed = |error: model::Malformed| CallError::Refused(Status::invalid_argument(error.to_string()));
    node.as_str().parse().map_err(malformed)
}

impl Fencer for RemoteFencer {
    fn fence(&self, order: FenceOrder) -> Answer<FenceResult> {
        let this = self.clone();
        Box::pin(async move {
            let revision = match this.revision(&order.node) {
                Ok(revision) => revision,
                Err(why) => return FenceResult::Failed(why),
            };
            let deadline = Instant::now() + order.timeout;
            let last = std::sync::Mutex::new(String::new());
            let note = |error: &CallError, _: Duration| {
                tracing::warn!(node = %order.node, run = order.run, %error, "the order is repeated");
                *last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = error.to_string();
            };
            let repeat = (|| this.run(&order, &revision, deadline))
                .retry(ConstantBuilder::default().with_delay(REPEAT_AFTER).without_max_times())
                .when(CallError::is_passing)
                .notify(note);
            match timeout_at(deadline + SLACK, repeat).await {
                Ok(Ok(result)) => result,
                Ok(Err(error)) => FenceResult::Failed(error.to_string()),
                Err(_) => {
                    let last = last.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
                    FenceResult::Failed(format!("no end within {:?}; {last}", order.timeout))
                }
            }
        })
    }

    fn status(&self, node: NodeName, within: Duration) -> Answer<FenceAnswer> {
        let this = self.clone();
        Box::pin(async move {
            let revision = match this.revision(&node) {
                Ok(revision) => revision,
                Err(why) => return FenceAnswer::Failed(why),
            };
            match timeout(within + SLACK, this.ask(&node, &revision, within)).await {
                Ok(Ok(FencePower::On)) => FenceAnswer::On,
                Ok(Ok(FencePower::Off)) => FenceAnswer::Off,
                Ok(Ok(FencePower::Unknown(why))) => FenceAnswer::Failed(why),
                Ok(Err(error)) => FenceAnswer::Failed(error.to_string()),
                Err(_) => FenceAnswer::Failed(format!("no answer within {within:?}")),
            }
        })
    }

    fn roster(&self) -> watch::Receiver<FenceRoster> {
        self.0.roster.subscribe()
    }
}
