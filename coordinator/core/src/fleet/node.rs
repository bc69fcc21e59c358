//! Node objects, their taints, and what tolerates a taint.

use std::collections::BTreeMap;

use super::Resources;
use crate::names::BootId;

/// A Node object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// Condition Ready is True.
    pub ready: bool,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    /// `spec.taints`.
    pub taints: Vec<Taint>,
    /// `status.nodeInfo.bootID`.
    pub boot_id: Option<BootId>,
    /// `status.allocatable`.
    pub allocatable: Resources,
    /// Annotation [`EVACUATE_ANNOTATION`], as it is.
    pub evacuate: Option<String>,
    /// `host` or `host:port` of the first `InternalIP`, for probes of the kernel.
    pub address: Option<String>,
}

/// Annotation on a cordoned node that asks for its evacuation: `PreCopyOnly` or `Now`.
pub const EVACUATE_ANNOTATION: &str = "somersault.novasphere.dev/evacuate";
/// Label that holds the node's operating system, by Go's name for it.
pub const OS_LABEL: &str = "kubernetes.io/os";
/// Label that holds the node's failure zone.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Taint of a cloud controller: the machine is shut down.
pub const CLOUD_SHUTDOWN_TAINT: &str = "node.cloudprovider.kubernetes.io/shutdown";
/// Taint of a person or another remediator: the machine is out of service.
pub const OUT_OF_SERVICE_TAINT: &str = "node.kubernetes.io/out-of-service";
/// Value of the out-of-service taint where we have set it ourselves.
pub const OUT_OF_SERVICE_OURS: &str = "somersault";
/// Kubernetes' own taint of a node whose kubelet is silent: 40 s after its last sign of life, until it is ready again.
pub const KUBERNETES_UNREACHABLE_TAINT: &str = "node.kubernetes.io/unreachable";
/// Our own `NoSchedule` taint, from the declaration until Quarantine ends.
pub const FENCING_TAINT: &str = "somersault.novasphere.dev/unreachable";

impl Node {
    /// The failure zone, or `""` where nobody labelled one: unlabelled nodes share a zone.
    pub fn zone(&self) -> &str {
        self.labels.get(ZONE_LABEL).map_or("", String::as_str)
    }

    /// Whether a taint with this key is set, whatever its effect.
    pub fn has_taint(&self, key: &str) -> bool {
        self.taints.iter().any(|taint| taint.key == key)
    }

    /// Whether the out-of-service taint is set by us.
    pub fn is_out_of_service_by_us(&self) -> bool {
        self.taints.iter().any(Taint::is_our_out_of_service)
    }
}

/// One taint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    /// Taint key.
    pub key: String,
    /// Taint value.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

impl Taint {
    /// The out-of-service taint, with our value.
    pub fn is_our_out_of_service(&self) -> bool {
        self.key == OUT_OF_SERVICE_TAINT && self.value == OUT_OF_SERVICE_OURS
    }
}

/// One toleration, as Kubernetes writes it; absent fields are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Toleration {
    /// Taint key; empty with `Exists` tolerates every taint.
    pub key: String,
    /// `Equal`, `Exists`, or empty for `Equal`.
    pub operator: String,
    /// Taint value, for `Equal`.
    pub value: String,
    /// Taint effect; empty for every effect.
    pub effect: String,
}

impl Toleration {
    /// Whether it tolerates the taint, by the rules of Kubernetes.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        let effect = self.effect.is_empty() || self.effect == taint.effect;
        let key = self.key == taint.key || (self.key.is_empty() && self.operator == "Exists");
        let value = match self.operator.as_str() {
            "Exists" => true,
            "" | "Equal" => self.value == taint.value,
            _ => false,
        };
        effect && key && value
    }
}
