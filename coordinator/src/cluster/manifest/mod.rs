//! Manifests of Kubernetes into the core's vocabulary.

mod id;
mod inventory;

pub use id::ObjectId;
pub use inventory::Inventory;

/// Group of our own objects.
pub const GROUP: &str = "somersault.novasphere.dev";
