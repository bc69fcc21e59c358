//! What may bring the data of a broken disk back, as far as objects and agents tell: volumes kept from earlier,
//! folders that look like it, the image of a system disk. Snapshots and backups are not seen from here.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::decision::disks::Examined;
use crate::fleet::{Fleet, Vm, Volume};
use crate::names::{Key, NodeName, VolumeName};

/// Most sources named for one disk: a person looks at each of them.
const SOURCES_MAX: usize = 10;

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
    /// A `PersistentVolume` that names this claim in its `claimRef`: the one before a move, or one that was
    /// Released.
    Volume {
        /// Its name.
        name: VolumeName,
        /// Its phase.
        phase: String,
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

/// Sources for every broken disk, best first for each.
pub(super) fn sources(fleet: &Fleet, key: &Key, vm: &Vm, disks: &[Examined]) -> Vec<RestoreSource> {
    let mut found = Vec::new();
    for (disk, spec) in disks.iter().zip(&vm.disks).filter(|(disk, _)| disk.broken().is_some()) {
        let claim = disk.claim.as_ref();
        let mut kinds: Vec<SourceKind> =
            claim.into_iter().flat_map(|claim| kept_volumes(fleet, claim, disk)).collect();
        kinds.extend(claim.into_iter().flat_map(|claim| orphans(fleet, key, claim, disk.volume.as_ref())));
        kinds.extend(spec.image.clone().map(|url| SourceKind::Image { url }));
        kinds.truncate(SOURCES_MAX);
        found.extend(kinds.into_iter().map(|source| RestoreSource { disk: spec.name.clone(), source }));
    }
    found
}

/// Volumes whose `claimRef` names the claim. The bound one is broken; an unbound one of the same name is not.
fn kept_volumes(fleet: &Fleet, claim: &Key, disk: &Examined) -> Vec<SourceKind> {
    let names_claim = |volume: &Volume| volume.claim.as_ref().is_some_and(|owner| owner.key == *claim);
    let kept =
        |name: &VolumeName, volume: &Volume| disk.volume.as_ref() != Some(name) || volume.phase != "Bound";
    let volumes = fleet.volumes.iter().filter(|(name, volume)| names_claim(volume) && kept(name, volume));
    volumes
        .map(|(name, volume)| SourceKind::Volume { name: name.clone(), phase: volume.phase.clone() })
        .collect()
}

/// Folders that no volume claims and whose name is the volume's (hostpath-provisioner) or ends in
/// `_<namespace>_<claim>` (local-path-provisioner).
fn orphans(fleet: &Fleet, vm: &Key, claim: &Key, volume: Option<&VolumeName>) -> Vec<SourceKind> {
    let claimed: BTreeSet<&str> = fleet.volumes.values().filter_map(|volume| volume.source.path()).collect();
    let suffix = format!("_{}_{}", vm.namespace, claim.name);
    let looks_like_it = |path: &str| {
        let name = path.rsplit('/').next().unwrap_or(path);
        name.ends_with(&suffix) || volume.is_some_and(|volume| name == volume.as_str())
    };
    let mut found = Vec::new();
    for (node, report) in &fleet.reports {
        for (path, usage) in &report.usage {
            if looks_like_it(path) && !claimed.contains(path.as_str()) {
                found.push(SourceKind::Folder {
                    node: node.clone(),
                    path: path.clone(),
                    allocated_bytes: usage.allocated_bytes,
                });
            }
        }
    }
    found
}
