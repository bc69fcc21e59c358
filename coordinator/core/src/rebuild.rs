//! Rebuilding a VM whose only local disks are system disks with an image: what is stored of it.
//!
//! ```text
//!   decided Rebuild, proven, a free place
//!      ▼                                                        the node is back, claims untouched
//!   Retaining ─► Stopping ────────────────► Replacing ──────────────────────────┐
//!   old volumes  │ owner stops the VM,      │ claims deleted, CDI makes them    │
//!   on Retain    │ dead launchers deleted   ▼ anew                              ▼
//!                │                       Starting ─► Importing ─► Rebuilt    GivingBack ─► GivenBack
//!                └───────────────────────┼──────────────────────────────────────▲
//!                                        └ start field given back; seen running with its import done
//! ```
//!
//! The VM is stopped while its claims change: KubeVirt looks whether a disk is still to be imported only when it
//! makes a launcher (kubevirt `pkg/virt-controller/watch/vmi/lifecycle.go`), so one that is waiting already would
//! start as soon as the new claim is bound, on a disk that CDI is just filling. A VM that is started with its
//! `DataVolume` not yet `Succeeded` waits for it.

use serde::{Deserialize, Serialize};

use crate::fencing::ProofKind;
use crate::fleet::{Owner, SavedStart};
use crate::names::{Key, NodeName, Uid, VolumeName};

/// How far the rebuilding of a VM has come (`status.rebuild` of its `Recovery`): enough to go on after any crash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebuildRecord {
    /// The VM.
    pub vm: Key,
    /// Its uid: one of the same name that is made later is another VM.
    pub vm_uid: Uid,
    /// The node that died.
    pub node: NodeName,
    /// Epoch of the leader that wrote it.
    pub epoch: u64,
    /// What proved that the node is dead; older records do not tell.
    #[serde(default)]
    pub proof: Option<ProofKind>,
    /// How far.
    pub stage: RebuildStage,
    /// The VM's owner and start field before we stopped it; set from `Stopping` on.
    pub stopped: Option<(Owner, SavedStart)>,
    /// Launcher and hotplug pods that died with the node.
    pub pods: Vec<DeadPod>,
    /// The disks that are imported anew.
    pub disks: Vec<RebuiltDisk>,
}

/// A pod that died with its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadPod {
    /// `metadata.name`, in the VM's namespace.
    pub name: String,
    /// `metadata.uid`.
    pub uid: Uid,
}

/// One disk that is imported anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebuiltDisk {
    /// Volume name in the VM.
    pub disk: String,
    /// Its claim, in the VM's namespace.
    pub claim: String,
    /// The claim's uid before it was deleted.
    pub claim_uid: Uid,
    /// The `DataVolume` that controls the claim.
    pub data_volume: String,
    /// The volume that holds the old content; it is kept.
    pub old_volume: VolumeName,
    /// The claim's storage class.
    pub class: String,
}

/// How far the rebuilding of a VM has come. Stored before each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RebuildStage {
    /// The old volumes are set on reclaim policy Retain.
    Retaining,
    /// The owner stops the VM, and its dead launchers are deleted.
    Stopping,
    /// Its claims are deleted, and made anew by their `DataVolume`s.
    Replacing,
    /// The owner's start field is given back.
    Starting,
    /// The image is imported, and the VM starts.
    Importing,
    /// The VM runs on its new disks. The old volumes are kept.
    Rebuilt,
    /// The node is back before a claim was deleted: the start field is given back.
    GivingBack,
    /// Everything is as it was.
    GivenBack,
}

impl RebuildStage {
    /// Nothing more will happen.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Rebuilt | Self::GivenBack)
    }

    /// We have stopped the VM, and its start field is not given back yet.
    pub fn has_vm_stopped(self) -> bool {
        matches!(self, Self::Stopping | Self::Replacing | Self::Starting | Self::GivingBack)
    }
}
