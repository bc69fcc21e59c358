//! Why a decision is what it is.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Builds the enum and its names from one list, so that the name that people see is the variant's.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident => $summary:literal,)*) => {
        /// Why; the name serves as condition reason, Event reason and metric label.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its `CamelCase` name.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// The same in words, without a full stop.
            pub const fn summary(self) -> &'static str {
                match self {
                    $(Self::$name => $summary,)*
                }
            }
        }
    };
}

impl Reason {
    /// Storage that is broken whether a node died or not.
    pub const fn is_broken_storage(self) -> bool {
        matches!(
            self,
            Self::ClaimLost
                | Self::ClaimMissing
                | Self::VolumeMissing
                | Self::VolumeBoundElsewhere
                | Self::VolumePathMissing
                | Self::DiskImageMissing
                | Self::DiskFailed
                | Self::DiskNodeGone
                | Self::ClaimLocked
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

reasons! {
    /// `NothingToDo`: there is no such `VirtualMachine`.
    VmNotFound => "there is no such VirtualMachine",
    /// `NothingToDo`: its run strategy says stopped.
    Stopped => "it is meant to be stopped",
    /// `NothingToDo`: it runs on a node that is not in question.
    RunsElsewhere => "it runs on another node",
    /// `NothingToDo`: only its storage was asked about, and that is sound.
    StorageSound => "no disk of it is broken",
    /// `NothingToDo`: it runs nowhere, and no disk of it is on a dead node.
    NotRunning => "it does not run, and no disk of it is concerned",

    /// Every data disk is on network storage.
    AllDisksOnNetwork => "every data disk is on network storage",
    /// Nothing of it is kept: every volume is made anew at each start.
    NoDataDisks => "it has no data disk",
    /// Its local disks are system disks that can be imported anew, and its owner allows it.
    SystemDiskRebuildable => "only its system disk is local, and that can be imported anew",

    /// Its claim is Lost: the binding is broken for good.
    ClaimLost => "a claim is Lost",
    /// Its claim is bound to a `PersistentVolume` that does not exist.
    VolumeMissing => "the volume of a claim does not exist",
    /// The volume of its claim is bound to another claim.
    VolumeBoundElsewhere => "the volume of a claim belongs to another claim",
    /// Its claim does not exist.
    ClaimMissing => "a claim does not exist",
    /// The agent sees the storage root, but not the volume's folder in it.
    VolumePathMissing => "the folder of a volume is gone from its node",
    /// The volume's folder is there, but not the `disk.img` that must be in it: `KubeVirt` makes a blank one at the
    /// next start.
    DiskImageMissing => "the disk image in the folder of a volume is gone",
    /// The physical disk below a volume is graded Failed.
    DiskFailed => "the physical disk below a volume has failed",
    /// The node that holds a disk has no Node object.
    DiskNodeGone => "the node that holds a disk is no longer in the cluster",

    /// Its claim has the lock of a migration in place of a volume.
    ClaimLocked => "a claim is locked by a migration",

    /// A disk is on one node only.
    LocalDisk => "a disk is on one node only",
    /// A hotplugged disk is on one node only.
    LocalHotplug => "a hotplugged disk is on one node only",
    /// Its TPM or EFI state is on one node only.
    LocalState => "its TPM or EFI state is on one node only",
    /// The backing of an ephemeral disk is on one node only.
    LocalBacking => "the backing of an ephemeral disk is on one node only",
    /// A `hostDisk`: data on a node outside any claim.
    HostDisk => "a hostDisk is on its node, outside any claim",
    /// Nobody can tell where a disk is; unknown never means network.
    LocalityUnknown => "nobody can tell where a disk is",
    /// Its claim is not bound yet.
    ClaimNotBound => "a claim is not bound",
    /// Its `DataVolume` has not finished its import.
    DataVolumeImporting => "a disk is still being imported",
    /// Another VM names the same claim.
    ClaimSharedWithVm => "another VM uses the same claim",
    /// A pod that is not the VM's own uses its claim.
    ClaimUsedByPod => "a pod that is not its own uses a claim",

    /// A live migration is in flight and not every node of it is dead: it may run on the living one.
    LiveMigrationInFlight => "a live migration is in flight, and one of its nodes may live",
    /// A launcher of it is on a node that is not dead.
    LauncherElsewhere => "a launcher of it is on a node that may live",
    /// It was paused, by a person or by an IO error: starting it is not ours to decide.
    InstancePaused => "it was paused",
    /// Its instance never ran: deleting the launcher would count as a failed start.
    InstanceNeverRan => "its instance has never run",
    /// Run strategy Manual: KubeVirt starts it only by a person's word.
    RunStrategyManual => "its run strategy is Manual",
    /// Run strategy Once: KubeVirt does not start it again.
    RunStrategyOnce => "its run strategy is Once",
    /// Its system disk could be imported anew, but its owner has not allowed it.
    RebuildNotAllowed => "its owner has not allowed a rebuild of the system disk",
    /// No `DataVolume` controls the claim of its system disk: nobody would import it anew.
    DataVolumeMissing => "no DataVolume would import its system disk anew",
    /// The `DataVolume` of its system disk is marked as filled by somebody else, as after a move: CDI imports no more.
    DataVolumePrePopulated => "the DataVolume of its system disk imports no more",
    /// What its system disk was filled with is no image that can be imported again.
    ImageNotImportable => "its system disk was not imported from an image that can be had again",
    /// The class of its system disk does not make a volume where the VM is scheduled.
    ClassNotPortable => "its storage class does not make a volume where the VM is scheduled",
    /// A rebuild would have to go through an owner that we do not know.
    OwnerUnknown => "its owner is of a kind that we cannot hand a new disk to",
    /// It tolerates the taint that keeps VMs off a dead node: the scheduler could bind it there again, for ever.
    ToleratesFencing => "it tolerates the taint that keeps VMs off a dead node",
    /// No healthy node fits its volumes' topology, its selectors, taints and resources.
    NoFittingNode => "no other node fits it",
}
