//! Where kubelets mount volumes for pods, and of which kinds agents find them there.

use crate::fleet::VolumeSource;
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

/// Where a kubelet has a volume mounted for a pod, below the folder of all its pods.
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
