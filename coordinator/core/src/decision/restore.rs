//! What may bring the data of a broken disk back, as far as objects and agents tell: snapshots of its claim, volumes
//! kept from earlier, folders that look like it, the image of a system disk. Backups are not seen from here.
//!
//! A snapshot is named first: it is a copy of this very disk, its age is known, and restoring it touches nothing of
//! what is there. Then come folders that have lost their volume, as the last one of a disk does whose volume somebody
//! deleted, and volumes kept from earlier, the newest first. Only a person can tell which of them holds the newest data.

use serde::{Deserialize, Serialize};

use crate::decision::disks::Examined;
use crate::decision::index::Index;
use crate::decision::{Locality, Reason};
use crate::fleet::{Fleet, Volume};
use crate::locality;
use crate::migration;
use crate::names::{Key, NodeName, VolumeName};

/// Most sources named for one disk: a person looks at each of them.
const SOURCES_MAX: usize = 10;

/// Of these, most snapshots: somebody who takes one each hour must not crowd out everything else.
const SNAPSHOTS_MAX: usize = 4;

/// Something that may bring a disk's data back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RestoreSource {
    /// Volume name in the VM.
    pub disk: String,
    /// What it is.
    pub source: SourceKind,
}

/// What may bring data back, the best first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SourceKind {
    /// A `VolumeSnapshot` of its claim.
    Snapshot {
        /// Its name, in the VM's namespace.
        name: String,
        /// It can be restored from.
        ready: bool,
        /// When it was taken (RFC 3339), where that is told.
        taken: Option<String>,
    },
    /// A `PersistentVolume` that names this claim in its `claimRef`: the one before a move, or one that was
    /// Released.
    Volume {
        /// Its name.
        name: VolumeName,
        /// Its phase.
        phase: String,
        /// The node that its affinity names.
        node: Option<NodeName>,
        /// When its object was made (RFC 3339), where that is told.
        created: Option<String>,
    },
    /// A folder below a storage root, in no `PersistentVolume`, whose name is that of the volume or of the claim.
    Folder {
        /// On which node.
        node: NodeName,
        /// Where.
        path: String,
        /// Blocks really taken.
        allocated_bytes: u64,
    },
    /// The image that a system disk was imported from; what was written since is not in it.
    Image {
        /// Where.
        url: String,
    },
}

/// Sources for every data disk that is not simply to be had over the network, best first for each.
pub(super) fn sources(index: &Index, fleet: &Fleet, disks: &[Examined]) -> Vec<RestoreSource> {
    let mut found = Vec::new();
    for disk in disks.iter().filter(|disk| disk.holds_data && (disk.broken().is_some() || !disk.on_network()))
    {
        let mut kinds = Vec::new();
        if let Some(claim) = &disk.claim {
            kinds.extend(snapshots(index, claim));
            kinds.extend(folders(index, claim, disk.volume.as_ref()));
            kinds.extend(kept_volumes(index, fleet, claim, disk));
        }
        kinds.extend(disk.image.clone().map(|url| SourceKind::Image { url }));
        kinds.truncate(SOURCES_MAX);
        found.extend(
            kinds.into_iter().map(|source| RestoreSource { disk: disk.finding.disk.clone(), source }),
        );
    }
    found
}

/// Snapshots of the claim: those that can be used first, of these the newest first.
fn snapshots(index: &Index, claim: &Key) -> Vec<SourceKind> {
    let mut found = index.snapshots_of(claim).to_vec();
    found.sort_by(|(_, a), (_, b)| (b.ready, &b.taken).cmp(&(a.ready, &a.taken)));
    let snapshots = found.into_iter().take(SNAPSHOTS_MAX);
    snapshots
        .map(|(name, snapshot)| SourceKind::Snapshot {
            name: name.name.clone(),
            ready: snapshot.ready,
            taken: snapshot.taken.clone(),
        })
        .collect()
}

/// Volumes whose `claimRef` names the claim, the newest first: not the one that it is properly bound to or that locks it,
/// nor one that was made for it and that no claim has ever had (`Available`): nothing of the VM is in that. Of a claim that
/// a migration has locked also the one that it was copied to, which is kept for another name until the end.
fn kept_volumes(index: &Index, fleet: &Fleet, claim: &Key, disk: &Examined) -> Vec<SourceKind> {
    let locked = disk.broken().is_some_and(|(reason, _)| reason == Reason::ClaimLocked);
    let kept = |name: &VolumeName, volume: &Volume| {
        let named = disk.volume.as_ref() == Some(name);
        let own = named
            && (locked
                || volume.phase == "Bound" && disk.broken().is_none()
                || disk.finding.locality != Locality::Unknown);
        !own && volume.phase != "Available"
    };
    let named = index.volumes_naming(claim).iter().filter(|(name, volume)| kept(name, volume)).copied();
    let copy = disk.volume.as_ref().filter(|_| locked).and_then(migration::locked_for);
    let copy = copy.and_then(|name| fleet.volumes.get_key_value(&name));
    let mut volumes: Vec<(&VolumeName, &Volume)> = named.chain(copy).collect();
    volumes.sort_by(|(_, a), (_, b)| b.created.cmp(&a.created));
    volumes
        .into_iter()
        .map(|(name, volume)| SourceKind::Volume {
            name: name.clone(),
            phase: volume.phase.clone(),
            node: locality::pinned_node(fleet, volume),
            created: volume.created.clone(),
        })
        .collect()
}

/// Orphaned folders whose name is the volume's (hostpath-provisioner) or ends in `_<namespace>_<claim>`
/// (local-path-provisioner).
fn folders(index: &Index, claim: &Key, volume: Option<&VolumeName>) -> Vec<SourceKind> {
    let suffix = format!("_{}_{}", claim.namespace, claim.name);
    let looks_like_it = |path: &str| {
        let name = path.rsplit('/').next().unwrap_or(path);
        name.ends_with(&suffix) || volume.is_some_and(|volume| name == volume.as_str())
    };
    let folders = index.orphans().iter().filter(|(_, path, _)| looks_like_it(path));
    folders
        .map(|(node, path, usage)| SourceKind::Folder {
            node: (*node).clone(),
            path: (*path).to_owned(),
            allocated_bytes: usage.allocated_bytes,
        })
        .collect()
}
