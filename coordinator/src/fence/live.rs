//! The fence configuration as it is now: read again when it changes, and never replaced by one that cannot be used.
//!
//! ```text
//!   file changed ── can be used ────► in use from the next run on; the roster is told
//!                └─ cannot be used ─► the one before stays in use; the roster says why
//! ```
//!
//! It is read every two seconds rather than watched: the kubelet swaps a mounted Secret by a link two folders up,
//! and a file of a few KiB costs less than a watch that misses that.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use somersault_coordinator_core::fencing::agents::{FenceAnswer, FenceRoster};
use somersault_coordinator_core::io::FenceResult;
use somersault_coordinator_core::names::NodeName;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Answer, FenceAgents, FenceConfigError, FenceOrder, Fencer};

/// See the head of this file.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Fence agents that are run on this machine. Cheap to share.
#[derive(Clone, Debug)]
pub struct LiveAgents(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    file: PathBuf,
    /// No agent may take longer.
    timeout: Duration,
    agents: RwLock<FenceAgents>,
    roster: watch::Sender<FenceRoster>,
}

impl LiveAgents {
    /// Reads the file, which must be usable.
    pub fn read(file: &Path, timeout: Duration) -> Result<Self, FenceConfigError> {
        Ok(Self::with(file, timeout, FenceAgents::read(file, timeout)?))
    }

    /// Starts without any agent where the file cannot be used yet: it may come later.
    pub fn read_or_wait(file: &Path, timeout: Duration) -> Self {
        let live = Self::with(file, timeout, FenceAgents::default());
        live.take(FenceAgents::read(file, timeout));
        live
    }

    fn with(file: &Path, timeout: Duration, agents: FenceAgents) -> Self {
        let roster = FenceRoster { agents: agents.revisions(), ..FenceRoster::default() };
        Self(Arc::new(Shared {
            file: file.to_owned(),
            timeout,
            agents: RwLock::new(agents),
            roster: watch::channel(roster).0,
        }))
    }

    /// The agents that are in use now.
    pub fn agents(&self) -> FenceAgents {
        self.0.agents.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps looking at the file until told to stop.
    pub async fn follow(&self, stop: CancellationToken) {
        loop {
            // Even where the text is the same: a program or a password file may be there now.
            let (file, timeout) = (self.0.file.clone(), self.0.timeout);
            match tokio::task::spawn_blocking(move || FenceAgents::read(&file, timeout)).await {
                Ok(read) => self.take(read),
                Err(crash) => tracing::error!(%crash, "the fence configuration was not read"),
            }
            if stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
                return;
            }
        }
    }

    fn take(&self, read: Result<FenceAgents, FenceConfigError>) {
        let (agents, problem) = match read {
            Ok(agents) => (Some(agents), None),
            Err(error) => (None, Some(with_causes(&error))),
        };
        let revisions = agents.as_ref().map(FenceAgents::revisions);
        if let Some(agents) = agents {
            *self.0.agents.write().unwrap_or_else(PoisonError::into_inner) = agents;
        }
        self.0.roster.send_if_modified(|roster| {
            let agents = revisions.unwrap_or_else(|| roster.agents.clone());
            let next = FenceRoster { agents, away: None, problem };
            if let Some(why) = next.problem.as_ref().filter(|why| roster.problem.as_ref() != Some(why)) {
                tracing::error!(%why, "the fence configuration cannot be used; the one before stays in use");
            }
            if next.agents != roster.agents {
                tracing::info!(file = %self.0.file.display(), nodes = next.agents.len(), "new fence configuration");
            }
            let changed = *roster != next;
            *roster = next;
            changed
        });
    }
}

fn with_causes(error: &FenceConfigError) -> String {
    use std::error::Error;
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

impl Fencer for LiveAgents {
    fn fence(&self, order: FenceOrder) -> Answer<FenceResult> {
        let agents = self.agents();
        Box::pin(async move { agents.fence(&order.node, order.timeout).await })
    }

    fn status(&self, node: NodeName, timeout: Duration) -> Answer<FenceAnswer> {
        let agents = self.agents();
        Box::pin(async move { agents.status(&node, timeout).await })
    }

    fn roster(&self) -> watch::Receiver<FenceRoster> {
        self.0.roster.subscribe()
    }
}
