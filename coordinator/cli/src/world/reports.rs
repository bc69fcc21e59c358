//! What the coordinator has written about a node, back into the core's words: the core's questions about health and
//! room can then be asked without an agent.

use std::collections::BTreeSet;
use std::time::Duration;

use somersault_coordinator_core::fencing::ProofKind;
use somersault_coordinator_core::fleet::{
    DiskHealth, DiskImage, Grade, Host, NodeReport, StorageRoot, Usage,
};
use somersault_crd::common::Proof;
use somersault_crd::node_health::{self, DiskGrade, HostInfo, NodeHealthStatus};

/// The agent's last report; `None` where none was ever written.
pub fn report(status: &NodeHealthStatus) -> Option<NodeReport> {
    let agent = status.agent.as_ref()?;
    let roots = status.roots.iter().map(|root| StorageRoot {
        path: root.path.clone(),
        class: root.class.clone(),
        depth: root.depth.unwrap_or(1),
        shared: root.shared,
        size_bytes: root.size_bytes,
        available_bytes: root.available_bytes,
        read_only: root.read_only,
        disk: root.disk.clone(),
        listed_age: root.listed_age_ms.map(Duration::from_millis),
    });
    let usage = status.volumes.iter().map(|volume| {
        let usage = Usage {
            allocated_bytes: volume.allocated_bytes,
            apparent_bytes: volume.apparent_bytes,
            inodes: volume.inodes,
            disk_image: disk_image(volume.disk_image),
        };
        (volume.path.clone(), usage)
    });
    let disks = status.disks.iter().map(|disk| {
        let health = DiskHealth {
            grade: grade(disk.grade),
            reasons: disk.reasons.clone(),
            model: disk.model.clone(),
            serial: disk.serial.clone(),
        };
        (disk.name.clone(), health)
    });
    Some(NodeReport {
        address: agent.address.clone(),
        agent_version: agent.version.clone(),
        certificate_until_s: None,
        pods: agent.pods.clone(),
        roots: roots.collect(),
        usage: usage.collect(),
        gone: BTreeSet::new(),
        disks: disks.collect(),
        host: status.host.as_ref().map(host).unwrap_or_default(),
    })
}

fn disk_image(image: Option<node_health::DiskImage>) -> DiskImage {
    match image {
        None => DiskImage::Untold,
        Some(node_health::DiskImage::Present) => DiskImage::Present,
        Some(node_health::DiskImage::Absent) => DiskImage::Absent,
        Some(node_health::DiskImage::Vanished) => DiskImage::Vanished,
    }
}

fn host(info: &HostInfo) -> Host {
    Host {
        cpu_ratio: info.cpu_ratio,
        memory_total_bytes: info.memory_total_bytes,
        memory_available_bytes: info.memory_available_bytes,
        load1: info.load1,
        io_pressure_ratio: info.io_pressure_ratio,
    }
}

fn grade(grade: DiskGrade) -> Grade {
    match grade {
        DiskGrade::Unknown => Grade::Unknown,
        DiskGrade::Ok => Grade::Ok,
        DiskGrade::Warning => Grade::Warning,
        DiskGrade::Failing => Grade::Failing,
        DiskGrade::Failed => Grade::Failed,
    }
}

/// A proof in the core's words.
pub fn proof_kind(proof: Proof) -> ProofKind {
    match proof {
        Proof::PowerOffConfirmed => ProofKind::PowerOffConfirmed,
        Proof::CloudShutdown => ProofKind::CloudShutdown,
        Proof::OutOfServiceByOthers => ProofKind::OutOfServiceByOthers,
        Proof::NewBootId => ProofKind::NewBootId,
        Proof::HumanAttested => ProofKind::HumanAttested,
        Proof::LeaseExpired => ProofKind::LeaseExpired,
    }
}
