//! The directory cluster: a folder of manifests, as `kubectl get -o yaml` prints them.

mod dump;
pub mod files;
pub mod store;
mod write;

pub use dump::{read_dump, read_objects, snapshot};
pub use store::{Objects, Store, Transaction};
