//! Puts a report together from the last samples. Nothing here waits: what is old is sent with its age.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use somersault_agent_core::health::{self, Assessment};
use somersault_proto::model::limits::{DISKS_MAX, VOLUMES_MAX};
use somersault_proto::model::{AbsolutePath, Disk, Grade, Host, Report, StorageRoot, Volume};

use crate::inventory::{Room, VolumeSample, volume_path};
use crate::sense::{Sensed, WatchedRoot};

/// What the agent knows of its node now; `None` before the first look at the machine. `pods` is what it may copy from and
/// to beside the roots.
pub fn report(
    roots: &[WatchedRoot],
    pods: Option<&AbsolutePath>,
    sensed: &Sensed,
    now: Duration,
) -> Option<Report> {
    let host = sensed.host?;
    let mut found: Vec<Volume> = roots.iter().flat_map(|root| volumes(root, now)).collect();
    // Several roots together may have more folders than a report can hold: then no listing of it is complete.
    let complete = found.len() <= VOLUMES_MAX;
    found.truncate(VOLUMES_MAX);
    Some(Report {
        roots: roots.iter().map(|root| storage_root(root, sensed, now, complete)).collect(),
        volumes: found,
        disks: sensed.disks.iter().take(DISKS_MAX).map(|(name, assessment)| disk(name, assessment)).collect(),
        host,
        pods: pods.cloned(),
    })
}

