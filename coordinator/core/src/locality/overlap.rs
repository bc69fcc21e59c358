//! Who else has a folder of a node.

use super::pinned_node;
use crate::fleet::{DiskSource, Fleet};
use crate::names::{NodeName, VolumeName};

/// Who else has this folder of the node (of any, where none is named), one inside of it, or one around it, as far as objects
/// tell: a volume that could be on any node counts.
pub(crate) fn other_user(
    fleet: &Fleet,
    name: &VolumeName,
    node: Option<&NodeName>,
    path: &str,
) -> Option<String> {
    let asked = plain(path);
    let overlaps = |other: &str| {
        let other = plain(other);
        asked.starts_with(&other) || other.starts_with(&asked)
    };
    let volumes = fleet.volumes.iter().filter(|(other, volume)| {
        *other != name
            && volume.source.path().is_some_and(overlaps)
            && pinned_node(fleet, volume).is_none_or(|on| node.is_none_or(|node| on == *node))
    });
    let host_disks = fleet.vms.iter().filter(|(_, vm)| {
        vm.disks.iter().any(|disk| matches!(&disk.source, DiskSource::HostDisk { path } if overlaps(path)))
    });
    let mut users = volumes
        .map(|(other, _)| format!("volume {other}"))
        .chain(host_disks.map(|(vm, _)| format!("VM {vm}")));
    users.next()
}

/// With a slash at its end and none doubled, and without `.`: a volume may be written in any way.
fn plain(path: &str) -> String {
    let parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
    parts.fold("/".to_owned(), |path, part| format!("{path}{part}/"))
}
