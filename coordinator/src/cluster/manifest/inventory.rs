//! Every object of a cluster, typed, with the place it came from.

use serde_json::Value;

use super::ObjectId;
use crate::cluster::Snapshot;

/// Objects of a cluster.
#[derive(Debug, Default)]
pub struct Inventory {}

impl Inventory {
    /// Adds an object; one that we do not know is left alone.
    pub fn add(&mut self, _file: &str, _document: usize, _id: &ObjectId, _value: &Value) {}

    /// Joins them.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::default()
    }
}