/// The part of a report whose change is worth telling at once. Sizes and ages move all the time and wait for the
/// next report.
pub fn shape(report: &Report) -> Report {
    let mut shape = report.clone();
    for root in &mut shape.roots {
        // How much room there is is news by the twentieth: copies are refused for want of it. And that a root was seen at all:
        // until then it has none.
        let twentieths = root.available_bytes.saturating_mul(20).checked_div(root.size_bytes);
        (root.size_bytes, root.available_bytes) = (root.size_bytes.min(1), twentieths.unwrap_or(0));
        root.listed_age = root.listed_age.map(|_| Duration::ZERO);
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

fn storage_root(watched: &WatchedRoot, sensed: &Sensed, now: Duration, complete: bool) -> StorageRoot {
    let sample = watched.watch.sample();
    // A root that was never seen has no room: nothing must be planned onto it.
    let Room { size_bytes, available_bytes, read_only } =
        sample.as_deref().map(|sample| sample.room).unwrap_or_default();
    let disks = sensed.disks_of_root.get(watched.root.path.as_str());
    let listed_at = sample.as_deref().filter(|_| complete).and_then(|sample| sample.listed_at);
    StorageRoot {
        path: watched.root.path.clone(),
        storage_class: watched.root.class.clone(),
        depth: watched.root.depth,
        shared: watched.root.shared,
        size_bytes,
        available_bytes,
        read_only,
        disk: disks.and_then(|disks| worst(disks, sensed)),
        listed_age: listed_at.map(|at| now.saturating_sub(at)),
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
    let Some(sample) = watched.watch.sample() else { return Vec::new() };
    let volume = |(name, volume): (&String, &VolumeSample)| {
        Some(Volume {
            path: volume_path(root, name)?,
            allocated_bytes: volume.usage.allocated_bytes,
            apparent_bytes: volume.usage.apparent_bytes,
            inodes: volume.usage.inodes,
            sample_age: now.saturating_sub(volume.taken_at),
            disk_image: volume.disk_image,
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use somersault_proto::v1;

    use super::*;
    use crate::inventory::{RootSample, RootWatch, Usage};

    const HOST: Host = Host {
        cpu_ratio: 0.5,
        memory_total_bytes: 8 << 30,
        memory_available_bytes: 4 << 30,
        load1: 1.0,
        io_pressure_ratio: None,
        uptime: Duration::from_hours(1),
    };

    fn watched(sample: Option<RootSample>) -> WatchedRoot {
        let root = crate::config::StorageRoot {
            class: "local-path".into(),
            depth: 1,
            path: "/srv/v".parse().expect("a path"),
            shared: false,
        };
        WatchedRoot { root, watch: Arc::new(RootWatch::holding(sample)) }
    }

    fn sample(volumes: usize) -> RootSample {
        let volume = VolumeSample {
            taken_at: Duration::from_mins(1),
            usage: Usage { allocated_bytes: 4096, apparent_bytes: 100, inodes: 2, skipped: 0 },
            disk_image: Some(true),
        };
        RootSample {
            listed_at: Some(Duration::from_mins(1)),
            room: Room { size_bytes: 1000, available_bytes: 400, read_only: false },
            volumes: (0..volumes).map(|n| (format!("pvc-{n}"), volume)).collect(),
            ..RootSample::default()
        }
    }

    fn sensed(grades: &[(&str, health::Grade)]) -> Sensed {
        let disk = |(name, grade): &(&str, health::Grade)| {
            ((*name).to_owned(), Assessment { grade: *grade, ..Assessment::default() })
        };
        let names = grades.iter().map(|(name, _)| (*name).to_owned()).collect();
        Sensed {
            disks: grades.iter().map(disk).collect(),
            disks_of_root: BTreeMap::from([("/srv/v".to_owned(), names)]),
            host: Some(HOST),
        }
    }

    fn made(root: WatchedRoot, sensed: &Sensed, now: Duration) -> Report {
        report(&[root], None, sensed, now).expect("a report")
    }

    #[test]
    fn a_root_that_was_never_seen_has_no_room_and_its_first_sample_is_news() {
        let now = Duration::from_secs(100);
        let before = made(watched(None), &sensed(&[]), now);
        assert_eq!((before.roots[0].size_bytes, before.roots[0].available_bytes), (0, 0));
        let after = made(watched(Some(sample(0))), &sensed(&[]), now);
        assert_ne!(shape(&before), shape(&after));
    }

    #[test]
    fn old_figures_are_sent_with_their_age_and_their_change_is_no_news() {
        let one = made(watched(Some(sample(1))), &sensed(&[]), Duration::from_secs(100));
        assert_eq!(one.volumes[0].sample_age, Duration::from_secs(40));
        let mut grown = sample(1);
        grown.room.available_bytes = 401;
        let two = made(watched(Some(grown)), &sensed(&[]), Duration::from_secs(200));
        assert_eq!(shape(&one), shape(&two));
    }

    #[test]
    fn a_disk_that_fills_or_is_emptied_is_news() {
        let now = Duration::from_secs(100);
        let with = |available_bytes| {
            let mut sample = sample(1);
            sample.room.available_bytes = available_bytes;
            shape(&made(watched(Some(sample)), &sensed(&[]), now))
        };
        assert_ne!(with(400), with(0));
        assert_ne!(with(0), with(60));
        assert_eq!(with(410), with(440));
    }

    #[test]
    fn a_grade_or_a_volume_more_is_news() {
        use health::Grade::{Failing, Ok};
        let now = Duration::from_secs(100);
        let base = shape(&made(watched(Some(sample(1))), &sensed(&[("sda", Ok)]), now));
        assert_ne!(base, shape(&made(watched(Some(sample(1))), &sensed(&[("sda", Failing)]), now)));
        assert_ne!(base, shape(&made(watched(Some(sample(2))), &sensed(&[("sda", Ok)]), now)));
    }

    #[test]
    fn a_disk_image_that_goes_is_news_and_a_newer_listing_is_not() {
        let now = Duration::from_secs(100);
        let base = made(watched(Some(sample(1))), &sensed(&[]), now);
        assert_eq!(base.roots[0].listed_age, Some(Duration::from_secs(40)));
        let mut later = sample(1);
        later.listed_at = Some(Duration::from_secs(90));
        assert_eq!(shape(&base), shape(&made(watched(Some(later)), &sensed(&[]), now)));
        for gone in [Some(false), None] {
            let mut without = sample(1);
            without.volumes.values_mut().for_each(|volume| volume.disk_image = gone);
            assert_ne!(shape(&base), shape(&made(watched(Some(without)), &sensed(&[]), now)));
        }
    }

    /// Who reads the report must not take a folder that did not fit for one that is gone.
    #[test]
    fn a_report_that_cannot_hold_every_folder_claims_no_complete_listing() {
        let listed = |folders| {
            made(watched(Some(sample(folders))), &sensed(&[]), Duration::from_secs(100)).roots[0].listed_age
        };
        assert!(listed(VOLUMES_MAX).is_some());
        assert_eq!(listed(VOLUMES_MAX + 1), None);
    }

    #[test]
    fn a_root_over_several_disks_names_the_worst() {
        use health::Grade::{Failing, Ok, Unknown};
        let disk = |grades: &[_]| made(watched(None), &sensed(grades), Duration::ZERO).roots[0].disk.clone();
        assert_eq!(disk(&[("sda", Ok), ("sdb", Failing), ("sdc", Unknown)]).as_deref(), Some("sdb"));
        assert_eq!(disk(&[("sda", Ok), ("sdb", Ok)]).as_deref(), Some("sda"));
        assert_eq!(disk(&[]), None);
    }

    #[test]
    fn whatever_is_found_makes_a_report_that_the_coordinator_accepts() {
        let disks: Vec<String> = (0..2 * DISKS_MAX).map(|n| format!("sd{n}")).collect();
        let grades: Vec<_> = disks.iter().map(|name| (name.as_str(), health::Grade::Failed)).collect();
        let report = made(watched(Some(sample(VOLUMES_MAX + 50))), &sensed(&grades), Duration::from_secs(1));
        let wire = v1::Report::from(report.clone());
        assert_eq!(Report::try_from(wire), Ok(report));
    }

    #[test]
    fn nothing_is_reported_before_the_first_look() {
        assert_eq!(report(&[], None, &Sensed::default(), Duration::ZERO), None);
    }
}
