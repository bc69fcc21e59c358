//! What is done to the cluster, each of it twice without harm.

use std::collections::BTreeMap;

use crate::evacuation::EvacuationSpec;
use crate::fencing::FenceProof;
use crate::fleet::{Owner, SavedStart, VolumeMode};
use crate::migration::MigrationSpec;
use crate::names::{Key, NodeName, Uid, VolumeName};

/// A change to the cluster. Each is idempotent and carries its precondition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Set our `NoSchedule` taint.
    Taint {
        /// The node.
        node: NodeName,
    },
    /// Remove it.
    Untaint {
        /// The node.
        node: NodeName,
    },
    /// Force-delete a launcher or hotplug pod of a fenced node. This is the permission to run the VM elsewhere,
    /// and therefore needs the proof.
    DeletePod {
        /// Namespace and name.
        pod: Key,
        /// Precondition.
        uid: Uid,
        /// Why this is safe.
        proof: FenceProof,
    },
    /// Delete a `VolumeAttachment` of a fenced node, so that its volume can be attached elsewhere at once. Only of a
    /// volume whose VM's launcher there is gone.
    DeleteAttachment {
        /// Its name.
        attachment: String,
        /// Precondition.
        uid: Uid,
        /// Why this is safe.
        proof: FenceProof,
    },
    /// Set the out-of-service taint with our value: the pod GC then deletes every pod that is left on the node, and the
    /// attach-detach controller detaches its volumes at once.
    OutOfService {
        /// Why this is safe, and which node.
        proof: FenceProof,
    },
    /// Remove the out-of-service taint where its value is ours.
    InService {
        /// The node.
        node: NodeName,
    },
    /// Create a `VolumeMigration` for an evacuation.
    CreateMigration {
        /// Its key; derived from the evacuation, so that a second creation is noticed.
        key: Key,
        /// What it asks.
        spec: MigrationSpec,
    },
    /// Create a `VirtualMachineInstanceMigration`: KubeVirt moves the VM while it runs.
    LiveMigrate {
        /// Its key; derived from the evacuation, so that a second creation is noticed.
        key: Key,
        /// Name of the VM, in the same namespace.
        vm: String,
        /// The one node where it may go; where KubeVirt likes if `None`.
        node: Option<NodeName>,
    },
    /// Set `spec.cancelled` of a migration whose evacuation was cancelled.
    CancelMigration {
        /// Which.
        key: Key,
    },
    /// Unset `spec.preCopyOnly` of a migration whose evacuation may stop VMs now.
    ProceedMigration {
        /// Which.
        key: Key,
    },
    /// Create an `Evacuation` of a failing disk.
    CreateEvacuation {
        /// Its name; derived from the disk, so that a second creation is noticed.
        name: String,
        /// What it asks.
        spec: EvacuationSpec,
    },
    /// Set reclaim policy Retain.
    RetainVolume {
        /// Which.
        volume: VolumeName,
    },
    /// Create a `PersistentVolume`, pre-bound to its claim by namespace and name.
    CreateVolume(NewVolume),
    /// Create a claim in the namespace for such claims, for which its class's provisioner makes a volume on this node or
    /// where this node reaches it, and a pod there that holds it mounted. What is there of both stays, but for a pod that
    /// has ended. For an alias, its `PersistentVolume` first: refused unless the volume is Released and on Retain, so that
    /// no claim has it.
    Stage(Box<Staging>),
    /// Delete such a pod and such a claim, at once or as soon as the pod's node lets it go, and the alias of their name.
    Unstage {
        /// Their name.
        name: String,
        /// Precondition of the claim's deletion, where it is there.
        claim_uid: Option<Uid>,
        /// The volume goes with the claim. Without, it must be on Retain, and stays.
        volume_goes: bool,
    },
    /// Set reclaim policy Delete on a volume that a provisioner has made for a claim of ours, as long as no other claim was
    /// ever bound to it: it goes with that claim, or after it.
    DiscardVolume {
        /// Which.
        volume: VolumeName,
        /// The uid of our claim.
        claim_uid: Uid,
    },
    /// Create a `PersistentVolume` that holds nothing and that no node can reach, pre-bound to a claim: while the claim
    /// is bound to it, no pod that uses the claim can run, whoever creates it.
    CreateLock {
        /// Its name.
        volume: VolumeName,
        /// The claim that it is pre-bound to.
        claim: Key,
        /// What it must offer so that a claim of this kind fits.
        template: ClaimTemplate,
    },
    /// Remove the object of a volume that we created and that no claim is bound to. Its data stays.
    ForgetVolume {
        /// Which.
        volume: VolumeName,
    },
    /// Delete the object of a volume whose claim is gone: it is Released by the claim of this uid, and on Retain. Its data
    /// stays.
    DeleteReleased {
        /// Which.
        volume: VolumeName,
        /// Precondition: the claim that it was last bound to.
        claim_uid: Uid,
    },
    /// Make the owner stop the VM.
    StopVm {
        /// Which.
        vm: Key,
        /// Through whom.
        owner: Owner,
    },
    /// Give the owner's start field back as it was.
    RestoreStart {
        /// Which.
        vm: Key,
        /// Through whom.
        owner: Owner,
        /// What was found before the stop.
        start: SavedStart,
    },
    /// Delete a claim.
    DeleteClaim {
        /// Which.
        claim: Key,
        /// Precondition.
        uid: Uid,
    },
    /// Delete a claim so that its `DataVolume` makes it anew and imports its image once more. Refused where that
    /// would not happen (no controlling `DataVolume`, or one that is pre-populated), where the volume is not on
    /// reclaim policy Retain, and where a scheduled pod uses the claim.
    ReimportClaim {
        /// Which.
        claim: Key,
        /// Precondition.
        uid: Uid,
        /// The `DataVolume` that must control it.
        data_volume: String,
        /// The volume that it is bound to, and that must be kept.
        volume: VolumeName,
    },
    /// Point a volume to a claim by `claimRef{namespace,name}`, in one patch, never through null.
    PrebindVolume {
        /// Which volume.
        volume: VolumeName,
        /// To which claim.
        claim: Key,
    },
    /// Create a claim bound to a volume.
    CreateClaim {
        /// Its key.
        claim: Key,
        /// What it asks.
        template: ClaimTemplate,
        /// `spec.volumeName`.
        volume: VolumeName,
    },
}

