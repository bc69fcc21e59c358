//! What of a VM's storage is broken now: fleet -> each broken disk with its reason and where that was seen.
//!
//! ```text
//! every VM ──► may its storage be broken? (the node that a volume names is asked, no other) ──no──► nothing
//!                   │ yes, or hard to tell
//!                   ▼
//!              each disk judged as for a decision ──► broken disks
//! ```

use crate::decision::disks::{self, Examined};
use crate::decision::{Locality, Question, Reason};
use crate::fleet::{self, Fleet};
use crate::locality::ClassOverrides;
use crate::names::{Key, NodeName, VolumeName};

/// A disk whose storage is broken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BrokenDisk {
    /// Volume name in the VM.
    pub disk: String,
    /// What is broken.
    pub reason: Reason,
    /// Its claim.
    pub claim: Option<Key>,
    /// What an agent told that makes us believe it: volume, node and folder. `None` where objects say it.
    pub told: Option<Told>,
}

impl BrokenDisk {
    /// Where an agent looked, if that it did not find something there is all that we know. A disk that is graded Failed
    /// was looked at; the listing of its folders may hang for ever.
    pub fn by_listing(&self) -> Option<&Told> {
        self.told.as_ref().filter(|_| self.reason != Reason::DiskFailed)
    }
}

/// Where an agent looked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Told {
    pub volume: VolumeName,
    pub node: NodeName,
    pub path: String,
}

/// The broken disks of a VM, in its order.
pub(crate) fn broken_disks(fleet: &Fleet, overrides: &ClassOverrides, key: &Key) -> Vec<BrokenDisk> {
    let Some(vm) = fleet.vms.get(key).filter(|vm| disks::may_be_broken(fleet, key, vm)) else {
        return Vec::new();
    };
    let examined = disks::examine(fleet, overrides, &Question::default(), key, vm);
    examined.iter().filter_map(|disk| Some((disk, disk.broken()?.0))).map(|it| broken(fleet, it)).collect()
}

fn broken(fleet: &Fleet, (disk, reason): (&Examined, Reason)) -> BrokenDisk {
    let by_agent =
        matches!(reason, Reason::VolumePathMissing | Reason::DiskImageMissing | Reason::DiskFailed);
    BrokenDisk {
        disk: disk.finding.disk.clone(),
        reason,
        claim: disk.claim.clone(),
        told: if by_agent { told(fleet, disk) } else { None },
    }
}

fn told(fleet: &Fleet, disk: &Examined) -> Option<Told> {
    let Locality::Local { node } = &disk.finding.locality else { return None };
    let volume = disk.volume.clone()?;
    let path = fleet::folder(fleet.volumes.get(&volume)?.source.path()?).to_owned();
    Some(Told { volume, node: node.clone(), path })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::decide;
    use crate::decision::testkit::{World, data_report, host_path, key, on_host, on_label};
    use crate::fleet::{DiskImage, Grade, NodeReport, Usage, VolumeMode, VolumeSource, ZONE_LABEL};
    use proptest::prelude::*;

    fn report(image: DiskImage, folder: bool, grade: Grade, listed: bool) -> NodeReport {
        let usage = Usage { disk_image: image, ..Usage::default() };
        data_report(
            listed.then_some(std::time::Duration::ZERO),
            grade,
            folder.then_some(("/data/vol", usage)),
        )
    }

    proptest! {
        /// The quick look must find everything that a decision finds.
        #[test]
        fn the_quick_look_misses_nothing(
            affinity in 0..6_usize,
            image in 0..4_usize,
            flags in any::<[bool; 8]>(),
            phase in 0..3_usize,
        ) {
            let [folder, failed, listed, block, gone, running, elsewhere, one_node] = flags;
            let mut world = World::bare();
            world.fleet.vms.insert(key("web"), crate::decision::testkit::running_vm("web", "n1"));
            let affinity = match affinity {
                0 => None,
                1 => on_host(&["n1"]),
                2 => on_host(&["n1", "n2"]),
                3 => on_host(&["n9"]),
                4 => on_label(ZONE_LABEL, &["b"]),
                _ => on_label("metadata.name", &["n1"]),
            };
            world.add_disk("web", "x", host_path(), affinity);
            let image = [DiskImage::Untold, DiskImage::Present, DiskImage::Absent, DiskImage::Vanished][image];
            let grade = if failed { Grade::Failed } else { Grade::Ok };
            for node in ["n1", "n3"] {
                world.fleet.reports.insert(node.into(), report(image, folder, grade, listed));
            }
            ["Bound", "Lost", "Pending"][phase].clone_into(&mut world.claim("web-x").phase);
            if block { world.volume("pv-web-x").mode = VolumeMode::Block; }
            if gone { world.fleet.volumes.clear(); }
            if !running { world.vm("web").instance = None; }
            if elsewhere {
                world.volume_if_any("pv-web-x", |volume| volume.claim.as_mut().expect("bound").key = key("other"));
            }
            if one_node { world.fleet.nodes.retain(|name, _| name.as_str() == "n1"); }
            let decision = decide(&world.fleet, &world.overrides, &key("web"), &Question::default());
            let told = decision.kind == crate::decision::DecisionKind::ManualRecovery;
            let found = broken_disks(&world.fleet, &world.overrides, &key("web"));
            prop_assert_eq!(told, !found.is_empty(), "{:#?}", decision);
            let reasons: Vec<Reason> = found.iter().map(|disk| disk.reason).collect();
            prop_assert_eq!(decision.reasons.first(), reasons.first().or(Some(&Reason::StorageSound)));
        }
    }

    #[test]
    fn tells_where_an_agent_looked_and_not_where_objects_say_it() {
        let mut world = World::new();
        world.add_disk("web", "x", VolumeSource::Local { path: "/data/vol/".to_owned() }, on_host(&["n1"]));
        world.fleet.reports.insert("n1".into(), report(DiskImage::Vanished, true, Grade::Ok, true));
        world.fleet.claims.remove(&key("web-data"));
        let found = broken_disks(&world.fleet, &world.overrides, &key("web"));
        assert_eq!((found[0].reason, &found[0].told), (Reason::ClaimMissing, &None));
        let told = Told { volume: "pv-web-x".into(), node: "n1".into(), path: "/data/vol".to_owned() };
        assert_eq!((found[1].reason, &found[1].told), (Reason::DiskImageMissing, &Some(told)));
    }
}
