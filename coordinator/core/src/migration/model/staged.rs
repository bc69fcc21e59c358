//! Aliases, claims and holders of ours in the model: a CSI provisioner makes a volume in the round after, and a kubelet mounts
//! it in the round after that. What is deleted is gone a round later, the holder first, the alias last.

use std::collections::BTreeSet;

use super::{EVERYWHERE, World, place, place_of, place_of_volume};
use crate::fleet::{Alias, ClaimRef, Holder, Staged, StagedClaim, Volume, VolumeMode, VolumeSource};
use crate::io::{Action, NewVolume, Staging};
use crate::names::{Key, Uid, VolumeName};

/// Namespace of the coordinator.
const SYSTEM: &str = "system";
/// Where the kubelets of the model mount volumes.
pub(super) const PODS: &str = "/pods";
/// Where a holder hands over a block device, below its own.
const HANDED: &str = "somersault-device";
/// Where volumes of the CSI driver are, as a place of contents.
pub(super) const CSI: &str = "/csi/";

impl World {
    pub(super) fn act_on_staged(&mut self, action: &Action) -> Result<(), String> {
        match action {
            Action::Unstage { name, claim_uid, volume_goes } => {
                self.unstage(name, claim_uid.as_ref(), *volume_goes)
            }
            Action::DiscardVolume { volume, claim_uid } => self.discard(volume, claim_uid),
            Action::Stage(staging) => self.stage(staging),
            other => Err(format!("not of a claim of ours: {other:?}")),
        }
    }

    fn stage(&mut self, staging: &Staging) -> Result<(), String> {
        if let Some(old) = &staging.alias_of {
            let old_volume = self.fleet.volumes.get(old).ok_or("no volume")?;
            if old_volume.phase != "Released" || !old_volume.retained {
                return Err("somebody has the volume".into());
            }
            self.aliases.insert(staging.name.clone(), old.clone());
        }
        let uid = self.new_uid("0a");
        let staged = self.fleet.staged.entry(staging.name.clone()).or_default();
        if staging.alias_of.is_some() {
            staged.alias.get_or_insert(Alias { deleting: false });
        }
        staged.claim.get_or_insert_with(|| StagedClaim { uid: uid.clone(), volume: None, deleting: false });
        let node = Some(staging.node.clone());
        let holder = Holder { uid, node, running: false, deleting: false, ended: false };
        match &mut staged.holder {
            Some(there) if there.ended => *there = holder,
            there => _ = there.get_or_insert(holder),
        }
        self.templates.insert(staging.name.clone(), staging.template.clone());
        Ok(())
    }

    fn unstage(&mut self, name: &str, claim_uid: Option<&Uid>, volume_goes: bool) -> Result<(), String> {
        let Some(staged) = self.fleet.staged.get_mut(name) else { return Ok(()) };
        if let Some(claim) = &mut staged.claim {
            if Some(&claim.uid) != claim_uid {
                return Err("another claim".into());
            }
            let volume = claim.volume.as_ref().and_then(|name| self.fleet.volumes.get(name));
            if !volume_goes && volume.is_some_and(|volume| !volume.retained) {
                return Err("not on Retain".into());
            }
            claim.deleting = true;
        }
        if let Some(holder) = &mut staged.holder {
            holder.deleting = true;
        }
        if let Some(alias) = &mut staged.alias {
            alias.deleting = true;
        }
        Ok(())
    }

    fn discard(&mut self, volume: &VolumeName, claim_uid: &Uid) -> Result<(), String> {
        let Some(found) = self.fleet.volumes.get_mut(volume) else { return Ok(()) };
        assert!(found.provisioned_by.is_some(), "{volume} was there before, and is given up");
        if found.claim.as_ref().and_then(|of| of.uid.as_ref()) != Some(claim_uid) {
            return Err("another claim has it".into());
        }
        found.retained = false;
        Ok(())
    }

