//! Where kubelets mount volumes for pods, and of which kinds agents find them there. A block device is mounted nowhere: a holder of
//! ours hands it over, and nobody else does.

use crate::fleet::{Volume, VolumeMode, VolumeSource};
use crate::names::{Uid, VolumeName};

/// The kubelet's plugin that mounts a volume, and the folder below the volume's own that it mounts it on.
fn plugin(source: &VolumeSource) -> Option<(&'static str, &'static str)> {
    match source {
        VolumeSource::Csi { .. } => Some(("csi", "/mount")),
        VolumeSource::Network { field } if field == "nfs" => Some(("nfs", "")),
        VolumeSource::Local { .. } => Some(("local-volume", "")),
        // Kubelets mount no hostPath, and the in-tree drivers of block storage are gone or speak CSI.
        _ => None,
    }
}

/// Whether agents find volumes of this kind where kubelets mount them.
pub(super) fn is_found(source: &VolumeSource) -> bool {
    plugin(source).is_some()
}

/// Where an agent finds a volume that a holder of ours has, below the folder of all pods of a kubelet.
pub(super) fn held(pods: &str, holder: &Uid, volume: &Volume, name: &VolumeName) -> Option<String> {
    match volume.mode {
        VolumeMode::Filesystem => path(pods, holder, &volume.source, name),
        // The name of the folder is an agreement with the agent.
        VolumeMode::Block => {
            Some(format!("{pods}/{holder}/volumes/kubernetes.io~empty-dir/somersault-device"))
        }
    }
}

/// The same of one that any pod has mounted.
pub(super) fn path(pods: &str, pod: &Uid, source: &VolumeSource, volume: &VolumeName) -> Option<String> {
    let (plugin, last) = plugin(source)?;
    Some(format!("{pods}/{pod}/volumes/kubernetes.io~{plugin}/{volume}{last}"))
}

/// What backs a volume, in words.
pub(super) fn words(source: &VolumeSource) -> String {
    match source {
        VolumeSource::Csi { driver, .. } => format!("of CSI driver {driver}"),
        VolumeSource::Local { path } | VolumeSource::HostPath { path } => format!("at {path}"),
        VolumeSource::Network { field } | VolumeSource::Unknown { field } if !field.is_empty() => {
            format!("of kind {field}")
        }
        _ => "of a kind that is not known here".to_owned(),
    }
}
