//! The Kubernetes API that Somersault publishes: group `somersault.novasphere.dev`, version `v1alpha1`.
//!
//! ```text
//!   cluster-scoped              namespaced
//!   ──────────────              ──────────
//!   NodeHealth    one per node  Recovery         one per VM of an incident, named like the VM
//!   Evacuation                  VolumeMigration
//!   RecoveryPolicy  `default`
//! ```
//!
//! A `spec` is what people ask for, a `status` is what the coordinator stores and shows. The status holds the
//! records that survive a crash of the coordinator (`epoch` and everything described as "record"), and the
//! display, which may be lost at any time. The types depend on nothing else of ours: the conversions live where
//! the objects are read and written.

// Doc comments here are what `kubectl explain` prints, where the names of kinds are written plain.
#![allow(clippy::doc_markdown)]
// Two printer columns of the same type are no duplicates; the lint looks at each argument by itself.
#![allow(clippy::duplicated_attributes)]

pub mod common;
pub mod evacuation;
mod explain;
pub mod generate;
pub mod node_health;
pub mod recovery;
pub mod recovery_policy;
mod relations;
pub mod volume_migration;

pub use evacuation::{Evacuation, EvacuationSpec, EvacuationStatus};
pub use node_health::{NodeHealth, NodeHealthSpec, NodeHealthStatus};
pub use recovery::{Recovery, RecoverySpec, RecoveryStatus};
pub use recovery_policy::{RecoveryPolicy, RecoveryPolicySpec, RecoveryPolicyStatus};
pub use volume_migration::{VolumeMigration, VolumeMigrationSpec, VolumeMigrationStatus};

/// API group.
pub const GROUP: &str = "somersault.novasphere.dev";
/// API version.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` of every object here.
pub const API_VERSION: &str = "somersault.novasphere.dev/v1alpha1";
