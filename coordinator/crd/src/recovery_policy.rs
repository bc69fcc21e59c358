//! `RecoveryPolicy`: what the coordinator may do, and how soon.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The name of the one policy that counts.
pub const POLICY_NAME: &str = "default";

/// What the coordinator may do, and how soon. Every field may be absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "somersault.novasphere.dev",
    version = "v1alpha1",
    kind = "RecoveryPolicy",
    plural = "recoverypolicies",
    category = "somersault",
    derive = "PartialEq",
    derive = "Default",
    doc = "What the coordinator may do, and how soon. The policy named `default` counts.",
    validation = Rule::new("self.metadata.name == 'default'").message("the one policy is named default"),
    printcolumn(name = "Profile", type_ = "string", json_path = ".spec.profile"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryPolicySpec {
    /// How soon a silent node is declared unreachable.
    #[serde(default)]
    pub profile: Profile,
    /// Where the data of a storage class is, for drivers that cannot be known; by the class's name.
    #[serde(default)]
    pub classes: BTreeMap<String, ClassLocality>,
    /// Any change to this text releases a storm hold: nodes that are still silent are then judged one by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub hold_release: Option<String>,
}

/// How soon a silent node is declared unreachable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Profile {
    /// A beat each second, suspect after 3 missed, declared after 5 s.
    #[default]
    Safe,
    /// A beat each 200 ms, suspect after 3 missed, declared after 1 s.
    Fast,
}

/// Where the data of a storage class is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ClassLocality {
    /// On one node only.
    Local,
    /// Reached from every node.
    Network,
}
