//! Manifests of Kubernetes into the core's vocabulary: typed, checked, joined.
//!
//! Every cluster uses this, whether its objects come from files or from an API server.

mod convert;
mod disks;
pub mod display;
mod id;
mod inventory;
mod kubevirt;
mod pod;
pub mod quantity;
pub mod records;
mod requests;
mod vm;

pub use convert::{FieldError, PROVISIONED_BY, RETAINED_ANNOTATION};
pub use id::ObjectId;
pub use inventory::Inventory;
pub use pod::{NOT_OF_VMS, OF_VMS, STAGING_LABEL, claims_alone, staging_namespace};
pub use requests::{evacuation_spec, migration, migration_spec, probe_spec};
pub use somersault_crd::GROUP;
pub use vm::REBUILD_ANNOTATION;
