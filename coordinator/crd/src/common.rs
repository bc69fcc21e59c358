//! Pieces that several kinds share.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The longest name of a Kubernetes object (RFC 1123 subdomain).
pub const NAME_LENGTH_MAX: usize = 253;

/// A namespaced object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct ObjectKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Evidence that nothing on a node can run or write any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Proof {
    /// The fence agent switched the machine off, and read the power state back as off.
    PowerOffConfirmed,
    /// The cloud's own controller says that the machine is shut down.
    CloudShutdown,
    /// A person or another remediator has set the out-of-service taint.
    OutOfServiceByOthers,
    /// The node came back in another boot.
    NewBootId,
    /// A person's word.
    HumanAttested,
    /// The lease of a node with an armed watchdog ran out.
    LeaseExpired,
}

/// One disk of a VM, and whether it could be had without its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskFinding {
    /// Volume name in the VM.
    pub disk: String,
    /// Its claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
    /// Its PersistentVolume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// Its storage class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Where its data is.
    pub locality: Locality,
    /// The node that holds the data, where the locality is `Local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// How this is known.
    #[serde(default)]
    pub because: String,
}

/// Where the data of a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Locality {
    /// On one node only.
    Local,
    /// Reached from other nodes too.
    Network,
    /// Made anew at every start.
    Rebuildable,
    /// Gone with every stop of the VM.
    Lost,
    /// Nobody can tell; treated as if it were on one node.
    Unknown,
}

/// A destination of disks; exactly one of the two is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, kube::KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.node) != has(self.storageClass)")
        .message("set exactly one of node and storageClass")
)]
pub struct Destination {
    /// Another node; the storage class stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = NAME_LENGTH_MAX))]
    pub node: Option<String>,
    /// Another storage class; where it is a local one, a node that fits is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = NAME_LENGTH_MAX))]
    pub storage_class: Option<String>,
}
