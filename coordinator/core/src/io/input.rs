//! What comes into the core: what was heard, read, asked for and answered.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Action;
use super::{Record, RecordKey};
use crate::evacuation::EvacuationSpec;
use crate::fencing::agents::{FenceAnswer, FenceRoster};
use crate::fleet::{Fleet, NodeReport};
use crate::migration::{DryRun, DryRunAnswer, GuestAnswer, GuestQuestion, MigrationRequest};
use crate::names::{BootId, Key, NodeName, OrderId};
use crate::policy::Policy;

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A heartbeat arrived on a stream whose certificate names the node.
    Beat {
        /// Who.
        node: NodeName,
        /// In which boot.
        boot_id: BootId,
        /// Which one of its stream.
        sequence: u64,
    },
    /// The agent says that a grant reached it. Only watchdog fencing needs to know.
    GrantHeld {
        /// Who.
        node: NodeName,
        /// In which boot.
        boot_id: BootId,
        /// The beat that the grant answered.
        sequence: u64,
    },
    /// The agent says that it stops on purpose.
    Goodbye {
        /// Who.
        node: NodeName,
        /// In which boot.
        boot_id: BootId,
    },
    /// An agent's report.
    Report {
        /// Who.
        node: NodeName,
        /// What.
        report: Box<NodeReport>,
    },
    /// How an order fares.
    Progress {
        /// Who.
        node: NodeName,
        /// Which order.
        order: OrderId,
        /// How.
        state: OrderState,
    },
    /// A probe was answered, or timed out.
    Probed {
        /// The node in question.
        node: NodeName,
        /// Who asked.
        by: Prober,
        /// What came back.
        answer: Reachability,
    },
    /// The node's kubelet renewed its Lease object (seen by our own watch, timed by our own clock).
    KubeletRenewed {
        /// Whose.
        node: NodeName,
    },
    /// The cluster's objects were read anew.
    Fleet(Box<Fleet>),
    /// What people ask for was read anew.
    Requests(Box<Requests>),
    /// The policy changed. What may change while we run does, from now on: see [`Policy::adopt`].
    Policy(Box<Policy>),
    /// The fence agent's run ended.
    FenceEnded {
        /// The node.
        node: NodeName,
        /// Leader epoch of the run.
        epoch: u64,
        /// How it ended.
        result: FenceResult,
    },
    /// Which nodes have a fence agent was read anew.
    FenceAgents(Box<FenceRoster>),
    /// A fence agent answered [`Effect::AskFence`].
    FenceAnswered {
        /// The node.
        node: NodeName,
        /// What it said.
        answer: FenceAnswer,
    },
    /// A guest answered [`Effect::AskGuest`], or did not.
    GuestAnswered {
        /// What it was asked.
        question: GuestQuestion,
        /// What it said, or why that is no answer.
        answer: GuestAnswer,
    },
    /// The API server answered [`Effect::DryRun`], or could not.
    DryRunAnswered {
        /// What it was asked.
        question: DryRun,
        /// What it said, or why it could not say; for people.
        answer: Result<DryRunAnswer, String>,
    },
    /// We lead now. The records were listed after the lease was acquired.
    Leading {
        /// Our epoch, larger than every epoch before.
        epoch: u64,
        /// Everything committed by leaders before us.
        records: Vec<Record>,
        /// What leaders before us have shown, and is not over.
        recoveries: Vec<OpenRecovery>,
    },
    /// We lead no more.
    Deposed,
    /// Our own loop, or the API, stood still this long: suspicion of that time is worth nothing.
    Stalled(Duration),
    /// A record is stored. Answers to commits that were sent before the last [`Input::Leading`] must not be
    /// delivered after it.
    Committed(RecordKey),
    /// A record was refused: somebody else changed it, or we lead no more. What somebody else wrote must reach
    /// the core: list the records again and send [`Input::Leading`] anew (the same epoch will do), or stop
    /// leading; never just read the newer version and let the next commit overwrite it.
    CommitRefused(RecordKey),
    /// An action was performed.
    Acted(Action),
    /// An action failed for good (the shell has retried what can be retried).
    ActionFailed {
        /// Which.
        action: Action,
        /// Why, for people.
        why: String,
    },
    /// Time passed: see `next_deadline`.
    Tick,
}

/// What people asked for, level-triggered: the whole picture each time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Requests {
    /// `VolumeMigration` objects.
    pub migrations: BTreeMap<Key, MigrationRequest>,
    /// `Evacuation` objects.
    pub evacuations: BTreeMap<String, EvacuationSpec>,
    /// Human proofs by node.
    pub attestations: BTreeMap<NodeName, Attestation>,
    /// Changes each time somebody releases a storm hold.
    pub hold_release: Option<String>,
}

/// A person's word that a node cannot run or write any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation {
    /// The boot that it is about; an attestation never covers a later boot.
    pub boot_id: BootId,
    /// Who gave it.
    pub by: String,
    /// When, as it was written: the same word said again is another one.
    pub at: Option<String>,
}

/// How an order to an agent fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderState {
    /// Under way.
    Running {
        /// Bytes done.
        done_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
        /// Bytes per second.
        rate_bytes_per_s: u64,
    },
    /// Done and verified.
    Done {
        /// BLAKE3 root, after the read back.
        root_hash: [u8; 32],
        /// Bytes in all.
        total_bytes: u64,
        /// Bytes that crossed the wire.
        sent_bytes: u64,
        /// How long it took.
        elapsed: Duration,
        /// What the source could not read, by file and range, in words: the copy has zeroes there.
        unreadable: Option<String>,
    },
    /// Failed.
    Failed {
        /// `CamelCase` reason.
        reason: String,
        /// For people.
        message: String,
    },
}

/// Who probes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Prober {
    /// This coordinator.
    Coordinator,
    /// Another node's agent.
    Peer(NodeName),
}

/// What a probe found, best last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reachability {
    /// No answer.
    Silent,
    /// Something answered, but not the agent: the kernel lives.
    Kernel,
    /// The agent answered.
    Agent,
}

/// How a fence agent's run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FenceResult {
    /// `off` succeeded and `status`, asked afterwards, says off.
    ConfirmedOff,
    /// Anything else, with the reason for people.
    Failed(String),
}

/// The recovery of a VM of a dead node that is shown as neither over nor recovered. It is no record: without it nothing
/// goes wrong but that its runbook, which nobody writes any more, goes on to tell people what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRecovery {
    /// The VM.
    pub vm: Key,
    /// The node that died.
    pub node: NodeName,
}
