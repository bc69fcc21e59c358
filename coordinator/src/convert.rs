//! Between the wire's valid types and the core's vocabulary.

use std::collections::BTreeSet;
use std::time::SystemTime;

use somersault_coordinator_core::fleet;
use somersault_coordinator_core::io;
use somersault_coordinator_core::names;
use somersault_proto::model;

/// A node's name for the core.
pub fn node(name: &model::NodeName) -> names::NodeName {
    names::NodeName(name.as_str().to_owned())
}

/// A boot id for the core.
pub fn boot_id(id: &model::BootId) -> names::BootId {
    names::BootId(id.as_str().to_owned())
}

/// How an order fares, for the core.
pub fn order_state(state: &model::ProgressState) -> io::OrderState {
    match state {
        model::ProgressState::Running { done_bytes, total_bytes, rate_bytes_per_s } => {
            io::OrderState::Running {
                done_bytes: *done_bytes,
                total_bytes: *total_bytes,
                rate_bytes_per_s: *rate_bytes_per_s,
            }
        }
        model::ProgressState::Done { root_hash, total_bytes, sent_bytes, elapsed, unreadable } => {
            io::OrderState::Done {
                root_hash: *root_hash,
                total_bytes: *total_bytes,
                sent_bytes: *sent_bytes,
                elapsed: *elapsed,
                unreadable: unreadable.clone(),
            }
        }
        model::ProgressState::Failed { reason, message } => {
            io::OrderState::Failed { reason: reason.to_string(), message: message.clone() }
        }
    }
}

/// What a probe found, for the core.
pub fn reachability(found: model::Reachability) -> io::Reachability {
    match found {
        model::Reachability::Silent => io::Reachability::Silent,
        model::Reachability::Kernel => io::Reachability::Kernel,
        model::Reachability::Agent => io::Reachability::Agent,
    }
}

/// A report, with what the session's greeting adds, for the core.
pub fn report(hello: &model::Hello, not_after: SystemTime, report: model::Report) -> fleet::NodeReport {
    // An end before 1970 has passed as surely as one in 1970.
    let certificate_until_s = not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    fleet::NodeReport {
        address: hello.address.as_str().to_owned(),
        agent_version: hello.version.clone(),
        certificate_until_s: Some(certificate_until_s),
        pods: report.pods.map(Into::into),
        roots: report.roots.into_iter().map(root).collect(),
        usage: report.volumes.into_iter().map(usage).collect(),
        gone: BTreeSet::new(),
        disks: report.disks.into_iter().map(disk).collect(),
        host: fleet::Host {
            cpu_ratio: report.host.cpu_ratio,
            memory_total_bytes: report.host.memory_total_bytes,
            memory_available_bytes: report.host.memory_available_bytes,
            load1: report.host.load1,
            io_pressure_ratio: report.host.io_pressure_ratio,
        },
    }
}

fn root(root: model::StorageRoot) -> fleet::StorageRoot {
    fleet::StorageRoot {
        path: root.path.into(),
        class: root.storage_class,
        depth: root.depth,
        shared: root.shared,
        size_bytes: root.size_bytes,
        available_bytes: root.available_bytes,
        read_only: root.read_only,
        disk: root.disk,
        listed_age: root.listed_age,
    }
}

fn usage(volume: model::Volume) -> (String, fleet::Usage) {
    let usage = fleet::Usage {
        allocated_bytes: volume.allocated_bytes,
        apparent_bytes: volume.apparent_bytes,
        inodes: volume.inodes,
        disk_image: match volume.disk_image {
            None => fleet::DiskImage::Untold,
            Some(true) => fleet::DiskImage::Present,
            Some(false) => fleet::DiskImage::Absent,
        },
    };
    (volume.path.into(), usage)
}

fn disk(disk: model::Disk) -> (String, fleet::DiskHealth) {
    let grade = match disk.grade {
        model::Grade::Unknown => fleet::Grade::Unknown,
        model::Grade::Ok => fleet::Grade::Ok,
        model::Grade::Warning => fleet::Grade::Warning,
        model::Grade::Failing => fleet::Grade::Failing,
        model::Grade::Failed => fleet::Grade::Failed,
    };
    let health = fleet::DiskHealth { grade, reasons: disk.reasons, model: disk.model, serial: disk.serial };
    (disk.name, health)
}
