//! What an agent tells of its node.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{AbsolutePath, ModelError, each, label, limits, name, required, text};
use crate::v1;

/// The whole picture of a node, each time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Folders that hold volumes; each path once.
    pub roots: Vec<StorageRoot>,
    /// Folders below the roots, as deep as the root says; each path once.
    pub volumes: Vec<Volume>,
    /// Physical disks; each name once.
    pub disks: Vec<Disk>,
    /// The machine itself.
    pub host: Host,
    /// Where the kubelet mounts the volumes of pods, if the agent copies from and to there.
    pub pods: Option<AbsolutePath>,
}

/// A folder that holds volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageRoot {
    /// Where.
    pub path: AbsolutePath,
    /// Storage class whose volumes live here.
    pub storage_class: String,
    /// How many folders deep its volumes lie: 1 to [`limits::DEPTH_MAX`].
    pub depth: u8,
    /// Every node with this root sees the same content.
    pub shared: bool,
    /// Size of the filesystem.
    pub size_bytes: u64,
    /// Room left on it.
    pub available_bytes: u64,
    /// It cannot be written.
    pub read_only: bool,
    /// Name of the disk below, where it could be resolved.
    pub disk: Option<String>,
    /// Age of the last complete listing of its folders when the report was made; `None` where a folder that is not
    /// told may be there.
    pub listed_age: Option<Duration>,
}

/// One volume's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Where.
    pub path: AbsolutePath,
    /// Blocks really taken.
    pub allocated_bytes: u64,
    /// Sum of file sizes.
    pub apparent_bytes: u64,
    /// Files and folders.
    pub inodes: u64,
    /// Age of the figures when the report was made.
    pub sample_age: Duration,
    /// At the last listing there was a regular file `disk.img` in it; `None` where nobody could look.
    pub disk_image: Option<bool>,
}

/// Grade of a disk, worst last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// No signal.
    #[default]
    Unknown,
    /// No complaint.
    Ok,
    /// Worth a look.
    Warning,
    /// Readable; evacuate.
    Failing,
    /// Do not trust what it reads.
    Failed,
}

/// One physical disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its name on the node.
    pub name: String,
    /// Model, or empty.
    pub model: String,
    /// Serial number, or empty.
    pub serial: String,
    /// Grade.
    pub grade: Grade,
    /// `CamelCase`.
    pub reasons: Vec<String>,
    /// SMART could be read.
    pub smart_supported: bool,
}

/// The machine itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Host {
    /// Share of CPU in use, 0..=1.
    pub cpu_ratio: f64,
    /// Installed memory.
    pub memory_total_bytes: u64,
    /// Memory to be had.
    pub memory_available_bytes: u64,
    /// Load average of one minute.
    pub load1: f64,
    /// Share of time in which some task waited for IO, 0..=1; absent without PSI.
    pub io_pressure_ratio: Option<f64>,
    /// Since boot.
    pub uptime: Duration,
}

impl TryFrom<v1::Report> for Report {
    type Error = ModelError;

    fn try_from(wire: v1::Report) -> Result<Self, ModelError> {
        let report = Self {
            roots: each("roots", wire.roots, limits::ROOTS_MAX)?,
            volumes: each("volumes", wire.volumes, limits::VOLUMES_MAX)?,
            disks: each("disks", wire.disks, limits::DISKS_MAX)?,
            host: required("host", wire.host)?.try_into().map_err(|e: ModelError| e.within("host"))?,
            pods: if wire.pods.is_empty() { None } else { Some(name("pods", wire.pods)?) },
        };
        once("roots", "path", report.roots.iter().map(|root| root.path.as_str()))?;
        once("volumes", "path", report.volumes.iter().map(|volume| volume.path.as_str()))?;
        once("disks", "name", report.disks.iter().map(|disk| disk.name.as_str()))?;
        Ok(report)
    }
}

