//! What goes into the core and what comes out of it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::evacuation::{EvacuationRecord, EvacuationSpec};
use crate::fencing::agents::{FenceAnswer, FenceRoster};
use crate::fencing::{FenceProof, FenceRecord};
use crate::fleet::{Fleet, NodeReport, Owner, SavedStart, VolumeMode};
use crate::migration::{GuestQuestion, MigrationRecord, MigrationRequest, MigrationSpec};
use crate::names::{BootId, Key, NodeName, OrderId, Uid, VolumeName};
use crate::policy::Policy;
use crate::rebuild::RebuildRecord;

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
        /// What it said, or why that is no answer; for people.
        answer: Result<String, String>,
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

/// What must survive a crash of ours.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// How far the fencing of a node has come.
    Fence(FenceRecord),
    /// How far a migration has come.
    Migration(Box<MigrationRecord>),
    /// How far an evacuation has come.
    Evacuation(EvacuationRecord),
    /// How far the rebuilding of a VM has come.
    Rebuild(Box<RebuildRecord>),
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

/// Which record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordKey {
    /// Of a node's fencing.
    Fence(NodeName),
    /// Of a migration.
    Migration(Key),
    /// Of an evacuation.
    Evacuation(String),
    /// Of a VM that is rebuilt.
    Rebuild(Key),
}

impl Record {
    /// Which record this is.
    pub fn key(&self) -> RecordKey {
        match self {
            Self::Fence(record) => RecordKey::Fence(record.node.clone()),
            Self::Migration(record) => RecordKey::Migration(record.key.clone()),
            Self::Evacuation(record) => RecordKey::Evacuation(record.name.clone()),
            Self::Rebuild(record) => RecordKey::Rebuild(record.vm.clone()),
        }
    }
}

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

