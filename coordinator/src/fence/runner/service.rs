//! The `Fence` service: who may call, and what is made of calls. The calls are described in `fence.proto`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, stream};
use somersault_coordinator_core::fencing::agents::FenceAnswer;
use somersault_coordinator_core::io::FenceResult;
use somersault_coordinator_core::names::NodeName;
use somersault_proto::model::{
    FenceEnded, FenceEvent, FenceList, FencePower, FenceRun, FenceStatus, FencedNode, limits,
};
use somersault_proto::tls::{Identity, peer_identity};
use somersault_proto::v1;
use somersault_proto::v1::fence_server::Fence;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Request, Response, Status};

use super::super::{FenceOrder, Fencer, LiveAgents};
use super::metrics::RunnerMetrics;
use super::runs::{Outcome, RunRefused, Runs};

/// How often a caller is told that its run goes on, so that it soon notices a runner that died.
pub const GOES_ON_EVERY: Duration = Duration::from_secs(1);
/// Agents that are asked for their status at the same time, beside the runs.
const STATUSES_MAX: usize = 8;

/// Serves coordinators.
pub struct FenceService {
    agents: LiveAgents,
    runs: Runs,
    statuses: Semaphore,
    metrics: Arc<RunnerMetrics>,
}

type Events = Pin<Box<dyn Stream<Item = Result<v1::RunEvent, Status>> + Send>>;

impl FenceService {
    /// With these agents.
    pub fn new(agents: LiveAgents, runs: Runs, metrics: Arc<RunnerMetrics>) -> Self {
        Self { agents, runs, statuses: Semaphore::new(STATUSES_MAX), metrics }
    }

    fn admit<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let refused = match peer_identity(request) {
            Ok(Identity::Coordinator) => return Ok(()),
            Ok(other) => Status::permission_denied(format!("{} is not a coordinator", other.san())),
            Err(error) => error.into(),
        };
        let from = request.remote_addr().map(|address| address.to_string()).unwrap_or_default();
        tracing::warn!(from, why = refused.message(), "refused a call");
        self.metrics.refused();
        Err(refused)
    }

    /// The caller means an entry that is the one in use here.
    fn check_revision(&self, node: &NodeName, wanted: &str) -> Result<(), Status> {
        let roster = self.agents.roster();
        let roster = roster.borrow();
        match roster.agents.get(node) {
            None => Err(Status::not_found(format!("no fence agent is configured for {node}"))),
            Some(revision) if revision.0 != wanted => Err(Status::failed_precondition(format!(
                "the entry of {node} has changed, or has not changed yet"
            ))),
            Some(_) => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl Fence for FenceService {
    type RunStream = Events;

    async fn run(&self, request: Request<v1::RunRequest>) -> Result<Response<Events>, Status> {
        self.admit(&request)?;
        let run = FenceRun::try_from(request.into_inner())?;
        let node = NodeName(run.node.clone().into());
        self.check_revision(&node, &run.revision)?;
        let deadline = Instant::now() + run.deadline;
        let order = FenceOrder { node, epoch: run.epoch, run: run.run.clone(), timeout: run.deadline };
        let outcome = self.runs.order(order, self.agents.agents(), deadline).map_err(|refused| {
            tracing::warn!(node = %run.node, run = run.run, %refused, "refused an order");
            self.metrics.refused();
            match refused {
                RunRefused::OldEpoch { .. } => Status::permission_denied(refused.to_string()),
                RunRefused::Busy { .. } => Status::aborted(refused.to_string()),
            }
        })?;
        Ok(Response::new(Box::pin(events(run, outcome))))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        self.admit(&request)?;
        let FenceStatus { node, epoch, revision, deadline } = FenceStatus::try_from(request.into_inner())?;
        self.runs.saw(epoch);
        let node = NodeName(node.into());
        self.check_revision(&node, &revision)?;
        if self.runs.is_under_way(&node) {
            // Controllers allow few sessions, and what it says now is true for a moment only.
            return Err(Status::aborted(format!("{node} is being switched off")));
        }
        let agents = self.agents.agents();
        let until = Instant::now() + deadline;
        let answer = match timeout_at(until, self.statuses.acquire()).await {
            Ok(_slot) => agents.status(&node, until.saturating_duration_since(Instant::now())).await,
            Err(_) => FenceAnswer::Failed("too many agents are being asked".to_owned()),
        };
        self.metrics.answered(&answer);
        Ok(Response::new(v1::StatusReply::from(match answer {
            FenceAnswer::On => FencePower::On,
            FenceAnswer::Off => FencePower::Off,
            FenceAnswer::Failed(why) => FencePower::Unknown(fit(&why)),
        })))
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListReply>, Status> {
        self.admit(&request)?;
        self.runs.saw(request.into_inner().epoch);
        let roster = self.agents.roster().borrow().clone();
        let nodes = roster.agents.into_iter().filter_map(|(node, revision)| {
            Some(FencedNode { node: node.as_str().parse().ok()?, revision: revision.0 })
        });
        let list = FenceList { nodes: nodes.collect(), problem: roster.problem.map(|why| fit(&why)) };
        Ok(Response::new(list.into()))
    }
}

/// That it goes on, again and again, then how it ended.
fn events(run: FenceRun, outcome: Outcome) -> impl Stream<Item = Result<v1::RunEvent, Status>> {
    stream::unfold(Some((run, outcome, Duration::ZERO)), |state| async move {
        let (run, mut outcome, wait) = state?;
        // The first word comes at once: the caller then knows that the order is taken.
        let ended = timeout(wait, outcome.wait_for(Option::is_some)).await;
        let ended = ended.map(|seen| seen.map(|result| result.clone()));
        match ended {
            Err(_) => Some((Ok(FenceEvent::GoesOn.into()), Some((run, outcome, GOES_ON_EVERY)))),
            Ok(Err(_)) => Some((Err(Status::unavailable("the runner is stopping")), None)),
            Ok(Ok(ended)) => {
                let result = match ended {
                    Some(FenceResult::ConfirmedOff) => Ok(()),
                    Some(FenceResult::Failed(why)) => Err(fit(&why)),
                    None => Err("it is not known how it ended".to_owned()),
                };
                let FenceRun { node, epoch, run, .. } = run;
                Some((Ok(FenceEvent::Ended(FenceEnded { node, epoch, run, result }).into()), None))
            }
        }
    })
}

/// As the wire takes it: one line of bounded length.
fn fit(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if line.len() + c.len_utf8() > limits::MESSAGE_BYTES_MAX {
            break;
        }
        line.push(c);
    }
    line
}
