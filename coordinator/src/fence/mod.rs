//! Fence agents: programs that cut a machine's power and read back that it is off.
//!
//! ```text
//!   --fence-config FILE ──► LiveAgents ── programs on this machine
//!                                ▲
//!                   fence runner ┘◄─ mTLS ── RemoteFencer ◄── --fence-runner HOST:PORT
//! ```
//!
//! The programs, their Python and the secrets of the management controllers live in an image of their own, the fence
//! runner's; the coordinator asks it. Either way the core hears which nodes have an agent, and sees one [`Fencer`].

mod config;
mod live;
mod machine;
mod process;
mod remote;
mod run;
pub mod runner;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use somersault_coordinator_core::fencing::agents::{AgentRevision, FenceAnswer, FenceRoster};
use somersault_coordinator_core::io::FenceResult;
use somersault_coordinator_core::names::NodeName;
use tokio::sync::watch;

pub use self::config::{FenceConfigError, FenceSpec};
pub use self::live::LiveAgents;
pub use self::remote::RemoteFencer;

/// What is awaited of a fencer. Boxed, so that fencers of both kinds fit where one is needed.
pub type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// An order to cut a node's power.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceOrder {
    /// Which node.
    pub node: NodeName,
    /// The epoch in which we lead.
    pub epoch: u64,
    /// Names this order: where it is repeated, it is the same run. An answer to another order says nothing.
    pub run: String,
    /// How long `off` and `status` may take together.
    pub timeout: Duration,
}

/// Cuts the power of nodes.
pub trait Fencer: Send + Sync + 'static {
    /// Powers the node off, and says so only when that was read back. Bounded in time.
    fn fence(&self, order: FenceOrder) -> Answer<FenceResult>;

    /// Asks the node's fence agent for the status of its machine; switches nothing. Bounded in time.
    fn status(&self, node: NodeName, timeout: Duration) -> Answer<FenceAnswer>;

    /// Which nodes have a fence agent, now and whenever that changes.
    fn roster(&self) -> watch::Receiver<FenceRoster>;
}

/// Runs configured fence agents by the `FenceAgentAPI` of ClusterLabs.
#[derive(Clone, Debug, Default)]
pub struct FenceAgents {
    agents: BTreeMap<NodeName, FenceAgent>,
}

/// One node's fence agent, checked.
#[derive(Clone)]
struct FenceAgent {
    program: PathBuf,
    options: Vec<(String, String)>,
    /// Read at each run, so that a password can be changed.
    password_file: Option<PathBuf>,
    deadline: Duration,
    retry_wait: Duration,
    revision: AgentRevision,
}

impl std::fmt::Debug for FenceAgent {
    /// Without the options: they hold passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FenceAgent").field("program", &self.program).finish_non_exhaustive()
    }
}

impl FenceAgents {
    /// The nodes that have one.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.agents.keys()
    }

    /// The nodes that have one, and what tells a changed entry.
    pub fn revisions(&self) -> BTreeMap<NodeName, AgentRevision> {
        self.agents.iter().map(|(node, agent)| (node.clone(), agent.revision.clone())).collect()
    }

    /// Powers the node off and reads that back, within `timeout` and the agent's own deadline.
    pub async fn fence(&self, node: &NodeName, timeout: Duration) -> FenceResult {
        match self.agents.get(node) {
            Some(agent) => run::fence(node, &agent.within(timeout)).await,
            None => FenceResult::Failed(NO_AGENT.to_owned()),
        }
    }

    /// Asks the agent for the status of its machine.
    pub async fn status(&self, node: &NodeName, timeout: Duration) -> FenceAnswer {
        match self.agents.get(node) {
            Some(agent) => run::status(node, &agent.within(timeout)).await,
            None => FenceAnswer::Failed(NO_AGENT.to_owned()),
        }
    }
}

const NO_AGENT: &str = "no fence agent is configured for this node";

impl FenceAgent {
    fn within(&self, timeout: Duration) -> Self {
        Self { deadline: self.deadline.min(timeout), ..self.clone() }
    }
}

/// No fence agents at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFencer;

impl Fencer for NoFencer {
    fn fence(&self, _: FenceOrder) -> Answer<FenceResult> {
        Box::pin(async { FenceResult::Failed(NO_AGENT.to_owned()) })
    }

    fn status(&self, _: NodeName, _: Duration) -> Answer<FenceAnswer> {
        Box::pin(async { FenceAnswer::Failed(NO_AGENT.to_owned()) })
    }

    fn roster(&self) -> watch::Receiver<FenceRoster> {
        watch::channel(FenceRoster::default()).1
    }
}