/// A change to the cluster. Each is idempotent and carries its precondition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Set our `NoSchedule` taint.
    Taint {
        /// The node.
        node: NodeName,
    },
    /// Remove it.
    Untaint {
        /// The node.
        node: NodeName,
    },
    /// Force-delete a launcher or hotplug pod of a fenced node. This is the permission to run the VM elsewhere,
    /// and therefore needs the proof.
    DeletePod {
        /// Namespace and name.
        pod: Key,
        /// Precondition.
        uid: Uid,
        /// Why this is safe.
        proof: FenceProof,
    },
    /// Delete a `VolumeAttachment` of a fenced node, so that its volume can be attached elsewhere at once. Only of a
    /// volume whose VM's launcher there is gone.
    DeleteAttachment {
        /// Its name.
        attachment: String,
        /// Precondition.
        uid: Uid,
        /// Why this is safe.
        proof: FenceProof,
    },
    /// Set the out-of-service taint with our value: the pod GC then deletes every pod that is left on the node, and the
    /// attach-detach controller detaches its volumes at once.
    OutOfService {
        /// Why this is safe, and which node.
        proof: FenceProof,
    },
    /// Remove the out-of-service taint where its value is ours.
    InService {
        /// The node.
        node: NodeName,
    },
    /// Create a `VolumeMigration` for an evacuation.
    CreateMigration {
        /// Its key; derived from the evacuation, so that a second creation is noticed.
        key: Key,
        /// What it asks.
        spec: MigrationSpec,
    },
    /// Create a `VirtualMachineInstanceMigration`: KubeVirt moves the VM while it runs.
    LiveMigrate {
        /// Its key; derived from the evacuation, so that a second creation is noticed.
        key: Key,
        /// Name of the VM, in the same namespace.
        vm: String,
        /// The one node where it may go; where KubeVirt likes if `None`.
        node: Option<NodeName>,
    },
    /// Set `spec.cancelled` of a migration whose evacuation was cancelled.
    CancelMigration {
        /// Which.
        key: Key,
    },
    /// Unset `spec.preCopyOnly` of a migration whose evacuation may stop VMs now.
    ProceedMigration {
        /// Which.
        key: Key,
    },
    /// Create an `Evacuation` of a failing disk.
    CreateEvacuation {
        /// Its name; derived from the disk, so that a second creation is noticed.
        name: String,
        /// What it asks.
        spec: EvacuationSpec,
    },
    /// Set reclaim policy Retain.
    RetainVolume {
        /// Which.
        volume: VolumeName,
    },
    /// Create a `PersistentVolume`, pre-bound to its claim by namespace and name.
    CreateVolume(NewVolume),
    /// Create a claim in the namespace for such claims, for which its class's provisioner makes a volume on this node or
    /// where this node reaches it, and a pod there that holds it mounted. What is there of both stays, but for a pod that
    /// has ended.
    Stage(Box<Staging>),
    /// Delete such a pod and such a claim, at once or as soon as the pod's node lets it go.
    Unstage {
        /// Their name.
        name: String,
        /// Precondition of the claim's deletion, where it is there.
        claim_uid: Option<Uid>,
        /// The volume goes with the claim. Without, it must be on Retain, and stays.
        volume_goes: bool,
    },
    /// Set reclaim policy Delete on a volume that a provisioner has made for a claim of ours, as long as no other claim was
    /// ever bound to it: it goes with that claim, or after it.
    DiscardVolume {
        /// Which.
        volume: VolumeName,
        /// The uid of our claim.
        claim_uid: Uid,
    },
    /// Create a `PersistentVolume` that holds nothing and that no node can reach, pre-bound to a claim: while the claim
    /// is bound to it, no pod that uses the claim can run, whoever creates it.
    CreateLock {
        /// Its name.
        volume: VolumeName,
        /// The claim that it is pre-bound to.
        claim: Key,
        /// What it must offer so that a claim of this kind fits.
        template: ClaimTemplate,
    },
    /// Remove the object of a volume that we created and that no claim is bound to. Its data stays.
    ForgetVolume {
        /// Which.
        volume: VolumeName,
    },
    /// Delete the object of a volume whose claim is gone: it is Released by the claim of this uid, and on Retain. Its data
    /// stays.
    DeleteReleased {
        /// Which.
        volume: VolumeName,
        /// Precondition: the claim that it was last bound to.
        claim_uid: Uid,
    },
    /// Make the owner stop the VM.
    StopVm {
        /// Which.
        vm: Key,
        /// Through whom.
        owner: Owner,
    },
    /// Give the owner's start field back as it was.
    RestoreStart {
        /// Which.
        vm: Key,
        /// Through whom.
        owner: Owner,
        /// What was found before the stop.
        start: SavedStart,
    },
    /// Delete a claim.
    DeleteClaim {
        /// Which.
        claim: Key,
        /// Precondition.
        uid: Uid,
    },
    /// Delete a claim so that its `DataVolume` makes it anew and imports its image once more. Refused where that
    /// would not happen (no controlling `DataVolume`, or one that is pre-populated), where the volume is not on
    /// reclaim policy Retain, and where a scheduled pod uses the claim.
    ReimportClaim {
        /// Which.
        claim: Key,
        /// Precondition.
        uid: Uid,
        /// The `DataVolume` that must control it.
        data_volume: String,
        /// The volume that it is bound to, and that must be kept.
        volume: VolumeName,
    },
    /// Point a volume to a claim by `claimRef{namespace,name}`, in one patch, never through null.
    PrebindVolume {
        /// Which volume.
        volume: VolumeName,
        /// To which claim.
        claim: Key,
    },
    /// Create a claim bound to a volume.
    CreateClaim {
        /// Its key.
        claim: Key,
        /// What it asks.
        template: ClaimTemplate,
        /// `spec.volumeName`.
        volume: VolumeName,
    },
}

/// A volume to create.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct NewVolume {
    /// Its name.
    pub name: VolumeName,
    /// Its class.
    pub class: String,
    /// The one node that it is on; `None` for a shared root.
    pub node: Option<NodeName>,
    /// Absolute path below a storage root.
    pub path: String,
    /// `spec.capacity.storage`.
    pub capacity_bytes: u64,
    /// `spec.accessModes`.
    pub access_modes: Vec<String>,
    /// `spec.volumeMode`.
    pub mode: VolumeMode,
    /// The claim that it is pre-bound to.
    pub claim: Key,
}

/// A claim of ours, and the pod that holds it mounted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Staging {
    /// Name of both.
    pub name: String,
    /// The node of the pod.
    pub node: NodeName,
    /// The migration that needs it.
    pub migration: Key,
    /// What the claim asks.
    pub template: ClaimTemplate,
}

/// What a claim asks, kept over its deletion.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct ClaimTemplate {
    /// `spec.storageClassName`.
    pub class: String,
    /// `spec.resources.requests.storage`.
    pub requested_bytes: u64,
    /// `spec.accessModes`.
    pub access_modes: Vec<String>,
    /// `spec.volumeMode`.
    pub mode: VolumeMode,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`, without those of the binder, the provisioner and CDI.
    pub annotations: BTreeMap<String, String>,
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
