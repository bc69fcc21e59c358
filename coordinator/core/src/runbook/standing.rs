//! How a VM stands that a runbook is about: what is proven of its nodes, and how far its recovery is.

use std::collections::BTreeMap;

use crate::fencing::ProofKind;
use crate::names::NodeName;

/// How a VM stands. The default is that nothing has happened: somebody asks what would be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Nodes that are proven dead, and by what.
    pub proven: BTreeMap<NodeName, ProofKind>,
    /// How far its recovery is.
    pub progress: Progress,
    /// The incident is over: nothing of the recovery changes any more.
    pub over: bool,
}

/// How far a recovery is, as far as it matters to what a person may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    /// Nothing has happened.
    #[default]
    Supposed,
    /// A node died; nothing of the VM was touched.
    Untouched,
    /// A person has begun to bring it back, and is not done.
    ByHand,
    /// The coordinator has begun to bring it back.
    UnderWay,
    /// It has begun, and does not get on.
    Stuck,
    /// It runs elsewhere.
    Elsewhere,
    /// Its node came back with the VM untouched.
    NodeBack,
    /// The dead node holds nothing of it any more, and it does not run.
    Unaffected,
}

impl Standing {
    /// It stands so, with nothing proven that a person would need to know.
    pub(crate) fn at(progress: Progress) -> Self {
        Self { progress, ..Self::default() }
    }

    /// The proof as people read it, where there is one.
    pub(super) fn proof(&self, node: &NodeName) -> Option<&'static str> {
        self.proven.get(node).map(|kind| match kind {
            ProofKind::PowerOffConfirmed => {
                "PowerOffConfirmed: its fence agent switched it off and read that back"
            }
            ProofKind::CloudShutdown => "CloudShutdown: the cloud says that the machine is shut down",
            ProofKind::OutOfServiceByOthers => "OutOfServiceByOthers: somebody set the out-of-service taint",
            ProofKind::NewBootId => "NewBootId: it has booted anew",
            ProofKind::HumanAttested => "HumanAttested: a person attests it",
            ProofKind::LeaseExpired => "LeaseExpired: its lease ran out and its watchdog has fired",
        })
    }
}