    /// Every holder is gone, or was evicted and lies there.
    pub fn lose_holders(&mut self, evicted: bool) {
        for staged in self.fleet.staged.values_mut() {
            match &mut staged.holder {
                Some(holder) if evicted => (holder.running, holder.ended) = (false, true),
                holder => *holder = None,
            }
        }
    }

    /// A volume that was on Delete when its claim went goes a round later.
    fn released_volumes_go(&mut self) {
        let claims: BTreeSet<Uid> = self
            .fleet
            .staged
            .values()
            .filter_map(|staged| Some(staged.claim.as_ref()?.uid.clone()))
            .collect();
        self.fleet.volumes.retain(|name, volume| {
            let uid =
                volume.claim.as_ref().filter(|of| of.key.namespace == SYSTEM).and_then(|of| of.uid.as_ref());
            let goes = !volume.retained && uid.is_some_and(|uid| !claims.contains(uid));
            if goes {
                self.content.remove(&place(EVERYWHERE, &format!("{CSI}{name}")));
            }
            !goes
        });
    }

    /// One round of provisioner, kubelets and the deletion of what was deleted.
    pub(super) fn provisioners(&mut self) {
        self.released_volumes_go();
        for name in self.fleet.staged.keys().cloned().collect::<Vec<_>>() {
            let mut staged = self.fleet.staged[&name].clone();
            if let Some(holder) = &mut staged.holder {
                let bound = staged.claim.as_ref().is_some_and(|claim| claim.volume.is_some());
                holder.running = bound && !holder.ended && !self.faults.nothing_mounts;
            }
            match (&mut staged.claim, &staged.holder) {
                (_, Some(holder)) if holder.deleting && !self.faults.target_dead => staged.holder = None,
                (Some(claim), None) if claim.deleting => {
                    self.claim_goes(claim);
                    staged.claim = None;
                }
                (None, None) if staged.alias.as_ref().is_some_and(|alias| alias.deleting) => {
                    staged.alias = None;
                }
                (Some(claim), _) if claim.volume.is_none() && staged.alias.is_some() => {
                    claim.volume = Some(VolumeName(name.clone()));
                }
                (Some(claim), _) if claim.volume.is_none() && !claim.deleting => {
                    claim.volume = Some(self.made(&name, claim.uid.clone()));
                }
                _ => {}
            }
            if staged == Staged::default() {
                self.fleet.staged.remove(&name);
            } else {
                self.fleet.staged.insert(name, staged);
            }
        }
    }

    fn made(&mut self, name: &str, uid: Uid) -> VolumeName {
        let statics = self.faults.static_volumes;
        let volume = VolumeName(format!("{name}-{}", if statics { "there" } else { uid.as_str() }));
        let template = self.templates[name].clone();
        self.create_volume(&NewVolume {
            name: volume.clone(),
            class: template.class,
            node: None,
            path: String::new(),
            capacity_bytes: template.requested_bytes,
            access_modes: template.access_modes,
            mode: template.mode,
            claim: Key::new(SYSTEM, name),
        });
        let made = self.fleet.volumes.get_mut(&volume).expect("just made");
        made.source = VolumeSource::Csi { driver: "rbd.csi.ceph.com".into(), handle: volume.0.clone() };
        made.claim = Some(ClaimRef { key: Key::new(SYSTEM, name), uid: Some(uid) });
        (made.retained, made.phase) = (false, "Bound".into());
        made.provisioned_by = (!statics).then(|| "rbd.csi.ceph.com".into());
        volume
    }

    fn claim_goes(&mut self, claim: &StagedClaim) {
        let volume = claim.volume.as_ref().and_then(|name| self.fleet.volumes.get_mut(name));
        let bound =
            |volume: &&mut Volume| volume.claim.as_ref().and_then(|of| of.uid.as_ref()) == Some(&claim.uid);
        if let Some(volume) = volume.filter(bound) {
            volume.phase = "Released".into();
        }
    }

