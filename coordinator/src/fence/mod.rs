//! Fence agents: programs that cut a machine's power and read back that it is off.

mod config;
mod process;
mod run;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use somersault_coordinator_core::io::FenceResult;
use somersault_coordinator_core::names::NodeName;

pub use self::config::{FenceConfigError, FenceSpec};

/// Cuts the power of nodes.
pub trait Fencer: Send + Sync + 'static {
    /// Powers the node off, and says so only when that was read back. Bounded in time.
    fn fence(&self, node: NodeName) -> Pin<Box<dyn Future<Output = FenceResult> + Send>>;
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
    deadline: Duration,
    retry_wait: Duration,
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
}

impl Fencer for FenceAgents {
    fn fence(&self, node: NodeName) -> Pin<Box<dyn Future<Output = FenceResult> + Send>> {
        match self.agents.get(&node) {
            Some(agent) => {
                let agent = agent.clone();
                Box::pin(async move { run::fence(&node, &agent).await })
            }
            None => Box::pin(async {
                FenceResult::Failed("no fence agent is configured for this node".to_owned())
            }),
        }
    }
}
