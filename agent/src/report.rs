//! Puts a report together from the last samples. Nothing here waits: what is old is sent with its age.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use somersault_agent_core::health::{self, Assessment};
use somersault_proto::model::limits::{DISKS_MAX, VOLUMES_MAX};
use somersault_proto::model::{Disk, Grade, Host, Report, StorageRoot, Volume};

use crate::inventory::volume_path;
use crate::sense::{Sensed, WatchedRoot};

/// What the agent knows of its node now; `None` before the first look at the machine.
pub fn report(roots: &[WatchedRoot], sensed: &Sensed, now: Duration) -> Option<Report> {
    let host = sensed.host?;
    Some(Report {
        roots: roots.iter().map(|root| storage_root(root, sensed)).collect(),
        volumes: roots.iter().flat_map(|root| volumes(root, now)).take(VOLUMES_MAX).collect(),
        disks: sensed.disks.iter().take(DISKS_MAX).map(|(name, assessment)| disk(name, assessment)).collect(),
        host,
    })
}

/// The part of a report whose change is worth telling at once. Sizes and ages move all the time and wait for the
/// next report.
pub fn shape(report: &Report) -> Report {
    let mut shape = report.clone();
    for root in &mut shape.roots {
        (root.size_bytes, root.available_bytes) = (0, 0);
    }
    for volume in &mut shape.volumes {
        (volume.allocated_bytes, volume.apparent_bytes, volume.inodes) = (0, 0, 0);
        volume.sample_age = Duration::ZERO;
    }
    shape.host = Host {
        cpu_ratio: 0.0,
        memory_total_bytes: 0,
        memory_available_bytes: 0,
        load1: 0.0,
        io_pressure_ratio: None,
        uptime: Duration::ZERO,
    };
    shape
}

fn storage_root(watched: &WatchedRoot, sensed: &Sensed) -> StorageRoot {
    let sample = watched.watch.sample();
    // A root that was never seen has no room: nothing must be planned onto it.
    let figures = sample.as_deref().map(|s| (s.size_bytes, s.available_bytes, s.read_only));
    let (size_bytes, available_bytes, read_only) = figures.unwrap_or((0, 0, false));
    let disks = sensed.disks_of_root.get(watched.root.path.as_str());
    StorageRoot {
        path: watched.root.path.clone(),
        storage_class: watched.root.class.clone(),
        shared: watched.root.shared,
        size_bytes,
        available_bytes,
        read_only,
        disk: disks.and_then(|disks| worst(disks, sensed)),
    }
}

/// Of several disks below one root the one in the worst shape: the root is as safe as that.
fn worst(disks: &BTreeSet<String>, sensed: &Sensed) -> Option<String> {
    let grade = |name: &String| sensed.disks.get(name).map(|assessment| assessment.grade);
    // `max_by_key` takes the last of equals; the reversed order makes that the first name.
    disks.iter().rev().max_by_key(|name| grade(name)).cloned()
}

fn volumes(watched: &WatchedRoot, now: Duration) -> Vec<Volume> {
    let root = Path::new(watched.root.path.as_str());
    let sample = watched.watch.sample().unwrap_or_else(|| Arc::new(crate::inventory::RootSample::default()));
    let volume = |(name, volume): (&String, &crate::inventory::VolumeSample)| {
        Some(Volume {
            path: volume_path(root, name)?,
            allocated_bytes: volume.usage.allocated_bytes,
            apparent_bytes: volume.usage.apparent_bytes,
            inodes: volume.usage.inodes,
            sample_age: now.saturating_sub(volume.taken_at),
        })
    };
    sample.volumes.iter().filter_map(volume).collect()
}

fn disk(name: &str, assessment: &Assessment) -> Disk {
    Disk {
        name: name.to_owned(),
        model: assessment.identity.model.clone(),
        serial: assessment.identity.serial.clone(),
        grade: match assessment.grade {
            health::Grade::Unknown => Grade::Unknown,
            health::Grade::Ok => Grade::Ok,
            health::Grade::Warning => Grade::Warning,
            health::Grade::Failing => Grade::Failing,
            health::Grade::Failed => Grade::Failed,
        },
        reasons: assessment.reasons.iter().map(|reason| reason.as_str().to_owned()).collect(),
        smart_supported: assessment.smart_supported,
    }
}