impl From<Report> for v1::Report {
    fn from(report: Report) -> Self {
        Self {
            roots: report.roots.into_iter().map(Into::into).collect(),
            volumes: report.volumes.into_iter().map(Into::into).collect(),
            disks: report.disks.into_iter().map(Into::into).collect(),
            host: Some(report.host.into()),
            pods: report.pods.map(Into::into).unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::StorageRoot> for StorageRoot {
    type Error = ModelError;

    fn try_from(wire: v1::StorageRoot) -> Result<Self, ModelError> {
        if wire.available_bytes > wire.size_bytes {
            let why = format!("{} is more than size_bytes, {}", wire.available_bytes, wire.size_bytes);
            return Err(ModelError::invalid("available_bytes", why));
        }
        let depth = u8::try_from(wire.depth.max(1)).ok().filter(|depth| *depth <= limits::DEPTH_MAX);
        let depth = depth.ok_or_else(|| {
            ModelError::invalid("depth", format!("{} is more than {}", wire.depth, limits::DEPTH_MAX))
        })?;
        Ok(Self {
            path: name("path", wire.path)?,
            storage_class: label("storage_class", wire.storage_class)?,
            depth,
            shared: wire.shared,
            size_bytes: wire.size_bytes,
            available_bytes: wire.available_bytes,
            read_only: wire.read_only,
            disk: if wire.disk.is_empty() { None } else { Some(label("disk", wire.disk)?) },
            listed_age: wire.listed_age_ms.map(Duration::from_millis),
        })
    }
}

impl From<StorageRoot> for v1::StorageRoot {
    fn from(root: StorageRoot) -> Self {
        Self {
            path: root.path.into(),
            storage_class: root.storage_class,
            shared: root.shared,
            size_bytes: root.size_bytes,
            available_bytes: root.available_bytes,
            read_only: root.read_only,
            disk: root.disk.unwrap_or_default(),
            listed_age_ms: root.listed_age.map(millis),
            depth: root.depth.into(),
        }
    }
}

impl TryFrom<v1::Volume> for Volume {
    type Error = ModelError;

    fn try_from(wire: v1::Volume) -> Result<Self, ModelError> {
        Ok(Self {
            path: name("path", wire.path)?,
            allocated_bytes: wire.allocated_bytes,
            apparent_bytes: wire.apparent_bytes,
            inodes: wire.inodes,
            sample_age: Duration::from_millis(wire.sample_age_ms),
            disk_image: wire.disk_image,
        })
    }
}

impl From<Volume> for v1::Volume {
    fn from(volume: Volume) -> Self {
        Self {
            path: volume.path.into(),
            allocated_bytes: volume.allocated_bytes,
            apparent_bytes: volume.apparent_bytes,
            inodes: volume.inodes,
            sample_age_ms: millis(volume.sample_age),
            disk_image: volume.disk_image,
        }
    }
}

fn millis(age: Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}

impl TryFrom<v1::Disk> for Disk {
    type Error = ModelError;

    fn try_from(wire: v1::Disk) -> Result<Self, ModelError> {
        let grade = match v1::Grade::try_from(wire.grade) {
            Ok(v1::Grade::Unspecified) => return Err(ModelError::Missing("grade".into())),
            Ok(v1::Grade::Unknown) => Grade::Unknown,
            Ok(v1::Grade::Ok) => Grade::Ok,
            Ok(v1::Grade::Warning) => Grade::Warning,
            Ok(v1::Grade::Failing) => Grade::Failing,
            Ok(v1::Grade::Failed) => Grade::Failed,
            Err(_) => return Err(ModelError::invalid("grade", format!("{} is no grade", wire.grade))),
        };
        super::at_most("reasons", wire.reasons.len(), limits::REASONS_MAX)?;
        Ok(Self {
            name: label("name", wire.name)?,
            model: text("model", wire.model, limits::TEXT_BYTES_MAX)?,
            serial: text("serial", wire.serial, limits::TEXT_BYTES_MAX)?,
            grade,
            reasons: wire
                .reasons
                .into_iter()
                .enumerate()
                .map(|(index, reason)| super::progress::camel_case(&format!("reasons[{index}]"), reason))
                .collect::<Result<_, _>>()?,
            smart_supported: wire.smart_supported,
        })
    }
}

impl From<Disk> for v1::Disk {
    fn from(disk: Disk) -> Self {
        let grade = match disk.grade {
            Grade::Unknown => v1::Grade::Unknown,
            Grade::Ok => v1::Grade::Ok,
            Grade::Warning => v1::Grade::Warning,
            Grade::Failing => v1::Grade::Failing,
            Grade::Failed => v1::Grade::Failed,
        };
        Self {
            name: disk.name,
            model: disk.model,
            serial: disk.serial,
            grade: grade.into(),
            reasons: disk.reasons,
            smart_supported: disk.smart_supported,
        }
    }
}

impl TryFrom<v1::Host> for Host {
    type Error = ModelError;

    fn try_from(wire: v1::Host) -> Result<Self, ModelError> {
        Ok(Self {
            cpu_ratio: ratio("cpu_ratio", wire.cpu_ratio)?,
            memory_total_bytes: wire.memory_total_bytes,
            memory_available_bytes: wire.memory_available_bytes,
            load1: not_negative("load1", wire.load1)?,
            io_pressure_ratio: wire
                .io_pressure_ratio
                .map(|value| ratio("io_pressure_ratio", value))
                .transpose()?,
            uptime: Duration::from_secs(wire.uptime_s),
        })
    }
}

impl From<Host> for v1::Host {
    fn from(host: Host) -> Self {
        Self {
            cpu_ratio: host.cpu_ratio,
            memory_total_bytes: host.memory_total_bytes,
            memory_available_bytes: host.memory_available_bytes,
            load1: host.load1,
            io_pressure_ratio: host.io_pressure_ratio,
            uptime_s: host.uptime.as_secs(),
        }
    }
}

/// Refuses an entry that is there twice: which of the two is true could not be told.
fn once<'a>(field: &str, key: &str, values: impl Iterator<Item = &'a str>) -> Result<(), ModelError> {
    let mut seen = BTreeSet::new();
    for (index, value) in values.enumerate() {
        if !seen.insert(value) {
            let why = format!("{:?} is there twice", super::names::shortened(value));
            return Err(ModelError::invalid(&format!("{field}[{index}].{key}"), why));
        }
    }
    Ok(())
}

/// A share. Sampling may overshoot one a little: that is cut, not refused.
fn ratio(field: &str, value: f64) -> Result<f64, ModelError> {
    not_negative(field, value).map(|value| value.min(1.0))
}

fn not_negative(field: &str, value: f64) -> Result<f64, ModelError> {
    if value.is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        Err(ModelError::invalid(field, format!("{value} is not a finite number of at least 0")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire_report() -> v1::Report {
        v1::Report {
            roots: vec![v1::StorageRoot {
                path: "/srv/local".into(),
                storage_class: "local-path".into(),
                shared: false,
                size_bytes: 100,
                available_bytes: 40,
                read_only: false,
                disk: "sda".into(),
                listed_age_ms: Some(7),
                depth: 1,
            }],
            volumes: vec![v1::Volume {
                path: "/srv/local/pvc-1".into(),
                allocated_bytes: 10,
                apparent_bytes: 20,
                inodes: 2,
                sample_age_ms: 5,
                disk_image: Some(false),
            }],
            disks: vec![v1::Disk {
                name: "sda".into(),
                model: "Model".into(),
                serial: String::new(),
                grade: v1::Grade::Failing.into(),
                reasons: vec!["ReallocatedSectors".into()],
                smart_supported: true,
            }],
            host: Some(v1::Host { cpu_ratio: 0.5, load1: 1.0, ..v1::Host::default() }),
            pods: "/var/lib/kubelet/pods".into(),
        }
    }

    fn refused(change: impl FnOnce(&mut v1::Report)) -> String {
        let mut wire = wire_report();
        change(&mut wire);
        Report::try_from(wire).unwrap_err().field().to_owned()
    }

    #[test]
    fn a_valid_report_survives_both_ways() {
        let report = Report::try_from(wire_report()).unwrap();
        assert_eq!(v1::Report::from(report), wire_report());
    }

    #[test]
    fn an_agent_that_does_not_look_for_images_tells_nothing_of_them() {
        let mut wire = wire_report();
        wire.volumes[0].disk_image = None;
        wire.roots[0].listed_age_ms = None;
        wire.roots[0].depth = 0;
        let report = Report::try_from(wire).unwrap();
        assert_eq!((report.volumes[0].disk_image, report.roots[0].listed_age), (None, None));
        assert_eq!(report.roots[0].depth, 1, "older agents know no other");
    }

    #[test]
    fn a_hostile_report_is_refused_by_field() {
        assert_eq!(refused(|w| w.roots[0].path = "../etc".into()), "roots[0].path");
        assert_eq!(refused(|w| w.roots[0].available_bytes = 101), "roots[0].available_bytes");
        assert_eq!(refused(|w| w.roots[0].storage_class.clear()), "roots[0].storage_class");
        assert_eq!(refused(|w| w.roots[0].depth = 3), "roots[0].depth");
        assert_eq!(refused(|w| w.volumes[0].path = "/a/../b".into()), "volumes[0].path");
        assert_eq!(refused(|w| w.disks[0].grade = 0), "disks[0].grade");
        assert_eq!(refused(|w| w.disks[0].grade = 77), "disks[0].grade");
        assert_eq!(refused(|w| w.disks[0].reasons[0] = "not camel".into()), "disks[0].reasons[0]");
        assert_eq!(refused(|w| w.disks[0].serial = "\u{1b}[2J".into()), "disks[0].serial");
        assert_eq!(refused(|w| w.host = None), "host");
        assert_eq!(refused(|w| w.pods = "pods".into()), "pods");
        assert_eq!(refused(|w| w.host.as_mut().unwrap().cpu_ratio = f64::NAN), "host.cpu_ratio");
        assert_eq!(refused(|w| w.host.as_mut().unwrap().load1 = -1.0), "host.load1");
        assert_eq!(refused(|w| w.volumes.push(w.volumes[0].clone())), "volumes[1].path");
        assert_eq!(refused(|w| w.volumes = vec![v1::Volume::default(); limits::VOLUMES_MAX + 1]), "volumes");
        assert_eq!(
            refused(|w| w.disks[0].reasons = vec!["A".into(); limits::REASONS_MAX + 1]),
            "disks[0].reasons"
        );
    }

    #[test]
    fn a_share_slightly_above_one_is_cut() {
        let mut wire = wire_report();
        wire.host.as_mut().unwrap().cpu_ratio = 1.002;
        assert!((Report::try_from(wire).unwrap().host.cpu_ratio - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn the_largest_honest_report_fits_the_message_limit() {
        use prost::Message;
        let mut wire = wire_report();
        wire.volumes = (0..limits::VOLUMES_MAX)
            .map(|index| v1::Volume {
                path: format!("/{index:0>149}"),
                allocated_bytes: u64::MAX >> 16,
                apparent_bytes: u64::MAX >> 16,
                inodes: 1 << 32,
                sample_age_ms: 1 << 20,
                disk_image: Some(true),
            })
            .collect();
        assert!(wire.encoded_len() < super::super::FLEET_MESSAGE_BYTES_MAX, "{}", wire.encoded_len());
    }
}