    /// The path that an agent writes to, as a place of contents: what is mounted for a holder that runs there.
    pub(super) fn mounted(&self, node: &str, path: &str) -> Option<String> {
        let mut parts = path.strip_prefix(PODS)?.split('/').skip(1);
        let (uid, seen) = (parts.next()?, parts.nth(2)?);
        let (_, staged) = self.holder(uid, node)?;
        let name = staged.claim.as_ref()?.volume.as_ref().filter(|_| staged.alias.is_none())?;
        let is_device = self.fleet.volumes.get(name)?.mode == VolumeMode::Block;
        (seen == if is_device { HANDED } else { name.as_str() })
            .then(|| place(EVERYWHERE, &format!("{CSI}{name}")))
    }

    /// What a holder that runs there has.
    fn holder(&self, uid: &str, node: &str) -> Option<(&String, &Staged)> {
        self.fleet.staged.iter().find(|(_, staged)| {
            let holder = staged.holder.as_ref().filter(|holder| holder.running && holder.uid.0 == uid);
            holder.is_some_and(|holder| holder.node == Some(node.into()))
        })
    }

    /// The path that an agent reads from, as a place of contents: what is mounted for a VM's own pod, or an alias for a
    /// holder that runs there.
    pub(super) fn read_from(&self, node: &str, path: &str) -> Option<String> {
        let Some(below) = path.strip_prefix(PODS) else {
            let at = (!path.starts_with(super::SHARED_ROOT)).then_some(node);
            return Some(place_of(at, path));
        };
        let mut parts = below.split('/').skip(1);
        let (uid, seen) = (parts.next()?, VolumeName(parts.nth(2)?.to_owned()));
        let pods = self.fleet.vms.iter().flat_map(|(key, vm)| vm.pods.iter().map(move |pod| (key, pod)));
        let mut own = pods.filter(|(_, pod)| pod.uid.0 == uid && pod.node == Some(node.into()));
        let volume = if let Some((vm, pod)) = own.next() {
            let mut claims = pod.claims.iter().map(|name| Key::new(vm.namespace.clone(), name));
            claims.any(|claim| self.fleet.claims[&claim].volume.as_ref() == Some(&seen)).then_some(&seen)?
        } else {
            let (name, staged) = self.holder(uid, node)?;
            let of = self.aliases.get(name).filter(|_| staged.alias.is_some())?;
            let is_device = self.fleet.volumes.get(of)?.mode == VolumeMode::Block;
            Some(of).filter(|_| seen.as_str() == if is_device { HANDED } else { name.as_str() })?
        };
        let (node, path) = place_of_volume(self.fleet.volumes.get(volume)?)?;
        Some(place_of(node.as_deref(), &path))
    }

    /// A holder of ours has this volume mounted, or may have it at any moment, by its place of contents. One on a dead node
    /// has it read-only, and is not waited for.
    pub(super) fn is_read(&self, place: &str) -> bool {
        if self.faults.taken_by_force {
            return false;
        }
        let holders = self.fleet.staged.iter().filter(|(_, staged)| {
            staged
                .holder
                .as_ref()
                .and_then(|holder| holder.node.as_ref())
                .is_some_and(|node| !self.dead.contains(node))
        });
        let mut volumes = holders.filter_map(|(name, _)| self.fleet.volumes.get(self.aliases.get(name)?));
        volumes.any(|volume| {
            let at = place_of_volume(volume);
            at.is_some_and(|(node, path)| place_of(node.as_deref(), &path) == place)
        })
    }

    /// A claim of ours still has this volume, by its place of contents.
    pub(super) fn is_staged(&self, place: &str) -> bool {
        let names = self.fleet.staged.values().filter_map(|staged| staged.claim.as_ref()?.volume.as_ref());
        let mut places = names.map(|name| self::place(EVERYWHERE, &format!("{CSI}{name}")));
        places.any(|of_claim| of_claim == place)
    }

    fn new_uid(&mut self, what: &str) -> Uid {
        self.next_uid += 1;
        Uid(format!("{what}-uid-{}", self.next_uid))
    }
}