/// A volume to create.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct NewVolume {
    /// Its name.
    pub name: VolumeName,
    /// Its class.
    pub class: String,
    /// The one node that it is on; `None` for a shared root.
    pub node: Option<NodeName>,
    /// Absolute path below a storage root.
    pub path: String,
    /// `spec.capacity.storage`.
    pub capacity_bytes: u64,
    /// `spec.accessModes`.
    pub access_modes: Vec<String>,
    /// `spec.volumeMode`.
    pub mode: VolumeMode,
    /// The claim that it is pre-bound to.
    pub claim: Key,
}

/// A claim of ours, and the pod that holds it mounted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Staging {
    /// Name of all of it.
    pub name: String,
    /// The node of the pod.
    pub node: NodeName,
    /// The migration that needs it.
    pub migration: Key,
    /// What the claim asks.
    pub template: ClaimTemplate,
    /// The volume that is read, where it is one that only kubelets mount: the claim gets an alias of it, a second
    /// `PersistentVolume` object of the claim's name for the same storage, which the pod mounts read-only.
    pub alias_of: Option<VolumeName>,
}

/// What a claim asks, kept over its deletion.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct ClaimTemplate {
    /// `spec.storageClassName`.
    pub class: String,
    /// `spec.resources.requests.storage`.
    pub requested_bytes: u64,
    /// `spec.accessModes`.
    pub access_modes: Vec<String>,
    /// `spec.volumeMode`.
    pub mode: VolumeMode,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`, without those of the binder, the provisioner and CDI.
    pub annotations: BTreeMap<String, String>,
}
