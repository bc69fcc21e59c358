//! What goes out of the core.

use std::time::Duration;

use super::Action;
use super::Prober;
use super::Record;
use crate::migration::{DryRun, GuestQuestion, Unreadable};
use crate::names::{Key, NodeName, OrderId, Uid};

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Answer this beat.
    Grant {
        /// To whom.
        node: NodeName,
        /// The beat.
        sequence: u64,
    },
    /// Ask whether a node is reachable; the answer comes back as [`Input::Probed`].
    Probe {
        /// The node in question.
        node: NodeName,
        /// Who asks.
        by: Prober,
        /// When to give up.
        timeout: Duration,
    },
    /// Store the record by compare-and-swap, under our epoch.
    Commit(Record),
    /// Run the node's fence agent; the end comes back as [`Input::FenceEnded`]. A second order for a node
    /// whose agent still runs is ignored.
    RunFence {
        /// The node.
        node: NodeName,
        /// Our epoch.
        epoch: u64,
        /// How long `off` and `status` may take together.
        timeout: Duration,
    },
    /// Ask the node's fence agent for its status, which switches nothing; what it says comes back as
    /// [`Input::FenceAnswered`]. The one effect that followers have too.
    AskFence {
        /// The node.
        node: NodeName,
        /// How long it may take.
        timeout: Duration,
    },
    /// Ask a guest; the end comes back as [`Input::GuestAnswered`].
    AskGuest {
        /// Whom, where and what.
        question: GuestQuestion,
        /// When to give up.
        timeout: Duration,
    },
    /// Ask the API server whether it would make these; what it says comes back as [`Input::DryRunAnswered`].
    DryRun(DryRun),
    /// Change the cluster.
    Act(Action),
    /// Send an order to an agent. Repeated until its progress says done or failed.
    Order {
        /// To whom.
        node: NodeName,
        /// Its identity.
        id: OrderId,
        /// What to do.
        order: Order,
    },
    /// Tell people: an Event on the object, a log line, a metric. Sent on transitions only.
    Notify(Notice),
}

/// An order to an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Copy a volume from its source to here.
    Pull {
        /// Names the partial copy.
        transfer: String,
        /// Where the source is.
        source_node: NodeName,
        /// Absolute path of the source volume there.
        source_path: String,
        /// Absolute path of the target volume here.
        target_path: String,
        /// Nobody writes to the source any more.
        final_: bool,
        /// What the source cannot read fails the copy, or becomes zeroes.
        unreadable: Unreadable,
    },
    /// Stop a copy.
    CancelPull {
        /// Which.
        transfer: String,
        /// Remove what has arrived.
        drop_partial: bool,
        /// Where it goes, while that is known.
        target_path: Option<String>,
    },
    /// Remove a volume for good: nobody uses it, and no object of the cluster names it any more.
    RemoveVolume {
        /// Absolute path of its folder.
        path: String,
    },
    /// The node was fenced and yet lives: stop these launchers, which run elsewhere now.
    StopLaunchers {
        /// Pod uids.
        pods: Vec<Uid>,
    },
}

/// Something that people should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// How bad.
    pub severity: Severity,
    /// About what.
    pub subject: Subject,
    /// `CamelCase`; Event reason and metric label.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know.
    Info,
    /// Somebody should look.
    Warning,
    /// Somebody must act.
    Critical,
}

impl Severity {
    /// Metric and alert label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// What a notice is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A node.
    Node(NodeName),
    /// A VM.
    Vm(Key),
    /// A `VolumeMigration`.
    Migration(Key),
    /// An `Evacuation`.
    Evacuation(String),
    /// The coordinator itself.
    Coordinator,
}
