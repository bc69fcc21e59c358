//! Where a disk is: `PersistentVolume`, node affinity and driver -> locality.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::decision::Locality;
use crate::fleet::{Disk, Fleet};

/// What people say of a storage class, by its name: for drivers that we cannot know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClassOverrides(pub BTreeMap<String, ClassOverride>);

/// A person's word on a storage class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClassOverride {
    /// Each volume is on one node.
    Local,
    /// Volumes are reached from every node that their affinity admits.
    Network,
}

/// Where a disk of a VM in this namespace is, and how we know, in words.
pub fn locate(
    _fleet: &Fleet,
    _overrides: &ClassOverrides,
    _vm_namespace: &str,
    _disk: &Disk,
) -> (Locality, String) {
    (Locality::Unknown, String::new())
}
