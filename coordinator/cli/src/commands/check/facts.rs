//! What `check` looks at, before anything is concluded from it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use somersault_coordinator_core::names::NodeName;
use somersault_crd::node_health::NodeHealthStatus;

/// Something that was looked at, or why it could not be.
pub type Seen<T> = Result<T, String>;

/// Everything that was seen.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Our clock, for certificates.
    pub now: Timestamp,
    /// Version of this program.
    pub version: &'static str,
    /// The API server.
    pub server: Server,
    /// Our definitions.
    pub definitions: Seen<Vec<Definition>>,
    /// Whether our namespace exists.
    pub namespace: Seen<bool>,
    /// What the coordinator's account may do, of what it needs.
    pub coordinator_rights: Seen<Vec<Verdict>>,
    /// What the person who asks may do, of what the commands need.
    pub own_rights: Seen<Vec<Verdict>>,
    /// Whether the admission policy that locks claims is there, and bound.
    pub claim_lock: Seen<bool>,
    /// Whether the one that guards our records is there and bound, as it was installed.
    pub record_guard: Seen<bool>,
    /// The coordinator's Deployment; `None` where there is none.
    pub coordinator: Seen<Option<Workload>>,
    /// Whether one leads; `None` where that cannot be known.
    pub led: Seen<Option<bool>>,
    /// The agents' `DaemonSet`; `None` where there is none.
    pub agents: Seen<Option<Workload>>,
    /// The fence runner; `None` where none is installed.
    pub fence_runner: Seen<Option<FenceRunner>>,
    /// When the certificate of our own authority ends; `None` where there is none.
    pub authority_until: Seen<Option<Timestamp>>,
    /// The objects that decisions are made from, and what is made of them.
    pub cluster: Seen<Cluster>,
    /// `KubeVirt`, as its own object says; `None` where there is none.
    pub kubevirt: Seen<Option<KubeVirt>>,
}

impl Facts {
    /// Whether nobody keeps up to date what the coordinator said: what it left in its objects is no news then. (Where
    /// that cannot be known, that is told of its own.)
    pub fn is_old_news(&self) -> bool {
        matches!(self.coordinator, Ok(None)) || matches!(self.led, Ok(Some(false)))
    }
}

/// The API server.
#[derive(Clone, Debug)]
pub struct Server {
    /// Where.
    pub address: String,
    /// `v1.36.3`.
    pub version: String,
    /// Its major and minor number, where they are numbers.
    pub number: Option<(u32, u32)>,
    /// Who we are for it.
    pub user: Seen<String>,
}

/// A `CustomResourceDefinition` of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: DefinitionState,
}

/// How a definition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefinitionState {
    /// Not there.
    Missing,
    /// There, but not served yet.
    NotEstablished,
    /// Served, with another schema than this program's.
    Differs,
    /// Served, with the schema that this program was built with.
    Same,
}

/// Whether somebody may do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What: `patch nodes`, `get leases.coordination.k8s.io in somersault-system`.
    pub right: String,
    /// Whether.
    pub allowed: bool,
}

/// Pods of one kind.
#[derive(Clone, Debug, Default)]
pub struct Workload {
    /// Whether these numbers are about the newest version of it.
    pub observed: bool,
    /// How many there should be.
    pub wanted: i32,
    /// How many are ready.
    pub ready: i32,
    /// The pods.
    pub pods: Vec<PodSeen>,
}

/// The fence runner.
#[derive(Clone, Debug, Default)]
pub struct FenceRunner {
    /// Its Deployment.
    pub workload: Workload,
    /// Whether the Secret is there without which its pods do not start; `None` where we may not look.
    pub has_secret: Option<bool>,
    /// Whether the coordinator is told to ask it: an overlay without the component, applied over one with it, leaves the
    /// runner and asks nobody.
    pub is_asked: bool,
}

/// A pod.
#[derive(Clone, Debug, Default)]
pub struct PodSeen {
    /// Its name.
    pub name: String,
    /// Where it runs; empty while it is not placed.
    pub node: String,
    /// Whether it is ready.
    pub ready: bool,
    /// Why it is not, where that is told.
    pub trouble: String,
    /// Version by its label or its image's tag, where it has one.
    pub version: Option<String>,
}

/// The objects that decisions are made from, and what is made of them.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Each node.
    pub nodes: Vec<NodeSeen>,
    /// How many VMs there are.
    pub vms: usize,
    /// Claims whose place nobody can tell.
    pub unplaced: Vec<Unplaced>,
    /// Local volumes below no storage root of their nodes, whose agents tell of their roots: how many, by class and folder.
    pub unlisted: BTreeMap<(String, String), usize>,
    /// Objects that could not be read.
    pub problems: Vec<String>,
    /// The policy, where there is one.
    pub policy: Option<PolicySeen>,
}

/// The policy.
#[derive(Clone, Debug)]
pub struct PolicySeen {
    /// `safe` or `fast`.
    pub profile: String,
    /// What is wrong with it, if anything; `None` while the coordinator has not looked at it.
    pub accepted: Option<Result<(), String>>,
}

/// A node.
#[derive(Clone, Debug)]
pub struct NodeSeen {
    /// Its name.
    pub name: NodeName,
    /// Whether Kubernetes calls it ready.
    pub ready: bool,
    /// Whether somebody else has taken it out of service by Kubernetes' taint.
    pub out_of_service: bool,
    /// What the coordinator says of it; `None` where it has never said anything.
    pub health: Option<NodeHealthStatus>,
    /// When its agent's certificate ends, as last told.
    pub certificate_until: Option<Timestamp>,
}

/// A bound claim whose volume's place nobody can tell.
#[derive(Clone, Debug)]
pub struct Unplaced {
    /// Storage class; empty where it has none.
    pub class: String,
    /// `namespace/name` of the claim.
    pub claim: String,
    /// Name of the volume.
    pub volume: String,
    /// Why nobody can tell.
    pub because: String,
    /// The policy says that its class is local; what is missing is the node.
    pub declared: bool,
}

/// `KubeVirt`.
#[derive(Clone, Debug)]
pub struct KubeVirt {
    /// `status.phase`: `Deployed` when all is well.
    pub phase: String,
    /// `status.observedKubeVirtVersion`, such as `v1.9.0`.
    pub version: String,
}
